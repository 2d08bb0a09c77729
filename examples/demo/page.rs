//! The same as a page: one file, no script, readable in light and dark.

use crate::{
    report::{LEAST_SERVED, Moment, Outcome, Results, counts, milliseconds, percent},
    servers::Kind,
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

/// What is not as it should be.
const LOW: &str = " class=\"low\"";

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 120.0;
const LEFT: f64 = 34.0;
const BOTTOM: f64 = 18.0;
const TOP: f64 = 8.0;

pub(crate) fn html(results: &Results<'_>) -> String {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    let _ = writeln!(
        page,
        "<title>palisade: the demonstration</title>\n<style>{STYLE}</style>"
    );
    page.push_str(
        "<h1>Three servers under attack</h1>\n\
         <p>The same axum app, three times. Honest clients go on with their work while one attack \
         after the other is set on each. Every number was measured in this run.</p>\n",
    );
    legend(&mut page);
    overview(&mut page, results);
    for (attack, outcomes) in results {
        let _ = writeln!(
            page,
            "<section>\n<h2>{}</h2>\n<p>{}.</p>",
            attack.name, attack.about
        );
        table(&mut page, outcomes);
        page.push_str("<div class=\"charts\">\n");
        chart(
            &mut page,
            "honest requests served, %",
            outcomes,
            Some(100.0),
            served,
        );
        chart(&mut page, "attackers held", outcomes, None, |_, moment| {
            Some(moment.held as f64)
        });
        chart(&mut page, "memory, MiB", outcomes, None, |_, moment| {
            moment
                .memory
                .map(|memory| memory as f64 / f64::from(1 << 20))
        });
        page.push_str("</div>\n</section>\n");
    }
    page.push_str(
        "<section>\n<h2>How to read this</h2>\n<dl>\n\
         <dt>honest served</dt><dd>of the requests of 8 clients with 4 a second each, and of one \
         client that uploads at 32 KiB a second, again and again. Who has no answer after 2 s \
         goes away; every fourth request is made on a new connection. p50 and p99 are of those who were served.</dd>\n\
         <dt>held</dt><dd>attackers that the server still kept one second after the last of them \
         began anything, or three where a connection has two seconds for its first request: what \
         the server did not let go of.</dd>\n\
         <dt>memory</dt><dd>of the server's process: before the attack, at its worst, and when \
         the attackers were gone. 8 MiB of palisade's is the table of its rate limit, which has a \
         fixed size.</dd>\n</dl>\n</section>\n</html>\n",
    );
    page
}

fn legend(page: &mut String) {
    page.push_str("<dl>\n");
    for kind in Kind::ALL {
        let (name, about) = (kind.name(), kind.about());
        let _ = writeln!(
            page,
            "<dt><svg class=\"key\" viewBox=\"0 0 36 6\"><path class=\"series {name}\" \
             d=\"M2 3H34\"/></svg><span class=\"name {name}\">{name}</span></dt><dd>{about}</dd>"
        );
    }
    page.push_str("</dl>\n");
}

/// Honest requests served, every attack on every server.
fn overview(page: &mut String, results: &Results<'_>) {
    page.push_str("<section>\n<h2>Honest requests served</h2>\n<div class=\"wide\"><table>\n<tr>");
    page.push_str("<th>under</th>");
    for kind in Kind::ALL {
        let _ = write!(page, "<th class=\"name {0}\">{0}</th>", kind.name());
    }
    page.push_str("</tr>\n");
    for (attack, outcomes) in results {
        let _ = write!(page, "<tr><td>{}</td>", attack.name);
        for outcome in outcomes {
            let slowest = milliseconds(outcome.honest.percentile(99));
            let _ = write!(
                page,
                "<td>{} <small>p99 {slowest}</small></td>",
                served_cell(outcome)
            );
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n</section>\n");
}

fn served_cell(outcome: &Outcome) -> String {
    let rate = outcome.honest.rate();
    let class = if rate < LEAST_SERVED { LOW } else { "" };
    format!("<span{class}>{}</span>", percent(rate))
}

fn table(page: &mut String, outcomes: &[Outcome]) {
    page.push_str(
        "<div class=\"wide\"><table>\n<tr><th></th><th>honest served</th><th>p50</th><th>p99</th>\
         <th>held</th><th>memory, MiB</th><th class=\"text\">answers to attackers</th></tr>\n",
    );
    for outcome in outcomes {
        let (name, honest) = (outcome.kind.name(), &outcome.honest);
        let _ = write!(
            page,
            "<tr><td class=\"name {name}\">{name}</td><td>{} <small>of {}</small></td>\
             <td>{}</td><td>{}</td><td{}>{}</td><td>{}</td><td class=\"text\">{}",
            served_cell(outcome),
            honest.asked,
            milliseconds(honest.percentile(50)),
            milliseconds(honest.percentile(99)),
            if outcome.held > 0 { LOW } else { "" },
            outcome.held,
            outcome.memory().replace('>', "&rarr;"),
            counts(&outcome.answers),
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

/// The percentage of the last second up to moment `place`.
fn served(moments: &[Moment], moment: &Moment) -> Option<f64> {
    let recent = moments
        .iter()
        .filter(|other| other.at <= moment.at && (moment.at - other.at).as_millis() < 1_000);
    let (served, asked) = recent.fold((0, 0), |sum, one| (sum.0 + one.served, sum.1 + one.asked));
    (asked > 0).then(|| served as f64 * 100.0 / asked as f64)
}

/// One line for each server over the time of the attack.
fn chart(
    page: &mut String,
    caption: &str,
    outcomes: &[Outcome],
    most: Option<f64>,
    value: impl Fn(&[Moment], &Moment) -> Option<f64>,
) {
    let points = |outcome: &Outcome| -> Vec<(f64, f64)> {
        let moments = &outcome.moments;
        let points = moments
            .iter()
            .filter_map(|moment| Some((moment.at.as_secs_f64(), value(moments, moment)?)));
        points.collect()
    };
    let lines: Vec<_> = outcomes
        .iter()
        .map(|outcome| (outcome.kind, points(outcome)))
        .collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let longest = all().map(|point| point.0).fold(1.0, f64::max);
    let most = most.unwrap_or_else(|| round_up(all().map(|point| point.1).fold(2.0, f64::max)));
    let x = |at: f64| LEFT + at / longest * (WIDTH - LEFT);
    let y = |value: f64| TOP + (1.0 - (value / most).min(1.0)) * (HEIGHT - TOP - BOTTOM);

    let _ = write!(
        page,
        "<figure><figcaption>{caption}</figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{caption} over time\">"
    );
    for part in [0.0, 0.5, 1.0] {
        let (at, label) = (y(most * part), most * part);
        let _ = write!(
            page,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{WIDTH}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label:.0}</text>",
            LEFT - 5.0,
            at + 3.5,
        );
    }
    let _ = write!(
        page,
        "<text x=\"{LEFT}\" y=\"{HEIGHT}\">0 s</text>\
         <text x=\"{WIDTH}\" y=\"{HEIGHT}\" text-anchor=\"end\">{longest:.0} s</text>"
    );
    // The dotted line last, so that one can see through it.
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

/// The next of 1, 2, 4, 5, 6, 8, 10 times a power of ten: its half is a plain number too.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1.0).log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0];
    steps
        .iter()
        .map(|step| step * power)
        .find(|round| *round >= value)
        .unwrap_or(value)
}
