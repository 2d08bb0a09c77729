//! Limits the requests at work. A request over the limit is answered 503 at once; it never waits.
//!
//! A request is *at work* unless it waits for its own client. While it waits for its client, for
//! the next bytes of an upload or until the next frame of a response is read, it gives its permit
//! back. When there is something to do it takes a permit again, in order and before new requests.
//! (While fewer requests are present than half of the permits, it keeps its permit meanwhile, which
//! is cheaper, and still counts as waiting.) Five hundred clients that send a byte per second into
//! their uploads therefore hold no permit that other requests need. The number of requests present,
//! at work or waiting, is limited too ([`ConcurrencyLimitLayer::present`]): over that limit, the
//! request that has waited longest for its client to send or take 512 bytes is evicted.
//!
//! It differs from tower's `ConcurrencyLimit` in that it
//! - refuses instead of queueing without bound (`LoadShed` is not needed, and no error type
//!   changes),
//! - counts a request until its response body ends, fails or is dropped, not until the response
//!   head,
//! - is one limit for all routes and connections, however often the layer is applied,
//! - can be changed while the server runs ([`ConcurrencyLimitLayer::handle`]).
//!
//! ```
//! use palisade_concurrency_limit::ConcurrencyLimitLayer;
//! # use bytes::Bytes;
//! # use http_body_util::{Empty, Full};
//! # use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! # async fn handler<B>(
//! #     _: http::Request<B>,
//! # ) -> Result<http::Response<Full<Bytes>>, std::convert::Infallible> {
//! #     Ok(http::Response::new(Full::default()))
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let limit = ConcurrencyLimitLayer::new(1);
//! let mut service = ServiceBuilder::new().layer(limit).service(service_fn(handler));
//!
//! let request = || http::Request::new(Empty::<Bytes>::new());
//! let first = service.ready().await.unwrap().call(request()); // Holds the only permit.
//! let second = service.ready().await.unwrap().call(request()).await.unwrap();
//! assert_eq!(second.status(), 503);
//! assert_eq!(first.await.unwrap().status(), 200);
//! # }
//! ```
//!
//! A request is released at its response head for `101`, for `2xx` to `CONNECT`, and for
//! `text/event-stream`, because such streams live for hours and cost next to nothing; limit them by
//! connection. For other long streams, set [`ConcurrencyLimitLayer::release_at_head`] on their
//! routes. A gRPC response stream is at work, once its request has been read, until it has returned
//! nothing for 5 s. From then on it holds no permit while it has no data, and takes one again for
//! each message, before new requests.
//!
//! The content type is set by the handler: a handler that lets its client choose the content type
//! of a stream lets that stream out of the limit.
//!
//! Limitations:
//! - A handler that read ahead in vain, as axum's `Multipart` does, and then waits for something
//!   else is detected when it is next polled, which is at once if as many requests are present then
//!   as half of the permits. Until then it works without a permit and can be evicted.
//! - A request body that is read in another task, or inside something that does not poll all its
//!   parts (`FuturesUnordered` for example), makes its request wait for the client whenever the
//!   body has no data, whatever the handler does meanwhile.
//! - Once the response head is sent, only the response acquires permits. A task that reads the
//!   request body from then on receives data as it arrives; its work counts when the response is
//!   polled.
//! - An evicted response that the server does not poll, because its reader takes nothing, stays in
//!   memory until the server polls or drops it: `present` no longer counts it, and only a guard of
//!   the connection can end it. A response that was never polled keeps its permit.
#![forbid(unsafe_code)]

mod layer;
mod limiter;
mod options;
mod policy;
mod request;

pub use layer::{
    ConcurrencyLimit, ConcurrencyLimitHandle, ConcurrencyLimitLayer, RequestBody, ResponseBody,
    ResponseFuture,
};
#[doc(hidden)]
pub use limiter::PermitExtras;
#[doc(hidden)]
pub use options::Options;
pub use palisade_core::{
    ClientKey, KeyExtractor, KeyOutcome, Mode, Recorder, Rejection, RequestHead, Violation,
};
#[doc(hidden)]
pub use policy::ConcurrencyLimitPolicy;
#[doc(hidden)]
pub use request::{Queued, ResponseState, SharedState, UploadState, Waiting};
