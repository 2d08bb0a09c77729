//! The memory of control groups, from the kernel's files.

use std::{
    fs::File,
    io,
    path::{Component, Path, PathBuf},
};

/// The length of the buffer for a file. `memory.stat` takes some 1.5 KiB.
const BUFFER_BYTES: usize = 16 * 1024;

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
    buffer: Box<[u8]>,
}

/// The files of one group.
#[derive(Debug)]
struct Group {
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
        let machine = File::open(root.join("proc/meminfo")).ok();
        Self {
            groups: groups.collect(),
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

    /// Returns the memory of the group that is nearest to its limit. Without a limited group,
    /// returns that of the process on the machine.
    pub(super) fn sample(&mut self) -> Option<Sample> {
        let Self {
            groups,
            process,
            machine,
            buffer,
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

/// Reads `file` from its beginning into `buffer`. What does not fit is left out.
fn read<'a>(file: &File, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut length = 0;
    while length < buffer.len() {
        match read_at(file, &mut buffer[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(&buffer[..length])
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(not(unix))]
fn read_at(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Returns the number that is all of `text`.
fn number(text: &[u8]) -> Option<u64> {
    str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

/// Returns the number in the line that begins with `name`.
fn value_of(text: &[u8], name: &str) -> Option<u64> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| line.strip_prefix(name.as_bytes()))
        .find(|rest| rest.first() == Some(&b' '))
        .and_then(number)
}

/// Returns the bytes in a line of `/proc` that counts kibibytes.
fn kibibytes(text: &[u8], name: &str) -> Option<u64> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let rest = lines.find_map(|line| line.strip_prefix(name.as_bytes()))?;
    number(rest.trim_ascii().strip_suffix(b"kB")?)?.checked_mul(1024)
}

#[cfg(test)]
mod tests;
