//! The numbers that guards keep, added up when somebody looks.

use crate::series::{GUARDS, LEVELS};
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

/// As many living guards are watched; more are ignored and counted.
pub(crate) const MAX_WATCHED: usize = 1024;

/// Says that no limit was changed yet.
const NEVER: u64 = u64::MAX;

/// The guards that said where their levels are, and what those that are gone have left behind.
pub(crate) struct Watched {
    // Taken by who registers or looks, never by a request.
    guards: Mutex<Guards>,
    ignored: AtomicU64,
    limits: [AtomicU64; GUARDS],
    limit_changes: [AtomicU64; GUARDS],
}

#[derive(Default)]
struct Guards {
    living: Vec<One>,
    /// The totals of those that are gone, so that no sum of totals ever falls. A level that was
    /// ever shown has a number here, so that it is shown for ever after.
    gone: Sums,
}

struct One {
    guard: Guard,
    levels: Weak<dyn GaugeSource>,
    /// Its totals when somebody last looked.
    totals: [u64; LEVELS],
}

/// A number per guard and level; `None` where nobody has shown one.
#[derive(Clone, Copy, Default)]
struct Sums([[Option<u64>; LEVELS]; GUARDS]);

// === Watched ===

impl Watched {
    pub(crate) fn new() -> Self {
        Self {
            guards: Mutex::default(),
            ignored: AtomicU64::new(0),
            limits: [const { AtomicU64::new(NEVER) }; GUARDS],
            limit_changes: [const { AtomicU64::new(0) }; GUARDS],
        }
    }

    /// Watches `levels` for as long as they live. A second time for the same changes nothing.
    pub(crate) fn register(&self, levels: Weak<dyn GaugeSource>) {
        let Some(alive) = levels.upgrade() else {
            return;
        };
        let guard = alive.guard();
        let mut guards = self.guards.lock();
        guards.bury_the_dead();
        if guards.living.iter().any(|one| one.levels.ptr_eq(&levels)) {
            return;
        }
        if guards.living.len() >= MAX_WATCHED {
            self.ignored.fetch_add(1, Relaxed);
            return;
        }
        guards.living.push(One {
            guard,
            levels,
            totals: [0; LEVELS],
        });
    }

    pub(crate) fn limit_changed(&self, guard: Guard, limit: u64) {
        let place = guard as usize;
        if let (Some(last), Some(changes)) = (self.limits.get(place), self.limit_changes.get(place))
        {
            last.store(limit, Relaxed);
            changes.fetch_add(1, Relaxed);
        }
    }

    /// How often the limit of each guard was changed, for those where it was.
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

    /// Each level that a guard shows or has shown, summed over all its instances; those of one
    /// level together.
    pub(crate) fn sample(&self) -> Vec<(Guard, Gauge, u64)> {
        // If we turn out to hold a guard's last handle, it ends after the lock is given back.
        let mut held: Vec<Arc<dyn GaugeSource>> = Vec::new();
        let mut sums = self.guards.lock().sample(&mut held);
        for (guard, last) in Guard::ALL.iter().zip(&self.limits) {
            let last = last.load(Relaxed);
            // A guard that shows no limit of its own has the one that it was last given.
            if last != NEVER && sums.get(*guard, Gauge::Limit).is_none() {
                sums.add(*guard, Gauge::Limit, last);
            }
        }
        let levels = Gauge::ALL.iter().copied();
        levels
            .flat_map(|level| {
                let of = move |guard| Some((guard, level, sums.get(guard, level)?));
                Guard::ALL.iter().copied().filter_map(of)
            })
            .collect()
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let watched = self.guards.try_lock().map(|guards| guards.living.len());
        f.debug_struct("Watched")
            .field("guards", &watched)
            .finish_non_exhaustive()
    }
}

// === Guards ===

impl Guards {
    /// Forgets those that are gone, all but their totals.
    fn bury_the_dead(&mut self) {
        let Self { living, gone } = self;
        living.retain(|one| {
            let is_alive = one.levels.strong_count() > 0;
            if !is_alive {
                gone.add_totals(one);
            }
            is_alive
        });
    }

    fn sample(&mut self, held: &mut Vec<Arc<dyn GaugeSource>>) -> Sums {
        self.bury_the_dead();
        let Self { living, gone } = self;
        let mut sums = *gone;
        for one in living {
            let Some(levels) = one.levels.upgrade() else {
                sums.add_totals(one); // It went this moment.
                continue;
            };
            let mut seen = Sums::default();
            // GaugeSource may be a user's: a panic of one leaves out what it has not shown yet, not the
            // levels of all other guards.
            let mut visit = |level, value| seen.add(one.guard, level, value);
            let _ = catch_unwind(AssertUnwindSafe(|| levels.sample(&mut visit)));
            held.push(levels);
            for (level, last) in Gauge::ALL.iter().zip(&mut one.totals) {
                let Some(value) = seen.get(one.guard, *level) else {
                    continue;
                };
                sums.add(one.guard, *level, value);
                gone.add(one.guard, *level, 0);
                if level.is_total() {
                    *last = value;
                }
            }
        }
        sums
    }
}

// === Sums ===

impl Sums {
    fn get(&self, guard: Guard, level: Gauge) -> Option<u64> {
        *self.0.get(guard as usize)?.get(level as usize)?
    }

    fn add(&mut self, guard: Guard, level: Gauge, value: u64) {
        let sum = self
            .0
            .get_mut(guard as usize)
            .and_then(|sums| sums.get_mut(level as usize));
        if let Some(sum) = sum {
            *sum = Some(sum.unwrap_or(0).saturating_add(value));
        }
    }

