//! What a courier may do to messages, done on purpose and from a seed.
//!
//! Used by tests of healing (feature `testing`): a bridge may lose, repeat, reorder and delay, so a node must bear it.

use std::time::Duration;

use crate::message::IdSource;

/// How often the loopback maltreats a message, each a probability from 0 to 1. The default is never.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoopbackFaults {
    /// It is lost. A question is lost with its answer.
    pub drop: f64,
    /// It comes twice.
    pub duplicate: f64,
    /// Messages sent after it overtake it: it is held back for up to `delay`.
    pub reorder: f64,
    /// The longest time a message is held back.
    pub delay: Duration,
}

impl Default for LoopbackFaults {
    fn default() -> Self {
        Self { drop: 0.0, duplicate: 0.0, reorder: 0.0, delay: Duration::from_millis(20) }
    }
}

/// Draws what happens to each message.
pub(super) struct FaultSampler {
    faults: LoopbackFaults,
    ids: IdSource,
}

impl FaultSampler {
    pub(super) fn new(faults: LoopbackFaults, ids: IdSource) -> Self {
        Self { faults, ids }
    }

    fn occurs(&self, probability: f64) -> bool {
        const SIDES: u64 = 1 << 32;
        // A probability outside 0..=1 saturates; not a number never happens.
        self.ids.below(SIDES) < (probability * SIDES as f64) as u64
    }

    /// How long each copy of the next message is held back; no copy means it is lost.
    pub(super) fn sample(&self) -> Vec<Duration> {
        if self.occurs(self.faults.drop) {
            return Vec::new();
        }
        let copies = 1 + usize::from(self.occurs(self.faults.duplicate));
        (0..copies)
            .map(|_| {
                if self.occurs(self.faults.reorder) {
                    let nanos = u64::try_from(self.faults.delay.as_nanos()).unwrap_or(u64::MAX);
                    Duration::from_nanos(self.ids.below(nanos.saturating_add(1)))
                } else {
                    Duration::ZERO
                }
            })
            .collect()
    }
}
