//! A round over time as one SVG: honest success, latency, attackers, memory. Numbers alone, so that
//! there is nothing to escape.

use super::text::latency;
use crate::{
    grade::percent,
    series::{MAX_MOMENTS, Moment, Series},
};
use std::fmt::Write;

/// The size of a panel, and the distance from one to the next, in pixels.
const WIDTH: f64 = 212.0;
const HEIGHT: f64 = 52.0;
const PITCH: f64 = 236.0;
/// Where panels begin, below their titles.
const TOP: f64 = 18.0;
/// The longest wait that fills a panel at least, so that noise looks like noise.
const LEAST_LATENCY_MS: f64 = 50.0;
/// The largest number that is written as it is: a report may be of a file.
const MAX_NUMBER: f64 = 1e9;

/// What every panel has in common.
struct Axis<'a> {
    /// The end of the round in seconds.
    end: f64,
    moments: &'a [Moment],
}

/// Draws `series`.
pub(super) fn write_series(out: &mut String, series: &Series) {
    let cut = series.moments.len().min(MAX_MOMENTS as usize);
    let moments = series.moments.get(..cut).unwrap_or_default();
    let Some(last) = moments.last() else { return };
    let axis = Axis {
        end: last.seconds.max(f64::MIN_POSITIVE),
        moments,
    };
    let lowest = moments.iter().filter_map(|moment| moment.served_share);
    let lowest = lowest.reduce(f64::min);
    let longest = largest(moments, |moment| moment.longest_ms);
    let attackers = largest(moments, |moment| Some(moment.attackers as f64));
    let memory = largest(moments, |moment| moment.memory.map(|bytes| bytes as f64));
    let measured = moments.iter().any(|moment| moment.memory.is_some());
    let texts = [
        lowest.map_or("-".to_owned(), |share| percent(share.clamp(0.0, 1.0))),
        latency(Some(longest)),
        format!("{attackers:.0}"),
        format!("{:.1} MiB", memory / 1_048_576.0),
    ];
    let [served_text, latency_text, attackers_text, memory_text] = texts;
    let memory_text = if measured {
        memory_text
    } else {
        "-".to_owned()
    };
    let (from, to) = (axis.x(series.attack_from), axis.x(series.attack_to));
    let ends = |seconds: f64| format!("{:.1}", number(seconds));
    let _ = writeln!(
        out,
        "<svg width=\"920\" height=\"88\" viewBox=\"0 0 920 88\" role=\"img\"><title>{} s over \
         time, attackers from {} to {} s: honest requests served at least {served_text}, longest \
         wait {latency_text}, at most {attackers_text} attackers connected, memory at most \
         {memory_text}</title>",
        ends(axis.end),
        ends(series.attack_from),
        ends(series.attack_to),
    );
    let times = format!(
        "attack {} to {} s",
        ends(series.attack_from),
        ends(series.attack_to)
    );
    let mut panel = |at: usize, title: &str, value: &str, shapes: &str| {
        let (left, right, bottom) = (PITCH * at as f64, WIDTH, TOP + HEIGHT);
        let (end, width, base) = (ends(axis.end), (to - from).max(0.0), bottom + 15.0);
        let _ = writeln!(
            out,
            "<g transform=\"translate({left} 0)\"><text y=\"12\">{title}</text>\
             <text x=\"{right}\" y=\"12\" text-anchor=\"end\">{value}</text>\
             <rect class=\"panel\" y=\"{TOP}\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\
             <rect class=\"attacked\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" \
             height=\"{HEIGHT}\"/>{shapes}\
             <rect class=\"attack-time\" x=\"{from:.1}\" y=\"{bottom}\" width=\"{width:.1}\" \
             height=\"3\"/><text class=\"axis\" y=\"{base}\">0 s</text>\
             <text class=\"axis\" x=\"{middle:.1}\" y=\"{base}\" text-anchor=\"middle\">{times}\
             </text><text class=\"axis\" x=\"{right}\" y=\"{base}\" text-anchor=\"end\">{end} s\
             </text></g>",
            middle = ((from + to) / 2.0).clamp(80.0, WIDTH - 90.0),
        );
    };
    let served = axis.steps(|moment| Some((0.0, moment.served_share?)));
    let lost = axis.steps(|moment| Some((moment.served_share?, 1.0)));
    let shapes =
        format!("<path class=\"served\" d=\"{served}\"/><path class=\"lost\" d=\"{lost}\"/>");
    panel(0, "honest served", &format!("least {served_text}"), &shapes);
    let scale = longest.max(LEAST_LATENCY_MS);
    let waits = axis.steps(|moment| Some((0.0, moment.longest_ms? / scale)));
    let median = axis.steps(|moment| Some((0.0, moment.median_ms? / scale)));
    let shapes =
        format!("<path class=\"wait\" d=\"{waits}\"/><path class=\"median\" d=\"{median}\"/>");
    let value = format!("longest {latency_text}");
    panel(1, "wait", &value, &shapes);
    let scale = attackers.max(1.0);
    let shape = axis.steps(|moment| Some((0.0, moment.attackers as f64 / scale)));
    let shapes = format!("<path class=\"attackers\" d=\"{shape}\"/>");
    let value = format!("most {attackers_text}");
    panel(2, "attackers", &value, &shapes);
    if measured {
        let scale = memory.max(1.0);
        let shape = axis.steps(|moment| Some((0.0, moment.memory? as f64 / scale)));
        let shapes = format!("<path class=\"memory\" d=\"{shape}\"/>");
        panel(3, "memory", &format!("most {memory_text}"), &shapes);
    }
    out.push_str("</svg>\n");
}

