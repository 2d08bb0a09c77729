//! The pace of a response body.

use crate::{
    meter::{TooSlow, nanos},
    stopwatch::{Stopwatch, instant_after},
};
use palisade_guard::{Stamp, Task, poll_sleep, task_of};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// Length up to which a response fits into the buffers between the server and the client, so that
/// the server does not have to wait for the client. Most responses are no longer than this.
pub(crate) const BUFFERED_BYTES: u64 = 64 * 1024;

pin_project! {
    /// The pace of a response body of which the server has received more than [`BUFFERED_BYTES`].
    #[derive(Debug)]
    pub struct Download {
        stopwatch: Stopwatch,
        // The instant from which the stamps of the stopwatch count.
        origin: Instant,
        // The stamp at which the timer fires.
        timer_stamp: Stamp,
        // Bytes that the server has received and the stopwatch does not know yet.
        new_bytes: u64,
        // The task that the timer wakes.
        timer_task: Task,
        #[pin]
        timer: Sleep,
    }
}

impl Download {
    /// Starts to check the pace of a body of which the server has received `bytes`. Wakes the task
    /// of `cx` when the client is too slow.
    pub(crate) fn new(
        stopwatch: Stopwatch,
        bytes: u64,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Pin<Box<Self>> {
        let timer_stamp = stopwatch.due(0);
        let mut download = Box::pin(Self {
            stopwatch,
            origin: now,
            timer_stamp,
            new_bytes: bytes,
            timer_task: task_of(cx.waker()),
            timer: sleep_until(instant_after(now, timer_stamp)),
        });
        let _: Poll<()> = poll_sleep(download.as_mut().project().timer, cx);
        download
    }

    /// Counts `bytes` that are handed to the server.
    pub(crate) fn count(self: Pin<&mut Self>, bytes: u64) {
        let this = self.project();
        *this.new_bytes = this.new_bytes.saturating_add(bytes);
    }

    /// Starts a wait for the client: the server has a frame to send.
    ///
    /// If the wait becomes too long, wakes the task of `cx` once: no earlier than then, and after
    /// twice that time at the latest. A timer that fires in between is left unchanged, so that it
    /// need not be set for every wait. Once is enough: when it is woken, hyper fills its buffer,
    /// and then does not poll again before that has been taken.
    pub(crate) fn start_wait(self: Pin<&mut Self>, now: Instant, cx: &mut Context<'_>) {
        let mut this = self.project();
        let stamp = nanos(now.saturating_duration_since(*this.origin));
        this.stopwatch.start(stamp);
        let due = this.stopwatch.due(stamp);
        let must_reset = *this.timer_stamp < due || this.timer.is_elapsed();
        if must_reset {
            let wait = due.saturating_sub(stamp).saturating_mul(2);
            *this.timer_stamp = stamp.saturating_add(wait);
            this.timer.as_mut().reset(instant_after(now, wait));
        }
        // The body may move to another task while it has frames to give.
        let task = task_of(cx.waker());
        if must_reset || *this.timer_task != task {
            *this.timer_task = task;
            let _: Poll<()> = poll_sleep(this.timer, cx);
        }
    }

    /// Ends the wait, if there is one, because the server polls the body: the client has taken what
    /// the server had, or the timer has woken the server. Returns the broken rule if the wait was
    /// too long. `required_rate` returns the rate in force.
    pub(crate) fn end_wait(
        self: Pin<&mut Self>,
        required_rate: impl Fn(&Stopwatch) -> u64,
    ) -> Option<TooSlow> {
        let this = self.project();
        let stopwatch = this.stopwatch;
        if !stopwatch.is_running() {
            return None;
        }
        let rate = required_rate(stopwatch);
        let is_elapsed = this.timer.is_elapsed();
        if is_elapsed || stopwatch.is_cumulative() {
            let now = Instant::now();
            let delay = if is_elapsed {
                nanos(now.saturating_duration_since(this.timer.deadline()))
            } else {
                u64::MAX
            };
            let stamp = nanos(now.saturating_duration_since(*this.origin));
            if let Some(slow) = stopwatch.check(stamp, delay, rate) {
                return Some(slow);
            }
            stopwatch.stop(stamp);
        } else {
            stopwatch.discard();
        }
        stopwatch.add_bytes(std::mem::take(this.new_bytes), rate);
        None
    }
}
