//! `palisade::serve` over TLS: ALPN, the first request's timeout for handshakes, and the bound on
//! their number.

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use palisade::{
    conn::{ConnGuard, Reason},
    serve::{Drained, Http},
};
use palisade_core::Guard;
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{GET, SECOND, SLACK, all_gone, app, read_until_closed},
    servers,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::Instant,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        pki_types::{PrivateKeyDer, ServerName},
    },
};

/// A TLS server, its guard, and a client configuration that trusts it.
struct TlsServer {
    addr: SocketAddr,
    guard: ConnGuard,
    journal: Journal,
    client: ClientConfig,
    /// Starts the shutdown, also when it is dropped.
    stop: oneshot::Sender<()>,
    served: JoinHandle<std::io::Result<Drained>>,
}

/// The server's drain time.
const DRAIN: Duration = Duration::from_secs(1);

impl TlsServer {
    async fn serve(http: Http, handshakes: usize) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder().with_no_client_auth();
        let server = server
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();

        let journal = Journal::default();
        let guard = ConnGuard::builder()
            .first_request_timeout(SECOND)
            .idle_timeout(2 * SECOND)
            .write_timeout(2 * SECOND);
        let guard = guard.metrics(journal.clone()).build().unwrap();
        let listener = guard.listen(servers::listener().await);
        let serve = palisade::serve(listener, app())
            .http(http)
            .tls(Arc::new(server));
        let serve = serve.max_handshakes(handshakes);
        let addr = serve.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let signal = async { stopped.await.unwrap_or(()) };
        let served = tokio::spawn(
            serve
                .with_graceful_shutdown(signal)
                .drain(DRAIN)
                .into_future(),
        );
        Self {
            addr,
            guard,
            journal,
            client,
            stop,
            served,
        }
    }

    /// Connects and makes a TLS handshake that offers the protocols `offered`.
    async fn connect(&self, offered: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        self.handshake(TcpStream::connect(self.addr).await?, offered)
            .await
    }

    /// Makes a TLS handshake on `stream` that offers the protocols `offered`.
    async fn handshake(
        &self,
        stream: TcpStream,
        offered: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = self.client.clone();
        config.alpn_protocols = offered
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }
}

async fn get_http1(stream: TlsStream<TcpStream>) -> Bytes {
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get("/")
        .header("host", "x")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    response.into_body().collect().await.unwrap().to_bytes()
}

async fn get_http2(stream: TlsStream<TcpStream>) -> Version {
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://localhost/")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    let version = response.version();
    response.into_body().collect().await.unwrap();
    version
}

#[tokio::test]
async fn the_protocol_is_agreed_by_alpn_or_detected_from_the_first_bytes() {
    let server = TlsServer::serve(Http::default(), 10).await;
    assert_eq!(
        get_http1(server.connect(&["http/1.1"]).await.unwrap()).await,
        "served"
    );
    assert_eq!(
        get_http1(server.connect(&[]).await.unwrap()).await,
        "served"
    );
    assert_eq!(
        get_http2(server.connect(&[]).await.unwrap()).await,
        Version::HTTP_2
    );
    let both = server.connect(&["http/1.1", "h2"]).await.unwrap();
    assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(get_http2(both).await, Version::HTTP_2);
    all_gone(&server.guard).await;

    let server = TlsServer::serve(Http::builder().http1_only().build().unwrap(), 10).await;
    assert!(server.connect(&["h2"]).await.is_err(), "no common protocol");
    assert_eq!(
        get_http1(server.connect(&["h2", "http/1.1"]).await.unwrap()).await,
        "served"
    );
    all_gone(&server.guard).await;
}

#[tokio::test]
async fn the_first_request_s_timeout_covers_the_handshake_and_the_first_head() {
    let server = TlsServer::serve(Http::default(), 10).await;
    let mut silent = RawClient::connect(server.addr).await.unwrap();
    let mut half = RawClient::connect(server.addr).await.unwrap();
    // The head of a TLS record without its payload.
    half.send([0x16, 3, 1, 1, 0, 1]).await.unwrap();
    let no_request = server.connect(&["http/1.1"]).await.unwrap();
    let started = Instant::now();
    for client in [&mut silent, &mut half] {
        let (bytes, is_reset, _) = read_until_closed(client).await;
        assert!(bytes.is_empty() && is_reset, "{bytes:?}");
    }
    let elapsed = started.elapsed();
    assert!(elapsed < SECOND + SLACK, "{elapsed:?}");
    wait_until("the third connection is closed", || {
        server.journal.closed().len() == 3
    })
    .await;
    assert_eq!(server.journal.closed(), [Some(Reason::FirstRequest); 3]);
    drop(no_request);
    all_gone(&server.guard).await;
}

#[tokio::test]
async fn a_client_without_tls_is_refused_and_leaves_nothing_behind() {
    let server = TlsServer::serve(Http::default(), 10).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send(GET).await.unwrap();
    let response = client.rest().await;
    assert!(!response.starts_with(b"HTTP"), "{response:?}");
    all_gone(&server.guard).await;
}

