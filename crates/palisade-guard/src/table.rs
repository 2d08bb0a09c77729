//! A table of debts, one per key, that hostile keys cannot grow.
//!
//! A debt is a time: how far the key's "theoretical arrival time" (TAT, ITU-T I.371) lies ahead of
//! now. Time pays it off by itself, so nothing ever has to be swept in time. Every key has two lines of
//! eight words to live in, chosen by a keyed hash; where all sixteen are taken the one with the
//! least debt goes, so that nobody can wash a debt off by bringing other keys along.

#[cfg(palisade_loom)]
use loom::sync::atomic::AtomicU64; // The model checker's own, which it can see.
use palisade_core::ClientKey;
#[cfg(not(palisade_loom))]
use std::sync::atomic::AtomicU64;
use std::{fmt, sync::atomic::Ordering::Relaxed};

/// Tries at a word that other threads change. Each failure is the success of another thread, so
/// that only a flood of them on one key comes near; with 8, 61 of 6.4 million requests of one key on
/// two cores were denied with its burst unused.
const MAX_TRIES: usize = 1024;
/// As many as a cache line has; fewer make the model checker's work finite.
const WORDS: usize = if cfg!(palisade_loom) { 2 } else { 8 };
/// A word is a tag of 22 bits, never 0, above a TAT of 42 bits: microseconds, modulo 51 days.
const TAT_BITS: u32 = 42;
const TAT_MASK: u64 = (1 << TAT_BITS) - 1;
const TAG_MASK: u64 = (1 << (64 - TAT_BITS)) - 1;
/// Bits of the hash that choose each line.
const LINE_BITS: u32 = 21;
/// All lines are tidied in 2^39 microseconds, 6 days; see [`Table::tidy`].
const TIDY_BITS: u32 = TAT_BITS - 3;
/// How many lines one update tidies at most, unless there is more than 64 times as much to do.
const TIDY_AT_ONCE: u64 = 8;

/// One cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Line([AtomicU64; WORDS]);

/// A counter on a cache line of its own, so that counting slows no reader of its neighbours.
#[derive(Debug)]
#[repr(align(64))]
struct Apart(AtomicU64);

