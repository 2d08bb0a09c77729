//! The rules that close a connection, one function each.

use super::{
    super::state::{SweepState, millis_since},
    Action, SweepTime, goaway_grace,
    progress::blocked_millis,
};
use crate::{
    connection::{
        decision::{CloseMode, CloseRequest},
        stats::ConnStats,
    },
    guard::limits::{
        CLOSING_QUIET_MILLIS, LINGER_MILLIS, LINGER_QUIET_MILLIS, Limits, UNANNOUNCED_QUIET_MILLIS,
    },
};
use palisade_core::{Mode, Phase, Reason};

/// h2 reads this many bytes of heads, or more, before hyper reports the first of their requests.
/// What exceeds the budget in one sweep only, and by no more than this, may be such heads.
const MAX_UNREPORTED_HEAD_BYTES: u64 = 4 << 20;
/// How much later than its deadline a silent connection is closed if its task does not run.
const MAX_UNSEEN_MILLIS: u64 = 10_000;

/// The rules, in order. The first one that returns an action decides.
const RULES: [fn(&Subject<'_>) -> Option<Action>; 13] = [
    lingering,
    first_request,
    overhead,
    cancelled_requests,
    write_stall,
    window_stall,
    slow_head,
    idle,
    upgraded_idle,
    tunnel,
    closing_and_idle,
    max_age,
    probe,
];

/// A connection, as the rules see it.
pub(super) struct Subject<'a> {
    pub(super) limits: &'a Limits,
    pub(super) time: SweepTime,
    /// The phase whose deadline runs.
    pub(super) phase: Phase,
    pub(super) stats: &'a ConnStats,
    /// Why the connection takes no more requests, if it does not.
    pub(super) closing: Option<Reason>,
    pub(super) state: &'a SweepState,
    /// Overhead bytes that are not paid for.
    pub(super) overhead: u64,
}

/// Returns what the first rule that applies asks for.
pub(super) fn first_action(subject: &Subject<'_>) -> Action {
    let action = RULES.iter().find_map(|rule| rule(subject));
    action.unwrap_or(Action::Keep)
}

impl Subject<'_> {
    fn age(&self) -> u64 {
        self.time.now.saturating_sub(self.time.opened)
    }

    /// Returns the time since the last progress in the present phase.
    fn quiet_millis(&self) -> u64 {
        millis_since(self.state.since, self.time.now)
    }

    fn request(
        &self,
        reason: Reason,
        mode: CloseMode,
        (limit, observed): (u64, u64),
    ) -> CloseRequest {
        let phase = match self.phase {
            phase @ (Phase::Lingering | Phase::FirstHead) => phase,
            _ if self.stats.write_blocked => Phase::Writing,
            phase => phase,
        };
        CloseRequest {
            reason,
            mode,
            phase,
            limit,
            observed,
        }
    }

    fn close(&self, reason: Reason, mode: CloseMode, numbers: (u64, u64)) -> Option<Action> {
        Some(Action::Close(self.request(reason, mode, numbers)))
    }

    /// Closes a connection that has been silent for `quiet` of `max` milliseconds. What its client
    /// has sent may be unread where the runtime is late. So its socket looks first.
    fn close_silent(
        &self,
        reason: Reason,
        mode: CloseMode,
        max: u64,
        quiet: u64,
    ) -> Option<Action> {
        let is_seen = self.stats.looked || quiet >= max.saturating_add(MAX_UNSEEN_MILLIS);
        let two_sweeps = 2 * self.limits.tick_millis();
        if is_seen && quiet >= max {
            self.close(reason, mode, (max, quiet))
        } else if !is_seen && quiet.saturating_add(two_sweeps) >= max {
            Some(Action::AskReader)
        } else {
            None
        }
    }

    fn announce(&self, reason: Reason, mode: CloseMode, numbers: (u64, u64)) -> Option<Action> {
        Some(Action::Announce(self.request(reason, mode, numbers)))
    }
}

