//! What the side of the response holds of a request: the response future, then the response body.

use crate::{
    ClientWait, Elapsed, Facts, Handler, Keys, Of, Policy, Refusal,
    and::earlier,
    exchange::Exchange,
    handler_poll::{Asked, Polling},
    nesting::{self, Inside},
    request::Reading,
    timer::Timer,
};
use http::Request;
use http_body::Body;
use std::{
    fmt,
    mem::ManuallyDrop,
    pin::Pin,
    sync::{Arc, atomic::Ordering::SeqCst},
    task::{Context, Poll, Waker},
};
use tokio::time::Instant;

/// Ends the request when dropped, wherever its parts may be.
pub(crate) struct Lease<P: Policy> {
    link: Link<P>,
    /// Emptied by [`Policy::release`].
    held: ManuallyDrop<P::Held>,
    /// Set when the handler is pending for the first time and a policy has a deadline.
    timer: Option<Pin<Box<Timer>>>,
}

enum Link<P: Policy> {
    Alone(Arc<P>, Facts),
    Shared(Arc<Exchange<P>>),
}

// === Lease ===

impl<P: Policy> Lease<P> {
    #[inline(always)]
    pub(crate) fn new(policy: Arc<P>, facts: Facts, held: P::Held) -> Self {
        let link = Link::Alone(policy, facts);
        Self {
            link,
            held: ManuallyDrop::new(held),
            timer: None,
        }
    }

    #[inline(always)]
    pub(crate) fn parts(&mut self) -> (&P, &mut P::Held, Of<'_, P::Shared>) {
        let (policy, of) = self.link.parts();
        (policy, &mut self.held, of)
    }

    /// Enters the call or poll of the handler, in the task of `task`.
    #[inline(always)]
    pub(crate) fn enter(&self, task: Option<&Waker>) -> (Inside, Option<Polling<'_>>) {
        let inside = nesting::enter(std::ptr::from_ref(self.link.parts().0).addr());
        (
            inside,
            self.exchange().map(|exchange| exchange.handler.begin(task)),
        )
    }

    pub(crate) fn facts(&self) -> &Facts {
        self.link.parts().1.facts
    }

    #[inline(always)]
    pub(crate) fn exchange(&self) -> Option<&Arc<Exchange<P>>> {
        match &self.link {
            Link::Alone(..) => None,
            Link::Shared(exchange) => Some(exchange),
        }
    }

    pub(crate) fn is_queued(&self) -> bool {
        self.link.parts().0.is_queued(&self.held)
    }

    /// Makes the exchange of `request`. Returns what goes with the request body, if it has one.
    #[inline(always)]
    pub(crate) fn share<B: Body>(
        &mut self,
        request: &mut Request<B>,
        keys: &mut Keys,
    ) -> Option<Reading<P>> {
        let Link::Alone(policy, facts) = &self.link else {
            return None;
        };
        let shared = policy.share(&mut self.held, request, facts, keys);
        let exchange = Arc::new(Exchange::new(policy.clone(), facts.clone(), shared));
        self.link = Link::Shared(exchange.clone());
        let Exchange {
            policy,
            facts,
            shared,
            ..
        } = &*exchange;
        let upload = facts
            .has_body
            .then(|| policy.upload(&mut self.held, shared, facts));
        upload.map(|upload| Reading::new(exchange, upload))
    }

