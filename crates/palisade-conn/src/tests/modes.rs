//! Shadow mode and off mode.

use super::*;
use palisade_core::Mode;
use tokio::time::{advance, sleep};

#[tokio::test(start_paused = true)]
async fn shadow_mode_reports_each_connection_once_and_closes_none() {
    let (guard, journal) =
        tracking_guard(ConnGuard::builder().mode(Mode::Shadow).max_connections(2));
    let mut pairs: Vec<_> = (0..4).map(|_| connect(&guard)).collect();
    advance(Duration::from_secs(7200)).await;
    for _ in 0..8 {
        sleep(TICK).await;
    }
    pairs[0].client.write_all(b"x").await.unwrap();
    pairs[0].server.read_exact(&mut [0]).await.unwrap();
    let reported = journal.disconnected();
    assert!(reported.iter().all(|(_, mode)| *mode == Mode::Shadow));
    let count = |reason| {
        reported
            .iter()
            .filter(|(violation, _)| violation.reason == reason)
            .count()
    };
    assert_eq!(count(Reason::ConnectionsFull), 2);
    // Each connection is reported once: as evicted, or for its timeout.
    assert_eq!(
        count(Reason::ConnectionEvicted) + count(Reason::FirstRequest),
        4
    );
    drop(pairs);
    assert_eq!(journal.closed(), [None; 4]);
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn off_mode_reports_nothing_and_closes_nothing() {
    let (guard, journal) = tracking_guard(ConnGuard::builder().mode(Mode::Off).max_connections(1));
    let pairs: Vec<_> = (0..4).map(|_| connect(&guard)).collect();
    advance(Duration::from_secs(7200)).await;
    let conn = pairs[0].server.conn().clone();
    assert!(!conn.is_closed());
    drop(pairs);
    assert!(conn.is_closed());
    assert_eq!((journal.opened(), journal.disconnected().len()), (0, 0));
    assert_nothing_left(&guard);
}
