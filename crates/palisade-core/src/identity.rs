//! The client of a request, as all guards see it.

use crate::{
    AddressSource, ClientKey, ConnInfo, Network, Prefix,
    client::{address_bits, from_halves, halves},
};
use http::Extensions;
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// The client of a request: an extension of the request, inserted once, outermost. `Copy`.
///
/// A `ClientIpLayer` of `palisade-client-ip` inserts it, or a connection guard that has a `Trust`.
/// Every guard reads it before anything else, so that all of them count the same client, and the
/// [`Event`](crate::Event)s of its requests have it. With the feature `axum` it is an extractor.
///
/// ```
/// use palisade_core::{Client, Prefix};
/// let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(client); // A server that finds its clients by itself.
/// assert_eq!(Client::from_extensions(request.extensions()), Some(&client));
/// assert_eq!(client.address(), Some([203, 0, 113, 7].into()));
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The bits of the address, of IPv4 in its IPv4-mapped form, or [`UNKNOWN`].
    address: [u64; 2],
    key: ClientKey,
    /// How many of the 128 bits identify the client.
    kept_bits: u8,
    found: Found,
    /// Where a peer's address comes from.
    peer_source: AddressSource,
    is_claim: bool,
}

/// How a [`Client`] was found.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Found {
    /// The peer is no trusted proxy, so it is the client. Its fields were not read.
    Peer,
    /// A trusted proxy has named the client.
    Forwarded,
    /// Every address is that of a trusted proxy. The leftmost one counts.
    AllTrusted,
    /// The peer is a trusted proxy, and the request has no field that names a client, or it is one
    /// that has sent a PROXY header without a client. The peer counts.
    Missing,
    /// The field names fewer proxies than are in front of the server. The peer counts.
    Short,
    /// An element of the field is not an address, or a field of one address is there twice. The
    /// last trusted proxy before it counts.
    Malformed,
    /// The field has more than 32 elements or 4 KiB. The last trusted proxy within counts.
    TooLong,
}

/// The unspecified address `::`, which stands for a client without an address.
const UNKNOWN: [u64; 2] = [0; 2];
/// `::ffff:0.0.0.0`.
const UNSPECIFIED_IPV4: [u64; 2] = [0, 0xffff_0000_0000];

// === Client ===

impl Client {
    /// Returns the client that is the peer of its connection, without any proxy. For servers that
    /// find out the client in another way. Without an address, or with an unspecified one, the
    /// client is unknown.
    ///
    /// ```
    /// use palisade_core::{Client, ClientKey, Prefix};
    /// let client = Client::from_peer(Some("2001:db8::1".parse()?), Prefix::default());
    /// let key = ClientKey::address("2001:db8::2".parse()?, Prefix::default());
    /// assert_eq!(client.key(), key); // One /64.
    /// assert_eq!(Client::from_peer(None, Prefix::default()).key(), ClientKey::SHARED);
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    pub fn from_peer(address: Option<IpAddr>, prefix: Prefix) -> Self {
        Self::of_bits(address.map_or(0, address_bits), Found::Peer, prefix)
    }

    /// Returns the client with these bits of an address, of IPv4 in its IPv4-mapped form.
    #[doc(hidden)]
    pub fn of_bits(bits: u128, found: Found, prefix: Prefix) -> Self {
        if matches!(halves(bits), UNKNOWN | UNSPECIFIED_IPV4) {
            return Self::unknown(found);
        }
        let address = IpAddr::V6(Ipv6Addr::from_bits(bits)).to_canonical();
        Self {
            address: halves(bits),
            key: ClientKey::address(address, prefix),
            kept_bits: prefix.kept_bits(address),
            found,
            peer_source: AddressSource::Peer,
            is_claim: false,
        }
    }

    /// Returns the peer of `conn` as a client. Its key is that of the connection.
    #[doc(hidden)]
    #[inline]
    pub fn of_conn<S: ?Sized>(conn: &ConnInfo<S>, found: Found) -> Self {
        let address = halves(conn.address_bits());
        if matches!(address, UNKNOWN | UNSPECIFIED_IPV4) {
            return Self::unknown(found);
        }
        Self {
            address,
            key: conn.client(),
            kept_bits: conn.kept_bits(),
            found,
            peer_source: if conn.is_proxied() {
                AddressSource::Proxy
            } else {
                AddressSource::Peer
            },
            is_claim: false,
        }
    }

    fn unknown(found: Found) -> Self {
        Self {
            address: UNKNOWN,
            key: ClientKey::SHARED,
            kept_bits: 0,
            found,
            peer_source: AddressSource::Peer,
            is_claim: false,
        }
    }

    /// Notes whether the address was taken from another one, which the socket has.
    #[doc(hidden)]
    pub fn translated(mut self, is_translated: bool) -> Self {
        if is_translated {
            self.peer_source = AddressSource::Forwarded;
        }
        self
    }

    /// Sets whether the client may have written its address itself.
    #[doc(hidden)]
    pub fn claimed(self, is_claim: bool) -> Self {
        Self { is_claim, ..self }
    }

