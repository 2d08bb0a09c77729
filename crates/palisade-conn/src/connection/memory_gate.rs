//! Which requests and connections are refused while memory is short and grows, or the runtime is
//! overloaded.

use palisade_core::{Budget, ConnInfo, Memory, Reason, RequestHead, RuntimeLoad};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

/// The share that admits every request. A rank is below it.
const WHOLE: u16 = RuntimeLoad::WHOLE;
/// A sixteenth of it, the unit of memory's share.
const SIXTEENTH: u16 = WHOLE / 16;
/// The level from which connections of requests outside of the share end with the response.
const CLOSE_LEVEL: f32 = 0.88;
/// The level from which sheddable requests outside of the share are refused.
const REFUSE_SHEDDABLE_LEVEL: f32 = 0.92;
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
    /// It is refused if it is sheddable. Otherwise its connection ends with the response, if the
    /// reason is memory.
    RefuseSheddable(Refused),
    /// It is refused.
    Refuse(Refused),
}

/// Why a request or connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    /// The limit, and the memory in use or the delay.
    pub(crate) numbers: (u64, u64),
    /// At random, so that refused clients do not return together.
    pub(crate) retry_after: Duration,
}

/// Tells some requests from the others.
pub(crate) type PicksRequests = Arc<dyn Fn(&RequestHead<'_>) -> bool + Send + Sync>;

/// Decides by the growth of memory and the load of the runtime what is admitted.
#[derive(Default)]
pub(crate) struct MemoryGate {
    pub(crate) memory: Option<Memory>,
    pub(crate) runtime: Option<RuntimeLoad>,
    /// Requests that are never refused for either, such as health checks.
    pub(crate) is_critical: Option<PicksRequests>,
    /// Requests that are refused before the others.
    pub(crate) is_sheddable: Option<PicksRequests>,
    /// What the heads of HTTP/2 requests are charged to.
    pub(crate) budget: Option<Budget>,
    /// The clients with connections in the latest sweep.
    pub(crate) clients: AtomicU32,
    /// Requests that had a rank of their own.
    turn: AtomicU32,
}

impl Refused {
    fn new(reason: Reason, numbers: (u64, u64), random: u64) -> Self {
        Self {
            reason,
            numbers,
            retry_after: Duration::from_secs(1 + random % MAX_RETRY_SECONDS),
        }
    }
}

impl MemoryGate {
    pub(crate) fn new(
        memory: Option<Memory>,
        runtime: Option<RuntimeLoad>,
        is_critical: Option<PicksRequests>,
        is_sheddable: Option<PicksRequests>,
        budget: Option<Budget>,
    ) -> Self {
        Self {
            memory,
            runtime,
            is_critical,
            is_sheddable,
            budget,
            ..Self::default()
        }
    }

    /// Returns the part of the memory that is used, from 0 to 1.
    pub(crate) fn pressure(&self) -> f32 {
        let memory = self.memory.as_ref();
        memory.map_or(0.0, |memory| memory.pressure().get())
    }

    /// Returns the part of the budget that is held, from 0 to 1.
    pub(crate) fn budget_fill(&self) -> f32 {
        self.budget.as_ref().map_or(0.0, Budget::fill)
    }

    /// Returns what a request on `conn` gets if it is outside of the share. `time` is in
    /// milliseconds; for a second a client keeps its rank, so that a page is loaded whole.
    /// `peers_are_clients` is whether `conn` tells the clients apart.
    #[inline]
    pub(crate) fn shed(&self, conn: &ConnInfo, time: u32, peers_are_clients: bool) -> Option<Shed> {
        let of_memory = self.share_of_memory();
        let of_runtime = self.runtime.as_ref().map_or(WHOLE, RuntimeLoad::ask);
        if of_memory.min(of_runtime) >= WHOLE {
            return None;
        }
        let (rank, random) = self.rank(conn, time, peers_are_clients);
        let shed = match self.shed_for_memory(of_memory, rank, random) {
            refused @ Some(Shed::Refuse(_)) => refused,
            other => self.shed_for_runtime(of_runtime, rank, random).or(other),
        };
        if of_runtime < WHOLE
            && !matches!(shed, Some(Shed::Refuse(_)))
            && let Some(load) = &self.runtime
        {
            load.count_admitted();
        }
        shed
    }

    /// Returns what a new connection gets if it is outside of the share. The load of the runtime
    /// refuses none.
    pub(crate) fn shed_connection(
        &self,
        conn: &ConnInfo,
        time: u32,
        peers_are_clients: bool,
    ) -> Option<Shed> {
        let share = self.share_of_memory();
        if share >= WHOLE {
            return None;
        }
        let (rank, random) = self.rank(conn, time, peers_are_clients);
        self.shed_for_memory(share, rank, random)
    }

    #[inline]
    fn share_of_memory(&self) -> u16 {
        let memory = self.memory.as_ref();
        memory.map_or(WHOLE, |memory| {
            u16::from(memory.share_in_sixteenths()) * SIXTEENTH
        })
    }

    /// Returns the rank of a request or connection, and a number that is random enough to spread
    /// retries.
    #[cold]
    fn rank(&self, conn: &ConnInfo, time: u32, peers_are_clients: bool) -> (u16, u64) {
        let are_many = self.clients.load(Relaxed) >= FEW_CLIENTS;
        let client = conn.known_client_hash();
        match client.filter(|_| peers_are_clients && are_many) {
            Some(client) => {
                let mixed = mix(client, time / 1000);
                ((mixed % u64::from(WHOLE)) as u16, mixed >> 32)
            }
            None => {
                let turn = self.turn.fetch_add(1, Relaxed);
                (spread(turn), mix(turn.into(), 0))
            }
        }
    }

    #[cold]
    fn shed_for_memory(&self, share: u16, rank: u16, random: u64) -> Option<Shed> {
        let memory = self.memory.as_ref()?;
        let level = memory.pressure().get();
        if rank < share || level < CLOSE_LEVEL {
            return None;
        }
        let limit = memory.limit().unwrap_or(0);
        let numbers = (limit, memory.used().unwrap_or(limit));
        let refused = Refused::new(Reason::MemoryPressure, numbers, random);
        Some(if level >= REFUSE_LEVEL {
            Shed::Refuse(refused)
        } else if level >= REFUSE_SHEDDABLE_LEVEL {
            Shed::RefuseSheddable(refused)
        } else {
            Shed::Close
        })
    }

    /// Of sheddable requests the square of the share is admitted.
    #[cold]
    fn shed_for_runtime(&self, share: u16, rank: u16, random: u64) -> Option<Shed> {
        let load = self.runtime.as_ref()?;
        let [rank, share, whole] = [rank, share, WHOLE].map(u32::from);
        let refuse = if rank >= share {
            Shed::Refuse
        } else if rank * whole >= share * share {
            Shed::RefuseSheddable
        } else {
            return None;
        };
        let [limit, delay] = [RuntimeLoad::overload_delay(), load.delay()]
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        Some(refuse(Refused::new(
            Reason::RuntimeBusy,
            (limit, delay),
            random,
        )))
    }
}

/// Mixes the hash of a client, which is keyed, with the second.
fn mix(client: u64, second: u32) -> u64 {
    let mixed = client ^ u64::from(second).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

/// Returns the rank of the request of this number. Each sixteen requests in a row have one rank of
/// each sixteenth, and each 1,024 have all ranks.
fn spread(turn: u32) -> u16 {
    const STEP: u32 = 7; // Odd, so that no sixteenth is left out.
    let sixteenth = turn.wrapping_mul(STEP) % 16;
    let within = (turn / 16).reverse_bits() >> (u32::BITS - SIXTEENTH.ilog2());
    sixteenth as u16 * SIXTEENTH + within as u16
}

impl fmt::Debug for MemoryGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryGate")
            .field("memory", &self.memory)
            .field("runtime", &self.runtime)
            .field("budget", &self.budget)
            .field("has_critical", &self.is_critical.is_some())
            .field("has_sheddable", &self.is_sheddable.is_some())
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
        let is_sheddable = |one: &Shed| matches!(one, Shed::RefuseSheddable(_));
        assert_eq!(shed_at(919), [Shed::Close; 8]);
        assert_eq!(
            shed_at(920).iter().filter(|one| is_sheddable(one)).count(),
            8
        );
        assert_eq!(
            shed_at(949).iter().filter(|one| is_sheddable(one)).count(),
            8
        );
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
    fn of_both_shares_the_lower_one_decides() {
        let conn = conn_of(1);
        let overloaded = |steps| {
            let load = RuntimeLoad::reported();
            for _ in 0..steps {
                load.report(Duration::from_millis(300));
            }
            load
        };
        // Of a runtime: whole, less than a half, and less than a quarter.
        for steps in [0, 10, 12] {
            let load = overloaded(steps);
            let of_runtime = (load.share() * f32::from(WHOLE)) as u16;
            let mut gate = gate_at(960, 1);
            gate.runtime = Some(load);
            let mut refused = Vec::new();
            for _ in 0..1024 {
                if let Some(Shed::Refuse(one)) = gate.shed(&conn, 0, true) {
                    refused.push(one.reason);
                }
            }
            let lower = of_runtime.min(WHOLE / 2);
            assert_eq!(refused.len(), usize::from(WHOLE - lower), "{steps}");
            // What both refuse is refused for the memory, which is told to new connections too.
            let of_memory = refused.iter().filter(|one| **one == Reason::MemoryPressure);
            assert_eq!(of_memory.count(), 512);
        }
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
