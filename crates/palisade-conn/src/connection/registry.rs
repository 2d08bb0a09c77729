//! Who is connected.

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

/// Locks, each held for a few steps by whoever connects, goes, or sweeps.
pub(crate) const SHARDS: usize = 16;
/// So many connections are looked at to find the one of a client, or of a network, that can best be
/// evicted.
const SCANNED: usize = 128;
/// The same at most, for a network that has few of many connections.
const MAX_SCANNED: usize = 4096;
/// No slot.
const NONE: u32 = u32::MAX;
/// In the place of the next client: no share counts for this connection.
const UNLISTED: u32 = u32::MAX - 1;

/// All connections, those of one network in one shard.
pub(crate) struct Registry {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    /// What a network is.
    network: Prefix,
    /// The largest shares that there ever are.
    largest: Shares,
}

/// Whose share is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    Client,
    Network,
}

/// Where a connection stands: its slot in its shard, times [`SHARDS`], plus its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u32);

/// A connection as it is found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) conn: ConnHandle,
    /// In milliseconds of the guard.
    pub(crate) opened: u64,
    /// Whether it is the newest of its client.
    pub(crate) is_newest: bool,
    /// Whether it is above the share of its client or of its network. See
    /// [`Registry::mark_excess`].
    pub(crate) is_excess: bool,
}

/// A client or a network has as many connections as it may, and none of them can be evicted.
#[derive(Debug)]
pub(crate) struct ShareFull {
    pub(crate) share: Share,
    pub(crate) connections: u32,
}

/// Who is asking for a place, by hashes.
#[derive(Clone, Copy)]
struct Asking {
    client: u64,
    network: u64,
}

struct Shard {
    slots: Vec<Slot>,
    /// The first slot that is free; its `older` is the next one.
    free: u32,
    /// The newest connections of the clients, by hash: the first of each chain. Their number is a
    /// power of two.
    buckets: Vec<u32>,
    /// How many clients there are in the chains.
    clients: usize,
    /// How many connections each network has, by half a hash: where two have the same, in one of
    /// a billion pairs, they have one share.
    networks: HashMap<u32, u32>,
    /// Where the next search through the slots begins.
    cursor: usize,
    hasher: RandomState,
}

/// A connection and its neighbours among those of its client: a ring.
struct Slot {
    /// Its socket holds one as well, and gives back the slot before it lets go of it.
    conn: Option<ConnHandle>,
    opened: u64,
    /// Of the oldest, the newest.
    older: u32,
    /// Of the newest, the oldest.
    newer: u32,
    /// How many the client has, if this is the newest of them; else 0.
    connections: u32,
    /// The newest of the next client in the chain, or [`UNLISTED`].
    next: u32,
}

// === Registry ===

impl Registry {
    pub(crate) fn new(network: Prefix, largest: Shares) -> Self {
        let hasher = RandomState::new();
        let shards = std::array::from_fn(|_| Mutex::new(Shard::new(hasher.clone())));
        Self {
            shards,
            hasher,
            network,
            largest,
        }
    }

    /// Takes `conn` in. Where its client or its network has its share already, also returns whose
    /// share that is and the one of theirs that is to go.
    pub(crate) fn enter(
        &self,
        conn: &ConnHandle,
        opened: u64,
        shares: Option<Shares>,
    ) -> Result<(Place, Option<(Share, Found)>), ShareFull> {
        let asking = self.asking(conn);
        // Without shares there are no rings, and everybody may be one client.
        let shard = shard_of(if shares.is_some() {
            asking.network
        } else {
            conn.id()
        });
        // Handles are dropped after the lock is given back: one may turn out to be the last.
        let mut looked_at = Vec::new();
        let mut locked = self.shards[shard].lock();
        let mut evicted = None;
        if let Some(shares) = shares {
            let newest = locked.newest(asking.client, conn.client());
            // Connections that are told to go and are still here must not add up without end.
            let most_at_all = |most: u32, largest: u32| (most, most.saturating_mul(2).max(largest));
            let most = most_at_all(shares.client, self.largest.client);
            let own = locked.make_room(newest, most, opened, &mut looked_at)?;
            evicted = own.map(|at| (Share::Client, at));
            if evicted.is_none() {
                let is_ours = |of: &ConnHandle| self.asking(of).network == asking.network;
                let found = locked.make_room_in_network(
                    asking.network,
                    most_at_all(shares.network, self.largest.network),
                    opened,
                    is_ours,
                    &mut looked_at,
                )?;
                evicted = found.map(|at| (Share::Network, at));
            }
        }
        let slot = locked.insert(conn, opened, shares.map(|_| asking));
        let evicted = evicted.map(|(share, at)| (share, looked_at.swap_remove(at)));
        Ok((Place::new(shard, slot), evicted))
    }

