//! The response future.

use crate::{
    Handler, Policy, Refusal, Refused, RequestBody, ResponseBody, handler_poll::BodyWait,
    lease::Lease,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_core::BoxError;
use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_service::Service;

pin_project! {
    /// Response future of [`Guarded`](crate::Guarded). Dropping it drops the handler and releases
    /// the request.
    pub struct ResponseFuture<S, B, P>
    where
        S: Service<Request<RequestBody<B, P>>>,
        P: Policy,
    {
        #[pin]
        pub(crate) state: State<S, B, P>,
    }
}

/// The output of a response future.
type Outcome<B, P, E> = Result<Response<ResponseBody<B, P>>, E>;

pin_project! {
    #[project = StateProj]
    pub(crate) enum State<S, B, P>
    where
        S: Service<Request<RequestBody<B, P>>>,
        P: Policy,
    {
        // `lease` is `None` if an outer service with the same policy guards the request.
        Handler { #[pin] inner: S::Future, lease: Option<Lease<P>> },
        Queued { queued: Option<Box<(S, Request<RequestBody<B, P>>)>>, lease: Option<Lease<P>> },
        Refused { refused: Option<Refused> },
    }
}

impl<S, B, P> ResponseFuture<S, B, P>
where
    S: Service<Request<RequestBody<B, P>>>,
    P: Policy,
{
    pub(crate) fn queued(ready: S, request: Request<RequestBody<B, P>>, lease: Lease<P>) -> Self {
        let queued = Some(Box::new((ready, request)));
        Self {
            state: State::Queued {
                queued,
                lease: Some(lease),
            },
        }
    }

    pub(crate) fn refused(refused: Refused) -> Self {
        Self {
            state: State::Refused {
                refused: Some(refused),
            },
        }
    }
}

impl<S, B, P, ResBody> Future for ResponseFuture<S, B, P>
where
    S: Service<Request<RequestBody<B, P>>, Response = Response<ResBody>>,
    P: Policy,
    ResBody: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Output = Outcome<ResBody, P, S::Error>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let refusal = match self.as_mut().project().state.project() {
            StateProj::Handler {
                inner,
                lease: slot @ Some(_),
            } if slot
                .as_ref()
                .is_some_and(|lease| lease.exchange().is_none()) =>
            {
                let entered = slot.as_ref().map(|lease| lease.enter_handler(None));
                let polled = inner.poll(cx);
                drop(entered);
                match polled {
                    Poll::Ready(Ok(mut response)) => match check_response_head(slot, &mut response)
                    {
                        Ok(true) => return Poll::Ready(Ok(watch_body(response, slot))),
                        Ok(false) => return Poll::Ready(Ok(release(response, slot))),
                        Err(refusal) => refusal,
                    },
                    Poll::Ready(Err(error)) => {
                        *slot = None;
                        return Poll::Ready(Err(error));
                    }
                    Poll::Pending => match unshared_pending(slot, cx) {
                        None => return Poll::Pending,
                        Some(refusal) => refusal,
                    },
                }
            }
            _ => return self.poll_shared(cx),
        };
        Poll::Ready(Ok(self.refuse(*refusal)))
    }
}

/// Calls the policy with the response head. Returns whether it has to poll the response body.
#[inline(always)]
fn check_response_head<P: Policy, B: Body>(
    lease: &mut Option<Lease<P>>,
    response: &mut Response<B>,
) -> Result<bool, Box<Refusal>> {
    let Some(lease) = lease else { return Ok(false) };
    let has_body = !response.body().is_end_stream();
    let started = lease.started();
    let (policy, held, view) = lease.parts();
    if !has_body && view.shared.is_none() {
        return Ok(false);
    }
    Ok(policy.response_head(held, view, response, started)? && has_body)
}

/// Moves the lease into the response body.
#[inline]
fn watch_body<P: Policy, B>(
    response: Response<B>,
    lease: &mut Option<Lease<P>>,
) -> Response<ResponseBody<B, P>> {
    response.map(|body| ResponseBody::handler(body, lease.take()))
}

/// Releases the request and leaves the response body unguarded.
#[inline(always)]
fn release<P: Policy, B>(
    response: Response<B>,
    lease: &mut Option<Lease<P>>,
) -> Response<ResponseBody<B, P>> {
    *lease = None;
    response.map(|body| ResponseBody::handler(body, None))
}

