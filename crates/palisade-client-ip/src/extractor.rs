//! The key that guards count a client by.

use crate::peer::peer;
use palisade_core::{Client, ClientKey, ConnInfo, KeyExtractor, KeyOutcome, Prefix, RequestHead};
use std::net::IpAddr;

/// A [`KeyExtractor`] that counts requests by the network of their client. The default of every
/// guard that counts per client.
///
/// The client is the [`Client`] of the request, if a [`ClientIpLayer`](crate::ClientIpLayer) or a
/// connection guard has inserted one. Otherwise it is the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientIp {
    prefix: Option<Prefix>,
    missing: Missing,
    /// Whether a peer is a proxy, and never a client.
    ignores_peers: bool,
}

/// How a request without a known client is treated.
///
/// A missing peer is a mistake in the setup of the server. axum, for example, passes the peer to
/// its layers only if it is served with `into_make_service_with_connect_info::<SocketAddr>()`. With
/// the feature `tracing`, one warning per process is logged, in each of the modes below.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// All such requests count as one client, [`ClientKey::SHARED`]. No client evades a limit that
    /// way, but all of them reach it early.
    #[default]
    Shared,
    /// The request is refused with 500, and recorded as `PeerMissing`.
    Refuse,
    /// The request is admitted uncounted. A wrongly set up server then has no limit per client.
    Pass,
}

// === ClientIp ===

impl ClientIp {
    /// Returns an extractor that reads the [`Client`] of the request or, without one, the address
    /// at the other end of the socket.
    ///
    /// ```
    /// use palisade_client_ip::ClientIp;
    /// use palisade_core::{KeyExtractor, KeyOutcome, RequestHead};
    /// use std::net::SocketAddr;
    ///
    /// let key = |peer: &str| -> Result<KeyOutcome, std::net::AddrParseError> {
    ///     let mut request = http::Request::new(());
    ///     request.extensions_mut().insert(peer.parse::<SocketAddr>()?);
    ///     Ok(ClientIp::peer().extract(&RequestHead::from(&request)))
    /// };
    /// assert_ne!(key("192.0.2.1:4711")?, key("192.0.2.2:4711")?);
    /// assert_eq!(key("192.0.2.1:4711")?, key("192.0.2.1:4712")?); // Two connections of one client.
    /// assert_eq!(key("[2001:db8::1]:4711")?, key("[2001:db8::2]:4711")?); // One /64.
    /// assert_ne!(key("[2001:db8::1]:4711")?, key("[2001:db8:0:1::1]:4711")?);
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    pub const fn peer() -> Self {
        Self {
            prefix: None,
            missing: Missing::Shared,
            ignores_peers: false,
        }
    }

    /// Returns an extractor that reads the [`Client`] of the request and nothing else, for servers
    /// of which every peer is a proxy. A request without one is not counted, because it could be
    /// anyone's: see [`Self::missing`].
    ///
    /// ```
    /// use palisade_client_ip::{Client, ClientIp, Prefix};
    /// use palisade_core::{ClientKey, KeyExtractor, KeyOutcome, RequestHead};
    /// use std::net::SocketAddr;
    ///
    /// let mut request = http::Request::new(());
    /// request.extensions_mut().insert("10.0.0.7:4711".parse::<SocketAddr>()?); // The proxy.
    /// let by_client = ClientIp::forwarded();
    /// assert_eq!(by_client.extract(&RequestHead::from(&request)), KeyOutcome::Exempt);
    /// let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
    /// request.extensions_mut().insert(client);
    /// assert_eq!(by_client.extract(&RequestHead::from(&request)), KeyOutcome::Key(client.key()));
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    pub const fn forwarded() -> Self {
        Self {
            prefix: None,
            missing: Missing::Pass,
            ignores_peers: true,
        }
    }

