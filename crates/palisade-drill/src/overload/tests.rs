//! Loads on real sockets.

use super::*;
use axum::{Router, http::StatusCode, routing::get};
use std::sync::Arc;
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};

/// Serves 100 requests a second, one at a time. Refuses those that find more than `queue` before
/// them.
async fn server(queue: usize) -> Target {
    let (queue, worker) = (Arc::new(Semaphore::new(queue)), Arc::new(Semaphore::new(1)));
    let answer = async move || {
        let Ok(_place) = queue.try_acquire() else {
            return StatusCode::SERVICE_UNAVAILABLE;
        };
        let _turn = worker.acquire().await.unwrap();
        sleep(Duration::from_millis(9)).await;
        StatusCode::NO_CONTENT
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/", get(answer))).await });
    Target::open(&[addr]).await.unwrap()
}

fn load(target: Target) -> Load {
    Load::new(
        target,
        0,
        Bytes::from_static(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
        1_000,
    )
}

#[tokio::test]
async fn a_server_that_refuses_at_once_answers_its_capacity_in_time() {
    let load = load(server(8).await);
    let closed = load.closed(4, Duration::from_millis(500)).await;
    // 50 at most, on a machine that is not busy.
    assert!(
        (10..=60).contains(&closed.served) && closed.refused == 0,
        "{closed:?}"
    );
    let open = load
        .open(200.0, Duration::ZERO, Duration::from_secs(1))
        .await;
    assert_eq!(open.served + open.refused, 200, "{open:?}");
    assert!(
        open.refused >= 80 && open.refused_late * 10 <= open.refused,
        "{open:?}"
    );
    assert!(open.in_time >= 20, "{open:?}");
}

#[tokio::test]
async fn a_server_that_lets_all_wait_answers_late() {
    let load = load(server(10_000).await);
    // The last of them wait for 4 seconds, and give up after 2.
    let open = load
        .open(400.0, Duration::ZERO, Duration::from_secs(1))
        .await;
    assert_eq!(open.served + open.refused, 400, "{open:?}");
    assert!(open.refused_late >= 50 && open.in_time < 200, "{open:?}");
}
