//! The handler's future, with the guard's answer in its place where the body broke a rule.

use crate::{ResponseBody, layer::Shared, response::Counted, watch::Watch};
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
        Handler { #[pin] inner: F, answering: Option<Answering<Watch>> },
        Refused { refused: Option<(Rejection, Arc<Shared>)> },
    }
}

// === ResponseFuture ===

impl<F> ResponseFuture<F> {
    pub(crate) fn new(inner: F, watch: Option<Arc<Watch>>) -> Self {
        Self { state: State::Handler { inner, answering: watch.map(Answering::new) } }
    }

    pub(crate) fn refused(rejection: Rejection, shared: Arc<Shared>) -> Self {
        Self { state: State::Refused { refused: Some((rejection, shared)) } }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Output = Result<Response<GuardBody<ResponseBody<B>>>, E>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.as_mut().project().state.project() {
            StateProj::Handler { inner, answering: None } => match inner.poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(response)) => Poll::Ready(Ok(
                    response.map(|body| GuardBody::passing(ResponseBody::new(body, None)))
                )),
            },
            _ => self.poll_watched(cx),
        }
    }
}

impl<F> ResponseFuture<F> {
    /// The same for a request that is watched, or refused.
    #[inline(never)]
    fn poll_watched<B, E>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<GuardBody<ResponseBody<B>>>, E>>
    where
        F: Future<Output = Result<Response<B>, E>>,
        B: Body,
    {
        let refused = match self.as_mut().project().state.project() {
            StateProj::Handler { inner, answering } => {
                let polled = inner.poll(cx);
                let watch = answering.as_ref().map(Answering::watch);
                match watch.and_then(|watch| refused(watch, polled.is_ready(), cx)) {
                    Some(refused) => refused,
                    None => {
                        let response = ready!(polled)?;
                        let counted = watch.map(|watch| Counted::of(&response, watch));
                        match counted.unwrap_or(Ok(None)) {
                            Ok(counted) => {
                                return Poll::Ready(Ok(response.map(|body| {
                                    GuardBody::passing(ResponseBody::new(body, counted))
                                })));
                            }
                            Err(refused) => refused,
                        }
                    }
                }
            }
            StateProj::Refused { refused } => refused.take().expect("polled after completion"),
        };
        // Whatever the handler holds it holds no longer than this.
        self.project().state.set(State::Refused { refused: None });
        let (rejection, shared) = refused;
        Poll::Ready(Ok(shared.settings.answer(rejection)))
    }
}

/// What the request body is refused for, if the handler is not to answer.
fn refused(watch: &Watch, is_ready: bool, cx: &Context<'_>) -> Option<(Rejection, Arc<Shared>)> {
    let rejection = watch.answerer.handler_polled(is_ready, cx.waker())?;
    Some((rejection, watch.shared.clone()))
}
