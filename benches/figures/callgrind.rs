//! Counts instructions and calls by running this program again under valgrind's callgrind.

use crate::scenarios;
use palisade_benches::runtime;
use std::{
    collections::BTreeMap,
    env, fs,
    hint::black_box,
    io,
    ops::Sub,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The cost of one request of a scenario.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) instructions: f64,
    pub(crate) allocations: f64,
    pub(crate) clock_reads: f64,
    pub(crate) timers: f64,
}

/// The number of requests of a scenario's short run. The difference to the long run has no setup
/// cost.
const SHORT_RUN_REQUESTS: usize = 100;
/// The number of requests of a scenario's long run.
const LONG_RUN_REQUESTS: usize = 500;

/// Calls of these functions count as allocations. Symbol versions are ignored.
const ALLOCATION_FUNCTIONS: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "posix_memalign",
    "aligned_alloc",
];
/// Calls of these functions count as clock reads.
const CLOCK_FUNCTIONS: &[&str] = &["clock_gettime"];

/// The argument that makes this program run the scenarios under callgrind.
pub(crate) const ARGUMENT: &str = "under-callgrind";

/// Returns the cost of every scenario, or `None` without valgrind.
///
/// Each group of scenarios has a process of its own, and hence a heap that does not depend on the
/// scenarios of other groups: what an allocation costs depends on what was freed before it.
pub(crate) fn count() -> io::Result<Option<BTreeMap<&'static str, Cost>>> {
    let program = env::current_exe()?;
    let folder = program.with_file_name("figures-callgrind");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let output = |group: usize| folder.join(format!("group{group}"));
    let start = |group| start_valgrind(&program, group, &output(group));
    let started = (0..scenarios::GROUPS.len()).map(start);
    let started = match started.collect::<io::Result<Vec<_>>>() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        started => started?,
    };
    for mut process in started {
        if !process.wait()?.success() {
            return Err(io::Error::other("the program failed under callgrind"));
        }
    }
    let mut costs = BTreeMap::new();
    for group in 0..scenarios::GROUPS.len() {
        for (index, (name, _)) in scenarios::of_group(group).into_iter().enumerate() {
            // The first of three dumps is the warm-up.
            let short = Cost::read(&dump_path(&output(group), 3 * index + 2))?;
            let long = Cost::read(&dump_path(&output(group), 3 * index + 3))?;
            costs.insert(name, (long - short).per_request());
        }
    }
    Ok(Some(costs))
}

/// Starts the scenarios of a group under valgrind.
fn start_valgrind(program: &Path, group: usize, output: &Path) -> io::Result<Child> {
    Command::new("valgrind")
        .args([
            "--quiet",
            "--tool=callgrind",
            "--collect-atstart=no",
            "--compress-strings=no",
        ])
        // Two functions, because callgrind accepts one option per pattern.
        .args([
            "--toggle-collect=*counted_by_callgrind*",
            "--dump-before=*dumped_by_callgrind*",
        ])
        .arg(format!("--callgrind-out-file={}", output.display()))
        .arg(program)
        .args([ARGUMENT, &group.to_string()])
        .stdin(Stdio::null())
        .spawn()
}

/// Runs every scenario of a group under callgrind.
pub(crate) fn run_scenarios(group: usize) {
    let runtime = runtime();
    let _guard = runtime.enter();
    for (_, make) in scenarios::of_group(group) {
        let mut run = make();
        // The first run is a warm-up, for state that is created once and tables that grow. It is
        // counted and dumped too, because callgrind does not reset the number of calls for which
        // it has counted no instruction.
        for requests in [SHORT_RUN_REQUESTS, SHORT_RUN_REQUESTS, LONG_RUN_REQUESTS] {
            counted_by_callgrind(&mut *run, requests);
            dumped_by_callgrind(requests);
        }
    }
}

/// Runs `requests` requests. callgrind counts the instructions within this function.
#[inline(never)]
fn counted_by_callgrind(run: &mut dyn FnMut(usize), requests: usize) {
    run(black_box(requests));
}

/// Makes callgrind dump and reset its counts before this function is called.
#[inline(never)]
fn dumped_by_callgrind(requests: usize) {
    black_box(requests);
}

/// Returns the path of one of callgrind's dumps.
fn dump_path(output: &Path, number: usize) -> PathBuf {
    output.with_extension(number.to_string())
}

// === Cost ===

impl Cost {
    /// Reads the sums of one dump.
    fn read(dump: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(dump)?;
        let mut cost = Self::default();
        let mut called = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("cfn=") {
                called = name;
            } else if let Some(calls) = line.strip_prefix("calls=") {
                let calls = calls.split(' ').next().and_then(|calls| calls.parse().ok());
                cost.add_calls(called, calls.unwrap_or(0.0));
            } else if let Some(total) = line.strip_prefix("totals: ") {
                cost.instructions = total.trim().parse().map_err(io::Error::other)?;
            }
        }
        Ok(cost)
    }

    /// Returns the cost of one request, of the difference between a long run and a short one.
    fn per_request(self) -> Self {
        let requests = (LONG_RUN_REQUESTS - SHORT_RUN_REQUESTS) as f64;
        Self {
            instructions: self.instructions / requests,
            allocations: self.allocations / requests,
            clock_reads: self.clock_reads / requests,
            timers: self.timers / requests,
        }
    }

    /// Adds the calls of a function to its sum.
    fn add_calls(&mut self, function: &str, calls: f64) {
        let name = function.split('@').next().unwrap_or(function);
        if ALLOCATION_FUNCTIONS.contains(&name) {
            self.allocations += calls;
        } else if CLOCK_FUNCTIONS.contains(&name) {
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
