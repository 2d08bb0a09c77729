//! The handler's future, with the guard's answer in its place where the body broke a rule.

use crate::{ResponseBody, layer::Shared, watch::Watch};
use bytes::Bytes;
use http::Response;
use http_body::Body;
use palisade_core::{Answering, BoxError, GuardBody, Rejection};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

pin_project! {
    /// Response future of [`BodyLimit`](crate::BodyLimit).
    ///
    /// As soon as the request body breaks a rule, in whatever task that is read, it drops the
    /// handler and answers in its place. Dropping it drops the handler and leaves nothing behind.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Unwatched { #[pin] inner: F },
        Watched { #[pin] inner: F, answering: Answering<Watch> },
        Refused { rejection: Option<Rejection>, shared: Arc<Shared> },
    }
}

// === ResponseFuture ===

impl<F> ResponseFuture<F> {
    pub(crate) fn new(inner: F, watch: Option<Arc<Watch>>) -> Self {
        let state = match watch {
            None => State::Unwatched { inner },
            Some(watch) => State::Watched { inner, answering: Answering::new(watch) },
        };
        Self { state }
    }

    pub(crate) fn refused(rejection: Rejection, shared: Arc<Shared>) -> Self {
        Self { state: State::Refused { rejection: Some(rejection), shared } }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Output = Result<Response<GuardBody<ResponseBody<B>>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        let (rejection, shared) = match state.as_mut().project() {
            StateProj::Unwatched { inner } => {
                let response = ready!(inner.poll(cx))?;
                return Poll::Ready(Ok(response.map(ResponseBody::unlimited)));
            }
            StateProj::Refused { rejection, shared } => {
                (rejection.take().expect("polled after completion"), shared.clone())
            }
            StateProj::Watched { inner, answering } => {
                let watch = answering.watch();
                let polled = inner.poll(cx);
                let answer = watch.answerer.handler_polled(polled.is_ready(), cx.waker());
                if let Some(rejection) = answer {
                    (rejection, watch.shared.clone())
                } else {
                    let response = ready!(polled)?;
                    if watch.shared.response.is_none() {
                        return Poll::Ready(Ok(response.map(ResponseBody::unlimited)));
                    }
                    match ResponseBody::limited(response, watch) {
                        Ok(response) => return Poll::Ready(Ok(response)),
                        Err(rejection) => (rejection, watch.shared.clone()),
                    }
                }
            }
        };
        // Whatever the handler holds it holds no longer than this.
        state.set(State::Refused { rejection: None, shared: shared.clone() });
        Poll::Ready(Ok(shared.settings.answer(rejection)))
    }
}
