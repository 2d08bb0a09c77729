//! The gauges of lists and bans.

use crate::ban::Shared;
use palisade_core::{Gauge, GaugeSource, Guard, Networks};
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
        let mut list = |networks: Option<&Networks>, size, age| {
            if let Some(networks) = networks {
                visit(size, networks.len() as u64);
                visit(age, networks.age().as_secs());
            }
        };
        list(
            self.allow.as_ref(),
            Gauge::AllowedNetworks,
            Gauge::AllowedNetworksAge,
        );
        list(
            self.deny.as_ref(),
            Gauge::DeniedNetworks,
            Gauge::DeniedNetworksAge,
        );
    }
}
