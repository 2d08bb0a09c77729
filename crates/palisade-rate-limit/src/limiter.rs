//! The limiter trait, and the limiter over a table of fixed size.

use crate::{
    Account, ConfigError, Policy, QuotaState,
    nodes::LocalDebts,
    quota::{BURST_BITS, MAX_QUOTAS, PERIOD_BITS},
};
use palisade_core::{ClientKey, GaugeSource};
use palisade_guard::{Clock, Denied, Gcra, Occupancy, Table};
use parking_lot::Mutex;
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

/// Decides whether a request of a client is admitted.
///
/// [`TableLimiter`] is the limiter of this crate. With the feature `governor` the keyed limiters
/// of that crate implement this trait as well.
pub trait Limiter: Send + Sync + 'static {
    /// Charges `key` with `cost` cells if its quota has that many left. Called once per request;
    /// must not block or panic. A cost of 0 is always admitted.
    ///
    /// ```
    /// use palisade_rate_limit::{ClientKey, Decision, Limiter, RateLimitLayer};
    /// use std::time::Duration;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    ///
    /// /// Denies every request while the server restores a backup.
    /// struct Restoring;
    ///
    /// impl Limiter for Restoring {
    ///     fn check(&self, _: ClientKey, _: u32) -> Decision {
    ///         Decision::Deny { wait: Duration::from_secs(30) }
    ///     }
    /// }
    ///
    /// let service = RateLimitLayer::with_limiter(Restoring).layer(service_fn(handler));
    /// let refused = service.oneshot(Request::default()).await?;
    /// assert_eq!(refused.status(), 429);
    /// assert_eq!(refused.headers()["retry-after"], "30");
    /// # Ok(())
    /// # }
    /// ```
    fn check(&self, key: ClientKey, cost: u32) -> Decision;

    /// Charges the accounts of one request, as [`check`](Self::check) charges a client, until one
    /// of them refuses: first that of the client, then those of its networks. Returns how many were
    /// charged, and the decision of the one that refused, or [`Decision::Admit`]. Called in place
    /// of `check` if the layer has limits of [wider networks](crate::RateLimitLayer::wider) or
    /// other options.
    ///
    /// Defaults to `check` for the client: a limiter without this method has no limits of networks.
    ///
    /// ```
    /// use palisade_rate_limit::{Account, ClientKey, Decision, Limiter, Quota, TableLimiter};
    /// use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_rate_limit::ConfigError> {
    /// let limiter = TableLimiter::new(Quota::per_second(1).burst(2))?;
    /// let network = Account::of_network(ClientKey::of("network"), 8);
    /// let check = |client: &str, cost| {
    ///     let client = Account::of_client(ClientKey::of(client));
    ///     limiter.check_accounts(&mut [client, network].into_iter(), cost)
    /// };
    /// for client in ["a", "b", "c", "d", "e", "f", "g", "h"] {
    ///     assert_eq!(check(client, 2), (2, Decision::Admit));
    /// }
    /// // The client has two left, and its network none.
    /// assert_eq!(check("i", 1), (1, Decision::Deny { wait: Duration::from_millis(125) }));
    /// # Ok(())
    /// # }
    /// ```
    fn check_accounts(
        &self,
        accounts: &mut dyn Iterator<Item = Account>,
        cost: u32,
    ) -> (usize, Decision) {
        match accounts.next().map(|client| self.check(client.key, cost)) {
            None => (0, Decision::Admit),
            Some(Decision::Admit) => (1, Decision::Admit),
            Some(decision) => (0, decision),
        }
    }

    /// Corrects a charge of `charged` cells to `cells`: charges the difference, up to one burst, or
    /// gives it back, down to no debt. Called by [`settle`](crate::RateLimitLayer::settle), and
    /// when a wider network refuses what its client was charged for.
    ///
    /// Defaults to nothing: a limiter without this method leaves each request charged as before.
    ///
    /// ```
    /// use palisade_rate_limit::{Account, ClientKey, Decision, Limiter, Quota, TableLimiter};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_rate_limit::ConfigError> {
    /// let limiter = TableLimiter::new(Quota::per_minute(1).burst(2))?;
    /// let (key, alice) = (ClientKey::of("alice"), Account::of_client(ClientKey::of("alice")));
    /// assert_eq!(limiter.check(key, 2), Decision::Admit);
    /// limiter.correct(alice, 2, 1);
    /// assert_eq!(limiter.check(key, 1), Decision::Admit);
    /// assert_ne!(limiter.check(key, 1), Decision::Admit);
    /// # Ok(())
    /// # }
    /// ```
    fn correct(&self, account: Account, charged: u32, cells: u32) {
        let _ = (account, charged, cells);
    }

    /// Returns what is left of each quota of `account`, for the header fields of
    /// [`name`](crate::RateLimitLayer::name). Always the same quotas in the same order.
    ///
    /// Defaults to none: a limiter without this method sends no such fields.
    ///
    /// ```
    /// use palisade_rate_limit::{Account, ClientKey, Limiter, Quota, TableLimiter};
    /// use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_rate_limit::ConfigError> {
    /// let limiter = TableLimiter::new(Quota::per_second(1).burst(5))?;
    /// limiter.check(ClientKey::of("alice"), 2);
    /// let alice = Account::of_client(ClientKey::of("alice"));
    /// let [quota] = limiter.quotas(alice)[..] else { unreachable!() };
    /// assert_eq!((quota.burst, quota.window), (5, Duration::from_secs(5)));
    /// assert_eq!((quota.available, quota.next), (3, Some(Duration::from_secs(1))));
    /// # Ok(())
    /// # }
    /// ```
    fn quotas(&self, account: Account) -> Vec<QuotaState> {
        let _ = account;
        Vec::new()
    }

    /// Returns a limiter that applies another policy to the same accounts, for
    /// [`quota_for`](crate::RateLimitLayer::quota_for). A client that goes from one to the other
    /// keeps its debt, as by [`TableLimiter::set`].
    ///
    /// # Errors
    ///
    /// If the policy is invalid. Defaults to an error: a limiter without this method has one policy
    /// for all clients.
    fn with_policy(&self, policy: Policy) -> Result<Arc<dyn Limiter>, ConfigError> {
        let _ = policy;
        Err(has_one_policy())
    }

    /// As [`with_policy`](Self::with_policy), for this node's part of a policy that several nodes
    /// count.
    #[doc(hidden)]
    fn table_for(&self, policy: &Policy) -> Result<TableLimiter, ConfigError> {
        let _ = policy;
        Err(has_one_policy())
    }

    /// Returns the number of keys held, for the metrics. Defaults to `None`: not reported.
    fn occupancy(&self) -> Option<Occupancy> {
        None
    }

    /// As [`check_accounts`](Self::check_accounts), but may leave the decision to
    /// [`defer`](Self::defer), as [`check`](Self::check) of the limiters of this crate.
    #[doc(hidden)]
    fn check_or_defer(&self, accounts: &mut dyn Iterator<Item = Account>, cost: u32) -> Checked {
        let (charged, decision) = self.check_accounts(accounts, cost);
        Checked::decided(charged, decision)
    }

    /// Decides what [`check_or_defer`](Self::check_or_defer) has left, within milliseconds.
    #[doc(hidden)]
    fn defer(&self, accounts: &mut dyn Iterator<Item = Account>, cost: u32) -> Deferred {
        let checked = self.check_or_defer(accounts, cost);
        Box::pin(std::future::ready(checked))
    }

    /// Admits what [`check_or_defer`](Self::check_or_defer) has left, without a decision.
    #[doc(hidden)]
    fn admit_deferred(&self, accounts: &mut dyn Iterator<Item = Account>, cost: u32) {
        let _ = (accounts, cost);
    }

    /// Returns whether a refusal by one account leaves none of them charged. Else those before it
    /// stay charged.
    #[doc(hidden)]
    fn charges_all_or_none(&self) -> bool {
        false
    }

    /// Takes back a charge that another account of the request has made void.
    #[doc(hidden)]
    fn refund(&self, account: Account, cost: u32) {
        self.correct(account, cost, 0);
    }

    /// Returns the gauges of this limiter: those that another layer has made for it, or else the
    /// result of `make`, which takes the number of keys evicted before. Layers that share a
    /// limiter therefore count its keys once.
    #[doc(hidden)]
    fn levels(&self, make: &dyn Fn(u64) -> Arc<dyn GaugeSource>) -> Arc<dyn GaugeSource> {
        make(0)
    }
}

