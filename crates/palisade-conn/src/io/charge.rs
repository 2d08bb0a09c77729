//! What a socket charges to the budget of bytes, where no layer charges the bodies of requests.

use crate::connection::ConnHandle;
use palisade_core::{BudgetFull, Charge};

/// The most that the bodies of one connection are charged, for each body: as in a layer.
const MAX_HELD: u64 = 4 << 20;
/// What is charged for a byte: the byte, and its copy in what the handler makes of it.
const WEIGHT: u64 = 2;

/// The charge of one socket. It is given back when this is dropped.
#[derive(Debug, Default)]
pub(super) struct ReadCharge(Option<Box<Charge>>);

impl ReadCharge {
    /// Charges the bytes of a read while a body is in flight that no layer charges.
    ///
    /// # Errors
    ///
    /// If the budget has no room.
    #[cold]
    #[inline(never)]
    pub(super) fn take(&mut self, conn: &ConnHandle, bytes: usize) -> Result<(), BudgetFull> {
        let state = conn.state();
        let (Some(totals), false) = (state.totals(), conn.has_charged_bodies()) else {
            return Ok(());
        };
        let Some(budget) = &totals.memory.budget else {
            return Ok(());
        };
        let client = conn.known_client().filter(|_| totals.peers_are_clients);
        let charge = self
            .0
            .get_or_insert_with(|| Box::new(budget.charge(client)));
        let most = MAX_HELD * u64::from(state.uploads().max(1));
        let left = most.saturating_sub(charge.bytes());
        charge.take((bytes as u64 * WEIGHT).min(left))
    }

    /// Returns whether something was charged.
    #[inline]
    pub(super) fn is_some(&self) -> bool {
        self.0.is_some()
    }
}
