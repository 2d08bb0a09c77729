//! The text of an address in a forwarding field, and its canonical form.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longer than any address with a zone and a port.
const MAX_ADDRESS_BYTES: usize = 128;
/// The first 96 bits of an IPv4-mapped address.
const MAPPED: u128 = 0xffff_0000_0000;

/// An address as 128 bits: an IPv4 address in its IPv4-mapped form, so that an address has one
/// value. Cheaper to compare and to copy than an [`IpAddr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address([u64; 2]);

/// What is allowed around an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syntax {
    /// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
    Plain,
    /// The `node` of RFC 7239 section 6: IPv6 in brackets only, because a port follows a colon, and
    /// a port may be a name that begins with `_`.
    Node,
}

/// The forms of IPv6 that stand for an IPv4 address, beside the IPv4-mapped one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Embedded {
    /// `64:ff9b::/96` (RFC 6052).
    pub(crate) nat64: bool,
    /// `2002::/16` (RFC 3056).
    pub(crate) six_to_four: bool,
}

// === Address ===

impl Address {
    /// The unspecified address `::`, which stands for a peer without an address.
    pub(crate) const UNKNOWN: Self = Self([0; 2]);

    #[inline]
    pub(crate) fn from_bits(bits: u128) -> Self {
        Self([(bits >> 64) as u64, bits as u64])
    }

    #[inline]
    pub(crate) fn to_bits(self) -> u128 {
        (u128::from(self.0[0]) << 64) | u128::from(self.0[1])
    }

    #[inline]
    pub(crate) fn from_ipv4(bits: u32) -> Self {
        Self([0, MAPPED as u64 | u64::from(bits)])
    }

    #[inline]
    pub(crate) fn is_ipv4(self) -> bool {
        self.0[0] == 0 && self.0[1] >> 32 == 0xffff
    }

    #[inline]
    pub(crate) fn is_unspecified(self) -> bool {
        self.0[0] == 0 && (self.0[1] == 0 || self.0[1] == MAPPED as u64)
    }
}

impl From<IpAddr> for Address {
    #[inline]
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_ipv4(v4.to_bits()),
            IpAddr::V6(v6) => Self::from_bits(v6.to_bits()),
        }
    }
}

/// In the canonical form.
impl From<Address> for IpAddr {
    #[inline]
    fn from(address: Address) -> Self {
        if address.is_ipv4() {
            Ipv4Addr::from_bits(address.0[1] as u32).into()
        } else {
            Ipv6Addr::from_bits(address.to_bits()).into()
        }
    }
}

// === Syntax ===

impl Syntax {
    /// Parses an address. The port and the zone are dropped. `None` for any other text, and for the
    /// unspecified addresses `0.0.0.0` and `::`, which are no client.
    pub(crate) fn parse(self, text: &[u8]) -> Option<Address> {
        let address = match ipv4_at_the_end(text) {
            Some((v4, [])) => Address::from_ipv4(v4),
            _ => self.parse_other(text)?.into(),
        };
        (!address.is_unspecified()).then_some(address)
    }

    /// Parses all forms but a bare IPv4 address.
    fn parse_other(self, text: &[u8]) -> Option<IpAddr> {
        if text.len() > MAX_ADDRESS_BYTES {
            return None;
        }
        if let Some(bracketed) = text.strip_prefix(b"[") {
            let end = bracketed.iter().position(|byte| *byte == b']')?;
            let (address, rest) = bracketed.split_at(end);
            let port = rest.get(1..).unwrap_or_default();
            let is_port = port.is_empty() || self.is_port(port.strip_prefix(b":")?);
            return is_port.then(|| ipv6(address)).flatten().map(IpAddr::from);
        }
        let colon = text.iter().position(|byte| *byte == b':')?;
        let (before, rest) = text.split_at(colon);
        if let Some((v4, [])) = ipv4_at_the_end(before) {
            let port = rest.get(1..).unwrap_or_default();
            return self.is_port(port).then(|| Ipv4Addr::from_bits(v4).into());
        }
        match self {
            Self::Plain => ipv6(text).map(IpAddr::from),
            Self::Node => None,
        }
    }

    fn is_port(self, port: &[u8]) -> bool {
        if self == Self::Node
            && let Some(name) = port.strip_prefix(b"_")
        {
            let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
            return !name.is_empty() && name.iter().all(is_of_name);
        }
        let is_digits = (1..=5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit);
        // At most 99,999.
        let number = |port: &[u8]| {
            let digits = port.iter().map(|digit| u32::from(digit - b'0'));
            digits.fold(0, |number, digit| 10 * number + digit)
        };
        is_digits && number(port) <= u32::from(u16::MAX)
    }
}

/// Parses the four decimal numbers without leading zeros at the end of `text`. Returns them and
/// what is before. From the right, so that an element of a list is found and parsed in one pass.
#[inline]
pub(crate) fn ipv4_at_the_end(text: &[u8]) -> Option<(u32, &[u8])> {
    let (fourth, rest) = octet_at_the_end(text)?;
    let (third, rest) = octet_at_the_end(rest.strip_suffix(b".")?)?;
    let (second, rest) = octet_at_the_end(rest.strip_suffix(b".")?)?;
    let (first, rest) = octet_at_the_end(rest.strip_suffix(b".")?)?;
    Some(((first << 24) | (second << 16) | (third << 8) | fourth, rest))
}

