//! The pace of request bodies, exact on paused time.

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version, header};
use http_body::Body;
use http_body_util::{BodyExt, Channel, Empty, Full, channel::Sender};
use palisade_core::{ConnInfo, Guard, Phase, Prefix, Reason, Violation};
use palisade_slow_body::{Budget, Mode, Pace, Pressure, RequestBody, SlowBodyLayer};
use palisade_testkit::Journal;
use std::{
    convert::Infallible,
    future::{pending, poll_fn, ready},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

type FullResponse = Response<Full<Bytes>>;
/// The body that a [`Client`] sends.
type ClientBody = Channel<Bytes, Infallible>;
/// The request that the handler receives.
type Upload = Request<RequestBody<ClientBody>>;
type Client = Sender<Bytes, Infallible>;

const MILLISECOND: Duration = Duration::from_millis(1);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn respond(status: StatusCode) -> Result<FullResponse, Infallible> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    Ok(response)
}

fn upload() -> (Client, Request<ClientBody>) {
    let (sender, body) = Channel::new(64);
    (
        sender,
        Request::post("/").body(body).expect("the request is valid"),
    )
}

/// A typical handler: reads the whole body, and responds with 400 if that fails.
async fn read_upload(request: Upload) -> Result<FullResponse, Infallible> {
    match request.into_body().collect().await {
        Ok(_) => respond(StatusCode::OK),
        Err(_) => respond(StatusCode::BAD_REQUEST),
    }
}

/// Serves one upload of `client`. Returns the status of the response, and the time until then.
async fn serve<C, F>(layer: &SlowBodyLayer, client: C) -> (StatusCode, Duration)
where
    C: FnOnce(Client) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, request) = upload();
    let client = tokio::spawn(client(sender));
    let began = Instant::now();
    let response = layer
        .layer(service_fn(read_upload))
        .oneshot(request)
        .await
        .expect("the handler is infallible");
    let elapsed = began.elapsed();
    client.abort();
    (response.status(), elapsed)
}

/// Sends `bytes` bytes, even if the body has been dropped.
async fn send(client: &mut Client, bytes: usize) {
    let _ = client.send_data(Bytes::from(vec![0; bytes])).await;
}

/// Returns a client that sends `bytes` bytes `times` times, each time after `wait`.
fn steady_client(
    wait: Duration,
    bytes: usize,
    times: u32,
) -> impl FnOnce(Client) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    move |mut client| {
        Box::pin(async move {
            for _ in 0..times {
                sleep(wait).await;
                send(&mut client, bytes).await;
            }
        })
    }
}

const TOO_SLOW: StatusCode = StatusCode::REQUEST_TIMEOUT;

