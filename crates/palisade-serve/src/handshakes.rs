//! The TLS handshakes under way, and which of them makes room for another one.

use palisade_conn::ConnHandle;
use palisade_core::{ClientKey, Prefix};
use std::{
    collections::{
        HashMap,
        hash_map::{Entry, RandomState},
    },
    hash::BuildHasher,
};

/// The most handshakes that one eviction examines, picked at random.
const EXAMINED: usize = 64;
/// The most handshakes that a client may have under way and be no crowd, whatever `most` is.
const NO_CROWD: usize = 4;
/// The size of the networks that are counted.
const NETWORK: Prefix = match Prefix::new(24, 48) {
    Some(prefix) => prefix,
    None => panic!("an address has that many bits"),
};

/// Handshakes under way, counted by client and by network.
#[derive(Debug)]
pub(crate) struct Handshakes {
    most: usize,
    under_way: Vec<Handshake>,
    /// Where each connection stands in that.
    places: HashMap<u64, usize>,
    clients: Counts,
    networks: Counts,
    random: u64,
}

#[derive(Debug)]
struct Handshake {
    conn: ConnHandle,
    /// The client and its network; none where the peer has no address.
    keys: Option<[ClientKey; 2]>,
}

/// How many handshakes each key has under way, for those that have any.
#[derive(Debug, Default)]
struct Counts(HashMap<ClientKey, usize>);

/// The order in which handshakes are evicted, the highest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    class: Class,
    of_client: usize,
    of_network: usize,
}

/// Of a crowd: its client, or its network, has too many under way. Silent: no byte has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    SpokenAlone,
    SilentAlone,
    SpokenCrowd,
    /// The silent ones that are alone, where they are most of all: that is a flood from many
    /// addresses, and a crowd that speaks may be an honest network behind one address.
    SilentFlood,
    SilentCrowd,
}

// === Handshakes ===

impl Handshakes {
    /// Holds at most `most` handshakes, at least 1.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            under_way: Vec::new(),
            places: HashMap::new(),
            clients: Counts::default(),
            networks: Counts::default(),
            // Odd, and so never 0; a client cannot tell it.
            random: RandomState::new().hash_one(0u8) | 1,
        }
    }

    /// Adds a handshake. Where there were `most` already, removes another one and returns it.
    pub(crate) fn enter(&mut self, conn: &ConnHandle) -> Option<ConnHandle> {
        let network = || ClientKey::address(conn.peer().ip(), NETWORK);
        let keys = conn.known_client().map(|client| [client, network()]);
        if let Some([client, network]) = keys {
            self.clients.add(client);
            self.networks.add(network);
        }
        let is_full = self.under_way.len() >= self.most;
        // The new one has had no time to say anything, and stays: at worst it is the next to go.
        let evicted = if is_full {
            self.worst().map(|place| self.remove_at(place))
        } else {
            None
        };
        self.places.insert(conn.id(), self.under_way.len());
        self.under_way.push(Handshake {
            conn: conn.clone(),
            keys,
        });
        evicted
    }

    /// Removes the handshake of the connection with this id, unless it was evicted.
    pub(crate) fn leave(&mut self, id: u64) -> Option<ConnHandle> {
        self.places
            .get(&id)
            .copied()
            .map(|place| self.remove_at(place))
    }

    fn remove_at(&mut self, place: usize) -> ConnHandle {
        let Handshake { conn, keys } = self.under_way.swap_remove(place);
        self.places.remove(&conn.id());
        if let Some(moved) = self.under_way.get(place) {
            self.places.insert(moved.conn.id(), place);
        }
        if let Some([client, network]) = keys {
            self.clients.subtract(client);
            self.networks.subtract(network);
        }
        conn
    }

    /// Where the one stands that is to make room. Of equals any one: an honest handshake takes
    /// some round trips, and where the oldest goes none of them outlives a flood.
    fn worst(&mut self) -> Option<usize> {
        let length = self.under_way.len();
        let start = self.random();
        let places: Vec<_> = (0..length.min(EXAMINED))
            .map(|nth| {
                if length <= EXAMINED {
                    nth.wrapping_add(start)
                } else {
                    self.random()
                }
            })
            .map(|random| random % length)
            .collect();
        let rank = |place| (self.rank(&self.under_way[place]), place);
        let mut ranked: Vec<_> = places.into_iter().map(rank).collect();
        let silent = ranked
            .iter()
            .filter(|(rank, _)| rank.class == Class::SilentAlone)
            .count();
        if silent > ranked.len() / 2 {
            let alone = ranked
                .iter_mut()
                .filter(|(rank, _)| rank.class == Class::SilentAlone);
            alone.for_each(|(rank, _)| rank.class = Class::SilentFlood);
        }
        ranked
            .into_iter()
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, place)| place)
    }

    fn rank(&self, handshake: &Handshake) -> Rank {
        let [of_client, of_network] = match handshake.keys {
            Some([client, network]) => [self.clients.of(client), self.networks.of(network)],
            None => [1, 1],
        };
        let most = NO_CROWD.max(self.most / 64);
        let is_crowd = of_client > most || of_network > most.saturating_mul(4);
        let class = match (is_crowd, handshake.conn.has_read()) {
            (true, false) => Class::SilentCrowd,
            (true, true) => Class::SpokenCrowd,
            (false, false) => Class::SilentAlone,
            (false, true) => Class::SpokenAlone,
        };
        Rank {
            class,
            of_client,
            of_network,
        }
    }

    /// The next random number (xorshift64, Marsaglia 2003).
    fn random(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // The lower bits will do.
        self.random as usize
    }
}

