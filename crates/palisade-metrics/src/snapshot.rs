//! Counts kept in this process, to be read, printed or scraped.

use crate::{
    levels::Watched,
    prometheus::Exposition,
    series::{BySeries, LEVELS_IGNORED, LIMIT_CHANGES, Series, level_family},
};
use palisade_core::{Event, Guard, Level, Levels, Metrics, Mode, Phase, Reason};
use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Counts every refusal and every cut, and shows the levels that guards keep.
///
/// Clones are handles on the same counts. Its size is fixed: one atomic for each combination of
/// guard, reason, phase and mode, and at most 1,024 guards whose levels are watched. A guard made
/// while so many are alive still has its refusals counted, but its levels are missing, and
/// `palisade_levels_ignored_total` says so.
///
/// ```
/// use palisade_core::{Guard, Reason, Recorder};
/// use palisade_metrics::Snapshot;
///
/// let snapshot = Snapshot::new();
/// let recorder = Recorder::from(snapshot.clone()); // What every guard's `.metrics(..)` takes.
/// assert_eq!(snapshot.refused(Guard::RateLimit, Reason::RateExceeded), 0);
/// ```
#[derive(Clone, Debug)]
pub struct Snapshot {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    counts: BySeries<AtomicU64>,
    watched: Watched,
}

// === Snapshot ===

impl Snapshot {
    /// The `Content-Type` of [`Self::prometheus`].
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Everything at zero.
    pub fn new() -> Self {
        let counts = BySeries::new(|_| AtomicU64::new(0));
        Self { shared: Arc::new(Shared { counts, watched: Watched::new() }) }
    }

    /// Requests that `guard` refused for `reason`. What a guard in [`Mode::Shadow`] let pass is
    /// not among them, see [`Self::would_refuse`].
    pub fn refused(&self, guard: Guard, reason: Reason) -> u64 {
        self.get(Series { guard, reason, cut_in: None, mode: Mode::Enforce })
    }

    /// Bodies that `guard` cut for `reason`, in any phase. What a guard in [`Mode::Shadow`] let
    /// pass is not among them, see [`Self::would_cut`].
    pub fn cut(&self, guard: Guard, reason: Reason) -> u64 {
        self.cut_in(guard, reason, Mode::Enforce)
    }

    /// Requests that `guard` in [`Mode::Shadow`] would have refused for `reason`.
    pub fn would_refuse(&self, guard: Guard, reason: Reason) -> u64 {
        self.get(Series { guard, reason, cut_in: None, mode: Mode::Shadow })
    }

    /// Bodies that `guard` in [`Mode::Shadow`] would have cut for `reason`, in any phase.
    pub fn would_cut(&self, guard: Guard, reason: Reason) -> u64 {
        self.cut_in(guard, reason, Mode::Shadow)
    }

    /// Requests refused in `mode`, whoever did it and why.
    pub fn total_refused(&self, mode: Mode) -> u64 {
        self.total(|series| series.cut_in.is_none() && series.mode == mode)
    }

    /// Bodies cut in `mode`, whoever did it and why.
    pub fn total_cut(&self, mode: Mode) -> u64 {
        self.total(|series| series.cut_in.is_some() && series.mode == mode)
    }

    /// One level of `guard` now, summed over all living instances of it (two concurrency limits,
    /// say). A total ([`Level::is_total`]) includes what instances that are gone had when
    /// somebody last looked. `None` if no instance has ever shown it.
    pub fn level(&self, guard: Guard, level: Level) -> Option<u64> {
        let mut levels = self.levels().into_iter();
        levels.find(|(of, which, _)| (*of, *which) == (guard, level)).map(|(_, _, value)| value)
    }

    /// All levels now, summed as for [`Self::level`]. Asks every guard: one with a large table
    /// reads all of it, about a millisecond per million keys.
    pub fn levels(&self) -> Vec<(Guard, Level, u64)> {
        self.shared.watched.sample()
    }

    /// Everything in the text format that Prometheus scrapes, version 0.0.4.
    ///
    /// Serve it on a port that only operators reach; its length is bounded and no part of it
    /// comes from a peer. Names, labels and meanings: [crate docs](crate#metrics).
    ///
    /// ```
    /// let text = palisade_metrics::Snapshot::new().prometheus();
    /// assert!(text.contains("# TYPE palisade_requests_refused_total counter\n"));
    /// ```
    pub fn prometheus(&self) -> String {
        let mut text = Exposition::default();
        for (series, count) in self.counts().filter(|(s, count)| *count > 0 || s.is_expected()) {
            text.sample(series.family(), series.labels(), count);
        }
        for (guard, level, value) in self.levels() {
            if let Some(family) = level_family(level) {
                text.sample(family, [("guard", guard.as_str())], value);
            }
        }
        for (guard, changes) in self.shared.watched.limit_changes() {
            text.sample(LIMIT_CHANGES, [("guard", guard.as_str())], changes);
        }
        text.sample(LEVELS_IGNORED, [], self.shared.watched.ignored());
        text.finish()
    }

    fn counts(&self) -> impl Iterator<Item = (Series, u64)> {
        self.shared.counts.iter().map(|(series, count)| (series, count.load(Relaxed)))
    }

    fn get(&self, series: Series) -> u64 {
        self.shared.counts.get(series).map_or(0, |count| count.load(Relaxed))
    }

    fn cut_in(&self, guard: Guard, reason: Reason, mode: Mode) -> u64 {
        let phases = Phase::ALL.iter();
        let counts =
            phases.map(|phase| self.get(Series { guard, reason, cut_in: Some(*phase), mode }));
        counts.fold(0, u64::saturating_add)
    }

    fn total(&self, wanted: impl Fn(Series) -> bool) -> u64 {
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
        if let Some(count) = Series::of(event).and_then(|series| self.shared.counts.get(series)) {
            count.fetch_add(1, Relaxed);
        } else if let Event::LimitChanged { guard, limit, .. } = *event {
            self.shared.watched.limit_changed(guard, limit);
        }
    }

    fn register(&self, levels: Weak<dyn Levels>) {
        self.shared.watched.register(levels);
    }
}

/// A table for people: what was refused and cut, and the levels. Nothing that is zero.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (family, title) in [(false, "requests refused"), (true, "bodies cut")] {
            let total = |mode| if family { self.total_cut(mode) } else { self.total_refused(mode) };
            let (enforced, shadow) = (total(Mode::Enforce), total(Mode::Shadow));
            writeln!(f, "{title}: {enforced}, and {shadow} more in shadow mode")?;
            let counts = self.counts().filter(|(s, n)| *n > 0 && s.cut_in.is_some() == family);
            for (Series { guard, reason, cut_in, mode }, count) in counts {
                let phase = cut_in.map_or("", Phase::as_str);
                // `pad` of the names' own Display would be lost: they write their text as it is.
                let (guard, reason, mode) = (guard.as_str(), reason.as_str(), mode.as_str());
                writeln!(f, "  {guard:<18} {reason:<16} {phase:<14} {mode:<8} {count:>12}")?;
            }
        }
        writeln!(f, "levels")?;
        for (guard, level, value) in self.levels() {
            if let Some(family) = level_family(level) {
                let name = family.name.trim_start_matches("palisade_");
                writeln!(f, "  {:<18} {name:<40} {value:>12}", guard.as_str())?;
            }
        }
        Ok(())
    }
}
