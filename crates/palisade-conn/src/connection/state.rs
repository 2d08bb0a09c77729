//! The counters and flags of one connection, shared by its socket, its requests and its guard.
//!
//! The socket counts bytes, request tracking counts requests, and neither reads a clock: the
//! sweeper notices from time to time what has changed. The counters are relaxed. The close
//! decision, the closing reason and the flags are published with release and acquire.

use super::{
    decision::{CLOSED, CloseDecision, decode, encode},
    stats::{ConnStats, IdleStats},
    totals::ConnTotals,
    wakers::{Side, Wakers},
};
use crate::{
    sweep::state::SweepState,
    sync::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Mutex},
};
use palisade_core::{ClientKey, ConnInfo, Mode, Reason};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
    task::Waker,
};

// Bits of `ConnState::flags`.

/// Request tracking reports every request of the connection.
const TRACKED: u16 = 1;
/// A service that was made for this connection alone does so.
const TRACKED_BY_OWN_SERVICE: u16 = 2;
/// The connection has become, or carries, something other than HTTP.
const UPGRADED: u16 = 4;
/// The totals count the connection as upgraded.
const COUNTED: u16 = 8;
/// The socket has been dropped.
const GONE: u16 = 16;
/// A close has been reported in shadow mode.
const SHADOWED: u16 = 32;
/// All responses have been sent; what still arrives is discarded.
const LINGERING: u16 = 64;
/// The connection has lingered long enough.
const LINGER_OVER: u16 = 128;
/// The client may close its own direction and wait for the response.
const HALF_CLOSE: u16 = 0x100;
/// HTTP/2 frames are told apart: `ConnState::data_read` is exact.
const FRAMED: u16 = 0x200;
/// The socket is asked to check whether its client has hung up.
const PROBED: u16 = 0x400;
/// The server sends GOAWAY once the connection is closing.
const GOAWAY: u16 = 0x800;
/// The guard counts the connection among those that are about to close.
const CLOSE_PENDING: u16 = 0x1000;
/// A request with a body is in flight on HTTP/1: the socket charges what it reads to the budget,
/// unless a layer does.
const CHARGES_READS: u16 = 0x2000;
/// The socket is asked how many bytes it has for the server to read.
const UNREAD_ASKED: u16 = 0x4000;
/// It is asked that because its client is silent. Once it has answered, it has looked for bytes.
const LOOK_ASKED: u16 = 0x8000;

// Values of `ConnState::writing`; 0 if no bytes wait.

/// The kernel does not take the bytes that wait.
const BLOCKED: u8 = 1;
/// The writer has been asked whether it still writes them.
const ASKED: u8 = 2;

// Values of `ConnState::protocol`.

const HTTP1: u8 = 0;
const HTTP2: u8 = 1;
/// HTTP/1 with a body whose end is unknown: chunked, or pipelined behind another request.
const UNMEASURED: u8 = 2;

/// Value of `ConnState::recent`: a request with a body ended since the last sweep.
const UPLOADED: u8 = 1;

// Three counters of 21 bits each in `ConnState::in_flight`.

/// One request in flight.
pub(super) const REQUEST: u64 = 1;
/// One request in flight that has a body.
pub(super) const UPLOAD: u64 = 1 << 21;
/// One request in flight of whose response more is ready than the client takes.
pub(super) const WAITING: u64 = 1 << 42;

// Flags of `SweepState` beside the phase in `ConnState::phase`.

const WAS_ASKED: u8 = 0x80;
const IN_DEBT: u8 = 0x40;
const OVER_BUDGET: u8 = 0x20;

/// What has happened on a connection, and what is to happen to it.
///
/// There is one for each open connection, and no layer or handler can reach it.
#[derive(Default)]
pub(crate) struct ConnState {
    // Written by the socket.
    read: AtomicU64,
    written: AtomicU64,
    writing: AtomicU8,
    /// The socket had nothing to give when it was last read.
    awaits_read: AtomicBool,
    // Written by request tracking.
    protocol: AtomicU8,
    pub(super) in_flight: AtomicU64,
    pub(super) requests: AtomicU32,
    pub(super) cancelled: AtomicU32,
    pub(super) early: AtomicU16,
    /// What has happened since the last sweep.
    recent: AtomicU8,
    /// HTTP/1: the offset up to which bytes belong to known requests: the count of bytes read when
    /// the latest request ended, or the earliest offset at which its body can end. HTTP/2: the
    /// bytes of DATA in the low half, and the socket's place in the current frame in the high half.
    position: AtomicU64,
    // Written by the guard.
    decision: AtomicU8,
    closing: AtomicU8,
    phase: AtomicU8,
    stalled: AtomicU8,
    kept: KeptBySweeper,
    // Written by all of them, and rarely.
    flags: AtomicU16,
    totals: Option<Arc<ConnTotals>>,
    /// Locked when the socket has nothing to give or to take, and when the guard wakes it.
    wakers: Mutex<Wakers>,
}

