//! What a node decides, and what it reports and asks for: instants and answers in, outcomes and
//! batches out. No input or output, and no clock.
//!
//! A node *admits first and reports afterwards*. For each account it knows the cells that it has
//! not reported yet, the lease that the store has granted, and until when the store has nothing
//! left. A request is refused while the store has nothing left. Else it uses the lease, or one of
//! a few cells that each node may admit before it asks. Only if there is neither it waits for the
//! next answer.
//!
//! Every cell is charged in the store once, so that the rate is exact in the long run. What all
//! nodes have admitted and not reported is the most by which they exceed the burst: each node has
//! at most an allowance unreported and another one in a call.

mod breaker;
mod call;
mod entries;
mod flush;
mod request;
mod rule;
mod shard;
mod waiters;

#[cfg(test)]
mod tests;

pub(crate) use breaker::State;
pub(crate) use call::{Flush, Reply};
use entries::{ALONE, DIRTY, Entries, Entry, IN_FLIGHT, UNUSABLE, URGENT};
pub(crate) use request::{Asked, Claim, Micros, Outcome};
use rule::Rule;
use shard::Shard;
use std::task::Waker;
pub(crate) use waiters::MAX_CLAIMS;
use waiters::{Waiter, Waiters};

/// The decisions of one node.
pub(crate) struct Machine {
    entries: Entries,
    rules: Vec<Rule>,
    waiters: Waiters,
    /// One for each part of the store, a power of two of them.
    shards: Box<[Shard]>,
    last_call: u64,
    nodes: u32,
    counts_nodes: bool,
    /// The time from the first admitted cell to the report.
    flush_every: Micros,
    counts: Counts,
    /// Whether the task that flushes must look again.
    is_changed: bool,
}

/// What has been counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Requests that have waited.
    pub(crate) waited: u64,
    /// Requests that were not allowed to wait, because too many did.
    pub(crate) not_waited: u64,
    /// Requests that have waited for too long.
    pub(crate) waited_in_vain: u64,
    /// Requests that would have been refused, or would have waited, in shadow mode.
    pub(crate) would_deny: u64,
    pub(crate) would_wait: u64,
    /// Accounts of requests that were counted by this node alone, for lack of room or of a key that
    /// other nodes know.
    pub(crate) local_only: u64,
    /// Cells that were admitted alone, and are not reported because they are paid.
    pub(crate) paid: u64,
    /// Calls, and the accounts in all of them.
    pub(crate) calls: u64,
    pub(crate) accounts: u64,
    /// Calls without a right answer.
    pub(crate) failures: u64,
}

/// The most parts of a store.
pub(crate) const MAX_SHARDS: u32 = 16;
/// The most entries that wait to be reported, in all shards.
const MAX_DIRTY: usize = 16_384;
/// The time from the first admitted cell to the report.
const FLUSH_EVERY: Micros = 20_000;
/// The most nodes.
pub(crate) const MAX_NODES: u32 = 1024;

impl Machine {
    /// Creates a machine for one of `nodes` nodes, with room for `entries` accounts, and a store in
    /// one part. `seed` is for the times at which a store that does not answer is tried again.
    pub(crate) fn new(nodes: u32, entries: usize, seed: u64) -> Self {
        Self {
            entries: Entries::new(entries),
            rules: Vec::new(),
            waiters: Waiters::default(),
            shards: [Shard::new(seed)].into(),
            last_call: 0,
            nodes,
            counts_nodes: false,
            flush_every: FLUSH_EVERY,
            counts: Counts::default(),
            is_changed: false,
        }
    }

    /// Divides the store into parts, each of which fails alone: 1 to 16, a power of two.
    pub(crate) fn divide(&mut self, shards: u32, seed: u64) {
        let shards = shards.clamp(1, MAX_SHARDS).next_power_of_two();
        let new = |shard| Shard::new(seed.wrapping_add(u64::from(shard)));
        self.shards = (0..shards).map(new).collect();
    }

    /// Counts the nodes from now on.
    pub(crate) fn count_nodes(&mut self) {
        self.counts_nodes = true;
    }

    pub(crate) fn nodes(&self) -> u32 {
        self.nodes
    }

