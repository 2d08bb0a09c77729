//! Sets of address blocks.

use crate::{ConfigError, client::address_bits, network::Network};
use std::{cmp::Ordering, fmt, net::IpAddr, str::FromStr};

/// The longest part of a bad line that an error repeats, in characters.
const MAX_QUOTED_CHARS: usize = 64;

/// A set of address blocks: which addresses are proxies, which are banned, which are offices.
///
/// An IPv4-mapped IPv6 address counts as the IPv4 address, and an IPv6 block contains no IPv4
/// address, as in a [`Network`]. Blocks that overlap or touch become one range. A lookup compares
/// the address with at most 17 ranges if there are 100,000 of its family. A range takes 8 bytes for
/// IPv4 and 32 bytes for IPv6. A list of more than 4,096 ranges of IPv4 has an index of 256 KiB.
///
/// ```
/// use palisade_core::NetworkSet;
/// let offices = NetworkSet::parse(
///     "# Berlin and Hamburg\n\
///      192.0.2.0/24\n\
///      2001:db8:1::/48  # the guest network, too\n",
/// )?;
/// assert!(offices.contains("192.0.2.77".parse()?));
/// assert!(offices.contains("::ffff:192.0.2.77".parse()?));
/// assert!(!offices.contains("2001:db8:2::1".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// To change a set while it is in use, see [`Networks`](crate::Networks).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct NetworkSet {
    // Sorted, and neither overlapping nor touching: the first and the last address of each range.
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
    /// The number of IPv4 ranges that end before each /16, and of all. Empty for a short list.
    v4_before: Box<[u32]>,
}

/// An index is made for more ranges than this. It costs as much memory as eight times as many.
const MIN_INDEXED_RANGES: usize = 4096;

/// The ranges of a set that is not complete: unsorted, and they may overlap.
#[derive(Default)]
struct Collected {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

// === NetworkSet ===

impl NetworkSet {
    /// Parses a text with one block or address per line. Whatever follows a `#` is a comment.
    /// Spaces around a block, empty lines, Windows line ends and a byte order mark are ignored, and
    /// so are the bits of an address after the prefix. An empty text is the empty set.
    ///
    /// ```
    /// use palisade_core::NetworkSet;
    /// let error = NetworkSet::parse("10.0.0.0/8\n10.0.0/8\n\n10.0.0.0/33\n").unwrap_err();
    /// let bad_lines: Vec<_> = error.faults().iter().map(|fault| &*fault.field).collect();
    /// assert_eq!(bad_lines, ["line 2", "line 4"]);
    /// ```
    ///
    /// # Errors
    ///
    /// A fault for each line that is not a block, an address, a comment or empty. Its field is the
    /// number of the line, counted from 1.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut error = ConfigError::new("the networks cannot be read");
        let mut collected = Collected::default();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (line, number) in text.lines().zip(1u64..) {
            let block = line.split('#').next().unwrap_or_default().trim();
            if block.is_empty() {
                continue;
            }
            match block.parse() {
                Ok(network) => collected.add(network),
                Err(_) => error.push(
                    format!("line {number}"),
                    quoted(block),
                    "one address such as 192.0.2.1, or one network such as 192.0.2.0/24, on a line",
                ),
            }
        }
        error.into_result()?;
        Ok(collected.into_set())
    }

    /// Returns whether `address` is in a block of the set.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.contains_bits(address_bits(address))
    }

    /// As [`Self::contains`], of 128 bits: an IPv4 address is IPv4-mapped.
    #[doc(hidden)]
    #[inline]
    pub fn contains_bits(&self, bits: u128) -> bool {
        if bits >> 32 == 0xffff {
            let address = bits as u32;
            is_in_range(self.v4_near(address), address)
        } else {
            is_in_range(&self.v6, bits)
        }
    }

    /// Returns the ranges among which that of an IPv4 address is, if there is one.
    #[inline]
    fn v4_near(&self, address: u32) -> &[(u32, u32)] {
        let block = (address >> 16) as usize;
        match self.v4_before.get(block..block + 2) {
            Some(&[first, after]) => {
                // The one after may begin in the same block.
                let ranges = self.v4.get(first as usize..).unwrap_or_default();
                let length = (after - first) as usize + 1;
                ranges.get(..length).unwrap_or(ranges)
            }
            _ => &self.v4,
        }
    }

    /// Returns the number of ranges, after blocks that overlap or touch have been merged.
    ///
    /// ```
    /// use palisade_core::NetworkSet;
    /// let halves = NetworkSet::parse("10.0.0.0/9\n10.128.0.0/9\n10.1.0.0/16")?;
    /// assert_eq!(halves, NetworkSet::parse("10.0.0.0/8")?);
    /// assert_eq!(halves.len(), 1);
    /// # Ok::<(), palisade_core::ConfigError>(())
    /// ```
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Returns whether the set contains no address.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether the set contains every IPv4 address, in one block or in several.
    ///
    /// ```
    /// use palisade_core::NetworkSet;
    /// assert!(NetworkSet::parse("0.0.0.0/1\n128.0.0.0/1")?.contains_all_ipv4());
    /// assert!(!NetworkSet::parse("::/0")?.contains_all_ipv4());
    /// # Ok::<(), palisade_core::ConfigError>(())
    /// ```
    #[inline]
    pub fn contains_all_ipv4(&self) -> bool {
        self.v4.first() == Some(&(0, u32::MAX))
    }

    /// Returns whether the set contains every IPv6 address, in one block or in several.
    #[inline]
    pub fn contains_all_ipv6(&self) -> bool {
        self.v6.first() == Some(&(0, u128::MAX))
    }
}

