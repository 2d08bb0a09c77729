//! The handle of a fleet, and what it is for a policy.

use crate::{
    digest::Secret,
    machine::{Asked, Claim, MAX_CLAIMS, Machine, Micros, Outcome},
};
use palisade_core::{ClientKey, ConfigError, Mode, Recorder};
use palisade_guard::{Clock, Gcra};
use palisade_rate_limit::{Account, Alone, CountsFleet, FleetQuotas, LocalDebts, Verdict};
use parking_lot::Mutex;
use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

/// What counts a rate limit over several nodes. Clones are the same one. Without a clone and
/// without a policy, it reports what is left and ends.
///
/// The task that asks the store ends with [`shutdown`](Self::shutdown) or with its runtime, and not
/// when the last handle is dropped. See the [crate docs](crate).
///
/// ```
/// use palisade_fleet::{Fleet, MemoryStore};
/// use palisade_rate_limit::{Quota, RateLimitLayer};
/// # use palisade_testkit::example::*;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// # let secret = "of 16 bytes at least, the same on all nodes";
/// let fleet = Fleet::with_store(MemoryStore::new()).nodes(8).secret(secret).start()?;
/// let layer = RateLimitLayer::new(Quota::per_second(10).burst(40).fleet(&fleet))?;
/// assert_eq!(status(&layer, request_from([192, 0, 2, 1])).await, 200);
/// fleet.shutdown().await; // After the server.
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Fleet {
    pub(crate) shared: Arc<Shared>,
    handle: Arc<Handle>,
    policy: Arc<str>,
    on_failure: OnFailure,
}

/// What a policy does while a node cannot ask the other ones: the store does not answer, a request
/// has waited for 5 ms, or 1,024 wait already.
///
/// The table of the node limits at the whole quota as well. In [`Mode::Shadow`] it alone does.
///
/// ```
/// use palisade_fleet::{Fleet, MemoryStore, OnFailure};
/// use palisade_rate_limit::{Quota, RateLimitLayer};
/// # use palisade_testkit::example::*;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// # let secret = "of 16 bytes at least, the same on all nodes";
/// let fleet = Fleet::with_store(MemoryStore::new()).nodes(8).secret(secret).start()?;
/// fleet.shutdown().await; // As if there was no store.
/// for (on_failure, expected, beyond) in [
///     (OnFailure::LocalShare(2.0), 25, 429),
///     (OnFailure::LocalShare(1.0), 12, 429),
///     (OnFailure::LocalFull, 100, 429),
///     (OnFailure::Deny, 0, 503),
/// ] {
///     let layer = Quota::per_minute(100).fleet(&fleet.on_failure(on_failure));
///     let layer = RateLimitLayer::new(layer)?;
///     let mut served = 0;
///     while status(&layer, request_from([192, 0, 2, 1])).await == 200 {
///         served += 1;
///     }
///     assert_eq!(served, expected);
///     assert_eq!(status(&layer, request_from([192, 0, 2, 1])).await, beyond);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum OnFailure {
    /// Each node admits its share of the limit times this number, above 0: of the rate, and of the
    /// burst, but one request at least, and never more than the whole limit. With 2.0, all nodes
    /// together admit at most twice the limit, if the burst is at least half the number of nodes. A
    /// client whose requests all reach one node gets less than its limit.
    LocalShare(f64),
    /// Each node admits the whole limit, so that all nodes together admit as many times the limit
    /// as there are nodes. For clients whose requests reach one node, as by a balancer that keeps
    /// them there, or by connections that stay open.
    LocalFull,
    /// Refuses all requests with 503 and `Retry-After`, for the reason
    /// [`FleetUnavailable`](palisade_core::Reason::FleetUnavailable).
    Deny,
}

/// What the clones and the policies hold. The task ends with the last of them.
struct Handle(Arc<Shared>);

