//! Counts kept in this process, to be read, printed or scraped.

use crate::{
    gauges::Watched,
    prometheus::Exposition,
    series::{
        BySeries, CUT, ENDED, Family, LEVELS_IGNORED, LIMIT_CHANGES, REFUSED, Series, level_family,
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

/// Counts every refusal, every cut and every connection ended, and shows the levels that guards
/// keep.
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
        Self {
            shared: Arc::new(Shared {
                counts,
                watched: Watched::new(),
            }),
        }
    }

    /// Requests that `guard` refused for `reason`. What a guard in [`Mode::Shadow`] let pass is
    /// not among them, see [`Self::would_refuse`].
    pub fn refused(&self, guard: Guard, reason: Reason) -> u64 {
        self.get(Series {
            guard,
            reason,
            cut_in: None,
            mode: Mode::Enforce,
        })
    }

    /// Bodies that `guard` cut for `reason`, in any phase. What a guard in [`Mode::Shadow`] let
    /// pass is not among them, see [`Self::would_cut`].
    pub fn cut(&self, guard: Guard, reason: Reason) -> u64 {
        self.cut_in(guard, reason, Mode::Enforce)
    }

    /// Requests that `guard` in [`Mode::Shadow`] would have refused for `reason`.
    pub fn would_refuse(&self, guard: Guard, reason: Reason) -> u64 {
        self.get(Series {
            guard,
            reason,
            cut_in: None,
            mode: Mode::Shadow,
        })
    }

    /// Bodies that `guard` in [`Mode::Shadow`] would have cut for `reason`, in any phase.
    pub fn would_cut(&self, guard: Guard, reason: Reason) -> u64 {
        self.cut_in(guard, reason, Mode::Shadow)
    }

    /// Connections that the guard ended or did not let in for `reason`, in any phase. What one in
    /// [`Mode::Shadow`] let go on is not among them, see [`Self::would_disconnect`].
    pub fn disconnected(&self, reason: Reason) -> u64 {
        self.ended(Mode::Enforce, |series| series.reason == reason)
    }

    /// Connections that a guard in [`Mode::Shadow`] would have ended or not let in for `reason`.
    pub fn would_disconnect(&self, reason: Reason) -> u64 {
        self.ended(Mode::Shadow, |series| series.reason == reason)
    }

    /// Connections ended or not let in, in `mode`, whoever did it and why.
    pub fn total_disconnected(&self, mode: Mode) -> u64 {
        self.ended(mode, |_| true)
    }

    /// Requests refused in `mode`, whoever did it and why.
    pub fn total_refused(&self, mode: Mode) -> u64 {
        self.total(|series| series.cut_in.is_none() && series.mode == mode)
    }

    /// Bodies cut in `mode`, whoever did it and why.
    pub fn total_cut(&self, mode: Mode) -> u64 {
        self.total(|series| series.family().name == CUT.name && series.mode == mode)
    }

    /// One level of `guard` now, summed over all living instances of it (two concurrency limits,
    /// say). A total ([`Gauge::is_total`]) includes what instances that are gone had when
    /// somebody last looked. `None` if no instance has ever shown it.
    pub fn level(&self, guard: Guard, level: Gauge) -> Option<u64> {
        let mut levels = self.levels().into_iter();
        levels
            .find(|(of, which, _)| (*of, *which) == (guard, level))
            .map(|(_, _, value)| value)
    }

    /// All levels now, summed as for [`Self::level`]. Asks every guard: one with a large table
    /// reads all of it, about two milliseconds per million keys, once a second at most.
    pub fn levels(&self) -> Vec<(Guard, Gauge, u64)> {
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
        for (series, count) in self
            .counts()
            .filter(|(s, count)| *count > 0 || s.is_expected())
        {
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

    fn cut_in(&self, guard: Guard, reason: Reason, mode: Mode) -> u64 {
        let phases = Phase::ALL.iter().filter(|phase| !phase.is_of_connection());
        let counts = phases.map(|phase| {
            self.get(Series {
                guard,
                reason,
                cut_in: Some(*phase),
                mode,
            })
        });
        counts.fold(0, u64::saturating_add)
    }

    fn ended(&self, mode: Mode, wanted: impl Fn(Series) -> bool) -> u64 {
        let is_ended = |series: Series| series.family().name == ENDED.name;
        self.total(|series| is_ended(series) && series.mode == mode && wanted(series))
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

    fn register(&self, levels: Weak<dyn GaugeSource>) {
        self.shared.watched.register(levels);
    }
}

/// A table for people: what was refused, cut and ended, and the levels. Nothing that is zero.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = [
            (REFUSED, "requests refused"),
            (CUT, "bodies cut"),
            (ENDED, "connections ended or not let in"),
        ];
        for (Family { name, .. }, title) in titles {
            let is_of = |series: Series| series.family().name == name;
            let total = |mode| self.total(|series| is_of(series) && series.mode == mode);
            let (enforced, shadow) = (total(Mode::Enforce), total(Mode::Shadow));
            writeln!(f, "{title}: {enforced}, and {shadow} more in shadow mode")?;
            let counts = self.counts().filter(|(series, n)| *n > 0 && is_of(*series));
            for (
                Series {
                    guard,
                    reason,
                    cut_in,
                    mode,
                },
                count,
            ) in counts
            {
                let phase = cut_in.map_or("", Phase::as_str);
                // As `str`, because the Display of these enums knows no padding.
                let (guard, reason, mode) = (guard.as_str(), reason.as_str(), mode.as_str());
                writeln!(
                    f,
                    "  {guard:<18} {reason:<24} {phase:<14} {mode:<8} {count:>12}"
                )?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Shown, Teller, read};
    use palisade_core::{ConnInfo, Prefix};
    use std::collections::BTreeSet;

    fn labels(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter()
            .map(|(label, value)| (label.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn refusals_and_cuts_are_counted_apart_and_by_mode() {
        let snapshot = Snapshot::new();
        let enforce = Teller::new(snapshot.clone(), Mode::Enforce);
        let shadow = Teller::new(snapshot.clone(), Mode::Shadow);
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
    fn connections_are_counted_apart_from_requests() {
        let snapshot = Snapshot::new();
        let enforce = Teller::new(snapshot.clone(), Mode::Enforce);
        let shadow = Teller::new(snapshot.clone(), Mode::Shadow);
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
        const EACH: u64 = 10_000;
        let snapshot = Snapshot::new();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let teller = Teller::new(snapshot.clone(), Mode::ALL[thread % 2]);
                let (snapshot, own) = (&snapshot, Guard::ALL[thread % 4]);
                scope.spawn(move || {
                    let slots = Arc::new(Shown(own, vec![(Gauge::Admitted, EACH)]));
                    snapshot.register(Arc::downgrade(&slots) as Weak<dyn GaugeSource>);
                    for round in 0..EACH {
                        teller.refuse(own, Reason::Full, None);
                        teller.cut(Guard::BodyLimit, Reason::TooLarge, Phase::RequestBody);
                        if round % 1000 == 0 {
                            read(&snapshot.prometheus());
                        }
                    }
                    // Looked at before it goes, so that nothing of it is lost.
                    snapshot.levels();
                });
            }
        });
        for mode in [Mode::Enforce, Mode::Shadow] {
            assert_eq!(snapshot.total_refused(mode), 4 * EACH);
            assert_eq!(snapshot.total_cut(mode), 4 * EACH);
        }
        let counted = |guard| {
            snapshot.refused(guard, Reason::Full) + snapshot.would_refuse(guard, Reason::Full)
        };
        for guard in &Guard::ALL[..4] {
            assert_eq!(counted(*guard), 2 * EACH);
            assert_eq!(snapshot.level(*guard, Gauge::Admitted), Some(2 * EACH));
        }
    }

    #[test]
    fn the_text_reads_back_as_what_was_counted() {
        let snapshot = Snapshot::new();
        let teller = Teller::new(snapshot.clone(), Mode::Enforce);
        teller.refuse(Guard::ConcurrencyLimit, Reason::Full, None);
        teller.cut(Guard::SlowBody, Reason::Gap, Phase::ResponseBody);
        let shown = vec![
            (Gauge::Working, 7),
            (Gauge::Limit, 9),
            (Gauge::KeysEvicted, 3),
        ];
        let guard = Arc::new(Shown(Guard::ConcurrencyLimit, shown));
        snapshot.register(Arc::downgrade(&guard) as Weak<dyn GaugeSource>);

        let text = snapshot.prometheus();
        assert!(!text.contains("\n\n"));
        let families = read(&text);
        let value = |name: &str, of: &[(&str, &str)]| families[name].samples[&labels(of)];
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
        let of = [("guard", "concurrency_limit")];
        assert_eq!(value("palisade_requests_working", &of), 7.0);
        assert_eq!(value("palisade_concurrency_limit", &of), 9.0);
        assert_eq!(value("palisade_key_evictions_total", &of), 3.0);
        assert_eq!(value("palisade_levels_ignored_total", &[]), 0.0);
        assert_eq!(families["palisade_requests_working"].kind, "gauge");
        assert_eq!(
            families["palisade_requests_working"].help,
            "Requests that hold a slot"
        );
    }

    #[test]
    fn a_changed_limit_is_counted_and_what_a_guard_shows_goes_first() {
        let snapshot = Snapshot::new();
        snapshot.record(&Event::limit_changed(Guard::ConcurrencyLimit, 50));
        assert_eq!(
            snapshot.level(Guard::ConcurrencyLimit, Gauge::Limit),
            Some(50)
        );
        let guard = Arc::new(Shown(Guard::ConcurrencyLimit, vec![(Gauge::Limit, 40)]));
        snapshot.register(Arc::downgrade(&guard) as Weak<dyn GaugeSource>);
        snapshot.record(&Event::limit_changed(Guard::ConcurrencyLimit, 30));
        assert_eq!(
            snapshot.level(Guard::ConcurrencyLimit, Gauge::Limit),
            Some(40)
        );
        let text = snapshot.prometheus();
        assert!(text.contains("\npalisade_limit_changes_total{guard=\"concurrency_limit\"} 2\n"));
    }

    #[test]
    fn peers_add_no_series_and_every_label_comes_from_an_enum() {
        let snapshot = Snapshot::new();
        let teller = Teller::new(snapshot.clone(), Mode::Enforce);
        teller.refuse(Guard::RateLimit, Reason::RateExceeded, None);
        let series = |text: &str| -> BTreeSet<_> {
            let families = read(text).into_iter();
            families
                .flat_map(|(name, read)| read.samples.into_keys().map(move |l| (name.clone(), l)))
                .collect()
        };
        let before = series(&snapshot.prometheus());
        for n in 0..10_000u32 {
            let peer = (std::net::Ipv4Addr::from_bits(n), 1).into();
            let conn = ConnInfo::new(peer, None, Prefix::default());
            teller.refuse(Guard::RateLimit, Reason::RateExceeded, Some(&conn));
        }
        assert_eq!(series(&snapshot.prometheus()), before);
        assert_eq!(
            snapshot.refused(Guard::RateLimit, Reason::RateExceeded),
            10_001
        );

        // Even if everything happens everywhere.
        for mode in Mode::ALL {
            let teller = Teller::new(snapshot.clone(), *mode);
            for (guard, reason) in Guard::ALL
                .iter()
                .flat_map(|g| Reason::ALL.iter().map(move |r| (*g, *r)))
            {
                teller.refuse(guard, reason, None);
                Phase::ALL
                    .iter()
                    .for_each(|phase| teller.cut(guard, reason, *phase));
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
        assert_eq!(all.len(), Series::all().count() + 1); // And the levels ignored.
    }

    #[test]
    fn the_table_shows_what_is_not_zero() {
        let snapshot = Snapshot::new();
        Teller::new(snapshot.clone(), Mode::Shadow).refuse(Guard::RateLimit, Reason::Full, None);
        let guard = Arc::new(Shown(Guard::RateLimit, vec![(Gauge::Keys, 12)]));
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
        let ended = "connections ended or not let in: 0, and 0 more in shadow mode";
        assert_eq!(lines[3].join(" "), ended);
        assert_eq!(lines[5], ["rate_limit", "tracked_keys", "12"]);
        assert_eq!(lines.len(), 6);
    }
}