#[inline(always)]
fn octet_at_the_end(text: &[u8]) -> Option<(u32, &[u8])> {
    let (rest, octet) = digit_at_the_end(text)?;
    let Some((rest, tens)) = digit_at_the_end(rest) else {
        return Some((octet, rest));
    };
    let octet = octet + 10 * tens;
    let Some((rest, hundreds)) = digit_at_the_end(rest) else {
        return (tens > 0).then_some((octet, rest));
    };
    let octet = octet + 100 * hundreds;
    (hundreds > 0 && octet <= 255).then_some((octet, rest))
}

#[inline(always)]
fn digit_at_the_end(text: &[u8]) -> Option<(&[u8], u32)> {
    let (last, rest) = text.split_last()?;
    let digit = last.wrapping_sub(b'0');
    (digit <= 9).then_some((rest, u32::from(digit)))
}

/// Parses an IPv6 address, with or without a zone such as `%eth0`.
fn ipv6(text: &[u8]) -> Option<Ipv6Addr> {
    let mut parts = text.splitn(2, |byte| *byte == b'%');
    let address = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let is_of_zone = |byte: &u8| byte.is_ascii_alphanumeric() || b"._~%-".contains(byte);
    let is_zone = |zone: &[u8]| !zone.is_empty() && zone.iter().all(is_of_zone);
    parts.next().is_none_or(is_zone).then_some(address)
}

// === Embedded ===

impl Embedded {
    /// Returns the form of `address` that is compared with networks and counted by.
    #[inline]
    pub(crate) fn canonical(self, address: Address) -> Address {
        if self == Self::default() {
            address
        } else {
            self.translated(address)
        }
    }

    fn translated(self, address: Address) -> Address {
        let v4 = match Ipv6Addr::from_bits(address.to_bits()).segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] if self.nat64 => [high, low],
            [0x2002, high, low, ..] if self.six_to_four => [high, low],
            _ => return address,
        };
        let v4 = (u32::from(v4[0]) << 16) | u32::from(v4[1]);
        // Neither form may stand for an address that is not global (RFC 6052 section 3.1, RFC 3056
        // section 2). A client would otherwise be able to look like a proxy in a private network.
        if is_local(Ipv4Addr::from_bits(v4)) {
            address
        } else {
            Address::from_ipv4(v4)
        }
    }
}

