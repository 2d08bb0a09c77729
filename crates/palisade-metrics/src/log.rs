//! The log of what the guards did, sampled so that a flood cannot fill a disk.

use crate::series::{GUARD_COUNT, MODE_COUNT, REASON_COUNT};
use palisade_core::{
    Client, ConnInfo, Event, Guard, Metrics, Mode, Network, Reason, Rejection, Violation,
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use tokio::time::Instant;
use tracing::field::display;

/// Writes a line for each refused request, cut body and closed or refused connection: at most
/// [`Self::LINES`] a second for each reason and mode.
///
/// | field | meaning |
/// |---|---|
/// | `guard`, `reason`, `phase`, `mode` | which guard, why, and in which phase of the request or connection; `shadow` if nothing was enforced |
/// | `limit`, `observed`, `unit` | the limit and the observed value |
/// | `option` | the option that changes the limit |
/// | `status` | the HTTP status (gRPC clients get a gRPC status); only for refused requests |
/// | `conn`, `peer` | the number of the connection and the address of its peer, if known |
/// | `client` | the address of the client, if a trusted proxy has named one |
/// | `suppressed` | the number of lines of this reason and mode that were left out since the last one |
///
/// The target is `palisade`. The level is `WARN`, or `INFO` in [`Mode::Shadow`] and for a changed
/// limit (fields `guard`, `limit`, `suppressed`). The connection guard itself writes one more line,
/// once, with `guard` and `connections`: the requests of these connections are not reported to it.
/// A line that a subscriber filters out counts as written.
///
/// A ban has a line of its own, of target `palisade::ban`, for fail2ban and the like: the address
/// first, then `source`, which is `peer`, `proxy` or `forwarded`, the `network` that counts as the
/// client, the `seconds` of the ban, the `reason` of the last strike, if it was a refusal, and
/// `suppressed`. The level is `WARN`, or `INFO` in [`Mode::Shadow`]. There is one line for each
/// ban, at most [`Self::BAN_LINES`] a second in each mode. A firewall of this machine can act on
/// `source=peer` only.
///
/// No line contains text from a peer: no path, no header, no host, so there is nothing to escape.
/// `peer` is an address from the operating system. If clients come through a proxy it is the
/// proxy's, so do not ban by it. `client` is an address that was parsed, and not the text of it.
///
/// One reason cannot use up the lines of another one, nor a guard in shadow mode those of a guard
/// that enforces. In any second of tokio's clock there are at most [`Self::LINES`] lines for each
/// reason and mode. The next line has the number of lines left out, so the lines and their
/// `suppressed` add up to the number of events. Events left out after the last line are only in the
/// counters: use those for numbers, and the log for examples. `Log` takes no lock, but a subscriber
/// may: let it write to a buffer of its own rather than to a slow terminal.
///
/// ```
/// use palisade_core::Recorder;
/// use palisade_metrics::{Log, Snapshot};
///
/// let recorder = Recorder::from((Snapshot::new(), Log::new())); // Counts and logs.
/// ```
#[derive(Clone, Debug)]
pub struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    by_reason: [[Sampler; MODE_COUNT]; REASON_COUNT],
    limit_changes: [Sampler; GUARD_COUNT],
    bans: [Sampler<{ Log::BAN_LINES }>; MODE_COUNT],
}

/// Grants so many lines a second and counts the others.
#[derive(Debug)]
struct Sampler<const LINES: usize = { Log::LINES }> {
    /// The time at which each line was last granted, in microseconds plus one; 0 for never.
    granted_at: [AtomicU64; LINES],
    suppressed: AtomicU64,
}

const MICROS_PER_SECOND: u64 = 1_000_000;

/// Writes a line at the level of `$mode`. A macro, because tracing takes levels at compile time.
macro_rules! log_line {
    ($mode:expr, $($line:tt)+) => {
        match $mode {
            Mode::Enforce => tracing::warn!(target: "palisade", $($line)+),
            Mode::Shadow | Mode::Off => tracing::info!(target: "palisade", $($line)+),
        }
    };
}

// === Log ===

impl Log {
    /// The largest number of lines a second for each reason and mode.
    pub const LINES: usize = 5;

