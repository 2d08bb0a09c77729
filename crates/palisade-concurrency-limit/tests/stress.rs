//! Everything at once on two threads: whatever the order, nobody waits for ever, the limit holds
//! at every look, and nothing is left behind.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, channel::Channel};
use palisade_concurrency_limit::{ConcurrencyLimitLayer, RequestBody};
use palisade_core::{Gauge, Guard};
use palisade_testkit::Journal;
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};
use tokio::{task::JoinSet, time::timeout};
use tower::{Layer, ServiceExt, service_fn};

const LIMIT: usize = 4;
const CLIENTS: usize = 64;
const REQUESTS: usize = 400;

static SERVED: AtomicUsize = AtomicUsize::new(0);
static REFUSED: AtomicUsize = AtomicUsize::new(0);

/// The same few numbers in no order, without a generator to depend on.
fn scramble(number: usize) -> usize {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as usize) >> 33
}

/// Reads its body in one of four ways, working a little in between, and streams an answer.
async fn handler(
    request: Request<RequestBody<Channel<Bytes, io::Error>>>,
) -> Result<Response<Channel<Bytes, io::Error>>, Infallible> {
    let way: usize = request.headers()["way"].to_str().unwrap().parse().unwrap();
    let mut body = request.into_body();
    match way % 4 {
        0 => while body.frame().await.is_some_and(|frame| frame.is_ok()) {},
        1 => drop(body.frame().await),
        2 => {
            let read = tokio::spawn(body.collect());
            let _ = read.await.unwrap();
        }
        _ => {
            // Gives up on the client at once and goes on without it.
            let _ = timeout(Duration::ZERO, body.frame()).await;
            drop(body);
            tokio::task::yield_now().await;
        }
    }
    let (mut sender, answer) = Channel::new(1);
    tokio::spawn(async move {
        for _ in 0..3 {
            tokio::task::yield_now().await;
            if sender
                .send_data(Bytes::from_static(b"piece"))
                .await
                .is_err()
            {
                return;
            }
        }
    });
    Ok(Response::new(answer))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_order_nobody_waits_for_ever_and_nothing_is_left_behind() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(LIMIT)
        .present(24)
        .queue(8, Duration::from_secs(60))
        .fairness()
        .per_client(20)
        .metrics(journal.clone());
    let service = layer.layer(service_fn(handler));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let service = service.clone();
        clients.spawn(async move {
            for number in 0..REQUESTS {
                let way = scramble(client * REQUESTS + number);
                let (mut sender, body) = Channel::<Bytes, io::Error>::new(1);
                let upload = tokio::spawn(async move {
                    for _ in 0..way % 5 {
                        tokio::task::yield_now().await;
                        if sender
                            .send_data(Bytes::from_static(b"bytes"))
                            .await
                            .is_err()
                        {
                            return;
                        }
                    }
                });
                let mut request = Request::post("/").header("way", way).body(body).unwrap();
                let peer: SocketAddr = format!("192.0.2.{}:1", client % 6).parse().unwrap();
                request.extensions_mut().insert(peer);
                let exchange = async {
                    let mut response = service.clone().oneshot(request).await.unwrap();
                    if response.status() != 200 {
                        REFUSED.fetch_add(1, SeqCst);
                        return;
                    }
                    // One in eight loses interest.
                    if way.is_multiple_of(8) {
                        let _ = response.body_mut().frame().await;
                        return;
                    }
                    if response.into_body().collect().await.is_ok() {
                        SERVED.fetch_add(1, SeqCst);
                    }
                };
                if way.is_multiple_of(11) {
                    // Gone before the answer.
                    let _ = timeout(Duration::from_micros(way as u64 % 50), exchange).await;
                } else {
                    exchange.await;
                }
                drop(upload);
            }
        });
    }
    let watch = async {
        while clients
            .join_next()
            .await
            .is_some_and(|client| client.map(|()| true).unwrap())
        {
            let working = journal
                .level(Guard::ConcurrencyLimit, Gauge::Working)
                .unwrap();
            assert!(working <= LIMIT as u64, "{working}");
        }
    };
    assert!(
        timeout(Duration::from_secs(60), watch).await.is_ok(),
        "somebody waits for ever"
    );
    for level in [Gauge::Working, Gauge::Waiting, Gauge::Queued] {
        assert_eq!(
            journal.level(Guard::ConcurrencyLimit, level),
            Some(0),
            "{level:?}"
        );
    }
    let (served, refused) = (SERVED.load(SeqCst), REFUSED.load(SeqCst));
    assert!(
        served > 500 && refused > 50,
        "served {served}, refused {refused}"
    );
}
