//! The metrics interface of all guards.
//!
//! A guard decides first and records second: [`Metrics`] cannot change a decision. Everything that
//! may become a metric label is an enum, so a peer cannot add a time series. Addresses are for logs
//! only.

use crate::{Client, ConnInfo, Guard, Mode, Network, Phase, Reason, Rejection, Violation};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// A transition that a guard records.
///
/// Events are passed to [`Metrics::record`]. Current values and totals, such as the number of open
/// connections, are not events: they are sampled, see [`Gauge`]. Admitted requests have no event,
/// only a gauge.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A guard refused a request: it answered the request in place of the handler, or would have in
    /// [`Mode::Shadow`].
    #[non_exhaustive]
    Refused {
        /// The broken rule, and the response to the client.
        rejection: &'a Rejection,
        /// [`Mode::Enforce`], or [`Mode::Shadow`] if the request was admitted all the same.
        mode: Mode,
        /// The connection of the request, if it is known.
        conn: Option<&'a ConnInfo>,
        /// The client, if it is not the peer of the connection, if that is a trusted proxy, or if
        /// only the client is known. Otherwise the peer is the client.
        client: Option<&'a Client>,
    },
    /// A guard cut a body: it ended the body after the response head was sent, or would have in
    /// [`Mode::Shadow`].
    #[non_exhaustive]
    Cut {
        /// The broken rule.
        violation: &'a Violation,
        /// [`Mode::Enforce`], or [`Mode::Shadow`] if the body continues all the same.
        mode: Mode,
        /// The connection of the request, if it is known.
        conn: Option<&'a ConnInfo>,
        /// The client, if it is not the peer of the connection, if that is a trusted proxy, or if
        /// only the client is known. Otherwise the peer is the client.
        client: Option<&'a Client>,
    },
    /// A connection was admitted.
    #[non_exhaustive]
    Opened {
        /// The connection.
        conn: &'a ConnInfo,
    },
    /// An admitted connection is gone, for whatever reason. Recorded exactly once for each
    /// [`Event::Opened`].
    #[non_exhaustive]
    Closed {
        /// The connection.
        conn: &'a ConnInfo,
        /// Why a guard closed the connection, or let it take no more requests. `None` if no guard
        /// did: the client or the server closed it.
        reason: Option<Reason>,
        /// The phase that the connection was in at the end.
        phase: Phase,
        /// The time since [`Event::Opened`].
        open_for: Duration,
    },
    /// A guard closes a connection or does not admit it, or would have in [`Mode::Shadow`]. An
    /// admitted connection is gone a moment later, see [`Event::Closed`].
    #[non_exhaustive]
    Disconnected {
        /// The broken rule. Its phase is that of the connection.
        violation: &'a Violation,
        /// [`Mode::Enforce`], or [`Mode::Shadow`] if the connection continues all the same.
        mode: Mode,
        /// The connection.
        conn: &'a ConnInfo,
    },
    /// A client was banned, or would have been in [`Mode::Shadow`]. The hand-off to a firewall.
    /// Recorded once for each ban.
    #[non_exhaustive]
    Banned {
        /// The block of addresses that counts as the client.
        network: Network,
        /// The client. A firewall of this machine sees its address only if its
        /// [source](Client::source) is the peer.
        client: &'a Client,
        /// When the client is admitted again.
        until: Instant,
        /// The refusal that was one too many. `None` if the application decided.
        reason: Option<Reason>,
        /// [`Mode::Enforce`], or [`Mode::Shadow`] if the client is admitted all the same.
        mode: Mode,
    },
    /// Clients have sent bytes for a while, but no request is reported to the connection guard, so
    /// most of its rules do nothing: request tracking is missing. Recorded at most once for each
    /// guard.
    #[non_exhaustive]
    Untracked {
        /// The number of open connections without request tracking.
        connections: usize,
    },
    /// More than nine in ten requests claim that a proxy forwarded them, but the guard counts each
    /// peer as a client, so all clients of a proxy share the limits of one. Recorded at most once
    /// for each guard. The claim is the client's own and may be false.
    #[non_exhaustive]
    Forwarded {
        /// The percentage of requests that make the claim.
        percent: u32,
    },
    /// A runtime has run no task of the guard for a second or more: all its workers are blocked, or
    /// have too much to do. Recorded while it lasts, and again whenever the time has doubled. See
    /// [`RuntimeLoad`](crate::RuntimeLoad).
    #[non_exhaustive]
    RuntimeStalled {
        /// The time so far.
        delay: Duration,
    },
    /// The store that the nodes of a fleet share answers no longer, so that this node counts alone,
    /// or it answers again.
    #[non_exhaustive]
    FleetChanged {
        /// Whether this node counts alone from now on.
        is_alone: bool,
        /// What the last call has failed of, if one has.
        cause: Option<&'a (dyn std::error::Error + 'static)>,
    },
    /// A limit was changed while the server runs.
    #[non_exhaustive]
    LimitChanged {
        /// The guard that has the limit.
        guard: Guard,
        /// The new limit: requests that may hold a permit at once, for
        /// [`Guard::ConcurrencyLimit`].
        limit: u64,
    },
}

