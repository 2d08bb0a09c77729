//! Tests of response bodies in pieces, and of stalled streams.

use super::*;
use crate::held::HeldBytes;
use crate::stub::{self, Stub};
use http::HeaderMap;
use http_body_util::{BodyExt, Full, StreamBody};
use palisade_conn::{Budget, GuardedIo};
use palisade_core::Charge;
use palisade_testkit::Journal;
use std::{convert::Infallible, future::poll_fn};
use tokio::{task::JoinHandle, time::sleep};

const WRITE_STALL: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

fn streams(mode: Mode) -> (Streams, Journal) {
    let (streams, journal, _) = streams_and_socket(mode);
    (streams, journal)
}

fn streams_and_socket(mode: Mode) -> (Streams, Journal, GuardedIo<Stub>) {
    let journal = Journal::default();
    let guard = ConnGuard::builder()
        .mode(mode)
        .write_timeout(WRITE_STALL)
        .metrics(journal.clone());
    // Long enough that the connection itself is not closed.
    let guard = guard.first_request_timeout(600 * SECOND).build().unwrap();
    let io = stub::connect(&guard, [127, 0, 0, 1]);
    (Streams::new(&guard, io.conn()), journal, io)
}

/// Returns the room on a connection that holds nothing.
fn room() -> Room {
    let io = stub::connect(&ConnGuard::default(), [127, 0, 0, 1]);
    Room::new(HeldBytes::new(io.conn()))
}

/// Does what hyper does with a stream that has a closed window: polls the body once, and waits.
async fn poll_once(mut body: ServedBody<Full<Bytes>>) {
    body.frame().await.unwrap().unwrap();
    std::future::pending::<()>().await;
}

fn body(bytes: usize) -> ServedBody<Full<Bytes>> {
    ServedBody::new(Full::new(Bytes::from(vec![b'x'; bytes])), Some(room()))
}

