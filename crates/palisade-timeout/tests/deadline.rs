//! Tests of the deadline on paused time, with exact durations.

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Channel, Empty, Full, channel::Sender};
use palisade_core::{Guard, Phase, Reason, Violation};
use palisade_testkit::Journal;
use palisade_timeout::{Deadline, Limits, Mode, RequestBody, TimeoutLayer};
use std::{
    convert::Infallible,
    future::{pending, ready},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, advance, sleep},
};
use tower::{Layer, Service, ServiceExt, service_fn};

type EmptyBody = Empty<Bytes>;
type ChannelBody = Channel<Bytes, Infallible>;
type Upload = Request<RequestBody<ChannelBody>>;

const SECOND: Duration = Duration::from_secs(1);

fn seconds(count: u32) -> Duration {
    SECOND * count
}

fn empty_response() -> Result<Response<EmptyBody>, Infallible> {
    Ok(Response::new(Empty::new()))
}

fn empty_request() -> Request<EmptyBody> {
    Request::new(Empty::new())
}

fn upload() -> (Sender<Bytes, Infallible>, Request<ChannelBody>) {
    let (sender, body) = Channel::new(64);
    let request = Request::post("/").body(body).expect("the request is valid");
    (sender, request)
}

/// Reads the request body to its end and returns its length.
async fn read(request: Upload) -> usize {
    request
        .into_body()
        .collect()
        .await
        .expect("the body is complete")
        .to_bytes()
        .len()
}

/// A handler that responds after `duration`.
fn delayed_handler(
    duration: Duration,
) -> impl Service<
    Request<RequestBody<EmptyBody>>,
    Response = Response<EmptyBody>,
    Error = Infallible,
    Future: Send,
> + Clone {
    service_fn(move |_| async move {
        sleep(duration).await;
        empty_response()
    })
}

