//! The limit and the coalescing of small frames.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{
    ReadBody, Script, Step, count_bytes, data, read_body, read_through, serve, text_response,
    trailers,
};
use futures_util::FutureExt;
use http::{Request, StatusCode, Version, header};
use http_body::Body;
use http_body_util::{BodyExt, channel::Channel};
use palisade_body_limit::{BodyLimitLayer, RequestBody, TinyFrames, Violation};
use palisade_core::{Guard, Mode, Phase, Reason};
use palisade_testkit::Journal;
use proptest::prelude::*;
use std::{convert::Infallible, sync::atomic::Ordering::Relaxed, task::Poll, time::Duration};
use tokio_test::task;
use tower::{Layer, Service, ServiceExt, service_fn};

const TINY: (Guard, Reason) = (Guard::BodyLimit, Reason::TinyFrames);
/// Number of small frames at the start of a body that are not coalesced.
const UNCOALESCED_FRAMES: usize = 16;

fn grpc_request(body: Script) -> Request<Script> {
    let request = Request::post("/").version(Version::HTTP_2);
    request
        .header(header::CONTENT_TYPE, "application/grpc")
        .body(body)
        .unwrap()
}

/// Returns the lengths of the frames after the uncoalesced ones.
fn coalesced_lengths(read: &ReadBody) -> Vec<usize> {
    read.frames
        .iter()
        .skip(UNCOALESCED_FRAMES)
        .map(Bytes::len)
        .collect()
}

/// Returns the request body that a handler behind `layer` receives.
fn guarded_body<B>(layer: &BodyLimitLayer, request: Request<B>) -> RequestBody<B>
where
    B: Body<Data = Bytes, Error: Into<tower::BoxError>> + Send + Unpin + 'static,
{
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut service = layer.layer(service_fn(move |request: Request<RequestBody<B>>| {
        sender.send(request.into_body()).unwrap();
        async { Ok::<_, Infallible>(text_response("")) }
    }));
    drop(service.call(request));
    receiver.recv().unwrap()
}

#[tokio::test]
async fn small_frames_that_are_ready_are_coalesced() {
    let layer = BodyLimitLayer::default();
    let read = read_through(&layer, Script::frames(UNCOALESCED_FRAMES + 3000, 1)).await;
    // A poll takes 1,024 frames at most, so that other tasks can run.
    assert_eq!(coalesced_lengths(&read), [1024, 1024, 952]);
    let read = read_through(&layer, Script::frames(UNCOALESCED_FRAMES + 100, 1000)).await;
    assert!(
        coalesced_lengths(&read)
            .iter()
            .all(|length| *length <= 16 * 1024)
    );
    assert_eq!(coalesced_lengths(&read).len(), 8);
}

#[tokio::test]
async fn short_bodies_and_large_frames_pass_unchanged() {
    let layer = BodyLimitLayer::default();
    let read = read_through(&layer, Script::frames(UNCOALESCED_FRAMES, 1)).await;
    assert_eq!(read.frames.len(), UNCOALESCED_FRAMES);
    let read = read_through(&layer, Script::frames(100, 4096)).await;
    assert_eq!(read.frames.len(), 100);
    let steps =
        (0..UNCOALESCED_FRAMES)
            .map(|_| data(1))
            .chain([data(3), data(4096), data(5), data(4095)]);
    assert_eq!(
        coalesced_lengths(&read_through(&layer, Script::new(steps)).await),
        [3, 4096, 4100]
    );
}

#[tokio::test]
async fn a_small_frame_is_held_back_for_one_more_poll() {
    let layer = BodyLimitLayer::default();
    let (mut sender, body) = Channel::<Bytes, tower::BoxError>::new(1);
    let mut body = guarded_body(&layer, Request::new(body));
    for _ in 0..UNCOALESCED_FRAMES {
        sender.send_data(Bytes::from_static(b"x")).await.unwrap();
        body.frame().await.unwrap().unwrap();
    }
    let mut task = task::spawn(body);
    let poll = |task: &mut task::Spawn<RequestBody<_>>| {
        let polled = task.enter(|cx, body| body.poll_frame(cx));
        polled.map(|frame| frame.unwrap().unwrap().into_data().unwrap())
    };
    assert!(poll(&mut task).is_pending());
    sender.send_data(Bytes::from_static(b"a")).await.unwrap();
    assert!(task.is_woken());
    assert!(poll(&mut task).is_pending(), "held back");
    assert!(task.is_woken(), "the body requests one more poll itself");
    sender.send_data(Bytes::from_static(b"b")).await.unwrap();
    assert!(
        poll(&mut task).is_pending(),
        "more bytes arrived, so another poll is requested"
    );
    assert_eq!(
        poll(&mut task),
        Poll::Ready(Bytes::from_static(b"ab")),
        "nothing more arrived"
    );
    // 512 bytes are not held back.
    sender
        .send_data(Bytes::from(vec![b'c'; 512]))
        .await
        .unwrap();
    assert_eq!(poll(&mut task).map(|data| data.len()), Poll::Ready(512));
    assert!(poll(&mut task).is_pending());
    assert!(!task.is_woken(), "nothing is held");
}

