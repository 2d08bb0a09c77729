//! Drills of reference servers, on real sockets. Few at a time: each measures time.

use super::*;
use crate::{Grade, Report, Verdict};
use axum::{
    Router,
    extract::{ConnectInfo, Request},
    http::StatusCode,
    middleware::{self, Next},
    response::IntoResponse,
    routing::get,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Mutex, Semaphore},
    time::{Instant, timeout},
};

/// Drills wait for most of their time, and two at once do not disturb each other.
pub(crate) static TURNS: Semaphore = Semaphore::const_new(MAX_DRILLS_AT_ONCE as usize);
pub(crate) const MAX_DRILLS_AT_ONCE: u32 = 2;

/// How often a drill is repeated that says nothing.
const MAX_DRILLS: usize = 3;

fn app() -> Router {
    Router::new().route("/", get(async || "hello"))
}

/// Serves `app` on hyper with its defaults, on `places` connections at once. A connection without a
/// place waits in the kernel.
async fn bare(listener: TcpListener, app: Router, places: usize) {
    let places = Arc::new(Semaphore::new(places));
    loop {
        let place = places.clone().acquire_owned().await.unwrap();
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let service = TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

fn verdict(report: &Report, name: &str) -> Verdict {
    let attack = report.attack(name);
    attack.unwrap_or_else(|| panic!("{name}: {report}")).verdict
}

/// A busy machine says nothing, and nothing else than what is expected.
#[track_caller]
fn expect(report: &Report, name: &str, expected: Verdict) {
    let found = verdict(report, name);
    assert!(
        [expected, Verdict::Inconclusive].contains(&found),
        "{report}"
    );
}

/// Drills until there is a verdict on the attack `name`. `None` if the machine was too busy for one
/// each time.
pub(crate) async fn until_judged(name: &str, drill: impl Fn() -> Drill) -> Option<Report> {
    for _ in 0..MAX_DRILLS {
        let report = drill().quick().only(name).run().await.unwrap();
        if verdict(&report, name) != Verdict::Inconclusive {
            return Some(report);
        }
        println!("{report}");
    }
    None
}

#[tokio::test]
async fn without_attackers_every_verdict_is_held() {
    let _turn = TURNS.acquire().await;
    let drill = Drill::serving(async |listener| axum::serve(listener, app()).await);
    let drill = drill.rehearse().quick().only("silent").only("churn");
    let report = drill.run().await.unwrap();
    assert_eq!(report.attacks.len(), 2, "{report}");
    for attack in &report.attacks {
        expect(&report, &attack.name, Verdict::Held);
        assert_eq!(attack.attackers.opened, 0);
    }
}

#[tokio::test]
async fn a_bare_server_of_few_places_falls_to_connections_that_stay() {
    let _turn = TURNS.acquire().await;
    let drill = || Drill::serving(|listener| bare(listener, app(), 100)).places(100);
    let Some(report) = until_judged("dripped-head", drill).await else {
        return;
    };
    // Clients with a connection are served, newcomers are not: those are most of the kinds here.
    let attack = report.attack("dripped-head").unwrap();
    assert_eq!(attack.verdict, Verdict::Down, "{report}");
    assert!(attack.attackers.alive > 100, "{report}");
    assert_eq!(attack.honest[0].during.served, 0, "{report}");
    let series = attack.series.as_ref().unwrap();
    let served = |from: f64, to: f64| {
        let moments = series.moments.iter();
        let within = moments.filter(move |moment| from < moment.seconds && moment.seconds <= to);
        within.filter_map(|moment| moment.served_share)
    };
    let (from, to) = (series.attack_from, series.attack_to);
    assert!(served(0.0, from).all(|share| share > 0.9), "{series:?}");
    assert!(served(from, to).any(|share| share < 0.6), "{series:?}");
    assert!(served(to, f64::MAX).any(|share| share > 0.6), "{series:?}");
    assert!(series.moments.iter().any(|moment| moment.attackers > 100));
    assert_eq!(report.grade(), Some(Grade::F), "{report}");
}

#[tokio::test]
async fn a_bare_server_of_many_places_keeps_what_stays_and_holds_against_resets() {
    let _turn = TURNS.acquire().await;
    let drill = || Drill::serving(|listener| bare(listener, app(), 10_000));
    // Its h2 ends a connection with too many resets.
    for (name, expected) in [("silent", Verdict::Kept), ("rapid-reset", Verdict::Held)] {
        let Some(report) = until_judged(name, drill).await else {
            continue;
        };
        assert_eq!(verdict(&report, name), expected, "{report}");
        let is_named = report.to_string().contains("perhaps patience");
        assert_eq!(is_named, expected == Verdict::Kept, "{report}");
    }
}

#[tokio::test]
async fn what_a_target_lacks_is_skipped_by_name() {
    let _turn = TURNS.acquire().await;
    let drill = Drill::serving(async |listener| {
        let app = app();
        loop {
            let Ok((stream, _)) = TcpListener::accept(&listener).await else {
                continue;
            };
            let service = TowerToHyperService::new(app.clone());
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let names = [
        "slow-body",
        "slow-reader",
        "silent-handshake",
        "rapid-reset",
    ];
    let drill = names.iter().fold(drill, |drill, name| drill.only(*name));
    let report = drill.quick().run().await.unwrap();
    let skipped: Vec<_> = report.skipped.iter().map(|skipped| &skipped.name).collect();
    assert_eq!(skipped, names);
    assert!(report.attacks.is_empty() && report.grade().is_none());
    assert!(
        report
            .to_string()
            .contains("slow-body: it needs the path of a POST: set `post`")
    );
}

#[tokio::test]
async fn a_dropped_drill_leaves_no_connection_and_no_server() {
    let _turn = TURNS.acquire().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let open = Arc::new(AtomicU64::new(0));
    let counted = open.clone();
    let server = tokio::spawn(async move {
        let app = app();
        while let Ok((stream, _)) = listener.accept().await {
            let (service, open) = (TowerToHyperService::new(app.clone()), counted.clone());
            open.fetch_add(1, Relaxed);
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
                open.fetch_sub(1, Relaxed);
            });
        }
    });
    let drill = Drill::against(addr).unwrap().quick().only("silent");
    let running = async {
        while open.load(Relaxed) < 300 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        report = drill.run() => panic!("it ended: {report:?}"),
        () = running => {}
    }
    let closed = async {
        while open.load(Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(Duration::from_secs(20), closed).await.is_ok());
    server.abort();
}

#[tokio::test]
async fn one_hiccup_of_the_server_is_no_harm() {
    let _turn = TURNS.acquire().await;
    let drill = Drill::serving(async |listener| {
        let (requests, turn) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(())));
        let hiccup = async move || {
            let _turn = turn.lock().await;
            // In the middle of the first round: 20 requests come a second.
            if requests.fetch_add(1, Relaxed) == 50 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            "hello"
        };
        axum::serve(listener, Router::new().route("/", get(hiccup))).await
    });
    let report = drill.rehearse().quick().only("silent").run().await.unwrap();
    let attack = report.attack("silent").unwrap();
    assert_eq!(attack.verdict, Verdict::Inconclusive, "{report}");
    // The second round may say nothing on a machine that is busy.
    let is_named = attack.reason.contains("in one of two rounds") || attack.lateness_ms > 50.0;
    assert!(is_named, "{report}");
}

#[tokio::test]
async fn an_ipv6_target_has_one_address_for_both_sides_and_the_report_says_so() {
    let _turn = TURNS.acquire().await;
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        return; // This system has no IPv6.
    };
    let drill = Drill::against(listener.local_addr().unwrap()).unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app()).await });
    let report = drill.quick().only("churn").run().await.unwrap();
    server.abort();
    expect(&report, "churn", Verdict::Held);
    assert!(report.target.starts_with("[::1]:"), "{report}");
    assert!(
        report.cautions[0].contains("have the same address"),
        "{report}"
    );
}

