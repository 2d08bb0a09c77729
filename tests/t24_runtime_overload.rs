//! T24: requests that need more processor time than there is. They wait in the run queue of the
//! runtime, before any layer is called. A share of them is refused, so that the others are answered
//! in time. Bursts, waiting handlers and a blocked worker refuse nothing.
//!
//! `cargo bench --bench overload` prints the same with more servers and loads.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "overload/server.rs"]
mod server;

use palisade::conn::{ConnGuard, Mode, RuntimeLoad};
use palisade_core::{Guard, Reason};
use palisade_testkit::{
    Journal,
    cpu::rounds_in,
    guarded::{ServerKind, all_gone, app},
    on_servers,
    open_loop::{Outcome, Pool, evenly, in_bursts},
    server_process::ServerProcess,
};
use server::{Spec, start_others};
use std::{net::Ipv4Addr, sync::Arc, time::Duration};
use tokio::sync::Mutex;

const CLIENT: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// A network that the guard reserves places for.
const MONITORING: Ipv4Addr = Ipv4Addr::new(127, 0, 9, 1);
const SECOND: Duration = Duration::from_secs(1);
/// One scenario at a time: each of them needs the processors.
static TURN: Mutex<()> = Mutex::const_new(());

/// Not a test, but the server of the others: does nothing unless one of them has started it.
#[test]
fn server_process() {
    server::serve_if_told();
}

/// Returns a guard over load that the test reports, and its journal.
fn guarded_by(load: &RuntimeLoad, mode: Mode) -> (ConnGuard, Journal) {
    let journal = Journal::default();
    let builder = ConnGuard::builder()
        .mode(mode)
        .runtime_load(load.clone())
        .reserve(1, ["127.0.9.0/24".parse().unwrap()])
        .critical(|head| head.uri.path() == "/health");
    let guard = builder.metrics(journal.clone()).build().unwrap();
    (guard, journal)
}

/// Reports a delay of two seconds for as long as it takes.
fn overload(load: &RuntimeLoad) {
    for _ in 0..12 {
        load.report(2 * SECOND);
    }
    assert!(load.share() < 0.02, "{load:?}");
}

async fn an_overloaded_runtime_refuses_what_is_outside_of_the_share(kind: ServerKind) {
    let load = RuntimeLoad::reported();
    let (guard, journal) = guarded_by(&load, Mode::Enforce);
    let server = kind.serve(&guard, app()).await;
    let mut client = kind.connect(CLIENT, server.addr).await.unwrap();
    for _ in 0..32 {
        assert_eq!(client.get("/").await.unwrap().status(), 200);
    }
    overload(&load);
    let mut served = 0;
    for _ in 0..64 {
        let response = client.get("/").await.unwrap();
        if response.status() == 200 {
            served += 1;
            continue;
        }
        assert_eq!(response.status(), 503);
        let seconds = response.headers()["retry-after"].to_str().unwrap();
        let seconds: u64 = seconds.parse().unwrap();
        assert!((1..=5).contains(&seconds), "{seconds}");
    }
    assert_eq!(served, 1);
    assert_eq!(
        journal.refused(),
        [(Guard::Connection, Reason::RuntimeBusy); 63]
    );
    // The connection stays open, and new ones are admitted.
    let mut monitoring = kind.connect(MONITORING, server.addr).await.unwrap();
    for _ in 0..32 {
        assert_eq!(monitoring.get("/").await.unwrap().status(), 200);
        assert_eq!(client.get("/health").await.unwrap().status(), 404);
    }
    for _ in 0..10 {
        load.report(Duration::ZERO);
    }
    for _ in 0..32 {
        assert_eq!(client.get("/").await.unwrap().status(), 200);
    }
    assert_eq!(journal.refused().len(), 63);
    assert!(journal.disconnected().is_empty());
    drop((client, monitoring));
    all_gone(&guard).await;
}

async fn in_shadow_mode_nothing_is_refused_for_the_load(kind: ServerKind) {
    let load = RuntimeLoad::reported();
    let (guard, journal) = guarded_by(&load, Mode::Shadow);
    let server = kind.serve(&guard, app()).await;
    overload(&load);
    let mut client = kind.connect(CLIENT, server.addr).await.unwrap();
    for _ in 0..32 {
        assert_eq!(client.get("/").await.unwrap().status(), 200);
    }
    assert!(!journal.refused().is_empty());
    drop(client);
    all_gone(&guard).await;
}

