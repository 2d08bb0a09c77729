//! The table of figures: printing, and comparison with the committed figures.

use std::{collections::BTreeMap, fmt::Write as _, fs, io, path::Path};

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) figure: &'static str,
    pub(crate) peers: Option<f64>,
    pub(crate) palisade: f64,
    pub(crate) limit: Limit,
    /// The figure is a count, and is compared with the committed figure. Measured times and memory
    /// are not.
    pub(crate) is_count: bool,
}

/// The design's limit on a figure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// No limit. The figure is shown to explain others.
    None,
}

/// Committed figures by [`Row::name`].
type Committed = BTreeMap<String, f64>;

/// The part of the committed figure by which a figure may be worse.
const TOLERANCE: f64 = 0.10;
/// The amount by which a figure may be worse in addition, so that a committed 0.00 covers what
/// rounds to it.
const ROUNDING_SLACK: f64 = 0.05;
/// The same in percentage points for P6: within some ten thousand instructions per request, the
/// allocator's part varies by a hundred with its free memory.
const P6_SLACK: f64 = 1.5;

// === Row ===

impl Row {
    /// Returns a row of a count.
    pub(crate) fn count(
        id: &'static str,
        figure: &'static str,
        peers: impl Into<Option<f64>>,
        palisade: f64,
        limit: Limit,
    ) -> Self {
        Self {
            id,
            figure,
            peers: peers.into(),
            palisade,
            limit,
            is_count: true,
        }
    }

    /// Returns a row of a figure that depends on measured time or memory.
    pub(crate) fn timed(
        id: &'static str,
        figure: &'static str,
        peers: impl Into<Option<f64>>,
        palisade: f64,
        limit: Limit,
    ) -> Self {
        Self {
            id,
            figure,
            peers: peers.into(),
            palisade,
            limit,
            is_count: false,
        }
    }

    /// Returns whether the figure is within the design's limit; `None` without a limit.
    fn is_within_limit(&self) -> Option<bool> {
        match self.limit {
            Limit::AtMost(limit) => Some(rounded(self.palisade) <= limit),
            Limit::AtLeast(limit) => Some(rounded(self.palisade) >= limit),
            Limit::None => None,
        }
    }

    /// Returns whether the figure is worse than `committed` by more than the tolerance.
    fn is_worse_than(&self, committed: f64) -> bool {
        let slack = if self.id == "P6" {
            P6_SLACK
        } else {
            ROUNDING_SLACK
        };
        match self.limit {
            Limit::AtLeast(_) => self.palisade < committed * (1.0 - TOLERANCE) - slack,
            _ => self.palisade > committed + committed.abs() * TOLERANCE + slack,
        }
    }

    fn name(&self) -> String {
        format!("{} {}", self.id, self.figure)
    }
}

/// Rounds `value` as the table shows it: to whole numbers from 100 on, else to two decimal places.
fn rounded(value: f64) -> f64 {
    // Adding 0.0 turns -0.0 into 0.0.
    let places = if value.abs() >= 100.0 { 1.0 } else { 100.0 };
    (value * places).round() / places + 0.0
}

/// Formats `value` as the table shows it.
fn format_value(value: f64) -> String {
    let value = rounded(value);
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// Prints the table.
pub(crate) fn print(rows: &[Row]) {
    let line = |id: &str, figure: &str, cells: [&str; 4]| {
        let [peers, palisade, limit, ok] = cells;
        println!("{id:4} {figure:66} {peers:>9} {palisade:>9} {limit:>10}  {ok}");
    };
    line("id", "figure", ["peers", "palisade", "limit", "ok"]);
    for row in rows {
        let limit = match row.limit {
            Limit::AtMost(limit) => format!("<= {limit}"),
            Limit::AtLeast(limit) => format!(">= {limit}"),
            Limit::None => String::from("-"),
        };
        let ok = match row.is_within_limit() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "-",
        };
        let peers = row.peers.map_or_else(|| String::from("-"), format_value);
        line(
            row.id,
            row.figure,
            [&peers, &format_value(row.palisade), &limit, ok],
        );
    }
    let missed: Vec<_> = rows
        .iter()
        .filter(|row| row.is_within_limit() == Some(false))
        .collect();
    println!("\n{} figures miss their design limit.", missed.len());
}

/// Compares the rows with the figures in `file`, prints those that are worse, and returns whether
/// there are any.
pub(crate) fn compare(rows: &[Row], file: &Path) -> io::Result<bool> {
    let committed = read_committed(file)?;
    let mut is_worse = false;
    for row in rows.iter().filter(|row| row.is_count) {
        let verdict = match committed.get(&row.name()) {
            None => "no committed figure".to_owned(),
            Some(&figure) if row.is_worse_than(figure) => {
                format!(
                    "{}, committed is {}",
                    format_value(row.palisade),
                    format_value(figure)
                )
            }
            Some(_) => continue,
        };
        is_worse = true;
        println!("WORSE: {}: {verdict}", row.name());
    }
    Ok(is_worse)
}

/// Writes the figures to `file`, to be committed.
pub(crate) fn write(rows: &[Row], file: &Path) -> io::Result<()> {
    let mut content = String::from(
        "# What palisade's figures are. `cargo run --release -p palisade-benches` fails where one is\n\
         # more than 10 % worse; with `-- --write` it writes this file.\n",
    );
    for row in rows.iter().filter(|row| row.is_count) {
        let _ = writeln!(
            content,
            "{:>8} | {}",
            format_value(row.palisade),
            row.name()
        );
    }
    fs::write(file, content)
}

/// Reads the committed figures from `file`.
fn read_committed(file: &Path) -> io::Result<Committed> {
    let content = fs::read_to_string(file)?;
    let lines = content.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (value, name) = line.split_once('|').ok_or_else(|| io::Error::other(line))?;
            Ok((
                name.trim().to_owned(),
                value.trim().parse().map_err(io::Error::other)?,
            ))
        })
        .collect()
}