impl Event<'_> {
    /// Returns [`Event::LimitChanged`]: the limit of `guard` is now `limit`.
    ///
    /// ```
    /// use palisade_core::{Event, Guard};
    /// let event = Event::limit_changed(Guard::ConcurrencyLimit, 64);
    /// assert!(matches!(event, Event::LimitChanged { limit: 64, .. }));
    /// ```
    pub const fn limit_changed(guard: Guard, limit: u64) -> Self {
        Self::LimitChanged { guard, limit }
    }

    /// Returns [`Event::RuntimeStalled`].
    pub const fn runtime_stalled(delay: Duration) -> Self {
        Self::RuntimeStalled { delay }
    }
}

impl<'a> Event<'a> {
    /// Returns [`Event::FleetChanged`].
    pub const fn fleet_changed(
        is_alone: bool,
        cause: Option<&'a (dyn std::error::Error + 'static)>,
    ) -> Self {
        Self::FleetChanged { is_alone, cause }
    }

    /// Returns [`Event::Refused`] for a request of `conn`.
    ///
    /// ```
    /// # use palisade_core::{Event, Mode, Rejection};
    /// # use palisade_core::{Guard, Phase, Reason, ResponseFormat, Violation};
    /// # let (guard, reason, phase) = (Guard::RateLimit, Reason::RateExceeded, Phase::RequestHead);
    /// # let violation = Violation::new(guard, reason, phase, 0, 1_200);
    /// # let status = http::StatusCode::TOO_MANY_REQUESTS;
    /// # let rejection = Rejection::new(violation, status, ResponseFormat::Grpc);
    /// let event = Event::refused(&rejection, Mode::Shadow, None);
    /// let Event::Refused { rejection, mode, .. } = event else { panic!("another event") };
    /// assert_eq!((rejection.violation().reason, mode), (Reason::RateExceeded, Mode::Shadow));
    /// ```
    pub const fn refused(rejection: &'a Rejection, mode: Mode, conn: Option<&'a ConnInfo>) -> Self {
        Self::Refused {
            rejection,
            mode,
            conn,
            client: None,
        }
    }

    /// Adds the client to [`Event::Refused`] or [`Event::Cut`]. Other events stay as they are.
    ///
    /// ```
    /// # use palisade_core::{Client, Event, Mode, Prefix};
    /// # use palisade_core::{Guard, Phase, Reason, Violation};
    /// # let (guard, reason, phase) = (Guard::SlowBody, Reason::Gap, Phase::RequestBody);
    /// # let violation = Violation::new(guard, reason, phase, 30, 31);
    /// let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
    /// let event = Event::cut(&violation, Mode::Enforce, None).of_client(Some(&client));
    /// let Event::Cut { client: Some(found), .. } = event else { panic!("no client") };
    /// assert_eq!(found.address(), Some([203, 0, 113, 7].into()));
    /// ```
    pub const fn of_client(mut self, of: Option<&'a Client>) -> Self {
        if let Self::Refused { client, .. } | Self::Cut { client, .. } = &mut self {
            *client = of;
        }
        self
    }

    /// Returns [`Event::Forwarded`].
    pub const fn forwarded(percent: u32) -> Self {
        Self::Forwarded { percent }
    }

    /// Returns [`Event::Untracked`].
    pub const fn untracked(connections: usize) -> Self {
        Self::Untracked { connections }
    }

    /// Returns [`Event::Opened`].
    pub const fn opened(conn: &'a ConnInfo) -> Self {
        Self::Opened { conn }
    }

    /// Returns [`Event::Closed`].
    pub const fn closed(
        conn: &'a ConnInfo,
        reason: Option<Reason>,
        phase: Phase,
        open_for: Duration,
    ) -> Self {
        Self::Closed {
            conn,
            reason,
            phase,
            open_for,
        }
    }

    /// Returns [`Event::Cut`] for a request of `conn`.
    pub const fn cut(violation: &'a Violation, mode: Mode, conn: Option<&'a ConnInfo>) -> Self {
        Self::Cut {
            violation,
            mode,
            conn,
            client: None,
        }
    }

    /// Returns [`Event::Banned`]; `None` for a client without an address.
    ///
    /// ```
    /// # use palisade_core::{Client, Event, Mode, Prefix, Reason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
    /// let until = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    /// let event = Event::banned(&client, until, Some(Reason::BadRequest), Mode::Enforce);
    /// let Some(Event::Banned { network, .. }) = event else { panic!("another event") };
    /// assert_eq!(network.to_string(), "203.0.113.7/32");
    /// # }
    /// ```
    pub fn banned(
        client: &'a Client,
        until: Instant,
        reason: Option<Reason>,
        mode: Mode,
    ) -> Option<Self> {
        Some(Self::Banned {
            network: client.network()?,
            client,
            until,
            reason,
            mode,
        })
    }

    /// Returns [`Event::Disconnected`].
    pub const fn disconnected(violation: &'a Violation, mode: Mode, conn: &'a ConnInfo) -> Self {
        Self::Disconnected {
            violation,
            mode,
            conn,
        }
    }
}

