//! The open connections of a guard, by client and by network.

use super::ConnHandle;
use crate::{eviction::rank::EvictionRank, guard::limits::Shares};
use palisade_core::{ClientKey, Prefix};
use parking_lot::Mutex;
use std::{
    collections::{
        HashMap,
        hash_map::{Entry, RandomState},
    },
    hash::BuildHasher,
};

/// The number of shards. Each has a lock, held for a few steps when a connection is added or
/// removed and during a sweep.
pub(crate) const SHARDS: usize = 16;
/// The number of slots that one search for a connection to evict scans.
const SCANNED_SLOTS: usize = 128;
/// The largest number of slots that a search for a connection of one network scans until it finds
/// one. The network may have few of the many connections in its shard.
const MAX_SCANNED_SLOTS: usize = 4096;
/// The index of no slot.
const NO_SLOT: u32 = u32::MAX;
/// A value of [`Slot::next_client`]: shares do not apply to this connection.
const UNLISTED: u32 = u32::MAX - 1;

/// All open connections. Those of one network are in one shard.
pub(crate) struct Registry {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    /// The size of a network.
    network: Prefix,
    /// The largest shares that a client and a network can have.
    max_shares: Shares,
}

/// A kind of share of the cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    Client,
    Network,
}

/// The position of a connection in the registry: its slot in its shard, times [`SHARDS`], plus its
/// shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u32);

/// A copy of a connection's entry.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) conn: ConnHandle,
    /// When the connection was admitted, in milliseconds of the guard.
    pub(crate) opened: u64,
    /// Whether it is the newest connection of its client.
    pub(crate) is_newest: bool,
    /// Whether it exceeds the share of its client or of its network. Set by
    /// [`Registry::mark_excess`].
    pub(crate) is_excess: bool,
}

/// The error for a client or a network at its share that has no connection to evict.
#[derive(Debug)]
pub(crate) struct ShareFull {
    pub(crate) share: Share,
    pub(crate) connections: u32,
}

/// The hashes of a connection's client and network.
#[derive(Clone, Copy)]
struct OwnerHashes {
    client: u64,
    network: u64,
}

struct Shard {
    slots: Vec<Slot>,
    /// The first free slot. Its `older` is the next free slot.
    free: u32,
    /// The first slot of each hash chain. A chain links the newest connections of its clients. The
    /// number of buckets is a power of two.
    buckets: Vec<u32>,
    /// The number of clients in all chains.
    clients: usize,
    /// The number of connections of each network, by half of its hash. Two networks with the same
    /// half, which is the case for one of a billion pairs, have one share together.
    networks: HashMap<u32, u32>,
    /// The slot after which the next scan for a network begins.
    cursor: usize,
    hasher: RandomState,
}

/// A connection, linked with the others of its client in a ring.
struct Slot {
    /// The connection's socket holds a handle as well, and releases the slot before it drops it.
    conn: Option<ConnHandle>,
    opened: u64,
    /// The slot of the next older connection. For the oldest connection, the slot of the newest.
    older: u32,
    /// The slot of the next newer connection. For the newest connection, the slot of the oldest.
    newer: u32,
    /// The number of connections of the client, if this is the newest of them; 0 otherwise.
    connections: u32,
    /// The slot of the next client's newest connection in the hash chain, or [`UNLISTED`].
    next_client: u32,
}

// === Registry ===

impl Registry {
    pub(crate) fn new(network: Prefix, max_shares: Shares) -> Self {
        let hasher = RandomState::new();
        let shards = std::array::from_fn(|_| Mutex::new(Shard::new(hasher.clone())));
        Self {
            shards,
            hasher,
            network,
            max_shares,
        }
    }

