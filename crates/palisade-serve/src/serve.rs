//! The accept loop.

use crate::{
    App, Drained, Http, Incoming,
    connection::serve_http,
    drain::{DrainAware, DrainToken},
    server::Server,
};
use palisade_conn::{CloseMode, ConnGuard, GuardedIo, GuardedListener, Listener};
use palisade_core::Reason;
use std::{
    fmt,
    future::{Future, IntoFuture, pending, poll_fn},
    io,
    marker::PhantomData,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::time::timeout;

/// The longest time in which an app makes the service for a connection. All later connections wait
/// meanwhile.
const MAKE_SERVICE_TIMEOUT: Duration = Duration::from_secs(1);

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Serves `app` on the connections that `listener` accepts, for as long as the future is awaited.
///
/// `listener` is a listener of a [`ConnGuard`], or one that can become one: tokio's `TcpListener`
/// and `UnixListener` get a guard with the default limits. The [crate docs](crate#apps) say what
/// `app` can be.
///
/// ```no_run
/// # use palisade_conn::ConnGuard;
/// # use std::error::Error;
/// # async fn example<S>(app: S) -> Result<(), Box<dyn Error>>
/// # where
/// #     S: palisade_serve::HttpService + Sync,
/// # {
/// let guard = ConnGuard::builder().max_connections(2000).build()?;
/// palisade_serve::serve(guard.bind("127.0.0.1:3000").await?, app).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// When awaited, if the runtime has no IO driver or no timer.
pub fn serve<L, A, Kind>(listener: impl Into<GuardedListener<L>>, app: A) -> Serve<L, A, Kind>
where
    L: Listener,
    A: App<Kind>,
{
    #[cfg(feature = "axum")]
    let app = palisade_conn::settled(app);
    Serve {
        listener: listener.into(),
        app,
        http: Http::default(),
        #[cfg(feature = "rustls")]
        tls: crate::tls::Tls::default(),
        kind: PhantomData,
    }
}

/// Future of [`serve`]. It never completes. When it is dropped, no more connections are accepted,
/// and open connections continue.
#[must_use = "nothing is served until the future is awaited"]
pub struct Serve<L: Listener, A, Kind> {
    listener: GuardedListener<L>,
    app: A,
    http: Http,
    #[cfg(feature = "rustls")]
    tls: crate::tls::Tls,
    kind: PhantomData<fn() -> Kind>,
}

/// Future of [`Serve::with_graceful_shutdown`].
#[must_use = "nothing is served until the future is awaited"]
pub struct WithGracefulShutdown<L: Listener, A, Kind, F> {
    serve: Serve<L, A, Kind>,
    signal: F,
    drain_time: Duration,
}

// === Serve ===

impl<L: Listener, A: App<Kind>, Kind> Serve<L, A, Kind> {
    /// Sets the HTTP settings. Defaults to [`Http::default`].
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::{Http, serve};
    ///
    /// let http = Http::builder().max_headers(1).build()?;
    /// let app = Router::new().route("/", get("hello"));
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let address = listener.local_addr()?;
    /// tokio::spawn(serve(listener, app).http(http).into_future());
    /// let answer = ask(address, "GET / HTTP/1.1\r\nhost: x\r\na: 1\r\n\r\n").await?;
    /// assert!(answer.starts_with("HTTP/1.1 431 "));
    /// # Ok(())
    /// # }
    /// ```
    pub fn http(mut self, http: Http) -> Self {
        self.http = http;
        self
    }

    /// Serves TLS with a configuration of [`rustls`](crate::rustls).
    ///
    /// The ALPN protocols of the configuration are replaced by those that the [`Http`] settings
    /// allow. For a client without ALPN the protocol is detected from the first bytes, as without
    /// TLS. A connection that the guard closes ends without `close_notify`. The negotiated
    /// parameters and the certificate of the peer are not passed on to the app.
    ///
    /// Each handshake runs in the task of its connection, within the guard's
    /// [`first_request_timeout`](palisade_conn::ConnGuardBuilder::first_request_timeout) timeout.
    /// Defaults to no TLS.
    ///
    /// ```no_run
    /// use palisade_serve::rustls::{
    ///     ServerConfig,
    ///     pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    /// };
    /// # async fn example<S: palisade_serve::HttpService + Sync>(
    /// #     listener: tokio::net::TcpListener,
    /// #     app: S,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// let chain = CertificateDer::pem_file_iter("chain.pem")?.collect::<Result<_, _>>()?;
    /// let key = PrivateKeyDer::from_pem_file("key.pem")?;
    /// let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    /// palisade_serve::serve(listener, app).tls(config.into()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// `ServerConfig::builder` panics if rustls has no crypto provider, or more than one. Add one
    /// to your dependencies, and TLS 1.2 if you need it:
    ///
    /// ```toml
    /// rustls = { version = "0.23", default-features = false, features = ["ring", "tls12"] }
    /// ```
    #[cfg(feature = "rustls")]
    pub fn tls(mut self, config: Arc<tokio_rustls::rustls::ServerConfig>) -> Self {
        self.tls.config = Some(config);
        self
    }

    /// Limits the TLS handshakes in progress to `handshakes`, at least 1. Each uses some tens of
    /// KiB. When one more begins, another one is evicted: its connection is reset. The handshake to
    /// evict is chosen by these rules, in this order:
    ///
    /// 1. A handshake of a crowd is evicted before others. It belongs to a crowd if its client has
    ///    more than four and more than a 64th of this number in progress, or its network (a /24, or
    ///    a /48 of IPv6) has more than four times as many.
    /// 2. A silent handshake, from which no byte has arrived, is evicted before others. If most
    ///    handshakes are silent and of no crowd, those are also evicted before an active crowd.
    /// 3. One of the client with the most handshakes in progress is evicted, then one of the
    ///    network with the most, otherwise a random one.
    ///
    /// An eviction examines at most 64 handshakes, chosen at random, so its cost does not grow with
    /// this number. Defaults to 1,024.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[cfg(not(feature = "rustls"))] fn main() {}
    /// # #[cfg(feature = "rustls")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::Reason;
    /// # use palisade_serve::rustls::{ServerConfig, pki_types::PrivateKeyDer};
    ///
    /// # let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    /// # let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    /// # let certificates = vec![made.cert.der().clone()];
    /// # let config = ServerConfig::builder().with_no_client_auth();
    /// # let config = config.with_single_cert(certificates, key)?;
    /// let app = Router::new().route("/", get("hello"));
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let server = palisade_serve::serve(listener, app).tls(config.into()).max_handshakes(1);
    /// let guard = server.guard().clone();
    /// let address = server.local_addr()?;
    /// tokio::spawn(server.into_future());
    /// // Two clients that connect and send nothing. The second one takes the place of the first.
    /// let mut first = TcpStream::connect(address).await?;
    /// let mut second = TcpStream::connect(address).await?;
    /// assert_eq!(first.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::HandshakesFull);
    /// assert_eq!(guard.snapshot().open, 1);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "rustls")]
    pub fn max_handshakes(mut self, handshakes: usize) -> Self {
        self.tls.max_handshakes = handshakes.max(1);
        self
    }

    /// Shuts the server down gracefully when `signal` completes.
    ///
    /// The listener is closed, and every connection is asked to end: HTTP/1 by `Connection: close`,
    /// HTTP/2 by GOAWAY. Requests in flight are answered. Connections that are left after the
    /// [drain time](WithGracefulShutdown::drain) are cut. The future completes at most a second
    /// after the drain time, whatever clients do.
    ///
    /// An upgraded connection may stay open while others are open, and half a second longer. Then
    /// the guard closes it gracefully, unless it is in [`Mode::Off`](palisade_conn::Mode::Off).
    /// Pass the same signal to each WebSocket, so that it can end by itself.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::sync::oneshot;
    ///
    /// let (stop, stopped) = oneshot::channel::<()>();
    /// let app = Router::new().route("/", get("hello"));
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let server = palisade_serve::serve(listener, app)
    ///     .with_graceful_shutdown(async { _ = stopped.await });
    /// let address = server.local_addr()?;
    /// let server = tokio::spawn(server.into_future());
    /// // A client that keeps its connection.
    /// let mut client = TcpStream::connect(address).await?;
    /// client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    /// client.read(&mut [0; 1024]).await?;
    /// stop.send(()).map_err(|()| "the server has ended")?;
    /// let drained = server.await??;
    /// assert_eq!((drained.finished, drained.cut), (1, 0));
    /// assert_eq!(client.read(&mut [0]).await?, 0); // A FIN.
    /// assert!(TcpStream::connect(address).await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_graceful_shutdown<F>(self, signal: F) -> WithGracefulShutdown<L, A, Kind, F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        WithGracefulShutdown {
            serve: self,
            signal,
            drain_time: Duration::from_secs(30),
        }
    }

    /// Returns the guard of the connections, for example for its snapshots.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let app = Router::new().route("/", get("hello"));
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let server = palisade_serve::serve(listener, app);
    /// let guard = server.guard().clone();
    /// let address = server.local_addr()?;
    /// tokio::spawn(server.into_future());
    /// let mut client = TcpStream::connect(address).await?;
    /// client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    /// client.read(&mut [0; 1024]).await?;
    /// let client = guard.snapshot().clients[0];
    /// assert_eq!((client.connections, client.requests), (1, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn guard(&self) -> &ConnGuard {
        self.listener.guard()
    }

    /// Returns the address of the listener.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let app = Router::new().route("/", get("hello"));
    /// let listener = TcpListener::bind("127.0.0.1:0").await?; // A free port.
    /// let server = palisade_serve::serve(listener, app);
    /// let address = server.local_addr()?;
    /// tokio::spawn(server.into_future());
    /// let answer = ask(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    /// assert!(answer.ends_with("\r\n\r\nhello"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The error of the listener, if it cannot tell its address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    async fn run(
        self,
        signal: impl Future<Output = ()>,
        drain_time: Duration,
    ) -> io::Result<Drained> {
        let Self {
            mut listener,
            mut app,
            http,
            ..
        } = self;
        let server = Arc::new(Server {
            guard: listener.guard().clone(),
            http1: http.http1(),
            http,
            drain: Arc::default(),
        });
        #[cfg(feature = "rustls")]
        let tls = Arc::new(self.tls.with_acceptor(server.http.protocol));
        let mut signal = pin!(signal);
        loop {
            // Poll the signal first, so that a flood of connections cannot delay it.
            let accepted = poll_fn(|cx| match signal.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => listener.poll_accept(cx).map(Some),
            });
            let mut io = match accepted.await {
                None => break,
                Some(Ok((io, _))) => io,
                // The listener waits by itself before it accepts again.
                Some(Err(_)) => continue,
            };
            let conn = io.conn().clone();
            let made = {
                let mut make_service = pin!(app.service(Incoming::new(&conn, &mut io)));
                let made = poll_fn(|cx| match signal.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(None),
                    Poll::Pending => make_service.as_mut().poll(cx).map(Some),
                });
                timeout(MAKE_SERVICE_TIMEOUT, made).await
            };
            let service = match made {
                Ok(Some(service)) => service,
                Ok(None) => break,
                Err(_) => continue,
            };
            let drain_token = DrainToken::new(&server.drain);
            let connection = serve_connection(
                io,
                service,
                server.clone(),
                drain_token,
                #[cfg(feature = "rustls")]
                tls.clone(),
            );
            tokio::spawn(DrainAware::new(connection, &server.drain));
        }
        drop(listener);
        let close = |conn: &_| {
            server
                .guard
                .close(conn, Reason::Shutdown, CloseMode::Graceful)
        };
        Ok(server.drain.run(drain_time, close).await)
    }
}

