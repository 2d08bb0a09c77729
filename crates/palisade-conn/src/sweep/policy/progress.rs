//! Notes since when a connection has made no progress.

use super::{
    super::state::{SweepState, encode_phase, millis_since},
    SweepTime,
};
use crate::{connection::stats::ConnStats, eviction::rank::STALLED_SECONDS, guard::limits::Limits};
use palisade_core::Phase;

/// The rate that counts as progress of a response that is taken, and of a body that arrives.
const PROGRESS_BYTES_PER_SECOND: u64 = 500;
/// The largest number of waiting responses of a connection that must each be taken at that rate.
/// More need no more, because they may share a slow link.
const MAX_COUNTED_WINDOWS: u64 = 4;
/// Fewer bytes than this are no progress of a connection without a request in flight. More than
/// four times what the client sent meanwhile show that it is being sent a response: an HTTP/2
/// server sends as much as it receives while it only acknowledges PING.
const MIN_PROGRESS_BYTES: u64 = 1024;
/// Fewer bytes than this are no answer on HTTP/1, but perhaps a `100 Continue`. On HTTP/2 window
/// updates are more.
const MIN_ANSWER_BYTES: u64 = 128;
/// Overhead bytes that each millisecond pays for.
const OVERHEAD_BYTES_PER_MILLI: u64 = 16;
/// Overhead bytes that each request pays for: as many as its head may have.
const OVERHEAD_BYTES_PER_REQUEST: u64 = 32 * 1024;
/// The number of bytes sent that pay for one overhead byte: a client acknowledges what it gets.
const SENT_BYTES_PER_OVERHEAD_BYTE: u64 = 8;
/// The most that requests and responses pay in advance.
const MAX_CREDIT_BYTES: i32 = 2 << 20;
/// The same where frames cannot be told apart. When a request ends, this much of its body may
/// still be on its way: what a window allows, and what is read of a refused body for a moment.
const MAX_UNFRAMED_CREDIT_BYTES: i32 = 64 << 20;

/// Returns the state with the progress noted, the phase whose deadline runs, and the number of
/// overhead bytes that are not paid for.
pub(super) fn update(
    limits: &Limits,
    time: SweepTime,
    stats: &ConnStats,
    state: SweepState,
) -> (SweepState, Phase, u64) {
    let phase = match stats.timed_phase() {
        Phase::NextHead if may_be_left_over(&state, stats) => Phase::Idle,
        phase => phase,
    };
    let state = note_progress(state, phase, stats, time.now);
    let state = note_writes(state, stats, time.now, limits.write_stall);
    let (mut state, overhead) = note_overhead(state, stats, time.passed);
    let waits_for_client = match phase {
        Phase::RequestBody => true,
        Phase::Working => stats.awaits_body(),
        _ => false,
    };
    let waited_millis = if waits_for_client {
        millis_since(state.since, time.now)
    } else {
        0
    };
    let stalled_seconds = blocked_millis(&state, time.now).max(waited_millis) / 1000;
    state.stalled = u8::try_from(stalled_seconds).unwrap_or(u8::MAX);
    (state, phase, overhead)
}

/// Returns whether the client takes an answer: bytes wait for it, or were written since the last
/// progress, and it does not stall.
pub(crate) fn takes_answer(stats: &ConnStats, state: &SweepState) -> bool {
    let written = (stats.written as u32).wrapping_sub(state.written);
    let min = if stats.http2 {
        MIN_PROGRESS_BYTES
    } else {
        MIN_ANSWER_BYTES
    };
    let is_answered = stats.write_blocked || stats.has_shut_windows() || u64::from(written) >= min;
    is_answered && state.stalled < STALLED_SECONDS
}

/// Returns whether a blocked write, of which the writer has not been asked, is due at the next
/// sweep. It is asked early, because nothing waits of a write that was given up.
pub(super) fn is_stall_due_next(
    limits: &Limits,
    now: u64,
    stats: &ConnStats,
    state: &SweepState,
) -> bool {
    if !stats.write_blocked || state.asked {
        return false;
    }
    let at_next_sweep = blocked_millis(state, now).saturating_add(limits.tick_millis());
    at_next_sweep >= limits.write_stall
}

/// Returns for how long too little was taken of the bytes that wait.
pub(super) fn blocked_millis(state: &SweepState, now: u64) -> u64 {
    match state.blocked_since {
        0 => 0,
        blocked => millis_since(blocked.wrapping_sub(1), now),
    }
}

/// Returns whether bytes after the latest request may still belong to it: what its handler did not
/// read of its body, the end of its chunks, an empty line. Only bytes that come after a sweep of
/// the idle connection are certainly a head.
fn may_be_left_over(state: &SweepState, stats: &ConnStats) -> bool {
    let was_in = |phase: Phase| state.phase == encode_phase(phase);
    let has_more = was_in(Phase::Idle) && state.read != stats.read as u32;
    state.seen != stats.requests || !(was_in(Phase::NextHead) || has_more)
}

