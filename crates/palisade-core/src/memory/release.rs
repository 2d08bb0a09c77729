//! When the application returns freed memory to the system, and the thread on which it does.

use super::{
    group::Sample,
    share::{LIMIT, level},
};
use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};
use tokio::time::Instant;

/// The level above which a call may help after held bytes were given back: half of the limit.
const MIN_LEVEL: u64 = LIMIT / 2;
/// The level above which a call may help where the level stands: 80 %.
const STANDING_LEVEL: u64 = LIMIT * 80 / 100;
/// A level that stays within this distance stands.
const STANDING_DISTANCE: u64 = LIMIT / 256;
/// The time after which a level stands.
const STANDING_TIME: Duration = Duration::from_secs(1);
/// The time after which bytes that were given back are free: a charge may end before its body is
/// dropped.
const FREED_TIME: Duration = Duration::from_millis(250);
/// A call that returns less than this part of the limit is useless.
const USEFUL_PART: u64 = 64;
/// Held bytes have been given back when less than this part of their peak is left.
const HELD_PART: u64 = 4;
/// The least time between two calls.
const MIN_PAUSE: Duration = Duration::from_secs(10);
/// The time between two calls for one cause after many useless ones.
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// The closure of the application, on a thread that waits for calls.
///
/// It has a thread of its own, because looks have to continue while it works: a level that nothing
/// reads would keep the pressure and the share as they were.
pub(super) struct Releaser {
    decision: Decision,
    began: Instant,
    calls: SyncSender<()>,
    /// Stays true after a panic, so that the closure is not called again.
    is_running: Arc<AtomicBool>,
}

/// Decides when the closure is called. Pure; the caller supplies the time.
///
/// A call locks the heap, so each cause waits twice as long after a useless call. The causes wait
/// apart: live bytes that stand for an hour must not delay the call after they are given back.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// The most bytes that were held since the last call.
    peak: u64,
    /// The level that has been kept, and since when.
    standing: Option<(u64, Duration)>,
    /// Since when the held bytes are given back.
    given_back_since: Option<Duration>,
    given_back: Backoff,
    stands: Backoff,
    /// The call whose result is not known yet, and the level before it.
    call: Option<(Cause, u64)>,
}

/// What a call is made for.
#[derive(Clone, Copy, Debug)]
enum Cause {
    /// Most of the held bytes were given back.
    GivenBack,
    /// The level is high and stands.
    Stands,
}

/// When the next call for one cause may be.
#[derive(Debug)]
struct Backoff {
    pause: Duration,
    not_before: Duration,
}

// === Releaser ===

impl Releaser {
    /// Starts the thread. Returns `None` if there is none left.
    pub(super) fn start(mut release: impl FnMut() + Send + 'static) -> Option<Self> {
        let (calls, next_call) = sync_channel(1);
        let is_running = Arc::new(AtomicBool::new(false));
        let running = is_running.clone();
        let thread = thread::Builder::new().name("palisade-release".to_owned());
        let spawned = thread.spawn(move || {
            while next_call.recv().is_ok() {
                release();
                running.store(false, Release);
            }
        });
        spawned.ok()?;
        Some(Self {
            decision: Decision::default(),
            began: Instant::now(),
            calls,
            is_running,
        })
    }

    /// Takes a look at which `held` bytes are held, and calls the closure if that may help. Does
    /// not wait for it.
    pub(super) fn look(&mut self, sample: Sample, held: u64) {
        let now = self.began.elapsed();
        if self.decision.look(now, sample, held, self.is_running()) {
            self.is_running.store(true, Release);
            // The thread waits, or its closure has panicked.
            let _ = self.calls.try_send(());
        }
    }

    /// Returns whether the closure has been called and has not returned.
    pub(super) fn is_running(&self) -> bool {
        self.is_running.load(Acquire)
    }
}

// === Decision ===

impl Decision {
    /// Takes a look, and returns whether the closure is to be called. `is_running` is whether it
    /// has not returned yet.
    pub(super) fn look(
        &mut self,
        now: Duration,
        sample: Sample,
        held: u64,
        is_running: bool,
    ) -> bool {
        let level = level(sample);
        self.peak = self.peak.max(held);
        let stands = self.stands(now, level);
        let is_given_back = self.is_given_back(now, sample, held, level);
        if is_running {
            return false;
        }
        if let Some((cause, before)) = self.call.take() {
            self.returned(now, cause, before.saturating_sub(level));
        }
        let cause = if now >= self.given_back.not_before && is_given_back {
            Cause::GivenBack
        } else if now >= self.stands.not_before && stands {
            Cause::Stands
        } else {
            return false;
        };
        self.peak = held;
        self.given_back_since = None;
        self.call = Some((cause, level));
        true
    }

    /// Returns whether the level is high and has been kept for a while.
    fn stands(&mut self, now: Duration, level: u64) -> bool {
        let (kept, since) = *self.standing.get_or_insert((level, now));
        if level.abs_diff(kept) > STANDING_DISTANCE {
            self.standing = Some((level, now));
            return false;
        }
        level > STANDING_LEVEL && now.saturating_sub(since) >= STANDING_TIME
    }

    /// Returns whether most of the held bytes were given back, and have been for a while.
    fn is_given_back(&mut self, now: Duration, sample: Sample, held: u64, level: u64) -> bool {
        // Small requests come and go at rest. A call for them could not be useful.
        let given_back = self.peak.saturating_sub(held);
        let is_given_back = level > MIN_LEVEL
            && held < self.peak / HELD_PART
            && given_back >= sample.limit / USEFUL_PART;
        if !is_given_back {
            self.given_back_since = None;
            return false;
        }
        let since = *self.given_back_since.get_or_insert(now);
        now.saturating_sub(since) >= FREED_TIME
    }

    /// Notes that a call has lowered the level by so much.
    fn returned(&mut self, now: Duration, cause: Cause, lowered: u64) {
        let is_useful = lowered >= LIMIT / USEFUL_PART;
        if !is_useful {
            let backoff = match cause {
                Cause::GivenBack => &mut self.given_back,
                Cause::Stands => &mut self.stands,
            };
            backoff.pause = (backoff.pause * 2).min(MAX_PAUSE);
            backoff.not_before = now.saturating_add(backoff.pause);
        }
        for backoff in [&mut self.given_back, &mut self.stands] {
            if is_useful {
                *backoff = Backoff::default();
            }
            backoff.not_before = backoff.not_before.max(now.saturating_add(MIN_PAUSE));
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            pause: MIN_PAUSE,
            not_before: Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests;
