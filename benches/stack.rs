//! All six guards together, compared with no guard and with the peers, by direct polling and on
//! servers.

use axum::{Router, routing::get};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use http::Request;
use palisade_benches::{
    Frames, Identified, Pends, Protocol, Reads, Ready, connection, drive, for_peers, high_quota,
    hyper_http1, hyper_util_auto, low_quota, palisade, peer_request, peers, request, runtime,
    upload,
};
use tower::{Layer, Service};

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

fn by_polling(c: &mut Criterion) {
    let runtime = runtime();
    let _guard = runtime.enter();
    let conn = connection();
    let ours = || request(&conn);
    bench_request(c, "ready", "no_guard", Ready, ours);
    bench_request(
        c,
        "ready",
        "palisade",
        palisade(high_quota()).layer(Ready),
        ours,
    );
    bench_request(
        c,
        "ready",
        "peers",
        peers(true).service(for_peers(Ready)),
        peer_request,
    );
    bench_request(c, "pending_once", "no_guard", Pends, ours);
    bench_request(
        c,
        "pending_once",
        "palisade",
        palisade(high_quota()).layer(Pends),
        ours,
    );
    bench_request(
        c,
        "pending_once",
        "peers",
        peers(true).service(for_peers(Pends)),
        peer_request,
    );
    bench_request(
        c,
        "refused",
        "palisade",
        palisade(low_quota()).layer(Ready),
        ours,
    );
    bench_request(
        c,
        "refused",
        "peers",
        peers(false).service(for_peers(Ready)),
        peer_request,
    );
    let long = |request| upload(request, Frames::new(16), 16 * Frames::LENGTH);
    bench_request(c, "upload", "no_guard", Reads, || long(ours()));
    bench_request(
        c,
        "upload",
        "palisade",
        palisade(high_quota()).layer(Reads),
        || long(ours()),
    );
    bench_request(
        c,
        "upload",
        "peers",
        peers(true).service(for_peers(Reads)),
        || long(peer_request()),
    );
}

/// The number of requests on a connection, large enough that its setup and close are negligible.
const REQUESTS: usize = 100;

fn on_servers(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("hyper_http1");
    group.throughput(Throughput::Elements(REQUESTS as u64));
    let guarded = palisade(high_quota()).layer(Ready);
    let by_peers = peers(true).service(for_peers(Ready));
    group.bench_function("no_guard", |b| {
        b.iter(|| hyper_http1(&runtime, Identified(Ready), REQUESTS));
    });
    group.bench_function("palisade", |b| {
        b.iter(|| hyper_http1(&runtime, Identified(guarded.clone()), REQUESTS));
    });
    group.bench_function("peers", |b| {
        b.iter(|| hyper_http1(&runtime, Identified(by_peers.clone()), REQUESTS));
    });
    group.finish();

    let router = || Router::new().route("/", get(async || "ok"));
    for (name, protocol) in [
        ("axum_http1", Protocol::Http1),
        ("axum_http2", Protocol::Http2),
    ] {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(REQUESTS as u64));
        let bare = router();
        let around = palisade(high_quota()).layer(router());
        let inside = router().layer(palisade(high_quota()));
        let by_peers = peers(true).service(router());
        group.bench_function("no_guard", |b| {
            b.iter(|| hyper_util_auto(&runtime, Identified(bare.clone()), protocol, REQUESTS));
        });
        group.bench_function("palisade_around", |b| {
            b.iter(|| hyper_util_auto(&runtime, Identified(around.clone()), protocol, REQUESTS));
        });
        group.bench_function("palisade_by_router_layer", |b| {
            b.iter(|| hyper_util_auto(&runtime, Identified(inside.clone()), protocol, REQUESTS));
        });
        group.bench_function("peers_around", |b| {
            b.iter(|| hyper_util_auto(&runtime, Identified(by_peers.clone()), protocol, REQUESTS));
        });
        group.finish();
    }
}

criterion_group!(benches, by_polling, on_servers);
criterion_main!(benches);
