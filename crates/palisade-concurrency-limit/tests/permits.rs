//! When a request holds a permit, on paused time and without sockets.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
use common::*;
use std::task::Poll;

#[tokio::test(start_paused = true)]
async fn a_request_over_the_limit_is_refused_at_once() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let service = ConcurrencyLimitLayer::new(2)
        .metrics(journal.clone())
        .layer(gate.handler());
    let (first, second) = (send(&service, get()), send(&service, get()));
    settle().await;
    let refused = call(&service, get()).now_or_never().unwrap().unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(journal.refused(), [(GUARD, Reason::Full)]);
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(2));
    gate.open_one();
    gate.open_one();
    assert_eq!(first.await.unwrap().0, StatusCode::OK);
    assert_eq!(second.await.unwrap().0, StatusCode::OK);
    assert_eq!(journal.gauge(GUARD, Gauge::Admitted), Some(2));
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn all_services_of_a_layer_share_one_limit() {
    let gate = Gate::default();
    let layer = ConcurrencyLimitLayer::new(1);
    let (one, other) = (
        layer.layer(gate.handler()),
        layer.clone().present(0).layer(gate.handler()),
    );
    let first = send(&one, get());
    settle().await;
    let refused = call(&other, get()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    gate.open_one();
    assert_eq!(first.await.unwrap().0, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_held_until_the_body_ends_or_is_dropped() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let service = layer.layer(handler(|_| async { Response::new(full("slow")) }));
    let first = call(&service, get()).await.unwrap();
    assert_eq!(call(&service, get()).await.unwrap().status(), 503);
    first.into_body().collect().await.unwrap();
    assert_none_present(&journal);
    let second = call(&service, get()).await.unwrap();
    assert_eq!(second.status(), 200);
    assert_eq!(call(&service, get()).await.unwrap().status(), 503);
    drop(second);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_held_while_the_response_body_streams_and_released_by_its_error() {
    let journal = Journal::default();
    let (sender, receiver) = oneshot::channel();
    let sender = Arc::new(Mutex::new(Some(sender)));
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let service = layer.layer(handler(move |_| {
        let (body_sender, body) = channel();
        if let Some(sender) = sender.lock().take() {
            sender.send(body_sender).unwrap();
        }
        async { Response::new(body) }
    }));
    let reading = send(&service, get());
    settle().await;
    assert_eq!(call(&service, get()).await.unwrap().status(), 503);
    let mut body = receiver.await.unwrap();
    body.send_data(Bytes::from("some")).await.unwrap();
    settle().await;
    assert_eq!(call(&service, get()).await.unwrap().status(), 503);
    body.abort(io::Error::other("broken"));
    reading.await.unwrap().1.unwrap_err();
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_or_panicking_request_gives_its_permit_back() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let service = layer.layer(gate.handler());
    let mut pending = Box::pin(call(&service, get()));
    assert!(pending.as_mut().now_or_never().is_none());
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(1));
    drop(pending);
    assert_none_present(&journal);
    let panicking = layer.layer(handler(|request| async move {
        let _body = request.into_body();
        tokio::task::yield_now().await;
        panic!("expected by the test");
    }));
    let (_sender, body) = channel();
    send(&panicking, post(body)).await.unwrap_err();
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_client_holds_no_permit() {
    let journal = Journal::default();
    let service = ConcurrencyLimitLayer::new(1)
        .metrics(journal.clone())
        .layer(reader());
    let mut senders = Vec::new();
    let mut uploads = Vec::new();
    for _ in 0..5 {
        let (mut sender, body) = channel();
        uploads.push(send(&service, post(body)));
        settle().await;
        sender.send_data(Bytes::from("drip")).await.unwrap();
        senders.push(sender);
        settle().await;
    }
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(0));
    assert_eq!(journal.gauge(GUARD, Gauge::Waiting), Some(5));
    assert_eq!(send(&service, get()).await.unwrap().1.unwrap(), "empty");
    drop(senders);
    for upload in uploads {
        assert_eq!(upload.await.unwrap().1.unwrap(), "read");
    }
    assert_eq!(journal.refused(), []);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn admitted_requests_are_granted_permits_in_order_and_before_new_ones() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let (uploads, slow) = (layer.layer(reader()), layer.layer(gate.handler()));
    let (mut first_sender, first_body) = channel();
    let (second_sender, second_body) = channel();
    let first = send(&uploads, post(first_body));
    let second = send(&uploads, post(second_body));
    settle().await;
    let other = send(&slow, get());
    settle().await;
    assert_eq!(gate.started(), 1);

    // Both have work now, the first one earlier. The permit is taken.
    first_sender.send_data(Bytes::from("more")).await.unwrap();
    settle().await;
    drop(second_sender);
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(2));
    assert!(!second.is_finished());
    gate.open_one();
    settle().await;
    // The first was granted the permit and gave it back while it waits for its client; so the
    // second has ended.
    assert!(other.is_finished());
    assert!(second.is_finished());
    assert_eq!(journal.gauge(GUARD, Gauge::Waiting), Some(1));

    // A new request comes after queued ones.
    let other = send(&slow, get());
    settle().await;
    drop(first_sender);
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(1));
    gate.open_one();
    assert_eq!(
        call(&slow, get()).now_or_never().unwrap().unwrap().status(),
        503
    );
    assert_eq!(other.await.unwrap().0, 200);
    assert_eq!(first.await.unwrap().1.unwrap(), "read");
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_drops_the_body_continues_only_with_a_permit() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let (at_work, mut works) = mpsc::unbounded_channel();
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let impatient = layer.layer(handler(move |request: Request<HandlerRequestBody>| {
        let at_work = at_work.clone();
        async move {
            let mut body = request.into_body();
            let waited = tokio::time::timeout(Duration::from_secs(1), body.frame()).await;
            assert!(waited.is_err());
            drop(body);
            tokio::task::yield_now().await;
            at_work.send(()).unwrap();
            Response::new(full("enough"))
        }
    }));
    let slow = layer.layer(gate.handler());
    let (_sender, body) = channel();
    let impatient = send(&impatient, post(body));
    settle().await;
    let other = send(&slow, get());
    settle().await;
    advance(Duration::from_secs(2)).await;
    settle().await;
    assert!(works.try_recv().is_err());
    assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(1));
    gate.open_one();
    assert_eq!(impatient.await.unwrap().0, 200);
    assert!(works.try_recv().is_ok());
    assert_eq!(other.await.unwrap().0, 200);
    assert_none_present(&journal);
}

