//! What the parts that see one connection tell each other: its socket, its requests, its guard.

use crate::{
    ConnInfo, Mode, Reason,
    sync::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Mutex},
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
    task::Waker,
};

/// Whether a connection is to be reset.
const RESET: u8 = 0x80;
/// The connection is gone: too late for a verdict. No reason has this number.
const RETIRED: u8 = 0x7f;

/// Of [`ConnState::flags`]: all requests are told of,
const TRACKED: u16 = 1;
/// by a service that is there for this connection alone,
const OF_ITS_OWN: u16 = 2;
/// it is, or carries, something else than HTTP,
const UPGRADED: u16 = 4;
/// which counts in the totals,
const COUNTED: u16 = 8;
/// until its socket is gone,
const GONE: u16 = 16;
/// a verdict was told of, in shadow mode;
const SHADOWED: u16 = 32;
/// its answers are sent, and what still comes is thrown away,
const LINGERING: u16 = 64;
/// for long enough.
const LINGER_OVER: u16 = 128;
/// Its client may close its own direction and wait for the response.
const HALF_CLOSE: u16 = 0x100;
/// The frames of HTTP/2 can be told apart: [`ConnState::data_read`] is exact.
const FRAMED: u16 = 0x200;
/// The socket is to look whether its client is still there.
const PROBED: u16 = 0x400;
/// The server sends GOAWAY when the connection is [closed](ConnState::close).
const GOAWAY: u16 = 0x800;
/// The guard counts it among the connections that are about to go.
const GOING: u16 = 0x1000;

/// Of [`ConnState::writing`]: bytes wait that the kernel does not take;
const BLOCKED: u8 = 1;
/// whoever writes was asked whether they still do.
const ASKED: u8 = 2;

/// Of [`ConnState::protocol`]: HTTP/1 by default,
const HTTP2: u8 = 1;
/// or HTTP/1 with a body whose end is unknown: chunked, or pipelined behind another request.
const UNMEASURED: u8 = 2;
/// With HTTP/2 the rest counts the request bodies that no handler asks for at the moment, modulo
/// 128: it matters only whether there are any, and of so many one is asked for soon.
const UNREAD: u8 = 2;

/// Of [`ConnState::lately`]: a request with a body ended.
const UPLOADED: u8 = 1;

/// Three counts in [`ConnState::in_flight`], of 21 bits each: requests,
const REQUEST: u64 = 1;
/// those of them with a body,
const UPLOAD: u64 = 1 << 21;
/// and those of which more is ready than their client takes.
const WAITING: u64 = 1 << 42;

/// Beside the phase in [`ConnState::phase`]: [`SweepState::asked`], [`SweepState::in_debt`] and
/// [`SweepState::over_budget`].
const WAS_ASKED: u8 = 0x80;
const IN_DEBT: u8 = 0x40;
const OVER_BUDGET: u8 = 0x20;

/// A request that its client cancels so soon was not waited for.
const EARLY_MILLIS: u32 = 1000;

/// What a connection did so far, and what is to become of it.
///
/// The socket counts bytes, the accounting layer counts requests, and neither looks at a clock:
/// the guard's sweeper sees from time to time what has changed. All counts are read and written
/// without order; only the verdict is published.
#[derive(Default)]
pub struct ConnState {
    // Written by the socket.
    read: AtomicU64,
    written: AtomicU64,
    writing: AtomicU8,
    // Written by the accounting layer, and for unread bodies by the request guards.
    protocol: AtomicU8,
    in_flight: AtomicU64,
    requests: AtomicU32,
    cancelled: AtomicU32,
    early: AtomicU16,
    /// What there was since the sweeper looked.
    lately: AtomicU8,
    /// HTTP/1: how far what was read, or will be, belongs to requests that began: the count of
    /// bytes when the latest one ended, or where its body ends at the earliest. HTTP/2: the bytes
    /// of DATA in the low half, and what the socket keeps of the current frame in the high half.
    position: AtomicU64,
    // Written by the guard.
    verdict: AtomicU8,
    closing: AtomicU8,
    /// The socket had nothing to give when it was last read. Written by the socket.
    awaits_read: AtomicBool,
    // Written by all of them, and rarely.
    flags: AtomicU16,
    phase: AtomicU8,
    stalled: AtomicU8,
    memory: SweeperMemory,
    /// Touched when the socket has nothing to give or to take, and by a verdict.
    wakers: Mutex<Wakers>,
}

/// Who waits. hyper reads and writes in one task; two tasks, as of a connection split in two,
/// cost a box.
#[derive(Default)]
struct Wakers {
    one: Option<Waker>,
    apart: Option<Box<[Waker; 2]>>,
}

#[derive(Clone, Copy)]
enum Side {
    Reader,
    Writer,
}

#[derive(Default)]
struct SweeperMemory {
    since: AtomicU32,
    blocked_since: AtomicU32,
    seen: AtomicU32,
    read: AtomicU32,
    written: AtomicU32,
    written_blocked: AtomicU32,
    mark: AtomicU32,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseMode {
    /// In good order: the reader sees the end of the stream, the client a FIN.
    Graceful,
    /// At once: both sides see an error, the client an RST, the kernel keeps nothing.
    Reset,
}

/// What was decided about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseDecision {
    /// Why.
    pub reason: Reason,
    /// How.
    pub ending: CloseMode,
}

