//! Instants as small numbers.

use std::time::Duration;
use tokio::time::Instant;

/// Turns instants into microseconds since it was made, which is what a [`Table`](crate::Table)
/// reckons in.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch: Instant,
}

impl Clock {
    /// Starts at zero now.
    pub fn new() -> Self {
        Self {
            epoch: Instant::now(),
        }
    }

    /// Microseconds from the epoch to `instant`; 0 for anything earlier.
    #[inline]
    pub fn micros(&self, instant: Instant) -> u64 {
        micros(instant.saturating_duration_since(self.epoch))
    }

    /// Microseconds from the epoch to now: one clock read.
    #[inline]
    pub fn now(&self) -> u64 {
        self.micros(Instant::now())
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// Whole microseconds, without the 128-bit division of `Duration::as_micros`.
fn micros(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_mul(1_000_000)
        .saturating_add(u64::from(duration.subsec_micros()))
}
