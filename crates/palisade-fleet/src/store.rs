//! What nodes ask the store that they share, and what it answers.

use std::{error::Error, fmt, future::Future, sync::Arc, time::Duration};

/// Holds the debts of all accounts for the nodes that share it: a Redis, or
/// [`MemoryStore`](crate::MemoryStore).
///
/// A batch is charged whether or not its answer arrives, so it must not be repeated: a call that
/// fails may have charged it.
///
/// A node has at most two calls at a time for each [shard](Self::shards), never two about one
/// account, and drops one that takes longer than 40 ms. An [`Ask`] says how accounts are charged.
///
/// ```
/// use palisade_fleet::{Answer, Answers, Batch, Fleet, MemoryStore, QuotaStore, StoreError};
/// use palisade_rate_limit::{Quota, RateLimitLayer};
/// use std::sync::{Arc, atomic::{AtomicU32, Ordering::Relaxed}};
/// # use palisade_testkit::example::*;
///
/// /// Counts the requests that are charged in another store.
/// #[derive(Clone)]
/// struct Counted<S> {
///     inner: S,
///     cells: Arc<AtomicU32>,
/// }
///
/// impl<S: QuotaStore> QuotaStore for Counted<S> {
///     async fn call(&self, batch: Batch) -> Result<Answers, StoreError> {
///         let reported: u32 = batch.asks.iter().map(|ask| ask.admitted).sum();
///         let answers = self.inner.call(batch).await?;
///         let granted = answers.accounts.iter().map(|answer| match answer {
///             Answer::Granted { cells, .. } => *cells,
///             Answer::Unusable => 0,
///         });
///         self.cells.fetch_add(reported + granted.sum::<u32>(), Relaxed);
///         Ok(answers)
///     }
/// }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// # let secret = "of 16 bytes at least, the same on all nodes";
/// let store = Counted { inner: MemoryStore::new(), cells: Arc::default() };
/// let fleet = Fleet::with_store(store.clone()).nodes(8).secret(secret).start()?;
/// let layer = RateLimitLayer::new(Quota::per_minute(100).fleet(&fleet))?;
/// for _ in 0..3 {
///     assert_eq!(status(&layer, request_from([192, 0, 2, 1])).await, 200);
/// }
/// fleet.shutdown().await;
/// assert_eq!(store.cells.load(Relaxed), 3);
/// # Ok(())
/// # }
/// ```
pub trait QuotaStore: Send + Sync + 'static {
    /// Charges the accounts of `batch`, and grants what they ask for.
    ///
    /// Called on the runtime of the fleet, also without requests. It must not block. If it panics,
    /// the calls in flight count as failed.
    ///
    /// Cancel safety: the future may be dropped at any time. The next call must then not get the
    /// answer of this one.
    ///
    /// # Errors
    ///
    /// If no answer has arrived: [`StoreError::unsent`] if the batch is surely not charged, and
    /// [`StoreError::unanswered`] else.
    fn call(&self, batch: Batch) -> impl Future<Output = Result<Answers, StoreError>> + Send;

    /// Returns the number of parts of the store that may fail alone: 1, 2, 4, 8 or 16; another
    /// number is rounded up. Asked once, at the start. Defaults to 1.
    ///
    /// The accounts are divided over the parts evenly, by their digests, on all nodes in the same
    /// way. While a part does not answer, a node counts only the accounts in that part alone. Each
    /// part has calls of its own, so that more of them are made in all.
    ///
    /// ```
    /// use palisade_fleet::{
    ///     Answers, Batch, Fleet, MemoryStore, OnFailure, QuotaStore, StoreError,
    /// };
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    ///
    /// /// A store on two servers, the second of which is not there.
    /// struct Two(MemoryStore);
    ///
    /// impl QuotaStore for Two {
    ///     fn shards(&self) -> u32 {
    ///         2
    ///     }
    ///     async fn call(&self, batch: Batch) -> Result<Answers, StoreError> {
    ///         match batch.shard {
    ///             0 => self.0.call(batch).await,
    ///             _ => Err(StoreError::unsent("the second server is not there")),
    ///         }
    ///     }
    /// }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// let fleet = Fleet::with_store(Two(MemoryStore::new())).nodes(1).secret(secret).start()?;
    /// let deny = fleet.on_failure(OnFailure::Deny);
    /// let layer = RateLimitLayer::new(Quota::per_minute(60).fleet(&deny))?;
    /// // Until three calls to the second server have failed.
    /// for client in 0..200 {
    ///     let _ = status(&layer, request_from([192, 0, 2, client])).await;
    ///     tokio::time::sleep(Duration::from_millis(1)).await;
    /// }
    /// let mut served = 0;
    /// for client in 0..100 {
    ///     let status = status(&layer, request_from([198, 51, 100, client])).await;
    ///     assert!(status == 200 || status == 503);
    ///     served += u32::from(status == 200);
    /// }
    /// assert!((30..=70).contains(&served), "{served}");
    /// # Ok(())
    /// # }
    /// ```
    fn shards(&self) -> u32 {
        1
    }

    /// Returns by how much the clock of the store has moved against that of this node, if batches
    /// carry the time of the node.
    #[doc(hidden)]
    fn clock_skew(&self) -> Option<Duration> {
        None
    }
}

