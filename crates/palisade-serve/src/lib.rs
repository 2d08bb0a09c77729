//! Serves a `Router`, or any tower service, on hyper with every bound set: one line in place of
//! `axum::serve`.
//!
//! `axum::serve` lets in as many connections as come and waits for each for ever, gives hyper no
//! timer and no limit, cannot tell one HTTP/2 connection to go, and lets any client hold up a
//! shutdown. Here a [`ConnGuard`](palisade_conn::ConnGuard) stands before hyper, and hyper is told
//! what it may take.
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
//! All that [`palisade_conn`] says holds, with nothing more to be put in: requests are tracked
//! for, and each brings the `ConnHandle` of its connection. Besides:
//!
//! - **HTTP by your settings**, [`Http`]: heads of 32 KiB on both protocols, 100 requests at once on
//!   one HTTP/2 connection, 64 KiB kept for a reader, and so on. Answers 431 and 400 of hyper's own are
//!   left as they are, and 414 where [`max_header_size`](HttpBuilder::max_header_size) lets a URI
//!   grow so long.
//! - **Its own answers are told** to the guard's metrics, see [below](#what-it-answers-by-itself).
//! - **One look at the first bytes** tells HTTP/1 from HTTP/2. The deadline of the first request
//!   stands over it, and over a TLS handshake.
//! - **Single HTTP/2 streams**: an answer of which nothing is taken for the guard's
//!   [`write_stall`](palisade_conn::ConnGuardBuilder::write_stall) is reset, and the connection
//!   lives on. A window that is shut, or opened by a byte now and then, counts as nothing. Each
//!   16 KiB taken since its last stall adds a second. While the streams of the connection together
//!   take 500 B/s for each that waits (8,000 are enough for any number), each has up to ten times
//!   that time. The last
//!   [64 KiB](HttpBuilder::max_send_buffer_size) of an answer are hyper's, and go with the idle time
//!   if less than 500 B/s is taken.
//! - **GOAWAY** for HTTP/2 connections of age, with their number of requests, or one too many idle
//!   ones of a client; a request that
//!   comes 5 s later all the same resets the connection.
//! - **A shutdown with an end**: [`with_graceful_shutdown`](Serve::with_graceful_shutdown).
//!
//! Pieces of a response body are handed to HTTP/2 16 KiB at a time, whatever their length.
//!
//! # Requests that are read in two ways
//!
//! Where a proxy and a server read the same bytes differently, one of them can be made to see
//! a request that the other did not. hyper refuses nearly all that could be; besides, the app does
//! not get to see, and the client is answered 400, after which an HTTP/1 connection ends:
//!
//! - HTTP/1.1 without `Host`; more than one; one that is no host, or not the one of the target
//!   (RFC 9112 section 3.2, RFC 9113 section 8.3.1); a user before the host. The same holds for the
//!   authority of the target. An IPv6 address with a zone, as in `[fe80::1%25eth0]:80`, is no host:
//!   clients are to leave the zone out (RFC 9844);
//! - `Transfer-Encoding` other than once `chunked`;
//! - `*` for other methods than OPTIONS, `host:port` for others than CONNECT.
//!
//! CONNECT is answered 501 unless it is [asked for](HttpBuilder::connect). What hyper takes and
//! cannot be seen from here: a bare LF for the end of a line, and `Content-Length` beside
//! `Transfer-Encoding`, of which the second holds and the connection ends. RFC 9112 (sections 2.2
//! and 6.1) allows both; a proxy in front should not hand them on.
//!
//! # What it answers by itself
//!
//! Each is an [`Event::Refused`](palisade_core::Event::Refused) of the guard `connection`. These
//! bounds hold in every mode of the guard, so the event says
//! [`Mode::Enforce`](palisade_core::Mode::Enforce).
//!
//! | answer | what for | `Reason` |
//! |---|---|---|
//! | 400 | what the section above says, and HTTP/1 that hyper cannot read | `BadRequest` |
//! | 431, 414 | an HTTP/1 head over [its limits](HttpBuilder::max_header_size) | `HeadTooLarge` |
//! | 501 | CONNECT | `ConnectRefused` |
//! | 500 | an app that fails, or answers with an interim status (1xx, but 101) | `AppFailed` |
//!
//! HTTP/2 where [only HTTP/1](HttpBuilder::http1_only) is spoken is told as `BadRequest`, and gets
//! no answer. What the h2 crate says by itself on HTTP/2 is not told, because it is not known here:
//! 431, and the streams and connections that it resets for errors of the protocol.
//!
//! # What one hostile connection can make the server keep
//!
//! By default settings, without TLS, in bytes as they are asked of the allocator:
//!
//! - HTTP/2: 27.7 MiB, and one piece of each of its responses as long as the app makes it: with
//!   pieces of 64 KiB 34.0 MiB, of which 30.4 MiB were measured. That is, for each of the
//!   [100 requests](HttpBuilder::max_concurrent_streams), a
//!   [send buffer](HttpBuilder::max_send_buffer_size) of 64 KiB and 16 KiB over it, header fields
//!   of [32 KiB](HttpBuilder::max_header_list_size), which weigh six times that where they are many
//!   and short, and 4 KiB for its task; and once the [window](HttpBuilder::connection_window) of
//!   512 KiB and 256 KiB for everything else.
//! - HTTP/1: 160 KiB and one piece of the response: twice the
//!   [buffer](HttpBuilder::max_buffer_size), and the [head](HttpBuilder::max_header_size). 70 KiB
//!   were measured, and with pieces of 64 KiB 134 KiB.
//!
//! What handlers allocate comes on top, and what the kernel keeps for a socket. All of it is given
//! back with the connection; whether the allocator gives it back to the system is another matter.
//! Guard the number of requests at work as well, if all connections together must fit: 10,000 times
//! 34 MiB fit nowhere.
//!
//! # What it takes
//!
//! A service that answers requests, made once and cloned for each: a `Router`, a `MethodRouter`, a
//! handler with its state, tonic's `Routes`, layers around one. Or a service that makes one for
//! each connection, from [`Incoming`]: axum's `into_make_service()` and
//! `into_make_service_with_connect_info()`, or one of your own; [`Incoming::io`] lends it the
//! socket, for the peer's credentials and the like. What takes axum's own requests only wants to be
//! given to `from_axum`. A service that makes others is asked between two accepts, so it should
//! answer at once; one that takes longer than a second costs the connection, and a panic in it ends
//! the server.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod app;
mod connection;
mod drain;
mod framed;
#[cfg(feature = "rustls")]
mod handshakes;
mod head;
mod http;
mod refusal;
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

pub use app::{App, HttpService, Incoming, OfConnections, OfRequests};
#[cfg(feature = "axum")]
pub use app::{FromAxum, from_axum};
pub use drain::Drained;
pub use http::{Http, HttpBuilder};
pub use palisade_core::{BoxError, ConfigError, ConfigFault, ConnInfo};
pub use serve::{Serve, WithGracefulShutdown, serve};
pub use sniff::Rewind;
#[cfg(feature = "rustls")]
pub use tokio_rustls::rustls;
