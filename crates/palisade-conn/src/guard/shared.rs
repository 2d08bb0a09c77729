//! The state that all connections of one guard share. It holds counters and handles, no rules.

use super::{
    limits::{Limits, Shares},
    recent::{Mark, Marks, RecentlyClosed},
};
#[cfg(target_os = "linux")]
use crate::sys::accept_queue;
use crate::{
    connection::{ConnHandle, memory_gate::MemoryGate, registry::Registry, totals::ConnTotals},
    eviction::queue::EvictionQueue,
    sweep::{
        handle::Sweeper, memory_growth::MemoryGrowth, scaled_timeouts, untracked::UntrackedTimer,
    },
};
use palisade_client_ip::Trust;
use palisade_core::{Gauge, GaugeSource, Guard, Memory, Mode, Pressure, Recorder};
use palisade_guard::{Clock, Table};
use parking_lot::Mutex;
use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// The number of clients in the table of accept rates, which takes 512 KiB.
const ACCEPT_RATE_CLIENTS: usize = 1 << 16;

/// The part of the memory in use from which each new connection evicts another one.
const EVICT_LEVEL: f32 = 0.90;
/// The part of the memory in use from which new connections have a [`SHORT_RECEIVE_BUFFER`].
const SHORT_LEVEL: f32 = 0.80;
/// The receive buffer of a new connection while memory is short.
const SHORT_RECEIVE_BUFFER: u32 = 64 * 1024;
/// This many connections are never evicted for memory.
const MIN_CONNECTIONS: usize = 64;

/// The state of a guard.
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    /// The peers that begin each connection with a header of the PROXY protocol.
    pub(crate) header_peers: Option<Trust>,
    pub(crate) totals: Arc<ConnTotals>,
    pub(crate) recorder: Recorder,
    /// The bytes in use when the guard was built.
    pub(crate) base: u64,
    /// The pressure that the user supplies.
    pub(crate) external_pressure: Pressure,
    pub(crate) registry: Registry,
    pub(crate) sweeper: Sweeper,
    pub(crate) memory_growth: MemoryGrowth,
    /// Whether new connections start as tracked, because a layer of request tracking was created.
    pub(crate) is_tracked: AtomicBool,
    /// Whether request tracking has seen a request that carries its connection.
    pub(crate) is_tracking_placed: AtomicBool,
    pub(crate) untracked: UntrackedTimer,
    pub(crate) accept_errors: AcceptErrors,
    /// Connections that may be evicted.
    pub(crate) candidates: EvictionQueue,
    /// Whether more than half of the connections were newcomers in the latest sweep.
    pub(crate) many_newcomers: AtomicBool,
    pub(crate) recently_closed: RecentlyClosed,
    pub(crate) marks: Marks,
    /// The number of open connections.
    pub(crate) open: AtomicUsize,
    /// The number of open connections that have been asked to close.
    pub(crate) close_pending: AtomicUsize,
    /// Connections admitted since the start.
    pub(crate) opened: AtomicU64,
    /// Connections refused since the start.
    pub(crate) refused: AtomicU64,
    pub(crate) clock: Clock,
    /// The accept rates of clients and networks, if they are limited.
    pub(crate) accept_rates: Option<Table>,
    /// Counts the examinations of a few connections, so that each examines different ones.
    pub(crate) turn: AtomicUsize,
    /// The listeners on internet addresses.
    pub(crate) listening: Mutex<Vec<Listening>>,
}

/// An open listener on an internet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    /// The number of connections that may wait to be accepted, if known.
    pub(crate) backlog: Option<u32>,
}

