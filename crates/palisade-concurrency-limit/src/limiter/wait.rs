//! Transitions between working, waiting for the client and being queued for a permit.

use super::{
    Limiter,
    per_client::CountedRequest,
    permit::{PermitExtras, PermitKind},
    priority::{Position, Priority},
    queues::LockedQueues,
    sync::store_before_load,
    waiter::{EndedRequest, Evicted, Half, Rules, State, Waiter},
};
use palisade_core::ClientKey;
use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

/// How many waiters of a queue are examined for one that has become light, or may be evicted.
const MAX_EXAMINED_WAITERS: usize = 8;

/// Transitions of one request.
impl Limiter {
    /// Queues a new request for its first permit, unless `max` others are queued.
    pub(crate) fn queue_new_request(
        &self,
        rules: Rules,
        client: Option<ClientKey>,
        counted: Option<CountedRequest>,
        max: usize,
    ) -> Option<Arc<Waiter>> {
        let extras = counted.map(|counted| {
            Box::new(PermitExtras {
                counted: Some(counted),
                ..PermitExtras::default()
            })
        });
        let waiter = Arc::new(Waiter::new_request(rules, client, extras));
        let is_light = waiter.is_light(true, self.fair_share());
        let priority = if is_light {
            Priority::NewLight
        } else {
            Priority::NewHeavy
        };
        let queues = self.queues.lock();
        if queues.queued_new() >= max {
            return None;
        }
        self.enqueue(queues, &waiter, priority, None);
        Some(waiter)
    }

    /// Starts the request's wait for its client, if it works and its other half was not first. It
    /// gives its permit back, or keeps it while permits are plentiful.
    #[inline]
    pub(crate) fn stop_working(&self, waiter: &Arc<Waiter>) {
        if self.must_give_back(waiter) || !waiter.is_listed() {
            self.stop_working_slow(waiter);
        } else {
            self.keep_permit(waiter);
        }
    }

    #[inline(never)]
    fn stop_working_slow(&self, waiter: &Arc<Waiter>) {
        if self.must_give_back(waiter) {
            if waiter.is_working() {
                self.give_back(waiter, false);
            }
            return;
        }
        self.kept.insert(waiter);
        self.keep_permit(waiter);
    }

    #[inline]
    fn keep_permit(&self, waiter: &Arc<Waiter>) {
        // Permits may have become short, or the request been charged, at the same time: either that
        // code sees the kept permit, or this code sees the change.
        if waiter.keep_permit() {
            store_before_load();
            if self.must_give_back(waiter) {
                self.recall(waiter);
            }
        }
    }

    /// Whether it must not keep its permit while it waits for its client.
    #[inline]
    fn must_give_back(&self, waiter: &Waiter) -> bool {
        self.is_scarce() || waiter.is_charged()
    }

    /// Whether it waits for its client, keeps its permit while permits are plentiful, and will wake
    /// the task of `cx`.
    #[inline]
    pub(crate) fn still_keeps_permit(&self, waiter: &Waiter, half: Half, cx: &Context<'_>) -> bool {
        waiter.will_wake(half, cx.waker())
            && waiter.is_keeping_permit()
            && !self.is_scarce()
            // With the default `max_present`, permits are short only if `is_scarce`.
            && (waiter.rules().max_present == 0 || !self.may_become_scarce_for(waiter))
    }

    /// Whether permits would be short if all requests present worked.
    pub(crate) fn may_become_scarce_for(&self, waiter: &Waiter) -> bool {
        self.may_become_scarce(self.max_present(waiter.rules().max_present))
    }

    /// Starts a wait for the client, and registers the task of `cx`.
    #[inline]
    pub(crate) fn wait_for_client(&self, waiter: &Arc<Waiter>, half: Half, cx: &Context<'_>) {
        waiter.register(half, cx);
        self.stop_working(waiter);
    }

    /// Acquires a permit because there is work. Ready once the request holds one, or has ended.
    #[inline]
    pub(crate) fn poll_permit(
        &self,
        waiter: &Arc<Waiter>,
        half: Half,
        cx: &Context<'_>,
    ) -> Poll<Result<(), Evicted>> {
        if waiter.ensure_working() {
            Poll::Ready(Ok(()))
        } else {
            self.poll_permit_slow(waiter, half, cx)
        }
    }

