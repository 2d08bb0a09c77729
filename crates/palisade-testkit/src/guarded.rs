//! Servers behind the connection guard, and an honest client beside each attack.

use crate::{
    Journal,
    clients::{self, PATIENCE, RawClient, wait_until},
    process,
    servers::{self, Server},
};
use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use palisade::conn::{ConnGuard, ConnGuardBuilder, connected, harden};
use std::{
    convert::Infallible,
    fmt,
    future::IntoFuture,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};
use tower::BoxError;

/// The tolerance beyond the exact time, for a busy machine.
pub const SLACK: Duration = Duration::from_secs(4);
/// One second.
pub const SECOND: Duration = Duration::from_secs(1);
/// A request for `/`.
pub const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// A server that carries the connection guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    /// `axum::serve` over a guarded listener.
    Axum,
    /// `palisade::serve`.
    Serve,
    /// tonic's own server, with `harden`.
    Tonic,
}

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Axum => "axum::serve",
            Self::Serve => "palisade::serve",
            Self::Tonic => "tonic, hardened",
        })
    }
}

impl ServerKind {
    /// Every server.
    pub const ALL: [Self; 3] = [Self::Axum, Self::Serve, Self::Tonic];

    /// Serves `app` on a free loopback port.
    pub async fn serve(self, guard: &ConnGuard, app: Router) -> Server {
        match self {
            Self::Axum => {
                let listener = guard.listen(servers::listener().await);
                let addr = listener.local_addr().unwrap();
                let serve = axum::serve(listener, connected(app)).into_future();
                Server::new(addr, tokio::spawn(async move { serve.await.unwrap() }))
            }
            Self::Serve => {
                // Extended CONNECT is enabled as in `axum::serve`.
                let http = palisade::serve::Http::builder().extended_connect();
                let listener = guard.listen(servers::listener().await);
                let serve = palisade::serve(listener, app).http(http.build().unwrap());
                let addr = serve.local_addr().unwrap();
                Server::new(addr, tokio::spawn(async move { serve.await.unwrap() }))
            }
            Self::Tonic => serve_with_tonic(guard, true, app).await,
        }
    }

    /// Connects the kind of client that this server usually has: HTTP/2 for tonic, else HTTP/1.
    pub async fn connect(self, from: Ipv4Addr, to: SocketAddr) -> Result<Client, BoxError> {
        Ok(match self {
            Self::Tonic => Client::Http2(clients::http2(from, to).await?),
            Self::Axum | Self::Serve => Client::Http1(clients::http1(from, to).await?),
        })
    }

    /// Sends `GET path` over a new connection and returns the complete response.
    pub async fn ask(
        self,
        from: Ipv4Addr,
        to: SocketAddr,
        path: &str,
    ) -> Result<Response<Bytes>, BoxError> {
        self.connect(from, to).await?.get(path).await
    }

    /// Starts an honest client that uses a kept connection and new ones.
    pub fn neighbour(self, addr: SocketAddr) -> Neighbour {
        Neighbour::start_on(self, addr, true)
    }

    /// Starts an honest client that uses its kept connection only, and returns after more than one
    /// response.
    ///
    /// At a full cap, a newcomer that is slow on a busy machine may be evicted, and so may a
    /// connection that has had one response in 2 s.
    pub async fn neighbour_on_one_connection(self, addr: SocketAddr) -> Neighbour {
        let neighbour = Neighbour::start_on(self, addr, false);
        wait_until("the neighbour is served", || {
            neighbour.served.load(SeqCst) > 2
        })
        .await;
        neighbour
    }
}

/// Makes each of the named functions, which take a [`ServerKind`], a test on each of the servers:
/// `name::axum`, `name::serve`, `name::tonic`.
#[macro_export]
macro_rules! on_servers {
    ($servers:tt $($test:ident),+ $(,)?) => {
        $($crate::on_servers!(@test $test $servers);)+
    };
    (@test $test:ident [$($server:ident),+]) => {
        mod $test {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $server() {
                    super::$test($crate::on_servers!(@kind $server)).await;
                }
            )+
        }
    };
    (@kind axum) => { $crate::guarded::ServerKind::Axum };
    (@kind serve) => { $crate::guarded::ServerKind::Serve };
    (@kind tonic) => { $crate::guarded::ServerKind::Tonic };
}

/// Builds a guard with a journal, and raises the file limit for floods.
pub fn build_guard(builder: ConnGuardBuilder) -> (ConnGuard, Journal) {
    process::raise_file_limit();
    let journal = Journal::default();
    (builder.metrics(journal.clone()).build().unwrap(), journal)
}

/// Serves `app` with tonic's own server, hardened or not. HTTP/1 is enabled for the [`Neighbour`].
pub async fn serve_with_tonic(guard: &ConnGuard, is_hardened: bool, app: Router) -> Server {
    let listener = guard.listen(servers::listener().await);
    let addr = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder();
    let server = if is_hardened { harden(server) } else { server };
    let mut server = server.accept_http1(true).layer(guard.track_requests());
    let router = server.add_routes(tonic::service::Routes::from(app));
    Server::new(
        addr,
        tokio::spawn(async { router.serve_with_incoming(listener).await.unwrap() }),
    )
}

/// An app with a small response at `/` and an endless one at `/endless`. `/hang` never responds.
pub fn app() -> Router {
    let endless = || async {
        let chunk = Bytes::from_static(&[b'x'; 16 * 1024]);
        Body::from_stream(stream::repeat(chunk).map(Ok::<_, Infallible>))
    };
    Router::new()
        .route("/", get(|| async { "served" }))
        .route("/endless", get(endless))
        .route("/hang", get(std::future::pending::<()>))
}