    /// Adds `conn`, which was admitted at `opened`. If its client or its network has its share
    /// already, also returns which share that is, and the connection that is to be evicted for it,
    /// as of `now`.
    ///
    /// # Errors
    ///
    /// If the client or the network has its share already and none of its connections can be
    /// evicted, or if it is at a higher limit. That limit is twice the share, or the largest share
    /// if that is more, and counts connections that have been asked to close and are still open.
    pub(crate) fn enter_late(
        &self,
        conn: &ConnHandle,
        opened: u64,
        now: u64,
        shares: Option<Shares>,
    ) -> Result<(Place, Option<(Share, Found)>), ShareFull> {
        let hashes = self.owner_hashes(conn);
        // Without shares there are no rings, and all connections may be of one client.
        let shard = shard_index(if shares.is_some() {
            hashes.network
        } else {
            conn.id()
        });
        // Drop these handles after the lock is released: one of them may be the last.
        let mut examined = Vec::new();
        let mut locked = self.shards[shard].lock();
        let mut evicted = None;
        if let Some(shares) = shares {
            let newest = locked.newest_of_client(hashes.client, conn.client());
            // The hard limit bounds connections that have been asked to close and are still open.
            let with_hard_limit = |soft: u32, max: u32| (soft, soft.saturating_mul(2).max(max));
            let limits = with_hard_limit(shares.client, self.max_shares.client);
            let own = locked.find_evictable_of_client(newest, limits, now, &mut examined)?;
            evicted = own.map(|at| (Share::Client, at));
            if evicted.is_none() {
                let is_of_network =
                    |other: &ConnHandle| self.owner_hashes(other).network == hashes.network;
                let found = locked.find_evictable_of_network(
                    hashes.network,
                    with_hard_limit(shares.network, self.max_shares.network),
                    now,
                    is_of_network,
                    &mut examined,
                )?;
                evicted = found.map(|at| (Share::Network, at));
            }
        }
        let slot = locked.insert(conn, opened, shares.map(|_| hashes));
        let evicted = evicted.map(|(share, at)| (share, examined.swap_remove(at)));
        Ok((Place::new(shard, slot), evicted))
    }

    /// Adds `conn`, which is admitted now.
    #[cfg(test)]
    pub(crate) fn enter(
        &self,
        conn: &ConnHandle,
        now: u64,
        shares: Option<Shares>,
    ) -> Result<(Place, Option<(Share, Found)>), ShareFull> {
        self.enter_late(conn, now, now, shares)
    }

    /// Returns whether the client of `conn`, or its network, has its share already.
    pub(crate) fn has(&self, conn: &ConnHandle, shares: Shares) -> bool {
        let hashes = self.owner_hashes(conn);
        let shard = self.shards[shard_index(hashes.network)].lock();
        let newest = shard.newest_of_client(hashes.client, conn.client());
        newest.is_some_and(|at| shard.slots[at as usize].connections >= shares.client)
            || shard.network_connections(hashes.network) >= shares.network
    }

    /// Returns when the connection at `place` was admitted.
    pub(crate) fn opened(&self, place: Place) -> u64 {
        let shard = self.shards[place.shard()].lock();
        let slot = shard.slots.get(place.slot() as usize);
        slot.map_or(0, |slot| slot.opened)
    }

    /// Removes the connection at `place`, and returns when it was admitted.
    pub(crate) fn leave(&self, place: Place, conn: &ConnHandle) -> u64 {
        let hashes = self.owner_hashes(conn);
        self.shards[place.shard()]
            .lock()
            .remove(place.slot(), hashes, conn.client())
    }

    fn owner_hashes(&self, conn: &ConnHandle) -> OwnerHashes {
        OwnerHashes {
            client: self.hasher.hash_one(Some(conn.client())),
            network: self.hasher.hash_one(self.network_of(conn)),
        }
    }

    /// Returns the key of the network that `conn` counts for.
    pub(crate) fn network_of(&self, conn: &ConnHandle) -> ClientKey {
        ClientKey::address(conn.peer().ip(), self.network)
    }

    /// Appends all connections of one of the [`SHARDS`]. Those of one client follow its newest.
    pub(crate) fn copy(&self, shard: usize, into: &mut Vec<Found>) {
        let shard = self.shards[shard % SHARDS].lock();
        for newest in shard.slots.iter().filter(|slot| slot.conn.is_some()) {
            let mut slot = newest;
            for _ in 0..newest.connections {
                if let Some(found) = slot.to_found() {
                    into.push(found);
                }
                slot = &shard.slots[slot.older as usize];
            }
        }
    }