/// A handler that reads `frames` frames, reads ahead in vain as axum's `Multipart` does, and works
/// until the gate opens.
fn reads_ahead(gate: &Gate, frames: usize) -> Handler {
    let gate = gate.clone();
    handler(move |request| {
        let (sender, mut receiver) = oneshot::channel();
        gate.0.lock().push(sender);
        async move {
            let mut body = request.into_body();
            for _ in 0..frames {
                body.frame().await.unwrap().unwrap();
            }
            let ahead = std::future::poll_fn(|cx| {
                Poll::Ready(http_body::Body::poll_frame(Pin::new(&mut body), cx).is_pending())
            });
            assert!(ahead.await);
            (&mut receiver).await.ok();
            let whole = body.collect().await.unwrap();
            Response::new(full(if whole.to_bytes().is_empty() {
                "empty"
            } else {
                "read"
            }))
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_read_ahead_in_vain_works_with_a_permit() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(2).metrics(journal.clone());
    let service = layer.layer(reads_ahead(&gate, 0));
    let (mut senders, mut uploads) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (sender, body) = channel();
        senders.push(sender);
        uploads.push(send(&service, post(body)));
        settle().await;
    }
    settle().await;
    // Both clients send nothing, and still both handlers are at work.
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(2));
    assert_eq!(
        call(&service, get()).await.unwrap().status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    // The handlers poll the body: now they wait for their clients.
    gate.open_one();
    gate.open_one();
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(0));
    assert_eq!(journal.gauge(GUARD, Gauge::Waiting), Some(2));
    for sender in &mut senders {
        sender.send_data(Bytes::from("late")).await.unwrap();
    }
    drop(senders);
    for upload in uploads {
        assert_eq!(upload.await.unwrap().1.unwrap(), "read");
    }
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_read_ahead_in_vain_in_a_later_wait_works_with_a_permit() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(2).metrics(journal.clone());
    let service = layer.layer(reads_ahead(&gate, 2));
    let (mut sender, body) = channel();
    let upload = send(&service, post(body));
    settle().await;
    for working in [0, 1] {
        assert_eq!(journal.gauge(GUARD, Gauge::Waiting), Some(1));
        sender.send_data(Bytes::from("frame")).await.unwrap();
        settle().await;
        assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(working));
    }
    gate.open_one();
    drop(sender);
    assert_eq!(upload.await.unwrap().0, StatusCode::OK);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_handler_with_work_to_do_waits_for_a_permit_before_it_continues() {
    let (journal, gate, others) = (Journal::default(), Gate::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let (uploads, slow) = (
        layer.layer(reads_ahead(&gate, 0)),
        layer.layer(others.handler()),
    );
    let (sender, body) = channel();
    let mut upload = Box::pin(call(&uploads, post(body)));
    assert!(upload.as_mut().now_or_never().is_none()); // Gave its permit back.
    let other = send(&slow, get());
    settle().await;
    assert_eq!(others.started(), 1); // It holds the permit now.
    assert!(upload.as_mut().now_or_never().is_none()); // Detected as working: it is queued.
    assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(1));
    let upload = tokio::spawn(upload);
    gate.open_one();
    drop(sender);
    settle().await;
    assert!(!upload.is_finished());
    others.open_one();
    assert_eq!(other.await.unwrap().0, StatusCode::OK);
    let response = upload.await.unwrap().unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "empty"
    );
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_waits_for_its_client_is_polled_only_once_more() {
    let polls = Arc::new(Mutex::new(0));
    let counter = polls.clone();
    let layer = ConcurrencyLimitLayer::new(1);
    let service = layer.layer(handler(move |request| {
        let polls = counter.clone();
        let mut reading = Box::pin(request.into_body().collect());
        std::future::poll_fn(move |cx| {
            *polls.lock() += 1;
            reading
                .as_mut()
                .poll(cx)
                .map(|_| Response::new(full("done")))
        })
    }));
    let (mut sender, body) = channel();
    let upload = send(&service, post(body));
    settle().await;
    assert!((1..=2).contains(&*polls.lock()), "{polls:?}");
    sender.send_data(Bytes::from("more")).await.unwrap();
    settle().await;
    assert!((2..=4).contains(&*polls.lock()), "{polls:?}");
    drop(sender);
    assert_eq!(upload.await.unwrap().0, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_request_with_its_body_read_in_another_task_is_counted() {
    let journal = Journal::default();
    let service = ConcurrencyLimitLayer::new(1)
        .metrics(journal.clone())
        .layer(handler(|request: Request<HandlerRequestBody>| async {
            let whole = tokio::spawn(request.into_body().collect()).await.unwrap();
            assert_eq!(whole.unwrap().to_bytes(), "elsewhere");
            Response::new(full("done"))
        }));
    let (mut sender, body) = channel();
    let upload = send(&service, post(body));
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Waiting), Some(1));
    sender.send_data(Bytes::from("elsewhere")).await.unwrap();
    drop(sender);
    assert_eq!(upload.await.unwrap().0, 200);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_outlives_its_request_is_read_without_a_permit() {
    let journal = Journal::default();
    let (keep, mut kept) = mpsc::unbounded_channel();
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let service = layer.layer(handler(move |request: Request<HandlerRequestBody>| {
        keep.send(request.into_body()).unwrap();
        async { Response::new(full("at once")) }
    }));
    let (mut sender, body) = channel();
    assert_eq!(send(&service, post(body)).await.unwrap().0, 200);
    assert_none_present(&journal);
    let body = tokio::spawn(kept.recv().await.unwrap().collect());
    settle().await;
    sender.send_data(Bytes::from("late")).await.unwrap();
    drop(sender);
    assert_eq!(body.await.unwrap().unwrap().to_bytes(), "late");
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn when_too_many_are_present_the_request_that_waited_longest_is_evicted() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(1)
        .present(2)
        .metrics(journal.clone());
    let service = layer.layer(reader());
    let (mut first_sender, first_body) = channel();
    let (second_sender, second_body) = channel();
    let first = send(&service, post(first_body));
    settle().await;
    let second = send(&service, post(second_body));
    settle().await;
    // The first makes progress, so the second has waited longest.
    first_sender
        .send_data(Bytes::from(vec![0; 512]))
        .await
        .unwrap();
    settle().await;
    assert_eq!(send(&service, get()).await.unwrap().0, 200);
    assert_eq!(second.await.unwrap().0, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(journal.refused(), [(GUARD, Reason::Evicted)]);
    drop(second_sender);
    drop(first_sender);
    assert_eq!(first.await.unwrap().1.unwrap(), "read");
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn an_unread_response_holds_no_permit_and_can_be_evicted() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(1)
        .present(2)
        .metrics(journal.clone());
    let service = layer.layer(handler(|_| async {
        let (mut sender, body) = channel();
        tokio::spawn(async move {
            for _ in 0..3 {
                sender.send_data(Bytes::from("piece")).await.ok();
            }
        });
        Response::new(body)
    }));
    let mut unread = Vec::new();
    for _ in 0..2 {
        let mut response = call(&service, get()).await.unwrap();
        response.body_mut().frame().await.unwrap().unwrap();
        unread.push(response);
    }
    assert_eq!(journal.gauge(GUARD, Gauge::Waiting), Some(2));
    assert_eq!(
        send(&service, get()).await.unwrap().1.unwrap(),
        "piecepiecepiece"
    );
    let error = unread.remove(0).into_body().collect().await.unwrap_err();
    assert_eq!(
        error.downcast_ref::<Violation>().unwrap().reason,
        Reason::Evicted
    );
    assert_eq!(journal.cut(), [(GUARD, Reason::Evicted)]);
    assert_eq!(
        unread
            .remove(0)
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes(),
        "piecepiece"
    );
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_recorded_even_if_the_body_is_not_polled_again() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(1)
        .present(1)
        .metrics(journal.clone());
    let service = layer.layer(handler(|_| async {
        let (mut sender, body) = channel();
        sender.send_data(Bytes::from("piece")).await.ok();
        tokio::spawn(async move { sender.send_data(Bytes::from("piece")).await });
        Response::new(body)
    }));
    let mut unread = call(&service, get()).await.unwrap();
    unread.body_mut().frame().await.unwrap().unwrap();
    drop(call(&service, get()).await.unwrap());
    assert_eq!(journal.cut(), []);
    drop(unread);
    assert_eq!(journal.cut(), [(GUARD, Reason::Evicted)]);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn no_request_is_evicted_while_all_are_at_work() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(4)
        .present(2)
        .metrics(journal.clone());
    let service = layer.layer(gate.handler());
    let working = [send(&service, get()), send(&service, get())];
    settle().await;
    assert_eq!(call(&service, get()).await.unwrap().status(), 503);
    assert_eq!(journal.refused(), [(GUARD, Reason::Full)]);
    gate.open_one();
    gate.open_one();
    for response in working {
        assert_eq!(response.await.unwrap().0, 200);
    }
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn the_limit_per_client_applies_to_each_client_separately() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(10)
        .per_client(1)
        .metrics(journal.clone());
    let service = layer.layer(gate.handler());
    let first = send(&service, from_client("192.0.2.1", get()));
    settle().await;
    let refused = call(&service, from_client("192.0.2.1", get()))
        .await
        .unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let neighbour = send(&service, from_client("192.0.2.2", get()));
    settle().await;
    assert_eq!(gate.started(), 2);
    gate.open_one();
    gate.open_one();
    assert_eq!(first.await.unwrap().0, 200);
    assert_eq!(neighbour.await.unwrap().0, 200);
    let again = send(&service, from_client("192.0.2.1", get()));
    settle().await;
    gate.open_one();
    assert_eq!(again.await.unwrap().0, 200);
    assert_eq!(journal.refused(), [(GUARD, Reason::ClientFull)]);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn matching_requests_take_reserve_permits_when_all_others_are_taken() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1)
        .reserve(1, |head| head.uri.path() == "/health")
        .metrics(journal.clone());
    let service = layer.layer(gate.handler());
    let health = || Request::get("/health").body(full("")).unwrap();
    let first = send(&service, get());
    settle().await;
    let second = send(&service, health());
    settle().await;
    assert_eq!(gate.started(), 2);
    assert_eq!(call(&service, health()).await.unwrap().status(), 503);
    assert_eq!(call(&service, get()).await.unwrap().status(), 503);
    gate.open_one();
    gate.open_one();
    assert_eq!(first.await.unwrap().0, 200);
    assert_eq!(second.await.unwrap().0, 200);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_ordered_and_times_out() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let wait = Duration::from_millis(100);
    let layer = ConcurrencyLimitLayer::new(1)
        .queue(2, wait)
        .metrics(journal.clone());
    let service = layer.layer(gate.handler());
    let working = send(&service, get());
    settle().await;
    let first = send(&service, get());
    settle().await;
    advance(Duration::from_millis(50)).await;
    let second = send(&service, get());
    settle().await;
    assert_eq!(call(&service, get()).await.unwrap().status(), 503);
    gate.open_one();
    settle().await;
    assert_eq!(working.await.unwrap().0, 200);
    assert_eq!(gate.started(), 1); // The first is at work; the second is still queued.
    advance(Duration::from_millis(99)).await;
    settle().await;
    assert!(!second.is_finished());
    advance(Duration::from_millis(1)).await;
    assert_eq!(second.await.unwrap().0, 503);
    gate.open_one();
    assert_eq!(first.await.unwrap().0, 200);
    let reasons: Vec<_> = journal
        .refused()
        .into_iter()
        .map(|(_, reason)| reason)
        .collect();
    assert_eq!(reasons, [Reason::QueueFull, Reason::QueueTimeout]);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_queued_request_leaves_the_queue() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1).queue(1, Duration::from_secs(9));
    let service = layer.metrics(journal.clone()).layer(gate.handler());
    let working = send(&service, get());
    settle().await;
    let queued = send(&service, get());
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(1));
    queued.abort();
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(0));
    gate.open_one();
    assert_eq!(working.await.unwrap().0, 200);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_queued_upload_is_served_once_it_has_a_permit() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1).queue(1, Duration::from_secs(9));
    let layer = layer.metrics(journal.clone());
    let (slow, uploads) = (layer.layer(gate.handler()), layer.layer(reader()));
    let working = send(&slow, get());
    settle().await;
    let (mut sender, body) = channel();
    let upload = send(&uploads, post(body));
    settle().await;
    gate.open_one();
    assert_eq!(working.await.unwrap().0, 200);
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Waiting), Some(1));
    sender.send_data(Bytes::from("bytes")).await.unwrap();
    drop(sender);
    assert_eq!(upload.await.unwrap().1.unwrap(), "read");
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn the_limit_can_be_changed_while_the_server_runs() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1).queue(9, Duration::from_secs(9));
    let layer = layer.metrics(journal.clone());
    let (handle, service) = (layer.handle(), layer.layer(gate.handler()));
    let responses: Vec<_> = (0..3).map(|_| send(&service, get())).collect();
    settle().await;
    assert_eq!(gate.started(), 1);
    handle.set_limit(3);
    settle().await;
    assert_eq!((gate.started(), handle.working()), (3, 3));
    handle.set_limit(0);
    let late = send(&service, get());
    settle().await;
    for _ in 0..3 {
        gate.open_one();
    }
    for response in responses {
        assert_eq!(response.await.unwrap().0, 200);
    }
    settle().await;
    assert_eq!((gate.started(), handle.working()), (0, 0));
    handle.set_limit(1);
    settle().await;
    gate.open_one();
    assert_eq!(late.await.unwrap().0, 200);
    assert_eq!(journal.limits(), [(GUARD, 3), (GUARD, 0), (GUARD, 1)]);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn upgrades_and_event_streams_release_the_permit_at_the_response_head() {
    let journal = Journal::default();
    let respond_with = |status: u16, kind: &'static str| {
        let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
        layer.layer(handler(move |_| async move {
            let (sender, body) = channel();
            std::mem::forget(sender); // The stream stays open.
            Response::builder()
                .status(status)
                .header("content-type", kind)
                .body(body)
                .unwrap()
        }))
    };
    let connect = || Request::connect("example.com:443").body(full("")).unwrap();
    let (upgrade, plain) = (
        respond_with(101, "any/thing"),
        respond_with(200, "any/thing"),
    );
    let events = respond_with(200, "text/event-stream; charset=utf-8");
    let held = [
        call(&upgrade, get()).await.unwrap(),
        call(&events, get()).await.unwrap(),
        call(&plain, connect()).await.unwrap(),
    ];
    assert_none_present(&journal);
    let counted = call(&plain, get()).await.unwrap();
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(1));
    drop((held, counted));
    let layer = ConcurrencyLimitLayer::new(1)
        .release_at_head()
        .metrics(journal.clone());
    let service = layer.layer(handler(|_| async { Response::new(full("whole")) }));
    let _unread = call(&service, get()).await.unwrap();
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn in_shadow_mode_all_requests_are_admitted_and_counted() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(1).present(1).mode(Mode::Shadow);
    let service = layer.metrics(journal.clone()).layer(reader());
    let (mut sender, body) = channel();
    let first = send(&service, post(body));
    settle().await;
    let (_other_sender, body) = channel();
    let mut second = Box::pin(call(&service, post(body)));
    assert!(second.as_mut().now_or_never().is_none());
    assert_eq!(journal.refusals().len(), 1);
    assert_eq!(journal.refusals()[0].1, Mode::Shadow);
    sender.send_data(Bytes::from("x")).await.unwrap();
    drop(sender);
    assert_eq!(first.await.unwrap().1.unwrap(), "read");
    drop(second);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn in_off_mode_requests_are_neither_counted_nor_refused() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(0)
        .mode(Mode::Off)
        .metrics(journal.clone());
    let service = layer.layer(reader());
    assert_eq!(send(&service, get()).await.unwrap().0, 200);
    assert_eq!(journal.refused(), []);
    assert_eq!(journal.gauge(GUARD, Gauge::Admitted), Some(0));
}

