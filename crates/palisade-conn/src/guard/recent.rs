//! Recent history of a guard: the connections that were closed, and how many were opened and
//! refused.

use crate::connection::ConnHandle;
use palisade_core::{Mode, Phase, Reason, Violation};
use parking_lot::Mutex;
use std::{collections::VecDeque, net::SocketAddr};
use tokio::time::Instant;

/// The number of closed connections that are remembered.
const MAX_CLOSED: usize = 1000;
/// The time over which new connections are counted.
const WINDOW_MILLIS: u64 = 10_000;
/// The shortest time between two marks.
const MARK_INTERVAL_MILLIS: u64 = 1000;
/// The largest number of marks.
const MAX_MARKS: usize = (WINDOW_MILLIS / MARK_INTERVAL_MILLIS) as usize + 2;

/// A connection that was closed or refused, or would have been.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub struct ClosedConn {
    /// When it was closed.
    pub closed_at: Instant,
    /// The number of the connection, [`ConnInfo::id`](palisade_core::ConnInfo::id).
    pub conn: u64,
    /// The other end of the socket. For logs, never for labels.
    pub peer: SocketAddr,
    /// Why it was closed.
    pub reason: Reason,
    /// The phase that the connection was in.
    pub phase: Phase,
    /// [`Mode::Shadow`] if it was only reported.
    pub mode: Mode,
    /// The limit, in [`Reason::unit`].
    pub limit: u64,
    /// The observed value, in [`Reason::unit`].
    pub observed: u64,
    /// Bytes read from the client.
    pub read: u64,
    /// Bytes that the kernel took for the client.
    pub written: u64,
    /// Request heads received.
    pub requests: u32,
}

/// The last [`MAX_CLOSED`] connections that were closed.
#[derive(Debug, Default)]
pub(crate) struct RecentlyClosed(Mutex<VecDeque<ClosedConn>>);

/// The counters of opened and refused connections at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mark {
    /// The time in milliseconds of the guard.
    pub(crate) at: u64,
    pub(crate) opened: u64,
    pub(crate) refused: u64,
}

/// The marks of the last [`WINDOW_MILLIS`], and the latest one before them.
#[derive(Debug)]
pub(crate) struct Marks(Mutex<VecDeque<Mark>>);

// === ClosedConn ===

impl ClosedConn {
    pub(crate) fn new(violation: &Violation, mode: Mode, conn: &ConnHandle) -> Self {
        let stats = conn.state().stats();
        Self {
            closed_at: Instant::now(),
            conn: conn.id(),
            peer: conn.peer(),
            reason: violation.reason,
            phase: violation.phase,
            mode,
            limit: violation.limit,
            observed: violation.observed,
            read: stats.read,
            written: stats.written,
            requests: stats.requests,
        }
    }
}

// === RecentlyClosed ===

impl RecentlyClosed {
    /// The bytes of all of them. The buffer doubles as it grows.
    pub(crate) const MAX_BYTES: usize = MAX_CLOSED.next_power_of_two() * size_of::<ClosedConn>();

    pub(crate) fn add(&self, conn: ClosedConn) {
        let mut closed = self.0.lock();
        if closed.len() >= MAX_CLOSED {
            closed.pop_front();
        }
        closed.push_back(conn);
    }

    /// Returns all of them, the latest last.
    pub(crate) fn all(&self) -> Vec<ClosedConn> {
        self.0.lock().iter().copied().collect()
    }
}

// === Marks ===

impl Default for Marks {
    fn default() -> Self {
        Self(Mutex::new(VecDeque::with_capacity(MAX_MARKS)))
    }
}

impl Marks {
    /// Keeps `mark`, unless the latest one is less than [`MARK_INTERVAL_MILLIS`] older.
    pub(crate) fn add(&self, mark: Mark) {
        let mut marks = self.0.lock();
        if marks
            .back()
            .is_some_and(|last| mark.at < last.at + MARK_INTERVAL_MILLIS)
        {
            return;
        }
        while marks
            .get(1)
            .is_some_and(|second| second.at + WINDOW_MILLIS <= mark.at)
        {
            marks.pop_front();
        }
        marks.push_back(mark);
    }

    /// Returns how many connections per second were opened and refused until `now`. The sweeper
    /// calls [`Self::add`] every `tick` milliseconds.
    pub(crate) fn per_second(&self, now: Mark, tick: u64) -> (f64, f64) {
        let marks = self.0.lock();
        let is_old = |mark: &&Mark| mark.at + WINDOW_MILLIS <= now.at;
        // All counters begin at zero.
        let then = marks.iter().rev().find(is_old).copied().unwrap_or_default();
        // Without connections there are no marks, and nothing was opened. So a longer time does not
        // count.
        let max_millis = WINDOW_MILLIS + MARK_INTERVAL_MILLIS.max(tick);
        let seconds = (now.at - then.at).clamp(MARK_INTERVAL_MILLIS, max_millis) as f64 / 1000.0;
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        (
            rate(now.opened, then.opened),
            rate(now.refused, then.refused),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::{Guard, Prefix};

    #[test]
    fn rates_are_those_of_the_last_ten_seconds() {
        let marks = Marks::default();
        let at = |at, opened| Mark {
            at,
            opened,
            refused: opened / 2,
        };
        assert_eq!(marks.per_second(at(100, 5), 250), (5.0, 2.0));
        assert_eq!(marks.per_second(at(5000, 50), 250), (10.0, 5.0));
        // Ten connections per second, and a hundred from the hundredth second on.
        let opened = |millis: u64| millis / 100 + millis.saturating_sub(100_000) / 100 * 9;
        for millis in (0..=120_000).step_by(250) {
            marks.add(at(millis, opened(millis)));
            if millis >= 15_000 {
                let (per_second, _) = marks.per_second(at(millis, opened(millis)), 250);
                let steady = if millis < 100_000 { 10.0 } else { 100.0 };
                let is_new = (100_000..112_000).contains(&millis);
                assert!(
                    is_new || (per_second - steady).abs() < 1.0,
                    "{millis} {per_second}"
                );
            }
        }
        assert!(marks.0.lock().len() <= MAX_MARKS);
        // An hour without a connection, and then many.
        let hour = 3_720_000;
        marks.add(at(hour, opened(120_000) + 1100));
        assert_eq!(
            marks.per_second(at(hour, opened(120_000) + 1100), 250).0,
            100.0
        );

        // Rare sweeps do not change the rate.
        let marks = Marks::default();
        (0..=60_000)
            .step_by(10_000)
            .for_each(|millis| marks.add(at(millis, millis / 100)));
        assert_eq!(marks.per_second(at(69_000, 690), 10_000).0, 10.0);
    }

    #[test]
    fn only_the_last_thousand_closed_connections_are_kept() {
        let closed = RecentlyClosed::default();
        let conn = ConnHandle::new(([192, 0, 2, 1], 1).into(), None, Prefix::default(), None);
        for observed in 0..2500 {
            let (guard, reason) = (Guard::Connection, Reason::Idle);
            let violation = Violation::new(guard, reason, Phase::Idle, 1, observed);
            closed.add(ClosedConn::new(&violation, Mode::Enforce, &conn));
        }
        let all = closed.all();
        assert_eq!(all.len(), MAX_CLOSED);
        assert_eq!(all.last().map(|conn| conn.observed), Some(2499));
        assert!(closed.0.lock().capacity() < 2 * MAX_CLOSED);
    }
}
