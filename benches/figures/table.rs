//! The table: what is printed, and what is compared with the committed figures.

use std::{collections::BTreeMap, fmt::Write as _, fs, io, path::Path};

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) figure: &'static str,
    pub(crate) peers: Option<f64>,
    pub(crate) palisade: f64,
    pub(crate) limit: Limit,
    /// Compared with the committed figure. Nothing that a clock had a hand in is.
    pub(crate) is_count: bool,
}

/// What the design asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// Shown to make sense of the others.
    None,
}

/// Committed figures by [`Row::name`].
type Committed = BTreeMap<String, f64>;

/// A figure may be worse than the committed one by this part of it.
const TOLERANCE: f64 = 0.10;
/// And by this much in any case, so that a 0.00 which was rounded stays one.
const ROUNDING: f64 = 0.05;
/// Of a request of some ten thousand instructions the allocator's part is now a hundred more, now a
/// hundred less, by what it has free.
const POINTS: f64 = 1.5;

// === Row ===

impl Row {
    /// A count.
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

    /// Something that a clock had a hand in.
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

    /// Whether the design's limit is held; `None` where there is none.
    fn is_held(&self) -> Option<bool> {
        match self.limit {
            Limit::AtMost(limit) => Some(shown(self.palisade) <= limit),
            Limit::AtLeast(limit) => Some(shown(self.palisade) >= limit),
            Limit::None => None,
        }
    }

    /// Whether it is worse than `committed` by more than may be.
    fn is_worse_than(&self, committed: f64) -> bool {
        let slack = if self.id == "P6" { POINTS } else { ROUNDING };
        match self.limit {
            Limit::AtLeast(_) => self.palisade < committed * (1.0 - TOLERANCE) - slack,
            _ => self.palisade > committed + committed.abs() * TOLERANCE + slack,
        }
    }

    fn name(&self) -> String {
        format!("{} {}", self.id, self.figure)
    }
}

/// As the table shows it: whole numbers from 100 on, else two places.
fn shown(value: f64) -> f64 {
    // No zero with a sign.
    let places = if value.abs() >= 100.0 { 1.0 } else { 100.0 };
    (value * places).round() / places + 0.0
}

fn text(value: f64) -> String {
    let value = shown(value);
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
        let ok = match row.is_held() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "-",
        };
        let peers = row.peers.map_or_else(|| String::from("-"), text);
        line(
            row.id,
            row.figure,
            [&peers, &text(row.palisade), &limit, ok],
        );
    }
    let missed: Vec<_> = rows
        .iter()
        .filter(|row| row.is_held() == Some(false))
        .collect();
    println!("\n{} limits of the design are not held.", missed.len());
}

/// Compares with the figures in `file`; says what is worse, and returns whether anything is.
pub(crate) fn compare(rows: &[Row], file: &Path) -> io::Result<bool> {
    let committed = read(file)?;
    let mut is_worse = false;
    for row in rows.iter().filter(|row| row.is_count) {
        let verdict = match committed.get(&row.name()) {
            None => "there is no committed figure".to_owned(),
            Some(&figure) if row.is_worse_than(figure) => {
                format!("{} where {} is committed", text(row.palisade), text(figure))
            }
            Some(_) => continue,
        };
        is_worse = true;
        println!("WORSE: {}: {verdict}", row.name());
    }
    Ok(is_worse)
}

/// Writes the figures into `file`, to be committed.
pub(crate) fn write(rows: &[Row], file: &Path) -> io::Result<()> {
    let mut content = String::from(
        "# What palisade's figures are. `cargo run --release -p palisade-benches` fails where one is\n\
         # more than 10 % worse; with `-- --write` it writes this file.\n",
    );
    for row in rows.iter().filter(|row| row.is_count) {
        let _ = writeln!(content, "{:>8} | {}", text(row.palisade), row.name());
    }
    fs::write(file, content)
}

fn read(file: &Path) -> io::Result<Committed> {
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
