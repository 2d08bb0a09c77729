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
    ///
    /// ```
    /// use palisade_guard::Clock;
    /// use std::time::Duration;
    /// use tokio::time::Instant;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let (epoch, clock) = (Instant::now(), Clock::new());
    /// assert_eq!(clock.micros(epoch + Duration::from_secs(60)), 60_000_000);
    /// tokio::time::advance(Duration::from_secs(60)).await;
    /// assert_eq!(clock.now(), 60_000_000);
    /// assert_eq!(Clock::new().micros(epoch), 0);
    /// # }
    /// ```
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
