//! A server that is meant to be attacked: clear text, HTTP/1.1 and HTTP/2 by prior knowledge,
//! WebSocket and gRPC on one port, behind all guards.
//!
//! ```text
//! cargo run --release --example fortress -- 127.0.0.1:8080
//! ```
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | a few bytes |
//! | `GET /big` | 64 MiB, streamed |
//! | `POST /echo-len` | the length of the body |
//! | `GET /slow?ms=N` | a few bytes after N ms, at most 30,000 |
//! | `GET /events?ms=N` | server-sent events without end, one every N ms, 500 unless told |
//! | `GET /ws` | a WebSocket on which every message comes back |
//! | `GET /metrics` | what the guards did, for Prometheus |
//! | gRPC `demo.Echo` | `Unary(Piece) -> Total`, `Collect(stream Piece) -> Total` |
//!
//! A connection or stream that does nothing useful is gone within 8 s ([`USELESS`] and a look or
//! two of the guard). Every number of that contract is set here, whatever the defaults are:
//!
//! | what does nothing | is gone after | by |
//! |---|---|---|
//! | a connection without a whole request head, a later head that drips | 7 s | `first_request`, `head` |
//! | a kept connection without a request, one that only sends PING | 7 s | `idle` |
//! | a reader that takes less than 500 B/s, of a socket or of a window | 7 s | `write_stall` |
//! | an upload that is silent, one below 4 KiB/s | 5 s, 7 s | the pace of uploads |
//! | a gRPC client stream that says nothing | 6 s | the pace of `Collect` |
//!
//! What waits for the server is not meant: a handler, a quiet event stream. A WebSocket may be quiet
//! for 5 minutes.
//!
//! On SIGTERM or Ctrl-C it takes no more connections, lets requests finish, and ends within
//! [`DRAIN`] whatever clients do.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use axum::{
    Router,
    body::Body,
    extract::{
        Query, Request, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::{
    StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body_util::BodyExt;
use palisade::{
    ClientIp, ConfigError, Quota, Snapshot, Stack, StackLayer,
    conn::ConnGuard,
    serve::Http,
    slow_body::Pace,
    timeout::Limits,
    types::{ClientKey, KeyExtractor, KeyOutcome, RequestHead},
};
use palisade_testkit::{demo::echo_server::EchoServer, echo::Lengths, process};
use std::{collections::HashMap, convert::Infallible, net::SocketAddr, time::Duration};
use tokio::{
    sync::watch,
    time::{interval, sleep, timeout},
};
use tower::{BoxError, Layer};

/// How long clients may take to finish once the server is told to end.
const DRAIN: Duration = Duration::from_secs(8);
/// How long a connection or a stream may do nothing useful.
const USELESS: Duration = Duration::from_secs(7);
const MAX_BODY: u64 = 1 << 20;
const BIG: usize = 64 << 20;
const PIECE: usize = 64 << 10;
const SLOWEST: u64 = 30_000;
/// A WebSocket that says nothing for so long is closed.
const WEB_SOCKET_QUIET: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let address = std::env::args()
        .nth(1)
        .ok_or("usage: fortress ADDRESS:PORT")?;
    run(address.parse()?).await
}

/// Serves on `address` until the process is told to end.
pub(crate) async fn run(address: SocketAddr) -> Result<(), BoxError> {
    process::raise_file_limit();
    let metrics = Snapshot::new();
    let guards = guards(&metrics)?;
    let listener = connections(&metrics)?.bind(address).await?;
    let (begin_drain, drain) = watch::channel(false);
    let app = guards.layer(app(metrics, Drain(drain)));
    println!("listening on http://{}", listener.local_addr()?);
    let end = async move {
        told_to_end().await;
        begin_drain.send_replace(true);
    };
    let drained = palisade::serve(listener, app)
        .http(http()?)
        .with_graceful_shutdown(end)
        .drain(DRAIN)
        .await?;
    if drained.cut > 0 {
        println!("cut off {} connections that did not finish", drained.cut);
    }
    Ok(())
}

// === The guards ===

/// Connections, of clients who may all come from one address: that is what an attack from one
/// machine looks like, too, and only what they do tells them apart.
fn connections(metrics: &Snapshot) -> Result<ConnGuard, ConfigError> {
    ConnGuard::builder()
        .metrics(metrics.clone())
        .max_per_client(5_000)
        .accept_rate(2_000, 4_000)
        // A slow link sends a head within a second or two, and a client that has more to ask asks
        // within a few.
        .first_request(USELESS)
        .head(USELESS)
        .idle(USELESS)
        // A reader of 64 KiB/s opens its window every two or three seconds.
        .write_stall(USELESS)
        // The application closes what is silent for as long as that.
        .upgraded_idle(WEB_SOCKET_QUIET + Duration::from_secs(30))
        .build()
}

fn http() -> Result<Http, ConfigError> {
    // 20 requests a second of 5 s each on one connection, and some streams that stay.
    Http::builder()
        .max_concurrent_streams(128)
        .connection_window(512 << 10)
        .build()
}

/// The guards, for these clients: at most 20 requests a second from one address, or 16 clients
/// behind one address with 2 each; bodies up to 64 KiB, uploads of 480 KiB at 16 KiB/s or more;
/// requests of up to 5 s, 1,000 of them at work.
fn guards(metrics: &Snapshot) -> Result<StackLayer, ConfigError> {
    // 20/s and 32/s from one address are 52; twice that, and a burst for whoever starts at once.
    let quota = Quota::per_second(100).burst(200);
    // A quarter of the slowest honest upload. A body is silent for no longer than 5 s, and the
    // one that drips is gone after 2 s of grace and 5 s of window.
    let upload = Pace::builder()
        .rate(4 * 1024)
        .window(Duration::from_secs(5))
        .grace(Duration::from_secs(2))
        .gap(Duration::from_secs(5));
    // A client stream speaks every 3 s, and then in few bytes.
    let stream = Pace::builder().no_rate().gap(Duration::from_secs(6));
    let upload_of_grpc = upload.build().expect("a pace");
    let stream = stream.build().expect("a pace");
    Stack::edge()
        .metrics(metrics.clone())
        .client(client)
        .rate_limit(quota)
        // Requests take up to 5 s; only `/slow` is asked for more.
        .timeout(Duration::from_secs(10))
        .tune_timeout(|layer| {
            let slow = Limits::head(Duration::from_millis(SLOWEST + 5_000));
            layer.limits_for(move |head| (head.uri.path() == "/slow").then_some(slow))
        })
        .max_body(MAX_BODY)
        .pace(upload)
        .tune_slow_body(move |layer| {
            // Whatever calls itself gRPC must upload as fast as everybody else, but for the one
            // method that is a conversation.
            let collect = move |head: &RequestHead<'_>| {
                (head.uri.path() == "/demo.Echo/Collect").then_some(stream)
            };
            layer.grpc(upload_of_grpc).pace_for(collect)
        })
        // The last tenth is for clients who hold few, so 1,000 requests of busy ones need 1,112.
        .max_requests(1_200)
        .tune_concurrency_limit(|layer| {
            // 20/s and 32/s of 5 s each are 260 at a time; no address has a fourth of the slots.
            // Whoever runs the server can always see what goes on.
            layer.per_client(300).reserve(4, is_metrics)
        })
        .build()
}

