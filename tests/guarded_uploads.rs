//! Uploads that are refused unread: whoever writes all of it before he looks at the answer sees
//! that answer, because the connection lingers when it is closed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use axum::{Router, http::StatusCode, routing::post};
use guarded::{all_gone, serve};
use palisade::conn::ConnGuard;
use palisade_testkit::clients::RawClient;
use tokio::{io::AsyncReadExt, task::JoinSet};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_uploads_see_their_answer() {
    const UPLOADS: usize = 200;
    let guard = ConnGuard::builder().no_accept_rate().build().unwrap();
    let refuse = || async { StatusCode::PAYLOAD_TOO_LARGE };
    let server = serve(&guard, Router::new().route("/", post(refuse))).await;
    let addr = server.addr;
    let mut seen = 0;
    for _ in 0..UPLOADS / 20 {
        let mut uploads = JoinSet::new();
        for _ in 0..20 {
            uploads.spawn(async move {
                let mut client = RawClient::connect(addr).await.unwrap();
                let head = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10000000\r\n\r\n";
                client.send(head).await.unwrap();
                // curl and others do not look before all is written, or writing fails.
                let _ = client.send(vec![b'x'; 10_000_000]).await;
                let mut answer = Vec::new();
                let _ = client.stream.read_to_end(&mut answer).await;
                answer.starts_with(b"HTTP/1.1 413")
            });
        }
        seen += uploads.join_all().await.into_iter().filter(|seen| *seen).count();
    }
    assert!(seen * 200 >= UPLOADS * 199, "{seen} of {UPLOADS}");
    all_gone(&guard).await;
}
