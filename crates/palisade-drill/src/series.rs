//! What a round looked like over time, in a bounded number of moments. Pure.

use crate::{
    figures::{figures, milliseconds},
    sample::{Outcome, Sample, Span},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The most moments of a round.
pub(crate) const MAX_MOMENTS: u32 = 120;
/// The least length of a moment. Others are multiples of it.
const STEP: Duration = Duration::from_millis(250);

/// A round over time: honest clients alone, then attackers, then honest clients alone again. Of an
/// attack with two rounds, it is the second one.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// When the attackers began, in seconds since the round began.
    pub attack_from: f64,
    /// When their last connection was closed, in seconds since the round began.
    pub attack_to: f64,
    /// What was seen, in the order of time. A drill writes 120 moments at most, of a quarter of a
    /// second, or of a multiple of that in a long round.
    pub moments: Vec<Moment>,
}

/// A moment of a round. It begins where the one before it ends.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Its end, in seconds since the round began.
    pub seconds: f64,
    /// The part of the time in which honest clients were served, from 0 to 1: the mean of all kinds
    /// that had a request. `None` if none had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_share: Option<f64>,
    /// The median latency of the requests that were served and ended in it, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_ms: Option<f64>,
    /// The longest wait of a request that ended in it, or had no answer at its end, in
    /// milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_ms: Option<f64>,
    /// The attackers that were connected at its end, as far as they saw. One that reads nothing
    /// sees that it was closed at the end of the attack alone.
    #[serde(default)]
    pub attackers: usize,
    /// The resident memory of the server at its end, in bytes; `None` if it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

/// All that was seen in a round. Times are those since the drill began.
pub(crate) struct Seen<'a> {
    pub(crate) round: Span,
    pub(crate) attack: Span,
    /// The requests of each kind of honest client, and the time that one of them accounts for.
    pub(crate) honest: &'a [(Vec<Sample>, Duration)],
    /// The connected attackers, in the order of time.
    pub(crate) attackers: &'a [(Duration, usize)],
    /// The resident memory, in the order of time.
    pub(crate) memory: &'a [(Duration, u64)],
    /// The age from which a request without an answer is judged.
    pub(crate) patience: Duration,
}

/// Returns what was seen, moment by moment.
pub(crate) fn series(seen: &Seen<'_>) -> Series {
    let Span { from, to } = seen.round;
    let length = seen.round.length().as_secs_f64();
    let most = STEP.as_secs_f64() * f64::from(MAX_MOMENTS);
    let step = STEP.mul_f64((length / most).ceil().max(1.0));
    // The last moment is up to half a step longer or shorter.
    let count = (length / step.as_secs_f64()).round().max(1.0) as u32;
    let ends = (1..=count).map(|number| match number {
        last if last == count => to,
        number => from + step * number,
    });
    let mut begins = from;
    let moments = ends.map(|end| {
        let span = Span {
            from: begins,
            to: end,
        };
        begins = end;
        moment(seen, span)
    });
    Series {
        moments: moments.collect(),
        attack_from: seconds(seen.attack.from.saturating_sub(from)),
        attack_to: seconds(seen.attack.to.saturating_sub(from)),
    }
}

/// Returns what was seen in `span`.
fn moment(seen: &Seen<'_>, span: Span) -> Moment {
    let shares = seen.honest.iter().filter_map(|(samples, interval)| {
        let figures = figures(samples, span, *interval, seen.patience);
        (figures.sent > 0).then_some(figures.served_share)
    });
    let shares: Vec<_> = shares.collect();
    let all = || seen.honest.iter().flat_map(|(samples, _)| samples);
    let ended = |sample: &&Sample| {
        sample.outcome != Outcome::Unfinished && span.from < sample.end && sample.end <= span.to
    };
    let mut served: Vec<_> = all()
        .filter(ended)
        .filter(|sample| sample.outcome == Outcome::Served)
        .map(|sample| sample.end.saturating_sub(sample.start))
        .collect();
    served.sort_unstable();
    let longest = all()
        .filter(|sample| ended(sample) || (sample.start < span.to && sample.end >= span.to))
        .map(|sample| sample.end.min(span.to).saturating_sub(sample.start))
        .max();
    let attackers = seen.attackers.iter().rev().find(|(at, _)| *at <= span.to);
    let memory = seen.memory.iter().rev().find(|(at, _)| *at <= span.to);
    Moment {
        seconds: seconds(span.to.saturating_sub(seen.round.from)),
        served_share: (!shares.is_empty()).then(|| {
            let mean = shares.iter().sum::<f64>() / shares.len() as f64;
            (mean * 1_000.0).round() / 1_000.0
        }),
        median_ms: served.get(served.len() / 2).copied().map(milliseconds),
        longest_ms: longest.map(milliseconds),
        attackers: attackers.map_or(0, |(_, count)| *count),
        // A server that has ended is measured no more.
        memory: memory.and_then(|(at, bytes)| (*at + 2 * STEP > span.from).then_some(*bytes)),
    }
}

