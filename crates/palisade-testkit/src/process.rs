//! Resource limits and signals of processes, without unsafe code.

/// Raises this process's soft limit on open files to the hard limit, and returns the limit in
/// force. `None` if there is no limit.
pub fn raise_file_limit() -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        // Some systems refuse an unlimited soft limit. The previous limit then stays in force.
        if setrlimit(Resource::Nofile, raised).is_ok() {
            maximum
        } else {
            current
        }
    }
    #[cfg(not(unix))]
    None
}

/// Lowers this process's soft limit on open files to `files`.
#[cfg(unix)]
pub fn lower_file_limit(files: u64) -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(files),
            maximum,
        },
    )?)
}

/// Returns the number of open files of this process; 0 where there is no `/proc`.
pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Sends SIGTERM to the process `id`.
#[cfg(unix)]
pub fn terminate(id: u32) -> std::io::Result<()> {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, Signal::TERM)?)
}
