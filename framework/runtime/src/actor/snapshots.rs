//! The snapshot policy of actors: an activation reads the end of its stream and not all of it.
//!
//! Called after each turn. A snapshot is a cache: a failure here changes no outcome, and the log is complete without
//! it.

use super::handler_table::ActorFacts;
use super::instance::ActorInstance;
use whizbang_core::telemetry::TARGET;
use whizbang_core::user_code::user_code;

/// The default number of turns between two snapshots. An activation reads at most that many turns, which takes about as
/// long as one flush of a disk, and the state is written once for that many. Akka recommends 100 to 1,000.
const DEFAULT_EVERY: u32 = 200;

/// A state of more bytes than this per turn since its last snapshot waits for more turns, unless the type gives a
/// number. The bytes written by snapshots therefore stay below this per turn, regardless of the size of the state.
const BYTES_PER_TURN: usize = 256;

/// Set in the schema of a snapshot whose type gives none; the other bits are derived from the shape of the state.
const SHAPE_SCHEMA_BIT: u32 = 1 << 31;

/// An activation of a type without snapshots that reads more turns is logged once.
const LONG_ACTIVATION: u64 = 10_000;

/// The snapshot setting of an actor type.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshots {
    /// No setting: snapshots are kept if the state can be encoded and decoded.
    IfCoded,
    /// No snapshots.
    Never,
    /// A snapshot after a number of turns.
    Given {
        /// The number of turns between two snapshots.
        every: u32,
        /// The schema; snapshots with another one are ignored.
        schema: u32,
    },
}

/// The snapshot policy of one actor type.
pub(crate) struct SnapshotPolicy {
    every: u64,
    /// True if a large state is saved less often.
    scales_with_size: bool,
    pub(super) schema: u32,
}

impl SnapshotPolicy {
    /// Returns the policy of the type; `None` if it keeps no snapshots. Runs the `Deserialize` of the state without a
    /// value.
    pub(super) fn of(actor: &ActorFacts) -> Option<Self> {
        if !actor.is_coded {
            return None;
        }
        match actor.snapshots {
            Snapshots::Never => None,
            Snapshots::Given { every, schema } => Some(Self { every: every.into(), scales_with_size: false, schema }),
            Snapshots::IfCoded => {
                // A snapshot of another shape is ignored, because the user has no number to raise. Without a traced
                // shape nothing would detect its change.
                let shape = user_code(actor.shape).ok().flatten()?;
                let schema = fnv1a(&shape.to_text()) | SHAPE_SCHEMA_BIT;
                Some(Self { every: DEFAULT_EVERY.into(), scales_with_size: true, schema })
            }
        }
    }
}

/// Returns a hash of a text that is the same in every build: FNV-1a.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl SnapshotPolicy {
    /// Returns the turn of the snapshot after one of `bytes` bytes at `turn`.
    pub(super) fn next(&self, turn: u64, bytes: usize) -> u64 {
        let paid_by = if self.scales_with_size { (bytes / BYTES_PER_TURN) as u64 } else { 0 };
        turn.saturating_add(self.every.max(paid_by))
    }
}

impl ActorInstance {
    /// Saves a snapshot if one is due. The turn is appended already.
    pub(super) fn save_due_snapshot(&mut self) {
        if self.state.turns < self.state.snapshot_due || !self.state.rare.fits_snapshot() {
            return;
        }
        let dispatcher = std::rc::Rc::clone(&self.dispatcher);
        let Some(policy) = &dispatcher.handlers.snapshots else { return };
        let bytes =
            match dispatcher.context.user_code.call(dispatcher.label, || self.state.save(self.user.user(), policy)) {
                Ok(Some(Ok(snapshot))) => {
                    let bytes = snapshot.bytes.len();
                    // The turn is appended, so its caller must get the reply even if the store panics.
                    match user_code(|| {
                        self.shard.writer.borrow_mut().save_snapshot(&dispatcher.actor, &self.key, snapshot);
                    }) {
                        Ok(()) if dispatcher.skips_snapshots.replace(false) => {
                            dispatcher.context.settings.issues.clear_note(&dispatcher.snapshots_name());
                            bytes
                        }
                        Ok(()) => bytes,
                        Err(panicked) => self.skip_snapshot(&panicked.to_string()),
                    }
                }
                Ok(None) => 0,
                Ok(Some(Err(error))) => self.skip_snapshot(&error.to_string()),
                Err(panicked) => self.skip_snapshot(&panicked.to_string()),
            };
        self.state.snapshot_due = policy.next(self.state.turns, bytes);
    }

    /// Counts a skipped snapshot. The first of the actor type is logged, and a health note remains until one is saved:
    /// each activation reads more of the log in between. Returns its size, 0 bytes.
    fn skip_snapshot(&self, error: &str) -> usize {
        let dispatcher = &self.dispatcher;
        dispatcher.context.counts.snapshots_skipped.one();
        if !dispatcher.skips_snapshots.replace(true) {
            let (actor, key) = (&dispatcher.actor, &self.key);
            tracing::error!(
                target: TARGET, %actor, %key, error,
                "snapshot skipped: the state cannot be saved; change its type, or declare `snapshot(never)`",
            );
            let reason = format!("{} are skipped: the state of `{key}` {error}", dispatcher.snapshots_name());
            dispatcher.context.settings.issues.note(&dispatcher.snapshots_name(), reason);
        }
        0
    }

    /// Logs a long activation that a snapshot would have shortened.
    pub(super) fn report_long_activation(&self) {
        let (dispatcher, turns) = (&self.dispatcher, self.state.turns);
        if turns > LONG_ACTIVATION
            && dispatcher.handlers.facts.snapshots == Snapshots::IfCoded
            && dispatcher.handlers.snapshots.is_none()
            && !dispatcher.skips_snapshots.replace(true)
        {
            let (actor, key) = (&dispatcher.actor, &self.key);
            tracing::warn!(
                target: TARGET, %actor, %key, turns,
                "long stream read to activate an actor: derive `Serialize` and `Deserialize` for the state, to keep snapshots",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(every: u64, adapts: bool) -> SnapshotPolicy {
        SnapshotPolicy { every, scales_with_size: adapts, schema: 1 }
    }

    #[test]
    fn large_states_are_saved_less_often_unless_every_is_given() {
        assert_eq!(policy(200, true).next(1_000, 200 * BYTES_PER_TURN), 1_200);
        assert_eq!(policy(200, true).next(1_000, 5_000 * BYTES_PER_TURN), 6_000);
        assert_eq!(policy(2, false).next(1_000, 5_000 * BYTES_PER_TURN), 1_002);
    }
}
