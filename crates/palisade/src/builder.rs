//! The builder of a stack: a preset, and changes to it.

#[cfg(feature = "ban")]
mod ban;
mod check;
#[cfg(feature = "load-shed")]
mod load_shed;
#[cfg(feature = "rate-limit")]
mod rate_limit;

use crate::{StackLayer, stack::Layers};
use palisade_core::{ConfigError, Guard, Mode, Recorder, Rejection};
use palisade_guard::OnReject;
use std::{fmt, sync::Arc};

#[cfg(feature = "ban")]
use palisade_ban::{Ban, BanLayer};
#[cfg(feature = "body-limit")]
use palisade_body_limit::{BodyBudgetLayer, BodyLimitLayer};
#[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
use palisade_client_ip::ClientIp;
#[cfg(feature = "concurrency-limit")]
use palisade_concurrency_limit::ConcurrencyLimitLayer;
#[cfg(feature = "body-limit")]
use palisade_core::Budget;
#[cfg(feature = "rate-limit")]
use palisade_core::ClientKey;
#[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
use palisade_core::KeyExtractor;
#[cfg(any(feature = "load-shed", feature = "slow-body"))]
use palisade_core::Memory;
#[cfg(feature = "load-shed")]
use palisade_core::{RuntimeLoad, shed::PicksRequests};
#[cfg(feature = "load-shed")]
use palisade_load_shed::LoadShedLayer;
#[cfg(feature = "rate-limit")]
use palisade_rate_limit::{Decision, Limiter, Policy, RateLimitLayer};
#[cfg(feature = "slow-body")]
use palisade_slow_body::{Pace, PaceBuilder, SlowBodyLayer};
#[cfg(feature = "timeout")]
use palisade_timeout::TimeoutLayer;
#[cfg(feature = "timeout")]
use std::time::Duration;

/// Builds a [`StackLayer`] from a preset and changes to it.
///
/// The settings are validated by [`build`](Self::build), which reports all faults at once.
#[must_use = "a stack guards nothing until `build` returns its layer and the layer is applied"]
pub struct Stack {
    preset: Preset,
    modes: Vec<(Option<Guard>, Mode)>,
    recorder: Option<Recorder>,
    on_reject: Option<OnReject>,
    #[cfg(feature = "ban")]
    ban: Option<Ban>,
    #[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
    client_key: Option<Arc<dyn KeyExtractor>>,
    #[cfg(feature = "rate-limit")]
    rate_policy: Option<Policy>,
    #[cfg(feature = "rate-limit")]
    max_clients: Option<usize>,
    #[cfg(feature = "rate-limit")]
    rate_options: rate_limit::RateOptions,
    #[cfg(feature = "timeout")]
    timeout: Duration,
    #[cfg(feature = "timeout")]
    total_timeout: Option<Duration>,
    #[cfg(feature = "body-limit")]
    max_body: u64,
    #[cfg(feature = "body-limit")]
    is_grpc: bool,
    #[cfg(feature = "body-limit")]
    byte_budget: Option<Budget>,
    #[cfg(feature = "slow-body")]
    pace: PaceBuilder,
    #[cfg(any(feature = "load-shed", feature = "slow-body"))]
    memory: Option<Memory>,
    #[cfg(feature = "load-shed")]
    shed: Shed,
    #[cfg(feature = "concurrency-limit")]
    max_requests: usize,
    #[cfg(feature = "concurrency-limit")]
    max_requests_per_client: Option<usize>,
    tunes: Tunes,
}

/// Which peers reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preset {
    Edge,
    BehindProxy,
    Internal,
}

/// The settings of the layer that sheds load.
#[cfg(feature = "load-shed")]
#[derive(Default)]
struct Shed {
    /// `None` is that of the runtime in which the stack is built.
    runtime_load: Option<Option<RuntimeLoad>>,
    is_critical: Option<PicksRequests>,
    is_sheddable: Option<PicksRequests>,
}

/// The default number of clients in the table of the rate limit.
#[cfg(feature = "rate-limit")]
const DEFAULT_MAX_CLIENTS: usize = 1 << 20;

/// A change to a layer by its `tune_*` method.
type Tune<L> = Option<Box<dyn FnOnce(L) -> L + Send>>;

/// The changes that are applied to each layer after all other settings.
#[derive(Default)]
struct Tunes {
    #[cfg(feature = "ban")]
    ban: Tune<BanLayer>,
    #[cfg(feature = "load-shed")]
    load_shed: Tune<LoadShedLayer>,
    #[cfg(feature = "rate-limit")]
    rate_limit: Tune<RateLimitLayer>,
    #[cfg(feature = "timeout")]
    timeout: Tune<TimeoutLayer>,
    #[cfg(feature = "body-limit")]
    body_limit: Tune<BodyLimitLayer>,
    #[cfg(feature = "body-limit")]
    body_budget: Tune<BodyBudgetLayer>,
    #[cfg(feature = "slow-body")]
    slow_body: Tune<SlowBodyLayer>,
    #[cfg(feature = "concurrency-limit")]
    concurrency_limit: Tune<ConcurrencyLimitLayer>,
}

// === Stack ===

