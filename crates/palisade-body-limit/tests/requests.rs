//! The length of request bodies.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Script, Step, answer, body_of, count, data, read, through, trailers};
use futures_util::FutureExt;
use http::{Request, Response, StatusCode, Version, header};
use http_body::{Body, SizeHint};
use http_body_util::{BodyExt, Full};
use palisade_body_limit::{
    BodyLimitHandle, BodyLimitLayer, MaxRequestBody, Mode, RequestBody, TinyFrames, Violation,
};
use palisade_core::{Guard, Phase, Reason};
use palisade_testkit::Journal;
use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

const TOO_LARGE: (Guard, Reason) = (Guard::BodyLimit, Reason::TooLarge);

fn violation(phase: Phase, limit: u64, observed: u64) -> Violation {
    Violation::new(Guard::BodyLimit, Reason::TooLarge, phase, limit, observed)
}

#[tokio::test]
async fn what_declares_too_much_is_refused_before_it_is_read() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(2000).metrics(seen.clone());
    let called = Arc::new(AtomicBool::new(false));
    let body = Script::frames(100, 1000).exact(100_000);
    let polls = body.polls.clone();
    let handler = service_fn(|request| {
        called.store(true, Relaxed);
        count::<Script>(request)
    });
    let response = layer
        .layer(handler)
        .oneshot(Request::post("/").body(body).unwrap())
        .await;
    let response = response.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(response.headers()[header::CONNECTION], "close");
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "body too large"
    );
    assert_eq!((polls.load(Relaxed), called.load(Relaxed)), (0, false));
    let expected = violation(Phase::RequestHead, 2000, 100_000);
    assert_eq!(seen.refusals(), [(expected, Mode::Enforce)]);
}

#[tokio::test]
async fn a_short_refused_body_is_read_to_its_end_so_that_the_connection_lives_on() {
    let service = BodyLimitLayer::new(2000).layer(service_fn(count::<Script>));
    let body = Script::frames(3, 1000).exact(3000);
    let polls = body.polls.clone();
    let response = service
        .oneshot(Request::post("/").body(body).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(!response.headers().contains_key(header::CONNECTION));
    tokio::task::yield_now().await;
    assert_eq!(polls.load(Relaxed), 4);
}

#[tokio::test]
async fn exactly_the_limit_passes_and_one_byte_more_does_not() {
    for limit in [0, 1, 10, 4096, 5000, 20_000] {
        for (over, status) in [(0, StatusCode::OK), (1, StatusCode::PAYLOAD_TOO_LARGE)] {
            let length = limit + over;
            let declared = Script::frames(1, length).exact(length as u64);
            let in_one = Script::frames(1, length);
            let in_two = Script::new([data(limit), data(over), Step::Trailers(trailers())]);
            let in_bytes = Script::frames(length.min(100), length / length.clamp(1, 100));
            let whole = length < 100;
            for body in [declared, in_one, in_two, in_bytes]
                .into_iter()
                .take(3 + usize::from(whole))
            {
                let seen = Journal::default();
                let layer = BodyLimitLayer::new(limit as u64).metrics(seen.clone());
                let (answered, _) = body_of(&layer, Request::new(body)).await;
                assert_eq!(answered, status, "{length} bytes where {limit} are allowed");
                assert_eq!(seen.refused().len(), over);
                assert_eq!(seen.cut(), []);
            }
        }
    }
}

#[tokio::test]
async fn the_largest_limit_is_no_limit() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(u64::MAX).metrics(seen.clone());
    let mut body = Script::frames(3, 5000);
    body.hint.set_lower(u64::MAX);
    let read = through(&layer, body).await;
    assert_eq!((read.bytes().len(), read.error.is_none()), (15_000, true));
    assert_eq!(seen.refused(), []);
}

