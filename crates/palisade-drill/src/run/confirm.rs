//! The verdict on an attack of two rounds. Pure.

use crate::{
    grade::{DOWN_SHARE, Verdict, percent},
    processor::Processor,
    report::AttackReport,
    text::sentence,
    verdict::is_harmed,
};

/// Returns the result of an attack with two rounds.
///
/// Harm of one round alone may be a hiccup of the machine. So may harm of both, if no kind of
/// honest client was harmed twice: what an attack takes from a client it takes each time.
pub(super) fn confirm(first: &AttackReport, mut second: AttackReport) -> AttackReport {
    let is_unharmed = |verdict| matches!(verdict, Verdict::Held | Verdict::Kept);
    let doubt = match (first.verdict, second.verdict) {
        (Verdict::Harmed, Verdict::Harmed) if !is_same_harm(first, &second) => Some(format!(
            "another kind of client was harmed in each of two rounds: {}; {}",
            sentence(&first.reason),
            sentence(&second.reason)
        )),
        (Verdict::Harmed, other) if is_unharmed(other) => Some(harmed_once(&first.reason)),
        (other, Verdict::Harmed) if other != Verdict::Harmed => Some(harmed_once(&second.reason)),
        _ => None,
    };
    if let Some(doubt) = doubt {
        second.reason = doubt;
        second.verdict = Verdict::Inconclusive;
    } else if is_unharmed(second.verdict)
        && let (Some(before), Some(after)) = (&first.server, &second.server)
        && let Some(reason) = before.keeps_memory(after)
    {
        let other = std::mem::take(&mut second.reason);
        let kept = second.verdict == Verdict::Kept;
        second.reason = if kept {
            format!("{other}; {reason}")
        } else {
            reason
        };
        second.verdict = Verdict::Kept;
    } else if (first.verdict, second.verdict) == (Verdict::Kept, Verdict::Held) {
        second.reason.clone_from(&first.reason);
        second.verdict = Verdict::Kept;
    }
    second
}

/// Returns `report`, which says nothing of harm if other processes took the processor in its round
/// or in the `first` one. What is held is held in spite of them. They make a server slow, and do
/// not take more than half of the time of a kind of client.
pub(super) fn unless_crowded(mut report: AttackReport, first: Option<Processor>) -> AttackReport {
    let mut kinds = report.honest.iter();
    let is_certain = kinds.any(|honest| honest.during.served_share < DOWN_SHARE);
    let rounds = [report.processor, first].into_iter().flatten();
    if report.verdict == Verdict::Harmed
        && !is_certain
        && let Some(processor) = rounds.into_iter().find(Processor::is_crowded)
    {
        report.reason = format!(
            "other processes took {} of the processor: {}",
            percent(processor.others),
            sentence(&report.reason)
        );
        report.verdict = Verdict::Inconclusive;
    }
    report
}

/// Returns the result of an attack without the second round that it needed, for this reason.
pub(super) fn without_second(mut first: AttackReport, reason: &str) -> AttackReport {
    if first.verdict == Verdict::Harmed {
        let harm = sentence(&first.reason);
        first.reason = format!("no second round ({}): {harm}", sentence(reason));
        first.verdict = Verdict::Inconclusive;
    }
    first
}

fn harmed_once(reason: &str) -> String {
    format!("harmed in one of two rounds: {}", sentence(reason))
}

