//! Limits the request rate of each client. A request over the limit is answered 429 with
//! `Retry-After` at once; no request is queued.
//!
//! tower's own `RateLimit` is one limit for all clients, so a single client can use up all of it,
//! and it makes callers wait. `tower_governor` counts per client, but its memory grows with every
//! new address, it counts each of the 2^64 addresses of an IPv6 client separately, and its
//! `Retry-After` is 0 for any wait below a second. Here a client is an IPv4 address or an IPv6
//! /64, and the table of clients has a fixed size: 8 bytes for each of 1,048,576 clients by
//! default. When the table is full, the client with the least debt is evicted, so a client cannot
//! clear its debt by sending from a flood of other addresses.
//!
//! ```
//! use palisade_rate_limit::{Quota, RateLimitLayer};
//! # use palisade_testkit::example::*;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! // Ten requests a second for each client, and forty at once for a client without debt.
//! let layer = RateLimitLayer::new(Quota::per_second(10).burst(40))?;
//! let guarded = layer.layer(service_fn(handler));
//! for _ in 0..40 {
//!     assert_eq!(guarded.clone().oneshot(Request::default()).await?.status(), 200);
//! }
//! let refused = guarded.oneshot(Request::default()).await?;
//! assert_eq!(refused.status(), 429);
//! assert_eq!(refused.headers()["retry-after"], "1");
//! # Ok(())
//! # }
//! ```
//!
//! The server must put the address of the peer into each request: see [`ClientIp`], and enable the
//! feature `axum` or `tonic`.
//!
//! On axum the layer works at `Router::layer` as well as around the whole router: all routes and
//! connections share one limit. A gRPC request is answered `RESOURCE_EXHAUSTED` with
//! `grpc-retry-pushback-ms`.
//!
//! # Clients with a whole network
//!
//! A home has 256 networks of size /64 and a business 65,536 (RIPE-690 section 4.2). Each of them
//! counts as one client. A second layer inside the first one limits a wider network as a whole:
//!
//! ```
//! use palisade_metrics::Snapshot;
//! use palisade_rate_limit::{ClientIp, Mode, Prefix, Quota, RateLimitLayer};
//! use std::net::{Ipv6Addr, SocketAddr};
//! # use palisade_testkit::example::*;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let metrics = Snapshot::new();
//! let business = ClientIp::peer().prefix(Prefix::new(32, 48).expect("bits of an address"));
//! let service = tower::ServiceBuilder::new()
//!     .layer(RateLimitLayer::new(Quota::per_second(10).burst(40))?)
//!     .layer(
//!         RateLimitLayer::new(Quota::per_second(640).burst(2560))?
//!             .key(business)
//!             .mode(Mode::Shadow)
//!             .metrics(metrics.clone()),
//!     )
//!     .service(service_fn(handler));
//!
//! // A business uses 65 of its networks at once: 40 requests more than the wide limit allows.
//! for network in 0..65 {
//!     let peer = Ipv6Addr::new(0x2001, 0xdb8, 1, network, 0, 0, 0, 1);
//!     for _ in 0..40 {
//!         let mut request = Request::new(Full::default());
//!         request.extensions_mut().insert(SocketAddr::new(peer.into(), 4711));
//!         assert_eq!(service.clone().oneshot(request).await?.status(), 200);
//!     }
//! }
//! assert_eq!(metrics.total_refused(Mode::Shadow), 40);
//! # Ok(())
//! # }
//! ```
//!
//! - The narrow limit is the outer layer, so that one noisy client uses no more than its own quota
//!   of the limit that it shares with its neighbours.
//! - The wide limit is generous: 8 times the narrow one for a /56 and 64 times for a /48, because a
//!   mobile carrier has thousands of unrelated users in one /48.
//! - The wide limit runs in [`Mode::Shadow`] until the metrics show that it would refuse no honest
//!   client.
//!
//! The metrics record every refusal, and the gauges show how full the table is. Admitted requests
//! are not counted: all cores would write to one counter for every request, and a server that
//! counts requests at all already has that number.
#![forbid(unsafe_code)]

#[cfg(feature = "governor")]
mod governor;
mod layer;
mod limiter;
mod policy;
mod quota;
mod service;

#[cfg(feature = "governor")]
pub use crate::governor::TableStore;
pub use layer::RateLimitLayer;
pub use limiter::{Decision, Limiter, TableLimiter};
pub use palisade_client_ip::{ClientIp, Missing};
pub use palisade_core::{
    ClientKey, ConfigError, ConfigFault, KeyExtractor, KeyOutcome, Mode, Prefix, Recorder,
    Rejection, RequestHead, Violation,
};
#[doc(hidden)]
pub use policy::RateLimitPolicy;
pub use quota::{Policy, Quota};
pub use service::{RateLimit, ResponseFuture};
