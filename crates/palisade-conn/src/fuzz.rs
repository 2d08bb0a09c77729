//! A fuzz target and a property test: a guarded connection under any order of polls, close
//! decisions and pauses.

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

/// The largest number of steps of one run.
const MAX_STEPS: usize = 300;
const SECOND: Duration = Duration::from_secs(1);

/// Runs the steps that `data` encodes on a guarded connection.
///
/// Bytes pass in order and are counted. A close decision wakes each task that waits, and no bytes
/// pass after it. In the end the guard counts nothing.
///
/// # Panics
///
/// If one of these does not hold.
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
            .accept_rate(None);
        let guard = guard
            .first_request_timeout(6 * SECOND)
            .idle_timeout(8 * SECOND)
            .upgraded_idle_timeout(8 * SECOND);
        let guard = guard
            .header_timeout(4 * SECOND)
            .write_timeout(5 * SECOND)
            .probe_interval(SECOND);
        let guard = guard.build().expect("the configuration is valid");
        let mut harness = Harness::new(&guard, mode, first & 8 != 0);
        let conn = harness.io.conn().clone();
        for &[kind, size] in steps.as_chunks().0.iter().take(MAX_STEPS) {
            harness.step(&guard, kind, usize::from(size)).await;
        }
        drop(harness);
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

/// A guarded connection, the tasks that poll it, and what they are expected to see.
struct Harness {
    io: GuardedIo<FakeTransport>,
    transport: Rc<RefCell<TransportState>>,
    mode: Mode,
    /// The first task reads and writes. If `is_split`, it reads and the second one writes.
    tasks: [Arc<Task>; 2],
    /// Whether two tasks share the connection. It carries no HTTP then, because hyper always serves
    /// HTTP in one task.
    is_split: bool,
    /// Which tasks have waited for the connection. They are woken from then on.
    parked: [bool; 2],
    /// Whether the next poll has to check whether the client has hung up.
    probe_requested: bool,
    requests: Vec<InFlight>,
    other_ios: Vec<GuardedIo<FakeTransport>>,
}

#[derive(Default)]
struct Task {
    woken: AtomicBool,
}

// === Harness ===

impl Harness {
    fn new(guard: &ConnGuard, mode: Mode, is_split: bool) -> Self {
        let transport = Rc::default();
        let io = guard.admit(
            FakeTransport(Rc::clone(&transport)),
            Some(([192, 0, 2, 1], 1).into()),
            None,
        );
        let io = io.expect("the first connection is admitted");
        Self {
            io,
            transport,
            mode,
            tasks: Default::default(),
            is_split,
            parked: [false; 2],
            probe_requested: false,
            requests: Vec::new(),
            other_ios: Vec::new(),
        }
    }

    /// Runs one step. A decision may only be made where there was none, and wakes the tasks.
    async fn step(&mut self, guard: &ConnGuard, kind: u8, size: usize) {
        let conn = self.io.conn().clone();
        let before = conn.state().decision();
        self.tasks
            .iter()
            .for_each(|task| task.woken.store(false, Relaxed));
        match kind % 24 {
            0..2 => self.transport.borrow_mut().arrive(size * 16),
            2..4 => self.transport.borrow_mut().add_write_capacity(size * 16),
            4..8 => return self.read(size),
            8..10 => return self.write(&[size]),
            10 => return self.write(&[size / 2, 0, size]),
            11..14 => return self.flush(),
            15 => self.transport.borrow_mut().is_flush_blocked ^= true,
            16 => self.transport.borrow_mut().has_hung_up = true,
            17 if size < 4 => self.transport.borrow_mut().is_failing = true,
            17 if size < 32 => self.transport.borrow_mut().has_ended = true,
            14 | 17 => return self.shutdown(),
            18 => {
                conn.state().probe();
                self.probe_requested = true;
                self.assert_parked_tasks_woken();
            }
            19 => {
                conn.state().end_lingering();
                self.assert_parked_tasks_woken();
            }
            20 if size.is_multiple_of(8) => {
                let mode = if size < 128 {
                    CloseMode::Graceful
                } else {
                    CloseMode::Reset
                };
                let is_first = guard.close(&conn, Reason::Idle, mode);
                assert!(!is_first || before.is_none());
            }
            20 if self.is_split => {}
            20 if size % 8 == 1 => conn.state().set_upgraded(),
            20 => conn.set_tracked(),
            21 if size.is_multiple_of(2) => drop(self.requests.pop()),
            21 => self
                .requests
                .extend(InFlight::begin(conn.info(), size % 4 == 1, None)),
            22 if size.is_multiple_of(2) => drop(self.other_ios.pop()),
            22 => self
                .other_ios
                .extend(guard.admit(FakeTransport::default(), None, None)),
            _ => tokio::time::sleep(Duration::from_millis(size as u64 * 40)).await,
        }
        match (before, conn.state().decision()) {
            (None, Some(_)) => self.assert_parked_tasks_woken(),
            (before, now) => assert_eq!(before, now),
        }
    }

