//! Drills of reference servers, on real sockets. One at a time: each measures time.

use super::*;
use crate::{Grade, Report, Verdict};
use axum::{Router, routing::get};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::sync::Arc;
use tokio::sync::{Mutex, Semaphore};

/// Drills that run at once would disturb each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

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
    report
        .attack(name)
        .unwrap_or_else(|| panic!("{name}: {report}"))
        .verdict
}

#[tokio::test]
async fn without_attackers_every_verdict_is_held() {
    let _one = ONE_AT_A_TIME.lock().await;
    let drill = Drill::serving(|listener| async { axum::serve(listener, app()).await });
    let drill = drill.rehearse().quick().only("silent").only("churn");
    let report = drill.run().await.unwrap();
    assert_eq!(report.attacks.len(), 2, "{report}");
    for attack in &report.attacks {
        // A busy machine says nothing, and never harm.
        let expected = [Verdict::Held, Verdict::Inconclusive];
        assert!(expected.contains(&attack.verdict), "{report}");
        assert_eq!(attack.attackers.opened, 0);
    }
}

#[tokio::test]
async fn a_bare_server_of_few_places_falls_to_connections_that_stay() {
    let _one = ONE_AT_A_TIME.lock().await;
    let drill = Drill::serving(|listener| bare(listener, app(), 100));
    let drill = drill
        .places(100)
        .quick()
        .only("silent")
        .only("dripped-head")
        .only("flood-from-one-address")
        .only("rapid-reset");
    let report = drill.run().await.unwrap();
    println!("{report}");
    let silent = verdict(&report, "silent");
    assert!(
        [Verdict::Harmed, Verdict::Down].contains(&silent),
        "{report}"
    );
    assert!(report.grade() <= Some(Grade::C));
}
