//! The layer and the service around any policy.

use crate::{
    Facts, Keys, Later, Policy, RequestBody, ResponseBody, ResponseFuture, Unread, future::State,
    lease::Lease, nesting,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_core::BoxError;
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`Guarded`]. Clones share the policy.
#[derive(Debug)]
pub struct GuardLayer<P> {
    policy: Arc<P>,
}

/// The service `S` behind the policy `P`.
#[derive(Debug)]
pub struct Guarded<S, P> {
    inner: S,
    policy: Arc<P>,
    listens: bool,
}

impl<P> GuardLayer<P> {
    /// Guards by `policy`.
    pub fn new(policy: P) -> Self {
        Self {
            policy: Arc::new(policy),
        }
    }

    /// The policy.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// The policy, to be changed. Clones of this layer, and services that it made, keep the one
    /// they have.
    pub fn policy_mut(&mut self) -> &mut P
    where
        P: Clone,
    {
        Arc::make_mut(&mut self.policy)
    }
}

impl<P> Clone for GuardLayer<P> {
    fn clone(&self) -> Self {
        Self {
            policy: self.policy.clone(),
        }
    }
}

impl<S, P: Policy> Layer<S> for GuardLayer<P> {
    type Service = Guarded<S, P>;

    fn layer(&self, inner: S) -> Guarded<S, P> {
        Guarded {
            inner,
            policy: self.policy.clone(),
            listens: self.policy.listens(),
        }
    }
}

impl<S: Clone, P> Clone for Guarded<S, P> {
    #[inline]
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            policy: self.policy.clone(),
            listens: self.listens,
        }
    }
}

impl<S, P, ReqBody, ResBody> Service<Request<ReqBody>> for Guarded<S, P>
where
    S: Service<Request<RequestBody<ReqBody, P>>, Response = Response<ResBody>>,
    P: Policy<Later: Later<S>, Unread: Unread<ReqBody>>,
    ReqBody: Body<Data = Bytes, Error: Into<BoxError>>,
    ResBody: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Response = Response<ResponseBody<ResBody, P>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody, P>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let id = std::ptr::from_ref(&*self.policy).addr();
        if nesting::is_inside(id) {
            let inner = self.inner.call(unwatched(request));
            return ResponseFuture {
                state: State::Handler { inner, lease: None },
            };
        }
        let facts = Facts::of(&request, self.listens);
        let mut keys = Keys::default();
        let held = match self.policy.admit(&request, &facts, &mut keys) {
            Ok(held) => held,
            Err(refusal) => {
                return ResponseFuture::refused(refusal.turn_away::<P::Unread, _>(request));
            }
        };
        // From here on dropping the lease releases everything.
        let shares = facts.has_body || self.policy.needs_sharing(&held);
        let lease = Lease::new(self.policy.clone(), facts, held);
        if shares {
            return self.call_shared(request, lease, &mut keys);
        }
        let _inside = nesting::enter(id);
        // Here and nowhere else the request is moved: a move copies 200 bytes and more.
        ResponseFuture {
            state: State::Handler {
                inner: self.inner.call(unwatched(request)),
                lease: Some(lease),
            },
        }
    }
}

#[inline(always)]
fn unwatched<B, P: Policy>(request: Request<B>) -> Request<RequestBody<B, P>> {
    request.map(|body| RequestBody::new(body, None))
}

impl<S, P: Policy> Guarded<S, P> {
    /// Calls the handler of a request whose sides share something.
    #[inline(never)]
    fn call_shared<ReqBody>(
        &mut self,
        mut request: Request<ReqBody>,
        mut lease: Lease<P>,
        keys: &mut Keys,
    ) -> ResponseFuture<S, ReqBody, P>
    where
        S: Service<Request<RequestBody<ReqBody, P>>>,
        P: Policy<Later: Later<S>>,
        ReqBody: Body,
    {
        let reading = lease.share(&mut request, keys);
        let request = request.map(|body| RequestBody::new(body, reading));
        if lease.is_queued()
            && let Some(ready) = P::Later::take_ready(&mut self.inner)
        {
            return ResponseFuture::later(ready, request, lease);
        }
        let entered = lease.enter(None);
        let inner = self.inner.call(request);
        drop(entered);
        ResponseFuture {
            state: State::Handler {
                inner,
                lease: Some(lease),
            },
        }
    }
}