/// The 32-bit fields of [`SweepState`].
#[derive(Default)]
struct KeptBySweeper {
    since: AtomicU32,
    blocked_since: AtomicU32,
    seen: AtomicU32,
    read: AtomicU32,
    written: AtomicU32,
    written_blocked: AtomicU32,
    mark: AtomicU32,
}

// === ConnState ===

impl ConnState {
    /// The state of a connection that counts in `totals`.
    pub(crate) fn with_totals(totals: Option<Arc<ConnTotals>>) -> Self {
        Self {
            totals,
            ..Self::default()
        }
    }

    /// Returns the counters that the connection shares with the others of its guard.
    #[inline]
    pub(crate) fn totals(&self) -> Option<&Arc<ConnTotals>> {
        self.totals.as_ref()
    }
}

/// The socket's side.
impl ConnState {
    /// Counts `bytes` that were read.
    #[inline]
    pub(crate) fn add_read(&self, bytes: usize) {
        // Only the socket writes this counter, and it is borrowed mutably.
        self.read
            .store(self.read.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
        self.awaits_read.store(false, Relaxed);
    }

    /// Counts `bytes` that the kernel took.
    #[inline]
    pub(crate) fn add_written(&self, bytes: usize) {
        self.written.store(
            self.written.load(Relaxed).wrapping_add(bytes as u64),
            Relaxed,
        );
        if bytes > 0 && self.writing.load(Relaxed) != 0 {
            self.writing.store(0, Relaxed);
        }
    }

    /// Notes that the kernel takes no more bytes.
    pub(crate) fn set_write_blocked(&self) {
        self.writing.store(BLOCKED, Relaxed);
    }

    /// Notes that all responses are sent and that what still arrives is discarded.
    pub(crate) fn set_lingering(&self) {
        // Bytes from now on belong to no request, and no frame is looked for in them.
        self.position.store(self.read.load(Relaxed), Relaxed);
        self.set(LINGERING);
    }

    /// Returns whether the connection has lingered long enough.
    pub(crate) fn is_linger_over(&self) -> bool {
        self.is_set(LINGER_OVER)
    }

    /// Returns whether the client has sent anything.
    #[inline]
    pub(crate) fn has_read(&self) -> bool {
        self.read.load(Relaxed) > 0
    }

    /// Returns how many bytes were discarded while lingering.
    pub(crate) fn discarded_bytes(&self) -> u64 {
        self.read
            .load(Relaxed)
            .saturating_sub(self.position.load(Relaxed))
    }

    /// Returns the low half of the number of HTTP/2 DATA payload bytes that were read.
    pub(crate) fn data_read(&self) -> u32 {
        self.position.load(Relaxed) as u32
    }

    /// Notes that the connection is HTTP/2 and that its frames are told apart from now on.
    pub(crate) fn set_framed(&self) {
        if !self.is_set(FRAMED) {
            self.set(FRAMED);
        }
    }

    /// Returns the socket's place in the current HTTP/2 frame.
    #[inline]
    pub(crate) fn frame(&self) -> u32 {
        (self.position.load(Relaxed) >> 32) as u32
    }

    /// Stores the place in the current frame, and adds `data` to the bytes of DATA.
    #[inline]
    pub(crate) fn store_frame(&self, frame: u32, data: u32) {
        // Only the reader of the connection writes this, and it is borrowed mutably.
        let data = self.data_read().wrapping_add(data);
        self.position
            .store(u64::from(frame) << 32 | u64::from(data), Relaxed);
    }

    /// Returns the close decision, if there is one.
    #[inline]
    pub(crate) fn decision(&self) -> Option<CloseDecision> {
        let code = self.decision.load(Acquire);
        if code == 0 { None } else { decode(code) }
    }

    /// Keeps `waker` for a close decision while there is nothing to read. Check
    /// [`Self::decision`] afterwards: an earlier decision found no waker.
    pub(crate) fn park_reader(&self, waker: &Waker) {
        self.awaits_read.store(true, Relaxed);
        let before = self.wakers.lock().park(Side::Reader, waker);
        drop(before); // Outside the lock.
    }

    /// Keeps `waker` while nothing can be written, as [`Self::park_reader`] does.
    pub(crate) fn park_writer(&self, waker: &Waker) {
        let before = self.wakers.lock().park(Side::Writer, waker);
        drop(before); // Outside the lock.
    }

    /// Returns whether the socket is asked for something.
    #[inline]
    pub(crate) fn is_asked(&self) -> bool {
        self.flags.load(Relaxed) & (PROBED | UNREAD_ASKED) != 0
    }

    /// Returns whether the socket is asked how many bytes it has for the server to read, once.
    pub(crate) fn take_unread_asked(&self) -> bool {
        self.flags.fetch_and(!UNREAD_ASKED, Relaxed) & UNREAD_ASKED != 0
    }

    /// Returns whether the socket is asked to check whether its client has hung up, once.
    #[inline]
    pub(crate) fn take_probe(&self) -> bool {
        self.flags.load(Relaxed) & PROBED != 0
            && self.flags.fetch_and(!PROBED, Relaxed) & PROBED != 0
    }

    /// Returns whether a client that has closed its own direction counts as present.
    pub(crate) fn allows_half_close(&self) -> bool {
        self.is_set(HALF_CLOSE)
    }
}

/// The side of request tracking and of servers.
impl ConnState {
    /// Notes that every request is reported from now on.
    pub(crate) fn set_tracked(&self) {
        if !self.is_tracked() {
            self.set(TRACKED);
        }
    }

