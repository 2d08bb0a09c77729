//! T06: a compressed upload that arrives slowly, on a server that decompresses it. The stack
//! measures the bytes that arrive. T10 has the bombs.

use axum::{Router, body::Body, routing::post};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use palisade::{Guard, Reason, Stack, body_limit::BodyLimitLayer};
use palisade_testkit::{Journal, bodies::gzip};
use std::{convert::Infallible, time::Duration};
use tokio::time::Instant;
use tower::{ServiceBuilder, ServiceExt};
use tower_http::decompression::RequestDecompressionLayer;

/// The limit of the inner layer.
const MAX_DECOMPRESSED_BYTES: usize = 1 << 20;

/// The layers in the order that the README gives.
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
        .layer(
            BodyLimitLayer::decompressed(MAX_DECOMPRESSED_BYTES as u64).metrics(journal.clone()),
        );
    Router::new().route("/", post(length)).layer(guarded)
}

fn upload(body: Body) -> Request<Body> {
    Request::post("/")
        .header(header::CONTENT_ENCODING, "gzip")
        .body(body)
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_slow_compressed_upload_is_measured_before_decompression() {
    let journal = Journal::default();
    let gzipped = gzip(&[0; MAX_DECOMPRESSED_BYTES]);
    assert!(
        gzipped.len() * 500 < MAX_DECOMPRESSED_BYTES,
        "{}",
        gzipped.len()
    );
    // One byte every two seconds, of about a thousand that each decompress to a thousand.
    let pieces = gzipped.into_iter().map(|byte| Bytes::from(vec![byte]));
    let body = futures_util::stream::unfold(pieces, async |mut pieces| {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Some((Ok::<_, Infallible>(pieces.next()?), pieces))
    });
    let started = Instant::now();
    let response = app(&journal)
        .oneshot(upload(Body::from_stream(body)))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    assert!(
        started.elapsed() <= Duration::from_secs(16),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(journal.refused(), [(Guard::SlowBody, Reason::Rate)]);
}
