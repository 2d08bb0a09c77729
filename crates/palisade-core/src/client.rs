//! Client keys, and how a request is mapped to one.

use http::{Extensions, HeaderMap, Method, Request, Uri};
use siphasher::{
    sip::SipHasher13,
    sip128::{self, Hasher128},
};
use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    net::{IpAddr, Ipv6Addr},
    sync::OnceLock,
};

/// The number of leading bits of an address that identify a client.
///
/// A /64 is the smallest IPv6 network that a subscriber gets (RIPE-690 section 4.2), so a client
/// with one of its addresses has all 2^64. Defaults to 32 bits for IPv4 and 64 for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    v4: u8,
    v6: u8,
}

impl Prefix {
    /// Creates a prefix of `v4` bits of an IPv4 address, at most 32, and `v6` bits of an IPv6
    /// address, at most 128. Returns `None` if a number is too large.
    ///
    /// ```
    /// use palisade_core::{ClientKey, Prefix};
    /// let wide = Prefix::new(24, 48).expect("bits of an address");
    /// let client = |address: &str| address.parse().map(|ip| ClientKey::address(ip, wide));
    /// assert_eq!(client("192.0.2.1")?, client("192.0.2.255")?); // One client.
    /// assert_ne!(client("2001:db8:1::1")?, client("2001:db8:2::1")?);
    /// assert_eq!(Prefix::new(33, 48), None); // An IPv4 address has 32 bits.
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    pub const fn new(v4: u8, v6: u8) -> Option<Self> {
        if v4 <= 32 && v6 <= 128 {
            Some(Self { v4, v6 })
        } else {
            None
        }
    }

    /// Returns, for IPv4 and for IPv6, the shorter prefix of `self` and `other`.
    ///
    /// ```
    /// use palisade_core::Prefix;
    /// let shorter = Prefix::new(24, 128).map(|other| Prefix::default().at_most(other));
    /// assert_eq!(shorter, Prefix::new(24, 64)); // The default is 32 and 64.
    /// ```
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

    /// Returns the number of bits of an IPv4 address, and of an IPv6 address.
    ///
    /// ```
    /// use palisade_core::Prefix;
    /// assert_eq!(Prefix::default().bits(), (32, 64));
    /// ```
    pub const fn bits(self) -> (u8, u8) {
        (self.v4, self.v6)
    }

    /// Returns how many of the 128 bits of `address`, IPv4-mapped if it is IPv4, identify the
    /// client.
    pub(crate) fn kept_bits(self, address: IpAddr) -> u8 {
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

/// The key that guards count by: the network of an address, or a hash of another value that tells
/// clients apart. 24 bytes, `Copy`.
///
/// It carries its own hash, keyed by a random number of this process. The hash is therefore
/// computed once per connection, and not once per request and table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClientKey {
    /// The high half and the low half.
    bits: [u64; 2],
    hash: u64,
}

impl ClientKey {
    /// The key that all requests of unknown clients share.
    pub const SHARED: Self = Self {
        bits: [0; 2],
        hash: 0,
    };

    /// Returns the key of the network of `address`. An IPv4-mapped IPv6 address counts as the IPv4
    /// address. A network without any bits set, such as that of `::`, is [`Self::SHARED`].
    ///
    /// ```
    /// use palisade_core::{ClientKey, Prefix};
    /// let key = |text: &str| ClientKey::address(text.parse().unwrap(), Prefix::default());
    /// assert_eq!(key("2001:db8::1"), key("2001:db8::ffff")); // One /64, one client.
    /// assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    /// assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    /// ```
    pub fn address(address: IpAddr, prefix: Prefix) -> Self {
        match leading_bits(address_bits(address), prefix.kept_bits(address)) {
            0 => Self::SHARED,
            bits => {
                let (k0, k1) = hash_keys();
                let hash = SipHasher13::new_with_keys(k0, k1).hash(&bits.to_le_bytes());
                Self {
                    bits: halves(bits),
                    hash,
                }
            }
        }
    }

