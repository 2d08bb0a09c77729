//! The streams of one HTTP/2 connection, each of which can be ended by itself.

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

/// hyper is given no longer piece of a body at once: it keeps a whole one for each stream, and
/// a short one tells sooner whether any of it is taken.
const PIECE: usize = 16 * 1024;
/// Bytes per second that a stream that waits is worth, if the others of its connection take them.
const RATE: u64 = 500;
/// More streams than this need no more: 8,000 bytes a second are a slow link.
const COUNTED: u64 = 16;
/// For whom the others take them, it is over after so many times.
const PATIENCE: u32 = 10;
/// Whoever took as much of a stream waits a second longer for more of it: a large window may open
/// in large steps.
const OF_A_SECOND: u64 = 16 * 1024;
/// So much may be taken by hyper alone: a piece for the first byte of a window, and its buffer.
const OF_HYPER: u64 = 80 * 1024;
/// How often at least a stall is looked at: patience may have become shorter.
const LOOK: Duration = Duration::from_secs(10);

thread_local! {
    /// What the body of the stream that is polled now did.
    static DID: Cell<Did> = const { Cell::new(Did { last: None, taken: 0 }) };
    /// Whether a stream is polled now. What hyper spawns then is the tunnel that it becomes.
    static IS_IN_STREAM: Cell<bool> = const { Cell::new(false) };
}

#[derive(Clone, Copy, Debug)]
struct Did {
    last: Option<Last>,
    /// Bytes of pieces after which it was asked again: those are taken.
    taken: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// It gave a piece, and was not asked for the next one.
    Gave,
    /// It had nothing to give, or has ended.
    Waits,
}

pin_project! {
    /// A response body that hands out short pieces and says so.
    #[derive(Debug)]
    pub struct ServedBody<B> {
        // None in an answer of our own.
        #[pin]
        inner: Option<B>,
        // Given by the inner body and not handed out yet.
        rest: Bytes,
        // The length of the piece that was handed out last.
        out: usize,
        is_http2: bool,
    }
}

/// Runs the streams of one connection.
#[derive(Clone)]
pub(crate) struct Streams(Arc<Shared>);

struct Shared {
    guard: ConnGuard,
    conn: ConnHandle,
    /// How many wait for their client.
    waiting: AtomicU64,
    /// Bytes of bodies that were taken.
    taken: AtomicU64,
    /// Tunnels by CONNECT.
    tunnels: AtomicUsize,
}

/// One tunnel of a connection. Dropping it is its end.
struct Tunnel(Streams);

/// Holds [`IS_IN_STREAM`], also where a handler panics.
struct InStream;

pin_project! {
    struct Stream<F> {
        #[pin]
        inner: F,
        streams: Streams,
        stall: Option<Stall>,
        sleep: Option<Pin<Box<Sleep>>>,
        is_told: bool,
        // Bytes since it waited last.
        taken: u64,
    }
}

/// A stream that waits for its client to take what it has.
struct Stall {
    streams: Streams,
    begun: Instant,
    /// How much longer it may wait than others, for what it took before.
    credit: Duration,
    /// Looked at last, and what was taken of all bodies by then.
    looked: Instant,
    taken: u64,
}

// === ServedBody ===

impl<B> ServedBody<B> {
    pub(crate) fn new(inner: B, is_http2: bool) -> Self {
        Self {
            inner: Some(inner),
            rest: Bytes::new(),
            out: 0,
            is_http2,
        }
    }

    pub(crate) fn empty(is_http2: bool) -> Self {
        Self {
            inner: None,
            rest: Bytes::new(),
            out: 0,
            is_http2,
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
            return Poll::Ready(None);
        };
        if !*this.is_http2 {
            return inner.poll_frame(cx);
        }
        did(Last::Waits, std::mem::take(this.out));
        if this.rest.is_empty() {
            let frame = inner.poll_frame(cx);
            // Again, after whatever was polled in it.
            did(Last::Waits, 0);
            match ready!(frame) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => *this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = if this.rest.len() > PIECE {
            this.rest.split_to(PIECE)
        } else {
            std::mem::take(this.rest)
        };
        did(Last::Gave, 0);
        *this.out = piece.len();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let nothing = || SizeHint::with_exact(0);
        let inner = self.inner.as_ref().map_or_else(nothing, Body::size_hint);
        let rest = self.rest.len() as u64;
        if rest == 0 {
            return inner;
        }
        let mut both = SizeHint::new();
        if let Some(upper) = inner.upper() {
            both.set_upper(upper.saturating_add(rest));
        }
        both.set_lower(inner.lower().saturating_add(rest));
        both
    }
}

fn did(last: Last, taken: usize) {
    let before = DID.get().taken;
    DID.set(Did {
        last: Some(last),
        taken: before.saturating_add(taken as u64),
    });
}

// === Streams ===

impl Streams {
    pub(crate) fn new(guard: &ConnGuard, conn: &ConnHandle) -> Self {
        Self(Arc::new(Shared {
            guard: guard.clone(),
            conn: conn.clone(),
            waiting: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            tunnels: AtomicUsize::new(0),
        }))
    }

