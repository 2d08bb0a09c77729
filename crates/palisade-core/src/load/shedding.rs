//! The share of requests that a server admits while its runtime is overloaded.

use std::time::Duration;

/// The delay that begins an overload, if it lasts for [`PATIENCE`]. A runtime that has run out of
/// work in that time has caught up by itself, as after a burst.
pub(super) const OVERLOAD_DELAY: Duration = Duration::from_millis(250);
/// How long the delay has to be that high before requests are refused.
const PATIENCE: Duration = Duration::from_secs(1);
/// The delay that an overloaded runtime is held at.
const TARGET_DELAY: Duration = Duration::from_millis(100);
/// The overload has ended when everything was admitted for this time within the target.
const CALM: Duration = Duration::from_secs(2);
/// The least share.
const LEAST: f32 = 1.0 / 64.0;
/// The largest rise of the share in one step.
const MAX_RISE: f32 = 2.0;
/// The least share does not help if the delay stays above [`OVERLOAD_DELAY`] for this time.
const VAIN: Duration = Duration::from_secs(1);
/// The same while more than [`FEW_REQUESTS`] are in flight: they may be the cause, and by then most
/// of them have ended.
const VAIN_IN_FLIGHT: Duration = Duration::from_secs(30);
/// If fewer requests than this are admitted in each second of it, other tasks are the cause.
const FEW_REQUESTS: u32 = 10;
/// How long everything is admitted then. It doubles each time.
const MIN_PAUSE: Duration = Duration::from_secs(10);
/// The longest such time.
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// The share of requests to admit, from the delay of the runtime in each step.
///
/// The delay is what a task waits in the run queue. If the share were kept, the work that waits and
/// the work that comes would take the step's time, and the delay above the target, and the growth
/// of the delay. The next step has only its own time, so the share is divided by that ratio. This
/// is a proportional-integral controller for queues, as in RFC 8033, on the logarithm of the share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shedding {
    share: f32,
    /// The delay of the step before.
    previous: Duration,
    stage: Stage,
    /// How long everything is admitted when refusing does not help.
    pause: Duration,
}

/// The requests of one step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Requests {
    /// Whether any has asked for the share.
    pub(super) have_asked: bool,
    /// Those that were admitted while the share was not whole.
    pub(super) admitted: u32,
    /// Those that have been admitted and have not ended.
    pub(super) in_flight: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Everything is admitted.
    Admitting {
        /// The delay was high for this time.
        high: Duration,
        /// It was not, for this time.
        low: Duration,
    },
    /// The share is controlled.
    Shedding {
        /// The share was whole and the delay low for this time.
        calm: Duration,
        vain: Vain,
    },
    /// Refusing did not help. Everything is admitted for this time.
    Paused { left: Duration },
}

/// The time for which the share was at its least and the delay high.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vain {
    time: Duration,
    /// The requests that were admitted in it.
    admitted: u32,
}

impl Default for Shedding {
    fn default() -> Self {
        Self {
            share: 1.0,
            previous: Duration::ZERO,
            stage: Stage::ADMITTING,
            pause: MIN_PAUSE,
        }
    }
}

impl Stage {
    const ADMITTING: Self = Self::Admitting {
        high: Duration::ZERO,
        low: Duration::ZERO,
    };
}

impl Shedding {
    /// Takes a step in which `elapsed` has passed and a task waited for `delay`. Returns the share.
    ///
    /// If no request has asked for the share, a delay is not the work of requests: the runtime is
    /// blocked, and to refuse requests does not help.
    pub(super) fn step(&mut self, delay: Duration, elapsed: Duration, requests: Requests) -> f32 {
        let is_blocked = !requests.have_asked && delay > TARGET_DELAY;
        match &mut self.stage {
            // The share stays, but requests that stay away are no cause of the delay.
            Stage::Shedding { .. } if is_blocked => {
                self.pause_if_vain(delay, elapsed, requests);
            }
            Stage::Admitting { .. } if is_blocked => {}
            Stage::Admitting { high, low } if delay < OVERLOAD_DELAY => {
                *high = Duration::ZERO;
                *low = low.saturating_add(elapsed);
                if *low >= self.pause {
                    self.pause = MIN_PAUSE;
                }
            }
            Stage::Admitting { high, low } => {
                *low = Duration::ZERO;
                *high = high.saturating_add(elapsed);
                if *high >= PATIENCE {
                    self.stage = Stage::Shedding {
                        calm: Duration::ZERO,
                        vain: Vain::default(),
                    };
                    self.previous = delay; // Only what is above the target counts at first.
                    self.control(delay, elapsed);
                }
            }
            Stage::Shedding { .. } => {
                self.control(delay, elapsed);
                self.end_if_calm(delay, elapsed);
                self.pause_if_vain(delay, elapsed, requests);
            }
            Stage::Paused { left } => {
                *left = left.saturating_sub(elapsed);
                if left.is_zero() {
                    self.stage = Stage::ADMITTING;
                }
            }
        }
        if !is_blocked {
            self.previous = delay;
        }
        self.share
    }

    /// Returns whether requests may be refused.
    pub(super) fn is_shedding(&self) -> bool {
        matches!(self.stage, Stage::Shedding { .. })
    }

    fn control(&mut self, delay: Duration, elapsed: Duration) {
        let [delay, previous, target, elapsed] =
            [delay, self.previous, TARGET_DELAY, elapsed].map(|time| time.as_secs_f32());
        let work = elapsed + (delay - target) + (delay - previous);
        // A step without time, whose ratio may be no number, counts as one without work.
        let ratio = (work / elapsed).max(1.0 / MAX_RISE);
        self.share = (self.share / ratio).clamp(LEAST, 1.0);
    }

    fn end_if_calm(&mut self, delay: Duration, elapsed: Duration) {
        let Stage::Shedding { calm, .. } = &mut self.stage else {
            return;
        };
        *calm = if self.share < 1.0 || delay > TARGET_DELAY {
            Duration::ZERO
        } else {
            calm.saturating_add(elapsed)
        };
        if *calm >= CALM {
            *self = Self::default();
        }
    }

    /// Admits everything for a while if the least share does not help: tasks that are no requests
    /// keep the runtime busy, and the requests have to live with that.
    fn pause_if_vain(&mut self, delay: Duration, elapsed: Duration, requests: Requests) {
        let Stage::Shedding { vain, .. } = &mut self.stage else {
            return;
        };
        if self.share > LEAST || delay < OVERLOAD_DELAY {
            *vain = Vain::default();
            return;
        }
        vain.time = vain.time.saturating_add(elapsed);
        vain.admitted = vain.admitted.saturating_add(requests.admitted);
        let few_in_flight = requests.in_flight <= FEW_REQUESTS as usize;
        let patience = if few_in_flight { VAIN } else { VAIN_IN_FLIGHT };
        if vain.time < patience {
            return;
        }
        let few = u64::from(FEW_REQUESTS).saturating_mul(vain.time.as_secs());
        if u64::from(vain.admitted) < few {
            self.share = 1.0;
            self.stage = Stage::Paused { left: self.pause };
            self.pause = (self.pause * 2).min(MAX_PAUSE);
        } else {
            *vain = Vain::default();
        }
    }
}

#[cfg(test)]
mod tests;
