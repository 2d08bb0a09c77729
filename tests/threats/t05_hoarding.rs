//! T05: hoarders, which keep connections open by one small request now and then. One client keeps
//! only a few of them. When such connections from as many addresses as there are places fill the
//! cap, a newcomer that sends a request is still served.

use palisade::conn::ConnGuard;
use palisade_core::{Phase, Reason};
use palisade_testkit::clients::{RawClient, wait_until};
use palisade_testkit::{
    guarded::{GET, SECOND, SLACK, ServerKind, all_gone, app, assert_served, build_guard},
    on_servers,
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
    time::{Instant, sleep, timeout},
};

const CAP: usize = 200;
/// The time between two requests of a hoarder.
const REQUEST_INTERVAL: Duration = Duration::from_secs(3);

/// Keeps one connection from each address open by a request every [`REQUEST_INTERVAL`] until `stop`
/// is set, and opens a new one for each that the server closes.
fn spawn_hoarders(
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
                        && timeout(REQUEST_INTERVAL, client.rest()).await.is_err()
                    {
                    }
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
    })
    .collect()
}

async fn honest_newcomers_are_served_while_hoarders_fill_the_cap(kind: ServerKind) {
    let (guard, journal) = build_guard(ConnGuard::builder().max_connections(CAP));
    let server = kind.serve(&guard, app()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let addresses = (0..CAP + 50).map(|n| Ipv4Addr::new(127, 1, n as u8, 1));
    let hoarders = spawn_hoarders(server.addr, addresses, &stop);
    wait_until("the cap is full", || guard.snapshot().open >= CAP * 9 / 10).await;
    // A client that has loaded a page and stays on it.
    let mut reader = RawClient::connect(server.addr).await.unwrap();
    // All requests at once: between a first response and a second request this connection ranks no
    // higher than those of the hoarders, and may be evicted as one of them.
    reader.send(GET.repeat(40)).await.unwrap();
    for _ in 0..40 {
        assert_eq!(reader.head().await.unwrap().status, 200);
        assert_eq!(reader.body(6).await.unwrap(), b"served");
    }

    const ATTEMPTS: usize = 300;
    let (mut admitted, mut slowest) = (0, Duration::ZERO);
    for n in 0..ATTEMPTS {
        let started = Instant::now();
        let honest = Ipv4Addr::new(127, 0, (n % 100) as u8, 7);
        let answer = kind.ask(honest, server.addr, "/").await;
        admitted += usize::from(answer.is_ok_and(|answer| answer.status() == 200));
        slowest = slowest.max(started.elapsed());
        sleep(Duration::from_millis(20)).await; // In total, two requests of each hoarder.
    }
    println!(
        "{admitted} of {ATTEMPTS}, the slowest in {slowest:?}; {:?}",
        guard.snapshot()
    );
    assert!(admitted * 100 >= ATTEMPTS * 99, "{admitted} of {ATTEMPTS}");
    assert!(slowest < SLACK, "{slowest:?}");
    assert!(guard.snapshot().open <= CAP);
    assert_served(&mut reader).await;
    stop.store(true, SeqCst);
    hoarders.join_all().await;
    drop(reader);
    all_gone(&guard).await;
    let ended = journal.disconnected();
    assert!(ended.iter().any(|(ended, _)| ended.phase == Phase::Idle));
}

async fn one_address_keeps_all_of_its_connections_while_places_are_free(kind: ServerKind) {
    let (guard, journal) = build_guard(ConnGuard::builder().max_connections(1000));
    let server = kind.serve(&guard, app()).await;
    // Thirty connections of one address with a request now and then, and 150 event streams of
    // another.
    let (office, phones) = (Ipv4Addr::new(127, 0, 2, 1), Ipv4Addr::new(127, 0, 3, 1));
    let (mut idle, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        let mut client = RawClient::connect_from(office, server.addr).await.unwrap();
        assert_served(&mut client).await;
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
    wait_until("all streams are in flight", || {
        guard.snapshot().in_flight == 150
    })
    .await;
    sleep(7 * SECOND).await;
    for client in &mut idle {
        assert_served(client).await;
    }
    assert_eq!(guard.snapshot().in_flight, 150);
    assert!(journal.disconnected().is_empty() && journal.closed().is_empty());
    drop((idle, streams));
    all_gone(&guard).await;
}

async fn when_places_are_short_a_client_keeps_few_idle_connections_and_a_browser_all_six(
    kind: ServerKind,
) {
    // Eviction begins at ninety connections. A client keeps a quarter of what is left until then,
    // and at least 8.
    let (guard, journal) = build_guard(ConnGuard::builder().max_connections(100));
    let server = kind.serve(&guard, app()).await;
    let mut browser = Vec::new();
    for _ in 0..6 {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        assert_served(&mut client).await;
        browser.push(client);
    }
    let hoarder = Ipv4Addr::new(127, 0, 2, 1);
    let mut hoard = Vec::new();
    for _ in 0..60 {
        let mut client = RawClient::connect_from(hoarder, server.addr).await.unwrap();
        assert_served(&mut client).await;
        hoard.push(client);
    }
    sleep(REQUEST_INTERVAL).await;
    let mut kept = 0;
    for client in &mut hoard {
        client.send(GET).await.unwrap();
        let head = client.head().await.unwrap();
        client.body(6).await.unwrap();
        if head.header("connection") == Some("close") {
            assert!(client.rest().await.is_empty()); // The server closes as announced.
        } else {
            kept += 1;
        }
    }
    assert_eq!(kept, 8);
    wait_until("the other connections have closed", || {
        guard.snapshot().open == 8 + 6
    })
    .await;
    for client in &mut browser {
        assert_served(client).await;
    }
    assert_eq!(guard.snapshot().connections_in(Phase::Idle), 8 + 6);
    assert!(journal.disconnected().is_empty());
    let closed = journal.closed();
    assert_eq!(closed, vec![Some(Reason::KeepAlivePerClient); 52]);
    drop((browser, hoard));
    all_gone(&guard).await;
}

on_servers! {
    [axum, serve, tonic]
    honest_newcomers_are_served_while_hoarders_fill_the_cap,
    one_address_keeps_all_of_its_connections_while_places_are_free,
    when_places_are_short_a_client_keeps_few_idle_connections_and_a_browser_all_six,
}
