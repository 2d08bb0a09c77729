//! The names of accounts on all nodes.

use siphasher::sip128::{Hasher128, SipHasher24};
use std::{fmt, hash::Hasher};

/// The secret of a fleet, as keys of a hash. It has no text.
#[derive(Clone, Copy)]
pub(crate) struct Secret {
    keys: (u64, u64),
}

/// What a digest is for, so that those for one use never are those for another one.
#[derive(Clone, Copy)]
enum Use {
    Account = 1,
    Key = 2,
}

impl Secret {
    pub(crate) fn new(secret: &[u8]) -> Self {
        let keys = SipHasher24::new().hash(secret).as_u64();
        Self { keys }
    }

    /// Returns the account of one quota of a client or a network, in a policy with this name.
    pub(crate) fn account(
        &self,
        policy: &str,
        quota: u8,
        [high, low]: [u64; 2],
        number: u32,
    ) -> [u64; 2] {
        let mut hasher = self.hasher(Use::Account);
        write_with_length(&mut hasher, policy.as_bytes());
        hasher.write_u8(quota);
        hasher.write_u32(number.to_le());
        hasher.write_u64(high.to_le());
        hasher.write_u64(low.to_le());
        let (high, low) = hasher.finish128().as_u64();
        [high, low]
    }

    /// Returns what all nodes know the client with this name by.
    pub(crate) fn key(&self, parts: &[&[u8]]) -> u128 {
        let mut hasher = self.hasher(Use::Key);
        hasher.write_u64((parts.len() as u64).to_le());
        parts
            .iter()
            .for_each(|part| write_with_length(&mut hasher, part));
        hasher.finish128().as_u128()
    }

    fn hasher(&self, of: Use) -> SipHasher24 {
        let (first, second) = self.keys;
        let mut hasher = SipHasher24::new_with_keys(first, second);
        hasher.write_u8(of as u8);
        hasher
    }
}

/// Without the length, what is moved from one field to the next would have the same digest.
fn write_with_length(hasher: &mut SipHasher24, bytes: &[u8]) {
    hasher.write_u64((bytes.len() as u64).to_le());
    hasher.write(bytes);
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Returns a random number.
pub(crate) fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_an_account_makes_another_digest_and_the_same_parts_the_same() {
        let secret = Secret::new(b"sixteen bytes or more");
        let digest = |secret: &Secret, policy, quota, low, number| {
            secret.account(policy, quota, [7, low], number)
        };
        let first = digest(&secret, "login", 0, 1, 0);
        assert_eq!(
            digest(&Secret::new(b"sixteen bytes or more"), "login", 0, 1, 0),
            first
        );
        let others = [
            digest(&Secret::new(b"sixteen bytes or mor"), "login", 0, 1, 0),
            digest(&secret, "logi", 0, 1, 0),
            digest(&secret, "login", 1, 1, 0),
            digest(&secret, "login", 0, 2, 0),
            digest(&secret, "login", 0, 1, 1),
        ];
        for (index, other) in others.iter().enumerate() {
            assert_ne!(*other, first, "{index}");
            assert!(!others[..index].contains(other));
        }
    }

    #[test]
    fn parts_of_a_key_cannot_be_moved_from_one_to_the_next() {
        let secret = Secret::new(b"sixteen bytes or more");
        let keys = [
            secret.key(&[b"ab", b"c"]),
            secret.key(&[b"a", b"bc"]),
            secret.key(&[b"abc"]),
            secret.key(&[b"abc", b""]),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "{index}");
        }
        assert_eq!(secret.key(&[b"abc"]), keys[2]);
    }
}
