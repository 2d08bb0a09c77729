//! The table limiter by itself: one quota, several quotas, policy changes, and threads.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use palisade_rate_limit::{ClientKey, Decision, Limiter, Policy, Quota, TableLimiter};
use proptest::prelude::*;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, advance};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn limiter(policy: impl Into<Policy>) -> TableLimiter {
    TableLimiter::new(policy).unwrap().capacity(1 << 12)
}

fn key(number: u32) -> ClientKey {
    ClientKey::of(&number)
}

fn deny(millis: u64) -> Decision {
    Decision::Deny {
        wait: Duration::from_millis(millis),
    }
}

/// A runtime with a paused clock.
fn paused_runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

/// Returns how many requests of a client are admitted now before one is denied.
fn admitted_at_once(limiter: &impl Limiter, key: ClientKey) -> usize {
    (0..10_000)
        .take_while(|_| limiter.check(key, 1) == Decision::Admit)
        .count()
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_its_burst_and_then_its_rate() {
    let limiter = limiter(Quota::per_second(10).burst(40));
    assert_eq!(admitted_at_once(&limiter, key(1)), 40);
    assert_eq!(limiter.check(key(1), 1), deny(100));
    for _ in 0..20 {
        advance(Duration::from_micros(99_999)).await;
        assert_eq!(
            limiter.check(key(1), 1),
            Decision::Deny {
                wait: Duration::from_micros(1)
            }
        );
        advance(Duration::from_micros(1)).await;
        assert_eq!(admitted_at_once(&limiter, key(1)), 1);
    }
    advance(Duration::from_secs(4)).await;
    assert_eq!(admitted_at_once(&limiter, key(1)), 40);
}

#[tokio::test(start_paused = true)]
async fn a_client_of_several_quotas_has_no_debt_after_weeks_without_traffic() {
    for idle in (160..280).map(|quarters| quarters * DAY / 4) {
        let limiter = limiter(
            Quota::per_hour(1)
                .burst(10)
                .and(Quota::per_second(10).burst(10)),
        );
        assert_eq!(admitted_at_once(&limiter, key(1)), 10);
        advance(idle).await;
        assert_eq!(admitted_at_once(&limiter, key(1)), 10, "{idle:?} later");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_client_takes_nothing_from_another() {
    let limiter = limiter(Quota::per_second(10).burst(40));
    while limiter.check(key(1), 1) == Decision::Admit {}
    assert_eq!(admitted_at_once(&limiter, key(2)), 40);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_charged_its_cost_only_if_it_is_admitted() {
    let limiter = limiter(Quota::per_second(10).burst(40));
    assert_eq!(limiter.check(key(1), 30), Decision::Admit);
    assert_eq!(limiter.check(key(1), 11), deny(100));
    assert_eq!(admitted_at_once(&limiter, key(1)), 10);
    assert_eq!(limiter.check(key(1), 0), Decision::Admit);
    for cost in [41, 1000, 5_124_097, u32::MAX] {
        assert_eq!(
            limiter.check(key(1), cost),
            Decision::NeverPossible { burst: 40 }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_is_admitted_only_if_all_quotas_grant_it() {
    // The wide quota comes first here; the order does not matter.
    let limiter = limiter(
        Quota::per_hour(100)
            .burst(50)
            .and(Quota::per_second(10).burst(20)),
    );
    assert_eq!(admitted_at_once(&limiter, key(1)), 20);
    assert_eq!(limiter.check(key(1), 1), deny(100));
    advance(Duration::from_secs(2)).await;
    assert_eq!(admitted_at_once(&limiter, key(1)), 20);
    advance(Duration::from_secs(2)).await;
    assert_eq!(admitted_at_once(&limiter, key(1)), 10);
    // One cell of the hourly quota takes 36 seconds, and four of them have passed.
    assert_eq!(limiter.check(key(1), 1), deny(32_000));
    assert_eq!(
        limiter.check(key(1), 21),
        Decision::NeverPossible { burst: 20 }
    );
    assert_eq!(
        limiter.check(key(1), 99),
        Decision::NeverPossible { burst: 20 }
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_denied_by_one_quota_is_charged_to_none() {
    let limiter = limiter(
        Quota::per_hour(100)
            .burst(50)
            .and(Quota::per_second(10).burst(20)),
    );
    for _ in 0..1000 {
        limiter.check(key(1), 1);
    }
    // The narrow quota recovers in two seconds. The thousand denials charged nothing to the wide
    // one.
    for _ in 0..2 {
        advance(Duration::from_secs(2)).await;
        assert!(admitted_at_once(&limiter, key(1)) >= 10);
    }
    advance(Duration::from_secs(2)).await;
    assert_eq!(admitted_at_once(&limiter, key(1)), 0);
    for _ in 0..1000 {
        limiter.check(key(1), 1);
    }
    // The denials by the wide quota did not keep the narrow one from recovering.
    advance(Duration::from_secs(36 * 20)).await;
    assert_eq!(admitted_at_once(&limiter, key(1)), 20);
}

#[tokio::test(start_paused = true)]
async fn a_new_quota_after_30_days_makes_no_client_wait_longer_than_its_burst() {
    let quotas = [
        Quota::per_second(10).burst(40),
        Quota::per_hour(10).burst(10),
        Quota::per_minute(100),
        Quota::period(DAY).burst(3),
        Quota::per_second(1000).burst(10_000),
    ];
    for before in quotas {
        for after in quotas {
            let limiter = limiter(before);
            advance(30 * DAY).await;
            while limiter.check(key(1), 1) == Decision::Admit {}
            assert_eq!(limiter.check(key(2), 1), Decision::Admit);
            limiter.set(after).unwrap();
            // No client waits longer than one that has just used up the new burst, and a client
            // without debt has the whole burst.
            let fresh = TableLimiter::new(after).unwrap().capacity(64);
            while fresh.check(key(1), 1) == Decision::Admit {}
            let Decision::Deny { wait: longest } = fresh.check(key(1), 1) else {
                unreachable!()
            };
            for number in [1, 2] {
                match limiter.check(key(number), 1) {
                    Decision::Admit => {}
                    Decision::Deny { wait } => assert!(wait <= longest, "{before:?}, {after:?}"),
                    never => panic!("{never:?}"),
                }
            }
            assert_eq!(
                admitted_at_once(&limiter, key(3)),
                admitted_at_once(&TableLimiter::new(after).unwrap().capacity(64), key(3))
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_changes_from_one_quota_to_several_and_back() {
    let limiter = Arc::new(limiter(Quota::per_second(10).burst(40)));
    limiter
        .set(
            Quota::per_hour(100)
                .burst(5)
                .and(Quota::per_second(10).burst(40)),
        )
        .unwrap();
    assert_eq!(admitted_at_once(&limiter, key(1)), 5);
    limiter.set(Quota::per_second(10).burst(40)).unwrap();
    // Five cells of the hourly quota are three minutes of debt, which the new quota caps at four
    // seconds.
    assert_eq!(limiter.check(key(1), 1), deny(100));
    limiter.set(Quota::per_second(0)).unwrap_err();
    advance(Duration::from_secs(4)).await;
    assert_eq!(admitted_at_once(&limiter, key(1)), 40);
}

#[tokio::test(start_paused = true)]
async fn a_quota_added_under_attack_clears_no_debt() {
    let hour = Quota::per_hour(100).burst(50);
    let limiter = limiter(hour);
    assert_eq!(admitted_at_once(&limiter, key(1)), 50);
    // The same quota stays, and a second one must grant as well.
    limiter
        .set(hour.and(Quota::per_second(10).burst(20)))
        .unwrap();
    for _ in 0..10 {
        assert_eq!(admitted_at_once(&limiter, key(1)), 0);
        advance(Duration::from_secs(2)).await;
    }
    // Removing the second quota clears no debt either.
    limiter.set(hour).unwrap();
    assert_eq!(limiter.check(key(1), 1), deny(16_000));
    advance(Duration::from_secs(16)).await;
    assert_eq!(admitted_at_once(&limiter, key(1)), 1);
    assert_eq!(admitted_at_once(&limiter, key(2)), 50);
}

#[tokio::test(start_paused = true)]
async fn a_stricter_quota_clears_no_debt_and_its_wait_ends() {
    let wide = Quota::per_second(10).burst(40);
    let narrow = Quota::per_second(10).burst(20);
    let policies = [narrow.into(), narrow.and(Quota::per_second(100).burst(20))];
    for policy in policies {
        let limiter = limiter(wide);
        assert_eq!(admitted_at_once(&limiter, key(1)), 40);
        limiter.set(policy).unwrap();
        for _ in 0..10 {
            assert_eq!(limiter.check(key(1), 1), deny(100));
        }
        advance(Duration::from_millis(99)).await;
        assert_eq!(limiter.check(key(1), 1), deny(1));
        advance(Duration::from_millis(1)).await;
        assert_eq!(admitted_at_once(&limiter, key(1)), 1);
        advance(Duration::from_secs(2)).await;
        assert_eq!(admitted_at_once(&limiter, key(1)), 20);
    }
}

#[tokio::test(start_paused = true)]
async fn the_table_holds_no_key_after_all_debts_are_paid() {
    let limiter = limiter(Quota::per_second(10).burst(40));
    for number in 0..1000 {
        limiter.check(key(number), 1);
    }
    let occupancy = limiter.occupancy().unwrap();
    assert_eq!(
        (occupancy.keys, occupancy.capacity, occupancy.evicted),
        (1000, 1 << 12, 0)
    );
    advance(Duration::from_millis(100)).await;
    assert_eq!(limiter.occupancy().unwrap().keys, 0);
}

#[test]
fn eight_threads_get_exactly_the_burst_of_every_quota() {
    let runtime = paused_runtime();
    let _entered = runtime.enter();
    let limiter = limiter(Quota::per_second(10).burst(40));
    for round in 0..200 {
        let admitted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    let handle = runtime.handle();
                    let limiter = &limiter;
                    scope.spawn(move || {
                        let _entered = handle.enter();
                        let tries = 0..100;
                        tries
                            .filter(|_| limiter.check(key(round), 1) == Decision::Admit)
                            .count()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(admitted, 40, "in round {round}");
    }
}

proptest! {
    /// Compares the rate of a quota with exact fractions of a nanosecond: no request is admitted
    /// early, and a client that takes every cell as soon as it can is at most one microsecond per
    /// cell late.
    #[test]
    fn nothing_is_early_and_each_cell_is_one_microsecond_late_at_most(
        cells in 1..=10_000u32, unit in 0..3u8, burst in 1..=1000u32, costs in prop::collection::vec(1..=50u32, 1..100),
    ) {
        let (quota, interval) = match unit {
            0 => (Quota::per_second(cells), Duration::from_secs(1)),
            1 => (Quota::per_minute(cells), Duration::from_secs(60)),
            _ => (Quota::per_hour(cells), Duration::from_secs(3600)),
        };
        // No debt may be longer than 12 days, which are 288 hours.
        let burst = burst.min(288 * cells);
        paused_runtime().block_on(async {
            let limiter = limiter(quota.burst(burst));
            let start = Instant::now();
            let mut taken = 0u128;
            for cost in costs {
                let cost = cost.min(burst);
                if let Decision::Deny { wait } = limiter.check(key(1), cost) {
                    advance(wait).await;
                    assert_eq!(limiter.check(key(1), cost), Decision::Admit);
                }
                taken += u128::from(cost);
                // When the last of these cells was due, in units of 1/cells nanoseconds.
                let due = taken.saturating_sub(burst.into()) * interval.as_nanos();
                let now = start.elapsed().as_nanos() * u128::from(cells);
                let tick = 1000 * u128::from(cells);
                assert!(now >= due, "early");
                assert!(now <= due + taken * tick, "late");
            }
        });
    }
}
