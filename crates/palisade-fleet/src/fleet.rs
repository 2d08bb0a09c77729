//! The handle of a fleet.

use crate::{
    driver::REPORT_WITHIN,
    policy::{OnFailure, PolicyOfFleet},
    shared::{Handle, Shared},
};
use palisade_core::{ClientKey, ConfigError, Mode};
use palisade_guard::Gcra;
use palisade_rate_limit::{CountsFleet, FleetQuotas};
use std::{fmt, sync::Arc};
use tokio::time::timeout;

/// What counts a rate limit over several nodes. Clones are the same one. Without a clone and
/// without a policy, it reports what is left and ends.
///
/// The task that asks the store ends with [`shutdown`](Self::shutdown) or with its runtime, and not
/// when the last handle is dropped. See the [crate docs](crate).
///
/// ```
/// use palisade_fleet::{Fleet, MemoryStore};
/// use palisade_rate_limit::{Quota, RateLimitLayer};
/// # use palisade_testkit::example::*;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// # let secret = "of 16 bytes at least, the same on all nodes";
/// let fleet = Fleet::with_store(MemoryStore::new()).nodes(8).secret(secret).start()?;
/// let layer = RateLimitLayer::new(Quota::per_second(10).burst(40).fleet(&fleet))?;
/// assert_eq!(status(&layer, request_from([192, 0, 2, 1])).await, 200);
/// fleet.shutdown().await; // After the server.
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Fleet {
    pub(crate) shared: Arc<Shared>,
    handle: Arc<Handle>,
    policy: Arc<str>,
    on_failure: OnFailure,
}

// === Fleet ===