#[tokio::test]
async fn grpc_frames_are_never_held_back() {
    let steps = (0..UNCOALESCED_FRAMES)
        .map(|_| data(7))
        .chain([data(7), Step::Stall]);
    let mut body = guarded_body(&BodyLimitLayer::default(), grpc_request(Script::new(steps)));
    for _ in 0..=UNCOALESCED_FRAMES {
        let frame = body
            .frame()
            .now_or_never()
            .expect("the frame is ready in the first poll");
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap().len(), 7);
    }
}

#[tokio::test]
async fn held_bytes_count_in_the_size_hint_and_delay_the_end() {
    let steps = (0..UNCOALESCED_FRAMES)
        .map(|_| data(1))
        .chain([data(3), data(5000)]);
    let mut script = Script::new(steps).with_length(0);
    script.reports_end = true;
    let mut body = guarded_body(&BodyLimitLayer::default(), Request::new(script));
    // The size hint of the script is always 0, so the lower bound is the number of held bytes.
    let lower = |body: &RequestBody<Script>| body.size_hint().lower();
    for _ in 0..UNCOALESCED_FRAMES {
        body.frame().await.unwrap().unwrap();
    }
    assert_eq!(
        body.frame()
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()
            .len(),
        3
    );
    assert_eq!((lower(&body), body.is_end_stream()), (5000, false));
    assert_eq!(
        body.frame()
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()
            .len(),
        5000
    );
    assert_eq!((lower(&body), body.is_end_stream()), (0, true));
}

#[tokio::test]
async fn held_bytes_are_delivered_before_the_end_trailers_and_errors() {
    let small = || (0..UNCOALESCED_FRAMES + 2).map(|_| data(1));
    let layer = BodyLimitLayer::default();
    let read = read_through(&layer, Script::new(small())).await;
    assert_eq!(coalesced_lengths(&read), [2]);
    let read = read_through(
        &layer,
        Script::new(small().chain([Step::Trailers(trailers())])),
    )
    .await;
    assert_eq!(
        (coalesced_lengths(&read), read.trailers),
        (vec![2], Some(trailers()))
    );
    let read = read_through(&layer, Script::new(small().chain([Step::Error]))).await;
    assert_eq!(
        (coalesced_lengths(&read), read.error.unwrap().to_string()),
        (vec![2], "broken".into())
    );
    let layer = BodyLimitLayer::new(UNCOALESCED_FRAMES as u64 + 2);
    let read = read_through(&layer, Script::new(small().chain([data(1)]))).await;
    assert_eq!(coalesced_lengths(&read), [2]);
    assert!(Violation::from_error(&*read.error.unwrap()).is_some());
}

#[tokio::test(start_paused = true)]
async fn one_byte_frames_are_refused_and_the_same_bytes_in_larger_frames_pass() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::default().metrics(seen.clone());
    let body = Script::frames(1 << 20, 1);
    let polls = body.polls.clone();
    let (status, read) = serve(&layer, Request::new(body)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let error = read.error.unwrap();
    let violation = *Violation::from_error(&*error).unwrap();
    assert_eq!((violation.guard, violation.reason), TINY);
    assert_eq!(violation.phase, Phase::RequestBody);
    assert!(violation.observed > violation.limit && violation.limit >= 1024);
    assert!(polls.load(Relaxed) < 10_000, "the violation is found early");
    assert_eq!(seen.refusals(), [(violation, Mode::Enforce)]);

    let (status, read) = serve(&layer, Request::new(Script::frames(1 << 17, 8))).await;
    assert_eq!((status, read.bytes().len()), (StatusCode::OK, 1 << 20));
    let (status, read) = serve(&layer, Request::new(Script::frames(1 << 14, 64))).await;
    assert_eq!((status, read.bytes().len()), (StatusCode::OK, 1 << 20));
    assert_eq!(seen.refused().len(), 1);
}

