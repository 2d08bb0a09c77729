//! Ends uploads that stall or trickle, and downloads that the client does not take.
//!
//! A client that sends a byte now and then occupies a connection, a handler and the resources of
//! the handler, at no cost to itself. A timeout between two frames does not stop the client, and
//! a deadline for the whole body ends long uploads of well-behaved clients. This layer requires a
//! minimum rate instead. Its clocks run only while the client is awaited: neither the time that a
//! handler takes nor a stall of the server is charged to the client. Unlike tower-http's body
//! timeouts it
//!
//! - answers 408, or gRPC's `DEADLINE_EXCEEDED`, until the response head is sent, whatever the
//!   handler does with the failed body, and in whatever task the body is read;
//! - keeps `Content-Length` and trailers, and needs neither a timer nor a clock reading for a body
//!   that is ready at once.
//!
//! ```
//! use palisade_slow_body::SlowBodyLayer;
//! # use palisade_testkit::example::*;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! // The handler collects the body. `upload(pieces, bytes, pause)`: so many pieces of so many
//! // bytes, a pause before each.
//! let service = SlowBodyLayer::new().layer(service_fn(echo));
//! let response = service.clone().oneshot(upload(100, 10_000, SECOND)).await?;
//! assert_eq!(response.status(), 200);
//! let response = service.oneshot(upload(1_000_000, 1, SECOND)).await?;
//! assert_eq!(response.status(), 408);
//! # Ok(())
//! # }
//! ```
//!
//! # The rules
//!
//! All times are waiting times: from when the handler asks the body for more and nothing is there,
//! until something arrives. With the default [`Pace`],
//!
//! 1. bytes must arrive within 15 s (gap);
//! 2. after 5 s (grace), any stretch of waiting time must bring 500 bytes for each of its seconds
//!    but the last ten (rate, window). A client that sends more is credited with ten seconds at
//!    most, so that no burst allows a longer silence;
//! 3. if a [total](PaceBuilder::total) is set, a body of known length must arrive within it.
//!    Without a total the second rule implies one: the waiting time of a body of n bytes is at most
//!    5 s + 10 s + n / 500 s.
//!
//! A frame counts by its bytes: an empty frame is not progress, and a hundred frames of one byte
//! count as much as one frame of a hundred bytes. The number of frames is limited by
//! `palisade-body-limit`.
//!
//! If a check finds the body too slow more than 100 ms late, because the server was busy, the
//! client is given another quarter of a second, once until it has caught up.
//!
//! # Requests that claim to be gRPC
//!
//! A gRPC stream is silent while its client has no message. Requests over HTTP/2 with a gRPC
//! content type therefore have their own pace ([`SlowBodyLayer::grpc`]): by default a gap of 60 s
//! and no rate. Clients choose the content type freely. A client that sets it on any upload over
//! HTTP/2 may send one byte per minute forever, on every path. Only the gap limits this, and
//! `palisade-concurrency-limit`, which bounds how many requests are present. A server that cannot
//! afford that requires the general pace of gRPC as well, and names its streams:
//!
//! ```
//! use palisade_slow_body::{Pace, SlowBodyLayer};
//! # use palisade_testkit::example::*;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let strict = SlowBodyLayer::new().grpc(Pace::default()).pace_for(|head| {
//!     (head.uri.path() == "/chat.Chat/Talk").then(Pace::conversation)
//! });
//! # let call = |path: &str| {
//! #     let mut request = upload(4, 1, 30 * SECOND);
//! #     *request.method_mut() = Method::POST;
//! #     *request.version_mut() = Version::HTTP_2;
//! #     let value = http::HeaderValue::from_static("application/grpc");
//! #     request.headers_mut().insert("content-type", value);
//! #     path.parse().map(|uri| { *request.uri_mut() = uri; request })
//! # };
//! // A byte every 30 s, with a content type of gRPC.
//! let service = strict.layer(service_fn(echo));
//! let response = service.clone().oneshot(call("/chat.Chat/Talk")?).await?;
//! assert_eq!(response.headers().get("grpc-status"), None);
//! let response = service.oneshot(call("/upload")?).await?;
//! assert_eq!(response.headers()["grpc-status"], "4"); // DEADLINE_EXCEEDED
//! # Ok(())
//! # }
//! ```
//!
//! Over HTTP/1, which does not carry gRPC, and in gRPC-Web, which has no client streams, the
//! content type has no effect on the pace.
//!
//! # Retries after 408
//!
//! A client that receives 408 may repeat the request on a new connection on its own (RFC 9110
//! section 15.5.9). Browsers do so if the connection had carried a request before.
//!
//! # Limitations
//!
//! *Bodies that are not read.* A body is not awaited while the handler does not ask for it. Use a
//! request timeout to end the handler.
//!
//! *Shared windows of HTTP/2.* All requests of a connection share one window, which fills with the
//! bytes that handlers have not read. While another body of the connection is not being read, the
//! silence of a body is therefore not charged, for a minute at most. This requires a server that
//! tells which connection a request belongs to: `palisade::serve`, or a guarded listener with
//! `connected`. Under other servers, such as a plain `axum::serve`, the layer does not know of the
//! other bodies. There, let upload handlers read at once, or give uploads over HTTP/2 a longer gap
//! and no rate with [`SlowBodyLayer::pace_for`].
//!
//! *Compressed bodies.* Inside a layer that decompresses request bodies, a byte on the wire counts
//! as the thousand bytes that it decompresses to. Place this layer outside.
//!
//! *The reading rate of a client.* A response body only knows when the server asks it for more.
//! Between it and the client are the buffers of the server and of the kernel, which hold megabytes:
//! while a client reads a steady 64 KiB per second, the server asks for more only every 20 s. The
//! default for responses is therefore a gap of 120 s and no rate. The first 64 KiB of a response
//! are not checked.
//!
//! On HTTP/1, hyper asks for more when the timer of the body wakes it. A client that stalls is cut
//! within twice the gap, unless hyper's own buffer of about 400 KiB is full, as it is if the frames
//! are as large as that.
//!
//! On HTTP/2, hyper does not ask for more while the client keeps its window closed, and a client
//! that returns late looks like a stall of the server. A client that only paused can continue; only
//! a connection guard can end a stream that is stalled by its window. With a rate, a client that is
//! late again before it has caught up is cut.
//!
//! # Panics
//!
//! The first wait for a body panics outside of a tokio runtime with an enabled timer.
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
    Budget, ConfigError, ConfigFault, Mode, Pressure, Recorder, Rejection, RequestHead, Violation,
};
#[doc(hidden)]
pub use policy::{ResponseState, SharedState, SlowBodyPolicy, UploadState};
