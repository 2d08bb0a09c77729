//! In-process counts, to read, print or scrape.

use crate::{
    gauges::GaugeRegistry,
    prometheus::Exposition,
    series::{
        BySeries, CUT, ENDED, Family, LEVELS_IGNORED, LIMIT_CHANGES, REFUSED, Series, gauge_family,
    },
};
use palisade_core::{Event, Gauge, GaugeSource, Guard, Metrics, Mode, Phase, Reason};
use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Counts every refused request, cut body and closed or refused connection, and reports the gauges
/// of the guards.
///
/// Clones share all counts. The size is fixed: one atomic for each combination of guard, reason,
/// phase and mode, and the gauges of at most 1,024 guards. The refusals of further guards are
/// counted, but their gauges are not reported; `palisade_levels_ignored_total` counts those guards.
///
/// ```
/// use palisade_core::{Guard, Reason, Recorder};
/// use palisade_metrics::Snapshot;
///
/// let snapshot = Snapshot::new();
/// let recorder = Recorder::from(snapshot.clone()); // The argument of each guard's `.metrics(..)`.
/// assert_eq!(snapshot.refused(Guard::RateLimit, Reason::RateExceeded), 0);
/// ```
#[derive(Clone, Debug)]
pub struct Snapshot {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    counts: BySeries<AtomicU64>,
    gauges: GaugeRegistry,
}

// === Snapshot ===