/// Creates a body of frames that cannot be coalesced: each is followed by two pending polls.
fn separate_frames(count: usize, length: usize) -> Script {
    Script::new((0..count).flat_map(|_| [data(length), Step::Pending, Step::Pending]))
}

#[tokio::test(start_paused = true)]
async fn frames_that_cannot_be_coalesced_count_in_full() {
    let refused = async |frames: TinyFrames, body: Script| {
        let layer = BodyLimitLayer::default().tiny_frames(frames);
        let error = read_through(&layer, body).await.error?;
        let violation = Violation::from_error(&*error).copied();
        violation.map(|violation| (violation.limit, violation.observed))
    };
    let none = TinyFrames::default().burst(100).per_bytes(0).per_second(0);
    assert_eq!(refused(none, separate_frames(100, 1)).await, None);
    assert_eq!(
        refused(none, separate_frames(101, 1)).await,
        Some((100, 101))
    );
    let for_bytes = none.per_bytes(64);
    assert_eq!(refused(for_bytes, separate_frames(10_000, 64)).await, None);
    assert_eq!(
        refused(for_bytes, separate_frames(10_000, 32)).await,
        Some((200, 201))
    );
    assert_eq!(
        refused(
            none.burst(u32::MAX).per_second(u32::MAX),
            separate_frames(10_000, 1)
        )
        .await,
        None
    );
    assert_eq!(
        refused(none.burst(0), separate_frames(UNCOALESCED_FRAMES, 1)).await,
        None
    );
    assert_eq!(
        refused(none.burst(0), separate_frames(UNCOALESCED_FRAMES + 1, 1)).await,
        Some((0, 17))
    );
}

#[tokio::test(start_paused = true)]
async fn elapsed_time_grants_more_frames() {
    let frames = TinyFrames::default().burst(20).per_bytes(0).per_second(10);
    let layer = BodyLimitLayer::default().tiny_frames(frames);
    let passed = async |pause: Duration| {
        let (mut sender, body) = Channel::<Bytes, tower::BoxError>::new(1);
        tokio::spawn(async move {
            for _ in 0..300 {
                tokio::time::sleep(pause).await;
                if sender.send_data(Bytes::from_static(b"x")).await.is_err() {
                    break;
                }
            }
        });
        read_body(guarded_body(&layer, Request::new(body)))
            .await
            .bytes()
            .len()
    };
    assert_eq!(passed(Duration::from_millis(100)).await, 300);
    // Twice as fast: 10 of 20 frames per second are granted, and the burst covers the difference
    // for a while.
    let passed = passed(Duration::from_millis(50)).await;
    assert!((20..45).contains(&passed), "{passed}");
}

#[tokio::test(start_paused = true)]
async fn the_smallest_grpc_messages_pass_and_one_byte_frames_are_refused() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::default().metrics(seen.clone());
    // The smallest messages that carry a field: a prefix and two bytes, one message per frame.
    let (_, read) = serve(&layer, grpc_request(separate_frames(250_000, 7))).await;
    assert_eq!(read.bytes().len(), 1_750_000);
    assert_eq!(seen.refused(), []);
    let (_, read) = serve(&layer, grpc_request(separate_frames(250_000, 1))).await;
    assert!(read.bytes().len() < 1500);
    assert_eq!(seen.refused(), [TINY]);
}

#[tokio::test(start_paused = true)]
async fn grpc_has_the_same_burst_and_sixteen_times_the_frames_per_byte() {
    let frames = TinyFrames::default().burst(100).per_bytes(64).per_second(0);
    let layer = BodyLimitLayer::default().tiny_frames(frames);
    let refused = async |length| {
        let error = serve(&layer, grpc_request(separate_frames(10_000, length)))
            .await
            .1
            .error?;
        Violation::from_error(&*error).map(|violation| violation.observed)
    };
    assert_eq!(refused(0).await, Some(101));
    assert_eq!(refused(2).await, Some(199));
    assert_eq!(refused(4).await, None);
    let frames = frames.per_bytes(0).per_second(10);
    let layer = BodyLimitLayer::default().tiny_frames(frames);
    let (_, read) = serve(&layer, grpc_request(separate_frames(101, 4))).await;
    assert!(read.error.is_some(), "no time has passed");
}

#[tokio::test]
async fn an_endless_body_of_empty_frames_is_refused() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::default().metrics(seen.clone());
    let (status, read) = serve(&layer, Request::new(Script::frames(1_000_000, 0))).await;
    assert_eq!((status, read.bytes().len()), (StatusCode::BAD_REQUEST, 0));
    assert_eq!(seen.refused(), [TINY]);
}

