//! gRPC-Web over HTTP/1.1, translated by tonic's own layer outside of the guards: a refusal is an
//! answer that a gRPC-Web client understands.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use http::StatusCode;
use palisade::{Quota, Stack};
use palisade_testkit::{
    clients::RawClient, demo::echo_server::EchoServer, echo::Lengths, servers::Server,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic_web::GrpcWebLayer;
use tower::ServiceBuilder;

/// Two requests an hour.
async fn server() -> Server {
    let stack = Stack::edge().rate_limit(Quota::per_hour(2).burst(2)).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .accept_http1(true)
        .layer(ServiceBuilder::new().layer(GrpcWebLayer::new()).layer(stack))
        .add_service(EchoServer::new(Lengths))
        .serve_with_incoming(TcpListenerStream::new(listener));
    Server::new(addr, tokio::spawn(async { server.await.unwrap() }))
}

#[tokio::test]
async fn a_refusal_behind_tonic_s_layer_is_grpc_web() {
    let server = server().await;
    let (binary, text) = ("application/grpc-web+proto", "application/grpc-web-text+proto");
    let empty = |kind| if kind == binary { &b"\0\0\0\0\0"[..] } else { b"AAAAAAA=" };
    for (kind, refused) in [(binary, None), (text, None), (binary, Some("8")), (text, Some("8"))] {
        let message = empty(kind);
        let head = format!(
            "POST /demo.Echo/Unary HTTP/1.1\r\nhost: test\r\ncontent-type: {kind}\r\naccept: {kind}\r\n\
             content-length: {}\r\n\r\n",
            message.len()
        );
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send([head.as_bytes(), message].concat()).await.unwrap();
        let answer = client.head().await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        assert_eq!(answer.header("content-type"), Some(kind), "{}", answer.text);
        assert_eq!(answer.header("grpc-status"), refused, "{}", answer.text);
    }
}
