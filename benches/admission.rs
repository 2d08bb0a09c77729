//! Each single guard: admitted and refused requests, compared with no guard and with the peer's
//! layer.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use http::{HeaderValue, Request, header::CONTENT_LENGTH};
use http_body_util::Full;
use palisade::{
    Metrics, body_limit::BodyLimitLayer, concurrency_limit::ConcurrencyLimitLayer,
    rate_limit::RateLimitLayer, slow_body::SlowBodyLayer, timeout::TimeoutLayer, types::Event,
};
use palisade_benches::{
    Frames, Reads, Ready, connection, drive, for_peers, high_quota, low_quota, peer_request,
    peers_limit, request, runtime, tower_governor, upload,
};
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use tower::{Layer, Service, ServiceBuilder, limit::GlobalConcurrencyLimitLayer};
use tower_http::timeout;

/// A metrics sink that counts events.
#[derive(Default)]
struct CountingMetrics(AtomicU64);

impl Metrics for CountingMetrics {
    fn record(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Benches `request` on `service`. Creating the request is not timed.
fn bench_request<S, B>(
    c: &mut Criterion,
    group: &str,
    name: &str,
    mut service: S,
    request: impl Fn() -> Request<B>,
) where
    S: Service<Request<B>>,
{
    let mut group = c.benchmark_group(group);
    group.throughput(Throughput::Elements(1));
    group.bench_function(name, |b| {
        b.iter_batched(
            &request,
            |request| drive(&mut service, request),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn no_guard(c: &mut Criterion) {
    let conn = connection();
    bench_request(c, "no_guard", "admitted", Ready, || request(&conn));
    bench_request(c, "no_guard", "upload", Reads, || {
        long_upload(request(&conn))
    });
}

fn rate_limit(c: &mut Criterion) {
    let (conn, group) = (connection(), "rate_limit");
    let layer = |quota| RateLimitLayer::new(quota).expect("the quota is valid");
    bench_request(
        c,
        group,
        "admitted",
        layer(high_quota()).layer(Ready),
        || request(&conn),
    );
    bench_request(c, group, "refused", layer(low_quota()).layer(Ready), || {
        request(&conn)
    });
    let counted = layer(low_quota()).metrics(CountingMetrics::default());
    bench_request(c, group, "refused_counted", counted.layer(Ready), || {
        request(&conn)
    });
    let peer = |quota_is_high| tower_governor(quota_is_high).layer(for_peers(Ready));
    bench_request(
        c,
        group,
        "admitted_tower_governor",
        peer(true),
        peer_request,
    );
    bench_request(
        c,
        group,
        "refused_tower_governor",
        peer(false),
        peer_request,
    );
}

fn concurrency_limit(c: &mut Criterion) {
    let (conn, group) = (connection(), "concurrency_limit");
    let layer = ConcurrencyLimitLayer::new;
    bench_request(c, group, "admitted", layer(1).layer(Ready), || {
        request(&conn)
    });
    bench_request(c, group, "refused", layer(0).layer(Ready), || {
        request(&conn)
    });
    let counted = layer(0).metrics(CountingMetrics::default());
    bench_request(c, group, "refused_counted", counted.layer(Ready), || {
        request(&conn)
    });
    let peer = |max| {
        ServiceBuilder::new()
            .load_shed()
            .layer(GlobalConcurrencyLimitLayer::new(max))
            .service(Ready)
    };
    bench_request(c, group, "admitted_tower", peer(1), || request(&conn));
    // tower returns an error, which another layer must convert to a response.
    bench_request(c, group, "refused_tower", peer(0), || request(&conn));
}

fn body_limit(c: &mut Criterion) {
    let (conn, group) = (connection(), "body_limit");
    let layer = BodyLimitLayer::default();
    bench_request(c, group, "admitted", layer.layer(Ready), || request(&conn));
    bench_request(c, group, "upload", layer.layer(Reads), || {
        long_upload(request(&conn))
    });
    bench_request(c, group, "refused", layer.layer(Ready), || {
        too_long(request(&conn))
    });
    let peer = peers_limit();
    bench_request(c, group, "upload_tower_http", peer.layer(Reads), || {
        long_upload(request(&conn))
    });
    bench_request(c, group, "refused_tower_http", peer.layer(Ready), || {
        too_long(request(&conn))
    });
}

fn timeout(c: &mut Criterion) {
    let runtime = runtime();
    let _guard = runtime.enter();
    let (conn, group) = (connection(), "timeout");
    let thirty = Duration::from_secs(30);
    let layer = TimeoutLayer::new(thirty);
    bench_request(c, group, "admitted", layer.layer(Ready), || request(&conn));
    bench_request(c, group, "upload", layer.layer(Reads), || {
        long_upload(request(&conn))
    });
    let layer = TimeoutLayer::new(Duration::ZERO);
    bench_request(c, group, "refused", layer.layer(Ready), || request(&conn));
    let status = http::StatusCode::SERVICE_UNAVAILABLE;
    let peer = timeout::TimeoutLayer::with_status_code(status, thirty);
    bench_request(c, group, "admitted_tower_http", peer.layer(Ready), || {
        request(&conn)
    });
}

fn slow_body(c: &mut Criterion) {
    let runtime = runtime();
    let _guard = runtime.enter();
    let (conn, group) = (connection(), "slow_body");
    let layer = SlowBodyLayer::new();
    bench_request(c, group, "admitted", layer.layer(Ready), || request(&conn));
    bench_request(c, group, "upload", layer.layer(Reads), || {
        long_upload(request(&conn))
    });
    let peer = timeout::RequestBodyTimeoutLayer::new(Duration::from_secs(15));
    bench_request(c, group, "upload_tower_http", peer.layer(Reads), || {
        long_upload(request(&conn))
    });
}

/// Adds a body of 64 KiB in 16 frames to `request`.
fn long_upload(request: Request<Full<Bytes>>) -> Request<Frames> {
    upload(request, Frames::new(16), 16 * Frames::LENGTH)
}

/// Adds a body with a declared length of 4 GiB to `request`.
fn too_long(request: Request<Full<Bytes>>) -> Request<Frames> {
    let mut request = request.map(|_| Frames::new(1 << 20));
    request
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from_static("4294967296"));
    request
}

criterion_group!(
    benches,
    no_guard,
    rate_limit,
    concurrency_limit,
    body_limit,
    timeout,
    slow_body
);
criterion_main!(benches);
