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
mod entries;
mod request;
mod waiters;

#[cfg(test)]
mod tests;

use crate::store::{Answer, Answers, Ask};
use breaker::Breaker;
pub(crate) use breaker::State;
use entries::{ALONE, DIRTY, Entries, Entry, IN_FLIGHT, UNUSABLE, URGENT};
pub(crate) use request::{Asked, Claim, Micros, Outcome};
use std::{collections::VecDeque, task::Waker, time::Duration};
pub(crate) use waiters::MAX_CLAIMS;
use waiters::{Waiter, Waiters};

/// The decisions of one node.
pub(crate) struct Machine {
    entries: Entries,
    rules: Vec<Rule>,
    waiters: Waiters,
    /// Entries to be reported, the first first.
    dirty: VecDeque<u32>,
    /// Entries for which requests wait.
    urgent: VecDeque<u32>,
    /// When the next batch is due, if any entry is dirty.
    due: Option<Micros>,
    calls: [Option<Call>; MAX_CALLS],
    last_call: u64,
    breaker: Breaker,
    nodes: u32,
    /// When the node must be heard of next, if nodes are counted.
    heard_of_at: Option<Micros>,
    /// The time from the first admitted cell to the report.
    flush_every: Micros,
    counts: Counts,
    /// Whether the task that flushes must look again.
    is_changed: bool,
}

/// A quota of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The time for one cell.
    pub(crate) period: Micros,
    pub(crate) burst: u32,
    /// The cells that a node admits before it has reported them.
    allowance: u32,
    /// The most cells that are asked for in advance.
    most_in_advance: u8,
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

/// A batch to be sent.
#[derive(Debug)]
pub(crate) struct Flush {
    pub(crate) call: u64,
    pub(crate) asks: Vec<Ask>,
    /// Whether nodes are to be counted.
    pub(crate) counts_nodes: bool,
}

/// How a call has ended.
#[derive(Debug)]
pub(crate) enum Reply {
    Answers(Answers),
    /// It was not sent.
    Unsent,
    /// It has failed, and may have been charged.
    Failed,
    /// It took too long, and may be charged yet.
    TimedOut,
}

/// A call that is in flight.
struct Call {
    number: u64,
    items: Vec<Item>,
}

/// An account of a call.
struct Item {
    slot: u32,
    admitted: u32,
    asked: u32,
    /// How many of them requests wait for.
    needed: u32,
    /// When the debt is paid, if some of the cells were admitted alone, and else 0.
    paid: Micros,
}

const MAX_CALLS: usize = 2;
/// The most accounts in a call. The store is busy for about a millisecond with twice as many.
pub(crate) const MAX_BATCH: usize = 128;
/// The most entries that wait to be reported.
const MAX_DIRTY: usize = 16_384;
/// The time from the first admitted cell to the report.
const FLUSH_EVERY: Micros = 20_000;
/// How long an account at least has nothing left, once the store has said so. Otherwise a node
/// would ask for each single cell.
const DENY_AT_LEAST: Micros = 50_000;
/// How long an account that the store cannot hold is left alone.
const UNUSABLE_FOR: Micros = 1_000_000;
/// The most cells that are asked for in advance.
const MAX_IN_ADVANCE: u32 = 128;
/// The time between two calls that count nodes.
const HEARD_OF_EVERY: Micros = 1_000_000;
/// The most nodes.
pub(crate) const MAX_NODES: u32 = 1024;

impl Rule {
    pub(crate) fn new(period: Micros, burst: u32, nodes: u32) -> Self {
        let nodes = nodes.max(1);
        Self {
            period,
            burst,
            allowance: (burst / nodes.saturating_mul(4)).max(1),
            most_in_advance: (burst / nodes).min(MAX_IN_ADVANCE) as u8,
        }
    }

    /// Returns the longest debt in the store, in cells. Normal work never reaches it.
    fn longest_debt(&self, nodes: u32) -> u64 {
        2 * u64::from(self.burst) + 2 * u64::from(nodes) * u64::from(self.allowance)
    }
}

