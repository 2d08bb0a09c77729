//! The deadlines of a request, computed from its limits and the time that it has used.

use crate::Limits;
use palisade_core::{Guard, Phase, Reason, Violation};
use palisade_guard::ClientWait;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The deadline of a request. In the extensions of every request if the layer
/// [exposes](crate::TimeoutLayer::expose_deadline) it.
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
pub struct Deadline(pub(crate) Arc<Exposed>);

/// The data from which a [`Deadline`] computes the remaining time.
#[derive(Debug)]
pub(crate) struct Exposed {
    pub(crate) limits: Limits,
    pub(crate) started: Instant,
    pub(crate) wait: ClientWait,
}

/// The time that a request has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeUsed {
    /// The time on the wall clock.
    pub(crate) wall: Duration,
    /// The part of `wall` for which the request has waited for its client.
    pub(crate) waited: Duration,
    /// Whether the request waits for its client now.
    pub(crate) awaits_client: bool,
}

/// The shortest interval at which the head deadline is checked while the request waits for its
/// client.
pub(crate) const MIN_RECHECK_INTERVAL: Duration = Duration::from_secs(1);

// === Deadline ===

impl Deadline {
    /// Returns the time until the response head must be ready, or until the whole response must
    /// have ended if that is less. The time until the head does not decrease while the request
    /// waits for its body. Returns zero if the deadline has passed.
    ///
    /// ```
    /// use palisade_timeout::{Deadline, RequestBody, TimeoutLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = TimeoutLayer::new(Duration::from_secs(30)).expose_deadline();
    /// let service = layer.layer(service_fn(async |mut request: Request<RequestBody<_>>| {
    ///     let deadline = request.extensions().get::<Deadline>().cloned().ok_or("no deadline")?;
    ///     let _ = request.body_mut().frame().await; // It arrives after 25 s.
    ///     assert_eq!(deadline.remaining().as_secs(), 30);
    ///     tokio::time::sleep(Duration::from_millis(9_500)).await;
    ///     assert_eq!(deadline.remaining().as_secs(), 20);
    ///     Ok::<_, BoxError>(Response::new(Full::<Bytes>::default()))
    /// }));
    /// let body = Pieces::new(1, 1_000).every(Duration::from_secs(25));
    /// assert_eq!(service.oneshot(Request::new(body)).await?.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn remaining(&self) -> Duration {
        let Exposed {
            limits,
            started,
            wait,
        } = &*self.0;
        let now = Instant::now();
        let wall = now.saturating_duration_since(*started);
        let head = limits
            .head
            .saturating_sub(wall.saturating_sub(wait.total(now)));
        limits
            .total
            .map_or(head, |total| head.min(total.saturating_sub(wall)))
    }
}

// === Exposed ===

impl Exposed {
    /// Starts to count a wait for the client.
    pub(crate) fn begin_wait(&self) {
        self.wait.start(self.wait.stamp(Instant::now()));
    }

    /// Ends the wait for the client.
    pub(crate) fn end_wait(&self) {
        self.wait.stop(self.wait.stamp(Instant::now()));
    }
}

// === Limits ===

impl Limits {
    /// Returns the violation of a request that has used this time, if a limit is exceeded.
    pub(crate) fn exceeded(self, time_used: TimeUsed) -> Option<Violation> {
        let TimeUsed {
            wall,
            waited,
            awaits_client,
        } = time_used;
        let phase = if awaits_client {
            Phase::RequestBody
        } else {
            Phase::Handler
        };
        let violation = |reason, limit, observed| {
            let (limit, observed) = (millis(limit), millis(observed));
            Some(Violation::new(
                Guard::Timeout,
                reason,
                phase,
                limit,
                observed,
            ))
        };
        if let Some(total) = self.total
            && wall >= total
        {
            return violation(Reason::TotalDeadline, total, wall);
        }
        let counted = wall.saturating_sub(waited);
        // While the request waits for its client, the client is slow and not the handler.
        if counted >= self.head && !awaits_client {
            return violation(Reason::Deadline, self.head, counted);
        }
        None
    }

    /// Returns the time after which a request that has used this time may exceed a limit. Never too
    /// long, except that it is at least [`MIN_RECHECK_INTERVAL`] until the head deadline while the
    /// request waits for its client.
    pub(crate) fn time_until_exceeded(self, time_used: TimeUsed) -> Duration {
        let TimeUsed {
            wall,
            waited,
            awaits_client,
        } = time_used;
        let head = self.head.saturating_sub(wall.saturating_sub(waited));
        let head = if awaits_client {
            head.max(MIN_RECHECK_INTERVAL)
        } else {
            head
        };
        self.total
            .map_or(head, |total| head.min(total.saturating_sub(wall)))
    }
}

/// Returns the whole milliseconds of `duration`, the unit of a [`Violation`].
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the instant `wait` after `now`, at most 30 years later, so that it can be represented.
pub(crate) fn instant_after(now: Instant, wait: Duration) -> Instant {
    const FAR_FUTURE: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    now.checked_add(wait.min(FAR_FUTURE)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MILLI: Duration = Duration::from_millis(1);

    proptest! {
        #[test]
        fn a_limit_is_exceeded_exactly_when_the_time_until_it_has_passed(
            head in 1u32..100, total in proptest::option::of(1u32..100),
            wall in 0u32..200, waited in 0u32..200,
        ) {
            let total = total.map(|total| MILLI * total);
            let limits = Limits { head: MILLI * head, total };
            let waited = MILLI * waited.min(wall);
            let time_used = |wall| TimeUsed { wall, waited, awaits_client: false };
            let wall = MILLI * wall;
            let left = limits.time_until_exceeded(time_used(wall));
            if let Some(violation) = limits.exceeded(time_used(wall)) {
                prop_assert!(violation.observed >= violation.limit && left.is_zero());
            } else {
                prop_assert!(limits.exceeded(time_used(wall + left)).is_some());
                prop_assert!(left.is_zero() || limits.exceeded(time_used(wall + left - MILLI)).is_none());
            }
        }

        #[test]
        fn the_head_limit_is_not_exceeded_while_waiting_for_the_client(
            head in 1u32..100, wall in 0u32..200, waited in 0u32..200,
        ) {
            let limits = Limits::head(MILLI * head);
            let (wall, waited) = (MILLI * wall, MILLI * waited.min(wall));
            let time_used = TimeUsed { wall, waited, awaits_client: true };
            prop_assert!(limits.exceeded(time_used).is_none());
            let left = limits.time_until_exceeded(time_used);
            prop_assert!(left >= MIN_RECHECK_INTERVAL.min(limits.head));
        }
    }

    #[test]
    fn the_longest_durations_do_not_overflow() {
        let now = Instant::now();
        assert!(
            instant_after(now, Duration::MAX) > now + Duration::from_secs(29 * 365 * 24 * 3600)
        );
        let limits = Limits {
            head: Duration::MAX,
            total: Some(Duration::MAX),
        };
        let time_used = TimeUsed {
            wall: Duration::ZERO,
            waited: Duration::MAX,
            awaits_client: false,
        };
        assert!(limits.exceeded(time_used).is_none());
        assert_eq!(limits.time_until_exceeded(time_used), Duration::MAX);
    }
}
