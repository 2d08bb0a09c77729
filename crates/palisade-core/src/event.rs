//! What the guards did, told to whoever wants to know.
//!
//! A guard decides first and records second: [`Metrics`] cannot change a verdict. Whatever may
//! become a metric label is an enum, so no peer can add a time series. Addresses are for logs.

use crate::{ConnInfo, Guard, Mode, Phase, Reason, Rejection, Violation};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

/// One thing a guard did. Only transitions are told; levels are asked for, see [`GaugeSource`].
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A guard answered a request itself, or would have in [`Mode::Shadow`].
    #[non_exhaustive]
    Refused {
        /// Which guard, why, and with what answer.
        rejection: &'a Rejection,
        /// [`Mode::Shadow`] if the request was let pass all the same.
        mode: Mode,
        /// The connection, where one is known.
        conn: Option<&'a ConnInfo>,
    },
    /// A guard ended a body whose response head was sent already, or would have in
    /// [`Mode::Shadow`].
    #[non_exhaustive]
    Cut {
        /// Which guard and why.
        violation: &'a Violation,
        /// [`Mode::Shadow`] if the body went on all the same.
        mode: Mode,
        /// The connection, where one is known.
        conn: Option<&'a ConnInfo>,
    },
    /// A connection was let in.
    #[non_exhaustive]
    Opened {
        /// Which one.
        conn: &'a ConnInfo,
    },
    /// The same connection is gone. Comes exactly once for each [`Event::Opened`].
    #[non_exhaustive]
    Closed {
        /// Which one.
        conn: &'a ConnInfo,
        /// Why a guard ended it, or let it take no more requests; `None` if none did.
        reason: Option<Reason>,
        /// What it was at when it went.
        phase: Phase,
        /// From [`Event::Opened`] until now.
        open_for: Duration,
    },
    /// A guard ends a connection or does not let it in, or would have in [`Mode::Shadow`]. One
    /// that was let in is gone a moment later, see [`Event::Closed`].
    #[non_exhaustive]
    Disconnected {
        /// Which guard and why; its phase is one of a connection.
        violation: &'a Violation,
        /// [`Mode::Shadow`] if the connection goes on all the same.
        mode: Mode,
        /// Which one.
        conn: &'a ConnInfo,
    },
    /// Clients have been sending for a while, and nobody tells the connection guard of a request:
    /// most of its rules do nothing. Comes at most once for each guard.
    #[non_exhaustive]
    Untracked {
        /// How many connections there are now of which nobody tells.
        connections: usize,
    },
    /// Nine in ten requests say that a proxy forwarded them, and each peer counts as a client: all
    /// clients of that proxy share what one may have. Comes at most once for each guard.
    #[non_exhaustive]
    Forwarded {
        /// How many of a hundred say so.
        percent: u32,
    },
    /// Somebody changed a limit while the server runs.
    #[non_exhaustive]
    LimitChanged {
        /// Whose limit.
        guard: Guard,
        /// The new one.
        limit: u64,
    },
}

impl Event<'_> {
    /// Somebody changed the limit of `guard` to `limit`.
    pub const fn limit_changed(guard: Guard, limit: u64) -> Self {
        Self::LimitChanged { guard, limit }
    }
}

impl<'a> Event<'a> {
    /// A request of `conn` was answered for `rejection`, or would have been.
    pub const fn refused(rejection: &'a Rejection, mode: Mode, conn: Option<&'a ConnInfo>) -> Self {
        Self::Refused {
            rejection,
            mode,
            conn,
        }
    }

    /// So many of a hundred requests were forwarded by a proxy that counts as one client.
    pub const fn forwarded(percent: u32) -> Self {
        Self::Forwarded { percent }
    }

    /// Nobody tells of the requests of so many `connections`.
    pub const fn untracked(connections: usize) -> Self {
        Self::Untracked { connections }
    }

    /// `conn` was let in.
    pub const fn opened(conn: &'a ConnInfo) -> Self {
        Self::Opened { conn }
    }

    /// `conn` is gone after `open_for`, in `phase`, because of `reason` if of a guard's doing.
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

