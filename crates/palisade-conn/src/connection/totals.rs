//! What all connections of one guard count together.

use super::memory_gate::MemoryGate;
use crate::sync::{Mutex, MutexGuard};
use palisade_client_ip::Trust;
use palisade_core::{Budget, BudgetFull, ClientKey, ConnInfo, Mode, Network, Recorder, shed::Shed};
use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
};

/// Counters for the requests of clients. Clients share them at random. Two that share one are
/// counted together, which matters only where hardly any room is left.
const CLIENT_COUNTERS: usize = 4096;
/// The number of requests that are examined before anything is concluded from them.
const EXAMINED_REQUESTS: u32 = 128;
/// Above this percentage of forwarded requests there is a proxy in front of the server.
const MAX_FORWARDED_PERCENT: u32 = 90;
/// Responses have this part of the budget: they can wait, and request bodies are refused.
const RESPONSES_PART: u64 = 2;

/// The counters that all connections of one guard share, and their limits.
///
/// The state of each connection of the guard leads to it, so that request tracking needs nothing
/// but the connection.
#[derive(Debug, Default)]
pub(crate) struct ConnTotals {
    /// Whether a request over a limit is refused. Defaults to [`Mode::Enforce`].
    pub(crate) mode: Mode,
    /// Receives the events. Defaults to no metrics.
    pub(crate) recorder: Recorder,
    /// The largest number of requests on one connection. Defaults to any number.
    pub(crate) max_requests: Option<u32>,
    /// The largest number of requests in flight on all connections. Defaults to any number.
    pub(crate) max_in_flight: Option<usize>,
    /// The networks that are admitted above it. Defaults to none.
    pub(crate) reserved: Arc<[Network]>,
    /// The largest number of upgraded connections. Defaults to any number.
    pub(crate) max_upgraded: Option<usize>,
    /// Whether each peer counts as a client, so that a proxy among them has to be detected.
    /// Defaults to not.
    pub(crate) peers_are_clients: bool,
    /// Decides what is admitted while memory is short, or the runtime overloaded. Defaults to
    /// everything.
    pub(crate) memory: MemoryGate,
    /// The proxies that name the clients of their requests. Defaults to none.
    pub(crate) trust: Option<Trust>,
    /// The requests of clients behind proxies, by the hash of the client. There are no more entries
    /// than requests in flight.
    proxied: Mutex<HashMap<u64, (ClientKey, u32)>>,
    in_flight: AtomicUsize,
    in_flight_by_client: OnceLock<Box<[AtomicU32]>>,
    upgraded: Mutex<Upgraded>,
    millis: AtomicU32,
    examined: AtomicU32,
    forwarded: AtomicU32,
    forwarded_percent: AtomicU32,
    is_proxy_reported: AtomicBool,
}

/// The connections that count as upgraded. No list has more entries than there are of these.
#[derive(Debug, Default)]
pub(super) struct Upgraded {
    connections: usize,
    by_client: HashMap<ClientKey, u32>,
    /// The clients of the connections of proxies that have been upgraded, by the number of the
    /// connection, until it is gone.
    named: HashMap<u64, ClientKey>,
}

// === ConnTotals ===

impl ConnTotals {
    /// Returns the bytes of the counters of clients, those of the budget included.
    pub(crate) fn table_bytes(&self) -> usize {
        let requests = match self.peers_are_clients {
            true => CLIENT_COUNTERS * size_of::<AtomicU32>(),
            false => 0,
        };
        requests
            + self
                .memory
                .budget
                .as_ref()
                .map_or(0, |_| Budget::TABLE_BYTES)
    }

    /// Returns the number of requests in flight on all connections.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Returns the number of connections that count as upgraded.
    pub(crate) fn upgraded(&self) -> usize {
        self.upgraded.lock().connections
    }

    /// Returns the number of clients with upgraded connections, and of proxies' connections.
    #[cfg(test)]
    pub(crate) fn upgraded_clients(&self) -> (usize, usize) {
        let upgraded = self.upgraded.lock();
        (upgraded.by_client.len(), upgraded.named.len())
    }

    /// Sets the coarse clock, in wrapping milliseconds. The sweeper calls this on every pass, so
    /// that requests need not read a clock.
    pub(crate) fn set_time(&self, millis: u32) {
        self.millis.store(millis, Relaxed);
    }

    /// Returns the coarse clock.
    pub(crate) fn time(&self) -> u32 {
        self.millis.load(Relaxed)
    }

    /// Counts one examined request. Returns the percentage of forwarded requests once, if it is
    /// above nine in ten.
    pub(crate) fn examine(&self, is_forwarded: bool) -> Option<u32> {
        let forwarded = self.forwarded.fetch_add(is_forwarded.into(), Relaxed);
        if self.examined.fetch_add(1, Relaxed) != EXAMINED_REQUESTS - 1 {
            return None;
        }
        // A request that is counted between these two lines is lost, which does no harm.
        self.examined.store(0, Relaxed);
        self.forwarded.store(0, Relaxed);
        let forwarded = forwarded.saturating_add(is_forwarded.into());
        let percent = forwarded.min(EXAMINED_REQUESTS) * 100 / EXAMINED_REQUESTS;
        self.forwarded_percent.store(percent, Relaxed);
        if percent > MAX_FORWARDED_PERCENT && !self.is_proxy_reported.swap(true, Relaxed) {
            Some(percent)
        } else {
            None
        }
    }

