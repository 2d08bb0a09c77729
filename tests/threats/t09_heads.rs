//! T09: heads that are too large, and requests that two readers could interpret differently. Each
//! is refused or has a single interpretation. The cases hide a second request wherever a lenient
//! reader would find one; the app must never see it.

use axum::{
    Extension, Router,
    body::to_bytes,
    extract::{Request, State},
    http::StatusCode,
};
use palisade::{
    conn::{ConnGuard, ConnInfo},
    serve::Http,
};
use palisade_testkit::{
    clients::RawClient,
    guarded::{Neighbour, SECOND, SLACK, ServerKind, all_gone, app, send_and_read_until_closed},
    h2,
    servers::{self, Server},
};
use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};
use tokio::task::JoinSet;

/// The requests that the app received on each connection: method, target and length of the body, or
/// `broken` for a body that did not come to its end.
#[derive(Clone, Default)]
struct RecordedRequests(Arc<Mutex<HashMap<SocketAddr, Vec<String>>>>);

/// The bytes that a client sends and their outcome: the requests that the app sees, then the
/// responses that the client receives.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    by_palisade: &'static str,
    by_others: &'static str,
}

/// A case with the same outcome on all servers.
fn case(name: &'static str, bytes: impl Into<Vec<u8>>, outcome: &'static str) -> Case {
    strict(name, bytes, outcome, outcome)
}

/// A case in which `palisade::serve` is stricter than hyper.
fn strict(
    name: &'static str,
    bytes: impl Into<Vec<u8>>,
    by_palisade: &'static str,
    by_others: &'static str,
) -> Case {
    Case {
        name,
        bytes: bytes.into(),
        by_palisade,
        by_others,
    }
}

async fn record_request(
    State(seen): State<RecordedRequests>,
    Extension(conn): Extension<Arc<ConnInfo>>,
    request: Request,
) -> StatusCode {
    let peer = conn.peer();
    let asked = format!("{} {}", request.method(), request.uri());
    let is_ignored = request.uri().path() == "/ignore";
    let at = {
        let mut seen = seen.0.lock().unwrap();
        let requests = seen.entry(peer).or_default();
        requests.push(asked);
        requests.len() - 1
    };
    if is_ignored {
        return StatusCode::OK;
    }
    let body = to_bytes(request.into_body(), 1 << 20).await;
    let (end, status) = match body {
        Ok(bytes) => (bytes.len().to_string(), StatusCode::OK),
        Err(_) => ("broken".to_owned(), StatusCode::BAD_REQUEST),
    };
    let mut seen = seen.0.lock().unwrap();
    seen.get_mut(&peer).unwrap()[at].extend([" ", &end]);
    status
}

/// Sends every case to each server, each on its own connection and from its own address, all at
/// once. `summarize` describes the bytes that a client received.
async fn run_cases(cases: fn() -> Vec<Case>, summarize: fn(&[u8]) -> String) {
    for server in ServerKind::ALL {
        let is_ours = server == ServerKind::Serve;
        let seen = RecordedRequests::default();
        let builder = ConnGuard::builder()
            .first_request_timeout(SECOND)
            .header_timeout(SECOND)
            .idle_timeout(SECOND);
        let guard = builder.upgraded_idle_timeout(SECOND).build().unwrap();
        let app = Router::new()
            .fallback(record_request)
            .with_state(seen.clone());
        let served = server.serve(&guard, app).await;
        let addr = served.addr;
        let neighbour = Neighbour::start(addr);
        let mut clients = JoinSet::new();
        for (
            Case {
                name,
                bytes,
                by_palisade,
                by_others,
            },
            n,
        ) in cases().into_iter().zip(0..)
        {
            let (seen, from) = (seen.clone(), Ipv4Addr::new(127, 0, 1, n));
            let expected = if is_ours { by_palisade } else { by_others };
            clients.spawn(async move {
                let client = RawClient::connect_from(from, addr).await.unwrap();
                let peer = client.stream.local_addr().unwrap();
                let (answer, after) = send_and_read_until_closed(client, bytes).await;
                let seen = seen
                    .0
                    .lock()
                    .unwrap()
                    .remove(&peer)
                    .unwrap_or_default()
                    .join(", ");
                let outcome = format!("{seen} -> {}", summarize(&answer));
                assert!(after < SECOND + SLACK, "{name}, {server}: {after:?}");
                assert!(!outcome.contains("smuggled"), "{name}, {server}: {outcome}");
                // Where two tasks race, the app may or may not have seen the request.
                match expected.strip_prefix('?') {
                    Some(summary) => {
                        assert!(outcome.ends_with(summary), "{name}, {server}: {outcome}");
                    }
                    None => assert_eq!(outcome, expected, "{name}, {server}"),
                }
            });
        }
        clients.join_all().await;
        neighbour.was_served().await;
        all_gone(&guard).await;
    }
}

