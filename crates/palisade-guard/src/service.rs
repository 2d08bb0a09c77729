//! The layer and the service around any policy.

use crate::{
    Facts, Keys, Policy, QueuedService, RequestBody, ResponseBody, ResponseFuture, Unread,
    future::State, lease::Lease, nesting,
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

/// Applies [`Guarded`]. All clones share the policy.
#[derive(Debug)]
pub struct GuardLayer<P> {
    policy: Arc<P>,
}

/// The service `S`, guarded by the policy `P`.
#[derive(Debug)]
pub struct Guarded<S, P> {
    inner: S,
    policy: Arc<P>,
    has_recorder: bool,
}

impl<P> GuardLayer<P> {
    /// Creates a layer that guards services by `policy`.
    pub fn new(policy: P) -> Self {
        Self {
            policy: Arc::new(policy),
        }
    }

    /// Returns the policy.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// Returns the policy for modification. Clones of this layer, and services that it has created,
    /// keep their policy unchanged.
    ///
    /// ```
    /// use palisade_guard::GuardLayer;
    /// // A number stands for a policy here.
    /// let mut layer = GuardLayer::new(10);
    /// let clone = layer.clone();
    /// *layer.policy_mut() = 20;
    /// assert_eq!((layer.policy(), clone.policy()), (&20, &10));
    /// ```
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
            has_recorder: self.policy.has_recorder(),
        }
    }
}

impl<S, P> Guarded<S, P> {
    /// Returns a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner service.
    ///
    /// ```
    /// use palisade_guard::GuardLayer;
    /// use tower::Layer;
    /// // The policy `()` has no rules.
    /// let mut guarded = GuardLayer::new(()).layer("service");
    /// assert_eq!(guarded.get_ref(), &"service");
    /// *guarded.get_mut() = "another one";
    /// assert_eq!(guarded.into_inner(), "another one");
    /// ```
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Clone, P> Clone for Guarded<S, P> {
    #[inline]
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            policy: self.policy.clone(),
            has_recorder: self.has_recorder,
        }
    }
}

impl<S, P, ReqBody, ResBody> Service<Request<ReqBody>> for Guarded<S, P>
where
    S: Service<Request<RequestBody<ReqBody, P>>, Response = Response<ResBody>>,
    P: Policy<QueuedService: QueuedService<S>, Unread: Unread<ReqBody>>,
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
            let inner = self.inner.call(unguarded(request));
            return ResponseFuture {
                state: State::Handler { inner, lease: None },
            };
        }
        let facts = Facts::from_request(&request, self.has_recorder);
        let mut keys = Keys::default();
        let held = match self.policy.admit(&request, &facts, &mut keys) {
            Ok(held) => held,
            Err(refusal) => {
                return ResponseFuture::refused(refusal.into_refused::<P::Unread, _>(request));
            }
        };
        // From here on, dropping the lease releases the request.
        let is_shared = facts.has_body || self.policy.needs_sharing(&held, &keys);
        let lease = Lease::new(self.policy.clone(), facts, held);
        if is_shared {
            return self.call_shared(request, lease, &mut keys);
        }
        let _entered = nesting::enter(id);
        // Move the request only once: a move copies 200 bytes or more.
        ResponseFuture {
            state: State::Handler {
                inner: self.inner.call(unguarded(request)),
                lease: Some(lease),
            },
        }
    }
}

/// Wraps the body of a request without an exchange.
#[inline(always)]
fn unguarded<B, P: Policy>(request: Request<B>) -> Request<RequestBody<B, P>> {
    request.map(|body| RequestBody::new(body, None))
}

impl<S, P: Policy> Guarded<S, P> {
    /// Calls the handler of a shared request, or queues the request.
    #[inline(never)]
    fn call_shared<ReqBody>(
        &mut self,
        mut request: Request<ReqBody>,
        mut lease: Lease<P>,
        keys: &mut Keys,
    ) -> ResponseFuture<S, ReqBody, P>
    where
        S: Service<Request<RequestBody<ReqBody, P>>>,
        P: Policy<QueuedService: QueuedService<S>>,
        ReqBody: Body,
    {
        let state = lease.share(&mut request, keys);
        let request = request.map(|body| RequestBody::new(body, state));
        if lease.is_queued()
            && let Some(ready) = P::QueuedService::take_ready(&mut self.inner)
        {
            return ResponseFuture::queued(ready, request, lease);
        }
        let entered = lease.enter_handler(None);
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
