//! What the timeout decides.

use crate::{
    Deadline, Limits,
    deadline::{Exposed, Used, after},
    grpc,
    total::Total,
};
use http::{Request, Response, StatusCode};
use http_body::Body;
use palisade_core::{Guard, Phase, Reason, Rejection, RequestHead, ResponseFormat, Violation};
use palisade_guard::{
    Drops, Elapsed, Facts, Flow, Handler, Keys, Never, Of, Policy, Polled, Refusal, Settings,
    Shared, Stamp, Upstream,
};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// The policy of [`TimeoutLayer`](crate::TimeoutLayer).
#[derive(Clone)]
pub struct TimeoutPolicy {
    pub(crate) settings: Settings,
    pub(crate) status: StatusCode,
    pub(crate) limits: Limits,
    pub(crate) choose: Option<Choose>,
    pub(crate) exposes: bool,
}

pub(crate) type Choose = Arc<dyn Fn(&RequestHead<'_>) -> Option<Limits> + Send + Sync>;

/// What a request holds on the side of its response.
#[derive(Debug, Default)]
pub enum Held {
    /// Nothing: the limits are those of the layer.
    #[default]
    Plain,
    /// Limits of its own, until they are shared.
    Own(Box<Own>),
    /// Its time was over, and it passed all the same: one event is enough.
    Told,
    /// Its head is sent, and the whole response is limited.
    Total(Pin<Box<Total>>),
}

/// A request whose limits differ from those of the layer, or whose deadline is exposed.
#[derive(Debug)]
pub struct Own {
    limits: Limits,
    started: Option<Instant>,
}

/// What both sides of a request see.
#[derive(Debug)]
pub struct Common {
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
            choose: None,
            exposes: false,
        }
    }

    /// Admits a request that may have limits of its own.
    #[inline(never)]
    fn admit_own<B: Body>(&self, request: &Request<B>, facts: &Facts) -> Result<Held, Refusal> {
        let mut limits = self.limits_of(request, facts.form);
        let mut exposes = self.exposes;
        if let Some(violation) = limits.spent() {
            self.refuse(violation, facts)?;
            // Shadow mode: one event is enough.
            (limits, exposes) = (Limits::NONE, false);
        }
        let started = exposes.then(Instant::now);
        Ok(Held::Own(Box::new(Own { limits, started })))
    }

    fn limits_of<B>(&self, request: &Request<B>, form: ResponseFormat) -> Limits {
        let chosen = self
            .choose
            .as_ref()
            .and_then(|choose| choose(&request.into()));
        let limits = chosen.unwrap_or(self.limits);
        match form
            .is_grpc()
            .then(|| grpc::timeout(request.headers()))
            .flatten()
        {
            // The client counts from when it began to send to when it has the whole response.
            Some(own) => limits.total(limits.total.map_or(own, |total| total.min(own))),
            None => limits,
        }
    }

    fn limits(&self, of: Of<'_, Common>) -> Limits {
        of.shared.map_or(self.limits, |common| common.limits)
    }

    /// Records a refusal. An error if it is enforced.
    fn refuse(&self, violation: Violation, facts: &Facts) -> Result<(), Refusal> {
        let rejection = Rejection::new(violation, self.status, facts.form);
        self.settings.turn_away(rejection, facts)
    }

    /// Limits the whole response from its head on.
    #[inline(never)]
    fn limit_total<B>(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        response: &Response<B>,
        started: Option<Instant>,
        total: Duration,
    ) -> bool {
        let is_upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if !self.settings.is_on() || matches!(held, Held::Told) || is_upgraded {
            return false;
        }
        let started = exposed(of).map(|exposed| exposed.started).or(started);
        *held = Held::Total(Total::new(started.unwrap_or_else(Instant::now), total));
        true
    }
}

fn exposed<'a>(of: Of<'a, Common>) -> Option<&'a Exposed> {
    of.shared.and_then(|common| common.exposed.as_deref())
}

fn used(of: Of<'_, Common>, elapsed: &Elapsed<'_>) -> Used {
    let since = |started| elapsed.now.saturating_duration_since(started);
    Used {
        wall: exposed(of).map_or_else(|| elapsed.wall(), |exposed| since(exposed.started)),
        waited: elapsed.waited(),
        awaits_client: elapsed.awaits_client(),
    }
}

