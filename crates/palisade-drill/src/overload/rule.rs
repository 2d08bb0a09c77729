//! The verdict of an overload, from what its requests were answered. Pure.

use crate::{
    grade::{Verdict, percent},
    verdict::{MAX_LATENESS, MAX_RECOVERY},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The part of its capacity that a server answers in time and holds.
const HELD_SHARE: f64 = 0.7;
/// The part below which it is down.
const DOWN_SHARE: f64 = 0.2;
/// The part of the refusals that may be late.
const LATE_SHARE: f64 = 0.01;
/// The least number of requests that a capacity is known from.
const MIN_SERVED: u64 = 20;
/// The largest capacity in requests a second: more is a test of the drill's own processor core.
pub(crate) const MAX_CAPACITY: f64 = 1_000.0;
/// The part of the server's cores that other processes may take.
const MAX_FOREIGN: f64 = 0.2;
/// The part of one processor core that a CPU-bound GET keeps busy.
const MIN_BUSY: f64 = 0.5;

/// What became of requests at twice the capacity of the server.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overload {
    /// The requests that the server answers in a second when each client waits for its answer.
    pub capacity_per_second: f64,
    /// The processor cores that it kept busy with them.
    pub busy_cores: f64,
    /// The requests that were sent in each second afterwards.
    pub offered_per_second: f64,
    /// Those of them that were answered within a second.
    pub answered_per_second: f64,
    /// The number that was refused, or had no answer at all.
    pub refused: u64,
    /// The number of those that took more than a second.
    pub refused_late: u64,
}

/// All that the verdict is made from.
#[derive(Clone, Debug)]
pub(crate) struct Evidence<'a> {
    pub(crate) overload: &'a Overload,
    /// The requests that the capacity is known from.
    pub(crate) served: u64,
    /// The largest lateness of the load.
    pub(crate) lateness: Duration,
    /// The part of the server's cores that other processes took.
    pub(crate) foreign_share: f64,
    pub(crate) recovery: Option<Duration>,
    pub(crate) has_ended: bool,
}

/// Returns the verdict and its reason.
pub(crate) fn judge(evidence: &Evidence<'_>) -> (Verdict, String) {
    let Overload {
        capacity_per_second: capacity,
        busy_cores,
        offered_per_second: offered,
        answered_per_second: answered,
        refused,
        refused_late,
    } = *evidence.overload;
    if evidence.has_ended {
        return (Verdict::Down, "the server ended".to_owned());
    }
    let unfit = if evidence.served < MIN_SERVED {
        let served = evidence.served;
        Some(format!(
            "{served} requests were served to learn the capacity: set a cheaper path with `cpu_get`"
        ))
    } else if capacity > MAX_CAPACITY {
        Some(format!(
            "{capacity:.0} requests a second are too many for the drill: set a path that takes \
             more processor time with `cpu_get`"
        ))
    } else if busy_cores < MIN_BUSY {
        Some(format!(
            "the processor was idle, with {busy_cores:.1} cores busy: set a path that takes \
             processor time with `cpu_get`"
        ))
    } else if evidence.foreign_share > MAX_FOREIGN {
        let share = percent(evidence.foreign_share);
        Some(format!(
            "other processes took {share} of the server's processor cores"
        ))
    } else if evidence.lateness > MAX_LATENESS {
        let late = evidence.lateness.as_millis();
        Some(format!("the load was {late} ms late: the machine is busy"))
    } else {
        None
    };
    if let Some(reason) = unfit {
        return (Verdict::Inconclusive, reason);
    }
    // A rehearsal offers less than the capacity.
    let share = answered / capacity.min(offered).max(f64::MIN_POSITIVE);
    let reason = format!(
        "{} of the capacity answered within 1 s",
        percent(share.min(1.0))
    );
    if share < DOWN_SHARE {
        return (Verdict::Down, reason);
    }
    if evidence.recovery.is_none() {
        let reason = format!("not back within {} s", MAX_RECOVERY.as_secs());
        return (Verdict::Down, reason);
    }
    if share < HELD_SHARE {
        return (Verdict::Harmed, reason);
    }
    if refused_late as f64 > LATE_SHARE * refused as f64 {
        let reason = format!("{refused_late} of {refused} refusals took more than 1 s");
        return (Verdict::Harmed, reason);
    }
    (Verdict::Held, String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(change: impl FnOnce(&mut Overload, &mut Evidence<'_>)) -> (Verdict, String) {
        let mut overload = Overload {
            capacity_per_second: 100.0,
            busy_cores: 1.0,
            offered_per_second: 200.0,
            answered_per_second: 70.0,
            refused: 1_000,
            refused_late: 10,
        };
        let unused = Overload::default();
        let mut evidence = Evidence {
            overload: &unused,
            served: 300,
            lateness: Duration::from_millis(50),
            foreign_share: 0.2,
            recovery: Some(Duration::ZERO),
            has_ended: false,
        };
        change(&mut overload, &mut evidence);
        judge(&Evidence {
            overload: &overload,
            ..evidence
        })
    }

    #[test]
    fn seven_tenths_of_the_capacity_and_quick_refusals_are_held() {
        assert_eq!(verdict(|_, _| {}), (Verdict::Held, String::new()));
        let less = verdict(|overload, _| overload.answered_per_second = 69.9);
        let reason = "69.9 % of the capacity answered within 1 s".to_owned();
        assert_eq!(less, (Verdict::Harmed, reason));
        let late = verdict(|overload, _| overload.refused_late = 11);
        let reason = "11 of 1000 refusals took more than 1 s".to_owned();
        assert_eq!(late, (Verdict::Harmed, reason));
    }

    #[test]
    fn less_than_a_fifth_and_no_recovery_and_an_end_are_down() {
        let little = verdict(|overload, _| overload.answered_per_second = 19.0);
        assert_eq!(little.0, Verdict::Down);
        let lost = verdict(|_, evidence| evidence.recovery = None);
        assert_eq!(lost, (Verdict::Down, "not back within 5 s".to_owned()));
        let ended = verdict(|_, evidence| evidence.has_ended = true);
        assert_eq!(ended.1, "the server ended");
    }

    #[test]
    fn a_rehearsal_is_measured_by_what_it_offers() {
        let rehearsed = verdict(|overload, _| {
            overload.offered_per_second = 50.0;
            overload.answered_per_second = 50.0;
        });
        assert_eq!(rehearsed.0, Verdict::Held);
    }

    #[test]
    fn a_get_that_is_too_cheap_too_slow_or_idle_and_a_busy_machine_say_nothing() {
        let unfit = [
            verdict(|overload, _| overload.capacity_per_second = 1_001.0),
            verdict(|_, evidence| evidence.served = 19),
            verdict(|overload, _| overload.busy_cores = 0.4),
            verdict(|_, evidence| evidence.lateness = Duration::from_millis(51)),
            verdict(|_, evidence| evidence.foreign_share = 0.21),
        ];
        for (verdict, reason) in unfit {
            assert_eq!(verdict, Verdict::Inconclusive, "{reason}");
        }
    }
}
