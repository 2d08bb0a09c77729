//! Shared by this crate's tests: a guard that records events, a guard with gauges, and a strict
//! parser of the Prometheus text format.

use http::StatusCode;
use palisade_core::{
    ConnInfo, Event, Gauge, GaugeSource, Guard, Mode, Phase, Prefix, Reason, Recorder, Rejection,
    ResponseFormat, Violation,
};
use std::collections::{BTreeMap, BTreeSet};

/// Records events as a guard would.
#[derive(Debug)]
pub(crate) struct FakeGuard {
    recorder: Recorder,
    mode: Mode,
}

impl FakeGuard {
    pub(crate) fn new(recorder: impl Into<Recorder>, mode: Mode) -> Self {
        Self {
            recorder: recorder.into(),
            mode,
        }
    }

    pub(crate) fn refuse(&self, guard: Guard, reason: Reason, conn: Option<&ConnInfo>) {
        let violation = Violation::new(guard, reason, Phase::RequestHead, 10, 11);
        let form = ResponseFormat::Http { close: false };
        let rejection = Rejection::new(violation, StatusCode::TOO_MANY_REQUESTS, form);
        self.recorder
            .record(|| Event::refused(&rejection, self.mode, conn));
    }

    pub(crate) fn cut(&self, guard: Guard, reason: Reason, phase: Phase) {
        let violation = Violation::new(guard, reason, phase, 10, 11);
        self.recorder
            .record(|| Event::cut(&violation, self.mode, None));
    }

    /// Records a connection that is opened, and closed by the guard for `reason`.
    pub(crate) fn disconnect(&self, reason: Reason, phase: Phase) {
        let conn = ConnInfo::new(([192, 0, 2, 1], 4711).into(), None, Prefix::default());
        let violation = Violation::new(Guard::Connection, reason, phase, 10, 11);
        let Self { mode, recorder } = self;
        recorder.record(|| Event::opened(&conn));
        recorder.record(|| Event::disconnected(&violation, *mode, &conn));
        recorder.record(|| Event::closed(&conn, Some(reason), phase, Default::default()));
    }
}

/// A guard that reports fixed gauges.
#[derive(Debug)]
pub(crate) struct FixedGauges(pub(crate) Guard, pub(crate) Vec<(Gauge, u64)>);

impl GaugeSource for FixedGauges {
    fn guard(&self) -> Guard {
        self.0
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        self.1
            .iter()
            .for_each(|(gauge, value)| visit(*gauge, *value));
    }
}

/// A parsed metric family.
#[derive(Debug, Default)]
pub(crate) struct ParsedFamily {
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) samples: BTreeMap<Vec<(String, String)>, f64>,
}

/// Parses all of `text`. Panics if it breaks the format (0.0.4) or Prometheus's naming rules.
pub(crate) fn parse_exposition(text: &str) -> BTreeMap<String, ParsedFamily> {
    let mut families = BTreeMap::<String, ParsedFamily>::new();
    let mut current = String::new();
    assert!(text.is_ascii() && text.ends_with('\n'));
    for line in text.lines().filter(|line| !line.is_empty()) {
        assert!(!line.contains(char::is_control), "{line:?}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("no help text");
            let family = ParsedFamily {
                help: help.into(),
                ..ParsedFamily::default()
            };
            assert!(
                families.insert(name.into(), family).is_none(),
                "{name} appears twice"
            );
            current = name.into();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("no type");
            assert!(matches!(kind, "counter" | "gauge"), "{kind}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            assert_eq!(name, current, "the type must follow the help");
            let family = families.get_mut(name).unwrap();
            assert!(family.kind.is_empty() && family.samples.is_empty());
            family.kind = kind.into();
        } else {
            let (name, labels, value) = parse_sample(line);
            assert_eq!(
                name, current,
                "the samples of a family must stand together, after its type"
            );
            let family = families.get_mut(name).unwrap();
            assert!(!family.kind.is_empty());
            assert!(
                family.samples.insert(labels, value).is_none(),
                "{line} appears twice"
            );
        }
    }
    families
}

/// Parses `name{label="value",..} number`.
fn parse_sample(line: &str) -> (&str, Vec<(String, String)>, f64) {
    let (series, value) = line.rsplit_once(' ').expect("no value");
    let value = value.parse().expect("not a number");
    let (name, list) = match series.split_once('{') {
        Some((name, list)) => (name, list.strip_suffix('}').expect("no closing brace")),
        None => (series, ""),
    };
    assert!(
        name.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    );
    let mut labels = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"").expect("no label");
        assert!(!label.starts_with("__") && label.bytes().all(|b| b.is_ascii_lowercase()));
        let mut value = String::new();
        let mut chars = quoted.chars();
        loop {
            match chars.next().expect("no closing quote") {
                '"' => break,
                '\\' => value.push(match chars.next() {
                    Some('n') => '\n',
                    Some(escaped @ ('\\' | '"')) => escaped,
                    other => panic!("{other:?} escaped in {line}"),
                }),
                plain => value.push(plain),
            }
        }
        labels.push((label.to_owned(), value));
        rest = chars.as_str();
        if !rest.is_empty() {
            rest = rest.strip_prefix(',').expect("no comma");
            assert!(!rest.is_empty(), "no label after the comma");
        }
    }
    let names: BTreeSet<_> = labels.iter().map(|(label, _)| label).collect();
    assert_eq!(names.len(), labels.len(), "{line}");
    labels.sort();
    (name, labels, value)
}