/// Receives the events and the gauges of guards.
///
/// The methods are called inside `poll` and `drop`: they must return at once and must not panic.
/// The guard has already decided, so they cannot change a decision. A panic is caught, so it ends
/// neither the server nor a connection. Its event is lost, and with the feature `tracing` the first
/// panic of each sink is logged.
///
/// The crate `palisade-metrics` has implementations: a snapshot with Prometheus text, the `metrics`
/// facade, and a sampled log. A tuple of two implementations passes everything to both.
///
/// ```
/// use palisade_core::{Event, Metrics, Recorder};
/// use std::sync::{Arc, atomic::{AtomicU64, Ordering::Relaxed}};
///
/// #[derive(Debug, Default)]
/// struct Refusals(AtomicU64);
///
/// impl Metrics for Refusals {
///     fn record(&self, event: &Event<'_>) {
///         if let Event::Refused { .. } = event {
///             self.0.fetch_add(1, Relaxed);
///         }
///     }
/// }
///
/// # use palisade_core::{Guard, Mode, Phase, Reason, Rejection, ResponseFormat, Violation};
/// # let (guard, reason, phase) = (Guard::RateLimit, Reason::RateExceeded, Phase::RequestHead);
/// # let violation = Violation::new(guard, reason, phase, 0, 1_200);
/// # let status = http::StatusCode::TOO_MANY_REQUESTS;
/// # let rejection = Rejection::new(violation, status, ResponseFormat::Grpc);
/// let refusals = Arc::new(Refusals::default());
/// let recorder = Recorder::from(refusals.clone()); // Every guard's `.metrics(..)` takes it.
/// recorder.record(|| Event::refused(&rejection, Mode::Enforce, None)); // The guard does this.
/// assert_eq!(refusals.0.load(Relaxed), 1);
/// ```
pub trait Metrics: Send + Sync + 'static {
    /// Records `event`.
    fn record(&self, event: &Event<'_>);

    /// Registers the gauges of a guard, to be sampled whenever metrics are read. Called once for
    /// each guard that has gauges, when it gets these metrics. The reference is weak: the gauges
    /// are gone once the guard is dropped. Defaults to ignoring them.
    ///
    /// ```
    /// use palisade_core::{Event, GaugeSource, Metrics, Recorder};
    /// use std::sync::{Arc, Mutex, Weak};
    /// # use palisade_core::{Gauge, Guard};
    /// # struct Keys;
    /// # impl GaugeSource for Keys {
    /// #     fn guard(&self) -> Guard { Guard::RateLimit }
    /// #     fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) { visit(Gauge::Keys, 7) }
    /// # }
    ///
    /// #[derive(Default)]
    /// struct Latest(Mutex<Option<Weak<dyn GaugeSource>>>);
    ///
    /// impl Metrics for Latest {
    ///     fn record(&self, _: &Event<'_>) {}
    ///
    ///     fn register(&self, gauges: Weak<dyn GaugeSource>) {
    ///         self.0.lock().unwrap().replace(gauges);
    ///     }
    /// }
    ///
    /// let latest = Arc::new(Latest::default());
    /// let guard: Arc<dyn GaugeSource> = Arc::new(Keys);
    /// Recorder::from(latest.clone()).register(Arc::downgrade(&guard)); // The guard does this.
    /// # let latest = latest.0.lock().unwrap();
    /// # let gauges = latest.as_ref().unwrap();
    /// let mut text = String::new();
    /// if let Some(gauges) = gauges.upgrade() {
    ///     gauges.sample(&mut |gauge, value| text += &format!("{gauge:?} {value}"));
    /// }
    /// assert_eq!(text, "Keys 7");
    /// drop(guard);
    /// assert!(gauges.upgrade().is_none());
    /// ```
    fn register(&self, gauges: Weak<dyn GaugeSource>) {
        let _ = gauges;
    }
}