    /// A body of `conn` is ended for `violation`, or would be.
    pub const fn cut(violation: &'a Violation, mode: Mode, conn: Option<&'a ConnInfo>) -> Self {
        Self::Cut {
            violation,
            mode,
            conn,
        }
    }

    /// `conn` is ended or not let in for `violation`, or would be.
    pub const fn disconnected(violation: &'a Violation, mode: Mode, conn: &'a ConnInfo) -> Self {
        Self::Disconnected {
            violation,
            mode,
            conn,
        }
    }
}

/// Hears what the guards do. Called inside `poll` and `drop`: return at once, and do not panic.
///
/// A panic is caught, so that it ends neither the server nor a connection: that event is lost, and
/// with the feature `tracing` the first one of a sink is logged.
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
/// let refusals = Arc::new(Refusals::default());
/// let recorder = Recorder::from(refusals.clone()); // What every guard's `.metrics(..)` takes.
/// ```
pub trait Metrics: Send + Sync + 'static {
    /// Takes note of `event`.
    fn record(&self, event: &Event<'_>);

    /// Will be asked for `levels` whenever somebody looks. Defaults to nobody looking.
    fn register(&self, levels: Weak<dyn GaugeSource>) {
        let _ = levels;
    }
}

/// A number that a guard keeps and [`GaugeSource`] shows.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gauge {
    /// Requests that hold a permit now.
    Working,
    /// Requests that are here and wait for their own client now.
    Waiting,
    /// Requests that wait for a permit now.
    Queued,
    /// The limit on [`Gauge::Working`].
    Limit,
    /// Requests admitted since the start. Only grows.
    Admitted,
    /// Keys for which a table holds a debt now.
    Keys,
    /// Keys that a table could hold.
    KeyCapacity,
    /// Keys forgotten while they were in debt, because the table was full. Only grows.
    KeysEvicted,
    /// Connections that are open now.
    Connections,
    /// The limit on [`Gauge::Connections`].
    ConnectionLimit,
    /// Connections let in since the start. Only grows.
    ConnectionsOpened,
    /// Requests in flight on all connections now.
    InFlight,
    /// The limit on [`Gauge::InFlight`].
    InFlightLimit,
    /// Connections that are, or carry, something else than HTTP now.
    Upgraded,
    /// The limit on [`Gauge::Upgraded`].
    UpgradedLimit,
    /// How many of a hundred requests say that a proxy forwarded them, where each peer counts as a
    /// client.
    ForwardedPercent,
    /// How hard it is going for connections, of a hundred.
    PressurePercent,
    /// Failures to accept for want of files or memory. Only grows.
    AcceptErrors,
    /// Connections that wait in the kernel to be accepted now.
    AcceptQueue,
    /// How many may wait there; known of listeners that a guard bound itself.
    AcceptQueueLimit,
    /// Connections that the kernel lost because an accept queue was full, at any listener of the
    /// network namespace, since it started. Only grows.
    ListenOverflows,
    /// Connections that it lost before they could be accepted for any reason, those among them.
    /// Only grows.
    ListenDrops,
}

impl Gauge {
    /// Every level, so that `ALL[level as usize] == level`.
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
        Self::PressurePercent,
        Self::AcceptErrors,
        Self::AcceptQueue,
        Self::AcceptQueueLimit,
        Self::ListenOverflows,
        Self::ListenDrops,
    ];

    /// Whether it only ever grows.
    pub const fn is_total(self) -> bool {
        matches!(
            self,
            Self::Admitted
                | Self::KeysEvicted
                | Self::ConnectionsOpened
                | Self::AcceptErrors
                | Self::ListenOverflows
                | Self::ListenDrops
        )
    }
}

/// The numbers that one guard keeps anyway, read when somebody looks. A request pays nothing for
/// them beyond the guard's own counting.
pub trait GaugeSource: Send + Sync {
    /// Whose they are.
    fn guard(&self) -> Guard;

    /// Calls `visit` with each level and its value. A [`Gauge`] that the guard does not keep is
    /// left out.
    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64));
}

/// A guard's handle on the metrics, if there are any. Silent by default, cheap to clone.
#[derive(Clone, Default)]
pub struct Recorder(Option<Arc<Sink>>);

