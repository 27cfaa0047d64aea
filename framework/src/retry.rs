//! How often, and after how long, a failed delivery is tried again.

use std::time::Duration;

use crate::message::{Domain, Envelope, IdSource, Message};

/// How often a message is delivered before it becomes a dead letter, and how long is waited between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Deliveries in all. Default 5; at least 1.
    pub attempts: u32,
    /// The wait after the first failure; it doubles with each. Default 100 ms.
    pub first: Duration,
    /// The longest wait. Default 30 s.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 5, first: Duration::from_millis(100), longest: Duration::from_secs(30) }
    }
}

impl Retry {
    /// No second delivery.
    pub const NEVER: Self = Self { attempts: 1, first: Duration::ZERO, longest: Duration::ZERO };

    /// How many deliveries may end with the process before the message is not delivered again: at least two, because with one
    /// several messages that were under way at once would be blamed for the crash of one.
    pub(crate) fn crashes(&self) -> u32 {
        self.attempts.max(2)
    }

    /// The wait after failed delivery `attempt` (from 1): exponential, with "equal jitter" (half fixed, half random; Brooker,
    /// "Exponential Backoff And Jitter", 2015) so that many keys that failed together do not come back together.
    pub fn wait(&self, attempt: u32, random: &IdSource) -> Duration {
        let doubled = self.first.saturating_mul(1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
        let full = doubled.min(self.longest);
        let half = full / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(random.below(nanos.saturating_add(1)))
    }
}

/// How the failed deliveries of a node are tried again: in one way for all, in ways of their own for some messages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retries {
    pub(crate) all: Retry,
    /// By domain and name. A node has few of them.
    some: Vec<(&'static str, &'static str, Retry)>,
}

impl From<Retry> for Retries {
    fn from(all: Retry) -> Self {
        Self { all, some: Vec::new() }
    }
}

impl Retries {
    /// The same with another way for all.
    pub(crate) fn with_all(self, all: Retry) -> Self {
        Self { all, some: self.some }
    }

    /// The last word on a message counts.
    pub(crate) fn set<M: Message>(&mut self, retry: Retry) {
        self.some.retain(|(domain, name, _)| (*domain, *name) != (M::Domain::NAME, M::NAME));
        self.some.push((M::Domain::NAME, M::NAME, retry));
    }

    pub(crate) fn of(&self, envelope: &Envelope) -> Retry {
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