/// Serves one connection to its end: the TLS handshake, if any, and HTTP.
async fn serve_connection<T, S>(
    io: GuardedIo<T>,
    service: S,
    server: Arc<Server>,
    drain_token: DrainToken,
    #[cfg(feature = "rustls")] tls: Arc<crate::tls::Tls>,
) where
    T: palisade_conn::Transport + Send + 'static,
    S: crate::HttpService,
{
    let conn = io.conn().clone();
    // Before the first request, so that the first-request timeout applies.
    conn.set_tracked();
    let protocol = server.http.protocol;
    #[cfg(feature = "rustls")]
    if let Some((acceptor, handshakes)) = tls.acceptor() {
        let Some((io, chosen)) =
            crate::tls::handshake(acceptor, handshakes, io, &server, &drain_token).await
        else {
            return;
        };
        let protocol = if protocol == crate::http::Protocol::Auto {
            chosen
        } else {
            protocol
        };
        return serve_http(io, conn, (protocol, true), service, &server, &drain_token).await;
    }
    serve_http(io, conn, (protocol, false), service, &server, &drain_token).await;
}

impl<L, A, Kind> IntoFuture for Serve<L, A, Kind>
where
    L: Listener,
    A: App<Kind>,
    Kind: 'static,
{
    type Output = io::Result<()>;
    type IntoFuture = BoxFuture<io::Result<()>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.run(pending(), Duration::ZERO).await.map(|_| ()) })
    }
}

