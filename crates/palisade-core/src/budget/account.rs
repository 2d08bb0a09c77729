//! What one request has taken of a budget for its body.

use super::{Budget, BudgetFull, Charge};
use http::Extensions;
use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The budget is charged in advance for as many bytes as have arrived, at least and at most for
/// this many. So most frames need no charge, and a short body is not charged much too high.
const MIN_STEP_BYTES: u64 = 2 * 1024;
const MAX_STEP_BYTES: u64 = 16 * 1024;
/// What a decoder of gzip or deflate takes from its creation on.
const DECODER_BYTES: u64 = 48 * 1024;

/// The charge of one request body, and the most that it may become. For the guards that charge
/// bodies.
#[derive(Debug)]
pub struct BodyAccount {
    charge: Charge,
    /// 0 once another account is charged in place of this one.
    max_held: AtomicU64,
}

/// Something that has an account.
pub trait HasBodyAccount: fmt::Debug + Send + Sync {
    /// Returns the account.
    fn account(&self) -> &BodyAccount;
}

/// The account of a request, in its extensions. Weak, so that a handler that keeps the extensions
/// does not keep the charge.
#[derive(Clone)]
pub struct BodyAccountRef {
    account: Weak<dyn HasBodyAccount>,
    /// Whether the body was compressed where it was charged.
    is_encoded: bool,
}

// === BodyAccount ===

impl BodyAccount {
    /// What a body of a few bytes takes is not charged.
    pub const FREE_BYTES: u64 = 1024;
    /// What a request is charged at most, unless it is configured: twice the default limit of a
    /// body.
    pub const MAX_HELD: u64 = 4 << 20;

    /// What is charged for a byte of a body: the byte, and its copy in what the handler makes of
    /// it.
    pub const WEIGHT: u64 = 2;

    /// Creates an account with an empty charge.
    pub fn new(charge: Charge, max_held: u64) -> Self {
        Self {
            charge,
            max_held: AtomicU64::new(max_held),
        }
    }

    /// Returns what a body of this declared length would hold, if an empty budget had no room for
    /// that. A body that is charged no more than `max_held` may be longer.
    pub fn exceeds(budget: &Budget, declared: u64, max_held: u64) -> Option<BudgetFull> {
        let observed = declared.saturating_mul(Self::WEIGHT).min(max_held);
        let limit = budget.limit();
        (observed > limit).then_some(BudgetFull { limit, observed })
    }

    /// Returns the budget.
    pub fn budget(&self) -> &Budget {
        &self.charge.budget
    }

    /// Charges a frame of which `paid` bytes are paid in advance, and more bytes in advance.
    /// Returns how many bytes are then paid in advance.
    ///
    /// # Errors
    ///
    /// If the budget has no room for it.
    #[inline(never)]
    pub fn charge_frame(&self, bytes: u64, paid: u64) -> Result<u64, BudgetFull> {
        let left = self.left();
        if left == 0 {
            return Ok(u64::MAX); // What follows is expected to be passed on.
        }
        let unpaid = bytes.saturating_sub(paid);
        let price = |bytes: u64| bytes.saturating_mul(Self::WEIGHT).min(left);
        let arrived = self.charge.bytes() / Self::WEIGHT;
        let step = unpaid.max(arrived.clamp(MIN_STEP_BYTES, MAX_STEP_BYTES));
        let Err(full) = self.charge.take(price(step)) else {
            return Ok(step - unpaid);
        };
        // There may be room for the frame alone.
        match self.charge.take(price(unpaid)) {
            Ok(()) => Ok(0),
            Err(_) => Err(full),
        }
    }

    /// Charges a decoder.
    ///
    /// # Errors
    ///
    /// If the budget has no room for it.
    pub fn charge_decoder(&self) -> Result<(), BudgetFull> {
        self.charge.take(DECODER_BYTES.min(self.left()))
    }

    /// Charges so many bytes, and not what was charged before.
    ///
    /// # Errors
    ///
    /// If the budget has no room for more of them than before.
    pub fn charge_exactly(&self, bytes: u64) -> Result<(), BudgetFull> {
        let price = bytes.saturating_mul(Self::WEIGHT).min(self.max_held());
        match price.checked_sub(self.charge.bytes()) {
            Some(more) => self.charge.take(more),
            None => {
                self.charge.give_back_to(price);
                Ok(())
            }
        }
    }

    /// Gives everything back.
    pub fn give_back(&self) {
        self.charge.give_back();
    }

    /// Returns whether an inner layer has an account in place of this one.
    pub fn is_handed_over(&self) -> bool {
        self.max_held() == 0
    }

    /// Gives everything back and charges no more, because an inner layer has an account for the
    /// same request.
    pub fn hand_over(&self) {
        self.max_held.store(0, Relaxed);
        self.give_back();
    }

    fn max_held(&self) -> u64 {
        self.max_held.load(Relaxed)
    }

    fn left(&self) -> u64 {
        self.max_held().saturating_sub(self.charge.bytes())
    }
}

impl HasBodyAccount for BodyAccount {
    fn account(&self) -> &BodyAccount {
        self
    }
}

// === BodyAccountRef ===

impl BodyAccountRef {
    /// Lets inner layers find an account. `is_encoded` is whether the body is compressed.
    pub fn insert<A: HasBodyAccount + 'static>(
        extensions: &mut Extensions,
        account: &Arc<A>,
        is_encoded: bool,
    ) {
        let account: Weak<A> = Arc::downgrade(account);
        extensions.insert(Self {
            account,
            is_encoded,
        });
    }

    /// Returns the account that the server or an outer layer has for a request.
    pub fn of(extensions: &Extensions) -> Option<Arc<dyn HasBodyAccount>> {
        extensions.get::<Self>()?.account.upgrade()
    }

    /// Returns the same, if the body was compressed there.
    pub fn of_encoded(extensions: &Extensions) -> Option<Arc<dyn HasBodyAccount>> {
        let found = extensions.get::<Self>()?;
        found.account.upgrade().filter(|_| found.is_encoded)
    }
}

impl fmt::Debug for BodyAccountRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyAccountRef")
            .field("is_encoded", &self.is_encoded)
            .finish_non_exhaustive()
    }
}
