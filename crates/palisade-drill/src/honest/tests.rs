use super::*;
use crate::sample::{Outcome, Span};
use ::http::Request;
use bytes::Bytes;
use http_body_util::Full;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::{net::TcpListener, time::timeout};

const PATIENCE: Duration = Duration::from_secs(20);

fn route(kind: Kind) -> Route {
    let request = Request::get("/").header("host", "a");
    Route {
        kind,
        request: request.body(Full::new(Bytes::new())).unwrap(),
        status: 200,
        body: Some(Bytes::from_static(b"hello")),
    }
}

#[tokio::test]
async fn the_log_has_every_request_that_the_server_counts() {
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::open(&[listener.local_addr().unwrap()])
        .await
        .unwrap();
    let hello = axum::routing::get(async move || {
        counted.fetch_add(1, Relaxed);
        "hello"
    });
    let app = axum::Router::new().route("/", hello);
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let routes = vec![route(Kind::NewConnection), route(Kind::KeepAlive)];
    let clients = HonestClients::start(&target, routes, Vec::new(), Instant::now()).unwrap();
    let wait = async {
        while count.load(Relaxed) < 40 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap();
    let span = Span {
        from: Duration::ZERO,
        to: clients.log().now(),
    };
    let counted = count.load(Relaxed);
    let samples: Vec<_> = clients
        .kinds()
        .iter()
        .flat_map(|kind| clients.log().samples(*kind, span))
        .collect();
    let served = samples
        .iter()
        .filter(|sample| sample.outcome == Outcome::Served)
        .count();
    // A request of each kind may be under way.
    assert!(
        (counted - 2..=counted).contains(&(served as u64)),
        "{served} of {counted}"
    );
    drop(clients);
    assert_eq!(target.sockets().0, 0);
    server.abort();
}

#[tokio::test]
async fn a_client_gives_up_its_request_when_it_is_told_to_and_begins_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::open(&[listener.local_addr().unwrap()])
        .await
        .unwrap();
    let routes = vec![route(Kind::NewConnection)];
    let clients = HonestClients::start(&target, routes, Vec::new(), Instant::now()).unwrap();
    let first = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    clients.retry();
    // The first connection is still open and unanswered.
    let _second = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let span = Span {
        from: Duration::ZERO,
        to: PATIENCE,
    };
    let samples = clients.log().samples(Kind::NewConnection, span);
    assert!(
        samples
            .iter()
            .all(|sample| sample.outcome == Outcome::Unfinished)
    );
    drop(first);
}
