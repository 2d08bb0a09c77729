//! What is reported and asked for, and what comes of it.

use super::{
    Machine,
    breaker::Breaker,
    call::{Call, Flush, Item, Reply},
    entries::{ALONE, DIRTY, IN_FLIGHT, UNUSABLE, URGENT, bits},
    request::{Micros, Outcome},
    shard::{Shard, earlier},
};
use crate::store::{Answer, Ask};
use std::{task::Waker, time::Duration};

/// The most accounts in a call. The store is busy for about a millisecond with twice as many.
pub(crate) const MAX_BATCH: usize = 128;
/// How long an account at least has nothing left, once the store has said so. Otherwise a node
/// would ask for each single cell.
const DENY_AT_LEAST: Micros = 50_000;
/// How long an account that the store cannot hold is left alone.
const UNUSABLE_FOR: Micros = 1_000_000;
/// The time between two calls that count nodes.
const COUNT_NODES_EVERY: Micros = 1_000_000;

impl Machine {
    /// Returns when [`flush`](Self::flush) must be called next.
    pub(crate) fn wake_at(&self) -> Option<Micros> {
        let shards = self.shards.iter();
        shards.fold(None, |at, shard| earlier(at, shard.wake_at()))
    }

    /// Returns the next batch, if it is time for one.
    pub(crate) fn flush(&mut self, now: Micros) -> Option<Flush> {
        let is_due = |shard: &Shard| shard.wake_at().is_some_and(|at| at <= now);
        (0..self.shards.len()).find_map(|shard| {
            let is_due = is_due(&self.shards[shard]);
            is_due.then(|| self.take_batch_of(shard, now)).flatten()
        })
    }

    /// Returns a batch of what is to be reported to a part of the store that `is_asked`, whether or
    /// not it is time for it.
    pub(crate) fn take_batch(
        &mut self,
        now: Micros,
        is_asked: impl Fn(usize) -> bool,
    ) -> Option<Flush> {
        let mut shards = (0..self.shards.len()).filter(|shard| is_asked(*shard));
        shards.find_map(|shard| self.take_batch_of(shard, now))
    }

    fn take_batch_of(&mut self, index: usize, now: Micros) -> Option<Flush> {
        let shard = &self.shards[index];
        if shard.breaker.has_ended() {
            return None;
        }
        let place = shard.calls.iter().position(Option::is_none)?;
        // One account is enough to see whether the store answers, and may be lost.
        let most = if shard.breaker.is_closed() {
            MAX_BATCH
        } else {
            1
        };
        let (mut items, mut asks) = (Vec::new(), Vec::new());
        while asks.len() < most
            && let Some(slot) = self.next_slot(index)
        {
            if let Some((item, ask)) = self.take_entry(slot, now) {
                items.push(item);
                asks.push(ask);
            }
        }
        let shard = &mut self.shards[index];
        shard.due = (!shard.dirty.is_empty()).then_some(now);
        let is_hello = shard.hello_at.is_some_and(|at| at <= now);
        if asks.is_empty() && !is_hello {
            return None;
        }
        // One part of the store counts the nodes.
        let counts_nodes = self.counts_nodes && index == 0;
        if is_hello {
            shard.hello_at = counts_nodes.then_some(now + COUNT_NODES_EVERY);
        }
        self.last_call += 1;
        let number = self.last_call;
        shard.breaker.call_begins();
        shard.calls[place] = Some(Call { number, items });
        self.counts.calls += 1;
        self.counts.accounts += asks.len() as u64;
        Some(Flush {
            call: number,
            shard: index as u32, // Below 16.
            asks,
            counts_nodes: is_hello && counts_nodes,
        })
    }

    /// Continues with the end of a call. Returns the requests that are decided.
    pub(crate) fn reply(&mut self, call: u64, reply: Reply, now: Micros) -> Vec<Waker> {
        let shards = self.shards.iter_mut().enumerate();
        let mut taken = shards.map(|(index, shard)| (index, shard.take_call(call)));
        let Some((index, Some(Call { items, .. }))) = taken.find(|(_, call)| call.is_some()) else {
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
                let is_too_late = matches!(reply, Reply::TimedOut);
                let is_divided = self.shards.len() > 1;
                let shard = &mut self.shards[index];
                if shard.breaker.call_failed(is_too_late, now) {
                    // A part that no client is in any more would else never be tried again, and
                    // the node would seem to be alone for ever.
                    if is_divided {
                        shard.hello_at.get_or_insert(now);
                    }
                    return self.alone();
                }
                return Vec::new();
            }
        };
        self.shards[index].breaker.call_answered();
        if let (Some(nodes), true) = (answers.nodes, self.counts_nodes) {
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
        let calls = self.shards.iter().flat_map(|shard| &shard.calls);
        let calls: Vec<_> = calls.flatten().map(|call| call.number).collect();
        let ended = calls.into_iter();
        ended
            .flat_map(|call| self.reply(call, Reply::Failed, now))
            .collect()
    }

    /// No call will be made any more. Returns the requests that are decided.
    pub(crate) fn end(&mut self) -> Vec<Waker> {
        for shard in &mut self.shards {
            shard.breaker.end();
        }
        self.alone()
    }

    /// Decides about the requests that wait for a part of the store that is not asked any more.
    fn alone(&mut self) -> Vec<Waker> {
        let mut waiters = std::mem::take(&mut self.waiters);
        let wakers = waiters.decide(|waiter| {
            let shards = waiter.claims().iter().map(|&(slot, _)| self.shard_of(slot));
            let mut breakers = shards.map(|shard| &self.shards[shard].breaker);
            if breakers.all(Breaker::is_closed) {
                return None;
            }
            for &(slot, _) in waiter.claims() {
                self.entries.get_mut(slot).end_wait(waiter.cost);
            }
            Some(Outcome::Alone)
        });
        self.waiters = waiters;
        wakers
    }

    // === Accounts ===

    fn next_slot(&mut self, shard: usize) -> Option<u32> {
        let shard = &mut self.shards[shard];
        let (slot, flag) = match shard.urgent.pop_front() {
            Some(slot) => (slot, URGENT),
            None => (shard.dirty.pop_front()?, DIRTY),
        };
        self.entries.get_mut(slot).flags &= !flag;
        Some(slot)
    }

    /// Returns what is reported and asked for of one account; `None` if there is nothing, or if
    /// another call about it is in flight.
    fn take_entry(&mut self, slot: u32, now: Micros) -> Option<(Item, Ask)> {
        let rule = self.rule_of(self.entries.get(slot));
        let longest = rule.longest_debt(self.nodes).saturating_mul(rule.period);
        let is_closed = self.shards[self.shard_of(slot)].breaker.is_closed();
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
        if admitted == 0 && !is_closed {
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
        let item = Item {
            slot,
            admitted,
            asked,
            fewest: ask.fewest,
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
        if entry.has(UNUSABLE) {
            entry.flags &= !UNUSABLE;
            entry.until = 0;
        }
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
        let nothing_left = if granted < item.asked {
            entry.advance = 0;
            wait.max(DENY_AT_LEAST)
        } else if item.asked == 0 {
            // Without this, each node would use its allowance once more in each flush.
            wait
        } else {
            0
        };
        // Cells that were admitted alone meanwhile are paid at the time that is there.
        if nothing_left > 0 && !entry.has(ALONE) {
            entry.until = now + nothing_left;
            entry.denied_bits = bits(item.fewest);
        } else if nothing_left == 0 && item.needed > 0 {
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
