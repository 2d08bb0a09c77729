//! A control group with a quota of processor time. Version 1 only.

use crate::memory_group::{create, remove};
use std::{fs, io, path::PathBuf, time::Duration};

/// A group that is removed when this is dropped. The processes in it must have ended by then.
#[derive(Debug)]
pub struct CpuGroup(PathBuf);

impl CpuGroup {
    /// Creates a group that gets `time` of processor time in each `period`. `None` if this process
    /// may not create groups.
    pub fn create(time: Duration, period: Duration) -> Option<Self> {
        let group = Self(create("cpu")?);
        group.write("cpu.cfs_period_us", period.as_micros()).ok()?;
        group.write("cpu.cfs_quota_us", time.as_micros()).ok()?;
        Some(group)
    }

    /// Moves the process `id` into the group.
    pub fn add(&self, id: u32) -> io::Result<()> {
        self.write("cgroup.procs", id.into())
    }

    fn write(&self, file: &str, value: u128) -> io::Result<()> {
        fs::write(self.0.join(file), value.to_string())
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        remove(&self.0);
    }
}