/// A client is the network of its peer. Metrics have an account of their own there, so that an
/// operator sees them even from an address that floods everything else.
fn client(head: &RequestHead<'_>) -> KeyOutcome {
    match ClientIp::peer().extract(head) {
        KeyOutcome::Key(client) if is_metrics(head) => {
            KeyOutcome::Key(ClientKey::of(&("metrics", client)))
        }
        extracted => extracted,
    }
}

fn is_metrics(head: &RequestHead<'_>) -> bool {
    head.uri.path() == "/metrics"
}

// === The end ===

/// Says when the server is to end.
#[derive(Clone, Debug)]
struct Drain(watch::Receiver<bool>);

impl Drain {
    async fn begins(&mut self) {
        // An error is a server that is gone, which is as good as one that ends.
        let _ = self.0.wait_for(|begun| *begun).await;
    }
}

async fn told_to_end() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).expect("signals can be heard");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = tokio::signal::ctrl_c().await;
}

// === The app ===

fn app(metrics: Snapshot, drain: Drain) -> Router {
    let scrape = async move || {
        (
            [(CONTENT_TYPE, Snapshot::CONTENT_TYPE)],
            metrics.prometheus(),
        )
    };
    Router::new()
        .route("/", get(async || "hello\n"))
        .route("/big", get(big))
        .route("/echo-len", post(echo_len))
        .route("/slow", get(slow))
        .route("/events", get(events))
        .route("/ws", get(web_socket))
        .with_state(drain)
        .route("/metrics", get(scrape))
        .route_service("/demo.Echo/{method}", EchoServer::new(Lengths))
}

