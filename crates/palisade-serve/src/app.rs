//! What can be served.

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_conn::{ConnHandle, GuardedIo, Transport};
use palisade_core::BoxError;
use std::{any::Any, convert::Infallible, fmt, future::poll_fn, net::SocketAddr};
use tower_service::Service;

/// A connection for which a service is to be made.
pub struct Incoming<'a> {
    conn: &'a ConnHandle,
    /// A [`GuardedIo`]. Borrowed mutably, because an IO need not be `Sync`.
    io: &'a mut (dyn Any + Send),
}

/// A service that answers requests. Implemented for every tower service that can. One that fails
/// where it should answer is answered for, with an empty 500, after which an HTTP/1 connection ends.
/// The metrics are told (`AppFailed`); the error itself is dropped, so log it in a layer.
pub trait HttpService:
    Service<
        Request<hyper::body::Incoming>,
        Response = Response<Self::ResponseBody>,
        Error: Into<BoxError>,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
    /// The body of its responses.
    type ResponseBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
}

/// What [`serve`](crate::serve) takes. `Kind` is found by the compiler: [`OfRequests`] for a service that
/// answers requests, [`OfConnections`] for one that makes such a service for each [`Incoming`]. Of a
/// bare handler of axum's make one by `handler.with_state(())`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be served",
    label = "not a `tower::Service` of `http::Request<hyper::body::Incoming>` or of `Incoming<'_>`",
    note = "a service that takes axum's own requests only, such as `from_fn(..).layer(router)`, is \
            made one by `palisade::serve::from_axum(service)`",
    note = "it must be `Clone + Send + 'static`, and its response body one of `Bytes`"
)]
pub trait App<Kind>: Send + 'static {
    /// Answers the requests of one connection.
    type Service: HttpService;

    /// The service for one connection.
    fn service(&mut self, incoming: Incoming<'_>) -> impl Future<Output = Self::Service> + Send;
}

/// The [`App`] answers requests.
#[derive(Debug)]
pub enum OfRequests {}

/// The [`App`] makes services.
#[derive(Debug)]
pub enum OfConnections {}

// === Incoming ===

impl<'a> Incoming<'a> {
    pub(crate) fn new<T>(conn: &'a ConnHandle, io: &'a mut GuardedIo<T>) -> Self
    where
        T: Transport + Send + 'static,
    {
        Self { conn, io }
    }

    /// What is known of the connection. Each of its requests will bring it as an extension.
    pub fn conn(&self) -> &'a ConnHandle {
        self.conn
    }

    /// What the connection runs over, if that is a `T`: what the listener accepts, such as tokio's
    /// `TcpStream` or `UnixStream`. TLS comes later and is not in it. Do not read from it: what is
    /// read here the app does not see.
    ///
    /// The process at the other end of a Unix socket, by its credentials:
    ///
    /// ```
    /// # #[cfg(not(unix))] fn main() {}
    /// # #[cfg(unix)]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// use axum::{Extension, Router, routing::get};
    /// use palisade_serve::Incoming;
    /// use std::convert::Infallible;
    /// use tokio::net::{UnixListener, UnixStream, unix::UCred};
    ///
    /// let router = Router::new()
    ///     .route("/", get(|user: Extension<UCred>| async move { user.uid().to_string() }));
    /// let app = tower::service_fn(move |incoming: Incoming<'_>| {
    ///     let user = incoming.io::<UnixStream>().and_then(|io| io.peer_cred().ok());
    ///     let router = router.clone();
    ///     // Without it no request finds its extension, and each is answered 500.
    ///     let router = if let Some(user) = user { router.layer(Extension(user)) } else { router };
    ///     async move { Ok::<_, Infallible>(router) }
    /// });
    /// # let path = std::env::temp_dir().join(format!("palisade-incoming-{}", std::process::id()));
    /// # let _ = std::fs::remove_file(&path);
    /// let listener = UnixListener::bind(&path)?;
    /// # let server =
    /// palisade_serve::serve(listener, app)
    /// # ; let server = tokio::spawn(server.into_future());
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # let mut client = UnixStream::connect(&path).await?;
    /// # std::fs::remove_file(&path)?;
    /// # let uid = client.peer_cred()?.uid();
    /// # client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    /// # let mut answer = String::new();
    /// # client.read_to_string(&mut answer).await?;
    /// # assert!(answer.ends_with(&format!("\r\n\r\n{uid}")), "{answer}");
    /// # server.abort();
    /// # Ok(())
    /// # }
    /// ```
    pub fn io<T: Transport + 'static>(&self) -> Option<&T> {
        self.io.downcast_ref().map(GuardedIo::get_ref)
    }

    /// The other end; 0.0.0.0:0 where that is no address of the internet.
    pub fn remote_addr(&self) -> SocketAddr {
        self.conn.peer()
    }
}

impl fmt::Debug for Incoming<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("conn", &self.conn)
            .finish()
    }
}

#[cfg(feature = "axum")]
impl axum::extract::connect_info::Connected<Incoming<'_>> for SocketAddr {
    fn connect_info(incoming: Incoming<'_>) -> Self {
        incoming.remote_addr()
    }
}

/// Serves what takes axum's own requests only, such as middleware around a finished `Router`, which
/// is then run before the routes are looked at.
///
/// ```no_run
/// # use axum::{Router, extract::Request, middleware::{Next, from_fn}, response::Response, routing::get};
/// # use tower::Layer;
/// # async fn example(listener: tokio::net::TcpListener) -> std::io::Result<()> {
/// # async fn rewrite(request: Request, next: Next) -> Response { next.run(request).await }
/// let app = from_fn(rewrite).layer(Router::new().route("/", get("hello")));
/// palisade_serve::serve(listener, palisade_serve::from_axum(app)).await
/// # }
/// ```
#[cfg(feature = "axum")]
pub fn from_axum<S>(service: S) -> FromAxum<S> {
    FromAxum { service }
}

/// See [`from_axum`].
#[cfg(feature = "axum")]
#[derive(Clone, Debug)]
pub struct FromAxum<S> {
    service: S,
}

#[cfg(feature = "axum")]
impl<S: Service<axum::extract::Request>> Service<Request<hyper::body::Incoming>> for FromAxum<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<hyper::body::Incoming>) -> S::Future {
        self.service.call(request.map(axum::body::Body::new))
    }
}

// === HttpService ===

impl<S, B> HttpService for S
where
    S: Service<Request<hyper::body::Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type ResponseBody = B;
}

// === App ===

impl<S: HttpService> App<OfRequests> for S {
    type Service = S;

    async fn service(&mut self, _: Incoming<'_>) -> S {
        self.clone()
    }
}

impl<M, S> App<OfConnections> for M
where
    M: for<'a> Service<Incoming<'a>, Response = S, Error = Infallible, Future: Send>
        + Send
        + 'static,
    S: HttpService,
{
    type Service = S;

    async fn service(&mut self, incoming: Incoming<'_>) -> S {
        let Ok(()) = poll_fn(|cx| self.poll_ready(cx)).await;
        let Ok(service) = self.call(incoming).await;
        service
    }
}
