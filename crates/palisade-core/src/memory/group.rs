//! The memory of control groups, from the kernel's files.

use super::{
    events::{EventFiles, MemoryEvents},
    files::{BUFFER_BYTES, kibibytes, number, read, value_of},
};
use std::{
    fs::File,
    path::{Component, Path, PathBuf},
};

/// Memory that is in use, and how much of it there is at most, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) used: u64,
    pub(super) limit: u64,
}

/// The memory of this process, of the control groups that it belongs to, and of the machine. Keeps
/// its files open, so that a sample opens and allocates nothing.
#[derive(Debug)]
pub(super) struct Groups {
    groups: Vec<Group>,
    /// The process itself, which counts where no group has a limit.
    process: Option<File>,
    /// The memory of the machine. A limit of that size or above is none.
    machine: Option<u64>,
    events: EventFiles,
    buffer: Box<[u8]>,
}

/// The files of one group.
#[derive(Debug)]
struct Group {
    path: PathBuf,
    /// The limits. The least one holds.
    limits: Vec<File>,
    usage: File,
    stat: Option<File>,
    names: &'static Names,
}

/// What the files and lines of a version of control groups are called.
#[derive(Debug)]
struct Names {
    mounts: &'static [&'static str],
    limits: &'static [&'static str],
    usage: &'static str,
    /// The pages of files, which the kernel can drop.
    droppable: &'static str,
    /// The part of them that belongs to no file, which it cannot drop.
    shared: &'static str,
}

const V1: Names = Names {
    mounts: &["sys/fs/cgroup/memory"],
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    droppable: "total_cache",
    shared: "total_shmem",
};
const V2: Names = Names {
    // The second one is that of hybrid systems, where version 1 has the other controllers.
    mounts: &["sys/fs/cgroup", "sys/fs/cgroup/unified"],
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    droppable: "file",
    shared: "shmem",
};

impl Sample {
    /// Returns the part of the limit that is used, from 0 to 1.
    pub(super) fn level(self) -> f32 {
        if self.limit == 0 {
            return 1.0;
        }
        (self.used as f64 / self.limit as f64).min(1.0) as f32
    }
}

impl Groups {
    /// Opens the files under `root`, which is `/` but in tests.
    pub(super) fn open(root: &Path) -> Self {
        let mut buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        let lines = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let groups = lines.lines().flat_map(|line| groups_in(root, line));
        let groups: Vec<_> = groups.collect();
        let machine = File::open(root.join("proc/meminfo")).ok();
        Self {
            // The first one is the process's own.
            events: EventFiles::open(root, groups.first().map(|group| &*group.path)),
            groups,
            process: File::open(root.join("proc/self/status")).ok(),
            machine: machine
                .and_then(|file| kibibytes(read(&file, &mut buffer)?, "MemTotal:"))
                .filter(|bytes| *bytes > 0),
            buffer,
        }
    }

    /// Returns the least limit of the groups and the machine.
    pub(super) fn limit(&mut self) -> Option<u64> {
        let machine = self.machine;
        let Self { groups, buffer, .. } = self;
        let limits = groups.iter().filter_map(|group| group.limit(buffer));
        limits.chain(machine).min()
    }

    /// Returns what the kernel reports of the process's own group.
    pub(super) fn events(&mut self) -> MemoryEvents {
        self.events.read(&mut self.buffer)
    }

    /// Returns the memory of the group that is nearest to its limit. Without a limited group,
    /// returns that of the process on the machine.
    pub(super) fn sample(&mut self) -> Option<Sample> {
        let Self {
            groups,
            process,
            machine,
            buffer,
            ..
        } = self;
        let is_limited = |limit: &u64| machine.is_none_or(|machine| *limit < machine);
        let samples = groups.iter().filter_map(|group| {
            let limit = group.limit(buffer).filter(is_limited)?;
            let used = group.used(buffer)?;
            Some(Sample { used, limit })
        });
        let worst = samples.max_by(|one, other| one.level().total_cmp(&other.level()));
        worst.or_else(|| {
            let used = kibibytes(read(process.as_ref()?, buffer)?, "VmRSS:")?;
            let limit = (*machine)?;
            Some(Sample { used, limit })
        })
    }
}

impl Group {
    /// Opens the files of the group at `path`, if they are there.
    fn open(path: &Path, names: &'static Names) -> Option<Self> {
        let open = |name: &str| File::open(path.join(name)).ok();
        let limits: Vec<_> = names.limits.iter().filter_map(|name| open(name)).collect();
        if limits.is_empty() {
            return None; // As in the root group of version 2.
        }
        Some(Self {
            path: path.to_owned(),
            limits,
            usage: open(names.usage)?,
            stat: open("memory.stat"),
            names,
        })
    }

    /// Returns the least of the group's limits. A group without one has `max`, or a number above
    /// any machine's memory.
    fn limit(&self, buffer: &mut [u8]) -> Option<u64> {
        let limits = self.limits.iter();
        limits.filter_map(|file| number(read(file, buffer)?)).min()
    }

    /// Returns what the kernel cannot drop of the group's memory.
    fn used(&self, buffer: &mut [u8]) -> Option<u64> {
        let usage = number(read(&self.usage, buffer)?)?;
        let stat = self.stat.as_ref().and_then(|file| read(file, buffer));
        let line = |name| stat.and_then(|text| value_of(text, name)).unwrap_or(0);
        let droppable = line(self.names.droppable).saturating_sub(line(self.names.shared));
        Some(usage.saturating_sub(droppable))
    }
}

/// Returns the groups of a line of `/proc/self/cgroup` that have files: the process's own, and
/// those above it. A line has a number, the controllers, and the path of the group. Version 2 has
/// one hierarchy for all controllers, and names none.
fn groups_in(root: &Path, line: &str) -> Vec<Group> {
    let parts = line
        .split_once(':')
        .and_then(|(_, rest)| rest.split_once(':'));
    let Some((controllers, group)) = parts else {
        return Vec::new();
    };
    let names = if controllers.is_empty() {
        &V2
    } else if controllers.split(',').any(|name| name == "memory") {
        &V1
    } else {
        return Vec::new();
    };
    // A group outside of the mounted hierarchy is shown as `/../..`. Then the root of the hierarchy
    // is the group of this process.
    let parts = Path::new(group).components();
    let parts = parts.filter(|part| matches!(part, Component::Normal(_)));
    let group: PathBuf = parts.collect();
    let mounts = names.mounts.iter().map(|mount| root.join(mount));
    let groups = mounts.flat_map(|mount| {
        let own = mount.join(&group);
        let own_and_above = own.ancestors().take_while(|path| path.starts_with(&mount));
        own_and_above
            .filter_map(|path| Group::open(path, names))
            .collect::<Vec<_>>()
    });
    groups.collect()
}

#[cfg(test)]
pub(super) mod tests;
