//! Whether memory that is nearly used up has grown since the last sweep.

use palisade_core::Memory;
use parking_lot::Mutex;

/// The level from which sockets are asked how much they have for the server to read, so that their
/// answers are there at the next level.
const ASK_LEVEL: f32 = 0.95;
/// The level from which connections are closed.
const CUT_LEVEL: f32 = 0.97;
/// A level that is higher by this is a new one.
const LEVEL_STEP: f32 = 1.0 / 1024.0;
/// Growth by this after connections were closed is more than a level that hovers.
const REGROWTH: f32 = 1.0 / 64.0;
/// Answers of sockets hold for this time. At the same level no more connections are closed before
/// this time has passed.
const PAUSE_MILLIS: u64 = 1000;
/// The time between two questions to the sockets, each of which wakes the task of a connection.
const ASK_MILLIS: u64 = 250;

/// What the sweeps remember of the growth of memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryGrowth(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// [`Memory::growth_steps`] at the last sweep.
    steps: Option<u32>,
    /// When the sockets were last asked.
    asked: Option<u64>,
    cut: Option<Cut>,
}

/// The last time that connections were closed.
#[derive(Clone, Copy, Debug)]
struct Cut {
    at: u64,
    level: f32,
    /// The least level since then.
    least: f32,
}

/// What a sweep does because memory has grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GrowthStep {
    /// Whether it closes connections.
    pub(crate) cuts: bool,
    /// Whether it asks the sockets.
    pub(crate) asks: bool,
    /// The limit of the memory, and the bytes in use.
    pub(crate) numbers: (u64, u64),
}

impl MemoryGrowth {
    /// Returns whether memory has grown since the last sweep and is short enough for a step.
    pub(crate) fn is_new(&self, memory: &Memory) -> bool {
        let steps = self.0.lock().steps;
        steps.is_some_and(|steps| steps != memory.growth_steps()) && level(memory) >= ASK_LEVEL
    }

    /// Returns what the sweep at `now` does, if memory has grown since the last sweep and is short
    /// enough. Times are in milliseconds.
    pub(crate) fn since_last_sweep(&self, memory: &Memory, now: u64) -> Option<GrowthStep> {
        let mut state = self.0.lock();
        let (steps, level) = (memory.growth_steps(), level(memory));
        let before = state.steps.replace(steps);
        if let Some(cut) = &mut state.cut {
            cut.least = cut.least.min(level);
        }
        if before.is_none_or(|before| before == steps) || level < ASK_LEVEL {
            return None;
        }
        let is_recent = |then: u64| now.saturating_sub(then) < PAUSE_MILLIS;
        let was_asked = state.asked.is_some_and(is_recent);
        let asks = state
            .asked
            .is_none_or(|then| now.saturating_sub(then) >= ASK_MILLIS);
        if asks {
            state.asked = Some(now);
        }
        let is_repeated = |cut: Cut| {
            let is_new = level >= cut.level + LEVEL_STEP || level >= cut.least + REGROWTH;
            is_recent(cut.at) && !is_new
        };
        let cuts = level >= CUT_LEVEL && was_asked && !state.cut.is_some_and(is_repeated);
        if cuts {
            state.cut = Some(Cut {
                at: now,
                level,
                least: level,
            });
        }
        let limit = memory.limit().unwrap_or(0);
        let used = memory.used().unwrap_or(limit);
        let numbers = (limit, used);
        Some(GrowthStep {
            cuts,
            asks,
            numbers,
        })
    }
}

/// Returns the part of the memory that is in use. It is above 1 where an application's source says
/// so.
fn level(memory: &Memory) -> f32 {
    let level = memory.pressure().get();
    match (memory.used(), memory.limit()) {
        // The two may be of different groups, where the nearest to its limit has just changed.
        (Some(used), Some(limit)) if level >= 1.0 => (used as f64 / limit.max(1) as f64) as f32,
        _ => level,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 100_000;

    /// Returns at which of the sweeps, 250 ms apart, connections are closed. Before each, a level is
    /// seen at ten looks.
    fn cuts(levels: impl IntoIterator<Item = u64>) -> Vec<usize> {
        let memory = Memory::reported(LIMIT).unwrap();
        let growth = MemoryGrowth::default();
        let sweeps = levels.into_iter().enumerate().filter(|(sweep, level)| {
            (0..10).for_each(|_| memory.report(*level));
            let step = growth.since_last_sweep(&memory, *sweep as u64 * 250);
            step.is_some_and(|step| step.cuts)
        });
        sweeps.map(|(sweep, _)| sweep).collect()
    }

    #[test]
    fn connections_are_closed_only_in_a_sweep_with_growth_after_the_sockets_were_asked() {
        // Asked at the third sweep, or when it is too late for that before the level is reached.
        assert_eq!(cuts([94_000, 94_500, 96_000, 97_500, 98_000]), [3, 4]);
        assert_eq!(cuts([90_000, 97_500, 98_000]), [2]);
        // What was asked a second ago is out of date.
        let still = [90_000, 96_000, 96_000, 96_000, 96_000, 97_500, 98_000];
        assert_eq!(cuts(still), [6]);
        // Below the level nothing is closed.
        assert!(cuts((0..20).map(|sweep| 90_000 + sweep * 340)).is_empty());
    }

    #[test]
    fn a_level_that_stands_still_closes_nothing_however_high_it_is() {
        for level in [97_000, 98_500, 100_000, 200_000] {
            assert!(cuts(std::iter::repeat_n(level, 14_400)).is_empty());
        }
    }

    #[test]
    fn a_level_that_hovers_at_the_threshold_closes_no_more_than_once_a_second() {
        let hovering = (0..80).map(|sweep| [96_500, 97_100][sweep % 2]);
        let cuts = cuts(hovering);
        assert!(cuts.len() > 5, "{cuts:?}");
        assert!(cuts.windows(2).all(|two| two[1] - two[0] >= 4), "{cuts:?}");
    }

    #[test]
    fn memory_that_grows_again_after_each_cut_is_cut_each_time() {
        let regrowing = (0..40).map(|sweep| [95_000, 97_500][sweep % 2]);
        assert_eq!(cuts(regrowing).len(), 19);
    }

    #[test]
    fn a_level_above_the_limit_is_cut_when_it_grows() {
        let growing = (0..10).map(|sweep| 96_000 + sweep * 2_000);
        assert_eq!(cuts(growing), (2..10).collect::<Vec<_>>());
    }

    #[test]
    fn sockets_are_asked_no_more_than_four_times_a_second() {
        let memory = Memory::reported(LIMIT).unwrap();
        let growth = MemoryGrowth::default();
        let steps = (0..100).filter_map(|sweep| {
            memory.report(96_000 + sweep * 400);
            growth.since_last_sweep(&memory, sweep * 25)
        });
        // For 2.5 s, but for the first sweep.
        assert_eq!(steps.filter(|step| step.asks).count(), 10);
    }

    #[test]
    fn growth_before_the_first_sweep_closes_nothing() {
        let memory = Memory::reported(LIMIT).unwrap();
        memory.report(95_000);
        memory.report(98_000);
        let growth = MemoryGrowth::default();
        assert_eq!(growth.since_last_sweep(&memory, 0), None);
        memory.report(99_000);
        let step = GrowthStep {
            cuts: false,
            asks: true,
            numbers: (LIMIT, 99_000),
        };
        assert_eq!(growth.since_last_sweep(&memory, 250), Some(step));
    }
}
