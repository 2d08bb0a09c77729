//! Eviction: closes the least useful connection when another one needs its place.

pub(crate) mod queue;
pub(crate) mod rank;

use crate::{
    connection::{
        ConnHandle,
        decision::{CloseMode, CloseRequest},
    },
    guard::{close::close, limits::Shares, shared::Shared},
};
use palisade_core::{Phase, Reason};
use queue::{Candidate, MAX_CANDIDATES};
use rank::{
    EvictionClass, EvictionRank, MIN_AGE_FOR_WORK_MILLIS, Usefulness, is_newcomer, was_read,
};
use std::sync::atomic::Ordering::Relaxed;

/// Where no candidate is ready, this many connections are examined.
const MAX_EXAMINED: usize = 32;

/// A connection that asks for the place of another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// Its number. It may be open already.
    pub(crate) own: u64,
    /// A place is reserved for it.
    pub(crate) is_reserved: bool,
    /// Its client or its network has some connections already. Those of others stay that are as
    /// useful as a new one.
    pub(crate) has_some: bool,
    /// Its client or its network has many connections already.
    pub(crate) has_many: bool,
    /// There are places left, but memory is short. A connection that is as useful as a new one
    /// stays: it is that of an honest client as likely, and to close it frees hardly anything.
    pub(crate) is_for_memory: bool,
    /// There are places left, or about to be. A connection that was never read stays: to close it
    /// takes the task that would read it.
    pub(crate) spares_unread: bool,
}

impl Claim {
    /// Returns whether a connection of `class` and of this age is evicted for it.
    fn may_evict(self, class: EvictionClass, age: u64) -> bool {
        let is_young = class.usefulness == Usefulness::LowWork && age < MIN_AGE_FOR_WORK_MILLIS;
        let is_spared = self.has_some && class.usefulness >= Usefulness::Useful
            || self.has_many && class.usefulness.has_worked()
            || self.is_for_memory && (is_young || class.is_last_resort());
        (self.is_reserved || !class.is_reserved) && !is_spared
    }

    /// Returns whether `conn` stays because it claims the place itself, or was never read.
    fn spares(self, conn: &ConnHandle) -> bool {
        conn.id() == self.own || self.spares_unread && !was_read(&conn.state().stats())
    }
}

/// Evicts the least useful connection, where `open` are open. Returns `false` if none may be
/// evicted for this claim.
pub(crate) fn evict(shared: &Shared, open: usize, claim: Claim) -> bool {
    let limit = shared.limits.soft() as u64;
    let now = shared.now();
    let many_newcomers = shared.many_newcomers.load(Relaxed);
    while let Some(candidate) = take_candidate(shared, claim, now) {
        let Candidate {
            class,
            opened,
            conn,
        } = candidate;
        let Some(conn) = conn.upgrade() else { continue };
        let is_still = if class.usefulness == Usefulness::AboveShare {
            is_above_share(shared, &conn)
        } else {
            let age = now.saturating_sub(opened);
            rank(shared, &conn, age, many_newcomers).is_some_and(|rank| rank.class <= class)
        };
        if is_still && !claim.spares(&conn) && close_evicted(shared, &conn, limit, open as u64) {
            return true;
        }
    }
    evict_one_of_few(shared, limit, open, 0, claim)
}

/// Evicts a connection because no files are left, for a client that may not even be there: Linux
/// reports the shortage before it looks whether a connection waits. So no connection is evicted
/// that has only just come.
pub(crate) fn evict_for_file(shared: &Shared) -> bool {
    const MIN_AGE_MILLIS: u64 = 1000;
    let open = shared.open.load(Relaxed);
    let claim = Claim {
        own: 0, // The number of no connection.
        is_reserved: true,
        has_some: false,
        has_many: false,
        is_for_memory: false,
        spares_unread: false,
    };
    let limit = open.saturating_sub(1) as u64;
    evict_one_of_few(shared, limit, open, MIN_AGE_MILLIS, claim)
}

/// Closes a connection that has to make room.
pub(crate) fn close_evicted(shared: &Shared, conn: &ConnHandle, limit: u64, observed: u64) -> bool {
    let stats = conn.state().stats();
    let phase = stats.phase();
    // Bytes for a client that does not read would stay in the kernel, and half a response must not
    // look like a whole one.
    let mode = if phase == Phase::Writing || stats.in_flight > 0 {
        CloseMode::Reset
    } else {
        CloseMode::Graceful
    };
    let reason = Reason::ConnectionEvicted;
    close(
        shared,
        conn,
        CloseRequest {
            reason,
            mode,
            phase,
            limit,
            observed,
        },
    )
}

/// Returns the rank of a connection; `None` if it cannot be evicted or is being closed already.
pub(crate) fn rank(
    shared: &Shared,
    conn: &ConnHandle,
    age: u64,
    many_newcomers: bool,
) -> Option<EvictionRank> {
    let state = conn.state();
    if state.decision().is_some() {
        return None;
    }
    let rank = EvictionRank::of(&state.stats(), age, many_newcomers)?;
    Some(if shared.is_reserved_for(conn) {
        rank.reserved()
    } else {
        rank
    })
}

/// Evicts the least useful of a few connections that are at least `min_age` milliseconds old.
fn evict_one_of_few(shared: &Shared, limit: u64, open: usize, min_age: u64, claim: Claim) -> bool {
    let now = shared.now();
    let turn = shared.turn.fetch_add(1, Relaxed);
    let mut few = Vec::with_capacity(MAX_EXAMINED);
    shared.registry.copy_few(turn, MAX_EXAMINED, &mut few);
    let age = |opened: u64| now.saturating_sub(opened);
    let newcomers = few
        .iter()
        .filter(|one| is_newcomer(&one.conn.state().stats(), age(one.opened)));
    let many_newcomers = 2 * newcomers.count() > few.len();
    let least_useful = few
        .iter()
        .filter(|one| age(one.opened) >= min_age && !claim.spares(&one.conn))
        .filter_map(|one| {
            let rank = rank(shared, &one.conn, age(one.opened), many_newcomers)?;
            Some((rank, one))
        })
        .filter(|(rank, one)| claim.may_evict(rank.class, age(one.opened)))
        .min_by_key(|(rank, _)| *rank);
    match least_useful {
        Some((_, one)) => close_evicted(shared, &one.conn, limit, open as u64),
        None => false,
    }
}

fn take_candidate(shared: &Shared, claim: Claim, now: u64) -> Option<Candidate> {
    let may_evict = |one: &Candidate| claim.may_evict(one.class, now.saturating_sub(one.opened));
    let (next, left) = shared.candidates.take(may_evict);
    if left < MAX_CANDIDATES / 4 {
        shared.sweeper.hurry();
    }
    next
}

/// Returns whether the client of `conn`, or its network, has more than its share near the cap.
fn is_above_share(shared: &Shared, conn: &ConnHandle) -> bool {
    let Some(Shares { client, network }) = shared.limits.least_shares() else {
        return false;
    };
    let one_more = Shares {
        client: client.saturating_add(1),
        network: network.saturating_add(1),
    };
    shared.registry.has(conn, one_more)
}
