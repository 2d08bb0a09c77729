//! How the latest poll of the handler used the request body.

use crate::{Stamp, nesting};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    task::Waker,
};

/// How the latest poll of the handler used the request body. Written by the response future around
/// each poll of the handler, and by the request body during it.
///
/// No memory ordering is needed: both write on the same thread, and a body that is polled elsewhere
/// finds another thread's id here, or 0.
#[derive(Debug)]
pub(crate) struct HandlerPoll {
    /// The thread on which the handler is being called or polled, or 0.
    thread: AtomicUsize,
    /// The [`nesting::Task`] that polls the handler.
    task: [AtomicUsize; 2],
    /// Whether the latest poll of the body was pending because it waits for the client.
    awaits_client: AtomicBool,
    /// When this wait must be checked, or [`NO_DUE`].
    due: AtomicU64,
}

/// The wait for the client that the handler entered during one poll, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BodyWait {
    /// Whether the handler waits for the client.
    pub(crate) awaits_client: bool,
    /// When the wait must be checked, if the handler's own task has to do it.
    pub(crate) due: Option<Stamp>,
}

/// The origin of a poll of the request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PolledBy {
    /// The handler, with the waker of its own task. The response future's timer covers this wait.
    Handler,
    /// The handler, with another waker, as `FuturesUnordered` creates.
    HandlerSubtask,
    /// Another task, or any task after the response head has been sent.
    Elsewhere,
}

/// Marks the handler as being called or polled. The mark is removed on drop.
#[derive(Debug)]
#[must_use = "the mark is removed on drop"]
pub(crate) struct Polling<'a>(&'a HandlerPoll);

/// The value of [`HandlerPoll::due`] if no wait has to be checked.
const NO_DUE: Stamp = Stamp::MAX;

// === HandlerPoll ===

impl HandlerPoll {
    pub(crate) const fn new() -> Self {
        Self {
            thread: AtomicUsize::new(0),
            task: [const { AtomicUsize::new(0) }; 2],
            awaits_client: AtomicBool::new(false),
            due: AtomicU64::new(NO_DUE),
        }
    }

    /// Marks the start of a poll of the handler by `task`, or of its call if `task` is `None`.
    #[inline]
    pub(crate) fn begin_poll(&self, task: Option<&Waker>) -> Polling<'_> {
        let (data, vtable) = task.map_or((0, 0), nesting::task_of);
        self.thread.store(nesting::thread_id(), Relaxed);
        self.task[0].store(data, Relaxed);
        self.task[1].store(vtable, Relaxed);
        self.clear_wait();
        Polling(self)
    }

    /// Returns the wait that the latest poll of the handler entered.
    #[inline]
    pub(crate) fn body_wait(&self) -> BodyWait {
        let due = self.due.load(Relaxed);
        BodyWait {
            awaits_client: self.awaits_client.load(Relaxed),
            due: (due != NO_DUE).then_some(due),
        }
    }

    /// Records that the request body, polled by `task`, waits for the client and must be checked at
    /// `due`. Returns the origin of the poll.
    #[inline]
    pub(crate) fn record_wait(&self, due: Option<Stamp>, task: &Waker) -> PolledBy {
        if self.thread.load(Relaxed) != nesting::thread_id() {
            return PolledBy::Elsewhere;
        }
        let task = nesting::task_of(task);
        let is_handler_task = (self.task[0].load(Relaxed), self.task[1].load(Relaxed)) == task;
        self.awaits_client.store(true, Relaxed);
        self.due
            .store(due.filter(|_| is_handler_task).unwrap_or(NO_DUE), Relaxed);
        if is_handler_task {
            PolledBy::Handler
        } else {
            PolledBy::HandlerSubtask
        }
    }

    /// Clears the recorded wait: the request body, polled on the handler's thread, is ready.
    #[inline]
    pub(crate) fn clear_wait(&self) {
        self.awaits_client.store(false, Relaxed);
        self.due.store(NO_DUE, Relaxed);
    }

    /// Clears the recorded wait if the current thread is polling the handler.
    #[inline]
    pub(crate) fn clear_wait_on_handler_thread(&self) {
        if self.thread.load(Relaxed) == nesting::thread_id() {
            self.clear_wait();
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

    const WAIT: BodyWait = BodyWait {
        awaits_client: true,
        due: Some(7),
    };

    #[test]
    fn only_a_poll_within_the_handler_with_its_waker_is_by_the_handler() {
        let (task, other) = (Waker::noop(), futures_util::task::noop_waker());
        let handler = HandlerPoll::new();
        assert_eq!(handler.record_wait(Some(7), task), PolledBy::Elsewhere);
        assert_eq!(handler.body_wait(), BodyWait::default());
        let polling = handler.begin_poll(Some(task));
        assert_eq!(
            handler.record_wait(Some(7), &other),
            PolledBy::HandlerSubtask
        );
        assert_eq!(handler.body_wait(), BodyWait { due: None, ..WAIT });
        assert_eq!(handler.record_wait(Some(7), task), PolledBy::Handler);
        assert_eq!(handler.body_wait(), WAIT);
        drop(polling);
        assert_eq!(handler.body_wait(), WAIT);
        handler.clear_wait_on_handler_thread();
        assert_eq!(handler.record_wait(None, task), PolledBy::Elsewhere);
        assert_eq!(handler.body_wait(), WAIT);
        let polling = handler.begin_poll(Some(task));
        assert_eq!(handler.body_wait(), BodyWait::default());
        assert_eq!(handler.record_wait(Some(7), task), PolledBy::Handler);
        handler.clear_wait_on_handler_thread();
        assert_eq!(handler.body_wait(), BodyWait::default());
        drop(polling);
    }

    #[test]
    fn another_thread_is_elsewhere_and_a_panic_ends_the_poll() {
        let handler = HandlerPoll::new();
        let polling = handler.begin_poll(Some(Waker::noop()));
        std::thread::scope(|scope| {
            let elsewhere = scope.spawn(|| {
                handler.clear_wait_on_handler_thread();
                handler.record_wait(Some(7), Waker::noop())
            });
            assert_eq!(elsewhere.join().unwrap(), PolledBy::Elsewhere);
        });
        assert_eq!(handler.body_wait(), BodyWait::default());
        drop(polling);
        let caught = std::panic::catch_unwind(|| {
            let _polling = handler.begin_poll(Some(Waker::noop()));
            panic!("a handler may panic");
        });
        assert!(caught.is_err());
        assert_eq!(
            handler.record_wait(None, Waker::noop()),
            PolledBy::Elsewhere
        );
    }
}
