//! What nodes ask the store that they share, and what it answers.

use std::{error::Error, fmt, future::Future, sync::Arc, time::Duration};

/// Holds the debts of all accounts for the nodes that share it: a Redis, or
/// [`MemoryStore`](crate::MemoryStore).
///
/// A batch is charged whether or not its answer arrives, so it must not be repeated: a call that
/// fails may have charged it.
pub trait QuotaStore: Send + Sync + 'static {
    /// Charges the accounts of `batch`, and grants what they ask for.
    ///
    /// Cancel safety: the future may be dropped at any time. The next call must then not get the
    /// answer of this one.
    ///
    /// # Errors
    ///
    /// If no answer has arrived.
    fn call(&self, batch: Batch) -> impl Future<Output = Result<Answers, StoreError>> + Send;

    /// Returns by how much the clock of the store has moved against that of this node, if batches
    /// carry the time of the node.
    #[doc(hidden)]
    fn clock_skew(&self) -> Option<Duration> {
        None
    }
}

/// The accounts that a node reports and asks for at once: 128 at most.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Batch {
    /// The name of the fleet.
    pub fleet: Arc<str>,
    /// The accounts. None occurs twice.
    pub asks: Vec<Ask>,
    /// The node, if the nodes of the fleet are to be counted.
    pub node: Option<u64>,
}

/// What a store answers to a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answers {
    /// One for each account, in the same order.
    pub accounts: Vec<Answer>,
    /// The number of nodes that have sent a batch with their number in the last 3 s; `None` if the
    /// batch has none.
    pub nodes: Option<u32>,
}

impl Answers {
    /// Creates the answer to a batch.
    pub fn new(accounts: Vec<Answer>, nodes: Option<u32>) -> Self {
        Self { accounts, nodes }
    }
}

/// One account of a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ask {
    /// The account: a digest under the secret of the fleet.
    pub account: u128,
    /// The time for one cell. A whole number of microseconds, and at least one.
    pub period: Duration,
    /// The number of cells that a client without debt has.
    pub burst: u32,
    /// The cells that the node has admitted and not reported yet. They are charged unconditionally.
    pub admitted: u32,
    /// The cells that the node asks for.
    pub asked: u32,
    /// The fewest cells that are of use to it, at least 1: with fewer left, none are granted.
    pub fewest: u32,
    /// The longest debt, at which a charge ends.
    pub longest: Duration,
}

/// What a store says about one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What it grants.
    Granted {
        /// The cells, at most those asked for. They are charged.
        cells: u32,
        /// The time until the fewest cells that are of use are left; zero if they are.
        wait: Duration,
    },
    /// The store cannot hold this account. It is counted by each node alone for a while.
    Unusable,
}

/// Why a store gives no answer.
#[derive(Debug)]
pub struct StoreError {
    is_sent: bool,
    source: Box<dyn Error + Send + Sync>,
}

impl StoreError {
    /// The batch may have been charged.
    pub fn unanswered(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            is_sent: true,
            source: source.into(),
        }
    }

    /// The batch was not sent, so that it is not charged.
    pub fn unsent(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            is_sent: false,
            source: source.into(),
        }
    }

    /// Returns whether the batch may have been charged.
    pub fn may_be_charged(&self) -> bool {
        self.is_sent
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_sent {
            "the store has not answered"
        } else {
            "the store cannot be reached"
        };
        write!(f, "{what}: {}", self.source)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

impl Ask {
    /// Charges and grants at `now`, in microseconds. `paid` is the time at which the debt of the
    /// account is paid; it is replaced. The same arithmetic as in `script.lua`.
    pub(crate) fn apply(&self, paid: &mut u64, now: u64) -> Answer {
        let [period, longest] = [self.period, self.longest]
            .map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1));
        let charge = |cells: u32| u64::from(cells).saturating_mul(period);
        let full = now.saturating_add(charge(self.burst));
        let after = (*paid).max(now).saturating_add(charge(self.admitted));
        let after = after.min(now.saturating_add(longest));
        let room = full.saturating_sub(after) / period;
        let cells = match u64::from(self.fewest) {
            fewest if room < fewest => 0,
            _ => u64::from(self.asked).min(room) as u32,
        };
        *paid = after.saturating_add(charge(cells));
        let wait = (*paid)
            .saturating_add(charge(self.fewest))
            .saturating_sub(full);
        Answer::Granted {
            cells,
            wait: Duration::from_micros(wait),
        }
    }
}
