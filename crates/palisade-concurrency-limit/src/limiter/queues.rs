//! The queues of waiting requests, and their lengths.

use super::{
    priority::{Position, Priority},
    sync::{AtomicUsize, Mutex, MutexGuard},
    waiter::Waiter,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::SeqCst},
};

/// The waiting requests. No queue is longer than what may be present and queued.
#[derive(Debug, Default)]
pub(crate) struct WaitQueues {
    lengths: Lengths,
    queues: Mutex<Queues>,
}

/// The queues under their lock. Keeps their lengths.
pub(super) struct Locked<'a> {
    lengths: &'a Lengths,
    queues: MutexGuard<'a, Queues>,
}

/// By order of arrival.
type Queue = BTreeMap<u64, Arc<Waiter>>;

#[derive(Debug, Default)]
struct Queues {
    latest_number: u64,
    /// Waiting for their own clients; the first has waited longest.
    client: Queue,
    /// Waiting for a permit, by [`Priority`].
    permit: [Queue; Priority::ALL.len()],
}

/// Copies of the queues' lengths, to be read without the lock.
#[derive(Debug, Default)]
struct Lengths {
    client: AtomicUsize,
    permit: AtomicUsize,
    /// Of those that wait for a permit.
    light: AtomicUsize,
    newcomers: AtomicUsize,
}

// === WaitQueues ===

impl WaitQueues {
    pub(super) fn lock(&self) -> Locked<'_> {
        Locked {
            lengths: &self.lengths,
            queues: self.queues.lock(),
        }
    }

    /// How many wait for their clients, without a permit.
    #[inline]
    pub(super) fn waiting_for_client(&self) -> usize {
        self.lengths.client.load(SeqCst)
    }

    /// How many wait for a permit.
    #[inline]
    pub(super) fn waiting_for_permit(&self) -> usize {
        self.lengths.permit.load(SeqCst)
    }

    /// How many of these are light.
    #[inline]
    pub(super) fn light(&self) -> usize {
        self.lengths.light.load(SeqCst)
    }

    /// How many of these had no permit before.
    #[inline]
    pub(super) fn newcomers(&self) -> usize {
        self.lengths.newcomers.load(SeqCst)
    }
}

// === Locked ===

impl Locked<'_> {
    pub(super) fn next_number(&mut self) -> u64 {
        self.queues.latest_number = self.queues.latest_number.wrapping_add(1);
        self.queues.latest_number
    }

    /// Those that wait for their clients, the one that has waited longest first.
    pub(super) fn waiting_for_client(&self) -> impl Iterator<Item = (u64, &Arc<Waiter>)> {
        self.queues
            .client
            .iter()
            .map(|(number, waiter)| (*number, waiter))
    }

    /// Those that wait for a permit with this priority, in order.
    pub(super) fn with(&self, priority: Priority) -> impl Iterator<Item = (u64, &Arc<Waiter>)> {
        let queue = &self.queues.permit[priority as usize];
        queue.iter().map(|(number, waiter)| (*number, waiter))
    }

    /// The first of these.
    pub(super) fn first(&self, priority: Priority) -> Option<(u64, &Arc<Waiter>)> {
        self.with(priority).next()
    }

    /// Whether nothing waits for a permit.
    pub(super) fn is_empty(&self) -> bool {
        self.queues.permit.iter().all(Queue::is_empty)
    }

    /// How many newcomers wait for a permit.
    pub(super) fn newcomers(&self) -> usize {
        let newcomers = Priority::ALL
            .into_iter()
            .filter(|priority| priority.is_newcomer());
        newcomers
            .map(|priority| self.queues.permit[priority as usize].len())
            .sum()
    }

    pub(super) fn push_for_client(&mut self, number: u64, waiter: Arc<Waiter>) {
        self.queues.client.insert(number, waiter);
        self.lengths.client.store(self.queues.client.len(), SeqCst);
    }

    pub(super) fn push(&mut self, number: u64, priority: Priority, waiter: Arc<Waiter>) {
        self.queues.permit[priority as usize].insert(number, waiter);
        self.lengths.count_in(priority);
    }

    pub(super) fn pop_first(&mut self, priority: Priority) -> Option<Arc<Waiter>> {
        let (_, waiter) = self.queues.permit[priority as usize].pop_first()?;
        self.lengths.count_out(priority);
        Some(waiter)
    }

    pub(super) fn remove(&mut self, position: Position) -> Option<Arc<Waiter>> {
        let Position { number, priority } = position;
        let Some(priority) = priority else {
            let waiter = self.queues.client.remove(&number);
            self.lengths.client.store(self.queues.client.len(), SeqCst);
            return waiter;
        };
        let waiter = self.queues.permit[priority as usize].remove(&number)?;
        self.lengths.count_out(priority);
        Some(waiter)
    }

    /// Moves one to another priority; it keeps its number.
    pub(super) fn change_priority(&mut self, number: u64, from: Priority, to: Priority) {
        if let Some(waiter) = self.queues.permit[from as usize].remove(&number) {
            waiter.move_to(Position {
                number,
                priority: Some(to),
            });
            self.queues.permit[to as usize].insert(number, waiter);
            // In this order: without the lock the queue must never look empty.
            self.lengths.count_in(to);
            self.lengths.count_out(from);
        }
    }
}

// === Lengths ===

impl Lengths {
    fn count_in(&self, priority: Priority) {
        if priority.is_light() {
            self.light.fetch_add(1, SeqCst);
        }
        if priority.is_newcomer() {
            self.newcomers.fetch_add(1, SeqCst);
        }
        self.permit.fetch_add(1, SeqCst);
    }

    fn count_out(&self, priority: Priority) {
        if priority.is_light() {
            self.light.fetch_sub(1, SeqCst);
        }
        self.permit.fetch_sub(1, SeqCst);
        if priority.is_newcomer() {
            self.newcomers.fetch_sub(1, SeqCst);
        }
    }
}
