//! The accounts that a node knows, in a fixed number of slots.

/// What a node knows of one account. 48 bytes, and a tag of 8.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    /// The account, on all nodes.
    pub(crate) digest: [u64; 2],
    /// In microseconds. Until then the account has nothing left; while its cells were admitted
    /// [alone](ALONE), when the debt that this node knows of is paid; and for an account that is
    /// [unusable](UNUSABLE), until it is tried again.
    pub(crate) until: u64,
    /// In milliseconds, modulo 49 days.
    pub(crate) lease_until: u32,
    /// Cells that were granted and not used yet.
    pub(crate) lease: u32,
    /// Cells that were admitted and are not reported yet.
    pub(crate) unreported: u32,
    /// Cells of the requests that wait.
    pub(crate) waiting: u32,
    /// The fewest cells of one of them, or of one that has waited beside them.
    pub(crate) fewest: u32,
    pub(crate) rule: u8,
    /// The number of bits of the fewest cells that the account has not left. Requests that cost
    /// less may be admitted.
    pub(crate) denied_bits: u8,
    /// Cells that are asked for in advance.
    pub(crate) advance: u8,
    pub(crate) flags: u8,
}

/// The entry is in the queue of those to be reported.
pub(crate) const DIRTY: u8 = 1;
/// The entry is in the queue of those for which requests wait.
pub(crate) const URGENT: u8 = 1 << 1;
/// A call about the entry is in flight.
pub(crate) const IN_FLIGHT: u8 = 1 << 2;
/// Some of its cells were admitted while the store could not be asked.
pub(crate) const ALONE: u8 = 1 << 3;
/// The store cannot hold the account.
pub(crate) const UNUSABLE: u8 = 1 << 4;

/// Entries by tag. Two sets of eight slots are assigned to every tag, and an entry that holds
/// nothing gives its slot to a new one.
pub(crate) struct Entries {
    /// 0 for a slot that was never used.
    tags: Box<[[u64; WAYS]]>,
    entries: Box<[[Entry; WAYS]]>,
}

const WAYS: usize = 8;

/// How long cells that were granted may be used, in milliseconds.
pub(crate) const LEASE_MILLIS: u32 = 500;

impl Entry {
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Returns the cells of the lease that may be used at `now`.
    #[inline]
    pub(crate) fn lease(&self, now: u64) -> u32 {
        if self.lease == 0 {
            return 0;
        }
        let left = self.lease_until.wrapping_sub(millis(now));
        // Beyond: it has ended, up to 49 days ago.
        if left > 0 && left <= LEASE_MILLIS {
            self.lease
        } else {
            0
        }
    }

    pub(crate) fn extend_lease(&mut self, cells: u32, now: u64) {
        self.lease = self.lease(now).saturating_add(cells);
        self.lease_until = millis(now).wrapping_add(LEASE_MILLIS);
    }

    /// Returns how many microseconds the account has less than `cost` cells left for, or 0.
    #[inline]
    pub(crate) fn denied_for(&self, cost: u32, now: u64) -> u64 {
        if self.until <= now || self.has(ALONE | UNUSABLE) || self.lease(now) >= cost {
            return 0;
        }
        if bits(cost) < self.denied_bits {
            return 0;
        }
        self.until - now
    }

    /// Notes that a request of `cost` cells waits.
    pub(crate) fn begin_wait(&mut self, cost: u32) {
        self.waiting = self.waiting.saturating_add(cost);
        self.fewest = match self.fewest {
            0 => cost,
            fewest => fewest.min(cost),
        };
    }

    /// Notes that a request of `cost` cells waits no longer.
    pub(crate) fn end_wait(&mut self, cost: u32) {
        self.waiting = self.waiting.saturating_sub(cost);
        if self.waiting == 0 {
            self.fewest = 0;
        }
    }

    /// Charges `cost` to an entry that is to be reported anyway, if the allowance covers it and
    /// there is no lease. Returns `false` if all of that is to be looked at closer.
    #[inline]
    pub(crate) fn pay_more(&mut self, cost: u32, allowance: u32) -> bool {
        let after = self.unreported.saturating_add(cost);
        let is_plain = self.flags & (DIRTY | ALONE | UNUSABLE) == DIRTY && self.lease == 0;
        let is_covered = is_plain && after <= allowance;
        if is_covered {
            self.unreported = after;
        }
        is_covered
    }