impl Stack {
    /// Returns the preset for a server that the internet reaches directly: the peer of a connection
    /// is the client.
    ///
    /// 30 s to the response head; 2 MiB of request body, at 500 B/s or more and without a gap of
    /// 15 s; 1,024 requests at work, the last tenth of the permits for clients that hold few. A
    /// share of the requests while memory is short and grows, or the runtime is overloaded. There
    /// is no rate limit until [`Self::rate_limit`] sets one.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().build()?;
    /// // `upload(pieces, bytes, pause)`: so many pieces of so many bytes, a pause before each.
    /// assert_eq!(status(&stack, upload(60, 1_000, SECOND)).await, 200);
    /// assert_eq!(status(&stack, upload(60, 1, SECOND)).await, 408); // Less than 500 B/s.
    /// assert_eq!(status(&stack, upload(1, 3 << 20, SECOND)).await, 413); // More than 2 MiB.
    /// # Ok(())
    /// # }
    /// ```
    pub fn edge() -> Self {
        Self::new(Preset::Edge)
    }

    /// Returns the preset for a server behind your own proxies. The same numbers as
    /// [`Self::edge`], but no guard uses the peer's address, which is the same for all clients.
    /// Clients are told apart by the [`Client`](crate::client_ip::Client) of the request, which a
    /// connection guard with [`trust`](palisade_conn::ConnGuardBuilder::trust) inserts, or a
    /// [`ClientIpLayer`](crate::client_ip::ClientIpLayer). A request without one is not counted,
    /// and with the feature `tracing` one warning says so. [`Self::client`] tells clients apart in
    /// another way.
    ///
    /// ```
    /// use palisade::{Quota, Stack};
    /// use palisade::types::{ClientKey, KeyOutcome, RequestHead};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = || Stack::behind_proxy().rate_limit(Quota::per_minute(1));
    ///
    /// // The proxy sets this header in every request, so that no client can choose its value.
    /// let by_header = |head: &RequestHead<'_>| match head.headers.get("x-client") {
    ///     Some(client) => KeyOutcome::Key(ClientKey::of(client.as_bytes())),
    ///     None => KeyOutcome::Refuse,
    /// };
    /// let service = stack().client(by_header).build()?.layer(service_fn(echo));
    /// let status = async |client| {
    ///     let request = Request::get("/").header("x-client", client).body(Empty::<Bytes>::new())?;
    ///     service.clone().oneshot(request).await.map(|response| response.status())
    /// };
    /// assert_eq!(status("alice").await?, 200);
    /// assert_eq!(status("alice").await?, 429);
    /// assert_eq!(status("bob").await?, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn behind_proxy() -> Self {
        Self::new(Preset::BehindProxy)
    }

    /// Returns the preset for a server that only your own services reach: all requests count alike.
    /// The same numbers as [`Self::edge`], without a fair share per client.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // Serves 20 concurrent requests of one client, where 10 may be at work.
    /// let served = async |stack: Stack| {
    ///     let stack = stack.max_requests(10).build()?;
    ///     let service = stack.layer(service_fn(work_for_a_second));
    ///     let send = |_| service.clone().oneshot(request_from([192, 0, 2, 1]));
    ///     let responses = join_all((0..20).map(send)).await;
    ///     let served = responses.iter().flatten().filter(|response| response.status() == 200);
    ///     Ok::<_, BoxError>(served.count())
    /// };
    /// assert_eq!(served(Stack::internal()).await?, 10);
    /// assert_eq!(served(Stack::edge()).await?, 9); // The last permit is for other clients.
    /// # Ok(())
    /// # }
    /// ```
    pub fn internal() -> Self {
        Self::new(Preset::Internal)
    }

    fn new(preset: Preset) -> Self {
        Self {
            preset,
            modes: Vec::new(),
            recorder: None,
            on_reject: None,
            #[cfg(feature = "ban")]
            ban: None,
            #[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
            client_key: None,
            #[cfg(feature = "rate-limit")]
            rate_policy: None,
            #[cfg(feature = "rate-limit")]
            max_clients: None,
            #[cfg(feature = "rate-limit")]
            rate_options: rate_limit::RateOptions::default(),
            #[cfg(feature = "timeout")]
            timeout: Duration::from_secs(30),
            #[cfg(feature = "timeout")]
            total_timeout: None,
            #[cfg(feature = "body-limit")]
            max_body: BodyLimitLayer::DEFAULT,
            #[cfg(feature = "body-limit")]
            is_grpc: false,
            #[cfg(feature = "body-limit")]
            byte_budget: Some(Budget::of_process()),
            #[cfg(feature = "slow-body")]
            pace: Pace::builder(),
            #[cfg(any(feature = "load-shed", feature = "slow-body"))]
            memory: Some(Memory::of_process()),
            #[cfg(feature = "load-shed")]
            shed: Shed::default(),
            #[cfg(feature = "concurrency-limit")]
            max_requests: 1024,
            #[cfg(feature = "concurrency-limit")]
            max_requests_per_client: None,
            tunes: Tunes::default(),
        }
    }

    /// Records the events of all guards to `metrics`. Defaults to no sink.
    ///
    /// ```
    /// use palisade::{Guard, Mode, Reason, Snapshot, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let metrics = Snapshot::new();
    /// let stack = Stack::edge().metrics(metrics.clone()).build()?;
    /// assert_eq!(status(&stack, upload(60, 1, SECOND)).await, 408); // A byte per second.
    /// assert_eq!(status(&stack, upload(1, 3 << 20, SECOND)).await, 413); // 3 MiB.
    /// assert_eq!(metrics.refused(Guard::SlowBody, Reason::Rate), 1);
    /// assert_eq!(metrics.total_refused(Mode::Enforce), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn metrics(mut self, metrics: impl Into<Recorder>) -> Self {
        self.recorder = Some(metrics.into());
        self
    }

    /// Sets the mode of all guards, including those set by an earlier [`Self::mode_of`]. Start with
    /// [`Mode::Shadow`] to see what would be refused. Defaults to [`Mode::Enforce`].
    ///
    /// ```
    /// use palisade::{Mode, Snapshot, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let metrics = Snapshot::new();
    /// let stack = Stack::edge().mode(Mode::Shadow).metrics(metrics.clone()).build()?;
    /// assert_eq!(status(&stack, upload(1, 3 << 20, SECOND)).await, 200); // 3 MiB.
    /// assert_eq!(metrics.total_refused(Mode::Shadow), 1);
    /// assert_eq!(metrics.total_refused(Mode::Enforce), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn mode(mut self, mode: Mode) -> Self {
        self.modes.push((None, mode));
        self
    }

    /// Sets the mode of one request guard. The connection guard has its own mode setting. Defaults
    /// to the mode of all guards.
    ///
    /// ```
    /// use palisade::{Guard, Mode, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().mode(Mode::Shadow).mode_of(Guard::BodyLimit, Mode::Enforce);
    /// let stack = stack.build()?;
    /// assert_eq!(status(&stack, upload(1, 3 << 20, SECOND)).await, 413); // 3 MiB.
    /// assert_eq!(status(&stack, upload(60, 1, SECOND)).await, 200); // A byte per second.
    /// # Ok(())
    /// # }
    /// ```
    pub fn mode_of(mut self, guard: Guard, mode: Mode) -> Self {
        self.modes.push((Some(guard), mode));
        self
    }

    /// Sets what identifies a client, for the rate limit and the fair shares of the concurrency
    /// limit. Defaults to [`ClientIp::peer`] with [`edge`](Self::edge), and to none otherwise.
    ///
    /// ```
    /// use palisade::{Quota, Stack};
    /// use palisade::types::{ClientKey, KeyOutcome, RequestHead};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// /// An outer layer has authenticated it.
    /// #[derive(Clone, Hash)]
    /// struct Tenant(u64);
    ///
    /// let by_tenant = |head: &RequestHead<'_>| match head.extensions.get::<Tenant>() {
    ///     Some(tenant) => KeyOutcome::Key(ClientKey::of(tenant)),
    ///     None => KeyOutcome::Refuse,
    /// };
    /// let stack = Stack::internal().rate_limit(Quota::per_minute(1)).client(by_tenant).build()?;
    /// let service = stack.layer(service_fn(echo));
    /// let status = async |tenant: Option<Tenant>| {
    ///     let mut request = Request::new(Empty::<Bytes>::new());
    ///     tenant.map(|tenant| request.extensions_mut().insert(tenant));
    ///     service.clone().oneshot(request).await.map(|response| response.status())
    /// };
    /// assert_eq!(status(Some(Tenant(1))).await?, 200);
    /// assert_eq!(status(Some(Tenant(1))).await?, 429);
    /// assert_eq!(status(Some(Tenant(2))).await?, 200);
    /// assert_eq!(status(None).await?, 500);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
    pub fn client(mut self, client: impl KeyExtractor) -> Self {
        self.client_key = Some(Arc::new(client));
        self
    }

    /// Limits the request rate of each client. Defaults to no limit.
    ///
    /// ```
    /// use palisade::{Quota, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().rate_limit(Quota::per_minute(1).burst(2)).build()?;
    /// let (alice, bob) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    /// assert_eq!(status(&stack, request_from(alice)).await, 200);
    /// assert_eq!(status(&stack, request_from(alice)).await, 200);
    /// assert_eq!(status(&stack, request_from(alice)).await, 429);
    /// assert_eq!(status(&stack, request_from(bob)).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "rate-limit")]
    pub fn rate_limit(mut self, policy: impl Into<Policy>) -> Self {
        self.rate_policy = Some(policy.into());
        self
    }

    /// Sets the number of clients in the table of the rate limit, at 8 bytes each, allocated at
    /// once. When the table is full, the clients with the least debt are evicted. Defaults to
    /// 1,048,576, which takes 8 MiB.
    ///
    /// ```
    /// use palisade::types::Gauge;
    /// use palisade::{Guard, Quota, Snapshot, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let metrics = Snapshot::new();
    /// let stack = Stack::edge().rate_limit(Quota::per_minute(1)).max_clients(1 << 10);
    /// let stack = stack.metrics(metrics.clone()).build()?;
    /// assert_eq!(status(&stack, request_from([192, 0, 2, 1])).await, 200);
    /// let gauge = |gauge| metrics.gauge(Guard::RateLimit, gauge);
    /// assert_eq!(gauge(Gauge::Keys), Some(1));
    /// assert_eq!(gauge(Gauge::KeyCapacity), Some(1 << 10));
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "rate-limit")]
    pub fn max_clients(mut self, clients: usize) -> Self {
        self.max_clients = Some(clients);
        self
    }

    /// Sets the longest time to the response head. Defaults to 30 s.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let status = async |stack: Stack| {
    ///     let service = stack.build()?.layer(service_fn(work_for_a_minute));
    ///     let response = service.oneshot(Request::new(Empty::<Bytes>::new())).await?;
    ///     Ok::<_, BoxError>(response.status())
    /// };
    /// assert_eq!(status(Stack::edge()).await?, 503);
    /// assert_eq!(status(Stack::edge().timeout(Duration::from_secs(90))).await?, 200);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "timeout")]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the longest time to the last frame of the response. Defaults to no limit.
    ///
    /// ```
    /// use palisade::{Stack, types::Violation};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().total_timeout(Duration::from_secs(60)).build()?;
    /// // A response that has a frame in each second, for 1,000 s.
    /// let service = stack.layer(service_fn(async |_| {
    ///     let body = Pieces::new(1_000, 100).every(Duration::from_secs(1));
    ///     Ok::<_, BoxError>(Response::new(body))
    /// }));
    /// let response = service.oneshot(Request::new(Empty::<Bytes>::new())).await?;
    /// assert_eq!(response.status(), 200);
    /// let error = response.into_body().collect().await.err().ok_or("not cut")?;
    /// let cut = Violation::from_error(&*error).ok_or("not cut by a guard")?;
    /// assert_eq!((cut.reason.as_str(), cut.limit), ("total_deadline", 60_000));
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "timeout")]
    pub fn total_timeout(mut self, total: Duration) -> Self {
        self.total_timeout = Some(total);
        self
    }

    /// Sets the largest size of a request body, in bytes. axum's extractors have a limit of their
    /// own, of 2 MiB: for a larger value, set `axum::extract::DefaultBodyLimit` as well. With the
    /// features `axum` and `tracing`, a larger value logs one warning. So does a value above half
    /// of what a request is charged to the [byte budget](Self::byte_budget) at most. Defaults to 2
    /// MiB.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let large = || upload(1, 3 << 20, SECOND); // 3 MiB.
    /// assert_eq!(status(&Stack::edge().build()?, large()).await, 413);
    /// assert_eq!(status(&Stack::edge().max_body(4 << 20).build()?, large()).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "body-limit")]
    pub fn max_body(mut self, bytes: u64) -> Self {
        self.max_body = bytes;
        self
    }

    /// Sets the budget of bytes that all request bodies share: see [`BodyBudgetLayer`]. While more
    /// than 80 % of it are held, bodies have to be faster, as while [memory](Self::memory) is
    /// short. `None` removes it; the connection guard still has its own. Defaults to
    /// [`Budget::of_process`], a quarter of the memory of the process.
    ///
    /// ```
    /// use palisade::{Budget, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let stack = Stack::edge().byte_budget(Budget::new(1 << 20)?).build()?;
    /// assert_eq!(status(&stack, Request::new(chunked(10, 10_000))).await, 200);
    /// assert_eq!(status(&stack, Request::new(chunked(100, 10_000))).await, 503);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "body-limit")]
    pub fn byte_budget(mut self, budget: impl Into<Option<Budget>>) -> Self {
        self.byte_budget = budget.into();
        self
    }

    /// Sets the memory that the stack protects. While it is short and grows, a share of the
    /// requests is refused, by the feature `load-shed`. While it is short, bodies have to be
    /// faster, by the feature `slow-body`. `None` removes both. Defaults to
    /// [`Memory::of_process`].
    ///
    /// ```
    /// use palisade::{Memory, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let memory = Memory::reported(1_000_000)?;
    /// let stack = Stack::edge().memory(memory.clone()).build()?;
    /// memory.report(960_000);
    /// // Nearly eight times 500 B/s are required.
    /// assert_eq!(status(&stack, upload(60, 1_000, SECOND)).await, 408);
    /// assert_eq!(status(&stack, upload(60, 5_000, SECOND)).await, 200);
    /// memory.report(990_000); // It grows. A quarter of the requests is served.
    /// assert_eq!(status(&stack, upload(60, 5_000, SECOND)).await, 503);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(any(feature = "load-shed", feature = "slow-body"))]
    pub fn memory(mut self, memory: impl Into<Option<Memory>>) -> Self {
        self.memory = memory.into();
        self
    }

    /// Declares that the handlers are gRPC services: [`Self::max_body`] then applies to each
    /// message, and a stream may have any number of messages. See [`BodyLimitLayer::grpc`] for the
    /// other effects. Defaults to one limit for the whole body.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // 50 messages of 90 bytes, each behind its prefix of 5 bytes.
    /// let message = [&[0, 0, 0, 0, 90][..], &[0; 90]].concat();
    /// let call = || {
    ///     let request = Request::post("/chat.Chat/Talk").version(Version::HTTP_2);
    ///     let request = request.header("content-type", "application/grpc");
    ///     request.body(Full::<Bytes>::from(message.repeat(50)))
    /// };
    /// let service = Stack::edge().max_body(100).grpc().build()?.layer(service_fn(echo));
    /// assert_eq!(service.oneshot(call()?).await?.headers().get("grpc-status"), None);
    /// let service = Stack::edge().max_body(100).build()?.layer(service_fn(echo));
    /// let refused = service.oneshot(call()?).await?;
    /// assert_eq!(refused.headers()["grpc-status"], "8"); // RESOURCE_EXHAUSTED
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "body-limit")]
    pub fn grpc(mut self) -> Self {
        self.is_grpc = true;
        self
    }

    /// Sets the minimum pace of request bodies. Defaults to [`Pace::default`].
    ///
    /// ```
    /// use palisade::{Stack, slow_body::Pace};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().pace(Pace::builder().rate(16 * 1024)).build()?;
    /// // `upload(pieces, bytes, pause)`: so many pieces of so many bytes, a pause before each.
    /// assert_eq!(status(&stack, upload(60, 20_000, SECOND)).await, 200);
    /// assert_eq!(status(&stack, upload(60, 10_000, SECOND)).await, 408);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "slow-body")]
    pub fn pace(mut self, pace: PaceBuilder) -> Self {
        self.pace = pace;
        self
    }

    /// Sets the largest number of requests at work. Defaults to 1,024.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let service = Stack::edge().max_requests(1).build()?.layer(service_fn(work_for_a_second));
    /// let send = || service.clone().oneshot(Request::new(Empty::<Bytes>::new()));
    /// let (first, second) = tokio::join!(send(), send());
    /// assert_eq!(first?.status(), 200);
    /// assert_eq!(second?.status(), 503);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "concurrency-limit")]
    pub fn max_requests(mut self, requests: usize) -> Self {
        self.max_requests = requests;
        self
    }

    /// Sets the largest number of present requests per client, at work or waiting for that client.
    /// Defaults to no such limit.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().max_requests_per_client(1).build()?;
    /// let service = stack.layer(service_fn(work_for_a_second));
    /// let send = |client| service.clone().oneshot(request_from(client));
    /// let (alice, bob) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    /// let (first, second, other) = tokio::join!(send(alice), send(alice), send(bob));
    /// assert_eq!(first?.status(), 200);
    /// assert_eq!(second?.status(), 429);
    /// assert_eq!(other?.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "concurrency-limit")]
    pub fn max_requests_per_client(mut self, requests: usize) -> Self {
        self.max_requests_per_client = Some(requests);
        self
    }

    /// Sets the response to refused requests of plain HTTP. Defaults to
    /// [`Rejection::into_response`](palisade_core::Rejection::into_response).
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().on_reject(|rejection| {
    ///     let reason = rejection.violation().reason;
    ///     Response::new(format!(r#"{{"error": "{reason}"}}"#).into())
    /// });
    /// let service = stack.build()?.layer(service_fn(echo));
    /// let response = service.oneshot(upload(1, 3 << 20, SECOND)).await?; // 3 MiB.
    /// assert_eq!(response.status(), 413);
    /// let body = response.into_body().collect().await?.to_bytes();
    /// assert_eq!(body, r#"{"error": "too_large"}"#);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_reject(
        mut self,
        answer: impl Fn(&Rejection) -> http::Response<bytes::Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.on_reject = Some(Arc::new(answer));
        self
    }

    /// Changes any option of the rate limit's layer, after all settings of the stack are applied.
    /// The changes are not validated. Defaults to no change.
    ///
    /// ```
    /// use palisade::{Quota, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge()
    ///     .rate_limit(Quota::per_minute(1).burst(10))
    ///     .tune_rate_limit(|layer| {
    ///         layer.cost(|head| if head.uri.path() == "/export" { 10 } else { 1 })
    ///     })
    ///     .build()?;
    /// let get = |path| Request::get(path).body(Empty::<Bytes>::new());
    /// assert_eq!(status(&stack, get("/export")?).await, 200); // The whole burst.
    /// assert_eq!(status(&stack, get("/")?).await, 429);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "rate-limit")]
    pub fn tune_rate_limit(
        mut self,
        tune: impl FnOnce(RateLimitLayer) -> RateLimitLayer + Send + 'static,
    ) -> Self {
        self.tunes.rate_limit = Some(Box::new(tune));
        self
    }

    /// Changes any option of the timeout's layer, after all settings of the stack are applied. The
    /// changes are not validated. Defaults to no change.
    ///
    /// ```
    /// use http::StatusCode;
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().tune_timeout(|layer| layer.status(StatusCode::GATEWAY_TIMEOUT));
    /// let service = stack.build()?.layer(service_fn(work_for_a_minute));
    /// let response = service.oneshot(Request::new(Empty::<Bytes>::new())).await?;
    /// assert_eq!(response.status(), 504);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "timeout")]
    pub fn tune_timeout(
        mut self,
        tune: impl FnOnce(TimeoutLayer) -> TimeoutLayer + Send + 'static,
    ) -> Self {
        self.tunes.timeout = Some(Box::new(tune));
        self
    }

    /// Changes any option of the body limit's layer, after all settings of the stack are applied.
    /// The changes are not validated. Defaults to no change.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().tune_body_limit(|layer| layer.response(100)).build()?;
    /// // The handler responds with the request body.
    /// assert_eq!(status(&stack, Request::new(declared(100))).await, 200);
    /// assert_eq!(status(&stack, Request::new(declared(101))).await, 500);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "body-limit")]
    pub fn tune_body_limit(
        mut self,
        tune: impl FnOnce(BodyLimitLayer) -> BodyLimitLayer + Send + 'static,
    ) -> Self {
        self.tunes.body_limit = Some(Box::new(tune));
        self
    }

    /// Changes any option of the layer of the byte budget, after all settings of the stack are
    /// applied. The changes are not validated. Defaults to no change.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // A route that passes its body on as it arrives, and so holds little of it.
    /// let stack = Stack::edge().tune_body_budget(|layer| {
    ///     layer.max_held_for(|head| (head.uri.path() == "/backup").then_some(64 << 10))
    /// });
    /// let stack = stack.build()?;
    /// let backup = Request::put("/backup").body(chunked(100, 10_000))?;
    /// assert_eq!(status(&stack, backup).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "body-limit")]
    pub fn tune_body_budget(
        mut self,
        tune: impl FnOnce(BodyBudgetLayer) -> BodyBudgetLayer + Send + 'static,
    ) -> Self {
        self.tunes.body_budget = Some(Box::new(tune));
        self
    }

    /// Changes any option of the slow-body guard's layer, after all settings of the stack are
    /// applied. The changes are not validated. Defaults to no change.
    ///
    /// ```
    /// use palisade::{Stack, slow_body::Pace};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().tune_slow_body(|layer| {
    ///     layer.pace_for(|head| head.uri.path().starts_with("/chat/").then(Pace::conversation))
    /// });
    /// let stack = stack.build()?;
    /// let mut request = upload(10, 1, 30 * SECOND); // A byte every 30 s.
    /// assert_eq!(status(&stack, request).await, 408);
    /// request = upload(10, 1, 30 * SECOND);
    /// *request.uri_mut() = "/chat/1".parse()?;
    /// assert_eq!(status(&stack, request).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "slow-body")]
    pub fn tune_slow_body(
        mut self,
        tune: impl FnOnce(SlowBodyLayer) -> SlowBodyLayer + Send + 'static,
    ) -> Self {
        self.tunes.slow_body = Some(Box::new(tune));
        self
    }

    /// Changes any option of the concurrency limit's layer, after all settings of the stack are
    /// applied. The changes are not validated. Defaults to no change.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge()
    ///     .max_requests(1)
    ///     .tune_concurrency_limit(|layer| layer.queue(1, Duration::from_secs(5)))
    ///     .build()?;
    /// let service = stack.layer(service_fn(work_for_a_second));
    /// let send = || service.clone().oneshot(Request::new(Empty::<Bytes>::new()));
    /// let (first, second, third) = tokio::join!(send(), send(), send());
    /// assert_eq!(first?.status(), 200);
    /// assert_eq!(second?.status(), 200); // It has been queued for a second.
    /// assert_eq!(third?.status(), 503); // The queue was full.
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "concurrency-limit")]
    pub fn tune_concurrency_limit(
        mut self,
        tune: impl FnOnce(ConcurrencyLimitLayer) -> ConcurrencyLimitLayer + Send + 'static,
    ) -> Self {
        self.tunes.concurrency_limit = Some(Box::new(tune));
        self
    }

    /// Builds the layer.
    ///
    /// ```
    /// use palisade::{Quota, Stack};
    /// use std::time::Duration;
    ///
    /// let stack = Stack::internal()
    ///     .rate_limit(Quota::per_second(10)) // All requests would count as one client's.
    ///     .total_timeout(Duration::from_secs(10)) // Less than the 30 s to the response head.
    ///     .max_requests(0);
    /// let error = stack.build().unwrap_err();
    /// let fields: Vec<_> = error.faults().iter().map(|fault| &*fault.field).collect();
    /// assert_eq!(fields, ["rate_limit", "total_timeout", "max_requests"]);
    /// ```
    ///
    /// # Errors
    ///
    /// If a setting is invalid, or two settings contradict each other. The error lists all faults.
    pub fn build(mut self) -> Result<StackLayer, ConfigError> {
        self.check()?;
        #[cfg(all(feature = "axum", feature = "body-limit", feature = "tracing"))]
        if self.max_body > BodyLimitLayer::DEFAULT && !self.is_grpc {
            warn_about_axum_limit_once(self.max_body);
        }
        #[cfg(all(
            feature = "body-limit",
            any(feature = "load-shed", feature = "slow-body")
        ))]
        if let (Some(memory), Some(budget)) = (&self.memory, &self.byte_budget) {
            budget.report_to(memory);
        }
        let tunes = std::mem::take(&mut self.tunes);
        // Applies the settings that all layers have in common, and then the layer's `tune_*`.
        macro_rules! configured {
            ($layer:expr, $guard:expr, $tune:ident) => {{
                let mut layer = $layer.mode(self.mode_for($guard));
                if let Some(recorder) = &self.recorder {
                    layer = layer.metrics(recorder.clone());
                }
                if let Some(answer) = self.on_reject.clone() {
                    layer = layer.on_reject(move |rejection| answer(rejection));
                }
                match tunes.$tune {
                    Some(tune) => tune(layer),
                    None => layer,
                }
            }};
        }
        #[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
        let client_key = self.client_key_extractor();
        let layers = Layers {
            #[cfg(feature = "ban")]
            ban: configured!(self.ban_layer(), Guard::Ban, ban),
            #[cfg(feature = "load-shed")]
            load_shed: {
                let layer = self.load_shed_layer();
                configured!(layer, Guard::LoadShed, load_shed)
            },
            #[cfg(feature = "rate-limit")]
            rate_limit: {
                let layer = self.rate_limit_layer(client_key.clone())?;
                configured!(layer, Guard::RateLimit, rate_limit)
            },
            #[cfg(feature = "timeout")]
            timeout: {
                let mut layer = TimeoutLayer::new(self.timeout);
                if let Some(total) = self.total_timeout {
                    layer = layer.total(total);
                }
                configured!(layer, Guard::Timeout, timeout)
            },
            #[cfg(feature = "body-limit")]
            body_limit: {
                let mut layer = BodyLimitLayer::new(self.max_body);
                if self.is_grpc {
                    layer = layer.grpc();
                }
                configured!(layer, Guard::BodyLimit, body_limit)
            },
            #[cfg(feature = "body-limit")]
            body_budget: {
                let layer = self.body_budget();
                let layer = configured!(layer, Guard::BodyLimit, body_budget);
                #[cfg(feature = "tracing")]
                if self.max_body > layer.longest_charged()
                    && self.byte_budget.is_some()
                    && !self.is_grpc
                {
                    warn_about_uncharged_bytes_once(self.max_body, layer.longest_charged());
                }
                if self.byte_budget.is_some() {
                    layer
                } else {
                    layer.mode(Mode::Off)
                }
            },
            #[cfg(feature = "slow-body")]
            slow_body: {
                let pace = self.pace.build().expect("validated by `check`");
                let mut layer = SlowBodyLayer::new().request(pace);
                if let Some(memory) = &self.memory {
                    layer = layer.pressure(memory.pressure().clone());
                }
                #[cfg(feature = "body-limit")]
                let layer = layer.byte_budget(self.byte_budget.clone());
                configured!(layer, Guard::SlowBody, slow_body)
            },
            #[cfg(feature = "concurrency-limit")]
            concurrency_limit: {
                let mut layer = ConcurrencyLimitLayer::new(self.max_requests);
                if let Some(client_key) = client_key {
                    layer = layer.fairness().shared_client(client_key);
                }
                if let Some(requests) = self.max_requests_per_client {
                    layer = layer.per_client(requests);
                }
                configured!(layer, Guard::ConcurrencyLimit, concurrency_limit)
            },
        };
        Ok(layers.to_stack_layer())
    }

    /// Returns the mode of `guard`: the last one set for it or for all guards. The rate limit is
    /// off without a policy.
    fn mode_for(&self, guard: Guard) -> Mode {
        #[cfg(feature = "rate-limit")]
        if guard == Guard::RateLimit && self.rate_policy.is_none() {
            return Mode::Off;
        }
        let mut latest_first = self.modes.iter().rev();
        let last = latest_first.find(|(target, _)| target.is_none_or(|target| target == guard));
        last.map(|(_, mode)| *mode).unwrap_or_default()
    }

    /// Returns the extractor that identifies clients: the one that was set, or the preset's.
    #[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
    fn client_key_extractor(&self) -> Option<Arc<dyn KeyExtractor>> {
        match (&self.client_key, self.preset) {
            (Some(client_key), _) => Some(client_key.clone()),
            (None, Preset::Edge) => Some(Arc::new(ClientIp::peer())),
            (None, Preset::BehindProxy) => Some(Arc::new(ClientIp::forwarded())),
            (None, Preset::Internal) => None,
        }
    }
}