/// The counts of a connection as one look found them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnStats {
    /// Bytes taken from the client.
    pub read: u64,
    /// Bytes that the kernel took for the client.
    pub written: u64,
    /// Whether bytes wait that the kernel does not take.
    pub write_blocked: bool,
    /// For how many seconds it took none, as of the sweeper's latest look; up to 255.
    pub stalled: u8,
    /// Whether they did when whoever writes was [asked](ConnState::ask_writer) about it, and
    /// nothing was heard since.
    pub asked: bool,
    /// Whether the answers are all sent and what the client still sends is thrown away.
    pub lingering: bool,
    /// Whether the accounting layer tells of the requests; if not, there seem to be none.
    pub tracked: bool,
    /// Whether the connection became something else than HTTP, or carries such a thing.
    pub upgraded: bool,
    /// Whether the latest request was HTTP/2.
    pub http2: bool,
    /// Request heads so far.
    pub requests: u32,
    /// Requests whose response body has not ended.
    pub in_flight: u32,
    /// Of these on HTTP/2, the answers of which more is ready than the client takes.
    pub waiting: u32,
    /// Whether a request with a body is in flight on HTTP/2, or was since the latest look.
    pub uploading: bool,
    /// Requests answered to the end.
    pub answered: u32,
    /// Requests that ended before their answer did.
    pub cancelled: u32,
    /// Of these, the ones whose client did not wait for so much as a second, without those that
    /// were [forgiven](ConnState::forgive_early) since; at most 65,535.
    pub early: u16,
    /// Whether bytes came that are not of the latest request, as far as its end is known. HTTP/1
    /// only.
    pub more_was_read: bool,
    /// Whether more of the latest request's body is to come; answered or not, no other head can
    /// come before it. HTTP/1 only.
    pub body_left: bool,
    /// Whether the end of the latest request's body is unknown. HTTP/1 only.
    pub unmeasured: bool,
    /// Whether a client that is to begin no more requests is told so by GOAWAY.
    pub goaway: bool,
    /// Whether the socket found nothing to read when it was last asked to.
    pub awaits_read: bool,
    /// Whether [`data`](Self::data) is exact.
    pub framed: bool,
    /// HTTP/2: the low half of the bytes read that are payload of DATA frames.
    pub data: u32,
}

/// What a connection did on which nothing is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleStats {
    /// As [`ConnStats::read`].
    pub read: u64,
    /// As [`ConnStats::written`].
    pub written: u64,
    /// As [`ConnStats::requests`].
    pub requests: u32,
}

/// What the sweeper keeps of a connection from one look to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepState {
    /// Its own number for the phase.
    pub phase: u8,
    /// Whether whoever writes was asked about what waits.
    pub asked: bool,
    /// Whether bytes that bring no request on are not paid for yet.
    pub in_debt: bool,
    /// Whether they are more than may be.
    pub over_budget: bool,
    /// Since when: the low half of the guard's milliseconds, enough for 24 days.
    pub since: u32,
    /// What must not change for the phase to be the same.
    pub seen: u32,
    /// The low half of the bytes read by then.
    pub read: u32,
    /// The low half of the bytes written by then.
    pub written: u32,
    /// Since when no byte was taken of those that wait, likewise, and one more; 0 if none wait.
    pub blocked_since: u32,
    /// The low half of the bytes written by then.
    pub written_blocked: u32,
    /// How many seconds ago that was, up to 255; 0 if none wait.
    pub stalled: u8,
    /// Where the budget of bytes that bring no request on begins.
    pub mark: u32,
}

/// One request, from its head to the end of its response body. Dropping it is that end.
#[derive(Debug)]
pub struct InFlight {
    conn: Arc<ConnInfo>,
    /// By the clock of the totals.
    begun: u32,
    /// How many its client had in flight then, this one among them; 1 if its connection had no
    /// other.
    own: u32,
    stage: Stage,
    is_upload: bool,
    is_waiting: bool,
    /// It counts among those of all connections.
    is_in_totals: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its response head is not here.
    Handler,
    /// It is, or there will be none that its client cancelled.
    Responded,
    Answered,
}

// === ConnState ===

/// The socket's side.
impl ConnState {
    /// `bytes` were read.
    #[inline]
    pub fn add_read(&self, bytes: usize) {
        // The socket alone writes this, and has itself borrowed mutably.
        self.read
            .store(self.read.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
        self.awaits_read.store(false, Relaxed);
    }

    /// The kernel took `bytes`.
    #[inline]
    pub fn add_written(&self, bytes: usize) {
        self.written.store(
            self.written.load(Relaxed).wrapping_add(bytes as u64),
            Relaxed,
        );
        if bytes > 0 && self.writing.load(Relaxed) != 0 {
            self.writing.store(0, Relaxed);
        }
    }

    /// The kernel takes no more.
    pub fn set_write_blocked(&self) {
        self.writing.store(BLOCKED, Relaxed);
    }

    /// The answers are sent, and what still comes is thrown away.
    pub fn set_lingering(&self) {
        // What comes from now on belongs to no request, and no frame is looked for in it.
        self.position.store(self.read.load(Relaxed), Relaxed);
        self.set(LINGERING);
    }

    /// Whether that was for long enough.
    pub fn is_linger_over(&self) -> bool {
        self.is_set(LINGER_OVER)
    }

    /// Whether the client has sent anything.
    #[inline]
    pub fn has_read(&self) -> bool {
        self.read.load(Relaxed) > 0
    }

    /// How many bytes were thrown away.
    pub fn thrown_away(&self) -> u64 {
        self.read
            .load(Relaxed)
            .saturating_sub(self.position.load(Relaxed))
    }

    /// The low half of the bytes of HTTP/2's DATA frames that were read.
    pub fn data_read(&self) -> u32 {
        self.position.load(Relaxed) as u32
    }

    /// `bytes` of DATA were read on HTTP/2, whose frames are told apart from now on.
    pub fn add_data(&self, bytes: u32) {
        self.keep_frame(self.frame(), bytes);
        if !self.is_set(FRAMED) {
            self.set(FRAMED);
        }
    }

    /// What the socket keeps of the frame of HTTP/2 in the middle of which it is.
    #[inline]
    pub fn frame(&self) -> u32 {
        (self.position.load(Relaxed) >> 32) as u32
    }

    /// Keeps `frame`, and adds `data` to the bytes of DATA frames.
    #[inline]
    pub fn keep_frame(&self, frame: u32, data: u32) {
        // Only what reads the connection writes this, and it has itself borrowed mutably.
        let data = self.data_read().wrapping_add(data);
        self.position
            .store(u64::from(frame) << 32 | u64::from(data), Relaxed);
    }

    /// What was decided, if anything.
    #[inline]
    pub fn verdict(&self) -> Option<CloseDecision> {
        let code = self.verdict.load(Acquire);
        if code == 0 { None } else { decode(code) }
    }

    /// Keeps `waker` for a verdict while there is nothing to read. Look at [`Self::verdict`]
    /// afterwards: one that came before found nobody to wake.
    pub fn park_reader(&self, waker: &Waker) {
        self.awaits_read.store(true, Relaxed);
        self.wakers.lock().park(Side::Reader, waker);
    }

    /// The same while nothing can be written.
    pub fn park_writer(&self, waker: &Waker) {
        self.wakers.lock().park(Side::Writer, waker);
    }

    /// Whether the socket was asked to look if its client is still there; asks it no more.
    #[inline]
    pub fn take_probe(&self) -> bool {
        self.flags.load(Relaxed) & PROBED != 0
            && self.flags.fetch_and(!PROBED, Relaxed) & PROBED != 0
    }
}

/// The accounting layer's side.
impl ConnState {
    /// From now on all requests are told of.
    pub fn set_tracked(&self) {
        if !self.is_accounted() {
            self.set(TRACKED);
        }
    }

