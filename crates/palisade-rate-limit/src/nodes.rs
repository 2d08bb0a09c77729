//! What a fleet of nodes is for a policy. `Fleet` of the crate palisade-fleet implements it.

use crate::Account;
use palisade_core::ConfigError;
use palisade_guard::{Clock, Gcra};
use std::{fmt, pin::Pin, sync::Arc, time::Duration};

/// Counts the quotas of a [`Policy`](crate::Policy) over several nodes: the argument of
/// [`Quota::fleet`](crate::Quota::fleet). `Fleet` of the crate palisade-fleet is one.
pub trait CountsFleet: fmt::Debug + Send + Sync + 'static {
    /// Returns what counts a policy with these quotas, which are those of a client.
    #[doc(hidden)]
    fn join(&self, quotas: &[Gcra]) -> Result<Arc<dyn FleetQuotas>, ConfigError>;
}

/// The quotas of one policy, as the nodes count them together.
///
/// An account that the nodes cannot name alike, or for which there is no room, counts as admitted:
/// the limit of the node alone holds.
#[doc(hidden)]
pub trait FleetQuotas: fmt::Debug + Send + Sync + 'static {
    /// Charges `accounts` with `cost` cells for all nodes, if they and `local` admit them. Calls
    /// `local` at most once, and not if an account is known to have nothing left.
    ///
    /// `now` is in microseconds of [`Self::clock`].
    fn admit(
        &self,
        accounts: &[Account],
        cost: u32,
        now: u64,
        local: &mut dyn FnMut() -> bool,
    ) -> Verdict;

    /// Returns the clock of `now`.
    fn clock(&self) -> Clock;

    /// Waits until the other nodes have been asked about `accounts`. Ends within a few
    /// milliseconds, and never by [`Verdict::Local`] or [`Verdict::Ask`].
    fn ask(&self, accounts: &[Account], cost: u32)
    -> Pin<Box<dyn Future<Output = Verdict> + Send>>;

    /// Charges `accounts` with what was admitted without the other nodes, or more than was asked
    /// for. `debts` are the debts that the table of this node has for each of them and each quota.
    fn report(&self, accounts: &[Account], cells: u32, debts: &dyn LocalDebts);

    /// Takes up to `cells` back, of those that the other nodes do not know yet.
    fn take_back(&self, accounts: &[Account], cells: u32);
}

/// The debts that the table of this node has.
#[doc(hidden)]
pub trait LocalDebts {
    /// Returns the debt of `account` under the quota with this index, in microseconds.
    fn debt(&self, account: Account, quota: usize) -> u64;
}

/// What the nodes together say about a request.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It is admitted, and charged.
    Admit,
    /// The account with this index has nothing left for as long.
    Deny {
        /// The time until it has.
        wait: Duration,
        /// The index.
        account: usize,
    },
    /// `local` has refused it.
    Local,
    /// `local` has admitted it, and the other nodes must be asked.
    Ask,
    /// `local` has admitted it, and the other nodes cannot be asked.
    Alone(Alone),
}

/// What a node does that cannot ask the other ones.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Alone {
    /// It admits the whole quota.
    Full,
    /// It admits this part of the quota, at most 1.
    Share(f64),
    /// It refuses until the other nodes may answer again.
    Deny(Duration),
}

/// What counts the quotas of a policy.
#[derive(Clone)]
pub(crate) struct FleetHandle(pub(crate) Arc<dyn CountsFleet>);

// === FleetHandle ===

impl PartialEq for FleetHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for FleetHandle {}

impl fmt::Debug for FleetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
