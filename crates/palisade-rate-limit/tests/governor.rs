//! governor as the oracle, as the engine, and over our table.
#![cfg(feature = "governor")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use governor::{
    RateLimiter, clock::FakeRelativeClock, middleware::NoOpMiddleware, nanos::Nanos,
    state::keyed::HashMapStateStore,
};
use palisade_rate_limit::{ClientKey, Decision, Limiter, Quota, TableLimiter, TableStore};
use proptest::prelude::*;
use std::{num::NonZeroU32, time::Duration};

type Over<S> = RateLimiter<ClientKey, S, FakeRelativeClock, NoOpMiddleware<Nanos>>;

const HOUR: Duration = Duration::from_secs(3600);

fn quota(period: Duration, burst: u32) -> governor::Quota {
    let burst = NonZeroU32::new(burst).unwrap();
    governor::Quota::with_period(period)
        .unwrap()
        .allow_burst(burst)
}

fn own_store(
    quota: governor::Quota,
    clock: &FakeRelativeClock,
) -> Over<HashMapStateStore<ClientKey>> {
    RateLimiter::new(quota, HashMapStateStore::default(), clock.clone())
}

fn our_table(quota: governor::Quota, clock: &FakeRelativeClock) -> Over<TableStore> {
    RateLimiter::new(
        quota,
        TableStore::new(1 << 10, quota).unwrap(),
        clock.clone(),
    )
}

fn key(number: u8) -> ClientKey {
    ClientKey::of(&number)
}

/// A runtime whose clock stands still.
fn paused() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

/// Steps in microseconds, clients and costs.
fn requests() -> impl Strategy<Value = Vec<(u64, u8, u32)>> {
    let steps = prop_oneof![Just(0), 1..=1000u64, 1..=1_000_000u64, 1..=3_600_000_000u64];
    prop::collection::vec(
        (steps, 0..5u8, prop_oneof![4 => Just(1), 1 => 1..=60u32]),
        1..200,
    )
}

proptest! {
    #[test]
    fn three_ways_to_the_same_decisions(
        period in 1..=10_000_000u64, burst in 1..=50u32, requests in requests(),
    ) {
        let quota = quota(Duration::from_micros(period), burst);
        let clock = FakeRelativeClock::default();
        let (theirs, over_ours) = (own_store(quota, &clock), our_table(quota, &clock));
        paused().block_on(async {
            let ours = TableLimiter::new(Quota::from(quota)).map_err(|_| ());
            let Ok(ours) = ours else { return }; // Too fast for whole microseconds.
            let ours = ours.capacity(1 << 10);
            for (step, client, cost) in requests {
                clock.advance(Duration::from_micros(step));
                tokio::time::advance(Duration::from_micros(step)).await;
                let expected = theirs.check(key(client), cost);
                assert_eq!(ours.check(key(client), cost), expected);
                assert_eq!(over_ours.check(key(client), cost), expected);
            }
        });
    }

    /// With nanoseconds the table rounds: what it admits at a time governor has admitted by then.
    #[test]
    fn over_our_table_nothing_is_early_nor_much_late(
        period in 1_000..=1_000_000_000u64, burst in 1..=50u32,
        steps in prop::collection::vec(0..=2_000_000_000u64, 1..100),
    ) {
        let quota = quota(Duration::from_nanos(period), burst);
        let clock = FakeRelativeClock::default();
        let Ok(store) = TableStore::new(1 << 10, quota) else { return Ok(()) };
        let over_ours: Over<_> = RateLimiter::new(quota, store, clock.clone());
        let theirs = own_store(quota, &clock);
        for step in steps {
            clock.advance(Duration::from_nanos(step));
            if over_ours.check(key(1), 1) == Decision::Admit {
                prop_assert_eq!(theirs.check(key(1), 1), Decision::Admit);
            } else {
                // Late by the ticks of one burst at the very most; then both agree again.
                clock.advance(Duration::from_micros(u64::from(burst) + 1));
                if theirs.check(key(1), 1) == Decision::Admit {
                    prop_assert_eq!(over_ours.check(key(1), 1), Decision::Admit);
                }
            }
        }
    }
}

#[test]
fn a_cost_that_would_wrap_governors_arithmetic_is_never_granted() {
    let quota = quota(HOUR / 10, 10);
    let clock = FakeRelativeClock::default();
    let (theirs, over_ours) = (own_store(quota, &clock), our_table(quota, &clock));
    for cost in [11, 5_124_097, 5_124_098, 51_240_956, u32::MAX] {
        for limiter in [&theirs as &dyn Limiter, &over_ours] {
            let decision = limiter.check(key(1), cost);
            assert!(
                matches!(decision, Decision::NeverPossible { .. }),
                "{cost}: {decision:?}"
            );
        }
    }
    for limiter in [&theirs as &dyn Limiter, &over_ours] {
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
    // What one burst long is good for the limiter is too long for the store.
    let eight_days = quota(24 * HOUR, 8);
    TableLimiter::new(eight_days).unwrap();
    assert_eq!(
        faults(TableStore::new(64, eight_days).unwrap_err()),
        "burst x period"
    );
}

#[test]
fn governors_quota_keeps_rate_and_burst() {
    let ten = NonZeroU32::new(10).unwrap();
    let theirs = governor::Quota::per_second(ten).allow_burst(NonZeroU32::new(40).unwrap());
    let ours = Quota::period(Duration::from_millis(100)).burst(40);
    assert_eq!(Quota::from(theirs), ours);
}

#[test]
fn eight_threads_get_exactly_the_burst_through_governor() {
    let clock = FakeRelativeClock::default();
    let limiter = our_table(quota(Duration::from_millis(100), 40), &clock);
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