impl FromIterator<Network> for NetworkSet {
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        let mut collected = Collected::default();
        networks
            .into_iter()
            .for_each(|network| collected.add(network));
        collected.into_set()
    }
}

impl<const N: usize> From<[Network; N]> for NetworkSet {
    fn from(networks: [Network; N]) -> Self {
        networks.into_iter().collect()
    }
}

impl From<Vec<Network>> for NetworkSet {
    fn from(networks: Vec<Network>) -> Self {
        networks.into_iter().collect()
    }
}

impl From<Network> for NetworkSet {
    fn from(network: Network) -> Self {
        [network].into()
    }
}

impl FromStr for NetworkSet {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::parse(text)
    }
}

/// The numbers of ranges only: a set may have a hundred thousand.
impl fmt::Debug for NetworkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetworkSet")
            .field("ipv4_ranges", &self.v4.len())
            .field("ipv6_ranges", &self.v6.len())
            .finish()
    }
}

// === Collected ===

impl Collected {
    fn add(&mut self, network: Network) {
        match network.range() {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                self.v4.push((first.to_bits(), last.to_bits()));
            }
            (first, last) => {
                self.v6.push((address_bits(first), address_bits(last)));
            }
        }
    }

    fn into_set(self) -> NetworkSet {
        let v4 = merged(self.v4, |last| last.checked_add(1));
        NetworkSet {
            v4_before: ends_before_blocks(&v4),
            v4,
            v6: merged(self.v6, |last| last.checked_add(1)),
        }
    }
}

/// Returns how many of the sorted `ranges` end before each /16, and how many there are, unless they
/// are few.
fn ends_before_blocks(ranges: &[(u32, u32)]) -> Box<[u32]> {
    if ranges.len() <= MIN_INDEXED_RANGES {
        return Box::default();
    }
    let mut ends = ranges.iter().map(|(_, last)| last >> 16).peekable();
    let mut before = 0;
    let of_blocks = (0..=1 << 16).map(|block| {
        while ends.next_if(|end| *end < block).is_some() {
            before += 1;
        }
        before
    });
    of_blocks.collect()
}

/// Sorts `ranges` and merges those that overlap or touch. `next` returns the address after another.
fn merged<T: Copy + Ord>(mut ranges: Vec<(T, T)>, next: impl Fn(T) -> Option<T>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    ranges.dedup_by(|later, earlier| {
        let touches = next(earlier.1).is_none_or(|next| later.0 <= next);
        if touches {
            earlier.1 = earlier.1.max(later.1);
        }
        touches
    });
    ranges.into_boxed_slice()
}

#[inline]
fn is_in_range<T: Copy + Ord>(ranges: &[(T, T)], address: T) -> bool {
    is_found(ranges, |&(first, last)| {
        if address < first {
            Ordering::Greater
        } else if address > last {
            Ordering::Less
        } else {
            Ordering::Equal
        }
    })
}

/// A binary search that looks at the binary logarithm of the number of ranges, rounded down, plus
/// one. The one of the standard library looks at one more.
#[inline]
fn is_found<T>(ranges: &[T], mut compare: impl FnMut(&T) -> Ordering) -> bool {
    let mut rest = ranges;
    loop {
        let (before, after) = rest.split_at(rest.len() / 2);
        let Some((range, after)) = after.split_first() else {
            return false;
        };
        rest = match compare(range) {
            Ordering::Less => after,
            Ordering::Greater => before,
            Ordering::Equal => return true,
        };
    }
}