    /// The largest number of lines of bans a second for each mode. A flood of clients that are
    /// banned cannot fill a disk either.
    pub const BAN_LINES: usize = 100;

    /// Creates a log without any lines granted yet.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    /// use palisade_metrics::Log;
    /// # use std::{io, sync::{Arc, Mutex}};
    /// # #[derive(Clone, Default)]
    /// # struct Buffer(Arc<Mutex<Vec<u8>>>);
    /// # impl io::Write for Buffer {
    /// #     fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
    /// #         io::Write::write(&mut *self.0.lock().unwrap(), bytes)
    /// #     }
    /// #     fn flush(&mut self) -> io::Result<()> { Ok(()) }
    /// # }
    ///
    /// // A subscriber that writes to `buffer`.
    /// # let buffer = Buffer::default();
    /// # let writer = buffer.clone();
    /// # let subscriber = tracing_subscriber::fmt().with_ansi(false);
    /// # let subscriber = subscriber.with_writer(move || writer.clone());
    /// let _subscribed = tracing::subscriber::set_default(subscriber.finish());
    /// let guard = ConnGuard::builder().max_per_client(1).metrics(Log::new()).build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let first = connect(&guard, "192.0.2.1").await?;
    /// for _ in 0..100 {
    ///     assert!(connect(&guard, "192.0.2.1").await.is_err());
    /// }
    /// let log = String::from_utf8(buffer.0.lock().unwrap().clone())?;
    /// assert_eq!(log.matches("connection ended").count(), Log::LINES);
    /// assert!(log.contains("WARN palisade: connection ended"));
    /// assert!(log.contains("reason=\"client_connections_full\""));
    /// # Ok(())
    /// # }
    /// ```
    pub fn new() -> Self {
        let by_reason = std::array::from_fn(|_| Default::default());
        let limit_changes = std::array::from_fn(|_| Sampler::default());
        Self {
            shared: Arc::new(Shared {
                started: Instant::now(),
                by_reason,
                limit_changes,
                bans: std::array::from_fn(|_| Sampler::default()),
            }),
        }
    }

    /// Takes a line. Returns the number of lines left out before it, or `None` if this one must be
    /// left out as well.
    fn take_line(&self, reason: Reason, mode: Mode) -> Option<u64> {
        let samplers = self.shared.by_reason.get(reason as usize)?;
        samplers
            .get(mode as usize)?
            .take_line(self.shared.now_micros())
    }

    fn log_refusal(
        &self,
        rejection: &Rejection,
        mode: Mode,
        conn: Option<&ConnInfo>,
        client: Option<&Client>,
    ) {
        let Violation {
            guard,
            reason,
            phase,
            limit,
            observed,
            ..
        } = *rejection.violation();
        let Some(suppressed) = self.take_line(reason, mode) else {
            return;
        };
        let peer = conn.map(|conn| display(conn.peer()));
        let client = client.and_then(Client::address).map(display);
        log_line!(
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
            client,
            suppressed,
            "request refused"
        );
    }

    /// Logs a cut body or a closed or refused connection.
    fn log_violation(
        &self,
        message: &str,
        violation: &Violation,
        mode: Mode,
        conn: Option<&ConnInfo>,
        client: Option<&Client>,
    ) {
        let Violation {
            guard,
            reason,
            phase,
            limit,
            observed,
            ..
        } = *violation;
        let Some(suppressed) = self.take_line(reason, mode) else {
            return;
        };
        let peer = conn.map(|conn| display(conn.peer()));
        let client = client.and_then(Client::address).map(display);
        log_line!(
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
            client,
            suppressed,
            "{message}"
        );
    }

    fn log_limit_change(&self, guard: Guard, limit: u64) {
        let Some(sampler) = self.shared.limit_changes.get(guard as usize) else {
            return;
        };
        if let Some(suppressed) = sampler.take_line(self.shared.now_micros()) {
            let guard = guard.as_str();
            tracing::info!(target: "palisade", guard, limit, suppressed, "limit changed");
        }
    }