    fn set_nodes(&mut self, nodes: u32) {
        self.nodes = nodes.clamp(1, MAX_NODES);
        for rule in &mut self.rules {
            *rule = Rule::new(rule.period, rule.burst, self.nodes);
        }
    }

    /// Adds a rule, if it is not there yet. `None` if there are too many.
    pub(crate) fn rule(&mut self, period: Micros, burst: u32) -> Option<u16> {
        let rule = Rule::new(period, burst, self.nodes);
        let known = self.rules.iter().position(|known| *known == rule);
        let index = known.unwrap_or(self.rules.len());
        if known.is_none() {
            if index >= usize::from(u8::MAX) {
                return None;
            }
            self.rules.push(rule);
        }
        u16::try_from(index).ok()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) fn count_local_only(&mut self) {
        self.counts.local_only += 1;
    }

    /// Returns the state of the part of the store that is worst.
    pub(crate) fn state(&self) -> State {
        let states = self.shards.iter().map(|shard| shard.breaker.state());
        states.max().unwrap_or(State::Ended)
    }

    /// Returns the number of cells that are not reported yet.
    pub(crate) fn unreported(&self) -> u64 {
        let dirty = self.shards.iter().flat_map(|shard| &shard.dirty);
        let dirty = dirty.map(|slot| self.entries.get(*slot));
        dirty.map(|entry| u64::from(entry.unreported)).sum()
    }

    /// Returns whether the task that flushes must look again, once.
    #[inline]
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// Returns the time until the store is tried again, or until the next flush.
    pub(crate) fn retry_in(&self, now: Micros) -> Micros {
        let shards = self.shards.iter().map(|shard| &shard.breaker);
        let worst = shards.max_by_key(|breaker| breaker.state());
        worst.map_or(0, |breaker| breaker.retry_in(now))
    }

    // === Requests ===

    /// As [`check`](Self::check), for one account. `None`, without a call of `local`, if the
    /// machine does not know it, or is alone.
    #[inline]
    pub(crate) fn check_known(
        &mut self,
        claim: Claim,
        cost: u32,
        now: Micros,
        local: &mut dyn FnMut() -> bool,
    ) -> Option<Outcome> {
        let slot = self.entries.find(claim.tag)?;
        if !self.shards[self.shard_of(slot)].breaker.is_closed() {
            return None;
        }
        let wait = self.entries.get(slot).denied_for(cost, now);
        if wait > 0 {
            let account = claim.account;
            return Some(Outcome::Deny { wait, account });
        }
        if !local() {
            return Some(Outcome::Local);
        }
        let allowance = self.rules[usize::from(claim.rule)].allowance;
        if self.entries.get_mut(slot).pay_more(cost, allowance) {
            return Some(Outcome::Admit);
        }
        if !self.can_pay(slot, cost, now) {
            return Some(Outcome::Ask);
        }
        self.pay(slot, cost, now);
        Some(Outcome::Admit)
    }

    /// Decides about a request of `cost` cells. `local` is called at most once, and not if an
    /// account has nothing left; it decides for this node. `digest` returns the account of the
    /// claim with this index on all nodes.
    #[inline]
    pub(crate) fn check(
        &mut self,
        claims: &[Claim],
        cost: u32,
        now: Micros,
        local: &mut dyn FnMut() -> bool,
        digest: &dyn Fn(usize) -> [u64; 2],
    ) -> Outcome {
        let mut slots = [NO_SLOT; MAX_CLAIMS];
        for (claim, slot) in claims.iter().zip(&mut slots) {
            let Some(found) = self.entries.find(claim.tag) else {
                continue;
            };
            *slot = found;
            let wait = self.entries.get(found).denied_for(cost, now);
            if wait > 0 {
                let account = claim.account;
                return Outcome::Deny { wait, account };
            }
        }
        if !local() {
            return Outcome::Local;
        }
        if self.want_probes(claims, &slots, now, digest) {
            return Outcome::Alone;
        }
        let mut must_ask = false;
        for (index, claim) in claims.iter().enumerate().take(MAX_CLAIMS) {
            if slots[index] == NO_SLOT {
                let inserted = self.insert(*claim, &slots, now, || digest(index));
                slots[index] = inserted.unwrap_or(NO_SLOT);
            }
            must_ask |= slots[index] != NO_SLOT && !self.can_pay(slots[index], cost, now);
        }
        if must_ask {
            return Outcome::Ask;
        }
        for slot in slots.into_iter().take(claims.len()) {
            if slot != NO_SLOT {
                self.pay(slot, cost, now);
            }
        }
        Outcome::Admit
    }

