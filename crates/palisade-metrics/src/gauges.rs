//! The gauges of all guards, read and summed when metrics are scraped.

use crate::series::{GAUGE_COUNT, GUARD_COUNT};
use palisade_core::{Gauge, GaugeSource, Guard};
use parking_lot::Mutex;
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The largest number of live sources. Further sources are ignored and counted.
pub(crate) const MAX_SOURCES: usize = 1024;

/// Marks in `last_limits` that the limit has not been changed.
const NO_LIMIT: u64 = u64::MAX;

/// The gauge sources of all guards, and the totals of dropped sources.
pub(crate) struct GaugeRegistry {
    // Locked by registration and sampling, never by a request.
    sources: Mutex<Sources>,
    ignored: AtomicU64,
    last_limits: [AtomicU64; GUARD_COUNT],
    limit_changes: [AtomicU64; GUARD_COUNT],
}

#[derive(Default)]
struct Sources {
    live: Vec<Source>,
    /// The totals of dropped sources, so that no sum of totals ever falls. A gauge that has ever
    /// been reported has a value here, so that it stays reported.
    dropped: GaugeSums,
}

struct Source {
    guard: Guard,
    gauges: Weak<dyn GaugeSource>,
    /// The totals at the last sample.
    totals: [u64; GAUGE_COUNT],
}

/// A value per guard and gauge; `None` if none has been reported.
#[derive(Clone, Copy)]
struct GaugeSums([[Option<u64>; GAUGE_COUNT]; GUARD_COUNT]);

// === GaugeRegistry ===

impl GaugeRegistry {
    pub(crate) fn new() -> Self {
        Self {
            sources: Mutex::default(),
            ignored: AtomicU64::new(0),
            last_limits: [const { AtomicU64::new(NO_LIMIT) }; GUARD_COUNT],
            limit_changes: [const { AtomicU64::new(0) }; GUARD_COUNT],
        }
    }

    /// Samples `gauges` until they are dropped. Registering the same source again has no effect.
    pub(crate) fn register(&self, gauges: Weak<dyn GaugeSource>) {
        let Some(source) = gauges.upgrade() else {
            return;
        };
        let guard = source.guard();
        let mut sources = self.sources.lock();
        sources.remove_dropped();
        if sources.live.iter().any(|one| one.gauges.ptr_eq(&gauges)) {
            return;
        }
        if sources.live.len() >= MAX_SOURCES {
            self.ignored.fetch_add(1, Relaxed);
            return;
        }
        sources.live.push(Source {
            guard,
            gauges,
            totals: [0; GAUGE_COUNT],
        });
    }

    pub(crate) fn record_limit_change(&self, guard: Guard, limit: u64) {
        let index = guard as usize;
        if let (Some(last), Some(changes)) =
            (self.last_limits.get(index), self.limit_changes.get(index))
        {
            last.store(limit, Relaxed);
            changes.fetch_add(1, Relaxed);
        }
    }

    /// Returns how often the limit of each guard was changed, for guards with at least one change.
    pub(crate) fn limit_changes(&self) -> impl Iterator<Item = (Guard, u64)> {
        let changes = self
            .limit_changes
            .iter()
            .map(|changes| changes.load(Relaxed));
        Guard::ALL
            .iter()
            .copied()
            .zip(changes)
            .filter(|(_, changes)| *changes > 0)
    }

    pub(crate) fn ignored(&self) -> u64 {
        self.ignored.load(Relaxed)
    }

    /// Returns each gauge that a guard reports or has reported, summed over all instances of the
    /// guard. The values of one gauge stand together.
    pub(crate) fn sample(&self) -> Vec<(Guard, Gauge, u64)> {
        // Keeps the sampled sources alive until the lock is released: if this is the last handle of
        // one, its drop must not run under the lock.
        let mut keep_alive: Vec<Arc<dyn GaugeSource>> = Vec::new();
        let mut sums = self.sources.lock().sample(&mut keep_alive);
        for (guard, last) in Guard::ALL.iter().zip(&self.last_limits) {
            let last = last.load(Relaxed);
            // A guard that reports no limit has the one that it was last given.
            if last != NO_LIMIT && sums.get(*guard, Gauge::Limit).is_none() {
                sums.add(*guard, Gauge::Limit, last);
            }
        }
        let mut samples = Vec::new();
        for gauge in Gauge::ALL {
            for guard in Guard::ALL {
                if let Some(value) = sums.get(*guard, *gauge) {
                    samples.push((*guard, *gauge, value));
                }
            }
        }
        samples
    }
}

