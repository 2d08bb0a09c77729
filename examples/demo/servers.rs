//! The app, the three servers around it, and their processes.

use crate::{attacks::Attack, clients, report::Memory};
use axum::{
    Router,
    error_handling::HandleErrorLayer,
    routing::{get, post},
};
use bytes::Bytes;
use http::{StatusCode, header::CONTENT_TYPE};
use palisade::{Quota, Snapshot, Stack, conn::ConnGuard, slow_body::Pace};
use palisade_testkit::{cpu, memory_group::MemoryGroup};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tower::{BoxError, ServiceBuilder, limit::GlobalConcurrencyLimitLayer};
use tower_governor::{GovernorLayer, governor::GovernorConfigBuilder};
use tower_http::{
    limit::RequestBodyLimitLayer,
    timeout::{RequestBodyDeadlineLayer, RequestBodyTimeoutLayer, TimeoutLayer},
};

/// The body of `/big`, which slow readers request.
static BIG_BODY: [u8; 8 << 20] = [b'x'; 8 << 20];

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

/// The size of the pool of which `/work` needs one member, a database connection for example. With
/// [`WORK_DURATION`] the pool serves 800 requests per second.
const POOL_SIZE: usize = 40;
/// The time for which `/work` uses a member of the pool.
const WORK_DURATION: Duration = Duration::from_millis(50);

/// The timeout of the first request and the write timeout. It is short because the attacks are.
pub(crate) const CONNECTION_TIMEOUT: Duration = Duration::from_secs(2);

/// The time after which a server process exits even if its parent has not stopped it.
const MAX_LIFETIME: Duration = Duration::from_secs(120);

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

// === Server process ===

/// Returns the longest gap of an upload.
fn upload_gap(quick: bool) -> Duration {
    Duration::from_secs(if quick { 2 } else { 5 })
}

/// Returns the app. A request for `/cpu` needs `rounds` of [`cpu::burn`].
fn app(rounds: u64) -> Router {
    let pool = Arc::new(Semaphore::new(POOL_SIZE));
    let work = async move || {
        let _connection = pool.acquire().await;
        sleep(WORK_DURATION).await;
        "worked\n"
    };
    // Buffers the whole body, as most handlers do to parse JSON or a form.
    let upload = async |body: Bytes| body.len().to_string();
    Router::new()
        .route("/", get(async || "hello\n"))
        .route("/upload", post(upload))
        .route("/work", get(work))
        .route(
            "/cpu",
            get(async move || {
                cpu::burn(rounds);
                "done\n"
            }),
        )
        .route("/big", get(async || Bytes::from_static(&BIG_BODY)))
}

/// Limits the number of open files of this process.
pub(crate) fn limit_files(files: u64) -> std::io::Result<()> {
    #[cfg(unix)]
    palisade_testkit::process::lower_file_limit(files)?;
    #[cfg(not(unix))]
    let _ = files;
    Ok(())
}

/// Adds the layers that a careful user assembles today. The rate limit is outermost because its
/// refusals are cheapest, then the concurrency limit, and inside it the timeouts and the body
/// limit.
fn with_peer_layers(app: Router, quick: bool) -> Result<Router, BoxError> {
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
        .layer(RequestBodyTimeoutLayer::new(upload_gap(quick)))
        .layer(RequestBodyDeadlineLayer::new(TIMEOUT))
        .layer(RequestBodyLimitLayer::new(MAX_BODY_BYTES as usize));
    Ok(app.layer(guards))
}

/// Adds palisade's stack, and `/metrics`.
fn with_palisade_stack(app: Router, quick: bool, metrics: &Snapshot) -> Result<Router, BoxError> {
    let pace = Pace::builder()
        .gap(upload_gap(quick))
        .rate(4 * 1024)
        .window(upload_gap(quick));
    let guards = Stack::edge()
        .metrics(metrics.clone())
        .rate_limit(Quota::per_second(REQUESTS_PER_SECOND).burst(BURST_REQUESTS))
        .timeout(TIMEOUT)
        .max_body(MAX_BODY_BYTES)
        .pace(pace.grace(upload_gap(quick) / 2))
        .max_requests(MAX_REQUESTS)
        .build()?;
    let metrics = metrics.clone();
    let scrape = async move || {
        (
            [(CONTENT_TYPE, Snapshot::CONTENT_TYPE)],
            metrics.prometheus(),
        )
    };
    let app = app.layer(guards);
    // Outside the guards, as if it were served on a separate port.
    Ok(app.route("/metrics", get(scrape)))
}

/// The connection guard of palisade's server.
fn connection_guard(metrics: &Snapshot) -> Result<ConnGuard, BoxError> {
    let guard = ConnGuard::builder()
        .metrics(metrics.clone())
        .first_request_timeout(CONNECTION_TIMEOUT)
        .write_timeout(CONNECTION_TIMEOUT)
        // Loopback addresses stand for clients from different networks, so the network limit is
        // high.
        .max_per_client(1_000)
        .max_per_network(10_000)
        .accept_rate((1_000, 2_000));
    Ok(guard.build()?)
}

