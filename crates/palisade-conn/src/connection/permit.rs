//! The permit of an open connection.

use super::{ConnHandle, registry::Place};
use crate::guard::shared::Shared;
use palisade_core::Event;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, SeqCst},
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
}

impl Permit {
    pub(crate) fn new(shared: Arc<Shared>, conn: ConnHandle, place: Place) -> Self {
        Self {
            shared,
            conn,
            place,
        }
    }

    /// The permit of a connection that the guard does not count, because it is off.
    pub(crate) fn unregistered(shared: Arc<Shared>, conn: ConnHandle) -> Self {
        Self {
            shared,
            conn,
            place: Place::NOWHERE,
        }
    }

    pub(crate) fn conn(&self) -> &ConnHandle {
        &self.conn
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Self {
            shared,
            conn,
            place,
        } = self;
        if *place == Place::NOWHERE {
            conn.state().mark_closed();
            return;
        }
        let opened = shared.registry.leave(*place, conn);
        let state = conn.state();
        state.release_upgrade(conn.known_client());
        let decision = state.mark_closed();
        if state.take_close_pending() {
            shared.close_pending.fetch_sub(1, Relaxed);
        }
        shared.open.fetch_sub(1, SeqCst);
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