type Parameters = Query<HashMap<String, String>>;

/// `ms` of the query: a number, or nothing.
fn ms(parameters: &Parameters) -> Result<Option<u64>, StatusCode> {
    let ms = parameters.get("ms").map(|text| text.parse());
    ms.transpose().map_err(|_| StatusCode::BAD_REQUEST)
}

async fn big() -> impl IntoResponse {
    let piece = Bytes::from_static(&[b'x'; PIECE]);
    let pieces = stream::iter(std::iter::repeat_n(Ok::<_, Infallible>(piece), BIG / PIECE));
    (
        [(CONTENT_LENGTH, BIG.to_string())],
        Body::from_stream(pieces),
    )
}

/// Counts and keeps nothing. Where a guard ends the body, the guard answers.
async fn echo_len(request: Request) -> Result<String, StatusCode> {
    let mut body = request.into_body();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        length += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok(length.to_string())
}

async fn slow(parameters: Parameters) -> Result<&'static str, StatusCode> {
    let ms = ms(&parameters)?
        .filter(|ms| *ms <= SLOWEST)
        .ok_or(StatusCode::BAD_REQUEST)?;
    sleep(Duration::from_millis(ms)).await;
    Ok("done\n")
}

async fn events(
    State(drain): State<Drain>,
    parameters: Parameters,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, StatusCode> {
    let every = ms(&parameters)?.unwrap_or(500);
    let ticks = interval(Duration::from_millis(every.clamp(1, 3_600_000)));
    let events = stream::unfold(
        (ticks, drain, 0u64),
        async |(mut ticks, mut drain, count)| {
            tokio::select! {
                _ = ticks.tick() => {
                    let event = Event::default().data(count.to_string());
                    Some((Ok(event), (ticks, drain, count.wrapping_add(1))))
                }
                () = drain.begins() => None,
            }
        },
    );
    Ok(Sse::new(events))
}

async fn web_socket(State(drain): State<Drain>, upgrade: WebSocketUpgrade) -> Response {
    let longest = MAX_BODY as usize;
    let upgrade = upgrade.max_message_size(longest).max_frame_size(longest);
    upgrade.on_upgrade(|socket| echo(socket, drain))
}

async fn echo(mut socket: WebSocket, mut drain: Drain) {
    loop {
        let message = tokio::select! {
            message = timeout(WEB_SOCKET_QUIET, socket.recv()) => message,
            () = drain.begins() => break,
        };
        match message {
            Ok(Some(Ok(message @ (Message::Text(_) | Message::Binary(_))))) => {
                let sent = timeout(WEB_SOCKET_QUIET, socket.send(message)).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return;
                }
            }
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => return,
            Ok(Some(Ok(_))) => {} // PING and PONG are answered below us.
            Err(_) => break,
        }
    }
    let _ = timeout(Duration::from_secs(1), socket.send(Message::Close(None))).await;
}