/// Asserts that an event came at `due`, or at most [`SLACK`] later. `after` is the time from a
/// response to the event.
pub fn assert_on_time(after: Duration, due: Duration) {
    // The response arrives a moment before the test reads the clock.
    let early = Duration::from_millis(100);
    assert!(
        (due - early..due + SLACK).contains(&after),
        "{after:?} for {due:?}"
    );
}

/// Waits until the guard holds no connections, requests, upgrades and clients.
pub async fn all_gone(guard: &ConnGuard) {
    wait_until("all connections are gone", || {
        let now = guard.snapshot();
        (now.open, now.close_pending, now.distinct_clients) == (0, 0, 0)
            && (now.in_flight, now.upgraded) == (0, 0)
    })
    .await;
}

/// Reads until the server closes the connection. Returns the bytes read, whether the connection was
/// reset, and the time until then.
pub async fn read_until_closed(client: &mut RawClient) -> (Vec<u8>, bool, Duration) {
    use tokio::io::AsyncReadExt;
    let started = Instant::now();
    let (mut bytes, mut piece) = (Vec::new(), [0; 8192]);
    let is_reset = timeout(PATIENCE, async {
        loop {
            match client.stream.read(&mut piece).await {
                Ok(0) => return false,
                // Keep the first MiB of an endless response only.
                Ok(length) if bytes.len() < 1 << 20 => bytes.extend_from_slice(&piece[..length]),
                Ok(_) => {}
                Err(_) => return true,
            }
        }
    });
    let is_reset = is_reset.await.unwrap();
    (bytes, is_reset, started.elapsed())
}

/// Sends `bytes`, and reads meanwhile until the server closes the connection. Returns the bytes
/// read and the time until then.
pub async fn send_and_read_until_closed(client: RawClient, bytes: Vec<u8>) -> (Vec<u8>, Duration) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let started = Instant::now();
    let (mut read, mut write) = client.stream.into_split();
    // Keeps the write half open until the server has closed the connection, whether or not it reads
    // all of the bytes.
    let sending = tokio::spawn(async move {
        let _ = write.write_all(&bytes).await;
        write
    });
    let mut response = Vec::new();
    let _ = timeout(PATIENCE, read.read_to_end(&mut response))
        .await
        .unwrap();
    sending.abort();
    (response, started.elapsed())
}

/// Requests `/` of [`app`] and asserts that it is served.
pub async fn assert_served(client: &mut RawClient) {
    client.send(GET).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    assert_eq!(client.body(6).await.unwrap(), b"served");
}

/// An honest client that sends requests throughout a test, on one kept connection and on new ones.
#[derive(Debug)]
pub struct Neighbour {
    served: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Neighbour {
    /// Starts a client over HTTP/1 that uses a kept connection and new ones.
    pub fn start(addr: SocketAddr) -> Self {
        ServerKind::Axum.neighbour(addr)
    }

    fn start_on(kind: ServerKind, addr: SocketAddr, with_new_connections: bool) -> Self {
        let (served, stop) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let task = tokio::spawn({
            let (served, stop) = (Arc::clone(&served), Arc::clone(&stop));
            async move {
                let from = Ipv4Addr::new(127, 0, 0, 99);
                let mut kept = kind.connect(from, addr).await.unwrap();
                while !stop.load(SeqCst) {
                    assert_eq!(kept.get("/").await.unwrap().status(), 200);
                    if with_new_connections {
                        let new_answer = kind.ask(from, addr, "/").await.unwrap();
                        assert_eq!(new_answer.status(), 200);
                    }
                    served.fetch_add(1 + usize::from(with_new_connections), SeqCst);
                    // The client's request rate, not a wait for anything.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
        Self { served, stop, task }
    }

    /// Stops the client and returns the number of responses.
    ///
    /// # Panics
    ///
    /// If a request was not served.
    pub async fn was_served(self) -> usize {
        self.stop.store(true, SeqCst);
        timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .expect("the neighbour was served throughout");
        let served = self.served.load(SeqCst);
        assert!(served > 0, "the neighbour sent no request");
        served
    }
}

/// hyper's client.
#[derive(Debug)]
pub enum Client {
    /// HTTP/1.
    Http1(http1::SendRequest<Empty<Bytes>>),
    /// HTTP/2.
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    /// Sends `GET path` and returns the complete response.
    pub async fn get(&mut self, path: &str) -> Result<Response<Bytes>, BoxError> {
        let response = match self {
            Self::Http1(sender) => {
                timeout(PATIENCE, sender.ready()).await??;
                let request = Request::get(path)
                    .header("host", "test")
                    .body(Empty::new())?;
                timeout(PATIENCE, sender.send_request(request)).await??
            }
            Self::Http2(sender) => {
                timeout(PATIENCE, sender.ready()).await??;
                let request = Request::get(format!("http://test{path}")).body(Empty::new())?;
                timeout(PATIENCE, sender.send_request(request)).await??
            }
        };
        clients::whole(response).await
    }
}

/// Sends `GET path` over a new HTTP/1 connection and returns the complete response.
pub async fn ask(from: Ipv4Addr, to: SocketAddr, path: &str) -> Result<Response<Bytes>, BoxError> {
    ServerKind::Axum.ask(from, to, path).await
}
