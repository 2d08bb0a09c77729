//! Reports as one HTML page without script.

use super::{
    AttackReport, Report,
    plot::write_series,
    text::{latency, load, usage},
};
use crate::{
    grade::{Grade, percent},
    text::sentence,
    verdict::Honest,
};
use std::fmt::Write;

/// Nothing is loaded and nothing runs, whatever the server has written into the report.
const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Drill</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #1d2329; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 0 }
.grade { display: inline-block; min-width: 2.2rem; padding: 0 .5rem; border-radius: .3rem;
  color: #fff; text-align: center }
.attack { border-left: .4rem solid; padding: .2rem 1rem; margin: 1.2rem 0 }
.held { border-color: #2b8a3e } .kept { border-color: #e8a317 } .harmed { border-color: #d9480f }
.down { border-color: #c92a2a } .inconclusive { border-color: #868e96 }
p { margin: .3rem 0 } .small { color: #5c6670; font-size: .9rem }
svg text { font: 12px system-ui, sans-serif; fill: #1d2329 } svg { display: block; margin: .5rem 0;
  max-width: 100%; height: auto }
svg .axis { font-size: 11px; fill: #5c6670 } .panel { fill: #f1f3f5 } .attacked { fill: #e3e7eb }
.attack-time { fill: #862e9c }
.served { fill: #40a357 } .lost { fill: #d6303a } .wait { fill: #f0a868 } .median { fill: #b3541e }
.attackers { fill: #e8a317 } .memory { fill: #4d86c6 } path { shape-rendering: crispEdges }
table { border-collapse: collapse } td { padding: .1rem .8rem .1rem 0; vertical-align: top }
@media (prefers-color-scheme: dark) {
  body { color: #dfe4ea; background: #14181c } svg text { fill: #dfe4ea }
  .small { color: #9aa5b1 } svg .axis { fill: #9aa5b1 }
  .panel { fill: #20262c } .attacked { fill: #2e363e } .attack-time { fill: #be4bdb }
}
</style></head><body>
"#;

/// The width of the bars and the height of a line, in pixels.
const WIDTH: f64 = 320.0;
const LABEL_WIDTH: f64 = 190.0;
const LINE: usize = 20;

impl Report {
    /// Returns the report as one HTML page: for each attack, the worst first, what honest clients
    /// were served before and during it, and what the attackers hold; and over time how harm began
    /// and ended. It has no script, and loads nothing.
    ///
    /// ```
    /// # use palisade_drill::Report;
    /// # fn write(report: &Report) -> std::io::Result<()> {
    /// std::fs::write("target/drill.html", report.to_html())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn to_html(&self) -> String {
        let mut out = HEAD.to_owned();
        let grade = self
            .grade()
            .map_or("-".to_owned(), |grade| grade.to_string());
        let color = color(self.grade());
        let target = escape(&self.target);
        let _ = write!(
            out,
            "<h1><span class=\"grade\" style=\"background:{color}\">{grade}</span> \
             palisade-drill {} against {target}</h1>\n<p>{}. {:.0} s, seed {}{}.</p>\n",
            escape(&self.version),
            self.counts(),
            self.seconds,
            self.seed,
            if self.quick { ", quick" } else { "" },
        );
        for caution in &self.cautions {
            let _ = writeln!(
                out,
                "<p class=\"small\">Not ruled out: {}</p>",
                escape(caution)
            );
        }
        if self.attacks.iter().any(|attack| attack.series.is_some()) {
            out.push_str(
                "<p class=\"small\">Over time: what honest clients were served (red: not), their \
                 longest wait (dark: the median), the attackers that were connected, and the \
                 memory of the server where it was measured. The violet line is the attack.</p>\n",
            );
        }
        for attack in self.worst_first() {
            write_attack(&mut out, attack);
        }
        if !self.skipped.is_empty() {
            out.push_str("<h2>Skipped</h2>\n<table>\n");
        }
        for skipped in &self.skipped {
            let (name, reason) = (escape(&skipped.name), escape(&skipped.reason));
            let _ = writeln!(out, "<tr><td>{name}</td><td>{reason}</td></tr>");
        }
        if !self.skipped.is_empty() {
            out.push_str("</table>\n");
        }
        out.push_str("</body></html>\n");
        out
    }
}

fn write_attack(out: &mut String, attack: &AttackReport) {
    let (name, threat) = (escape(&attack.name), escape(&attack.threat));
    let cve = attack
        .cve
        .as_deref()
        .map(|cve| format!(", {}", escape(cve)));
    let _ = write!(
        out,
        "<div class=\"attack {verdict}\"><h2>{name}: {verdict}</h2>\n\
         <p>{}. <span class=\"small\">{threat}{}</span></p>\n",
        escape(&attack.title),
        cve.unwrap_or_default(),
        verdict = attack.verdict,
    );
    if !attack.reason.is_empty() {
        let _ = writeln!(out, "<p>Because: {}</p>", escape(&attack.reason));
    }
    write_bars(out, attack);
    if let Some(series) = &attack.series {
        write_series(out, series);
    }
    for caution in &attack.cautions {
        let _ = writeln!(
            out,
            "<p class=\"small\">Not ruled out: {}</p>",
            escape(caution)
        );
    }
    if attack.is_unstopped() {
        let _ = writeln!(out, "<p>Stopped by {}:</p><ul>", escape(&attack.stopped_by));
        for remedy in &attack.remedies {
            let _ = writeln!(out, "<li>{}</li>", escape(remedy));
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</div>\n");
}

/// Draws a bar for each kind of honest client, and one for what the attackers hold.
fn write_bars(out: &mut String, attack: &AttackReport) {
    let lines = attack.honest.len() + 1;
    let height = lines * LINE;
    let _ = writeln!(
        out,
        "<svg width=\"960\" height=\"{height}\" viewBox=\"0 0 960 {height}\" role=\"img\">"
    );
    for (line, honest) in attack.honest.iter().enumerate() {
        let Honest {
            kind,
            before,
            during,
        } = honest;
        let text = format!(
            "{} served, before {}; p99 {}, before {}",
            percent(during.served_share),
            percent(before.served_share),
            latency(during.p99_ms),
            latency(before.p99_ms),
        );
        let share = during.served_share;
        write_bar(
            out,
            line,
            &kind.to_string(),
            (share, "#2b8a3e", "#c92a2a"),
            &text,
        );
    }
    match &attack.overload {
        Some(overload) => {
            let base = (lines - 1) * LINE + 15;
            let text = escape(&load(overload));
            let _ = writeln!(out, "<text x=\"0\" y=\"{base}\">{text}</text>");
        }
        None => {
            let attackers = &attack.attackers;
            let left = attackers.displaced_to.unwrap_or(attackers.holding);
            let share = left as f64 / attackers.connections.max(1) as f64;
            let text = format!("{left} of {} hold what they took", attackers.connections);
            let colors = (share, "#e8a317", "#adb5bd");
            write_bar(out, lines - 1, "attackers", colors, &text);
        }
    }
    out.push_str("</svg>\n");
    if let Some(server) = &attack.server {
        let _ = writeln!(
            out,
            "<p class=\"small\">Server: {}</p>",
            escape(&usage(server))
        );
    }
}

/// Draws a bar, of which `share` has the first color and the rest the second one.
fn write_bar(
    out: &mut String,
    line: usize,
    label: &str,
    (share, full, rest): (f64, &str, &str),
    text: &str,
) {
    let (top, base) = (line * LINE + 4, line * LINE + 15);
    let width = WIDTH * share.clamp(0.0, 1.0);
    let (label, text) = (escape(label), escape(text));
    let after = LABEL_WIDTH + WIDTH + 10.0;
    let _ = writeln!(
        out,
        "<text x=\"0\" y=\"{base}\">{label}</text>\
         <rect x=\"{LABEL_WIDTH}\" y=\"{top}\" width=\"{WIDTH}\" height=\"12\" fill=\"{rest}\"/>\
         <rect x=\"{LABEL_WIDTH}\" y=\"{top}\" width=\"{width:.1}\" height=\"12\" fill=\"{full}\"/>\
         <text x=\"{after}\" y=\"{base}\">{text}</text>",
    );
}

fn color(grade: Option<Grade>) -> &'static str {
    match grade {
        Some(Grade::A) => "#2b8a3e",
        Some(Grade::B) => "#b9770e",
        Some(Grade::C) => "#d9480f",
        Some(Grade::F) => "#c92a2a",
        None => "#868e96",
    }
}

/// Escapes text for HTML, in elements and in attributes.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for character in sentence(text).chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;

    #[test]
    fn the_page_has_the_grade_and_each_attack_and_neither_script_nor_links() {
        let page = report().to_html();
        let at = |part: &str| page.find(part).unwrap_or_else(|| panic!("{part}: {page}"));
        assert!(at("background:#d9480f\">C</span>") < at("dripped-head: harmed"));
        assert!(at("dripped-head: harmed") < at("silent: held"));
        assert!(at("p99 57 ms, before -") < at("<li>palisade: ConnGuard: header_timeout"));
        for loaded in [
            "<script", "src=", "href=", "url(", "@import", "http:", "https:",
        ] {
            assert!(!page.contains(loaded), "{loaded}");
        }
    }

    #[test]
    fn text_of_the_server_is_no_markup() {
        let mut hostile = report();
        let evil = "\"'><img src=x onerror=alert(1)></svg><script>".to_owned();
        hostile.target.clone_from(&evil);
        hostile.attacks[1].reason.clone_from(&evil);
        hostile.attacks[1].name.clone_from(&evil);
        hostile.skipped[0].reason.clone_from(&evil);
        hostile.cautions.push(evil);
        let page = hostile.to_html();
        assert!(
            !page.contains("<img") && !page.contains("<script"),
            "{page}"
        );
        assert_eq!(page.matches("</svg>").count(), 3);
    }
}
