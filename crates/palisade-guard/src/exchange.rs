//! What both sides of a request with a body share: the response future or response body on one
//! side, the request body on the other, perhaps in two tasks.

use crate::{ClientWait, Facts, Policy, Refusal, Settings, handler_poll::HandlerPoll, nesting};
use http::StatusCode;
use palisade_core::{Mode, Phase, Rejection, Violation};
use parking_lot::Mutex;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::Waker,
};

/// The one allocation of a request with a body.
#[derive(Debug)]
pub(crate) struct Exchange<P: Policy> {
    pub(crate) policy: Arc<P>,
    pub(crate) facts: Facts,
    pub(crate) shared: P::Shared,
    /// How long the handler has waited for its client.
    pub(crate) wait: ClientWait,
    pub(crate) handler: HandlerPoll,
    /// The request body is waited for by another task than the handler's.
    pub(crate) awaited_elsewhere: AtomicBool,
    /// The request body was read to its end.
    pub(crate) ended: AtomicBool,
    /// The request body is one of the [unread](palisade_core::ConnInfo::add_unread_body) ones.
    unread: AtomicBool,
    pub(crate) head: ResponseHead,
}

/// Decides what answers: the handler, or a policy that found the request body at fault.
///
/// Its lock is taken when a handler is pending, when it is ready and when a rule is broken, never
/// per frame. Neither metrics nor wakers run under it.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    state: Mutex<State>,
    /// A copy of [`State::Sent`], to be read without the lock.
    is_sent: AtomicBool,
    /// Which task is woken if the request is refused, to be compared without the lock: most polls
    /// are of the same task as the one before.
    task: [AtomicUsize; 2],
}

enum State {
    /// The handler works. Its task is woken if the request is refused.
    Unsent(Option<Waker>),
    /// The request body broke a rule: its policy answers, not the handler.
    Refused(Box<Refusal>),
    /// The response is given, or nothing is left to give one.
    Sent,
}

/// A request, and what its sides share where there is such a thing.
#[derive(Debug)]
pub struct Of<'a, S> {
    /// The request.
    pub facts: &'a Facts,
    /// What its sides share.
    pub shared: Option<&'a S>,
}

/// A request, and what its sides share.
#[derive(Debug)]
pub struct Shared<'a, S> {
    /// The request.
    pub facts: &'a Facts,
    /// What its sides share.
    pub shared: &'a S,
    head: &'a ResponseHead,
}

// === Exchange ===

impl<P: Policy> Exchange<P> {
    pub(crate) fn new(policy: Arc<P>, facts: Facts, shared: P::Shared) -> Self {
        Self {
            policy,
            facts,
            shared,
            wait: ClientWait::default(),
            handler: HandlerPoll::new(),
            awaited_elsewhere: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            head: ResponseHead {
                state: Mutex::new(State::Unsent(None)),
                is_sent: AtomicBool::new(false),
                task: Default::default(),
            },
        }
    }

    #[inline(always)]
    pub(crate) fn shared(&self) -> Shared<'_, P::Shared> {
        Shared {
            facts: &self.facts,
            shared: &self.shared,
            head: &self.head,
        }
    }

    /// Says whether the request body may hold bytes that its handler does not ask for.
    #[inline]
    pub(crate) fn set_unread(&self, is_unread: bool) {
        if let Some(conn) = self.facts.shared_window()
            && self.unread.load(Relaxed) != is_unread
        {
            if is_unread {
                conn.add_unread_body();
                if self.unread.swap(true, SeqCst) {
                    conn.remove_unread_body(); // Its other side was first.
                }
            } else if self.unread.swap(false, SeqCst) {
                conn.remove_unread_body();
            }
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }
}

/// Whatever its two sides said last, at the same moment perhaps: nothing is unread from here on.
impl<P: Policy> Drop for Exchange<P> {
    #[inline]
    fn drop(&mut self) {
        self.set_unread(false);
    }
}

// === ResponseHead ===

