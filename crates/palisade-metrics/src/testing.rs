//! What this crate's tests share: events, guards with levels, and a strict reader of the text
//! format that Prometheus scrapes.

use http::StatusCode;
use palisade_core::{
    ConnInfo, Event, Gauge, GaugeSource, Guard, Mode, Phase, Prefix, Reason, Recorder, Rejection,
    ResponseFormat, Violation,
};
use std::collections::{BTreeMap, BTreeSet};

/// Tells a recorder of things, as a guard would.
#[derive(Debug)]
pub(crate) struct Teller {
    recorder: Recorder,
    mode: Mode,
}

impl Teller {
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

    /// A connection comes, and goes for `reason`.
    pub(crate) fn disconnect(&self, reason: Reason, phase: Phase) {
        let conn = ConnInfo::new(([192, 0, 2, 1], 4711).into(), None, Prefix::default());
        let violation = Violation::new(Guard::Connection, reason, phase, 10, 11);
        let Self { mode, recorder } = self;
        recorder.record(|| Event::opened(&conn));
        recorder.record(|| Event::disconnected(&violation, *mode, &conn));
        recorder.record(|| Event::closed(&conn, Some(reason), phase, Default::default()));
    }
}

/// A guard that shows these levels.
#[derive(Debug)]
pub(crate) struct Shown(pub(crate) Guard, pub(crate) Vec<(Gauge, u64)>);

impl GaugeSource for Shown {
    fn guard(&self) -> Guard {
        self.0
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        self.1
            .iter()
            .for_each(|(level, value)| visit(*level, *value));
    }
}

/// A metric family as read back.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) samples: BTreeMap<Vec<(String, String)>, f64>,
}

/// Reads the whole of `text`; panics at whatever the format (0.0.4) or Prometheus's naming rules
/// do not allow.
pub(crate) fn read(text: &str) -> BTreeMap<String, Read> {
    let mut families = BTreeMap::<String, Read>::new();
    let mut current = String::new();
    assert!(text.is_ascii() && text.ends_with('\n'));
    for line in text.lines().filter(|line| !line.is_empty()) {
        assert!(!line.contains(char::is_control), "{line:?}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            let family = Read {
                help: help.into(),
                ..Read::default()
            };
            assert!(
                families.insert(name.into(), family).is_none(),
                "{name} comes twice"
            );
            current = name.into();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(matches!(kind, "counter" | "gauge"), "{kind}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            assert_eq!(name, current, "the type comes right after the help");
            let family = families.get_mut(name).unwrap();
            assert!(family.kind.is_empty() && family.samples.is_empty());
            family.kind = kind.into();
        } else {
            let (name, labels, value) = sample(line);
            assert_eq!(
                name, current,
                "samples of a family stand together, after its type"
            );
            let family = families.get_mut(name).unwrap();
            assert!(!family.kind.is_empty());
            assert!(
                family.samples.insert(labels, value).is_none(),
                "{line} comes twice"
            );
        }
    }
    families
}

/// `name{label="value",..} number`.
fn sample(line: &str) -> (&str, Vec<(String, String)>, f64) {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let value = value.parse().expect("a number");
    let (name, list) = match series.split_once('{') {
        Some((name, list)) => (name, list.strip_suffix('}').expect("a closing brace")),
        None => (series, ""),
    };
    assert!(
        name.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    );
    let mut labels = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"").expect("a label");
        assert!(!label.starts_with("__") && label.bytes().all(|b| b.is_ascii_lowercase()));
        let mut value = String::new();
        let mut chars = quoted.chars();
        loop {
            match chars.next().expect("a closing quote") {
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
            rest = rest.strip_prefix(',').expect("a comma");
            assert!(!rest.is_empty(), "a label after the comma");
        }
    }
    let names: BTreeSet<_> = labels.iter().map(|(label, _)| label).collect();
    assert_eq!(names.len(), labels.len(), "{line}");
    labels.sort();
    (name, labels, value)
}
