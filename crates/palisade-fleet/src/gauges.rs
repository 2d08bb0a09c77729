//! The gauges of a fleet.

use crate::{machine, shared::Shared};
use palisade_core::{Gauge, GaugeSource, Guard};
use std::sync::atomic::Ordering::Relaxed;

impl GaugeSource for Shared {
    fn guard(&self) -> Guard {
        Guard::RateLimit
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        let state = self.state.lock();
        let (counts, unreported) = (state.machine.counts(), state.machine.unreported());
        let is_alone = state.machine.state() != machine::State::Closed;
        let nodes = state.machine.nodes();
        drop(state);
        visit(Gauge::FleetAlone, is_alone.into());
        visit(Gauge::FleetNodes, nodes.into());
        visit(Gauge::FleetRoundTrip, self.round_trip.load(Relaxed));
        visit(Gauge::FleetUnreported, unreported);
        visit(Gauge::FleetClockSkew, self.skew.load(Relaxed));
        visit(Gauge::FleetCalls, counts.calls);
        visit(Gauge::FleetAccounts, counts.accounts);
        visit(Gauge::FleetFailures, counts.failures);
        visit(Gauge::FleetWaited, counts.waited);
        visit(Gauge::FleetWaitedInVain, counts.waited_in_vain);
        visit(Gauge::FleetWaitersFull, counts.not_waited);
        visit(Gauge::FleetLocalOnly, counts.local_only);
        visit(Gauge::FleetWouldRefuse, counts.would_deny);
        visit(Gauge::FleetWouldWait, counts.would_wait);
    }
}
