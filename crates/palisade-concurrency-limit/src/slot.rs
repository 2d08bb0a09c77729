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

/// Which of the slots. One word counts the taken ones of each share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Share {
    /// Those for every client, taken by a light one, or when it did not matter who came.
    #[default]
    Common,
    /// The same, taken by a heavy one.
    Heavy,
    /// The last tenth, for light ones.
    Reserve,
}

/// How many slots of one share may be taken.
pub(crate) const MAX_TAKEN: usize = (1 << BITS) - 1;

/// Of the word, for each share.
const BITS: u32 = 21;

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
    /// One slot of this share, in the word that counts all.
    #[inline(always)]
    pub(crate) fn one(self) -> u64 {
        1 << (self as u32 * BITS)
    }

    /// How many slots of this share are taken.
    #[inline(always)]
    pub(crate) fn of(self, taken: u64) -> usize {
        (taken >> (self as u32 * BITS)) as usize & MAX_TAKEN
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