    /// Returns the percentage of forwarded requests among those examined last.
    pub(crate) fn forwarded_percent(&self) -> u32 {
        self.forwarded_percent.load(Relaxed)
    }

    /// Counts a request of the client with this hash. Returns how many of that client are in
    /// flight now, or 1 where they are not counted.
    #[inline]
    pub(super) fn begin_request(&self, client: Option<u64>) -> u32 {
        self.in_flight.fetch_add(1, Relaxed);
        self.client_counter(client)
            .map_or(1, |own| own.fetch_add(1, Relaxed).saturating_add(1))
    }

    /// Counts a request of `client` that comes through a proxy. Returns how many of that client are
    /// in flight now. They are counted exactly, because a client always has one: it must not be
    /// that of another.
    pub(super) fn begin_proxied(&self, client: ClientKey) -> u32 {
        self.in_flight.fetch_add(1, Relaxed);
        let mut proxied = self.proxied.lock();
        let (_, own) = proxied.entry(client.to_hash()).or_insert((client, 0));
        *own = own.saturating_add(1);
        *own
    }

    /// Uncounts a request of the client with this hash.
    pub(super) fn end_proxied(&self, client: u64) {
        self.in_flight.fetch_sub(1, Relaxed);
        if let Entry::Occupied(mut own) = self.proxied.lock().entry(client) {
            own.get_mut().1 -= 1;
            if own.get().1 == 0 {
                own.remove();
            }
        }
    }

    /// Returns the clients behind proxies, and how many requests each has in flight.
    pub(crate) fn proxied(&self) -> Vec<(ClientKey, u32)> {
        self.proxied.lock().values().copied().collect()
    }

    /// Uncounts a request.
    #[inline]
    pub(super) fn end_request(&self, client: Option<u64>) {
        self.in_flight.fetch_sub(1, Relaxed);
        if let Some(own) = self.client_counter(client) {
            own.fetch_sub(1, Relaxed);
        }
    }

    /// Returns the limit on requests in flight and their number if one request of `peer`, whose
    /// client has `own` in flight, exceeds it.
    #[inline]
    pub(super) fn exceeded_in_flight(&self, peer: IpAddr, own: u32) -> Option<(u64, u64)> {
        let exceeded = exceeded(self.max_in_flight?, self.in_flight(), own as usize)?;
        let is_reserved = self.reserved.iter().any(|network| network.contains(peer));
        if is_reserved { None } else { Some(exceeded) }
    }

    /// Returns what a request on `conn` gets if memory is short, or the runtime overloaded, and it
    /// is outside of the share.
    #[inline]
    pub(crate) fn shed(&self, conn: &ConnInfo) -> Option<Shed> {
        let shed = self
            .memory
            .shed(conn, self.time(), self.peers_are_clients)?;
        (!self.is_reserved_for(conn)).then_some(shed)
    }

    /// Returns what `conn` gets, a new connection, if memory is short and it is outside of the
    /// share.
    pub(crate) fn shed_connection(&self, conn: &ConnInfo) -> Option<Shed> {
        let (time, peers_are_clients) = (self.time(), self.peers_are_clients);
        let shed = self.memory.shed_connection(conn, time, peers_are_clients)?;
        (!self.is_reserved_for(conn)).then_some(shed)
    }

    #[cold]
    fn is_reserved_for(&self, conn: &ConnInfo) -> bool {
        let mut reserved = self.reserved.iter();
        reserved.any(|network| network.contains(conn.peer().ip()))
    }

    /// Charges the budget for what is held of a request on `conn`. Returns the bytes to
    /// [give back](Self::give_back).
    ///
    /// # Errors
    ///
    /// If there is no room.
    pub(super) fn charge(&self, conn: &ConnInfo, bytes: u64) -> Result<u32, BudgetFull> {
        self.charge_for(self.charged_hash(conn), conn, bytes)
    }

