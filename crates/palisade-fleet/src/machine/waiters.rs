//! The requests that wait for an answer of the store.

use super::request::Outcome;
use std::{collections::VecDeque, task::Waker};

/// The most accounts of one request that are counted over all nodes.
pub(crate) const MAX_CLAIMS: usize = 16;

/// The most requests that wait at once.
pub(crate) const MAX_WAITERS: usize = 1024;

/// A request that waits.
pub(crate) struct Waiter {
    /// The slots of its accounts, and the place of each among the accounts of the request.
    pub(crate) claims: [(u32, u8); MAX_CLAIMS],
    pub(crate) count: u8,
    pub(crate) cost: u32,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) waker: Option<Waker>,
}

/// All of them, the first first.
#[derive(Default)]
pub(crate) struct Waiters {
    slots: Vec<Option<Waiter>>,
    free: Vec<u32>,
    /// Those without an outcome.
    order: VecDeque<u32>,
}

impl Waiter {
    pub(crate) fn claims(&self) -> &[(u32, u8)] {
        &self.claims[..self.count.into()]
    }
}

impl Waiters {
    /// Returns whether no more requests may wait. Those that are decided count until they are told.
    pub(crate) fn is_full(&self) -> bool {
        self.slots.len() - self.free.len() >= MAX_WAITERS
    }

    pub(crate) fn push(&mut self, waiter: Waiter) -> u32 {
        let id = self.free.pop().unwrap_or(self.slots.len() as u32);
        if id as usize == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[id as usize] = Some(waiter);
        self.order.push_back(id);
        id
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Waiter> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    /// Removes a waiter, and returns it.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Waiter> {
        let waiter = self.slots.get_mut(id as usize)?.take()?;
        self.free.push(id);
        if waiter.outcome.is_none() {
            self.order.retain(|other| *other != id);
        }
        Some(waiter)
    }

    /// Decides about those that wait, the first first. Returns the wakers of those that have an
    /// outcome now.
    pub(crate) fn decide(
        &mut self,
        mut decide: impl FnMut(&Waiter) -> Option<Outcome>,
    ) -> Vec<Waker> {
        let (slots, mut wakers) = (&mut self.slots, Vec::new());
        self.order.retain(|id| {
            let Some(waiter) = &mut slots[*id as usize] else {
                return false;
            };
            waiter.outcome = decide(waiter);
            if waiter.outcome.is_some() {
                wakers.extend(waiter.waker.take());
            }
            waiter.outcome.is_none()
        });
        wakers
    }
}
