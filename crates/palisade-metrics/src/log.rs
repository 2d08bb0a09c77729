//! What the guards did as lines of a log, few enough that a flood cannot fill a disk.

use palisade_core::{ConnInfo, Event, Guard, Metrics, Mode, Reason, Rejection, Violation};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use tokio::time::Instant;
use tracing::field::display;

/// Writes a line for what a guard refuses, cuts or disconnects, at most [`Self::LINES`] a second for each
/// reason.
///
/// | field | what |
/// |---|---|
/// | `guard`, `reason`, `phase`, `mode` | which guard, why, when in the request's life; `shadow` if it was let pass |
/// | `limit`, `observed`, `unit` | what is allowed and what was seen |
/// | `option` | the option that changes the limit |
/// | `status` | the HTTP status (gRPC clients get their own); only of refusals |
/// | `conn`, `peer` | number of the connection, address at its other end; where they are known |
/// | `suppressed` | how many lines of this reason and mode were left out since the last one |
///
/// The level is `WARN`, and `INFO` in [`Mode::Shadow`] and for a limit that was changed
/// (`guard`, `limit`, `suppressed`); the target is `palisade`. A line with `guard` and
/// `connections` says, once, that nobody tells the connection guard of requests. What a subscriber filters out
/// counts as written.
///
/// No line has text that a peer wrote: no path, no header, no host, so there is nothing to
/// escape. `peer` is an address as the operating system gave it. Do not ban by it where clients
/// come through a proxy: it is the proxy's.
///
/// A reason cannot use up the lines of another one, and a guard in shadow mode not those of one
/// that enforces. In any second, by tokio's clock, there are at most [`Self::LINES`] lines for
/// each reason and mode; the next line says how many were left out, so that the lines and their
/// `suppressed` add up to what happened. What was left out after the last line shows in the
/// counters alone: read those for numbers and the log for examples. Nothing here takes a lock,
/// but a subscriber may: have it write to a buffer of its own rather than to a slow terminal.
///
/// ```
/// use palisade_core::Recorder;
/// use palisade_metrics::{Log, Snapshot};
///
/// let recorder = Recorder::from((Snapshot::new(), Log::new())); // Counted and logged.
/// ```
#[derive(Clone, Debug)]
pub struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    by_reason: [[Sampler; MODES]; REASONS],
    limits: [Sampler; GUARDS],
}

/// Lets [`Log::LINES`] lines a second through and counts the others.
#[derive(Debug, Default)]
struct Sampler {
    /// When each line was last used: microseconds, plus one; 0 for never.
    lines: [AtomicU64; Log::LINES],
    suppressed: AtomicU64,
}

const REASONS: usize = Reason::ALL.len();
const GUARDS: usize = Guard::ALL.len();
const MODES: usize = Mode::ALL.len();
const SECOND: u64 = 1_000_000;

/// A line at the level that suits `$mode`; macros want to know their level when they are compiled.
macro_rules! line {
    ($mode:expr, $($line:tt)+) => {
        match $mode {
            Mode::Enforce => tracing::warn!(target: "palisade", $($line)+),
            Mode::Shadow | Mode::Off => tracing::info!(target: "palisade", $($line)+),
        }
    };
}

// === Log ===

impl Log {
    /// Lines a second for each reason and mode.
    pub const LINES: usize = 5;

    /// Nothing written yet.
    pub fn new() -> Self {
        let by_reason = std::array::from_fn(|_| Default::default());
        let limits = std::array::from_fn(|_| Sampler::default());
        Self {
            shared: Arc::new(Shared {
                started: Instant::now(),
                by_reason,
                limits,
            }),
        }
    }

    /// The number of lines left out before this one, or `None` if it is to be left out too.
    fn line(&self, reason: Reason, mode: Mode) -> Option<u64> {
        let samplers = self.shared.by_reason.get(reason as usize)?;
        samplers.get(mode as usize)?.line(self.shared.now())
    }

