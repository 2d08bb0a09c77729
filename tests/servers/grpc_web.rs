//! gRPC-Web over HTTP/1.1 with tonic-web's layer outside the guards: the guards' refusals reach the
//! client as gRPC-Web.

use axum::{Router, routing::post};
use bytes::Bytes;
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
    guarded::all_gone,
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

/// A stack that admits ten requests an hour from one client, with bodies of up to 1,000 bytes.
fn stack() -> Stack {
    Stack::edge()
        .rate_limit(Quota::per_hour(1).burst(10))
        .max_body(1000)
}

/// Serves the gRPC service under `axum::serve`: tonic-web's layer outside, the guards inside. A
/// plain route has the guards alone.
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

/// Serves the gRPC service under tonic's own server, with the same order of layers.
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

/// Returns tonic's client, which sends each request as gRPC-Web on a new HTTP/1.1 connection.
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

/// Returns the head of a gRPC-Web request with a body of `length` bytes.
fn head(length: usize) -> String {
    format!(
        "POST {UNARY} HTTP/1.1\r\nhost: test\r\ncontent-type: application/grpc-web+proto\r\n\
         content-length: {length}\r\n\r\n"
    )
}

async fn assert_refusals_reach_the_client(server: Server, guard: ConnGuard) {
    // The body limit refuses the request.
    let mut first = client(server.addr, 1);
    assert_eq!(first.unary(piece(100)).await.unwrap().get_ref().bytes, 100);
    let refused = first.unary(piece(2000)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::ResourceExhausted, "body too large")
    );

    // The rate limit refuses the request.
    let mut second = client(server.addr, 2);
    for _ in 0..10 {
        second.unary(piece(1)).await.unwrap();
    }
    let refused = second.unary(piece(1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "too many requests");
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"));

    // On the wire: a declared body that is too long is refused as gRPC-Web, and the connection is
    // closed because the rest of the body may still arrive.
    let mut raw = RawClient::connect_from(Ipv4Addr::new(127, 0, 0, 2), server.addr)
        .await
        .unwrap();
    raw.send(head(100_000)).await.unwrap();
    let response = raw.head().await.unwrap();
    assert_eq!(response.status, StatusCode::OK);
    assert_eq!(
        response.header("content-type"),
        Some("application/grpc-web+proto")
    );
    assert_eq!(response.header("grpc-status"), Some("8"));
    assert_eq!(response.header("connection"), Some("close"));
    assert_eq!(raw.rest().await, b"");
    drop((raw, server));
    all_gone(&guard).await;
}

#[tokio::test]
async fn under_axum_a_refusal_inside_tonic_web_reaches_the_client_as_grpc_web() {
    let guard = ConnGuard::default();
    assert_refusals_reach_the_client(under_axum(&guard).await, guard).await;
}

#[tokio::test]
async fn under_tonic_a_refusal_inside_tonic_web_reaches_the_client_as_grpc_web() {
    let guard = ConnGuard::default();
    assert_refusals_reach_the_client(under_tonic(&guard).await, guard).await;
}

#[tokio::test]
async fn plain_http_beside_grpc_web_is_refused_as_plain_http() {
    let guard = ConnGuard::default();
    let server = under_axum(&guard).await;
    for kind in ["text/plain", "application/grpc"] {
        let mut raw = RawClient::connect(server.addr).await.unwrap();
        let head = format!(
            "POST /plain HTTP/1.1\r\nhost: test\r\ncontent-type: {kind}\r\n\
             content-length: 100000\r\n\r\n"
        );
        raw.send(head).await.unwrap();
        let response = raw.head().await.unwrap();
        assert_eq!(response.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(response.header("grpc-status"), None);
        assert_eq!(response.header("connection"), Some("close"));
    }
    drop(server);
    all_gone(&guard).await;
}
