//! The share of requests that a server admits while its memory grows.

use super::group::Sample;

/// The least share, in sixteenths: a quarter.
const LEAST: u8 = 4;
/// The level from which growth lowers the share.
const FROM_LEVEL: f32 = 0.88;
/// The level above which growth leads to the least share at once.
const STEEP_LEVEL: f32 = 0.98;
/// Growth by this part of the limit is a step.
const STEP_PART: u64 = 256;
/// The same above [`STEEP_LEVEL`].
const STEEP_STEP_PART: u64 = 1024;

/// The share of requests that are admitted, from the memory that is used at each look.
///
/// It falls while the memory grows, and rises while it does not, at any level: an allocator that
/// keeps freed memory must not refuse requests for ever.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    sixteenths: u8,
    /// The least memory in use since the last step down, or since the level was low.
    least: u64,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            sixteenths: Self::WHOLE,
            least: u64::MAX,
        }
    }
}

impl Share {
    /// The share at rest, in sixteenths.
    pub(super) const WHOLE: u8 = 16;

    pub(super) fn sixteenths(self) -> u8 {
        self.sixteenths
    }

    /// Takes a look, and returns the share in sixteenths. Without a sample, memory counts as not
    /// grown.
    pub(super) fn look(&mut self, sample: Option<Sample>) -> u8 {
        if self.has_grown(sample) {
            self.least = sample.map_or(u64::MAX, |sample| sample.used);
            let is_steep = sample.is_some_and(|sample| sample.level() > STEEP_LEVEL);
            self.sixteenths = if is_steep {
                LEAST
            } else {
                (self.sixteenths / 2).max(LEAST)
            };
        } else {
            self.least = sample.map_or(u64::MAX, |sample| sample.used.min(self.least));
            self.sixteenths = (self.sixteenths + 1).min(Self::WHOLE);
        }
        self.sixteenths
    }

    fn has_grown(&self, sample: Option<Sample>) -> bool {
        let Some(sample) = sample else { return false };
        let level = sample.level();
        let part = if level > STEEP_LEVEL {
            STEEP_STEP_PART
        } else {
            STEP_PART
        };
        let growth = sample.used.saturating_sub(self.least);
        level >= FROM_LEVEL && growth > 0 && growth >= sample.limit / part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LIMIT: u64 = 256 * MIB;

    fn at(used: u64) -> Option<Sample> {
        Some(Sample { used, limit: LIMIT })
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
    fn a_level_that_stands_still_refuses_nothing_however_high_it_is() {
        for used in [LIMIT / 100 * 97, LIMIT / 1000 * 985, LIMIT, 2 * LIMIT] {
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
        // A dip begins a new count.
        let mut share = Share::default();
        let dipping = [240, 241, 230, 231].map(|mib| mib * MIB);
        assert_eq!(shares(&mut share, dipping), [16, 8, 9, 4]);
    }

    #[test]
    fn above_the_steep_level_a_small_step_leads_to_the_least_share() {
        let mut share = Share::default();
        let used = [252 * MIB, 252 * MIB + LIMIT / 1024];
        assert_eq!(shares(&mut share, used), [16, 4]);
        // Below it the same step counts as none.
        let mut share = Share::default();
        let used = [240 * MIB, 240 * MIB + LIMIT / 1024];
        assert_eq!(shares(&mut share, used), [16, 16]);
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