    /// Returns the client of the request with these extensions, if one has been inserted.
    #[inline]
    pub fn from_extensions(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// Returns the client of the request with these extensions: the one that has been inserted, or
    /// else the peer of its connection. `None` if neither has an address.
    ///
    /// ```
    /// use palisade_core::{Client, ConnInfo, Prefix};
    /// let mut request = http::Request::new(());
    /// assert_eq!(Client::of_request(request.extensions()), None);
    /// let conn = ConnInfo::new(([203, 0, 113, 7], 4711).into(), None, Prefix::default());
    /// request.extensions_mut().insert(conn); // A guarded server does this.
    /// let client = Client::of_request(request.extensions()).expect("the peer");
    /// assert_eq!(client.address(), Some([203, 0, 113, 7].into()));
    /// ```
    pub fn of_request(extensions: &Extensions) -> Option<Self> {
        if let Some(client) = Self::from_extensions(extensions) {
            return Some(*client);
        }
        let conn = ConnInfo::from_extensions(extensions)?;
        let found = if conn.is_proxy() {
            Found::Missing
        } else {
            Found::Peer
        };
        let client = Self::of_conn(conn, found);
        client.address().is_some().then_some(client)
    }

    /// Returns the client of the request with these extensions in the form that events take: `None`
    /// if it is the peer of `conn`.
    #[doc(hidden)]
    pub fn beside<'a>(conn: Option<&ConnInfo>, extensions: &'a Extensions) -> Option<&'a Self> {
        let client = Self::from_extensions(extensions)?;
        // A server may have found the client by itself, or translated the address of the peer.
        let is_peer = |conn: &ConnInfo| {
            client.found == Found::Peer && client.address == halves(conn.address_bits())
        };
        (!conn.is_some_and(is_peer)).then_some(client)
    }

    /// Returns the address in its canonical form: an IPv4-mapped address is an IPv4 address. `None`
    /// if the client is unknown, such as the peer of a Unix socket.
    #[inline]
    pub fn address(&self) -> Option<IpAddr> {
        let address = || IpAddr::V6(Ipv6Addr::from_bits(from_halves(self.address)));
        (self.address != UNKNOWN).then(|| address().to_canonical())
    }

    /// Returns the key that guards count the client by, or [`ClientKey::SHARED`] if it is unknown.
    #[inline]
    pub fn key(&self) -> ClientKey {
        self.key
    }

    /// Returns the block of addresses that counts as this client, such as an IPv6 /64. `None` if
    /// the client is unknown.
    ///
    /// ```
    /// use palisade_core::{Client, Prefix};
    /// let client = Client::from_peer(Some("2001:db8::1".parse()?), Prefix::default());
    /// assert_eq!(client.network(), Some("2001:db8::/64".parse()?));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn network(&self) -> Option<Network> {
        let bits = from_halves(self.address);
        (self.address != UNKNOWN).then(|| Network::of_mapped(bits, self.kept_bits))
    }

    /// Returns where the address comes from. A firewall of this machine can act on a
    /// [peer](AddressSource::Peer) only.
    ///
    /// ```
    /// use palisade_core::{AddressSource, Client, Prefix};
    /// let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
    /// assert_eq!(client.source(), AddressSource::Peer);
    /// ```
    pub fn source(&self) -> AddressSource {
        match self.found {
            Found::Peer => self.peer_source,
            _ => AddressSource::Forwarded,
        }
    }

    /// Returns the 128 bits of the address, of IPv4 in its IPv4-mapped form.
    #[doc(hidden)]
    #[inline]
    pub fn address_bits(&self) -> u128 {
        from_halves(self.address)
    }

    /// Returns how the client was found.
    #[inline]
    pub fn found(&self) -> Found {
        self.found
    }

    /// Returns whether a proxy has named the client, so that the client is not the peer of the
    /// connection.
    #[inline]
    pub fn is_forwarded(&self) -> bool {
        matches!(self.found, Found::Forwarded | Found::AllTrusted)
    }

    /// Returns whether the address is that of a trusted proxy, because no client behind it is
    /// known. To ban it would ban all clients behind it.
    #[inline]
    pub fn is_proxy(&self) -> bool {
        !matches!(self.found, Found::Peer | Found::Forwarded)
    }

    /// Returns whether a client may have written the address itself, because proxies are trusted by
    /// their number and not by their networks. Such an address may be that of a victim. A guard may
    /// count by it, but must not keep the address away from the listener.
    #[inline]
    pub fn is_claim(&self) -> bool {
        self.is_claim
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.address())
            .field("key", &self.key)
            .field("found", &self.found)
            .field("is_claim", &self.is_claim)
            .finish()
    }
}

/// The client as an argument of a handler.
#[cfg(feature = "axum")]
mod axum_extractor {
    use super::Client;
    use axum_core::{
        extract::{FromRequestParts, OptionalFromRequestParts},
        response::{IntoResponse, Response},
    };
    use http::{StatusCode, request::Parts};
    use std::{convert::Infallible, error::Error, fmt};

    /// A handler asks for a [`Client`], and none [is known](Client::of_request). The response is
    /// 500, because the server is not set up: it needs a connection guard, around the router the
    /// service that `palisade_conn::connected` returns, or else a `ClientIpLayer`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClientMissing;

