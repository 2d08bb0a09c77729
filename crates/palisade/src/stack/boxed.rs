//! The stack for layers and services that use axum's own body type.

use super::{RequestBody, StackLayer, Stacked};
use axum_core::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use palisade_core::BoxError;
use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_layer::Layer;
use tower_service::Service;

/// A [`StackLayer`] with `axum::body::Body` as request and response body, both outside and inside.
/// Created by [`StackLayer::boxed`].
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct BoxedLayer {
    stack: StackLayer,
}

/// A service `S` inside a [`BoxedLayer`].
#[derive(Clone, Debug)]
pub struct Boxed<S> {
    guarded: Stacked<BoxedInner<S>>,
}

/// Adapts a service that takes `axum::body::Body` to the request body of the stack.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct BoxedInner<S> {
    inner: S,
}

pin_project! {
    /// Response future of [`Boxed`].
    pub struct BoxedFuture<F> {
        #[pin]
        inner: F,
    }
}

// === StackLayer ===

impl StackLayer {
    /// Converts the stack for services and layers that name `axum::body::Body`: request and
    /// response bodies have that type both outside and inside of the stack.
    ///
    /// This allows `axum::middleware::from_fn`, `map_request` and other layers that take a
    /// `Request<axum::body::Body>` inside the stack in one `ServiceBuilder`, an optional stack
    /// (`tower::util::option_layer`), and request bodies that are not `Unpin`. It costs one
    /// allocation for each body: without one of these reasons, use the stack itself.
    ///
    /// ```
    /// use axum::{Router, extract::Request, middleware::{Next, from_fn}, routing::get};
    /// use palisade::Stack;
    /// use tower::ServiceBuilder;
    ///
    /// # fn main() -> Result<(), palisade::ConfigError> {
    /// let guards = ServiceBuilder::new()
    ///     .layer(Stack::edge().build()?.boxed())
    ///     .layer(from_fn(async |request: Request, next: Next| next.run(request).await));
    /// let app: Router = Router::new().route("/", get("hello")).layer(guards);
    /// # Ok(())
    /// # }
    /// ```
    pub fn boxed(self) -> BoxedLayer {
        BoxedLayer { stack: self }
    }
}

// === BoxedLayer ===

impl<S> Layer<S> for BoxedLayer {
    type Service = Boxed<S>;

    fn layer(&self, inner: S) -> Boxed<S> {
        Boxed {
            guarded: self.stack.layer(BoxedInner { inner }),
        }
    }
}

// === Boxed ===

impl<S, B, ResBody> Service<Request<B>> for Boxed<S>
where
    Stacked<BoxedInner<S>>: Service<Request<Body>, Response = Response<ResBody>>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    ResBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = <Stacked<BoxedInner<S>> as Service<Request<Body>>>::Error;
    type Future = BoxedFuture<<Stacked<BoxedInner<S>> as Service<Request<Body>>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.guarded.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        BoxedFuture {
            inner: self.guarded.call(request.map(Body::new)),
        }
    }
}

// === BoxedInner ===

impl<S: Service<Request<Body>>> Service<Request<RequestBody<Body>>> for BoxedInner<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody<Body>>) -> S::Future {
        self.inner.call(request.map(Body::new))
    }
}

// === BoxedFuture ===

impl<F, ResBody, E> Future for BoxedFuture<F>
where
    F: Future<Output = Result<Response<ResBody>, E>>,
    ResBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.project().inner.poll(cx))?;
        Poll::Ready(Ok(response.map(Body::new)))
    }
}

impl<F> fmt::Debug for BoxedFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxedFuture").finish_non_exhaustive()
    }
}
