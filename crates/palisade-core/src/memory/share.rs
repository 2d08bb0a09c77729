//! The share of requests that a server admits while its memory grows.

use super::group::Sample;

/// The least share, in sixteenths: a quarter.
const LEAST: u8 = 4;
/// The unit of levels: this much is the whole limit.
pub(super) const LIMIT: u64 = 1 << 20;
/// The level from which growth lowers the share: 88 %.
const FROM_LEVEL: u64 = LIMIT * 88 / 100;
/// The level above which growth leads to the least share at once: 98 %.
const STEEP_LEVEL: u64 = LIMIT * 98 / 100;
/// Growth by this part of the limit is a step.
const STEP: u64 = LIMIT / 256;
/// The same above [`STEEP_LEVEL`].
const STEEP_STEP: u64 = LIMIT / 1024;

/// Growth by this after a step is more than a level that hovers.
const REGROWTH: u64 = LIMIT / 64;
/// For so many looks after a step, at the same level there is no other: a second, while memory is
/// short.
const PAUSE_LOOKS: u8 = 40;

/// The share of requests that are admitted, from the memory that is used at each look.
///
/// It falls while the memory grows, and rises while it does not, at any level: an allocator that
/// keeps freed memory must not refuse requests for ever.
///
/// Growth is that of the level and not of the bytes: the group that is nearest to its limit may be
/// another one at each look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    sixteenths: u8,
    /// The least level since the last step down, or since it was low.
    least: u64,
    /// The level at the last step down.
    last: u64,
    /// The looks since then, at most [`PAUSE_LOOKS`].
    looks: u8,
    /// The looks with growth.
    steps: u32,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            sixteenths: Self::WHOLE,
            least: u64::MAX,
            last: 0,
            looks: PAUSE_LOOKS,
            steps: 0,
        }
    }
}

impl Share {
    /// The share at rest, in sixteenths.
    pub(super) const WHOLE: u8 = 16;

    pub(super) fn sixteenths(self) -> u8 {
        self.sixteenths
    }

    pub(super) fn steps(self) -> u32 {
        self.steps
    }

    /// Takes a look, and returns the share in sixteenths. Without a sample, memory counts as not
    /// grown.
    pub(super) fn look(&mut self, sample: Option<Sample>) -> u8 {
        let level = sample.map_or(u64::MAX, level);
        let is_steep = level > STEEP_LEVEL;
        let step = if is_steep { STEEP_STEP } else { STEP };
        let growth = level.saturating_sub(self.least);
        let hovers =
            self.looks < PAUSE_LOOKS && growth < REGROWTH && level < self.last.saturating_add(step);
        self.looks = self.looks.saturating_add(1).min(PAUSE_LOOKS);
        if sample.is_some() && level >= FROM_LEVEL && growth >= step && !hovers {
            (self.least, self.last, self.looks) = (level, level, 0);
            self.steps = self.steps.wrapping_add(1);
            self.sixteenths = if is_steep {
                LEAST
            } else {
                (self.sixteenths / 2).max(LEAST)
            };
        } else {
            self.least = if sample.is_some() {
                self.least.min(level)
            } else {
                u64::MAX // What is seen next is no growth.
            };
            self.sixteenths = (self.sixteenths + 1).min(Self::WHOLE);
        }
        self.sixteenths
    }
}

