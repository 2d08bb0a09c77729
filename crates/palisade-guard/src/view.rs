//! What a policy sees of a request.

use crate::{
    Facts, Refusal, Settings,
    response_head::{HeadState, ResponseHead},
};
use http::StatusCode;
use palisade_core::{Mode, Phase, Rejection, Violation};
use std::time::Duration;

/// `Retry-After` of a body that is refused because the server is full.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A policy's view of any request.
#[derive(Debug)]
#[non_exhaustive]
pub struct RequestView<'a, S> {
    /// The facts of the request.
    pub facts: &'a Facts,
    /// The state that its sides share, if it is a shared request.
    pub shared: Option<&'a S>,
}

/// A policy's view of a shared request.
#[derive(Debug)]
#[non_exhaustive]
pub struct SharedView<'a, S> {
    /// The facts of the request.
    pub facts: &'a Facts,
    /// The state that its sides share.
    pub shared: &'a S,
    response_head: &'a ResponseHead,
}

// === SharedView ===

impl<S> Clone for SharedView<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for SharedView<'_, S> {}

impl<'a, S> SharedView<'a, S> {
    #[inline(always)]
    pub(crate) fn new(facts: &'a Facts, shared: &'a S, response_head: &'a ResponseHead) -> Self {
        Self {
            facts,
            shared,
            response_head,
        }
    }

    #[inline(always)]
    pub(crate) fn map<T>(self, part: impl FnOnce(&'a S) -> &'a T) -> SharedView<'a, T> {
        SharedView {
            facts: self.facts,
            shared: part(self.shared),
            response_head: self.response_head,
        }
    }

    /// Returns whether a policy refuses the request in the handler's place, because its body broke
    /// a rule.
    pub fn is_refused(self) -> bool {
        matches!(*self.response_head.lock(), HeadState::Refused(_))
    }

    /// Handles a request body that broke a rule. `describe` returns the violation and the status
    /// for plain HTTP. Its argument is [`Phase::RequestBody`] if the response head is unsent, and
    /// [`Phase::ResponseBody`] if it is sent.
    ///
    /// If the response head is unsent, records a refusal and refuses the request in the handler's
    /// place. Otherwise records a cut. Returns the violation if the body must end, and `None` in
    /// shadow mode.
    #[inline(never)]
    pub fn violated(
        self,
        settings: &Settings,
        describe: impl FnOnce(Phase) -> (Violation, StatusCode),
    ) -> Option<Violation> {
        let Self {
            facts,
            response_head,
            ..
        } = self;
        let mut state = response_head.lock();
        let HeadState::Unsent(waker) = &mut *state else {
            drop(state);
            let (violation, _) = describe(Phase::ResponseBody);
            return settings.cut(&violation, facts).then_some(violation);
        };
        let (violation, status) = describe(Phase::RequestBody);
        let mut rejection = Rejection::new(violation, status, facts.form);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            rejection = rejection.retry_after(RETRY_AFTER);
        }
        let mut task = None;
        if settings.mode == Mode::Enforce {
            task = waker.take();
            response_head.forget_task();
            let refusal = Refusal::new(rejection.clone(), settings.on_reject.clone());
            *state = HeadState::Refused(Box::new(refusal));
        }
        drop(state);
        let enforced = settings.refuse(&rejection, facts.conn(), facts.client());
        if let Some(task) = task {
            task.wake();
        }
        enforced.then_some(violation)
    }
}

// === RequestView ===

impl<S> Clone for RequestView<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for RequestView<'_, S> {}

impl<'a, S> RequestView<'a, S> {
    #[inline(always)]
    pub(crate) fn map<T>(self, part: impl FnOnce(&'a S) -> &'a T) -> RequestView<'a, T> {
        RequestView {
            facts: self.facts,
            shared: self.shared.map(part),
        }
    }
}