impl ResponseHead {
    /// The handler is pending in the task of `task`: whether that is another task than before, or
    /// the refusal, if the handler is not to go on.
    #[inline]
    pub(crate) fn is_pending(&self, task: &Waker) -> Result<bool, Box<Refusal>> {
        let (data, vtable) = nesting::task_of(task);
        if self.task[0].load(Relaxed) == data && self.task[1].load(Relaxed) == vtable {
            return Ok(false);
        }
        self.is_pending_in(task)
    }

    #[inline(never)]
    fn is_pending_in(&self, task: &Waker) -> Result<bool, Box<Refusal>> {
        let (data, vtable) = nesting::task_of(task);
        let mut state = self.state.lock();
        let before = match &mut *state {
            State::Unsent(known) => {
                self.task[0].store(data, Relaxed);
                self.task[1].store(vtable, Relaxed);
                known.replace(task.clone())
            }
            State::Refused(refusal) => return Err(refusal.clone()),
            State::Sent => return Ok(true),
        };
        drop(state);
        // Dropping a waker may run any code.
        drop(before);
        Ok(true)
    }

    /// The handler is ready: the refusal, if its response is not to be sent.
    pub(crate) fn is_ready(&self) -> Option<Box<Refusal>> {
        let mut state = self.state.lock();
        if let State::Refused(refusal) = &*state {
            return Some(refusal.clone());
        }
        self.is_sent.store(true, Relaxed);
        let before = std::mem::replace(&mut *state, State::Sent);
        drop(state);
        drop(before);
        None
    }

    /// Nothing will answer any more.
    pub(crate) fn is_over(&self) {
        if !self.is_sent.swap(true, Relaxed) {
            let before = std::mem::replace(&mut *self.state.lock(), State::Sent);
            drop(before);
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsent(_) => "Unsent",
            Self::Refused(_) => "Refused",
            Self::Sent => "Sent",
        })
    }
}

// === Shared ===

impl<S> Clone for Shared<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Shared<'_, S> {}

impl<'a, S> Shared<'a, S> {
    #[inline(always)]
    pub(crate) fn map<T>(self, part: impl FnOnce(&'a S) -> &'a T) -> Shared<'a, T> {
        Shared {
            facts: self.facts,
            shared: part(self.shared),
            head: self.head,
        }
    }

    /// The request body broke a rule. `judge` says which one, and the status for plain HTTP; it is
    /// told whether the response head is unsent ([`Phase::RequestBody`]) or sent
    /// ([`Phase::ResponseBody`]).
    ///
    /// Records a refusal if the response head is unsent, and then refuses the request in the
    /// handler's place; else records a cut. Returns the violation if the body is to end, and `None`
    /// in shadow mode.
    #[inline(never)]
    pub fn violated(
        self,
        settings: &Settings,
        judge: impl FnOnce(Phase) -> (Violation, StatusCode),
    ) -> Option<Violation> {
        let Self { facts, head, .. } = self;
        let mut state = head.state.lock();
        let State::Unsent(waker) = &mut *state else {
            drop(state);
            let (violation, _) = judge(Phase::ResponseBody);
            return settings.cut(&violation, facts.conn()).then_some(violation);
        };
        let (violation, status) = judge(Phase::RequestBody);
        let rejection = Rejection::new(violation, status, facts.form);
        let mut task = None;
        if settings.mode == Mode::Enforce {
            task = waker.take();
            // Its next poll finds the refusal.
            head.task[1].store(0, Relaxed);
            let refusal = Refusal::new(rejection.clone(), settings);
            *state = State::Refused(Box::new(refusal));
        }
        drop(state);
        let enforced = settings.refuse(&rejection, facts.conn());
        if let Some(task) = task {
            task.wake();
        }
        enforced.then_some(violation)
    }
}

// === Of ===

impl<S> Clone for Of<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Of<'_, S> {}

impl<'a, S> Of<'a, S> {
    #[inline(always)]
    pub(crate) fn map<T>(self, part: impl FnOnce(&'a S) -> &'a T) -> Of<'a, T> {
        Of {
            facts: self.facts,
            shared: self.shared.map(part),
        }
    }
}
