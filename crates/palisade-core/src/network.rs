//! Blocks of addresses.

use crate::client::{bits_of, leading};
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// A block of addresses, such as `10.0.0.0/8`, `2001:db8::/32` or `192.0.2.1`.
///
/// An IPv4-mapped IPv6 address is the IPv4 address it is, and no IPv4 address is in a block of
/// IPv6, not even in `::/0`.
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
    /// Of the 128.
    kept: u8,
    is_v4: bool,
}

/// A text that is no [`Network`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidNetwork(String);

// === Network ===

impl Network {
    /// The addresses that share their first `prefix` bits with `address`. `None` if it has not so
    /// many.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let (whole, before) = if address.is_ipv4() {
            (32, 96)
        } else {
            (128, 0)
        };
        if prefix > whole {
            return None;
        }
        let kept = before + prefix;
        let is_v4 = address.to_canonical().is_ipv4() && kept >= 96;
        Some(Self {
            bits: leading(bits_of(address), kept),
            kept,
            is_v4,
        })
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let is_v4 = address.to_canonical().is_ipv4();
        is_v4 == self.is_v4 && leading(bits_of(address), self.kept) == self.bits
    }
}

/// That address alone.
impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        let is_v4 = address.to_canonical().is_ipv4();
        Self {
            bits: bits_of(address),
            kept: 128,
            is_v4,
        }
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let parsed = match text.split_once('/') {
            None => text.parse().ok().map(IpAddr::into),
            // `+8` is a number to the standard library.
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
                self.kept.saturating_sub(96)
            )
        } else {
            write!(f, "{address}/{}", self.kept)
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
        write!(f, "{:?} is no address and no address/prefix", self.0)
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
    fn a_network_has_its_own_addresses_and_no_others() {
        let has = |block: &str, address: &str| network(block).contains(address.parse().unwrap());
        assert!(has("10.0.0.0/8", "10.255.0.1") && !has("10.0.0.0/8", "11.0.0.0"));
        assert!(has("10.0.0.0/8", "::ffff:10.1.1.1") && has("::ffff:10.0.0.0/104", "10.1.1.1"));
        assert!(has("192.0.2.1", "192.0.2.1") && !has("192.0.2.1", "192.0.2.2"));
        assert!(has("192.0.2.77/24", "192.0.2.1")); // What is after the prefix does not count.
        assert!(has("2001:db8::/32", "2001:db8:ffff::1") && !has("2001:db8::/32", "2001:db9::1"));
        assert!(has("2001:db8::1", "2001:db8::1") && !has("2001:db8::1", "2001:db8::2"));
        assert!(has("0.0.0.0/0", "1.2.3.4") && !has("0.0.0.0/0", "2001:db8::1"));
        assert!(has("::/0", "2001:db8::1") && !has("::/0", "1.2.3.4"));
    }

    #[test]
    fn what_is_no_network_is_refused_and_what_is_one_comes_back() {
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
