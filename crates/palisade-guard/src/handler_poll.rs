//! What the handler did with its request body in its latest poll.

use crate::{Stamp, nesting};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    task::Waker,
};

/// Written by the response future around each poll of the handler, and by the request body in it.
///
/// No ordering is needed: both write in the same thread, and a body that is polled elsewhere finds
/// another thread here, or none.
#[derive(Debug)]
pub(crate) struct HandlerPoll {
    /// The thread in which the handler is being called or polled, or 0.
    thread: AtomicUsize,
    /// The task that polls the handler, as [`Waker::will_wake`] compares tasks.
    task: [AtomicUsize; 2],
    /// The latest poll of the body had nothing to give, because the client is awaited.
    awaits_client: AtomicBool,
    /// When that must be looked at, or [`NEVER`].
    due: AtomicU64,
}

/// What the handler asked of its request body during one poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The client is awaited.
    pub(crate) awaits_client: bool,
    /// When that must be looked at, if the handler's own task is to do so.
    pub(crate) due: Option<Stamp>,
}

/// How a request body is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PolledBy {
    /// By the handler, in its own task: the response future's timer serves this wait.
    Handler,
    /// By the handler, with a waker of its own, as `FuturesUnordered` has.
    HandlerPart,
    /// By another task, or after the response head is out.
    Elsewhere,
}

/// A call or poll of the handler. Ends when dropped.
#[derive(Debug)]
#[must_use = "it ends when dropped"]
pub(crate) struct Polling<'a>(&'a HandlerPoll);

const NEVER: Stamp = Stamp::MAX;

// === HandlerPoll ===

impl HandlerPoll {
    pub(crate) const fn new() -> Self {
        Self {
            thread: AtomicUsize::new(0),
            task: [const { AtomicUsize::new(0) }; 2],
            awaits_client: AtomicBool::new(false),
            due: AtomicU64::new(NEVER),
        }
    }

    /// The handler is being polled by `task`, or called.
    #[inline]
    pub(crate) fn begin(&self, task: Option<&Waker>) -> Polling<'_> {
        let (data, vtable) = task.map_or((0, 0), nesting::task_of);
        self.thread.store(nesting::thread(), Relaxed);
        self.task[0].store(data, Relaxed);
        self.task[1].store(vtable, Relaxed);
        self.body_goes_on();
        Polling(self)
    }

    /// What the latest poll did.
    #[inline]
    pub(crate) fn asked(&self) -> Asked {
        let due = self.due.load(Relaxed);
        Asked {
            awaits_client: self.awaits_client.load(Relaxed),
            due: (due != NEVER).then_some(due),
        }
    }

    /// The request body, polled by `task`, awaits its client, and this must be looked at when it is
    /// `due`. Returns how the body is polled.
    #[inline]
    pub(crate) fn body_waits(&self, due: Option<Stamp>, task: &Waker) -> PolledBy {
        if self.thread.load(Relaxed) != nesting::thread() {
            return PolledBy::Elsewhere;
        }
        let task = nesting::task_of(task);
        let is_handlers = (self.task[0].load(Relaxed), self.task[1].load(Relaxed)) == task;
        self.awaits_client.store(true, Relaxed);
        self.due
            .store(due.filter(|_| is_handlers).unwrap_or(NEVER), Relaxed);
        if is_handlers {
            PolledBy::Handler
        } else {
            PolledBy::HandlerPart
        }
    }

    /// The request body, polled in the same thread as the handler, has something to give.
    #[inline]
    pub(crate) fn body_goes_on(&self) {
        self.awaits_client.store(false, Relaxed);
        self.due.store(NEVER, Relaxed);
    }

    /// The same for a body that may be polled in another thread.
    #[inline]
    pub(crate) fn wait_ends(&self) {
        if self.thread.load(Relaxed) == nesting::thread() {
            self.body_goes_on();
        }
    }
}

impl Drop for Polling<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.thread.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUE: Asked = Asked {
        awaits_client: true,
        due: Some(7),
    };

    #[test]
    fn a_body_is_polled_by_its_handler_only_in_its_poll_and_with_its_waker() {
        let (task, other) = (Waker::noop(), futures_util::task::noop_waker());
        let handler = HandlerPoll::new();
        assert_eq!(handler.body_waits(Some(7), task), PolledBy::Elsewhere);
        assert_eq!(handler.asked(), Asked::default());
        let polling = handler.begin(Some(task));
        assert_eq!(handler.body_waits(Some(7), &other), PolledBy::HandlerPart);
        assert_eq!(handler.asked(), Asked { due: None, ..DUE });
        assert_eq!(handler.body_waits(Some(7), task), PolledBy::Handler);
        assert_eq!(handler.asked(), DUE);
        drop(polling);
        assert_eq!(handler.asked(), DUE);
        handler.wait_ends();
        assert_eq!(handler.body_waits(None, task), PolledBy::Elsewhere);
        assert_eq!(handler.asked(), DUE);
        let polling = handler.begin(Some(task));
        assert_eq!(handler.asked(), Asked::default());
        assert_eq!(handler.body_waits(Some(7), task), PolledBy::Handler);
        handler.wait_ends();
        assert_eq!(handler.asked(), Asked::default());
        drop(polling);
    }

    #[test]
    fn another_thread_with_the_same_waker_is_elsewhere_and_a_panic_ends_the_poll() {
        let handler = HandlerPoll::new();
        let polling = handler.begin(Some(Waker::noop()));
        std::thread::scope(|scope| {
            let elsewhere = scope.spawn(|| {
                handler.wait_ends();
                handler.body_waits(Some(7), Waker::noop())
            });
            assert_eq!(elsewhere.join().unwrap(), PolledBy::Elsewhere);
        });
        assert_eq!(handler.asked(), Asked::default());
        drop(polling);
        let caught = std::panic::catch_unwind(|| {
            let _polling = handler.begin(Some(Waker::noop()));
            panic!("as a handler might");
        });
        assert!(caught.is_err());
        assert_eq!(handler.body_waits(None, Waker::noop()), PolledBy::Elsewhere);
    }
}
