//! The service of the rate limit alone, which leaves bodies as they are.

use crate::{RequestHead, policy::RateLimitPolicy};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_core::GuardBody;
use palisade_guard::{Facts, KeepsWhole, Keys, Refusal, Refused, enter, is_inside};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tower_service::Service;

/// Refuses what a client asks too fast. See the [crate docs](crate).
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    policy: Arc<RateLimitPolicy>,
}

pin_project! {
    /// Response future of [`RateLimit`]. Drop it at any time: what the request was charged stays
    /// charged.
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
        // The address identifies the policy while the service lives.
        Admitted { #[pin] inner: F, policy: usize },
        Refused { refused: Option<Refused> },
    }
}

// === RateLimit ===

impl<S> RateLimit<S> {
    pub(crate) fn new(inner: S, policy: Arc<RateLimitPolicy>) -> Self {
        Self { inner, policy }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RateLimit<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ReqBody: Body + Send + 'static,
    ResBody: Body<Data = Bytes>,
{
    type Response = Response<GuardBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let policy = std::ptr::from_ref(&*self.policy).addr();
        // Inside of itself it counts nothing: the request was counted further outside.
        if !is_inside(policy)
            && let Err(denied) = self
                .policy
                .check(&RequestHead::from(&request), &mut Keys::default())
            && let Err(refusal) = self.policy.refuse(denied, &Facts::of(&request, true))
        {
            return ResponseFuture::refused(refusal, request);
        }
        let inside = enter(policy);
        let inner = self.inner.call(request);
        drop(inside);
        ResponseFuture {
            state: State::Admitted { inner, policy },
        }
    }
}

// === ResponseFuture ===

impl<F> ResponseFuture<F> {
    #[cold]
    #[inline(never)]
    fn refused<B: Body + Send + 'static>(refusal: Refusal, request: Request<B>) -> Self {
        let refused = Some(refusal.turn_away::<KeepsWhole, B>(request));
        Self {
            state: State::Refused { refused },
        }
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
            StateProj::Admitted { inner, policy } => {
                let inside = enter(*policy);
                let polled = inner.poll(cx);
                drop(inside);
                match polled {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Ready(Ok(response)) => Poll::Ready(Ok(response.map(GuardBody::passing))),
                }
            }
            StateProj::Refused { refused } => Poll::Ready(Ok(answer(refused))),
        }
    }
}

#[cold]
#[inline(never)]
fn answer<B>(refused: &mut Option<Refused>) -> Response<GuardBody<B>> {
    let refused = refused.take().expect("polled after completion");
    refused.into_response().map(GuardBody::answer)
}
