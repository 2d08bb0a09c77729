//! The app, the three servers around it, and the processes they run in.

use crate::{clients, report::Memory};
use axum::{
    Router,
    error_handling::HandleErrorLayer,
    routing::{get, post},
};
use bytes::Bytes;
use http::{StatusCode, header::CONTENT_TYPE};
use palisade::{Quota, Snapshot, Stack, conn::ConnGuard, slow_body::Pace};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
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

/// What slow readers ask for.
static BIG: [u8; 8 << 20] = [b'x'; 8 << 20];

// The numbers, the same for both that have any.
const SLOTS: usize = 200;
const MAX_BODY: u64 = 1 << 20;
const PER_SECOND: u32 = 50;
const BURST: u32 = 100;
const TIMEOUT: Duration = Duration::from_secs(30);

/// What `/work` needs: one of so many connections to a database, say, for so long. 800 a second.
const POOL: usize = 40;
const WORK: Duration = Duration::from_millis(50);

/// For a first request, and for a reader to take something. Shorter than anybody would want it, as
/// the attacks are.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);

/// No server outlives this, whatever becomes of whoever started it.
const LONGEST_LIFE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bare,
    Careful,
    Palisade,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Bare, Self::Careful, Self::Palisade];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Careful => "careful",
            Self::Palisade => "palisade",
        }
    }

    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Bare => "axum::serve and nothing else",
            Self::Careful => {
                "tower's load shed and concurrency limit, tower-http's timeouts and body limit, \
                 tower_governor"
            }
            Self::Palisade => "palisade::serve, and its Stack::edge with the same numbers",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

// === In the server's process ===

/// The longest silence of an upload.
fn gap(quick: bool) -> Duration {
    Duration::from_secs(if quick { 2 } else { 5 })
}

fn app() -> Router {
    let pool = Arc::new(Semaphore::new(POOL));
    let work = async move || {
        let _connection = pool.acquire().await;
        sleep(WORK).await;
        "worked\n"
    };
    // Keeps the whole body, as most handlers do: they want JSON, or a form.
    let upload = async |body: Bytes| body.len().to_string();
    Router::new()
        .route("/", get(async || "hello\n"))
        .route("/upload", post(upload))
        .route("/work", get(work))
        .route("/big", get(async || Bytes::from_static(&BIG)))
}

/// The files that this process may have open.
pub(crate) fn allow(files: u64) -> std::io::Result<()> {
    #[cfg(unix)]
    palisade_testkit::process::lower_file_limit(files)?;
    #[cfg(not(unix))]
    let _ = files;
    Ok(())
}

/// What a careful user assembles today. The rate limit stands outside, because it is cheapest to
/// refuse; then the permits, and inside of them what ends a request that takes too long.
fn careful(app: Router, quick: bool) -> Result<Router, BoxError> {
    let rate = GovernorConfigBuilder::default()
        .period(Duration::from_secs(1) / PER_SECOND)
        .burst_size(BURST)
        .finish()
        .ok_or("not a quota")?;
    let busy = HandleErrorLayer::new(async |_: BoxError| StatusCode::SERVICE_UNAVAILABLE);
    let guards = ServiceBuilder::new()
        .layer(GovernorLayer::new(rate))
        .layer(busy)
        .load_shed()
        .layer(GlobalConcurrencyLimitLayer::new(SLOTS))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            TIMEOUT,
        ))
        .layer(RequestBodyTimeoutLayer::new(gap(quick)))
        .layer(RequestBodyDeadlineLayer::new(TIMEOUT))
        .layer(RequestBodyLimitLayer::new(MAX_BODY as usize));
    Ok(app.layer(guards))
}

