//! The reports of all servers as one table.

use crate::servers::ServerKind;
use palisade_drill::{AttackReport, Report};
use std::fmt::Write;

/// The explanation of the columns.
const NOTES: &str = "
held          honest clients are served as before, and the attackers keep nothing
kept          the same, but the attackers keep the connections that they took
harmed        an honest client is served less or later
down          honest clients are served less than half of the time
inconclusive  this machine was too busy for a verdict

The percentage is the part of the time in which the kind of honest client that fares worst was
served, and the time its p99 latency. Then the number of attackers that hold what they took while
other clients ask for all places.
";

/// Renders the reports.
pub(crate) fn text(reports: &[(ServerKind, Report)]) -> String {
    let mut text = String::from("\n");
    for (kind, _) in reports {
        let _ = writeln!(text, "{:<10}{}", kind.name(), kind.about());
    }
    let _ = write!(text, "\n{:<24}", "");
    for (kind, report) in reports {
        let grade = report
            .grade()
            .map_or("-".to_owned(), |grade| grade.to_string());
        let _ = write!(text, "  {:<38}", format!("{}: grade {grade}", kind.name()));
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    let Some((_, first)) = reports.first() else {
        return text;
    };
    let attacks = first.attacks.iter().map(|attack| &attack.name);
    let skipped = first.skipped.iter().map(|skipped| &skipped.name);
    for name in attacks.chain(skipped) {
        let results: Vec<_> = reports
            .iter()
            .map(|(_, report)| report.attack(name))
            .collect();
        if results.iter().all(Option::is_none) {
            continue;
        }
        let _ = write!(text, "{name:<24}");
        for result in results {
            let _ = write!(text, "  {:<38}", result.map_or("-".to_owned(), cell));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text.push_str(NOTES);
    text
}

/// Renders the result of one attack on one server.
fn cell(attack: &AttackReport) -> String {
    let during = || attack.honest.iter().map(|honest| &honest.during);
    let share = during()
        .map(|figures| figures.served_share)
        .reduce(f64::min);
    let latency = during()
        .filter_map(|figures| figures.p99_ms)
        .reduce(f64::max);
    let share = share.map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
    let latency = latency.map_or("-".to_owned(), |latency| format!("{latency:.0} ms"));
    let attackers = &attack.attackers;
    let left = attackers.displaced_to.unwrap_or(attackers.holding);
    format!("{:<12}{share:>6}{latency:>9}{left:>6}", attack.verdict)
}