    fn add_totals(&mut self, one: &One) {
        for (level, total) in Gauge::ALL
            .iter()
            .zip(one.totals)
            .filter(|(_, total)| *total > 0)
        {
            self.add(one.guard, *level, total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Slots {
        working: AtomicU64,
        admitted: AtomicU64,
    }

    impl Slots {
        fn new(working: u64, admitted: u64) -> Arc<Self> {
            Arc::new(Self {
                working: working.into(),
                admitted: admitted.into(),
            })
        }
    }

    impl GaugeSource for Slots {
        fn guard(&self) -> Guard {
            Guard::ConcurrencyLimit
        }

        fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
            visit(Gauge::Working, self.working.load(Relaxed));
            visit(Gauge::Admitted, self.admitted.load(Relaxed));
        }
    }

    fn register(watched: &Watched, slots: &Arc<Slots>) {
        let levels = Arc::downgrade(slots);
        watched.register(levels);
    }

    fn level(watched: &Watched, level: Gauge) -> Option<u64> {
        let found = watched.sample().into_iter().find(|(_, of, _)| *of == level);
        found.map(|(_, _, value)| value)
    }

    #[test]
    fn instances_of_one_guard_are_added_up() {
        let watched = Watched::new();
        assert_eq!(watched.sample(), []);
        let (one, other) = (Slots::new(3, 10), Slots::new(4, 20));
        register(&watched, &one);
        register(&watched, &other);
        assert_eq!(level(&watched, Gauge::Working), Some(7));
        assert_eq!(level(&watched, Gauge::Admitted), Some(30));
        assert_eq!(level(&watched, Gauge::Queued), None);
    }

    #[test]
    fn a_panic_in_one_sample_leaves_the_levels_of_the_others() {
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

        let watched = Watched::new();
        let panics = Arc::new(Panics);
        let same = Arc::downgrade(&panics);
        watched.register(same);
        let slots = Slots::new(3, 10);
        register(&watched, &slots);
        assert_eq!(level(&watched, Gauge::Keys), Some(5));
        assert_eq!(level(&watched, Gauge::Working), Some(3));
    }

    #[test]
    fn one_instance_counts_once_however_often_it_is_registered() {
        let watched = Watched::new();
        let slots = Slots::new(3, 10);
        register(&watched, &slots);
        register(&watched, &slots);
        assert_eq!(level(&watched, Gauge::Working), Some(3));
    }

    #[test]
    fn a_total_does_not_fall_when_its_guard_goes_and_a_gauge_does() {
        let watched = Watched::new();
        let (one, other) = (Slots::new(3, 10), Slots::new(4, 20));
        register(&watched, &one);
        register(&watched, &other);
        watched.sample();
        drop(one);
        for _ in 0..2 {
            assert_eq!(level(&watched, Gauge::Working), Some(4));
            assert_eq!(level(&watched, Gauge::Admitted), Some(30));
        }
        other.admitted.store(21, Relaxed);
        assert_eq!(level(&watched, Gauge::Admitted), Some(31));
        drop(other);
        assert_eq!(level(&watched, Gauge::Working), Some(0));
        assert_eq!(level(&watched, Gauge::Admitted), Some(31));
    }

    #[test]
    fn guards_made_in_a_loop_are_forgotten_and_nothing_keeps_them_alive() {
        let watched = Watched::new();
        for _ in 0..10 * MAX_WATCHED {
            let slots = Slots::new(1, 1);
            register(&watched, &slots);
            assert_eq!(Arc::strong_count(&slots), 1);
        }
        let guards = watched.guards.lock();
        assert!(guards.living.len() <= 1);
        assert!(guards.living.capacity() <= 8);
        assert_eq!(watched.ignored(), 0);
    }

    #[test]
    fn more_living_guards_than_the_cap_are_ignored_and_counted() {
        let watched = Watched::new();
        let mut slots: Vec<_> = (0..MAX_WATCHED + 7).map(|_| Slots::new(1, 0)).collect();
        slots.iter().for_each(|slots| register(&watched, slots));
        assert_eq!(watched.ignored(), 7);
        assert_eq!(level(&watched, Gauge::Working), Some(MAX_WATCHED as u64));
        slots.clear();
        // The neighbour that comes after them finds room.
        let honest = Slots::new(2, 0);
        register(&watched, &honest);
        assert_eq!(level(&watched, Gauge::Working), Some(2));
    }

    #[test]
    fn a_guard_that_is_gone_already_is_not_watched() {
        let watched = Watched::new();
        let slots = Slots::new(1, 1);
        let levels = Arc::downgrade(&slots);
        drop(slots);
        watched.register(levels);
        assert_eq!(watched.sample(), []);
    }

    #[test]
    fn a_limit_that_no_level_shows_is_the_one_last_given() {
        let watched = Watched::new();
        watched.limit_changed(Guard::ConcurrencyLimit, 100);
        watched.limit_changed(Guard::ConcurrencyLimit, 50);
        assert_eq!(
            watched.sample(),
            [(Guard::ConcurrencyLimit, Gauge::Limit, 50)]
        );
        assert!(watched.limit_changes().eq([(Guard::ConcurrencyLimit, 2)]));
    }

    #[test]
    fn numbers_that_no_guard_should_have_do_not_overflow() {
        let watched = Watched::new();
        let slots = [
            Slots::new(u64::MAX, u64::MAX),
            Slots::new(u64::MAX, u64::MAX),
        ];
        slots.iter().for_each(|slots| register(&watched, slots));
        assert_eq!(level(&watched, Gauge::Working), Some(u64::MAX));
        drop(slots);
        assert_eq!(level(&watched, Gauge::Admitted), Some(u64::MAX));
    }
}
