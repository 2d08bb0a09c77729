//! Guarded connections from admission to close, on paused time over in-memory sockets.

mod accepting;
mod admission;
mod budget;
mod closing;
mod deadlines;
mod eviction;
mod gate;
mod lingering;
mod memory_cut;
mod memory_levels;
mod modes;
mod polling;
mod pressure;
mod proxied;
#[cfg(target_os = "linux")]
mod receive_buffer;
mod shares;
mod snapshot;
mod sweeper;
mod tracking;

use crate::{
    ConnGuard, ConnGuardBuilder, GuardedIo, Transport,
    connection::{decision::CloseDecision, in_flight::InFlight},
};
use futures_util::FutureExt;
use palisade_core::{Gauge, GaugeSource, Reason, Violation};
use palisade_testkit::Journal;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    time::Instant,
};

const SECOND: Duration = Duration::from_secs(1);
/// The default interval between two sweeps.
const TICK: Duration = Duration::from_millis(250);

/// An in-memory socket that records a reset. With `hung_up` it reports that its client is gone.
#[derive(Debug)]
struct TestTransport {
    inner: DuplexStream,
    reset: Arc<AtomicBool>,
    hung_up: Arc<AtomicBool>,
    /// What the kernel has for the server to read.
    unread: Arc<AtomicU64>,
    receive_buffer: Arc<AtomicU32>,
}

/// A guarded socket and its client.
struct Pair {
    server: GuardedIo<TestTransport>,
    client: DuplexStream,
    reset: Arc<AtomicBool>,
    hung_up: Arc<AtomicBool>,
    unread: Arc<AtomicU64>,
    receive_buffer: Arc<AtomicU32>,
}

// === TestTransport ===

impl TestTransport {
    fn new(inner: DuplexStream) -> Self {
        Self {
            inner,
            reset: Arc::default(),
            hung_up: Arc::default(),
            unread: Arc::default(),
            receive_buffer: Arc::default(),
        }
    }
}

impl Transport for TestTransport {
    fn reset_on_close(&self) {
        self.reset.store(true, Relaxed);
    }

    fn has_hung_up(&self) -> bool {
        self.hung_up.load(Relaxed)
    }

    fn unread_bytes(&self) -> u64 {
        self.unread.load(Relaxed)
    }

    fn limit_receive_buffer(&self, bytes: u32) {
        self.receive_buffer.store(bytes, Relaxed);
    }
}

impl AsyncRead for TestTransport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        let read = (buf.filled().len() - before) as u64;
        let unread = self.unread.load(Relaxed);
        self.unread.store(unread.saturating_sub(read), Relaxed);
        result
    }
}

impl AsyncWrite for TestTransport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

// === Pair ===

impl Pair {
    fn decision(&self) -> Option<CloseDecision> {
        self.server.conn().state().decision()
    }

    fn closing(&self) -> Option<Reason> {
        self.server.conn().state().closing()
    }
}

// === Fixtures ===

/// An address in the network 192.0.2.0/24.
fn peer(last: u8) -> Option<SocketAddr> {
    Some(([192, 0, 2, last], 4711).into())
}

/// Connects a client with the address [`peer`]. The server has looked for its bytes, as the task of
/// each connection does at once.
fn connect_from(guard: &ConnGuard, last: u8) -> io::Result<Pair> {
    let mut pair = connect_unread(guard, last)?;
    assert!(pair.server.read_u8().now_or_never().is_none());
    Ok(pair)
}

/// Connects a client with the address [`peer`], whose task does not run.
fn connect_unread(guard: &ConnGuard, last: u8) -> io::Result<Pair> {
    let (inner, client) = duplex(1024);
    let transport = TestTransport::new(inner);
    let (reset, hung_up) = (transport.reset.clone(), transport.hung_up.clone());
    let (unread, receive_buffer) = (transport.unread.clone(), transport.receive_buffer.clone());
    Ok(Pair {
        server: guard.admit(transport, peer(last), None)?,
        client,
        reset,
        hung_up,
        unread,
        receive_buffer,
    })
}

/// Connects the client with the address `peer(1)`.
fn connect(guard: &ConnGuard) -> Pair {
    connect_from(guard, 1).unwrap()
}

/// Connects a client with a request that is in flight until the second value is dropped.
fn connect_working(guard: &ConnGuard, last: u8) -> io::Result<(Pair, InFlight)> {
    let pair = connect_from(guard, last)?;
    let request = pair.server.conn().begin_request(false);
    Ok((pair, request))
}

/// Builds a guard that tracks requests, and the journal of its events.
fn tracking_guard(builder: ConnGuardBuilder) -> (ConnGuard, Journal) {
    let journal = Journal::default();
    let guard = builder.metrics(journal.clone()).build().unwrap();
    guard.track_requests();
    (guard, journal)
}

/// Asserts that the guard counts no connection and no request.
fn assert_nothing_left(guard: &ConnGuard) {
    assert_eq!(guard.shared().registry.counts(), (0, 0));
    assert_eq!(guard.shared().open.load(Relaxed), 0);
    assert_eq!(guard.shared().close_pending.load(Relaxed), 0);
    assert_eq!(
        (
            guard.shared().totals.in_flight(),
            guard.shared().totals.upgraded()
        ),
        (0, 0)
    );
    let snapshot = guard.snapshot();
    assert_eq!(
        (
            snapshot.open,
            snapshot.close_pending,
            snapshot.distinct_clients
        ),
        (0, 0, 0)
    );
}

/// Returns the value of one of the guard's gauges.
fn gauge(guard: &ConnGuard, wanted: Gauge) -> Option<u64> {
    let mut found = None;
    guard.shared().sample(&mut |gauge, value| {
        if gauge == wanted {
            found = Some(value);
        }
    });
    found
}

/// Returns the violation that the error of a closed connection holds.
fn violation(error: &io::Error) -> Violation {
    *Violation::from_error(error).unwrap()
}

/// Reads until the end of the stream or an error. Returns how long that took, and the result.
async fn read_until_closed(server: &mut GuardedIo<TestTransport>) -> (Duration, io::Result<()>) {
    let started = Instant::now();
    let mut bytes = Vec::new();
    let result = server.read_to_end(&mut bytes).await;
    (started.elapsed(), result.map(drop))
}

/// Asserts that `after` is no sooner than `due`, and at most two ticks later.
#[track_caller]
fn assert_within_two_ticks(after: Duration, due: Duration) {
    assert!((due..=due + 2 * TICK).contains(&after), "{after:?}");
}

/// Receives a request on `pair` and sends the complete response.
async fn serve_once(pair: &mut Pair, http2: bool) {
    pair.client.write_all(b"request").await.unwrap();
    pair.server.read_exact(&mut [0; 7]).await.unwrap();
    let mut request = pair.server.conn().begin_request(http2);
    pair.server.write_all(b"answer").await.unwrap();
    pair.client.read_exact(&mut [0; 6]).await.unwrap();
    request.set_answered();
}
