//! The response side of a request: owned by the response future, then by the response body.

use crate::{
    ClientWait, Elapsed, Facts, Handler, Keys, Policy, Refusal, RequestView, Stamp,
    and::earlier,
    exchange::Exchange,
    handler_poll::{BodyWait, Polling},
    nesting::{self, Entered},
    request::BodyState,
    timer::Timer,
};
use http::Request;
use http_body::Body;
use pin_project_lite::pin_project;
use std::{
    fmt,
    mem::ManuallyDrop,
    pin::Pin,
    sync::{Arc, atomic::Ordering::SeqCst},
    task::{Context, Poll, Waker},
};
use tokio::time::Instant;

/// The response side of a request. Dropping it ends the request, even if the request body still
/// exists.
pub(crate) struct Lease<P: Policy> {
    state: LeaseState<P>,
    /// Released by [`Policy::release`], and never dropped otherwise.
    held: ManuallyDrop<P::Held>,
}

/// Every request carries one of these in its future, so the timer takes no room of its own.
enum LeaseState<P: Policy> {
    /// The request needs no exchange.
    Unshared(Arc<P>, Facts),
    /// The same, with a timer.
    Timed(Arc<P>, Pin<Box<Timed>>),
    /// The request has a body, or a policy needs sharing.
    Shared(Arc<Exchange<P>>, Option<Pin<Box<Timer>>>),
}

pin_project! {
    /// The facts of a request without an exchange, and its timer. The timer is created when the
    /// handler is pending for the first time and there is a deadline.
    struct Timed {
        facts: Facts,
        #[pin]
        timer: Timer,
    }
}

// === Lease ===

impl<P: Policy> Lease<P> {
    #[inline(always)]
    pub(crate) fn new(policy: Arc<P>, facts: Facts, held: P::Held) -> Self {
        let state = LeaseState::Unshared(policy, facts);
        Self {
            state,
            held: ManuallyDrop::new(held),
        }
    }

    /// Returns the arguments of the policy's hooks on the response side.
    #[inline(always)]
    pub(crate) fn parts(&mut self) -> (&P, &mut P::Held, RequestView<'_, P::Shared>) {
        let (policy, view) = self.state.parts();
        (policy, &mut self.held, view)
    }

    /// Marks the start of a poll of the handler by `task`, or of its call if `task` is `None`.
    #[inline(always)]
    pub(crate) fn enter_handler(&self, task: Option<&Waker>) -> (Entered, Option<Polling<'_>>) {
        let entered = nesting::enter(std::ptr::from_ref(self.state.parts().0).addr());
        (
            entered,
            self.exchange()
                .map(|exchange| exchange.handler_poll.begin_poll(task)),
        )
    }

    pub(crate) fn facts(&self) -> &Facts {
        self.state.parts().1.facts
    }

    #[inline(always)]
    pub(crate) fn exchange(&self) -> Option<&Arc<Exchange<P>>> {
        match &self.state {
            LeaseState::Unshared(..) | LeaseState::Timed(..) => None,
            LeaseState::Shared(exchange, _) => Some(exchange),
        }
    }

    pub(crate) fn is_queued(&self) -> bool {
        self.state.parts().0.is_queued(&self.held)
    }

    /// Creates the exchange of `request`. Returns the state of the request body, if it has one.
    #[inline(always)]
    pub(crate) fn share<B: Body>(
        &mut self,
        request: &mut Request<B>,
        keys: &mut Keys,
    ) -> Option<BodyState<P>> {
        let LeaseState::Unshared(policy, facts) = &self.state else {
            return None;
        };
        let shared = policy.share(&mut self.held, request, facts, keys);
        let exchange = Arc::new(Exchange::new(policy.clone(), facts.clone(), shared));
        self.state = LeaseState::Shared(exchange.clone(), None);
        let Exchange {
            policy,
            facts,
            shared,
            ..
        } = &*exchange;
        let upload = facts
            .has_body
            .then(|| policy.upload(&mut self.held, shared, facts));
        upload.map(|upload| BodyState::new(exchange, upload))
    }

