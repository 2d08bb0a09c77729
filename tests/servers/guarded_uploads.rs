//! Uploads that are refused unread: a client that writes the whole body before it reads the
//! response sees the response, because the connection lingers when it is closed. Also uploads that
//! are read after their response: they are not a slow head.

use axum::{Router, body::Body, http::StatusCode, routing::post};
use futures_util::StreamExt;
use palisade::conn::ConnGuard;
use palisade_core::Reason;
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{GET, SECOND, SLACK, ServerKind, all_gone, app, assert_served, read_until_closed},
    on_servers,
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

async fn clients_of_refused_uploads_see_the_response(kind: ServerKind) {
    const UPLOADS: usize = 200;
    const AT_ONCE: usize = 10;
    let guard = ConnGuard::builder().accept_rate(None).build().unwrap();
    let refuse = || async { StatusCode::PAYLOAD_TOO_LARGE };
    let server = kind
        .serve(&guard, Router::new().route("/", post(refuse)))
        .await;
    let addr = server.addr;
    let (mut in_time, mut seen) = (0, 0);
    for _ in 0..UPLOADS / AT_ONCE {
        let mut uploads = JoinSet::new();
        for _ in 0..AT_ONCE {
            uploads.spawn(async move {
                let mut client = RawClient::connect(addr).await.unwrap();
                let started = Instant::now();
                let head = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10000000\r\n\r\n";
                client.send(head).await.unwrap();
                // hyper's client and others do not read the response once a write has failed.
                let is_written = client.send(vec![b'x'; 10_000_000]).await.is_ok();
                // The connection lingers for a second. A slower upload may miss the response.
                let is_in_time = started.elapsed() < SECOND;
                let mut response = Vec::new();
                let _ = client.stream.read_to_end(&mut response).await;
                let is_seen = is_written && response.starts_with(b"HTTP/1.1 413");
                (is_in_time, is_in_time && is_seen)
            });
        }
        for (is_in_time, is_seen) in uploads.join_all().await {
            in_time += usize::from(is_in_time);
            seen += usize::from(is_seen);
        }
    }
    assert!(
        in_time >= UPLOADS / 2,
        "{in_time} of {UPLOADS} uploads took less than a second"
    );
    assert!(seen * 200 >= in_time * 199, "{seen} of {in_time}");
    all_gone(&guard).await;
}

/// The number of body bytes that the handler of [`responds_then_reads`] has read after its
/// response.
type ReadBytes = Arc<AtomicUsize>;

/// An app that responds at once and reads the body in a separate task.
fn responds_then_reads(read_bytes: &ReadBytes) -> Router {
    let read_bytes = Arc::clone(read_bytes);
    let handler = move |body: Body| async move {
        tokio::spawn(async move {
            let mut pieces = body.into_data_stream();
            while let Some(Ok(piece)) = pieces.next().await {
                read_bytes.fetch_add(piece.len(), SeqCst);
            }
        });
        "taken"
    };
    app().route("/later", post(handler))
}

/// A guard with header and idle timeouts of half a second.
fn half_second_guard(journal: &Journal) -> ConnGuard {
    let builder = ConnGuard::builder()
        .header_timeout(SECOND / 2)
        .idle_timeout(SECOND / 2);
    builder.metrics(journal.clone()).build().unwrap()
}

async fn an_upload_that_is_read_after_its_response_is_not_cut(kind: ServerKind) {
    let (journal, read_bytes) = (Journal::default(), ReadBytes::default());
    let guard = half_second_guard(&journal);
    let server = kind.serve(&guard, responds_then_reads(&read_bytes)).await;
    let neighbour = kind.neighbour(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let head = "POST /later HTTP/1.1\r\nhost: test\r\ncontent-length: 30000\r\n\r\n";
    client.send(head).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    client.body(5).await.unwrap();
    // Four times as long as the header timeout and the idle timeout.
    for _ in 0..30 {
        client.send([b'x'; 1000]).await.unwrap();
        sleep(SECOND / 15).await;
    }
    wait_until("the whole body is read", || {
        read_bytes.load(SeqCst) == 30_000
    })
    .await;
    // The next request is a head again, with its own timeout.
    assert_served(&mut client).await;
    sleep(SECOND / 4).await;
    let started = Instant::now();
    client.send("GET / HT").await.unwrap();
    read_until_closed(&mut client).await;
    assert!(
        started.elapsed() < SECOND / 2 + SLACK,
        "{:?}",
        started.elapsed()
    );
    neighbour.was_served().await;
    drop(client);
    all_gone(&guard).await;
}

async fn a_chunked_body_does_not_extend_the_timeout_of_the_next_head(kind: ServerKind) {
    let (journal, read_bytes) = (Journal::default(), ReadBytes::default());
    // The idle timeout is much longer than the header timeout.
    let guard = ConnGuard::builder()
        .header_timeout(SECOND / 2)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let server = kind.serve(&guard, responds_then_reads(&read_bytes)).await;
    let neighbour = kind.neighbour(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let chunked =
        "POST /later HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    client.send(chunked).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    client.body(5).await.unwrap();
    // By then the guard has seen the connection idle: the next bytes are a head.
    sleep(SECOND / 2).await;
    let started = Instant::now();
    for byte in GET.bytes() {
        if client.send([byte]).await.is_err() {
            break;
        }
        sleep(SECOND / 10).await;
    }
    assert!(
        started.elapsed() < SECOND / 2 + SLACK,
        "{:?}",
        started.elapsed()
    );
    assert_eq!(client.head().await.unwrap().status, 408);
    drop(client);
    neighbour.was_served().await;
    all_gone(&guard).await;
    assert!(journal.closed().contains(&Some(Reason::SlowHead)));
}

on_servers! {
    [axum, serve, tonic]
    clients_of_refused_uploads_see_the_response,
    an_upload_that_is_read_after_its_response_is_not_cut,
    a_chunked_body_does_not_extend_the_timeout_of_the_next_head,
}
