//! Small frames: joined, counted, never lost.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Read, Script, Step, answer, body_of, count, data, read, through, trailers};
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
/// So many frames at the start are not joined.
const UNTOUCHED: usize = 16;

fn grpc(body: Script) -> Request<Script> {
    let request = Request::post("/").version(Version::HTTP_2);
    request
        .header(header::CONTENT_TYPE, "application/grpc")
        .body(body)
        .unwrap()
}

/// The lengths of the frames that the handler got after the untouched ones.
fn joined(read: &Read) -> Vec<usize> {
    read.pieces.iter().skip(UNTOUCHED).map(Bytes::len).collect()
}

/// A body behind `layer`, to be polled by hand.
fn inner<B>(layer: &BodyLimitLayer, request: Request<B>) -> RequestBody<B>
where
    B: Body<Data = Bytes, Error: Into<tower::BoxError>> + Send + Unpin + 'static,
{
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut service = layer.layer(service_fn(move |request: Request<RequestBody<B>>| {
        sender.send(request.into_body()).unwrap();
        async { Ok::<_, Infallible>(answer("")) }
    }));
    drop(service.call(request));
    receiver.recv().unwrap()
}

#[tokio::test]
async fn what_is_ready_at_once_is_joined() {
    let layer = BodyLimitLayer::default();
    let read = through(&layer, Script::frames(UNTOUCHED + 3000, 1)).await;
    // A poll takes 1,024 frames at most, for others shall have a turn.
    assert_eq!(joined(&read), [1024, 1024, 952]);
    let read = through(&layer, Script::frames(UNTOUCHED + 100, 1000)).await;
    assert!(joined(&read).iter().all(|length| *length <= 16 * 1024));
    assert_eq!(joined(&read).len(), 8);
}

#[tokio::test]
async fn a_short_body_and_large_frames_come_as_they_are() {
    let layer = BodyLimitLayer::default();
    let read = through(&layer, Script::frames(UNTOUCHED, 1)).await;
    assert_eq!(read.pieces.len(), UNTOUCHED);
    let read = through(&layer, Script::frames(100, 4096)).await;
    assert_eq!(read.pieces.len(), 100);
    let steps = (0..UNTOUCHED)
        .map(|_| data(1))
        .chain([data(3), data(4096), data(5), data(4095)]);
    assert_eq!(
        joined(&through(&layer, Script::new(steps)).await),
        [3, 4096, 4100]
    );
}

#[tokio::test]
async fn a_small_frame_waits_for_one_more_poll_and_no_longer() {
    let layer = BodyLimitLayer::default();
    let (mut sender, body) = Channel::<Bytes, tower::BoxError>::new(1);
    let mut body = inner(&layer, Request::new(body));
    for _ in 0..UNTOUCHED {
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
    assert!(task.is_woken(), "it asks for one more poll by itself");
    sender.send_data(Bytes::from_static(b"b")).await.unwrap();
    assert!(poll(&mut task).is_pending(), "more came, so it asks again");
    assert_eq!(
        poll(&mut task),
        Poll::Ready(Bytes::from_static(b"ab")),
        "nothing more came"
    );
    // What is worth it does not wait.
    sender
        .send_data(Bytes::from(vec![b'c'; 512]))
        .await
        .unwrap();
    assert_eq!(poll(&mut task).map(|data| data.len()), Poll::Ready(512));
    assert!(poll(&mut task).is_pending());
    assert!(!task.is_woken(), "nothing is held");
}

#[tokio::test]
async fn grpc_never_waits() {
    let steps = (0..UNTOUCHED)
        .map(|_| data(7))
        .chain([data(7), Step::Silence]);
    let mut body = inner(&BodyLimitLayer::default(), grpc(Script::new(steps)));
    for _ in 0..=UNTOUCHED {
        let frame = body
            .frame()
            .now_or_never()
            .expect("is handed on in the first poll");
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap().len(), 7);
    }
}