fn is_local(v4: Ipv4Addr) -> bool {
    let [first, second, ..] = v4.octets();
    let is_shared = first == 100 && second & 0xc0 == 64; // RFC 6598.
    first == 0
        || is_shared
        || v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_multicast()
        || v4.is_broadcast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn plain(text: &str) -> Option<String> {
        let address = Syntax::Plain.parse(text.as_bytes());
        address.map(|address| IpAddr::from(address).to_string())
    }

    fn node(text: &str) -> Option<String> {
        let address = Syntax::Node.parse(text.as_bytes());
        address.map(|address| IpAddr::from(address).to_string())
    }

    #[test]
    fn an_address_is_read_without_its_port_and_zone() {
        for (text, address) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1:0", "192.0.2.1"),
            ("192.0.2.1:65535", "192.0.2.1"),
            ("255.255.255.255", "255.255.255.255"),
            ("2001:db8::1", "2001:db8::1"),
            ("2001:DB8:0:0::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%25eth0]:80", "fe80::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
            ("::1", "::1"),
        ] {
            assert_eq!(plain(text).as_deref(), Some(address), "{text}");
        }
    }

    #[test]
    fn any_other_text_is_no_address() {
        for text in [
            "",
            "unknown",
            "_hidden",
            "localhost",
            "0.0.0.0",
            "::",
            "[::]:80",
            "::ffff:0.0.0.0",
            "010.0.0.1",
            "1.2.3.04",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.",
            ".1.2.3.4",
            "1..2.3",
            "1.2.3.256",
            "1.2.3.4:",
            "1.2.3.4:65536",
            "1.2.3.4:080000",
            "1.2.3.4:99999999999999999999",
            "1.2.3.4:xxxxxxxxxxxxxxxxxxxx",
            "[2001:db8::1]:443, 198.51.100.9",
            "1.2.3.4:_x",
            "1.2.3.4:+1",
            "1.2.3.4/32",
            "1.2.3.4 ",
            "[1.2.3.4]",
            "[2001:db8::1",
            "2001:db8::1]",
            "[2001:db8::1]443",
            "[2001:db8::1]:",
            "[]",
            "[",
            "fe80::1%",
            "fe80::1%\u{e4}",
            "%eth0",
            "\"192.0.2.1\"",
            "0x7f.0.0.1",
            "2130706433",
            ":",
            "1.2.3.4:5:6",
        ] {
            assert_eq!(plain(text), None, "{text}");
        }
        assert_eq!(Syntax::Plain.parse(b"\xff"), None);
        assert_eq!(Syntax::Plain.parse(&[b'1'; 4097]), None);
        let zone = format!("fe80::1%{}", "x".repeat(200));
        assert_eq!(plain(&zone), None);
    }

    #[test]
    fn a_node_has_ipv6_in_brackets_and_may_name_its_port() {
        assert_eq!(node("192.0.2.1:_gazonk").as_deref(), Some("192.0.2.1"));
        assert_eq!(node("[2001:db8::1]:_a.b-c").as_deref(), Some("2001:db8::1"));
        assert_eq!(node("[2001:db8::1]").as_deref(), Some("2001:db8::1"));
        for text in ["2001:db8::1", "192.0.2.1:_", "192.0.2.1:_a b", "_gazonk"] {
            assert_eq!(node(text), None, "{text}");
        }
    }

    #[test]
    fn embedded_ipv4_addresses_are_read_on_request_unless_they_are_local() {
        let both = Embedded {
            nat64: true,
            six_to_four: true,
        };
        let canonical = |embedded: Embedded, text: &str| {
            let address = embedded.canonical(text.parse::<IpAddr>().unwrap().into());
            IpAddr::from(address).to_string()
        };
        for (text, v4) in [
            ("64:ff9b::198.51.100.7", "198.51.100.7"),
            ("2002:c633:6407:1::1", "198.51.100.7"),
        ] {
            assert_eq!(canonical(both, text), v4);
            let same = text.parse::<IpAddr>().unwrap().to_string();
            assert_eq!(canonical(Embedded::default(), text), same);
        }
        for text in [
            "64:ff9b::a00:1",     // 10.0.0.1
            "2002:7f00:1::",      // 127.0.0.1
            "2002:c0a8:101::1",   // 192.168.1.1
            "2002:6440:1::1",     // 100.64.0.1
            "64:ff9b:1::c633:64", // Another prefix.
            "2001:db8::1",
        ] {
            let same = text.parse::<IpAddr>().unwrap().to_string();
            assert_eq!(canonical(both, text), same);
        }
        assert_eq!(
            canonical(Embedded::default(), "::ffff:192.0.2.1"),
            "192.0.2.1"
        );
        let nat64 = Embedded {
            nat64: true,
            ..Embedded::default()
        };
        assert_eq!(canonical(nat64, "2002:c633:6407::1"), "2002:c633:6407::1");
    }

    proptest! {
        #[test]
        fn the_parser_agrees_with_the_standard_library(text in "[0-9a-f.:]{0,20}|[0-9.]{5,16}") {
            let expected = text.parse::<IpAddr>().ok();
            let expected = expected.filter(|found| !found.to_canonical().is_unspecified());
            // A port after an IPv4 address is the only other form of these letters.
            let socket = text.parse::<std::net::SocketAddrV4>().ok();
            let socket = socket.map(|socket| IpAddr::from(*socket.ip()));
            let expected = expected.or(socket.filter(|found| !found.is_unspecified()));
            prop_assert_eq!(Syntax::Plain.parse(text.as_bytes()), expected.map(Address::from));
        }

        #[test]
        fn every_address_is_read_back(bits in any::<u128>(), port in any::<u16>()) {
            let v6 = Ipv6Addr::from_bits(bits);
            let v4 = Ipv4Addr::from_bits(bits as u32);
            prop_assume!(!v6.to_canonical().is_unspecified() && !v4.is_unspecified());
            let (v6, v4) = (IpAddr::from(v6), IpAddr::from(v4));
            for (text, address) in [
                (v4.to_string(), v4),
                (format!("{v4}:{port}"), v4),
                (format!("[{v6}]"), v6),
                (format!("[{v6}]:{port}"), v6),
            ] {
                prop_assert_eq!(Syntax::Plain.parse(text.as_bytes()), Some(address.into()));
                prop_assert_eq!(Syntax::Node.parse(text.as_bytes()), Some(address.into()));
            }
            prop_assert_eq!(Syntax::Plain.parse(v6.to_string().as_bytes()), Some(v6.into()));
            prop_assert_eq!(IpAddr::from(Address::from(v6)), v6.to_canonical());
            prop_assert_eq!(IpAddr::from(Address::from(v4)), v4);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in vec(any::<u8>(), 0..200)) {
            let _ = Syntax::Plain.parse(&bytes);
            let _ = Syntax::Node.parse(&bytes);
        }

        #[test]
        fn no_text_after_an_address_makes_the_parser_panic(
            address in r"192\.0\.2\.1|\[2001:db8::1\]|2001:db8::1|\[",
            between in "[:%._ ]?",
            after in "[0-9]{0,130}|.{0,130}|[0-9a-f:.]{0,30}",
        ) {
            let text = format!("{address}{between}{after}");
            let _ = Syntax::Plain.parse(text.as_bytes());
            let _ = Syntax::Node.parse(text.as_bytes());
        }
    }
}
