//! What the kernel reports beside the memory in use. For metrics alone.

use super::files::{number, read, value_of};
use std::{fs::File, path::Path};

/// What the kernel reports of the control group of the process. `None` where it does not.
///
/// This is for metrics. No guard decides by it: without swap, the stall rises when nothing is left
/// to reclaim.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// The processes that the kernel has killed in the group because its memory was used up, since
    /// the group was made.
    pub oom_kills: Option<u64>,
    /// How often the group was at its limit, so that the kernel had to reclaim, since the group was
    /// made.
    pub limit_hits: Option<u64>,
    /// The percentage of the last 10 s in which a task waited for memory, 0 to 100: in the group,
    /// or on the machine where the group has no such number.
    pub stall_percent: Option<u64>,
}

/// The files of [`MemoryEvents`].
#[derive(Debug)]
pub(super) struct EventFiles {
    /// `memory.events` of version 2, `memory.oom_control` of version 1.
    events: Option<File>,
    /// `memory.failcnt` of version 1.
    failures: Option<File>,
    pressure: Option<File>,
}

impl EventFiles {
    /// Opens the files of the group at `path`, if the process belongs to one. `root` is `/` but in
    /// tests.
    pub(super) fn open(root: &Path, path: Option<&Path>) -> Self {
        let open = |name: &str| File::open(path?.join(name)).ok();
        let of_machine = || File::open(root.join("proc/pressure/memory")).ok();
        Self {
            events: open("memory.events").or_else(|| open("memory.oom_control")),
            failures: open("memory.failcnt"),
            pressure: open("memory.pressure").or_else(of_machine),
        }
    }

    pub(super) fn read(&self, buffer: &mut [u8]) -> MemoryEvents {
        let mut events = MemoryEvents::default();
        if let Some(text) = text(&self.events, buffer) {
            events.oom_kills = value_of(text, "oom_kill");
            // At `memory.max` and at `memory.high`.
            let hits = ["max", "high"].map(|name| value_of(text, name));
            events.limit_hits = hits.into_iter().flatten().reduce(u64::saturating_add);
        }
        if let Some(failures) = text(&self.failures, buffer).and_then(number) {
            events.limit_hits = Some(failures);
        }
        events.stall_percent = text(&self.pressure, buffer).and_then(stall_percent);
        events
    }
}

fn text<'a>(file: &Option<File>, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    read(file.as_ref()?, buffer)
}

/// Returns `avg10` of the line `some` of a file of pressure.
fn stall_percent(text: &[u8]) -> Option<u64> {
    let mut lines = str::from_utf8(text).ok()?.lines();
    let some = lines.find_map(|line| line.strip_prefix("some "))?;
    let average = some
        .split(' ')
        .find_map(|part| part.strip_prefix("avg10="))?;
    let percent: f32 = average.parse().ok()?;
    (0.0..=100.0)
        .contains(&percent)
        .then_some(percent.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stall_is_read_whatever_the_file_has() {
        let stall = |text: &str| stall_percent(text.as_bytes());
        let rest = "avg60=7.00 avg300=8.00 total=9\nfull avg10=99.00 avg60=9.00 total=1\n";
        assert_eq!(stall(&format!("some avg10=12.50 {rest}")), Some(13));
        assert_eq!(stall(&format!("some avg10=0.00 {rest}")), Some(0));
        assert_eq!(stall("some avg10=100.00"), Some(100));
        for text in [
            "",
            "\n",
            "some",
            "some ",
            "some avg10",
            "some avg10=",
            "some avg10=x",
            "some avg10=-1",
            "some avg10=100.01",
            "some avg10=nan",
            "some avg10=inf",
            "some avg10=1e9",
            "full avg10=1.00\n",
            "some avg60=1.00\n",
            "something avg10=1.00\n",
        ] {
            assert_eq!(stall(text), None, "{text:?}");
        }
        assert_eq!(stall_percent(b"some avg10=\xff"), None);
    }
}
