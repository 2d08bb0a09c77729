//! T06, T07, places: requests that are not at their end take every place, from addresses that have
//! few connections each. Clients without a connection find a place at once.

use axum::{body::Bytes, routing::post};
use palisade::conn::ConnGuard;
use palisade_testkit::{
    clients::{self, RawClient},
    guarded::{ServerKind, all_gone, app, build_guard},
    h2, on_servers,
};
use std::net::{Ipv4Addr, SocketAddr};
use tokio::{
    io::Interest,
    task::JoinSet,
    time::{Duration, Instant, sleep},
};

const PLACES: usize = 200;
/// More than there are places.
const ATTACKERS: u8 = 240;
/// No more than four attackers of each.
const ADDRESSES: u8 = 60;
/// The pause of an attacker before it comes again, and the time between two honest requests.
const PAUSE: Duration = Duration::from_millis(100);
/// In this time nothing that stands still is evicted, but for an upload of which more is certainly
/// to come.
const TIME: Duration = Duration::from_millis(3500);

/// Sends `request`, waits without reading, and does so again when the server has closed the
/// connection.
async fn hold(from: Ipv4Addr, to: SocketAddr, request: Bytes, pause: Duration) {
    loop {
        if let Ok(mut client) = RawClient::connect_from(from, to).await
            && client.send(&request).await.is_ok()
        {
            while client
                .stream
                .ready(Interest::READABLE)
                .await
                .is_ok_and(|it| !it.is_read_closed())
            {
                sleep(PAUSE).await;
            }
        }
        sleep(pause).await;
    }
}

/// What attackers do.
struct Attack {
    request: Vec<u8>,
    addresses: u8,
    /// The pause before an attacker comes again.
    pause: Duration,
    /// The time from its beginning to the first newcomer.
    age: Duration,
    /// The part of the newcomers that is served at least.
    least: f64,
}

async fn newcomers_are_served_beside(kind: ServerKind, request: Vec<u8>) {
    let attack = Attack {
        request,
        addresses: ADDRESSES,
        pause: PAUSE,
        age: Duration::ZERO,
        least: 0.95,
    };
    newcomers_are_served(kind, attack).await;
}

async fn newcomers_are_served(kind: ServerKind, attack: Attack) {
    let Attack {
        addresses,
        pause,
        age,
        least,
        ..
    } = attack;
    let (guard, _) = build_guard(ConnGuard::builder().max_connections(PLACES));
    let upload = async |body: Bytes| body.len().to_string();
    let app = app().route("/upload", post(upload));
    let server = kind.serve(&guard, app).await;
    let (mut attackers, request) = (JoinSet::new(), Bytes::from(attack.request));
    for number in 0..ATTACKERS {
        let from = Ipv4Addr::new(127, 9, number % addresses, 1);
        attackers.spawn(hold(from, server.addr, request.clone(), pause));
    }
    let is_full = || guard.snapshot().open >= PLACES * 9 / 10;
    clients::wait_until("the attackers have most places", is_full).await;
    sleep(age).await; // The age of the attack, not a wait for anything.
    let (begin, mut sent, mut served) = (Instant::now(), 0_u32, 0_u32);
    while begin.elapsed() < TIME {
        // Each from a network of its own.
        let from = Ipv4Addr::new(127, 10, sent as u8, 1);
        let answer = clients::get(from, server.addr, "/").await;
        sent += 1;
        served += u32::from(answer.is_ok_and(|answer| answer.status() == 200));
        sleep(PAUSE).await;
    }
    assert!(is_full(), "{:?}", guard.snapshot());
    assert!(
        f64::from(served) >= least * f64::from(sent),
        "{served} of {sent}"
    );
    attackers.shutdown().await;
    drop(server);
    all_gone(&guard).await;
}

fn half_sent_upload() -> Vec<u8> {
    let head = "POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 20000\r\n\r\n";
    [head.as_bytes(), &[b'x'; 10_000]].concat()
}

async fn half_sent_uploads(kind: ServerKind) {
    newcomers_are_served_beside(kind, half_sent_upload()).await;
}

// None of the places is kept for clients without a connection: all attackers are such.
async fn half_sent_uploads_of_as_many_addresses(kind: ServerKind) {
    let second = Duration::from_secs(1);
    let attack = Attack {
        request: half_sent_upload(),
        addresses: ATTACKERS,
        pause: second,
        // From then on, uploads are evicted.
        age: second,
        // Attackers that come again compete with them. It is a sixth where uploads stay for 4 s.
        least: 0.8,
    };
    newcomers_are_served(kind, attack).await;
}

async fn half_sent_chunked_uploads(kind: ServerKind) {
    let head = "POST /upload HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nh";
    newcomers_are_served_beside(kind, head.into()).await;
}

async fn half_sent_http2_uploads(kind: ServerKind) {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/upload"),
        (":authority", "x"),
    ];
    let request = [h2::hello(65_535), h2::headers(1, 0, &fields)].concat();
    newcomers_are_served_beside(kind, request).await;
}

async fn unread_responses(kind: ServerKind) {
    newcomers_are_served_beside(kind, b"GET /endless HTTP/1.1\r\nhost: test\r\n\r\n".into()).await;
}

async fn slow_handlers(kind: ServerKind) {
    newcomers_are_served_beside(kind, b"GET /hang HTTP/1.1\r\nhost: test\r\n\r\n".into()).await;
}

on_servers! {
    [axum, serve, tonic]
    half_sent_uploads,
    half_sent_uploads_of_as_many_addresses,
    half_sent_chunked_uploads,
    half_sent_http2_uploads,
    unread_responses,
    slow_handlers,
}
