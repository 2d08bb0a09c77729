//! All features at once on two threads: in any order no request waits forever, the limit holds
//! whenever it is checked, and no permit stays taken.
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
const CLIENT_TASKS: usize = 64;
const REQUESTS_PER_CLIENT: usize = 400;

static SERVED: AtomicUsize = AtomicUsize::new(0);
static REFUSED: AtomicUsize = AtomicUsize::new(0);

/// Returns a pseudo-random number that is the same in every run, without a generator.
fn scramble(number: usize) -> usize {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as usize) >> 33
}

/// Reads the body in one of four ways, does a little work in between, and streams a response.
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
            // Stops waiting for the client at once and continues without it.
            let _ = timeout(Duration::ZERO, body.frame()).await;
            drop(body);
            tokio::task::yield_now().await;
        }
    }
    let (mut sender, response_body) = Channel::new(1);
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
    Ok(Response::new(response_body))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_any_order_every_request_ends_and_no_permit_stays_taken() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(LIMIT)
        .present(24)
        .queue(8, Duration::from_secs(60))
        .fairness()
        .per_client(20)
        .metrics(journal.clone());
    let service = layer.layer(service_fn(handler));
    let mut clients = JoinSet::new();
    for client in 0..CLIENT_TASKS {
        let service = service.clone();
        clients.spawn(async move {
            for number in 0..REQUESTS_PER_CLIENT {
                let way = scramble(client * REQUESTS_PER_CLIENT + number);
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
                    // One client in eight drops the response.
                    if way.is_multiple_of(8) {
                        let _ = response.body_mut().frame().await;
                        return;
                    }
                    if response.into_body().collect().await.is_ok() {
                        SERVED.fetch_add(1, SeqCst);
                    }
                };
                if way.is_multiple_of(11) {
                    // Dropped before the response.
                    let _ = timeout(Duration::from_micros(way as u64 % 50), exchange).await;
                } else {
                    exchange.await;
                }
                drop(upload);
            }
        });
    }
    let check = async {
        while clients
            .join_next()
            .await
            .is_some_and(|client| client.map(|()| true).unwrap())
        {
            let working = journal
                .gauge(Guard::ConcurrencyLimit, Gauge::Working)
                .unwrap();
            assert!(working <= LIMIT as u64, "{working}");
        }
    };
    assert!(
        timeout(Duration::from_secs(60), check).await.is_ok(),
        "a request waits forever"
    );
    for level in [Gauge::Working, Gauge::Waiting, Gauge::Queued] {
        assert_eq!(
            journal.gauge(Guard::ConcurrencyLimit, level),
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
