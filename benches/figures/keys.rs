//! The state per client: palisade's keyed table and `tower_governor`'s map.

use crate::table::{
    Limit::{self, AtLeast, AtMost},
    Row,
};
use governor::{DefaultKeyedRateLimiter, Quota as GovernorQuota, RateLimiter};
use palisade::{
    Quota,
    rate_limit::{Decision, Limiter, TableLimiter},
    types::{ClientKey, Prefix},
};
use std::{
    fs,
    hint::black_box,
    io,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    thread,
    time::Duration,
};
use tokio::time::Instant;

/// The number of clients: 60 % of the table's capacity.
const CLIENTS: u32 = 5_000_000;
/// The capacity of the table in keys.
const KEY_CAPACITY: usize = 1 << 23;
/// The number of checks of a time measurement.
const CHECKS: u32 = 1_000_000;
/// The number of repetitions of a time measurement.
const ROUNDS: usize = 5;

/// Measures memory and time per client.
pub(crate) fn measure() -> io::Result<Vec<Row>> {
    let before = resident_bytes()?;
    let table = TableLimiter::new(slow_quota())
        .map_err(io::Error::other)?
        .capacity(KEY_CAPACITY);
    let empty = resident_bytes()?;
    let stall = check_all_clients(|key| check(&table, key));
    let filled = resident_bytes()?;
    let kept = table.occupancy().map_or(0, |occupancy| occupancy.keys);

    let before_governor = resident_bytes()?;
    let governor = governor(1);
    let stall_governor = check_all_clients(|key| check_governor(&governor, key));
    let filled_governor = resident_bytes()?;

    let per_client = |bytes: u64| bytes as f64 / f64::from(CLIENTS);
    let bytes = per_client(filled.saturating_sub(before));
    let bytes_governor = per_client(filled_governor.saturating_sub(before_governor));
    let grown = per_client(filled.saturating_sub(empty));
    let mut rows = vec![
        Row::timed(
            "P10",
            "bytes per client, 5 M clients",
            bytes_governor,
            bytes,
            AtMost(16.0),
        ),
        Row::timed(
            "P10",
            "bytes that each of 5 M clients added",
            None,
            grown,
            AtMost(0.1),
        ),
        Row::count(
            "P11",
            "% of clients in debt kept at 60 % load",
            100.0,
            100.0 * kept as f64 / f64::from(CLIENTS),
            AtLeast(99.5),
        ),
    ];
    let (ours, theirs) = medians_in_turns(
        || time_checks(|key| check(&table, key)),
        || time_checks(|key| check_governor(&governor, key)),
    );
    rows.push(Row::timed(
        "P12",
        "ns per check at 5 M clients",
        theirs,
        ours,
        Limit::None,
    ));
    let figure = "the same, as a part of governor's";
    rows.push(Row::timed("P12", figure, 1.0, ours / theirs, AtMost(0.5)));
    drop((table, governor));

    let table = TableLimiter::new(palisade_benches::high_quota()).map_err(io::Error::other)?;
    let governor = self::governor(5_000_000);
    let (ours, theirs) = medians_in_turns(
        || two_threads(|| check(&table, 1)),
        || two_threads(|| check_governor(&governor, 1)),
    );
    let figure = "one key on two threads: ns per check";
    rows.push(Row::timed("P12", figure, theirs, ours, AtMost(30.0)));
    let figure = "the longest of 5 M first checks: ms, with whatever else the machine did";
    rows.push(Row::timed(
        "P13",
        figure,
        stall_governor,
        stall,
        Limit::None,
    ));
    Ok(rows)
}

/// A quota so low that a client's debt from one request outlasts the measurement.
fn slow_quota() -> Quota {
    Quota::per_hour(60).burst(10)
}

fn governor(cells_per_second: u32) -> DefaultKeyedRateLimiter<IpAddr> {
    let cells = NonZeroU32::new(cells_per_second).expect("the number is not 0");
    let burst = NonZeroU32::new(5_000_000).expect("the number is not 0");
    RateLimiter::dashmap(GovernorQuota::per_second(cells).allow_burst(burst))
}

fn address(key: u32) -> IpAddr {
    Ipv4Addr::from_bits(key).into()
}

fn check(table: &TableLimiter, key: u32) -> bool {
    table.check(ClientKey::address(address(key), Prefix::default()), 1) == Decision::Admit
}

fn check_governor(governor: &DefaultKeyedRateLimiter<IpAddr>, key: u32) -> bool {
    governor.check_key(&address(key)).is_ok()
}

/// Checks every client once. Returns the longest time of a check in milliseconds.
fn check_all_clients(check: impl Fn(u32) -> bool) -> f64 {
    let mut longest = Duration::ZERO;
    let mut last = Instant::now();
    for key in 0..CLIENTS {
        assert!(check(key), "every client is new");
        let now = Instant::now();
        longest = longest.max(now - last);
        last = now;
    }
    longest.as_secs_f64() * 1e3
}

/// Returns the nanoseconds per check of clients in a shuffled order.
fn time_checks(check: impl Fn(u32) -> bool) -> f64 {
    let start = Instant::now();
    for turn in 0..CHECKS {
        // The multiplier is coprime to the number of clients, so no client occurs twice.
        let key = u64::from(turn) * 2_654_435_761 % u64::from(CLIENTS);
        black_box(check(u32::try_from(key).expect("the remainder fits a u32")));
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(CHECKS)
}

/// Returns the nanoseconds per check of each of two concurrent threads.
fn two_threads(check: impl Fn() -> bool + Sync) -> f64 {
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..CHECKS {
                    black_box(check());
                }
            });
        }
    });
    start.elapsed().as_secs_f64() * 1e9 / f64::from(CHECKS)
}

/// Returns the medians of two measurements that take turns.
fn medians_in_turns(ours: impl Fn() -> f64, theirs: impl Fn() -> f64) -> (f64, f64) {
    let (mut first, mut second): (Vec<f64>, Vec<f64>) =
        (0..ROUNDS).map(|_| (ours(), theirs())).unzip();
    first.sort_by(f64::total_cmp);
    second.sort_by(f64::total_cmp);
    (first[ROUNDS / 2], second[ROUNDS / 2])
}

/// Returns the resident memory of this process in bytes.
pub(crate) fn resident_bytes() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.ok_or_else(|| io::Error::other("/proc/self/status has no VmRSS"))? * 1024)
}
