//! Retry policy: how often, and after which waits, a failed delivery is restarting.

use std::time::Duration;

use crate::message::{Domain, Envelope, IdSource, Message};

/// Retry policy: number of deliveries before a message becomes a dead letter, and the waits in between.
///
/// ```
/// use std::time::Duration;
/// use whizbang::Retry;
///
/// let retry = Retry { attempts: 3, ..Retry::default() };
/// assert_eq!((retry.first, retry.longest), (Duration::from_millis(100), Duration::from_secs(30)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Total number of deliveries. Default 5; at least 1.
    pub attempts: u32,
    /// Wait after the first failure; doubles with each further one. Default 100 ms.
    pub first: Duration,
    /// Longest wait. Default 30 s.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 5, first: Duration::from_millis(100), longest: Duration::from_secs(30) }
    }
}

impl Retry {
    /// A single delivery without retries.
    pub const NEVER: Self = Self { attempts: 1, first: Duration::ZERO, longest: Duration::ZERO };

    /// Returns the number of deliveries that may end with a crash of the process before the message is not delivered
    /// again. At least two: with one, every message in flight would be blamed for the crash of one.
    pub fn crashes(&self) -> u32 {
        self.attempts.max(2)
    }

    /// Returns the wait after failed delivery `attempt` (from 1): exponential with "equal jitter" (half fixed, half
    /// random; Brooker, "Exponential Backoff And Jitter", 2015), so that keys that failed together are not retried
    /// together.
    pub fn wait(&self, attempt: u32, random: &IdSource) -> Duration {
        let doubled = self.first.saturating_mul(1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
        let full = doubled.min(self.longest);
        let half = full / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(random.below(nanos.saturating_add(1)))
    }
}

/// Retry policies of a node: a default, and overrides for some messages.
#[derive(Clone, Debug, Default)]
pub struct Retries {
    #[doc(hidden)]
    pub all: Retry,
    /// Overrides by domain and name. A node has few of them.
    some: Vec<(&'static str, &'static str, Retry)>,
}

impl From<Retry> for Retries {
    fn from(all: Retry) -> Self {
        Self { all, some: Vec::new() }
    }
}

impl Retries {
    /// Replaces the default.
    pub fn with_all(self, all: Retry) -> Self {
        Self { all, some: self.some }
    }

    /// Sets the override for a message type, replacing an earlier one.
    pub fn set<M: Message>(&mut self, retry: Retry) {
        self.some.retain(|(domain, name, _)| (*domain, *name) != (M::Domain::NAME, M::NAME));
        self.some.push((M::Domain::NAME, M::NAME, retry));
    }

    #[doc(hidden)]
    pub fn of(&self, envelope: &Envelope) -> Retry {
        let mut some = self.some.iter();
        let found = some.find(|(domain, name, _)| *domain == &*envelope.domain && *name == &*envelope.name);
        found.map_or(self.all, |(_, _, retry)| *retry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, Timestamp};

    #[test]
    fn waits_double_up_to_the_longest_and_are_spread() {
        let ids = IdSource::seeded(Clock::manual(Timestamp::from_millis(0)).0, 1);
        let retry = Retry { attempts: 9, first: Duration::from_millis(100), longest: Duration::from_secs(1) };
        for attempt in 1..40 {
            let full = Duration::from_millis(100 << (attempt - 1).min(10)).min(Duration::from_secs(1));
            let wait = retry.wait(attempt, &ids);
            assert!(wait >= full / 2 && wait <= full, "{attempt}: {wait:?}");
        }
        assert_ne!(retry.wait(3, &ids), retry.wait(3, &ids));
    }
}
