//! First request, header, idle and write timeouts.

use super::*;
use palisade_core::{Mode, Phase};
use tokio::{
    task::yield_now,
    time::{advance, sleep, timeout},
};

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_reset_exactly_at_the_first_request_timeout() {
    let (guard, journal) = tracking_guard(ConnGuard::builder());
    let mut pair = connect(&guard);
    let (after, result) = read_until_closed(&mut pair.server).await;
    assert_eq!(after, 10 * SECOND);
    let error = result.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    assert_eq!(violation(&error).reason, Reason::FirstRequest);
    assert!(pair.reset.load(Relaxed));
    drop(pair);
    assert_nothing_left(&guard);
    let disconnected = journal.disconnected();
    let [(violation, Mode::Enforce)] = &disconnected[..] else {
        panic!("{disconnected:?}")
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
    let recent = guard.recently_closed();
    assert_eq!((recent.len(), recent[0].reason), (1, Reason::FirstRequest));
}

#[tokio::test(start_paused = true)]
async fn a_stall_of_the_server_closes_no_connection() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
    let Pair {
        mut server,
        mut client,
        ..
    } = connect(&guard);
    yield_now().await; // The sweeper starts.
    client.write_all(b"request").await.unwrap();
    advance(30 * SECOND).await; // No task runs for 30 s.
    for _ in 0..50 {
        yield_now().await; // The next sweep is complete before the request is read.
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
async fn a_client_whose_bytes_are_unread_because_its_task_does_not_run_is_not_closed_as_silent() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
    let mut pair = connect(&guard);
    let silent = connect(&guard);
    sleep(SECOND).await;
    pair.client.write_all(b"request").await.unwrap();
    // The sweeper is in time, and the tasks of both connections are not run.
    sleep(18 * SECOND).await;
    assert_eq!(pair.decision(), None);
    serve_once(&mut pair, false).await;
    sleep(2 * SECOND).await;
    assert_eq!(pair.decision(), None);
    // Nothing is kept for ever.
    assert_eq!(silent.decision().unwrap().reason, Reason::FirstRequest);
}

#[tokio::test(start_paused = true)]
async fn repeated_stalls_do_not_keep_a_silent_connection() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
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
async fn one_byte_per_second_of_half_a_preface_does_not_extend_the_timeout() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
    let Pair {
        mut server,
        mut client,
        ..
    } = connect(&guard);
    let sender = tokio::spawn(async move {
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM" {
            if client.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(SECOND).await;
        }
    });
    let (after, result) = read_until_closed(&mut server).await;
    assert_eq!(after, 10 * SECOND);
    result.unwrap_err();
    sender.abort();
}

