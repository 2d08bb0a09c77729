//! Request bodies that no layer charges are charged by the server, on both protocols.

use axum::{Router, routing::post};
use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::client::conn::{http1, http2};
use palisade::{
    Budget,
    body_limit::BodyBudgetLayer,
    conn::{ConnGuard, Mode, Reason},
    serve::{App, RequestBody, RequestService},
};
use palisade_core::{BoxError, Phase, Violation};
use palisade_testkit::{
    Journal,
    bodies::Pieces,
    clients::{self, wait_until, whole},
    guarded::all_gone,
    servers::{self, Server},
};
use std::{
    convert::Infallible,
    future::IntoFuture,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};
use tokio::sync::Notify;
use tower::service_fn;

const CLIENT: Ipv4Addr = Ipv4Addr::LOCALHOST;
const BUDGET_BYTES: u64 = 256 << 10;
/// An upload for which the budget has no room. A single client may hold three eighths of it.
const TOO_MUCH: u64 = 100 << 10;

struct Fixture {
    guard: ConnGuard,
    budget: Budget,
    journal: Journal,
    server: Server,
}

impl Fixture {
    async fn start<A: App<RequestService>>(mode: Mode, app: A) -> Self {
        let budget = Budget::new(BUDGET_BYTES).unwrap();
        let journal = Journal::default();
        let guard = ConnGuard::builder()
            .byte_budget(budget.clone())
            .metrics(journal.clone())
            .mode(mode)
            .build()
            .unwrap();
        let listener = guard.listen(servers::listener().await);
        let serve = palisade::serve(listener, app);
        let addr = serve.local_addr().unwrap();
        let task = tokio::spawn(async move { serve.into_future().await.unwrap() });
        Self {
            guard,
            budget,
            journal,
            server: Server::new(addr, task),
        }
    }

    fn addr(&self) -> SocketAddr {
        self.server.addr
    }

    /// Asserts that one request was refused because the budget is full.
    fn assert_refused(&self) {
        let refusals = self.journal.refusals();
        let [(violation, Mode::Enforce)] = &refusals[..] else {
            panic!("{refusals:?}")
        };
        assert_eq!(
            (violation.reason, violation.phase),
            (Reason::BytesFull, Phase::RequestBody)
        );
        assert!(violation.observed > violation.limit);
    }

    async fn assert_nothing_left(self) {
        all_gone(&self.guard).await;
        wait_until("nothing is held", || self.budget.held() == 0).await;
    }
}

/// A client of either protocol.
enum Client {
    Http1(http1::SendRequest<Pieces>),
    Http2(http2::SendRequest<Pieces>),
}

impl Client {
    async fn connect(version: Version, to: SocketAddr) -> Self {
        if version == Version::HTTP_2 {
            Self::Http2(clients::http2(CLIENT, to).await.unwrap())
        } else {
            Self::Http1(clients::http1(CLIENT, to).await.unwrap())
        }
    }

    async fn send(&mut self, body: Pieces, kind: &str) -> Result<Response<Bytes>, BoxError> {
        let request = Request::post("http://x/")
            .header("host", "x")
            .header("content-type", kind);
        let request = request.body(body)?;
        let response = match self {
            Self::Http1(client) => client.send_request(request).await?,
            Self::Http2(client) => client.send_request(request).await?,
        };
        whole(response).await
    }
}

/// Reads the body, and responds with its length.
async fn read(request: Request<RequestBody>) -> Result<Response<Full<Bytes>>, BoxError> {
    let body = request.into_body().collect().await?.to_bytes();
    Ok(Response::new(body.len().to_string().into()))
}

/// An upload in pieces of 10 KiB, with or without a declared length.
fn upload(bytes: u64, is_declared: bool) -> Pieces {
    let pieces = Pieces::new(bytes / (10 << 10), 10 << 10);
    if is_declared {
        pieces.declared()
    } else {
        pieces
    }
}

#[tokio::test]
async fn a_body_without_room_is_answered_503_and_the_next_one_is_served() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for is_declared in [true, false] {
            let fixture = Fixture::start(Mode::Enforce, service_fn(read)).await;
            let mut client = Client::connect(version, fixture.addr()).await;
            let response = client
                .send(upload(TOO_MUCH, is_declared), "text/plain")
                .await
                .unwrap();
            assert_eq!(
                (
                    response.status().as_u16(),
                    &response.headers()["retry-after"]
                ),
                (503, &"1".parse().unwrap())
            );
            // On HTTP/2 it is a head and nothing else.
            let text = match version {
                Version::HTTP_2 => "",
                _ => "server is short of memory",
            };
            assert_eq!(response.body(), text);
            fixture.assert_refused();
            // On HTTP/2 on the same connection.
            if version != Version::HTTP_2 {
                assert_eq!(response.headers()["connection"], "close");
                client = Client::connect(version, fixture.addr()).await;
            }
            let response = client
                .send(upload(20 << 10, is_declared), "text/plain")
                .await
                .unwrap();
            assert_eq!(response.body(), "20480");
            drop(client);
            fixture.assert_nothing_left().await;
        }
    }
}

