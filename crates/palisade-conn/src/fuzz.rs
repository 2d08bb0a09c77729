//! A guarded connection under any order of polls, close decisions and pauses: a fuzz target, and a
//! property test of the suite.

use crate::{
    CloseMode, ConnGuard, GuardedIo, Mode, Reason, Transport,
    connection::{decision::CloseDecision, in_flight::InFlight},
};
use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Each connection goes through so many steps at most.
const STEPS: usize = 300;
const SECOND: Duration = Duration::from_secs(1);

/// What passes is what the transport has, in order and counted; nothing passes after a verdict,
/// whoever waits when it comes is woken, and nothing is left in the end.
pub fn connection(data: &[u8]) {
    let [first, steps @ ..] = data else { return };
    let mode = match first % 8 {
        0 => Mode::Off,
        1 => Mode::Shadow,
        _ => Mode::Enforce,
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build();
    runtime.expect("a runtime can be built").block_on(async {
        let guard = ConnGuard::builder()
            .mode(mode)
            .max_connections(2)
            .no_accept_rate();
        let guard = guard
            .first_request(6 * SECOND)
            .idle(8 * SECOND)
            .upgraded_idle(8 * SECOND);
        let guard = guard.head(4 * SECOND).write_stall(5 * SECOND).probe(SECOND);
        let guard = guard.build().expect("these numbers can be");
        let mut socket = Socket::new(&guard, mode, first & 8 != 0);
        let conn = socket.io.conn().clone();
        for &[kind, size] in steps.as_chunks().0.iter().take(STEPS) {
            socket.step(&guard, kind, usize::from(size)).await;
        }
        drop(socket);
        let now = guard.snapshot();
        assert_eq!(
            (
                now.open,
                now.close_pending,
                now.distinct_clients,
                now.in_flight
            ),
            (0, 0, 0, 0)
        );
        assert_eq!(
            (conn.state().stats().in_flight, conn.state().decision()),
            (0, None)
        );
    });
}

/// A connection, whoever polls it, and what they must see.
struct Socket {
    io: GuardedIo<Wire>,
    wire: Rc<RefCell<State>>,
    mode: Mode,
    /// Of one task, or of one that reads and one that writes. Where there are two it carries no
    /// HTTP, which hyper always serves in one.
    tasks: [Arc<Task>; 2],
    in_two: bool,
    /// Which of them have waited for it, and are woken ever after.
    parked: [bool; 2],
    /// To look whether its client is still there.
    is_asked: bool,
    requests: Vec<InFlight>,
    others: Vec<GuardedIo<Wire>>,
}

#[derive(Default)]
struct Task {
    woken: AtomicBool,
}

// === Socket ===

impl Socket {
    fn new(guard: &ConnGuard, mode: Mode, in_two: bool) -> Self {
        let wire = Rc::default();
        let io = guard.admit(
            Wire(Rc::clone(&wire)),
            Some(([192, 0, 2, 1], 1).into()),
            None,
        );
        let io = io.expect("the first one has a place");
        Self {
            io,
            wire,
            mode,
            tasks: Default::default(),
            in_two,
            parked: [false; 2],
            is_asked: false,
            requests: Vec::new(),
            others: Vec::new(),
        }
    }

    async fn step(&mut self, guard: &ConnGuard, kind: u8, size: usize) {
        let conn = self.io.conn().clone();
        let before = conn.state().decision();
        self.tasks
            .iter()
            .for_each(|task| task.woken.store(false, Relaxed));
        match kind % 24 {
            0..2 => self.wire.borrow_mut().arrive(size * 16),
            2..4 => self.wire.borrow_mut().make_room(size * 16),
            4..8 => return self.read(size),
            8..10 => return self.write(&[size]),
            10 => return self.write(&[size / 2, 0, size]),
            11..14 => return self.flush(),
            15 => self.wire.borrow_mut().is_stuck ^= true,
            16 => self.wire.borrow_mut().has_hung_up = true,
            17 if size < 4 => self.wire.borrow_mut().fails = true,
            17 if size < 32 => self.wire.borrow_mut().has_ended = true,
            14 | 17 => return self.shut_down(),
            18 => {
                conn.state().probe();
                self.is_asked = true;
                self.all_woken();
            }
            19 => {
                conn.state().end_lingering();
                self.all_woken();
            }
            20 if size.is_multiple_of(8) => {
                let ending = if size < 128 {
                    CloseMode::Graceful
                } else {
                    CloseMode::Reset
                };
                let is_ended = guard.close(&conn, Reason::Idle, ending);
                assert!(!is_ended || before.is_none());
            }
            20 if self.in_two => {}
            20 if size % 8 == 1 => conn.state().set_upgraded(),
            20 => conn.set_tracked(),
            21 if size.is_multiple_of(2) => drop(self.requests.pop()),
            21 => self
                .requests
                .extend(InFlight::begin(conn.info(), size % 4 == 1)),
            22 if size.is_multiple_of(2) => drop(self.others.pop()),
            22 => self.others.extend(guard.admit(Wire::default(), None, None)),
            _ => tokio::time::sleep(Duration::from_millis(size as u64 * 40)).await,
        }
        match (before, conn.state().decision()) {
            (None, Some(_)) => self.all_woken(),
            (before, now) => assert_eq!(before, now),
        }
    }

    fn read(&mut self, size: usize) {
        let taken = self.wire.borrow().taken;
        let mut buf = vec![0; size];
        let mut buf = ReadBuf::new(&mut buf);
        let (result, verdict) = self.poll_and_look(0, |io, cx| io.poll_read(cx, &mut buf));
        let wire = self.wire.borrow();
        let filled = buf.filled();
        assert!(
            filled
                .iter()
                .copied()
                .eq((taken..wire.taken).map(|place| place as u8))
        );
        match (verdict.map(|verdict| verdict.mode), &result) {
            (Some(CloseMode::Graceful), Poll::Ready(Ok(()))) => assert!(filled.is_empty()),
            (Some(CloseMode::Reset), Poll::Ready(Err(_))) => {
                assert!(filled.is_empty() && wire.is_reset);
            }
            (Some(_), other) => panic!("{other:?} after a verdict"),
            (None, Poll::Ready(Ok(()))) => {
                assert!(size == 0 || !filled.is_empty() || wire.has_ended);
            }
            (None, Poll::Ready(Err(_))) => assert!(wire.fails),
            (None, Poll::Pending) => assert_eq!(wire.taken, wire.arrived),
        }
    }

    /// One slice, or several at once.
    fn write(&mut self, lengths: &[usize]) {
        let sent = self.wire.borrow().sent;
        let all: usize = lengths.iter().sum();
        let bytes: Vec<u8> = (sent..sent + all).map(|place| place as u8).collect();
        let result = if lengths.len() == 1 {
            self.poll(1, |io, cx| io.poll_write(cx, &bytes))
        } else {
            let mut rest = &bytes[..];
            let cut = lengths.iter().map(|length| {
                let (slice, after) = rest.split_at(*length);
                rest = after;
                IoSlice::new(slice)
            });
            let slices: Vec<_> = cut.collect();
            self.poll(1, |io, cx| io.poll_write_vectored(cx, &slices))
        };
        let wire = self.wire.borrow();
        let took = wire.sent - sent;
        match (self.decision(), &result) {
            (Some(verdict), Poll::Ready(Err(_))) => {
                assert!(took == 0 && wire.is_reset == (verdict.mode == CloseMode::Reset));
            }
            (Some(_), other) => panic!("{other:?} after a verdict"),
            (None, Poll::Ready(Ok(count))) => assert_eq!(*count, took),
            (None, Poll::Ready(Err(_))) => assert!(wire.fails && took == 0),
            (None, Poll::Pending) => {
                let is_blocked = self.io.conn().state().stats().write_blocked;
                assert!(took == 0 && (is_blocked || all == 0 || self.mode == Mode::Off));
            }
        }
    }

    fn flush(&mut self) {
        let (result, verdict) = self.poll_and_look(1, AsyncWrite::poll_flush);
        let is_error = matches!(result, Poll::Ready(Err(_)));
        let wire = self.wire.borrow();
        assert!(is_error == (verdict.is_some() || wire.fails));
        assert!(result.is_pending() == (wire.is_stuck && !is_error));
        // hyper may call nothing else: whoever flushes is woken from now on.
        self.parked[0] |= self.mode != Mode::Off && !self.in_two && !is_error;
    }

    fn shut_down(&mut self) {
        let (was_shut, taken) = (self.wire.borrow().is_shut, self.wire.borrow().taken);
        let result = self.poll(1, AsyncWrite::poll_shutdown);
        let wire = self.wire.borrow();
        match (self.decision().map(|verdict| verdict.mode), &result) {
            (_, Poll::Ready(Ok(()))) => assert!(wire.is_shut),
            (Some(CloseMode::Reset), Poll::Ready(Err(_))) => {
                assert!(wire.is_reset && wire.is_shut == was_shut);
            }
            (_, Poll::Ready(Err(_))) => assert!(wire.fails || wire.is_stuck),
            // It lingers, or the transport takes its time.
            (None, Poll::Pending) => assert!(wire.is_shut || wire.is_stuck),
            (Some(_), Poll::Pending) => panic!("it waits after a verdict"),
        }
        assert!(self.decision().is_none() || wire.taken == taken);
    }

    /// A poll that also looks after the client if it was asked to, and the verdict that it found.
    fn poll_and_look<T>(
        &mut self,
        side: usize,
        poll: impl FnOnce(Pin<&mut GuardedIo<Wire>>, &mut Context<'_>) -> Poll<T>,
    ) -> (Poll<T>, Option<CloseDecision>) {
        let before = self.decision();
        let result = self.poll(side, poll);
        let after = self.decision();
        let is_gone = self.wire.borrow().has_hung_up && !self.io.conn().state().is_upgraded();
        let is_found_out = before.is_none() && after.is_some();
        assert!(before == after || is_found_out && is_gone);
        let must_be = std::mem::take(&mut self.is_asked) && is_gone && self.mode == Mode::Enforce;
        assert!(!must_be || after.is_some());
        (result, after)
    }

    /// By the task of this `side`, which waits if there is nothing.
    fn poll<T>(
        &mut self,
        side: usize,
        poll: impl FnOnce(Pin<&mut GuardedIo<Wire>>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let side = if self.in_two { side } else { 0 };
        let waker = Waker::from(Arc::clone(&self.tasks[side]));
        let result = poll(Pin::new(&mut self.io), &mut Context::from_waker(&waker));
        self.parked[side] |= result.is_pending() && self.mode != Mode::Off;
        let (stats, wire) = (self.io.conn().state().stats(), self.wire.borrow());
        let counted = if self.mode == Mode::Off {
            (0, 0)
        } else {
            (wire.taken, wire.sent)
        };
        assert_eq!(
            (stats.read, stats.written),
            (counted.0 as u64, counted.1 as u64)
        );
        result
    }

    fn decision(&self) -> Option<CloseDecision> {
        self.io.conn().state().decision()
    }

    fn all_woken(&self) {
        for (task, parked) in self.tasks.iter().zip(&self.parked) {
            assert!(!parked || task.woken.load(Relaxed));
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Relaxed);
    }
}

// === Wire ===

/// A transport whose every byte says where it stands.
#[derive(Debug, Default)]
struct Wire(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    arrived: usize,
    taken: usize,
    room: usize,
    sent: usize,
    has_ended: bool,
    has_hung_up: bool,
    fails: bool,
    is_stuck: bool,
    is_shut: bool,
    is_reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn arrive(&mut self, bytes: usize) {
        self.arrived += bytes;
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    fn make_room(&mut self, bytes: usize) {
        self.room += bytes;
        self.writer.take().into_iter().for_each(Waker::wake);
    }

    fn fails(&self) -> io::Result<()> {
        if self.fails {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(())
        }
    }

    fn settle(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.fails()?;
        if self.is_stuck {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl Transport for Wire {
    fn reset_on_close(&self) {
        self.0.borrow_mut().is_reset = true;
    }

    fn has_hung_up(&self) -> bool {
        self.0.borrow().has_hung_up
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut wire = self.0.borrow_mut();
        wire.fails()?;
        let count = buf.remaining().min(wire.arrived - wire.taken);
        if count == 0 && buf.remaining() > 0 && !wire.has_ended {
            wire.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        for _ in 0..count {
            buf.put_slice(&[wire.taken as u8]);
            wire.taken += 1;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut wire = self.0.borrow_mut();
        wire.fails()?;
        if wire.room == 0 {
            wire.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = wire.room.min(slices.iter().map(|slice| slice.len()).sum());
        for byte in slices.iter().flat_map(|slice| slice.iter()).take(count) {
            assert_eq!(*byte, wire.sent as u8);
            wire.sent += 1;
        }
        wire.room -= count;
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().settle(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.borrow_mut();
        std::task::ready!(wire.settle(cx))?;
        wire.is_shut = true;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    proptest! {
        #[test]
        fn in_any_order_of_events_the_bytes_of_a_connection_are_in_order_and_nothing_is_left(
            data in vec(any::<u8>(), 0..600),
        ) {
            super::connection(&data);
        }
    }
}
