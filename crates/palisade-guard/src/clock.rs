//! Conversion of instants to integers.

use std::time::Duration;
use tokio::time::Instant;

/// Converts instants to microseconds since the clock was created, the unit of a
/// [`Table`](crate::Table).
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch: Instant,
}

impl Clock {
    /// Creates a clock with the epoch now.
    pub fn new() -> Self {
        Self {
            epoch: Instant::now(),
        }
    }

    /// Returns the microseconds from the epoch to `instant`, or 0 if `instant` is earlier.
    #[inline]
    pub fn micros(&self, instant: Instant) -> u64 {
        micros(instant.saturating_duration_since(self.epoch))
    }

    /// Returns the microseconds from the epoch to now. Reads the clock once.
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

/// Returns the whole microseconds of `duration`, without the 128-bit arithmetic of
/// `Duration::as_micros`.
fn micros(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_mul(1_000_000)
        .saturating_add(u64::from(duration.subsec_micros()))
}
