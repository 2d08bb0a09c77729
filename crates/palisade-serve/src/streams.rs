//! The streams of one HTTP/2 connection. A stream is reset if its client takes nothing of the
//! response.

use crate::{held::Room, request_body::BodyCharge};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use palisade_conn::{ConnGuard, ConnHandle};
use palisade_core::{Guard, Mode, Phase, Reason, Violation};
use pin_project_lite::pin_project;
use std::{
    cell::Cell,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// The longest piece of a body that hyper is given at once. hyper buffers one whole piece for each
/// stream, and with short pieces it is known earlier whether the client takes any.
const MAX_PIECE_BYTES: usize = 16 * 1024;
/// The rate, in bytes per second for each waiting stream, at which the streams of a connection
/// together have to be taken for a stream to wait longer.
const MIN_RATE_PER_STREAM: u64 = 500;
/// The most waiting streams that count for [`MIN_RATE_PER_STREAM`], so that 8,000 B/s are enough
/// for any number of streams: that is a slow link.
const MAX_COUNTED_STREAMS: u64 = 16;
/// The longest time that a stream may wait, in multiples of the guard's `write_timeout`.
const MAX_WAIT_FACTOR: u32 = 10;
/// A stream may wait a second longer for each time that its client has taken this many bytes since
/// its last stall: a large window may open in large steps.
const BYTES_PER_CREDIT_SECOND: u64 = 16 * 1024;
/// The bytes that hyper alone may take: its send buffer, and a piece for the first byte of a
/// window.
const HYPER_BUFFER_BYTES: u64 = 80 * 1024;
/// The longest time between two checks of a stalled stream. `write_timeout` may have become shorter
/// under pressure.
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(10);

thread_local! {
    /// The activity of the body of the stream that this thread is polling.
    static ACTIVITY: Cell<StreamActivity> = const { Cell::new(StreamActivity::NONE) };
    /// Whether this thread is polling a stream. A future that hyper spawns meanwhile is a tunnel.
    static IS_IN_STREAM: Cell<bool> = const { Cell::new(false) };
}

/// The activity of a response body in one poll of its stream.
#[derive(Clone, Copy, Debug)]
struct StreamActivity {
    /// The state of the body after the poll, or `None` if it was not polled.
    body: Option<BodyState>,
    /// The bytes of pieces that were taken: hyper polled the body again after them.
    taken: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyState {
    /// The body has given a piece, and hyper has not polled for the next one. Or there is no room
    /// for the next one before the client has taken others.
    AwaitingClient,
    /// The body has nothing to give at present, or has ended.
    AwaitingApp,
}

pin_project! {
    /// A response body that hyper gets in short pieces on HTTP/2. It records its activity for
    /// [`Stream`].
    #[derive(Debug)]
    pub struct ServedBody<B> {
        // `None` in a response of the server itself.
        #[pin]
        inner: Option<B>,
        // The rest of the last frame of the inner body, or the whole response of the server.
        rest: Bytes,
        // The length of the last piece, until it is taken.
        last_piece_len: usize,
        // `None` on HTTP/1, and in a response of the server itself.
        room: Option<Room>,
        // What is charged for the body of the request until the response has ended.
        request: Option<Arc<BodyCharge>>,
    }
}

/// Spawns and observes the streams of one connection.
#[derive(Clone)]
pub(crate) struct Streams(Arc<Shared>);

struct Shared {
    guard: ConnGuard,
    conn: ConnHandle,
    /// The number of streams with a [`Stall`]: they wait for their client.
    stalled: AtomicU64,
    /// The bytes of all response bodies that were taken.
    taken: AtomicU64,
    /// The number of tunnels by CONNECT.
    tunnels: AtomicUsize,
}

/// A tunnel of a connection. Dropping it reports the end of the tunnel.
struct Tunnel(Streams);

/// Sets [`IS_IN_STREAM`] until it is dropped, also if a handler panics.
struct InStream;

pin_project! {
    /// The future of one stream: hyper polls the handler and the response body in it. Returning
    /// early drops it, which resets the stream.
    struct Stream<F> {
        #[pin]
        inner: F,
        streams: Streams,
        stall: Option<Stall>,
        sleep: Option<Pin<Box<Sleep>>>,
        // Whether a stall of the stream has been reported.
        is_reported: bool,
        // The bytes that were taken since the last stall.
        taken: u64,
    }
}

/// A wait of a stream for its client, which does not take the piece that the body has given.
struct Stall {
    streams: Streams,
    since: Instant,
    /// The time that the stream may wait beyond `write_timeout`, for the bytes that it took before.
    credit: Duration,
    /// The time of the last check.
    checked: Instant,
    /// [`Shared::taken`] at the last check.
    taken_before: u64,
}

// === StreamActivity ===

impl StreamActivity {
    /// The body was not polled.
    const NONE: Self = Self {
        body: None,
        taken: 0,
    };
}

/// Records the state of the body of the stream that is polled, and that `taken` more bytes were
/// taken.
fn record_activity(body: BodyState, taken: usize) {
    let before = ACTIVITY.get().taken;
    ACTIVITY.set(StreamActivity {
        body: Some(body),
        taken: before.saturating_add(taken as u64),
    });
}

/// Ready when there is room for more of a response. Returns whether the stream has waited for it.
/// While it waits, it waits for its client: it is reset in the time for that.
pub(crate) fn poll_room(room: &mut Room, cx: &mut Context<'_>) -> Poll<bool> {
    let was_waiting = room.is_waiting();
    let result = room.poll_room(cx);
    if result.is_pending() != was_waiting {
        let awaited = if was_waiting {
            BodyState::AwaitingApp
        } else {
            BodyState::AwaitingClient
        };
        record_activity(awaited, 0);
    }
    result.map(|()| was_waiting)
}

// === ServedBody ===

impl<B> ServedBody<B> {
    /// Creates the body of a response with its `room` on HTTP/2, or of HTTP/1.
    pub(crate) fn new(inner: B, room: Option<Room>) -> Self {
        Self {
            inner: Some(inner),
            rest: Bytes::new(),
            last_piece_len: 0,
            room,
            request: None,
        }
    }

    /// Keeps what is charged for the body of the request.
    pub(crate) fn of_request(mut self, charge: Option<Arc<BodyCharge>>) -> Self {
        self.request = charge;
        self
    }

    /// Creates the body of a response of the server itself.
    pub(crate) fn of_server(bytes: Bytes) -> Self {
        Self {
            inner: None,
            rest: bytes,
            last_piece_len: 0,
            room: None,
            request: None,
        }
    }
}

impl<B: Body<Data = Bytes>> Body for ServedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let Some(inner) = this.inner.as_pin_mut() else {
            let rest = std::mem::take(this.rest);
            return Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))));
        };
        let Some(room) = this.room else {
            return inner.poll_frame(cx);
        };
        // A body that waits for room has waited for its client since an earlier poll.
        if !room.is_waiting() {
            record_activity(BodyState::AwaitingApp, std::mem::take(this.last_piece_len));
        }
        if this.rest.is_empty() {
            let was_waiting = ready!(poll_room(room, cx));
            let frame = inner
                .poll_frame(cx)
                .map_ok(|frame| frame.map_data(|data| room.count(data)));
            if was_waiting {
                room.pass_on();
            }
            // Again, because the inner body may have polled another body of this type.
            record_activity(BodyState::AwaitingApp, 0);
            match ready!(frame) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => *this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = if this.rest.len() > MAX_PIECE_BYTES {
            this.rest.split_to(MAX_PIECE_BYTES)
        } else {
            std::mem::take(this.rest)
        };
        record_activity(BodyState::AwaitingClient, 0);
        *this.last_piece_len = piece.len();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let inner = match &self.inner {
            Some(inner) => inner.size_hint(),
            None => SizeHint::with_exact(0),
        };
        let rest = self.rest.len() as u64;
        if rest == 0 {
            return inner;
        }
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(inner.lower().saturating_add(rest));
        hint
    }
}