/// The number of accept errors, by their cause.
#[derive(Debug, Default)]
pub(crate) struct AcceptErrors {
    /// One connection ended before it was accepted.
    pub(crate) of_one_connection: AtomicU64,
    /// No files or memory were left.
    pub(crate) exhausted: AtomicU64,
    pub(crate) other: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        limits: Limits,
        recorder: Recorder,
        external_pressure: Pressure,
        memory: MemoryGate,
        (trust, header_peers): (Option<Trust>, Option<Trust>),
    ) -> Self {
        let is_enforced = limits.mode == Mode::Enforce;
        let base = memory.memory.as_ref().and_then(Memory::used).unwrap_or(0);
        let mut totals = ConnTotals::default();
        totals.mode = limits.mode;
        totals.recorder = recorder.clone();
        totals.max_requests = if is_enforced {
            limits.max_requests
        } else {
            None
        };
        totals.max_in_flight = Some(limits.max_in_flight);
        totals.max_upgraded = Some(limits.max_upgraded);
        totals.reserved = limits.reserved.clone();
        totals.memory = memory;
        totals.trust = trust;
        totals.peers_are_clients = limits.per_client.is_some() && limits.mode != Mode::Off;
        let limits_rate = limits.accept_rate.is_some() || limits.accept_rate_per_network.is_some();
        let none = Shares {
            client: 0,
            network: 0,
        };
        Self {
            totals: Arc::new(totals),
            accept_rates: limits_rate.then(|| Table::new(ACCEPT_RATE_CLIENTS)),
            registry: Registry::new(limits.network(), limits.shares(0).unwrap_or(none)),
            limits,
            header_peers,
            recorder,
            base,
            external_pressure,
            sweeper: Sweeper::default(),
            memory_growth: MemoryGrowth::default(),
            is_tracked: AtomicBool::new(false),
            is_tracking_placed: AtomicBool::new(false),
            untracked: UntrackedTimer::default(),
            accept_errors: AcceptErrors::default(),
            candidates: EvictionQueue::default(),
            many_newcomers: AtomicBool::new(false),
            recently_closed: RecentlyClosed::default(),
            marks: Marks::default(),
            open: AtomicUsize::new(0),
            close_pending: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            clock: Clock::new(),
            turn: AtomicUsize::new(0),
            listening: Mutex::default(),
        }
    }

    /// Creates a connection; it is not admitted yet.
    pub(crate) fn connection(
        &self,
        peer: Option<SocketAddr>,
        local: Option<SocketAddr>,
    ) -> ConnHandle {
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let totals = match self.limits.mode {
            Mode::Off => None,
            Mode::Enforce | Mode::Shadow => Some(self.totals.clone()),
        };
        let prefix = self.limits.prefix;
        let conn = ConnHandle::new(peer.unwrap_or(unknown), local, prefix, totals);
        if self.is_tracked.load(Relaxed) {
            conn.set_tracked();
        }
        conn
    }

    /// Returns whether the connections of `peer` begin with a header of the PROXY protocol.
    pub(crate) fn begins_with_header(&self, peer: Option<SocketAddr>) -> bool {
        let (Some(peers), Some(peer)) = (&self.header_peers, peer) else {
            return false;
        };
        peers.is_proxy(peer.ip())
    }

    /// Returns the bytes that the tables of this guard take at most.
    pub(crate) fn table_bytes(&self) -> u64 {
        let accept_rates = match self.accept_rates {
            Some(_) => ACCEPT_RATE_CLIENTS * size_of::<u64>(),
            None => 0,
        };
        (accept_rates + self.totals.table_bytes() + RecentlyClosed::MAX_BYTES) as u64
    }

    /// Returns the pressure, 0 to 1.
    pub(crate) fn pressure(&self) -> f32 {
        // Connections that have been asked to close will soon make room.
        let open = self.open.load(Relaxed);
        let staying = open.saturating_sub(self.close_pending.load(Relaxed));
        scaled_timeouts::connection_pressure(&self.limits, staying)
            .max(self.external_pressure.get())
            .max(self.totals.memory.pressure())
            .max(self.totals.memory.budget_fill())
    }

    /// Returns the receive buffer that a new socket gets, if that is not the one that it has from
    /// its listener.
    pub(crate) fn receive_buffer(&self, has_buffer: bool) -> Option<u32> {
        let bytes = self.limits.receive_buffer?;
        if self.totals.memory.pressure() >= SHORT_LEVEL {
            Some(bytes.min(SHORT_RECEIVE_BUFFER))
        } else {
            (!has_buffer).then_some(bytes)
        }
    }

    /// Returns whether memory is so short that each new connection evicts another one.
    pub(crate) fn evicts_for_memory(&self) -> bool {
        self.totals.memory.pressure() >= EVICT_LEVEL
    }

    /// Returns whether a sweep is urgent, because memory that is nearly used up has grown since the
    /// latest one. `None` while memory is not short.
    pub(crate) fn needs_sweep_for_memory(&self) -> Option<bool> {
        let memory = self.totals.memory.memory.as_ref()?;
        let is_short = memory.pressure().get() >= SHORT_LEVEL;
        is_short.then(|| self.memory_growth.is_new(memory))
    }

    /// Returns the number of connections above which a new one evicts another one.
    pub(crate) fn evicts_above(&self) -> usize {
        let soft = self.limits.soft();
        if self.evicts_for_memory() {
            soft.min(MIN_CONNECTIONS)
        } else {
            soft
        }
    }

    /// Returns the milliseconds since the guard was created.
    pub(crate) fn now(&self) -> u64 {
        self.clock.now() / 1000
    }

    /// Returns the counters as of `now`.
    pub(crate) fn mark(&self, now: u64) -> Mark {
        Mark {
            at: now,
            opened: self.opened.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }

    /// Returns whether places are reserved for the peer of `conn`.
    pub(crate) fn is_reserved_for(&self, conn: &ConnHandle) -> bool {
        self.limits.is_reserved_for(conn.peer().ip())
    }

    #[cfg(target_os = "linux")]
    fn sample_accept_queues(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        let listening = self.listening.lock().clone();
        let addresses: Vec<_> = listening.iter().map(|one| one.address).collect();
        if let Some(waiting) = accept_queue::waiting_connections(&addresses) {
            visit(Gauge::AcceptQueue, waiting);
        }
        let backlogs = listening.iter().filter_map(|one| one.backlog);
        if let Some(sum) = backlogs.map(u64::from).reduce(u64::saturating_add) {
            visit(Gauge::AcceptQueueLimit, sum);
        }
        // These count for the whole network namespace. Without a listener they say nothing about
        // this guard.
        if !listening.is_empty()
            && let Some(lost) = accept_queue::lost_connections()
        {
            visit(Gauge::ListenOverflows, lost.overflows);
            visit(Gauge::ListenDrops, lost.drops);
        }
    }
}

