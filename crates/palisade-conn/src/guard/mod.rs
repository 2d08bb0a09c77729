//! The guard, as users see it.

pub(crate) mod builder;
pub(crate) mod close;
pub(crate) mod limits;
mod listen;
pub(crate) mod recent;
pub(crate) mod shared;
pub(crate) mod snapshot;

use crate::{
    connection::{
        ConnHandle,
        decision::{CloseMode, CloseRequest},
    },
    log,
    sweep::scaled_timeouts,
};
use builder::ConnGuardBuilder;
use limits::Limits;
use palisade_core::{
    ConnInfo, Event, GaugeSource, Mode, Pressure, Reason, Recorder, Rejection, Violation,
};
use recent::ClosedConn;
use shared::Shared;
use snapshot::ConnSnapshot;
use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

/// Guards the connections of one or more listeners. Clones are handles on the same guard.
///
/// See the [crate docs](crate). It works as long as the guard, one of its listeners or one of its
/// connections exists, inside the tokio runtime where connections are accepted.
#[derive(Clone)]
pub struct ConnGuard {
    shared: Arc<Shared>,
}

impl ConnGuard {
    /// Returns a builder, with every limit at its default.
    pub fn builder() -> ConnGuardBuilder {
        ConnGuardBuilder::new()
    }

    pub(crate) fn new(limits: Limits, recorder: Recorder, external_pressure: Pressure) -> Self {
        let shared = Arc::new(Shared::new(limits, recorder, external_pressure));
        log::cap(&shared.limits);
        let gauges = Arc::downgrade(&shared);
        shared.recorder.register(gauges as Weak<dyn GaugeSource>);
        Self { shared }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Closes `conn` because of `reason`, if it is one of this guard's and no close was decided
    /// before. Returns whether this was the first decision.
    ///
    /// In [`Mode::Shadow`] it only reports that it would, except for [`Reason::Shutdown`], which
    /// is not a rule of the guard. In [`Mode::Off`] it does nothing.
    pub fn close(&self, conn: &ConnHandle, reason: Reason, mode: CloseMode) -> bool {
        let phase = conn.state().stats().phase();
        let request = CloseRequest::without_numbers(reason, mode, phase);
        close::close(&self.shared, conn, request)
    }

    /// Lets `conn` take no more requests, because of `reason`: HTTP/1 responses say
    /// `Connection: close`, and the server sends GOAWAY if it can. The tasks of the connection are
    /// woken. Returns `false` if that was decided before.
    pub fn begin_closing(&self, conn: &ConnHandle, reason: Reason) -> bool {
        conn.state().begin_closing(reason)
    }

    /// Reports one request of `conn` that its server cuts, or would cut in [`Mode::Shadow`], while
    /// the connection goes on. For servers that can do so.
    pub fn report_cut(&self, violation: &Violation, conn: &ConnInfo) {
        let event = || Event::cut(violation, self.mode(), Some(conn));
        self.shared.recorder.record(event);
    }

    /// Reports one request of `conn` that its server refused by itself. That is not a rule of the
    /// guard and holds in every mode, so the event says [`Mode::Enforce`]. For servers.
    pub fn report_refused(&self, rejection: &Rejection, conn: &ConnInfo) {
        let event = || Event::refused(rejection, Mode::Enforce, Some(conn));
        self.shared.recorder.record(event);
    }

    /// Returns the guard's mode.
    pub fn mode(&self) -> Mode {
        self.shared.limits.mode
    }

    /// Returns [`ConnGuardBuilder::write_stall`] as it applies now, shortened under pressure.
    pub fn write_stall(&self) -> Duration {
        let limits = scaled_timeouts::under_pressure(&self.shared.limits, self.shared.pressure());
        Duration::from_millis(limits.write_stall)
    }

    /// Returns what is connected now, in which phase, and what was accepted. Walks over all
    /// connections.
    pub fn snapshot(&self) -> ConnSnapshot {
        ConnSnapshot::take(&self.shared)
    }

    /// Returns the last 1,000 connections that were closed or refused, the latest last; in
    /// [`Mode::Shadow`] those that would have been.
    pub fn recently_closed(&self) -> Vec<ClosedConn> {
        self.shared.recently_closed.all()
    }
}

/// Every limit at its default.
impl Default for ConnGuard {
    fn default() -> Self {
        // A test holds the defaults to their ranges.
        Self::builder()
            .build()
            .expect("the defaults are in their ranges")
    }
}

impl fmt::Debug for ConnGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}
