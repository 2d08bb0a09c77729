//! How requests wait for a permit, and for their clients.

use super::{
    Limiter,
    per_client::ClientCount,
    permit::{Extras, Share},
    priority::{Position, Priority},
    queues::Locked,
    sync::store_before_load,
    waiter::{Evicted, Half, Left, Rules, State, Waiter},
};
use palisade_core::ClientKey;
use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

/// How many of a queue are looked at for one that is light by now, or that may be evicted.
const LOOKS: usize = 8;

/// What a request does.
impl Limiter {
    /// A newcomer that waits for its first permit, unless `max` others do already.
    pub(crate) fn queue_newcomer(
        &self,
        rules: Rules,
        client: Option<ClientKey>,
        counted: Option<ClientCount>,
        max: usize,
    ) -> Option<Arc<Waiter>> {
        let extras = counted.map(|counted| {
            Box::new(Extras {
                counted: Some(counted),
                ..Extras::default()
            })
        });
        let waiter = Arc::new(Waiter::newcomer(rules, client, extras));
        let is_light = waiter.is_light(true, self.fair_share());
        let priority = if is_light {
            Priority::LightNewcomer
        } else {
            Priority::Newcomer
        };
        let queues = self.queues.lock();
        if queues.newcomers() >= max {
            return None;
        }
        self.enqueue(queues, &waiter, priority, None);
        Some(waiter)
    }

    /// The request, which works unless its other half was first, waits for its client: it gives its
    /// permit up, or keeps it as long as permits are plentiful.
    #[inline]
    pub(crate) fn stop_working(&self, waiter: &Arc<Waiter>) {
        if self.must_give_up(waiter) || !waiter.is_listed() {
            self.stop_working_slowly(waiter);
        } else {
            self.keep(waiter);
        }
    }

    #[inline(never)]
    fn stop_working_slowly(&self, waiter: &Arc<Waiter>) {
        if self.must_give_up(waiter) {
            if waiter.is_working() {
                self.give_up(waiter, false);
            }
            return;
        }
        self.kept.list(waiter);
        self.keep(waiter);
    }

    #[inline]
    fn keep(&self, waiter: &Arc<Waiter>) {
        // Permits got short in this moment, or it was charged: either that sees this, or this sees
        // it.
        if waiter.keep() {
            store_before_load();
            if self.must_give_up(waiter) {
                self.recall(waiter);
            }
        }
    }

    /// Whether it must not keep its permit while it waits for its client.
    #[inline]
    fn must_give_up(&self, waiter: &Waiter) -> bool {
        self.is_crowded() || waiter.is_charged()
    }

    /// Whether it waits for its client, keeps its permit while permits are plentiful, and will wake
    /// the task of `cx`.
    #[inline]
    pub(crate) fn keeps_on(&self, waiter: &Waiter, half: Half, cx: &Context<'_>) -> bool {
        waiter.wakes(half, cx.waker())
            && waiter.is_keeping()
            && !self.is_crowded()
            // By the usual number permits are short only where they are crowded.
            && (waiter.rules().max_present == 0 || !self.finds_permits_short(waiter))
    }

    /// Whether permits would be getting short if all present requests worked.
    pub(crate) fn finds_permits_short(&self, waiter: &Waiter) -> bool {
        self.is_getting_short(self.max_present(waiter.rules().max_present))
    }

    /// The client is what is waited for from here on.
    #[inline]
    pub(crate) fn wait_for_client(&self, waiter: &Arc<Waiter>, half: Half, cx: &Context<'_>) {
        waiter.listen(half, cx);
        self.stop_working(waiter);
    }

    /// There is something to do: ready once the request holds a permit, or is over.
    #[inline]
    pub(crate) fn poll_work(
        &self,
        waiter: &Arc<Waiter>,
        half: Half,
        cx: &Context<'_>,
    ) -> Poll<Result<(), Evicted>> {
        if waiter.works_on() {
            Poll::Ready(Ok(()))
        } else {
            self.poll_work_slowly(waiter, half, cx)
        }
    }

