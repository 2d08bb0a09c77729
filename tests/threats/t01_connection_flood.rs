//! T01: floods of connections under stock `axum::serve`, most of them silent. A newcomer that sends
//! a request is still served.

use palisade::conn::ConnGuard;
use palisade_core::{Gauge, Guard, Mode, Phase, Reason};
use palisade_testkit::clients::{RawClient, wait_until};
use palisade_testkit::{
    guarded::{
        SECOND, SLACK, ServerKind, all_gone, app, assert_served, build_guard, read_until_closed,
    },
    h2, on_servers,
};
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
const HONEST_CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 7);

fn attacker_address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, (n % 100) as u8 + 1)
}

/// Keeps `count` silent connections open until `stop` is set, and opens a new one for each that the
/// server closes.
fn silent_flood(addr: SocketAddr, count: usize, stop: &Arc<AtomicBool>) -> JoinSet<usize> {
    (0..count)
        .map(|n| {
            let stop = Arc::clone(stop);
            async move {
                let mut opened = 0;
                while !stop.load(SeqCst) {
                    let Ok(mut client) = RawClient::connect_from(attacker_address(n), addr).await
                    else {
                        continue;
                    };
                    opened += 1;
                    read_until_closed(&mut client).await;
                    // The flood's own rate. The 70 clients without a place make some 2,000
                    // connections per second, so a newcomer has a tenth of a second to send its
                    // request.
                    sleep(Duration::from_millis(40)).await;
                }
                opened
            }
        })
        .collect()
}

