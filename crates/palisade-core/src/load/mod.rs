//! The load of the tokio runtime: how long its tasks wait before they run.

mod probe;
mod shedding;

use crate::{Event, Recorder};
use parking_lot::Mutex;
use probe::Watched;
use shedding::{OVERLOAD_DELAY, Requests, Shedding};
use std::{
    fmt,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};
use tokio::runtime::{Handle, Id};

/// The time of one step, and between two looks.
const STEP: Duration = Duration::from_millis(100);
/// The time between two looks while no request arrives.
const QUIET_LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// The same from [`BUSY_DELAY`] on, and while requests are refused.
const BUSY_LOOK_INTERVAL: Duration = Duration::from_millis(10);
const BUSY_DELAY: Duration = Duration::from_millis(20);
/// A bit of the share that no share has: a request has asked for it.
const ASKED: u32 = 1 << 15;

/// The load of the tokio runtimes that serve requests, for guards that refuse some of them. Clones
/// share one state.
///
/// Requests that need more processor time than there is wait in the run queue of the runtime, where
/// no layer sees them, until all of them are late. This measures how long a task waits there. From
/// 250 ms for a second on, only a [share](Self::share) of the requests is to be admitted, so that
/// those are answered in time. Refusals are cheap, so the queue gets short at once. The share is
/// controlled until a task waits for about 100 ms.
///
/// - A runtime that runs out of work for a moment within that second is not overloaded: bursts,
///   handlers that sleep, and a blocked worker beside others refuse nothing.
/// - While no request arrives nothing changes.
/// - If refusing all but a few requests for a second does not help, tasks that are no requests are
///   the cause. Everything is admitted then for 10 s, and for twice as long each next time. With
///   more than ten requests in flight, which may be the cause, this takes 30 s.
/// - Of several runtimes the one with the shortest delay decides.
///
/// A thread of its own looks at the runtimes, at most every 10 ms, because a runtime that is stuck
/// must not blind it. It reads whether a worker is parked. Only if none is, it wakes one task of
/// the runtime. The clock is the system's, also where tokio's is paused.
///
/// The connection guard watches the runtimes in which it accepts connections, and the layer of
/// `palisade-load-shed` the one in which it is created. Use this type to watch others, or to read
/// the numbers.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use palisade_core::RuntimeLoad;
///
/// let load = RuntimeLoad::default();
/// load.watch(&tokio::runtime::Handle::current());
/// assert_eq!(load.share(), 1.0);
/// # }
/// ```
#[derive(Clone, Default)]
pub struct RuntimeLoad(Arc<State>);

/// What the looks have found.
struct State {
    /// In parts of [`RuntimeLoad::WHOLE`], with [`ASKED`] if a request has asked for it since the
    /// latest step. One number, so that a request reads both at once.
    share: AtomicU32,
    /// Requests that were admitted since then while the share was not whole.
    admitted: AtomicU32,
    /// Requests in flight, as the connection guard has counted them.
    in_flight: AtomicUsize,
    /// Requests in flight that layers have counted.
    in_layers: AtomicUsize,
    delay_micros: AtomicU64,
    control: Mutex<Control>,
    recorder: OnceLock<Recorder>,
    /// Whether the application reports the delay.
    is_reported: bool,
}

/// What one look keeps for the next.
#[derive(Default)]
struct Control {
    shedding: Shedding,
    runtimes: Vec<Watched>,
    /// The time since the latest step.
    elapsed: Duration,
    is_looked_at: bool,
}

impl RuntimeLoad {
    /// The share that admits every request, in the unit of [`Self::ask`].
    #[doc(hidden)]
    pub const WHOLE: u16 = 1024;

