//! Who is connected.

use crate::judge::spare;
use palisade_core::{ClientKey, ConnInfo};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{Arc, Weak},
};

/// Locks, each held for a few steps by whoever connects, goes, or sweeps.
pub(crate) const SHARDS: usize = 16;
/// So many connections of one client are looked at to find the one that can best be spared.
const SCANNED: usize = 128;
/// The end of a list.
const NONE: u32 = u32::MAX;

/// Weak handles on all connections, those of one client in one shard.
pub(crate) struct Registry {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

/// Where a connection stands: its slot in its shard, times [`SHARDS`], plus its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u32);

/// A connection as it is found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) conn: Arc<ConnInfo>,
    /// In milliseconds of the guard.
    pub(crate) opened: u64,
}

/// One client has as many connections as it may, and none of them can be spared.
#[derive(Debug)]
pub(crate) struct ClientFull {
    pub(crate) connections: u32,
}

struct Shard {
    slots: Vec<Slot>,
    /// The first slot that is free; its `older` is the next one.
    free: u32,
    clients: HashMap<ClientKey, Client>,
}

/// A connection and its neighbours among those of its client.
struct Slot {
    conn: Weak<ConnInfo>,
    opened: u64,
    older: u32,
    newer: u32,
}

/// All connections of one client. Gone with the last one.
struct Client {
    connections: u32,
    oldest: u32,
    newest: u32,
}

// === Registry ===

impl Registry {
    pub(crate) fn new() -> Self {
        Self { shards: Default::default(), hasher: RandomState::new() }
    }

    /// Takes `conn` in. Where its client has `most` already, also returns the one of his that is
    /// to go.
    pub(crate) fn enter(
        &self,
        conn: &Arc<ConnInfo>,
        opened: u64,
        most: Option<u32>,
    ) -> Result<(Place, Option<Found>), ClientFull> {
        // Without a limit there are no lists, and everybody may be one client.
        let by = if most.is_some() { self.hasher.hash_one(conn.client()) } else { conn.id() };
        let shard = shard_of(by);
        // Handles are dropped after the lock is given back: one may turn out to be the last.
        let mut looked_at = Vec::new();
        let mut locked = self.shards[shard].lock();
        let spared = match most {
            Some(most) => locked.make_room(conn.client(), most, &mut looked_at)?,
            None => None,
        };
        let slot = locked.insert(conn, opened, most.is_some());
        Ok((Place::new(shard, slot), spared.map(|best| looked_at.swap_remove(best))))
    }

    /// Whether the client of `conn` has `most` connections already.
    pub(crate) fn has(&self, conn: &ConnInfo, most: u32) -> bool {
        let shard = self.shards[shard_of(self.hasher.hash_one(conn.client()))].lock();
        shard.clients.get(&conn.client()).is_some_and(|client| client.connections >= most)
    }

    /// Forgets the connection that stands at `place`, and says when it was opened.
    pub(crate) fn leave(&self, place: Place, conn: &ConnInfo) -> u64 {
        let forgotten = self.shards[place.shard()].lock().remove(place.slot(), conn);
        // With the lock given back: it may be the last handle.
        forgotten.map_or(0, |(_conn, opened)| opened)
    }

    /// Appends everybody in one of the [`SHARDS`].
    pub(crate) fn copy(&self, shard: usize, into: &mut Vec<Found>) {
        let shard = self.shards[shard % SHARDS].lock();
        into.extend(shard.slots.iter().filter_map(Slot::found));
    }

    /// Appends the connections in `most` of all slots, other ones for every `turn`.
    pub(crate) fn copy_few(&self, turn: usize, most: usize, into: &mut Vec<Found>) {
        let mut left = most;
        for step in 0..SHARDS {
            let shard = self.shards[turn.wrapping_add(step) % SHARDS].lock();
            let length = shard.slots.len();
            let looked_at = left.min(length);
            if length > 0 {
                let start = (turn / SHARDS).wrapping_mul(most) % length;
                let around = shard.slots.iter().cycle().skip(start).take(looked_at);
                into.extend(around.filter_map(Slot::found));
            }
            left -= looked_at;
            if left == 0 {
                break;
            }
        }
    }