    /// Whether the client of `conn`, or its network, has its share already.
    pub(crate) fn has(&self, conn: &ConnHandle, shares: Shares) -> bool {
        let asking = self.asking(conn);
        let shard = self.shards[shard_of(asking.network)].lock();
        let newest = shard.newest(asking.client, conn.client());
        newest.is_some_and(|at| shard.slots[at as usize].connections >= shares.client)
            || shard.of_network(asking.network) >= shares.network
    }

    /// Forgets the connection that stands at `place`, and says when it was opened.
    pub(crate) fn leave(&self, place: Place, conn: &ConnHandle) -> u64 {
        let asking = self.asking(conn);
        self.shards[place.shard()]
            .lock()
            .remove(place.slot(), asking, conn.client())
    }

    fn asking(&self, conn: &ConnHandle) -> Asking {
        Asking {
            client: self.hasher.hash_one(Some(conn.client())),
            network: self.hasher.hash_one(self.network_of(conn)),
        }
    }

    pub(crate) fn network_of(&self, conn: &ConnHandle) -> ClientKey {
        ClientKey::address(conn.peer().ip(), self.network)
    }

    /// Appends everybody in one of the [`SHARDS`], those of one client behind its newest.
    pub(crate) fn copy(&self, shard: usize, into: &mut Vec<Found>) {
        let shard = self.shards[shard % SHARDS].lock();
        for newest in shard.slots.iter().filter(|slot| slot.conn.is_some()) {
            let mut slot = newest;
            for _ in 0..newest.connections {
                if let Some(found) = slot.found() {
                    into.push(found);
                }
                slot = &shard.slots[slot.older as usize];
            }
        }
    }

    /// Marks, of all that were copied from `shard`, the newest connections of those clients and
    /// networks that have more than `shares`, not counting connections that are about to go.
    /// `is_listed` tells for which connections shares count.
    pub(crate) fn mark_excess(
        &self,
        shard: usize,
        found: &mut [Found],
        shares: Shares,
        is_listed: impl Fn(&ConnHandle) -> bool,
    ) {
        let stays =
            |found: &Found| found.conn.state().decision().is_none() && is_listed(&found.conn);
        for client in found.chunk_by_mut(|_, next| !next.is_newest) {
            if client.len() <= shares.client as usize {
                continue;
            }
            let staying = client.iter().filter(|found| stays(found)).count();
            let excess = staying.saturating_sub(shares.client as usize);
            let newest = client.iter_mut().filter(|found| stays(found)).take(excess);
            newest.for_each(|found| found.is_excess = true);
        }
        let mut networks = self.shards[shard % SHARDS]
            .lock()
            .networks_above(shares.network);
        if networks.is_empty() {
            return;
        }
        let network = |found: &Found| half(self.asking(&found.conn).network);
        let listed = found.iter().filter(|found| is_listed(&found.conn));
        for gone in listed.filter(|found| found.is_excess || !stays(found)) {
            if let Some(excess) = networks.get_mut(&network(gone)) {
                *excess = excess.saturating_sub(1);
            }
        }
        for found in found
            .iter_mut()
            .filter(|found| stays(found) && !found.is_excess)
        {
            if let Some(excess) = networks
                .get_mut(&network(found))
                .filter(|excess| **excess > 0)
            {
                *excess -= 1;
                found.is_excess = true;
            }
        }
    }

