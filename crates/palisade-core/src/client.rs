//! Who is asking.

use crate::{ConnState, ConnTotals};
use http::{Extensions, HeaderMap, Method, Request, Uri};
use parking_lot::Mutex;
use siphasher::{
    sip::SipHasher13,
    sip128::{Hasher128, SipHasher13 as SipHasher13Of128},
};
use std::{
    collections::{VecDeque, hash_map::RandomState},
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// How many leading bits of an address make a client.
///
/// Defaults to 32 for IPv4 and 64 for IPv6, because a /64 is the smallest network a subscriber
/// gets (RIPE-690 section 4.2): whoever has one address of it has all 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    v4: u8,
    v6: u8,
}

impl Prefix {
    /// `v4` bits of an IPv4 address, at most 32, and `v6` bits of an IPv6 address, at most 128.
    /// `None` if one is more than its address has.
    pub const fn new(v4: u8, v6: u8) -> Option<Self> {
        if v4 <= 32 && v6 <= 128 {
            Some(Self { v4, v6 })
        } else {
            None
        }
    }

    /// This one, or where that has fewer bits, `other`.
    pub const fn at_most(self, other: Self) -> Self {
        let v4 = if self.v4 < other.v4 {
            self.v4
        } else {
            other.v4
        };
        let v6 = if self.v6 < other.v6 {
            self.v6
        } else {
            other.v6
        };
        Self { v4, v6 }
    }

    /// How many of the 128 bits of `address` make its client.
    fn kept(self, address: IpAddr) -> u8 {
        if address.to_canonical().is_ipv4() {
            96 + self.v4
        } else {
            self.v6
        }
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

/// What guards count by: the network of an address, or a hash of whatever else tells clients
/// apart. 24 bytes, `Copy`.
///
/// It carries its own hash, keyed by a random number of this process, so that the hash is worked
/// out once per connection and not once per request and table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClientKey {
    /// High half, low half.
    bits: [u64; 2],
    hash: u64,
}

impl ClientKey {
    /// The one key of all requests of which nobody knows who sent them.
    pub const SHARED: Self = Self {
        bits: [0; 2],
        hash: 0,
    };

    /// The network of `address`. An IPv4-mapped IPv6 address counts as the IPv4 address it is.
    ///
    /// ```
    /// use palisade_core::{ClientKey, Prefix};
    /// let key = |text: &str| ClientKey::address(text.parse().unwrap(), Prefix::default());
    /// assert_eq!(key("2001:db8::1"), key("2001:db8::ffff")); // One /64, one client.
    /// assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    /// assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    /// ```
    pub fn address(address: IpAddr, prefix: Prefix) -> Self {
        match leading(bits_of(address), prefix.kept(address)) {
            0 => Self::SHARED,
            bits => {
                let (k0, k1) = seed();
                let hash = SipHasher13::new_with_keys(k0, k1).hash(&bits.to_le_bytes());
                Self {
                    bits: split(bits),
                    hash,
                }
            }
        }
    }

    /// A 128-bit hash of `value`, keyed by a random number of this process, so that nobody can
    /// aim for another client's key. The same value gives another key in the next process.
    pub fn of(value: &(impl Hash + ?Sized)) -> Self {
        let (k0, k1) = seed();
        let mut hasher = SipHasher13Of128::new_with_keys(k0, k1);
        value.hash(&mut hasher);
        let bits = split(hasher.finish128().as_u128());
        Self {
            bits,
            hash: bits[0],
        }
    }

    /// The key of the `place`-th account of the same client. 0 is the client's own.
    pub fn account(self, place: u32) -> Self {
        // Odd and without pattern, so that no two accounts live at the same place of a table.
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        Self {
            hash: self.hash ^ u64::from(place).wrapping_mul(STEP),
            ..self
        }
    }

    fn to_bits(self) -> u128 {
        join(self.bits)
    }

