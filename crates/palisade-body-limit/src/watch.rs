//! What the request body and the response future of one request know in common.

use crate::layer::Shared;
use http::StatusCode;
use palisade_core::{AnswerForm, ConnInfo, Guard, Mode, Phase, Reason, Rejection, Violation};
use parking_lot::Mutex;
use std::{sync::Arc, task::Waker};

/// By this a handler changes the limit of its own request, if the layer is
/// [`overridable`](crate::BodyLimitLayer::overridable). It is found in the request's extensions.
#[derive(Clone, Debug)]
pub struct BodyLimitHandle {
    /// `None` where there is nothing to limit.
    watch: Option<Arc<Watch>>,
}

/// One request with a body, or with a limited response. The lock is taken when the response
/// future is polled, when a rule is broken, and at the first read of an overridable request.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) shared: Arc<Shared>,
    pub(crate) conn: Option<Arc<ConnInfo>>,
    pub(crate) form: AnswerForm,
    /// Whether gRPC runs over HTTP/2, where messages are small and may not wait.
    pub(crate) grpc: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    head: Head,
    limit: u64,
    reading: bool,
}

/// What is known of the head of the response.
#[derive(Debug)]
enum Head {
    /// The handler is at work, and this wakes its task.
    Unsent(Option<Waker>),
    /// The body broke a rule: the guard answers, not the handler.
    Violated(Violation),
    /// The answer is given, whosever it is.
    Sent,
}

// === BodyLimitHandle ===

impl BodyLimitHandle {
    pub(crate) fn new(watch: Option<Arc<Watch>>) -> Self {
        Self { watch }
    }

    /// Lets the body have `bytes` and no more. `false`, and nothing is changed, if the first
    /// read was before. On a request without a body, and while the guard is
    /// [`Off`](crate::Mode::Off), there is nothing to change, and it is always `true`.
    pub fn set(&self, bytes: u64) -> bool {
        self.watch.as_ref().is_none_or(|watch| {
            let mut state = watch.state.lock();
            if !state.reading {
                state.limit = bytes;
            }
            !state.reading
        })
    }
}

// === Watch ===

impl Watch {
    pub(crate) fn new(
        shared: Arc<Shared>,
        conn: Option<Arc<ConnInfo>>,
        form: AnswerForm,
        grpc: bool,
        limit: u64,
    ) -> Self {
        let state = State { head: Head::Unsent(None), limit, reading: false };
        Self { shared, conn, form, grpc, state: Mutex::new(state) }
    }

    /// From here on the limit stands. Returns it.
    pub(crate) fn start_reading(&self) -> u64 {
        let mut state = self.state.lock();
        state.reading = true;
        state.limit
    }

    /// The request body broke a rule. Records it, as a refusal if the answer is still ours to
    /// give and as a cut otherwise. `false` in shadow mode: the body goes on.
    pub(crate) fn violated(&self, violation: &Violation) -> bool {
        let settings = &self.shared.settings;
        let enforces = settings.mode == Mode::Enforce;
        let mut state = self.state.lock();
        let Head::Unsent(waker) = &mut state.head else {
            drop(state);
            return settings.cut(violation, self.conn.as_deref());
        };
        let waker = if enforces { waker.take() } else { None };
        if enforces {
            state.head = Head::Violated(*violation);
        }
        // Metrics and wakers are the code of others: not under the lock.
        drop(state);
        settings.refuse(&rejection(*violation, self.form), self.conn.as_deref());
        if let Some(waker) = waker {
            waker.wake();
        }
        enforces
    }

    /// Called after each poll of the handler. Says whether the guard answers in its place, and
    /// otherwise takes note that the head is out or of whom to wake.
    pub(crate) fn handler_polled(&self, is_ready: bool, task: &Waker) -> Option<Violation> {
        let mut state = self.state.lock();
        match &mut state.head {
            Head::Violated(violation) => return Some(*violation),
            Head::Unsent(_) if is_ready => state.head = Head::Sent,
            Head::Unsent(Some(known)) if known.will_wake(task) => {}
            Head::Unsent(known) => *known = Some(task.clone()),
            Head::Sent => {}
        }
        None
    }
}

/// `observed` bytes where `limit` are allowed.
pub(crate) fn too_large(phase: Phase, limit: u64, observed: u64) -> Violation {
    Violation::new(Guard::BodyLimit, Reason::TooLarge, phase, limit, observed)
}

/// The answer for `violation`.
pub(crate) fn rejection(violation: Violation, form: AnswerForm) -> Rejection {
    let status = match (violation.reason, violation.phase) {
        // Its length is fine, the way it comes is not: 413 would tell the client to send less.
        (Reason::TinyFrames, _) => StatusCode::BAD_REQUEST,
        (_, Phase::Handler | Phase::ResponseBody) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::PAYLOAD_TOO_LARGE,
    };
    Rejection::new(violation, status, form)
}