impl Snapshot {
    /// The `Content-Type` of [`Self::prometheus`].
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Creates a snapshot with all counts at zero.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// use palisade_core::Mode;
    /// use palisade_metrics::Snapshot;
    ///
    /// let snapshot = Snapshot::new();
    /// assert_eq!(snapshot.total_refused(Mode::Enforce), 0);
    /// let layer = ConcurrencyLimitLayer::new(1).metrics(snapshot.clone());
    /// let service = layer.layer(service_fn(hello));
    /// let first = service.clone().oneshot(Request::new(String::new())).await?;
    /// // The body of the first response is not sent yet.
    /// let clone = snapshot.clone();
    /// service.oneshot(Request::new(String::new())).await?;
    /// assert_eq!(clone.total_refused(Mode::Enforce), 1); // Clones share all counts.
    /// # drop(first);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new() -> Self {
        let counts = BySeries::new(|_| AtomicU64::new(0));
        Self {
            shared: Arc::new(Shared {
                counts,
                gauges: GaugeRegistry::new(),
            }),
        }
    }

    /// Returns the number of requests that `guard` refused for `reason`. Excludes
    /// [`Mode::Shadow`]; see [`Self::would_refuse`].
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// use palisade_core::{Guard, Reason};
    /// use palisade_metrics::Snapshot;
    ///
    /// let snapshot = Snapshot::new();
    /// let layer = ConcurrencyLimitLayer::new(1).metrics(snapshot.clone());
    /// let service = layer.layer(service_fn(hello));
    /// let first = service.clone().oneshot(Request::new(String::new())).await?;
    /// // The body of the first response is not sent yet.
    /// let second = service.oneshot(Request::new(String::new())).await?;
    /// assert_eq!(second.status(), 503);
    /// assert_eq!(snapshot.refused(Guard::ConcurrencyLimit, Reason::Full), 1);
    /// # drop(first);
    /// # Ok(())
    /// # }
    /// ```
    pub fn refused(&self, guard: Guard, reason: Reason) -> u64 {
        self.get(Series {
            guard,
            reason,
            phase: None,
            mode: Mode::Enforce,
        })
    }

    /// Returns the number of bodies that `guard` cut for `reason`, in any phase. Excludes
    /// [`Mode::Shadow`]; see [`Self::would_cut`].
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use palisade_testkit::bodies::Pieces;
    /// use http_body_util::BodyExt;
    /// use palisade_core::{Guard, Reason};
    /// use palisade_metrics::Snapshot;
    /// use palisade_slow_body::{RequestBody, SlowBodyLayer};
    ///
    /// let snapshot = Snapshot::new();
    /// // A handler that sends the request body back.
    /// let echo = service_fn(async |request: Request<RequestBody<Pieces>>| {
    ///     Ok::<_, Infallible>(Response::new(request.into_body()))
    /// });
    /// let mut service = SlowBodyLayer::new().metrics(snapshot.clone()).layer(echo);
    /// // A request body of one byte a minute. The response head is sent before its first byte.
    /// let body = Pieces::new(2, 1).every(Duration::from_secs(60));
    /// let response = service.call(Request::new(body)).await?;
    /// assert_eq!(response.status(), 200);
    /// assert!(response.into_body().collect().await.is_err());
    /// assert_eq!(snapshot.cut(Guard::SlowBody, Reason::Gap), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn cut(&self, guard: Guard, reason: Reason) -> u64 {
        self.sum_cut(guard, reason, Mode::Enforce)
    }

    /// Returns the number of requests that `guard` in [`Mode::Shadow`] would have refused for
    /// `reason`.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// use palisade_core::{Guard, Mode, Reason};
    /// use palisade_metrics::Snapshot;
    ///
    /// let snapshot = Snapshot::new();
    /// let layer = ConcurrencyLimitLayer::new(1).mode(Mode::Shadow).metrics(snapshot.clone());
    /// let service = layer.layer(service_fn(hello));
    /// let first = service.clone().oneshot(Request::new(String::new())).await?;
    /// // The body of the first response is not sent yet.
    /// let second = service.oneshot(Request::new(String::new())).await?;
    /// assert_eq!(second.status(), 200);
    /// assert_eq!(snapshot.would_refuse(Guard::ConcurrencyLimit, Reason::Full), 1);
    /// assert_eq!(snapshot.refused(Guard::ConcurrencyLimit, Reason::Full), 0);
    /// # drop(first);
    /// # Ok(())
    /// # }
    /// ```
    pub fn would_refuse(&self, guard: Guard, reason: Reason) -> u64 {
        self.get(Series {
            guard,
            reason,
            phase: None,
            mode: Mode::Shadow,
        })
    }

    /// Returns the number of bodies that `guard` in [`Mode::Shadow`] would have cut for `reason`,
    /// in any phase.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use palisade_testkit::bodies::Pieces;
    /// use http_body_util::BodyExt;
    /// use palisade_core::{Guard, Mode, Reason};
    /// use palisade_metrics::Snapshot;
    /// use palisade_slow_body::{RequestBody, SlowBodyLayer};
    ///
    /// let snapshot = Snapshot::new();
    /// // A handler that sends the request body back.
    /// let echo = service_fn(async |request: Request<RequestBody<Pieces>>| {
    ///     Ok::<_, Infallible>(Response::new(request.into_body()))
    /// });
    /// let layer = SlowBodyLayer::new().mode(Mode::Shadow).metrics(snapshot.clone());
    /// // A request body of one byte a minute.
    /// let body = Pieces::new(2, 1).every(Duration::from_secs(60));
    /// let response = layer.layer(echo).oneshot(Request::new(body)).await?;
    /// let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
    /// assert_eq!(body.to_bytes(), "xx");
    /// assert_eq!(snapshot.would_cut(Guard::SlowBody, Reason::Gap), 1);
    /// assert_eq!(snapshot.cut(Guard::SlowBody, Reason::Gap), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn would_cut(&self, guard: Guard, reason: Reason) -> u64 {
        self.sum_cut(guard, reason, Mode::Shadow)
    }

    /// Returns the number of connections that the guard closed or refused for `reason`, in any
    /// phase. Excludes [`Mode::Shadow`]; see [`Self::would_disconnect`].
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    /// use palisade_core::Reason;
    /// use palisade_metrics::Snapshot;
    ///
    /// let snapshot = Snapshot::new();
    /// let guard = ConnGuard::builder().max_per_client(1).metrics(snapshot.clone()).build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let first = connect(&guard, "192.0.2.1").await?;
    /// assert!(connect(&guard, "192.0.2.1").await.is_err());
    /// assert_eq!(snapshot.disconnected(Reason::ClientConnectionsFull), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn disconnected(&self, reason: Reason) -> u64 {
        self.sum_disconnected(Mode::Enforce, |series| series.reason == reason)
    }

    /// Returns the number of connections that a guard in [`Mode::Shadow`] would have closed or
    /// refused for `reason`.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    /// use palisade_core::{Mode, Reason};
    /// use palisade_metrics::Snapshot;
    ///
    /// let snapshot = Snapshot::new();
    /// let guard = ConnGuard::builder().mode(Mode::Shadow).max_per_client(1);
    /// let guard = guard.metrics(snapshot.clone()).build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let first = connect(&guard, "192.0.2.1").await?;
    /// let second = connect(&guard, "192.0.2.1").await?;
    /// assert_eq!(snapshot.would_disconnect(Reason::ClientConnectionsFull), 1);
    /// assert_eq!(snapshot.disconnected(Reason::ClientConnectionsFull), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn would_disconnect(&self, reason: Reason) -> u64 {
        self.sum_disconnected(Mode::Shadow, |series| series.reason == reason)
    }

    /// Returns the number of connections closed or refused in `mode`, by any guard for any reason.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    /// use palisade_core::Mode;
    /// use palisade_metrics::Snapshot;
    ///
    /// let snapshot = Snapshot::new();
    /// let guard = ConnGuard::builder().max_per_client(1).max_per_network(2);
    /// let guard = guard.metrics(snapshot.clone()).build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let first = connect(&guard, "192.0.2.1").await?;
    /// let second = connect(&guard, "192.0.2.2").await?;
    /// assert!(connect(&guard, "192.0.2.1").await.is_err()); // The client has its share.
    /// assert!(connect(&guard, "192.0.2.3").await.is_err()); // The network has its share.
    /// assert_eq!(snapshot.total_disconnected(Mode::Enforce), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn total_disconnected(&self, mode: Mode) -> u64 {
        self.sum_disconnected(mode, |_| true)
    }

    /// Returns the number of requests refused in `mode`, by any guard for any reason.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// use palisade_core::Mode;
    /// use palisade_metrics::Snapshot;
    ///
    /// let snapshot = Snapshot::new();
    /// let layer = ConcurrencyLimitLayer::new(1).metrics(snapshot.clone());
    /// let service = layer.layer(service_fn(hello));
    /// let first = service.clone().oneshot(Request::new(String::new())).await?;
    /// // The body of the first response is not sent yet.
    /// for _ in 0..3 {
    ///     service.clone().oneshot(Request::new(String::new())).await?;
    /// }
    /// assert_eq!(snapshot.total_refused(Mode::Enforce), 3);
    /// assert_eq!(snapshot.total_refused(Mode::Shadow), 0);
    /// # drop(first);
    /// # Ok(())
    /// # }
    /// ```
    pub fn total_refused(&self, mode: Mode) -> u64 {
        self.sum(|series| series.phase.is_none() && series.mode == mode)
    }

    /// Returns the number of bodies cut in `mode`, by any guard for any reason.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use palisade_testkit::bodies::Pieces;
    /// use http_body_util::BodyExt;
    /// use palisade_core::Mode;
    /// use palisade_metrics::Snapshot;
    /// use palisade_slow_body::{RequestBody, SlowBodyLayer};
    ///
    /// let snapshot = Snapshot::new();
    /// // A handler that sends the request body back.
    /// let echo = service_fn(async |request: Request<RequestBody<Pieces>>| {
    ///     Ok::<_, Infallible>(Response::new(request.into_body()))
    /// });
    /// let service = SlowBodyLayer::new().metrics(snapshot.clone()).layer(echo);
    /// for _ in 0..3 {
    ///     // A request body of one byte a minute.
    ///     let body = Pieces::new(2, 1).every(Duration::from_secs(60));
    ///     let response = service.clone().oneshot(Request::new(body)).await?;
    ///     assert!(response.into_body().collect().await.is_err());
    /// }
    /// assert_eq!(snapshot.total_cut(Mode::Enforce), 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn total_cut(&self, mode: Mode) -> u64 {
        self.sum(|series| series.family().name == CUT.name && series.mode == mode)
    }

    /// Returns the present value of one gauge of `guard`, summed over all instances of the guard
    /// (two concurrency limits, for example). A total ([`Gauge::is_total`]) includes the last
    /// sampled values of dropped instances. Returns `None` if no instance has ever reported the
    /// gauge.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_concurrency_limit::ConcurrencyLimitLayer;
    /// use palisade_core::{Gauge, Guard};
    /// use palisade_metrics::Snapshot;
    ///
    /// let snapshot = Snapshot::new();
    /// let level = |gauge| snapshot.gauge(Guard::ConcurrencyLimit, gauge);
    /// assert_eq!(level(Gauge::Working), None); // No guard yet.
    /// let layer = ConcurrencyLimitLayer::new(1).metrics(snapshot.clone());
    /// let service = layer.layer(service_fn(hello));
    /// let first = service.clone().oneshot(Request::new(String::new())).await?;
    /// // The body of the first response is not sent yet.
    /// assert_eq!((level(Gauge::Working), level(Gauge::Limit)), (Some(1), Some(1)));
    /// drop(first);
    /// assert_eq!((level(Gauge::Working), level(Gauge::Admitted)), (Some(0), Some(1)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn gauge(&self, guard: Guard, gauge: Gauge) -> Option<u64> {
        let mut samples = self.gauges().into_iter();
        let (_, _, value) = samples.find(|sample| (sample.0, sample.1) == (guard, gauge))?;
        Some(value)
    }

    /// Returns all gauges, each summed as in [`Self::gauge`]. Reads every guard. A guard with a
    /// large table reads the whole table, about two milliseconds per million keys, once a second
    /// at most.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    /// use palisade_core::{Gauge, Guard};
    /// use palisade_metrics::Snapshot;
    ///
    /// let snapshot = Snapshot::new();
    /// assert_eq!(snapshot.gauges(), []);
    /// let builder = ConnGuard::builder().max_connections(100).metrics(snapshot.clone());
    /// let guard = builder.build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let io = connect(&guard, "192.0.2.1").await?;
    /// let gauges = snapshot.gauges();
    /// assert!(gauges.contains(&(Guard::Connection, Gauge::Connections, 1)));
    /// assert!(gauges.contains(&(Guard::Connection, Gauge::ConnectionLimit, 100)));
    /// # drop(io);
    /// # Ok(())
    /// # }
    /// ```
    pub fn gauges(&self) -> Vec<(Guard, Gauge, u64)> {
        self.shared.gauges.sample()
    }

    /// Returns all counts and gauges in the Prometheus text format, version 0.0.4.
    ///
    /// Serve it on a port that only operators reach. Its length is bounded, and no part of it comes
    /// from a peer. The [crate docs](crate#metrics) list names, labels and meanings.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    /// use palisade_metrics::Snapshot;
    ///
    /// let snapshot = Snapshot::new();
    /// let guard = ConnGuard::builder().metrics(snapshot.clone()).build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let io = connect(&guard, "192.0.2.1").await?;
    /// let text = snapshot.prometheus();
    /// assert!(text.contains("# TYPE palisade_connections_open gauge\n"));
    /// assert!(text.contains("\npalisade_connections_open{guard=\"connection\"} 1\n"));
    /// # drop(io);
    /// # Ok(())
    /// # }
    /// ```
    pub fn prometheus(&self) -> String {
        let mut text = Exposition::default();
        for (series, count) in self
            .counts()
            .filter(|(s, count)| *count > 0 || s.is_expected())
        {
            text.sample(series.family(), series.labels(), count);
        }
        for (guard, gauge, value) in self.gauges() {
            if let Some(family) = gauge_family(gauge) {
                text.sample(family, [("guard", guard.as_str())], value);
            }
        }
        for (guard, changes) in self.shared.gauges.limit_changes() {
            text.sample(LIMIT_CHANGES, [("guard", guard.as_str())], changes);
        }
        text.sample(LEVELS_IGNORED, [], self.shared.gauges.ignored());
        text.finish()
    }

    fn counts(&self) -> impl Iterator<Item = (Series, u64)> {
        self.shared
            .counts
            .iter()
            .map(|(series, count)| (series, count.load(Relaxed)))
    }

    fn get(&self, series: Series) -> u64 {
        self.shared
            .counts
            .get(series)
            .map_or(0, |count| count.load(Relaxed))
    }

    fn sum_cut(&self, guard: Guard, reason: Reason, mode: Mode) -> u64 {
        let phases = Phase::ALL.iter().filter(|phase| !phase.is_of_connection());
        let counts = phases.map(|phase| {
            self.get(Series {
                guard,
                reason,
                phase: Some(*phase),
                mode,
            })
        });
        counts.fold(0, u64::saturating_add)
    }

    fn sum_disconnected(&self, mode: Mode, wanted: impl Fn(Series) -> bool) -> u64 {
        let is_disconnect = |series: Series| series.family().name == ENDED.name;
        self.sum(|series| is_disconnect(series) && series.mode == mode && wanted(series))
    }

    fn sum(&self, wanted: impl Fn(Series) -> bool) -> u64 {
        let counts = self.counts().filter(|(series, _)| wanted(*series));
        counts.fold(0, |total, (_, count)| total.saturating_add(count))
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics for Snapshot {
    fn record(&self, event: &Event<'_>) {
        let series = Series::from_event(event);
        if let Some(count) = series.and_then(|series| self.shared.counts.get(series)) {
            count.fetch_add(1, Relaxed);
        } else if let Event::LimitChanged { guard, limit, .. } = *event {
            self.shared.gauges.record_limit_change(guard, limit);
        }
    }

    fn register(&self, source: Weak<dyn GaugeSource>) {
        self.shared.gauges.register(source);
    }
}

/// A table for humans: refused requests, cut bodies, closed or refused connections, and gauges.
/// Counts of zero are left out.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = [
            (REFUSED, "requests refused"),
            (CUT, "bodies cut"),
            (ENDED, "connections closed or refused"),
        ];
        for (Family { name, .. }, title) in titles {
            let in_family = |series: Series| series.family().name == name;
            let total = |mode| self.sum(|series| in_family(series) && series.mode == mode);
            let (enforced, shadow) = (total(Mode::Enforce), total(Mode::Shadow));
            writeln!(f, "{title}: {enforced}, and {shadow} more in shadow mode")?;
            let counts = self
                .counts()
                .filter(|(series, n)| *n > 0 && in_family(*series));
            for (
                Series {
                    guard,
                    reason,
                    phase,
                    mode,
                },
                count,
            ) in counts
            {
                let phase = phase.map_or("", Phase::as_str);
                // As `str`, because the `Display` of these enums ignores padding.
                let (guard, reason, mode) = (guard.as_str(), reason.as_str(), mode.as_str());
                writeln!(
                    f,
                    "  {guard:<18} {reason:<24} {phase:<14} {mode:<8} {count:>12}"
                )?;
            }
        }
        writeln!(f, "gauges")?;
        for (guard, gauge, value) in self.gauges() {
            if let Some(family) = gauge_family(gauge) {
                let name = family.name.trim_start_matches("palisade_");
                writeln!(f, "  {:<18} {name:<40} {value:>12}", guard.as_str())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeGuard, FixedGauges, parse_exposition};
    use palisade_core::{ConnInfo, Prefix};
    use std::collections::BTreeSet;

    fn labels(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(label, value)| (label.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn refusals_and_cuts_are_counted_separately_and_by_mode() {
        let snapshot = Snapshot::new();
        let enforce = FakeGuard::new(snapshot.clone(), Mode::Enforce);
        let shadow = FakeGuard::new(snapshot.clone(), Mode::Shadow);
        enforce.refuse(Guard::RateLimit, Reason::RateExceeded, None);
        enforce.refuse(Guard::RateLimit, Reason::RateExceeded, None);
        shadow.refuse(Guard::RateLimit, Reason::RateExceeded, None);
        enforce.cut(Guard::SlowBody, Reason::Gap, Phase::RequestBody);
        enforce.cut(Guard::SlowBody, Reason::Gap, Phase::ResponseBody);
        shadow.cut(Guard::SlowBody, Reason::Rate, Phase::ResponseBody);

        assert_eq!(snapshot.refused(Guard::RateLimit, Reason::RateExceeded), 2);
        assert_eq!(
            snapshot.would_refuse(Guard::RateLimit, Reason::RateExceeded),
            1
        );
        assert_eq!(snapshot.cut(Guard::SlowBody, Reason::Gap), 2);
        assert_eq!(snapshot.cut(Guard::SlowBody, Reason::Rate), 0);
        assert_eq!(snapshot.would_cut(Guard::SlowBody, Reason::Rate), 1);
        assert_eq!(snapshot.refused(Guard::SlowBody, Reason::Gap), 0);
        let totals = |mode| (snapshot.total_refused(mode), snapshot.total_cut(mode));
        assert_eq!(totals(Mode::Enforce), (2, 2));
        assert_eq!(totals(Mode::Shadow), (1, 1));
        assert_eq!(totals(Mode::Off), (0, 0));
    }

    #[test]
    fn connections_are_counted_separately_from_requests() {
        let snapshot = Snapshot::new();
        let enforce = FakeGuard::new(snapshot.clone(), Mode::Enforce);
        let shadow = FakeGuard::new(snapshot.clone(), Mode::Shadow);
        enforce.disconnect(Reason::Idle, Phase::Idle);
        enforce.disconnect(Reason::Idle, Phase::Upgraded);
        enforce.disconnect(Reason::ConnectionsFull, Phase::Accept);
        shadow.disconnect(Reason::WriteStall, Phase::Writing);
        assert_eq!(snapshot.disconnected(Reason::Idle), 2);
        assert_eq!(snapshot.disconnected(Reason::WriteStall), 0);
        assert_eq!(snapshot.would_disconnect(Reason::WriteStall), 1);
        assert_eq!(snapshot.total_disconnected(Mode::Enforce), 3);
        assert_eq!(
            (
                snapshot.total_cut(Mode::Enforce),
                snapshot.total_refused(Mode::Enforce)
            ),
            (0, 0)
        );
        let text = snapshot.prometheus();
        let line = "palisade_connections_ended_total{guard=\"connection\",reason=\"idle\",\
                    phase=\"idle\",mode=\"enforce\"} 1\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn eight_threads_lose_no_count() {
        const COUNT_PER_THREAD: u64 = 10_000;
        let snapshot = Snapshot::new();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let fake = FakeGuard::new(snapshot.clone(), Mode::ALL[thread % 2]);
                let (snapshot, own) = (&snapshot, Guard::ALL[thread % 4]);
                scope.spawn(move || {
                    let source =
                        Arc::new(FixedGauges(own, vec![(Gauge::Admitted, COUNT_PER_THREAD)]));
                    snapshot.register(Arc::downgrade(&source) as Weak<dyn GaugeSource>);
                    for round in 0..COUNT_PER_THREAD {
                        fake.refuse(own, Reason::Full, None);
                        fake.cut(Guard::BodyLimit, Reason::TooLarge, Phase::RequestBody);
                        if round % 1000 == 0 {
                            parse_exposition(&snapshot.prometheus());
                        }
                    }
                    // Sampled before `source` is dropped, so that none of its totals are lost.
                    snapshot.gauges();
                });
            }
        });
        for mode in [Mode::Enforce, Mode::Shadow] {
            assert_eq!(snapshot.total_refused(mode), 4 * COUNT_PER_THREAD);
            assert_eq!(snapshot.total_cut(mode), 4 * COUNT_PER_THREAD);
        }
        let counted = |guard| {
            snapshot.refused(guard, Reason::Full) + snapshot.would_refuse(guard, Reason::Full)
        };
        for guard in &Guard::ALL[..4] {
            assert_eq!(counted(*guard), 2 * COUNT_PER_THREAD);
            assert_eq!(
                snapshot.gauge(*guard, Gauge::Admitted),
                Some(2 * COUNT_PER_THREAD)
            );
        }
    }

    #[test]
    fn the_text_parses_to_the_counted_values() {
        let snapshot = Snapshot::new();
        let fake = FakeGuard::new(snapshot.clone(), Mode::Enforce);
        fake.refuse(Guard::ConcurrencyLimit, Reason::Full, None);
        fake.cut(Guard::SlowBody, Reason::Gap, Phase::ResponseBody);
        let values = vec![
            (Gauge::Working, 7),
            (Gauge::Limit, 9),
            (Gauge::KeysEvicted, 3),
        ];
        let guard = Arc::new(FixedGauges(Guard::ConcurrencyLimit, values));
        snapshot.register(Arc::downgrade(&guard) as Weak<dyn GaugeSource>);

        let text = snapshot.prometheus();
        assert!(!text.contains("\n\n"));
        let families = parse_exposition(&text);
        let value = |name: &str, pairs: &[(&str, &str)]| families[name].samples[&labels(pairs)];
        let refused = [
            ("guard", "concurrency_limit"),
            ("mode", "enforce"),
            ("reason", "full"),
        ];
        assert_eq!(value("palisade_requests_refused_total", &refused), 1.0);
        let refused = [
            ("guard", "concurrency_limit"),
            ("mode", "shadow"),
            ("reason", "full"),
        ];
        assert_eq!(value("palisade_requests_refused_total", &refused), 0.0);
        let cut = [
            ("guard", "slow_body"),
            ("mode", "enforce"),
            ("phase", "response_body"),
            ("reason", "gap"),
        ];
        assert_eq!(value("palisade_bodies_cut_total", &cut), 1.0);
        let guard_label = [("guard", "concurrency_limit")];
        assert_eq!(value("palisade_requests_working", &guard_label), 7.0);
        assert_eq!(value("palisade_concurrency_limit", &guard_label), 9.0);
        assert_eq!(value("palisade_key_evictions_total", &guard_label), 3.0);
        assert_eq!(value("palisade_levels_ignored_total", &[]), 0.0);
        assert_eq!(families["palisade_requests_working"].kind, "gauge");
        assert_eq!(
            families["palisade_requests_working"].help,
            "Requests that hold a permit"
        );
    }

    #[test]
    fn a_limit_change_is_counted_and_the_limit_gauge_takes_precedence() {
        let snapshot = Snapshot::new();
        snapshot.record(&Event::limit_changed(Guard::ConcurrencyLimit, 50));
        assert_eq!(
            snapshot.gauge(Guard::ConcurrencyLimit, Gauge::Limit),
            Some(50)
        );
        let guard = Arc::new(FixedGauges(
            Guard::ConcurrencyLimit,
            vec![(Gauge::Limit, 40)],
        ));
        snapshot.register(Arc::downgrade(&guard) as Weak<dyn GaugeSource>);
        snapshot.record(&Event::limit_changed(Guard::ConcurrencyLimit, 30));
        assert_eq!(
            snapshot.gauge(Guard::ConcurrencyLimit, Gauge::Limit),
            Some(40)
        );
        let text = snapshot.prometheus();
        assert!(text.contains("\npalisade_limit_changes_total{guard=\"concurrency_limit\"} 2\n"));
    }

    #[test]
    fn peers_add_no_series_and_every_label_comes_from_an_enum() {
        let snapshot = Snapshot::new();
        let fake = FakeGuard::new(snapshot.clone(), Mode::Enforce);
        fake.refuse(Guard::RateLimit, Reason::RateExceeded, None);
        let series = |text: &str| -> BTreeSet<_> {
            let families = parse_exposition(text).into_iter();
            families
                .flat_map(|(name, family)| {
                    let labels = family.samples.into_keys();
                    labels.map(move |labels| (name.clone(), labels))
                })
                .collect()
        };
        let before = series(&snapshot.prometheus());
        for n in 0..10_000u32 {
            let peer = (std::net::Ipv4Addr::from_bits(n), 1).into();
            let conn = ConnInfo::new(peer, None, Prefix::default());
            fake.refuse(Guard::RateLimit, Reason::RateExceeded, Some(&conn));
        }
        assert_eq!(series(&snapshot.prometheus()), before);
        assert_eq!(
            snapshot.refused(Guard::RateLimit, Reason::RateExceeded),
            10_001
        );

        // Every guard records every reason in every phase and mode.
        for mode in Mode::ALL {
            let fake = FakeGuard::new(snapshot.clone(), *mode);
            for (guard, reason) in Guard::ALL
                .iter()
                .flat_map(|g| Reason::ALL.iter().map(move |r| (*g, *r)))
            {
                fake.refuse(guard, reason, None);
                Phase::ALL
                    .iter()
                    .for_each(|phase| fake.cut(guard, reason, *phase));
            }
        }
        let known = |label: &str, value: &str| match label {
            "guard" => Guard::ALL.iter().any(|known| known.as_str() == value),
            "reason" => Reason::ALL.iter().any(|known| known.as_str() == value),
            "phase" => Phase::ALL.iter().any(|known| known.as_str() == value),
            "mode" => Mode::ALL.iter().any(|known| known.as_str() == value),
            _ => false,
        };
        let all = series(&snapshot.prometheus());
        for (name, labels) in &all {
            assert!(
                labels.iter().all(|(label, value)| known(label, value)),
                "{name} {labels:?}"
            );
        }
        assert_eq!(all.len(), Series::all().count() + 1); // Plus `palisade_levels_ignored_total`.
    }

    #[test]
    fn the_table_shows_counts_that_are_not_zero() {
        let snapshot = Snapshot::new();
        FakeGuard::new(snapshot.clone(), Mode::Shadow).refuse(Guard::RateLimit, Reason::Full, None);
        let guard = Arc::new(FixedGauges(Guard::RateLimit, vec![(Gauge::Keys, 12)]));
        snapshot.register(Arc::downgrade(&guard) as Weak<dyn GaugeSource>);
        let table = snapshot.to_string();
        let lines: Vec<Vec<_>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[0].join(" "),
            "requests refused: 0, and 1 more in shadow mode"
        );
        assert_eq!(lines[1], ["rate_limit", "full", "shadow", "1"]);
        assert_eq!(
            lines[2].join(" "),
            "bodies cut: 0, and 0 more in shadow mode"
        );
        let closed = "connections closed or refused: 0, and 0 more in shadow mode";
        assert_eq!(lines[3].join(" "), closed);
        assert_eq!(lines[5], ["rate_limit", "tracked_keys", "12"]);
        assert_eq!(lines.len(), 6);
    }
}