#[tokio::test]
async fn a_body_that_an_empty_budget_would_not_hold_is_answered_413_at_its_head() {
    for (mode, status) in [(Mode::Enforce, 413), (Mode::Shadow, 200)] {
        let fixture = Fixture::start(mode, service_fn(read)).await;
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let mut client = Client::connect(version, fixture.addr()).await;
            let response = client
                .send(upload(BUDGET_BYTES, true), "text/plain")
                .await
                .unwrap();
            assert_eq!(response.status(), status);
            assert!(!response.headers().contains_key("retry-after"));
        }
        let refusals = fixture.journal.refusals();
        assert_eq!(refusals.len(), 2);
        let (violation, reported) = refusals[0];
        assert_eq!(
            (violation.reason, violation.phase, reported),
            (Reason::BytesFull, Phase::RequestHead, mode)
        );
        assert_eq!(
            (violation.limit, violation.observed),
            (BUDGET_BYTES, 512_000)
        );
        fixture.assert_nothing_left().await;
    }
}

#[tokio::test]
async fn a_short_body_is_served_although_the_budget_is_full() {
    let fixture = Fixture::start(Mode::Enforce, service_fn(read)).await;
    let others = fixture.budget.charge(None);
    others.take(BUDGET_BYTES).unwrap();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::connect(version, fixture.addr()).await;
        let response = client
            .send(Pieces::new(1, 1024).declared(), "text/plain")
            .await
            .unwrap();
        assert_eq!(response.body(), "1024");
        let response = client
            .send(Pieces::new(2, 1024).declared(), "text/plain")
            .await
            .unwrap();
        assert_eq!(response.status(), 503);
    }
    drop(others);
    fixture.assert_nothing_left().await;
}

