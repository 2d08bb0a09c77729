//! Reports: what became of the server under each attack.

mod compare;
mod html;
mod json;
#[cfg(feature = "junit")]
mod junit;
mod markdown;
mod plot;
mod text;

pub use compare::{Change, Comparison};
pub use json::ReportError;

use crate::{
    attacks::{Attack, Remedy},
    grade::{Grade, Verdict},
    overload::Overload,
    processor::Processor,
    series::Series,
    usage::ServerUsage,
    verdict::Honest,
};
use serde::{Deserialize, Serialize};

/// The version of the JSON form of a [`Report`].
pub const SCHEMA: u32 = 1;

/// The result of a drill. Its text is a table, the worst attack first.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this form: [`SCHEMA`].
    pub schema: u32,
    /// The version of the drill.
    pub version: String,
    /// The address of the target.
    pub target: String,
    /// The places of the server, as the drill was told.
    pub places: Option<usize>,
    /// The limit on open files of the server, as the drill set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_limit: Option<u64>,
    /// The limit on memory of the server in bytes, if one was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    /// Whether TLS was spoken.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    /// Whether the attacks were short.
    pub quick: bool,
    /// The seed.
    pub seed: u64,
    /// The duration of the drill in seconds.
    pub seconds: f64,
    /// The attacks that were run, in that order.
    pub attacks: Vec<AttackReport>,
    /// The attacks that were not run.
    pub skipped: Vec<Skipped>,
    /// What the verdicts cannot rule out.
    pub cautions: Vec<String>,
}

/// The result of one attack.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttackReport {
    /// The name of the attack.
    pub name: String,
    /// The threat.
    pub threat: String,
    /// What the attackers did.
    pub title: String,
    /// The CVE that describes the attack.
    pub cve: Option<String>,
    /// The verdict.
    pub verdict: Verdict,
    /// The reason of the verdict; may be empty for [`Verdict::Held`].
    pub reason: String,
    /// What honest clients saw.
    pub honest: Vec<Honest>,
    /// The time after the attack until every kind was served again, in milliseconds.
    pub recovery_ms: Option<f64>,
    /// The largest lateness of the honest clients' own clock, in milliseconds.
    pub lateness_ms: f64,
    /// What the attackers did and hold.
    pub attackers: AttackersReport,
    /// What the server used; `None` if it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerUsage>,
    /// What requests beyond the capacity were answered, if that was the attack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overload: Option<Overload>,
    /// How the processor was used; `None` if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<Processor>,
    /// The round over time; `None` in the report of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<Series>,
    /// What stops the attack.
    pub stopped_by: String,
    /// Settings that stop it, as `server: setting`.
    pub remedies: Vec<String>,
    /// What this verdict cannot rule out.
    pub cautions: Vec<String>,
}

/// What attackers did, hold, and paid. With TLS, bytes are those that it carries, without records
/// and handshakes; in attacks on the handshake, they are those on the wire.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AttackersReport {
    /// The number of attackers.
    pub connections: usize,
    /// The number of connections that they opened, one after the other.
    pub opened: u64,
    /// The number of connections that could not be opened.
    pub failed: u64,
    /// The number that was open at the end.
    pub alive: usize,
    /// The number of those that held at the end what the attack takes.
    pub holding: usize,
    /// The number that held it after newcomers had asked for all places, if they did.
    pub displaced_to: Option<usize>,
    /// The requests that were served, in attacks that are judged by that.
    pub served: u64,
    /// The requests that were not, in the same attacks.
    pub refused: u64,
    /// The number of attackers that got what the server should refuse.
    pub passed: usize,
    /// The bytes that they sent in each second.
    pub sent_per_second: f64,
    /// The bytes that they received in each second.
    pub received_per_second: f64,
    /// The bytes that they sent for each honest request that was lost.
    pub bytes_per_lost_request: Option<f64>,
    /// The bytes that they sent for each place that they keep.
    pub bytes_per_kept_place: Option<f64>,
    /// The connections that they opened for each place that they keep.
    pub connections_per_kept_place: Option<f64>,
}

/// An attack that was not run.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The name of the attack.
    pub name: String,
    /// Why, and what to do to run it.
    pub reason: String,
}

impl Report {
    /// Returns the grade; `None` if no attack has a verdict.
    pub fn grade(&self) -> Option<Grade> {
        Grade::of(self.attacks.iter().map(|attack| attack.verdict))
    }

    /// Returns the result of the attack `name`.
    pub fn attack(&self, name: &str) -> Option<&AttackReport> {
        self.attacks.iter().find(|attack| attack.name == name)
    }

    /// Checks that the grade is `least` or better. Attacks that were skipped or are inconclusive
    /// do not change it, as long as one attack has a verdict.
    ///
    /// # Panics
    ///
    /// With the whole report, if the grade is worse or if there is none.
    #[track_caller]
    pub fn assert(&self, least: Grade) {
        let grade = self.grade();
        assert!(
            grade >= Some(least),
            "grade {least} was asked for\n\n{self}"
        );
    }

    /// Returns how many attacks have each verdict, in words.
    fn counts(&self) -> String {
        let count = |verdict| {
            let attacks = self.attacks.iter();
            attacks.filter(|attack| attack.verdict == verdict).count()
        };
        let counts = WORST_FIRST.map(|verdict| format!("{} {verdict}, ", count(verdict)));
        format!("{}{} skipped", counts.concat(), self.skipped.len())
    }

    /// Returns the attacks, the worst verdict first.
    fn worst_first(&self) -> impl Iterator<Item = &AttackReport> {
        let of = |verdict| {
            let attacks = self.attacks.iter();
            attacks.filter(move |attack| attack.verdict == verdict)
        };
        WORST_FIRST.into_iter().flat_map(of)
    }
}

/// All verdicts, the worst first.
const WORST_FIRST: [Verdict; 5] = [
    Verdict::Down,
    Verdict::Harmed,
    Verdict::Kept,
    Verdict::Inconclusive,
    Verdict::Held,
];

impl AttackReport {
    /// Returns whether something is to be done.
    fn is_unstopped(&self) -> bool {
        !matches!(self.verdict, Verdict::Held | Verdict::Inconclusive)
    }

    /// Returns a report of `attack` without results.
    pub(crate) fn new(attack: &Attack) -> Self {
        let remedy = |remedy: &Remedy| format!("{}: {}", remedy.server, remedy.setting);
        Self {
            name: attack.name.to_owned(),
            threat: attack.threat.to_owned(),
            title: attack.title.to_owned(),
            cve: attack.cve.map(str::to_owned),
            verdict: Verdict::Inconclusive,
            reason: String::new(),
            honest: Vec::new(),
            recovery_ms: None,
            lateness_ms: 0.0,
            attackers: AttackersReport::default(),
            server: None,
            overload: None,
            processor: None,
            series: None,
            stopped_by: attack.stopped_by.to_owned(),
            remedies: attack.remedies.iter().map(remedy).collect(),
            cautions: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
