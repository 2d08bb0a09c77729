//! Verdicts: what honest clients saw and what attackers hold, in one word and one sentence. Pure.

mod answers;

pub(crate) use answers::Answers;

use crate::{
    figures::Figures,
    grade::{DOWN_SHARE, HELD_SHARE, KEPT_SHARE, Verdict, percent},
    sample::{Kind, Span},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The p99 latency of a server that holds: this multiple of the latency before, and this much more.
const LATENCY_FACTOR: f64 = 3.0;
const LATENCY_MARGIN_MS: f64 = 50.0;
/// The latency before the attack from which three times as much would hide harm.
const MAX_P99_BEFORE_MS: f64 = 500.0;
/// The part of the time that the requests of each kind must account for during the attack.
const MIN_JUDGED_SHARE: f64 = 0.5;
/// The lateness of the drill's own clock from which nothing is judged.
pub(crate) const MAX_LATENESS: Duration = Duration::from_millis(50);
/// The longest time after the attack in which the server is back.
pub(crate) const MAX_RECOVERY: Duration = Duration::from_secs(5);

/// What one kind of honest client saw before and during an attack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Honest {
    /// The kind.
    pub kind: Kind,
    /// Before the attack.
    pub before: Figures,
    /// In the settled middle of the attack.
    pub during: Figures,
}

/// All that a verdict is made from.
#[derive(Clone, Debug)]
pub(crate) struct Evidence<'a> {
    pub(crate) honest: &'a [Honest],
    /// The part of the attack that is judged.
    pub(crate) during: Span,
    /// The largest lateness of the honest clients' clock, before and during the attack.
    pub(crate) lateness: Duration,
    /// The time after the attack until each kind was served again; `None` if that took too long.
    pub(crate) recovery: Option<Duration>,
    /// Whether the server's process or thread has ended.
    pub(crate) has_ended: bool,
    pub(crate) attackers: Attackers,
}

/// What the attackers hold at the end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attackers {
    /// The number of attackers.
    pub(crate) connections: usize,
    /// The number of connections that they opened.
    pub(crate) opened: u64,
    /// The number that holds at the end what it took.
    pub(crate) alive: usize,
    /// The number that holds it after newcomers asked for all places, if they did.
    pub(crate) displaced: Option<usize>,
    /// Whether what is open at the end counts.
    pub(crate) takes_places: bool,
    /// What the machines tell of their requests, if the verdict is about that.
    pub(crate) answers: Option<Answers>,
}

/// Returns the verdict and its reason.
pub(crate) fn judge(evidence: &Evidence<'_>) -> (Verdict, String) {
    // A server that refuses honest clients may refuse the drill's own before any attack, too.
    if let Some(answers @ Answers::ToHonestClients { .. }) = &evidence.attackers.answers
        && evidence.lateness <= MAX_LATENESS
        && !evidence.has_ended
    {
        let (verdict, reason) = answers::judge(answers, evidence.attackers.connections);
        if verdict != Verdict::Held {
            return (verdict, reason);
        }
    }
    // Whatever else is known: a busy machine ends no server.
    if evidence.has_ended {
        return (Verdict::Down, "the server ended".to_owned());
    }
    if let Some(reason) = unfit(evidence) {
        return (Verdict::Inconclusive, reason);
    }
    let (honest, little): (Vec<_>, Vec<_>) = evidence
        .honest
        .iter()
        .partition(|honest| is_judged(honest, evidence.during));
    if let Some(share) = overall(honest.iter().copied())
        && share < DOWN_SHARE
    {
        return (
            Verdict::Down,
            format!("served {} of the time", percent(share)),
        );
    }
    let harms: Vec<_> = honest.into_iter().filter_map(harm).collect();
    // One kind that says nothing excuses no harm of another.
    if harms.is_empty()
        && let Some(honest) = little.first()
    {
        let (kind, judged) = (honest.kind, honest.during.seconds);
        let seconds = evidence.during.length().as_secs_f64();
        let reason = format!("{kind}: {judged:.1} s of {seconds:.1} s can be judged");
        return (Verdict::Inconclusive, reason);
    }
    if evidence.recovery.is_none() {
        let reason = format!("not back within {} s", MAX_RECOVERY.as_secs());
        return (Verdict::Down, reason);
    }
    if !harms.is_empty() {
        return (Verdict::Harmed, harms.join("; "));
    }
    match &evidence.attackers.answers {
        Some(answers) => answers::judge(answers, evidence.attackers.connections),
        None => kept(&evidence.attackers),
    }
}

