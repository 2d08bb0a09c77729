//! T01: connections by the hundred that say nothing. Whoever comes with a request is served all
//! the same, under stock `axum::serve`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use guarded::{Neighbour, SECOND, SLACK, all_gone, app, cut, guard, h2, serve, served};
use palisade::conn::ConnGuard;
use palisade_core::{Gauge, Guard, Mode, Phase, Reason};
use palisade_testkit::clients::{RawClient, until};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const CAP: usize = 200;
const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 7);

fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, (n % 100) as u8 + 1)
}

/// Keeps `count` sockets open and silent until told to stop, making a new one whenever one is cut.
fn silent_flood(addr: SocketAddr, count: usize, stop: &Arc<AtomicBool>) -> JoinSet<usize> {
    (0..count)
        .map(|n| {
            let stop = Arc::clone(stop);
            async move {
                let mut made = 0;
                while !stop.load(SeqCst) {
                    let Ok(mut client) = RawClient::connect_from(address(n), addr).await else {
                        continue;
                    };
                    made += 1;
                    cut(&mut client).await;
                    // The flood's own pace. The 70 that have no place are some 2,000 connections
                    // a second, so that a newcomer has a tenth of a second for his request.
                    sleep(Duration::from_millis(40)).await;
                }
                made
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_cap_full_of_silent_sockets_honest_newcomers_are_served() {
    const SILENT: Duration = Duration::from_secs(2);
    let builder = ConnGuard::builder()
        .max_connections(CAP)
        .first_request(SILENT);
    let (guard, journal) = guard(builder);
    let server = serve(&guard, app()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let flood = silent_flood(server.addr, CAP + 50, &stop);
    until("the cap is full", || guard.snapshot().open >= CAP * 9 / 10).await;

    const TRIES: usize = 300;
    let (mut served, mut times) = (0, Vec::new());
    for n in 0..TRIES {
        let started = Instant::now();
        let honest = Ipv4Addr::new(127, 0, 4, (n % 100) as u8 + 1);
        let answer = guarded::ask(honest, server.addr, "/").await;
        served += usize::from(answer.is_ok_and(|answer| answer.status() == 200));
        times.push(started.elapsed());
    }
    assert!(served * 100 >= TRIES * 99, "{served} of {TRIES}");
    // Nobody waited until a silent socket had had its time, and most did not wait at all.
    times.sort_unstable();
    let (median, slowest) = (times[TRIES / 2], times[TRIES - 1]);
    assert!(
        slowest < SILENT && median < SILENT / 10,
        "{median:?}, {slowest:?}"
    );
    let now = guard.snapshot();
    assert!(now.open <= CAP, "{now:?}");
    println!("{served} of {TRIES} served, half in {median:?}, the slowest in {slowest:?}; {now:?}");

    // Each of them is cut in its time, and makes room for nobody any more then.
    stop.store(true, SeqCst);
    let stopped = Instant::now();
    flood.join_all().await;
    assert!(
        stopped.elapsed() < SILENT + SLACK,
        "{:?}",
        stopped.elapsed()
    );
    all_gone(&guard).await;
    assert_eq!(
        journal.level(Guard::Connection, Gauge::Connections),
        Some(0)
    );
    assert_eq!(journal.opened(), journal.closed().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_sockets_are_cut_in_time_and_told_of() {
    let (guard, journal) = guard(ConnGuard::builder().first_request(SECOND));
    let server = serve(&guard, app()).await;
    let neighbour = Neighbour::of(server.addr);
    let mut silent = JoinSet::new();
    for n in 0..100 {
        let mut client = RawClient::connect_from(address(n), server.addr)
            .await
            .unwrap();
        silent.spawn(async move { cut(&mut client).await });
    }
    for (bytes, is_reset, after) in silent.join_all().await {
        assert!(bytes.is_empty() && is_reset);
        assert!(after < SECOND + SLACK, "{after:?}");
    }
    neighbour.was_served().await;
    all_gone(&guard).await;
    let ended = journal.disconnected();
    assert_eq!(ended.len(), 100);
    assert!(ended.iter().all(|(ended, mode)| {
        (ended.reason, ended.phase, *mode)
            == (Reason::FirstRequest, Phase::FirstHead, Mode::Enforce)
    }));
    assert_eq!(guard.recently_closed().len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_has_its_share_and_no_more() {
    let builder = ConnGuard::builder().max_connections(CAP).max_per_client(10);
    let (guard, journal) = guard(builder.no_accept_rate().first_request(SECOND));
    let server = serve(&guard, app()).await;
    let neighbour = Neighbour::of(server.addr);
    let stop = Arc::new(AtomicBool::new(false));
    let one = Ipv4Addr::new(127, 0, 2, 1);
    let mut flood = JoinSet::new();
    for _ in 0..50 {
        let (addr, stop) = (server.addr, Arc::clone(&stop));
        flood.spawn(async move {
            while !stop.load(SeqCst) {
                if let Ok(mut client) = RawClient::connect_from(one, addr).await {
                    cut(&mut client).await;
                }
                sleep(Duration::from_millis(1)).await;
            }
        });
    }
    until("many were evicted", || journal.disconnected().len() > 200).await;
    let most = guard
        .snapshot()
        .clients
        .first()
        .map_or(0, |most| most.connections);
    assert!(most <= 20, "{most}"); // Those that are told to go and have not gone included.
    stop.store(true, SeqCst);
    flood.join_all().await;
    neighbour.was_served().await;
    all_gone(&guard).await;
    let total = journal
        .disconnected()
        .iter()
        .any(|(v, _)| v.reason == Reason::ConnectionsFull);
    assert!(!total, "its neighbours paid for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_network_has_its_share_and_no_more() {
    let builder = ConnGuard::builder()
        .max_connections(CAP)
        .max_per_client(2)
        .max_per_network(20);
    let (guard, journal) = guard(builder.first_request(SECOND));
    let server = serve(&guard, app()).await;
    let neighbour = Neighbour::of(server.addr);
    let stop = Arc::new(AtomicBool::new(false));
    // A hundred clients of 127.0.1.0/24, none of which has more than his own share.
    let flood = silent_flood(server.addr, 100, &stop);
    until("many were evicted", || journal.disconnected().len() > 200).await;
    let open = guard.snapshot().open;
    assert!(open <= 40 + 2, "{open}"); // Those told to go and the neighbour's two included.
    stop.store(true, SeqCst);
    flood.join_all().await;
    neighbour.was_served().await;
    all_gone(&guard).await;
    let total = journal
        .disconnected()
        .iter()
        .any(|(v, _)| v.reason == Reason::ConnectionsFull);
    assert!(!total, "other networks paid for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hoarders_who_once_did_something_make_room_too() {
    let (guard, journal) = guard(ConnGuard::builder().max_connections(50).no_max_per_client());
    let server = serve(&guard, app()).await;
    let mut hoard = Vec::new();
    for n in 0..45 {
        let mut client = RawClient::connect_from(address(n), server.addr)
            .await
            .unwrap();
        served(&mut client).await;
        hoard.push(client);
    }
    for _ in 0..40 {
        let answer = guarded::ask(HONEST, server.addr, "/").await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    assert!(
        journal
            .disconnected()
            .iter()
            .all(|(v, _)| v.reason == Reason::ConnectionEvicted)
    );
    drop(hoard);
    all_gone(&guard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_request_in_work_is_never_displaced_and_the_newcomer_is_reset() {
    let (guard, journal) = guard(ConnGuard::builder().max_connections(20).no_max_per_client());
    let server = serve(&guard, app()).await;
    let mut working = Vec::new();
    for n in 0..20 {
        let mut client = RawClient::connect_from(address(n), server.addr)
            .await
            .unwrap();
        client
            .send("GET /hang HTTP/1.1\r\nhost: test\r\n\r\n")
            .await
            .unwrap();
        let now = n + 1;
        until("it is at work", || guard.snapshot().in_flight == now as u64).await;
        working.push(client);
    }
    for _ in 0..20 {
        let refused = guarded::ask(HONEST, server.addr, "/").await;
        assert!(refused.is_err());
    }
    assert_eq!(guard.snapshot().at(Phase::Working), 20);
    assert!(
        journal
            .disconnected()
            .iter()
            .all(|(v, _)| v.reason == Reason::ConnectionsFull)
    );
    // As soon as one goes, there is a place.
    working.pop();
    until("one has gone", || guard.snapshot().open < 20).await;
    drop(working);
    all_gone(&guard).await;
    assert_eq!(
        guarded::ask(HONEST, server.addr, "/")
            .await
            .unwrap()
            .status(),
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_cap_full_of_half_sent_uploads_honest_newcomers_are_served() {
    let (guard, _) = guarded::guard(ConnGuard::builder().max_connections(60));
    let upload = axum::routing::post(|_: bytes::Bytes| async { "taken" });
    let server = serve(&guard, app().route("/upload", upload)).await;
    // One that arrives slowly and steadily, in chunks.
    let mut steady = RawClient::connect_from(Ipv4Addr::new(127, 6, 0, 1), server.addr)
        .await
        .unwrap();
    let head = "POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 10000\r\n\r\n";
    steady.send(head).await.unwrap();
    let mut hoard = Vec::new();
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "x"),
        (":path", "/upload"),
    ];
    let half: [Vec<u8>; 3] = [
        "POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nhalf".into(),
        "POST /upload HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf".into(),
        [
            h2::hello(65_535),
            h2::headers(1, 0, &fields),
            h2::frame(h2::DATA, 0, 1, b"half"),
        ]
        .concat(),
    ];
    for n in 0..59 {
        let from = Ipv4Addr::new(127, 3, n, 1);
        let mut client = RawClient::connect_from(from, server.addr).await.unwrap();
        client.send(&half[usize::from(n) % 3]).await.unwrap();
        hoard.push(client);
    }
    for _ in 0..12 {
        steady.send(vec![b'x'; 500]).await.unwrap();
        tokio::time::sleep(SECOND / 2).await;
    }
    let mut refused = 0;
    for n in 0..40 {
        let from = Ipv4Addr::new(127, 4, n, 1);
        // On a machine with more to do than this, the one that is evicted may not have run yet
        // when the newcomer's turns are over: a client tries again.
        let mut answer = guarded::ask(from, server.addr, "/").await;
        if answer.is_err() {
            refused += 1;
            answer = guarded::ask(from, server.addr, "/").await;
        }
        assert_eq!(answer.unwrap().status(), 200);
        let mut kept = RawClient::connect_from(from, server.addr).await.unwrap();
        kept.send("GET /hang HTTP/1.1\r\nhost: test\r\n\r\n")
            .await
            .unwrap();
        hoard.push(kept);
        // On a busy machine they take a moment to go.
        until("no connection is about to go", || {
            guard.snapshot().close_pending == 0
        })
        .await;
    }
    assert!(refused <= 2, "{refused} of 40");
    steady.send(vec![b'x'; 4000]).await.unwrap();
    assert_eq!(steady.head().await.unwrap().status, 200);
    drop((hoard, steady));
    all_gone(&guard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_place_at_work_for_an_attacker_monitoring_gets_in() {
    let monitoring = "127.0.5.0/24".parse().unwrap();
    let builder = ConnGuard::builder()
        .max_connections(20)
        .reserve(2, [monitoring]);
    let (guard, journal) = guard(builder.no_max_per_client().accept_rate(100, 30));
    let server = serve(&guard, app()).await;
    let mut attack = Vec::new();
    for n in 0..18 {
        let mut client = RawClient::connect_from(address(n), server.addr)
            .await
            .unwrap();
        client
            .send("GET /hang HTTP/1.1\r\nhost: test\r\n\r\n")
            .await
            .unwrap();
        until("it is at work", || {
            guard.snapshot().in_flight == n as u64 + 1
        })
        .await;
        attack.push(client);
    }
    for _ in 0..60 {
        assert!(guarded::ask(HONEST, server.addr, "/").await.is_err());
        // More often than anybody else may.
        let answer = guarded::ask(Ipv4Addr::new(127, 0, 5, 1), server.addr, "/").await;
        assert_eq!(answer.unwrap().status(), 200);
    }
    // Nobody at work had to go, and of those from there only one that was through.
    let told = journal.disconnected();
    let spared = |phase| matches!(phase, Phase::Accept | Phase::Idle | Phase::Lingering);
    assert!(told.iter().all(|(v, _)| spared(v.phase)), "{told:?}");
    let full = told
        .iter()
        .filter(|(v, _)| v.reason == Reason::ConnectionsFull);
    assert!(full.clone().count() > 0 && full.into_iter().all(|(v, _)| v.limit == 18));
    assert_eq!(guard.snapshot().at(Phase::Working), 18);
    drop(attack);
    all_gone(&guard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_connects_without_end_is_slowed_down_and_his_neighbour_is_not() {
    let (guard, journal) = guard(ConnGuard::builder().accept_rate(20, 10));
    let server = serve(&guard, app()).await;
    let mut served = 0;
    for _ in 0..100 {
        let answer = guarded::ask(Ipv4Addr::new(127, 0, 3, 1), server.addr, "/").await;
        served += usize::from(answer.is_ok());
    }
    assert!((10..100).contains(&served), "{served}");
    for _ in 0..10 {
        assert_eq!(
            guarded::ask(HONEST, server.addr, "/")
                .await
                .unwrap()
                .status(),
            200
        );
    }
    assert!(
        journal
            .disconnected()
            .iter()
            .all(|(v, _)| v.reason == Reason::AcceptRate)
    );
    all_gone(&guard).await;
}