#[tokio::test(start_paused = true)]
async fn a_stalled_upload_is_answered_408_after_the_gap() {
    let held = Arc::new(());
    let inside = held.clone();
    let journal = Journal::default();
    let handler = service_fn(move |request: Upload| {
        let inside = inside.clone();
        async move {
            let _inside = inside;
            read_upload(request).await
        }
    });
    let service = SlowBodyLayer::new().metrics(journal.clone()).layer(handler);
    let (mut client, request) = upload();
    send(&mut client, 100).await;
    let began = Instant::now();
    let mut future = pin!(service.oneshot(request));
    let response = future.as_mut().await.unwrap();
    assert_eq!(began.elapsed(), seconds(15));
    assert_eq!(response.status(), TOO_SLOW);
    assert_eq!(response.headers()[header::CONNECTION], "close");
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "body too slow"
    );
    // The response future still exists. The handler and the body have been dropped.
    assert_eq!(Arc::strong_count(&held), 1);
    assert!(client.send_data(Bytes::from("x")).await.is_err());
    let (guard, phase) = (Guard::SlowBody, Phase::RequestBody);
    let violation = Violation::new(guard, Reason::Gap, phase, 15_000, 15_000);
    assert_eq!(journal.refusals(), [(violation, Mode::Enforce)]);
    assert!(journal.cuts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn trickling_uploads_are_ended_soon_after_the_grace_and_a_window() {
    for step in [
        3 * MILLISECOND,
        seconds(1),
        seconds(10),
        seconds(15) - MILLISECOND,
    ] {
        let (status, elapsed) =
            serve(&SlowBodyLayer::new(), steady_client(step, 1, u32::MAX)).await;
        if step == 3 * MILLISECOND {
            // 333 B/s: the credit of one window lasts 30 s.
            assert_eq!((status, elapsed.as_secs()), (TOO_SLOW, 34));
            continue;
        }
        assert_eq!(status, TOO_SLOW);
        assert!(
            (seconds(15)..seconds(15) + 40 * MILLISECOND).contains(&elapsed),
            "{step:?}: {elapsed:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_allows_one_window_of_silence_and_no_more() {
    for burst in [10_000, 10_000_000] {
        let silent = move |mut client: Client| async move {
            sleep(seconds(6)).await;
            send(&mut client, burst).await;
            pending::<()>().await;
        };
        let (status, elapsed) = serve(&SlowBodyLayer::new(), silent).await;
        assert_eq!((status, elapsed), (TOO_SLOW, seconds(16)));
    }
}

#[tokio::test(start_paused = true)]
async fn uploads_that_keep_the_pace_are_not_cut() {
    let layer = SlowBodyLayer::new();
    let uploads = [
        (seconds(1), 16 * 1024, 128), // 2 MiB at 16 KiB/s.
        (seconds(1), 500, 1000),      // Exactly at the rate.
        (seconds(3), 8 * 1024, 20),   // A phone that loses its signal for 3 s.
        (seconds(9), 5000, 50),       // Large chunks, long waits.
        (seconds(14), 1, 1),          // A small body after a long silence.
    ];
    for (wait, bytes, times) in uploads {
        let (status, elapsed) = serve(&layer, steady_client(wait, bytes, times)).await;
        assert_eq!((status, elapsed), (StatusCode::OK, wait * times));
    }
    let (status, _) = serve(&layer, steady_client(seconds(1), 499, 10_000)).await;
    assert_eq!(status, TOO_SLOW);
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_slow_handler_is_not_charged_to_the_client() {
    let handler = service_fn(|request: Upload| async {
        let mut body = request.into_body();
        sleep(seconds(3600)).await;
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return respond(StatusCode::BAD_REQUEST);
            }
            sleep(seconds(3600)).await;
        }
        respond(StatusCode::OK)
    });
    let (mut client, request) = upload();
    let response = tokio::spawn(SlowBodyLayer::new().layer(handler).oneshot(request));
    for _ in 0..10 {
        // One second after the handler has asked for the next frame.
        sleep(seconds(3601)).await;
        send(&mut client, 1).await;
    }
    drop(client);
    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_handler_abandons_is_not_charged_to_the_client() {
    let handler = service_fn(|request: Upload| async {
        let mut body = request.into_body();
        for _ in 0..5 {
            {
                // Ask for a frame before one has arrived.
                let mut frame = pin!(body.frame());
                let polled = poll_fn(|cx| Poll::Ready(frame.as_mut().poll(cx))).await;
                assert!(polled.is_pending());
            }
            sleep(seconds(3600)).await;
            if body.frame().await.is_none_or(|frame| frame.is_err()) {
                return respond(StatusCode::BAD_REQUEST);
            }
        }
        respond(StatusCode::OK)
    });
    let (mut client, request) = upload();
    let response = tokio::spawn(SlowBodyLayer::new().layer(handler).oneshot(request));
    for _ in 0..5 {
        sleep(MILLISECOND).await;
        send(&mut client, 1).await;
        sleep(seconds(3600) - MILLISECOND).await;
    }
    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_second_wait_has_exactly_one_gap_however_late_it_begins() {
    // It begins at once, about when the first wait would have been too long, and long after that.
    for work_seconds in [0, 59, 60, 61, 3600] {
        let handler = service_fn(move |request: Upload| async move {
            let mut body = request.into_body();
            let _ = body.frame().await;
            sleep(seconds(work_seconds)).await;
            let second = body.frame().await.expect("the body has not ended");
            respond(if second.is_err() {
                StatusCode::BAD_REQUEST
            } else {
                StatusCode::OK
            })
        });
        let layer = SlowBodyLayer::new().request(Pace::conversation());
        let (mut client, request) = upload();
        let response = tokio::spawn(layer.layer(handler).oneshot(request));
        sleep(seconds(1)).await;
        send(&mut client, 1).await;
        let sent = Instant::now();
        assert_eq!(response.await.unwrap().unwrap().status(), TOO_SLOW);
        assert_eq!(
            sent.elapsed(),
            seconds(work_seconds + 60),
            "after {work_seconds} s of work"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_stall_of_the_server_extends_the_wait_once() {
    // Bytes arrived during the stall.
    let (mut client, request) = upload();
    let mut response = Box::pin(
        SlowBodyLayer::new()
            .layer(service_fn(read_upload))
            .oneshot(request),
    );
    let mut cx = Context::from_waker(Waker::noop());
    assert!(response.as_mut().poll(&mut cx).is_pending());
    advance(seconds(3600)).await;
    send(&mut client, 1).await;
    assert!(response.as_mut().poll(&mut cx).is_pending());
    drop(client);
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);

    // Nothing arrived during the stall. Bytes may arrive within the extension.
    for (arrives, expected) in [(true, StatusCode::OK), (false, TOO_SLOW)] {
        let (mut client, request) = upload();
        let mut response = Box::pin(
            SlowBodyLayer::new()
                .layer(service_fn(read_upload))
                .oneshot(request),
        );
        assert!(response.as_mut().poll(&mut cx).is_pending());
        advance(seconds(3600)).await;
        assert!(response.as_mut().poll(&mut cx).is_pending());
        let stalled = Instant::now();
        let response = tokio::spawn(response);
        sleep(200 * MILLISECOND).await;
        if arrives {
            send(&mut client, 1).await;
            drop(client);
        }
        assert_eq!(response.await.unwrap().unwrap().status(), expected);
        assert_eq!(
            stalled.elapsed(),
            if arrives {
                200 * MILLISECOND
            } else {
                250 * MILLISECOND
            }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_stall_extends_the_wait_only_after_the_client_has_caught_up() {
    for (bytes, is_refused) in [(1, true), (1 << 20, false)] {
        let (mut client, request) = upload();
        let mut response = Box::pin(
            SlowBodyLayer::new()
                .layer(service_fn(read_upload))
                .oneshot(request),
        );
        let mut cx = Context::from_waker(Waker::noop());
        assert!(response.as_mut().poll(&mut cx).is_pending());
        advance(seconds(3600)).await;
        assert!(
            response.as_mut().poll(&mut cx).is_pending(),
            "the first stall extends the wait"
        );
        send(&mut client, bytes).await;
        assert!(response.as_mut().poll(&mut cx).is_pending());
        advance(seconds(3600)).await;
        match response.as_mut().poll(&mut cx) {
            Poll::Ready(response) => {
                assert_eq!((response.unwrap().status(), is_refused), (TOO_SLOW, true));
            }
            Poll::Pending => assert!(!is_refused, "one byte does not earn a second extension"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_in_another_task_ends_the_handler() {
    let held = Arc::new(());
    let inside = held.clone();
    let handler = service_fn(move |request: Upload| {
        let inside = inside.clone();
        async move {
            tokio::spawn(read_upload(request));
            // The handler does not wait for that task.
            pending::<()>().await;
            drop(inside);
            respond(StatusCode::OK)
        }
    });
    let (_client, request) = upload();
    let began = Instant::now();
    let response = SlowBodyLayer::new()
        .layer(handler)
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(
        (response.status(), began.elapsed()),
        (TOO_SLOW, seconds(15))
    );
    assert_eq!(Arc::strong_count(&held), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_cannot_respond_once_its_body_was_too_slow() {
    let handler = service_fn(|request: Upload| async {
        let error = request.into_body().collect().await.unwrap_err();
        let violation = Violation::from_error(&*error).expect("the error is a violation");
        assert_eq!(violation.reason, Reason::Gap);
        respond(StatusCode::IM_A_TEAPOT)
    });
    let (_client, request) = upload();
    let response = SlowBodyLayer::new()
        .layer(handler)
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(response.status(), TOO_SLOW);
}

#[tokio::test(start_paused = true)]
async fn after_the_response_head_a_slow_body_is_cut() {
    let journal = Journal::default();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let mut sender = Some(sender);
    let handler = service_fn(move |request: Upload| {
        let sender = sender.take().unwrap();
        tokio::spawn(async move {
            let mut body = request.into_body();
            let error = body.frame().await.unwrap().unwrap_err();
            assert!(body.is_end_stream());
            assert!(body.frame().await.is_none());
            sender
                .send(*Violation::from_error(&*error).unwrap())
                .unwrap();
        });
        ready(respond(StatusCode::OK))
    });
    let (_client, request) = upload();
    let layer = SlowBodyLayer::new().metrics(journal.clone());
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let (guard, phase) = (Guard::SlowBody, Phase::ResponseBody);
    let violation = Violation::new(guard, Reason::Gap, phase, 15_000, 15_000);
    assert_eq!(receiver.await.unwrap(), violation);
    assert_eq!(journal.cuts(), [(violation, Mode::Enforce)]);
    assert!(journal.refused().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_after_the_response_future_is_dropped_is_recorded_as_a_cut() {
    let journal = Journal::default();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let mut sender = Some(sender);
    let handler = service_fn(move |request: Upload| {
        let sender = sender.take().unwrap();
        async move {
            tokio::spawn(async move { sender.send(read_upload(request).await.unwrap().status()) });
            pending::<Result<FullResponse, Infallible>>().await
        }
    });
    let (_client, request) = upload();
    let layer = SlowBodyLayer::new().metrics(journal.clone());
    let response = tokio::spawn(layer.layer(handler).oneshot(request));
    sleep(seconds(1)).await;
    response.abort();
    assert_eq!(receiver.await.unwrap(), StatusCode::BAD_REQUEST);
    assert_eq!(journal.cut(), [(Guard::SlowBody, Reason::Gap)]);
    assert!(journal.refused().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_dropped_in_time_records_nothing() {
    let journal = Journal::default();
    let handler = service_fn(|request: Upload| async {
        let _ = tokio::time::timeout(seconds(14), request.into_body().collect()).await;
        sleep(seconds(100)).await;
        respond(StatusCode::OK)
    });
    let (_client, request) = upload();
    let layer = SlowBodyLayer::new().metrics(journal.clone());
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(journal.refused().is_empty() && journal.cut().is_empty());
}

fn grpc_upload() -> (Client, Request<ClientBody>) {
    let (sender, body) = Channel::new(64);
    let request = Request::post("/demo.Echo/Collect").version(Version::HTTP_2);
    let request = request.header("content-type", "application/grpc");
    (sender, request.body(body).expect("the request is valid"))
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_grpc_over_http2_has_the_general_pace() {
    for (version, kind) in [
        (Version::HTTP_11, "application/grpc"),
        (Version::HTTP_11, "application/grpc+proto"),
        (Version::HTTP_2, "application/grpcx"),
        (Version::HTTP_2, "application/grpc-webx"),
        (Version::HTTP_2, "application/grpc-web"),
        (Version::HTTP_2, "application/grpc-web-text"),
    ] {
        let journal = Journal::default();
        let (_client, mut request) = grpc_upload();
        *request.version_mut() = version;
        request
            .headers_mut()
            .insert("content-type", kind.parse().unwrap());
        // gRPC requires this header. Other requests may have it too.
        request
            .headers_mut()
            .insert("te", "trailers".parse().unwrap());
        let began = Instant::now();
        let layer = SlowBodyLayer::new().metrics(journal.clone());
        layer
            .layer(service_fn(read_upload))
            .oneshot(request)
            .await
            .unwrap();
        assert_eq!(began.elapsed(), seconds(15), "{version:?} {kind}");
        assert_eq!(journal.refused(), [(Guard::SlowBody, Reason::Gap)]);
    }
}

#[tokio::test(start_paused = true)]
async fn grpc_can_be_given_the_general_pace() {
    let layer = SlowBodyLayer::new().grpc(Pace::default());
    let (_client, request) = grpc_upload();
    let began = Instant::now();
    let response = layer
        .layer(service_fn(read_upload))
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(began.elapsed(), seconds(15));
    assert_eq!(response.headers()["grpc-status"], "4");
}

#[tokio::test(start_paused = true)]
async fn a_grpc_stream_has_the_grpc_pace() {
    let service = SlowBodyLayer::new().layer(service_fn(read_upload));
    let (client, request) = grpc_upload();
    tokio::spawn(steady_client(seconds(59), 8, 100)(client));
    let began = Instant::now();
    let response = service.clone().oneshot(request).await.unwrap();
    assert!(!response.headers().contains_key("grpc-status"));
    assert_eq!(began.elapsed(), seconds(5900));

    let (_client, request) = grpc_upload();
    let began = Instant::now();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(began.elapsed(), seconds(60));
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "4");
    assert_eq!(response.headers()["grpc-message"], "body too slow");
}

#[tokio::test(start_paused = true)]
async fn pace_for_sets_the_pace_of_single_requests() {
    for (pace, expected) in [
        (Pace::off(), None),
        (Pace::conversation(), None),
        (Pace::gap_only(seconds(20)).unwrap(), Some(seconds(20))),
    ] {
        let layer = SlowBodyLayer::new()
            .pace_for(move |head| (head.uri.path() == "/events").then_some(pace));
        let service = layer.layer(service_fn(read_upload));
        let (client, mut request) = upload();
        *request.uri_mut() = "/events".parse().unwrap();
        tokio::spawn(steady_client(seconds(50), 1, 3)(client));
        let began = Instant::now();
        let response = service.oneshot(request).await.unwrap();
        match expected {
            None => assert_eq!(response.status(), StatusCode::OK),
            Some(end) => assert_eq!((response.status(), began.elapsed()), (TOO_SLOW, end)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pressure_raises_the_required_rate() {
    for (pressure, expected) in [(0.0, StatusCode::OK), (1.0, TOO_SLOW)] {
        let level = Pressure::default();
        let layer = SlowBodyLayer::new().pressure(level.clone());
        level.set(pressure);
        let (status, _) = serve(&layer, steady_client(seconds(1), 2000, 200)).await;
        assert_eq!(status, expected);
        let (status, _) = serve(&layer, steady_client(seconds(1), 4000, 200)).await;
        assert_eq!(status, StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pressure_that_is_not_high_cuts_no_upload_and_a_pace_sets_its_rate_at_full_pressure() {
    let of_own_rate = Pace::builder().full_pressure_rate(1000).build().unwrap();
    for (pace, pressure, bytes, expected) in [
        (Pace::default(), 0.75, 600, StatusCode::OK),
        (Pace::default(), 0.8, 600, StatusCode::OK),
        (Pace::default(), 0.9, 2000, TOO_SLOW), // 2,250 are required.
        (Pace::default(), 0.9, 2500, StatusCode::OK),
        (of_own_rate, 0.9, 700, TOO_SLOW), // 750 are required.
        (of_own_rate, 1.0, 1000, StatusCode::OK),
    ] {
        let level = Pressure::default();
        level.set(pressure);
        let layer = SlowBodyLayer::new().request(pace).pressure(level);
        let (status, _) = serve(&layer, steady_client(seconds(1), bytes, 3600)).await;
        assert_eq!(status, expected, "{bytes} bytes per second at {pressure}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_raises_the_required_rate_as_it_fills_and_lowers_it_at_once() {
    let budget = Budget::new(100_000).unwrap();
    let pressure = Pressure::default();
    let layer = SlowBodyLayer::new().byte_budget(budget.clone());
    let layer = layer.pressure(pressure.clone());
    let served = async |bytes| serve(&layer, steady_client(seconds(1), bytes, 200)).await.0;
    assert_eq!(served(600).await, StatusCode::OK);
    budget.take(None, 80_000).unwrap();
    assert_eq!(served(600).await, StatusCode::OK);
    budget.take(None, 15_000).unwrap();
    assert_eq!(served(2500).await, TOO_SLOW); // 3,125 are required.
    assert_eq!(served(3200).await, StatusCode::OK);
    // The higher pressure counts.
    pressure.set(1.0);
    assert_eq!(served(3200).await, TOO_SLOW);
    pressure.set(0.9);
    assert_eq!(served(2500).await, TOO_SLOW);
    pressure.set(0.0);
    budget.give_back(None, 95_000);
    assert_eq!(served(600).await, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn bytes_count_at_the_rate_in_force_when_they_arrived() {
    let pressure = Pressure::default();
    let layer = SlowBodyLayer::new().pressure(pressure.clone());
    let (mut client, request) = upload();
    let began = Instant::now();
    let response = tokio::spawn(layer.layer(service_fn(read_upload)).oneshot(request));
    sleep(seconds(14)).await;
    // Covers 8 s at 500 bytes per second: with the grace and the window, until 23 s.
    send(&mut client, 4000).await;
    sleep(500 * MILLISECOND).await;
    pressure.set(1.0);
    assert_eq!(response.await.unwrap().unwrap().status(), TOO_SLOW);
    assert_eq!(began.elapsed(), seconds(23));
}

#[tokio::test(start_paused = true)]
async fn a_custom_pace_is_enforced() {
    let pace = Pace::builder()
        .gap(100 * MILLISECOND)
        .rate(1000)
        .window(200 * MILLISECOND)
        .grace(Duration::ZERO)
        .total(seconds(1))
        .build()
        .unwrap();
    let layer = SlowBodyLayer::new().request(pace);
    let silent = |client: Client| async move {
        let _client = client;
        pending::<()>().await;
    };
    assert_eq!(serve(&layer, silent).await, (TOO_SLOW, 100 * MILLISECOND));
    let (status, elapsed) = serve(&layer, steady_client(99 * MILLISECOND, 1, 100)).await;
    assert_eq!((status, elapsed), (TOO_SLOW, 202 * MILLISECOND));
    // A body of unknown length has no total.
    let (status, _) = serve(&layer, steady_client(50 * MILLISECOND, 50, 100)).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_records_once_and_a_guard_that_is_off_records_nothing() {
    for (mode, recorded) in [(Mode::Shadow, 1), (Mode::Off, 0)] {
        let journal = Journal::default();
        let layer = SlowBodyLayer::new().mode(mode).metrics(journal.clone());
        let (status, elapsed) = serve(&layer, steady_client(seconds(100), 1, 5)).await;
        assert_eq!((status, elapsed), (StatusCode::OK, seconds(500)));
        assert_eq!(journal.refused().len(), recorded);
        assert!(journal.cut().is_empty());
    }
}

#[test]
fn a_body_that_is_ready_at_once_needs_no_timer() {
    // There is no runtime here, so creating a timer would panic.
    let body = Full::new(Bytes::from_static(b"whole"));
    let handler = service_fn(|request: Request<RequestBody<Full<Bytes>>>| async {
        let body = request.into_body();
        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");
        respond(StatusCode::OK)
    });
    let mut service = SlowBodyLayer::new().layer(handler);
    let mut response = pin!(service.call(Request::new(body)));
    assert!(
        response
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_body_keeps_its_length_and_trailers() {
    let handler = service_fn(|request: Request<RequestBody<_>>| async move {
        let body = request.into_body();
        assert_eq!(body.size_hint().lower(), 3);
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["etag"], "x");
        respond(StatusCode::OK)
    });
    let trailers = http::HeaderMap::from_iter([(header::ETAG, "x".parse().unwrap())]);
    let body = Full::new(Bytes::from_static(b"abc"))
        .with_trailers(ready(Some(Ok::<_, Infallible>(trailers))));
    SlowBodyLayer::new()
        .layer(handler)
        .oneshot(Request::new(body))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_inner_body_and_the_handler_pass_unchanged() {
    let (mut client, body) = Channel::<Bytes, std::io::Error>::new(1);
    let handler = service_fn(|request: Request<RequestBody<Channel<_, _>>>| async {
        let error = request.into_body().collect().await.unwrap_err();
        assert!(Violation::from_error(&*error).is_none());
        Err::<FullResponse, _>(error.to_string())
    });
    let response = SlowBodyLayer::new()
        .layer(handler)
        .oneshot(Request::new(body));
    let client = async move {
        sleep(seconds(1)).await;
        client.send_data(Bytes::from("x")).await.unwrap();
        client.abort(std::io::Error::other("gone"));
    };
    let (result, ()) = tokio::join!(response, client);
    assert_eq!(result.unwrap_err(), "gone");
}

/// A handler future that takes no space.
struct ZeroSizedFuture;

impl Future for ZeroSizedFuture {
    type Output = Result<FullResponse, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Pending
    }
}

#[test]
fn the_response_future_adds_at_most_72_bytes() {
    let handler = service_fn(|_: Request<RequestBody<Empty<Bytes>>>| ZeroSizedFuture);
    let mut service = SlowBodyLayer::new().layer(handler);
    let added =
        size_of_val(&service.call(Request::new(Empty::new()))) - size_of::<ZeroSizedFuture>();
    assert!(added <= 72, "{added}");
}

/// Creates an upload over HTTP/2 on `conn`.
fn upload_on(conn: &Arc<ConnInfo>) -> (Client, Request<ClientBody>) {
    let (sender, mut request) = upload();
    *request.version_mut() = Version::HTTP_2;
    request.extensions_mut().insert(conn.clone());
    (sender, request)
}

/// Creates an HTTP/2 connection.
fn http2_connection() -> Arc<ConnInfo> {
    ConnInfo::new(([192, 0, 2, 1], 1).into(), None, Prefix::default())
}

#[tokio::test(start_paused = true)]
async fn silence_beside_an_unread_body_is_charged_after_a_minute() {
    let conn = http2_connection();
    let service = SlowBodyLayer::new().layer(service_fn(read_upload));
    conn.add_unread_body();
    let (_client, request) = upload_on(&conn);
    let began = Instant::now();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    let took = began.elapsed();
    assert!(seconds(75) <= took && took <= seconds(77), "{took:?}");
    conn.remove_unread_body();
    assert!(!conn.has_unread_body());
}

#[tokio::test(start_paused = true)]
async fn short_waits_do_not_use_up_the_excused_minute() {
    let conn = http2_connection();
    let service = SlowBodyLayer::new().layer(service_fn(read_upload));
    conn.add_unread_body();
    let (mut client, request) = upload_on(&conn);
    let response = tokio::spawn(service.oneshot(request));
    for _ in 0..100 {
        sleep(1500 * MILLISECOND).await;
        send(&mut client, 1500).await;
    }
    let last = Instant::now();
    let response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    let took = last.elapsed();
    assert!(seconds(68) <= took && took <= seconds(77), "{took:?}");
    conn.remove_unread_body();
}

#[tokio::test(start_paused = true)]
async fn a_wait_has_its_whole_gap_after_the_other_body_is_read() {
    let conn = http2_connection();
    let service = SlowBodyLayer::new().layer(service_fn(read_upload));
    conn.add_unread_body();
    let (_client, request) = upload_on(&conn);
    let began = Instant::now();
    let response = tokio::spawn(service.oneshot(request));
    sleep(seconds(30)).await;
    conn.remove_unread_body();
    let response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    let took = began.elapsed();
    // The gap starts at the last check before the other body was read, up to 2 s earlier.
    assert!(seconds(43) <= took && took <= seconds(45), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_is_unread_until_its_end_except_while_it_is_awaited() {
    let conn = http2_connection();
    let (start, started) = tokio::sync::oneshot::channel::<()>();
    let started = std::sync::Mutex::new(Some(started));
    let service = SlowBodyLayer::new().layer(service_fn(move |request: Upload| {
        let started = started.lock().unwrap().take().unwrap();
        async move {
            started.await.unwrap();
            read_upload(request).await
        }
    }));
    let (client, request) = upload_on(&conn);
    let response = tokio::spawn(service.oneshot(request));
    sleep(seconds(1)).await;
    assert!(conn.has_unread_body());
    start.send(()).unwrap();
    sleep(seconds(1)).await;
    assert!(!conn.has_unread_body());
    drop(client);
    response.await.unwrap().unwrap();
    assert!(!conn.has_unread_body());
}

#[tokio::test(start_paused = true)]
async fn an_excused_wait_with_little_time_left_is_checked_rarely() {
    let conn = http2_connection();
    let service = SlowBodyLayer::new().layer(service_fn(read_upload));
    let (mut client, request) = upload_on(&conn);
    let polls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = polls.clone();
    let response = tokio::spawn(async move {
        let mut response = Box::pin(service.oneshot(request));
        poll_fn(move |cx| {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            response.as_mut().poll(cx)
        })
        .await
    });
    // The byte leaves 2 ms of the grace and the window.
    sleep(seconds(15) - 2 * MILLISECOND).await;
    client.send_data(Bytes::from_static(b"x")).await.unwrap();
    sleep(MILLISECOND).await;
    conn.add_unread_body();
    let before = polls.load(std::sync::atomic::Ordering::Relaxed);
    sleep(seconds(30)).await;
    let checks = polls.load(std::sync::atomic::Ordering::Relaxed) - before;
    assert!(checks <= 310, "{checks} polls in half a minute");
    conn.remove_unread_body();
    let response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
}
