//! Apps: the services that can be served.

use crate::RequestBody;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_conn::{ConnHandle, GuardedIo, Transport};
use palisade_core::BoxError;
use std::{any::Any, convert::Infallible, fmt, future::poll_fn, net::SocketAddr};
use tower_service::Service;

/// A new connection, for which a service is made.
pub struct Incoming<'a> {
    conn: &'a ConnHandle,
    /// A [`GuardedIo`]. Borrowed mutably, because an IO may not be `Sync`.
    io: &'a mut (dyn Any + Send),
}

/// A service that answers requests. Implemented for every suitable tower service.
///
/// If the service returns an error, the server responds with an empty 500, and an HTTP/1 connection
/// ends after that. The metrics get the reason `AppFailed`. The error itself is dropped, so log it
/// in a layer.
pub trait HttpService:
    Service<
        Request<RequestBody>,
        Response = Response<Self::ResponseBody>,
        Error: Into<BoxError>,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
    /// The body of the responses.
    type ResponseBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
}

/// An app that [`serve`](crate::serve) accepts: a service that answers requests, or a service that
/// makes such a service for each connection.
///
/// The compiler infers `Kind`: [`RequestService`] for a service that answers requests,
/// [`ConnectionService`] for a service of [`Incoming`]. A bare axum handler becomes an app by
/// `handler.with_state(())`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be served",
    label = "not a `tower::Service` of `http::Request<palisade::serve::RequestBody>` or of `Incoming<'_>`",
    note = "wrap a service of axum's own requests, such as `from_fn(..).layer(router)`, in \
            `palisade::serve::from_axum(service)`",
    note = "an app must be `Clone + Send + 'static`, with `Bytes` as the data of its response body"
)]
pub trait App<Kind>: Send + 'static {
    /// The service that answers the requests of one connection.
    type Service: HttpService;

    /// Returns the service for one connection.
    fn service(&mut self, incoming: Incoming<'_>) -> impl Future<Output = Self::Service> + Send;
}

/// The kind of an [`App`] that answers requests.
#[derive(Debug)]
pub enum RequestService {}

/// The kind of an [`App`] that makes a service for each connection.
#[derive(Debug)]
pub enum ConnectionService {}

// === Incoming ===

impl<'a> Incoming<'a> {
    pub(crate) fn new<T>(conn: &'a ConnHandle, io: &'a mut GuardedIo<T>) -> Self
    where
        T: Transport + Send + 'static,
    {
        Self { conn, io }
    }

    /// Returns the connection. Each of its requests has the
    /// [`ConnInfo`](palisade_core::ConnInfo) of it as an extension.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Incoming;
    ///
    /// // Each connection has a `Router` of its own, which knows the connection.
    /// let app = service_fn(async |incoming: Incoming<'_>| {
    ///     let conn = incoming.conn().clone();
    ///     let requests = async move || conn.requests().to_string();
    ///     Ok::<_, Infallible>(Router::new().route("/", get(requests)))
    /// });
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let server = spawn(palisade_serve::serve(listener, app))?; // The address of the server.
    /// let request = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    /// let last = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    /// let answers = ask(server, [request, last].concat()).await?;
    /// assert!(answers.contains("\r\n\r\n1HTTP/1.1 200 ") && answers.ends_with("\r\n\r\n2"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn conn(&self) -> &'a ConnHandle {
        self.conn
    }

    /// Returns the socket of the connection, if it is a `T`: the type that the listener accepts,
    /// such as tokio's `TcpStream` or `UnixStream`. It is the socket below TLS, before any
    /// handshake. Do not read from it, because the app does not get bytes that are read here.
    ///
    /// This example gets the credentials of the process at the other end of a Unix socket:
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
    ///     // Without the extension, each request is answered with 500.
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

    /// Returns the address of the peer, or `0.0.0.0:0` if the peer has no IP address.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Incoming;
    ///
    /// let app = service_fn(async |incoming: Incoming<'_>| {
    ///     let peer = incoming.remote_addr().to_string();
    ///     Ok::<_, Infallible>(Router::new().route("/", get(peer)))
    /// });
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let server = spawn(palisade_serve::serve(listener, app))?; // The address of the server.
    /// let mut client = TcpStream::connect(server).await?;
    /// client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    /// let mut answer = String::new();
    /// client.read_to_string(&mut answer).await?;
    /// assert!(answer.ends_with(&format!("\r\n\r\n{}", client.local_addr()?)));
    /// # Ok(())
    /// # }
    /// ```
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

/// Wraps a service of axum's own requests as an [`App`], such as middleware around a complete
/// `Router`, which runs before routing.
///
/// ```no_run
/// # use axum::{Router, extract::Request, response::Response, routing::get};
/// # use axum::middleware::{Next, from_fn};
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

/// A service that [`from_axum`] has wrapped.
#[cfg(feature = "axum")]
#[derive(Clone, Debug)]
pub struct FromAxum<S> {
    service: S,
}

#[cfg(feature = "axum")]
impl<S: Service<axum::extract::Request>> Service<Request<RequestBody>> for FromAxum<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> S::Future {
        self.service.call(request.map(axum::body::Body::new))
    }
}

// === HttpService ===

impl<S, B> HttpService for S
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type ResponseBody = B;
}

// === App ===

impl<S: HttpService> App<RequestService> for S {
    type Service = S;

    async fn service(&mut self, _: Incoming<'_>) -> S {
        self.clone()
    }
}

impl<M, S> App<ConnectionService> for M
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