    /// Appends `most` connections that are not told to go, or as many as [`SCANNED`] slots have,
    /// other ones for every `turn`.
    pub(crate) fn copy_few(&self, turn: usize, most: usize, into: &mut Vec<Found>) {
        let mut left = SCANNED;
        for step in 0..SHARDS {
            let shard = self.shards[turn.wrapping_add(step) % SHARDS].lock();
            let length = shard.slots.len();
            let start = (turn / SHARDS)
                .wrapping_mul(most)
                .checked_rem(length)
                .unwrap_or(0);
            for slot in shard
                .slots
                .iter()
                .cycle()
                .skip(start)
                .take(left.min(length))
            {
                let stays = |conn: &ConnHandle| conn.state().decision().is_none();
                if slot.conn.as_ref().is_some_and(stays) {
                    into.extend(slot.found());
                }
                left -= 1;
                if left == 0 || into.len() == most {
                    return;
                }
            }
        }
    }

    /// How many slots and clients are kept. For tests.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> (usize, usize) {
        let each = self.shards.iter().map(|shard| {
            let shard = shard.lock();
            (
                shard.slots.iter().filter_map(Slot::found).count(),
                shard.clients,
            )
        });
        each.fold((0, 0), |sum, each| (sum.0 + each.0, sum.1 + each.1))
    }
}

/// The half that has nothing to do with the shard.
fn half(hash: u64) -> u32 {
    (hash >> 32) as u32
}

fn shard_of(hash: u64) -> usize {
    (hash % SHARDS as u64) as usize
}

// === Shard ===

impl Shard {
    fn new(hasher: RandomState) -> Self {
        Self {
            slots: Vec::new(),
            free: NONE,
            buckets: Vec::new(),
            clients: 0,
            networks: HashMap::new(),
            cursor: 0,
            hasher,
        }
    }

    /// Whom to part with of the client whose newest connection this is, if of anybody, so that
    /// there is room for one more: a place in `looked_at`.
    fn make_room(
        &self,
        newest: Option<u32>,
        (most, most_at_all): (u32, u32),
        now: u64,
        looked_at: &mut Vec<Found>,
    ) -> Result<Option<usize>, ShareFull> {
        let Some(newest) = newest else {
            return Ok(None);
        };
        let Slot {
            connections,
            newer: oldest,
            ..
        } = &self.slots[newest as usize];
        if *connections < most {
            return Ok(None);
        }
        let full = ShareFull {
            share: Share::Client,
            connections: *connections,
        };
        if *connections >= most_at_all {
            return Err(full);
        }
        let mut going = 0;
        let mut best: Option<(EvictionRank, usize)> = None;
        // From both ends: what lives for hours gathers at the old one.
        let (mut oldest, mut newest) = (*oldest, newest);
        for step in 0..SCANNED.min(*connections as usize) {
            let at = if step % 2 == 0 { oldest } else { newest };
            let slot = &self.slots[at as usize];
            if step % 2 == 0 {
                oldest = slot.newer;
            } else {
                newest = slot.older;
            }
            let Some(found) = slot.found() else { continue };
            let state = found.conn.state();
            if state.decision().is_some() {
                // One that has not gone for seconds is not about to.
                going += u32::from(state.is_close_pending());
            } else if let Some(rank) =
                EvictionRank::of(&state.stats(), now.saturating_sub(slot.opened), false)
                && best.as_ref().is_none_or(|(least, _)| rank < *least)
            {
                best = Some((rank, looked_at.len()));
            }
            looked_at.push(found);
        }
        if connections.saturating_sub(going) < most {
            return Ok(None); // There is room as soon as they are gone.
        }
        best.map(|(_, at)| Some(at)).ok_or(full)
    }

    /// The same for a network. Its connections are in this shard, and a part of it is looked at,
    /// another one each time; more of it where none of them is found.
    fn make_room_in_network(
        &mut self,
        network: u64,
        (most, most_at_all): (u32, u32),
        now: u64,
        is_ours: impl Fn(&ConnHandle) -> bool,
        looked_at: &mut Vec<Found>,
    ) -> Result<Option<usize>, ShareFull> {
        let connections = self.of_network(network);
        if connections < most {
            return Ok(None);
        }
        let full = ShareFull {
            share: Share::Network,
            connections,
        };
        if connections >= most_at_all {
            return Err(full);
        }
        let mut best: Option<(EvictionRank, usize)> = None;
        for step in 0..MAX_SCANNED.min(self.slots.len()) {
            if step >= SCANNED && best.is_some() {
                break;
            }
            self.cursor = (self.cursor + 1) % self.slots.len();
            let slot = &self.slots[self.cursor];
            let conn = slot
                .conn
                .as_ref()
                .filter(|conn| slot.next != UNLISTED && is_ours(conn));
            let Some(state) = conn.map(ConnHandle::state) else {
                continue;
            };
            if state.decision().is_none()
                && let Some(rank) =
                    EvictionRank::of(&state.stats(), now.saturating_sub(slot.opened), false)
                && best.as_ref().is_none_or(|(least, _)| rank < *least)
            {
                best = Some((rank, looked_at.len()));
                looked_at.extend(slot.found());
            }
        }
        best.map(|(_, at)| Some(at)).ok_or(full)
    }

