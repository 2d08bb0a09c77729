//! The limit on the length of request bodies.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{
    Script, Step, TextResponse, count_bytes, data, read_body, read_through, serve, text_response,
    trailers,
};
use futures_util::FutureExt;
use http::{Request, Response, StatusCode, Version, header};
use http_body::{Body, SizeHint};
use http_body_util::{BodyExt, Full};
use palisade_body_limit::{
    BodyLimitHandle, BodyLimitLayer, Mode, RequestBody, TinyFrames, Violation,
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
async fn a_request_that_declares_too_much_is_refused_before_its_body_is_read() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(2000).metrics(seen.clone());
    let called = Arc::new(AtomicBool::new(false));
    let body = Script::frames(100, 1000).with_length(100_000);
    let polls = body.polls.clone();
    let handler = service_fn(|request| {
        called.store(true, Relaxed);
        count_bytes::<Script>(request)
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
async fn a_short_refused_body_is_read_to_its_end_and_the_connection_stays_open() {
    let service = BodyLimitLayer::new(2000).layer(service_fn(count_bytes::<Script>));
    let body = Script::frames(3, 1000).with_length(3000);
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
async fn a_body_of_exactly_the_limit_passes_and_one_byte_more_is_refused() {
    for limit in [0, 1, 10, 4096, 5000, 20_000] {
        for (over, status) in [(0, StatusCode::OK), (1, StatusCode::PAYLOAD_TOO_LARGE)] {
            let length = limit + over;
            let declared = Script::frames(1, length).with_length(length as u64);
            let in_one = Script::frames(1, length);
            let in_two = Script::new([data(limit), data(over), Step::Trailers(trailers())]);
            let in_bytes = Script::frames(length.min(100), length / length.clamp(1, 100));
            let has_one_byte_frames = length < 100;
            for body in [declared, in_one, in_two, in_bytes]
                .into_iter()
                .take(3 + usize::from(has_one_byte_frames))
            {
                let seen = Journal::default();
                let layer = BodyLimitLayer::new(limit as u64).metrics(seen.clone());
                let (answered, _) = serve(&layer, Request::new(body)).await;
                assert_eq!(answered, status, "{length} bytes where {limit} are allowed");
                assert_eq!(seen.refused().len(), over);
                assert_eq!(seen.cut(), []);
            }
        }
    }
}

#[tokio::test]
async fn the_largest_limit_admits_every_body() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(u64::MAX).metrics(seen.clone());
    let mut body = Script::frames(3, 5000);
    body.hint.set_lower(u64::MAX);
    let read = read_through(&layer, body).await;
    assert_eq!((read.bytes().len(), read.error.is_none()), (15_000, true));
    assert_eq!(seen.refused(), []);
}

#[tokio::test]
async fn an_overrun_is_answered_413_whatever_the_handler_does() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(5000).metrics(seen.clone());
    let body = || Request::new(Script::frames(3, 4096));

    // The handler responds with 200 and the bytes that it has read.
    let response = layer
        .layer(service_fn(count_bytes::<Script>))
        .oneshot(body())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);

    // The handler fails.
    let failing = service_fn(|request: Request<RequestBody<Script>>| async move {
        request
            .into_body()
            .collect()
            .await
            .map(|_| text_response("never"))
    });
    let response = layer.layer(failing).oneshot(body()).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);

    // The handler never responds. It is dropped when the future is ready, before the future is.
    let held = Arc::new(());
    let stuck = service_fn(|request: Request<RequestBody<Script>>| {
        let held = held.clone();
        async move {
            let _ = request.into_body().collect().await;
            pending::<()>().await;
            drop(held);
            Ok::<_, Infallible>(text_response("never"))
        }
    });
    let mut future = Box::pin(layer.layer(stuck).oneshot(body()));
    let response = (&mut future)
        .now_or_never()
        .expect("the response is ready at once")
        .unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(Arc::strong_count(&held), 1);
    drop(future);

    let expected = (violation(Phase::RequestBody, 5000, 8192), Mode::Enforce);
    assert_eq!(seen.refusals(), [expected; 3]);
    assert_eq!(seen.cut(), []);
}

#[tokio::test]
async fn an_overrun_in_another_task_wakes_the_response_future() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(5000).metrics(seen.clone());
    let handler = service_fn(|request: Request<RequestBody<Script>>| async move {
        let task = tokio::spawn(async move {
            let body = read_body(request.into_body()).await;
            let error = body.error.expect("the body is too long");
            assert_eq!(Violation::from_error(&*error).unwrap().observed, 8192);
        });
        // The handler is not woken when the task ends.
        std::mem::forget(task);
        pending::<Result<TextResponse, Infallible>>().await
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
async fn an_overrun_after_the_response_head_fails_the_body_and_is_recorded_as_a_cut() {
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
        async { Ok::<_, Infallible>(text_response("early")) }
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
    assert_eq!(Violation::from_error(&*error), Some(&expected));
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
    assert_eq!(
        (seen.refused(), seen.cuts()),
        (vec![], vec![(expected, Mode::Enforce)])
    );
}

#[tokio::test]
async fn an_overrun_after_the_response_future_is_dropped_is_recorded_as_a_cut() {
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
        pending::<Result<TextResponse, Infallible>>()
    });
    let request = Request::new(Script::frames(3, 4096));
    // The client has hung up, or a timeout outside this guard has responded already.
    let mut response = Box::pin(layer.layer(handler).oneshot(request));
    assert!((&mut response).now_or_never().is_none());
    drop(response);
    let read = common::read_body(receiver.await.unwrap()).await;
    assert!(read.error.is_some());
    assert_eq!((seen.refused(), seen.cut()), (vec![], vec![TOO_LARGE]));
}