    #[inline(never)]
    fn poll_permit_slow(
        &self,
        waiter: &Arc<Waiter>,
        half: Half,
        cx: &Context<'_>,
    ) -> Poll<Result<(), Evicted>> {
        if waiter.state() == State::Waiting {
            self.acquire_or_queue(waiter, Some(cx.waker()));
        }
        if waiter.state() == State::Queued {
            waiter.register(half, cx);
        }
        match waiter.state() {
            State::Evicted => Poll::Ready(Err(Evicted)),
            State::Queued => Poll::Pending,
            State::Waiting => {
                // A permit was granted, and the other half has just given it back.
                waiter.register(half, cx);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            State::Working | State::KeepingPermit | State::Ended => Poll::Ready(Ok(())),
        }
    }

    /// Acquires a permit for a request that waits for its client, or queues it. Does not wake
    /// `polling_task` for that, which checks the state afterwards.
    pub(crate) fn acquire_or_queue(&self, waiter: &Arc<Waiter>, polling_task: Option<&Waker>) {
        if waiter.rules().enforces {
            let is_light = waiter.is_light(false, self.fair_share());
            let priority = if is_light {
                Priority::AdmittedLight
            } else {
                Priority::AdmittedHeavy
            };
            self.enqueue(self.queues.lock(), waiter, priority, polling_task);
        } else {
            self.resume_over_limit(waiter);
        }
    }

    /// Ends the request.
    pub(crate) fn end_request(&self, waiter: &Waiter) -> EndedRequest {
        let mut queues = self.queues.lock();
        let mut ended = waiter.mark_ended();
        if let Some(position) = ended.position {
            queues.remove(position);
        }
        drop(queues);
        self.kept.remove(waiter);
        if ended
            .position
            .is_some_and(|position| position.priority.is_some())
        {
            // Requests behind it may be able to take a permit that it could not.
            self.grant_if_queued();
        }
        if let Some(extras) = &mut ended.extras {
            if ended.held_permit {
                extras.pause(self.fair_share());
            }
            self.end_accounting(extras);
        }
        if ended.held_permit {
            self.release(
                ended
                    .extras
                    .as_ref()
                    .map_or(PermitKind::Common, |extras| extras.kind),
            );
        }
        ended
    }
}

/// The limiter's operations on the queues.
impl Limiter {
    /// Makes room for a request that has just been admitted and seems to be one too many: evicts
    /// the request that has waited longest for its client, if `can_evict`. Returns `false` if there
    /// is no room.
    #[cold]
    pub(crate) fn make_room(&self, max_present: usize, can_evict: bool) -> bool {
        let mut queues = self.queues.lock();
        // Without the lock, a request that changes queues is briefly counted twice or not at all.
        let present = self.present();
        if present <= max_present {
            return true;
        }
        if !can_evict {
            return false;
        }
        // Layers that share the limit may differ: one with a lower `max_present` does not evict
        // requests of another.
        let may_be_evicted = |waiter: &Waiter| {
            waiter.rules().enforces && present > self.max_present(waiter.rules().max_present)
        };
        let victim = {
            let mut first = queues.waiting().take(MAX_EXAMINED_WAITERS);
            first
                .find(|(_, waiter)| may_be_evicted(waiter))
                .map(|(number, _)| number)
        };
        let Some(number) = victim else { return false };
        let Some(victim) = queues.remove(Position {
            number,
            priority: None,
        }) else {
            return false;
        };
        victim.evict();
        drop(queues);
        victim.wake();
        true
    }

    /// Takes back the permit of a request that keeps it while it waits for its client.
    pub(super) fn recall(&self, waiter: &Arc<Waiter>) {
        self.give_back(waiter, true);
    }

    /// Moves a request from holding a permit to waiting for its client.
    fn give_back(&self, waiter: &Arc<Waiter>, is_recalled: bool) {
        let mut queues = self.queues.lock();
        let next = queues.next_number();
        let Some((number, kind)) = waiter.begin_waiting(next, is_recalled, self.fair_share())
        else {
            return; // The other half, in another task, was first, or it works again.
        };
        queues.push_waiting(number, waiter.clone());
        // Under the lock: see `make_room`.
        self.permits.free(kind);
        drop(queues);
        self.grant_if_queued();
    }

