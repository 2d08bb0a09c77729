//! T06: a compressed upload that drips, where something decompresses it. The stack outside measures
//! what comes over the wire; a body limit inside what comes out.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use axum::{Router, body::Body, routing::post};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use palisade::{Guard, Reason, Stack, body_limit::BodyLimitLayer};
use palisade_testkit::{Journal, bodies::Pieces};
use std::{convert::Infallible, time::Duration};
use tokio::time::Instant;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_http::{compression::CompressionLayer, decompression::RequestDecompressionLayer};

const UNPACKED: usize = 1 << 20;

/// The order that README names.
fn app(journal: &Journal) -> Router {
    let stack = Stack::edge().metrics(journal.clone()).build().unwrap();
    let length = async |body: Body| {
        body.collect()
            .await
            .map_or(0, |body| body.to_bytes().len())
            .to_string()
    };
    let guarded = ServiceBuilder::new()
        .layer(stack)
        .layer(RequestDecompressionLayer::new())
        .layer(BodyLimitLayer::new(UNPACKED as u64).metrics(journal.clone()));
    Router::new().route("/", post(length)).layer(guarded)
}

/// So many zeros, which are a thousandth as much when packed.
async fn packed(zeros: usize) -> Bytes {
    let plain = service_fn(move |_| async move {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![0; zeros]))))
    });
    let request = Request::get("/").header(header::ACCEPT_ENCODING, "gzip");
    let request = request.body(Body::empty()).unwrap();
    let response = CompressionLayer::new()
        .layer(plain)
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
    response.into_body().collect().await.unwrap().to_bytes()
}

fn upload(body: Body) -> Request<Body> {
    Request::post("/")
        .header(header::CONTENT_ENCODING, "gzip")
        .body(body)
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_byte_now_and_then_is_not_worth_what_it_unpacks_to() {
    let journal = Journal::default();
    let packed = packed(UNPACKED).await;
    assert!(packed.len() * 500 < UNPACKED, "{}", packed.len());
    // A byte in two seconds, of a thousand that each unpack to a thousand.
    let pieces = packed.into_iter().map(|byte| Bytes::from(vec![byte]));
    let body = futures_util::stream::unfold(pieces, async |mut pieces| {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Some((Ok::<_, Infallible>(pieces.next()?), pieces))
    });
    let began = Instant::now();
    let response = app(&journal)
        .oneshot(upload(Body::from_stream(body)))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    assert!(
        began.elapsed() <= Duration::from_secs(16),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(journal.refused(), [(Guard::SlowBody, Reason::Rate)]);
}

#[tokio::test(start_paused = true)]
async fn what_comes_out_is_limited_by_the_layer_inside() {
    let journal = Journal::default();
    let honest = app(&journal)
        .oneshot(upload(packed(UNPACKED).await.into()))
        .await
        .unwrap();
    assert_eq!(honest.status(), StatusCode::OK);
    let length = honest.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(length, UNPACKED.to_string());
    assert_eq!(journal.refused(), []);
    let bomb = app(&journal)
        .oneshot(upload(packed(100 * UNPACKED).await.into()))
        .await
        .unwrap();
    assert_eq!(bomb.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(journal.refused(), [(Guard::BodyLimit, Reason::TooLarge)]);
    // And what is not packed goes through both.
    let plain = Request::post("/")
        .body(Body::new(Pieces::new(16, 1 << 10)))
        .unwrap();
    let plain = app(&journal).oneshot(plain).await.unwrap();
    assert_eq!(
        plain.into_body().collect().await.unwrap().to_bytes(),
        (16 << 10).to_string()
    );
}
