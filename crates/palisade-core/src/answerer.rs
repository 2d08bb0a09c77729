//! Who answers a request whose body breaks a rule.

use crate::{AnswerForm, ConnInfo, Mode, Phase, Rejection, Settings, Violation};
use http::StatusCode;
use parking_lot::Mutex;
use std::{sync::Arc, task::Waker};

/// By this the body of a request and the response future agree on who answers: the handler, or the
/// guard that found the body breaking a rule. Both share it, in whatever task they are.
///
/// Its lock is taken when the response future is polled and when a rule is broken, never per
/// frame. Neither metrics nor wakers run under it.
#[derive(Debug)]
pub struct Answerer {
    form: AnswerForm,
    conn: Option<Arc<ConnInfo>>,
    head: Mutex<Head>,
}

/// The response future's hand on what has the [`Answerer`]. Once it is dropped nobody answers any
/// more, and what a body does after that is no refusal.
#[derive(Debug)]
pub struct Answering<W: AsRef<Answerer>>(Arc<W>);

/// What is known of the head of the response.
#[derive(Debug)]
enum Head {
    /// The handler is at work, and this wakes its task.
    Unsent(Option<Waker>),
    /// The body broke a rule: the guard answers, not the handler.
    Refused(Rejection),
    /// The answer is given, or there is nobody to give one.
    Sent,
}

impl Answerer {
    /// For a request that wants its answer in this `form`, on this connection.
    pub fn new(form: AnswerForm, conn: Option<Arc<ConnInfo>>) -> Self {
        Self { form, conn, head: Mutex::new(Head::Unsent(None)) }
    }

    /// The form in which the client expects its answer.
    pub fn form(&self) -> AnswerForm {
        self.form
    }

    /// The connection of the request, where one is known.
    pub fn conn(&self) -> Option<&Arc<ConnInfo>> {
        self.conn.as_ref()
    }

    /// The body broke a rule: which one, and what plain HTTP is to be told, says `judge`, who
    /// hears whether the head of the response is unsent ([`Phase::RequestBody`]) or sent
    /// ([`Phase::ResponseBody`]).
    ///
    /// Records it, as a refusal if the answer is still to be given, which it then is in the
    /// handler's place, and as a cut otherwise. Returns the violation if the body has to end, and
    /// `None` in shadow mode.
    pub fn violated(
        &self,
        settings: &Settings,
        judge: impl FnOnce(Phase) -> (Violation, StatusCode),
    ) -> Option<Violation> {
        let mut head = self.head.lock();
        let Head::Unsent(waker) = &mut *head else {
            drop(head);
            let (violation, _) = judge(Phase::ResponseBody);
            return settings.cut(&violation, self.conn.as_deref()).then_some(violation);
        };
        let (violation, status) = judge(Phase::RequestBody);
        let rejection = Rejection::new(violation, status, self.form);
        let mut task = None;
        if settings.mode == Mode::Enforce {
            task = waker.take();
            *head = Head::Refused(rejection.clone());
        }
        drop(head);
        let enforced = settings.refuse(&rejection, self.conn.as_deref());
        if let Some(task) = task {
            task.wake();
        }
        enforced.then_some(violation)
    }

    /// Called after each poll of the handler: the guard's answer, if it is to answer in its
    /// place. If not, takes note that the head is out, or of whom to wake.
    pub fn handler_polled(&self, is_ready: bool, task: &Waker) -> Option<Rejection> {
        let mut head = self.head.lock();
        let next = match &mut *head {
            Head::Refused(rejection) => return Some(rejection.clone()),
            Head::Unsent(Some(known)) if !is_ready && known.will_wake(task) => return None,
            Head::Unsent(_) if !is_ready => Head::Unsent(Some(task.clone())),
            Head::Unsent(_) => Head::Sent,
            Head::Sent => return None,
        };
        let before = std::mem::replace(&mut *head, next);
        drop(head);
        drop(before); // A waker's drop is the code of others.
        None
    }
}

impl<W: AsRef<Answerer>> Answering<W> {
    /// For the future that gives the response.
    pub fn new(watch: Arc<W>) -> Self {
        Self(watch)
    }

    /// What has the answerer.
    pub fn watch(&self) -> &Arc<W> {
        &self.0
    }
}

impl<W: AsRef<Answerer>> Drop for Answering<W> {
    fn drop(&mut self) {
        let gone = std::mem::replace(&mut *self.0.as_ref().as_ref().head.lock(), Head::Sent);
        drop(gone); // A waker's drop is the code of others.
    }
}
