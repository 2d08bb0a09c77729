//! The response future.

use crate::{
    ResponseBody,
    layer::Shared,
    response::{Writing, is_buffered},
    watch::Watch,
};
use bytes::Bytes;
use http::Response;
use http_body::Body;
use palisade_core::{AnswerForm, Answering, BoxError, ConnInfo, GuardBody, Rejection};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
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
        Handler { #[pin] inner: F, request: Known },
        Answered,
    }
}

/// What is known of the request.
#[derive(Debug)]
pub(crate) enum Known {
    /// It has neither a body nor a pace of its own.
    Plain {
        shared: Arc<Shared>,
        form: AnswerForm,
        conn: Option<Arc<ConnInfo>>,
    },
    Watched(Answering<Watch>),
}

// === ResponseFuture ===

impl<F> ResponseFuture<F> {
    pub(crate) fn new(inner: F, request: Known) -> Self {
        Self { state: State::Handler { inner, request } }
    }

    /// Gives `rejection` in place of whatever the handler says. What the handler holds it holds no
    /// longer than this.
    #[cold]
    #[inline(never)]
    fn refuse<B>(
        self: Pin<&mut Self>,
        refused: (Rejection, Arc<Shared>),
    ) -> Response<GuardBody<B>> {
        self.project().state.set(State::Answered);
        let (rejection, shared) = refused;
        shared.settings.answer(rejection)
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
        let StateProj::Handler { inner, request } = self.as_mut().project().state.project() else {
            panic!("polled after completion");
        };
        let polled = inner.poll(cx);
        if let Known::Watched(answering) = request
            && let Some(refused) = refused(answering.watch(), polled.is_ready(), cx)
        {
            return Poll::Ready(Ok(self.refuse(refused)));
        }
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(response)) => {
                let writing =
                    if is_buffered(response.body()) { None } else { Writing::of(request) };
                Poll::Ready(Ok(
                    response.map(|body| GuardBody::passing(ResponseBody::new(body, writing)))
                ))
            }
        }
    }
}

/// What the request body is refused for, if the handler is not to answer.
#[inline(never)]
fn refused(watch: &Watch, is_ready: bool, cx: &Context<'_>) -> Option<(Rejection, Arc<Shared>)> {
    let rejection = watch.answerer.handler_polled(is_ready, cx.waker())?;
    Some((rejection, watch.shared.clone()))
}