// === Streams ===

impl Streams {
    pub(crate) fn new(guard: &ConnGuard, conn: &ConnHandle) -> Self {
        Self(Arc::new(Shared {
            guard: guard.clone(),
            conn: conn.clone(),
            stalled: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            tunnels: AtomicUsize::new(0),
        }))
    }
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, inner: F) {
        let streams = self.clone();
        if IS_IN_STREAM.get() {
            let tunnel = Tunnel::new(streams);
            tokio::spawn(async move {
                inner.await;
                drop(tunnel);
            });
        } else {
            tokio::spawn(Stream::new(inner, streams));
        }
    }
}

// === Tunnel ===

impl Tunnel {
    fn new(streams: Streams) -> Self {
        streams.0.tunnels.fetch_add(1, SeqCst);
        // Request tracking has already counted the upgrade, unless the last tunnel ended in
        // between.
        let _ = streams.0.conn.upgrade();
        Self(streams)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let Shared { tunnels, conn, .. } = &*self.0.0;
        if tunnels.fetch_sub(1, SeqCst) == 1 {
            conn.end_upgrade();
        }
    }
}

// === InStream ===

impl InStream {
    fn enter() -> Self {
        IS_IN_STREAM.set(true);
        Self
    }
}

impl Drop for InStream {
    fn drop(&mut self) {
        IS_IN_STREAM.set(false);
    }
}

