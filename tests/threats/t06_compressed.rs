//! T06: a compressed upload that arrives slowly, on a server that decompresses it. The outer stack
//! measures the bytes that arrive, an inner body limit the decompressed bytes.

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

/// The limit of the inner layer.
const MAX_UNPACKED_BYTES: usize = 1 << 20;

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
        .layer(BodyLimitLayer::new(MAX_UNPACKED_BYTES as u64).metrics(journal.clone()));
    Router::new().route("/", post(length)).layer(guarded)
}

/// Returns `zeros` zero bytes compressed with gzip, to about a thousandth of the length.
async fn gzipped_zeros(zeros: usize) -> Bytes {
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
async fn a_slow_compressed_upload_is_measured_before_decompression() {
    let journal = Journal::default();
    let gzipped = gzipped_zeros(MAX_UNPACKED_BYTES).await;
    assert!(
        gzipped.len() * 500 < MAX_UNPACKED_BYTES,
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

#[tokio::test(start_paused = true)]
async fn the_inner_body_limit_counts_decompressed_bytes() {
    let journal = Journal::default();
    let honest = app(&journal)
        .oneshot(upload(gzipped_zeros(MAX_UNPACKED_BYTES).await.into()))
        .await
        .unwrap();
    assert_eq!(honest.status(), StatusCode::OK);
    let length = honest.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(length, MAX_UNPACKED_BYTES.to_string());
    assert_eq!(journal.refused(), []);
    let bomb = app(&journal)
        .oneshot(upload(gzipped_zeros(100 * MAX_UNPACKED_BYTES).await.into()))
        .await
        .unwrap();
    assert_eq!(bomb.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(journal.refused(), [(Guard::BodyLimit, Reason::TooLarge)]);
    // An uncompressed upload passes both limits.
    let plain = Request::post("/")
        .body(Body::new(Pieces::new(16, 1 << 10)))
        .unwrap();
    let plain = app(&journal).oneshot(plain).await.unwrap();
    assert_eq!(
        plain.into_body().collect().await.unwrap().to_bytes(),
        (16 << 10).to_string()
    );
}
