//! The state of a guard at one moment, for an operator.

use super::{limits::CapFrom, shared::Shared};
use crate::connection::{registry::SHARDS, stats::ConnStats};
use palisade_core::{ClientKey, Phase};
use std::{
    cmp::Reverse, collections::HashMap, ops::AddAssign, sync::atomic::Ordering::Relaxed,
    time::Duration,
};

/// The number of clients in a list, and of networks.
const MAX_HOLDERS: usize = 10;

/// Activity per second. Of one connection it is the mean since it was opened, of several the sum.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ConnRates {
    /// Request heads.
    pub requests: f64,
    /// Bytes read from the clients.
    pub read: f64,
    /// Bytes that the kernel took for the clients.
    pub written: f64,
}

/// The connections of one client or one network.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub struct ConnHolder {
    /// The client or network, as the first address of its block. For logs, never for labels.
    pub key: ClientKey,
    /// Whether it is, or has, a trusted proxy, whose requests are those of other clients.
    pub is_proxy: bool,
    /// The number of its open connections.
    pub connections: usize,
    /// Requests on these connections since they were opened.
    pub requests: u64,
    /// Bytes read from the client on these connections since they were opened.
    pub read: u64,
    /// Bytes that the kernel took for the client on these connections since they were opened.
    pub written: u64,
    /// The same per second.
    pub per_second: ConnRates,
}

/// The requests in flight of one client.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub struct RequestHolder {
    /// The client, as the first address of its block. For logs, never for labels.
    pub key: ClientKey,
    /// Whether trusted proxies have named it.
    pub is_forwarded: bool,
    /// The number of its requests in flight.
    pub in_flight: u64,
}

/// Clients or networks with connections, by key.
#[derive(Default)]
struct Holders(HashMap<ClientKey, ConnHolder>);

/// The state of a guard and its connections at one moment. Its size is bounded: it has counts, and
/// lists of at most ten clients or networks.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct ConnSnapshot {
    /// Open connections, including those of [`Self::close_pending`].
    pub open: usize,
    /// Connections that have been asked to close and are still open.
    pub close_pending: usize,
    /// The limit on [`Self::open`].
    pub limit: usize,
    /// What the limit follows from.
    pub limit_from: CapFrom,
    /// The pressure, 0 to 1: see [under pressure](crate#under-pressure).
    pub pressure: f32,
    /// Connections admitted since the start.
    pub opened: u64,
    /// Connections admitted per second, over the last ten seconds.
    pub opened_per_second: f64,
    /// Connections refused since the start.
    pub refused: u64,
    /// Connections refused per second, over the last ten seconds.
    pub refused_per_second: f64,
    /// The activity of all open connections.
    pub per_second: ConnRates,
    /// The number of connections in each phase. Phases without connections are left out.
    pub phases: Vec<(Phase, usize)>,
    /// The ten clients with the most connections, the most first.
    pub clients: Vec<ConnHolder>,
    /// The ten clients with the most requests on open connections, the most first.
    pub busiest: Vec<ConnHolder>,
    /// The ten networks with the most connections, the most first. A network is a block of
    /// [`max_per_network`](crate::ConnGuardBuilder::max_per_network).
    pub networks: Vec<ConnHolder>,
    /// The ten clients with the most requests in flight, the most first. If a proxy has named a
    /// client, the request is that of the client and not of the proxy.
    pub most_in_flight: Vec<RequestHolder>,
    /// The number of clients with open connections.
    pub distinct_clients: usize,
    /// The age of the oldest connection.
    pub oldest: Duration,
    /// The median age of the connections.
    pub median_age: Duration,
    /// Requests in flight. Includes those of closed connections if their handlers still work.
    pub in_flight: u64,
    /// The number of connections that count as upgraded.
    pub upgraded: usize,
    /// The number of connections without [request tracking](crate#request-tracking).
    pub untracked: usize,
    /// Accept errors since the start.
    pub accept_errors: AcceptErrorCounts,
}

/// The number of accept errors, by the way in which they were handled.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptErrorCounts {
    /// The connection had ended before it was accepted. The next one was accepted at once.
    pub of_one_connection: u64,
    /// No files or memory were left. Accepting paused for 10 to 100 ms.
    pub exhausted: u64,
    /// Any other error. Accepting paused in the same way.
    pub other: u64,
}

// === ConnRates ===