#[tokio::test]
async fn what_is_held_is_counted_in_the_length_and_is_not_the_end() {
    let steps = (0..UNTOUCHED).map(|_| data(1)).chain([data(3), data(5000)]);
    let mut script = Script::new(steps).exact(0);
    script.knows_its_end = true;
    let mut body = inner(&BodyLimitLayer::default(), Request::new(script));
    // The script's hint says 0 for ever, so that what is left is what is held.
    let lower = |body: &RequestBody<Script>| body.size_hint().lower();
    for _ in 0..UNTOUCHED {
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
async fn what_is_held_comes_before_end_trailers_and_error() {
    let small = || (0..UNTOUCHED + 2).map(|_| data(1));
    let layer = BodyLimitLayer::default();
    let read = through(&layer, Script::new(small())).await;
    assert_eq!(joined(&read), [2]);
    let read = through(
        &layer,
        Script::new(small().chain([Step::Trailers(trailers())])),
    )
    .await;
    assert_eq!((joined(&read), read.trailers), (vec![2], Some(trailers())));
    let read = through(&layer, Script::new(small().chain([Step::Error]))).await;
    assert_eq!(
        (joined(&read), read.error.unwrap().to_string()),
        (vec![2], "broken".into())
    );
    let layer = BodyLimitLayer::new(UNTOUCHED as u64 + 2);
    let read = through(&layer, Script::new(small().chain([data(1)]))).await;
    assert_eq!(joined(&read), [2]);
    assert!(Violation::behind(&*read.error.unwrap()).is_some());
}

#[tokio::test(start_paused = true)]
async fn one_byte_frames_are_refused_and_the_same_bytes_in_larger_ones_are_not() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::default().metrics(seen.clone());
    let body = Script::frames(1 << 20, 1);
    let polls = body.polls.clone();
    let (status, read) = body_of(&layer, Request::new(body)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let error = read.error.unwrap();
    let violation = *Violation::behind(&*error).unwrap();
    assert_eq!((violation.guard, violation.reason), TINY);
    assert_eq!(violation.phase, Phase::RequestBody);
    assert!(violation.observed > violation.limit && violation.limit >= 1024);
    assert!(polls.load(Relaxed) < 10_000, "it is found soon");
    assert_eq!(seen.refusals(), [(violation, Mode::Enforce)]);

    let (status, read) = body_of(&layer, Request::new(Script::frames(1 << 17, 8))).await;
    assert_eq!((status, read.bytes().len()), (StatusCode::OK, 1 << 20));
    let (status, read) = body_of(&layer, Request::new(Script::frames(1 << 14, 64))).await;
    assert_eq!((status, read.bytes().len()), (StatusCode::OK, 1 << 20));
    assert_eq!(seen.refused().len(), 1);
}

/// A body whose frames cannot be joined, because each waits for two more polls.
fn apart(count: usize, length: usize) -> Script {
    Script::new((0..count).flat_map(|_| [data(length), Step::Pending, Step::Pending]))
}

#[tokio::test(start_paused = true)]
async fn frames_that_come_apart_count_in_full() {
    let refused = async |frames: TinyFrames, body: Script| {
        let layer = BodyLimitLayer::default().tiny_frames(frames);
        let error = through(&layer, body).await.error?;
        let violation = Violation::behind(&*error).copied();
        violation.map(|violation| (violation.limit, violation.observed))
    };
    let none = TinyFrames::default().burst(100).per_bytes(0).per_second(0);
    assert_eq!(refused(none, apart(100, 1)).await, None);
    assert_eq!(refused(none, apart(101, 1)).await, Some((100, 101)));
    let for_bytes = none.per_bytes(64);
    assert_eq!(refused(for_bytes, apart(10_000, 64)).await, None);
    assert_eq!(
        refused(for_bytes, apart(10_000, 32)).await,
        Some((200, 201))
    );
    assert_eq!(
        refused(none.burst(u32::MAX).per_second(u32::MAX), apart(10_000, 1)).await,
        None
    );
    assert_eq!(refused(none.burst(0), apart(UNTOUCHED, 1)).await, None);
    assert_eq!(
        refused(none.burst(0), apart(UNTOUCHED + 1, 1)).await,
        Some((0, 17))
    );
}

#[tokio::test(start_paused = true)]
async fn time_lets_more_frames_come() {
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
        read(inner(&layer, Request::new(body))).await.bytes().len()
    };
    assert_eq!(passed(Duration::from_millis(100)).await, 300);
    // Twice as fast: of 20 a second 10 are let pass, and the burst lasts for the difference.
    let passed = passed(Duration::from_millis(50)).await;
    assert!((20..45).contains(&passed), "{passed}");
}

#[tokio::test(start_paused = true)]
async fn honest_grpc_is_never_refused_and_one_byte_frames_are() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::default().metrics(seen.clone());
    // The smallest messages there are: a prefix and one field, each alone, for ever.
    let (_, read) = body_of(&layer, grpc(apart(250_000, 7))).await;
    assert_eq!(read.bytes().len(), 1_750_000);
    assert_eq!(seen.refused(), []);
    let (_, read) = body_of(&layer, grpc(apart(250_000, 1))).await;
    assert!(read.bytes().len() < 1500);
    assert_eq!(seen.refused(), [TINY]);
}

