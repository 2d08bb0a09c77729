//! Every deadline, both ways to end, and each poll function, on paused time over a duplex.

use crate::{
    ConnGuard, ConnGuardBuilder, ConnHolder, ConnRates, GuardedIo, GuardedListener, Listener,
    Pressure, Transport,
    connection::decision::{CloseDecision, CloseMode, CloseRequest},
    guard::close::close,
};
use palisade_core::{Gauge, GaugeSource, Mode, Phase, Reason, Violation};
use palisade_testkit::Journal;
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    task::yield_now,
    time::{Instant, advance, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, task::spawn};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(250);

/// A duplex that remembers whether it was told to reset.
#[derive(Debug)]
struct Wire {
    inner: DuplexStream,
    reset: Arc<AtomicBool>,
    hung_up: Arc<AtomicBool>,
}

impl Transport for Wire {
    fn reset_on_close(&self) {
        self.reset.store(true, Relaxed);
    }

    fn has_hung_up(&self) -> bool {
        self.hung_up.load(Relaxed)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
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

/// One end under guard, and the other end.
struct Pair {
    server: GuardedIo<Wire>,
    client: DuplexStream,
    reset: Arc<AtomicBool>,
    hung_up: Arc<AtomicBool>,
}

fn peer(last: u8) -> Option<SocketAddr> {
    Some(([192, 0, 2, last], 4711).into())
}

fn connect_from(guard: &ConnGuard, last: u8) -> io::Result<Pair> {
    let (inner, client) = duplex(1024);
    let (reset, hung_up) = (Arc::default(), Arc::default());
    let wire = Wire {
        inner,
        reset: Arc::clone(&reset),
        hung_up: Arc::clone(&hung_up),
    };
    Ok(Pair {
        server: guard.admit(wire, peer(last), None)?,
        client,
        reset,
        hung_up,
    })
}

fn connect(guard: &ConnGuard) -> Pair {
    connect_from(guard, 1).unwrap()
}

/// Every request is tracked for.
fn guard(builder: ConnGuardBuilder) -> (ConnGuard, Journal) {
    let journal = Journal::default();
    let guard = builder.metrics(journal.clone()).build().unwrap();
    guard.track_requests();
    (guard, journal)
}

fn is_gone(guard: &ConnGuard) {
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

fn level(guard: &ConnGuard, of: Gauge) -> Option<u64> {
    let mut found = None;
    guard.shared().sample(&mut |level, value| {
        if level == of {
            found = Some(value);
        }
    });
    found
}

fn violation(error: &io::Error) -> Violation {
    *Violation::behind(error).unwrap()
}

/// Reads until the end; how long it took and how it ended.
async fn ends(server: &mut GuardedIo<Wire>) -> (Duration, io::Result<()>) {
    let started = Instant::now();
    let mut bytes = Vec::new();
    let result = server.read_to_end(&mut bytes).await;
    (started.elapsed(), result.map(drop))
}

/// Answers a request over `pair` to the end.
async fn serve_once(pair: &mut Pair, http2: bool) {
    pair.client.write_all(b"request").await.unwrap();
    pair.server.read_exact(&mut [0; 7]).await.unwrap();
    let mut request = pair.server.conn().begin_request(http2);
    pair.server.write_all(b"answer").await.unwrap();
    pair.client.read_exact(&mut [0; 6]).await.unwrap();
    request.set_answered();
}

// === Deadlines ===

#[tokio::test(start_paused = true)]
async fn silence_is_reset_at_the_first_deadline_exactly() {
    let (guard, journal) = guard(ConnGuard::builder());
    let mut pair = connect(&guard);
    let (after, result) = ends(&mut pair.server).await;
    assert_eq!(after, 10 * SECOND);
    let error = result.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    assert_eq!(violation(&error).reason, Reason::FirstRequest);
    assert!(pair.reset.load(Relaxed));
    drop(pair);
    is_gone(&guard);
    let ended = journal.disconnected();
    let [(violation, Mode::Enforce)] = &ended[..] else {
        panic!("{ended:?}")
    };
    assert_eq!(
        (violation.reason, violation.phase),
        (Reason::FirstRequest, Phase::FirstHead)
    );
    assert_eq!((violation.limit, violation.observed), (10_000, 10_000));
    assert_eq!(
        (journal.opened(), journal.closed()),
        (1, vec![Some(Reason::FirstRequest)])
    );
    let kills = guard.recently_closed();
    assert_eq!((kills.len(), kills[0].reason), (1, Reason::FirstRequest));
}

#[tokio::test(start_paused = true)]
async fn a_stall_of_ours_is_charged_to_nobody() {
    let (guard, _) = guard(ConnGuard::builder());
    let Pair {
        mut server,
        mut client,
        ..
    } = connect(&guard);
    yield_now().await; // The sweeper is at work.
    client.write_all(b"request").await.unwrap();
    advance(30 * SECOND).await; // And nobody else for as long.
    for _ in 0..50 {
        yield_now().await; // It looks at everybody before the request is read.
    }
    server.read_exact(&mut [0; 7]).await.unwrap();
    let _request = server.conn().begin_request(false);
    advance(TICK).await;
    for _ in 0..50 {
        yield_now().await;
    }
    assert_eq!(server.conn().state().decision(), None);
}

#[tokio::test(start_paused = true)]
async fn stalls_without_end_do_not_keep_the_silent() {
    let (guard, _) = guard(ConnGuard::builder());
    let Pair {
        server,
        client: _client,
        ..
    } = connect(&guard);
    yield_now().await;
    for _ in 0..2 {
        advance(30 * SECOND).await;
        for _ in 0..50 {
            yield_now().await;
        }
    }
    assert_eq!(
        server.conn().state().decision().unwrap().reason,
        Reason::FirstRequest
    );
}

#[tokio::test(start_paused = true)]
async fn a_byte_a_second_and_half_a_preface_move_nothing() {
    let (guard, _) = guard(ConnGuard::builder());
    let Pair {
        mut server,
        mut client,
        ..
    } = connect(&guard);
    let drip = tokio::spawn(async move {
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM" {
            if client.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(SECOND).await;
        }
    });
    let (after, result) = ends(&mut server).await;
    assert_eq!(after, 10 * SECOND);
    result.unwrap_err();
    drip.abort();
}

#[tokio::test(start_paused = true)]
async fn a_later_head_is_reset_within_its_time_and_two_looks() {
    let (guard, _) = guard(ConnGuard::builder());
    let mut pair = connect(&guard);
    serve_once(&mut pair, false).await;
    tokio::time::sleep(2 * TICK).await;
    // It did not begin as HTTP/1 in plain text, but with the `r` of `serve_once`.
    pair.client.write_all(b"G").await.unwrap();
    let (after, result) = ends(&mut pair.server).await;
    assert!(
        (10 * SECOND..=10 * SECOND + 2 * TICK).contains(&after),
        "{after:?}"
    );
    assert_eq!(violation(&result.unwrap_err()).reason, Reason::SlowHead);
    assert!(pair.reset.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn whoever_began_a_head_of_http1_is_answered_408_and_finished() {
    for later in [false, true] {
        let (guard, journal) = guard(ConnGuard::builder());
        let mut pair = connect(&guard);
        pair.client.write_all(b"GET /").await.unwrap();
        if later {
            pair.server.read_exact(&mut [0; 5]).await.unwrap();
            serve_once(&mut pair, false).await;
            tokio::time::sleep(2 * TICK).await;
            pair.client.write_all(b"GET /").await.unwrap();
        }
        let Pair {
            mut server,
            mut client,
            reset,
            ..
        } = pair;
        let (after, result) = ends(&mut server).await;
        assert!(
            (10 * SECOND..=10 * SECOND + 2 * TICK).contains(&after),
            "{after:?}"
        );
        result.unwrap();
        // Nothing of anybody else's comes after it.
        assert_eq!(
            server.write(b"x").await.unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        server.shutdown().await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 408 ") && answer.ends_with("\r\n\r\n"),
            "{answer}"
        );
        assert!(!reset.load(Relaxed));
        let reason = if later {
            Reason::SlowHead
        } else {
            Reason::FirstRequest
        };
        assert_eq!(journal.closed(), [Some(reason)]);
    }
}

#[tokio::test(start_paused = true)]
async fn no_408_comes_into_an_answer_or_after_a_word_of_hyper_s_own() {
    let (guard, _) = guard(ConnGuard::builder());
    // Something was said before the first request was complete.
    let mut pair = connect(&guard);
    pair.client.write_all(b"GET /").await.unwrap();
    pair.server
        .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .await
        .unwrap();
    ends(&mut pair.server).await.1.unwrap_err();
    assert!(pair.reset.load(Relaxed));
    // The end of the answer before is not taken yet.
    let mut pair = connect(&guard);
    pair.client.write_all(b"GET /").await.unwrap();
    pair.server.read_exact(&mut [0; 5]).await.unwrap();
    serve_once(&mut pair, false).await;
    tokio::time::sleep(2 * TICK).await;
    pair.client.write_all(b"GET /").await.unwrap();
    pair.server.read_exact(&mut [0; 5]).await.unwrap();
    timeout(SECOND, pair.server.write_all(&[b'x'; 2048]))
        .await
        .unwrap_err();
    let (_, result) = ends(&mut pair.server).await;
    assert_eq!(violation(&result.unwrap_err()).reason, Reason::SlowHead);
    assert!(pair.reset.load(Relaxed));
    // Nor where whoever writes sees the verdict first.
    let mut pair = connect(&guard);
    pair.client.write_all(b"GET /").await.unwrap();
    pair.server.read_exact(&mut [0; 5]).await.unwrap();
    tokio::time::sleep(11 * SECOND).await;
    pair.server.write(b"x").await.unwrap_err();
    ends(&mut pair.server).await.1.unwrap_err();
    pair.server.shutdown().await.unwrap_err();
    drop(pair.server);
    assert_eq!(pair.client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn idle_ends_in_good_order_whatever_the_version() {
    for http2 in [false, true] {
        let (guard, journal) = guard(ConnGuard::builder());
        let mut pair = connect(&guard);
        serve_once(&mut pair, http2).await;
        if http2 {
            pair.client
                .write_all(b"PING, or any other frame")
                .await
                .unwrap();
        }
        let (after, result) = ends(&mut pair.server).await;
        assert!(
            (65 * SECOND..=65 * SECOND + 2 * TICK).contains(&after),
            "{after:?}"
        );
        result.unwrap(); // The end of the stream, and no error.
        pair.server.shutdown().await.unwrap(); // And no lingering.
        assert!(!pair.reset.load(Relaxed));
        drop(pair.server);
        assert_eq!(pair.client.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(journal.closed(), [Some(Reason::Idle)]);
        is_gone(&guard);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_at_work_is_never_idle_and_its_connection_begins_to_be_when_it_ends() {
    let (guard, journal) = guard(ConnGuard::builder());
    let mut pair = connect(&guard);
    let request = pair.server.conn().begin_request(false);
    let reader = tokio::spawn(async move { ends(&mut pair.server).await });
    advance(1000 * SECOND).await;
    assert!(!reader.is_finished());
    drop(request);
    let dropped = Instant::now();
    let (_, result) = reader.await.unwrap();
    result.unwrap();
    let after = dropped.elapsed();
    assert!(
        (65 * SECOND..=65 * SECOND + 2 * TICK).contains(&after),
        "{after:?}"
    );
    assert_eq!(journal.closed(), [Some(Reason::Idle)]);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_write_is_reset_and_500_bytes_a_second_in_time_are_no_stall() {
    let (guard, _) = guard(ConnGuard::builder().write_stall(30 * SECOND));
    let Pair {
        mut server,
        mut client,
        reset,
        ..
    } = connect(&guard);
    let _request = server.conn().begin_request(false);
    let started = Instant::now();
    let writer = tokio::spawn(async move {
        let result = server.write_all(&[b'x'; 4096]).await;
        (Instant::now(), result)
    });
    // Enough after 2 s: the stall begins anew. A byte after 20 s more is no progress.
    tokio::time::sleep(2 * SECOND).await;
    client.read_exact(&mut [0; 1100]).await.unwrap();
    tokio::time::sleep(20 * SECOND).await;
    client.read_exact(&mut [0; 1]).await.unwrap();
    let (ended, result) = writer.await.unwrap();
    let after = ended - started;
    assert!(
        (32 * SECOND..=32 * SECOND + 2 * TICK).contains(&after),
        "{after:?}"
    );
    assert_eq!(violation(&result.unwrap_err()).reason, Reason::WriteStall);
    assert!(reset.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_given_up_is_no_stall() {
    let (guard, journal) = guard(ConnGuard::builder());
    let Pair {
        mut server,
        client: _client,
        ..
    } = connect(&guard);
    drop(server.conn().begin_request(false));
    server.conn().upgrade().unwrap();
    timeout(SECOND, server.write_all(&[b'x'; 4096]))
        .await
        .unwrap_err();
    let given_up = Instant::now();
    let (_, result) = ends(&mut server).await;
    result.unwrap();
    // From its last byte, a second before.
    let after = given_up.elapsed();
    assert!(
        (299 * SECOND..=299 * SECOND + 2 * TICK).contains(&after),
        "{after:?}"
    );
    drop(server);
    assert_eq!(journal.closed(), [Some(Reason::Idle)]);
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_connection_may_be_silent_for_its_own_time_and_keeps_its_place() {
    let (guard, _) = guard(ConnGuard::builder().max_age(SECOND));
    let mut pair = connect(&guard);
    serve_once(&mut pair, false).await;
    pair.server.conn().state().set_upgraded();
    let (after, result) = ends(&mut pair.server).await;
    assert!(
        (300 * SECOND..=300 * SECOND + 2 * TICK).contains(&after),
        "{after:?}"
    );
    result.unwrap();
    assert_eq!(guard.snapshot().open, 1);
    drop(pair);
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn age_closes_then_finishes_what_is_idle_and_resets_what_works_after_the_grace() {
    let builder = ConnGuard::builder()
        .max_age(20 * SECOND)
        .age_grace(30 * SECOND);
    let (guard, _) = guard(builder.idle(1000 * SECOND));
    let (mut idle, mut working) = (connect(&guard), connect(&guard));
    let spread = 18 * SECOND..=22 * SECOND + 2 * TICK;
    let untold = 30 * SECOND..=30 * SECOND + 2 * TICK;
    serve_once(&mut idle, true).await;
    let _request = working.server.conn().begin_request(true);
    let ((idle_after, idle_ended), (working_after, working_ended)) =
        tokio::join!(ends(&mut idle.server), ends(&mut working.server));
    assert!(untold.contains(&idle_after), "{idle_after:?}");
    idle_ended.unwrap();
    let working_after = working_after - 30 * SECOND;
    assert!(spread.contains(&working_after), "{working_after:?}");
    assert_eq!(
        violation(&working_ended.unwrap_err()).reason,
        Reason::MaxAge
    );
    assert_eq!(
        working.server.conn().state().closing(),
        Some(Reason::MaxAge)
    );
    assert!(working.reset.load(Relaxed) && !idle.reset.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn the_last_request_of_http2_ends_the_connection_once_nothing_is_in_flight() {
    let (guard, _) = guard(ConnGuard::builder().max_requests(2));
    let mut pair = connect(&guard);
    serve_once(&mut pair, true).await;
    let still = pair.server.conn().begin_request(true);
    let reader = tokio::spawn(async move { (ends(&mut pair.server).await, pair) });
    advance(60 * SECOND).await;
    assert!(!reader.is_finished());
    drop(still);
    let ((_, result), pair) = reader.await.unwrap();
    result.unwrap();
    assert_eq!(
        pair.server.conn().state().decision().unwrap().reason,
        Reason::MaxRequests
    );
}

#[tokio::test(start_paused = true)]
async fn where_places_are_short_a_client_keeps_eight_idle_connections() {
    let (guard, journal) = guard(ConnGuard::builder().max_connections(50));
    let mut pairs: Vec<_> = (0..12).map(|_| connect(&guard)).collect();
    let mut neighbours: Vec<_> = (2..10)
        .map(|last| connect_from(&guard, last).unwrap())
        .collect();
    for pair in pairs.iter_mut().chain(&mut neighbours) {
        serve_once(pair, false).await;
    }
    let working: Vec<_> = pairs[..2]
        .iter()
        .map(|pair| pair.server.conn().begin_request(false))
        .collect();
    let closing = |pairs: &[Pair]| -> Vec<_> {
        let closing = pairs
            .iter()
            .map(|pair| pair.server.conn().state().closing());
        closing
            .map(|reason| reason == Some(Reason::KeepAlivePerClient))
            .collect()
    };
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(!closing(&pairs).contains(&true)); // It may be between two requests.
    tokio::time::sleep(SECOND).await;
    // Ten are idle, of which the older ones go; who works does not.
    let mut expected = [false; 12];
    (expected[2], expected[3]) = (true, true);
    assert_eq!(closing(&pairs), expected);
    assert!(!closing(&neighbours).contains(&true));
    let (after, result) = ends(&mut pairs[2].server).await;
    assert!((4 * SECOND..=5 * SECOND).contains(&after), "{after:?}");
    result.unwrap(); // A FIN.
    let ended = journal.disconnected();
    let numbers = (ended[0].0.reason, ended[0].0.limit, ended[0].0.observed);
    assert_eq!(numbers, (Reason::KeepAlivePerClient, 8, 9));
    drop(working);
}

#[tokio::test(start_paused = true)]
async fn clients_keep_their_idle_connections_while_there_are_places_or_if_they_may() {
    let kept = "192.0.2.1".parse().unwrap();
    for builder in [
        ConnGuard::builder().max_connections(1000),
        ConnGuard::builder().no_max_per_client(),
        ConnGuard::builder().no_keep_alive_per_client(),
        ConnGuard::builder().reserve(1, [kept]),
    ] {
        let (guard, _) = guard(builder);
        let mut pairs: Vec<_> = (0..60).map(|_| connect(&guard)).collect();
        for pair in &mut pairs {
            serve_once(pair, false).await;
        }
        tokio::time::sleep(30 * SECOND).await;
        assert!(
            pairs
                .iter()
                .all(|pair| pair.server.conn().state().closing().is_none())
        );
    }
}

#[tokio::test(start_paused = true)]
async fn without_accounting_whoever_sent_a_byte_is_taken_to_be_at_work() {
    let guard = ConnGuard::builder().no_max_age().build().unwrap();
    let mut silent = connect(&guard);
    let Pair {
        mut server,
        mut client,
        ..
    } = connect(&guard);
    client.write_all(b"x").await.unwrap();
    let reader = tokio::spawn(async move { ends(&mut server).await });
    let (after, result) = ends(&mut silent.server).await;
    assert_eq!((after, result.is_err()), (10 * SECOND, true));
    advance(10_000 * SECOND).await;
    yield_now().await;
    assert!(!reader.is_finished());
    assert_eq!(guard.snapshot().untracked, 2);
    drop(client);
    reader.await.unwrap().1.unwrap();
}

#[tokio::test(start_paused = true)]
async fn that_nobody_tells_of_requests_is_said_once_and_not_where_somebody_does() {
    let journal = Journal::default();
    let untold = ConnGuard::builder()
        .metrics(journal.clone())
        .build()
        .unwrap();
    let (told, told_journal) = guard(ConnGuard::builder());
    let mut pairs = [connect(&untold), connect(&untold), connect(&told)];
    tokio::time::sleep(5 * SECOND).await;
    assert!(journal.untracked().is_empty());
    for pair in &mut pairs {
        pair.client.write_all(b"x").await.unwrap();
        pair.server.read_exact(&mut [0]).await.unwrap();
    }
    tokio::time::sleep(9 * SECOND).await;
    assert!(journal.untracked().is_empty());
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(journal.untracked(), [2]);
    assert!(told_journal.untracked().is_empty());
    drop(pairs);
    is_gone(&untold);
}

#[tokio::test(start_paused = true)]
async fn shadow_tells_each_once_and_ends_nobody_and_off_does_not_look() {
    let (shadow, journal) = guard(ConnGuard::builder().mode(Mode::Shadow).max_connections(2));
    let mut pairs: Vec<_> = (0..4).map(|_| connect(&shadow)).collect();
    advance(Duration::from_secs(7200)).await;
    for _ in 0..8 {
        tokio::time::sleep(TICK).await;
    }
    pairs[0].client.write_all(b"x").await.unwrap();
    pairs[0].server.read_exact(&mut [0]).await.unwrap();
    let told = journal.disconnected();
    assert!(told.iter().all(|(_, mode)| *mode == Mode::Shadow));
    let of = |reason| {
        told.iter()
            .filter(|(told, _)| told.reason == reason)
            .count()
    };
    assert_eq!(of(Reason::ConnectionsFull), 2);
    // Each is told of once: as evicted, or else for its deadline.
    assert_eq!(of(Reason::ConnectionEvicted) + of(Reason::FirstRequest), 4);
    drop(pairs);
    assert_eq!(journal.closed(), [None; 4]);
    is_gone(&shadow);

    let (off, journal) = guard(ConnGuard::builder().mode(Mode::Off).max_connections(1));
    let pairs: Vec<_> = (0..4).map(|_| connect(&off)).collect();
    advance(Duration::from_secs(7200)).await;
    drop(pairs);
    assert_eq!((journal.opened(), journal.disconnected().len()), (0, 0));
    is_gone(&off);
}

// === Pressure ===

#[tokio::test(start_paused = true)]
async fn under_pressure_silence_and_idleness_end_sooner_and_work_does_not() {
    let pressure = Pressure::default();
    let (guard, _) = guard(ConnGuard::builder().pressure(pressure.clone()));
    let (mut silent, mut idle, working) = (connect(&guard), connect(&guard), connect(&guard));
    serve_once(&mut idle, false).await;
    let _request = working.server.conn().begin_request(false);
    pressure.set(1.0);
    let ((silent_after, reset), (idle_after, finished)) =
        tokio::join!(ends(&mut silent.server), ends(&mut idle.server));
    assert_eq!(silent_after, 3 * SECOND);
    let told = (
        violation(&reset.unwrap_err()).reason,
        guard.recently_closed()[1].limit,
    );
    assert_eq!(told, (Reason::FirstRequest, 3000)); // As it was when it was looked at.
    assert!(
        (2 * SECOND..=2 * SECOND + 2 * TICK).contains(&idle_after),
        "{idle_after:?}"
    );
    finished.unwrap();
    tokio::time::sleep(60 * SECOND).await;
    assert!(working.server.conn().state().decision().is_none());
    // And it is over as soon as it is over.
    pressure.set(0.8);
    let mut silent = connect(&guard);
    assert_eq!(ends(&mut silent.server).await.0, 10 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn connections_at_work_up_to_the_cap_are_pressure_on_those_that_are_not() {
    let (guard, _) = guard(ConnGuard::builder().max_connections(20).no_max_per_client());
    let mut idle = connect(&guard);
    for _ in 0..20 {
        serve_once(&mut idle, false).await;
    }
    let _working: Vec<_> = (0..17)
        .map(|_| {
            let pair = connect(&guard);
            let request = pair.server.conn().begin_request(false);
            (pair, request)
        })
        .collect();
    assert_eq!(guard.snapshot().pressure, 0.0); // 18 of 20: displacement has not begun.
    // Others come to work faster than anybody can be told to go.
    guard.shared().open.fetch_add(2, Relaxed);
    assert_eq!(guard.snapshot().pressure, 1.0);
    assert_eq!(level(&guard, Gauge::PressurePercent), Some(100));
    let (after, _) = ends(&mut idle.server).await;
    assert!(
        (2 * SECOND..=2 * SECOND + 2 * TICK).contains(&after),
        "{after:?}"
    );
    guard.shared().open.fetch_sub(2, Relaxed);
}

// === Poll functions ===

type Call = fn(Pin<&mut GuardedIo<Wire>>, &mut Context<'_>) -> Poll<io::Result<()>>;

const CALLS: [(&str, Call); 5] = [
    ("poll_read", |io, cx| {
        io.poll_read(cx, &mut ReadBuf::new(&mut [0; 8]))
    }),
    ("poll_write", |io, cx| io.poll_write(cx, b"x").map_ok(drop)),
    ("poll_write_vectored", |io, cx| {
        io.poll_write_vectored(cx, &[IoSlice::new(b"x")])
            .map_ok(drop)
    }),
    ("poll_flush", |io, cx| io.poll_flush(cx)),
    ("poll_shutdown", |io, cx| io.poll_shutdown(cx)),
];

#[tokio::test(start_paused = true)]
async fn every_poll_function_sees_a_verdict() {
    for (name, call) in CALLS {
        for ending in [CloseMode::Graceful, CloseMode::Reset] {
            let (guard, _) = guard(ConnGuard::builder());
            let mut pair = connect(&guard);
            pair.client.write_all(b"unread").await.unwrap();
            pair.server.conn().state().request_close(CloseDecision {
                reason: Reason::Idle,
                mode: ending,
            });
            let mut poll = spawn(());
            let mut io = Pin::new(&mut pair.server);
            let result = assert_ready!(poll.enter(|cx, _| call(io.as_mut(), cx)));
            let is_error = !matches!(
                (name, ending),
                ("poll_read" | "poll_shutdown", CloseMode::Graceful)
            );
            assert_eq!(result.is_err(), is_error, "{name} {ending:?}");
            assert_eq!(
                pair.reset.load(Relaxed),
                ending == CloseMode::Reset,
                "{name} {ending:?}"
            );
            if name == "poll_read" {
                assert_eq!(pair.server.conn().state().stats().read, 0);
            }
            guard.shared().close_pending.fetch_add(1, Relaxed); // What `Shared::end` would have done.
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_verdict_wakes_both_who_waits_to_read_and_who_waits_to_write() {
    let (guard, _) = guard(ConnGuard::builder());
    let Pair {
        server,
        client: _client,
        ..
    } = connect(&guard);
    let conn = server.conn().clone();
    let (mut read, mut write) = tokio::io::split(server);
    let mut reader = spawn(async move { read.read(&mut [0; 8]).await });
    let mut writer = spawn(async move { write.write_all(&[0; 4096]).await });
    assert_pending!(reader.poll());
    assert_pending!(writer.poll());
    assert!(guard.close(&conn, Reason::MaxAge, CloseMode::Reset));
    assert!(reader.is_woken() && writer.is_woken());
    assert_ready!(reader.poll()).unwrap_err();
    assert_ready!(writer.poll()).unwrap_err();
    drop((reader, writer));
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_vanished_behind_an_unread_byte_is_found_by_the_probe_in_poll_flush() {
    let (guard, journal) = guard(ConnGuard::builder());
    let Pair {
        mut server,
        mut client,
        hung_up,
        ..
    } = connect(&guard);
    // All of it is here before it is looked for, so that nobody ever waits to read.
    client.write_all(b"request and a byte more").await.unwrap();
    server.read_exact(&mut [0; 23]).await.unwrap();
    let _request = server.conn().begin_request(false);
    let started = Instant::now();
    // hyper flushes whenever it is polled, and otherwise waits to be woken.
    let mut polls = 0;
    let result = std::future::poll_fn(|cx| {
        polls += 1;
        hung_up.store(polls > 2, Relaxed); // After the first probe, too, it can be woken.
        match Pin::new(&mut server).poll_flush(cx) {
            Poll::Ready(Ok(())) => Poll::Pending,
            other => other,
        }
    })
    .await;
    assert_eq!(violation(&result.unwrap_err()).reason, Reason::HungUp);
    let probes = 10 * SECOND..=10 * SECOND + 2 * TICK;
    assert!(
        probes.contains(&started.elapsed()),
        "{:?}",
        started.elapsed()
    );
    drop(server);
    assert_eq!(journal.closed(), [Some(Reason::HungUp)]);
}

#[tokio::test(start_paused = true)]
async fn who_is_gone_already_is_not_counted_among_those_who_are_going() {
    let (guard, journal) = guard(ConnGuard::builder());
    let pair = connect(&guard);
    let conn = pair.server.conn().clone();
    drop(pair);
    // As by a sweeper that has just copied its handle.
    let request = CloseRequest {
        reason: Reason::Idle,
        mode: CloseMode::Graceful,
        phase: Phase::Idle,
        limit: 1,
        observed: 2,
    };
    assert!(!close(guard.shared(), &conn, request));
    is_gone(&guard);
    assert!(journal.disconnected().is_empty());
}

// === Lingering ===

#[tokio::test(start_paused = true)]
async fn a_shutdown_sends_the_fin_and_throws_away_what_still_comes() {
    let (guard, _) = guard(ConnGuard::builder());
    let Pair {
        mut server,
        mut client,
        ..
    } = connect(&guard);
    let conn = server.conn().clone();
    let closing = tokio::spawn(async move { server.shutdown().await });
    // The client sees the end at once, and can go on sending meanwhile.
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    for _ in 0..100 {
        client.write_all(&[b'x'; 1024]).await.unwrap();
    }
    yield_now().await;
    assert!(conn.state().stats().lingering && !closing.is_finished());
    drop(client);
    closing.await.unwrap().unwrap();
    assert_eq!(conn.state().stats().read, 100 * 1024);
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn a_connection_lingers_for_a_second_and_for_30_while_an_upload_arrives() {
    let (guard, _) = guard(ConnGuard::builder());
    for (bytes, most) in [
        (0, SECOND),
        (1, SECOND),
        (50, 30 * SECOND),
        (4096, 30 * SECOND),
    ] {
        let Pair {
            mut server,
            mut client,
            ..
        } = connect(&guard);
        let sender = tokio::spawn(async move {
            while bytes > 0 && client.write_all(&vec![b'x'; bytes]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            std::future::pending::<()>().await;
        });
        let started = Instant::now();
        server.shutdown().await.unwrap();
        let after = started.elapsed();
        assert!(
            (most..=most + 2 * TICK).contains(&after),
            "{bytes}: {after:?}"
        );
        sender.abort();
    }
    // An upload that ends, or pauses, after a while.
    let Pair {
        mut server,
        mut client,
        ..
    } = connect(&guard);
    let sender = tokio::spawn(async move {
        for _ in 0..500 {
            client.write_all(&[b'x'; 4096]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        client
    });
    let started = Instant::now();
    server.shutdown().await.unwrap();
    let after = started.elapsed();
    assert!(
        (6 * SECOND - TICK..=6 * SECOND + 2 * TICK).contains(&after),
        "{after:?}"
    );
    drop((sender.await.unwrap(), server));
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn lingering_ends_after_64_mib() {
    let (guard, _) = guard(ConnGuard::builder());
    let (inner, mut client) = duplex(1 << 20);
    let wire = Wire {
        inner,
        reset: Arc::default(),
        hung_up: Arc::default(),
    };
    let mut server = guard.admit(wire, peer(1), None).unwrap();
    let conn = server.conn().clone();
    let closing = tokio::spawn(async move { server.shutdown().await });
    let chunk = vec![b'x'; 1 << 20];
    while client.write_all(&chunk).await.is_ok() {}
    closing.await.unwrap().unwrap();
    let read = conn.state().stats().read;
    assert!((64 << 20..=(64 << 20) + 8192).contains(&read), "{read}");
}

#[tokio::test(start_paused = true)]
async fn what_was_upgraded_or_is_not_accounted_for_is_not_thrown_away() {
    let (tracked, _) = guard(ConnGuard::builder());
    let untold = ConnGuard::default();
    for guard in [&tracked, &untold] {
        let mut pair = connect(guard);
        if std::ptr::eq(guard, &tracked) {
            pair.server.conn().state().set_upgraded();
        }
        let started = Instant::now();
        pair.client.write_all(b"still read").await.unwrap();
        pair.server.shutdown().await.unwrap();
        pair.server.read_exact(&mut [0; 10]).await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}

// === Caps ===

#[tokio::test(start_paused = true)]
async fn who_did_nothing_makes_room_first_and_the_oldest_of_them() {
    let (guard, journal) = guard(ConnGuard::builder().max_connections(10).no_max_per_client());
    let mut proven = connect(&guard);
    serve_once(&mut proven, false).await;
    advance(Duration::from_millis(10)).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(connect(&guard));
        advance(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(2 * TICK).await;
    assert!(journal.disconnected().is_empty()); // Nine: at the soft limit and not above it.
    let newcomer = connect(&guard);
    let verdicts: Vec<_> = silent
        .iter()
        .map(|pair| pair.server.conn().state().decision().is_some())
        .collect();
    assert_eq!(
        verdicts,
        [true, false, false, false, false, false, false, false]
    );
    assert!(proven.server.conn().state().decision().is_none());
    silent.remove(0);
    assert_eq!(guard.snapshot().open, 9);
    assert_eq!(journal.closed(), [Some(Reason::ConnectionEvicted)]);
    drop((silent, proven, newcomer));
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn of_those_who_did_something_the_one_with_the_least_work_for_its_age_makes_room() {
    let (guard, _) = guard(ConnGuard::builder().max_connections(3).no_max_per_client());
    let (mut rare, mut busy) = (connect(&guard), connect(&guard));
    for _ in 0..10 {
        serve_once(&mut busy, false).await;
    }
    for _ in 0..5 {
        // Idle for less long than the other, and yet of less use.
        tokio::time::sleep(3 * SECOND).await;
        serve_once(&mut rare, false).await;
    }
    tokio::time::sleep(4 * TICK).await;
    let _third = connect(&guard);
    assert!(busy.server.conn().state().decision().is_none());
    let verdict = rare.server.conn().state().decision().unwrap();
    assert_eq!(verdict.reason, Reason::ConnectionEvicted);
}

#[tokio::test(start_paused = true)]
async fn who_has_only_just_come_makes_room_after_those_who_did_little() {
    let (guard, _) = guard(ConnGuard::builder().max_connections(3).no_max_per_client());
    let mut proven = connect(&guard);
    serve_once(&mut proven, false).await;
    tokio::time::sleep(3 * SECOND).await;
    let just_come = connect(&guard);
    advance(Duration::from_millis(1)).await;
    let next = connect(&guard);
    assert!(proven.server.conn().state().decision().is_some());
    assert!(just_come.server.conn().state().decision().is_none());
    drop(proven);
    // Where there is nobody else it is he all the same.
    let _last = connect(&guard);
    assert!(just_come.server.conn().state().decision().is_some());
    assert!(next.server.conn().state().decision().is_none());
}

#[tokio::test(start_paused = true)]
async fn newcomers_by_the_hundred_make_room_before_those_who_did_little() {
    let builder = ConnGuard::builder()
        .max_connections(100)
        .no_max_per_client();
    let (guard, _) = guard(builder.no_accept_rate());
    let mut little = connect(&guard);
    serve_once(&mut little, false).await;
    tokio::time::sleep(3 * SECOND).await;
    let mut flood = Vec::new();
    for _ in 0..400 {
        flood.push(connect(&guard));
        flood.retain(|pair| pair.server.conn().state().decision().is_none());
        assert!(flood.len() <= 89); // One of them goes for each that comes.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(little.server.conn().state().decision().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_useful_connection_is_not_evicted_while_half_of_all_are_about_to_go() {
    let builder = ConnGuard::builder()
        .max_connections(100)
        .no_max_per_client();
    let (guard, _) = guard(builder.no_accept_rate());
    let mut useful = connect(&guard);
    for _ in 0..20 {
        serve_once(&mut useful, false).await;
    }
    tokio::time::sleep(SECOND).await;
    // Sockets that nothing polls: whatever is told to go stays for now. Each newcomer that finds no
    // place after all has cost another connection its own.
    let flood: Vec<_> = (0..400)
        .filter_map(|_| connect_from(&guard, 2).ok())
        .collect();
    assert_eq!(guard.snapshot().open, 100);
    assert!(useful.server.conn().state().decision().is_none());
    // Once they have gone there are places again.
    let stays = |pair: &Pair| pair.server.conn().state().decision().is_none();
    let flood: Vec<_> = flood.into_iter().filter(stays).collect();
    assert!(flood.len() < 60, "{}", flood.len());
    connect_from(&guard, 3).unwrap();
    drop((flood, useful));
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn where_everybody_works_the_newcomer_is_reset_and_told_of() {
    let (guard, journal) = guard(ConnGuard::builder().max_connections(4).no_max_per_client());
    let pairs: Vec<_> = (0..4)
        .map(|_| {
            let pair = connect(&guard);
            let request = pair.server.conn().begin_request(false);
            (pair, request)
        })
        .collect();
    tokio::time::sleep(2 * TICK).await;
    let error = connect_from(&guard, 2).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let expected = (Reason::ConnectionsFull, Phase::Accept);
    assert_eq!(
        (violation(&error).reason, violation(&error).phase),
        expected
    );
    assert_eq!(journal.disconnected().len(), 1);
    assert_eq!(guard.snapshot().refused, 1);
    drop(pairs);
    connect_from(&guard, 2).unwrap();
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn the_last_places_are_for_those_for_whom_they_are_kept() {
    let builder = ConnGuard::builder()
        .max_connections(10)
        .max_per_client(1)
        .accept_rate(1, 1);
    let office = "192.0.2.200/29".parse().unwrap();
    let builder = builder.no_max_per_network().no_accept_rate_per_network();
    let (guard, journal) = guard(builder.reserve(4, [office]));
    let at_work = |last| {
        let pair = connect_from(&guard, last)?;
        let request = pair.server.conn().begin_request(false);
        Ok::<_, io::Error>((pair, request))
    };
    let mut attack: Vec<_> = (0..6).map(|last| at_work(last).unwrap()).collect();
    let refused = violation(&at_work(7).err().unwrap());
    assert_eq!(
        (refused.reason, refused.limit),
        (Reason::ConnectionsFull, 6)
    );
    // From one address, as often and as many as there are places.
    let kept: Vec<_> = (0..4).map(|_| at_work(201).unwrap()).collect();
    let refused = violation(&at_work(202).err().unwrap());
    assert_eq!(
        (refused.reason, refused.limit),
        (Reason::ConnectionsFull, 10)
    );
    drop(kept);

    // Who idles from there goes after everybody else who can, and for his like only.
    let mut idle = connect_from(&guard, 201).unwrap();
    serve_once(&mut idle, false).await;
    attack.truncate(3);
    tokio::time::sleep(10 * SECOND).await;
    let mut other = connect_from(&guard, 20).unwrap();
    for _ in 0..100 {
        serve_once(&mut other, false).await;
    }
    let _next = at_work(21).unwrap();
    assert!(other.server.conn().state().decision().is_some());
    assert!(idle.server.conn().state().decision().is_none());
    drop(other);
    let _last = at_work(22).unwrap();
    assert!(idle.server.conn().state().decision().is_none());
    let _own = [at_work(203).unwrap(), at_work(203).unwrap()];
    assert!(idle.server.conn().state().decision().is_some());
    assert!(
        journal
            .disconnected()
            .iter()
            .all(|(told, _)| told.reason != Reason::AcceptRate)
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_at_its_share_costs_its_neighbours_nothing() {
    let (guard, _) = guard(ConnGuard::builder().max_connections(100).max_per_client(3));
    let neighbour = connect_from(&guard, 9).unwrap();
    let flood: Vec<_> = (0..6).map_while(|_| connect_from(&guard, 1).ok()).collect();
    assert_eq!(flood.len(), 6);
    let left = |pair: &&Pair| pair.server.conn().state().decision().is_none();
    assert_eq!(flood.iter().filter(left).count(), 3);
    assert!(left(&&neighbour));
    // None of those told to go has gone, and that has an end, too.
    assert!(connect_from(&guard, 1).is_err());
    let snapshot = guard.snapshot();
    assert_eq!(
        (snapshot.distinct_clients, snapshot.clients[0].connections),
        (2, 6)
    );
    drop((flood, neighbour));
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn the_share_of_a_client_tightens_with_load_and_its_excess_is_evicted_first() {
    let builder = ConnGuard::builder().max_connections(1000).no_accept_rate();
    let (guard, journal) = guard(builder.no_max_per_network().no_accept_rate_per_network());
    let at_work = |last| {
        let pair = connect_from(&guard, last).unwrap();
        let request = pair.server.conn().begin_request(false);
        (pair, request)
    };
    // 300 event streams of one address, where 64 are sure; 600 connections of others.
    let streams: Vec<_> = (0..300).map(|_| at_work(1)).collect();
    let mut others = Vec::new();
    for last in 2..=12 {
        let mut idle: Vec<_> = (0..50)
            .map(|_| connect_from(&guard, last).unwrap())
            .collect();
        for pair in &mut idle {
            serve_once(pair, false).await;
        }
        others.extend(idle);
    }
    tokio::time::sleep(2 * TICK).await;
    assert!(
        journal.disconnected().is_empty(),
        "{:?}",
        journal.disconnected()
    );
    let others_work: Vec<_> = (13..=17)
        .flat_map(|last| (0..10).map(move |_| last))
        .collect();
    let mut others_work: Vec<_> = others_work.into_iter().map(at_work).collect();
    tokio::time::sleep(2 * TICK).await;
    // Places are short now: each that comes replaces one of the streams above the share.
    for last in 18..=22 {
        for _ in 0..10 {
            others_work.push(at_work(last));
        }
        tokio::time::sleep(2 * TICK).await;
    }
    let evicted = |pair: &Pair| pair.server.conn().state().decision().is_some();
    assert_eq!(others.iter().filter(|pair| evicted(pair)).count(), 0);
    assert_eq!(
        others_work.iter().filter(|(pair, _)| evicted(pair)).count(),
        0
    );
    assert_eq!(streams.iter().filter(|(pair, _)| evicted(pair)).count(), 50);
    // The newest, and never one of those that are within the share.
    assert!(streams[..64].iter().all(|(pair, _)| !evicted(pair)));
    drop((streams, others, others_work));
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn a_client_within_its_share_is_not_cut_at_work_when_its_excess_is_gone() {
    let builder = ConnGuard::builder().max_connections(200).no_accept_rate();
    let (guard, _) = guard(builder.no_max_per_network().no_accept_rate_per_network());
    let at_work = |last| {
        let pair = connect_from(&guard, last).ok()?;
        let request = pair.server.conn().begin_request(false);
        Some((pair, request))
    };
    let mut streams: Vec<_> = (0..70).map_while(|_| at_work(1)).collect();
    let mut others = Vec::new();
    for last in 2..250 {
        others.extend(at_work(last));
        let is_told = |(pair, _): &(Pair, _)| pair.server.conn().state().decision().is_some();
        streams.retain(|stream| !is_told(stream));
        tokio::time::sleep(TICK).await;
    }
    // The last tenth of the places is for networks that have few.
    assert_eq!((streams.len(), guard.snapshot().open), (64, 180));
}

#[tokio::test(start_paused = true)]
async fn a_network_connects_no_more_often_than_four_of_its_clients() {
    let (guard, journal) = guard(ConnGuard::builder().accept_rate(10, 20));
    let admitted = (0..200)
        .filter_map(|last| connect_from(&guard, last).ok())
        .count();
    assert_eq!(admitted, 80);
    assert!(
        journal
            .disconnected()
            .iter()
            .all(|(told, _)| told.reason == Reason::AcceptRate)
    );
    let wire = Wire {
        inner: duplex(1).0,
        reset: Arc::default(),
        hung_up: Arc::default(),
    };
    guard
        .admit(wire, Some(([198, 51, 100, 1], 1).into()), None)
        .unwrap();
    tokio::time::sleep(SECOND).await;
    let admitted = (0..200)
        .filter_map(|last| connect_from(&guard, last).ok())
        .count();
    assert_eq!(admitted, 40);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_cancels_at_the_pace_of_a_typist_is_never_reset() {
    let (guard, journal) = guard(ConnGuard::builder().max_cancelled(20));
    let pair = connect(&guard);
    let cancel = || drop(pair.server.conn().begin_request(true));
    for key in 0..3000 {
        cancel();
        let pause = if key % 5 == 4 { 400 } else { 80 + key % 40 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    assert!(journal.disconnected().is_empty());
    // Paced, but faster than they are forgiven.
    let started = Instant::now();
    while pair.server.conn().state().decision().is_none() {
        cancel();
        tokio::time::sleep(Duration::from_millis(25)).await;
        assert!(started.elapsed() < 5 * SECOND);
    }
    assert_eq!(
        journal.disconnected()[0].0.reason,
        Reason::CancelledRequests
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_can_be_told_by_goaway_is_told_before_it_is_cut() {
    let (guard, journal) = guard(ConnGuard::builder().max_cancelled(20));
    let (mut idle, cancelling) = (connect(&guard), connect(&guard));
    serve_once(&mut idle, true).await;
    for pair in [&idle, &cancelling] {
        pair.server.conn().state().set_goaway();
    }
    let cancel = |times| {
        (0..times).for_each(|_| drop(cancelling.server.conn().begin_request(true)));
    };
    let closing = |pair: &Pair| pair.server.conn().state().closing();
    cancel(21);
    tokio::time::sleep(2 * TICK).await;
    assert_eq!(closing(&cancelling), Some(Reason::CancelledRequests));
    assert!(cancelling.server.conn().state().decision().is_none());
    cancel(40);
    tokio::time::sleep(2 * TICK).await;
    assert!(cancelling.server.conn().state().decision().is_some());

    let (after, result) = ends(&mut idle.server).await;
    result.unwrap();
    assert_eq!(closing(&idle), Some(Reason::Idle));
    let due = 65 * SECOND - 5 * TICK..=65 * SECOND + 2 * TICK;
    assert!(due.contains(&after), "{after:?}");
    // Each is told of once.
    let reasons: Vec<_> = journal
        .disconnected()
        .iter()
        .map(|(told, _)| told.reason)
        .collect();
    assert_eq!(reasons, [Reason::CancelledRequests, Reason::Idle]);
    drop((idle, cancelling));
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_stands_still_makes_room_and_one_that_arrives_does_not() {
    let (guard, _) = guard(
        ConnGuard::builder()
            .max_connections(10)
            .write_stall(1000 * SECOND),
    );
    let upload = |last| {
        let pair = connect_from(&guard, last).unwrap();
        let conn = pair.server.conn().clone();
        conn.state().add_read(100);
        let request = conn.begin_request(false);
        request.expect_body(Some(1 << 30));
        conn.state().park_reader(std::task::Waker::noop());
        (pair, request)
    };
    let steady: Vec<_> = (0..4).map(upload).collect();
    let mut standing: Vec<_> = (4..9).map(upload).collect();
    for _ in 0..24 {
        tokio::time::sleep(TICK).await;
        for (pair, _) in &steady {
            pair.server.conn().state().add_read(300);
        }
        // A byte now and then is no progress.
        standing[0].0.server.conn().state().add_read(1);
        for (pair, _) in steady.iter().chain(&standing) {
            pair.server
                .conn()
                .state()
                .park_reader(std::task::Waker::noop());
        }
    }
    let is_told = |(pair, _): &(Pair, _)| pair.server.conn().state().decision().is_some();
    let mut newcomers = Vec::new();
    for last in 20..25 {
        newcomers.push(connect_from(&guard, last).unwrap());
        let before = standing.len();
        standing.retain(|upload| !is_told(upload));
        assert_eq!(standing.len(), before - 1);
    }
    assert!(!steady.iter().any(is_told));
    drop((steady, standing, newcomers));
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_ends_its_own_connection_does_not_corrupt_the_counts() {
    let (guard, _) = guard(ConnGuard::builder().max_connections(10));
    let verdict = CloseDecision {
        reason: Reason::Idle,
        mode: CloseMode::Graceful,
    };
    let pair = connect(&guard);
    let conn = pair.server.conn().clone();
    conn.state().request_close(verdict);
    conn.state().mark_closed();
    guard.close(&conn, Reason::Shutdown, CloseMode::Reset);
    drop(pair);
    guard.close(&conn, Reason::Shutdown, CloseMode::Reset);
    is_gone(&guard);
    let pair = connect(&guard);
    assert!(guard.close(pair.server.conn(), Reason::Idle, CloseMode::Graceful));
    assert!(!guard.close(pair.server.conn(), Reason::Idle, CloseMode::Graceful));
    assert_eq!(guard.snapshot().close_pending, 1);
    drop(pair);
    is_gone(&guard);
    // Pressure is what it is: every place at work.
    let at_work = |last| {
        let pair = connect_from(&guard, last).unwrap();
        let request = pair.server.conn().begin_request(false);
        (pair, request)
    };
    let working: Vec<_> = (0..10).map(at_work).collect();
    assert_eq!(guard.shared().pressure(), 1.0);
    drop(working);
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_socket_that_is_never_polled_gives_its_client_no_second_share() {
    let (guard, _) = guard(ConnGuard::builder().max_connections(100).max_per_client(2));
    let unpolled = || {
        let pair = connect(&guard);
        pair.server.conn().upgrade().unwrap();
        assert!(guard.close(pair.server.conn(), Reason::Idle, CloseMode::Graceful));
        pair
    };
    let stuck = [unpolled(), unpolled()];
    assert_eq!(guard.snapshot().close_pending, 2);
    tokio::time::sleep(6 * SECOND).await;
    assert_eq!(guard.snapshot().close_pending, 0);
    let at_work = connect_from(&guard, 1);
    assert!(
        at_work.is_err(),
        "its share is taken by sockets that do not go"
    );
    assert!(connect_from(&guard, 2).is_ok());
    drop(stuck);
    assert!(connect_from(&guard, 1).is_ok());
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_tells_what_is_done_in_a_second_and_by_whom() {
    let (guard, _) = guard(ConnGuard::builder());
    let mut busy = connect_from(&guard, 1).unwrap();
    let quiet = connect_from(&guard, 2).unwrap();
    for _ in 0..20 {
        serve_once(&mut busy, false).await;
        sleep(SECOND / 5).await;
    }
    let now = guard.snapshot();
    assert_eq!((now.opened, now.opened_per_second), (2, 0.5));
    let ConnRates {
        requests,
        read,
        written,
        ..
    } = now.per_second;
    assert_eq!((requests, read, written), (5.0, 35.0, 30.0));
    let of = |pair: &Pair| {
        let is_his = |one: &&ConnHolder| one.who == pair.server.conn().client();
        *now.clients.iter().find(is_his).unwrap()
    };
    assert_eq!(
        (of(&busy).connections, of(&busy).per_second),
        (1, now.per_second)
    );
    assert_eq!(
        (of(&quiet).connections, of(&quiet).per_second),
        (1, ConnRates::default())
    );
    let ConnHolder {
        requests,
        read,
        written,
        ..
    } = of(&busy);
    assert_eq!((requests, read, written), (20, 140, 120));
    assert_eq!(now.busiest[0].who, busy.server.conn().client());
    let [network] = &now.networks[..] else {
        panic!("{now:?}")
    };
    assert_eq!((network.connections, network.requests), (2, 20));
    sleep(7 * SECOND).await;
    assert_eq!(guard.snapshot().opened_per_second, 0.0);
    drop((busy, quiet));
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn a_client_at_its_share_costs_them_nothing_at_the_soft_limit_either() {
    let builder = ConnGuard::builder().max_connections(10).max_per_client(2);
    let (guard, _) = guard(builder.no_max_per_network());
    let neighbours: Vec<_> = (0..7)
        .map(|n| connect_from(&guard, 100 + n).unwrap())
        .collect();
    let mut own = VecDeque::from([1, 1].map(|last| connect_from(&guard, last).unwrap()));
    for _ in 0..20 {
        own.push_back(connect_from(&guard, 1).unwrap());
        own.pop_front();
    }
    let is_left = |pair: &Pair| pair.server.conn().state().decision().is_none();
    assert!(neighbours.iter().all(is_left));
}

#[tokio::test(start_paused = true)]
async fn a_network_at_its_share_costs_other_networks_nothing() {
    let builder = ConnGuard::builder().max_connections(100).max_per_client(3);
    let (guard, journal) = guard(builder.max_per_network(6));
    let connect = |peer: &str| {
        let (inner, client) = duplex(64);
        let wire = Wire {
            inner,
            reset: Arc::default(),
            hung_up: Arc::default(),
        };
        let io = guard.admit(
            wire,
            Some((peer.parse::<IpAddr>().unwrap(), 1).into()),
            None,
        )?;
        Ok::<_, io::Error>((io, client))
    };
    let neighbours: Vec<_> = ["192.0.3.1", "2001:db8:1::1"]
        .iter()
        .map(|peer| connect(peer).unwrap())
        .collect();
    let v4 = (0..6).map(|n| format!("192.0.2.{n}"));
    let v6 = (0..6).map(|n| format!("2001:db8:0:{n}::1"));
    let mut own: Vec<_> = v4.chain(v6).map(|peer| connect(&peer).unwrap()).collect();
    assert!(journal.disconnected().is_empty());
    // From two more clients: one of their network's goes for each, whoever that is.
    own.push(connect("192.0.2.77").unwrap());
    own.push(connect("2001:db8:0:77::1").unwrap());
    let told = journal.disconnected();
    assert!(
        told.iter()
            .all(|(told, _)| { (told.reason, told.limit) == (Reason::ConnectionEvicted, 6) })
    );
    assert_eq!(told.len(), 2);
    let is_left =
        |(io, _): &(GuardedIo<Wire>, DuplexStream)| io.conn().state().decision().is_none();
    assert!(neighbours.iter().all(is_left));
    own.retain(is_left);
    // Where all of them work the newcomer is reset, and only he.
    let requests: Vec<_> = own
        .iter()
        .map(|(io, _)| io.conn().begin_request(false))
        .collect();
    let refused = violation(&connect("192.0.2.88").err().unwrap());
    assert_eq!(
        (refused.reason, refused.limit),
        (Reason::NetworkConnectionsFull, 6)
    );
    connect("192.0.3.2").unwrap();
    drop((own, neighbours, requests));
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn whoever_connects_too_often_is_reset_and_others_are_not() {
    let (guard, journal) = guard(ConnGuard::builder().accept_rate(10, 5));
    let let_in = |last, times| {
        (0..times)
            .filter(|_| connect_from(&guard, last).is_ok())
            .count()
    };
    assert_eq!(let_in(1, 20), 5);
    assert_eq!(let_in(2, 5), 5);
    advance(SECOND / 2).await;
    assert_eq!(let_in(1, 20), 5);
    let (told, _) = journal.disconnected()[0];
    assert_eq!(
        (told.reason, told.phase, told.limit),
        (Reason::AcceptRate, Phase::Accept, 0)
    );
    assert_eq!(told.observed, 100); // Milliseconds until the next one.
}

// === Listener ===

/// Accepts what it is told.
struct Script(VecDeque<io::Result<Wire>>);

impl Listener for Script {
    type Io = Wire;

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(Wire, Option<SocketAddr>)>> {
        match self.0.pop_front() {
            Some(next) => Poll::Ready(next.map(|wire| (wire, peer(1)))),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([127, 0, 0, 1], 80).into())
    }

    fn local_of(_: &Wire) -> Option<SocketAddr> {
        None
    }
}

fn wire() -> Wire {
    let inner = duplex(64).0;
    Wire {
        inner,
        reset: Arc::default(),
        hung_up: Arc::default(),
    }
}

fn listen(guard: &ConnGuard, script: Vec<io::Result<Wire>>) -> GuardedListener<Script> {
    guard.listen(Script(script.into()))
}

#[tokio::test(start_paused = true)]
async fn accepting_passes_over_one_s_own_failure_and_pauses_for_a_shortage() {
    let guard = ConnGuard::default();
    let emfile = || Err(io::Error::from_raw_os_error(24));
    let script = vec![
        Err(io::ErrorKind::ConnectionAborted.into()),
        Ok(wire()),
        emfile(),
        emfile(),
        emfile(),
        emfile(),
        emfile(),
        Ok(wire()),
        Err(io::Error::other("what is this")),
        Ok(wire()),
    ];
    let mut listener = listen(&guard, script);
    let started = Instant::now();
    let _first = listener.accept().await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    let _second = listener.accept().await.unwrap();
    assert_eq!(
        started.elapsed(),
        Duration::from_millis(10 + 20 + 40 + 80 + 100)
    );
    listener.accept().await.unwrap_err();
    let failed = Instant::now();
    let _third = listener.accept().await.unwrap();
    assert_eq!(failed.elapsed(), Duration::from_millis(10));
    let counts = guard.snapshot().accept_errors;
    assert_eq!(
        (counts.of_one_connection, counts.exhausted, counts.other),
        (1, 5, 1)
    );
    assert_eq!(level(&guard, Gauge::AcceptErrors), Some(5));
}

#[tokio::test(start_paused = true)]
async fn failures_without_end_do_not_spin() {
    let guard = ConnGuard::default();
    let aborted = || Err(io::ErrorKind::ConnectionAborted.into());
    let mut listener = listen(&guard, (0..1_000_000).map(|_| aborted()).collect());
    timeout(10 * SECOND, listener.accept()).await.unwrap_err();
    let seen = guard.snapshot().accept_errors.of_one_connection;
    assert!(seen < 200, "{seen}"); // 10 s of pauses of 100 ms, and a few before them.
}

#[tokio::test(start_paused = true)]
async fn a_shortage_of_files_costs_one_who_did_nothing_his_place() {
    let (guard, journal) = guard(ConnGuard::builder());
    let silent = connect(&guard);
    advance(SECOND).await;
    let just_come = connect(&guard);
    let emfile = || Err(io::Error::from_raw_os_error(24));
    let mut listener = listen(&guard, vec![emfile(), emfile(), Ok(wire())]);
    listener.accept().await.unwrap();
    assert!(just_come.server.conn().state().decision().is_none());
    assert!(silent.server.conn().state().decision().is_some());
    assert_eq!(
        journal.disconnected()[0].0.reason,
        Reason::ConnectionEvicted
    );
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_lets_those_who_were_told_to_go_go_first() {
    let (guard, journal) = guard(ConnGuard::builder().max_connections(2).no_max_per_client());
    let accepted = (0..50).map(|_| Ok(wire())).collect();
    let mut listener = listen(&guard, accepted);
    for _ in 0..50 {
        let (mut io, _) = listener.accept().await.unwrap();
        tokio::spawn(async move { io.read(&mut [0]).await.map(drop) });
    }
    let is_displaced = |(told, _): &(Violation, Mode)| told.reason == Reason::ConnectionEvicted;
    assert!(journal.disconnected().iter().all(is_displaced));
    assert_eq!(guard.snapshot().refused, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_accept_loses_nobody() {
    let (guard, _) = guard(ConnGuard::builder().max_connections(1).no_max_per_client());
    let going = connect(&guard);
    let mut listener = listen(&guard, vec![Ok(wire())]);
    let mut accept = spawn(listener.accept());
    assert_pending!(accept.poll()); // The one before has not gone yet.
    drop(accept);
    drop(going);
    let accept = spawn(listener.accept()).poll();
    assert_ready!(accept).unwrap();
}

// === The sweeper ===

#[tokio::test(start_paused = true)]
async fn the_sweeper_ends_with_the_guard_and_its_last_connection() {
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    assert_eq!(tasks(), 0);
    let guard = ConnGuard::default();
    let pair = connect(&guard);
    assert_eq!(tasks(), 1);
    drop(guard);
    tokio::time::sleep(SECOND).await;
    assert_eq!(tasks(), 1); // The connection still has its deadlines.
    drop(pair);
    for _ in 0..10 {
        yield_now().await;
    }
    assert_eq!(tasks(), 0);
}

#[test]
fn a_guard_outlives_its_runtime_and_sweeps_in_the_next_one() {
    let guard = ConnGuard::builder().first_request(SECOND).build().unwrap();
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (after, result) = ends(&mut connect(&guard).server).await;
            assert!(after <= SECOND + 2 * TICK && result.is_err(), "{after:?}");
        });
    }
    is_gone(&guard);
}

#[tokio::test(start_paused = true)]
async fn while_nobody_is_connected_there_is_no_timer() {
    let guard = ConnGuard::default();
    drop(connect(&guard));
    tokio::time::sleep(SECOND).await;
    // With no timer left time does not move by itself: only this one ends.
    let started = Instant::now();
    timeout(1000 * SECOND, std::future::pending::<()>())
        .await
        .unwrap_err();
    assert_eq!(started.elapsed(), 1000 * SECOND);
    let mut pair = connect(&guard);
    assert_eq!(ends(&mut pair.server).await.0, 10 * SECOND);
}

/// A current-thread runtime on a thread of its own, which does what it is told.
struct Elsewhere {
    jobs: tokio::sync::mpsc::UnboundedSender<Job>,
    thread: std::thread::JoinHandle<()>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Elsewhere {
    fn new() -> Self {
        let (jobs, mut todo) = tokio::sync::mpsc::unbounded_channel::<Job>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            runtime.unwrap().block_on(async {
                while let Some(job) = todo.recv().await {
                    job();
                }
            });
        });
        Self { jobs, thread }
    }

    fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> std::sync::mpsc::Receiver<T> {
        let (sender, result) = std::sync::mpsc::channel();
        let job = move || sender.send(job()).unwrap_or_default();
        self.jobs
            .send(Box::new(job))
            .unwrap_or_else(|_| panic!("the runtime has ended"));
        result
    }
}

/// Whether a connection that says nothing is ended within some seconds of real time.
fn is_silence_ended(elsewhere: &Elsewhere, guard: &ConnGuard) -> bool {
    let guard = guard.clone();
    let pair = elsewhere
        .run(move || connect_from(&guard, 2).unwrap())
        .recv()
        .unwrap();
    let conn = pair.server.conn().clone();
    let started = Instant::now();
    while conn.state().decision().is_none() && started.elapsed() < 10 * SECOND {
        std::thread::park_timeout(TICK / 10);
    }
    elsewhere.run(move || drop(pair)).recv().unwrap();
    started.elapsed() < 10 * SECOND
}

#[test]
fn where_the_runtime_of_the_sweeper_is_blocked_or_ends_another_one_takes_over() {
    let quick = || {
        ConnGuard::builder()
            .first_request(SECOND / 2)
            .precision(SECOND / 20)
    };
    let (guard, _) = guard(quick());
    let (first, second) = (Elsewhere::new(), Elsewhere::new());
    let shared = guard.clone();
    let pair = first.run(move || connect(&shared)).recv().unwrap();
    assert!(is_silence_ended(&second, &guard));
    // The first one looks so far. From now on a handler blocks it.
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let is_blocked = first.run(move || blocked.recv());
    assert!(is_silence_ended(&second, &guard));
    assert!(pair.server.conn().state().decision().is_some());
    // And when it goes on it stands by.
    release.send(()).unwrap();
    is_blocked.recv().unwrap().unwrap();
    assert!(is_silence_ended(&first, &guard));
    let shared = guard.clone();
    let last = first
        .run(move || connect_from(&shared, 3).unwrap())
        .recv()
        .unwrap();
    // Whichever looks now, the other one does so when its runtime has ended.
    drop(second.jobs);
    second.thread.join().unwrap();
    assert!(is_silence_ended(&first, &guard));
    first.run(move || drop((pair, last))).recv().unwrap();
    is_gone(&guard);
    drop(first.jobs);
    first.thread.join().unwrap();
    assert!(guard.shared().sweeper.is_stopped());
}