    /// The same, by a service that is there for this connection alone: any other that sees the
    /// same requests is not to tell of them again.
    pub fn set_tracked_by_own_service(&self) {
        self.set(TRACKED | OF_ITS_OWN);
    }

    /// Whether such a service tells of the requests.
    pub fn is_tracked_by_own_service(&self) -> bool {
        self.is_set(OF_ITS_OWN)
    }

    /// The connection is, or carries, something else than HTTP from now on.
    pub fn set_upgraded(&self) {
        self.set(UPGRADED);
    }

    /// The server tells the client by GOAWAY when the connection is [closed](Self::close).
    pub fn set_goaway(&self) {
        self.set(GOAWAY);
    }

    /// Whether it does.
    pub fn is_upgraded(&self) -> bool {
        self.is_set(UPGRADED)
    }

    /// From now on a client that has closed its own direction counts as there. For servers that
    /// answer it.
    pub fn allow_half_close(&self) {
        self.set(HALF_CLOSE);
    }

    /// Whether it does.
    pub fn allows_half_close(&self) -> bool {
        self.is_set(HALF_CLOSE)
    }

    /// Request heads so far.
    #[inline]
    pub fn requests(&self) -> u32 {
        self.requests.load(Relaxed)
    }

    /// Whether requests are told of.
    pub fn is_accounted(&self) -> bool {
        self.is_set(TRACKED)
    }

    /// Why the connection is to take no further request, if it is not.
    #[inline]
    pub fn closing(&self) -> Option<Reason> {
        match self.closing.load(Acquire) {
            0 => None,
            code => decode(code).map(|verdict| verdict.reason),
        }
    }
}

/// The guard's side.
impl ConnState {
    /// Lets it take no further request, because of `reason`, and wakes whoever waits for it: a
    /// server may have something to say about that. The first reason stands: `false` if there was
    /// one.
    pub fn close(&self, reason: Reason) -> bool {
        let is_first = self
            .closing
            .compare_exchange(0, code(reason), Release, Relaxed)
            .is_ok();
        if is_first {
            self.wake();
        }
        is_first
    }

    /// Ends the connection and wakes whoever waits for it. `false` if it was decided before.
    pub fn end(&self, verdict: CloseDecision) -> bool {
        let reset = if verdict.ending == CloseMode::Reset {
            RESET
        } else {
            0
        };
        let code = code(verdict.reason) | reset;
        let is_first = self
            .verdict
            .compare_exchange(0, code, Release, Relaxed)
            .is_ok();
        if is_first {
            self.wake();
        }
        is_first
    }

    /// It counts among those that are about to go, until [`Self::take_going`]. `false` if it did so
    /// before.
    pub fn set_going(&self) -> bool {
        self.set(GOING) & GOING == 0
    }

    /// It counts no more among those that are about to go. `false` if it did not.
    pub fn take_going(&self) -> bool {
        self.flags.fetch_and(!GOING, AcqRel) & GOING != 0
    }

    /// Whether it does.
    pub fn is_going(&self) -> bool {
        self.is_set(GOING)
    }

    /// The connection is gone, because of what is returned if of a guard's doing. No verdict is
    /// passed on it any more.
    pub fn retire(&self) -> Option<CloseDecision> {
        // Dropped after the lock is given back.
        let _nobody_waits = std::mem::take(&mut *self.wakers.lock());
        decode(self.verdict.swap(RETIRED, AcqRel))
    }

    /// Forgets `requests` that were cancelled early: they were long enough ago.
    pub fn forgive_early(&self, requests: u16) {
        let less = |early: u16| (early > 0).then(|| early.saturating_sub(requests));
        let _ = self.early.fetch_update(Relaxed, Relaxed, less);
    }

    /// Whether its socket is.
    pub fn is_gone(&self) -> bool {
        self.verdict.load(Acquire) == RETIRED
    }

    /// It has lingered for long enough.
    pub fn end_lingering(&self) {
        self.set(LINGER_OVER);
        self.wake();
    }

    /// Asks whoever writes whether they still do. Who does not get rid of a byte says so again;
    /// of whoever gave a write up nothing is heard, and nothing waits.
    pub fn ask_writer(&self) {
        if self
            .writing
            .compare_exchange(BLOCKED, ASKED, Relaxed, Relaxed)
            .is_ok()
        {
            self.wake();
        }
    }

    /// Asks the socket to look if its client is still there.
    pub fn probe(&self) {
        self.set(PROBED);
        self.wake();
    }

    /// Whether a verdict was only told of, in shadow mode; from now on it was.
    pub fn swap_shadowed(&self) -> bool {
        self.set(SHADOWED) & SHADOWED != 0
    }

    /// Every count, as the sweeper sees it: what is since the latest look begins anew.
    #[inline]
    pub fn look(&self) -> ConnStats {
        let sample = self.sample();
        if self.lately.load(Relaxed) != 0 {
            self.lately.store(0, Relaxed);
        }
        sample
    }

    /// Every count now.
    #[inline]
    pub fn sample(&self) -> ConnStats {
        let (flags, protocol) = (self.flags.load(Relaxed), self.protocol.load(Relaxed));
        let (writing, in_flight) = (self.writing.load(Relaxed), self.in_flight.load(Relaxed));
        let lately = self.lately.load(Relaxed);
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
            uploading: count(in_flight, UPLOAD) > 0 || lately & UPLOADED != 0,
            answered: requests.saturating_sub(pending).saturating_sub(cancelled),
            cancelled,
            early: self.early.load(Relaxed),
            more_was_read: !is_http2 && read > position,
            body_left: !is_http2 && read < position,
            unmeasured: protocol == UNMEASURED,
            awaits_read: self.awaits_read.load(Relaxed),
            framed: flags & FRAMED != 0,
            goaway: flags & GOAWAY != 0,
            data: if is_http2 { position as u32 } else { 0 },
        }
    }