    /// By how many connections each network has more than `most`.
    fn networks_above(&self, most: u32) -> HashMap<u32, u32> {
        let above = self
            .networks
            .iter()
            .filter(|(_, connections)| **connections > most);
        above
            .map(|(network, connections)| (*network, connections - most))
            .collect()
    }

    fn of_network(&self, network: u64) -> u32 {
        self.networks.get(&half(network)).copied().unwrap_or(0)
    }

    /// The newest connection of `client`.
    fn newest(&self, hash: u64, client: ClientKey) -> Option<u32> {
        let mut at = *self.buckets.get(self.bucket(hash))?;
        while let Some(slot) = self.slots.get(at as usize) {
            if slot
                .conn
                .as_ref()
                .is_some_and(|conn| conn.client() == client)
            {
                return Some(at);
            }
            at = slot.next;
        }
        None
    }

    fn bucket(&self, hash: u64) -> usize {
        (hash / SHARDS as u64) as usize & self.buckets.len().wrapping_sub(1)
    }

    /// What leads to the slot `at`: a bucket, or the `next` of another slot.
    fn link_to(&mut self, at: u32, hash: u64) -> Option<&mut u32> {
        let bucket = self.bucket(hash);
        let mut before = *self.buckets.get(bucket)?;
        if before == at {
            return self.buckets.get_mut(bucket);
        }
        loop {
            let next = self.slots.get(before as usize)?.next;
            if next == at {
                return self
                    .slots
                    .get_mut(before as usize)
                    .map(|slot| &mut slot.next);
            }
            before = next;
        }
    }

    /// Takes `conn` in: where shares count, into the ring of its client, else into one of its own.
    fn insert(&mut self, conn: &ConnHandle, opened: u64, asking: Option<Asking>) -> u32 {
        let newest = asking.and_then(|asking| self.newest(asking.client, conn.client()));
        let mut at = self.free;
        if at == NONE {
            at = self.slots.len() as u32;
            if self.slots.len() == self.slots.capacity() {
                // By a sixteenth, not by doubling: there may be ten thousand of them.
                self.slots.reserve_exact((self.slots.len() / 16).max(16));
            }
        }
        let conn = Some(conn.clone());
        let next = if asking.is_some() { NONE } else { UNLISTED };
        let slot = Slot {
            conn,
            opened,
            older: at,
            newer: at,
            connections: 1,
            next,
        };
        if let Some(free) = self.slots.get_mut(at as usize) {
            self.free = std::mem::replace(free, slot).older;
        } else {
            self.slots.push(slot);
        }
        if let Some(Asking { client, network }) = asking {
            match newest {
                Some(newest) => self.lead(at, newest, client),
                None => self.chain(at, client),
            }
            *self.networks.entry(half(network)).or_insert(0) += 1;
        }
        at
    }

    /// Puts `at` into the ring of `newest` and in its place.
    fn lead(&mut self, at: u32, newest: u32, hash: u64) {
        let Slot {
            newer: oldest,
            connections,
            next,
            ..
        } = self.slots[newest as usize];
        let slot = &mut self.slots[at as usize];
        (slot.older, slot.newer) = (newest, oldest);
        (slot.connections, slot.next) = (connections + 1, next);
        self.slots[oldest as usize].older = at;
        let before = &mut self.slots[newest as usize];
        (before.newer, before.connections, before.next) = (at, 0, NONE);
        if let Some(link) = self.link_to(newest, hash) {
            *link = at;
        }
    }

    /// Begins the ring of a client.
    fn chain(&mut self, at: u32, hash: u64) {
        if self.clients >= self.buckets.len() {
            self.spread();
        }
        let bucket = self.bucket(hash);
        self.slots[at as usize].next = std::mem::replace(&mut self.buckets[bucket], at);
        self.clients += 1;
    }

