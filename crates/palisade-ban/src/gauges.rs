//! The gauges of lists and bans.

use crate::ban::Shared;
use palisade_core::{Gauge, GaugeSource, Guard};
use std::sync::atomic::Ordering::Relaxed;

impl GaugeSource for Shared {
    fn guard(&self) -> Guard {
        Guard::Ban
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        let occupancy = self.accounts.occupancy();
        visit(Gauge::Keys, occupancy.keys);
        visit(Gauge::KeyCapacity, occupancy.capacity);
        visit(Gauge::KeysEvicted, occupancy.evicted);
        visit(Gauge::Bans, self.bans.load(Relaxed));
        let allow = (Gauge::AllowedNetworks, Gauge::AllowedNetworksAge);
        let deny = (Gauge::DeniedNetworks, Gauge::DeniedNetworksAge);
        for (networks, (size, age)) in [(&self.allow, allow), (&self.deny, deny)] {
            if let Some(networks) = networks {
                visit(size, networks.len() as u64);
                visit(age, networks.age().as_secs());
            }
        }
    }
}
