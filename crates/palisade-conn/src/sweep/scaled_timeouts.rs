//! Timeouts scaled by pressure.

use crate::guard::limits::Limits;
use std::borrow::Cow;

/// Up to this pressure, in thousandths, nothing shrinks.
const MAX_PRESSURE_WITHOUT_EFFECT: u64 = 800;
const FULL_PRESSURE: u64 = 1000;

/// What is left of each at full pressure, in milliseconds, unless it is less by itself.
const MIN_HEAD_MILLIS: u64 = 3000;
const MIN_IDLE_MILLIS: u64 = 2000;
const MIN_UPGRADED_IDLE_MILLIS: u64 = 60_000;
const MIN_WRITE_STALL_MILLIS: u64 = 10_000;

/// How far `open` is between where displacement begins and where nobody gets in: 0 to 1.
pub(crate) fn pressure_of_connections(limits: &Limits, open: usize) -> f32 {
    let (soft, most) = (limits.soft(), limits.most(false));
    let above = open.saturating_sub(soft) as f32;
    (above / most.saturating_sub(soft).max(1) as f32).min(1.0)
}

/// The limits that hold under a pressure of 0 to 1.
pub(crate) fn under_pressure(limits: &Limits, pressure: f32) -> Cow<'_, Limits> {
    if thousandths(pressure) <= MAX_PRESSURE_WITHOUT_EFFECT {
        return Cow::Borrowed(limits);
    }
    let shrink = |time, least| shrunk(time, least, pressure);
    Cow::Owned(Limits {
        first_request: shrink(limits.first_request, MIN_HEAD_MILLIS),
        head: shrink(limits.head, MIN_HEAD_MILLIS),
        idle: shrink(limits.idle, MIN_IDLE_MILLIS),
        upgraded_idle: shrink(limits.upgraded_idle, MIN_UPGRADED_IDLE_MILLIS),
        write_stall: shrink(limits.write_stall, MIN_WRITE_STALL_MILLIS),
        ..limits.clone()
    })
}

/// All of `time` up to [`MAX_PRESSURE_WITHOUT_EFFECT`], from there on down in a straight line to `least` at full pressure.
fn shrunk(time: u64, least: u64, pressure: f32) -> u64 {
    let least = least.min(time);
    let left =
        FULL_PRESSURE - thousandths(pressure).clamp(MAX_PRESSURE_WITHOUT_EFFECT, FULL_PRESSURE);
    let part = u128::from(time - least) * u128::from(left)
        / u128::from(FULL_PRESSURE - MAX_PRESSURE_WITHOUT_EFFECT);
    least.saturating_add(u64::try_from(part).unwrap_or(u64::MAX))
}

/// Whole numbers, so that the curve is exact.
fn thousandths(pressure: f32) -> u64 {
    (pressure * FULL_PRESSURE as f32).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConnGuard;

    #[test]
    fn the_curve_is_flat_then_straight_and_ends_at_the_least() {
        let idle = |pressure| shrunk(65_000, 2000, pressure);
        let points = [0.0, 0.5, 0.8, 0.85, 0.9, 0.95, 1.0].map(idle);
        assert_eq!(
            points,
            [65_000, 65_000, 65_000, 49_250, 33_500, 17_750, 2000]
        );
        // What is short already is not made longer.
        assert_eq!(
            [0.0, 0.9, 1.0].map(|pressure| shrunk(500, 2000, pressure)),
            [500; 3]
        );
        // Nor does anything else that may be handed in do harm.
        assert_eq!(
            [f32::NAN, -1.0, f32::INFINITY].map(idle),
            [65_000, 65_000, 2000]
        );
        assert_eq!(shrunk(u64::MAX, 2000, 0.0), u64::MAX);
    }

    #[test]
    fn each_deadline_has_its_own_least() {
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
    fn connections_press_from_where_displacement_begins() {
        let of = |most, open| {
            let guard = ConnGuard::builder().max_connections(most).build().unwrap();
            pressure_of_connections(&guard.shared().limits, open)
        };
        assert_eq!(
            [0, 900, 950, 1000, 1100].map(|open| of(1000, open)),
            [0.0, 0.0, 0.5, 1.0, 1.0]
        );
        assert_eq!([of(1, 0), of(1, 1)], [0.0, 1.0]);
    }
}
