//! `palisade::serve` over TLS: handshakes within the first request's time, by ALPN, and bounded.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod guarded;

use bytes::Bytes;
use guarded::{SECOND, SLACK, all_gone, app};
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
    clients::{RawClient, until},
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

struct Secure {
    addr: SocketAddr,
    guard: ConnGuard,
    journal: Journal,
    client: ClientConfig,
    /// Dropped, it says so, too.
    stop: oneshot::Sender<()>,
    served: JoinHandle<std::io::Result<Drained>>,
}

const DRAIN: Duration = Duration::from_secs(1);

impl Secure {
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
            .first_request(SECOND)
            .idle(2 * SECOND)
            .write_stall(2 * SECOND);
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

    async fn connect(&self, offered: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        self.shake(TcpStream::connect(self.addr).await?, offered)
            .await
    }

    async fn shake(
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

async fn ask_http1(stream: TlsStream<TcpStream>) -> Bytes {
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get("/")
        .header("host", "x")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let answer = client.send_request(request).await.unwrap();
    answer.into_body().collect().await.unwrap().to_bytes()
}

async fn ask_http2(stream: TlsStream<TcpStream>) -> Version {
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://localhost/")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let answer = client.send_request(request).await.unwrap();
    let version = answer.version();
    answer.into_body().collect().await.unwrap();
    version
}

#[tokio::test]
async fn what_is_spoken_is_agreed_or_looked_at() {
    let server = Secure::serve(Http::default(), 10).await;
    assert_eq!(
        ask_http1(server.connect(&["http/1.1"]).await.unwrap()).await,
        "served"
    );
    assert_eq!(
        ask_http1(server.connect(&[]).await.unwrap()).await,
        "served"
    );
    assert_eq!(
        ask_http2(server.connect(&[]).await.unwrap()).await,
        Version::HTTP_2
    );
    let both = server.connect(&["http/1.1", "h2"]).await.unwrap();
    assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(ask_http2(both).await, Version::HTTP_2);
    all_gone(&server.guard).await;

    let server = Secure::serve(Http::builder().http1_only().build().unwrap(), 10).await;
    assert!(server.connect(&["h2"]).await.is_err(), "nothing in common");
    assert_eq!(
        ask_http1(server.connect(&["h2", "http/1.1"]).await.unwrap()).await,
        "served"
    );
    all_gone(&server.guard).await;
}

#[tokio::test]
async fn a_handshake_has_the_first_request_s_time_and_so_has_what_comes_after_it() {
    let server = Secure::serve(Http::default(), 10).await;
    let mut silent = RawClient::connect(server.addr).await.unwrap();
    let mut half = RawClient::connect(server.addr).await.unwrap();
    // A record that is longer than what comes of it.
    half.send([0x16, 3, 1, 1, 0, 1]).await.unwrap();
    let shaken = server.connect(&["http/1.1"]).await.unwrap();
    let started = Instant::now();
    for client in [&mut silent, &mut half] {
        let (bytes, is_reset, _) = guarded::cut(client).await;
        assert!(bytes.is_empty() && is_reset, "{bytes:?}");
    }
    let took = started.elapsed();
    assert!(took < SECOND + SLACK, "{took:?}");
    until("the third is gone too", || {
        server.journal.closed().len() == 3
    })
    .await;
    assert_eq!(server.journal.closed(), [Some(Reason::FirstRequest); 3]);
    drop(shaken);
    all_gone(&server.guard).await;
}

#[tokio::test]
async fn what_is_not_tls_is_turned_away_and_leaves_nothing() {
    let server = Secure::serve(Http::default(), 10).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send(guarded::GET).await.unwrap();
    let answer = client.rest().await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    all_gone(&server.guard).await;
}

#[tokio::test]
async fn what_the_server_answers_by_itself_is_told_over_tls_too() {
    let server = Secure::serve(Http::default(), 10).await;
    let mut client = server.connect(&["http/1.1"]).await.unwrap();
    client.write_all(b"GET /x HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    let told = [(Guard::Connection, Reason::BadRequest)];
    until("it is told", || server.journal.refused() == told).await;
    drop(client);
    all_gone(&server.guard).await;
}

#[tokio::test]
async fn half_handshakes_give_way_to_whoever_goes_on() {
    let server = Secure::serve(Http::default(), 4).await;
    let mut halves = Vec::new();
    for _ in 0..20 {
        halves.push(TcpStream::connect(server.addr).await.unwrap());
    }
    until("all but four are gone", || {
        server.guard.snapshot().open <= 4
    })
    .await;
    assert_eq!(
        ask_http1(server.connect(&["http/1.1"]).await.unwrap()).await,
        "served"
    );
    let evicted = server
        .journal
        .closed()
        .iter()
        .filter(|why| **why == Some(Reason::HandshakesFull))
        .count();
    assert_eq!(evicted, 17);
    drop(halves);
    all_gone(&server.guard).await;
}

#[tokio::test]
async fn a_slow_client_outlives_a_silent_flood_from_several_addresses() {
    let server = Secure::serve(Http::default(), 8).await;
    let from = |network, host| Ipv4Addr::new(127, 0, network, host);
    let slow = RawClient::connect_from(from(3, 1), server.addr)
        .await
        .unwrap();
    let mut flood = Vec::new();
    for nth in 0..60 {
        let from = from(1 + nth % 2, 1 + nth % 3);
        flood.push(RawClient::connect_from(from, server.addr).await.unwrap());
    }
    let ended = || server.journal.closed();
    until("all but eight are gone", || ended().len() == 53).await;
    assert!(
        ended()
            .iter()
            .all(|why| *why == Some(Reason::HandshakesFull)),
        "{:?}",
        ended()
    );
    let slow = server.shake(slow.stream, &["http/1.1"]).await.unwrap();
    assert_eq!(ask_http1(slow).await, "served");
    drop(flood);
    all_gone(&server.guard).await;
}

#[tokio::test]
async fn a_shutdown_waits_for_no_handshake_and_no_client_that_does_not_read() {
    let server = Secure::serve(Http::default(), 10).await;
    let silent = RawClient::connect(server.addr).await.unwrap();
    let mut half = RawClient::connect(server.addr).await.unwrap();
    half.send([0x16, 3, 1, 1, 0, 1]).await.unwrap();
    let shaken = server.connect(&[]).await.unwrap();
    let mut asking = Vec::new();
    for path in ["/endless", "/hang"] {
        let mut client = server.connect(&["http/1.1"]).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        asking.push(client);
    }
    until("they are at work", || {
        server.guard.snapshot().in_flight == 2
    })
    .await;
    let started = Instant::now();
    server.stop.send(()).unwrap();
    let drained = server.served.await.unwrap().unwrap();
    let took = started.elapsed();
    assert!(took >= DRAIN && took < DRAIN + SLACK, "{took:?}");
    assert_eq!(drained.cut, 2);
    all_gone(&server.guard).await;
    drop((silent, half, shaken, asking));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_upload_sees_its_answer_and_who_reads_nothing_is_reset() {
    let server = Secure::serve(Http::default(), 10).await;
    let mut owed = 0;
    for _ in 0..20 {
        let mut client = server.connect(&["http/1.1"]).await.unwrap();
        let head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n";
        client.write_all(head).await.unwrap();
        // Looks at nothing before all is written.
        let started = Instant::now();
        let is_written = client.write_all(&vec![b'x'; 10_000_000]).await.is_ok();
        // It lingers for a second; who needs longer is owed nothing.
        if started.elapsed() < SECOND {
            owed += 1;
            let mut answer = [0; 12];
            client.read_exact(&mut answer).await.unwrap();
            assert!(is_written && &answer == b"HTTP/1.1 405");
        }
    }
    assert!(owed >= 10, "{owed} of 20 were quick enough to tell");
    let mut client = server.connect(&["http/1.1"]).await.unwrap();
    client
        .write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let stalled = || server.journal.closed().contains(&Some(Reason::WriteStall));
    until("it is reset", stalled).await;
    drop(client);
    all_gone(&server.guard).await;
}
