//! The length of response bodies.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Script, Step, data, read, trailers};
use http::{Request, Response, StatusCode, Version, header};
use http_body::Body;
use http_body_util::Empty;
use palisade_body_limit::{BodyLimitLayer, Mode, RequestBody, Violation};
use palisade_core::{Guard, Phase, Reason};
use palisade_testkit::Journal;
use std::convert::Infallible;
use tower::{Layer, ServiceExt, service_fn};

type Get = Request<Empty<bytes::Bytes>>;

fn violation(phase: Phase, observed: u64) -> Violation {
    Violation::new(Guard::BodyLimit, Reason::TooLarge, phase, 5000, observed)
}

fn get() -> Get {
    Request::new(Empty::new())
}

fn grpc() -> Get {
    let request = Request::post("/").version(Version::HTTP_2);
    request
        .header(header::CONTENT_TYPE, "application/grpc")
        .body(Empty::new())
        .unwrap()
}

/// Calls a handler that answers with `body`, behind a limit of 5,000 bytes.
async fn answered(
    layer: &BodyLimitLayer,
    request: Get,
    body: Script,
    length: Option<u64>,
) -> Response<impl Body<Data = bytes::Bytes, Error = tower::BoxError> + use<>> {
    let handler = service_fn(|_: Request<RequestBody<Empty<bytes::Bytes>>>| {
        let mut response = Response::new(body.clone());
        if let Some(length) = length {
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length.into());
        }
        async { Ok::<_, Infallible>(response) }
    });
    layer.layer(handler).oneshot(request).await.unwrap()
}

fn layer(seen: &Journal) -> BodyLimitLayer {
    BodyLimitLayer::new(1).response(5000).metrics(seen.clone())
}

#[tokio::test]
async fn one_that_declares_too_much_is_replaced_by_500() {
    let seen = Journal::default();
    let body = Script::frames(2, 4096);
    for (body, length) in [(body.clone().exact(8192), None), (body, Some(8192))] {
        let response = answered(&layer(&seen), get(), body, length).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!response.headers().contains_key(header::CONNECTION));
        assert_eq!(read(response.into_body()).await.bytes(), b"body too large");
    }
    assert_eq!(
        seen.refusals(),
        [(violation(Phase::Handler, 8192), Mode::Enforce); 2]
    );
    assert_eq!(seen.cut(), []);
}

#[tokio::test]
async fn one_that_turns_out_too_long_is_cut_and_recorded_once() {
    let seen = Journal::default();
    let response = answered(&layer(&seen), get(), Script::frames(4, 4096), None).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = Box::pin(response.into_body());
    let read = read(&mut body).await;
    assert_eq!(read.bytes().len(), 4096);
    let cut = violation(Phase::ResponseBody, 8192);
    assert_eq!(Violation::behind(&*read.error.unwrap()), Some(&cut));
    assert!(body.is_end_stream());
    assert!(common::read(&mut body).await.pieces.is_empty());
    assert_eq!(
        (seen.refused(), seen.cuts()),
        (vec![], vec![(cut, Mode::Enforce)])
    );
}

#[tokio::test]
async fn grpc_is_cut_by_trailers() {
    let seen = Journal::default();
    let response = answered(&layer(&seen), grpc(), Script::frames(4, 4096), None).await;
    let read = read(response.into_body()).await;
    assert_eq!((read.bytes().len(), read.error.is_none()), (4096, true));
    assert_eq!(read.trailers.unwrap()["grpc-status"], "8");
    assert_eq!(seen.cut().len(), 1);

    let body = Script::frames(2, 4096).exact(8192);
    let response = answered(&layer(&seen), grpc(), body, None).await;
    assert_eq!(response.headers()["grpc-status"], "8");
}

#[tokio::test]
async fn exactly_the_limit_passes_with_its_length_and_trailers() {
    let seen = Journal::default();
    let steps = [
        data(4000),
        Step::Pending,
        data(1000),
        Step::Trailers(trailers()),
    ];
    let response = answered(&layer(&seen), get(), Script::new(steps), None).await;
    assert_eq!(response.body().size_hint().upper(), None);
    let read = read(response.into_body()).await;
    assert_eq!(
        (read.bytes().len(), read.trailers),
        (5000, Some(trailers()))
    );

    let body = Script::frames(1, 5000).exact(5000);
    let response = answered(&layer(&seen), get(), body, Some(5000)).await;
    assert_eq!(response.body().size_hint().exact(), Some(5000));
    assert_eq!((seen.refused(), seen.cut()), (vec![], vec![]));
}

#[tokio::test]
async fn the_answer_to_a_head_request_may_tell_any_length() {
    let seen = Journal::default();
    let body = Script {
        knows_its_end: true,
        ..Script::default()
    };
    let response = answered(&layer(&seen), get(), body, Some(1 << 40)).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(seen.refused(), []);
}

#[tokio::test]
async fn a_head_without_a_body_may_tell_any_length_whatever_its_body_knows_of_itself() {
    let seen = Journal::default();
    let head = || Request::head("/").body(Empty::new()).unwrap();
    for body in [Script::default(), Script::default().exact(8192)] {
        let response = answered(&layer(&seen), head(), body.clone(), Some(1 << 40)).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            response.headers()[header::CONTENT_LENGTH],
            (1u64 << 40).to_string()
        );
        for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
            let handler = service_fn(|_: Request<RequestBody<Empty<bytes::Bytes>>>| {
                let response = Response::builder().status(status);
                let response = response.header(header::CONTENT_LENGTH, 1u64 << 40);
                let response = response.body(body.clone()).unwrap();
                async { Ok::<_, Infallible>(response) }
            });
            let response = layer(&seen).layer(handler).oneshot(get()).await.unwrap();
            assert_eq!(response.status(), status);
        }
    }
    assert_eq!(seen.refused(), []);
    // Should bytes follow it all the same, they are counted.
    let response = answered(&layer(&seen), head(), Script::frames(2, 4096), None).await;
    assert!(read(response.into_body()).await.error.is_some());
    assert_eq!(seen.cut().len(), 1);
}

#[tokio::test]
async fn shadow_records_and_lets_pass() {
    let seen = Journal::default();
    let layer = layer(&seen).mode(Mode::Shadow);
    for body in [
        Script::frames(4, 4096),
        Script::frames(4, 4096).exact(16_384),
    ] {
        let response = answered(&layer, get(), body, None).await;
        let read = read(response.into_body()).await;
        assert_eq!((read.bytes().len(), read.error.is_none()), (16_384, true));
    }
    assert_eq!(
        seen.refusals(),
        [(violation(Phase::Handler, 16_384), Mode::Shadow)]
    );
    assert_eq!(
        seen.cuts(),
        [(violation(Phase::ResponseBody, 8192), Mode::Shadow)]
    );
}

#[tokio::test]
async fn without_a_limit_any_length_passes() {
    let layer = BodyLimitLayer::new(1);
    let response = answered(
        &layer,
        get(),
        Script::frames(100, 4096).exact(409_600),
        None,
    )
    .await;
    assert_eq!(response.body().size_hint().exact(), Some(409_600));
    assert_eq!(read(response.into_body()).await.bytes().len(), 409_600);
}