// === Stream ===

impl<F> Stream<F> {
    fn new(inner: F, streams: Streams) -> Self {
        Self {
            inner,
            streams,
            stall: None,
            sleep: None,
            is_reported: false,
            taken: 0,
        }
    }
}

impl<F: Future> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        ACTIVITY.set(StreamActivity::NONE);
        let in_stream = InStream::enter();
        let result = this.inner.poll(cx);
        drop(in_stream);
        if result.is_ready() {
            return Poll::Ready(());
        }
        let activity = ACTIVITY.get();
        let shared = &*this.streams.0;
        *this.taken = this.taken.saturating_add(activity.taken);
        shared.taken.fetch_add(activity.taken, Relaxed);
        match activity.body {
            Some(BodyState::AwaitingClient) if shared.guard.mode() != Mode::Off => {
                let taken = std::mem::take(this.taken);
                *this.stall = Some(Stall::new(this.streams.clone(), taken));
            }
            // The body waits for its handler and not for the client.
            Some(_) => *this.stall = None,
            None => {}
        }
        let Some(stall) = this.stall else {
            return Poll::Pending;
        };
        loop {
            let write_stall = shared.guard.write_timeout();
            let max_wait = stall.max_wait(write_stall);
            let due = stall.checked + max_wait;
            let next_check = |now| due.min(now + MAX_CHECK_INTERVAL);
            let sleep = this
                .sleep
                .get_or_insert_with(|| Box::pin(sleep_until(next_check(stall.checked))));
            // A timer that was set for an earlier stall expires first, and is set again then.
            ready!(sleep.as_mut().poll(cx));
            let now = Instant::now();
            if now < due {
                sleep.as_mut().reset(next_check(now));
            } else if stall.check(now, write_stall) && stall.report(now, max_wait, this.is_reported)
            {
                return Poll::Ready(());
            } else {
                sleep.as_mut().reset(now + max_wait.min(MAX_CHECK_INTERVAL));
            }
        }
    }
}

// === Stall ===

impl Stall {
    /// Begins a stall of a stream of which `taken` bytes were taken since its last stall.
    fn new(streams: Streams, taken: u64) -> Self {
        streams.0.stalled.fetch_add(1, Relaxed);
        let (now, taken_before) = (Instant::now(), streams.0.taken.load(Relaxed));
        let taken = taken.saturating_sub(HYPER_BUFFER_BYTES);
        let credit = Duration::from_millis(taken.saturating_mul(1000) / BYTES_PER_CREDIT_SECOND);
        Self {
            streams,
            since: now,
            credit,
            checked: now,
            taken_before,
        }
    }

    /// Returns how long the stream may wait until the next check.
    fn max_wait(&self, write_stall: Duration) -> Duration {
        write_stall
            .saturating_add(self.credit)
            .min(write_stall.saturating_mul(MAX_WAIT_FACTOR))
    }

    /// Checks the stall after [`Self::max_wait`]. Returns whether the stream has to end. If not,
    /// that time begins again.
    fn check(&mut self, now: Instant, write_stall: Duration) -> bool {
        let Shared { taken, stalled, .. } = &*self.streams.0;
        let taken_now = taken.load(Relaxed);
        let taken = taken_now.wrapping_sub(self.taken_before);
        let seconds = now.saturating_duration_since(self.checked).as_secs().max(1);
        let streams = stalled.load(Relaxed).min(MAX_COUNTED_STREAMS);
        let min_taken = MIN_RATE_PER_STREAM
            .saturating_mul(seconds)
            .saturating_mul(streams);
        let waited = now.saturating_duration_since(self.since);
        (self.checked, self.taken_before) = (now, taken_now);
        taken < min_taken || waited >= write_stall.saturating_mul(MAX_WAIT_FACTOR)
    }

    /// Reports the stall, unless one of the same stream has been reported. Returns whether the
    /// guard enforces its rules, so that the stream ends.
    fn report(&self, now: Instant, max_wait: Duration, is_reported: &mut bool) -> bool {
        let Shared { guard, conn, .. } = &*self.streams.0;
        if !std::mem::replace(is_reported, true) {
            let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            let limit = millis(max_wait);
            let observed = millis(now.saturating_duration_since(self.since));
            let (reason, phase) = (Reason::WindowStall, Phase::ResponseBody);
            guard.report_cut(
                &Violation::new(Guard::Connection, reason, phase, limit, observed),
                conn,
                None,
            );
        }
        guard.mode() == Mode::Enforce
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.streams.0.stalled.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests;
