//! What an operator sees in the middle of an attack.

use crate::{CapFrom, guard::Shared, judge::phase, registry::SHARDS};
use palisade_core::{ClientKey, ConnInfo, Mode, Phase, Reason, Violation};
use parking_lot::Mutex;
use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};
use tokio::time::Instant;

/// So many endings are remembered.
const KILLS: usize = 1000;
/// So many clients are named.
const CLIENTS: usize = 10;

/// A connection that was ended or not let in, or would have been.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub struct Kill {
    /// When.
    pub at: Instant,
    /// The number of the connection, [`ConnInfo::id`].
    pub conn: u64,
    /// The other end. For logs, never for labels.
    pub peer: SocketAddr,
    /// Why.
    pub reason: Reason,
    /// What it was at.
    pub phase: Phase,
    /// Whether it was done or only told.
    pub mode: Mode,
    /// What is allowed, in [`Reason::unit`].
    pub limit: u64,
    /// What was seen, in [`Reason::unit`].
    pub observed: u64,
    /// Bytes taken from the client.
    pub read: u64,
    /// Bytes that the kernel took for the client.
    pub written: u64,
    /// Request heads.
    pub requests: u32,
}

/// The last [`KILLS`] of them.
#[derive(Debug, Default)]
pub(crate) struct Kills(Mutex<VecDeque<Kill>>);

/// Who is connected. Bounded: numbers, and the ten clients with the most connections.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct ConnSnapshot {
    /// Connections that are open, those among them that are told to go included.
    pub open: usize,
    /// Those that are told to go and have not gone yet.
    pub going: usize,
    /// The limit on [`Self::open`].
    pub limit: usize,
    /// What that was worked out from.
    pub limit_from: CapFrom,
    /// How hard it is going, from 0 to 1: see [under pressure](crate#under-pressure).
    pub pressure: f32,
    /// Connections let in since the start.
    pub opened: u64,
    /// Connections not let in since the start.
    pub refused: u64,
    /// How many are at what. Phases without any are left out.
    pub phases: Vec<(Phase, usize)>,
    /// The ten clients with the most connections, the most first.
    pub clients: Vec<(ClientKey, usize)>,
    /// How many clients there are.
    pub distinct_clients: usize,
    /// The age of the oldest connection.
    pub oldest: Duration,
    /// The age that half of them have not reached.
    pub median_age: Duration,
    /// Requests in flight on all of them, and of connections that are gone while a handler is not.
    pub in_flight: u64,
    /// How many of them count as upgraded.
    pub upgraded: usize,
    /// How many have nobody who tells the guard of their requests.
    pub unaccounted: usize,
    /// Failures to accept.
    pub accept_errors: AcceptErrorCounts,
}

/// How often accepting failed, by what was done about it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptErrorCounts {
    /// The connection was gone before it was here; the next one was accepted at once.
    pub of_one_connection: u64,
    /// No files or memory were left; accepting paused for 10 to 100 ms.
    pub exhausted: u64,
    /// Anything else; the same pause.
    pub other: u64,
}

// === Kill ===

impl Kill {
    pub(crate) fn new(violation: &Violation, mode: Mode, conn: &ConnInfo) -> Self {
        let sample = conn.state().sample();
        Self {
            at: Instant::now(),
            conn: conn.id(),
            peer: conn.peer(),
            reason: violation.reason,
            phase: violation.phase,
            mode,
            limit: violation.limit,
            observed: violation.observed,
            read: sample.read,
            written: sample.written,
            requests: sample.requests,
        }
    }
}

// === Kills ===

impl Kills {
    pub(crate) fn add(&self, kill: Kill) {
        let mut kills = self.0.lock();
        if kills.len() >= KILLS {
            kills.pop_front();
        }
        kills.push_back(kill);
    }

    pub(crate) fn recent(&self) -> Vec<Kill> {
        self.0.lock().iter().copied().collect()
    }
}

// === ConnSnapshot ===

impl ConnSnapshot {
    pub(crate) fn take(shared: &Shared) -> Self {
        let now = shared.now();
        let mut found = Vec::new();
        (0..SHARDS).for_each(|shard| shared.registry.copy(shard, &mut found));
        let mut phases = [0; Phase::ALL.len()];
        let mut by_client = HashMap::new();
        let mut unaccounted = 0;
        let mut ages: Vec<_> = found.iter().map(|one| now.saturating_sub(one.opened)).collect();
        for one in &found {
            let sample = one.conn.state().sample();
            phases[phase(&sample) as usize] += 1;
            *by_client.entry(one.conn.client()).or_insert(0) += 1;
            unaccounted += usize::from(!sample.accounted);
        }
        ages.sort_unstable();
        let age = |at: usize| Duration::from_millis(ages.get(at).copied().unwrap_or(0));
        let distinct_clients = by_client.len();
        let mut clients: Vec<_> = by_client.into_iter().collect();
        clients.sort_unstable_by_key(|(_, connections)| Reverse(*connections));
        clients.truncate(CLIENTS);
        let phases = Phase::ALL.iter().copied().zip(phases).filter(|(_, count)| *count > 0);
        Self {
            open: shared.open.load(Relaxed),
            going: shared.going.load(Relaxed),
            limit: shared.limits.connections,
            limit_from: shared.limits.connections_from,
            pressure: shared.pressure(),
            opened: shared.opened(),
            refused: shared.refusals(),
            phases: phases.collect(),
            clients,
            distinct_clients,
            oldest: age(ages.len().saturating_sub(1)),
            median_age: age(ages.len() / 2),
            in_flight: shared.totals.streams() as u64,
            upgraded: shared.totals.upgraded(),
            unaccounted,
            accept_errors: AcceptErrorCounts {
                of_one_connection: shared.errors.of_one.load(Relaxed),
                exhausted: shared.errors.exhausted.load(Relaxed),
                other: shared.errors.other.load(Relaxed),
            },
        }
    }

    /// How many connections are at `phase`.
    pub fn at(&self, phase: Phase) -> usize {
        self.phases.iter().find(|(at, _)| *at == phase).map_or(0, |(_, count)| *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::{Guard, Prefix};

    #[test]
    fn only_the_latest_thousand_are_remembered() {
        let kills = Kills::default();
        let conn = ConnInfo::new(([192, 0, 2, 1], 1).into(), None, Prefix::default());
        for observed in 0..2500 {
            let (guard, reason) = (Guard::Connection, Reason::Idle);
            let violation = Violation::new(guard, reason, Phase::Idle, 1, observed);
            kills.add(Kill::new(&violation, Mode::Enforce, &conn));
        }
        let recent = kills.recent();
        assert_eq!(recent.len(), KILLS);
        assert_eq!(recent.last().map(|kill| kill.observed), Some(2499));
        assert!(kills.0.lock().capacity() < 2 * KILLS);
    }
}
