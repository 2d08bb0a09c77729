//! What came out, and as a table for the terminal.

use crate::{
    attacks::{Answers, Attack},
    honest::Book,
    servers::Kind,
};
use std::{fmt::Write, time::Duration};

/// One attack on one server.
pub(crate) struct Outcome {
    pub(crate) kind: Kind,
    pub(crate) honest: Book,
    /// Attackers that the server still held a while after they had begun the last thing.
    pub(crate) held: usize,
    /// What the attackers were answered.
    pub(crate) answers: Answers,
    /// Whom palisade refused, in its own words.
    pub(crate) reasons: Vec<(String, u64)>,
    pub(crate) at_start: Option<Memory>,
    /// When all attackers were gone.
    pub(crate) at_end: Option<Memory>,
    pub(crate) moments: Vec<Moment>,
}

/// A process's memory in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) now: u64,
    /// The most it ever was.
    pub(crate) peak: u64,
}

/// One look during an attack.
pub(crate) struct Moment {
    pub(crate) at: Duration,
    /// Honest requests since the last look, and those of them that were served.
    pub(crate) asked: u64,
    pub(crate) served: u64,
    pub(crate) held: usize,
    pub(crate) memory: Option<u64>,
}

pub(crate) type Results<'a> = [(&'a Attack, Vec<Outcome>)];

/// What is expected of palisade.
pub(crate) const LEAST_SERVED: f64 = 0.99;

/// Where palisade did not do what is expected of it.
pub(crate) fn failures(results: &Results<'_>) -> Vec<String> {
    let mut failures = Vec::new();
    for (attack, outcomes) in results {
        for outcome in outcomes
            .iter()
            .filter(|outcome| outcome.kind == Kind::Palisade)
        {
            let rate = outcome.honest.rate();
            if rate < LEAST_SERVED {
                failures.push(format!("{}: {} served", attack.name, percent(rate)));
            }
            if outcome.held > 0 {
                failures.push(format!("{}: {} attackers held", attack.name, outcome.held));
            }
        }
    }
    failures
}

/// Everything as text.
pub(crate) fn text(results: &Results<'_>) -> String {
    let mut text = String::from("\n");
    for kind in Kind::ALL {
        let _ = writeln!(text, "{:<10}{}", kind.name(), kind.about());
    }
    for (attack, outcomes) in results {
        let _ = writeln!(text, "\n{}: {}", attack.name.to_uppercase(), attack.about);
        let _ = writeln!(
            text,
            "{:<10}{:>16}{:>10}{:>10}{:>8}   {:<20}attackers were answered",
            "", "honest served", "p50", "p99", "held", "memory MiB"
        );
        for outcome in outcomes {
            let Outcome {
                kind, honest, held, ..
            } = outcome;
            let served = format!("{} of {}", percent(honest.rate()), honest.asked);
            let _ = writeln!(
                text,
                "{:<10}{served:>16}{:>10}{:>10}{held:>8}   {:<20}{}",
                kind.name(),
                milliseconds(honest.percentile(50)),
                milliseconds(honest.percentile(99)),
                outcome.memory(),
                counts(&outcome.answers),
            );
            if !honest.failures.is_empty() {
                let _ = writeln!(text, "{:<10}  honest: {}", "", counts(&honest.failures));
            }
            if !outcome.reasons.is_empty() {
                let _ = writeln!(text, "{:<10}  refused: {}", "", counts(&outcome.reasons));
            }
        }
    }
    text.push_str(NOTES);
    text
}

pub(crate) const NOTES: &str = "
honest served  8 clients with 4 requests a second each, and one that uploads at 32 KiB a second;
               who has no answer after 2 s goes away. p50 and p99 are of those who were served
               they make a new connection for every fourth request
held           attackers that the server still keeps one second after the last of them began, or
               three where a connection has two seconds for its first request
memory         of the server's process: before the attack, at its worst, and after it; 8 MiB of
               palisade's is the table of its rate limit, which has a fixed size
";

impl Outcome {
    /// Before, at worst, after.
    pub(crate) fn memory(&self) -> String {
        match (self.at_start, self.at_end) {
            (Some(start), Some(end)) => {
                format!("{} > {} > {}", mib(start.now), mib(end.peak), mib(end.now))
            }
            _ => "n/a".to_owned(),
        }
    }
}

// === Numbers for people ===

pub(crate) fn percent(rate: f64) -> String {
    // Rounded down: 99.96 % are not all.
    format!("{:.1} %", (rate * 1000.0).floor() / 10.0)
}

pub(crate) fn milliseconds(time: Option<Duration>) -> String {
    match time.map(|time| time.as_secs_f64() * 1000.0) {
        Some(time) if time < 10.0 => format!("{time:.1} ms"),
        Some(time) => format!("{time:.0} ms"),
        None => "-".to_owned(),
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// What and how often, the most frequent first.
pub(crate) fn counts<'a, T>(counts: T) -> String
where
    T: IntoIterator,
    T::Item: Count<'a>,
{
    let mut counts: Vec<_> = counts.into_iter().map(Count::parts).collect();
    counts.sort_by_key(|(what, count)| (std::cmp::Reverse(*count), *what));
    let counts: Vec<_> = counts
        .iter()
        .map(|(what, count)| format!("{what} x {count}"))
        .collect();
    if counts.is_empty() {
        "-".to_owned()
    } else {
        counts.join(", ")
    }
}

/// A name and how often it was.
pub(crate) trait Count<'a> {
    fn parts(self) -> (&'a str, u64);
}

impl<'a> Count<'a> for (&'a String, &'a u64) {
    fn parts(self) -> (&'a str, u64) {
        (self.0, *self.1)
    }
}

impl<'a> Count<'a> for &'a (String, u64) {
    fn parts(self) -> (&'a str, u64) {
        (&self.0, self.1)
    }
}
