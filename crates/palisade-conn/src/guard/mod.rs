//! The guard and its public methods.

pub(crate) mod bound;
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
        in_flight,
        memory_gate::MemoryGate,
    },
    log,
    sweep::scaled_timeouts,
};
use bound::MemoryBound;
use builder::ConnGuardBuilder;
use limits::Limits;
use palisade_client_ip::Trust;
use palisade_core::{
    Client, ConnInfo, Event, GaugeSource, Mode, Pressure, Reason, Recorder, Rejection, Violation,
    shed::LoadShedding,
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
    ///
    /// ```
    /// use palisade_conn::{CapFrom, ConnGuard};
    ///
    /// let guard = ConnGuard::builder().max_connections(2000).build()?;
    /// let snapshot = guard.snapshot();
    /// assert_eq!((snapshot.limit, snapshot.limit_from), (2000, CapFrom::Configured));
    /// # Ok::<_, palisade_conn::ConfigError>(())
    /// ```
    pub fn builder() -> ConnGuardBuilder {
        ConnGuardBuilder::new()
    }

    pub(crate) fn new(
        limits: Limits,
        recorder: Recorder,
        external_pressure: Pressure,
        memory: MemoryGate,
        proxies: (Option<Trust>, Option<Trust>),
    ) -> Self {
        let shared = Shared::new(limits, recorder, external_pressure, memory, proxies);
        let shared = Arc::new(shared);
        LoadShedding::find_asked_by(in_flight::asked_for);
        log::connection_cap(&shared.limits);
        log::memory_bound(shared.limits.mode, &MemoryBound::of(&shared));
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
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{CloseMode, ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::default();
    /// let (mut client, socket) = pair().await?;
    /// let mut io = guard.admit(socket, None, None)?;
    /// assert!(guard.close(io.conn(), Reason::Shutdown, CloseMode::Graceful));
    /// assert!(!guard.close(io.conn(), Reason::Shutdown, CloseMode::Reset)); // Too late.
    /// assert_eq!(io.read(&mut [0]).await?, 0); // The server sees the end of the stream.
    /// drop(io);
    /// assert_eq!(client.read(&mut [0]).await?, 0); // The client sees a FIN.
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::Shutdown);
    /// # Ok(())
    /// # }
    /// ```
    pub fn close(&self, conn: &ConnHandle, reason: Reason, mode: CloseMode) -> bool {
        let phase = conn.state().stats().phase();
        let request = CloseRequest::without_numbers(reason, mode, phase);
        close::close(&self.shared, conn, request)
    }

    /// Lets `conn` take no more requests, for `reason`: HTTP/1 responses say `Connection: close`,
    /// and the server sends GOAWAY if it can. Wakes the tasks of the connection. Returns `false` if
    /// the connection was closing already.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::default();
    /// // A connection, and a handler with `RequestTracking` around it.
    /// let (_client, io, mut service) = tracked(&guard, hello).await?;
    /// assert!(guard.begin_closing(io.conn(), Reason::Shutdown));
    /// assert_eq!(io.conn().closing(), Some(Reason::Shutdown));
    /// let response = service.call(Request::new(String::new())).await?;
    /// assert_eq!(response.headers()["connection"], "close");
    /// # Ok(())
    /// # }
    /// ```
    pub fn begin_closing(&self, conn: &ConnHandle, reason: Reason) -> bool {
        conn.state().begin_closing(reason)
    }

    /// Reports one request of `conn` that its server cuts, or would cut in [`Mode::Shadow`], while
    /// the connection stays open. `client` is the client if a proxy has named it. For servers that
    /// can cut single requests.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Mode};
    /// use palisade_core::{Guard, Phase, Reason, Violation};
    ///
    /// let journal = Journal::default(); // A `Metrics` that keeps every event.
    /// let guard = ConnGuard::builder().mode(Mode::Shadow).metrics(journal.clone()).build()?;
    /// let (_client, socket) = pair().await?;
    /// let io = guard.admit(socket, None, None)?;
    /// // The client of a stream took nothing for 300 s. In shadow mode it is not reset.
    /// let (reason, phase) = (Reason::WindowStall, Phase::ResponseBody);
    /// let violation = Violation::new(Guard::Connection, reason, phase, 300_000, 300_120);
    /// guard.report_cut(&violation, io.conn(), None);
    /// let (reported, mode) = journal.cuts()[0];
    /// assert_eq!((reported.reason, mode), (Reason::WindowStall, Mode::Shadow));
    /// # Ok(())
    /// # }
    /// ```
    pub fn report_cut(&self, violation: &Violation, conn: &ConnInfo, client: Option<&Client>) {
        let event = || Event::cut(violation, self.mode(), Some(conn)).of_client(client);
        self.shared.recorder.record(event);
    }

    /// Reports one request of `conn` that its server refused by itself. That is not a rule of the
    /// guard and applies in every mode, so the event says [`Mode::Enforce`]. `client` is the client
    /// if a proxy has named it. For servers.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use http::StatusCode;
    /// use palisade_conn::{ConnGuard, Mode};
    /// use palisade_core::{Guard, Phase, Reason, Rejection, ResponseFormat, Violation};
    ///
    /// let journal = Journal::default(); // A `Metrics` that keeps every event.
    /// let guard = ConnGuard::builder().mode(Mode::Shadow).metrics(journal.clone()).build()?;
    /// let (_client, socket) = pair().await?;
    /// let io = guard.admit(socket, None, None)?;
    /// let (reason, phase) = (Reason::BadRequest, Phase::RequestHead);
    /// let violation = Violation::new(Guard::Connection, reason, phase, 0, 0);
    /// let format = ResponseFormat::Http { close: true };
    /// let rejection = Rejection::new(violation, StatusCode::BAD_REQUEST, format);
    /// guard.report_refused(&rejection, io.conn(), None);
    /// let (reported, mode) = journal.refusals()[0];
    /// assert_eq!((reported.reason, mode), (Reason::BadRequest, Mode::Enforce)); // In every mode.
    /// # Ok(())
    /// # }
    /// ```
    pub fn report_refused(&self, rejection: &Rejection, conn: &ConnInfo, client: Option<&Client>) {
        let event = || Event::refused(rejection, Mode::Enforce, Some(conn)).of_client(client);
        self.shared.recorder.record(event);
    }

    /// Reports one request of `conn` that its server refused by a limit of this guard, in its mode.
    #[doc(hidden)]
    pub fn report_shed(&self, rejection: &Rejection, conn: &ConnInfo, client: Option<&Client>) {
        let event = || Event::refused(rejection, self.mode(), Some(conn)).of_client(client);
        self.shared.recorder.record(event);
    }

    /// Returns the guard's mode.
    pub fn mode(&self) -> Mode {
        self.shared.limits.mode
    }

    /// Returns the present value of [`ConnGuardBuilder::write_timeout`], which shrinks under
    /// [pressure](crate#under-pressure).
    ///
    /// ```
    /// use palisade_conn::{ConnGuard, Pressure};
    /// use std::time::Duration;
    ///
    /// let pressure = Pressure::default();
    /// let guard = ConnGuard::builder().pressure(pressure.clone()).build()?;
    /// assert_eq!(guard.write_timeout(), Duration::from_secs(300));
    /// pressure.set(1.0);
    /// assert_eq!(guard.write_timeout(), Duration::from_secs(10));
    /// # Ok::<_, palisade_conn::ConfigError>(())
    /// ```
    pub fn write_timeout(&self) -> Duration {
        let limits = scaled_timeouts::under_pressure(&self.shared.limits, self.shared.pressure());
        Duration::from_millis(limits.write_stall)
    }

    /// Returns the most memory that a server behind this guard uses by its own doing, and what
    /// enforces each part of it. With the feature `tracing` a log line says so when a guard is
    /// created that enforces its limits.
    ///
    /// ```
    /// use palisade_conn::{Budget, ConnGuard, Memory};
    ///
    /// let memory = Memory::reported(256 << 20)?;
    /// let budget = Budget::new(64 << 20)?;
    /// let guard = ConnGuard::builder().memory(memory).byte_budget(budget).max_connections(100);
    /// let bound = guard.build()?.memory_bound();
    /// assert_eq!((bound.budget, bound.limit), (Some(64 << 20), Some(256 << 20)));
    /// assert_eq!((bound.connections, bound.requests), (100, 1024));
    /// assert!(bound.total() > bound.connections * bound.connection_bytes);
    /// assert_eq!(bound.kernel_total(), Some(100 * (2 * 256 + 64) * 1024));
    /// println!("{bound}");
    /// # Ok::<_, palisade_conn::ConfigError>(())
    /// ```
    pub fn memory_bound(&self) -> MemoryBound {
        MemoryBound::of(&self.shared)
    }

    /// Returns the state of the guard and its connections. Visits every connection.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Phase};
    ///
    /// let guard = ConnGuard::default();
    /// // The address of an `axum::serve` behind the guard, with this handler.
    /// let server = serve(&guard, get(pending::<()>)).await?;
    /// let mut client = TcpStream::connect(server).await?;
    /// client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    /// # while guard.snapshot().in_flight == 0 { tokio::task::yield_now().await }
    /// let snapshot = guard.snapshot();
    /// assert_eq!((snapshot.open, snapshot.in_flight, snapshot.untracked), (1, 1, 0));
    /// assert_eq!(snapshot.phases, [(Phase::Working, 1)]);
    /// let client = snapshot.clients[0];
    /// assert_eq!((client.connections, client.requests, client.read), (1, 1, 27));
    /// # Ok(())
    /// # }
    /// ```
    pub fn snapshot(&self) -> ConnSnapshot {
        ConnSnapshot::take(&self.shared)
    }

    /// Returns the last 1,000 connections that were closed or refused, the latest last. In
    /// [`Mode::Shadow`], returns those that would have been.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Mode, Phase, Reason};
    ///
    /// let guard = ConnGuard::builder()
    ///     .first_request_timeout(Duration::from_millis(100))
    /// #   .sweep_interval(Duration::from_millis(10))
    ///     .build()?;
    /// // The address of an `axum::serve` behind the guard, with this handler.
    /// let server = serve(&guard, get("hello")).await?;
    /// let mut slow = TcpStream::connect(server).await?;
    /// slow.write_all(b"GET / HTTP/1.1\r\n").await?; // The head never ends.
    /// slow.read_to_string(&mut String::new()).await?;
    /// let closed = guard.recently_closed()[0];
    /// assert_eq!((closed.reason, closed.phase), (Reason::FirstRequest, Phase::FirstHead));
    /// assert_eq!((closed.limit, closed.read, closed.requests), (100, 16, 0));
    /// assert_eq!((closed.peer, closed.mode), (slow.local_addr()?, Mode::Enforce));
    /// # Ok(())
    /// # }
    /// ```
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
