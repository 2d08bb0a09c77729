//! Reports as Markdown, for a comment on a pull request.

use super::{AttackReport, Report, text::latency};
use crate::{grade::Verdict, text::sentence};
use std::fmt::Write;

impl Report {
    /// Returns the report as Markdown of GitHub's dialect: the grade, and a table with the worst
    /// attack first. Text of the server is escaped, so that it is no markup and no mention.
    ///
    /// ```
    /// # use palisade_drill::{Drill, Grade};
    /// # async fn serve(listener: tokio::net::TcpListener) {
    /// #     let app = axum::Router::new().route("/", axum::routing::get(async || "hello"));
    /// #     axum::serve(listener, app).await.unwrap();
    /// # }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), palisade_drill::DrillError> {
    /// let report = Drill::serving(serve).only("churn").quick().run().await?;
    /// let markdown = report.to_markdown();
    /// assert!(markdown.starts_with("## Drill: "));
    /// # Ok(())
    /// # }
    /// ```
    pub fn to_markdown(&self) -> String {
        let mut out = match self.grade() {
            Some(grade) => format!("## Drill: grade {grade}\n\n"),
            None => "## Drill: no grade\n\n".to_owned(),
        };
        out.push_str(&self.counts());
        out.push_str(
            ".\n\n| verdict | attack | because | served | p99, before |\n|---|---|---|---|---|\n",
        );
        for attack in self.worst_first() {
            let _ = writeln!(out, "{}", row(attack));
        }
        for skipped in &self.skipped {
            let (name, reason) = (escape(&skipped.name), escape(&skipped.reason));
            let _ = writeln!(out, "| skipped | {name} | {reason} | | |");
        }
        let unstopped = self.worst_first().filter(|attack| attack.is_unstopped());
        for attack in unstopped {
            let _ = write!(out, "\n**{}** is stopped by ", escape(&attack.name));
            let _ = writeln!(out, "{}:\n", escape(&attack.stopped_by));
            for remedy in &attack.remedies {
                let _ = writeln!(out, "- {}", escape(remedy));
            }
        }
        for caution in &self.cautions {
            let _ = writeln!(out, "\nNot ruled out: {}", escape(caution));
        }
        out
    }
}

fn row(attack: &AttackReport) -> String {
    let worst = attack.honest.iter().min_by(|one, other| {
        let share = |honest: &crate::Honest| honest.during.served_share;
        share(one).total_cmp(&share(other))
    });
    let (served, p99) = worst.map_or_else(Default::default, |honest| {
        let (before, during) = (&honest.before, &honest.during);
        let served = format!("{} of {}", during.served, during.sent);
        let p99 = format!("{}, {}", latency(during.p99_ms), latency(before.p99_ms));
        (served, p99)
    });
    let verdict = match attack.verdict {
        Verdict::Held => "held".to_owned(),
        other => format!("**{other}**"),
    };
    format!(
        "| {verdict} | {} | {} | {served} | {p99} |",
        escape(&attack.name),
        escape(&attack.reason),
    )
}

/// Escapes text so that it is shown as it is: no markup, no link, no mention.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for character in sentence(text).chars() {
        match character {
            // A mention is recognised after the markup is gone.
            '@' => out.push_str("(at)"),
            // Of names and numbers, which are no markup within a word.
            '-' | ',' | '%' | '(' | ')' | ';' | ' ' | '/' => out.push(character),
            _ if character.is_ascii_punctuation() => out.extend(['\\', character]),
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;

    #[test]
    fn the_table_begins_with_the_worst_attack_and_ends_with_what_stops_it() {
        let text = report().to_markdown();
        assert!(
            text.starts_with("## Drill: grade C\n\n0 down, 1 harmed, "),
            "{text}"
        );
        let lines: Vec<_> = text.lines().collect();
        let at = |start: &str| {
            lines
                .iter()
                .position(|line| line.starts_with(start))
                .unwrap()
        };
        assert!(
            at("| **harmed** | dripped-head | keep-alive\\: p99 57 ms") < at("| held | silent |")
        );
        assert!(at("| skipped | slow-body |") < at("**dripped-head** is stopped by"));
        assert!(text.contains("- palisade\\: ConnGuard\\: header\\_timeout"));
    }

    #[test]
    fn text_of_the_server_is_no_markup() {
        let mut hostile = report();
        hostile.attacks[1].reason =
            "| x |\n# <img src=x> [a](https://evil.test) www.evil.test @everyone `code` **b**"
                .to_owned();
        let text = hostile.to_markdown();
        let row = text.lines().find(|line| line.contains("everyone")).unwrap();
        let cells = row.replace("\\|", "").matches('|').count();
        assert_eq!(cells, 6, "{row}");
        for markup in [" <img", " [a]", "www.", "@", "https:", " `code", " **b"] {
            assert!(!row.contains(markup), "{markup}: {row}");
        }
    }
}
