//! Which requests and connections are refused while memory is short and grows.

use palisade_core::{Budget, ConnInfo, Memory, RequestHead};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

/// The share that admits every request, in sixteenths.
const WHOLE: u8 = 16;
/// The level from which connections of requests outside of the share end with the response.
const CLOSE_LEVEL: f32 = 0.88;
/// The level from which requests and new connections outside of the share are refused.
const REFUSE_LEVEL: f32 = 0.95;
/// With fewer clients than this, each request has a rank of its own. Otherwise a share of a half
/// could refuse all of them or none.
const FEW_CLIENTS: u32 = 32;
/// `Retry-After` is at least one second and at most this.
const MAX_RETRY_SECONDS: u64 = 5;

/// What a request or connection outside of the share gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shed {
    /// The connection ends with the response.
    Close,
    /// It is refused.
    Refuse(Refused),
}

/// The numbers of a refusal for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The limit and the memory in use, in bytes.
    pub(crate) numbers: (u64, u64),
    /// At random, so that refused clients do not return together.
    pub(crate) retry_after: Duration,
}

/// Tells requests that are never refused for memory, such as health checks.
pub(crate) type IsCritical = Arc<dyn Fn(&RequestHead<'_>) -> bool + Send + Sync>;

/// Decides by the growth of memory what is admitted.
#[derive(Default)]
pub(crate) struct MemoryGate {
    pub(crate) memory: Option<Memory>,
    pub(crate) is_critical: Option<IsCritical>,
    /// What the heads of HTTP/2 requests are charged to.
    pub(crate) budget: Option<Budget>,
    /// The clients with connections in the latest sweep.
    pub(crate) clients: AtomicU32,
    /// Requests that had a rank of their own.
    turn: AtomicU32,
}

impl MemoryGate {
    pub(crate) fn new(
        memory: Option<Memory>,
        is_critical: Option<IsCritical>,
        budget: Option<Budget>,
    ) -> Self {
        Self {
            memory,
            is_critical,
            budget,
            ..Self::default()
        }
    }

    /// Returns the part of the memory that is used, from 0 to 1.
    pub(crate) fn pressure(&self) -> f32 {
        let memory = self.memory.as_ref();
        memory.map_or(0.0, |memory| memory.pressure().get())
    }

    /// Returns what a request, or a connection, of `conn` gets if it is outside of the share.
    /// `time` is in milliseconds; for a second a client keeps its rank, so that a page is loaded
    /// whole. `peers_are_clients` is whether `conn` tells the clients apart.
    #[inline]
    pub(crate) fn shed(&self, conn: &ConnInfo, time: u32, peers_are_clients: bool) -> Option<Shed> {
        let memory = self.memory.as_ref()?;
        let share = memory.share_in_sixteenths();
        if share >= WHOLE {
            return None;
        }
        self.shed_outside_of(memory, share, conn, time, peers_are_clients)
    }

    #[cold]
    fn shed_outside_of(
        &self,
        memory: &Memory,
        share: u8,
        conn: &ConnInfo,
        time: u32,
        peers_are_clients: bool,
    ) -> Option<Shed> {
        let are_many = self.clients.load(Relaxed) >= FEW_CLIENTS;
        let client = conn.known_client_hash();
        let mixed = match client.filter(|_| peers_are_clients && are_many) {
            Some(client) => mix(client, time / 1000),
            None => spread(self.turn.fetch_add(1, Relaxed)),
        };
        let rank = (mixed >> 60) as u8;
        let level = memory.pressure().get();
        if rank < share || level < CLOSE_LEVEL {
            return None;
        }
        if level < REFUSE_LEVEL {
            return Some(Shed::Close);
        }
        let limit = memory.limit().unwrap_or(0);
        Some(Shed::Refuse(Refused {
            numbers: (limit, memory.used().unwrap_or(limit)),
            retry_after: Duration::from_secs(1 + mixed % MAX_RETRY_SECONDS),
        }))
    }
}

/// Mixes the hash of a client, which is keyed, with the second. The upper bits are the rank.
fn mix(client: u64, second: u32) -> u64 {
    let mixed = client ^ u64::from(second).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

/// Returns the same for the request of this number. Each sixteen requests in a row have all ranks.
fn spread(turn: u32) -> u64 {
    const STEP: u32 = 7; // Odd, so that no rank is left out.
    let rank = u64::from(turn.wrapping_mul(STEP) % u32::from(WHOLE));
    rank << 60 | mix(u64::from(turn), 0) >> 4
}

impl fmt::Debug for MemoryGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryGate")
            .field("memory", &self.memory)
            .field("budget", &self.budget)
            .field("has_critical", &self.is_critical.is_some())
            .field("clients", &self.clients)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::Prefix;

    const LIMIT: u64 = 1000;

    /// A gate over memory that has just grown to this use, with a share of one half.
    fn gate_at(used: u64, clients: u32) -> MemoryGate {
        let memory = Memory::reported(LIMIT).unwrap();
        memory.report(used - 10);
        memory.report(used);
        MemoryGate {
            memory: Some(memory),
            clients: clients.into(),
            ..MemoryGate::default()
        }
    }

    fn conn_of(client: u16) -> ConnInfo<()> {
        let [high, low] = client.to_be_bytes();
        let peer = ([198, 51, high, low], 1).into();
        ConnInfo::with_state(peer, None, Prefix::default(), ())
    }

    /// Returns the requests that are not shed, of 160 in turn by each of so many clients.
    fn admitted(gate: &MemoryGate, clients: u16, time: u32) -> Vec<usize> {
        let conns: Vec<_> = (0..clients).map(conn_of).collect();
        let mut admitted = vec![0; conns.len()];
        for _ in 0..160 {
            for (conn, admitted) in conns.iter().zip(&mut admitted) {
                *admitted += usize::from(gate.shed(conn, time, true).is_none());
            }
        }
        admitted
    }

    #[test]
    fn at_rest_and_below_the_first_level_nothing_is_shed() {
        let conn = conn_of(1);
        assert_eq!(MemoryGate::default().shed(&conn, 0, true), None);
        let memory = Memory::reported(LIMIT).unwrap();
        memory.report(990);
        let gate = MemoryGate {
            memory: Some(memory),
            ..MemoryGate::default()
        };
        for _ in 0..100 {
            assert_eq!(gate.shed(&conn, 0, true), None);
        }
        // Growth has halved the share, and then most of the memory was freed.
        let gate = gate_at(960, 0);
        gate.memory.as_ref().unwrap().report(500);
        assert_eq!(admitted(&gate, 1, 0), [160]);
    }

    #[test]
    fn connections_end_from_the_first_level_on_and_requests_are_refused_from_the_second() {
        let conn = conn_of(1);
        let shed_at = |used| -> Vec<_> {
            let gate = gate_at(used, 0);
            (0..16).filter_map(|_| gate.shed(&conn, 0, true)).collect()
        };
        assert_eq!(shed_at(900), [Shed::Close; 8]);
        let refused = shed_at(960);
        assert_eq!(refused.len(), 8);
        for one in refused {
            let Shed::Refuse(refused) = one else {
                panic!("{one:?}")
            };
            assert_eq!(refused.numbers, (LIMIT, 960));
            let seconds = refused.retry_after.as_secs();
            assert!((1..=5).contains(&seconds), "{seconds}");
        }
    }

    #[test]
    fn the_share_is_of_requests_where_there_are_few_clients_and_of_clients_where_there_are_many() {
        assert_eq!(admitted(&gate_at(960, 1), 1, 0), [80]);
        let of_four = admitted(&gate_at(960, 4), 4, 0);
        assert_eq!(of_four.iter().sum::<usize>(), 320);
        // Of many clients each is served whole, or not at all for this second.
        let gate = gate_at(960, 100);
        let of_hundred = admitted(&gate, 100, 5000);
        assert!(of_hundred.iter().all(|served| [0, 160].contains(served)));
        let served = of_hundred.iter().filter(|served| **served == 160).count();
        assert!((30..70).contains(&served), "{served}");
        // In the next seconds it is the turn of others: nearly each client is served in one of ten.
        let mut is_served = [false; 100];
        for second in 0..10 {
            let served = admitted(&gate, 100, second * 1000);
            for (is_served, served) in is_served.iter_mut().zip(served) {
                *is_served |= served > 0;
            }
        }
        assert!(is_served.iter().filter(|served| **served).count() >= 95);
    }

    #[test]
    fn where_peers_are_not_clients_the_number_of_the_request_decides() {
        let gate = gate_at(960, 1000);
        let conn = conn_of(1);
        let shed = (0..160).filter(|_| gate.shed(&conn, 0, false).is_some());
        assert_eq!(shed.count(), 80);
        let unknown = ConnInfo::with_state(([0, 0, 0, 0], 0).into(), None, Prefix::default(), ());
        let shed = (0..160).filter(|_| gate.shed(&unknown, 0, true).is_some());
        assert_eq!(shed.count(), 80);
    }
}