    /// What was done, if nothing is going on: no request is in flight, nothing waits to be written,
    /// nothing is thrown away, no request was cancelled early, it is nothing but HTTP, and nothing
    /// was decided about it. A part of [`Self::sample`] that costs less. Whether more of a body is
    /// to come it does not say: that changes with a request only, which shows in the count.
    #[inline]
    pub fn at_rest(&self) -> Option<IdleStats> {
        let decided = self.verdict.load(Acquire) | self.closing.load(Relaxed);
        let busy = self.writing.load(Relaxed);
        let other = self.flags.load(Relaxed) & (UPGRADED | LINGERING);
        let early = self.early.load(Relaxed);
        let is_at_rest = u16::from(decided | busy) | other == 0
            && self.in_flight.load(Relaxed) | u64::from(early) == 0;
        is_at_rest.then(|| IdleStats {
            read: self.read.load(Relaxed),
            written: self.written.load(Relaxed),
            requests: self.requests.load(Relaxed),
        })
    }

    /// What the sweeper kept.
    #[inline]
    pub fn memory(&self) -> SweepState {
        let kept = &self.memory;
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

    /// Keeps `memory`. For one sweeper only.
    pub fn remember(&self, memory: SweepState) {
        let kept = &self.memory;
        let asked = if memory.asked { WAS_ASKED } else { 0 };
        let in_debt = if memory.in_debt { IN_DEBT } else { 0 };
        let over_budget = if memory.over_budget { OVER_BUDGET } else { 0 };
        self.phase
            .store(memory.phase | asked | in_debt | over_budget, Relaxed);
        kept.since.store(memory.since, Relaxed);
        kept.seen.store(memory.seen, Relaxed);
        kept.read.store(memory.read, Relaxed);
        kept.written.store(memory.written, Relaxed);
        kept.blocked_since.store(memory.blocked_since, Relaxed);
        kept.written_blocked.store(memory.written_blocked, Relaxed);
        self.stalled.store(memory.stalled, Relaxed);
        kept.mark.store(memory.mark, Relaxed);
    }

    /// Returns what was set before.
    fn set(&self, flags: u16) -> u16 {
        self.flags.fetch_or(flags, AcqRel)
    }

    fn is_http2(&self) -> bool {
        self.protocol.load(Relaxed) & HTTP2 != 0
    }

    fn is_set(&self, flag: u16) -> bool {
        self.flags.load(Acquire) & flag != 0
    }

    fn wake(&self) {
        // Kept: a socket that is not asked to read or write again is to be woken again. Woken
        // after the lock is given back: a waker runs code that is not ours.
        let waiting = self.wakers.lock().each();
        waiting.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Wakers {
    fn park(&mut self, side: Side, waker: &Waker) {
        if let Some(apart) = &mut self.apart {
            apart[side as usize].clone_from(waker);
            return;
        }
        match self.one.take() {
            // Whose it was nobody knows: it may be the other side's, which must be woken, too.
            Some(other) if !other.will_wake(waker) => {
                self.apart = Some(Box::new(match side {
                    Side::Reader => [waker.clone(), other],
                    Side::Writer => [other, waker.clone()],
                }));
            }
            Some(same) => self.one = Some(same),
            None => self.one = Some(waker.clone()),
        }
    }

    fn each(&self) -> [Option<Waker>; 2] {
        match &self.apart {
            Some(apart) => (**apart).clone().map(Some),
            None => [self.one.clone(), None],
        }
    }
}

impl fmt::Debug for ConnState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnState")
            .field("sample", &self.sample())
            .field("verdict", &self.verdict())
            .field("closing", &self.closing())
            .finish_non_exhaustive()
    }
}

/// One of the counts of [`ConnState::in_flight`].
#[inline]
fn count(in_flight: u64, of: u64) -> u32 {
    (in_flight / of) as u32 & (UPLOAD as u32 - 1)
}

/// 1 and up, so that 0 says nothing.
fn code(reason: Reason) -> u8 {
    const { assert!(Reason::ALL.len() < RETIRED as usize) };
    reason as u8 + 1
}

fn decode(code: u8) -> Option<CloseDecision> {
    let reason = *Reason::ALL.get(usize::from(code & !RESET).checked_sub(1)?)?;
    let ending = if code & RESET == 0 {
        CloseMode::Graceful
    } else {
        CloseMode::Reset
    };
    Some(CloseDecision { reason, ending })
}

// === ConnInfo ===

impl ConnInfo {
    /// The head of a request is here. It is in flight until what this returns is dropped, which
    /// is to be at the end of the response body.
    #[inline]
    pub fn begin_request(self: &Arc<Self>, http2: bool) -> InFlight {
        let state = self.state();
        if !http2 {
            state.protocol.store(0, Relaxed);
        } else if !state.is_http2() {
            state.protocol.store(HTTP2, Relaxed);
        }
        let is_alone = count(state.in_flight.fetch_add(REQUEST, Relaxed), REQUEST) == 0;
        let requests = match state.requests.fetch_add(1, Relaxed).checked_add(1) {
            Some(requests) => requests,
            None => {
                // It must not look as if there had been none.
                state.requests.store(u32::MAX, Relaxed);
                u32::MAX
            }
        };
        let (mut begun, mut own) = (0, 1);
        if let Some(totals) = self.totals() {
            let of_client = totals.begin_request(self.known_hash());
            own = if is_alone { 1 } else { of_client };
            begun = totals.time();
            if totals.max_requests.is_some_and(|most| requests >= most) {
                state.close(Reason::MaxRequests);
            }
        }
        let stage = Stage::Handler;
        let (is_upload, is_waiting, is_in_totals) = (false, false, true);
        InFlight {
            conn: self.clone(),
            begun,
            own,
            stage,
            is_upload,
            is_waiting,
            is_in_totals,
        }
    }

