//! The probe of one runtime: a task that measures how long it waits in the run queue.

use parking_lot::Mutex;
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::runtime::{Handle, Id, RuntimeMetrics};

/// A runtime that runs no task for this long is reported as stalled, and again whenever that time
/// has doubled.
pub(super) const STALL_DELAY: Duration = Duration::from_secs(1);

/// The system's clock: a runtime whose clock is paused does work in real time.
#[expect(
    clippy::disallowed_types,
    reason = "a delay of the system's scheduler, not a timeout"
)]
pub(super) type SystemTime = std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "see `SystemTime`")]
pub(super) fn now() -> SystemTime {
    SystemTime::now()
}

/// A runtime, as the thread that looks at it sees it.
pub(super) struct Watched {
    id: Id,
    metrics: RuntimeMetrics,
    state: Arc<Mutex<ProbeState>>,
    /// The least delay since the latest step.
    least: Option<Duration>,
    /// The delay that was measured last.
    last: Duration,
    /// A stall is reported from this delay on.
    stall: Duration,
}

/// The task. It ends when its [`Watched`] is dropped.
pub(super) struct Probe(Arc<Mutex<ProbeState>>);

#[derive(Default)]
struct ProbeState {
    stage: Stage,
    waker: Option<Waker>,
    /// What the last measurement found, until it is taken.
    measured: Option<Duration>,
    has_ended: bool,
}

#[derive(Clone, Copy, Default)]
enum Stage {
    #[default]
    Waiting,
    /// Woken from outside, which overtakes other tasks.
    Woken(SystemTime),
    /// It has woken itself, and so is behind the other tasks in the run queue.
    Queued(SystemTime),
}

impl Watched {
    pub(super) fn new(handle: &Handle) -> (Self, Probe) {
        let state = Arc::<Mutex<ProbeState>>::default();
        let watched = Self {
            id: handle.id(),
            metrics: handle.metrics(),
            state: state.clone(),
            least: None,
            last: Duration::ZERO,
            stall: STALL_DELAY,
        };
        (watched, Probe(state))
    }

    pub(super) fn is_of(&self, handle: &Handle) -> bool {
        self.id == handle.id()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().has_ended
    }

    /// Takes what was measured, and begins to measure unless a worker is parked. Returns the delay
    /// if the runtime is stalled and that is to be reported.
    pub(super) fn look(&mut self) -> Option<Duration> {
        let mut state = self.state.lock();
        if let Some(delay) = state.measured.take() {
            self.last = delay;
            self.least = Some(self.least.map_or(delay, |least| least.min(delay)));
        }
        if has_parked_worker(&self.metrics) {
            self.least = Some(Duration::ZERO);
            self.last = Duration::ZERO;
            self.stall = STALL_DELAY;
            return None;
        }
        match state.stage {
            Stage::Waiting => {
                self.stall = STALL_DELAY;
                state.stage = Stage::Woken(now());
                let waker = state.waker.take();
                drop(state); // A waker is code of others.
                if let Some(waker) = waker {
                    waker.wake();
                }
                None
            }
            Stage::Woken(since) | Stage::Queued(since) => {
                let age = since.elapsed();
                let is_due = age >= self.stall;
                if is_due {
                    self.stall = age.saturating_mul(2);
                }
                is_due.then_some(age)
            }
        }
    }

    /// Returns the delay of the step that ends now. If nothing was measured in it, that is what was
    /// measured last, or the time for which the present measurement has lasted.
    pub(super) fn take_delay(&mut self) -> Duration {
        let unfinished = match self.state.lock().stage {
            Stage::Waiting => Duration::ZERO,
            Stage::Woken(since) | Stage::Queued(since) => since.elapsed(),
        };
        let least = self.least.take();
        least.unwrap_or_else(|| self.last.max(unfinished))
    }
}

/// Returns whether a worker has nothing to do.
fn has_parked_worker(metrics: &RuntimeMetrics) -> bool {
    // A worker counts when it parks and when it is unparked.
    #[cfg(target_has_atomic = "64")]
    return (0..metrics.num_workers())
        .any(|worker| metrics.worker_park_unpark_count(worker) % 2 == 1);
    // Otherwise the runtime does not tell. The task is woken at each look then.
    #[cfg(not(target_has_atomic = "64"))]
    false
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        state.has_ended = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Future for Probe {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.has_ended {
            return Poll::Ready(());
        }
        let old = state.waker.replace(cx.waker().clone());
        let mut is_queued = false;
        match state.stage {
            Stage::Waiting => {}
            Stage::Woken(since) => {
                state.stage = Stage::Queued(since);
                is_queued = true;
            }
            Stage::Queued(since) => {
                state.measured = Some(since.elapsed());
                state.stage = Stage::Waiting;
            }
        }
        drop(state);
        drop(old); // Outside of the lock, as is the next: a waker is code of others.
        if is_queued {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// The runtime has ended, or the last [`RuntimeLoad`](super::RuntimeLoad) is gone.
impl Drop for Probe {
    fn drop(&mut self) {
        self.0.lock().has_ended = true;
    }
}
