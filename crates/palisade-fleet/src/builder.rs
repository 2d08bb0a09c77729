//! The options of a fleet.

use crate::{
    Fleet, QuotaStore, RedisStore,
    digest::{self, Secret},
    driver::Driver,
    machine::{MAX_NODES, Machine},
    shared::{Shared, State},
};
use palisade_core::{ConfigError, GaugeSource, Mode, Recorder};
use palisade_guard::Clock;
use parking_lot::Mutex;
use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64},
    },
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
};

/// Builds a [`Fleet`]. Values are checked by [`start`](Self::start), which names every fault at
/// once.
///
/// ```
/// use palisade_fleet::{Fleet, Mode};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), palisade_fleet::ConfigError> {
/// let fleet = Fleet::redis("redis://palisade:password@10.0.0.5")?
///     .nodes(8)
///     .secret("of 16 bytes at least, the same on all nodes")
///     .mode(Mode::Shadow)
///     .start()?;
/// # let _ = fleet;
/// # Ok(())
/// # }
/// ```
#[must_use = "a fleet must be started"]
pub struct FleetBuilder<S = RedisStore> {
    store: S,
    name: String,
    nodes: Option<Nodes>,
    secret: Option<Vec<u8>>,
    mode: Mode,
    recorder: Recorder,
}

/// The number of nodes.
#[derive(Clone, Copy, Debug)]
enum Nodes {
    Set(u32),
    Counted,
}

/// The fewest bytes of a secret.
const MIN_SECRET: usize = 16;
/// The most accounts that a node knows at once.
const MAX_ENTRIES: usize = 1 << 16;

impl Fleet {
    /// Counts on the Redis at this URL: `redis://user:password@host:port/db`, of which all but the
    /// host may be left out, or `redis+unix:///path?user=user&pass=password&db=db`. The port
    /// defaults to 6379 and the database to 0; another one needs the right `+select`. What is no
    /// letter or digit in a password is written as `%2F` and the like.
    ///
    /// A cluster is `redis+cluster://user:password@host:port,host:port`, with some of its servers.
    /// A master that sentinels watch is `redis+sentinel://user:password@host:port,host:port/name/db`
    /// with the hosts and ports of the sentinels, which default to port 26379, and the name of the
    /// master. User and password are those of the master; the sentinels', if they ask for any, are
    /// `?sentinel_user=user&sentinel_pass=password` at the end. There are 16 servers at most.
    ///
    /// Connects when it is started, and again whenever it must.
    ///
    /// ```
    /// use palisade_fleet::Fleet;
    /// # fn main() -> Result<(), palisade_fleet::ConfigError> {
    /// let over_tcp = Fleet::redis("redis://palisade:password@10.0.0.5:6379")?;
    /// let unix = Fleet::redis("redis+unix:///run/redis.sock?user=palisade&pass=password")?;
    /// let cluster = Fleet::redis("redis+cluster://palisade:password@10.0.0.5,10.0.0.6:6379")?;
    /// let by_sentinels = Fleet::redis("redis+sentinel://:password@10.0.0.7,10.0.0.8/mymaster")?;
    ///
    /// let error = Fleet::redis("http://palisade:password@10.0.0.5").unwrap_err();
    /// let text = "invalid address of a Redis:
    ///   redis is not a URL of a Redis, allowed is \
    ///      redis://[user:password@]host[:port][/db], redis+unix:///path, \
    ///      redis+cluster://[user:password@]host[:port],host[:port], or \
    ///      redis+sentinel://[user:password@]host[:port],host[:port]/master[/db]; \
    ///      and for rediss:// Fleet::redis_over_tls, with the feature rustls";
    /// assert_eq!(error.to_string(), text);
    /// # let _ = (over_tcp, unix, cluster, by_sentinels);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If the URL is invalid, or asks for TLS. The error has no password.
    pub fn redis(url: impl AsRef<str>) -> Result<FleetBuilder, ConfigError> {
        RedisStore::new(url.as_ref()).map(Self::with_store)
    }