/// Notes since when the connection has been in this phase without progress.
fn note_progress(mut state: SweepState, phase: Phase, stats: &ConnStats, now: u64) -> SweepState {
    let (read, written) = (stats.read as u32, stats.written as u32);
    let number = encode_phase(phase);
    let seen = match phase {
        Phase::Upgraded if stats.framed => stats.data,
        Phase::Upgraded => read.wrapping_add(written),
        // More requests whose responses wait too are no progress.
        Phase::Writing => 0,
        // When the lingering began: bytes that arrive only move the time of the last progress.
        Phase::Lingering if state.phase == number => state.seen,
        Phase::Lingering => now as u32,
        _ => stats.requests,
    };
    if state.phase != number || state.seen != seen || has_progress(&state, phase, stats, now) {
        state.phase = number;
        state.seen = seen;
        state.since = now as u32;
        state.read = read;
        state.written = written;
    }
    state
}

/// Returns whether enough has happened since the noted time, in a phase that goes on.
fn has_progress(state: &SweepState, phase: Phase, stats: &ConnStats, now: u64) -> bool {
    let sent = u64::from((stats.written as u32).wrapping_sub(state.written));
    let received = u64::from((stats.read as u32).wrapping_sub(state.read));
    let min = progress_bytes(millis_since(state.since, now)).max(MIN_PROGRESS_BYTES);
    match phase {
        Phase::Idle => sent >= min.saturating_add(received.saturating_mul(4)),
        Phase::RequestBody | Phase::Lingering => received >= min,
        // What arrives may be the rest of a body.
        Phase::NextHead => stats.unmeasured && received >= min,
        // Beyond the answers to PING and SETTINGS.
        Phase::Upgraded if stats.framed => {
            let data = u64::from(stats.data.wrapping_sub(state.seen));
            data > 0 || sent > received
        }
        // If the handler does not ask for the body, the client does not delay it.
        Phase::Working if stats.body_left && !stats.http2 => !stats.awaits_read || received >= min,
        Phase::Working if stats.awaits_body() => sent.saturating_add(received) >= min,
        _ => false,
    }
}

/// Returns how many bytes are progress in this time.
fn progress_bytes(millis: u64) -> u64 {
    millis.saturating_mul(PROGRESS_BYTES_PER_SECOND) / 1000
}

/// Notes since when too little was taken of the bytes that wait, for the socket or for HTTP/2
/// windows: a byte now and then is no progress. A writer that was asked has the rest of
/// `max_millis` to report that it still waits.
fn note_writes(mut state: SweepState, stats: &ConnStats, now: u64, max_millis: u64) -> SweepState {
    let sent = stats.sent_bytes();
    let windows = if stats.has_shut_windows() {
        u64::from(stats.waiting)
    } else {
        0
    };
    if stats.write_blocked || windows > 0 {
        let taken = sent.wrapping_sub(state.written_blocked) as i32;
        let min = progress_bytes(blocked_millis(&state, now)).max(1);
        let min = min.saturating_mul(windows.clamp(1, MAX_COUNTED_WINDOWS));
        let is_taken = u64::try_from(taken).is_ok_and(|taken| taken >= min);
        if state.blocked_since == 0 || is_taken {
            // One more than it is, because 0 means that nothing waits.
            state.blocked_since = (now as u32).wrapping_add(1).max(1);
            state.written_blocked = sent;
            state.asked = false;
        }
    } else if !stats.asked || blocked_millis(&state, now) >= max_millis {
        state.blocked_since = 0;
        state.asked = false;
    }
    state
}

/// Notes the HTTP/2 bytes that carried no request on and are not paid for, and returns their
/// number.
///
/// DATA is not among them: windows limit it, and the server itself decides to read a refused body.
/// Where frames cannot be told apart, nothing is known while a body arrives.
#[inline]
fn note_overhead(mut state: SweepState, stats: &ConnStats, passed: u64) -> (SweepState, u64) {
    let position = unpaid_position(stats);
    let mut debt = position.wrapping_sub(state.mark) as i32;
    let max_credit = if stats.framed {
        MAX_CREDIT_BYTES
    } else {
        MAX_UNFRAMED_CREDIT_BYTES
    };
    if stats.uploading && !stats.framed {
        debt = -max_credit;
    } else if debt > 0 {
        let paid = passed.saturating_mul(OVERHEAD_BYTES_PER_MILLI);
        let paid = i32::try_from(paid).unwrap_or(i32::MAX);
        debt = (debt - paid).max(0);
    } else {
        debt = debt.max(-max_credit);
    }
    state.mark = position.wrapping_sub(debt as u32);
    state.in_debt = debt > 0;
    (state, debt.max(0) as u64)
}

/// Returns how far the bytes read, without DATA, are beyond those that requests and responses have
/// paid for. The low half is enough for the difference between two sweeps.
#[inline]
fn unpaid_position(stats: &ConnStats) -> u32 {
    let by_requests = u64::from(stats.requests).wrapping_mul(OVERHEAD_BYTES_PER_REQUEST);
    let paid = by_requests.wrapping_add(stats.written / SENT_BYTES_PER_OVERHEAD_BYTE);
    (stats.read as u32)
        .wrapping_sub(stats.data)
        .wrapping_sub(paid as u32)
}