#[tokio::test]
async fn responses_of_the_server_itself_are_recorded_over_tls() {
    let server = TlsServer::serve(Http::default(), 10).await;
    let mut client = server.connect(&["http/1.1"]).await.unwrap();
    client.write_all(b"GET /x HTTP/1.1\r\n\r\n").await.unwrap();
    let mut response = [0; 12];
    client.read_exact(&mut response).await.unwrap();
    assert_eq!(&response, b"HTTP/1.1 400");
    let expected = [(Guard::Connection, Reason::BadRequest)];
    wait_until("the refusal is recorded", || {
        server.journal.refused() == expected
    })
    .await;
    drop(client);
    all_gone(&server.guard).await;
}

#[tokio::test]
async fn unfinished_handshakes_are_evicted_for_a_new_one() {
    let server = TlsServer::serve(Http::default(), 4).await;
    let mut halves = Vec::new();
    for _ in 0..20 {
        halves.push(TcpStream::connect(server.addr).await.unwrap());
    }
    wait_until("all but four connections are closed", || {
        server.guard.snapshot().open <= 4
    })
    .await;
    assert_eq!(
        get_http1(server.connect(&["http/1.1"]).await.unwrap()).await,
        "served"
    );
    let evicted = server
        .journal
        .closed()
        .iter()
        .filter(|reason| **reason == Some(Reason::HandshakesFull))
        .count();
    assert_eq!(evicted, 17);
    drop(halves);
    all_gone(&server.guard).await;
}

#[tokio::test]
async fn a_slow_handshake_survives_a_silent_flood_from_several_addresses() {
    let server = TlsServer::serve(Http::default(), 8).await;
    let from = |network, host| Ipv4Addr::new(127, 0, network, host);
    let slow = RawClient::connect_from(from(3, 1), server.addr)
        .await
        .unwrap();
    let mut flood = Vec::new();
    for nth in 0..60 {
        let from = from(1 + nth % 2, 1 + nth % 3);
        flood.push(RawClient::connect_from(from, server.addr).await.unwrap());
    }
    let closed = || server.journal.closed();
    wait_until("all but eight connections are closed", || {
        closed().len() == 53
    })
    .await;
    assert!(
        closed()
            .iter()
            .all(|reason| *reason == Some(Reason::HandshakesFull)),
        "{:?}",
        closed()
    );
    let slow = server.handshake(slow.stream, &["http/1.1"]).await.unwrap();
    assert_eq!(get_http1(slow).await, "served");
    drop(flood);
    all_gone(&server.guard).await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_handshakes_or_for_clients_that_do_not_read() {
    let server = TlsServer::serve(Http::default(), 10).await;
    let silent = RawClient::connect(server.addr).await.unwrap();
    let mut half = RawClient::connect(server.addr).await.unwrap();
    half.send([0x16, 3, 1, 1, 0, 1]).await.unwrap();
    let no_request = server.connect(&[]).await.unwrap();
    let mut with_requests = Vec::new();
    for path in ["/endless", "/hang"] {
        let mut client = server.connect(&["http/1.1"]).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        with_requests.push(client);
    }
    wait_until("both requests are at work", || {
        server.guard.snapshot().in_flight == 2
    })
    .await;
    let started = Instant::now();
    server.stop.send(()).unwrap();
    let drained = server.served.await.unwrap().unwrap();
    let elapsed = started.elapsed();
    assert!(elapsed >= DRAIN && elapsed < DRAIN + SLACK, "{elapsed:?}");
    assert_eq!(drained.cut, 2);
    all_gone(&server.guard).await;
    drop((silent, half, no_request, with_requests));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_a_refused_upload_sees_the_response_and_a_stalled_reader_is_reset() {
    let server = TlsServer::serve(Http::default(), 10).await;
    let mut in_time = 0;
    for _ in 0..20 {
        let mut client = server.connect(&["http/1.1"]).await.unwrap();
        let head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n";
        client.write_all(head).await.unwrap();
        // Writes the whole body before it reads.
        let started = Instant::now();
        let is_written = client.write_all(&vec![b'x'; 10_000_000]).await.is_ok();
        // The connection lingers for a second. A slower upload may miss the response.
        if started.elapsed() < SECOND {
            in_time += 1;
            let mut response = [0; 12];
            client.read_exact(&mut response).await.unwrap();
            assert!(is_written && &response == b"HTTP/1.1 405");
        }
    }
    assert!(
        in_time >= 10,
        "{in_time} of 20 uploads took less than a second"
    );
    let mut client = server.connect(&["http/1.1"]).await.unwrap();
    client
        .write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let stalled = || server.journal.closed().contains(&Some(Reason::WriteStall));
    wait_until("the connection is closed", stalled).await;
    drop(client);
    all_gone(&server.guard).await;
}
