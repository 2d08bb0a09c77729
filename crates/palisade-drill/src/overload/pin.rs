//! Processor cores: all but one for the server, and that one for the load. On Linux alone.

use std::io;

/// The cores of a server, which has all of its own again when this is dropped.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// The core of the load.
    pub(crate) free: usize,
    #[cfg(target_os = "linux")]
    root: u32,
    #[cfg(target_os = "linux")]
    original: rustix::thread::CpuSet,
}

/// Returns the number of cores that this process may use, if they can be assigned.
pub(crate) fn cores() -> usize {
    #[cfg(target_os = "linux")]
    return rustix::thread::sched_getaffinity(None).map_or(0, |set| set.count() as usize);
    #[cfg(not(target_os = "linux"))]
    return 0;
}

/// Returns the time that all cores but `free` were busy since the system began, in ticks.
pub(super) fn busy_ticks(free: usize) -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    busy_in(&stat, free)
}

fn busy_in(stat: &str, free: usize) -> u64 {
    let cores = stat.lines().filter_map(|line| {
        let (core, rest) = line.strip_prefix("cpu")?.split_once(' ')?;
        let core: usize = core.parse().ok()?;
        let ticks: Vec<u64> = rest
            .split_whitespace()
            .map_while(|ticks| ticks.parse().ok())
            .collect();
        // Idle, and idle with a disk under way.
        let idle = ticks.iter().skip(3).take(2).sum::<u64>();
        // Guests count as users already.
        let all = ticks.iter().take(8).sum::<u64>();
        (core != free).then_some(all - idle)
    });
    cores.sum()
}

#[cfg(target_os = "linux")]
impl Pinned {
    /// Takes one core from the server of the process `root`.
    ///
    /// # Errors
    ///
    /// If the system refuses, or if the server has that one alone.
    pub(crate) fn new(root: u32) -> io::Result<Self> {
        use rustix::thread::{CpuSet, sched_getaffinity};
        let own = sched_getaffinity(None)?;
        let original = sched_getaffinity(pid(root))?;
        let last = (0..CpuSet::MAX_CPU).rev().find(|core| own.is_set(*core));
        let free = last.ok_or(io::ErrorKind::NotFound)?;
        let mut rest = original;
        rest.unset(free);
        if rest.count() == 0 {
            return Err(io::Error::other("the server may use one core alone"));
        }
        let pinned = Self {
            free,
            root,
            original,
        };
        // Twice, for threads that began meanwhile.
        set(root, &rest);
        set(root, &rest);
        Ok(pinned)
    }
}

#[cfg(target_os = "linux")]
impl Drop for Pinned {
    fn drop(&mut self) {
        set(self.root, &self.original);
        set(self.root, &self.original);
    }
}

/// Assigns cores to all threads of a server. A thread that has just ended is no fault.
#[cfg(target_os = "linux")]
fn set(root: u32, cores: &rustix::thread::CpuSet) {
    for thread in crate::child::tree::threads(root) {
        let _ = rustix::thread::sched_setaffinity(pid(thread), cores);
    }
}

#[cfg(target_os = "linux")]
fn pid(number: u32) -> Option<rustix::process::Pid> {
    i32::try_from(number)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
}

/// Assigns one core to this thread.
///
/// # Errors
///
/// If the system refuses.
#[cfg(target_os = "linux")]
pub(super) fn this_thread(core: usize) -> io::Result<()> {
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &cores)?)
}

#[cfg(not(target_os = "linux"))]
impl Pinned {
    pub(crate) fn new(_: u32) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn this_thread(_: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busy_time_is_that_of_all_cores_but_one_and_not_idle() {
        let stat = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 100 50 4 5 6 1 1\n\
                    cpu1 10 0 0 100 0 0 0 0 0 0\nintr 1 2 3\ncpux y\n";
        assert_eq!(
            [busy_in(stat, 1), busy_in(stat, 0), busy_in(stat, 9)],
            [21, 10, 31]
        );
        assert_eq!(busy_in("", 0), 0);
    }
}
