//! A table of debts by key. Its size is fixed, however many keys are used.
//!
//! A debt is a duration: how far the key's theoretical arrival time (TAT, ITU-T I.371) lies ahead
//! of now. It decreases as time passes, so no debt has to be cleared at a certain time. A keyed
//! hash assigns two lines of eight words to every key. If all sixteen words are in debt, the one
//! with the least debt is evicted, so that a client cannot clear a large debt by sending other
//! keys.

#[cfg(palisade_loom)]
use loom::sync::atomic::AtomicU64; // loom can only model its own atomics.
use palisade_core::ClientKey;
#[cfg(not(palisade_loom))]
use std::sync::atomic::AtomicU64;
use std::{fmt, sync::atomic::Ordering::Relaxed};

/// The largest number of attempts to update a word that other threads change. Each failure is the
/// success of another thread, so that only a flood of requests with one key comes near this number.
/// With 8 attempts, 61 of 6.4 million requests with one key on two cores were refused although its
/// burst was unused.
const MAX_TRIES: usize = 1024;
/// Words per line: a cache line, or fewer under loom, to limit the number of interleavings.
const WORDS_PER_LINE: usize = if cfg!(palisade_loom) { 2 } else { 8 };
/// Width of the TAT in the low bits of a word: microseconds, modulo 51 days.
const TAT_BITS: u32 = 42;
/// Mask of the TAT in a word.
const TAT_MASK: u64 = (1 << TAT_BITS) - 1;
/// Mask of a tag, before it is shifted above the TAT. A tag has 22 bits and is never 0.
const TAG_MASK: u64 = (1 << (64 - TAT_BITS)) - 1;
/// Bits of the hash that select each line.
const LINE_BITS: u32 = 21;
/// Binary logarithm of the period in which all lines are cleared: 2^39 microseconds, 6 days. See
/// [`Table::clear_paid`].
const CLEAR_PERIOD_BITS: u32 = TAT_BITS - 3;
/// The largest number of lines that one update clears. If the backlog is more than 64 times as
/// large, the update clears a 64th of it.
const MAX_LINES_PER_CLEAR: u64 = 8;

/// The words of one cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Line([AtomicU64; WORDS_PER_LINE]);

/// A counter on its own cache line, so that counting does not slow down readers of adjacent fields.
#[derive(Debug)]
#[repr(align(64))]
struct PaddedCounter(AtomicU64);

/// Debts in microseconds by key, in a fixed number of words of 8 bytes.
///
/// All users of a table must use the same clock (microseconds since one epoch) and the same
/// `max_debt`, the longest debt that any of them assigns. A longer debt counts as paid.
///
/// ```
/// use palisade_core::ClientKey;
/// use palisade_guard::Table;
/// let table = Table::new(1_000_000); // Uses 8 MiB and never grows.
/// let key = ClientKey::of("alice");
/// let charge = |micros| move |debt: u64| Ok::<_, ()>((debt, debt + micros));
/// assert_eq!(table.update(key, 0, 60_000_000, charge(500)), Some(Ok(0)));
/// assert_eq!(table.update(key, 100, 60_000_000, charge(500)), Some(Ok(400))); // 100 are paid.
/// ```
pub struct Table {
    lines: Box<[Line]>,
    /// The number of lines cleared since the epoch, over all passes.
    cleared: AtomicU64,
    /// See [`Occupancy::evicted`].
    evicted: PaddedCounter,
}

/// How full a [`Table`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Occupancy {
    /// The number of keys in debt now.
    pub keys: u64,
    /// The largest number of keys that the table can hold.
    pub capacity: u64,
    /// The number of debts evicted because both lines of a new key were full. Never decreases.
    pub evicted: u64,
}

impl Occupancy {
    /// Returns the occupancy of a table with `keys` of `capacity` keys, after `evicted` evictions.
    pub fn new(keys: u64, capacity: u64, evicted: u64) -> Self {
        Self {
            keys,
            capacity,
            evicted,
        }
    }
}

/// The word that holds a key, or that a new key can take over.
struct Slot<'a> {
    word: &'a AtomicU64,
    /// The value that was loaded from `word`.
    seen: u64,
    /// The debt in `seen`.
    debt: u64,
    /// Whether `word` holds the key already.
    found: bool,
}

impl Table {
    /// The largest number of keys for which a table can be created: 128 MiB.
    pub const MAX_CAPACITY: usize = WORDS_PER_LINE << LINE_BITS;