/// A user's metrics behind the one place that calls them.
struct Sink<M: ?Sized = dyn Metrics> {
    has_panicked: AtomicBool,
    metrics: M,
}

impl Recorder {
    /// Records. The event is not even built when nobody listens.
    #[inline]
    pub fn record<'a>(&self, event: impl FnOnce() -> Event<'a>) {
        if let Some(sink) = &self.0 {
            let event = event();
            sink.call(|metrics| metrics.record(&event));
        }
    }

    /// Whether anybody listens.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Shows `levels` to whoever listens.
    pub fn register(&self, levels: Weak<dyn GaugeSource>) {
        if let Some(sink) = &self.0 {
            sink.call(|metrics| metrics.register(levels));
        }
    }
}

impl Sink {
    /// Catches a panic of the metrics: they are called where connections are accepted, and from
    /// drops that may run while a handler's panic unwinds.
    fn call(&self, call: impl FnOnce(&dyn Metrics)) {
        let result = catch_unwind(AssertUnwindSafe(|| call(&self.metrics)));
        if result.is_err() && !self.has_panicked.swap(true, Relaxed) {
            #[cfg(feature = "tracing")]
            tracing::error!(
                target: "palisade",
                "the metrics of a guard panicked: the event is lost and the guard goes on; further \
                 panics of these metrics are not logged",
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

    fn register(&self, levels: Weak<dyn GaugeSource>) {
        (**self).register(levels);
    }
}

/// Both are called, even if the first one panics.
impl<A: Metrics, B: Metrics> Metrics for (A, B) {
    fn record(&self, event: &Event<'_>) {
        both(|| self.0.record(event), || self.1.record(event));
    }

    fn register(&self, levels: Weak<dyn GaugeSource>) {
        let same = levels.clone();
        both(|| self.0.register(levels), || self.1.register(same));
    }
}

fn both(first: impl FnOnce(), second: impl FnOnce()) {
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

    /// Panics on every call, after counting it.
    #[derive(Default)]
    struct Panics(AtomicUsize);

    impl Metrics for Panics {
        fn record(&self, event: &Event<'_>) {
            self.0.fetch_add(1, Relaxed);
            panic!("{event:?}");
        }

        fn register(&self, _: Weak<dyn GaugeSource>) {
            self.0.fetch_add(1, Relaxed);
            panic!("register");
        }
    }

    struct NoLevels;

    impl GaugeSource for NoLevels {
        fn guard(&self) -> Guard {
            Guard::Connection
        }

        fn sample(&self, _: &mut dyn FnMut(Gauge, u64)) {}
    }

    #[test]
    fn a_panic_of_the_metrics_stays_with_the_recorder() {
        let panics = Arc::new(Panics::default());
        let recorder = Recorder::from(panics.clone());
        recorder.record(|| Event::forwarded(1));
        recorder.record(|| Event::forwarded(2));
        recorder.register(Weak::<NoLevels>::new());
        assert_eq!(panics.0.load(Relaxed), 3);
    }

    #[test]
    fn a_panic_of_the_metrics_in_a_drop_during_another_panic_does_not_abort() {
        struct Records(Recorder);

        impl Drop for Records {
            fn drop(&mut self) {
                self.0.record(|| Event::forwarded(1));
            }
        }

        let panics = Arc::new(Panics::default());
        let records = Records(panics.clone().into());
        let handler = catch_unwind(AssertUnwindSafe(|| {
            let _records = records;
            panic!("the handler");
        }));
        assert_eq!(handler.unwrap_err().downcast_ref(), Some(&"the handler"));
        assert_eq!(panics.0.load(Relaxed), 1);
    }

    #[test]
    fn a_panic_of_one_sink_does_not_hide_the_event_from_the_other() {
        let (first, second) = (Arc::new(Panics::default()), Arc::new(Panics::default()));
        let recorder = Recorder::from((first.clone(), second.clone()));
        recorder.record(|| Event::forwarded(1));
        recorder.register(Weak::<NoLevels>::new());
        assert_eq!((first.0.load(Relaxed), second.0.load(Relaxed)), (2, 2));
    }
}
