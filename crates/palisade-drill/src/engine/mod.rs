//! Runs the machines of one attack over sockets, within the bounds of [`crate::bounds`].

mod connection;

use crate::{
    attacks::{Addresses, Attack, Needs, Plan, Protocol},
    bounds::{MAX_ATTACK_BYTES, MAX_ATTACK_TIME, MAX_CONNECTIONS, MAX_OPENED},
    target::{Source, Target},
    variation::Variation,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet, time::Instant};

/// The longest wait for connections that look at themselves.
const MAX_CENSUS: Duration = Duration::from_millis(300);

/// The attackers of one attack. Dropping this closes all their connections.
#[derive(Debug)]
pub(crate) struct Engine {
    tasks: JoinSet<()>,
    shared: Arc<Shared>,
    census: watch::Sender<()>,
}

/// What all connections of an attack share.
#[derive(Debug)]
struct Shared {
    target: Target,
    /// What is spoken on the connections; `None` if the machines see the bare TCP connection of a
    /// target that speaks TLS.
    protocol: Option<Protocol>,
    began: Instant,
    /// When connections begin nothing more.
    ends: Duration,
    receive_buffer: Option<u32>,
    opened: AtomicU64,
    failed: AtomicU64,
    alive: AtomicUsize,
    /// Connections that were found to hold something in the census under way.
    holding: AtomicUsize,
    /// Connections that have looked at themselves in that census.
    counted: AtomicUsize,
    sent: AtomicU64,
    received: AtomicU64,
    served: AtomicU64,
    refused: AtomicU64,
    passed: AtomicUsize,
    /// When every connection ends.
    longest: Duration,
}

/// What the attackers have done and hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Connections that were opened.
    pub(crate) opened: u64,
    /// Connections that could not be opened.
    pub(crate) failed: u64,
    /// Connections that are open, as far as the attackers see.
    pub(crate) alive: usize,
    /// Those of them that held something in the last census.
    pub(crate) holding: usize,
    /// Bytes that the machines sent: with TLS before it encrypts them, without its handshakes.
    pub(crate) sent: u64,
    /// Bytes that they received, likewise.
    pub(crate) received: u64,
    /// Requests that were served, and that were not, as far as the machines tell.
    pub(crate) served: u64,
    pub(crate) refused: u64,
    /// Machines that got what the server should refuse.
    pub(crate) passed: usize,
}

/// Returns when the attacker `index` of `connections` begins: at some time within its turn.
fn begins(seed: u64, index: usize, connections: usize, ramp_up: Duration) -> Duration {
    let turn = index as f64 + Variation::new(seed, index).part();
    ramp_up.mul_f64(turn / connections as f64)
}

// === Engine ===

impl Engine {
    /// Starts `connections` machines of `attack` within `ramp_up`, one after the other. `number` is
    /// that of the attack in the drill, which decides its addresses.
    pub(crate) fn start(
        target: &Target,
        attack: &Attack,
        plan: &Plan,
        number: u8,
        connections: usize,
        ramp_up: Duration,
    ) -> Self {
        let connections = connections.min(MAX_CONNECTIONS);
        let sources = |index: usize| {
            let address = match attack.addresses {
                Addresses::One => 0,
                Addresses::Many(count) => index % count.max(1),
            };
            Source::Attacker {
                attack: number,
                address,
            }
        };
        // The machines of TLS write its bytes themselves.
        let protocol = (attack.needs != Needs::Tls).then_some(attack.protocol);
        Self::run_within(
            attack.longest(),
            target,
            protocol,
            plan.ends,
            attack.receive_buffer,
            (0..connections).map(|index| {
                let starts = begins(plan.seed, index, connections, ramp_up);
                (sources(index), starts, (attack.make)(plan, index))
            }),
        )
    }

    /// Starts machines of HTTP/1, each at its address and its time.
    pub(crate) fn run(
        target: &Target,
        ends: Duration,
        receive_buffer: Option<u32>,
        machines: impl Iterator<Item = (Source, Duration, Box<dyn crate::machine::Machine>)>,
    ) -> Self {
        let protocol = Some(Protocol::Http1);
        Self::run_within(
            MAX_ATTACK_TIME,
            target,
            protocol,
            ends,
            receive_buffer,
            machines,
        )
    }

    /// Starts machines. Their connections end after `longest`.
    fn run_within(
        longest: Duration,
        target: &Target,
        protocol: Option<Protocol>,
        ends: Duration,
        receive_buffer: Option<u32>,
        machines: impl Iterator<Item = (Source, Duration, Box<dyn crate::machine::Machine>)>,
    ) -> Self {
        let (census, counted) = watch::channel(());
        let shared = Arc::new(Shared {
            target: target.clone(),
            protocol,
            began: Instant::now(),
            ends: ends.min(longest),
            receive_buffer,
            opened: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            alive: AtomicUsize::new(0),
            counted: AtomicUsize::new(0),
            holding: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            served: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            passed: AtomicUsize::new(0),
            longest,
        });
        let mut tasks = JoinSet::new();
        for (source, starts, machine) in machines.take(MAX_CONNECTIONS) {
            let connection = connection::Connection::new(shared.clone(), source, machine);
            tasks.spawn(connection.run(starts, counted.clone()));
        }
        Self {
            tasks,
            shared,
            census,
        }
    }

    /// Returns what the attackers have done and hold. Connections that do not read are looked at
    /// first, because the server may have closed them unseen.
    pub(crate) async fn census(&self) -> Counts {
        let shared = &self.shared;
        shared.counted.store(0, Relaxed);
        shared.holding.store(0, Relaxed);
        self.census.send_replace(());
        // On a busy machine it takes a while until every task was polled.
        let ends = Instant::now() + MAX_CENSUS;
        while shared.counted.load(Relaxed) < shared.alive.load(Relaxed) && Instant::now() < ends {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.counts()
    }

    /// Returns what the attackers have done and hold.
    pub(crate) fn counts(&self) -> Counts {
        let shared = &self.shared;
        Counts {
            opened: shared.opened.load(Relaxed),
            failed: shared.failed.load(Relaxed),
            alive: shared.alive.load(Relaxed),
            holding: shared.holding.load(Relaxed),
            sent: shared.sent.load(Relaxed),
            received: shared.received.load(Relaxed),
            served: shared.served.load(Relaxed),
            refused: shared.refused.load(Relaxed),
            passed: shared.passed.load(Relaxed),
        }
    }

    /// Closes all connections.
    pub(crate) async fn stop(mut self) -> Counts {
        let counts = self.counts();
        self.tasks.shutdown().await;
        counts
    }
}

// === Shared ===

impl Shared {
    /// Returns the time since the attack began.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Returns whether a connection may be opened now.
    fn may_open(&self) -> bool {
        let tried = self.opened.load(Relaxed) + self.failed.load(Relaxed);
        self.now() < self.ends && tried < MAX_OPENED && self.may_send()
    }

    /// Returns whether the bound on bytes is not reached.
    fn may_send(&self) -> bool {
        self.sent.load(Relaxed) + self.received.load(Relaxed) < MAX_ATTACK_BYTES
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(feature = "rustls")]
mod tls_tests;
