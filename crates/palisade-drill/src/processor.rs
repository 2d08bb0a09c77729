//! The processor time that other processes took from a drill, as Linux reports it in `/proc`.

use crate::child::tree;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The part of the processor that other processes may take.
const MAX_OTHERS: f64 = 0.25;
/// The idle part from which nothing that they took was missed.
const ENOUGH_IDLE: f64 = 0.2;
/// The least time of which parts are known, in ticks: a quarter of a second of one core.
const LEAST_TICKS: u64 = 25;

/// How the processor was used in a round: the parts of the time of all cores on which the drill may
/// run.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Processor {
    /// The part that other processes than drill and server took, from 0 to 1.
    pub others: f64,
    /// The part that was idle, from 0 to 1.
    pub idle: f64,
}

impl Processor {
    /// Returns whether drill and server had to wait for other processes.
    pub(crate) fn is_crowded(&self) -> bool {
        self.others > MAX_OTHERS && self.idle < ENOUGH_IDLE
    }
}

/// What the system has counted since it began, in ticks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The cores that are counted.
    cores: Cores,
    /// The time of the processes of drill and server, by their pids.
    known: BTreeMap<u32, u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cores {
    /// Work of processes, and time that another virtual machine took.
    busy: u64,
    idle: u64,
    /// Interrupts. Those of the network are of no process, and mostly of the drill.
    interrupts: u64,
}

impl Reading {
    /// Reads the counters. `roots` are the first processes of the server, if it is not in this one.
    /// `None` if the system does not tell.
    pub(crate) fn take(roots: &[u32]) -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let cores = cores(&stat, is_allowed())?;
        let own = tree::member(std::process::id())?;
        let mut known = BTreeMap::from([(own.pid, own.ticks)]);
        for root in roots {
            let members = tree::members(*root);
            if members.is_empty() {
                return None;
            }
            known.extend(members.iter().map(|member| (member.pid, member.ticks)));
        }
        Some(Self { cores, known })
    }

    /// Returns how the processor was used from `before` on; `None` after too short a time.
    pub(crate) fn since(&self, before: &Self) -> Option<Processor> {
        let [busy, idle, interrupts] = [
            (self.cores.busy, before.cores.busy),
            (self.cores.idle, before.cores.idle),
            (self.cores.interrupts, before.cores.interrupts),
        ]
        .map(|(now, before)| now.saturating_sub(before));
        // All of a process that has begun meanwhile.
        let known = self.known.iter().map(|(pid, ticks)| {
            let before = before.known.get(pid).copied().unwrap_or_default();
            ticks.saturating_sub(before)
        });
        let others = busy.saturating_sub(known.sum());
        let all = busy.saturating_add(idle).saturating_add(interrupts);
        let part = |ticks: u64| (1_000.0 * ticks as f64 / all as f64).round() / 1_000.0;
        (all >= LEAST_TICKS).then(|| Processor {
            others: part(others),
            idle: part(idle),
        })
    }
}

/// Parses `/proc/stat`; `None` if it names none of the cores that are `allowed`.
fn cores(stat: &str, allowed: impl Fn(usize) -> bool) -> Option<Cores> {
    let mut cores = Cores::default();
    let mut count = 0;
    for line in stat.lines() {
        let mut fields = line.split_whitespace();
        let core = fields.next().and_then(|name| name.strip_prefix("cpu"));
        let Some(core) = core.and_then(|number| number.parse().ok()) else {
            continue;
        };
        let ticks: Vec<u64> = fields.map_while(|ticks| ticks.parse().ok()).collect();
        let [
            user,
            nice,
            system,
            idle,
            waiting,
            interrupts,
            soft,
            stolen,
            ..,
        ] = ticks[..]
        else {
            continue;
        };
        if allowed(core) {
            count += 1;
            cores.busy += user + nice + system + stolen;
            cores.idle += idle + waiting;
            cores.interrupts += interrupts + soft;
        }
    }
    (count > 0).then_some(cores)
}

/// Returns whether this process may run on a core.
#[cfg(target_os = "linux")]
fn is_allowed() -> impl Fn(usize) -> bool {
    let set = rustix::thread::sched_getaffinity(None).ok();
    move |core| {
        let is_within = core < rustix::thread::CpuSet::MAX_CPU;
        set.is_none_or(|set| is_within && set.is_set(core))
    }
}

#[cfg(not(target_os = "linux"))]
fn is_allowed() -> impl Fn(usize) -> bool {
    |_| true
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  99 99 99 99 99 99 99 99 0 0\n\
                        cpu0 100 1 50 800 9 3 4 5 0 0\n\
                        cpu1 200 0 0 700 0 0 0 0 77 88\n\
                        cpu2 9999 0 0 0 0 0 0 0 0 0\n\
                        cpu3 broken\n\
                        intr 5 6 7 8 9 10 11 12 13\n";

    #[test]
    fn the_cores_that_are_allowed_are_added_up() {
        let expected = Cores {
            busy: 356,
            idle: 1_509,
            interrupts: 7,
        };
        assert_eq!(cores(STAT, |core| core < 2), Some(expected));
        assert_eq!(cores(STAT, |core| core > 2), None);
        assert_eq!(cores("", |_| true), None);
    }

    fn reading(busy: u64, idle: u64, interrupts: u64, known: &[(u32, u64)]) -> Reading {
        Reading {
            cores: Cores {
                busy,
                idle,
                interrupts,
            },
            known: known.iter().copied().collect(),
        }
    }

    #[test]
    fn what_neither_drill_nor_server_used_is_of_others() {
        let before = reading(1_000, 1_000, 10, &[(1, 50), (2, 500)]);
        // Of 1,000 ticks the drill used 100, the server 150, and a process that it started 50.
        let after = reading(1_700, 1_200, 110, &[(1, 150), (2, 650), (3, 50)]);
        let processor = after.since(&before).unwrap();
        let expected = Processor {
            others: 0.4,
            idle: 0.2,
        };
        assert_eq!(processor, expected);
        assert_eq!(before.since(&before), None);
        // Counters that run behind each other are no time of others.
        let ahead = reading(1_100, 2_000, 10, &[(1, 950), (2, 500)]);
        assert_eq!(ahead.since(&before).unwrap().others, 0.0);
    }

    #[test]
    fn a_processor_with_an_idle_part_is_not_crowded_and_neither_is_one_that_the_drill_fills() {
        let is_crowded = |others, idle| Processor { others, idle }.is_crowded();
        assert!(is_crowded(0.5, 0.0) && is_crowded(0.26, 0.19));
        assert!(!is_crowded(0.5, 0.2));
        assert!(!is_crowded(0.25, 0.0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_busy_loop_of_this_process_is_not_of_others() {
        let before = Reading::take(&[]).unwrap();
        let own = |reading: &Reading| reading.known.values().sum::<u64>();
        loop {
            let now = Reading::take(&[]).unwrap();
            if own(&now) >= own(&before) + 20 {
                let busy = now.cores.busy - before.cores.busy;
                let others = busy.saturating_sub(20);
                let all = busy + now.cores.idle - before.cores.idle + now.cores.interrupts
                    - before.cores.interrupts;
                if let Some(processor) = now.since(&before) {
                    assert!(processor.others <= others as f64 / all as f64 + 0.001);
                }
                break;
            }
        }
        assert_eq!(Reading::take(&[u32::MAX]), None);
    }
}
