//! Shorter timeouts under pressure.

use super::*;
use crate::{Budget, Memory, Pressure};
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn under_pressure_silent_and_idle_connections_are_closed_sooner_and_working_ones_are_not() {
    let pressure = Pressure::default();
    let (guard, _) = tracking_guard(ConnGuard::builder().pressure(pressure.clone()));
    let (mut silent, mut idle, working) = (connect(&guard), connect(&guard), connect(&guard));
    serve_once(&mut idle, false).await;
    let _request = working.server.conn().begin_request(false);
    pressure.set(1.0);
    let ((silent_after, silent_result), (idle_after, idle_result)) = tokio::join!(
        read_until_closed(&mut silent.server),
        read_until_closed(&mut idle.server)
    );
    assert_eq!(silent_after, 3 * SECOND);
    // The reported limit is the shorter timeout.
    let (reason, limit) = (
        violation(&silent_result.unwrap_err()).reason,
        guard.recently_closed()[1].limit,
    );
    assert_eq!((reason, limit), (Reason::FirstRequest, 3000));
    assert_within_two_ticks(idle_after, 2 * SECOND);
    idle_result.unwrap();
    sleep(60 * SECOND).await;
    assert!(working.decision().is_none());
    // Without pressure the timeout is the configured one again.
    pressure.set(0.8);
    let mut silent = connect(&guard);
    assert_eq!(read_until_closed(&mut silent.server).await.0, 10 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn working_connections_near_the_cap_raise_the_pressure() {
    let (guard, _) = tracking_guard(
        ConnGuard::builder()
            .max_connections(20)
            .max_per_client(None)
            .memory(None),
    );
    let mut idle = connect(&guard);
    for _ in 0..20 {
        serve_once(&mut idle, false).await;
    }
    let _working: Vec<_> = (0..17)
        .map(|_| connect_working(&guard, 1).unwrap())
        .collect();
    assert_eq!(guard.snapshot().pressure, 0.0); // 18 of 20 are open: eviction has not begun.
    // More connections are admitted than can be evicted in time.
    guard.shared().open.fetch_add(2, Relaxed);
    assert_eq!(guard.snapshot().pressure, 1.0);
    assert_eq!(gauge(&guard, Gauge::PressurePercent), Some(100));
    let (after, _) = read_until_closed(&mut idle.server).await;
    assert_within_two_ticks(after, 2 * SECOND);
    guard.shared().open.fetch_sub(2, Relaxed);
}

#[tokio::test(start_paused = true)]
async fn where_memory_is_short_each_new_connection_evicts_an_idle_one_and_64_stay() {
    let memory = Memory::reported(1000).unwrap();
    let builder = ConnGuard::builder()
        .max_connections(1000)
        .max_per_client(None);
    let (guard, _) = tracking_guard(builder.memory(memory.clone()));
    let mut idle: Vec<_> = (0..66).map(|_| connect(&guard)).collect();
    for pair in &mut idle {
        serve_once(pair, false).await;
    }
    let working = connect_working(&guard, 2).unwrap();
    sleep(2 * SECOND).await; // By then a connection has shown how much it does.
    let closing = |idle: &[Pair]| idle.iter().filter(|pair| pair.decision().is_some()).count();
    let next = connect(&guard);
    assert_eq!(closing(&idle), 0);
    memory.report(899);
    drop(connect(&guard));
    assert_eq!(closing(&idle), 0);
    memory.report(900);
    drop(next);
    let next = connect(&guard);
    assert_eq!(closing(&idle), 1);
    assert!(working.0.decision().is_none());
    // The places of 64 connections are not taken.
    idle.retain(|pair| pair.decision().is_none());
    idle.truncate(60);
    let more = [connect(&guard), connect(&guard)];
    assert_eq!(closing(&idle), 0);
    drop((next, more));
}

#[tokio::test(start_paused = true)]
async fn the_sweeper_counts_the_clients_for_the_share() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
    let clients = || guard.shared().totals.memory.clients.load(Relaxed);
    let pairs: Vec<_> = (1..=40)
        .flat_map(|last| [last, last])
        .map(|last| connect_from(&guard, last).unwrap())
        .collect();
    sleep(SECOND).await;
    assert_eq!(clients(), 40);
    drop(pairs);
    let _last = connect(&guard);
    sleep(SECOND).await;
    assert_eq!(clients(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_nearly_full_shortens_timeouts_and_they_recover_at_once() {
    let budget = Budget::new(100_000).unwrap();
    let builder = ConnGuard::builder().byte_budget(budget.clone());
    let (guard, journal) = tracking_guard(builder.memory(None));
    let silent_for = async || read_until_closed(&mut connect(&guard).server).await.0;
    assert_eq!(
        (guard.snapshot().pressure, silent_for().await),
        (0.0, 10 * SECOND)
    );
    budget.take(None, 80_000).unwrap();
    assert_eq!(
        (guard.snapshot().pressure, silent_for().await),
        (0.8, 10 * SECOND)
    );
    budget.take(None, 15_000).unwrap();
    assert_eq!(
        (guard.snapshot().pressure, silent_for().await),
        (0.95, Duration::from_millis(4750))
    );
    assert_eq!(gauge(&guard, Gauge::PressurePercent), Some(95));
    // An idle connection is closed sooner, and one that works is not.
    let (mut idle, working) = (connect(&guard), connect(&guard));
    serve_once(&mut idle, false).await;
    let _request = working.server.conn().begin_request(false);
    let (after, _) = read_until_closed(&mut idle.server).await;
    assert_within_two_ticks(after, Duration::from_millis(17_750));
    assert!(working.decision().is_none());
    // Nothing is evicted for it.
    assert!(!guard.shared().evicts_for_memory());
    budget.give_back(None, 95_000);
    assert_eq!(
        (guard.snapshot().pressure, silent_for().await),
        (0.0, 10 * SECOND)
    );
    let evicted = |(violation, _): &(Violation, _)| violation.reason == Reason::ConnectionEvicted;
    assert!(!journal.disconnected().iter().any(evicted));
}

#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn what_the_kernel_reports_of_the_memory_is_a_gauge_where_it_is_known() {
    let gauges = [
        Gauge::MemoryOomKills,
        Gauge::MemoryLimitHits,
        Gauge::MemoryStallPercent,
    ];
    let events = Memory::of_process().events();
    let known = [events.oom_kills, events.limit_hits, events.stall_percent];
    let (guard, _) = tracking_guard(ConnGuard::builder());
    let is_sampled = gauges.map(|sampled| gauge(&guard, sampled).is_some());
    assert_eq!(is_sampled, known.map(|known| known.is_some()));
    for memory in [None, Some(Memory::reported(1000).unwrap())] {
        let (guard, _) = tracking_guard(ConnGuard::builder().memory(memory));
        assert_eq!(gauges.map(|sampled| gauge(&guard, sampled)), [None; 3]);
    }
}