    /// Moves a request without a permit to the queue, or grants it a permit at once.
    fn enqueue(
        &self,
        mut queues: LockedQueues<'_>,
        waiter: &Arc<Waiter>,
        priority: Priority,
        polling_task: Option<&Waker>,
    ) {
        if waiter.state() != State::Waiting {
            return; // It was evicted, or the other half was first.
        }
        // Bypass an empty queue: a new request must not find a queue while permits are free.
        // Neither must the other half, which would wait for a permit that is granted without a
        // wake.
        if queues.has_no_queued()
            && let Some(kind) = self.try_take(priority, waiter.rules().is_fair)
        {
            if let Some(position) = waiter.position() {
                queues.remove(position);
            }
            waiter.grant(kind, self.fair_share());
            return;
        }
        let number = queues.next_number();
        if let Some(before) = waiter.begin_queueing(number, priority) {
            queues.remove(before);
        }
        queues.push_queued(number, priority, waiter.clone());
        drop(queues);
        if !self.is_scarce() {
            self.recall_all();
        }
        // Do not wake the polling task: a request that gives the permit back because it has nothing
        // to do would spin. Its other half is woken, as it may have found the request queued.
        store_before_load();
        while let Some(granted) = self.grant_one() {
            let not_woken = if Arc::ptr_eq(&granted, waiter) {
                polling_task
            } else {
                None
            };
            granted.wake_except(not_woken);
        }
    }

    /// Resumes a request even if no permit is free, in shadow mode.
    fn resume_over_limit(&self, waiter: &Waiter) {
        let mut queues = self.queues.lock();
        if let Some(before) = waiter.position() {
            queues.remove(before);
            self.permits.take_over_limit();
            waiter.grant(PermitKind::Common, self.fair_share());
        }
    }

    /// Grants free permits if requests are queued. A request is queued first and then looks for a
    /// free permit; a permit is freed first, and then the queue is checked. One of them sees the
    /// other.
    #[inline]
    pub(super) fn grant_if_queued(&self) {
        store_before_load();
        if self.queues.queued() > 0 {
            self.grant_free_permits();
        }
    }

    /// Grants free permits to queued requests, in order.
    pub(super) fn grant_free_permits(&self) {
        store_before_load();
        while let Some(waiter) = self.grant_one() {
            waiter.wake();
        }
    }

    /// Grants a free permit to the first request in the queue, or else to the first light one.
    /// Light requests pass heavy ones for light-only permits only, and new requests never pass
    /// admitted ones. (New light requests also pass heavy ones once these hold as many permits as
    /// they may.)
    fn grant_one(&self) -> Option<Arc<Waiter>> {
        let mut queues = self.queues.lock();
        for [light, heavy] in Priority::PAIRS {
            let is_new = light.is_new();
            self.update_priorities(&mut queues, light, heavy);
            let first = |priority: Priority| {
                let (number, waiter) = queues.first_queued(priority)?;
                Some((number, waiter.rules().is_fair))
            };
            let (first_light, first_heavy) = (first(light), first(heavy));
            if let Some((number, is_fair)) = first_heavy
                && first_light.is_none_or(|(light, _)| number < light)
                && self
                    .permits
                    .try_take(heavy.permit_kind(is_fair), is_new, is_fair)
            {
                return self.grant_first(&mut queues, heavy, heavy.permit_kind(is_fair));
            }
            let Some((_, is_fair)) = first_light else {
                continue;
            };
            for kind in [PermitKind::Common, PermitKind::LightOnly] {
                if self.permits.try_take(kind, is_new, is_fair) {
                    return self.grant_first(&mut queues, light, kind);
                }
            }
        }
        None
    }

    /// Updates the priorities of the first requests: one that has become heavy or light since it
    /// was queued changes queues and keeps its number.
    fn update_priorities(&self, queues: &mut LockedQueues<'_>, light: Priority, heavy: Priority) {
        while let Some((number, waiter)) = queues.first_queued(light) {
            if waiter.is_light(light.is_new(), self.fair_share()) {
                return;
            }
            queues.change_priority(number, light, heavy);
        }
        let is_new = heavy.is_new();
        if self.permits.has_free_for_light(is_new) {
            let is_light = |waiter: &Waiter| waiter.is_light(is_new, self.fair_share());
            let number = {
                let mut first = queues.queued(heavy).take(MAX_EXAMINED_WAITERS);
                first
                    .find(|(_, waiter)| is_light(waiter))
                    .map(|(number, _)| number)
            };
            if let Some(number) = number {
                queues.change_priority(number, heavy, light);
            }
        }
    }

