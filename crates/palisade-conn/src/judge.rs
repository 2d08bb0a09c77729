//! Connection policy: decides from a snapshot of its counters whether a connection is kept, closed,
//! probed or evicted. Pure; the caller supplies the time.

use crate::limits::{
    CLOSING_QUIET_MILLIS, GOAWAY_GRACE_MILLIS, KEPT_MILLIS, LINGER_MILLIS, LINGER_QUIET_MILLIS,
    Limits, UNTOLD_QUIET_MILLIS,
};
use palisade_core::{CloseMode, ConnStats, IdleStats, Phase, Reason, SweepState};

/// Bytes per second that are progress: of a response that is taken, of a body that arrives.
const PROGRESS_PER_SECOND: u64 = 500;
/// So many responses of a connection that wait for their windows are each to be taken at that rate;
/// more need no more, because they may share a slow link.
const MAX_WINDOWS_COUNTED: u64 = 4;
/// Fewer bytes than this are no progress of a connection without a request in flight. More than
/// four times what the client sent meanwhile show that it is being sent a response: an HTTP/2
/// server sends as much as it gets while it only acknowledges PING.
const LEAST_PROGRESS_BYTES: u64 = 1024;
/// Bytes besides requests are paid for by so many a millisecond,
const OVERHEAD_PER_MILLI: u64 = 16;
/// by so many for each request's head, which is as many as it may have,
const OVERHEAD_PER_REQUEST: u64 = 32 * 1024;
/// and by one for so many that are sent: a client acknowledges what it gets.
const SENT_FOR_ONE: u64 = 8;
/// The most that requests and responses pay in advance.
const MAX_CREDIT_BYTES: i32 = 2 << 20;
/// The same where frames cannot be told apart. When a request ends, so much of its body may still
/// be on its way: what a window allows, and what is read of a refused body for a moment.
const MAX_UNFRAMED_CREDIT_BYTES: i32 = 64 << 20;
/// h2 reads so many bytes of heads, or more, before hyper tells of the first of their requests. What
/// is above the budget at one look only, and by no more than this, may be such heads.
const MAX_HEADS_AHEAD_BYTES: u64 = 4 << 20;
/// One early cancellation is forgiven in so many milliseconds: 20 a second.
const FORGIVEN_MILLIS: u64 = 50;

/// A connection younger than this may have its first request on its way.
const NEWCOMER_MILLIS: u64 = 500;

/// What is younger than this has not proven how often it comes: one request within a millisecond
/// is no more than one within this time.
const AGE_FOR_WORK_MILLIS: u64 = 2000;
const HOUR_MILLIS: u64 = 3_600_000;
/// Idle connections at or below this work rate (requests per hour) are evicted before those above.
const LITTLE: u64 = HOUR_MILLIS / AGE_FOR_WORK_MILLIS;

/// So many bytes are as much work as an answer.
const OF_WORK: u64 = 16 * 1024;

/// Where places are short, a connection that made no progress for so many seconds may be evicted,
/// in the middle of a response or of a request body. A receive window that is read at 64 KiB/s
/// opens again within two or three.
const STALLED_SECONDS: u8 = 4;

/// What the sweeper is to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Fine,
    /// It is to take no more requests.
    Close(Reason),
    /// It has lingered for long enough.
    EndLingering,
    /// It is to look whether its client is still there.
    Probe,
    /// Whoever writes is to say whether they still do.
    AskWriter,
    /// The client is told to begin no more requests (GOAWAY). Its connection ends for this reason,
    /// now or after a grace.
    Announce(End),
    End(End),
}

/// How and why a connection ends. Numbers in the unit of the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) reason: Reason,
    pub(crate) ending: CloseMode,
    pub(crate) phase: Phase,
    pub(crate) limit: u64,
    pub(crate) observed: u64,
}

/// When a connection is looked at. All in milliseconds of the guard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct When {
    pub(crate) now: u64,
    /// Since the sweeper's latest look at anything.
    pub(crate) passed: u64,
    pub(crate) opened: u64,
    /// The age at which this one is due.
    pub(crate) due: Option<u64>,
}

/// What a connection is at.
pub(crate) fn phase(sample: &ConnStats) -> Phase {
    shown(clock(sample), sample)
}

fn shown(clock: Phase, sample: &ConnStats) -> Phase {
    match clock {
        clock @ (Phase::Lingering | Phase::FirstHead) => clock,
        _ if sample.write_blocked => Phase::Writing,
        clock => clock,
    }
}

/// The same without the socket's part in [`Phase::Writing`], which has a clock of its own beside
/// the others: else a client could stop any of them by not reading for a moment.
fn clock(sample: &ConnStats) -> Phase {
    if sample.lingering {
        Phase::Lingering
    } else if sample.upgraded && !(sample.http2 && sample.in_flight > 0) {
        Phase::Upgraded
    } else if !sample.tracked {
        // Nobody tells of requests: silence is all that can be known.
        if sample.read == 0 {
            Phase::FirstHead
        } else {
            Phase::Working
        }
    } else if sample.in_flight > 0 {
        // On HTTP/2 the socket does not say that a client has shut its window.
        let all_wait = sample.http2 && !sample.upgraded && sample.waiting >= sample.in_flight;
        if all_wait {
            Phase::Writing
        } else {
            Phase::Working
        }
    } else if sample.requests == 0 {
        Phase::FirstHead
    } else if sample.body_left {
        // The handler may be reading it in a task of its own; else hyper closes the connection.
        Phase::RequestBody
    } else if sample.more_was_read {
        Phase::NextHead
    } else {
        Phase::Idle
    }
}

/// Whether bytes of a request body are to come, as far as is known, from a client that the socket
/// waits for.
fn awaits_body(sample: &ConnStats) -> bool {
    if sample.http2 {
        sample.uploading
    } else {
        (sample.body_left || sample.unmeasured) && sample.awaits_read
    }
}

/// What is to be done, and what is to be kept for the next look.
pub(crate) fn judge(
    limits: &Limits,
    when: When,
    sample: &ConnStats,
    closing: Option<Reason>,
    memory: SweepState,
) -> (SweepState, Finding) {
    let clock = match clock(sample) {
        Phase::NextHead if is_left_over(&memory, sample) => Phase::Idle,
        clock => clock,
    };
    let memory = watch(memory, clock, sample, when.now);
    let memory = watch_writes(memory, sample, when.now, limits.write_stall);
    let (mut memory, overhead) = watch_overhead(memory, sample, when.passed);
    let is_stalling = match clock {
        Phase::RequestBody => true,
        Phase::Working => awaits_body(sample),
        _ => false,
    };
    let stalled_for = if is_stalling {
        since(memory.since, when.now)
    } else {
        0
    };
    let stalled = blocked_for(&memory, when.now).max(stalled_for) / 1000;
    memory.stalled = u8::try_from(stalled).unwrap_or(u8::MAX);
    let finding = find(limits, when, clock, sample, closing, &memory, overhead);
    memory.over_budget = limits
        .max_overhead
        .is_some_and(|most| overhead > u64::from(most));
    if sample.goaway && matches!(finding, Finding::Close(_)) {
        // What is idle already has its time from now on, to hear of it.
        memory.since = when.now as u32;
    }
    // In good time before it is due: of a write that somebody gave up nothing waits.
    let is_due_next = || {
        let at_the_next_look = blocked_for(&memory, when.now).saturating_add(limits.tick_millis());
        at_the_next_look >= limits.write_stall
    };
    if sample.write_blocked && !memory.asked && finding == Finding::Fine && is_due_next() {
        memory.asked = true;
        return (memory, Finding::AskWriter);
    }
    (memory, finding)
}