    /// Sets how many bits of an address identify a client. Defaults to those of the [`Client`] or
    /// of the connection's `ConnInfo`, or without both to a whole IPv4 address and an IPv6 /64.
    ///
    /// ```
    /// use palisade_client_ip::{ClientIp, Prefix};
    /// use palisade_core::{KeyExtractor, KeyOutcome, RequestHead};
    /// use std::net::SocketAddr;
    ///
    /// let by_network = ClientIp::peer().prefix(Prefix::new(24, 48).expect("bits of an address"));
    /// let key = |peer: &str| -> Result<KeyOutcome, std::net::AddrParseError> {
    ///     let mut request = http::Request::new(());
    ///     request.extensions_mut().insert(peer.parse::<SocketAddr>()?);
    ///     Ok(by_network.extract(&RequestHead::from(&request)))
    /// };
    /// assert_eq!(key("192.0.2.1:4711")?, key("192.0.2.2:4711")?); // One /24.
    /// assert_ne!(key("192.0.2.1:4711")?, key("192.0.3.1:4711")?);
    /// assert_eq!(key("[2001:db8::1]:4711")?, key("[2001:db8:0:1::1]:4711")?); // One /48.
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    pub const fn prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = Some(prefix);
        self
    }

    /// Sets how a request without a known client is treated. Defaults to [`Missing::Shared`], and
    /// for [`Self::forwarded`] to [`Missing::Pass`].
    ///
    /// ```
    /// use palisade_client_ip::{ClientIp, Missing};
    /// use palisade_core::{ClientKey, KeyExtractor, KeyOutcome, RequestHead};
    ///
    /// // A server that does not put the peer into the extensions of the request.
    /// let request = http::Request::new(());
    /// let head = RequestHead::from(&request);
    /// let by_ip = ClientIp::peer();
    /// assert_eq!(by_ip.extract(&head), KeyOutcome::Key(ClientKey::SHARED));
    /// assert_eq!(by_ip.missing(Missing::Refuse).extract(&head), KeyOutcome::Refuse);
    /// assert_eq!(by_ip.missing(Missing::Pass).extract(&head), KeyOutcome::Exempt);
    /// ```
    pub const fn missing(mut self, missing: Missing) -> Self {
        self.missing = missing;
        self
    }
}

impl KeyExtractor for ClientIp {
    fn extract(&self, head: &RequestHead<'_>) -> KeyOutcome {
        if let Some(client) = Client::from_extensions(head.extensions)
            && let Some(address) = client.address()
        {
            return KeyOutcome::Key(match self.prefix {
                None => client.key(),
                Some(prefix) => ClientKey::address(address, prefix),
            });
        }
        if self.ignores_peers {
            // The header of a PROXY connection names its client.
            if let Some(conn) = ConnInfo::from_extensions(head.extensions)
                && conn.is_proxied()
            {
                return KeyOutcome::Key(match self.prefix {
                    None => conn.client(),
                    Some(prefix) => ClientKey::address(conn.peer().ip(), prefix),
                });
            }
            warn_about_missing_client_once(self.missing);
            return self.missing.outcome();
        }
        if self.prefix.is_none()
            && let Some(conn) = ConnInfo::from_extensions(head.extensions)
        {
            return KeyOutcome::Key(conn.client()); // Computed once per connection.
        }
        if let Some(peer) = peer(head.extensions) {
            return KeyOutcome::Key(ClientKey::address(
                peer.ip(),
                self.prefix.unwrap_or_default(),
            ));
        }
        warn_about_missing_peer_once(self.missing);
        self.missing.outcome()
    }

    fn address(&self, head: &RequestHead<'_>) -> Option<IpAddr> {
        let client = Client::from_extensions(head.extensions).and_then(Client::address);
        match client {
            None if !self.ignores_peers => peer(head.extensions).map(|peer| peer.ip()),
            known => known,
        }
    }

    fn extract_with_address(&self, head: &RequestHead<'_>) -> (KeyOutcome, Option<IpAddr>) {
        let client = Client::from_extensions(head.extensions);
        let known = client.and_then(|client| Some((client.address()?, client.key())));
        let known = match known {
            None if !self.ignores_peers => ConnInfo::from_extensions(head.extensions)
                .map(|conn| (conn.peer().ip(), conn.client())),
            known => known,
        };
        let Some((address, key)) = known else {
            return (self.extract(head), self.address(head));
        };
        let key = match self.prefix {
            None => key,
            Some(prefix) => ClientKey::address(address, prefix),
        };
        (KeyOutcome::Key(key), Some(address))
    }
}

