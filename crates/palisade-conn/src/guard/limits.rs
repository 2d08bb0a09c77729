//! The limits of a guard, after their values have been checked.

use crate::track::head::FREE_BYTES;
use palisade_core::{Gate, Memory, Mode, Network, Prefix};
use palisade_guard::Gcra;
use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

/// The highest cap that the guard chooses by itself.
const MAX_DEFAULT_CAP: usize = 10_000;
/// The lowest cap that the guard chooses by itself.
const MIN_DEFAULT_CAP: usize = 16;

/// The memory that a connection is assumed to take, without the kernel's buffers of its socket.
/// Measured are 7 to 21 KiB for an idle connection, and 15 to 52 KiB for one with half a head or
/// with a response that its client does not take.
const BYTES_PER_CONNECTION: u64 = 64 * 1024;

/// The lowest limit on requests in flight that the guard chooses by itself where memory allows it.
const MIN_IN_FLIGHT: usize = 1024;
/// The heads that are not charged to the budget may take this part of the memory. It is the same
/// for four requests on each of the connections that memory allows.
const MEMORY_PART_OF_HEADS: u64 = 8;

/// A connection that takes no more requests is closed after this idle time, if its client was told
/// by GOAWAY, or keeps too many idle connections, or the server shuts down.
pub(crate) const CLOSING_QUIET_MILLIS: u64 = 5000;
/// The same for an HTTP/2 client that could not be told. Its pool may use the connection again at
/// any moment.
pub(crate) const UNANNOUNCED_QUIET_MILLIS: u64 = 30_000;
/// The time between GOAWAY and the idle timeout of an HTTP/2 connection: enough for a round trip.
pub(crate) const GOAWAY_GRACE_MILLIS: u64 = 1000;
/// A connection counts among the idle ones that its client keeps after this idle time. A shorter
/// one may be the gap between two requests.
pub(crate) const KEPT_IDLE_MILLIS: u64 = 1000;

/// The longest time for which a connection lingers. The interval of sweeps comes on top.
pub(crate) const LINGER_MILLIS: u64 = 30_000;
/// The longest time for which the client of a lingering connection may send nothing.
pub(crate) const LINGER_QUIET_MILLIS: u64 = 1000;
/// The largest number of bytes that a lingering connection discards.
pub(crate) const MAX_LINGER_BYTES: u64 = 64 << 20;

/// The largest block of addresses that counts as one network.
const NETWORK_PREFIX: Prefix = match Prefix::new(24, 48) {
    Some(prefix) => prefix,
    None => unreachable!(),
};

/// The limits of a guard. All times are in milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) mode: Mode,
    pub(crate) connections: usize,
    pub(crate) connections_from: CapFrom,
    /// The number of places that only peers in [`Self::reserved`] may take.
    pub(crate) reserve: usize,
    pub(crate) reserved: Arc<[Network]>,
    /// The share of one client near the cap.
    pub(crate) per_client: Option<u32>,
    /// The share of one network near the cap.
    pub(crate) per_network: Option<u32>,
    /// The number of idle connections that one client keeps near the cap.
    pub(crate) keep_alive: Option<u32>,
    /// Which of these three are larger while there are places.
    pub(crate) grows: Growth,
    /// Asked before a connection is counted.
    pub(crate) gate: Option<Arc<dyn Gate>>,
    pub(crate) accept_rate: Option<Gcra>,
    pub(crate) accept_rate_per_network: Option<Gcra>,
    pub(crate) prefix: Prefix,
    pub(crate) first_request: u64,
    pub(crate) head: u64,
    pub(crate) idle: u64,
    pub(crate) upgraded_idle: u64,
    pub(crate) write_stall: u64,
    pub(crate) max_age: Option<u64>,
    pub(crate) age_grace: Option<u64>,
    pub(crate) max_requests: Option<u32>,
    pub(crate) max_upgraded: usize,
    pub(crate) max_in_flight: usize,
    pub(crate) max_cancelled: Option<u16>,
    pub(crate) max_overhead: Option<u32>,
    pub(crate) probe: Option<u64>,
    /// The receive buffer of a socket, in bytes. `None` also unless limits are enforced.
    pub(crate) receive_buffer: Option<u32>,
    /// The interval between two sweeps.
    pub(crate) tick: Duration,
}

/// The number of connections that one client, and one network, may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    pub(crate) client: u32,
    pub(crate) network: u32,
}

/// Whether each share is larger while places are plentiful. A share that was set explicitly is not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Growth {
    pub(crate) per_client: bool,
    pub(crate) per_network: bool,
    pub(crate) keep_alive: bool,
}

impl Limits {
    /// Returns the shares of one client and one network while `open` connections are open; `None`
    /// if there is no limit. A share that grows is half of the places that are left before eviction
    /// begins, and for a network twice their number (dynamic thresholds, as for
    /// [`Self::max_in_flight`]).
    pub(crate) fn shares(&self, open: usize) -> Option<Shares> {
        let (client, network) = (self.per_client, self.per_network);
        client.or(network).or(self.keep_alive)?;
        let left = self.left_before_eviction(open);
        let client = client.map_or(u32::MAX, |min| {
            if self.grows.per_client {
                min.max(left / 2)
            } else {
                min
            }
        });
        let network = network.map_or(u32::MAX, |min| {
            if self.grows.per_network {
                min.max(left.saturating_mul(2))
            } else {
                min
            }
        });
        Some(Shares { client, network })
    }

