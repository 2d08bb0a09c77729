//! What a server used during an attack, and whether it keeps memory. Pure.

use serde::{Deserialize, Serialize};

/// Memory below which nothing is said, in bytes: what a server without attackers gains and loses.
const NOISE_BYTES: u64 = 2 << 20;
/// The part of the memory that attackers took which a server may keep.
const KEPT_SHARE: f64 = 0.1;
/// The part of the first round's growth that the second must reach. A leak grows about as much each
/// time, and what an allocator keeps by less and less.
const REPEATED_SHARE: f64 = 0.25;

/// What the processes of a server used during an attack. Measured for
/// [`Drill::child`](crate::Drill::child) on Linux.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerUsage {
    /// The resident memory before the attack, in bytes. Pages that processes share count for each.
    pub memory_before: u64,
    /// The most resident memory from its beginning on.
    pub memory_peak: u64,
    /// The resident memory after the attack, when honest clients were served again.
    pub memory_after: u64,
    /// The open files before the attack.
    pub files_before: u64,
    /// The most open files from its beginning on.
    pub files_peak: u64,
    /// The open files after it.
    pub files_after: u64,
    /// The processor time from its beginning until the end of recovery, in seconds.
    pub cpu_seconds: f64,
}

impl ServerUsage {
    /// Returns the bytes that the attack took and that were not given back.
    fn left(&self) -> u64 {
        self.memory_after.saturating_sub(self.memory_before)
    }

    /// Returns whether more is left than a server may keep.
    pub(crate) fn has_grown(&self) -> bool {
        let took = self.memory_peak.saturating_sub(self.memory_before);
        self.left() > NOISE_BYTES.max((KEPT_SHARE * took as f64) as u64)
    }

    /// Returns why memory is *kept*, where `self` and then `second` are two rounds of one attack:
    /// allocators keep freed heap, which a second round uses again.
    pub(crate) fn keeps_memory(&self, second: &Self) -> Option<String> {
        let (first_left, second_left) = (self.left(), second.left());
        let is_repeated = second_left as f64 >= REPEATED_SHARE * first_left as f64;
        let kept = self.has_grown() && second.has_grown() && is_repeated;
        kept.then(|| {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            format!(
                "each of two rounds leaves memory behind, {:.1} and {:.1} MiB",
                mib(first_left),
                mib(second_left)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(before: u64, peak: u64, after: u64) -> ServerUsage {
        ServerUsage {
            memory_before: before << 20,
            memory_peak: peak << 20,
            memory_after: after << 20,
            ..ServerUsage::default()
        }
    }

    #[test]
    fn memory_that_a_second_round_uses_again_is_not_kept() {
        let first = usage(10, 110, 100);
        assert!(first.has_grown());
        assert_eq!(first.keeps_memory(&usage(100, 112, 101)), None);
        // The heap grows once more, by far less.
        assert_eq!(first.keeps_memory(&usage(100, 130, 120)), None);
    }

    #[test]
    fn memory_that_every_round_raises_is_kept() {
        let reason = usage(10, 60, 50).keeps_memory(&usage(50, 100, 90));
        let text = "each of two rounds leaves memory behind, 40.0 and 40.0 MiB";
        assert_eq!(reason.as_deref(), Some(text));
    }

    #[test]
    fn a_tenth_of_what_was_taken_and_a_little_are_no_growth() {
        assert!(!usage(10, 110, 20).has_grown());
        assert!(usage(10, 110, 21).has_grown());
        assert!(!usage(10, 12, 12).has_grown());
        assert!(!usage(10, 10, 9).has_grown());
    }
}
