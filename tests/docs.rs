//! The papers for operators say what the code says: series that are written, reasons that exist.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use palisade::{Quota, Snapshot, Stack, conn::ConnGuard};
use palisade_core::{Guard, Mode, Phase, Reason};
use std::collections::BTreeSet;

const ALERTS: &str = include_str!("../docs/operations/alerts.yml");
const ALERTS_TEST: &str = include_str!("../docs/operations/alerts_test.yml");
const RUNBOOK: &str = include_str!("../docs/operations/runbook.md");

/// What is scraped from a server with every guard, on Linux.
async fn exposition() -> String {
    let metrics = Snapshot::new();
    let stack = Stack::edge()
        .rate_limit(Quota::per_second(10))
        .metrics(metrics.clone());
    let _stack = stack.build().unwrap();
    let guard = ConnGuard::builder()
        .metrics(metrics.clone())
        .build()
        .unwrap();
    let _listener = guard.bind("127.0.0.1:0").await.unwrap();
    metrics.prometheus()
}

/// The names of series in `text`, which may be anything.
fn series(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("palisade_")).collect()
}

/// Every value that `label` is compared with in `text`, or has.
fn values<'a>(text: &'a str, label: &str) -> BTreeSet<&'a str> {
    let places = text
        .match_indices(label)
        .map(|(place, _)| &text[place + label.len()..]);
    let quoted = places.filter_map(|rest| {
        let rest = rest.strip_prefix('=')?;
        rest.strip_prefix('~')
            .unwrap_or(rest)
            .strip_prefix('"')?
            .split_once('"')
    });
    quoted.flat_map(|(values, _)| values.split('|')).collect()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn alerts_ask_for_nothing_that_is_not_written() {
    let text = exposition().await;
    let written = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let written: BTreeSet<_> = written.collect();
    for (asked, at_least) in [(ALERTS, 9), (ALERTS_TEST, 8), (RUNBOOK, 8)] {
        let asked = series(asked);
        assert!(asked.len() >= at_least, "{asked:?}");
        assert!(
            asked.is_subset(&written),
            "{:?}",
            asked.difference(&written)
        );
    }
}

#[test]
fn alerts_know_no_label_that_is_not_there() {
    let known: [(&str, Vec<_>); 4] = [
        (
            "reason",
            Reason::ALL.iter().map(|reason| reason.as_str()).collect(),
        ),
        (
            "guard",
            Guard::ALL.iter().map(|guard| guard.as_str()).collect(),
        ),
        (
            "phase",
            Phase::ALL.iter().map(|phase| phase.as_str()).collect(),
        ),
        ("mode", Mode::ALL.iter().map(|mode| mode.as_str()).collect()),
    ];
    for (label, known) in known {
        let mut asked = values(ALERTS, label);
        asked.extend(values(ALERTS_TEST, label));
        assert!(!asked.is_empty(), "{label}");
        for value in asked {
            assert!(known.contains(&value), "there is no {label} {value}");
        }
    }
}

#[test]
fn every_alert_is_tested_both_ways() {
    let alerts: Vec<_> = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 5);
    for alert in alerts {
        let firing = format!("alertname: {alert}\n        exp_alerts:");
        let quiet = format!("alertname: {alert}}}");
        assert!(
            ALERTS_TEST.contains(&firing),
            "{alert} never fires in the test"
        );
        assert!(
            ALERTS_TEST.contains(&quiet),
            "{alert} is never quiet in the test"
        );
    }
}

#[tokio::test]
async fn every_reason_of_a_connection_has_its_line_in_the_runbook() {
    let text = exposition().await;
    let of_connections = text
        .lines()
        .filter(|line| line.contains("guard=\"connection\""));
    let reasons: BTreeSet<_> = of_connections
        .flat_map(|line| values(line, "reason"))
        .collect();
    assert!(reasons.len() >= 12, "{reasons:?}");
    for reason in reasons {
        let lines = RUNBOOK
            .lines()
            .filter(|line| line.starts_with(&format!("| `{reason}` |")));
        let columns: Vec<_> = lines.map(|line| line.matches(" | ").count() + 1).collect();
        assert_eq!(columns, [5], "{reason}");
    }
}
