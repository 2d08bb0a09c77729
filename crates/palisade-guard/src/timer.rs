//! The timer of a request.

use crate::Stamp;
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

pin_project! {
    /// The one timer of a request with a pending handler. It is set to the earliest of all
    /// deadlines and never moved to a later instant before it fires. If the deadline has moved by
    /// then, the timer is set again.
    pub(crate) struct Timer {
        started: Instant,
        // The deadline as a stamp of the exchange. 0 if the request has no exchange.
        due: Stamp,
        is_registered: bool,
        #[pin]
        sleep: Sleep,
    }
}

/// Polls a timer without tokio's cooperative budget. With the budget used up, tokio would return
/// early and leave the timer unregistered.
pub fn poll_sleep(sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    std::pin::pin!(tokio::task::unconstrained(sleep)).poll(cx)
}

impl Timer {
    /// The shortest time after which an expired deadline that caused no refusal is checked again.
    pub(crate) const MIN_RECHECK_INTERVAL: Duration = Duration::from_millis(1);
    /// Longer than any server runs.
    pub(crate) const FAR_FUTURE: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

    #[inline(always)]
    pub(crate) fn new(started: Instant, deadline: Instant, due: Stamp) -> Self {
        Self {
            started,
            due,
            is_registered: false,
            sleep: sleep_until(deadline),
        }
    }

    /// Returns when the timer was created: the first time that the handler was pending.
    #[inline]
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Returns when the timer fires, as a stamp.
    #[inline]
    pub(crate) fn due(&self) -> Stamp {
        self.due
    }

    /// Returns whether the timer wakes the task of the latest poll, has not fired, and fires no
    /// later than `body_due`.
    #[inline]
    pub(crate) fn covers(&self, body_due: Option<Stamp>) -> bool {
        self.is_registered && !self.sleep.is_elapsed() && body_due.is_none_or(|at| at >= self.due)
    }

    /// Sets the timer to `deadline`, which is `due` as a stamp.
    pub(crate) fn reset(self: Pin<&mut Self>, deadline: Instant, due: Stamp) {
        let this = self.project();
        *this.due = due;
        this.sleep.reset(deadline);
        *this.is_registered = false;
    }

    /// Ready when the deadline has passed. Otherwise the task of `cx` is woken at the deadline.
    /// `is_new_task` says whether this may be another task than in the previous poll.
    pub(crate) fn poll(self: Pin<&mut Self>, is_new_task: bool, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if !is_new_task && *this.is_registered && !this.sleep.is_elapsed() {
            return Poll::Pending;
        }
        *this.is_registered = true;
        poll_sleep(this.sleep, cx)
    }
}