    /// Returns the key of the network of the first `bits` bits of `address`: the 128 bits of an
    /// IPv6 address, or of an IPv4-mapped one. Unlike the keys of [`Self::address`], those of
    /// networks of different sizes differ if the networks begin alike. None is the key of a client.
    ///
    /// ```
    /// use palisade_core::{ClientKey, Prefix};
    /// use std::net::Ipv6Addr;
    /// let key = |address: &str, bits| {
    ///     let address: Ipv6Addr = address.parse().unwrap();
    ///     ClientKey::network(address.to_bits(), bits)
    /// };
    /// assert_eq!(key("2001:db8::1", 56), key("2001:db8:0:ff::1", 56));
    /// assert_ne!(key("2001:db8::1", 56), key("2001:db8::1", 48));
    /// assert_eq!(key("::ffff:192.0.2.1", 96 + 24), key("::ffff:192.0.2.2", 96 + 24));
    /// let client = ClientKey::address("2001:db8::".parse().unwrap(), Prefix::default());
    /// assert_ne!(key("2001:db8::", 64), client);
    /// ```
    #[inline]
    pub fn network(address: u128, bits: u8) -> Self {
        /// The accounts of a network: one per size, from beyond those of a client on.
        const ACCOUNTS_OF_CLIENT: u32 = 4;
        // In halves, because shifts of 128 bits take 20 instructions.
        let mask = |kept: u8| !u64::MAX.checked_shr(kept.into()).unwrap_or(0);
        let [high, low] = match halves(address) {
            [high, _] if bits <= 64 => [high & mask(bits), 0],
            [high, low] => [high, low & mask(bits - 64)],
        };
        // All networks that are assigned to subscribers, and all of IPv4, have one word.
        let hash = if low == 0 || high == 0 {
            hash_words([high | low])
        } else {
            hash_words([high, low])
        };
        let key = Self {
            bits: [high, low],
            hash,
        };
        key.account((u32::from(bits) + 1) * ACCOUNTS_OF_CLIENT)
    }

    /// Returns a key from a 112-bit hash of `value`. The hash is keyed by a random number of this
    /// process, so a client cannot aim for the key of another client. Another process has another
    /// key for the same value, so limits that several nodes share do not work with it.
    ///
    /// ```
    /// use palisade_core::ClientKey;
    /// let tenant = |id: u64| ClientKey::of(&("tenant", id));
    /// assert_eq!(tenant(7), tenant(7));
    /// assert_ne!(tenant(7), tenant(8));
    /// ```
    pub fn of(value: &(impl Hash + ?Sized)) -> Self {
        let (k0, k1) = hash_keys();
        let mut hasher = sip128::SipHasher13::new_with_keys(k0, k1);
        value.hash(&mut hasher);
        let [high, low] = halves(hasher.finish128().as_u128());
        Self {
            bits: [marked(high, OF_PROCESS), low],
            hash: high,
        }
    }

    /// Returns the key of a client that all nodes with the same secret know by `digest`.
    #[doc(hidden)]
    pub fn of_digest(digest: u128) -> Self {
        let [high, low] = halves(digest);
        let bits = [marked(high, OF_FLEET), low];
        Self {
            bits,
            hash: hash_words(bits),
        }
    }

    /// Returns what identifies this client on all nodes: the bits of its address, or a digest under
    /// a secret that they share. `None` for a key that this process alone can make.
    #[doc(hidden)]
    #[inline]
    pub fn on_all_nodes(self) -> Option<[u64; 2]> {
        (self.bits[0] >> MARK_SHIFT != OF_PROCESS).then_some(self.bits)
    }

    /// Returns the key of one of several accounts of this client. Account 0 is the client's own
    /// key.
    ///
    /// ```
    /// use palisade_core::ClientKey;
    /// let client = ClientKey::of("alice");
    /// let (reads, writes) = (client.account(1), client.account(2));
    /// assert_ne!(reads, writes); // What counts by one does not change the other.
    /// assert_eq!(client.account(0), client);
    /// ```
    pub fn account(self, number: u32) -> Self {
        Self {
            hash: Self::account_hash(self.hash, number),
            ..self
        }
    }

    /// Returns the hash of one of the accounts of the client with this hash.
    #[doc(hidden)]
    #[inline]
    pub const fn account_hash(hash: u64, number: u32) -> u64 {
        // Odd and without a pattern, so that the accounts of a client have different slots in a
        // table.
        const HASH_STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        hash ^ (number as u64).wrapping_mul(HASH_STEP)
    }

    /// Returns the key of a client from the leading bits of its address and its hash.
    pub(crate) fn from_parts(bits: u128, hash: u64) -> Self {
        Self {
            bits: halves(bits),
            hash,
        }
    }

    fn to_bits(self) -> u128 {
        from_halves(self.bits)
    }

