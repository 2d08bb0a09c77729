//! Counts by running this program again under valgrind's callgrind.

use crate::scenarios;
use palisade_benches::runtime;
use std::{
    collections::BTreeMap,
    env, fs,
    hint::black_box,
    io,
    ops::Sub,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What one request of a scenario costs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) instructions: f64,
    pub(crate) allocations: f64,
    pub(crate) clock_reads: f64,
    pub(crate) timers: f64,
}

/// Each scenario is run with two numbers of requests; the difference has no beginning and no end.
const FEW: usize = 100;
const MANY: usize = 500;

/// The functions whose calls are counted. C's carry a version, Rust's a hash.
const ALLOCATIONS: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "posix_memalign",
    "aligned_alloc",
];
const CLOCK_READS: &[&str] = &["clock_gettime"];

/// The argument that makes this program the one that is counted.
pub(crate) const ARGUMENT: &str = "under-callgrind";

/// What every scenario costs. `None`, and a word why, without valgrind.
pub(crate) fn count() -> io::Result<Option<BTreeMap<&'static str, Cost>>> {
    let program = env::current_exe()?;
    let folder = program.with_file_name("figures-callgrind");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let output = folder.join("out");
    let status = Command::new("valgrind")
        .args([
            "--quiet",
            "--tool=callgrind",
            "--collect-atstart=no",
            "--compress-strings=no",
        ])
        // Two functions, because callgrind keeps one option per pattern.
        .args([
            "--toggle-collect=*counted_by_callgrind*",
            "--dump-before=*dumped_by_callgrind*",
        ])
        .arg(format!("--callgrind-out-file={}", output.display()))
        .arg(program)
        .arg(ARGUMENT)
        .stdin(Stdio::null())
        .status();
    match status {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(status) if !status.success() => {
            return Err(io::Error::other("the counted program failed"));
        }
        Ok(_) => {}
    }
    let names = scenarios::all().into_iter().map(|(name, _)| name);
    let costs = names.enumerate().map(|(place, name)| {
        // The first of three dumps has what came before.
        let few = Cost::read(&numbered(&output, 3 * place + 2))?;
        let many = Cost::read(&numbered(&output, 3 * place + 3))?;
        let per_request = |part: fn(&Cost) -> f64| (part(&many) - part(&few)) / (MANY - FEW) as f64;
        let cost = Cost {
            instructions: per_request(|cost| cost.instructions),
            allocations: per_request(|cost| cost.allocations),
            clock_reads: per_request(|cost| cost.clock_reads),
            timers: per_request(|cost| cost.timers),
        };
        Ok((name, cost))
    });
    costs.collect::<io::Result<_>>().map(Some)
}

/// Runs every scenario, to be watched from outside.
pub(crate) fn be_counted() {
    let runtime = runtime();
    let _guard = runtime.enter();
    for (_, make) in scenarios::all() {
        let mut run = make();
        // First what is made once, and tables that grow. It is counted as well, because callgrind
        // does not forget calls of which it has counted no instruction.
        for requests in [FEW, FEW, MANY] {
            counted_by_callgrind(&mut *run, requests);
            dumped_by_callgrind(requests);
        }
    }
}

/// What callgrind counts begins and ends with this function.
#[inline(never)]
fn counted_by_callgrind(run: &mut dyn FnMut(usize), requests: usize) {
    run(black_box(requests));
}

/// Before this function callgrind writes down what it has counted, and starts again at zero.
#[inline(never)]
fn dumped_by_callgrind(requests: usize) {
    black_box(requests);
}

/// Where callgrind puts its dumps.
fn numbered(output: &Path, number: usize) -> PathBuf {
    output.with_extension(number.to_string())
}

// === Cost ===

impl Cost {
    /// The sums of one dump.
    fn read(dump: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(dump)?;
        let mut cost = Self::default();
        let mut called = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("cfn=") {
                called = name;
            } else if let Some(calls) = line.strip_prefix("calls=") {
                let calls = calls.split(' ').next().and_then(|calls| calls.parse().ok());
                cost.add(called, calls.unwrap_or(0.0));
            } else if let Some(total) = line.strip_prefix("totals: ") {
                cost.instructions = total.trim().parse().map_err(io::Error::other)?;
            }
        }
        Ok(cost)
    }

    fn add(&mut self, function: &str, calls: f64) {
        let name = function.split('@').next().unwrap_or(function);
        if ALLOCATIONS.contains(&name) {
            self.allocations += calls;
        } else if CLOCK_READS.contains(&name) {
            self.clock_reads += calls;
        } else if name.contains("runtime::time") && name.contains("reregister") {
            self.timers += calls;
        }
    }
}

impl Sub for Cost {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            instructions: self.instructions - other.instructions,
            allocations: self.allocations - other.allocations,
            clock_reads: self.clock_reads - other.clock_reads,
            timers: self.timers - other.timers,
        }
    }
}
