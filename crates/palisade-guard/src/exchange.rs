//! The state that both sides of a shared request access: the response side (response future, then
//! response body) and the request side (request body), which may be in different tasks.

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

/// The state of a shared request, accessible to both sides. One allocation per request.
#[derive(Debug)]
pub(crate) struct Exchange<P: Policy> {
    pub(crate) policy: Arc<P>,
    pub(crate) facts: Facts,
    pub(crate) shared: P::Shared,
    /// The time for which the handler has waited for its client.
    pub(crate) client_wait: ClientWait,
    pub(crate) handler_poll: HandlerPoll,
    /// Whether the latest wait for the client was polled with another waker than the handler's.
    pub(crate) awaited_elsewhere: AtomicBool,
    /// Whether the request body was read to its end.
    pub(crate) body_ended: AtomicBool,
    /// Whether the request body is counted in the connection's
    /// [unread bodies](palisade_core::ConnInfo::add_unread_body).
    is_unread: AtomicBool,
    pub(crate) response_head: ResponseHead,
}

/// Decides whether the handler or a policy sends the response head. A policy does if the request
/// body breaks a rule before the handler is ready.
///
/// The lock is taken when a handler is pending in a new task, when it is ready and when a rule is
/// broken, never per frame. Neither metrics nor wakers run while it is held.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    state: Mutex<State>,
    /// Whether the state is [`State::Sent`], readable without the lock.
    is_sent: AtomicBool,
    /// The task of the waker in [`State::Unsent`], comparable without the lock. Most polls are by
    /// the same task as the previous one.
    task: [AtomicUsize; 2],
}

enum State {
    /// The handler is running. Its task is woken if the request is refused.
    Unsent(Option<Waker>),
    /// The request body broke a rule, and its policy refuses the request.
    Refused(Box<Refusal>),
    /// The response head has been passed on, or no response can be sent any more.
    Sent,
}

/// A policy's view of any request.
#[derive(Debug)]
pub struct Of<'a, S> {
    /// The facts of the request.
    pub facts: &'a Facts,
    /// The state that its sides share, if it is a shared request.
    pub shared: Option<&'a S>,
}

/// A policy's view of a shared request.
#[derive(Debug)]
pub struct Shared<'a, S> {
    /// The facts of the request.
    pub facts: &'a Facts,
    /// The state that its sides share.
    pub shared: &'a S,
    response_head: &'a ResponseHead,
}

// === Exchange ===

impl<P: Policy> Exchange<P> {
    pub(crate) fn new(policy: Arc<P>, facts: Facts, shared: P::Shared) -> Self {
        Self {
            policy,
            facts,
            shared,
            client_wait: ClientWait::default(),
            handler_poll: HandlerPoll::new(),
            awaited_elsewhere: AtomicBool::new(false),
            body_ended: AtomicBool::new(false),
            is_unread: AtomicBool::new(false),
            response_head: ResponseHead {
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
            response_head: &self.response_head,
        }
    }

    /// Sets whether the request body may hold bytes that the handler is not reading.
    #[inline]
    pub(crate) fn set_unread(&self, is_unread: bool) {
        if let Some(conn) = self.facts.shared_window()
            && self.is_unread.load(Relaxed) != is_unread
        {
            if is_unread {
                conn.add_unread_body();
                if self.is_unread.swap(true, SeqCst) {
                    conn.remove_unread_body(); // The other side has counted it concurrently.
                }
            } else if self.is_unread.swap(false, SeqCst) {
                conn.remove_unread_body();
            }
        }
    }

    pub(crate) fn has_body_ended(&self) -> bool {
        self.body_ended.load(Relaxed)
    }
}

impl<P: Policy> Drop for Exchange<P> {
    #[inline]
    fn drop(&mut self) {
        // The two sides may have called `set_unread` concurrently, so that the body may still be
        // counted as unread.
        self.set_unread(false);
    }
}

// === ResponseHead ===

impl ResponseHead {
    /// Records that the handler is pending in the task of `task`. Returns whether that is another
    /// task than before, or the refusal if the request is refused.
    #[inline]
    pub(crate) fn handler_pending(&self, task: &Waker) -> Result<bool, Box<Refusal>> {
        let (data, vtable) = nesting::task_of(task);
        if self.task[0].load(Relaxed) == data && self.task[1].load(Relaxed) == vtable {
            return Ok(false);
        }
        self.store_task(task)
    }

    /// Stores `task` as the one to be woken if the request is refused.
    #[inline(never)]
    fn store_task(&self, task: &Waker) -> Result<bool, Box<Refusal>> {
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
        // Drop the old waker without the lock: dropping a `Waker` may run arbitrary code.
        drop(before);
        Ok(true)
    }

    /// Marks the response head as sent by the handler. Returns the refusal if the request is
    /// refused.
    pub(crate) fn mark_sent(&self) -> Option<Box<Refusal>> {
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

    /// Records that no response can be sent any more.
    pub(crate) fn close(&self) {
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
            response_head: self.response_head,
        }
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
        let mut state = response_head.state.lock();
        let State::Unsent(waker) = &mut *state else {
            drop(state);
            let (violation, _) = describe(Phase::ResponseBody);
            return settings.cut(&violation, facts.conn()).then_some(violation);
        };
        let (violation, status) = describe(Phase::RequestBody);
        let rejection = Rejection::new(violation, status, facts.form);
        let mut task = None;
        if settings.mode == Mode::Enforce {
            task = waker.take();
            // No vtable has the address 0, so the next poll of the handler takes the lock and finds
            // the refusal.
            response_head.task[1].store(0, Relaxed);
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