#[tokio::test]
async fn an_overrun_is_413_whatever_the_handler_makes_of_it() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(5000).metrics(seen.clone());
    let body = || Request::new(Script::frames(3, 4096));

    // It answers 200, with what it got so far.
    let response = layer
        .layer(service_fn(count::<Script>))
        .oneshot(body())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);

    // It fails.
    let failing = service_fn(|request: Request<RequestBody<Script>>| async move {
        request.into_body().collect().await.map(|_| answer("never"))
    });
    let response = layer.layer(failing).oneshot(body()).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);

    // It never answers; what it holds is let go with the answer, before the future is dropped.
    let held = Arc::new(());
    let stuck = service_fn(|request: Request<RequestBody<Script>>| {
        let held = held.clone();
        async move {
            let _ = request.into_body().collect().await;
            pending::<()>().await;
            drop(held);
            Ok::<_, Infallible>(answer("never"))
        }
    });
    let mut future = Box::pin(layer.layer(stuck).oneshot(body()));
    let response = (&mut future)
        .now_or_never()
        .expect("is ready at once")
        .unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(Arc::strong_count(&held), 1);
    drop(future);

    let expected = (violation(Phase::RequestBody, 5000, 8192), Mode::Enforce);
    assert_eq!(seen.refusals(), [expected; 3]);
    assert_eq!(seen.cut(), []);
}

#[tokio::test]
async fn an_overrun_in_another_task_wakes_the_answer() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(5000).metrics(seen.clone());
    let handler = service_fn(|request: Request<RequestBody<Script>>| async move {
        let task = tokio::spawn(async move {
            let body = read(request.into_body()).await;
            let error = body.error.expect("is too long");
            assert_eq!(Violation::behind(&*error).unwrap().observed, 8192);
        });
        // Nobody tells this one that the task is done.
        std::mem::forget(task);
        pending::<Result<common::Answer, Infallible>>().await
    });
    let steps = [data(4096), Step::Pending, data(4096)];
    let response = layer
        .layer(handler)
        .oneshot(Request::new(Script::new(steps)))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(seen.refused(), [TOO_LARGE]);
}

#[tokio::test]
async fn an_overrun_after_the_head_fails_the_body_and_is_a_cut() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(5000).metrics(seen.clone());
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let handler = service_fn(|request: Request<RequestBody<Script>>| {
        let _ = sender
            .lock()
            .unwrap()
            .take()
            .unwrap()
            .send(request.into_body());
        async { Ok::<_, Infallible>(answer("early")) }
    });
    let response = layer
        .layer(handler)
        .oneshot(Request::new(Script::frames(3, 4096)))
        .await;
    assert_eq!(response.unwrap().status(), StatusCode::OK);
    let mut body = receiver.await.unwrap();
    body.frame().await.unwrap().unwrap();
    let error = body.frame().await.unwrap().unwrap_err();
    let expected = violation(Phase::RequestBody, 5000, 8192);
    assert_eq!(Violation::behind(&*error), Some(&expected));
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
    assert_eq!(
        (seen.refused(), seen.cuts()),
        (vec![], vec![(expected, Mode::Enforce)])
    );
}

#[tokio::test]
async fn when_nobody_waits_for_an_answer_any_more_it_is_a_cut() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(5000).metrics(seen.clone());
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let handler = service_fn(|request: Request<RequestBody<Script>>| {
        let _ = sender
            .lock()
            .unwrap()
            .take()
            .unwrap()
            .send(request.into_body());
        pending::<Result<common::Answer, Infallible>>()
    });
    let request = Request::new(Script::frames(3, 4096));
    // The client went away, or a timeout outside of this guard has answered already.
    let mut answer = Box::pin(layer.layer(handler).oneshot(request));
    assert!((&mut answer).now_or_never().is_none());
    drop(answer);
    let read = common::read(receiver.await.unwrap()).await;
    assert!(read.error.is_some());
    assert_eq!((seen.refused(), seen.cut()), (vec![], vec![TOO_LARGE]));
}

#[tokio::test]
async fn dropped_futures_and_bodies_leave_nothing_and_record_nothing() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(5000).metrics(seen.clone());
    let body = Script::new([data(4096), Step::Silence]);
    let polls = Arc::downgrade(&body.polls);
    let mut service = layer.layer(service_fn(count::<Script>));
    let mut future = Box::pin(service.call(Request::new(body)));
    assert!((&mut future).now_or_never().is_none());
    drop(future);
    assert_eq!(polls.strong_count(), 0);

    // A handler that does not care for its body.
    let careless = service_fn(|request: Request<RequestBody<Script>>| async move {
        drop(request);
        Ok::<_, Infallible>(answer("fine"))
    });
    let request = Request::new(Script::frames(9, 4096));
    let response = layer.layer(careless).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!((seen.refused(), seen.cut()), (vec![], vec![]));
}