/// Returns the status codes in the responses of an HTTP/1 connection.
fn http1_statuses(answer: &[u8]) -> String {
    let answer = String::from_utf8_lossy(answer);
    let heads = answer.lines().filter(|line| line.starts_with("HTTP/1."));
    let statuses: Vec<_> = heads.map(|head| &head["HTTP/1.1 ".len()..][..3]).collect();
    statuses.join(" ")
}

/// Returns the status codes, resets and GOAWAY codes in the frames of an HTTP/2 connection.
fn http2_outcomes(answer: &[u8]) -> String {
    let end = |frame: &h2::Frame| match frame.kind {
        h2::HEADERS => Some(
            frame
                .status()
                .map_or("?".to_owned(), |status| status.to_string()),
        ),
        h2::RST_STREAM => Some(format!("RST {}", frame.code().unwrap())),
        // Sent after the idle timeout.
        h2::GOAWAY if frame.code() == Some(0) => None,
        h2::GOAWAY => Some(format!("GOAWAY {}", frame.code().unwrap())),
        _ => None,
    };
    h2::frames(answer)
        .iter()
        .filter_map(end)
        .collect::<Vec<_>>()
        .join(" ")
}

/// A request in a place where only a lenient reader would find one.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
/// A request that every reader finds.
const NEXT: &str = "GET /next HTTP/1.1\r\nhost: x\r\n\r\n";

/// The server answers 400, and the app sees no request.
const REFUSED: &str = " -> 400";
/// The server resets the stream with `PROTOCOL_ERROR`, and the app sees no request.
const RESET: &str = " -> RST 1";
/// The server closes the connection with `PROTOCOL_ERROR`, and the app sees no request.
const GOAWAY: &str = " -> GOAWAY 1";
/// The app sees a POST with a broken body and answers 400.
const BROKEN_POST: &str = "POST / broken -> 400";
/// The app sees a POST with an empty body and answers 200.
const EMPTY_POST: &str = "POST / 0 -> 200";
/// The app sees a POST with [`HIDDEN`] as its body and answers 200.
const FULL_POST: &str = "POST / 35 -> 200";
/// The app sees a GET over HTTP/2 and answers 200.
const GET_SERVED: &str = "GET http://x/ 0 -> 200";
/// The app sees a POST with five bytes of body over HTTP/2 and answers 200.
const POST_SERVED: &str = "POST http://x/ 5 -> 200";