/// What all clones have in common.
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    pub(crate) clock: Clock,
    /// Wakes the task that asks the store.
    pub(crate) changed: Notify,
    pub(crate) secret: Secret,
    pub(crate) mode: Mode,
    pub(crate) recorder: Recorder,
    /// The microseconds of the last call.
    pub(crate) round_trip: AtomicU64,
    /// The milliseconds by which the clock of the store has moved; `u64::MAX` if it is its own.
    pub(crate) skew: AtomicU64,
    pub(crate) is_stopping: AtomicBool,
    /// Whether the task has ended.
    pub(crate) ended: watch::Sender<bool>,
}

pub(crate) struct State {
    pub(crate) machine: Machine,
    policies: Vec<Joined>,
}

/// A policy that has joined.
struct Joined {
    name: Arc<str>,
    /// Without it, the name is free.
    alive: Weak<()>,
    quotas: Vec<Gcra>,
    /// The number of the rule of the first quota, for each multiple of the quotas.
    rules: Vec<(u32, Vec<Option<u16>>)>,
}

/// What counts one policy.
struct PolicyOfFleet {
    shared: Arc<Shared>,
    index: usize,
    name: Arc<str>,
    quotas: usize,
    /// The rule of its only quota. `None` if there are several, or in shadow mode.
    only_rule: Option<u16>,
    on_failure: OnFailure,
    _alive: Arc<()>,
    _handle: Arc<Handle>,
}

/// The longest wait of a request for an answer of the store.
pub(crate) const MAX_WAIT: Duration = Duration::from_millis(5);
/// The time in which [`Fleet::shutdown`] reports what is left.
const SHUTDOWN_WITHIN: Duration = Duration::from_millis(20);
/// The most policies of one fleet, at one time.
const MAX_POLICIES: usize = 64;

// === Fleet ===

