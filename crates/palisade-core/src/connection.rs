//! The identity of a connection, as every guard sees it.

use crate::{
    ClientKey, Prefix,
    client::{address_bits, from_halves, halves, leading_bits},
};
use http::Extensions;
use parking_lot::Mutex;
use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

/// A connection's identity: an `Arc<ConnInfo>` in the extensions of each of its requests.
///
/// The server that accepts the connection creates it once and inserts a clone of the `Arc` into
/// every request, so that no guard has to find out again where a request comes from.
///
/// `S` is the server's own state of the connection, opaque to everything else. It lives in the
/// same allocation.
///
/// ```
/// # use palisade_core::{ConnInfo, Prefix};
/// let info = ConnInfo::new("192.0.2.1:4711".parse().unwrap(), None, Prefix::default());
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(info.clone());
/// assert_eq!(ConnInfo::from_extensions(request.extensions()).unwrap().id(), info.id());
/// ```
pub struct ConnInfo<S: ?Sized = dyn Any + Send + Sync> {
    id: u64,
    // The peer's address and its client key share their bits: there is one of these for each open
    // connection, so every byte counts.
    ip: [u64; 2],
    /// The scope of an IPv6 address, or [`PROXIED_SCOPE`].
    scope: u32,
    port: u16,
    kept: KeptBits,
    /// The lowest bit is [`CHARGED`]. The others are the number of request bodies that no handler
    /// is reading, modulo 128. Only whether it is 0 matters. With 128 unread bodies it is wrongly
    /// 0, until one of them is read.
    bodies: AtomicU8,
    client_hash: u64,
    local: Option<Arc<SocketAddr>>,
    /// What is charged to a budget for requests of the connection, in wrapping bytes.
    charged: AtomicU32,
    /// What the kernel had for the server to read when the socket was last asked, in bytes.
    unread: AtomicU32,
    state: S,
}

/// Stands for no scope, of an address that a PROXY header names. An interface has no such number:
/// they are positive and signed.
const PROXIED_SCOPE: u32 = u32::MAX;

/// A layer charges the body of the present request to a budget.
const CHARGED: u8 = 1;
/// One unread request body.
const UNREAD: u8 = 2;

/// The family of an address, and how many of its leading bits identify its client.
///
/// Values up to 32 belong to an IPv4 address, values from [`Self::V6`] on to an IPv6 address.
#[derive(Clone, Copy)]
struct KeptBits(u8);

// === ConnInfo ===

impl ConnInfo {
    /// Creates the identity of a connection from `peer` to `local`, without any state. The client
    /// is the `prefix` of the peer's address.
    ///
    /// ```
    /// use palisade_core::{ClientKey, ConnInfo, Prefix};
    /// let conn = ConnInfo::new("[2001:db8::1]:4711".parse()?, None, Prefix::default());
    /// assert_eq!(conn.peer().port(), 4711);
    /// // The client is the /64 of the peer.
    /// assert_eq!(conn.client(), ClientKey::address("2001:db8::".parse()?, Prefix::default()));
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    pub fn new(peer: SocketAddr, local: Option<SocketAddr>, prefix: Prefix) -> Arc<Self> {
        Arc::new(ConnInfo::with_state(peer, local, prefix, ()))
    }

    /// Returns the connection of the request with these extensions, if its server inserted one.
    #[inline]
    pub fn from_extensions(extensions: &Extensions) -> Option<&Arc<Self>> {
        extensions.get::<Arc<Self>>()
    }

    /// Returns the server's state of the connection, if it is an `S`.
    ///
    /// ```
    /// use palisade_core::{ConnInfo, Prefix};
    /// use std::sync::Arc;
    /// struct Tls(&'static str);
    /// let peer = ([192, 0, 2, 1], 4711).into();
    /// let own = ConnInfo::with_state(peer, None, Prefix::default(), Tls("1.3"));
    /// let seen_by_guards: Arc<ConnInfo> = Arc::new(own);
    /// assert_eq!(seen_by_guards.state_as::<Tls>().map(|tls| tls.0), Some("1.3"));
    /// assert!(seen_by_guards.state_as::<u64>().is_none());
    /// ```
    #[inline]
    pub fn state_as<S: Any>(&self) -> Option<&S> {
        self.state.downcast_ref()
    }
}

