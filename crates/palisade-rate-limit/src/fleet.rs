//! A policy whose quotas are counted over several nodes.

use crate::{
    Account, Decision, Limiter, Policy, QuotaState, TableLimiter,
    limiter::{Checked, Deferred},
    nodes::{Alone, FleetHandle, FleetQuotas, Verdict},
};
use palisade_core::{ClientKey, ConfigError};
use palisade_guard::Occupancy;
use parking_lot::Mutex;
use std::{fmt, sync::Arc, time::Duration};

/// Applies a policy that several nodes count together.
pub(crate) struct FleetLimiter {
    inner: Arc<Inner>,
}

struct Inner {
    /// The whole quota, on this node alone: an upper bound, whatever the other nodes say.
    table: TableLimiter,
    fleet: Arc<dyn FleetQuotas>,
    /// What the clock of the fleet is ahead of that of the table, in microseconds.
    ahead: u64,
    /// The part of the quota that this node admits if it is alone, and its limiter.
    share: Mutex<Option<(f64, Arc<TableLimiter>)>>,
}

/// The number of accounts of one request for which no memory is allocated: those of the client, and
/// of three networks around it.
const FEW: usize = 4;

/// Added to the numbers of accounts, for those of a node that is alone.
const ALONE: u32 = 1 << 31;

/// When a request that costs more than the part of a node may be sent again.
const RECOVERY: Duration = Duration::from_secs(1);

/// The accounts of one request.
struct Accounts {
    few: [Account; FEW],
    len: usize,
    /// All of them, if they are more than a few.
    many: Vec<Account>,
}

// === FleetLimiter ===

impl FleetLimiter {
    /// Counts `policy` over the nodes of `fleet`, and in `table` for this node.
    pub(crate) fn new(
        table: TableLimiter,
        policy: &Policy,
        fleet: &FleetHandle,
    ) -> Result<Self, ConfigError> {
        let fleet = fleet.0.join(&policy.compile()?)?;
        let now = tokio::time::Instant::now();
        let ahead = fleet
            .clock()
            .micros(now)
            .wrapping_sub(table.clock().micros(now));
        let inner = Arc::new(Inner {
            table,
            fleet,
            ahead,
            share: Mutex::new(None),
        });
        Ok(Self { inner })
    }
}

/// Returns what an account is in the share of a node that is alone.
fn of_node_alone(account: &Account) -> Account {
    let mut alone = *account;
    alone.key = account.key.account(ALONE);
    alone
}

impl Inner {
    /// Charges the table of this node. Returns the number of accounts that were charged.
    fn charge(&self, accounts: &[Account], cost: u32, now: u64) -> (usize, Decision) {
        let mut accounts = accounts.iter().copied();
        self.table.check_accounts_at(&mut accounts, cost, now)
    }

    /// Takes back what [`charge`](Self::charge) has charged.
    fn refund(&self, accounts: &[Account], cost: u32) {
        for account in accounts {
            self.table.correct(*account, cost, 0);
        }
    }

    /// Decides by what the nodes together say, and by the number of accounts that this node has
    /// charged, and what it says.
    #[inline(never)]
    fn decide(
        &self,
        verdict: Verdict,
        (charged, local): (usize, Decision),
        accounts: &[Account],
        cost: u32,
    ) -> Checked {
        match verdict {
            Verdict::Admit => Checked::admitted(accounts.len()),
            Verdict::Deny { wait, account } => {
                self.refund(&accounts[..charged], cost);
                Checked::refused(0, account, Decision::Deny { wait })
            }
            Verdict::Local => Checked::refused(charged, charged, local),
            Verdict::Ask => Checked::deferred(accounts.len()),
            Verdict::Alone(alone) => self.decide_alone(alone, accounts, cost),
        }
    }

    /// Decides about a request that this node has charged, and that the other nodes have not
    /// decided about.
    fn decide_alone(&self, alone: Alone, accounts: &[Account], cost: u32) -> Checked {
        let (refusing, decision) = match alone {
            Alone::Full => (0, Decision::Admit),
            Alone::Deny(wait) => (0, Decision::Unavailable { wait }),
            Alone::Share(share) => self.charge_share(share, accounts, cost),
        };
        if decision == Decision::Admit {
            self.fleet.report(accounts, cost, &self.table);
            return Checked::admitted(accounts.len());
        }
        self.refund(accounts, cost);
        Checked::refused(0, refusing, decision)
    }

    /// Charges the accounts of a node that is alone, or none of them. Returns the index of the one
    /// that refuses.
    fn charge_share(&self, share: f64, accounts: &[Account], cost: u32) -> (usize, Decision) {
        let share = self.share(share);
        let (charged, decision) =
            share.check_accounts(&mut accounts.iter().map(of_node_alone), cost);
        match decision {
            Decision::Admit => {}
            _ => accounts[..charged]
                .iter()
                .for_each(|account| share.correct(of_node_alone(account), cost, 0)),
        }
        let decision = match decision {
            // The whole quota has as many, and is counted again when the other nodes answer.
            Decision::NeverPossible { .. } => Decision::Unavailable { wait: RECOVERY },
            decision => decision,
        };
        (charged, decision)
    }

    fn present_share(&self) -> Option<Arc<TableLimiter>> {
        let present = self.share.lock();
        present.as_ref().map(|(_, limiter)| Arc::clone(limiter))
    }

