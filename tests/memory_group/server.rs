//! The server: a process of its own in a control group.

#[path = "most.rs"]
mod most;

use axum::{
    Router,
    body::Body,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::stream;
pub(crate) use most::Most;
use most::{Gauges, Watched};
use palisade::{Budget, Memory, Stack, body_limit::BodyLimitLayer, conn::ConnGuard};
use palisade_testkit::{
    alloc::{self, CountingAllocator},
    memory_group::{MemoryGroup, version_2::Version2},
    server_process::{ChildProcess, ServerProcess, say_listening},
};
use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    future::{IntoFuture, pending},
    net::SocketAddr,
    path::Path,
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
/// The folder with the files of the child's group as version 2 has them.
const ROOT: &str = "PALISADE_TEST_ROOT";
/// What a request for `/keep` keeps, and for how long.
const KEPT_BYTES: usize = 128 << 10;
const KEPT_FOR: Duration = Duration::from_millis(750);
const MAX_BODY_BYTES: u64 = 2 << 20;
/// A client that has left is not noticed while its body is not read, and until then.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(3);
/// The same where one attack follows the other.
const SHORT_HANDLER_TIMEOUT: Duration = Duration::from_millis(500);
/// The second part of the addresses of honest clients.
pub(crate) const HONEST_NETWORK: u8 = 0;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

/// What the server is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `palisade::serve` with a stack around the app. It reads the files of version 2.
    Stack,
    /// [`Kind::Stack`], for attacks that follow each other.
    Repeated,
    /// [`Kind::Stack`], and much of the memory is the application's own.
    Cached,
    /// `palisade::serve` and an app without layers. It reads the files of its own group, as the
    /// following ones do.
    Alone,
    /// [`Kind::Stack`], a budget that is never full, and [`KEPT_MIB`] that the application keeps.
    LargeBudget,
    /// The same, and freed memory is returned to the system.
    Release,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Stack,
        Self::Repeated,
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
    _version_2: Version2,
    pub(crate) addr: SocketAddr,
}

impl Server {
    /// Starts a server in `group`.
    pub(crate) fn start(group: &MemoryGroup, kind: Kind) -> Self {
        let version_2 = Version2::of(group).unwrap();
        let root = version_2.root().as_os_str().to_owned();
        let variables = [(SERVES, format!("{kind:?}").into()), (ROOT, root)];
        let mut process = ChildProcess::start::<OsString>(variables);
        group.add(process.id()).unwrap();
        // It serves when it is told to, so that it finds itself in the group.
        process.close_stdin();
        let ServerProcess { process, addr } = process.serving();
        Self {
            process,
            _version_2: version_2,
            addr,
        }
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
    if kind == Kind::Release {
        Memory::of_process().release(alloc::trim);
    }
    let (budget, cached_bytes) = match kind {
        Kind::LargeBudget | Kind::Release => (Budget::new(2 * LIMIT).unwrap(), KEPT_MIB << 20),
        Kind::Cached => (Budget::of_process(), 218 << 20),
        Kind::Stack | Kind::Repeated | Kind::Alone => (Budget::of_process(), 0),
    };
    let _cache = vec![1u8; cached_bytes];
    // It looks at once, and sees what is kept.
    let of_version_2 = || Memory::below(Path::new(&env::var_os(ROOT).unwrap()));
    let memory = matches!(kind, Kind::Stack | Kind::Repeated | Kind::Cached).then(of_version_2);
    let gauges = Gauges::default();
    let mut guard = ConnGuard::builder()
        .metrics(gauges.clone())
        // Client and server share the processors of a test machine, which would be busy first.
        .runtime_load(None)
        .byte_budget(budget.clone());
    let mut stack = Stack::edge()
        .runtime_load(None)
        // Requests that hang are to fill the memory, not the concurrency limit.
        .max_requests(100_000)
        .timeout(match kind {
            Kind::Repeated => SHORT_HANDLER_TIMEOUT,
            _ => HANDLER_TIMEOUT,
        })
        .byte_budget(budget.clone())
        .metrics(gauges.clone())
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
    let records = gauges.clone();
    let watched = Watched {
        gauges,
        budget: budget.clone(),
        bound: guard.memory_bound(),
        handler_bytes: if kind == Kind::Cached {
            KEPT_BYTES as u64
        } else {
            0
        },
    };
    eprintln!("{kind:?}: {}", guard.memory_bound());
    let most = watched.watch();
    let most = async move || most.lock().unwrap().to_text();
    let counted = (guard.clone(), budget);
    let counts = async move || Counts::of(&counted.0, &counted.1).to_text();
    let app = app()
        .route("/counts", get(counts))
        .route("/most", get(most))
        .route("/to-honest", get(async move || records.to_honest()));
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