impl Fleet {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            handle: Arc::new(Handle(Arc::clone(&shared))),
            shared,
            policy: Arc::from("default"),
            on_failure: OnFailure::LocalShare(2.0),
        }
    }

    /// Returns the same fleet for a policy with this name, 1 to 64 bytes. It must be the same on
    /// all nodes, and no other policy of this node may have it. A fleet has 64 policies at most.
    /// Defaults to `"default"`.
    ///
    /// ```
    /// use palisade_fleet::{Fleet, MemoryStore};
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), palisade_fleet::ConfigError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// let fleet = Fleet::with_store(MemoryStore::new()).nodes(8).secret(secret).start()?;
    /// let api = RateLimitLayer::new(Quota::per_second(10).fleet(&fleet))?;
    /// let login = RateLimitLayer::new(Quota::per_minute(5).fleet(&fleet.named("login")))?;
    ///
    /// let error = RateLimitLayer::new(Quota::per_hour(1).fleet(&fleet)).unwrap_err();
    /// let text = "invalid fleet:
    ///   named is \"default\", allowed is a name of its own for each policy: use Fleet::named";
    /// assert_eq!(error.to_string(), text);
    /// # let _ = (api, login);
    /// # Ok(())
    /// # }
    /// ```
    pub fn named(&self, policy: impl AsRef<str>) -> Self {
        Self {
            policy: Arc::from(policy.as_ref()),
            ..self.clone()
        }
    }

    /// Returns the same fleet for a policy that does this while the other nodes cannot be asked.
    /// Defaults to `OnFailure::LocalShare(2.0)`.
    ///
    /// ```
    /// use palisade_fleet::{Fleet, MemoryStore, OnFailure};
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), palisade_fleet::ConfigError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// let fleet = Fleet::with_store(MemoryStore::new()).nodes(8).secret(secret).start()?;
    /// // A balancer keeps each client on one node.
    /// let api = fleet.on_failure(OnFailure::LocalFull);
    /// let api = RateLimitLayer::new(Quota::per_second(10).fleet(&api))?;
    /// let login = fleet.named("login").on_failure(OnFailure::Deny);
    /// let login = RateLimitLayer::new(Quota::per_minute(5).fleet(&login))?;
    /// # let _ = (api, login);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_failure(&self, on_failure: OnFailure) -> Self {
        Self {
            on_failure,
            ..self.clone()
        }
    }

    /// Returns a key that is the same on all nodes, for a client that is known by `name`: an
    /// authenticated user or tenant. A key from [`ClientKey::of`] is another one in each process,
    /// so each node alone would count it.
    ///
    /// ```
    /// use palisade_core::{KeyOutcome, RequestHead};
    /// use palisade_fleet::{Fleet, MemoryStore};
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    ///
    /// /// Put into the request by your authentication.
    /// #[derive(Clone)]
    /// struct User(&'static str);
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// let fleet = Fleet::with_store(MemoryStore::new()).nodes(8).secret(secret).start()?;
    /// let layer = RateLimitLayer::new(Quota::per_hour(1).fleet(&fleet))?;
    /// let layer = layer.key(move |head: &RequestHead<'_>| match head.extensions.get::<User>() {
    ///     Some(User(name)) => KeyOutcome::Key(fleet.key(name)),
    ///     None => KeyOutcome::Refuse,
    /// });
    /// for (user, expected) in [("alice", 200), ("bob", 200), ("alice", 429)] {
    ///     let mut request = Request::new(Empty::<Bytes>::new());
    ///     request.extensions_mut().insert(User(user));
    ///     assert_eq!(status(&layer, request).await, expected);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn key(&self, name: impl AsRef<[u8]>) -> ClientKey {
        self.key_of(&[name.as_ref()])
    }

    /// Returns a key that is the same on all nodes, for a client that is known by several parts,
    /// such as a tenant and a route. The same bytes in other parts are another key.
    ///
    /// ```
    /// use palisade_fleet::{Fleet, MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), palisade_fleet::ConfigError> {
    /// let node = || Fleet::with_store(MemoryStore::new()).nodes(8).secret("equal on all nodes");
    /// let (first, second) = (node().start()?, node().start()?);
    /// let key = first.key_of(&[b"tenant 4711", b"/search"]);
    /// assert_eq!(second.key_of(&[b"tenant 4711", b"/search"]), key);
    /// assert_ne!(first.key_of(&[b"tenant 4711/", b"search"]), key);
    /// # Ok(())
    /// # }
    /// ```
    pub fn key_of(&self, parts: &[&[u8]]) -> ClientKey {
        ClientKey::of_digest(self.shared.secret.key(parts))
    }

    /// Reports what is not reported yet, once, and ends. From then on each policy does what it is
    /// told to do on [failure](Self::on_failure). Takes 20 ms at most. Call it when the server has
    /// ended.
    ///
    /// Cancel safety: the task reports and ends also if this future is dropped after its first
    /// poll.
    ///
    /// ```
    /// use palisade_fleet::{Fleet, MemoryStore};
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let secret = "of 16 bytes at least, the same on all nodes";
    /// let redis = MemoryStore::new();
    /// let node = || Fleet::with_store(redis.clone()).nodes(2).secret(secret).start();
    /// let layer = |fleet: &Fleet| RateLimitLayer::new(Quota::per_hour(4).fleet(fleet));
    /// let first = node()?;
    /// assert_eq!(status(&layer(&first)?, request_from([192, 0, 2, 1])).await, 200);
    /// first.shutdown().await;
    ///
    /// let second = layer(&node()?)?;
    /// for expected in [200, 200, 200, 429] {
    ///     assert_eq!(status(&second, request_from([192, 0, 2, 1])).await, expected);
    ///     tokio::time::sleep(Duration::from_millis(25)).await;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn shutdown(&self) {
        self.shared.stop();
        let mut ended = self.shared.ended.subscribe();
        let _ = timeout(SHUTDOWN_WITHIN, ended.wait_for(|ended| *ended)).await;
        self.shared.end();
    }
}