/// Whether nothing has happened since it became idle on a connection that is at `rest`, and nothing
/// is due at its `age`: then [`judge`] would find nothing and keep what is kept.
#[inline]
pub(crate) fn is_quiet(
    limits: &Limits,
    now: u64,
    age: u64,
    rest: &IdleStats,
    memory: &SweepState,
) -> bool {
    let is_as_it_was = memory.phase == Phase::Idle as u8 + 1
        && memory.seen == rest.requests
        && memory.read == rest.read as u32
        && memory.written == rest.written as u32
        && memory.blocked_since == 0;
    is_as_it_was
        && !memory.in_debt
        && since(memory.since, now) < limits.idle - goaway_grace(limits.idle)
        && limits.is_young(age)
}

/// Whether what was read since the latest request ended may still be of it: what its handler left
/// of its body, the end of its chunks, an empty line. Only what comes after a look at the idle
/// connection is a head for certain.
fn is_left_over(memory: &SweepState, sample: &ConnStats) -> bool {
    let was = |phase: Phase| memory.phase == phase as u8 + 1;
    let has_more = was(Phase::Idle) && memory.read != sample.read as u32;
    memory.seen != sample.requests || !(was(Phase::NextHead) || has_more)
}

/// Keeps since when the connection has been in this phase without progress.
fn watch(mut memory: SweepState, clock: Phase, sample: &ConnStats, now: u64) -> SweepState {
    let (read, written) = (sample.read as u32, sample.written as u32);
    let phase = clock as u8 + 1;
    let seen = match clock {
        Phase::Upgraded if sample.framed => sample.data,
        Phase::Upgraded => read.wrapping_add(written),
        // Requests that do not move either are no progress.
        Phase::Writing => 0,
        // Since when it does: what comes moves only the time of the last progress.
        Phase::Lingering if memory.phase == phase => memory.seen,
        Phase::Lingering => now as u32,
        _ => sample.requests,
    };
    if memory.phase != phase || memory.seen != seen || has_progress(&memory, clock, sample, now) {
        memory.phase = phase;
        memory.seen = seen;
        memory.since = now as u32;
        memory.read = read;
        memory.written = written;
    }
    memory
}

/// Whether enough was done since the time that is kept, in a phase that lasts on.
fn has_progress(memory: &SweepState, clock: Phase, sample: &ConnStats, now: u64) -> bool {
    let sent = u64::from((sample.written as u32).wrapping_sub(memory.written));
    let got = u64::from((sample.read as u32).wrapping_sub(memory.read));
    let least = progress_in(since(memory.since, now)).max(LEAST_PROGRESS_BYTES);
    match clock {
        Phase::Idle => sent >= least.saturating_add(got.saturating_mul(4)),
        Phase::RequestBody | Phase::Lingering => got >= least,
        // What comes may be the rest of a body.
        Phase::NextHead => sample.unmeasured && got >= least,
        // Beyond the answers to PING and SETTINGS.
        Phase::Upgraded if sample.framed => {
            let data = u64::from(sample.data.wrapping_sub(memory.seen));
            data > 0 || sent > got
        }
        // A body that the handler does not ask for is not its client's delay.
        Phase::Working if sample.body_left && !sample.http2 => !sample.awaits_read || got >= least,
        Phase::Working if awaits_body(sample) => sent.saturating_add(got) >= least,
        _ => false,
    }
}

/// How many bytes are progress in so many milliseconds.
fn progress_in(millis: u64) -> u64 {
    millis.saturating_mul(PROGRESS_PER_SECOND) / 1000
}

/// Keeps since when too little was taken of the bytes that wait, for the socket or for windows of
/// HTTP/2: a byte now and then is no progress. A writer that was asked has the rest of the time to
/// say that it still waits.
fn watch_writes(mut memory: SweepState, sample: &ConnStats, now: u64, most: u64) -> SweepState {
    let sent = sent(sample);
    let windows = if has_shut_windows(sample) {
        u64::from(sample.waiting)
    } else {
        0
    };
    if sample.write_blocked || windows > 0 {
        let taken = sent.wrapping_sub(memory.written_blocked) as i32;
        let least = progress_in(blocked_for(&memory, now)).max(1);
        let least = least.saturating_mul(windows.clamp(1, MAX_WINDOWS_COUNTED));
        let is_taken = u64::try_from(taken).is_ok_and(|taken| taken >= least);
        if memory.blocked_since == 0 || is_taken {
            // One more than it is, because 0 says that nothing waits.
            memory.blocked_since = (now as u32).wrapping_add(1).max(1);
            memory.written_blocked = sent;
            memory.asked = false;
        }
    } else if !sample.asked || blocked_for(&memory, now) >= most {
        memory.blocked_since = 0;
        memory.asked = false;
    }
    memory
}

/// Whether a response waits for a window of HTTP/2, of which the socket says nothing. Other streams
/// may be at work beside it.
fn has_shut_windows(sample: &ConnStats) -> bool {
    sample.http2 && !sample.upgraded && sample.waiting > 0
}

/// Bytes that were sent. On HTTP/2, beyond the answers to what the client sends besides DATA.
fn sent(sample: &ConnStats) -> u32 {
    let written = sample.written as u32;
    if sample.http2 {
        written.wrapping_sub((sample.read as u32).wrapping_sub(sample.data))
    } else {
        written
    }
}

/// How long too little was taken of the bytes that wait.
fn blocked_for(memory: &SweepState, now: u64) -> u64 {
    match memory.blocked_since {
        0 => 0,
        blocked => since(blocked.wrapping_sub(1), now),
    }
}

/// Bytes of HTTP/2 that brought no request on and are not paid for, and what is to be kept of
/// them. DATA is none of them: windows bound it, and what is read of a refused body is the server's
/// own doing. Where frames cannot be told apart, nothing is known while a body comes in.
#[inline]
fn watch_overhead(mut memory: SweepState, sample: &ConnStats, passed: u64) -> (SweepState, u64) {
    let position = position(sample.read, sample.data, sample.written, sample.requests);
    let mut debt = position.wrapping_sub(memory.mark) as i32;
    let max_credit = max_credit(sample.framed);
    if sample.uploading && !sample.framed {
        debt = -max_credit;
    } else if debt > 0 {
        let passed = i32::try_from(passed.saturating_mul(OVERHEAD_PER_MILLI)).unwrap_or(i32::MAX);
        debt = (debt - passed).max(0);
    } else {
        debt = debt.max(-max_credit);
    }
    memory.mark = position.wrapping_sub(debt as u32);
    memory.in_debt = debt > 0;
    (memory, debt.max(0) as u64)
}

#[inline]
fn max_credit(is_framed: bool) -> i32 {
    if is_framed {
        MAX_CREDIT_BYTES
    } else {
        MAX_UNFRAMED_CREDIT_BYTES
    }
}

/// How far the bytes that were read, without DATA, are beyond those that are paid for. The low half
/// is enough: of what is between two looks.
#[inline]
fn position(read: u64, data: u32, written: u64, requests: u32) -> u32 {
    let requests = u64::from(requests).wrapping_mul(OVERHEAD_PER_REQUEST);
    let paid = requests.wrapping_add(written / SENT_FOR_ONE);
    (read as u32).wrapping_sub(data).wrapping_sub(paid as u32)
}

/// How many early cancellations are forgiven between the latest look, `passed` milliseconds ago,
/// and now.
pub(crate) fn forgiven(now: u64, passed: u64) -> u16 {
    let before = now.saturating_sub(passed);
    u16::try_from(now / FORGIVEN_MILLIS - before / FORGIVEN_MILLIS).unwrap_or(u16::MAX)
}