#[tokio::test(start_paused = true)]
async fn the_burst_is_the_same_for_all_and_bytes_grant_grpc_sixteen_times_the_frames() {
    let frames = TinyFrames::default().burst(100).per_bytes(64).per_second(0);
    let layer = BodyLimitLayer::default().tiny_frames(frames);
    let refused = async |length| {
        let error = body_of(&layer, grpc(apart(10_000, length))).await.1.error?;
        Violation::behind(&*error).map(|violation| violation.observed)
    };
    assert_eq!(refused(0).await, Some(101));
    assert_eq!(refused(2).await, Some(199));
    assert_eq!(refused(4).await, None);
    let frames = frames.per_bytes(0).per_second(10);
    let layer = BodyLimitLayer::default().tiny_frames(frames);
    let (_, read) = body_of(&layer, grpc(apart(101, 4))).await;
    assert!(read.error.is_some(), "no time has passed");
}

#[tokio::test]
async fn empty_frames_without_end_are_refused() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::default().metrics(seen.clone());
    let (status, read) = body_of(&layer, Request::new(Script::frames(1_000_000, 0))).await;
    assert_eq!((status, read.bytes().len()), (StatusCode::BAD_REQUEST, 0));
    assert_eq!(seen.refused(), [TINY]);
}

#[tokio::test]
async fn without_the_rule_frames_are_neither_counted_nor_joined() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::default()
        .tiny_frames(None)
        .metrics(seen.clone());
    let read = through(&layer, Script::frames(100_000, 1)).await;
    assert_eq!(read.pieces.len(), 100_000);
    assert_eq!(seen.refused(), []);
}

#[tokio::test]
async fn a_body_too_short_to_break_a_rule_is_joined_all_the_same() {
    let layer = BodyLimitLayer::default();
    let read = through(&layer, Script::frames(1024, 1).exact(1024)).await;
    assert_eq!(joined(&read), [1008]);
    let handler = layer.layer(service_fn(count::<Script>));
    let response = handler
        .oneshot(Request::new(Script::frames(1, 1024).exact(1024)))
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

/// What a body with a limit does, worked out slowly: its bytes, its trailers, whether it is over,
/// whether it breaks by itself.
fn oracle(steps: &[Step], limit: usize) -> (Vec<u8>, bool, bool, bool) {
    let mut bytes = Vec::new();
    for step in steps {
        match step {
            Step::Data(data) if bytes.len() + data.len() > limit => {
                return (bytes, false, true, false);
            }
            Step::Data(data) => bytes.extend_from_slice(data),
            Step::Trailers(_) => return (bytes, true, false, false),
            Step::Error => return (bytes, false, false, true),
            Step::Pending | Step::Silence => {}
        }
    }
    (bytes, false, false, false)
}

/// Gives every byte a number of its own, so that none can stand in for another.
fn numbered(steps: &mut [Step]) {
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
    fn no_schedule_of_frames_loses_or_changes_a_byte(
        mut steps in steps(),
        limit in prop_oneof![0..300usize, 0..100_000usize],
        knows_its_end: bool,
        is_grpc: bool,
        shadow: bool,
    ) {
        numbered(&mut steps);
        let seen = Journal::default();
        let layer = BodyLimitLayer::new(limit as u64)
            .tiny_frames(TinyFrames::default().burst(u32::MAX))
            .mode(if shadow { Mode::Shadow } else { Mode::Enforce })
            .metrics(seen.clone());
        let (_, _, over, _) = oracle(&steps, limit);
        let limit = if shadow { usize::MAX } else { limit };
        let (bytes, has_trailers, fails, breaks) = oracle(&steps, limit);
        let script = Script { knows_its_end, ..Script::new(steps.clone()) };
        let request = if is_grpc { grpc(script) } else { Request::new(script) };
        // An empty body that knows it is not looked at, and has nothing to show.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (status, read) = runtime.block_on(body_of(&layer, request));

        prop_assert_eq!(read.bytes(), bytes);
        prop_assert_eq!(read.trailers.is_some(), has_trailers);
        prop_assert_eq!(read.error.is_some(), fails || breaks);
        let violation = read.error.as_ref().and_then(|error| Violation::behind(&**error));
        prop_assert_eq!(violation.is_some(), fails);
        prop_assert_eq!(seen.refused().len() + seen.cut().len(), usize::from(over));
        if !is_grpc {
            prop_assert_eq!(status == StatusCode::PAYLOAD_TOO_LARGE, fails);
        }
        let longest = steps.iter().map(|step| match step {
            Step::Data(data) => data.len(),
            _ => 0,
        });
        let most = longest.max().unwrap_or(0).max(16 * 1024);
        prop_assert!(read.pieces.iter().all(|piece| piece.len() <= most));
    }
}
