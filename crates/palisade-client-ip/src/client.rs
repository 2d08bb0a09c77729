//! The client of a request, as all guards see it.

use crate::address::Address;
use http::Extensions;
use palisade_core::{ClientKey, Prefix};
use std::{fmt, net::IpAddr};

/// The client of a request: an extension of the request, inserted once, outermost. `Copy`.
///
/// A [`ClientIpLayer`](crate::ClientIpLayer) inserts it, or a connection guard that has a
/// [`Trust`](crate::Trust). [`ClientIp`](crate::ClientIp) reads it before anything else, so that
/// every guard counts the same client. With the feature `axum` it is an extractor.
///
/// ```
/// use palisade_client_ip::{Client, ClientIpLayer, Trust};
/// # use palisade_testkit::example::*;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let layer = ClientIpLayer::new(Trust::private())?;
/// let service = layer.layer(service_fn(async |request: Request<Full<Bytes>>| {
///     let client = Client::from_extensions(request.extensions()).and_then(Client::address);
///     Ok::<_, BoxError>(Response::new(format!("{client:?}")))
/// }));
///
/// let mut request = Request::new(Full::<Bytes>::default());
/// request.extensions_mut().insert(std::net::SocketAddr::from(([10, 0, 0, 7], 4711))); // A proxy.
/// request.headers_mut().insert("x-forwarded-for", "6.6.6.6, 203.0.113.7".parse()?);
/// assert_eq!(service.oneshot(request).await?.body(), "Some(203.0.113.7)");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// [`Address::UNKNOWN`] if there is none.
    address: Address,
    key: ClientKey,
    found: Found,
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
    /// The peer is a trusted proxy, and the request has no field that names a client. The peer
    /// counts.
    Missing,
    /// The field names fewer proxies than are in front of the server. The peer counts.
    Short,
    /// An element of the field is not an address, or a field of one address is there twice. The
    /// last trusted proxy before it counts.
    Malformed,
    /// The field has more than 32 elements or 4 KiB. The last trusted proxy within counts.
    TooLong,
}

// === Client ===

impl Client {
    /// Returns the client that is the peer of its connection, without any proxy. For servers that
    /// find out the client in another way. Without an address, or with an unspecified one, the
    /// client is unknown.
    ///
    /// ```
    /// use palisade_client_ip::{Client, Prefix};
    /// use palisade_core::ClientKey;
    /// let client = Client::from_peer(Some("2001:db8::1".parse()?), Prefix::default());
    /// let key = ClientKey::address("2001:db8::2".parse()?, Prefix::default());
    /// assert_eq!(client.key(), key); // One /64.
    /// assert_eq!(Client::from_peer(None, Prefix::default()).key(), ClientKey::SHARED);
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    pub fn from_peer(address: Option<IpAddr>, prefix: Prefix) -> Self {
        let address = address.map_or(Address::UNKNOWN, Address::from);
        Self::new(address, Found::Peer, prefix)
    }

    pub(crate) fn new(address: Address, found: Found, prefix: Prefix) -> Self {
        if address.is_unspecified() {
            return Self::with_key(Address::UNKNOWN, found, ClientKey::SHARED);
        }
        let key = ClientKey::address(address.into(), prefix);
        Self::with_key(address, found, key)
    }

    /// Returns a client by its key, which is known already.
    #[inline]
    pub(crate) fn with_key(address: Address, found: Found, key: ClientKey) -> Self {
        Self {
            address,
            key,
            found,
            is_claim: false,
        }
    }

    pub(crate) fn claimed(self, is_claim: bool) -> Self {
        Self { is_claim, ..self }
    }

