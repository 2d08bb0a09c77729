//! How long a request has waited for its client.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// A clock that runs while the handler waits for bytes of its client.
///
/// One atomic word and no lock, because it starts and stops with every wait of an upload. The
/// request body starts it; the request body or the response future stops it.
#[derive(Debug, Default)]
pub struct ClientWait {
    /// [`Stamp`]s count from here. Set by the first of them.
    origin: OnceLock<Instant>,
    /// Stopped: the time waited so far. Running: [`RUNS`], and the stamp at which the present
    /// wait would have begun if all waiting had been in one piece.
    word: AtomicU64,
}

/// Nanoseconds since the first stamp of a request, at most 292 years. Instants cost four times as
/// much to compute with.
pub type Stamp = u64;

const RUNS: u64 = 1 << 63;

impl ClientWait {
    /// `now` as a stamp.
    #[inline]
    pub fn stamp(&self, now: Instant) -> Stamp {
        let since = now.saturating_duration_since(*self.origin.get_or_init(|| now));
        nanos(since).min(RUNS - 1)
    }

    /// The instant of a stamp, or one that is never reached.
    pub(crate) fn instant(&self, stamp: Stamp) -> Option<Instant> {
        self.origin.get()?.checked_add(Duration::from_nanos(stamp))
    }

    /// Starts the clock at `now`, unless it runs.
    #[inline]
    pub fn begin(&self, now: Stamp) {
        let word = self.word.load(Relaxed);
        if word & RUNS == 0 {
            self.word.store(RUNS | now.saturating_sub(word), Relaxed);
        }
    }

    /// Stops the clock at `now`, if it runs.
    #[inline]
    pub fn end(&self, now: Stamp) {
        let word = self.word.load(Relaxed);
        if word & RUNS != 0 {
            let waited = now.saturating_sub(word & !RUNS);
            // A failure means that the other side has stopped it in this moment.
            let _ = self.word.compare_exchange(word, waited, Relaxed, Relaxed);
        }
    }

    /// Whether the clock runs.
    #[inline]
    pub fn runs(&self) -> bool {
        self.word.load(Relaxed) & RUNS != 0
    }

    /// The time waited until `now`.
    pub fn total(&self, now: Instant) -> Duration {
        let word = self.word.load(Relaxed);
        let waited = match word & RUNS {
            0 => word,
            _ => self.stamp(now).saturating_sub(word & !RUNS),
        };
        Duration::from_nanos(waited)
    }
}

/// Whole nanoseconds, at most 584 years.
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
        fn the_clock_adds_up_exactly_the_time_between_begin_and_end(
            steps in proptest::collection::vec((0u64..5_000, any::<bool>()), 0..50),
        ) {
            let (clock, mut now) = (ClientWait::default(), Instant::now());
            let (mut waited, mut runs) = (Duration::ZERO, false);
            for (millis, begins) in steps {
                let step = Duration::from_millis(millis);
                now += step;
                if runs {
                    waited += step;
                }
                let stamp = clock.stamp(now);
                if begins { clock.begin(stamp) } else { clock.end(stamp) }
                runs = begins;
                prop_assert_eq!((clock.runs(), clock.total(now)), (runs, waited));
                prop_assert_eq!(clock.instant(stamp), Some(now));
            }
        }
    }
}
