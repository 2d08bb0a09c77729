//! The gauges of a limiter.

use crate::Limiter;
use palisade_core::{Gauge, GaugeSource, Guard};
use palisade_guard::Occupancy;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The gauges of a limiter.
pub(crate) struct LimiterGauges {
    limiter: Arc<dyn Limiter>,
    evicted_before: u64,
    /// The last occupancy of a large table, and when it was read.
    cached: Mutex<Option<(Instant, Occupancy)>>,
}

/// How long the occupancy of a large table is cached: reading a table of a million keys takes two
/// milliseconds.
const OCCUPANCY_CACHE_TTL: Duration = Duration::from_secs(1);
/// The occupancy of a table with at least this capacity is cached.
const MIN_CACHED_CAPACITY_KEYS: u64 = 1 << 16;

impl LimiterGauges {
    pub(crate) fn new(limiter: Arc<dyn Limiter>, evicted_before: u64) -> Self {
        Self {
            limiter,
            evicted_before,
            cached: Mutex::new(None),
        }
    }

    fn occupancy(&self) -> Option<Occupancy> {
        let now = Instant::now();
        let mut cached = self.cached.lock();
        if let Some((read_at, occupancy)) = *cached
            && now.saturating_duration_since(read_at) < OCCUPANCY_CACHE_TTL
        {
            return Some(occupancy);
        }
        let occupancy = self.limiter.occupancy()?;
        if occupancy.capacity >= MIN_CACHED_CAPACITY_KEYS {
            *cached = Some((now, occupancy));
        }
        Some(occupancy)
    }
}

impl GaugeSource for LimiterGauges {
    fn guard(&self) -> Guard {
        Guard::RateLimit
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        if let Some(occupancy) = self.occupancy() {
            visit(Gauge::Keys, occupancy.keys);
            visit(Gauge::KeyCapacity, occupancy.capacity);
            let evicted = occupancy.evicted.saturating_sub(self.evicted_before);
            visit(Gauge::KeysEvicted, evicted);
        }
    }
}