    /// Doubles the buckets, so that a chain has one client or two.
    fn spread(&mut self) {
        let doubled = (2 * self.buckets.len()).max(16);
        for mut at in std::mem::replace(&mut self.buckets, vec![NONE; doubled]) {
            while at != NONE {
                let slot = &self.slots[at as usize];
                let (moved, client) = (at, slot.conn.as_ref().map(|conn| conn.client()));
                at = slot.next;
                let bucket = self.bucket(self.hasher.hash_one(client));
                let first = std::mem::replace(&mut self.buckets[bucket], moved);
                self.slots[moved as usize].next = first;
            }
        }
    }

    /// Forgets what stands in the slot, and says when it was opened.
    fn remove(&mut self, at: u32, asking: Asking, client: ClientKey) -> u64 {
        let Asking {
            client: hash,
            network,
        } = asking;
        let Slot {
            opened,
            older,
            newer,
            connections,
            next,
            ..
        } = self.slots[at as usize];
        self.slots[older as usize].newer = newer;
        self.slots[newer as usize].older = older;
        let is_listed = next != UNLISTED;
        if is_listed && let Entry::Occupied(mut count) = self.networks.entry(half(network)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        if connections == 0 {
            if let Some(newest) = self.newest(hash, client) {
                self.slots[newest as usize].connections -= 1;
            }
        } else if connections > 1 {
            // The next newest leads.
            (
                self.slots[older as usize].connections,
                self.slots[older as usize].next,
            ) = (connections - 1, next);
            if let Some(link) = self.link_to(at, hash) {
                *link = older;
            }
        } else if let Some(link) = self.link_to(at, hash) {
            *link = next;
            self.clients -= 1;
        }
        let slot = &mut self.slots[at as usize];
        // Its socket has another one: nothing ends here under the lock.
        (slot.conn, slot.older) = (None, self.free);
        self.free = at;
        opened
    }
}

// === Place ===

impl Place {
    /// Nowhere.
    pub(crate) const NOWHERE: Self = Self(NONE);

