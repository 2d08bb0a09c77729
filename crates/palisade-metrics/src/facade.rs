//! The adapter to the `metrics` crate.

use crate::{
    gauges::GaugeRegistry,
    series::{
        BySeries, CUT, ENDED, Family, LEVELS_IGNORED, LIMIT_CHANGES, REFUSED, Series, gauge_family,
    },
};
use metrics::{Counter, Label, SharedString, Unit};
use palisade_core::{Event, Gauge, GaugeSource, Metrics};
use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
};

/// Reports all events and gauges to the recorder of the [`metrics`] crate.
///
/// **Install the recorder first.** [`Facade::new`] creates the counters with the recorder that is
/// installed at that time. Without a recorder they never count anything.
///
/// Gauges are not pushed: call [`Self::sample`] before the exporter renders, or every few seconds
/// if the exporter pushes by itself.
///
/// A refusal costs one atomic increment through an existing handle. Only a series that no guard of
/// palisade adds to (that of a custom guard, for example) gets its handle when it is first counted.
/// Clones share all state.
///
/// ```
/// use palisade_core::Recorder;
/// use palisade_metrics::Facade;
///
/// // First the exporter of your choice: `PrometheusBuilder::new().install_recorder()`.
/// let facade = Facade::new();
/// let recorder = Recorder::from(facade.clone()); // The argument of each guard's `.metrics(..)`.
/// facade.sample(); // Then `handle.render()`.
/// ```
#[derive(Clone)]
pub struct Facade {
    shared: Arc<Shared>,
}

struct Shared {
    counters: BySeries<OnceLock<Counter>>,
    gauges: GaugeRegistry,
}

// === Facade ===

impl Facade {
    /// Registers and describes the counters with the recorder that is installed now.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use metrics_exporter_prometheus::PrometheusBuilder;
    /// use palisade_conn::ConnGuard;
    /// use palisade_metrics::Facade;
    ///
    /// // In a program: `PrometheusBuilder::new().install_recorder()`, then `Facade::new()`.
    /// let exporter = PrometheusBuilder::new().build_recorder();
    /// let facade = metrics::with_local_recorder(&exporter, Facade::new);
    /// let guard = ConnGuard::builder().max_per_client(1).metrics(facade).build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let first = connect(&guard, "192.0.2.1").await?;
    /// assert!(connect(&guard, "192.0.2.1").await.is_err());
    /// let text = exporter.handle().render();
    /// let ended = text.lines().find(|line| {
    ///     line.starts_with("palisade_connections_ended_total")
    ///         && line.contains("reason=\"client_connections_full\"")
    ///         && line.contains("mode=\"enforce\"")
    /// });
    /// assert!(ended.is_some_and(|line| line.ends_with(" 1")));
    /// # Ok(())
    /// # }
    /// ```
    pub fn new() -> Self {
        let gauges = Gauge::ALL.iter().filter_map(|gauge| gauge_family(*gauge));
        for family in gauges.chain([REFUSED, CUT, ENDED, LIMIT_CHANGES, LEVELS_IGNORED]) {
            describe(family);
        }
        let counters = BySeries::new(|series| {
            if series.is_expected() {
                OnceLock::from(counter(series))
            } else {
                OnceLock::new()
            }
        });
        Self {
            shared: Arc::new(Shared {
                counters,
                gauges: GaugeRegistry::new(),
            }),
        }
    }

    /// Reads the gauges of all guards and passes them to the recorder. The gauges of several
    /// instances of one guard are summed; see [`Snapshot::gauge`](crate::Snapshot::gauge).
    ///
    /// Takes about a millisecond per million keys that the guards' tables can hold. Do not call it
    /// for every request.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use metrics_exporter_prometheus::PrometheusBuilder;
    /// use palisade_conn::ConnGuard;
    /// use palisade_metrics::Facade;
    ///
    /// // In a program: `PrometheusBuilder::new().install_recorder()`, then `Facade::new()`.
    /// let exporter = PrometheusBuilder::new().build_recorder();
    /// let facade = metrics::with_local_recorder(&exporter, Facade::new);
    /// let guard = ConnGuard::builder().metrics(facade.clone()).build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let io = connect(&guard, "192.0.2.1").await?;
    /// let open = "palisade_connections_open{guard=\"connection\"} 1\n";
    /// assert!(!exporter.handle().render().contains(open));
    /// metrics::with_local_recorder(&exporter, || facade.sample());
    /// assert!(exporter.handle().render().contains(open));
    /// # drop(io);
    /// # Ok(())
    /// # }
    /// ```
    pub fn sample(&self) {
        let gauges = &self.shared.gauges;
        for (guard, gauge, value) in gauges.sample() {
            let Some(Family { name, is_total, .. }) = gauge_family(gauge) else {
                continue;
            };
            let guard = guard.as_str();
            if is_total {
                metrics::counter!(name, "guard" => guard).absolute(value);
            } else {
                // Exact up to 2^53.
                metrics::gauge!(name, "guard" => guard).set(value as f64);
            }
        }
        for (guard, changes) in gauges.limit_changes() {
            metrics::counter!(LIMIT_CHANGES.name, "guard" => guard.as_str()).absolute(changes);
        }
        metrics::counter!(LEVELS_IGNORED.name).absolute(gauges.ignored());
    }
}