impl fmt::Debug for GaugeRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = self.sources.try_lock().map(|sources| sources.live.len());
        f.debug_struct("GaugeRegistry")
            .field("live", &live)
            .finish_non_exhaustive()
    }
}

// === Sources ===

impl Sources {
    /// Removes dropped sources, and keeps their totals.
    fn remove_dropped(&mut self) {
        let Self { live, dropped } = self;
        live.retain(|source| {
            let is_alive = source.gauges.strong_count() > 0;
            if !is_alive {
                dropped.add_totals(source);
            }
            is_alive
        });
    }

    fn sample(&mut self, keep_alive: &mut Vec<Arc<dyn GaugeSource>>) -> GaugeSums {
        self.remove_dropped();
        let Self { live, dropped } = self;
        let mut sums = *dropped;
        for source in live {
            let Some(gauges) = source.gauges.upgrade() else {
                sums.add_totals(source); // Dropped since `remove_dropped`.
                continue;
            };
            let mut reported = GaugeSums::default();
            // A source may be user code. If it panics, only the gauges that it has not reported yet
            // are missing, not those of other guards.
            let mut visit = |gauge, value| reported.add(source.guard, gauge, value);
            let _ = catch_unwind(AssertUnwindSafe(|| gauges.sample(&mut visit)));
            keep_alive.push(gauges);
            for (gauge, total) in Gauge::ALL.iter().zip(&mut source.totals) {
                let Some(value) = reported.get(source.guard, *gauge) else {
                    continue;
                };
                sums.add(source.guard, *gauge, value);
                dropped.add(source.guard, *gauge, 0);
                if gauge.is_total() {
                    *total = value;
                }
            }
        }
        sums
    }
}

// === GaugeSums ===

impl Default for GaugeSums {
    fn default() -> Self {
        Self([[None; GAUGE_COUNT]; GUARD_COUNT])
    }
}

impl GaugeSums {
    fn get(&self, guard: Guard, gauge: Gauge) -> Option<u64> {
        *self.0.get(guard as usize)?.get(gauge as usize)?
    }

    fn add(&mut self, guard: Guard, gauge: Gauge, value: u64) {
        let sum = self
            .0
            .get_mut(guard as usize)
            .and_then(|sums| sums.get_mut(gauge as usize));
        if let Some(sum) = sum {
            *sum = Some(sum.unwrap_or(0).saturating_add(value));
        }
    }

