//! The policy of the timeout.

use crate::{
    Deadline, Limits,
    deadline::{Exposed, TimeUsed, instant_after},
    grpc,
    total::TotalDeadline,
};
use http::{Request, Response, StatusCode};
use http_body::Body;
use palisade_core::{Guard, Phase, Reason, Rejection, ResponseFormat, Violation};
use palisade_guard::{
    DropUnread, Elapsed, Facts, Flow, Handler, Keys, NeverQueued, PerRequest, Policy, Polled,
    Refusal, RequestView, Settings, SharedView, Stamp, Upstream,
};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// The policy of [`TimeoutLayer`](crate::TimeoutLayer).
#[derive(Clone, Debug)]
pub struct TimeoutPolicy {
    pub(crate) settings: Settings,
    pub(crate) status: StatusCode,
    pub(crate) limits: Limits,
    pub(crate) limits_for: PerRequest<Limits>,
    pub(crate) exposes: bool,
}

/// The state of a request on the response side.
#[derive(Debug, Default)]
pub enum ResponseState {
    /// The limits of the layer apply.
    #[default]
    Plain,
    /// The request has its own limits. They move to [`SharedState`] when the request is shared.
    Own(Box<Own>),
    /// A violation has been reported. In shadow mode the request continues, and no further event is
    /// recorded.
    Told,
    /// The response head has been sent, and the whole response is limited.
    TotalDeadline(Pin<Box<TotalDeadline>>),
}

/// The limits of a request that may have its own limits, or that gets a [`Deadline`].
#[derive(Debug)]
pub struct Own {
    limits: Limits,
    started: Option<Instant>,
}

/// The state that both sides of a request share.
#[derive(Debug)]
pub struct SharedState {
    limits: Limits,
    exposed: Option<Arc<Exposed>>,
}

// === TimeoutPolicy ===

impl TimeoutPolicy {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            settings: Settings::default(),
            status: StatusCode::SERVICE_UNAVAILABLE,
            limits,
            limits_for: PerRequest::default(),
            exposes: false,
        }
    }

    /// Admits a request that may have its own limits.
    #[inline(never)]
    fn admit_with_own_limits<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
    ) -> Result<ResponseState, Refusal> {
        let mut limits = self.limits_of(request, facts.form);
        let mut exposes = self.exposes;
        if let Some(violation) = limits.zero_limit_violation() {
            self.refuse(violation, facts)?;
            // In shadow mode the request continues. Lift its limits so that it is reported once.
            (limits, exposes) = (Limits::UNLIMITED, false);
        }
        let started = exposes.then(Instant::now);
        Ok(ResponseState::Own(Box::new(Own { limits, started })))
    }

    fn limits_of<B>(&self, request: &Request<B>, form: ResponseFormat) -> Limits {
        let limits = self.limits_for.choose(request).unwrap_or(self.limits);
        if form.is_grpc()
            && let Some(timeout) = grpc::timeout(request.headers())
        {
            // The client's deadline covers the time from sending the request to receiving the whole
            // response.
            return limits.total(limits.total.map_or(timeout, |total| total.min(timeout)));
        }
        limits
    }

    fn effective_limits(&self, view: RequestView<'_, SharedState>) -> Limits {
        view.shared.map_or(self.limits, |common| common.limits)
    }

    /// Records a refusal. Returns an error if it must be enforced.
    fn refuse(&self, violation: Violation, facts: &Facts) -> Result<(), Refusal> {
        let rejection = Rejection::new(violation, self.status, facts.form);
        self.settings.refuse_request(rejection, facts)
    }

    /// Starts to limit the response body. Returns whether the body is limited.
    #[inline(never)]
    fn limit_total<B>(
        &self,
        held: &mut ResponseState,
        view: RequestView<'_, SharedState>,
        response: &Response<B>,
        started: Option<Instant>,
        total: Duration,
    ) -> bool {
        let is_upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if !self.settings.is_enabled() || matches!(held, ResponseState::Told) || is_upgraded {
            return false;
        }
        let started = exposed_deadline(view)
            .map(|exposed| exposed.started)
            .or(started);
        *held = ResponseState::TotalDeadline(TotalDeadline::new(
            started.unwrap_or_else(Instant::now),
            total,
        ));
        true
    }
}

fn exposed_deadline<'a>(view: RequestView<'a, SharedState>) -> Option<&'a Exposed> {
    view.shared.and_then(|common| common.exposed.as_deref())
}

fn time_used(view: RequestView<'_, SharedState>, elapsed: &Elapsed<'_>) -> TimeUsed {
    let since = |started| elapsed.now.saturating_duration_since(started);
    TimeUsed {
        wall: exposed_deadline(view)
            .map_or_else(|| elapsed.wall(), |exposed| since(exposed.started)),
        waited: elapsed.waited(),
        awaits_client: elapsed.awaits_client(),
    }
}