    /// Ready when a queued request is admitted or refused.
    #[inline(never)]
    pub(crate) fn poll_admission(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Box<Refusal>>> {
        let (policy, held, view) = self.parts();
        let admission = policy.poll_admission(held, view, cx);
        if admission.is_pending()
            && let Some(refusal) =
                self.after_handler(Handler::HeldBack, BodyWait::default(), true, cx)
        {
            return Poll::Ready(Err(refusal));
        }
        admission
    }

    /// Called before the handler of a shared request is polled. `Poll::Pending` holds it back.
    #[inline]
    pub(crate) fn before_handler(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let LeaseState::Shared(exchange, _) = &self.state else {
            return Poll::Ready(());
        };
        exchange
            .policy
            .before_handler(&mut self.held, exchange.shared(), cx)
    }

    /// Called when the handler of a shared request is held back.
    #[inline(never)]
    pub(crate) fn handler_held_back(&mut self, cx: &mut Context<'_>) -> Option<Box<Refusal>> {
        let mut is_new_task = true;
        if let LeaseState::Shared(exchange, _) = &self.state {
            match exchange.response_head.handler_pending(cx.waker()) {
                Ok(is_new) => is_new_task = is_new,
                Err(refusal) => return Some(refusal),
            }
        }
        self.after_handler(Handler::HeldBack, BodyWait::default(), is_new_task, cx)
    }

    /// Called when the handler of a shared request was polled and is pending.
    #[inline(never)]
    pub(crate) fn handler_pending(&mut self, cx: &mut Context<'_>) -> Option<Box<Refusal>> {
        let (mut body_wait, mut is_new_task) = (BodyWait::default(), true);
        if let LeaseState::Shared(exchange, _) = &self.state {
            body_wait = exchange.handler_poll.body_wait();
            match exchange.response_head.handler_pending(cx.waker()) {
                Ok(is_new) => is_new_task = is_new,
                Err(refusal) => return Some(refusal),
            }
            if !body_wait.awaits_client && exchange.client_wait.is_running() {
                if exchange.awaited_elsewhere.load(SeqCst) {
                    body_wait.awaits_client = true;
                } else {
                    // The handler waits for something else. It has read enough to work on, so a
                    // client that holds a byte back must not pause its deadlines.
                    let now = exchange.client_wait.stamp(Instant::now());
                    exchange.client_wait.stop(now);
                    exchange.set_unread(true);
                    // Another task has taken over the body concurrently.
                    if exchange.awaited_elsewhere.load(SeqCst) {
                        exchange.set_unread(false);
                        exchange.client_wait.start(now);
                        body_wait.awaits_client = true;
                    }
                }
            }
        }
        let handler = Handler::Pending {
            awaits_client: body_wait.awaits_client,
        };
        self.after_handler(handler, body_wait, is_new_task, cx)
    }

    /// Called when the handler of a shared request is ready. Returns the refusal if its response
    /// must not be sent.
    #[inline(never)]
    pub(crate) fn handler_ready(&mut self, cx: &mut Context<'_>) -> Option<Box<Refusal>> {
        let LeaseState::Shared(exchange, _) = &self.state else {
            return None;
        };
        if let Some(refusal) = exchange.response_head.mark_sent() {
            return Some(refusal);
        }
        let (policy, held, view) = self.parts();
        policy.after_handler(held, view, Handler::Ready, cx)
    }

    /// Called when the handler is pending or held back. Calls the policy and checks the deadlines.
    #[inline(always)]
    pub(crate) fn after_handler(
        &mut self,
        handler: Handler,
        body_wait: BodyWait,
        is_new_task: bool,
        cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        let (policy, held, view) = self.parts();
        if let Some(refusal) = policy.after_handler(held, view, handler, cx) {
            return Some(refusal);
        }
        match self.state.timer() {
            Some(timer) if !is_new_task && timer.covers(body_wait.due) => None,
            _ => self.poll_timer(body_wait, is_new_task, cx),
        }
    }

    /// Polls the timer, and creates it if there is a deadline. Returns the refusal if a policy
    /// refuses the request because a deadline has passed.
    #[inline(never)]
    fn poll_timer(
        &mut self,
        body_wait: BodyWait,
        is_new_task: bool,
        cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        let Self { state, held } = self;
        if state.timer().is_none() {
            let (now, deadline, due) = first_deadline(state, held, body_wait)?;
            state.set_timer(now, deadline, due);
        }
        let (policy, view, client_wait, timer) = state.parts_and_timer();
        let mut timer = timer?;
        if let (Some(due), Some(wait)) = (body_wait.due, client_wait)
            && due < timer.due()
            && let Some(deadline) = wait.instant(due)
        {
            timer.as_mut().reset(deadline, due);
        }
        while timer.as_mut().poll(is_new_task, cx).is_ready() {
            let now = Instant::now();
            let elapsed = Elapsed {
                started: timer.started(),
                now,
                client_wait,
            };
            if let Some(refusal) = policy.expired(held, view, &elapsed) {
                return Some(refusal);
            }
            let due = client_wait.and_then(|wait| wait.instant(body_wait.due?));
            let deadline = earlier(policy.deadline(held, view, &elapsed), due);
            let far_future = || now.checked_add(Timer::FAR_FUTURE).unwrap_or(now);
            let deadline =
                deadline.map_or_else(far_future, |at| at.max(now + Timer::MIN_RECHECK_INTERVAL));
            timer
                .as_mut()
                .reset(deadline, client_wait.map_or(0, |wait| wait.stamp(deadline)));
        }
        None
    }

    /// Returns when the handler was pending for the first time, if the request has a timer.
    #[inline(always)]
    pub(crate) fn started(&self) -> Option<Instant> {
        self.state.timer().map(Timer::started)
    }
}

/// Returns the time, and the earliest deadline, also as a stamp, if there is one. Called when the
/// handler is pending for the first time.
fn first_deadline<P: Policy>(
    state: &LeaseState<P>,
    held: &P::Held,
    body_wait: BodyWait,
) -> Option<(Instant, Instant, Stamp)> {
    let (policy, view) = state.parts();
    let client_wait = state.client_wait();
    if !policy.has_deadline(held, view) && body_wait.due.is_none() {
        return None;
    }
    let now = Instant::now();
    let elapsed = Elapsed {
        started: now,
        now,
        client_wait,
    };
    let due = client_wait.and_then(|wait| wait.instant(body_wait.due?));
    let deadline = earlier(policy.deadline(held, view, &elapsed), due)?;
    let stamp = client_wait.map_or(0, |wait| {
        if body_wait.due.is_none() {
            // The first stamp is the origin of all others, so it must not be taken of the deadline,
            // which is in the future.
            wait.stamp(now);
        }
        wait.stamp(deadline)
    });
    Some((now, deadline, stamp))
}

/// The policy, its view, the wait for the client, and the timer of a request.
type PartsAndTimer<'a, P> = (
    &'a P,
    RequestView<'a, <P as Policy>::Shared>,
    Option<&'a ClientWait>,
    Option<Pin<&'a mut Timer>>,
);