/// Returns the level in parts of [`LIMIT`]. It may be above that.
pub(super) fn level(Sample { used, limit }: Sample) -> u64 {
    let level = u128::from(used) * u128::from(LIMIT) / u128::from(limit.max(1));
    u64::try_from(level).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const BYTES: u64 = 256 * MIB;

    fn at(used: u64) -> Option<Sample> {
        Some(Sample { used, limit: BYTES })
    }

    /// Returns the shares after looks at these values.
    fn shares(share: &mut Share, used: impl IntoIterator<Item = u64>) -> Vec<u8> {
        used.into_iter().map(|used| share.look(at(used))).collect()
    }

    #[test]
    fn growth_above_the_level_halves_the_share_and_standing_still_restores_it() {
        let mut share = Share::default();
        let grown = (220..230).map(|mib| mib * MIB);
        // 0.88 of the limit is 225.3 MiB.
        assert_eq!(
            shares(&mut share, grown),
            [16, 16, 16, 16, 16, 16, 8, 4, 4, 4]
        );
        let still = std::iter::repeat_n(229 * MIB, 12);
        assert_eq!(shares(&mut share, still), (5..=16).collect::<Vec<_>>());
    }

    #[test]
    fn each_look_with_growth_is_a_step() {
        let mut share = Share::default();
        let mut steps = |mib: u64| {
            share.look(at(mib * MIB));
            share.steps()
        };
        // The share is a quarter from the second step on.
        assert_eq!([224, 240, 241, 242, 243].map(&mut steps), [0, 1, 2, 3, 4]);
        assert_eq!([243, 243, 230, 234].map(&mut steps), [4, 4, 4, 5]);
    }

    #[test]
    fn a_level_that_stands_still_refuses_nothing_however_high_it_is() {
        for used in [BYTES / 100 * 97, BYTES / 1000 * 985, BYTES, 2 * BYTES] {
            let mut share = Share::default();
            let hour = std::iter::repeat_n(used, 3600 * 40);
            assert!(shares(&mut share, hour).iter().all(|share| *share == 16));
        }
    }

    #[test]
    fn slow_growth_counts_from_the_least_since_the_last_step() {
        let mut share = Share::default();
        let mut used = 240 * MIB;
        let mut least = 16;
        for _ in 0..40 {
            used += MIB / 4; // A step is 1 MiB.
            least = least.min(share.look(at(used)));
        }
        // It is halved at every fourth look, and rises by 3 in between.
        assert_eq!(least, 4);
        // A dip begins a new count, if it is no level that hovers.
        let mut share = Share::default();
        let dipping = [240, 241, 230, 234].map(|mib| mib * MIB);
        assert_eq!(shares(&mut share, dipping), [16, 8, 9, 4]);
    }

    #[test]
    fn a_level_that_hovers_is_one_step_a_second() {
        // Half a percent up and down at 96 %, each 25 and each 50 ms.
        for period in [2, 4] {
            let mut share = Share::default();
            let hovering =
                (0..4000).map(|look| BYTES / 1000 * if look % period == 0 { 965 } else { 960 });
            let shares = shares(&mut share, hovering);
            assert!((90..=101).contains(&share.steps()), "{}", share.steps());
            let mean = shares.iter().map(|share| f64::from(*share)).sum::<f64>() / 4000.0;
            assert!(mean > 14.0, "{mean}");
        }
        // Growth beyond the last step counts at once.
        let mut share = Share::default();
        let mut steps = |mib: u64| {
            share.look(at(mib * MIB));
            share.steps()
        };
        assert_eq!(
            [240, 241, 240, 241, 242, 239, 243].map(&mut steps),
            [0, 1, 1, 1, 2, 2, 3]
        );
    }

    #[test]
    fn above_the_steep_level_a_small_step_leads_to_the_least_share() {
        let mut share = Share::default();
        let used = [252 * MIB, 252 * MIB + BYTES / 1024];
        assert_eq!(shares(&mut share, used), [16, 4]);
        // Below it the same step counts as none.
        let mut share = Share::default();
        let used = [240 * MIB, 240 * MIB + BYTES / 1024];
        assert_eq!(shares(&mut share, used), [16, 16]);
    }

    #[test]
    fn groups_that_are_nearest_to_their_limits_in_turn_are_no_growth() {
        let (server, pod) = ((235 * MIB, 256 * MIB), (3760 * MIB, 4096 * MIB));
        let mut share = Share::default();
        for look in 0..1000 {
            let (used, limit) = if look % 2 == 0 { server } else { pod };
            let used = used + look % 3 * 4096;
            assert_eq!(share.look(Some(Sample { used, limit })), 16);
        }
    }

    #[test]
    fn a_source_that_fails_lets_the_share_rise() {
        let mut share = Share::default();
        shares(&mut share, [240 * MIB, 245 * MIB, 250 * MIB]);
        let risen: Vec<_> = (0..13).map(|_| share.look(None)).collect();
        assert_eq!(risen.last(), Some(&16));
        // What is seen first afterwards is no growth.
        assert_eq!(share.look(at(255 * MIB)), 16);
    }

    #[test]
    fn a_limit_of_zero_and_tiny_limits_do_no_harm() {
        let mut share = Share::default();
        for limit in [0, 1, 100] {
            for used in [0, 1, u64::MAX] {
                share.look(Some(Sample { used, limit }));
            }
        }
        assert!(share.look(None) >= 4);
    }
}
