//! T14, overload by honest traffic: ten times as many requests as the server can handle. The server
//! continues to handle as many as it can, each at its usual speed. The others are refused at once,
//! and the health check is answered throughout.

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

const PERMITS: usize = 20;
const CLIENTS: usize = 200;
const HANDLER_TIME: Duration = Duration::from_millis(50);
const OVERLOAD_TIME: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_server_works_at_its_limit_and_refuses_the_rest_at_once() {
    let journal = Journal::default();
    let (working, max_working) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (working.clone(), max_working.clone());
    let slow = get(async move || {
        let (working, max_working) = counts;
        max_working.fetch_max(working.fetch_add(1, SeqCst) + 1, SeqCst);
        sleep(HANDLER_TIME).await;
        working.fetch_sub(1, SeqCst);
        "done"
    });
    let limit = ConcurrencyLimitLayer::new(PERMITS)
        .reserve(2, |head| head.uri.path() == "/health")
        .metrics(journal.clone());
    let app = Router::new()
        .route("/slow", slow)
        .route("/health", get("well"))
        .layer(limit);
    let server = servers::axum(app).await;

    let addr = server.addr;
    let end = Instant::now() + OVERLOAD_TIME;
    let mut crowd = JoinSet::new();
    for n in 1..=CLIENTS {
        // Each client has its own address: closed connections from one address would use up half of
        // its ports in 4 s, and the kernel then takes long to find a free one.
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
                        sleep(HANDLER_TIME).await; // Sooner than `retry-after`, but not at once.
                    }
                    other => panic!("{other}"),
                }
            }
            (served, refused)
        });
    }
    clients::wait_until("the permits are taken", || working.load(SeqCst) == PERMITS).await;
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
    // At least a quarter of what the permits allow in that time, on a machine that is busy with the
    // clients and other tests too. No admitted request waited for another.
    let possible = PERMITS * (OVERLOAD_TIME.as_millis() / HANDLER_TIME.as_millis()) as usize;
    assert!(
        served.len() * 4 >= possible,
        "{} of {possible}",
        served.len()
    );
    assert!(
        served[served.len() / 2] < HANDLER_TIME * 4,
        "{:?}",
        served[served.len() / 2]
    );
    assert!(!refused.is_empty());
    assert!(max_working.load(SeqCst) <= PERMITS, "{max_working:?}");
    let held = || journal.gauge(Guard::ConcurrencyLimit, Gauge::Working);
    clients::wait_until("no permit is held", || held() == Some(0)).await;
}