async fn honest_newcomers_are_served_while_silent_connections_fill_the_cap(kind: ServerKind) {
    const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
    let builder = ConnGuard::builder()
        .max_connections(CAP)
        .first_request_timeout(FIRST_REQUEST_TIMEOUT);
    let (guard, journal) = build_guard(builder);
    let server = kind.serve(&guard, app()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let flood = silent_flood(server.addr, CAP + 50, &stop);
    wait_until("the cap is full", || guard.snapshot().open >= CAP * 9 / 10).await;

    const ATTEMPTS: usize = 300;
    let (mut served, mut times) = (0, Vec::new());
    for n in 0..ATTEMPTS {
        let started = Instant::now();
        let honest = Ipv4Addr::new(127, 0, 4, (n % 100) as u8 + 1);
        let answer = kind.ask(honest, server.addr, "/").await;
        served += usize::from(answer.is_ok_and(|answer| answer.status() == 200));
        times.push(started.elapsed());
    }
    assert!(served * 100 >= ATTEMPTS * 99, "{served} of {ATTEMPTS}");
    // No newcomer waited for the timeout of a silent connection, and most did not wait at all.
    times.sort_unstable();
    let (median, slowest) = (times[ATTEMPTS / 2], times[ATTEMPTS - 1]);
    assert!(
        slowest < FIRST_REQUEST_TIMEOUT && median < FIRST_REQUEST_TIMEOUT / 10,
        "{median:?}, {slowest:?}"
    );
    let now = guard.snapshot();
    assert!(now.open <= CAP, "{now:?}");
    println!(
        "{served} of {ATTEMPTS} served, half in {median:?}, the slowest in {slowest:?}; {now:?}"
    );

    // Each silent connection is closed at its timeout, and none is replaced.
    stop.store(true, SeqCst);
    let stopped = Instant::now();
    flood.join_all().await;
    assert!(
        stopped.elapsed() < FIRST_REQUEST_TIMEOUT + SLACK,
        "{:?}",
        stopped.elapsed()
    );
    all_gone(&guard).await;
    assert_eq!(
        journal.gauge(Guard::Connection, Gauge::Connections),
        Some(0)
    );
    assert_eq!(journal.opened(), journal.closed().len());
}

async fn silent_connections_are_closed_at_their_timeout_and_recorded(kind: ServerKind) {
    let (guard, journal) = build_guard(ConnGuard::builder().first_request_timeout(SECOND));
    let server = kind.serve(&guard, app()).await;
    let neighbour = kind.neighbour(server.addr);
    let mut silent = JoinSet::new();
    for n in 0..100 {
        let mut client = RawClient::connect_from(attacker_address(n), server.addr)
            .await
            .unwrap();
        silent.spawn(async move { read_until_closed(&mut client).await });
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

async fn one_client_gets_no_more_than_its_share(kind: ServerKind) {
    let builder = ConnGuard::builder().max_connections(CAP).max_per_client(10);
    let (guard, journal) = build_guard(builder.accept_rate(None).first_request_timeout(SECOND));
    let server = kind.serve(&guard, app()).await;
    let neighbour = kind.neighbour(server.addr);
    let stop = Arc::new(AtomicBool::new(false));
    let greedy = Ipv4Addr::new(127, 0, 2, 1);
    let mut flood = JoinSet::new();
    for _ in 0..50 {
        let (addr, stop) = (server.addr, Arc::clone(&stop));
        flood.spawn(async move {
            while !stop.load(SeqCst) {
                if let Ok(mut client) = RawClient::connect_from(greedy, addr).await {
                    read_until_closed(&mut client).await;
                }
                sleep(Duration::from_millis(1)).await;
            }
        });
    }
    wait_until("many connections were evicted", || {
        journal.disconnected().len() > 200
    })
    .await;
    let most = guard
        .snapshot()
        .clients
        .first()
        .map_or(0, |most| most.connections);
    assert!(most <= 20, "{most}"); // Includes closing connections.
    stop.store(true, SeqCst);
    flood.join_all().await;
    neighbour.was_served().await;
    all_gone(&guard).await;
    let cap_was_reached = journal
        .disconnected()
        .iter()
        .any(|(v, _)| v.reason == Reason::ConnectionsFull);
    assert!(!cap_was_reached, "other clients were refused");
}

async fn one_network_gets_no_more_than_its_share(kind: ServerKind) {
    let builder = ConnGuard::builder()
        .max_connections(CAP)
        .max_per_client(2)
        .max_per_network(20);
    let (guard, journal) = build_guard(builder.first_request_timeout(SECOND));
    let server = kind.serve(&guard, app()).await;
    let neighbour = kind.neighbour(server.addr);
    let stop = Arc::new(AtomicBool::new(false));
    // A hundred clients of 127.0.1.0/24, none of which exceeds its own share.
    let flood = silent_flood(server.addr, 100, &stop);
    wait_until("many connections were evicted", || {
        journal.disconnected().len() > 200
    })
    .await;
    let open = guard.snapshot().open;
    assert!(open <= 40 + 2, "{open}"); // Includes closing connections and the neighbour's two.
    stop.store(true, SeqCst);
    flood.join_all().await;
    neighbour.was_served().await;
    all_gone(&guard).await;
    let cap_was_reached = journal
        .disconnected()
        .iter()
        .any(|(v, _)| v.reason == Reason::ConnectionsFull);
    assert!(!cap_was_reached, "other networks were refused");
}

async fn idle_connections_that_served_a_request_are_evicted_for_newcomers(kind: ServerKind) {
    let (guard, journal) = build_guard(
        ConnGuard::builder()
            .max_connections(50)
            .max_per_client(None),
    );
    let server = kind.serve(&guard, app()).await;
    let mut hoard = Vec::new();
    for n in 0..45 {
        let mut client = RawClient::connect_from(attacker_address(n), server.addr)
            .await
            .unwrap();
        assert_served(&mut client).await;
        hoard.push(client);
    }
    for _ in 0..40 {
        let answer = kind.ask(HONEST_CLIENT, server.addr, "/").await.unwrap();
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

async fn a_connection_with_a_request_in_flight_is_never_evicted_and_the_newcomer_is_reset(
    kind: ServerKind,
) {
    let (guard, journal) = build_guard(
        ConnGuard::builder()
            .max_connections(20)
            .max_per_client(None),
    );
    let server = kind.serve(&guard, app()).await;
    let mut working = Vec::new();
    for n in 0..20 {
        let mut client = RawClient::connect_from(attacker_address(n), server.addr)
            .await
            .unwrap();
        client
            .send("GET /hang HTTP/1.1\r\nhost: test\r\n\r\n")
            .await
            .unwrap();
        let now = n + 1;
        wait_until("the request is in flight", || {
            guard.snapshot().in_flight == now as u64
        })
        .await;
        working.push(client);
    }
    for _ in 0..20 {
        let refused = kind.ask(HONEST_CLIENT, server.addr, "/").await;
        assert!(refused.is_err());
    }
    assert_eq!(guard.snapshot().connections_in(Phase::Working), 20);
    assert!(
        journal
            .disconnected()
            .iter()
            .all(|(v, _)| v.reason == Reason::ConnectionsFull)
    );
    // A place is free as soon as one connection closes.
    working.pop();
    wait_until("one connection has closed", || guard.snapshot().open < 20).await;
    drop(working);
    all_gone(&guard).await;
    assert_eq!(
        kind.ask(HONEST_CLIENT, server.addr, "/")
            .await
            .unwrap()
            .status(),
        200
    );
}

async fn honest_newcomers_are_served_while_half_sent_uploads_fill_the_cap(kind: ServerKind) {
    let (guard, _) = build_guard(ConnGuard::builder().max_connections(60));
    let upload = axum::routing::post(|_: bytes::Bytes| async { "taken" });
    let server = kind.serve(&guard, app().route("/upload", upload)).await;
    // An upload that arrives slowly and steadily, in chunks.
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
    let half_uploads: [Vec<u8>; 3] = [
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
        client
            .send(&half_uploads[usize::from(n) % 3])
            .await
            .unwrap();
        hoard.push(client);
    }
    for _ in 0..12 {
        steady.send(vec![b'x'; 500]).await.unwrap();
        tokio::time::sleep(SECOND / 2).await;
    }
    let mut refused = 0;
    for n in 0..40 {
        let from = Ipv4Addr::new(127, 4, n, 1);
        // On a busy machine the task of the evicted connection may not have run by the time the
        // newcomer is refused, so the client tries again.
        let mut answer = kind.ask(from, server.addr, "/").await;
        if answer.is_err() {
            refused += 1;
            answer = kind.ask(from, server.addr, "/").await;
        }
        assert_eq!(answer.unwrap().status(), 200);
        let mut kept = RawClient::connect_from(from, server.addr).await.unwrap();
        kept.send("GET /hang HTTP/1.1\r\nhost: test\r\n\r\n")
            .await
            .unwrap();
        hoard.push(kept);
        // On a busy machine the close takes a moment.
        wait_until("no connection is closing", || {
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

async fn a_reserved_network_is_admitted_while_an_attacker_holds_all_other_places(kind: ServerKind) {
    let monitoring = "127.0.5.0/24".parse().unwrap();
    let builder = ConnGuard::builder()
        .max_connections(20)
        .reserve(2, [monitoring]);
    let (guard, journal) = build_guard(builder.max_per_client(None).accept_rate((100, 30)));
    let server = kind.serve(&guard, app()).await;
    let mut attack = Vec::new();
    for n in 0..18 {
        let mut client = RawClient::connect_from(attacker_address(n), server.addr)
            .await
            .unwrap();
        client
            .send("GET /hang HTTP/1.1\r\nhost: test\r\n\r\n")
            .await
            .unwrap();
        wait_until("the request is in flight", || {
            guard.snapshot().in_flight == n as u64 + 1
        })
        .await;
        attack.push(client);
    }
    for _ in 0..60 {
        assert!(kind.ask(HONEST_CLIENT, server.addr, "/").await.is_err());
        // More connections than the accept rate allows any other client.
        let answer = kind
            .ask(Ipv4Addr::new(127, 0, 5, 1), server.addr, "/")
            .await;
        assert_eq!(answer.unwrap().status(), 200);
    }
    // No connection with a request in flight was closed. Of the reserved network, only connections
    // without a request in flight were.
    let closed = journal.disconnected();
    let has_no_request = |phase| matches!(phase, Phase::Accept | Phase::Idle | Phase::Lingering);
    assert!(
        closed.iter().all(|(v, _)| has_no_request(v.phase)),
        "{closed:?}"
    );
    let full = closed
        .iter()
        .filter(|(v, _)| v.reason == Reason::ConnectionsFull);
    assert!(full.clone().count() > 0 && full.into_iter().all(|(v, _)| v.limit == 18));
    assert_eq!(guard.snapshot().connections_in(Phase::Working), 18);
    drop(attack);
    all_gone(&guard).await;
}

async fn a_client_over_the_accept_rate_is_slowed_down_and_its_neighbour_is_not(kind: ServerKind) {
    let (guard, journal) = build_guard(ConnGuard::builder().accept_rate((20, 10)));
    let server = kind.serve(&guard, app()).await;
    let mut served = 0;
    for _ in 0..100 {
        let answer = kind
            .ask(Ipv4Addr::new(127, 0, 3, 1), server.addr, "/")
            .await;
        served += usize::from(answer.is_ok());
    }
    assert!((10..100).contains(&served), "{served}");
    for _ in 0..10 {
        assert_eq!(
            kind.ask(HONEST_CLIENT, server.addr, "/")
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

on_servers! {
    [axum, serve, tonic]
    honest_newcomers_are_served_while_silent_connections_fill_the_cap,
    silent_connections_are_closed_at_their_timeout_and_recorded,
    one_client_gets_no_more_than_its_share,
    one_network_gets_no_more_than_its_share,
    idle_connections_that_served_a_request_are_evicted_for_newcomers,
    a_connection_with_a_request_in_flight_is_never_evicted_and_the_newcomer_is_reset,
    honest_newcomers_are_served_while_half_sent_uploads_fill_the_cap,
    a_reserved_network_is_admitted_while_an_attacker_holds_all_other_places,
    a_client_over_the_accept_rate_is_slowed_down_and_its_neighbour_is_not,
}
