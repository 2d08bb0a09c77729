//! Detects that requests are not reported to the guard.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Since when clients have been sending without a request being reported.
#[derive(Debug, Default)]
pub(crate) struct UntrackedTimer {
    /// In milliseconds of the guard, plus one; 0 if it has not begun.
    since: AtomicU64,
    /// Nothing is left to find out.
    is_settled: AtomicBool,
}

impl UntrackedTimer {
    /// Returns whether to report it now: it has lasted for `timeout` milliseconds, with
    /// `connections` that are not tracked. Reported once, and never if some connection is tracked.
    pub(super) fn is_due(
        &self,
        now: u64,
        timeout: u64,
        some_are_tracked: bool,
        connections: usize,
    ) -> bool {
        if self.is_settled.load(Relaxed) {
            return false;
        }
        let since = self.since.load(Relaxed);
        if since == 0 && connections > 0 {
            self.since.store(now.saturating_add(1), Relaxed);
        }
        let is_over = since > 0 && connections > 0 && now.saturating_sub(since - 1) >= timeout;
        if some_are_tracked || is_over {
            self.is_settled.store(true, Relaxed);
        }
        is_over && !some_are_tracked
    }
}
