//! The last step while memory is nearly used up and grows: the connections that hold most are
//! closed.

use super::{
    memory_growth::{CutFor, GrowthStep},
    policy::progress::takes_answer,
};
use crate::{
    connection::{
        ConnHandle,
        decision::{CloseMode, CloseRequest},
        registry::Found,
    },
    guard::{close::close, shared::Shared},
};
use palisade_core::Reason;
use std::cmp::Reverse;

/// The largest number of connections that one sweep closes.
const MAX_CUT: usize = 50;
/// Nothing is gained by closing connections that hold less.
const MIN_BYTES: u64 = 64 * 1024;

/// What one sweep finds in connections because memory has grown.
pub(crate) struct MemoryCut {
    step: GrowthStep,
    heaviest: Vec<(u64, ConnHandle)>,
}

impl MemoryCut {
    pub(crate) fn new(step: GrowthStep) -> Self {
        Self {
            step,
            heaviest: Vec::new(),
        }
    }

    /// Notes what each connection holds, before the sweep evaluates it, and asks its socket for the
    /// next sweep.
    #[cold]
    pub(crate) fn look_at(&mut self, shared: &Shared, found: &[Found]) {
        for one in found {
            self.look_at_one(shared, &one.conn);
        }
    }

    fn look_at_one(&mut self, shared: &Shared, conn: &ConnHandle) {
        let state = conn.state();
        let unread = u64::from(conn.unread_bytes());
        let bytes = match self.step.cut {
            Some(CutFor::All) => u64::from(conn.charged_bytes()) + unread,
            Some(CutFor::Unread) => unread,
            None => 0,
        };
        let is_cut = bytes >= MIN_BYTES
            && state.decision().is_none()
            && !takes_answer(&state.stats(), &state.sweep_state())
            && !shared.is_reserved_for(conn);
        if is_cut {
            self.heaviest.push((bytes, conn.clone()));
        }
        if self.heaviest.len() >= 2 * MAX_CUT {
            self.drop_lightest();
        }
        if self.step.asks {
            // If no answer comes, that of an earlier time does not count.
            conn.set_unread_bytes(0);
            state.ask_unread();
        }
    }

    /// Closes the connections that hold most.
    pub(crate) fn finish(mut self, shared: &Shared) {
        self.drop_lightest();
        let (limit, observed) = self.step.numbers;
        for (_, conn) in self.heaviest {
            let request = CloseRequest {
                reason: Reason::MemoryPressure,
                mode: CloseMode::Reset, // The kernel is to keep nothing.
                phase: conn.state().stats().phase(),
                limit,
                observed,
            };
            close(shared, &conn, request);
        }
    }

    fn drop_lightest(&mut self) {
        if self.heaviest.len() > MAX_CUT {
            let heaviest_first = |one: &(u64, ConnHandle)| Reverse(one.0);
            self.heaviest
                .select_nth_unstable_by_key(MAX_CUT, heaviest_first);
            self.heaviest.truncate(MAX_CUT);
        }
    }
}
