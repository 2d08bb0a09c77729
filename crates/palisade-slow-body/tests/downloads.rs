//! The pace of response bodies, exact on paused time, with a server that polls when it is woken.

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Channel, Empty, Full, StreamBody};
use palisade_core::{BoxError, Guard, Phase, Reason, Violation};
use palisade_slow_body::{Mode, Pace, RequestBody, SlowBodyLayer};
use palisade_testkit::Journal;
use std::{convert::Infallible, future::poll_fn, pin::Pin, task::Poll, time::Duration};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, ServiceExt, service_fn};

const CHUNK_BYTES: usize = 32 * 1024;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Returns the response body that the server receives if the handler responds with `body`.
async fn response_body<B>(
    layer: &SlowBodyLayer,
    body: B,
) -> Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    response_body_for(layer, Request::new(Empty::new()), body).await
}

async fn response_body_for<Q, B>(
    layer: &SlowBodyLayer,
    request: Request<Q>,
    body: B,
) -> Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>
where
    Q: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let mut body = Some(body);
    let handler = service_fn(move |_: Request<RequestBody<Q>>| {
        let body = body.take().expect("the handler is called once");
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    let response = layer.layer(handler).oneshot(request).await;
    Box::pin(response.expect("the handler is infallible").into_body())
}

/// A body that always has another chunk.
fn endless() -> impl Body<Data = Bytes, Error = Infallible> + Send + 'static {
    let frames = futures_util::stream::repeat_with(|| {
        Ok(Frame::data(Bytes::from_static(&[b'x'; CHUNK_BYTES])))
    });
    StreamBody::new(frames)
}

/// Reads `bytes` bytes or a little more, at once.
async fn read_bytes(body: &mut Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>, bytes: usize) {
    let mut taken = 0;
    while taken < bytes {
        let frame = body
            .frame()
            .await
            .expect("the body goes on")
            .expect("the body is not cut");
        taken += frame.into_data().expect("the frame is data").len();
    }
}

