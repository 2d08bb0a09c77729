//! The decisions of the slow-body guard.

use crate::{
    Pace,
    download::{BUFFERED_BYTES, Download},
    meter::TooSlow,
    stopwatch::{STALL_NANOS, Stopwatch},
};
use http::{Request, Response, StatusCode};
use http_body::Body;
use palisade_core::{Budget, Guard, Phase, Pressure, ResponseFormat, Violation};
use palisade_guard::{
    DropUnread, Facts, Flow, Keys, NeverQueued, PerRequest, Policy, Polled, Refusal, RequestView,
    Settings, SharedView, Stamp, Upstream,
};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::Instant;

/// The policy of [`SlowBodyLayer`](crate::SlowBodyLayer).
#[derive(Clone, Debug)]
pub struct SlowBodyPolicy {
    pub(crate) settings: Settings,
    pub(crate) request: Pace,
    pub(crate) grpc: Pace,
    pub(crate) response: Pace,
    pub(crate) pressure: Pressure,
    pub(crate) budget: Option<Budget>,
    pub(crate) pace_for: PerRequest<Pace>,
}

/// Interval at which an awaited body checks whether other bodies keep the window of its connection
/// closed.
const WINDOW_CHECK_INTERVAL_NANOS: u64 = 2_000_000_000;

/// Waiting time of one body that is excused because other bodies of the connection are unread.
/// Bounded, so that a client which opens such requests itself gains no more than this.
const MAX_EXCUSED_NANOS: u64 = 60_000_000_000;

/// The state of a request on the side of its response.
#[derive(Debug, Default)]
pub enum ResponseState {
    /// Nothing.
    #[default]
    Nothing,
    /// The request's own pace, until it is shared.
    Own(Box<Pace>),
    /// The server has received this many bytes of the response.
    Started(u64),
    /// The server has received more than the buffers between it and the client hold.
    Judged(Pin<Box<Download>>),
}

/// The state that both sides of a request share.
#[derive(Debug)]
pub struct SharedState {
    /// The pace of both bodies, if the request has its own.
    own_pace: Option<Box<Pace>>,
}

/// The state of a request body.
#[derive(Debug)]
pub struct UploadState {
    /// Whether the pace is checked.
    is_checked: bool,
    /// Bytes that have arrived and that the stopwatch does not know yet.
    new_bytes: u64,
    /// Created at the first wait.
    stopwatch: Option<Box<Stopwatch>>,
}

// === SlowBodyPolicy ===

impl SlowBodyPolicy {
    /// Returns the pace that `pace_for` chooses for `request`.
    #[inline(never)]
    fn choose_pace<B>(&self, request: &Request<B>) -> Option<Box<Pace>> {
        if !self.settings.is_enabled() {
            return None;
        }
        self.pace_for.choose(request).map(Box::new)
    }

    /// Returns the pressure, 0 to 1: the higher one of the application's and of the budget's.
    #[inline]
    fn pressure(&self) -> f32 {
        let fill = self.budget.as_ref().map_or(0.0, Budget::fill);
        self.pressure.get().max(fill)
    }

    fn request_pace<'a>(&'a self, common: &'a SharedState, form: ResponseFormat) -> &'a Pace {
        // gRPC-Web has no client streams, so it has no pace of its own.
        let default = if form == ResponseFormat::Grpc {
            &self.grpc
        } else {
            &self.request
        };
        common.own_pace.as_deref().unwrap_or(default)
    }

    fn response_pace<'a>(&'a self, exchange: RequestView<'a, SharedState>) -> &'a Pace {
        exchange
            .shared
            .and_then(|common| common.own_pace.as_deref())
            .unwrap_or(&self.response)
    }

    /// Credits the bytes that arrived before the present wait, at the rate in force now.
    #[inline(always)]
    fn credit_bytes(&self, upload: &mut UploadState) {
        if upload.new_bytes > 0
            && let Some(stopwatch) = &mut upload.stopwatch
        {
            stopwatch.add_bytes(
                std::mem::take(&mut upload.new_bytes),
                stopwatch.required_rate(self.pressure()),
            );
        }
    }

