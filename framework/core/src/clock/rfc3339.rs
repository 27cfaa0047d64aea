//! Instants as RFC 3339 text, the time format of CloudEvents.
//!
//! Called by the header codec of `wire` and by the expiry of messages. Written in UTC with milliseconds; read with any offset
//! and any number of fraction digits.

use super::Timestamp;

/// The last instant with a four-digit year: 9999-12-31T23:59:59.999Z.
pub const MAX: Timestamp = Timestamp::from_millis(253_402_300_799_999);

/// Milliseconds in a day.
const DAY: u64 = 86_400_000;

/// Formats an instant. A later one than [`MAX`] is written as `MAX`.
pub fn write(instant: Timestamp) -> String {
    let millis = instant.as_millis().min(MAX.as_millis());
    let (year, month, day) = date(millis / DAY);
    let rest = millis % DAY;
    let (hour, minute, second) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", rest % 1000)
}

/// Parses an instant; `None` if the text is invalid. An instant before 1970 is read as 1970.
pub fn read(text: &str) -> Option<Timestamp> {
    let mut at = Cursor(text.as_bytes());
    let year = at.number(4)?;
    at.one_of(b"-")?;
    let month = at.number(2)?;
    at.one_of(b"-")?;
    let day = at.number(2)?;
    at.one_of(b"Tt ")?;
    let hour = at.number(2)?;
    at.one_of(b":")?;
    let minute = at.number(2)?;
    at.one_of(b":")?;
    let second = at.number(2)?;
    // A leap second reads as the first instant of the next minute.
    if day == 0 || day > days_in(year, month)? || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let millis = at.fraction()?;
    let offset = match at.one_of(b"Zz+-")? {
        b'+' => i64::from(at.offset()?),
        b'-' => -i64::from(at.offset()?),
        _ => 0,
    };
    if !at.0.is_empty() {
        return None;
    }
    let of_day = i64::from(((hour * 60 + minute) * 60 + second) * 1000 + millis);
    let total = day_number(year, month, day) * 86_400_000 + of_day - offset * 60_000;
    Some(Timestamp::from_millis(u64::try_from(total).unwrap_or(0)))
}

/// The characters that are not read yet.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn one_of(&mut self, allowed: &[u8]) -> Option<u8> {
        self.next().filter(|byte| allowed.contains(byte))
    }

    /// Reads a number with exactly this many digits.
    fn number(&mut self, digits: u32) -> Option<u32> {
        (0..digits).try_fold(0, |sum, _| {
            let byte = self.next().filter(u8::is_ascii_digit)?;
            Some(sum * 10 + u32::from(byte - b'0'))
        })
    }

    /// Reads the fraction digits, if any, as whole milliseconds.
    fn fraction(&mut self) -> Option<u32> {
        if self.0.first() != Some(&b'.') {
            return Some(0);
        }
        self.next();
        let (mut millis, mut weight, mut digits) = (0, 100, 0);
        while let Some(byte) = self.0.first().filter(|byte| byte.is_ascii_digit()) {
            millis += u32::from(byte - b'0') * weight;
            weight /= 10;
            digits += 1;
            self.next();
        }
        (digits > 0).then_some(millis)
    }

    /// Reads `hh:mm` as minutes.
    fn offset(&mut self) -> Option<u32> {
        let hours = self.number(2)?;
        self.one_of(b":")?;
        let minutes = self.number(2)?;
        (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
    }
}

fn is_leap_year(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// Returns the number of days of a month; `None` for a month that does not exist.
fn days_in(year: u32, month: u32) -> Option<u32> {
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => Some(31),
        4 | 6 | 9 | 11 => Some(30),
        2 if is_leap_year(year) => Some(29),
        2 => Some(28),
        _ => None,
    }
}

/// Returns the days since 1970-01-01. Counted from 1 March, so that the leap day is the last day of its year.
fn day_number(year: u32, month: u32, day: u32) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.wrapping_sub(1), month + 9) };
    // January and February of year 0 have no predecessor in u32; they are before 1970 and read as 1970 anyway.
    let year = if year == u32::MAX { 0 } else { i64::from(year) };
    let of_year = i64::from((153 * month + 2) / 5 + day) - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468
}

/// Returns the date of a day since 1970-01-01 (after Howard Hinnant's `civil_from_days`).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_instants_are_written_and_read() {
        for (text, millis) in [
            ("1970-01-01T00:00:00.000Z", 0),
            ("2000-02-29T23:59:59.999Z", 951_868_799_999),
            ("2026-11-21T07:02:21.005Z", 1_795_244_541_005),
            ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
        ] {
            assert_eq!(write(Timestamp::from_millis(millis)), text);
            assert_eq!(read(text), Some(Timestamp::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn offsets_fractions_and_early_times_are_read() {
        let noon = read("2026-11-21T12:00:00Z");
        assert!(noon.is_some());
        assert_eq!(read("2026-11-21t14:30:00+02:30"), noon);
        assert_eq!(read("2026-11-21 07:00:00.000000000-05:00"), noon);
        assert_eq!(read("2026-11-21T11:59:60Z"), noon);
        assert_eq!(read("0000-01-01T00:00:00Z"), Some(Timestamp::from_millis(0)));
        assert_eq!(read("1969-12-31T23:59:59.5Z"), Some(Timestamp::from_millis(0)));
    }

    #[test]
    fn invalid_instants_are_rejected() {
        for text in [
            "",
            "2026-11-21",
            "2026-11-21T12:00:00",
            "2026-13-21T12:00:00Z",
            "2026-02-29T12:00:00Z",
            "2026-11-00T12:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T12:00:00.Z",
            "2026-11-21T12:00:00Zz",
            "2026-11-21T12:00:00+25:00",
            "20261121T120000Z",
            "-026-11-21T12:00:00Z",
            "２026-11-21T12:00:00Z",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn instant_round_trips(millis in 0..=MAX.as_millis()) {
            let instant = Timestamp::from_millis(millis);
            prop_assert_eq!(read(&write(instant)), Some(instant));
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in "[0-9TZ:+. -]{0,32}") {
            let _ = read(&text);
        }
    }
}