/// Returns whether both rounds harmed the same kind, or harmed something else than kinds of
/// clients.
fn is_same_harm(first: &AttackReport, second: &AttackReport) -> bool {
    let kinds = |round: &AttackReport| {
        let harmed = round.honest.iter().filter(|honest| is_harmed(honest));
        harmed.map(|honest| honest.kind).collect::<Vec<_>>()
    };
    let (first, second) = (kinds(first), kinds(second));
    first.is_empty() || second.is_empty() || first.iter().any(|kind| second.contains(kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{attacks, figures::Figures, sample::Kind, usage::ServerUsage, verdict::Honest};

    const REASON: &str = "a reason";

    /// Returns a round with this verdict, in which these kinds of clients were harmed.
    fn round(verdict: Verdict, harmed: &[Kind]) -> AttackReport {
        let attack = attacks::all().into_iter().next();
        let mut round = AttackReport::new(&attack.expect("there are attacks"));
        let served = |share| Figures {
            served_share: share,
            ..Figures::default()
        };
        round.honest = [Kind::NewConnection, Kind::KeepAlive]
            .map(|kind| Honest {
                kind,
                before: served(1.0),
                during: served(if harmed.contains(&kind) { 0.9 } else { 1.0 }),
            })
            .to_vec();
        round.verdict = verdict;
        round.reason = REASON.to_owned();
        round
    }

    fn confirmed(first: &AttackReport, second: AttackReport) -> (Verdict, String) {
        let AttackReport {
            verdict, reason, ..
        } = confirm(first, second);
        (verdict, reason)
    }

    #[test]
    fn harm_counts_if_it_is_seen_twice_by_the_same_kind() {
        let harmed = |kinds: &[Kind]| round(Verdict::Harmed, kinds);
        let one = harmed(&[Kind::KeepAlive]);
        let same = confirmed(&one, harmed(&[Kind::KeepAlive, Kind::NewConnection]));
        assert_eq!(same, (Verdict::Harmed, REASON.to_owned()));
        let (verdict, reason) = confirmed(&one, harmed(&[Kind::NewConnection]));
        assert_eq!(verdict, Verdict::Inconclusive);
        assert!(reason.starts_with("another kind of client was harmed in each"));
        // Harm that no kind shows, the answers to an attack of its own for example.
        let (verdict, _) = confirmed(&harmed(&[]), harmed(&[Kind::KeepAlive]));
        assert_eq!(verdict, Verdict::Harmed);
    }

    #[test]
    fn harm_of_one_round_is_inconclusive() {
        let harmed = || round(Verdict::Harmed, &[Kind::KeepAlive]);
        for other in [Verdict::Held, Verdict::Kept] {
            for (first, second) in [(harmed(), round(other, &[])), (round(other, &[]), harmed())] {
                let (verdict, reason) = confirmed(&first, second);
                assert_eq!(verdict, Verdict::Inconclusive);
                assert_eq!(reason, "harmed in one of two rounds: a reason");
            }
        }
        let (verdict, _) = confirmed(&round(Verdict::Inconclusive, &[]), harmed());
        assert_eq!(verdict, Verdict::Inconclusive);
    }

    #[test]
    fn harm_without_a_second_round_is_inconclusive() {
        let harmed = without_second(round(Verdict::Harmed, &[Kind::KeepAlive]), "it is gone");
        assert_eq!(harmed.verdict, Verdict::Inconclusive);
        assert_eq!(harmed.reason, "no second round (it is gone): a reason");
        let kept = without_second(round(Verdict::Kept, &[]), "it is gone");
        assert_eq!((kept.verdict, &*kept.reason), (Verdict::Kept, REASON));
    }

    #[test]
    fn the_worse_of_two_other_verdicts_counts() {
        for (first, second, expected) in [
            (Verdict::Inconclusive, Verdict::Held, Verdict::Held),
            (Verdict::Inconclusive, Verdict::Kept, Verdict::Kept),
            (Verdict::Kept, Verdict::Held, Verdict::Kept),
            (Verdict::Held, Verdict::Kept, Verdict::Kept),
            (Verdict::Harmed, Verdict::Down, Verdict::Down),
        ] {
            let (verdict, _) = confirmed(&round(first, &[]), round(second, &[]));
            assert_eq!(verdict, expected, "{first:?}, {second:?}");
        }
    }

    #[test]
    fn memory_that_both_rounds_leave_behind_is_kept() {
        let leaks = |mut round: AttackReport| {
            round.server = Some(ServerUsage {
                memory_peak: 50 << 20,
                memory_after: 40 << 20,
                ..ServerUsage::default()
            });
            round
        };
        let held = || leaks(round(Verdict::Held, &[]));
        let (verdict, reason) = confirmed(&held(), held());
        assert_eq!(verdict, Verdict::Kept);
        assert!(reason.starts_with("each of two rounds leaves memory behind"));
        let (_, reason) = confirmed(&held(), leaks(round(Verdict::Kept, &[])));
        assert!(
            reason.starts_with("a reason; each of two rounds"),
            "{reason}"
        );
    }

    #[test]
    fn harm_beside_processes_that_take_the_processor_says_nothing() {
        let processor = |others, idle| {
            let mut processor = Processor::default();
            (processor.others, processor.idle) = (others, idle);
            Some(processor)
        };
        let (crowded, quiet) = (processor(0.5, 0.01), processor(0.5, 0.4));
        let result = |verdict, second, first| {
            let mut second_round = round(verdict, &[]);
            second_round.processor = second;
            unless_crowded(second_round, first)
        };
        for (second, first) in [(crowded, None), (crowded, quiet), (quiet, crowded)] {
            let result = result(Verdict::Harmed, second, first);
            assert_eq!(result.verdict, Verdict::Inconclusive);
            let reason = format!("other processes took 50.0 % of the processor: {REASON}");
            assert_eq!(result.reason, reason);
        }
        let mut starved = round(Verdict::Harmed, &[]);
        starved.processor = crowded;
        starved.honest[1].during.served_share = 0.4;
        assert_eq!(unless_crowded(starved, crowded).verdict, Verdict::Harmed);
        let harmed = result(Verdict::Harmed, quiet, None);
        assert_eq!((harmed.verdict, &*harmed.reason), (Verdict::Harmed, REASON));
        for verdict in [Verdict::Held, Verdict::Kept, Verdict::Down] {
            let result = result(verdict, crowded, crowded);
            assert_eq!((result.verdict, &*result.reason), (verdict, REASON));
        }
    }
}
