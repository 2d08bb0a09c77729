//! A limiter of what works at once. Knows requests as [`Waiter`]s, and nothing of HTTP.
//!
//! A permit is taken and given back with one compare-and-swap. A request whose client is awaited
//! gives its permit up, or keeps it as long as permits are plentiful, and waits for one when it
//! goes on; only that takes a lock. [`FairShare`] and [`PerClient`] tell clients apart.

mod fair_share;
mod kept;
mod per_client;
mod permit;
mod permits;
mod priority;
mod queues;
mod sync;
mod wait;
mod waiter;

pub(crate) use fair_share::{Charge, FairShare};
pub(crate) use per_client::{ClientCount, PerClient};
pub use permit::Extras;
pub(crate) use permit::Share;
pub(crate) use priority::Priority;
pub(crate) use waiter::{Evicted, Half, Rules, Waiter};

use kept::Kept;
use palisade_core::{Event, Gauge, GaugeSource, Guard, Recorder};
use parking_lot::Mutex;
use permits::Permits;
use queues::WaitQueues;
use std::sync::{
    Arc, OnceLock,
    atomic::Ordering::{Relaxed, SeqCst},
};
use sync::{AtomicBool, AtomicU64, store_before_load};

/// How many requests may be present per permit, unless told otherwise.
const PRESENT_PER_PERMIT: usize = 8;

/// What all services of one layer share.
#[derive(Debug)]
pub(crate) struct Limiter {
    permits: Permits,
    admitted: AtomicU64,
    queues: WaitQueues,
    /// Permits are getting short: requests that wait for their clients do not keep theirs.
    is_crowded: AtomicBool,
    kept: Kept,
    fair_share: OnceLock<FairShare>,
    clients: Arc<PerClient>,
    /// Hears of a change of the limit.
    recorder: Mutex<Recorder>,
}