    /// Asks whether a queued request may be handled.
    #[inline(never)]
    pub(crate) fn poll_admission(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Box<Refusal>>> {
        let (policy, held, of) = self.parts();
        let admission = policy.poll_admission(held, of, cx);
        if admission.is_pending()
            && let Some(refusal) = self.handler_waits(Handler::HeldBack, Asked::default(), true, cx)
        {
            return Poll::Ready(Err(refusal));
        }
        admission
    }

    /// The handler of a shared request is about to be polled.
    #[inline]
    pub(crate) fn before_handler(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Link::Shared(exchange) = &self.link else {
            return Poll::Ready(());
        };
        exchange
            .policy
            .before_handler(&mut self.held, exchange.shared(), cx)
    }

    /// The handler of a shared request is held back.
    #[inline(never)]
    pub(crate) fn held_back(&mut self, cx: &mut Context<'_>) -> Option<Box<Refusal>> {
        let mut is_new_task = true;
        if let Link::Shared(exchange) = &self.link {
            match exchange.head.is_pending(cx.waker()) {
                Ok(is_new) => is_new_task = is_new,
                Err(refusal) => return Some(refusal),
            }
        }
        self.handler_waits(Handler::HeldBack, Asked::default(), is_new_task, cx)
    }

    /// The handler of a shared request was polled and is pending.
    #[inline(never)]
    pub(crate) fn pending(&mut self, cx: &mut Context<'_>) -> Option<Box<Refusal>> {
        let (mut asked, mut is_new_task) = (Asked::default(), true);
        if let Link::Shared(exchange) = &self.link {
            asked = exchange.handler.asked();
            match exchange.head.is_pending(cx.waker()) {
                Ok(is_new) => is_new_task = is_new,
                Err(refusal) => return Some(refusal),
            }
            if !asked.awaits_client && exchange.wait.runs() {
                if exchange.awaited_elsewhere.load(SeqCst) {
                    asked.awaits_client = true;
                } else {
                    // It waits for something else: a client that holds a byte back does not stop
                    // the clock of a handler that has read enough to work on.
                    let now = exchange.wait.stamp(Instant::now());
                    exchange.wait.end(now);
                    exchange.set_unread(true);
                    // Another task took the body over in this moment.
                    if exchange.awaited_elsewhere.load(SeqCst) {
                        exchange.set_unread(false);
                        exchange.wait.begin(now);
                        asked.awaits_client = true;
                    }
                }
            }
        }
        let handler = Handler::Pending {
            awaits_client: asked.awaits_client,
        };
        self.handler_waits(handler, asked, is_new_task, cx)
    }

    /// The handler of a shared request is ready: the refusal, if its response is not to be sent.
    #[inline(never)]
    pub(crate) fn ready(&mut self, cx: &mut Context<'_>) -> Option<Box<Refusal>> {
        let Link::Shared(exchange) = &self.link else {
            return None;
        };
        if let Some(refusal) = exchange.head.is_ready() {
            return Some(refusal);
        }
        let (policy, held, of) = self.parts();
        policy.after_handler(held, of, Handler::Ready, cx)
    }

    /// The handler is pending or held back: looks after the deadlines.
    #[inline(always)]
    pub(crate) fn handler_waits(
        &mut self,
        handler: Handler,
        asked: Asked,
        is_new_task: bool,
        cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        let (policy, held, of) = self.parts();
        if let Some(refusal) = policy.after_handler(held, of, handler, cx) {
            return Some(refusal);
        }
        match &self.timer {
            Some(timer) if !is_new_task && timer.covers(asked.due) => None,
            _ => self.poll_timer(asked, is_new_task, cx),
        }
    }

    #[inline(never)]
    fn poll_timer(
        &mut self,
        asked: Asked,
        is_new_task: bool,
        cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        let Self {
            link, held, timer, ..
        } = self;
        let (policy, of) = link.parts();
        let wait = link.wait();
        let mut timer = match timer {
            Some(timer) => timer.as_mut(),
            none => {
                if !policy.has_deadline(held, of) && asked.due.is_none() {
                    return None;
                }
                let now = Instant::now();
                let elapsed = Elapsed {
                    started: now,
                    now,
                    wait,
                };
                let due = wait.and_then(|wait| wait.instant(asked.due?));
                let deadline = earlier(policy.deadline(held, of, &elapsed), due)?;
                let at = wait.map_or(0, |wait| {
                    if asked.due.is_none() {
                        // Stamps count from the first of them, which must not be one to come.
                        wait.stamp(now);
                    }
                    wait.stamp(deadline)
                });
                none.insert(Timer::new(now, deadline, at)).as_mut()
            }
        };
        if let (Some(due), Some(wait)) = (asked.due, wait)
            && due < timer.at()
            && let Some(deadline) = wait.instant(due)
        {
            timer.as_mut().set(deadline, due);
        }
        while timer.as_mut().poll(is_new_task, cx).is_ready() {
            let now = Instant::now();
            let elapsed = Elapsed {
                started: timer.started(),
                now,
                wait,
            };
            if let Some(refusal) = policy.expired(held, of, &elapsed) {
                return Some(refusal);
            }
            let due = wait.and_then(|wait| wait.instant(asked.due?));
            let deadline = earlier(policy.deadline(held, of, &elapsed), due);
            let never = || now.checked_add(Timer::NEVER).unwrap_or(now);
            let deadline = deadline.map_or_else(never, |at| at.max(now + Timer::MIN_PAUSE));
            timer
                .as_mut()
                .set(deadline, wait.map_or(0, |wait| wait.stamp(deadline)));
        }
        None
    }

    /// When the handler waited first.
    #[inline(always)]
    pub(crate) fn started(&self) -> Option<Instant> {
        self.timer.as_ref().map(|timer| timer.started())
    }
}

impl<P: Policy> Link<P> {
    #[inline(always)]
    fn parts(&self) -> (&P, Of<'_, P::Shared>) {
        match self {
            Self::Alone(policy, facts) => (
                policy,
                Of {
                    facts,
                    shared: None,
                },
            ),
            Self::Shared(exchange) => {
                let of = Of {
                    facts: &exchange.facts,
                    shared: Some(&exchange.shared),
                };
                (&exchange.policy, of)
            }
        }
    }

    fn wait(&self) -> Option<&ClientWait> {
        match self {
            Self::Alone(..) => None,
            Self::Shared(exchange) => Some(&exchange.wait),
        }
    }
}

impl<P: Policy> Drop for Lease<P> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Link::Shared(exchange) = &self.link {
            exchange.head.is_over();
        }
        let (policy, of) = self.link.parts();
        policy.release(&mut self.held, of);
    }
}

impl<P: Policy> fmt::Debug for Lease<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("facts", self.facts())
            .finish_non_exhaustive()
    }
}
