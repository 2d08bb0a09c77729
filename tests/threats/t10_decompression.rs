//! T10: uploads of a few bytes that are decompressed to very many, on a server that decompresses
//! request bodies. The stack limits and charges the bytes that arrive, an inner body limit the
//! decompressed bytes.

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::IntoResponse,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{StatusCode, header};
use http_body_util::{BodyExt, Full};
use palisade::{Budget, Guard, Reason, Stack, body_limit::BodyLimitLayer, conn::ConnGuard};
use palisade_testkit::{
    Journal,
    bodies::{gzip, zero_bomb},
    clients::{self, PATIENCE, RawClient, wait_until},
    guarded::{Neighbour, ServerKind, all_gone, build_guard},
    servers::Server,
};
use std::{convert::Infallible, net::Ipv4Addr, time::Duration};
use tokio::time::timeout;
use tower::{ServiceBuilder, ServiceExt};
use tower_http::decompression::RequestDecompressionLayer;

const MIB: usize = 1 << 20;
const CLIENT: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// The limit of the inner layer.
const MAX_DECOMPRESSED_BYTES: usize = MIB;
const BOMB: (Guard, Reason) = (Guard::BodyLimit, Reason::DecompressedTooLarge);

/// The layers in the documented order, with a budget of their own. `POST /` collects its body and
/// answers with the length, or with 400 if there is none.
fn app(journal: &Journal) -> (Router, Budget) {
    let budget = Budget::new(64 * MIB as u64).unwrap();
    let stack = Stack::edge().byte_budget(budget.clone());
    let limit = BodyLimitLayer::decompressed(MAX_DECOMPRESSED_BYTES as u64);
    let guarded = ServiceBuilder::new()
        .layer(stack.metrics(journal.clone()).build().unwrap())
        .layer(RequestDecompressionLayer::new())
        .layer(limit.metrics(journal.clone()));
    let length = async |request: Request| match request.into_body().collect().await {
        Ok(body) => body.to_bytes().len().to_string().into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    };
    let app = Router::new()
        .route("/", get("served").merge(post(length)))
        .layer(guarded);
    (app, budget)
}

/// `palisade::serve` with [`app`].
struct Target {
    server: Server,
    guard: ConnGuard,
    budget: Budget,
    journal: Journal,
}

impl Target {
    async fn start() -> Self {
        let (guard, _) = build_guard(ConnGuard::builder());
        let journal = Journal::default();
        let (app, budget) = app(&journal);
        Self {
            server: ServerKind::Serve.serve(&guard, app).await,
            guard,
            budget,
            journal,
        }
    }

    /// Sends `body` with these codings over HTTP/1 or HTTP/2, and returns the complete response.
    async fn send(&self, is_http2: bool, codings: &[&str], body: Bytes) -> http::Response<Bytes> {
        let mut request = Request::post(if is_http2 {
            self.server.url()
        } else {
            "/".to_owned()
        });
        if !is_http2 {
            request = request.header(header::HOST, "test");
        }
        for coding in codings {
            request = request.header(header::CONTENT_ENCODING, *coding);
        }
        let request = request.body(Full::from(body)).unwrap();
        let response = async {
            if is_http2 {
                let mut client = clients::http2(CLIENT, self.server.addr).await.unwrap();
                clients::whole(client.send_request(request).await.unwrap()).await
            } else {
                let mut client = clients::http1(CLIENT, self.server.addr).await.unwrap();
                clients::whole(client.send_request(request).await.unwrap()).await
            }
        };
        timeout(PATIENCE, response).await.unwrap().unwrap()
    }