#[tokio::test(start_paused = true)]
async fn a_slow_later_head_is_reset_after_the_header_timeout() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
    let mut pair = connect(&guard);
    serve_once(&mut pair, false).await;
    sleep(2 * TICK).await;
    // No 408 is sent: the connection began with the `r` of `serve_once`, not as plain HTTP/1.
    pair.client.write_all(b"G").await.unwrap();
    let (after, result) = read_until_closed(&mut pair.server).await;
    assert_within_two_ticks(after, 10 * SECOND);
    assert_eq!(violation(&result.unwrap_err()).reason, Reason::SlowHead);
    assert!(pair.reset.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_client_with_a_slow_http1_head_receives_408_and_is_closed_gracefully() {
    for is_later_head in [false, true] {
        let (guard, journal) = tracking_guard(ConnGuard::builder());
        let mut pair = connect(&guard);
        pair.client.write_all(b"GET /").await.unwrap();
        if is_later_head {
            pair.server.read_exact(&mut [0; 5]).await.unwrap();
            serve_once(&mut pair, false).await;
            sleep(2 * TICK).await;
            pair.client.write_all(b"GET /").await.unwrap();
        }
        let Pair {
            mut server,
            mut client,
            reset,
            ..
        } = pair;
        let (after, result) = read_until_closed(&mut server).await;
        assert_within_two_ticks(after, 10 * SECOND);
        result.unwrap();
        // No other bytes follow the 408.
        assert_eq!(
            server.write(b"x").await.unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        server.shutdown().await.unwrap();
        drop(server);
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        assert!(
            response.starts_with("HTTP/1.1 408 ") && response.ends_with("\r\n\r\n"),
            "{response}"
        );
        assert!(!reset.load(Relaxed));
        let reason = if is_later_head {
            Reason::SlowHead
        } else {
            Reason::FirstRequest
        };
        assert_eq!(journal.closed(), [Some(reason)]);
    }
}

#[tokio::test(start_paused = true)]
async fn no_408_is_sent_within_or_after_another_response() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
    // A response was written before the first request was complete, as hyper does.
    let mut pair = connect(&guard);
    pair.client.write_all(b"GET /").await.unwrap();
    pair.server
        .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .await
        .unwrap();
    read_until_closed(&mut pair.server).await.1.unwrap_err();
    assert!(pair.reset.load(Relaxed));
    // A part of the previous response has not been written yet.
    let mut pair = connect(&guard);
    pair.client.write_all(b"GET /").await.unwrap();
    pair.server.read_exact(&mut [0; 5]).await.unwrap();
    serve_once(&mut pair, false).await;
    sleep(2 * TICK).await;
    pair.client.write_all(b"GET /").await.unwrap();
    pair.server.read_exact(&mut [0; 5]).await.unwrap();
    timeout(SECOND, pair.server.write_all(&[b'x'; 2048]))
        .await
        .unwrap_err();
    let (_, result) = read_until_closed(&mut pair.server).await;
    assert_eq!(violation(&result.unwrap_err()).reason, Reason::SlowHead);
    assert!(pair.reset.load(Relaxed));
    // A writer sees the decision before the reader does.
    let mut pair = connect(&guard);
    pair.client.write_all(b"GET /").await.unwrap();
    pair.server.read_exact(&mut [0; 5]).await.unwrap();
    let read = timeout(10 * SECOND - TICK, pair.server.read_u8());
    read.await.unwrap_err();
    sleep(SECOND).await;
    pair.server.write(b"x").await.unwrap_err();
    read_until_closed(&mut pair.server).await.1.unwrap_err();
    pair.server.shutdown().await.unwrap_err();
    drop(pair.server);
    assert_eq!(pair.client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_gracefully_on_http1_and_http2() {
    for http2 in [false, true] {
        let (guard, journal) = tracking_guard(ConnGuard::builder());
        let mut pair = connect(&guard);
        serve_once(&mut pair, http2).await;
        if http2 {
            pair.client
                .write_all(b"PING, or any other frame")
                .await
                .unwrap();
        }
        let (after, result) = read_until_closed(&mut pair.server).await;
        assert_within_two_ticks(after, 65 * SECOND);
        result.unwrap(); // The reader sees the end of the stream.
        pair.server.shutdown().await.unwrap(); // The connection does not linger.
        assert!(!pair.reset.load(Relaxed));
        drop(pair.server);
        assert_eq!(pair.client.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(journal.closed(), [Some(Reason::Idle)]);
        assert_nothing_left(&guard);
    }
}

#[tokio::test(start_paused = true)]
async fn the_idle_timeout_starts_when_the_request_in_flight_ends() {
    let (guard, journal) = tracking_guard(ConnGuard::builder());
    let mut pair = connect(&guard);
    let request = pair.server.conn().begin_request(false);
    let reader = tokio::spawn(async move { read_until_closed(&mut pair.server).await });
    advance(1000 * SECOND).await;
    assert!(!reader.is_finished());
    drop(request);
    let ended = Instant::now();
    let (_, result) = reader.await.unwrap();
    result.unwrap();
    let after = ended.elapsed();
    assert_within_two_ticks(after, 65 * SECOND);
    assert_eq!(journal.closed(), [Some(Reason::Idle)]);
}

#[tokio::test(start_paused = true)]
async fn a_write_stalls_unless_the_client_takes_500_bytes_per_second() {
    let (guard, _) = tracking_guard(ConnGuard::builder().write_timeout(30 * SECOND));
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
    // 1,100 bytes within 2 s are progress, and the timeout restarts. One byte 20 s later is none.
    sleep(2 * SECOND).await;
    client.read_exact(&mut [0; 1100]).await.unwrap();
    sleep(20 * SECOND).await;
    client.read_exact(&mut [0; 1]).await.unwrap();
    let (ended, result) = writer.await.unwrap();
    let after = ended - started;
    assert_within_two_ticks(after, 32 * SECOND);
    assert_eq!(violation(&result.unwrap_err()).reason, Reason::WriteStall);
    assert!(reset.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_write_is_no_stall() {
    let (guard, journal) = tracking_guard(ConnGuard::builder());
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
    let abandoned = Instant::now();
    let (_, result) = read_until_closed(&mut server).await;
    result.unwrap();
    // The idle timeout of 300 s runs from the last byte that was written, a second earlier.
    let after = abandoned.elapsed();
    assert_within_two_ticks(after, 299 * SECOND);
    drop(server);
    assert_eq!(journal.closed(), [Some(Reason::Idle)]);
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_connection_has_its_own_idle_timeout_and_keeps_its_place() {
    let (guard, _) = tracking_guard(ConnGuard::builder().max_age(SECOND));
    let mut pair = connect(&guard);
    serve_once(&mut pair, false).await;
    pair.server.conn().state().set_upgraded();
    let (after, result) = read_until_closed(&mut pair.server).await;
    assert_within_two_ticks(after, 300 * SECOND);
    result.unwrap();
    assert_eq!(guard.snapshot().open, 1);
    drop(pair);
    assert_nothing_left(&guard);
}