fn find(
    limits: &Limits,
    when: When,
    clock: Phase,
    sample: &ConnStats,
    closing: Option<Reason>,
    memory: &SweepState,
    overhead: u64,
) -> Finding {
    let age = when.now.saturating_sub(when.opened);
    let here_for = since(memory.since, when.now);
    let phase = shown(clock, sample);
    let end = |reason, ending, limit, observed| {
        Finding::End(End {
            reason,
            ending,
            phase,
            limit,
            observed,
        })
    };
    let announce = |reason, ending, limit, observed| {
        Finding::Announce(End {
            reason,
            ending,
            phase,
            limit,
            observed,
        })
    };
    if clock == Phase::Lingering {
        let lingers_for = since(memory.seen, when.now);
        let is_over = here_for >= LINGER_QUIET_MILLIS || lingers_for >= LINGER_MILLIS;
        return if is_over {
            Finding::EndLingering
        } else {
            Finding::Fine
        };
    }
    if clock == Phase::FirstHead && age >= limits.first_request {
        return end(
            Reason::FirstRequest,
            CloseMode::Reset,
            limits.first_request,
            age,
        );
    }
    if let Some(most) = limits.max_overhead.map(u64::from)
        && sample.tracked
        && (!sample.upgraded || sample.http2 && sample.framed)
        && (sample.http2 || sample.requests == 0)
        && overhead > most
        && (memory.over_budget || overhead > most.saturating_add(MAX_HEADS_AHEAD_BYTES))
    {
        return end(Reason::NoProgress, CloseMode::Reset, most, overhead);
    }
    let early = u64::from(sample.early);
    let ended = u64::from(sample.answered).saturating_add(sample.cancelled.into());
    if let Some(most) = limits.max_cancelled.map(u64::from)
        && early >= most
        && u64::from(sample.cancelled) > ended / 2
    {
        let reason = Reason::CancelledRequests;
        if !sample.goaway || early >= most.saturating_mul(2) {
            return end(reason, CloseMode::Reset, most, early);
        }
        if closing.is_none() {
            return announce(reason, CloseMode::Reset, most, early);
        }
    }
    let blocked_for = blocked_for(memory, when.now);
    if memory.asked && sample.write_blocked && blocked_for >= limits.write_stall {
        return end(
            Reason::WriteStall,
            CloseMode::Reset,
            limits.write_stall,
            blocked_for,
        );
    }
    if clock == Phase::Writing && blocked_for >= limits.write_stall {
        return end(
            Reason::WindowStall,
            CloseMode::Reset,
            limits.write_stall,
            blocked_for,
        );
    }
    if clock == Phase::NextHead && here_for >= limits.head {
        return end(Reason::SlowHead, CloseMode::Reset, limits.head, here_for);
    }
    // What waits for the client has the longer of both times.
    let idle = if sample.write_blocked {
        limits.idle.max(limits.write_stall)
    } else {
        limits.idle
    };
    if matches!(clock, Phase::Idle | Phase::RequestBody) {
        if here_for >= idle {
            return end(Reason::Idle, CloseMode::Graceful, idle, here_for);
        }
        // A request may be on its way: GOAWAY tells its client that it was not looked at.
        if sample.goaway && closing.is_none() && here_for >= idle - goaway_grace(idle) {
            return announce(Reason::Idle, CloseMode::Graceful, idle, here_for);
        }
    }
    if clock == Phase::Upgraded && here_for >= limits.upgraded_idle {
        return end(
            Reason::Idle,
            CloseMode::Graceful,
            limits.upgraded_idle,
            here_for,
        );
    }
    if clock == Phase::Upgraded && !sample.http2 {
        return Finding::Fine;
    }
    // Not at once: what looks idle may wait for an HTTP/2 window with the rest of its answer, or
    // have the next request on its way.
    if let Some(reason) = closing
        && clock == Phase::Idle
        && !sample.write_blocked
        && here_for >= closing_quiet(limits, sample, reason)
    {
        let (limit, observed) = match reason {
            Reason::MaxRequests => (
                limits.max_requests.unwrap_or(u32::MAX).into(),
                sample.requests.into(),
            ),
            Reason::KeepAlivePerClient => {
                let most = u64::from(limits.keep_alive.unwrap_or(u32::MAX));
                (most, most.saturating_add(1))
            }
            _ => (when.due.unwrap_or(age), age),
        };
        return end(reason, CloseMode::Graceful, limit, observed);
    }
    if let Some(due) = when.due.filter(|due| age >= *due) {
        if limits
            .age_grace
            .is_some_and(|grace| age >= due.saturating_add(grace))
        {
            let ending = if clock == Phase::Idle {
                CloseMode::Graceful
            } else {
                CloseMode::Reset
            };
            return end(Reason::MaxAge, ending, due, age);
        }
        if closing.is_none() {
            return Finding::Close(Reason::MaxAge);
        }
    }
    match limits.probe {
        // A client that has its answer may go while somebody still reads what he sent.
        Some(every) if clock == Phase::Working && sample.in_flight > 0 && !sample.http2 => {
            // A body that the handler does not ask for moves the time of the last progress.
            let at = if sample.body_left { age } else { here_for };
            // Whether a multiple of it went by since the latest look.
            let before = at.saturating_sub(when.passed);
            if at / every > before / every {
                Finding::Probe
            } else {
                Finding::Fine
            }
        }
        _ => Finding::Fine,
    }
}

/// How long before the idle timeout a client of HTTP/2 is told.
fn goaway_grace(idle: u64) -> u64 {
    GOAWAY_GRACE_MILLIS.min(idle / 2)
}

/// How long a connection that is to take no more requests must be idle before it ends. Where its
/// client was not told, a pool may use it again at any moment.
fn closing_quiet(limits: &Limits, sample: &ConnStats, reason: Reason) -> u64 {
    if reason == Reason::Idle {
        return limits.idle;
    }
    let is_short = matches!(reason, Reason::KeepAlivePerClient | Reason::Shutdown);
    let quiet = if sample.goaway || is_short {
        CLOSING_QUIET_MILLIS
    } else if sample.http2 {
        UNTOLD_QUIET_MILLIS
    } else {
        // The next response says `Connection: close`.
        limits.idle
    };
    quiet.min(limits.idle)
}

/// Whether nothing has been in flight for a while on a connection that had a request.
#[inline]
pub(crate) fn is_kept(memory: &SweepState, now: u64) -> bool {
    let is_idle = [Phase::Idle, Phase::NextHead].map(|phase| phase as u8 + 1);
    is_idle.contains(&memory.phase) && since(memory.since, now) >= KEPT_MILLIS
}

/// How long ago that was, within 24 days: no deadline is that far away.
fn since(then: u32, now: u64) -> u64 {
    ((now as u32).wrapping_sub(then) as i32).max(0) as u64
}

/// How readily a connection can be spared, the lowest first: its class, its work for its age, and
/// the other way round its age.
pub(crate) type Rank = (u8, u64, u64);

/// From this class on nobody is kept ready for sparing: by the time he is needed, others have come
/// who can be spared more readily.
pub(crate) const RELUCTANT: u8 = 5;
/// So many classes there are.
pub(crate) const CLASSES: u8 = 7;
/// The classes of connections that did something, or had no time to.
pub(crate) const DID_SOMETHING: [u8; 3] = [3, 5, 6];
/// The class of connections above the share that their client, or its network, has where places are
/// short, whatever they do.
pub(crate) const EXCESS: u8 = 2;

/// Whether its first request may be on its way.
pub(crate) fn is_newcomer(sample: &ConnStats, age: u64) -> bool {
    age < NEWCOMER_MILLIS && phase(sample) == Phase::FirstHead
}

