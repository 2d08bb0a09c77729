//! A connection's place among those that are open.

use crate::{guard::Shared, judge::phase, registry::Place};
use palisade_core::{ConnInfo, Event};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    time::Duration,
};

/// Held by the socket for as long as there is one, whoever has it. Dropping it is the one true
/// end of the connection.
pub(crate) struct Permit {
    shared: Arc<Shared>,
    conn: Arc<ConnInfo>,
    /// [`Place::NOWHERE`] if the guard does not look.
    place: Place,
}

impl Permit {
    pub(crate) fn new(shared: Arc<Shared>, conn: Arc<ConnInfo>, place: Place) -> Self {
        Self {
            shared,
            conn,
            place,
        }
    }

    pub(crate) fn off(shared: Arc<Shared>, conn: Arc<ConnInfo>) -> Self {
        Self {
            shared,
            conn,
            place: Place::NOWHERE,
        }
    }

    pub(crate) fn conn(&self) -> &Arc<ConnInfo> {
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
            return;
        }
        let opened = shared.registry.leave(*place, conn);
        conn.leave();
        let state = conn.state();
        let verdict = state.retire();
        if state.take_going() {
            shared.going.fetch_sub(1, Relaxed);
        }
        shared.open.fetch_sub(1, SeqCst);
        shared.recorder.record(|| {
            let reason = verdict.map(|verdict| verdict.reason).or(state.closing());
            let open_for = Duration::from_millis(shared.now().saturating_sub(opened));
            Event::closed(conn, reason, phase(&state.sample()), open_for)
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
