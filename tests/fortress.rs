//! The `fortress` example in its own process: all routes on one port, the requests that it must
//! serve and those that it must refuse, and its shutdown.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full};
use palisade_testkit::{
    bodies::{Pieces, gzip, zero_bomb},
    clients::{self, RawClient},
    demo::{Piece, echo_client::EchoClient},
    h2, process,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

#[allow(dead_code, reason = "its `main` is not called")]
#[path = "../examples/fortress.rs"]
mod fortress;

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// The environment variable that makes [`serve`] run the server.
const SERVER_VARIABLE: &str = "PALISADE_TEST_SERVES";

/// Runs the server in the process that [`Fortress::start`] starts, and does nothing in the test
/// run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve() {
    if std::env::var_os(SERVER_VARIABLE).is_some() {
        fortress::run((LOCALHOST, 0).into()).await.unwrap();
    }
}

/// The server's process. Dropping this kills it.
struct Fortress {
    child: Child,
    addr: SocketAddr,
}

impl Fortress {
    async fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["serve", "--exact", "--nocapture"])
            .env(SERVER_VARIABLE, "1")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addr = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, addr)) = line.split_once("listening on http://") {
                    return addr.parse().unwrap();
                }
            }
            panic!("the server has exited");
        };
        let addr = timeout(clients::PATIENCE, addr).await.unwrap();
        // Read the rest of the output, so that it does not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, addr }
    }

    async fn get(&self, path: &str) -> http::Response<Bytes> {
        clients::get(LOCALHOST, self.addr, path).await.unwrap()
    }

    async fn post(&self, body: Bytes) -> http::Response<Bytes> {
        self.post_encoded("identity", body).await
    }

    async fn post_encoded(&self, coding: &str, body: Bytes) -> http::Response<Bytes> {
        let mut sender = clients::http1::<Full<Bytes>>(LOCALHOST, self.addr)
            .await
            .unwrap();
        let request = Request::post("/echo-len")
            .header("host", "test")
            .header("content-encoding", coding)
            .body(body.into())
            .unwrap();
        clients::whole(sender.send_request(request).await.unwrap())
            .await
            .unwrap()
    }

    #[cfg(unix)]
    fn terminate(&self) {
        process::terminate(self.child.id().unwrap()).unwrap();
    }

    async fn wait(&mut self) -> ExitStatus {
        timeout(Duration::from_secs(10), self.child.wait())
            .await
            .unwrap()
            .unwrap()
    }
}

#[tokio::test]
async fn every_route_answers_on_http1() {
    let fortress = Fortress::start().await;
    assert_eq!(fortress.get("/").await.body(), "hello\n");
    assert_eq!(
        fortress.get("/nowhere").await.status(),
        StatusCode::NOT_FOUND
    );

    let big = fortress.get("/big").await;
    assert_eq!(big.headers()["content-length"], "67108864");
    assert_eq!(big.body().len(), 64 << 20);

    assert_eq!(fortress.post(Bytes::new()).await.body(), "0");
    assert_eq!(
        fortress.post(vec![0; 64 << 10].into()).await.body(),
        "65536"
    );

    let sent = Instant::now();
    assert_eq!(fortress.get("/slow?ms=300").await.status(), StatusCode::OK);
    assert!(sent.elapsed() >= Duration::from_millis(300));
    assert_eq!(
        fortress.get("/slow?ms=30001").await.status(),
        StatusCode::BAD_REQUEST
    );

    let metrics = fortress.get("/metrics").await;
    assert!(
        metrics.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain")
    );
    let text = String::from_utf8(metrics.body().to_vec()).unwrap();
    assert!(
        text.contains("palisade_concurrency_limit{guard=\"concurrency_limit\"} 1200"),
        "{text}"
    );
    // Nothing has been refused so far.
    let refused = text
        .lines()
        .filter(|line| line.starts_with("palisade_requests_refused_total{"));
    assert!(refused.clone().count() > 0);
    assert!(
        refused.into_iter().all(|line| line.ends_with(" 0")),
        "{text}"
    );
}

#[tokio::test]
async fn http2_by_prior_knowledge_is_served_on_the_same_port() {
    let fortress = Fortress::start().await;
    let mut sender = clients::http2::<Full<Bytes>>(LOCALHOST, fortress.addr)
        .await
        .unwrap();
    let request = Request::post(format!("http://{}/echo-len", fortress.addr));
    let request = request.body(Full::from("twelve bytes")).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    assert_eq!(clients::whole(response).await.unwrap().body(), "12");
}