/// Called when the handler of a request without an exchange is pending.
#[inline(never)]
fn unshared_pending<P: Policy>(
    lease: &mut Option<Lease<P>>,
    cx: &mut Context<'_>,
) -> Option<Box<Refusal>> {
    let handler = Handler::Pending {
        awaits_client: false,
    };
    lease
        .as_mut()?
        .after_handler(handler, BodyWait::default(), true, cx)
}

impl<S, B, P> ResponseFuture<S, B, P>
where
    S: Service<Request<RequestBody<B, P>>>,
    P: Policy,
{
    /// Polls a request that is shared, queued, refused, or guarded by an outer service with the
    /// same policy.
    #[inline(never)]
    fn poll_shared<ResBody>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome<ResBody, P, S::Error>>
    where
        S: Service<Request<RequestBody<B, P>>, Response = Response<ResBody>>,
        ResBody: Body<Data = Bytes>,
    {
        let mut state = self.as_mut().project().state;
        let refusal = loop {
            match state.as_mut().project() {
                StateProj::Handler { inner, lease: slot } => {
                    let Some(lease) = slot else {
                        let response = ready!(inner.poll(cx))?;
                        return Poll::Ready(Ok(release(response, slot)));
                    };
                    if lease.before_handler(cx).is_pending() {
                        match lease.handler_held_back(cx) {
                            None => return Poll::Pending,
                            Some(refusal) => break refusal,
                        }
                    }
                    let entered = lease.enter_handler(Some(cx.waker()));
                    let polled = inner.poll(cx);
                    drop(entered);
                    let Poll::Ready(result) = polled else {
                        match lease.handler_pending(cx) {
                            None => return Poll::Pending,
                            Some(refusal) => break refusal,
                        }
                    };
                    if let Some(refusal) = lease.handler_ready(cx) {
                        break refusal;
                    }
                    let mut response = match result {
                        Ok(response) => response,
                        Err(error) => {
                            *slot = None;
                            return Poll::Ready(Err(error));
                        }
                    };
                    match check_response_head(slot, &mut response) {
                        Ok(true) => return Poll::Ready(Ok(watch_body(response, slot))),
                        Ok(false) => return Poll::Ready(Ok(release(response, slot))),
                        Err(refusal) => break refusal,
                    }
                }
                StateProj::Queued {
                    queued,
                    lease: slot,
                } => {
                    let lease = slot.as_mut().expect("polled after completion");
                    match ready!(lease.poll_admission(cx)) {
                        Err(refusal) => break refusal,
                        Ok(()) => {
                            let (mut ready, request) =
                                *queued.take().expect("the handler is called only once");
                            let entered = lease.enter_handler(None);
                            let inner = ready.call(request);
                            drop(entered);
                            let lease = slot.take();
                            state.set(State::Handler { inner, lease });
                        }
                    }
                }
                StateProj::Refused { refused } => {
                    let refused = refused.take().expect("polled after completion");
                    return Poll::Ready(Ok(refused.into_response().map(ResponseBody::refusal)));
                }
            }
        };
        Poll::Ready(Ok(self.refuse(*refusal)))
    }

    /// Returns the refusal as the response. First drops the handler.
    #[cold]
    #[inline(never)]
    fn refuse<ResBody>(
        self: Pin<&mut Self>,
        refusal: Refusal,
    ) -> Response<ResponseBody<ResBody, P>> {
        let mut state = self.project().state;
        let (exchange, is_head) = match state.as_mut().project() {
            StateProj::Handler {
                lease: Some(lease), ..
            }
            | StateProj::Queued {
                lease: Some(lease), ..
            } => (lease.exchange().cloned(), lease.facts().is_head),
            _ => (None, false),
        };
        state.set(State::Refused { refused: None });
        let is_read = exchange.is_some_and(|exchange| exchange.has_body_ended());
        refusal
            .refused(is_head, is_read)
            .into_response()
            .map(ResponseBody::refusal)
    }
}

impl<S, B, P> fmt::Debug for ResponseFuture<S, B, P>
where
    S: Service<Request<RequestBody<B, P>>>,
    P: Policy,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
