//! The scenarios that callgrind counts. Each scenario runs a number of requests of one kind.
//!
//! The name of a scenario is the kind of request, then the service: `bare`, `palisade` or `peers`.

use crate::{
    bans,
    connections::{
        self, SWEPT_CONNECTIONS, StubTransport, flush, guarded, read, repeat_call, sweeps, write,
    },
    identity, rate_limits,
    run::{Run, Scenario, ScenarioList},
    shares,
};
use axum::{Router, routing::get};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use palisade::{Mode, Stack, conn::ConnGuard};
use palisade_benches::{
    Frames, Identified, Pends, Protocol, Reads, Ready, Sends, Server, anonymous, at_rest,
    connection, for_peers, for_peers_boxed, high_quota, hyper_http1, hyper_util_auto,
    ipv6_connection, low_quota, palisade, peer_request, peers, peers_limit, request, runtime,
    serve, tower_governor, upload,
};
use palisade_guard::GuardLayer;
use std::time::Duration;
use tower::{BoxError, Layer, Service, layer::util::Identity};

/// Adds the scenarios of a group.
type Group = fn(&mut ScenarioList);

/// The scenarios in the order in which they are counted, each group in a process of its own.
pub(crate) const GROUPS: [&[Group]; 4] = [
    &[without_a_body, single_guards],
    &[limits_of_rates, identity::scenarios, bans::scenarios],
    &[with_a_body, with_waits, downloads, refusals],
    &[end_to_end, on_connections],
];

/// Returns the scenarios of one of [`GROUPS`].
pub(crate) fn of_group(group: usize) -> Vec<Scenario> {
    let mut all = ScenarioList::default();
    for add in GROUPS[group] {
        add(&mut all);
    }
    all.into_vec()
}

fn limits_of_rates(all: &mut ScenarioList) {
    for (name, layer) in rate_limits::layers() {
        let conn = ipv6_connection();
        all.drive(name, layer.layer(Ready), move || request(&conn));
    }
    all.add("v6 fleet", rate_limits::fleet);
    all.add("shares bare", shares::not_asked);
    all.add("shares palisade", shares::asked);
}

/// Returns a constructor of requests that carry palisade's connection info.
fn palisade_request() -> impl Fn() -> Request<Full<Bytes>> + 'static {
    let conn = connection();
    move || request(&conn)
}

fn without_a_body(all: &mut ScenarioList) {
    all.drive("anonymous bare", Ready, anonymous);
    all.drive("anonymous bare-of-peers", for_peers(Ready), anonymous);
    all.drive("ready bare", Ready, palisade_request());
    all.drive("ready bare-of-peers", for_peers(Ready), peer_request);
    all.drive(
        "ready palisade",
        palisade(high_quota()).layer(Ready),
        palisade_request(),
    );
    all.drive(
        "ready peers",
        peers(true).service(for_peers(Ready)),
        peer_request,
    );
    let (memory, load) = at_rest();
    let off = Stack::edge()
        .rate_limit(high_quota())
        .memory(memory)
        .runtime_load(load)
        .mode(Mode::Off)
        .build();
    all.drive(
        "off palisade",
        off.expect("the preset is valid").layer(Ready),
        palisade_request(),
    );
    all.drive_clones(
        "clone palisade",
        palisade(high_quota()).layer(Ready),
        palisade_request(),
    );
    all.drive_clones(
        "clone peers",
        peers(true).service(for_peers(Ready)),
        peer_request,
    );
    all.drive("pending bare", Pends, palisade_request());
    all.drive("pending bare-of-peers", for_peers(Pends), peer_request);
    all.drive(
        "pending palisade",
        palisade(high_quota()).layer(Pends),
        palisade_request(),
    );
    all.drive(
        "pending peers",
        peers(true).service(for_peers(Pends)),
        peer_request,
    );
}

