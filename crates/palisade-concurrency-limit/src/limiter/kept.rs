//! Requests that wait for their clients and keep their permits meanwhile.
//!
//! To give a permit up and to take one again costs a lock each and a place in a queue. While
//! permits are plentiful a request that waits keeps its own, which costs it one atomic operation
//! each way. It is listed here once, so that its permit can be recalled as soon as permits get
//! short.

use super::{
    sync::Mutex,
    waiter::{UNLISTED, Waiter},
};
use std::sync::{Arc, atomic::Ordering::SeqCst};

/// The requests that have kept their permits at some time, and are not over. Longer than the limit
/// only by those that were listed before permits got short.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Vec<Arc<Waiter>>>);

impl Kept {
    /// Lists `waiter`, unless it is listed.
    pub(super) fn list(&self, waiter: &Arc<Waiter>) {
        let mut waiters = self.0.lock();
        // Its other half, in another task, may have listed it.
        if !waiter.is_listed() {
            waiter.listed_at.store(waiters.len(), SeqCst);
            waiters.push(waiter.clone());
            // Or have ended it: either that sees the place, or this sees the end.
            if waiter.is_over() {
                waiter.listed_at.store(UNLISTED, SeqCst);
                waiters.pop();
            }
        }
    }

    pub(super) fn unlist(&self, waiter: &Waiter) {
        if waiter.is_listed() {
            let mut waiters = self.0.lock();
            let place = waiter.listed_at.swap(UNLISTED, SeqCst);
            if place < waiters.len() {
                let unlisted = waiters.swap_remove(place);
                if let Some(moved) = waiters.get(place) {
                    moved.listed_at.store(place, SeqCst);
                }
                drop(waiters);
                drop(unlisted);
            }
        }
    }

    /// Those that keep their permits now.
    pub(super) fn keeping(&self) -> Vec<Arc<Waiter>> {
        self.0
            .lock()
            .iter()
            .filter(|waiter| waiter.is_keeping())
            .cloned()
            .collect()
    }

    /// How many keep their permits now.
    pub(super) fn count(&self) -> usize {
        self.0
            .lock()
            .iter()
            .filter(|waiter| waiter.is_keeping())
            .count()
    }
}
