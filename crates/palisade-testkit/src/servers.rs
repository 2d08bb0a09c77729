//! Loopback servers that stop when they are dropped.

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::net::{Ipv4Addr, SocketAddr};
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
};
use tokio_stream::wrappers::TcpListenerStream;
use tower::{BoxError, Service, ServiceExt};

/// A server task and its address. Dropping it aborts the task.
#[derive(Debug)]
pub struct Server {
    /// The address the server listens on.
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Returns a handle on the server that runs as `task` and listens on `addr`.
    pub fn new(addr: SocketAddr, task: JoinHandle<()>) -> Self {
        Self { addr, task }
    }

    /// Returns the server's URL: `http://` and the address.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens on a free loopback port. The backlog of 4,096 holds all clients of a test at once.
pub async fn listener() -> TcpListener {
    let socket = TcpSocket::new_v4().expect("a socket can be created");
    socket
        .bind((Ipv4Addr::LOCALHOST, 0).into())
        .expect("loopback has a free port");
    socket.listen(4096).expect("a bound socket can listen")
}

/// Serves `router` with `axum::serve(listener, router)`, which applies the layers anew for each
/// connection. The layers do not know the peer.
pub async fn axum_bare(router: axum::Router) -> Server {
    let listener = listener().await;
    let addr = listener
        .local_addr()
        .expect("a bound socket has an address");
    let task = tokio::spawn(async move {
        axum::serve(listener, router)
            .await
            .expect("the server does not fail");
    });
    Server::new(addr, task)
}

/// Serves `router` with `axum::serve` and `into_make_service_with_connect_info`.
pub async fn axum(router: axum::Router) -> Server {
    let listener = listener().await;
    let addr = listener
        .local_addr()
        .expect("a bound socket has an address");
    let app = router.into_make_service_with_connect_info::<SocketAddr>();
    let task = tokio::spawn(async move {
        axum::serve(listener, app)
            .await
            .expect("the server does not fail");
    });
    Server::new(addr, task)
}

/// Serves `service` with hyper-util's `auto` builder over HTTP/1 and HTTP/2. Each request carries
/// the `SocketAddr` of its peer as an extension.
pub async fn hyper<S, B>(service: S) -> Server
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let listener = listener().await;
    let addr = listener
        .local_addr()
        .expect("a bound socket has an address");
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, peer)) = listener.accept().await {
            let service = service
                .clone()
                .map_request(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(peer);
                    request
                });
            connections.spawn(async move {
                let service = TowerToHyperService::new(service);
                let builder = auto::Builder::new(TokioExecutor::new());
                // An error means that the client has left or that a guard closed the connection.
                // Tests check the client's side.
                let _ = builder
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await;
            });
            while connections.try_join_next().is_some() {}
        }
    });
    Server::new(addr, task)
}

/// Serves `router` with `tonic::transport::Server`.
pub async fn tonic<L, B>(router: tonic::transport::server::Router<L>) -> Server
where
    L: tower::Layer<tonic::service::Routes> + Clone + Send + 'static,
    L::Service: Service<Request<tonic::body::Body>, Response = Response<B>>,
    L::Service: Clone + Send + 'static,
    <L::Service as Service<Request<tonic::body::Body>>>::Future: Send,
    <L::Service as Service<Request<tonic::body::Body>>>::Error: Into<BoxError> + Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let listener = listener().await;
    let addr = listener
        .local_addr()
        .expect("a bound socket has an address");
    let incoming = TcpListenerStream::new(listener);
    let task = tokio::spawn(async move {
        router
            .serve_with_incoming(incoming)
            .await
            .expect("the server does not fail");
    });
    Server::new(addr, task)
}
