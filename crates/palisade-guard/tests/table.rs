//! The table and its arithmetic against a plain oracle, floods of keys, threads, and the clock.
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
/// When the clock of a word starts over.
const WRAP: u64 = 1 << 42;

fn key(number: u64) -> ClientKey {
    ClientKey::of(&number)
}

/// `None` if the table gave up.
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

/// GCRA as ITU-T I.371 has it, with the whole time in 128 bits.
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
        let most = u32::try_from(Table::MAX_DEBT / period).unwrap_or(u32::MAX);
        Gcra::new(period, burst.min(most)).unwrap()
    })
}

/// Steps of time from none at all to 30 days, and costs of all sizes.
fn requests() -> impl Strategy<Value = Vec<(u64, u32, bool)>> {
    let steps = prop_oneof![Just(0), 1..=1000u64, 1..=SECOND, 1..=HOUR, 1..=30 * DAY];
    let costs = prop_oneof![4 => 1..=3u32, 2 => 1..=50u32, 1 => 1..=u32::MAX];
    prop::collection::vec((steps, costs, any::<bool>()), 1..200)
}

proptest! {
    #[test]
    fn the_table_decides_as_the_oracle_does(
        quota in quotas(), start in 0..=100 * DAY, requests in requests(), wait_exactly: bool,
    ) {
        let table = Table::new(1024);
        let mut oracle = Oracle::default();
        let mut now = start;
        for (step, cells, near) in requests {
            now += step;
            let cells = if near { cells.min(quota.burst()) } else { cells };
            let seen = check(&table, key(1), now, quota, cells).unwrap();
            prop_assert_eq!(seen, oracle.check(now, quota.period(), quota.burst(), cells));
            if let (Err(Denied::Wait(wait)), true) = (seen, wait_exactly) {
                // Not a tick before the wait is over, and then at once.
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
    fn keys_do_not_disturb_each_other_while_there_is_room(
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
fn eight_threads_on_one_cold_key_get_exactly_the_burst() {
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
fn an_update_that_others_overtake_many_times_succeeds_nevertheless() {
    let table = Table::new(16);
    let one_more = |debt: u64| Ok::<_, ()>(((), debt + 1));
    let overtaken = std::cell::Cell::new(0);
    let updated = table.update(key(1), SECOND, SECOND, |debt| {
        if overtaken.get() < 100 {
            overtaken.set(overtaken.get() + 1);
            table
                .update(key(1), SECOND, SECOND, one_more)
                .unwrap()
                .unwrap();
        }
        one_more(debt)
    });
    assert_eq!(updated, Some(Ok(())));
    assert_eq!(table.debt(key(1), SECOND, SECOND), 101);
}

/// What an abuser got of a quota of 10 a second, burst 20, in ten seconds of a flood of other keys
/// that is eight times as many as the table holds, against what the quota grants. He tries
/// `at_once` requests every `pause`. Beside him a client asks once a second.
fn abuse_during_a_flood(at_once: u32, pause: u64) -> f64 {
    let quota = Gcra::new(100 * MILLI, 20).unwrap();
    let table = Table::new(1 << 13);
    let (abuser, honest) = (key(1), key(2));
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
                admits(&table, honest, now, quota),
                "an honest request at {millis} ms"
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
fn a_flood_of_keys_washes_no_debt_off() {
    for (at_once, pause) in [(1, 1), (20, 50), (20, 500), (20, 1000), (40, 2000)] {
        let share = abuse_during_a_flood(at_once, pause);
        assert!(
            share <= 1.02,
            "{at_once} every {pause} ms got {share} of the bound"
        );
    }
}

#[test]
fn a_flood_whose_keys_are_all_live_evicts_the_least_indebted() {
    let quota = Gcra::new(SECOND, 20).unwrap();
    let table = Table::new(1 << 10);
    let owing = |table: &Table| table.debt(key(1), SECOND, quota.max_debt());
    assert_eq!(check(&table, key(1), SECOND, quota, 20), Some(Ok(())));
    for number in 2..100_000 {
        assert!(admits(&table, key(number), SECOND, quota));
    }
    assert_eq!(owing(&table), 20 * SECOND);
    let occupancy = table.occupancy(SECOND, quota.max_debt());
    assert_eq!(occupancy.keys, occupancy.capacity);
    // Now and then two keys share a tag.
    assert!((98_900..=99_999 - occupancy.capacity).contains(&occupancy.evicted));
}

#[test]
fn five_million_keys_find_the_table_as_large_as_it_was() {
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
fn a_table_three_fifths_full_keeps_nearly_every_key() {
    let quota = Gcra::new(SECOND, 10).unwrap();
    let table = Table::new(1 << 16);
    let live = (1u64 << 16) * 6 / 10;
    for number in 0..live {
        assert!(admits(&table, key(number), SECOND, quota));
    }
    let kept = (0..live)
        .filter(|number| table.debt(key(*number), SECOND, quota.max_debt()) > 0)
        .count();
    assert!(kept as f64 >= 0.995 * live as f64, "{kept} of {live}");
}

#[test]
fn whoever_owes_nothing_takes_nobodys_place() {
    let table = Table::new(16);
    let free = |debt| Ok::<_, ()>(((), debt));
    for number in 0..1000 {
        assert_eq!(table.update(key(number), SECOND, HOUR, free), Some(Ok(())));
    }
    assert_eq!(table.occupancy(SECOND, HOUR).evicted, 0);
}

#[test]
fn a_debt_is_paid_across_the_edge_of_the_clock() {
    let quota = Gcra::new(SECOND, 3).unwrap();
    for start in [
        WRAP - 3 * SECOND,
        WRAP - 1,
        WRAP,
        WRAP + 1,
        5 * WRAP - SECOND,
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
fn a_debt_paid_long_ago_never_comes_back() {
    let owe = |more| move |debt: u64| Ok::<_, ()>(((), debt + more));
    let table = Table::new(1024);
    for number in 0..400 {
        table
            .update(key(number), 0, 2 * DAY, owe(2 * DAY))
            .unwrap()
            .unwrap();
    }
    // One other client comes now and then; that is enough for the table to tidy itself.
    let mut now = 0;
    while now < WRAP + 3 * DAY {
        now += 3 * HOUR;
        table
            .update(key(1_000_000), now, 2 * DAY, owe(SECOND))
            .unwrap()
            .unwrap();
        if now > 2 * DAY {
            assert_eq!(
                table.occupancy(now, 2 * DAY).keys,
                1,
                "{} hours on",
                now / HOUR
            );
        }
    }
}

#[test]
fn a_table_that_nobody_used_for_long_holds_no_debts() {
    let owe = |debt: u64| Ok::<_, ()>((debt, DAY));
    for idle in (2..200).map(|days| days * DAY + HOUR) {
        let table = Table::new(1024);
        for number in 0..400 {
            table.update(key(number), DAY, DAY, owe).unwrap().unwrap();
        }
        for number in 0..400 {
            // Nobody owes anew: one key in 4 million finds the debt of another.
            let same = |debt: u64| Ok::<_, ()>((debt, debt));
            let debt = table.update(key(number), DAY + idle, DAY, same).unwrap();
            assert_eq!(debt, Ok(0), "{} days later", idle / DAY);
        }
        // Nor does one that is only looked at.
        let table = Table::new(1024);
        table.update(key(0), DAY, DAY, owe).unwrap().unwrap();
        assert_eq!(
            table.debt(key(0), DAY + idle, DAY),
            0,
            "{} days later",
            idle / DAY
        );
    }
}

#[test]
fn neither_words_nor_seed_are_printed() {
    let text = format!("{:?}", Table::new(1 << 20));
    assert_eq!(text, "Table { capacity: 1048576, evicted: 0, .. }");
}