#[tokio::test]
async fn grpc_is_served_on_the_same_port() {
    let fortress = Fortress::start().await;
    let mut client = EchoClient::connect(format!("http://{}", fortress.addr))
        .await
        .unwrap();
    let piece = |length| Piece {
        data: vec![0; length].into(),
    };
    assert_eq!(
        client.unary(piece(1000)).await.unwrap().get_ref().bytes,
        1000
    );

    // A client stream that is silent for three seconds between messages.
    let (sender, pieces) = tokio::sync::mpsc::channel(1);
    let pieces = tokio_stream::wrappers::ReceiverStream::new(pieces);
    let collected = tokio::spawn(async move { client.collect(pieces).await });
    for _ in 0..2 {
        sender.send(piece(7)).await.unwrap();
        sleep(Duration::from_secs(3)).await;
    }
    drop(sender);
    assert_eq!(collected.await.unwrap().unwrap().get_ref().bytes, 14);
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() {
    let fortress = Fortress::start().await;
    let mut sender = clients::http1::<Empty<Bytes>>(LOCALHOST, fortress.addr)
        .await
        .unwrap();
    let request = Request::get("/events?ms=100")
        .header("host", "test")
        .body(Empty::new())
        .unwrap();
    let mut response = sender.send_request(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    for count in 0..5 {
        let frame = timeout(clients::PATIENCE, response.frame())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("data: {count}\n\n"));
    }
}

#[tokio::test]
async fn a_web_socket_echoes_every_message_also_after_a_pause() {
    let fortress = Fortress::start().await;
    let mut client = RawClient::connect(fortress.addr).await.unwrap();
    let handshake = "GET /ws HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-version: 13\r\n\
        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    client.send(handshake).await.unwrap();
    let head = client.head().await.unwrap();
    assert_eq!(head.status, StatusCode::SWITCHING_PROTOCOLS);
    // The accept value for the sample key of RFC 6455 section 1.3.
    assert_eq!(
        head.header("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    for quiet_seconds in [8, 0] {
        // A text message of five bytes with an all-zero mask. The echo has no mask.
        client.send(b"\x81\x85\0\0\0\0hello").await.unwrap();
        let mut echo = [0; 7];
        let read = client.stream.read_exact(&mut echo);
        timeout(clients::PATIENCE, read).await.unwrap().unwrap();
        assert_eq!(&echo, b"\x81\x05hello");
        // Longer than any other connection may be idle.
        sleep(Duration::from_secs(quiet_seconds)).await;
    }
}

#[tokio::test]
async fn a_body_of_the_maximum_length_is_served_and_one_byte_more_is_refused() {
    let fortress = Fortress::start().await;
    let most = fortress.post(vec![0; 1 << 20].into()).await;
    assert_eq!(most.body(), "1048576");
    let refused = fortress.post(vec![0; (1 << 20) + 1].into()).await;
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);

    // The same without a declared length.
    let mut sender = clients::http1::<Pieces>(LOCALHOST, fortress.addr)
        .await
        .unwrap();
    let pieces = Pieces::new(1025, 1024);
    let request = Request::post("/echo-len")
        .header("host", "test")
        .body(pieces)
        .unwrap();
    let refused = sender.send_request(request).await.unwrap();
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn uploads_in_gzip_are_served_and_bombs_are_refused() {
    let fortress = Fortress::start().await;
    let most = gzip(&vec![0; 1 << 20]);
    assert_eq!(fortress.post_encoded("gzip", most).await.body(), "1048576");
    let bomb = fortress.post_encoded("gzip", zero_bomb(512)).await;
    assert_eq!(bomb.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let other = fortress.post_encoded("br", Bytes::new()).await;
    assert_eq!(other.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn a_slow_upload_is_served_and_an_upload_below_the_minimum_rate_is_refused() {
    let fortress = Fortress::start().await;
    let mut dripping = RawClient::connect(fortress.addr).await.unwrap();
    let head = "POST /echo-len HTTP/1.1\r\nhost: test\r\ncontent-length: 60\r\n\r\n";
    dripping.send(head).await.unwrap();
    let drip = async {
        let started = Instant::now();
        loop {
            let response = timeout(Duration::from_millis(500), dripping.head()).await;
            if let Ok(response) = response {
                return (response.unwrap().status, started.elapsed());
            }
            dripping.send("x").await.unwrap();
        }
    };
    // 160 KiB at 16 KiB/s.
    let slow = async {
        let mut sender = clients::http1::<Pieces>(LOCALHOST, fortress.addr)
            .await
            .unwrap();
        let pieces = Pieces::new(40, 4096)
            .declared()
            .every(Duration::from_millis(250));
        let request = Request::post("/echo-len")
            .header("host", "test")
            .body(pieces)
            .unwrap();
        clients::whole(sender.send_request(request).await.unwrap())
            .await
            .unwrap()
    };
    let ((status, after), slow) = tokio::join!(drip, slow);
    assert_eq!(slow.body(), "163840");
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
    assert!(after < Duration::from_secs(8), "after {after:?}");
}

/// Sends `bytes` and reads nothing. Returns the time until the server has closed the connection or
/// reset its stream.
async fn time_to_close_unread(
    addr: SocketAddr,
    what: &'static str,
    bytes: Vec<u8>,
) -> (&'static str, Duration) {
    let mut client = RawClient::connect(addr).await.unwrap();
    client.send(bytes).await.unwrap();
    let sent = Instant::now();
    // A FIN is hidden behind the unread bytes. A reset of the connection is a socket error, a reset
    // of the stream is the last of the unread bytes.
    let has_failed = || client.stream.take_error().unwrap().is_some();
    while !has_failed() && sent.elapsed() < clients::PATIENCE {
        sleep(Duration::from_millis(50)).await;
        let mut seen = vec![0; 1 << 20];
        let length = client.stream.peek(&mut seen).await.unwrap_or(0);
        if length == 0 || seen[..length].ends_with(RST_STREAM_CANCEL) {
            break;
        }
    }
    (what, sent.elapsed())
}

/// The last bytes that an HTTP/2 client receives when its stream is reset: `RST_STREAM` with
/// CANCEL.
const RST_STREAM_CANCEL: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];

/// Sends `bytes` and reads until the server closes the connection. Returns the time that takes.
async fn time_to_close(
    addr: SocketAddr,
    what: &'static str,
    bytes: Vec<u8>,
) -> (&'static str, Duration) {
    let mut client = RawClient::connect(addr).await.unwrap();
    client.send(bytes).await.unwrap();
    let sent = Instant::now();
    client.rest().await;
    (what, sent.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn useless_connections_are_closed_within_8_seconds_and_useful_ones_are_kept() {
    let fortress = Fortress::start().await;
    let addr = fortress.addr;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").into_bytes();
    let post = |rest: &str| format!("POST /echo-len HTTP/1.1\r\nhost: test\r\n{rest}").into_bytes();
    let mut useless = JoinSet::new();
    useless.spawn(time_to_close(addr, "silent", vec![]));
    useless.spawn(time_to_close(
        addr,
        "half a head",
        b"GET / HTTP/1.1\r\nho".to_vec(),
    ));
    useless.spawn(time_to_close(
        addr,
        "half a preface",
        h2::PREFACE[..10].to_vec(),
    ));
    useless.spawn(time_to_close(addr, "keep-alive", get("/")));
    useless.spawn(time_to_close(
        addr,
        "keep-alive and half a head",
        [get("/"), b"GET".to_vec()].concat(),
    ));
    let pipelined = [get("/"), post("content-length: 5\r\n\r\nhello")].concat();
    useless.spawn(time_to_close(
        addr,
        "keep-alive after a pipelined body",
        pipelined,
    ));
    let idle = [h2::hello(65_535), h2::get(1, "/")].concat();
    useless.spawn(time_to_close(addr, "keep-alive of HTTP/2", idle));
    useless.spawn(time_to_close(
        addr,
        "half an upload",
        post("content-length: 1000\r\n\r\nhalf"),
    ));
    let chunked = post("transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    useless.spawn(time_to_close(addr, "half an upload in chunks", chunked));
    useless.spawn(time_to_close_unread(addr, "nothing read", get("/big")));
    useless.spawn(time_to_close_unread(
        addr,
        "nothing read of 20 responses",
        get("/big").repeat(20),
    ));
    let closed_window = [h2::hello(0), h2::get(1, "/big")].concat();
    useless.spawn(time_to_close_unread(addr, "a closed window", closed_window));
    let one_byte = [h2::hello(1), h2::get(1, "/big")].concat();
    useless.spawn(time_to_close_unread(addr, "a window of one byte", one_byte));

    // Honest clients beside them, from another address.
    let honest = Ipv4Addr::new(127, 0, 0, 2);
    let events = tokio::spawn(async move {
        let mut client = RawClient::connect_from(honest, addr).await.unwrap();
        client
            .send("GET /events?ms=2000 HTTP/1.1\r\nhost: test\r\n\r\n")
            .await
            .unwrap();
        client.head().await.unwrap();
        let (started, mut last) = (Instant::now(), Instant::now());
        while started.elapsed() < Duration::from_secs(11) {
            client.body(5).await.unwrap();
            last = Instant::now();
        }
        last - started
    });
    let browser = tokio::spawn(async move {
        let mut client = RawClient::connect_from(honest, addr).await.unwrap();
        for _ in 0..3 {
            client
                .send("GET / HTTP/1.1\r\nhost: test\r\n\r\n")
                .await
                .unwrap();
            assert_eq!(client.head().await.unwrap().status, StatusCode::OK);
            client.body(6).await.unwrap();
            sleep(Duration::from_secs(5)).await;
        }
    });
    let reader = tokio::spawn(async move {
        let mut client = RawClient::connect_from(honest, addr).await.unwrap();
        client
            .send("GET /big HTTP/1.1\r\nhost: test\r\n\r\n")
            .await
            .unwrap();
        client.head().await.unwrap();
        // 64 KiB/s.
        for _ in 0..48 {
            client.body(16 * 1024).await.unwrap();
            sleep(Duration::from_millis(250)).await;
        }
    });
    while let Some(closed) = useless.join_next().await {
        let (what, after) = closed.unwrap();
        assert!(after < Duration::from_secs(9), "{what}: {after:?}");
    }
    assert!(events.await.unwrap() > Duration::from_secs(10));
    browser.await.unwrap();
    reader.await.unwrap();
}

#[tokio::test]
async fn metrics_are_served_to_an_address_that_is_otherwise_refused() {
    let fortress = Fortress::start().await;
    let mut slow = JoinSet::new();
    let addr = fortress.addr;
    for connection in 0..5 {
        let sender = clients::http2::<Empty<Bytes>>(LOCALHOST, addr)
            .await
            .unwrap();
        for _ in 0..80 {
            let mut sender = sender.clone();
            slow.spawn(async move {
                let request = Request::get(format!("http://{addr}/slow?ms=5000"));
                let response = sender
                    .send_request(request.body(Empty::new()).unwrap())
                    .await;
                response.unwrap().status()
            });
        }
        // 400 requests in four seconds are within the rate; 300 of them may be in flight at once.
        if connection < 4 {
            sleep(Duration::from_millis(800)).await;
        }
    }
    assert_eq!(
        fortress.get("/").await.status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(fortress.get("/metrics").await.status(), StatusCode::OK);
    // Other clients are not affected.
    let other = clients::get(Ipv4Addr::new(127, 0, 0, 2), addr, "/")
        .await
        .unwrap();
    assert_eq!(other.status(), StatusCode::OK);
    let statuses = slow.join_all().await;
    let served = statuses
        .iter()
        .filter(|status| **status == StatusCode::OK)
        .count();
    assert_eq!(served, 300);
}

#[tokio::test]
#[cfg(unix)]
async fn sigterm_ends_the_server_at_once_when_no_request_is_at_work() {
    let mut fortress = Fortress::start().await;
    fortress.get("/").await;
    let _idle = RawClient::connect(fortress.addr).await.unwrap();
    let mut events = RawClient::connect(fortress.addr).await.unwrap();
    events
        .send("GET /events HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(events.head().await.unwrap().status, StatusCode::OK);

    let terminated = Instant::now();
    fortress.terminate();
    assert!(fortress.wait().await.success());
    assert!(
        terminated.elapsed() < Duration::from_secs(4),
        "after {:?}",
        terminated.elapsed()
    );
    // The event stream has ended properly, whatever the number of events.
    let rest = String::from_utf8(events.rest().await).unwrap();
    assert!(
        rest == "0\r\n\r\n" || rest.ends_with("\r\n0\r\n\r\n"),
        "{rest}"
    );
}

#[tokio::test]
#[cfg(unix)]
async fn sigterm_finishes_requests_and_ends_the_server_despite_stalled_clients() {
    let mut fortress = Fortress::start().await;
    let addr = fortress.addr;
    // A client that never reads, one with a handler that takes 30 s, one that never ends its head.
    let mut stalled = RawClient::connect(addr).await.unwrap();
    stalled
        .send("GET /big HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    let mut slow = RawClient::connect(addr).await.unwrap();
    slow.send("GET /slow?ms=30000 HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    let mut half = RawClient::connect(addr).await.unwrap();
    half.send("GET / HTTP/1.1\r\nhost:").await.unwrap();
    let honest = tokio::spawn(async move { clients::get(LOCALHOST, addr, "/slow?ms=2000").await });
    sleep(Duration::from_millis(500)).await;

    fortress.terminate();
    assert_eq!(honest.await.unwrap().unwrap().status(), StatusCode::OK);
    assert!(fortress.wait().await.success());
}
