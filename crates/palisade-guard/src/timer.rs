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
    /// The one timer of a request whose handler is pending. It is set to the earliest of all
    /// deadlines and never moved to a later one before it fires: a deadline that has moved is
    /// looked up then.
    pub(crate) struct Timer {
        started: Instant,
        // The deadline as a stamp of the exchange, if there is one.
        at: Stamp,
        is_registered: bool,
        #[pin]
        sleep: Sleep,
    }
}

/// Polls a timer. Not subject to tokio's budget: a timer that is not polled to its end because the
/// budget of its task is used up would not be registered.
pub fn poll_sleep(sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    std::pin::pin!(tokio::task::unconstrained(sleep)).poll(cx)
}

impl Timer {
    /// The shortest time until a deadline is looked at again that has passed without consequences.
    pub(crate) const MIN_PAUSE: Duration = Duration::from_millis(1);
    /// Longer than any server runs.
    pub(crate) const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

    pub(crate) fn new(started: Instant, deadline: Instant, at: Stamp) -> Pin<Box<Self>> {
        Box::pin(Self {
            started,
            at,
            is_registered: false,
            sleep: sleep_until(deadline),
        })
    }

    /// When the handler waited first.
    #[inline]
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// When it fires, as a stamp.
    #[inline]
    pub(crate) fn at(&self) -> Stamp {
        self.at
    }

    /// Whether it wakes the task of the latest poll, has not fired, and fires no later than `due`.
    #[inline]
    pub(crate) fn covers(&self, due: Option<Stamp>) -> bool {
        self.is_registered && !self.sleep.is_elapsed() && due.is_none_or(|due| due >= self.at)
    }

    pub(crate) fn set(self: Pin<&mut Self>, deadline: Instant, at: Stamp) {
        let this = self.project();
        *this.at = at;
        this.sleep.reset(deadline);
        *this.is_registered = false;
    }

    /// Ready when the deadline has come. Else the task of `cx`, which `is_new` or not since the
    /// poll before, is woken then.
    pub(crate) fn poll(self: Pin<&mut Self>, is_new: bool, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if !is_new && *this.is_registered && !this.sleep.is_elapsed() {
            return Poll::Pending;
        }
        *this.is_registered = true;
        poll_sleep(this.sleep, cx)
    }
}