    /// Forgets of the cells that were admitted alone those that are paid by now. The others are
    /// reported. Returns the number of the first.
    #[inline]
    pub(crate) fn end_alone(&mut self, period: u64, now: u64) -> u32 {
        let before = self.unreported;
        if self.has(ALONE) {
            let owed = self.until.saturating_sub(now).div_ceil(period);
            self.unreported = self.unreported.min(u32::try_from(owed).unwrap_or(u32::MAX));
            self.until = 0;
            self.flags &= !ALONE;
        }
        before - self.unreported
    }

    /// Returns whether nothing would be lost without the entry.
    fn is_idle(&self, now: u64) -> bool {
        self.flags & (DIRTY | URGENT | IN_FLIGHT) == 0
            && (self.unreported, self.waiting) == (0, 0)
            && self.until <= now
            && self.lease(now) == 0
    }
}

/// Returns the number of bits of a number of cells.
pub(crate) fn bits(cells: u32) -> u8 {
    (u32::BITS - cells.leading_zeros()) as u8
}

fn millis(micros: u64) -> u32 {
    (micros / 1000) as u32
}

impl Entries {
    /// Creates `slots` slots, rounded up to a power of two of at least 16.
    pub(crate) fn new(slots: usize) -> Self {
        let sets = slots.div_ceil(WAYS).next_power_of_two().max(2);
        Self {
            tags: vec![[0; WAYS]; sets].into(),
            entries: vec![[Entry::default(); WAYS]; sets].into(),
        }
    }

    /// Returns the slot of the entry with this tag.
    #[inline]
    pub(crate) fn find(&self, tag: u64) -> Option<u32> {
        for set in self.sets_of(tag) {
            let mut ways = self.tags[set].iter();
            if let Some(way) = ways.position(|other| *other == tag) {
                return Some((set * WAYS + way) as u32);
            }
        }
        None
    }

    /// Returns the slot of the entry with this tag, if need be in place of one that is idle.
    /// `None` if all slots of the tag are in use. Those in `kept` are, also if they are idle.
    pub(crate) fn find_or_insert(
        &mut self,
        tag: u64,
        kept: &[u32],
        now: u64,
        new: impl FnOnce() -> Entry,
    ) -> Option<u32> {
        if let Some(slot) = self.find(tag) {
            return Some(slot);
        }
        for set in self.sets_of(tag) {
            for way in 0..WAYS {
                let slot = (set * WAYS + way) as u32;
                let is_idle = || self.entries[set][way].is_idle(now) && !kept.contains(&slot);
                if self.tags[set][way] == 0 || is_idle() {
                    self.tags[set][way] = tag;
                    self.entries[set][way] = new();
                    return Some(slot);
                }
            }
        }
        None
    }

    #[inline]
    pub(crate) fn get(&self, slot: u32) -> &Entry {
        let slot = slot as usize;
        &self.entries[slot / WAYS][slot % WAYS]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32) -> &mut Entry {
        let slot = slot as usize;
        &mut self.entries[slot / WAYS][slot % WAYS]
    }

    #[inline]
    fn sets_of(&self, tag: u64) -> [usize; 2] {
        let last = self.entries.len() - 1;
        [tag as usize & last, (tag >> 32) as usize & last]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_48_bytes_and_a_tag() {
        assert_eq!(size_of::<Entry>(), 48);
    }

    #[test]
    fn a_lease_ends_after_half_a_second_also_when_milliseconds_wrap() {
        for start in [0, 5_000_000, (u64::from(u32::MAX) - 100) * 1000] {
            let mut entry = Entry::default();
            assert_eq!(entry.lease(start), 0);
            entry.extend_lease(3, start);
            entry.extend_lease(4, start + 100_000);
            assert_eq!(entry.lease(start + 599_000), 7);
            assert_eq!(entry.lease(start + 600_000), 0);
            assert_eq!(entry.lease(start + 3_600_000_000), 0);
            entry.extend_lease(1, start + 700_000);
            assert_eq!(entry.lease(start + 700_000), 1);
        }
    }

    #[test]
    fn an_idle_entry_makes_room_and_one_in_use_does_not() {
        let mut entries = Entries::new(16);
        let busy = || Entry {
            unreported: 1,
            ..Entry::default()
        };
        for tag in 1..=16 {
            assert!(entries.find_or_insert(tag, &[], 0, busy).is_some(), "{tag}");
        }
        assert_eq!(entries.find_or_insert(17, &[], 0, busy), None);
        let slot = entries.find(5).unwrap();
        entries.get_mut(slot).unreported = 0;
        assert_eq!(entries.find_or_insert(17, &[], 0, busy), Some(slot));
        assert_eq!((entries.find(5), entries.find(17)), (None, Some(slot)));
    }
}