    /// Returns the limiter for a part of the quota.
    fn share(&self, share: f64) -> Arc<TableLimiter> {
        let mut present = self.share.lock();
        if let Some((of, limiter)) = &*present
            && *of == share
        {
            return Arc::clone(limiter);
        }
        let limiter = Arc::new(self.table.part(share));
        *present = Some((share, Arc::clone(&limiter)));
        limiter
    }
}

impl Limiter for FleetLimiter {
    #[inline]
    fn check(&self, key: ClientKey, cost: u32) -> Decision {
        if cost == 0 {
            return Decision::Admit;
        }
        let (client, inner) = ([Account::of_client(key)], &*self.inner);
        let (now, mut local) = (inner.table.now(), Decision::Admit);
        let in_fleet = now.wrapping_add(inner.ahead);
        let verdict = inner.fleet.admit(&client, cost, in_fleet, &mut || {
            local = inner.table.check_at(key, cost, now);
            local == Decision::Admit
        });
        match verdict {
            Verdict::Admit => Decision::Admit,
            Verdict::Ask => Decision::Deferred,
            // A client that has nothing left, or that this node refuses, is not charged.
            verdict => inner.decide(verdict, (0, local), &client, cost).decision,
        }
    }

    fn check_accounts(
        &self,
        accounts: &mut dyn Iterator<Item = Account>,
        cost: u32,
    ) -> (usize, Decision) {
        let accounts = Accounts::collect(accounts);
        let checked = self.check_or_defer(&mut accounts.get().iter().copied(), cost);
        let checked = match checked.decision {
            Decision::Deferred => self.inner.decide_alone(Alone::Full, accounts.get(), cost),
            _ => checked,
        };
        (checked.charged, checked.decision)
    }

    fn check_or_defer(&self, accounts: &mut dyn Iterator<Item = Account>, cost: u32) -> Checked {
        let accounts = Accounts::collect(accounts);
        let accounts = accounts.get();
        if cost == 0 {
            return Checked::admitted(accounts.len());
        }
        let inner = &*self.inner;
        let (now, mut local) = (inner.table.now(), (0, Decision::Admit));
        let in_fleet = now.wrapping_add(inner.ahead);
        let verdict = inner.fleet.admit(accounts, cost, in_fleet, &mut || {
            local = inner.charge(accounts, cost, now);
            local.1 == Decision::Admit
        });
        inner.decide(verdict, local, accounts, cost)
    }

    fn defer(&self, accounts: &mut dyn Iterator<Item = Account>, cost: u32) -> Deferred {
        let (accounts, inner) = (Accounts::collect(accounts), Arc::clone(&self.inner));
        let asked = inner.fleet.ask(accounts.get(), cost);
        Box::pin(async move {
            let accounts = accounts.get();
            match asked.await {
                Verdict::Deny { wait, account } => {
                    inner.refund(accounts, cost);
                    Checked::refused(0, account, Decision::Deny { wait })
                }
                Verdict::Alone(alone) => inner.decide_alone(alone, accounts, cost),
                _ => Checked::admitted(accounts.len()),
            }
        })
    }

    fn admit_deferred(&self, accounts: &mut dyn Iterator<Item = Account>, cost: u32) {
        let accounts = Accounts::collect(accounts);
        let inner = &*self.inner;
        inner.fleet.report(accounts.get(), cost, &inner.table);
    }

    fn charges_all_or_none(&self) -> bool {
        true
    }

    fn refund(&self, account: Account, cost: u32) {
        self.inner.table.correct(account, cost, 0);
    }

    fn correct(&self, account: Account, charged: u32, cells: u32) {
        let Inner { table, fleet, .. } = &*self.inner;
        table.correct(account, charged, cells);
        // Only of a client that was counted alone.
        let (alone, share) = (of_node_alone(&account), self.inner.present_share());
        if let Some(share) = share.filter(|share| share.is_in_debt(alone)) {
            share.correct(alone, charged, cells);
        }
        match cells.checked_sub(charged) {
            Some(0) => {}
            Some(more) => fleet.report(&[account], more, table),
            None => fleet.take_back(&[account], charged - cells),
        }
    }

    fn quotas(&self, account: Account) -> Vec<QuotaState> {
        self.inner.table.quotas(account)
    }

    fn with_policy(&self, policy: Policy) -> Result<Arc<dyn Limiter>, ConfigError> {
        self.inner.table.with_policy(policy)
    }

    fn table_for(&self, policy: &Policy) -> Result<TableLimiter, ConfigError> {
        self.inner.table.table_for(policy)
    }

    fn occupancy(&self) -> Option<Occupancy> {
        self.inner.table.occupancy()
    }
}

impl fmt::Debug for FleetLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetLimiter")
            .field("table", &self.inner.table)
            .field("fleet", &self.inner.fleet)
            .finish_non_exhaustive()
    }
}

// === Accounts ===

impl Accounts {
    #[inline]
    fn collect(accounts: &mut dyn Iterator<Item = Account>) -> Self {
        let none = Account::of_client(ClientKey::SHARED);
        let (mut few, mut len, mut many) = ([none; FEW], 0, Vec::new());
        for account in accounts {
            match few.get_mut(len) {
                Some(slot) => *slot = account,
                None if many.is_empty() => many.extend(few.into_iter().chain([account])),
                None => many.push(account),
            }
            len += 1;
        }
        Self { few, len, many }
    }

    #[inline]
    fn get(&self) -> &[Account] {
        if self.len <= FEW {
            &self.few[..self.len]
        } else {
            &self.many
        }
    }
}