    /// Replaces what was decided about a request by what this node alone decides, and counts what
    /// would have been refused or would have waited.
    pub(crate) fn in_shadow(
        &mut self,
        outcome: Outcome,
        claims: &[Claim],
        cost: u32,
        now: Micros,
        local: &mut dyn FnMut() -> bool,
        digest: &dyn Fn(usize) -> [u64; 2],
    ) -> Outcome {
        match outcome {
            Outcome::Deny { .. } => {
                self.counts.would_deny += 1;
                if !local() {
                    return Outcome::Local;
                }
            }
            Outcome::Ask => self.counts.would_wait += 1,
            outcome => return outcome,
        }
        self.report(claims, cost, now, &|_| now, digest);
        Outcome::Admit
    }

    /// Lets a request of `cost` cells wait for an answer of the store.
    pub(crate) fn ask(
        &mut self,
        claims: &[Claim],
        cost: u32,
        now: Micros,
        digest: &dyn Fn(usize) -> [u64; 2],
    ) -> Asked {
        let mut waiter = Waiter {
            claims: [(NO_SLOT, 0); MAX_CLAIMS],
            count: 0,
            cost,
            outcome: None,
            waker: None,
        };
        let mut slots = [NO_SLOT; MAX_CLAIMS];
        for (claim, slot) in claims.iter().zip(&mut slots) {
            *slot = self.entries.find(claim.tag).unwrap_or(NO_SLOT);
        }
        for (index, claim) in claims.iter().enumerate().take(MAX_CLAIMS) {
            if let Some(slot) = self.insert(*claim, &slots, now, || digest(index)) {
                slots[index] = slot;
                waiter.claims[usize::from(waiter.count)] = (slot, claim.account);
                waiter.count += 1;
            }
        }
        let mut shards = waiter.claims().iter().map(|&(slot, _)| self.shard_of(slot));
        if shards.any(|shard| !self.shards[shard].breaker.is_closed()) {
            return Asked::Decided(Outcome::Alone);
        }
        // Another answer may have come meanwhile.
        if let Some(outcome) = self.settle(&waiter, now) {
            return Asked::Decided(outcome);
        }
        if self.waiters.is_full() {
            self.counts.not_waited += 1;
            return Asked::Decided(Outcome::Alone);
        }
        self.counts.waited += 1;
        for &(slot, _) in waiter.claims() {
            self.entries.get_mut(slot).begin_wait(cost);
            self.mark_urgent(slot);
        }
        Asked::Waits(self.waiters.push(waiter))
    }

    /// Returns what was decided about a request that waits, and else keeps its waker. `before` gets
    /// the one that it had, to be dropped without a lock.
    pub(crate) fn poll(
        &mut self,
        waiter: u32,
        waker: &Waker,
        before: &mut Option<Waker>,
    ) -> Option<Outcome> {
        let Some(waiter) = self.waiters.get_mut(waiter) else {
            return Some(Outcome::Alone);
        };
        let is_known = || waiter.waker.as_ref().is_some_and(|it| it.will_wake(waker));
        if waiter.outcome.is_none() && !is_known() {
            *before = waiter.waker.replace(waker.clone());
        }
        waiter.outcome
    }

    /// Ends the wait of a request. What is granted to it stays in the leases. Returns its waker, to
    /// be dropped without a lock.
    pub(crate) fn leave(&mut self, waiter: u32, is_in_vain: bool) -> Option<Waker> {
        let waiter = self.waiters.remove(waiter)?;
        if waiter.outcome.is_none() {
            self.counts.waited_in_vain += u64::from(is_in_vain);
            for &(slot, _) in waiter.claims() {
                self.entries.get_mut(slot).end_wait(waiter.cost);
            }
        }
        waiter.waker
    }