impl<S> ConnInfo<S> {
    /// Creates the identity of a connection together with its server's state.
    pub fn with_state(
        peer: SocketAddr,
        local: Option<SocketAddr>,
        prefix: Prefix,
        state: S,
    ) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            ip: halves(address_bits(peer.ip())),
            scope: match peer {
                SocketAddr::V4(_) => 0,
                SocketAddr::V6(peer) => peer.scope_id(),
            },
            port: peer.port(),
            kept: KeptBits::new(peer.is_ipv4(), prefix.kept_bits(peer.ip())),
            bodies: AtomicU8::new(0),
            client_hash: ClientKey::address(peer.ip(), prefix).to_hash(),
            local: local.map(share_local),
            charged: AtomicU32::new(0),
            unread: AtomicU32::new(0),
            state,
        }
    }

    /// Notes that the peer is a trusted proxy. It is [no client](Self::known_client) then, and has
    /// no share of anything. For the connection guard, before the connection is shared.
    ///
    /// ```
    /// use palisade_core::{ConnInfo, Prefix};
    /// let peer = ([10, 0, 0, 7], 4711).into();
    /// let conn = ConnInfo::with_state(peer, None, Prefix::default(), ()).of_proxy();
    /// assert!(conn.is_proxy() && conn.known_client().is_none());
    /// assert_eq!(conn.peer(), peer);
    /// ```
    pub fn of_proxy(mut self) -> Self {
        self.kept = self.kept.of_proxy();
        self
    }

    /// Takes the number of `before`, another identity of the same socket: its proxy has named the
    /// client only after the connection was accepted. For the connection guard, before the
    /// connection is shared.
    #[doc(hidden)]
    pub fn continues<T: ?Sized>(mut self, before: &ConnInfo<T>) -> Self {
        self.id = before.id;
        self
    }

    /// Notes that the peer's address is the one that a header of the PROXY protocol names, and not
    /// that of the socket. For the connection guard, before the connection is shared.
    ///
    /// ```
    /// use palisade_core::{ConnInfo, Prefix};
    /// let peer = "[2001:db8::1]:4711".parse()?;
    /// let conn = ConnInfo::with_state(peer, None, Prefix::default(), ()).of_proxied();
    /// assert!(conn.is_proxied() && !conn.is_proxy());
    /// assert_eq!(conn.peer(), peer);
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    pub fn of_proxied(mut self) -> Self {
        self.scope = PROXIED_SCOPE;
        self
    }

    /// Returns the server's state of the connection.
    #[inline]
    pub fn state(&self) -> &S {
        &self.state
    }
}

impl<S: ?Sized> ConnInfo<S> {
    /// Returns whether the peer is a trusted proxy, so that its requests are those of other
    /// clients.
    #[inline]
    pub fn is_proxy(&self) -> bool {
        self.kept.is_proxy()
    }

    /// Returns whether a header of the PROXY protocol has named the peer's address.
    #[inline]
    pub fn is_proxied(&self) -> bool {
        self.scope == PROXIED_SCOPE
    }

    /// Returns the 128 bits of the peer's address, of IPv4 in its IPv4-mapped form.
    #[doc(hidden)]
    #[inline]
    pub fn address_bits(&self) -> u128 {
        from_halves(self.ip)
    }

    /// Returns how many of these bits identify the client.
    #[inline]
    pub(crate) fn kept_bits(&self) -> u8 {
        self.kept.mapped_bits()
    }

    /// Returns the connection's number. Numbers count up from 1 over all connections of the
    /// process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the other end of the socket. An IPv6 address has no flow label.
    #[inline]
    pub fn peer(&self) -> SocketAddr {
        if self.kept.is_v4() {
            // The address is stored as an IPv4-mapped one: its last 32 bits are the IPv4 address.
            return (Ipv4Addr::from_bits(self.ip[1] as u32), self.port).into();
        }
        let ip = Ipv6Addr::from_bits(from_halves(self.ip));
        let scope = if self.is_proxied() { 0 } else { self.scope };
        SocketAddrV6::new(ip, self.port, 0, scope).into()
    }

    /// Returns the server's end of the socket, where known.
    pub fn local(&self) -> Option<SocketAddr> {
        self.local.as_deref().copied()
    }

    /// Returns the key that guards count this connection's requests by.
    #[inline]
    pub fn client(&self) -> ClientKey {
        let bits = leading_bits(from_halves(self.ip), self.kept.mapped_bits());
        ClientKey::from_parts(bits, self.client_hash)
    }

