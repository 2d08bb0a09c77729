//! The limit on the whole response, after its head has been sent.

use crate::deadline::{instant_after, millis};
use palisade_core::{Guard, Phase, Reason, Violation};
use palisade_guard::{Task, poll_sleep, task_of};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

pin_project! {
    /// Enforces [`Limits::total`](crate::Limits::total) on a response body.
    #[derive(Debug)]
    pub struct TotalDeadline {
        started: Instant,
        limit: Duration,
        was_polled: bool,
        was_reported: bool,
        // The task that the timer wakes.
        task: Task,
        #[pin]
        timer: Option<Sleep>,
    }
}

impl TotalDeadline {
    pub(crate) fn new(started: Instant, limit: Duration) -> Pin<Box<Self>> {
        let (was_polled, was_reported) = (false, false);
        Box::pin(Self {
            started,
            limit,
            was_polled,
            was_reported,
            task: (0, 0),
            timer: None,
        })
    }

    /// Returns the violation, once, if the limit has passed. Otherwise registers the task of `cx`
    /// to be woken then. The timer is also needed for a body that is always ready, because a server
    /// does not poll the body again by itself while its client reads nothing. Only a body that ends
    /// after one frame needs no timer.
    pub(crate) fn check(
        self: Pin<&mut Self>,
        is_pending: bool,
        cx: &mut Context<'_>,
    ) -> Option<Violation> {
        let mut this = self.project();
        let was_polled = std::mem::replace(this.was_polled, true);
        if this.timer.is_none() && (is_pending || was_polled) {
            this.timer
                .set(Some(sleep_until(instant_after(*this.started, *this.limit))));
        }
        // A body may move to another task while it is ready.
        let task = task_of(cx.waker());
        if let Some(timer) = this.timer.as_mut().as_pin_mut()
            && (is_pending || *this.task != task)
        {
            *this.task = task;
            let _: Poll<()> = poll_sleep(timer, cx);
        }
        let taken = Instant::now().saturating_duration_since(*this.started);
        if taken < *this.limit || *this.was_reported {
            return None;
        }
        *this.was_reported = true;
        let (limit, observed) = (millis(*this.limit), millis(taken));
        let (reason, phase) = (Reason::TotalDeadline, Phase::ResponseBody);
        Some(Violation::new(
            Guard::Timeout,
            reason,
            phase,
            limit,
            observed,
        ))
    }
}
