//! Queues of requests, and their lengths.

use super::{
    priority::{Position, Priority},
    sync::{AtomicUsize, Mutex, MutexGuard},
    waiter::Waiter,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::SeqCst},
};

/// The queues of requests. No queue is longer than the number of requests that may be present and
/// queued.
#[derive(Debug, Default)]
pub(crate) struct WaitQueues {
    lengths: Lengths,
    queues: Mutex<Queues>,
}

/// The queues under their lock. Updates the lengths.
pub(super) struct LockedQueues<'a> {
    lengths: &'a Lengths,
    queues: MutexGuard<'a, Queues>,
}

/// Requests by number, in order of arrival.
type OrderedQueue = BTreeMap<u64, Arc<Waiter>>;

#[derive(Debug, Default)]
struct Queues {
    latest_number: u64,
    /// Waiting for their own clients; the first has waited longest.
    waiting: OrderedQueue,
    /// Queued for a permit, by [`Priority`].
    queued: [OrderedQueue; Priority::ALL.len()],
}

/// Copies of the queues' lengths, readable without the lock.
#[derive(Debug, Default)]
struct Lengths {
    waiting: AtomicUsize,
    queued: AtomicUsize,
    /// Of those queued for a permit.
    light: AtomicUsize,
    new: AtomicUsize,
}

// === WaitQueues ===

impl WaitQueues {
    pub(super) fn lock(&self) -> LockedQueues<'_> {
        LockedQueues {
            lengths: &self.lengths,
            queues: self.queues.lock(),
        }
    }

    /// The number of requests that wait for their clients without a permit.
    #[inline]
    pub(super) fn waiting(&self) -> usize {
        self.lengths.waiting.load(SeqCst)
    }

    /// The number of requests queued for a permit.
    #[inline]
    pub(super) fn queued(&self) -> usize {
        self.lengths.queued.load(SeqCst)
    }

    /// The number of light requests queued for a permit.
    #[inline]
    pub(super) fn queued_light(&self) -> usize {
        self.lengths.light.load(SeqCst)
    }

    /// The number of requests queued for their first permit.
    #[inline]
    pub(super) fn queued_new(&self) -> usize {
        self.lengths.new.load(SeqCst)
    }
}

// === LockedQueues ===

impl LockedQueues<'_> {
    pub(super) fn next_number(&mut self) -> u64 {
        self.queues.latest_number = self.queues.latest_number.wrapping_add(1);
        self.queues.latest_number
    }

    /// The requests that wait for their clients, the longest wait first.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (u64, &Arc<Waiter>)> {
        self.queues
            .waiting
            .iter()
            .map(|(number, waiter)| (*number, waiter))
    }

    /// The requests queued for a permit with this priority, in order.
    pub(super) fn queued(&self, priority: Priority) -> impl Iterator<Item = (u64, &Arc<Waiter>)> {
        let queue = &self.queues.queued[priority as usize];
        queue.iter().map(|(number, waiter)| (*number, waiter))
    }

    /// The first request queued with this priority.
    pub(super) fn first_queued(&self, priority: Priority) -> Option<(u64, &Arc<Waiter>)> {
        self.queued(priority).next()
    }

    /// Whether no request is queued for a permit.
    pub(super) fn has_no_queued(&self) -> bool {
        self.queues.queued.iter().all(OrderedQueue::is_empty)
    }

    /// The number of new requests queued for a permit.
    pub(super) fn queued_new(&self) -> usize {
        let new_priorities = Priority::ALL
            .into_iter()
            .filter(|priority| priority.is_new());
        new_priorities
            .map(|priority| self.queues.queued[priority as usize].len())
            .sum()
    }

    pub(super) fn push_waiting(&mut self, number: u64, waiter: Arc<Waiter>) {
        self.queues.waiting.insert(number, waiter);
        self.lengths
            .waiting
            .store(self.queues.waiting.len(), SeqCst);
    }

    pub(super) fn push_queued(&mut self, number: u64, priority: Priority, waiter: Arc<Waiter>) {
        self.queues.queued[priority as usize].insert(number, waiter);
        self.lengths.count_pushed(priority);
    }

    pub(super) fn pop_first_queued(&mut self, priority: Priority) -> Option<Arc<Waiter>> {
        let (_, waiter) = self.queues.queued[priority as usize].pop_first()?;
        self.lengths.count_removed(priority);
        Some(waiter)
    }

    pub(super) fn remove(&mut self, position: Position) -> Option<Arc<Waiter>> {
        let Position { number, priority } = position;
        let Some(priority) = priority else {
            let waiter = self.queues.waiting.remove(&number);
            self.lengths
                .waiting
                .store(self.queues.waiting.len(), SeqCst);
            return waiter;
        };
        let waiter = self.queues.queued[priority as usize].remove(&number)?;
        self.lengths.count_removed(priority);
        Some(waiter)
    }

    /// Moves a request to another priority. It keeps its number.
    pub(super) fn change_priority(&mut self, number: u64, from: Priority, to: Priority) {
        if let Some(waiter) = self.queues.queued[from as usize].remove(&number) {
            waiter.set_position(Position {
                number,
                priority: Some(to),
            });
            self.queues.queued[to as usize].insert(number, waiter);
            // In this order: without the lock the queue must never look empty.
            self.lengths.count_pushed(to);
            self.lengths.count_removed(from);
        }
    }
}

// === Lengths ===

impl Lengths {
    fn count_pushed(&self, priority: Priority) {
        if priority.is_light() {
            self.light.fetch_add(1, SeqCst);
        }
        if priority.is_new() {
            self.new.fetch_add(1, SeqCst);
        }
        self.queued.fetch_add(1, SeqCst);
    }

    fn count_removed(&self, priority: Priority) {
        if priority.is_light() {
            self.light.fetch_sub(1, SeqCst);
        }
        self.queued.fetch_sub(1, SeqCst);
        if priority.is_new() {
            self.new.fetch_sub(1, SeqCst);
        }
    }
}