on_servers! {
    [axum, serve, tonic]
    an_overloaded_runtime_refuses_what_is_outside_of_the_share,
    in_shadow_mode_nothing_is_refused_for_the_load,
}

/// Starts a server in a process of its own, whose requests burn 10 ms each. Returns it with the
/// connections to it, and how many it serves in a second.
async fn start(workers: usize) -> (ServerProcess, Arc<Pool>, f64) {
    let spec = Spec {
        kind: ServerKind::Serve,
        workers,
        is_guarded: true,
        rounds: rounds_in(Duration::from_millis(10)),
    };
    let server = spec.start();
    let pool = Pool::open(spec.kind, server.addr, 500).await;
    let capacity = pool.throughput(2 * workers.max(1), 2 * SECOND).await;
    (server, pool, capacity)
}

#[tokio::test]
async fn at_three_times_its_capacity_a_server_answers_most_of_what_it_can() {
    let _turn = TURN.lock().await;
    let (_server, pool, capacity) = start(0).await;
    let answers = pool
        .send_at("/cpu", evenly(3.0 * capacity, 8 * SECOND))
        .await;
    let outcome = Outcome::of(&answers, 3 * SECOND, 8 * SECOND);
    // Alone it serves nine tenths. Other tests may have half of the processor.
    assert!(
        outcome.per_second > 0.4 * capacity,
        "{outcome:?} of {capacity}"
    );
    assert!(outcome.refused > 0, "{outcome:?}");
    assert!(outcome.late * 20 < answers.len(), "{outcome:?}");
    assert!(
        outcome.p50 < SECOND && outcome.p99 < 3 * SECOND,
        "{outcome:?}"
    );
    assert_eq!(outcome.failed, 0, "{outcome:?}");
    // Once the load is gone, everything is served.
    tokio::time::sleep(5 * SECOND).await;
    let answers = pool.send_at("/cpu", evenly(0.3 * capacity, SECOND)).await;
    assert_eq!(Outcome::of(&answers, Duration::ZERO, SECOND).refused, 0);
}

#[tokio::test]
async fn bursts_and_handlers_that_wait_refuse_nothing() {
    let _turn = TURN.lock().await;
    let (_server, pool, capacity) = start(0).await;
    let (burst, period) = (Duration::from_millis(200), Duration::from_millis(2000));
    let bursts = in_bursts(3.0 * capacity, burst, period, 4 * period);
    let sleeping = evenly(400.0, 8 * SECOND);
    let (bursts, sleeping) = tokio::join!(
        pool.send_at("/cpu", bursts),
        pool.send_at("/sleep", sleeping),
    );
    for answers in [bursts, sleeping] {
        let outcome = Outcome::of(&answers, Duration::ZERO, 10 * SECOND);
        assert_eq!((outcome.refused, outcome.failed), (0, 0), "{outcome:?}");
    }
}

#[tokio::test]
async fn other_processes_that_take_the_processors_in_bursts_refuse_nothing() {
    let _turn = TURN.lock().await;
    let (_server, pool, capacity) = start(2).await;
    let burst = Duration::from_millis(300);
    let _others = start_others(2, burst, burst);
    let requests = evenly(0.2 * capacity, 4 * SECOND);
    let answers = pool.send_at("/cpu", requests).await;
    let outcome = Outcome::of(&answers, Duration::ZERO, 4 * SECOND);
    assert_eq!((outcome.refused, outcome.failed), (0, 0), "{outcome:?}");
}

#[tokio::test]
async fn a_blocked_worker_beside_another_refuses_nothing() {
    let _turn = TURN.lock().await;
    let (_server, pool, capacity) = start(2).await;
    let (blocked, others) = tokio::join!(
        pool.send_at("/block", [Duration::ZERO]),
        pool.send_at("/cpu", evenly(0.2 * capacity, 4 * SECOND)),
    );
    for answers in [blocked, others] {
        let outcome = Outcome::of(&answers, Duration::ZERO, 10 * SECOND);
        assert_eq!((outcome.refused, outcome.failed), (0, 0), "{outcome:?}");
    }
}