    /// Counts on the Redis at this URL by TLS: as [`redis`](Self::redis), with `rediss://`,
    /// `rediss+cluster://` or `rediss+sentinel://`. The certificate must be one that `config`
    /// accepts, for the host in the URL; and for the host by which the other servers of a cluster,
    /// or the sentinels, name it.
    ///
    /// ```
    /// use palisade_fleet::{ConfigError, Fleet, FleetBuilder};
    /// use std::sync::Arc;
    /// use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    ///
    /// /// `roots` has the certificate of your own authority, or those of `webpki-roots`.
    /// fn fleet(roots: RootCertStore) -> Result<FleetBuilder, ConfigError> {
    ///     let config = ClientConfig::builder()
    ///         .with_root_certificates(roots)
    ///         .with_no_client_auth();
    ///     Fleet::redis_over_tls("rediss://palisade:password@redis.internal", Arc::new(config))
    /// }
    /// # assert!(fleet(RootCertStore::empty()).is_ok());
    /// ```
    ///
    /// # Errors
    ///
    /// If the URL is invalid. The error has no password.
    #[cfg(feature = "rustls")]
    pub fn redis_over_tls(
        url: impl AsRef<str>,
        config: std::sync::Arc<tokio_rustls::rustls::ClientConfig>,
    ) -> Result<FleetBuilder, ConfigError> {
        RedisStore::over_tls(url.as_ref(), config).map(Self::with_store)
    }

    /// Counts in `store`: a [`MemoryStore`](crate::MemoryStore) in tests, or one of your own.
    ///
    /// ```
    /// use palisade_fleet::{Fleet, MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), palisade_fleet::ConfigError> {
    /// let store = MemoryStore::new();
    /// let fleet = Fleet::with_store(store).nodes(1).secret("a secret of the tests").start()?;
    /// # let _ = fleet;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_store<S: QuotaStore>(store: S) -> FleetBuilder<S> {
        FleetBuilder {
            store,
            name: "default".to_owned(),
            nodes: None,
            secret: None,
            mode: Mode::Enforce,
            recorder: Recorder::default(),
        }
    }
}

