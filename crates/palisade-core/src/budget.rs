//! One budget of bytes for all that a server keeps of its requests.

pub(crate) mod account;

use crate::{ClientKey, ConfigError, ConnInfo, Gauge, GaugeSource, Guard, Memory, Recorder};
#[cfg(palisade_loom)]
use ::loom::sync::atomic::AtomicU64;
#[cfg(not(palisade_loom))]
use std::sync::atomic::AtomicU64;
use std::{
    fmt,
    sync::{Arc, OnceLock, Weak, atomic::Ordering::Relaxed},
};

/// The budget where no limit of the memory is known.
const DEFAULT_BYTES: u64 = 256 << 20;
/// The budget is this part of the memory.
const MEMORY_PART: u64 = 4;
/// Counters for the bytes of clients, in each of two rows. Clients share them at random, with other
/// clients in the other row. The lower one of a client's two counters holds. So a client is
/// mistaken for a large one only if both are shared with large ones: beside 200 of those, one of
/// 400 clients is. With one row it would be one of 20.
const CLIENT_COUNTERS: usize = if cfg!(palisade_loom) { 1 } else { 4096 };
/// A client that holds no more than this may use all of the budget that is left.
const SMALL_SHARE: u64 = 64 << 10;

/// A budget of bytes that all requests share. Clones are handles to the same budget.
///
/// What is [taken](Charge::take) never exceeds the [limit](Self::limit), and is given back when the
/// [`Charge`] is dropped. A client may hold no more than what it leaves of three quarters of the
/// budget. The last quarter is for clients that hold no more than 64 KiB.
///
/// ```
/// use palisade_core::{Budget, ClientKey};
///
/// let budget = Budget::new(1 << 20)?;
/// let (alice, bob) = (ClientKey::of("alice"), ClientKey::of("bob"));
/// let uploads = budget.charge(Some(alice));
/// uploads.take(300 << 10)?;
/// assert!(uploads.take(200 << 10).is_err()); // It would leave less than it holds.
/// budget.charge(Some(bob)).take(200 << 10)?;
/// drop(uploads);
/// assert_eq!(budget.held(), 0);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Budget(Arc<Shared>);

struct Shared {
    limit: u64,
    held: AtomicU64,
    by_client: [Box<[AtomicU64]>; 2],
}

/// What one request has taken of a [`Budget`]. It is given back when this is dropped.
pub struct Charge {
    budget: Budget,
    /// The hash of the client, if it is known.
    client: Option<u64>,
    /// The connection of the request, if it is known.
    conn: Option<Arc<ConnInfo>>,
    bytes: AtomicU64,
}

/// The budget has no room left: for any client, or for this one.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetFull {
    /// The bytes that may be held: of the budget, or of this client.
    pub limit: u64,
    /// The bytes that would be held.
    pub observed: u64,
}

// === Budget ===

impl Budget {
    /// The bytes of the counters of one budget.
    #[doc(hidden)]
    pub const TABLE_BYTES: usize = 2 * CLIENT_COUNTERS * size_of::<AtomicU64>();

    /// Creates a budget of `bytes`.
    ///
    /// # Errors
    ///
    /// If `bytes` is less than 64 KiB.
    pub fn new(bytes: u64) -> Result<Self, ConfigError> {
        let mut error = ConfigError::new("the budget cannot be built");
        error.check(bytes >= SMALL_SHARE, "bytes", &bytes, "at least 65536");
        error.into_result()?;
        Ok(Self::with_limit(bytes))
    }

    /// Returns the budget of this process: a quarter of its memory, or 256 MiB where the
    /// [limit](Memory::least_limit) of the memory is not known. There is one for all guards.
    pub fn of_process() -> Self {
        static OF_PROCESS: OnceLock<Budget> = OnceLock::new();
        let budget = OF_PROCESS.get_or_init(|| {
            let memory = Memory::of_process();
            let limit = memory.least_limit();
            let part = limit.map_or(DEFAULT_BYTES, |bytes| bytes / MEMORY_PART);
            let budget = Self::with_limit(part.max(SMALL_SHARE));
            budget.report_to(&memory);
            budget
        });
        budget.clone()
    }

