//! Address blocks, and sets of them.

pub(crate) mod networks;
pub(crate) mod set;

use crate::client::{address_bits, leading_bits};
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// A block of addresses, such as `10.0.0.0/8`, `2001:db8::/32` or `192.0.2.1`.
///
/// An IPv4-mapped IPv6 address counts as the IPv4 address. An IPv6 block, even `::/0`, contains no
/// IPv4 address.
///
/// ```
/// use palisade_core::Network;
/// let office: Network = "192.0.2.0/24".parse().unwrap();
/// assert!(office.contains("192.0.2.77".parse().unwrap()));
/// assert!(!office.contains("192.0.3.1".parse().unwrap()));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    bits: u128,
    /// The number of leading bits of the 128 that all addresses of the block share.
    prefix_bits: u8,
    is_v4: bool,
}

/// The error of parsing a text that is not a [`Network`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidNetwork(String);

// === Network ===

impl Network {
    /// Creates the block of all addresses that share their first `prefix` bits with `address`.
    /// Returns `None` if `prefix` is more than 32 for an IPv4 address, or 128 for an IPv6 address.
    ///
    /// ```
    /// use palisade_core::Network;
    /// assert_eq!(Network::new([10, 0, 0, 0].into(), 8), Some("10.0.0.0/8".parse()?));
    /// assert_eq!(Network::new([10, 0, 0, 0].into(), 33), None);
    /// # Ok::<(), palisade_core::InvalidNetwork>(())
    /// ```
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let (max_prefix, mapped_bits) = if address.is_ipv4() {
            (32, 96)
        } else {
            (128, 0)
        };
        if prefix > max_prefix {
            return None;
        }
        Some(Self::of_mapped(address_bits(address), mapped_bits + prefix))
    }

    /// Creates the block of all addresses that share their first `prefix_bits` bits with `bits`, an
    /// IPv6 or IPv4-mapped address.
    pub(crate) fn of_mapped(bits: u128, prefix_bits: u8) -> Self {
        Self {
            bits: leading_bits(bits, prefix_bits),
            prefix_bits,
            is_v4: bits >> 32 == 0xffff && prefix_bits >= 96,
        }
    }

    /// Returns whether `address` is in the block.
    ///
    /// ```
    /// use palisade_core::Network;
    /// let office: Network = "192.0.2.0/24".parse()?;
    /// assert!(office.contains("::ffff:192.0.2.77".parse()?)); // IPv4-mapped.
    /// assert!(!office.contains("192.0.3.1".parse()?));
    /// let ipv6: Network = "::/0".parse()?;
    /// assert!(!ipv6.contains("192.0.2.77".parse()?));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn contains(&self, address: IpAddr) -> bool {
        let is_v4 = address.to_canonical().is_ipv4();
        is_v4 == self.is_v4 && leading_bits(address_bits(address), self.prefix_bits) == self.bits
    }

    /// Returns the first and the last address of the block, both of its family.
    fn range(&self) -> (IpAddr, IpAddr) {
        let last = self.bits | !leading_bits(u128::MAX, self.prefix_bits);
        let address = |bits| {
            let address = Ipv6Addr::from_bits(bits);
            if self.is_v4 {
                address.to_canonical()
            } else {
                address.into()
            }
        };
        (address(self.bits), address(last))
    }
}

/// The block of a single address.
impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        let is_v4 = address.to_canonical().is_ipv4();
        Self {
            bits: address_bits(address),
            prefix_bits: 128,
            is_v4,
        }
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let parsed = match text.split_once('/') {
            None => text.parse().ok().map(IpAddr::into),
            // Digits only: the standard library also parses `+8` as a number.
            Some((address, prefix)) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => {
                let address = address.parse().ok().zip(prefix.parse().ok());
                address.and_then(|(address, prefix)| Self::new(address, prefix))
            }
            Some(_) => None,
        };
        parsed.ok_or_else(|| InvalidNetwork(text.to_owned()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from_bits(self.bits);
        if self.is_v4 {
            write!(
                f,
                "{}/{}",
                address.to_canonical(),
                self.prefix_bits.saturating_sub(96)
            )
        } else {
            write!(f, "{address}/{}", self.prefix_bits)
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === InvalidNetwork ===

impl fmt::Display for InvalidNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is neither an IP address nor an address/prefix",
            self.0
        )
    }
}

impl std::error::Error for InvalidNetwork {}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_contains_its_own_addresses_and_no_others() {
        let contains =
            |block: &str, address: &str| network(block).contains(address.parse().unwrap());
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.0"));
        assert!(
            contains("10.0.0.0/8", "::ffff:10.1.1.1")
                && contains("::ffff:10.0.0.0/104", "10.1.1.1")
        );
        assert!(contains("192.0.2.1", "192.0.2.1") && !contains("192.0.2.1", "192.0.2.2"));
        assert!(contains("192.0.2.77/24", "192.0.2.1")); // Bits after the prefix are ignored.
        assert!(
            contains("2001:db8::/32", "2001:db8:ffff::1")
                && !contains("2001:db8::/32", "2001:db9::1")
        );
        assert!(contains("2001:db8::1", "2001:db8::1") && !contains("2001:db8::1", "2001:db8::2"));
        assert!(contains("0.0.0.0/0", "1.2.3.4") && !contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("::/0", "2001:db8::1") && !contains("::/0", "1.2.3.4"));
    }

    #[test]
    fn an_invalid_text_is_refused_and_a_valid_one_is_displayed_unchanged() {
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "::/+1",
            "a/8",
            "::/999",
        ] {
            let error = text.parse::<Network>().unwrap_err();
            assert_eq!(error, InvalidNetwork(text.to_owned()));
        }
        for text in [
            "10.0.0.0/8",
            "192.0.2.1/32",
            "0.0.0.0/0",
            "::/0",
            "2001:db8::/32",
        ] {
            assert_eq!(network(text).to_string(), text);
        }
    }
}