    /// Adds a request body that no handler asks for at the moment. What came of it fills a part of
    /// the window that all requests of an HTTP/2 connection share. `false` if the connection is not
    /// known to be HTTP/2.
    pub fn add_unread_body(&self) -> bool {
        let is_http2 = self.state().is_http2();
        if is_http2 {
            self.state().protocol.fetch_add(UNREAD, Relaxed);
        }
        is_http2
    }

    /// Takes away one that was added: its handler asks for it, or it is gone.
    pub fn remove_unread_body(&self) {
        self.state().protocol.fetch_sub(UNREAD, Relaxed);
    }

    /// Whether there is a request body that no handler asks for at the moment.
    pub fn has_unread_body(&self) -> bool {
        self.state().protocol.load(Relaxed) > HTTP2 && self.state().is_http2()
    }

    /// It is, or carries, something else than HTTP from now on, and counts as such until
    /// [`Self::leave`].
    ///
    /// # Errors
    ///
    /// If more would do so than [may](crate::ConnTotals::max_upgraded): how many may, and how many
    /// would. Then nothing has changed, unless the guard only tells.
    pub fn upgrade(&self) -> Result<(), (u64, u64)> {
        let Some(totals) = self.totals() else {
            self.state().set_upgraded();
            return Ok(());
        };
        if self.state().is_set(COUNTED) {
            return Ok(());
        }
        let result = totals.begin_upgraded(self.known_client());
        if result.is_err() && totals.mode == Mode::Enforce {
            totals.end_upgraded(self.known_client());
            return result;
        }
        // Counted twice, or after the socket was gone: nobody else would count it off.
        if self.state().set(UPGRADED | COUNTED) & (COUNTED | GONE) != 0 {
            totals.end_upgraded(self.known_client());
        }
        result
    }

    /// It carries nothing but HTTP any more: its last tunnel of HTTP/2 has ended.
    pub fn end_upgrade(&self) {
        let before = self.state().flags.fetch_and(!(UPGRADED | COUNTED), AcqRel);
        if before & (COUNTED | GONE) == COUNTED
            && let Some(totals) = self.totals()
        {
            totals.end_upgraded(self.known_client());
        }
    }

    /// Its socket is gone.
    pub fn leave(&self) {
        let counted = self.state().set(GONE) & (COUNTED | GONE) == COUNTED;
        if counted && let Some(totals) = self.totals() {
            totals.end_upgraded(self.known_client());
        }
    }
}

// === InFlight ===

impl InFlight {
    /// Of which connection.
    pub fn conn(&self) -> &Arc<ConnInfo> {
        &self.conn
    }

    /// On HTTP/1, a body of this length follows the head, of which some may be read already; `None`
    /// if its end shows in the body alone. Call it before anything is answered.
    pub fn with_body(&self, length: Option<u64>) {
        let state = self.conn.state();
        let (read, by_others) = (state.read.load(Relaxed), state.position.load(Relaxed));
        // The head itself came after the request before, unless it was pipelined: then its bytes
        // count among that one's, and so may some of the body.
        let is_here = read.checked_sub(by_others).filter(|is_here| *is_here > 0);
        let (Some(length), Some(is_here)) = (length, is_here) else {
            state.protocol.store(UNMEASURED, Relaxed);
            return;
        };
        // At the most, all that came since the request before is of this body.
        let end = read.saturating_add(length.saturating_sub(is_here));
        state.position.store(end, Relaxed);
    }

    /// On HTTP/2, a body follows the head.
    pub fn uploads(&mut self) {
        if !std::mem::replace(&mut self.is_upload, true) {
            self.conn.state().in_flight.fetch_add(UPLOAD, Relaxed);
        }
    }

    /// The head of its answer is here, or there will be none for another reason than its client.
    /// Without this it may count as cancelled [early](ConnStats::early).
    pub fn responded(&mut self) {
        self.stage = Stage::Responded;
    }

    /// Whether it is one more than may be: how many may be in flight, and how many are; of all
    /// connections, or of its client.
    ///
    /// A client may have no more than he leaves of three quarters of what may be, and each of his
    /// connections always one. Where peers are no clients, or nobody knows who they are, only the
    /// whole counts.
    #[inline]
    pub fn over(&self) -> Option<(u64, u64)> {
        self.conn
            .totals()?
            .over_in_flight(self.conn.peer().ip(), self.own)
    }

    /// It is refused for what is in flight on all connections, and counts no more among that: a
    /// client that takes none of its refusals would use up with them what he was refused.
    pub fn refused(&mut self) {
        if std::mem::take(&mut self.is_in_totals)
            && let Some(totals) = self.conn.totals()
        {
            totals.end_request(self.conn.known_hash());
        }
    }

    /// On HTTP/2, whether more of its answer is ready than its client takes.
    pub fn set_waiting(&mut self, is_waiting: bool) {
        let state = self.conn.state();
        match (self.is_waiting, is_waiting) {
            (false, true) => _ = state.in_flight.fetch_add(WAITING, Relaxed),
            (true, false) => _ = state.in_flight.fetch_sub(WAITING, Relaxed),
            _ => {}
        }
        self.is_waiting = is_waiting;
    }

    /// Its answer was given to the end. Without this it counts as cancelled.
    pub fn answered(&mut self) {
        self.stage = Stage::Answered;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let state = self.conn.state();
        // A handler that panics is not its client's doing.
        if self.stage == Stage::Handler
            && let Some(totals) = self.conn.totals()
            && totals.time().wrapping_sub(self.begun) < EARLY_MILLIS
            && !std::thread::panicking()
        {
            let _ = state
                .early
                .fetch_update(Relaxed, Relaxed, |early| early.checked_add(1));
        }
        if self.stage != Stage::Answered {
            state.cancelled.fetch_add(1, Relaxed);
        }
        if !state.is_http2() {
            let read = state.read.load(Relaxed);
            if read > state.position.load(Relaxed) {
                state.position.store(read, Relaxed);
            }
        }
        let mut ended = REQUEST;
        if self.is_upload {
            state.lately.store(UPLOADED, Relaxed);
            ended += UPLOAD;
        }
        if self.is_waiting {
            ended += WAITING;
        }
        state.in_flight.fetch_sub(ended, Relaxed);
        self.refused();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConnTotals, Prefix};
    use std::{net::Ipv4Addr, sync::atomic::AtomicUsize, task::Wake};

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn conn() -> Arc<ConnInfo> {
        Arc::new(ConnInfo::new(
            ([127, 0, 0, 1], 1).into(),
            None,
            Prefix::default(),
        ))
    }

