//! A meter on tokio's clock.

use crate::{
    Pace,
    meter::{Meter, TooSlow, nanos},
};
use std::time::Duration;
use tokio::time::Instant;

/// A verdict that is later than this tells of a stall of the server, which saw nothing of what the
/// client sent meanwhile.
const LATE: Duration = Duration::from_millis(100);
/// What the client gets after a stall of the server, once.
const REPRIEVE: Duration = Duration::from_millis(250);

/// Runs while the other side is awaited.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    pace: Pace,
    meter: Meter,
    /// When the present wait began.
    since: Option<Instant>,
    /// The present shortage was seen late before.
    is_forgiven: bool,
}

impl Stopwatch {
    /// Made when the first wait begins, for a body whose length is known or not.
    pub(crate) fn new(pace: Pace, length: Option<u64>) -> Self {
        Self { pace, meter: Meter::new(&pace, length), since: None, is_forgiven: false }
    }

    pub(crate) fn pace(&self) -> &Pace {
        &self.pace
    }

    pub(crate) fn is_running(&self) -> bool {
        self.since.is_some()
    }

    /// Whether the length of a wait matters, and not only its end.
    pub(crate) fn adds_up(&self) -> bool {
        self.pace.rate.is_some() || self.pace.total.is_some()
    }

    /// The wait begins at `now`. Returns when it will be too long.
    pub(crate) fn start(&mut self, now: Instant) -> Instant {
        self.since = Some(now);
        self.due(now)
    }

    /// The wait ended at `now`. None of it is charged beyond what was allowed: what was waited for
    /// is here. If nothing looked at it when it was due, nothing is charged: the bytes may have
    /// come at once.
    pub(crate) fn stop(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            let at = self.stamp(since, now);
            let due = self.meter.due(&self.pace);
            if at <= due.saturating_add(nanos(LATE)) {
                self.meter.wait_until(at.min(due));
            }
        }
    }

    /// The wait ended some time ago, and how long it was does not matter.
    pub(crate) fn forget(&mut self) {
        self.since = None;
    }

    /// `bytes` came, while the required rate was `rate`.
    pub(crate) fn pay(&mut self, bytes: u64, rate: u64) {
        if bytes > 0 {
            self.meter.pay(&self.pace, bytes, rate);
            self.is_forgiven &= !self.meter.is_at_ease(&self.pace);
        }
    }

    /// Whether the wait is too long at `now`. It was looked at no later than `late` after the
    /// instant at which a timer should have done so.
    pub(crate) fn judge(&mut self, now: Instant, late: Duration, rate: u64) -> Option<TooSlow> {
        let at = self.stamp(self.since?, now);
        let due = self.meter.due(&self.pace);
        let late = late.min(Duration::from_nanos(at.checked_sub(due)?));
        if late > LATE && !self.is_forgiven {
            self.is_forgiven = true;
            self.meter.wait_until(due.saturating_sub(nanos(REPRIEVE)));
            self.since = Some(now);
            return None;
        }
        self.meter.wait_until(at);
        self.since = Some(now);
        self.meter.judge(&self.pace, rate)
    }

    /// When the present wait will be too long.
    pub(crate) fn due(&self, now: Instant) -> Instant {
        after(now, self.left(now))
    }

    /// Nanoseconds from `now` until the present wait will be too long.
    pub(crate) fn left(&self, now: Instant) -> u64 {
        let waited = self.stamp(self.since.unwrap_or(now), now);
        self.meter.due(&self.pace).saturating_sub(waited)
    }

    /// The meter's stamp of `now` in a wait that began at `since`.
    fn stamp(&self, since: Instant, now: Instant) -> u64 {
        self.meter.waited().saturating_add(nanos(now.saturating_duration_since(since)))
    }
}

/// So many nanoseconds after `now`, or an instant that is never reached.
pub(crate) fn after(now: Instant, wait: u64) -> Instant {
    const FAR: u64 = 30 * 365 * 86_400 * 1_000_000_000;
    now.checked_add(Duration::from_nanos(wait.min(FAR))).unwrap_or(now)
}