#[cfg(feature = "body-limit")]
impl Stack {
    fn body_budget(&self) -> BodyBudgetLayer {
        let budget = self.byte_budget.clone();
        let layer = BodyBudgetLayer::new(budget.unwrap_or_else(Budget::of_process));
        let layer = if self.is_grpc { layer.grpc() } else { layer };
        #[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
        if let Some(client_key) = self.client_key_extractor() {
            return layer.shared_client(client_key);
        }
        if self.preset == Preset::Edge {
            layer
        } else {
            layer.unknown_clients()
        }
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack")
            .field("preset", &self.preset)
            .finish_non_exhaustive()
    }
}

#[cfg(all(feature = "axum", feature = "body-limit", feature = "tracing"))]
fn warn_about_axum_limit_once(max_body: u64) {
    static WARNED: std::sync::Once = std::sync::Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            target: "palisade",
            max_body,
            "axum's extractors accept at most 2 MiB unless `axum::extract::DefaultBodyLimit` is set \
             as well"
        );
    });
}

#[cfg(all(feature = "body-limit", feature = "tracing"))]
fn warn_about_uncharged_bytes_once(max_body: u64, charged: u64) {
    static WARNED: std::sync::Once = std::sync::Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            target: "palisade",
            max_body,
            charged,
            "of a body of up to `max_body` bytes only the first `charged` count towards the byte \
             budget: raise `max_held` by `tune_body_budget`, unless the handlers pass bodies on"
        );
    });
}

