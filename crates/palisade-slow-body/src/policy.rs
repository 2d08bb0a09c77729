//! What the slow-body guard decides.

use crate::{
    Pace,
    download::{BUFFERED_BYTES, Download},
    meter::TooSlow,
    stopwatch::{LATE, Stopwatch},
};
use http::{Request, Response, StatusCode};
use http_body::Body;
use palisade_core::{Guard, Phase, Pressure, RequestHead, ResponseFormat, Violation};
use palisade_guard::{
    Drops, Facts, Flow, Keys, Never, Of, Policy, Polled, Refusal, Settings, Shared, Stamp, Upstream,
};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::Instant;

/// The policy of [`SlowBodyLayer`](crate::SlowBodyLayer).
#[derive(Clone)]
pub struct SlowBodyPolicy {
    pub(crate) settings: Settings,
    pub(crate) request: Pace,
    pub(crate) grpc: Pace,
    pub(crate) response: Pace,
    pub(crate) pressure: Pressure,
    pub(crate) choose: Option<Choose>,
}

/// Between two looks at whether others keep the window of the connection shut, in nanoseconds.
const LOOK: u64 = 2_000_000_000;

/// For so long, in nanoseconds, others may be to blame for the silence of one body: a client that
/// opens such requests itself gains no more by them.
const MAX_EXCUSED: u64 = 60_000_000_000;

