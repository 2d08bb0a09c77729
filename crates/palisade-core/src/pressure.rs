//! How short a resource is.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

/// How short a resource is: a shared value from 0 (plentiful) to 1 (used up).
///
/// A guard may scale its limits by it: the connection guard shortens its timeouts above 0.8. All
/// clones share one value. Defaults to 0, until [`Self::set`] is called.
///
/// ```
/// let pressure = palisade_core::Pressure::default();
/// pressure.set(0.5);
/// assert_eq!(pressure.clone().get(), 0.5);
/// pressure.set(f32::NAN); // NaN counts as 0.
/// assert_eq!(pressure.get(), 0.0);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Pressure(Arc<AtomicU32>);

impl Pressure {
    /// Returns the present value, from 0 to 1.
    pub fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }

    /// Sets the value, clamped to the range from 0 to 1. NaN counts as 0.
    pub fn set(&self, value: f32) {
        let value = if value.is_nan() {
            0.0
        } else {
            value.clamp(0.0, 1.0)
        };
        self.0.store(value.to_bits(), Relaxed);
    }
}