    /// Returns the shares near the cap.
    pub(crate) fn least_shares(&self) -> Option<Shares> {
        self.shares(usize::MAX)
    }

    /// Returns the number of idle connections that one client may keep while `open` connections are
    /// open.
    pub(crate) fn keep_alive_at(&self, open: usize) -> Option<u32> {
        let min = self.keep_alive?;
        Some(if self.grows.keep_alive {
            min.max(self.left_before_eviction(open) / 4)
        } else {
            min
        })
    }

    /// Returns the number of places that are left before eviction begins.
    fn left_before_eviction(&self, open: usize) -> u32 {
        u32::try_from(self.soft().saturating_sub(open)).unwrap_or(u32::MAX)
    }

    /// Returns the prefix of a network: the /24 or /48 of a client, or that of the client if it is
    /// wider.
    pub(crate) fn network(&self) -> Prefix {
        self.prefix.at_most(NETWORK_PREFIX)
    }

    /// Returns the largest number of open connections with one more of this peer. Reserved places
    /// count only for a peer that may take them.
    pub(crate) fn max_open(&self, is_reserved: bool) -> usize {
        if is_reserved {
            self.connections
        } else {
            self.connections.saturating_sub(self.reserve)
        }
    }

    /// Returns the number of connections from which each new one evicts the least useful one: nine
    /// tenths of the unreserved places, and at least one less than their number.
    pub(crate) fn soft(&self) -> usize {
        let max = self.max_open(false);
        (max - max / 10).min(max.saturating_sub(1))
    }

    /// Returns the time after which the kernel closes the connection of a client that acknowledges
    /// nothing. It is longer than the guard's own write timeout.
    pub(crate) fn kernel_timeout(&self) -> Duration {
        Duration::from_millis(self.write_stall.saturating_add(5000).max(30_000))
    }

    /// Returns whether places are reserved for `peer`.
    pub(crate) fn is_reserved_for(&self, peer: IpAddr) -> bool {
        self.reserved.iter().any(|network| network.contains(peer))
    }

    pub(crate) fn tick_millis(&self) -> u64 {
        u64::try_from(self.tick.as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns whether no connection is due at this age.
    pub(crate) fn is_young(&self, age: u64) -> bool {
        self.max_age.is_none_or(|max| age < max - max / 10)
    }

    /// Returns the age at which the connection `id` takes no more requests: [`Self::max_age`], give
    /// or take a tenth, so that connections that were opened together are not closed together.
    pub(crate) fn due(&self, id: u64) -> Option<u64> {
        let age = self.max_age?;
        // The finisher of SplitMix64 maps neighbouring numbers far apart.
        let mut mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let fifth = age / 5;
        Some(age - age / 10 + (mixed >> 32) % (fifth + 1))
    }
}

/// What the cap of a guard follows from. As text, for example `4/5 of 1024 files, less 64`.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapFrom {
    /// The option [`ConnGuardBuilder::max_connections`](crate::ConnGuardBuilder::max_connections).
    Configured,
    /// Four fifths of this number of files that the process may open, less 64.
    Files(u64),
    /// A quarter of this number of bytes that the process may use, at 64 KiB per connection.
    Memory(u64),
    /// The ceiling of 10,000: files and memory allow more.
    Ceiling,
}

/// Returns the number of connections that files and memory allow, at most 10,000, and which of them
/// it follows from.
pub(crate) fn default_cap(memory: &Memory) -> (usize, CapFrom) {
    cap_for(file_limit(), memory.least_limit())
}

/// Returns the number of requests in flight that this number of connections and the memory allow.
/// The floor is for few connections with many requests each.
pub(crate) fn default_in_flight(connections: usize, memory: &Memory) -> usize {
    let by_memory = memory
        .least_limit()
        .map_or(u64::MAX, |bytes| bytes / MEMORY_PART_OF_HEADS / FREE_BYTES);
    let floor = usize::try_from(by_memory).map_or(MIN_IN_FLIGHT, |max| max.min(MIN_IN_FLIGHT));
    connections.saturating_mul(4).max(floor)
}

fn cap_for(files: Option<u64>, memory: Option<u64>) -> (usize, CapFrom) {
    let by_files = files.map(|files| {
        let cap = (files / 5).saturating_mul(4).saturating_sub(64);
        (cap, CapFrom::Files(files))
    });
    // The other three quarters are for handlers and everything else in the process.
    let by_memory = memory.map(|bytes| {
        let cap = bytes / 4 / BYTES_PER_CONNECTION;
        (cap, CapFrom::Memory(bytes))
    });
    let ceiling = (MAX_DEFAULT_CAP as u64, CapFrom::Ceiling);
    let (cap, from) = [by_files, by_memory]
        .into_iter()
        .flatten()
        .fold(ceiling, |min, next| if next.0 < min.0 { next } else { min });
    let cap = usize::try_from(cap).unwrap_or(MAX_DEFAULT_CAP);
    (cap.max(MIN_DEFAULT_CAP), from)
}

impl fmt::Display for CapFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("max_connections"),
            Self::Files(files) => write!(f, "4/5 of {files} files, less 64"),
            Self::Memory(bytes) => {
                write!(f, "1/4 of {} MiB of memory at 64 KiB each", bytes >> 20)
            }
            Self::Ceiling => write!(f, "at most {MAX_DEFAULT_CAP} by default"),
        }
    }
}