    /// Marks the excess of each client and each network with more connections than `shares`:
    /// the newest ones. `found` holds all connections of `shard`. Connections that are about to
    /// close do not count. `is_listed` returns whether shares apply to a connection.
    pub(crate) fn mark_excess(
        &self,
        shard: usize,
        found: &mut [Found],
        shares: Shares,
        is_listed: impl Fn(&ConnHandle) -> bool,
    ) {
        let is_staying =
            |found: &Found| found.conn.state().decision().is_none() && is_listed(&found.conn);
        for client in found.chunk_by_mut(|_, next| !next.is_newest) {
            if client.len() <= shares.client as usize {
                continue;
            }
            let staying = client.iter().filter(|found| is_staying(found)).count();
            let excess = staying.saturating_sub(shares.client as usize);
            let newest = client
                .iter_mut()
                .filter(|found| is_staying(found))
                .take(excess);
            newest.for_each(|found| found.is_excess = true);
        }
        let mut networks = self.shards[shard % SHARDS]
            .lock()
            .excess_by_network(shares.network);
        if networks.is_empty() {
            return;
        }
        let network = |found: &Found| high_half(self.owner_hashes(&found.conn).network);
        let listed = found.iter().filter(|found| is_listed(&found.conn));
        for leaving in listed.filter(|found| found.is_excess || !is_staying(found)) {
            if let Some(excess) = networks.get_mut(&network(leaving)) {
                *excess = excess.saturating_sub(1);
            }
        }
        for found in found
            .iter_mut()
            .filter(|found| is_staying(found) && !found.is_excess)
        {
            if let Some(excess) = networks.get_mut(&network(found))
                && *excess > 0
            {
                *excess -= 1;
                found.is_excess = true;
            }
        }
    }

    /// Appends up to `max` connections that have not been asked to close, from no more than
    /// [`SCANNED_SLOTS`] slots. Each `turn` begins at another slot.
    pub(crate) fn copy_few(&self, turn: usize, max: usize, into: &mut Vec<Found>) {
        let mut left = SCANNED_SLOTS;
        for step in 0..SHARDS {
            let shard = self.shards[turn.wrapping_add(step) % SHARDS].lock();
            let length = shard.slots.len();
            let start = (turn / SHARDS)
                .wrapping_mul(max)
                .checked_rem(length)
                .unwrap_or(0);
            for slot in shard
                .slots
                .iter()
                .cycle()
                .skip(start)
                .take(left.min(length))
            {
                let is_staying = |conn: &ConnHandle| conn.state().decision().is_none();
                if slot.conn.as_ref().is_some_and(is_staying) {
                    into.extend(slot.to_found());
                }
                left -= 1;
                if left == 0 || into.len() == max {
                    return;
                }
            }
        }
    }

    /// Returns the number of connections and of clients.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        let each = self.shards.iter().map(|shard| {
            let shard = shard.lock();
            (
                shard.slots.iter().filter_map(Slot::to_found).count(),
                shard.clients,
            )
        });
        each.fold((0, 0), |sum, each| (sum.0 + each.0, sum.1 + each.1))
    }
}

/// Returns the half of a hash that does not determine the shard.
fn high_half(hash: u64) -> u32 {
    (hash >> 32) as u32
}

fn shard_index(hash: u64) -> usize {
    (hash % SHARDS as u64) as usize
}

// === Shard ===

impl Shard {
    fn new(hasher: RandomState) -> Self {
        Self {
            slots: Vec::new(),
            free: NO_SLOT,
            buckets: Vec::new(),
            clients: 0,
            networks: HashMap::new(),
            cursor: 0,
            hasher,
        }
    }

    /// Returns the connection that a client evicts for one more: an index into `examined`. `newest`
    /// is the slot of the client's newest connection. Returns `None` if the client is below its
    /// `soft` limit, or will be once its closing connections are gone.
    ///
    /// # Errors
    ///
    /// If none of the scanned connections can be evicted, or if the client is at its `hard` limit.
    fn find_evictable_of_client(
        &self,
        newest: Option<u32>,
        (soft, hard): (u32, u32),
        now: u64,
        examined: &mut Vec<Found>,
    ) -> Result<Option<usize>, ShareFull> {
        let Some(newest) = newest else {
            return Ok(None);
        };
        let Slot {
            connections,
            newer: oldest,
            ..
        } = &self.slots[newest as usize];
        if *connections < soft {
            return Ok(None);
        }
        let full = ShareFull {
            share: Share::Client,
            connections: *connections,
        };
        if *connections >= hard {
            return Err(full);
        }
        let mut close_pending = 0;
        let mut best: Option<(EvictionRank, usize)> = None;
        // Scan from both ends: connections that live for hours gather at the old one.
        let (mut oldest, mut newest) = (*oldest, newest);
        for step in 0..SCANNED_SLOTS.min(*connections as usize) {
            let at = if step % 2 == 0 { oldest } else { newest };
            let slot = &self.slots[at as usize];
            if step % 2 == 0 {
                oldest = slot.newer;
            } else {
                newest = slot.older;
            }
            let Some(found) = slot.to_found() else {
                continue;
            };
            let state = found.conn.state();
            if state.decision().is_some() {
                // A connection that is still open seconds after its decision is no longer pending.
                close_pending += u32::from(state.is_close_pending());
            } else if let Some(rank) =
                EvictionRank::of(&state.stats(), now.saturating_sub(slot.opened), false)
                && best.as_ref().is_none_or(|(least, _)| rank < *least)
            {
                best = Some((rank, examined.len()));
            }
            examined.push(found);
        }
        if connections.saturating_sub(close_pending) < soft {
            return Ok(None);
        }
        best.map(|(_, at)| Some(at)).ok_or(full)
    }