impl Machine {
    /// Creates a machine for one of `nodes` nodes, with room for `entries` accounts. `seed` is for
    /// the times at which a store that does not answer is tried again.
    pub(crate) fn new(nodes: u32, entries: usize, seed: u64) -> Self {
        Self {
            entries: Entries::new(entries),
            rules: Vec::new(),
            waiters: Waiters::default(),
            dirty: VecDeque::new(),
            urgent: VecDeque::new(),
            due: None,
            calls: [None, None],
            last_call: 0,
            breaker: Breaker::new(seed),
            nodes,
            heard_of_at: None,
            flush_every: FLUSH_EVERY,
            counts: Counts::default(),
            is_changed: false,
        }
    }

    /// Counts the nodes from now on.
    pub(crate) fn count_nodes(&mut self) {
        self.heard_of_at = Some(0);
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

    pub(crate) fn state(&self) -> State {
        self.breaker.state()
    }

    pub(crate) fn unreported(&self) -> u64 {
        self.entries.unreported()
    }

    /// Returns whether the task that flushes must look again, once.
    #[inline]
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// Returns the time until the store is tried again, or until the next flush.
    pub(crate) fn retry_in(&self, now: Micros) -> Micros {
        self.breaker.retry_in(now)
    }

    // === Requests ===

    /// As [`check`](Self::check), for one account. `None`, without a call of `local`, if the machine
    /// does not know it, or is alone.
    #[inline]
    pub(crate) fn check_known(
        &mut self,
        claim: Claim,
        cost: u32,
        now: Micros,
        local: &mut dyn FnMut() -> bool,
    ) -> Option<Outcome> {
        let slot = self.entries.find(claim.tag)?;
        if !self.breaker.is_closed() {
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
        if !self.breaker.is_closed() {
            self.want_probe(claims, now, digest);
            return Outcome::Alone;
        }
        let mut must_ask = false;
        for (index, (claim, slot)) in claims.iter().zip(&mut slots).enumerate() {
            if *slot == NO_SLOT {
                *slot = self
                    .insert(*claim, now, || digest(index))
                    .unwrap_or(NO_SLOT);
            }
            must_ask |= *slot != NO_SLOT && !self.can_pay(*slot, cost, now);
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
        if !self.breaker.is_closed() {
            return Asked::Decided(Outcome::Alone);
        }
        let mut waiter = Waiter {
            claims: [(NO_SLOT, 0); MAX_CLAIMS],
            count: 0,
            cost,
            outcome: None,
            waker: None,
        };
        for (index, claim) in claims.iter().enumerate().take(MAX_CLAIMS) {
            if let Some(slot) = self.insert(*claim, now, || digest(index)) {
                waiter.claims[usize::from(waiter.count)] = (slot, claim.account);
                waiter.count += 1;
            }
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
            let entry = self.entries.get_mut(slot);
            entry.waiting = entry.waiting.saturating_add(cost);
            entry.fewest = match entry.fewest {
                0 => cost,
                fewest => fewest.min(cost),
            };
            self.mark_urgent(slot);
        }
        Asked::Waits(self.waiters.push(waiter))
    }

    /// Returns what was decided about a request that waits, and else keeps its waker.
    pub(crate) fn poll(&mut self, waiter: u32, waker: &Waker) -> Option<Outcome> {
        let Some(waiter) = self.waiters.get_mut(waiter) else {
            return Some(Outcome::Alone);
        };
        if waiter.outcome.is_none() {
            match &mut waiter.waker {
                Some(present) => present.clone_from(waker),
                None => waiter.waker = Some(waker.clone()),
            }
        }
        waiter.outcome
    }

    /// Ends the wait of a request. What is granted to it stays in the leases.
    pub(crate) fn leave(&mut self, waiter: u32, is_in_vain: bool) {
        let Some(waiter) = self.waiters.remove(waiter) else {
            return;
        };
        if waiter.outcome.is_none() {
            self.counts.waited_in_vain += u64::from(is_in_vain);
            for &(slot, _) in waiter.claims() {
                let entry = self.entries.get_mut(slot);
                entry.waiting = entry.waiting.saturating_sub(waiter.cost);
            }
        }
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
        if self.breaker.has_ended() {
            return;
        }
        let is_alone = !self.breaker.is_closed();
        for (index, claim) in claims.iter().enumerate() {
            let Some(slot) = self.insert(*claim, now, || digest(index)) else {
                continue;
            };
            if !self.mark_dirty(slot, now) {
                continue;
            }
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

    // === The store ===

    /// Returns when [`flush`](Self::flush) must be called next.
    pub(crate) fn wake_at(&self) -> Option<Micros> {
        let has_room = self.calls.iter().any(Option::is_none);
        let has_work = !self.dirty.is_empty() || !self.urgent.is_empty();
        if !has_room || !(has_work || self.heard_of_at.is_some()) {
            return None;
        }
        match self.breaker.probe_at() {
            Some(at) => at,
            None if self.is_urgent() => Some(0),
            None => earlier(self.due, self.heard_of_at),
        }
    }

    /// Returns the next batch, if it is time for one.
    pub(crate) fn flush(&mut self, now: Micros) -> Option<Flush> {
        if self.wake_at().is_none_or(|at| at > now) {
            return None;
        }
        self.take_batch(now)
    }

    /// Returns a batch of what is to be reported, whether or not it is time for it.
    pub(crate) fn take_batch(&mut self, now: Micros) -> Option<Flush> {
        if self.breaker.has_ended() {
            return None;
        }
        let place = self.calls.iter().position(Option::is_none)?;
        // One account is enough to see whether the store answers, and may be lost.
        let most = if self.breaker.is_closed() {
            MAX_BATCH
        } else {
            1
        };
        let (mut items, mut asks) = (Vec::new(), Vec::new());
        while asks.len() < most
            && let Some(slot) = self.next_slot()
        {
            if let Some((item, ask)) = self.take_entry(slot, now) {
                items.push(item);
                asks.push(ask);
            }
        }
        self.due = (!self.dirty.is_empty()).then_some(now);
        let counts_nodes = self.heard_of_at.is_some_and(|at| at <= now);
        if asks.is_empty() && !counts_nodes {
            return None;
        }
        if counts_nodes {
            self.heard_of_at = Some(now + HEARD_OF_EVERY);
        }
        self.last_call += 1;
        let number = self.last_call;
        self.breaker.call_begins();
        self.calls[place] = Some(Call { number, items });
        self.counts.calls += 1;
        self.counts.accounts += asks.len() as u64;
        Some(Flush {
            call: number,
            asks,
            counts_nodes,
        })
    }

    /// Continues with the end of a call. Returns the requests that are decided.
    pub(crate) fn reply(&mut self, call: u64, reply: Reply, now: Micros) -> Vec<Waker> {
        let mut calls = self.calls.iter_mut();
        let place = calls.find(|place| place.as_ref().is_some_and(|it| it.number == call));
        let Some(Call { items, .. }) = place.and_then(Option::take) else {
            return Vec::new();
        };
        let answers = match reply {
            Reply::Answers(answers) if answers.accounts.len() == items.len() => answers,
            reply => {
                self.counts.failures += 1;
                let is_unsent = matches!(reply, Reply::Unsent);
                for item in items {
                    self.fail(&item, is_unsent, now);
                }
                if self
                    .breaker
                    .call_failed(matches!(reply, Reply::TimedOut), now)
                {
                    return self.all_alone();
                }
                return Vec::new();
            }
        };
        self.breaker.call_answered();
        if let (Some(nodes), Some(_)) = (answers.nodes, self.heard_of_at) {
            self.set_nodes(nodes);
        }
        for (item, answer) in items.iter().zip(answers.accounts) {
            self.apply(item, answer, now);
        }
        let mut waiters = std::mem::take(&mut self.waiters);
        let wakers = waiters.decide(|waiter| self.settle_waiting(waiter, now));
        self.waiters = waiters;
        for item in &items {
            self.requeue(item.slot, now);
        }
        wakers
    }

    /// Ends all calls that are in flight as failed. Returns the requests that are decided.
    pub(crate) fn fail_all(&mut self, now: Micros) -> Vec<Waker> {
        let calls = self.calls.each_ref();
        let calls = calls.map(|call| call.as_ref().map(|it| it.number));
        let calls = calls.into_iter().flatten();
        let ended = calls.flat_map(|call| self.reply(call, Reply::Failed, now));
        ended.collect()
    }

    /// No call will be made any more. Returns the requests that are decided.
    pub(crate) fn end(&mut self) -> Vec<Waker> {
        self.breaker.end();
        self.all_alone()
    }

    /// Decides about all requests that wait.
    fn all_alone(&mut self) -> Vec<Waker> {
        let (entries, waiters) = (&mut self.entries, &mut self.waiters);
        waiters.decide(|waiter| {
            for &(slot, _) in waiter.claims() {
                let entry = entries.get_mut(slot);
                entry.waiting = entry.waiting.saturating_sub(waiter.cost);
            }
            Some(Outcome::Alone)
        })
    }

    // === Entries ===

    fn insert(
        &mut self,
        claim: Claim,
        now: Micros,
        digest: impl FnOnce() -> [u64; 2],
    ) -> Option<u32> {
        let slot = self.entries.find_or_insert(claim.tag, now, || Entry {
            digest: digest(),
            rule: claim.rule,
            ..Entry::default()
        });
        self.counts.local_only += u64::from(slot.is_none());
        slot
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
            let entry = self.entries.get_mut(slot);
            entry.waiting = entry.waiting.saturating_sub(waiter.cost);
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
        if self.dirty.len() >= MAX_DIRTY && !self.drop_paid(now) {
            self.counts.local_only += 1;
            return false;
        }
        self.entries.get_mut(slot).flags |= DIRTY;
        self.dirty.push_back(slot);
        if self.due.is_none() {
            self.due = Some(now + self.flush_every);
            self.is_changed = true;
        }
        true
    }

    /// Puts an account of a request into the queue, if it is empty, for the store to be tried with.
    /// What is refused is not reported, so a node that refuses would never ask again.
    fn want_probe(&mut self, claims: &[Claim], now: Micros, digest: &dyn Fn(usize) -> [u64; 2]) {
        if self.dirty.is_empty()
            && !self.breaker.has_ended()
            && let Some(claim) = claims.first()
            && let Some(slot) = self.insert(*claim, now, || digest(0))
        {
            self.mark_dirty(slot, now);
        }
    }

    /// Makes room in the queue by an entry whose debt is paid, after a long time without the store.
    fn drop_paid(&mut self, now: Micros) -> bool {
        let Some(&slot) = self.dirty.front() else {
            return false;
        };
        let entry = self.entries.get_mut(slot);
        if !entry.has(ALONE) || entry.until > now {
            return false;
        }
        entry.flags &= !(ALONE | DIRTY);
        self.counts.paid += u64::from(entry.unreported);
        entry.unreported = 0;
        self.dirty.pop_front();
        true
    }

    fn mark_urgent(&mut self, slot: u32) {
        let is_first = !self.is_urgent();
        let entry = self.entries.get_mut(slot);
        if !entry.has(URGENT | IN_FLIGHT) {
            entry.flags |= URGENT;
            self.urgent.push_back(slot);
            self.is_changed |= is_first;
        }
    }

    /// Returns whether a request waits and no call is in flight.
    fn is_urgent(&self) -> bool {
        !self.urgent.is_empty() && self.calls.iter().all(Option::is_none)
    }

    fn next_slot(&mut self) -> Option<u32> {
        let (slot, flag) = match self.urgent.pop_front() {
            Some(slot) => (slot, URGENT),
            None => (self.dirty.pop_front()?, DIRTY),
        };
        self.entries.get_mut(slot).flags &= !flag;
        Some(slot)
    }

    /// Returns what is reported and asked for of one account; `None` if there is nothing, or if
    /// another call about it is in flight.
    fn take_entry(&mut self, slot: u32, now: Micros) -> Option<(Item, Ask)> {
        let rule = self.rule_of(self.entries.get(slot));
        let longest = rule.longest_debt(self.nodes).saturating_mul(rule.period);
        let entry = self.entries.get_mut(slot);
        if entry.has(IN_FLIGHT) {
            return None;
        }
        let paid = if entry.has(ALONE) { entry.until } else { 0 };
        self.counts.paid += u64::from(entry.end_alone(rule.period, now));
        let lease = entry.lease(now);
        let needed = entry.waiting.saturating_sub(lease);
        let advance = u32::from(entry.advance);
        if entry.lease > 0 && lease == 0 {
            // It was not used in time.
            entry.lease = 0;
            entry.advance /= 2;
        }
        let ahead = if lease <= advance / 2 { advance } else { 0 };
        let admitted = entry.unreported;
        let mut asked = needed.saturating_add(ahead);
        // A call that charges nothing would not show whether the store can be written to.
        if admitted == 0 && !self.breaker.is_closed() {
            asked = asked.max(1);
        }
        if admitted == 0 && asked == 0 {
            return None;
        }
        entry.unreported = 0;
        entry.flags |= IN_FLIGHT;
        let [high, low] = entry.digest;
        let ask = Ask {
            account: u128::from(high) << 64 | u128::from(low),
            period: Duration::from_micros(rule.period),
            burst: rule.burst,
            admitted,
            asked,
            fewest: entry.fewest.clamp(1, asked.max(1)),
            longest: Duration::from_micros(longest),
        };
        entry.fewest = 0;
        let item = Item {
            slot,
            admitted,
            asked,
            needed,
            paid,
        };
        Some((item, ask))
    }

    /// Continues an entry after an answer.
    fn apply(&mut self, item: &Item, answer: Answer, now: Micros) {
        let rule = self.rule_of(self.entries.get(item.slot));
        let longest = rule.longest_debt(self.nodes).saturating_mul(rule.period);
        let entry = self.entries.get_mut(item.slot);
        entry.flags &= !IN_FLIGHT;
        let Answer::Granted { cells, wait } = answer else {
            entry.flags |= UNUSABLE;
            entry.until = now + UNUSABLE_FOR;
            return;
        };
        // A store that errs must not make this node wait for ever, or admit more than it asked for.
        let granted = cells.min(item.asked);
        let wait = u64::try_from(wait.as_micros())
            .unwrap_or(u64::MAX)
            .min(longest);
        if granted > 0 {
            entry.extend_lease(granted, now);
        }
        // All nodes have heard of a debt beyond one cell, and would use their allowances again at
        // the same time. Twice as long for what is beyond halves the debt that remains.
        let wait = (wait + wait.saturating_sub(rule.period)).min(longest);
        if granted < item.asked {
            entry.advance = 0;
            entry.until = now + wait.max(DENY_AT_LEAST);
        } else if item.asked == 0 && wait > 0 {
            // Without this, each node would use its allowance once more in each flush.
            entry.until = now + wait;
        } else if item.needed > 0 {
            let doubled = entry.advance.saturating_mul(2).max(1);
            entry.advance = doubled.min(rule.most_in_advance);
        }
    }

    /// Continues an entry after a call that has failed.
    fn fail(&mut self, item: &Item, is_unsent: bool, now: Micros) {
        let entry = self.entries.get_mut(item.slot);
        entry.flags &= !IN_FLIGHT;
        if is_unsent {
            entry.unreported = entry.unreported.saturating_add(item.admitted);
            // So that they are not reported after they are paid.
            if item.paid > 0 && !entry.has(ALONE | UNUSABLE) {
                entry.flags |= ALONE;
                entry.until = item.paid;
            }
        }
        self.requeue(item.slot, now);
    }

    /// Puts an entry into the queues in which it belongs after a call.
    fn requeue(&mut self, slot: u32, now: Micros) {
        let entry = self.entries.get(slot);
        let (waiting, unreported) = (entry.waiting, entry.unreported);
        if waiting > entry.lease(now) {
            self.mark_urgent(slot);
        }
        if unreported > 0 {
            self.mark_dirty(slot, now);
        }
    }
}

fn earlier(one: Option<Micros>, other: Option<Micros>) -> Option<Micros> {
    one.into_iter().chain(other).min()
}

/// No slot.
const NO_SLOT: u32 = u32::MAX;