/// The decision of a [`Limiter`] about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// The request is admitted and charged.
    Admit,
    /// The request is denied for now; nothing was charged.
    Deny {
        /// The time after which the same request would be admitted if nothing is charged meanwhile.
        wait: Duration,
    },
    /// The request can never be admitted: it costs more than the burst.
    NeverPossible {
        /// The number of cells that the quota grants at once.
        burst: u32,
    },
    /// The request is refused because the other nodes that count the client cannot be asked.
    /// Nothing was charged.
    Unavailable {
        /// The time after which they may be.
        wait: Duration,
    },
    /// The request is charged, and other nodes must be asked about it.
    #[doc(hidden)]
    Deferred,
}

/// The error of a limiter that cannot apply another policy.
fn has_one_policy() -> ConfigError {
    let mut error = ConfigError::new("invalid rate limit");
    let allowed = "a TableLimiter: this limiter has one policy for all clients";
    error.push("quota_for", "set", allowed);
    error
}

/// What a [`Limiter`] says about the accounts of one request.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The number of accounts that are charged.
    pub(crate) charged: usize,
    /// The index of the account that refuses the request.
    pub(crate) refusing: usize,
    pub(crate) decision: Decision,
}

/// A decision that other nodes are asked about.
#[doc(hidden)]
pub type Deferred = Pin<Box<dyn Future<Output = Checked> + Send>>;

