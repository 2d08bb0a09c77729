//! When a gRPC stream is idle.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// A stream that has nothing to give for so long waits for events and is not at work.
const IDLE: Duration = Duration::from_secs(5);

/// Finds out that a stream is idle.
#[derive(Debug)]
pub(super) struct StreamIdle {
    /// When it had nothing to give first. `None` if it has given something since.
    since: Option<Instant>,
    /// It was idle before.
    is_found: bool,
    /// Never moved to a later instant before it fires.
    timer: Pin<Box<Sleep>>,
}

impl StreamIdle {
    pub(super) fn new() -> Self {
        let timer = Box::pin(sleep_until(Instant::now() + IDLE));
        Self {
            since: None,
            is_found: false,
            timer,
        }
    }

    pub(super) fn gives(&mut self) {
        self.since = None;
    }

    /// The stream has nothing to give: ready if it is idle. Else wakes the task of `cx` when it
    /// will be.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_found {
            return Poll::Ready(());
        }
        let due = *self.since.get_or_insert_with(Instant::now) + IDLE;
        while !self.is_found {
            if palisade_guard::poll_sleep(self.timer.as_mut(), cx).is_pending() {
                return Poll::Pending;
            }
            self.is_found = Instant::now() >= due;
            self.timer.as_mut().reset(due);
        }
        Poll::Ready(())
    }
}
