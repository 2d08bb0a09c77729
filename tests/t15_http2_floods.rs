//! T15: floods of HTTP/2 frames that cost the client nothing: Rapid Reset, `MadeYouReset`,
//! CONTINUATION, empty and tiny DATA, and frames that may not be. Each ends the connection at once,
//! and only a few handlers are ever started. What HTTP/2 allows in any number the guard ends: it is
//! in `t15_http2_abuse.rs` as well, with the honest clients that look like it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    routing::{get, post},
};
use guarded::{Neighbour, SECOND, SERVERS, SLACK, all_gone, by, exchange, h2, tonic_s_own};
use palisade::conn::{ConnGuard, ConnInfo, Reason};
use palisade_testkit::{
    Journal,
    clients::{RawClient, until},
};
use std::{
    collections::HashMap,
    future::pending,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
};
use tokio::task::JoinSet;

/// How many handlers were started for each client, and are at work.
#[derive(Clone, Default)]
struct Handlers(Arc<Mutex<HashMap<IpAddr, (usize, usize)>>>);

struct AtWork(Handlers, IpAddr);

impl Handlers {
    fn enter(&self, conn: &ConnInfo) -> AtWork {
        let client = conn.peer().ip();
        let mut handlers = self.0.lock().unwrap();
        let (started, at_work) = handlers.entry(client).or_default();
        (*started, *at_work) = (*started + 1, *at_work + 1);
        AtWork(self.clone(), client)
    }

    fn started(&self, client: Ipv4Addr) -> usize {
        self.0
            .lock()
            .unwrap()
            .get(&client.into())
            .map_or(0, |(started, _)| *started)
    }

    fn at_work(&self) -> usize {
        self.0
            .lock()
            .unwrap()
            .values()
            .map(|(_, at_work)| *at_work)
            .sum()
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().get_mut(&self.1).unwrap().1 -= 1;
    }
}

/// `/hang` never answers, `/keep` never reads its body, `/read` does; `/` is the neighbour's.
fn app(handlers: &Handlers) -> Router {
    let [hang, keep, read] = [(); 3].map(|()| handlers.clone());
    let hang = async move |Extension(conn): Extension<Arc<ConnInfo>>| {
        let _at_work = hang.enter(&conn);
        pending::<()>().await;
    };
    let keep = async move |Extension(conn): Extension<Arc<ConnInfo>>, body: Body| {
        let _at_work = keep.enter(&conn);
        pending::<()>().await;
        drop(body);
    };
    let read = async move |Extension(conn): Extension<Arc<ConnInfo>>, body: Body| {
        let _at_work = read.enter(&conn);
        let _ = to_bytes(body, 1 << 24).await;
    };
    Router::new()
        .route("/", get("served"))
        .route("/hang", get(hang))
        .route("/keep", post(keep))
        .route("/read", post(read))
}

/// What is sent after the preface, why the connection ends, and how many handlers may have begun.
struct Flood {
    what: &'static str,
    frames: Vec<u8>,
    ends: u32,
    handlers: usize,
}

fn flood(what: &'static str, frames: Vec<u8>, ends: u32, handlers: usize) -> Flood {
    Flood {
        what,
        frames,
        ends,
        handlers,
    }
}

/// The numbers of so many streams.
fn numbers(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|n| 2 * n + 1)
}

/// 3,000 streams, each with a request for `/hang` and then `and`.
fn streams(and: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    let numbers = numbers(3000);
    numbers
        .flat_map(|stream| [h2::get(stream, "/hang"), and(stream)].concat())
        .collect()
}

fn overflows() -> Vec<u8> {
    streams(|stream| h2::open(stream, 0x7fff_ffff))
}

