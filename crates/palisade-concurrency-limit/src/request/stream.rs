//! Idle detection of gRPC streams.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// A stream without data for this long waits for events and is not at work.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Detects an idle stream.
#[derive(Debug)]
pub(super) struct StreamIdle {
    /// When the stream first had no data. `None` if it has returned a frame since.
    pending_since: Option<Instant>,
    /// The stream has been idle before.
    is_idle: bool,
    /// Not moved to a later instant before it fires.
    timer: Pin<Box<Sleep>>,
}

impl StreamIdle {
    pub(super) fn new() -> Self {
        let timer = Box::pin(sleep_until(Instant::now() + STREAM_IDLE_TIMEOUT));
        Self {
            pending_since: None,
            is_idle: false,
            timer,
        }
    }

    pub(super) fn record_progress(&mut self) {
        self.pending_since = None;
    }

    /// Polls a stream that has no data. Ready if the stream is idle; otherwise wakes the task of
    /// `cx` when it becomes idle.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_idle {
            return Poll::Ready(());
        }
        let idle_at = *self.pending_since.get_or_insert_with(Instant::now) + STREAM_IDLE_TIMEOUT;
        while !self.is_idle {
            if palisade_guard::poll_sleep(self.timer.as_mut(), cx).is_pending() {
                return Poll::Pending;
            }
            self.is_idle = Instant::now() >= idle_at;
            self.timer.as_mut().reset(idle_at);
        }
        Poll::Ready(())
    }
}
