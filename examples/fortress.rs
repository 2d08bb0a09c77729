//! A target for attacks: a cleartext server with HTTP/1.1, HTTP/2 by prior knowledge, WebSocket and
//! gRPC on one port, behind all guards.
//!
//! ```text
//! cargo run --release --example fortress -- 127.0.0.1:8080
//! cargo run --release --example fortress -- 127.0.0.1:8080 1  # one second in place of seven, below
//! ```
//!
//! | request | response |
//! |---|---|
//! | `GET /` | a few bytes |
//! | `GET /big` | 64 MiB, streamed |
//! | `POST /echo-len` | the length of the body, which may be compressed with gzip |
//! | `GET /slow?ms=N` | a few bytes after N ms, at most 30,000 |
//! | `GET /events?ms=N` | endless server-sent events, one every N ms; N defaults to 500 |
//! | `GET /ws` | a WebSocket that echoes every message |
//! | `GET /metrics` | the guards' metrics for Prometheus |
//! | gRPC `demo.Echo` | `Unary(Piece) -> Total`, `Collect(stream Piece) -> Total` |
//!
//! A connection or stream that does nothing useful is closed within 8 s: [`MAX_USELESS`] and one or
//! two sweeps of the guard. This file sets every number of that contract itself, whatever the
//! defaults are:
//!
//! | useless behaviour | closed after | option |
//! |---|---|---|
//! | no complete first head, or a later head that is too slow | 7 s | `first_request`, `head` |
//! | no request in flight, or PING only | 7 s | `idle` |
//! | less than 500 B/s read from the socket or a window | 7 s | `write_stall` |
//! | a silent upload, an upload below 4 KiB/s | 5 s, 7 s | the pace of uploads |
//! | a silent gRPC client stream | 6 s | the pace of `Collect` |
//!
//! A connection that waits for the server is not useless: a handler at work, a quiet event stream.
//! A WebSocket may be quiet for 5 minutes.
//!
//! On SIGTERM or Ctrl-C the server accepts no more connections, lets requests finish, and ends
//! within [`DRAIN`] whatever the clients do.
#![allow(clippy::print_stdout, reason = "a command-line program prints")]

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
    ClientIp, ConfigError, Memory, Quota, Snapshot, Stack, StackLayer,
    body_limit::BodyLimitLayer,
    conn::ConnGuard,
    serve::Http,
    slow_body::Pace,
    timeout::Limits,
    types::{ClientKey, KeyExtractor, KeyOutcome, RequestHead},
};
use palisade_testkit::{alloc, demo::echo_server::EchoServer, echo::Lengths, process};
use std::{collections::HashMap, convert::Infallible, net::SocketAddr, time::Duration};
use tokio::{
    sync::watch,
    time::{interval, sleep, timeout},
};
use tower::{BoxError, Layer, ServiceBuilder};
use tower_http::decompression::RequestDecompressionLayer;

/// The longest time that requests may take to finish after the shutdown begins.
const DRAIN: Duration = Duration::from_secs(8);
/// The longest time that a connection or a stream may do nothing useful.
const MAX_USELESS: Duration = Duration::from_secs(7);
/// The maximum length of a request body, compressed and not, and of a WebSocket message.
const MAX_BODY_BYTES: u64 = 1 << 20;
/// The length of the response of `/big`.
const BIG_BYTES: usize = 64 << 20;
/// The length of a frame of `/big`.
const FRAME_BYTES: usize = 64 << 10;
/// The longest delay of `/slow`.
const MAX_SLOW_MILLISECONDS: u64 = 30_000;
/// The idle timeout of a WebSocket.
const WEB_SOCKET_IDLE: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments
        .next()
        .ok_or("usage: fortress ADDRESS:PORT [SECONDS]")?
        .parse()?;
    match arguments.next() {
        Some(seconds) => serve(address, Duration::from_secs(seconds.parse()?)).await,
        None => run(address).await,
    }
}

/// Serves on `address` until the process receives SIGTERM or Ctrl-C.
pub(crate) async fn run(address: SocketAddr) -> Result<(), BoxError> {
    serve(address, MAX_USELESS).await
}

