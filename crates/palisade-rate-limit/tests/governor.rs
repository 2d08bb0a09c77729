//! The table limiter compared with governor, and governor over palisade's table.
#![cfg(feature = "governor")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use governor::{
    RateLimiter, clock::FakeRelativeClock, middleware::NoOpMiddleware, nanos::Nanos,
    state::keyed::HashMapStateStore,
};
use palisade_rate_limit::{ClientKey, Decision, Limiter, Quota, TableLimiter, TableStore};
use proptest::prelude::*;
use std::{num::NonZeroU32, time::Duration};

type Governor<S> = RateLimiter<ClientKey, S, FakeRelativeClock, NoOpMiddleware<Nanos>>;

const HOUR: Duration = Duration::from_secs(3600);

fn quota(period: Duration, burst: u32) -> governor::Quota {
    let burst = NonZeroU32::new(burst).unwrap();
    governor::Quota::with_period(period)
        .unwrap()
        .allow_burst(burst)
}

fn governor_over_hash_map(
    quota: governor::Quota,
    clock: &FakeRelativeClock,
) -> Governor<HashMapStateStore<ClientKey>> {
    RateLimiter::new(quota, HashMapStateStore::default(), clock.clone())
}

fn governor_over_table(quota: governor::Quota, clock: &FakeRelativeClock) -> Governor<TableStore> {
    RateLimiter::new(
        quota,
        TableStore::new(1 << 10, quota).unwrap(),
        clock.clone(),
    )
}

fn key(number: u8) -> ClientKey {
    ClientKey::of(&number)
}

/// A runtime with a paused clock.
fn paused_runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

/// Requests: the step of the clock in microseconds, the client and the cost.
fn requests() -> impl Strategy<Value = Vec<(u64, u8, u32)>> {
    let steps = prop_oneof![Just(0), 1..=1000u64, 1..=1_000_000u64, 1..=3_600_000_000u64];
    prop::collection::vec(
        (steps, 0..5u8, prop_oneof![4 => Just(1), 1 => 1..=60u32]),
        1..200,
    )
}

proptest! {
    #[test]
    fn the_table_limiter_and_governor_over_either_store_decide_alike(
        period in 1..=10_000_000u64, burst in 1..=50u32, requests in requests(),
    ) {
        let quota = quota(Duration::from_micros(period), burst);
        let clock = FakeRelativeClock::default();
        let reference = governor_over_hash_map(quota, &clock);
        let over_table = governor_over_table(quota, &clock);
        paused_runtime().block_on(async {
            let limiter = TableLimiter::new(Quota::from(quota)).map_err(|_| ());
            // An error means a rate that is too fast for whole microseconds.
            let Ok(limiter) = limiter else { return };
            let limiter = limiter.capacity(1 << 10);
            for (step, client, cost) in requests {
                clock.advance(Duration::from_micros(step));
                tokio::time::advance(Duration::from_micros(step)).await;
                let expected = reference.check(key(client), cost);
                assert_eq!(limiter.check(key(client), cost), expected);
                assert_eq!(over_table.check(key(client), cost), expected);
            }
        });
    }

    /// The table rounds nanoseconds up: governor over its own store admits each request that
    /// governor over the table admits, at the same time.
    #[test]
    fn governor_over_the_table_admits_nothing_early_and_nothing_much_later(
        period in 1_000..=1_000_000_000u64, burst in 1..=50u32,
        steps in prop::collection::vec(0..=2_000_000_000u64, 1..100),
    ) {
        let quota = quota(Duration::from_nanos(period), burst);
        let clock = FakeRelativeClock::default();
        let Ok(store) = TableStore::new(1 << 10, quota) else { return Ok(()) };
        let over_table: Governor<_> = RateLimiter::new(quota, store, clock.clone());
        let reference = governor_over_hash_map(quota, &clock);
        for step in steps {
            clock.advance(Duration::from_nanos(step));
            if over_table.check(key(1), 1) == Decision::Admit {
                prop_assert_eq!(reference.check(key(1), 1), Decision::Admit);
            } else {
                // Late by at most `burst + 1` microseconds; from then on both agree.
                clock.advance(Duration::from_micros(u64::from(burst) + 1));
                if reference.check(key(1), 1) == Decision::Admit {
                    prop_assert_eq!(over_table.check(key(1), 1), Decision::Admit);
                }
            }
        }
    }
}

#[test]
fn a_cost_that_would_wrap_the_arithmetic_of_governor_is_never_granted() {
    let quota = quota(HOUR / 10, 10);
    let clock = FakeRelativeClock::default();
    let reference = governor_over_hash_map(quota, &clock);
    let over_table = governor_over_table(quota, &clock);
    for cost in [11, 5_124_097, 5_124_098, 51_240_956, u32::MAX] {
        for limiter in [&reference as &dyn Limiter, &over_table] {
            let decision = limiter.check(key(1), cost);
            assert!(
                matches!(decision, Decision::NeverPossible { .. }),
                "{cost}: {decision:?}"
            );
        }
    }
    for limiter in [&reference as &dyn Limiter, &over_table] {
        assert_eq!(limiter.check(key(1), 10), Decision::Admit);
        assert_eq!(limiter.check(key(1), 1), Decision::Deny { wait: HOUR / 10 });
        assert_eq!(limiter.check(key(1), 0), Decision::Admit);
    }
}

#[test]
fn a_quota_too_large_for_the_table_is_refused() {
    let year = quota(365 * 24 * HOUR, 1);
    let faults = |error: palisade_rate_limit::ConfigError| error.faults()[0].field.clone();
    assert_eq!(
        faults(TableLimiter::new(year).unwrap_err()),
        "burst x period"
    );
    assert_eq!(
        faults(TableStore::new(64, year).unwrap_err()),
        "burst x period"
    );
    // The limiter holds debts of up to 12 days, the store of up to 6.
    let eight_days = quota(24 * HOUR, 8);
    TableLimiter::new(eight_days).unwrap();
    assert_eq!(
        faults(TableStore::new(64, eight_days).unwrap_err()),
        "burst x period"
    );
}

#[test]
fn a_governor_quota_keeps_its_rate_and_burst() {
    let ten = NonZeroU32::new(10).unwrap();
    let governor_quota = governor::Quota::per_second(ten).allow_burst(NonZeroU32::new(40).unwrap());
    let expected = Quota::period(Duration::from_millis(100)).burst(40);
    assert_eq!(Quota::from(governor_quota), expected);
}

#[test]
fn eight_threads_get_exactly_the_burst_through_governor_over_the_table() {
    let clock = FakeRelativeClock::default();
    let limiter = governor_over_table(quota(Duration::from_millis(100), 40), &clock);
    for round in 0..100 {
        let admitted: usize = std::thread::scope(|scope| {
            let check = || {
                let tries = 0..100;
                tries
                    .filter(|_| limiter.check(key(round), 1) == Decision::Admit)
                    .count()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(check)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(admitted, 40, "in round {round}");
    }
}
