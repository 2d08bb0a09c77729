//! The clock of one request, which can stand still.

use crate::Limits;
use palisade_core::{AnswerForm, Guard, Phase, Reason, Violation};
use parking_lot::Mutex;
use std::{
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};
use tokio::time::Instant;

/// How much time a request has left. In the extensions of every request if the layer was told to
/// [expose](crate::TimeoutLayer::expose_deadline) it.
///
/// ```
/// # use palisade_timeout::Deadline;
/// # async fn query_for(_: std::time::Duration) {}
/// async fn handler(request: http::Request<()>) {
///     let left = request.extensions().get::<Deadline>().map(Deadline::remaining);
///     query_for(left.unwrap_or_default()).await;
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Deadline {
    pub(crate) record: Arc<Record>,
    pub(crate) started: Instant,
}

/// What a request that is out of the ordinary shares with its body and its deadline: it has a
/// body, speaks gRPC, has limits of its own, or shows its deadline.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) limits: Limits,
    pub(crate) form: AnswerForm,
    /// When the clock started, if that was before the handler's first wait.
    pub(crate) started: Option<Instant>,
    standing: Mutex<Standing>,
}

/// How long the clock stood still, and whether it does.
#[derive(Debug, Default)]
struct Standing {
    since: Option<Instant>,
    before: Duration,
    /// Who wants to know when the clock runs on.
    waker: Option<Waker>,
    /// The body was read to its end.
    ended: bool,
    /// Where the body was last asked in vain.
    asked: Asked,
}

/// Where the body was last asked for more in vain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Asked {
    /// In a poll of the handler that is over, if at all.
    #[default]
    Before,
    /// The handler is being polled, and has not asked yet.
    NotYet,
    /// The handler is being polled, and has asked.
    Now,
    /// In another task, of whose polls nothing is known.
    Elsewhere,
}

/// The body's hand on the clock. Lets go of it when dropped.
#[derive(Debug)]
pub(crate) struct Hand {
    record: Arc<Record>,
    /// The clock stands, unless the handler was found to wait for something else.
    holds: bool,
}

/// While the clock stands, the handler is not polled more often than this for the clock's sake.
const LOOK: Duration = Duration::from_secs(1);

/// What the clock says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Time is up.
    Over(Violation),
    /// Look again at this instant.
    At(Instant),
    /// Look again when woken, and at this instant at the latest.
    Standing(Instant),
}

// === Deadline ===

impl Deadline {
    /// The time left until the response head must be ready, or the whole response if that is
    /// less. Stands still while the request body is waited for. Zero if the time is up.
    pub fn remaining(&self) -> Duration {
        let now = Instant::now();
        let limits = self.record.limits;
        let wall = now.saturating_duration_since(self.started);
        let counted = wall.saturating_sub(self.record.standing.lock().stood(now));
        let head = limits.head.saturating_sub(counted);
        limits.total.map_or(head, |total| head.min(total.saturating_sub(wall)))
    }
}

// === Record ===

impl Record {
    pub(crate) fn new(limits: Limits, form: AnswerForm, started: Option<Instant>) -> Self {
        Self { limits, form, started, standing: Mutex::default() }
    }

    /// What is shown of it, if it was started for that.
    pub(crate) fn deadline(self: &Arc<Self>) -> Option<Deadline> {
        self.started.map(|started| Deadline { record: self.clone(), started })
    }

    /// The handler is about to be polled.
    pub(crate) fn handler_begins(&self) {
        let mut standing = self.standing.lock();
        if standing.asked != Asked::Elsewhere {
            standing.asked = Asked::NotYet;
        }
    }

    /// The handler was polled and waits. If it did not ask for the body in that poll, it waits
    /// for something else: a client who holds a byte back does not stop the clock of a handler
    /// that has read enough to work on.
    pub(crate) fn handler_waits(&self) {
        let mut standing = self.standing.lock();
        let asked = standing.asked;
        if asked != Asked::Elsewhere {
            standing.asked = Asked::Before;
        }
        if asked == Asked::NotYet && standing.since.is_some() {
            standing.before = standing.stood(Instant::now());
            standing.since = None;
        }
    }

    /// What is due at `now`. If the clock stands, the task of `cx` is woken when it runs on.
    pub(crate) fn due(&self, started: Instant, now: Instant, cx: &Context<'_>) -> Due {
        let mut standing = self.standing.lock();
        let due = due(self.limits, started, now, standing.stood(now), standing.since.is_some());
        if let Due::Standing(_) = due
            && !standing.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            standing.waker = Some(cx.waker().clone());
        }
        due
    }

    /// The form of the answer now: a connection whose request was read whole can live on.
    pub(crate) fn answer_form(&self) -> AnswerForm {
        match self.form {
            AnswerForm::Http { close: true } => {
                AnswerForm::Http { close: !self.standing.lock().ended }
            }
            form => form,
        }
    }
}