impl<S: QuotaStore> FleetBuilder<S> {
    /// Sets the number of nodes that serve, 1 to 1,024. Either this or
    /// [`count_nodes`](Self::count_nodes) is required.
    ///
    /// It decides how much of a burst a node admits before it has asked, and which share of a limit
    /// it admits alone. The rate in the long run does not depend on it. If the number changes, set
    /// the largest one.
    ///
    /// ```
    /// use palisade_fleet::{Fleet, MemoryStore};
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// for (nodes, expected) in [(1, 100), (2, 100), (8, 25), (40, 5)] {
    ///     let fleet = Fleet::with_store(MemoryStore::new()).nodes(nodes).secret(secret).start()?;
    ///     fleet.shutdown().await; // As if there was no store: twice the limit by all nodes.
    ///     let layer = RateLimitLayer::new(Quota::per_minute(100).fleet(&fleet))?;
    ///     let mut served = 0;
    ///     for _ in 0..200 {
    ///         served += u32::from(status(&layer, request_from([192, 0, 2, 1])).await == 200);
    ///     }
    ///     assert_eq!(served, expected);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.nodes = Some(Nodes::Set(nodes));
        self
    }

    /// Counts the nodes: each is heard of in the store once a second, and counts for three seconds.
    /// A node that knows of no other one yet counts as the only one. On Redis this needs the rights
    /// `+zadd +zremrangebyscore +zcard +pexpire`, too.
    pub fn count_nodes(mut self) -> Self {
        self.nodes = Some(Nodes::Counted);
        self
    }

    /// Sets the secret that all nodes have, 16 bytes at least. Required: it has no default.
    ///
    /// The store never sees it, and sees digests under it in place of addresses and names. Nodes
    /// with different secrets do not count together. A new secret gives each client one burst.
    ///
    /// ```
    /// # use palisade_testkit::example::*;
    /// use palisade_fleet::{Fleet, MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let file = "/run/secrets/fleet"; // `openssl rand -hex 32`
    /// # let file = std::env::temp_dir().join(format!("palisade-secret-{}", std::process::id()));
    /// # std::fs::write(&file, "60b1d47f41c3d2e8a95b")?;
    /// let secret = std::fs::read(&file)?;
    /// let fleet = Fleet::with_store(MemoryStore::new()).nodes(8).secret(secret);
    /// assert!(format!("{fleet:?}").contains(r#"secret: Some("..")"#));
    /// # std::fs::remove_file(file)?;
    /// fleet.start()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        self.secret = Some(secret.as_ref().to_vec());
        self
    }

    /// Sets the name of the fleet, which its keys in the store begin with: 1 to 64 letters, digits,
    /// `-`, `_` and `.`. Fleets with different names share a store without sharing an account.
    /// Defaults to `"default"`.
    ///
    /// ```
    /// use palisade_fleet::{Fleet, MemoryStore};
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// let redis = MemoryStore::new();
    /// for name in ["production", "staging"] {
    ///     // One request is admitted at once, and reported by the shutdown.
    ///     let node = || Fleet::with_store(redis.clone()).nodes(2).secret(secret).name(name);
    ///     let (first, second) = (node().start()?, node().start()?);
    ///     let layer = |fleet: &Fleet| RateLimitLayer::new(Quota::per_hour(2).fleet(fleet));
    ///     let (on_first, on_second) = (layer(&first)?, layer(&second)?);
    ///     assert_eq!(status(&on_first, request_from([192, 0, 2, 1])).await, 200);
    ///     first.shutdown().await;
    ///     assert_eq!(status(&on_second, request_from([192, 0, 2, 1])).await, 200);
    ///     tokio::time::sleep(Duration::from_millis(25)).await;
    ///     assert_eq!(status(&on_second, request_from([192, 0, 2, 1])).await, 429);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets whether what the other nodes say is enforced. In [`Mode::Shadow`] it is asked for and
    /// counted, no request waits, and each node enforces its own limit. [`Mode::Off`] is not
    /// allowed: leave `.fleet(..)` out. Defaults to [`Mode::Enforce`].
    ///
    /// ```
    /// use palisade_core::{Gauge, Guard};
    /// use palisade_fleet::{Fleet, MemoryStore, Mode};
    /// use palisade_metrics::Snapshot;
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// let (redis, metrics) = (MemoryStore::new(), Snapshot::new());
    /// for _ in 0..2 {
    ///     let node = Fleet::with_store(redis.clone()).nodes(2).secret(secret);
    ///     let node = node.mode(Mode::Shadow).metrics(metrics.clone()).start()?;
    ///     let layer = RateLimitLayer::new(Quota::per_hour(10).fleet(&node))?;
    ///     for _ in 0..10 {
    ///         assert_eq!(status(&layer, request_from([192, 0, 2, 1])).await, 200);
    ///         tokio::time::sleep(Duration::from_millis(25)).await;
    ///     }
    /// }
    /// // All but one of the second node.
    /// assert_eq!(metrics.gauge(Guard::RateLimit, Gauge::FleetWouldRefuse), Some(9));
    /// # Ok(())
    /// # }
    /// ```
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the sink for the gauges, and for
    /// [`Event::FleetChanged`](palisade_core::Event::FleetChanged). Refusals are recorded by the
    /// layer, to its own metrics. Defaults to none.
    ///
    /// ```
    /// use palisade_core::{Event, Metrics};
    /// use palisade_fleet::{Answers, Batch, Fleet, QuotaStore, StoreError};
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// use std::sync::{Arc, Mutex};
    /// # use palisade_testkit::example::*;
    ///
    /// /// Tells an operator.
    /// #[derive(Clone, Default)]
    /// struct Pager(Arc<Mutex<Vec<String>>>);
    /// impl Metrics for Pager {
    ///     fn record(&self, event: &Event<'_>) {
    ///         if let Event::FleetChanged { is_alone: true, cause: Some(cause), .. } = event {
    ///             self.0.lock().unwrap().push(cause.to_string());
    ///         }
    ///     }
    /// }
    ///
    /// struct NotThere;
    /// impl QuotaStore for NotThere {
    ///     async fn call(&self, _: Batch) -> Result<Answers, StoreError> {
    ///         Err(StoreError::unsent("no route to it"))
    ///     }
    /// }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// let pager = Pager::default();
    /// let fleet = Fleet::with_store(NotThere).nodes(8).secret(secret).metrics(pager.clone());
    /// let layer = RateLimitLayer::new(Quota::per_minute(100).fleet(&fleet.start()?))?;
    /// assert_eq!(status(&layer, request_from([192, 0, 2, 1])).await, 200);
    /// tokio::time::sleep(Duration::from_millis(100)).await; // Three calls, and each has failed.
    /// assert_eq!(*pager.0.lock().unwrap(), ["the store cannot be reached: no route to it"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn metrics(mut self, metrics: impl Into<Recorder>) -> Self {
        self.recorder = metrics.into();
        self
    }

    /// Starts the task that asks the store, on the current runtime. The store need not be there
    /// yet. If the runtime ends, each policy does what it is told to do on
    /// [failure](Fleet::on_failure).
    ///
    /// Takes 4 MiB for 65,536 accounts that are not settled with the store.
    ///
    /// ```
    /// use palisade_fleet::{Fleet, MemoryStore, Mode};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let fleet = Fleet::with_store(MemoryStore::new()).secret("short").mode(Mode::Off);
    /// let text = "the fleet cannot be started:
    ///   nodes is not set, allowed is 1 to 1024, or `count_nodes`
    ///   secret is 5 bytes, allowed is 16 bytes at least, the same on all nodes
    ///   mode is Off, allowed is Enforce or Shadow: without a fleet there is no `.fleet(..)`";
    /// assert_eq!(fleet.start().unwrap_err().to_string(), text);
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If an option is invalid, or if there is no runtime. The error names every fault.
    pub fn start(self) -> Result<Fleet, ConfigError> {
        let mut error = ConfigError::new("the fleet cannot be started");
        match self.nodes {
            Some(Nodes::Set(nodes)) => {
                let allowed = "1 to 1024";
                error.check((1..=MAX_NODES).contains(&nodes), "nodes", &nodes, allowed);
            }
            Some(Nodes::Counted) => {}
            None => error.push("nodes", "not set", "1 to 1024, or `count_nodes`"),
        }
        let allowed = "16 bytes at least, the same on all nodes";
        match self.secret.as_ref().map(Vec::len) {
            None => error.push("secret", "not set", allowed),
            Some(length) if length < MIN_SECRET => {
                error.push("secret", format!("{length} bytes"), allowed);
            }
            Some(_) => {}
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        error.check(
            (1..=64).contains(&self.name.len()) && self.name.bytes().all(is_plain),
            "name",
            &self.name,
            "1 to 64 letters, digits, -, _ and .",
        );
        error.check(
            self.mode != Mode::Off,
            "mode",
            &self.mode,
            "Enforce or Shadow: without a fleet there is no `.fleet(..)`",
        );
        let runtime = Handle::try_current();
        if runtime.is_err() {
            error.push("start", "called outside of a runtime", "on a tokio runtime");
        }
        error.into_result()?;
        let (Ok(runtime), Some(nodes), Some(secret)) = (runtime, self.nodes, self.secret) else {
            unreachable!("checked above");
        };
        let (set, is_counted) = match nodes {
            Nodes::Set(nodes) => (nodes, false),
            Nodes::Counted => (1, true),
        };
        let mut machine = Machine::new(set, MAX_ENTRIES, digest::seed());
        machine.divide(self.store.shards(), digest::seed());
        if is_counted {
            machine.count_nodes();
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(machine)),
            clock: Clock::new(),
            changed: Notify::new(),
            secret: Secret::new(&secret),
            mode: self.mode,
            recorder: self.recorder,
            round_trip: AtomicU64::new(0),
            skew: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            ended: watch::Sender::new(false),
        });
        let gauges = Arc::downgrade(&shared);
        shared.recorder.register(gauges as Weak<dyn GaugeSource>);
        let driver = Driver {
            shared: Arc::clone(&shared),
            store: Arc::new(self.store),
            name: Arc::from(self.name),
            node: digest::seed(),
        };
        runtime.spawn(driver.run());
        Ok(Fleet::new(shared))
    }
}

impl<S> fmt::Debug for FleetBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetBuilder")
            .field("name", &self.name)
            .field("nodes", &self.nodes)
            .field("secret", &self.secret.as_ref().map(|_| ".."))
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