fn single_guards(all: &mut ScenarioList) {
    use palisade::{
        body_limit::BodyLimitLayer, concurrency_limit::ConcurrencyLimitLayer,
        load_shed::LoadShedLayer, rate_limit::RateLimitLayer, slow_body::SlowBodyLayer,
        timeout::TimeoutLayer,
    };
    let (memory, load) = at_rest();
    let load_shed = LoadShedLayer::with_sources(Some(memory), Some(load));
    all.drive(
        "no_guard palisade",
        GuardLayer::new(()).layer(Ready),
        palisade_request(),
    );
    all.drive(
        "load_shed palisade",
        load_shed.layer(Ready),
        palisade_request(),
    );
    let rate_limit = RateLimitLayer::new(high_quota()).expect("the quota is valid");
    let timeout = TimeoutLayer::new(Duration::from_secs(30));
    let concurrency_limit = ConcurrencyLimitLayer::new(1024);
    all.drive(
        "rate_limit palisade",
        rate_limit.layer(Ready),
        palisade_request(),
    );
    all.drive("timeout palisade", timeout.layer(Ready), palisade_request());
    all.drive(
        "body_limit palisade",
        BodyLimitLayer::default().layer(Ready),
        palisade_request(),
    );
    all.drive(
        "slow_body palisade",
        SlowBodyLayer::new().layer(Ready),
        palisade_request(),
    );
    all.drive(
        "concurrency_limit palisade",
        concurrency_limit.layer(Ready),
        palisade_request(),
    );
    let fair = ConcurrencyLimitLayer::new(1024).fairness();
    all.drive(
        "concurrency_limit_fair palisade",
        fair.layer(Ready),
        palisade_request(),
    );
}

fn with_a_body(all: &mut ScenarioList) {
    let small = |request: Request<Full<Bytes>>| {
        let body = Bytes::from_static(b"sixteen bytes..");
        let length = body.len();
        upload(request, Full::new(body), length)
    };
    let (a, b) = (palisade_request(), palisade_request());
    all.drive("small bare", Reads, move || small(a()));
    all.drive("small bare-of-peers", for_peers(Reads), move || {
        small(peer_request())
    });
    all.drive(
        "small palisade",
        palisade(high_quota()).layer(Reads),
        move || small(b()),
    );
    all.drive(
        "small peers",
        peers(true).service(for_peers(Reads)),
        move || small(peer_request()),
    );

    let frames = |count| {
        move |request: Request<Full<Bytes>>| {
            upload(request, Frames::new(count), count * Frames::LENGTH)
        }
    };
    let uploads = [
        (
            [
                "upload16 bare",
                "upload16 bare-of-peers",
                "upload16 palisade",
                "upload16 peers",
            ],
            16,
        ),
        (
            [
                "upload48 bare",
                "upload48 bare-of-peers",
                "upload48 palisade",
                "upload48 peers",
            ],
            48,
        ),
    ];
    for (names, count) in uploads {
        let made = frames(count);
        let (a, b) = (palisade_request(), palisade_request());
        all.drive(names[0], Reads, move || made(a()));
        all.drive(names[1], for_peers(Reads), move || made(peer_request()));
        all.drive(names[2], palisade(high_quota()).layer(Reads), move || {
            made(b())
        });
        all.drive(names[3], peers(true).service(for_peers(Reads)), move || {
            made(peer_request())
        });
    }

    let waiting = |request: Request<Full<Bytes>>| {
        upload(
            request,
            Frames::new(16).with_one_wait(),
            16 * Frames::LENGTH,
        )
    };
    let (a, b) = (palisade_request(), palisade_request());
    all.drive("waiting16 bare", Reads, move || waiting(a()));
    all.drive("waiting16 bare-of-peers", for_peers(Reads), move || {
        waiting(peer_request())
    });
    all.drive(
        "waiting16 palisade",
        palisade(high_quota()).layer(Reads),
        move || waiting(b()),
    );
    all.drive(
        "waiting16 peers",
        peers(true).service(for_peers(Reads)),
        move || waiting(peer_request()),
    );
}