    /// How many slots and clients are kept. For tests.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> (usize, usize) {
        let each = self.shards.iter().map(|shard| {
            let shard = shard.lock();
            (shard.slots.iter().filter_map(Slot::found).count(), shard.clients.len())
        });
        each.fold((0, 0), |sum, each| (sum.0 + each.0, sum.1 + each.1))
    }
}

fn shard_of(hash: u64) -> usize {
    (hash % SHARDS as u64) as usize
}

// === Shard ===

impl Shard {
    /// Whom of `client`'s to part with, if somebody, so that there is room for one more: a place
    /// in `looked_at`.
    fn make_room(
        &self,
        client: ClientKey,
        most: u32,
        looked_at: &mut Vec<Found>,
    ) -> Result<Option<usize>, ClientFull> {
        let Some(Client { connections, oldest, newest }) = self.clients.get(&client) else {
            return Ok(None);
        };
        if *connections < most {
            return Ok(None);
        }
        let full = ClientFull { connections: *connections };
        // Those that are told to go and are still here must not add up without end.
        if *connections >= most.saturating_mul(2) {
            return Err(full);
        }
        let mut going = 0;
        let mut best: Option<((u8, u64), usize)> = None;
        // From both ends: what lives for hours gathers at the old one.
        let (mut oldest, mut newest) = (*oldest, *newest);
        for step in 0..SCANNED.min(*connections as usize) {
            let at = if step % 2 == 0 { oldest } else { newest };
            let Some(slot) = self.slots.get(at as usize) else { break };
            if step % 2 == 0 {
                oldest = slot.newer;
            } else {
                newest = slot.older;
            }
            let Some(found) = slot.found() else { continue };
            let state = found.conn.state();
            if state.verdict().is_some() {
                going += 1;
            } else if let Some(rank) = spare(&state.sample(), state.memory().since, slot.opened)
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

    fn insert(&mut self, conn: &Arc<ConnInfo>, opened: u64, listed: bool) -> u32 {
        let slot = Slot { conn: Arc::downgrade(conn), opened, older: NONE, newer: NONE };
        let mut at = self.free;
        if let Some(free) = self.slots.get_mut(at as usize) {
            self.free = std::mem::replace(free, slot).older;
        } else {
            at = self.slots.len() as u32;
            if self.slots.len() == self.slots.capacity() {
                // By a quarter, not by doubling: there may be ten thousand of them.
                self.slots.reserve_exact((self.slots.len() / 4).max(16));
            }
            self.slots.push(slot);
        }
        if listed {
            let client = self.clients.entry(conn.client());
            let client = client.or_insert(Client { connections: 0, oldest: at, newest: NONE });
            client.connections += 1;
            let older = std::mem::replace(&mut client.newest, at);
            if let Some(before) = self.slots.get_mut(older as usize) {
                before.newer = at;
            }
            self.slots[at as usize].older = older;
        }
        at
    }

    fn remove(&mut self, at: u32, conn: &ConnInfo) -> Option<(Weak<ConnInfo>, u64)> {
        let slot = self.slots.get_mut(at as usize)?;
        let (older, newer) = (slot.older, slot.newer);
        let forgotten = (std::mem::take(&mut slot.conn), slot.opened);
        (slot.older, slot.newer) = (self.free, NONE);
        self.free = at;
        if let Some(before) = self.slots.get_mut(older as usize) {
            before.newer = newer;
        }
        if let Some(after) = self.slots.get_mut(newer as usize) {
            after.older = older;
        }
        if let Some(client) = self.clients.get_mut(&conn.client()) {
            client.connections -= 1;
            if client.oldest == at {
                client.oldest = newer;
            }
            if client.newest == at {
                client.newest = older;
            }
            if client.connections == 0 {
                self.clients.remove(&conn.client());
            }
        }
        Some(forgotten)
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self { slots: Vec::new(), free: NONE, clients: HashMap::new() }
    }
}

// === Place ===

impl Place {
    /// Nowhere.
    pub(crate) const NOWHERE: Self = Self(NONE);

    fn new(shard: usize, slot: u32) -> Self {
        // There are 2^24 connections at most, or as many as there are files in shadow mode.
        Self(slot.saturating_mul(SHARDS as u32).saturating_add(shard as u32))
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
        Some(Found { conn: self.conn.upgrade()?, opened: self.opened })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::{ConnVerdict, Ending, Prefix, Reason};

    fn conn(last: u8) -> Arc<ConnInfo> {
        let conn = ConnInfo::new(([192, 0, 2, last], 1).into(), None, Prefix::default());
        conn.state().set_accounted();
        Arc::new(conn)
    }

    #[test]
    fn nothing_stays_of_whoever_is_gone_in_whatever_order() {
        let registry = Registry::new();
        let conns: Vec<_> = (0..240).map(|n| conn((n % 7) as u8)).collect();
        let enter = |at: u64| registry.enter(&conns[at as usize], at, Some(1000)).unwrap().0;
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
        let slots: usize = registry.shards.iter().map(|shard| shard.lock().slots.len()).sum();
        assert_eq!(slots, 240);
    }

    #[test]
    fn a_client_at_its_limit_gives_up_its_own_least_useful() {
        let registry = Registry::new();
        let neighbour = conn(2);
        registry.enter(&neighbour, 0, Some(2)).unwrap();
        let (working, silent, next) = (conn(1), conn(1), conn(1));
        let _request = working.begin_request(false);
        assert!(registry.enter(&working, 1, Some(2)).unwrap().1.is_none());
        assert!(registry.enter(&silent, 2, Some(2)).unwrap().1.is_none());
        let spared = registry.enter(&next, 3, Some(2)).unwrap().1.unwrap();
        assert_eq!(spared.conn.id(), silent.id());
    }

    #[test]
    fn a_client_whose_connections_all_work_gets_no_further_one() {
        let registry = Registry::new();
        let conns = [conn(1), conn(1)];
        let _requests = conns.each_ref().map(|conn| conn.begin_request(false));
        conns.iter().for_each(|conn| _ = registry.enter(conn, 0, Some(2)).unwrap());
        let full = registry.enter(&conn(1), 0, Some(2)).unwrap_err();
        assert_eq!(full.connections, 2);
        assert!(registry.enter(&conn(2), 0, Some(2)).is_ok());
    }

    #[test]
    fn those_that_can_be_spared_are_found_behind_many_that_work() {
        let registry = Registry::new();
        let conns: Vec<_> = (0..200).map(|_| conn(1)).collect();
        let _requests: Vec<_> = conns[..150].iter().map(|conn| conn.begin_request(false)).collect();
        conns.iter().for_each(|conn| _ = registry.enter(conn, 0, Some(200)).unwrap());
        let spared = registry.enter(&conn(1), 0, Some(200)).unwrap().1.unwrap();
        assert!(conns[150..].iter().any(|idle| idle.id() == spared.conn.id()));
    }

    #[test]
    fn where_one_is_about_to_go_no_other_has_to() {
        let registry = Registry::new();
        let conns = [conn(1), conn(1), conn(1)];
        for conn in &conns {
            assert!(registry.enter(conn, 0, Some(3)).unwrap().1.is_none());
        }
        let idle = ConnVerdict { reason: Reason::Idle, ending: Ending::Finish };
        conns[1].state().end(idle);
        assert!(registry.enter(&conn(1), 0, Some(3)).unwrap().1.is_none());
    }

    #[test]
    fn those_who_are_told_to_go_do_not_add_up() {
        let registry = Registry::new();
        let verdict = ConnVerdict { reason: Reason::ConnectionDisplaced, ending: Ending::Finish };
        let mut conns = Vec::new();
        let refused = loop {
            let next = conn(1);
            match registry.enter(&next, 0, Some(4)) {
                Ok((_, spared)) => {
                    if let Some(Found { conn, .. }) = spared {
                        conn.state().end(verdict);
                    }
                    conns.push(next); // And none of them ever goes.
                }
                Err(full) => break full,
            }
        };
        assert_eq!((refused.connections, conns.len()), (8, 8));
    }

    #[test]
    fn a_few_are_other_ones_each_time_and_never_too_many() {
        let registry = Registry::new();
        let conns: Vec<_> = (0..200).map(conn).collect();
        conns.iter().for_each(|conn| _ = registry.enter(conn, 0, None).unwrap());
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