/// Applies a [`Policy`] over a table of fixed size. A check uses one atomic word per client and
/// quota, takes no lock, allocates nothing, and reads tokio's clock once.
///
/// Put the limiter into an `Arc` to change its policy while the server runs:
///
/// ```
/// use palisade_rate_limit::{Quota, RateLimitLayer, TableLimiter};
/// use std::sync::Arc;
/// # use palisade_testkit::example::*;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let limiter = Arc::new(TableLimiter::new(Quota::per_minute(1).burst(2))?);
/// let service = RateLimitLayer::with_limiter(limiter.clone()).layer(service_fn(handler));
/// assert_eq!(service.clone().oneshot(Request::default()).await?.status(), 200);
/// limiter.set(Quota::per_minute(1).burst(1))?;
/// assert_eq!(service.oneshot(Request::default()).await?.status(), 429);
/// # Ok(())
/// # }
/// ```
///
/// If the table is full of clients in debt, the client with the least debt is evicted to make room
/// for a new one: the evicted client gets its whole burst back, and the metrics count the eviction.
pub struct TableLimiter {
    debts: Arc<Debts>,
    /// The quotas, the one with the longest debts first, so that it keeps its index when others
    /// are added. 0 means no quota. A quota is packed into one word, so that a change needs no lock
    /// and no reader sees a partial one.
    quotas: [AtomicU64; MAX_QUOTAS],
    /// The gauges, while a layer holds them.
    gauges: Mutex<Option<Weak<dyn GaugeSource>>>,
}

/// The debts of all accounts. The limiters of one table share them.
struct Debts {
    table: Table,
    clock: Clock,
    /// The longest debt that any quota so far allows, in microseconds. Never shrinks.
    max_debt: AtomicU64,
}

// === Limiter ===

impl<L: Limiter + ?Sized> Limiter for Arc<L> {
    fn check(&self, key: ClientKey, cost: u32) -> Decision {
        (**self).check(key, cost)
    }

    fn check_accounts(
        &self,
        accounts: &mut dyn Iterator<Item = Account>,
        cost: u32,
    ) -> (usize, Decision) {
        (**self).check_accounts(accounts, cost)
    }

    fn correct(&self, account: Account, charged: u32, cells: u32) {
        (**self).correct(account, charged, cells);
    }

    fn quotas(&self, account: Account) -> Vec<QuotaState> {
        (**self).quotas(account)
    }

    fn with_policy(&self, policy: Policy) -> Result<Arc<dyn Limiter>, ConfigError> {
        (**self).with_policy(policy)
    }

    fn table_for(&self, policy: &Policy) -> Result<TableLimiter, ConfigError> {
        (**self).table_for(policy)
    }

    fn occupancy(&self) -> Option<Occupancy> {
        (**self).occupancy()
    }

    fn check_or_defer(&self, accounts: &mut dyn Iterator<Item = Account>, cost: u32) -> Checked {
        (**self).check_or_defer(accounts, cost)
    }

    fn defer(&self, accounts: &mut dyn Iterator<Item = Account>, cost: u32) -> Deferred {
        (**self).defer(accounts, cost)
    }