#[tokio::test]
async fn a_body_without_room_is_cut_if_the_response_has_begun() {
    let errors = Arc::new(Mutex::new(Vec::new()));
    let seen = errors.clone();
    // Responds at once, and reads the body in a task of its own.
    let app = service_fn(move |request: Request<RequestBody>| {
        let seen = seen.clone();
        let (sender, body) = http_body_util::Channel::<Bytes>::new(1);
        tokio::spawn(async move {
            let read = request.into_body().collect().await;
            seen.lock().unwrap().push(read.err());
            drop(sender);
        });
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let fixture = Fixture::start(Mode::Enforce, app.clone()).await;
        let mut client = Client::connect(version, fixture.addr()).await;
        let response = client.send(upload(TOO_MUCH, true), "text/plain").await;
        assert!(response.is_err() || response.is_ok_and(|response| response.status() == 200));
        wait_until("the reader has ended", || {
            !errors.lock().unwrap().is_empty()
        })
        .await;
        let error = errors.lock().unwrap().pop().flatten().unwrap();
        assert_eq!(
            Violation::from_error(&*error).unwrap().reason,
            Reason::BytesFull
        );
        let cuts = fixture.journal.cuts();
        assert_eq!(cuts.len(), 1);
        assert_eq!(
            (cuts[0].0.reason, cuts[0].1),
            (Reason::BytesFull, Mode::Enforce)
        );
        drop(client);
        fixture.assert_nothing_left().await;
    }
}

/// Reads the body, and keeps nothing of it.
async fn pass_on(request: Request<RequestBody>) -> Result<Response<Full<Bytes>>, BoxError> {
    let (mut body, mut length) = (request.into_body(), 0);
    while let Some(frame) = body.frame().await {
        length += frame?.into_data().map_or(0, |data| data.len());
    }
    Ok(Response::new(length.to_string().into()))
}

/// h2 itself ends a connection with thousands of tiny frames.
#[tokio::test]
async fn small_frames_are_charged_for_what_they_take_while_the_app_keeps_them() {
    let fixture = Fixture::start(Mode::Enforce, service_fn(read)).await;
    let mut client = Client::connect(Version::HTTP_11, fixture.addr()).await;
    // A few hundred are as good as any other body. Collected, 5,000 take a mebibyte.
    let few = client.send(Pieces::new(200, 1), "text/plain").await;
    assert_eq!(few.unwrap().body(), "200");
    let many = client.send(Pieces::new(5000, 1), "text/plain").await;
    assert_eq!(many.unwrap().status(), 503);
    fixture.assert_refused();
    drop(client);
    fixture.assert_nothing_left().await;
    // An app that passes them on keeps none.
    let fixture = Fixture::start(Mode::Enforce, service_fn(pass_on)).await;
    let mut client = Client::connect(Version::HTTP_11, fixture.addr()).await;
    let many = client.send(Pieces::new(5000, 1), "text/plain").await;
    assert_eq!(many.unwrap().body(), "5000");
    drop(client);
    fixture.assert_nothing_left().await;
}

#[tokio::test]
async fn small_frames_are_given_back_when_the_app_drops_them() {
    let (keep, kept) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (wait, tell) = (keep.clone(), kept.clone());
    let app = service_fn(move |request: Request<RequestBody>| {
        let (wait, tell) = (wait.clone(), tell.clone());
        async move {
            let mut body = request.into_body();
            let mut frames = Vec::new();
            while frames.len() < 300 {
                frames.extend(body.frame().await);
            }
            tell.notify_one();
            wait.notified().await;
            frames.clear();
            let _ = body.frame().await;
            tell.notify_one();
            wait.notified().await;
            Ok::<_, BoxError>(Response::new(Full::<Bytes>::from("read")))
        }
    });
    let fixture = Fixture::start(Mode::Enforce, app).await;
    let mut client = Client::connect(Version::HTTP_11, fixture.addr()).await;
    let upload = tokio::spawn(async move { client.send(Pieces::new(400, 1), "x/y").await });
    kept.notified().await;
    let held = fixture.budget.held();
    assert!(held >= 300 * 256, "{held}");
    keep.notify_one();
    kept.notified().await;
    let held = fixture.budget.held();
    assert!(held < 4 << 10, "{held}");
    keep.notify_one();
    assert_eq!(upload.await.unwrap().unwrap().body(), "read");
    fixture.assert_nothing_left().await;
}

#[tokio::test]
async fn in_shadow_mode_it_is_only_reported_and_once() {
    let fixture = Fixture::start(Mode::Shadow, service_fn(read)).await;
    for (version, number) in [(Version::HTTP_11, 1), (Version::HTTP_2, 2)] {
        let mut client = Client::connect(version, fixture.addr()).await;
        let response = client
            .send(upload(TOO_MUCH, false), "text/plain")
            .await
            .unwrap();
        assert_eq!(response.body(), "102400");
        let refusals = fixture.journal.refusals();
        assert_eq!(refusals.len(), number);
        assert_eq!(
            (refusals[0].0.reason, refusals[0].1),
            (Reason::BytesFull, Mode::Shadow)
        );
    }
    fixture.assert_nothing_left().await;
}

#[tokio::test]
async fn what_the_app_answers_without_the_rest_of_a_body_is_sent() {
    // Reads one frame, and does not ask for more.
    let app = service_fn(async |request: Request<RequestBody>| {
        let _first = request.into_body().frame().await;
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("enough")))
    });
    let fixture = Fixture::start(Mode::Enforce, app).await;
    let others = fixture.budget.charge(None);
    others.take(BUDGET_BYTES).unwrap();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::connect(version, fixture.addr()).await;
        let response = client
            .send(upload(20 << 10, true), "text/plain")
            .await
            .unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.body()[..]),
            (200, &b"enough"[..])
        );
    }
    assert_eq!(fixture.journal.refusals(), []);
    drop(others);
    fixture.assert_nothing_left().await;
}

#[tokio::test]
async fn a_layer_inside_charges_in_place_of_the_server() {
    let budget = Budget::new(1 << 20).unwrap();
    let arrived = Arc::new(Notify::new());
    let go_on = Arc::new(Notify::new());
    let (tell, wait) = (arrived.clone(), go_on.clone());
    let holds = async move |body: Bytes| {
        tell.notify_one();
        wait.notified().await;
        body.len().to_string()
    };
    let layer = BodyBudgetLayer::new(budget.clone()).max_held(8 << 10);
    let app = Router::new().route("/", post(holds)).layer(layer);
    let fixture = Fixture::start(Mode::Enforce, app).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::connect(version, fixture.addr()).await;
        let upload = tokio::spawn(async move {
            client
                .send(upload(TOO_MUCH, true), "text/plain")
                .await
                .unwrap()
        });
        arrived.notified().await;
        assert_eq!((fixture.budget.held(), budget.held()), (0, 8 << 10));
        go_on.notify_one();
        assert_eq!(upload.await.unwrap().body(), "102400");
        wait_until("nothing is held", || budget.held() == 0).await;
    }
    fixture.assert_nothing_left().await;
}

