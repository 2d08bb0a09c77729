//! The gauges of the layer.

use palisade_core::{Gauge, GaugeSource, Guard, shed::LoadShedding};

/// What the layer reports of its sources.
#[derive(Clone, Debug)]
pub(crate) struct Gauges(pub(crate) LoadShedding);

impl GaugeSource for Gauges {
    fn guard(&self) -> Guard {
        Guard::LoadShed
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        self.0.sample(visit);
    }
}
