//! Requests with both bodies active at the same time, possibly in two tasks: which hold a permit,
//! which wait, which are evicted.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
use common::*;
use http_body::Body as _;
use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    task::{Context, Wake},
};

/// A handler as in bidirectional gRPC: a task reads the request, and the response echoes it.
fn bidirectional_handler() -> Handler {
    handler(|request: Request<HandlerRequestBody>| {
        let (mut sender, response_body) = channel();
        let mut body = request.into_body();
        async move {
            tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    if sender.send_data(frame.into_data().unwrap()).await.is_err() {
                        return;
                    }
                }
            });
            // The reader starts to wait for its client first.
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
            Response::new(response_body)
        }
    })
}

#[tokio::test(start_paused = true)]
async fn both_halves_of_a_bidirectional_request_are_woken() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let (bidirectional, slow) = (
        layer.layer(bidirectional_handler()),
        layer.layer(gate.handler()),
    );
    let (mut sender, body) = channel();
    let response = call(&bidirectional, post(body)).await.unwrap();
    settle().await; // The reader waits for its client: no permit is held.
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(0));
    let other = send(&slow, get());
    settle().await; // The only permit is taken.
    let mut response_body = response.into_body();
    let echoed = tokio::spawn(async move {
        let f = response_body.frame().await;
        (f, response_body)
    });
    settle().await; // The response is queued for a permit ...
    sender.send_data(Bytes::from("ping")).await.unwrap();
    settle().await; // ... and so is the request body.
    gate.open_one();
    assert_eq!(other.await.unwrap().0, 200);
    let done = tokio::time::timeout(Duration::from_secs(3600), echoed).await;
    assert!(
        done.is_ok(),
        "the response is never woken; working {:?}",
        journal.gauge(GUARD, Gauge::Working)
    );
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_has_arrived_is_passed_on_after_the_response_head() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let (bidirectional, slow) = (
        layer.layer(bidirectional_handler()),
        layer.layer(gate.handler()),
    );
    let (mut sender, body) = channel();
    let response = call(&bidirectional, post(body)).await.unwrap();
    settle().await;
    let other = send(&slow, get());
    settle().await;
    sender.send_data(Bytes::from("ping")).await.unwrap();
    settle().await; // The request body is queued first, then the response.
    let mut response_body = response.into_body();
    let echoed = tokio::spawn(async move {
        let f = response_body.frame().await;
        (f, response_body)
    });
    settle().await;
    gate.open_one();
    assert_eq!(other.await.unwrap().0, 200);
    let done = tokio::time::timeout(Duration::from_secs(3600), echoed).await;
    assert!(
        done.is_ok(),
        "the frame is not passed on; working {:?}",
        journal.gauge(GUARD, Gauge::Working)
    );
}

#[tokio::test(start_paused = true)]
async fn an_idle_bidirectional_request_holds_no_permit() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let (bidirectional, other) = (layer.layer(bidirectional_handler()), layer.layer(reader()));
    let (_sender, body) = channel();
    let response = call(&bidirectional, post(body)).await.unwrap();
    settle().await; // The reader waits for its client ...
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(0));
    let mut response_body = response.into_body();
    let _reading = tokio::spawn(async move {
        drop(response_body.frame().await);
    });
    settle().await; // ... and hyper polls the response, which waits for the reader.
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(send(&other, get()).await.unwrap().0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_response_holds_no_permit_whatever_it_sends() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let (bidirectional, other) = (layer.layer(bidirectional_handler()), layer.layer(reader()));
    let (mut sender, body) = channel();
    let mut response = call(&bidirectional, post(body)).await.unwrap();
    sender.send_data(Bytes::from("one")).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(0)); // The response is not polled.
    sender.send_data(Bytes::from("two")).await.unwrap();
    drop(sender); // The upload has ended; the response is still not read.
    settle().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(send(&other, get()).await.unwrap().0, 200);
}

