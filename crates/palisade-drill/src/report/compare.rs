//! What has changed between two reports.

use super::Report;
use crate::{
    grade::{Grade, Verdict},
    text::sentence,
};
use std::{collections::BTreeMap, fmt};

/// What has changed from one report to another one. Its text is a line for each change, or says
/// that there is none.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The grade before and now.
    pub grade: (Option<Grade>, Option<Grade>),
    /// Attacks with another verdict, or that are in one of the reports only, by name.
    pub changes: Vec<Change>,
}

/// An attack with another verdict than before.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The name of the attack.
    pub name: String,
    /// The verdict before; `None` if it was not run.
    pub before: Option<Verdict>,
    /// The verdict now; `None` if it was not run.
    pub now: Option<Verdict>,
}

impl Report {
    /// Compares this report with an earlier one.
    ///
    /// ```
    /// # use palisade_drill::Report;
    /// # fn changed(before: &str, now: &Report) -> Result<(), palisade_drill::ReportError> {
    /// let before = Report::from_json(before)?;
    /// let comparison = now.compare(&before);
    /// if comparison.is_worse() {
    ///     println!("{comparison}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn compare(&self, before: &Self) -> Comparison {
        let mut verdicts: BTreeMap<&str, [Option<Verdict>; 2]> = BTreeMap::new();
        for (index, report) in [before, self].into_iter().enumerate() {
            for attack in &report.attacks {
                verdicts.entry(&attack.name).or_default()[index] = Some(attack.verdict);
            }
        }
        let changes = verdicts
            .into_iter()
            .filter(|(_, [before, now])| before != now);
        let change = |(name, [before, now]): (&str, [_; 2])| Change {
            name: name.to_owned(),
            before,
            now,
        };
        Comparison {
            grade: (before.grade(), self.grade()),
            changes: changes.map(change).collect(),
        }
    }
}

impl Comparison {
    /// Returns whether an attack that was held, or did less harm, does more now.
    pub fn is_worse(&self) -> bool {
        self.changes.iter().any(Change::is_worse)
    }
}

impl Change {
    /// Returns whether the attack does more now. What is inconclusive or was not run says nothing.
    pub fn is_worse(&self) -> bool {
        let grade = |verdict: Option<Verdict>| Grade::of(verdict);
        matches!((grade(self.before), grade(self.now)), (Some(before), Some(now)) if now < before)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = |grade: Option<Grade>| grade.map_or("none".to_owned(), |it| it.to_string());
        let (before, now) = self.grade;
        writeln!(f, "grade {}, before {}", grade(now), grade(before))?;
        for Change { name, before, now } in &self.changes {
            let verdict =
                |it: &Option<Verdict>| it.map_or("not run".to_owned(), |it| it.to_string());
            let (name, before) = (sentence(name), verdict(before));
            writeln!(f, "{name}: {}, before {before}", verdict(now))?;
        }
        if self.changes.is_empty() {
            writeln!(f, "no verdict has changed")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::report, *};

    #[test]
    fn a_change_is_worse_only_if_both_reports_have_a_verdict() {
        let before = report();
        assert_eq!(before.compare(&before).changes, []);
        assert!(!before.compare(&before).is_worse());
        for (verdict, is_worse) in [
            (Verdict::Down, true),
            (Verdict::Kept, true),
            (Verdict::Inconclusive, false),
        ] {
            let mut now = report();
            now.attacks[0].verdict = verdict;
            assert_eq!(now.compare(&before).is_worse(), is_worse, "{verdict}");
            assert!(!before.compare(&now).is_worse(), "{verdict}");
        }
        let mut now = report();
        now.attacks.remove(1);
        let comparison = now.compare(&before);
        assert!(!comparison.is_worse());
        let text = "grade A, before C\ndripped-head: not run, before harmed\n";
        assert_eq!(comparison.to_string(), text);
    }
}