    fn refused(&self, rejection: &Rejection, mode: Mode, conn: Option<&ConnInfo>) {
        let Violation {
            guard,
            reason,
            phase,
            limit,
            observed,
            ..
        } = *rejection.violation();
        let Some(suppressed) = self.line(reason, mode) else {
            return;
        };
        let peer = conn.map(|conn| display(conn.peer()));
        line!(
            mode,
            guard = guard.as_str(),
            reason = reason.as_str(),
            phase = phase.as_str(),
            mode = mode.as_str(),
            limit,
            observed,
            unit = reason.unit(),
            option = reason.option(),
            status = rejection.status().as_u16(),
            conn = conn.map(ConnInfo::id),
            peer,
            suppressed,
            "request refused"
        );
    }

    /// `what` was ended for `violation`.
    fn ended(&self, what: &str, violation: &Violation, mode: Mode, conn: Option<&ConnInfo>) {
        let Violation {
            guard,
            reason,
            phase,
            limit,
            observed,
            ..
        } = *violation;
        let Some(suppressed) = self.line(reason, mode) else {
            return;
        };
        let peer = conn.map(|conn| display(conn.peer()));
        line!(
            mode,
            guard = guard.as_str(),
            reason = reason.as_str(),
            phase = phase.as_str(),
            mode = mode.as_str(),
            limit,
            observed,
            unit = reason.unit(),
            option = reason.option(),
            conn = conn.map(ConnInfo::id),
            peer,
            suppressed,
            "{what}"
        );
    }

