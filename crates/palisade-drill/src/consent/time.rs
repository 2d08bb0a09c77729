//! Times as a line of consent has them, and the clock of the wall.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const SECONDS_A_DAY: u64 = 24 * 60 * 60;
/// The last second of the year 9999, which is the last that RFC 3339 can write.
const LAST: u64 = 253_402_300_799;

/// A second of UTC. Written as `2027-01-31T23:59:59Z` (RFC 3339), and read in this form alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Timestamp(u64);

/// The clock of the wall, which tests set.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    /// That of the system.
    #[default]
    System,
    /// A number of seconds since 1970.
    #[cfg(test)]
    Set(std::sync::Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    /// Returns the time since 1970 in UTC.
    pub(crate) fn now(&self) -> Duration {
        match self {
            // A clock before 1970 makes every end too far ahead, and no consent holds.
            Self::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            #[cfg(test)]
            Self::Set(seconds) => {
                Duration::from_secs(seconds.load(std::sync::atomic::Ordering::Relaxed))
            }
        }
    }
}

// === Timestamp ===

impl Timestamp {
    /// Returns the second that began at most a second before `time` since 1970; `None` after the
    /// year 9999.
    pub(super) fn new(time: Duration) -> Option<Self> {
        (time.as_secs() <= LAST).then_some(Self(time.as_secs()))
    }

    /// Returns the time since 1970.
    pub(super) fn since_epoch(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

/// Returns the days from 1970-01-01 to a date of the Gregorian calendar, for years from 1970 on.
/// Years begin in March here, so that a leap day is the last day of a year.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) = match month {
        1 | 2 => (year.checked_sub(1)?, month + 9),
        3..=12 => (year, month - 3),
        _ => return None,
    };
    let days = year * 365 + year / 4 - year / 100 + year / 400;
    // The days before 1970-01-01, counted in the same way from the March of the year 0.
    (days + (153 * month + 2) / 5 + day).checked_sub(719_469)
}

/// Returns the year, the month and the day, so many days after 1970-01-01.
fn date(days_since: u64) -> (u64, u64, u64) {
    let month_of = |year: u64| {
        (1..=12)
            .rev()
            .find(|month| begins(year, *month) <= days_since)
    };
    let begins_by = |year: &u64| begins(*year, 1) <= days_since;
    // No year is shorter than 365 days, and the estimate is at most a few years late.
    let estimate = 1970 + days_since / 365;
    let year = (1970..=estimate).rev().find(begins_by).unwrap_or(1970);
    let month = month_of(year).unwrap_or(1);
    (year, month, days_since - begins(year, month) + 1)
}

/// Returns the first day of a month.
fn begins(year: u64, month: u64) -> u64 {
    days(year, month, 1).unwrap_or(0)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date(self.0 / SECONDS_A_DAY);
        let seconds = self.0 % SECONDS_A_DAY;
        let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
        )
    }
}

/// A text that is no time of this form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoTime;

impl FromStr for Timestamp {
    type Err = NoTime;

    fn from_str(text: &str) -> Result<Self, NoTime> {
        let number = |from: usize, to: usize| {
            let digits = text.get(from..to).ok_or(NoTime)?;
            digits.parse::<u64>().map_err(|_| NoTime)
        };
        let days = days(number(0, 4)?, number(5, 7)?, number(8, 10)?).ok_or(NoTime)?;
        let seconds = number(11, 13)? * 3_600 + number(14, 16)? * 60 + number(17, 19)?;
        let time = Self(days * SECONDS_A_DAY + seconds);
        // Whatever else the text has, a 30th of February or a sign, it is not written like this.
        (time.to_string() == text).then_some(time).ok_or(NoTime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, proptest};

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (LAST, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(Timestamp(seconds).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp(seconds)));
        }
        assert_eq!(Timestamp::new(Duration::from_secs(LAST + 1)), None);
    }

    #[test]
    fn no_other_form_is_read() {
        for text in [
            "",
            "2026-12-01T10:00:00",
            "2026-12-01T10:00:00z",
            "2026-12-01t10:00:00Z",
            "2026-12-01 10:00:00Z",
            "2026-12-01T10:00:00+00:00",
            "2026-12-01T10:00:00.0Z",
            "2026-12-01T10:00:00Z ",
            "2026-02-29T10:00:00Z",
            "2100-02-29T10:00:00Z",
            "2026-13-01T10:00:00Z",
            "2026-00-01T10:00:00Z",
            "2026-12-00T10:00:00Z",
            "2026-12-32T10:00:00Z",
            "2026-12-01T24:00:00Z",
            "2026-12-01T10:60:00Z",
            "2026-12-01T10:00:60Z",
            "1969-12-31T23:59:59Z",
            "0000-01-01T00:00:00Z",
            "+026-12-01T10:00:00Z",
            "2026-+1-01T10:00:00Z",
            "2026-12-01T+1:00:00Z",
            "１９７０-12-01T10:00:00Z",
            "20é6-12-01T10:00:00Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(NoTime), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn what_is_written_is_read(seconds in 0..=LAST) {
            let text = Timestamp(seconds).to_string();
            assert_eq!(text.len(), 20);
            assert_eq!(text.parse(), Ok(Timestamp(seconds)));
        }

        #[test]
        fn order_is_that_of_the_text(one in 0..=LAST, other in 0..=LAST) {
            let texts = [one, other].map(|seconds| Timestamp(seconds).to_string());
            assert_eq!(one.cmp(&other), texts[0].cmp(&texts[1]));
        }

        #[test]
        fn no_text_panics(text in ".{0,24}") {
            if let Ok(time) = text.parse::<Timestamp>() {
                assert_eq!(time.to_string(), text);
            }
        }
    }
}
