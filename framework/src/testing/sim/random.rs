//! Random numbers for the fakes of external services: they follow from the seed of the run and from a name.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::{Clock, Timestamp};
use crate::message::{IdSource, unkeyed_digest as digest};

/// A source of random numbers that follow from the seed of a run. Clones draw from the same source.
///
/// [`Sim::random`](super::Sim::random) makes one. The draws come in the order in which they are asked for. While a failing case
/// is made shorter fewer jobs may ask, and the same job gets other numbers; [`of`](Self::of) gives each subject numbers of its own, whatever
/// else is asked for.
#[derive(Clone)]
pub struct Random {
    seed: u64,
    source: Arc<Mutex<IdSource>>,
}

impl Random {
    pub(super) fn new(seed: u64, name: &str) -> Self {
        let seed = digest(name, &seed.to_le_bytes());
        let (clock, _) = Clock::manual(Timestamp::from_millis(0));
        Self { seed, source: Arc::new(Mutex::new(IdSource::seeded(clock, seed))) }
    }

    /// A number in `0..bound`; 0 if `bound` is 0.
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.source.lock().below(bound) }
    }

    /// Returns whether something happens whose chance is `per_mille` of 1,000.
    pub fn chance(&self, per_mille: u16) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    /// A source for one subject, for example the idempotency key of a job. It is the same in each run of a seed, in whatever order
    /// subjects come and however many there are.
    pub fn of(&self, subject: &str) -> Self {
        Self::new(self.seed, subject)
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Random").finish_non_exhaustive()
    }
}
