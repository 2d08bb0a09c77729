//! Whether memory that is nearly used up has grown since the last sweep.

use palisade_core::Memory;
use parking_lot::Mutex;

/// The level from which sockets are asked how much they have for the server to read. Those with
/// much get a smaller receive buffer, and the answers are there at the next level.
const ASK_LEVEL: f32 = 0.80;
/// Growth by this part of the limit since the last question leads to the next one.
const ASK_PART: u64 = 256;
/// The level from which connections are closed for that alone. Nothing else ends its growth: what
/// clients send on open connections is not refused. So this is below the level from which requests
/// are.
const UNREAD_LEVEL: f32 = 0.90;
/// The level from which connections are closed for all that they hold.
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
    /// The least memory in use since then.
    least: u64,
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

/// For what a sweep closes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CutFor {
    /// For what their sockets have for the server to read.
    Unread,
    /// For that, and what is charged for their requests.
    All,
}

/// What a sweep does because memory has grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GrowthStep {
    /// Whether it closes connections.
    pub(crate) cut: Option<CutFor>,
    /// Whether it asks the sockets.
    pub(crate) asks: bool,
    /// The limit of the memory, and the bytes in use.
    pub(crate) numbers: (u64, u64),
}

impl MemoryGrowth {
    /// Returns whether memory has grown since the last sweep and is short enough for a step.
    pub(crate) fn is_new(&self, memory: &Memory) -> bool {
        let state = self.0.lock();
        let has_stepped = |steps| steps != memory.growth_steps() || state.has_grown(memory);
        level(memory) >= ASK_LEVEL && state.steps.is_some_and(has_stepped)
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
        let used = memory.used().unwrap_or(0);
        let Some(before) = before else {
            state.least = used;
            return None;
        };
        let (has_stepped, has_grown) = (before != steps, state.has_grown(memory));
        state.least = state.least.min(used);
        if level < ASK_LEVEL || !has_stepped && !has_grown {
            return None;
        }
        let is_recent = |then: u64| now.saturating_sub(then) < PAUSE_MILLIS;
        let was_asked = state.asked.is_some_and(is_recent);
        let asks = state
            .asked
            .is_none_or(|then| now.saturating_sub(then) >= ASK_MILLIS);
        if asks {
            state.asked = Some(now);
            state.least = used;
        }
        let is_repeated = |cut: Cut| {
            let is_new = level >= cut.level + LEVEL_STEP || level >= cut.least + REGROWTH;
            is_recent(cut.at) && !is_new
        };
        let is_due = has_stepped && was_asked && !state.cut.is_some_and(is_repeated);
        let cut = match level {
            CUT_LEVEL.. => Some(CutFor::All),
            UNREAD_LEVEL.. => Some(CutFor::Unread),
            _ => None,
        };
        let cut = cut.filter(|_| is_due);
        if cut.is_some() {
            state.cut = Some(Cut {
                at: now,
                level,
                least: level,
            });
        }
        let numbers = (memory.limit().unwrap_or(0), used);
        let step = GrowthStep { cut, asks, numbers };
        (asks || cut.is_some()).then_some(step)
    }
}

impl State {
    /// Returns whether memory has grown since the sockets were last asked.
    fn has_grown(&self, memory: &Memory) -> bool {
        let (Some(used), Some(limit)) = (memory.used(), memory.limit()) else {
            return false;
        };
        used.saturating_sub(self.least) > limit / ASK_PART
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

    /// Returns at which of the sweeps, 250 ms apart, connections are closed, and for what. Before
    /// each, a level is seen at ten looks.
    fn all_cuts(levels: impl IntoIterator<Item = u64>) -> Vec<(usize, CutFor)> {
        let memory = Memory::reported(LIMIT).unwrap();
        let growth = MemoryGrowth::default();
        let sweeps = levels.into_iter().enumerate().filter_map(|(sweep, level)| {
            (0..10).for_each(|_| memory.report(level));
            let step = growth.since_last_sweep(&memory, sweep as u64 * 250);
            Some((sweep, step?.cut?))
        });
        sweeps.collect()
    }

    /// Returns at which of them they are closed for all that they hold.
    fn cuts(levels: impl IntoIterator<Item = u64>) -> Vec<usize> {
        let cuts = all_cuts(levels).into_iter();
        cuts.filter_map(|(sweep, cut)| (cut == CutFor::All).then_some(sweep))
            .collect()
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
        for level in [90_000, 97_000, 98_500, 100_000, 200_000] {
            assert!(all_cuts(std::iter::repeat_n(level, 14_400)).is_empty());
        }
    }

    #[test]
    fn what_is_unread_is_cut_before_requests_are_refused() {
        let growing = (0..11).map(|sweep| 87_000 + sweep * 1_000);
        let unread = [3, 4, 5, 6, 7, 8, 9].map(|sweep| (sweep, CutFor::Unread));
        assert_eq!(
            all_cuts(growing),
            [&unread[..], &[(10, CutFor::All)]].concat()
        );
        // At the threshold no more than once a second.
        let hovering = (0..80).map(|sweep| [89_500, 90_100][sweep % 2]);
        let cuts = all_cuts(hovering);
        assert!(cuts.len() > 5, "{cuts:?}");
        assert!(
            cuts.windows(2).all(|two| two[1].0 - two[0].0 >= 4),
            "{cuts:?}"
        );
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
    fn sockets_are_asked_in_good_time_and_only_while_memory_grows() {
        let memory = Memory::reported(LIMIT).unwrap();
        let growth = MemoryGrowth::default();
        let asks = |sweep: u64, level| {
            memory.report(level);
            let is_urgent = growth.is_new(&memory);
            let step = growth.since_last_sweep(&memory, sweep * 250);
            assert_eq!(is_urgent, step.is_some());
            step.is_some_and(|step| step.asks)
        };
        let levels = [
            70_000, 79_900, 80_000, 80_300, 80_391, 80_391, 80_700, 80_900,
        ];
        let asked = (0..).zip(levels).map(|(sweep, level)| asks(sweep, level));
        assert_eq!(
            asked.collect::<Vec<_>>(),
            [false, false, true, false, true, false, false, true]
        );
        // From the least since then.
        assert_eq!(
            [79_000, 80_100, 80_200].map(|level| asks(9, level)),
            [false, true, false]
        );
        assert!((10..1000).all(|sweep| !asks(sweep, 80_200)));
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
            cut: None,
            asks: true,
            numbers: (LIMIT, 99_000),
        };
        assert_eq!(growth.since_last_sweep(&memory, 250), Some(step));
    }
}
