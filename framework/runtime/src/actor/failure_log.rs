//! The log lines about messages that fail, limited: a caller can cause any number of them.
//!
//! Called by the [retries](super::retry), the [dead letters](super::dead_letters) and the workers of all threads of a node. A
//! background task of the node writes the summaries. The metrics count every failure.

use tokio::time::Instant;

use whizbang_core::clock::instant;
use whizbang_core::telemetry::LogLimit;

/// The number of lines of one kind in an interval. Each is about another message, and the caller of a failed command over the bridge
/// gets an id whose reason only the log has, so many lines are admitted.
const LINES: u32 = 100;

/// One limit for each kind of line. A flood of failing commands hides no line about a message of an actor.
#[derive(Debug)]
pub struct FailureLog {
    /// Failed deliveries of commands of external callers.
    command_deliveries: LogLimit,
    /// Commands of external callers that failed in their last delivery.
    commands: LogLimit,
    /// Failed deliveries of all other messages.
    deliveries: LogLimit,
    /// New dead letters.
    dead_letters: LogLimit,
}

impl Default for FailureLog {
    fn default() -> Self {
        Self {
            command_deliveries: LogLimit::new("delivery of a command failed", LINES),
            commands: LogLimit::new("command failed after its last attempt", LINES),
            deliveries: LogLimit::new("delivery failed", LINES),
            dead_letters: LogLimit::new("message dead-lettered", LINES),
        }
    }
}

impl FailureLog {
    /// Returns whether the line about a failed delivery is written. `outside`: the message is a command of an external caller.
    pub(crate) fn admits_delivery(&self, outside: bool) -> bool {
        let limit = if outside { &self.command_deliveries } else { &self.deliveries };
        limit.admits(instant())
    }

    /// Returns whether the line about a command of an external caller that has failed is written.
    pub(crate) fn admits_command(&self) -> bool {
        self.commands.admits(instant())
    }

    /// Returns whether the line about a new dead letter is written.
    pub(crate) fn admits_dead_letter(&self) -> bool {
        self.dead_letters.admits(instant())
    }

    /// Writes the summaries that are due.
    pub(crate) fn flush(&self, now: Instant) {
        let Self { command_deliveries, commands, deliveries, dead_letters } = self;
        for limit in [command_deliveries, commands, deliveries, dead_letters] {
            limit.flush(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whizbang_core::telemetry::LOG_INTERVAL;

    #[tokio::test(start_paused = true)]
    async fn flood_of_one_kind_hides_no_other_line() {
        let log = FailureLog::default();
        type Admits = fn(&FailureLog) -> bool;
        let kinds: [Admits; 4] = [
            |log| log.admits_delivery(true),
            FailureLog::admits_command,
            |log| log.admits_delivery(false),
            FailureLog::admits_dead_letter,
        ];
        let admitted = |kind: &Admits| (0..LINES + 7).filter(|_| kind(&log)).count();
        assert_eq!(kinds.each_ref().map(admitted), [LINES as usize; 4]);
        tokio::time::advance(LOG_INTERVAL).await;
        log.flush(instant());
        assert_eq!(kinds.each_ref().map(admitted), [LINES as usize; 4], "a new interval");
    }
}
