//! tower's contract for this crate's layer.

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, StatusCode};
use http_body_util::Full;
use palisade_concurrency_limit::ConcurrencyLimitLayer;
use palisade_core::{Gauge, Guard};
use palisade_testkit::{
    Journal,
    contract::{Broken, Probe, assert_contract, poll_once, request},
};
use std::time::Duration;
use tower::{Layer, Service, ServiceExt};

#[tokio::test(start_paused = true)]
async fn the_layer_keeps_the_contract_of_tower() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(9).metrics(journal.clone());
    assert_contract(layer.clone()).await;
    assert_eq!((journal.refused(), journal.cut()), (vec![], vec![]));
    for gauge in [Gauge::Working, Gauge::Waiting, Gauge::Queued] {
        assert_eq!(
            journal.gauge(Guard::ConcurrencyLimit, gauge),
            Some(0),
            "{gauge:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_from_the_queue_is_served_by_the_instance_that_was_made_ready() {
    let layer = ConcurrencyLimitLayer::new(1).queue(9, Duration::from_secs(9));
    let probe = Probe::default();
    let mut service = layer.layer(probe.clone());
    let mut call = |path: &str| {
        assert!(
            ServiceExt::<Request<Full<Bytes>>>::ready(&mut service)
                .now_or_never()
                .is_some()
        );
        service.call(request(path))
    };
    let mut hangs = Box::pin(call("/hangs"));
    assert!(poll_once(hangs.as_mut()).is_pending());
    let queued = [call("/"), call("/fails")].map(tokio::spawn);
    tokio::task::yield_now().await;
    assert_eq!(probe.running(), 1);
    drop(hangs);
    let mut outcomes = Vec::new();
    for call in queued {
        outcomes.push(call.await.unwrap().map(|response| response.status()));
    }
    assert_eq!(outcomes, [Ok(StatusCode::OK), Err(Broken(1))]);
    assert_eq!(probe.running(), 0);
    assert_eq!(layer.handle().working(), 0);
}