/// Returns why nothing can be said.
fn unfit(evidence: &Evidence<'_>) -> Option<String> {
    if evidence.lateness > MAX_LATENESS {
        let late = evidence.lateness.as_millis();
        return Some(format!(
            "the drill's own clock was {late} ms late: the machine is busy"
        ));
    }
    if evidence.honest.is_empty() {
        return Some("there were no honest clients".to_owned());
    }
    for Honest { kind, before, .. } in evidence.honest {
        if before.sent < kind.least_samples() {
            return Some(format!(
                "{kind}: {} requests before the attack",
                before.sent
            ));
        }
        if before.served_share < HELD_SHARE {
            let share = percent(before.served_share);
            return Some(format!(
                "{kind}: served {share} of the time before the attack"
            ));
        }
        if let Some(p99) = before.p99_ms.filter(|p99| *p99 > MAX_P99_BEFORE_MS) {
            return Some(format!("{kind}: p99 {p99:.0} ms before the attack"));
        }
    }
    let attackers = &evidence.attackers;
    let is_honest = matches!(attackers.answers, Some(Answers::ToHonestClients { .. }));
    let has_reached_nothing = attackers.connections > 0 && attackers.opened == 0 && !is_honest;
    let are_served = overall(evidence.honest).is_none_or(|share| share >= HELD_SHARE);
    (has_reached_nothing && are_served).then(|| "no attacker got a connection".to_owned())
}

/// Returns whether the requests of one kind account for enough of the time. One that hangs accounts
/// for all its time, so that only a client without turns, or one that is refused at once, has too
/// little of it.
fn is_judged(honest: &Honest, during: Span) -> bool {
    honest.during.seconds >= MIN_JUDGED_SHARE * during.length().as_secs_f64()
}

/// Returns the part of the time in which all kinds together were served, if there are any.
fn overall<'a>(honest: impl IntoIterator<Item = &'a Honest>) -> Option<f64> {
    let shares = honest.into_iter().map(|honest| honest.during.served_share);
    let shares: Vec<_> = shares.collect();
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}

/// Returns whether one kind of client was harmed.
pub(crate) fn is_harmed(honest: &Honest) -> bool {
    harm(honest).is_some()
}

/// Returns how one kind of client was harmed.
fn harm(honest: &Honest) -> Option<String> {
    let Honest {
        kind,
        before,
        during,
    } = honest;
    if during.served_share < HELD_SHARE {
        let share = percent(during.served_share);
        let failures: Vec<_> = during
            .failures
            .iter()
            .map(|(name, count)| format!("{name} x {count}"))
            .collect();
        return Some(format!(
            "{kind}: served {share} of the time ({})",
            failures.join(", ")
        ));
    }
    let (before, during) = (before.p99_ms?, during.p99_ms?);
    (during > LATENCY_FACTOR * before + LATENCY_MARGIN_MS)
        .then(|| format!("{kind}: p99 {during:.0} ms, before {before:.1} ms"))
}

/// Returns whether so many of the attackers stay that they keep what they took.
pub(crate) fn is_kept(alive: usize, connections: usize) -> bool {
    alive as f64 > KEPT_SHARE * connections as f64
}

/// Returns whether the attackers keep what they took, and why.
fn kept(attackers: &Attackers) -> (Verdict, String) {
    let Attackers {
        connections,
        alive,
        displaced,
        takes_places,
        ..
    } = *attackers;
    if !takes_places || !is_kept(alive, connections) {
        return (Verdict::Held, String::new());
    }
    match displaced {
        Some(left) if !is_kept(left, connections) => {
            let reason =
                format!("{alive} attackers stayed until newcomers displaced all but {left}");
            (Verdict::Held, reason)
        }
        Some(left) => {
            let reason = format!("{left} of {connections} attackers stay when places are short");
            (Verdict::Kept, reason)
        }
        None => {
            let reason = format!(
                "{alive} of {connections} attackers stay, perhaps patience: `places` tells"
            );
            (Verdict::Kept, reason)
        }
    }
}

#[cfg(test)]
mod tests;