    /// Notes the same, by a service that was made for this connection alone. Another one that sees
    /// the same requests does not report them again.
    pub(crate) fn set_tracked_by_own_service(&self) {
        self.set(TRACKED | TRACKED_BY_OWN_SERVICE);
    }

    /// Returns whether such a service reports the requests.
    pub(crate) fn is_tracked_by_own_service(&self) -> bool {
        self.is_set(TRACKED_BY_OWN_SERVICE)
    }

    /// Returns whether every request is reported.
    pub(crate) fn is_tracked(&self) -> bool {
        self.is_set(TRACKED)
    }

    /// Notes that the server sends GOAWAY once the connection is closing.
    pub(crate) fn set_goaway(&self) {
        self.set(GOAWAY);
    }

    /// Lets the client close its own direction and wait for the response.
    pub(crate) fn allow_half_close(&self) {
        self.set(HALF_CLOSE);
    }

    /// Returns the number of request heads so far.
    #[inline]
    pub(crate) fn requests(&self) -> u32 {
        self.requests.load(Relaxed)
    }

    /// Returns why the connection takes no more requests, if it does not.
    #[inline]
    pub(crate) fn closing(&self) -> Option<Reason> {
        match self.closing.load(Acquire) {
            0 => None,
            code => decode(code).map(|decision| decision.reason),
        }
    }

    /// Returns whether the connection is, or carries, something other than HTTP.
    pub(crate) fn is_upgraded(&self) -> bool {
        self.is_set(UPGRADED)
    }

    /// Notes that `conn`, the connection of this state, is, or carries, something other than HTTP,
    /// and counts it for its client until [`Self::release_upgrade`] or [`Self::end_upgrade`].
    /// `named` is the client if a proxy has named it.
    ///
    /// # Errors
    ///
    /// If more connections would be upgraded than [`ConnTotals::max_upgraded`] allows: the limit,
    /// and the number there would be. Nothing has changed then, unless the guard only reports.
    pub(crate) fn upgrade(
        &self,
        conn: &ConnInfo,
        named: Option<ClientKey>,
    ) -> Result<(), (u64, u64)> {
        let Some(totals) = self.totals() else {
            self.set(UPGRADED);
            return Ok(());
        };
        // Held while the flags change, so that what is counted is what the flags say.
        let mut upgraded = totals.lock_upgraded();
        if self.is_set(COUNTED) {
            return Ok(());
        }
        let named = upgraded.named(conn).or(named);
        let client = totals.upgraded_client(conn, named);
        let result = upgraded
            .exceeded(totals.max_upgraded, client)
            .map_or(Ok(()), Err);
        if result.is_err() && totals.mode == Mode::Enforce {
            return result;
        }
        if self.set(UPGRADED | COUNTED) & GONE == 0 {
            upgraded.add(conn, client, named.is_some());
        }
        result
    }

