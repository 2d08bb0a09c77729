//! A table of debts, one per key, that hostile keys cannot grow.
//!
//! A debt is a time: how far the key's "theoretical arrival time" (TAT, ITU-T I.371) lies ahead of
//! now. Time pays it off by itself, so nothing ever has to be swept. Every key has two lines of
//! eight words to live in, chosen by a keyed hash; where all sixteen are taken the one with the
//! least debt goes, so that nobody can wash a debt off by bringing other keys along.

use crate::{ClientKey, client::random_seed};
use siphasher::sip::SipHasher13;

#[cfg(palisade_loom)]
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
#[cfg(not(palisade_loom))]
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How often a word that others change under us is tried again.
const TRIES: usize = 8;
const WORDS: usize = 8;
/// A word is a tag of 22 bits, never 0, above a TAT of 42 bits: microseconds, modulo 51 days.
const TAT_BITS: u32 = 42;
const TAT_MASK: u64 = (1 << TAT_BITS) - 1;
const TAG_MASK: u64 = (1 << (64 - TAT_BITS)) - 1;
/// Bits of the hash that choose each line.
const LINE_BITS: u32 = 21;

/// One cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Line([AtomicU64; WORDS]);

/// Debts in microseconds by key, in a fixed number of words of 8 bytes.
///
/// ```
/// use palisade_core::{ClientKey, Table};
/// let table = Table::new(1_000_000); // 8 MiB, for ever.
/// let key = ClientKey::of("somebody");
/// let owe = |more| move |debt: u64| Ok::<_, ()>((debt, debt + more));
/// assert_eq!(table.update(key, 0, 60_000_000, owe(500)), Some(Ok(0)));
/// assert_eq!(table.update(key, 100, 60_000_000, owe(500)), Some(Ok(400))); // 100 are paid off.
/// ```
#[derive(Debug)]
pub struct Table {
    lines: Box<[Line]>,
    seed: (u64, u64),
    evicted: AtomicU64,
}

/// How full a [`Table`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Keys in debt now.
    pub keys: u64,
    /// Keys that could be held.
    pub capacity: u64,
    /// Keys that lost a debt because both their lines were full of larger ones. Only grows.
    pub evicted: u64,
}

/// Where a key is or could be.
struct Place<'a> {
    word: &'a AtomicU64,
    seen: u64,
    debt: u64,
    found: bool,
}

impl Table {
    /// The most keys a table can be made for: 128 MiB.
    pub const MAX_CAPACITY: usize = WORDS << LINE_BITS;

    /// The longest debt, in microseconds, that a key can have: 12 days.
    pub const MAX_DEBT: u64 = 1 << (TAT_BITS - 2);

    /// Room for `keys` keys, rounded up to a power of two of at least 16 and at most
    /// [`Self::MAX_CAPACITY`]. Allocates 8 bytes for each, once.
    pub fn new(keys: usize) -> Self {
        let lines = keys.clamp(2 * WORDS, Self::MAX_CAPACITY).div_ceil(WORDS).next_power_of_two();
        Self {
            lines: (0..lines).map(|_| Line(Default::default())).collect(),
            seed: random_seed(),
            evicted: AtomicU64::new(0),
        }
    }

    /// Lets `decide` replace the debt of `key` at `now`, both in microseconds.
    ///
    /// `decide` gets the debt and returns the new one, or an error that leaves it as it was. It
    /// may be called several times; the last call counts. A debt beyond `max_debt` is not kept,
    /// and one that is found counts as paid: it is left from another quota, or older than the
    /// word can tell (a key that comes back after 51 days less its last debt).
    ///
    /// `None` if other threads changed the word in each of 8 tries; nothing was changed then.
    pub fn update<T, E>(
        &self,
        key: ClientKey,
        now: u64,
        max_debt: u64,
        decide: impl Fn(u64) -> Result<(T, u64), E>,
    ) -> Option<Result<T, E>> {
        let max_debt = max_debt.min(Self::MAX_DEBT);
        let hash = self.hash(key);
        for _ in 0..TRIES {
            let place = self.place(hash, now, max_debt);
            let (value, debt) = match decide(if place.found { place.debt } else { 0 }) {
                Ok(decided) => decided,
                Err(error) => return Some(Err(error)),
            };
            let word = (tag(hash) << TAT_BITS) | (now.wrapping_add(debt.min(max_debt)) & TAT_MASK);
            if place.word.compare_exchange(place.seen, word, Relaxed, Relaxed).is_ok() {
                if !place.found && place.debt > 0 {
                    self.evicted.fetch_add(1, Relaxed);
                }
                return Some(Ok(value));
            }
        }
        None
    }