    fn conn_within(totals: ConnTotals) -> Arc<ConnInfo> {
        let conn = ConnInfo::new(([127, 0, 0, 1], 1).into(), None, Prefix::default());
        Arc::new(conn.within(Arc::new(totals)))
    }

    #[test]
    fn the_first_verdict_stands_and_wakes_the_task_once() {
        let state = ConnState::default();
        let counter = Arc::new(Counter::default());
        let waker = counter.clone().into();
        state.park_reader(&waker);
        state.park_writer(&waker);
        let verdict = CloseDecision {
            reason: Reason::WriteStall,
            ending: CloseMode::Reset,
        };
        assert!(state.end(verdict));
        assert!(!state.end(CloseDecision {
            reason: Reason::Idle,
            ending: CloseMode::Graceful
        }));
        assert_eq!(state.verdict(), Some(verdict));
        assert_eq!(counter.0.load(Relaxed), 1);
    }

    #[test]
    fn each_side_is_woken_in_the_task_where_it_waited_last() {
        let counters: [Arc<Counter>; 4] = Default::default();
        let wakers = counters.clone().map(Waker::from);
        let woken = |parked: &[(Side, usize)]| {
            let state = ConnState::default();
            for (side, at) in parked {
                match side {
                    Side::Reader => state.park_reader(&wakers[*at]),
                    Side::Writer => state.park_writer(&wakers[*at]),
                }
            }
            state.probe();
            counters
                .each_ref()
                .map(|counter| counter.0.swap(0, Relaxed) > 0)
        };
        use Side::{Reader, Writer};
        assert_eq!(
            woken(&[(Reader, 0), (Writer, 1)]),
            [true, true, false, false]
        );
        assert_eq!(
            woken(&[(Reader, 0), (Writer, 0), (Writer, 1)]),
            [true, true, false, false]
        );
        assert_eq!(
            woken(&[(Writer, 0), (Reader, 1), (Writer, 2)]),
            [false, true, true, false]
        );
        let moved = [
            (Reader, 0),
            (Writer, 0),
            (Reader, 1),
            (Writer, 2),
            (Reader, 3),
        ];
        assert_eq!(woken(&moved), [false, false, true, true]);
    }

    #[test]
    fn whoever_parks_while_it_is_decided_sees_the_verdict_or_is_woken() {
        for round in 0..5000 {
            let state = ConnState::default();
            let counter = Arc::new(Counter::default());
            let waker = counter.clone().into();
            let verdict = CloseDecision {
                reason: Reason::Idle,
                ending: CloseMode::Reset,
            };
            let saw = std::thread::scope(|scope| {
                let socket = scope.spawn(|| {
                    (0..round % 50).for_each(|_| std::hint::spin_loop());
                    state.park_reader(&waker);
                    state.verdict().is_some()
                });
                state.end(verdict);
                socket.join().unwrap()
            });
            assert!(saw || counter.0.load(Relaxed) == 1, "round {round}");
        }
    }

    #[test]
    fn who_is_gone_gets_no_verdict() {
        let state = ConnState::default();
        assert_eq!(state.retire(), None);
        assert!(!state.end(CloseDecision {
            reason: Reason::Idle,
            ending: CloseMode::Graceful
        }));
        assert_eq!(state.verdict(), None);
    }

    #[test]
    fn every_reason_comes_back_from_its_code() {
        for reason in Reason::ALL {
            for ending in [CloseMode::Graceful, CloseMode::Reset] {
                let state = ConnState::default();
                state.end(CloseDecision {
                    reason: *reason,
                    ending,
                });
                assert_eq!(
                    state.verdict(),
                    Some(CloseDecision {
                        reason: *reason,
                        ending
                    })
                );
            }
        }
    }

    #[test]
    fn a_request_counts_from_its_head_to_its_drop() {
        let conn = conn();
        let mut first = conn.begin_request(false);
        let second = conn.begin_request(false);
        conn.state().add_read(7);
        assert!(conn.state().sample().more_was_read);
        first.answered();
        drop(first);
        drop(second);
        let sample = conn.state().sample();
        assert_eq!((sample.requests, sample.in_flight), (2, 0));
        assert_eq!((sample.answered, sample.cancelled), (1, 1));
        assert!(!sample.more_was_read);
    }

    #[test]
    fn what_comes_before_the_declared_end_of_a_body_is_of_that_body() {
        let conn = conn();
        let state = conn.state();
        state.add_read(100); // A head, and some of the body as far as anybody knows.
        let request = conn.begin_request(false);
        request.with_body(Some(1000));
        drop(request);
        assert!(state.sample().body_left && !state.sample().more_was_read);
        state.add_read(899);
        assert!(state.sample().body_left);
        state.add_read(1);
        assert!(!state.sample().body_left && !state.sample().more_was_read);
        state.add_read(100);
        assert!(!state.sample().body_left && state.sample().more_was_read);
        // The next one has all of its body with it.
        let request = conn.begin_request(false);
        request.with_body(Some(100));
        drop(request);
        assert!(!state.sample().body_left && !state.sample().more_was_read);
        // The end of a body without a declared length is unknown.
        let request = conn.begin_request(false);
        request.with_body(None);
        drop(request);
        state.add_read(5000);
        assert!(!state.sample().body_left && state.sample().unmeasured);
        drop(conn.begin_request(false));
        state.add_read(1);
        assert!(state.sample().more_was_read && !state.sample().unmeasured);
        conn.begin_request(false).with_body(Some(u64::MAX));
        assert!(state.sample().body_left);
    }

    #[test]
    fn the_end_of_a_pipelined_body_is_unknown() {
        let conn = conn();
        let state = conn.state();
        state.add_read(200); // Two heads, and the body of the second.
        drop(conn.begin_request(false));
        let second = conn.begin_request(false);
        second.with_body(Some(5));
        assert!(state.sample().unmeasured && !state.sample().body_left);
        drop(second);
        assert!(!state.sample().body_left && !state.sample().more_was_read);
    }

