//! A [`Metrics`] sink that keeps every event.

use palisade_core::{
    Client, Event, Gauge, GaugeSource, Guard, Metrics, Mode, Network, Reason, Violation,
};
use parking_lot::Mutex;
use std::{
    net::IpAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Keeps every event, in order. Clones share the same records.
#[derive(Clone, Default)]
pub struct Journal(Arc<Records>);

#[derive(Default)]
struct Records {
    refused: Mutex<Vec<(Violation, Mode)>>,
    cut: Mutex<Vec<(Violation, Mode)>>,
    clients: Mutex<Vec<Option<IpAddr>>>,
    limits: Mutex<Vec<(Guard, u64)>>,
    disconnected: Mutex<Vec<(Violation, Mode)>>,
    opened: AtomicUsize,
    closed: Mutex<Vec<Option<Reason>>>,
    untracked: Mutex<Vec<usize>>,
    fleet: Mutex<Vec<bool>>,
    forwarded: Mutex<Vec<u32>>,
    bans: Mutex<Vec<(Network, Option<Reason>, Mode)>>,
    gauge_sources: Mutex<Vec<Weak<dyn GaugeSource>>>,
}

impl Journal {
    /// Returns the guard and reason of every refusal so far, including those in shadow mode.
    pub fn refused(&self) -> Vec<(Guard, Reason)> {
        self.0
            .refused
            .lock()
            .iter()
            .map(|(v, _)| (v.guard, v.reason))
            .collect()
    }

    /// Returns the violation and mode of every refusal so far.
    pub fn refusals(&self) -> Vec<(Violation, Mode)> {
        self.0.refused.lock().clone()
    }

    /// Returns the guard and reason of every cut body so far, including those in shadow mode.
    pub fn cut(&self) -> Vec<(Guard, Reason)> {
        self.0
            .cut
            .lock()
            .iter()
            .map(|(v, _)| (v.guard, v.reason))
            .collect()
    }

    /// Returns the violation and mode of every cut body so far.
    pub fn cuts(&self) -> Vec<(Violation, Mode)> {
        self.0.cut.lock().clone()
    }

    /// Returns the client that each refusal and cut so far has named.
    pub fn clients(&self) -> Vec<Option<IpAddr>> {
        self.0.clients.lock().clone()
    }

    /// Returns the violation and mode of every connection that a guard has closed or refused so
    /// far, including those in shadow mode.
    pub fn disconnected(&self) -> Vec<(Violation, Mode)> {
        self.0.disconnected.lock().clone()
    }

    /// Returns the number of connections admitted so far.
    pub fn opened(&self) -> usize {
        self.0.opened.load(Relaxed)
    }

    /// Returns the close reason of every closed connection; `None` if no guard closed it.
    pub fn closed(&self) -> Vec<Option<Reason>> {
        self.0.closed.lock().clone()
    }

    /// Returns the percentage of forwarded requests in each `Forwarded` event so far.
    pub fn forwarded(&self) -> Vec<u32> {
        self.0.forwarded.lock().clone()
    }

    /// Returns the network, the reason and the mode of every ban so far.
    pub fn bans(&self) -> Vec<(Network, Option<Reason>, Mode)> {
        self.0.bans.lock().clone()
    }

    /// Returns the number of untracked connections in each `Untracked` event so far.
    pub fn untracked(&self) -> Vec<usize> {
        self.0.untracked.lock().clone()
    }

    /// Returns whether a node counted alone, for each change of that so far.
    pub fn fleet(&self) -> Vec<bool> {
        self.0.fleet.lock().clone()
    }

    /// Returns every change of a limit so far.
    pub fn limits(&self) -> Vec<(Guard, u64)> {
        self.0.limits.lock().clone()
    }

    /// Returns the sum of `gauge` over all live instances of `guard`; `None` if no instance has it.
    pub fn gauge(&self, guard: Guard, gauge: Gauge) -> Option<u64> {
        let mut sum = None;
        for source in self.0.gauge_sources.lock().iter().filter_map(Weak::upgrade) {
            if source.guard() == guard {
                source.sample(&mut |sampled, value| {
                    if sampled == gauge {
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
                rejection,
                mode,
                client,
                ..
            } => {
                self.0.clients.lock().push(client.and_then(Client::address));
                self.0.refused.lock().push((*rejection.violation(), *mode));
            }
            Event::Cut {
                violation,
                mode,
                client,
                ..
            } => {
                self.0.clients.lock().push(client.and_then(Client::address));
                self.0.cut.lock().push((**violation, *mode));
            }
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
            Event::FleetChanged { is_alone, .. } => self.0.fleet.lock().push(*is_alone),
            Event::Banned {
                network,
                reason,
                mode,
                ..
            } => self.0.bans.lock().push((*network, *reason, *mode)),
            Event::Forwarded { percent, .. } => self.0.forwarded.lock().push(*percent),
            Event::Untracked { connections, .. } => {
                self.0.untracked.lock().push(*connections);
            }
            _ => {}
        }
    }

    fn register(&self, source: Weak<dyn GaugeSource>) {
        self.0.gauge_sources.lock().push(source);
    }
}
