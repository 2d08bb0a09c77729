//! T18: a sample of the memory allocates nothing, so that it works where memory is short.
//!
//! There is one test, because the allocator counts for the whole process.

use palisade_core::{Memory, MemoryEvents};
use palisade_testkit::alloc::CountingAllocator;
use std::{fs, path::Path};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

/// Asserts that samples below `root` allocate nothing. Returns the last one.
fn samples(root: &Path) -> (Option<(u64, u64)>, MemoryEvents) {
    let mut sample = Memory::sampler(root);
    let mut last = Default::default();
    let mut allocations = || {
        let before = ALLOCATOR.allocations();
        (0..100).for_each(|_| last = sample());
        ALLOCATOR.allocations() - before
    };
    // The threads of the test harness may allocate in one round or another.
    let least = (0..10).map(|_| allocations()).min();
    assert_eq!(least, Some(0), "{}", root.display());
    last
}

#[test]
fn a_sample_of_the_memory_allocates_nothing() {
    // The groups and the memory of this machine.
    let (sample, _) = samples(Path::new("/"));
    assert_eq!(sample.is_some(), cfg!(target_os = "linux"));
    // A group of version 2.
    let name = format!("palisade-memory-sample-{}", std::process::id());
    let root = std::env::temp_dir().join(name);
    let group = root.join("sys/fs/cgroup/a");
    let process = root.join("proc/self");
    for folder in [&group, &process] {
        fs::create_dir_all(folder).expect("a directory for temporary files");
    }
    let files = [
        (process.join("cgroup"), "0::/a\n"),
        (group.join("memory.max"), "100000\n"),
        (group.join("memory.high"), "max\n"),
        (group.join("memory.current"), "50000\n"),
        (
            group.join("memory.events"),
            "high 1\nmax 2\noom 3\noom_kill 4\n",
        ),
        (
            group.join("memory.pressure"),
            "some avg10=1.60 avg60=0.00 avg300=0.00 total=1\n",
        ),
        (
            group.join("memory.stat"),
            "anon 1\nfile 3000\nsock 9\nshmem 1000\n",
        ),
    ];
    for (path, text) in &files {
        fs::write(path, text).expect("a temporary file");
    }
    let (sample, events) = samples(&root);
    let _ = fs::remove_dir_all(&root);
    assert_eq!(sample, cfg!(unix).then_some((48_000, 100_000)));
    assert_eq!(events.oom_kills, cfg!(unix).then_some(4));
    assert_eq!(events.stall_percent, cfg!(unix).then_some(2));
}
