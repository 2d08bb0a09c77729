//! The servers that are drilled, all of the same app.

use axum::{
    Router,
    error_handling::HandleErrorLayer,
    routing::{get, post},
    serve::{Listener, ListenerExt},
};
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use palisade::{
    Mode, Quota, Stack, StackLayer,
    conn::{ConnGuard, harden},
    slow_body::Pace,
};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tonic::transport::{Server, server::Connected};
use tower::{BoxError, ServiceBuilder, limit::GlobalConcurrencyLimitLayer};
use tower_governor::{GovernorLayer, governor::GovernorConfigBuilder};
use tower_http::{
    limit::RequestBodyLimitLayer,
    timeout::{RequestBodyTimeoutLayer, TimeoutLayer},
};

/// The number of connections that each server admits.
pub(crate) const PLACES: usize = 100;
/// The number of connections that the proxies admit, and the server that is compared with them.
pub(crate) const PROXY_PLACES: usize = 200;
/// The number of requests that the servers with a limit have at work.
const MAX_REQUESTS: usize = 32;
/// The rate limit of each client of the servers that have one.
const REQUESTS_PER_SECOND: u32 = 50;
/// The size of the pool of which a GET needs one member, a database connection for example.
const POOL_SIZE: usize = 4;
/// The time for which a GET uses a member of the pool.
const WORK_DURATION: Duration = Duration::from_millis(10);
/// The body of `/large`.
static LARGE_BODY: [u8; 1 << 20] = [b'x'; 1 << 20];

/// The app: a GET that waits for a pool, a POST that reads its body, and a large GET.
pub(crate) fn app() -> Router {
    let pool = Arc::new(Semaphore::new(POOL_SIZE));
    let work = async move || {
        let _connection = pool.acquire().await;
        sleep(WORK_DURATION).await;
        "worked\n"
    };
    Router::new()
        .route("/", get(work))
        .route("/upload", post(async |body: Bytes| body.len().to_string()))
        .route("/large", get(async || Bytes::from_static(&LARGE_BODY)))
}

/// `axum::serve` without any guard.
pub(crate) async fn bare(listener: TcpListener) -> io::Result<()> {
    axum::serve(Capped::new(listener), app()).await
}

/// `axum::serve` with the layers that a careful user assembles today.
pub(crate) async fn careful(listener: TcpListener) -> Result<(), BoxError> {
    let rate = GovernorConfigBuilder::default()
        .period(Duration::from_secs(1) / REQUESTS_PER_SECOND)
        .burst_size(2 * REQUESTS_PER_SECOND)
        .finish()
        .ok_or("the quota is invalid")?;
    let busy = HandleErrorLayer::new(async |_: BoxError| StatusCode::SERVICE_UNAVAILABLE);
    let timeout =
        TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, Duration::from_secs(30));
    let guards = ServiceBuilder::new()
        .layer(GovernorLayer::new(rate))
        .layer(busy)
        .load_shed()
        .layer(GlobalConcurrencyLimitLayer::new(MAX_REQUESTS))
        .layer(timeout)
        .layer(RequestBodyTimeoutLayer::new(Duration::from_secs(15)))
        .layer(RequestBodyLimitLayer::new(2 << 20));
    let app = app().layer(guards);
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    // The tap does nothing. axum finds the address of a client behind a listener of its own alone.
    let listener = Capped::new(listener).tap_io(|_| ());
    Ok(axum::serve(listener, app).await?)
}

/// `palisade::serve` without a stack.
pub(crate) async fn palisade_bare(listener: TcpListener) -> Result<(), BoxError> {
    let connections = connections(Mode::Enforce)?;
    palisade::serve(connections.listen(listener), app()).await?;
    Ok(())
}

/// `palisade::serve` with its guard of connections switched off.
pub(crate) async fn palisade_off(listener: TcpListener) -> Result<(), BoxError> {
    palisade::serve(connections(Mode::Off)?.listen(listener), app()).await?;
    Ok(())
}

/// `palisade::serve` with a stack.
pub(crate) async fn palisade_stacked(listener: TcpListener) -> Result<(), BoxError> {
    let app = app().layer(stack()?);
    palisade::serve(connections(Mode::Enforce)?.listen(listener), app).await?;
    Ok(())
}

/// `palisade::serve` as the proxies are set: as many places, the same timeouts and limits, and a
/// GET that costs little.
pub(crate) async fn palisade_as_a_proxy(listener: TcpListener) -> Result<(), BoxError> {
    let timeout = Duration::from_secs(2);
    let connections = ConnGuard::builder()
        .max_connections(PROXY_PLACES)
        .max_per_client(150)
        .first_request_timeout(timeout)
        .header_timeout(timeout)
        .write_timeout(timeout)
        .idle_timeout(Duration::from_secs(10))
        .build()?;
    let pace = Pace::builder().window(timeout).grace(timeout).gap(timeout);
    let stack = Stack::edge()
        .rate_limit(Quota::per_second(100).burst(200))
        .max_body(1 << 20)
        .pace(pace)
        .build()?;
    let app = app().route("/cheap", get(async || "hello\n"));
    palisade::serve(connections.listen(listener), app.layer(stack)).await?;
    Ok(())
}

/// tonic with every bound that it has, and HTTP/1 for the drill's own clients.
pub(crate) async fn tonic_alone(listener: TcpListener) -> Result<(), BoxError> {
    let mut server = harden(Server::builder())
        .accept_http1(true)
        .timeout(Duration::from_secs(30))
        .load_shed(true)
        .concurrency_limit_per_connection(MAX_REQUESTS);
    let accept = async |mut listener: Capped| {
        let (io, _) = listener.accept().await;
        Some((Ok::<_, io::Error>(io), listener))
    };
    let incoming = Box::pin(stream::unfold(Capped::new(listener), accept));
    server
        .add_routes(app().into())
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

/// tonic behind palisade's guards of connections and requests.
pub(crate) async fn tonic_hardened(listener: TcpListener) -> Result<(), BoxError> {
    let connections = connections(Mode::Enforce)?;
    harden(Server::builder())
        .accept_http1(true)
        .layer(connections.track_requests())
        .layer(stack()?)
        .add_routes(app().into())
        .serve_with_incoming(connections.listen(listener))
        .await?;
    Ok(())
}

fn connections(mode: Mode) -> Result<ConnGuard, BoxError> {
    let builder = ConnGuard::builder().mode(mode);
    Ok(builder.max_connections(PLACES).build()?)
}

fn stack() -> Result<StackLayer, BoxError> {
    let quota = Quota::per_second(REQUESTS_PER_SECOND).burst(2 * REQUESTS_PER_SECOND);
    let stack = Stack::edge().rate_limit(quota).max_requests(MAX_REQUESTS);
    Ok(stack.build()?)
}

// === Capped ===

/// A listener with a number of places, as a limit on open files makes one. A connection without a
/// place waits in the kernel.
pub(crate) struct Capped {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Capped {
    pub(crate) fn new(listener: TcpListener) -> Self {
        let places = Arc::new(Semaphore::new(PLACES));
        Self { listener, places }
    }
}

impl Listener for Capped {
    type Io = Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Placed, SocketAddr) {
        let place = self.places.clone().acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        let placed = Placed {
            stream,
            _place: place,
        };
        (placed, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that holds its place.
pub(crate) struct Placed {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl Connected for Placed {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
