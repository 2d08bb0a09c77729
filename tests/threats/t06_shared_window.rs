//! T06: an upload is not charged for the time in which other requests fill the flow-control window
//! of its HTTP/2 connection.

use axum::{Router, body::Body, routing::post};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use palisade::{Stack, conn::ConnGuard, slow_body::Pace};
use palisade_core::{Gauge, Guard, Reason};
use palisade_testkit::{
    Journal,
    bodies::Pieces,
    clients::{self, PATIENCE, wait_until},
    guarded::{ServerKind, all_gone},
};
use std::{net::Ipv4Addr, time::Duration};
use tokio::time::{sleep, timeout};

const GAP: Duration = Duration::from_secs(1);
/// The time before a handler reads its upload.
const READ_DELAY: Duration = Duration::from_millis(2_500);
const MIB: u64 = 1 << 20;

async fn length(body: Body) -> String {
    body.collect()
        .await
        .map_or(0, |body| body.to_bytes().len())
        .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_not_charged_while_other_requests_fill_the_connection_window() {
    for server in ServerKind::ALL {
        let (journal, guard) = (Journal::default(), ConnGuard::default());
        let pace = Pace::builder().gap(GAP).rate(None);
        let stack = Stack::edge()
            .max_body(4 * MIB)
            .pace(pace)
            .metrics(journal.clone());
        // The handler works first and reads its upload afterwards.
        let late = async |body: Body| {
            sleep(READ_DELAY).await;
            length(body).await
        };
        let app = Router::new()
            .route("/late", post(late))
            .route("/now", post(length));
        let served = server
            .serve(&guard, app.layer(stack.build().unwrap()))
            .await;
        let mut client = clients::http2::<Pieces>(Ipv4Addr::LOCALHOST, served.addr)
            .await
            .unwrap();
        let upload = |path: &str, pieces: Pieces| {
            Request::post(format!("http://{}{path}", served.addr))
                .body(pieces)
                .unwrap()
        };
        let late: Vec<_> = (0..3)
            .map(|_| client.send_request(upload("/late", Pieces::new(16, 1 << 16))))
            .map(tokio::spawn)
            .collect();
        let working = || journal.gauge(Guard::ConcurrencyLimit, Gauge::Working) == Some(3);
        wait_until("three handlers are at work", working).await;
        let now = client.send_request(upload("/now", Pieces::new(8, 1 << 14)));
        let now = timeout(PATIENCE, now).await.unwrap().unwrap().status();
        assert_eq!(now, StatusCode::OK, "{server}");
        for one in late {
            assert_eq!(
                one.await.unwrap().unwrap().status(),
                StatusCode::OK,
                "{server}"
            );
        }
        assert_eq!(journal.refused(), [], "{server}");

        // A silent client is charged as usual, also beside another upload that its handler waits
        // for.
        let silent = Pieces::new(1, 1).every(4 * GAP);
        let other = Pieces::new(1, 1).every(4 * GAP);
        let silent = client.send_request(upload("/now", silent));
        let other = client.send_request(upload("/now", other));
        let (silent, other) = tokio::join!(silent, other);
        assert_eq!(
            silent.unwrap().status(),
            StatusCode::REQUEST_TIMEOUT,
            "{server}"
        );
        assert_eq!(
            other.unwrap().status(),
            StatusCode::REQUEST_TIMEOUT,
            "{server}"
        );
        assert_eq!(
            journal.refused(),
            [(Guard::SlowBody, Reason::Gap); 2],
            "{server}"
        );
        drop(client);
        all_gone(&guard).await;
    }
}
