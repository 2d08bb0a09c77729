//! What an operator sees in the middle of an attack.

use super::{limits::CapFrom, shared::Shared};
use crate::connection::{registry::SHARDS, stats::ConnStats};
use palisade_core::{ClientKey, Phase};
use std::{
    cmp::Reverse, collections::HashMap, ops::AddAssign, sync::atomic::Ordering::Relaxed,
    time::Duration,
};

/// So many clients, and so many networks, are named.
const HOLDERS: usize = 10;
/// What connections do in a second: of each its mean since it was opened, of all of them the sum.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ConnRates {
    /// Request heads.
    pub requests: f64,
    /// Bytes taken from the clients.
    pub read: f64,
    /// Bytes that the kernel took for them.
    pub written: f64,
}

/// What one client, or one network, holds.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub struct ConnHolder {
    /// Who that is: the first address of the block. For logs, never for labels.
    pub who: ClientKey,
    /// How many connections.
    pub connections: usize,
    /// Requests on these since they were opened.
    pub requests: u64,
    /// Bytes taken from the client on these since they were opened.
    pub read: u64,
    /// Bytes that the kernel took for the client on these since they were opened.
    pub written: u64,
    /// The same in a second.
    pub per_second: ConnRates,
}

/// Everybody who holds something, by key.
#[derive(Default)]
struct Holders(HashMap<ClientKey, ConnHolder>);

/// Who is connected. Bounded: numbers, and the ten clients and ten networks with the most
/// connections.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct ConnSnapshot {
    /// Connections that are open, those among them that are told to go included.
    pub open: usize,
    /// Those that are told to go and have not gone yet.
    pub close_pending: usize,
    /// The limit on [`Self::open`].
    pub limit: usize,
    /// What that was worked out from.
    pub limit_from: CapFrom,
    /// How hard it is going, from 0 to 1: see [under pressure](crate#under-pressure).
    pub pressure: f32,
    /// Connections let in since the start.
    pub opened: u64,
    /// The same per second, over the last ten seconds.
    pub opened_per_second: f64,
    /// Connections not let in since the start.
    pub refused: u64,
    /// The same per second, over the last ten seconds.
    pub refused_per_second: f64,
    /// What those that are open do.
    pub per_second: ConnRates,
    /// How many are at what. Phases without any are left out.
    pub phases: Vec<(Phase, usize)>,
    /// The ten clients with the most connections, the most first.
    pub clients: Vec<ConnHolder>,
    /// The ten clients with the most requests on connections that are open, the most first.
    pub busiest: Vec<ConnHolder>,
    /// The ten networks (the blocks of [`max_per_network`](crate::ConnGuardBuilder::max_per_network))
    /// with the most connections, the most first.
    pub networks: Vec<ConnHolder>,
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
    pub untracked: usize,
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

// === ConnRates ===

impl ConnRates {
    fn of(stats: &ConnStats, age_millis: u64) -> Self {
        // Nobody has done anything for long who has just come.
        let seconds = age_millis.max(1000) as f64 / 1000.0;
        Self {
            requests: f64::from(stats.requests) / seconds,
            read: stats.read as f64 / seconds,
            written: stats.written as f64 / seconds,
        }
    }
}

impl AddAssign for ConnRates {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.read += other.read;
        self.written += other.written;
    }
}

// === Holders ===

impl Holders {
    fn add(&mut self, who: ClientKey, stats: &ConnStats, rates: ConnRates) {
        let nothing = ConnHolder {
            who,
            connections: 0,
            requests: 0,
            read: 0,
            written: 0,
            per_second: ConnRates::default(),
        };
        let holds = self.0.entry(who).or_insert(nothing);
        holds.connections += 1;
        holds.requests += u64::from(stats.requests);
        holds.read = holds.read.saturating_add(stats.read);
        holds.written = holds.written.saturating_add(stats.written);
        holds.per_second += rates;
    }

    /// Those with the most of something, the most first.
    fn most<T: Ord>(&self, of: impl Fn(&ConnHolder) -> T) -> Vec<ConnHolder> {
        let mut all: Vec<_> = self.0.values().copied().collect();
        all.sort_unstable_by_key(|holds| Reverse(of(holds)));
        all.truncate(HOLDERS);
        all
    }
}

// === ConnSnapshot ===

impl ConnSnapshot {
    pub(crate) fn take(shared: &Shared) -> Self {
        let now = shared.now();
        let mut found = Vec::new();
        (0..SHARDS).for_each(|shard| shared.registry.copy(shard, &mut found));
        let mut phases = [0; Phase::ALL.len()];
        let (mut clients, mut networks) = (Holders::default(), Holders::default());
        let mut untracked = 0;
        let mut per_second = ConnRates::default();
        let mut ages = Vec::with_capacity(found.len());
        for one in &found {
            let stats = one.conn.state().stats();
            let age = now.saturating_sub(one.opened);
            let rates = ConnRates::of(&stats, age);
            phases[stats.phase() as usize] += 1;
            untracked += usize::from(!stats.tracked);
            per_second += rates;
            ages.push(age);
            clients.add(one.conn.client(), &stats, rates);
            networks.add(shared.registry.network_of(&one.conn), &stats, rates);
        }
        ages.sort_unstable();
        let age = |at: usize| Duration::from_millis(ages.get(at).copied().unwrap_or(0));
        let distinct_clients = clients.0.len();
        let mark = shared.mark(now);
        let (opened_per_second, refused_per_second) =
            shared.marks.per_second(mark, shared.limits.tick_millis());
        let phases = Phase::ALL
            .iter()
            .copied()
            .zip(phases)
            .filter(|(_, count)| *count > 0);
        Self {
            open: shared.open.load(Relaxed),
            close_pending: shared.close_pending.load(Relaxed),
            limit: shared.limits.connections,
            limit_from: shared.limits.connections_from,
            pressure: shared.pressure(),
            opened: mark.opened,
            opened_per_second,
            refused: mark.refused,
            refused_per_second,
            per_second,
            phases: phases.collect(),
            clients: clients.most(|holds| (holds.connections, holds.requests)),
            busiest: clients.most(|holds| (holds.requests, holds.connections)),
            networks: networks.most(|holds| (holds.connections, holds.requests)),
            distinct_clients,
            oldest: age(ages.len().saturating_sub(1)),
            median_age: age(ages.len() / 2),
            in_flight: shared.totals.in_flight() as u64,
            upgraded: shared.totals.upgraded(),
            untracked,
            accept_errors: AcceptErrorCounts {
                of_one_connection: shared.accept_errors.of_connection.load(Relaxed),
                exhausted: shared.accept_errors.exhausted.load(Relaxed),
                other: shared.accept_errors.other.load(Relaxed),
            },
        }
    }

    /// How many connections are at `phase`.
    pub fn at(&self, phase: Phase) -> usize {
        self.phases
            .iter()
            .find(|(at, _)| *at == phase)
            .map_or(0, |(_, count)| *count)
    }
}
