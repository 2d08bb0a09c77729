//! The Prometheus text format.

use crate::series::Family;
use std::fmt::Write as _;

/// A text under construction. The samples of one family must be added one after the other.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    text: String,
    family: Option<&'static str>,
}

impl Exposition {
    /// Adds one sample, preceded by the family's help and type if it is the family's first.
    pub(crate) fn sample(
        &mut self,
        family: Family,
        labels: impl IntoIterator<Item = (&'static str, &'static str)>,
        value: u64,
    ) {
        let Family {
            name,
            help,
            is_total,
        } = family;
        if self.family != Some(name) {
            self.family = Some(name);
            let kind = if is_total { "counter" } else { "gauge" };
            self.line(format_args!("# HELP {name} {}", escape(help, false)));
            self.line(format_args!("# TYPE {name} {kind}"));
        }
        let mut list = String::new();
        for (label, value) in labels {
            let comma = if list.is_empty() { "" } else { "," };
            let _ = write!(list, "{comma}{label}=\"{}\"", escape(value, true));
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

/// Escapes the characters that would end a help text or, if `quoted`, a label's value.
fn escape(text: &str, quoted: bool) -> String {
    let text = text.replace('\\', r"\\").replace('\n', r"\n");
    if quoted {
        text.replace('"', r#"\""#)
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::parse_exposition;

    #[test]
    fn text_that_would_end_a_value_is_escaped() {
        let family = Family {
            name: "a",
            help: "back\\slash\nand \"line\"",
            is_total: false,
        };
        let hostile = "\"} 1\na{x=\"\\";
        let mut text = Exposition::default();
        text.sample(family, [("x", hostile), ("y", "")], 1);
        let text = text.finish();
        assert_eq!(text.lines().count(), 3);
        assert!(text.starts_with("# HELP a back\\\\slash\\nand \"line\"\n# TYPE a gauge\n"));
        let (labels, _) = parse_exposition(&text)["a"]
            .samples
            .clone()
            .pop_first()
            .unwrap();
        assert_eq!(labels[0], ("x".to_owned(), hostile.to_owned()));
    }

    #[test]
    fn without_samples_the_text_is_empty() {
        assert_eq!(Exposition::default().finish(), "");
    }
}