    /// A hash by a secret of this process, so that a peer cannot choose it.
    #[inline]
    pub fn to_hash(self) -> u64 {
        self.hash
    }
}

/// The high half and the low half.
fn split(bits: u128) -> [u64; 2] {
    [(bits >> 64) as u64, bits as u64]
}

fn join([high, low]: [u64; 2]) -> u128 {
    (u128::from(high) << 64) | u128::from(low)
}

/// The address as the IPv6 address it is or is mapped to.
pub(crate) fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// `bits` without those after the first `kept`.
pub(crate) fn leading(bits: u128, kept: u8) -> u128 {
    bits & u128::MAX
        .checked_shl(128u32.saturating_sub(u32::from(kept)))
        .unwrap_or(0)
}

/// 128 bits from the operating system, by way of the standard library's own random state: the same
/// as long as the process lives.
fn seed() -> (u64, u64) {
    static SEED: OnceLock<(u64, u64)> = OnceLock::new();
    // The model checker wants every run to go the same way.
    let random = || {
        (
            RandomState::new().hash_one(0u8),
            RandomState::new().hash_one(1u8),
        )
    };
    *SEED.get_or_init(|| {
        if cfg!(palisade_loom) {
            (0, 0)
        } else {
            random()
        }
    })
}

impl Hash for ClientKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ClientKey({})",
            IpAddr::V6(Ipv6Addr::from_bits(self.to_bits())).to_canonical()
        )
    }
}

/// One connection, as every request on it sees it: an `Arc<ConnInfo>` in the request's extensions.
///
/// It is put there by whoever accepts the connection, once per connection made and once per
/// request cloned in, so that no guard has to work out again who is asking.
///
/// ```
/// # use palisade_core::{ConnInfo, Prefix};
/// # use std::sync::Arc;
/// let info = Arc::new(ConnInfo::new("192.0.2.1:4711".parse().unwrap(), None, Prefix::default()));
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(info.clone());
/// ```
pub struct ConnInfo {
    id: u64,
    // The peer and its client share their bits: there are as many of these as connections.
    ip: [u64; 2],
    scope: u32,
    port: u16,
    is_v4: bool,
    /// How many bits of the address are its client's.
    kept: u8,
    client_hash: u64,
    local: Option<Arc<SocketAddr>>,
    totals: Option<Arc<ConnTotals>>,
    state: ConnState,
}

impl ConnInfo {
    /// A connection from `peer` to `local`. Its client is the `prefix` of the peer's address.
    pub fn new(peer: SocketAddr, local: Option<SocketAddr>, prefix: Prefix) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            ip: split(bits_of(peer.ip())),
            scope: if let SocketAddr::V6(peer) = peer {
                peer.scope_id()
            } else {
                0
            },
            port: peer.port(),
            is_v4: peer.is_ipv4(),
            kept: prefix.kept(peer.ip()),
            client_hash: ClientKey::address(peer.ip(), prefix).hash,
            local: local.map(in_common),
            totals: None,
            state: ConnState::default(),
        }
    }

    /// It is one of those that count together in `totals`. Defaults to counting alone.
    pub fn within(mut self, totals: Arc<ConnTotals>) -> Self {
        self.totals = Some(totals);
        self
    }

    /// What it counts in, together with others.
    #[inline]
    pub fn totals(&self) -> Option<&Arc<ConnTotals>> {
        self.totals.as_ref()
    }

    /// Counts up from 1 over all connections of this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The other end of the socket; of IPv6 without its flow label.
    #[inline]
    pub fn peer(&self) -> SocketAddr {
        if self.is_v4 {
            // It is mapped: the last of its bits.
            return (Ipv4Addr::from_bits(self.ip[1] as u32), self.port).into();
        }
        let ip = Ipv6Addr::from_bits(join(self.ip));
        SocketAddrV6::new(ip, self.port, 0, self.scope).into()
    }

    /// Our end of the socket, where known.
    pub fn local(&self) -> Option<SocketAddr> {
        self.local.as_deref().copied()
    }

    /// What guards count this connection's requests by.
    #[inline]
    pub fn client(&self) -> ClientKey {
        ClientKey {
            bits: split(leading(join(self.ip), self.kept)),
            hash: self.client_hash,
        }
    }

    /// The same, if anybody knows who the peer is: of a Unix socket nobody does.
    pub fn known_client(&self) -> Option<ClientKey> {
        self.known_hash().map(|_| self.client())
    }

    /// The hash of that.
    #[inline]
    pub(crate) fn known_hash(&self) -> Option<u64> {
        // `::` and `::ffff:0.0.0.0`.
        let is_unspecified = matches!(self.ip, [0, 0 | 0xffff_0000_0000]);
        (!is_unspecified).then_some(self.client_hash)
    }

    /// What happens on it, as the connection guard and its accounting layer keep it.
    #[inline]
    pub fn state(&self) -> &ConnState {
        &self.state
    }

    /// The connection of the request with these extensions, if somebody put it there.
    #[inline]
    pub fn from_extensions(extensions: &Extensions) -> Option<&Arc<Self>> {
        extensions.get::<Arc<Self>>()
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnInfo")
            .field("id", &self.id)
            .field("peer", &self.peer())
            .field("local", &self.local())
            .field("client", &self.client())
            .field("state", &self.state)
            .finish()
    }
}