    /// Charges cells that were admitted without the store. `paid` returns the time at which the
    /// debt of a claim in this node is paid.
    pub(crate) fn report(
        &mut self,
        claims: &[Claim],
        cells: u32,
        now: Micros,
        paid: &dyn Fn(usize) -> Micros,
        digest: &dyn Fn(usize) -> [u64; 2],
    ) {
        if self.has_ended() {
            return;
        }
        for (index, claim) in claims.iter().enumerate() {
            let Some(slot) = self.insert(*claim, &[], now, || digest(index)) else {
                continue;
            };
            if !self.mark_dirty(slot, now) {
                continue;
            }
            // What a response is settled at may be any number. A client owes one burst for it.
            let cells = cells.min(self.rule_of(self.entries.get(slot)).burst);
            let is_alone = !self.shards[self.shard_of(slot)].breaker.is_closed();
            let entry = self.entries.get_mut(slot);
            entry.unreported = entry.unreported.saturating_add(cells);
            if is_alone && !entry.has(UNUSABLE) {
                entry.flags |= ALONE;
                entry.until = paid(index);
            }
        }
    }

    /// Takes back cells that are not reported yet.
    pub(crate) fn take_back(&mut self, claims: &[Claim], cells: u32) {
        for claim in claims {
            if let Some(slot) = self.entries.find(claim.tag) {
                let entry = self.entries.get_mut(slot);
                entry.unreported = entry.unreported.saturating_sub(cells);
            }
        }
    }

    // === Entries ===

    /// Returns the slot of an account, if need be a new one. `kept` are those of the other accounts
    /// of the request, which hold nothing yet.
    fn insert(
        &mut self,
        claim: Claim,
        kept: &[u32],
        now: Micros,
        digest: impl FnOnce() -> [u64; 2],
    ) -> Option<u32> {
        let slot = self.entries.find_or_insert(claim.tag, kept, now, || Entry {
            digest: digest(),
            rule: claim.rule as u8, // Below 255.
            ..Entry::default()
        });
        self.counts.local_only += u64::from(slot.is_none());
        slot
    }

    /// Returns the index of the shard of an account.
    #[inline]
    fn shard_of(&self, slot: u32) -> usize {
        self.shard_of_digest(self.entries.get(slot).digest)
    }

    #[inline]
    fn shard_of_digest(&self, [_, low]: [u64; 2]) -> usize {
        low as usize & (self.shards.len() - 1)
    }

    fn has_ended(&self) -> bool {
        self.shards.iter().all(|shard| shard.breaker.has_ended())
    }

    fn rule_of(&self, entry: &Entry) -> Rule {
        self.rules[usize::from(entry.rule)]
    }

    /// Returns whether a lease or the allowance covers `cost`.
    #[inline]
    fn can_pay(&self, slot: u32, cost: u32, now: Micros) -> bool {
        let entry = self.entries.get(slot);
        let after = entry.unreported.saturating_add(cost);
        after <= self.rule_of(entry).allowance || entry.lease(now) >= cost || entry.has(UNUSABLE)
    }

    /// Charges `cost`, which is covered.
    #[inline]
    fn pay(&mut self, slot: u32, cost: u32, now: Micros) {
        let entry = self.entries.get_mut(slot);
        if entry.has(UNUSABLE) {
            if entry.until > now {
                self.counts.local_only += 1;
                return;
            }
            entry.flags &= !UNUSABLE;
        }
        let lease = entry.lease(now);
        if lease < cost {
            if self.mark_dirty(slot, now) {
                let rule = self.rule_of(self.entries.get(slot));
                let entry = self.entries.get_mut(slot);
                self.counts.paid += u64::from(entry.end_alone(rule.period, now));
                entry.unreported = entry.unreported.saturating_add(cost);
            }
            return;
        }
        entry.lease = lease - cost;
        // Before it is used up.
        if entry.lease <= u32::from(entry.advance) / 2 {
            self.mark_dirty(slot, now);
        }
    }

    /// Returns what is decided about a request, and charges it if it is admitted.
    fn settle(&mut self, waiter: &Waiter, now: Micros) -> Option<Outcome> {
        for &(slot, account) in waiter.claims() {
            let wait = self.entries.get(slot).denied_for(waiter.cost, now);
            if wait > 0 {
                return Some(Outcome::Deny { wait, account });
            }
        }
        let mut claims = waiter.claims().iter();
        if !claims.all(|&(slot, _)| self.can_pay(slot, waiter.cost, now)) {
            return None;
        }
        for &(slot, _) in waiter.claims() {
            self.pay(slot, waiter.cost, now);
        }
        Some(Outcome::Admit)
    }

