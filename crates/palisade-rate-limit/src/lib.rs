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
//! `grpc-retry-pushback-ms` and a `google.rpc.RetryInfo`. [`RateLimitLayer::name`] adds the header
//! fields `RateLimit-Policy` and `RateLimit` to other refusals.
//!
//! # Clients with a whole network
//!
//! A home has 256 networks of size /64 and a business 65,536 (RIPE-690 section 4.2). Each of them
//! counts as one client. [`RateLimitLayer::ladder`] limits the /56 and the /48 around a client as
//! well, to 8 and 64 times its quota, and [`RateLimitLayer::wider`] any network:
//!
//! ```
//! use palisade_metrics::Snapshot;
//! use palisade_rate_limit::{Mode, Prefix, Quota, RateLimitLayer};
//! use std::net::{Ipv6Addr, SocketAddr};
//! # use palisade_testkit::example::*;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let metrics = Snapshot::new();
//! let per_24 = Prefix::new(24, 128).expect("bits of an address");
//! let service = RateLimitLayer::new(Quota::per_second(10).burst(40))?
//!     .ladder() // /56 and /48 of IPv6.
//!     .wider(per_24, 64) // /24 of IPv4.
//!     .metrics(metrics.clone())
//!     .layer(service_fn(handler));
//!
//! // A home uses 9 of its networks at once: 40 requests more than its limit allows.
//! for network in 0..9 {
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
//! - The client is charged first, then its networks from the narrowest on. So one noisy client uses
//!   no more than its own quota of what it shares with its neighbours.
//! - The limits are generous, because a mobile carrier has thousands of unrelated users in one /48.
//! - They are in [`Mode::Shadow`] until the metrics show that they would refuse no honest client:
//!   then [`RateLimitLayer::wider_mode`] enforces them.
//! - An address behind which are many people, such as an office or a carrier's NAT, needs a larger
//!   quota: [`RateLimitLayer::quota_for`].
//!
//! # What a request turns out to cost
//!
//! [`RateLimitLayer::settle`] corrects the charge by the response: a failed login costs 10, an
//! unchanged page nothing.
//!
//! # A quota per route
//!
//! The key can be a client and its route. Take the route from axum's `MatchedPath`, and **never
//! from the path**: a client can send any path, and each would be a new quota. `MatchedPath` is
//! there in a layer of the router (`Router::layer`), and not around it.
//!
//! ```
//! use axum::extract::MatchedPath;
//! use palisade_rate_limit::{ClientIp, ClientKey, KeyExtractor, KeyOutcome, Quota};
//! use palisade_rate_limit::{RateLimitLayer, RequestHead};
//! # use palisade_testkit::example::*;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let by_ip = ClientIp::peer();
//! let by_route = move |head: &RequestHead<'_>| match by_ip.extract(head) {
//!     KeyOutcome::Key(client) => {
//!         // A request that matches no route has none, as all others of its kind.
//!         let route = head.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
//!         KeyOutcome::Key(ClientKey::of(&(client, route)))
//!     }
//!     other => other,
//! };
//! let router = axum::Router::new()
//!     .route("/users/{id}", axum::routing::get(async || "a user"))
//!     .route("/health", axum::routing::get(async || "fine"))
//!     .layer(RateLimitLayer::new(Quota::per_minute(2))?.key(by_route));
//! let status = async |path| {
//!     let request = axum::http::Request::get(path).body(axum::body::Body::empty())?;
//!     Ok::<_, BoxError>(router.clone().oneshot(request).await?.status())
//! };
//! assert_eq!(status("/users/1").await?, 200);
//! assert_eq!(status("/users/2").await?, 200);
//! assert_eq!(status("/users/3").await?, 429); // Another path, and the same route.
//! assert_eq!(status("/health").await?, 200);
//! # Ok(())
//! # }
//! ```
//!
//! # A quota per tenant
//!
//! The key can be what an outer layer has authenticated. Put this layer **behind the
//! authentication**, and count by what that has verified: by a header that is not verified, each
//! invented value is a new quota, and one client can use up the quota of another. Authentication
//! costs something as well, so keep a limit by address in front of it.
//!
//! ```
//! use palisade_rate_limit::{ClientKey, KeyOutcome, Quota, RateLimitLayer, RequestHead};
//! # use palisade_testkit::example::*;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! /// Inserted by the authentication, after it has verified the token.
//! #[derive(Clone, Hash)]
//! struct Tenant(u64);
//!
//! let by_tenant = |head: &RequestHead<'_>| match head.extensions.get::<Tenant>() {
//!     Some(tenant) => KeyOutcome::Key(ClientKey::of(tenant)),
//!     None => KeyOutcome::Refuse, // The layers are in the wrong order.
//! };
//! let service = tower::ServiceBuilder::new()
//!     .layer(RateLimitLayer::new(Quota::per_second(100))?) // By address, for everyone.
//!     .map_request(|mut request: Request<Full<Bytes>>| {
//!         request.extensions_mut().insert(Tenant(7)); // Stands for the authentication.
//!         request
//!     })
//!     .layer(RateLimitLayer::new(Quota::per_minute(1))?.key(by_tenant))
//!     .service(service_fn(echo));
//! assert_eq!(service.clone().oneshot(Request::default()).await?.status(), 200);
//! assert_eq!(service.oneshot(Request::default()).await?.status(), 429);
//! # Ok(())
//! # }
//! ```
//!
//! # Problem details
//!
//! A JSON body as in RFC 9457, with the problem type that the draft of the `RateLimit` fields
//! registers, is a few lines of [`RateLimitLayer::on_reject`]. So are fields of other forms, such
//! as `X-RateLimit-Limit`.
//!
//! ```
//! use palisade_rate_limit::{Quota, RateLimitLayer};
//! # use palisade_testkit::example::*;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! const EXCEEDED: &str = r#"{
//!   "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
//!   "title": "The quota of this client is used up",
//!   "violated-policies": ["api"]
//! }"#;
//! let layer = RateLimitLayer::new(Quota::per_minute(1))?.name("api")?;
//! let layer = layer.on_reject(|rejection| {
//!     if rejection.status() != 429 {
//!         return Response::new(Bytes::from_static(rejection.message().as_bytes()));
//!     }
//!     let mut response = Response::new(Bytes::from_static(EXCEEDED.as_bytes()));
//!     let kind = http::HeaderValue::from_static("application/problem+json");
//!     response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
//!     response
//! });
//! let service = layer.layer(service_fn(handler));
//! service.clone().oneshot(Request::default()).await?;
//! let refused = service.oneshot(Request::default()).await?;
//! assert_eq!(refused.status(), 429);
//! assert_eq!(refused.headers()["content-type"], "application/problem+json");
//! assert_eq!(refused.headers()["retry-after"], "60");
//! assert_eq!(refused.headers()["ratelimit"], r#""api";r=0;t=60"#);
//! # Ok(())
//! # }
//! ```
//!
//! The metrics record every refusal, and the gauges show how full the table is. Admitted requests
//! are not counted: all cores would write to one counter for every request, and a server that
//! counts requests at all already has that number.
#![forbid(unsafe_code)]

mod account;
mod fields;
mod fleet;
mod gauges;
#[cfg(feature = "governor")]
mod governor;
mod layer;
mod limiter;
mod nodes;
mod options;
mod policy;
mod quota;
mod service;
mod settled;

#[cfg(feature = "governor")]
pub use crate::governor::TableStore;
pub use account::{Account, QuotaState};
pub use layer::RateLimitLayer;
#[doc(hidden)]
pub use limiter::{Checked, Deferred};
pub use limiter::{Decision, Limiter, TableLimiter};
pub use nodes::CountsFleet;
#[doc(hidden)]
pub use nodes::{Alone, FleetQuotas, LocalDebts, Verdict};
pub use options::ResponseHead;
pub use palisade_client_ip::{ClientIp, Missing};
pub use palisade_core::{
    ClientKey, ConfigError, ConfigFault, KeyExtractor, KeyOutcome, Mode, Network, NetworkSet,
    Networks, Prefix, Recorder, Rejection, RequestHead, Violation,
};
#[doc(hidden)]
pub use policy::{Charged, RateLimitPolicy};
pub use quota::{Policy, Quota};
pub use service::{RateLimit, ResponseFuture};