// === Unlimited ===

/// The limiter of a stack without a rate limit. It admits every request.
#[cfg(feature = "rate-limit")]
struct Unlimited;

#[cfg(feature = "rate-limit")]
impl Limiter for Unlimited {
    fn check(&self, _key: ClientKey, _cost: u32) -> Decision {
        Decision::Admit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(all(
        feature = "rate-limit",
        feature = "timeout",
        feature = "slow-body",
        feature = "concurrency-limit"
    ))]
    fn all_faults_are_reported_at_once() {
        let error = Stack::internal()
            .rate_limit(palisade_rate_limit::Quota::per_second(0))
            .timeout(Duration::ZERO)
            .pace(Pace::builder().rate(0))
            .max_requests(0)
            .build()
            .unwrap_err();
        let fields: Vec<_> = error.faults().iter().map(|fault| &*fault.field).collect();
        assert_eq!(fields[0], "rate_limit");
        assert!(fields[1].starts_with("rate_limit."));
        assert_eq!(
            fields[fields.len() - 3..],
            ["timeout", "pace.rate", "max_requests"]
        );
        assert_eq!(error.to_string().lines().count(), 1 + fields.len());
    }

    #[test]
    #[cfg(feature = "timeout")]
    fn a_total_timeout_below_the_timeout_is_a_fault() {
        let error = Stack::edge()
            .total_timeout(Duration::from_secs(1))
            .build()
            .unwrap_err();
        assert_eq!(error.faults()[0].field, "total_timeout");
        let _ = Stack::edge()
            .total_timeout(Duration::from_secs(30))
            .build()
            .unwrap();
    }