#[tokio::test(start_paused = true)]
async fn a_late_handler_is_dropped_before_the_refusal() {
    let held = Arc::new(());
    let journal = Journal::default();
    let handler = {
        let held = held.clone();
        service_fn(move |_| {
            let held = held.clone();
            async move {
                sleep(seconds(31)).await;
                drop(held);
                empty_response()
            }
        })
    };
    let service = TimeoutLayer::new(seconds(30))
        .metrics(journal.clone())
        .layer(handler);
    let started = Instant::now();
    let mut future = pin!(service.oneshot(empty_request()));
    let response = future.as_mut().await.unwrap();
    assert_eq!(started.elapsed(), seconds(30));
    // The response future still exists, with the service in it, but the handler has been dropped.
    assert_eq!(Arc::strong_count(&held), 1);
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!response.headers().contains_key(header::CONNECTION));
    let violation = Violation::new(
        Guard::Timeout,
        Reason::Deadline,
        Phase::Handler,
        30_000,
        30_000,
    );
    assert_eq!(journal.refusals(), [(violation, Mode::Enforce)]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_is_ready_at_the_deadline_is_in_time() {
    let service = TimeoutLayer::new(seconds(30)).layer(delayed_handler(seconds(30)));
    assert_eq!(
        service.oneshot(empty_request()).await.unwrap().status(),
        StatusCode::OK
    );
}

#[test]
fn a_handler_that_is_ready_at_once_needs_neither_timer_nor_clock() {
    // Without a runtime, creating a timer would panic.
    let layer = TimeoutLayer::new(seconds(30));
    let mut service = layer.layer(service_fn(|_| ready(empty_response())));
    let mut future = pin!(service.call(empty_request()));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(future.as_mut().poll(&mut cx).is_ready());
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_permit_counts() {
    let permits = Arc::new(Semaphore::new(1));
    let service = TimeoutLayer::new(seconds(5)).layer(service_fn(move |_| {
        let permits = permits.clone();
        async move {
            let _permit = permits.acquire().await;
            sleep(seconds(4)).await;
            empty_response()
        }
    }));
    let status = || {
        let future = service.clone().oneshot(empty_request());
        async { future.await.unwrap().status() }
    };
    let (first, second) = tokio::join!(status(), status());
    assert_eq!(first, StatusCode::OK);
    assert_eq!(second, StatusCode::SERVICE_UNAVAILABLE);
    // The waiter has left the queue, and the permit is free again.
    assert_eq!(status().await, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_paused_while_the_request_waits_for_its_client() {
    for (work, expected) in [(29, StatusCode::OK), (31, StatusCode::SERVICE_UNAVAILABLE)] {
        let handler = service_fn(move |request: Upload| async move {
            read(request).await;
            sleep(seconds(work)).await;
            empty_response()
        });
        let service = TimeoutLayer::new(seconds(30)).layer(handler);
        let (mut sender, request) = upload();
        let started = Instant::now();
        let client = async move {
            for _ in 0..10 {
                sleep(seconds(40)).await;
                sender.send_data(Bytes::from_static(b"x")).await.unwrap();
            }
        };
        let (response, ()) = tokio::join!(service.oneshot(request), client);
        let response = response.unwrap();
        assert_eq!(response.status(), expected);
        assert_eq!(started.elapsed(), seconds(400 + work.min(30)));
        // The body was read to its end, so the connection can stay open.
        assert!(!response.headers().contains_key(header::CONNECTION));
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_between_waits_adds_up() {
    let handler = service_fn(|request: Upload| async move {
        let mut body = request.into_body();
        while body.frame().await.is_some() {
            sleep(seconds(7)).await;
        }
        empty_response()
    });
    let service = TimeoutLayer::new(seconds(30)).layer(handler);
    let (mut sender, request) = upload();
    let started = Instant::now();
    let client = async move {
        for _ in 0..10 {
            sleep(seconds(100)).await;
            if sender.send_data(Bytes::from_static(b"x")).await.is_err() {
                break;
            }
        }
    };
    let exchange = async {
        let response = service.oneshot(request).await.unwrap();
        // 30 seconds of work: four times seven, and two. Each byte arrives 100 seconds after the
        // previous one.
        (response, started.elapsed())
    };
    let ((response, elapsed), ()) = tokio::join!(exchange, client);
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(elapsed, seconds(500 + 2));
    assert_eq!(response.headers()[header::CONNECTION], "close"); // The body has not ended.
}

#[tokio::test(start_paused = true)]
async fn the_deadline_resumes_when_a_body_in_another_task_is_dropped() {
    let handler = service_fn(|request: Upload| async move {
        tokio::spawn(async move {
            let _ = tokio::time::timeout(seconds(100), read(request)).await;
        });
        pending::<()>().await;
        empty_response()
    });
    let service = TimeoutLayer::new(seconds(30)).layer(handler);
    let (_sender, request) = upload();
    let started = Instant::now();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(started.elapsed(), seconds(130));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_resumes_when_a_body_in_another_task_is_ready() {
    let handler = service_fn(|request: Upload| async move {
        let mut body = request.into_body();
        let reader = tokio::spawn(async move {
            let first = body.frame().await;
            (first, body)
        });
        let _kept = reader.await;
        pending::<()>().await;
        empty_response()
    });
    let service = TimeoutLayer::new(seconds(30)).layer(handler);
    let (mut sender, request) = upload();
    let started = Instant::now();
    let client = async {
        sleep(seconds(50)).await;
        sender.send_data(Bytes::from_static(b"x")).await.unwrap();
    };
    let (response, ()) = tokio::join!(service.oneshot(request), client);
    assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(started.elapsed(), seconds(80));
}

/// Reads until the body is pending, as axum's `Multipart` does, even if it has enough data.
async fn read_ahead(body: &mut RequestBody<ChannelBody>) -> usize {
    let mut body = Pin::new(body);
    std::future::poll_fn(|cx| {
        let mut read = 0;
        while let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(cx) {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
        Poll::Ready(read)
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_byte_held_back_does_not_pause_the_deadline_of_a_working_handler() {
    for steps in [1, 3600] {
        let handler = service_fn(move |request: Upload| async move {
            let mut body = request.into_body();
            assert_eq!(read_ahead(&mut body).await, 100);
            for _ in 0..steps {
                sleep(seconds(3600) / steps).await;
            }
            drop(body);
            empty_response()
        });
        let (mut client, request) = upload();
        client.send_data(Bytes::from(vec![0; 100])).await.unwrap();
        let started = Instant::now();
        let response = TimeoutLayer::new(seconds(30))
            .layer(handler)
            .oneshot(request)
            .await;
        assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        // Detected at the next poll of the handler, which is at most 30 seconds later.
        assert!(
            started.elapsed() <= seconds(60),
            "{:?} in {steps} steps",
            started.elapsed()
        );
        drop(client);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_can_wait_for_its_client_again_after_working() {
    let handler = service_fn(|request: Upload| async {
        let mut body = request.into_body();
        assert_eq!(read_ahead(&mut body).await, 100);
        sleep(seconds(10)).await;
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 100);
        sleep(seconds(10)).await;
        empty_response()
    });
    let (mut sender, request) = upload();
    sender.send_data(Bytes::from(vec![0; 100])).await.unwrap();
    let client = async move {
        sleep(seconds(500)).await;
        sender.send_data(Bytes::from(vec![0; 100])).await.unwrap();
    };
    let service = TimeoutLayer::new(seconds(30)).layer(handler);
    let (response, ()) = tokio::join!(service.oneshot(request), client);
    assert_eq!(response.unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_drips_does_not_rearm_the_timer() {
    // Each byte wakes the handler. The timer has fired and must not be set again for each of them.
    let polls = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = polls.clone();
    let handler = service_fn(move |request: Upload| {
        let counted = counted.clone();
        async move {
            let mut reading = pin!(read(request));
            std::future::poll_fn(|cx| {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                reading.as_mut().poll(cx)
            })
            .await;
            empty_response()
        }
    });
    let service = TimeoutLayer::new(Duration::from_millis(1)).layer(handler);
    let (mut sender, request) = upload();
    let client = async move {
        for _ in 0..100 {
            sleep(seconds(1)).await;
            sender.send_data(Bytes::from_static(b"x")).await.unwrap();
        }
    };
    let (response, ()) = tokio::join!(service.oneshot(request), client);
    assert_eq!(response.unwrap().status(), StatusCode::OK);
    assert!(polls.load(std::sync::atomic::Ordering::Relaxed) < 400);
}

#[tokio::test(start_paused = true)]
async fn the_total_deadline_is_not_paused() {
    let journal = Journal::default();
    let layer = TimeoutLayer::new(seconds(30))
        .total(seconds(60))
        .metrics(journal.clone());
    let service = layer.layer(service_fn(|request: Upload| async move {
        read(request).await;
        empty_response()
    }));
    let (_sender, request) = upload();
    let started = Instant::now();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(started.elapsed(), seconds(60));
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[header::CONNECTION], "close");
    let (guard, reason, phase) = (Guard::Timeout, Reason::TotalDeadline, Phase::RequestBody);
    let violation = Violation::new(guard, reason, phase, 60_000, 60_000);
    assert_eq!(journal.refusals(), [(violation, Mode::Enforce)]);
}

#[tokio::test(start_paused = true)]
async fn the_head_deadline_holds_after_a_wait_with_a_total_deadline() {
    // The timer is set to the total deadline during the wait, and must be set back after it.
    let service = TimeoutLayer::new(seconds(5))
        .total(seconds(60))
        .layer(service_fn(|request: Upload| async move {
            request.into_body().frame().await;
            pending::<()>().await;
            empty_response()
        }));
    let (mut sender, request) = upload();
    let started = Instant::now();
    let client = async {
        sleep(seconds(20)).await;
        sender.send_data(Bytes::from_static(b"x")).await.unwrap();
    };
    let (response, ()) = tokio::join!(service.oneshot(request), client);
    assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(started.elapsed(), seconds(25));
}

#[tokio::test(start_paused = true)]
async fn a_response_body_is_cut_at_the_total_deadline() {
    let journal = Journal::default();
    let layer = TimeoutLayer::new(seconds(30))
        .total(seconds(60))
        .metrics(journal.clone());
    let (mut sender, channel) = Channel::<Bytes, Infallible>::new(1);
    let mut channel = Some(channel);
    let handler = service_fn(move |_: Request<RequestBody<EmptyBody>>| {
        let channel = channel.take().unwrap();
        async {
            sleep(seconds(10)).await;
            Ok::<_, Infallible>(Response::new(channel))
        }
    });
    let started = Instant::now();
    let mut body = layer
        .layer(handler)
        .oneshot(empty_request())
        .await
        .unwrap()
        .into_body();
    sender
        .send_data(Bytes::from_static(b"first"))
        .await
        .unwrap();
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "first"
    );
    // The sender is idle, so only the body's own timer can wake its reader.
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(started.elapsed(), seconds(60));
    let (guard, reason, phase) = (Guard::Timeout, Reason::TotalDeadline, Phase::ResponseBody);
    let violation = Violation::new(guard, reason, phase, 60_000, 60_000);
    assert_eq!(Violation::from_error(&*error), Some(&violation));
    assert_eq!(journal.cuts(), [(violation, Mode::Enforce)]);
    assert!(journal.refused().is_empty());
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
}

/// A response body that is always ready, with a total deadline of a minute.
async fn always_ready_body() -> impl Body<Data = Bytes, Error = palisade_core::BoxError> + Unpin {
    let frames = futures_util::stream::repeat_with(|| {
        Ok::<_, Infallible>(http_body::Frame::data(Bytes::from_static(b"more")))
    });
    let mut body = Some(http_body_util::StreamBody::new(frames));
    let handler = service_fn(move |_: Request<RequestBody<EmptyBody>>| {
        ready(Ok::<_, Infallible>(Response::new(
            body.take().expect("the handler is called once"),
        )))
    });
    let layer = TimeoutLayer::new(seconds(30)).total(seconds(60));
    layer
        .layer(handler)
        .oneshot(empty_request())
        .await
        .unwrap()
        .into_body()
}

#[tokio::test(start_paused = true)]
async fn a_response_body_that_is_always_ready_is_cut() {
    let mut body = always_ready_body().await;
    body.frame().await.unwrap().unwrap();
    advance(seconds(59)).await;
    body.frame().await.unwrap().unwrap();
    advance(seconds(1)).await;
    body.frame().await.unwrap().unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_poll_is_woken_at_the_total_deadline() {
    let mut body = always_ready_body().await;
    let started = Instant::now();
    for _ in 0..2 {
        body.frame().await.unwrap().unwrap();
    }
    // Only the body's own timer can wake this task.
    let mut woken = false;
    std::future::poll_fn(|_| match std::mem::replace(&mut woken, true) {
        false => Poll::Pending,
        true => Poll::Ready(()),
    })
    .await;
    assert_eq!(started.elapsed(), seconds(60));
    body.frame().await.unwrap().unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn the_task_that_took_over_a_body_is_woken_at_the_total_deadline() {
    let mut body = always_ready_body().await;
    // Until now another task has polled the body, and it will not poll it again.
    let mut other_task = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..3 {
        assert!(
            std::pin::Pin::new(&mut body)
                .poll_frame(&mut other_task)
                .is_ready()
        );
    }
    body.frame().await.unwrap().unwrap();
    let mut woken = false;
    let wait = std::future::poll_fn(|_| match std::mem::replace(&mut woken, true) {
        false => Poll::Pending,
        true => Poll::Ready(()),
    });
    let started = Instant::now();
    let _ = tokio::time::timeout(seconds(100), wait).await;
    assert_eq!(started.elapsed(), seconds(60));
    body.frame().await.unwrap().unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_response_that_ends_in_time_or_is_upgraded_is_not_cut() {
    let layer = TimeoutLayer::new(seconds(30)).total(seconds(60));
    let ends_in_time = service_fn(|_: Request<RequestBody<EmptyBody>>| {
        ready(Ok::<_, Infallible>(Response::new(Full::new(
            Bytes::from_static(b"whole"),
        ))))
    });
    let body = layer
        .layer(ends_in_time)
        .oneshot(empty_request())
        .await
        .unwrap()
        .into_body();
    assert_eq!(body.size_hint().exact(), Some(5));
    assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");

    let (mut sender, channel) = Channel::<Bytes, Infallible>::new(1);
    let mut channel = Some(channel);
    let upgrade = service_fn(move |_: Request<RequestBody<EmptyBody>>| {
        let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        ready(Ok::<_, Infallible>(
            response.body(channel.take().unwrap()).unwrap(),
        ))
    });
    let mut body = layer
        .layer(upgrade)
        .oneshot(empty_request())
        .await
        .unwrap()
        .into_body();
    advance(seconds(600)).await;
    sender
        .send_data(Bytes::from_static(b"still here"))
        .await
        .unwrap();
    body.frame().await.unwrap().unwrap();
}

fn grpc(timeout: &str) -> Request<EmptyBody> {
    let request = Request::post("/demo.Echo/Unary")
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc");
    request
        .header("grpc-timeout", timeout)
        .body(Empty::new())
        .expect("the request is valid")
}

#[tokio::test(start_paused = true)]
async fn the_lower_of_both_deadlines_applies_to_grpc() {
    for (header, expected) in [
        ("5S", 5_000),
        ("20S", 20_000),
        ("21S", 20_000),
        ("99999999H", 20_000),
        ("100m", 100),
        ("5s", 20_000),
        ("", 20_000),
        ("123456789m", 20_000),
    ] {
        let service = TimeoutLayer::new(seconds(20)).layer(delayed_handler(seconds(60)));
        let started = Instant::now();
        let response = service.oneshot(grpc(header)).await.unwrap();
        assert_eq!(
            started.elapsed(),
            Duration::from_millis(expected),
            "{header}"
        );
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "4");
        assert_eq!(response.headers()["grpc-message"], "request took too long");
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_timeout_is_ignored_outside_grpc() {
    let request = Request::post("/")
        .header("grpc-timeout", "0S")
        .body(Empty::new())
        .unwrap();
    let service = TimeoutLayer::new(seconds(20)).layer(delayed_handler(seconds(10)));
    assert_eq!(
        service.oneshot(request).await.unwrap().status(),
        StatusCode::OK
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_zero_limit_does_not_reach_the_handler() {
    let unreachable = service_fn(|_: Request<RequestBody<EmptyBody>>| async {
        unreachable!("the request was refused by its head");
        #[allow(unreachable_code)]
        empty_response()
    });
    let journal = Journal::default();
    let layer = TimeoutLayer::new(seconds(20)).metrics(journal.clone());
    let response = layer.layer(unreachable).oneshot(grpc("0m")).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4");
    let response = TimeoutLayer::new(Duration::ZERO)
        .layer(unreachable)
        .oneshot(empty_request())
        .await;
    assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(journal.refused(), [(Guard::Timeout, Reason::TotalDeadline)]);
}

#[tokio::test(start_paused = true)]
async fn all_durations_are_valid() {
    for layer in [
        TimeoutLayer::new(Duration::MAX),
        TimeoutLayer::new(Duration::MAX)
            .total(Duration::MAX)
            .expose_deadline(),
        TimeoutLayer::new(Duration::from_secs(u64::MAX / 1000)).total(Duration::MAX),
    ] {
        let service = layer.layer(delayed_handler(seconds(86_400 * 365)));
        assert_eq!(
            service.oneshot(empty_request()).await.unwrap().status(),
            StatusCode::OK
        );
    }
}

#[tokio::test(start_paused = true)]
async fn limits_of_a_request_replace_those_of_the_layer() {
    let layer = TimeoutLayer::new(seconds(5))
        .total(seconds(6))
        .limits_for(|head| (head.uri.path() == "/report").then(|| Limits::head(seconds(300))));
    let service = layer.layer(delayed_handler(seconds(200)));
    let request = Request::get("/report").body(Empty::new()).unwrap();
    assert_eq!(
        service.clone().oneshot(request).await.unwrap().status(),
        StatusCode::OK
    );
    let started = Instant::now();
    service.oneshot(empty_request()).await.unwrap();
    assert_eq!(started.elapsed(), seconds(5));
}

#[tokio::test(start_paused = true)]
async fn an_exposed_deadline_is_paused_like_the_enforced_one() {
    let handler = service_fn(|request: Upload| async move {
        let deadline = request.extensions().get::<Deadline>().unwrap().clone();
        assert_eq!(deadline.remaining(), seconds(30));
        sleep(seconds(10)).await;
        assert_eq!(deadline.remaining(), seconds(20));
        read(request).await;
        assert_eq!(deadline.remaining(), seconds(20));
        sleep(seconds(15)).await;
        assert_eq!(deadline.remaining(), seconds(5));
        sleep(deadline.remaining() + Duration::from_millis(1)).await;
        empty_response()
    });
    let service = TimeoutLayer::new(seconds(30))
        .expose_deadline()
        .layer(handler);
    let (sender, request) = upload();
    let client = async move {
        sleep(seconds(100)).await;
        drop(sender);
    };
    let started = Instant::now();
    let (response, ()) = tokio::join!(service.oneshot(request), client);
    assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(started.elapsed(), seconds(120));
}

#[tokio::test(start_paused = true)]
async fn no_deadline_is_exposed_by_default() {
    let handler = service_fn(|request: Request<RequestBody<EmptyBody>>| {
        assert!(request.extensions().is_empty());
        ready(empty_response())
    });
    TimeoutLayer::new(seconds(30))
        .layer(handler)
        .oneshot(empty_request())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_reports_once_and_off_mode_does_nothing() {
    for (mode, reports) in [(Mode::Shadow, 1), (Mode::Off, 0)] {
        let journal = Journal::default();
        let layer = TimeoutLayer::new(seconds(5))
            .mode(mode)
            .metrics(journal.clone());
        let service = layer.layer(delayed_handler(seconds(100)));
        let response = service.oneshot(empty_request()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(journal.refused().len(), reports);
        assert!(journal.refusals().iter().all(|(_, seen)| *seen == mode));
    }
}

#[tokio::test(start_paused = true)]
async fn in_shadow_mode_the_body_continues_after_the_total_deadline() {
    let journal = Journal::default();
    let layer = TimeoutLayer::new(seconds(5)).total(seconds(6));
    let layer = layer.mode(Mode::Shadow).metrics(journal.clone());
    let (mut sender, channel) = Channel::<Bytes, Infallible>::new(1);
    let mut channel = Some(channel);
    let handler = service_fn(move |_: Request<RequestBody<EmptyBody>>| {
        ready(Ok::<_, Infallible>(Response::new(channel.take().unwrap())))
    });
    let body = layer
        .layer(handler)
        .oneshot(empty_request())
        .await
        .unwrap()
        .into_body();
    let client = async move {
        for _ in 0..3 {
            sleep(seconds(5)).await;
            sender.send_data(Bytes::from_static(b"x")).await.unwrap();
        }
    };
    let (body, ()) = tokio::join!(body.collect(), client);
    assert_eq!(body.unwrap().to_bytes(), "xxx");
    assert_eq!(journal.cut(), [(Guard::Timeout, Reason::TotalDeadline)]);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_response_future_drops_the_handler() {
    let held = Arc::new(());
    let captured = held.clone();
    let handler = service_fn(move |_: Request<RequestBody<EmptyBody>>| {
        let captured = captured.clone();
        async move {
            let _captured = captured;
            pending::<()>().await;
            empty_response()
        }
    });
    let mut service = TimeoutLayer::new(seconds(30)).layer(handler);
    let mut future = Box::pin(service.call(empty_request()));
    assert!(
        future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    );
    assert_eq!(Arc::strong_count(&held), 3);
    drop(future);
    assert_eq!(Arc::strong_count(&held), 2);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_handler_passes_unchanged() {
    let handler = service_fn(|_: Request<RequestBody<EmptyBody>>| async {
        Err::<Response<EmptyBody>, _>("handler error")
    });
    let result = TimeoutLayer::new(seconds(30))
        .layer(handler)
        .oneshot(empty_request())
        .await;
    assert_eq!(result.unwrap_err(), "handler error");
}

#[tokio::test(start_paused = true)]
async fn status_and_on_reject_determine_the_response() {
    let layer = TimeoutLayer::new(SECOND).status(StatusCode::GATEWAY_TIMEOUT);
    let response = layer
        .clone()
        .layer(delayed_handler(seconds(9)))
        .oneshot(empty_request())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    let layer = layer.on_reject(|rejection| {
        Response::new(Bytes::from(rejection.violation().observed.to_string()))
    });
    let response = layer
        .layer(delayed_handler(seconds(9)))
        .oneshot(empty_request())
        .await
        .unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "1000"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_body_passes_length_and_trailers() {
    let handler = service_fn(|request: Request<RequestBody<_>>| async move {
        let body = request.into_body();
        assert_eq!(body.size_hint().lower(), 3);
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["etag"], "x");
        empty_response()
    });
    let trailers = http::HeaderMap::from_iter([(header::ETAG, "x".parse().unwrap())]);
    let body = Full::new(Bytes::from_static(b"abc"))
        .with_trailers(ready(Some(Ok::<_, Infallible>(trailers))));
    TimeoutLayer::new(SECOND)
        .layer(handler)
        .oneshot(Request::new(body))
        .await
        .unwrap();
}

/// A future that is pending for ever and has no size.
struct Pending;

impl Future for Pending {
    type Output = Result<Response<EmptyBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Pending
    }
}

#[test]
fn the_response_future_adds_at_most_seventy_two_bytes() {
    let mut service =
        TimeoutLayer::new(SECOND).layer(service_fn(|_: Request<RequestBody<EmptyBody>>| Pending));
    let added = size_of_val(&service.call(empty_request())) - size_of::<Pending>();
    assert!(added <= 72, "{added}");
}

#[tokio::test(start_paused = true)]
async fn a_grpc_stream_that_is_cut_ends_with_a_grpc_status() {
    let service = TimeoutLayer::new(seconds(30))
        .total(seconds(30))
        .layer(service_fn(|_| async {
            let (mut sender, body) = Channel::<Bytes, Infallible>::new(4);
            tokio::spawn(async move {
                let _ = sender.send_data(Bytes::from_static(b"x")).await;
                sleep(seconds(3600)).await;
            });
            Ok::<_, Infallible>(Response::new(body))
        }));
    let request = Request::post("/")
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc");
    let response = service
        .oneshot(request.body(EmptyBody::new()).unwrap())
        .await
        .unwrap();
    let collected = response
        .into_body()
        .collect()
        .await
        .expect("the stream ends without an error");
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "4");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_of_unlimited_duration_is_exposed() {
    let layer = TimeoutLayer::new(Duration::MAX).expose_deadline();
    let service = layer.layer(tower::service_fn(|request: Request<_>| {
        let left = request
            .extensions()
            .get::<Deadline>()
            .map(Deadline::remaining);
        assert!(left.unwrap() > Duration::from_secs(1 << 40));
        std::future::ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())))
    }));
    let response = service
        .oneshot(Request::new(Empty::<Bytes>::new()))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}
