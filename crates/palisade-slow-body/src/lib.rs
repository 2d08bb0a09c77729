//! Ends uploads that stall or trickle, and downloads that nobody takes.
//!
//! A client that sends a byte now and then holds a connection, a handler and whatever the handler
//! holds, at no cost to itself. A timeout between two frames lets the drip pass; a deadline for
//! the whole body ends honest long uploads. This layer asks for a least pace instead, with clocks
//! that run only while the client is what is waited for: a handler that takes its time and a
//! stall of the server are never charged to the client. Unlike tower-http's body timeouts it
//!
//! - answers 408, or gRPC's `DEADLINE_EXCEEDED`, as long as the response head is unsent, whatever
//!   the handler makes of its failing body, and in whatever task it reads that;
//! - keeps `Content-Length` and trailers, and costs a body that is there at once neither a timer
//!   nor a look at the clock.
//!
//! ```
//! use palisade_slow_body::SlowBodyLayer;
//! # use {bytes::Bytes, http::{Request, Response}, http_body_util::Full, std::convert::Infallible};
//! # use palisade_slow_body::RequestBody;
//! # use tower::{Layer, service_fn};
//! # async fn handler(_: Request<RequestBody<Full<Bytes>>>) -> Result<Response<Full<Bytes>>, Infallible> { todo!() }
//! let guarded = SlowBodyLayer::new().layer(service_fn(handler));
//! ```
//!
//! # The rule
//!
//! Time is time of waiting: from when the handler asked the body for more and got nothing until
//! something came. With the default [`Pace`],
//!
//! 1. something must come within 15 s (gap);
//! 2. beginning after 5 s (grace), over any stretch of waiting there must come 500 bytes for
//!    each second of it but the last ten (rate, window). Who sends more than that is credited
//!    with ten seconds at most, so that no burst buys a longer silence;
//! 3. if [asked for](PaceBuilder::total), a body whose length is known must be here within a
//!    total. Without it the second rule implies one: a body of n bytes is waited for no longer
//!    than 5 s + 10 s + n / 500 s.
//!
//! A frame counts for the bytes it carries: one of no bytes is no progress, and a hundred of one
//! byte are worth what one of a hundred is. How many frames a body may come in is for
//! `palisade-body-limit` to say.
//!
//! A verdict that falls more than 100 ms late, because the server was busy, gives the client a
//! quarter of a second more, once until it has caught up.
//!
//! # Whoever says gRPC
//!
//! A stream of gRPC is silent while its client has nothing to say, so that requests over HTTP/2
//! whose content type is gRPC's have a pace of their own ([`SlowBodyLayer::grpc`]): by default a
//! gap of 60 s and no rate. The content type is the client's own word. Whoever sends it in front of
//! any upload over HTTP/2 may send one byte a minute, for ever, on every path; what bounds that is
//! the gap, and `palisade-concurrency-limit` by how many requests may be present. A server that
//! cannot afford it asks gRPC for the pace of everybody and names its streams:
//!
//! ```
//! # use palisade_slow_body::{Pace, SlowBodyLayer};
//! let strict = SlowBodyLayer::new().grpc(Pace::default()).pace_for(|head| {
//!     (head.uri.path() == "/chat.Chat/Talk").then(Pace::conversation)
//! });
//! ```
//!
//! Over HTTP/1, where there is no gRPC, and in gRPC-Web, which has no client streams, the word
//! buys nothing.
//!
//! # Who is answered 408
//!
//! A client that sees 408 may send the request once more on a new connection by itself (RFC 9110
//! section 15.5.9); browsers do where the connection had carried a request before.
//!
//! # What it cannot see
//!
//! *A body that nobody reads.* Bytes that the handler does not ask for are not waited for: what
//! ends such a handler is a request timeout.
//!
//! *Why a body does not come, on HTTP/2.* All requests of a connection share one window, and what a
//! handler has not read fills it. While another body of the connection is not being read, the
//! silence of this one is therefore not charged, for a minute at most: that takes a server that
//! tells which connection a request came by (`palisade::serve`, or a guarded listener and
//! `connected`). Elsewhere, as under a plain `axum::serve`, nobody knows: let the handlers of
//! uploads read at once, or give uploads over HTTP/2 a longer gap and no rate by
//! [`SlowBodyLayer::pace_for`].
//!
//! *What was unpacked on the way here.* Inside a layer that decompresses request bodies a byte on
//! the wire counts as the thousand that it unpacks to. Stand outside of it.
//!
//! *How fast a client reads.* A response body knows when the server asks it for more. Behind it
//! are the server's buffers and the kernel's, megabytes of them, so that a steady reader of
//! 64 KiB a second is seen to come back every 20 s only; the default for responses is therefore
//! a gap of 120 s and no rate. On HTTP/1 hyper asks when the body's timer wakes it, so that a
//! reader who stalls is cut, within twice the gap, unless hyper's own buffer of about 400 KiB is
//! full (it is with frames as large as that). On HTTP/2 it does not ask as long as the client
//! keeps its window shut, and a reader who comes back late looks like a stall of the server: only
//! a connection guard can end such a stream, and a reader who only paused goes on. With a rate, one
//! who is late again before he has caught up is cut. A response is not judged for its first 64 KiB.
//!
//! # Panics
//!
//! The first wait for a body needs a tokio runtime whose timer is on.
#![forbid(unsafe_code)]

mod download;
mod layer;
mod meter;
mod pace;
mod policy;
mod stopwatch;

#[doc(hidden)]
pub use download::Download;
pub use layer::{RequestBody, ResponseBody, ResponseFuture, SlowBody, SlowBodyLayer};
pub use pace::{Pace, PaceBuilder};
pub use palisade_core::{
    ConfigError, ConfigFault, Mode, Pressure, Recorder, Rejection, RequestHead, Violation,
};
#[doc(hidden)]
pub use policy::{Common, Held, SlowBodyPolicy, Upload};
