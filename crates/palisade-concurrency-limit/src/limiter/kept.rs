//! Requests that keep their permits while they wait for their clients.
//!
//! Giving a permit back and taking one again costs two locks and a place in a queue. While permits
//! are plentiful, a waiting request keeps its permit, which costs one atomic operation each way. It
//! is listed here once, so that its permit can be recalled as soon as permits are short.

use super::{
    sync::Mutex,
    waiter::{UNLISTED, Waiter},
};
use std::sync::{Arc, atomic::Ordering::SeqCst};

/// The requests that have kept their permits at some time and have not ended. The list exceeds the
/// limit only by requests listed before permits were short.
#[derive(Debug, Default)]
pub(crate) struct KeptPermits(Mutex<Vec<Arc<Waiter>>>);

impl KeptPermits {
    /// Lists `waiter`, unless it is listed.
    pub(super) fn insert(&self, waiter: &Arc<Waiter>) {
        let mut waiters = self.0.lock();
        // The other half, in another task, may have listed it.
        if !waiter.is_listed() {
            waiter.list_index.store(waiters.len(), SeqCst);
            waiters.push(waiter.clone());
            // Or the other half may have ended it: either it sees the index, or the end is seen
            // here.
            if waiter.is_ended_or_evicted() {
                waiter.list_index.store(UNLISTED, SeqCst);
                waiters.pop();
            }
        }
    }

    pub(super) fn remove(&self, waiter: &Waiter) {
        if waiter.is_listed() {
            let mut waiters = self.0.lock();
            let index = waiter.list_index.swap(UNLISTED, SeqCst);
            if index < waiters.len() {
                let removed = waiters.swap_remove(index);
                if let Some(moved) = waiters.get(index) {
                    moved.list_index.store(index, SeqCst);
                }
                drop(waiters);
                drop(removed);
            }
        }
    }

    /// The requests that keep their permits now.
    pub(super) fn keeping_waiters(&self) -> Vec<Arc<Waiter>> {
        self.0
            .lock()
            .iter()
            .filter(|waiter| waiter.is_keeping_permit())
            .cloned()
            .collect()
    }

    /// The number of requests that keep their permits now.
    pub(super) fn count_keeping(&self) -> usize {
        self.0
            .lock()
            .iter()
            .filter(|waiter| waiter.is_keeping_permit())
            .count()
    }
}
