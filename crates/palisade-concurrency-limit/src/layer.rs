//! The layer and its builder methods.

use crate::{
    limiter::Limiter,
    options::{Options, QueueOptions},
    policy::ConcurrencyLimitPolicy,
};
use palisade_client_ip::ClientIp;
use palisade_core::{KeyExtractor, RequestHead};
use palisade_guard::{GuardLayer, Guarded, Settings};
use std::{sync::Arc, time::Duration};
use tower_layer::Layer;

/// Applies [`ConcurrencyLimit`]. Clones, and the services they create, share one limit.
///
/// Clones share the counts and the debts of clients. Each builder method changes the layer it is
/// called on and the services created from that layer afterwards, so routes can differ: one of two
/// clones can allow fewer [`present`](Self::present) requests, or have no
/// [`fairness`](Self::fairness).
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct ConcurrencyLimitLayer {
    guard: GuardLayer<ConcurrencyLimitPolicy>,
}

/// See the [crate docs](crate).
pub type ConcurrencyLimit<S> = Guarded<S, ConcurrencyLimitPolicy>;

/// Request body under [`ConcurrencyLimit`].
///
/// The request holds no permit while it waits for its client. Data that arrives is passed on once
/// the request holds a permit again, or immediately if the response head has been sent. If the
/// request is evicted, the body fails once with a [`Violation`](palisade_core::Violation) and then
/// ends.
pub type RequestBody<B> = palisade_guard::RequestBody<B, ConcurrencyLimitPolicy>;

/// Response body under [`ConcurrencyLimit`].
///
/// The request holds no permit from the time a frame is returned until the next one is polled, nor
/// while the handler waits for the request body. If the request is evicted, the body fails with a
/// [`Violation`](palisade_core::Violation); in gRPC it ends with trailers.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, ConcurrencyLimitPolicy>;

/// Response future of [`ConcurrencyLimit`]. Dropping it leaves the queue, or gives the permit back.
pub type ResponseFuture<S, B> = palisade_guard::ResponseFuture<S, B, ConcurrencyLimitPolicy>;

/// Changes the limit of a running server.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimitHandle {
    limiter: Arc<Limiter>,
}

// === ConcurrencyLimitLayer ===

palisade_guard::settings_methods!(
    ConcurrencyLimitLayer,
    gauges: limiter,
    records: limiter,
    example: "ConcurrencyLimitLayer::new(0)" => 503 "full"
);

impl ConcurrencyLimitLayer {
    /// Creates a layer that limits the requests at work to `limit`, and to at most 2,097,151. With
    /// 0, every request is refused.
    ///
    /// ```
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let service = ConcurrencyLimitLayer::new(1).layer(service_fn(work_for_a_second));
    /// let send = || service.clone().oneshot(Request::new(Empty::<Bytes>::new()));
    /// let (first, second) = tokio::join!(send(), send());
    /// assert_eq!(first?.status(), 200);
    /// let refused = second?;
    /// assert_eq!(refused.status(), 503);
    /// assert_eq!(refused.headers()["retry-after"], "1");
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(limit: usize) -> Self {
        Self {
            guard: GuardLayer::new(ConcurrencyLimitPolicy(Arc::new(Options {
                settings: Settings::default(),
                limiter: Arc::new(Limiter::new(limit)),
                max_present: 0,
                is_fair: false,
                release_at_head: false,
                key_extractor: Arc::new(ClientIp::peer()),
                max_per_client: None,
                reserve_predicate: None,
                max_reserve_permits: 0,
                queue: None,
            }))),
        }
    }

