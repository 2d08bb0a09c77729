//! The concurrency limit on real servers: all routes and connections share one limit.

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use palisade_concurrency_limit::ConcurrencyLimitLayer;
use palisade_core::{Gauge, Guard, Reason};
use palisade_testkit::{
    Journal, clients,
    demo::{
        Piece, Total,
        echo_client::EchoClient,
        echo_server::{Echo, EchoServer},
    },
    servers::{self, Server},
};
use std::{convert::Infallible, net::Ipv4Addr, sync::Arc};
use tokio::sync::Semaphore;
use tower::{Layer, service_fn};

const GUARD: Guard = Guard::ConcurrencyLimit;
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Blocks handlers until the test opens it, and counts the handlers that have arrived.
#[derive(Clone, Debug)]
struct Gate {
    arrived: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    fn new() -> Self {
        Self {
            arrived: Arc::new(Semaphore::new(0)),
            open: Arc::new(Semaphore::new(0)),
        }
    }

    async fn pass(&self) {
        self.arrived.add_permits(1);
        self.open.acquire().await.unwrap().forget();
    }

    /// Waits until `handlers` more handlers have arrived.
    async fn wait_for_arrivals(&self, handlers: u32) {
        self.arrived.acquire_many(handlers).await.unwrap().forget();
    }
}

/// Checks a limit of two. Two requests wait at the gate, each on its own connection and, where
/// `paths` differ, its own route. Further requests are refused until the two have ended.
async fn assert_limit_of_two(
    server: &Server,
    gate: &Gate,
    journal: &Journal,
    paths: [&'static str; 3],
) {
    let addr = server.addr;
    let held: Vec<_> = paths[..2]
        .iter()
        .map(|&path| tokio::spawn(async move { clients::get(LOCALHOST, addr, path).await }))
        .collect();
    gate.wait_for_arrivals(2).await;
    for path in paths {
        let refused = clients::get(LOCALHOST, addr, path).await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers()["retry-after"], "1");
    }
    assert_eq!(journal.refused(), [(GUARD, Reason::Full); 3]);
    gate.open.add_permits(3);
    for held in held {
        assert_eq!(held.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    assert_eq!(
        clients::get(LOCALHOST, addr, paths[2])
            .await
            .unwrap()
            .status(),
        StatusCode::OK
    );
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(0));
}

fn router(gate: &Gate) -> Router {
    let handler = |gate: Gate| {
        get(move || async move {
            gate.pass().await;
            "done"
        })
    };
    Router::new()
        .route("/a", handler(gate.clone()))
        .route("/b", handler(gate.clone()))
        .route("/c", handler(gate.clone()))
}

#[tokio::test]
async fn on_axum_routes_and_connections_share_the_limit() {
    let (gate, journal) = (Gate::new(), Journal::default());
    let limit = ConcurrencyLimitLayer::new(2).metrics(journal.clone());
    // `axum::serve(listener, router)` applies the layer anew for each connection.
    let server = servers::axum_bare(router(&gate).layer(limit)).await;
    assert_limit_of_two(&server, &gate, &journal, ["/a", "/b", "/c"]).await;
}

#[tokio::test]
async fn on_axum_with_connect_info_routes_and_connections_share_the_limit() {
    let (gate, journal) = (Gate::new(), Journal::default());
    let limit = ConcurrencyLimitLayer::new(2)
        .per_client(9)
        .metrics(journal.clone());
    let server = servers::axum(router(&gate).layer(limit)).await;
    assert_limit_of_two(&server, &gate, &journal, ["/a", "/b", "/c"]).await;
}

#[tokio::test]
async fn on_hyper_http1_and_http2_connections_share_the_limit() {
    let (gate, journal) = (Gate::new(), Journal::default());
    let limit = ConcurrencyLimitLayer::new(2).metrics(journal.clone());
    let at_gate = gate.clone();
    let server = servers::hyper(limit.layer(service_fn(move |_request| {
        let gate = at_gate.clone();
        async move {
            gate.pass().await;
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("done"))))
        }
    })))
    .await;
    assert_limit_of_two(&server, &gate, &journal, ["/", "/", "/"]).await;

    let mut http2 = clients::http2::<Empty<Bytes>>(LOCALHOST, server.addr)
        .await
        .unwrap();
    let mut send = || http2.send_request(Request::get("http://test/").body(Empty::new()).unwrap());
    let held = [tokio::spawn(send()), tokio::spawn(send())];
    gate.wait_for_arrivals(1 + 2).await; // One arrival is left from the last request above.
    assert_eq!(
        send().await.unwrap().status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    gate.open.add_permits(2);
    for held in held {
        assert_eq!(held.await.unwrap().unwrap().status(), StatusCode::OK);
    }
}

#[derive(Clone, Debug)]
struct GatedEcho(Gate);

#[tonic::async_trait]
impl Echo for GatedEcho {
    async fn unary(
        &self,
        request: tonic::Request<Piece>,
    ) -> Result<tonic::Response<Total>, tonic::Status> {
        self.0.pass().await;
        Ok(tonic::Response::new(Total {
            bytes: request.get_ref().data.len() as u64,
        }))
    }

    async fn collect(
        &self,
        _request: tonic::Request<tonic::Streaming<Piece>>,
    ) -> Result<tonic::Response<Total>, tonic::Status> {
        Err(tonic::Status::unimplemented("not used by this test"))
    }
}

#[tokio::test]
async fn on_tonic_the_client_sees_resource_exhausted_with_message_and_pushback() {
    let (gate, journal) = (Gate::new(), Journal::default());
    let limit = ConcurrencyLimitLayer::new(2).metrics(journal.clone());
    let service = EchoServer::new(GatedEcho(gate.clone()));
    let router = tonic::transport::Server::builder()
        .layer(limit)
        .add_service(service);
    let server = servers::tonic(router).await;

    let connect = || EchoClient::connect(server.url());
    let (mut first, mut second) = (connect().await.unwrap(), connect().await.unwrap());
    let piece = || Piece {
        data: Bytes::from_static(b"four"),
    };
    let held = [
        tokio::spawn({
            let mut first = first.clone();
            async move { first.unary(piece()).await }
        }),
        tokio::spawn(async move { second.unary(piece()).await }),
    ];
    gate.wait_for_arrivals(2).await;
    for _ in 0..20 {
        let status = first.unary(piece()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(status.message(), "server is busy");
        assert_eq!(
            status.metadata().get("grpc-retry-pushback-ms").unwrap(),
            "1000"
        );
    }
    gate.open.add_permits(3);
    for held in held {
        assert_eq!(held.await.unwrap().unwrap().into_inner().bytes, 4);
    }
    assert_eq!(first.unary(piece()).await.unwrap().into_inner().bytes, 4);
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(0));
}