#[tokio::test(start_paused = true)]
async fn the_body_of_an_evicted_request_fails_once_and_then_ends() {
    let layer = ConcurrencyLimitLayer::new(1).present(1);
    let (result, mut results) = mpsc::unbounded_channel();
    // Read in a separate task; otherwise the response future would drop the body first.
    let spawning = layer.layer(handler(move |request: Request<HandlerRequestBody>| {
        let result = result.clone();
        let read = async move {
            let mut body = request.into_body();
            let mut errors = 0;
            while errors < 1000
                && let Some(frame) = body.frame().await
            {
                errors += usize::from(frame.is_err());
            }
            result.send(errors).unwrap();
        };
        async move {
            tokio::spawn(read).await.unwrap();
            Response::new(full("read"))
        }
    }));
    let (_sender, body) = channel();
    let upload = send(&spawning, post(body));
    settle().await;
    assert_eq!(send(&layer.layer(reader()), get()).await.unwrap().0, 200);
    assert_eq!(upload.await.unwrap().0, 408);
    assert_eq!(results.recv().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_makes_progress_outlives_uploads_that_drip() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(2)
        .present(16)
        .metrics(journal.clone());
    let service = layer.layer(reader());
    let mut drips = tokio::task::JoinSet::new();
    for number in 0..15 {
        let (mut sender, body) = channel();
        let upload = send(&service, post(body));
        drips.spawn(async move {
            tokio::time::sleep(Duration::from_millis(number * 60)).await;
            while sender.send_data(Bytes::from("x")).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            upload.await.unwrap().0
        });
    }
    let (mut sender, body) = channel();
    let honest = send(&service, post(body));
    tokio::spawn(async move {
        for _ in 0..20 {
            // 64 KiB every three seconds: 21 KiB/s.
            if sender.send_data(Bytes::from(vec![0; 65536])).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    });
    // One new request every two seconds.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(send(&service, get()).await.unwrap());
        assert!(
            !honest.is_finished(),
            "evicted while {:?} dripping uploads wait",
            journal.gauge(GUARD, Gauge::Waiting)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_body_of_an_evicted_request_still_fails_after_the_request_has_ended() {
    let layer = ConcurrencyLimitLayer::new(1).present(1);
    let (keep, mut kept) = mpsc::unbounded_channel();
    let upload = layer.layer(handler(move |request: Request<HandlerRequestBody>| {
        let keep = keep.clone();
        async move {
            let mut body = request.into_body();
            assert!(body.frame().now_or_never().is_none()); // Waits for its client ...
            keep.send(body).unwrap(); // ... and is then read in another task.
            std::future::pending::<HandlerResponse>().await
        }
    }));
    let (mut sender, body) = channel();
    let mut first = Box::pin(call(&upload, post(body)));
    assert!(first.as_mut().now_or_never().is_none());
    drop(call(&layer.layer(reader()), get()).await.unwrap());
    let response = first.as_mut().now_or_never().unwrap().unwrap();
    assert_eq!(response.status(), 408);
    drop((first, response));
    sender.send_data(Bytes::from("drip")).await.unwrap();
    let mut body = kept.recv().await.unwrap();
    let frame = body.frame().await.unwrap();
    assert!(frame.is_err(), "the body is still read after the 408");
}

#[tokio::test(start_paused = true)]
async fn a_cut_event_has_the_connection_and_a_grpc_response_ends_with_trailers() {
    use palisade_core::{ConnInfo, Event, Metrics, Prefix};
    #[derive(Default)]
    struct Seen(Mutex<Vec<Option<u64>>>);
    impl Metrics for Seen {
        fn record(&self, event: &Event<'_>) {
            if let Event::Cut { conn, .. } = event {
                self.0.lock().push(conn.map(ConnInfo::id));
            }
        }
    }
    let seen = Arc::new(Seen::default());
    let layer = ConcurrencyLimitLayer::new(1)
        .present(1)
        .metrics(seen.clone());
    let service = layer.layer(handler(|_| async {
        let (mut sender, body) = channel();
        sender.send_data(Bytes::from("piece")).await.ok();
        std::mem::forget(sender);
        Response::new(body)
    }));
    let conn = ConnInfo::new("192.0.2.1:1".parse().unwrap(), None, Prefix::default());
    let mut request = Request::post("/")
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .body(full(""))
        .unwrap();
    *request.body_mut() = Empty::new().map_err(|never| match never {}).boxed();
    request.extensions_mut().insert(conn.clone());
    let mut unread = call(&service, request).await.unwrap();
    unread.body_mut().frame().await.unwrap().unwrap();
    drop(call(&service, get()).await.unwrap());
    let last = unread.body_mut().frame().await.unwrap();
    let trailers = last.is_ok_and(|frame| frame.is_trailers());
    assert_eq!(
        (seen.0.lock().clone(), trailers),
        (vec![Some(conn.id())], true)
    );
}

#[tokio::test(start_paused = true)]
async fn a_ready_response_of_an_evicted_request_is_sent() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(1)
        .present(1)
        .metrics(journal.clone());
    // Waits briefly for its client and continues without it, but keeps the body.
    let impatient = layer.layer(handler(|request: Request<HandlerRequestBody>| async {
        let mut body = request.into_body();
        assert!(body.frame().now_or_never().is_none());
        tokio::time::sleep(Duration::from_secs(1)).await;
        Response::new(full("enough"))
    }));
    let (_sender, body) = channel();
    let mut first = Box::pin(call(&impatient, post(body)));
    assert!(first.as_mut().now_or_never().is_none());
    drop(call(&layer.layer(reader()), get()).await.unwrap());
    advance(Duration::from_secs(2)).await;
    // The body has not been polled since, so the eviction has not been reported.
    let response = first.as_mut().now_or_never().unwrap().unwrap();
    drop(first);
    assert_eq!(
        (response.status().as_u16(), journal.refused()),
        (200, vec![])
    );
    drop(response);
    assert_none_present(&journal);
}

/// Sends a message after `silence` in a bidirectional gRPC request. Returns the number of requests
/// at work one second after the message, on which the handler works for an hour.
async fn working_after_silence(silence: Duration) -> Option<u64> {
    let journal = Journal::default();
    // Permits are scarce from the start.
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let bidirectional = layer.layer(handler(|request: Request<HandlerRequestBody>| async {
        let (mut sender, response_body) = channel();
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                sender.send_data(frame.into_data().unwrap()).await.ok();
            }
        });
        let mut response = Response::new(response_body);
        response
            .headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        response
    }));
    let (mut sender, body) = channel();
    let mut request = post(body);
    *request.version_mut() = http::Version::HTTP_2;
    request
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    let mut response_body = call(&bidirectional, request).await.unwrap().into_body();
    let reading = tokio::spawn(async move { response_body.frame().await.is_some() });
    settle().await;
    tokio::time::sleep(silence).await;
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(0));
    sender.send_data(Bytes::from("message")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let working = journal.gauge(GUARD, Gauge::Working);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(journal.gauge(GUARD, Gauge::Working), working);
    drop(sender);
    assert!(reading.await.unwrap());
    working
}