/// The rank of a connection of this age; `None` if it cannot be spared. Where there are `many`
/// newcomers they are not spared before others.
pub(crate) fn spare(sample: &ConnStats, age: u64, many: bool) -> Option<Rank> {
    let oldest_first = u64::MAX - age;
    match phase(sample) {
        Phase::Lingering => Some((0, 0, oldest_first)),
        Phase::FirstHead if !many && is_newcomer(sample, age) => Some((5, LITTLE, oldest_first)),
        Phase::FirstHead => Some((1, 0, oldest_first)),
        Phase::NextHead | Phase::Idle if sample.answered == 0 => Some((1, 0, oldest_first)),
        Phase::NextHead | Phase::Idle => {
            let work = work_for_age(sample, age);
            Some((if work > LITTLE { 5 } else { 3 }, work, oldest_first))
        }
        // The longest without progress first.
        Phase::Writing | Phase::RequestBody if sample.stalled >= STALLED_SECONDS => {
            Some((4, longest_first(sample), oldest_first))
        }
        Phase::Working if sample.stalled >= STALLED_SECONDS => {
            // Of a body whose end is unknown, or on HTTP/2, more may be to come, or it is whole and
            // the handler works, or a gRPC stream is quiet: what a connection did counts for it.
            let is_certain = sample.body_left || has_shut_windows(sample);
            if is_certain || awaits_body(sample) && sample.answered == 0 {
                Some((4, longest_first(sample), oldest_first))
            } else if awaits_body(sample) {
                Some((6, work_for_age(sample, age), longest_first(sample)))
            } else {
                None
            }
        }
        // There is a request in work, or, as far as anybody knows, there may be.
        _ => None,
    }
}

fn longest_first(sample: &ConnStats) -> u64 {
    u64::from(u8::MAX - sample.stalled)
}