/// A number that a guard keeps, sampled through [`GaugeSource`].
///
/// Most gauges are current values. [Totals](Self::is_total) count from the start of the guard and
/// never decrease. The unit is the thing that is counted, except for the gauges in percent
/// [`Gauge::RuntimeDelay`] and the ages.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gauge {
    /// Concurrency limit: the number of requests that hold a permit.
    Working,
    /// Concurrency limit: the number of admitted requests that wait for their own clients, and so
    /// need no permit.
    Waiting,
    /// Concurrency limit: the number of requests that wait for a permit in the queue.
    Queued,
    /// Concurrency limit: the number of permits, the limit on [`Gauge::Working`].
    Limit,
    /// Concurrency limit: the total number of admitted requests.
    Admitted,
    /// Rate limit and ban: the number of keys for which the table holds a debt. A banned client has
    /// up to three.
    Keys,
    /// Rate limit and ban: the number of keys that the table can hold.
    KeyCapacity,
    /// Rate limit and ban: the total number of keys that were evicted from the full table while
    /// they were in debt.
    KeysEvicted,
    /// The number of open connections.
    Connections,
    /// The cap: the limit on [`Gauge::Connections`].
    ConnectionLimit,
    /// The total number of admitted connections.
    ConnectionsOpened,
    /// The number of requests in flight on all connections.
    InFlight,
    /// The limit on [`Gauge::InFlight`].
    InFlightLimit,
    /// The number of connections that have become, or carry, something other than HTTP.
    Upgraded,
    /// The limit on [`Gauge::Upgraded`].
    UpgradedLimit,
    /// The percentage of requests that claim that a proxy forwarded them. Only sampled if the guard
    /// counts each peer as a client.
    ForwardedPercent,
    /// The total number of requests of trusted proxies that did not name their client as expected.
    /// Only sampled if proxies are trusted.
    ClientsUnnamed,
    /// The number of ranges of addresses that are those of trusted proxies.
    TrustedNetworks,
    /// The seconds since the networks of trusted proxies were put in place.
    TrustedNetworksAge,
    /// The number of ranges of addresses from which connections begin with a PROXY header.
    ProxyProtocolNetworks,
    /// The seconds since these networks were put in place.
    ProxyProtocolNetworksAge,
    /// The pressure on connections in percent, 0 to 100.
    PressurePercent,
    /// The bytes of memory in use that the kernel cannot drop: see [`Memory`](crate::Memory).
    MemoryUsed,
    /// The limit on [`Gauge::MemoryUsed`].
    MemoryLimit,
    /// The percentage of requests to admit while memory is short, 25 to 100.
    MemorySharePercent,
    /// The milliseconds that a task waits before it runs: see
    /// [`RuntimeLoad`](crate::RuntimeLoad).
    RuntimeDelay,
    /// The percentage of requests to admit while the runtime is overloaded, 1 to 100.
    RuntimeSharePercent,
    /// The total number of processes that the kernel has killed in the control group because its
    /// memory was used up, since the group exists. Linux only, in a control group.
    MemoryOomKills,
    /// How often the control group was at its limit, so that the kernel had to reclaim, in total
    /// and since the group exists. Linux only, in a control group.
    MemoryLimitHits,
    /// The percentage of the last 10 s in which a task of the control group, or of the machine,
    /// waited for memory. Linux only.
    MemoryStallPercent,
    /// The bytes of bodies that are held: see [`Budget`](crate::Budget).
    BytesHeld,
    /// The limit on [`Gauge::BytesHeld`].
    BytesLimit,
    /// The total number of failures to accept a connection for lack of files or memory.
    AcceptErrors,
    /// The number of connections that wait in the kernel to be accepted. Linux only.
    AcceptQueue,
    /// The limit on [`Gauge::AcceptQueue`], for listeners that the guard bound itself. Linux only.
    AcceptQueueLimit,
    /// The total number of connections that the kernel dropped because an accept queue was full, at
    /// any listener of the network namespace and since the namespace exists. Linux only.
    ListenOverflows,
    /// The total number of connections that the kernel dropped before they were accepted, for any
    /// reason, including [`Gauge::ListenOverflows`]. Linux only.
    ListenDrops,
    /// Ban: the total number of bans.
    Bans,
    /// Ban: the number of ranges of addresses that are allowed whatever else holds.
    AllowedNetworks,
    /// Ban: the seconds since the allowed networks were put in place.
    AllowedNetworksAge,
    /// Ban: the number of ranges of addresses that are denied.
    DeniedNetworks,
    /// Ban: the seconds since the denied networks were put in place.
    DeniedNetworksAge,
    /// Fleet: 1 while the store is not asked, because it does not answer, and else 0.
    FleetAlone,
    /// Fleet: the number of nodes that count together.
    FleetNodes,
    /// Fleet: the microseconds from the last call of the store to its answer.
    FleetRoundTrip,
    /// Fleet: the number of cells that were admitted and not reported to the store yet.
    FleetUnreported,
    /// Fleet: the milliseconds by which the clock of the store has moved against that of this node.
    /// 0 if the store tells its time to the script.
    FleetClockSkew,
    /// Fleet: the total number of calls of the store.
    FleetCalls,
    /// Fleet: the total number of accounts in all calls.
    FleetAccounts,
    /// Fleet: the total number of calls that were not answered in time, or not rightly.
    FleetFailures,
    /// Fleet: the total number of requests that have waited for an answer of the store.
    FleetWaited,
    /// Fleet: the total number of requests that have waited for too long.
    FleetWaitedInVain,
    /// Fleet: the total number of requests that had to do without an answer, because as many waited
    /// as may.
    FleetWaitersFull,
    /// Fleet: the total number of accounts of requests that were counted by this node alone, for
    /// lack of room, of a key that other nodes know, or of a store that can hold it.
    FleetLocalOnly,
    /// Fleet: the total number of requests that would have been refused, in shadow mode.
    FleetWouldRefuse,
    /// Fleet: the total number of requests that would have waited in shadow mode.
    FleetWouldWait,
}