fn over_http1() -> Vec<Case> {
    let get = |rest: &str| format!("GET / HTTP/1.1\r\nhost: x\r\n{rest}");
    let post = |rest: &str| format!("POST / HTTP/1.1\r\nhost: x\r\n{rest}");
    // A POST with `field` and an empty chunked body, then a hidden request.
    let post_hiding = |field: &str| post(&format!("{field}\r\n\r\n0\r\n\r\n{HIDDEN}"));
    let get_hiding = |field: &str| get(&format!("{field}\r\n\r\n{HIDDEN}"));
    let post_with_length = |value: &str| post(&format!("content-length:{value}\r\n\r\n{HIDDEN}"));
    let post_chunks = |rest: &str| post(&format!("transfer-encoding: chunked\r\n\r\n{rest}"));
    let request_line = |line: &str| format!("{line}\r\nhost: x\r\n\r\n{HIDDEN}");
    // A POST with `field` and an empty chunked body, and nothing hidden.
    let post_empty_chunks = |field: &str| post(&format!("{field}\r\n\r\n0\r\n\r\n"));
    // A chunked POST with a request that is hidden if its chunks are read leniently.
    let chunks_hiding = |rest: &str| post_chunks(&format!("{rest}{HIDDEN}"));
    assert_eq!(HIDDEN.len(), 35);
    vec![
        // Content-Length.
        case("one length", post_with_length(" 35"), FULL_POST),
        case(
            "leading zeros",
            post_with_length(" 00000000000000000000000035"),
            FULL_POST,
        ),
        case(
            "one length twice",
            post_with_length(" 35\r\ncontent-length: 35"),
            FULL_POST,
        ),
        case(
            "two lengths",
            post_with_length(" 0\r\ncontent-length: 35"),
            REFUSED,
        ),
        case(
            "two lengths, the other way",
            post_with_length(" 35\r\ncontent-length: 0"),
            REFUSED,
        ),
        case("a list of one length", post_with_length(" 35, 35"), REFUSED),
        case("a list of two lengths", post_with_length(" 0, 35"), REFUSED),
        case("a plus", post_with_length(" +0"), REFUSED),
        case("a minus", post_with_length(" -0"), REFUSED),
        case("hexadecimal", post_with_length(" 0x0"), REFUSED),
        case("no number", post_with_length(""), REFUSED),
        case("two numbers", post_with_length(" 0 35"), REFUSED),
        case(
            "a number that overflows to 0",
            post_with_length(" 18446744073709551616"),
            REFUSED,
        ),
        case(
            "the largest number",
            post_with_length(" 18446744073709551615"),
            " -> 431",
        ),
        case(
            "a field that is not Content-Length",
            post(&format!("content_length: 35\r\n\r\n{NEXT}")),
            "POST / 0, GET /next 0 -> 200 200",
        ),
        // Content-Length and Transfer-Encoding: the coding applies, and nothing after it is read
        // (RFC 9112 section 6.1).
        case(
            "length, coding",
            post_hiding("content-length: 5\r\ntransfer-encoding: chunked"),
            EMPTY_POST,
        ),
        case(
            "coding, length",
            post_hiding("transfer-encoding: chunked\r\ncontent-length: 40"),
            EMPTY_POST,
        ),
        case(
            "coding, no number",
            post_hiding("transfer-encoding: chunked\r\ncontent-length: x"),
            EMPTY_POST,
        ),
        // Transfer-Encoding.
        case(
            "upper case",
            post_chunks("0\r\n\r\n").replace("chunked", "CHUNKED"),
            EMPTY_POST,
        ),
        case(
            "tabs around",
            post_hiding("transfer-encoding:\tchunked\t").replace(HIDDEN, NEXT),
            "POST / 0, GET /next 0 -> 200 200",
        ),
        strict(
            "coded twice",
            post_empty_chunks("transfer-encoding: gzip, chunked"),
            REFUSED,
            EMPTY_POST,
        ),
        strict(
            "identity, chunked",
            post_empty_chunks("transfer-encoding: identity, chunked"),
            REFUSED,
            EMPTY_POST,
        ),
        strict(
            "a comma first",
            post_empty_chunks("transfer-encoding: ,chunked"),
            REFUSED,
            EMPTY_POST,
        ),
        strict(
            "chunked in chunked",
            post_empty_chunks("transfer-encoding: chunked, chunked"),
            REFUSED,
            EMPTY_POST,
        ),
        strict(
            "two fields",
            post_empty_chunks("transfer-encoding: chunked\r\ntransfer-encoding: chunked"),
            REFUSED,
            EMPTY_POST,
        ),
        strict(
            "two fields, two codings",
            post_empty_chunks("transfer-encoding: x\r\ntransfer-encoding: chunked"),
            REFUSED,
            EMPTY_POST,
        ),
        case(
            "chunked, and then another",
            post_hiding("transfer-encoding: chunked\r\ntransfer-encoding: identity"),
            REFUSED,
        ),
        case(
            "chunked is not last",
            post_hiding("transfer-encoding: chunked, gzip"),
            REFUSED,
        ),
        case(
            "a comma last",
            post_hiding("transfer-encoding: chunked,"),
            REFUSED,
        ),
        case(
            "not chunked",
            post_hiding("transfer-encoding: gzip"),
            REFUSED,
        ),
        case(
            "no coding",
            post_hiding("transfer-encoding: identity"),
            REFUSED,
        ),
        case(
            "an empty coding",
            post_hiding("transfer-encoding:"),
            REFUSED,
        ),
        case(
            "nearly chunked",
            post_hiding("transfer-encoding: xchunked"),
            REFUSED,
        ),
        case(
            "quoted",
            post_hiding("transfer-encoding: \"chunked\""),
            REFUSED,
        ),
        case(
            "with a parameter",
            post_hiding("transfer-encoding: chunked;q=1"),
            REFUSED,
        ),
        case(
            "a vertical tab",
            post_hiding("transfer-encoding:\x0bchunked"),
            REFUSED,
        ),
        case(
            "not ASCII",
            post_hiding("transfer-encoding: chun\u{212a}ed"),
            REFUSED,
        ),
        case(
            "on another line",
            post_hiding("transfer-encoding:\r\n chunked"),
            REFUSED,
        ),
        case(
            "a space before the colon",
            post_hiding("transfer-encoding : chunked"),
            REFUSED,
        ),
        case(
            "HTTP/1.0",
            post_hiding("transfer-encoding: chunked")
                .replace("HTTP/1.1\r\nhost", "HTTP/1.0\r\nhost"),
            REFUSED,
        ),
        // Line ends. A reader may take a bare LF for one (RFC 9112 section 2.2), and these servers
        // do.
        case("bare LF", get("\n").replace("\r\n", "\n"), "GET / 0 -> 200"),
        case(
            "bare LF before a length",
            post(&format!("a: b\ncontent-length: 35\r\n\r\n{HIDDEN}")),
            FULL_POST,
        ),
        case("bare CR in a value", get_hiding("a: b\rc: d"), REFUSED),
        case(
            "bare CR for line ends",
            format!("GET / HTTP/1.1\rhost: x\r\r{HIDDEN}"),
            REFUSED,
        ),
        case("CR CR LF", get_hiding("a: b\r"), REFUSED),
        case("a fold", get_hiding("a: b\r\n c: d"), REFUSED),
        case(
            "a fold first",
            format!("GET / HTTP/1.1\r\n host: x\r\n\r\n{HIDDEN}"),
            REFUSED,
        ),
        case("NUL in a value", get_hiding("a: b\0"), REFUSED),
        case("NUL in a name", get_hiding("a\0: b"), REFUSED),
        case("no colon", get_hiding("abc"), REFUSED),
        case("no name", get_hiding(": abc"), REFUSED),
        case(
            "empty lines before the request",
            format!("\r\n\r\n{}", get("\r\n")),
            "GET / 0 -> 200",
        ),
        case(
            "a space before the request",
            format!(" {}", get_hiding("a: b")),
            REFUSED,
        ),
        // Methods, targets, hosts and versions.
        strict(
            "no host",
            "GET / HTTP/1.1\r\n\r\n",
            REFUSED,
            "GET / 0 -> 200",
        ),
        case(
            "no host, HTTP/1.0",
            "GET / HTTP/1.0\r\n\r\n",
            "GET / 0 -> 200",
        ),
        strict(
            "two hosts",
            get("host: y\r\n\r\n"),
            REFUSED,
            "GET / 0 -> 200",
        ),
        strict(
            "an invalid host",
            "GET / HTTP/1.1\r\nhost: x/@y\r\n\r\n",
            REFUSED,
            "GET / 0 -> 200",
        ),
        case(
            "an IPv6 host",
            "GET / HTTP/1.1\r\nhost: [fe80::1]:80\r\n\r\n",
            "GET / 0 -> 200",
        ),
        strict(
            "an IPv6 host with a zone",
            "GET / HTTP/1.1\r\nhost: [fe80::1%25eth0]:80\r\n\r\n",
            REFUSED,
            "GET / 0 -> 200",
        ),
        strict(
            "an IPv6 host with a zone, as Node.js writes it",
            "GET / HTTP/1.1\r\nhost: [fe80::1%eth0]\r\n\r\n",
            REFUSED,
            "GET / 0 -> 200",
        ),
        strict(
            "a refusal closes the connection",
            format!("GET / HTTP/1.1\r\n\r\n{NEXT}"),
            REFUSED,
            "GET / 0, GET /next 0 -> 200 200",
        ),
        case(
            "a URI",
            get("\r\n").replace(" / ", " http://x/a "),
            "GET http://x/a 0 -> 200",
        ),
        strict(
            "a URI of another host",
            get("\r\n").replace(" / ", " http://y/a "),
            REFUSED,
            "GET http://y/a 0 -> 200",
        ),
        case(
            "an asterisk",
            get("\r\n").replace("GET /", "OPTIONS *"),
            "OPTIONS * 0 -> 200",
        ),
        strict(
            "an asterisk to GET",
            get("\r\n").replace(" / ", " * "),
            REFUSED,
            "GET * 0 -> 200",
        ),
        strict(
            "CONNECT",
            format!("CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n{HIDDEN}"),
            " -> 501",
            "CONNECT x:80 0 -> 200",
        ),
        strict(
            "an authority",
            "GET x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n",
            REFUSED,
            "GET x:80 0 -> 200",
        ),
        case("no slash", request_line("GET a/b HTTP/1.1"), REFUSED),
        case("a space", request_line("GET /a b HTTP/1.1"), REFUSED),
        case("two spaces", request_line("GET  / HTTP/1.1"), REFUSED),
        case("tabs", request_line("GET\t/\tHTTP/1.1"), REFUSED),
        case("NUL", request_line("GET /\0 HTTP/1.1"), REFUSED),
        case("an invalid method", request_line("G@T / HTTP/1.1"), REFUSED),
        case(
            "a lower-case method",
            request_line("get / HTTP/1.1").replace(HIDDEN, ""),
            "get / 0 -> 200",
        ),
        case("HTTP/0.9", format!("GET /\r\n{HIDDEN}"), REFUSED),
        case("HTTP/1.2", request_line("GET / HTTP/1.2"), REFUSED),
        case("HTTP/2.0", request_line("GET / HTTP/2.0"), REFUSED),
        case(
            "nearly HTTP/2",
            format!("PRI * HTTP/2.0\r\n\r\n{HIDDEN}"),
            REFUSED,
        ),
        case("http/1.1", request_line("GET / http/1.1"), REFUSED),
        case(
            "a space at the end",
            request_line("GET / HTTP/1.1 "),
            REFUSED,
        ),
        case(
            "an offer of h2c",
            get(&format!(
                "connection: upgrade\r\nupgrade: h2c\r\n\r\n{NEXT}"
            )),
            "GET / 0, GET /next 0 -> 200 200",
        ),
        // Chunks.
        case(
            "chunks",
            post_chunks(&format!("5\r\nhello\r\n0\r\n\r\n{NEXT}")),
            "POST / 5, GET /next 0 -> 200 200",
        ),
        case(
            "zeros before",
            post_chunks("000000000000000000005\r\nhello\r\n0\r\n\r\n"),
            "POST / 5 -> 200",
        ),
        case(
            "a space after",
            post_chunks("5 \r\nhello\r\n0\r\n\r\n"),
            "POST / 5 -> 200",
        ),
        case(
            "a space before",
            chunks_hiding(" 5\r\nhello\r\n0\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "a plus",
            chunks_hiding("+5\r\nhello\r\n0\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "a minus",
            chunks_hiding("-5\r\nhello\r\n0\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "0x",
            chunks_hiding("0x5\r\nhello\r\n0\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "no size",
            chunks_hiding("\r\nhello\r\n0\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "a size that overflows to 5",
            chunks_hiding("10000000000000005\r\nhello\r\n0\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "LF after the size",
            chunks_hiding("5\nhello\r\n0\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "LF after the data",
            chunks_hiding("5\r\nhello\n0\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "nothing after the data",
            chunks_hiding("5\r\nhello0\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "more data",
            chunks_hiding("5\r\nhello, you\r\n0\r\n\r\n"),
            BROKEN_POST,
        ),
        case("LF after the last", chunks_hiding("0\n\n"), BROKEN_POST),
        case(
            "an extension",
            post_chunks(&format!("5;a=b\r\nhello\r\n0\r\n\r\n{NEXT}")),
            "POST / 5, GET /next 0 -> 200 200",
        ),
        case(
            "LF in an extension",
            chunks_hiding("5;a\nhello\r\n0\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "CR in an extension",
            chunks_hiding("5;a\rb\r\nhello\r\n0\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "a line end in quotes",
            chunks_hiding("5;a=\"\r\nhello\"\r\n0\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "a long extension",
            post_chunks(&format!(
                "5;a={}\r\nhello\r\n0\r\n\r\n{HIDDEN}",
                "x".repeat(17_000)
            )),
            BROKEN_POST,
        ),
        case(
            "trailers",
            post_chunks(&format!("0\r\ncontent-length: 35\r\n\r\n{NEXT}")),
            "POST / 0, GET /next 0 -> 200 200",
        ),
        case(
            "no colon in a trailer",
            chunks_hiding("0\r\na b\r\n\r\n"),
            BROKEN_POST,
        ),
        case(
            "many trailers",
            post_chunks(&format!("0\r\n{}\r\n{HIDDEN}", "a: b\r\n".repeat(101))),
            BROKEN_POST,
        ),
        case(
            "long trailers",
            post_chunks(&format!("0\r\na: {}\r\n\r\n{HIDDEN}", "x".repeat(40_000))),
            BROKEN_POST,
        ),
        // Bodies that are not expected or not read.
        case(
            "a body of a GET",
            get(&format!("content-length: 35\r\n\r\n{HIDDEN}")),
            "GET / 35 -> 200",
        ),
        case(
            "a body that is ignored",
            post_with_length(" 35").replace(" / ", " /ignore "),
            "POST /ignore -> 200",
        ),
        case(
            "chunks that are ignored",
            post_chunks(&format!("23\r\n{HIDDEN}\r\n0\r\n\r\n")).replace(" / ", " /ignore "),
            "POST /ignore -> 200",
        ),
        case(
            "bad chunks that are ignored",
            chunks_hiding("x\r\n").replace(" / ", " /ignore "),
            "POST /ignore -> 200",
        ),
        case(
            "a body that does not wait for 100 Continue",
            post_with_length(" 35\r\nexpect: 100-continue"),
            "POST / 35 -> 100 200",
        ),
        case(
            "a body that does not wait and is ignored",
            post_with_length(" 35\r\nexpect: 100-continue").replace(" / ", " /ignore "),
            "POST /ignore -> 200",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http1_request_has_one_interpretation_or_is_refused() {
    run_cases(over_http1, http1_statuses).await;
}

fn too_large() -> Vec<Case> {
    let get = |rest: &str| format!("GET / HTTP/1.1\r\nhost: x\r\n{rest}\r\n");
    let uri = |length: usize| {
        format!(
            "GET /{} HTTP/1.1\r\nhost: x\r\n\r\n",
            "a".repeat(length - 1)
        )
    };
    let a = |length| "a".repeat(length);
    vec![
        case("100 fields", get(&"a: b\r\n".repeat(99)), "GET / 0 -> 200"),
        case("101 fields", get(&"a: b\r\n".repeat(100)), " -> 431"),
        case("10,000 fields", get(&"a: b\r\n".repeat(10_000)), " -> 431"),
        strict(
            "a value of 33 KB",
            get(&format!("a: {}\r\n", a(33_000))),
            " -> 431",
            "?200",
        ),
        case(
            "a value of 1 MB",
            get(&format!("a: {}\r\n", a(1_000_000))),
            " -> 431",
        ),
        strict(
            "a name of 33 KB",
            get(&format!("{}: b\r\n", a(33_000))),
            " -> 431",
            "?200",
        ),
        case(
            "a name of 70 KB",
            get(&format!("{}: b\r\n", a(70_000))),
            " -> 431",
        ),
        case("a URI of 32,000", uri(32_000), "?200"),
        strict("a URI of 65,534", uri(65_534), " -> 431", "?200"),
        strict("a URI of 65,535", uri(65_535), " -> 431", " -> 414"),
        case("1 MB of empty lines", "\r\n".repeat(1 << 19), " -> 431"),
        case("1 MB of LF", "\n".repeat(1 << 20), " -> 431"),
        case(
            "a head without an end",
            get(&format!("a: {}", a(1 << 20))),
            " -> 431",
        ),
        case("a line without an end", "a".repeat(1 << 20), " -> 431"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_too_large_is_refused_with_431_or_414() {
    run_cases(too_large, http1_statuses).await;
}

/// The cookies of a browser, in one field as over HTTP/1 and in one field each as over HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_fits_one_protocol_fits_the_other() {
    let cookies: Vec<_> = (0..180)
        .map(|n| format!("c{n:03}={}", "v".repeat(50)))
        .collect();
    let large = "v".repeat(31_000);
    let http1 = [cookies.join("; "), large.clone()]
        .map(|line| format!("GET / HTTP/1.1\r\nhost: x\r\ncookie: {line}\r\n\r\n"));
    let crumbs = cookies.iter().map(|cookie| ("cookie", cookie.as_str()));
    let http2 = [crumbs.collect::<Vec<_>>(), vec![("cookie", &large)]];
    for server in [ServerKind::Serve, ServerKind::Tonic] {
        let guard = ConnGuard::default();
        let served = server.serve(&guard, app()).await;
        for (over_http1, over_http2) in http1.iter().zip(&http2) {
            let mut client = RawClient::connect(served.addr).await.unwrap();
            client.send(over_http1).await.unwrap();
            assert_eq!(client.head().await.unwrap().status, 200, "{server}");

            let mut client = RawClient::connect(served.addr).await.unwrap();
            client.send(h2::hello(65_535)).await.unwrap();
            let fields = [&[GET, SCHEME, PATH, AUTHORITY], &over_http2[..]].concat();
            // Requests for longer than two sweeps of the guard, as from a page that loads its
            // images.
            for nth in 0..60 {
                let stream = 2 * nth + 1;
                client
                    .send(h2::headers(stream, h2::END_STREAM, &fields))
                    .await
                    .unwrap();
                let payload = h2::next(&mut client.stream, h2::HEADERS, stream).await;
                let answer = h2::Frame {
                    kind: h2::HEADERS,
                    flags: 0,
                    stream,
                    payload,
                };
                assert_eq!(answer.status(), Some(200), "{server}, request {nth}");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
        all_gone(&guard).await;
    }
}

#[tokio::test]
async fn a_uri_that_is_too_long_is_refused_with_414_when_the_head_limit_is_larger() {
    let http = Http::builder()
        .max_header_size(128 << 10)
        .max_buffer_size(128 << 10);
    let serve = palisade::serve(servers::listener().await, app()).http(http.build().unwrap());
    let addr = serve.local_addr().unwrap();
    let _server = Server::new(addr, tokio::spawn(async move { serve.await.unwrap() }));
    for (length, status) in [(65_534, 404), (65_535, 414)] {
        let mut client = RawClient::connect(addr).await.unwrap();
        let uri = "a".repeat(length - 1);
        client
            .send(format!("GET /{uri} HTTP/1.1\r\nhost: x\r\n\r\n"))
            .await
            .unwrap();
        assert_eq!(client.head().await.unwrap().status, status);
    }
}

const GET: (&str, &str) = (":method", "GET");
const POST: (&str, &str) = (":method", "POST");
const CONNECT: (&str, &str) = (":method", "CONNECT");
const SCHEME: (&str, &str) = (":scheme", "http");
const PATH: (&str, &str) = (":path", "/");
const AUTHORITY: (&str, &str) = (":authority", "x");
const OTHER_PATH: (&str, &str) = (":path", "/smuggled");

fn over_http2() -> Vec<Case> {
    let after_hello = |frames: &[u8]| [&h2::hello(65_535), frames].concat();
    // A request of fields alone.
    let fields_only = |fields: &[_]| after_hello(&h2::headers(1, h2::END_STREAM, fields));
    // A GET with one more field.
    let get_with = |name, value| fields_only(&[GET, SCHEME, PATH, AUTHORITY, (name, value)]);
    let request_for = |method, path, authority| {
        fields_only(&[
            (":method", method),
            SCHEME,
            (":path", path),
            (":authority", authority),
        ])
    };
    // A POST with five bytes of body and more fields.
    let post_with = |fields: &[_]| {
        let fields = [&[POST, SCHEME, PATH, AUTHORITY], fields].concat();
        let data = h2::frame(h2::DATA, h2::END_STREAM, 1, b"hello");
        after_hello(&[h2::headers(1, 0, &fields), data].concat())
    };
    let post_with_length = |value| post_with(&[("content-length", value)]);
    let post_with_trailers = |flags, field| {
        let head = h2::headers(1, 0, &[POST, SCHEME, PATH, AUTHORITY]);
        let data = h2::frame(h2::DATA, 0, 1, b"hello");
        after_hello(&[head, data, h2::headers(1, flags, &[field])].concat())
    };
    // Two requests, one after the other.
    let two_requests = |one, other| {
        let one = h2::headers(one, 0, &[POST, SCHEME, PATH, AUTHORITY]);
        after_hello(
            &[
                one,
                h2::headers(other, h2::END_STREAM, &[GET, SCHEME, OTHER_PATH, AUTHORITY]),
            ]
            .concat(),
        )
    };
    let get_with_fields = |count| {
        let fields = [
            &[GET, SCHEME, PATH, AUTHORITY][..],
            &vec![("a", "b"); count],
        ]
        .concat();
        fields_only(&fields)
    };
    let raw =
        |kind, flags, stream, payload: &[u8]| after_hello(&h2::frame(kind, flags, stream, payload));
    vec![
        // Pseudo-header fields, each once and before all other fields (RFC 9113 section 8.3).
        case(
            "all pseudo-header fields",
            fields_only(&[GET, SCHEME, PATH, AUTHORITY]),
            GET_SERVED,
        ),
        case("no method", fields_only(&[SCHEME, PATH, AUTHORITY]), RESET),
        case("no scheme", fields_only(&[GET, PATH, AUTHORITY]), RESET),
        case("no path", fields_only(&[GET, SCHEME, AUTHORITY]), RESET),
        case(
            "no authority",
            fields_only(&[GET, SCHEME, PATH]),
            "GET / 0 -> 200",
        ),
        case(
            "two methods",
            fields_only(&[GET, POST, SCHEME, PATH, AUTHORITY]),
            RESET,
        ),
        case(
            "two schemes",
            fields_only(&[GET, SCHEME, SCHEME, PATH, AUTHORITY]),
            RESET,
        ),
        case(
            "two paths",
            fields_only(&[GET, SCHEME, PATH, OTHER_PATH, AUTHORITY]),
            RESET,
        ),
        case(
            "two authorities",
            fields_only(&[GET, SCHEME, PATH, AUTHORITY, (":authority", "y")]),
            RESET,
        ),
        case(
            "a pseudo-header field after another field",
            fields_only(&[GET, SCHEME, PATH, ("a", "b"), AUTHORITY]),
            RESET,
        ),
        case(
            "an unknown pseudo-header field",
            get_with(":a", "b"),
            GOAWAY,
        ),
        case(
            "a pseudo-header field of responses",
            get_with(":status", "200"),
            RESET,
        ),
        case(
            "a protocol that is not enabled",
            get_with(":protocol", "websocket"),
            RESET,
        ),
        // The host, at most once.
        case(
            "a host",
            fields_only(&[GET, SCHEME, PATH, ("host", "x")]),
            "GET / 0 -> 200",
        ),
        case("the same host", get_with("host", "x"), GET_SERVED),
        strict("another host", get_with("host", "y"), REFUSED, GET_SERVED),
        strict(
            "two hosts",
            fields_only(&[GET, SCHEME, PATH, ("host", "x"), ("host", "y")]),
            REFUSED,
            "GET / 0 -> 200",
        ),
        strict(
            "a user",
            request_for("GET", "/", "u@x"),
            REFUSED,
            "GET http://u@x/ 0 -> 200",
        ),
        case("a host with a path", request_for("GET", "/", "x/y"), RESET),
        case("an empty host", request_for("GET", "/", ""), RESET),
        case(
            "an IPv6 host",
            request_for("GET", "/", "[fe80::1]:80"),
            "GET http://[fe80::1]:80/ 0 -> 200",
        ),
        strict(
            "an IPv6 host with a zone",
            request_for("GET", "/", "[fe80::1%25eth0]:80"),
            REFUSED,
            "GET http://[fe80::1%25eth0]:80/ 0 -> 200",
        ),
        case(
            "a host of two lines",
            request_for("GET", "/", "x\r\na: b"),
            RESET,
        ),
        // Targets and methods.
        case("an empty path", request_for("GET", "", "x"), RESET),
        case("no slash", request_for("GET", "a", "x"), RESET),
        case("a URI", request_for("GET", "http://y/", "x"), RESET),
        case("a space", request_for("GET", "/a b", "x"), RESET),
        case(
            "a request in it",
            request_for("GET", "/ HTTP/1.1\r\nhost: y\r\n\r\nGET /smuggled", "x"),
            RESET,
        ),
        case(
            "an asterisk",
            request_for("OPTIONS", "*", "x"),
            "OPTIONS http://x* 0 -> 200",
        ),
        strict(
            "an asterisk to GET",
            request_for("GET", "*", "x"),
            REFUSED,
            "GET http://x* 0 -> 200",
        ),
        case(
            "an invalid method",
            request_for("GET /smuggled HTTP/1.1", "/", "x"),
            GOAWAY,
        ),
        case("an empty method", request_for("", "/", "x"), GOAWAY),
        case(
            "a lower-case method",
            request_for("get", "/", "x"),
            "get http://x/ 0 -> 200",
        ),
        case(
            "an invalid scheme",
            fields_only(&[GET, (":scheme", "http://y/?"), PATH, AUTHORITY]),
            RESET,
        ),
        strict(
            "CONNECT",
            fields_only(&[CONNECT, AUTHORITY]),
            " -> 501",
            "CONNECT x 0 -> 200",
        ),
        case(
            "CONNECT to a path",
            fields_only(&[CONNECT, SCHEME, PATH, AUTHORITY]),
            RESET,
        ),
        // Names and values that would mean something else over HTTP/1 (section 8.2).
        case("upper case", get_with("Foo", "b"), GOAWAY),
        case("no name", get_with("", "b"), GOAWAY),
        case("a space in a name", get_with("a b", "c"), GOAWAY),
        case("a colon in a name", get_with("a:b", "c"), GOAWAY),
        case("a line in a value", get_with("a", "b\r\nc: d"), GOAWAY),
        case("LF in a value", get_with("a", "b\nc"), GOAWAY),
        case("NUL in a value", get_with("a", "b\0c"), GOAWAY),
        case("Connection", get_with("connection", "close"), RESET),
        case("Keep-Alive", get_with("keep-alive", "1"), RESET),
        case(
            "Proxy-Connection",
            get_with("proxy-connection", "close"),
            RESET,
        ),
        case("Upgrade", get_with("upgrade", "h2c"), RESET),
        case("TE", get_with("te", "gzip"), RESET),
        case(
            "TE with the one value allowed",
            get_with("te", "trailers"),
            GET_SERVED,
        ),
        case(
            "Transfer-Encoding",
            post_with(&[("transfer-encoding", "chunked")]),
            "?RST 1",
        ),
        // Content-Length (section 8.1.1).
        case("the length", post_with_length("5"), POST_SERVED),
        case(
            "the length twice",
            post_with(&[("content-length", "5"); 2]),
            POST_SERVED,
        ),
        case("more than the body", post_with_length("10"), "?RST 1"),
        case("less than the body", post_with_length("3"), "?RST 1"),
        case("a length of 0", post_with_length("0"), "?RST 1"),
        case(
            "two lengths",
            post_with(&[("content-length", "5"), ("content-length", "6")]),
            RESET,
        ),
        case("a list of lengths", post_with_length("5, 5"), RESET),
        case("a plus", post_with_length("+5"), RESET),
        case(
            "a number too large",
            post_with_length("18446744073709551621"),
            RESET,
        ),
        case(
            "a length and no body",
            fields_only(&[POST, SCHEME, PATH, AUTHORITY, ("content-length", "5")]),
            RESET,
        ),
        case(
            "trailers",
            post_with_trailers(h2::END_STREAM, ("a", "b")),
            POST_SERVED,
        ),
        case(
            "trailers of another path",
            post_with_trailers(h2::END_STREAM, OTHER_PATH),
            POST_SERVED,
        ),
        case(
            "trailers that are not the end",
            post_with_trailers(0, ("a", "b")),
            "?RST 1",
        ),
        // The size of the field list.
        case(
            "16 KB in one value",
            get_with("a", &"b".repeat(16_000)),
            GET_SERVED,
        ),
        strict(
            "32 KB in one value",
            get_with("a", &"b".repeat(32_000)),
            GET_SERVED,
            "?",
        ),
        case(
            "33 KB in one value",
            get_with("a", &"b".repeat(33_000)),
            " -> 431",
        ),
        case(
            "60 KB in one value",
            get_with("a", &"b".repeat(60_000)),
            " -> 431",
        ),
        case(
            "140 KB in one value",
            get_with("a", &"b".repeat(140_000)),
            " -> GOAWAY 11",
        ),
        case("3 KB in 100 fields", get_with_fields(100), "?200"),
        case("3 KB in 101 fields", get_with_fields(101), " -> 431"),
        case("16 KB in 475 fields", get_with_fields(475), " -> 431"),
        case("32 KB in 950 fields", get_with_fields(950), " -> 431"),
        case("33 KB in 1,000 fields", get_with_fields(1000), " -> 431"),
        case(
            "330 KB in 10,000 fields",
            get_with_fields(10_000),
            " -> GOAWAY 11",
        ),
        case(
            "an unknown index",
            raw(h2::HEADERS, 5, 1, &[0xff; 6]),
            GOAWAY,
        ),
        case("index 0", raw(h2::HEADERS, 5, 1, &[0x80]), GOAWAY),
        // Frames where they are not allowed.
        case(
            "a request in place of trailers",
            two_requests(1, 1),
            "POST http://x/ 0 -> 200",
        ),
        case("a lower stream", two_requests(3, 1), "?GOAWAY 1"),
        case(
            "an even stream",
            after_hello(&h2::get(2, "/smuggled")),
            GOAWAY,
        ),
        case("stream 0", after_hello(&h2::get(0, "/smuggled")), GOAWAY),
        case("DATA of no stream", raw(h2::DATA, 0, 1, b"hello"), GOAWAY),
        case(
            "CONTINUATION of nothing",
            raw(h2::CONTINUATION, h2::END_HEADERS, 1, &[]),
            GOAWAY,
        ),
        case(
            "PING amid HEADERS",
            [
                raw(h2::HEADERS, 1, 1, &[0x82]),
                h2::frame(h2::PING, 0, 0, &[0; 8]),
            ]
            .concat(),
            GOAWAY,
        ),
        case(
            "PUSH_PROMISE",
            raw(5, h2::END_HEADERS, 1, &[0, 0, 0, 2, 0x82]),
            GOAWAY,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_request_has_one_interpretation_or_is_refused() {
    run_cases(over_http2, http2_outcomes).await;
}