impl ConnRates {
    /// Returns the mean rates of a connection of this age.
    fn mean(stats: &ConnStats, age_millis: u64) -> Self {
        // At least a second, so that a new connection does not show an extreme rate.
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
    fn add(&mut self, key: ClientKey, is_proxy: bool, stats: &ConnStats, rates: ConnRates) {
        let empty = ConnHolder {
            key,
            is_proxy,
            connections: 0,
            requests: 0,
            read: 0,
            written: 0,
            per_second: ConnRates::default(),
        };
        let holder = self.0.entry(key).or_insert(empty);
        holder.is_proxy |= is_proxy;
        holder.connections += 1;
        holder.requests += u64::from(stats.requests);
        holder.read = holder.read.saturating_add(stats.read);
        holder.written = holder.written.saturating_add(stats.written);
        holder.per_second += rates;
    }

    /// Returns the holders with the largest keys, the largest first.
    fn top<T: Ord>(&self, key: impl Fn(&ConnHolder) -> T) -> Vec<ConnHolder> {
        let mut all: Vec<_> = self.0.values().copied().collect();
        all.sort_unstable_by_key(|holder| Reverse(key(holder)));
        all.truncate(MAX_HOLDERS);
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
        let mut direct = HashMap::<ClientKey, u64>::new();
        let mut untracked = 0;
        let mut per_second = ConnRates::default();
        let mut ages = Vec::with_capacity(found.len());
        for one in &found {
            let stats = one.conn.state().stats();
            let age = now.saturating_sub(one.opened);
            let rates = ConnRates::mean(&stats, age);
            phases[stats.phase() as usize] += 1;
            untracked += usize::from(!stats.tracked);
            per_second += rates;
            ages.push(age);
            let is_proxy = one.conn.is_proxy();
            clients.add(one.conn.client(), is_proxy, &stats, rates);
            networks.add(
                shared.registry.network_of(&one.conn),
                is_proxy,
                &stats,
                rates,
            );
            if !is_proxy && stats.in_flight > 0 {
                let own = direct.entry(one.conn.client()).or_insert(0);
                *own += u64::from(stats.in_flight);
            }
        }
        ages.sort_unstable();
        let age_at = |index: usize| Duration::from_millis(ages.get(index).copied().unwrap_or(0));
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
            clients: clients.top(|holder| (holder.connections, holder.requests)),
            busiest: clients.top(|holder| (holder.requests, holder.connections)),
            networks: networks.top(|holder| (holder.connections, holder.requests)),
            most_in_flight: most_in_flight(direct, shared.totals.proxied(), &clients),
            distinct_clients,
            oldest: age_at(ages.len().saturating_sub(1)),
            median_age: age_at(ages.len() / 2),
            in_flight: shared.totals.in_flight() as u64,
            upgraded: shared.totals.upgraded(),
            untracked,
            accept_errors: AcceptErrorCounts {
                of_one_connection: shared.accept_errors.of_one_connection.load(Relaxed),
                exhausted: shared.accept_errors.exhausted.load(Relaxed),
                other: shared.accept_errors.other.load(Relaxed),
            },
        }
    }

    /// Returns the number of connections in `phase`.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Phase};
    ///
    /// let guard = ConnGuard::default();
    /// // A connection that has sent nothing.
    /// let (_client, socket) = pair().await?;
    /// let silent = guard.admit(socket, None, None)?;
    /// let snapshot = guard.snapshot();
    /// assert_eq!(snapshot.connections_in(Phase::FirstHead), 1);
    /// assert_eq!(snapshot.connections_in(Phase::Idle), 0);
    /// # drop(silent);
    /// # Ok(())
    /// # }
    /// ```
    pub fn connections_in(&self, phase: Phase) -> usize {
        self.phases
            .iter()
            .find(|(at, _)| *at == phase)
            .map_or(0, |(_, count)| *count)
    }
}

/// Returns the clients with the most requests in flight: those that are peers, and those that
/// proxies have named.
fn most_in_flight(
    direct: HashMap<ClientKey, u64>,
    proxied: Vec<(ClientKey, u32)>,
    peers: &Holders,
) -> Vec<RequestHolder> {
    let direct = direct.into_iter().map(|(key, in_flight)| RequestHolder {
        key,
        is_forwarded: false,
        in_flight,
    });
    let proxied = proxied.into_iter().map(|(key, in_flight)| RequestHolder {
        key,
        // The requests of which a proxy names no client are its own.
        is_forwarded: peers.0.get(&key).is_none_or(|peer| !peer.is_proxy),
        in_flight: in_flight.into(),
    });
    let mut all: Vec<_> = direct.chain(proxied).collect();
    all.sort_unstable_by_key(|holder| Reverse(holder.in_flight));
    all.truncate(MAX_HOLDERS);
    all
}