#[tokio::test]
async fn a_panicking_handler_takes_nobody_else_along() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(5000).metrics(seen.clone());
    let mut service = layer.layer(service_fn(
        |request: Request<RequestBody<Script>>| async move {
            let long = read(request.into_body()).await.error.is_some();
            assert!(long, "as a handler panics");
            Ok::<_, Infallible>(answer("never"))
        },
    ));
    let panicking = tokio::spawn(service.call(Request::new(Script::frames(1, 4096))));
    assert!(panicking.await.unwrap_err().is_panic());
    let response = service
        .call(Request::new(Script::frames(2, 4096)))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(seen.refused(), [TOO_LARGE]);
}

#[tokio::test]
async fn every_clone_and_every_layer_call_has_the_same_limit() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(10).metrics(seen.clone());
    let services = [
        layer.layer(service_fn(count::<Script>)),
        layer.clone().layer(service_fn(count)),
    ];
    for service in services
        .iter()
        .flat_map(|service| [service.clone(), service.clone()])
    {
        let response = service
            .oneshot(Request::new(Script::frames(1, 11)))
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    assert_eq!(seen.refused(), [TOO_LARGE; 4]);
}

#[tokio::test]
async fn shadow_records_each_once_and_lets_all_pass() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(5000)
        .metrics(seen.clone())
        .mode(Mode::Shadow);
    let declared = Script::frames(3, 4096).exact(3 * 4096);
    let streamed = Script::frames(3, 4096);
    let tiny = Script::frames(20_000, 1);
    for (body, length) in [(declared, 12_288), (streamed, 12_288), (tiny, 20_000)] {
        let (status, read) = body_of(&layer, Request::new(body)).await;
        assert_eq!((status, read.bytes().len()), (StatusCode::OK, length));
        assert!(read.error.is_none());
    }
    let expected = [
        violation(Phase::RequestHead, 5000, 12_288),
        violation(Phase::RequestBody, 5000, 8192),
        violation(Phase::RequestBody, 5000, 5001),
    ];
    assert_eq!(
        seen.refusals(),
        expected.map(|violation| (violation, Mode::Shadow))
    );
    assert_eq!(seen.cut(), []);
}

#[tokio::test]
async fn off_does_not_look() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(1)
        .response(1)
        .metrics(seen.clone())
        .mode(Mode::Off);
    for body in [Script::frames(9, 9).exact(81), Script::frames(30_000, 1)] {
        let steps = body.steps.len();
        let (status, read) = body_of(&layer, Request::new(body)).await;
        assert_eq!((status, read.pieces.len()), (StatusCode::OK, steps));
    }
    assert_eq!(seen.refused(), []);
}

