//! What the bodies and the response future of one request know in common.

use crate::{Pace, layer::Shared};
use http::StatusCode;
use palisade_core::{AnswerForm, ConnInfo, Guard, Mode, Phase, Rejection, Violation};
use parking_lot::Mutex;
use std::{sync::Arc, task::Waker};

use crate::meter::TooSlow;

/// One request that has a body or a pace of its own.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) shared: Arc<Shared>,
    pub(crate) conn: Option<Arc<ConnInfo>>,
    pub(crate) form: AnswerForm,
    /// For both bodies, if the request has a pace of its own.
    chosen: Option<Pace>,
    /// Touched when the response future is polled and when a rule is broken, never per frame.
    head: Mutex<Head>,
}

/// What is known of the head of the response.
#[derive(Debug)]
enum Head {
    /// The handler is at work, and this wakes its task.
    Unsent(Option<Waker>),
    /// The request body broke a rule: the guard answers, not the handler.
    Violated(Violation),
    /// The answer is given, or there is nobody to give one.
    Sent,
}

/// The response future's hand on the [`Watch`]. Once it is gone nobody answers any more.
#[derive(Debug)]
pub(crate) struct Answering(Arc<Watch>);

// === Watch ===

impl Watch {
    pub(crate) fn new(
        shared: Arc<Shared>,
        conn: Option<Arc<ConnInfo>>,
        form: AnswerForm,
        chosen: Option<Pace>,
    ) -> Self {
        Self { shared, conn, form, chosen, head: Mutex::new(Head::Unsent(None)) }
    }

    /// How fast the request body must come.
    pub(crate) fn request_pace(&self) -> &Pace {
        self.chosen.as_ref().unwrap_or(self.shared.request_pace(self.form))
    }

    /// How fast the response body must be taken.
    pub(crate) fn response_pace(&self) -> &Pace {
        self.chosen.as_ref().unwrap_or(self.shared.response_pace())
    }

    /// The request body was too slow. Records it, as a refusal if the answer is still to be given
    /// and as a cut otherwise. The violation, unless the body may go on.
    pub(crate) fn too_slow(&self, slow: TooSlow) -> Option<Violation> {
        let settings = &self.shared.settings;
        let enforces = settings.mode == Mode::Enforce;
        let mut head = self.head.lock();
        let unsent = matches!(*head, Head::Unsent(_));
        let phase = if unsent { Phase::RequestBody } else { Phase::ResponseBody };
        let violation = slow.violation(phase);
        let waker = match &mut *head {
            Head::Unsent(waker) if enforces => {
                let waker = waker.take();
                *head = Head::Violated(violation);
                waker
            }
            _ => None,
        };
        // Metrics and wakers are the code of others: not under the lock.
        drop(head);
        if unsent {
            settings.refuse(&rejection(violation, self.form), self.conn.as_deref());
        } else {
            settings.cut(&violation, self.conn.as_deref());
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        enforces.then_some(violation)
    }
}

/// The answer for `violation`.
fn rejection(violation: Violation, form: AnswerForm) -> Rejection {
    Rejection::new(violation, StatusCode::REQUEST_TIMEOUT, form)
}

// === TooSlow ===

impl TooSlow {
    pub(crate) fn violation(self, phase: Phase) -> Violation {
        Violation::new(Guard::SlowBody, self.reason, phase, self.limit, self.observed)
    }
}

// === Answering ===

impl Answering {
    pub(crate) fn new(watch: Arc<Watch>) -> Self {
        Self(watch)
    }

    pub(crate) fn watch(&self) -> &Arc<Watch> {
        &self.0
    }

    /// Called after each poll of the handler: the guard's answer, if it is to answer in its
    /// place. If not, takes note that the head is out, or of whom to wake.
    pub(crate) fn handler_polled(&self, is_ready: bool, task: &Waker) -> Option<Rejection> {
        let mut head = self.0.head.lock();
        match &mut *head {
            Head::Violated(violation) => return Some(rejection(*violation, self.0.form)),
            Head::Unsent(_) if is_ready => *head = Head::Sent,
            Head::Unsent(Some(known)) if known.will_wake(task) => {}
            Head::Unsent(known) => *known = Some(task.clone()),
            Head::Sent => {}
        }
        None
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let gone = std::mem::replace(&mut *self.0.head.lock(), Head::Sent);
        drop(gone); // A waker's drop is the code of others too.
    }
}