impl Default for Facade {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Facade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facade")
            .field("gauges", &self.shared.gauges)
            .finish_non_exhaustive()
    }
}

impl Metrics for Facade {
    fn record(&self, event: &Event<'_>) {
        if let Some(series) = Series::from_event(event) {
            if let Some(cell) = self.shared.counters.get(series) {
                cell.get_or_init(|| counter(series)).increment(1);
            }
        } else if let Event::LimitChanged { guard, limit, .. } = *event {
            self.shared.gauges.record_limit_change(guard, limit);
        }
    }

    fn register(&self, source: Weak<dyn GaugeSource>) {
        self.shared.gauges.register(source);
    }
}

fn counter(series: Series) -> Counter {
    let labels: Vec<_> = series
        .labels()
        .map(|(name, value)| Label::from_static_parts(name, value))
        .collect();
    metrics::counter!(series.family().name, labels)
}

fn describe(
    Family {
        name,
        help,
        is_total,
    }: Family,
) {
    let help = SharedString::const_str(help);
    if is_total {
        metrics::describe_counter!(name, Unit::Count, help);
    } else {
        metrics::describe_gauge!(name, Unit::Count, help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Snapshot,
        testing::{FakeGuard, FixedGauges, parse_exposition},
    };
    use metrics_exporter_prometheus::PrometheusBuilder;
    use palisade_core::{Guard, Mode, Phase, Reason, Recorder};

    /// Runs `work` on a facade with a real exporter as its recorder, and returns the text that the
    /// exporter renders afterwards.
    fn exported(work: impl FnOnce(&Facade)) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let facade = Facade::new();
            work(&facade);
            facade.sample();
        });
        handle.render()
    }

    #[test]
    fn an_exporter_shows_the_same_as_the_snapshot() {
        let snapshot = Snapshot::new();
        let guards = [3, 4].map(|working| {
            let values = Gauge::ALL
                .iter()
                .map(|gauge| (*gauge, working + *gauge as u64));
            Arc::new(FixedGauges(Guard::ConcurrencyLimit, values.collect()))
        });
        let text = exported(|facade| {
            let both = Recorder::from((facade.clone(), snapshot.clone()));
            for guard in &guards {
                both.register(Arc::downgrade(guard) as Weak<dyn GaugeSource>);
            }
            both.record(|| Event::limit_changed(Guard::ConcurrencyLimit, 9));
            for mode in [Mode::Enforce, Mode::Shadow] {
                let fake = FakeGuard::new(both.clone(), mode);
                fake.refuse(Guard::RateLimit, Reason::RateExceeded, None);
                fake.refuse(Guard::RateLimit, Reason::RateExceeded, None);
                fake.cut(Guard::SlowBody, Reason::Gap, Phase::ResponseBody);
                fake.disconnect(Reason::Idle, Phase::Idle);
                // A series that no guard of palisade adds to.
                fake.refuse(Guard::Timeout, Reason::Full, None);
            }
        });
        let exported = parse_exposition(&text);
        let expected = parse_exposition(&snapshot.prometheus());
        assert!(
            exported.keys().eq(expected.keys()),
            "{:?} {:?}",
            exported.keys(),
            expected.keys()
        );
        for (name, family) in &exported {
            assert_eq!(family.samples, expected[name].samples, "{name}");
            assert_eq!(family.kind, expected[name].kind, "{name}");
            assert_eq!(family.help, expected[name].help, "{name}");
        }
    }

    #[test]
    fn counters_start_at_zero() {
        let text = exported(|_| {});
        assert_eq!(
            parse_exposition(&text)["palisade_requests_refused_total"].samples,
            parse_exposition(&Snapshot::new().prometheus())["palisade_requests_refused_total"]
                .samples
        );
    }

    #[test]
    fn existing_handles_count_on_threads_without_a_recorder() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let facade = metrics::with_local_recorder(&recorder, Facade::new);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let fake = FakeGuard::new(facade.clone(), Mode::Enforce);
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        fake.refuse(Guard::RateLimit, Reason::RateExceeded, None);
                    }
                });
            }
        });
        let families = parse_exposition(&recorder.handle().render());
        let refused = families["palisade_requests_refused_total"].samples.values();
        assert_eq!(refused.sum::<f64>(), 80_000.0);
    }

    #[test]
    fn without_a_recorder_events_are_ignored() {
        let facade = Facade::new();
        FakeGuard::new(facade.clone(), Mode::Enforce).refuse(
            Guard::Timeout,
            Reason::Deadline,
            None,
        );
        facade.sample();
    }
}
