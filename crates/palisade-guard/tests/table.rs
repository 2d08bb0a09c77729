//! The table and its arithmetic: comparison with an oracle, floods of keys, concurrent threads, and
//! the wrap of the clock.
#![cfg(not(palisade_loom))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use palisade_core::ClientKey;
use palisade_guard::{Denied, Gcra, Table};
use proptest::prelude::*;
use std::{
    sync::{
        Barrier,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
};

const MILLI: u64 = 1000;
const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3600 * SECOND;
const DAY: u64 = 24 * HOUR;
/// The period after which the clock of a word wraps.
const WRAP_PERIOD: u64 = 1 << 42;

fn key(number: u64) -> ClientKey {
    ClientKey::of(&number)
}

/// Charges `cells` to `key`. Returns `None` if the table gave up.
fn check(
    table: &Table,
    key: ClientKey,
    now: u64,
    quota: Gcra,
    cells: u32,
) -> Option<Result<(), Denied>> {
    table.update(key, now, quota.max_debt(), |debt| {
        quota.decide(debt, cells).map(|debt| ((), debt))
    })
}

fn admits(table: &Table, key: ClientKey, now: u64, quota: Gcra) -> bool {
    check(table, key, now, quota, 1) == Some(Ok(()))
}

/// GCRA as defined by ITU-T I.371, with unlimited times in 128 bits.
#[derive(Default)]
struct Oracle {
    tat: u128,
}

impl Oracle {
    fn check(&mut self, now: u64, period: u64, burst: u32, cells: u32) -> Result<(), Denied> {
        let (now, period) = (u128::from(now), u128::from(period));
        let tat = self.tat.max(now) + u128::from(cells) * period;
        let latest = now + u128::from(burst) * period;
        if cells > burst {
            Err(Denied::Never)
        } else if tat > latest {
            Err(Denied::Wait(u64::try_from(tat - latest).unwrap()))
        } else {
            self.tat = tat;
            Ok(())
        }
    }
}

fn quotas() -> impl Strategy<Value = Gcra> {
    let periods = prop_oneof![1..=1000u64, 1..=SECOND, 1..=HOUR, 1..=6 * DAY];
    (periods, prop_oneof![1..=50u32, 1..=u32::MAX]).prop_map(|(period, burst)| {
        let max_burst = u32::try_from(Table::MAX_DEBT / period).unwrap_or(u32::MAX);
        Gcra::new(period, burst.min(max_burst)).unwrap()
    })
}

/// Time steps from 0 to 30 days, costs of all sizes, and whether to clamp the cost to the burst.
fn requests() -> impl Strategy<Value = Vec<(u64, u32, bool)>> {
    let steps = prop_oneof![Just(0), 1..=1000u64, 1..=SECOND, 1..=HOUR, 1..=30 * DAY];
    let costs = prop_oneof![4 => 1..=3u32, 2 => 1..=50u32, 1 => 1..=u32::MAX];
    prop::collection::vec((steps, costs, any::<bool>()), 1..200)
}

proptest! {
    #[test]
    fn the_table_makes_the_same_decisions_as_the_oracle(
        quota in quotas(), start in 0..=100 * DAY, requests in requests(), wait_exactly: bool,
    ) {
        let table = Table::new(1024);
        let mut oracle = Oracle::default();
        let mut now = start;
        for (step, cells, is_clamped) in requests {
            now += step;
            let cells = if is_clamped { cells.min(quota.burst()) } else { cells };
            let decision = check(&table, key(1), now, quota, cells).unwrap();
            prop_assert_eq!(decision, oracle.check(now, quota.period(), quota.burst(), cells));
            if let (Err(Denied::Wait(wait)), true) = (decision, wait_exactly) {
                // Refused one microsecond before the end of the wait, and admitted at the end.
                let early = check(&table, key(1), now + wait - 1, quota, cells).unwrap();
                prop_assert_eq!(early, Err(Denied::Wait(1)));
                now += wait;
                prop_assert_eq!(check(&table, key(1), now, quota, cells).unwrap(), Ok(()));
                let late = oracle.check(now, quota.period(), quota.burst(), cells);
                prop_assert_eq!(late, Ok(()));
            }
        }
    }

    #[test]
    fn keys_are_independent_while_the_table_has_room(
        quota in quotas(), requests in prop::collection::vec((0..40u64, 0..=SECOND), 1..300),
    ) {
        let table = Table::new(4096);
        let mut oracles: Vec<Oracle> = (0..40).map(|_| Oracle::default()).collect();
        let mut now = 0;
        for (number, step) in requests {
            now += step;
            let oracle = oracles[number as usize].check(now, quota.period(), quota.burst(), 1);
            prop_assert_eq!(check(&table, key(number), now, quota, 1).unwrap(), oracle);
        }
    }
}

#[test]
fn eight_threads_with_one_new_key_get_exactly_the_burst() {
    let table = Table::new(1 << 14);
    let quota = Gcra::new(100 * MILLI, 40).unwrap();
    let (rounds, threads) = (1000, 8);
    let admitted: Vec<AtomicU32> = (0..rounds).map(|_| AtomicU32::new(0)).collect();
    let start = Barrier::new(threads);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for (round, admitted) in admitted.iter().enumerate() {
                    start.wait();
                    for _ in 0..80 {
                        if admits(&table, key(round as u64), SECOND, quota) {
                            admitted.fetch_add(1, Relaxed);
                        }
                    }
                }
            });
        }
    });
    for (round, admitted) in admitted.iter().enumerate() {
        assert_eq!(admitted.load(Relaxed), 40, "in round {round}");
    }
    assert_eq!(
        table.occupancy(SECOND, quota.max_debt()).keys,
        rounds as u64
    );
}