    #[inline(never)]
    fn poll_work_slowly(
        &self,
        waiter: &Arc<Waiter>,
        half: Half,
        cx: &Context<'_>,
    ) -> Poll<Result<(), Evicted>> {
        if waiter.state() == State::Client {
            self.want_permit(waiter, Some(cx.waker()));
        }
        if waiter.state() == State::Queued {
            waiter.listen(half, cx);
        }
        match waiter.state() {
            State::Evicted => Poll::Ready(Err(Evicted)),
            State::Queued => Poll::Pending,
            State::Client => {
                // It was given a permit, and its other half gave it up again in this moment.
                waiter.listen(half, cx);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            State::Working | State::Keeping | State::Left => Poll::Ready(Ok(())),
        }
    }

    /// The request, which waits for its client, wants to go on. The task that is `asking` is not
    /// woken for it, and looks at the state after this.
    pub(crate) fn want_permit(&self, waiter: &Arc<Waiter>, asking: Option<&Waker>) {
        if waiter.rules().enforces {
            let is_light = waiter.is_light(false, self.fair_share());
            let priority = if is_light {
                Priority::Light
            } else {
                Priority::Heavy
            };
            self.enqueue(self.queues.lock(), waiter, priority, asking);
        } else {
            self.go_on_anyway(waiter);
        }
    }

    /// The request is over.
    pub(crate) fn leave(&self, waiter: &Waiter) -> Left {
        let mut queues = self.queues.lock();
        let mut left = waiter.leave();
        if let Some(position) = left.position {
            queues.remove(position);
        }
        drop(queues);
        self.kept.unlist(waiter);
        if left
            .position
            .is_some_and(|position| position.priority.is_some())
        {
            // Those behind it may have what it could not.
            self.grant_if_any_waits();
        }
        if let Some(extras) = &mut left.extras {
            if left.worked {
                extras.pause(self.fair_share());
            }
            self.finish(extras);
        }
        if left.worked {
            self.release(
                left.extras
                    .as_ref()
                    .map_or(Share::Common, |extras| extras.share),
            );
        }
        left
    }
}

/// What the limiter does with the queues.
impl Limiter {
    /// Makes room for a request that has just been admitted and seems to be one too many: evicts
    /// the one that has waited for its client longest, if `evicting`. `false` if there is no
    /// room.
    #[cold]
    pub(crate) fn make_room(&self, max_present: usize, evicting: bool) -> bool {
        let mut queues = self.queues.lock();
        // Without the lock a request that changes queues is counted twice or not at all for a
        // moment.
        let present = self.present();
        if present <= max_present {
            return true;
        }
        if !evicting {
            return false;
        }
        // Layers that share the limit may differ: one with fewer present does not take from
        // another.
        let may_be_displaced = |waiter: &Waiter| {
            waiter.rules().enforces && present > self.max_present(waiter.rules().max_present)
        };
        let victim = {
            let mut first = queues.waiting_for_client().take(LOOKS);
            first
                .find(|(_, waiter)| may_be_displaced(waiter))
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

    /// Takes the permit back that a request keeps while it waits for its client.
    pub(super) fn recall(&self, waiter: &Arc<Waiter>) {
        self.give_up(waiter, true);
    }

    /// From holding a permit to waiting for the client.
    fn give_up(&self, waiter: &Arc<Waiter>, is_recalled: bool) {
        let mut queues = self.queues.lock();
        let next = queues.next_number();
        let Some((number, share)) = waiter.wait_for_client(next, is_recalled, self.fair_share())
        else {
            return; // Its other half, in another task, was first, or it works again.
        };
        queues.push_for_client(number, waiter.clone());
        // Under the lock: see `make_room`.
        self.permits.free(share);
        drop(queues);
        self.grant_if_any_waits();
    }

    /// From holding no permit to waiting for one, or to holding one at once.
    fn enqueue(
        &self,
        mut queues: Locked<'_>,
        waiter: &Arc<Waiter>,
        priority: Priority,
        asking: Option<&Waker>,
    ) {
        if waiter.state() != State::Client {
            return; // It was evicted, or its other half was first.
        }
        // Past the queue where it is empty: a newcomer must not see one while permits are free. Nor
        // must its other half, which would wait for a permit that is given without a wake.
        if queues.is_empty()
            && let Some(share) = self.take(priority, waiter.rules().is_fair)
        {
            if let Some(position) = waiter.position() {
                queues.remove(position);
            }
            waiter.grant(share, self.fair_share());
            return;
        }
        let number = queues.next_number();
        if let Some(before) = waiter.wait_for_permit(number, priority) {
            queues.remove(before);
        }
        queues.push(number, priority, waiter.clone());
        drop(queues);
        if !self.is_crowded() {
            self.recall_all();
        }
        // To wake the task that asks would make a request spin which gives the permit up again
        // because it has nothing to do. Its other half may have found it queued.
        store_before_load();
        while let Some(granted) = self.grant_one() {
            let is_own = Arc::ptr_eq(&granted, waiter);
            granted.wake_unless(asking.filter(|_| is_own));
        }
    }

    /// Lets a request go on without a permit being free, for a guard that only watches.
    fn go_on_anyway(&self, waiter: &Waiter) {
        let mut queues = self.queues.lock();
        if let Some(before) = waiter.position() {
            queues.remove(before);
            self.permits.take_anyway();
            waiter.grant(Share::Common, self.fair_share());
        }
    }

    /// Grants free permits if requests wait. A request is queued first and then looks for a free
    /// permit; a permit is freed first, and then this looks at the queue. One of them sees the
    /// other.
    #[inline]
    pub(super) fn grant_if_any_waits(&self) {
        store_before_load();
        if self.queues.waiting_for_permit() > 0 {
            self.grant();
        }
    }

    /// Gives free permits to those that wait for one, in order.
    pub(super) fn grant(&self) {
        store_before_load();
        while let Some(waiter) = self.grant_one() {
            waiter.wake();
        }
    }

    /// Grants a free permit to the first request in the queue, or else to the first light one.
    /// Light requests pass heavy ones for the reserve only, and newcomers never pass admitted
    /// requests. (Light newcomers also pass heavy ones that hold as many permits as the heavy may
    /// hold.)
    fn grant_one(&self) -> Option<Arc<Waiter>> {
        let mut queues = self.queues.lock();
        for [light, heavy] in Priority::PAIRS {
            let is_newcomer = light.is_newcomer();
            self.look_at_priorities(&mut queues, light, heavy);
            let first = |priority: Priority| {
                let (number, waiter) = queues.first(priority)?;
                Some((number, waiter.rules().is_fair))
            };
            let (first_light, first_heavy) = (first(light), first(heavy));
            if let Some((number, is_fair)) = first_heavy
                && first_light.is_none_or(|(light, _)| number < light)
                && self
                    .permits
                    .take(heavy.share(is_fair), is_newcomer, is_fair)
            {
                return self.grant_first(&mut queues, heavy, heavy.share(is_fair));
            }
            let Some((_, is_fair)) = first_light else {
                continue;
            };
            for share in [Share::Common, Share::Reserve] {
                if self.permits.take(share, is_newcomer, is_fair) {
                    return self.grant_first(&mut queues, light, share);
                }
            }
        }
        None
    }

    /// Looks at the priorities of the first requests again: one that is not light or heavy any
    /// more, as it was when it was queued, changes queues and keeps its number.
    fn look_at_priorities(&self, queues: &mut Locked<'_>, light: Priority, heavy: Priority) {
        while let Some((number, waiter)) = queues.first(light) {
            if waiter.is_light(light.is_newcomer(), self.fair_share()) {
                return;
            }
            queues.change_priority(number, light, heavy);
        }
        let is_newcomer = heavy.is_newcomer();
        if self.permits.has_room_for_light(is_newcomer) {
            let is_light = |waiter: &Waiter| waiter.is_light(is_newcomer, self.fair_share());
            let number = {
                let mut first = queues.with(heavy).take(LOOKS);
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
        queues: &mut Locked<'_>,
        priority: Priority,
        share: Share,
    ) -> Option<Arc<Waiter>> {
        let waiter = queues.pop_first(priority)?;
        waiter.grant(share, self.fair_share());
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
    fn waits(limiter: &Limiter) -> Arc<Waiter> {
        assert!(limiter.take_any());
        let waiter = Arc::new(Waiter::working(RULES, None, None));
        limiter.give_up(&waiter, false);
        waiter
    }

    #[test]
    fn requests_that_kept_their_permits_leave_nothing_behind() {
        let limiter = Limiter::new(100);
        let mut waiters = Vec::new();
        for _ in 0..10 {
            assert!(limiter.take_any());
            let waiter = Arc::new(Waiter::working(RULES, None, None));
            limiter.stop_working(&waiter);
            waiters.push(waiter);
        }
        assert_eq!((limiter.kept.count(), limiter.working()), (10, 0));
        for place in [9, 0, 4, 0, 0, 4, 1, 2, 0, 0] {
            let waiter = waiters.remove(place);
            limiter.leave(&waiter);
            assert_eq!(Arc::strong_count(&waiter), 1);
        }
        assert_eq!((limiter.kept.count(), limiter.present()), (0, 0));
    }

    #[test]
    fn a_request_of_a_layer_with_few_present_is_looked_at_again_where_these_are_many() {
        let cx = Context::from_waker(Waker::noop());
        for (max_present, keeps_on) in [(0, true), (4, true), (2, false)] {
            let limiter = Limiter::new(100);
            assert!(limiter.take_any());
            let waiter = Arc::new(Waiter::working(
                Rules {
                    max_present,
                    ..RULES
                },
                None,
                None,
            ));
            limiter.wait_for_client(&waiter, Half::Answer, &cx);
            assert_eq!(
                limiter.keeps_on(&waiter, Half::Answer, &cx),
                keeps_on,
                "{max_present}"
            );
        }
    }

    #[test]
    fn a_request_is_displaced_only_if_too_many_are_present_when_that_is_looked_at_again() {
        let limiter = Limiter::new(4);
        let (first, second) = (waits(&limiter), waits(&limiter));
        // A newcomer that counted one of them twice, as it changed queues.
        assert!(limiter.make_room(2, true));
        assert!(!first.is_displaced() && !second.is_displaced());
        assert!(limiter.take_any());
        assert!(limiter.make_room(2, true));
        assert!(first.is_displaced() && !second.is_displaced());
    }
}

/// Every order in which two threads can keep, recall, give up and grant permits, tried by loom.
///
/// `RUSTFLAGS="--cfg palisade_loom" cargo test -p palisade-concurrency-limit --lib --target-dir
/// target/loom -- loom` (one line).
#[cfg(all(test, palisade_loom))]
mod loom_tests {
    use super::*;
    use loom::thread;

    const RULES: Rules = Rules {
        max_present: 0,
        enforces: true,
        is_fair: false,
    };

    /// A limit of one, and a request that has the permit.
    fn one_works() -> (Arc<Limiter>, Arc<Waiter>) {
        let limiter = Arc::new(Limiter::new(1));
        assert!(limiter.take_any());
        (limiter, Arc::new(Waiter::working(RULES, None, None)))
    }

    /// The same, waiting for its client without a permit.
    fn one_waits() -> (Arc<Limiter>, Arc<Waiter>) {
        let (limiter, waiter) = one_works();
        limiter.give_up(&waiter, false);
        assert_eq!(limiter.permits.taken(), 0);
        (limiter, waiter)
    }

    fn want(limiter: &Limiter, waiter: &Arc<Waiter>) {
        limiter.want_permit(waiter, None);
    }

    /// A task that tells whether it was woken.
    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }

    /// Runs one of these in a thread of its own beside the other.
    fn beside(
        limiter: &Arc<Limiter>,
        waiter: &Arc<Waiter>,
        one: impl Fn(&Limiter, &Arc<Waiter>) + Send + Sync + 'static,
        other: impl Fn(&Limiter, &Arc<Waiter>),
    ) {
        let (l, w) = (limiter.clone(), waiter.clone());
        let thread = thread::spawn(move || one(&l, &w));
        other(limiter, waiter);
        thread.join().unwrap();
    }

    #[test]
    fn a_permit_that_is_kept_while_permits_get_short_is_free_in_the_end() {
        loom::model(|| {
            let (limiter, waiter) = one_works();
            beside(&limiter, &waiter, Limiter::stop_working, |limiter, _| {
                limiter.recall_all();
            });
            assert_eq!(
                (waiter.state(), limiter.permits.taken()),
                (State::Client, 0)
            );
        });
    }

    #[test]
    fn a_request_that_goes_on_while_its_permit_is_recalled_has_it_or_not() {
        loom::model(|| {
            let (limiter, waiter) = one_works();
            limiter.stop_working(&waiter);
            let goes_on = |_: &Limiter, waiter: &Arc<Waiter>| {
                waiter.resume_kept();
            };
            beside(&limiter, &waiter, goes_on, |limiter, _| {
                limiter.recall_all();
            });
            let expected = if limiter.permits.taken() == 1 {
                State::Working
            } else {
                State::Client
            };
            assert_eq!(waiter.state(), expected);
        });
    }

    #[test]
    fn a_permit_that_is_freed_beside_a_request_that_wants_one_is_granted() {
        loom::model(|| {
            let (limiter, waiter) = one_waits();
            assert!(limiter.take_any()); // Another request works.
            beside(&limiter, &waiter, want, |limiter, _| {
                limiter.release(Share::Common);
            });
            assert_eq!(
                (waiter.state(), limiter.permits.taken()),
                (State::Working, 1)
            );
        });
    }

    #[test]
    fn a_request_that_leaves_beside_a_grant_leaves_no_permit_taken() {
        loom::model(|| {
            let (limiter, waiter) = one_waits();
            beside(&limiter, &waiter, want, |limiter, waiter| {
                limiter.leave(waiter);
            });
            assert_eq!((limiter.permits.taken(), limiter.present()), (0, 0));
        });
    }

    #[test]
    fn no_more_permits_are_taken_than_there_are() {
        loom::model(|| {
            let (limiter, waiter) = one_waits();
            let newcomer = |limiter: &Limiter, _: &Arc<Waiter>| {
                if limiter.take_any() {
                    assert_eq!(limiter.permits.taken(), 1);
                    limiter.release(Share::Common);
                }
            };
            beside(&limiter, &waiter, newcomer, want);
            assert_eq!(
                (waiter.state(), limiter.permits.taken()),
                (State::Working, 1)
            );
        });
    }
    #[test]
    fn of_two_halves_that_want_the_permit_each_has_it_or_is_woken() {
        for has_queue in [false, true] {
            loom::model(move || {
                let (limiter, waiter) = one_waits();
                if has_queue {
                    // A newcomer that cannot have what an admitted request can.
                    limiter.permits.set_limit(0);
                    assert!(limiter.queue_newcomer(RULES, None, None, 1).is_some());
                }
                let half = |half| {
                    let woken = Arc::new(Woken::default());
                    let poll = move |limiter: &Limiter, waiter: &Arc<Waiter>| {
                        let waker = woken.clone().into();
                        let polled = limiter.poll_work(waiter, half, &Context::from_waker(&waker));
                        (woken.clone(), polled.is_ready())
                    };
                    poll
                };
                let (l, w, body) = (limiter.clone(), waiter.clone(), half(Half::Body));
                let body = thread::spawn(move || body(&l, &w));
                let answer = half(Half::Answer)(&limiter, &waiter);
                for (woken, is_ready) in [body.join().unwrap(), answer] {
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
