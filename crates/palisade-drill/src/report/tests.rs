use super::*;
use crate::{figures::Figures, sample::Kind, series::Moment};

pub(super) fn report() -> Report {
    let attacks = crate::attacks::all();
    let mut held = AttackReport::new(&attacks[0]);
    held.verdict = Verdict::Held;
    let mut harmed = AttackReport::new(&attacks[3]);
    harmed.verdict = Verdict::Harmed;
    harmed.reason = "keep-alive: p99 57 ms, before 2.0 ms".to_owned();
    harmed.honest = vec![Honest {
        kind: Kind::KeepAlive,
        before: Figures::default(),
        during: Figures {
            p99_ms: Some(57.0),
            ..Figures::default()
        },
    }];
    harmed.series = Some(Series {
        attack_from: 1.0,
        attack_to: 2.0,
        moments: vec![Moment {
            seconds: 3.0,
            served_share: Some(0.5),
            median_ms: None,
            longest_ms: Some(57.0),
            attackers: 400,
            memory: Some(1 << 20),
        }],
    });
    Report {
        schema: SCHEMA,
        version: "0.1.0".to_owned(),
        target: "127.0.0.1:80".to_owned(),
        places: Some(500),
        file_limit: None,
        memory_limit: None,
        tls: false,
        quick: true,
        seed: 7,
        seconds: 60.0,
        attacks: vec![held, harmed],
        skipped: vec![Skipped {
            name: "slow-body".to_owned(),
            reason: "it needs `post`".to_owned(),
        }],
        cautions: Vec::new(),
    }
}

#[test]
fn the_text_begins_with_the_worst_attack_and_says_what_stops_it() {
    let text = report().to_string();
    assert!(text.contains("grade C: 0 down, 1 harmed, 0 kept, 0 inconclusive, 1 held, 1 skipped"));
    let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
    assert!(at("harmed        dripped-head (T03)") < at("held          silent (T01)"));
    assert!(at("p99 57 ms (before -)") < at("palisade: ConnGuard: header_timeout"));
    assert!(at("skipped       slow-body: it needs `post`") > at("silent"));
    // What is held needs no remedy.
    assert!(!text.contains("first_request_timeout"));
}

#[test]
fn a_report_is_read_as_it_was_written() {
    let report = report();
    assert_eq!(Report::from_json(&report.to_json()), Ok(report));
}

#[test]
fn a_report_of_an_earlier_version_has_no_series_and_is_read() {
    let mut earlier = report();
    earlier.attacks[1].series = None;
    let json = earlier.to_json();
    assert!(!json.contains("series"));
    assert_eq!(Report::from_json(&json), Ok(earlier));
}

#[test]
fn the_numbers_of_a_file_overflow_nothing() {
    let mut odd = report();
    odd.attacks[1].attackers.served = u64::MAX;
    odd.attacks[1].attackers.refused = u64::MAX;
    let text = odd.to_string();
    assert!(
        text.contains(", 18446744073709551615 requests served"),
        "{text}"
    );
}

#[test]
fn a_report_that_is_cut_anywhere_is_an_error() {
    let json = report().to_json();
    for end in 0..json.len() {
        let error = Report::from_json(&json[..end]).unwrap_err();
        assert!(matches!(error, ReportError::Malformed { .. }), "{end}");
    }
}

#[test]
fn a_report_of_a_later_schema_says_so_whatever_else_it_holds() {
    let json = report()
        .to_json()
        .replacen("\"schema\": 1", "\"schema\": 2", 1);
    let error = Report::from_json(&json).unwrap_err();
    assert_eq!(error, ReportError::LaterSchema { schema: 2 });
    let error = Report::from_json(r#"{"schema": 3, "attacks": "none"}"#).unwrap_err();
    assert!(error.to_string().contains("use a later palisade-drill"));
}

#[test]
fn hostile_strings_are_escaped_in_the_text() {
    let mut hostile = report();
    let evil = "\x1b[2J\r\nheld  everything\u{202e}".repeat(100);
    hostile.target.clone_from(&evil);
    hostile.attacks[1].reason.clone_from(&evil);
    hostile.attacks[1].cautions.push(evil.clone());
    hostile.skipped[0].reason.clone_from(&evil);
    hostile.cautions.push(evil);
    let text = hostile.to_string();
    assert!(!text.contains(['\x1b', '\r', '\u{202e}']));
    assert_eq!(
        text.lines().count(),
        report().to_string().lines().count() + 2
    );
    assert!(text.lines().all(|line| line.chars().count() < 1_200));
}

#[test]
fn an_assertion_passes_at_the_grade_and_panics_with_the_table_below_it() {
    report().assert(Grade::C);
    let panic = std::panic::catch_unwind(|| report().assert(Grade::B)).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("grade B was asked for") && text.contains("dripped-head"));
    let mut nothing = report();
    nothing.attacks.clear();
    assert!(std::panic::catch_unwind(|| nothing.assert(Grade::F)).is_err());
}

#[test]
fn what_the_drill_says_of_an_attack_is_whole_in_every_form() {
    for attack in crate::attacks::all() {
        let mut down = report();
        down.attacks = vec![AttackReport::new(&attack)];
        down.attacks[0].verdict = Verdict::Down;
        let text = down.to_string();
        for part in [attack.title, attack.stopped_by] {
            assert!(text.contains(part), "{part}: {text}");
        }
        for text in [text, down.to_html(), down.to_markdown()] {
            assert!(!text.contains('…'), "{text}");
        }
    }
}
