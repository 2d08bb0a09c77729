//! What may go with a slot.

use crate::{ledger::Charge, slots::Slots};
use palisade_core::ClientKey;
use std::sync::Arc;

/// What only some requests have.
#[derive(Debug, Default)]
pub struct Extra {
    /// Its account, if slots were getting short when it came.
    pub(crate) charge: Option<Charge>,
    /// Held for its drop.
    pub(crate) counted: Option<Counted>,
    /// Holds a slot of those beyond the limit.
    pub(crate) picked: bool,
    /// Which slot it holds.
    pub(crate) share: Share,
}

/// A kind of slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Share {
    /// A slot for any client, taken by a light request, or while slots were plentiful.
    #[default]
    Common,
    /// A slot for any client, taken by a heavy request.
    Heavy,
    /// A slot of the last tenth, for light requests.
    Reserve,
}

/// How many slots are taken, in one word: all of them in the lowest 22 bits, of these the heavy
/// ones in the next 21, and those of the reserve in the last 21.
#[derive(Clone, Copy)]
pub(crate) struct Taken(pub(crate) u64);

/// How many slots may be taken.
pub(crate) const MAX_TAKEN: usize = (1 << 21) - 1;

const HEAVY_SHIFT: u32 = 22;
const RESERVE_SHIFT: u32 = 43;

/// One of the requests that a client has present, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    slots: Arc<Slots>,
    client: ClientKey,
}

// === Extra ===

impl Extra {
    /// The request stops working, for now or for good.
    pub(crate) fn pause(&mut self, slots: &Slots) {
        if let (Some(charge), Some(ledger)) = (&mut self.charge, slots.ledger()) {
            ledger.pause(charge);
        }
    }
}

// === Share ===

impl Share {
    /// One slot of this share, to be added to the word of [`Taken`].
    #[inline(always)]
    pub(crate) fn one(self) -> u64 {
        match self {
            Self::Common => 1,
            Self::Heavy => 1 | 1 << HEAVY_SHIFT,
            Self::Reserve => 1 | 1 << RESERVE_SHIFT,
        }
    }
}

// === Taken ===

impl Taken {
    /// All of them.
    #[inline(always)]
    pub(crate) fn total(self) -> usize {
        self.0 as usize & ((1 << HEAVY_SHIFT) - 1)
    }

    /// Those that heavy clients have.
    #[inline(always)]
    pub(crate) fn heavy(self) -> usize {
        (self.0 >> HEAVY_SHIFT) as usize & MAX_TAKEN
    }

    /// Those of the reserve.
    #[inline(always)]
    pub(crate) fn reserve(self) -> usize {
        (self.0 >> RESERVE_SHIFT) as usize
    }
}

// === Counted ===

impl Counted {
    /// Counts one more request of `client`. `None` if it has `max` already.
    pub(crate) fn enter(slots: &Arc<Slots>, client: ClientKey, max: usize) -> Option<Self> {
        slots.enter(client, max).then(|| Self { slots: slots.clone(), client })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.slots.exit(self.client);
    }
}
