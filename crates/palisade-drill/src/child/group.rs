//! A control group of Linux with a limit on memory, for the processes of a server.

use super::tree::{self, Member};
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// The looks at a group whose processes are ending, and the pause between two.
const REMOVALS: u32 = 200;
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);

/// A control group, removed when this is dropped. Its processes have to end before.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    version: &'static Version,
    limit: u64,
}

/// What the files of a version are called.
#[derive(Debug)]
struct Version {
    limit: &'static str,
    /// The memory with what is swapped out, which gets the same limit.
    limit_with_swap: (&'static str, bool),
    /// The file with a line `oom_kill`.
    kills: &'static str,
}

const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    limit_with_swap: ("memory.memsw.limit_in_bytes", true),
    kills: "memory.oom_control",
};
const V2: Version = Version {
    limit: "memory.max",
    limit_with_swap: ("memory.swap.max", false),
    kills: "memory.events",
};

impl Group {
    /// Makes a group with a limit of `bytes` near that of this process. `None` if the system has no
    /// control groups for memory, or if this process may not make one.
    pub(crate) fn create(bytes: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        places(&own)
            .into_iter()
            .find_map(|(folder, version)| Self::create_in(&folder, version, bytes).ok())
    }

    fn create_in(folder: &Path, version: &'static Version, bytes: u64) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let path = folder.join(format!("palisade-drill-{}-{number}", std::process::id()));
        // Version 2 has it off unless that is asked for. It may be on already.
        let _ = write(&folder.join("cgroup.subtree_control"), "+memory");
        fs::create_dir(&path)?;
        let group = Self {
            path,
            version,
            limit: bytes,
        };
        write(&group.path.join(version.limit), &bytes.to_string())?;
        // There is no such file where nothing is swapped out.
        let (file, counts_all) = version.limit_with_swap;
        let swap = if counts_all { bytes } else { 0 };
        let _ = write(&group.path.join(file), &swap.to_string());
        Ok(group)
    }

    /// Moves all `members` into the group. What they use already counts for the group that they
    /// come from.
    ///
    /// # Errors
    ///
    /// If the system refuses it for the first process.
    pub(super) fn add(&self, members: &[Member]) -> io::Result<()> {
        for (number, member) in members.iter().enumerate() {
            let added = write(&self.path.join("cgroup.procs"), &member.pid.to_string());
            // Another one may just have ended.
            if number == 0 {
                added?;
            }
        }
        Ok(())
    }

    /// Ends all processes of the group, without notice. All of them are of the server, whatever the
    /// process that started them has become.
    pub(super) fn end(&self) {
        let pids = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        pids.lines().for_each(tree::kill);
    }

    /// Returns how many processes the kernel has ended at the limit.
    pub(crate) fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.path.join(self.version.kills));
        text.ok().and_then(|text| kills(&text)).unwrap_or(0)
    }

    /// Returns the limit in bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "in a drop, for a second at most: the kernel needs a moment after the last process"
)]
impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..REMOVALS {
            if fs::remove_dir(&self.path).is_ok() {
                break;
            }
            std::thread::sleep(REMOVAL_PAUSE);
        }
    }
}

/// Writes to a file of the kernel. No file is made: in a folder that is no control group there is
/// none.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// Returns the folders in which a group may be made, by what `/proc/self/cgroup` says. Version 2
/// allows none with limits below a group that has processes, so that those above are tried too.
fn places(own: &str) -> Vec<(PathBuf, &'static Version)> {
    let mut places = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let below = path.trim_start_matches('/');
        if controllers.split(',').any(|name| name == "memory") {
            places.push((Path::new("/sys/fs/cgroup/memory").join(below), &V1));
        } else if controllers.is_empty() {
            for mount in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new) {
                let folder = mount.join(below);
                let up = folder.ancestors().take_while(|it| it.starts_with(mount));
                places.extend(up.map(|it| (it.to_owned(), &V2)));
            }
        }
    }
    places
}

/// Returns the number in the line `oom_kill`.
fn kills(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, number) = lines.find(|(name, _)| *name == "oom_kill")?;
    number.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_made_in_the_own_one_or_above_it() {
        let both = "9:cpu,cpuacct:/a\n4:memory:/docker/x\n0::/a/b\nnoise\n";
        let places: Vec<_> = places(both)
            .into_iter()
            .map(|(folder, _)| folder.to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            places,
            [
                "/sys/fs/cgroup/memory/docker/x",
                "/sys/fs/cgroup/a/b",
                "/sys/fs/cgroup/a",
                "/sys/fs/cgroup",
                "/sys/fs/cgroup/unified/a/b",
                "/sys/fs/cgroup/unified/a",
                "/sys/fs/cgroup/unified",
            ]
        );
        assert!(super::places("").is_empty());
    }

    #[test]
    fn kills_are_counted_in_both_versions() {
        assert_eq!(
            kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            Some(3)
        );
        assert_eq!(
            kills("low 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n"),
            Some(1)
        );
        assert_eq!(kills("oom_kill many\n"), None);
        assert_eq!(kills(""), None);
    }

    #[test]
    fn a_folder_that_is_no_control_group_is_none_and_stays_empty() {
        let name = format!("palisade-drill-no-group-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        for version in [&V1, &V2] {
            assert!(Group::create_in(&folder, version, 64 << 20).is_err());
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        }
        fs::remove_dir(folder).unwrap();
    }

    #[test]
    fn a_group_ends_with_its_handle() {
        let Some(group) = Group::create(64 << 20) else {
            println!("skipped: this process may not make control groups");
            return;
        };
        let path = group.path.clone();
        let limit = fs::read_to_string(path.join(group.version.limit)).unwrap();
        assert_eq!(limit.trim(), (64 << 20).to_string());
        assert_eq!(group.kills(), 0);
        drop(group);
        assert!(!path.exists());
    }
}
