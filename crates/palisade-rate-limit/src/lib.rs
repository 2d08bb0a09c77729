//! Limits how fast each client may send requests. What is too much is answered 429 with
//! `Retry-After` at once; nothing waits.
//!
//! tower's own `RateLimit` is one limit for everybody, so a single client uses it up for all, and
//! it makes callers wait. `tower_governor` counts per client, but its memory grows with every
//! address that ever came along, an IPv6 client has 2^64 addresses there, and its `Retry-After` is
//! 0 for any wait below a second. Here a client is an IPv4 address or an IPv6 /64, and the table
//! of clients has a fixed size: 8 bytes for each of 1,048,576 by default. Where it is full the
//! client with the least debt is forgotten, so that nobody gets rid of a debt by bringing a flood
//! of other addresses along.
//!
//! ```
//! use palisade_rate_limit::{Quota, RateLimitLayer};
//! # use {bytes::Bytes, http_body_util::Full, tower::{Layer, service_fn}};
//! # async fn handler(_: http::Request<Full<Bytes>>) -> Result<http::Response<Full<Bytes>>, ()> { todo!() }
//! # fn main() -> Result<(), palisade_rate_limit::ConfigError> {
//! // Ten requests a second for each client, and forty at once for those who had a rest.
//! let layer = RateLimitLayer::new(Quota::per_second(10).burst(40))?;
//! let guarded = layer.layer(service_fn(handler));
//! # Ok(())
//! # }
//! ```
//!
//! The server must say who its peers are: see [`ClientIp`], and enable the feature `axum` or
//! `tonic`.
//!
//! On axum the layer may stand at `Router::layer` as well as around the whole router: all routes
//! and connections share one limit. For gRPC the answer is `RESOURCE_EXHAUSTED` with
//! `grpc-retry-pushback-ms`.
//!
//! # Whoever owns a whole network
//!
//! A home has 256 networks of a /64 and a business 65,536 (RIPE-690 section 4.2), each of which is
//! a client here. A second layer behind the first limits all of a wider network together:
//!
//! ```
//! use palisade_rate_limit::{ClientIp, Mode, Prefix, Quota, RateLimitLayer};
//! # fn main() -> Result<(), palisade_rate_limit::ConfigError> {
//! let business = ClientIp::peer().prefix(Prefix::new(32, 48).expect("bits of an address"));
//! let layers = tower::ServiceBuilder::new()
//!     .layer(RateLimitLayer::new(Quota::per_second(10).burst(40))?)
//!     .layer(RateLimitLayer::new(Quota::per_second(640).burst(2560))?.key(business).mode(Mode::Shadow));
//! # Ok(())
//! # }
//! ```
//!
//! The narrow one first, so that one noisy client charges his neighbours no more than his own
//! quota. Generously: 8 times as much for a /56 and 64 times for a /48, because a mobile carrier
//! has thousands of unrelated people in one /48. And in [`Mode::Shadow`] until the metrics have
//! shown that it would meet nobody honest.
//!
//! The metrics hear of every refusal and can ask how full the table is. Admitted requests are not
//! counted: that would be one number which all cores write to for every request, and whoever
//! counts requests at all knows it.
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
    ClientKey, ConfigError, ConfigFault, KeyExtractor, KeyOutcome, Mode, Prefix, RequestHead,
};
#[doc(hidden)]
pub use policy::RateLimitPolicy;
pub use quota::{Policy, Quota};
pub use service::{RateLimit, ResponseFuture};
