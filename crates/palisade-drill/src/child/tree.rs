//! The processes of a server: the child and what it started, as Linux reports them in `/proc`.
//!
//! Other systems do not report them in this way. There the child alone is ended.

use std::{fs, path::Path, time::Duration};

/// A process. Its time of start tells it from a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) pid: u32,
    parent: u32,
    /// In ticks since the system began.
    started: u64,
    /// The processor time of the process, and of its children that have ended, in ticks.
    pub(crate) ticks: u64,
    /// The memory in pages.
    pages: u64,
}

/// What the processes of a server use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// The memory that is resident, in bytes.
    pub(crate) memory: u64,
    /// The number of open files.
    pub(crate) files: u64,
    /// The processor time since they began.
    pub(crate) cpu: Duration,
}

/// Parses `/proc/<pid>/stat`.
fn parse(stat: &str) -> Option<Member> {
    // The name of the program may have spaces and brackets of its own.
    let (start, rest) = stat.rsplit_once(')')?;
    let pid = start.split_once(' ')?.0.parse().ok()?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Member {
        pid,
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)? + number(12)? + number(13)? + number(14)?,
        started: number(19)?,
        pages: number(21)?,
    })
}

/// Returns the process `root` and its descendants, each after its parent.
pub(crate) fn members(root: u32) -> Vec<Member> {
    members_in(Path::new("/proc"), root)
}

fn members_in(proc: &Path, root: u32) -> Vec<Member> {
    let all: Vec<Member> = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
        })
        .filter_map(|entry| parse(&fs::read_to_string(entry.path().join("stat")).ok()?))
        .collect();
    let (mut members, mut others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|member| member.pid == root);
    let mut at = 0;
    while let Some(parent) = members.get(at).map(|member| member.pid) {
        // Each is taken out of the others, so that this ends whatever the system says.
        let (children, rest): (Vec<_>, _) = others
            .into_iter()
            .partition(|member| member.parent == parent);
        members.extend(children);
        others = rest;
        at += 1;
    }
    members
}

/// Returns the process `pid`.
pub(crate) fn member(pid: u32) -> Option<Member> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Returns the processes that have the socket of this inode, as far as they can be looked at.
pub(crate) fn with_socket(inode: u64) -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let members = pids.filter_map(member);
    let members = members.filter(|member| has_socket(std::slice::from_ref(member), inode));
    members.map(|member| member.pid).collect()
}

/// Returns whether one of `members` has the socket of this inode.
pub(crate) fn has_socket(members: &[Member], inode: u64) -> bool {
    let link = format!("socket:[{inode}]");
    members.iter().any(|member| {
        let files = fs::read_dir(format!("/proc/{}/fd", member.pid));
        files
            .into_iter()
            .flatten()
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == link.as_str()))
    })
}

/// Returns the threads of the process `root` and its descendants.
#[cfg(target_os = "linux")]
pub(crate) fn threads(root: u32) -> Vec<u32> {
    let threads = members(root).into_iter().flat_map(|member| {
        let threads = fs::read_dir(format!("/proc/{}/task", member.pid));
        threads.into_iter().flatten().flatten()
    });
    threads
        .filter_map(|thread| thread.file_name().to_str()?.parse().ok())
        .collect()
}

/// Ends the group of processes that `root` leads, which must not have been waited for.
#[cfg(unix)]
pub(super) fn end_group(root: u32) {
    use rustix::process::{Pid, Signal, kill_process_group};
    if let Some(group) = i32::try_from(root).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

#[cfg(not(unix))]
pub(super) fn end_group(_: u32) {}

/// Returns whether this process is there, and not a later one with the same pid.
pub(super) fn runs(member: &Member) -> bool {
    self::member(member.pid).is_some_and(|now| now.started == member.started)
}

/// Ends all `members` but `root`, which its handle ends.
#[cfg(target_os = "linux")]
pub(super) fn end(members: &[Member], root: u32) {
    for member in members {
        if member.pid != root && runs(member) {
            kill(&member.pid.to_string());
        }
    }
}

/// Ends the process with this pid, without notice.
#[cfg(target_os = "linux")]
pub(super) fn kill(pid: &str) {
    use rustix::process::{Pid, Signal, kill_process};
    if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn kill(_: &str) {}

#[cfg(not(target_os = "linux"))]
pub(super) fn end(_: &[Member], _: u32) {}

/// Returns what the process `root` and its descendants use; `None` if that is not known.
#[cfg(target_os = "linux")]
pub(crate) fn usage(root: u32) -> Option<Usage> {
    let members = members(root);
    let ticks: u64 = members.iter().map(|member| member.ticks).sum();
    let pages: u64 = members.iter().map(|member| member.pages).sum();
    let files = members.iter().map(|member| {
        let files = fs::read_dir(format!("/proc/{}/fd", member.pid));
        files.into_iter().flatten().count() as u64
    });
    (!members.is_empty()).then(|| Usage {
        memory: pages.saturating_mul(rustix::param::page_size() as u64),
        files: files.sum(),
        cpu: self::ticks(ticks),
    })
}

/// Converts the system's ticks into time.
#[cfg(target_os = "linux")]
pub(crate) fn ticks(count: u64) -> Duration {
    let in_a_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_secs_f64(count as f64 / in_a_second as f64)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn ticks(_: u64) -> Duration {
    Duration::ZERO
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn usage(_: u32) -> Option<Usage> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: u32, name: &str, parent: u32) -> String {
        format!(
            "{pid} ({name}) S {parent} 1 1 0 -1 4194304 9 9 0 0 5 6 7 8 20 0 1 0 777 4096 42 \
             18446744073709551615 1\n"
        )
    }

    #[test]
    fn a_line_is_read_whatever_the_name_of_the_program() {
        for name in ["server", "a) S 1 (b", "tmux: server", ""] {
            let member = parse(&stat(10, name, 3)).unwrap();
            let expected = Member {
                pid: 10,
                parent: 3,
                started: 777,
                ticks: 26,
                pages: 42,
            };
            assert_eq!(member, expected, "{name}");
        }
        for garbage in ["", "1", "1 (a) S", "x (a) S 1 2 3", "1 (a S 1"] {
            assert_eq!(parse(garbage), None, "{garbage}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_tree_has_the_descendants_of_its_root_alone() {
        let proc = std::env::temp_dir().join(format!("palisade-drill-tree-{}", std::process::id()));
        for (pid, parent) in [(10, 1), (11, 10), (12, 11), (13, 1), (14, 10), (20, 20)] {
            let folder = proc.join(pid.to_string());
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("stat"), stat(pid, "a", parent)).unwrap();
        }
        let pids = |root| {
            let mut pids: Vec<_> = members_in(&proc, root).iter().map(|m| m.pid).collect();
            assert_eq!(pids.first().copied().unwrap_or(root), root);
            pids.sort_unstable();
            pids
        };
        let found = [pids(10), pids(20), pids(99)];
        fs::remove_dir_all(&proc).unwrap();
        assert_eq!(found, [vec![10, 11, 12, 14], vec![20], vec![]]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_of_a_listener_is_found_by_its_socket() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let inode = crate::target::owner::inode(addr).unwrap();
        assert!(with_socket(inode).contains(&std::process::id()));
        assert!(with_socket(u64::MAX).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_memory_files_and_time() {
        let file = fs::File::open("/proc/self/stat").unwrap();
        let usage = usage(std::process::id()).unwrap();
        drop(file);
        assert!(usage.memory > 1 << 20 && usage.files > 3, "{usage:?}");
    }
}
