//! T19: clients that ask, send a byte too many, and vanish. hyper does not notice; the guard
//! does, and the handler ends.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use axum::{Router, routing::get};
use guarded::{Neighbour, SECOND, SLACK, all_gone, app, serve};
use palisade::conn::ConnGuard;
use palisade_core::Reason;
use palisade_testkit::{
    Journal,
    clients::{RawClient, until},
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use tokio::time::Instant;

/// Counts the handlers at work.
struct AtWork(Arc<AtomicUsize>);

impl AtWork {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_handlers_of_clients_that_vanished_behind_an_unread_byte_end() {
    let journal = Journal::default();
    let guard = ConnGuard::builder()
        .probe(SECOND / 2)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let working = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&working);
    let zombie = move || {
        let at_work = AtWork::new(&count);
        async move {
            let _at_work = at_work;
            std::future::pending::<()>().await;
        }
    };
    let server = serve(
        &guard,
        app().merge(Router::new().route("/zombie", get(zombie))),
    )
    .await;
    let neighbour = Neighbour::of(server.addr);
    let mut vanishing = Vec::new();
    for _ in 0..20 {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client
            .send("GET /zombie HTTP/1.1\r\nhost: test\r\n\r\nx")
            .await
            .unwrap();
        vanishing.push(client);
    }
    until("all are at work", || working.load(SeqCst) == 20).await;
    // One of them stays.
    let _staying = vanishing.pop();
    drop(vanishing);
    let vanished = Instant::now();
    until("theirs have ended", || working.load(SeqCst) == 1).await;
    assert!(
        vanished.elapsed() < SECOND + SLACK,
        "{:?}",
        vanished.elapsed()
    );
    // Its neighbour's requests come and go meanwhile.
    until("it is in flight still", || guard.snapshot().in_flight == 1).await;
    neighbour.was_served().await;
    drop(_staying);
    all_gone(&guard).await;
    assert_eq!(working.load(SeqCst), 0);
    let hung_up = journal
        .disconnected()
        .iter()
        .filter(|(v, _)| v.reason == Reason::HungUp)
        .count();
    assert!(hung_up >= 19, "{hung_up}");
}
