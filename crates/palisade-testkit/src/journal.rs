//! A [`Metrics`] that remembers.

use palisade_core::{Event, Gauge, GaugeSource, Guard, Metrics, Mode, Reason, Violation};
use parking_lot::Mutex;
use std::sync::{
    Arc, Weak,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Writes down every event, in order. Clones share the pages.
#[derive(Clone, Default)]
pub struct Journal(Arc<Pages>);

#[derive(Default)]
struct Pages {
    refused: Mutex<Vec<(Violation, Mode)>>,
    cut: Mutex<Vec<(Violation, Mode)>>,
    limits: Mutex<Vec<(Guard, u64)>>,
    disconnected: Mutex<Vec<(Violation, Mode)>>,
    opened: AtomicUsize,
    closed: Mutex<Vec<Option<Reason>>>,
    untracked: Mutex<Vec<usize>>,
    forwarded: Mutex<Vec<u32>>,
    levels: Mutex<Vec<Weak<dyn GaugeSource>>>,
}

impl Journal {
    /// Guard and reason of every refusal so far, shadowed ones too.
    pub fn refused(&self) -> Vec<(Guard, Reason)> {
        self.0
            .refused
            .lock()
            .iter()
            .map(|(v, _)| (v.guard, v.reason))
            .collect()
    }

    /// Every refusal so far in full.
    pub fn refusals(&self) -> Vec<(Violation, Mode)> {
        self.0.refused.lock().clone()
    }

    /// Guard and reason of every body cut so far, shadowed ones too.
    pub fn cut(&self) -> Vec<(Guard, Reason)> {
        self.0
            .cut
            .lock()
            .iter()
            .map(|(v, _)| (v.guard, v.reason))
            .collect()
    }

    /// Every cut so far in full.
    pub fn cuts(&self) -> Vec<(Violation, Mode)> {
        self.0.cut.lock().clone()
    }

    /// Every connection so far that a guard ended or did not let in, shadowed ones too.
    pub fn disconnected(&self) -> Vec<(Violation, Mode)> {
        self.0.disconnected.lock().clone()
    }

    /// How many connections were let in so far.
    pub fn opened(&self) -> usize {
        self.0.opened.load(Relaxed)
    }

    /// Why each connection that is gone was ended.
    pub fn closed(&self) -> Vec<Option<Reason>> {
        self.0.closed.lock().clone()
    }

    /// How many of a hundred requests were forwarded, each time that this was said.
    pub fn forwarded(&self) -> Vec<u32> {
        self.0.forwarded.lock().clone()
    }

    /// How many connections each word was about that nobody tells of their requests.
    pub fn untracked(&self) -> Vec<usize> {
        self.0.untracked.lock().clone()
    }

    /// Every change of a limit so far.
    pub fn limits(&self) -> Vec<(Guard, u64)> {
        self.0.limits.lock().clone()
    }

    /// The sum of `level` over all living instances of `guard`; `None` if none keeps it.
    pub fn level(&self, guard: Guard, level: Gauge) -> Option<u64> {
        let mut sum = None;
        for levels in self.0.levels.lock().iter().filter_map(Weak::upgrade) {
            if levels.guard() == guard {
                levels.sample(&mut |kept, value| {
                    if kept == level {
                        sum = Some(sum.unwrap_or(0) + value);
                    }
                });
            }
        }
        sum
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("refused", &*self.0.refused.lock())
            .field("cut", &*self.0.cut.lock())
            .field("disconnected", &*self.0.disconnected.lock())
            .finish_non_exhaustive()
    }
}

impl Metrics for Journal {
    fn record(&self, event: &Event<'_>) {
        match event {
            Event::Refused {
                rejection, mode, ..
            } => {
                self.0.refused.lock().push((*rejection.violation(), *mode));
            }
            Event::Cut {
                violation, mode, ..
            } => self.0.cut.lock().push((**violation, *mode)),
            Event::Opened { .. } => {
                self.0.opened.fetch_add(1, Relaxed);
            }
            Event::Closed { reason, .. } => self.0.closed.lock().push(*reason),
            Event::Disconnected {
                violation, mode, ..
            } => {
                self.0.disconnected.lock().push((**violation, *mode));
            }
            Event::LimitChanged { guard, limit, .. } => {
                self.0.limits.lock().push((*guard, *limit));
            }
            Event::Forwarded { percent, .. } => self.0.forwarded.lock().push(*percent),
            Event::Untracked { connections, .. } => {
                self.0.untracked.lock().push(*connections);
            }
            _ => {}
        }
    }

    fn register(&self, levels: Weak<dyn GaugeSource>) {
        self.0.levels.lock().push(levels);
    }
}
