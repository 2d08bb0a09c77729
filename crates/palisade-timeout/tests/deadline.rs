//! The deadline, exact on paused time.

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

type Nothing = Empty<Bytes>;
type Wire = Channel<Bytes, Infallible>;
type Upload = Request<RequestBody<Wire>>;

const S: Duration = Duration::from_secs(1);

fn seconds(count: u32) -> Duration {
    S * count
}

fn done() -> Result<Response<Nothing>, Infallible> {
    Ok(Response::new(Empty::new()))
}

fn plain() -> Request<Nothing> {
    Request::new(Empty::new())
}

fn upload() -> (Sender<Bytes, Infallible>, Request<Wire>) {
    let (sender, body) = Channel::new(64);
    (sender, Request::post("/").body(body).expect("is a request"))
}

async fn read(request: Upload) -> usize {
    request
        .into_body()
        .collect()
        .await
        .expect("is whole")
        .to_bytes()
        .len()
}

/// A handler that takes so long.
fn taking(
    wait: Duration,
) -> impl Service<
    Request<RequestBody<Nothing>>,
    Response = Response<Nothing>,
    Error = Infallible,
    Future: Send,
> + Clone {
    service_fn(move |_| async move {
        sleep(wait).await;
        done()
    })
}

#[tokio::test(start_paused = true)]
async fn a_late_handler_is_dropped_and_then_answered_for() {
    let held = Arc::new(());
    let journal = Journal::default();
    let handler = {
        let held = held.clone();
        service_fn(move |_| {
            let held = held.clone();
            async move {
                sleep(seconds(31)).await;
                drop(held);
                done()
            }
        })
    };
    let service = TimeoutLayer::new(seconds(30))
        .metrics(journal.clone())
        .layer(handler);
    let began = Instant::now();
    let mut answer = pin!(service.oneshot(plain()));
    let response = answer.as_mut().await.unwrap();
    assert_eq!(began.elapsed(), seconds(30));
    // The answer's future still lives; what the handler held does not. The service is in there.
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
async fn a_handler_that_is_ready_at_the_last_instant_is_in_time() {
    let service = TimeoutLayer::new(seconds(30)).layer(taking(seconds(30)));
    assert_eq!(
        service.oneshot(plain()).await.unwrap().status(),
        StatusCode::OK
    );
}

#[test]
fn a_handler_that_is_ready_at_once_needs_neither_timer_nor_clock() {
    // There is no runtime here: to make a timer would panic.
    let layer = TimeoutLayer::new(seconds(30));
    let mut service = layer.layer(service_fn(|_| ready(done())));
    let mut answer = pin!(service.call(plain()));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(answer.as_mut().poll(&mut cx).is_ready());
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_slot_counts() {
    let slots = Arc::new(Semaphore::new(1));
    let service = TimeoutLayer::new(seconds(5)).layer(service_fn(move |_| {
        let slots = slots.clone();
        async move {
            let _slot = slots.acquire().await;
            sleep(seconds(4)).await;
            done()
        }
    }));
    let status = || {
        let answer = service.clone().oneshot(plain());
        async { answer.await.unwrap().status() }
    };
    let (first, second) = tokio::join!(status(), status());
    assert_eq!(first, StatusCode::OK);
    assert_eq!(second, StatusCode::SERVICE_UNAVAILABLE);
    // The one that waited left the queue, and the slot is free again.
    assert_eq!(status().await, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn the_clock_stands_while_the_client_is_waited_for() {
    for (work, expected) in [(29, StatusCode::OK), (31, StatusCode::SERVICE_UNAVAILABLE)] {
        let handler = service_fn(move |request: Upload| async move {
            read(request).await;
            sleep(seconds(work)).await;
            done()
        });
        let service = TimeoutLayer::new(seconds(30)).layer(handler);
        let (mut sender, request) = upload();
        let began = Instant::now();
        let client = async move {
            for _ in 0..10 {
                sleep(seconds(40)).await;
                sender.send_data(Bytes::from_static(b"x")).await.unwrap();
            }
        };
        let (response, ()) = tokio::join!(service.oneshot(request), client);
        let response = response.unwrap();
        assert_eq!(response.status(), expected);
        assert_eq!(began.elapsed(), seconds(400 + work.min(30)));
        // The body was read to its end, so that the connection can live on.
        assert!(!response.headers().contains_key(header::CONNECTION));
    }
}

#[tokio::test(start_paused = true)]
async fn work_between_waits_adds_up() {
    let handler = service_fn(|request: Upload| async move {
        let mut body = request.into_body();
        while body.frame().await.is_some() {
            sleep(seconds(7)).await;
        }
        done()
    });
    let service = TimeoutLayer::new(seconds(30)).layer(handler);
    let (mut sender, request) = upload();
    let began = Instant::now();
    let client = async move {
        for _ in 0..10 {
            sleep(seconds(100)).await;
            if sender.send_data(Bytes::from_static(b"x")).await.is_err() {
                break;
            }
        }
    };
    let answer = async {
        let response = service.oneshot(request).await.unwrap();
        // Four times seven seconds, two of the fifth, and 93 of waiting between those.
        (response, began.elapsed())
    };
    let ((response, elapsed), ()) = tokio::join!(answer, client);
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(elapsed, seconds(500 + 2));
    assert_eq!(response.headers()[header::CONNECTION], "close"); // More of the body is to come.
}

#[tokio::test(start_paused = true)]
async fn the_clock_runs_on_when_a_body_in_another_task_is_dropped() {
    let handler = service_fn(|request: Upload| async move {
        tokio::spawn(async move {
            let _ = tokio::time::timeout(seconds(100), read(request)).await;
        });
        pending::<()>().await;
        done()
    });
    let service = TimeoutLayer::new(seconds(30)).layer(handler);
    let (_sender, request) = upload();
    let began = Instant::now();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(began.elapsed(), seconds(130));
}

#[tokio::test(start_paused = true)]
async fn the_clock_runs_on_when_a_body_in_another_task_gets_something() {
    let handler = service_fn(|request: Upload| async move {
        let mut body = request.into_body();
        let reader = tokio::spawn(async move {
            let first = body.frame().await;
            (first, body)
        });
        let _kept = reader.await;
        pending::<()>().await;
        done()
    });
    let service = TimeoutLayer::new(seconds(30)).layer(handler);
    let (mut sender, request) = upload();
    let began = Instant::now();
    let client = async {
        sleep(seconds(50)).await;
        sender.send_data(Bytes::from_static(b"x")).await.unwrap();
    };
    let (response, ()) = tokio::join!(service.oneshot(request), client);
    assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(began.elapsed(), seconds(80));
}

/// Reads until nothing is there, as axum's `Multipart` does, whatever it has already.
async fn read_ahead(body: &mut RequestBody<Wire>) -> usize {
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
async fn a_byte_held_back_does_not_stop_the_clock_of_a_handler_at_work() {
    for steps in [1, 3600] {
        let handler = service_fn(move |request: Upload| async move {
            let mut body = request.into_body();
            assert_eq!(read_ahead(&mut body).await, 100);
            for _ in 0..steps {
                sleep(seconds(3600) / steps).await;
            }
            drop(body);
            done()
        });
        let (mut client, request) = upload();
        client.send_data(Bytes::from(vec![0; 100])).await.unwrap();
        let began = Instant::now();
        let response = TimeoutLayer::new(seconds(30))
            .layer(handler)
            .oneshot(request)
            .await;
        assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        // Found out at its next poll, and that comes after 30 seconds if not before.
        assert!(
            began.elapsed() <= seconds(60),
            "{:?} in {steps} steps",
            began.elapsed()
        );
        drop(client);
    }
}

#[tokio::test(start_paused = true)]
async fn after_working_a_handler_can_wait_for_its_client_again() {
    let handler = service_fn(|request: Upload| async {
        let mut body = request.into_body();
        assert_eq!(read_ahead(&mut body).await, 100);
        sleep(seconds(10)).await;
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 100);
        sleep(seconds(10)).await;
        done()
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
async fn a_client_that_drips_makes_the_timer_no_work() {
    // Each byte wakes the handler; the timer, once it has fired, is not armed again for it.
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
            done()
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
async fn the_total_does_not_stand_still() {
    let journal = Journal::default();
    let layer = TimeoutLayer::new(seconds(30))
        .total(seconds(60))
        .metrics(journal.clone());
    let service = layer.layer(service_fn(|request: Upload| async move {
        read(request).await;
        done()
    }));
    let (_sender, request) = upload();
    let began = Instant::now();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(began.elapsed(), seconds(60));
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[header::CONNECTION], "close");
    let (guard, reason, phase) = (Guard::Timeout, Reason::TotalDeadline, Phase::RequestBody);
    let violation = Violation::new(guard, reason, phase, 60_000, 60_000);
    assert_eq!(journal.refusals(), [(violation, Mode::Enforce)]);
}

#[tokio::test(start_paused = true)]
async fn the_head_deadline_holds_after_a_wait_under_a_total() {
    // The timer stands at the total while the clock stands still, and must come back from there.
    let service = TimeoutLayer::new(seconds(5))
        .total(seconds(60))
        .layer(service_fn(|request: Upload| async move {
            request.into_body().frame().await;
            pending::<()>().await;
            done()
        }));
    let (mut sender, request) = upload();
    let began = Instant::now();
    let client = async {
        sleep(seconds(20)).await;
        sender.send_data(Bytes::from_static(b"x")).await.unwrap();
    };
    let (response, ()) = tokio::join!(service.oneshot(request), client);
    assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(began.elapsed(), seconds(25));
}

#[tokio::test(start_paused = true)]
async fn a_response_body_is_cut_when_the_total_is_up() {
    let journal = Journal::default();
    let layer = TimeoutLayer::new(seconds(30))
        .total(seconds(60))
        .metrics(journal.clone());
    let (mut sender, wire) = Channel::<Bytes, Infallible>::new(1);
    let mut wire = Some(wire);
    let handler = service_fn(move |_: Request<RequestBody<Nothing>>| {
        let wire = wire.take().unwrap();
        async {
            sleep(seconds(10)).await;
            Ok::<_, Infallible>(Response::new(wire))
        }
    });
    let began = Instant::now();
    let mut body = layer
        .layer(handler)
        .oneshot(plain())
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
    // Nobody sends anything now: the body itself wakes its reader.
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(began.elapsed(), seconds(60));
    let (guard, reason, phase) = (Guard::Timeout, Reason::TotalDeadline, Phase::ResponseBody);
    let violation = Violation::new(guard, reason, phase, 60_000, 60_000);
    assert_eq!(Violation::behind(&*error), Some(&violation));
    assert_eq!(journal.cuts(), [(violation, Mode::Enforce)]);
    assert!(journal.refused().is_empty());
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
}

/// A response body that has a frame whenever it is asked, under a total of a minute.
async fn always_has_a_frame() -> impl Body<Data = Bytes, Error = palisade_core::BoxError> + Unpin {
    let frames = futures_util::stream::repeat_with(|| {
        Ok::<_, Infallible>(http_body::Frame::data(Bytes::from_static(b"more")))
    });
    let mut body = Some(http_body_util::StreamBody::new(frames));
    let handler = service_fn(move |_: Request<RequestBody<Nothing>>| {
        ready(Ok::<_, Infallible>(Response::new(
            body.take().expect("is called once"),
        )))
    });
    let layer = TimeoutLayer::new(seconds(30)).total(seconds(60));
    layer
        .layer(handler)
        .oneshot(plain())
        .await
        .unwrap()
        .into_body()
}

#[tokio::test(start_paused = true)]
async fn a_response_body_that_always_has_a_frame_is_cut_too() {
    let mut body = always_has_a_frame().await;
    body.frame().await.unwrap().unwrap();
    advance(seconds(59)).await;
    body.frame().await.unwrap().unwrap();
    advance(seconds(1)).await;
    body.frame().await.unwrap().unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_ask_is_woken_when_the_total_is_up() {
    let mut body = always_has_a_frame().await;
    let began = Instant::now();
    for _ in 0..2 {
        body.frame().await.unwrap().unwrap();
    }
    // Nothing but the body's own timer can wake this.
    let mut woken = false;
    std::future::poll_fn(|_| match std::mem::replace(&mut woken, true) {
        false => Poll::Pending,
        true => Poll::Ready(()),
    })
    .await;
    assert_eq!(began.elapsed(), seconds(60));
    body.frame().await.unwrap().unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn the_task_that_took_a_body_over_is_woken_when_the_total_is_up() {
    let mut body = always_has_a_frame().await;
    // Another task had it until now, which nothing will poll again.
    let mut elsewhere = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..3 {
        assert!(
            std::pin::Pin::new(&mut body)
                .poll_frame(&mut elsewhere)
                .is_ready()
        );
    }
    body.frame().await.unwrap().unwrap();
    let mut woken = false;
    let wait = std::future::poll_fn(|_| match std::mem::replace(&mut woken, true) {
        false => Poll::Pending,
        true => Poll::Ready(()),
    });
    let began = Instant::now();
    let _ = tokio::time::timeout(seconds(100), wait).await;
    assert_eq!(began.elapsed(), seconds(60));
    body.frame().await.unwrap().unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn what_ends_in_time_or_was_upgraded_is_not_cut() {
    let layer = TimeoutLayer::new(seconds(30)).total(seconds(60));
    let whole = service_fn(|_: Request<RequestBody<Nothing>>| {
        ready(Ok::<_, Infallible>(Response::new(Full::new(
            Bytes::from_static(b"whole"),
        ))))
    });
    let body = layer
        .layer(whole)
        .oneshot(plain())
        .await
        .unwrap()
        .into_body();
    assert_eq!(body.size_hint().exact(), Some(5));
    assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");

    let (mut sender, wire) = Channel::<Bytes, Infallible>::new(1);
    let mut wire = Some(wire);
    let upgrade = service_fn(move |_: Request<RequestBody<Nothing>>| {
        let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        ready(Ok::<_, Infallible>(
            response.body(wire.take().unwrap()).unwrap(),
        ))
    });
    let mut body = layer
        .layer(upgrade)
        .oneshot(plain())
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

fn grpc(timeout: &str) -> Request<Nothing> {
    let request = Request::post("/demo.Echo/Unary")
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc");
    request
        .header("grpc-timeout", timeout)
        .body(Empty::new())
        .expect("is a request")
}

#[tokio::test(start_paused = true)]
async fn the_lower_of_both_deadlines_holds_for_grpc() {
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
        let service = TimeoutLayer::new(seconds(20)).layer(taking(seconds(60)));
        let began = Instant::now();
        let response = service.oneshot(grpc(header)).await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_millis(expected), "{header}");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "4");
        assert_eq!(response.headers()["grpc-message"], "request took too long");
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_timeout_means_nothing_outside_of_grpc() {
    let request = Request::post("/")
        .header("grpc-timeout", "0S")
        .body(Empty::new())
        .unwrap();
    let service = TimeoutLayer::new(seconds(20)).layer(taking(seconds(10)));
    assert_eq!(
        service.oneshot(request).await.unwrap().status(),
        StatusCode::OK
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_without_any_time_never_reaches_the_handler() {
    let untouched = service_fn(|_: Request<RequestBody<Nothing>>| async {
        unreachable!("the time was over before");
        #[allow(unreachable_code)]
        done()
    });
    let journal = Journal::default();
    let layer = TimeoutLayer::new(seconds(20)).metrics(journal.clone());
    let response = layer.layer(untouched).oneshot(grpc("0m")).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4");
    let response = TimeoutLayer::new(Duration::ZERO)
        .layer(untouched)
        .oneshot(plain())
        .await;
    assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(journal.refused(), [(Guard::Timeout, Reason::TotalDeadline)]);
}

#[tokio::test(start_paused = true)]
async fn no_duration_is_too_long() {
    for layer in [
        TimeoutLayer::new(Duration::MAX),
        TimeoutLayer::new(Duration::MAX)
            .total(Duration::MAX)
            .expose_deadline(),
        TimeoutLayer::new(Duration::from_secs(u64::MAX / 1000)).total(Duration::MAX),
    ] {
        let service = layer.layer(taking(seconds(86_400 * 365)));
        assert_eq!(
            service.oneshot(plain()).await.unwrap().status(),
            StatusCode::OK
        );
    }
}

#[tokio::test(start_paused = true)]
async fn limits_of_its_own_replace_those_of_the_layer() {
    let layer = TimeoutLayer::new(seconds(5))
        .total(seconds(6))
        .limits_for(|head| (head.uri.path() == "/report").then(|| Limits::head(seconds(300))));
    let service = layer.layer(taking(seconds(200)));
    let request = Request::get("/report").body(Empty::new()).unwrap();
    assert_eq!(
        service.clone().oneshot(request).await.unwrap().status(),
        StatusCode::OK
    );
    let began = Instant::now();
    service.oneshot(plain()).await.unwrap();
    assert_eq!(began.elapsed(), seconds(5));
}

#[tokio::test(start_paused = true)]
async fn a_shown_deadline_stands_still_as_the_real_one_does() {
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
        done()
    });
    let service = TimeoutLayer::new(seconds(30))
        .expose_deadline()
        .layer(handler);
    let (sender, request) = upload();
    let client = async move {
        sleep(seconds(100)).await;
        drop(sender);
    };
    let began = Instant::now();
    let (response, ()) = tokio::join!(service.oneshot(request), client);
    assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(began.elapsed(), seconds(120));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_shown_unless_asked_for() {
    let handler = service_fn(|request: Request<RequestBody<Nothing>>| {
        assert!(request.extensions().is_empty());
        ready(done())
    });
    TimeoutLayer::new(seconds(30))
        .layer(handler)
        .oneshot(plain())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn shadow_tells_once_and_lets_pass_and_off_does_not_look() {
    for (mode, told) in [(Mode::Shadow, 1), (Mode::Off, 0)] {
        let journal = Journal::default();
        let layer = TimeoutLayer::new(seconds(5))
            .mode(mode)
            .metrics(journal.clone());
        let service = layer.layer(taking(seconds(100)));
        let response = service.oneshot(plain()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(journal.refused().len(), told);
        assert!(journal.refusals().iter().all(|(_, seen)| *seen == mode));
    }
}

#[tokio::test(start_paused = true)]
async fn a_shadowed_total_lets_the_body_go_on() {
    let journal = Journal::default();
    let layer = TimeoutLayer::new(seconds(5)).total(seconds(6));
    let layer = layer.mode(Mode::Shadow).metrics(journal.clone());
    let (mut sender, wire) = Channel::<Bytes, Infallible>::new(1);
    let mut wire = Some(wire);
    let handler = service_fn(move |_: Request<RequestBody<Nothing>>| {
        ready(Ok::<_, Infallible>(Response::new(wire.take().unwrap())))
    });
    let body = layer
        .layer(handler)
        .oneshot(plain())
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
async fn a_dropped_answer_drops_the_handler() {
    let held = Arc::new(());
    let inside = held.clone();
    let handler = service_fn(move |_: Request<RequestBody<Nothing>>| {
        let inside = inside.clone();
        async move {
            let _inside = inside;
            pending::<()>().await;
            done()
        }
    });
    let mut service = TimeoutLayer::new(seconds(30)).layer(handler);
    let mut answer = Box::pin(service.call(plain()));
    assert!(
        answer
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    );
    assert_eq!(Arc::strong_count(&held), 3);
    drop(answer);
    assert_eq!(Arc::strong_count(&held), 2);
}

#[tokio::test(start_paused = true)]
async fn the_handler_s_own_error_passes_untouched() {
    let handler = service_fn(|_: Request<RequestBody<Nothing>>| async {
        Err::<Response<Nothing>, _>("its own")
    });
    let result = TimeoutLayer::new(seconds(30))
        .layer(handler)
        .oneshot(plain())
        .await;
    assert_eq!(result.unwrap_err(), "its own");
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_the_user_s_own_and_another_status_are_used() {
    let layer = TimeoutLayer::new(S).status(StatusCode::GATEWAY_TIMEOUT);
    let response = layer
        .clone()
        .layer(taking(seconds(9)))
        .oneshot(plain())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    let layer = layer.on_reject(|rejection| {
        Response::new(Bytes::from(rejection.violation().observed.to_string()))
    });
    let response = layer
        .layer(taking(seconds(9)))
        .oneshot(plain())
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
        done()
    });
    let trailers = http::HeaderMap::from_iter([(header::ETAG, "x".parse().unwrap())]);
    let body = Full::new(Bytes::from_static(b"abc"))
        .with_trailers(ready(Some(Ok::<_, Infallible>(trailers))));
    TimeoutLayer::new(S)
        .layer(handler)
        .oneshot(Request::new(body))
        .await
        .unwrap();
}

/// A future of no size of its own.
struct Thin;

impl Future for Thin {
    type Output = Result<Response<Nothing>, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Pending
    }
}

#[test]
fn a_request_future_grows_by_no_more_than_seventy_two_bytes() {
    let mut service =
        TimeoutLayer::new(S).layer(service_fn(|_: Request<RequestBody<Nothing>>| Thin));
    let added = size_of_val(&service.call(plain())) - size_of::<Thin>();
    assert!(added <= 72, "{added}");
}

#[tokio::test(start_paused = true)]
async fn a_grpc_stream_that_is_cut_ends_with_its_status() {
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
        .oneshot(request.body(Nothing::new()).unwrap())
        .await
        .unwrap();
    let collected = response
        .into_body()
        .collect()
        .await
        .expect("it ends in good order");
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "4");
}

#[tokio::test(start_paused = true)]
async fn a_request_with_all_the_time_there_is_has_a_deadline_to_look_at_too() {
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
