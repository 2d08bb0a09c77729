//! Responses that `palisade::serve` sends by itself are recorded in the metrics and the log, in
//! every mode of its guard.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use palisade::{
    Snapshot,
    conn::{ConnGuard, Mode, Reason},
    serve::{Http, RequestBody},
};
use palisade_core::{Guard, Phase};
use palisade_metrics::Log;
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{GET, all_gone},
    h2,
    servers::{self, Server},
};
use std::{
    convert::Infallible,
    future::{IntoFuture, Ready, ready},
    io,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tower::{Service, service_fn};
use tracing_subscriber::{fmt::MakeWriter, util::SubscriberInitExt};

/// A log writer into memory.
#[derive(Clone, Debug, Default)]
struct MemoryLog(Arc<Mutex<Vec<u8>>>);

impl io::Write for MemoryLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for MemoryLog {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// An app that fails in `poll_ready`.
#[derive(Clone)]
struct BrokenApp;

impl Service<Request<RequestBody>> for BrokenApp {
    type Response = Response<Full<Bytes>>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Err(io::Error::other("broken")))
    }

    fn call(&mut self, _: Request<RequestBody>) -> Self::Future {
        ready(Err(io::Error::other("called although it was not ready")))
    }
}

/// An app: `/` is served, `/fail` fails, `/hints` responds with an informational status, which no
/// final response may have.
async fn app(request: Request<RequestBody>) -> Result<Response<Full<Bytes>>, io::Error> {
    let status = match request.uri().path() {
        "/fail" => return Err(io::Error::other("failed")),
        "/hints" => 103,
        _ => 200,
    };
    Ok(Response::builder()
        .status(status)
        .body(Full::from("served"))
        .unwrap())
}

/// Serves [`app`], or [`BrokenApp`], behind a guard in `mode`.
async fn serve(mode: Mode, http: Http, is_broken: bool) -> (Server, ConnGuard, Journal) {
    let journal = Journal::default();
    let guard = ConnGuard::builder()
        .mode(mode)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let listener = guard.listen(servers::listener().await);
    let addr = listener.local_addr().unwrap();
    let task = if is_broken {
        tokio::spawn(
            palisade::serve(listener, BrokenApp)
                .http(http)
                .into_future(),
        )
    } else {
        tokio::spawn(
            palisade::serve(listener, service_fn(app))
                .http(http)
                .into_future(),
        )
    };
    (
        Server::new(addr, tokio::spawn(async { task.await.unwrap().unwrap() })),
        guard,
        journal,
    )
}

/// Waits until `journal` has one refusal more than `before`, and returns it.
async fn next_refusal(journal: &Journal, before: usize, what: &str) -> (Reason, Phase, Mode) {
    wait_until(what, || journal.refusals().len() > before).await;
    let refusals = journal.refusals();
    assert_eq!(refusals.len(), before + 1, "{what}: {refusals:?}");
    let (violation, mode) = refusals[before];
    assert_eq!(violation.guard, Guard::Connection, "{what}");
    (violation.reason, violation.phase, mode)
}

#[tokio::test]
async fn each_response_of_the_server_itself_is_recorded_in_every_mode() {
    let (head, handler) = (Phase::RequestHead, Phase::Handler);
    let field = |bytes| {
        format!(
            "GET / HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n",
            "b".repeat(bytes)
        )
    };
    let fields: String = (0..101).map(|nth| format!("f{nth}: x\r\n")).collect();
    let coded = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
    let connect = "CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n";
    let cases = [
        // A health check of HAProxy without a configured host.
        (
            "GET /x HTTP/1.1\r\n\r\n".to_owned(),
            400,
            Reason::BadRequest,
            head,
        ),
        (
            GET.replace("host:", "host: x\r\nhost:"),
            400,
            Reason::BadRequest,
            head,
        ),
        (
            GET.replace(" test", " [fe80::1%eth0]:80"),
            400,
            Reason::BadRequest,
            head,
        ),
        (coded.to_owned(), 400, Reason::BadRequest, head),
        (connect.to_owned(), 501, Reason::ConnectRefused, head),
        (
            "no such thing\r\n\r\n".to_owned(),
            400,
            Reason::BadRequest,
            head,
        ),
        (
            GET.replace("\r\n\r\n", "\r\na b\r\n\r\n"),
            400,
            Reason::BadRequest,
            head,
        ),
        (field(33_000), 431, Reason::HeadTooLarge, head),
        (
            format!("GET / HTTP/1.1\r\n{fields}\r\n"),
            431,
            Reason::HeadTooLarge,
            head,
        ),
        (
            GET.replace(" / ", " /fail "),
            500,
            Reason::AppFailed,
            handler,
        ),
        (
            GET.replace(" / ", " /hints "),
            500,
            Reason::AppFailed,
            handler,
        ),
    ];
    let only = Http::builder().http1_only().build().unwrap();
    for mode in [Mode::Enforce, Mode::Shadow, Mode::Off] {
        for http in [Http::default(), only.clone()] {
            let (server, guard, journal) = serve(mode, http, false).await;
            for (nth, (bytes, status, reason, phase)) in cases.iter().enumerate() {
                let what = bytes.get(..40).unwrap_or(bytes);
                let mut client = RawClient::connect(server.addr).await.unwrap();
                client.send(bytes).await.unwrap();
                assert_eq!(client.head().await.unwrap().status, *status, "{what}");
                drop(client);
                let refusal = next_refusal(&journal, nth, what).await;
                assert_eq!(refusal, (*reason, *phase, Mode::Enforce), "{what}");
            }
            // A served request is not recorded, nor is a client that leaves within a head.
            let mut client = RawClient::connect(server.addr).await.unwrap();
            client.send(GET).await.unwrap();
            assert_eq!(client.head().await.unwrap().status, 200);
            client.send("GET / HT").await.unwrap();
            drop(client);
            if mode != Mode::Off {
                all_gone(&guard).await;
            }
            assert_eq!(journal.refusals().len(), cases.len());
        }
        let (server, _, journal) = serve(mode, Http::default(), true).await;
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send(GET).await.unwrap();
        assert_eq!(client.head().await.unwrap().status, 500);
        let refusal = next_refusal(&journal, 0, "an app that is not ready").await;
        assert_eq!(refusal, (Reason::AppFailed, handler, Mode::Enforce));
    }
}

