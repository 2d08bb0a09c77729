//! Tells who is asking: the network of the connection's peer, as the key that per-client guards
//! count by.
//!
//! It reads what the server left in the request's extensions, in this order:
//!
//! 1. palisade's own `Arc<ConnInfo>`;
//! 2. axum's `ConnectInfo<SocketAddr>` (feature `axum`);
//! 3. tonic's `TcpConnectInfo` (feature `tonic`), which tonic's own TLS leaves there as well;
//! 4. a bare [`SocketAddr`], for whoever runs hyper by hand.
//!
//! A header such as `X-Forwarded-For` is never read: whoever is connected can write anything into
//! it, and so would choose for himself whom he is counted as. Behind a proxy all requests
//! therefore count as the proxy's.
//!
//! An IPv4 address is a client, and so is an IPv6 /64, because the smallest subscriber gets one
//! whole. Other guards and extractors, such as `tower_governor`'s, take each of its 2^64 addresses
//! for another client.
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
#![forbid(unsafe_code)]

use http::Extensions;
use palisade_core::{ClientKey, ConnInfo, KeyExtractor, KeyOutcome, RequestHead};
use std::net::SocketAddr;

pub use palisade_core::Prefix;

/// Counts requests by the network of their peer: a [`KeyExtractor`]. The default of every guard
/// that counts per client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientIp {
    prefix: Option<Prefix>,
    missing: Missing,
}

/// What becomes of a request of which nobody knows where it comes from.
///
/// That is a fault in how the server is put together: axum, for one, tells its layers the peer
/// only if it is served with `into_make_service_with_connect_info::<SocketAddr>()`. With the
/// feature `tracing` it is said once per process, as a warning, whatever is chosen here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// All such requests count as one client, [`ClientKey::SHARED`]. Nobody gets round a limit
    /// that way; rather everybody meets it early.
    #[default]
    Shared,
    /// Refused with 500, and `PeerMissing` in the metrics.
    Refuse,
    /// Passes uncounted. A server that is set up wrongly then has no limit per client.
    Pass,
}

// === ClientIp ===

impl ClientIp {
    /// By the other end of the socket.
    pub const fn peer() -> Self {
        Self {
            prefix: None,
            missing: Missing::Shared,
        }
    }

    /// How many bits of the peer's address make a client. Defaults to what whoever accepted the
    /// connection chose for its `ConnInfo`, else to an IPv4 address and an IPv6 /64.
    pub const fn prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = Some(prefix);
        self
    }

    /// What becomes of a request without a known peer. Defaults to [`Missing::Shared`].
    pub const fn missing(mut self, missing: Missing) -> Self {
        self.missing = missing;
        self
    }
}

impl KeyExtractor for ClientIp {
    fn extract(&self, head: &RequestHead<'_>) -> KeyOutcome {
        if self.prefix.is_none()
            && let Some(conn) = ConnInfo::from_extensions(head.extensions)
        {
            return KeyOutcome::Key(conn.client()); // Worked out once per connection.
        }
        if let Some(peer) = peer(head.extensions) {
            return KeyOutcome::Key(ClientKey::address(
                peer.ip(),
                self.prefix.unwrap_or_default(),
            ));
        }
        warn_once(self.missing);
        match self.missing {
            Missing::Shared => KeyOutcome::Key(ClientKey::SHARED),
            Missing::Refuse => KeyOutcome::Refuse,
            Missing::Pass => KeyOutcome::Exempt,
        }
    }
}

// === peer ===

/// The other end of the socket of the request with these extensions, if the server left word of
/// it. The [crate docs](crate) say where it is looked for.
pub fn peer(extensions: &Extensions) -> Option<SocketAddr> {
    ConnInfo::from_extensions(extensions)
        .map(|conn| conn.peer())
        .or_else(|| peer_of_axum(extensions))
        .or_else(|| peer_of_tonic(extensions))
        .or_else(|| extensions.get().copied())
}

#[cfg(feature = "axum")]
fn peer_of_axum(extensions: &Extensions) -> Option<SocketAddr> {
    extensions
        .get::<axum::extract::ConnectInfo<SocketAddr>>()
        .map(|info| info.0)
}

#[cfg(not(feature = "axum"))]
fn peer_of_axum(_: &Extensions) -> Option<SocketAddr> {
    None
}

#[cfg(feature = "tonic")]
fn peer_of_tonic(extensions: &Extensions) -> Option<SocketAddr> {
    extensions
        .get::<tonic::transport::server::TcpConnectInfo>()?
        .remote_addr()
}

