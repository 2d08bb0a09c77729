//! The response future.

use crate::layer::Shared;
use bytes::Bytes;
use http::Response;
use http_body::Body;
use palisade_core::{GuardBody, Rejection};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

pin_project! {
    /// Response future of [`RateLimit`](crate::RateLimit). Drop it at any time: what the request
    /// was charged stays charged.
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
        Admitted { #[pin] inner: F },
        Refused { refused: Option<(Rejection, Arc<Shared>)> },
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) fn admitted(inner: F) -> Self {
        Self { state: State::Admitted { inner } }
    }

    pub(crate) fn refused(rejection: Rejection, shared: Arc<Shared>) -> Self {
        Self { state: State::Refused { refused: Some((rejection, shared)) } }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<GuardBody<B>>, E>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Admitted { inner } => match inner.poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(response)) => Poll::Ready(Ok(response.map(GuardBody::passing))),
            },
            StateProj::Refused { refused } => Poll::Ready(Ok(answer(refused))),
        }
    }
}

#[cold]
#[inline(never)]
fn answer<B>(refused: &mut Option<(Rejection, Arc<Shared>)>) -> Response<GuardBody<B>> {
    let (rejection, shared) = refused.take().expect("polled after completion");
    shared.settings.answer(rejection)
}