/// Counts how many requests of a light client are served during an attack. The attackers use ten
/// addresses, a quarter of the limit, each with eight requests of half a second in flight. The
/// light client sends three such requests in two seconds.
async fn serve_light_client(layer: ConcurrencyLimitLayer) -> (usize, usize) {
    const HANDLER_TIME: Duration = Duration::from_millis(500);
    let journal = Journal::default();
    let service = layer.metrics(journal.clone()).layer(handler(|_| async {
        tokio::time::sleep(HANDLER_TIME).await;
        Response::new(full("worked"))
    }));
    let mut tasks = tokio::task::JoinSet::new();
    for address in 0..10 {
        for _ in 0..8 {
            let service = service.clone();
            tasks.spawn(async move {
                loop {
                    let request = from_client(&format!("198.51.100.{address}"), get());
                    let status = service.clone().oneshot(request).await.unwrap().status();
                    if status != 200 {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            });
        }
    }
    tokio::time::sleep(2 * HANDLER_TIME).await;
    let (mut served, sent) = (0, 60);
    for _ in 0..sent {
        tokio::time::sleep(Duration::from_millis(667)).await;
        let request = from_client("192.0.2.1", get());
        served += usize::from(service.clone().oneshot(request).await.unwrap().status() == 200);
    }
    tasks.shutdown().await;
    assert_none_present(&journal);
    (served, sent)
}

#[tokio::test(start_paused = true)]
async fn with_fairness_a_light_client_is_served_beside_heavy_ones() {
    let (served, sent) = serve_light_client(ConcurrencyLimitLayer::new(40).fairness()).await;
    assert_eq!(served, sent);
    // Without fairness it is not served, so the test can fail.
    let (served, sent) = serve_light_client(ConcurrencyLimitLayer::new(40)).await;
    assert!(served * 2 < sent, "{served} of {sent}");
}

#[tokio::test(start_paused = true)]
async fn in_any_order_every_admitted_request_is_served() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(3)
        .present(1000)
        .fairness()
        .client(ClientIp::peer());
    let service = layer.metrics(journal.clone()).layer(reader());
    let mut senders = Vec::new();
    let mut uploads = Vec::new();
    for number in 0..200 {
        let (sender, body) = channel();
        uploads.push(send(
            &service,
            from_client(&format!("192.0.2.{}", number % 7), post(body)),
        ));
        senders.push(sender);
        settle().await;
    }
    assert_eq!(journal.gauge(GUARD, Gauge::Waiting), Some(200));
    // All at once; some clients are gone for good.
    for (number, mut sender) in senders.into_iter().enumerate() {
        match number % 3 {
            0 => drop(sender),
            1 => sender.send_data(Bytes::from("bytes")).await.unwrap(),
            _ => uploads[number].abort(),
        }
    }
    let mut done = 0;
    for upload in uploads {
        done += usize::from(upload.await.is_ok_and(|(status, _)| status == 200));
    }
    assert_eq!(done, 134);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_fails_gives_its_permit_back_even_if_its_future_is_not_dropped() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let fails =
        service_fn(|_: Request<HandlerRequestBody>| async { Err::<HandlerResponse, _>("broken") });
    let mut failing = Box::pin(layer.layer(fails).oneshot(get()));
    assert_eq!(failing.as_mut().await.unwrap_err(), "broken");
    assert_none_present(&journal);
    drop(failing);
    assert_none_present(&journal);
}

async fn assert_waits_for_client(handler: Handler) {
    let journal = Journal::default();
    // Permits are scarce from the start, so the handler is polled once more.
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let service = layer.layer(handler);
    let (sender, body) = channel();
    let upload = send(&service, post(body));
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(0));
    assert_eq!(journal.gauge(GUARD, Gauge::Waiting), Some(1));
    drop(sender);
    assert_eq!(upload.await.unwrap().0, StatusCode::OK);
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_request_with_its_body_read_in_another_task_waits_for_the_client() {
    let elsewhere = handler(|request| async {
        let reading = tokio::spawn(request.into_body().collect());
        reading.await.unwrap().unwrap();
        Response::new(full("read"))
    });
    assert_waits_for_client(elsewhere).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_with_its_body_read_in_futures_unordered_waits_for_the_client() {
    let among_others = handler(|request| async {
        let reading = [request.into_body().collect()];
        let mut reading: futures_util::stream::FuturesUnordered<_> = reading.into_iter().collect();
        futures_util::StreamExt::next(&mut reading)
            .await
            .unwrap()
            .unwrap();
        Response::new(full("read"))
    });
    assert_waits_for_client(among_others).await;
}
