//! Request bodies, exact on paused time.

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version, header};
use http_body::Body;
use http_body_util::{BodyExt, Channel, Empty, Full, channel::Sender};
use palisade_core::{ConnInfo, Guard, Phase, Prefix, Reason, Violation};
use palisade_slow_body::{Mode, Pace, Pressure, RequestBody, SlowBodyLayer};
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

type Answer = Response<Full<Bytes>>;
type Wire = Channel<Bytes, Infallible>;
type Upload = Request<RequestBody<Wire>>;
type Client = Sender<Bytes, Infallible>;

const MS: Duration = Duration::from_millis(1);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn status(status: StatusCode) -> Result<Answer, Infallible> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    Ok(response)
}

fn upload() -> (Client, Request<Wire>) {
    let (sender, body) = Channel::new(64);
    (sender, Request::post("/").body(body).expect("is a request"))
}

/// What most handlers do: read all, and say so if that fails.
async fn read(request: Upload) -> Result<Answer, Infallible> {
    match request.into_body().collect().await {
        Ok(_) => status(StatusCode::OK),
        Err(_) => status(StatusCode::BAD_REQUEST),
    }
}

/// Serves one upload of `client`, and says with what and when it ended.
async fn serve<C, F>(layer: &SlowBodyLayer, client: C) -> (StatusCode, Duration)
where
    C: FnOnce(Client) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, request) = upload();
    let client = tokio::spawn(client(sender));
    let began = Instant::now();
    let response = layer
        .layer(service_fn(read))
        .oneshot(request)
        .await
        .expect("cannot fail");
    let elapsed = began.elapsed();
    client.abort();
    (response.status(), elapsed)
}

/// Sends so many bytes, whether anybody wants them or not.
async fn send(client: &mut Client, bytes: usize) {
    let _ = client.send_data(Bytes::from(vec![0; bytes])).await;
}