/// Request bodies as a network delivers them, with a wait before each frame.
fn with_waits(all: &mut ScenarioList) {
    let frames = |count| {
        move |request: Request<Full<Bytes>>| {
            upload(
                request,
                Frames::new(count).with_waits(),
                count * Frames::LENGTH,
            )
        }
    };
    for (names, count) in [
        (
            [
                "waits16 bare",
                "waits16 bare-of-peers",
                "waits16 palisade",
                "waits16 peers",
            ],
            16,
        ),
        (
            [
                "waits48 bare",
                "waits48 bare-of-peers",
                "waits48 palisade",
                "waits48 peers",
            ],
            48,
        ),
    ] {
        let made = frames(count);
        let (a, b) = (palisade_request(), palisade_request());
        all.drive(names[0], Reads, move || made(a()));
        all.drive(names[1], for_peers(Reads), move || made(peer_request()));
        all.drive(names[2], palisade(high_quota()).layer(Reads), move || {
            made(b())
        });
        all.drive(names[3], peers(true).service(for_peers(Reads)), move || {
            made(peer_request())
        });
    }
    let made = frames(16);
    let (a, b) = (palisade_request(), palisade_request());
    all.drive_tasks("task16 bare", Reads, move || made(a()));
    all.drive_tasks("task16 bare-of-peers", for_peers(Reads), move || {
        made(peer_request())
    });
    all.drive_tasks(
        "task16 palisade",
        palisade(high_quota()).layer(Reads),
        move || made(b()),
    );
    all.drive_tasks(
        "task16 peers",
        peers(true).service(for_peers(Reads)),
        move || made(peer_request()),
    );
}

/// Responses of several frames, each ready at once.
fn downloads(all: &mut ScenarioList) {
    for (names, count) in [
        (
            [
                "download16 bare",
                "download16 bare-of-peers",
                "download16 palisade",
                "download16 peers",
            ],
            16,
        ),
        (
            [
                "download48 bare",
                "download48 bare-of-peers",
                "download48 palisade",
                "download48 peers",
            ],
            48,
        ),
    ] {
        let sends = Sends(count);
        all.drive_to_the_end(names[0], sends, palisade_request());
        all.drive_to_the_end(names[1], for_peers_boxed(sends), peer_request);
        all.drive_to_the_end(
            names[2],
            palisade(high_quota()).layer(sends),
            palisade_request(),
        );
        let of_peers = peers(true).service(for_peers_boxed(sends));
        all.drive_to_the_end(names[3], of_peers, peer_request);
    }
}

fn refusals(all: &mut ScenarioList) {
    use palisade::{
        body_limit::BodyLimitLayer, concurrency_limit::ConcurrencyLimitLayer,
        rate_limit::RateLimitLayer,
    };
    let huge = |request: Request<Full<Bytes>>| {
        let mut request = request.map(|_| Frames::new(1 << 20));
        request
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HUGE_CONTENT_LENGTH);
        request
    };
    let over_http2 = move |request: Request<Full<Bytes>>| {
        let mut request = huge(request);
        *request.version_mut() = Version::HTTP_2;
        request
    };
    let (a, b, c, d) = (
        palisade_request(),
        palisade_request(),
        palisade_request(),
        palisade_request(),
    );
    all.drive("huge bare", Ready, move || huge(a()));
    all.drive("huge bare-of-peers", for_peers(Ready), move || {
        huge(peer_request())
    });
    all.drive("huge2 bare", Ready, move || over_http2(b()));
    all.drive(
        "refused413 palisade",
        BodyLimitLayer::default().layer(Ready),
        move || huge(c()),
    );
    all.drive(
        "refused413h2 palisade",
        BodyLimitLayer::default().layer(Ready),
        move || over_http2(d()),
    );
    all.drive("refused413 peers", peers_limit().layer(Ready), move || {
        huge(peer_request())
    });
    let limited = |quota| {
        RateLimitLayer::new(quota)
            .expect("the quota is valid")
            .layer(Ready)
    };
    all.drive(
        "refused429 palisade",
        limited(low_quota()),
        palisade_request(),
    );
    // `Retry-After` has one digit, whatever the time that the scenario takes.
    let short = palisade::Quota::per_second(1).burst(1);
    all.drive(
        "refused429short palisade",
        limited(short),
        palisade_request(),
    );
    let governor = tower_governor(false);
    all.drive(
        "refused429 peers",
        governor.layer(for_peers(Ready)),
        peer_request,
    );
    all.drive(
        "refused503 palisade",
        ConcurrencyLimitLayer::new(0).layer(Ready),
        palisade_request(),
    );
    all.drive(
        "refused429stack palisade",
        palisade(low_quota()).layer(Ready),
        palisade_request(),
    );
    all.drive(
        "refused429stack peers",
        peers(false).service(for_peers(Ready)),
        peer_request,
    );
}

