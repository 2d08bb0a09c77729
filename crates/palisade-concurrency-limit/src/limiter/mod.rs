//! Limiter of the requests at work. Handles requests as [`Waiter`]s and knows no HTTP.
//!
//! Taking a permit and giving it back are one compare-and-swap each. A request that waits for its
//! client gives its permit back, or keeps it while permits are plentiful, and is queued for a
//! permit when it resumes; only this takes a lock. [`FairShare`] and [`ClientCounts`] distinguish
//! clients.

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
pub(crate) use per_client::{ClientCounts, CountedRequest};
pub use permit::PermitExtras;
pub(crate) use permit::PermitKind;
pub(crate) use priority::Priority;
pub(crate) use waiter::{Evicted, Half, Rules, Waiter};

use kept::KeptPermits;
use palisade_core::{Event, Gauge, GaugeSource, Guard, Recorder};
use parking_lot::Mutex;
use permits::Permits;
use queues::WaitQueues;
use std::sync::{
    Arc, OnceLock,
    atomic::Ordering::{Relaxed, SeqCst},
};
use sync::{AtomicBool, AtomicU64, store_before_load};

/// Default number of requests present per permit.
const DEFAULT_PRESENT_PER_PERMIT: usize = 8;

/// State shared by all services of one layer.
#[derive(Debug)]
pub(crate) struct Limiter {
    permits: Permits,
    admitted: AtomicU64,
    queues: WaitQueues,
    /// Permits are short: requests that wait for their clients do not keep their permits.
    is_scarce: AtomicBool,
    kept: KeptPermits,
    fair_share: OnceLock<FairShare>,
    client_counts: Arc<ClientCounts>,
    /// Receives changes of the limit.
    recorder: Mutex<Recorder>,
}