/// Sends so many bytes `times` times, each after a wait.
fn steady(
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
async fn a_stalled_upload_is_answered_408_when_the_gap_is_over() {
    let held = Arc::new(());
    let inside = held.clone();
    let journal = Journal::default();
    let handler = service_fn(move |request: Upload| {
        let inside = inside.clone();
        async move {
            let _inside = inside;
            read(request).await
        }
    });
    let service = SlowBodyLayer::new().metrics(journal.clone()).layer(handler);
    let (mut client, request) = upload();
    send(&mut client, 100).await;
    let began = Instant::now();
    let mut answer = pin!(service.oneshot(request));
    let response = answer.as_mut().await.unwrap();
    assert_eq!(began.elapsed(), seconds(15));
    assert_eq!(response.status(), TOO_SLOW);
    assert_eq!(response.headers()[header::CONNECTION], "close");
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "body too slow"
    );
    // The answer's future still lives; the handler does not, nor does the body.
    assert_eq!(Arc::strong_count(&held), 1);
    assert!(client.send_data(Bytes::from("x")).await.is_err());
    let (guard, phase) = (Guard::SlowBody, Phase::RequestBody);
    let violation = Violation::new(guard, Reason::Gap, phase, 15_000, 15_000);
    assert_eq!(journal.refusals(), [(violation, Mode::Enforce)]);
    assert!(journal.cuts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn drips_of_any_step_are_ended_soon_after_the_grace_and_a_window() {
    for step in [3 * MS, seconds(1), seconds(10), seconds(15) - MS] {
        let (status, elapsed) = serve(&SlowBodyLayer::new(), steady(step, 1, u32::MAX)).await;
        if step == 3 * MS {
            // 333 B/s: the credit of a window lasts for 30 s.
            assert_eq!((status, elapsed.as_secs()), (TOO_SLOW, 34));
            continue;
        }
        assert_eq!(status, TOO_SLOW);
        assert!(
            (seconds(15)..seconds(15) + 40 * MS).contains(&elapsed),
            "{step:?}: {elapsed:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_buys_one_window_of_silence_and_no_more() {
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
async fn honest_uploads_are_not_cut() {
    let layer = SlowBodyLayer::new();
    let honest = [
        (seconds(1), 16 * 1024, 128), // 2 MiB at 16 KiB/s.
        (seconds(1), 500, 1000),      // Exactly at the rate.
        (seconds(3), 8 * 1024, 20),   // A phone that is gone for 3 s of 5.
        (seconds(9), 5000, 50),       // Large pieces, long waits.
        (seconds(14), 1, 1),          // A small body after a long silence.
    ];
    for (wait, bytes, times) in honest {
        let (status, elapsed) = serve(&layer, steady(wait, bytes, times)).await;
        assert_eq!((status, elapsed), (StatusCode::OK, wait * times));
    }
    let (status, _) = serve(&layer, steady(seconds(1), 499, 10_000)).await;
    assert_eq!(status, TOO_SLOW);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_its_time_is_not_charged_to_the_client() {
    let handler = service_fn(|request: Upload| async {
        let mut body = request.into_body();
        sleep(seconds(3600)).await;
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return status(StatusCode::BAD_REQUEST);
            }
            sleep(seconds(3600)).await;
        }
        status(StatusCode::OK)
    });
    let (mut client, request) = upload();
    let answer = tokio::spawn(SlowBodyLayer::new().layer(handler).oneshot(request));
    for _ in 0..10 {
        // Just when the handler asks again, one second after it began to.
        sleep(seconds(3601)).await;
        send(&mut client, 1).await;
    }
    drop(client);
    assert_eq!(answer.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_asks_and_then_looks_elsewhere_is_not_charged_either() {
    let handler = service_fn(|request: Upload| async {
        let mut body = request.into_body();
        for _ in 0..5 {
            {
                // Asks, and gets nothing yet.
                let mut frame = pin!(body.frame());
                let polled = poll_fn(|cx| Poll::Ready(frame.as_mut().poll(cx))).await;
                assert!(polled.is_pending());
            }
            sleep(seconds(3600)).await;
            if body.frame().await.is_none_or(|frame| frame.is_err()) {
                return status(StatusCode::BAD_REQUEST);
            }
        }
        status(StatusCode::OK)
    });
    let (mut client, request) = upload();
    let answer = tokio::spawn(SlowBodyLayer::new().layer(handler).oneshot(request));
    for _ in 0..5 {
        sleep(MS).await;
        send(&mut client, 1).await;
        sleep(seconds(3600) - MS).await;
    }
    assert_eq!(answer.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_second_wait_has_its_whole_gap_and_no_more_however_late_it_begins() {
    // In the first wait, at the moment when that would have been too long, and long after it.
    for works in [0, 59, 60, 61, 3600] {
        let handler = service_fn(move |request: Upload| async move {
            let mut body = request.into_body();
            let _ = body.frame().await;
            sleep(seconds(works)).await;
            let second = body.frame().await.expect("the body did not end");
            status(if second.is_err() {
                StatusCode::BAD_REQUEST
            } else {
                StatusCode::OK
            })
        });
        let layer = SlowBodyLayer::new().request(Pace::conversation());
        let (mut client, request) = upload();
        let answer = tokio::spawn(layer.layer(handler).oneshot(request));
        sleep(seconds(1)).await;
        send(&mut client, 1).await;
        let sent = Instant::now();
        assert_eq!(answer.await.unwrap().unwrap().status(), TOO_SLOW);
        assert_eq!(
            sent.elapsed(),
            seconds(works + 60),
            "after {works} s of work"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_stall_of_the_server_is_forgiven_once() {
    // Something came while nobody looked.
    let (mut client, request) = upload();
    let mut answer = Box::pin(
        SlowBodyLayer::new()
            .layer(service_fn(read))
            .oneshot(request),
    );
    let mut cx = Context::from_waker(Waker::noop());
    assert!(answer.as_mut().poll(&mut cx).is_pending());
    advance(seconds(3600)).await;
    send(&mut client, 1).await;
    assert!(answer.as_mut().poll(&mut cx).is_pending());
    drop(client);
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);

    // Nothing came, or it is still on its way to us.
    for (comes, expected) in [(true, StatusCode::OK), (false, TOO_SLOW)] {
        let (mut client, request) = upload();
        let mut answer = Box::pin(
            SlowBodyLayer::new()
                .layer(service_fn(read))
                .oneshot(request),
        );
        assert!(answer.as_mut().poll(&mut cx).is_pending());
        advance(seconds(3600)).await;
        assert!(answer.as_mut().poll(&mut cx).is_pending());
        let stalled = Instant::now();
        let answer = tokio::spawn(answer);
        sleep(200 * MS).await;
        if comes {
            send(&mut client, 1).await;
            drop(client);
        }
        assert_eq!(answer.await.unwrap().unwrap().status(), expected);
        assert_eq!(stalled.elapsed(), if comes { 200 * MS } else { 250 * MS });
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_stall_is_forgiven_only_to_whoever_has_caught_up() {
    for (bytes, cut) in [(1, true), (1 << 20, false)] {
        let (mut client, request) = upload();
        let mut answer = Box::pin(
            SlowBodyLayer::new()
                .layer(service_fn(read))
                .oneshot(request),
        );
        let mut cx = Context::from_waker(Waker::noop());
        assert!(answer.as_mut().poll(&mut cx).is_pending());
        advance(seconds(3600)).await;
        assert!(
            answer.as_mut().poll(&mut cx).is_pending(),
            "the first is forgiven"
        );
        send(&mut client, bytes).await;
        assert!(answer.as_mut().poll(&mut cx).is_pending());
        advance(seconds(3600)).await;
        match answer.as_mut().poll(&mut cx) {
            Poll::Ready(response) => {
                assert_eq!((response.unwrap().status(), cut), (TOO_SLOW, true));
            }
            Poll::Pending => assert!(!cut, "one byte buys no second reprieve"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_in_another_task_ends_the_handler_too() {
    let held = Arc::new(());
    let inside = held.clone();
    let handler = service_fn(move |request: Upload| {
        let inside = inside.clone();
        async move {
            tokio::spawn(read(request));
            // It does not even listen.
            pending::<()>().await;
            drop(inside);
            status(StatusCode::OK)
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
async fn the_handler_cannot_answer_for_a_body_that_was_too_slow() {
    let handler = service_fn(|request: Upload| async {
        let error = request.into_body().collect().await.unwrap_err();
        let violation = Violation::behind(&*error).expect("it says why");
        assert_eq!(violation.reason, Reason::Gap);
        status(StatusCode::IM_A_TEAPOT)
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
async fn once_the_head_is_out_the_body_is_cut() {
    let journal = Journal::default();
    let (tell, told) = tokio::sync::oneshot::channel();
    let mut tell = Some(tell);
    let handler = service_fn(move |request: Upload| {
        let tell = tell.take().unwrap();
        tokio::spawn(async move {
            let mut body = request.into_body();
            let error = body.frame().await.unwrap().unwrap_err();
            assert!(body.is_end_stream());
            assert!(body.frame().await.is_none());
            tell.send(*Violation::behind(&*error).unwrap()).unwrap();
        });
        ready(status(StatusCode::OK))
    });
    let (_client, request) = upload();
    let layer = SlowBodyLayer::new().metrics(journal.clone());
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let (guard, phase) = (Guard::SlowBody, Phase::ResponseBody);
    let violation = Violation::new(guard, Reason::Gap, phase, 15_000, 15_000);
    assert_eq!(told.await.unwrap(), violation);
    assert_eq!(journal.cuts(), [(violation, Mode::Enforce)]);
    assert!(journal.refused().is_empty());
}

#[tokio::test(start_paused = true)]
async fn when_nobody_waits_for_an_answer_any_more_it_is_a_cut() {
    let journal = Journal::default();
    let (tell, told) = tokio::sync::oneshot::channel();
    let mut tell = Some(tell);
    let handler = service_fn(move |request: Upload| {
        let tell = tell.take().unwrap();
        async move {
            tokio::spawn(async move { tell.send(read(request).await.unwrap().status()) });
            pending::<Result<Answer, Infallible>>().await
        }
    });
    let (_client, request) = upload();
    let layer = SlowBodyLayer::new().metrics(journal.clone());
    let answer = tokio::spawn(layer.layer(handler).oneshot(request));
    sleep(seconds(1)).await;
    answer.abort();
    assert_eq!(told.await.unwrap(), StatusCode::BAD_REQUEST);
    assert_eq!(journal.cut(), [(Guard::SlowBody, Reason::Gap)]);
    assert!(journal.refused().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_dropped_in_time_is_nobody_s_business() {
    let journal = Journal::default();
    let handler = service_fn(|request: Upload| async {
        let _ = tokio::time::timeout(seconds(14), request.into_body().collect()).await;
        sleep(seconds(100)).await;
        status(StatusCode::OK)
    });
    let (_client, request) = upload();
    let layer = SlowBodyLayer::new().metrics(journal.clone());
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(journal.refused().is_empty() && journal.cut().is_empty());
}

fn grpc() -> (Client, Request<Wire>) {
    let (sender, body) = Channel::new(64);
    let request = Request::post("/demo.Echo/Collect").version(Version::HTTP_2);
    let request = request.header("content-type", "application/grpc");
    (sender, request.body(body).expect("is a request"))
}

#[tokio::test(start_paused = true)]
async fn who_only_claims_to_speak_grpc_keeps_the_pace_of_everybody() {
    for (version, kind) in [
        (Version::HTTP_11, "application/grpc"),
        (Version::HTTP_11, "application/grpc+proto"),
        (Version::HTTP_2, "application/grpcx"),
        (Version::HTTP_2, "application/grpc-webx"),
        (Version::HTTP_2, "application/grpc-web"),
        (Version::HTTP_2, "application/grpc-web-text"),
    ] {
        let journal = Journal::default();
        let (_client, mut request) = grpc();
        *request.version_mut() = version;
        request
            .headers_mut()
            .insert("content-type", kind.parse().unwrap());
        // As gRPC has to say, and as anything may.
        request
            .headers_mut()
            .insert("te", "trailers".parse().unwrap());
        let began = Instant::now();
        let layer = SlowBodyLayer::new().metrics(journal.clone());
        layer
            .layer(service_fn(read))
            .oneshot(request)
            .await
            .unwrap();
        assert_eq!(began.elapsed(), seconds(15), "{version:?} {kind}");
        assert_eq!(journal.refused(), [(Guard::SlowBody, Reason::Gap)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_may_ask_grpc_for_the_pace_of_everybody() {
    let layer = SlowBodyLayer::new().grpc(Pace::default());
    let (_client, request) = grpc();
    let began = Instant::now();
    let response = layer
        .layer(service_fn(read))
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(began.elapsed(), seconds(15));
    assert_eq!(response.headers()["grpc-status"], "4");
}

#[tokio::test(start_paused = true)]
async fn a_grpc_stream_keeps_its_own_pace() {
    let service = SlowBodyLayer::new().layer(service_fn(read));
    let (client, request) = grpc();
    tokio::spawn(steady(seconds(59), 8, 100)(client));
    let began = Instant::now();
    let response = service.clone().oneshot(request).await.unwrap();
    assert!(!response.headers().contains_key("grpc-status"));
    assert_eq!(began.elapsed(), seconds(5900));

    let (_client, request) = grpc();
    let began = Instant::now();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(began.elapsed(), seconds(60));
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "4");
    assert_eq!(response.headers()["grpc-message"], "body too slow");
}

#[tokio::test(start_paused = true)]
async fn a_marked_route_keeps_its_own_pace_too() {
    for (pace, expected) in [
        (Pace::off(), None),
        (Pace::conversation(), None),
        (Pace::gap_only(seconds(20)).unwrap(), Some(seconds(20))),
    ] {
        let layer = SlowBodyLayer::new()
            .pace_for(move |head| (head.uri.path() == "/events").then_some(pace));
        let service = layer.layer(service_fn(read));
        let (client, mut request) = upload();
        *request.uri_mut() = "/events".parse().unwrap();
        tokio::spawn(steady(seconds(50), 1, 3)(client));
        let began = Instant::now();
        let response = service.oneshot(request).await.unwrap();
        match expected {
            None => assert_eq!(response.status(), StatusCode::OK),
            Some(end) => assert_eq!((response.status(), began.elapsed()), (TOO_SLOW, end)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pressure_asks_for_more() {
    for (pressure, expected) in [(0.0, StatusCode::OK), (1.0, TOO_SLOW)] {
        let level = Pressure::default();
        let layer = SlowBodyLayer::new().pressure(level.clone());
        level.set(pressure);
        let (status, _) = serve(&layer, steady(seconds(1), 2000, 200)).await;
        assert_eq!(status, expected);
        let (status, _) = serve(&layer, steady(seconds(1), 4000, 200)).await;
        assert_eq!(status, StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_are_worth_what_was_asked_for_when_they_came() {
    let pressure = Pressure::default();
    let layer = SlowBodyLayer::new().pressure(pressure.clone());
    let (mut client, request) = upload();
    let began = Instant::now();
    let answer = tokio::spawn(layer.layer(service_fn(read)).oneshot(request));
    sleep(seconds(14)).await;
    // Worth 8 s at 500 bytes a second: with the grace and the window paid until 23 s.
    send(&mut client, 4000).await;
    sleep(500 * MS).await;
    pressure.set(1.0);
    assert_eq!(answer.await.unwrap().unwrap().status(), TOO_SLOW);
    assert_eq!(began.elapsed(), seconds(23));
}

#[tokio::test(start_paused = true)]
async fn numbers_of_its_own_hold() {
    let pace = Pace::builder()
        .gap(100 * MS)
        .rate(1000)
        .window(200 * MS)
        .grace(Duration::ZERO)
        .total(seconds(1))
        .build()
        .unwrap();
    let layer = SlowBodyLayer::new().request(pace);
    let silent = |client: Client| async move {
        let _client = client;
        pending::<()>().await;
    };
    assert_eq!(serve(&layer, silent).await, (TOO_SLOW, 100 * MS));
    let (status, elapsed) = serve(&layer, steady(99 * MS, 1, 100)).await;
    assert_eq!((status, elapsed), (TOO_SLOW, 202 * MS));
    // A body of unknown length has no total.
    let (status, _) = serve(&layer, steady(50 * MS, 50, 100)).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn shadow_tells_once_and_lets_pass_and_off_does_not_look() {
    for (mode, told) in [(Mode::Shadow, 1), (Mode::Off, 0)] {
        let journal = Journal::default();
        let layer = SlowBodyLayer::new().mode(mode).metrics(journal.clone());
        let (status, elapsed) = serve(&layer, steady(seconds(100), 1, 5)).await;
        assert_eq!((status, elapsed), (StatusCode::OK, seconds(500)));
        assert_eq!(journal.refused().len(), told);
        assert!(journal.cut().is_empty());
    }
}

#[test]
fn a_body_that_is_there_at_once_needs_neither_timer_nor_clock() {
    // There is no runtime here: to make a timer would panic.
    let body = Full::new(Bytes::from_static(b"whole"));
    let handler = service_fn(|request: Request<RequestBody<Full<Bytes>>>| async {
        let body = request.into_body();
        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");
        status(StatusCode::OK)
    });
    let mut service = SlowBodyLayer::new().layer(handler);
    let mut answer = pin!(service.call(Request::new(body)));
    assert!(
        answer
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_body_passes_length_and_trailers() {
    let handler = service_fn(|request: Request<RequestBody<_>>| async move {
        let body = request.into_body();
        assert_eq!(body.size_hint().lower(), 3);
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["etag"], "x");
        status(StatusCode::OK)
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
async fn the_body_s_and_the_handler_s_own_errors_pass() {
    let (mut client, body) = Channel::<Bytes, std::io::Error>::new(1);
    let handler = service_fn(|request: Request<RequestBody<Channel<_, _>>>| async {
        let error = request.into_body().collect().await.unwrap_err();
        assert!(Violation::behind(&*error).is_none());
        Err::<Answer, _>(error.to_string())
    });
    let answer = SlowBodyLayer::new()
        .layer(handler)
        .oneshot(Request::new(body));
    let client = async move {
        sleep(seconds(1)).await;
        client.send_data(Bytes::from("x")).await.unwrap();
        client.abort(std::io::Error::other("gone"));
    };
    let (result, ()) = tokio::join!(answer, client);
    assert_eq!(result.unwrap_err(), "gone");
}

/// A future of no size of its own.
struct Thin;

impl Future for Thin {
    type Output = Result<Answer, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Pending
    }
}

#[test]
fn a_request_future_grows_by_no_more_than_seventy_two_bytes() {
    let handler = service_fn(|_: Request<RequestBody<Empty<Bytes>>>| Thin);
    let mut service = SlowBodyLayer::new().layer(handler);
    let added = size_of_val(&service.call(Request::new(Empty::new()))) - size_of::<Thin>();
    assert!(added <= 72, "{added}");
}

/// A request on a connection of HTTP/2 of which another body is not read, or is.
fn beside(conn: &Arc<ConnInfo>) -> (Client, Request<Wire>) {
    let (sender, mut request) = upload();
    *request.version_mut() = Version::HTTP_2;
    request.extensions_mut().insert(conn.clone());
    (sender, request)
}

fn http2() -> Arc<ConnInfo> {
    ConnInfo::new(([192, 0, 2, 1], 1).into(), None, Prefix::default())
}

#[tokio::test(start_paused = true)]
async fn what_others_may_be_to_blame_for_is_charged_after_a_minute() {
    let conn = http2();
    let service = SlowBodyLayer::new().layer(service_fn(read));
    conn.add_unread_body();
    let (_client, request) = beside(&conn);
    let began = Instant::now();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    let took = began.elapsed();
    assert!(seconds(75) <= took && took <= seconds(77), "{took:?}");
    conn.remove_unread_body();
    assert!(!conn.has_unread_body());
}

#[tokio::test(start_paused = true)]
async fn short_waits_use_up_nothing_of_that_minute() {
    let conn = http2();
    let service = SlowBodyLayer::new().layer(service_fn(read));
    conn.add_unread_body();
    let (mut client, request) = beside(&conn);
    let response = tokio::spawn(service.oneshot(request));
    for _ in 0..100 {
        sleep(1500 * MS).await;
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
async fn a_body_that_can_come_again_has_its_whole_gap() {
    let conn = http2();
    let service = SlowBodyLayer::new().layer(service_fn(read));
    conn.add_unread_body();
    let (_client, request) = beside(&conn);
    let began = Instant::now();
    let response = tokio::spawn(service.oneshot(request));
    sleep(seconds(30)).await;
    conn.remove_unread_body();
    let response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    let took = began.elapsed();
    // But for the time between two looks.
    assert!(seconds(43) <= took && took <= seconds(45), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn bodies_are_unread_from_their_heads_to_their_ends_but_while_they_are_awaited() {
    let conn = http2();
    let (begin, begun) = tokio::sync::oneshot::channel::<()>();
    let begun = std::sync::Mutex::new(Some(begun));
    let service = SlowBodyLayer::new().layer(service_fn(move |request: Upload| {
        let begun = begun.lock().unwrap().take().unwrap();
        async move {
            begun.await.unwrap();
            read(request).await
        }
    }));
    let (client, request) = beside(&conn);
    let response = tokio::spawn(service.oneshot(request));
    sleep(seconds(1)).await;
    assert!(conn.has_unread_body());
    begin.send(()).unwrap();
    sleep(seconds(1)).await;
    assert!(!conn.has_unread_body());
    drop(client);
    response.await.unwrap().unwrap();
    assert!(!conn.has_unread_body());
}

#[tokio::test(start_paused = true)]
async fn an_excused_wait_whose_time_is_nearly_over_is_not_looked_at_all_the_time() {
    let conn = http2();
    let service = SlowBodyLayer::new().layer(service_fn(read));
    let (mut client, request) = beside(&conn);
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
    // A byte that leaves 2 ms of the time that it has.
    sleep(seconds(15) - 2 * MS).await;
    client.send_data(Bytes::from_static(b"x")).await.unwrap();
    sleep(MS).await;
    conn.add_unread_body();
    let before = polls.load(std::sync::atomic::Ordering::Relaxed);
    sleep(seconds(30)).await;
    let looks = polls.load(std::sync::atomic::Ordering::Relaxed) - before;
    assert!(looks <= 310, "{looks} in half a minute");
    conn.remove_unread_body();
    let response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
}
