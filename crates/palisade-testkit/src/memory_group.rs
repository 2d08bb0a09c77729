//! A control group with a limit on memory, near that of this process.

pub mod version_2;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

/// A group that is removed when this is dropped. The processes in it must have ended by then.
#[derive(Debug)]
pub struct MemoryGroup {
    path: PathBuf,
    names: &'static Names,
}

/// What the files of a version are called.
#[derive(Debug, PartialEq, Eq)]
struct Names {
    limit: &'static str,
    usage: &'static str,
    peak: &'static str,
}

const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    peak: "memory.max_usage_in_bytes",
};
const V2: Names = Names {
    limit: "memory.max",
    usage: "memory.current",
    peak: "memory.peak",
};

impl MemoryGroup {
    /// Creates a group with a limit of so many bytes. `None` if this process may not create groups.
    ///
    /// Version 1 counts the buffers of TCP sockets apart, and only where they have a limit. Here it
    /// is one that is never reached.
    pub fn create(bytes: u64) -> Option<Self> {
        Self::create_v1(bytes).or_else(|| Self::create_v2(bytes))
    }

    fn create_v1(bytes: u64) -> Option<Self> {
        let path = create("memory")?;
        let group = Self { path, names: &V1 };
        group.write(V1.limit, bytes).ok()?;
        group
            .write("memory.kmem.tcp.limit_in_bytes", 16 * bytes)
            .ok()?;
        Some(group)
    }

    /// Creates it below the group of this process, or beside it: version 2 allows no groups with
    /// limits below one that has processes, but for its root.
    fn create_v2(bytes: u64) -> Option<Self> {
        let own = own_group("")?;
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let folders = mounts.into_iter().flat_map(|mount| {
            let own = mount.join(&own);
            let own_and_above = own.ancestors().take_while(|path| path.starts_with(mount));
            own_and_above.map(Path::to_owned).collect::<Vec<_>>()
        });
        let groups = folders.filter_map(|folder| {
            // It may be there already, or not be allowed.
            let _ = fs::write(folder.join("cgroup.subtree_control"), "+memory");
            let path = create_in(&folder)?;
            let group = Self { path, names: &V2 };
            group.peak().ok()?; // Linux 5.19 and later, where the controller is on.
            group.write(V2.limit, bytes).ok()?;
            // No swap, as in most containers. There may be no such file.
            let _ = group.write("memory.swap.max", 0);
            Some(group)
        });
        { groups }.next()
    }

    /// Returns the group's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the process `id` into the group.
    pub fn add(&self, id: u32) -> io::Result<()> {
        self.write("cgroup.procs", id.into())
    }

    /// Returns the limit of the group in bytes.
    pub fn limit(&self) -> io::Result<u64> {
        number(&self.path.join(self.names.limit))
    }

    /// Returns the most memory that the group had at once, in bytes. Version 2 counts the buffers
    /// of TCP sockets too.
    pub fn peak(&self) -> io::Result<u64> {
        number(&self.path.join(self.names.peak))
    }

    /// Returns what the buffers of TCP sockets have, in bytes.
    pub fn tcp(&self) -> io::Result<u64> {
        if *self.names == V1 {
            return number(&self.path.join("memory.kmem.tcp.usage_in_bytes"));
        }
        let stat = fs::read_to_string(self.path.join("memory.stat"))?;
        line(&stat, "sock").ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Returns what the group has with the buffers of TCP sockets, as version 2 counts, in bytes.
    pub fn with_tcp(&self) -> io::Result<u64> {
        let usage = number(&self.path.join(self.names.usage))?;
        Ok(if *self.names == V1 {
            usage + self.tcp()?
        } else {
            usage
        })
    }

    fn write(&self, file: &str, value: u64) -> io::Result<()> {
        fs::write(self.path.join(file), value.to_string())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn number(file: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    text.trim().parse().map_err(io::Error::other)
}

/// Returns the number in the line of `memory.stat` with this name.
fn line(stat: &str, name: &str) -> Option<u64> {
    let mut values = stat.lines().filter_map(|line| line.split_once(' '));
    values.find(|(found, _)| *found == name)?.1.parse().ok()
}

/// Returns the group of this process below the mount of `controller`, or of version 2 if that is
/// empty.
fn own_group(controller: &str) -> Option<PathBuf> {
    let lines = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = lines.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let is_own = parts.next()?.split(',').any(|name| name == controller);
        is_own.then(|| parts.next())?
    })?;
    Some(own.trim_start_matches('/').into())
}

/// Creates a group of `controller` of version 1 below that of this process.
pub(crate) fn create(controller: &str) -> Option<PathBuf> {
    let mount = Path::new("/sys/fs/cgroup").join(controller);
    create_in(&mount.join(own_group(controller)?))
}

fn create_in(folder: &Path) -> Option<PathBuf> {
    let path = folder.join(unique_name());
    fs::create_dir(&path).ok()?;
    Some(path)
}

/// Returns a name that no other process and no other call has.
fn unique_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Relaxed);
    format!("palisade-{}-{number}", std::process::id())
}

/// Removes a group whose processes have ended.
#[allow(
    clippy::disallowed_methods,
    reason = "a test ends, and waits for the kernel"
)]
pub(crate) fn remove(group: &Path) {
    // The kernel needs a moment after the last process of the group has ended.
    for _ in 0..1000 {
        if fs::remove_dir(group).is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
