//! The log of honest requests.

use crate::sample::{Kind, Outcome, Sample, Span};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Honest requests, and the lateness of the clock of their clients.
#[derive(Debug)]
pub(crate) struct Log {
    epoch: Instant,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    samples: Vec<Sample>,
    /// The start of the request of each kind that is under way.
    under_way: Vec<(Kind, Option<Duration>)>,
    /// When a client was late, and by how much.
    lateness: Vec<(Duration, Duration)>,
}

impl Log {
    /// Creates an empty log. Times are those since `epoch`.
    pub(crate) fn new(epoch: Instant, kinds: &[Kind]) -> Self {
        let under_way = kinds.iter().map(|kind| (*kind, None)).collect();
        let entries = Entries {
            under_way,
            ..Entries::default()
        };
        Self {
            epoch,
            entries: Mutex::new(entries),
        }
    }

    /// Returns the time since the epoch.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Records that a request of `kind` begins, `late` after its time.
    pub(super) fn begin(&self, kind: Kind, late: Duration) -> Duration {
        let now = self.now();
        let mut entries = self.entries();
        entries.lateness.push((now, late));
        for (other, start) in &mut entries.under_way {
            if *other == kind {
                *start = Some(now);
            }
        }
        now
    }

    /// Records that the clock of the clients is `late`.
    pub(super) fn tick(&self, late: Duration) {
        let now = self.now();
        self.entries().lateness.push((now, late));
    }

    /// Records the end of a request. It was under way until now.
    pub(super) fn end(&self, kind: Kind, start: Duration, outcome: Outcome) {
        let end = self.now();
        let mut entries = self.entries();
        for (other, start) in &mut entries.under_way {
            if *other == kind {
                *start = None;
            }
        }
        entries.samples.push(Sample {
            kind,
            start,
            end,
            outcome,
        });
    }

    /// Records a request whose outcome was not certain when it ended.
    pub(super) fn add(&self, sample: Sample) {
        self.entries().samples.push(sample);
    }

    /// Records that the client of `kind` waits for itself, and not for the server.
    pub(super) fn pause(&self, kind: Kind) {
        for (other, start) in &mut self.entries().under_way {
            if *other == kind {
                *start = None;
            }
        }
    }

    /// Records that all that `kind` was served since `from` was lost in the end.
    pub(super) fn spoil(&self, kind: Kind, from: Duration, outcome: Outcome) {
        for sample in &mut self.entries().samples {
            if sample.kind == kind && sample.start >= from {
                sample.outcome = outcome;
            }
        }
    }

    /// Returns the samples of `kind` that overlap `span`. A request under way is unfinished.
    pub(crate) fn samples(&self, kind: Kind, span: Span) -> Vec<Sample> {
        let now = self.now();
        let entries = self.entries();
        let overlaps = |sample: &&Sample| {
            sample.kind == kind && sample.end >= span.from && sample.start <= span.to
        };
        let mut samples: Vec<_> = entries.samples.iter().filter(overlaps).copied().collect();
        for (other, start) in &entries.under_way {
            if let Some(start) = *start
                && *other == kind
            {
                samples.push(Sample {
                    kind,
                    start,
                    end: now,
                    outcome: Outcome::Unfinished,
                });
            }
        }
        samples
    }

    /// Returns the largest lateness in `span`.
    pub(crate) fn lateness(&self, span: Span) -> Duration {
        let entries = self.entries();
        let within = entries.lateness.iter();
        let within = within.filter(|(at, _)| (span.from..=span.to).contains(at));
        within.map(|(_, late)| *late).max().unwrap_or_default()
    }

    /// Returns when `kind` was first served by a request that began at `from` or later.
    pub(crate) fn served_since(&self, kind: Kind, from: Duration) -> Option<Duration> {
        let entries = self.entries();
        let served = entries.samples.iter().filter(|sample| {
            sample.kind == kind && sample.outcome == Outcome::Served && sample.start >= from
        });
        served.map(|sample| sample.end).min()
    }

    /// Forgets all that ended before `until`.
    pub(crate) fn forget(&self, until: Duration) {
        let mut entries = self.entries();
        entries.samples.retain(|sample| sample.end >= until);
        entries.lateness.retain(|(at, _)| *at >= until);
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