    fn add_totals(&mut self, source: &Source) {
        for (gauge, total) in Gauge::ALL.iter().zip(source.totals) {
            if total > 0 {
                self.add(source.guard, *gauge, total);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct FakeLimiter {
        working: AtomicU64,
        admitted: AtomicU64,
    }

    impl FakeLimiter {
        fn new(working: u64, admitted: u64) -> Arc<Self> {
            Arc::new(Self {
                working: working.into(),
                admitted: admitted.into(),
            })
        }
    }

    impl GaugeSource for FakeLimiter {
        fn guard(&self) -> Guard {
            Guard::ConcurrencyLimit
        }

        fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
            visit(Gauge::Working, self.working.load(Relaxed));
            visit(Gauge::Admitted, self.admitted.load(Relaxed));
        }
    }

    fn register(registry: &GaugeRegistry, limiter: &Arc<FakeLimiter>) {
        let source = Arc::downgrade(limiter);
        registry.register(source);
    }

    fn value(registry: &GaugeRegistry, gauge: Gauge) -> Option<u64> {
        let mut samples = registry.sample().into_iter();
        let (_, _, value) = samples.find(|(_, sampled, _)| *sampled == gauge)?;
        Some(value)
    }

    #[test]
    fn instances_of_one_guard_are_summed() {
        let registry = GaugeRegistry::new();
        assert_eq!(registry.sample(), []);
        let (one, other) = (FakeLimiter::new(3, 10), FakeLimiter::new(4, 20));
        register(&registry, &one);
        register(&registry, &other);
        assert_eq!(value(&registry, Gauge::Working), Some(7));
        assert_eq!(value(&registry, Gauge::Admitted), Some(30));
        assert_eq!(value(&registry, Gauge::Queued), None);
    }

    #[test]
    fn a_panic_in_one_source_leaves_the_gauges_of_the_others() {
        struct Panics;

        impl GaugeSource for Panics {
            fn guard(&self) -> Guard {
                Guard::RateLimit
            }

            fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
                visit(Gauge::Keys, 5);
                panic!("sample");
            }
        }

        let registry = GaugeRegistry::new();
        let panics = Arc::new(Panics);
        let source = Arc::downgrade(&panics);
        registry.register(source);
        let limiter = FakeLimiter::new(3, 10);
        register(&registry, &limiter);
        assert_eq!(value(&registry, Gauge::Keys), Some(5));
        assert_eq!(value(&registry, Gauge::Working), Some(3));
    }

    #[test]
    fn a_source_that_is_registered_twice_counts_once() {
        let registry = GaugeRegistry::new();
        let limiter = FakeLimiter::new(3, 10);
        register(&registry, &limiter);
        register(&registry, &limiter);
        assert_eq!(value(&registry, Gauge::Working), Some(3));
    }

    #[test]
    fn when_a_guard_is_dropped_its_totals_stay_and_its_other_gauges_go() {
        let registry = GaugeRegistry::new();
        let (one, other) = (FakeLimiter::new(3, 10), FakeLimiter::new(4, 20));
        register(&registry, &one);
        register(&registry, &other);
        registry.sample();
        drop(one);
        for _ in 0..2 {
            assert_eq!(value(&registry, Gauge::Working), Some(4));
            assert_eq!(value(&registry, Gauge::Admitted), Some(30));
        }
        other.admitted.store(21, Relaxed);
        assert_eq!(value(&registry, Gauge::Admitted), Some(31));
        drop(other);
        assert_eq!(value(&registry, Gauge::Working), Some(0));
        assert_eq!(value(&registry, Gauge::Admitted), Some(31));
    }

    #[test]
    fn dropped_sources_are_removed_and_the_registry_keeps_none_alive() {
        let registry = GaugeRegistry::new();
        for _ in 0..10 * MAX_SOURCES {
            let limiter = FakeLimiter::new(1, 1);
            register(&registry, &limiter);
            assert_eq!(Arc::strong_count(&limiter), 1);
        }
        let sources = registry.sources.lock();
        assert!(sources.live.len() <= 1);
        assert!(sources.live.capacity() <= 8);
        assert_eq!(registry.ignored(), 0);
    }

    #[test]
    fn live_sources_above_the_maximum_are_ignored_and_counted() {
        let registry = GaugeRegistry::new();
        let mut limiters: Vec<_> = (0..MAX_SOURCES + 7)
            .map(|_| FakeLimiter::new(1, 0))
            .collect();
        limiters
            .iter()
            .for_each(|limiter| register(&registry, limiter));
        assert_eq!(registry.ignored(), 7);
        assert_eq!(value(&registry, Gauge::Working), Some(MAX_SOURCES as u64));
        limiters.clear();
        // A source that is registered after they are dropped finds room.
        let late = FakeLimiter::new(2, 0);
        register(&registry, &late);
        assert_eq!(value(&registry, Gauge::Working), Some(2));
    }

    #[test]
    fn a_source_that_is_already_dropped_is_not_registered() {
        let registry = GaugeRegistry::new();
        let limiter = FakeLimiter::new(1, 1);
        let source = Arc::downgrade(&limiter);
        drop(limiter);
        registry.register(source);
        assert_eq!(registry.sample(), []);
    }

    #[test]
    fn without_a_limit_gauge_the_last_recorded_limit_is_reported() {
        let registry = GaugeRegistry::new();
        registry.record_limit_change(Guard::ConcurrencyLimit, 100);
        registry.record_limit_change(Guard::ConcurrencyLimit, 50);
        assert_eq!(
            registry.sample(),
            [(Guard::ConcurrencyLimit, Gauge::Limit, 50)]
        );
        assert!(registry.limit_changes().eq([(Guard::ConcurrencyLimit, 2)]));
    }

    #[test]
    fn sums_saturate() {
        let registry = GaugeRegistry::new();
        let limiters = [
            FakeLimiter::new(u64::MAX, u64::MAX),
            FakeLimiter::new(u64::MAX, u64::MAX),
        ];
        limiters
            .iter()
            .for_each(|limiter| register(&registry, limiter));
        assert_eq!(value(&registry, Gauge::Working), Some(u64::MAX));
        drop(limiters);
        assert_eq!(value(&registry, Gauge::Admitted), Some(u64::MAX));
    }
}
