//! Finds the client of a request: the peer of its connection, or the address that trusted proxies
//! name. Every guard that counts per client counts by it.
//!
//! # Without proxies
//!
//! [`ClientIp`] is the key of a client: the network of the peer. An IPv4 address is one client, and
//! so is an IPv6 /64, because the smallest subscriber gets a whole /64. Other guards and
//! extractors, such as those of `tower_governor`, count each of its 2^64 addresses as a separate
//! client.
//!
//! ```
//! use palisade_client_ip::{ClientIp, Missing};
//! use palisade_core::{ClientKey, KeyOutcome, KeyExtractor, Prefix, RequestHead};
//! use std::net::SocketAddr;
//!
//! let by_ip = ClientIp::peer().prefix(Prefix::new(24, 48).unwrap()).missing(Missing::Refuse);
//!
//! let mut request = http::Request::new(());
//! request.extensions_mut().insert(SocketAddr::from(([192, 0, 2, 7], 4711)));
//! let network = ClientKey::address([192, 0, 2, 0].into(), Prefix::default());
//! assert_eq!(by_ip.extract(&RequestHead::from(&request)), KeyOutcome::Key(network));
//! ```
//!
//! The peer is read from the request's extensions. The sources, in this order:
//!
//! 1. palisade's own `Arc<ConnInfo>`;
//! 2. axum's `ConnectInfo<SocketAddr>` (feature `axum`);
//! 3. tonic's `TcpConnectInfo` (feature `tonic`), which is there with tonic's own TLS as well;
//! 4. a bare `SocketAddr`, for servers that run hyper directly.
//!
//! # Behind proxies
//!
//! A client can write anything into a forwarding header, and would choose its own key. So a header
//! is read from trusted proxies only. [`Trust`] says which these are, and the one field in which
//! they name the client. The field is read from the right, because proxies add on the right, up to
//! the first address that is no trusted proxy.
//!
//! [`ClientIpLayer`] does it once per request and inserts a [`Client`], which [`ClientIp`] and so
//! every guard reads first. With the feature `axum` it is an extractor, too.
//!
//! ```
//! use palisade_client_ip::{ClientIp, ClientIpLayer, Networks, Trust};
//! use palisade_core::{ClientKey, KeyExtractor, KeyOutcome, Prefix, RequestHead};
//! # use palisade_testkit::example::*;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let proxies = Networks::parse("10.0.0.0/8  # our load balancers")?;
//! let layer = ClientIpLayer::new(Trust::networks(proxies.clone()))?;
//! let service = layer.layer(service_fn(async |request: Request<Full<Bytes>>| {
//!     Ok::<_, BoxError>(Response::new(ClientIp::peer().extract(&RequestHead::from(&request))))
//! }));
//!
//! let mut request = Request::new(Full::<Bytes>::default());
//! request.extensions_mut().insert(std::net::SocketAddr::from(([10, 0, 0, 7], 4711)));
//! // The client has invented the first address. The balancer has added the second one.
//! request.headers_mut().insert("x-forwarded-for", "6.6.6.6, 203.0.113.7".parse()?);
//! let client = ClientKey::address([203, 0, 113, 7].into(), Prefix::default());
//! assert_eq!(service.oneshot(request).await?.into_body(), KeyOutcome::Key(client));
//!
//! proxies.reload("10.0.0.0/8\n2001:db8::/48")?; // While it is in use.
//! # Ok(())
//! # }
//! ```
//!
//! `tower_governor`'s extractor for proxies reads four fields of any peer, the leftmost address
//! first, so that a client has a new quota with each value that it invents.
#![forbid(unsafe_code)]

mod address;
mod elements;
mod extractor;
mod forwarded;
mod layer;
mod peer;
mod proxy_protocol;
mod trust;

pub use extractor::{ClientIp, Missing};
pub use layer::{ClientIpLayer, FindClient};
#[cfg(feature = "axum")]
pub use palisade_core::ClientMissing;
pub use palisade_core::{Client, Found, Network, NetworkSet, Networks, Prefix};
pub use peer::peer;
pub use proxy_protocol::{ProxyClient, ProxyHeader, ProxyHeaderError, ProxyParse};
pub use trust::{Source, Trust, TrustTotals};
