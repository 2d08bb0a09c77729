//! What a process asks of its system, without a line of unsafe code.

/// Raises this process's own soft limit of open files to the hard one, and says what holds now.
/// `None` where there is no such limit.
pub fn raise_file_limit() -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        // Some systems refuse a soft limit without end; what was there then stays.
        if setrlimit(Resource::Nofile, raised).is_ok() {
            maximum
        } else {
            current
        }
    }
    #[cfg(not(unix))]
    None
}

/// Lowers this process's own soft limit of open files to `files`.
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

/// How many files this process has open, as far as the system tells.
pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Asks the process `id`, a child of the caller's, to end: SIGTERM.
#[cfg(unix)]
pub fn terminate(id: u32) -> std::io::Result<()> {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, Signal::TERM)?)
}