impl Axis<'_> {
    /// Returns where a time lies in a panel.
    fn x(&self, seconds: f64) -> f64 {
        WIDTH * unit(seconds / self.end)
    }

    /// Returns a path with a rectangle for each moment that has something to show: its lower and
    /// its upper edge, as parts of the height.
    fn steps(&self, of: impl Fn(&Moment) -> Option<(f64, f64)>) -> String {
        let (mut path, mut left) = (String::new(), 0.0);
        for moment in self.moments {
            let right = self.x(moment.seconds);
            if let Some((low, high)) = of(moment) {
                let [low, high] = [low, high].map(|part| TOP + HEIGHT * (1.0 - unit(part)));
                if low - high >= 0.05 {
                    let _ = write!(path, "M{left:.1} {low:.1}V{high:.1}H{right:.1}V{low:.1}z");
                }
            }
            left = right;
        }
        path
    }
}

/// Returns the largest value, within what can be written.
fn largest(moments: &[Moment], of: impl Fn(&Moment) -> Option<f64>) -> f64 {
    moments
        .iter()
        .filter_map(of)
        .fold(0.0, f64::max)
        .min(MAX_NUMBER * MAX_NUMBER)
}

/// Returns a part from 0 to 1.
fn unit(part: f64) -> f64 {
    if part.is_nan() {
        0.0
    } else {
        part.clamp(0.0, 1.0)
    }
}

/// Returns a number that is written in few characters.
fn number(number: f64) -> f64 {
    number.clamp(-MAX_NUMBER, MAX_NUMBER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(seconds: f64, share: f64, longest_ms: f64, attackers: usize) -> Moment {
        Moment {
            seconds,
            served_share: Some(share),
            median_ms: Some(1.0),
            longest_ms: Some(longest_ms),
            attackers,
            memory: None,
        }
    }

    fn drawn(moments: Vec<Moment>) -> String {
        let mut out = String::new();
        let series = Series {
            attack_from: 1.0,
            attack_to: 3.0,
            moments,
        };
        write_series(&mut out, &series);
        out
    }

    #[test]
    fn harm_is_drawn_at_its_time_and_the_extremes_are_written() {
        let svg = drawn(vec![
            moment(1.0, 1.0, 4.0, 0),
            moment(3.0, 0.25, 800.0, 400),
            moment(4.0, 1.0, 2.0, 0),
        ]);
        // The second and third second of four, and three quarters of the height from the top.
        assert!(
            svg.contains("class=\"lost\" d=\"M53.0 57.0V18.0H159.0V57.0z\""),
            "{svg}"
        );
        for text in [
            ">least 25.0 %<",
            ">longest 800 ms<",
            ">most 400<",
            ">attack 1.0 to 3.0 s<",
            ">4.0 s<",
            "<title>4.0 s over time, attackers from 1.0 to 3.0 s",
        ] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert_eq!(svg.matches("<g ").count(), 3, "memory was not measured");
    }

    #[test]
    fn a_series_of_a_file_is_bounded_and_drawn_within_its_panels_whatever_its_numbers() {
        assert_eq!(drawn(Vec::new()), "");
        let odd = [0.0, -1.0, 1e308, -1e308, f64::MIN_POSITIVE, f64::NAN];
        let mut all = Vec::new();
        for (number, seconds) in odd.into_iter().enumerate() {
            let share = odd[(number + 1) % odd.len()];
            let longest = odd[(number + 2) % odd.len()];
            all.push(moment(seconds, share, longest, usize::MAX));
            all.last_mut().unwrap().memory = Some(u64::MAX);
        }
        let svg = drawn(std::iter::repeat_n(all, 1_000).flatten().collect());
        assert!(svg.len() < 40_000, "{}", svg.len());
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let longest = svg.split(|it: char| !it.is_ascii_digit()).map(str::len);
        assert!(longest.max() <= Some(19), "{svg}");
        assert_eq!(svg.matches("<g ").count(), 4);
    }
}
