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
    /// Nanoseconds of the word count from here. Set by the first wait.
    origin: OnceLock<Instant>,
    /// Stopped: the time waited so far. Running: [`RUNS`], and the instant at which the present
    /// wait would have begun if all waiting had been in one piece.
    word: AtomicU64,
}

const RUNS: u64 = 1 << 63;

impl ClientWait {
    /// Starts the clock at `now`, unless it runs.
    #[inline]
    pub fn begin(&self, now: Instant) {
        let word = self.word.load(Relaxed);
        if word & RUNS == 0 {
            let since = self.nanos(now).saturating_sub(word);
            self.word.store(RUNS | since, Relaxed);
        }
    }

    /// Stops the clock at `now`, if it runs.
    #[inline]
    pub fn end(&self, now: Instant) {
        let word = self.word.load(Relaxed);
        if word & RUNS != 0 {
            let waited = self.nanos(now).saturating_sub(word & !RUNS);
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
        let nanos =
            if word & RUNS == 0 { word } else { self.nanos(now).saturating_sub(word & !RUNS) };
        Duration::from_nanos(nanos)
    }

    /// Nanoseconds from the first wait to `now`, at most 292 years.
    #[inline]
    fn nanos(&self, now: Instant) -> u64 {
        let origin = *self.origin.get_or_init(|| now);
        let nanos = now.saturating_duration_since(origin).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX).min(RUNS - 1)
    }
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
                if begins { clock.begin(now) } else { clock.end(now) }
                runs = begins;
                prop_assert_eq!((clock.runs(), clock.total(now)), (runs, waited));
            }
        }
    }
}
