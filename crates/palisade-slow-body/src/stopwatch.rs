//! A meter on tokio's clock.

use crate::{
    Pace,
    meter::{Meter, TooSlow, nanos},
};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is this late tells of a stall of ours: nobody was there to see what came.
const LATE: Duration = Duration::from_millis(100);
/// What we give after a stall of ours, once.
const REPRIEVE: Duration = Duration::from_millis(250);

pin_project! {
    /// Runs while the other side is waited for.
    #[derive(Debug)]
    pub(crate) struct Stopwatch {
        pace: Pace,
        meter: Meter,
        // While it runs, since when.
        since: Option<Instant>,
        // The present shortage was found late before.
        forgiven: bool,
        // For a request it goes off when something is due, or earlier. For a response see
        // `arm_once`. It is never set back because a wait ended.
        #[pin]
        alarm: Sleep,
    }
}

impl Stopwatch {
    /// Made when the first wait begins, for a body of which the length is known or not.
    pub(crate) fn new(pace: Pace, length: Option<u64>, now: Instant) -> Pin<Box<Self>> {
        let meter = Meter::new(&pace, length);
        let alarm = sleep_until(after(now, meter.due(&pace)));
        Box::pin(Self { pace, meter, since: None, forgiven: false, alarm })
    }

    pub(crate) fn pace(&self) -> &Pace {
        &self.pace
    }

    pub(crate) fn is_running(&self) -> bool {
        self.since.is_some()
    }

    /// Whether the wait as such is of interest, and not only that it ended.
    pub(crate) fn adds_up(&self) -> bool {
        self.pace.rate.is_some() || self.pace.total.is_some()
    }

    /// Whether the alarm has gone off, so that the clock is worth a look.
    pub(crate) fn rang(&self) -> bool {
        self.alarm.is_elapsed()
    }

    /// The wait begins.
    pub(crate) fn start(self: Pin<&mut Self>, now: Instant) {
        *self.project().since = Some(now);
    }

    /// The wait ended now. None of it is charged beyond what was allowed: what was waited for is
    /// here. If nobody was there to look when it was due, nothing is charged: it may have come at
    /// once.
    #[inline(never)]
    pub(crate) fn stop(self: Pin<&mut Self>) {
        let this = self.project();
        let now = Instant::now();
        if let Some(since) = this.since.take() {
            let at = stamp(this.meter, since, now);
            let due = this.meter.due(this.pace);
            if at <= due.saturating_add(nanos(LATE)) {
                this.meter.wait_until(at.min(due));
            }
        }
    }

    /// The wait ended some time ago, and how long it was does not matter.
    pub(crate) fn forget(self: Pin<&mut Self>) {
        *self.project().since = None;
    }

    /// So many bytes came, while so many a second were asked for.
    pub(crate) fn pay(self: Pin<&mut Self>, bytes: u64, rate: u64) {
        if bytes > 0 {
            let this = self.project();
            this.meter.pay(this.pace, bytes, rate);
            *this.forgiven &= !this.meter.is_at_ease(this.pace);
        }
    }

    /// Whether the wait is too long by now. If not, the task of `cx` is woken when it may be.
    pub(crate) fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        rate: impl Fn() -> u64,
    ) -> Option<TooSlow> {
        loop {
            if self.as_mut().project().alarm.poll(cx).is_pending() {
                return None;
            }
            let now = Instant::now();
            if let Some(slow) = self.as_mut().judge(now, &rate) {
                return Some(slow);
            }
            self.as_mut().arm(now);
        }
    }

    /// Whether the wait is too long at `now`.
    pub(crate) fn judge(
        self: Pin<&mut Self>,
        now: Instant,
        rate: impl Fn() -> u64,
    ) -> Option<TooSlow> {
        let this = self.project();
        let at = stamp(this.meter, (*this.since)?, now);
        let due = this.meter.due(this.pace);
        let late = Duration::from_nanos(at.checked_sub(due)?);
        let late = if this.alarm.is_elapsed() {
            late.min(now.saturating_duration_since(this.alarm.deadline()))
        } else {
            late
        };
        if late > LATE && !*this.forgiven {
            *this.forgiven = true;
            this.meter.wait_until(due.saturating_sub(nanos(REPRIEVE)));
            *this.since = Some(now);
            return None;
        }
        this.meter.wait_until(at);
        this.meter.judge(this.pace, rate())
    }

    /// Sets an alarm that went off to when something is due next.
    fn arm(self: Pin<&mut Self>, now: Instant) {
        let left = self.left(now);
        self.project().alarm.reset(after(now, left));
    }

    /// Sees to it that the task of `cx` is woken once in the wait that begins now, when that is
    /// too long already: not before, and after twice as long at the latest. Between those the
    /// alarm is left as it is, so that it is not set for every wait.
    pub(crate) fn arm_once(mut self: Pin<&mut Self>, now: Instant, cx: &mut Context<'_>) {
        let left = self.left(now);
        let mut alarm = self.as_mut().project().alarm;
        if alarm.is_elapsed() || alarm.deadline() < after(now, left) {
            alarm.as_mut().reset(after(now, left.saturating_mul(2)));
            let _: Poll<()> = alarm.poll(cx);
        }
    }

    /// Has the task of `cx` woken when the alarm goes off.
    pub(crate) fn listen(self: Pin<&mut Self>, cx: &mut Context<'_>) {
        let _: Poll<()> = self.project().alarm.poll(cx);
    }

    /// How long until something is due.
    fn left(&self, now: Instant) -> u64 {
        let waited = stamp(&self.meter, self.since.unwrap_or(now), now);
        self.meter.due(&self.pace).saturating_sub(waited)
    }
}

/// The meter's stamp of `now` in a wait that began at `since`.
fn stamp(meter: &Meter, since: Instant, now: Instant) -> u64 {
    meter.waited().saturating_add(nanos(now.saturating_duration_since(since)))
}

/// So many nanoseconds after `now`, or a time that nobody will see.
fn after(now: Instant, wait: u64) -> Instant {
    const FAR: u64 = 30 * 365 * 86_400 * 1_000_000_000;
    now.checked_add(Duration::from_nanos(wait.min(FAR))).unwrap_or(now)
}
