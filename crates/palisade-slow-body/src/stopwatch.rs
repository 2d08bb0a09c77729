//! A meter and the stamps of a clock.

use crate::{
    Pace,
    meter::{Meter, TooSlow},
};
use palisade_guard::Stamp;
use std::time::Duration;
use tokio::time::Instant;

/// A verdict that is later than this, in nanoseconds, tells of a stall of the server, which saw
/// nothing of what the client sent meanwhile.
pub(crate) const LATE: u64 = 100_000_000;
/// Nanoseconds that the client gets after a stall of the server, once.
const REPRIEVE: u64 = 250_000_000;

/// Runs while the other side is awaited.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    /// The plain rate.
    rate: Option<u64>,
    /// The length of a wait matters, and not only its end.
    adds_up: bool,
    meter: Meter,
    /// When the present wait began.
    since: Option<Stamp>,
    /// The present shortage was seen late before.
    is_forgiven: bool,
    /// Nanoseconds of waiting that were not charged because others were to blame.
    excused: u64,
}

impl Stopwatch {
    /// Made when the first wait begins, for a body whose length is known or not.
    pub(crate) fn new(pace: &Pace, length: Option<u64>) -> Self {
        let meter = Meter::new(pace, length);
        let adds_up = pace.rate.is_some() || pace.total.is_some();
        Self {
            rate: pace.rate,
            adds_up,
            meter,
            since: None,
            is_forgiven: false,
            excused: 0,
        }
    }

    /// The rate that is asked for while there is no pressure.
    #[inline]
    pub(crate) fn rate(&self) -> Option<u64> {
        self.rate
    }

    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        self.since.is_some()
    }

    /// Whether the length of a wait matters, and not only its end.
    #[inline]
    pub(crate) fn adds_up(&self) -> bool {
        self.adds_up
    }

    /// The wait began at `since`, if it is not known yet.
    #[inline]
    pub(crate) fn start(&mut self, since: Stamp) {
        self.since.get_or_insert(since);
    }

    /// The wait ended at `now`. None of it is charged beyond what was allowed: what was waited for
    /// is here. If nothing looked at it when it was due, nothing is charged: the bytes may have
    /// come at once.
    #[inline]
    pub(crate) fn stop(&mut self, now: Stamp) {
        if let Some(since) = self.since.take() {
            let at = self.waited(since, now);
            let due = self.meter.due();
            if at <= due.saturating_add(LATE) {
                self.meter.wait_until(at.min(due));
            }
        }
    }

    /// The wait until `now` is charged.
    pub(crate) fn charge(&mut self, now: Stamp) {
        if let Some(since) = self.since.replace(now) {
            self.meter.wait_until(self.waited(since, now));
        }
    }

    /// The wait until `now` is not charged.
    pub(crate) fn excuse(&mut self, now: Stamp) {
        if let Some(since) = self.since.replace(now) {
            self.excused = self.excused.saturating_add(now.saturating_sub(since));
        }
    }

    pub(crate) fn excused(&self) -> u64 {
        self.excused
    }

    /// The wait ended some time ago, and how long it was does not matter.
    pub(crate) fn forget(&mut self) {
        self.since = None;
    }

    /// `bytes` came, while the required rate was `rate`.
    #[inline]
    pub(crate) fn pay(&mut self, bytes: u64, rate: u64) {
        if bytes > 0 {
            self.meter.pay(bytes, rate);
            self.is_forgiven &= !self.meter.is_at_ease();
        }
    }

    /// Whether the wait is too long at `now`. It was looked at no later than `late` nanoseconds
    /// after the instant at which a timer should have done so.
    pub(crate) fn judge(&mut self, now: Stamp, late: u64, rate: u64) -> Option<TooSlow> {
        let at = self.waited(self.since?, now);
        let due = self.meter.due();
        let late = late.min(at.checked_sub(due)?);
        if late > LATE && !self.is_forgiven {
            self.is_forgiven = true;
            self.meter.rewind_to(due.saturating_sub(REPRIEVE));
            self.since = Some(now);
            return None;
        }
        self.meter.wait_until(at);
        self.since = Some(now);
        self.meter.judge(rate)
    }

    /// When the present wait will be too long.
    #[inline]
    pub(crate) fn due(&self, now: Stamp) -> Stamp {
        now.saturating_add(self.left(now))
    }

    /// Nanoseconds from `now` until the present wait will be too long.
    #[inline]
    pub(crate) fn left(&self, now: Stamp) -> u64 {
        let waited = self.waited(self.since.unwrap_or(now), now);
        self.meter.due().saturating_sub(waited)
    }

    /// How long the body was waited for until `now`, in a wait that began at `since`.
    #[inline]
    fn waited(&self, since: Stamp, now: Stamp) -> u64 {
        self.meter
            .waited()
            .saturating_add(now.saturating_sub(since))
    }
}

/// So many nanoseconds after `now`, or an instant that is never reached.
pub(crate) fn after(now: Instant, wait: u64) -> Instant {
    const FAR: u64 = 30 * 365 * 86_400 * 1_000_000_000;
    now.checked_add(Duration::from_nanos(wait.min(FAR)))
        .unwrap_or(now)
}