    /// Ends a wait for the client, because the server polls the response body. Cuts the body if the
    /// wait was too long.
    #[inline(never)]
    fn end_response_wait(
        &self,
        held: &mut ResponseState,
        exchange: RequestView<'_, SharedState>,
        slot: &mut Polled,
    ) -> Flow {
        let ResponseState::Judged(download) = held else {
            return Flow::Continue;
        };
        let required_rate = |stopwatch: &Stopwatch| stopwatch.required_rate(self.pressure());
        let Some(slow) = download.as_mut().end_wait(required_rate) else {
            return Flow::Continue;
        };
        *held = ResponseState::Nothing;
        let violation = slow.violation(Phase::ResponseBody);
        if !self.settings.cut(&violation, exchange.facts) {
            return Flow::Continue;
        }
        *slot = Poll::Ready(Some(violation.final_frame(exchange.facts.form)));
        Flow::Cut
    }

    /// Starts a wait for the client: the server has a frame to send, and will poll again. `left` is
    /// the length of the rest of the body, if known.
    #[inline(never)]
    fn start_response_wait(
        &self,
        held: &mut ResponseState,
        exchange: RequestView<'_, SharedState>,
        left: Option<u64>,
        cx: &mut Context<'_>,
    ) {
        let now = Instant::now();
        if let ResponseState::Started(bytes) = *held {
            let length = left.map(|left| left.saturating_add(bytes));
            let stopwatch = Stopwatch::new(self.response_pace(exchange), length);
            *held = ResponseState::Judged(Download::new(stopwatch, bytes, now, cx));
        }
        if let ResponseState::Judged(download) = held {
            download.as_mut().start_wait(now, cx);
        }
    }
}

impl Policy for SlowBodyPolicy {
    type Held = ResponseState;
    type Shared = SharedState;
    type Upload = UploadState;
    type QueuedService = NeverQueued;
    type Unread = DropUnread;

    #[inline(always)]
    fn has_recorder(&self) -> bool {
        self.settings.recorder.is_enabled()
    }

