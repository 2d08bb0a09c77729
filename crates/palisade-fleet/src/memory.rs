//! A store in the memory of one process.

use crate::{Answers, Ask, Batch, QuotaStore, StoreError};
use palisade_guard::Clock;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fmt,
    future::{Future, ready},
    sync::Arc,
};

/// A [`QuotaStore`] in the memory of one process: for tests, and for several runtimes in one
/// process. Clones share it. It holds the accounts in debt, and those whose debt was paid not long
/// ago. A call is answered at once.
///
/// Its clock is that of tokio, so that a test may pause it:
///
/// ```
/// use palisade_fleet::{Fleet, MemoryStore};
/// use palisade_rate_limit::{Quota, RateLimitLayer};
/// # use palisade_testkit::example::*;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// # let secret = "of 16 bytes at least, the same on all nodes";
/// let store = MemoryStore::new();
/// let node = || Fleet::with_store(store.clone()).nodes(2).secret(secret).start();
/// let layer = |fleet: &Fleet| RateLimitLayer::new(Quota::per_minute(2).fleet(fleet));
/// let (first, second) = (layer(&node()?)?, layer(&node()?)?);
/// let mut statuses = Vec::new();
/// for layer in [&first, &second, &first, &second] {
///     statuses.push(status(layer, request_from([192, 0, 2, 1])).await.as_u16());
///     tokio::time::sleep(Duration::from_millis(25)).await;
/// }
/// // The first node learns of the second request by the report of the third.
/// assert_eq!(statuses, [200, 200, 200, 429]);
/// tokio::time::sleep(Duration::from_secs(60)).await;
/// assert_eq!(status(&second, request_from([192, 0, 2, 1])).await, 200);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    clock: Clock,
    accounts: Mutex<Accounts>,
}

#[derive(Default)]
struct Accounts {
    /// When the debt of each account is paid.
    paid: HashMap<(Arc<str>, u128), u64>,
    /// The number of accounts at which those without debt are removed.
    full: usize,
    /// When each node was heard of.
    nodes: HashMap<(Arc<str>, u64), u64>,
}

/// How long a node counts after it was heard of, in microseconds.
const NODE_FOR: u64 = 3_000_000;

impl MemoryStore {
    /// Creates a store without debts.
    ///
    /// ```
    /// let store = palisade_fleet::MemoryStore::new();
    /// assert_eq!(format!("{store:?}"), "MemoryStore { accounts: 0 }");
    /// ```
    pub fn new() -> Self {
        Self::default()
    }
}

impl Accounts {
    /// Removes the accounts without debt, when there are twice as many as after the last time.
    fn remove_paid(&mut self, now: u64) {
        if self.paid.len() >= self.full.max(1024) {
            self.paid.retain(|_, paid| *paid > now);
            self.full = 2 * self.paid.len();
        }
    }

    /// Returns the number of nodes of a fleet, of which one is heard of at `now`.
    fn count(&mut self, fleet: &Arc<str>, node: u64, now: u64) -> u32 {
        self.nodes.insert((Arc::clone(fleet), node), now);
        self.nodes.retain(|_, heard| *heard + NODE_FOR > now);
        let nodes = self.nodes.keys().filter(|(of, _)| of == fleet);
        u32::try_from(nodes.count()).unwrap_or(u32::MAX)
    }
}

impl QuotaStore for MemoryStore {
    fn call(&self, batch: Batch) -> impl Future<Output = Result<Answers, StoreError>> + Send {
        let now = self.inner.clock.now();
        let mut accounts = self.inner.accounts.lock();
        accounts.remove_paid(now);
        let mut answer = |ask: &Ask| {
            let key = (Arc::clone(&batch.fleet), ask.account);
            ask.apply(accounts.paid.entry(key).or_default(), now)
        };
        let answers = batch.asks.iter().map(&mut answer).collect();
        let nodes = batch
            .node
            .map(|node| accounts.count(&batch.fleet, node, now));
        ready(Ok(Answers::new(answers, nodes)))
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("accounts", &self.inner.accounts.lock().paid.len())
            .finish()
    }
}
