//! The service that tracks requests.

use super::{
    body::TrackedBody,
    future::TrackingFuture,
    identify::{identify, restore},
    request::TrackedRequest,
};
use crate::{
    connection::{ConnHandle, state::ConnState},
    guard::shared::Shared,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_core::{ConnInfo, Mode};
use palisade_guard::linger;
use std::{
    sync::{Weak, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};
use tower_service::Service;

/// Reports each request to its connection, when its head arrives and when its response ends.
///
/// The connection is the `Arc<ConnInfo>` in the request's extensions, or the one that the service
/// was [made for](Self::for_connection). Requests without one pass unchanged.
///
/// It belongs outside of everything else, so that the guard knows of the requests that other
/// layers refuse. The last request of an HTTP/1 connection that is closing gets
/// `Connection: close`.
#[derive(Clone, Debug)]
pub struct RequestTracking<S> {
    inner: S,
    tracker: Tracker,
    guard: Weak<Shared>,
    /// Whether nothing is left to find out about where the layer stands.
    is_placed: bool,
}

/// How requests are tracked.
#[derive(Clone, Debug)]
struct Tracker {
    /// The connection of every request, where the service is made for one connection.
    conn: Option<ConnHandle>,
    /// Whether each request gets axum's `ConnectInfo`.
    adds_connect_info: bool,
    /// Whether the connection is told which responses wait for a window.
    reports_windows: bool,
}

// === RequestTracking ===

impl<S> RequestTracking<S> {
    /// Wraps a service that finds the connection in each request's extensions.
    pub(super) fn by_extension(inner: S, guard: Weak<Shared>) -> Self {
        Self {
            inner,
            tracker: Tracker::new(None),
            guard,
            is_placed: false,
        }
    }

    /// Wraps a service that is made for one connection, for a server of your own. The connection
    /// counts as tracked from now on, and `inner` finds the `Arc<ConnInfo>` in the extensions of
    /// each request.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use http_body_util::BodyExt;
    /// use palisade_conn::{ConnGuard, ConnInfo, RequestTracking};
    ///
    /// let guard = ConnGuard::default();
    /// let (_client, socket) = pair().await?;
    /// let io = guard.admit(socket, Some("192.0.2.1:4711".parse()?), None)?;
    /// let handler = service_fn(async |request: Request<String>| {
    ///     let conn = ConnInfo::from_extensions(request.extensions()).expect("it was inserted");
    ///     Ok::<_, Infallible>(Response::new(conn.peer().to_string()))
    /// });
    /// let mut service = RequestTracking::for_connection(io.conn().clone(), handler);
    /// let response = service.call(Request::new(String::new())).await?;
    /// assert_eq!((guard.snapshot().in_flight, guard.snapshot().untracked), (1, 0));
    /// let body = response.into_body().collect().await?.to_bytes();
    /// assert_eq!(body, "192.0.2.1:4711");
    /// assert_eq!(guard.snapshot().in_flight, 0); // The response was read to its end.
    /// # Ok(())
    /// # }
    /// ```
    pub fn for_connection(conn: ConnHandle, inner: S) -> Self {
        conn.state().set_tracked_by_own_service();
        Self {
            inner,
            tracker: Tracker::new(Some(conn)),
            guard: Weak::new(),
            is_placed: true,
        }
    }

    /// Adds axum's `ConnectInfo<SocketAddr>` to each request, if the service was made
    /// [for a connection](Self::for_connection). Defaults to not.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use axum::extract::ConnectInfo;
    /// use palisade_conn::{ConnGuard, RequestTracking};
    /// use std::net::SocketAddr;
    ///
    /// let guard = ConnGuard::default();
    /// let (_client, socket) = pair().await?;
    /// let io = guard.admit(socket, Some("192.0.2.1:4711".parse()?), None)?;
    /// let handler = service_fn(async |request: Request<String>| {
    ///     let info = request.extensions().get::<ConnectInfo<SocketAddr>>();
    ///     assert_eq!(info.map(|info| info.0.to_string()).as_deref(), Some("192.0.2.1:4711"));
    ///     Ok::<_, Infallible>(Response::new(String::new()))
    /// });
    /// let conn = io.conn().clone();
    /// let mut service = RequestTracking::for_connection(conn, handler).connect_info();
    /// service.call(Request::new(String::new())).await?;
    /// # assert_eq!(io.conn().requests(), 1);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "axum")]
    pub fn connect_info(mut self) -> Self {
        self.tracker.adds_connect_info = true;
        self
    }

    /// Declares that the server itself cuts HTTP/2 streams that wait too long for a window: the
    /// connection is not closed for them. Defaults to closing it.
    pub fn cuts_streams(mut self) -> Self {
        self.tracker.reports_windows = false;
        self
    }

    /// Does what [`Service::call`] does, by a shared reference, as hyper calls its services.
    /// `call` passes a request on to the inner service.
    ///
    /// Only for a service that was made [for a connection](Self::for_connection): one that a layer
    /// made does not find out here whether it stands where it must.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, RequestTracking};
    ///
    /// let guard = ConnGuard::builder().max_in_flight(1).build()?;
    /// let (_client, socket) = pair().await?;
    /// let io = guard.admit(socket, Some("192.0.2.1:4711".parse()?), None)?;
    /// // A handler that is no service.
    /// let handler = async |_: Request<String>| {
    ///     Ok::<_, Infallible>(Response::new("hello".to_owned()))
    /// };
    /// let service = RequestTracking::for_connection(io.conn().clone(), handler);
    /// let request = || Request::new(String::new());
    /// let first = service.call_with(request(), |handler, request| handler(request)).await?;
    /// let second = service.call_with(request(), |handler, request| handler(request)).await?;
    /// assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 503));
    /// # Ok(())
    /// # }
    /// ```
    pub fn call_with<F, B>(
        &self,
        request: Request<B>,
        call: impl FnOnce(&S, Request<B>) -> F,
    ) -> TrackingFuture<F>
    where
        B: Body + Send + 'static,
    {
        self.tracker
            .call(request, |request| call(&self.inner, request))
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

    /// Finds out from the first requests whether they carry their connection. If not, the layer
    /// stands where it can report nothing, and the guard must not take silence for idleness.
    #[cold]
    fn check_place(&mut self, has_conn: bool) {
        let Some(guard) = self.guard.upgrade() else {
            return;
        };
        if has_conn && !guard.is_tracking_placed.swap(true, Relaxed) {
            let is_on = guard.limits.mode != Mode::Off;
            guard.is_tracked.store(is_on, Relaxed);
        }
        self.is_placed = guard.is_tracking_placed.load(Relaxed);
        if !self.is_placed {
            guard.is_tracked.store(false, Relaxed);
            // A request that does carry its connection may have been seen concurrently.
            if guard.is_tracking_placed.load(Relaxed) {
                guard
                    .is_tracked
                    .store(guard.limits.mode != Mode::Off, Relaxed);
            }
        }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RequestTracking<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ReqBody: Body + Send + 'static,
    ResBody: Body<Data = Bytes>,
{
    type Response = Response<TrackedBody<ResBody>>;
    type Error = S::Error;
    type Future = TrackingFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        if !self.is_placed {
            self.check_place(ConnInfo::from_extensions(request.extensions()).is_some());
        }
        self.tracker
            .call(request, |request| self.inner.call(request))
    }
}

// === Tracker ===

impl Tracker {
    fn new(conn: Option<ConnHandle>) -> Self {
        Self {
            conn,
            adds_connect_info: false,
            reports_windows: true,
        }
    }

    #[inline]
    fn call<F, B: Body + Send + 'static>(
        &self,
        mut request: Request<B>,
        call: impl FnOnce(Request<B>) -> F,
    ) -> TrackingFuture<F> {
        let Some(mut tracked) = self.begin(&mut request) else {
            return TrackingFuture::untracked(call(request));
        };
        if let Some(mut rejection) = tracked.refuse(&request) {
            tracked.leave_totals();
            if linger(request) {
                rejection.keep_open();
            }
            return TrackingFuture::refused(rejection, tracked);
        }
        TrackingFuture::tracked(call(request), tracked)
    }

    /// Begins to track `request`, on the connection that the service is made for or that is in its
    /// extensions.
    #[inline(always)]
    fn begin<B: Body>(&self, request: &mut Request<B>) -> Option<TrackedRequest> {
        let info = match &self.conn {
            Some(conn) => {
                let info = conn.info();
                identify(&info, request.extensions_mut(), self.adds_connect_info);
                info
            }
            None => {
                let info = ConnInfo::from_extensions(request.extensions()).cloned()?;
                restore(&info, request.extensions_mut());
                // If the connection's own service reports its requests, this one does not.
                if info.state_as::<ConnState>()?.is_tracked_by_own_service() {
                    return None;
                }
                info
            }
        };
        TrackedRequest::begin(info, request, self.reports_windows)
    }
}