#[tokio::test]
async fn dropped_futures_and_bodies_leave_nothing_and_record_nothing() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(5000).metrics(seen.clone());
    let body = Script::new([data(4096), Step::Stall]);
    let polls = Arc::downgrade(&body.polls);
    let mut service = layer.layer(service_fn(count_bytes::<Script>));
    let mut future = Box::pin(service.call(Request::new(body)));
    assert!((&mut future).now_or_never().is_none());
    drop(future);
    assert_eq!(polls.strong_count(), 0);

    // A handler that drops its body unread.
    let dropping = service_fn(|request: Request<RequestBody<Script>>| async move {
        drop(request);
        Ok::<_, Infallible>(text_response("fine"))
    });
    let request = Request::new(Script::frames(9, 4096));
    let response = layer.layer(dropping).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!((seen.refused(), seen.cut()), (vec![], vec![]));
}

#[tokio::test]
async fn a_panicking_handler_does_not_affect_other_requests() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(5000).metrics(seen.clone());
    let mut service = layer.layer(service_fn(
        |request: Request<RequestBody<Script>>| async move {
            let is_too_long = read_body(request.into_body()).await.error.is_some();
            assert!(
                is_too_long,
                "the handler panics if its body is not too long"
            );
            Ok::<_, Infallible>(text_response("never"))
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
async fn all_clones_and_services_have_the_same_limit() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(10).metrics(seen.clone());
    let services = [
        layer.layer(service_fn(count_bytes::<Script>)),
        layer.clone().layer(service_fn(count_bytes)),
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
async fn shadow_mode_records_each_violation_once_and_admits_the_request() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(5000)
        .metrics(seen.clone())
        .mode(Mode::Shadow);
    let declared = Script::frames(3, 4096).with_length(3 * 4096);
    let streamed = Script::frames(3, 4096);
    let tiny = Script::frames(20_000, 1);
    for (body, length) in [(declared, 12_288), (streamed, 12_288), (tiny, 20_000)] {
        let (status, read) = serve(&layer, Request::new(body)).await;
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
async fn a_guard_that_is_off_checks_nothing() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(1)
        .response(1)
        .metrics(seen.clone())
        .mode(Mode::Off);
    for body in [
        Script::frames(9, 9).with_length(81),
        Script::frames(30_000, 1),
    ] {
        let steps = body.steps.len();
        let (status, read) = serve(&layer, Request::new(body)).await;
        assert_eq!((status, read.frames.len()), (StatusCode::OK, steps));
    }
    assert_eq!(seen.refused(), []);
}

#[tokio::test]
async fn the_header_counts_if_the_body_does_not_know_its_length() {
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
            .layer(service_fn(count_bytes::<Script>))
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
    // The exact size hint of the body has precedence: the server enforces it.
    assert_eq!(
        status(&["101"], body().with_length(9)).await,
        StatusCode::OK
    );
    // The bytes that arrive are counted, whatever the header declares.
    assert_eq!(
        status(&["9"], Script::frames(1, 101)).await,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    assert_eq!(seen.refused(), [TOO_LARGE; 3]);
}

#[tokio::test]
async fn a_limit_chosen_by_the_head_replaces_that_of_the_layer() {
    let layer = BodyLimitLayer::new(100).limit_for(|head| head.extensions.get().copied());
    let status = async |own: u64, body: Script| {
        let mut request = Request::new(body);
        request.extensions_mut().insert(own);
        serve(&layer, request).await.0
    };
    for body in [
        Script::frames(2, 4096),
        Script::frames(2, 4096).with_length(8192),
    ] {
        assert_eq!(status(8192, body.clone()).await, StatusCode::OK);
        assert_eq!(
            status(8191, body.clone()).await,
            StatusCode::PAYLOAD_TOO_LARGE
        );
        assert_eq!(status(0, body).await, StatusCode::PAYLOAD_TOO_LARGE);
    }
}

#[tokio::test]
async fn a_handler_can_change_the_limit_until_it_reads_the_body() {
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
            assert!(!handle.set(u64::MAX), "the body has been read from");
            if let Some(Ok(frame)) = first {
                let rest = read_body(body).await.bytes().len();
                return Ok::<_, Infallible>(text_response(frame.into_data().unwrap().len() + rest));
            }
            Ok(text_response("failed"))
        });
        layer
            .layer(handler)
            .oneshot(Request::new(body))
            .await
            .unwrap()
            .status()
    };
    let known = Script::frames(2, 4096).with_length(8192);
    assert_eq!(run(8192, known.clone()).await, StatusCode::OK);
    assert_eq!(run(8192, Script::frames(2, 4096)).await, StatusCode::OK);
    assert_eq!(seen.refused(), []);
    // A body that declares too much is refused at the first read, without being polled.
    assert_eq!(
        run(8191, known.clone()).await,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    assert_eq!(
        known.polls.load(Relaxed),
        3,
        "only the run that passed polls the body"
    );
    assert_eq!(
        run(8191, Script::frames(2, 4096)).await,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    let expected = (violation(Phase::RequestBody, 8191, 8192), Mode::Enforce);
    assert_eq!(seen.refusals(), [expected; 2]);

    // Without a body there is nothing to limit, but the handle is present.
    let empty = Script {
        reports_end: true,
        ..Script::default()
    };
    let handler = service_fn(|request: Request<RequestBody<Script>>| async move {
        Ok::<_, Infallible>(text_response(
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
async fn grpc_clients_receive_resource_exhausted() {
    let request = |body: Script| {
        let mut request = Request::post("/demo.Echo/Collect").version(Version::HTTP_2);
        request = request.header(header::CONTENT_TYPE, "application/grpc");
        request.body(body).unwrap()
    };
    let layer = BodyLimitLayer::new(5000);
    for body in [
        Script::frames(2, 4096),
        Script::frames(2, 4096).with_length(8192),
    ] {
        let service = layer.layer(service_fn(count_bytes::<Script>));
        let response = service.oneshot(request(body)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "8");
        assert_eq!(response.headers()["grpc-message"], "body too large");
        assert!(response.body().is_end_stream());
    }
}

#[tokio::test]
async fn on_reject_replaces_the_response() {
    let layer = BodyLimitLayer::new(10).on_reject(|rejection| {
        let Violation {
            limit, observed, ..
        } = rejection.violation();
        http::Response::new(format!("{observed} > {limit}").into())
    });
    let service = layer.layer(service_fn(count_bytes::<Script>));
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
async fn trailers_pass_and_are_not_counted() {
    let layer = BodyLimitLayer::new(4096);
    let read = read_through(
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
async fn an_error_of_the_inner_body_is_passed_on_and_is_not_a_violation() {
    let seen = Journal::default();
    let layer = BodyLimitLayer::new(4096).metrics(seen.clone());
    let read = read_through(&layer, Script::new([data(9), Step::Error])).await;
    let error: BoxError = read.error.unwrap();
    assert_eq!(
        (error.to_string().as_str(), Violation::from_error(&*error)),
        ("broken", None)
    );
    assert_eq!((seen.refused(), seen.cut()), (vec![], vec![]));
}

#[tokio::test]
async fn the_size_hint_never_exceeds_the_limit() {
    let hint = async |layer: &BodyLimitLayer, body: Script, frames: usize| {
        let handler = service_fn(|request: Request<RequestBody<Script>>| async move {
            let mut body = request.into_body();
            for _ in 0..frames {
                body.frame().await.unwrap().unwrap();
            }
            let hint = body.size_hint();
            Ok::<_, Infallible>(text_response(format!(
                "{} {:?}",
                hint.lower(),
                hint.upper()
            )))
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
    assert_eq!(
        hint(&layer, body().with_length(8192), 0).await,
        "8192 Some(8192)"
    );
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

/// Creates a gRPC request of one message. Its body has an exact size hint.
fn unary_request(bytes: u32) -> Request<Full<Bytes>> {
    let mut body = vec![0];
    body.extend(bytes.to_be_bytes());
    body.resize(body.len() + bytes as usize, 7);
    let request = Request::post("/demo.Echo/Unary").version(Version::HTTP_2);
    let request = request.header("content-type", "application/grpc");
    request.body(Full::from(body)).unwrap()
}

#[tokio::test]
async fn a_declared_length_does_not_disable_the_limit_of_messages() {
    for layer in [
        BodyLimitLayer::new(500).grpc(),
        BodyLimitLayer::new(500).grpc().tiny_frames(None),
        BodyLimitLayer::new(500)
            .grpc()
            .tiny_frames(TinyFrames::default().burst(1 << 20)),
    ] {
        let service = layer.layer(service_fn(
            |request: Request<RequestBody<Full<Bytes>>>| async {
                let collected = request.into_body().collect().await;
                let read = collected.map_or(0, |collected| collected.to_bytes().len());
                Ok::<_, Infallible>(Response::new(Full::from(read.to_string())))
            },
        ));
        for (bytes, refused) in [(500, false), (501, true), (100_000, true)] {
            let response = service.clone().oneshot(unary_request(bytes)).await.unwrap();
            assert_eq!(
                response.headers().contains_key("grpc-status"),
                refused,
                "{bytes}"
            );
        }
    }
}
