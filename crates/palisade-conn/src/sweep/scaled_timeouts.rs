//! Timeouts scaled by pressure.

use crate::guard::limits::Limits;
use palisade_core::Pressure;
use std::borrow::Cow;

/// The pressure up to which timeouts keep their full length: see [`Pressure::scale`].
const MAX_PRESSURE_WITHOUT_EFFECT: f32 = 0.8;

// A timeout that is set below its minimum stays as it is.

/// The timeout of a request head at full pressure.
const MIN_HEAD_MILLIS: u64 = 3000;
/// The idle timeout at full pressure.
const MIN_IDLE_MILLIS: u64 = 2000;
/// The idle timeout of an upgraded connection at full pressure.
const MIN_UPGRADED_IDLE_MILLIS: u64 = 60_000;
/// The write timeout at full pressure.
const MIN_WRITE_STALL_MILLIS: u64 = 10_000;

/// Returns the pressure that `open` connections make: 0 where eviction begins, 1 at the cap.
pub(crate) fn connection_pressure(limits: &Limits, open: usize) -> f32 {
    let (soft, max) = (limits.soft(), limits.max_open(false));
    let above = open.saturating_sub(soft) as f32;
    (above / max.saturating_sub(soft).max(1) as f32).min(1.0)
}

/// Returns the limits that apply under a pressure of 0 to 1.
pub(crate) fn under_pressure(limits: &Limits, pressure: f32) -> Cow<'_, Limits> {
    if pressure <= MAX_PRESSURE_WITHOUT_EFFECT {
        return Cow::Borrowed(limits);
    }
    let shrink = |millis, min| scale(millis, min, pressure);
    Cow::Owned(Limits {
        first_request: shrink(limits.first_request, MIN_HEAD_MILLIS),
        head: shrink(limits.head, MIN_HEAD_MILLIS),
        idle: shrink(limits.idle, MIN_IDLE_MILLIS),
        upgraded_idle: shrink(limits.upgraded_idle, MIN_UPGRADED_IDLE_MILLIS),
        write_stall: shrink(limits.write_stall, MIN_WRITE_STALL_MILLIS),
        ..limits.clone()
    })
}

/// Returns `millis` scaled by the pressure, down to `min` at full pressure.
fn scale(millis: u64, min: u64, pressure: f32) -> u64 {
    Pressure::scale(pressure, millis, min.min(millis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConnGuard;

    #[test]
    fn a_timeout_is_constant_then_shrinks_linearly_to_its_minimum() {
        let idle = |pressure| scale(65_000, 2000, pressure);
        let points = [0.0, 0.5, 0.8, 0.85, 0.9, 0.95, 1.0].map(idle);
        assert_eq!(
            points,
            [65_000, 65_000, 65_000, 49_250, 33_500, 17_750, 2000]
        );
        // A timeout below its minimum is not made longer.
        assert_eq!(
            [0.0, 0.9, 1.0].map(|pressure| scale(500, 2000, pressure)),
            [500; 3]
        );
        // Other values that the application may supply do no harm.
        assert_eq!(
            [f32::NAN, -1.0, f32::INFINITY].map(idle),
            [65_000, 65_000, 2000]
        );
        assert_eq!(scale(u64::MAX, 2000, 0.0), u64::MAX);
    }

    #[test]
    fn each_timeout_has_its_own_minimum() {
        let guard = ConnGuard::default();
        let times = |pressure| {
            let limits = under_pressure(&guard.shared().limits, pressure);
            let Limits {
                first_request,
                head,
                idle,
                upgraded_idle,
                write_stall,
                ..
            } = *limits;
            [first_request, head, idle, upgraded_idle, write_stall]
        };
        assert_eq!(times(0.8), [10_000, 10_000, 65_000, 300_000, 300_000]);
        assert_eq!(times(0.9), [6500, 6500, 33_500, 180_000, 155_000]);
        assert_eq!(times(1.0), [3000, 3000, 2000, 60_000, 10_000]);
    }

    #[test]
    fn connections_make_pressure_from_where_eviction_begins() {
        let pressure = |max, open| {
            let guard = ConnGuard::builder().max_connections(max).build().unwrap();
            connection_pressure(&guard.shared().limits, open)
        };
        assert_eq!(
            [0, 900, 950, 1000, 1100].map(|open| pressure(1000, open)),
            [0.0, 0.0, 0.5, 1.0, 1.0]
        );
        assert_eq!([pressure(1, 0), pressure(1, 1)], [0.0, 1.0]);
    }
}