/// A gRPC message of so many bytes.
fn message(bytes: usize) -> Bytes {
    let mut message = vec![0];
    message.extend((bytes as u32).to_be_bytes());
    message.resize(5 + bytes, b'x');
    message.into()
}

/// Sends so many messages in a request that claims to be gRPC, and returns the response.
async fn send_messages(addr: SocketAddr, count: usize, bytes: usize) -> Response<Bytes> {
    let frames =
        (0..count).map(move |_| Ok::<_, Infallible>(http_body::Frame::data(message(bytes))));
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let mut client = clients::http2(CLIENT, addr).await.unwrap();
    let request = Request::post("http://x/").header("content-type", "application/grpc");
    let response = client
        .send_request(request.body(body).unwrap())
        .await
        .unwrap();
    whole(response).await.unwrap()
}

#[tokio::test]
async fn a_grpc_stream_holds_a_message_and_not_its_sum() {
    // As tonic does, which copies each frame.
    let fixture = Fixture::start(Mode::Enforce, service_fn(pass_on)).await;
    // Two mebibytes in all, in messages of a tenth of the budget.
    let response = send_messages(fixture.addr(), 80, 25 << 10).await;
    assert_eq!(response.body(), &(80 * ((25 << 10) + 5)).to_string());
    // A message for which there is no room.
    let response = send_messages(fixture.addr(), 1, TOO_MUCH as usize).await;
    assert_eq!(response.headers()["grpc-status"], "8");
    fixture.assert_refused();
    fixture.assert_nothing_left().await;
}

#[tokio::test]
async fn an_app_that_collects_what_claims_to_be_grpc_is_protected_too() {
    let fixture = Fixture::start(Mode::Enforce, service_fn(read)).await;
    for (count, bytes) in [(1000, 1000), (40, 5 << 10)] {
        let response = send_messages(fixture.addr(), count, bytes).await;
        assert_eq!(
            (
                response.status().as_u16(),
                &response.headers()["grpc-status"]
            ),
            (200, &"8".parse().unwrap())
        );
    }
    assert_eq!(fixture.journal.refusals().len(), 2);
    // A message of 4 GiB, in small frames.
    let mut client = clients::http2(CLIENT, fixture.addr()).await.unwrap();
    let frames = std::iter::once(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]));
    let frames = frames.chain(std::iter::repeat_n(Bytes::from_static(&[b'x'; 60]), 600));
    let frames = frames.map(|data| Ok::<_, Infallible>(http_body::Frame::data(data)));
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let request = Request::post("http://x/").header("content-type", "application/grpc");
    let response = client
        .send_request(request.body(body).unwrap())
        .await
        .unwrap();
    let response = whole(response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "8");
    drop(client);
    fixture.assert_nothing_left().await;
}

#[tokio::test]
async fn in_shadow_mode_a_stream_of_messages_is_reported_once() {
    let fixture = Fixture::start(Mode::Shadow, service_fn(read)).await;
    let response = send_messages(fixture.addr(), 1000, 1000).await;
    assert_eq!(response.body(), &(1000 * 1005).to_string());
    assert_eq!(fixture.journal.refusals().len(), 1);
    fixture.assert_nothing_left().await;
}

#[tokio::test]
async fn a_handler_that_panics_or_is_dropped_gives_back_what_it_held() {
    let app = service_fn(async |request: Request<RequestBody>| {
        let panics = request.uri().path() == "/panic";
        let body = request.into_body().collect().await?.to_bytes();
        assert!(!panics, "as asked");
        std::future::pending::<()>().await;
        Ok::<_, BoxError>(Response::new(Full::new(body)))
    });
    let fixture = Fixture::start(Mode::Enforce, app).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::connect(version, fixture.addr()).await;
        let hangs =
            tokio::spawn(async move { client.send(upload(20 << 10, true), "x/y").await.is_ok() });
        wait_until("a body is held", || fixture.budget.held() >= 30 << 10).await;
        hangs.abort();
        wait_until("nothing is held", || fixture.budget.held() == 0).await;
    }
    let mut client = clients::http1(CLIENT, fixture.addr()).await.unwrap();
    let request = Request::post("/panic").header("host", "x");
    client
        .send_request(request.body(upload(20 << 10, true)).unwrap())
        .await
        .unwrap_err();
    fixture.assert_nothing_left().await;
}