/// Returns the beginning of `text` in quotes and with escapes, for an error.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn set(text: &str) -> NetworkSet {
        NetworkSet::parse(text).unwrap()
    }

    fn contains(text: &str, address: &str) -> bool {
        set(text).contains(address.parse().unwrap())
    }

    #[test]
    fn an_empty_text_is_the_empty_set() {
        for text in [
            "",
            "\n",
            "\u{feff}",
            " \r\n\t\r\n",
            "# nothing\r\n#\n  # 10.0.0.0/8",
        ] {
            assert_eq!(set(text), NetworkSet::default(), "{text:?}");
            assert!(set(text).is_empty());
        }
        assert!(!contains("", "0.0.0.0") && !contains("", "::"));
    }

    #[test]
    fn windows_line_ends_comments_and_spaces_are_no_part_of_a_block() {
        let text = "\u{feff}10.0.0.0/8\r\n\r\n  192.0.2.1 # one\r\n\t2001:db8::/32#two\r\n# three";
        let unix = "10.0.0.0/8\n192.0.2.1\n2001:db8::/32\n";
        assert_eq!(set(text), set(unix));
        assert_eq!(set(text).len(), 3);
    }

    #[test]
    fn every_bad_line_is_named_by_its_number_and_no_set_is_made() {
        let text = "10.0.0.0/8\r\nten\r\n# ten\r\n10.0.0.0/33\n10.0.0.0 10.0.0.1\n1.2.3.4\r5.6.7.8";
        let error = NetworkSet::parse(text).unwrap_err();
        let faults: Vec<_> = error
            .faults()
            .iter()
            .map(|fault| (&*fault.field, &*fault.value))
            .collect();
        let expected = [
            ("line 2", "\"ten\""),
            ("line 4", "\"10.0.0.0/33\""),
            ("line 5", "\"10.0.0.0 10.0.0.1\""),
            ("line 6", "\"1.2.3.4\\r5.6.7.8\""),
        ];
        assert_eq!(faults, expected);
        let start = "the networks cannot be read:\n  line 2 is \"ten\", allowed is one address";
        assert!(error.to_string().starts_with(start), "{error}");
    }

    #[test]
    fn one_bad_line_among_100_000_is_found() {
        let mut lines: Vec<_> = (0..100_000u32)
            .map(|n| Ipv4Addr::from_bits(n << 1).to_string())
            .collect();
        lines[77_776] = "300.0.0.0/8".to_owned();
        let error = NetworkSet::parse(&lines.join("\n")).unwrap_err();
        assert_eq!(error.faults().len(), 1);
        assert_eq!(error.faults()[0].field, "line 77777");
    }

    #[test]
    fn a_long_bad_line_is_quoted_in_part() {
        let error = NetworkSet::parse(&"ä".repeat(100_000)).unwrap_err();
        assert_eq!(
            error.faults()[0].value.chars().count(),
            MAX_QUOTED_CHARS + 3
        );
    }

    #[test]
    fn blocks_that_overlap_or_touch_become_one_range() {
        assert_eq!(set("10.0.0.0/9\n10.128.0.0/9"), set("10.0.0.0/8"));
        assert_eq!(
            set("10.0.0.0/8\n10.2.0.0/16\n10.1.0.0/16"),
            set("10.0.0.0/8")
        );
        assert_eq!(set("192.0.2.1\n192.0.2.2\n192.0.2.1").len(), 1);
        assert_eq!(set("192.0.2.1\n192.0.2.3").len(), 2);
        assert_eq!(
            set("2001:db8::/33\n2001:db8:8000::/33"),
            set("2001:db8::/32")
        );
        assert_eq!(set("255.255.255.255\n0.0.0.0").len(), 2);
        assert_eq!(set("ffff::/16\n::/0\n1::"), set("::/0"));
    }

    #[test]
    fn an_ipv4_mapped_block_and_address_are_those_of_ipv4() {
        assert_eq!(set("::ffff:10.0.0.0/104"), set("10.0.0.0/8"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(contains("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(!contains("::/0", "10.1.2.3") && !contains("::/0", "::ffff:10.1.2.3"));
        assert!(!contains("0.0.0.0/0", "2001:db8::1"));
    }

    #[test]
    fn all_addresses_of_a_family_are_noticed_in_any_number_of_blocks() {
        assert!(set("0.0.0.0/0").contains_all_ipv4() && set("::/0").contains_all_ipv6());
        assert!(!set("0.0.0.0/0").contains_all_ipv6() && !set("::/0").contains_all_ipv4());
        assert!(set("::ffff:0:0/96").contains_all_ipv4());
        assert!(set("::/1\n8000::/1").contains_all_ipv6());
        assert!(!set("0.0.0.0/1\n128.0.0.0/2").contains_all_ipv4());
    }

    /// Every other network of its size, so that none can be merged.
    fn separate(count: u32) -> (NetworkSet, NetworkSet) {
        let v4 = (0..count).map(|n| Network::from(IpAddr::from(Ipv4Addr::from_bits(n * 2))));
        let v6 = (0..u128::from(count)).map(|n| {
            let address = Ipv6Addr::from_bits((0x2001 << 112) | (n << 65));
            Network::new(address.into(), 64).unwrap()
        });
        (v4.collect(), v6.collect())
    }

    #[test]
    fn a_hundred_thousand_networks_fit_into_4_mib() {
        let (v4, v6) = separate(100_000);
        assert_eq!((v4.len(), v6.len()), (100_000, 100_000));
        let bytes = |set: &NetworkSet| {
            size_of_val(&*set.v4) + size_of_val(&*set.v6) + size_of_val(&*set.v4_before)
        };
        assert!(bytes(&v4) <= 4 << 20, "{}", bytes(&v4));
        assert!(bytes(&v6) <= 4 << 20, "{}", bytes(&v6));
    }

    #[test]
    fn a_lookup_compares_with_at_most_17_of_100_000_ranges() {
        let ranges: Vec<u32> = (0..100_000).collect();
        for wanted in [-1, 100_000].into_iter().chain((0..100_000).step_by(7)) {
            let mut compared = 0;
            let found = is_found(&ranges, |range| {
                compared += 1;
                i64::from(*range).cmp(&wanted)
            });
            assert_eq!(found, (0..100_000).contains(&wanted));
            assert!(compared <= 17, "{compared} for {wanted}");
        }
    }

    #[test]
    fn a_long_list_contains_what_a_search_of_all_its_ranges_finds() {
        // Ranges of many lengths, some over many /16s, and gaps of many lengths.
        let (mut first, mut ranges, mut step) = (0u32, Vec::new(), 1u32);
        while ranges.len() < 3 * MIN_INDEXED_RANGES {
            step = step.wrapping_mul(0x9e37_79b1).wrapping_add(7);
            let length = step >> if step % 64 == 0 { 12 } else { 17 };
            let Some(last) = first.checked_add(length) else {
                break;
            };
            ranges.push((first, last));
            let gap = 2 + (step % 300_000);
            let Some(next) = last.checked_add(gap) else {
                break;
            };
            first = next;
        }
        assert!(ranges.len() > MIN_INDEXED_RANGES);
        let collected = Collected {
            v4: ranges.clone(),
            v6: Vec::new(),
        };
        let set = collected.into_set();
        assert_eq!(set.v4_before.len(), (1 << 16) + 1);
        let edges = ranges.iter().flat_map(|&(first, last)| {
            let around = |n: u32| [n.wrapping_sub(1), n, n.wrapping_add(1)];
            [around(first), around(last), around(first & 0xffff_0000)].concat()
        });
        for address in edges.chain([0, u32::MAX]) {
            let is_in_one = is_in_range(&ranges, address);
            assert_eq!(set.contains(Ipv4Addr::from_bits(address).into()), is_in_one);
        }
    }

    /// Addresses and blocks of few bits, so that many of them meet.
    fn near_address() -> impl Strategy<Value = IpAddr> {
        let edges = prop_oneof![Just(0u32), Just(u32::MAX - 40), Just(0x0a00_0000)];
        let v4 = (edges, 0u32..=40).prop_map(|(base, n)| Ipv4Addr::from_bits(base + n));
        let bases = prop_oneof![
            Just(0u128),
            Just(u128::MAX - 40),
            Just(0xffff << 32),
            Just((0x1_0000 << 32) - 20),
        ];
        let v6 = (bases, 0u128..=40).prop_map(|(base, n)| Ipv6Addr::from_bits(base + n));
        prop_oneof![
            v4.clone().prop_map(IpAddr::from),
            v4.prop_map(|v4| v4.to_ipv6_mapped().into()),
            v6.prop_map(IpAddr::from),
        ]
    }

    fn near_network() -> impl Strategy<Value = Network> {
        let prefix = prop_oneof![0u8..=3, 26u8..=32, 90u8..=128];
        (near_address(), prefix).prop_map(|(address, prefix)| {
            Network::new(address, prefix).unwrap_or_else(|| address.into())
        })
    }

    proptest! {
        #[test]
        fn a_set_contains_what_one_of_its_networks_contains(
            networks in vec(near_network(), 0..12),
            addresses in vec(near_address(), 20),
        ) {
            let set: NetworkSet = networks.iter().copied().collect();
            let text: Vec<_> = networks.iter().map(ToString::to_string).collect();
            prop_assert_eq!(&set, &NetworkSet::parse(&text.join("\r\n")).unwrap());
            prop_assert!(set.len() <= networks.len());
            for address in addresses {
                let is_in_one = networks.iter().any(|network| network.contains(address));
                prop_assert_eq!(set.contains(address), is_in_one, "{}", address);
            }
        }

        #[test]
        fn any_text_is_a_set_or_an_error_with_a_fault(text in "[0-9a-f:./# \\n\\r]{0,200}") {
            if let Err(error) = NetworkSet::parse(&text) {
                prop_assert!(!error.faults().is_empty());
            }
        }
    }
}
