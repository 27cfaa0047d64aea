//! Random numbers for fakes of external services, derived from the seed of the run and a name.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use whizbang_core::clock::{Clock, Timestamp};
use whizbang_core::message::{IdSource, unkeyed_digest as digest};

/// A source of random numbers derived from the seed of a run. Clones draw from the same source.
///
/// Created by [`Sim::random`](super::Sim::random). Numbers follow the order of the calls. Shrinking removes calls, so the same job
/// may get other numbers; [`of`](Self::of) returns a source for one subject that does not depend on other calls.
#[derive(Clone)]
pub struct Random {
    /// The seed of this source, from that of the run and the name.
    seed: u64,
    /// The generator.
    source: Arc<Mutex<IdSource>>,
}

impl Random {
    /// Creates the source of a name. The same name gives the same numbers in a run, whatever else the run draws.
    pub(super) fn new(seed: u64, name: &str) -> Self {
        let seed = digest(name, &seed.to_le_bytes());
        let (clock, _) = Clock::manual(Timestamp::from_millis(0));
        Self { seed, source: Arc::new(Mutex::new(IdSource::seeded(clock, seed))) }
    }

    /// Returns a number in `0..bound`; 0 if `bound` is 0.
    ///
    /// Each call takes the next number of the source, also through a clone.
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.source.lock().below(bound) }
    }

    /// Returns true with a probability of `per_mille` / 1000.
    ///
    /// 0 is never, and 1000 or more is always.
    pub fn chance(&self, per_mille: u16) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    /// Returns a source for one subject, for example the idempotency key of a job. It depends only on the seed and the subjects,
    /// not on the order of calls.
    pub fn of(&self, subject: &str) -> Self {
        Self::new(self.seed, subject)
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Random").finish_non_exhaustive()
    }
}
