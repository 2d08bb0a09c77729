//! The rules of CONTRIBUTING that a tool can check: language, width of prose, size of files.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Pronouns for persons. Comments speak of connections, requests and guards.
const PERSONS: [&str; 12] = [
    "who",
    "whom",
    "whose",
    "whoever",
    "nobody",
    "somebody",
    "everybody",
    "anybody",
    "he",
    "his",
    "him",
    "himself",
];
/// The largest number of lines with such a pronoun, of a thousand lines of comments and prose.
const MAX_PERSONS_PER_THOUSAND: usize = 5;
/// The largest width of a line of comments or prose.
const MAX_COLUMNS: usize = 100;
/// The largest number of lines of code in a file, without tests.
const MAX_CODE_LINES: usize = 600;

/// A line of a comment or of a document.
struct Prose {
    place: String,
    line: String,
}

/// Returns the files below `folder` with this extension, without build output.
fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                files(&path, extension, found);
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

fn all_files(extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(Path::new(env!("CARGO_MANIFEST_DIR")), extension, &mut found);
    assert!(found.len() >= 10, "{found:?}");
    found
}

/// Returns every line of comments in the sources and of the documents, without example code.
fn prose() -> Vec<Prose> {
    let mut prose = Vec::new();
    let mut add = |path: &Path, at: usize, line: &str| {
        let place = format!("{}:{}", path.display(), at + 1);
        let line = line.to_owned();
        prose.push(Prose { place, line });
    };
    for path in all_files("rs") {
        let mut is_code = false;
        for (at, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let Some(comment) = line.trim_start().strip_prefix("//") else {
                is_code = false;
                continue;
            };
            if comment
                .trim_start_matches(['/', '!', ' '])
                .starts_with("```")
            {
                is_code = !is_code;
            } else if !is_code {
                add(&path, at, line);
            }
        }
    }
    for path in all_files("md") {
        let mut is_code = false;
        for (at, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
            } else if !is_code && !line.trim().is_empty() {
                add(&path, at, line);
            }
        }
    }
    prose
}

#[test]
fn comments_and_documents_speak_of_things() {
    let prose = prose();
    let names_a_person = |prose: &&Prose| {
        let line = prose.line.to_lowercase();
        let mut words = line.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        words.any(|word| PERSONS.contains(&word))
    };
    let found: Vec<_> = prose.iter().filter(names_a_person).collect();
    assert!(
        found.len() * 1000 <= prose.len() * MAX_PERSONS_PER_THOUSAND,
        "{} of {} lines:\n{}",
        found.len(),
        prose.len(),
        found
            .iter()
            .map(|prose| format!("{} {}\n", prose.place, prose.line.trim()))
            .collect::<String>()
    );
}

#[test]
fn comments_and_documents_are_no_wider_than_100_columns() {
    let is_too_wide = |prose: &&Prose| {
        let text = prose.line.trim_start_matches([' ', '/', '!']);
        let is_table = text.starts_with('|');
        prose.line.chars().count() > MAX_COLUMNS && !is_table && !text.contains("://")
    };
    let prose = prose();
    let wide: Vec<_> = prose.iter().filter(is_too_wide).collect();
    let places: Vec<_> = wide.iter().map(|prose| &prose.place).collect();
    assert!(places.is_empty(), "{places:#?}");
}

#[test]
fn no_file_has_more_than_600_lines_of_code() {
    for path in all_files("rs") {
        let is_test = path.components().any(|part| {
            ["tests", "tests.rs"]
                .iter()
                .any(|name| part.as_os_str() == *name)
        });
        if is_test {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text
            .lines()
            .take_while(|line| *line != "#[cfg(test)]")
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with("//"))
            .count();
        let is_generated = text.starts_with("// This file is @generated");
        assert!(
            is_generated || code <= MAX_CODE_LINES,
            "{}: {code} lines",
            path.display()
        );
    }
}

/// Paths from the root, such as `docs/tuning.md`, and filters of tests: `--test threats t03`.
#[test]
fn documents_name_files_and_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut paths, mut tests, mut missing) = (0, 0, Vec::new());
    for path in all_files("md") {
        // The changelog names what has gone.
        if path.ends_with("CHANGELOG.md") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let is_of_path = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        for word in text.split(|c| !is_of_path(c)) {
            let folders = [
                "benches/",
                "crates/",
                "docs/",
                "examples/",
                "fuzz/",
                "tests/",
            ];
            let starts = folders.iter().any(|folder| word.starts_with(folder));
            let ends = [".rs", ".md", ".yml", ".txt"];
            if starts && ends.iter().any(|end| word.ends_with(end)) {
                paths += 1;
                if !root.join(word).exists() {
                    missing.push(format!("{}: {word}", path.display()));
                }
            }
        }
        for (at, flag) in text.match_indices("--test ") {
            let line = text[at + flag.len()..].lines().next().unwrap();
            let mut words = line.split([' ', '`', ',']).filter(|word| !word.is_empty());
            let binary = words.next().unwrap();
            let filter = words
                .next()
                .filter(|word| !word.starts_with(['-', '#', '|', ':']));
            let modules = root.join("tests").join(binary);
            tests += 1;
            if modules.is_dir() {
                let is_module = |filter: &str| {
                    let mut modules = fs::read_dir(&modules).unwrap();
                    modules.any(|file| {
                        let name = file.unwrap().file_name();
                        name.to_str().unwrap().starts_with(filter)
                    })
                };
                if !filter.is_none_or(is_module) {
                    missing.push(format!("{}: {binary} {}", path.display(), filter.unwrap()));
                }
            } else {
                let crates = fs::read_dir(root.join("crates")).unwrap();
                let mut homes = crates
                    .map(|entry| entry.unwrap().path())
                    .chain([root.into()]);
                if !homes.any(|home| home.join("tests").join(format!("{binary}.rs")).exists()) {
                    missing.push(format!("{}: --test {binary}", path.display()));
                }
            }
        }
    }
    assert!(paths > 60 && tests > 10, "{paths} paths, {tests} tests");
    assert!(missing.is_empty(), "{missing:#?}");
}
