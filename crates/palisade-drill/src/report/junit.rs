//! Reports as `JUnit` XML, which most CI services show as tests.

use super::{AttackReport, Report};
use crate::{grade::Verdict, text::sentence};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use std::time::Duration;

impl Report {
    /// Returns the report as `JUnit` XML, a test case for each attack: passed if it is held, failed
    /// with the remedy if it is not, and skipped with the reason if nothing can be said.
    pub fn to_junit(&self) -> String {
        let mut suite = TestSuite::new("palisade-drill");
        suite.add_test_cases(self.attacks.iter().map(case));
        suite.add_test_cases(self.skipped.iter().map(|skipped| {
            let mut status = TestCaseStatus::skipped();
            status.set_message(sentence(&skipped.reason));
            new_case(&skipped.name, status)
        }));
        suite.set_time(Duration::try_from_secs_f64(self.seconds).unwrap_or_default());
        let mut report = quick_junit::Report::new("palisade-drill");
        report.add_test_suite(suite);
        // Only a string is written to, which cannot fail.
        report.to_string().unwrap_or_default()
    }
}

fn new_case(name: &str, status: TestCaseStatus) -> TestCase {
    let mut case = TestCase::new(sentence(name), status);
    case.set_classname("drill");
    case
}

fn case(attack: &AttackReport) -> TestCase {
    let status = match attack.verdict {
        Verdict::Held => TestCaseStatus::success(),
        Verdict::Inconclusive => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(sentence(&attack.reason));
            status
        }
        verdict => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_type(verdict.to_string());
            status.set_message(sentence(&attack.reason));
            let mut text = format!("stopped by {}", sentence(&attack.stopped_by));
            for remedy in &attack.remedies {
                text.push_str(&format!("\n{}", sentence(remedy)));
            }
            status.set_description(text);
            status
        }
    };
    new_case(&attack.name, status)
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use quick_junit::{Report, TestCaseStatus};

    #[test]
    fn each_attack_is_a_case_and_what_is_not_held_fails_with_the_remedy() {
        let text = report().to_junit();
        let read = Report::deserialize_from_str(&text).unwrap();
        let suite = &read.test_suites[0];
        assert_eq!((suite.tests, suite.failures), (3, 1), "{text}");
        assert!(text.contains("skipped=\"1\""), "{text}");
        let TestCaseStatus::NonSuccess {
            message,
            description,
            ..
        } = &suite.test_cases[1].status
        else {
            panic!("{text}");
        };
        assert_eq!(
            message.as_deref(),
            Some("keep-alive: p99 57 ms, before 2.0 ms")
        );
        assert!(
            description
                .as_deref()
                .unwrap()
                .contains("ConnGuard: header_timeout")
        );
    }

    #[test]
    fn text_of_the_server_is_no_markup() {
        let mut hostile = report();
        let evil = "\"/><system-out>]]> \u{1b} & <!-- \u{0}";
        hostile.attacks[1].reason = evil.to_owned();
        hostile.skipped[0].reason = evil.to_owned();
        let text = hostile.to_junit();
        assert!(
            !text.contains("<system-out>") && !text.contains(['\u{1b}', '\u{0}']),
            "{text}"
        );
        let read = Report::deserialize_from_str(&text).unwrap();
        assert_eq!(read.test_suites[0].test_cases.len(), 3);
    }
}