    /// How long a stream may wait.
    fn patience(&self) -> Duration {
        self.0.guard.write_stall()
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

impl Tunnel {
    fn new(streams: Streams) -> Self {
        streams.0.tunnels.fetch_add(1, SeqCst);
        // The accounting has counted it, unless another tunnel ended in between.
        let _ = streams.0.conn.upgrade();
        Self(streams)
    }
}

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

impl Drop for Tunnel {
    fn drop(&mut self) {
        if self.0.0.tunnels.fetch_sub(1, SeqCst) == 1 {
            self.0.0.conn.end_upgrade();
        }
    }
}

impl<F> Stream<F> {
    fn new(inner: F, streams: Streams) -> Self {
        Self {
            inner,
            streams,
            stall: None,
            sleep: None,
            is_told: false,
            taken: 0,
        }
    }
}

impl<F: Future> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        DID.set(Did {
            last: None,
            taken: 0,
        });
        let in_stream = InStream::enter();
        let result = this.inner.poll(cx);
        drop(in_stream);
        if result.is_ready() {
            return Poll::Ready(());
        }
        let did = DID.get();
        *this.taken = this.taken.saturating_add(did.taken);
        this.streams.0.taken.fetch_add(did.taken, Relaxed);
        match did.last {
            Some(Last::Gave) if this.streams.0.guard.mode() != Mode::Off => {
                let taken = std::mem::take(this.taken);
                *this.stall = Some(Stall::new(this.streams.clone(), taken));
            }
            // What it asks for is not the client's to give.
            Some(_) => *this.stall = None,
            None => {}
        }
        let Some(stall) = this.stall else {
            return Poll::Pending;
        };
        loop {
            let others = this.streams.patience();
            let patience = stall.patience(others);
            let due = stall.looked + patience;
            let next = |now| due.min(now + LOOK);
            let sleep = this
                .sleep
                .get_or_insert_with(|| Box::pin(sleep_until(next(stall.looked))));
            // One that was set for an earlier stall goes off first, and is set again.
            ready!(sleep.as_mut().poll(cx));
            let now = Instant::now();
            if now < due {
                sleep.as_mut().reset(next(now));
            } else if stall.is_over(now, others) && stall.tell(now, patience, this.is_told) {
                return Poll::Ready(());
            } else {
                sleep.as_mut().reset(now + patience.min(LOOK));
            }
        }
    }
}

// === Stall ===

impl Stall {
    /// Of a stream that has taken so many bytes since it waited last.
    fn new(streams: Streams, taken: u64) -> Self {
        streams.0.waiting.fetch_add(1, Relaxed);
        let (now, all) = (Instant::now(), streams.0.taken.load(Relaxed));
        let taken = taken.saturating_sub(OF_HYPER);
        let credit = Duration::from_millis(taken.saturating_mul(1000) / OF_A_SECOND);
        Self {
            streams,
            begun: now,
            credit,
            looked: now,
            taken: all,
        }
    }

    /// How long it may wait, where others may for so long.
    fn patience(&self, others: Duration) -> Duration {
        others
            .saturating_add(self.credit)
            .min(others.saturating_mul(PATIENCE))
    }

    /// Whether it has had its time; if not, the next time begins.
    fn is_over(&mut self, now: Instant, others: Duration) -> bool {
        let all_taken = self.streams.0.taken.load(Relaxed);
        let taken = all_taken.wrapping_sub(self.taken);
        let seconds = now.saturating_duration_since(self.looked).as_secs().max(1);
        let waiting = self.streams.0.waiting.load(Relaxed).min(COUNTED);
        let is_fair = taken >= RATE.saturating_mul(seconds).saturating_mul(waiting);
        let all = now.saturating_duration_since(self.begun);
        let is_over = !is_fair || all >= others.saturating_mul(PATIENCE);
        (self.looked, self.taken) = (now, all_taken);
        is_over
    }

