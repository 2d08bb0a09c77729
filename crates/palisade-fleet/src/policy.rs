//! What a fleet is for one policy.

use crate::{
    machine::{Asked, Claim, MAX_CLAIMS, Machine, Micros, Outcome},
    shared::{Handle, Shared, State},
};
use palisade_core::{ClientKey, Mode};
use palisade_guard::Clock;
use palisade_rate_limit::{Account, Alone, FleetQuotas, LocalDebts, Verdict};
use std::{fmt, future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};
use tokio::{runtime, time::timeout};

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
    /// client whose requests all reach one node gets less than its limit. A request that costs more
    /// than the share of the burst is refused with 503 and `Retry-After`.
    LocalShare(f64),
    /// Each node admits the whole limit, so that all nodes together admit as many times the limit
    /// as there are nodes. For clients whose requests reach one node, as by a balancer that keeps
    /// them there, or by connections that stay open.
    LocalFull,
    /// Refuses all requests with 503 and `Retry-After`, for the reason
    /// [`FleetUnavailable`](palisade_core::Reason::FleetUnavailable).
    Deny,
}

/// What counts one policy.
pub(crate) struct PolicyOfFleet {
    pub(crate) shared: Arc<Shared>,
    /// The place of the policy in [`State`].
    pub(crate) index: usize,
    /// A number that no other policy of the fleet has had.
    pub(crate) serial: u32,
    pub(crate) name: Arc<str>,
    pub(crate) quotas: usize,
    /// The rule of its only quota. `None` if there are several, or in shadow mode.
    pub(crate) only_rule: Option<u16>,
    pub(crate) on_failure: OnFailure,
    /// Keeps the name of the policy.
    pub(crate) _alive: Arc<()>,
    pub(crate) _handle: Arc<Handle>,
}

/// The longest wait of a request for an answer of the store.
const MAX_WAIT: Duration = Duration::from_millis(5);

/// The accounts of a request, each under each quota.
struct Claims {
    all: [Claim; MAX_CLAIMS],
    /// The number of the quota of each.
    quotas: [u8; MAX_CLAIMS],
    len: usize,
    /// Whether the nodes have no common name for an account.
    has_own_keys: bool,
}

impl PolicyOfFleet {
    #[inline]
    fn claim(&self, key: ClientKey, quota: usize, rule: u16, account: usize) -> Claim {
        let number = OF_FLEET | self.serial << 2 | quota as u32;
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
            has_own_keys: false,
        };
        for (index, account) in accounts.iter().enumerate() {
            if account.on_all_nodes().is_none() {
                claims.has_own_keys = true;
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

    /// Called without the lock: a subscriber may read the gauges of the fleet.
    #[inline]
    fn warn(&self) {
        if self.has_own_keys {
            warn_once_of_own_keys();
        }
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
        claims.warn();
        verdict
    }

    fn ask(
        &self,
        accounts: &[Account],
        cost: u32,
    ) -> Pin<Box<dyn Future<Output = Verdict> + Send>> {
        let now = self.shared.now();
        let mut state = self.shared.state.lock();
        if runtime::Handle::try_current().is_err() {
            // There is no timer that would end the wait.
            let alone = self.alone(&state.machine, now);
            return Box::pin(std::future::ready(Verdict::Alone(alone)));
        }
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
        claims.warn();
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
        claims.warn();
    }

    fn take_back(&self, accounts: &[Account], cells: u32) {
        let mut state = self.shared.state.lock();
        let claims = self.claims(&mut state, accounts);
        state.machine.take_back(claims.get(), cells);
        drop(state);
        claims.warn();
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
            // Dropped after the lock: the drop of a waker may run any code.
            let mut before = None;
            let mut state = self.shared.state.lock();
            let outcome = state.machine.poll(self.number, cx.waker(), &mut before);
            drop(state);
            outcome.map_or(Poll::Pending, Poll::Ready)
        });
        let outcome = timeout(MAX_WAIT, outcome).await;
        self.is_in_vain = outcome.is_err();
        outcome.unwrap_or(Outcome::Alone)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let waker = state.machine.leave(self.number, self.is_in_vain);
        drop(state);
        drop(waker);
    }
}