/// Waits until the task is woken, as a server does while its client takes nothing.
async fn until_woken() {
    let mut woken = false;
    poll_fn(|_| {
        if std::mem::replace(&mut woken, true) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_response_that_the_client_does_not_take_is_cut_after_the_gap() {
    let journal = Journal::default();
    let layer = SlowBodyLayer::new().metrics(journal.clone());
    let mut body = response_body(&layer, endless()).await;
    read_bytes(&mut body, 10 * CHUNK_BYTES).await;
    let began = Instant::now();
    until_woken().await;
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(began.elapsed(), seconds(120));
    let (guard, phase) = (Guard::SlowBody, Phase::ResponseBody);
    let violation = Violation::new(guard, Reason::Gap, phase, 120_000, 120_000);
    assert_eq!(Violation::from_error(&*error), Some(&violation));
    assert_eq!(journal.cuts(), [(violation, Mode::Enforce)]);
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_grpc_response_that_is_cut_ends_with_its_status() {
    fn grpc_request<B>(body: B) -> Request<B> {
        let request = Request::post("/demo.Echo/Follow").version(Version::HTTP_2);
        request
            .header("content-type", "application/grpc")
            .body(body)
            .expect("the request is valid")
    }
    let journal = Journal::default();
    let layer = SlowBodyLayer::new().metrics(journal.clone());
    for body in [
        response_body_for(
            &layer,
            grpc_request(Full::new(Bytes::from_static(b"a message"))),
            endless(),
        )
        .await,
        response_body_for(&layer, grpc_request(Empty::new()), endless()).await,
    ] {
        let mut body = body;
        read_bytes(&mut body, 10 * CHUNK_BYTES).await;
        until_woken().await;
        let trailers = body
            .frame()
            .await
            .unwrap()
            .expect("the body ends with trailers")
            .into_trailers()
            .unwrap();
        assert_eq!(trailers["grpc-status"], "4");
        assert_eq!(trailers["grpc-message"], "body too slow");
        assert!(body.is_end_stream());
        assert!(body.frame().await.is_none());
    }
    assert_eq!(journal.cut(), [(Guard::SlowBody, Reason::Gap); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stalls_later_is_cut_within_twice_the_gap() {
    let mut body = response_body(&SlowBodyLayer::new(), endless()).await;
    for _ in 0..100 {
        read_bytes(&mut body, CHUNK_BYTES).await;
        sleep(seconds(7)).await;
    }
    read_bytes(&mut body, CHUNK_BYTES).await;
    let began = Instant::now();
    loop {
        until_woken().await;
        if body.frame().await.unwrap().is_err() {
            break;
        }
    }
    assert!(
        (seconds(120)..=seconds(240)).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_steady_client_is_not_cut_although_the_server_polls_rarely() {
    // A kernel that buffers 1.4 MB lets a client that reads 16 KiB/s cause a poll every 87 s.
    let mut body = response_body(&SlowBodyLayer::new(), endless()).await;
    for _ in 0..100 {
        read_bytes(&mut body, 1_400_000).await;
        sleep(seconds(87)).await;
    }
    read_bytes(&mut body, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_paused_can_continue() {
    // As on HTTP/2 with a closed window: the server does not poll when the timer fires.
    let mut body = response_body(&SlowBodyLayer::new(), endless()).await;
    for _ in 0..3 {
        read_bytes(&mut body, 10 * CHUNK_BYTES).await;
        sleep(seconds(3600)).await;
    }
    read_bytes(&mut body, 1).await;
}

#[tokio::test(start_paused = true)]
async fn with_a_rate_a_client_that_stays_too_slow_is_cut() {
    let pace = Pace::builder().gap(None).rate(64 * 1024).build().unwrap();
    let layer = SlowBodyLayer::new().response(pace);
    let mut body = response_body(&layer, endless()).await;
    read_bytes(&mut body, 4 * CHUNK_BYTES).await;
    let mut rounds = 0;
    while body.frame().await.unwrap().is_ok() {
        sleep(seconds(4)).await; // 8 KiB/s.
        rounds += 1;
    }
    assert!((4..10).contains(&rounds), "{rounds}");
    // A client at twice the rate, in large steps, is not cut.
    let mut body = response_body(&layer, endless()).await;
    for _ in 0..100 {
        read_bytes(&mut body, 16 * CHUNK_BYTES).await;
        sleep(seconds(4)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_slow_handler_is_not_charged_to_the_client() {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move {
        for _ in 0..20 {
            sender
                .send_data(Bytes::from_static(&[b'x'; CHUNK_BYTES]))
                .await
                .unwrap();
            sleep(seconds(3600)).await;
        }
    });
    let body = response_body(&SlowBodyLayer::new(), body).await;
    assert_eq!(
        body.collect().await.unwrap().to_bytes().len(),
        20 * CHUNK_BYTES
    );
}

#[tokio::test(start_paused = true)]
async fn small_responses_and_last_frames_are_not_checked() {
    let body = response_body(
        &SlowBodyLayer::new(),
        Full::new(Bytes::from(vec![0; 1 << 20])),
    )
    .await;
    assert_eq!(body.size_hint().exact(), Some(1 << 20));
    assert_eq!(body.collect().await.unwrap().to_bytes().len(), 1 << 20);
    let mut body = response_body(&SlowBodyLayer::new(), endless()).await;
    read_bytes(&mut body, 2 * CHUNK_BYTES).await;
    advance(seconds(3600)).await;
    read_bytes(&mut body, 1).await;
}

#[tokio::test(start_paused = true)]
async fn responses_without_a_pace_or_enforcement_are_not_cut() {
    let journal = Journal::default();
    for layer in [
        SlowBodyLayer::new().pace_for(|_| Some(Pace::off())),
        SlowBodyLayer::new().response(Pace::off()),
        SlowBodyLayer::new().mode(Mode::Off),
        SlowBodyLayer::new().mode(Mode::Shadow),
    ] {
        let layer = layer.metrics(journal.clone());
        let mut body = response_body(&layer, endless()).await;
        read_bytes(&mut body, 10 * CHUNK_BYTES).await;
        for _ in 0..3 {
            sleep(seconds(120)).await;
            read_bytes(&mut body, CHUNK_BYTES).await;
        }
    }
    // Only shadow mode recorded a violation, and only once.
    assert_eq!(journal.cut(), [(Guard::SlowBody, Reason::Gap)]);
}

#[tokio::test(start_paused = true)]
async fn the_timer_wakes_the_task_that_took_over_the_body() {
    let mut body = response_body(&SlowBodyLayer::new(), endless()).await;
    // Until now the body was in another task, which is not polled again.
    let mut other_task = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..10 {
        assert!(body.as_mut().poll_frame(&mut other_task).is_ready());
    }
    read_bytes(&mut body, CHUNK_BYTES).await;
    let began = Instant::now();
    let _ = tokio::time::timeout(seconds(1000), until_woken()).await;
    assert_eq!(began.elapsed(), seconds(120));
    assert!(body.frame().await.unwrap().is_err());
}
