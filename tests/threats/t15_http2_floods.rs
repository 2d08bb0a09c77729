//! T15: floods of HTTP/2 frames that cost the client nothing: Rapid Reset, `MadeYouReset`,
//! CONTINUATION, empty and tiny DATA, and frames that are not allowed. Each closes the connection
//! at once, and only a few handlers ever start. Frames that HTTP/2 allows in any number are limited
//! by the guard: `t15_http2_abuse.rs` tests them as well, with the honest clients that resemble
//! them.

use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    routing::{get, post},
};
use palisade::conn::{ConnGuard, ConnInfo, Reason};
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{
        Neighbour, SECOND, SLACK, ServerKind, all_gone, send_and_read_until_closed,
        serve_with_tonic,
    },
    h2,
};
use std::{
    collections::HashMap,
    future::pending,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
};
use tokio::task::JoinSet;

/// The number of handlers started and running, by client address.
#[derive(Clone, Default)]
struct Handlers(Arc<Mutex<HashMap<IpAddr, (usize, usize)>>>);

/// One running handler, counted until it is dropped.
struct RunningHandler(Handlers, IpAddr);

impl Handlers {
    fn start(&self, conn: &ConnInfo) -> RunningHandler {
        let client = conn.peer().ip();
        let mut handlers = self.0.lock().unwrap();
        let (started, running) = handlers.entry(client).or_default();
        (*started, *running) = (*started + 1, *running + 1);
        RunningHandler(self.clone(), client)
    }

    fn started(&self, client: Ipv4Addr) -> usize {
        self.0
            .lock()
            .unwrap()
            .get(&client.into())
            .map_or(0, |(started, _)| *started)
    }

    fn running(&self) -> usize {
        self.0
            .lock()
            .unwrap()
            .values()
            .map(|(_, running)| *running)
            .sum()
    }
}

impl Drop for RunningHandler {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().get_mut(&self.1).unwrap().1 -= 1;
    }
}

/// `/hang` never answers, `/keep` never reads its body, `/read` does. `/` serves the neighbour.
fn app(handlers: &Handlers) -> Router {
    let [hang, keep, read] = [(); 3].map(|()| handlers.clone());
    let hang = async move |Extension(conn): Extension<Arc<ConnInfo>>| {
        let _running = hang.start(&conn);
        pending::<()>().await;
    };
    let keep = async move |Extension(conn): Extension<Arc<ConnInfo>>, body: Body| {
        let _running = keep.start(&conn);
        pending::<()>().await;
        drop(body);
    };
    let read = async move |Extension(conn): Extension<Arc<ConnInfo>>, body: Body| {
        let _running = read.start(&conn);
        let _ = to_bytes(body, 1 << 24).await;
    };
    Router::new()
        .route("/", get("served"))
        .route("/hang", get(hang))
        .route("/keep", post(keep))
        .route("/read", post(read))
}

/// Frames sent after the preface, the expected GOAWAY code, and the most handlers that may start.
struct Flood {
    name: &'static str,
    frames: Vec<u8>,
    goaway_code: u32,
    max_handlers: usize,
}

fn flood(name: &'static str, frames: Vec<u8>, goaway_code: u32, max_handlers: usize) -> Flood {
    Flood {
        name,
        frames,
        goaway_code,
        max_handlers,
    }
}

/// Returns the identifiers of the first `count` streams.
fn stream_ids(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|n| 2 * n + 1)
}

/// Returns 3,000 streams, each with a request for `/hang` followed by `next(stream)`.
fn requests_followed_by(next: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    stream_ids(3000)
        .flat_map(|stream| [h2::get(stream, "/hang"), next(stream)].concat())
        .collect()
}

fn window_overflows() -> Vec<u8> {
    requests_followed_by(|stream| h2::open(stream, 0x7fff_ffff))
}