    /// Notes that the last tunnel of `conn`, an HTTP/2 connection, has ended: it carries only HTTP
    /// again.
    pub(crate) fn end_upgrade(&self, conn: &ConnInfo) {
        let Some(totals) = self.totals() else {
            self.flags.fetch_and(!UPGRADED, AcqRel);
            return;
        };
        let mut upgraded = totals.lock_upgraded();
        let before = self.flags.fetch_and(!(UPGRADED | COUNTED), AcqRel);
        if before & (COUNTED | GONE) == COUNTED {
            upgraded.remove(totals, conn);
        }
    }

    /// Notes that the socket of `conn` has been dropped: it counts as upgraded no more.
    pub(crate) fn release_upgrade(&self, conn: &ConnInfo) {
        let is_counted = self.set(GONE) & (COUNTED | GONE) == COUNTED;
        if (is_counted || conn.is_proxy())
            && let Some(totals) = self.totals()
        {
            let mut upgraded = totals.lock_upgraded();
            if is_counted {
                upgraded.remove(totals, conn);
            }
            upgraded.forget(conn);
        }
    }

    /// Notes that the connection is upgraded, without counting it.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn set_upgraded(&self) {
        self.set(UPGRADED);
    }

    /// Sets the protocol of the latest request, whose body, if any, has not been looked at.
    #[inline]
    pub(super) fn set_protocol(&self, http2: bool) {
        if !http2 {
            self.protocol.store(HTTP1, Relaxed);
        } else if !self.is_http2() {
            self.protocol.store(HTTP2, Relaxed);
        }
    }

    #[inline]
    pub(super) fn is_http2(&self) -> bool {
        self.protocol.load(Relaxed) & HTTP2 != 0
    }

    /// Notes that a body of `length` follows the head of the latest HTTP/1 request; `None` if only
    /// the body itself shows where it ends. Some of it may have been read already.
    pub(super) fn expect_body(&self, length: Option<u64>) {
        let (read, by_earlier) = (self.read.load(Relaxed), self.position.load(Relaxed));
        // The head itself came after the previous request, unless it was pipelined: then its bytes
        // count as that request's, and perhaps some of the body as well.
        let arrived = read.saturating_sub(by_earlier);
        let Some(length) = length.filter(|_| arrived > 0) else {
            self.protocol.store(UNMEASURED, Relaxed);
            return;
        };
        // At most, everything since the previous request belongs to this body.
        let end = read.saturating_add(length.saturating_sub(arrived));
        self.position.store(end, Relaxed);
    }

    /// Notes that the socket charges what it reads to the budget.
    pub(super) fn set_charges_reads(&self) {
        self.set(CHARGES_READS);
    }

    /// Notes that the request has ended for which the socket charges what it reads.
    pub(super) fn clear_charges_reads(&self) {
        self.flags.fetch_and(!CHARGES_READS, AcqRel);
    }

    /// Returns whether the socket charges what it reads.
    #[inline]
    pub(crate) fn charges_reads(&self) -> bool {
        self.flags.load(Relaxed) & CHARGES_READS != 0
    }

    /// Notes that a request has ended, with a body or without. What was read so far on HTTP/1
    /// belongs to known requests.
    pub(super) fn request_ended(&self, had_body: bool) {
        if !self.is_http2() {
            let read = self.read.load(Relaxed);
            if read > self.position.load(Relaxed) {
                self.position.store(read, Relaxed);
            }
        }
        if had_body {
            self.recent.store(UPLOADED, Relaxed);
        }
    }
}

/// The guard's side.
impl ConnState {
    /// Lets the connection take no more requests, because of `reason`, and wakes its tasks, so
    /// that a server can send GOAWAY. The first reason holds: returns `false` if there was one.
    pub(crate) fn begin_closing(&self, reason: Reason) -> bool {
        let code = encode(CloseDecision::graceful(reason));
        let is_first = self
            .closing
            .compare_exchange(0, code, Release, Relaxed)
            .is_ok();
        if is_first {
            self.wake();
        }
        is_first
    }

    /// Decides that the connection is closed, and wakes its tasks. The first decision holds:
    /// returns `false` if there was one, or if the socket has been dropped.
    pub(crate) fn request_close(&self, decision: CloseDecision) -> bool {
        let is_first = self
            .decision
            .compare_exchange(0, encode(decision), Release, Relaxed)
            .is_ok();
        if is_first {
            self.wake();
        }
        is_first
    }