    fn limit_changed(&self, guard: Guard, limit: u64) {
        let sampler = self.shared.limits.get(guard as usize);
        if let Some(suppressed) = sampler.and_then(|of| of.line(self.shared.now())) {
            let guard = guard.as_str();
            tracing::info!(target: "palisade", guard, limit, suppressed, "limit changed");
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics for Log {
    fn record(&self, event: &Event<'_>) {
        match *event {
            Event::Refused {
                rejection,
                mode,
                conn,
                ..
            } => self.refused(rejection, mode, conn),
            Event::Cut {
                violation,
                mode,
                conn,
                ..
            } => {
                self.ended("body cut", violation, mode, conn);
            }
            Event::Disconnected {
                violation,
                mode,
                conn,
                ..
            } => {
                self.ended("connection ended", violation, mode, Some(conn));
            }
            Event::LimitChanged { guard, limit, .. } => self.limit_changed(guard, limit),
            // Of proxies and of requests that nobody tells of the connection guard logs itself.
            _ => {}
        }
    }
}

// === Shared ===

impl Shared {
    /// Microseconds since this log was made.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

// === Sampler ===

impl Sampler {
    /// Takes a line if one was not used for a second, and returns the count of those left out
    /// since the last one.
    ///
    /// Each call that gets no line is counted once and told of once, whatever other threads do. A
    /// clock that stands still or lags behind on one thread makes for fewer lines, never for more.
    fn line(&self, now: u64) -> Option<u64> {
        for line in &self.lines {
            let used = line.load(Relaxed);
            let is_free = used == 0 || now.saturating_sub(used - 1) >= SECOND;
            // Whoever loses this race goes on to the next line: that one was just taken.
            if is_free
                && line
                    .compare_exchange(used, now.saturating_add(1), Relaxed, Relaxed)
                    .is_ok()
            {
                return Some(self.suppressed.swap(0, Relaxed));
            }
        }
        // At a thousand million a second this wraps after 584 years.
        self.suppressed.fetch_add(1, Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Teller;
    use palisade_core::{Phase, Prefix};
    use parking_lot::Mutex;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, fmt, time::Duration};
    use tokio::time::advance;
    use tracing::{
        Level, Metadata, Subscriber,
        field::{Field, Visit},
        span,
    };

    /// Keeps every line's level, and its fields as text.
    #[derive(Clone, Debug, Default)]
    struct Lines(Arc<Mutex<Vec<(Level, Fields)>>>);

    #[derive(Clone, Debug, Default)]
    struct Fields(BTreeMap<&'static str, String>);

    impl Visit for Fields {
        fn record_str(&mut self, field: &Field, value: &str) {
            self.0.insert(field.name(), value.into());
        }

        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.insert(field.name(), format!("{value:?}"));
        }
    }

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            unreachable!("a log has no spans")
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            let mut fields = Fields::default();
            event.record(&mut fields);
            assert_eq!(event.metadata().target(), "palisade");
            self.0.lock().push((*event.metadata().level(), fields));
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    impl Lines {
        /// What was written since this was last asked.
        fn take(&self) -> Vec<(Level, Fields)> {
            std::mem::take(&mut self.0.lock())
        }

        /// The `suppressed` of each line written since this was last asked.
        fn suppressed(&self) -> Vec<u64> {
            let lines = self.take();
            lines
                .iter()
                .map(|(_, fields)| fields.0["suppressed"].parse().unwrap())
                .collect()
        }
    }

    fn listen() -> (Lines, tracing::subscriber::DefaultGuard) {
        let lines = Lines::default();
        (lines.clone(), tracing::subscriber::set_default(lines))
    }

    fn flood(teller: &Teller, times: usize) {
        (0..times).for_each(|_| teller.refuse(Guard::RateLimit, Reason::RateExceeded, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_a_million_yields_a_few_lines_and_the_exact_count_of_the_others() {
        let (lines, _guard) = listen();
        let teller = Teller::new(Log::new(), Mode::Enforce);
        for _ in 0..1000 {
            flood(&teller, 1000);
            advance(Duration::from_micros(999)).await;
        }
        assert_eq!(lines.suppressed(), [0; Log::LINES]);
        advance(Duration::from_millis(1)).await;
        flood(&teller, 1);
        assert_eq!(lines.suppressed(), [1_000_000 - Log::LINES as u64]);
        flood(&teller, 1);
        assert_eq!(lines.suppressed(), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_flood_takes_the_lines_of_another_reason_or_mode() {
        let (lines, _guard) = listen();
        let log = Log::new();
        let enforce = Teller::new(log.clone(), Mode::Enforce);
        let shadow = Teller::new(log, Mode::Shadow);
        flood(&shadow, 1000);
        lines.take();
        for _ in 0..Log::LINES {
            flood(&enforce, 1);
            enforce.refuse(Guard::ConcurrencyLimit, Reason::Full, None);
            assert_eq!(lines.suppressed(), [0, 0]);
        }
        // A request refused and a body cut for one reason share its lines.
        enforce.cut(Guard::ConcurrencyLimit, Reason::Full, Phase::RequestBody);
        assert_eq!(lines.suppressed(), [0; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_clock_stands_still_there_is_one_seconds_worth_of_lines() {
        let (lines, _guard) = listen();
        let teller = Teller::new(Log::new(), Mode::Enforce);
        flood(&teller, 10 * Log::LINES);
        assert_eq!(lines.suppressed(), [0; Log::LINES]);
        flood(&teller, 10 * Log::LINES);
        assert_eq!(lines.suppressed(), [0; 0]);
        // Exactly one second later they are free again, and not a microsecond before.
        advance(Duration::from_micros(999_999)).await;
        flood(&teller, 1);
        assert_eq!(lines.suppressed(), [0; 0]);
        advance(Duration::from_micros(1)).await;
        flood(&teller, 1);
        assert_eq!(lines.suppressed(), [19 * Log::LINES as u64 + 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_says_all_that_an_operator_needs() {
        let (lines, _guard) = listen();
        let conn = ConnInfo::new(
            "[2001:db8::1]:4711".parse().unwrap(),
            None,
            Prefix::default(),
        );
        let log = Log::new();
        let enforce = Teller::new(log.clone(), Mode::Enforce);
        enforce.refuse(Guard::RateLimit, Reason::RateExceeded, Some(&conn));
        let [(level, Fields(fields))] = &lines.take()[..] else {
            panic!("not one line")
        };
        assert_eq!(*level, Level::WARN);
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let id = conn.id().to_string();
        let expected = [
            ("conn", id.as_str()),
            ("guard", "rate_limit"),
            ("limit", "10"),
            ("message", "request refused"),
            ("mode", "enforce"),
            ("observed", "11"),
            ("option", "RateLimitLayer::new(quota)"),
            ("peer", "[2001:db8::1]:4711"),
            ("phase", "request_head"),
            ("reason", "rate_exceeded"),
            ("status", "429"),
            ("suppressed", "0"),
            ("unit", "milliseconds"),
        ];
        assert_eq!(fields, expected);

        // Neither an address where none is known, nor a warning where nothing was done.
        Teller::new(log, Mode::Shadow).cut(Guard::SlowBody, Reason::Gap, Phase::ResponseBody);
        let [(level, Fields(fields))] = &lines.take()[..] else {
            panic!("not one line")
        };
        assert_eq!(*level, Level::INFO);
        assert_eq!(fields["message"], "body cut");
        assert_eq!(fields["mode"], "shadow");
        for absent in ["peer", "conn", "status"] {
            assert!(!fields.contains_key(absent), "{absent}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_comes_and_goes_is_a_line_only_if_a_guard_ended_it() {
        let (lines, _guard) = listen();
        let log = Log::new();
        let teller = Teller::new(log.clone(), Mode::Enforce);
        teller.disconnect(Reason::FirstRequest, Phase::FirstHead);
        let [(level, Fields(fields))] = &lines.take()[..] else {
            panic!("not one line")
        };
        assert_eq!(*level, Level::WARN);
        assert_eq!(fields["message"], "connection ended");
        assert_eq!(
            fields["option"],
            "ConnGuard::builder().first_request(duration)"
        );
        assert_eq!(
            (&fields["peer"][..], &fields["phase"][..]),
            ("192.0.2.1:4711", "first_head")
        );
        for _ in 0..1000 {
            teller.disconnect(Reason::FirstRequest, Phase::FirstHead);
        }
        assert_eq!(lines.take().len(), Log::LINES - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_swings_is_logged_as_sparingly() {
        let (lines, _guard) = listen();
        let log = Log::new();
        for limit in 0..1000 {
            log.record(&Event::limit_changed(Guard::ConcurrencyLimit, limit));
        }
        assert_eq!(lines.suppressed(), [0; Log::LINES]);
        advance(Duration::from_secs(1)).await;
        log.record(&Event::limit_changed(Guard::ConcurrencyLimit, 7));
        let [(level, Fields(fields))] = &lines.take()[..] else {
            panic!("not one line")
        };
        assert_eq!(*level, Level::INFO);
        assert_eq!(
            (&fields["guard"][..], &fields["limit"][..]),
            ("concurrency_limit", "7")
        );
        assert_eq!(fields["suppressed"], (1000 - Log::LINES).to_string());
    }

    #[test]
    fn eight_threads_get_no_line_too_many_and_lose_no_count() {
        const EACH: u64 = 100_000;
        let sampler = Sampler::default();
        let (mut lines, mut told) = (0, 0);
        std::thread::scope(|scope| {
            let threads = [(); 8].map(|()| {
                scope.spawn(|| {
                    // Ten seconds pass in lockstep of nobody: each thread has its own clock.
                    let told = (0..EACH).filter_map(|n| sampler.line(n * 10 * SECOND / EACH));
                    told.fold((0, 0), |(lines, sum), told| (lines + 1, sum + told))
                })
            });
            for thread in threads {
                let (more, sum) = thread.join().unwrap();
                lines += more;
                told += sum;
            }
        });
        assert_eq!(lines + told + sampler.suppressed.load(Relaxed), 8 * EACH);
        assert!(lines >= 10 && lines <= 10 * Log::LINES as u64, "{lines}");
    }

    #[test]
    fn the_end_of_time_and_of_numbers_is_no_end_of_the_program() {
        let sampler = Sampler::default();
        sampler.suppressed.store(u64::MAX, Relaxed);
        for _ in 0..2 * Log::LINES {
            sampler.line(u64::MAX);
            sampler.line(0);
        }
    }

    proptest! {
        #[test]
        fn no_second_has_more_lines_than_it_may(steps in prop::collection::vec(0..400_000u64, 1..300)) {
            let sampler = Sampler::default();
            let (mut now, mut lines, mut told) = (0, Vec::new(), 0);
            for step in &steps {
                now += step;
                if let Some(suppressed) = sampler.line(now) {
                    lines.push(now);
                    told += suppressed;
                }
            }
            for window in lines.windows(Log::LINES + 1) {
                prop_assert!(window[Log::LINES] - window[0] >= SECOND);
            }
            let counted = lines.len() as u64 + told + sampler.suppressed.load(Relaxed);
            prop_assert_eq!(counted, steps.len() as u64);
        }
    }
}