    /// The debt of `key` at `now`, both in microseconds. Changes nothing.
    pub fn debt(&self, key: ClientKey, now: u64, max_debt: u64) -> u64 {
        let place = self.place(self.hash(key), now, max_debt.min(Self::MAX_DEBT));
        if place.found { place.debt } else { 0 }
    }

    /// Counts the keys in debt at `now`. Reads every word: about a millisecond per million.
    pub fn occupancy(&self, now: u64) -> Occupancy {
        let words = self.lines.iter().flat_map(|line| &line.0);
        let keys = words.filter(|word| debt(word.load(Relaxed), now, Self::MAX_DEBT) > 0).count();
        Occupancy {
            keys: keys as u64,
            capacity: (self.lines.len() * WORDS) as u64,
            evicted: self.evicted.load(Relaxed),
        }
    }

    fn hash(&self, key: ClientKey) -> u64 {
        SipHasher13::new_with_keys(self.seed.0, self.seed.1).hash(&key.to_bits().to_le_bytes())
    }

    /// The word of the key with this hash, or else the one it is to take over: a word without
    /// debt in the line that has more of those, or the word with the least debt of both.
    fn place(&self, hash: u64, now: u64, max_debt: u64) -> Place<'_> {
        let tag = tag(hash);
        let lines = self.lines_of(hash);
        for line in lines {
            for word in &line.0 {
                let seen = word.load(Relaxed);
                if seen >> TAT_BITS == tag {
                    return Place { word, seen, debt: debt(seen, now, max_debt), found: true };
                }
            }
        }
        let [(free, first), (other_free, other)] = lines.map(|line| cheapest(line, now));
        let first_is_better = if free == 0 && other_free == 0 {
            first.debt <= other.debt
        } else {
            free >= other_free
        };
        if first_is_better { first } else { other }
    }

    fn lines_of(&self, hash: u64) -> [&Line; 2] {
        let mask = self.lines.len() - 1;
        let low = hash as usize;
        let first = low & mask;
        // Never the same line twice: what is added is odd or there is only one line to differ by.
        let second = first ^ (((low >> LINE_BITS) & mask) | 1);
        [&self.lines[first], &self.lines[second]]
    }
}

/// The word of `line` that is best taken over, and how many words of it are free of debt.
fn cheapest(line: &Line, now: u64) -> (usize, Place<'_>) {
    let mut free = 0;
    let mut best: Option<Place<'_>> = None;
    for word in &line.0 {
        let seen = word.load(Relaxed);
        let debt = debt(seen, now, Table::MAX_DEBT);
        free += usize::from(debt == 0);
        if best.as_ref().is_none_or(|best| debt < best.debt) {
            best = Some(Place { word, seen, debt, found: false });
        }
    }
    (free, best.expect("a line has words"))
}

/// How far the TAT of `word` lies ahead of `now`, or 0 if that is more than `max_debt`.
fn debt(word: u64, now: u64, max_debt: u64) -> u64 {
    let ahead = word.wrapping_sub(now) & TAT_MASK;
    if word == 0 || ahead > max_debt { 0 } else { ahead }
}

fn tag(hash: u64) -> u64 {
    ((hash >> TAT_BITS) & TAG_MASK).max(1)
}