fn post_head(stream: u32, path: &str, length: Option<&str>) -> Vec<u8> {
    let (method, scheme, host) = (
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "x"),
    );
    let mut fields = vec![method, scheme, host, (":path", path)];
    fields.extend(length.map(|length| ("content-length", length)));
    h2::headers(stream, 0, &fields)
}

fn floods() -> Vec<Flood> {
    use h2::{
        CANCEL, CONTINUATION, DATA, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR,
        HEADERS, PRIORITY, PROTOCOL_ERROR, RST_STREAM, frame,
    };
    let reset = |stream| frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
    let depends_on = |on: u32| [&on.to_be_bytes()[..], &[0]].concat();
    let upload = |path, piece: &[u8], flags, count| {
        [
            post_head(1, path, None),
            frame(DATA, flags, 1, piece).repeat(count),
        ]
        .concat()
    };
    let head_then = |rest: Vec<u8>| [frame(HEADERS, 1, 1, &[0x82]), rest].concat();
    vec![
        flood(
            "rapid reset",
            stream_ids(300)
                .flat_map(|stream| [h2::get(stream, "/hang"), reset(stream)].concat())
                .collect(),
            ENHANCE_YOUR_CALM,
            50,
        ),
        // MadeYouReset: frames that make the server reset streams by itself.
        flood(
            "window overflows",
            window_overflows(),
            ENHANCE_YOUR_CALM,
            1024,
        ),
        flood(
            "a stream depends on itself",
            requests_followed_by(|stream| frame(PRIORITY, 0, stream, &depends_on(stream))),
            ENHANCE_YOUR_CALM,
            1024,
        ),
        flood(
            "wrong lengths",
            stream_ids(3000)
                .flat_map(|stream| {
                    [
                        post_head(stream, "/read", Some("1")),
                        frame(DATA, 1, stream, b"two"),
                    ]
                    .concat()
                })
                .collect(),
            ENHANCE_YOUR_CALM,
            1024,
        ),
        flood(
            "malformed heads",
            stream_ids(3000)
                .flat_map(|stream| h2::headers(stream, h2::END_STREAM, &[(":method", "GET")]))
                .collect(),
            ENHANCE_YOUR_CALM,
            0,
        ),
        flood(
            "too many at once",
            requests_followed_by(|_| vec![]),
            ENHANCE_YOUR_CALM,
            100,
        ),
        // The variants of MadeYouReset that close the connection.
        flood(
            "DATA on half-closed streams",
            requests_followed_by(|stream| frame(DATA, 0, stream, b"a")),
            PROTOCOL_ERROR,
            100,
        ),
        flood(
            "HEADERS on half-closed streams",
            requests_followed_by(|stream| h2::get(stream, "/hang")),
            PROTOCOL_ERROR,
            100,
        ),
        flood(
            "a window increment of 0 for a stream",
            requests_followed_by(|stream| h2::open(stream, 0)),
            PROTOCOL_ERROR,
            100,
        ),
        flood(
            "a PRIORITY that is too short",
            requests_followed_by(|stream| frame(PRIORITY, 0, stream, &[0; 4])),
            PROTOCOL_ERROR,
            100,
        ),
        flood(
            "a window increment of 0",
            [h2::get(1, "/hang"), h2::open(0, 0)].concat(),
            PROTOCOL_ERROR,
            1,
        ),
        flood(
            "a window overflow of the connection",
            [h2::get(1, "/hang"), h2::open(0, 0x7fff_ffff)].concat(),
            FLOW_CONTROL_ERROR,
            1,
        ),
        flood("a reset of an idle stream", reset(1), PROTOCOL_ERROR, 0),
        // Heads without an end.
        flood(
            "empty CONTINUATION",
            head_then(frame(CONTINUATION, 0, 1, &[]).repeat(10_000)),
            ENHANCE_YOUR_CALM,
            0,
        ),
        flood(
            "CONTINUATION of a field",
            head_then(frame(CONTINUATION, 0, 1, &h2::block(&[("a", "b")])).repeat(10_000)),
            ENHANCE_YOUR_CALM,
            0,
        ),
        // Bodies.
        flood(
            "empty DATA",
            upload("/read", &[], 0, 10_000),
            ENHANCE_YOUR_CALM,
            1,
        ),
        flood(
            "empty DATA that is not read",
            upload("/keep", &[], 0, 10_000),
            ENHANCE_YOUR_CALM,
            1,
        ),
        flood(
            "DATA of one byte",
            upload("/read", b"a", 0, 100_000),
            ENHANCE_YOUR_CALM,
            1,
        ),
        flood(
            "DATA of one byte that is not read",
            upload("/keep", b"a", 0, 100_000),
            ENHANCE_YOUR_CALM,
            1,
        ),
        flood(
            "nothing but padding",
            upload("/read", &[255; 256], 8, 3000),
            ENHANCE_YOUR_CALM,
            1,
        ),
        flood(
            "DATA beyond the window",
            upload("/keep", &[0; h2::FRAME], 0, 100),
            FLOW_CONTROL_ERROR,
            1,
        ),
        // Frames that are too long.
        flood(
            "a long frame",
            upload("/keep", &[0; h2::FRAME + 1], 0, 1),
            FRAME_SIZE_ERROR,
            1,
        ),
        flood(
            "a long frame of an unknown type",
            frame(0xfa, 0, 0, &[0; h2::FRAME + 1]),
            FRAME_SIZE_ERROR,
            0,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_flood_closes_the_connection_at_once_and_starts_few_handlers() {
    for server in ServerKind::ALL {
        let guard = ConnGuard::default();
        let handlers = Handlers::default();
        let app = app(&handlers);
        let served = server.serve(&guard, app).await;
        let neighbour = Neighbour::start(served.addr);
        let mut allowed = Vec::new();
        for (
            Flood {
                name,
                frames,
                goaway_code,
                max_handlers,
            },
            n,
        ) in floods().into_iter().zip(0..)
        {
            let from = Ipv4Addr::new(127, 0, 2, n);
            let client = RawClient::connect_from(from, served.addr).await.unwrap();
            let bytes = [h2::hello(65_535), frames].concat();
            let (answer, after) = send_and_read_until_closed(client, bytes).await;
            assert!(after < SLACK, "{name}, {server}: {after:?}");
            let last = h2::frames(&answer)
                .into_iter()
                .rfind(|frame| frame.kind == h2::GOAWAY);
            assert_eq!(
                last.and_then(|frame| frame.code()),
                Some(goaway_code),
                "{name}, {server}"
            );
            // hyper by default allows 200 requests at once.
            let max_handlers = if server == ServerKind::Axum {
                2 * max_handlers
            } else {
                max_handlers
            };
            allowed.push((name, from, max_handlers));
        }
        neighbour.was_served().await;
        all_gone(&guard).await;
        wait_until("the handlers have ended", || handlers.running() == 0).await;
        for (name, from, max_handlers) in allowed {
            let started = handlers.started(from);
            assert!(started <= max_handlers, "{name}, {server}: {started}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unhardened_tonic_server_resets_any_number_of_streams_for_a_client() {
    let (guard, handlers) = (ConnGuard::default(), Handlers::default());
    let server = serve_with_tonic(&guard, false, app(&handlers)).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send([h2::hello(65_535), window_overflows()].concat())
        .await
        .unwrap();
    let reset = h2::next(&mut client.stream, h2::RST_STREAM, 5999).await;
    assert_eq!(reset, h2::FLOW_CONTROL_ERROR.to_be_bytes());
    assert_eq!(guard.snapshot().open, 1);
    drop(client);
    all_gone(&guard).await;
}

/// Returns the frames that HTTP/2 allows in any number, with or without a request in flight.
fn unlimited_frames() -> Vec<(&'static str, Vec<u8>)> {
    use h2::{GOAWAY, PING, PRIORITY, RST_STREAM, SETTINGS, frame};
    let large = "b".repeat(33_000);
    let refused = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        ("a", &large),
    ];
    vec![
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("acknowledgements of PING", frame(PING, h2::ACK, 0, &[0; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        (
            "long SETTINGS",
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255].repeat(2000)),
        ),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7])),
        ("WINDOW_UPDATE of a stream", h2::open(1, 1)),
        ("frames of an unknown type", frame(0xfa, 0, 0, &[0; 1000])),
        (
            "resets of a closed stream",
            frame(RST_STREAM, 0, 1, &h2::CANCEL.to_be_bytes()),
        ),
        ("GOAWAY", frame(GOAWAY, 0, 0, &[0; 8])),
        // Answered 431 by the h2 crate itself, on a new stream each time.
        (
            "heads that are too large",
            stream_ids(100)
                .skip(1)
                .flat_map(|stream| h2::headers(stream, h2::END_STREAM, &refused))
                .collect(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_allowed_in_any_number_that_carry_no_request_on_close_the_connection() {
    for server in ServerKind::ALL {
        let (journal, handlers) = (Journal::default(), Handlers::default());
        let guard = ConnGuard::builder()
            .metrics(journal.clone())
            .build()
            .unwrap();
        let served = server.serve(&guard, app(&handlers)).await;
        let neighbour = Neighbour::start(served.addr);
        let mut floods = JoinSet::new();
        for ((name, frames), n) in unlimited_frames().into_iter().zip(0..) {
            let client = RawClient::connect_from(Ipv4Addr::new(127, 0, 2, n), served.addr).await;
            let first = [h2::hello(65_535), h2::get(1, "/hang")].concat();
            // Twice the allowed overhead.
            let rest = frames.repeat((512 << 10) / frames.len() + 1);
            floods.spawn(async move {
                let (_, after) =
                    send_and_read_until_closed(client.unwrap(), [first, rest].concat()).await;
                assert!(after < 2 * SECOND + SLACK, "{name}, {server}: {after:?}");
            });
        }
        floods.join_all().await;
        neighbour.was_served().await;
        all_gone(&guard).await;
        wait_until("the handlers have ended", || handlers.running() == 0).await;
        let ended = journal.disconnected();
        let ended = ended
            .iter()
            .filter(|(ended, _)| ended.reason == Reason::NoProgress)
            .count();
        assert_eq!(ended, unlimited_frames().len(), "{server}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_cancelled_one_by_one_close_the_connection() {
    for server in ServerKind::ALL {
        let (journal, handlers) = (Journal::default(), Handlers::default());
        let guard = ConnGuard::builder()
            .metrics(journal.clone())
            .build()
            .unwrap();
        let served = server.serve(&guard, app(&handlers)).await;
        let neighbour = Neighbour::start(served.addr);
        let from = Ipv4Addr::new(127, 0, 2, 1);
        let mut client = RawClient::connect_from(from, served.addr).await.unwrap();
        client.send(h2::hello(65_535)).await.unwrap();
        let is_closed = || journal.closed().contains(&Some(Reason::CancelledRequests));
        for (stream, requests) in stream_ids(10_000).zip(1..) {
            let reset = h2::frame(h2::RST_STREAM, 0, stream, &h2::CANCEL.to_be_bytes());
            // The client cancels each request only after its handler has started.
            let _ = client.send(h2::get(stream, "/hang")).await;
            wait_until("the handler has started", || {
                handlers.started(from) == requests || is_closed()
            })
            .await;
            let _ = client.send(reset).await;
            if is_closed() {
                break;
            }
        }
        assert!(is_closed(), "{server}: the connection is still open");
        let started = handlers.started(from);
        // The sweeper runs four times a second.
        assert!((200..5000).contains(&started), "{server}: {started}");
        neighbour.was_served().await;
        drop(client);
        all_gone(&guard).await;
        wait_until("the handlers have ended", || handlers.running() == 0).await;
    }
}