/// What is due for a request that `stood` still for so long, and `stands` now or does not.
pub(crate) fn due(
    limits: Limits,
    started: Instant,
    now: Instant,
    stood: Duration,
    stands: bool,
) -> Due {
    let wall = now.saturating_duration_since(started);
    let counted = wall.saturating_sub(stood);
    let phase = if stands { Phase::RequestBody } else { Phase::Handler };
    let over = |reason, limit, observed| {
        let (limit, observed) = (millis(limit), millis(observed));
        Due::Over(Violation::new(Guard::Timeout, reason, phase, limit, observed))
    };
    let total_left = match limits.total {
        Some(total) if wall >= total => return over(Reason::TotalDeadline, total, wall),
        total => total.map(|total| total.saturating_sub(wall)),
    };
    if stands {
        // At the latest then the handler is polled again, which shows what it waits for.
        let look = limits.head.max(LOOK);
        let left = total_left.map_or(look, |left| left.min(look));
        return Due::Standing(after(now, left));
    }
    if counted >= limits.head {
        return over(Reason::Deadline, limits.head, counted);
    }
    let head_left = limits.head.saturating_sub(counted);
    Due::At(after(now, total_left.map_or(head_left, |left| left.min(head_left))))
}

/// Whole milliseconds, as [`Violation`] has them.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `wait` after `now`, or a time that nobody will see if there is no such instant.
pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    now.checked_add(wait.min(FAR)).unwrap_or(now)
}

// === Standing ===

impl Standing {
    fn stood(&self, now: Instant) -> Duration {
        let present = self.since.map(|since| now.saturating_duration_since(since));
        self.before.saturating_add(present.unwrap_or_default())
    }
}

// === Hand ===

impl Hand {
    pub(crate) fn new(record: Arc<Record>) -> Self {
        Self { record, holds: false }
    }

    /// The client is waited for: the clock stands from now on.
    #[inline(never)]
    pub(crate) fn stop(&mut self) {
        self.holds = true;
        let mut standing = self.record.standing.lock();
        standing.asked = match standing.asked {
            Asked::NotYet | Asked::Now => Asked::Now,
            Asked::Before | Asked::Elsewhere => Asked::Elsewhere,
        };
        if standing.since.is_none() {
            standing.since = Some(Instant::now());
        }
    }

    /// Something came: the clock runs on.
    #[inline]
    pub(crate) fn go_on(&mut self) {
        if self.holds {
            self.holds = false;
            self.run();
        }
    }

    #[inline(never)]
    fn run(&self) {
        let mut standing = self.record.standing.lock();
        if standing.since.is_none() {
            return;
        }
        standing.before = standing.stood(Instant::now());
        standing.since = None;
        let waker = standing.waker.take();
        // Not under the lock: to wake is to run code of others.
        drop(standing);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The body was read to its end: the clock runs on.
    #[inline(never)]
    pub(crate) fn end(&mut self) {
        self.record.standing.lock().ended = true;
        self.go_on();
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.go_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    proptest! {
        /// Whatever the clock says to look at next, looking there or later ends the matter, and
        /// looking earlier does not.
        #[test]
        fn what_is_due_comes_due_and_not_before(
            head in 1u32..100, total in proptest::option::of(1u32..100),
            wall in 0u32..200, stood in 0u32..200, stands: bool,
        ) {
            let started = Instant::now();
            let limits = Limits { head: MS * head, total: total.map(|total| MS * total) };
            let stood = MS * stood.min(wall);
            match due(limits, started, started + MS * wall, stood, stands) {
                Due::At(instant) => {
                    prop_assert!(!stands && instant > started + MS * wall);
                    let at = due(limits, started, instant, stood, false);
                    prop_assert!(matches!(at, Due::Over(_)));
                    let before = due(limits, started, instant - MS, stood, false);
                    prop_assert!(!matches!(before, Due::Over(_)));
                }
                Due::Over(violation) => {
                    prop_assert!(violation.observed >= violation.limit);
                }
                Due::Standing(at) => {
                    prop_assert!(stands);
                    let total = limits.total.map(|total| started + total);
                    let looked_at = started + MS * wall + limits.head.max(LOOK);
                    prop_assert_eq!(at, total.map_or(looked_at, |total| total.min(looked_at)));
                }
            }
        }
    }

    #[test]
    fn no_wait_is_too_long_to_reckon_with() {
        let now = Instant::now();
        assert!(after(now, Duration::MAX) > now + Duration::from_secs(29 * 365 * 24 * 3600));
        let limits = Limits { head: Duration::MAX, total: Some(Duration::MAX) };
        assert!(matches!(due(limits, now, now, Duration::MAX, false), Due::At(_)));
    }
}