impl CountsFleet for Fleet {
    fn join(&self, quotas: &[Gcra]) -> Result<Arc<dyn FleetQuotas>, ConfigError> {
        let mut error = ConfigError::new("invalid fleet");
        let name = &*self.policy;
        error.check(
            (1..=64).contains(&name.len()),
            "named",
            &name,
            "1 to 64 bytes",
        );
        if let OnFailure::LocalShare(times) = self.on_failure {
            let allowed = "LocalShare of a number above 0";
            error.check(times > 0.0, "on_failure", &self.on_failure, allowed);
        }
        let mut state = self.shared.state.lock();
        state
            .policies
            .iter_mut()
            .for_each(Joined::forget_if_dropped);
        let is_taken = state.policies.iter().any(|policy| *policy.name == *name);
        let allowed = "a name of its own for each policy: use Fleet::named";
        error.check(!is_taken, "named", &name, allowed);
        let vacant = state.policies.iter().position(Joined::is_vacant);
        let index = vacant.unwrap_or(state.policies.len());
        error.check(index < MAX_POLICIES, "policies", &(index + 1), "64 at most");
        error.into_result()?;
        let alive = Arc::new(());
        let joined = Joined {
            name: Arc::clone(&self.policy),
            alive: Arc::downgrade(&alive),
            quotas: quotas.to_vec(),
            rules: Vec::new(),
        };
        match state.policies.get_mut(index) {
            Some(place) => *place = joined,
            None => state.policies.push(joined),
        }
        let only_rule = match state.rules_of(index, 1) {
            [rule] if self.shared.mode == Mode::Enforce => *rule,
            _ => None,
        };
        drop(state);
        Ok(Arc::new(PolicyOfFleet {
            shared: Arc::clone(&self.shared),
            index,
            name: Arc::clone(&self.policy),
            quotas: quotas.len(),
            only_rule,
            on_failure: self.on_failure,
            _alive: alive,
            _handle: Arc::clone(&self.handle),
        }))
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("Fleet")
            .field("policy", &self.policy)
            .field("on_failure", &self.on_failure)
            .field("nodes", &state.machine.nodes())
            .field("state", &state.machine.state())
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.stop();
    }
}

// === Shared ===

impl Shared {
    /// Lets the task report what is left, and end.
    fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
        self.changed.notify_one();
    }

    /// No call will be made any more.
    pub(crate) fn end(&self) {
        let wakers = self.state.lock().machine.end();
        wakers.into_iter().for_each(std::task::Waker::wake);
    }

    pub(crate) fn now(&self) -> Micros {
        self.clock.now()
    }

    /// Wakes the task if it must look again.
    #[inline]
    fn wake(&self, is_changed: bool) {
        if is_changed {
            self.changed.notify_one();
        }
    }
}

impl State {
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            policies: Vec::new(),
        }
    }

    /// Returns the rules of the accounts that have `times` the quotas of the policy at `index`.
    fn rules_of(&mut self, index: usize, times: u32) -> &[Option<u16>] {
        let Self { machine, policies } = self;
        let Joined { rules, quotas, .. } = &mut policies[index];
        let known = rules.iter().position(|(of, _)| *of == times);
        let place = known.unwrap_or_else(|| {
            let rule = |gcra: &Gcra| {
                let gcra = gcra.times(times);
                machine.rule(gcra.period(), gcra.burst())
            };
            rules.push((times, quotas.iter().map(rule).collect()));
            rules.len() - 1
        });
        &rules[place].1
    }
}

impl Joined {
    fn is_vacant(&self) -> bool {
        self.name.is_empty()
    }

    fn forget_if_dropped(&mut self) {
        if self.alive.strong_count() == 0 {
            self.name = Arc::from("");
        }
    }
}

// === PolicyOfFleet ===

/// The accounts of a request, each under each quota.
struct Claims {
    all: [Claim; MAX_CLAIMS],
    /// The number of the quota of each.
    quotas: [u8; MAX_CLAIMS],
    len: usize,
}