    /// Charges the share of the client with this hash.
    ///
    /// # Errors
    ///
    /// If there is no room.
    pub(super) fn charge_for(
        &self,
        client: Option<u64>,
        conn: &ConnInfo,
        bytes: u64,
    ) -> Result<u32, BudgetFull> {
        let Some(budget) = &self.memory.budget else {
            return Ok(0);
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        budget.take(client, bytes.into())?;
        conn.add_charged(bytes.into());
        Ok(bytes)
    }

    /// Charges the budget for what is held of a response on `conn`. Responses have a part of it.
    /// Returns `None` if there is no room, and the guard enforces its limits.
    pub(super) fn charge_response(&self, conn: &ConnInfo, bytes: u64) -> Option<u32> {
        let Some(budget) = &self.memory.budget else {
            return Some(0);
        };
        let has_room = budget.held().saturating_add(bytes) <= budget.limit() / RESPONSES_PART;
        match has_room.then(|| self.charge(conn, bytes)) {
            Some(Ok(charged)) => Some(charged),
            _ => (self.mode != Mode::Enforce).then_some(0),
        }
    }

    pub(super) fn give_back(&self, conn: &ConnInfo, bytes: u32) {
        self.give_back_for(self.charged_hash(conn), conn, bytes);
    }

    /// Gives back to the share of the client with this hash.
    pub(super) fn give_back_for(&self, client: Option<u64>, conn: &ConnInfo, bytes: u32) {
        if let Some(budget) = &self.memory.budget {
            budget.give_back(client, bytes.into());
            conn.remove_charged(bytes.into());
        }
    }

    /// Returns the client that is charged for what `conn` holds.
    pub(super) fn charged_client(&self, conn: &ConnInfo) -> Option<ClientKey> {
        conn.known_client().filter(|_| self.peers_are_clients)
    }

    /// Returns the hash of that client.
    pub(super) fn charged_hash(&self, conn: &ConnInfo) -> Option<u64> {
        conn.known_client_hash().filter(|_| self.peers_are_clients)
    }

    /// Returns the counter that `client` shares with others.
    #[inline]
    fn client_counter(&self, client: Option<u64>) -> Option<&AtomicU32> {
        let client = client.filter(|_| self.peers_are_clients)?;
        let counters = self
            .in_flight_by_client
            .get_or_init(|| (0..CLIENT_COUNTERS).map(|_| AtomicU32::new(0)).collect());
        counters.get(client as usize % CLIENT_COUNTERS)
    }

    /// Begins to change which connections count as upgraded.
    pub(super) fn lock_upgraded(&self) -> MutexGuard<'_, Upgraded> {
        self.upgraded.lock()
    }

    /// Returns the client that an upgraded connection would count for: `named` if a proxy has named
    /// it, or the peer if peers are clients.
    pub(super) fn upgraded_client(
        &self,
        conn: &ConnInfo,
        named: Option<ClientKey>,
    ) -> Option<ClientKey> {
        named.or_else(|| self.charged_client(conn))
    }
}

// === Upgraded ===

impl Upgraded {
    /// Returns the limit and the number there would be if one more connection of `client` exceeds
    /// it. Of several one client may have no more than it leaves, as with requests.
    pub(super) fn exceeded(
        &self,
        max: Option<usize>,
        client: Option<ClientKey>,
    ) -> Option<(u64, u64)> {
        let own = client.and_then(|client| self.by_client.get(&client));
        let own = own.map_or(1, |own| own.saturating_add(1));
        exceeded(max?, self.connections.saturating_add(1), own as usize)
    }

    /// Counts `conn`. `is_named` says whether a proxy has named its client.
    pub(super) fn add(&mut self, conn: &ConnInfo, client: Option<ClientKey>, is_named: bool) {
        self.connections += 1;
        if let Some(client) = client {
            *self.by_client.entry(client).or_insert(0) += 1;
            if is_named {
                self.named.insert(conn.id(), client);
            }
        }
    }

    /// Returns the client that a proxy named when `conn` was counted for the first time.
    pub(super) fn named(&self, conn: &ConnInfo) -> Option<ClientKey> {
        self.named.get(&conn.id()).copied()
    }

    /// Forgets `conn`, which is gone.
    pub(super) fn forget(&mut self, conn: &ConnInfo) {
        self.named.remove(&conn.id());
    }

    /// Uncounts it.
    pub(super) fn remove(&mut self, totals: &ConnTotals, conn: &ConnInfo) {
        self.connections -= 1;
        let client = totals.upgraded_client(conn, self.named(conn));
        if let Some(client) = client
            && let Entry::Occupied(mut own) = self.by_client.entry(client)
        {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

/// Returns the limit that applies and the number that exceeds it, where `all` exist and one client
/// has `own` of them.
///
/// The last quarter is for clients that have no other. Of the rest one client may have no more
/// than it leaves (dynamic thresholds, as for the buffers of a switch: Choudhury and Hahne, 1998):
/// half of it if it is alone, a twelfth beside ten others that ask for all they can get.
#[inline]
fn exceeded(max: usize, all: usize, own: usize) -> Option<(u64, u64)> {
    if all > max {
        return Some((max as u64, all as u64));
    }
    let left = (max - max / 4).saturating_sub(all);
    if own > 1 && own > left {
        Some((left.max(1) as u64, own as u64))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_reported_once_and_only_for_most_requests() {
        let totals = ConnTotals::default();
        let round = |forwarded: u32| {
            (0..EXAMINED_REQUESTS)
                .filter_map(|n| totals.examine(n < forwarded))
                .collect::<Vec<_>>()
        };
        assert_eq!((round(0), totals.forwarded_percent()), (vec![], 0));
        assert_eq!((round(115), totals.forwarded_percent()), (vec![], 89));
        assert_eq!((round(117), totals.forwarded_percent()), (vec![91], 91));
        assert_eq!((round(128), totals.forwarded_percent()), (vec![], 100));
        assert_eq!((round(64), totals.forwarded_percent()), (vec![], 50));
    }
}