fn palisade(app: Router, quick: bool, metrics: &Snapshot) -> Result<Router, BoxError> {
    let pace = Pace::builder()
        .gap(gap(quick))
        .rate(4 * 1024)
        .window(gap(quick));
    let guards = Stack::edge()
        .metrics(metrics.clone())
        .rate_limit(Quota::per_second(PER_SECOND).burst(BURST))
        .timeout(TIMEOUT)
        .max_body(MAX_BODY)
        .pace(pace.grace(gap(quick) / 2))
        .max_requests(SLOTS)
        .build()?;
    let metrics = metrics.clone();
    let scrape = async move || {
        (
            [(CONTENT_TYPE, Snapshot::CONTENT_TYPE)],
            metrics.prometheus(),
        )
    };
    let app = app.layer(guards);
    // Outside of the guards, as on a port of its own.
    Ok(app.route("/metrics", get(scrape)))
}

fn connections(metrics: &Snapshot) -> Result<ConnGuard, BoxError> {
    let guard = ConnGuard::builder()
        .metrics(metrics.clone())
        .first_request(DEADLINE)
        .write_stall(DEADLINE)
        // The addresses of loopback stand for clients from everywhere.
        .max_per_client(1_000)
        .max_per_network(10_000)
        .accept_rate(1_000, 2_000);
    Ok(guard.build()?)
}

/// Serves on a free port of loopback, says which, and ends with whoever reads that.
pub(crate) async fn serve(kind: Kind, quick: bool) -> Result<(), BoxError> {
    let listener = palisade_testkit::servers::listener().await;
    println!("{}", listener.local_addr()?);
    let mut parent = tokio::io::stdin();
    let mut nothing = [0];
    let served = async {
        match kind {
            // Has no use for the peer's address.
            Kind::Bare => axum::serve(listener, app()).await?,
            Kind::Careful => {
                let app = careful(app(), quick)?;
                let app = app.into_make_service_with_connect_info::<SocketAddr>();
                axum::serve(listener, app).await?;
            }
            Kind::Palisade => {
                let metrics = Snapshot::new();
                let app = palisade(app(), quick, &metrics)?;
                palisade::serve(connections(&metrics)?.listen(listener), app).await?;
            }
        }
        Ok::<_, BoxError>(())
    };
    tokio::select! {
        served = served => served?,
        _ = parent.read(&mut nothing) => {}
        () = sleep(LONGEST_LIFE) => {}
    }
    // Not by returning: the read of stdin cannot be called off, and the runtime would wait for it.
    std::process::exit(0)
}

// === In the demo's process ===

/// A server's process. It is ended when this is.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    kind: Kind,
    child: Child,
}

impl Server {
    pub(crate) async fn start(
        kind: Kind,
        quick: bool,
        files: Option<u64>,
    ) -> Result<Self, BoxError> {
        let speed = if quick { "quick" } else { "usual" };
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--serve", kind.name(), speed])
            .args(files.map(|files| files.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let said = child.stdout.take().ok_or("a pipe was asked for")?;
        let mut lines = BufReader::new(said).lines();
        let addr = timeout(clients::PATIENCE, lines.next_line()).await??;
        let addr = addr.ok_or("the server did not start")?.parse()?;
        Ok(Self { addr, kind, child })
    }

    /// What the process holds. `None` where the system has no `/proc`.
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

    /// Whom palisade refused and why, in its own words; nothing from the others.
    pub(crate) async fn reasons(&self) -> Vec<(String, u64)> {
        if self.kind != Kind::Palisade {
            return Vec::new();
        }
        let metrics = clients::get(Ipv4Addr::LOCALHOST, self.addr, "/metrics").await;
        let text = metrics.map(http::Response::into_body).unwrap_or_default();
        reasons_in(&String::from_utf8_lossy(&text))
    }

    pub(crate) async fn end(&mut self) {
        drop(self.child.stdin.take());
        if timeout(Duration::from_secs(2), self.child.wait())
            .await
            .is_err()
        {
            let _ = self.child.kill().await;
        }
    }
}

fn reasons_in(metrics: &str) -> Vec<(String, u64)> {
    let families = [
        "palisade_requests_refused_total{",
        "palisade_bodies_cut_total{",
        "palisade_connections_ended_total{",
    ];
    // One reason may come in several phases.
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
