//! How short a resource is.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

/// How short a resource is: a shared value from 0 (plentiful) to 1 (used up).
///
/// A guard may [scale](Self::scale) its limits by it: above 0.8 the connection guard shortens its
/// timeouts, and the pace of bodies rises. All clones share one value. Defaults to 0, until
/// [`Self::set`] is called.
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

/// The pressure up to which limits keep their normal value.
const WITHOUT_EFFECT: f32 = 0.8;
/// The same in thousandths.
const THOUSANDTHS_WITHOUT_EFFECT: u64 = 800;
/// The highest pressure, in thousandths.
const FULL_THOUSANDTHS: u64 = 1000;

impl Pressure {
    /// Returns the present value, from 0 to 1.
    pub fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }

    /// Sets the value, clamped to the range from 0 to 1. NaN counts as 0.
    ///
    /// ```
    /// let pressure = palisade_core::Pressure::default();
    /// let of_a_guard = pressure.clone();
    /// pressure.set(1.5);
    /// assert_eq!(of_a_guard.get(), 1.0);
    /// ```
    pub fn set(&self, value: f32) {
        let value = if value.is_nan() {
            0.0
        } else {
            value.clamp(0.0, 1.0)
        };
        self.0.store(value.to_bits(), Relaxed);
    }

    /// Returns the value of a limit under `pressure`, by the one curve that all guards use:
    /// `normal` up to a pressure of 0.8, then linearly to `full` at 1.
    ///
    /// ```
    /// # use palisade_core::Pressure;
    /// let idle_seconds = |pressure| Pressure::scale(pressure, 60, 2);
    /// assert_eq!([0.0, 0.8, 0.9, 1.0].map(idle_seconds), [60, 60, 31, 2]);
    /// let bytes_per_second = |pressure| Pressure::scale(pressure, 500, 4000);
    /// assert_eq!([0.0, 0.8, 0.9, 1.0].map(bytes_per_second), [500, 500, 2250, 4000]);
    /// ```
    #[inline]
    pub fn scale(pressure: f32, normal: u64, full: u64) -> u64 {
        // Not `<=`, for NaN.
        if pressure > WITHOUT_EFFECT {
            scaled(pressure, normal, full)
        } else {
            normal
        }
    }
}

#[cold]
fn scaled(pressure: f32, normal: u64, full: u64) -> u64 {
    // Whole numbers make the curve exact.
    let thousandths = (pressure * FULL_THOUSANDTHS as f32).round() as u64;
    let above = thousandths.clamp(THOUSANDTHS_WITHOUT_EFFECT, FULL_THOUSANDTHS)
        - THOUSANDTHS_WITHOUT_EFFECT;
    let range = FULL_THOUSANDTHS - THOUSANDTHS_WITHOUT_EFFECT;
    let sum = u128::from(normal) * u128::from(range - above) + u128::from(full) * u128::from(above);
    // At most the larger of both, so that the cast keeps the value.
    (sum / u128::from(range)) as u64
}
