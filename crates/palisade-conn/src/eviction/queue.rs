//! Connections that are ready to be evicted.

use super::rank::{EvictionClass, EvictionRank};
use crate::connection::{ConnHandle, WeakConnHandle};
use parking_lot::Mutex;
use std::{cmp::Ordering, collections::BinaryHeap};

/// The number of candidates that are kept ready.
pub(crate) const MAX_CANDIDATES: usize = 64;

/// The candidates that the latest sweep found, the first to be evicted last.
#[derive(Default)]
pub(crate) struct EvictionQueue(Mutex<Vec<Candidate>>);

/// A connection that may be evicted.
pub(crate) struct Candidate {
    /// The class that it had.
    pub(crate) class: EvictionClass,
    pub(crate) opened: u64,
    pub(crate) conn: WeakConnHandle,
}

/// The best candidates seen so far in one sweep.
#[derive(Default)]
pub(crate) struct Selection(BinaryHeap<Ranked>);

struct Ranked {
    rank: EvictionRank,
    opened: u64,
    conn: WeakConnHandle,
}

// === EvictionQueue ===

impl EvictionQueue {
    /// Takes out the first candidate that `may_evict` accepts. Returns how many are left as well.
    pub(crate) fn take(
        &self,
        may_evict: impl Fn(&Candidate) -> bool,
    ) -> (Option<Candidate>, usize) {
        let mut queue = self.0.lock();
        let next = queue.iter().rposition(may_evict);
        (next.map(|at| queue.remove(at)), queue.len())
    }

    /// Replaces the candidates.
    pub(crate) fn replace(&self, selection: Selection) {
        let candidates = selection.into_candidates();
        let before = std::mem::replace(&mut *self.0.lock(), candidates);
        drop(before); // Outside the lock.
    }
}

// === Selection ===

impl Selection {
    /// Adds a connection if it is among the best.
    pub(crate) fn offer(&mut self, rank: EvictionRank, opened: u64, conn: &ConnHandle) {
        if rank.class.is_last_resort() {
            return;
        }
        let is_better = self.0.peek().is_none_or(|worst| rank < worst.rank);
        if self.0.len() < MAX_CANDIDATES || is_better {
            self.0.push(Ranked {
                rank,
                opened,
                conn: conn.downgrade(),
            });
        }
        if self.0.len() > MAX_CANDIDATES {
            self.0.pop();
        }
    }

    /// Drops all of them.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    fn into_candidates(self) -> Vec<Candidate> {
        let first_to_last = self.0.into_sorted_vec();
        let last_to_first = first_to_last.into_iter().rev();
        last_to_first
            .map(|Ranked { rank, opened, conn }| Candidate {
                class: rank.class,
                opened,
                conn,
            })
            .collect()
    }
}

// === Ranked ===

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank)
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl Eq for Ranked {}
