//! T08, huge bodies: declared by length, chunked, in one-byte chunks, and many at once; on axum,
//! tonic and hyper, over HTTP/1 and HTTP/2. Uploads within the limit are served beside them.

use axum::{Router, body::Body, extract::Request, routing::post};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt;
use palisade_body_limit::{BodyLimitLayer, RequestBody, TinyFrames};
use palisade_core::{Guard, Reason};
use palisade_testkit::{
    Journal,
    bodies::Pieces,
    clients::{self, RawClient},
    demo::{Piece, echo_client::EchoClient, echo_server::EchoServer},
    echo::Lengths,
    servers::{self, Server},
};
use std::{convert::Infallible, net::Ipv4Addr, time::Duration};
use tokio::task::JoinSet;
use tower::{Layer, service_fn, util::MapResponseLayer};

const MAX_BODY_BYTES: u64 = 1 << 20;
const PIECE_BYTES: usize = 16 * 1024;
const PIECES_AT_LIMIT: u64 = MAX_BODY_BYTES / PIECE_BYTES as u64;
const TOO_LARGE: (Guard, Reason) = (Guard::BodyLimit, Reason::TooLarge);

fn app() -> Router {
    // One handler collects its body, the other ignores errors of its body.
    let collect = async |body: Bytes| body.len().to_string();
    let ignore = async |request: Request| {
        let mut body = request.into_body();
        while let Some(Ok(_)) = body.frame().await {}
        "fine"
    };
    Router::new()
        .route("/collect", post(collect))
        .route("/ignore", post(ignore))
}

async fn hyper_app<B>(request: http::Request<B>) -> Result<http::Response<String>, Infallible>
where
    B: http_body::Body,
{
    Ok(http::Response::new(
        request.into_body().collect().await.is_ok().to_string(),
    ))
}

/// Serves the axum router with `layer` around the whole of it.
async fn axum_with_outer_layer(layer: BodyLimitLayer) -> Server {
    let listener = servers::listener().await;
    let addr = listener.local_addr().unwrap();
    // `axum::serve` requires axum's own body type.
    let app = MapResponseLayer::new(|response: http::Response<_>| response.map(Body::new))
        .layer(layer.layer(app()));
    let app = axum::ServiceExt::<Request>::into_make_service(app);
    Server::new(
        addr,
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }),
    )
}

/// Starts every kind of plain HTTP server, each with `layer`.
async fn all_servers(layer: &BodyLimitLayer) -> Vec<Server> {
    let bare = layer.layer(service_fn(hyper_app::<RequestBody<hyper::body::Incoming>>));
    vec![
        servers::axum_bare(app().layer(layer.clone())).await,
        servers::axum(app().layer(layer.clone())).await,
        axum_with_outer_layer(layer.clone()).await,
        servers::hyper(bare).await,
    ]
}

async fn http1(server: &Server, path: &str, body: Pieces) -> StatusCode {
    let mut client = clients::http1(Ipv4Addr::LOCALHOST, server.addr)
        .await
        .unwrap();
    let request = http::Request::post(path)
        .header("host", "test")
        .body(body)
        .unwrap();
    client.send_request(request).await.unwrap().status()
}

