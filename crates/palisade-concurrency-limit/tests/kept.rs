//! Requests that wait for their clients keep their permits only while no other request lacks one.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use palisade_core::{KeyOutcome, RequestHead};

/// Starts uploads that receive no data, each in a task that is polled once.
async fn silent_uploads(
    service: &Guarded,
    count: usize,
) -> (
    Vec<Sender<Bytes, io::Error>>,
    Vec<JoinHandle<(StatusCode, Result<Bytes, BoxError>)>>,
) {
    let (mut senders, mut uploads) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (sender, body) = channel();
        senders.push(sender);
        uploads.push(send(service, post(body)));
        settle().await;
    }
    (senders, uploads)
}

/// A handler that reads uploads, and blocks all other requests until its gate opens.
fn reads_or_hangs(gate: &Gate) -> Handler {
    let (read, hang) = (reader(), gate.handler());
    handler(move |request| {
        let is_upload = request.method() == http::Method::POST;
        let handler = if is_upload {
            read.clone()
        } else {
            hang.clone()
        };
        handler.oneshot(request).map(|response| response.unwrap())
    })
}

#[tokio::test(start_paused = true)]
async fn silent_uploads_are_evicted_when_present_is_far_below_the_limit() {
    let journal = Journal::default();
    let limit = ConcurrencyLimitLayer::new(100)
        .present(10)
        .metrics(journal.clone());
    let service = limit.layer(reader());
    let (senders, mut uploads) = silent_uploads(&service, 10).await;
    assert_eq!(journal.gauge(GUARD, Gauge::Waiting), Some(10));
    for n in 0..10 {
        let (status, _) = send(&service, get()).await.unwrap();
        assert_eq!(status, StatusCode::OK, "request {n}");
        // One upload was evicted for the first request; after that there is room.
        settle().await;
        assert_eq!(
            uploads.iter().filter(|upload| upload.is_finished()).count(),
            1
        );
    }
    let gone = uploads.iter().position(JoinHandle::is_finished).unwrap();
    let (status, _) = uploads.remove(gone).await.unwrap();
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
    drop(senders);
    for upload in uploads {
        assert_eq!(upload.await.unwrap().0, StatusCode::OK);
    }
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn kept_permits_are_recalled_when_others_need_them() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let limit = ConcurrencyLimitLayer::new(20).metrics(journal.clone());
    let service = limit.layer(reads_or_hangs(&gate));
    let (senders, uploads) = silent_uploads(&service, 9).await;
    // They count as waiting, whether or not they keep their permits.
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(0));
    assert_eq!(journal.gauge(GUARD, Gauge::Waiting), Some(9));
    assert_eq!(limit.handle().working(), 0);
    let working: Vec<_> = (0..20).map(|_| send(&service, get())).collect();
    settle().await;
    assert_eq!((gate.started(), limit.handle().working()), (20, 20));
    assert_eq!(
        send(&service, get()).await.unwrap().0,
        StatusCode::SERVICE_UNAVAILABLE
    );
    // An upload that has received data waits for a permit.
    drop(senders);
    settle().await;
    assert!(!uploads.iter().any(JoinHandle::is_finished));
    for _ in 0..20 {
        gate.open_one();
    }
    for request in working.into_iter().chain(uploads) {
        assert_eq!(request.await.unwrap().0, StatusCode::OK);
    }
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_lower_limit_recalls_kept_permits() {
    let gate = Gate::default();
    let limit = ConcurrencyLimitLayer::new(100);
    let service = limit.layer(reads_or_hangs(&gate));
    let (senders, uploads) = silent_uploads(&service, 10).await;
    limit.handle().set_limit(5);
    let working: Vec<_> = (0..5).map(|_| send(&service, get())).collect();
    settle().await;
    assert_eq!(gate.started(), 5);
    for _ in 0..5 {
        gate.open_one();
    }
    drop(senders);
    for request in working.into_iter().chain(uploads) {
        assert_eq!(request.await.unwrap().0, StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_read_in_another_task_holds_no_permit_while_its_client_is_silent() {
    let limit = ConcurrencyLimitLayer::new(100);
    let service = limit.layer(handler(|request| async {
        let (items, mut received) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                items.send(frame).await.ok();
            }
        });
        while received.recv().await.is_some() {}
        Response::new(full("done"))
    }));
    let (mut sender, body) = channel();
    let upload = send(&service, post(body));
    for _ in 0..10 {
        sender
            .send_data(Bytes::from_static(b"a frame"))
            .await
            .unwrap();
        settle().await;
        assert_eq!(limit.handle().working(), 0);
    }
    drop(sender);
    assert_eq!(upload.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn an_extractor_that_panics_leaves_no_permit_taken() {
    let limit = ConcurrencyLimitLayer::new(100)
        .fairness()
        .client(|_: &RequestHead<'_>| -> KeyOutcome { panic!("expected by the test") });
    let mut service = limit.layer(reader());
    let call = std::panic::AssertUnwindSafe(|| drop(service.call(post(full("body")))));
    assert!(std::panic::catch_unwind(call).is_err());
    assert_eq!(limit.handle().working(), 0);
}

#[tokio::test(start_paused = true)]
async fn uploads_charged_under_load_are_not_charged_for_later_waits() {
    let gate = Gate::default();
    let limit = ConcurrencyLimitLayer::new(40).fairness();
    let service = limit.layer(reads_or_hangs(&gate));
    let others = |count| -> Vec<_> {
        (0..count)
            .map(|n| send(&service, from_client(&format!("203.0.113.{n}"), get())))
            .collect()
    };
    // Half of the permits are taken when the uploads begin, so that their client is charged.
    let mut working = others(20);
    settle().await;
    let (mut senders, mut uploads) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (sender, body) = channel();
        senders.push(sender);
        uploads.push(send(&service, from_client("192.0.2.1", post(body))));
    }
    settle().await;
    // Then permits are plentiful again.
    (0..20).for_each(|_| gate.open_one());
    settle().await;
    working.extend(others(1));
    settle().await;
    gate.open_one();
    for sender in &mut senders {
        sender
            .send_data(Bytes::from_static(b"a frame"))
            .await
            .unwrap();
    }
    settle().await;
    advance(Duration::from_secs(30)).await;
    // And short: only the last tenth is left, for clients that owe nothing.
    working.extend(others(36));
    settle().await;
    assert_eq!((gate.started(), limit.handle().working()), (36, 36));
    let honest = send(&service, from_client("192.0.2.1", get()));
    settle().await;
    assert_eq!(gate.started(), 37);
    (0..37).for_each(|_| gate.open_one());
    drop(senders);
    for request in working.into_iter().chain(uploads).chain([honest]) {
        assert_eq!(request.await.unwrap().0, StatusCode::OK);
    }
}
