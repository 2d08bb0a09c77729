//! The memory of the process: how much is used, and whether it grows.

mod events;
mod files;
mod group;
mod release;
mod share;
mod source;

use crate::{ConfigError, Gauge, GaugeSource, Pressure};
pub use events::MemoryEvents;
use group::{Groups, Sample};
use parking_lot::Mutex;
use release::Releaser;
use share::Share;
use source::AppSource;
use std::{
    fmt,
    path::Path,
    ptr,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

/// The time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// The same while memory is short.
const SHORT_LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// The time between two readings of what the kernel reports for metrics.
const EVENTS_INTERVAL: Duration = Duration::from_secs(1);
/// The level above which memory is short.
const SHORT_LEVEL: f32 = 0.80;

/// The memory that is used and its limit, for guards that protect it. Clones share one state.
///
/// [`Memory::of_process`] is what guards use. It looks four times a second, and every 25 ms while
/// more than 80 % are used. It counts what the kernel cannot drop: of each control group with a
/// limit, its usage without the pages of files. The group that is nearest to its limit decides.
/// Without such a group it compares the resident memory of the process with the memory of the
/// machine. This needs Linux. Elsewhere the application has to give a source.
///
/// - The [pressure](Self::pressure) is the part of the limit that is used. Guards shorten their
///   timeouts by it.
/// - The [share](Self::share) is the part of requests to admit. It is 1 unless memory is short
///   *and* grows: memory that an allocator keeps after a flood refuses nothing.
///
/// A plain thread takes the looks, because a runtime that is stuck must not blind it. It ends when
/// the last clone is dropped.
///
/// ```
/// use palisade_core::Memory;
///
/// // jemalloc's `stats.allocated`, for example.
/// let memory = Memory::with_source(1_000_000, || Some(930_000))?;
/// assert_eq!(memory.limit(), Some(1_000_000));
/// assert_eq!(memory.used(), Some(930_000));
/// assert_eq!(memory.pressure().get(), 0.93);
/// assert_eq!(memory.share(), 1.0); // It does not grow.
/// # Ok::<_, palisade_core::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct Memory(Arc<State>);

/// What the looks have found.
struct State {
    pressure: Pressure,
    /// In sixteenths.
    share: AtomicU8,
    growth_steps: AtomicU32,
    control: Mutex<Share>,
    used: AtomicU64,
    /// [`UNKNOWN`] if there is none.
    limit: AtomicU64,
    least_limit: Option<u64>,
    events: Mutex<MemoryEvents>,
    releaser: Mutex<Option<Releaser>>,
    /// The budgets whose bytes are held in this memory.
    budgets: Mutex<Vec<Weak<dyn GaugeSource>>>,
}

/// Where looks find the memory.
enum Source {
    Groups(Groups),
    /// `None` if there was no thread left for it.
    Application(Option<AppSource>),
}

/// Stands for a number of bytes that is not known.
const UNKNOWN: u64 = u64::MAX;

impl Memory {
    /// Returns the memory of this process. There is one for all guards.
    ///
    /// Off Linux nothing is known of it: its pressure is 0.
    pub fn of_process() -> Self {
        static OF_PROCESS: OnceLock<Memory> = OnceLock::new();
        OF_PROCESS
            .get_or_init(|| Self::below(Path::new("/")))
            .clone()
    }

    /// Returns the memory that the files below `root` tell of, as those below `/` tell of that of
    /// this process. For tests.
    #[doc(hidden)]
    pub fn below(root: &Path) -> Self {
        let mut groups = Groups::open(root);
        let memory = Self::new(groups.limit());
        if groups.sample().is_some() {
            memory.start(Source::Groups(groups));
        }
        memory
    }

    /// Returns the memory that `used` counts, in bytes. `used` is called on a thread of its own.
    /// `None` means that the number is not known at this time: nothing is refused then. The same
    /// holds while a call takes more than a second. After a panic it is not called again.
    ///
    /// # Errors
    ///
    /// If `limit` is 0.
    pub fn with_source(
        limit: u64,
        used: impl Fn() -> Option<u64> + Send + 'static,
    ) -> Result<Self, ConfigError> {
        let memory = Self::reported(limit)?;
        memory.start(Source::Application(AppSource::start(limit, used)));
        Ok(memory)
    }

    /// Returns memory of which the application [reports](Self::report) the use.
    ///
    /// # Errors
    ///
    /// If `limit` is 0.
    pub fn reported(limit: u64) -> Result<Self, ConfigError> {
        let mut error = ConfigError::new("the memory cannot be watched");
        error.check(limit > 0, "memory limit", &limit, "at least one byte");
        error.into_result()?;
        Ok(Self::new(Some(limit)))
    }

    /// Returns memory of which nothing is ever known.
    pub(crate) fn unknown() -> Self {
        Self::new(None)
    }

    fn new(limit: Option<u64>) -> Self {
        let control = Share::default();
        Self(Arc::new(State {
            pressure: Pressure::default(),
            share: AtomicU8::new(control.sixteenths()),
            growth_steps: AtomicU32::new(0),
            control: Mutex::new(control),
            used: AtomicU64::new(UNKNOWN),
            limit: AtomicU64::new(limit.unwrap_or(UNKNOWN)),
            least_limit: limit,
            events: Mutex::default(),
            releaser: Mutex::new(None),
            budgets: Mutex::default(),
        }))
    }

    /// Takes a look in which `used` bytes are used. The share falls if that is more than before.
    ///
    /// ```
    /// let memory = palisade_core::Memory::reported(1000)?;
    /// memory.report(900);
    /// assert_eq!(memory.share(), 1.0); // Short, but the first look.
    /// memory.report(950);
    /// assert_eq!(memory.share(), 0.5); // Short and growing.
    /// memory.report(950);
    /// assert!(memory.share() > 0.5); // It grows no more.
    /// # Ok::<_, palisade_core::ConfigError>(())
    /// ```
    pub fn report(&self, used: u64) {
        let limit = self.0.limit.load(Relaxed);
        self.0.look(Some(Sample { used, limit }));
    }

    /// Returns the part of the limit that is used, from 0 to 1.
    pub fn pressure(&self) -> &Pressure {
        &self.0.pressure
    }

    /// Returns the part of requests to admit, from 0.25 to 1.
    pub fn share(&self) -> f32 {
        f32::from(self.share_in_sixteenths()) / f32::from(Share::WHOLE)
    }

    /// Returns the [share](Self::share) in sixteenths.
    #[inline]
    pub fn share_in_sixteenths(&self) -> u8 {
        self.0.share.load(Relaxed)
    }

    /// Returns whether every request is to be admitted.
    #[inline(always)]
    pub(crate) fn is_share_whole(&self) -> bool {
        self.share_in_sixteenths() >= Share::WHOLE
    }

    /// Returns whether `other` is a clone of this.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns the number of looks so far in which the share fell, or stayed at its least, because
    /// the memory had grown. It wraps: only whether it has changed matters.
    ///
    /// ```
    /// let memory = palisade_core::Memory::reported(1000)?;
    /// memory.report(900);
    /// let before = memory.growth_steps();
    /// memory.report(900);
    /// assert_eq!(memory.growth_steps(), before);
    /// memory.report(950);
    /// assert_eq!(memory.growth_steps(), before + 1);
    /// # Ok::<_, palisade_core::ConfigError>(())
    /// ```
    #[inline]
    pub fn growth_steps(&self) -> u32 {
        self.0.growth_steps.load(Relaxed)
    }

    /// Returns the bytes in use at the last look, if they are known.
    pub fn used(&self) -> Option<u64> {
        known(self.0.used.load(Relaxed))
    }

    /// Returns the limit that belongs to [`used`](Self::used), in bytes, if it is known.
    pub fn limit(&self) -> Option<u64> {
        known(self.0.limit.load(Relaxed))
    }

    /// Returns the least limit that held at the start, of all control groups and of the machine.
    pub fn least_limit(&self) -> Option<u64> {
        self.0.least_limit
    }

    /// Returns what the kernel reported a second ago or less. All of it is `None` where the
    /// application gives a source or reports the use, and off Linux.
    ///
    /// ```
    /// use palisade_core::{Memory, MemoryEvents};
    ///
    /// let events = Memory::of_process().events();
    /// assert!(events.stall_percent.is_none_or(|percent| percent <= 100));
    /// let reported = Memory::reported(1_000_000)?;
    /// assert_eq!(reported.events(), MemoryEvents::default());
    /// # Ok::<_, palisade_core::ConfigError>(())
    /// ```
    pub fn events(&self) -> MemoryEvents {
        *self.0.events.lock()
    }

    /// Calls `release` when freed memory should be returned to the system: `malloc_trim(0)` of
    /// glibc, for example. Defaults to no such call.
    ///
    /// A call is made in two cases:
    ///
    /// - More than half of the limit is used, and for 250 ms less than a quarter of the bytes are
    ///   held that were held at the most since the last call. What is held is the sum of the
    ///   budgets that [report to](crate::Budget::report_to) this memory. It must have fallen by at
    ///   least 1/64 of the limit. What is held for less than the 250 ms between two looks may not
    ///   be noticed.
    /// - More than 80 % of the limit are used, and no more and no less for a second.
    ///
    /// There are 10 s or more between two calls. After a call that lowers the use by less than 1/64
    /// of the limit, the next one for the same case waits twice as long as that one did, 10 minutes
    /// at most. A call that lowers it by more ends this.
    ///
    /// `release` is called on a thread of its own, never twice at once. While it works, looks and
    /// [reports](Self::report) continue. After a panic it is not called again. A further call of
    /// this method replaces it. The thread ends when the last clone of this memory is dropped, and
    /// `release` has returned.
    ///
    /// ```
    /// use palisade_core::{Budget, Memory};
    /// use std::{sync::mpsc, time::Duration};
    ///
    /// let (memory, budget) = (Memory::reported(1_000_000)?, Budget::new(250_000)?);
    /// budget.report_to(&memory);
    /// let (called, is_called) = mpsc::channel();
    /// memory.release(move || called.send("trimmed").unwrap()); // `malloc_trim(0)`
    ///
    /// let uploads = budget.charge(None);
    /// uploads.take(200_000)?;
    /// memory.report(600_000);
    /// drop(uploads); // The clients leave, but the allocator keeps their memory.
    /// memory.report(600_000);
    /// std::thread::park_timeout(Duration::from_millis(500));
    /// memory.report(600_000);
    /// assert_eq!(is_called.recv_timeout(Duration::from_secs(20))?, "trimmed");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn release(&self, release: impl FnMut() + Send + 'static) {
        // If there is no thread left for it, the process has other troubles than its memory.
        *self.0.releaser.lock() = Releaser::start(release);
    }

    /// Counts the [`Gauge::BytesHeld`] of `budget` as held in this memory.
    pub(crate) fn watch(&self, budget: Weak<dyn GaugeSource>) {
        let mut budgets = self.0.budgets.lock();
        budgets.retain(|other| {
            other.strong_count() > 0 && !ptr::addr_eq(other.as_ptr(), budget.as_ptr())
        });
        budgets.push(budget);
    }

    /// Returns a function that takes a sample of what is used and its limit, from the files below
    /// `root`, as each look does from those below `/`. For tests and benches.
    #[doc(hidden)]
    pub fn sampler(root: &Path) -> impl FnMut() -> (Option<(u64, u64)>, MemoryEvents) {
        let mut groups = Groups::open(root);
        move || {
            let sample = groups.sample();
            let numbers = sample.map(|sample| (sample.used, sample.limit));
            (numbers, groups.events())
        }
    }

    /// Takes a look at once, and starts the thread that takes the next ones.
    fn start(&self, mut source: Source) {
        *self.0.events.lock() = source.events();
        let pause = self.0.look(source.sample());
        let state = Arc::downgrade(&self.0);
        let looks = thread::Builder::new().name("palisade-memory".to_owned());
        // If there is no thread left for it, the process has other troubles than its memory.
        let _ = looks.spawn(move || take_looks(&mut source, &state, pause));
    }
}

