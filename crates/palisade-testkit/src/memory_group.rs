//! A control group with a limit on memory, below that of this process. Version 1 only.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

/// A group that is removed when this is dropped. The processes in it must have ended by then.
#[derive(Debug)]
pub struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// Creates a group with a limit of so many bytes. `None` if this process may not create groups.
    ///
    /// Version 1 counts the buffers of TCP sockets apart, and only where they have a limit. Here it
    /// is one that is never reached.
    pub fn create(bytes: u64) -> Option<Self> {
        let group = Self(create("memory")?);
        group.write("memory.limit_in_bytes", bytes).ok()?;
        group
            .write("memory.kmem.tcp.limit_in_bytes", 16 * bytes)
            .ok()?;
        Some(group)
    }

    /// Returns the group's folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Moves the process `id` into the group.
    pub fn add(&self, id: u32) -> io::Result<()> {
        self.write("cgroup.procs", id.into())
    }

    /// Returns the most memory that the group had at once, in bytes.
    pub fn peak(&self) -> io::Result<u64> {
        number(&self.0.join("memory.max_usage_in_bytes"))
    }

    /// Returns what the buffers of TCP sockets have, in bytes.
    pub fn tcp(&self) -> io::Result<u64> {
        number(&self.0.join("memory.kmem.tcp.usage_in_bytes"))
    }

    /// Returns what the group has with the buffers of TCP sockets, as version 2 counts, in bytes.
    pub fn with_tcp(&self) -> io::Result<u64> {
        Ok(number(&self.0.join("memory.usage_in_bytes"))? + self.tcp()?)
    }

    fn write(&self, file: &str, value: u64) -> io::Result<()> {
        fs::write(self.0.join(file), value.to_string())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Returns what the group in this folder has in bytes, without the pages of files, and with the
/// buffers of TCP sockets. A process of the group can use it as
/// [`Memory::with_source`](palisade_core::Memory::with_source), to see what it would see with
/// version 2.
pub fn used_with_tcp(group: &Path) -> Option<u64> {
    let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
    let line = |name| {
        let value = stat.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().parse::<u64>().ok()
    };
    let files = line("total_cache ")?.saturating_sub(line("total_shmem ")?);
    let usage = number(&group.join("memory.usage_in_bytes")).ok()?;
    let tcp = number(&group.join("memory.kmem.tcp.usage_in_bytes")).ok()?;
    Some(usage.saturating_sub(files) + tcp)
}

fn number(file: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    text.trim().parse().map_err(io::Error::other)
}

/// Creates a group of `controller` below that of this process.
pub(crate) fn create(controller: &str) -> Option<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let lines = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = lines.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let is_own = parts.next()?.split(',').any(|name| name == controller);
        is_own.then(|| parts.next())?
    })?;
    let number = NUMBER.fetch_add(1, Relaxed);
    let name = format!("palisade-{}-{number}", std::process::id());
    let mount = Path::new("/sys/fs/cgroup").join(controller);
    let path = mount.join(own.trim_start_matches('/')).join(name);
    fs::create_dir(&path).ok()?;
    Some(path)
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
