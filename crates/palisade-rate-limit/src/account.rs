//! The accounts that a request is charged to: its client, and the networks around it.

use palisade_core::{ClientKey, Mode, Prefix};
use std::{net::IpAddr, time::Duration};

/// An account that a request is charged to: that of a client, or that of a network of several
/// clients.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// The key of the client or of the network.
    pub key: ClientKey,
    /// How many times the quota of a client the account has. 1 for a client.
    pub times: u32,
    /// What tells the accounts of networks that begin alike apart, on all nodes. 0 for a client.
    number: u32,
}

/// What is left of one quota of an [`Account`].
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaState {
    /// The number of cells that the quota grants at once.
    pub burst: u32,
    /// The time in which it grants as many again.
    pub window: Duration,
    /// The number of cells that it grants now.
    pub available: u32,
    /// The time until it grants one more; `None` if all of the burst is available.
    pub next: Option<Duration>,
}

/// The limits of the networks around a client, the narrowest first.
#[derive(Clone, Debug)]
pub(crate) struct Ladder {
    v4: Vec<Level>,
    v6: Vec<Level>,
    pub(crate) mode: Mode,
}

/// A limit of all clients of a network together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level {
    /// The number of bits of an IPv6 address that the network has, an IPv4 address as an
    /// IPv4-mapped one.
    bits: u8,
    times: u32,
}

/// The accounts of one request.
pub(crate) struct Accounts<'a> {
    client: Option<ClientKey>,
    levels: std::slice::Iter<'a, Level>,
    /// The bits of the address, or of the IPv4-mapped one. 0 if it is unknown.
    address: u128,
    /// Added to the number of the account of a network, for the clients there that have a policy of
    /// their own.
    of_policy: u32,
}

/// The number of the accounts of networks for the first policy of certain networks. Above all
/// numbers of quotas and of sizes.
const POLICY_STEP: u32 = 1 << 16;

// === Account ===

impl Account {
    /// The account of a client.
    pub const fn of_client(key: ClientKey) -> Self {
        Self {
            key,
            times: 1,
            number: 0,
        }
    }

    /// The account of a network that has `times` the quota of a client.
    pub const fn of_network(key: ClientKey, times: u32) -> Self {
        Self {
            key,
            times,
            number: 0,
        }
    }

    /// Returns what identifies the account on all nodes; `None` if only this process knows its key.
    #[doc(hidden)]
    #[inline]
    pub fn on_all_nodes(&self) -> Option<([u64; 2], u32)> {
        Some((self.key.on_all_nodes()?, self.number))
    }
}

// === QuotaState ===

impl QuotaState {
    /// Creates the state of a quota of `burst` cells in `window`. `next` is the time until there is
    /// one more than `available`.
    pub const fn new(burst: u32, window: Duration, available: u32, next: Option<Duration>) -> Self {
        Self {
            burst,
            window,
            available,
            next,
        }
    }
}

// === Ladder ===

impl Default for Ladder {
    fn default() -> Self {
        Self::NONE
    }
}

impl Ladder {
    /// No limits of networks.
    pub(crate) const NONE: Self = Self {
        v4: Vec::new(),
        v6: Vec::new(),
        mode: Mode::Shadow,
    };

    /// Adds a level for each family of which `prefix` does not keep the whole address.
    pub(crate) fn add(&mut self, prefix: Prefix, times: u32) {
        let (v4, v6) = prefix.bits();
        for (levels, bits, whole) in [
            (&mut self.v4, v4 + 96, v4 == 32),
            (&mut self.v6, v6, v6 == 128),
        ] {
            if whole {
                continue;
            }
            levels.retain(|level| level.bits != bits);
            let after = levels.partition_point(|level| level.bits > bits);
            levels.insert(
                after,
                Level {
                    bits,
                    times: times.max(1),
                },
            );
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Returns the levels of a client with these bits of an address, the narrowest first.
    #[inline]
    fn levels(&self, address: u128) -> &[Level] {
        // The first 96 bits of an IPv4-mapped address.
        const MAPPED: u128 = 0xffff;
        match address >> 32 {
            _ if address == 0 => &[],
            MAPPED => &self.v4,
            _ => &self.v6,
        }
    }

    /// Returns the accounts of a client with this key, and of its networks from the narrowest on.
    /// `policy` is the index of the policy that the client has in place of that of all others.
    ///
    /// A network has accounts for each policy: the debts of another one, which may be longer, would
    /// refuse the clients of this one, and be cut off by them.
    #[inline]
    pub(crate) fn accounts(
        &self,
        key: ClientKey,
        address: Option<IpAddr>,
        policy: Option<usize>,
    ) -> Accounts<'_> {
        let address = match address {
            None => 0,
            Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped().to_bits(),
            Some(IpAddr::V6(v6)) => v6.to_bits(),
        };
        Accounts {
            client: Some(key),
            levels: self.levels(address).iter(),
            address,
            of_policy: policy.map_or(0, |policy| (policy as u32 + 1).wrapping_mul(POLICY_STEP)),
        }
    }
}

impl Iterator for Accounts<'_> {
    type Item = Account;

    #[inline]
    fn next(&mut self) -> Option<Account> {
        if let Some(client) = self.client.take() {
            return Some(Account::of_client(client));
        }
        let level = self.levels.next()?;
        let key = ClientKey::network(self.address, level.bits).account(self.of_policy);
        Some(Account {
            key,
            times: level.times,
            number: self.of_policy + 1 + u32::from(level.bits),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(v4: u8, v6: u8) -> Prefix {
        Prefix::new(v4, v6).unwrap()
    }

    fn bits(levels: &[Level]) -> Vec<(u8, u32)> {
        levels
            .iter()
            .map(|level| (level.bits, level.times))
            .collect()
    }

    #[test]
    fn levels_are_narrowest_first_in_each_family_and_a_whole_address_is_none() {
        let mut ladder = Ladder::default();
        ladder.add(prefix(24, 48), 64);
        ladder.add(prefix(32, 56), 8);
        ladder.add(prefix(16, 128), 0);
        ladder.add(prefix(32, 48), 32); // In place of the first.
        let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().to_bits();
        assert_eq!(
            bits(ladder.levels(address("2001:db8::1"))),
            [(56, 8), (48, 32)]
        );
        assert_eq!(
            bits(ladder.levels(address("::ffff:192.0.2.1"))),
            [(120, 64), (112, 1)]
        );
        assert_eq!(
            bits(ladder.levels(address("::ffff:192.0.2.1"))),
            [(120, 64), (112, 1)]
        );
    }
}