    /// Whether the stream is to end for it.
    fn tell(&self, now: Instant, patience: Duration, is_told: &mut bool) -> bool {
        let Shared { guard, conn, .. } = &*self.streams.0;
        if !std::mem::replace(is_told, true) {
            let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            let limit = millis(patience);
            let observed = millis(now.saturating_duration_since(self.begun));
            let (reason, phase) = (Reason::WindowStall, Phase::ResponseBody);
            guard.report_cut(
                &Violation::new(Guard::Connection, reason, phase, limit, observed),
                conn,
            );
        }
        guard.mode() == Mode::Enforce
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.streams.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stub::{self, Stub};
    use http::HeaderMap;
    use http_body_util::{BodyExt, Full, StreamBody};
    use palisade_conn::GuardedIo;
    use palisade_testkit::Journal;
    use std::{convert::Infallible, future::poll_fn};
    use tokio::{task::JoinHandle, time::sleep};

    const STALL: Duration = Duration::from_secs(30);
    const SECOND: Duration = Duration::from_secs(1);

    fn streams(mode: Mode) -> (Streams, Journal) {
        let (streams, journal, _) = streams_and_socket(mode);
        (streams, journal)
    }

    fn streams_and_socket(mode: Mode) -> (Streams, Journal, GuardedIo<Stub>) {
        let journal = Journal::default();
        let guard = ConnGuard::builder()
            .mode(mode)
            .write_stall(STALL)
            .metrics(journal.clone());
        // The connection itself is not to be closed meanwhile.
        let guard = guard.first_request(600 * SECOND).build().unwrap();
        let io = stub::connect(&guard, [127, 0, 0, 1]);
        (Streams::new(&guard, io.conn()), journal, io)
    }

    /// What hyper does with a stream whose window is shut: asks the body once, and waits.
    async fn shut(mut body: ServedBody<Full<Bytes>>) {
        body.frame().await.unwrap().unwrap();
        std::future::pending::<()>().await;
    }

    fn body(bytes: usize) -> ServedBody<Full<Bytes>> {
        ServedBody::new(Full::new(Bytes::from(vec![b'x'; bytes])), true)
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        streams: &Streams,
        inner: F,
    ) -> JoinHandle<()> {
        let streams = streams.clone();
        tokio::spawn(Stream::new(inner, streams))
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_that_is_not_taken_ends_its_stream_on_time() {
        let (streams, journal) = streams(Mode::Enforce);
        let started = Instant::now();
        spawn(&streams, shut(body(1))).await.unwrap();
        let took = started.elapsed();
        assert!(
            took >= STALL && took < STALL + Duration::from_millis(2),
            "{took:?}"
        );
        assert_eq!(journal.cut(), [(Guard::Connection, Reason::WindowStall)]);
        assert_eq!(streams.0.waiting.load(Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_each_piece_in_time_goes_on_for_ever() {
        let (streams, journal) = streams(Mode::Enforce);
        let mut body = body(100 * PIECE);
        let slow = async move {
            while let Some(frame) = body.frame().await {
                assert!(frame.unwrap().data_ref().unwrap().len() <= PIECE);
                sleep(STALL - SECOND).await;
            }
        };
        let started = Instant::now();
        spawn(&streams, slow).await.unwrap();
        assert!(started.elapsed() >= 100 * (STALL - SECOND));
        assert!(journal.cut().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_streams_share_a_slow_link_they_have_ten_times_as_long_and_no_longer() {
        let (streams, _) = streams(Mode::Enforce);
        let one = spawn(&streams, shut(body(1)));
        let other = spawn(&streams, shut(body(1)));
        let started = Instant::now();
        let link = async {
            loop {
                // 500 B/s for each of both, of a third.
                sleep(SECOND).await;
                streams.0.taken.fetch_add(1000, Relaxed);
            }
        };
        tokio::select! {
            () = link => {}
            ended = one => ended.unwrap(),
        }
        assert!(
            started.elapsed() >= PATIENCE * STALL,
            "{:?}",
            started.elapsed()
        );
        other.await.unwrap();
        let took = started.elapsed();
        assert!(took < (PATIENCE + 1) * STALL, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn eight_thousand_bytes_a_second_are_enough_for_a_hundred_streams_and_less_is_not() {
        for (rate, lasts) in [(8000, PATIENCE), (7000, 1)] {
            let (streams, _) = streams(Mode::Enforce);
            let all: Vec<_> = (0..100).map(|_| spawn(&streams, shut(body(1)))).collect();
            let started = Instant::now();
            let link = async {
                loop {
                    sleep(SECOND).await;
                    streams.0.taken.fetch_add(rate, Relaxed);
                }
            };
            let first = futures_util::future::select_all(all);
            tokio::select! {
                () = link => {}
                (ended, ..) = first => ended.unwrap(),
            }
            let took = started.elapsed();
            assert!(
                took >= lasts * STALL && took < (lasts + 1) * STALL,
                "{rate}: {took:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_socket_writes_beside_the_bodies_helps_nobody() {
        let (streams, _, mut io) = streams_and_socket(Mode::Enforce);
        let stream = spawn(&streams, shut(body(1)));
        let started = Instant::now();
        let pings = async {
            loop {
                sleep(SECOND).await;
                stub::write(&mut io, 100_000);
            }
        };
        tokio::select! {
            () = pings => {}
            ended = stream => ended.unwrap(),
        }
        assert!(
            started.elapsed() < STALL + SECOND,
            "{:?}",
            started.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_much_at_once_may_pause_for_longer() {
        let (streams, journal) = streams(Mode::Enforce);
        // A window of which 2 MiB open every 50 s, 40 KiB a second.
        let mut slow = body(512 * PIECE);
        let stream = async move {
            for _ in 0..4 {
                for _ in 0..128 {
                    slow.frame().await.unwrap().unwrap();
                }
                sleep(STALL + 20 * SECOND).await;
            }
        };
        spawn(&streams, stream).await.unwrap();
        assert!(journal.cut().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_has_nothing_to_give_is_not_the_client_s_fault() {
        let (streams, journal) = streams(Mode::Enforce);
        let quiet = async {
            let mut body =
                ServedBody::new(http_body_util::Channel::<Bytes, Infallible>::new(1).1, true);
            let asked = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
            let _ = tokio::time::timeout(20 * STALL, asked).await;
        };
        spawn(&streams, quiet).await.unwrap();
        let handler = async { sleep(20 * STALL).await };
        spawn(&streams, handler).await.unwrap();
        assert!(journal.cut().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn in_shadow_mode_it_is_told_once_and_off_not_at_all() {
        for (mode, told) in [(Mode::Shadow, 1), (Mode::Off, 0)] {
            let (streams, journal) = streams(mode);
            let stream = spawn(&streams, shut(body(1)));
            sleep(100 * STALL).await;
            assert_eq!(journal.cut().len(), told, "{mode:?}");
            assert!(!stream.is_finished());
            stream.abort();
            let _ = stream.await;
            assert_eq!(streams.0.waiting.load(Relaxed), 0);
        }
    }

    #[tokio::test]
    async fn a_body_comes_through_whole_in_pieces_with_its_trailers() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x", "y".parse().unwrap());
        let data: Vec<u8> = (0..3 * PIECE + 7).map(|n| n as u8).collect();
        let whole = Full::new(Bytes::from(data.clone()));
        let with_trailers = whole.with_trailers(std::future::ready(Some(Ok(trailers.clone()))));
        let mut body = ServedBody::new(with_trailers, true);
        let (mut lengths, mut got) = (Vec::new(), Vec::new());
        let mut last = None;
        while let Some(frame) = body.frame().await {
            match frame.unwrap().into_data() {
                Ok(piece) => {
                    lengths.push(piece.len());
                    got.extend_from_slice(&piece);
                }
                Err(frame) => last = frame.into_trailers().ok(),
            }
        }
        assert_eq!(
            (lengths, last),
            (vec![PIECE, PIECE, PIECE, 7], Some(trailers))
        );
        assert_eq!(got, data);
    }

    #[tokio::test]
    async fn its_length_is_right_in_the_middle_of_a_piece_and_over_http_1_nothing_changes() {
        let mut body = body(2 * PIECE);
        assert_eq!(body.size_hint().exact(), Some(2 * PIECE as u64));
        body.frame().await.unwrap().unwrap();
        assert_eq!(body.size_hint().exact(), Some(PIECE as u64));
        assert!(!body.is_end_stream());
        body.frame().await.unwrap().unwrap();
        assert!(body.is_end_stream());

        let frames = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(
            vec![b'x'; 2 * PIECE],
        )))]);
        let mut body = ServedBody::new(StreamBody::new(frames), false);
        assert_eq!(
            body.frame()
                .await
                .unwrap()
                .unwrap()
                .data_ref()
                .unwrap()
                .len(),
            2 * PIECE
        );
    }
}