    /// Limits the requests present, at work or waiting for their own clients, to `requests`. When
    /// one more arrives, the request that has waited longest for its client to send or take 512
    /// bytes is evicted: it is answered 408, or its body is ended. If no request waits for its
    /// client, the new one is refused. A value below the limit therefore also limits the requests
    /// at work. Requests in the [`Self::queue`] are not present yet. With 0, the value follows the
    /// limit. Defaults to 8 times the limit.
    ///
    /// ```
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let service = ConcurrencyLimitLayer::new(1).present(2).layer(service_fn(work_for_a_second));
    /// let upload = async |start| {
    ///     tokio::time::sleep(start).await;
    ///     // Nothing arrives of the body for a minute. It needs no permit until then.
    ///     let body = Pieces::new(1, 1_000).every(Duration::from_secs(60));
    ///     service.clone().oneshot(Request::new(body)).await
    /// };
    /// let (first, second, third) = tokio::join!(
    ///     upload(Duration::from_secs(0)),
    ///     upload(Duration::from_secs(10)),
    ///     upload(Duration::from_secs(20)),
    /// );
    /// assert_eq!(first?.status(), 408); // Evicted for the third.
    /// assert_eq!(second?.status(), 200);
    /// assert_eq!(third?.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn present(mut self, requests: usize) -> Self {
        self.policy_mut().max_present = requests;
        self
    }

    /// Keeps the last tenth of the permits for light clients. Each client is charged the time that
    /// its requests work and pays back the time of one permit continuously. It is heavy while it
    /// owes more than the mean request costs, or has two requests at work. A client with many slow
    /// requests in flight therefore cannot shut out clients with few. [`Self::client`] determines
    /// the client.
    ///
    /// While permits are short, new requests of heavy clients get what the light ones leave of the
    /// other nine tenths, and in any case a quarter of all permits: an address that many people
    /// share is served under overload too. An admitted request that is queued for a permit is
    /// passed by no new request, whatever its client owes, except for a permit of the last tenth.
    ///
    /// Remembers 65,536 clients in 512 KiB, and the clients with requests at work. A request that
    /// arrives while less than half of the permits are taken is not charged and counts as light,
    /// until permits are short and it resumes after a wait for its client; it reads no clock and
    /// takes no lock. All other requests read the clock and take locks a few times. Defaults to
    /// off.
    ///
    /// ```
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = ConcurrencyLimitLayer::new(10).fairness();
    /// let service = layer.layer(service_fn(work_for_a_second));
    /// let send = |client: [u8; 4]| {
    ///     let mut request = Request::new(Empty::<Bytes>::new());
    ///     request.extensions_mut().insert(SocketAddr::from((client, 4711)));
    ///     service.clone().oneshot(request)
    /// };
    /// // One client sends 20 requests at once, another one sends a single request after them.
    /// let heavy = join_all((0..20).map(|_| send([192, 0, 2, 1])));
    /// let (heavy, light) = tokio::join!(heavy, send([192, 0, 2, 2]));
    /// assert_eq!(heavy.into_iter().flatten().filter(|each| each.status() == 200).count(), 9);
    /// assert_eq!(light?.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn fairness(mut self) -> Self {
        self.policy().0.limiter.enable_fair_share();
        self.policy_mut().is_fair = true;
        self
    }

    /// Limits the requests that one client may have present to `requests`; the next one is answered
    /// 429. Costs one lock and one allocation per request. Defaults to no such limit.
    ///
    /// ```
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = ConcurrencyLimitLayer::new(100).per_client(1);
    /// let service = layer.layer(service_fn(work_for_a_second));
    /// let send = |client: [u8; 4]| {
    ///     let mut request = Request::new(Empty::<Bytes>::new());
    ///     request.extensions_mut().insert(SocketAddr::from((client, 4711)));
    ///     service.clone().oneshot(request)
    /// };
    /// let (alice, bob) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    /// let (first, second, other) = tokio::join!(send(alice), send(alice), send(bob));
    /// assert_eq!(first?.status(), 200);
    /// assert_eq!(second?.status(), 429);
    /// assert_eq!(other?.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn per_client(mut self, requests: usize) -> Self {
        self.policy_mut().max_per_client = Some(requests);
        self
    }

    /// Determines the client of a request for [`Self::fairness`] and [`Self::per_client`]. Requests
    /// for which the extractor returns [`Exempt`](palisade_core::KeyOutcome::Exempt) or
    /// [`Refuse`](palisade_core::KeyOutcome::Refuse) count for no client. Defaults to
    /// [`ClientIp::peer`].
    ///
    /// ```
    /// use palisade_concurrency_limit::{ClientKey, ConcurrencyLimitLayer, KeyOutcome, RequestHead};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// /// An outer layer has authenticated it.
    /// #[derive(Clone, Hash)]
    /// struct Tenant(u64);
    ///
    /// let by_tenant = |head: &RequestHead<'_>| match head.extensions.get::<Tenant>() {
    ///     Some(tenant) => KeyOutcome::Key(ClientKey::of(tenant)),
    ///     None => KeyOutcome::Exempt,
    /// };
    /// let layer = ConcurrencyLimitLayer::new(100).per_client(1).client(by_tenant);
    /// let service = layer.layer(service_fn(work_for_a_second));
    /// let send = |tenant: Option<Tenant>| {
    ///     let mut request = Request::new(Empty::<Bytes>::new());
    ///     tenant.map(|tenant| request.extensions_mut().insert(tenant));
    ///     service.clone().oneshot(request)
    /// };
    /// let (first, second) = tokio::join!(send(Some(Tenant(1))), send(Some(Tenant(1))));
    /// assert_eq!((first?.status(), second?.status()), (200.try_into()?, 429.try_into()?));
    /// let (first, second) = tokio::join!(send(None), send(None));
    /// assert_eq!((first?.status(), second?.status()), (200.try_into()?, 200.try_into()?));
    /// # Ok(())
    /// # }
    /// ```
    pub fn client(self, client: impl KeyExtractor) -> Self {
        self.shared_client(Arc::new(client))
    }

    /// As [`Self::client`], with an extractor that other layers of a stack share: it is called once
    /// per request.
    #[doc(hidden)]
    pub fn shared_client(mut self, client: Arc<dyn KeyExtractor>) -> Self {
        self.policy_mut().key_extractor = client;
        self
    }

    /// Grants up to `requests` permits beyond the limit to requests that match `predicate`, health
    /// checks for example, while no other permit is free. Match on something that a client cannot
    /// forge, or that costs nothing to answer. Defaults to none.
    ///
    /// ```
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = ConcurrencyLimitLayer::new(1).reserve(1, |head| head.uri.path() == "/health");
    /// let service = layer.layer(service_fn(work_for_a_second));
    /// let get = async |path| {
    ///     let request = Request::get(path).body(Empty::<Bytes>::new())?;
    ///     service.clone().oneshot(request).await.map(|response| response.status())
    /// };
    /// let (first, second, health) = tokio::join!(get("/"), get("/"), get("/health"));
    /// assert_eq!(first?, 200);
    /// assert_eq!(second?, 503);
    /// assert_eq!(health?, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn reserve(
        mut self,
        requests: usize,
        predicate: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let policy = self.policy_mut();
        policy.max_reserve_permits = requests;
        policy.reserve_predicate = Some(Arc::new(predicate));
        self
    }

    /// Queues at most `max_waiters` new requests for a permit, each for at most `max_wait`, instead
    /// of refusing them at once. They are granted permits in order of arrival; with
    /// [`Self::fairness`], those of light clients come first. They are not
    /// [`present`](Self::present) before they have a permit, and are refused if there is no room
    /// then. With 0 `max_waiters`, all are refused at once. Dropping the response future leaves the
    /// queue. Defaults to no queue: under overload a queue makes all requests slow before it
    /// refuses the same number of them.
    ///
    /// ```
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = ConcurrencyLimitLayer::new(1).queue(2, Duration::from_millis(1_500));
    /// let service = layer.layer(service_fn(work_for_a_second));
    /// let send = || service.clone().oneshot(Request::new(Empty::<Bytes>::new()));
    /// let (first, second, third, fourth) = tokio::join!(send(), send(), send(), send());
    /// assert_eq!(first?.status(), 200);
    /// assert_eq!(second?.status(), 200); // It has waited for a second.
    /// assert_eq!(third?.status(), 503); // It has waited for 1.5 s.
    /// assert_eq!(fourth?.status(), 503); // The queue was full.
    /// # Ok(())
    /// # }
    /// ```
    pub fn queue(mut self, max_waiters: usize, max_wait: Duration) -> Self {
        self.policy_mut().queue = Some(QueueOptions {
            max_waiters,
            max_wait,
        });
        self
    }

    /// Releases the permit at the response head instead of the end of the response body, as tower's
    /// limit does. Intended for routes that respond with long streams. Defaults to the end of the
    /// body.
    ///
    /// ```
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let hello = service_fn(async |_| {
    ///     Ok::<_, BoxError>(Response::new(Full::<Bytes>::from("hello")))
    /// });
    /// let until_the_end = ConcurrencyLimitLayer::new(1).layer(hello);
    /// let send = || until_the_end.clone().oneshot(Request::new(Empty::<Bytes>::new()));
    /// let unread = send().await?; // Its body is still to be sent.
    /// assert_eq!(send().await?.status(), 503);
    /// drop(unread);
    /// assert_eq!(send().await?.status(), 200);
    ///
    /// let until_the_head = ConcurrencyLimitLayer::new(1).release_at_head().layer(hello);
    /// let send = || until_the_head.clone().oneshot(Request::new(Empty::<Bytes>::new()));
    /// let unread = send().await?;
    /// assert_eq!(send().await?.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn release_at_head(mut self) -> Self {
        self.policy_mut().release_at_head = true;
        self
    }

    /// Returns a handle that changes the limit while the server runs. It records changes to the
    /// metrics set last on this layer or on another one that shares its limit, including metrics
    /// set later.
    ///
    /// ```
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// use palisade_metrics::Snapshot;
    /// let metrics = Snapshot::new();
    /// let layer = ConcurrencyLimitLayer::new(100).metrics(metrics.clone());
    /// let handle = layer.handle();
    /// handle.set_limit(50);
    /// assert_eq!(handle.limit(), 50);
    /// let gauge = r#"palisade_concurrency_limit{guard="concurrency_limit"} 50"#;
    /// assert!(metrics.prometheus().contains(gauge));
    /// ```
    pub fn handle(&self) -> ConcurrencyLimitHandle {
        ConcurrencyLimitHandle {
            limiter: self.policy().0.limiter.clone(),
        }
    }

    /// The policy of this layer, used by a stack of several guards.
    #[doc(hidden)]
    pub fn policy(&self) -> &ConcurrencyLimitPolicy {
        self.guard.policy()
    }

    fn policy_mut(&mut self) -> &mut Options {
        Arc::make_mut(&mut self.guard.policy_mut().0)
    }
}

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> ConcurrencyLimit<S> {
        self.guard.layer(inner)
    }
}