    /// Notes that the guard counts the connection as about to close, until
    /// [`Self::take_close_pending`]. Returns `false` if it did already.
    pub(crate) fn set_close_pending(&self) -> bool {
        self.set(CLOSE_PENDING) & CLOSE_PENDING == 0
    }

    /// Undoes [`Self::set_close_pending`]. Returns `false` if the guard did not count it.
    pub(crate) fn take_close_pending(&self) -> bool {
        self.flags.fetch_and(!CLOSE_PENDING, AcqRel) & CLOSE_PENDING != 0
    }

    /// Returns whether the guard counts the connection as about to close.
    pub(crate) fn is_close_pending(&self) -> bool {
        self.is_set(CLOSE_PENDING)
    }

    /// Notes that the socket has been dropped, and returns the close decision, if there was one.
    /// No decision is accepted from now on.
    pub(crate) fn mark_closed(&self) -> Option<CloseDecision> {
        // Dropped outside the lock: dropping a `Waker` may run arbitrary code.
        let _wakers = std::mem::take(&mut *self.wakers.lock());
        decode(self.decision.swap(CLOSED, AcqRel))
    }

    /// Returns whether the socket has been dropped.
    pub(crate) fn is_closed(&self) -> bool {
        self.decision.load(Acquire) == CLOSED
    }

    /// Forgets `requests` early cancellations that are long enough ago.
    pub(crate) fn forgive_early(&self, requests: u16) {
        let less = |early: u16| (early > 0).then(|| early.saturating_sub(requests));
        let _ = self.early.fetch_update(Relaxed, Relaxed, less);
    }

    /// Ends the lingering.
    pub(crate) fn end_lingering(&self) {
        self.set(LINGER_OVER);
        self.wake();
    }

    /// Asks the writer whether it still writes. A writer whose bytes are still not taken reports so
    /// again; a write that was given up is not heard of again, and then nothing waits.
    pub(crate) fn ask_writer(&self) {
        if self
            .writing
            .compare_exchange(BLOCKED, ASKED, Relaxed, Relaxed)
            .is_ok()
        {
            self.wake();
        }
    }

    /// Asks the socket to check whether its client has hung up.
    pub(crate) fn probe(&self) {
        self.set(PROBED);
        self.wake();
    }

    /// Asks the socket how many bytes it has for the server to read.
    pub(crate) fn ask_unread(&self) {
        self.set(UNREAD_ASKED);
        self.wake();
    }

    /// Asks the socket to look for bytes of its client, which is silent.
    pub(crate) fn ask_reader(&self) {
        self.set(UNREAD_ASKED | LOOK_ASKED);
        self.wake();
    }

    /// Forgets that the socket has looked for bytes of its client.
    pub(crate) fn clear_looked(&self) {
        if self.flags.load(Relaxed) & LOOK_ASKED != 0 {
            self.flags.fetch_and(!LOOK_ASKED, Relaxed);
        }
    }

    /// Notes that a close has been reported in shadow mode. Returns whether one was before.
    pub(crate) fn swap_shadowed(&self) -> bool {
        self.set(SHADOWED) & SHADOWED != 0
    }

    /// Returns the counters for the sweeper, and begins a new period for what happened "since the
    /// last sweep".
    #[inline]
    pub(crate) fn take_stats(&self) -> ConnStats {
        let stats = self.stats();
        if self.recent.load(Relaxed) != 0 {
            self.recent.store(0, Relaxed);
        }
        stats
    }

    /// Returns the counters.
    #[inline]
    pub(crate) fn stats(&self) -> ConnStats {
        let (flags, protocol) = (self.flags.load(Relaxed), self.protocol.load(Relaxed));
        let (writing, in_flight) = (self.writing.load(Relaxed), self.in_flight.load(Relaxed));
        let recent = self.recent.load(Relaxed);
        let pending = count(in_flight, REQUEST);
        let read = self.read.load(Relaxed);
        let position = self.position.load(Relaxed);
        let is_http2 = protocol & HTTP2 != 0;
        let (requests, cancelled) = (self.requests.load(Relaxed), self.cancelled.load(Relaxed));
        ConnStats {
            read,
            written: self.written.load(Relaxed),
            write_blocked: writing == BLOCKED,
            asked: writing == ASKED,
            stalled: self.stalled.load(Relaxed),
            lingering: flags & LINGERING != 0,
            tracked: flags & TRACKED != 0,
            upgraded: flags & UPGRADED != 0,
            http2: is_http2,
            requests,
            in_flight: pending,
            waiting: count(in_flight, WAITING),
            uploading: count(in_flight, UPLOAD) > 0 || recent & UPLOADED != 0,
            answered: requests.saturating_sub(pending).saturating_sub(cancelled),
            cancelled,
            early: self.early.load(Relaxed),
            more_was_read: !is_http2 && read > position,
            body_left: !is_http2 && read < position,
            unmeasured: protocol == UNMEASURED,
            awaits_read: self.awaits_read.load(Relaxed),
            looked: flags & (LOOK_ASKED | UNREAD_ASKED) == LOOK_ASKED,
            framed: flags & FRAMED != 0,
            goaway: flags & GOAWAY != 0,
            data: if is_http2 { position as u32 } else { 0 },
        }
    }