impl Limiter {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            permits: Permits::new(limit),
            admitted: AtomicU64::new(0),
            queues: WaitQueues::default(),
            is_crowded: AtomicBool::new(false),
            kept: Kept::default(),
            fair_share: OnceLock::new(),
            clients: Arc::default(),
            recorder: Mutex::default(),
        }
    }

    #[inline]
    pub(crate) fn limit(&self) -> usize {
        self.permits.limit()
    }

    pub(crate) fn set_limit(&self, limit: usize) {
        self.permits.set_limit(limit);
        self.look_for_crowd(self.present(), limit);
        self.grant();
        let recorder = self.recorder.lock().clone();
        recorder.record(|| Event::limit_changed(Guard::ConcurrencyLimit, limit as u64));
    }

    pub(crate) fn record_to(&self, recorder: Recorder) {
        let before = std::mem::replace(&mut *self.recorder.lock(), recorder);
        drop(before); // Dropping a sink may run any code.
    }

    pub(crate) fn keep_accounts(&self) {
        self.fair_share.get_or_init(FairShare::new);
    }

    #[inline]
    pub(crate) fn fair_share(&self) -> Option<&FairShare> {
        self.fair_share.get()
    }

    pub(crate) fn clients(&self) -> &Arc<PerClient> {
        &self.clients
    }

    // --- How many there are ---

    /// Requests that work, without those that keep their permits and wait.
    pub(crate) fn working(&self) -> usize {
        self.permits.taken().saturating_sub(self.kept.count())
    }

    /// All requests that were admitted and are not over.
    #[inline]
    pub(crate) fn present(&self) -> usize {
        let newcomers = self.queues.newcomers();
        let queued = self.queues.waiting_for_permit().saturating_sub(newcomers);
        let waiting = self.queues.waiting_for_client().saturating_add(queued);
        self.permits.taken().saturating_add(waiting)
    }

    /// How many may be present: `max`, or as many as usual if that is 0.
    #[inline]
    pub(crate) fn max_present(&self, max: usize) -> usize {
        if max == 0 {
            self.limit().saturating_mul(PRESENT_PER_PERMIT)
        } else {
            max
        }
    }

    #[inline]
    pub(crate) fn count_admitted(&self) {
        self.admitted.fetch_add(1, Relaxed);
    }

    // --- Whether permits are short ---

    /// Whether permits are getting short, so that it matters which client uses them.
    #[inline]
    pub(crate) fn is_busy(&self) -> bool {
        self.permits.taken() >= self.limit() / 2
    }

    /// Whether permits would be getting short if all present requests worked.
    pub(crate) fn is_getting_short(&self, max_present: usize) -> bool {
        self.present() >= self.limit().min(max_present) / 2
    }

    /// Whether requests that wait for their clients give their permits up at once.
    #[inline]
    pub(crate) fn is_crowded(&self) -> bool {
        self.is_crowded.load(SeqCst)
    }

    /// Requests that wait for their clients give their permits up from the time when `present`
    /// requests could take half of them, until fewer than a quarter are present again.
    #[inline]
    pub(crate) fn look_for_crowd(&self, present: usize, max_present: usize) {
        // Beyond these a newcomer lacks a permit, or room.
        let places = self.limit().min(max_present);
        if self.is_crowded.load(Relaxed) {
            if present < places / 4 {
                self.is_crowded.store(false, SeqCst);
                // `present` may be out of date by now.
                if self.present() >= places / 2 {
                    self.recall_all();
                }
            }
        } else if present >= places / 2 {
            self.recall_all();
        }
    }

    /// Takes back all permits that are kept and not used, because one is lacking. `true` if some
    /// were.
    #[cold]
    pub(crate) fn recall_all(&self) -> bool {
        // A request that keeps its permit after this sees that it must not; one that kept it before
        // is seen here.
        self.is_crowded.store(true, SeqCst);
        store_before_load();
        let kept = self.kept.keeping();
        for waiter in &kept {
            self.recall(waiter);
        }
        !kept.is_empty()
    }

    // --- Permits ---

    /// Takes a permit for a newcomer while permits are plentiful, or where there is no fairness.
    #[inline]
    pub(crate) fn take_any(&self) -> bool {
        self.queues.waiting_for_permit() == 0 && self.permits.take_any()
    }

    /// Takes a permit for a request of this priority. Returns its share. Newcomers stand behind all
    /// waiting requests, but a light one does not wait for heavy ones: the reserve is not for them.
    /// While other permits are free it leaves the reserve alone, because it may hold its permit for
    /// long.
    pub(crate) fn take(&self, priority: Priority, is_fair: bool) -> Option<Share> {
        let is_newcomer = priority.is_newcomer();
        let is_behind = is_newcomer && self.queues.waiting_for_permit() > 0;
        let share = priority.share(is_fair);
        if !is_behind && self.permits.take(share, is_newcomer, is_fair) {
            return Some(share);
        }
        if !priority.is_light() || (is_newcomer && self.queues.light() > 0) {
            return None;
        }
        if self.permits.take(Share::Reserve, is_newcomer, is_fair) {
            return Some(Share::Reserve);
        }
        // Where only heavy newcomers wait beside free permits, those are more than the heavy may
        // have.
        let is_passed = self.queues.waiting_for_permit() == self.queues.newcomers();
        (is_passed && self.permits.take(share, is_newcomer, is_fair)).then_some(share)
    }

    /// Takes one of `max` permits beyond the limit.
    pub(crate) fn take_picked(&self, max: usize) -> bool {
        self.permits.take_picked(max)
    }

    /// Some waiting requests may be light by now, and come before a light newcomer.
    pub(crate) fn grant_to_light(&self) {
        if self.queues.waiting_for_permit() > 0 && self.permits.has_room_for_light(true) {
            self.grant();
        }
    }

    /// Gives a permit of this share back, to a request that waits for it if there is one.
    #[inline]
    pub(crate) fn release(&self, share: Share) {
        self.permits.free(share);
        self.grant_if_any_waits();
    }

    /// The request with this permit is over.
    #[inline(never)]
    pub(crate) fn release_with(&self, mut extras: Box<Extras>) {
        extras.pause(self.fair_share());
        self.finish(&extras);
        if !extras.picked {
            self.release(extras.share);
        }
    }

    /// The request with this is over and holds no permit any more.
    fn finish(&self, extras: &Extras) {
        if let (Some(charge), Some(fair_share)) = (&extras.charge, self.fair_share()) {
            fair_share.finish(charge);
        }
        if extras.picked {
            self.permits.free_picked();
        }
    }
}

impl GaugeSource for Limiter {
    fn guard(&self) -> Guard {
        Guard::ConcurrencyLimit
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        let kept = self.kept.count();
        let working = self.permits.taken().saturating_sub(kept);
        visit(
            Gauge::Working,
            working.saturating_add(self.permits.picked()) as u64,
        );
        visit(
            Gauge::Waiting,
            self.queues.waiting_for_client().saturating_add(kept) as u64,
        );
        visit(Gauge::Queued, self.queues.waiting_for_permit() as u64);
        visit(Gauge::Limit, self.limit() as u64);
        visit(Gauge::Admitted, self.admitted.load(Relaxed));
    }
}
