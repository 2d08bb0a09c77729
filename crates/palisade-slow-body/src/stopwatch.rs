//! Measures the waiting times of one body against its pace.

use crate::{
    Pace,
    meter::{Meter, TooSlow},
};
use palisade_core::Pressure;
use palisade_guard::Stamp;
use std::time::Duration;
use tokio::time::Instant;

/// Delay of a check from which the server is taken to have stalled: during a stall it does not see
/// what the client sends.
pub(crate) const STALL_NANOS: u64 = 100_000_000;
/// Time that the client is given after a stall of the server.
const STALL_EXTENSION_NANOS: u64 = 250_000_000;

/// Runs while the other side is awaited, and charges the waiting time to a [`Meter`].
#[derive(Debug)]
pub(crate) struct Stopwatch {
    /// The rate without pressure, in bytes per second. 0 if there is none.
    rate: u64,
    /// The rate at full pressure.
    full_pressure_rate: u64,
    /// The sum of the waits matters, and not only the length of each.
    is_cumulative: bool,
    meter: Meter,
    /// The start of the present wait.
    since: Option<Stamp>,
    /// The extension after a stall has been given since the credit was last full.
    is_extension_used: bool,
    /// Nanoseconds of waiting that were not charged, because other bodies may have caused them.
    excused_nanos: u64,
}

impl Stopwatch {
    /// Creates the stopwatch of a body at its first wait. `length` is the length of the body, if
    /// known.
    pub(crate) fn new(pace: &Pace, length: Option<u64>) -> Self {
        Self {
            rate: pace.rate.unwrap_or(0),
            full_pressure_rate: pace.full_pressure_rate().unwrap_or(0),
            is_cumulative: pace.rate.is_some() || pace.total.is_some(),
            meter: Meter::new(pace, length),
            since: None,
            is_extension_used: false,
            excused_nanos: 0,
        }
    }

    /// Returns the bytes per second that are required under `pressure`, 1 if there is no rate.
    #[inline]
    pub(crate) fn required_rate(&self, pressure: f32) -> u64 {
        Pressure::scale(pressure, self.rate, self.full_pressure_rate).max(1)
    }

    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        self.since.is_some()
    }

    /// Whether the sum of the waits matters, and not only the length of each.
    #[inline]
    pub(crate) fn is_cumulative(&self) -> bool {
        self.is_cumulative
    }

    /// Starts a wait at `since`, unless one is running.
    #[inline]
    pub(crate) fn start(&mut self, since: Stamp) {
        self.since.get_or_insert(since);
    }

    /// Ends the wait at `now`, because something has arrived. Charges no more than was allowed. If
    /// the wait was not checked when it was due, charges nothing: the bytes may have arrived long
    /// before `now`.
    #[inline]
    pub(crate) fn stop(&mut self, now: Stamp) {
        if let Some(since) = self.since.take() {
            let waited = self.waited(since, now);
            let due = self.meter.due();
            if waited <= due.saturating_add(STALL_NANOS) {
                self.meter.advance_to(waited.min(due));
            }
        }
    }

    /// Charges the wait until `now`, and continues it.
    pub(crate) fn charge(&mut self, now: Stamp) {
        if let Some(since) = self.since.replace(now) {
            self.meter.advance_to(self.waited(since, now));
        }
    }

    /// Excuses the wait until `now`, so that it is never charged, and continues it.
    pub(crate) fn excuse(&mut self, now: Stamp) {
        if let Some(since) = self.since.replace(now) {
            let wait = now.saturating_sub(since);
            self.excused_nanos = self.excused_nanos.saturating_add(wait);
        }
    }

    /// Returns the nanoseconds of waiting that were [excused](Self::excuse).
    pub(crate) fn excused_nanos(&self) -> u64 {
        self.excused_nanos
    }

    /// Ends the wait without charging it.
    pub(crate) fn discard(&mut self) {
        self.since = None;
    }

    /// Adds `bytes` that arrived while `rate` bytes per second were required.
    #[inline]
    pub(crate) fn add_bytes(&mut self, bytes: u64, rate: u64) {
        if bytes > 0 {
            self.meter.add_bytes(bytes, rate);
            self.is_extension_used &= !self.meter.has_full_credit();
        }
    }

    /// Checks at `now` whether the wait is too long, while `rate` bytes per second are required.
    ///
    /// `delay` is an upper bound for the nanoseconds by which this check is later than its timer.
    /// If the delay shows a stall of the server, the client is given an extension.
    pub(crate) fn check(&mut self, now: Stamp, delay: u64, rate: u64) -> Option<TooSlow> {
        let waited = self.waited(self.since?, now);
        let due = self.meter.due();
        let delay = delay.min(waited.checked_sub(due)?);
        self.since = Some(now);
        if delay > STALL_NANOS && !self.is_extension_used {
            self.is_extension_used = true;
            let extended = due.saturating_sub(STALL_EXTENSION_NANOS);
            self.meter.rewind_to(extended);
            return None;
        }
        self.meter.advance_to(waited);
        self.meter.check(rate)
    }

    /// Returns the stamp at which the present wait is too long.
    #[inline]
    pub(crate) fn due(&self, now: Stamp) -> Stamp {
        let waited = self.waited(self.since.unwrap_or(now), now);
        now.saturating_add(self.meter.due().saturating_sub(waited))
    }

    /// Returns the waiting time until `now`, including a wait that began at `since`.
    #[inline]
    fn waited(&self, since: Stamp, now: Stamp) -> u64 {
        self.meter
            .waited()
            .saturating_add(now.saturating_sub(since))
    }
}

/// Returns the instant `nanos` nanoseconds after `now`, at most 30 years after it.
pub(crate) fn instant_after(now: Instant, nanos: u64) -> Instant {
    const MAX_NANOS: u64 = 30 * 365 * 86_400 * 1_000_000_000;
    now.checked_add(Duration::from_nanos(nanos.min(MAX_NANOS)))
        .unwrap_or(now)
}