    /// Returns the counters of a connection on which nothing is going on: no request is in flight,
    /// no bytes wait to be written, it does not linger, no request was cancelled early, it carries
    /// only HTTP, and no close was decided. A cheaper part of [`Self::stats`].
    ///
    /// It does not tell whether more of a body is to come. That changes only with a request, and
    /// the number of requests shows it.
    #[inline]
    pub(crate) fn idle_stats(&self) -> Option<IdleStats> {
        let decided = self.decision.load(Acquire) | self.closing.load(Relaxed);
        let busy = self.writing.load(Relaxed);
        let other = self.flags.load(Relaxed) & (UPGRADED | LINGERING);
        let early = self.early.load(Relaxed);
        let is_idle = u16::from(decided | busy) | other == 0
            && self.in_flight.load(Relaxed) | u64::from(early) == 0;
        is_idle.then(|| IdleStats {
            read: self.read.load(Relaxed),
            written: self.written.load(Relaxed),
            requests: self.requests.load(Relaxed),
        })
    }

    /// Returns what the sweeper stored.
    #[inline]
    pub(crate) fn sweep_state(&self) -> SweepState {
        let kept = &self.kept;
        let phase = self.phase.load(Relaxed);
        SweepState {
            phase: phase & !(WAS_ASKED | IN_DEBT | OVER_BUDGET),
            asked: phase & WAS_ASKED != 0,
            in_debt: phase & IN_DEBT != 0,
            over_budget: phase & OVER_BUDGET != 0,
            since: kept.since.load(Relaxed),
            seen: kept.seen.load(Relaxed),
            read: kept.read.load(Relaxed),
            written: kept.written.load(Relaxed),
            blocked_since: kept.blocked_since.load(Relaxed),
            written_blocked: kept.written_blocked.load(Relaxed),
            stalled: self.stalled.load(Relaxed),
            mark: kept.mark.load(Relaxed),
        }
    }

    /// Stores `state` for the next sweep. Only one sweeper may call this at a time.
    pub(crate) fn store_sweep_state(&self, state: SweepState) {
        let kept = &self.kept;
        let asked = if state.asked { WAS_ASKED } else { 0 };
        let in_debt = if state.in_debt { IN_DEBT } else { 0 };
        let over_budget = if state.over_budget { OVER_BUDGET } else { 0 };
        self.phase
            .store(state.phase | asked | in_debt | over_budget, Relaxed);
        kept.since.store(state.since, Relaxed);
        kept.seen.store(state.seen, Relaxed);
        kept.read.store(state.read, Relaxed);
        kept.written.store(state.written, Relaxed);
        kept.blocked_since.store(state.blocked_since, Relaxed);
        kept.written_blocked.store(state.written_blocked, Relaxed);
        self.stalled.store(state.stalled, Relaxed);
        kept.mark.store(state.mark, Relaxed);
    }

    /// Sets `flags`, and returns those that were set before.
    fn set(&self, flags: u16) -> u16 {
        self.flags.fetch_or(flags, AcqRel)
    }

    fn is_set(&self, flag: u16) -> bool {
        self.flags.load(Acquire) & flag != 0
    }

    fn wake(&self) {
        // The wakers stay: a socket that is neither read nor written meanwhile has to be woken
        // again. They are called outside the lock, because a waker may run arbitrary code.
        let wakers = self.wakers.lock().clone_all();
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl fmt::Debug for ConnState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnState")
            .field("stats", &self.stats())
            .field("decision", &self.decision())
            .field("closing", &self.closing())
            .finish_non_exhaustive()
    }
}

/// Returns one of the three counters in `in_flight`.
#[inline]
pub(super) fn count(in_flight: u64, unit: u64) -> u32 {
    (in_flight / unit) as u32 & (UPLOAD as u32 - 1)
}

#[cfg(test)]
mod tests;