    fn read(&mut self, size: usize) {
        let read_before = self.transport.borrow().read;
        let mut buf = vec![0; size];
        let mut buf = ReadBuf::new(&mut buf);
        let (result, decision) = self.poll_and_check_probe(0, |io, cx| io.poll_read(cx, &mut buf));
        let transport = self.transport.borrow();
        let filled = buf.filled();
        assert!(
            filled
                .iter()
                .copied()
                .eq((read_before..transport.read).map(|position| position as u8))
        );
        match (decision.map(|decision| decision.mode), &result) {
            (Some(CloseMode::Graceful), Poll::Ready(Ok(()))) => assert!(filled.is_empty()),
            (Some(CloseMode::Reset), Poll::Ready(Err(_))) => {
                assert!(filled.is_empty() && transport.is_reset);
            }
            (Some(_), other) => panic!("{other:?} after a decision"),
            (None, Poll::Ready(Ok(()))) => {
                assert!(size == 0 || !filled.is_empty() || transport.has_ended);
            }
            (None, Poll::Ready(Err(_))) => assert!(transport.is_failing),
            (None, Poll::Pending) => assert_eq!(transport.read, transport.arrived),
        }
    }

    /// Writes bytes of these `lengths`: one slice, or several at once.
    fn write(&mut self, lengths: &[usize]) {
        let written_before = self.transport.borrow().written;
        let all: usize = lengths.iter().sum();
        let bytes: Vec<u8> = (written_before..written_before + all)
            .map(|position| position as u8)
            .collect();
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
        let transport = self.transport.borrow();
        let count_written = transport.written - written_before;
        match (self.decision(), &result) {
            (Some(decision), Poll::Ready(Err(_))) => {
                assert!(
                    count_written == 0 && transport.is_reset == (decision.mode == CloseMode::Reset)
                );
            }
            (Some(_), other) => panic!("{other:?} after a decision"),
            (None, Poll::Ready(Ok(count))) => assert_eq!(*count, count_written),
            (None, Poll::Ready(Err(_))) => assert!(transport.is_failing && count_written == 0),
            (None, Poll::Pending) => {
                let is_blocked = self.io.conn().state().stats().write_blocked;
                assert!(count_written == 0 && (is_blocked || all == 0 || self.mode == Mode::Off));
            }
        }
    }

    fn flush(&mut self) {
        let (result, decision) = self.poll_and_check_probe(1, AsyncWrite::poll_flush);
        let is_error = matches!(result, Poll::Ready(Err(_)));
        let transport = self.transport.borrow();
        assert!(is_error == (decision.is_some() || transport.is_failing));
        assert!(result.is_pending() == (transport.is_flush_blocked && !is_error));
        // hyper may call nothing else, so a task that flushes is woken from now on.
        self.parked[0] |= self.mode != Mode::Off && !self.is_split && !is_error;
    }

    fn shutdown(&mut self) {
        let was_shut = self.transport.borrow().is_shut;
        let read_before = self.transport.borrow().read;
        let result = self.poll(1, AsyncWrite::poll_shutdown);
        let transport = self.transport.borrow();
        match (self.decision().map(|decision| decision.mode), &result) {
            (_, Poll::Ready(Ok(()))) => assert!(transport.is_shut),
            (Some(CloseMode::Reset), Poll::Ready(Err(_))) => {
                assert!(transport.is_reset && transport.is_shut == was_shut);
            }
            (_, Poll::Ready(Err(_))) => assert!(transport.is_failing || transport.is_flush_blocked),
            // The connection lingers, or the transport is not ready.
            (None, Poll::Pending) => assert!(transport.is_shut || transport.is_flush_blocked),
            (Some(_), Poll::Pending) => panic!("the shutdown is pending after a decision"),
        }
        assert!(self.decision().is_none() || transport.read == read_before);
    }

