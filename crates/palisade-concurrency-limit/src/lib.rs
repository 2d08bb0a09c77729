//! Caps the requests at work. The one over the cap is answered 503 at once; it never waits.
//!
//! A request is *at work* while our own code is what it waits for. While it waits for its own
//! client, for the next bytes of an upload or until the next piece of an answer is taken,
//! it gives its permit up and takes it again, in order and before newcomers, when there is
//! something to do. (While fewer requests are present than half of the permits it keeps its own
//! meanwhile, which is cheaper, and counts as waiting all the same.) So five hundred clients that
//! drip a byte a second into their uploads hold no permit that an honest request needs. How many
//! requests may be here at all, at work or waiting, is capped too
//! ([`ConcurrencyLimitLayer::present`]); there the one goes that has waited longest for its client
//! to send or take 512 bytes.
//!
//! It differs from tower's `ConcurrencyLimit` in that it
//! - refuses instead of queueing without bound (`LoadShed` is not needed, and no error type
//!   changes),
//! - counts a request until its response body ends, fails or is dropped, not until the head is out,
//! - is one limit for all routes and connections, however often the layer is applied,
//! - can be changed while the server runs ([`ConcurrencyLimitLayer::handle`]).
//!
//! ```
//! use palisade_concurrency_limit::ConcurrencyLimitLayer;
//! # use bytes::Bytes;
//! # use http_body_util::{Empty, Full};
//! # use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! # async fn handler<B>(_: http::Request<B>) -> Result<http::Response<Full<Bytes>>, std::convert::Infallible> {
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
//! What ends the count early: a `101`, a `2xx` to `CONNECT`, and `text/event-stream`, because such
//! streams live for hours and cost next to nothing; cap them by the connection. Other long streams
//! of your own: put [`ConcurrencyLimitLayer::release_at_head`] on their routes. A gRPC response
//! stream whose request was read is at work until it has given nothing for 5 s. From then on it
//! holds no permit while it has nothing to give, and takes one again for each message, before
//! newcomers.
//!
//! The content type is the handler's word: one that lets its client choose the content type of a
//! stream lets it out of the count.
//!
//! What it cannot see:
//! - A handler that read ahead in vain, as axum's `Multipart` does, and then waits for something
//!   else is found out when it is next polled, which is at once if as many requests are present
//!   then as half of the permits. For that long it works without a permit, and can be evicted.
//! - A request body that is read in another task, or inside something that does not poll all its
//!   parts (`FuturesUnordered` for example), makes its request wait for the client whenever it has
//!   nothing to give, whatever the handler does meanwhile.
//! - Once the response head is out, only the answer asks for permits. A task that reads the request
//!   body from then on is handed what comes at once; its work counts when the answer is asked for.
//! - A evicted answer that the server does not poll, because its reader takes nothing, stays in
//!   memory until the server polls or drops it: `present` counts it no more, and only what guards
//!   the connection can cut it. Likewise an answer that was never polled keeps its permit.
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
pub use limiter::Extras;
#[doc(hidden)]
pub use options::Options;
#[doc(hidden)]
pub use policy::ConcurrencyLimitPolicy;
#[doc(hidden)]
pub use request::{Common, Held, Queued, Upload, Waits};
