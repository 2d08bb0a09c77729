//! T05: connections that never end, by age, by the number of their requests, by pipelining.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod guarded;

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::stream;
use guarded::{
    GET, Neighbour, SECOND, SERVERS, SLACK, all_gone, app, by, cut, h2, hardened, is_on_time,
    serve, served,
};
use palisade::conn::{ConnGuard, ConnGuardBuilder, Reason};
use palisade_testkit::{Journal, clients::RawClient, servers::Server};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};

fn guard(rules: impl FnOnce(ConnGuardBuilder) -> ConnGuardBuilder) -> (ConnGuard, Journal) {
    let journal = Journal::default();
    (
        rules(ConnGuard::builder())
            .metrics(journal.clone())
            .build()
            .unwrap(),
        journal,
    )
}

async fn each(guard: &ConnGuard, app: Router) -> Vec<Server> {
    let mut servers = Vec::new();
    for server in SERVERS {
        servers.push(by(server, guard, app.clone()).await);
    }
    servers
}

#[tokio::test]
async fn the_last_request_of_a_connection_says_so_and_a_new_one_is_taken() {
    let (guard, journal) = guard(|rules| rules.max_requests(3));
    for server in each(&guard, app()).await {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        for _ in 0..2 {
            served(&mut client).await;
        }
        // Pipelined: what comes after the last one is not served.
        client.send(GET.repeat(3)).await.unwrap();
        let head = client.head().await.unwrap();
        assert_eq!(
            (head.status.as_u16(), head.header("connection")),
            (200, Some("close"))
        );
        assert_eq!(client.rest().await, b"served");
        served(&mut RawClient::connect(server.addr).await.unwrap()).await;
    }
    all_gone(&guard).await;
    assert!(journal.closed().contains(&Some(Reason::MaxRequests)));
}