#[test]
fn an_update_succeeds_after_many_concurrent_updates() {
    let table = Table::new(16);
    let add_one = |debt: u64| Ok::<_, ()>(((), debt + 1));
    let conflicts = std::cell::Cell::new(0);
    let updated = table.update(key(1), SECOND, SECOND, |debt| {
        if conflicts.get() < 100 {
            conflicts.set(conflicts.get() + 1);
            table
                .update(key(1), SECOND, SECOND, add_one)
                .unwrap()
                .unwrap();
        }
        add_one(debt)
    });
    assert_eq!(updated, Some(Ok(())));
    assert_eq!(table.debt(key(1), SECOND, SECOND), 101);
}

/// Returns how many requests of an abuser are admitted, as a fraction of what its quota allows: 10
/// per second with a burst of 20. The abuser sends `at_once` requests every `pause` milliseconds
/// for ten seconds, during a flood of other keys, per second eight times the capacity of the table.
/// A normal client sends one request per second and must always be admitted.
fn admitted_share_of_an_abuser(at_once: u32, pause: u64) -> f64 {
    let quota = Gcra::new(100 * MILLI, 20).unwrap();
    let table = Table::new(1 << 13);
    let (abuser, normal) = (key(1), key(2));
    let mut admitted = 0;
    for millis in 0..10_000 {
        let now = DAY + millis * MILLI;
        if millis % pause == 0 {
            admitted += (0..at_once)
                .filter(|_| admits(&table, abuser, now, quota))
                .count();
        }
        if millis % 1000 == 500 {
            assert!(
                admits(&table, normal, now, quota),
                "the normal client was refused at {millis} ms"
            );
        }
        for number in 0..62 {
            assert!(admits(
                &table,
                key(1000 + millis * 100 + number),
                now,
                quota
            ));
        }
    }
    let occupancy = table.occupancy(DAY + 10 * SECOND, quota.max_debt());
    assert!(occupancy.keys <= occupancy.capacity && occupancy.capacity == 1 << 13);
    admitted as f64 / (20.0 + 10.0 * 10.0)
}

#[test]
fn a_flood_of_keys_clears_no_debt() {
    for (at_once, pause) in [(1, 1), (20, 50), (20, 500), (20, 1000), (40, 2000)] {
        let share = admitted_share_of_an_abuser(at_once, pause);
        assert!(
            share <= 1.02,
            "{at_once} requests every {pause} ms got {share} of the quota"
        );
    }
}

#[test]
fn a_flood_of_keys_in_debt_evicts_the_smallest_debts() {
    let quota = Gcra::new(SECOND, 20).unwrap();
    let table = Table::new(1 << 10);
    let first_debt = |table: &Table| table.debt(key(1), SECOND, quota.max_debt());
    assert_eq!(check(&table, key(1), SECOND, quota, 20), Some(Ok(())));
    for number in 2..100_000 {
        assert!(admits(&table, key(number), SECOND, quota));
    }
    assert_eq!(first_debt(&table), 20 * SECOND);
    let occupancy = table.occupancy(SECOND, quota.max_debt());
    assert_eq!(occupancy.keys, occupancy.capacity);
    // Not exact, because a few pairs of keys have the same tag.
    assert!((98_900..=99_999 - occupancy.capacity).contains(&occupancy.evicted));
}