    /// Returns [`Self::client`] if the peer is a client with an address. The peers of a Unix socket
    /// have none, and a [trusted proxy](Self::is_proxy) is no client.
    ///
    /// ```
    /// use palisade_core::{ClientKey, ConnInfo, Prefix};
    /// let conn = |peer: &str| peer.parse().map(|at| ConnInfo::new(at, None, Prefix::default()));
    /// assert!(conn("192.0.2.1:4711")?.known_client().is_some());
    /// let unix_socket = conn("[::]:0")?;
    /// assert_eq!(unix_socket.known_client(), None);
    /// assert_eq!(unix_socket.client(), ClientKey::SHARED);
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    pub fn known_client(&self) -> Option<ClientKey> {
        self.known_client_hash().map(|_| self.client())
    }

    /// Returns the [hash](ClientKey::to_hash) of [`Self::known_client`], without its other bits.
    #[inline]
    pub fn known_client_hash(&self) -> Option<u64> {
        // `::` and `::ffff:0.0.0.0`.
        let is_unspecified = matches!(self.ip, [0, 0 | 0xffff_0000_0000]);
        (!is_unspecified && !self.is_proxy()).then_some(self.client_hash)
    }

    /// Notes whether a layer charges the body of the present request to a
    /// [`Budget`](crate::Budget), so that the connection guard need not. Only for HTTP/1, where a
    /// connection has one request at a time.
    #[inline]
    pub fn set_charged_body(&self, is_charged: bool) {
        if is_charged {
            self.bodies.fetch_or(CHARGED, Relaxed);
        } else {
            self.bodies.fetch_and(!CHARGED, Relaxed);
        }
    }

    /// Returns whether a layer charges the body of the present request.
    #[inline]
    pub fn has_charged_body(&self) -> bool {
        self.bodies.load(Relaxed) & CHARGED != 0
    }

    /// Adds bytes that are charged to a [`Budget`](crate::Budget) for a request of the connection.
    /// When nothing else helps against growing memory, the connections with the most are closed.
    ///
    /// ```
    /// use palisade_core::{ConnInfo, Prefix};
    /// let conn = ConnInfo::new(([192, 0, 2, 1], 4711).into(), None, Prefix::default());
    /// conn.add_charged(1000);
    /// conn.add_charged(500);
    /// conn.remove_charged(1000);
    /// assert_eq!(conn.charged_bytes(), 500);
    /// ```
    #[inline]
    pub fn add_charged(&self, bytes: u64) {
        // Modulo 2^32, so that the sum is right again below 4 GiB.
        self.charged.fetch_add(bytes as u32, Relaxed);
    }

    /// Removes bytes that were [added](Self::add_charged).
    #[inline]
    pub fn remove_charged(&self, bytes: u64) {
        self.charged.fetch_sub(bytes as u32, Relaxed);
    }

    /// Returns the bytes that are charged for requests of the connection, modulo 4 GiB.
    #[inline]
    pub fn charged_bytes(&self) -> u32 {
        self.charged.load(Relaxed)
    }

    /// Sets the bytes that have arrived for the server and that it has not read. For the connection
    /// guard.
    #[doc(hidden)]
    pub fn set_unread_bytes(&self, bytes: u32) {
        self.unread.store(bytes, Relaxed);
    }

    #[doc(hidden)]
    pub fn unread_bytes(&self) -> u32 {
        self.unread.load(Relaxed)
    }

    /// Adds a request body that no handler is reading. On HTTP/2 its bytes fill a part of the
    /// flow-control window that all requests of the connection share.
    pub fn add_unread_body(&self) {
        self.bodies.fetch_add(UNREAD, Relaxed);
    }

    /// Removes an unread request body: a handler reads it now, or it is gone.
    pub fn remove_unread_body(&self) {
        self.bodies.fetch_sub(UNREAD, Relaxed);
    }

    /// Returns whether there is a request body that no handler is reading.
    ///
    /// ```
    /// use palisade_core::{ConnInfo, Prefix};
    /// let conn = ConnInfo::new(([192, 0, 2, 1], 4711).into(), None, Prefix::default());
    /// conn.add_unread_body(); // An upload has arrived, and its handler does something else.
    /// assert!(conn.has_unread_body());
    /// conn.remove_unread_body(); // The handler reads it.
    /// assert!(!conn.has_unread_body());
    /// ```
    pub fn has_unread_body(&self) -> bool {
        self.bodies.load(Relaxed) >= UNREAD
    }
}

