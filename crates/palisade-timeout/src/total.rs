//! The limit on a whole response, once its head is sent.

use crate::deadline::{after, millis};
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
    /// What is left of [`Limits::total`](crate::Limits::total) once the head is sent.
    #[derive(Debug)]
    pub struct Total {
        started: Instant,
        limit: Duration,
        was_polled: bool,
        was_told: bool,
        // Which task the timer wakes.
        task: Task,
        #[pin]
        timer: Option<Sleep>,
    }
}

impl Total {
    pub(crate) fn new(started: Instant, limit: Duration) -> Pin<Box<Self>> {
        let (was_polled, was_told) = (false, false);
        Box::pin(Self {
            started,
            limit,
            was_polled,
            was_told,
            task: (0, 0),
            timer: None,
        })
    }

    /// The violation, once, if the time is over. If not, the task of `cx` is woken when it is: also
    /// where the body has something to give, because a server whose client takes nothing does not
    /// poll again by itself. Only a body that is over after one frame needs no timer.
    pub(crate) fn check(
        self: Pin<&mut Self>,
        is_pending: bool,
        cx: &mut Context<'_>,
    ) -> Option<Violation> {
        let mut this = self.project();
        let was_polled = std::mem::replace(this.was_polled, true);
        if this.timer.is_none() && (is_pending || was_polled) {
            this.timer
                .set(Some(sleep_until(after(*this.started, *this.limit))));
        }
        // A body may change tasks while it has something to give.
        let task = task_of(cx.waker());
        if let Some(timer) = this.timer.as_mut().as_pin_mut()
            && (is_pending || *this.task != task)
        {
            *this.task = task;
            let _: Poll<()> = poll_sleep(timer, cx);
        }
        let taken = Instant::now().saturating_duration_since(*this.started);
        if taken < *this.limit || *this.was_told {
            return None;
        }
        *this.was_told = true;
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
