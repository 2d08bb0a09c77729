//! T09: heads that are too large, and requests that two readers would read differently: each is
//! refused, or read in one way only. A second request is hidden wherever a lenient reader would
//! find one, and is never seen.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use axum::{
    Extension, Router,
    body::to_bytes,
    extract::{Request, State},
    http::StatusCode,
};
use guarded::{Neighbour, SECOND, SERVERS, SLACK, all_gone, app, by, exchange, h2};
use palisade::{
    conn::{ConnGuard, ConnInfo},
    serve::Http,
};
use palisade_testkit::{
    clients::RawClient,
    servers::{self, Server},
};
use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};
use tokio::task::JoinSet;

/// What the app was asked on each connection: the method, the target, and how many bytes the body
/// had; `broken` if it did not come to its end.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<HashMap<SocketAddr, Vec<String>>>>);

/// Bytes, and what comes of them: what the app sees, and what the client is answered.
struct Case {
    what: &'static str,
    bytes: Vec<u8>,
    by_palisade: &'static str,
    by_others: &'static str,
}

/// All servers do the same.
fn case(what: &'static str, bytes: impl Into<Vec<u8>>, outcome: &'static str) -> Case {
    strict(what, bytes, outcome, outcome)
}

/// `palisade::serve` is stricter than hyper.
fn strict(
    what: &'static str,
    bytes: impl Into<Vec<u8>>,
    by_palisade: &'static str,
    by_others: &'static str,
) -> Case {
    Case {
        what,
        bytes: bytes.into(),
        by_palisade,
        by_others,
    }
}

async fn record(
    State(seen): State<Seen>,
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

/// Plays every case to each server, each on its own connection and from its own address, all at
/// once; `answers` says what a client was answered.
async fn play(cases: fn() -> Vec<Case>, answers: fn(&[u8]) -> String) {
    for server in SERVERS {
        let is_ours = server == "palisade::serve";
        let seen = Seen::default();
        let builder = ConnGuard::builder()
            .first_request(SECOND)
            .head(SECOND)
            .idle(SECOND);
        let guard = builder.upgraded_idle(SECOND).build().unwrap();
        let app = Router::new().fallback(record).with_state(seen.clone());
        let served = by(server, &guard, app).await;
        let addr = served.addr;
        let neighbour = Neighbour::of(addr);
        let mut clients = JoinSet::new();
        for (
            Case {
                what,
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
                let (answer, after) = exchange(client, bytes).await;
                let seen = seen
                    .0
                    .lock()
                    .unwrap()
                    .remove(&peer)
                    .unwrap_or_default()
                    .join(", ");
                let outcome = format!("{seen} -> {}", answers(&answer));
                assert!(after < SECOND + SLACK, "{what}, {server}: {after:?}");
                assert!(!outcome.contains("smuggled"), "{what}, {server}: {outcome}");
                // Where two tasks race, the app may have seen the first or not.
                match expected.strip_prefix('?') {
                    Some(answered) => {
                        assert!(outcome.ends_with(answered), "{what}, {server}: {outcome}");
                    }
                    None => assert_eq!(outcome, expected, "{what}, {server}"),
                }
            });
        }
        clients.join_all().await;
        neighbour.was_served().await;
        all_gone(&guard).await;
    }
}

/// The statuses of what was answered over HTTP/1.
fn statuses(answer: &[u8]) -> String {
    let answer = String::from_utf8_lossy(answer);
    let heads = answer.lines().filter(|line| line.starts_with("HTTP/1."));
    let statuses: Vec<_> = heads.map(|head| &head["HTTP/1.1 ".len()..][..3]).collect();
    statuses.join(" ")
}

