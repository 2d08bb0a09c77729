//! Counts of permits taken, by kind. Uses no lock.

use super::{
    permit::PermitKind,
    sync::{AtomicU64, AtomicUsize},
};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// The permits of one limit.
#[derive(Debug)]
pub(crate) struct Permits {
    /// A word of [`Taken`].
    taken: AtomicU64,
    limit: AtomicUsize,
    /// Permits taken beyond the limit, by requests that a predicate selects.
    reserve_taken: AtomicUsize,
}

/// Counts of permits taken, in one word: all of them in the lowest 22 bits, the heavy ones among
/// them in the next 21, and the light-only ones in the last 21.
#[derive(Clone, Copy)]
struct Taken(u64);

/// The permits that a request may take.
#[derive(Clone, Copy)]
struct Capacity {
    limit: usize,
    /// How many of the limit only light requests may take.
    light_only: usize,
}

/// The largest number of permits that can be taken: it fits 21 bits.
const MAX_TAKEN_PERMITS: usize = (1 << 21) - 1;

/// Position of the count of heavy permits in [`Taken`], in bits.
const HEAVY_SHIFT: u32 = 22;
/// Position of the count of light-only permits in [`Taken`], in bits.
const LIGHT_ONLY_SHIFT: u32 = 43;

// === Permits ===

impl Permits {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            taken: AtomicU64::new(0),
            limit: AtomicUsize::new(limit),
            reserve_taken: AtomicUsize::new(0),
        }
    }

    #[inline]
    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, SeqCst);
    }

    /// The number of permits taken within the limit.
    #[inline]
    pub(crate) fn taken(&self) -> usize {
        Taken(self.taken.load(SeqCst)).total()
    }

    /// The number of permits taken beyond the limit.
    pub(crate) fn reserve_taken(&self) -> usize {
        self.reserve_taken.load(Relaxed)
    }

    /// Takes a permit for a new request while permits are plentiful, or without fairness.
    #[inline]
    pub(crate) fn try_take_common(&self) -> bool {
        let limit = self.limit().min(MAX_TAKEN_PERMITS);
        let add_one = |taken| (Taken(taken).total() < limit).then(|| taken.wrapping_add(1));
        self.taken.fetch_update(SeqCst, SeqCst, add_one).is_ok()
    }

    /// Takes a permit of this kind, if one is free.
    #[inline]
    pub(crate) fn try_take(&self, kind: PermitKind, is_new: bool, is_fair: bool) -> bool {
        let capacity = self.capacity(is_new, is_fair);
        let add_one = |taken| {
            capacity
                .has_free(Taken(taken), kind, is_new)
                .then(|| one_permit(kind).wrapping_add(taken))
        };
        self.taken.fetch_update(SeqCst, SeqCst, add_one).is_ok()
    }

    /// Takes a permit even if none is free.
    pub(crate) fn take_over_limit(&self) {
        self.taken.fetch_add(one_permit(PermitKind::Common), SeqCst);
    }

    /// Takes one of `max` permits beyond the limit.
    pub(crate) fn try_take_from_reserve(&self, max: usize) -> bool {
        let add_one = |reserve_taken| (reserve_taken < max).then(|| reserve_taken + 1);
        self.reserve_taken
            .fetch_update(Relaxed, Relaxed, add_one)
            .is_ok()
    }

    #[inline]
    pub(crate) fn free(&self, kind: PermitKind) {
        self.taken.fetch_sub(one_permit(kind), SeqCst);
    }

    pub(crate) fn free_reserve_permit(&self) {
        self.reserve_taken.fetch_sub(1, Relaxed);
    }

    /// Whether a light request could take a permit if it came first: a light-only one, or, if it is
    /// new, also a common one.
    pub(crate) fn has_free_for_light(&self, is_new: bool) -> bool {
        let (capacity, taken) = (self.capacity(is_new, true), Taken(self.taken.load(SeqCst)));
        capacity.has_free(taken, PermitKind::LightOnly, is_new)
            || (is_new && capacity.has_free(taken, PermitKind::Common, is_new))
    }

    /// The permits for a new or an admitted request. An admitted request gets a permit eventually,
    /// even with a limit of 0. Without fairness no permit is light-only.
    #[inline]
    fn capacity(&self, is_new: bool, is_fair: bool) -> Capacity {
        let limit = self
            .limit()
            .max(usize::from(!is_new))
            .min(MAX_TAKEN_PERMITS);
        let light_only = if is_fair {
            limit.div_ceil(10).min(limit / 2)
        } else {
            0
        };
        Capacity { limit, light_only }
    }
}

// === Capacity ===

impl Capacity {
    #[inline]
    fn has_free(self, taken: Taken, kind: PermitKind, is_new: bool) -> bool {
        let Self { limit, light_only } = self;
        let rest = limit.saturating_sub(light_only);
        let others = taken.total().saturating_sub(taken.light_only());
        let is_free = taken.total() < limit;
        match kind {
            PermitKind::LightOnly => is_free && taken.light_only() < light_only,
            // New light requests may take all that heavy ones leave, except a quarter of the limit:
            // once this many permits are taken, heavy requests would otherwise get none.
            PermitKind::Heavy if is_new && taken.total() >= rest => {
                is_free && others < rest && taken.heavy() < limit / 4
            }
            PermitKind::Heavy | PermitKind::Common => is_free && others < rest,
        }
    }
}

// === Taken ===

impl Taken {
    /// All permits.
    #[inline(always)]
    fn total(self) -> usize {
        self.0 as usize & ((1 << HEAVY_SHIFT) - 1)
    }

    /// Permits taken by heavy requests.
    #[inline(always)]
    fn heavy(self) -> usize {
        (self.0 >> HEAVY_SHIFT) as usize & MAX_TAKEN_PERMITS
    }

    /// Light-only permits.
    #[inline(always)]
    fn light_only(self) -> usize {
        (self.0 >> LIGHT_ONLY_SHIFT) as usize
    }
}

/// One permit of this kind, as added to the word of [`Taken`].
#[inline(always)]
const fn one_permit(kind: PermitKind) -> u64 {
    match kind {
        PermitKind::Common => 1,
        PermitKind::Heavy => 1 | 1 << HEAVY_SHIFT,
        PermitKind::LightOnly => 1 | 1 << LIGHT_ONLY_SHIFT,
    }
}