    /// Returns the connection that a network evicts for one more, as
    /// [`Self::find_evictable_of_client`] does. Each call scans another part of the shard, and more
    /// of it if no evictable connection of the network is found.
    fn find_evictable_of_network(
        &mut self,
        network: u64,
        (soft, hard): (u32, u32),
        now: u64,
        is_of_network: impl Fn(&ConnHandle) -> bool,
        examined: &mut Vec<Found>,
    ) -> Result<Option<usize>, ShareFull> {
        let connections = self.network_connections(network);
        if connections < soft {
            return Ok(None);
        }
        let full = ShareFull {
            share: Share::Network,
            connections,
        };
        if connections >= hard {
            return Err(full);
        }
        let mut best: Option<(EvictionRank, usize)> = None;
        for step in 0..MAX_SCANNED_SLOTS.min(self.slots.len()) {
            if step >= SCANNED_SLOTS && best.is_some() {
                break;
            }
            self.cursor = (self.cursor + 1) % self.slots.len();
            let slot = &self.slots[self.cursor];
            let conn = slot
                .conn
                .as_ref()
                .filter(|conn| slot.next_client != UNLISTED && is_of_network(conn));
            let Some(state) = conn.map(ConnHandle::state) else {
                continue;
            };
            if state.decision().is_none()
                && let Some(rank) =
                    EvictionRank::of(&state.stats(), now.saturating_sub(slot.opened), false)
                && best.as_ref().is_none_or(|(least, _)| rank < *least)
            {
                best = Some((rank, examined.len()));
                examined.extend(slot.to_found());
            }
        }
        best.map(|(_, at)| Some(at)).ok_or(full)
    }

    /// Returns the networks with more than `max` connections, and by how many each exceeds it.
    fn excess_by_network(&self, max: u32) -> HashMap<u32, u32> {
        let above = self
            .networks
            .iter()
            .filter(|(_, connections)| **connections > max);
        above
            .map(|(network, connections)| (*network, connections - max))
            .collect()
    }

    fn network_connections(&self, network: u64) -> u32 {
        self.networks.get(&high_half(network)).copied().unwrap_or(0)
    }

    /// Returns the slot of the newest connection of `client`.
    fn newest_of_client(&self, hash: u64, client: ClientKey) -> Option<u32> {
        let mut at = *self.buckets.get(self.bucket_index(hash))?;
        while let Some(slot) = self.slots.get(at as usize) {
            if slot
                .conn
                .as_ref()
                .is_some_and(|conn| conn.client() == client)
            {
                return Some(at);
            }
            at = slot.next_client;
        }
        None
    }

    fn bucket_index(&self, hash: u64) -> usize {
        (hash / SHARDS as u64) as usize & self.buckets.len().wrapping_sub(1)
    }

    /// Returns the link to slot `at` in its hash chain: a bucket, or the `next_client` of a slot.
    fn link_to(&mut self, at: u32, hash: u64) -> Option<&mut u32> {
        let bucket = self.bucket_index(hash);
        let mut before = *self.buckets.get(bucket)?;
        if before == at {
            return self.buckets.get_mut(bucket);
        }
        loop {
            let next = self.slots.get(before as usize)?.next_client;
            if next == at {
                return self
                    .slots
                    .get_mut(before as usize)
                    .map(|slot| &mut slot.next_client);
            }
            before = next;
        }
    }

    /// Adds `conn`, and returns its slot. With `hashes`, shares apply to it, and it joins the ring
    /// of its client. Without them it is alone in its ring.
    fn insert(&mut self, conn: &ConnHandle, opened: u64, hashes: Option<OwnerHashes>) -> u32 {
        let newest = hashes.and_then(|hashes| self.newest_of_client(hashes.client, conn.client()));
        let mut at = self.free;
        if at == NO_SLOT {
            at = self.slots.len() as u32;
            if self.slots.len() == self.slots.capacity() {
                // Grow by a sixteenth, not by doubling: there may be ten thousand slots.
                self.slots.reserve_exact((self.slots.len() / 16).max(16));
            }
        }
        let conn = Some(conn.clone());
        let next_client = if hashes.is_some() { NO_SLOT } else { UNLISTED };
        let slot = Slot {
            conn,
            opened,
            older: at,
            newer: at,
            connections: 1,
            next_client,
        };
        if let Some(free) = self.slots.get_mut(at as usize) {
            self.free = std::mem::replace(free, slot).older;
        } else {
            self.slots.push(slot);
        }
        if let Some(OwnerHashes { client, network }) = hashes {
            match newest {
                Some(newest) => self.link_as_newest(at, newest, client),
                None => self.link_first(at, client),
            }
            *self.networks.entry(high_half(network)).or_insert(0) += 1;
        }
        at
    }

