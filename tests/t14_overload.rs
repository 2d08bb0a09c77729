//! T14, overload by honest traffic: ten times as many requests as the server can do. It goes on
//! doing as many as it can, each as fast as ever; the others hear "no" at once; the health check
//! is answered throughout.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use axum::{Router, routing::get};
use palisade_concurrency_limit::ConcurrencyLimitLayer;
use palisade_core::{Gauge, Guard};
use palisade_testkit::{Journal, clients, servers};
use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const SLOTS: usize = 20;
const CLIENTS: usize = 200;
const HANDLER: Duration = Duration::from_millis(50);
const OVERLOAD: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_does_what_it_can_and_refuses_the_rest_at_once() {
    let journal = Journal::default();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let at_work = (now.clone(), most.clone());
    let slow = get(async move || {
        let (now, most) = at_work;
        most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
        sleep(HANDLER).await;
        now.fetch_sub(1, SeqCst);
        "done"
    });
    let limit = ConcurrencyLimitLayer::new(SLOTS)
        .reserve(2, |head| head.uri.path() == "/health")
        .metrics(journal.clone());
    let app = Router::new()
        .route("/slow", slow)
        .route("/health", get("well"))
        .layer(limit);
    let server = servers::axum(app).await;

    let addr = server.addr;
    let end = Instant::now() + OVERLOAD;
    let mut crowd = JoinSet::new();
    for n in 1..=CLIENTS {
        // Each has an address: closed connections of one would use up half of its ports in 4 s,
        // and the kernel looks long for the others.
        let from = Ipv4Addr::new(127, 0, 1, u8::try_from(n).unwrap());
        crowd.spawn(async move {
            let (mut served, mut refused) = (Vec::new(), Vec::new());
            while Instant::now() < end {
                let sent = Instant::now();
                let answer = clients::get(from, addr, "/slow").await.unwrap();
                match answer.status().as_u16() {
                    200 => served.push(sent.elapsed()),
                    503 => {
                        refused.push(sent.elapsed());
                        sleep(HANDLER).await; // Sooner than it was asked to, but not at once.
                    }
                    other => panic!("{other}"),
                }
            }
            (served, refused)
        });
    }
    clients::until("the slots are taken", || now.load(SeqCst) == SLOTS).await;
    while Instant::now() < end {
        let health = clients::get(Ipv4Addr::LOCALHOST, addr, "/health")
            .await
            .unwrap();
        assert_eq!(health.status(), 200);
        sleep(Duration::from_millis(20)).await;
    }
    let (mut served, mut refused) = (Vec::new(), Vec::new());
    while let Some(client) = crowd.join_next().await {
        let (more_served, more_refused) = client.unwrap();
        served.extend(more_served);
        refused.extend(more_refused);
    }
    served.sort();
    // Half of what the slots can do in that time at the very least, on a machine that is busy
    // with the clients too; and nobody who was let in waited for anybody else.
    let possible = SLOTS * (OVERLOAD.as_millis() / HANDLER.as_millis()) as usize;
    assert!(
        served.len() * 2 >= possible,
        "{} of {possible}",
        served.len()
    );
    assert!(
        served[served.len() / 2] < HANDLER * 4,
        "{:?}",
        served[served.len() / 2]
    );
    assert!(!refused.is_empty());
    assert!(most.load(SeqCst) <= SLOTS, "{most:?}");
    let held = || journal.level(Guard::ConcurrencyLimit, Gauge::Working);
    clients::until("nothing is held", || held() == Some(0)).await;
}