    fn grant_first(
        &self,
        queues: &mut LockedQueues<'_>,
        priority: Priority,
        kind: PermitKind,
    ) -> Option<Arc<Waiter>> {
        let waiter = queues.pop_first_queued(priority)?;
        waiter.grant(kind, self.fair_share());
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        max_present: 2,
        enforces: true,
        is_fair: false,
    };

    /// A request that waits for its client.
    fn waiting_request(limiter: &Limiter) -> Arc<Waiter> {
        assert!(limiter.try_take_common());
        let waiter = Arc::new(Waiter::working(RULES, None, None));
        limiter.give_back(&waiter, false);
        waiter
    }

    #[test]
    fn requests_that_kept_their_permits_leave_no_entry_behind() {
        let limiter = Limiter::new(100);
        let mut waiters = Vec::new();
        for _ in 0..10 {
            assert!(limiter.try_take_common());
            let waiter = Arc::new(Waiter::working(RULES, None, None));
            limiter.stop_working(&waiter);
            waiters.push(waiter);
        }
        assert_eq!((limiter.kept.count_keeping(), limiter.working()), (10, 0));
        for index in [9, 0, 4, 0, 0, 4, 1, 2, 0, 0] {
            let waiter = waiters.remove(index);
            limiter.end_request(&waiter);
            assert_eq!(Arc::strong_count(&waiter), 1);
        }
        assert_eq!((limiter.kept.count_keeping(), limiter.present()), (0, 0));
    }

    #[test]
    fn a_kept_permit_is_checked_again_once_half_of_max_present_is_reached() {
        let cx = Context::from_waker(Waker::noop());
        for (max_present, keeps_permit) in [(0, true), (4, true), (2, false)] {
            let limiter = Limiter::new(100);
            assert!(limiter.try_take_common());
            let waiter = Arc::new(Waiter::working(
                Rules {
                    max_present,
                    ..RULES
                },
                None,
                None,
            ));
            limiter.wait_for_client(&waiter, Half::Response, &cx);
            assert_eq!(
                limiter.still_keeps_permit(&waiter, Half::Response, &cx),
                keeps_permit,
                "{max_present}"
            );
        }
    }

    #[test]
    fn a_request_is_evicted_only_if_too_many_are_present_under_the_lock() {
        let limiter = Limiter::new(4);
        let (first, second) = (waiting_request(&limiter), waiting_request(&limiter));
        // A new request that counted one of them twice while it changed queues.
        assert!(limiter.make_room(2, true));
        assert!(!first.is_evicted() && !second.is_evicted());
        assert!(limiter.try_take_common());
        assert!(limiter.make_room(2, true));
        assert!(first.is_evicted() && !second.is_evicted());
    }
}

/// Checks every interleaving in which two threads keep, recall, give back and grant permits.
///
/// ```text
/// RUSTFLAGS="--cfg palisade_loom" cargo test -p palisade-concurrency-limit --lib \
///     --target-dir target/loom -- loom
/// ```
#[cfg(all(test, palisade_loom))]
mod loom_tests {
    use super::*;
    use loom::thread;

    const RULES: Rules = Rules {
        max_present: 0,
        enforces: true,
        is_fair: false,
    };

    /// A limit of one, and a request that holds the permit.
    fn one_working() -> (Arc<Limiter>, Arc<Waiter>) {
        let limiter = Arc::new(Limiter::new(1));
        assert!(limiter.try_take_common());
        (limiter, Arc::new(Waiter::working(RULES, None, None)))
    }

    /// The same, with the request waiting for its client without a permit.
    fn one_waiting() -> (Arc<Limiter>, Arc<Waiter>) {
        let (limiter, waiter) = one_working();
        limiter.give_back(&waiter, false);
        assert_eq!(limiter.permits.taken(), 0);
        (limiter, waiter)
    }

    fn acquire_permit(limiter: &Limiter, waiter: &Arc<Waiter>) {
        limiter.acquire_or_queue(waiter, None);
    }

    /// A task that records whether it was woken.
    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }

    /// Runs `one` in its own thread concurrently with `other`.
    fn run_concurrently(
        limiter: &Arc<Limiter>,
        waiter: &Arc<Waiter>,
        one: impl Fn(&Limiter, &Arc<Waiter>) + Send + Sync + 'static,
        other: impl Fn(&Limiter, &Arc<Waiter>),
    ) {
        let (thread_limiter, thread_waiter) = (limiter.clone(), waiter.clone());
        let thread = thread::spawn(move || one(&thread_limiter, &thread_waiter));
        other(limiter, waiter);
        thread.join().unwrap();
    }

    #[test]
    fn a_permit_kept_while_permits_become_scarce_is_given_back() {
        loom::model(|| {
            let (limiter, waiter) = one_working();
            run_concurrently(&limiter, &waiter, Limiter::stop_working, |limiter, _| {
                limiter.recall_all();
            });
            assert_eq!(
                (waiter.state(), limiter.permits.taken()),
                (State::Waiting, 0)
            );
        });
    }

    #[test]
    fn a_request_that_resumes_during_a_recall_holds_the_permit_or_waits() {
        loom::model(|| {
            let (limiter, waiter) = one_working();
            limiter.stop_working(&waiter);
            let resume = |_: &Limiter, waiter: &Arc<Waiter>| {
                waiter.resume_kept();
            };
            run_concurrently(&limiter, &waiter, resume, |limiter, _| {
                limiter.recall_all();
            });
            let expected = if limiter.permits.taken() == 1 {
                State::Working
            } else {
                State::Waiting
            };
            assert_eq!(waiter.state(), expected);
        });
    }

    #[test]
    fn a_permit_freed_while_a_request_is_queued_is_granted() {
        loom::model(|| {
            let (limiter, waiter) = one_waiting();
            assert!(limiter.try_take_common()); // Another request holds the permit.
            run_concurrently(&limiter, &waiter, acquire_permit, |limiter, _| {
                limiter.release(PermitKind::Common);
            });
            assert_eq!(
                (waiter.state(), limiter.permits.taken()),
                (State::Working, 1)
            );
        });
    }

    #[test]
    fn a_request_that_ends_during_a_grant_leaves_no_permit_taken() {
        loom::model(|| {
            let (limiter, waiter) = one_waiting();
            run_concurrently(&limiter, &waiter, acquire_permit, |limiter, waiter| {
                limiter.end_request(waiter);
            });
            assert_eq!((limiter.permits.taken(), limiter.present()), (0, 0));
        });
    }

    #[test]
    fn permits_taken_do_not_exceed_the_limit() {
        loom::model(|| {
            let (limiter, waiter) = one_waiting();
            let take_new = |limiter: &Limiter, _: &Arc<Waiter>| {
                if limiter.try_take_common() {
                    assert_eq!(limiter.permits.taken(), 1);
                    limiter.release(PermitKind::Common);
                }
            };
            run_concurrently(&limiter, &waiter, take_new, acquire_permit);
            assert_eq!(
                (waiter.state(), limiter.permits.taken()),
                (State::Working, 1)
            );
        });
    }

    #[test]
    fn two_halves_that_acquire_the_permit_at_once_both_work_or_are_woken() {
        for has_queue in [false, true] {
            loom::model(move || {
                let (limiter, waiter) = one_waiting();
                if has_queue {
                    // A new request, which cannot take a permit that an admitted one can.
                    limiter.permits.set_limit(0);
                    assert!(limiter.queue_new_request(RULES, None, None, 1).is_some());
                }
                let half = |half| {
                    let woken = Arc::new(Woken::default());
                    let poll = move |limiter: &Limiter, waiter: &Arc<Waiter>| {
                        let waker = woken.clone().into();
                        let polled =
                            limiter.poll_permit(waiter, half, &Context::from_waker(&waker));
                        (woken.clone(), polled.is_ready())
                    };
                    poll
                };
                let (thread_limiter, thread_waiter, body) =
                    (limiter.clone(), waiter.clone(), half(Half::RequestBody));
                let body = thread::spawn(move || body(&thread_limiter, &thread_waiter));
                let response = half(Half::Response)(&limiter, &waiter);
                for (woken, is_ready) in [body.join().unwrap(), response] {
                    assert!(is_ready || woken.0.load(std::sync::atomic::Ordering::SeqCst));
                }
                assert_eq!(
                    (waiter.state(), limiter.permits.taken()),
                    (State::Working, 1)
                );
            });
        }
    }
}
