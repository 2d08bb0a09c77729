//! The numbers, checked.

use crate::sys::memory;
use palisade_core::{Mode, Network, Prefix};
use palisade_guard::Gcra;
use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

/// The most connections that are let in without being asked for more.
pub(crate) const AUTO_MOST: usize = 10_000;

/// What a connection is taken to cost, its socket's buffers in the kernel left out: measured are 7
/// to 21 KiB where it idles and 15 to 52 KiB where half a head or an answer that nobody takes waits.
const OF_A_CONNECTION: u64 = 64 * 1024;

/// A connection that is to take no more requests ends once it was idle for so long, if its client
/// was told or places are short.
pub(crate) const CLOSING_QUIET_MILLIS: u64 = 5000;
/// The same for an HTTP/2 client that could not be told, whose pool may use it again at any moment.
pub(crate) const UNANNOUNCED_QUIET_MILLIS: u64 = 30_000;
/// How long an idle client of HTTP/2 has between GOAWAY and the end of its connection at the idle
/// timeout: a round trip.
pub(crate) const GOAWAY_GRACE_MILLIS: u64 = 1000;
/// A connection counts among those that a client keeps once it was idle for so long: a look
/// between two requests is not to be mistaken for one.
pub(crate) const KEPT_IDLE_MILLIS: u64 = 1000;

/// How long a connection lingers at most; the sweeper's precision comes on top.
pub(crate) const LINGER_MILLIS: u64 = 30_000;
/// How long a connection that lingers may send nothing.
pub(crate) const LINGER_QUIET_MILLIS: u64 = 1000;

/// So many bytes are thrown away at most while it does.
pub(crate) const MAX_LINGER_BYTES: u64 = 64 << 20;

/// What is counted together beside the client.
const NETWORK: Prefix = match Prefix::new(24, 48) {
    Some(prefix) => prefix,
    None => unreachable!(),
};

/// What a guard holds its connections to. All times in milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) mode: Mode,
    pub(crate) connections: usize,
    pub(crate) connections_from: CapFrom,
    /// How many of them are for those of [`Self::reserved`] alone.
    pub(crate) reserve: usize,
    pub(crate) reserved: Arc<[Network]>,
    /// What a client may have where places are short.
    pub(crate) per_client: Option<u32>,
    pub(crate) per_network: Option<u32>,
    pub(crate) keep_alive: Option<u32>,
    /// Which of these three grow while there are places.
    pub(crate) grows: Growth,
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
    pub(crate) tick: Duration,
}

/// How many connections one client, and one network, may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    pub(crate) client: u32,
    pub(crate) network: u32,
}

/// Whether each share is the larger one while places are plentiful. What was set explicitly is not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Growth {
    pub(crate) per_client: bool,
    pub(crate) per_network: bool,
    pub(crate) keep_alive: bool,
}

impl Limits {
    /// What one client and one network may have while so many connections are `open`, if there is
    /// such a limit: where it grows, no more than half of what is left before eviction begins, or
    /// for a network twice that (dynamic thresholds, as for [`Self::max_in_flight`]).
    pub(crate) fn shares(&self, open: usize) -> Option<Shares> {
        let (client, network) = (self.per_client, self.per_network);
        client.or(network).or(self.keep_alive)?;
        let left = self.left(open);
        let client = client.map_or(u32::MAX, |least| {
            if self.grows.per_client {
                least.max(left / 2)
            } else {
                least
            }
        });
        let network = network.map_or(u32::MAX, |least| {
            if self.grows.per_network {
                least.max(left.saturating_mul(2))
            } else {
                least
            }
        });
        Some(Shares { client, network })
    }

    /// What each client and each network may keep when places are short.
    pub(crate) fn least_shares(&self) -> Option<Shares> {
        self.shares(usize::MAX)
    }

    /// How many connections one client may keep idle while so many are `open`.
    pub(crate) fn keep_alive_at(&self, open: usize) -> Option<u32> {
        let least = self.keep_alive?;
        Some(if self.grows.keep_alive {
            least.max(self.left(open) / 4)
        } else {
            least
        })
    }

    /// How many more connections there may be before the least useful are evicted.
    fn left(&self, open: usize) -> u32 {
        u32::try_from(self.soft().saturating_sub(open)).unwrap_or(u32::MAX)
    }

    /// A network: the /24 or the /48 of a client, or the client itself if that is wider.
    pub(crate) fn network(&self) -> Prefix {
        self.prefix.at_most(NETWORK)
    }

    /// How many connections there may be for whoever comes to get in.
    pub(crate) fn most(&self, is_reserved: bool) -> usize {
        if is_reserved {
            self.connections
        } else {
            self.connections.saturating_sub(self.reserve)
        }
    }

    /// From so many connections on the least useful one goes for each that comes: nine tenths of
    /// those open to all, and always at least one below their number.
    pub(crate) fn soft(&self) -> usize {
        let most = self.most(false);
        (most - most / 10).min(most.saturating_sub(1))
    }

    /// When the kernel is to give a silent client up: not before the guard itself does.
    pub(crate) fn give_up_after(&self) -> Duration {
        Duration::from_millis(self.write_stall.saturating_add(5000).max(30_000))
    }

