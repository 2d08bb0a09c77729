//! gRPC-Web over HTTP/1.1 where tonic-web's layer stands outside the guards: what they refuse
//! reaches the client as gRPC-Web.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use axum::{Router, routing::post};
use bytes::Bytes;
use guarded::all_gone;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use palisade::{
    Quota, Stack,
    conn::{ConnGuard, connected},
};
use palisade_testkit::{
    clients::{self, RawClient},
    demo::{Piece, echo_client::EchoClient, echo_server::EchoServer},
    echo::Lengths,
    servers::{self, Server},
};
use std::{
    future::IntoFuture,
    net::{Ipv4Addr, SocketAddr},
};
use tonic::{Code, body::Body, transport};
use tonic_web::{GrpcWebCall, GrpcWebClientService, GrpcWebLayer};
use tower::{BoxError, Layer, ServiceBuilder, service_fn};

const UNARY: &str = "/demo.Echo/Unary";

/// Ten requests at once from one client, 1,000 bytes each.
fn stack() -> Stack {
    Stack::edge()
        .rate_limit(Quota::per_hour(1).burst(10))
        .max_body(1000)
}

/// The service behind the guards behind the translation, and a plain route behind the guards, both
/// under `axum::serve`.
async fn under_axum(guard: &ConnGuard) -> Server {
    let stack = stack().build().unwrap();
    let echo = ServiceBuilder::new().layer(GrpcWebLayer::new());
    let echo = echo.service(stack.layer(EchoServer::new(Lengths)));
    let app = Router::new()
        .route("/plain", post(async |body: Bytes| body.len().to_string()))
        .layer(stack)
        .route_service("/demo.Echo/{method}", echo);
    let listener = guard.listen(servers::listener().await);
    let addr = listener.local_addr().unwrap();
    let serve = axum::serve(listener, connected(app)).into_future();
    Server::new(addr, tokio::spawn(async move { serve.await.unwrap() }))
}

/// The same order under tonic's own server.
async fn under_tonic(guard: &ConnGuard) -> Server {
    let listener = guard.listen(servers::listener().await);
    let addr = listener.local_addr().unwrap();
    let mut server = transport::Server::builder()
        .accept_http1(true)
        .layer(guard.track_requests())
        .layer(GrpcWebLayer::new())
        .layer(stack().build().unwrap());
    let router = server.add_service(EchoServer::new(Lengths));
    Server::new(
        addr,
        tokio::spawn(async { router.serve_with_incoming(listener).await.unwrap() }),
    )
}

/// tonic's client, as gRPC-Web on an HTTP/1.1 connection of its own for each request.
fn client(
    addr: SocketAddr,
    last: u8,
) -> EchoClient<
    impl tonic::client::GrpcService<
        Body,
        Error = BoxError,
        ResponseBody = GrpcWebCall<Incoming>,
        Future: Send,
    >,
> {
    let (from, to) = (Ipv4Addr::new(127, 0, 0, last), addr);
    EchoClient::new(GrpcWebClientService::new(service_fn(
        move |mut request: Request<GrpcWebCall<Body>>| async move {
            let mut sender = clients::http1(from, to).await?;
            *request.uri_mut() = request.uri().path().parse()?;
            request.headers_mut().insert("host", "test".parse()?);
            Ok::<Response<Incoming>, BoxError>(sender.send_request(request).await?)
        },
    )))
}

fn piece(length: usize) -> Piece {
    Piece {
        data: vec![0; length].into(),
    }
}

/// The head of a gRPC-Web request of `length` bytes.
fn head(length: usize) -> String {
    format!(
        "POST {UNARY} HTTP/1.1\r\nhost: test\r\ncontent-type: application/grpc-web+proto\r\n\
         content-length: {length}\r\n\r\n"
    )
}

async fn refusals_reach_the_client(server: Server, guard: ConnGuard) {
    // Refused for the length of the body.
    let mut one = client(server.addr, 1);
    assert_eq!(one.unary(piece(100)).await.unwrap().get_ref().bytes, 100);
    let refused = one.unary(piece(2000)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::ResourceExhausted, "body too large")
    );

    // Refused for the rate.
    let mut two = client(server.addr, 2);
    for _ in 0..10 {
        two.unary(piece(1)).await.unwrap();
    }
    let refused = two.unary(piece(1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "too many requests");
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"));

    // As it is on the wire: a long body that does not come is refused as gRPC-Web, and the connection,
    // on which the rest of it may still come, ends.
    let mut raw = RawClient::connect_from(Ipv4Addr::new(127, 0, 0, 2), server.addr)
        .await
        .unwrap();
    raw.send(head(100_000)).await.unwrap();
    let answer = raw.head().await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(
        answer.header("content-type"),
        Some("application/grpc-web+proto")
    );
    assert_eq!(answer.header("grpc-status"), Some("8"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(raw.rest().await, b"");
    drop((raw, server));
    all_gone(&guard).await;
}

#[tokio::test]
async fn a_refusal_behind_tonic_web_under_axum_reaches_the_client_as_grpc_web() {
    let guard = ConnGuard::default();
    refusals_reach_the_client(under_axum(&guard).await, guard).await;
}

#[tokio::test]
async fn a_refusal_behind_tonic_web_under_tonic_reaches_the_client_as_grpc_web() {
    let guard = ConnGuard::default();
    refusals_reach_the_client(under_tonic(&guard).await, guard).await;
}

#[tokio::test]
async fn plain_http_beside_it_is_refused_as_plain_http() {
    let guard = ConnGuard::default();
    let server = under_axum(&guard).await;
    for kind in ["text/plain", "application/grpc"] {
        let mut raw = RawClient::connect(server.addr).await.unwrap();
        let head = format!(
            "POST /plain HTTP/1.1\r\nhost: test\r\ncontent-type: {kind}\r\n\
             content-length: 100000\r\n\r\n"
        );
        raw.send(head).await.unwrap();
        let answer = raw.head().await.unwrap();
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(answer.header("grpc-status"), None);
        assert_eq!(answer.header("connection"), Some("close"));
    }
    drop(server);
    all_gone(&guard).await;
}