    /// Logs a ban. The address comes first, where a filter that is anchored at the start of the
    /// line finds it.
    fn log_ban(
        &self,
        client: &Client,
        network: Network,
        until: Instant,
        reason: Option<Reason>,
        mode: Mode,
    ) {
        let Some(sampler) = self.shared.bans.get(mode as usize) else {
            return;
        };
        let (Some(address), Some(suppressed)) = (
            client.address(),
            sampler.take_line(self.shared.now_micros()),
        ) else {
            return;
        };
        let left = until.saturating_duration_since(Instant::now());
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        macro_rules! log_ban {
            ($log:ident) => {
                // Without a message, which would come first.
                tracing::$log!(
                    target: "palisade::ban",
                    client = display(address),
                    source = display(client.source()),
                    network = display(network),
                    seconds,
                    reason = reason.map(display),
                    suppressed
                )
            };
        }
        match mode {
            Mode::Enforce => log_ban!(warn),
            Mode::Shadow | Mode::Off => log_ban!(info),
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
                client,
                ..
            } => self.log_refusal(rejection, mode, conn, client),
            Event::Cut {
                violation,
                mode,
                conn,
                client,
                ..
            } => {
                self.log_violation("body cut", violation, mode, conn, client);
            }
            Event::Disconnected {
                violation,
                mode,
                conn,
                ..
            } => {
                self.log_violation("connection ended", violation, mode, Some(conn), None);
            }
            Event::Banned {
                client,
                network,
                until,
                reason,
                mode,
                ..
            } => self.log_ban(client, network, until, reason, mode),
            Event::FleetChanged {
                is_alone, cause, ..
            } => log_fleet_change(is_alone, cause),
            Event::LimitChanged { guard, limit, .. } => self.log_limit_change(guard, limit),
            // The connection guard logs `Forwarded` and `Untracked` itself.
            _ => {}
        }
    }
}