    /// Polls with a function that also answers a probe, and returns the decision after it.
    fn poll_and_check_probe<T>(
        &mut self,
        side: usize,
        poll: impl FnOnce(Pin<&mut GuardedIo<FakeTransport>>, &mut Context<'_>) -> Poll<T>,
    ) -> (Poll<T>, Option<CloseDecision>) {
        let before = self.decision();
        let result = self.poll(side, poll);
        let after = self.decision();
        let is_gone = self.transport.borrow().has_hung_up && !self.io.conn().state().is_upgraded();
        let is_detected = before.is_none() && after.is_some();
        assert!(before == after || is_detected && is_gone);
        let is_probed = std::mem::take(&mut self.probe_requested);
        let must_detect = is_probed && is_gone && self.mode == Mode::Enforce;
        assert!(!must_detect || after.is_some());
        (result, after)
    }

    /// Polls in the task of this `side`: 0 reads and 1 writes. The task waits if the result is
    /// pending.
    fn poll<T>(
        &mut self,
        side: usize,
        poll: impl FnOnce(Pin<&mut GuardedIo<FakeTransport>>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let side = if self.is_split { side } else { 0 };
        let waker = Waker::from(Arc::clone(&self.tasks[side]));
        let result = poll(Pin::new(&mut self.io), &mut Context::from_waker(&waker));
        self.parked[side] |= result.is_pending() && self.mode != Mode::Off;
        let (stats, transport) = (self.io.conn().state().stats(), self.transport.borrow());
        let counted = if self.mode == Mode::Off {
            (0, 0)
        } else {
            (transport.read, transport.written)
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

    fn assert_parked_tasks_woken(&self) {
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

// === FakeTransport ===

/// A transport on which the value of each byte is its position in the stream.
#[derive(Debug, Default)]
struct FakeTransport(Rc<RefCell<TransportState>>);

#[derive(Debug, Default)]
struct TransportState {
    arrived: usize,
    read: usize,
    write_capacity: usize,
    written: usize,
    has_ended: bool,
    has_hung_up: bool,
    is_failing: bool,
    is_flush_blocked: bool,
    is_shut: bool,
    is_reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl TransportState {
    fn arrive(&mut self, bytes: usize) {
        self.arrived += bytes;
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    fn add_write_capacity(&mut self, bytes: usize) {
        self.write_capacity += bytes;
        self.writer.take().into_iter().for_each(Waker::wake);
    }

    fn check_failure(&self) -> io::Result<()> {
        if self.is_failing {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(())
        }
    }

    fn poll_unblocked(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.check_failure()?;
        if self.is_flush_blocked {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl Transport for FakeTransport {
    fn reset_on_close(&self) {
        self.0.borrow_mut().is_reset = true;
    }

    fn has_hung_up(&self) -> bool {
        self.0.borrow().has_hung_up
    }
}

impl AsyncRead for FakeTransport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut transport = self.0.borrow_mut();
        transport.check_failure()?;
        let count = buf.remaining().min(transport.arrived - transport.read);
        if count == 0 && buf.remaining() > 0 && !transport.has_ended {
            transport.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        for _ in 0..count {
            buf.put_slice(&[transport.read as u8]);
            transport.read += 1;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FakeTransport {
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
        let mut transport = self.0.borrow_mut();
        transport.check_failure()?;
        if transport.write_capacity == 0 {
            transport.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = transport
            .write_capacity
            .min(slices.iter().map(|slice| slice.len()).sum());
        for byte in slices.iter().flat_map(|slice| slice.iter()).take(count) {
            assert_eq!(*byte, transport.written as u8);
            transport.written += 1;
        }
        transport.write_capacity -= count;
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_unblocked(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut transport = self.0.borrow_mut();
        std::task::ready!(transport.poll_unblocked(cx))?;
        transport.is_shut = true;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    proptest! {
        #[test]
        fn in_any_order_of_events_bytes_stay_in_order_and_nothing_is_left(
            data in vec(any::<u8>(), 0..600),
        ) {
            super::connection(&data);
        }
    }
}
