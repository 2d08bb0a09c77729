//! The service of the rate limit. It leaves request and response bodies unchanged.

use crate::{
    RequestHead,
    policy::{Charged, NotAdmitted, RateLimitPolicy},
    settled::Settled,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_core::{GuardBody, ResponseFormat};
use palisade_guard::{Facts, KeepUnread, Keys, Refusal, Refused, enter, is_inside};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tower_service::Service;

/// Refuses requests of clients that exceed their rate. See the [crate docs](crate).
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    policy: Arc<RateLimitPolicy>,
}

pin_project! {
    /// Response future of [`RateLimit`]. It can be dropped at any time; the request stays charged
    /// as it is.
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
        // `policy` is the address of the policy, which identifies it while the service is alive.
        Admitted { #[pin] inner: F, policy: usize },
        // The response matters, or other nodes are asked.
        Charged { #[pin] inner: F, charged: Option<Box<Awaited>> },
        Refused { refused: Option<Refused> },
    }
}

/// A request whose response matters or that other nodes are asked about, and its policy.
#[derive(Debug)]
struct Awaited {
    policy: Arc<RateLimitPolicy>,
    charged: Charged,
    /// For the refusal of other nodes.
    facts: Option<Box<Facts>>,
}

// === RateLimit ===

impl<S> RateLimit<S> {
    pub(crate) fn new(inner: S, policy: Arc<RateLimitPolicy>) -> Self {
        Self { inner, policy }
    }

    /// Returns a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
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
        let mut charged = None;
        // A service nested in another one of the same policy does not count a request twice.
        if !is_inside(policy) {
            if self.policy.options.is_some() {
                match check_with_options(&self.policy, &request) {
                    Ok(awaited) => charged = awaited,
                    Err(refusal) => return ResponseFuture::refused(*refusal, request),
                }
            } else {
                match self
                    .policy
                    .check(&RequestHead::from(&request), &mut Keys::default())
                {
                    Ok(()) => {}
                    Err(NotAdmitted::Refused(reason)) => {
                        let facts = Facts::from_request(&request, true);
                        if let Err(refusal) = self.policy.refuse(reason, &facts) {
                            return ResponseFuture::refused(refusal, request);
                        }
                    }
                    Err(NotAdmitted::Deferred { cost }) => {
                        charged = deferred(&self.policy, cost, &request);
                    }
                }
            }
        }
        let inside = enter(policy);
        let inner = self.inner.call(request);
        drop(inside);
        let state = match charged {
            None => State::Admitted { inner, policy },
            charged => State::Charged { inner, charged },
        };
        ResponseFuture { state }
    }
}

/// Charges a request of a layer with options. Returns the charge if the response matters.
#[inline(never)]
fn check_with_options<B: Body>(
    policy: &Arc<RateLimitPolicy>,
    request: &Request<B>,
) -> Result<Option<Box<Awaited>>, Box<Refusal>> {
    let Some(options) = policy.options.as_deref() else {
        return Ok(None);
    };
    let mut keys = Keys::default();
    let settled = policy.check_with(options, request, None, &mut keys)?;
    Ok(settled.and_then(|settled| awaited(policy, request, settled, &mut keys)))
}

/// Returns what is left to be decided about a request of a layer without options.
#[cold]
#[inline(never)]
fn deferred<B: Body>(
    policy: &Arc<RateLimitPolicy>,
    cost: u32,
    request: &Request<B>,
) -> Option<Box<Awaited>> {
    let mut keys = Keys::default();
    let settled = policy.deferred(cost, request, &mut keys)?;
    awaited(policy, request, settled, &mut keys)
}

/// Returns what a request was charged.
#[inline]
fn awaited<B: Body>(
    policy: &Arc<RateLimitPolicy>,
    request: &Request<B>,
    settled: Settled,
    keys: &mut Keys,
) -> Option<Box<Awaited>> {
    let is_grpc = ResponseFormat::detect(request).is_grpc();
    let charged = policy.charged(&request.into(), settled, is_grpc, keys)?;
    let facts = || Facts::from_request(request, policy.settings.recorder.is_enabled());
    Some(Box::new(Awaited {
        policy: Arc::clone(policy),
        facts: charged.deferred.is_some().then(|| Box::new(facts())),
        charged,
    }))
}

// === ResponseFuture ===

impl<F> ResponseFuture<F> {
    #[cold]
    #[inline(never)]
    fn refused<B: Body + Send + 'static>(refusal: Refusal, request: Request<B>) -> Self {
        let refused = Some(refusal.into_refused::<KeepUnread, B>(request));
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
        let mut state = self.project().state;
        match state.as_mut().project() {
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
            StateProj::Charged { inner, charged } => {
                let is_deferred = charged.as_ref().is_some_and(|it| it.facts.is_some());
                if !is_deferred {
                    return poll_charged(inner, charged, cx);
                }
                let Some(refused) = ready!(poll_deferred(charged, cx)) else {
                    return poll_charged(inner, charged, cx);
                };
                // Drops the handler.
                state.set(State::Refused { refused: None });
                Poll::Ready(Ok(rejection_response(&mut Some(refused))))
            }
            StateProj::Refused { refused } => Poll::Ready(Ok(rejection_response(refused))),
        }
    }
}

/// Waits for the decision of other nodes. Returns their refusal.
#[inline(never)]
fn poll_deferred(charged: &Option<Box<Awaited>>, cx: &mut Context<'_>) -> Poll<Option<Refused>> {
    let Some(awaited) = charged else {
        return Poll::Ready(None);
    };
    let Awaited {
        policy,
        charged,
        facts,
    } = &**awaited;
    let (Some(deferred), Some(facts)) = (&charged.deferred, facts) else {
        return Poll::Ready(None);
    };
    let decision = ready!(policy.poll_deferred(charged, deferred, facts, cx));
    let refusal = decision.err().and_then(|()| charged.take_refusal());
    // The body is dropped unread with the handler.
    let refused = refusal.map(|refusal| refusal.refused(facts.is_head, !facts.has_body));
    Poll::Ready(refused)
}

#[inline(never)]
fn poll_charged<F, B, E>(
    inner: Pin<&mut F>,
    charged: &mut Option<Box<Awaited>>,
    cx: &mut Context<'_>,
) -> Poll<Result<Response<GuardBody<B>>, E>>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
{
    let awaited = charged.as_ref().expect("polled after completion");
    let inside = enter(Arc::as_ptr(&awaited.policy).addr());
    let polled = inner.poll(cx);
    drop(inside);
    let result = ready!(polled);
    // An error leaves the request charged as it is.
    let awaited = charged.take().filter(|_| result.is_ok());
    let mut response = result?;
    if let Some(awaited) = awaited {
        awaited.policy.answered(&awaited.charged, &mut response);
    }
    Poll::Ready(Ok(response.map(GuardBody::passing)))
}

#[cold]
#[inline(never)]
fn rejection_response<B>(refused: &mut Option<Refused>) -> Response<GuardBody<B>> {
    let refused = refused.take().expect("polled after completion");
    refused.into_response().map(GuardBody::answer)
}
