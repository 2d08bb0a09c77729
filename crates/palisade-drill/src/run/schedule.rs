//! The times of one round.

use crate::{
    attacks::{Attack, Takes},
    verdict::MAX_RECOVERY,
};
use std::time::Duration;

/// The times of one round, in that order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    is_quick: bool,
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
            is_quick: quick,
            before: milliseconds(1_000, 800),
            ramp_up: milliseconds(500, 500),
            lead_in: milliseconds(500, 300),
            middle: milliseconds(4_000, 2_200),
            settle: milliseconds(2_500, 1_000),
            wave: milliseconds(6_000, 4_000),
        }
    }

    /// Returns the times of a drill in which newcomers ask for all places. What they do not get is
    /// what the attackers keep, so that the server has no time of its own to end it.
    pub(super) fn with_newcomers(mut self) -> Self {
        self.settle = self.settle.min(Duration::from_millis(500));
        self
    }

    /// Returns the times of `attack`.
    pub(super) fn of(mut self, attack: &Attack) -> Self {
        let milliseconds =
            |full, quickly| Duration::from_millis(if self.is_quick { quickly } else { full });
        if attack.takes != Takes::Places {
            // Nothing is judged that the server has yet to end.
            self.ramp_up = milliseconds(300, 300);
            self.middle = milliseconds(2_500, 1_500);
            self.settle = Duration::ZERO;
        }
        if attack.takes == Takes::Nothing {
            self.ramp_up = Duration::ZERO;
        }
        let times = attack.times;
        let longer = times.full.filter(|_| !self.is_quick).max(times.least);
        let longer = longer.unwrap_or_default();
        let longer = longer.saturating_sub(self.ramp_up + self.lead_in);
        self.middle = self.middle.max(longer);
        self
    }

    /// Returns the time in which attackers begin something.
    pub(super) fn attack(&self) -> Duration {
        self.ramp_up + self.lead_in + self.middle
    }

    /// Returns the time of an attack that is held, and in which no newcomers are sent.
    pub(super) fn shortest(&self) -> Duration {
        self.before + self.attack() + self.settle
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
    use crate::{
        attacks::{self, InQuick, Needs},
        bounds::MAX_RUN_TIME,
    };

    #[test]
    fn a_server_that_holds_is_drilled_for_a_minute_or_for_eight() {
        let time_of = |quick: bool, tls: bool| {
            let schedule = Schedule::new(quick).with_newcomers();
            // The attack on memory needs a limit of a child, and takes the time of others.
            let attacks = attacks::all().into_iter();
            let attacks = attacks.filter(|attack| attack.needs != Needs::MemoryLimit);
            let attacks = attacks.filter(|attack| tls == (attack.needs == Needs::Tls));
            let attacks =
                attacks.filter(|attack| !quick || !matches!(attack.in_quick, InQuick::Skipped(_)));
            let times = attacks.map(|attack| schedule.of(&attack).shortest());
            times.sum::<Duration>()
        };
        let (quick, full) = (time_of(true, false), time_of(false, false));
        // What is left is for newcomers and second rounds.
        assert!(quick < Duration::from_secs(52), "{quick:?}");
        assert!(full < Duration::from_secs(440), "{full:?}");
        // What TLS adds.
        let (quick, full) = (time_of(true, true), time_of(false, true));
        assert!(quick < Duration::from_secs(8), "{quick:?}");
        assert!(full < Duration::from_secs(25), "{full:?}");
    }

    #[test]
    fn a_round_is_within_the_bound_of_an_attack() {
        for quick in [true, false] {
            for attack in attacks::all() {
                let schedule = Schedule::new(quick).of(&attack);
                let attacked = schedule.attack() + schedule.settle + schedule.wave;
                assert!(attacked < attack.longest(), "{}", attack.name);
                assert!(schedule.longest() < MAX_RUN_TIME, "{}", attack.name);
            }
        }
    }
}
