//! The TLS handshakes in progress, and the choice of the one that is evicted for a new one.

use palisade_conn::ConnHandle;
use palisade_core::{ClientKey, Prefix};
use std::{
    collections::{
        HashMap,
        hash_map::{Entry, RandomState},
    },
    hash::BuildHasher,
};

/// The most handshakes that one eviction examines. They are chosen at random.
const MAX_EXAMINED: usize = 64;
/// The most handshakes that a client may have in progress and never be a crowd.
const MIN_CROWD_LIMIT: usize = 4;
/// A client may have one in this many of all handshakes in progress and not be a crowd.
const CROWD_DIVISOR: usize = 64;
/// A network may have this many times the handshakes of a client and not be a crowd.
const NETWORK_FACTOR: usize = 4;
/// The address blocks that are counted as networks: /24 and /48.
const NETWORK_PREFIX: Prefix = match Prefix::new(24, 48) {
    Some(prefix) => prefix,
    None => panic!("the prefix is longer than an address"),
};

/// The handshakes in progress, counted by client and by network.
#[derive(Debug)]
pub(crate) struct Handshakes {
    max: usize,
    in_progress: Vec<Handshake>,
    /// The index in `in_progress` of each connection, by its id.
    indices: HashMap<u64, usize>,
    clients: KeyCounts,
    networks: KeyCounts,
    /// The state of the random number generator.
    random: u64,
}

#[derive(Debug)]
struct Handshake {
    conn: ConnHandle,
    /// The client and its network. `None` if the peer has no address.
    keys: Option<[ClientKey; 2]>,
}

/// The number of handshakes that each key has in progress. Keys without handshakes have no entry.
#[derive(Debug, Default)]
struct KeyCounts(HashMap<ClientKey, usize>);

/// The eviction order: the handshake with the highest rank is evicted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct EvictionRank {
    class: EvictionClass,
    of_client: usize,
    of_network: usize,
}

/// The first part of the eviction order, from the last class to be evicted to the first.
///
/// A handshake is silent if no byte has arrived. It belongs to a crowd if its client or its network
/// has too many handshakes in progress. Otherwise it is single.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EvictionClass {
    ActiveSingle,
    SilentSingle,
    ActiveCrowd,
    /// A silent single handshake while most of those examined are such. That is a flood from many
    /// addresses, whereas an active crowd may be an honest network behind one address.
    SilentSingleFlood,
    SilentCrowd,
}

// === Handshakes ===

impl Handshakes {
    /// Creates an empty set that holds at most `max` handshakes, at least 1.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max: max.max(1),
            in_progress: Vec::new(),
            indices: HashMap::new(),
            clients: KeyCounts::default(),
            networks: KeyCounts::default(),
            // Odd, because 0 is a fixed point of xorshift. A client cannot know the value.
            random: RandomState::new().hash_one(0u8) | 1,
        }
    }

    /// Adds a handshake. If the set is full, evicts another one and returns its connection.
    pub(crate) fn add(&mut self, conn: &ConnHandle) -> Option<ConnHandle> {
        let network = || ClientKey::address(conn.peer().ip(), NETWORK_PREFIX);
        let keys = conn.known_client().map(|client| [client, network()]);
        if let Some([client, network]) = keys {
            self.clients.increment(client);
            self.networks.increment(network);
        }
        // The new handshake has had no time to send anything, so it stays. The next new one may
        // evict it.
        let evicted = if self.in_progress.len() >= self.max {
            self.choose_evicted().map(|index| self.remove_at(index))
        } else {
            None
        };
        self.indices.insert(conn.id(), self.in_progress.len());
        self.in_progress.push(Handshake {
            conn: conn.clone(),
            keys,
        });
        evicted
    }

    /// Removes the handshake of the connection with this id, and returns the connection. Returns
    /// `None` if the handshake was evicted.
    pub(crate) fn remove(&mut self, conn_id: u64) -> Option<ConnHandle> {
        let index = *self.indices.get(&conn_id)?;
        Some(self.remove_at(index))
    }

    fn remove_at(&mut self, index: usize) -> ConnHandle {
        let Handshake { conn, keys } = self.in_progress.swap_remove(index);
        self.indices.remove(&conn.id());
        if let Some(moved) = self.in_progress.get(index) {
            self.indices.insert(moved.conn.id(), index);
        }
        if let Some([client, network]) = keys {
            self.clients.decrement(client);
            self.networks.decrement(network);
        }
        conn
    }

    /// Returns the index of the handshake to evict: the one with the highest rank of those
    /// examined. The order is random, not by age: an honest handshake takes some round trips, and
    /// if the oldest were evicted, none would outlive a flood.
    fn choose_evicted(&mut self) -> Option<usize> {
        let length = self.in_progress.len();
        let start = self.next_random();
        let indices: Vec<_> = (0..length.min(MAX_EXAMINED))
            .map(|nth| {
                if length <= MAX_EXAMINED {
                    nth.wrapping_add(start)
                } else {
                    self.next_random()
                }
            })
            .map(|random| random % length)
            .collect();
        let rank = |index| (self.rank(&self.in_progress[index]), index);
        let mut ranked: Vec<_> = indices.into_iter().map(rank).collect();
        let silent_singles = ranked
            .iter()
            .filter(|(rank, _)| rank.class == EvictionClass::SilentSingle)
            .count();
        if silent_singles > ranked.len() / 2 {
            for (rank, _) in &mut ranked {
                if rank.class == EvictionClass::SilentSingle {
                    rank.class = EvictionClass::SilentSingleFlood;
                }
            }
        }
        ranked
            .into_iter()
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, index)| index)
    }

    fn rank(&self, handshake: &Handshake) -> EvictionRank {
        let [of_client, of_network] = match handshake.keys {
            Some([client, network]) => [self.clients.get(client), self.networks.get(network)],
            None => [1, 1],
        };
        let max_of_client = MIN_CROWD_LIMIT.max(self.max / CROWD_DIVISOR);
        let max_of_network = max_of_client.saturating_mul(NETWORK_FACTOR);
        let is_crowd = of_client > max_of_client || of_network > max_of_network;
        let class = match (is_crowd, handshake.conn.has_read()) {
            (true, false) => EvictionClass::SilentCrowd,
            (true, true) => EvictionClass::ActiveCrowd,
            (false, false) => EvictionClass::SilentSingle,
            (false, true) => EvictionClass::ActiveSingle,
        };
        EvictionRank {
            class,
            of_client,
            of_network,
        }
    }

    /// Returns the next random number (xorshift64, Marsaglia 2003).
    fn next_random(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // Where `usize` has 32 bits, the lower ones are enough.
        self.random as usize
    }
}

// === KeyCounts ===

impl KeyCounts {
    fn get(&self, key: ClientKey) -> usize {
        self.0.get(&key).copied().unwrap_or(0)
    }

    fn increment(&mut self, key: ClientKey) {
        *self.0.entry(key).or_default() += 1;
    }

    fn decrement(&mut self, key: ClientKey) {
        if let Entry::Occupied(mut count) = self.0.entry(key) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests;
