//! The response future.

use crate::{
    ResponseBody,
    response::Writing,
    watch::{Known, Plain, Watch},
};
use bytes::Bytes;
use http::Response;
use http_body::Body;
use palisade_core::{Answering, BoxError, GuardBody};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

pin_project! {
    /// Response future of [`SlowBody`](crate::SlowBody).
    ///
    /// When the request body is too slow, in whatever task that is read, it drops the handler and
    /// answers in its place. To drop it is to drop the handler, and leaves nothing behind.
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
        Plain { #[pin] inner: F, plain: Option<Plain> },
        Watched { #[pin] inner: F, answering: Answering<Watch> },
        Answered,
    }
}

// === ResponseFuture ===

impl<F> ResponseFuture<F> {
    /// For a request that has neither a body nor a pace of its own.
    pub(crate) fn plain(inner: F, plain: Plain) -> Self {
        Self { state: State::Plain { inner, plain: Some(plain) } }
    }

    pub(crate) fn watched(inner: F, watch: Arc<Watch>) -> Self {
        Self { state: State::Watched { inner, answering: Answering::new(watch) } }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<GuardBody<ResponseBody<B>>>, E>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.as_mut().project().state.project() {
            StateProj::Plain { inner, plain } => match inner.poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(response)) => {
                    let writing = plain.take().map(|plain| Writing::new(Known::Plain(plain)));
                    Poll::Ready(Ok(
                        response.map(|body| GuardBody::passing(ResponseBody::new(body, writing)))
                    ))
                }
            },
            _ => self.poll_watched(cx),
        }
    }
}

impl<F> ResponseFuture<F> {
    /// The same for a request that is watched.
    #[inline(never)]
    fn poll_watched<B, E>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<GuardBody<ResponseBody<B>>>, E>>
    where
        F: Future<Output = Result<Response<B>, E>>,
        B: Body,
    {
        let mut state = self.project().state;
        let StateProj::Watched { inner, answering } = state.as_mut().project() else {
            panic!("polled after completion");
        };
        let polled = inner.poll(cx);
        let watch = answering.watch();
        let Some(rejection) = watch.answerer.handler_polled(polled.is_ready(), cx.waker()) else {
            let response = ready!(polled)?;
            let writing = Some(Writing::new(Known::Watched(watch.clone())));
            return Poll::Ready(Ok(
                response.map(|body| GuardBody::passing(ResponseBody::new(body, writing)))
            ));
        };
        let shared = watch.shared.clone();
        // Whatever the handler holds it holds no longer than this.
        state.set(State::Answered);
        Poll::Ready(Ok(shared.settings.answer(rejection)))
    }
}
