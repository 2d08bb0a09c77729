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
}

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