// === ConcurrencyLimitHandle ===

impl ConcurrencyLimitHandle {
    /// Limits the requests at work to `limit` from now on. Requests at work continue; after a lower
    /// limit is set, no request is admitted until enough of them have ended. With 0, admitted
    /// requests still continue, one at a time if they have to wait for a permit.
    ///
    /// ```
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = ConcurrencyLimitLayer::new(1);
    /// let limit = layer.handle();
    /// let service = layer.layer(service_fn(work_for_a_second));
    /// let send = || service.clone().oneshot(Request::new(Empty::<Bytes>::new()));
    /// let (_, second) = tokio::join!(send(), send());
    /// assert_eq!(second?.status(), 503);
    /// limit.set_limit(2);
    /// let (_, second) = tokio::join!(send(), send());
    /// assert_eq!(second?.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_limit(&self, limit: usize) {
        self.limiter.set_limit(limit);
    }

    /// The current limit.
    pub fn limit(&self) -> usize {
        self.limiter.limit()
    }

    /// The number of requests at work.
    ///
    /// ```
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = ConcurrencyLimitLayer::new(8);
    /// let limit = layer.handle();
    /// let service = layer.layer(service_fn(work_for_a_second));
    /// let send = || service.clone().oneshot(Request::new(Empty::<Bytes>::new()));
    /// let (_, _, working) = tokio::join!(send(), send(), async { limit.working() });
    /// assert_eq!(working, 2);
    /// assert_eq!(limit.working(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn working(&self) -> usize {
        self.limiter.working()
    }
}