    fn admit_deferred(&self, accounts: &mut dyn Iterator<Item = Account>, cost: u32) {
        (**self).admit_deferred(accounts, cost);
    }

    fn charges_all_or_none(&self) -> bool {
        (**self).charges_all_or_none()
    }

    fn refund(&self, account: Account, cost: u32) {
        (**self).refund(account, cost);
    }

    fn levels(&self, make: &dyn Fn(u64) -> Arc<dyn GaugeSource>) -> Arc<dyn GaugeSource> {
        (**self).levels(make)
    }
}

// === Decision ===

impl Decision {
    fn denied(denied: Denied, gcra: Gcra) -> Self {
        match denied {
            Denied::Wait(micros) => Self::Deny {
                wait: Duration::from_micros(micros),
            },
            Denied::Never => Self::NeverPossible {
                burst: gcra.burst(),
            },
        }
    }
}

// === Checked ===

impl Checked {
    pub(crate) const fn decided(charged: usize, decision: Decision) -> Self {
        Self {
            charged,
            refusing: charged,
            decision,
        }
    }

    pub(crate) const fn admitted(charged: usize) -> Self {
        Self::decided(charged, Decision::Admit)
    }

    pub(crate) const fn refused(charged: usize, refusing: usize, decision: Decision) -> Self {
        Self {
            charged,
            refusing,
            decision,
        }
    }

    pub(crate) const fn deferred(charged: usize) -> Self {
        Self::decided(charged, Decision::Deferred)
    }
}

// === TableLimiter ===

impl TableLimiter {
    /// The default number of keys in a table: 8 MiB.
    #[doc(hidden)]
    pub const DEFAULT_CAPACITY: usize = 1 << 20;

    /// Creates a limiter for `policy` with room for 1,048,576 keys: 8 MiB, allocated at once.
    ///
    /// ```
    /// use palisade_rate_limit::{ClientKey, Decision, Limiter, Quota, TableLimiter};
    /// use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_rate_limit::ConfigError> {
    /// let limiter = TableLimiter::new(Quota::per_second(1).burst(2))?;
    /// let alice = ClientKey::of("alice");
    /// assert_eq!(limiter.check(alice, 2), Decision::Admit);
    /// assert_eq!(limiter.check(alice, 1), Decision::Deny { wait: Duration::from_secs(1) });
    /// assert_eq!(limiter.check(alice, 3), Decision::NeverPossible { burst: 2 });
    /// assert_eq!(limiter.check(ClientKey::of("bob"), 1), Decision::Admit);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If a quota is invalid or its debts are too long for the table, or if the policy is counted
    /// over [several nodes](Policy::fleet): a check of this limiter cannot wait for them, so that
    /// is for [`RateLimitLayer::new`](crate::RateLimitLayer::new).
    pub fn new(policy: impl Into<Policy>) -> Result<Self, ConfigError> {
        let policy = policy.into();
        policy.check_local()?;
        Self::of_node(&policy, Self::DEFAULT_CAPACITY)
    }

    /// Creates a limiter for `policy` on this node alone, with room for `keys` keys.
    pub(crate) fn of_node(policy: &Policy, keys: usize) -> Result<Self, ConfigError> {
        let quotas = policy.compile()?;
        Ok(Self::over(Arc::new(Debts::new(keys)), quotas))
    }

    fn over(debts: Arc<Debts>, quotas: Vec<Gcra>) -> Self {
        let limiter = Self {
            debts,
            quotas: Default::default(),
            gauges: Mutex::new(None),
        };
        limiter.set_quotas(quotas);
        limiter
    }

    /// Returns a limiter over the same table that admits `share` of each quota, between 0 and 1.
    pub(crate) fn part(&self, share: f64) -> Self {
        let quotas = self.quotas.iter().filter_map(unpack);
        let quotas = quotas.map(|gcra| gcra.part(share)).collect();
        Self::over(Arc::clone(&self.debts), quotas)
    }

