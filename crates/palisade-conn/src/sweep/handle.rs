//! The guard's handle on its sweeper tasks.

use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};
use tokio::{runtime::Id, sync::Notify};

/// A leader that is later than four ticks and this time is replaced by the task of another
/// runtime.
pub(super) const STALE_TIMEOUT: Duration = Duration::from_secs(1);

/// One task in each runtime that accepts connections. One of them, the leader, sweeps. The others
/// stand by, because a runtime may be blocked in a handler, or end.
#[derive(Debug, Default)]
pub(crate) struct Sweeper {
    tasks: Mutex<Vec<RuntimeTask>>,
    /// The number of the leader; 0 if there is none.
    leader: AtomicU64,
    /// When the latest sweep began, in milliseconds of the guard.
    swept_at: AtomicU64,
    /// Whether the latest sweep closed no connection because it was late.
    has_forgiven: AtomicBool,
    /// Whether a sweep is under way: only one task at a time may store the state of connections.
    is_sweeping: AtomicBool,
}

/// The task of one runtime.
#[derive(Debug)]
struct RuntimeTask {
    runtime: Id,
    bell: Arc<Bell>,
}

/// Wakes a sweeper task: for a first connection, for more candidates to evict, and for the end.
#[derive(Debug, Default)]
pub(super) struct Bell {
    notify: Notify,
    is_urgent: AtomicBool,
}

/// The right to sweep. See [`Sweeper::is_sweeping`].
pub(super) struct SweepPermit<'a>(&'a AtomicBool);

// === Sweeper ===

impl Sweeper {
    /// Returns a bell for the task that is to be started in `runtime`, if it has none. If it has
    /// one, wakes all tasks for the `first` of several connections.
    pub(super) fn register(&self, runtime: Id, first: bool) -> Option<Arc<Bell>> {
        let mut tasks = self.tasks.lock();
        if !tasks.iter().any(|task| task.runtime == runtime) {
            let bell = Arc::<Bell>::default();
            tasks.push(RuntimeTask {
                runtime,
                bell: bell.clone(),
            });
            return Some(bell);
        }
        if first {
            tasks.iter().for_each(|task| task.bell.ring());
        }
        None
    }

    /// Forgets the task of this `number` and `runtime`, which has ended.
    pub(super) fn unregister(&self, runtime: Id, number: u64) {
        self.tasks.lock().retain(|task| task.runtime != runtime);
        let _ = self.leader.compare_exchange(number, 0, SeqCst, SeqCst);
    }

    /// Asks for a sweep soon, because few candidates for eviction are left.
    pub(crate) fn hurry(&self) {
        for RuntimeTask { bell, .. } in self.tasks.lock().iter() {
            if !bell.is_urgent.swap(true, Relaxed) {
                bell.ring();
            }
        }
    }

    /// Lets the tasks end.
    pub(crate) fn stop(&self) {
        self.tasks.lock().iter().for_each(|task| task.bell.ring());
    }

    /// Returns whether no runtime has a task, and none sweeps.
    #[cfg(test)]
    pub(crate) fn is_stopped(&self) -> bool {
        let is_led = self.leader.load(SeqCst) != 0 || self.is_sweeping.load(SeqCst);
        self.tasks.lock().is_empty() && !is_led
    }

    /// Sets the time of the latest sweep without one: there was no connection until `now`.
    pub(super) fn skip_to(&self, now: u64) {
        self.swept_at.store(now, SeqCst);
    }

    /// Returns whether there is a leader.
    pub(super) fn has_leader(&self) -> bool {
        self.leader.load(SeqCst) != 0
    }

    /// Returns whether the task of this `number` is the leader. It becomes the leader if there is
    /// none, or if the leader has not swept for too long.
    pub(super) fn is_led_by(&self, number: u64, now: u64, tick: Duration) -> bool {
        let leader = self.leader.load(SeqCst);
        if leader == number {
            return true;
        }
        let stale = u64::try_from((4 * tick + STALE_TIMEOUT).as_millis()).unwrap_or(u64::MAX);
        let is_stale = leader == 0 || now.saturating_sub(self.swept_at.load(SeqCst)) > stale;
        is_stale
            && self
                .leader
                .compare_exchange(leader, number, SeqCst, SeqCst)
                .is_ok()
    }

    /// Begins a sweep at `now`. Returns the time since the previous one, and whether this one must
    /// close no connection because it is more than `max_delay_millis` late: what clients sent
    /// meanwhile has not been read yet. Never twice in a row, so that a server that is always late
    /// still closes connections.
    pub(super) fn begin(&self, now: u64, max_delay_millis: u64) -> (u64, bool) {
        let passed = now.saturating_sub(self.swept_at.swap(now, SeqCst));
        let forgives = passed > max_delay_millis && !self.has_forgiven.load(Relaxed);
        self.has_forgiven.store(forgives, Relaxed);
        (passed, forgives)
    }

    /// Returns the right to sweep; `None` if another task sweeps, or has become the leader.
    pub(super) fn permit(&self, number: u64) -> Option<SweepPermit<'_>> {
        if self.is_sweeping.swap(true, SeqCst) {
            return None;
        }
        let permit = SweepPermit(&self.is_sweeping);
        (self.leader.load(SeqCst) == number).then_some(permit)
    }
}

impl Drop for SweepPermit<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

// === Bell ===

impl Bell {
    fn ring(&self) {
        self.notify.notify_one();
    }

    /// Waits until it rings.
    pub(super) async fn rung(&self) {
        self.notify.notified().await;
    }

    /// Returns whether a sweep is asked for soon.
    pub(super) fn is_urgent(&self) -> bool {
        self.is_urgent.load(Relaxed)
    }

    /// Notes that a sweep begins.
    pub(super) fn clear(&self) {
        self.is_urgent.store(false, Relaxed);
    }
}
