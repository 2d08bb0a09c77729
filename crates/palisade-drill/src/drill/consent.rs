//! Targets that have to consent, on loopback: with a secret, those are asked as well.

use crate::{
    Drill, DrillError,
    consent::{self, Clock, ConsentLine, ConsentService, Secret},
    drill::tests::TURNS,
    options::Options,
    server::Subject,
    target::{Source, Target},
};
use axum::{Router, routing::get};
use std::{
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a server has seen.
#[derive(Clone, Debug, Default)]
struct Seen {
    open: Arc<AtomicU64>,
    ever: Arc<AtomicU64>,
}

/// Serves `app`, and counts connections.
async fn server(app: Router) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let seen = Seen::default();
    let counted = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (app, seen) = (app.clone(), counted.clone());
            seen.open.fetch_add(1, Relaxed);
            seen.ever.fetch_add(1, Relaxed);
            tokio::spawn(async move {
                let service = hyper_util::service::TowerToHyperService::new(app);
                let io = hyper_util::rt::TokioIo::new(stream);
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(io, service).await;
                seen.open.fetch_sub(1, Relaxed);
            });
        }
    });
    (addr, seen)
}

/// Returns the app of a server that publishes the line.
fn app(line: ConsentLine) -> Router {
    let service = ConsentService::new(line);
    let app = Router::new().route("/", get(async || "hello"));
    app.route_service(consent::PATH, service)
}

fn line(secret: &Secret, seconds: u64) -> ConsentLine {
    ConsentLine::new(secret, Duration::from_secs(seconds)).unwrap()
}

/// Waits until the server has seen something.
async fn until(is_seen: impl Fn() -> bool) {
    let wait = async {
        while !is_seen() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap();
}

async fn refusal(addr: SocketAddr, secret: &Secret) -> String {
    let drill = Drill::with_consent(addr, secret.clone()).unwrap();
    let run = drill.quick().only("silent").run();
    let error = timeout(PATIENCE, run).await.unwrap().unwrap_err();
    assert!(matches!(error, DrillError::Refused { .. }), "{error:?}");
    error.to_string()
}

#[tokio::test]
async fn without_consent_the_question_is_the_only_socket() {
    let (secret, other) = (Secret::random().unwrap(), Secret::random().unwrap());
    let bare = Router::new().route("/", get(async || "hello"));
    let moved = bare.clone().route(
        consent::PATH,
        get(async || axum::response::Redirect::permanent("/elsewhere")),
    );
    let publishing = |text: String| bare.clone().route(consent::PATH, get(text));
    let until = |end: &str| {
        let line = line(&secret, 60).to_string();
        publishing(format!("{}{end}", &line[..line.len() - 20]))
    };
    let behind_proxy = get(([("via", "1.1 proxy")], line(&secret, 60).to_string()));
    for (app, expected) in [
        (bare.clone(), "answered 404: publish the line"),
        (
            until("2020-01-01T00:00:00Z"),
            "its consent ended at 2020-01-01T00:00:00Z",
        ),
        (until("2999-01-01T00:00:00Z"), "more than 24 hours ahead"),
        (publishing("x".repeat(1 << 20)), "longer than a line"),
        (publishing("hello".to_owned()), "no line of consent"),
        (
            bare.clone().route(consent::PATH, behind_proxy),
            "a proxy answers for it (via: 1.1 proxy)",
        ),
        (moved, "redirected to /elsewhere"),
        (app(line(&other, 60)), "holder of another secret"),
    ] {
        let (addr, seen) = server(app).await;
        let text = refusal(addr, &secret).await;
        assert!(text.contains(expected), "{text}");
        assert!(
            text.starts_with(&format!("{addr} is not attacked: ")),
            "{text}"
        );
        assert_eq!(seen.ever.load(Relaxed), 1, "{text}");
    }
}

#[tokio::test]
async fn every_address_of_a_name_has_to_consent() {
    let secret = Secret::random().unwrap();
    let (first, seen) = server(app(line(&secret, 60))).await;
    let (second, other) = server(Router::new()).await;
    let drill = Drill::with_consent(&[first, second][..], secret).unwrap();
    let error = timeout(PATIENCE, drill.run()).await.unwrap().unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("{second} is not attacked")),
        "{error}"
    );
    assert_eq!((seen.ever.load(Relaxed), other.ever.load(Relaxed)), (1, 1));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn with_consent_on_loopback_the_owner_of_the_listener_is_checked_first() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let text = refusal(addr, &Secret::random().unwrap()).await;
    assert!(text.contains("nothing listens there"), "{text}");
}