    /// Sets the number of keys that the table can hold, at 8 bytes each, rounded up to a power of
    /// two between 16 and 16,777,216. A client in debt takes one key for each quota of the policy.
    /// Defaults to 1,048,576.
    ///
    /// ```
    /// use palisade_rate_limit::{ClientKey, Limiter, Quota, TableLimiter};
    /// # fn main() -> Result<(), palisade_rate_limit::ConfigError> {
    /// let limiter = TableLimiter::new(Quota::per_hour(1))?.capacity(1_000);
    /// for client in 0..5_000 {
    ///     limiter.check(ClientKey::of(&client), 1);
    /// }
    /// let table = limiter.occupancy().expect("a table reports it");
    /// assert_eq!(table.capacity, 1_024); // It has not grown.
    /// assert!(table.keys <= 1_024 && table.evicted > 3_000);
    /// # Ok(())
    /// # }
    /// ```
    pub fn capacity(mut self, keys: usize) -> Self {
        let max_debt = self.debts.max_debt.load(Relaxed);
        self.debts = Arc::new(Debts::new(keys));
        self.debts.max_debt.store(max_debt, Relaxed);
        self
    }

    /// Replaces the policy, from the next check on. The debt of a client, which is a time, is kept;
    /// from its next request on it is capped at the new quota's burst times period. So no client
    /// waits longer than one that has just used up the new burst, and no client gets a second
    /// burst.
    ///
    /// Quotas are ordered by their longest debt (burst times period). The first new quota takes
    /// over the debts of the first old quota, the second those of the second, and so on. A quota
    /// without an old counterpart starts without debts.
    ///
    /// ```
    /// use palisade_rate_limit::{ClientKey, Decision, Limiter, Quota, TableLimiter};
    /// use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_rate_limit::ConfigError> {
    /// let limiter = TableLimiter::new(Quota::per_second(1).burst(60))?;
    /// let alice = ClientKey::of("alice");
    /// assert_eq!(limiter.check(alice, 60), Decision::Admit); // A debt of 60 s.
    /// limiter.set(Quota::per_second(1).burst(5))?; // The debt is now 5 s.
    /// let denied = Decision::Deny { wait: Duration::from_secs(1) };
    /// assert_eq!(limiter.check(alice, 1), denied);
    ///
    /// assert!(limiter.set(Quota::per_second(0)).is_err());
    /// assert_eq!(limiter.check(alice, 1), denied); // As before.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Self::new`]. The present policy is then kept.
    pub fn set(&self, policy: impl Into<Policy>) -> Result<(), ConfigError> {
        let policy = policy.into();
        policy.check_local()?;
        self.set_quotas(policy.compile()?);
        Ok(())
    }

    fn set_quotas(&self, quotas: Vec<Gcra>) {
        // Longer than any debt of a network, of which the quotas are multiples of these.
        let longest = |widest: &Gcra| widest.max_debt() + Gcra::MAX_ROUNDING;
        let max_debt = quotas.first().map_or(0, longest);
        self.debts.max_debt.fetch_max(max_debt, Relaxed);
        let words = quotas.into_iter().map(pack).chain(std::iter::repeat(0));
        for (quota, word) in self.quotas.iter().zip(words) {
            // Stored after `max_debt`, so that a reader of this quota sees a large enough bound.
            quota.store(word, Release);
        }
    }