/// Answers, and the bytes of large ones, for each hour of its life.
fn work_for_age(sample: &ConnStats, age: u64) -> u64 {
    let work = u64::from(sample.answered).saturating_add(sample.written / OF_WORK);
    work.saturating_mul(HOUR_MILLIS) / age.max(AGE_FOR_WORK_MILLIS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConnGuard;
    use std::time::Duration;

    fn limits() -> Limits {
        let guard = ConnGuard::builder().max_age(Duration::from_secs(1000));
        let guard = guard.write_stall(Duration::from_secs(30)).build().unwrap();
        guard.shared().limits.clone()
    }

    fn sample() -> ConnStats {
        ConnStats {
            tracked: true,
            ..ConnStats::default()
        }
    }

    /// Looks every 250 ms from 0 on, at what `at` makes of the time, until something is found.
    fn first_finding(until: u64, at: impl Fn(u64) -> ConnStats) -> Option<(u64, Finding)> {
        let limits = limits();
        let mut memory = SweepState::default();
        (0..=until / 250).map(|tick| tick * 250).find_map(|now| {
            let when = When {
                now,
                passed: 250,
                opened: 0,
                due: None,
            };
            let (kept, finding) = judge(&limits, when, &at(now), None, memory);
            memory = kept;
            // Whoever is asked still writes.
            let is_found = !matches!(finding, Finding::Fine | Finding::AskWriter);
            is_found.then_some((now, finding))
        })
    }

    fn ended(found: Option<(u64, Finding)>) -> Option<(u64, Reason, CloseMode)> {
        match found {
            Some((now, Finding::End(End { reason, ending, .. }))) => Some((now, reason, ending)),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    /// Every combination of what a sample can say, possible or not.
    fn all_samples() -> impl Iterator<Item = ConnStats> {
        (0..1u32 << 18).map(|bits| {
            let bit = |at: u32| bits >> at & 1 == 1;
            ConnStats {
                tracked: true,
                lingering: bit(0),
                upgraded: bit(1),
                http2: bit(2),
                framed: bit(3),
                goaway: bit(4),
                requests: bit(5).into(),
                in_flight: bit(6).into(),
                waiting: bit(7).into(),
                uploading: bit(8),
                answered: bit(9).into(),
                early: u16::from(bit(10)) * 300,
                more_was_read: bit(11),
                body_left: bit(12),
                unmeasured: bit(13),
                awaits_read: bit(14),
                write_blocked: bit(15),
                read: u64::from(bit(16)) * 5000,
                data: u32::from(bit(17)) * 3000,
                ..ConnStats::default()
            }
        })
    }

    #[test]
    fn every_state_without_a_request_in_flight_has_a_deadline() {
        // The longest: an upgraded connection, the grace after GOAWAY, and a look of each.
        let most = 300_000 + GOAWAY_GRACE_MILLIS + 4 * 20_000;
        let limits = limits();
        for sample in all_samples().filter(|sample| sample.in_flight == 0) {
            let (mut memory, mut closing) = (SweepState::default(), None);
            let end = (0..=most / 20_000).map(|look| look * 20_000).find(|now| {
                let when = When {
                    now: *now,
                    passed: 20_000,
                    opened: 0,
                    due: None,
                };
                let (kept, finding) = judge(&limits, when, &sample, closing, memory);
                memory = kept;
                if let Finding::Announce(End { reason, .. }) = finding {
                    closing = Some(reason);
                }
                matches!(finding, Finding::End(_) | Finding::EndLingering)
            });
            assert!(end.is_some(), "{sample:?}");
        }
    }

    #[test]
    fn every_state_without_progress_for_some_seconds_can_be_evicted() {
        let limits = limits();
        for sample in all_samples() {
            let mut memory = SweepState::default();
            for now in (0..=5000).step_by(1000) {
                let when = When {
                    now,
                    passed: 1000,
                    opened: 0,
                    due: None,
                };
                memory = judge(&limits, when, &sample, None, memory).0;
            }
            // A handler works, or may; or it is a quiet upgrade, of which there are not many.
            let waits_for_client =
                sample.write_blocked || awaits_body(&sample) || sample.http2 && sample.waiting > 0;
            let is_at_work = sample.in_flight > 0 && !waits_for_client;
            let is_quiet = sample.upgraded && !sample.write_blocked;
            let sample = ConnStats {
                stalled: memory.stalled,
                ..sample
            };
            let is_exempt = (is_at_work || is_quiet) && !sample.lingering;
            assert!(
                is_exempt || spare(&sample, 5000, false).is_some(),
                "{sample:?}"
            );
        }
    }

    #[test]
    fn a_body_whose_end_is_unknown_leaves_the_time_of_a_head_for_a_dripped_one() {
        let dripping = |now: u64| ConnStats {
            requests: 1,
            answered: 1,
            unmeasured: true,
            read: 1000 + now.saturating_sub(1000) / 1000,
            more_was_read: now >= 2000,
            ..sample()
        };
        let found = first_finding(100_000, dripping);
        assert_eq!(
            ended(found),
            Some((12_000, Reason::SlowHead, CloseMode::Reset))
        );
        // The rest of its chunks, which a task of the handler's reads.
        let uploading = |now: u64| ConnStats {
            read: 1000 + now / 2,
            ..dripping(now)
        };
        assert_eq!(first_finding(100_000, |now| uploading(now * 2)), None);
    }

    #[test]
    fn a_body_that_is_still_to_come_after_its_response_has_the_idle_time() {
        let waiting = |read| ConnStats {
            requests: 1,
            answered: 1,
            body_left: true,
            awaits_read: true,
            read,
            ..sample()
        };
        let idle = Some((65_000, Reason::Idle, CloseMode::Graceful));
        assert_eq!(ended(first_finding(100_000, |_| waiting(7))), idle);
        assert_eq!(
            ended(first_finding(100_000, |now| waiting(now / 1000))),
            idle
        );
        assert_eq!(first_finding(300_000, waiting), None);
    }

    #[test]
    fn bytes_that_make_no_head_do_not_move_the_first_deadline() {
        let found = first_finding(20_000, |now| ConnStats {
            read: now,
            ..sample()
        });
        assert_eq!(
            ended(found),
            Some((10_000, Reason::FirstRequest, CloseMode::Reset))
        );
        // Nor does a full socket.
        let blocked = |now| ConnStats {
            write_blocked: now % 500 == 0,
            written: now,
            ..sample()
        };
        let found = first_finding(20_000, blocked);
        assert_eq!(
            ended(found),
            Some((10_000, Reason::FirstRequest, CloseMode::Reset))
        );
    }

    #[test]
    fn a_later_head_has_its_time_from_its_first_byte() {
        let dripping = |now| ConnStats {
            requests: 1,
            answered: 1,
            read: now,
            more_was_read: now >= 30_000,
            ..sample()
        };
        let found = first_finding(50_000, dripping);
        assert_eq!(
            ended(found),
            Some((40_000, Reason::SlowHead, CloseMode::Reset))
        );
    }

    #[test]
    fn what_is_left_of_a_body_is_no_head() {
        // 7 bytes of it are read after the answer, before anybody looks.
        let done = ConnStats {
            requests: 1,
            answered: 1,
            read: 7,
            more_was_read: true,
            ..sample()
        };
        let found = first_finding(100_000, |_| done);
        assert_eq!(
            ended(found),
            Some((65_000, Reason::Idle, CloseMode::Graceful))
        );
        // An attacker who sends a byte of a head as early as that has no more of it than whoever
        // is idle, and less with the second byte.
        let found = first_finding(100_000, |now| ConnStats {
            read: 7 + now / 20_000,
            ..done
        });
        assert_eq!(
            ended(found),
            Some((30_000, Reason::SlowHead, CloseMode::Reset))
        );
    }

    #[test]
    fn a_body_read_on_after_its_answer_is_work_until_its_end() {
        let uploading = |now| ConnStats {
            requests: 1,
            answered: 1,
            read: now,
            body_left: now < 100_000,
            more_was_read: now > 100_000,
            ..sample()
        };
        assert_eq!(spare(&uploading(90_000), 0, false), None);
        // Its client has the answer and may go: nobody asks whether he is there.
        let found = first_finding(200_000, uploading);
        assert_eq!(
            ended(found),
            Some((110_250, Reason::SlowHead, CloseMode::Reset))
        );
    }

    #[test]
    fn answers_to_ping_do_not_count_and_an_answer_on_its_way_does() {
        let idle = |read, written| ConnStats {
            requests: 1,
            answered: 1,
            http2: true,
            read,
            written,
            ..sample()
        };
        // A PING and its answer in every look, one in each direction.
        let found = first_finding(100_000, |now| idle(now / 250 * 34, now / 250 * 34));
        assert_eq!(
            ended(found),
            Some((65_000, Reason::Idle, CloseMode::Graceful))
        );
        // 4 KiB/s of an answer whose body hyper has taken whole, and the window updates for it.
        let found = first_finding(300_000, |now| idle(now / 250 * 13, now / 250 * 1024));
        assert_eq!(found, None);
        // A KiB now and then of an answer whose window is all but shut.
        let found = first_finding(100_000, |now| idle(now / 10_000 * 13, now / 10_000 * 2000));
        assert_eq!(
            ended(found),
            Some((65_000, Reason::Idle, CloseMode::Graceful))
        );
        // Up to the limit and no further.
        let found = first_finding(100_000, |now| idle(0, now.min(20_000) / 250 * 1024));
        assert_eq!(
            ended(found),
            Some((85_000, Reason::Idle, CloseMode::Graceful))
        );
    }

    #[test]
    fn a_response_stalls_unless_500_bytes_a_second_are_taken() {
        let writing = |written| ConnStats {
            requests: 1,
            in_flight: 1,
            write_blocked: true,
            http2: true,
            written,
            ..sample()
        };
        // In steps, as a receive window opens.
        assert_eq!(
            first_finding(200_000, |now| writing(now / 29_000 * 14_500)),
            None
        );
        let stalled = Some((30_000, Reason::WriteStall, CloseMode::Reset));
        assert_eq!(
            ended(first_finding(100_000, |now| writing(now / 1000))),
            stalled
        );
        let found = first_finding(100_000, |_| writing(7));
        assert_eq!(
            ended(found),
            Some((30_000, Reason::WriteStall, CloseMode::Reset))
        );
    }

    #[test]
    fn how_long_nothing_was_taken_is_kept_in_seconds() {
        let limits = Limits {
            write_stall: 3_600_000,
            ..limits()
        };
        let mut memory = SweepState::default();
        let mut stalled = |now, written| {
            let sample = ConnStats {
                requests: 1,
                in_flight: 1,
                write_blocked: true,
                ..sample()
            };
            let sample = ConnStats { written, ..sample };
            let when = When {
                now,
                passed: 250,
                opened: 0,
                due: None,
            };
            memory = judge(&limits, when, &sample, None, memory).0;
            memory.stalled
        };
        assert_eq!(
            [stalled(1000, 7), stalled(1999, 7), stalled(2000, 7)],
            [0, 0, 1]
        );
        assert_eq!(
            [
                stalled(9000, 8),
                stalled(9001, 5000),
                stalled(1_000_000, 5000)
            ],
            [8, 0, 255]
        );
    }

    #[test]
    fn a_write_that_was_given_up_is_no_stall_and_one_that_was_not_is() {
        let limits = limits();
        let blocked = ConnStats {
            upgraded: true,
            write_blocked: true,
            ..sample()
        };
        let asked = ConnStats {
            write_blocked: false,
            asked: true,
            ..blocked
        };
        // When it was asked, how it ended, and when, if it answers so much later.
        let ends = |answers_after: u64| {
            let mut memory = SweepState::default();
            let mut asked_at = None;
            for now in (0..40_000).step_by(250) {
                let waits = asked_at.is_some_and(|at| now < answers_after.saturating_add(at));
                let sample = if waits { asked } else { blocked };
                let when = When {
                    now,
                    passed: 250,
                    opened: 0,
                    due: None,
                };
                let (kept, finding) = judge(&limits, when, &sample, None, memory);
                memory = kept;
                match finding {
                    Finding::AskWriter => asked_at = Some(now),
                    Finding::Fine => {}
                    found => return (asked_at, ended(Some((now, found)))),
                }
            }
            (asked_at, None)
        };
        let stalled = Some((30_000, Reason::WriteStall, CloseMode::Reset));
        assert_eq!(ends(0), (Some(29_750), stalled));
        // Nothing is heard: nobody writes any more.
        assert_eq!(ends(u64::MAX), (Some(29_750), None));
        // Whoever writes again later has all of the time again.
        assert_eq!(ends(5000), (Some(29_750), None));
    }

    #[test]
    fn who_cancels_most_requests_at_once_is_reset_and_who_cancels_many_is_not() {
        let cancelling = |early, answered| ConnStats {
            requests: 1000,
            early,
            answered,
            cancelled: early.into(),
            http2: true,
            ..sample()
        };
        let found = |early, answered| first_finding(0, |_| cancelling(early, answered));
        let reset = Some((0, Reason::CancelledRequests, CloseMode::Reset));
        assert_eq!(ended(found(200, 199)), reset);
        assert_eq!(found(200, 200), None);
        assert_eq!(found(199, 0), None); // A page that is left.
        let late = ConnStats {
            early: 100,
            cancelled: 900,
            ..cancelling(0, 0)
        };
        assert_eq!(first_finding(0, |_| late), None); // Deadlines that pass.
    }

    #[test]
    fn bytes_that_bring_no_request_on_are_paid_for_by_time_requests_and_answers() {
        let http2 = |read| ConnStats {
            requests: 1,
            http2: true,
            read,
            ..sample()
        };
        // 32 KiB for the request, 4,000 for the look, and 256 KiB.
        let most = 256 * 1024 + 32 * 1024 + 4000;
        assert_eq!(first_finding(0, |_| http2(most)), None);
        let reset = |now| Some((now, Reason::NoProgress, CloseMode::Reset));
        // At one look they may be heads of which no request is known yet, at the next no more.
        assert_eq!(
            ended(first_finding(250, |_| http2(most + 4001))),
            reset(250)
        );
        let ahead = |now: u64| ConnStats {
            requests: 1 + now as u32,
            ..http2(4 << 20)
        };
        assert_eq!(first_finding(1000, ahead), None);
        assert_eq!(
            ended(first_finding(0, |_| http2(most + (4 << 20) + 1))),
            reset(0)
        );
        // 16 a millisecond are free for ever, and 17 are not.
        let steady = |rate: u64| {
            move |now| ConnStats {
                in_flight: 1,
                ..http2(now * rate)
            }
        };
        assert_eq!(first_finding(1_000_000, steady(16)), None);
        assert_eq!(ended(first_finding(1_000_000, steady(17))), reset(264_500));
        // The acknowledgements of a download, and a request in each look.
        let acknowledges = |now| ConnStats {
            in_flight: 1,
            written: now * 8000,
            ..http2(now * 1000)
        };
        assert_eq!(first_finding(1_000_000, acknowledges), None);
        let asks = |now| ConnStats {
            requests: now as u32 / 250 + 1,
            in_flight: 1,
            ..http2(now * 140)
        };
        assert_eq!(first_finding(1_000_000, asks), None);
        // An upload, and what comes besides it; on HTTP/1 there is nothing else.
        let uploads = |now| ConnStats {
            uploading: true,
            in_flight: 1,
            ..http2(now * 100_000)
        };
        assert_eq!(first_finding(100_000, uploads), None);
        // What is read of a refused upload for a moment, where its frames cannot be seen, and more.
        let tail = |most: u64| {
            move |now: u64| ConnStats {
                uploading: now == 0,
                ..http2(1_000_000 + now.saturating_mul(100_000).min(most))
            }
        };
        assert_eq!(first_finding(10_000, tail(64 << 20)), None);
        assert_eq!(ended(first_finding(10_000, tail(65 << 20))), reset(1000));
        // Where they can be seen, DATA is no overhead, and what comes beside it is.
        let framed = |now: u64, beside: u64| ConnStats {
            framed: true,
            uploading: true,
            in_flight: 1,
            data: (now * 1_000_000) as u32,
            ..http2(now * (1_000_000 + beside))
        };
        assert_eq!(first_finding(10_000, |now| framed(now, 16)), None);
        assert_eq!(
            ended(first_finding(10_000, |now| framed(now, 1000))),
            reset(750)
        );
        let refused = |now| ConnStats {
            uploading: false,
            in_flight: 0,
            ..framed(now, 16)
        };
        assert_eq!(first_finding(10_000, refused), None);
        let tunnel = |now| ConnStats {
            upgraded: true,
            ..framed(now, 1000)
        };
        assert_eq!(ended(first_finding(10_000, tunnel)), reset(750));
        // Beside a tunnel whose frames cannot be seen there may be anything.
        let tunnel = |now| ConnStats {
            upgraded: true,
            in_flight: 1,
            ..http2(now * 100_000)
        };
        assert_eq!(first_finding(4000, tunnel), None);
        let http1 = |now| ConnStats {
            http2: false,
            in_flight: 1,
            ..http2(now * 100_000)
        };
        assert_eq!(first_finding(4000, http1), None);
        // Before the first request there is nothing else either.
        let nothing = |now| ConnStats {
            read: now * 1000,
            ..sample()
        };
        assert_eq!(ended(first_finding(5000, nothing)), reset(750));
    }

    #[test]
    fn a_window_that_stays_shut_ends_the_connection_if_all_of_its_answers_wait() {
        let waiting = |read, written| ConnStats {
            requests: 3,
            in_flight: 2,
            waiting: 2,
            http2: true,
            read,
            written,
            ..sample()
        };
        let reset = Some((30_000, Reason::WindowStall, CloseMode::Reset));
        assert_eq!(ended(first_finding(60_000, |_| waiting(0, 0))), reset);
        // Nor do PING, updates of a byte, and streams that come to wait as well help.
        let pings = |now| ConnStats {
            requests: 3 + now as u32,
            ..waiting(now * 2, now * 2)
        };
        assert_eq!(ended(first_finding(60_000, pings)), reset);
        // 4 KiB a second out of large pieces.
        assert_eq!(
            first_finding(600_000, |now| waiting(now / 20, now * 4)),
            None
        );
        // Nor does a small request now and then that is answered, or one at work for a moment.
        let small = |now| ConnStats {
            requests: 3 + now as u32 / 1000,
            in_flight: if now % 2000 == 0 { 3 } else { 2 },
            ..waiting(now / 10, now / 10 + now / 5)
        };
        assert_eq!(
            ended(first_finding(60_000, small)).map(|(_, why, _)| why),
            reset.map(|r| r.1)
        );
        // One at work, one that has nothing to give: others of the connection are not to be cut.
        let one_works = |_| ConnStats {
            waiting: 1,
            ..waiting(0, 0)
        };
        assert_eq!(first_finding(600_000, one_works), None);
        let beside_a_tunnel = |_| ConnStats {
            upgraded: true,
            ..waiting(0, 0)
        };
        assert_eq!(first_finding(600_000, beside_a_tunnel), None);
    }

    #[test]
    fn requests_beside_a_tunnel_of_http2_are_requests() {
        let beside = |in_flight| ConnStats {
            requests: 2,
            upgraded: true,
            http2: true,
            in_flight,
            ..sample()
        };
        assert_eq!(
            [phase(&beside(1)), phase(&beside(0))],
            [Phase::Working, Phase::Upgraded]
        );
        assert_eq!(
            phase(&ConnStats {
                http2: false,
                ..beside(1)
            }),
            Phase::Upgraded
        );
    }

    #[test]
    fn whoever_lets_the_socket_fill_up_now_and_then_is_idle_all_the_same() {
        let found = first_finding(100_000, |now| ConnStats {
            requests: 1,
            answered: 1,
            http2: true,
            read: now,
            written: now,
            write_blocked: now % 1000 == 0,
            ..sample()
        });
        assert_eq!(
            ended(found),
            Some((65_000, Reason::Idle, CloseMode::Graceful))
        );
    }

    #[test]
    fn a_closing_connection_is_not_ended_while_its_last_answer_goes_out() {
        // A window of 16 KiB that is opened by 13 bytes five times a second.
        let limits = limits();
        let mut memory = SweepState::default();
        for now in (0..60_000).step_by(250) {
            let (read, written) = (now / 200 * 13, now / 200 * 16_384);
            let sample = ConnStats {
                requests: 1,
                answered: 1,
                http2: true,
                ..sample()
            };
            let sample = ConnStats {
                read,
                written,
                ..sample
            };
            let when = When {
                now,
                passed: 250,
                opened: 0,
                due: None,
            };
            let (kept, finding) = judge(&limits, when, &sample, Some(Reason::MaxRequests), memory);
            memory = kept;
            assert_eq!(finding, Finding::Fine, "{now}");
        }
    }

    #[test]
    fn without_accounting_only_silence_from_the_start_is_cut() {
        let untracked = |read| ConnStats {
            read,
            ..ConnStats::default()
        };
        let found = first_finding(20_000, |_| untracked(0));
        assert_eq!(
            ended(found),
            Some((10_000, Reason::FirstRequest, CloseMode::Reset))
        );
        assert_eq!(first_finding(500_000, |_| untracked(1)), None);
    }

    #[test]
    fn an_upgraded_connection_has_its_own_silence_and_no_age() {
        let upgraded = |read| ConnStats {
            requests: 1,
            upgraded: true,
            read,
            ..sample()
        };
        let found = first_finding(400_000, |now| upgraded(now.min(50_000)));
        assert_eq!(
            ended(found),
            Some((350_000, Reason::Idle, CloseMode::Graceful))
        );
        let limits = limits();
        let when = When {
            now: 10_000_000,
            passed: 250,
            opened: 0,
            due: Some(1_000_000),
        };
        let (_, finding) = judge(&limits, when, &upgraded(7), None, SweepState::default());
        assert_eq!(finding, Finding::Fine);
    }

    #[test]
    fn age_first_closes_then_ends_what_is_idle_and_then_everything_if_asked_to() {
        let limits = Limits {
            age_grace: Some(30_000),
            ..limits()
        };
        let working = ConnStats {
            requests: 1,
            in_flight: 1,
            http2: true,
            ..sample()
        };
        let idle = ConnStats {
            requests: 1,
            answered: 1,
            http2: true,
            ..sample()
        };
        let at = |now, sample, closing| {
            let when = When {
                now,
                passed: 250,
                opened: 0,
                due: Some(1_000_000),
            };
            judge(&limits, when, sample, closing, SweepState::default()).1
        };
        assert_eq!(at(999_999, &working, None), Finding::Fine);
        assert_eq!(
            at(1_000_000, &working, None),
            Finding::Close(Reason::MaxAge)
        );
        let closing = Some(Reason::MaxAge);
        assert_eq!(at(1_000_250, &working, closing), Finding::Fine);
        let ending = |finding| match finding {
            Finding::End(End { reason, ending, .. }) => (reason, ending),
            other => panic!("{other:?}"),
        };
        let when = When {
            now: 1_000_250,
            passed: 250,
            opened: 0,
            due: Some(1_000_000),
        };
        let (memory, finding) = judge(&limits, when, &idle, closing, SweepState::default());
        assert_eq!(finding, Finding::Fine);
        let when = When {
            now: 1_029_999,
            ..when
        };
        assert_eq!(
            judge(&limits, when, &idle, closing, memory).1,
            Finding::Fine
        );
        let when = When {
            now: 1_030_250,
            ..when
        };
        let finish = (Reason::MaxAge, CloseMode::Graceful);
        assert_eq!(
            ending(judge(&limits, when, &idle, closing, memory).1),
            finish
        );
        let reset = (Reason::MaxAge, CloseMode::Reset);
        assert_eq!(ending(at(1_030_000, &working, closing)), reset);
        let limits = Limits {
            age_grace: None,
            ..limits
        };
        let when = When {
            now: 90_000_000,
            passed: 250,
            opened: 0,
            due: Some(1_000_000),
        };
        let (_, finding) = judge(&limits, when, &working, closing, SweepState::default());
        assert_eq!(finding, Finding::Fine);
    }

    #[test]
    fn what_waits_for_the_client_is_not_cut_off_by_age_and_has_the_longer_time() {
        let limits = Limits {
            idle: 1000,
            ..limits()
        };
        let waiting = ConnStats {
            requests: 1,
            answered: 1,
            write_blocked: true,
            ..sample()
        };
        let at = |now, sample, closing| {
            let when = When {
                now,
                passed: 250,
                opened: 0,
                due: None,
            };
            let (memory, _) = judge(
                &limits,
                When { now: 0, ..when },
                sample,
                None,
                SweepState::default(),
            );
            judge(&limits, when, sample, closing, memory).1
        };
        assert_eq!(
            at(29_999, &waiting, Some(Reason::MaxRequests)),
            Finding::AskWriter
        );
        let idle = ConnStats {
            write_blocked: false,
            ..waiting
        };
        assert!(matches!(
            at(1000, &idle, None),
            Finding::End(End {
                reason: Reason::Idle,
                ..
            })
        ));
        let limits = Limits {
            idle: 10_000,
            ..limits
        };
        let at = |now, sample, closing| {
            let when = When {
                now,
                passed: 250,
                opened: 0,
                due: None,
            };
            let (memory, _) = judge(
                &limits,
                When { now: 0, ..when },
                sample,
                None,
                SweepState::default(),
            );
            judge(&limits, when, sample, closing, memory).1
        };
        // Until the idle timeout: the client may be about to ask for the last time.
        assert_eq!(at(9999, &idle, Some(Reason::MaxRequests)), Finding::Fine);
        let told = ConnStats {
            goaway: true,
            ..idle
        };
        let shares = Some(Reason::KeepAlivePerClient);
        assert_eq!(at(4999, &told, shares), Finding::Fine);
        for (sample, reason) in [
            (&told, Reason::MaxRequests),
            (&idle, Reason::KeepAlivePerClient),
            (&idle, Reason::Shutdown),
        ] {
            let Finding::End(end) = at(5000, sample, Some(reason)) else {
                panic!("{reason}")
            };
            assert_eq!((end.reason, end.ending), (reason, CloseMode::Graceful));
        }
    }

    #[test]
    fn of_what_is_quiet_nothing_would_be_found_and_nothing_else_be_kept() {
        let limits = limits();
        let idle = ConnStats {
            requests: 3,
            answered: 3,
            read: 300,
            written: 3000,
            ..sample()
        };
        let when = |now| When {
            now,
            passed: 250,
            opened: 0,
            due: limits.due(1),
        };
        // As `ConnState::at_rest` has it.
        let rest_of = |sample: &ConnStats| {
            let is_at_rest = sample.in_flight == 0
                && sample.early == 0
                && !(sample.write_blocked || sample.asked)
                && !(sample.upgraded || sample.lingering);
            let ConnStats {
                read,
                written,
                requests,
                ..
            } = *sample;
            is_at_rest.then_some(IdleStats {
                read,
                written,
                requests,
            })
        };
        let is_quiet_at = |now, sample: ConnStats, closing: Option<Reason>, memory| {
            let rest = rest_of(&sample).filter(|_| closing.is_none());
            let is_quiet = rest.is_some_and(|rest| is_quiet(&limits, now, now, &rest, &memory));
            if is_quiet {
                let found = judge(&limits, when(now), &sample, closing, memory);
                assert_eq!(
                    found,
                    (memory, Finding::Fine),
                    "{now} {sample:?} {memory:?}"
                );
            }
            is_quiet
        };
        let changes: [fn(&mut ConnStats); 14] = [
            |_| {},
            |sample| sample.http2 = true,
            |sample| sample.read += 1,
            |sample| sample.written += 5000,
            |sample| sample.requests += 1,
            |sample| (sample.requests, sample.in_flight) = (4, 1),
            |sample| (sample.answered, sample.cancelled, sample.early) = (0, 3000, 3000),
            |sample| sample.write_blocked = true,
            |sample| sample.asked = true,
            |sample| sample.lingering = true,
            |sample| sample.upgraded = true,
            |sample| (sample.uploading, sample.requests) = (true, 5),
            |sample| (sample.more_was_read, sample.read) = (true, 301),
            |sample| (sample.body_left, sample.requests) = (true, 6),
        ];
        for began in [1000, 880_000] {
            let (fresh, _) = judge(&limits, when(began), &idle, None, SweepState::default());
            for now in (began + 250..began + 70_000).step_by(250) {
                let is_quiet = is_quiet_at(now, idle, None, fresh);
                // Up to the time of a GOAWAY, whether there is one or not.
                assert_eq!(is_quiet, now < 900_000 && now < began + 64_000);
                assert!(!is_quiet_at(now, idle, Some(Reason::Shutdown), fresh));
            }
            for (one, other) in changes
                .iter()
                .flat_map(|one| changes.map(|other| (one, other)))
            {
                let (mut before, mut after) = (idle, idle);
                one(&mut before);
                other(&mut after);
                let (kept, _) = judge(&limits, when(began), &before, None, fresh);
                let mark = kept.mark.wrapping_sub(1 << 20);
                let in_debt = SweepState {
                    mark,
                    in_debt: true,
                    ..kept
                };
                for memory in [fresh, kept, in_debt] {
                    is_quiet_at(began + 250, after, None, memory);
                    is_quiet_at(began + 63_000, after, None, memory);
                }
            }
        }
    }

    #[test]
    fn a_request_at_work_is_probed_once_per_period() {
        let limits = limits();
        let working = ConnStats {
            requests: 1,
            in_flight: 1,
            ..sample()
        };
        let mut memory = SweepState::default();
        let mut probes = Vec::new();
        for now in (0..=16_000).step_by(250) {
            let when = When {
                now,
                passed: 250,
                opened: 0,
                due: None,
            };
            let (kept, finding) = judge(&limits, when, &working, None, memory);
            memory = kept;
            if finding == Finding::Probe {
                probes.push(now);
            }
        }
        assert_eq!(probes, [5000, 10_000, 15_000]);
        // Also behind a body that its handler does not ask for.
        let unread = ConnStats {
            body_left: true,
            ..working
        };
        let mut memory = SweepState::default();
        let probes = (0..=16_000).step_by(250).filter(|now| {
            let when = When {
                now: *now,
                passed: 250,
                opened: 0,
                due: None,
            };
            let (kept, finding) = judge(&limits, when, &unread, None, memory);
            memory = kept;
            finding == Finding::Probe
        });
        assert_eq!(probes.collect::<Vec<_>>(), [5000, 10_000, 15_000]);
    }

    #[test]
    fn who_has_work_is_never_spared_and_who_did_nothing_goes_first() {
        let silent = sample();
        let proven = ConnStats {
            requests: 3,
            answered: 3,
            ..sample()
        };
        let working = ConnStats {
            in_flight: 1,
            ..proven
        };
        let taking = ConnStats {
            write_blocked: true,
            ..proven
        };
        let upgraded = ConnStats {
            upgraded: true,
            ..proven
        };
        let untold = ConnStats {
            read: 1,
            ..ConnStats::default()
        };
        let lingering = ConnStats {
            lingering: true,
            ..proven
        };
        let busy = ConnStats {
            requests: 90,
            answered: 90,
            ..proven
        };
        // Who only ever breaks off did nothing either.
        let breaking_off = ConnStats {
            answered: 0,
            cancelled: 3,
            ..proven
        };
        let in_order = [
            (&lingering, 9000),
            (&lingering, 5),
            (&silent, 9000),
            (&breaking_off, 8000),
            (&silent, 500),
            (&proven, 9000),
            (&proven, 7000),
            // Whoever has only just come.
            (&silent, 499),
            (&silent, 5),
            (&busy, 9000),
            (&busy, 5),
        ];
        let ranks = in_order.map(|(sample, age)| spare(sample, age, false).unwrap());
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
        for kept in [working, taking, upgraded, untold] {
            assert_eq!(spare(&kept, 9000, false), None);
        }
        // After all of them, the one that has taken nothing for longest.
        // Among many of his kind a newcomer is one who did nothing.
        assert_eq!(spare(&silent, 5, true).map(|(class, ..)| class), Some(1));
        assert_eq!(spare(&busy, 5, true), spare(&busy, 5, false));
        let stalled = |stalled| spare(&ConnStats { stalled, ..taking }, 9000, false);
        assert_eq!(stalled(STALLED_SECONDS - 1), None);
        assert!(
            stalled(STALLED_SECONDS) > Some(ranks[6])
                && stalled(STALLED_SECONDS) < Some(ranks[7])
                && stalled(30) < stalled(STALLED_SECONDS)
        );
        assert_eq!(
            spare(
                &ConnStats {
                    stalled: 30,
                    ..working
                },
                9000,
                false
            ),
            None
        );
    }

    #[test]
    fn an_upload_that_stands_still_goes_before_newcomers_unless_it_may_be_whole() {
        let upload = ConnStats {
            requests: 1,
            in_flight: 1,
            stalled: 5,
            ..sample()
        };
        let upload = ConnStats {
            awaits_read: true,
            ..upload
        };
        let class = |sample: &ConnStats| spare(sample, 9000, false).map(|(class, ..)| class);
        let newcomer = spare(&sample(), 5, false).map(|(class, ..)| class);
        let measured = ConnStats {
            body_left: true,
            ..upload
        };
        let chunked = ConnStats {
            unmeasured: true,
            ..upload
        };
        let http2 = ConnStats {
            http2: true,
            uploading: true,
            ..upload
        };
        for standing in [measured, chunked, http2] {
            assert!(class(&standing) < newcomer);
            // Some seconds of patience, and as long as it takes while it arrives.
            assert_eq!(
                class(&ConnStats {
                    stalled: STALLED_SECONDS - 1,
                    ..standing
                }),
                None
            );
        }
        // A connection that completed requests may wait for the handler, or for its own stream.
        for quiet in [chunked, http2] {
            assert!(
                class(&ConnStats {
                    requests: 2,
                    answered: 1,
                    ..quiet
                }) > newcomer
            );
        }
        // The handler does not ask for more.
        assert_eq!(
            class(&ConnStats {
                awaits_read: false,
                ..measured
            }),
            Some(4)
        );
        assert_eq!(
            class(&ConnStats {
                awaits_read: false,
                ..chunked
            }),
            None
        );
    }

    #[test]
    fn rare_small_requests_are_less_work_than_a_page_half_a_minute_ago() {
        let of = |answered, written| ConnStats {
            requests: 1,
            answered,
            written,
            ..sample()
        };
        // One in 3 s, of 200 bytes each, for a minute; seven of 20 KiB within a second, and a
        // single one.
        let (hoard, page, once) = (of(20, 4000), of(7, 140 * 1024), of(1, 200));
        assert!(spare(&hoard, 60_000, false) < spare(&page, 30_000, false));
        assert!(spare(&hoard, 60_000, false) < spare(&once, 2000, false));
        assert!(spare(&once, 30_000, false) < spare(&hoard, 60_000, false));
        // One who comes again and again with one request does not outlive who loaded a page, but
        // is gone after those of his kind who came before.
        assert!(spare(&once, 5, false) < spare(&page, 20_000, false));
        assert!(
            spare(&once, 1000, false) < spare(&once, 5, false)
                && spare(&hoard, 60_000, false) < spare(&once, 5, false)
        );
    }

    #[test]
    fn hostile_numbers_do_not_overflow() {
        let all = ConnStats {
            read: u64::MAX,
            written: u64::MAX,
            requests: u32::MAX,
            http2: true,
            ..sample()
        };
        let limits = limits();
        let when = When {
            now: u64::MAX,
            passed: u64::MAX,
            opened: 0,
            due: Some(u64::MAX),
        };
        let (memory, _) = judge(&limits, when, &all, None, SweepState::default());
        let (_, _) = judge(&limits, When { now: 0, ..when }, &sample(), None, memory);
        let idle = ConnStats {
            answered: u32::MAX,
            ..all
        };
        assert!(spare(&idle, 0, false) > spare(&idle, u64::MAX, false));
    }

    #[test]
    fn the_low_half_of_the_time_is_enough() {
        let limits = limits();
        let idle = ConnStats {
            requests: 1,
            answered: 1,
            ..sample()
        };
        let blocked = ConnStats {
            in_flight: 1,
            write_blocked: true,
            ..idle
        };
        // Just before the milliseconds of the guard pass 2^32.
        let cases = [
            (idle, Reason::Idle, 65_000),
            (blocked, Reason::WriteStall, 30_000),
        ];
        for ((sample, reason, after), before) in cases
            .into_iter()
            .flat_map(|case| [(case, 1000), (case, 1), (case, 0)])
        {
            let start = (1 << 32) - before;
            let mut memory = SweepState::default();
            let found = (start..).find_map(|now| {
                let when = When {
                    now,
                    passed: 1,
                    opened: 0,
                    due: None,
                };
                let (kept, finding) = judge(&limits, when, &sample, None, memory);
                memory = kept;
                matches!(finding, Finding::End(_)).then_some((now, finding))
            });
            let (now, found, _) = ended(found).unwrap();
            // A millisecond late where 0 would have said that nothing waits.
            assert!(
                found == reason && (after..=after + 1).contains(&(now - start)),
                "{now}"
            );
        }
    }
}