async fn serve(address: SocketAddr, max_useless: Duration) -> Result<(), BoxError> {
    process::raise_file_limit();
    // glibc keeps the memory of a flood. `trim` calls its `malloc_trim(0)`.
    Memory::of_process().release(alloc::trim);
    let metrics = Snapshot::new();
    let guards = request_guards(&metrics, max_useless)?;
    let listener = connection_guard(&metrics, max_useless)?
        .bind(address)
        .await?;
    let (begin_drain, drain) = watch::channel(false);
    let app = guards.layer(app(metrics, Drain(drain)));
    println!("listening on http://{}", listener.local_addr()?);
    let end = async move {
        shutdown_signal().await;
        begin_drain.send_replace(true);
    };
    let drained = palisade::serve(listener, app)
        .http(http()?)
        .with_graceful_shutdown(end)
        .drain(DRAIN)
        .await?;
    if drained.cut > 0 {
        println!("closed {} connections that did not finish", drained.cut);
    }
    Ok(())
}

// === Guards ===

/// The connection guard. All honest clients may share one address, as the clients of an attack may,
/// so the guard distinguishes connections by their behaviour.
fn connection_guard(metrics: &Snapshot, max_useless: Duration) -> Result<ConnGuard, ConfigError> {
    ConnGuard::builder()
        .metrics(metrics.clone())
        .max_per_client(5_000)
        .accept_rate((2_000, 4_000))
        // A slow link sends a head within a second or two, and a client with another request sends
        // it within a few seconds.
        .first_request_timeout(max_useless)
        .header_timeout(max_useless)
        .idle_timeout(max_useless)
        // A client that reads 64 KiB/s opens its window every two or three seconds.
        .write_timeout(max_useless)
        // The app closes a WebSocket after `WEB_SOCKET_IDLE`, so the guard waits a little longer.
        .upgraded_idle_timeout(WEB_SOCKET_IDLE + Duration::from_secs(30))
        .build()
}

fn http() -> Result<Http, ConfigError> {
    // 20 requests per second of 5 s each on one connection are 100 streams; some more are
    // long-lived.
    Http::builder()
        .max_concurrent_streams(128)
        .connection_window(512 << 10)
        .build()
}

/// The request guards. They are dimensioned for these honest clients: 20 requests per second from
/// one address, or 16 clients behind one address with 2 per second each; bodies of up to 64 KiB,
/// and uploads of 480 KiB at 16 KiB/s or more; requests of up to 5 s, 1,000 of them at work.
fn request_guards(metrics: &Snapshot, max_useless: Duration) -> Result<StackLayer, ConfigError> {
    // 20/s and 32/s from one address are 52/s. The quota is twice that, with a burst for clients
    // that start at the same time.
    let quota = Quota::per_second(100).burst(200);
    // A quarter of the rate of the slowest honest upload. A body may be silent for 5 s. A body that
    // is too slow is cut after 2 s of grace and a window of 5 s. Under full pressure three quarters
    // of that honest rate are required.
    let upload = Pace::builder()
        .rate(4 * 1024)
        .full_pressure_rate(12 * 1024)
        .window(max_useless * 5 / 7)
        .grace(max_useless * 2 / 7)
        .gap(max_useless * 5 / 7);
    // An honest client stream sends a few bytes every 3 s.
    let stream = Pace::builder().rate(None).gap(max_useless * 6 / 7);
    let upload_of_grpc = upload.build().expect("the pace is valid");
    let stream = stream.build().expect("the pace is valid");
    Stack::edge()
        .metrics(metrics.clone())
        .client(client_key)
        .rate_limit(quota)
        // Requests take up to 5 s; only `/slow` takes longer.
        .timeout(Duration::from_secs(10))
        .tune_timeout(|layer| {
            let slow = Limits::head(Duration::from_millis(MAX_SLOW_MILLISECONDS + 5_000));
            layer.limits_for(move |head| (head.uri.path() == "/slow").then_some(slow))
        })
        .max_body(MAX_BODY_BYTES)
        .pace(upload)
        .tune_slow_body(move |layer| {
            // A gRPC request must be as fast as any other, because any client may claim to be gRPC.
            // The one exception is the method with a long-lived client stream.
            let collect = move |head: &RequestHead<'_>| {
                (head.uri.path() == "/demo.Echo/Collect").then_some(stream)
            };
            layer.grpc(upload_of_grpc).pace_for(collect)
        })
        // The last tenth of the permits is for clients with few requests, so 1,000 requests of busy
        // clients need 1,112 permits.
        .max_requests(1_200)
        .tune_concurrency_limit(|layer| {
            // 20/s and 32/s of 5 s each are 260 at a time, while no address gets more than a
            // quarter of the permits. Four more permits are reserved for metrics, so that an
            // operator always sees them.
            layer.per_client(300).reserve(4, is_metrics)
        })
        .build()
}

