//! How one download is judged.

use crate::{
    meter::{TooSlow, nanos},
    stopwatch::{Stopwatch, after},
};
use palisade_guard::{Stamp, Task, poll_sleep, task_of};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// A response that is no longer than this fits into the buffers between the server and the client:
/// nothing waits for a reader of so little, and most responses are no longer.
pub(crate) const BUFFERED_BYTES: u64 = 64 * 1024;

pin_project! {
    /// A response body of which more than [`BUFFERED_BYTES`] were handed to the server.
    #[derive(Debug)]
    pub struct Download {
        stopwatch: Stopwatch,
        // What the stamps of the stopwatch count from.
        origin: Instant,
        // When the timer fires.
        wakes_at: Stamp,
        // What was handed out since the stopwatch was told last.
        bytes: u64,
        // Which task the timer wakes.
        task: Task,
        #[pin]
        timer: Sleep,
    }
}

impl Download {
    /// Its first `bytes` were handed out, and the task of `cx` is woken when the reader is late.
    pub(crate) fn new(
        stopwatch: Stopwatch,
        bytes: u64,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Pin<Box<Self>> {
        let wakes_at = stopwatch.due(0);
        let (timer, task) = (sleep_until(after(now, wakes_at)), task_of(cx.waker()));
        let mut download = Box::pin(Self {
            stopwatch,
            origin: now,
            wakes_at,
            bytes,
            task,
            timer,
        });
        let _: Poll<()> = poll_sleep(download.as_mut().project().timer, cx);
        download
    }

    /// `bytes` more were handed to the server.
    pub(crate) fn hand_out(self: Pin<&mut Self>, bytes: u64) {
        let this = self.project();
        *this.bytes = this.bytes.saturating_add(bytes);
    }

    /// The server has a frame: from now on the reader is awaited.
    ///
    /// The task of `cx` is woken once in this wait when it is too long already: not before, and
    /// after twice as long at the latest. Between those the timer is left as it is, so that it is
    /// not set for every wait. Woken once, hyper fills its buffer, and does not poll again before
    /// that was taken.
    pub(crate) fn start(self: Pin<&mut Self>, now: Instant, cx: &mut Context<'_>) {
        let mut this = self.project();
        let stamp = nanos(now.saturating_duration_since(*this.origin));
        this.stopwatch.start(stamp);
        let due = this.stopwatch.due(stamp);
        let is_due = *this.wakes_at < due || this.timer.is_elapsed();
        if is_due {
            let wait = due.saturating_sub(stamp).saturating_mul(2);
            *this.wakes_at = stamp.saturating_add(wait);
            this.timer.as_mut().reset(after(now, wait));
        }
        // A body may change tasks while it has something to give.
        let task = task_of(cx.waker());
        if is_due || *this.task != task {
            *this.task = task;
            let _: Poll<()> = poll_sleep(this.timer, cx);
        }
    }

    /// The server asks for more: what it has was taken, or it was woken by the timer. `required` is
    /// the rate in force.
    pub(crate) fn asked(
        self: Pin<&mut Self>,
        required: impl Fn(&Stopwatch) -> u64,
    ) -> Option<TooSlow> {
        let this = self.project();
        let stopwatch = this.stopwatch;
        if !stopwatch.is_running() {
            return None;
        }
        let rate = required(stopwatch);
        let is_elapsed = this.timer.is_elapsed();
        if is_elapsed || stopwatch.adds_up() {
            let now = Instant::now();
            let late = if is_elapsed {
                nanos(now.saturating_duration_since(this.timer.deadline()))
            } else {
                u64::MAX
            };
            let stamp = nanos(now.saturating_duration_since(*this.origin));
            if let Some(slow) = stopwatch.judge(stamp, late, rate) {
                return Some(slow);
            }
            stopwatch.stop(stamp);
        } else {
            stopwatch.forget();
        }
        stopwatch.pay(std::mem::take(this.bytes), rate);
        None
    }
}
