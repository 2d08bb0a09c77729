//! What one request has taken of a budget of bytes.

use http::{Request, header::CONTENT_ENCODING};
use palisade_core::{BudgetFull, Charge, Guard, Phase, Reason, Violation};
use std::sync::{Arc, Weak};

/// What a body of a few bytes takes is not charged.
pub(crate) const FREE_BYTES: u64 = 1024;
/// The budget is charged in advance for as many bytes as have arrived, at least and at most for
/// this many. So most frames need no charge, and a short body is not charged much too high.
const MIN_STEP_BYTES: u64 = 2 * 1024;
const MAX_STEP_BYTES: u64 = 16 * 1024;
/// What is charged for a byte of a body: the byte, and its copy in what the handler makes of it.
const WEIGHT: u64 = 2;
/// What a decoder of gzip or deflate takes from its creation on.
const DECODER_BYTES: u64 = 48 * 1024;

/// The charge of one request, and the most that it may become.
#[derive(Debug)]
pub(crate) struct Account {
    charge: Charge,
    max_held: u64,
}

/// The account of a request whose body an inner layer may decompress. In its extensions. Weak, so
/// that a handler that keeps the extensions does not keep the charge.
#[derive(Clone, Debug)]
struct Joinable(Weak<Account>);

// === Account ===

impl Account {
    pub(crate) fn new(charge: Charge, max_held: u64) -> Self {
        Self { charge, max_held }
    }

    /// Lets the layer that limits decompressed bytes find this account.
    pub(crate) fn insert_into<B>(self: &Arc<Self>, request: &mut Request<B>) {
        let joinable = Joinable(Arc::downgrade(self));
        request.extensions_mut().insert(joinable);
    }

    /// Returns the account of a request whose body was decompressed between the layer that charges
    /// it and this one.
    pub(crate) fn of_decompressed<B>(request: &Request<B>) -> Option<Arc<Self>> {
        let joinable = request.extensions().get::<Joinable>()?;
        // What decompresses a body removes this.
        if is_encoded(request) {
            return None;
        }
        joinable.0.upgrade()
    }

    /// Charges a frame of which `paid` bytes are paid in advance, and more bytes in advance.
    /// Returns how many bytes are then paid in advance.
    #[inline(never)]
    pub(crate) fn charge_frame(&self, bytes: u64, paid: u64) -> Result<u64, BudgetFull> {
        let left = self.left();
        if left == 0 {
            return Ok(u64::MAX); // What follows is expected to be passed on.
        }
        let unpaid = bytes.saturating_sub(paid);
        let price = |bytes: u64| bytes.saturating_mul(WEIGHT).min(left);
        let arrived = self.charge.bytes() / WEIGHT;
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
    pub(crate) fn charge_decoder(&self) -> Result<(), BudgetFull> {
        self.charge.take(DECODER_BYTES.min(self.left()))
    }

    /// Gives everything back.
    pub(crate) fn give_back(&self) {
        self.charge.give_back();
    }

    fn left(&self) -> u64 {
        self.max_held.saturating_sub(self.charge.bytes())
    }
}

/// Returns whether the body of the request is compressed, as its head says.
pub(crate) fn is_encoded<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(CONTENT_ENCODING)
}

/// Returns the violation of a body for which the budget has no room.
pub(crate) fn bytes_full(phase: Phase, full: BudgetFull) -> Violation {
    let BudgetFull {
        limit, observed, ..
    } = full;
    Violation::new(Guard::BodyLimit, Reason::BytesFull, phase, limit, observed)
}
