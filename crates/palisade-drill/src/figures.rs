//! Figures of honest requests in a span of time.
//!
//! Time counts, not samples. A client that waits for an answer sends nothing else, so that a
//! request that hangs would be one sample of many. It counts for as long as it hung instead.

use crate::sample::{Outcome, Sample, Span};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// What one kind of honest client saw in a span of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests that were sent.
    pub sent: u64,
    /// Requests that were answered as expected.
    pub served: u64,
    /// The time that these requests account for, in seconds.
    pub seconds: f64,
    /// The part of that time in which the client was served, from 0 to 1.
    pub served_share: f64,
    /// The latency in milliseconds that 50 % of the served time did not exceed.
    pub p50_ms: Option<f64>,
    /// The latency in milliseconds that 99 % of the served time did not exceed.
    pub p99_ms: Option<f64>,
    /// The number of each outcome that is not an answer as expected.
    pub failures: BTreeMap<String, u64>,
}

/// Returns the figures of `samples`, those of one kind, which sends a request each `interval`.
///
/// A request that has no answer at the end of the span hangs, whatever became of it later. One that
/// is younger than `patience` then is not judged.
pub(crate) fn figures(
    samples: &[Sample],
    span: Span,
    interval: Duration,
    patience: Duration,
) -> Figures {
    let mut figures = Figures::default();
    let (mut served, mut all) = (Duration::ZERO, Duration::ZERO);
    let mut latencies = Vec::new();
    for sample in samples {
        let end = sample.end.min(span.to);
        let latency = end.saturating_sub(sample.start);
        let overlap = span.overlap(sample.start, end);
        let begins_within = (span.from..span.to).contains(&sample.start);
        if !begins_within && overlap.is_zero() {
            continue;
        }
        let is_unfinished = sample.outcome == Outcome::Unfinished || sample.end > span.to;
        if is_unfinished && latency <= patience {
            continue;
        }
        // A request fills its interval. One that began earlier, or is not yet at its end, fills
        // the time that it waited within the span.
        let least = if begins_within && !is_unfinished {
            interval
        } else {
            Duration::ZERO
        };
        let weight = overlap.max(least);
        all += weight;
        figures.sent += 1;
        let outcome = if is_unfinished {
            Outcome::Unfinished
        } else {
            sample.outcome
        };
        if outcome == Outcome::Served {
            figures.served += 1;
            served += weight;
            latencies.push((latency, weight));
        } else {
            let name = outcome.to_string();
            *figures.failures.entry(name).or_default() += 1;
        }
    }
    figures.seconds = all.as_secs_f64();
    if !all.is_zero() {
        figures.served_share = served.as_secs_f64() / all.as_secs_f64();
    }
    latencies.sort_unstable();
    figures.p50_ms = percentile(&latencies, 0.5).map(milliseconds);
    figures.p99_ms = percentile(&latencies, 0.99).map(milliseconds);
    figures
}

/// Returns the least value that `share` of the weight does not exceed. `sorted` is by value.
fn percentile(sorted: &[(Duration, Duration)], share: f64) -> Option<Duration> {
    let all: Duration = sorted.iter().map(|(_, weight)| *weight).sum();
    let wanted = all.mul_f64(share);
    let mut below = Duration::ZERO;
    let found = sorted.iter().find(|(_, weight)| {
        below += *weight;
        below >= wanted
    });
    found.or(sorted.last()).map(|(value, _)| *value)
}

/// Converts a time into milliseconds, rounded to microseconds.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Kind;

    const INTERVAL: Duration = Duration::from_millis(100);
    const PATIENCE: Duration = Duration::from_millis(100);
    const SPAN: Span = Span {
        from: Duration::from_secs(10),
        to: Duration::from_secs(20),
    };

    fn sample(start_ms: u64, took_ms: u64, outcome: Outcome) -> Sample {
        let start = Duration::from_millis(start_ms);
        Sample {
            kind: Kind::KeepAlive,
            start,
            end: start + Duration::from_millis(took_ms),
            outcome,
        }
    }

    fn of(samples: &[Sample]) -> Figures {
        figures(samples, SPAN, INTERVAL, PATIENCE)
    }

    #[test]
    fn a_request_that_hangs_counts_for_as_long_as_it_hung() {
        // 50 requests in 5 s are served, then one hangs for 5 s.
        let mut samples: Vec<_> = (0..50)
            .map(|at| sample(10_000 + 100 * at, 2, Outcome::Served))
            .collect();
        samples.push(sample(15_000, 5_000, Outcome::TimedOut));
        let figures = of(&samples);
        assert_eq!((figures.sent, figures.served), (51, 50));
        assert!((figures.served_share - 0.5).abs() < 1e-9);
        assert_eq!(figures.p99_ms, Some(2.0));
        assert_eq!(figures.failures["timed out"], 1);
    }

    #[test]
    fn a_slow_answer_weighs_as_much_as_its_wait() {
        let mut samples: Vec<_> = (0..90)
            .map(|at| sample(10_000 + 100 * at, 2, Outcome::Served))
            .collect();
        samples.push(sample(19_000, 1_000, Outcome::Served));
        let figures = of(&samples);
        assert_eq!((figures.served_share, figures.p50_ms), (1.0, Some(2.0)));
        assert_eq!(figures.p99_ms, Some(1_000.0));
    }

    #[test]
    fn a_request_that_began_earlier_counts_for_its_wait_within_the_span() {
        let before = sample(6_000, 5_000, Outcome::TimedOut);
        let served = sample(11_000, 1_000, Outcome::Served);
        assert!((of(&[before, served]).served_share - 0.5).abs() < 1e-9);
        // It ends in time, and the request is not judged by what comes after.
        let later = of(&[sample(12_000, 9_000, Outcome::Served)]);
        assert_eq!((later.served, later.failures["hung"]), (0, 1));
        assert_eq!(
            of(&[sample(1_000, 100, Outcome::Served)]),
            Figures::default()
        );
        assert_eq!(
            of(&[sample(20_000, 100, Outcome::Served)]),
            Figures::default()
        );
    }

    #[test]
    fn an_unfinished_request_counts_once_it_is_late() {
        let young = sample(19_950, 50, Outcome::Unfinished);
        assert_eq!(of(&[young]).sent, 0);
        let old = of(&[sample(18_000, 2_000, Outcome::Unfinished)]);
        assert_eq!((old.sent, old.served_share), (1, 0.0));
        assert_eq!(old.failures["hung"], 1);
    }

    #[test]
    fn no_samples_have_no_percentile() {
        let figures = of(&[]);
        assert_eq!((figures.p50_ms, figures.served_share), (None, 0.0));
    }
}