    #[inline(always)]
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        _: &Facts,
        _: &mut Keys,
    ) -> Result<ResponseState, Refusal> {
        if self.pace_for.is_set()
            && let Some(own_pace) = self.choose_pace(request)
        {
            return Ok(ResponseState::Own(own_pace));
        }
        Ok(ResponseState::Nothing)
    }

    #[inline(always)]
    fn needs_sharing(&self, held: &ResponseState, _: &Keys) -> bool {
        matches!(held, ResponseState::Own(_))
    }

    #[inline(always)]
    fn share<B: Body>(
        &self,
        held: &mut ResponseState,
        _: &mut Request<B>,
        _: &Facts,
        _: &mut Keys,
    ) -> SharedState {
        match std::mem::replace(held, ResponseState::Nothing) {
            ResponseState::Own(own_pace) => SharedState {
                own_pace: Some(own_pace),
            },
            _ => SharedState { own_pace: None },
        }
    }

    #[inline(always)]
    fn upload(&self, _: &mut ResponseState, common: &SharedState, facts: &Facts) -> UploadState {
        let is_off = self.request_pace(common, facts.form).is_off();
        UploadState {
            is_checked: self.settings.is_enabled() && !is_off,
            new_bytes: 0,
            stopwatch: None,
        }
    }

    #[inline(always)]
    fn response_head<B: Body>(
        &self,
        held: &mut ResponseState,
        exchange: RequestView<'_, SharedState>,
        _: &mut Response<B>,
        _: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        let is_checked = self.settings.is_enabled() && !self.response_pace(exchange).is_off();
        if is_checked {
            *held = ResponseState::Started(0);
        }
        Ok(is_checked)
    }

    #[inline(always)]
    fn passed(&self, upload: &mut UploadState, _: &SharedState, bytes: usize) {
        upload.new_bytes = upload.new_bytes.saturating_add(bytes as u64);
    }

    #[inline(always)]
    fn poll_request<U: Upstream>(
        &self,
        upload: &mut UploadState,
        exchange: SharedView<'_, SharedState>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        up.poll(slot, cx);
        if let Poll::Ready(Some(Ok(frame))) = slot
            && let Some(data) = frame.data_ref()
        {
            self.passed(upload, exchange.shared, data.len());
        }
        Flow::Continue
    }

    fn first_wait(
        &self,
        upload: &mut UploadState,
        exchange: SharedView<'_, SharedState>,
        left: Option<u64>,
        now: Stamp,
    ) -> Option<Stamp> {
        if !upload.is_checked {
            return None;
        }
        let pace = self.request_pace(exchange.shared, exchange.facts.form);
        let length = left.map(|left| left.saturating_add(upload.new_bytes));
        upload.stopwatch = Some(Box::new(Stopwatch::new(pace, length)));
        self.credit_bytes(upload);
        let due = upload.stopwatch.as_ref()?.due(now);
        Some(next_check(exchange.facts, due, now))
    }

    #[inline(always)]
    fn waits_for_client(
        &self,
        upload: &mut UploadState,
        _: SharedView<'_, SharedState>,
        _: bool,
        _: &mut Context<'_>,
    ) -> Result<(), Violation> {
        // Not when the wait ends: by then the bytes that ended it may have been counted as well.
        self.credit_bytes(upload);
        Ok(())
    }

    #[inline(never)]
    fn wait_expired(
        &self,
        upload: &mut UploadState,
        exchange: SharedView<'_, SharedState>,
        since: Stamp,
        now: Stamp,
    ) -> Result<Option<Stamp>, Violation> {
        self.credit_bytes(upload);
        let Some(stopwatch) = &mut upload.stopwatch else {
            return Ok(None);
        };
        stopwatch.start(since);
        let mut earliest_check = now;
        if let Some(conn) = exchange.facts.shared_window() {
            let first_check = next_check(exchange.facts, stopwatch.due(since), since);
            if now < first_check {
                // The check that is due now belongs to an earlier wait.
                return Ok(Some(first_check));
            }
            if conn.has_unread_body() && stopwatch.excused_nanos() < MAX_EXCUSED_NANOS {
                stopwatch.excuse(now);
                // Without this minimum, an excused wait with 2 ms left would be checked every 2 ms.
                earliest_check = now.saturating_add(STALL_NANOS);
            } else if stopwatch.due(now) > now {
                stopwatch.charge(now);
            }
        }
        let rate = stopwatch.required_rate(self.pressure());
        let Some(slow) = stopwatch.check(now, u64::MAX, rate) else {
            let check = next_check(exchange.facts, stopwatch.due(now), now);
            return Ok(Some(check.max(earliest_check)));
        };
        let refusal = |phase| (slow.violation(phase), StatusCode::REQUEST_TIMEOUT);
        let violation = exchange.violated(&self.settings, refusal);
        // Shadow mode: one event per request is enough.
        upload.is_checked = false;
        upload.stopwatch = None;
        violation.map_or(Ok(None), Err)
    }

    #[inline]
    fn wait_ended(
        &self,
        upload: &mut UploadState,
        _: SharedView<'_, SharedState>,
        since: Stamp,
        now: Stamp,
    ) {
        if let Some(stopwatch) = &mut upload.stopwatch {
            stopwatch.start(since);
            stopwatch.stop(now);
        }
    }

    #[inline(always)]
    fn poll_response<U: Upstream>(
        &self,
        held: &mut ResponseState,
        exchange: RequestView<'_, SharedState>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        if matches!(held, ResponseState::Judged(_))
            && self.end_response_wait(held, exchange, slot) == Flow::Cut
        {
            return Flow::Cut;
        }
        up.poll(slot, cx);
        if let Poll::Ready(Some(Ok(frame))) = slot
            && let Some(data) = frame.data_ref()
        {
            let bytes = data.len() as u64;
            let is_long = match held {
                ResponseState::Nothing | ResponseState::Own(_) => false,
                ResponseState::Started(before) => {
                    *before = before.saturating_add(bytes);
                    *before > BUFFERED_BYTES
                }
                ResponseState::Judged(download) => {
                    download.as_mut().count(bytes);
                    true
                }
            };
            // The server does not poll again after the last frame.
            if is_long && !up.is_end_stream() {
                self.start_response_wait(held, exchange, up.size_hint().exact(), cx);
            }
        }
        Flow::Continue
    }

    #[inline(always)]
    fn release(&self, held: &mut ResponseState, _: RequestView<'_, SharedState>) {
        if matches!(held, ResponseState::Own(_) | ResponseState::Judged(_)) {
            release_boxed(held);
        }
    }
}

/// Returns when a wait that begins or continues at `now`, and is too long at `due`, is checked
/// next. If the window is shared, that is more often, to see whether other bodies keep it closed.
fn next_check(facts: &Facts, due: Stamp, now: Stamp) -> Stamp {
    match facts.shared_window() {
        Some(_) => due.min(now.saturating_add(WINDOW_CHECK_INTERVAL_NANOS)),
        None => due,
    }
}

/// Drops what is boxed in `held`. Rare, so not inlined.
#[inline(never)]
fn release_boxed(held: &mut ResponseState) {
    *held = ResponseState::Nothing;
}

// === TooSlow ===

impl TooSlow {
    fn violation(self, phase: Phase) -> Violation {
        Violation::new(
            Guard::SlowBody,
            self.reason,
            phase,
            self.limit,
            self.observed,
        )
    }
}