#[tokio::test]
async fn the_header_counts_where_the_body_does_not_know_its_length() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(100).metrics(seen.clone());
    let status = async |lengths: &[&str], body: Script| {
        let mut request = Request::new(body);
        for length in lengths {
            request
                .headers_mut()
                .append(header::CONTENT_LENGTH, length.parse().unwrap());
        }
        layer
            .layer(service_fn(count::<Script>))
            .oneshot(request)
            .await
            .unwrap()
            .status()
    };
    let body = || Script::frames(1, 9);
    assert_eq!(
        status(&["101"], body()).await,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    assert_eq!(
        status(&["9", "101"], body()).await,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    assert_eq!(status(&["100"], body()).await, StatusCode::OK);
    assert_eq!(
        status(&["many", "-1", "99999999999999999999999"], body()).await,
        StatusCode::OK
    );
    // What the body knows about itself is what the server will hold it to.
    assert_eq!(status(&["101"], body().exact(9)).await, StatusCode::OK);
    // And whatever it says, what comes is counted.
    assert_eq!(
        status(&["9"], Script::frames(1, 101)).await,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    assert_eq!(seen.refused(), [TOO_LARGE; 3]);
}

#[tokio::test]
async fn a_request_may_bring_its_own_limit() {
    let layer = BodyLimitLayer::new(100);
    let status = async |own: u64, body: Script| {
        let mut request = Request::new(body);
        request.extensions_mut().insert(MaxRequestBody(own));
        body_of(&layer, request).await.0
    };
    for body in [Script::frames(2, 4096), Script::frames(2, 4096).exact(8192)] {
        assert_eq!(status(8192, body.clone()).await, StatusCode::OK);
        assert_eq!(
            status(8191, body.clone()).await,
            StatusCode::PAYLOAD_TOO_LARGE
        );
        assert_eq!(status(0, body).await, StatusCode::PAYLOAD_TOO_LARGE);
    }
}

#[tokio::test]
async fn a_handler_may_change_the_limit_until_it_reads() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(100).overridable().metrics(seen.clone());
    let run = async |limit: u64, body: Script| {
        let handler = service_fn(|request: Request<RequestBody<Script>>| async move {
            let handle = request
                .extensions()
                .get::<BodyLimitHandle>()
                .unwrap()
                .clone();
            assert!(handle.set(7) && handle.set(limit));
            let mut body = request.into_body();
            let first = body.frame().await;
            assert!(!handle.set(u64::MAX), "the first read is over");
            if let Some(Ok(frame)) = first {
                let rest = read(body).await.bytes().len();
                return Ok::<_, Infallible>(answer(frame.into_data().unwrap().len() + rest));
            }
            Ok(answer("failed"))
        });
        layer
            .layer(handler)
            .oneshot(Request::new(body))
            .await
            .unwrap()
            .status()
    };
    let known = Script::frames(2, 4096).exact(8192);
    assert_eq!(run(8192, known.clone()).await, StatusCode::OK);
    assert_eq!(run(8192, Script::frames(2, 4096)).await, StatusCode::OK);
    assert_eq!(seen.refused(), []);
    // Too much by what it declares: refused at the first read, and still not polled.
    assert_eq!(
        run(8191, known.clone()).await,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    assert_eq!(known.polls.load(Relaxed), 3, "only by the run that passed");
    assert_eq!(
        run(8191, Script::frames(2, 4096)).await,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    let expected = (violation(Phase::RequestBody, 8191, 8192), Mode::Enforce);
    assert_eq!(seen.refusals(), [expected; 2]);

    // Without a body there is nothing to set, but the handle is there.
    let empty = Script {
        knows_its_end: true,
        ..Script::default()
    };
    let handler = service_fn(|request: Request<RequestBody<Script>>| async move {
        Ok::<_, Infallible>(answer(
            request
                .extensions()
                .get::<BodyLimitHandle>()
                .unwrap()
                .set(1),
        ))
    });
    let response = layer
        .layer(handler)
        .oneshot(Request::new(empty))
        .await
        .unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "true"
    );
}

#[tokio::test]
async fn grpc_hears_resource_exhausted() {
    let request = |body: Script| {
        let mut request = Request::post("/demo.Echo/Collect").version(Version::HTTP_2);
        request = request.header(header::CONTENT_TYPE, "application/grpc");
        request.body(body).unwrap()
    };
    let layer = BodyLimitLayer::new(5000);
    for body in [Script::frames(2, 4096), Script::frames(2, 4096).exact(8192)] {
        let service = layer.layer(service_fn(count::<Script>));
        let response = service.oneshot(request(body)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "8");
        assert_eq!(response.headers()["grpc-message"], "body too large");
        assert!(response.body().is_end_stream());
    }
}

#[tokio::test]
async fn the_answer_may_be_ones_own() {
    let layer = BodyLimitLayer::new(10).on_reject(|rejection| {
        let Violation {
            limit, observed, ..
        } = rejection.violation();
        http::Response::new(format!("{observed} > {limit}").into())
    });
    let service = layer.layer(service_fn(count::<Script>));
    let response = service
        .oneshot(Request::new(Script::frames(1, 11)))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "11 > 10"
    );
}

#[tokio::test]
async fn trailers_pass_and_do_not_count() {
    let layer = BodyLimitLayer::new(4096);
    let read = through(
        &layer,
        Script::new([data(4096), Step::Trailers(trailers())]),
    )
    .await;
    assert_eq!(
        (read.bytes().len(), read.trailers),
        (4096, Some(trailers()))
    );
    assert!(read.error.is_none());
}

#[tokio::test]
async fn the_error_of_the_inner_body_is_handed_on_and_is_not_ours() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(4096).metrics(seen.clone());
    let read = through(&layer, Script::new([data(9), Step::Error])).await;
    let error: BoxError = read.error.unwrap();
    assert_eq!(
        (error.to_string().as_str(), Violation::behind(&*error)),
        ("broken", None)
    );
    assert_eq!((seen.refused(), seen.cut()), (vec![], vec![]));
}

