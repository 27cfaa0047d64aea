//! Fault injection for the loopback bridge, from a seed.
//!
//! Used by tests of recovery: a bridge may lose, repeat, reorder and delay messages, and a node must cope.

use std::time::Duration;

use whizbang_core::message::IdSource;
use whizbang_wire::loopback::LoopbackHub;

/// The rates of faults that a [`LoopbackHub`] injects, each a probability from 0 to 1 per message. The default injects none.
///
/// ```
/// use whizbang::bridge::loopback::LoopbackHub;
/// use whizbang::clock::Clock;
/// use whizbang::message::IdSource;
/// use whizbang::testing::LoopbackFaults;
///
/// let (hub, faults) = (LoopbackHub::new(), LoopbackFaults { drop: 0.1, ..LoopbackFaults::default() });
/// faults.inject(&hub, IdSource::seeded(Clock::system(), 7));
/// hub.deliver_all();
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoopbackFaults {
    /// The message is lost. A lost request never gets a response.
    pub drop: f64,
    /// The message is delivered twice.
    pub duplicate: f64,
    /// The message is delayed by up to `delay`, so that later messages overtake it.
    pub reorder: f64,
    /// The maximum delay of a message.
    pub delay: Duration,
}

impl Default for LoopbackFaults {
    fn default() -> Self {
        Self { drop: 0.0, duplicate: 0.0, reorder: 0.0, delay: Duration::from_millis(20) }
    }
}

impl LoopbackFaults {
    /// Injects the faults into all further messages of a hub, until [`LoopbackHub::deliver_all`] is called. `ids` is the source of
    /// randomness.
    pub fn inject(self, hub: &LoopbackHub, ids: IdSource) {
        let sampler = FaultSampler { faults: self, ids };
        hub.deliver_by(move || sampler.sample());
    }
}

/// Draws the fate of each message.
struct FaultSampler {
    /// The probabilities of each kind of fault.
    faults: LoopbackFaults,
    /// The source of all decisions. Two bridges with one seed and the same calls make the same decisions.
    ids: IdSource,
}

impl FaultSampler {
    /// Decides whether a fault of this probability occurs now.
    fn occurs(&self, probability: f64) -> bool {
        const SIDES: u64 = 1 << 32;
        // A probability outside 0..=1 saturates; NaN never occurs.
        self.ids.below(SIDES) < (probability * SIDES as f64) as u64
    }

    /// Returns the delay of each copy of the next message; an empty list means that the message is lost.
    fn sample(&self) -> Vec<Duration> {
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
