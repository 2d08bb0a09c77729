//! T19: clients that send a request and one byte more, and vanish. hyper does not notice; the guard
//! does, and the handler ends.

use axum::{Router, routing::get};
use palisade::conn::ConnGuard;
use palisade_core::Reason;
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{SECOND, SLACK, ServerKind, all_gone, app},
    on_servers,
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use tokio::time::Instant;

/// One running handler, counted until it is dropped.
struct RunningHandler(Arc<AtomicUsize>);

impl RunningHandler {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for RunningHandler {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[cfg(target_os = "linux")]
async fn the_handler_of_a_vanished_client_ends_despite_an_unread_byte(kind: ServerKind) {
    let journal = Journal::default();
    let guard = ConnGuard::builder()
        .probe_interval(SECOND / 2)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let handlers = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handlers);
    let zombie = move || {
        let running = RunningHandler::new(&count);
        async move {
            let _running = running;
            std::future::pending::<()>().await;
        }
    };
    let server = kind
        .serve(
            &guard,
            app().merge(Router::new().route("/zombie", get(zombie))),
        )
        .await;
    let neighbour = kind.neighbour(server.addr);
    let mut vanishing = Vec::new();
    for _ in 0..20 {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client
            .send("GET /zombie HTTP/1.1\r\nhost: test\r\n\r\nx")
            .await
            .unwrap();
        vanishing.push(client);
    }
    wait_until("all handlers are running", || handlers.load(SeqCst) == 20).await;
    // One client stays.
    let staying = vanishing.pop();
    drop(vanishing);
    let vanished = Instant::now();
    wait_until("the handlers of the others have ended", || {
        handlers.load(SeqCst) == 1
    })
    .await;
    assert!(
        vanished.elapsed() < SECOND + SLACK,
        "{:?}",
        vanished.elapsed()
    );
    // The neighbour's requests start and end meanwhile.
    wait_until("one request is still in flight", || {
        guard.snapshot().in_flight == 1
    })
    .await;
    neighbour.was_served().await;
    drop(staying);
    all_gone(&guard).await;
    assert_eq!(handlers.load(SeqCst), 0);
    let hung_up = journal
        .disconnected()
        .iter()
        .filter(|(v, _)| v.reason == Reason::HungUp)
        .count();
    assert!(hung_up >= 19, "{hung_up}");
}

on_servers! {
    [axum, serve, tonic]
    the_handler_of_a_vanished_client_ends_despite_an_unread_byte,
}