/// Serves the requests that `allows`, which knows their address, and refuses all others.
async fn limited(
    listener: TcpListener,
    allows: impl Fn(&Request, IpAddr) -> bool + Clone + Send + Sync + 'static,
) {
    let limit = move |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request, next: Next| {
        let is_allowed = allows(&request, peer.ip());
        async move {
            if is_allowed {
                next.run(request).await
            } else {
                StatusCode::TOO_MANY_REQUESTS.into_response()
            }
        }
    };
    let app = app().layer(middleware::from_fn(limit));
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let _ = axum::serve(listener, app).await;
}

/// Serves a request a second of each address.
async fn over_protective(listener: TcpListener) {
    let served = Arc::new(std::sync::Mutex::new(HashMap::<IpAddr, Instant>::new()));
    let allows = move |_: &Request, peer| {
        let now = Instant::now();
        let mut served = served.lock().unwrap();
        let last = served.get(&peer);
        let is_allowed = last.is_none_or(|last| now > *last + Duration::from_secs(1));
        if is_allowed {
            served.insert(peer, now);
        }
        is_allowed
    };
    limited(listener, allows).await;
}

#[tokio::test]
async fn a_server_that_refuses_what_browsers_do_gets_no_better_than_c() {
    let _turn = TURNS.acquire().await;
    let drill = || Drill::serving(over_protective);
    let Some(report) = until_judged("forty-assets", drill).await else {
        return;
    };
    assert!(report.grade() <= Some(Grade::C), "{report}");
    let attackers = &report.attacks[0].attackers;
    assert_eq!(attackers.served + attackers.refused, 40, "{report}");
}

/// Serves 50 requests a second of each client, by the name that it gives itself.
async fn credulous(listener: TcpListener) {
    let counts = HashMap::<String, (Instant, u32)>::new();
    let counts = Arc::new(std::sync::Mutex::new(counts));
    let allows = move |request: &Request, peer: IpAddr| {
        let name = request.headers().get("x-forwarded-for");
        let name = name.and_then(|name| name.to_str().ok()).map(str::to_owned);
        let name = name.unwrap_or_else(|| peer.to_string());
        let mut counts = counts.lock().unwrap();
        let (since, count) = counts.entry(name).or_insert((Instant::now(), 0));
        if since.elapsed() > Duration::from_secs(1) {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
        *count <= 50
    };
    limited(listener, allows).await;
}

#[tokio::test]
async fn a_limit_that_believes_what_clients_call_themselves_is_passed() {
    let _turn = TURNS.acquire().await;
    let drill = || Drill::serving(credulous);
    let Some(report) = until_judged("invented-identities", drill).await else {
        return;
    };
    // A busy machine may add harm, which is the worse verdict.
    assert_ne!(report.attacks[0].verdict, Verdict::Held, "{report}");
    let attackers = &report.attacks[0].attackers;
    assert!(attackers.passed > 2 && attackers.refused > 100, "{report}");
}
