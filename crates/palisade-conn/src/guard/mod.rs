//! The guard and its public methods.

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
        memory_gate::MemoryGate,
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

/// Guards the connections of one or more listeners. Clones are handles to the same guard.
///
/// See the [crate docs](crate). The guard works as long as a handle, one of its listeners or one of
/// its connections exists. It runs inside the tokio runtime in which connections are accepted.
#[derive(Clone)]
pub struct ConnGuard {
    shared: Arc<Shared>,
}

impl ConnGuard {
    /// Returns a builder with all options at their defaults.
    pub fn builder() -> ConnGuardBuilder {
        ConnGuardBuilder::new()
    }

    pub(crate) fn new(
        limits: Limits,
        recorder: Recorder,
        external_pressure: Pressure,
        memory: MemoryGate,
    ) -> Self {
        let shared = Arc::new(Shared::new(limits, recorder, external_pressure, memory));
        log::connection_cap(&shared.limits);
        let gauges = Arc::downgrade(&shared);
        shared.recorder.register(gauges as Weak<dyn GaugeSource>);
        Self { shared }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Closes `conn` for `reason`, if it belongs to this guard and no close has been decided.
    /// Returns whether this was the first decision.
    ///
    /// In [`Mode::Shadow`] the guard only reports that it would close it, except for
    /// [`Reason::Shutdown`], which is not a rule of the guard. In [`Mode::Off`] it does nothing.
    pub fn close(&self, conn: &ConnHandle, reason: Reason, mode: CloseMode) -> bool {
        let phase = conn.state().stats().phase();
        let request = CloseRequest::without_numbers(reason, mode, phase);
        close::close(&self.shared, conn, request)
    }

    /// Lets `conn` take no more requests, for `reason`: HTTP/1 responses say `Connection: close`,
    /// and the server sends GOAWAY if it can. Wakes the tasks of the connection. Returns `false` if
    /// the connection was closing already.
    pub fn begin_closing(&self, conn: &ConnHandle, reason: Reason) -> bool {
        conn.state().begin_closing(reason)
    }

    /// Reports one request of `conn` that its server cuts, or would cut in [`Mode::Shadow`], while
    /// the connection stays open. For servers that can cut single requests.
    pub fn report_cut(&self, violation: &Violation, conn: &ConnInfo) {
        let event = || Event::cut(violation, self.mode(), Some(conn));
        self.shared.recorder.record(event);
    }

    /// Reports one request of `conn` that its server refused by itself. That is not a rule of the
    /// guard and applies in every mode, so the event says [`Mode::Enforce`]. For servers.
    pub fn report_refused(&self, rejection: &Rejection, conn: &ConnInfo) {
        let event = || Event::refused(rejection, Mode::Enforce, Some(conn));
        self.shared.recorder.record(event);
    }

    /// Returns the guard's mode.
    pub fn mode(&self) -> Mode {
        self.shared.limits.mode
    }

    /// Returns the present value of [`ConnGuardBuilder::write_timeout`], which shrinks under
    /// [pressure](crate#under-pressure).
    pub fn write_timeout(&self) -> Duration {
        let limits = scaled_timeouts::under_pressure(&self.shared.limits, self.shared.pressure());
        Duration::from_millis(limits.write_stall)
    }

    /// Returns the state of the guard and its connections. Visits every connection.
    pub fn snapshot(&self) -> ConnSnapshot {
        ConnSnapshot::take(&self.shared)
    }

    /// Returns the last 1,000 connections that were closed or refused, the latest last. In
    /// [`Mode::Shadow`], returns those that would have been.
    pub fn recently_closed(&self) -> Vec<ClosedConn> {
        self.shared.recently_closed.all()
    }
}

/// A guard with all options at their defaults.
impl Default for ConnGuard {
    fn default() -> Self {
        // A test checks that the defaults are in their ranges.
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
