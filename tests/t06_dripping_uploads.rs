//! T06, slots held by those who wait: 500 clients drip a byte at a time into their uploads, on a
//! server with 200 slots. Honest requests beside them are served from the first second.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use axum::{Router, routing::post};
use bytes::Bytes;
use palisade_concurrency_limit::ConcurrencyLimitLayer;
use palisade_core::{Gauge, Guard};
use palisade_testkit::{
    Journal,
    clients::{self, RawClient},
    servers,
};
use std::{net::Ipv4Addr, time::Duration};
use tokio::{task::JoinSet, time::sleep};

const DRIPPERS: usize = 500;
const SLOTS: usize = 200;
const HONEST: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_requests_are_served_beside_dripping_uploads() {
    let journal = Journal::default();
    let limit = ConcurrencyLimitLayer::new(SLOTS).metrics(journal.clone());
    let length = async |body: Bytes| body.len().to_string();
    let server = servers::axum_bare(
        Router::new()
            .route("/", post(length).get("hello"))
            .layer(limit),
    )
    .await;

    let addr = server.addr;
    let mut drippers = JoinSet::new();
    for _ in 0..DRIPPERS {
        drippers.spawn(async move {
            let mut client = RawClient::connect(addr).await?;
            client
                .send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 60\r\n\r\n")
                .await?;
            // At most a minute, if nobody ends it before.
            for _ in 0..60 {
                client.send("x").await?;
                sleep(Duration::from_secs(1)).await;
            }
            client.head().await
        });
    }
    // All of them are in, and honest requests come from that moment on.
    let dripping = || {
        journal
            .level(Guard::ConcurrencyLimit, Gauge::Waiting)
            .unwrap()
    };
    clients::until("all drip", || dripping() == DRIPPERS as u64).await;
    let mut served = 0;
    for _ in 0..HONEST {
        let answer = clients::get(Ipv4Addr::LOCALHOST, addr, "/").await.unwrap();
        served += usize::from(answer.status() == 200);
        sleep(Duration::from_millis(20)).await;
    }
    assert!(served * 100 >= HONEST * 99, "{served} of {HONEST}");
    // They are still here, all of them, and were never refused: the attack is real, and harmless.
    clients::until("all still drip", || dripping() == DRIPPERS as u64).await;
    assert_eq!(journal.refused(), []);
    drippers.shutdown().await;
    for level in [Gauge::Waiting, Gauge::Working, Gauge::Queued] {
        let held = || journal.level(Guard::ConcurrencyLimit, level);
        clients::until("nothing is held", || held() == Some(0)).await;
    }
}
