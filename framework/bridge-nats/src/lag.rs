//! The messages that wait at the server for the consumers of a node.
//!
//! The consumer loop learns of them with each delivery, and asks while a consumer receives nothing. The health of the bridge
//! reads their sum. Consumers that several nodes share count at each of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The lag from which on the health of the bridge has a note.
const LONG_LAG: u64 = 10_000;

/// The lag of all consumers.
#[derive(Clone, Debug, Default)]
pub(super) struct Lag(Arc<AtomicU64>);

impl Lag {
    /// Begins the lag of a consumer.
    pub(super) fn of_consumer(&self) -> ConsumerLag {
        ConsumerLag { all: self.clone(), messages: 0 }
    }

    /// Returns the number of messages that wait.
    pub(super) fn messages(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns the note for the health of the bridge if many messages wait.
    pub(super) fn note(&self) -> Option<String> {
        let messages = self.messages();
        (messages >= LONG_LAG).then(|| {
            format!(
                "{messages} messages wait at the broker: more arrive than this service handles, or it catches up after a stop; \
                 if `lag` does not fall, add nodes or look for slow handlers and workers"
            )
        })
    }
}

/// The lag of one consumer. It leaves the sum with the consumer.
#[derive(Debug)]
pub(super) struct ConsumerLag {
    all: Lag,
    messages: u64,
}

impl ConsumerLag {
    /// Records the number of messages that wait for the consumer, as the server has reported it.
    pub(super) fn set(&mut self, messages: u64) {
        // Wrapping: the sum is changed by the difference, which may be negative.
        self.all.0.fetch_add(messages.wrapping_sub(self.messages), Ordering::Relaxed);
        self.messages = messages;
    }
}

impl Drop for ConsumerLag {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_sum_over_the_consumers_that_exist() {
        let lag = Lag::default();
        let (mut first, mut second) = (lag.of_consumer(), lag.of_consumer());
        first.set(7);
        second.set(LONG_LAG);
        assert_eq!(lag.messages(), LONG_LAG + 7);
        assert!(lag.note().expect("a note").starts_with("10007 messages"));
        second.set(LONG_LAG - 8);
        assert_eq!((lag.messages(), lag.note()), (LONG_LAG - 1, None));
        first.set(8);
        assert!(lag.note().is_some(), "the note begins at the limit");
        drop(second);
        assert_eq!((lag.messages(), lag.note()), (8, None));
        first.set(0);
        assert_eq!(lag.messages(), 0);
    }
}
