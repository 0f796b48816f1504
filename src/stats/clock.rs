//! When a dump is written.

use std::time::{SystemTime, UNIX_EPOCH};

/// The last second of the year 9999. RFC 3339 has no later one.
const LAST_SECOND: u64 = 253_402_300_799;

/// The clock of a process. `SOURCE_DATE_EPOCH` in its environment replaces the time, so that equal counts give equal files:
/// <https://reproducible-builds.org/specs/source-date-epoch/>.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    fixed: Option<u64>,
}

impl Clock {
    /// Reads the environment, so it belongs on the caller's thread: the caller may change its environment later.
    pub fn from_env() -> Self {
        let Some(value) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Clock { fixed: None } };
        let fixed =
            value.to_str().and_then(|value| value.parse().ok()).filter(|&second| second <= LAST_SECOND);
        if fixed.is_none() {
            log::warn!("SOURCE_DATE_EPOCH is ignored: it is {value:?}; seconds since 1970 expected");
        }
        Clock { fixed }
    }

    /// The time as RFC 3339 has it, in UTC: `2026-11-29T01:35:58Z`.
    pub fn now(self) -> String {
        let since_epoch = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        rfc3339(self.fixed.unwrap_or_else(since_epoch).min(LAST_SECOND))
    }
}

/// A time of the length that [`Clock::now`] returns.
pub(super) const ANY_TIME: &str = "1970-01-01T00:00:00Z";

fn rfc3339(second: u64) -> String {
    let (mut day, second) = (second / 86_400, second % 86_400);
    let mut year = 1970;
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for days in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times are those of `date -u -d @SECOND`.
    #[test]
    fn time_is_that_of_the_date_command() {
        for (second, time) in [
            (0, ANY_TIME),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (1_798_761_600, "2027-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (LAST_SECOND, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(second), time);
            assert_eq!(Clock { fixed: Some(second) }.now(), time);
        }
        assert_eq!(Clock { fixed: None }.now().len(), ANY_TIME.len());
    }
}