/// A connection that lingers ends after a second without bytes, or half a minute in all. No other
/// rule applies to it.
fn lingering(on: &Subject<'_>) -> Option<Action> {
    if on.phase != Phase::Lingering {
        return None;
    }
    let lingering_millis = millis_since(on.state.seen, on.time.now);
    let is_over = on.quiet_millis() >= LINGER_QUIET_MILLIS || lingering_millis >= LINGER_MILLIS;
    Some(if is_over {
        Action::EndLingering
    } else {
        Action::Keep
    })
}

/// The first request head has to be complete in time.
fn first_request(on: &Subject<'_>) -> Option<Action> {
    if on.phase != Phase::FirstHead {
        return None;
    }
    let (max, age) = (on.limits.first_request, on.age());
    on.close_silent(Reason::FirstRequest, CloseMode::Reset, max, age)
}

/// HTTP/2 bytes that carry no request on are limited.
fn overhead(on: &Subject<'_>) -> Option<Action> {
    let (max, stats) = (u64::from(on.limits.max_overhead?), on.stats);
    let frames_are_known = !stats.upgraded || stats.http2 && stats.framed;
    let applies = stats.tracked && frames_are_known && (stats.http2 || stats.requests == 0);
    let may_be_heads =
        !on.state.over_budget && on.overhead <= max.saturating_add(MAX_UNREPORTED_HEAD_BYTES);
    if !applies || on.overhead <= max || may_be_heads {
        return None;
    }
    on.close(Reason::NoProgress, CloseMode::Reset, (max, on.overhead))
}

/// A client that cancels most of its requests at once is reset. If GOAWAY can be sent, it is
/// warned first, and reset at twice the number.
fn cancelled_requests(on: &Subject<'_>) -> Option<Action> {
    let (max, stats) = (u64::from(on.limits.max_cancelled?), on.stats);
    let early = u64::from(stats.early);
    let ended = u64::from(stats.answered).saturating_add(stats.cancelled.into());
    if early < max || u64::from(stats.cancelled) <= ended / 2 {
        return None;
    }
    let (reason, mode, numbers) = (Reason::CancelledRequests, CloseMode::Reset, (max, early));
    if !stats.goaway || early >= max.saturating_mul(2) {
        on.close(reason, mode, numbers)
    } else if on.closing.is_none() {
        on.announce(reason, mode, numbers)
    } else {
        None
    }
}

/// The kernel has to take some of the bytes that wait. The writer has confirmed that it still
/// writes.
fn write_stall(on: &Subject<'_>) -> Option<Action> {
    let (max, blocked) = (on.limits.write_stall, blocked_millis(on.state, on.time.now));
    if !on.state.asked || !on.stats.write_blocked || blocked < max {
        return None;
    }
    on.close(Reason::WriteStall, CloseMode::Reset, (max, blocked))
}

/// An HTTP/2 client whose responses all wait has to open its windows.
fn window_stall(on: &Subject<'_>) -> Option<Action> {
    let (max, blocked) = (on.limits.write_stall, blocked_millis(on.state, on.time.now));
    if on.phase != Phase::Writing || blocked < max {
        return None;
    }
    on.close(Reason::WindowStall, CloseMode::Reset, (max, blocked))
}

/// A later request head has to be complete in time.
fn slow_head(on: &Subject<'_>) -> Option<Action> {
    if on.phase != Phase::NextHead {
        return None;
    }
    let (max, quiet) = (on.limits.head, on.quiet_millis());
    on.close_silent(Reason::SlowHead, CloseMode::Reset, max, quiet)
}

/// A connection without a request in flight may be idle for a while, also in the middle of a body
/// that no request waits for.
fn idle(on: &Subject<'_>) -> Option<Action> {
    if !matches!(on.phase, Phase::Idle | Phase::RequestBody) {
        return None;
    }
    // A connection that waits for its client has the longer of both times.
    let max = if on.stats.write_blocked {
        on.limits.idle.max(on.limits.write_stall)
    } else {
        on.limits.idle
    };
    let quiet = on.quiet_millis();
    let close = on.close_silent(Reason::Idle, CloseMode::Graceful, max, quiet);
    if close.is_some() {
        return close;
    }
    // A request may be on its way: GOAWAY tells its client that it was not processed.
    if on.stats.goaway && on.closing.is_none() && quiet >= max - goaway_grace(max) {
        return on.announce(Reason::Idle, CloseMode::Graceful, (max, quiet));
    }
    None
}

