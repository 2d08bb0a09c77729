//! What the connections of one guard ask before they admit a request or are admitted themselves.

use palisade_core::{
    Budget, ConnInfo, Memory, RuntimeLoad,
    shed::{LoadShedding, PicksRequests, Rank, Shed},
};
use std::{
    fmt,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

/// Decides by the growth of memory and the load of the runtime what is admitted.
#[derive(Default)]
pub(crate) struct MemoryGate {
    pub(crate) memory: Option<Memory>,
    pub(crate) runtime: Option<RuntimeLoad>,
    /// What asks both of them.
    pub(crate) shedding: LoadShedding,
    /// What the heads of HTTP/2 requests are charged to.
    pub(crate) budget: Option<Budget>,
    /// The clients with connections in the latest sweep.
    pub(crate) clients: AtomicU32,
}

impl MemoryGate {
    pub(crate) fn new(
        memory: Option<Memory>,
        runtime: Option<RuntimeLoad>,
        is_critical: Option<PicksRequests>,
        is_sheddable: Option<PicksRequests>,
        budget: Option<Budget>,
    ) -> Self {
        let mut shedding = LoadShedding::new(memory.clone(), runtime.clone());
        shedding.set_critical(is_critical);
        shedding.set_sheddable(is_sheddable);
        Self {
            memory,
            runtime,
            shedding,
            budget,
            clients: AtomicU32::new(0),
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
    /// milliseconds. `peers_are_clients` is whether `conn` tells the clients apart.
    #[inline]
    pub(crate) fn shed(&self, conn: &ConnInfo, time: u32, peers_are_clients: bool) -> Option<Shed> {
        let shares = self.shedding.ask()?;
        let rank = self.rank(conn, time, peers_are_clients);
        self.shedding.shed(shares, rank)
    }

    /// Returns what a new connection gets if it is outside of the share.
    pub(crate) fn shed_connection(
        &self,
        conn: &ConnInfo,
        time: u32,
        peers_are_clients: bool,
    ) -> Option<Shed> {
        let shares = self.shedding.ask_for_connection()?;
        let rank = self.rank(conn, time, peers_are_clients);
        self.shedding.shed(shares, rank)
    }

    #[cold]
    fn rank(&self, conn: &ConnInfo, time: u32, peers_are_clients: bool) -> Rank {
        let client = conn.known_client_hash().filter(|_| peers_are_clients);
        self.shedding.rank(client, self.clients.load(Relaxed), time)
    }
}

impl fmt::Debug for MemoryGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryGate")
            .field("shedding", &self.shedding)
            .field("budget", &self.budget)
            .field("clients", &self.clients)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::Prefix;

    /// Returns how many of 160 requests on `conn` are shed, where memory has grown and half of the
    /// requests are inside of the share.
    fn shed(conn: &ConnInfo, clients: u32, peers_are_clients: bool) -> usize {
        let memory = Memory::reported(1000).unwrap();
        memory.report(950);
        memory.report(960);
        let gate = MemoryGate::new(Some(memory), None, None, None, None);
        gate.clients.store(clients, Relaxed);
        let shed = (0..160).filter(|_| gate.shed(conn, 0, peers_are_clients).is_some());
        shed.count()
    }

    #[test]
    fn where_peers_are_many_clients_each_is_served_whole_or_not_at_all() {
        let conn = |host| ConnInfo::new(([198, 51, 100, host], 1).into(), None, Prefix::default());
        let shed_of = |host| shed(&conn(host), 1000, true);
        let of_hosts: Vec<_> = (0..100).map(shed_of).collect();
        assert!(of_hosts.iter().all(|shed| [0, 160].contains(shed)));
        assert!(of_hosts.contains(&0) && of_hosts.contains(&160));
        assert_eq!(shed(&conn(1), 10, true), 80);
    }

    #[test]
    fn where_peers_are_not_clients_the_number_of_the_request_decides() {
        let conn = ConnInfo::new(([198, 51, 100, 1], 1).into(), None, Prefix::default());
        assert_eq!(shed(&conn, 1000, false), 80);
        let unknown = ConnInfo::new(([0, 0, 0, 0], 0).into(), None, Prefix::default());
        assert_eq!(shed(&unknown, 1000, true), 80);
    }
}
