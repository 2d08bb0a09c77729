//! The server: a process of its own in a control group.

use axum::{
    Router,
    body::Body,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::stream;
use palisade::{Budget, Memory, Stack, body_limit::BodyLimitLayer, conn::ConnGuard};
use palisade_testkit::{
    alloc::{self, CountingAllocator},
    memory_group::{MemoryGroup, used_with_tcp},
    server_process::{ChildProcess, ServerProcess, say_listening},
};
use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    future::{IntoFuture, pending},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};
use tower::ServiceBuilder;
use tower_http::decompression::RequestDecompressionLayer;

/// What the application keeps beside a release: more than half of the limit, without which no call
/// is due.
pub(crate) const KEPT_MIB: usize = 136;
pub(crate) const LIMIT: u64 = 256 << 20;
/// Tells a child process to serve, in place of doing nothing: a [`Kind`].
const SERVES: &str = "PALISADE_TEST_SERVES";
/// The folder of the child's group.
const GROUP: &str = "PALISADE_TEST_GROUP";
/// What a request for `/keep` keeps, and for how long.
const KEPT_BYTES: usize = 128 << 10;
const KEPT_FOR: Duration = Duration::from_millis(750);
const MAX_BODY_BYTES: u64 = 2 << 20;
pub(crate) const HANDLER_TIMEOUT: Duration = Duration::from_secs(5);

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

/// What the server is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `palisade::serve` with a stack around the app. It sees what version 2 counts.
    Stack,
    /// [`Kind::Stack`], and much of the memory is the application's own.
    Cached,
    /// `palisade::serve` and an app without layers. It sees what version 1 counts, as the following
    /// ones do.
    Alone,
    /// [`Kind::Stack`], a budget that is never full, and [`KEPT_MIB`] that the application keeps.
    LargeBudget,
    /// The same, and freed memory is returned to the system.
    Release,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Stack,
        Self::Cached,
        Self::Alone,
        Self::LargeBudget,
        Self::Release,
    ];
}

/// What a server has at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) connections: usize,
    pub(crate) in_flight: u64,
    /// The bytes that the budget holds.
    pub(crate) held: u64,
    /// The bytes that are allocated.
    pub(crate) live: u64,
}

/// A running server. It is killed when this is dropped.
pub(crate) struct Server {
    process: ChildProcess,
    pub(crate) addr: SocketAddr,
}

impl Server {
    /// Starts a server in `group`.
    pub(crate) fn start(group: &MemoryGroup, kind: Kind) -> Self {
        let folder = group.path().as_os_str().to_owned();
        let variables = [(SERVES, format!("{kind:?}").into()), (GROUP, folder)];
        let mut process = ChildProcess::start::<OsString>(variables);
        group.add(process.id()).unwrap();
        // It serves when it is told to, so that it finds itself in the group.
        process.close_stdin();
        let ServerProcess { process, addr } = process.serving();
        Self { process, addr }
    }

    /// Returns the resident memory in MiB, without the pages of files.
    #[cfg(target_env = "gnu")]
    pub(crate) fn resident(&self) -> u64 {
        let status = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(status).unwrap();
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kibibytes = resident.unwrap().trim().trim_end_matches(" kB");
        kibibytes.parse::<u64>().unwrap() >> 10
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.is_running()
    }
}

impl Counts {
    fn of(guard: &ConnGuard, budget: &Budget) -> Self {
        let snapshot = guard.snapshot();
        Self {
            connections: snapshot.open,
            in_flight: snapshot.in_flight,
            held: budget.held(),
            live: ALLOCATOR.live() as u64,
        }
    }

    fn to_text(self) -> String {
        let Self {
            connections,
            in_flight,
            held,
            live,
        } = self;
        format!("{connections} {in_flight} {held} {live}")
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let numbers: Vec<u64> = text.split(' ').flat_map(str::parse).collect();
        let [connections, in_flight, held, live] = numbers[..] else {
            return None;
        };
        Some(Self {
            connections: connections as usize,
            in_flight,
            held,
            live,
        })
    }
}