/// A declared length of 4 GiB.
const HUGE_CONTENT_LENGTH: HeaderValue = HeaderValue::from_static("4294967296");

fn end_to_end(all: &mut ScenarioList) {
    all.add("hyper_h1 bare", || hyper_run(Identified(Ready)));
    all.add("hyper_h1 palisade", || {
        hyper_run(Identified(palisade(high_quota()).layer(Ready)))
    });
    all.add("hyper_h1 peers", || {
        hyper_run(Identified(peers(true).service(for_peers(Ready))))
    });
    all.add("hyper_h1_refused palisade", || {
        hyper_run(Identified(palisade(low_quota()).layer(Ready)))
    });
    all.add("hyper_h1_refused peers", || {
        hyper_run(Identified(peers(false).service(for_peers(Ready))))
    });

    let router = || Router::new().route("/", get(async || "ok"));
    let noop = |router: Router| router.layer(Identity::new());
    let by_layer = |router: Router| router.layer(palisade(high_quota()));
    let around = |router: Router| palisade(high_quota()).layer(router);
    let peers_around = |router: Router| peers(true).service(router);
    for (protocol, names) in [
        (
            Protocol::Http1,
            [
                "axum_h1 bare",
                "axum_h1_around palisade",
                "axum_h1_around peers",
                "axum_h1_layer bare",
                "axum_h1_layer palisade",
            ],
        ),
        (
            Protocol::Http2,
            [
                "axum_h2 bare",
                "axum_h2_around palisade",
                "axum_h2_around peers",
                "axum_h2_layer bare",
                "axum_h2_layer palisade",
            ],
        ),
    ] {
        all.add(names[0], move || axum_run(protocol, Identified(router())));
        all.add(names[1], move || {
            axum_run(protocol, Identified(around(router())))
        });
        all.add(names[2], move || {
            axum_run(protocol, Identified(peers_around(router())))
        });
        all.add(names[3], move || {
            axum_run(protocol, Identified(noop(router())))
        });
        all.add(names[4], move || {
            axum_run(protocol, Identified(by_layer(router())))
        });
    }
}

fn on_connections(all: &mut ScenarioList) {
    for (names, call, has_data) in [
        (
            ["read bare", "read palisade"],
            read as connections::Call,
            true,
        ),
        (["read_pending bare", "read_pending palisade"], read, false),
        (["write bare", "write palisade"], write, true),
        (["flush bare", "flush palisade"], flush, true),
    ] {
        all.add(names[0], move || {
            repeat_call(StubTransport { has_data }, call)
        });
        all.add(names[1], move || {
            repeat_call(guarded(&ConnGuard::default(), 0, has_data), call)
        });
    }
    all.add("sweep none", || sweeps(0));
    all.add("sweep many", || sweeps(SWEPT_CONNECTIONS));
    for (name, server, protocol) in [
        ("serve_h1 bare", "axum", Protocol::Http1),
        ("serve_h1 bare-with-peer", "axum with peer", Protocol::Http1),
        ("serve_h1 guarded", "guarded", Protocol::Http1),
        ("serve_h1 palisade", "palisade", Protocol::Http1),
        ("serve_h2 bare", "axum", Protocol::Http2),
        ("serve_h2 bare-with-peer", "axum with peer", Protocol::Http2),
        ("serve_h2 guarded", "guarded", Protocol::Http2),
        ("serve_h2 palisade", "palisade", Protocol::Http2),
    ] {
        all.add(name, move || serve_run(server, protocol));
    }
}

fn serve_run(server: &str, protocol: Protocol) -> Run {
    let runtime = runtime();
    let server = Server::from_name(server).expect("the server exists");
    let router = Router::new().route("/", get(async || "ok"));
    Box::new(move |requests| serve(&runtime, &server, router.clone(), protocol, requests))
}

fn hyper_run<S, B>(service: S) -> Run
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    let runtime = runtime();
    Box::new(move |requests| hyper_http1(&runtime, service.clone(), requests))
}

fn axum_run<S, B>(protocol: Protocol, service: S) -> Run
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError> + Send + Sync,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let runtime = runtime();
    Box::new(move |requests| hyper_util_auto(&runtime, service.clone(), protocol, requests))
}