    fn with_limit(limit: u64) -> Self {
        let row = || (0..CLIENT_COUNTERS).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Shared {
            limit,
            held: AtomicU64::new(0),
            by_client: [row(), row()],
        }))
    }

    /// Returns the bytes that may be held.
    #[inline]
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Returns the bytes that are held.
    #[inline]
    pub fn held(&self) -> u64 {
        self.0.held.load(Relaxed)
    }

    /// Returns the part of the limit that is held, from 0 to 1. Guards take it for a
    /// [`Pressure`](crate::Pressure), so that stalled holders leave sooner.
    ///
    /// ```
    /// let budget = palisade_core::Budget::new(100_000)?;
    /// let charge = budget.charge(None);
    /// charge.take(95_000)?;
    /// assert_eq!(budget.fill(), 0.95);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn fill(&self) -> f32 {
        (self.held() as f64 / self.limit() as f64) as f32
    }

    /// Reports [`Gauge::BytesHeld`] and [`Gauge::BytesLimit`] to `recorder`.
    pub fn record_to(&self, recorder: &Recorder) {
        let gauges = Arc::downgrade(&self.0);
        recorder.register(gauges as Weak<dyn GaugeSource>);
    }

    /// Tells `memory` what is held, for [`Memory::release`], which has an example. Guards do this
    /// with the budget and the memory that they are given. To do it again changes nothing.
    pub fn report_to(&self, memory: &Memory) {
        let gauges = Arc::downgrade(&self.0);
        memory.watch(gauges);
    }

    /// Returns a charge of 0 bytes for a request of `client`, if that is known.
    pub fn charge(&self, client: Option<ClientKey>) -> Charge {
        Charge {
            budget: self.clone(),
            client: client.map(ClientKey::to_hash),
            conn: None,
            bytes: AtomicU64::new(0),
        }
    }

    /// Takes `bytes` for the client with this [hash](ClientKey::to_hash), if it is known. For a
    /// guard that keeps the number itself, and [gives it back](Self::give_back).
    ///
    /// # Errors
    ///
    /// If the budget has no room for them. Nothing is taken then.
    pub fn take(&self, client: Option<u64>, bytes: u64) -> Result<(), BudgetFull> {
        self.0.take(client, bytes)
    }

    /// Gives back what was [taken](Self::take).
    pub fn give_back(&self, client: Option<u64>, bytes: u64) {
        if let Some(own) = self.0.own(client) {
            remove(own, bytes);
        }
        self.0.held.fetch_sub(bytes, Relaxed);
    }
}

impl Shared {
    /// Returns the counters of the client with this hash.
    fn own(&self, client: Option<u64>) -> Option<[&AtomicU64; 2]> {
        let client = client?;
        let [one, other] = &self.by_client;
        let one = one.get(client as usize % CLIENT_COUNTERS)?;
        let other = other.get((client >> 32) as usize % CLIENT_COUNTERS)?;
        Some([one, other])
    }

    fn take(&self, client: Option<u64>, bytes: u64) -> Result<(), BudgetFull> {
        if bytes == 0 {
            return Ok(()); // Whatever others hold.
        }
        let add = |held: u64| held.checked_add(bytes).filter(|held| *held <= self.limit);
        let held = match self.held.fetch_update(Relaxed, Relaxed, add) {
            Ok(before) => before + bytes,
            Err(held) => {
                return Err(BudgetFull {
                    limit: self.limit,
                    observed: held.saturating_add(bytes),
                });
            }
        };
        let Some(own) = self.own(client) else {
            return Ok(());
        };
        let [one, other] = own.map(|counter| counter.fetch_add(bytes, Relaxed));
        let of_client = one.min(other).saturating_add(bytes);
        let left = (self.limit - self.limit / 4).saturating_sub(held);
        if of_client <= left.max(SMALL_SHARE) {
            return Ok(());
        }
        remove(own, bytes);
        self.held.fetch_sub(bytes, Relaxed);
        Err(BudgetFull {
            limit: left.max(SMALL_SHARE),
            observed: of_client,
        })
    }
}

fn remove(own: [&AtomicU64; 2], bytes: u64) {
    for counter in own {
        counter.fetch_sub(bytes, Relaxed);
    }
}

impl GaugeSource for Shared {
    fn guard(&self) -> Guard {
        Guard::BodyLimit
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        visit(Gauge::BytesHeld, self.held.load(Relaxed));
        visit(Gauge::BytesLimit, self.limit);
    }
}

// === Charge ===

impl Charge {
    /// Counts what is taken from now on as [charged](ConnInfo::add_charged) for a request of
    /// `conn`. Call it before anything is taken.
    ///
    /// ```
    /// use palisade_core::{Budget, ConnInfo, Prefix};
    ///
    /// let conn = ConnInfo::new(([192, 0, 2, 1], 4711).into(), None, Prefix::default());
    /// let charge = Budget::new(1 << 20)?.charge(conn.known_client()).on(conn.clone());
    /// charge.take(1000)?;
    /// assert_eq!(conn.charged_bytes(), 1000);
    /// drop(charge);
    /// assert_eq!(conn.charged_bytes(), 0);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn on(mut self, conn: Arc<ConnInfo>) -> Self {
        self.conn = Some(conn);
        self
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    ///
    /// If the budget has no room for them. Nothing is taken then.
    pub fn take(&self, bytes: u64) -> Result<(), BudgetFull> {
        self.budget.take(self.client, bytes)?;
        // Before what `give_back` removes.
        if let Some(conn) = &self.conn {
            conn.add_charged(bytes);
        }
        self.bytes.fetch_add(bytes, Relaxed);
        Ok(())
    }

    /// Gives all bytes back.
    pub fn give_back(&self) {
        self.give_back_to(0);
    }

    /// Gives back what is taken beyond `bytes`.
    #[doc(hidden)]
    pub fn give_back_to(&self, bytes: u64) {
        let before = self.bytes.fetch_min(bytes, Relaxed);
        if let Some(bytes) = before.checked_sub(bytes).filter(|bytes| *bytes > 0) {
            self.budget.give_back(self.client, bytes);
            if let Some(conn) = &self.conn {
                conn.remove_charged(bytes);
            }
        }
    }

    /// Returns the bytes that are taken.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl fmt::Display for BudgetFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, observed } = self;
        write!(f, "{observed} bytes would be held, of {limit} that may be")
    }
}

impl std::error::Error for BudgetFull {}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("held", &self.held())
            .field("limit", &self.limit())
            .finish()
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Charge")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, palisade_loom))]
mod loom;
#[cfg(all(test, not(palisade_loom)))]
mod tests;
