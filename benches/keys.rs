//! palisade's keyed table compared with governor's map: checks of one client among 1, a million and
//! five million, and checks of one client on two threads.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use governor::{DefaultKeyedRateLimiter, Quota as GovernorQuota, RateLimiter};
use palisade::{
    rate_limit::{Decision, Limiter, TableLimiter},
    types::{ClientKey, Prefix},
};
use palisade_benches::high_quota;
use std::{
    env,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    thread,
    time::Duration,
};
use tokio::time::Instant;

/// The table's capacity: 64 MiB, of which five million keys use 60 %.
const KEY_CAPACITY: usize = 1 << 23;

fn address(key: u32) -> IpAddr {
    Ipv4Addr::from_bits(key).into()
}

fn table() -> TableLimiter {
    TableLimiter::new(high_quota())
        .expect("the quota is valid")
        .capacity(KEY_CAPACITY)
}

fn check(table: &TableLimiter, key: u32) -> Decision {
    table.check(ClientKey::address(address(key), Prefix::default()), 1)
}

fn map() -> DefaultKeyedRateLimiter<IpAddr> {
    let cells = NonZeroU32::new(1_000_000).expect("the rate is not 0");
    RateLimiter::dashmap(GovernorQuota::per_second(cells).allow_burst(cells))
}

/// Returns whether the bench runs once as a test. A test uses a thousand keys instead of millions.
fn is_test() -> bool {
    env::args().any(|argument| argument == "--test")
        || !env::args().any(|argument| argument == "--bench")
}

/// Returns the key of a turn in a shuffled order. The multiplier is coprime to all numbers of keys
/// here.
fn shuffled(turn: u32, keys: u32) -> u32 {
    u32::try_from(u64::from(turn) * 2_654_435_761 % u64::from(keys))
        .expect("the remainder fits a u32")
}

fn one_among_many(c: &mut Criterion) {
    let mut group = c.benchmark_group("check");
    group.throughput(Throughput::Elements(1));
    for name in [1, 1_000_000, 5_000_000] {
        let keys = if is_test() { name.min(1000) } else { name };
        let (table, map) = (table(), map());
        for key in 0..keys {
            check(&table, key);
            let _ = map.check_key(&address(key));
        }
        let mut turn = 0u32;
        let mut next = move || {
            turn = turn.wrapping_add(1);
            shuffled(turn, keys)
        };
        group.bench_function(BenchmarkId::new("palisade", name), |b| {
            b.iter(|| check(&table, next()));
        });
        group.bench_function(BenchmarkId::new("governor", name), |b| {
            b.iter(|| map.check_key(&address(next())));
        });
    }
    group.finish();
}

/// Returns the time in which each of two concurrent threads makes `checks` checks.
fn two_threads(checks: u64, check: impl Fn() + Sync) -> Duration {
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..checks).for_each(|_| check()));
        }
    });
    start.elapsed()
}

fn one_on_two_threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("one_client_on_two_threads");
    let (table, map) = (table(), map());
    group.bench_function("palisade", |b| {
        b.iter_custom(|checks| {
            two_threads(checks, || {
                std::hint::black_box(check(&table, 1));
            })
        });
    });
    group.bench_function("governor", |b| {
        b.iter_custom(|checks| {
            two_threads(checks, || {
                std::hint::black_box(map.check_key(&address(1)).is_ok());
            })
        });
    });
    group.finish();
}

criterion_group!(benches, one_among_many, one_on_two_threads);
criterion_main!(benches);
