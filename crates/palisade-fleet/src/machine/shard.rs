//! The accounts that are in one part of the store.

use super::{
    breaker::{Breaker, State},
    call::Call,
    request::Micros,
};
use std::collections::VecDeque;

/// What is to be reported to a part of the store, and whether that answers.
pub(super) struct Shard {
    /// Entries to be reported, the first first.
    pub(super) dirty: VecDeque<u32>,
    /// Entries for which requests wait.
    pub(super) urgent: VecDeque<u32>,
    /// When the next batch is due, if any entry is dirty.
    pub(super) due: Option<Micros>,
    pub(super) calls: [Option<Call>; MAX_CALLS],
    pub(super) breaker: Breaker,
    /// When the store must be called next, if only to be connected to or to count nodes.
    pub(super) hello_at: Option<Micros>,
}

const MAX_CALLS: usize = 2;

impl Shard {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            dirty: VecDeque::new(),
            urgent: VecDeque::new(),
            due: None,
            calls: [None, None],
            breaker: Breaker::new(seed),
            hello_at: Some(0),
        }
    }

    /// Returns whether a request waits and no call is in flight.
    pub(super) fn is_urgent(&self) -> bool {
        !self.urgent.is_empty() && self.calls.iter().all(Option::is_none)
    }

    /// Returns when the next batch must be taken.
    pub(super) fn wake_at(&self) -> Option<Micros> {
        let has_room = self.calls.iter().any(Option::is_none);
        let has_work = !self.dirty.is_empty() || !self.urgent.is_empty();
        if !has_room || !(has_work || self.hello_at.is_some()) {
            return None;
        }
        match self.breaker.state() {
            State::Ended | State::HalfOpen => None,
            State::Open if has_work => Some(self.breaker.probe_at()),
            State::Open => self.hello_at.map(|at| at.max(self.breaker.probe_at())),
            State::Closed if self.is_urgent() => Some(0),
            State::Closed => earlier(self.due, self.hello_at),
        }
    }

    /// Takes the call with this number.
    pub(super) fn take_call(&mut self, number: u64) -> Option<Call> {
        let mut calls = self.calls.iter_mut();
        calls
            .find(|place| place.as_ref().is_some_and(|it| it.number == number))?
            .take()
    }
}

pub(super) fn earlier(one: Option<Micros>, other: Option<Micros>) -> Option<Micros> {
    one.into_iter().chain(other).min()
}
