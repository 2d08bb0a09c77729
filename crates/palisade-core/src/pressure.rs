//! How hard it is going.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

/// A shared value from 0 (at ease) to 1 (on the brink) that any guard may scale by. Clones share
/// it. Defaults to 0 for ever.
///
/// ```
/// let pressure = palisade_core::Pressure::default();
/// pressure.set(0.5);
/// assert_eq!(pressure.clone().get(), 0.5);
/// pressure.set(f32::NAN); // Nothing that is not a number gets in.
/// assert_eq!(pressure.get(), 0.0);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Pressure(Arc<AtomicU32>);

impl Pressure {
    /// The present value, within 0..=1.
    pub fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }

    /// Sets it, clamped to 0..=1; anything that is not a number counts as 0.
    pub fn set(&self, value: f32) {
        let value = if value.is_nan() {
            0.0
        } else {
            value.clamp(0.0, 1.0)
        };
        self.0.store(value.to_bits(), Relaxed);
    }
}