pub(crate) type Choose = Arc<dyn Fn(&RequestHead<'_>) -> Option<Pace> + Send + Sync>;

/// What a request holds on the side of its response.
#[derive(Debug, Default)]
pub enum Held {
    /// Nothing.
    #[default]
    Nothing,
    /// A pace of its own, until that is shared.
    Own(Box<Pace>),
    /// So many bytes of its response were handed to the server.
    Started(u64),
    /// More than the buffers between the server and the client hold.
    Judged(Pin<Box<Download>>),
}

/// What both sides of a request see.
#[derive(Debug)]
pub struct Common {
    /// For both bodies, if the request has a pace of its own.
    own: Option<Box<Pace>>,
}

/// What goes with the request body.
#[derive(Debug)]
pub struct Upload {
    is_judged: bool,
    /// What came since the stopwatch was told last.
    bytes: u64,
    /// Made by the first wait.
    stopwatch: Option<Box<Stopwatch>>,
}

// === SlowBodyPolicy ===

impl SlowBodyPolicy {
    /// The pace of a request that may have one of its own.
    #[inline(never)]
    fn own_pace<B>(&self, request: &Request<B>) -> Option<Box<Pace>> {
        let choose = self.choose.as_ref().filter(|_| self.settings.is_on())?;
        choose(&request.into()).map(Box::new)
    }

    fn request_pace<'a>(&'a self, common: &'a Common, form: ResponseFormat) -> &'a Pace {
        // gRPC-Web has no client streams.
        let of_all = if form == ResponseFormat::Grpc {
            &self.grpc
        } else {
            &self.request
        };
        common.own.as_deref().unwrap_or(of_all)
    }

    fn response_pace<'a>(&'a self, of: Of<'a, Common>) -> &'a Pace {
        of.shared
            .and_then(|common| common.own.as_deref())
            .unwrap_or(&self.response)
    }

    /// The bytes a second that are required at the present pressure.
    #[inline]
    fn required(&self, stopwatch: &Stopwatch) -> u64 {
        let Some(rate) = stopwatch.rate() else {
            return 1;
        };
        let pressure = self.pressure.get();
        if pressure <= 0.0 {
            return rate;
        }
        // At most 2^33: a float has room for that, and the cast saturates.
        (rate as f64 * (1.0 + 7.0 * f64::from(pressure))) as u64
    }

    /// What came before the present wait is paid for it, at the rate in force now.
    #[inline(always)]
    fn pay(&self, upload: &mut Upload) {
        if upload.bytes > 0
            && let Some(stopwatch) = &mut upload.stopwatch
        {
            stopwatch.pay(std::mem::take(&mut upload.bytes), self.required(stopwatch));
        }
    }

    /// The server asks for more of a judged response. Cuts it if it does so too late.
    #[inline(never)]
    fn asked(&self, held: &mut Held, of: Of<'_, Common>, slot: &mut Polled) -> Flow {
        let Held::Judged(download) = held else {
            return Flow::Go;
        };
        let required = |stopwatch: &Stopwatch| self.required(stopwatch);
        let Some(slow) = download.as_mut().asked(required) else {
            return Flow::Go;
        };
        *held = Held::Nothing;
        let violation = slow.violation(Phase::ResponseBody);
        if !self.settings.cut(&violation, of.facts.conn()) {
            return Flow::Go;
        }
        *slot = Poll::Ready(Some(violation.ending(of.facts.form)));
        Flow::Cut
    }

    /// The server has a frame, and will poll again.
    #[inline(never)]
    fn handed_out(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        left: Option<u64>,
        cx: &mut Context<'_>,
    ) {
        let now = Instant::now();
        if let Held::Started(bytes) = *held {
            let length = left.map(|left| left.saturating_add(bytes));
            let stopwatch = Stopwatch::new(self.response_pace(of), length);
            *held = Held::Judged(Download::new(stopwatch, bytes, now, cx));
        }
        if let Held::Judged(download) = held {
            download.as_mut().start(now, cx);
        }
    }
}

impl Policy for SlowBodyPolicy {
    type Held = Held;
    type Shared = Common;
    type Upload = Upload;
    type Later = Never;
    type Unread = Drops;

    #[inline(always)]
    fn listens(&self) -> bool {
        self.settings.recorder.is_on()
    }

    #[inline(always)]
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        _: &Facts,
        _: &mut Keys,
    ) -> Result<Held, Refusal> {
        if self.choose.is_some()
            && let Some(own) = self.own_pace(request)
        {
            return Ok(Held::Own(own));
        }
        Ok(Held::Nothing)
    }

    #[inline(always)]
    fn needs_sharing(&self, held: &Held) -> bool {
        matches!(held, Held::Own(_))
    }

    #[inline(always)]
    fn share<B: Body>(
        &self,
        held: &mut Held,
        _: &mut Request<B>,
        _: &Facts,
        _: &mut Keys,
    ) -> Common {
        match std::mem::replace(held, Held::Nothing) {
            Held::Own(own) => Common { own: Some(own) },
            _ => Common { own: None },
        }
    }

    #[inline(always)]
    fn upload(&self, _: &mut Held, common: &Common, facts: &Facts) -> Upload {
        let is_off = self.request_pace(common, facts.form).is_off();
        let is_judged = self.settings.is_on() && !is_off;
        Upload {
            is_judged,
            bytes: 0,
            stopwatch: None,
        }
    }

    #[inline(always)]
    fn response_head<B: Body>(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        _: &Response<B>,
        _: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        let is_judged = self.settings.is_on() && !self.response_pace(of).is_off();
        if is_judged {
            *held = Held::Started(0);
        }
        Ok(is_judged)
    }

    #[inline(always)]
    fn passed(&self, upload: &mut Upload, bytes: usize) {
        upload.bytes = upload.bytes.saturating_add(bytes as u64);
    }

    #[inline(always)]
    fn poll_request<U: Upstream>(
        &self,
        upload: &mut Upload,
        _: Shared<'_, Common>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        up.poll(slot, cx);
        if let Poll::Ready(Some(Ok(frame))) = slot
            && let Some(data) = frame.data_ref()
        {
            self.passed(upload, data.len());
        }
        Flow::Go
    }

    fn first_wait(
        &self,
        upload: &mut Upload,
        of: Shared<'_, Common>,
        left: Option<u64>,
        now: Stamp,
    ) -> Option<Stamp> {
        if !upload.is_judged {
            return None;
        }
        let pace = self.request_pace(of.shared, of.facts.form);
        let length = left.map(|left| left.saturating_add(upload.bytes));
        upload.stopwatch = Some(Box::new(Stopwatch::new(pace, length)));
        self.pay(upload);
        let due = upload.stopwatch.as_ref()?.due(now);
        Some(next_look(of.facts, due, now))
    }

    #[inline(always)]
    fn client_awaited(
        &self,
        upload: &mut Upload,
        _: Shared<'_, Common>,
        _: bool,
        _: &mut Context<'_>,
    ) -> Result<(), Violation> {
        // Not when the wait ends: by then what ended it may have been counted.
        self.pay(upload);
        Ok(())
    }

    #[inline(never)]
    fn wait_expired(
        &self,
        upload: &mut Upload,
        of: Shared<'_, Common>,
        since: Stamp,
        now: Stamp,
    ) -> Result<Option<Stamp>, Violation> {
        self.pay(upload);
        let Some(stopwatch) = &mut upload.stopwatch else {
            return Ok(None);
        };
        stopwatch.start(since);
        let mut next = now;
        if let Some(conn) = of.facts.shared_window() {
            let first_look = next_look(of.facts, stopwatch.due(since), since);
            if now < first_look {
                // This was due in an earlier wait.
                return Ok(Some(first_look));
            }
            if conn.has_unread_body() && stopwatch.excused() < MAX_EXCUSED {
                stopwatch.excuse(now);
                // However little of its time is left: else that would be slept through bit by bit.
                next = now.saturating_add(LATE);
            } else if stopwatch.due(now) > now {
                stopwatch.charge(now);
            }
        }
        let rate = self.required(stopwatch);
        let Some(slow) = stopwatch.judge(now, u64::MAX, rate) else {
            return Ok(Some(next_look(of.facts, stopwatch.due(now), now).max(next)));
        };
        let judge = |phase| (slow.violation(phase), StatusCode::REQUEST_TIMEOUT);
        let violation = of.violated(&self.settings, judge);
        // Shadow mode: one event is enough.
        upload.is_judged = false;
        upload.stopwatch = None;
        violation.map_or(Ok(None), Err)
    }

    #[inline]
    fn wait_ends(&self, upload: &mut Upload, _: Shared<'_, Common>, since: Stamp, now: Stamp) {
        if let Some(stopwatch) = &mut upload.stopwatch {
            stopwatch.start(since);
            stopwatch.stop(now);
        }
    }

    #[inline(always)]
    fn poll_response<U: Upstream>(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        if matches!(held, Held::Judged(_)) && self.asked(held, of, slot) == Flow::Cut {
            return Flow::Cut;
        }
        up.poll(slot, cx);
        if let Poll::Ready(Some(Ok(frame))) = slot
            && let Some(data) = frame.data_ref()
        {
            let bytes = data.len() as u64;
            let is_long = match held {
                Held::Nothing | Held::Own(_) => false,
                Held::Started(before) => {
                    *before = before.saturating_add(bytes);
                    *before > BUFFERED_BYTES
                }
                Held::Judged(download) => {
                    download.as_mut().hand_out(bytes);
                    true
                }
            };
            // The server does not poll again after the last frame.
            if is_long && !up.is_end_stream() {
                self.handed_out(held, of, up.size_hint().exact(), cx);
            }
        }
        Flow::Go
    }

    #[inline(always)]
    fn release(&self, held: &mut Held, _: Of<'_, Common>) {
        if matches!(held, Held::Own(_) | Held::Judged(_)) {
            drop_rare(held);
        }
    }
}

/// When a wait that begins or goes on at `now` is looked at again, if it will have been too long at
/// `due`. Where the window is shared, more often: to see whether others keep it shut.
fn next_look(facts: &Facts, due: Stamp, now: Stamp) -> Stamp {
    match facts.shared_window() {
        Some(_) => due.min(now.saturating_add(LOOK)),
        None => due,
    }
}

#[inline(never)]
fn drop_rare(held: &mut Held) {
    *held = Held::Nothing;
}

impl fmt::Debug for SlowBodyPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowBodyPolicy")
            .field("settings", &self.settings)
            .field("request", &self.request)
            .field("grpc", &self.grpc)
            .field("response", &self.response)
            .field("pressure", &self.pressure)
            .finish_non_exhaustive()
    }
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