    /// Returns the time in microseconds, of [`Self::clock`].
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.debts.clock.now()
    }

    pub(crate) fn clock(&self) -> Clock {
        self.debts.clock
    }

    /// As [`check`](Limiter::check), at `now`. `cost` is not 0.
    #[inline]
    pub(crate) fn check_at(&self, key: ClientKey, cost: u32, now: u64) -> Decision {
        match self.only_quota() {
            Some(only) => self.charge(key, cost, now, only),
            None => self.check_all(Account::of_client(key), cost, now),
        }
    }

    pub(crate) fn is_in_debt(&self, account: Account) -> bool {
        let (now, max_debt) = (self.now(), self.debts.max_debt.load(Relaxed));
        let mut words = self.words(account);
        words.any(|(key, _)| self.debts.table.debt(key, now, max_debt) > 0)
    }

    /// As [`check_accounts`](Limiter::check_accounts), at `now`.
    #[inline]
    pub(crate) fn check_accounts_at(
        &self,
        accounts: &mut dyn Iterator<Item = Account>,
        cost: u32,
        now: u64,
    ) -> (usize, Decision) {
        let mut charged = 0;
        let only = self.only_quota();
        for account in accounts {
            let decision = match only {
                Some(only) => self.charge(account.key, cost, now, only.times(account.times)),
                None => self.check_all(account, cost, now),
            };
            match decision {
                Decision::Admit => charged += 1,
                _ => return (charged, decision),
            }
        }
        (charged, Decision::Admit)
    }

    /// Returns the quota of a policy that has no other one.
    #[inline]
    fn only_quota(&self) -> Option<Gcra> {
        unpack(&self.quotas[0]).filter(|_| self.quotas[1].load(Relaxed) == 0)
    }

    /// Returns the key and the quota of each word of `account`, the one with the longest debts
    /// first.
    fn words(
        &self,
        account: Account,
    ) -> impl DoubleEndedIterator<Item = (ClientKey, Gcra)> + use<> {
        let quotas = self.quotas.each_ref().map(unpack);
        quotas
            .into_iter()
            .enumerate()
            .filter_map(move |(index, gcra)| {
                let key = account.key.account(index as u32); // At most `MAX_QUOTAS`.
                Some((key, gcra?.times(account.times)))
            })
    }

    /// Checks a request against several quotas, each with its own word. All quotas are checked
    /// before any is charged, and each is charged only if it still grants the request. A race can
    /// therefore charge a client for a request that is then denied, but never admit a request
    /// uncharged. The quota that recovers soonest is charged first, which keeps that loss small.
    #[inline(never)]
    fn check_all(&self, account: Account, cost: u32, now: u64) -> Decision {
        let max_debt = self.debts.max_debt.load(Relaxed);
        let soonest_first = self.words(account).rev();
        let decision = soonest_first.fold(Decision::Admit, |decision, (key, gcra)| {
            let debt = self.debts.table.debt(key, now, max_debt);
            match gcra.decide(debt, cost) {
                Ok(_) => decision,
                // A debt left over from a wider quota: `charge` denies the request and caps the
                // debt.
                Err(_) if debt > gcra.max_debt() => {
                    stricter(decision, self.charge_one_of_several(key, cost, now, gcra))
                }
                Err(denied) => stricter(decision, Decision::denied(denied, gcra)),
            }
        });
        if decision != Decision::Admit {
            return decision;
        }
        for (key, gcra) in self.words(account).rev() {
            let charged = self.charge_one_of_several(key, cost, now, gcra);
            if charged != Decision::Admit {
                return charged;
            }
        }
        Decision::Admit
    }

    #[inline(never)]
    fn charge_one_of_several(&self, key: ClientKey, cost: u32, now: u64, gcra: Gcra) -> Decision {
        self.charge(key, cost, now, gcra)
    }

    /// Charges one quota, or denies the request. A denied request changes only a debt that is
    /// longer than the quota allows: it is capped.
    #[inline(always)]
    fn charge(&self, key: ClientKey, cost: u32, now: u64, gcra: Gcra) -> Decision {
        let decide = |debt| match gcra.decide(debt, cost) {
            Ok(debt) => Ok((Ok(()), debt)),
            // A debt left over from a wider quota is capped here, so that the client's wait ends.
            Err(denied) if debt > gcra.max_debt() => Ok((Err(denied), gcra.max_debt())),
            Err(denied) => Err(denied),
        };
        let Debts {
            table, max_debt, ..
        } = &*self.debts;
        match table.update(key, now, max_debt.load(Relaxed), decide) {
            Some(Ok(Ok(()))) => Decision::Admit,
            Some(Ok(Err(denied)) | Err(denied)) => Decision::denied(denied, gcra),
            // Other threads changed this key's word in every try, which takes a flood of requests
            // with the same key. Denying one of them is fair.
            None => Decision::Deny {
                wait: Duration::from_micros(gcra.period()),
            },
        }
    }
}

impl Limiter for TableLimiter {
    fn check(&self, key: ClientKey, cost: u32) -> Decision {
        if cost == 0 {
            return Decision::Admit;
        }
        self.check_at(key, cost, self.now())
    }

    fn check_accounts(
        &self,
        accounts: &mut dyn Iterator<Item = Account>,
        cost: u32,
    ) -> (usize, Decision) {
        if cost == 0 {
            return (accounts.count(), Decision::Admit);
        }
        self.check_accounts_at(accounts, cost, self.now())
    }

    // Without a call of another method, which would be one by a pointer.
    fn check_or_defer(&self, accounts: &mut dyn Iterator<Item = Account>, cost: u32) -> Checked {
        let (charged, decision) = TableLimiter::check_accounts(self, accounts, cost);
        Checked::decided(charged, decision)
    }