    #[test]
    fn data_of_http2_is_counted_apart_and_leads_to_no_position() {
        let conn = conn();
        let state = conn.state();
        state.add_read(500);
        state.keep_frame(7, 100);
        state.add_data(u32::MAX);
        drop(conn.begin_request(true));
        let sample = state.sample();
        assert_eq!((state.frame(), sample.data, sample.framed), (7, 99, true));
        assert!(!sample.body_left && !sample.more_was_read);
    }

    #[test]
    fn a_socket_awaits_bytes_from_an_empty_read_to_the_next_full_one() {
        let state = ConnState::default();
        assert!(!state.sample().awaits_read);
        state.park_reader(Waker::noop());
        assert!(state.sample().awaits_read);
        state.add_read(1);
        assert!(!state.sample().awaits_read);
    }

    #[test]
    fn a_connection_is_at_rest_as_long_as_nothing_is_going_on() {
        type Change = fn(&Arc<ConnInfo>) -> Option<InFlight>;
        let verdict = CloseDecision {
            reason: Reason::Idle,
            ending: CloseMode::Graceful,
        };
        let changes: [(Change, bool); 14] = [
            (|_| None, true),
            (|conn| (conn.state().add_read(5), None).1, true),
            (|conn| (conn.state().add_written(5), None).1, true),
            (|conn| (conn.state().set_tracked(), None).1, true),
            (
                |conn| (conn.begin_request(true).set_waiting(true), None).1,
                true,
            ),
            (|conn| Some(conn.begin_request(false)), false),
            (|conn| (conn.begin_request(true).uploads(), None).1, true),
            (|conn| (conn.state().early.store(1, Relaxed), None).1, false),
            (|conn| (conn.state().set_write_blocked(), None).1, false),
            (|conn| (conn.state().set_upgraded(), None).1, false),
            (|conn| (conn.state().set_lingering(), None).1, false),
            (
                |conn| (_ = conn.state().close(Reason::MaxAge), None).1,
                false,
            ),
            (|conn| (conn.state().retire(), None).1, false),
            (
                |conn| {
                    conn.state().set_write_blocked();
                    conn.state().ask_writer();
                    None
                },
                false,
            ),
        ];
        for (at, (change, is_at_rest)) in changes.iter().enumerate() {
            let conn = conn();
            conn.state().add_read(100);
            drop(conn.begin_request(false));
            let _in_flight = change(&conn);
            let ConnStats {
                read,
                written,
                requests,
                ..
            } = conn.state().sample();
            let rest = IdleStats {
                read,
                written,
                requests,
            };
            let rest = is_at_rest.then_some(rest);
            assert_eq!(conn.state().at_rest(), rest, "change {at}");
            conn.state().end(verdict);
            assert_eq!(conn.state().at_rest(), None, "change {at}, decided");
        }
    }

    #[test]
    fn the_last_request_that_is_allowed_says_so() {
        let mut totals = ConnTotals::default();
        totals.max_requests = Some(2);
        let conn = conn_within(totals);
        drop(conn.begin_request(false));
        assert_eq!(conn.state().closing(), None);
        drop(conn.begin_request(false));
        assert_eq!(conn.state().closing(), Some(Reason::MaxRequests));
        conn.state().close(Reason::MaxAge);
        assert_eq!(conn.state().closing(), Some(Reason::MaxRequests));
    }

    #[test]
    fn there_is_no_first_request_again_after_the_last_number() {
        let conn = conn();
        conn.state().requests.store(u32::MAX - 1, Relaxed);
        (0..3).for_each(|_| drop(conn.begin_request(true)));
        assert_eq!(conn.state().sample().requests, u32::MAX);
    }

    #[test]
    fn any_byte_taken_ends_a_blocked_write() {
        let state = ConnState::default();
        state.set_write_blocked();
        state.add_written(0);
        assert!(state.sample().write_blocked);
        state.add_written(1);
        assert!(!state.sample().write_blocked);
    }

    #[test]
    fn whoever_still_writes_says_so_again_when_asked() {
        let state = ConnState::default();
        let counter = Arc::new(Counter::default());
        state.ask_writer(); // Nobody does.
        state.set_write_blocked();
        state.park_writer(&counter.clone().into());
        state.ask_writer();
        assert!(!state.sample().write_blocked);
        assert_eq!(counter.0.load(Relaxed), 1);
        state.set_write_blocked();
        assert!(state.sample().write_blocked);
    }

    #[test]
    fn uploads_and_answers_that_wait_are_counted_while_they_are_in_flight() {
        let conn = conn();
        let state = conn.state();
        let counts = || {
            let sample = state.sample();
            (sample.in_flight, sample.waiting, sample.uploading)
        };
        let (mut first, mut second) = (conn.begin_request(true), conn.begin_request(true));
        first.uploads();
        first.uploads();
        assert_eq!(counts(), (2, 0, true));
        second.set_waiting(true);
        second.set_waiting(true);
        assert_eq!(counts(), (2, 1, true));
        drop(first);
        assert_eq!(counts(), (1, 1, true)); // Until the next look.
        assert!(state.look().uploading);
        assert_eq!(counts(), (1, 1, false));
        second.set_waiting(false);
        assert_eq!(counts(), (1, 0, false));
        second.set_waiting(true);
        drop(second);
        assert_eq!(counts(), (0, 0, false));
        assert_eq!(state.in_flight.load(Relaxed), 0);
    }

    #[test]
    fn only_who_does_not_wait_a_second_for_the_head_of_an_answer_cancels_early() {
        let conn = conn_within(ConnTotals::default());
        let totals = conn.totals().unwrap();
        totals.set_time(u32::MAX - 500);
        let (early, late) = (conn.begin_request(true), conn.begin_request(true));
        let (mut headed, mut answered) = (conn.begin_request(true), conn.begin_request(true));
        headed.responded();
        answered.answered();
        assert_eq!(totals.in_flight(), 4);
        totals.set_time(498);
        drop((early, headed, answered));
        totals.set_time(499);
        drop(late);
        let sample = conn.state().sample();
        assert_eq!((sample.early, sample.cancelled, sample.answered), (1, 3, 1));
        assert_eq!(totals.in_flight(), 0);
        conn.state().early.store(u16::MAX, Relaxed);
        drop(conn.begin_request(true));
        assert_eq!(conn.state().sample().early, u16::MAX);
        let conn = conn_within(ConnTotals::default());
        let panics = std::thread::spawn({
            let conn = conn.clone();
            move || {
                let _request = conn.begin_request(true);
                panic!("on purpose");
            }
        });
        assert!(panics.join().is_err());
        assert_eq!(
            (
                conn.state().sample().early,
                conn.totals().unwrap().in_flight()
            ),
            (0, 0)
        );
    }

