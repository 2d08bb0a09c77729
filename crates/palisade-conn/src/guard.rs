//! The guard: what all its connections share.

#[cfg(target_os = "linux")]
use crate::kernel;
use crate::{
    ClosedConn, ConnGuardBuilder, ConnSnapshot, GuardedIo, Transport,
    admission::NotIn,
    judge::{End, phase},
    limits::Limits,
    registry::{Registry, Shares},
    report::{Mark, Marks, RecentlyClosed},
    say, strain,
    sweeper::{Sweeper, Untold},
};
use palisade_core::{
    CloseMode, ConnInfo, ConnTotals, Event, Gauge, GaugeSource, Guard, Mode, Pressure, Reason,
    Recorder, Rejection, Violation,
};
use palisade_guard::{Clock, Table};
use parking_lot::Mutex;
use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

/// Room for so many clients in the table of accept rates: 512 KiB.
const CLIENTS: usize = 1 << 16;

/// Watches over the connections of one or more listeners. Clones are handles on the same guard.
///
/// See the [crate docs](crate). It works as long as the guard, one of its listeners or one of its
/// connections is left, inside the tokio runtime where connections are accepted.
#[derive(Clone)]
pub struct ConnGuard {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) totals: Arc<ConnTotals>,
    pub(crate) recorder: Recorder,
    /// Handed in from outside.
    pub(crate) pressed: Pressure,
    pub(crate) registry: Registry,
    pub(crate) sweeper: Sweeper,
    /// Whether every request passes an accounting layer.
    pub(crate) tracked: AtomicBool,
    /// The accounting layer has seen a request that says on which connection it came.
    pub(crate) is_placed: AtomicBool,
    pub(crate) untold: Untold,
    pub(crate) errors: AcceptErrors,
    /// Who can be spared, the first to go last.
    pub(crate) spared: Mutex<Vec<Spared>>,
    /// More than half of the connections had only just come when the sweeper looked last.
    pub(crate) many_newcomers: AtomicBool,
    pub(crate) kills: RecentlyClosed,
    pub(crate) marks: Marks,
    pub(crate) open: AtomicUsize,
    /// Told to go and still here.
    pub(crate) going: AtomicUsize,
    pub(crate) opened: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) clock: Clock,
    /// Debts of who connects too often.
    pub(crate) rates: Option<Table>,
    pub(crate) turn: AtomicUsize,
    pub(crate) listening: Mutex<Vec<Listening>>,
}

/// A listener on the internet, for as long as there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    /// How many connections may wait there, where known.
    pub(crate) backlog: Option<u32>,
}

/// One who can be spared.
pub(crate) struct Spared {
    /// The class of [`spare`](crate::judge::spare) in which he was.
    pub(crate) class: u8,
    pub(crate) opened: u64,
    pub(crate) conn: Weak<ConnInfo>,
}

/// Failures to accept, by what was done about them.
#[derive(Debug, Default)]
pub(crate) struct AcceptErrors {
    /// Of one connection that was gone before it was here.
    pub(crate) of_one: AtomicU64,
    /// No files or memory left.
    pub(crate) exhausted: AtomicU64,
    pub(crate) other: AtomicU64,
}

// === ConnGuard ===

impl ConnGuard {
    /// A guard of other numbers than the default ones.
    pub fn builder() -> ConnGuardBuilder {
        ConnGuardBuilder::new()
    }