    fn correct(&self, account: Account, charged: u32, cells: u32) {
        if charged == cells {
            return;
        }
        let now = self.debts.clock.now();
        let max_debt = self.debts.max_debt.load(Relaxed);
        for (key, gcra) in self.words(account) {
            let correct = |debt| Ok::<_, ()>(((), gcra.correct(debt, charged, cells)));
            // Without a result, a flood of requests with this key has changed its word in every
            // try. What is then lost is one correction among a thousand decisions.
            let _ = self.debts.table.update(key, now, max_debt, correct);
        }
    }

    fn quotas(&self, account: Account) -> Vec<QuotaState> {
        let now = self.debts.clock.now();
        let max_debt = self.debts.max_debt.load(Relaxed);
        let state = |(key, gcra): (ClientKey, Gcra)| {
            let (available, next) = gcra.available(self.debts.table.debt(key, now, max_debt));
            let window = Duration::from_micros(gcra.max_debt());
            let next = next.map(Duration::from_micros);
            QuotaState::new(gcra.burst(), window, available, next)
        };
        self.words(account).map(state).collect()
    }

    fn with_policy(&self, policy: Policy) -> Result<Arc<dyn Limiter>, ConfigError> {
        policy.check_local()?;
        Ok(Arc::new(self.table_for(&policy)?))
    }

    fn table_for(&self, policy: &Policy) -> Result<TableLimiter, ConfigError> {
        let quotas = policy.compile()?;
        Ok(Self::over(Arc::clone(&self.debts), quotas))
    }

    fn occupancy(&self) -> Option<Occupancy> {
        let Debts {
            table,
            clock,
            max_debt,
        } = &*self.debts;
        Some(table.occupancy(clock.now(), max_debt.load(Relaxed)))
    }

    fn levels(&self, make: &dyn Fn(u64) -> Arc<dyn GaugeSource>) -> Arc<dyn GaugeSource> {
        let mut last = self.gauges.lock();
        if let Some(gauges) = last.as_ref().and_then(Weak::upgrade) {
            return gauges;
        }
        // The metrics keep the totals of dropped gauges, so new gauges must not count them again.
        let evicted_before = last
            .as_ref()
            .and_then(|_| self.occupancy())
            .map_or(0, |occupancy| occupancy.evicted);
        let gauges = make(evicted_before);
        *last = Some(Arc::downgrade(&gauges));
        gauges
    }
}

impl LocalDebts for TableLimiter {
    fn debt(&self, account: Account, quota: usize) -> u64 {
        let key = account.key.account(quota as u32); // At most `MAX_QUOTAS`.
        let max_debt = self.debts.max_debt.load(Relaxed);
        self.debts.table.debt(key, self.now(), max_debt)
    }
}

impl fmt::Debug for TableLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quotas: Vec<Gcra> = self.quotas.iter().filter_map(unpack).collect();
        f.debug_struct("TableLimiter")
            .field("quotas", &quotas)
            .field("table", &self.debts.table)
            .finish()
    }
}

// === Debts ===

impl Debts {
    fn new(keys: usize) -> Self {
        Self {
            table: Table::new(keys),
            clock: Clock::new(),
            max_debt: AtomicU64::new(0),
        }
    }
}

/// Combines the decisions of two quotas that must both grant a request.
fn stricter(one: Decision, other: Decision) -> Decision {
    use Decision::{Admit, Deny, NeverPossible};
    match (one, other) {
        (Admit, decision) | (decision, Admit) => decision,
        (Deny { wait: one }, Deny { wait: other }) => Deny {
            wait: one.max(other),
        },
        (NeverPossible { burst: one }, NeverPossible { burst: other }) => NeverPossible {
            burst: one.min(other),
        },
        // No quota of a table is ever unavailable or deferred.
        (never @ NeverPossible { .. }, _) | (_, never) => never,
    }
}

/// Packs a quota into one word: the burst above the period.
fn pack(gcra: Gcra) -> u64 {
    (u64::from(gcra.burst()) << PERIOD_BITS) | gcra.period()
}

/// Returns the quota in `word`, or `None` if it holds none.
fn unpack(word: &AtomicU64) -> Option<Gcra> {
    const _: () = assert!(BURST_BITS + PERIOD_BITS == u64::BITS && BURST_BITS < u32::BITS);
    let word = word.load(Acquire);
    Gcra::new(
        word & ((1 << PERIOD_BITS) - 1),
        (word >> PERIOD_BITS) as u32,
    )
}
