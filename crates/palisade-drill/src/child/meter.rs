//! Measures what a child process uses during a round.

use super::tree::{self, Usage};
use crate::{usage::ServerUsage, worker::Worker};
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// The time between two measurements.
const INTERVAL: Duration = Duration::from_millis(200);
/// The longest wait until a server has given back the memory of the attackers.
const MAX_SETTLE: Duration = Duration::from_secs(2);

/// What was measured.
#[derive(Debug)]
struct Seen {
    /// The most of each.
    peak: Usage,
    /// The memory, and when.
    memory: Vec<(Instant, u64)>,
}

/// Measures the processes of a server, in a thread of its own, until it is dropped.
#[derive(Debug)]
pub(crate) struct Meter {
    pid: u32,
    before: Usage,
    seen: Arc<Mutex<Seen>>,
    _worker: Worker<()>,
}

impl Meter {
    /// Returns whether this system tells what a process uses.
    pub(crate) fn is_known() -> bool {
        cfg!(target_os = "linux")
    }

    /// Starts to measure the process `pid` and its descendants; `None` if they cannot be measured.
    ///
    /// # Errors
    ///
    /// If the system has no more threads or files.
    pub(crate) fn start(pid: u32) -> io::Result<Option<Self>> {
        let Some(before) = tree::usage(pid) else {
            return Ok(None);
        };
        let seen = Arc::new(Mutex::new(Seen {
            peak: before,
            memory: vec![(Instant::now(), before.memory)],
        }));
        let shared = seen.clone();
        let worker = Worker::spawn("drill-meter", move || async move {
            loop {
                sleep(INTERVAL).await;
                if let Some(usage) = tree::usage(pid) {
                    let mut seen = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    let Seen { peak, memory } = &mut *seen;
                    peak.memory = peak.memory.max(usage.memory);
                    peak.files = peak.files.max(usage.files);
                    memory.push((Instant::now(), usage.memory));
                }
            }
        })?;
        Ok(Some(Self {
            pid,
            before,
            seen,
            _worker: worker,
        }))
    }

    /// Returns what was used, after the server had a while to give back what the attackers took;
    /// `None` if it has ended.
    pub(crate) async fn finish(&self) -> Option<ServerUsage> {
        let deadline = Instant::now() + MAX_SETTLE;
        loop {
            let now = tree::usage(self.pid)?;
            let peak = self.seen().peak;
            let usage = ServerUsage {
                memory_before: self.before.memory,
                memory_peak: peak.memory.max(now.memory),
                memory_after: now.memory,
                files_before: self.before.files,
                files_peak: peak.files.max(now.files),
                files_after: now.files,
                cpu_seconds: now.cpu.saturating_sub(self.before.cpu).as_secs_f64(),
            };
            if !usage.has_grown() || Instant::now() > deadline {
                return Some(usage);
            }
            sleep(INTERVAL).await;
        }
    }

    /// Returns the resident memory since the start, and when it was measured.
    pub(crate) fn memory(&self) -> Vec<(Instant, u64)> {
        self.seen().memory.clone()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
