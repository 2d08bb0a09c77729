//! Serves a `Router`, or any other tower service, on hyper with every limit set. Replaces
//! `axum::serve` in one line.
//!
//! `axum::serve` accepts any number of connections and waits for each without a limit. It sets no
//! timer and no limit in hyper, cannot send GOAWAY to a single HTTP/2 connection, and lets any
//! client delay a shutdown. This crate puts a [`ConnGuard`](palisade_conn::ConnGuard) before hyper,
//! and sets hyper's limits.
#![cfg_attr(
    feature = "axum",
    doc = r#"
```no_run
# use axum::{Router, routing::get};
# async fn example() -> std::io::Result<()> {
let app = Router::new().route("/", get("hello"));
let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
palisade_serve::serve(listener, app).await
# }
```
"#
)]
//! # What it adds to the guard
//!
//! Everything that [`palisade_conn`] describes applies, without further setup: requests are
//! tracked, and each has the [`ConnInfo`] of its connection as an extension. In addition:
//!
//! - **HTTP settings**, [`Http`]: among others, request heads of at most 32 KiB on both protocols,
//!   at most 100 requests at once on one HTTP/2 connection, and 64 KiB of a response buffered for a
//!   client that does not read. hyper itself responds with 431 and 400, and with 414 if
//!   [`max_header_size`](HttpBuilder::max_header_size) allows a URI that long.
//! - **Refusals in the metrics**: the server's own refusals are events of the guard, see
//!   [below](#refusals-of-the-server).
//! - **Protocol detection**: the first bytes decide between HTTP/1 and HTTP/2. The guard's
//!   first-request timeout covers the detection, and a TLS handshake.
//! - **Stalled HTTP/2 streams**: if the client takes nothing of a response for the guard's
//!   [`write_timeout`](palisade_conn::ConnGuardBuilder::write_timeout), the stream is reset and the
//!   connection continues. A flow-control window that is closed, or opened by a byte now and then,
//!   counts as nothing. Each 16 KiB taken since the last stall of the stream add a second. While
//!   the streams of the connection together take 500 B/s for each stream that waits, each has up to
//!   ten times as long; 8,000 B/s are enough for any number of streams. The last
//!   [64 KiB](HttpBuilder::max_send_buffer_size) of a response are buffered by hyper. They end with
//!   the idle timeout if less than 500 B/s is taken.
//! - **GOAWAY** on HTTP/2 connections that have reached their maximum age or number of requests,
//!   and on idle ones above the number that a client may keep. A request that begins 5 s later
//!   resets the connection.
//! - **Graceful shutdown in limited time**:
//!   [`with_graceful_shutdown`](Serve::with_graceful_shutdown).
//!
//! Frames of a response body are passed to HTTP/2 in pieces of 16 KiB, whatever their length.
//!
//! # Requests that two readers interpret differently
//!
//! If a proxy and a server interpret the same bytes differently, an attacker can make one of them
//! see a request that the other does not see. hyper refuses nearly all such requests. This server
//! also answers the following with 400 without calling the app, and an HTTP/1 connection ends after
//! that:
//!
//! - HTTP/1.1 without `Host`. More than one `Host`. A `Host` that is not a valid host, or differs
//!   from the host in the request target (RFC 9112 section 3.2, RFC 9113 section 8.3.1). User
//!   information before the host. The same rules apply to the authority in the target. An IPv6
//!   address with a zone, as in `[fe80::1%25eth0]:80`, is not a valid host: clients have to omit
//!   the zone (RFC 9844).
//! - A `Transfer-Encoding` other than a single `chunked`.
//! - The target `*` with a method other than OPTIONS, and the target `host:port` with a method
//!   other than CONNECT.
//!
//! CONNECT is answered with 501 unless it is [enabled](HttpBuilder::allow_connect). Two things that
//! hyper accepts cannot be detected here: a bare LF as the end of a line, and `Content-Length`
//! beside `Transfer-Encoding`, of which hyper uses the second and closes the connection. RFC 9112
//! (sections 2.2 and 6.1) allows both. A proxy in front of the server should not forward them.
//!
//! # Refusals of the server
//!
//! Each refusal is an [`Event::Refused`](palisade_core::Event::Refused) of the guard `connection`.
//! All but the last one apply in every mode of the guard, so the mode of their event is
//! [`Mode::Enforce`](palisade_core::Mode::Enforce).
//!
//! | response | cause | `Reason` |
//! |---|---|---|
//! | 400 | the requests of the section above, and HTTP/1 that hyper cannot parse | `BadRequest` |
//! | 431, 414 | an HTTP/1 head above [its limits](HttpBuilder::max_header_size) | `HeadTooLarge` |
//! | 501 | CONNECT | `ConnectRefused` |
//! | 500 | an app that returns an error, or an interim status (1xx, except 101) | `AppFailed` |
//! | 503 | a [body](RequestBody) for which the byte budget has no room | `BytesFull` |
//!
//! HTTP/2 on a server with [`http1_only`](HttpBuilder::http1_only) is recorded as `BadRequest` and
//! gets no response. What the h2 crate does by itself is not recorded, because it is not visible
//! here: 431, and the streams and connections that it resets for protocol errors.
//!
//! # Memory of one hostile connection
//!
//! The most memory that one connection can make the server use, with the default settings and
//! without TLS, in bytes as requested from the allocator:
//!
//! - HTTP/2: 18.5 MiB, and one frame of each response body, as large as the app makes it. With
//!   frames of 64 KiB this is 24.8 MiB, of which 17.5 MiB were measured. It consists of the
//!   following, for each of the [100 requests](HttpBuilder::max_concurrent_streams): a
//!   [send buffer](HttpBuilder::max_send_buffer_size) of 64 KiB plus 16 KiB; header fields of
//!   [32 KiB](HttpBuilder::max_header_list_size), and 224 bytes for each of 300 fields; and 4 KiB
//!   for its task. In addition, once for the connection: the
//!   [window](HttpBuilder::connection_window) of 512 KiB, and 256 KiB for everything else.
//! - HTTP/1: 160 KiB and one frame of the response body: twice the
//!   [buffer](HttpBuilder::max_buffer_size), and the [head](HttpBuilder::max_header_size). 70 KiB
//!   were measured, and 134 KiB with frames of 64 KiB.
//!
//! Request bodies that no layer charges are charged to the
//! [byte budget](palisade_conn::ConnGuardBuilder::byte_budget): see [`RequestBody`].
//!
//! On HTTP/2, 64 KiB of the responses that are not taken are free for each connection. The rest is
//! charged to the same budget, up to half of it.
//! Without room, no body of the connection is polled, and no request of it reaches the app, until
//! the client takes some of what is kept for it. So many connections together keep less. Requests
//! that are with the app by then may still make one frame each. A frame counts as a whole, also if
//! the app shares its memory with other responses.
//!
//! What handlers allocate, and what the kernel uses for a socket, comes on top. All of it is freed
//! with the connection. Whether the allocator returns it to the system is another matter. If all
//! connections together must fit into memory, also limit the number of requests at work: 10,000
//! times 25 MiB fit nowhere.
//!
//! # Apps
//!
//! An app is one of these:
//!
//! - A service that answers requests, made once and cloned for each request: a `Router`, a
//!   `MethodRouter`, a handler with its state, tonic's `Routes`, or layers around one of them. A
//!   service of axum's own requests needs `from_axum`.
//! - A service of [`Incoming`] that makes such a service for each connection: axum's
//!   `into_make_service()` and `into_make_service_with_connect_info()`, or one of your own.
//!   [`Incoming::io`] gives it the socket, for example for the credentials of the peer. It is
//!   called between two accepts, so it should return at once. If it takes longer than a second, the
//!   connection is dropped. If it panics, the server ends.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod app;
mod connection;
mod drain;
mod framed;
#[cfg(feature = "rustls")]
mod handshakes;
mod head;
mod held;
mod http;
mod refusal;
mod request_body;
mod serve;
mod server;
mod service;
mod sniff;
mod streams;
#[cfg(test)]
mod stub;
#[cfg(test)]
mod tests;
#[cfg(feature = "rustls")]
mod tls;

pub use app::{App, ConnectionService, HttpService, Incoming, RequestService};
#[cfg(feature = "axum")]
pub use app::{FromAxum, from_axum};
pub use drain::Drained;
pub use http::{Http, HttpBuilder};
pub use palisade_core::{BoxError, ConfigError, ConfigFault, ConnInfo};
pub use request_body::RequestBody;
pub use serve::{Serve, WithGracefulShutdown, serve};
pub use sniff::Rewind;
#[cfg(feature = "rustls")]
pub use tokio_rustls::rustls;
