//! The times of one round.

use crate::verdict::MAX_RECOVERY;
use std::time::Duration;

/// The times of one round, in that order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// Honest clients alone.
    pub(super) before: Duration,
    /// The attackers begin, one after the other.
    pub(super) ramp_up: Duration,
    /// The first shock passes.
    pub(super) lead_in: Duration,
    /// The part of the attack that is judged.
    pub(super) middle: Duration,
    /// Attackers begin nothing more, and the server has time to end what they hold.
    pub(super) settle: Duration,
    /// Newcomers ask for places, where the number of those is known, until they have displaced the
    /// attackers: an eighth of it to come, the rest to be served. Attackers grow old meanwhile, and
    /// a server can tell them from newcomers.
    pub(super) wave: Duration,
}

impl Schedule {
    pub(super) fn new(quick: bool) -> Self {
        let milliseconds =
            |full, quickly| Duration::from_millis(if quick { quickly } else { full });
        Self {
            before: milliseconds(1_500, 800),
            ramp_up: milliseconds(1_000, 500),
            lead_in: milliseconds(1_000, 300),
            middle: milliseconds(6_000, 2_200),
            settle: milliseconds(3_000, 1_000),
            wave: milliseconds(6_000, 4_000),
        }
    }

    /// Returns the time in which attackers begin something.
    pub(super) fn attack(&self) -> Duration {
        self.ramp_up + self.lead_in + self.middle
    }

    /// Returns the longest time of an attack, with a second round.
    pub(super) fn longest(&self) -> Duration {
        let round = self.before + self.attack() + self.settle + self.wave + MAX_RECOVERY;
        2 * round
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::MAX_ATTACK_TIME;

    #[test]
    fn a_round_is_within_the_bound_of_an_attack() {
        for quick in [true, false] {
            let schedule = Schedule::new(quick);
            let attacked = schedule.attack() + schedule.settle + schedule.wave;
            assert!(attacked < MAX_ATTACK_TIME);
        }
    }
}