    /// Links slot `at` into the ring of `newest`, and replaces `newest` in its hash chain.
    fn link_as_newest(&mut self, at: u32, newest: u32, hash: u64) {
        let Slot {
            newer: oldest,
            connections,
            next_client,
            ..
        } = self.slots[newest as usize];
        let slot = &mut self.slots[at as usize];
        (slot.older, slot.newer) = (newest, oldest);
        (slot.connections, slot.next_client) = (connections + 1, next_client);
        self.slots[oldest as usize].older = at;
        let before = &mut self.slots[newest as usize];
        (before.newer, before.connections, before.next_client) = (at, 0, NO_SLOT);
        if let Some(link) = self.link_to(newest, hash) {
            *link = at;
        }
    }

    /// Links slot `at` into a hash chain as the first connection of its client.
    fn link_first(&mut self, at: u32, hash: u64) {
        if self.clients >= self.buckets.len() {
            self.grow_buckets();
        }
        let bucket = self.bucket_index(hash);
        self.slots[at as usize].next_client = std::mem::replace(&mut self.buckets[bucket], at);
        self.clients += 1;
    }

    /// Doubles the number of buckets, so that a chain has one client or two.
    fn grow_buckets(&mut self) {
        let doubled = (2 * self.buckets.len()).max(16);
        for mut at in std::mem::replace(&mut self.buckets, vec![NO_SLOT; doubled]) {
            while at != NO_SLOT {
                let slot = &self.slots[at as usize];
                let (moved, client) = (at, slot.conn.as_ref().map(|conn| conn.client()));
                at = slot.next_client;
                let bucket = self.bucket_index(self.hasher.hash_one(client));
                let first = std::mem::replace(&mut self.buckets[bucket], moved);
                self.slots[moved as usize].next_client = first;
            }
        }
    }

    /// Removes the connection in slot `at`, and returns when it was admitted.
    fn remove(&mut self, at: u32, hashes: OwnerHashes, client: ClientKey) -> u64 {
        let OwnerHashes {
            client: hash,
            network,
        } = hashes;
        let Slot {
            opened,
            older,
            newer,
            connections,
            next_client,
            ..
        } = self.slots[at as usize];
        self.slots[older as usize].newer = newer;
        self.slots[newer as usize].older = older;
        let is_listed = next_client != UNLISTED;
        if is_listed && let Entry::Occupied(mut count) = self.networks.entry(high_half(network)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        if connections == 0 {
            if let Some(newest) = self.newest_of_client(hash, client) {
                self.slots[newest as usize].connections -= 1;
            }
        } else if connections > 1 {
            // The next older connection becomes the newest of its client.
            (
                self.slots[older as usize].connections,
                self.slots[older as usize].next_client,
            ) = (connections - 1, next_client);
            if let Some(link) = self.link_to(at, hash) {
                *link = older;
            }
        } else if let Some(link) = self.link_to(at, hash) {
            *link = next_client;
            self.clients -= 1;
        }
        let slot = &mut self.slots[at as usize];
        // The socket still holds a handle, so no connection is dropped under the lock.
        (slot.conn, slot.older) = (None, self.free);
        self.free = at;
        opened
    }
}

// === Place ===

impl Place {
    /// The place of a connection that is not registered.
    pub(crate) const NOWHERE: Self = Self(NO_SLOT);

    fn new(shard: usize, slot: u32) -> Self {
        // At most 2^24 connections are open, or as many as there are files in shadow mode.
        Self(
            slot.saturating_mul(SHARDS as u32)
                .saturating_add(shard as u32),
        )
    }

    fn shard(self) -> usize {
        self.0 as usize % SHARDS
    }

    fn slot(self) -> u32 {
        self.0 / SHARDS as u32
    }
}

// === Slot ===

impl Slot {
    fn to_found(&self) -> Option<Found> {
        let is_newest = self.connections > 0;
        Some(Found {
            conn: self.conn.clone()?,
            opened: self.opened,
            is_newest,
            is_excess: false,
        })
    }
}

#[cfg(test)]
mod tests;