#[tokio::test]
async fn a_body_never_promises_more_than_it_may_yield() {
    let hint = async |layer: &BodyLimitLayer, body: Script, frames: usize| {
        let handler = service_fn(|request: Request<RequestBody<Script>>| async move {
            let mut body = request.into_body();
            for _ in 0..frames {
                body.frame().await.unwrap().unwrap();
            }
            let hint = body.size_hint();
            Ok::<_, Infallible>(answer(format!("{} {:?}", hint.lower(), hint.upper())))
        });
        let response = layer
            .layer(handler)
            .oneshot(Request::new(body))
            .await
            .unwrap();
        String::from_utf8(
            response
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .to_vec(),
        )
        .unwrap()
    };
    let layer = BodyLimitLayer::new(10_000);
    let body = || Script::frames(2, 4096);
    assert_eq!(hint(&layer, body(), 0).await, "0 Some(10000)");
    assert_eq!(hint(&layer, body(), 1).await, "0 Some(5904)");
    assert_eq!(hint(&layer, body().exact(8192), 0).await, "8192 Some(8192)");
    let mut loose = body();
    loose.hint = SizeHint::new();
    loose.hint.set_lower(5);
    loose.hint.set_upper(9000);
    assert_eq!(hint(&layer, loose.clone(), 0).await, "5 Some(9000)");
    assert_eq!(hint(&layer, loose, 1).await, "5 Some(5904)");
    assert_eq!(
        hint(&layer.clone().mode(Mode::Shadow), body(), 1).await,
        "0 None"
    );
    assert_eq!(hint(&layer.overridable(), body(), 0).await, "0 None");
    assert_eq!(
        hint(&BodyLimitLayer::new(u64::MAX), body(), 0).await,
        "0 None"
    );
}

/// A gRPC request that says how long it is, of one message.
fn message(bytes: u32) -> Request<Full<Bytes>> {
    let mut body = vec![0];
    body.extend(bytes.to_be_bytes());
    body.resize(body.len() + bytes as usize, 7);
    let request = Request::post("/demo.Echo/Unary").version(Version::HTTP_2);
    let request = request.header("content-type", "application/grpc");
    request.body(Full::from(body)).unwrap()
}

#[tokio::test]
async fn a_declared_length_does_not_switch_the_limit_of_messages_off() {
    for layer in [
        BodyLimitLayer::new(500).grpc(),
        BodyLimitLayer::new(500).grpc().tiny_frames(None),
        BodyLimitLayer::new(500)
            .grpc()
            .tiny_frames(TinyFrames::default().burst(1 << 20)),
    ] {
        let service = layer.layer(service_fn(
            |request: Request<RequestBody<Full<Bytes>>>| async {
                let whole = request.into_body().collect().await;
                let read = whole.map_or(0, |whole| whole.to_bytes().len());
                Ok::<_, Infallible>(Response::new(Full::from(read.to_string())))
            },
        ));
        for (bytes, refused) in [(500, false), (501, true), (100_000, true)] {
            let response = service.clone().oneshot(message(bytes)).await.unwrap();
            assert_eq!(
                response.headers().contains_key("grpc-status"),
                refused,
                "{bytes}"
            );
        }
    }
}