/// Statuses and ends of what was answered over HTTP/2.
fn ends(answer: &[u8]) -> String {
    let end = |frame: &h2::Frame| match frame.kind {
        h2::HEADERS => Some(
            frame
                .status()
                .map_or("?".to_owned(), |status| status.to_string()),
        ),
        h2::RST_STREAM => Some(format!("RST {}", frame.code().unwrap())),
        // Its idle time is over.
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

/// A request that stands where only a lenient reader would take it for one.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
/// One that any reader takes for one.
const NEXT: &str = "GET /next HTTP/1.1\r\nhost: x\r\n\r\n";

// What comes of most of them.
const REFUSED: &str = " -> 400";
const RESET: &str = " -> RST 1";
const GOAWAY: &str = " -> GOAWAY 1";
const BROKEN: &str = "POST / broken -> 400";
const EMPTY: &str = "POST / 0 -> 200";
const WHOLE: &str = "POST / 35 -> 200";
const SERVED: &str = "GET http://x/ 0 -> 200";
const TAKEN: &str = "POST http://x/ 5 -> 200";

fn over_http1() -> Vec<Case> {
    let get = |rest: &str| format!("GET / HTTP/1.1\r\nhost: x\r\n{rest}");
    let post = |rest: &str| format!("POST / HTTP/1.1\r\nhost: x\r\n{rest}");
    // Fields and the end of the head, then what a body without a length would hide.
    let odd = |field: &str| post(&format!("{field}\r\n\r\n0\r\n\r\n{HIDDEN}"));
    let odd_get = |field: &str| get(&format!("{field}\r\n\r\n{HIDDEN}"));
    let length = |value: &str| post(&format!("content-length:{value}\r\n\r\n{HIDDEN}"));
    let chunks = |rest: &str| post(&format!("transfer-encoding: chunked\r\n\r\n{rest}"));
    let line = |line: &str| format!("{line}\r\nhost: x\r\n\r\n{HIDDEN}");
    // The same with nothing hidden, and chunks that would hide something if they were read.
    let coded = |field: &str| post(&format!("{field}\r\n\r\n0\r\n\r\n"));
    let hiding = |rest: &str| chunks(&format!("{rest}{HIDDEN}"));
    assert_eq!(HIDDEN.len(), 35);
    vec![
        // Which length it is.
        case("one length", length(" 35"), WHOLE),
        case(
            "leading zeros",
            length(" 00000000000000000000000035"),
            WHOLE,
        ),
        case(
            "one length twice",
            length(" 35\r\ncontent-length: 35"),
            WHOLE,
        ),
        case("two lengths", length(" 0\r\ncontent-length: 35"), REFUSED),
        case(
            "two lengths, the other way",
            length(" 35\r\ncontent-length: 0"),
            REFUSED,
        ),
        case("a list of one length", length(" 35, 35"), REFUSED),
        case("a list of two lengths", length(" 0, 35"), REFUSED),
        case("a plus", length(" +0"), REFUSED),
        case("a minus", length(" -0"), REFUSED),
        case("hexadecimal", length(" 0x0"), REFUSED),
        case("no number", length(""), REFUSED),
        case("two numbers", length(" 0 35"), REFUSED),
        case(
            "a number that overflows to 0",
            length(" 18446744073709551616"),
            REFUSED,
        ),
        case(
            "the largest number",
            length(" 18446744073709551615"),
            " -> 431",
        ),
        case(
            "a length that is none",
            post(&format!("content_length: 35\r\n\r\n{NEXT}")),
            "POST / 0, GET /next 0 -> 200 200",
        ),
        // Length or coding: the coding, and nothing after it (RFC 9112 section 6.1).
        case(
            "length, coding",
            odd("content-length: 5\r\ntransfer-encoding: chunked"),
            EMPTY,
        ),
        case(
            "coding, length",
            odd("transfer-encoding: chunked\r\ncontent-length: 40"),
            EMPTY,
        ),
        case(
            "coding, no number",
            odd("transfer-encoding: chunked\r\ncontent-length: x"),
            EMPTY,
        ),
        // Which coding it is.
        case(
            "upper case",
            chunks("0\r\n\r\n").replace("chunked", "CHUNKED"),
            EMPTY,
        ),
        case(
            "tabs around",
            odd("transfer-encoding:\tchunked\t").replace(HIDDEN, NEXT),
            "POST / 0, GET /next 0 -> 200 200",
        ),
        strict(
            "coded twice",
            coded("transfer-encoding: gzip, chunked"),
            REFUSED,
            EMPTY,
        ),
        strict(
            "identity, chunked",
            coded("transfer-encoding: identity, chunked"),
            REFUSED,
            EMPTY,
        ),
        strict(
            "a comma first",
            coded("transfer-encoding: ,chunked"),
            REFUSED,
            EMPTY,
        ),
        strict(
            "chunked in chunked",
            coded("transfer-encoding: chunked, chunked"),
            REFUSED,
            EMPTY,
        ),
        strict(
            "two fields",
            coded("transfer-encoding: chunked\r\ntransfer-encoding: chunked"),
            REFUSED,
            EMPTY,
        ),
        strict(
            "two fields, two codings",
            coded("transfer-encoding: x\r\ntransfer-encoding: chunked"),
            REFUSED,
            EMPTY,
        ),
        case(
            "chunked, and then another",
            odd("transfer-encoding: chunked\r\ntransfer-encoding: identity"),
            REFUSED,
        ),
        case(
            "chunked is not last",
            odd("transfer-encoding: chunked, gzip"),
            REFUSED,
        ),
        case("a comma last", odd("transfer-encoding: chunked,"), REFUSED),
        case("not chunked", odd("transfer-encoding: gzip"), REFUSED),
        case("no coding", odd("transfer-encoding: identity"), REFUSED),
        case("an empty coding", odd("transfer-encoding:"), REFUSED),
        case(
            "nearly chunked",
            odd("transfer-encoding: xchunked"),
            REFUSED,
        ),
        case("quoted", odd("transfer-encoding: \"chunked\""), REFUSED),
        case(
            "with a parameter",
            odd("transfer-encoding: chunked;q=1"),
            REFUSED,
        ),
        case(
            "a vertical tab",
            odd("transfer-encoding:\x0bchunked"),
            REFUSED,
        ),
        case(
            "not ASCII",
            odd("transfer-encoding: chun\u{212a}ed"),
            REFUSED,
        ),
        case(
            "on another line",
            odd("transfer-encoding:\r\n chunked"),
            REFUSED,
        ),
        case(
            "a space before the colon",
            odd("transfer-encoding : chunked"),
            REFUSED,
        ),
        case(
            "HTTP/1.0",
            odd("transfer-encoding: chunked").replace("HTTP/1.1\r\nhost", "HTTP/1.0\r\nhost"),
            REFUSED,
        ),
        // Where a line ends. A bare LF may be taken for the end (RFC 9112 section 2.2), and is.
        case("bare LF", get("\n").replace("\r\n", "\n"), "GET / 0 -> 200"),
        case(
            "bare LF before a length",
            post(&format!("a: b\ncontent-length: 35\r\n\r\n{HIDDEN}")),
            WHOLE,
        ),
        case("bare CR in a value", odd_get("a: b\rc: d"), REFUSED),
        case(
            "bare CR for line ends",
            format!("GET / HTTP/1.1\rhost: x\r\r{HIDDEN}"),
            REFUSED,
        ),
        case("CR CR LF", odd_get("a: b\r"), REFUSED),
        case("a fold", odd_get("a: b\r\n c: d"), REFUSED),
        case(
            "a fold first",
            format!("GET / HTTP/1.1\r\n host: x\r\n\r\n{HIDDEN}"),
            REFUSED,
        ),
        case("NUL in a value", odd_get("a: b\0"), REFUSED),
        case("NUL in a name", odd_get("a\0: b"), REFUSED),
        case("no colon", odd_get("abc"), REFUSED),
        case("no name", odd_get(": abc"), REFUSED),
        case(
            "lines before it",
            format!("\r\n\r\n{}", get("\r\n")),
            "GET / 0 -> 200",
        ),
        case(
            "a space before it",
            format!(" {}", odd_get("a: b")),
            REFUSED,
        ),
        // What is asked, and of whom.
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
            "no such host",
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
            "the same as node writes it",
            "GET / HTTP/1.1\r\nhost: [fe80::1%eth0]\r\n\r\n",
            REFUSED,
            "GET / 0 -> 200",
        ),
        strict(
            "a refusal ends it",
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
        case("no slash", line("GET a/b HTTP/1.1"), REFUSED),
        case("a space", line("GET /a b HTTP/1.1"), REFUSED),
        case("two spaces", line("GET  / HTTP/1.1"), REFUSED),
        case("tabs", line("GET\t/\tHTTP/1.1"), REFUSED),
        case("NUL", line("GET /\0 HTTP/1.1"), REFUSED),
        case("no such method", line("G@T / HTTP/1.1"), REFUSED),
        case(
            "another method",
            line("get / HTTP/1.1").replace(HIDDEN, ""),
            "get / 0 -> 200",
        ),
        case("HTTP/0.9", format!("GET /\r\n{HIDDEN}"), REFUSED),
        case("HTTP/1.2", line("GET / HTTP/1.2"), REFUSED),
        case("HTTP/2.0", line("GET / HTTP/2.0"), REFUSED),
        case(
            "nearly HTTP/2",
            format!("PRI * HTTP/2.0\r\n\r\n{HIDDEN}"),
            REFUSED,
        ),
        case("http/1.1", line("GET / http/1.1"), REFUSED),
        case("a space at the end", line("GET / HTTP/1.1 "), REFUSED),
        case(
            "an offer of h2c",
            get(&format!(
                "connection: upgrade\r\nupgrade: h2c\r\n\r\n{NEXT}"
            )),
            "GET / 0, GET /next 0 -> 200 200",
        ),
        // Where a chunk ends.
        case(
            "chunks",
            chunks(&format!("5\r\nhello\r\n0\r\n\r\n{NEXT}")),
            "POST / 5, GET /next 0 -> 200 200",
        ),
        case(
            "zeros before",
            chunks("000000000000000000005\r\nhello\r\n0\r\n\r\n"),
            "POST / 5 -> 200",
        ),
        case(
            "a space after",
            chunks("5 \r\nhello\r\n0\r\n\r\n"),
            "POST / 5 -> 200",
        ),
        case("a space before", hiding(" 5\r\nhello\r\n0\r\n\r\n"), BROKEN),
        case("a plus", hiding("+5\r\nhello\r\n0\r\n\r\n"), BROKEN),
        case("a minus", hiding("-5\r\nhello\r\n0\r\n\r\n"), BROKEN),
        case("0x", hiding("0x5\r\nhello\r\n0\r\n\r\n"), BROKEN),
        case("no size", hiding("\r\nhello\r\n0\r\n\r\n"), BROKEN),
        case(
            "a size that overflows to 5",
            hiding("10000000000000005\r\nhello\r\n0\r\n\r\n"),
            BROKEN,
        ),
        case("LF after the size", hiding("5\nhello\r\n0\r\n\r\n"), BROKEN),
        case("LF after the data", hiding("5\r\nhello\n0\r\n\r\n"), BROKEN),
        case(
            "nothing after the data",
            hiding("5\r\nhello0\r\n\r\n"),
            BROKEN,
        ),
        case("more data", hiding("5\r\nhello, you\r\n0\r\n\r\n"), BROKEN),
        case("LF after the last", hiding("0\n\n"), BROKEN),
        case(
            "an extension",
            chunks(&format!("5;a=b\r\nhello\r\n0\r\n\r\n{NEXT}")),
            "POST / 5, GET /next 0 -> 200 200",
        ),
        case(
            "LF in an extension",
            hiding("5;a\nhello\r\n0\r\n\r\n"),
            BROKEN,
        ),
        case(
            "CR in an extension",
            hiding("5;a\rb\r\nhello\r\n0\r\n\r\n"),
            BROKEN,
        ),
        case(
            "a line end in quotes",
            hiding("5;a=\"\r\nhello\"\r\n0\r\n\r\n"),
            BROKEN,
        ),
        case(
            "a long extension",
            chunks(&format!(
                "5;a={}\r\nhello\r\n0\r\n\r\n{HIDDEN}",
                "x".repeat(17_000)
            )),
            BROKEN,
        ),
        case(
            "trailers",
            chunks(&format!("0\r\ncontent-length: 35\r\n\r\n{NEXT}")),
            "POST / 0, GET /next 0 -> 200 200",
        ),
        case("no colon in a trailer", hiding("0\r\na b\r\n\r\n"), BROKEN),
        case(
            "many trailers",
            chunks(&format!("0\r\n{}\r\n{HIDDEN}", "a: b\r\n".repeat(101))),
            BROKEN,
        ),
        case(
            "long trailers",
            chunks(&format!("0\r\na: {}\r\n\r\n{HIDDEN}", "x".repeat(40_000))),
            BROKEN,
        ),
        // A body that nobody expects, or reads.
        case(
            "a body of a GET",
            get(&format!("content-length: 35\r\n\r\n{HIDDEN}")),
            "GET / 35 -> 200",
        ),
        case(
            "a body that is ignored",
            length(" 35").replace(" / ", " /ignore "),
            "POST /ignore -> 200",
        ),
        case(
            "chunks that are ignored",
            chunks(&format!("23\r\n{HIDDEN}\r\n0\r\n\r\n")).replace(" / ", " /ignore "),
            "POST /ignore -> 200",
        ),
        case(
            "bad chunks that are ignored",
            hiding("x\r\n").replace(" / ", " /ignore "),
            "POST /ignore -> 200",
        ),
        case(
            "a body that was not waited for",
            length(" 35\r\nexpect: 100-continue"),
            "POST / 35 -> 100 200",
        ),
        case(
            "the same, ignored",
            length(" 35\r\nexpect: 100-continue").replace(" / ", " /ignore "),
            "POST /ignore -> 200",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_http1_is_read_in_one_way_or_not_at_all() {
    play(over_http1, statuses).await;
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
async fn a_head_that_is_too_large_is_told_so() {
    play(too_large, statuses).await;
}

/// All the cookies of a browser, as HTTP/1 sends them and as HTTP/2 does.
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
    for server in ["palisade::serve", "tonic, hardened"] {
        let guard = ConnGuard::default();
        let served = by(server, &guard, app()).await;
        for (over_http1, over_http2) in http1.iter().zip(&http2) {
            let mut client = RawClient::connect(served.addr).await.unwrap();
            client.send(over_http1).await.unwrap();
            assert_eq!(client.head().await.unwrap().status, 200, "{server}");

            let mut client = RawClient::connect(served.addr).await.unwrap();
            client.send(h2::hello(65_535)).await.unwrap();
            let fields = [&[GET, SCHEME, PATH, X], &over_http2[..]].concat();
            // More than two looks of the guard's, as a page that loads its images asks.
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
async fn a_uri_that_is_too_long_is_told_so_where_the_head_may_be_longer() {
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
const X: (&str, &str) = (":authority", "x");
const OTHER_PATH: (&str, &str) = (":path", "/smuggled");

fn over_http2() -> Vec<Case> {
    let first = |frames: &[u8]| [&h2::hello(65_535), frames].concat();
    // All of a request, of fields alone.
    let whole = |fields: &[_]| first(&h2::headers(1, h2::END_STREAM, fields));
    // One that `field` is added to.
    let with = |name, value| whole(&[GET, SCHEME, PATH, X, (name, value)]);
    let of = |method, path, authority| {
        whole(&[
            (":method", method),
            SCHEME,
            (":path", path),
            (":authority", authority),
        ])
    };
    // One with five bytes of body, and what it says of them.
    let body = |fields: &[_]| {
        let fields = [&[POST, SCHEME, PATH, X], fields].concat();
        let data = h2::frame(h2::DATA, h2::END_STREAM, 1, b"hello");
        first(&[h2::headers(1, 0, &fields), data].concat())
    };
    let length = |value| body(&[("content-length", value)]);
    let trailed = |flags, field| {
        let head = h2::headers(1, 0, &[POST, SCHEME, PATH, X]);
        let data = h2::frame(h2::DATA, 0, 1, b"hello");
        first(&[head, data, h2::headers(1, flags, &[field])].concat())
    };
    // Two that are one after the other.
    let both = |one, other| {
        let one = h2::headers(one, 0, &[POST, SCHEME, PATH, X]);
        first(
            &[
                one,
                h2::headers(other, h2::END_STREAM, &[GET, SCHEME, OTHER_PATH, X]),
            ]
            .concat(),
        )
    };
    let list = |count| {
        let fields = [&[GET, SCHEME, PATH, X][..], &vec![("a", "b"); count]].concat();
        whole(&fields)
    };
    let raw = |kind, flags, stream, payload: &[u8]| first(&h2::frame(kind, flags, stream, payload));
    vec![
        // Pseudo-header fields, each once and before all others (RFC 9113 section 8.3).
        case("all of them", whole(&[GET, SCHEME, PATH, X]), SERVED),
        case("no method", whole(&[SCHEME, PATH, X]), RESET),
        case("no scheme", whole(&[GET, PATH, X]), RESET),
        case("no path", whole(&[GET, SCHEME, X]), RESET),
        case(
            "no authority",
            whole(&[GET, SCHEME, PATH]),
            "GET / 0 -> 200",
        ),
        case("two methods", whole(&[GET, POST, SCHEME, PATH, X]), RESET),
        case("two schemes", whole(&[GET, SCHEME, SCHEME, PATH, X]), RESET),
        case(
            "two paths",
            whole(&[GET, SCHEME, PATH, OTHER_PATH, X]),
            RESET,
        ),
        case(
            "two authorities",
            whole(&[GET, SCHEME, PATH, X, (":authority", "y")]),
            RESET,
        ),
        case(
            "one after the others",
            whole(&[GET, SCHEME, PATH, ("a", "b"), X]),
            RESET,
        ),
        case("an unknown one", with(":a", "b"), GOAWAY),
        case("one of answers", with(":status", "200"), RESET),
        case(
            "one that was not allowed",
            with(":protocol", "websocket"),
            RESET,
        ),
        // The host, once.
        case(
            "a host",
            whole(&[GET, SCHEME, PATH, ("host", "x")]),
            "GET / 0 -> 200",
        ),
        case("the same host", with("host", "x"), SERVED),
        strict("another host", with("host", "y"), REFUSED, SERVED),
        strict(
            "two hosts",
            whole(&[GET, SCHEME, PATH, ("host", "x"), ("host", "y")]),
            REFUSED,
            "GET / 0 -> 200",
        ),
        strict(
            "a user",
            of("GET", "/", "u@x"),
            REFUSED,
            "GET http://u@x/ 0 -> 200",
        ),
        case("a host with a path", of("GET", "/", "x/y"), RESET),
        case("an empty host", of("GET", "/", ""), RESET),
        case(
            "an IPv6 host",
            of("GET", "/", "[fe80::1]:80"),
            "GET http://[fe80::1]:80/ 0 -> 200",
        ),
        strict(
            "an IPv6 host with a zone",
            of("GET", "/", "[fe80::1%25eth0]:80"),
            REFUSED,
            "GET http://[fe80::1%25eth0]:80/ 0 -> 200",
        ),
        case("a host of two lines", of("GET", "/", "x\r\na: b"), RESET),
        // What is asked.
        case("an empty path", of("GET", "", "x"), RESET),
        case("no slash", of("GET", "a", "x"), RESET),
        case("a URI", of("GET", "http://y/", "x"), RESET),
        case("a space", of("GET", "/a b", "x"), RESET),
        case(
            "a request in it",
            of("GET", "/ HTTP/1.1\r\nhost: y\r\n\r\nGET /smuggled", "x"),
            RESET,
        ),
        case(
            "an asterisk",
            of("OPTIONS", "*", "x"),
            "OPTIONS http://x* 0 -> 200",
        ),
        strict(
            "an asterisk to GET",
            of("GET", "*", "x"),
            REFUSED,
            "GET http://x* 0 -> 200",
        ),
        case(
            "no such method",
            of("GET /smuggled HTTP/1.1", "/", "x"),
            GOAWAY,
        ),
        case("an empty method", of("", "/", "x"), GOAWAY),
        case(
            "another method",
            of("get", "/", "x"),
            "get http://x/ 0 -> 200",
        ),
        case(
            "no such scheme",
            whole(&[GET, (":scheme", "http://y/?"), PATH, X]),
            RESET,
        ),
        strict(
            "CONNECT",
            whole(&[CONNECT, X]),
            " -> 501",
            "CONNECT x 0 -> 200",
        ),
        case(
            "CONNECT to a path",
            whole(&[CONNECT, SCHEME, PATH, X]),
            RESET,
        ),
        // Names and values that would be something else over HTTP/1 (section 8.2).
        case("upper case", with("Foo", "b"), GOAWAY),
        case("no name", with("", "b"), GOAWAY),
        case("a space in a name", with("a b", "c"), GOAWAY),
        case("a colon in a name", with("a:b", "c"), GOAWAY),
        case("a line in a value", with("a", "b\r\nc: d"), GOAWAY),
        case("LF in a value", with("a", "b\nc"), GOAWAY),
        case("NUL in a value", with("a", "b\0c"), GOAWAY),
        case("Connection", with("connection", "close"), RESET),
        case("Keep-Alive", with("keep-alive", "1"), RESET),
        case("Proxy-Connection", with("proxy-connection", "close"), RESET),
        case("Upgrade", with("upgrade", "h2c"), RESET),
        case("TE", with("te", "gzip"), RESET),
        case("TE, the one it may be", with("te", "trailers"), SERVED),
        case(
            "Transfer-Encoding",
            body(&[("transfer-encoding", "chunked")]),
            "?RST 1",
        ),
        // The length (section 8.1.1).
        case("the length", length("5"), TAKEN),
        case(
            "the length twice",
            body(&[("content-length", "5"); 2]),
            TAKEN,
        ),
        case("more than there is", length("10"), "?RST 1"),
        case("less than there is", length("3"), "?RST 1"),
        case("nothing", length("0"), "?RST 1"),
        case(
            "two lengths",
            body(&[("content-length", "5"), ("content-length", "6")]),
            RESET,
        ),
        case("a list of lengths", length("5, 5"), RESET),
        case("a plus", length("+5"), RESET),
        case("a number too large", length("18446744073709551621"), RESET),
        case(
            "a length and no body",
            whole(&[POST, SCHEME, PATH, X, ("content-length", "5")]),
            RESET,
        ),
        case("trailers", trailed(h2::END_STREAM, ("a", "b")), TAKEN),
        case(
            "trailers of another path",
            trailed(h2::END_STREAM, OTHER_PATH),
            TAKEN,
        ),
        case(
            "trailers that are not the end",
            trailed(0, ("a", "b")),
            "?RST 1",
        ),
        // The list of fields.
        case("16 KB in one value", with("a", &"b".repeat(16_000)), SERVED),
        strict(
            "32 KB in one value",
            with("a", &"b".repeat(32_000)),
            SERVED,
            "?",
        ),
        case(
            "33 KB in one value",
            with("a", &"b".repeat(33_000)),
            " -> 431",
        ),
        case(
            "60 KB in one value",
            with("a", &"b".repeat(60_000)),
            " -> 431",
        ),
        case(
            "140 KB in one value",
            with("a", &"b".repeat(140_000)),
            " -> GOAWAY 11",
        ),
        case("16 KB in 475 fields", list(475), "?200"),
        strict("32 KB in 950 fields", list(950), "?200", "?"),
        case("33 KB in 1,000 fields", list(1000), " -> 431"),
        case("330 KB in 10,000 fields", list(10_000), " -> GOAWAY 11"),
        case("no such index", raw(h2::HEADERS, 5, 1, &[0xff; 6]), GOAWAY),
        case("index 0", raw(h2::HEADERS, 5, 1, &[0x80]), GOAWAY),
        // Frames where they may not be.
        case(
            "a request for trailers",
            both(1, 1),
            "POST http://x/ 0 -> 200",
        ),
        case("a lower stream", both(3, 1), "?GOAWAY 1"),
        case("an even stream", first(&h2::get(2, "/smuggled")), GOAWAY),
        case("stream 0", first(&h2::get(0, "/smuggled")), GOAWAY),
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
            "a promise",
            raw(5, h2::END_HEADERS, 1, &[0, 0, 0, 2, 0x82]),
            GOAWAY,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_http2_is_read_in_one_way_or_not_at_all() {
    play(over_http2, ends).await;
}
