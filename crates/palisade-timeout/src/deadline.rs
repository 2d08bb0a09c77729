//! When the time of a request is over.

use crate::Limits;
use palisade_core::{Guard, Phase, Reason, Violation};
use palisade_guard::ClientWait;
use std::{sync::Arc, time::Duration};
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
pub struct Deadline(pub(crate) Arc<Exposed>);

/// What a [`Deadline`] is worked out from.
#[derive(Debug)]
pub(crate) struct Exposed {
    pub(crate) limits: Limits,
    pub(crate) started: Instant,
    pub(crate) wait: ClientWait,
}

/// How much time a request has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// On the wall clock.
    pub(crate) wall: Duration,
    /// Of that, in wait for the client.
    pub(crate) waited: Duration,
    /// The client is awaited now.
    pub(crate) awaits_client: bool,
}

/// While the client is awaited, the time of a request is not looked at more often than this.
pub(crate) const MIN_LOOK: Duration = Duration::from_secs(1);

// === Deadline ===

impl Deadline {
    /// The time left until the response head must be ready, or the whole response if that is
    /// less. Stands still while the request body is waited for. Zero if the time is over.
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
    /// The client is awaited from now on.
    pub(crate) fn begin_wait(&self) {
        self.wait.start(self.wait.stamp(Instant::now()));
    }

    /// The client is no longer awaited.
    pub(crate) fn end_wait(&self) {
        self.wait.stop(self.wait.stamp(Instant::now()));
    }
}

// === Limits ===

impl Limits {
    /// The rule that a request breaks which has used so much time.
    pub(crate) fn exceeded(self, used: Used) -> Option<Violation> {
        let Used {
            wall,
            waited,
            awaits_client,
        } = used;
        let phase = if awaits_client {
            Phase::RequestBody
        } else {
            Phase::Handler
        };
        let over = |reason, limit, observed| {
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
            return over(Reason::TotalDeadline, total, wall);
        }
        let counted = wall.saturating_sub(waited);
        // A client that is awaited is slow, not the handler.
        if counted >= self.head && !awaits_client {
            return over(Reason::Deadline, self.head, counted);
        }
        None
    }

    /// How long until a request that has used so much time may exceed a limit: not later than it
    /// does, but for [`MIN_LOOK`] where its client is awaited.
    pub(crate) fn left(self, used: Used) -> Duration {
        let Used {
            wall,
            waited,
            awaits_client,
        } = used;
        let head = self.head.saturating_sub(wall.saturating_sub(waited));
        let head = if awaits_client {
            head.max(MIN_LOOK)
        } else {
            head
        };
        self.total
            .map_or(head, |total| head.min(total.saturating_sub(wall)))
    }
}

/// Whole milliseconds, as [`Violation`] has them.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `wait` after `now`, or an instant that is never reached if there is no such instant.
pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    now.checked_add(wait.min(FAR)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    proptest! {
        #[test]
        fn a_limit_is_exceeded_once_what_is_left_has_passed_and_not_before(
            head in 1u32..100, total in proptest::option::of(1u32..100),
            wall in 0u32..200, waited in 0u32..200,
        ) {
            let limits = Limits { head: MS * head, total: total.map(|total| MS * total) };
            let waited = MS * waited.min(wall);
            let used = |wall| Used { wall, waited, awaits_client: false };
            let (wall, left) = (MS * wall, limits.left(used(MS * wall)));
            if let Some(violation) = limits.exceeded(used(wall)) {
                prop_assert!(violation.observed >= violation.limit && left.is_zero());
            } else {
                prop_assert!(limits.exceeded(used(wall + left)).is_some());
                prop_assert!(left.is_zero() || limits.exceeded(used(wall + left - MS)).is_none());
            }
        }

        #[test]
        fn an_awaited_client_does_not_exceed_the_head_limit(
            head in 1u32..100, wall in 0u32..200, waited in 0u32..200,
        ) {
            let limits = Limits::head(MS * head);
            let used = Used { wall: MS * wall, waited: MS * waited.min(wall), awaits_client: true };
            prop_assert!(limits.exceeded(used).is_none());
            prop_assert!(limits.left(used) >= MIN_LOOK.min(limits.head));
        }
    }

    #[test]
    fn no_wait_is_too_long_to_reckon_with() {
        let now = Instant::now();
        assert!(after(now, Duration::MAX) > now + Duration::from_secs(29 * 365 * 24 * 3600));
        let limits = Limits {
            head: Duration::MAX,
            total: Some(Duration::MAX),
        };
        let used = Used {
            wall: Duration::ZERO,
            waited: Duration::MAX,
            awaits_client: false,
        };
        assert!(limits.exceeded(used).is_none());
        assert_eq!(limits.left(used), Duration::MAX);
    }
}