#[tokio::test]
async fn no_socket_is_made_after_the_end_of_the_consent() {
    let secret = Secret::random().unwrap();
    let (addr, seen) = server(app(line(&secret, 60))).await;
    // The clock of the wall, which this test sets.
    let now = Clock::System.now().as_secs();
    let wall = Arc::new(AtomicU64::new(now));
    let clock = Clock::Set(wall.clone());
    let target = Target::consenting(&[addr], &secret, &clock).await.unwrap();
    assert_eq!(target.sockets().1, 1);
    target.connect(Source::Honest(0), None).await.unwrap();
    assert_eq!(target.sockets().1, 2);
    wall.store(now + 61, Relaxed);
    let error = target.connect(Source::Honest(0), None).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(
        error.to_string().contains("its consent has ended"),
        "{error}"
    );
    assert!(target.check().await.is_err());
    let ended = timeout(PATIENCE, target.consent_ended()).await.unwrap();
    assert!(
        matches!(ended, DrillError::ConsentEnded { .. }),
        "{ended:?}"
    );
    assert_eq!(target.sockets(), (0, 2));
    until(|| seen.ever.load(Relaxed) >= 2 && seen.open.load(Relaxed) == 0).await;
    assert_eq!(seen.ever.load(Relaxed), 2);
}

#[tokio::test]
async fn a_drill_ends_with_the_consent_and_closes_every_connection() {
    let _turn = TURNS.acquire().await.unwrap();
    let secret = Secret::random().unwrap();
    // Its clients return after a minute, so that the drill itself takes longer than this test.
    let (addr, seen) = server(app(line(&secret, 3))).await;
    let drill = Drill::with_consent(addr, secret).unwrap();
    let run = drill.only("returning-client").run();
    let error = timeout(PATIENCE, run).await.unwrap().unwrap_err();
    assert!(
        matches!(error, DrillError::ConsentEnded { .. }),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(
        text.contains("its consent has ended: publish a new line"),
        "{text}"
    );
    // It has begun before that.
    assert!(seen.ever.load(Relaxed) > 1, "{seen:?}");
    until(|| seen.open.load(Relaxed) == 0).await;
}

#[tokio::test]
async fn a_server_on_axum_that_consents_is_drilled() {
    let _turn = TURNS.acquire().await.unwrap();
    let secret = Secret::random().unwrap();
    let (addr, _) = server(app(line(&secret, 60))).await;
    let drill = Drill::with_consent(addr, secret).unwrap();
    let report = drill.quick().only("churn").run().await.unwrap();
    assert_eq!(report.attacks.len(), 1, "{report}");
}

/// Runs attacks, takes the line away in the middle of the first, and moves the clock forward, if
/// that is not for zero seconds.
async fn taken_away(attacks: &[&str], forward: Duration) -> DrillError {
    let secret = Secret::random().unwrap();
    let published = Arc::new(Mutex::new(line(&secret, 600).to_string()));
    let page = published.clone();
    let page = get(async move || page.lock().unwrap().clone());
    let app = Router::new().route("/", get(async || "hello"));
    let (addr, seen) = server(app.route(consent::PATH, page)).await;
    let options = Options {
        only: attacks.iter().map(ToString::to_string).collect(),
        quick: true,
        ..Options::default()
    };
    let subject = Subject::Consenting(vec![addr], secret);
    // In this runtime, the clock of which the test moves.
    let mut run = pin!(crate::run::run(subject, options));
    let withdrawal = async {
        until(|| seen.ever.load(Relaxed) > 100).await;
        published.lock().unwrap().clear();
        if !forward.is_zero() {
            tokio::time::pause();
            tokio::time::advance(forward).await;
            tokio::time::resume();
        }
    };
    tokio::select! {
        report = &mut run => panic!("it ended: {report:?}"),
        () = withdrawal => {}
    }
    let error = timeout(PATIENCE, run).await.unwrap().unwrap_err();
    until(|| seen.open.load(Relaxed) == 0).await;
    error
}

#[tokio::test]
async fn a_drill_ends_when_the_line_is_taken_away() {
    let _turn = TURNS.acquire().await.unwrap();
    let half_a_minute = Duration::from_secs(30);
    let error = taken_away(&["silent"], half_a_minute).await;
    let text = error.to_string();
    assert!(matches!(error, DrillError::ConsentEnded { .. }), "{text}");
    assert!(text.contains("no line of consent"), "{text}");
}

#[tokio::test]
async fn a_line_that_is_found_missing_before_an_attack_ends_the_drill_as_well() {
    let _turn = TURNS.acquire().await.unwrap();
    // The first attack takes three seconds, and nothing is asked beside it for half a minute.
    let error = taken_away(&["churn", "ambiguous-length"], Duration::ZERO).await;
    let text = error.to_string();
    assert!(matches!(error, DrillError::ConsentEnded { .. }), "{text}");
    assert!(text.contains("no line of consent"), "{text}");
}

#[cfg(feature = "rustls")]
#[tokio::test]
async fn consent_and_tls_are_refused_together() {
    let drill = Drill::with_consent("192.0.2.1:443", Secret::random().unwrap()).unwrap();
    let error = drill.tls("localhost").run().await.unwrap_err().to_string();
    assert!(error.contains("tls is localhost"), "{error}");
}
