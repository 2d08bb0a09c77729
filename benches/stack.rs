//! All five guards together, against no guard and against the peers, by hand and on servers.

use axum::{Router, routing::get};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use http::Request;
use palisade_benches::{
    Frames, Identified, Pends, Protocol, Reads, Ready, connection, drive, for_peers, generous,
    hyper_http1, hyper_util_auto, palisade, peer_request, peers, request, runtime, stingy, upload,
};
use tower::{Layer, Service};

fn line<S, B>(
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

fn by_hand(c: &mut Criterion) {
    let runtime = runtime();
    let _guard = runtime.enter();
    let conn = connection();
    let ours = || request(&conn);
    line(c, "ready", "no_guard", Ready, ours);
    line(
        c,
        "ready",
        "palisade",
        palisade(generous()).layer(Ready),
        ours,
    );
    line(
        c,
        "ready",
        "peers",
        peers(true).service(for_peers(Ready)),
        peer_request,
    );
    line(c, "pending_once", "no_guard", Pends, ours);
    line(
        c,
        "pending_once",
        "palisade",
        palisade(generous()).layer(Pends),
        ours,
    );
    line(
        c,
        "pending_once",
        "peers",
        peers(true).service(for_peers(Pends)),
        peer_request,
    );
    line(
        c,
        "refused",
        "palisade",
        palisade(stingy()).layer(Ready),
        ours,
    );
    line(
        c,
        "refused",
        "peers",
        peers(false).service(for_peers(Ready)),
        peer_request,
    );
    let long = |request| upload(request, Frames::new(16), 16 * Frames::LENGTH);
    line(c, "upload", "no_guard", Reads, || long(ours()));
    line(
        c,
        "upload",
        "palisade",
        palisade(generous()).layer(Reads),
        || long(ours()),
    );
    line(
        c,
        "upload",
        "peers",
        peers(true).service(for_peers(Reads)),
        || long(peer_request()),
    );
}

/// Requests on one connection, so that its beginning and its end do not show.
const REQUESTS: usize = 100;

fn on_servers(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("hyper_http1");
    group.throughput(Throughput::Elements(REQUESTS as u64));
    let guarded = palisade(generous()).layer(Ready);
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
        let around = palisade(generous()).layer(router());
        let inside = router().layer(palisade(generous()));
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

criterion_group!(benches, by_hand, on_servers);
criterion_main!(benches);
