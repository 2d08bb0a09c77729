//! What the parts that see one connection tell each other: its socket, its requests, its guard.

use crate::{
    ConnInfo, Reason,
    sync::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Mutex},
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
    write_blocked: AtomicBool,
    lingering: AtomicBool,
    // Written by the accounting layer.
    accounted: AtomicBool,
    upgraded: AtomicBool,
    http2: AtomicBool,
    requests: AtomicU32,
    in_flight: AtomicU32,
    cancelled: AtomicU32,
    /// How far what was read, or will be, is of requests that began: the count of bytes when the
    /// latest one ended, or where its body ends at the earliest.
    read_by_requests: AtomicU64,
    /// Where the body of the latest request ends shows in that body alone.
    unmeasured: AtomicBool,
    request_limit: AtomicU32,
    // Written by the guard.
    verdict: AtomicU8,
    closing: AtomicU8,
    linger_over: AtomicBool,
    probe: AtomicBool,
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
    stalled: AtomicU8,
    phase: AtomicU8,
    shadowed: AtomicBool,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// In good order: the reader sees the end of the stream, the client a FIN.
    Finish,
    /// At once: both sides see an error, the client an RST, the kernel keeps nothing.
    Reset,
}

/// What was decided about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnVerdict {
    /// Why.
    pub reason: Reason,
    /// How.
    pub ending: Ending,
}

/// The counts of a connection as one look found them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnSample {
    /// Bytes taken from the client.
    pub read: u64,
    /// Bytes that the kernel took for the client.
    pub written: u64,
    /// Whether bytes wait that the kernel does not take.
    pub write_blocked: bool,
    /// For how many seconds it took none, as of the sweeper's latest look; up to 255.
    pub stalled: u8,
    /// Whether the answers are all sent and what the client still sends is thrown away.
    pub lingering: bool,
    /// Whether the accounting layer tells of the requests; if not, there seem to be none.
    pub accounted: bool,
    /// Whether the connection became something else than HTTP, or carries such a thing.
    pub upgraded: bool,
    /// Whether the latest request was HTTP/2.
    pub http2: bool,
    /// Request heads so far.
    pub requests: u32,
    /// Requests whose response body has not ended.
    pub in_flight: u32,
    /// Requests answered to the end.
    pub answered: u32,
    /// Requests that ended before their answer did.
    pub cancelled: u32,
    /// Whether bytes came that are not of the latest request.
    pub more_was_read: bool,
    /// Whether more of the latest request's body is to come; answered or not, no other head can
    /// come before it. HTTP/1 only.
    pub body_left: bool,
}

/// What the sweeper keeps of a connection from one look to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnMemory {
    /// Its own number for the phase.
    pub phase: u8,
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
}

/// One request, from its head to the end of its response body. Dropping it is that end.
#[derive(Debug)]
pub struct InFlight {
    conn: Arc<ConnInfo>,
    answered: bool,
}

// === ConnState ===

