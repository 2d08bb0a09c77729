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
    pub fn create(bytes: u64) -> Option<Self> {
        let group = Self(create("memory")?);
        group.write("memory.limit_in_bytes", bytes).ok()?;
        Some(group)
    }

    /// Moves the process `id` into the group.
    pub fn add(&self, id: u32) -> io::Result<()> {
        self.write("cgroup.procs", id.into())
    }

    /// Returns the most memory that the group had at once, in bytes.
    pub fn peak(&self) -> io::Result<u64> {
        let text = fs::read_to_string(self.0.join("memory.max_usage_in_bytes"))?;
        text.trim().parse().map_err(io::Error::other)
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