    fn new(shard: usize, slot: u32) -> Self {
        // There are 2^24 connections at most, or as many as there are files in shadow mode.
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
    fn found(&self) -> Option<Found> {
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
mod tests {
    use super::*;
    use crate::connection::decision::{CloseDecision, CloseMode};
    use palisade_core::Reason;

    fn registry() -> Registry {
        Registry::new(
            Prefix::new(24, 48).unwrap(),
            Shares {
                client: 0,
                network: 0,
            },
        )
    }

    fn of_client(client: u32) -> Option<Shares> {
        Some(Shares {
            client,
            network: u32::MAX,
        })
    }

    fn conn(last: u8) -> ConnHandle {
        conn_of([192, 0, 2, last])
    }

    fn conn_of(peer: [u8; 4]) -> ConnHandle {
        let conn = ConnHandle::new((peer, 1).into(), None, Prefix::default(), None);
        conn.set_tracked();
        conn
    }

    #[test]
    fn nothing_stays_of_whoever_is_gone_in_whatever_order() {
        let registry = registry();
        let conns: Vec<_> = (0..240).map(|n| conn((n % 7) as u8)).collect();
        let enter = |at: u64| {
            registry
                .enter(&conns[at as usize], at, of_client(1000))
                .unwrap()
                .0
        };
        let places: Vec<_> = (0..240).map(enter).collect();
        assert_eq!(registry.kept(), (240, 7));
        // 101 is prime: every index once, scattered.
        for step in 0..240 {
            let at = step * 101 % 240;
            registry.leave(places[at], &conns[at]);
        }
        assert_eq!(registry.kept(), (0, 0));
        // And the slots are used again.
        (0..240).for_each(|at| _ = enter(at));
        let slots: usize = registry
            .shards
            .iter()
            .map(|shard| shard.lock().slots.len())
            .sum();
        assert_eq!(slots, 240);
    }

    #[test]
    fn rings_and_chains_hold_whoever_comes_and_goes_in_between() {
        let registry = registry();
        let mut open: Vec<(Place, ConnHandle)> = Vec::new();
        let mut random = 1u64;
        for step in 0..20_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let random = (random >> 33) as usize;
            // Grows to some hundred, shrinks to none, and again.
            if (step / 1000 % 2 == 0 && !random.is_multiple_of(3)) || open.is_empty() {
                let next = conn((random % 60) as u8);
                let shares = if random.is_multiple_of(5) {
                    None
                } else {
                    of_client(u32::MAX)
                };
                open.push((registry.enter(&next, step, shares).unwrap().0, next));
            } else {
                let (place, gone) = open.swap_remove(random % open.len());
                registry.leave(place, &gone);
            }
            assert_eq!(registry.kept().0, open.len());
        }
        let mut counted = 0;
        for shard in &registry.shards {
            let shard = shard.lock();
            let taken = shard
                .slots
                .iter()
                .enumerate()
                .filter(|(_, slot)| slot.conn.is_some());
            for (at, slot) in taken {
                counted += slot.connections;
                assert_eq!(shard.slots[slot.older as usize].newer, at as u32);
                assert_eq!(shard.slots[slot.newer as usize].older, at as u32);
            }
        }
        assert_eq!(counted, open.len() as u32);
        for (place, gone) in open.drain(..) {
            registry.leave(place, &gone);
        }
        assert_eq!(registry.kept(), (0, 0));
    }

    #[test]
    fn a_client_at_its_limit_gives_up_its_own_least_useful() {
        let registry = registry();
        let neighbour = conn(2);
        registry.enter(&neighbour, 0, of_client(2)).unwrap();
        let (working, silent, next) = (conn(1), conn(1), conn(1));
        let _request = working.begin_request(false);
        assert!(
            registry
                .enter(&working, 1, of_client(2))
                .unwrap()
                .1
                .is_none()
        );
        assert!(
            registry
                .enter(&silent, 2, of_client(2))
                .unwrap()
                .1
                .is_none()
        );
        let (share, evicted) = registry.enter(&next, 3, of_client(2)).unwrap().1.unwrap();
        assert_eq!(share, Share::Client);
        assert_eq!(evicted.conn.id(), silent.id());
    }

    #[test]
    fn a_client_whose_connections_all_work_gets_no_further_one() {
        let registry = registry();
        let conns = [conn(1), conn(1)];
        let _requests = conns.each_ref().map(|conn| conn.begin_request(false));
        conns
            .iter()
            .for_each(|conn| _ = registry.enter(conn, 0, of_client(2)).unwrap());
        let full = registry.enter(&conn(1), 0, of_client(2)).unwrap_err();
        assert_eq!(full.connections, 2);
        assert!(registry.enter(&conn(2), 0, of_client(2)).is_ok());
    }

    #[test]
    fn those_that_can_be_evicted_are_found_behind_many_that_work() {
        let registry = registry();
        let conns: Vec<_> = (0..200).map(|_| conn(1)).collect();
        let _requests: Vec<_> = conns[..150]
            .iter()
            .map(|conn| conn.begin_request(false))
            .collect();
        conns
            .iter()
            .for_each(|conn| _ = registry.enter(conn, 0, of_client(200)).unwrap());
        let (_, evicted) = registry
            .enter(&conn(1), 0, of_client(200))
            .unwrap()
            .1
            .unwrap();
        assert!(
            conns[150..]
                .iter()
                .any(|idle| idle.id() == evicted.conn.id())
        );
    }

    #[test]
    fn a_network_at_its_limit_gives_up_its_own_least_useful_and_no_neighbour() {
        let registry = registry();
        let of = Shares {
            client: 3,
            network: 4,
        };
        let shares = Some(of);
        let neighbours: Vec<_> = (0..30).map(|n| conn_of([198, 51, n, 1])).collect();
        neighbours
            .iter()
            .for_each(|conn| _ = registry.enter(conn, 0, shares).unwrap());
        let own: Vec<_> = (0..4).map(conn).collect();
        let requests: Vec<_> = own[..3]
            .iter()
            .map(|conn| conn.begin_request(false))
            .collect();
        for conn in &own {
            assert!(registry.enter(conn, 1, shares).unwrap().1.is_none());
        }
        assert!(registry.has(&conn(9), of));
        assert!(!registry.has(&neighbours[0], of));
        let next = conn(9);
        let (place, evicted) = registry.enter(&next, 2, shares).unwrap();
        let (share, evicted) = evicted.unwrap();
        assert_eq!((share, evicted.conn.id()), (Share::Network, own[3].id()));
        // Once all of them work there is nobody to give up.
        let _more = [own[3].begin_request(false), next.begin_request(false)];
        let full = registry.enter(&conn(10), 3, shares).unwrap_err();
        assert_eq!((full.share, full.connections), (Share::Network, 5));
        assert!(
            registry
                .enter(&conn_of([203, 0, 113, 1]), 3, shares)
                .is_ok()
        );
        // And whoever goes makes room.
        drop(requests);
        registry.leave(place, &next);
        assert!(registry.enter(&conn(10), 4, shares).unwrap().1.is_some());
    }

    #[test]
    fn those_of_a_network_who_are_told_to_go_do_not_add_up_either() {
        let registry = registry();
        let shares = Some(Shares {
            client: 1,
            network: 4,
        });
        let verdict = CloseDecision {
            reason: Reason::ConnectionEvicted,
            mode: CloseMode::Graceful,
        };
        let mut conns = Vec::new();
        let refused = (0..u8::MAX).find_map(|last| {
            conns.push(conn(last));
            match registry.enter(&conns[last as usize], 0, shares) {
                Ok((_, evicted)) => {
                    evicted.inspect(|(_, found)| _ = found.conn.state().request_close(verdict));
                    None
                }
                Err(full) => Some(full.connections),
            }
        });
        assert_eq!(refused, Some(8));
    }

    #[test]
    fn where_one_is_about_to_go_no_other_has_to() {
        let registry = registry();
        let conns = [conn(1), conn(1), conn(1)];
        for conn in &conns {
            assert!(registry.enter(conn, 0, of_client(3)).unwrap().1.is_none());
        }
        let idle = CloseDecision {
            reason: Reason::Idle,
            mode: CloseMode::Graceful,
        };
        conns[1].state().set_close_pending();
        conns[1].state().request_close(idle);
        let next = conn(1);
        assert!(registry.enter(&next, 0, of_client(3)).unwrap().1.is_none());
        // If it does not go, another one has to.
        assert!(conns[1].state().take_close_pending());
        assert!(
            registry
                .enter(&conn(1), 0, of_client(3))
                .unwrap()
                .1
                .is_some()
        );
    }

    #[test]
    fn those_who_are_told_to_go_do_not_add_up() {
        let registry = registry();
        let verdict = CloseDecision {
            reason: Reason::ConnectionEvicted,
            mode: CloseMode::Graceful,
        };
        let mut conns = Vec::new();
        let refused = loop {
            let next = conn(1);
            match registry.enter(&next, 0, of_client(4)) {
                Ok((_, evicted)) => {
                    if let Some((_, Found { conn, .. })) = evicted {
                        conn.state().request_close(verdict);
                    }
                    conns.push(next); // And none of them ever goes.
                }
                Err(full) => break full,
            }
        };
        assert_eq!((refused.connections, conns.len()), (8, 8));
    }

    #[test]
    fn those_of_one_client_are_copied_together() {
        let registry = registry();
        let conns: Vec<_> = (0..100).map(|n| conn(n % 7)).collect();
        for (n, conn) in conns.iter().enumerate() {
            let shares = if n < 90 { of_client(100) } else { None };
            registry.enter(conn, 0, shares).unwrap();
        }
        let mut all = Vec::new();
        (0..SHARDS).for_each(|shard| registry.copy(shard, &mut all));
        assert_eq!(all.len(), 100);
        let clients: Vec<_> = all.chunk_by(|_, next| !next.is_newest).collect();
        // Whoever has no share is by himself.
        assert_eq!(clients.len(), 7 + 10);
        for client in clients {
            assert!(
                client
                    .iter()
                    .all(|one| one.conn.client() == client[0].conn.client())
            );
        }
    }

    #[test]
    fn a_few_are_other_ones_each_time_and_never_too_many() {
        let registry = registry();
        let conns: Vec<_> = (0..200).map(conn).collect();
        conns
            .iter()
            .for_each(|conn| _ = registry.enter(conn, 0, None).unwrap());
        let mut seen = std::collections::HashSet::new();
        for turn in 0..200 {
            let mut few = Vec::new();
            registry.copy_few(turn, 32, &mut few);
            assert!(few.len() <= 32);
            seen.extend(few.iter().map(|found| found.conn.id()));
        }
        assert_eq!(seen.len(), 200);
    }
}