#[tokio::test]
async fn on_http2_each_response_of_the_server_itself_is_recorded() {
    let (head, handler) = (Phase::RequestHead, Phase::Handler);
    let pseudo = |method, path| [(":method", method), (":scheme", "http"), (":path", path)];
    let fields = |pseudo: [(&'static str, &'static str); 3], host| [&pseudo[..], &[host]].concat();
    let cases = [
        (
            fields(pseudo("GET", "*"), ("host", "x")),
            400,
            Reason::BadRequest,
            head,
        ),
        (
            fields(pseudo("GET", "/"), ("host", "x y")),
            400,
            Reason::BadRequest,
            head,
        ),
        (
            vec![(":method", "CONNECT"), (":authority", "x")],
            501,
            Reason::ConnectRefused,
            head,
        ),
        (
            fields(pseudo("GET", "/fail"), (":authority", "x")),
            500,
            Reason::AppFailed,
            handler,
        ),
        (
            fields(pseudo("GET", "/hints"), (":authority", "x")),
            500,
            Reason::AppFailed,
            handler,
        ),
    ];
    for mode in [Mode::Enforce, Mode::Shadow, Mode::Off] {
        let (server, _, journal) = serve(mode, Http::default(), false).await;
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send(h2::hello(65_535)).await.unwrap();
        for (nth, (fields, status, reason, phase)) in cases.iter().enumerate() {
            let stream = 1 + 2 * nth as u32;
            client
                .send(h2::headers(stream, h2::END_STREAM, fields))
                .await
                .unwrap();
            let payload = h2::next(&mut client.stream, h2::HEADERS, stream).await;
            let response = h2::Frame {
                kind: h2::HEADERS,
                flags: 0,
                stream,
                payload,
            };
            assert_eq!(response.status(), Some(*status), "{fields:?}");
            let refusal = next_refusal(&journal, nth, "a response").await;
            assert_eq!(refusal, (*reason, *phase, Mode::Enforce), "{fields:?}");
        }
    }
}

#[tokio::test]
async fn an_http2_preface_to_an_http1_server_is_recorded_although_it_gets_no_response() {
    let only = Http::builder().http1_only().build().unwrap();
    let (server, _, journal) = serve(Mode::Enforce, only, false).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send(h2::hello(65_535)).await.unwrap();
    let response = client.rest().await;
    assert!(!response.starts_with(b"HTTP/1.1 2"), "{response:?}");
    let refusal = next_refusal(&journal, 0, "a preface").await;
    assert_eq!(
        refusal,
        (Reason::BadRequest, Phase::RequestHead, Mode::Enforce)
    );
}

#[tokio::test]
async fn a_uri_that_is_too_long_is_recorded_as_a_head_that_is_too_large() {
    let http = Http::builder()
        .max_header_size(128 << 10)
        .max_buffer_size(128 << 10);
    let (server, _, journal) = serve(Mode::Enforce, http.build().unwrap(), false).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send(GET.replace(" / ", &format!(" /{} ", "a".repeat(65_535))))
        .await
        .unwrap();
    assert_eq!(client.head().await.unwrap().status, 414);
    let refusal = next_refusal(&journal, 0, "a URI too long").await;
    assert_eq!(
        refusal,
        (Reason::HeadTooLarge, Phase::RequestHead, Mode::Enforce)
    );
}

#[tokio::test]
async fn a_refusal_appears_in_the_snapshot_in_prometheus_and_in_the_log() {
    // This runtime runs its tasks on this thread, so the thread's subscriber receives their events.
    let log_writer = MemoryLog::default();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(log_writer.clone());
    let _subscribed = subscriber.finish().set_default();
    let snapshot = Snapshot::new();
    let guard = ConnGuard::builder()
        .metrics((snapshot.clone(), Log::new()))
        .build()
        .unwrap();
    let series = "palisade_requests_refused_total{guard=\"connection\",reason=\"bad_request\",\
                  mode=\"enforce\"}";
    assert!(
        snapshot.prometheus().contains(&format!("{series} 0\n")),
        "the series exists from the start"
    );
    let app = service_fn(async |_: Request<RequestBody>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let serve = palisade::serve(guard.listen(servers::listener().await), app);
    let addr = serve.local_addr().unwrap();
    let _server = Server::new(addr, tokio::spawn(async { serve.await.unwrap() }));
    let mut client = RawClient::connect(addr).await.unwrap();
    client.send("GET /x HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 400);
    assert_eq!(snapshot.refused(Guard::Connection, Reason::BadRequest), 1);
    assert!(snapshot.to_string().contains("bad_request"), "{snapshot}");
    assert!(
        snapshot.prometheus().contains(&format!("{series} 1\n")),
        "{}",
        snapshot.prometheus()
    );
    let peer = client.stream.local_addr().unwrap();
    let log = String::from_utf8(log_writer.0.lock().unwrap().clone()).unwrap();
    let line = log
        .lines()
        .find(|line| line.contains("request refused"))
        .expect("the refusal is logged");
    for part in [
        "reason=\"bad_request\"",
        "status=400",
        &format!("peer={peer}"),
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}
