//! The limit on open files, which bounds the number of attackers.

/// The files that a drill needs beside its attackers.
const SPARE_FILES: u64 = 200;

/// Raises the limit on open files of this process as far as it may, and returns the number of
/// sockets that attackers may have. Each takes `files_each`: two if the server is in this process.
pub(crate) fn raise_limit(files_each: u64) -> usize {
    let limit = current().unwrap_or(u64::MAX);
    usize::try_from(limit.saturating_sub(SPARE_FILES) / files_each).unwrap_or(usize::MAX)
}

#[cfg(unix)]
fn current() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        maximum
    } else {
        current
    }
}

#[cfg(not(unix))]
fn current() -> Option<u64> {
    None
}
