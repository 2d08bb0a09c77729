//! What the guards did, by way of the `metrics` crate.

use crate::{
    gauges::Watched,
    series::{
        BySeries, CUT, ENDED, Family, LEVELS_IGNORED, LIMIT_CHANGES, REFUSED, Series, level_family,
    },
};
use metrics::{Counter, Label, SharedString, Unit};
use palisade_core::{Event, Gauge, GaugeSource, Metrics};
use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
};

/// Tells the recorder of the [`metrics`] crate of everything.
///
/// **Install the recorder first.** The counters are made in [`Facade::new`], with the recorder
/// that is installed by then; with none they count nothing, for ever.
///
/// Gauges are not pushed: call [`Self::sample`] before the exporter renders, or every few seconds
/// where an exporter pushes by itself.
///
/// A refusal costs one atomic increment through a handle that was made before. Only a series that
/// no guard of palisade adds to (one of a guard of your own, say) gets its handle when it is first
/// counted. Clones are handles on the same.
///
/// ```
/// use palisade_core::Recorder;
/// use palisade_metrics::Facade;
///
/// // First the exporter of your choice: `PrometheusBuilder::new().install_recorder()`.
/// let facade = Facade::new();
/// let recorder = Recorder::from(facade.clone()); // What every guard's `.metrics(..)` takes.
/// facade.sample(); // Then `handle.render()`.
/// ```
#[derive(Clone)]
pub struct Facade {
    shared: Arc<Shared>,
}

struct Shared {
    counters: BySeries<OnceLock<Counter>>,
    watched: Watched,
}

// === Facade ===

impl Facade {
    /// Names, describes and makes the counters, with the recorder that is installed now.
    pub fn new() -> Self {
        let levels = Gauge::ALL.iter().filter_map(|level| level_family(*level));
        for family in levels.chain([REFUSED, CUT, ENDED, LIMIT_CHANGES, LEVELS_IGNORED]) {
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
                watched: Watched::new(),
            }),
        }
    }

    /// Asks the guards for their levels and hands them on. Several instances of one guard are
    /// added up; see [`Snapshot::level`](crate::Snapshot::level).
    ///
    /// Takes about a millisecond per million keys that the guards' tables could hold: not for
    /// every request.
    pub fn sample(&self) {
        let watched = &self.shared.watched;
        for (guard, level, value) in watched.sample() {
            let Some(Family { name, is_total, .. }) = level_family(level) else {
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
        for (guard, changes) in watched.limit_changes() {
            metrics::counter!(LIMIT_CHANGES.name, "guard" => guard.as_str()).absolute(changes);
        }
        metrics::counter!(LEVELS_IGNORED.name).absolute(watched.ignored());
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
            .field("watched", &self.shared.watched)
            .finish_non_exhaustive()
    }
}

impl Metrics for Facade {
    fn record(&self, event: &Event<'_>) {
        if let Some(series) = Series::of(event) {
            if let Some(cell) = self.shared.counters.get(series) {
                cell.get_or_init(|| counter(series)).increment(1);
            }
        } else if let Event::LimitChanged { guard, limit, .. } = *event {
            self.shared.watched.limit_changed(guard, limit);
        }
    }

    fn register(&self, levels: Weak<dyn GaugeSource>) {
        self.shared.watched.register(levels);
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
        testing::{Shown, Teller, read},
    };
    use metrics_exporter_prometheus::PrometheusBuilder;
    use palisade_core::{Guard, Mode, Phase, Reason, Recorder};

    /// Runs `work` on a facade with a real exporter as its recorder, and returns what that
    /// exporter shows afterwards.
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
            let shown = Gauge::ALL
                .iter()
                .map(|level| (*level, working + *level as u64));
            Arc::new(Shown(Guard::ConcurrencyLimit, shown.collect()))
        });
        let text = exported(|facade| {
            let both = Recorder::from((facade.clone(), snapshot.clone()));
            for guard in &guards {
                both.register(Arc::downgrade(guard) as Weak<dyn GaugeSource>);
            }
            both.record(|| Event::limit_changed(Guard::ConcurrencyLimit, 9));
            for mode in [Mode::Enforce, Mode::Shadow] {
                let teller = Teller::new(both.clone(), mode);
                teller.refuse(Guard::RateLimit, Reason::RateExceeded, None);
                teller.refuse(Guard::RateLimit, Reason::RateExceeded, None);
                teller.cut(Guard::SlowBody, Reason::Gap, Phase::ResponseBody);
                teller.disconnect(Reason::Idle, Phase::Idle);
                // One that no guard of ours adds to.
                teller.refuse(Guard::Timeout, Reason::Full, None);
            }
        });
        let (theirs, ours) = (read(&text), read(&snapshot.prometheus()));
        assert!(
            theirs.keys().eq(ours.keys()),
            "{:?} {:?}",
            theirs.keys(),
            ours.keys()
        );
        for (name, theirs) in &theirs {
            assert_eq!(theirs.samples, ours[name].samples, "{name}");
            assert_eq!(theirs.kind, ours[name].kind, "{name}");
            assert_eq!(theirs.help, ours[name].help, "{name}");
        }
    }

    #[test]
    fn counters_are_there_at_zero_before_anything_happens() {
        let text = exported(|_| {});
        assert_eq!(
            read(&text)["palisade_requests_refused_total"].samples,
            read(&Snapshot::new().prometheus())["palisade_requests_refused_total"].samples
        );
    }

    #[test]
    fn handles_made_before_count_where_no_recorder_can_be_seen() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let facade = metrics::with_local_recorder(&recorder, Facade::new);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let teller = Teller::new(facade.clone(), Mode::Enforce);
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        teller.refuse(Guard::RateLimit, Reason::RateExceeded, None);
                    }
                });
            }
        });
        let families = read(&recorder.handle().render());
        let refused = families["palisade_requests_refused_total"].samples.values();
        assert_eq!(refused.sum::<f64>(), 80_000.0);
    }

    #[test]
    fn without_a_recorder_nothing_happens() {
        let facade = Facade::new();
        Teller::new(facade.clone(), Mode::Enforce).refuse(Guard::Timeout, Reason::Deadline, None);
        facade.sample();
    }
}