#[cfg(not(feature = "tonic"))]
fn peer_of_tonic(_: &Extensions) -> Option<SocketAddr> {
    None
}

#[cfg(feature = "tracing")]
fn warn_once(missing: Missing) {
    static WARNED: std::sync::Once = std::sync::Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            target: "palisade",
            ?missing,
            "nothing in a request says who its peer is, so clients cannot be told apart; with axum \
             serve `router.into_make_service_with_connect_info::<SocketAddr>()` and enable \
             palisade's feature `axum`; with tonic enable its feature `tonic`; with hyper insert \
             the peer's `SocketAddr` into the request's extensions",
        );
    });
}

#[cfg(not(feature = "tracing"))]
fn warn_once(_: Missing) {}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use std::sync::Arc;

    fn request<T: Clone + Send + Sync + 'static>(extension: T) -> Request<()> {
        let mut request = Request::new(());
        request.extensions_mut().insert(extension);
        request
    }

    fn key(by: ClientIp, request: &Request<()>) -> KeyOutcome {
        by.extract(&RequestHead::from(request))
    }

    fn network(address: &str) -> KeyOutcome {
        KeyOutcome::Key(ClientKey::address(
            address.parse().unwrap(),
            Prefix::default(),
        ))
    }

    fn socket(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 4711)
    }

    #[test]
    fn a_bare_socket_address_is_enough() {
        let seen = key(ClientIp::peer(), &request(socket("2001:db8::1")));
        assert_eq!(seen, network("2001:db8::ffff"));
        assert_ne!(seen, network("2001:db8:0:1::1"));
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_client_that_it_is() {
        let seen = key(ClientIp::peer(), &request(socket("::ffff:192.0.2.1")));
        assert_eq!(seen, network("192.0.2.1"));
    }

    #[test]
    fn the_connection_s_own_key_counts_unless_another_prefix_is_asked_for() {
        let coarse = Prefix::new(24, 48).unwrap();
        let conn = ConnInfo::new(socket("192.0.2.1"), None, coarse);
        let request = request(conn);
        assert_eq!(key(ClientIp::peer(), &request), network("192.0.2.0"));
        let fine = ClientIp::peer().prefix(Prefix::default());
        assert_eq!(key(fine, &request), network("192.0.2.1"));
    }

    #[test]
    fn the_connection_is_believed_before_anything_else() {
        let mut request = request(socket("198.51.100.1"));
        let conn = ConnInfo::new(socket("192.0.2.1"), None, Prefix::default());
        request.extensions_mut().insert(Arc::new(conn));
        assert_eq!(peer(request.extensions()), Some(socket("192.0.2.1")));
    }

    #[test]
    fn a_forwarded_header_changes_nobody() {
        let mut request = request(socket("192.0.2.1"));
        for name in ["x-forwarded-for", "x-real-ip", "cf-connecting-ip"] {
            request
                .headers_mut()
                .insert(name, "198.51.100.1".parse().unwrap());
        }
        request
            .headers_mut()
            .insert("forwarded", "for=198.51.100.1".parse().unwrap());
        assert_eq!(key(ClientIp::peer(), &request), network("192.0.2.1"));
    }

    #[test]
    fn a_missing_peer_is_shared_refused_or_let_pass_as_told() {
        let nobody = Request::new(());
        let by = ClientIp::peer();
        assert_eq!(key(by, &nobody), KeyOutcome::Key(ClientKey::SHARED));
        assert_eq!(
            key(by.missing(Missing::Refuse), &nobody),
            KeyOutcome::Refuse
        );
        assert_eq!(key(by.missing(Missing::Pass), &nobody), KeyOutcome::Exempt);
        assert_eq!(peer(nobody.extensions()), None);
    }

    #[cfg(feature = "axum")]
    #[test]
    fn axum_s_connect_info_is_read() {
        let info = axum::extract::ConnectInfo(socket("192.0.2.1"));
        assert_eq!(key(ClientIp::peer(), &request(info)), network("192.0.2.1"));
    }

    #[cfg(feature = "tonic")]
    #[test]
    fn tonic_s_connect_info_is_read() {
        let remote_addr = Some(socket("192.0.2.1"));
        let info = tonic::transport::server::TcpConnectInfo {
            local_addr: None,
            remote_addr,
        };
        assert_eq!(key(ClientIp::peer(), &request(info)), network("192.0.2.1"));
    }
}