    impl<S: Sync> FromRequestParts<S> for Client {
        type Rejection = ClientMissing;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ClientMissing> {
            Self::of_request(&parts.extensions).ok_or(ClientMissing)
        }
    }

    impl<S: Sync> OptionalFromRequestParts<S> for Client {
        type Rejection = Infallible;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
            Ok(Self::of_request(&parts.extensions))
        }
    }

    impl IntoResponse for ClientMissing {
        fn into_response(self) -> Response {
            (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
        }
    }

    impl fmt::Display for ClientMissing {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(
                "the client of the request is not known: serve `connected(router)` on a guarded \
                 listener, or put a `ClientIpLayer` around the router",
            )
        }
    }

    impl Error for ClientMissing {}
}

#[cfg(feature = "axum")]
pub use axum_extractor::ClientMissing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_small() {
        assert!(size_of::<Client>() <= 48, "{}", size_of::<Client>());
    }

    #[test]
    fn a_client_without_an_address_is_unknown() {
        for address in ["::", "0.0.0.0", "::ffff:0.0.0.0"] {
            let client = Client::from_peer(address.parse().ok(), Prefix::default());
            assert_eq!((client.address(), client.key()), (None, ClientKey::SHARED));
        }
    }

    #[test]
    fn a_client_knows_its_block_of_addresses_and_where_its_address_comes_from() {
        let wide = Prefix::new(24, 56).unwrap();
        for (address, network) in [
            ("192.0.2.77", "192.0.2.0/24"),
            ("::ffff:192.0.2.77", "192.0.2.0/24"),
            ("2001:db8:1:2ff::1", "2001:db8:1:200::/56"),
        ] {
            let address: IpAddr = address.parse().unwrap();
            let conn = ConnInfo::with_state((address, 80).into(), None, wide, ());
            let client = Client::of_conn(&conn, Found::Peer);
            assert_eq!(client, Client::from_peer(Some(address), wide));
            assert_eq!(client.network(), network.parse().ok());
            assert_eq!(client.source(), AddressSource::Peer);

            let proxied = Client::of_conn(&conn.of_proxied(), Found::Peer);
            assert_eq!(proxied.source(), AddressSource::Proxy);
            assert_eq!(proxied.key(), client.key());
            let bits = client.address_bits();
            let forwarded = Client::of_bits(bits, Found::Forwarded, wide);
            assert_eq!(forwarded.source(), AddressSource::Forwarded);
            assert_eq!(client.translated(true).source(), AddressSource::Forwarded);
        }
        let unknown = ConnInfo::new(([0, 0, 0, 0], 0).into(), None, wide);
        let unknown = Client::of_conn(&unknown, Found::Peer);
        assert_eq!(unknown, Client::from_peer(None, wide));
        assert_eq!((unknown.network(), unknown.address()), (None, None));
    }

    #[test]
    fn events_have_the_client_beside_a_connection_unless_it_is_the_peer() {
        let beside = |peer: &str, client: Client| {
            let peer = (peer.parse::<IpAddr>().unwrap(), 4711).into();
            let conn = ConnInfo::new(peer, None, Prefix::default());
            let mut extensions = Extensions::new();
            extensions.insert(client);
            Client::beside(Some(&*conn), &extensions).copied()
        };
        let client = Client::from_peer("192.0.2.1".parse().ok(), Prefix::default());
        assert_eq!(beside("192.0.2.1", client), None);
        assert_eq!(beside("::ffff:192.0.2.1", client), None);
        // A server has found it by itself, or NAT64 has translated it.
        assert_eq!(beside("10.0.0.7", client), Some(client));
        assert_eq!(beside("64:ff9b::192.0.2.1", client), Some(client));
    }

    #[cfg(feature = "axum")]
    #[tokio::test]
    async fn axum_extracts_the_client() {
        use axum_core::{
            extract::{FromRequestParts, OptionalFromRequestParts},
            response::IntoResponse,
        };

        let (mut parts, ()) = http::Request::new(()).into_parts();
        let missing = <Client as FromRequestParts<()>>::from_request_parts(&mut parts, &()).await;
        assert_eq!(missing.unwrap_err().into_response().status(), 500);
        let none = <Client as OptionalFromRequestParts<()>>::from_request_parts(&mut parts, &());
        assert_eq!(none.await, Ok(None));

        // The peer of a guarded connection.
        let client = Client::from_peer(Some([192, 0, 2, 1].into()), Prefix::default());
        let peer = ([192, 0, 2, 1], 4711).into();
        parts
            .extensions
            .insert(ConnInfo::new(peer, None, Prefix::default()));
        let found = <Client as FromRequestParts<()>>::from_request_parts(&mut parts, &()).await;
        assert_eq!(found, Ok(client));

        let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
        parts.extensions.insert(client);
        let found = <Client as FromRequestParts<()>>::from_request_parts(&mut parts, &()).await;
        assert_eq!(found, Ok(client));
        let some = <Client as OptionalFromRequestParts<()>>::from_request_parts(&mut parts, &());
        assert_eq!(some.await, Ok(Some(client)));
    }
}
