//! The future of a tracked response.

use super::{body::TrackedBody, request::TrackedRequest};
use bytes::Bytes;
use http::Response;
use http_body::Body;
use palisade_core::{GuardBody, Rejection};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

pin_project! {
    /// Response future of [`RequestTracking`](crate::RequestTracking).
    ///
    /// Dropping it before the response is ready counts the request as cancelled.
    #[derive(Debug)]
    pub struct TrackingFuture<F> {
        #[pin]
        state: State<F>,
        request: Option<TrackedRequest>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Handler { #[pin] inner: F },
        // Boxed, because nearly every future would carry its bytes for nothing.
        Refused { rejection: Option<Box<Rejection>> },
    }
}

impl<F> TrackingFuture<F> {
    // Inlined, so that `inner` is not moved again.
    #[inline(always)]
    pub(super) fn tracked(inner: F, request: TrackedRequest) -> Self {
        Self {
            state: State::Handler { inner },
            request: Some(request),
        }
    }

    #[inline(always)]
    pub(super) fn untracked(inner: F) -> Self {
        Self {
            state: State::Handler { inner },
            request: None,
        }
    }

    #[cold]
    pub(super) fn refused(rejection: Rejection, request: TrackedRequest) -> Self {
        Self {
            state: State::Refused {
                rejection: Some(Box::new(rejection)),
            },
            request: Some(request),
        }
    }
}

impl<F, B, E> Future for TrackingFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<TrackedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(match this.state.project() {
            StateProj::Handler { inner } => match ready!(inner.poll(cx)) {
                Ok(response) => Ok(match this.request.take() {
                    Some(request) => request.respond(response),
                    None => response.map(|body| TrackedBody::untracked(GuardBody::passing(body))),
                }),
                Err(error) => {
                    if let Some(request) = this.request {
                        request.set_failed();
                    }
                    Err(error)
                }
            },
            StateProj::Refused { rejection } => {
                let rejection = rejection.take().expect("polled after completion");
                let request = this.request.take().expect("a refused request is tracked");
                Ok(request.refused(*rejection))
            }
        })
    }
}
