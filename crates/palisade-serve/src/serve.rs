//! The accept loop.

use crate::{
    App, Drained, Http, Incoming,
    connection::run,
    drain::{Attentive, Open},
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

/// So long a service may take to be made for a connection, which waits as long, with all after it.
const MAKE: Duration = Duration::from_secs(1);

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Serves `app` on what `listener` accepts, for as long as it is awaited.
///
/// `listener` is one that a [`ConnGuard`] watches over, or any that can be: tokio's `TcpListener`
/// and `UnixListener` get a guard of the default numbers. See the [crate docs](crate) for what can
/// be an `app`.
///
/// ```no_run
/// # use palisade_conn::ConnGuard;
/// # async fn example<S: palisade_serve::HttpService + Sync>(app: S) -> Result<(), Box<dyn std::error::Error>> {
/// let guard = ConnGuard::builder().max_connections(2000).build()?;
/// palisade_serve::serve(guard.bind("127.0.0.1:3000").await?, app).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// When awaited, if the runtime has no IO or no timer.
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

/// Future of [`serve`]. Awaited, it never ends; dropped, it takes no more connections, and those
/// that are there go on.
#[must_use = "nothing is served before it is awaited"]
pub struct Serve<L: Listener, A, Kind> {
    listener: GuardedListener<L>,
    app: A,
    http: Http,
    #[cfg(feature = "rustls")]
    tls: crate::tls::Tls,
    kind: PhantomData<fn() -> Kind>,
}

/// Future of [`Serve::with_graceful_shutdown`].
#[must_use = "nothing is served before it is awaited"]
pub struct WithGracefulShutdown<L: Listener, A, Kind, F> {
    serve: Serve<L, A, Kind>,
    signal: F,
    drain: Duration,
}

// === Serve ===

impl<L: Listener, A: App<Kind>, Kind> Serve<L, A, Kind> {
    /// Speaks HTTP by these settings. Defaults to [`Http::default`].
    pub fn http(mut self, http: Http) -> Self {
        self.http = http;
        self
    }

    /// Speaks TLS, by a configuration of [`rustls`](crate::rustls). What the configuration offers by ALPN is put to what the [`Http`] settings
    /// speak, and nothing else is offered; a client that asks for nothing is looked at as one
    /// without TLS is. Whoever is ended by a rule of the guard's sees the connection end without TLS's
    /// own good-bye (`close_notify`). What was agreed on, and the peer's certificate, are not passed on.
    ///
    /// Each handshake is done on its own connection's task, within the guard's
    /// [`first_request`](palisade_conn::ConnGuardBuilder::first_request). Defaults to no TLS.
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
    /// `ServerConfig::builder` panics in a program in which rustls has no cryptography, or two kinds
    /// of it. Add one, and TLS 1.2 if you want it, to your dependencies:
    ///
    /// ```toml
    /// rustls = { version = "0.23", default-features = false, features = ["ring", "tls12"] }
    /// ```
    #[cfg(feature = "rustls")]
    pub fn tls(mut self, config: Arc<tokio_rustls::rustls::ServerConfig>) -> Self {
        self.tls.config = Some(config);
        self
    }

    /// The number of handshakes that may be under way at once, at least 1. Each costs some tens of
    /// KiB. One more takes the place of another, which is reset:
    ///
    /// - first one of a crowd: its client has more than four and more than a 64th of this number
    ///   under way, or its network (a /24, or a /48 of IPv6) more than four times that;
    /// - of a crowd, and of the others, one of which no byte has come before one that has spoken;
    ///   where most handshakes are silent and of no crowd, those go before a crowd that speaks;
    /// - then one of the client, then of the network, with most under way, and else any one.
    ///
    /// At most 64 are examined, at random, so that a larger number makes no eviction slower.
    /// Defaults to 1,024.
    #[cfg(feature = "rustls")]
    pub fn max_handshakes(mut self, handshakes: usize) -> Self {
        self.tls.most = handshakes.max(1);
        self
    }

    /// Ends when `signal` does: no more connections are taken, the listener is closed, every
    /// connection is told to go (`Connection: close`, GOAWAY), requests in flight are answered, and
    /// what is left when the [drain](WithGracefulShutdown::drain) is over is cut off. Whatever
    /// clients do, the end comes within that time and a second.
    ///
    /// ```no_run
    /// # async fn example<S: palisade_serve::HttpService + Sync>(listener: tokio::net::TcpListener, app: S) -> std::io::Result<()> {
    /// # let signal = async {};
    /// let drained = palisade_serve::serve(listener, app).with_graceful_shutdown(signal).await?;
    /// println!("{} connections were cut off", drained.cut);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A connection that was upgraded is waited for as long as all others are there, and half a
    /// second more; then it is ended in good order. Tell each WebSocket of the same signal, and it
    /// can say good-bye. A guard in [`Mode::Off`](palisade_conn::Mode::Off) leaves them be.
    pub fn with_graceful_shutdown<F>(self, signal: F) -> WithGracefulShutdown<L, A, Kind, F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        WithGracefulShutdown {
            serve: self,
            signal,
            drain: Duration::from_secs(30),
        }
    }

    /// Who watches over its connections, for a look at them later.
    pub fn guard(&self) -> &ConnGuard {
        self.listener.guard()
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    async fn run(self, signal: impl Future<Output = ()>, drain: Duration) -> io::Result<Drained> {
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
        let tls = Arc::new(self.tls.offering(server.http.protocol));
        let mut signal = pin!(signal);
        loop {
            // The signal first: a flood must not keep it from being heard.
            let accepted = poll_fn(|cx| match signal.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => listener.poll_accept(cx).map(Some),
            });
            let mut io = match accepted.await {
                None => break,
                Some(Ok((io, _))) => io,
                // The listener pauses by itself.
                Some(Err(_)) => continue,
            };
            let conn = io.conn().clone();
            let made = {
                let mut made = pin!(app.service(Incoming::new(&conn, &mut io)));
                let made = poll_fn(|cx| match signal.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(None),
                    Poll::Pending => made.as_mut().poll(cx).map(Some),
                });
                timeout(MAKE, made).await
            };
            let service = match made {
                Ok(Some(service)) => service,
                Ok(None) => break,
                Err(_) => continue,
            };
            let open = Open::new(&server.drain);
            let connection = serve_connection(
                io,
                service,
                server.clone(),
                open,
                #[cfg(feature = "rustls")]
                tls.clone(),
            );
            tokio::spawn(Attentive::new(connection, &server.drain));
        }
        drop(listener);
        let end = |conn: &_| {
            server
                .guard
                .close(conn, Reason::Shutdown, CloseMode::Graceful)
        };
        Ok(server.drain.run(drain, end).await)
    }
}