async fn http2(server: &Server, path: &str, body: Pieces) -> StatusCode {
    let mut client = clients::http2(Ipv4Addr::LOCALHOST, server.addr)
        .await
        .unwrap();
    let request = http::Request::post(server.url() + path).body(body).unwrap();
    client.send_request(request).await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_at_the_limit_pass_and_longer_ones_do_not() {
    let journal = Journal::default();
    let layer = BodyLimitLayer::new(MAX_BODY_BYTES).metrics(journal.clone());
    let mut refused = 0;
    for server in all_servers(&layer).await {
        for path in ["/collect", "/ignore"] {
            for (pieces, status) in [
                (PIECES_AT_LIMIT, StatusCode::OK),
                (PIECES_AT_LIMIT + 1, StatusCode::PAYLOAD_TOO_LARGE),
            ] {
                let streamed = || Pieces::new(pieces, PIECE_BYTES);
                let declared = || Pieces::new(pieces, PIECE_BYTES).declared();
                assert_eq!(http1(&server, path, declared()).await, status);
                assert_eq!(http1(&server, path, streamed()).await, status);
                assert_eq!(http2(&server, path, declared()).await, status);
                assert_eq!(http2(&server, path, streamed()).await, status);
                refused += if pieces > PIECES_AT_LIMIT { 4 } else { 0 };
            }
        }
    }
    assert_eq!(journal.refused(), vec![TOO_LARGE; refused]);
    assert_eq!(journal.cut(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_expects_100_continue_is_refused_before_its_body() {
    for server in all_servers(&BodyLimitLayer::new(MAX_BODY_BYTES)).await {
        let ask = async |length: u64| {
            let mut client = RawClient::connect(server.addr).await.unwrap();
            let head = format!("content-length: {length}\r\nexpect: 100-continue\r\n\r\n");
            client
                .send(format!("POST /collect HTTP/1.1\r\nhost: test\r\n{head}"))
                .await
                .unwrap();
            let head = client.head().await.unwrap();
            (client, head)
        };
        let (mut client, head) = ask(MAX_BODY_BYTES + 1).await;
        assert_eq!(
            head.status,
            StatusCode::PAYLOAD_TOO_LARGE,
            "no 100 Continue"
        );
        assert_eq!(head.header("connection"), Some("close"));
        assert_eq!(
            client.rest().await,
            b"body too large",
            "then the connection ends"
        );

        let (mut client, head) = ask(5).await;
        assert_eq!(head.status, StatusCode::CONTINUE);
        client.send("12345").await.unwrap();
        assert_eq!(client.head().await.unwrap().status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_uploads_are_served_while_many_huge_ones_are_refused() {
    let journal = Journal::default();
    let layer = BodyLimitLayer::new(MAX_BODY_BYTES).metrics(journal.clone());
    let server = servers::axum_bare(app().layer(layer)).await;
    let addr = server.addr;
    let mut attackers = JoinSet::new();
    for _ in 0..50 {
        attackers.spawn(async move {
            let mut client = RawClient::connect(addr).await.unwrap();
            let head = "POST /collect HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";
            client.send(head).await.unwrap();
            let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
            for _ in 0..64 {
                if client.send(&chunk).await.is_err() {
                    break;
                }
            }
            client.head().await.unwrap().status
        });
    }
    // A large steady upload, exactly at the limit, and short ones.
    let steady = Pieces::new(PIECES_AT_LIMIT, PIECE_BYTES).every(Duration::from_millis(10));
    assert_eq!(http1(&server, "/collect", steady).await, StatusCode::OK);
    for _ in 0..50 {
        assert_eq!(
            http1(&server, "/collect", Pieces::new(3, 100)).await,
            StatusCode::OK
        );
    }
    let statuses = attackers.join_all().await;
    assert_eq!(statuses, [StatusCode::PAYLOAD_TOO_LARGE; 50]);
    assert_eq!(journal.refused(), [TOO_LARGE; 50]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_byte_chunks_are_refused_and_lines_are_not() {
    let journal = Journal::default();
    let layer = BodyLimitLayer::new(MAX_BODY_BYTES).metrics(journal.clone());
    for server in all_servers(&layer).await {
        let send = async |chunk: &str, count: usize| {
            let mut client = RawClient::connect(server.addr).await.unwrap();
            let head = "POST /collect HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";
            client.send(head).await.unwrap();
            for _ in 0..count / 1000 {
                if client.send(chunk.repeat(1000)).await.is_err() {
                    break;
                }
            }
            let _ = client.send("0\r\n\r\n").await;
            client.head().await.unwrap().status
        };
        assert_eq!(send("1\r\nx\r\n", 1_000_000).await, StatusCode::BAD_REQUEST);
        // The chunks of a script that writes one line at a time.
        let line = format!("1e\r\n{}\r\n", "x".repeat(30));
        assert_eq!(send(&line, 30_000).await, StatusCode::OK);
    }
    assert_eq!(
        journal.refused(),
        [(Guard::BodyLimit, Reason::TinyFrames); 4]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_clients_see_resource_exhausted_and_small_messages_pass() {
    let journal = Journal::default();
    let layer = BodyLimitLayer::new(MAX_BODY_BYTES)
        .tiny_frames(TinyFrames::default())
        .metrics(journal.clone());
    let router = tonic::transport::Server::builder()
        .layer(layer)
        .add_service(EchoServer::new(Lengths).max_decoding_message_size(usize::MAX));
    let server = servers::tonic(router).await;
    let mut client = EchoClient::connect(server.url()).await.unwrap();
    let piece = |length: usize| Piece {
        data: vec![b'x'; length].into(),
    };

    let total = client.unary(piece(1_000_000)).await.unwrap().into_inner();
    assert_eq!(total.bytes, 1_000_000);
    let status = client.unary(piece(1 << 20)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (tonic::Code::ResourceExhausted, "body too large")
    );

    // Many small messages within the limit, on the connection of the refused ones.
    let many = futures_util::stream::iter((0..50_000).map(move |_| piece(10)));
    assert_eq!(
        client.collect(many).await.unwrap().into_inner().bytes,
        500_000
    );
    let paced = futures_util::stream::unfold(0, |sent| async move {
        tokio::time::sleep(Duration::from_micros(100)).await;
        if sent == 2000 {
            return None;
        }
        let data = Bytes::from_static(b"x");
        Some((Piece { data }, sent + 1))
    });
    assert_eq!(
        client.collect(paced).await.unwrap().into_inner().bytes,
        2000
    );
    let endless = futures_util::stream::repeat_with(|| Piece {
        data: vec![b'x'; 8000].into(),
    });
    let status = client.collect(endless).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (tonic::Code::ResourceExhausted, "body too large")
    );
    assert_eq!(journal.refused(), [TOO_LARGE; 2]);
    assert_eq!(journal.cut(), []);
}
