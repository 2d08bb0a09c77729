//! The time for which a request has waited for its client.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// A stopwatch that runs while the handler waits for bytes from its client.
///
/// One atomic word and no lock, because it starts and stops with every wait of an upload. The
/// request body starts it. The request body or the response future stops it.
#[derive(Debug, Default)]
pub struct ClientWait {
    /// The instant of stamp 0. Set when the first [`Stamp`] is taken.
    origin: OnceLock<Instant>,
    /// While stopped, the total time waited in nanoseconds. While running, [`RUNNING_BIT`] and the
    /// start of the current wait moved back by the earlier total.
    word: AtomicU64,
}

/// Nanoseconds since the first stamp of a request, at most 292 years. Arithmetic on instants costs
/// four times as much.
pub type Stamp = u64;

/// Set in [`ClientWait::word`] while the stopwatch runs.
const RUNNING_BIT: u64 = 1 << 63;

impl ClientWait {
    /// Converts `now` to a stamp.
    #[inline]
    pub fn stamp(&self, now: Instant) -> Stamp {
        let since = now.saturating_duration_since(*self.origin.get_or_init(|| now));
        nanos(since).min(RUNNING_BIT - 1)
    }

    /// Converts `stamp` to an instant. Returns `None` if no stamp has been taken yet, or if the
    /// instant cannot be represented.
    pub(crate) fn instant(&self, stamp: Stamp) -> Option<Instant> {
        self.origin.get()?.checked_add(Duration::from_nanos(stamp))
    }

    /// Starts the stopwatch at `now`. Does nothing if it is running.
    #[inline]
    pub fn start(&self, now: Stamp) {
        let word = self.word.load(Relaxed);
        if word & RUNNING_BIT == 0 {
            self.word
                .store(RUNNING_BIT | now.saturating_sub(word), Relaxed);
        }
    }

    /// Stops the stopwatch at `now`. Does nothing if it is stopped.
    #[inline]
    pub fn stop(&self, now: Stamp) {
        let word = self.word.load(Relaxed);
        if word & RUNNING_BIT != 0 {
            let waited = now.saturating_sub(word & !RUNNING_BIT);
            // A failure means that the other side of the request has stopped it concurrently.
            let _ = self.word.compare_exchange(word, waited, Relaxed, Relaxed);
        }
    }

    /// Returns whether the stopwatch is running.
    #[inline]
    pub fn is_running(&self) -> bool {
        self.word.load(Relaxed) & RUNNING_BIT != 0
    }

    /// Returns the total time waited until `now`.
    ///
    /// ```
    /// use palisade_guard::ClientWait;
    /// use std::time::Duration;
    /// use tokio::time::Instant;
    ///
    /// let (wait, head) = (ClientWait::default(), Instant::now());
    /// let after = |seconds| head + Duration::from_secs(seconds);
    /// wait.stamp(head);
    /// wait.start(wait.stamp(after(2)));
    /// wait.stop(wait.stamp(after(5)));
    /// wait.start(wait.stamp(after(8)));
    /// assert_eq!(wait.total(after(9)), Duration::from_secs(4));
    /// assert!(wait.is_running());
    /// ```
    pub fn total(&self, now: Instant) -> Duration {
        let word = self.word.load(Relaxed);
        let waited = match word & RUNNING_BIT {
            0 => word,
            _ => self.stamp(now).saturating_sub(word & !RUNNING_BIT),
        };
        Duration::from_nanos(waited)
    }
}

/// Returns the nanoseconds of `duration`, at most 584 years.
#[inline]
fn nanos(duration: Duration) -> u64 {
    let seconds = duration.as_secs().saturating_mul(1_000_000_000);
    seconds.saturating_add(u64::from(duration.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_total_is_exactly_the_time_between_start_and_stop(
            steps in proptest::collection::vec((0u64..5_000, any::<bool>()), 0..50),
        ) {
            let (clock, mut now) = (ClientWait::default(), Instant::now());
            let (mut waited, mut running) = (Duration::ZERO, false);
            for (millis, starts) in steps {
                let step = Duration::from_millis(millis);
                now += step;
                if running {
                    waited += step;
                }
                let stamp = clock.stamp(now);
                if starts { clock.start(stamp) } else { clock.stop(stamp) }
                running = starts;
                prop_assert_eq!((clock.is_running(), clock.total(now)), (running, waited));
                prop_assert_eq!(clock.instant(stamp), Some(now));
            }
        }
    }
}