impl PolicyOfFleet {
    #[inline]
    fn claim(&self, key: ClientKey, quota: usize, rule: u16, account: usize) -> Claim {
        let number = OF_FLEET | (self.index << 2 | quota) as u32;
        Claim {
            tag: ClientKey::account_hash(key.to_hash(), number).max(1),
            rule,
            account: account as u8,
        }
    }

    /// Returns what `accounts` are in this node. Those for which the nodes have no common name, or
    /// for which there is no room, are missing.
    #[inline]
    fn claims(&self, state: &mut State, accounts: &[Account]) -> Claims {
        let none = Claim {
            tag: 0,
            rule: 0,
            account: 0,
        };
        let mut claims = Claims {
            all: [none; MAX_CLAIMS],
            quotas: [0; MAX_CLAIMS],
            len: 0,
        };
        for (index, account) in accounts.iter().enumerate() {
            if account.on_all_nodes().is_none() {
                warn_once_of_own_keys();
                state.machine.count_local_only();
                continue;
            }
            let mut lost = 0;
            for (quota, rule) in state.rules_of(self.index, account.times).iter().enumerate() {
                let (Some(rule), true) = (rule, claims.len < MAX_CLAIMS) else {
                    lost += 1;
                    continue;
                };
                claims.all[claims.len] = self.claim(account.key, quota, *rule, index);
                claims.quotas[claims.len] = quota as u8;
                claims.len += 1;
            }
            for _ in 0..lost {
                state.machine.count_local_only();
            }
        }
        claims
    }

    /// Returns the account of a claim on all nodes.
    fn digest(&self, claims: &Claims, accounts: &[Account], index: usize) -> [u64; 2] {
        let claim = claims.all[index];
        let account = accounts[usize::from(claim.account)];
        let (client, number) = account.on_all_nodes().unwrap_or_default();
        let secret = &self.shared.secret;
        secret.account(&self.name, claims.quotas[index], client, number)
    }

    fn alone(&self, machine: &Machine, now: Micros) -> Alone {
        match self.on_failure {
            _ if self.shared.mode == Mode::Shadow => Alone::Full,
            OnFailure::LocalFull => Alone::Full,
            OnFailure::Deny => Alone::Deny(Duration::from_micros(machine.retry_in(now))),
            OnFailure::LocalShare(times) => {
                Alone::Share((times / f64::from(machine.nodes())).min(1.0))
            }
        }
    }

    fn verdict(&self, outcome: Outcome, state: &State, now: Micros) -> Verdict {
        match outcome {
            Outcome::Admit => Verdict::Admit,
            Outcome::Deny { wait, account } => Verdict::Deny {
                wait: Duration::from_micros(wait),
                account: account.into(),
            },
            Outcome::Local => Verdict::Local,
            Outcome::Ask => Verdict::Ask,
            Outcome::Alone => Verdict::Alone(self.alone(&state.machine, now)),
        }
    }
}

/// Logs that clients are counted by each node alone, because their keys differ in each process.
#[cold]
fn warn_once_of_own_keys() {
    #[cfg(feature = "tracing")]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            tracing::warn!(
                target: "palisade",
                "fleet: a key from ClientKey::of is another one in each process, so each node alone \
                 counts its client: use Fleet::key; this is logged once",
            );
        });
    }
}

/// Added to the numbers of accounts, for those of a fleet.
const OF_FLEET: u32 = 1 << 30;

impl Claims {
    #[inline]
    fn get(&self) -> &[Claim] {
        &self.all[..self.len]
    }
}