#[tokio::test]
async fn http_2_of_its_last_request_is_told_by_goaway_and_finishes_what_it_has() {
    let (guard, _) = guard(|rules| rules.max_requests(2));
    let server = hardened(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    // The second one ends only when its window is opened.
    client
        .send([h2::hello(0), h2::get(1, "/"), h2::get(3, "/")].concat())
        .await
        .unwrap();
    let announced = h2::next(&mut client.stream, h2::GOAWAY, 0).await;
    assert_eq!(
        announced[..8],
        [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        "of no error"
    );
    let ping = h2::next(&mut client.stream, h2::PING, 0).await;
    client
        .send(h2::frame(h2::PING, h2::ACK, 0, &ping))
        .await
        .unwrap();
    let last = h2::next(&mut client.stream, h2::GOAWAY, 0).await;
    assert_eq!(last[..4], [0, 0, 0, 3]);
    client
        .send([h2::open(1, 100), h2::open(3, 100)].concat())
        .await
        .unwrap();
    assert_eq!(h2::next(&mut client.stream, h2::DATA, 3).await, b"served");
    client.rest().await;
    all_gone(&guard).await;
}

#[tokio::test]
async fn elsewhere_it_has_the_idle_time_after_its_last_request() {
    // Its client cannot be told, and may be about to ask again.
    let (guard, journal) = guard(|rules| rules.max_requests(2).idle(7 * SECOND));
    let mut clients = JoinSet::new();
    let mut servers = Vec::new();
    for name in &SERVERS[1..] {
        let server = by(name, &guard, app()).await;
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client
            .send([h2::hello(65_535), h2::get(1, "/"), h2::get(3, "/")].concat())
            .await
            .unwrap();
        assert_eq!(h2::next(&mut client.stream, h2::DATA, 3).await, b"served");
        clients.spawn(async move { cut(&mut client).await });
        servers.push(server);
    }
    for (_, is_reset, took) in clients.join_all().await {
        is_on_time(took, 7 * SECOND);
        assert!(!is_reset);
    }
    all_gone(&guard).await;
    assert_eq!(journal.closed(), [Some(Reason::Idle); 2]);
}

#[tokio::test]
async fn a_connection_of_age_is_told_to_go_and_what_is_in_flight_comes_to_its_end() {
    let ticking = async || {
        // An event stream that goes on for longer than the connection may be old.
        let ticks = stream::unfold(0, async |n| {
            tokio::time::sleep(Duration::from_millis(100)).await;
            (n < 25).then_some((
                Ok::<_, Infallible>(Bytes::from_static(b"data: x\n\n")),
                n + 1,
            ))
        });
        Body::from_stream(ticks)
    };
    let (guard, _) = guard(|rules| rules.max_age(SECOND));
    let server = hardened(&guard, app().route("/events", get(ticking))).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let started = Instant::now();
    client
        .send([h2::hello(65_535), h2::get(1, "/events")].concat())
        .await
        .unwrap();
    h2::next(&mut client.stream, h2::GOAWAY, 0).await;
    let told = started.elapsed();
    assert!(
        told >= SECOND * 9 / 10 && told < SECOND * 11 / 10 + SLACK,
        "{told:?}"
    );
    let ping = h2::next(&mut client.stream, h2::PING, 0).await;
    client
        .send(h2::frame(h2::PING, h2::ACK, 0, &ping))
        .await
        .unwrap();
    let rest = client.rest().await;
    let events = rest.windows(4).filter(|at| at == b"data").count();
    assert!(
        started.elapsed() >= SECOND * 5 / 2,
        "to its end: {:?}",
        started.elapsed()
    );
    assert!(events > 10, "{events}");
    all_gone(&guard).await;
}

#[tokio::test]
async fn a_hard_end_of_age_is_there_for_whoever_asks_for_it() {
    let (guard, journal) = guard(|rules| rules.max_age(SECOND).age_grace(SECOND / 2));
    for server in each(&guard, app()).await {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send(GET.replacen('/', "/hang", 1)).await.unwrap();
        let (_, is_reset, took) = cut(&mut client).await;
        assert!(
            is_reset && took >= SECOND * 13 / 10 && took < SECOND * 8 / 5 + SLACK,
            "{took:?}"
        );
    }
    all_gone(&guard).await;
    assert_eq!(journal.closed(), [Some(Reason::MaxAge); 3]);
}

#[tokio::test]
async fn whoever_pipelines_and_reads_nothing_is_held_by_his_own_socket_and_cut() {
    let (guard, journal) = guard(|rules| rules.write_stall(SECOND));
    let asked = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&asked);
    let large = async move || {
        counts.fetch_add(1, SeqCst);
        Bytes::from_static(&[b'x'; 4096])
    };
    for server in each(&guard, app().route("/large", get(large))).await {
        let neighbour = Neighbour::of(server.addr);
        let mut client = RawClient::connect(server.addr).await.unwrap();
        // The server stops reading long before all of it is sent.
        let requests = GET.replacen('/', "/large", 1).repeat(1_000_000);
        let started = Instant::now();
        assert!(client.send(requests).await.is_err());
        let took = started.elapsed();
        assert!(took >= SECOND && took < SECOND + SLACK, "{took:?}");
        neighbour.was_served().await;
        drop(client);
        all_gone(&guard).await;
    }
    let stalled = journal
        .closed()
        .iter()
        .filter(|why| **why == Some(Reason::WriteStall))
        .count();
    assert_eq!(stalled, 3);
    // 4 KiB each into some MiB of two sockets: what a client's kernel takes for him is his own.
    let asked = asked.load(SeqCst);
    assert!(asked < 3 * 3000, "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_pipelines_and_reads_nothing_is_served_no_more_than_the_kernel_takes() {
    let (guard, journal) = guard(|rules| rules.write_stall(SECOND).no_max_requests());
    let server = serve(&guard, app()).await;
    let neighbour = Neighbour::of(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let requests = GET.repeat(1000);
    while client.send(&requests).await.is_ok() {}
    neighbour.was_served().await;
    drop(client);
    all_gone(&guard).await;
    let ended = journal.disconnected();
    let stalled = ended
        .iter()
        .filter(|(ended, _)| ended.reason == Reason::WriteStall);
    assert_eq!(stalled.count(), 1, "{ended:?}");
    // hyper reads no request while an answer waits.
    let kill = guard.recently_closed()[0];
    println!(
        "{} answers, {} KiB, taken unread",
        kill.requests,
        kill.written >> 10
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_pipelines_and_reads_is_served_to_the_end() {
    let (guard, journal) = guard(ConnGuardBuilder::no_max_requests);
    let server = serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    for _ in 0..20 {
        client.send(GET.repeat(500)).await.unwrap();
        for _ in 0..500 {
            assert_eq!(client.head().await.unwrap().status, 200);
            client.body(6).await.unwrap();
        }
    }
    drop(client);
    all_gone(&guard).await;
    assert!(journal.disconnected().is_empty());
}
