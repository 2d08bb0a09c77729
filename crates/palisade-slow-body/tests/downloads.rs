//! Response bodies, exact on paused time, with a server that asks when it is woken.

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

const CHUNK: usize = 32 * 1024;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The body of a response through `layer`, as the server has it.
async fn through<B>(
    layer: &SlowBodyLayer,
    body: B,
) -> Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    through_request(layer, Request::new(Empty::new()), body).await
}

async fn through_request<Q, B>(
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
        let body = body.take().expect("is called once");
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    let response = layer.layer(handler).oneshot(request).await;
    Box::pin(response.expect("cannot fail").into_body())
}

/// A body that has more whenever it is asked.
fn endless() -> impl Body<Data = Bytes, Error = Infallible> + Send + 'static {
    let frames =
        futures_util::stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[b'x'; CHUNK]))));
    StreamBody::new(frames)
}

/// Takes so many bytes at once.
async fn take(body: &mut Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>, bytes: usize) {
    let mut taken = 0;
    while taken < bytes {
        let frame = body.frame().await.expect("goes on").expect("is not cut");
        taken += frame.into_data().expect("is data").len();
    }
}

/// Waits as a server does whose client takes nothing: until it is woken.
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
async fn a_reader_who_takes_nothing_is_cut_when_the_server_is_woken() {
    let journal = Journal::default();
    let layer = SlowBodyLayer::new().metrics(journal.clone());
    let mut body = through(&layer, endless()).await;
    take(&mut body, 10 * CHUNK).await;
    let began = Instant::now();
    until_woken().await;
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(began.elapsed(), seconds(120));
    let (guard, phase) = (Guard::SlowBody, Phase::ResponseBody);
    let violation = Violation::new(guard, Reason::Gap, phase, 120_000, 120_000);
    assert_eq!(Violation::behind(&*error), Some(&violation));
    assert_eq!(journal.cuts(), [(violation, Mode::Enforce)]);
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_grpc_response_that_is_cut_ends_with_its_status() {
    fn grpc<B>(body: B) -> Request<B> {
        let request = Request::post("/demo.Echo/Follow").version(Version::HTTP_2);
        request
            .header("content-type", "application/grpc")
            .body(body)
            .expect("is a request")
    }
    let journal = Journal::default();
    let layer = SlowBodyLayer::new().metrics(journal.clone());
    for body in [
        through_request(
            &layer,
            grpc(Full::new(Bytes::from_static(b"a message"))),
            endless(),
        )
        .await,
        through_request(&layer, grpc(Empty::new()), endless()).await,
    ] {
        let mut body = body;
        take(&mut body, 10 * CHUNK).await;
        until_woken().await;
        let trailers = body
            .frame()
            .await
            .unwrap()
            .expect("in good order")
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
async fn a_reader_who_stalls_after_a_while_is_cut_within_twice_the_gap() {
    let mut body = through(&SlowBodyLayer::new(), endless()).await;
    for _ in 0..100 {
        take(&mut body, CHUNK).await;
        sleep(seconds(7)).await;
    }
    take(&mut body, CHUNK).await;
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
async fn steady_readers_are_not_cut_however_large_their_steps() {
    // A kernel that buffers 1.4 MB makes 16 KiB/s a step every 87 s.
    let mut body = through(&SlowBodyLayer::new(), endless()).await;
    for _ in 0..100 {
        take(&mut body, 1_400_000).await;
        sleep(seconds(87)).await;
    }
    take(&mut body, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_paused_and_comes_back_goes_on() {
    // As on HTTP/2 with a shut window: nobody asked when the alarm went off.
    let mut body = through(&SlowBodyLayer::new(), endless()).await;
    for _ in 0..3 {
        take(&mut body, 10 * CHUNK).await;
        sleep(seconds(3600)).await;
    }
    take(&mut body, 1).await;
}

#[tokio::test(start_paused = true)]
async fn with_a_rate_a_reader_who_keeps_being_late_is_cut() {
    let pace = Pace::builder().no_gap().rate(64 * 1024).build().unwrap();
    let layer = SlowBodyLayer::new().response(pace);
    let mut body = through(&layer, endless()).await;
    take(&mut body, 4 * CHUNK).await;
    let mut rounds = 0;
    while body.frame().await.unwrap().is_ok() {
        sleep(seconds(4)).await; // 8 KiB/s.
        rounds += 1;
    }
    assert!((4..10).contains(&rounds), "{rounds}");
    // The neighbour is at twice the rate, in large steps.
    let mut body = through(&layer, endless()).await;
    for _ in 0..100 {
        take(&mut body, 16 * CHUNK).await;
        sleep(seconds(4)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_is_not_charged_to_the_reader() {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move {
        for _ in 0..20 {
            sender
                .send_data(Bytes::from_static(&[b'x'; CHUNK]))
                .await
                .unwrap();
            sleep(seconds(3600)).await;
        }
    });
    let body = through(&SlowBodyLayer::new(), body).await;
    assert_eq!(body.collect().await.unwrap().to_bytes().len(), 20 * CHUNK);
}

#[tokio::test(start_paused = true)]
async fn small_responses_and_last_frames_are_not_judged() {
    let body = through(
        &SlowBodyLayer::new(),
        Full::new(Bytes::from(vec![0; 1 << 20])),
    )
    .await;
    assert_eq!(body.size_hint().exact(), Some(1 << 20));
    assert_eq!(body.collect().await.unwrap().to_bytes().len(), 1 << 20);
    let mut body = through(&SlowBodyLayer::new(), endless()).await;
    take(&mut body, 2 * CHUNK).await;
    advance(seconds(3600)).await;
    take(&mut body, 1).await;
}

#[tokio::test(start_paused = true)]
async fn marked_routes_and_other_modes_let_it_pass() {
    let journal = Journal::default();
    for layer in [
        SlowBodyLayer::new().pace_for(|_| Some(Pace::off())),
        SlowBodyLayer::new().response(Pace::off()),
        SlowBodyLayer::new().mode(Mode::Off),
        SlowBodyLayer::new().mode(Mode::Shadow),
    ] {
        let layer = layer.metrics(journal.clone());
        let mut body = through(&layer, endless()).await;
        take(&mut body, 10 * CHUNK).await;
        for _ in 0..3 {
            sleep(seconds(120)).await;
            take(&mut body, CHUNK).await;
        }
    }
    // Only the shadow said so, and only once.
    assert_eq!(journal.cut(), [(Guard::SlowBody, Reason::Gap)]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_is_found_by_the_task_that_took_the_body_over() {
    let mut body = through(&SlowBodyLayer::new(), endless()).await;
    // Another task had it until now, which nothing will poll again.
    let mut elsewhere = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..10 {
        assert!(body.as_mut().poll_frame(&mut elsewhere).is_ready());
    }
    take(&mut body, CHUNK).await;
    let began = Instant::now();
    let _ = tokio::time::timeout(seconds(1000), until_woken()).await;
    assert_eq!(began.elapsed(), seconds(120));
    assert!(body.frame().await.unwrap().is_err());
}
