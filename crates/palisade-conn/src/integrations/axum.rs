//! The integration with `axum::serve`.

use crate::{
    accept::listener::{GuardedListener, Listener},
    io::{guarded::GuardedIo, transport::Transport},
    track::{future::TrackingFuture, service::RequestTracking},
};
use axum::{
    Router,
    body::{Body, HttpBody},
    routing::MethodRouter,
    serve::{IncomingStream, Listener as AxumListener},
};
use bytes::Bytes;
use http::{Request, Response};
use palisade_core::BoxError;
use pin_project_lite::pin_project;
use std::{
    any::Any,
    convert::Infallible,
    future::{Ready, ready},
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_service::Service;

/// Creates a service for each guarded connection. See [`connected`].
#[derive(Clone, Debug)]
pub struct Connected<S> {
    app: S,
}

/// The service `S` on one connection. See [`connected`].
#[derive(Clone, Debug)]
pub struct ConnectedService<S> {
    tracking: RequestTracking<S>,
}

pin_project! {
    /// Response future of [`ConnectedService`].
    #[derive(Debug)]
    pub struct ConnectedFuture<F> {
        #[pin]
        inner: TrackingFuture<F>,
    }
}

/// Serves `app` on guarded connections: a `Router`, or any infallible service, such as a router
/// with layers around it.
///
/// Each request gets axum's `ConnectInfo<SocketAddr>` and the `Arc<ConnInfo>` of its connection,
/// and is [tracked](crate#request-tracking). A response with a body costs one box.
///
/// ```no_run
/// # use {axum::{Router, routing::get}, palisade_conn::{ConnGuard, connected}};
/// # async fn example() -> std::io::Result<()> {
/// let app = Router::new().route("/", get("hello"));
/// let listener = ConnGuard::default().bind("127.0.0.1:3000").await?;
/// axum::serve(listener, connected(app)).await
/// # }
/// ```
pub fn connected<S: 'static>(app: S) -> Connected<S> {
    Connected { app: settled(app) }
}

/// Lets a router without state build its routes once instead of for each request, as `axum::serve`
/// does for a router that is passed to it directly.
#[doc(hidden)]
pub fn settled<A: 'static>(mut app: A) -> A {
    let any: &mut dyn Any = &mut app;
    if let Some(router) = any.downcast_mut::<Router>() {
        *router = std::mem::take(router).with_state(());
    } else if let Some(routes) = any.downcast_mut::<MethodRouter>() {
        *routes = std::mem::take(routes).with_state(());
    }
    app
}

impl<L: Listener> AxumListener for GuardedListener<L> {
    type Io = GuardedIo<L::Io>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            // After an error, `accept` pauses by itself.
            if let Ok(accepted) = GuardedListener::accept(self).await {
                return accepted;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        GuardedListener::local_addr(self)
    }
}

impl<S, L, T> Service<IncomingStream<'_, L>> for Connected<S>
where
    S: Clone,
    L: AxumListener<Io = GuardedIo<T>>,
    T: Transport,
{
    type Response = ConnectedService<S>;
    type Error = Infallible;
    type Future = Ready<Result<ConnectedService<S>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, stream: IncomingStream<'_, L>) -> Self::Future {
        let conn = stream.io().conn().clone();
        let tracking = RequestTracking::for_connection(conn, self.app.clone()).connect_info();
        ready(Ok(ConnectedService { tracking }))
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for ConnectedService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ReqBody: HttpBody + Send + 'static,
    ResBody: HttpBody<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ConnectedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.tracking.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        ConnectedFuture {
            inner: self.tracking.call(request),
        }
    }
}

impl<F, B, E> Future for ConnectedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.project().inner.poll(cx))?;
        Poll::Ready(Ok(response.map(Body::new)))
    }
}
