//! The results as an HTML page: one file, no script, for light and dark mode.

use crate::{
    attacks::Attack,
    report::{Outcome, Results, SKIPPED, Sample, counts, milliseconds, percent},
    servers::ServerKind,
};
use std::fmt::Write;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6675; --line: #d9dee5; --paper: #fff;
  --card: #f6f8fa; --bare: #b35900; --careful: #2f6fd0; --palisade: #14804a; --bad: #c0292b }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9f0; --soft: #98a3b3; --line: #333c49; --paper: #12161c; --card: #1a2029;
    --bare: #f0a04b; --careful: #7fb0ff; --palisade: #4fcf8a; --bad: #ff7b72 } }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .4rem } h2 { font-size: 1.15rem; margin: 0 }
p { margin: .2rem 0 .8rem; color: var(--soft); max-width: 50rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.3rem; margin-top: 1.4rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { font-weight: 500; color: var(--soft); font-size: .85rem } td small { color: var(--soft) }
th, td { text-align: right; padding: .28rem .6rem; border-top: 1px solid var(--line);
  white-space: nowrap; vertical-align: top }
tr:first-child > * { border-top: 0 }
th:first-child, td:first-child, td.text, th.text { text-align: left }
td.text { white-space: normal; min-width: 15rem; font-size: .88rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem;
  margin-top: .9rem }
figure { margin: 0 } figcaption { font-size: .85rem; color: var(--soft) }
svg { display: block; width: 100%; height: auto; overflow: visible }
svg text { font: 10px system-ui, sans-serif; fill: var(--soft) }
.grid { stroke: var(--line); stroke-width: 1 }
.series { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round }
.bare { --colour: var(--bare) } .careful { --colour: var(--careful) }
.palisade { --colour: var(--palisade) }
.series { stroke: var(--colour) } .name { color: var(--colour); font-weight: 600 }
.series.bare { stroke-dasharray: 1 5 } .series.careful { stroke-dasharray: 7 5 }
.low { color: var(--bad); font-weight: 600 } .key { width: 2.2rem; display: inline-block;
  vertical-align: middle; margin-right: .5rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .8rem 0 0 }
dd { margin: 0; color: var(--soft) }
";

/// The class of a value that fails the expectation.
const LOW_CLASS: &str = " class=\"low\"";

/// The width of a chart in SVG units.
const WIDTH: f64 = 300.0;
/// The height of a chart.
const HEIGHT: f64 = 120.0;
/// The space left of the plot, for the labels of the value axis.
const LEFT_MARGIN: f64 = 34.0;
/// The space below the plot, for the labels of the time axis.
const BOTTOM_MARGIN: f64 = 18.0;
/// The space above the plot.
const TOP_MARGIN: f64 = 8.0;

/// Renders the page.
pub(crate) fn html(results: &Results<'_>) -> String {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    let _ = writeln!(page, "<title>palisade demo</title>\n<style>{STYLE}</style>");
    page.push_str(
        "<h1>Three servers under attack</h1>\n\
         <p>The same axum app behind three servers. Honest clients send requests while each server \
         is attacked in eleven ways, one after the other, and then overloaded by honest clients \
         alone. All numbers were measured in this run.</p>\n",
    );
    legend(&mut page);
    overview(&mut page, results);
    for (attack, outcomes) in results {
        let _ = writeln!(
            page,
            "<section>\n<h2>{}</h2>\n<p>{}.</p>",
            attack.name, attack.about
        );
        if outcomes.is_empty() {
            let _ = writeln!(page, "<p>{SKIPPED}.</p>\n</section>");
            continue;
        }
        table(&mut page, attack, outcomes);
        page.push_str("<div class=\"charts\">\n");
        chart(
            &mut page,
            "honest requests served, %",
            outcomes,
            Some(100.0),
            served_percent,
        );
        chart(&mut page, "attackers held", outcomes, None, |_, sample| {
            Some(sample.held as f64)
        });
        chart(&mut page, "memory, MiB", outcomes, None, |_, sample| {
            sample
                .memory
                .map(|memory| memory as f64 / f64::from(1 << 20))
        });
        page.push_str("</div>\n</section>\n");
    }
    page.push_str(
        "<section>\n<h2>How to read this</h2>\n<dl>\n\
         <dt>honest served</dt><dd>the part of the honest requests that was served: 8 clients send \
         4 requests a second each, and one client repeatedly uploads at 32 KiB/s. A client gives \
         up after 2 s without a response, and sends every fourth request on a new connection. In the \
         CPU-bound overload 100 clients send twice what the server can do, and give up after 1 s: \
         about half of their requests can be served. p50 \
         and p99 are the latencies of the served requests.</dd>\n\
         <dt>held</dt><dd>the attackers with a connection or request that the server still holds \
         one second after the last of them has begun anything, or three seconds after it where a \
         connection has two seconds for its first request.</dd>\n\
         <dt>memory</dt><dd>of the server process: before the attack, at its peak, and after the \
         attackers are gone. 8 MiB of palisade's memory are the table of its rate limit, which \
         has a fixed size. \"killed\" is a server that the kernel has killed at the limit of its \
         control group.</dd>\n</dl>\n</section>\n</html>\n",
    );
    page
}

/// Writes the names and descriptions of the servers.
fn legend(page: &mut String) {
    page.push_str("<dl>\n");
    for kind in ServerKind::ALL {
        let (name, about) = (kind.name(), kind.about());
        let _ = writeln!(
            page,
            "<dt><svg class=\"key\" viewBox=\"0 0 36 6\"><path class=\"series {name}\" \
             d=\"M2 3H34\"/></svg><span class=\"name {name}\">{name}</span></dt><dd>{about}</dd>"
        );
    }
    page.push_str("</dl>\n");
}

/// Writes the table of honest requests served, for every attack and server.
fn overview(page: &mut String, results: &Results<'_>) {
    page.push_str("<section>\n<h2>Honest requests served</h2>\n<div class=\"wide\"><table>\n<tr>");
    page.push_str("<th>under</th>");
    for kind in ServerKind::ALL {
        let _ = write!(page, "<th class=\"name {0}\">{0}</th>", kind.name());
    }
    page.push_str("</tr>\n");
    for (attack, outcomes) in results {
        let _ = write!(page, "<tr><td>{}</td>", attack.name);
        if outcomes.is_empty() {
            let _ = write!(page, "<td colspan=\"3\">{SKIPPED}</td>");
        }
        for outcome in outcomes {
            let slowest = milliseconds(outcome.honest.percentile(99));
            let after = if outcome.killed {
                format!("<b{LOW_CLASS}>killed</b>")
            } else {
                format!("<small>p99 {slowest}</small>")
            };
            let _ = write!(page, "<td>{} {after}</td>", served_cell(attack, outcome));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n</section>\n");
}

/// Renders the percentage of honest requests served, marked if it is too low.
fn served_cell(attack: &Attack, outcome: &Outcome) -> String {
    let ratio = outcome.honest.served_ratio();
    let class = if ratio < attack.min_served_ratio {
        LOW_CLASS
    } else {
        ""
    };
    format!("<span{class}>{}</span>", percent(ratio))
}

/// Writes the results of one attack, a row for each server.
fn table(page: &mut String, attack: &Attack, outcomes: &[Outcome]) {
    page.push_str(
        "<div class=\"wide\"><table>\n<tr><th></th><th>honest served</th><th>p50</th><th>p99</th>\
         <th>held</th><th>memory, MiB</th><th class=\"text\">responses to attackers</th></tr>\n",
    );
    for outcome in outcomes {
        let (name, honest) = (outcome.kind.name(), &outcome.honest);
        let _ = write!(
            page,
            "<tr><td class=\"name {name}\">{name}</td><td>{} <small>of {}</small></td>\
             <td>{}</td><td>{}</td><td{}>{}</td><td>{}</td><td class=\"text\">{}",
            served_cell(attack, outcome),
            honest.sent,
            milliseconds(honest.percentile(50)),
            milliseconds(honest.percentile(99)),
            if outcome.held > 0 { LOW_CLASS } else { "" },
            outcome.held,
            outcome.memory().replace('>', "&rarr;"),
            counts(&outcome.responses),
        );
        if !honest.failures.is_empty() {
            let _ = write!(
                page,
                "<br><small>honest: {}</small>",
                counts(&honest.failures)
            );
        }
        if !outcome.reasons.is_empty() {
            let _ = write!(
                page,
                "<br><small>refused: {}</small>",
                counts(&outcome.reasons)
            );
        }
        page.push_str("</td></tr>\n");
    }
    page.push_str("</table></div>\n");
}

// === Charts ===

/// Returns the percentage of honest requests served in the second up to `sample`.
fn served_percent(samples: &[Sample], sample: &Sample) -> Option<f64> {
    let recent = samples
        .iter()
        .filter(|other| other.at <= sample.at && (sample.at - other.at).as_millis() < 1_000);
    let (served, sent) = recent.fold((0, 0), |sum, one| (sum.0 + one.served, sum.1 + one.sent));
    if sent == 0 {
        return None;
    }
    Some(served as f64 * 100.0 / sent as f64)
}

/// Writes a chart of `value` over the time of the attack, with one line for each server.
fn chart(
    page: &mut String,
    caption: &str,
    outcomes: &[Outcome],
    maximum: Option<f64>,
    value: impl Fn(&[Sample], &Sample) -> Option<f64>,
) {
    let points = |outcome: &Outcome| -> Vec<(f64, f64)> {
        let samples = &outcome.samples;
        let points = samples
            .iter()
            .filter_map(|sample| Some((sample.at.as_secs_f64(), value(samples, sample)?)));
        points.collect()
    };
    let lines: Vec<_> = outcomes
        .iter()
        .map(|outcome| (outcome.kind, points(outcome)))
        .collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let duration = all().map(|point| point.0).fold(1.0, f64::max);
    let maximum =
        maximum.unwrap_or_else(|| round_up(all().map(|point| point.1).fold(2.0, f64::max)));
    let x = |at: f64| LEFT_MARGIN + at / duration * (WIDTH - LEFT_MARGIN);
    let y = |value: f64| {
        TOP_MARGIN + (1.0 - (value / maximum).min(1.0)) * (HEIGHT - TOP_MARGIN - BOTTOM_MARGIN)
    };

    let _ = write!(
        page,
        "<figure><figcaption>{caption}</figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{caption} over time\">"
    );
    for part in [0.0, 0.5, 1.0] {
        let (at, label) = (y(maximum * part), maximum * part);
        let _ = write!(
            page,
            "<path class=\"grid\" d=\"M{LEFT_MARGIN} {at:.1}H{WIDTH}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label:.0}</text>",
            LEFT_MARGIN - 5.0,
            at + 3.5,
        );
    }
    let _ = write!(
        page,
        "<text x=\"{LEFT_MARGIN}\" y=\"{HEIGHT}\">0 s</text>\
         <text x=\"{WIDTH}\" y=\"{HEIGHT}\" text-anchor=\"end\">{duration:.0} s</text>"
    );
    // The dotted line is drawn last, so that the others show through it.
    for (kind, points) in lines.iter().rev() {
        let points: Vec<_> = points
            .iter()
            .map(|(at, value)| format!("{:.1} {:.1}", x(*at), y(*value)))
            .collect();
        if !points.is_empty() {
            let (name, path) = (kind.name(), points.join("L"));
            let _ = write!(page, "<path class=\"series {name}\" d=\"M{path}\"/>");
        }
    }
    page.push_str("</svg></figure>\n");
}

/// Rounds up to 1, 2, 4, 6, 8 or 10 times a power of ten, half of which is a round number too.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1.0).log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0];
    steps
        .iter()
        .map(|step| step * power)
        .find(|round| *round >= value)
        .unwrap_or(value)
}