impl FleetQuotas for PolicyOfFleet {
    fn admit(
        &self,
        accounts: &[Account],
        cost: u32,
        now: Micros,
        local: &mut dyn FnMut() -> bool,
    ) -> Verdict {
        let mut state = self.shared.state.lock();
        // The usual case: one account, one quota, and the machine knows it.
        if let ([account], Some(rule)) = (accounts, self.only_rule)
            && account.times == 1
        {
            let claim = self.claim(account.key, 0, rule, 0);
            if let Some(outcome) = state.machine.check_known(claim, cost, now, local) {
                let is_changed = state.machine.take_changed();
                let verdict = self.verdict(outcome, &state, now);
                drop(state);
                self.shared.wake(is_changed);
                return verdict;
            }
        }
        let claims = self.claims(&mut state, accounts);
        let digest = |index| self.digest(&claims, accounts, index);
        let mut outcome = state.machine.check(claims.get(), cost, now, local, &digest);
        if self.shared.mode == Mode::Shadow {
            outcome = state
                .machine
                .in_shadow(outcome, claims.get(), cost, now, local, &digest);
        }
        let verdict = self.verdict(outcome, &state, now);
        let is_changed = state.machine.take_changed();
        drop(state);
        self.shared.wake(is_changed);
        verdict
    }

    fn ask(
        &self,
        accounts: &[Account],
        cost: u32,
    ) -> Pin<Box<dyn Future<Output = Verdict> + Send>> {
        let now = self.shared.now();
        let mut state = self.shared.state.lock();
        let claims = self.claims(&mut state, accounts);
        let digest = |index| self.digest(&claims, accounts, index);
        let asked = state.machine.ask(claims.get(), cost, now, &digest);
        let decided = match asked {
            Asked::Decided(outcome) => Err(self.verdict(outcome, &state, now)),
            Asked::Waits(number) => Ok(number),
        };
        let alone = self.alone(&state.machine, now);
        let is_changed = state.machine.take_changed();
        drop(state);
        self.shared.wake(is_changed);
        let number = match decided {
            Err(verdict) => return Box::pin(std::future::ready(verdict)),
            Ok(number) => number,
        };
        let waiting = Waiting {
            shared: Arc::clone(&self.shared),
            number,
            is_in_vain: false,
        };
        Box::pin(async move {
            match waiting.outcome().await {
                Outcome::Admit => Verdict::Admit,
                Outcome::Deny { wait, account } => Verdict::Deny {
                    wait: Duration::from_micros(wait),
                    account: account.into(),
                },
                _ => Verdict::Alone(alone),
            }
        })
    }

    fn clock(&self) -> Clock {
        self.shared.clock
    }

    fn report(&self, accounts: &[Account], cells: u32, debts: &dyn LocalDebts) {
        let now = self.shared.now();
        let mut state = self.shared.state.lock();
        let claims = self.claims(&mut state, accounts);
        let digest = |index| self.digest(&claims, accounts, index);
        let paid = |index: usize| {
            let account = accounts[usize::from(claims.all[index].account)];
            now + debts.debt(account, claims.quotas[index].into())
        };
        state
            .machine
            .report(claims.get(), cells, now, &paid, &digest);
        let is_changed = state.machine.take_changed();
        drop(state);
        self.shared.wake(is_changed);
    }

    fn take_back(&self, accounts: &[Account], cells: u32) {
        let mut state = self.shared.state.lock();
        let claims = self.claims(&mut state, accounts);
        state.machine.take_back(claims.get(), cells);
    }
}

impl fmt::Debug for PolicyOfFleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyOfFleet")
            .field("name", &self.name)
            .field("quotas", &self.quotas)
            .field("on_failure", &self.on_failure)
            .finish_non_exhaustive()
    }
}

/// A request that waits. Dropped, it waits no longer.
struct Waiting {
    shared: Arc<Shared>,
    number: u32,
    is_in_vain: bool,
}

impl Waiting {
    async fn outcome(mut self) -> Outcome {
        let outcome = poll_fn(|cx| {
            let mut state = self.shared.state.lock();
            match state.machine.poll(self.number, cx.waker()) {
                Some(outcome) => Poll::Ready(outcome),
                None => Poll::Pending,
            }
        });
        let outcome = timeout(MAX_WAIT, outcome).await;
        self.is_in_vain = outcome.is_err();
        outcome.unwrap_or(Outcome::Alone)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.machine.leave(self.number, self.is_in_vain);
    }
}