impl GaugeSource for Shared {
    fn guard(&self) -> Guard {
        Guard::Connection
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        visit(Gauge::Connections, self.open.load(Relaxed) as u64);
        visit(Gauge::ConnectionLimit, self.limits.connections as u64);
        visit(Gauge::ConnectionsOpened, self.opened.load(Relaxed));
        visit(Gauge::InFlight, self.totals.in_flight() as u64);
        visit(Gauge::InFlightLimit, self.limits.max_in_flight as u64);
        visit(Gauge::Upgraded, self.totals.upgraded() as u64);
        visit(Gauge::UpgradedLimit, self.limits.max_upgraded as u64);
        visit(Gauge::PressurePercent, (self.pressure() * 100.0) as u64);
        self.totals.memory.shedding.sample(visit);
        let exhausted = self.accept_errors.exhausted.load(Relaxed);
        visit(Gauge::AcceptErrors, exhausted);
        if self.totals.peers_are_clients {
            let percent = self.totals.forwarded_percent();
            visit(Gauge::ForwardedPercent, percent.into());
        }
        let mut networks = |trust: &Option<Trust>, size, age| {
            if let Some(networks) = trust.as_ref().and_then(Trust::proxies) {
                visit(size, networks.len() as u64);
                visit(age, networks.age().as_secs());
            }
        };
        let trust = &self.totals.trust;
        networks(trust, Gauge::TrustedNetworks, Gauge::TrustedNetworksAge);
        networks(
            &self.header_peers,
            Gauge::ProxyProtocolNetworks,
            Gauge::ProxyProtocolNetworksAge,
        );
        if let Some(trust) = trust {
            visit(Gauge::ClientsUnnamed, trust.totals().sum());
        }
        #[cfg(target_os = "linux")]
        self.sample_accept_queues(visit);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.sweeper.stop();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnGuard")
            .field("limits", &self.limits)
            .field("open", &self.open)
            .field("opened", &self.opened)
            .field("accept_errors", &self.accept_errors)
            .finish_non_exhaustive()
    }
}
