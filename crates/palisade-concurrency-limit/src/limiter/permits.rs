//! How many permits there are, and how many of each kind are taken. Without a lock.

use super::{
    permit::Share,
    sync::{AtomicU64, AtomicUsize},
};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// The permits of one limit.
#[derive(Debug)]
pub(crate) struct Permits {
    /// A word of [`Taken`].
    taken: AtomicU64,
    limit: AtomicUsize,
    /// Taken beyond the limit, by requests that a predicate picks.
    picked: AtomicUsize,
}

/// How many permits are taken, in one word: all of them in the lowest 22 bits, of these the heavy
/// ones in the next 21, and those of the reserve in the last 21.
#[derive(Clone, Copy)]
struct Taken(u64);

/// The permits that a request of some kind may have.
#[derive(Clone, Copy)]
struct Room {
    limit: usize,
    /// The last of them, which only light requests get.
    reserve: usize,
}

/// How many permits may be taken.
const MAX_TAKEN: usize = (1 << 21) - 1;

const HEAVY_SHIFT: u32 = 22;
const RESERVE_SHIFT: u32 = 43;

// === Permits ===

impl Permits {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            taken: AtomicU64::new(0),
            limit: AtomicUsize::new(limit),
            picked: AtomicUsize::new(0),
        }
    }

    #[inline]
    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, SeqCst);
    }

    /// How many of the limit are taken.
    #[inline]
    pub(crate) fn taken(&self) -> usize {
        Taken(self.taken.load(SeqCst)).total()
    }

    /// How many are taken beyond the limit.
    pub(crate) fn picked(&self) -> usize {
        self.picked.load(Relaxed)
    }

    /// Takes a permit for a newcomer while permits are plentiful, or where there is no fairness.
    #[inline]
    pub(crate) fn take_any(&self) -> bool {
        let limit = self.limit().min(MAX_TAKEN);
        let more = |taken| (Taken(taken).total() < limit).then(|| taken.wrapping_add(1));
        self.taken.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    /// Takes a permit of this share, if one is free.
    #[inline]
    pub(crate) fn take(&self, share: Share, is_newcomer: bool, is_fair: bool) -> bool {
        let room = self.room(is_newcomer, is_fair);
        let more = |taken| {
            room.has(Taken(taken), share, is_newcomer)
                .then(|| one(share).wrapping_add(taken))
        };
        self.taken.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    /// Takes a permit though none may be free.
    pub(crate) fn take_anyway(&self) {
        self.taken.fetch_add(one(Share::Common), SeqCst);
    }

    /// Takes one of `max` permits beyond the limit.
    pub(crate) fn take_picked(&self, max: usize) -> bool {
        let more = |picked| (picked < max).then(|| picked + 1);
        self.picked.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    #[inline]
    pub(crate) fn free(&self, share: Share) {
        self.taken.fetch_sub(one(share), SeqCst);
    }

    pub(crate) fn free_picked(&self) {
        self.picked.fetch_sub(1, Relaxed);
    }

    /// Whether a light request would find a permit if it were first: of all, or of the newcomers.
    pub(crate) fn has_room_for_light(&self, is_newcomer: bool) -> bool {
        let (room, taken) = (self.room(is_newcomer, true), Taken(self.taken.load(SeqCst)));
        room.has(taken, Share::Reserve, is_newcomer)
            || (is_newcomer && room.has(taken, Share::Common, is_newcomer))
    }

    /// An admitted request gets a permit in the end, even with a limit of 0. Without fairness there
    /// is no reserve.
    #[inline]
    fn room(&self, is_newcomer: bool, is_fair: bool) -> Room {
        let limit = self.limit().max(usize::from(!is_newcomer)).min(MAX_TAKEN);
        let reserve = if is_fair {
            limit.div_ceil(10).min(limit / 2)
        } else {
            0
        };
        Room { limit, reserve }
    }
}

// === Room ===

impl Room {
    #[inline]
    fn has(self, taken: Taken, share: Share, is_newcomer: bool) -> bool {
        let Self { limit, reserve } = self;
        let rest = limit.saturating_sub(reserve);
        let others = taken.total().saturating_sub(taken.reserve());
        let is_free = taken.total() < limit;
        match share {
            Share::Reserve => is_free && taken.reserve() < reserve,
            // Light newcomers may have all that the heavy leave, save for a quarter: by then what
            // is taken by the light is so much that the heavy would get nothing at all.
            Share::Heavy if is_newcomer && taken.total() >= rest => {
                is_free && others < rest && taken.heavy() < limit / 4
            }
            Share::Heavy | Share::Common => is_free && others < rest,
        }
    }
}

// === Taken ===

impl Taken {
    /// All of them.
    #[inline(always)]
    fn total(self) -> usize {
        self.0 as usize & ((1 << HEAVY_SHIFT) - 1)
    }

    /// Those that heavy clients have.
    #[inline(always)]
    fn heavy(self) -> usize {
        (self.0 >> HEAVY_SHIFT) as usize & MAX_TAKEN
    }

    /// Those of the reserve.
    #[inline(always)]
    fn reserve(self) -> usize {
        (self.0 >> RESERVE_SHIFT) as usize
    }
}

/// One permit of this share, to be added to the word of [`Taken`].
#[inline(always)]
const fn one(share: Share) -> u64 {
    match share {
        Share::Common => 1,
        Share::Heavy => 1 | 1 << HEAVY_SHIFT,
        Share::Reserve => 1 | 1 << RESERVE_SHIFT,
    }
}