/// Serves for ever if this process is a child. Otherwise returns.
pub(crate) fn serve_if_told() {
    let Ok(kind) = env::var(SERVES) else { return };
    let kind = Kind::ALL
        .into_iter()
        .find(|known| format!("{known:?}") == kind);
    // Waits until the parent has moved this process into its group.
    let _ = std::io::stdin().lines().count();
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(kind.unwrap()));
}

async fn serve(kind: Kind) {
    let counted = || {
        let group = PathBuf::from(env::var_os(GROUP).unwrap());
        Memory::with_source(LIMIT, move || used_with_tcp(&group)).unwrap()
    };
    let memory = matches!(kind, Kind::Stack | Kind::Cached).then(counted);
    if kind == Kind::Release {
        Memory::of_process().release(alloc::trim);
    }
    let (budget, cached_bytes) = match kind {
        Kind::LargeBudget | Kind::Release => (Budget::new(2 * LIMIT).unwrap(), KEPT_MIB << 20),
        Kind::Cached => (Budget::of_process(), 218 << 20),
        Kind::Stack | Kind::Alone => (Budget::of_process(), 0),
    };
    let _cache = vec![1u8; cached_bytes];
    let mut guard = ConnGuard::builder()
        // Client and server share the processors of a test machine, which would be busy first.
        .runtime_load(None)
        .byte_budget(budget.clone());
    let mut stack = Stack::edge()
        // Requests that hang are to fill the memory, not the concurrency limit.
        .max_requests(100_000)
        // A client that has left is not noticed while its body is not read.
        .timeout(HANDLER_TIMEOUT)
        .byte_budget(budget.clone())
        .max_body(MAX_BODY_BYTES);
    if let Some(memory) = memory {
        guard = guard.memory(memory.clone());
        stack = stack.memory(memory);
    }
    if budget.limit() > LIMIT {
        // The budget is larger than the memory, which a guard of that memory refuses.
        guard = guard.memory(None);
    }
    let guard = guard.build().unwrap();
    let counted = (guard.clone(), budget);
    let app = app().route(
        "/counts",
        get(async move || Counts::of(&counted.0, &counted.1).to_text()),
    );
    let app = if kind == Kind::Alone {
        app
    } else {
        let guarded = ServiceBuilder::new()
            .layer(stack.build().unwrap())
            .layer(RequestDecompressionLayer::new())
            .layer(BodyLimitLayer::decompressed(MAX_BODY_BYTES));
        app.layer(guarded)
    };
    let listener = guard.bind("127.0.0.1:0").await.unwrap();
    say_listening(listener.local_addr().unwrap());
    palisade::serve(listener, app).into_future().await.unwrap();
}

fn app() -> Router {
    static ANSWER: [u8; 64 << 10] = [b'x'; 64 << 10];
    let endless = async || {
        let pieces = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&ANSWER)));
        Body::from_stream(pieces)
    };
    // 64 MiB, each piece in memory of its own.
    let large = async || {
        let piece = |_| Ok::<_, Infallible>(Bytes::from(vec![b'x'; 16 << 10]));
        Body::from_stream(stream::iter((0..4096).map(piece)))
    };
    let keep = async || {
        let kept = vec![1u8; KEPT_BYTES];
        tokio::time::sleep(KEPT_FOR).await;
        kept.len().to_string()
    };
    Router::new()
        .route("/", post(async |body: Bytes| body.len().to_string()))
        .route("/health", get("ok"))
        .route("/hang", get(pending::<()>).post(pending::<()>))
        // Memory of its own, as an answer that a handler makes.
        .route("/answer", get(async || vec![b'x'; 64 << 10]))
        .route("/endless", get(endless))
        .route("/large", get(large))
        .route("/keep", get(keep))
}