    /// Returns load that watches the runtime in which this is called, or `None` outside of one. All
    /// that call it in one runtime get clones of the same.
    ///
    /// ```
    /// use palisade_core::RuntimeLoad;
    ///
    /// assert!(RuntimeLoad::of_current_runtime().is_none());
    /// let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    /// let load = runtime.block_on(async { RuntimeLoad::of_current_runtime() });
    /// assert_eq!(load.map(|load| load.share()), Some(1.0));
    /// # Ok::<_, std::io::Error>(())
    /// ```
    pub fn of_current_runtime() -> Option<Self> {
        static OF_RUNTIMES: Mutex<Vec<(Id, Weak<State>)>> = Mutex::new(Vec::new());
        let handle = Handle::try_current().ok()?;
        let mut of_runtimes = OF_RUNTIMES.lock();
        of_runtimes.retain(|(_, state)| state.strong_count() > 0);
        let mut known = of_runtimes.iter();
        let known = known.find(|(id, _)| *id == handle.id());
        let load = match known.and_then(|(_, state)| state.upgrade()) {
            Some(state) => Self(state),
            None => {
                let load = Self::default();
                of_runtimes.push((handle.id(), Arc::downgrade(&load.0)));
                load
            }
        };
        drop(of_runtimes);
        load.watch(&handle);
        Some(load)
    }

    /// Returns load of which the application [reports](Self::report) the delay.
    /// [`watch`](Self::watch) does nothing then.
    pub fn reported() -> Self {
        Self(Arc::new(State {
            is_reported: true,
            ..State::default()
        }))
    }

    /// Takes a step of 100 ms in which requests have arrived and a task waited for `delay`.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let load = palisade_core::RuntimeLoad::reported();
    /// for _ in 0..9 {
    ///     load.report(Duration::from_millis(300));
    /// }
    /// assert_eq!(load.share(), 1.0); // It may have been a burst.
    /// load.report(Duration::from_millis(300));
    /// assert!(load.share() < 0.5); // A whole second.
    /// for _ in 0..3 {
    ///     load.report(Duration::ZERO);
    /// }
    /// assert_eq!(load.share(), 1.0);
    /// ```
    pub fn report(&self, delay: Duration) {
        let requests = Requests {
            have_asked: true,
            ..self.0.take_requests()
        };
        let mut control = self.0.control.lock();
        self.0.step(&mut control, delay, STEP, requests);
    }

    /// Watches the runtime of `handle` until the runtime ends, or the last clone of this is
    /// dropped. Spawns one task in it. Does nothing if it is watched already.
    pub fn watch(&self, handle: &Handle) {
        if self.0.is_reported {
            return;
        }
        let mut control = self.0.control.lock();
        if control.runtimes.iter().any(|one| one.is_of(handle)) {
            return;
        }
        let (watched, probe) = Watched::new(handle);
        control.runtimes.retain(|runtime| !runtime.has_ended());
        control.runtimes.push(watched);
        if !control.is_looked_at {
            control.is_looked_at = self.start();
        }
        drop(control); // The runtime may drop the task at once.
        handle.spawn(probe);
    }

    /// Returns the part of requests to admit, from 1/64 to 1.
    pub fn share(&self) -> f32 {
        let share = self.0.share.load(Relaxed) & !ASKED;
        share as f32 / f32::from(Self::WHOLE)
    }

    /// Returns the same for a request that is about to be admitted, in parts of [`Self::WHOLE`].
    #[doc(hidden)]
    #[inline]
    pub fn ask(&self) -> u16 {
        (self.0.share.fetch_or(ASKED, Relaxed) & !ASKED) as u16
    }

    /// Returns whether a request has asked since the latest step, and every request is to be
    /// admitted: there is nothing to ask.
    #[inline(always)]
    pub(crate) fn is_asked_and_whole(&self) -> bool {
        self.0.share.load(Relaxed) == u32::from(Self::WHOLE) | ASKED
    }

    /// Counts a request as in flight, where no connection guard [does](Self::set_in_flight).
    #[inline(always)]
    pub(crate) fn begin_request(&self) {
        self.0.in_layers.fetch_add(1, Relaxed);
    }

    /// Uncounts it.
    #[inline(always)]
    pub(crate) fn end_request(&self) {
        self.0.in_layers.fetch_sub(1, Relaxed);
    }

    /// Counts a request that was admitted while the share was not whole.
    #[doc(hidden)]
    pub fn count_admitted(&self) {
        self.0.admitted.fetch_add(1, Relaxed);
    }

    /// Notes how many requests are in flight.
    #[doc(hidden)]
    pub fn set_in_flight(&self, requests: usize) {
        self.0.in_flight.store(requests, Relaxed);
    }

    /// Returns the number of requests in flight that a guard or layers have counted.
    #[doc(hidden)]
    pub fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    /// Returns the time for which tasks have waited in the run queue in the latest step of 100 ms,
    /// at least.
    pub fn delay(&self) -> Duration {
        Duration::from_micros(self.0.delay_micros.load(Relaxed))
    }