/// Serves on a free loopback port and prints its address. Begins when the parent process writes to
/// stdin, and ends when it closes stdin.
pub(crate) async fn serve(kind: ServerKind, quick: bool, rounds: u64) -> Result<(), BoxError> {
    let mut parent = tokio::io::stdin();
    let mut nothing = [0];
    parent.read_exact(&mut nothing).await?;
    let listener = palisade_testkit::servers::listener().await;
    println!("{}", listener.local_addr()?);
    let served = async {
        match kind {
            // The bare server does not use the peer's address.
            ServerKind::Bare => axum::serve(listener, app(rounds)).await?,
            ServerKind::Careful => {
                let app = with_peer_layers(app(rounds), quick)?;
                let app = app.into_make_service_with_connect_info::<SocketAddr>();
                axum::serve(listener, app).await?;
            }
            ServerKind::Palisade => {
                palisade::Memory::of_process().release(palisade_testkit::alloc::trim);
                let metrics = Snapshot::new();
                let app = with_palisade_stack(app(rounds), quick, &metrics)?;
                palisade::serve(connection_guard(&metrics)?.listen(listener), app).await?;
            }
        }
        Ok::<_, BoxError>(())
    };
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
    kind: ServerKind,
    child: Child,
    /// The control group of the process, which is removed after it has ended.
    _group: Option<MemoryGroup>,
}

impl Server {
    /// Starts the server with the limits of `attack`. A request for `/cpu` needs `rounds`.
    ///
    /// Returns `None` if the attack needs a control group and this process may not create one.
    pub(crate) async fn start(
        kind: ServerKind,
        quick: bool,
        attack: &Attack,
        rounds: u64,
    ) -> Result<Option<Self>, BoxError> {
        let group = match attack.memory.map(MemoryGroup::create) {
            Some(None) => return Ok(None),
            group => group.flatten(),
        };
        let speed = if quick { "quick" } else { "usual" };
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--serve", kind.name(), speed, &rounds.to_string()])
            .args(attack.files.map(|files| files.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let (Some(group), Some(id)) = (&group, child.id()) {
            group.add(id)?;
        }
        // The server begins in its group.
        let stdin = child.stdin.as_mut().ok_or("the server has no stdin")?;
        stdin.write_all(b"\n").await?;
        let stdout = child.stdout.take().ok_or("the server has no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let addr = timeout(clients::PATIENCE, lines.next_line()).await??;
        let addr = addr.ok_or("the server has not started")?.parse()?;
        Ok(Some(Self {
            addr,
            kind,
            child,
            _group: group,
        }))
    }

    /// Returns whether the process has ended by itself, as the kernel kills it for its memory.
    pub(crate) fn is_killed(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns the memory of the process; `None` where the system has no `/proc`.
    pub(crate) fn memory(&self) -> Option<Memory> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
            Some(kib * 1024)
        };
        Some(Memory {
            now: bytes("VmRSS:")?,
            peak: bytes("VmHWM:")?,
        })
    }

    /// Returns the guards and reasons of palisade's refusals and how often each occurred; nothing
    /// for the other servers.
    pub(crate) async fn refusal_reasons(&self) -> Vec<(String, u64)> {
        if self.kind != ServerKind::Palisade {
            return Vec::new();
        }
        let metrics = clients::get(Ipv4Addr::LOCALHOST, self.addr, "/metrics").await;
        let text = metrics.map(http::Response::into_body).unwrap_or_default();
        parse_reasons(&String::from_utf8_lossy(&text))
    }

    /// Stops the server, and kills it if it does not exit within 2 s.
    pub(crate) async fn stop(&mut self) {
        drop(self.child.stdin.take());
        if timeout(Duration::from_secs(2), self.child.wait())
            .await
            .is_err()
        {
            let _ = self.child.kill().await;
        }
    }
}

/// Sums the refusals, cuts and closed connections in `metrics` by guard and reason.
fn parse_reasons(metrics: &str) -> Vec<(String, u64)> {
    let families = [
        "palisade_requests_refused_total{",
        "palisade_bodies_cut_total{",
        "palisade_connections_ended_total{",
    ];
    // One reason may occur in several phases.
    let mut reasons = BTreeMap::<String, u64>::new();
    for line in metrics
        .lines()
        .filter(|line| families.iter().any(|name| line.starts_with(name)))
    {
        let label = |name: &str| line.split(&format!("{name}=\"")).nth(1)?.split('"').next();
        let count = line
            .rsplit(' ')
            .next()
            .and_then(|count| count.parse::<u64>().ok());
        if let (Some(guard), Some(reason), Some(count)) = (label("guard"), label("reason"), count)
            && count > 0
        {
            *reasons.entry(format!("{guard} {reason}")).or_default() += count;
        }
    }
    reasons.into_iter().collect()
}