fn spawn<F: Future<Output = ()> + Send + 'static>(streams: &Streams, inner: F) -> JoinHandle<()> {
    let streams = streams.clone();
    tokio::spawn(Stream::new(inner, streams))
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_on_time_if_its_piece_is_not_taken() {
    let (streams, journal) = streams(Mode::Enforce);
    let started = Instant::now();
    spawn(&streams, poll_once(body(1))).await.unwrap();
    let took = started.elapsed();
    assert!(
        took >= WRITE_STALL && took < WRITE_STALL + Duration::from_millis(2),
        "{took:?}"
    );
    assert_eq!(journal.cut(), [(Guard::Connection, Reason::WindowStall)]);
    assert_eq!(streams.0.stalled.load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_pieces_are_taken_in_time_never_ends() {
    let (streams, journal) = streams(Mode::Enforce);
    let mut body = body(100 * MAX_PIECE_BYTES);
    let slow = async move {
        while let Some(frame) = body.frame().await {
            assert!(frame.unwrap().data_ref().unwrap().len() <= MAX_PIECE_BYTES);
            sleep(WRITE_STALL - SECOND).await;
        }
    };
    let started = Instant::now();
    spawn(&streams, slow).await.unwrap();
    assert!(started.elapsed() >= 100 * (WRITE_STALL - SECOND));
    assert!(journal.cut().is_empty());
}

#[tokio::test(start_paused = true)]
async fn streams_that_share_a_slow_link_may_wait_ten_times_as_long_and_no_longer() {
    let (streams, _) = streams(Mode::Enforce);
    let first = spawn(&streams, poll_once(body(1)));
    let second = spawn(&streams, poll_once(body(1)));
    let started = Instant::now();
    let link = async {
        loop {
            // A third stream takes 500 B/s for each of the two.
            sleep(SECOND).await;
            streams.0.taken.fetch_add(1000, Relaxed);
        }
    };
    tokio::select! {
        () = link => {}
        ended = first => ended.unwrap(),
    }
    assert!(
        started.elapsed() >= MAX_WAIT_FACTOR * WRITE_STALL,
        "{:?}",
        started.elapsed()
    );
    second.await.unwrap();
    let took = started.elapsed();
    assert!(took < (MAX_WAIT_FACTOR + 1) * WRITE_STALL, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn eight_thousand_bytes_a_second_are_enough_for_a_hundred_streams_and_less_is_not() {
    for (rate, lasts) in [(8000, MAX_WAIT_FACTOR), (7000, 1)] {
        let (streams, _) = streams(Mode::Enforce);
        let all: Vec<_> = (0..100)
            .map(|_| spawn(&streams, poll_once(body(1))))
            .collect();
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
            took >= lasts * WRITE_STALL && took < (lasts + 1) * WRITE_STALL,
            "{rate}: {took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_the_socket_writes_beside_the_bodies_do_not_count() {
    let (streams, _, mut io) = streams_and_socket(Mode::Enforce);
    let stream = spawn(&streams, poll_once(body(1)));
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
        started.elapsed() < WRITE_STALL + SECOND,
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_much_at_once_may_pause_for_longer() {
    let (streams, journal) = streams(Mode::Enforce);
    // A window that opens by 2 MiB every 50 s: 40 KiB a second.
    let mut body = body(512 * MAX_PIECE_BYTES);
    let stream = async move {
        for _ in 0..4 {
            for _ in 0..128 {
                body.frame().await.unwrap().unwrap();
            }
            sleep(WRITE_STALL + 20 * SECOND).await;
        }
    };
    spawn(&streams, stream).await.unwrap();
    assert!(journal.cut().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_its_handler_is_not_stalled() {
    let (streams, journal) = streams(Mode::Enforce);
    let quiet = async {
        let mut body = ServedBody::new(
            http_body_util::Channel::<Bytes, Infallible>::new(1).1,
            Some(room()),
        );
        let polled = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        let _ = tokio::time::timeout(20 * WRITE_STALL, polled).await;
    };
    spawn(&streams, quiet).await.unwrap();
    let handler = async { sleep(20 * WRITE_STALL).await };
    spawn(&streams, handler).await.unwrap();
    assert!(journal.cut().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stall_is_reported_once_in_shadow_mode_and_never_if_the_guard_is_off() {
    for (mode, reports) in [(Mode::Shadow, 1), (Mode::Off, 0)] {
        let (streams, journal) = streams(mode);
        let stream = spawn(&streams, poll_once(body(1)));
        sleep(100 * WRITE_STALL).await;
        assert_eq!(journal.cut().len(), reports, "{mode:?}");
        assert!(!stream.is_finished());
        stream.abort();
        let _ = stream.await;
        assert_eq!(streams.0.stalled.load(Relaxed), 0);
    }
}

#[tokio::test]
async fn a_body_is_passed_on_complete_in_pieces_with_its_trailers() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x", "y".parse().unwrap());
    let data: Vec<u8> = (0..3 * MAX_PIECE_BYTES + 7).map(|n| n as u8).collect();
    let whole = Full::new(Bytes::from(data.clone()));
    let with_trailers = whole.with_trailers(std::future::ready(Some(Ok(trailers.clone()))));
    let mut body = ServedBody::new(with_trailers, Some(room()));
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
        (
            vec![MAX_PIECE_BYTES, MAX_PIECE_BYTES, MAX_PIECE_BYTES, 7],
            Some(trailers)
        )
    );
    assert_eq!(got, data);
}

#[tokio::test]
async fn the_length_is_exact_between_pieces_and_http1_bodies_are_passed_on_unchanged() {
    let mut body = body(2 * MAX_PIECE_BYTES);
    assert_eq!(body.size_hint().exact(), Some(2 * MAX_PIECE_BYTES as u64));
    body.frame().await.unwrap().unwrap();
    assert_eq!(body.size_hint().exact(), Some(MAX_PIECE_BYTES as u64));
    assert!(!body.is_end_stream());
    body.frame().await.unwrap().unwrap();
    assert!(body.is_end_stream());

    let frames = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(
        vec![b'x'; 2 * MAX_PIECE_BYTES],
    )))]);
    let mut body = ServedBody::new(StreamBody::new(frames), None);
    assert_eq!(
        body.frame()
            .await
            .unwrap()
            .unwrap()
            .data_ref()
            .unwrap()
            .len(),
        2 * MAX_PIECE_BYTES
    );
}

/// A connection on which a stream with a closed window holds all that is free, beside a budget
/// without room for responses.
struct Crowded {
    streams: Streams,
    journal: Journal,
    budget: Budget,
    held: HeldBytes,
    stuck: Bytes,
    charge: Charge,
    _io: GuardedIo<Stub>,
}

fn crowded() -> Crowded {
    let journal = Journal::default();
    let budget = Budget::new(64 << 10).unwrap();
    let guard = ConnGuard::builder()
        .write_timeout(WRITE_STALL)
        .first_request_timeout(600 * SECOND)
        .byte_budget(budget.clone())
        .metrics(journal.clone())
        .build()
        .unwrap();
    let io = stub::connect(&guard, [127, 0, 0, 1]);
    let held = HeldBytes::new(io.conn());
    let stuck = Room::new(held.clone()).count(Bytes::from(vec![b'x'; 64 << 10]));
    // Responses have no more than half of this budget, so it is below the pressure.
    let charge = budget.charge(None);
    charge.take(32 << 10).unwrap();
    Crowded {
        streams: Streams::new(&guard, io.conn()),
        journal,
        budget,
        held,
        stuck,
        charge,
        _io: io,
    }
}

impl Crowded {
    /// Asserts that the stream of `waiting` is reset after the time for a client that takes
    /// nothing.
    async fn assert_reset(self, waiting: impl Future<Output = ()> + Send + 'static) {
        let started = Instant::now();
        spawn(&self.streams, waiting).await.unwrap();
        let took = started.elapsed();
        let in_time = WRITE_STALL..WRITE_STALL + 2 * SECOND;
        assert!(in_time.contains(&took), "{took:?}");
        let cut = self.journal.cut();
        assert_eq!(cut, [(Guard::Connection, Reason::WindowStall)]);
        drop((self.stuck, self.charge));
        assert_eq!(self.budget.held(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_room_is_reset_in_time_and_its_checks_do_not_prolong_that() {
    let crowded = crowded();
    let room = Room::new(crowded.held.clone());
    let mut body = ServedBody::new(Full::new(Bytes::from("x")), Some(room));
    let waiting = async move {
        body.frame().await;
    };
    crowded.assert_reset(waiting).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_room_before_its_handler_is_reset_in_time() {
    let crowded = crowded();
    let mut room = Room::new(crowded.held.clone());
    let waiting = async move {
        poll_fn(|cx| poll_room(&mut room, cx)).await;
    };
    crowded.assert_reset(waiting).await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_may_work_for_long_after_its_request_has_waited_for_room() {
    let crowded = crowded();
    let mut room = Room::new(crowded.held.clone());
    let waiting = async move {
        assert!(poll_fn(|cx| poll_room(&mut room, cx)).await);
        sleep(10 * WRITE_STALL).await;
    };
    let stream = spawn(&crowded.streams, waiting);
    sleep(WRITE_STALL / 2).await;
    drop(crowded.stuck);
    let started = Instant::now();
    stream.await.unwrap();
    assert!(started.elapsed() >= 10 * WRITE_STALL);
    assert!(crowded.journal.cut().is_empty());
}
