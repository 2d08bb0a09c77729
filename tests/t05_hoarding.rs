//! T05: connections that are kept with one small request now and then. One client keeps a few of
//! them; and with the cap full of them, from as many addresses as there are places, whoever comes
//! with a request is served all the same.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use guarded::{GET, SECOND, all_gone, app, guard, serve, served};
use palisade::conn::ConnGuard;
use palisade_core::{Phase, Reason};
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
    time::{Instant, sleep, timeout},
};

const CAP: usize = 200;
/// The hoarders' own pace.
const PACE: Duration = Duration::from_secs(3);

/// Keeps a connection from each address until told to stop, by one request every [`PACE`], and
/// makes a new one whenever one is cut.
fn hoard(
    addr: SocketAddr,
    from: impl Iterator<Item = Ipv4Addr>,
    stop: &Arc<AtomicBool>,
) -> JoinSet<()> {
    from.map(|from| {
        let stop = Arc::clone(stop);
        async move {
            while !stop.load(SeqCst) {
                if let Ok(mut client) = RawClient::connect_from(from, addr).await {
                    while client.send(GET).await.is_ok()
                        && client.head().await.is_ok()
                        && client.body(6).await.is_ok()
                        && !stop.load(SeqCst)
                        && timeout(PACE, client.rest()).await.is_err()
                    {}
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_cap_full_of_hoarders_honest_newcomers_are_served() {
    let (guard, journal) = guard(ConnGuard::builder().max_connections(CAP));
    let server = serve(&guard, app()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let addresses = (0..CAP + 50).map(|n| Ipv4Addr::new(127, 1, n as u8, 1));
    let hoarders = hoard(server.addr, addresses, &stop);
    until("the cap is full", || guard.snapshot().open >= CAP * 9 / 10).await;
    // Somebody who loaded a page before, and reads it.
    let mut reader = RawClient::connect(server.addr).await.unwrap();
    // All of it asked at once: between a first answer and a second request he is no better than
    // the hoarders, and may go as one of them.
    reader.send(GET.repeat(40)).await.unwrap();
    for _ in 0..40 {
        assert_eq!(reader.head().await.unwrap().status, 200);
        assert_eq!(reader.body(6).await.unwrap(), b"served");
    }

    const TRIES: usize = 300;
    let (mut let_in, mut slowest) = (0, Duration::ZERO);
    for n in 0..TRIES {
        let started = Instant::now();
        let honest = Ipv4Addr::new(127, 0, (n % 100) as u8, 7);
        let answer = guarded::ask(honest, server.addr, "/").await;
        let_in += usize::from(answer.is_ok_and(|answer| answer.status() == 200));
        slowest = slowest.max(started.elapsed());
        sleep(Duration::from_millis(20)).await; // Through two of the hoarders' rounds.
    }
    println!(
        "{let_in} of {TRIES}, the slowest in {slowest:?}; {:?}",
        guard.snapshot()
    );
    assert!(let_in * 100 >= TRIES * 99, "{let_in} of {TRIES}");
    assert!(slowest < SECOND, "{slowest:?}");
    assert!(guard.snapshot().open <= CAP);
    served(&mut reader).await;
    stop.store(true, SeqCst);
    hoarders.join_all().await;
    drop(reader);
    all_gone(&guard).await;
    let ended = journal.disconnected();
    assert!(ended.iter().any(|(ended, _)| ended.phase == Phase::Idle));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_there_are_places_one_address_keeps_all_of_its_connections() {
    let (guard, journal) = guard(ConnGuard::builder().max_connections(1000));
    let server = serve(&guard, app()).await;
    // Thirty clients behind one address that ask now and then, and 150 event streams of another.
    let (office, phones) = (Ipv4Addr::new(127, 0, 2, 1), Ipv4Addr::new(127, 0, 3, 1));
    let (mut idle, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        let mut client = RawClient::connect_from(office, server.addr).await.unwrap();
        served(&mut client).await;
        idle.push(client);
    }
    for _ in 0..150 {
        let mut client = RawClient::connect_from(phones, server.addr).await.unwrap();
        client
            .send("GET /hang HTTP/1.1\r\nhost: test\r\n\r\n")
            .await
            .unwrap();
        streams.push(client);
    }
    until("all are there", || guard.snapshot().in_flight == 150).await;
    sleep(7 * SECOND).await;
    for client in &mut idle {
        served(client).await;
    }
    assert_eq!(guard.snapshot().in_flight, 150);
    assert!(journal.disconnected().is_empty() && journal.closed().is_empty());
    drop((idle, streams));
    all_gone(&guard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_places_are_short_one_client_keeps_few_idle_ones_and_a_browser_all_of_its_own() {
    // Ninety before eviction begins: a client keeps a quarter of what is left, and at least 8.
    let (guard, journal) = guard(ConnGuard::builder().max_connections(100));
    let server = serve(&guard, app()).await;
    let mut browser = Vec::new();
    for _ in 0..6 {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        served(&mut client).await;
        browser.push(client);
    }
    let hoarder = Ipv4Addr::new(127, 0, 2, 1);
    let mut hoard = Vec::new();
    for _ in 0..60 {
        let mut client = RawClient::connect_from(hoarder, server.addr).await.unwrap();
        served(&mut client).await;
        hoard.push(client);
    }
    sleep(PACE).await;
    let mut kept = 0;
    for client in &mut hoard {
        client.send(GET).await.unwrap();
        let head = client.head().await.unwrap();
        client.body(6).await.unwrap();
        if head.header("connection") == Some("close") {
            assert!(client.rest().await.is_empty()); // And so it does.
        } else {
            kept += 1;
        }
    }
    assert_eq!(kept, 8);
    until("the others have gone", || guard.snapshot().open == 8 + 6).await;
    for client in &mut browser {
        served(client).await;
    }
    assert_eq!(guard.snapshot().at(Phase::Idle), 8 + 6);
    assert!(journal.disconnected().is_empty());
    let closed = journal.closed();
    assert_eq!(closed, vec![Some(Reason::KeepAlivePerClient); 52]);
    drop((browser, hoard));
    all_gone(&guard).await;
}