impl Fleet {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            handle: Arc::new(Handle(Arc::clone(&shared))),
            shared,
            policy: Arc::from("default"),
            on_failure: OnFailure::LocalShare(2.0),
        }
    }

    /// Returns the same fleet for a policy with this name, 1 to 64 bytes. It must be the same on
    /// all nodes, and no other policy of this node may have it. A fleet has 64 policies at most.
    /// Defaults to `"default"`.
    ///
    /// ```
    /// use palisade_fleet::{Fleet, MemoryStore};
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), palisade_fleet::ConfigError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// let fleet = Fleet::with_store(MemoryStore::new()).nodes(8).secret(secret).start()?;
    /// let api = RateLimitLayer::new(Quota::per_second(10).fleet(&fleet))?;
    /// let login = RateLimitLayer::new(Quota::per_minute(5).fleet(&fleet.named("login")))?;
    ///
    /// let error = RateLimitLayer::new(Quota::per_hour(1).fleet(&fleet)).unwrap_err();
    /// let text = "invalid fleet:
    ///   named is \"default\", allowed is a name of its own for each policy: use Fleet::named";
    /// assert_eq!(error.to_string(), text);
    /// # let _ = (api, login);
    /// # Ok(())
    /// # }
    /// ```
    pub fn named(&self, policy: impl AsRef<str>) -> Self {
        Self {
            policy: Arc::from(policy.as_ref()),
            ..self.clone()
        }
    }

    /// Returns the same fleet for a policy that does this while the other nodes cannot be asked.
    /// Defaults to `OnFailure::LocalShare(2.0)`.
    ///
    /// ```
    /// use palisade_fleet::{Fleet, MemoryStore, OnFailure};
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), palisade_fleet::ConfigError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// let fleet = Fleet::with_store(MemoryStore::new()).nodes(8).secret(secret).start()?;
    /// // A balancer keeps each client on one node.
    /// let api = fleet.on_failure(OnFailure::LocalFull);
    /// let api = RateLimitLayer::new(Quota::per_second(10).fleet(&api))?;
    /// let login = fleet.named("login").on_failure(OnFailure::Deny);
    /// let login = RateLimitLayer::new(Quota::per_minute(5).fleet(&login))?;
    /// # let _ = (api, login);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_failure(&self, on_failure: OnFailure) -> Self {
        Self {
            on_failure,
            ..self.clone()
        }
    }

    /// Returns a key that is the same on all nodes, for a client that is known by `name`: an
    /// authenticated user or tenant. A key from [`ClientKey::of`] is another one in each process,
    /// so each node alone would count it.
    ///
    /// ```
    /// use palisade_core::{KeyOutcome, RequestHead};
    /// use palisade_fleet::{Fleet, MemoryStore};
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    ///
    /// /// Put into the request by your authentication.
    /// #[derive(Clone)]
    /// struct User(&'static str);
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// let fleet = Fleet::with_store(MemoryStore::new()).nodes(8).secret(secret).start()?;
    /// let layer = RateLimitLayer::new(Quota::per_hour(1).fleet(&fleet))?;
    /// let layer = layer.key(move |head: &RequestHead<'_>| match head.extensions.get::<User>() {
    ///     Some(User(name)) => KeyOutcome::Key(fleet.key(name)),
    ///     None => KeyOutcome::Refuse,
    /// });
    /// for (user, expected) in [("alice", 200), ("bob", 200), ("alice", 429)] {
    ///     let mut request = Request::new(Empty::<Bytes>::new());
    ///     request.extensions_mut().insert(User(user));
    ///     assert_eq!(status(&layer, request).await, expected);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn key(&self, name: impl AsRef<[u8]>) -> ClientKey {
        self.key_of(&[name.as_ref()])
    }

    /// Returns a key that is the same on all nodes, for a client that is known by several parts,
    /// such as a tenant and a route. The same bytes in other parts are another key.
    ///
    /// ```
    /// use palisade_fleet::{Fleet, MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), palisade_fleet::ConfigError> {
    /// let node = || Fleet::with_store(MemoryStore::new()).nodes(8).secret("equal on all nodes");
    /// let (first, second) = (node().start()?, node().start()?);
    /// let key = first.key_of(&[b"tenant 4711", b"/search"]);
    /// assert_eq!(second.key_of(&[b"tenant 4711", b"/search"]), key);
    /// assert_ne!(first.key_of(&[b"tenant 4711/", b"search"]), key);
    /// # Ok(())
    /// # }
    /// ```
    pub fn key_of(&self, parts: &[&[u8]]) -> ClientKey {
        ClientKey::of_digest(self.shared.secret.key(parts))
    }

    /// Reports what is not reported yet, once, and ends. From then on each policy does what it is
    /// told to do on [failure](Self::on_failure). Takes 20 ms at most. Call it when the server has
    /// ended.
    ///
    /// Cancel safety: the task reports and ends also if this future is dropped after its first
    /// poll.
    ///
    /// ```
    /// use palisade_fleet::{Fleet, MemoryStore};
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// let redis = MemoryStore::new();
    /// let node = || Fleet::with_store(redis.clone()).nodes(2).secret(secret).start();
    /// let layer = |fleet: &Fleet| RateLimitLayer::new(Quota::per_hour(4).fleet(fleet));
    /// let first = node()?;
    /// assert_eq!(status(&layer(&first)?, request_from([192, 0, 2, 1])).await, 200);
    /// first.shutdown().await;
    ///
    /// let second = layer(&node()?)?;
    /// for expected in [200, 200, 200, 429] {
    ///     assert_eq!(status(&second, request_from([192, 0, 2, 1])).await, expected);
    ///     tokio::time::sleep(Duration::from_millis(25)).await;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn shutdown(&self) {
        self.shared.stop();
        let mut ended = self.shared.ended.subscribe();
        let _ = timeout(REPORT_WITHIN, ended.wait_for(|ended| *ended)).await;
        self.shared.end();
    }
}

impl CountsFleet for Fleet {
    fn join(&self, quotas: &[Gcra]) -> Result<Arc<dyn FleetQuotas>, ConfigError> {
        let mut error = ConfigError::new("invalid fleet");
        let name = &*self.policy;
        error.check(
            (1..=64).contains(&name.len()),
            "named",
            &name,
            "1 to 64 bytes",
        );
        if let OnFailure::LocalShare(times) = self.on_failure {
            let allowed = "LocalShare of a number above 0";
            error.check(times > 0.0, "on_failure", &self.on_failure, allowed);
        }
        let shared = &self.shared;
        let place = shared.state.lock().join(&self.policy, quotas, error)?;
        Ok(Arc::new(PolicyOfFleet {
            shared: Arc::clone(shared),
            index: place.index,
            serial: place.serial,
            name: Arc::clone(&self.policy),
            quotas: quotas.len(),
            only_rule: place.only_rule.filter(|_| shared.mode == Mode::Enforce),
            on_failure: self.on_failure,
            _alive: place.alive,
            _handle: Arc::clone(&self.handle),
        }))
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("Fleet")
            .field("policy", &self.policy)
            .field("on_failure", &self.on_failure)
            .field("nodes", &state.machine.nodes())
            .field("state", &state.machine.state())
            .finish_non_exhaustive()
    }
}