impl Policy for TimeoutPolicy {
    type Held = ResponseState;
    type Shared = SharedState;
    type Upload = ();
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
        facts: &Facts,
        _: &mut Keys,
    ) -> Result<ResponseState, Refusal> {
        let is_plain = !self.limits_for.is_set() && !self.exposes && !facts.form.is_grpc();
        if (is_plain && !self.limits.has_zero()) || !self.settings.is_enabled() {
            return Ok(ResponseState::Plain);
        }
        self.admit_with_own_limits(request, facts)
    }

    #[inline(always)]
    fn needs_sharing(&self, held: &ResponseState, _: &Keys) -> bool {
        matches!(held, ResponseState::Own(_))
    }

    #[inline(always)]
    fn share<B: Body>(
        &self,
        held: &mut ResponseState,
        request: &mut Request<B>,
        _: &Facts,
        _: &mut Keys,
    ) -> SharedState {
        let ResponseState::Own(own) = std::mem::take(held) else {
            return SharedState {
                limits: self.limits,
                exposed: None,
            };
        };
        let Own { limits, started } = *own;
        let exposed = started.map(|started| {
            let wait = palisade_guard::ClientWait::default();
            let exposed = Arc::new(Exposed {
                limits,
                started,
                wait,
            });
            request.extensions_mut().insert(Deadline(exposed.clone()));
            exposed
        });
        SharedState { limits, exposed }
    }

    #[inline(always)]
    fn upload(&self, _: &mut ResponseState, _: &SharedState, _: &Facts) {}

    #[inline(always)]
    fn after_handler(
        &self,
        _: &mut ResponseState,
        view: RequestView<'_, SharedState>,
        handler: Handler,
        _: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        // The handler is working, even if the request body still waits for the client.
        if handler
            == (Handler::Pending {
                awaits_client: false,
            })
            && let Some(exposed) = exposed_deadline(view)
            && exposed.wait.is_running()
        {
            exposed.end_wait();
        }
        None
    }

    #[inline(always)]
    fn has_deadline(&self, held: &ResponseState, _: RequestView<'_, SharedState>) -> bool {
        self.settings.is_enabled() && !matches!(held, ResponseState::Told)
    }

    fn deadline(
        &self,
        held: &ResponseState,
        view: RequestView<'_, SharedState>,
        elapsed: &Elapsed<'_>,
    ) -> Option<Instant> {
        let left = self
            .effective_limits(view)
            .time_until_exceeded(time_used(view, elapsed));
        self.has_deadline(held, view)
            .then(|| instant_after(elapsed.now, left))
    }

    #[inline(never)]
    fn expired(
        &self,
        held: &mut ResponseState,
        view: RequestView<'_, SharedState>,
        elapsed: &Elapsed<'_>,
    ) -> Option<Box<Refusal>> {
        if !self.has_deadline(held, view) {
            return None;
        }
        let violation = self
            .effective_limits(view)
            .exceeded(time_used(view, elapsed))?;
        *held = ResponseState::Told;
        self.refuse(violation, view.facts).err().map(Box::new)
    }

    #[inline(always)]
    fn response_head<B: Body>(
        &self,
        held: &mut ResponseState,
        view: RequestView<'_, SharedState>,
        response: &mut Response<B>,
        started: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        let Some(total) = self.effective_limits(view).total else {
            return Ok(false);
        };
        Ok(self.limit_total(held, view, response, started, total))
    }

    #[inline(always)]
    fn waits_for_client(
        &self,
        (): &mut (),
        view: SharedView<'_, SharedState>,
        _: bool,
        _: &mut Context<'_>,
    ) -> Result<(), Violation> {
        // The stopwatch was stopped if the handler has worked since its previous wait.
        if let Some(exposed) = &view.shared.exposed
            && !exposed.wait.is_running()
        {
            exposed.begin_wait();
        }
        Ok(())
    }

    #[inline(always)]
    fn wait_ended(&self, (): &mut (), view: SharedView<'_, SharedState>, _: Stamp, _: Stamp) {
        if let Some(exposed) = &view.shared.exposed {
            exposed.end_wait();
        }
    }

    #[inline(always)]
    fn poll_response<U: Upstream>(
        &self,
        held: &mut ResponseState,
        view: RequestView<'_, SharedState>,
        upstream: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        upstream.poll(slot, cx);
        let ResponseState::TotalDeadline(total) = held else {
            return Flow::Continue;
        };
        let violation = match slot {
            // Trailers end the body, and a body that has ended is not cut.
            Poll::Ready(Some(Ok(frame))) if frame.is_data() => total.as_mut().check(false, cx),
            Poll::Pending => total.as_mut().check(true, cx),
            Poll::Ready(_) => None,
        };
        let Some(violation) = violation else {
            return Flow::Continue;
        };
        if !self.settings.cut(&violation, view.facts) {
            return Flow::Continue;
        }
        *slot = Poll::Ready(Some(violation.final_frame(view.facts.form)));
        Flow::Cut
    }

    #[inline(always)]
    fn release_upload(&self, (): &mut (), view: SharedView<'_, SharedState>) {
        if let Some(exposed) = &view.shared.exposed
            && exposed.wait.is_running()
        {
            exposed.end_wait();
        }
    }

    #[inline(always)]
    fn release(&self, held: &mut ResponseState, _: RequestView<'_, SharedState>) {
        if matches!(
            held,
            ResponseState::Own(_) | ResponseState::TotalDeadline(_)
        ) {
            drop_boxed(held);
        }
    }
}

/// Drops the boxed variants, out of line because they are rare.
#[inline(never)]
fn drop_boxed(held: &mut ResponseState) {
    *held = ResponseState::Plain;
}

// === Limits ===

impl Limits {
    /// The limits of a request that is never refused or cut.
    const UNLIMITED: Self = Self {
        head: Duration::MAX,
        total: None,
    };

    /// Returns whether a limit is zero.
    #[inline]
    fn has_zero(self) -> bool {
        self.head.is_zero() || self.total.is_some_and(|total| total.is_zero())
    }

    /// Returns the violation if a limit is zero.
    fn zero_limit_violation(self) -> Option<Violation> {
        if !self.has_zero() {
            return None;
        }
        let reason = if self.head.is_zero() {
            Reason::Deadline
        } else {
            Reason::TotalDeadline
        };
        let (guard, phase) = (Guard::Timeout, Phase::RequestHead);
        Some(Violation::new(guard, reason, phase, 0, 0))
    }
}