/// Converts a time into seconds, rounded to milliseconds.
fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Kind;

    const INTERVAL: Duration = Duration::from_millis(100);

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(10_000 + milliseconds)
    }

    fn sample(start_ms: u64, took_ms: u64, outcome: Outcome) -> Sample {
        Sample {
            kind: Kind::KeepAlive,
            start: at(start_ms),
            end: at(start_ms + took_ms),
            outcome,
        }
    }

    fn of(length_ms: u64, samples: Vec<Sample>) -> Series {
        series(&Seen {
            round: Span {
                from: at(0),
                to: at(length_ms),
            },
            attack: Span {
                from: at(500),
                to: at(1_500),
            },
            honest: &[(samples, INTERVAL)],
            attackers: &[(at(500), 0), (at(700), 40), (at(1_500), 0)],
            memory: &[(at(500), 1_000), (at(900), 5_000)],
            patience: INTERVAL,
        })
    }

    #[test]
    fn harm_its_beginning_and_the_recovery_are_seen_at_their_time() {
        // Served each 100 ms; a request at 600 ms hangs until it is given up at 1,600 ms.
        let served = |start| sample(start, 2, Outcome::Served);
        let mut samples: Vec<_> = (0..6).map(|turn| served(100 * turn)).collect();
        samples.push(sample(600, 1_000, Outcome::TimedOut));
        samples.extend((17..20).map(|turn| served(100 * turn)));
        let series = of(2_000, samples);
        assert_eq!((series.attack_from, series.attack_to), (0.5, 1.5));
        let shares: Vec<_> = series.moments.iter().map(|it| it.served_share).collect();
        let parts = [1.0, 1.0, 0.4, 0.0, 0.0, 0.0, 0.5, 1.0].map(Some);
        assert_eq!(shares, parts);
        let longest: Vec<_> = series.moments.iter().map(|it| it.longest_ms).collect();
        let parts = [2.0, 2.0, 150.0, 400.0, 650.0, 900.0, 1_000.0, 2.0].map(Some);
        assert_eq!(longest, parts);
        assert_eq!(series.moments[3].median_ms, None);
        assert_eq!(series.moments[7].median_ms, Some(2.0));
        let attackers: Vec<_> = series.moments.iter().map(|it| it.attackers).collect();
        assert_eq!(attackers, [0, 0, 40, 40, 40, 0, 0, 0]);
        let memory: Vec<_> = series.moments.iter().map(|it| it.memory).collect();
        let bytes = [0, 1, 1, 5, 5, 5, 0, 0].map(|kb| (kb > 0).then_some(1_000 * kb));
        assert_eq!(memory, bytes);
    }

    #[test]
    fn a_round_of_any_length_has_a_bounded_number_of_moments_that_fill_it() {
        for length_ms in [0, 1, 249, 400, 30_000, 30_001, 45_000, 150_000, 900_000] {
            let moments = of(length_ms, Vec::new()).moments;
            assert!((1..=MAX_MOMENTS as usize).contains(&moments.len()));
            let ends: Vec<_> = moments.iter().map(|moment| moment.seconds).collect();
            assert!(ends.is_sorted(), "{ends:?}");
            assert_eq!(ends.last(), Some(&(length_ms as f64 / 1_000.0)));
            assert_eq!(moments[0].served_share, None);
        }
        assert_eq!(of(30_000, Vec::new()).moments.len(), 120);
        assert_eq!(of(150_000, Vec::new()).moments[0].seconds, 1.25);
    }
}