impl Limiter {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            permits: Permits::new(limit),
            admitted: AtomicU64::new(0),
            queues: WaitQueues::default(),
            is_scarce: AtomicBool::new(false),
            kept: KeptPermits::default(),
            fair_share: OnceLock::new(),
            client_counts: Arc::default(),
            recorder: Mutex::default(),
        }
    }

    #[inline]
    pub(crate) fn limit(&self) -> usize {
        self.permits.limit()
    }

    pub(crate) fn set_limit(&self, limit: usize) {
        self.permits.set_limit(limit);
        self.update_scarcity(self.present(), limit);
        self.grant_free_permits();
        let recorder = self.recorder.lock().clone();
        recorder.record(|| Event::limit_changed(Guard::ConcurrencyLimit, limit as u64));
    }

    pub(crate) fn record_to(&self, recorder: &Recorder) {
        let before = std::mem::replace(&mut *self.recorder.lock(), recorder.clone());
        drop(before); // Dropping a sink may run arbitrary code.
    }

    pub(crate) fn enable_fair_share(&self) {
        self.fair_share.get_or_init(FairShare::new);
    }

    #[inline]
    pub(crate) fn fair_share(&self) -> Option<&FairShare> {
        self.fair_share.get()
    }

    pub(crate) fn client_counts(&self) -> &Arc<ClientCounts> {
        &self.client_counts
    }

    // --- Counts ---

    /// The number of requests at work, without those that keep their permits and wait.
    pub(crate) fn working(&self) -> usize {
        self.permits
            .taken()
            .saturating_sub(self.kept.count_keeping())
    }

    /// The number of requests that were admitted and have not ended.
    #[inline]
    pub(crate) fn present(&self) -> usize {
        let queued_new = self.queues.queued_new();
        let queued = self.queues.queued().saturating_sub(queued_new);
        let waiting = self.queues.waiting().saturating_add(queued);
        self.permits.taken().saturating_add(waiting)
    }

    /// The maximum number of requests present: `max`, or the default if that is 0.
    #[inline]
    pub(crate) fn max_present(&self, max: usize) -> usize {
        if max == 0 {
            self.limit().saturating_mul(DEFAULT_PRESENT_PER_PERMIT)
        } else {
            max
        }
    }

    #[inline]
    pub(crate) fn count_admitted(&self) {
        self.admitted.fetch_add(1, Relaxed);
    }

    // --- Scarcity ---

    /// Whether half of the permits are taken, so that it matters which clients take the rest.
    #[inline]
    pub(crate) fn is_half_taken(&self) -> bool {
        self.permits.taken() >= self.limit() / 2
    }

    /// Whether permits would be short if all requests present worked.
    pub(crate) fn may_become_scarce(&self, max_present: usize) -> bool {
        self.present() >= self.limit().min(max_present) / 2
    }

    /// Whether requests that wait for their clients give their permits back at once.
    #[inline]
    pub(crate) fn is_scarce(&self) -> bool {
        self.is_scarce.load(SeqCst)
    }

    /// Updates whether permits are scarce: from the time when the requests present could take half
    /// of them until fewer than a quarter are present. Meanwhile, requests that wait for their
    /// clients give their permits back.
    #[inline]
    pub(crate) fn update_scarcity(&self, present: usize, max_present: usize) {
        // With more requests than this, a new one lacks a permit, or room.
        let max_working = self.limit().min(max_present);
        if self.is_scarce.load(Relaxed) {
            if present < max_working / 4 {
                self.is_scarce.store(false, SeqCst);
                // `present` may be outdated by now.
                if self.present() >= max_working / 2 {
                    self.recall_all();
                }
            }
        } else if present >= max_working / 2 {
            self.recall_all();
        }
    }

    /// Recalls all permits that are kept, because one is needed. Returns whether any were kept.
    #[cold]
    pub(crate) fn recall_all(&self) -> bool {
        // A request that keeps its permit after this store sees that it must not. One that kept its
        // permit before is found in the list.
        self.is_scarce.store(true, SeqCst);
        store_before_load();
        let kept = self.kept.keeping_waiters();
        for waiter in &kept {
            self.recall(waiter);
        }
        !kept.is_empty()
    }

    // --- Permits ---

    /// Takes a permit for a new request while permits are plentiful, or without fairness.
    #[inline]
    pub(crate) fn try_take_common(&self) -> bool {
        self.queues.queued() == 0 && self.permits.try_take_common()
    }

    /// Takes a permit for a request with this priority. Returns the permit's kind. A new request
    /// comes after all queued requests, but a light one does not wait for heavy ones, which cannot
    /// take light-only permits. It takes a light-only permit only if no other is free, because it
    /// may hold the permit for long.
    pub(crate) fn try_take(&self, priority: Priority, is_fair: bool) -> Option<PermitKind> {
        let is_new = priority.is_new();
        let is_behind = is_new && self.queues.queued() > 0;
        let kind = priority.permit_kind(is_fair);
        if !is_behind && self.permits.try_take(kind, is_new, is_fair) {
            return Some(kind);
        }
        if !priority.is_light() || (is_new && self.queues.queued_light() > 0) {
            return None;
        }
        if self
            .permits
            .try_take(PermitKind::LightOnly, is_new, is_fair)
        {
            return Some(PermitKind::LightOnly);
        }
        // If only heavy new requests are queued while permits are free, those permits exceed what
        // heavy requests may hold.
        let may_pass = self.queues.queued() == self.queues.queued_new();
        if may_pass && self.permits.try_take(kind, is_new, is_fair) {
            Some(kind)
        } else {
            None
        }
    }

    /// Takes one of `max` permits beyond the limit.
    pub(crate) fn try_take_from_reserve(&self, max: usize) -> bool {
        self.permits.try_take_from_reserve(max)
    }

    /// Grants permits to queued requests that may be light by now and come before a new light
    /// request.
    pub(crate) fn grant_to_light_waiters(&self) {
        if self.queues.queued() > 0 && self.permits.has_free_for_light(true) {
            self.grant_free_permits();
        }
    }

    /// Gives a permit of this kind back, and grants it to a queued request if there is one.
    #[inline]
    pub(crate) fn release(&self, kind: PermitKind) {
        self.permits.free(kind);
        self.grant_if_queued();
    }

    /// Releases the permit of a request that has ended.
    #[inline(never)]
    pub(crate) fn release_with_extras(&self, mut extras: Box<PermitExtras>) {
        extras.pause(self.fair_share());
        self.end_accounting(&extras);
        if !extras.from_reserve {
            self.release(extras.kind);
        }
    }

    /// Ends the accounting of a request that has ended and holds no permit any more.
    fn end_accounting(&self, extras: &PermitExtras) {
        if let (Some(charge), Some(fair_share)) = (&extras.charge, self.fair_share()) {
            fair_share.finish(charge);
        }
        if extras.from_reserve {
            self.permits.free_reserve_permit();
        }
    }
}

impl GaugeSource for Limiter {
    fn guard(&self) -> Guard {
        Guard::ConcurrencyLimit
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        let kept = self.kept.count_keeping();
        let working = self.permits.taken().saturating_sub(kept);
        visit(
            Gauge::Working,
            working.saturating_add(self.permits.reserve_taken()) as u64,
        );
        visit(
            Gauge::Waiting,
            self.queues.waiting().saturating_add(kept) as u64,
        );
        visit(Gauge::Queued, self.queues.queued() as u64);
        visit(Gauge::Limit, self.limit() as u64);
        visit(Gauge::Admitted, self.admitted.load(Relaxed));
    }
}