/// Logs that a node counts alone, or no longer. At most a few times a second, by how often a store
/// is tried.
fn log_fleet_change(is_alone: bool, cause: Option<&(dyn std::error::Error + 'static)>) {
    if is_alone {
        let cause = cause.map(ToString::to_string).unwrap_or_default();
        tracing::warn!(target: "palisade", cause, "fleet: this node counts alone");
    } else {
        tracing::info!(target: "palisade", "fleet: the nodes count together again");
    }
}

// === Shared ===

impl Shared {
    /// Returns the microseconds since this log was created.
    fn now_micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

// === Sampler ===

impl<const LINES: usize> Default for Sampler<LINES> {
    fn default() -> Self {
        Self {
            granted_at: [const { AtomicU64::new(0) }; LINES],
            suppressed: AtomicU64::new(0),
        }
    }
}

impl<const LINES: usize> Sampler<LINES> {
    /// Takes a line that was not granted for a second, and returns the number of lines left out
    /// since the last one. Returns `None` if no line is free.
    ///
    /// Each call that gets no line is counted once and reported once, whatever other threads do. A
    /// clock that stands still, or lags on one thread, leads to fewer lines, never to more.
    fn take_line(&self, now: u64) -> Option<u64> {
        for granted_at in &self.granted_at {
            let last = granted_at.load(Relaxed);
            let is_free = last == 0 || now.saturating_sub(last - 1) >= MICROS_PER_SECOND;
            // If another thread wins this race, the line is taken: try the next one.
            if is_free
                && granted_at
                    .compare_exchange(last, now.saturating_add(1), Relaxed, Relaxed)
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
    use crate::testing::FakeGuard;
    use http::StatusCode;
    use palisade_core::{Found, Phase, Prefix, ResponseFormat};
    use parking_lot::Mutex;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, fmt, io, time::Duration};
    use tokio::time::advance;
    use tracing::{
        Level, Metadata, Subscriber,
        field::{Field, Visit},
        span,
    };

    /// A subscriber that keeps the level of every line, and its fields as text.
    #[derive(Clone, Debug, Default)]
    struct CapturedLines(Arc<Mutex<Vec<(Level, Fields)>>>);

    #[derive(Clone, Debug, Default)]
    struct Fields(BTreeMap<&'static str, String>);

    /// What a formatting subscriber writes.
    #[derive(Clone, Default)]
    struct Text(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Text {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Visit for Fields {
        fn record_str(&mut self, field: &Field, value: &str) {
            self.0.insert(field.name(), value.into());
        }

        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.insert(field.name(), format!("{value:?}"));
        }
    }

    impl Subscriber for CapturedLines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            unreachable!("the log has no spans")
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            let mut fields = Fields::default();
            event.record(&mut fields);
            // Only a ban has no message.
            let target = if fields.0.contains_key("message") {
                "palisade"
            } else {
                "palisade::ban"
            };
            assert_eq!(event.metadata().target(), target);
            self.0.lock().push((*event.metadata().level(), fields));
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    impl CapturedLines {
        /// Returns the lines written since the last call.
        fn take(&self) -> Vec<(Level, Fields)> {
            std::mem::take(&mut self.0.lock())
        }

        /// Returns the `suppressed` field of each line written since the last call.
        fn suppressed(&self) -> Vec<u64> {
            let lines = self.take();
            lines
                .iter()
                .map(|(_, fields)| fields.0["suppressed"].parse().unwrap())
                .collect()
        }
    }

    fn capture_lines() -> (CapturedLines, tracing::subscriber::DefaultGuard) {
        let lines = CapturedLines::default();
        (lines.clone(), tracing::subscriber::set_default(lines))
    }

    fn refuse_times(fake: &FakeGuard, times: usize) {
        (0..times).for_each(|_| fake.refuse(Guard::RateLimit, Reason::RateExceeded, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_a_million_writes_a_few_lines_and_the_exact_count_of_the_others() {
        let (lines, _subscription) = capture_lines();
        let fake = FakeGuard::new(Log::new(), Mode::Enforce);
        for _ in 0..1000 {
            refuse_times(&fake, 1000);
            advance(Duration::from_micros(999)).await;
        }
        assert_eq!(lines.suppressed(), [0; Log::LINES]);
        advance(Duration::from_millis(1)).await;
        refuse_times(&fake, 1);
        assert_eq!(lines.suppressed(), [1_000_000 - Log::LINES as u64]);
        refuse_times(&fake, 1);
        assert_eq!(lines.suppressed(), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_does_not_use_up_the_lines_of_another_reason_or_mode() {
        let (lines, _subscription) = capture_lines();
        let log = Log::new();
        let enforce = FakeGuard::new(log.clone(), Mode::Enforce);
        let shadow = FakeGuard::new(log, Mode::Shadow);
        refuse_times(&shadow, 1000);
        lines.take();
        for _ in 0..Log::LINES {
            refuse_times(&enforce, 1);
            enforce.refuse(Guard::ConcurrencyLimit, Reason::Full, None);
            assert_eq!(lines.suppressed(), [0, 0]);
        }
        // A refused request and a cut body of one reason share its lines.
        enforce.cut(Guard::ConcurrencyLimit, Reason::Full, Phase::RequestBody);
        assert_eq!(lines.suppressed(), [0; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_clock_stands_still_only_the_lines_of_one_second_are_written() {
        let (lines, _subscription) = capture_lines();
        let fake = FakeGuard::new(Log::new(), Mode::Enforce);
        refuse_times(&fake, 10 * Log::LINES);
        assert_eq!(lines.suppressed(), [0; Log::LINES]);
        refuse_times(&fake, 10 * Log::LINES);
        assert_eq!(lines.suppressed(), [0; 0]);
        // The lines are free again exactly one second later, and not a microsecond earlier.
        advance(Duration::from_micros(999_999)).await;
        refuse_times(&fake, 1);
        assert_eq!(lines.suppressed(), [0; 0]);
        advance(Duration::from_micros(1)).await;
        refuse_times(&fake, 1);
        assert_eq!(lines.suppressed(), [19 * Log::LINES as u64 + 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_has_all_fields_that_an_operator_needs() {
        let (lines, _subscription) = capture_lines();
        let conn = ConnInfo::new(
            "[2001:db8::1]:4711".parse().unwrap(),
            None,
            Prefix::default(),
        );
        let log = Log::new();
        let enforce = FakeGuard::new(log.clone(), Mode::Enforce);
        enforce.refuse(Guard::RateLimit, Reason::RateExceeded, Some(&conn));
        let [(level, Fields(fields))] = &lines.take()[..] else {
            panic!("expected one line")
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
            (
                "option",
                "Stack::rate_limit(quota) or RateLimitLayer::new(quota)",
            ),
            ("peer", "[2001:db8::1]:4711"),
            ("phase", "request_head"),
            ("reason", "rate_exceeded"),
            ("status", "429"),
            ("suppressed", "0"),
            ("unit", "milliseconds"),
        ];
        assert_eq!(fields, expected);

        // Without a known connection there is no address. In shadow mode there is no warning.
        FakeGuard::new(log, Mode::Shadow).cut(Guard::SlowBody, Reason::Gap, Phase::ResponseBody);
        let [(level, Fields(fields))] = &lines.take()[..] else {
            panic!("expected one line")
        };
        assert_eq!(*level, Level::INFO);
        assert_eq!(fields["message"], "body cut");
        assert_eq!(fields["mode"], "shadow");
        for absent in ["peer", "conn", "status"] {
            assert!(!fields.contains_key(absent), "{absent}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_names_the_client_beside_the_proxy() {
        let (lines, _subscription) = capture_lines();
        let log = Log::new();
        let peer = ([10, 0, 0, 7], 4711).into();
        let conn = ConnInfo::with_state(peer, None, Prefix::default(), ()).of_proxy();
        let client = Client::from_peer("2001:db8::7".parse().ok(), Prefix::default());
        let (guard, reason, phase) = (Guard::SlowBody, Reason::Gap, Phase::RequestBody);
        let violation = Violation::new(guard, reason, phase, 30, 31);
        let form = ResponseFormat::Http { close: true };
        let rejection = Rejection::new(violation, StatusCode::REQUEST_TIMEOUT, form);
        let refused = Event::refused(&rejection, Mode::Enforce, Some(&conn));
        let cut = Event::cut(&violation, Mode::Enforce, Some(&conn));
        for event in [refused, cut] {
            log.record(&event.of_client(Some(&client)));
            let [(_, Fields(fields))] = &lines.take()[..] else {
                panic!("expected one line")
            };
            assert_eq!(
                (&fields["peer"][..], &fields["client"][..]),
                ("10.0.0.7:4711", "2001:db8::7")
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_connection_is_logged_once_and_its_opening_is_not() {
        let (lines, _subscription) = capture_lines();
        let log = Log::new();
        let fake = FakeGuard::new(log.clone(), Mode::Enforce);
        fake.disconnect(Reason::FirstRequest, Phase::FirstHead);
        let [(level, Fields(fields))] = &lines.take()[..] else {
            panic!("expected one line")
        };
        assert_eq!(*level, Level::WARN);
        assert_eq!(fields["message"], "connection ended");
        assert_eq!(
            fields["option"],
            "ConnGuard::builder().first_request_timeout(duration)"
        );
        assert_eq!(
            (&fields["peer"][..], &fields["phase"][..]),
            ("192.0.2.1:4711", "first_head")
        );
        for _ in 0..1000 {
            fake.disconnect(Reason::FirstRequest, Phase::FirstHead);
        }
        assert_eq!(lines.take().len(), Log::LINES - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn limit_changes_are_sampled_as_well() {
        let (lines, _subscription) = capture_lines();
        let log = Log::new();
        for limit in 0..1000 {
            log.record(&Event::limit_changed(Guard::ConcurrencyLimit, limit));
        }
        assert_eq!(lines.suppressed(), [0; Log::LINES]);
        advance(Duration::from_secs(1)).await;
        log.record(&Event::limit_changed(Guard::ConcurrencyLimit, 7));
        let [(level, Fields(fields))] = &lines.take()[..] else {
            panic!("expected one line")
        };
        assert_eq!(*level, Level::INFO);
        assert_eq!(
            (&fields["guard"][..], &fields["limit"][..]),
            ("concurrency_limit", "7")
        );
        assert_eq!(fields["suppressed"], (1000 - Log::LINES).to_string());
    }

    /// Records a ban of `client` for `seconds`.
    fn ban(log: &Log, client: &Client, seconds: u64, reason: Option<Reason>, mode: Mode) {
        let until = Instant::now() + Duration::from_secs(seconds);
        log.record(&Event::banned(client, until, reason, mode).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_ban_is_one_line_with_the_address_first_and_its_source() {
        let text = Text::default();
        let writer = text.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .without_time()
            .with_writer(move || writer.clone());
        let _subscription = tracing::subscriber::set_default(subscriber.finish());
        let log = Log::new();
        let address = "2001:db8::7".parse().unwrap();
        let direct = Client::from_peer(Some(address), Prefix::default());
        let forwarded = Client::of_bits(direct.address_bits(), Found::Forwarded, Prefix::default());
        let peer = "[2001:db8::7]:4711".parse().unwrap();
        let proxied = ConnInfo::with_state(peer, None, Prefix::default(), ()).of_proxied();
        let proxied = Client::of_conn(&proxied, Found::Peer);
        ban(&log, &direct, 10, None, Mode::Enforce);
        ban(&log, &proxied, 20, Some(Reason::BadRequest), Mode::Enforce);
        ban(&log, &forwarded, 40, None, Mode::Shadow);
        let lines = String::from_utf8(text.0.lock().clone()).unwrap();
        let start = "palisade::ban: client=2001:db8::7 source";
        let end = "network=2001:db8::/64 seconds";
        let expected = [
            format!(" WARN {start}=peer {end}=10 suppressed=0"),
            format!(" WARN {start}=proxy {end}=20 reason=bad_request suppressed=0"),
            format!(" INFO {start}=forwarded {end}=40 suppressed=0"),
        ];
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_bans_writes_a_hundred_lines_a_second() {
        let (lines, _subscription) = capture_lines();
        let log = Log::new();
        let client = Client::from_peer("192.0.2.1".parse().ok(), Prefix::default());
        for _ in 0..1_000 {
            ban(&log, &client, 10, None, Mode::Enforce);
        }
        ban(&log, &client, 10, None, Mode::Shadow);
        assert_eq!(lines.suppressed(), [0; Log::BAN_LINES + 1]);
        advance(Duration::from_secs(1)).await;
        ban(&log, &client, 10, None, Mode::Enforce);
        assert_eq!(lines.suppressed(), [1_000 - Log::BAN_LINES as u64]);
    }

    #[test]
    fn eight_threads_get_no_excess_line_and_lose_no_count() {
        const CALLS_PER_THREAD: u64 = 100_000;
        let sampler = <Sampler>::default();
        let (mut lines, mut reported) = (0, 0);
        std::thread::scope(|scope| {
            let threads = [(); 8].map(|()| {
                scope.spawn(|| {
                    // Ten seconds pass on each thread. Each has its own clock, not synchronized.
                    let times = (0..CALLS_PER_THREAD)
                        .map(|n| n * 10 * MICROS_PER_SECOND / CALLS_PER_THREAD);
                    let granted = times.filter_map(|now| sampler.take_line(now));
                    granted.fold((0, 0), |(lines, sum), suppressed| {
                        (lines + 1, sum + suppressed)
                    })
                })
            });
            for thread in threads {
                let (more, sum) = thread.join().unwrap();
                lines += more;
                reported += sum;
            }
        });
        let counted = lines + reported + sampler.suppressed.load(Relaxed);
        assert_eq!(counted, 8 * CALLS_PER_THREAD);
        assert!(lines >= 10 && lines <= 10 * Log::LINES as u64, "{lines}");
    }

    #[test]
    fn the_largest_time_and_count_do_not_panic() {
        let sampler = <Sampler>::default();
        sampler.suppressed.store(u64::MAX, Relaxed);
        for _ in 0..2 * Log::LINES {
            sampler.take_line(u64::MAX);
            sampler.take_line(0);
        }
    }

    proptest! {
        #[test]
        fn no_second_has_more_than_the_allowed_lines(
            steps in prop::collection::vec(0..400_000u64, 1..300),
        ) {
            let sampler = <Sampler>::default();
            let (mut now, mut lines, mut reported) = (0, Vec::new(), 0);
            for step in &steps {
                now += step;
                if let Some(suppressed) = sampler.take_line(now) {
                    lines.push(now);
                    reported += suppressed;
                }
            }
            for window in lines.windows(Log::LINES + 1) {
                prop_assert!(window[Log::LINES] - window[0] >= MICROS_PER_SECOND);
            }
            let counted = lines.len() as u64 + reported + sampler.suppressed.load(Relaxed);
            prop_assert_eq!(counted, steps.len() as u64);
        }
    }
}
