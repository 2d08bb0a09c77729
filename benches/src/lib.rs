//! What the benches and the figures share: trivial services, the two stacks, and servers without
//! sockets.
//!
//! "Over bare" is the same request on the same trivial service without guards.

mod bodies;
mod drive;
mod exchange;
mod handlers;
mod stacks;
mod wire;

pub use bodies::Frames;
pub use drive::{drive, drive_to_the_end, runtime};
pub use exchange::{Answer, Exchange};
pub use handlers::{
    Boxed, Identified, IntoAxum, Pends, PendsOnce, Reading, Reads, Ready, Sends, for_peers,
    for_peers_boxed,
};
pub use stacks::{PeerStack, generous, palisade, peers, peers_limit, stingy, tower_governor};
pub use wire::{Peer, Protocol, Server, hyper_http1, hyper_util_auto, serve};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use palisade::types::{ConnInfo, Prefix};
use std::{net::SocketAddr, sync::Arc};

/// Who asks.
pub const PEER: ([u8; 4], u16) = ([192, 0, 2, 1], 4711);

/// A request without a body, and without a word on who sent it.
pub fn anonymous() -> Request<Full<Bytes>> {
    Request::new(Full::default())
}

/// The connection that [`request`] comes by.
pub fn connection() -> Arc<ConnInfo> {
    ConnInfo::new(PEER.into(), None, Prefix::default())
}

/// A request without a body that carries its connection, as palisade's guards like it.
pub fn request(conn: &Arc<ConnInfo>) -> Request<Full<Bytes>> {
    let mut request = anonymous();
    request.extensions_mut().insert(conn.clone());
    request
}

/// A request without a body that carries axum's `ConnectInfo`, as the peers want it.
pub fn peer_request() -> Request<Full<Bytes>> {
    let mut request = anonymous();
    request
        .extensions_mut()
        .insert(axum::extract::ConnectInfo(SocketAddr::from(PEER)));
    request
}

/// `request` with `body`, and with the headers that an upload has.
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