async fn serve_connection<T, S>(
    io: GuardedIo<T>,
    service: S,
    server: Arc<Server>,
    open: Open,
    #[cfg(feature = "rustls")] tls: Arc<crate::tls::Tls>,
) where
    T: palisade_conn::Transport + Send + 'static,
    S: crate::HttpService,
{
    let conn = io.conn().clone();
    // Before it has asked for anything.
    conn.set_tracked();
    let protocol = server.http.protocol;
    #[cfg(feature = "rustls")]
    if let Some((acceptor, handshakes)) = tls.acceptor() {
        let Some((io, agreed)) =
            crate::tls::handshake(acceptor, handshakes, io, &server, &open).await
        else {
            return;
        };
        let protocol = if protocol == crate::http::Protocol::Auto {
            agreed
        } else {
            protocol
        };
        return run(io, conn, (protocol, true), service, &server, &open).await;
    }
    run(io, conn, (protocol, false), service, &server, &open).await;
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
    /// How long after the signal requests in flight may go on. Defaults to 30 s.
    pub fn drain(mut self, deadline: Duration) -> Self {
        self.drain = deadline;
        self
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
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
            drain,
        } = self;
        Box::pin(async move { serve.run(signal, drain).await })
    }
}

impl<L: Listener, A: fmt::Debug, Kind, F> fmt::Debug for WithGracefulShutdown<L, A, Kind, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithGracefulShutdown")
            .field("serve", &self.serve)
            .field("drain", &self.drain)
            .finish_non_exhaustive()
    }
}
