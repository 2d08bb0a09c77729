//! Who is asking.

use http::{Extensions, HeaderMap, Method, Request, Uri};
use siphasher::{
    sip::SipHasher13,
    sip128::{Hasher128, SipHasher13 as SipHasher13Of128},
};
use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    net::{IpAddr, Ipv6Addr},
    sync::OnceLock,
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
    pub(crate) fn kept(self, address: IpAddr) -> u8 {
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

    /// The key of a client whose address has these leading bits, and that hash.
    pub(crate) fn from_parts(bits: u128, hash: u64) -> Self {
        Self {
            bits: split(bits),
            hash,
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
pub(crate) fn split(bits: u128) -> [u64; 2] {
    [(bits >> 64) as u64, bits as u64]
}

pub(crate) fn join([high, low]: [u64; 2]) -> u128 {
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