    /// The longest debt, in microseconds, that a key can have: 12 days.
    pub const MAX_DEBT: u64 = 1 << (TAT_BITS - 2);

    /// Creates a table for `keys` keys, rounded up to a power of two of at least 16 and at most
    /// [`Self::MAX_CAPACITY`]. Allocates 8 bytes per key, once.
    pub fn new(keys: usize) -> Self {
        let lines = keys
            .clamp(2 * WORDS_PER_LINE, Self::MAX_CAPACITY)
            .div_ceil(WORDS_PER_LINE)
            .next_power_of_two();
        Self {
            lines: (0..lines).map(|_| Line(Default::default())).collect(),
            cleared: AtomicU64::new(0),
            evicted: PaddedCounter(AtomicU64::new(0)),
        }
    }

    /// Replaces the debt of `key` at `now` with the result of `decide`. Times are in microseconds.
    ///
    /// `decide` gets the current debt and returns the new one, or an error that leaves the debt
    /// unchanged. It may be called several times; only the last call has an effect. A new debt is
    /// limited to `max_debt`, and a stored debt that exceeds `max_debt` counts as paid.
    ///
    /// Returns `None`, and changes nothing, if other threads changed the word in each of 1,024
    /// attempts. They have made at least as many decisions in that time. If two threads bring the
    /// same new key concurrently, while others change its two lines, each may store it in another
    /// word. The debt of one of the two is then lost.
    ///
    /// ```
    /// use palisade_core::ClientKey;
    /// use palisade_guard::{Gcra, Table};
    /// let (table, quota) = (Table::new(1_000), Gcra::new(100_000, 2).expect("a valid quota"));
    /// let key = ClientKey::of("alice");
    /// let request = |now| {
    ///     table.update(key, now, quota.max_debt(), |debt| quota.decide(debt, 1).map(|new| ((), new)))
    /// };
    /// let admitted = |now| request(now).is_some_and(|result| result.is_ok());
    /// assert!(admitted(0) && admitted(0) && !admitted(0));
    /// assert!(admitted(100_000)); // A tenth of a second later.
    /// ```
    #[inline(always)]
    pub fn update<T, E>(
        &self,
        key: ClientKey,
        now: u64,
        max_debt: u64,
        decide: impl Fn(u64) -> Result<(T, u64), E>,
    ) -> Option<Result<T, E>> {
        let max_debt = max_debt.min(Self::MAX_DEBT);
        self.clear_paid(now, max_debt);
        let hash = key.to_hash();
        // The usual case: the key has a word, and no other thread changes it.
        if let Some(slot) = self.find(hash, now, max_debt) {
            let (value, debt) = match decide(slot.debt) {
                Ok(decided) => decided,
                Err(error) => return Some(Err(error)),
            };
            let word = word(hash, now.wrapping_add(debt.min(max_debt)));
            if slot
                .word
                .compare_exchange(slot.seen, word, Relaxed, Relaxed)
                .is_ok()
            {
                return Some(Ok(value));
            }
        }
        self.update_contended(hash, now, max_debt, decide)
    }

    /// Updates the word of a key that has none, or that other threads change.
    #[inline(never)]
    fn update_contended<T, E>(
        &self,
        hash: u64,
        now: u64,
        max_debt: u64,
        decide: impl Fn(u64) -> Result<(T, u64), E>,
    ) -> Option<Result<T, E>> {
        for _ in 0..MAX_TRIES {
            let slot = match self.find(hash, now, max_debt) {
                Some(slot) => slot,
                None => self.find_or_choose(hash, now, max_debt),
            };
            let (value, debt) = match decide(if slot.found { slot.debt } else { 0 }) {
                Ok(decided) => decided,
                Err(error) => return Some(Err(error)),
            };
            if debt == 0 && !slot.found {
                return Some(Ok(value)); // A key without debt needs no word.
            }
            let word = word(hash, now.wrapping_add(debt.min(max_debt)));
            if slot
                .word
                .compare_exchange(slot.seen, word, Relaxed, Relaxed)
                .is_ok()
            {
                if !slot.found && slot.debt > 0 {
                    self.evicted.0.fetch_add(1, Relaxed);
                }
                return Some(Ok(value));
            }
        }
        None
    }