    /// As [`settle`](Self::settle), for a request that has waited.
    fn settle_waiting(&mut self, waiter: &Waiter, now: Micros) -> Option<Outcome> {
        let outcome = self.settle(waiter, now)?;
        for &(slot, _) in waiter.claims() {
            self.entries.get_mut(slot).end_wait(waiter.cost);
        }
        Some(outcome)
    }

    /// Puts an entry into the queue of those to be reported. Returns `false` if the queue is full:
    /// the entry is then counted by this node alone.
    #[inline]
    fn mark_dirty(&mut self, slot: u32, now: Micros) -> bool {
        self.entries.get(slot).has(DIRTY) || self.push_dirty(slot, now)
    }

    #[inline(never)]
    fn push_dirty(&mut self, slot: u32, now: Micros) -> bool {
        let (index, most) = (self.shard_of(slot), MAX_DIRTY / self.shards.len());
        if self.shards[index].dirty.len() >= most && !self.drop_paid(index, now) {
            self.counts.local_only += 1;
            return false;
        }
        self.entries.get_mut(slot).flags |= DIRTY;
        let shard = &mut self.shards[index];
        shard.dirty.push_back(slot);
        if shard.due.is_none() {
            shard.due = Some(now + self.flush_every);
            self.is_changed = true;
        }
        true
    }

    /// Returns whether a part of the store is not asked that one of these accounts is in. Puts the
    /// account into the queue, if it is empty, for that part to be tried with. What is refused is
    /// not reported, so a node that refuses would never ask again.
    #[inline]
    fn want_probes(
        &mut self,
        claims: &[Claim],
        slots: &[u32; MAX_CLAIMS],
        now: Micros,
        digest: &dyn Fn(usize) -> [u64; 2],
    ) -> bool {
        let is_asked = |shard: &Shard| shard.breaker.is_closed();
        !self.shards.iter().all(is_asked) && self.want_probes_of_some(claims, slots, now, digest)
    }

    #[cold]
    #[inline(never)]
    fn want_probes_of_some(
        &mut self,
        claims: &[Claim],
        slots: &[u32; MAX_CLAIMS],
        now: Micros,
        digest: &dyn Fn(usize) -> [u64; 2],
    ) -> bool {
        let mut is_alone = false;
        for (index, (claim, slot)) in claims.iter().zip(slots).enumerate() {
            let shard = match *slot {
                NO_SLOT => self.shard_of_digest(digest(index)),
                slot => self.shard_of(slot),
            };
            let shard = &self.shards[shard];
            if shard.breaker.is_closed() {
                continue;
            }
            is_alone = true;
            if shard.dirty.is_empty()
                && !shard.breaker.has_ended()
                && let Some(slot) = self.insert(*claim, slots, now, || digest(index))
            {
                self.mark_dirty(slot, now);
            }
        }
        is_alone
    }

    /// Makes room in a queue by an entry whose debt is paid, after a long time without the store.
    fn drop_paid(&mut self, shard: usize, now: Micros) -> bool {
        let dirty = &mut self.shards[shard].dirty;
        let Some(&slot) = dirty.front() else {
            return false;
        };
        let entry = self.entries.get_mut(slot);
        if !entry.has(ALONE) || entry.until > now {
            return false;
        }
        entry.flags &= !(ALONE | DIRTY);
        self.counts.paid += u64::from(entry.unreported);
        entry.unreported = 0;
        dirty.pop_front();
        true
    }

    fn mark_urgent(&mut self, slot: u32) {
        let index = self.shard_of(slot);
        let shard = &mut self.shards[index];
        let is_first = !shard.is_urgent();
        let entry = self.entries.get_mut(slot);
        if !entry.has(URGENT | IN_FLIGHT) {
            entry.flags |= URGENT;
            shard.urgent.push_back(slot);
            self.is_changed |= is_first;
        }
    }
}

/// No slot.
const NO_SLOT: u32 = u32::MAX;