#[cfg(unix)]
fn file_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

#[cfg(not(unix))]
fn file_limit() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConnGuard;

    #[test]
    fn the_default_cap_leaves_files_for_the_rest_of_the_process() {
        let cap = |files| cap_for(Some(files), None);
        assert_eq!(cap(600), (416, CapFrom::Files(600)));
        assert_eq!(cap(1024), (752, CapFrom::Files(1024)));
        assert_eq!(cap(u64::MAX), (MAX_DEFAULT_CAP, CapFrom::Ceiling));
        assert_eq!(cap(0), (16, CapFrom::Files(0)));
        assert!((16..=MAX_DEFAULT_CAP).contains(&default_cap(&Memory::of_process()).0));
    }

    #[test]
    fn the_default_cap_leaves_memory_for_the_handlers() {
        const MIB: u64 = 1 << 20;
        let cap = |files, mib| cap_for(Some(files), Some(mib * MIB));
        assert_eq!(cap(1 << 20, 512), (2048, CapFrom::Memory(512 * MIB)));
        assert_eq!(cap(1024, 512), (752, CapFrom::Files(1024)));
        assert_eq!(cap(1 << 20, 1 << 20), (MAX_DEFAULT_CAP, CapFrom::Ceiling));
        assert_eq!(cap(1 << 20, 0), (16, CapFrom::Memory(0)));
        assert_eq!(cap_for(None, None), (MAX_DEFAULT_CAP, CapFrom::Ceiling));
        assert_eq!(
            cap_for(None, Some(u64::MAX)),
            (MAX_DEFAULT_CAP, CapFrom::Ceiling)
        );
    }

    #[test]
    fn the_requests_in_flight_follow_the_memory() {
        const MIB: u64 = 1 << 20;
        let max = |mib| {
            let memory = Memory::reported(mib * MIB).unwrap();
            default_in_flight(cap_for(None, Some(mib * MIB)).0, &memory)
        };
        assert_eq!([1, 16, 64, 256].map(max), [64, 256, 1024, 4096]);
        // An eighth of the memory, or less.
        for mib in [4, 16, 64, 256, 1024, 1 << 20] {
            assert!(max(mib) as u64 * FREE_BYTES <= mib * MIB / 8, "{mib}");
        }
        // Few connections with many requests each.
        let in_flight = |mib| {
            let memory = Memory::reported(mib * MIB).unwrap();
            let guard = ConnGuard::builder().max_connections(10).memory(memory);
            guard.build().unwrap().shared().limits.max_in_flight
        };
        assert_eq!([1, 8, 64, 256].map(in_flight), [40, 128, 1024, 1024]);
    }

    #[test]
    fn the_snapshot_says_what_the_cap_follows_from() {
        let guard = ConnGuard::builder().max_connections(7).build().unwrap();
        let snapshot = guard.snapshot();
        assert_eq!(
            (snapshot.limit, snapshot.limit_from),
            (7, CapFrom::Configured)
        );
        assert!(format!("{guard:?}").contains("connections_from: Configured"));
        let snapshot = ConnGuard::default().snapshot();
        assert_eq!(
            (snapshot.limit, snapshot.limit_from),
            default_cap(&Memory::of_process())
        );
        let texts = [
            CapFrom::Configured,
            CapFrom::Files(600),
            CapFrom::Memory(1 << 29),
            CapFrom::Ceiling,
        ];
        let texts = texts.map(|from| from.to_string());
        assert_eq!(texts[1], "4/5 of 600 files, less 64");
        assert_eq!(texts[2], "1/4 of 512 MiB of memory at 64 KiB each");
    }

    #[test]
    fn eviction_begins_below_the_cap() {
        let soft = |connections| {
            let guard = ConnGuard::builder()
                .max_connections(connections)
                .build()
                .unwrap();
            guard.shared().limits.soft()
        };
        assert_eq!([soft(1), soft(2), soft(10), soft(1000)], [0, 1, 9, 900]);
    }

    #[test]
    fn due_ages_vary_by_a_tenth_in_both_directions() {
        let guard = ConnGuard::builder()
            .max_age(Duration::from_secs(1000))
            .build()
            .unwrap();
        let limits = &guard.shared().limits;
        let due: Vec<_> = (1..=1000).map(|id| limits.due(id).unwrap()).collect();
        assert!(due.iter().all(|due| (900_000..=1_100_000).contains(due)));
        assert!(limits.is_young(899_999) && !limits.is_young(900_000));
        assert!(due.iter().any(|due| *due < 920_000) && due.iter().any(|due| *due > 1_080_000));
    }
}