    /// Whether places are kept for `peer`.
    pub(crate) fn is_reserved_for(&self, peer: IpAddr) -> bool {
        self.reserved.iter().any(|network| network.contains(peer))
    }

    pub(crate) fn tick_millis(&self) -> u64 {
        u64::try_from(self.tick.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether no connection is due at this age.
    pub(crate) fn is_young(&self, age: u64) -> bool {
        self.max_age.is_none_or(|most| age < most - most / 10)
    }

    /// The age at which the connection `id` is due: [`Self::max_age`], give or take a tenth, so
    /// that those that came together do not go together.
    pub(crate) fn due(&self, id: u64) -> Option<u64> {
        let age = self.max_age?;
        // SplitMix64's finisher: neighbouring numbers end up far apart.
        let mut mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let fifth = age / 5;
        Some(age - age / 10 + (mixed >> 32) % (fifth + 1))
    }
}

/// Why there may be as many connections as there may. What it was worked out from, as text:
/// `4/5 of 1024 files, less 64`.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapFrom {
    /// [`ConnGuardBuilder::max_connections`](crate::ConnGuardBuilder::max_connections) said so.
    Told,
    /// Four fifths of so many files that the process may have open, less 64.
    Files(u64),
    /// A quarter of so many bytes that the process may use, at 64 KiB for each connection.
    Memory(u64),
    /// There are files and memory for more.
    Ceiling,
}

/// As many connections as files and memory allow, at most 10,000, and which of them it was.
pub(crate) fn auto_connections() -> (usize, CapFrom) {
    connections_within(file_limit(), memory::limit())
}

fn connections_within(files: Option<u64>, memory: Option<u64>) -> (usize, CapFrom) {
    let of_files = |files: u64| (files / 5).saturating_mul(4).saturating_sub(64);
    // The handlers, and everything else that the process does, have the other three quarters.
    let of_memory = |bytes: u64| bytes / 4 / OF_A_CONNECTION;
    let of_files = files.map(|files| (of_files(files), CapFrom::Files(files)));
    let of_memory = memory.map(|bytes| (of_memory(bytes), CapFrom::Memory(bytes)));
    let ceiling = (AUTO_MOST as u64, CapFrom::Ceiling);
    let least = [of_files, of_memory]
        .into_iter()
        .flatten()
        .fold(
            ceiling,
            |least, next| if next.0 < least.0 { next } else { least },
        );
    (
        usize::try_from(least.0).unwrap_or(AUTO_MOST).max(16),
        least.1,
    )
}

impl fmt::Display for CapFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told => f.write_str("max_connections"),
            Self::Files(files) => write!(f, "4/5 of {files} files, less 64"),
            Self::Memory(bytes) => {
                write!(f, "1/4 of {} MiB of memory at 64 KiB each", bytes >> 20)
            }
            Self::Ceiling => write!(f, "no more than {AUTO_MOST} unless told"),
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
    fn the_cap_leaves_files_for_the_rest_of_the_process() {
        let within = |files| connections_within(Some(files), None);
        assert_eq!(within(600), (416, CapFrom::Files(600)));
        assert_eq!(within(1024), (752, CapFrom::Files(1024)));
        assert_eq!(within(u64::MAX), (AUTO_MOST, CapFrom::Ceiling));
        assert_eq!(within(0), (16, CapFrom::Files(0)));
        assert!((16..=AUTO_MOST).contains(&auto_connections().0));
    }

    #[test]
    fn the_cap_leaves_memory_for_the_handlers() {
        const MIB: u64 = 1 << 20;
        let within = |files, mib| connections_within(Some(files), Some(mib * MIB));
        assert_eq!(within(1 << 20, 512), (2048, CapFrom::Memory(512 * MIB)));
        assert_eq!(within(1024, 512), (752, CapFrom::Files(1024)));
        assert_eq!(within(1 << 20, 1 << 20), (AUTO_MOST, CapFrom::Ceiling));
        assert_eq!(within(1 << 20, 0), (16, CapFrom::Memory(0)));
        assert_eq!(
            connections_within(None, None),
            (AUTO_MOST, CapFrom::Ceiling)
        );
        assert_eq!(
            connections_within(None, Some(u64::MAX)),
            (AUTO_MOST, CapFrom::Ceiling)
        );
    }

    #[test]
    fn whoever_looks_is_told_what_the_cap_comes_from() {
        let guard = ConnGuard::builder().max_connections(7).build().unwrap();
        let now = guard.snapshot();
        assert_eq!((now.limit, now.limit_from), (7, CapFrom::Told));
        assert!(format!("{guard:?}").contains("connections_from: Told"));
        let now = ConnGuard::default().snapshot();
        assert_eq!((now.limit, now.limit_from), auto_connections());
        let texts = [
            CapFrom::Told,
            CapFrom::Files(600),
            CapFrom::Memory(1 << 29),
            CapFrom::Ceiling,
        ];
        let texts = texts.map(|from| from.to_string());
        assert_eq!(texts[1], "4/5 of 600 files, less 64");
        assert_eq!(texts[2], "1/4 of 512 MiB of memory at 64 KiB each");
    }

    #[test]
    fn the_soft_limit_is_below_the_cap() {
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
    fn ages_are_spread_over_a_tenth_on_either_side() {
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