/// Returns the network of the peer as client key. Requests for metrics have a separate key, so an
/// operator sees the metrics even if all other requests from the same address are refused.
fn client_key(head: &RequestHead<'_>) -> KeyOutcome {
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

// === Shutdown ===

/// Signals the start of the shutdown.
#[derive(Clone, Debug)]
struct Drain(watch::Receiver<bool>);

impl Drain {
    /// Waits until the shutdown begins.
    async fn begun(&mut self) {
        // An error means that the server is gone, which counts as a shutdown.
        let _ = self.0.wait_for(|begun| *begun).await;
    }
}

async fn shutdown_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate =
            signal(SignalKind::terminate()).expect("a signal handler can be installed");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = tokio::signal::ctrl_c().await;
}

// === App ===

fn app(metrics: Snapshot, drain: Drain) -> Router {
    let gunzip = ServiceBuilder::new()
        // Decoders of other codings take megabytes each.
        .layer(
            RequestDecompressionLayer::new()
                .no_br()
                .no_deflate()
                .no_zstd(),
        )
        .layer(BodyLimitLayer::decompressed(MAX_BODY_BYTES).metrics(metrics.clone()));
    let scrape = async move || {
        (
            [(CONTENT_TYPE, Snapshot::CONTENT_TYPE)],
            metrics.prometheus(),
        )
    };
    Router::new()
        .route("/", get(async || "hello\n"))
        .route("/big", get(big))
        .route("/echo-len", post(echo_len).layer(gunzip))
        .route("/slow", get(slow))
        .route("/events", get(events))
        .route("/ws", get(web_socket))
        .with_state(drain)
        .route("/metrics", get(scrape))
        .route_service("/demo.Echo/{method}", EchoServer::new(Lengths))
}

type Parameters = Query<HashMap<String, String>>;

/// Returns the parameter `ms` of the query, if present.
fn milliseconds(parameters: &Parameters) -> Result<Option<u64>, StatusCode> {
    let ms = parameters.get("ms").map(|text| text.parse());
    ms.transpose().map_err(|_| StatusCode::BAD_REQUEST)
}

async fn big() -> impl IntoResponse {
    let piece = Bytes::from_static(&[b'x'; FRAME_BYTES]);
    let pieces = stream::iter(std::iter::repeat_n(
        Ok::<_, Infallible>(piece),
        BIG_BYTES / FRAME_BYTES,
    ));
    (
        [(CONTENT_LENGTH, BIG_BYTES.to_string())],
        Body::from_stream(pieces),
    )
}

/// Counts the bytes of the body without keeping them. If a guard cuts the body, the guard sends the
/// response.
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
    let ms = milliseconds(&parameters)?
        .filter(|ms| *ms <= MAX_SLOW_MILLISECONDS)
        .ok_or(StatusCode::BAD_REQUEST)?;
    sleep(Duration::from_millis(ms)).await;
    Ok("done\n")
}

async fn events(
    State(drain): State<Drain>,
    parameters: Parameters,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, StatusCode> {
    let every = milliseconds(&parameters)?.unwrap_or(500);
    let ticks = interval(Duration::from_millis(every.clamp(1, 3_600_000)));
    let events = stream::unfold(
        (ticks, drain, 0u64),
        async |(mut ticks, mut drain, count)| {
            tokio::select! {
                _ = ticks.tick() => {
                    let event = Event::default().data(count.to_string());
                    Some((Ok(event), (ticks, drain, count.wrapping_add(1))))
                }
                () = drain.begun() => None,
            }
        },
    );
    Ok(Sse::new(events))
}

async fn web_socket(State(drain): State<Drain>, upgrade: WebSocketUpgrade) -> Response {
    let max_bytes = MAX_BODY_BYTES as usize;
    let upgrade = upgrade
        .max_message_size(max_bytes)
        .max_frame_size(max_bytes);
    upgrade.on_upgrade(|socket| echo(socket, drain))
}

async fn echo(mut socket: WebSocket, mut drain: Drain) {
    loop {
        let message = tokio::select! {
            message = timeout(WEB_SOCKET_IDLE, socket.recv()) => message,
            () = drain.begun() => break,
        };
        match message {
            Ok(Some(Ok(message @ (Message::Text(_) | Message::Binary(_))))) => {
                let sent = timeout(WEB_SOCKET_IDLE, socket.send(message)).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return;
                }
            }
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => return,
            Ok(Some(Ok(_))) => {} // axum answers PING by itself.
            Err(_) => break,
        }
    }
    let _ = timeout(Duration::from_secs(1), socket.send(Message::Close(None))).await;
}
