//! The limit on open files of a child process.

use super::tree::Member;
use std::io;

/// Returns whether this system lets the drill set the limit of another process.
pub(crate) const IS_POSSIBLE: bool = cfg!(target_os = "linux");

/// Lowers the limit of all `members` to `files`. Returns the largest limit that any of them had.
///
/// # Errors
///
/// If the system refuses it for the first process.
#[cfg(target_os = "linux")]
pub(super) fn lower(members: &[Member], files: u64) -> io::Result<u64> {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let limit = Rlimit {
        current: Some(files),
        maximum: Some(files),
    };
    let mut had = 0;
    for (number, member) in members.iter().enumerate() {
        let Some(pid) = i32::try_from(member.pid).ok().and_then(Pid::from_raw) else {
            continue;
        };
        match prlimit(Some(pid), Resource::Nofile, limit) {
            Ok(before) => had = had.max(before.current.unwrap_or(u64::MAX)),
            // A process that has just ended is no fault.
            Err(error) if number == 0 => return Err(error.into()),
            Err(_) => {}
        }
    }
    Ok(had)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn lower(_: &[Member], _: u64) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}