impl Gauge {
    /// Every gauge, in the order of declaration, so that `ALL[gauge as usize] == gauge`.
    pub const ALL: &'static [Self] = &[
        Self::Working,
        Self::Waiting,
        Self::Queued,
        Self::Limit,
        Self::Admitted,
        Self::Keys,
        Self::KeyCapacity,
        Self::KeysEvicted,
        Self::Connections,
        Self::ConnectionLimit,
        Self::ConnectionsOpened,
        Self::InFlight,
        Self::InFlightLimit,
        Self::Upgraded,
        Self::UpgradedLimit,
        Self::ForwardedPercent,
        Self::ClientsUnnamed,
        Self::TrustedNetworks,
        Self::TrustedNetworksAge,
        Self::ProxyProtocolNetworks,
        Self::ProxyProtocolNetworksAge,
        Self::PressurePercent,
        Self::MemoryUsed,
        Self::MemoryLimit,
        Self::MemorySharePercent,
        Self::RuntimeDelay,
        Self::RuntimeSharePercent,
        Self::MemoryOomKills,
        Self::MemoryLimitHits,
        Self::MemoryStallPercent,
        Self::BytesHeld,
        Self::BytesLimit,
        Self::AcceptErrors,
        Self::AcceptQueue,
        Self::AcceptQueueLimit,
        Self::ListenOverflows,
        Self::ListenDrops,
        Self::Bans,
        Self::AllowedNetworks,
        Self::AllowedNetworksAge,
        Self::DeniedNetworks,
        Self::DeniedNetworksAge,
        Self::FleetAlone,
        Self::FleetNodes,
        Self::FleetRoundTrip,
        Self::FleetUnreported,
        Self::FleetClockSkew,
        Self::FleetCalls,
        Self::FleetAccounts,
        Self::FleetFailures,
        Self::FleetWaited,
        Self::FleetWaitedInVain,
        Self::FleetWaitersFull,
        Self::FleetLocalOnly,
        Self::FleetWouldRefuse,
        Self::FleetWouldWait,
    ];

    /// Returns whether the gauge is a total, which never decreases.
    ///
    /// ```
    /// use palisade_core::Gauge;
    /// assert!(Gauge::Admitted.is_total()); // Read it as a rate.
    /// assert!(!Gauge::Working.is_total());
    /// ```
    pub const fn is_total(self) -> bool {
        matches!(
            self,
            Self::Admitted
                | Self::KeysEvicted
                | Self::ConnectionsOpened
                | Self::ClientsUnnamed
                | Self::MemoryOomKills
                | Self::MemoryLimitHits
                | Self::AcceptErrors
                | Self::ListenOverflows
                | Self::ListenDrops
                | Self::Bans
                | Self::FleetCalls
                | Self::FleetAccounts
                | Self::FleetFailures
                | Self::FleetWaited
                | Self::FleetWaitedInVain
                | Self::FleetWaitersFull
                | Self::FleetLocalOnly
                | Self::FleetWouldRefuse
                | Self::FleetWouldWait
        )
    }
}