/// Debts in microseconds by key, in a fixed number of words of 8 bytes.
///
/// Whoever shares a table must agree on the clock (microseconds since one epoch) and on
/// `max_debt`, the longest debt that any of them gives: what looks longer counts as paid.
///
/// ```
/// use palisade_core::ClientKey;
/// use palisade_guard::Table;
/// let table = Table::new(1_000_000); // 8 MiB, for ever.
/// let key = ClientKey::of("somebody");
/// let owe = |more| move |debt: u64| Ok::<_, ()>((debt, debt + more));
/// assert_eq!(table.update(key, 0, 60_000_000, owe(500)), Some(Ok(0)));
/// assert_eq!(table.update(key, 100, 60_000_000, owe(500)), Some(Ok(400))); // 100 are paid off.
/// ```
pub struct Table {
    lines: Box<[Line]>,
    /// Lines tidied since the epoch, counted over all passes.
    tidied: AtomicU64,
    evicted: Apart,
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
        let lines = keys
            .clamp(2 * WORDS, Self::MAX_CAPACITY)
            .div_ceil(WORDS)
            .next_power_of_two();
        Self {
            lines: (0..lines).map(|_| Line(Default::default())).collect(),
            tidied: AtomicU64::new(0),
            evicted: Apart(AtomicU64::new(0)),
        }
    }

    /// Lets `decide` replace the debt of `key` at `now`, both in microseconds.
    ///
    /// `decide` gets the debt and returns the new one, or an error that leaves it as it was. It
    /// may be called several times; the last call counts. A debt beyond `max_debt` is not kept,
    /// and one that is found counts as paid.
    ///
    /// `None` if other threads changed the word in each of 1,024 tries, which means that they got at
    /// least as many decisions on it meanwhile; nothing was changed then. Two threads that bring the
    /// same new key at the same moment, while others change its two lines, may each find room for
    /// it; the debt of one of them is then not seen again.
    pub fn update<T, E>(
        &self,
        key: ClientKey,
        now: u64,
        max_debt: u64,
        decide: impl Fn(u64) -> Result<(T, u64), E>,
    ) -> Option<Result<T, E>> {
        let max_debt = max_debt.min(Self::MAX_DEBT);
        self.tidy(now, max_debt);
        let hash = key.to_hash();
        for _ in 0..MAX_TRIES {
            let place = match self.find(hash, now, max_debt) {
                Some(place) => place,
                None => self.place(hash, now, max_debt),
            };
            let (value, debt) = match decide(if place.found { place.debt } else { 0 }) {
                Ok(decided) => decided,
                Err(error) => return Some(Err(error)),
            };
            if debt == 0 && !place.found {
                return Some(Ok(value)); // Whoever owes nothing takes nobody's place.
            }
            let word = (tag(hash) << TAT_BITS) | (now.wrapping_add(debt.min(max_debt)) & TAT_MASK);
            if place
                .word
                .compare_exchange(place.seen, word, Relaxed, Relaxed)
                .is_ok()
            {
                if !place.found && place.debt > 0 {
                    self.evicted.0.fetch_add(1, Relaxed);
                }
                return Some(Ok(value));
            }
        }
        None
    }

    /// The debt of `key` at `now`, both in microseconds. Charges nothing.
    pub fn debt(&self, key: ClientKey, now: u64, max_debt: u64) -> u64 {
        let max_debt = max_debt.min(Self::MAX_DEBT);
        // Else a debt paid 51 days ago would be one again.
        self.tidy(now, max_debt);
        let place = self.find(key.to_hash(), now, max_debt);
        place.map_or(0, |place| place.debt)
    }

    /// Counts the keys in debt at `now`. Reads every word: about a millisecond per million.
    pub fn occupancy(&self, now: u64, max_debt: u64) -> Occupancy {
        let max_debt = max_debt.min(Self::MAX_DEBT);
        let words = self.lines.iter().flat_map(|line| &line.0);
        let keys = words
            .filter(|word| debt(word.load(Relaxed), now, max_debt) > 0)
            .count();
        Occupancy {
            keys: keys as u64,
            capacity: (self.lines.len() * WORDS) as u64,
            evicted: self.evicted.0.load(Relaxed),
        }
    }

    /// The word of the key with this hash, if it has one.
    #[inline]
    fn find(&self, hash: u64, now: u64, max_debt: u64) -> Option<Place<'_>> {
        let tag = tag(hash);
        for line in self.lines_of(hash) {
            for word in &line.0 {
                let seen = word.load(Relaxed);
                if seen >> TAT_BITS == tag {
                    return Some(Place {
                        word,
                        seen,
                        debt: debt(seen, now, max_debt),
                        found: true,
                    });
                }
            }
        }
        None
    }

    /// The word of the key with this hash, or else the one it is to take over: a word without
    /// debt in the line that has more of those, or the word with the least debt of both.
    ///
    /// Every word is read once: if another thread brings the same key meanwhile, the choice is the
    /// one that it made, too, and the slower of the two finds the word changed.
    fn place(&self, hash: u64, now: u64, max_debt: u64) -> Place<'_> {
        let tag = tag(hash);
        let lines = self.lines_of(hash);
        let mut seen = [[0; WORDS]; 2];
        for (line, seen) in lines.iter().zip(&mut seen) {
            for (word, seen) in line.0.iter().zip(seen) {
                *seen = word.load(Relaxed);
                if *seen >> TAT_BITS == tag {
                    return Place {
                        word,
                        seen: *seen,
                        debt: debt(*seen, now, max_debt),
                        found: true,
                    };
                }
            }
        }
        let (free, first) = cheapest(lines[0], &seen[0], now, max_debt);
        let (other_free, other) = cheapest(lines[1], &seen[1], now, max_debt);
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
        // Never the same line twice: what is flipped is an odd number of at most `mask`.
        let second = first ^ (((low >> LINE_BITS) & mask) | 1);
        [&self.lines[first], &self.lines[second]]
    }

    /// Wipes paid debts before they are so old that they look like debts again, which is after
    /// 38 days at the earliest. There is no task for it: whoever comes along does the few lines
    /// that are due, one in 4 seconds if the table has room for a million keys.
    ///
    /// No line is ever left for more than two passes, so what is here was paid 13 days ago at
    /// most when an update leaves, and another 19 days later at most when the next one comes: in
    /// time to be told from a debt. After more than that nobody can be in debt any longer.
    #[inline]
    fn tidy(&self, now: u64, max_debt: u64) {
        let due = now >> (TIDY_BITS - self.lines.len().trailing_zeros());
        let tidied = self.tidied.load(Relaxed);
        if tidied < due {
            self.tidy_lines(tidied, due, now, max_debt);
        }
    }

    #[cold]
    fn tidy_lines(&self, tidied: u64, due: u64, now: u64, max_debt: u64) {
        let all = self.lines.len() as u64;
        let behind = due - tidied;
        let (from, to) = if behind < all {
            (tidied, tidied + behind.min(TIDY_AT_ONCE.max(behind / 64)))
        } else {
            (due - all, due)
        };
        if self
            .tidied
            .compare_exchange(tidied, to, Relaxed, Relaxed)
            .is_err()
        {
            return; // Somebody else is at it.
        }
        for line in from..to {
            for word in &self.lines[line as usize & (self.lines.len() - 1)].0 {
                let seen = word.load(Relaxed);
                let paid = behind >= 3 * all || debt(seen, now, max_debt) == 0;
                if seen != 0 && paid {
                    // A word that changed meanwhile is in use.
                    let _ = word.compare_exchange(seen, 0, Relaxed, Relaxed);
                }
            }
        }
    }
}

/// Without its million words.
impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("capacity", &(self.lines.len() * WORDS))
            .field("evicted", &self.evicted.0.load(Relaxed))
            .finish_non_exhaustive()
    }
}

/// The word of `line` that is best taken over, going by what was `seen` of it, and how many words
/// of it are free of debt.
fn cheapest<'a>(
    line: &'a Line,
    seen: &[u64; WORDS],
    now: u64,
    max_debt: u64,
) -> (usize, Place<'a>) {
    let mut free = 0;
    let mut best = Place {
        word: &line.0[0],
        seen: 0,
        debt: u64::MAX,
        found: false,
    };
    for (word, seen) in line.0.iter().zip(*seen) {
        let debt = debt(seen, now, max_debt);
        free += usize::from(debt == 0);
        if debt < best.debt {
            best = Place {
                word,
                seen,
                debt,
                found: false,
            };
        }
    }
    (free, best)
}

/// How far the TAT of `word` lies ahead of `now`, or 0 if that is more than `max_debt`.
#[inline]
fn debt(word: u64, now: u64, max_debt: u64) -> u64 {
    let ahead = word.wrapping_sub(now) & TAT_MASK;
    if word == 0 || ahead > max_debt {
        0
    } else {
        ahead
    }
}

#[inline]
fn tag(hash: u64) -> u64 {
    ((hash >> TAT_BITS) & TAG_MASK).max(1)
}