#[test]
fn five_million_keys_do_not_grow_the_table() {
    let quota = Gcra::new(100 * MILLI, 40).unwrap();
    let table = Table::new(1 << 16);
    let before = table.occupancy(0, quota.max_debt());
    for number in 0..5_000_000 {
        let _ = admits(&table, key(number), number, quota);
    }
    let after = table.occupancy(5_000_000, quota.max_debt());
    assert_eq!(after.capacity, before.capacity);
    assert!(after.keys <= after.capacity);
}

#[test]
fn a_table_that_is_three_fifths_full_keeps_almost_every_key() {
    let quota = Gcra::new(SECOND, 10).unwrap();
    let table = Table::new(1 << 16);
    let keys = (1u64 << 16) * 6 / 10;
    for number in 0..keys {
        assert!(admits(&table, key(number), SECOND, quota));
    }
    let kept = (0..keys)
        .filter(|number| table.debt(key(*number), SECOND, quota.max_debt()) > 0)
        .count();
    assert!(kept as f64 >= 0.995 * keys as f64, "{kept} of {keys}");
}

#[test]
fn a_key_without_debt_evicts_no_other_key() {
    let table = Table::new(16);
    let keep = |debt| Ok::<_, ()>(((), debt));
    for number in 0..1000 {
        assert_eq!(table.update(key(number), SECOND, HOUR, keep), Some(Ok(())));
    }
    assert_eq!(table.occupancy(SECOND, HOUR).evicted, 0);
}

#[test]
fn a_debt_is_paid_across_the_wrap_of_the_clock() {
    let quota = Gcra::new(SECOND, 3).unwrap();
    for start in [
        WRAP_PERIOD - 3 * SECOND,
        WRAP_PERIOD - 1,
        WRAP_PERIOD,
        WRAP_PERIOD + 1,
        5 * WRAP_PERIOD - SECOND,
    ] {
        let table = Table::new(1024);
        for _ in 0..3 {
            assert!(admits(&table, key(1), start, quota));
        }
        assert_eq!(
            check(&table, key(1), start, quota, 1),
            Some(Err(Denied::Wait(SECOND)))
        );
        assert!(!admits(&table, key(1), start + SECOND - 1, quota));
        assert!(admits(&table, key(1), start + SECOND, quota));
        assert_eq!(table.debt(key(1), start + 4 * SECOND, quota.max_debt()), 0);
    }
}

#[test]
fn a_debt_that_was_paid_long_ago_does_not_reappear() {
    let charge = |micros| move |debt: u64| Ok::<_, ()>(((), debt + micros));
    let table = Table::new(1024);
    for number in 0..400 {
        table
            .update(key(number), 0, 2 * DAY, charge(2 * DAY))
            .unwrap()
            .unwrap();
    }
    // One request every three hours is enough for the table to clear paid debts.
    let mut now = 0;
    while now < WRAP_PERIOD + 3 * DAY {
        now += 3 * HOUR;
        table
            .update(key(1_000_000), now, 2 * DAY, charge(SECOND))
            .unwrap()
            .unwrap();
        if now > 2 * DAY {
            assert_eq!(
                table.occupancy(now, 2 * DAY).keys,
                1,
                "after {} hours",
                now / HOUR
            );
        }
    }
}

#[test]
fn a_table_that_was_unused_for_days_holds_no_debts() {
    let set_debt = |debt: u64| Ok::<_, ()>((debt, DAY));
    for idle in (2..200).map(|days| days * DAY + HOUR) {
        let table = Table::new(1024);
        for number in 0..400 {
            table
                .update(key(number), DAY, DAY, set_debt)
                .unwrap()
                .unwrap();
        }
        for number in 0..400 {
            // Stores no new debt: one key in 4 million would find the debt of another key.
            let keep = |debt: u64| Ok::<_, ()>((debt, debt));
            let debt = table.update(key(number), DAY + idle, DAY, keep).unwrap();
            assert_eq!(debt, Ok(0), "{} days later", idle / DAY);
        }
        // The same for a table from which debts are only read.
        let table = Table::new(1024);
        table.update(key(0), DAY, DAY, set_debt).unwrap().unwrap();
        assert_eq!(
            table.debt(key(0), DAY + idle, DAY),
            0,
            "{} days later",
            idle / DAY
        );
    }
}

#[test]
fn debug_output_contains_neither_words_nor_seed() {
    let text = format!("{:?}", Table::new(1 << 20));
    assert_eq!(text, "Table { capacity: 1048576, evicted: 0, .. }");
}