fn request(stream: u32, path: &str, length: Option<&str>) -> Vec<u8> {
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
        CANCEL, CONTINUATION, DATA, ENHANCE_YOUR_CALM as CALM, FLOW_CONTROL_ERROR as WINDOW,
        FRAME_SIZE_ERROR as SIZE, HEADERS, PRIORITY, PROTOCOL_ERROR as PROTOCOL, RST_STREAM, frame,
    };
    let reset = |stream| frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
    let depends = |on: u32| [&on.to_be_bytes()[..], &[0]].concat();
    let body = |path, piece: &[u8], flags, count| {
        [
            request(1, path, None),
            frame(DATA, flags, 1, piece).repeat(count),
        ]
        .concat()
    };
    let head = |and: Vec<u8>| [frame(HEADERS, 1, 1, &[0x82]), and].concat();
    vec![
        flood(
            "rapid reset",
            numbers(300)
                .flat_map(|stream| [h2::get(stream, "/hang"), reset(stream)].concat())
                .collect(),
            CALM,
            50,
        ),
        // MadeYouReset: what makes the server reset a stream by itself.
        flood("window overflows", overflows(), CALM, 1024),
        flood(
            "a stream depends on itself",
            streams(|stream| frame(PRIORITY, 0, stream, &depends(stream))),
            CALM,
            1024,
        ),
        flood(
            "lengths that are wrong",
            numbers(3000)
                .flat_map(|stream| {
                    [
                        request(stream, "/read", Some("1")),
                        frame(DATA, 1, stream, b"two"),
                    ]
                    .concat()
                })
                .collect(),
            CALM,
            1024,
        ),
        flood(
            "malformed",
            numbers(3000)
                .flat_map(|stream| h2::headers(stream, h2::END_STREAM, &[(":method", "GET")]))
                .collect(),
            CALM,
            0,
        ),
        flood("too many at once", streams(|_| vec![]), CALM, 100),
        // Those of its shapes that end the connection.
        flood(
            "DATA on what is half closed",
            streams(|stream| frame(DATA, 0, stream, b"a")),
            PROTOCOL,
            100,
        ),
        flood(
            "HEADERS on it",
            streams(|stream| h2::get(stream, "/hang")),
            PROTOCOL,
            100,
        ),
        flood(
            "0 more window for a stream",
            streams(|stream| h2::open(stream, 0)),
            PROTOCOL,
            100,
        ),
        flood(
            "a PRIORITY that is cut short",
            streams(|stream| frame(PRIORITY, 0, stream, &[0; 4])),
            PROTOCOL,
            100,
        ),
        flood(
            "0 more window",
            [h2::get(1, "/hang"), h2::open(0, 0)].concat(),
            PROTOCOL,
            1,
        ),
        flood(
            "too much window",
            [h2::get(1, "/hang"), h2::open(0, 0x7fff_ffff)].concat(),
            WINDOW,
            1,
        ),
        flood("a reset of what is not there", reset(1), PROTOCOL, 0),
        // A head without an end.
        flood(
            "empty CONTINUATION",
            head(frame(CONTINUATION, 0, 1, &[]).repeat(10_000)),
            CALM,
            0,
        ),
        flood(
            "CONTINUATION of a field",
            head(frame(CONTINUATION, 0, 1, &h2::block(&[("a", "b")])).repeat(10_000)),
            CALM,
            0,
        ),
        // Bodies.
        flood("empty DATA", body("/read", &[], 0, 10_000), CALM, 1),
        flood(
            "empty DATA that nobody reads",
            body("/keep", &[], 0, 10_000),
            CALM,
            1,
        ),
        flood("bytes one by one", body("/read", b"a", 0, 100_000), CALM, 1),
        flood(
            "bytes that nobody reads",
            body("/keep", b"a", 0, 100_000),
            CALM,
            1,
        ),
        flood(
            "nothing but padding",
            body("/read", &[255; 256], 8, 3000),
            CALM,
            1,
        ),
        flood(
            "more than the window",
            body("/keep", &[0; h2::FRAME], 0, 100),
            WINDOW,
            1,
        ),
        // Frames that are too long.
        flood(
            "a long frame",
            body("/keep", &[0; h2::FRAME + 1], 0, 1),
            SIZE,
            1,
        ),
        flood(
            "a long frame of no kind",
            frame(0xfa, 0, 0, &[0; h2::FRAME + 1]),
            SIZE,
            0,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_flood_ends_at_once_and_starts_few_handlers() {
    for server in SERVERS {
        let guard = ConnGuard::default();
        let handlers = Handlers::default();
        let app = app(&handlers);
        let served = by(server, &guard, app).await;
        let neighbour = Neighbour::of(served.addr);
        let mut allowed = Vec::new();
        for (
            Flood {
                what,
                frames,
                ends,
                handlers: most,
            },
            n,
        ) in floods().into_iter().zip(0..)
        {
            let from = Ipv4Addr::new(127, 0, 2, n);
            let client = RawClient::connect_from(from, served.addr).await.unwrap();
            let bytes = [h2::hello(65_535), frames].concat();
            let (answer, after) = exchange(client, bytes).await;
            assert!(after < SLACK, "{what}, {server}: {after:?}");
            let last = h2::frames(&answer)
                .into_iter()
                .rfind(|frame| frame.kind == h2::GOAWAY);
            assert_eq!(
                last.and_then(|frame| frame.code()),
                Some(ends),
                "{what}, {server}"
            );
            // hyper by itself allows 200 requests at once.
            let most = if server == "axum::serve" {
                2 * most
            } else {
                most
            };
            allowed.push((what, from, most));
        }
        neighbour.was_served().await;
        all_gone(&guard).await;
        until("their handlers are gone", || handlers.at_work() == 0).await;
        for (what, from, most) in allowed {
            let started = handlers.started(from);
            assert!(started <= most, "{what}, {server}: {started}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tonic_as_it_is_lets_a_client_make_it_reset_any_number_of_streams() {
    let (guard, handlers) = (ConnGuard::default(), Handlers::default());
    let server = tonic_s_own(&guard, false, app(&handlers)).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send([h2::hello(65_535), overflows()].concat())
        .await
        .unwrap();
    let reset = h2::next(&mut client.stream, h2::RST_STREAM, 5999).await;
    assert_eq!(reset, h2::FLOW_CONTROL_ERROR.to_be_bytes());
    assert_eq!(guard.snapshot().open, 1);
    drop(client);
    all_gone(&guard).await;
}

/// What HTTP/2 allows in any number, beside a request at work or not.
fn without_end() -> Vec<(&'static str, Vec<u8>)> {
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
        ("answers to PING", frame(PING, h2::ACK, 0, &[0; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        (
            "long SETTINGS",
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255].repeat(2000)),
        ),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7])),
        ("windows of a stream", h2::open(1, 1)),
        ("frames of no kind", frame(0xfa, 0, 0, &[0; 1000])),
        (
            "resets of what is gone",
            frame(RST_STREAM, 0, 1, &h2::CANCEL.to_be_bytes()),
        ),
        ("GOAWAY", frame(GOAWAY, 0, 0, &[0; 8])),
        // Answered 431 by the h2 crate itself, on a new stream each time.
        (
            "heads that are too large",
            numbers(100)
                .skip(1)
                .flat_map(|stream| h2::headers(stream, h2::END_STREAM, &refused))
                .collect(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_come_in_any_number_and_brings_nothing_on_ends_the_connection() {
    for server in SERVERS {
        let (journal, handlers) = (Journal::default(), Handlers::default());
        let guard = ConnGuard::builder()
            .metrics(journal.clone())
            .build()
            .unwrap();
        let served = by(server, &guard, app(&handlers)).await;
        let neighbour = Neighbour::of(served.addr);
        let mut floods = JoinSet::new();
        for ((what, frames), n) in without_end().into_iter().zip(0..) {
            let client = RawClient::connect_from(Ipv4Addr::new(127, 0, 2, n), served.addr).await;
            let first = [h2::hello(65_535), h2::get(1, "/hang")].concat();
            // Twice what is let be.
            let rest = frames.repeat((512 << 10) / frames.len() + 1);
            floods.spawn(async move {
                let (_, after) = exchange(client.unwrap(), [first, rest].concat()).await;
                assert!(after < 2 * SECOND + SLACK, "{what}, {server}: {after:?}");
            });
        }
        floods.join_all().await;
        neighbour.was_served().await;
        all_gone(&guard).await;
        until("their handlers are gone", || handlers.at_work() == 0).await;
        let ended = journal.disconnected();
        let ended = ended
            .iter()
            .filter(|(ended, _)| ended.reason == Reason::NoProgress)
            .count();
        assert_eq!(ended, without_end().len(), "{server}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_cancelled_one_by_one_end_the_connection() {
    for server in SERVERS {
        let (journal, handlers) = (Journal::default(), Handlers::default());
        let guard = ConnGuard::builder()
            .metrics(journal.clone())
            .build()
            .unwrap();
        let served = by(server, &guard, app(&handlers)).await;
        let neighbour = Neighbour::of(served.addr);
        let from = Ipv4Addr::new(127, 0, 2, 1);
        let mut client = RawClient::connect_from(from, served.addr).await.unwrap();
        client.send(h2::hello(65_535)).await.unwrap();
        let is_ended = || journal.closed().contains(&Some(Reason::CancelledRequests));
        for (stream, asked) in numbers(10_000).zip(1..) {
            let reset = h2::frame(h2::RST_STREAM, 0, stream, &h2::CANCEL.to_be_bytes());
            // Each only when the handler of the one before was started.
            let _ = client.send(h2::get(stream, "/hang")).await;
            until("it is at work", || {
                handlers.started(from) == asked || is_ended()
            })
            .await;
            let _ = client.send(reset).await;
            if is_ended() {
                break;
            }
        }
        assert!(is_ended(), "{server}: it goes on");
        let started = handlers.started(from);
        // The sweeper looks four times a second.
        assert!((200..5000).contains(&started), "{server}: {started}");
        neighbour.was_served().await;
        drop(client);
        all_gone(&guard).await;
        until("its handlers are gone", || handlers.at_work() == 0).await;
    }
}
