//! The peer of a request, as its server reports it.

use http::Extensions;
use palisade_core::ConnInfo;
use std::net::SocketAddr;

/// Returns the address at the other end of the socket of the request with these extensions, if one
/// of the sources in the [crate docs](crate) has it.
///
/// ```
/// use std::net::SocketAddr;
///
/// let mut request = http::Request::new(());
/// request.headers_mut().insert("x-forwarded-for", http::HeaderValue::from_static("192.0.2.9"));
/// assert_eq!(palisade_client_ip::peer(request.extensions()), None);
/// let socket = SocketAddr::from(([192, 0, 2, 1], 4711));
/// request.extensions_mut().insert(socket);
/// assert_eq!(palisade_client_ip::peer(request.extensions()), Some(socket));
/// ```
pub fn peer(extensions: &Extensions) -> Option<SocketAddr> {
    ConnInfo::from_extensions(extensions)
        .map(|conn| conn.peer())
        .or_else(|| peer_from_axum(extensions))
        .or_else(|| peer_from_tonic(extensions))
        .or_else(|| extensions.get().copied())
}

#[cfg(feature = "axum")]
fn peer_from_axum(extensions: &Extensions) -> Option<SocketAddr> {
    extensions
        .get::<axum::extract::ConnectInfo<SocketAddr>>()
        .map(|info| info.0)
}

#[cfg(not(feature = "axum"))]
fn peer_from_axum(_: &Extensions) -> Option<SocketAddr> {
    None
}

#[cfg(feature = "tonic")]
fn peer_from_tonic(extensions: &Extensions) -> Option<SocketAddr> {
    extensions
        .get::<tonic::transport::server::TcpConnectInfo>()?
        .remote_addr()
}

#[cfg(not(feature = "tonic"))]
fn peer_from_tonic(_: &Extensions) -> Option<SocketAddr> {
    None
}
