//! The words for what became of a server, and the shares that divide them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The part of the time in which honest clients are served by a server that holds.
pub(crate) const HELD_SHARE: f64 = 0.99;
/// The part of the time below which a server is down.
pub(crate) const DOWN_SHARE: f64 = 0.5;
/// The part of the attackers' connections that a server may keep.
pub(crate) const KEPT_SHARE: f64 = 0.1;

/// What became of the server under one attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Honest clients were served as before, and the attackers hold nothing.
    Held,
    /// Honest clients were served as before, but the attackers keep what they took.
    Kept,
    /// Honest clients were served worse than before.
    Harmed,
    /// Honest clients were served less than half of the time, or not within 5 s after the attack.
    Down,
    /// Nothing can be said, for the reason that is given.
    Inconclusive,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Held => "held",
            Self::Kept => "kept",
            Self::Harmed => "harmed",
            Self::Down => "down",
            Self::Inconclusive => "inconclusive",
        })
    }
}

/// The grade of a server: the verdict of its worst attack. A better grade is greater.
///
/// ```
/// use palisade_drill::Grade;
/// assert!(Grade::A > Grade::B && Grade::C >= Grade::F);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Grade {
    /// An attack brought the server down.
    F,
    /// An attack harmed honest clients.
    C,
    /// Honest clients were unharmed throughout.
    B,
    /// Every attack was held.
    A,
}

impl Grade {
    /// Returns the grade of these verdicts; `None` if all are inconclusive.
    ///
    /// ```
    /// use palisade_drill::{Grade, Verdict};
    /// let verdicts = [Verdict::Held, Verdict::Kept, Verdict::Inconclusive];
    /// assert_eq!(Grade::of(verdicts), Some(Grade::B));
    /// assert_eq!(Grade::of([Verdict::Inconclusive]), None);
    /// ```
    pub fn of(verdicts: impl IntoIterator<Item = Verdict>) -> Option<Self> {
        let grades = verdicts.into_iter().filter_map(|verdict| match verdict {
            Verdict::Held => Some(Self::A),
            Verdict::Kept => Some(Self::B),
            Verdict::Harmed => Some(Self::C),
            Verdict::Down => Some(Self::F),
            Verdict::Inconclusive => None,
        });
        grades.min()
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Formats a share, rounded down so that only 1 is 100 %.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", (share * 1_000.0).floor() / 10.0)
}
