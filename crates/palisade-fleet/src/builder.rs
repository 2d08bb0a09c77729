//! The options of a fleet.

use crate::{
    Fleet, QuotaStore, RedisStore,
    digest::{self, Secret},
    driver::Driver,
    fleet::{Shared, State},
    machine::{MAX_NODES, Machine},
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

/// The options of a [`Fleet`].
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
    /// Counts on the Redis at this URL: `redis://host:port/db`, with `user:password@` in front of
    /// the host if it has a password, or `redis+unix:///path`.
    ///
    /// # Errors
    ///
    /// If the URL is invalid. The error has no password.
    pub fn redis(url: impl AsRef<str>) -> Result<FleetBuilder, ConfigError> {
        RedisStore::new(url.as_ref()).map(Self::with_store)
    }

    /// Counts in `store`.
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

    /// Sets the secret that all nodes have, 16 bytes at least. The store never sees it, and without
    /// it nobody can tell of whom its keys are. Required.
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        self.secret = Some(secret.as_ref().to_vec());
        self
    }

    /// Sets the name of the fleet, which its keys in the store begin with: letters, digits, `-`,
    /// `_` and `.`. Defaults to `"default"`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets whether what the other nodes say is enforced. In [`Mode::Shadow`] it is asked for and
    /// counted, and each node enforces its own limit. [`Mode::Off`] is not allowed: leave
    /// `.fleet(..)` out. Defaults to [`Mode::Enforce`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the sink for the gauges, and for
    /// [`Event::FleetChanged`](palisade_core::Event::FleetChanged). Defaults to none.
    pub fn metrics(mut self, metrics: impl Into<Recorder>) -> Self {
        self.recorder = metrics.into();
        self
    }

    /// Starts the task that asks the store, on the current runtime. The store need not be there
    /// yet.
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
            skew: AtomicU64::new(u64::MAX),
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
