//! Whether the store is asked.

use super::request::Micros;

/// Stops asking a store that does not answer, and tries it again from time to time.
pub(super) struct Breaker {
    state: State,
    /// Failures one after another.
    failures: u32,
    /// When the store is tried next, if the breaker is open.
    probe_at: Micros,
    /// Times it was tried in vain.
    tries: u32,
    random: u64,
}

/// Whether a node asks the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// It does.
    Closed,
    /// It tries.
    HalfOpen,
    /// It does not.
    Open,
    /// It never does again.
    Ended,
}

/// Failures one after another that open the breaker. A call that takes too long opens it at once.
const MAX_FAILURES: u32 = 3;
/// The time until the store is tried for the first time. It doubles with each try.
const FIRST_PROBE: Micros = 250_000;
const LAST_PROBE: Micros = 800_000;

impl Breaker {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: State::Closed,
            failures: 0,
            probe_at: 0,
            tries: 0,
            random: seed | 1,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    #[inline]
    pub(super) fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Returns when the store is tried next, if the breaker is open.
    pub(super) fn probe_at(&self) -> Micros {
        self.probe_at
    }

    /// Returns the time until the store is tried next.
    pub(super) fn retry_in(&self, now: Micros) -> Micros {
        match self.state {
            State::Ended => LAST_PROBE,
            State::Closed => FIRST_PROBE,
            _ => self.probe_at.saturating_sub(now),
        }
    }

    pub(super) fn call_begins(&mut self) {
        if self.state == State::Open {
            self.state = State::HalfOpen;
        }
    }

    pub(super) fn call_answered(&mut self) {
        if self.state != State::Ended {
            self.state = State::Closed;
        }
        (self.failures, self.tries) = (0, 0);
    }

    /// Returns whether the breaker has opened.
    pub(super) fn call_failed(&mut self, is_too_late: bool, now: Micros) -> bool {
        self.failures += 1;
        let opens = match self.state {
            State::Closed => is_too_late || self.failures >= MAX_FAILURES,
            State::HalfOpen => true,
            State::Open | State::Ended => false,
        };
        if opens {
            self.state = State::Open;
            let base = (FIRST_PROBE << self.tries.min(8)).min(LAST_PROBE);
            self.tries += 1;
            // Up to 20 % more or less, so that the nodes do not all try at once.
            self.probe_at = now + base * 4 / 5 + self.next_random() % (base * 2 / 5);
        }
        opens
    }

    pub(super) fn end(&mut self) {
        self.state = State::Ended;
    }

    /// xorshift64 (Marsaglia 2003).
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
