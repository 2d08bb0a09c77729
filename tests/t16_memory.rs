//! T16 in bytes: one hostile connection makes `palisade::serve` keep no more than its docs say, and
//! after a thousand connections of every kind all of it is released.
//!
//! One test, because the allocator counts for the whole process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use axum::{
    Router,
    body::Body,
    extract::{Request, WebSocketUpgrade},
    routing::{any, get},
};
use bytes::Bytes;
use futures_util::stream;
use palisade::conn::{ConnGuard, Phase};
use palisade_testkit::{
    alloc::CountingAllocator,
    clients::{RawClient, wait_until},
    guarded::{Neighbour, SECOND, ServerKind, all_gone},
    h2,
    process::{self, raise_file_limit},
};
use std::{
    convert::Infallible,
    future::pending,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const STREAMS: usize = 100;

/// The bytes of one HTTP/2 connection by default settings, without those that the app produces, as
/// the crate docs of palisade-serve state them: for each stream the send buffer, a piece, the
/// header list, 224 bytes for each of 300 fields, and its task; once the window of the connection
/// and its buffers.
const HTTP2_BYTES: usize = STREAMS * (64 + 16 + 32 + 66 + 4) * KIB + 512 * KIB + 256 * KIB;
/// The bytes of one HTTP/1 connection: a buffer in each direction, and the head.
const HTTP1_BYTES: usize = (64 + 64 + 32) * KIB;

/// `/64k` and `/1m` answer without end in pieces of that length, `/hang` never answers. All keep
/// their requests meanwhile.
fn app(produced: &Arc<AtomicUsize>) -> Router {
    let endless = |length: usize| {
        let produced = Arc::clone(produced);
        async move |request: Request| {
            let pieces = stream::repeat_with(move || {
                let _kept = &request;
                produced.fetch_add(1, SeqCst);
                Ok::<_, Infallible>(Bytes::from(vec![b'x'; length]))
            });
            Body::from_stream(pieces)
        }
    };
    let hang = async |request: Request| {
        pending::<()>().await;
        drop(request);
    };
    let upgrade = async |upgrade: WebSocketUpgrade| {
        upgrade.on_upgrade(async |mut socket| while let Some(Ok(_)) = socket.recv().await {})
    };
    Router::new()
        .route("/", get("served"))
        .route("/64k", any(endless(64 * KIB)))
        .route("/1m", any(endless(MIB)))
        .route("/hang", any(hang))
        .route("/ws", get(upgrade))
}

type Fields = Vec<(String, String)>;

/// A header list with one long value, the most bytes in few fields.
fn one_large() -> Fields {
    vec![("a".to_owned(), "b".repeat(30 * KIB))]
}

/// A header list with as many fields as are accepted, with short names.
fn many_small() -> Fields {
    let crumbs = (0..200).map(|_| ("cookie".to_owned(), "a=b".to_owned()));
    let others = (0..100).map(|n| (format!("a{n}"), String::new()));
    others.chain(crumbs).collect()
}

/// Returns a hundred requests for one connection, with `body` bytes of body on the first.
fn http2_requests(path: &str, fields: &Fields, body: usize) -> Vec<u8> {
    let (method, scheme, host) = (
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "x"),
    );
    let mut all = vec![method, scheme, host, (":path", path)];
    all.extend(
        fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    let heads = (0..STREAMS as u32).flat_map(|n| h2::headers(2 * n + 1, 0, &all));
    let mut bytes: Vec<u8> = heads.collect();
    bytes.extend(h2::frame(h2::DATA, 0, 1, &[0; 16_000]).repeat(body / 16_000));
    bytes
}

/// Returns an HTTP/1 request with a head of 32 KB and a part of its body.
fn http1_request(path: &str) -> Vec<u8> {
    let fields: String = (0..97)
        .map(|n| format!("a{n}: {}\r\n", "b".repeat(320)))
        .collect();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n{fields}\r\n");
    [head.into_bytes(), vec![0; 60_000]].concat()
}

/// Connects and exchanges the settings of HTTP/2.
async fn connect_http2(addr: SocketAddr, window: u32) -> RawClient {
    let mut client = RawClient::connect(addr).await.unwrap();
    client.send(h2::hello(window)).await.unwrap();
    h2::next(&mut client.stream, h2::WINDOW_UPDATE, 0).await;
    client
        .send(h2::frame(h2::SETTINGS, h2::ACK, 0, &[]))
        .await
        .unwrap();
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_of_hostile_connections_is_bounded_and_released() {
    raise_file_limit();
    let guard = ConnGuard::builder()
        .max_connections(2000)
        .probe_interval(SECOND / 4)
        .build()
        .unwrap();
    // What the guard says of a connection and a request is what is measured here. A head beyond
    // 8 KiB is charged to the budget.
    let bound = guard.memory_bound();
    let charged = (32 + 66 - 8) * KIB;
    let per_request = bound.request_bytes as usize + charged;
    assert_eq!(
        bound.connection_bytes as usize + STREAMS * per_request,
        HTTP2_BYTES
    );
    assert!(bound.connection_bytes as usize >= HTTP1_BYTES);

    let produced = Arc::new(AtomicUsize::new(0));
    let server = ServerKind::Serve.serve(&guard, app(&produced)).await;
    let addr = server.addr;
    let neighbour = Neighbour::start(addr);
    wait_until("the neighbour is connected", || guard.snapshot().open > 0).await;
    let open = 0x7fff_ffff;
    let over_http2 = [
        (
            "pieces of 64 KiB",
            open,
            http2_requests("/64k", &vec![], 0),
            HTTP2_BYTES + STREAMS * 64 * KIB,
        ),
        (
            "a piece of 1 MiB",
            open,
            http2_requests("/1m", &vec![], 0),
            HTTP2_BYTES + STREAMS * MIB,
        ),
        (
            "windows shut",
            0,
            http2_requests("/64k", &one_large(), 0),
            HTTP2_BYTES + STREAMS * 64 * KIB,
        ),
        (
            "large fields",
            0,
            http2_requests("/hang", &one_large(), 0),
            HTTP2_BYTES,
        ),
        (
            "many fields",
            0,
            http2_requests("/hang", &many_small(), 0),
            HTTP2_BYTES,
        ),
        (
            "uploads that are not read",
            0,
            http2_requests("/hang", &vec![], 256_000),
            HTTP2_BYTES,
        ),
        (
            "all of it",
            open,
            http2_requests("/64k", &many_small(), 256_000),
            HTTP2_BYTES + STREAMS * 64 * KIB,
        ),
    ];
    let over_http1 = [
        (
            "HTTP/1, pieces of 64 KiB",
            http1_request("/64k"),
            HTTP1_BYTES + 64 * KIB,
        ),
        (
            "HTTP/1, a piece of 1 MiB",
            http1_request("/1m"),
            HTTP1_BYTES + MIB,
        ),
        (
            "HTTP/1, an upload that is not read",
            http1_request("/hang"),
            HTTP1_BYTES,
        ),
    ];

    // The first round makes the allocations that are made once and kept.
    peak_bytes(
        &guard,
        &produced,
        vec![connect_http2(addr, 0).await],
        &http2_requests("/hang", &vec![], 0),
    )
    .await;
    let before = ALLOCATOR.live();
    for (name, window, bytes, max_bytes) in &over_http2 {
        let clients = vec![connect_http2(addr, *window).await];
        let kept = peak_bytes(&guard, &produced, clients, bytes)
            .await
            .saturating_sub(before);
        println!("{name}: {} KiB of {} KiB", kept / KIB, max_bytes / KIB);
        assert!(kept <= *max_bytes, "{name}: {kept} of {max_bytes}");
    }
    for (name, bytes, max_bytes) in &over_http1 {
        // Many connections, because each costs little.
        let mut clients = Vec::new();
        for _ in 0..STREAMS / 2 {
            clients.push(RawClient::connect(addr).await.unwrap());
        }
        let kept = peak_bytes(&guard, &produced, clients, bytes)
            .await
            .saturating_sub(before);
        let kept = kept / (STREAMS / 2);
        println!("{name}: {} KiB of {} KiB", kept / KIB, max_bytes / KIB);
        assert!(kept <= *max_bytes, "{name}: {kept} of {max_bytes}");
    }

    // Includes the files of the neighbour.
    let files = process::open_files();
    open_and_close_a_thousand(addr, &guard).await;
    neighbour.was_served().await;
    all_gone(&guard).await;
    let released = || ALLOCATOR.live() <= before + MIB;
    wait_until("live bytes are released", released).await;
    wait_until("files are closed", || self::process::open_files() <= files).await;
}

/// Sends `bytes` on each client, reads nothing, and returns the most bytes that were live. A
/// hundred requests are in flight then, or one for each client if there are several.
async fn peak_bytes(
    guard: &ConnGuard,
    produced: &AtomicUsize,
    mut clients: Vec<RawClient>,
    bytes: &[u8],
) -> usize {
    let requests = if clients.len() == 1 {
        STREAMS
    } else {
        clients.len()
    } as u64;
    let before = ALLOCATOR.reset_peak();
    for client in &mut clients {
        client.send(bytes).await.unwrap();
    }
    wait_until("all requests are in flight", || {
        guard.snapshot().in_flight >= requests
    })
    .await;
    let mut last = (0, 0);
    let full = || {
        let now = produced.load(SeqCst);
        last = if now == last.0 {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        last.1 == 100
    };
    wait_until("no more pieces are taken", full).await;
    assert!(
        guard.snapshot().in_flight >= requests,
        "a request has ended"
    );
    let peak = ALLOCATOR.peak();
    drop(clients);
    // The neighbour has two connections.
    wait_until("the connections are closed", || guard.snapshot().open <= 2).await;
    wait_until("their bytes are released", || {
        ALLOCATOR.live() <= before + MIB / 4
    })
    .await;
    peak
}

/// Opens a thousand connections of ten kinds at once and then closes all of them.
async fn open_and_close_a_thousand(addr: SocketAddr, guard: &ConnGuard) {
    let ten_requests = |path: &str| -> Vec<u8> {
        let streams = (0..10).map(|n| h2::get(2 * n + 1, path));
        [h2::hello(0x7fff_ffff), streams.collect::<Vec<_>>().concat()].concat()
    };
    let upgrade = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let kinds: [Vec<u8>; 10] = [
        vec![],
        b"GET / HTTP/1.1\r\nho".to_vec(),
        b"PRI * HT".to_vec(),
        [h2::hello(65_535), h2::frame(h2::HEADERS, 0, 1, &[0x82])].concat(),
        b"GET /64k HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\nG".to_vec(),
        http1_request("/hang"),
        upgrade.into(),
        ten_requests("/64k"),
        ten_requests("/hang"),
    ];
    let mut clients = Vec::new();
    for n in 0..1000 {
        let from = Ipv4Addr::new(127, 1 + (n % 50) as u8, 0, 1);
        let mut client = RawClient::connect_from(from, addr).await.unwrap();
        client.send(&kinds[n % 10]).await.unwrap();
        clients.push(client);
    }
    wait_until("all connections are open", || {
        let now = guard.snapshot();
        now.open >= 1000 && now.in_flight >= 2300 && now.connections_in(Phase::Upgraded) == 100
    })
    .await;
    println!(
        "a thousand: {} MiB live, {} MiB resident",
        ALLOCATOR.live() / MIB,
        resident_bytes() / MIB
    );
    for (n, client) in clients.iter().enumerate() {
        // Half of them close by reset.
        if n / 10 % 2 == 0 {
            client.stream.set_zero_linger().unwrap();
        }
    }
    drop(clients);
    wait_until("the connections are closed", || guard.snapshot().open <= 2).await;
    println!(
        "closed: {} MiB live, {} MiB resident",
        ALLOCATOR.live() / MIB,
        resident_bytes() / MIB
    );
}

/// Returns the resident bytes of this process, or 0 where the system does not report them.
fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .map_or(0, |pages: usize| pages * 4096)
}