// === Counts ===

impl Counts {
    fn of(&self, key: ClientKey) -> usize {
        self.0.get(&key).copied().unwrap_or(0)
    }

    fn add(&mut self, key: ClientKey) {
        *self.0.entry(key).or_default() += 1;
    }

    fn subtract(&mut self, key: ClientKey) {
        if let Entry::Occupied(mut count) = self.0.entry(key) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stub::{self, Stub};
    use palisade_conn::{ConnGuard, GuardedIo, Mode};
    use std::{
        cell::RefCell,
        collections::{BTreeMap, BTreeSet},
        net::Ipv4Addr,
        rc::Rc,
        sync::LazyLock,
    };

    /// A guard that admits every connection and counts its bytes.
    fn guard() -> ConnGuard {
        let guard = ConnGuard::builder().mode(Mode::Shadow).no_accept_rate();
        guard.max_connections(100_000).build().unwrap()
    }

    /// A handshake from `from`, silent or not.
    fn conn(from: impl Into<Ipv4Addr>, has_spoken: bool) -> ConnHandle {
        static GUARD: LazyLock<ConnGuard> = LazyLock::new(guard);
        let mut io = stub::connect(&GUARD, from);
        if has_spoken {
            stub::read(&mut io);
        }
        io.conn().clone()
    }

    /// A client of its own, in a network of its own.
    fn alone(nth: usize) -> [u8; 4] {
        let [.., a, b] = (nth as u32).to_be_bytes();
        [20, a, b, 1]
    }

    fn is_empty(handshakes: &Handshakes) -> bool {
        handshakes.under_way.is_empty()
            && handshakes.places.is_empty()
            && handshakes.clients.0.is_empty()
            && handshakes.networks.0.is_empty()
    }

    /// Plays a flood of 3,500 handshakes a second for 10 s, which never end by themselves, and
    /// beside it 40 honest ones a second. These are silent for 500 ms and take 1 s. Returns how many
    /// in a hundred of the honest ones end.
    fn served(flood: impl Fn(usize) -> ConnHandle) -> f64 {
        let mut handshakes = Handshakes::new(1024);
        // What the honest ones do, by milliseconds: a first byte, or the end.
        let mut due = BTreeMap::<usize, Vec<(Rc<RefCell<GuardedIo<Stub>>>, bool)>>::new();
        let guard = guard();
        let (mut evicted, mut honest, mut served) = (BTreeSet::new(), 0, 0);
        for now in 0..10_000 {
            let mut come: Vec<_> = (now * 7 / 2..(now + 1) * 7 / 2).map(&flood).collect();
            if now % 25 == 0 && now < 9000 {
                let io = stub::connect(&guard, alone(now));
                come.push(io.conn().clone());
                honest += 1;
                let io = Rc::new(RefCell::new(io));
                due.entry(now + 500).or_default().push((io.clone(), false));
                due.entry(now + 1000).or_default().push((io, true));
            }
            for conn in come {
                evicted.extend(handshakes.enter(&conn).map(|conn| conn.id()));
                assert!(handshakes.under_way.len() <= 1024);
            }
            for (io, is_end) in due.remove(&now).unwrap_or_default() {
                stub::read(&mut io.borrow_mut());
                if is_end {
                    let id = io.borrow().conn().id();
                    served += usize::from(!evicted.contains(&id));
                    handshakes.leave(id);
                }
            }
        }
        let left: Vec<_> = handshakes.places.keys().copied().collect();
        left.into_iter().for_each(|id| _ = handshakes.leave(id));
        assert!(is_empty(&handshakes));
        100.0 * f64::from(served as u32) / f64::from(honest)
    }

    #[test]
    fn a_flood_from_40_addresses_costs_honest_handshakes_nothing_silent_or_not() {
        for has_spoken in [false, true] {
            let flood = |nth| conn([10, 0, (nth % 10) as u8, (nth / 10 % 4) as u8], has_spoken);
            let served = served(flood);
            assert!(served >= 99.0, "{served} %, spoken: {has_spoken}");
        }
    }

    #[test]
    fn a_flood_from_one_network_with_an_address_each_costs_honest_handshakes_nothing() {
        let served = served(|nth| conn([10, 0, (nth / 250 % 4) as u8, (nth % 250) as u8], false));
        assert!(served >= 99.0, "{served} %");
    }

    #[test]
    fn a_network_behind_one_address_keeps_its_places_beside_a_silent_flood_of_single_addresses() {
        let mut handshakes = Handshakes::new(1024);
        for _ in 0..100 {
            assert!(handshakes.enter(&conn([30, 0, 0, 1], true)).is_none());
        }
        for nth in 0..35_000 {
            handshakes.enter(&conn(alone(nth), false));
        }
        let key = ClientKey::address([30, 0, 0, 1].into(), Prefix::default());
        assert_eq!(handshakes.clients.of(key), 100);
        assert_eq!(handshakes.under_way.len(), 1024);
    }

    #[test]
    fn silent_crowds_go_first_then_those_that_speak_then_what_is_silent_alone() {
        // Up to 64 all are examined; more than four of a client are a crowd.
        let mut handshakes = Handshakes::new(16);
        let mut enter = |from: [u8; 4], has_spoken| {
            handshakes
                .enter(&conn(from, has_spoken))
                .map(|conn| conn.peer().ip().to_string())
        };
        let (crowd, speaking) = ([1, 0, 0, 1], [2, 0, 0, 1]);
        let many = [[(crowd, false); 5], [(speaking, true); 5]]
            .into_iter()
            .flatten();
        let few = [
            ([3, 0, 0, 1], false),
            ([3, 0, 0, 2], false),
            ([4, 0, 0, 1], false),
        ];
        let spoken = [
            ([5, 0, 0, 1], true),
            ([5, 0, 0, 2], true),
            ([5, 0, 0, 3], true),
        ];
        for (from, has_spoken) in many.chain(few).chain(spoken) {
            assert_eq!(enter(from, has_spoken), None);
        }
        let went: Vec<_> = (0..8).filter_map(|nth| enter(alone(nth), true)).collect();
        // With four left neither is a crowd any more; then the client with most goes first, until
        // the network with most does.
        let [first, second] = ["1.0.0.1", "2.0.0.1"];
        assert_eq!(went[..6], [first, second, first, first, first, &*went[5]]);
        assert!(went[5].starts_with("3.0.0."), "{went:?}");
        let rest: BTreeSet<_> = went[6..].iter().map(|ip| &ip[..2]).collect();
        assert!(
            rest.is_subset(&BTreeSet::from(["1.", "3.", "4."])),
            "{went:?}"
        );
    }

    #[test]
    fn the_one_that_comes_stays_and_one_that_left_or_was_evicted_leaves_nothing() {
        let mut handshakes = Handshakes::new(1);
        let (first, second) = (conn([1; 4], true), conn([2; 4], false));
        assert!(handshakes.enter(&first).is_none());
        assert_eq!(handshakes.enter(&second).unwrap().id(), first.id());
        assert!(handshakes.leave(first.id()).is_none());
        assert_eq!(handshakes.leave(second.id()).unwrap().id(), second.id());
        assert!(is_empty(&handshakes));
    }

    #[test]
    fn peers_without_an_address_are_no_crowd() {
        let mut handshakes = Handshakes::new(64);
        for _ in 0..63 {
            handshakes.enter(&conn([0; 4], true));
        }
        handshakes.enter(&conn(alone(0), false));
        let evicted = handshakes.enter(&conn([0; 4], true)).unwrap();
        assert_eq!(evicted.peer().ip(), Ipv4Addr::from(alone(0)));
        assert!(handshakes.clients.0.is_empty() && handshakes.networks.0.is_empty());
    }

    #[test]
    fn an_eviction_examines_64_however_many_are_under_way() {
        let mut handshakes = Handshakes::new(100_000);
        for nth in 0..100_000 {
            handshakes.enter(&conn(alone(nth), false));
        }
        let before = handshakes.random;
        handshakes.enter(&conn([1; 4], false));
        // One random number for each that is examined, and one more.
        let mut again = Handshakes {
            random: before,
            ..Handshakes::new(1)
        };
        for _ in 0..=EXAMINED {
            again.random();
        }
        assert_eq!(handshakes.random, again.random);
    }
}
