//! The order in which connections are evicted. Pure.

use crate::connection::stats::ConnStats;
use palisade_core::Phase;

/// A connection younger than this may have its first request on its way.
const NEWCOMER_MILLIS: u64 = 500;
/// A younger connection has not shown how often it comes: one request within a millisecond counts
/// as one within this time.
pub(crate) const MIN_AGE_FOR_WORK_MILLIS: u64 = 2000;
const HOUR_MILLIS: u64 = 3_600_000;
/// Idle connections at or below this work rate (work units per hour) are evicted before those
/// above.
const LOW_WORK_PER_HOUR: u64 = HOUR_MILLIS / MIN_AGE_FOR_WORK_MILLIS;
/// The number of bytes sent that are one unit of work, as a response is.
const BYTES_PER_WORK_UNIT: u64 = 16 * 1024;
/// Where the cap is near, a connection without progress for this long may be evicted in the middle
/// of a response or of a request body. A receive window that is read at 64 KiB/s opens again within
/// two or three seconds.
pub(crate) const STALLED_SECONDS: u8 = 4;

/// The same for a request body of which more is certainly to come. The longest stall goes first, so
/// that an upload which pauses for a moment stays as long as others have stood still for longer.
pub(crate) const STALLED_UPLOAD_SECONDS: u8 = 1;

/// How readily a connection is evicted: the lowest rank first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EvictionRank {
    pub(crate) class: EvictionClass,
    /// The order within the class: the least work, or the longest stall, first.
    detail: u64,
    /// The order among equals.
    tie: u64,
}

/// A class of connections. An unreserved one goes before a reserved one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EvictionClass {
    pub(crate) is_reserved: bool,
    pub(crate) usefulness: Usefulness,
}

/// What a connection has done, the least useful first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Usefulness {
    /// It only discards what its client still sends.
    Lingering,
    /// It has answered no request.
    NoResponse,
    /// Its client or its network has more than its share of the cap, whatever it does.
    AboveShare,
    /// It is idle and has done little work for its age.
    LowWork,
    /// It has made no progress for some seconds, or an upload for one.
    Stalled,
    /// It is idle and has done more work for its age, or it is a newcomer.
    Useful,
    /// It may wait for more of a body, or a handler works: what it did counts for it.
    QuietBody,
}

impl Usefulness {
    /// Returns whether a connection of this class did some work, or had no time to.
    pub(crate) fn has_worked(self) -> bool {
        matches!(self, Self::LowWork | Self::Useful | Self::QuietBody)
    }
}

impl EvictionClass {
    /// Returns whether connections of this class are not queued for eviction: by the time one is
    /// needed, others have come that are less useful.
    pub(crate) fn is_last_resort(self) -> bool {
        self.is_reserved || self.usefulness >= Usefulness::Useful
    }
}

impl EvictionRank {
    fn new(usefulness: Usefulness, detail: u64, tie: u64) -> Self {
        let class = EvictionClass {
            is_reserved: false,
            usefulness,
        };
        Self { class, detail, tie }
    }

    /// Returns the rank of a connection of this age in milliseconds; `None` if it cannot be
    /// evicted. Where there are `many_newcomers` they are evicted before others.
    pub(crate) fn of(stats: &ConnStats, age: u64, many_newcomers: bool) -> Option<Self> {
        use Usefulness::{Lingering, LowWork, NoResponse, QuietBody, Stalled, Useful};
        let oldest_first = u64::MAX - age;
        let longest_stall_first = u64::from(u8::MAX - stats.stalled);
        let (usefulness, detail, tie) = match stats.phase() {
            Phase::Lingering => (Lingering, 0, oldest_first),
            Phase::FirstHead if !many_newcomers && is_newcomer(stats, age) => {
                (Useful, LOW_WORK_PER_HOUR, oldest_first)
            }
            Phase::FirstHead => (NoResponse, 0, oldest_first),
            Phase::NextHead | Phase::Idle if stats.answered == 0 => (NoResponse, 0, oldest_first),
            Phase::NextHead | Phase::Idle => {
                let work = work_per_hour(stats, age);
                let usefulness = if work > LOW_WORK_PER_HOUR {
                    Useful
                } else {
                    LowWork
                };
                (usefulness, work, oldest_first)
            }
            Phase::Writing | Phase::RequestBody if stats.stalled >= STALLED_SECONDS => {
                (Stalled, longest_stall_first, oldest_first)
            }
            Phase::Working
                if stats.stalled >= STALLED_UPLOAD_SECONDS
                    && stats.body_left
                    && stats.awaits_body() =>
            {
                (Stalled, longest_stall_first, oldest_first)
            }
            Phase::Working if stats.stalled >= STALLED_SECONDS => {
                // Of a body whose end is unknown, or on HTTP/2, more may be to come. Or it is
                // complete and the handler works, or a gRPC stream is quiet: then what the
                // connection did counts for it.
                let is_certain = stats.body_left || stats.has_shut_windows();
                if is_certain || stats.awaits_body() && stats.answered == 0 {
                    (Stalled, longest_stall_first, oldest_first)
                } else if stats.awaits_body() {
                    (QuietBody, work_per_hour(stats, age), longest_stall_first)
                } else {
                    return None;
                }
            }
            // A request is at work, or may be, as far as is known.
            _ => return None,
        };
        Some(Self::new(usefulness, detail, tie))
    }

    /// Returns the rank of a connection above its share, of which `rank` is the own rank, if it has
    /// one. The least useful goes first.
    pub(crate) fn above_share(rank: Option<Self>, age: u64) -> Self {
        match rank {
            Some(rank) if rank.class < Self::above_share_class() => rank,
            Some(rank) => Self::new(Usefulness::AboveShare, rank.class.number(), rank.tie),
            None => Self::new(Usefulness::AboveShare, u64::MAX, age),
        }
    }

    /// Returns the rank of a connection for which places are reserved.
    pub(crate) fn reserved(mut self) -> Self {
        self.class.is_reserved = true;
        self
    }

    fn above_share_class() -> EvictionClass {
        Self::new(Usefulness::AboveShare, 0, 0).class
    }
}

impl EvictionClass {
    /// Returns its place in the order of all classes.
    fn number(self) -> u64 {
        let reserved = if self.is_reserved { 1 << 8 } else { 0 };
        reserved + self.usefulness as u64
    }
}

/// Returns whether the first request of a connection may be on its way, or be unread: where the
/// runtime is late, the socket may never have been read.
pub(crate) fn is_newcomer(stats: &ConnStats, age: u64) -> bool {
    (age < NEWCOMER_MILLIS || !was_read(stats)) && stats.phase() == Phase::FirstHead
}

/// Returns whether the server has looked for bytes of the client.
pub(crate) fn was_read(stats: &ConnStats) -> bool {
    stats.awaits_read || stats.read > 0
}

/// Returns the work that a connection did for each hour of its age: its responses, and the bytes
/// of large ones.
fn work_per_hour(stats: &ConnStats, age: u64) -> u64 {
    let units = u64::from(stats.answered).saturating_add(stats.written / BYTES_PER_WORK_UNIT);
    units.saturating_mul(HOUR_MILLIS) / age.max(MIN_AGE_FOR_WORK_MILLIS)
}

#[cfg(test)]
mod tests;