/// Takes looks until nothing needs them any more.
fn take_looks(source: &mut Source, state: &Weak<State>, mut pause: Duration) {
    let mut until_events = EVENTS_INTERVAL;
    loop {
        thread::park_timeout(pause);
        let sample = source.sample();
        until_events = until_events.saturating_sub(pause);
        let events = until_events.is_zero().then(|| source.events());
        let Some(state) = state.upgrade() else { return };
        if let Some(events) = events {
            *state.events.lock() = events;
            until_events = EVENTS_INTERVAL;
        }
        pause = state.look(sample);
    }
}

fn known(bytes: u64) -> Option<u64> {
    (bytes != UNKNOWN).then_some(bytes)
}

impl State {
    /// Stores what a look has found. Returns the time until the next one.
    fn look(&self, sample: Option<Sample>) -> Duration {
        let level = sample.map_or(0.0, Sample::level);
        self.used
            .store(sample.map_or(UNKNOWN, |sample| sample.used), Relaxed);
        if let Some(sample) = sample {
            self.limit.store(sample.limit, Relaxed);
            if let Some(releaser) = &mut *self.releaser.lock() {
                releaser.look(sample, self.held());
            }
        }
        let mut control = self.control.lock();
        self.share.store(control.look(sample), Relaxed);
        // The level first: it decides what a step of growth leads to.
        self.pressure.set(level);
        self.growth_steps.store(control.steps(), Relaxed);
        drop(control);
        if level > SHORT_LEVEL {
            SHORT_LOOK_INTERVAL
        } else {
            LOOK_INTERVAL
        }
    }

    /// Returns the bytes that all budgets of this memory hold.
    fn held(&self) -> u64 {
        let mut held = 0u64;
        for budget in self.budgets.lock().iter().filter_map(Weak::upgrade) {
            budget.sample(&mut |gauge, bytes| {
                if gauge == Gauge::BytesHeld {
                    held = held.saturating_add(bytes);
                }
            });
        }
        held
    }
}

impl Source {
    fn sample(&mut self) -> Option<Sample> {
        match self {
            Self::Groups(groups) => groups.sample(),
            Self::Application(source) => source.as_mut()?.sample(),
        }
    }

    fn events(&mut self) -> MemoryEvents {
        match self {
            Self::Groups(groups) => groups.events(),
            Self::Application(_) => MemoryEvents::default(),
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("used", &self.used())
            .field("limit", &self.limit())
            .field("share", &self.share())
            .finish()
    }
}

#[cfg(test)]
mod tests;
