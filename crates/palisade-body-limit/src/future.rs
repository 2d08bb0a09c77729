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
    task::{Context, Poll},
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

    /// Gives `rejection` in place of whatever the handler says. What the handler holds it holds no
    /// longer than this.
    #[cold]
    #[inline(never)]
    fn refuse<B>(
        self: Pin<&mut Self>,
        refused: (Rejection, Arc<Shared>),
    ) -> Response<GuardBody<B>> {
        self.project().state.set(State::Refused { refused: None });
        let (rejection, shared) = refused;
        shared.settings.answer(rejection)
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
            StateProj::Handler { inner, answering } => {
                let polled = inner.poll(cx);
                if let Some(refused) = answering
                    .as_ref()
                    .and_then(|answering| refused(answering.watch(), polled.is_ready(), cx))
                {
                    return Poll::Ready(Ok(self.refuse(refused)));
                }
                match polled {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Ready(Ok(response)) => {
                        let counted = answering
                            .as_ref()
                            .map(|answering| Counted::of(&response, answering.watch()));
                        match counted.unwrap_or(Ok(None)) {
                            Ok(counted) => Poll::Ready(Ok(response
                                .map(|body| GuardBody::passing(ResponseBody::new(body, counted))))),
                            Err(refused) => Poll::Ready(Ok(self.refuse(refused))),
                        }
                    }
                }
            }
            StateProj::Refused { refused } => {
                let refused = refused.take().expect("polled after completion");
                Poll::Ready(Ok(self.refuse(refused)))
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
