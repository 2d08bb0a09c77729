//! Uploads that are refused unread: whoever writes all of it before he looks at the answer sees
//! that answer, because the connection lingers when it is closed. And uploads that are read on
//! after their answer: they are no slow head.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use axum::{Router, body::Body, http::StatusCode, routing::post};
use futures_util::StreamExt;
use guarded::{GET, Neighbour, SECOND, SLACK, all_gone, app, cut, serve, served};
use palisade::conn::ConnGuard;
use palisade_core::Reason;
use palisade_testkit::{
    Journal,
    clients::{RawClient, until},
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use tokio::{
    io::AsyncReadExt,
    task::JoinSet,
    time::{Instant, sleep},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_uploads_see_their_answer() {
    const UPLOADS: usize = 200;
    const AT_ONCE: usize = 10;
    let guard = ConnGuard::builder().no_accept_rate().build().unwrap();
    let refuse = || async { StatusCode::PAYLOAD_TOO_LARGE };
    let server = serve(&guard, Router::new().route("/", post(refuse))).await;
    let addr = server.addr;
    let (mut owed, mut seen) = (0, 0);
    for _ in 0..UPLOADS / AT_ONCE {
        let mut uploads = JoinSet::new();
        for _ in 0..AT_ONCE {
            uploads.spawn(async move {
                let mut client = RawClient::connect(addr).await.unwrap();
                let started = Instant::now();
                let head = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10000000\r\n\r\n";
                client.send(head).await.unwrap();
                // hyper's client and others do not look at the answer once writing has failed.
                let is_written = client.send(vec![b'x'; 10_000_000]).await.is_ok();
                // It lingers for a second; who needs longer is owed nothing.
                let is_owed = started.elapsed() < SECOND;
                let mut answer = Vec::new();
                let _ = client.stream.read_to_end(&mut answer).await;
                let is_seen = is_written && answer.starts_with(b"HTTP/1.1 413");
                (is_owed, is_owed && is_seen)
            });
        }
        for (is_owed, has_seen) in uploads.join_all().await {
            owed += usize::from(is_owed);
            seen += usize::from(has_seen);
        }
    }
    assert!(
        owed >= UPLOADS / 2,
        "{owed} of {UPLOADS} were quick enough to tell"
    );
    assert!(seen * 200 >= owed * 199, "{seen} of {owed}");
    all_gone(&guard).await;
}

/// What a handler of [`reads_on`] got of the body after it had answered.
type Taken = Arc<AtomicUsize>;

/// Answers at once and reads on in a task of its own.
fn reads_on(taken: &Taken) -> Router {
    let taken = Arc::clone(taken);
    let handler = move |body: Body| async move {
        tokio::spawn(async move {
            let mut pieces = body.into_data_stream();
            while let Some(Ok(piece)) = pieces.next().await {
                taken.fetch_add(piece.len(), SeqCst);
            }
        });
        "taken"
    };
    app().route("/later", post(handler))
}

fn impatient(journal: &Journal) -> ConnGuard {
    let builder = ConnGuard::builder().head(SECOND / 2).idle(SECOND / 2);
    builder.metrics(journal.clone()).build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_read_on_after_its_answer_is_not_cut() {
    let (journal, taken) = (Journal::default(), Taken::default());
    let guard = impatient(&journal);
    let server = serve(&guard, reads_on(&taken)).await;
    let neighbour = Neighbour::of(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let head = "POST /later HTTP/1.1\r\nhost: test\r\ncontent-length: 30000\r\n\r\n";
    client.send(head).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    client.body(5).await.unwrap();
    // For four times as long as a head may take or nothing may happen.
    for _ in 0..30 {
        client.send([b'x'; 1000]).await.unwrap();
        sleep(SECOND / 15).await;
    }
    until("all of it is taken", || taken.load(SeqCst) == 30_000).await;
    // What follows it is a head again, and has its time.
    served(&mut client).await;
    sleep(SECOND / 4).await;
    let begun = Instant::now();
    client.send("GET / HT").await.unwrap();
    cut(&mut client).await;
    assert!(
        begun.elapsed() < SECOND / 2 + SLACK,
        "{:?}",
        begun.elapsed()
    );
    neighbour.was_served().await;
    drop(client);
    all_gone(&guard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_in_chunks_buys_a_dripped_head_no_more_than_its_time() {
    let (journal, taken) = (Journal::default(), Taken::default());
    // The idle time of a connection is far longer than that of a head.
    let guard = ConnGuard::builder()
        .head(SECOND / 2)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let server = serve(&guard, reads_on(&taken)).await;
    let neighbour = Neighbour::of(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let chunked =
        "POST /later HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    client.send(chunked).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    client.body(5).await.unwrap();
    // The guard has looked at the idle connection by then: what comes is a head.
    sleep(SECOND / 2).await;
    let began = Instant::now();
    for byte in GET.bytes() {
        if client.send([byte]).await.is_err() {
            break;
        }
        sleep(SECOND / 10).await;
    }
    assert!(
        began.elapsed() < SECOND / 2 + 2 * SLACK,
        "{:?}",
        began.elapsed()
    );
    assert_eq!(client.head().await.unwrap().status, 408);
    drop(client);
    neighbour.was_served().await;
    all_gone(&guard).await;
    assert!(journal.closed().contains(&Some(Reason::SlowHead)));
}
