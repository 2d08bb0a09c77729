//! Graceful closing, GOAWAY and cancelled requests.

use super::*;
use crate::{CloseMode, connection::decision::CloseRequest, guard::close::close};
use palisade_core::Phase;
use tokio::time::{advance, sleep};

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_closed_when_idle_or_reset_after_the_grace() {
    let builder = ConnGuard::builder()
        .max_age(20 * SECOND)
        .age_grace(30 * SECOND);
    let (guard, _) = tracking_guard(builder.idle_timeout(1000 * SECOND));
    let (mut idle, mut working) = (connect(&guard), connect(&guard));
    serve_once(&mut idle, true).await;
    let _request = working.server.conn().begin_request(true);
    let ((idle_after, idle_result), (working_after, working_result)) = tokio::join!(
        read_until_closed(&mut idle.server),
        read_until_closed(&mut working.server)
    );
    // Without a GOAWAY an idle HTTP/2 connection is closed after 30 s.
    assert_within_two_ticks(idle_after, 30 * SECOND);
    idle_result.unwrap();
    // The age is spread by a tenth on either side.
    let due = 18 * SECOND..=22 * SECOND + 2 * TICK;
    let working_due = working_after - 30 * SECOND;
    assert!(due.contains(&working_due), "{working_due:?}");
    assert_eq!(
        violation(&working_result.unwrap_err()).reason,
        Reason::MaxAge
    );
    assert_eq!(working.closing(), Some(Reason::MaxAge));
    assert!(working.reset.load(Relaxed) && !idle.reset.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn after_its_last_request_an_http2_connection_is_closed_once_nothing_is_in_flight() {
    let (guard, _) = tracking_guard(ConnGuard::builder().max_requests(2));
    let mut pair = connect(&guard);
    serve_once(&mut pair, true).await;
    let last_request = pair.server.conn().begin_request(true);
    let reader = tokio::spawn(async move { (read_until_closed(&mut pair.server).await, pair) });
    advance(60 * SECOND).await;
    assert!(!reader.is_finished());
    drop(last_request);
    let ((_, result), pair) = reader.await.unwrap();
    result.unwrap();
    assert_eq!(pair.decision().unwrap().reason, Reason::MaxRequests);
}

#[tokio::test(start_paused = true)]
async fn cancellations_at_typing_speed_never_cause_a_reset() {
    let (guard, journal) = tracking_guard(ConnGuard::builder().max_cancelled(20));
    let pair = connect(&guard);
    let cancel = || drop(pair.server.conn().begin_request(true));
    for key in 0..3000 {
        cancel();
        let pause = if key % 5 == 4 { 400 } else { 80 + key % 40 };
        sleep(Duration::from_millis(pause)).await;
    }
    assert!(journal.disconnected().is_empty());
    // Cancellations at a higher rate than they are forgiven.
    let started = Instant::now();
    while pair.decision().is_none() {
        cancel();
        sleep(Duration::from_millis(25)).await;
        assert!(started.elapsed() < 5 * SECOND);
    }
    assert_eq!(
        journal.disconnected()[0].0.reason,
        Reason::CancelledRequests
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_receives_goaway_before_its_connection_is_closed() {
    let (guard, journal) = tracking_guard(ConnGuard::builder().max_cancelled(20));
    let (mut idle, cancelling) = (connect(&guard), connect(&guard));
    serve_once(&mut idle, true).await;
    for pair in [&idle, &cancelling] {
        pair.server.conn().state().set_goaway();
    }
    let cancel = |times| {
        (0..times).for_each(|_| drop(cancelling.server.conn().begin_request(true)));
    };
    cancel(21);
    sleep(2 * TICK).await;
    assert_eq!(cancelling.closing(), Some(Reason::CancelledRequests));
    assert!(cancelling.decision().is_none());
    cancel(40);
    sleep(2 * TICK).await;
    assert!(cancelling.decision().is_some());

    let (after, result) = read_until_closed(&mut idle.server).await;
    result.unwrap();
    assert_eq!(idle.closing(), Some(Reason::Idle));
    let due = 65 * SECOND - 5 * TICK..=65 * SECOND + 2 * TICK;
    assert!(due.contains(&after), "{after:?}");
    // Each connection is reported once.
    let reasons: Vec<_> = journal
        .disconnected()
        .iter()
        .map(|(violation, _)| violation.reason)
        .collect();
    assert_eq!(reasons, [Reason::CancelledRequests, Reason::Idle]);
    drop((idle, cancelling));
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_connection_is_not_counted_as_about_to_close() {
    let (guard, journal) = tracking_guard(ConnGuard::builder());
    let pair = connect(&guard);
    let conn = pair.server.conn().clone();
    drop(pair);
    // A sweeper that copied the handle before may still close the connection.
    let request = CloseRequest {
        reason: Reason::Idle,
        mode: CloseMode::Graceful,
        phase: Phase::Idle,
        limit: 1,
        observed: 2,
    };
    assert!(!close(guard.shared(), &conn, request));
    assert_nothing_left(&guard);
    assert!(journal.disconnected().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_decision_made_outside_the_guard_does_not_corrupt_the_counts() {
    let (guard, _) = tracking_guard(ConnGuard::builder().max_connections(10));
    let decision = CloseDecision {
        reason: Reason::Idle,
        mode: CloseMode::Graceful,
    };
    let pair = connect(&guard);
    let conn = pair.server.conn().clone();
    conn.state().request_close(decision);
    conn.state().mark_closed();
    guard.close(&conn, Reason::Shutdown, CloseMode::Reset);
    drop(pair);
    guard.close(&conn, Reason::Shutdown, CloseMode::Reset);
    assert_nothing_left(&guard);
    let pair = connect(&guard);
    assert!(guard.close(pair.server.conn(), Reason::Idle, CloseMode::Graceful));
    assert!(!guard.close(pair.server.conn(), Reason::Idle, CloseMode::Graceful));
    assert_eq!(guard.snapshot().close_pending, 1);
    drop(pair);
    assert_nothing_left(&guard);
    // The pressure is that of ten working connections at ten places.
    let working: Vec<_> = (0..10)
        .map(|last| connect_working(&guard, last).unwrap())
        .collect();
    assert_eq!(guard.shared().pressure(), 1.0);
    drop(working);
    assert_nothing_left(&guard);
}