impl<L: Listener, A: fmt::Debug, Kind> fmt::Debug for Serve<L, A, Kind> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("listener", &self.listener)
            .field("app", &self.app)
            .field("http", &self.http)
            .finish_non_exhaustive()
    }
}

// === WithGracefulShutdown ===

impl<L, A, Kind, F> WithGracefulShutdown<L, A, Kind, F>
where
    L: Listener,
    A: App<Kind>,
    F: Future<Output = ()> + Send + 'static,
{
    /// Sets the drain time: how long requests in flight may continue after the signal. Defaults to
    /// 30 s.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::sync::oneshot;
    ///
    /// let (stop, stopped) = oneshot::channel::<()>();
    /// let app = Router::new().route("/", get(pending::<()>)); // It never responds.
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let server = palisade_serve::serve(listener, app);
    /// let guard = server.guard().clone();
    /// let server = server
    ///     .with_graceful_shutdown(async { _ = stopped.await })
    ///     .drain(Duration::from_secs(5));
    /// let address = server.local_addr()?;
    /// let server = tokio::spawn(server.into_future());
    /// let mut client = TcpStream::connect(address).await?;
    /// client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    /// # while guard.snapshot().in_flight == 0 { tokio::task::yield_now().await }
    /// let started = tokio::time::Instant::now();
    /// stop.send(()).map_err(|()| "the server has ended")?;
    /// let drained = server.await??;
    /// assert_eq!((drained.finished, drained.cut), (0, 1));
    /// let after = started.elapsed(); // Of tokio's paused clock.
    /// assert!((Duration::from_secs(5)..Duration::from_secs(6)).contains(&after));
    /// # Ok(())
    /// # }
    /// ```
    pub fn drain(mut self, time: Duration) -> Self {
        self.drain_time = time;
        self
    }

    /// Returns the address of the listener.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let app = Router::new().route("/", get("hello"));
    /// let listener = TcpListener::bind("127.0.0.1:0").await?; // A free port.
    /// let server = palisade_serve::serve(listener, app).with_graceful_shutdown(pending());
    /// let address = server.local_addr()?;
    /// tokio::spawn(server.into_future());
    /// let answer = ask(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    /// assert!(answer.ends_with("\r\n\r\nhello"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The error of the listener, if it cannot tell its address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.serve.local_addr()
    }
}

impl<L, A, Kind, F> IntoFuture for WithGracefulShutdown<L, A, Kind, F>
where
    L: Listener,
    A: App<Kind>,
    Kind: 'static,
    F: Future<Output = ()> + Send + 'static,
{
    type Output = io::Result<Drained>;
    type IntoFuture = BoxFuture<io::Result<Drained>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self {
            serve,
            signal,
            drain_time,
        } = self;
        Box::pin(async move { serve.run(signal, drain_time).await })
    }
}

impl<L: Listener, A: fmt::Debug, Kind, F> fmt::Debug for WithGracefulShutdown<L, A, Kind, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithGracefulShutdown")
            .field("serve", &self.serve)
            .field("drain", &self.drain_time)
            .finish_non_exhaustive()
    }
}