/// The socket's side.
impl ConnState {
    /// `bytes` were read.
    #[inline]
    pub fn add_read(&self, bytes: usize) {
        // The socket alone writes this, and has itself borrowed mutably.
        self.read.store(self.read.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
    }

    /// The kernel took `bytes`.
    #[inline]
    pub fn add_written(&self, bytes: usize) {
        self.written.store(self.written.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
        if bytes > 0 && self.write_blocked.load(Relaxed) {
            self.write_blocked.store(false, Relaxed);
        }
    }

    /// The kernel takes no more.
    pub fn set_write_blocked(&self) {
        self.write_blocked.store(true, Relaxed);
    }

    /// The answers are sent, and what still comes is thrown away.
    pub fn set_lingering(&self) {
        self.lingering.store(true, Relaxed);
    }

    /// Whether that was for long enough.
    pub fn is_linger_over(&self) -> bool {
        self.linger_over.load(Acquire)
    }

    /// What was decided, if anything.
    #[inline]
    pub fn verdict(&self) -> Option<ConnVerdict> {
        let code = self.verdict.load(Acquire);
        if code == 0 { None } else { decode(code) }
    }

    /// Keeps `waker` for a verdict while there is nothing to read. Look at [`Self::verdict`]
    /// afterwards: one that came before found nobody to wake.
    pub fn park_reader(&self, waker: &Waker) {
        self.wakers.lock().park(Side::Reader, waker);
    }

    /// The same while nothing can be written.
    pub fn park_writer(&self, waker: &Waker) {
        self.wakers.lock().park(Side::Writer, waker);
    }

    /// Whether the socket was asked to look if its client is still there; asks it no more.
    #[inline]
    pub fn take_probe(&self) -> bool {
        self.probe.load(Relaxed) && self.probe.swap(false, Relaxed)
    }
}

/// The accounting layer's side.
impl ConnState {
    /// From now on all requests are told of.
    pub fn set_accounted(&self) {
        self.accounted.store(true, Relaxed);
    }

    /// The connection is, or carries, something else than HTTP from now on.
    pub fn set_upgraded(&self) {
        self.upgraded.store(true, Relaxed);
    }

    /// Whether it does.
    pub fn is_upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    /// Whether requests are told of.
    pub fn is_accounted(&self) -> bool {
        self.accounted.load(Relaxed)
    }

    /// Why the connection is to take no further request, if it is not.
    #[inline]
    pub fn closing(&self) -> Option<Reason> {
        decode(self.closing.load(Acquire)).map(|verdict| verdict.reason)
    }
}

/// The guard's side.
impl ConnState {
    /// After `requests` requests the connection is [closing](Self::closing). Defaults to never.
    pub fn limit_requests(&self, requests: u32) {
        self.request_limit.store(requests, Relaxed);
    }

    /// Lets it take no further request, because of `reason`, and wakes whoever waits for it: a
    /// server may have something to say about that. The first reason stands.
    pub fn close(&self, reason: Reason) {
        if self.closing.compare_exchange(0, code(reason), Release, Relaxed).is_ok() {
            self.wake();
        }
    }

    /// Ends the connection and wakes whoever waits for it. `false` if it was decided before.
    pub fn end(&self, verdict: ConnVerdict) -> bool {
        let reset = if verdict.ending == Ending::Reset { RESET } else { 0 };
        let code = code(verdict.reason) | reset;
        let is_first = self.verdict.compare_exchange(0, code, Release, Relaxed).is_ok();
        if is_first {
            self.wake();
        }
        is_first
    }

    /// The connection is gone, because of what is returned if of a guard's doing. No verdict is
    /// passed on it any more.
    pub fn retire(&self) -> Option<ConnVerdict> {
        // Dropped after the lock is given back.
        let _nobody_waits = std::mem::take(&mut *self.wakers.lock());
        decode(self.verdict.swap(RETIRED, AcqRel))
    }

    /// It has lingered for long enough.
    pub fn end_lingering(&self) {
        self.linger_over.store(true, Release);
        self.wake();
    }

    /// Asks the socket to look if its client is still there.
    pub fn probe(&self) {
        self.probe.store(true, Relaxed);
        self.wake();
    }

    /// Whether a verdict was only told of, in shadow mode; from now on it was.
    pub fn swap_shadowed(&self) -> bool {
        self.memory.shadowed.swap(true, Relaxed)
    }

    /// Every count now.
    pub fn sample(&self) -> ConnSample {
        let read = self.read.load(Relaxed);
        let read_by_requests = self.read_by_requests.load(Relaxed);
        let in_flight = self.in_flight.load(Relaxed);
        let (requests, cancelled) = (self.requests.load(Relaxed), self.cancelled.load(Relaxed));
        ConnSample {
            read,
            written: self.written.load(Relaxed),
            write_blocked: self.write_blocked.load(Relaxed),
            stalled: self.memory.stalled.load(Relaxed),
            lingering: self.lingering.load(Relaxed),
            accounted: self.accounted.load(Relaxed),
            upgraded: self.upgraded.load(Relaxed),
            http2: self.http2.load(Relaxed),
            requests,
            in_flight,
            answered: requests.saturating_sub(in_flight).saturating_sub(cancelled),
            cancelled,
            more_was_read: read > read_by_requests && !self.unmeasured.load(Relaxed),
            body_left: read < read_by_requests,
        }
    }

    /// What the sweeper kept.
    pub fn memory(&self) -> ConnMemory {
        let kept = &self.memory;
        ConnMemory {
            phase: kept.phase.load(Relaxed),
            since: kept.since.load(Relaxed),
            seen: kept.seen.load(Relaxed),
            read: kept.read.load(Relaxed),
            written: kept.written.load(Relaxed),
            blocked_since: kept.blocked_since.load(Relaxed),
            written_blocked: kept.written_blocked.load(Relaxed),
            stalled: kept.stalled.load(Relaxed),
        }
    }

    /// Keeps `memory`. For one sweeper only.
    pub fn remember(&self, memory: ConnMemory) {
        let kept = &self.memory;
        kept.phase.store(memory.phase, Relaxed);
        kept.since.store(memory.since, Relaxed);
        kept.seen.store(memory.seen, Relaxed);
        kept.read.store(memory.read, Relaxed);
        kept.written.store(memory.written, Relaxed);
        kept.blocked_since.store(memory.blocked_since, Relaxed);
        kept.written_blocked.store(memory.written_blocked, Relaxed);
        kept.stalled.store(memory.stalled, Relaxed);
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

/// 1 and up, so that 0 says nothing.
fn code(reason: Reason) -> u8 {
    const { assert!(Reason::ALL.len() < RETIRED as usize) };
    reason as u8 + 1
}

fn decode(code: u8) -> Option<ConnVerdict> {
    let reason = *Reason::ALL.get(usize::from(code & !RESET).checked_sub(1)?)?;
    let ending = if code & RESET == 0 { Ending::Finish } else { Ending::Reset };
    Some(ConnVerdict { reason, ending })
}

// === ConnInfo ===

impl ConnInfo {
    /// The head of a request is here. It is in flight until what this returns is dropped, which
    /// is to be at the end of the response body.
    pub fn begin_request(self: &Arc<Self>, http2: bool) -> InFlight {
        let state = self.state();
        state.http2.store(http2, Relaxed);
        state.unmeasured.store(false, Relaxed);
        state.in_flight.fetch_add(1, Relaxed);
        let requests = match state.requests.fetch_add(1, Relaxed).checked_add(1) {
            Some(requests) => requests,
            None => {
                // It must not look as if there had been none.
                state.requests.store(u32::MAX, Relaxed);
                u32::MAX
            }
        };
        let limit = state.request_limit.load(Relaxed);
        if limit != 0 && requests >= limit {
            state.close(Reason::MaxRequests);
        }
        InFlight { conn: self.clone(), answered: false }
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
        state.unmeasured.store(length.is_none(), Relaxed);
        let Some(length) = length else { return };
        let (read, by_others) = (state.read.load(Relaxed), state.read_by_requests.load(Relaxed));
        // At the most, all that came since the request before is of this body.
        let is_here = read.saturating_sub(by_others);
        let end = read.saturating_add(length.saturating_sub(is_here));
        state.read_by_requests.store(end, Relaxed);
    }

    /// Its answer was given to the end. Without this it counts as cancelled.
    pub fn answered(&mut self) {
        self.answered = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let state = self.conn.state();
        if !self.answered {
            state.cancelled.fetch_add(1, Relaxed);
        }
        let read = state.read.load(Relaxed);
        if read > state.read_by_requests.load(Relaxed) {
            state.read_by_requests.store(read, Relaxed);
        }
        state.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Prefix;
    use std::{sync::atomic::AtomicUsize, task::Wake};

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn conn() -> Arc<ConnInfo> {
        Arc::new(ConnInfo::new(([127, 0, 0, 1], 1).into(), None, Prefix::default()))
    }

    #[test]
    fn the_first_verdict_stands_and_wakes_the_task_once() {
        let state = ConnState::default();
        let counter = Arc::new(Counter::default());
        let waker = counter.clone().into();
        state.park_reader(&waker);
        state.park_writer(&waker);
        let verdict = ConnVerdict { reason: Reason::WriteStall, ending: Ending::Reset };
        assert!(state.end(verdict));
        assert!(!state.end(ConnVerdict { reason: Reason::Idle, ending: Ending::Finish }));
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
            counters.each_ref().map(|counter| counter.0.swap(0, Relaxed) > 0)
        };
        use Side::{Reader, Writer};
        assert_eq!(woken(&[(Reader, 0), (Writer, 1)]), [true, true, false, false]);
        assert_eq!(woken(&[(Reader, 0), (Writer, 0), (Writer, 1)]), [true, true, false, false]);
        assert_eq!(woken(&[(Writer, 0), (Reader, 1), (Writer, 2)]), [false, true, true, false]);
        let moved = [(Reader, 0), (Writer, 0), (Reader, 1), (Writer, 2), (Reader, 3)];
        assert_eq!(woken(&moved), [false, false, true, true]);
    }

    #[test]
    fn whoever_parks_while_it_is_decided_sees_the_verdict_or_is_woken() {
        for round in 0..5000 {
            let state = ConnState::default();
            let counter = Arc::new(Counter::default());
            let waker = counter.clone().into();
            let verdict = ConnVerdict { reason: Reason::Idle, ending: Ending::Reset };
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
        assert!(!state.end(ConnVerdict { reason: Reason::Idle, ending: Ending::Finish }));
        assert_eq!(state.verdict(), None);
    }

    #[test]
    fn every_reason_comes_back_from_its_code() {
        for reason in Reason::ALL {
            for ending in [Ending::Finish, Ending::Reset] {
                let state = ConnState::default();
                state.end(ConnVerdict { reason: *reason, ending });
                assert_eq!(state.verdict(), Some(ConnVerdict { reason: *reason, ending }));
            }
        }
    }

    #[test]
    fn a_request_counts_from_its_head_to_its_drop() {
        let conn = conn();
        let mut first = conn.begin_request(false);
        let second = conn.begin_request(true);
        conn.state().add_read(7);
        assert!(conn.state().sample().more_was_read);
        first.answered();
        drop(first);
        drop(second);
        let sample = conn.state().sample();
        assert_eq!((sample.requests, sample.in_flight), (2, 0));
        assert_eq!((sample.answered, sample.cancelled), (1, 1));
        assert!(!sample.more_was_read && sample.http2);
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
        // Of a body without a declared length nobody knows where it ends.
        let request = conn.begin_request(false);
        request.with_body(None);
        drop(request);
        state.add_read(5000);
        assert!(!state.sample().body_left && !state.sample().more_was_read);
        drop(conn.begin_request(false));
        state.add_read(1);
        assert!(state.sample().more_was_read);
        conn.begin_request(false).with_body(Some(u64::MAX));
        assert!(state.sample().body_left);
    }

    #[test]
    fn the_last_request_that_is_allowed_says_so() {
        let conn = conn();
        conn.state().limit_requests(2);
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
}
