//! The minimum pace of a body.

use palisade_core::ConfigError;
use std::{fmt, time::Duration};

/// The minimum rate and the longest gap of a body while the other side is awaited.
///
/// The default is for all bodies that are not conversations: at least one byte every 15 s, and 500
/// bytes per second over any 10 s once 5 s have passed. Real uploads are faster than that: it is a
/// tenth of what the oldest mobile networks carry.
///
/// All times are waiting times: they advance only while the reader asks the body for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a pace does nothing until a layer takes it"]
pub struct Pace {
    pub(crate) gap: Option<Duration>,
    pub(crate) rate: Option<u64>,
    /// `None` is eight times the rate.
    pub(crate) full_pressure_rate: Option<u64>,
    pub(crate) window: Duration,
    pub(crate) grace: Duration,
    pub(crate) total: Option<Duration>,
}

/// Builds a [`Pace`]. Values are checked by [`build`](Self::build).
#[derive(Clone, Copy, Debug)]
#[must_use = "it is a pace only after `build`"]
pub struct PaceBuilder {
    pace: Pace,
}

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3600);
const MILLISECOND: Duration = Duration::from_millis(1);
const MAX_BYTES_PER_SECOND: u64 = 1 << 30;
/// The factor of the rate at full pressure.
const FULL_PRESSURE_FACTOR: u64 = 8;

// === Pace ===

impl Pace {
    const DEFAULT: Self = Self {
        gap: Some(Duration::from_secs(15)),
        rate: Some(500),
        full_pressure_rate: None,
        window: Duration::from_secs(10),
        grace: Duration::from_secs(5),
        total: None,
    };

    /// Returns a builder that starts with the default values.
    ///
    /// ```
    /// # use {palisade_slow_body::Pace, std::time::Duration};
    /// let pace = Pace::builder().rate(16 * 1024).gap(Duration::from_secs(5)).build()?;
    /// let error = Pace::builder().rate(0).gap(Duration::ZERO).build().unwrap_err();
    /// assert_eq!(error.faults().len(), 2);
    /// # Ok::<_, palisade_slow_body::ConfigError>(())
    /// ```
    pub const fn builder() -> PaceBuilder {
        PaceBuilder {
            pace: Self::DEFAULT,
        }
    }

    /// Returns a pace without limits.
    pub const fn off() -> Self {
        Self {
            gap: None,
            rate: None,
            total: None,
            ..Self::DEFAULT
        }
    }

    /// Returns a pace that requires at least one byte every `gap`, for clients that send only when
    /// they have a message. It does not stop a client that sends one byte within every gap forever.
    ///
    /// ```
    /// use palisade_slow_body::{Pace, SlowBodyLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = SlowBodyLayer::new().request(Pace::gap_only(30 * SECOND)?);
    /// // `upload(pieces, bytes, pause)`: so many pieces of so many bytes, a pause before each.
    /// assert_eq!(status(&layer, upload(100, 1, 29 * SECOND)).await, 200);
    /// assert_eq!(status(&layer, upload(100, 1, 31 * SECOND)).await, 408);
    ///
    /// let error = Pace::gap_only(Duration::ZERO).unwrap_err();
    /// let text = "the pace cannot be built:\n  gap is 0ns, allowed is 1 ms to 24 h";
    /// assert_eq!(error.to_string(), text);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If `gap` is not within 1 ms..=24 h.
    pub fn gap_only(gap: Duration) -> Result<Self, ConfigError> {
        Self::builder().gap(gap).rate(None).build()
    }

    /// Returns a pace that requires at least one byte every 60 s. It is the default for requests
    /// that claim to be gRPC over HTTP/2.
    ///
    /// ```
    /// use palisade_slow_body::{Pace, SlowBodyLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = SlowBodyLayer::new().request(Pace::conversation());
    /// // `upload(pieces, bytes, pause)`: so many pieces of so many bytes, a pause before each.
    /// assert_eq!(status(&layer, upload(100, 1, 59 * SECOND)).await, 200);
    /// assert_eq!(status(&layer, upload(100, 1, 61 * SECOND)).await, 408);
    /// # Ok(())
    /// # }
    /// ```
    pub const fn conversation() -> Self {
        Self {
            gap: Some(Duration::from_secs(60)),
            rate: None,
            ..Self::DEFAULT
        }
    }

    /// Returns the rate that is required at full pressure, if there is a rate.
    pub(crate) fn full_pressure_rate(&self) -> Option<u64> {
        let rate = self.rate?;
        let full = self.full_pressure_rate;
        Some(full.unwrap_or(rate.saturating_mul(FULL_PRESSURE_FACTOR)))
    }

    pub(crate) fn is_off(&self) -> bool {
        self.gap.is_none() && self.rate.is_none() && self.total.is_none()
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::DEFAULT
    }
}