    /// Waits until nothing is held of all requests.
    async fn assert_at_rest(&self) {
        wait_until("nothing is charged", || self.budget.held() == 0).await;
        all_gone(&self.guard).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_are_refused_while_honest_uploads_are_served() {
    let target = Target::start().await;
    let neighbour = Neighbour::start(target.server.addr);
    let honest = gzip(&vec![b'x'; MAX_DECOMPRESSED_BYTES]);
    // 1 GiB, of which 1 MiB is sent.
    let bomb = zero_bomb(1024);
    assert!(bomb.len() < 1100 * 1024, "{}", bomb.len());
    for is_http2 in [false, true] {
        let response = target.send(is_http2, &["gzip"], bomb.clone()).await;
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(response.body(), "decompressed body too large");
        let response = target.send(is_http2, &["gzip"], honest.clone()).await;
        assert_eq!(response.body(), &MAX_DECOMPRESSED_BYTES.to_string());
        // An upload that is not compressed passes both limits.
        let response = target.send(is_http2, &[], honest.clone()).await;
        assert_eq!(response.body(), &honest.len().to_string());
    }
    assert_eq!(target.journal.refused(), [BOMB; 2]);
    assert_eq!(target.journal.cut(), []);
    assert!(neighbour.was_served().await > 0);
    target.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_that_hold_nothing_or_a_byte_end_at_the_limit_of_the_stack() {
    let target = Target::start().await;
    let neighbour = Neighbour::start(target.server.addr);
    let header = zero_bomb(0);
    let head = "POST / HTTP/1.1\r\nhost: test\r\ncontent-encoding: gzip\r\n";
    // Stored blocks of deflate (RFC 1951 section 3.2.4).
    for block in [&b"\0\0\0\xff\xff"[..], b"\0\x01\0\xfe\xffx"] {
        let mut client = RawClient::connect(target.server.addr).await.unwrap();
        let chunked = format!("{head}transfer-encoding: chunked\r\n\r\na\r\n");
        let chunked = [chunked.as_bytes(), &header, b"\r\n"].concat();
        client.send(chunked).await.unwrap();
        let blocks = block.repeat(10_000);
        let chunk = [
            format!("{:x}\r\n", blocks.len()).as_bytes(),
            &blocks,
            b"\r\n",
        ]
        .concat();
        for _ in 0..3 * MIB / chunk.len() {
            if client.send(&chunk).await.is_err() {
                break;
            }
        }
        let response = client.head().await.unwrap();
        assert_eq!(response.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
    let refused = [(Guard::BodyLimit, Reason::TooLarge); 2];
    assert_eq!(target.journal.refused(), refused);
    assert!(neighbour.was_served().await > 0);
    target.assert_at_rest().await;
}

/// tower-http decompresses the first member of a gzip file, and fails at the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_after_the_first_are_not_decompressed() {
    let target = Target::start().await;
    for content in [&b""[..], b"x", &[0; MIB]] {
        let members = gzip(content).repeat(MIB / gzip(content).len());
        for is_http2 in [false, true] {
            let response = target
                .send(is_http2, &["gzip"], members.clone().into())
                .await;
            assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        }
    }
    assert_eq!(target.journal.refused(), []);
    target.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_honest_upload_is_served() {
    let journal = Journal::default();
    let (app, budget) = app(&journal);
    let line = |number: u32| format!("{number}: {}\n", number.wrapping_mul(2_654_435_761));
    let text = (0..40_000).map(line).collect::<String>();
    let gzipped = gzip(text.as_bytes());
    assert!((100 * 1024..text.len() / 2).contains(&gzipped.len()));
    // About 1 KiB/s.
    let pieces: Vec<_> = gzipped.chunks(256).map(Bytes::copy_from_slice).collect();
    let pieces = stream::iter(pieces).then(async |piece| {
        tokio::time::sleep(Duration::from_millis(250)).await;
        Ok::<_, Infallible>(piece)
    });
    let request = Request::post("/")
        .header(header::CONTENT_ENCODING, "gzip")
        .body(Body::from_stream(pieces))
        .unwrap();
    let response = app.oneshot(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, text.len().to_string());
    assert_eq!(journal.refused(), []);
    assert_eq!(budget.held(), 0);
}

/// A request names one coding, and the server has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_upload_is_decompressed_twice_or_with_another_coding() {
    let target = Target::start().await;
    let twice = gzip(&zero_bomb(64));
    for is_http2 in [false, true] {
        for coding in [
            "gzip, gzip",
            "gzip,identity",
            "br",
            "zstd",
            "deflate",
            "GZIP",
            "",
        ] {
            let response = target.send(is_http2, &[coding], twice.clone()).await;
            assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        // In two lines: one of them counts.
        let response = target
            .send(is_http2, &["gzip", "gzip"], twice.clone())
            .await;
        assert_eq!(response.body(), &zero_bomb(64).len().to_string());
    }
    assert_eq!(target.journal.refused(), []);
    target.assert_at_rest().await;
}