    /// Returns the delay from which a runtime is overloaded.
    #[doc(hidden)]
    pub fn overload_delay() -> Duration {
        OVERLOAD_DELAY
    }

    /// Records stalls to `recorder`, unless there is one already.
    #[doc(hidden)]
    pub fn record_to(&self, recorder: &Recorder) {
        if recorder.is_enabled() {
            let _ = self.0.recorder.set(recorder.clone());
        }
    }

    /// Starts the thread that looks. Returns whether there was one left for it. Until there is,
    /// nothing is refused for the load.
    fn start(&self) -> bool {
        let state = Arc::downgrade(&self.0);
        let looks = thread::Builder::new().name("palisade-load".to_owned());
        looks.spawn(move || take_looks(&state)).is_ok()
    }
}

/// Takes looks until nothing needs them any more.
fn take_looks(state: &Weak<State>) {
    let mut pause = STEP;
    let mut last = probe::now();
    loop {
        thread::park_timeout(pause);
        let Some(state) = state.upgrade() else { return };
        let now = probe::now();
        pause = state.look(now.duration_since(last));
        last = now;
    }
}

impl State {
    /// Looks at all runtimes, `passed` after the look before. Returns the time until the next.
    fn look(&self, passed: Duration) -> Duration {
        let mut control = self.control.lock();
        control.runtimes.retain(|runtime| !runtime.has_ended());
        let stalls: Vec<_> = control
            .runtimes
            .iter_mut()
            .filter_map(Watched::look)
            .collect();
        control.elapsed = control.elapsed.saturating_add(passed);
        if control.elapsed >= STEP {
            let elapsed = std::mem::take(&mut control.elapsed);
            let delays = control.runtimes.iter_mut().map(Watched::take_delay);
            let delay = delays.min().unwrap_or_default();
            let requests = self.take_requests();
            self.step(&mut control, delay, elapsed, requests);
        }
        let is_shedding = control.shedding.is_shedding();
        drop(control);
        for delay in stalls {
            #[cfg(feature = "tracing")]
            tracing::warn!(
                target: "palisade",
                seconds = delay.as_secs(),
                "a runtime runs no tasks: all its workers are blocked, or have too much to do",
            );
            if let Some(recorder) = self.recorder.get() {
                recorder.record(|| Event::runtime_stalled(delay));
            }
        }
        if is_shedding || self.delay_micros.load(Relaxed) >= BUSY_DELAY.as_micros() as u64 {
            BUSY_LOOK_INTERVAL
        } else if self.share.load(Relaxed) & ASKED != 0 {
            STEP
        } else {
            QUIET_LOOK_INTERVAL
        }
    }

    /// Returns the number of requests in flight. The guard and layers may count the same ones.
    fn in_flight(&self) -> usize {
        let in_layers = self.in_layers.load(Relaxed);
        self.in_flight.load(Relaxed).max(in_layers)
    }

    fn take_requests(&self) -> Requests {
        Requests {
            have_asked: self.share.fetch_and(!ASKED, Relaxed) & ASKED != 0,
            admitted: self.admitted.swap(0, Relaxed),
            in_flight: self.in_flight(),
        }
    }

    fn step(&self, control: &mut Control, delay: Duration, elapsed: Duration, requests: Requests) {
        let share = control.shedding.step(delay, elapsed, requests);
        let share = ((share * f32::from(RuntimeLoad::WHOLE)) as u16).max(1);
        // A request that asks at this moment may not be noted. The next one is.
        self.share.store(share.into(), Relaxed);
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.delay_micros.store(micros, Relaxed);
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            share: AtomicU32::new(RuntimeLoad::WHOLE as u32),
            admitted: AtomicU32::new(0),
            in_flight: AtomicUsize::new(0),
            in_layers: AtomicUsize::new(0),
            delay_micros: AtomicU64::new(0),
            control: Mutex::default(),
            recorder: OnceLock::new(),
            is_reported: false,
        }
    }
}

impl fmt::Debug for RuntimeLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeLoad")
            .field("delay", &self.delay())
            .field("share", &self.share())
            .finish()
    }
}

#[cfg(test)]
mod tests;
