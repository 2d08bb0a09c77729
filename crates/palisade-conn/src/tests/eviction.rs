//! The order in which connections are evicted near the cap.

use super::*;
use std::task::Waker;
use tokio::time::{advance, sleep};

#[tokio::test(start_paused = true)]
async fn the_oldest_connection_without_a_response_is_evicted_first() {
    let (guard, journal) = tracking_guard(
        ConnGuard::builder()
            .max_connections(10)
            .max_per_client(None),
    );
    let mut proven = connect(&guard);
    serve_once(&mut proven, false).await;
    advance(Duration::from_millis(10)).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(connect(&guard));
        advance(Duration::from_millis(1)).await;
    }
    sleep(2 * TICK).await;
    assert!(journal.disconnected().is_empty()); // 9 of 10 are open: no more than the soft limit.
    let newcomer = connect(&guard);
    let evicted: Vec<_> = silent
        .iter()
        .map(|pair| pair.decision().is_some())
        .collect();
    assert_eq!(
        evicted,
        [true, false, false, false, false, false, false, false]
    );
    assert!(proven.decision().is_none());
    silent.remove(0);
    assert_eq!(guard.snapshot().open, 9);
    assert_eq!(journal.closed(), [Some(Reason::ConnectionEvicted)]);
    drop((silent, proven, newcomer));
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn among_connections_with_responses_the_lowest_work_rate_is_evicted_first() {
    let (guard, _) = tracking_guard(ConnGuard::builder().max_connections(3).max_per_client(None));
    let (mut rare, mut busy) = (connect(&guard), connect(&guard));
    for _ in 0..10 {
        serve_once(&mut busy, false).await;
    }
    for _ in 0..5 {
        // `rare` is idle for a shorter time than `busy`, but has done less work for its age.
        sleep(3 * SECOND).await;
        serve_once(&mut rare, false).await;
    }
    sleep(4 * TICK).await;
    let _third = connect(&guard);
    assert!(busy.decision().is_none());
    let decision = rare.decision().unwrap();
    assert_eq!(decision.reason, Reason::ConnectionEvicted);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_is_evicted_after_connections_with_little_work() {
    let (guard, _) = tracking_guard(ConnGuard::builder().max_connections(3).max_per_client(None));
    let mut proven = connect(&guard);
    serve_once(&mut proven, false).await;
    sleep(3 * SECOND).await;
    let newcomer = connect(&guard);
    advance(Duration::from_millis(1)).await;
    let next = connect(&guard);
    assert!(proven.decision().is_some());
    assert!(newcomer.decision().is_none());
    drop(proven);
    // If there are only newcomers, the oldest of them is evicted.
    let _last = connect(&guard);
    assert!(newcomer.decision().is_some());
    assert!(next.decision().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_newcomers_is_evicted_before_connections_with_little_work() {
    let builder = ConnGuard::builder()
        .max_connections(100)
        .max_per_client(None);
    let (guard, _) = tracking_guard(builder.accept_rate(None));
    let mut proven = connect(&guard);
    serve_once(&mut proven, false).await;
    sleep(3 * SECOND).await;
    let mut flood = Vec::new();
    for _ in 0..400 {
        flood.push(connect(&guard));
        flood.retain(|pair| pair.decision().is_none());
        assert!(flood.len() <= 89); // One newcomer is evicted for each new connection.
        sleep(Duration::from_millis(1)).await;
    }
    assert!(proven.decision().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_useful_connection_is_not_evicted_while_half_of_all_are_about_to_close() {
    let builder = ConnGuard::builder()
        .max_connections(100)
        .max_per_client(None);
    let (guard, _) = tracking_guard(builder.accept_rate(None));
    let mut useful = connect(&guard);
    for _ in 0..20 {
        serve_once(&mut useful, false).await;
    }
    sleep(SECOND).await;
    // No task polls these sockets, so evicted connections stay open. Each new connection that is
    // refused in the end has cost another one its place.
    let flood: Vec<_> = (0..400)
        .filter_map(|_| connect_from(&guard, 2).ok())
        .collect();
    assert_eq!(guard.snapshot().open, 100);
    assert!(useful.decision().is_none());
    // Once the evicted connections are dropped, there are places again.
    let is_kept = |pair: &Pair| pair.decision().is_none();
    let flood: Vec<_> = flood.into_iter().filter(is_kept).collect();
    assert!(flood.len() < 60, "{}", flood.len());
    connect_from(&guard, 3).unwrap();
    drop((flood, useful));
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_upload_is_evicted_and_one_that_arrives_is_not() {
    let (guard, _) = tracking_guard(
        ConnGuard::builder()
            .max_connections(10)
            .write_timeout(1000 * SECOND),
    );
    let upload = |last| {
        let pair = connect_from(&guard, last).unwrap();
        let conn = pair.server.conn().clone();
        conn.state().add_read(100);
        let request = conn.begin_request(false);
        request.expect_body(Some(1 << 30));
        conn.state().park_reader(Waker::noop());
        (pair, request)
    };
    let steady: Vec<_> = (0..4).map(upload).collect();
    let mut stalled: Vec<_> = (4..9).map(upload).collect();
    for _ in 0..24 {
        sleep(TICK).await;
        for (pair, _) in &steady {
            pair.server.conn().state().add_read(300);
        }
        // One byte per tick is no progress.
        stalled[0].0.server.conn().state().add_read(1);
        for (pair, _) in steady.iter().chain(&stalled) {
            pair.server.conn().state().park_reader(Waker::noop());
        }
    }
    let is_evicted = |(pair, _): &(Pair, _)| pair.decision().is_some();
    let mut newcomers = Vec::new();
    for last in 20..25 {
        newcomers.push(connect_from(&guard, last).unwrap());
        let before = stalled.len();
        stalled.retain(|upload| !is_evicted(upload));
        assert_eq!(stalled.len(), before - 1);
    }
    assert!(!steady.iter().any(is_evicted));
    drop((steady, stalled, newcomers));
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_never_read_is_evicted_only_where_no_place_is_left() {
    // Eviction begins at 18 of 20.
    let builder = ConnGuard::builder().max_connections(20);
    let (guard, _) = tracking_guard(builder.max_per_client(None));
    let unread: Vec<_> = (0..17)
        .map(|_| connect_unread(&guard, 1).unwrap())
        .collect();
    let evicted = || {
        unread
            .iter()
            .filter(|pair| pair.decision().is_some())
            .count()
    };
    let silent = connect(&guard);
    sleep(SECOND).await;
    let _more = [
        connect_unread(&guard, 2).unwrap(),
        connect_unread(&guard, 2).unwrap(),
    ];
    assert!(silent.decision().is_some());
    assert_eq!(evicted(), 0);
    // A place is about to be left.
    assert!(connect_from(&guard, 3).is_err());
    assert_eq!(evicted(), 0);
    drop(silent);
    let _last = connect_unread(&guard, 3).unwrap();
    assert_eq!(evicted(), 0);
    assert!(connect_from(&guard, 4).is_err());
    assert_eq!(evicted(), 1);
}