impl Missing {
    fn outcome(self) -> KeyOutcome {
        match self {
            Self::Shared => KeyOutcome::Key(ClientKey::SHARED),
            Self::Refuse => KeyOutcome::Refuse,
            Self::Pass => KeyOutcome::Exempt,
        }
    }
}

#[cfg(feature = "tracing")]
fn warn_about_missing_client_once(missing: Missing) {
    static WARNED: std::sync::Once = std::sync::Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            target: "palisade",
            ?missing,
            "no client is known of a request behind a proxy, so no limit per client applies to \
             it: set `trust` on `ConnGuard::builder()`, and under axum::serve wrap the router in \
             `connected(router)`; without a connection guard put a `ClientIpLayer` outside of the \
             guards",
        );
    });
}

#[cfg(not(feature = "tracing"))]
fn warn_about_missing_client_once(_: Missing) {}

#[cfg(feature = "tracing")]
fn warn_about_missing_peer_once(missing: Missing) {
    static WARNED: std::sync::Once = std::sync::Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            target: "palisade",
            ?missing,
            "a request carries no peer address, so clients cannot be distinguished; with axum, \
             serve `connected(router)` on a guarded listener, or on another one \
             `router.into_make_service_with_connect_info::<SocketAddr>()`, and enable palisade's \
             feature `axum`; with tonic, enable its feature `tonic`; with hyper, insert \
             the peer's `SocketAddr` into the request's extensions",
        );
    });
}