impl<S: ?Sized> fmt::Debug for ConnInfo<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnInfo")
            .field("id", &self.id)
            .field("peer", &self.peer())
            .field("local", &self.local())
            .field("client", &self.client())
            .finish_non_exhaustive()
    }
}

/// Returns a copy of `local` that connections to the same address share.
fn share_local(local: SocketAddr) -> Arc<SocketAddr> {
    const MAX_SHARED_ADDRESSES: usize = 8;
    static LATEST: Mutex<VecDeque<Arc<SocketAddr>>> = Mutex::new(VecDeque::new());
    let mut latest = LATEST.lock();
    if let Some(known) = latest.iter().find(|known| ***known == local) {
        return Arc::clone(known);
    }
    if latest.len() == MAX_SHARED_ADDRESSES {
        latest.pop_front();
    }
    let new = Arc::new(local);
    latest.push_back(Arc::clone(&new));
    new
}

// === KeptBits ===

impl KeptBits {
    /// The smallest value of an IPv6 address.
    const V6: u8 = 64;
    /// The number of bits before the IPv4 address in an IPv4-mapped address.
    const MAPPED: u8 = 96;
    /// The IPv4 address of a trusted proxy, of which all bits count.
    const PROXY_V4: Self = Self(Self::V6 - 1);
    /// The IPv6 address of one.
    const PROXY_V6: Self = Self(u8::MAX);

    /// Creates the value for `kept` of the 128 bits of an IPv4-mapped or IPv6 address.
    fn new(is_v4: bool, kept: u8) -> Self {
        Self(if is_v4 {
            kept - Self::MAPPED
        } else {
            Self::V6 + kept
        })
    }

    fn of_proxy(self) -> Self {
        if self.is_v4() {
            Self::PROXY_V4
        } else {
            Self::PROXY_V6
        }
    }

    #[inline]
    fn is_proxy(self) -> bool {
        self.0 == Self::PROXY_V4.0 || self.0 == Self::PROXY_V6.0
    }

    #[inline]
    fn is_v4(self) -> bool {
        self.0 < Self::V6
    }

    /// Returns how many of the 128 bits are kept.
    #[inline]
    fn mapped_bits(self) -> u8 {
        if self.is_proxy() {
            128
        } else if self.is_v4() {
            Self::MAPPED + self.0
        } else {
            self.0 - Self::V6
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_returns_the_addresses_that_it_was_created_with() {
        let prefix = Prefix::new(24, 48).unwrap();
        for peer in [
            "192.0.2.1:80",
            "[::ffff:192.0.2.1]:80",
            "[2001:db8::1]:443",
            "[fe80::1%3]:1",
        ] {
            let peer: SocketAddr = peer.parse().unwrap();
            for local in 0..20u8 {
                let local = local.checked_sub(1).map(|n| ([127, 0, 0, n], 80).into());
                let conn = ConnInfo::new(peer, local, prefix);
                assert_eq!((conn.peer(), conn.local()), (peer, local));
                assert_eq!(conn.client(), ClientKey::address(peer.ip(), prefix));
            }
        }
        let unknown = ConnInfo::new("[::]:0".parse().unwrap(), None, prefix);
        assert_eq!(
            (unknown.client(), unknown.known_client()),
            (ClientKey::SHARED, None)
        );
    }

    #[test]
    fn the_state_is_returned_for_its_own_type_only() {
        let peer = ([192, 0, 2, 1], 80).into();
        let info = Arc::new(ConnInfo::with_state(peer, None, Prefix::default(), 7u8));
        let erased: Arc<ConnInfo> = info.clone();
        assert_eq!((info.state(), erased.state_as::<u8>()), (&7, Some(&7)));
        assert_eq!(erased.state_as::<u16>(), None);
    }

    #[test]
    fn unread_bodies_are_counted() {
        let info = ConnInfo::new(([192, 0, 2, 1], 80).into(), None, Prefix::default());
        assert!(!info.has_unread_body());
        info.add_unread_body();
        info.add_unread_body();
        info.remove_unread_body();
        assert!(info.has_unread_body() && !info.has_charged_body());
        info.set_charged_body(true);
        for _ in 0..200 {
            info.add_unread_body();
            assert!(info.has_charged_body());
        }
        for _ in 0..200 {
            info.remove_unread_body();
        }
        assert!(info.has_unread_body() && info.has_charged_body());
        info.set_charged_body(false);
        assert!(info.has_unread_body() && !info.has_charged_body());
        info.remove_unread_body();
        assert!(!info.has_unread_body());
    }
}