    pub(crate) fn new(limits: Limits, recorder: Recorder, pressed: Pressure) -> Self {
        let mut totals = ConnTotals::default();
        totals.mode = limits.mode;
        totals.recorder = recorder.clone();
        totals.max_requests = limits.max_requests.filter(|_| limits.mode == Mode::Enforce);
        totals.max_in_flight = Some(limits.max_in_flight);
        totals.max_upgraded = Some(limits.max_upgraded);
        totals.reserved = limits.reserved.clone();
        totals.peers_are_clients = limits.per_client.is_some() && limits.mode != Mode::Off;
        let shared = Arc::new(Shared {
            totals: Arc::new(totals),
            rates: limits
                .accept_rate
                .or(limits.accept_rate_per_network)
                .map(|_| Table::new(CLIENTS)),
            registry: Registry::new(
                limits.network(),
                limits.shares(0).unwrap_or(Shares {
                    client: 0,
                    network: 0,
                }),
            ),
            limits,
            recorder,
            pressed,
            sweeper: Sweeper::default(),
            tracked: AtomicBool::new(false),
            is_placed: AtomicBool::new(false),
            untold: Untold::default(),
            errors: AcceptErrors::default(),
            spared: Mutex::default(),
            many_newcomers: AtomicBool::new(false),
            kills: RecentlyClosed::default(),
            marks: Marks::default(),
            open: AtomicUsize::new(0),
            going: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            clock: Clock::new(),
            turn: AtomicUsize::new(0),
            listening: Mutex::default(),
        });
        say::cap(&shared.limits);
        let levels = Arc::downgrade(&shared);
        shared.recorder.register(levels as Weak<dyn GaugeSource>);
        Self { shared }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Lets a connection in that was accepted by other means, from `peer` if its peers can be told
    /// apart. Call it inside a tokio runtime with its timer enabled.
    ///
    /// # Errors
    ///
    /// If there is no place for it: a [`Violation`](palisade_core::Violation) inside an [`io::Error`] of kind
    /// [`ConnectionRefused`](io::ErrorKind::ConnectionRefused). It was reset and dropped then.
    pub fn admit<T: Transport>(
        &self,
        io: T,
        peer: Option<SocketAddr>,
        local: Option<SocketAddr>,
    ) -> io::Result<GuardedIo<T>> {
        let refused = |violation| io::Error::new(io::ErrorKind::ConnectionRefused, violation);
        let conn = self.shared.conn(peer, local);
        let result = self.shared.check_rate(&conn, peer.is_some());
        let result = result.map_err(NotIn::Refused);
        match result.and_then(|()| self.shared.enter(&conn, peer.is_some(), true)) {
            Ok(permit) => Ok(GuardedIo::new(io, permit)),
            Err(not_in) => {
                io.reset_on_close();
                Err(refused(self.shared.refused(not_in, &conn)))
            }
        }
    }

    /// Ends `conn` because of `reason`, if it is one of this guard's and nothing else ended it
    /// before. In [`Mode::Shadow`] it only tells that it would have, but for [`Reason::Shutdown`],
    /// which is no rule of its own; in [`Mode::Off`] it does nothing. Whether it did.
    pub fn end(&self, conn: &ConnInfo, reason: Reason, ending: CloseMode) -> bool {
        let phase = phase(&conn.state().sample());
        self.shared.end(
            conn,
            End {
                reason,
                ending,
                phase,
                limit: 0,
                observed: 0,
            },
        )
    }

    /// Tells of one request of `conn` that is ended, or would be in [`Mode::Shadow`], while the
    /// connection goes on. For servers that can do so.
    pub fn tell_cut(&self, violation: &Violation, conn: &ConnInfo) {
        self.shared
            .recorder
            .record(|| Event::cut(violation, self.mode(), Some(conn)));
    }

    /// Tells of one request of `conn` that its server answered by itself. That is no rule of the
    /// guard's and holds in every mode, so the event says [`Mode::Enforce`]. For servers.
    pub fn tell_refused(&self, rejection: &Rejection, conn: &ConnInfo) {
        let event = || Event::refused(rejection, Mode::Enforce, Some(conn));
        self.shared.recorder.record(event);
    }

    /// Whether it enforces.
    pub fn mode(&self) -> Mode {
        self.shared.limits.mode
    }

    /// [`ConnGuardBuilder::write_stall`] as it is in force now, shortened under pressure.
    pub fn write_stall(&self) -> Duration {
        let limits = strain::under(&self.shared.limits, self.shared.pressure());
        Duration::from_millis(limits.write_stall)
    }

    /// Who is connected now, at what, and what was accepted. Walks over all connections.
    pub fn snapshot(&self) -> ConnSnapshot {
        ConnSnapshot::take(&self.shared)
    }

    /// The last 1,000 connections that were ended or not let in, the latest last; in
    /// [`Mode::Shadow`] those that would have been.
    pub fn recently_closed(&self) -> Vec<ClosedConn> {
        self.shared.kills.recent()
    }
}

/// Every number at its default.
impl Default for ConnGuard {
    fn default() -> Self {
        // The defaults are in their ranges; a test holds them to it.
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

// === Shared ===

impl Shared {
    /// How hard it is going, 0 to 1.
    pub(crate) fn pressure(&self) -> f32 {
        // Those who are told to go make room in a moment.
        let open = self
            .open
            .load(Relaxed)
            .saturating_sub(self.going.load(Relaxed));
        strain::of_connections(&self.limits, open).max(self.pressed.get())
    }

    /// Milliseconds since the guard was made.
    pub(crate) fn now(&self) -> u64 {
        self.clock.now() / 1000
    }

    pub(crate) fn conn(
        &self,
        peer: Option<SocketAddr>,
        local: Option<SocketAddr>,
    ) -> Arc<ConnInfo> {
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        let conn = ConnInfo::new(peer.unwrap_or(nobody), local, self.limits.prefix);
        let is_watched = self.limits.mode != Mode::Off;
        let conn = if is_watched {
            conn.within(Arc::clone(&self.totals))
        } else {
            conn
        };
        if self.tracked.load(Relaxed) {
            conn.state().set_tracked();
        }
        Arc::new(conn)
    }
}

impl GaugeSource for Shared {
    fn guard(&self) -> Guard {
        Guard::Connection
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        visit(Gauge::Connections, self.open.load(Relaxed) as u64);
        visit(Gauge::ConnectionLimit, self.limits.connections as u64);
        visit(Gauge::ConnectionsOpened, self.opened());
        visit(Gauge::InFlight, self.totals.in_flight() as u64);
        visit(Gauge::InFlightLimit, self.limits.max_in_flight as u64);
        visit(Gauge::Upgraded, self.totals.upgraded() as u64);
        visit(Gauge::UpgradedLimit, self.limits.max_upgraded as u64);
        visit(Gauge::PressurePercent, (self.pressure() * 100.0) as u64);
        visit(Gauge::AcceptErrors, self.errors.exhausted.load(Relaxed));
        if self.totals.peers_are_clients {
            visit(
                Gauge::ForwardedPercent,
                self.totals.forwarded_percent().into(),
            );
        }
        #[cfg(target_os = "linux")]
        self.sample_kernel(visit);
    }
}

#[cfg(target_os = "linux")]
impl Shared {
    fn sample_kernel(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        let listening = self.listening.lock().clone();
        let addresses: Vec<_> = listening.iter().map(|one| one.address).collect();
        if let Some(waiting) = kernel::waiting(&addresses) {
            visit(Gauge::AcceptQueue, waiting);
        }
        let backlogs = listening
            .iter()
            .filter_map(|one| one.backlog)
            .map(u64::from);
        if let Some(most) = backlogs.reduce(u64::saturating_add) {
            visit(Gauge::AcceptQueueLimit, most);
        }
        // Of the whole system: of no interest to whoever does not listen.
        if !listening.is_empty()
            && let Some(lost) = kernel::lost()
        {
            visit(Gauge::ListenOverflows, lost.overflows);
            visit(Gauge::ListenDrops, lost.drops);
        }
    }
}

impl Shared {
    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }

    pub(crate) fn refusals(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// What is counted `now`.
    pub(crate) fn mark(&self, now: u64) -> Mark {
        Mark {
            at: now,
            opened: self.opened(),
            refused: self.refusals(),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.sweeper.stop();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnGuard")
            .field("limits", &self.limits)
            .field("open", &self.open)
            .field("opened", &self.opened)
            .field("errors", &self.errors)
            .finish_non_exhaustive()
    }
}
