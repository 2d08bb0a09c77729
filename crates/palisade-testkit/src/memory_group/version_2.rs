//! The files of version 2, kept for a group of version 1.

use super::{MemoryGroup, V2, line, unique_name};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

/// How often the numbers are copied.
const COPY_INTERVAL: Duration = Duration::from_millis(5);

/// A folder in place of `/` in which a [`MemoryGroup`] is of version 2. For a group of version 1 a
/// thread copies its numbers, and counts the buffers of TCP sockets as version 2 does. A group of
/// version 2 is itself, below `/`.
#[derive(Debug)]
pub struct Version2 {
    // They end before the folder is removed.
    copies: Option<Copies>,
    folder: Option<Folder>,
}

/// A folder that is removed when this is dropped.
#[derive(Debug)]
struct Folder(PathBuf);

/// The thread that copies.
#[derive(Debug)]
struct Copies {
    has_ended: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// The files of a group of version 1, and those of version 2 that follow from them. All stay open.
#[derive(Debug)]
struct Files {
    usage: File,
    tcp: File,
    stat: File,
    current: File,
    stat_2: File,
}

impl Version2 {
    /// Returns the files of `group` as version 2 has them.
    pub fn of(group: &MemoryGroup) -> io::Result<Self> {
        if *group.names == V2 {
            let (copies, folder) = (None, None);
            return Ok(Self { copies, folder });
        }
        let folder = Folder(std::env::temp_dir().join(unique_name()));
        let root = &folder.0;
        let group_2 = root.join("sys/fs/cgroup");
        fs::create_dir_all(root.join("proc/self"))?;
        fs::create_dir_all(&group_2)?;
        // In a container a process is in the root of what it sees.
        fs::write(root.join("proc/self/cgroup"), "0::/\n")?;
        fs::copy("/proc/meminfo", root.join("proc/meminfo"))?;
        fs::write(group_2.join("memory.max"), format!("{}\n", group.limit()?))?;
        fs::write(group_2.join("memory.high"), "max\n")?;
        let open = |name: &str| File::open(group.path.join(name));
        let create = |name: &str| File::create(group_2.join(name));
        let files = Files {
            usage: open("memory.usage_in_bytes")?,
            tcp: open("memory.kmem.tcp.usage_in_bytes")?,
            stat: open("memory.stat")?,
            current: create("memory.current")?,
            stat_2: create("memory.stat")?,
        };
        files.copy()?;
        let has_ended = Arc::new(AtomicBool::new(false));
        let ended = has_ended.clone();
        let thread = thread::Builder::new().spawn(move || {
            while !ended.load(Relaxed) && files.copy().is_ok() {
                thread::park_timeout(COPY_INTERVAL);
            }
        })?;
        let thread = Some(thread);
        Ok(Self {
            copies: Some(Copies { has_ended, thread }),
            folder: Some(folder),
        })
    }

    /// Returns the folder in place of `/`. [`Memory::below`](palisade_core::Memory::below) reads
    /// it.
    pub fn root(&self) -> &Path {
        self.folder
            .as_ref()
            .map_or(Path::new("/"), |folder| &folder.0)
    }

    /// Returns whether the numbers are copies of those of version 1.
    pub fn is_copied(&self) -> bool {
        self.copies.is_some()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.has_ended.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Files {
    /// Copies the present numbers. A reader may have the files open all the time, so they are
    /// written in place. All lines keep their length, so that a reader never finds a part of one.
    #[cfg(unix)]
    fn copy(&self) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let read = |file: &File| {
            let mut text = vec![0; 16 << 10];
            let length = file.read_at(&mut text, 0)?;
            text.truncate(length);
            String::from_utf8(text).map_err(io::Error::other)
        };
        let number = |file: &File| read(file)?.trim().parse::<u64>().map_err(io::Error::other);
        let (usage, tcp, stat) = (number(&self.usage)?, number(&self.tcp)?, read(&self.stat)?);
        let of = |name: &str| line(&stat, name).unwrap_or(0);
        let [anon, file, shmem] = ["total_rss", "total_cache", "total_shmem"].map(of);
        let lines = [
            ("anon", anon),
            ("file", file),
            ("kernel", usage.saturating_sub(anon).saturating_sub(file)),
            ("sock", tcp),
            ("shmem", shmem),
        ];
        let lines = lines.map(|(name, bytes)| format!("{name} {bytes:020}\n"));
        self.stat_2.write_all_at(lines.concat().as_bytes(), 0)?;
        let current = format!("{:020}\n", usage + tcp);
        self.current.write_all_at(current.as_bytes(), 0)
    }

    #[cfg(not(unix))]
    fn copy(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, unix))]
#[allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may panic, and say why it does nothing"
)]
mod tests {
    use super::*;
    use palisade_core::Memory;

    #[test]
    fn a_group_is_read_as_one_of_version_2() {
        const LIMIT: u64 = 64 << 20;
        let Some(group) = MemoryGroup::create(LIMIT) else {
            eprintln!("skipped: this process may not create control groups");
            return;
        };
        let version_2 = Version2::of(&group).unwrap();
        if version_2.is_copied() {
            let root = version_2.root().to_owned();
            let memory = Memory::below(&root);
            assert_eq!(memory.limit(), Some(LIMIT));
            assert!(memory.used().unwrap() < LIMIT);
            drop(version_2);
            assert!(!root.exists());
        }
    }
}