    #[test]
    fn upgraded_connections_are_counted_until_they_are_gone_and_one_too_many_is_none() {
        let mut totals = ConnTotals::default();
        totals.max_upgraded = Some(1);
        let totals = Arc::new(totals);
        let conn = || {
            let conn = ConnInfo::new(([127, 0, 0, 1], 1).into(), None, Prefix::default());
            conn.within(totals.clone())
        };
        let (first, second) = (conn(), conn());
        first.upgrade().unwrap();
        first.upgrade().unwrap();
        assert_eq!(totals.upgraded(), 1);
        assert_eq!(second.upgrade(), Err((1, 2)));
        assert!(!second.state().is_upgraded());
        first.leave();
        first.leave();
        assert_eq!(totals.upgraded(), 0);
        second.upgrade().unwrap();
        second.end_upgrade();
        second.end_upgrade();
        assert!(totals.upgraded() == 0 && !second.state().is_upgraded());
        second.upgrade().unwrap();
        second.leave();
        second.end_upgrade();
        // A tunnel whose connection is gone already.
        second.upgrade().unwrap();
        let gone = conn();
        gone.leave();
        gone.upgrade().unwrap();
        assert_eq!(totals.upgraded(), 0);
    }

    #[test]
    fn one_client_may_have_no_more_upgraded_than_it_leaves_and_each_may_have_one() {
        let mut totals = ConnTotals::default();
        totals.max_upgraded = Some(20);
        totals.peers_are_clients = true;
        let totals = Arc::new(totals);
        let conn = |last| {
            let conn = ConnInfo::new(([192, 0, 2, last], 1).into(), None, Prefix::default());
            conn.within(totals.clone())
        };
        let first: Vec<_> = (0..20).map(|_| conn(1)).collect();
        assert_eq!(
            first.iter().filter(|conn| conn.upgrade().is_ok()).count(),
            7
        );
        let others: Vec<_> = (2..=14).map(conn).collect();
        assert!(others.iter().all(|conn| conn.upgrade().is_ok()));
        assert_eq!(totals.upgraded(), 20);
        assert_eq!(conn(99).upgrade(), Err((20, 21)));
        first.iter().chain(&others).for_each(ConnInfo::leave);
        assert_eq!(totals.upgraded(), 0);
        let again: Vec<_> = (0..7).map(|_| conn(1)).collect();
        assert!(again.iter().all(|conn| conn.upgrade().is_ok()));
        again.iter().for_each(ConnInfo::leave);
        // Of a Unix socket nobody knows who it is: only the whole counts.
        let unknown = || {
            let nobody = (Ipv4Addr::UNSPECIFIED, 0).into();
            ConnInfo::new(nobody, None, Prefix::default()).within(totals.clone())
        };
        let all: Vec<_> = (0..20).map(|_| unknown()).collect();
        assert!(all.iter().all(|conn| conn.upgrade().is_ok()));
        assert_eq!(unknown().upgrade(), Err((20, 21)));
        all.iter().for_each(ConnInfo::leave);
        assert_eq!(
            (totals.upgraded(), totals.upgraded_by_client.lock().len()),
            (0, 0)
        );
    }

    #[test]
    fn one_client_may_have_no_more_in_flight_than_he_leaves_and_each_connection_one() {
        let mut totals = ConnTotals::default();
        totals.max_in_flight = Some(100);
        totals.peers_are_clients = true;
        totals.reserved = Arc::from(["198.51.100.0/24".parse().unwrap()]);
        let totals = Arc::new(totals);
        let conn = |ip: Ipv4Addr| {
            let conn = ConnInfo::new((ip, 1).into(), None, Prefix::default());
            Arc::new(conn.within(totals.clone()))
        };
        let of = |last| conn(Ipv4Addr::new(192, 0, 2, last));
        let admitted = |conn: &Arc<ConnInfo>| {
            let all = (0..100).map(|_| conn.begin_request(true));
            all.filter(|request| request.over().is_none())
                .collect::<Vec<_>>()
        };
        // Alone, half of three quarters; then one for each connection.
        let (first, second) = (admitted(&of(1)), admitted(&of(1)));
        assert_eq!((first.len(), second.len()), (37, 1));
        // Somebody else, half of what is left.
        let other = admitted(&of(2));
        assert_eq!(other.len(), 18);
        // The last quarter is for connections with no other, whose ever they are.
        let single: Vec<_> = (0..44).map(|_| of(1).begin_request(false)).collect();
        assert!(single.iter().all(|request| request.over().is_none()));
        assert_eq!(of(3).begin_request(false).over(), Some((100, 101)));
        assert_eq!(
            conn(Ipv4Addr::new(198, 51, 100, 1))
                .begin_request(false)
                .over(),
            None
        );
        let mut refused = of(3).begin_request(false);
        assert_eq!(totals.in_flight(), 101);
        refused.refused();
        assert_eq!(totals.in_flight(), 100);
        drop((first, second, other, single, refused));
        assert_eq!(totals.in_flight(), 0);
        assert_eq!(admitted(&of(1)).len(), 37);
        // Who nobody is, has as many as there may be.
        assert_eq!(admitted(&conn(Ipv4Addr::UNSPECIFIED)).len(), 100);
    }

    #[test]
    fn where_peers_are_no_clients_only_the_whole_counts() {
        let mut totals = ConnTotals::default();
        totals.max_in_flight = Some(100);
        let conn = conn_within(totals);
        let all: Vec<_> = (0..101).map(|_| conn.begin_request(true)).collect();
        assert!(
            all[..100]
                .iter()
                .all(|request| request.over() == Some((100, 101)))
        );
        drop(all);
        let all = (0..100).map(|_| conn.begin_request(true));
        assert_eq!(all.filter(|request| request.over().is_none()).count(), 100);
    }
}
