//! T06, permits of waiting requests: 500 clients drip their uploads one byte at a time, on a server
//! with 200 permits. Honest requests beside them are served from the first second.

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

const DRIPPING_UPLOADS: usize = 500;
const PERMITS: usize = 200;
const HONEST_REQUESTS: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_requests_are_served_beside_dripping_uploads() {
    let journal = Journal::default();
    let limit = ConcurrencyLimitLayer::new(PERMITS).metrics(journal.clone());
    let length = async |body: Bytes| body.len().to_string();
    let server = servers::axum_bare(
        Router::new()
            .route("/", post(length).get("hello"))
            .layer(limit),
    )
    .await;

    let addr = server.addr;
    let mut uploads = JoinSet::new();
    for _ in 0..DRIPPING_UPLOADS {
        uploads.spawn(async move {
            let mut client = RawClient::connect(addr).await?;
            client
                .send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 60\r\n\r\n")
                .await?;
            // At most a minute, unless the test ends it earlier.
            for _ in 0..60 {
                client.send("x").await?;
                sleep(Duration::from_secs(1)).await;
            }
            client.head().await
        });
    }
    // Honest requests start as soon as all uploads are admitted.
    let waiting = || {
        journal
            .gauge(Guard::ConcurrencyLimit, Gauge::Waiting)
            .unwrap()
    };
    clients::wait_until("all uploads are waiting", || {
        waiting() == DRIPPING_UPLOADS as u64
    })
    .await;
    let mut served = 0;
    for _ in 0..HONEST_REQUESTS {
        let answer = clients::get(Ipv4Addr::LOCALHOST, addr, "/").await.unwrap();
        served += usize::from(answer.status() == 200);
        sleep(Duration::from_millis(20)).await;
    }
    assert!(
        served * 100 >= HONEST_REQUESTS * 99,
        "{served} of {HONEST_REQUESTS}"
    );
    // All uploads are still waiting and none was refused: the attack is real and does no harm.
    clients::wait_until("all uploads are still waiting", || {
        waiting() == DRIPPING_UPLOADS as u64
    })
    .await;
    assert_eq!(journal.refused(), []);
    uploads.shutdown().await;
    for gauge in [Gauge::Waiting, Gauge::Working, Gauge::Queued] {
        let held = || journal.gauge(Guard::ConcurrencyLimit, gauge);
        clients::wait_until("no request is present", || held() == Some(0)).await;
    }
}
