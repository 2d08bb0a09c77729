//! The permit of an open connection.

use super::{ConnHandle, registry::Place};
use crate::guard::shared::Shared;
use palisade_core::{BudgetFull, Event};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

/// A connection's place under the cap. The socket holds it, in any task, until it is dropped. Only
/// the drop of the permit ends the connection for the guard.
pub(crate) struct Permit {
    shared: Arc<Shared>,
    conn: ConnHandle,
    /// [`Place::NOWHERE`] if the guard is off.
    place: Place,
    /// What the socket has charged to the budget, for an HTTP/1 body that no layer charges.
    charged: u32,
}

/// The most that a body is charged, as in a layer.
const MAX_HELD: u32 = 4 << 20;
/// What is charged for a byte: the byte, and its copy in what the handler makes of it.
const WEIGHT: u64 = 2;

impl Permit {
    pub(crate) fn new(shared: Arc<Shared>, conn: ConnHandle, place: Place) -> Self {
        Self {
            shared,
            conn,
            place,
            charged: 0,
        }
    }

    /// The permit of a connection that the guard does not count, because it is off.
    pub(crate) fn unregistered(shared: Arc<Shared>, conn: ConnHandle) -> Self {
        Self {
            shared,
            conn,
            place: Place::NOWHERE,
            charged: 0,
        }
    }

    pub(crate) fn conn(&self) -> &ConnHandle {
        &self.conn
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn shared_arc(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Returns when the connection was admitted, in milliseconds of the guard.
    pub(crate) fn opened(&self) -> u64 {
        self.shared.registry.opened(self.place)
    }

    /// Continues as `conn`, which has entered the registry at `place`. What the guard has decided
    /// about the connection meanwhile holds for `conn`.
    pub(crate) fn continue_as(&mut self, conn: ConnHandle, place: Place) {
        let before = std::mem::replace(&mut self.conn, conn);
        let place_before = std::mem::replace(&mut self.place, place);
        if place_before != Place::NOWHERE {
            self.shared.registry.leave(place_before, &before);
        }
        let decision = before.state().mark_closed();
        let is_close_pending = before.state().take_close_pending();
        let after = self.conn.state();
        // A close of `conn` may have counted it already: it has been in the registry for a moment.
        let is_counted = decision.is_some() && is_close_pending && after.set_close_pending();
        if is_close_pending && !is_counted {
            self.shared.close_pending.fetch_sub(1, Relaxed);
        }
        if let Some(decision) = decision {
            after.request_close(decision);
        }
    }

    /// Charges the bytes of a read during an HTTP/1 body, unless a layer charges that.
    ///
    /// # Errors
    ///
    /// If the budget has no room.
    pub(crate) fn charge(&mut self, bytes: usize) -> Result<(), BudgetFull> {
        let state = self.conn.state();
        let (Some(totals), false) = (state.totals(), self.conn.has_charged_body()) else {
            return Ok(());
        };
        let left = MAX_HELD - self.charged;
        let bytes = (bytes as u64 * WEIGHT).min(left.into());
        self.charged += totals.charge(&*self.conn, bytes)?;
        Ok(())
    }

    /// Returns whether something is charged.
    #[inline]
    pub(crate) fn is_charged(&self) -> bool {
        self.charged > 0
    }

    /// Gives back what is charged, if its request has ended.
    #[cold]
    #[inline(never)]
    pub(crate) fn end_charge(&mut self) {
        if !self.conn.state().charges_reads() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        let charged = std::mem::take(&mut self.charged);
        if charged > 0
            && let Some(totals) = self.conn.state().totals()
        {
            totals.give_back(&*self.conn, charged);
        }
    }
}

/// A place under the cap, also if a metrics sink panics.
struct ReturnedOnDrop<'a>(&'a AtomicUsize);

impl Drop for ReturnedOnDrop<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back();
        let Self {
            shared,
            conn,
            place,
            ..
        } = self;
        if *place == Place::NOWHERE {
            conn.state().mark_closed();
            return;
        }
        let opened = shared.registry.leave(*place, conn);
        let state = conn.state();
        state.release_upgrade(conn);
        let decision = state.mark_closed();
        if state.take_close_pending() {
            shared.close_pending.fetch_sub(1, Relaxed);
        }
        // Last, so that what waits until no connection is open finds all of them recorded.
        let _place = ReturnedOnDrop(&shared.open);
        shared.recorder.record(|| {
            let reason = decision.map(|decision| decision.reason).or(state.closing());
            let open_for = Duration::from_millis(shared.now().saturating_sub(opened));
            Event::closed(conn, reason, state.stats().phase(), open_for)
        });
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("conn", &self.conn)
            .finish_non_exhaustive()
    }
}