    /// Returns the client of the request with these extensions, if one has been inserted.
    #[inline]
    pub fn from_extensions(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// Returns the address in its canonical form: an IPv4-mapped address is an IPv4 address. `None`
    /// if the client is unknown, such as the peer of a Unix socket.
    #[inline]
    pub fn address(&self) -> Option<IpAddr> {
        (self.address != Address::UNKNOWN).then(|| self.address.into())
    }

    /// Returns the key that guards count the client by, or [`ClientKey::SHARED`] if it is unknown.
    #[inline]
    pub fn key(&self) -> ClientKey {
        self.key
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
    ///
    /// ```
    /// use palisade_client_ip::Trust;
    /// let trust = Trust::private();
    /// let mut headers = http::HeaderMap::new();
    /// let proxy = trust.resolve(Some([10, 0, 0, 7].into()), &headers);
    /// assert!(proxy.is_proxy());
    /// headers.insert("x-forwarded-for", "203.0.113.7".parse()?);
    /// assert!(!trust.resolve(Some([10, 0, 0, 7].into()), &headers).is_proxy());
    /// # Ok::<(), http::header::InvalidHeaderValue>(())
    /// ```
    #[inline]
    pub fn is_proxy(&self) -> bool {
        !matches!(self.found, Found::Peer | Found::Forwarded)
    }

    /// Returns whether a client may have written the address itself, because proxies are trusted by
    /// their number and not by their networks. Such an address may be that of a victim. A guard may
    /// count by it, but must not keep the address away from the listener.
    ///
    /// ```
    /// use palisade_client_ip::Trust;
    /// let mut headers = http::HeaderMap::new();
    /// headers.insert("x-forwarded-for", "203.0.113.7".parse()?);
    /// let peer = Some([10, 0, 0, 7].into());
    /// assert!(Trust::hops(1).resolve(peer, &headers).is_claim());
    /// assert!(!Trust::private().resolve(peer, &headers).is_claim());
    /// assert!(!Trust::private().and_hops(1).resolve(peer, &headers).is_claim());
    /// # Ok::<(), http::header::InvalidHeaderValue>(())
    /// ```
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
    use axum::{
        extract::{FromRequestParts, OptionalFromRequestParts},
        http::{StatusCode, request::Parts},
        response::{IntoResponse, Response},
    };
    use std::{convert::Infallible, error::Error, fmt};

    /// A handler asks for a [`Client`], and the request has none. The response is 500, because the
    /// server is not set up: it needs a [`ClientIpLayer`](crate::ClientIpLayer), or a connection
    /// guard with a [`Trust`](crate::Trust), and a known peer.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClientMissing;

    impl<S: Sync> FromRequestParts<S> for Client {
        type Rejection = ClientMissing;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ClientMissing> {
            Self::from_extensions(&parts.extensions)
                .copied()
                .ok_or(ClientMissing)
        }
    }

    impl<S: Sync> OptionalFromRequestParts<S> for Client {
        type Rejection = Infallible;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
            Ok(Self::from_extensions(&parts.extensions).copied())
        }
    }

    impl IntoResponse for ClientMissing {
        fn into_response(self) -> Response {
            (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
        }
    }

    impl fmt::Display for ClientMissing {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the client of the request is not known")
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

    #[cfg(feature = "axum")]
    #[tokio::test]
    async fn axum_extracts_the_client() {
        use axum::{
            body::Body,
            extract::{FromRequestParts, OptionalFromRequestParts},
            http::Request,
            response::IntoResponse,
        };

        let (mut parts, _) = Request::new(Body::empty()).into_parts();
        let missing = <Client as FromRequestParts<()>>::from_request_parts(&mut parts, &()).await;
        assert_eq!(missing.unwrap_err().into_response().status(), 500);
        let none = <Client as OptionalFromRequestParts<()>>::from_request_parts(&mut parts, &());
        assert_eq!(none.await, Ok(None));

        let client = Client::from_peer(Some([192, 0, 2, 1].into()), Prefix::default());
        parts.extensions.insert(client);
        let found = <Client as FromRequestParts<()>>::from_request_parts(&mut parts, &()).await;
        assert_eq!(found, Ok(client));
        let some = <Client as OptionalFromRequestParts<()>>::from_request_parts(&mut parts, &());
        assert_eq!(some.await, Ok(Some(client)));
    }
}
