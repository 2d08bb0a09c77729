//! The app, the three servers around it, and their processes.

use axum::{
    Router,
    error_handling::HandleErrorLayer,
    routing::{get, post},
};
use bytes::Bytes;
use http::StatusCode;
use palisade::{Quota, Stack, StackLayer, conn::ConnGuard, slow_body::Pace};
use palisade_testkit::{clients, process};
use std::{net::SocketAddr, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};
use tower::{BoxError, ServiceBuilder, limit::GlobalConcurrencyLimitLayer};
use tower_governor::{GovernorLayer, governor::GovernorConfigBuilder};
use tower_http::{
    limit::RequestBodyLimitLayer,
    timeout::{RequestBodyDeadlineLayer, RequestBodyTimeoutLayer, TimeoutLayer},
};

/// The limit on open files of each server.
const MAX_FILES: u64 = 1_024;
/// The number of connections that fit into [`MAX_FILES`].
pub(crate) const PLACES: usize = 1_000;

// The limits, which are the same for the two servers that have any.
/// The maximum number of requests in flight.
const MAX_REQUESTS: usize = 200;
/// The maximum length of a request body, which is axum's default too.
const MAX_BODY_BYTES: u64 = 2 << 20;
/// The rate limit of each client.
const REQUESTS_PER_SECOND: u32 = 50;
/// The burst of the rate limit.
const BURST_REQUESTS: u32 = 100;
/// The timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest gap of an upload.
const UPLOAD_GAP: Duration = Duration::from_secs(2);
/// The timeouts of palisade's connections. They are short because the attacks are.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(2);

/// The body of `/large`, which slow readers request.
static LARGE_BODY: [u8; 1 << 20] = [b'x'; 1 << 20];

/// The time after which a server process exits even if its parent has not stopped it.
const MAX_LIFETIME: Duration = Duration::from_secs(1_000);

/// A way to serve the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerKind {
    /// `axum::serve` without guards.
    Bare,
    /// `axum::serve` with the layers of tower, tower-http and `tower_governor`.
    Careful,
    /// `palisade::serve` with a stack.
    Palisade,
}

impl ServerKind {
    pub(crate) const ALL: [Self; 3] = [Self::Bare, Self::Careful, Self::Palisade];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Careful => "careful",
            Self::Palisade => "palisade",
        }
    }

    /// Returns a description of the server.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Bare => "axum::serve without any guards",
            Self::Careful => {
                "tower's load shed and concurrency limit, tower-http's timeouts and body limit, \
                 tower_governor"
            }
            Self::Palisade => "palisade::serve and Stack::edge with the same limits",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

// === Servers ===

fn app() -> Router {
    // Buffers the whole body, as most handlers do to parse JSON or a form.
    let upload = async |body: Bytes| body.len().to_string();
    Router::new()
        .route("/", get("hello\n"))
        .route("/upload", post(upload))
        .route("/large", get(async || Bytes::from_static(&LARGE_BODY)))
}

/// Adds the layers that a careful user assembles today. The rate limit is outermost because its
/// refusals are cheapest, then the concurrency limit, and inside it the timeouts and the body
/// limit.
fn with_peer_layers(app: Router) -> Result<Router, BoxError> {
    let rate = GovernorConfigBuilder::default()
        .period(Duration::from_secs(1) / REQUESTS_PER_SECOND)
        .burst_size(BURST_REQUESTS)
        .finish()
        .ok_or("the quota is invalid")?;
    let busy = HandleErrorLayer::new(async |_: BoxError| StatusCode::SERVICE_UNAVAILABLE);
    let guards = ServiceBuilder::new()
        .layer(GovernorLayer::new(rate))
        .layer(busy)
        .load_shed()
        .layer(GlobalConcurrencyLimitLayer::new(MAX_REQUESTS))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            TIMEOUT,
        ))
        .layer(RequestBodyTimeoutLayer::new(UPLOAD_GAP))
        .layer(RequestBodyDeadlineLayer::new(TIMEOUT))
        .layer(RequestBodyLimitLayer::new(MAX_BODY_BYTES as usize));
    Ok(app.layer(guards))
}

fn palisade_stack() -> Result<StackLayer, BoxError> {
    let pace = Pace::builder()
        .gap(UPLOAD_GAP)
        .rate(4 * 1024)
        .window(UPLOAD_GAP)
        .grace(UPLOAD_GAP / 2);
    let stack = Stack::edge()
        .rate_limit(Quota::per_second(REQUESTS_PER_SECOND).burst(BURST_REQUESTS))
        .timeout(TIMEOUT)
        .max_body(MAX_BODY_BYTES)
        .pace(pace)
        .max_requests(MAX_REQUESTS);
    Ok(stack.build()?)
}

/// The connection guard of palisade's server.
fn connection_guard() -> Result<ConnGuard, BoxError> {
    let guard = ConnGuard::builder()
        .first_request_timeout(CONNECTION_TIMEOUT)
        .header_timeout(CONNECTION_TIMEOUT)
        .idle_timeout(CONNECTION_TIMEOUT)
        .write_timeout(CONNECTION_TIMEOUT)
        // Loopback addresses stand for clients from different networks, so the network limit is
        // high.
        .max_per_client(1_000)
        .max_per_network(10_000)
        .accept_rate((1_000, 2_000));
    Ok(guard.build()?)
}

/// Serves on a free loopback port and prints its address. Ends when the parent process closes
/// stdin.
pub(crate) async fn serve(kind: ServerKind) -> Result<(), BoxError> {
    #[cfg(unix)]
    process::lower_file_limit(MAX_FILES)?;
    let listener = palisade_testkit::servers::listener().await;
    println!("{}", listener.local_addr()?);
    let served = async {
        match kind {
            // The bare server does not use the peer's address.
            ServerKind::Bare => axum::serve(listener, app()).await?,
            ServerKind::Careful => {
                let app = with_peer_layers(app())?;
                let app = app.into_make_service_with_connect_info::<SocketAddr>();
                axum::serve(listener, app).await?;
            }
            ServerKind::Palisade => {
                let app = app().layer(palisade_stack()?);
                palisade::serve(connection_guard()?.listen(listener), app).await?;
            }
        }
        Ok::<_, BoxError>(())
    };
    let (mut parent, mut nothing) = (tokio::io::stdin(), [0]);
    tokio::select! {
        served = served => served?,
        _ = parent.read(&mut nothing) => {}
        () = sleep(MAX_LIFETIME) => {}
    }
    // Exit instead of returning: a read of stdin cannot be cancelled, and the runtime would wait
    // for it.
    std::process::exit(0)
}

// === Demo process ===

/// A server process. Dropping this kills it.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts the server.
    pub(crate) async fn start(kind: ServerKind) -> Result<Self, BoxError> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--serve", kind.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the server has no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let addr = timeout(clients::PATIENCE, lines.next_line()).await??;
        let addr = addr.ok_or("the server has not started")?.parse()?;
        Ok(Self { addr, child })
    }

    /// Stops the server, and kills it if it does not exit within 2 s.
    pub(crate) async fn stop(mut self) {
        drop(self.child.stdin.take());
        let exit = timeout(Duration::from_secs(2), self.child.wait()).await;
        if exit.is_err() {
            let _ = self.child.kill().await;
        }
    }
}