/// An upgraded connection may be silent for a time of its own.
fn upgraded_idle(on: &Subject<'_>) -> Option<Action> {
    let (max, quiet) = (on.limits.upgraded_idle, on.quiet_millis());
    if on.phase != Phase::Upgraded || quiet < max {
        return None;
    }
    on.close(Reason::Idle, CloseMode::Graceful, (max, quiet))
}

/// No further rule applies to an HTTP/1 connection that was upgraded.
fn tunnel(on: &Subject<'_>) -> Option<Action> {
    let is_tunnel = on.phase == Phase::Upgraded && !on.stats.http2;
    is_tunnel.then_some(Action::Keep)
}

/// A connection that takes no more requests is closed once it has been idle for a moment. Not at
/// once: what looks idle may wait for an HTTP/2 window with the rest of its response, or have the
/// next request on its way.
fn closing_and_idle(on: &Subject<'_>) -> Option<Action> {
    let reason = on.closing?;
    let is_idle = on.phase == Phase::Idle && !on.stats.write_blocked;
    if !is_idle || on.quiet_millis() < closing_quiet_millis(on, reason) {
        return None;
    }
    let numbers = match reason {
        Reason::MaxRequests => {
            let max = on.limits.max_requests.unwrap_or(u32::MAX);
            (max.into(), on.stats.requests.into())
        }
        Reason::KeepAlivePerClient => {
            let max = u64::from(on.time.max_kept_idle.unwrap_or(u32::MAX));
            (max, max.saturating_add(1))
        }
        Reason::MemoryPressure => (0, 0), // Its numbers are those of the process.
        _ => (on.time.due_age.unwrap_or(on.age()), on.age()),
    };
    on.close(reason, CloseMode::Graceful, numbers)
}

/// A connection that is too old takes no more requests. After a grace period it is closed.
fn max_age(on: &Subject<'_>) -> Option<Action> {
    let (due, age) = (on.time.due_age?, on.age());
    if age < due {
        return None;
    }
    let is_grace_over = on
        .limits
        .age_grace
        .is_some_and(|grace| age >= due.saturating_add(grace));
    if is_grace_over {
        let mode = if on.phase == Phase::Idle {
            CloseMode::Graceful
        } else {
            CloseMode::Reset
        };
        return on.close(Reason::MaxAge, mode, (due, age));
    }
    // In shadow mode it never begins to close, and the rules below go on.
    if on.closing.is_none() && on.limits.mode == Mode::Enforce {
        return Some(Action::BeginClosing(Reason::MaxAge));
    }
    None
}

/// The socket of an HTTP/1 connection with a request at work is checked from time to time. A
/// client that has its response may go while a handler still reads what it sent.
fn probe(on: &Subject<'_>) -> Option<Action> {
    let interval = on.limits.probe?;
    let is_working = on.phase == Phase::Working && on.stats.in_flight > 0 && !on.stats.http2;
    if !is_working {
        return None;
    }
    // If the handler does not ask for the body, the time of the last progress keeps moving.
    let elapsed = if on.stats.body_left {
        on.age()
    } else {
        on.quiet_millis()
    };
    // Whether a multiple of the interval has passed since the previous sweep.
    let before = elapsed.saturating_sub(on.time.passed);
    (elapsed / interval > before / interval).then_some(Action::Probe)
}

/// Returns how long a connection that takes no more requests must be idle before it is closed.
/// Where its client could not be told, a pool may use it again at any moment.
fn closing_quiet_millis(on: &Subject<'_>, reason: Reason) -> u64 {
    if reason == Reason::Idle {
        return on.limits.idle;
    }
    let is_short = matches!(reason, Reason::KeepAlivePerClient | Reason::Shutdown);
    let quiet = if on.stats.goaway || is_short {
        CLOSING_QUIET_MILLIS
    } else if on.stats.http2 {
        UNANNOUNCED_QUIET_MILLIS
    } else {
        // The next response says `Connection: close`.
        on.limits.idle
    };
    quiet.min(on.limits.idle)
}