impl Policy for TimeoutPolicy {
    type Held = Held;
    type Shared = Common;
    type Upload = ();
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
        facts: &Facts,
        _: &mut Keys,
    ) -> Result<Held, Refusal> {
        let is_plain = self.choose.is_none() && !self.exposes && !facts.form.is_grpc();
        if (is_plain && !self.limits.is_zero()) || !self.settings.is_on() {
            return Ok(Held::Plain);
        }
        self.admit_own(request, facts)
    }

    #[inline(always)]
    fn needs_sharing(&self, held: &Held) -> bool {
        matches!(held, Held::Own(_))
    }

    #[inline(always)]
    fn share<B: Body>(
        &self,
        held: &mut Held,
        request: &mut Request<B>,
        _: &Facts,
        _: &mut Keys,
    ) -> Common {
        let Held::Own(own) = std::mem::take(held) else {
            return Common {
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
        Common { limits, exposed }
    }

    #[inline(always)]
    fn upload(&self, _: &mut Held, _: &Common, _: &Facts) {}

    #[inline(always)]
    fn after_handler(
        &self,
        _: &mut Held,
        of: Of<'_, Common>,
        handler: Handler,
        _: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        // It works, whatever its client does.
        if handler
            == (Handler::Pending {
                awaits_client: false,
            })
            && let Some(exposed) = exposed(of)
            && exposed.wait.is_running()
        {
            exposed.end_wait();
        }
        None
    }

    #[inline(always)]
    fn has_deadline(&self, held: &Held, _: Of<'_, Common>) -> bool {
        self.settings.is_on() && !matches!(held, Held::Told)
    }

    fn deadline(&self, held: &Held, of: Of<'_, Common>, elapsed: &Elapsed<'_>) -> Option<Instant> {
        let left = self.limits(of).left(used(of, elapsed));
        self.has_deadline(held, of)
            .then(|| after(elapsed.now, left))
    }

    #[inline(never)]
    fn expired(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        elapsed: &Elapsed<'_>,
    ) -> Option<Box<Refusal>> {
        if !self.has_deadline(held, of) {
            return None;
        }
        let violation = self.limits(of).exceeded(used(of, elapsed))?;
        *held = Held::Told;
        self.refuse(violation, of.facts).err().map(Box::new)
    }

    #[inline(always)]
    fn response_head<B: Body>(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        response: &Response<B>,
        started: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        let Some(total) = self.limits(of).total else {
            return Ok(false);
        };
        Ok(self.limit_total(held, of, response, started, total))
    }

    #[inline(always)]
    fn client_awaited(
        &self,
        (): &mut (),
        of: Shared<'_, Common>,
        _: bool,
        _: &mut Context<'_>,
    ) -> Result<(), Violation> {
        // It was stopped where the handler worked on in between.
        if let Some(exposed) = &of.shared.exposed
            && !exposed.wait.is_running()
        {
            exposed.begin_wait();
        }
        Ok(())
    }

    #[inline(always)]
    fn wait_ends(&self, (): &mut (), of: Shared<'_, Common>, _: Stamp, _: Stamp) {
        if let Some(exposed) = &of.shared.exposed {
            exposed.end_wait();
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
        up.poll(slot, cx);
        let Held::Total(total) = held else {
            return Flow::Go;
        };
        let violation = match slot {
            // Trailers are the end, and a body that is at its end is not cut.
            Poll::Ready(Some(Ok(frame))) if frame.is_data() => total.as_mut().check(false, cx),
            Poll::Pending => total.as_mut().check(true, cx),
            Poll::Ready(_) => None,
        };
        let Some(violation) = violation else {
            return Flow::Go;
        };
        if !self.settings.cut(&violation, of.facts.conn()) {
            return Flow::Go;
        }
        *slot = Poll::Ready(Some(violation.ending(of.facts.form)));
        Flow::Cut
    }

    #[inline(always)]
    fn release_upload(&self, (): &mut (), of: Shared<'_, Common>) {
        if let Some(exposed) = &of.shared.exposed
            && exposed.wait.is_running()
        {
            exposed.end_wait();
        }
    }

    #[inline(always)]
    fn release(&self, held: &mut Held, _: Of<'_, Common>) {
        if matches!(held, Held::Own(_) | Held::Total(_)) {
            drop_rare(held);
        }
    }
}

#[inline(never)]
fn drop_rare(held: &mut Held) {
    *held = Held::Plain;
}

impl fmt::Debug for TimeoutPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeoutPolicy")
            .field("settings", &self.settings)
            .field("status", &self.status)
            .field("limits", &self.limits)
            .field("exposes", &self.exposes)
            .finish_non_exhaustive()
    }
}

// === Limits ===

impl Limits {
    /// For a request that passes whatever it does.
    const NONE: Self = Self {
        head: Duration::MAX,
        total: None,
    };

    /// Whether no request has any time at all.
    #[inline]
    fn is_zero(self) -> bool {
        self.head.is_zero() || self.total.is_some_and(|total| total.is_zero())
    }

    /// The violation of a request that has no time at all.
    fn spent(self) -> Option<Violation> {
        let reason = if self.head.is_zero() {
            Reason::Deadline
        } else {
            Reason::TotalDeadline
        };
        let violation = Violation::new(Guard::Timeout, reason, Phase::RequestHead, 0, 0);
        self.is_zero().then_some(violation)
    }
}