    /// Returns a hash that is keyed by a secret of this process, so that a peer cannot choose it.
    #[inline]
    pub fn to_hash(self) -> u64 {
        self.hash
    }
}

/// Set in the first 16 bits of a key from a hash. Both are multicast addresses with flags that are
/// not assigned (RFC 4291 section 2.7), and so no address of a client.
const OF_PROCESS: u64 = 0xfff0;
const OF_FLEET: u64 = 0xfff1;
/// The number of bits on the right of a mark.
const MARK_SHIFT: u32 = 48;

/// Returns the high half of a key from a hash.
fn marked(high: u64, mark: u64) -> u64 {
    mark << MARK_SHIFT | high & (u64::MAX >> (u64::BITS - MARK_SHIFT))
}

/// Splits `bits` into the high half and the low half.
pub(crate) fn halves(bits: u128) -> [u64; 2] {
    [(bits >> 64) as u64, bits as u64]
}

/// Joins the halves that [`halves`] returns.
pub(crate) fn from_halves([high, low]: [u64; 2]) -> u128 {
    (u128::from(high) << 64) | u128::from(low)
}

/// Returns the bits of `address`, an IPv4 address as an IPv4-mapped IPv6 address.
pub(crate) fn address_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Returns `bits` with all bits after the first `kept` cleared.
pub(crate) fn leading_bits(bits: u128, kept: u8) -> u128 {
    bits & u128::MAX
        .checked_shl(128u32.saturating_sub(u32::from(kept)))
        .unwrap_or(0)
}

/// Returns the hash of the words that a network has.
#[inline]
fn hash_words<const N: usize>(words: [u64; N]) -> u64 {
    let (k0, k1) = hash_keys();
    let mut hasher = SipHasher13::new_with_keys(k0, k1);
    words.into_iter().for_each(|word| hasher.write_u64(word));
    hasher.finish()
}

/// Returns the two hash keys of this process: 128 random bits that the standard library's random
/// state has from the operating system.
#[inline]
fn hash_keys() -> (u64, u64) {
    static KEYS: OnceLock<(u64, u64)> = OnceLock::new();
    let random = || {
        (
            RandomState::new().hash_one(0u8),
            RandomState::new().hash_one(1u8),
        )
    };
    *KEYS.get_or_init(|| {
        // loom needs every execution to take the same course.
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

/// A borrowed request without its body: the argument of predicates, cost functions and key
/// extractors.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestHead<'a> {
    /// The request method.
    pub method: &'a Method,
    /// The request target.
    pub uri: &'a Uri,
    /// The headers, as the client sent them.
    pub headers: &'a HeaderMap,
    /// The values that the server and the outer layers have inserted.
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

/// How a request is counted: the result of a [`KeyExtractor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyOutcome {
    /// Count the request under this key.
    Key(ClientKey),
    /// Admit the request without counting it.
    Exempt,
    /// Refuse the request with 500, because the server is not set up to identify its client. The
    /// reason is [`PeerMissing`](crate::Reason::PeerMissing).
    Refuse,
}

/// Determines the key under which a request is counted.
///
/// Implemented for every `Fn(&RequestHead<'_>) -> KeyOutcome`. Do not take the key from a header
/// that the client can set, unless it is verified before: otherwise the client gets a new quota for
/// each value that it invents.
///
/// ```
/// use palisade_core::{ClientKey, KeyOutcome, RequestHead};
///
/// /// A tenant that an outer layer has authenticated and inserted.
/// #[derive(Clone, Hash)]
/// struct Tenant(u64);
///
/// let by_tenant = |head: &RequestHead<'_>| match head.extensions.get::<Tenant>() {
///     Some(tenant) => KeyOutcome::Key(ClientKey::of(tenant)),
///     None => KeyOutcome::Refuse,
/// };
/// # let _: &dyn palisade_core::KeyExtractor = &by_tenant;
/// ```
pub trait KeyExtractor: Send + Sync + 'static {
    /// Returns the key of the request with this head. Called once per request: it must be fast and
    /// must not panic.
    ///
    /// ```
    /// use palisade_core::{ClientKey, KeyExtractor, KeyOutcome, RequestHead};
    /// let extractor = |head: &RequestHead<'_>| match head.uri.path() {
    ///     "/health" => KeyOutcome::Exempt,
    ///     _ => KeyOutcome::Key(ClientKey::SHARED),
    /// };
    /// let request = http::Request::get("/health").body(())?;
    /// assert_eq!(extractor.extract(&RequestHead::from(&request)), KeyOutcome::Exempt);
    /// # Ok::<(), http::Error>(())
    /// ```
    fn extract(&self, head: &RequestHead<'_>) -> KeyOutcome;

    /// Returns the address of the client, if the key stands for the network of an address. Limits
    /// of wider networks, and quotas of certain networks, are by this address: a key alone cannot
    /// be widened. Called only if there are such limits, after [`Self::extract`]: it must be fast
    /// and must not panic.
    ///
    /// Defaults to `None`, also for closures: requests then count by their key alone.
    ///
    /// ```
    /// use palisade_core::{ClientKey, KeyExtractor, KeyOutcome, Prefix, RequestHead};
    /// use std::net::{IpAddr, SocketAddr};
    ///
    /// /// Counts by the address that an own listener has inserted.
    /// struct ByAddress;
    ///
    /// impl KeyExtractor for ByAddress {
    ///     fn extract(&self, head: &RequestHead<'_>) -> KeyOutcome {
    ///         match self.address(head) {
    ///             Some(ip) => KeyOutcome::Key(ClientKey::address(ip, Prefix::default())),
    ///             None => KeyOutcome::Refuse,
    ///         }
    ///     }
    ///
    ///     fn address(&self, head: &RequestHead<'_>) -> Option<IpAddr> {
    ///         head.extensions.get::<SocketAddr>().map(SocketAddr::ip)
    ///     }
    /// }
    ///
    /// let mut request = http::Request::new(());
    /// request.extensions_mut().insert(SocketAddr::from(([192, 0, 2, 1], 4711)));
    /// assert_eq!(ByAddress.address(&(&request).into()), Some([192, 0, 2, 1].into()));
    /// let closure = |_: &RequestHead<'_>| KeyOutcome::Key(ClientKey::SHARED);
    /// assert_eq!(closure.address(&(&request).into()), None);
    /// ```
    fn address(&self, head: &RequestHead<'_>) -> Option<IpAddr> {
        let _ = head;
        None
    }

    /// Returns the results of [`Self::extract`] and [`Self::address`], for extractors that find
    /// both at once.
    #[doc(hidden)]
    fn extract_with_address(&self, head: &RequestHead<'_>) -> (KeyOutcome, Option<IpAddr>) {
        (self.extract(head), self.address(head))
    }
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
    fn a_prefix_keeps_its_bits_and_no_others() {
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
    fn equal_values_have_one_hashed_key_and_different_values_have_different_ones() {
        assert_eq!(ClientKey::of("tenant"), ClientKey::of("tenant"));
        assert_ne!(ClientKey::of("tenant"), ClientKey::of("other"));
    }

    #[test]
    fn a_key_is_the_same_on_all_nodes_unless_it_is_hashed_by_this_process() {
        let client = key("2001:db8::1", 32, 64);
        assert_eq!(client.on_all_nodes(), Some([0x2001_0db8_0000_0000, 0]));
        assert_eq!(ClientKey::SHARED.on_all_nodes(), Some([0, 0]));
        assert_eq!(ClientKey::of("tenant").on_all_nodes(), None);
        let digest = ClientKey::of_digest(u128::MAX / 3);
        assert_eq!(
            digest.on_all_nodes(),
            Some([0xfff1_5555_5555_5555, u64::MAX / 3])
        );
        assert_ne!(digest, ClientKey::of_digest(u128::MAX / 3 - 1));
        assert_eq!(digest.account(3).on_all_nodes(), digest.on_all_nodes());
    }

    #[test]
    fn networks_that_begin_alike_have_keys_of_their_own_and_accounts_for_each_quota() {
        let address: Ipv6Addr = "2001:db8::".parse().unwrap();
        let client = ClientKey::address(IpAddr::V6(address), Prefix::default());
        let networks = (0..=128).map(|bits| ClientKey::network(address.to_bits(), bits));
        let keys = std::iter::once(client).chain(networks);
        let accounts = keys.flat_map(|key| (0..4).map(move |number| key.account(number).to_hash()));
        let accounts: std::collections::HashSet<u64> = accounts.collect();
        assert_eq!(accounts.len(), 4 * 130);
        for bits in 0..=130 {
            let kept = from_halves(ClientKey::network(u128::MAX, bits).bits);
            assert_eq!(kept, leading_bits(u128::MAX, bits), "{bits}");
        }
        let key = |address: &str| {
            let address: Ipv6Addr = address.parse().unwrap();
            ClientKey::network(address.to_bits(), 120)
        };
        assert_ne!(key("2001:db8::100"), key("2001:db8::200"));
        assert_ne!(key("::ffff:192.0.2.1"), key("::ffff:192.0.3.1"));
    }

    #[test]
    fn each_account_of_a_client_has_its_own_key() {
        let client = key("192.0.2.1", 32, 64);
        assert_eq!(client.account(0), client);
        assert_ne!(client.account(1), client);
        assert_ne!(client.account(1), client.account(2));
        assert_ne!(client.account(1), key("192.0.2.2", 32, 64).account(1));
    }
}
