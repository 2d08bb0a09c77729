//! Decides once whether the handler or a policy sends the response head.

use crate::{Refusal, nesting};
use parking_lot::{Mutex, MutexGuard};
use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    task::Waker,
};

/// Decides whether the handler or a policy sends the response head. A policy does if the request
/// body breaks a rule before the handler is ready.
///
/// The lock is taken when a handler is pending in a new task, when it is ready and when a rule is
/// broken, never per frame. Neither metrics nor wakers run while it is held.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    state: Mutex<HeadState>,
    /// Whether the state is [`HeadState::Sent`], readable without the lock.
    is_sent: AtomicBool,
    /// The task of the waker in [`HeadState::Unsent`], comparable without the lock. Most polls
    /// are by the same task as the previous one.
    task: [AtomicUsize; 2],
}

pub(crate) enum HeadState {
    /// The handler is running. Its task is woken if the request is refused.
    Unsent(Option<Waker>),
    /// The request body broke a rule, and its policy refuses the request.
    Refused(Box<Refusal>),
    /// The response head has been passed on, or no response can be sent any more.
    Sent,
}

// === ResponseHead ===

impl ResponseHead {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(HeadState::Unsent(None)),
            is_sent: AtomicBool::new(false),
            task: Default::default(),
        }
    }

    /// Locks the state.
    pub(crate) fn lock(&self) -> MutexGuard<'_, HeadState> {
        self.state.lock()
    }

    /// Lets the next poll of the handler take the lock and find the refusal.
    pub(crate) fn forget_task(&self) {
        // No vtable has the address 0.
        self.task[1].store(0, Relaxed);
    }

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
            HeadState::Unsent(known) => {
                self.task[0].store(data, Relaxed);
                self.task[1].store(vtable, Relaxed);
                known.replace(task.clone())
            }
            HeadState::Refused(refusal) => return Err(refusal.clone()),
            HeadState::Sent => return Ok(true),
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
        if let HeadState::Refused(refusal) = &*state {
            return Some(refusal.clone());
        }
        self.is_sent.store(true, Relaxed);
        let before = std::mem::replace(&mut *state, HeadState::Sent);
        drop(state);
        drop(before);
        None
    }

    /// Records that no response can be sent any more.
    pub(crate) fn close(&self) {
        if !self.is_sent.swap(true, Relaxed) {
            let before = std::mem::replace(&mut *self.state.lock(), HeadState::Sent);
            drop(before);
        }
    }
}

impl fmt::Debug for HeadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsent(_) => "Unsent",
            Self::Refused(_) => "Refused",
            Self::Sent => "Sent",
        })
    }
}