/// The accounts that a node reports and asks for at once: 128 at most, or none. See
/// [`QuotaStore`] for an example.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Batch {
    /// The name of the fleet.
    pub fleet: Arc<str>,
    /// The [shard](QuotaStore::shards) that all accounts are in. Counted from 0.
    pub shard: u32,
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
///
/// A store keeps one number for each account, the time at which its debt is paid, and may forget it
/// when that time has passed. The account and the number are all that it needs to keep: the quota
/// comes with each call. This is a whole store, but for its memory, which grows:
///
/// ```
/// use palisade_fleet::{Answer, Answers, Ask, Batch, Fleet, QuotaStore, StoreError};
/// use palisade_rate_limit::{Quota, RateLimitLayer};
/// use std::{collections::HashMap, sync::{Arc, Mutex}};
/// use tokio::time::Instant;
/// # use palisade_testkit::example::*;
///
/// #[derive(Clone, Default)]
/// struct Debts(Arc<Mutex<HashMap<(Arc<str>, u128), Instant>>>);
///
/// /// Returns the answer, and when the debt is paid.
/// fn charge(ask: &Ask, paid: Instant, now: Instant) -> (Answer, Instant) {
///     // What the node has admitted is charged in any case.
///     let paid = paid.max(now) + ask.period * ask.admitted;
///     let debt = (paid - now).min(ask.longest);
///     let left = (ask.period * ask.burst).saturating_sub(debt);
///     let room = (left.as_micros() / ask.period.as_micros()) as u32;
///     // Too few cells would be lost.
///     let cells = if room < ask.fewest { 0 } else { ask.asked.min(room) };
///     let debt = debt + ask.period * cells;
///     let wait = (debt + ask.period * ask.fewest).saturating_sub(ask.period * ask.burst);
///     (Answer::Granted { cells, wait }, now + debt)
/// }
///
/// impl QuotaStore for Debts {
///     async fn call(&self, batch: Batch) -> Result<Answers, StoreError> {
///         let (mut debts, now) = (self.0.lock().unwrap(), Instant::now());
///         let answer = |ask: &Ask| {
///             let paid = debts.entry((batch.fleet.clone(), ask.account)).or_insert(now);
///             let (answer, after) = charge(ask, *paid, now);
///             *paid = after;
///             answer
///         };
///         Ok(Answers::new(batch.asks.iter().map(answer).collect(), None))
///     }
/// }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// # let secret = "of 16 bytes at least, the same on all nodes";
/// let fleet = Fleet::with_store(Debts::default()).nodes(1).secret(secret).start()?;
/// let layer = RateLimitLayer::new(Quota::per_hour(8).fleet(&fleet))?;
/// for request in 0..10 {
///     let expected = if request < 8 { 200 } else { 429 };
///     assert_eq!(status(&layer, request_from([192, 0, 2, 1])).await, expected);
/// }
/// # Ok(())
/// # }
/// ```
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

/// What a store says about one account. See [`QuotaStore`] and [`Ask`] for examples.
///
/// A node believes only what can be true: more cells than it has asked for count as those asked
/// for, and a longer wait than the longest debt as that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What it grants.
    Granted {
        /// The cells, at most those asked for. They are charged.
        cells: u32,
        /// The time until the fewest cells that are of use are left; zero if they are.
        wait: Duration,
    },
    /// The store cannot hold this account. This node counts it alone, at the whole limit, and asks
    /// again after a second.
    Unusable,
}

/// Why a store gives no answer.
///
/// ```
/// use palisade_fleet::StoreError;
/// use std::{error::Error, io};
/// let error = StoreError::unsent(io::Error::from(io::ErrorKind::ConnectionRefused));
/// assert_eq!(error.to_string(), "the store cannot be reached: connection refused");
/// assert!(error.source().is_some_and(|source| source.is::<io::Error>()));
/// ```
#[derive(Debug)]
pub struct StoreError {
    is_sent: bool,
    source: Box<dyn Error + Send + Sync>,
}

impl StoreError {
    /// The batch may have been charged. It is not sent again, so that the node may have lost what
    /// it reported.
    ///
    /// ```
    /// # use palisade_fleet::StoreError;
    /// let error = StoreError::unanswered("connection reset");
    /// assert_eq!(error.to_string(), "the store has not answered: connection reset");
    /// ```
    pub fn unanswered(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            is_sent: true,
            source: source.into(),
        }
    }

    /// The batch was not sent, so that it is not charged. What it reports is reported again.
    ///
    /// ```
    /// # use palisade_fleet::StoreError;
    /// let error = StoreError::unsent("connection refused");
    /// assert_eq!(error.to_string(), "the store cannot be reached: connection refused");
    /// ```
    pub fn unsent(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            is_sent: false,
            source: source.into(),
        }
    }

    /// Returns whether the batch may have been charged.
    ///
    /// ```
    /// # use palisade_fleet::StoreError;
    /// assert!(StoreError::unanswered("connection reset").may_be_charged());
    /// assert!(!StoreError::unsent("connection refused").may_be_charged());
    /// ```
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