/// One copy of `local` for all connections that came in there lately.
fn in_common(local: SocketAddr) -> Arc<SocketAddr> {
    const KEPT: usize = 8;
    static LATEST: Mutex<VecDeque<Arc<SocketAddr>>> = Mutex::new(VecDeque::new());
    let mut latest = LATEST.lock();
    if let Some(known) = latest.iter().find(|known| ***known == local) {
        return Arc::clone(known);
    }
    if latest.len() == KEPT {
        latest.pop_front();
    }
    let new = Arc::new(local);
    latest.push_back(Arc::clone(&new));
    new
}

/// A request without its body, borrowed: what predicates, costs and key extractors look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The target.
    pub uri: &'a Uri,
    /// The headers, as the client wrote them.
    pub headers: &'a HeaderMap,
    /// What servers and layers before this one left for those after.
    pub extensions: &'a Extensions,
}

impl<'a, B> From<&'a Request<B>> for RequestHead<'a> {
    fn from(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }
}

/// What a [`KeyExtractor`] makes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOutcome {
    /// Count it under this key.
    Key(ClientKey),
    /// Let it pass uncounted.
    Exempt,
    /// Refuse it with 500: the server is not set up to tell who is asking.
    Refuse,
}

/// Tells by what a request is counted.
///
/// Any `Fn(&RequestHead<'_>) -> KeyOutcome` is one. Do not key by a header that the client can
/// set before it is checked: that hands out a fresh quota for every value it makes up.
pub trait KeyExtractor: Send + Sync + 'static {
    /// The key of the request with this head. Called once per request: be quick, never panic.
    fn extract(&self, head: &RequestHead<'_>) -> KeyOutcome;
}

impl<F> KeyExtractor for F
where
    F: Fn(&RequestHead<'_>) -> KeyOutcome + Send + Sync + 'static,
{
    fn extract(&self, head: &RequestHead<'_>) -> KeyOutcome {
        self(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str, v4: u8, v6: u8) -> ClientKey {
        ClientKey::address(text.parse().unwrap(), Prefix::new(v4, v6).unwrap())
    }

    #[test]
    fn a_prefix_keeps_exactly_its_bits() {
        assert_eq!(key("192.0.2.1", 24, 64), key("192.0.2.255", 24, 64));
        assert_ne!(key("192.0.2.1", 24, 64), key("192.0.3.1", 24, 64));
        assert_eq!(
            key("2001:db8::1", 32, 48),
            key("2001:db8:0:ffff::1", 32, 48)
        );
        assert_ne!(key("2001:db8::1", 32, 128), key("2001:db8::2", 32, 128));
        assert_eq!(key("1.2.3.4", 0, 0), key("5.6.7.8", 0, 0));
        assert_eq!(key("2001:db8::1", 0, 0), ClientKey::SHARED);
        assert_eq!(Prefix::new(33, 64), None);
        assert_eq!(Prefix::new(32, 129), None);
    }

    #[test]
    fn a_connection_gives_back_the_addresses_it_was_made_of() {
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
        let nobody = ConnInfo::new("[::]:0".parse().unwrap(), None, prefix);
        assert_eq!(nobody.client(), ClientKey::SHARED);
    }

    #[test]
    fn hashed_keys_agree_with_themselves_and_with_nobody_else() {
        assert_eq!(ClientKey::of("tenant"), ClientKey::of("tenant"));
        assert_ne!(ClientKey::of("tenant"), ClientKey::of("other"));
    }

    #[test]
    fn the_accounts_of_a_client_are_keys_of_their_own() {
        let client = key("192.0.2.1", 32, 64);
        assert_eq!(client.account(0), client);
        assert_ne!(client.account(1), client);
        assert_ne!(client.account(1), client.account(2));
        assert_ne!(client.account(1), key("192.0.2.2", 32, 64).account(1));
    }
}