    #[test]
    #[cfg(all(feature = "rate-limit", feature = "concurrency-limit"))]
    fn settings_that_guard_nothing_or_refuse_all_requests_are_faults() {
        let fields = |stack: Stack| -> Vec<_> {
            let error = stack.build().unwrap_err();
            error
                .faults()
                .iter()
                .map(|fault| fault.field.clone())
                .collect()
        };
        let enforced = Stack::edge().mode_of(Guard::RateLimit, Mode::Enforce);
        assert_eq!(fields(enforced), ["rate_limit"]);
        assert_eq!(
            fields(Stack::edge().tune_rate_limit(|layer| layer)),
            ["rate_limit"]
        );
        let without_requests = Stack::edge().max_requests_per_client(0);
        assert_eq!(fields(without_requests), ["max_requests_per_client"]);
        let without_client = Stack::internal().max_requests_per_client(9);
        assert_eq!(fields(without_client), ["max_requests_per_client"]);
    }

    #[test]
    #[cfg(all(feature = "rate-limit", feature = "timeout"))]
    fn settings_without_effect_are_faults() {
        let fields = |stack: Stack| -> Vec<_> {
            let error = stack.build().unwrap_err();
            error
                .faults()
                .iter()
                .map(|fault| fault.field.clone())
                .collect()
        };
        let limited = || Stack::edge().rate_limit(palisade_rate_limit::Quota::per_second(1));
        assert_eq!(fields(limited().max_clients(0)), ["max_clients"]);
        assert_eq!(fields(Stack::edge().max_clients(1000)), ["max_clients"]);
        let _ = limited().max_clients(1).build().unwrap();
        assert_eq!(
            fields(Stack::edge().timeout(Duration::from_nanos(1))),
            ["timeout"]
        );
        let _ = Stack::edge()
            .timeout(Duration::from_millis(1))
            .build()
            .unwrap();
        let connection = Stack::edge().mode_of(Guard::Connection, Mode::Shadow);
        assert_eq!(fields(connection), ["mode_of"]);
    }

    #[test]
    fn the_presets_build() {
        for stack in [Stack::edge(), Stack::behind_proxy(), Stack::internal()] {
            let _ = stack.build().unwrap();
        }
    }

    #[test]
    fn the_last_mode_set_for_a_guard_applies() {
        let stack = Stack::edge()
            .mode_of(Guard::Timeout, Mode::Off)
            .mode(Mode::Shadow);
        assert_eq!(stack.mode_for(Guard::Timeout), Mode::Shadow);
        let stack = stack.mode_of(Guard::Timeout, Mode::Enforce);
        assert_eq!(stack.mode_for(Guard::Timeout), Mode::Enforce);
        assert_eq!(stack.mode_for(Guard::BodyLimit), Mode::Shadow);
        // Without a policy there is nothing to enforce.
        #[cfg(feature = "rate-limit")]
        assert_eq!(stack.mode_for(Guard::RateLimit), Mode::Off);
    }
}
