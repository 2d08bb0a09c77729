//! Support for the benches and the figures: trivial services, the two stacks, and servers without
//! sockets.
//!
//! "Over bare" means: compared with the same request to the same trivial service without guards.

mod bodies;
mod codec;
mod drive;
mod handlers;
mod stacks;
mod wire;

pub use bodies::Frames;
pub use codec::{ClientCodec, Completed};
pub use drive::{drive, drive_to_the_end, runtime};
pub use handlers::{
    Boxed, Identified, IntoAxum, Pends, PendsOnce, Reading, Reads, Ready, Sends, for_peers,
    for_peers_boxed,
};
pub use stacks::{
    PeerStack, at_rest, high_quota, low_quota, palisade, peers, peers_limit, tower_governor,
};
pub use wire::{Peer, Protocol, Server, hyper_http1, hyper_util_auto, serve};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use palisade::types::{ConnInfo, Prefix};
use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
};

/// The peer of all requests.
pub const PEER: ([u8; 4], u16) = ([192, 0, 2, 1], 4711);

/// Returns a request without a body and without its peer.
pub fn anonymous() -> Request<Full<Bytes>> {
    Request::new(Full::default())
}

/// Returns the connection of [`request`].
pub fn connection() -> Arc<ConnInfo> {
    ConnInfo::new(PEER.into(), None, Prefix::default())
}

/// Returns a connection of an IPv6 client.
pub fn ipv6_connection() -> Arc<ConnInfo> {
    let peer = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6);
    ConnInfo::new((peer, 4711).into(), None, Prefix::default())
}

/// Returns a request without a body that carries its connection, as palisade's guards expect.
pub fn request(conn: &Arc<ConnInfo>) -> Request<Full<Bytes>> {
    let mut request = anonymous();
    request.extensions_mut().insert(conn.clone());
    request
}

/// Returns a request without a body that carries axum's `ConnectInfo`, as the peers expect.
pub fn peer_request() -> Request<Full<Bytes>> {
    let mut request = anonymous();
    request
        .extensions_mut()
        .insert(axum::extract::ConnectInfo(SocketAddr::from(PEER)));
    request
}

/// Returns `request` with `body` and the headers of an upload.
pub fn upload<B>(request: Request<Full<Bytes>>, body: B, length: usize) -> Request<B> {
    let mut request = request.map(|_| body);
    *request.method_mut() = Method::POST;
    let headers = request.headers_mut();
    headers.insert(header::HOST, header::HeaderValue::from_static("localhost"));
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::CONTENT_LENGTH, header::HeaderValue::from(length));
    request
}