#[tokio::test]
async fn without_a_frame_limit_frames_are_neither_counted_nor_coalesced() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::default()
        .tiny_frames(None)
        .metrics(seen.clone());
    let read = read_through(&layer, Script::frames(100_000, 1)).await;
    assert_eq!(read.frames.len(), 100_000);
    assert_eq!(seen.refused(), []);
}

#[tokio::test]
async fn a_body_too_short_to_break_a_rule_is_coalesced() {
    let layer = BodyLimitLayer::default();
    let read = read_through(&layer, Script::frames(1024, 1).with_length(1024)).await;
    assert_eq!(coalesced_lengths(&read), [1008]);
    let handler = layer.layer(service_fn(count_bytes::<Script>));
    let response = handler
        .oneshot(Request::new(Script::frames(1, 1024).with_length(1024)))
        .await;
    assert_eq!(
        response
            .unwrap()
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes(),
        "1024"
    );
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..40usize).prop_map(data),
        2 => (0..3000usize).prop_map(data),
        1 => (4000..9000usize).prop_map(data),
        3 => Just(Step::Pending),
    ];
    let end = prop_oneof![
        3 => Just(vec![]),
        1 => Just(vec![Step::Trailers(trailers())]),
        1 => Just(vec![Step::Error]),
    ];
    (proptest::collection::vec(step, 0..200), end).prop_map(|(steps, end)| [steps, end].concat())
}

/// A slow model of a limited body. Returns the bytes that are read, whether trailers follow,
/// whether the limit is exceeded, and whether the inner body fails.
fn expected(steps: &[Step], limit: usize) -> (Vec<u8>, bool, bool, bool) {
    let mut bytes = Vec::new();
    for step in steps {
        match step {
            Step::Data(data) if bytes.len() + data.len() > limit => {
                return (bytes, false, true, false);
            }
            Step::Data(data) => bytes.extend_from_slice(data),
            Step::Trailers(_) => return (bytes, true, false, false),
            Step::Error => return (bytes, false, false, true),
            Step::Pending | Step::Stall => {}
        }
    }
    (bytes, false, false, false)
}

/// Numbers the bytes of all steps, so that misplaced bytes are detected.
fn number_bytes(steps: &mut [Step]) {
    let mut next = 0u8;
    for step in steps {
        if let Step::Data(data) = step {
            let fresh = (0..data.len())
                .map(|at| next.wrapping_add(at as u8))
                .collect::<Vec<_>>();
            next = next.wrapping_add(data.len() as u8).wrapping_add(1);
            *data = fresh.into();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_sequence_of_frames_loses_or_changes_a_byte(
        mut steps in steps(),
        limit in prop_oneof![0..300usize, 0..100_000usize],
        reports_end: bool,
        is_grpc: bool,
        shadow: bool,
    ) {
        number_bytes(&mut steps);
        let seen = Journal::default();
        let layer = BodyLimitLayer::new(limit as u64)
            .tiny_frames(TinyFrames::default().burst(u32::MAX))
            .mode(if shadow { Mode::Shadow } else { Mode::Enforce })
            .metrics(seen.clone());
        let (_, _, exceeds_limit, _) = expected(&steps, limit);
        let limit = if shadow { usize::MAX } else { limit };
        let (bytes, has_trailers, is_cut, inner_fails) = expected(&steps, limit);
        let script = Script { reports_end, ..Script::new(steps.clone()) };
        let request = if is_grpc { grpc_request(script) } else { Request::new(script) };
        // An empty body that reports its end is not checked, and reads as empty.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (status, read) = runtime.block_on(serve(&layer, request));

        prop_assert_eq!(read.bytes(), bytes);
        prop_assert_eq!(read.trailers.is_some(), has_trailers);
        prop_assert_eq!(read.error.is_some(), is_cut || inner_fails);
        let violation = read.error.as_ref().and_then(|error| Violation::from_error(&**error));
        prop_assert_eq!(violation.is_some(), is_cut);
        prop_assert_eq!(seen.refused().len() + seen.cut().len(), usize::from(exceeds_limit));
        if !is_grpc {
            prop_assert_eq!(status == StatusCode::PAYLOAD_TOO_LARGE, is_cut);
        }
        let lengths = steps.iter().map(|step| match step {
            Step::Data(data) => data.len(),
            _ => 0,
        });
        let longest = lengths.max().unwrap_or(0).max(16 * 1024);
        prop_assert!(read.frames.iter().all(|frame| frame.len() <= longest));
    }
}