    /// Returns the debt of `key` at `now`, without changing it. Times are in microseconds.
    ///
    /// ```
    /// use palisade_core::ClientKey;
    /// use palisade_guard::Table;
    /// let (table, key) = (Table::new(1_000), ClientKey::of("alice"));
    /// table.update(key, 0, 1_000, |debt| Ok::<_, ()>(((), debt + 500)));
    /// assert_eq!(table.debt(key, 0, 1_000), 500);
    /// assert_eq!(table.debt(key, 400, 1_000), 100);
    /// assert_eq!(table.debt(key, 500, 1_000), 0);
    /// assert_eq!(table.debt(ClientKey::of("bob"), 0, 1_000), 0);
    /// ```
    pub fn debt(&self, key: ClientKey, now: u64, max_debt: u64) -> u64 {
        let max_debt = max_debt.min(Self::MAX_DEBT);
        // Without this, a debt that was paid 51 days ago would be read as a debt again.
        self.clear_paid(now, max_debt);
        let slot = self.find(key.to_hash(), now, max_debt);
        slot.map_or(0, |slot| slot.debt)
    }

    /// Returns whether the table may hold a debt of the key with this [hash](ClientKey::to_hash).
    /// Needs no clock: a key that the table does not know has no debt, at whatever time.
    ///
    /// ```
    /// use palisade_core::ClientKey;
    /// use palisade_guard::Table;
    /// let (table, key) = (Table::new(1_000), ClientKey::of("alice"));
    /// assert!(!table.may_hold(key.to_hash()));
    /// table.update(key, 0, 1_000, |_| Ok::<_, ()>(((), 500)));
    /// assert!(table.may_hold(key.to_hash()));
    /// ```
    #[inline]
    pub fn may_hold(&self, hash: u64) -> bool {
        let tag = tag(hash) << TAT_BITS;
        // Without a branch for each word.
        let mut least = u64::MAX;
        for line in self.lines_of(hash) {
            for word in &line.0 {
                least = least.min(word.load(Relaxed) ^ tag);
            }
        }
        least >> TAT_BITS == 0
    }

    /// Counts the keys in debt at `now`. Reads every word: about a millisecond per million words.
    ///
    /// ```
    /// use palisade_core::ClientKey;
    /// use palisade_guard::Table;
    /// let table = Table::new(1_000);
    /// for (name, debt) in [("alice", 500), ("bob", 900)] {
    ///     table.update(ClientKey::of(name), 0, 1_000, |_| Ok::<_, ()>(((), debt)));
    /// }
    /// let before = table.occupancy(0, 1_000);
    /// assert_eq!((before.keys, before.capacity, before.evicted), (2, 1_024, 0));
    /// assert_eq!(table.occupancy(600, 1_000).keys, 1); // The first debt is paid.
    /// ```
    pub fn occupancy(&self, now: u64, max_debt: u64) -> Occupancy {
        let max_debt = max_debt.min(Self::MAX_DEBT);
        let words = self.lines.iter().flat_map(|line| &line.0);
        let keys = words
            .filter(|word| debt(word.load(Relaxed), now, max_debt) > 0)
            .count();
        Occupancy {
            keys: keys as u64,
            capacity: (self.lines.len() * WORDS_PER_LINE) as u64,
            evicted: self.evicted.0.load(Relaxed),
        }
    }

