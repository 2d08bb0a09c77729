//! The results, and their table for the terminal.

use crate::{
    attacks::{Attack, Responses},
    honest::RequestStats,
    servers::ServerKind,
};
use std::{fmt::Write, time::Duration};

/// The outcome of one attack on one server.
pub(crate) struct Outcome {
    pub(crate) kind: ServerKind,
    pub(crate) honest: RequestStats,
    /// The number of attackers that the server still holds when the attack has settled.
    pub(crate) held: usize,
    /// The kernel has killed the server for its memory.
    pub(crate) killed: bool,
    /// The responses to the attackers.
    pub(crate) responses: Responses,
    /// The guards and reasons of palisade's refusals.
    pub(crate) reasons: Vec<(String, u64)>,
    pub(crate) at_start: Option<Memory>,
    /// After all attackers are gone.
    pub(crate) at_end: Option<Memory>,
    pub(crate) samples: Vec<Sample>,
}

/// A process's memory in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) now: u64,
    /// The largest value so far.
    pub(crate) peak: u64,
}

/// A sample taken during an attack.
pub(crate) struct Sample {
    pub(crate) at: Duration,
    /// The number of honest requests sent since the last sample.
    pub(crate) sent: u64,
    /// The number of honest requests served since the last sample.
    pub(crate) served: u64,
    pub(crate) held: usize,
    pub(crate) memory: Option<u64>,
}

/// The outcomes of each attack on all servers; none if the attack was skipped.
pub(crate) type Results<'a> = [(&'a Attack, Vec<Outcome>)];

/// Why an attack was skipped.
pub(crate) const SKIPPED: &str = "skipped: this process may not create control groups of version 1";

/// Returns a description of each expectation that palisade has failed.
pub(crate) fn failures(results: &Results<'_>) -> Vec<String> {
    let mut failures = Vec::new();
    for (attack, outcomes) in results {
        for outcome in outcomes
            .iter()
            .filter(|outcome| outcome.kind == ServerKind::Palisade)
        {
            let ratio = outcome.honest.served_ratio();
            if ratio < attack.min_served_ratio {
                failures.push(format!("{}: {} served", attack.name, percent(ratio)));
            }
            if outcome.held > 0 {
                failures.push(format!("{}: {} attackers held", attack.name, outcome.held));
            }
            if outcome.killed {
                failures.push(format!("{}: killed", attack.name));
            }
        }
    }
    failures
}

/// Renders the results as text.
pub(crate) fn text(results: &Results<'_>) -> String {
    let mut text = String::from("\n");
    for kind in ServerKind::ALL {
        let _ = writeln!(text, "{:<10}{}", kind.name(), kind.about());
    }
    for (attack, outcomes) in results {
        let _ = writeln!(text, "\n{}: {}", attack.name.to_uppercase(), attack.about);
        if outcomes.is_empty() {
            let _ = writeln!(text, "{SKIPPED}");
            continue;
        }
        let _ = writeln!(
            text,
            "{:<10}{:>16}{:>10}{:>10}{:>8}   {:<20}responses to attackers",
            "", "honest served", "p50", "p99", "held", "memory MiB"
        );
        for outcome in outcomes {
            let Outcome {
                kind, honest, held, ..
            } = outcome;
            let served = format!("{} of {}", percent(honest.served_ratio()), honest.sent);
            let _ = writeln!(
                text,
                "{:<10}{served:>16}{:>10}{:>10}{held:>8}   {:<20}{}",
                kind.name(),
                milliseconds(honest.percentile(50)),
                milliseconds(honest.percentile(99)),
                outcome.memory(),
                counts(&outcome.responses),
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

/// The explanation of the columns.
const NOTES: &str = "
honest served  8 clients send 4 requests a second each, and one client uploads at 32 KiB/s. A client
               gives up after 2 s without a response, and sends every fourth request on a new
               connection. p50 and p99 are the latencies of the served requests
               In the CPU-bound overload 100 clients send twice what the server can do, and give
               up after 1 s: about half of their requests can be served
held           attackers with a connection or request that the server still holds one second after
               the last of them has begun anything, or three seconds after it where a connection has
               two seconds for its first request
memory         of the server process: before the attack, at its peak, and after the attack; 8 MiB of
               palisade's memory are the table of its rate limit, which has a fixed size. 'killed'
               is a server that the kernel has killed at the limit of its control group
";

impl Outcome {
    /// Returns the memory before the attack, at its peak and after the attack.
    pub(crate) fn memory(&self) -> String {
        match (self.at_start, self.at_end) {
            (Some(start), None) if self.killed => {
                format!("{} > killed", mib(start.now))
            }
            (Some(start), Some(end)) => {
                format!("{} > {} > {}", mib(start.now), mib(end.peak), mib(end.now))
            }
            _ => "n/a".to_owned(),
        }
    }
}

// === Formatting ===

/// Formats a ratio as percentage, rounded down so that only 1 is shown as 100 %.
pub(crate) fn percent(ratio: f64) -> String {
    format!("{:.1} %", (ratio * 1000.0).floor() / 10.0)
}

/// Formats a latency in milliseconds.
pub(crate) fn milliseconds(time: Option<Duration>) -> String {
    match time.map(|time| time.as_secs_f64() * 1000.0) {
        Some(time) if time < 10.0 => format!("{time:.1} ms"),
        Some(time) => format!("{time:.0} ms"),
        None => "-".to_owned(),
    }
}

/// Converts bytes to MiB, rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Formats names and their counts, the most frequent first.
pub(crate) fn counts<'a, T>(counts: T) -> String
where
    T: IntoIterator,
    T::Item: NamedCount<'a>,
{
    let mut counts: Vec<_> = counts.into_iter().map(NamedCount::parts).collect();
    counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    let counts: Vec<_> = counts
        .iter()
        .map(|(name, count)| format!("{name} x {count}"))
        .collect();
    if counts.is_empty() {
        "-".to_owned()
    } else {
        counts.join(", ")
    }
}

/// A name and its count.
pub(crate) trait NamedCount<'a> {
    fn parts(self) -> (&'a str, u64);
}

impl<'a> NamedCount<'a> for (&'a String, &'a u64) {
    fn parts(self) -> (&'a str, u64) {
        (self.0, *self.1)
    }
}

impl<'a> NamedCount<'a> for &'a (String, u64) {
    fn parts(self) -> (&'a str, u64) {
        (&self.0, self.1)
    }
}
