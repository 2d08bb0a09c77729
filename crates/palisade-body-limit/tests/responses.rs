//! The limit on the length of response bodies.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Script, Step, data, read_body, trailers};
use http::{Request, Response, StatusCode, Version, header};
use http_body::Body;
use http_body_util::Empty;
use palisade_body_limit::{BodyLimitLayer, Mode, RequestBody, Violation};
use palisade_core::{Guard, Phase, Reason};
use palisade_testkit::Journal;
use std::convert::Infallible;
use tower::{Layer, ServiceExt, service_fn};

type GetRequest = Request<Empty<bytes::Bytes>>;

fn violation(phase: Phase, observed: u64) -> Violation {
    Violation::new(Guard::BodyLimit, Reason::TooLarge, phase, 5000, observed)
}

fn get_request() -> GetRequest {
    Request::new(Empty::new())
}

fn grpc_request() -> GetRequest {
    let request = Request::post("/").version(Version::HTTP_2);
    request
        .header(header::CONTENT_TYPE, "application/grpc")
        .body(Empty::new())
        .unwrap()
}

/// Calls a handler that responds with `body`, through `layer`.
async fn respond(
    layer: &BodyLimitLayer,
    request: GetRequest,
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

/// Creates a layer that limits responses to 5,000 bytes.
fn layer(seen: &Journal) -> BodyLimitLayer {
    BodyLimitLayer::new(1).response(5000).metrics(seen.clone())
}

#[tokio::test]
async fn a_response_that_declares_too_much_is_replaced_by_500() {
    let seen = Journal::default();
    let body = Script::frames(2, 4096);
    for (body, length) in [(body.clone().with_length(8192), None), (body, Some(8192))] {
        let response = respond(&layer(&seen), get_request(), body, length).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!response.headers().contains_key(header::CONNECTION));
        assert_eq!(
            read_body(response.into_body()).await.bytes(),
            b"body too large"
        );
    }
    assert_eq!(
        seen.refusals(),
        [(violation(Phase::Handler, 8192), Mode::Enforce); 2]
    );
    assert_eq!(seen.cut(), []);
}

#[tokio::test]
async fn a_response_that_exceeds_the_limit_is_cut_and_recorded_once() {
    let seen = Journal::default();
    let response = respond(&layer(&seen), get_request(), Script::frames(4, 4096), None).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = Box::pin(response.into_body());
    let read = read_body(&mut body).await;
    assert_eq!(read.bytes().len(), 4096);
    let cut = violation(Phase::ResponseBody, 8192);
    assert_eq!(Violation::from_error(&*read.error.unwrap()), Some(&cut));
    assert!(body.is_end_stream());
    assert!(read_body(&mut body).await.frames.is_empty());
    assert_eq!(
        (seen.refused(), seen.cuts()),
        (vec![], vec![(cut, Mode::Enforce)])
    );
}

#[tokio::test]
async fn a_grpc_response_that_is_cut_ends_with_trailers() {
    let seen = Journal::default();
    let response = respond(&layer(&seen), grpc_request(), Script::frames(4, 4096), None).await;
    let read = read_body(response.into_body()).await;
    assert_eq!((read.bytes().len(), read.error.is_none()), (4096, true));
    assert_eq!(read.trailers.unwrap()["grpc-status"], "8");
    assert_eq!(seen.cut().len(), 1);

    let body = Script::frames(2, 4096).with_length(8192);
    let response = respond(&layer(&seen), grpc_request(), body, None).await;
    assert_eq!(response.headers()["grpc-status"], "8");
}

#[tokio::test]
async fn a_response_of_exactly_the_limit_keeps_its_length_and_trailers() {
    let seen = Journal::default();
    let steps = [
        data(4000),
        Step::Pending,
        data(1000),
        Step::Trailers(trailers()),
    ];
    let response = respond(&layer(&seen), get_request(), Script::new(steps), None).await;
    assert_eq!(response.body().size_hint().upper(), None);
    let read = read_body(response.into_body()).await;
    assert_eq!(
        (read.bytes().len(), read.trailers),
        (5000, Some(trailers()))
    );

    let body = Script::frames(1, 5000).with_length(5000);
    let response = respond(&layer(&seen), get_request(), body, Some(5000)).await;
    assert_eq!(response.body().size_hint().exact(), Some(5000));
    assert_eq!((seen.refused(), seen.cut()), (vec![], vec![]));
}

#[tokio::test]
async fn a_response_that_reports_its_end_may_declare_any_length() {
    let seen = Journal::default();
    let body = Script {
        reports_end: true,
        ..Script::default()
    };
    let response = respond(&layer(&seen), get_request(), body, Some(1 << 40)).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(seen.refused(), []);
}

#[tokio::test]
async fn a_response_that_has_no_body_by_its_head_may_declare_any_length() {
    let seen = Journal::default();
    let head_request = || Request::head("/").body(Empty::new()).unwrap();
    for body in [Script::default(), Script::default().with_length(8192)] {
        let response = respond(&layer(&seen), head_request(), body.clone(), Some(1 << 40)).await;
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
            let response = layer(&seen)
                .layer(handler)
                .oneshot(get_request())
                .await
                .unwrap();
            assert_eq!(response.status(), status);
        }
    }
    assert_eq!(seen.refused(), []);
    // If bytes follow nevertheless, they are counted.
    let response = respond(&layer(&seen), head_request(), Script::frames(2, 4096), None).await;
    assert!(read_body(response.into_body()).await.error.is_some());
    assert_eq!(seen.cut().len(), 1);
}

#[tokio::test]
async fn shadow_mode_records_violations_and_cuts_nothing() {
    let seen = Journal::default();
    let layer = layer(&seen).mode(Mode::Shadow);
    for body in [
        Script::frames(4, 4096),
        Script::frames(4, 4096).with_length(16_384),
    ] {
        let response = respond(&layer, get_request(), body, None).await;
        let read = read_body(response.into_body()).await;
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
async fn without_a_limit_responses_of_any_length_pass() {
    let layer = BodyLimitLayer::new(1);
    let response = respond(
        &layer,
        get_request(),
        Script::frames(100, 4096).with_length(409_600),
        None,
    )
    .await;
    assert_eq!(response.body().size_hint().exact(), Some(409_600));
    assert_eq!(read_body(response.into_body()).await.bytes().len(), 409_600);
}