impl<P: Policy> LeaseState<P> {
    #[inline(always)]
    fn parts(&self) -> (&P, RequestView<'_, P::Shared>) {
        match self {
            Self::Unshared(policy, facts) => (policy, unshared(facts)),
            Self::Timed(policy, timed) => (policy, unshared(&timed.facts)),
            Self::Shared(exchange, _) => (&exchange.policy, shared(exchange)),
        }
    }

    fn client_wait(&self) -> Option<&ClientWait> {
        match self {
            Self::Unshared(..) | Self::Timed(..) => None,
            Self::Shared(exchange, _) => Some(&exchange.client_wait),
        }
    }

    #[inline(always)]
    fn timer(&self) -> Option<&Timer> {
        match self {
            Self::Unshared(..) => None,
            Self::Timed(_, timed) => Some(&timed.timer),
            Self::Shared(_, timer) => timer.as_deref(),
        }
    }

    fn parts_and_timer(&mut self) -> PartsAndTimer<'_, P> {
        match self {
            Self::Unshared(policy, facts) => (policy, unshared(facts), None, None),
            Self::Timed(policy, timed) => {
                let timed = timed.as_mut().project();
                (policy, unshared(timed.facts), None, Some(timed.timer))
            }
            Self::Shared(exchange, timer) => {
                let timer = timer.as_mut().map(Pin::as_mut);
                let client_wait = Some(&exchange.client_wait);
                (&exchange.policy, shared(exchange), client_wait, timer)
            }
        }
    }

    /// Creates the timer of the request.
    fn set_timer(&mut self, now: Instant, deadline: Instant, due: Stamp) {
        // Created in its box: it is large, and a move copies it.
        let timer = || Timer::new(now, deadline, due);
        match self {
            Self::Unshared(policy, facts) => {
                let (policy, facts) = (policy.clone(), facts.take());
                let timer = timer();
                *self = Self::Timed(policy, Box::pin(Timed { facts, timer }));
            }
            Self::Timed(_, timed) => timed.as_mut().project().timer.set(timer()),
            Self::Shared(_, stored) => *stored = Some(Box::pin(timer())),
        }
    }
}

#[inline(always)]
fn unshared<S>(facts: &Facts) -> RequestView<'_, S> {
    let shared = None;
    RequestView { facts, shared }
}

#[inline(always)]
fn shared<P: Policy>(exchange: &Exchange<P>) -> RequestView<'_, P::Shared> {
    RequestView {
        facts: &exchange.facts,
        shared: Some(&exchange.shared),
    }
}

impl<P: Policy> Drop for Lease<P> {
    #[inline(always)]
    fn drop(&mut self) {
        if let LeaseState::Shared(exchange, _) = &self.state {
            exchange.response_head.close();
        }
        let (policy, view) = self.state.parts();
        policy.release(&mut self.held, view);
    }
}

impl<P: Policy> fmt::Debug for Lease<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("facts", self.facts())
            .finish_non_exhaustive()
    }
}
