//! The papers for operators say what the code says: series that are written, reasons that exist.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use palisade::{
    Ban, Quota, Snapshot, Stack,
    client_ip::{Networks, Trust},
    conn::{Budget, ConnGuard, Memory},
    fleet::{Fleet, MemoryStore},
};
use palisade_core::{Gauge, GaugeSource, Guard, Metrics, Mode, Phase, Reason};
use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

const ALERTS: &str = include_str!("../docs/operations/alerts.yml");
const ALERTS_TEST: &str = include_str!("../docs/operations/alerts_test.yml");
const FLEET: &str = include_str!("../docs/fleet.md");
const MEMORY: &str = include_str!("../docs/memory.md");
const RUNBOOK: &str = include_str!("../docs/operations/runbook.md");

/// The gauges of a control group. This process may belong to none.
struct OfGroup;

impl GaugeSource for OfGroup {
    fn guard(&self) -> Guard {
        Guard::Connection
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        visit(Gauge::MemoryOomKills, 0);
        visit(Gauge::MemoryLimitHits, 0);
        visit(Gauge::MemoryStallPercent, 0);
    }
}

/// What is scraped from a server with every guard, on Linux.
async fn exposition() -> String {
    let metrics = Snapshot::new();
    let of_group: Arc<dyn GaugeSource> = Arc::new(OfGroup);
    metrics.register(Arc::downgrade(&of_group));
    let fleet = Fleet::with_store(MemoryStore::new())
        .nodes(1)
        .secret("a secret of the tests")
        .metrics(metrics.clone())
        .start()
        .unwrap();
    let stack = Stack::edge()
        .rate_limit(Quota::per_second(10).fleet(&fleet))
        .metrics(metrics.clone());
    let _stack = stack.build().unwrap();
    let ban = Ban::builder()
        .allow(Networks::default())
        .deny(Networks::default())
        .metrics(metrics.clone())
        .build()
        .unwrap();
    let guard = ConnGuard::builder()
        .gate(ban)
        .trust(Trust::private())
        .proxy_protocol(Networks::default())
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
    for (asked, at_least) in [(ALERTS, 9), (ALERTS_TEST, 8), (RUNBOOK, 8), (FLEET, 7)] {
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
fn the_page_on_fleets_names_alerts_that_exist() {
    let words = FLEET.split(|c: char| !c.is_ascii_alphanumeric());
    let named: BTreeSet<_> = words.filter(|word| word.starts_with("Palisade")).collect();
    assert!(named.len() >= 4, "{named:?}");
    for alert in named {
        assert!(ALERTS.contains(&format!("- alert: {alert}\n")), "{alert}");
    }
}

#[test]
fn the_bound_of_the_memory_is_the_one_that_is_printed() {
    let memory = Memory::reported(256 << 20).unwrap();
    memory.report(8 << 20);
    let builder = ConnGuard::builder()
        .memory(memory)
        .byte_budget(Budget::new(64 << 20).unwrap());
    // The default in that memory, unless there are fewer files.
    let guard = builder.max_connections(1024).build().unwrap();
    let line = guard.memory_bound().to_string();
    assert!(MEMORY.lines().any(|found| found == line), "{line}");
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
    // Those of the ban are connections that its gate refuses.
    let of_connections = text
        .lines()
        .filter(|line| line.contains("guard=\"connection\"") || line.contains("guard=\"ban\""));
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

/// The columns of tables in `docs/memory.md` that name something of palisade.
const CHECKED_COLUMNS: [&str; 3] = ["option", "test", "with palisade"];

/// Returns what stands between backticks in these columns of all tables of `text`.
fn names_in_tables<'a>(text: &'a str, columns: &[&str]) -> Vec<&'a str> {
    let mut names = Vec::new();
    let mut header: Vec<&str> = Vec::new();
    for line in text.lines() {
        let Some(row) = line
            .strip_prefix("| ")
            .and_then(|row| row.strip_suffix(" |"))
        else {
            if !line.starts_with('|') {
                header.clear();
            }
            continue;
        };
        let cells: Vec<_> = row.split(" | ").collect();
        if header.is_empty() {
            header = cells;
            continue;
        }
        assert_eq!(cells.len(), header.len(), "{line}");
        let checked = cells.iter().zip(&header);
        for (cell, _) in checked.filter(|(_, column)| columns.contains(column)) {
            names.extend(cell.split('`').skip(1).step_by(2));
        }
    }
    names
}

/// Returns whether the public interface has `path`, a type or a function.
fn is_public(interface: &str, path: &str) -> bool {
    let path = format!("::{path}");
    let mut ends = interface
        .match_indices(&path)
        .map(|(place, _)| &interface[place + path.len()..]);
    let goes_on = |rest: &str| rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    ends.any(|rest| !goes_on(rest))
}

/// Returns the files and the paths of Rust that stand between backticks in the prose of `text`.
fn names_in_prose(text: &str) -> Vec<&str> {
    // Every second part is a block of code.
    let prose = text.split("```").step_by(2).flat_map(str::lines);
    let prose = prose.filter(|line| !line.starts_with('|'));
    let names = prose.flat_map(|line| line.split('`').skip(1).step_by(2));
    let is_checked = |name: &&str| name.ends_with(".rs") || name.contains("::");
    names.filter(is_checked).collect()
}

/// Returns whether `name` is a file, a series, an alert, or an option such as
/// `Stack::max_body` or `Http::builder().max_header_size(..)`.
fn is_there(name: &str, interface: &str, series: &str) -> bool {
    if name.ends_with(".rs") {
        return Path::new(env!("CARGO_MANIFEST_DIR")).join(name).is_file();
    }
    if name.starts_with("palisade_") {
        return series.contains(&format!("# TYPE {name} "));
    }
    if name.starts_with("Palisade") {
        return ALERTS.contains(&format!("- alert: {name}\n"));
    }
    // What stands before a parenthesis, without `palisade::`, and for each call after it.
    let calls = name.split(')').filter_map(|call| call.split('(').next());
    let mut paths = calls
        .map(|path| {
            path.trim_start_matches('.')
                .trim_start_matches("palisade::")
        })
        .filter(|path| !path.is_empty());
    paths.all(|path| {
        is_public(interface, path) || interface.contains(&format!(" palisade::{path}("))
    })
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn all_that_the_page_on_memory_names_is_there() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/public-api");
    let files = fs::read_dir(folder).unwrap();
    let interfaces = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    let interface: String = interfaces.collect();
    let series = exposition().await;
    let missing = |text: &str| -> Vec<_> {
        let mut names = names_in_tables(text, &CHECKED_COLUMNS);
        names.extend(names_in_prose(text));
        let missing = names
            .into_iter()
            .filter(|name| !is_there(name, &interface, &series));
        missing.map(str::to_owned).collect()
    };
    for column in CHECKED_COLUMNS {
        assert!(names_in_tables(MEMORY, &[column]).len() >= 5, "{column}");
    }
    assert!(names_in_prose(MEMORY).len() >= 4);
    assert_eq!(missing(MEMORY), [""; 0]);
    // Whatever is named wrongly is found.
    for (right, wrong) in [
        ("`Stack::max_body`", "`Stack::max_bodies`"),
        ("`Stack::byte_budget`", "`Stack::byte`"),
        ("`BodyLimitLayer`", "`BodyLimit_Layer`"),
        ("`BodyLimitLayer::response`", "`BodyLimitLayer::request`"),
        ("`.max_in_flight(..)`", "`.max_flight(..)`"),
        (
            "`Http::builder().max_header_size(..)`",
            "`Http::builder().max_header_bytes(..)`",
        ),
        (
            "`tests/threats/t09_heads.rs`",
            "`tests/threats/t09_head.rs`",
        ),
        ("`examples/fortress.rs`", "`examples/fort.rs`"),
        (
            "`Memory::with_source(limit, || ..)`",
            "`Memory::source(limit, || ..)`",
        ),
        ("`palisade_bytes_held`", "`palisade_bytes`"),
        ("`PalisadeMemoryShort`", "`PalisadeMemory`"),
    ] {
        let text = MEMORY.replacen(right, wrong, 1);
        assert_eq!(missing(&text), [wrong.trim_matches('`')]);
    }
}
