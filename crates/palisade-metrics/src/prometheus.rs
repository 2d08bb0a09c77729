//! The text format that Prometheus scrapes.

use crate::series::Family;
use std::fmt::Write as _;

/// Text under construction. Samples of one family come one after the other.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    text: String,
    family: Option<&'static str>,
}

impl Exposition {
    /// Adds one sample, and what its family is if it is the family's first.
    pub(crate) fn sample(
        &mut self,
        family: Family,
        labels: impl IntoIterator<Item = (&'static str, &'static str)>,
        value: u64,
    ) {
        let Family { name, help, is_total } = family;
        if self.family != Some(name) {
            self.family = Some(name);
            let kind = if is_total { "counter" } else { "gauge" };
            self.line(format_args!("# HELP {name} {}", escaped(help, false)));
            self.line(format_args!("# TYPE {name} {kind}"));
        }
        let mut list = String::new();
        for (label, value) in labels {
            let comma = if list.is_empty() { "" } else { "," };
            let _ = write!(list, "{comma}{label}=\"{}\"", escaped(value, true));
        }
        if list.is_empty() {
            self.line(format_args!("{name} {value}"));
        } else {
            self.line(format_args!("{name}{{{list}}} {value}"));
        }
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a `String` does not fail.
        let _ = writeln!(self.text, "{line}");
    }
}

/// `text` with what would end a help text, or a label's value, escaped.
fn escaped(text: &str, quoted: bool) -> String {
    let text = text.replace('\\', r"\\").replace('\n', r"\n");
    if quoted { text.replace('"', r#"\""#) } else { text }
}