// === PaceBuilder ===

impl PaceBuilder {
    /// Sets the longest wait for the next byte, 1 ms to 24 h. `None` removes the limit on a single
    /// wait, except for what the rate implies. Defaults to 15 s.
    ///
    /// ```
    /// use palisade_slow_body::{Pace, SlowBodyLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // `upload(pieces, bytes, pause)`: so many pieces of so many bytes, a pause before each.
    /// let silent = || upload(2, 100_000, 9 * SECOND);
    /// let layer = SlowBodyLayer::new();
    /// assert_eq!(status(&layer, silent()).await, 200);
    /// let layer = layer.request(Pace::builder().gap(5 * SECOND).build()?);
    /// assert_eq!(status(&layer, silent()).await, 408);
    /// # Ok(())
    /// # }
    /// ```
    pub fn gap(mut self, gap: impl Into<Option<Duration>>) -> Self {
        self.pace.gap = gap.into();
        self
    }

    /// Sets the minimum rate in bytes per second, 1 to 2^30. `None` removes it. Defaults to 500.
    ///
    /// ```
    /// use palisade_slow_body::{Pace, SlowBodyLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // `upload(pieces, bytes, pause)`: so many pieces of so many bytes, a pause before each.
    /// let slow = || upload(600, 1, SECOND);
    /// let layer = SlowBodyLayer::new();
    /// assert_eq!(status(&layer, slow()).await, 408);
    /// let layer = layer.request(Pace::builder().rate(None).build()?);
    /// assert_eq!(status(&layer, slow()).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn rate(mut self, bytes_per_second: impl Into<Option<u64>>) -> Self {
        self.pace.rate = bytes_per_second.into();
        self
    }

    /// Sets the rate that is required at full [pressure](crate::SlowBodyLayer::pressure), in bytes
    /// per second, from the rate to 2^33. Between a pressure of 0.8 and 1 the required rate rises
    /// to it linearly. Honest clients that are slower than this are cut under full pressure.
    /// Defaults to eight times the rate.
    ///
    /// ```
    /// # use palisade_testkit::example::*;
    /// use palisade_slow_body::{Pace, Pressure, SlowBodyLayer};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let pressure = Pressure::default();
    /// let pace = Pace::builder().rate(500).full_pressure_rate(1_000).build()?;
    /// let layer = SlowBodyLayer::new().request(pace).pressure(pressure.clone());
    /// pressure.set(1.0);
    /// // 60 pieces of 1,000 bytes, one each second; then the same of 800 bytes.
    /// assert_eq!(status(&layer, upload(60, 1_000, SECOND)).await, 200);
    /// assert_eq!(status(&layer, upload(60, 800, SECOND)).await, 408);
    /// # Ok(())
    /// # }
    /// ```
    pub fn full_pressure_rate(mut self, bytes_per_second: impl Into<Option<u64>>) -> Self {
        self.pace.full_pressure_rate = bytes_per_second.into();
        self
    }

    /// Sets the longest time for which bytes are credited towards the rate, 1 ms to 1 h. A client
    /// that sends more than required is credited with no more than this, so the window is also the
    /// longest silence that the rate allows. Defaults to 10 s.
    ///
    /// ```
    /// use palisade_slow_body::{Pace, SlowBodyLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // `upload(pieces, bytes, pause)`: so many pieces of so many bytes, a pause before each.
    /// let bursts = || upload(10, 100_000, 12 * SECOND);
    /// // 8,333 B/s, but a burst is credited with 10 s at most.
    /// assert_eq!(status(&SlowBodyLayer::new(), bursts()).await, 408);
    /// let layer = SlowBodyLayer::new().request(Pace::builder().window(14 * SECOND).build()?);
    /// assert_eq!(status(&layer, bursts()).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub const fn window(mut self, window: Duration) -> Self {
        self.pace.window = window;
        self
    }

    /// Sets the time at the start of a body in which the rate does not apply, 0 to 1 h. Defaults to
    /// 5 s.
    ///
    /// ```
    /// use palisade_slow_body::{Pace, SlowBodyLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // `upload(pieces, bytes, pause)`: so many pieces of so many bytes, a pause before each.
    /// let late = || upload(1, 100_000, 30 * SECOND);
    /// let pace = Pace::builder().gap(None);
    /// let layer = SlowBodyLayer::new().request(pace.build()?);
    /// assert_eq!(status(&layer, late()).await, 408); // After 5 s of grace and a window of 10 s.
    /// let layer = SlowBodyLayer::new().request(pace.grace(25 * SECOND).build()?);
    /// assert_eq!(status(&layer, late()).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub const fn grace(mut self, grace: Duration) -> Self {
        self.pace.grace = grace;
        self
    }

    /// Limits the sum of all waits for a body of known length: to `total`, 1 ms to 24 h, plus the
    /// time that the length takes at the rate, if there is a rate.
    ///
    /// A rate alone implies a total of grace plus window, see [the rules](crate#the-rules). Set a
    /// total for bodies without a rate, or for bodies that must arrive sooner. Defaults to none.
    ///
    /// ```
    /// use palisade_slow_body::{Pace, SlowBodyLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // A body that declares 10 bytes and sends one every 5 s.
    /// let slow = || upload(10, 1, 5 * SECOND).map(Pieces::declared);
    /// let pace = Pace::builder().rate(None);
    /// let layer = SlowBodyLayer::new().request(pace.build()?);
    /// assert_eq!(status(&layer, slow()).await, 200);
    /// let layer = SlowBodyLayer::new().request(pace.total(30 * SECOND).build()?);
    /// assert_eq!(status(&layer, slow()).await, 408);
    /// # Ok(())
    /// # }
    /// ```
    pub const fn total(mut self, total: Duration) -> Self {
        self.pace.total = Some(total);
        self
    }

    /// Builds the pace.
    ///
    /// ```
    /// use palisade_slow_body::Pace;
    /// use std::time::Duration;
    /// let pace = Pace::builder().rate(0).window(Duration::from_secs(7200));
    /// let text = "the pace cannot be built:
    ///   rate is 0, allowed is 1 to 1073741824 bytes per second
    ///   window is 7200s, allowed is 1 ms to 1 h";
    /// assert_eq!(pace.build().unwrap_err().to_string(), text);
    /// ```
    ///
    /// # Errors
    ///
    /// If a value is out of its range. The error names every such value.
    pub fn build(self) -> Result<Pace, ConfigError> {
        let Pace {
            gap,
            rate,
            full_pressure_rate,
            window,
            grace,
            total,
        } = self.pace;
        let mut error = ConfigError::new("the pace cannot be built");
        let mut check = |is_valid, field, value: &dyn fmt::Debug, allowed| {
            error.check(is_valid, field, value, allowed);
        };
        if let Some(gap) = gap {
            check(
                (MILLISECOND..=DAY).contains(&gap),
                "gap",
                &gap,
                "1 ms to 24 h",
            );
        }
        if let Some(rate) = rate {
            let is_valid = (1..=MAX_BYTES_PER_SECOND).contains(&rate);
            check(is_valid, "rate", &rate, "1 to 1073741824 bytes per second");
        }
        if let Some(full) = full_pressure_rate {
            let most = MAX_BYTES_PER_SECOND * FULL_PRESSURE_FACTOR;
            check(
                (rate.unwrap_or(1)..=most).contains(&full),
                "full_pressure_rate",
                &full,
                "the rate to 8589934592 bytes per second",
            );
        }
        check(
            (MILLISECOND..=HOUR).contains(&window),
            "window",
            &window,
            "1 ms to 1 h",
        );
        check(grace <= HOUR, "grace", &grace, "0 to 1 h");
        if let Some(total) = total {
            check(
                (MILLISECOND..=DAY).contains(&total),
                "total",
                &total,
                "1 ms to 24 h",
            );
        }
        error.into_result().map(|()| self.pace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_every_value_out_of_range() {
        let error = Pace::builder()
            .gap(Duration::ZERO)
            .rate(MAX_BYTES_PER_SECOND + 1)
            .full_pressure_rate(MAX_BYTES_PER_SECOND)
            .window(HOUR + MILLISECOND)
            .grace(Duration::MAX)
            .total(Duration::MAX)
            .build()
            .expect_err("all values are out of range");
        let fields: Vec<_> = error
            .faults()
            .iter()
            .map(|fault| fault.field.clone())
            .collect();
        assert_eq!(
            fields,
            [
                "gap",
                "rate",
                "full_pressure_rate",
                "window",
                "grace",
                "total"
            ]
        );
        let text = Pace::gap_only(Duration::ZERO)
            .expect_err("the gap is out of range")
            .to_string();
        assert_eq!(
            text,
            "the pace cannot be built:\n  gap is 0ns, allowed is 1 ms to 24 h"
        );
    }

    #[test]
    fn the_bounds_of_every_range_are_valid() {
        let least = Pace::builder().gap(MILLISECOND).rate(1).window(MILLISECOND);
        let _ = least
            .grace(Duration::ZERO)
            .total(MILLISECOND)
            .build()
            .expect("the pace is valid");
        let most = Pace::builder()
            .gap(DAY)
            .rate(MAX_BYTES_PER_SECOND)
            .window(HOUR)
            .grace(HOUR)
            .total(DAY);
        let _ = most.build().expect("the pace is valid");
    }
}