#[cfg(not(feature = "tracing"))]
fn warn_about_missing_peer_once(_: Missing) {}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use std::net::SocketAddr;

    fn request<T: Clone + Send + Sync + 'static>(extension: T) -> Request<()> {
        let mut request = Request::new(());
        request.extensions_mut().insert(extension);
        request
    }

    fn extract(client_ip: ClientIp, request: &Request<()>) -> KeyOutcome {
        client_ip.extract(&RequestHead::from(request))
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
    fn behind_proxies_a_peer_counts_only_if_a_proxy_header_names_it() {
        let conn = || {
            let peer = socket("203.0.113.7");
            ConnInfo::with_state(peer, None, Prefix::default(), ())
        };
        let with = |conn: ConnInfo<()>| {
            let conn: std::sync::Arc<ConnInfo> = std::sync::Arc::new(conn);
            extract(ClientIp::forwarded(), &request(conn))
        };
        assert_eq!(with(conn()), KeyOutcome::Exempt);
        assert_eq!(with(conn().of_proxied()), network("203.0.113.7"));
    }

    #[test]
    fn a_bare_socket_address_is_read() {
        let outcome = extract(ClientIp::peer(), &request(socket("2001:db8::1")));
        assert_eq!(outcome, network("2001:db8::ffff"));
        assert_ne!(outcome, network("2001:db8:0:1::1"));
    }

    #[test]
    fn an_ipv4_mapped_address_counts_as_its_ipv4_address() {
        let outcome = extract(ClientIp::peer(), &request(socket("::ffff:192.0.2.1")));
        assert_eq!(outcome, network("192.0.2.1"));
    }

    #[test]
    fn the_key_of_the_connection_is_used_unless_a_prefix_is_set() {
        let coarse = Prefix::new(24, 48).unwrap();
        let conn = ConnInfo::new(socket("192.0.2.1"), None, coarse);
        let request = request(conn);
        assert_eq!(extract(ClientIp::peer(), &request), network("192.0.2.0"));
        let fine = ClientIp::peer().prefix(Prefix::default());
        assert_eq!(extract(fine, &request), network("192.0.2.1"));
    }

    #[test]
    fn the_connection_info_takes_precedence_over_other_sources() {
        let mut request = request(socket("198.51.100.1"));
        let conn = ConnInfo::new(socket("192.0.2.1"), None, Prefix::default());
        request.extensions_mut().insert(conn);
        assert_eq!(peer(request.extensions()), Some(socket("192.0.2.1")));
    }

    #[test]
    fn forwarding_headers_do_not_change_the_key() {
        let mut request = request(socket("192.0.2.1"));
        for name in ["x-forwarded-for", "x-real-ip", "cf-connecting-ip"] {
            request
                .headers_mut()
                .insert(name, "198.51.100.1".parse().unwrap());
        }
        request
            .headers_mut()
            .insert("forwarded", "for=198.51.100.1".parse().unwrap());
        assert_eq!(extract(ClientIp::peer(), &request), network("192.0.2.1"));
    }

    #[test]
    fn a_request_without_a_peer_is_shared_refused_or_admitted_as_configured() {
        let without_peer = Request::new(());
        let client_ip = ClientIp::peer();
        assert_eq!(
            extract(client_ip, &without_peer),
            KeyOutcome::Key(ClientKey::SHARED)
        );
        assert_eq!(
            extract(client_ip.missing(Missing::Refuse), &without_peer),
            KeyOutcome::Refuse
        );
        assert_eq!(
            extract(client_ip.missing(Missing::Pass), &without_peer),
            KeyOutcome::Exempt
        );
        assert_eq!(peer(without_peer.extensions()), None);
    }

    #[test]
    fn the_address_is_that_of_the_client_and_else_of_the_peer() {
        let address = |client_ip: ClientIp, request: &Request<()>| {
            client_ip.address(&RequestHead::from(request))
        };
        let (peer, client) = (socket("10.0.0.7"), socket("2001:db8::1").ip());
        let mut request = request(peer);
        assert_eq!(address(ClientIp::peer(), &request), Some(peer.ip()));
        assert_eq!(address(ClientIp::forwarded(), &request), None);
        let prefix = Prefix::default();
        request
            .extensions_mut()
            .insert(Client::from_peer(Some(client), prefix));
        for client_ip in [ClientIp::peer(), ClientIp::forwarded().prefix(prefix)] {
            assert_eq!(address(client_ip, &request), Some(client));
        }
        assert_eq!(address(ClientIp::peer(), &Request::new(())), None);
    }

    #[test]
    fn key_and_address_are_the_same_one_by_one_and_together() {
        let conn = || ConnInfo::new(socket("192.0.2.1"), None, Prefix::new(24, 48).unwrap());
        let client = |ip: &str| Client::from_peer(ip.parse().ok(), Prefix::default());
        let mut both = request(conn());
        both.extensions_mut().insert(client("2001:db8::1"));
        let mut unknown = request(conn());
        unknown.extensions_mut().insert(client("::"));
        let requests = [
            Request::new(()),
            request(socket("192.0.2.1")),
            request(conn()),
            request(client("192.0.2.7")),
            both,
            unknown,
        ];
        for request in &requests {
            for by_ip in [ClientIp::peer(), ClientIp::forwarded()] {
                for by_ip in [by_ip, by_ip.prefix(Prefix::new(16, 32).unwrap())] {
                    let head = RequestHead::from(request);
                    let apart = (by_ip.extract(&head), by_ip.address(&head));
                    assert_eq!(by_ip.extract_with_address(&head), apart, "{request:?}");
                }
            }
        }
    }

    #[cfg(feature = "axum")]
    #[test]
    fn the_connect_info_of_axum_is_read() {
        let info = axum::extract::ConnectInfo(socket("192.0.2.1"));
        assert_eq!(
            extract(ClientIp::peer(), &request(info)),
            network("192.0.2.1")
        );
    }

    #[cfg(feature = "tonic")]
    #[test]
    fn the_connect_info_of_tonic_is_read() {
        let remote_addr = Some(socket("192.0.2.1"));
        let info = tonic::transport::server::TcpConnectInfo {
            local_addr: None,
            remote_addr,
        };
        assert_eq!(
            extract(ClientIp::peer(), &request(info)),
            network("192.0.2.1")
        );
    }
}
