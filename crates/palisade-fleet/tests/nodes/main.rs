//! Nodes that count together.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

#[cfg(unix)]
mod failures;
mod false_redis;
mod hostile;
mod layers;
mod memory;
mod node;
mod outage;
#[cfg(unix)]
mod proxy;
#[cfg(unix)]
mod redis;
#[cfg(unix)]
mod servers;
#[cfg(unix)]
mod soak;
#[cfg(all(unix, feature = "rustls"))]
mod tls;

use http::{Request, Response};
use http_body_util::Empty;
use palisade_rate_limit::{RateLimit, RateLimitLayer};
use std::{convert::Infallible, net::SocketAddr};
use tower::{Layer, ServiceExt, service_fn};

pub(crate) const SECRET: &str = "a secret of the tests";

/// Sends a request of one of 256 clients through `layer`. Returns the status.
pub(crate) async fn status(layer: &RateLimitLayer, client: u8) -> u16 {
    let mut request = Request::new(Empty::<bytes::Bytes>::new());
    let peer = SocketAddr::from(([192, 0, 2, client], 4711));
    request.extensions_mut().insert(peer);
    let handler = service_fn(async |_: Request<Empty<bytes::Bytes>>| {
        Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
    });
    let service: RateLimit<_> = layer.layer(handler);
    service.oneshot(request).await.unwrap().status().as_u16()
}
