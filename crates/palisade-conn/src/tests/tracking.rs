//! Connections without request tracking.

use super::*;
use tokio::{
    task::yield_now,
    time::{advance, sleep},
};

#[tokio::test(start_paused = true)]
async fn without_tracking_a_connection_that_sent_a_byte_counts_as_working() {
    let guard = ConnGuard::builder().max_age(None).build().unwrap();
    let mut silent = connect(&guard);
    let Pair {
        mut server,
        mut client,
        ..
    } = connect(&guard);
    client.write_all(b"x").await.unwrap();
    let reader = tokio::spawn(async move { read_until_closed(&mut server).await });
    let (after, result) = read_until_closed(&mut silent.server).await;
    assert_eq!((after, result.is_err()), (10 * SECOND, true));
    advance(10_000 * SECOND).await;
    yield_now().await;
    assert!(!reader.is_finished());
    assert_eq!(guard.snapshot().untracked, 2);
    drop(client);
    reader.await.unwrap().1.unwrap();
}

#[tokio::test(start_paused = true)]
async fn missing_request_tracking_is_reported_once() {
    let journal = Journal::default();
    let untracked = ConnGuard::builder()
        .metrics(journal.clone())
        .build()
        .unwrap();
    let (tracked, tracked_journal) = tracking_guard(ConnGuard::builder());
    let mut pairs = [connect(&untracked), connect(&untracked), connect(&tracked)];
    sleep(5 * SECOND).await;
    assert!(journal.untracked().is_empty());
    for pair in &mut pairs {
        pair.client.write_all(b"x").await.unwrap();
        pair.server.read_exact(&mut [0]).await.unwrap();
    }
    sleep(9 * SECOND).await;
    assert!(journal.untracked().is_empty());
    sleep(100 * SECOND).await;
    assert_eq!(journal.untracked(), [2]);
    assert!(tracked_journal.untracked().is_empty());
    drop(pairs);
    assert_nothing_left(&untracked);
}