    /// Returns the word of the key with this hash, if there is one.
    #[inline(always)]
    fn find(&self, hash: u64, now: u64, max_debt: u64) -> Option<Slot<'_>> {
        let tag = tag(hash);
        for line in self.lines_of(hash) {
            for word in &line.0 {
                let seen = word.load(Relaxed);
                if seen >> TAT_BITS == tag {
                    return Some(Slot {
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

    /// Returns the word of the key with this hash, or the word that it must take over: a word
    /// without debt in the line that has more of them, or the word with the least debt in both
    /// lines.
    ///
    /// Reads every word once. If another thread brings the same key concurrently, both threads
    /// choose the same word, and the slower one finds it changed.
    fn find_or_choose(&self, hash: u64, now: u64, max_debt: u64) -> Slot<'_> {
        let tag = tag(hash);
        let lines = self.lines_of(hash);
        let mut seen = [[0; WORDS_PER_LINE]; 2];
        for (line, seen) in lines.iter().zip(&mut seen) {
            for (word, seen) in line.0.iter().zip(seen) {
                *seen = word.load(Relaxed);
                if *seen >> TAT_BITS == tag {
                    return Slot {
                        word,
                        seen: *seen,
                        debt: debt(*seen, now, max_debt),
                        found: true,
                    };
                }
            }
        }
        let (free, first) = least_indebted(lines[0], &seen[0], now, max_debt);
        let (other_free, other) = least_indebted(lines[1], &seen[1], now, max_debt);
        let first_is_better = if free == 0 && other_free == 0 {
            first.debt <= other.debt
        } else {
            free >= other_free
        };
        if first_is_better { first } else { other }
    }

    /// Returns the two lines of the key with this hash. They are never the same line.
    fn lines_of(&self, hash: u64) -> [&Line; 2] {
        let mask = self.lines.len() - 1;
        let low = hash as usize;
        let first = low & mask;
        // The flipped bits are an odd number of at most `mask`, so the second line is another one.
        let second = first ^ (((low >> LINE_BITS) & mask) | 1);
        [&self.lines[first], &self.lines[second]]
    }

    /// Clears paid debts before they are so old that they would be read as debts again, which is
    /// after 38 days at the earliest. No task does this: each update clears the few lines that are
    /// due, one line per 4 seconds in a table for a million keys.
    ///
    /// No line is left for more than two passes. So a debt that an update leaves in the table was
    /// paid at most 13 days before. If the next update comes within another 19 days, the debt is
    /// still recognized as paid. After a longer time every debt has been paid, so all words are
    /// cleared.
    #[inline]
    fn clear_paid(&self, now: u64, max_debt: u64) {
        let due = now >> (CLEAR_PERIOD_BITS - self.lines.len().trailing_zeros());
        let cleared = self.cleared.load(Relaxed);
        if cleared < due {
            self.clear_lines(cleared, due, now, max_debt);
        }
    }

    /// Clears the lines that are due, if no other thread does.
    #[cold]
    fn clear_lines(&self, cleared: u64, due: u64, now: u64, max_debt: u64) {
        let all = self.lines.len() as u64;
        let backlog = due - cleared;
        let (from, to) = if backlog < all {
            (
                cleared,
                cleared + backlog.min(MAX_LINES_PER_CLEAR.max(backlog / 64)),
            )
        } else {
            (due - all, due)
        };
        if self
            .cleared
            .compare_exchange(cleared, to, Relaxed, Relaxed)
            .is_err()
        {
            return; // Another thread clears these lines.
        }
        for line in from..to {
            for word in &self.lines[line as usize & (self.lines.len() - 1)].0 {
                let seen = word.load(Relaxed);
                let paid = backlog >= 3 * all || debt(seen, now, max_debt) == 0;
                if seen != 0 && paid {
                    // A word that has changed in the meantime is in use and must stay.
                    let _ = word.compare_exchange(seen, 0, Relaxed, Relaxed);
                }
            }
        }
    }
}

impl fmt::Debug for Table {
    /// Omits the words, of which there may be millions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("capacity", &(self.lines.len() * WORDS_PER_LINE))
            .field("evicted", &self.evicted.0.load(Relaxed))
            .finish_non_exhaustive()
    }
}

/// Returns the number of words in `line` without debt, and the word with the least debt. `seen` are
/// the values that were loaded from the line.
fn least_indebted<'a>(
    line: &'a Line,
    seen: &[u64; WORDS_PER_LINE],
    now: u64,
    max_debt: u64,
) -> (usize, Slot<'a>) {
    let mut free = 0;
    let mut best = Slot {
        word: &line.0[0],
        seen: 0,
        debt: u64::MAX,
        found: false,
    };
    for (word, seen) in line.0.iter().zip(*seen) {
        let debt = debt(seen, now, max_debt);
        free += usize::from(debt == 0);
        if debt < best.debt {
            best = Slot {
                word,
                seen,
                debt,
                found: false,
            };
        }
    }
    (free, best)
}

/// Returns how far the TAT of `word` lies ahead of `now`, or 0 if that is more than `max_debt`.
#[inline]
fn debt(word: u64, now: u64, max_debt: u64) -> u64 {
    let ahead = word.wrapping_sub(now) & TAT_MASK;
    if word == 0 || ahead > max_debt {
        0
    } else {
        ahead
    }
}

/// Returns the word of a key with this hash and TAT.
#[inline]
fn word(hash: u64, tat: u64) -> u64 {
    (tag(hash) << TAT_BITS) | (tat & TAT_MASK)
}

/// Returns the tag of a key with this hash.
#[inline]
fn tag(hash: u64) -> u64 {
    ((hash >> TAT_BITS) & TAG_MASK).max(1)
}