/// The gauges of one guard, sampled when metrics are read. The guard keeps these numbers for its
/// own decisions, so sampling costs the requests nothing.
pub trait GaugeSource: Send + Sync {
    /// Returns the guard that keeps the gauges.
    fn guard(&self) -> Guard;

    /// Calls `visit` with each [`Gauge`] that the guard keeps, and with its value.
    ///
    /// ```
    /// use palisade_core::{Gauge, GaugeSource, Guard};
    ///
    /// struct Permits { taken: u64, limit: u64 }
    ///
    /// impl GaugeSource for Permits {
    ///     fn guard(&self) -> Guard {
    ///         Guard::ConcurrencyLimit
    ///     }
    ///
    ///     fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
    ///         visit(Gauge::Working, self.taken);
    ///         visit(Gauge::Limit, self.limit);
    ///     }
    /// }
    ///
    /// let mut seen = Vec::new();
    /// Permits { taken: 3, limit: 8 }.sample(&mut |gauge, value| seen.push((gauge, value)));
    /// assert_eq!(seen, [(Gauge::Working, 3), (Gauge::Limit, 8)]);
    /// ```
    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64));
}

/// A guard's handle on its metrics, if it has any. Created from any [`Metrics`] by `into`. Cheap to
/// clone. Defaults to no metrics.
#[derive(Clone, Default)]
pub struct Recorder(Option<Arc<Sink>>);

/// The user's metrics. All calls go through [`Self::call`].
struct Sink<M: ?Sized = dyn Metrics> {
    has_panicked: AtomicBool,
    metrics: M,
}

impl Recorder {
    /// Records an event. The closure is not called if there are no metrics.
    ///
    /// ```
    /// # use palisade_core::{Event, Guard, Recorder};
    /// let silent = Recorder::default();
    /// silent.record(|| unreachable!("the closure costs nothing without metrics"));
    ///
    /// # #[derive(Default)]
    /// # struct Count(std::sync::atomic::AtomicU64);
    /// # impl palisade_core::Metrics for Count {
    /// #     fn record(&self, _: &Event<'_>) {
    /// #         self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    /// #     }
    /// # }
    /// let count = std::sync::Arc::new(Count::default()); // A `Metrics` of your own.
    /// Recorder::from(count.clone()).record(|| Event::limit_changed(Guard::ConcurrencyLimit, 64));
    /// assert_eq!(count.0.load(std::sync::atomic::Ordering::Relaxed), 1);
    /// ```
    #[inline]
    pub fn record<'a>(&self, event: impl FnOnce() -> Event<'a>) {
        if let Some(sink) = &self.0 {
            let event = event();
            sink.call(|metrics| metrics.record(&event));
        }
    }

    /// Returns whether there are metrics.
    #[inline]
    pub fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// Registers the gauges of a guard with its metrics.
    pub fn register(&self, gauges: Weak<dyn GaugeSource>) {
        if let Some(sink) = &self.0 {
            sink.call(|metrics| metrics.register(gauges));
        }
    }
}