#[tokio::test(start_paused = true)]
async fn a_message_after_a_long_silence_takes_a_permit() {
    for silence in [1, 6, 600] {
        let working = working_after_silence(Duration::from_secs(silence)).await;
        assert_eq!(working, Some(1), "after {silence} s");
    }
}

/// A task that counts its wakes.
#[derive(Default)]
struct WakeCounter(AtomicUsize);

impl Wake for WakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pending_response_does_not_wake_itself_while_requests_are_queued() {
    let layer = ConcurrencyLimitLayer::new(1).queue(5, Duration::from_secs(60));
    let service = layer.layer(bidirectional_handler());
    let (client, body) = channel();
    let mut response_body = call(&service, post(body)).await.unwrap().into_body();
    settle().await;
    let wakes = Arc::new(WakeCounter::default());
    let waker = wakes.clone().into();
    let mut cx = Context::from_waker(&waker);
    assert!(
        Pin::new(&mut response_body)
            .poll_frame(&mut cx)
            .is_pending()
    );
    assert_eq!(layer.handle().working(), 0);
    // The response may take a permit; the new request in the queue may not.
    layer.handle().set_limit(0);
    let new_request = send(&service, get());
    settle().await;
    for _ in 0..100 {
        assert!(
            Pin::new(&mut response_body)
                .poll_frame(&mut cx)
                .is_pending()
        );
    }
    // One wake is allowed, when the kept permits are recalled.
    assert!(
        wakes.0.load(SeqCst) <= 1,
        "woken {} times",
        wakes.0.load(SeqCst)
    );
    drop((client, response_body));
    layer.handle().set_limit(1);
    assert_eq!(new_request.await.unwrap().0, StatusCode::OK);
}