impl Sink {
    /// Calls the metrics and catches their panic: they are called where connections are accepted,
    /// and in drops that may run while a panic of a handler unwinds.
    fn call(&self, call: impl FnOnce(&dyn Metrics)) {
        let result = catch_unwind(AssertUnwindSafe(|| call(&self.metrics)));
        if result.is_err() && !self.has_panicked.swap(true, Relaxed) {
            #[cfg(feature = "tracing")]
            tracing::error!(
                target: "palisade",
                "the metrics of a guard panicked: the event is lost and the guard continues; \
                 further panics of these metrics are not logged",
            );
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "Recorder(on)"
        } else {
            "Recorder(silent)"
        })
    }
}

impl<M: Metrics> From<M> for Recorder {
    fn from(metrics: M) -> Self {
        Self(Some(Arc::new(Sink {
            has_panicked: AtomicBool::new(false),
            metrics,
        })))
    }
}

impl<M: Metrics + ?Sized> Metrics for Arc<M> {
    fn record(&self, event: &Event<'_>) {
        (**self).record(event);
    }

    fn register(&self, gauges: Weak<dyn GaugeSource>) {
        (**self).register(gauges);
    }
}

/// Both receive every event and all gauges, even if the first panics.
impl<A: Metrics, B: Metrics> Metrics for (A, B) {
    fn record(&self, event: &Event<'_>) {
        call_both(|| self.0.record(event), || self.1.record(event));
    }

    fn register(&self, gauges: Weak<dyn GaugeSource>) {
        let same = gauges.clone();
        call_both(|| self.0.register(gauges), || self.1.register(same));
    }
}

/// Calls both functions, also if the first panics. Its panic resumes afterwards.
fn call_both(first: impl FnOnce(), second: impl FnOnce()) {
    let result = catch_unwind(AssertUnwindSafe(first));
    second();
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// Counts every call, and then panics.
    #[derive(Default)]
    struct PanickingMetrics(AtomicUsize);

    impl Metrics for PanickingMetrics {
        fn record(&self, event: &Event<'_>) {
            self.0.fetch_add(1, Relaxed);
            panic!("{event:?}");
        }

        fn register(&self, _: Weak<dyn GaugeSource>) {
            self.0.fetch_add(1, Relaxed);
            panic!("register");
        }
    }

    struct NoGauges;

    impl GaugeSource for NoGauges {
        fn guard(&self) -> Guard {
            Guard::Connection
        }

        fn sample(&self, _: &mut dyn FnMut(Gauge, u64)) {}
    }

    #[test]
    fn the_recorder_catches_a_panic_of_the_metrics() {
        let metrics = Arc::new(PanickingMetrics::default());
        let recorder = Recorder::from(metrics.clone());
        recorder.record(|| Event::forwarded(1));
        recorder.record(|| Event::forwarded(2));
        recorder.register(Weak::<NoGauges>::new());
        assert_eq!(metrics.0.load(Relaxed), 3);
    }

    #[test]
    fn a_panic_of_the_metrics_in_a_drop_during_another_panic_does_not_abort() {
        struct RecordOnDrop(Recorder);

        impl Drop for RecordOnDrop {
            fn drop(&mut self) {
                self.0.record(|| Event::forwarded(1));
            }
        }

        let metrics = Arc::new(PanickingMetrics::default());
        let record_on_drop = RecordOnDrop(metrics.clone().into());
        let handler = catch_unwind(AssertUnwindSafe(|| {
            let _record_on_drop = record_on_drop;
            panic!("the handler");
        }));
        assert_eq!(handler.unwrap_err().downcast_ref(), Some(&"the handler"));
        assert_eq!(metrics.0.load(Relaxed), 1);
    }

    #[test]
    fn the_second_of_two_metrics_receives_everything_also_if_the_first_panics() {
        let first = Arc::new(PanickingMetrics::default());
        let second = Arc::new(PanickingMetrics::default());
        let recorder = Recorder::from((first.clone(), second.clone()));
        recorder.record(|| Event::forwarded(1));
        recorder.register(Weak::<NoGauges>::new());
        assert_eq!((first.0.load(Relaxed), second.0.load(Relaxed)), (2, 2));
    }
}
