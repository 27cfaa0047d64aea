//! When the state of an actor is kept as a snapshot, so that an activation reads the end of its stream and not all of it.
//!
//! Called after each turn. A snapshot is a cache: whatever goes wrong here changes no outcome, and without it the log says
//! everything.

use super::handler_table::ActorFacts;
use super::instance::ActorInstance;
use crate::telemetry::TARGET;
use crate::user_code::user_code;

/// How many turns lie between two snapshots of a type that does not say it. An activation reads as many turns at most, which takes
/// about as long as one flush of a disk; the state is written once for as many turns. Akka recommends 100 to 1,000.
const EVERY: u32 = 200;

/// A state of more bytes than this for each turn since its last snapshot waits for more turns, unless the type says how many:
/// what snapshots write stays below this for each turn, whatever the size of the state.
const BYTES_PER_TURN: usize = 256;

/// The schema of a snapshot whose type gives none has this bit, and the others follow from the shape of the state.
const BY_SHAPE: u32 = 1 << 31;

/// An activation of a type without snapshots that reads more turns is reported once in the log.
const LONG: u64 = 10_000;

/// What an actor type says about snapshots of its state.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshots {
    /// Nothing: they are kept if the state can be written and read.
    IfCoded,
    /// They are not kept.
    Never,
    /// One is kept every so many turns.
    Given {
        /// After how many turns.
        every: u32,
        /// The schema; snapshots with another one are ignored.
        schema: u32,
    },
}

/// When and how snapshots of one actor type are kept.
pub(crate) struct SnapshotRule {
    every: u64,
    /// Whether a large state is kept less often.
    adapts: bool,
    pub(super) schema: u32,
}

impl SnapshotRule {
    /// The rule of the type; `None` if it keeps none. Runs the `Deserialize` of the state without a value.
    pub(super) fn of(actor: &ActorFacts) -> Option<Self> {
        if !actor.is_coded {
            return None;
        }
        match actor.snapshots {
            Snapshots::Never => None,
            Snapshots::Given { every, schema } => Some(Self { every: every.into(), adapts: false, schema }),
            Snapshots::IfCoded => {
                // A snapshot of another shape is ignored: nobody was asked to raise a number. If the shape cannot be traced,
                // nothing would notice its change.
                let shape = user_code(actor.shape).ok().flatten()?;
                let schema = number_of(&shape.to_text()) | BY_SHAPE;
                Some(Self { every: EVERY.into(), adapts: true, schema })
            }
        }
    }
}

/// A number of a text, the same in every build: FNV-1a.
fn number_of(text: &str) -> u32 {
    text.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl SnapshotRule {
    /// The turn of the snapshot behind one of `bytes` bytes at `turn`.
    pub(super) fn next(&self, turn: u64, bytes: usize) -> u64 {
        let paid_by = if self.adapts { (bytes / BYTES_PER_TURN) as u64 } else { 0 };
        turn.saturating_add(self.every.max(paid_by))
    }
}

impl ActorInstance {
    /// Keeps a snapshot if one is due. The turn is appended already.
    pub(super) fn save_due_snapshot(&mut self) {
        if self.state.turns < self.state.snapshot_due || !self.state.rest.fits_snapshot() {
            return;
        }
        let door = std::rc::Rc::clone(&self.dispatcher);
        let Some(rule) = &door.handlers.snapshots else { return };
        let bytes = match door.context.user_code.call(door.label, || self.state.save(self.user.user(), rule)) {
            Ok(Some(Ok(snapshot))) => {
                let bytes = snapshot.bytes.len();
                self.shard.writer.borrow_mut().save_snapshot(&door.actor, &self.key, snapshot);
                if door.skips_snapshots.replace(false) {
                    door.context.settings.issues.no_note(&door.snapshots_name());
                }
                bytes
            }
            Ok(None) => 0,
            Ok(Some(Err(error))) => self.skip_snapshot(&error.to_string()),
            Err(panicked) => self.skip_snapshot(&panicked.to_string()),
        };
        self.state.snapshot_due = rule.next(self.state.turns, bytes);
    }

    /// Counts a snapshot that is not kept. The first of the actor type is logged, and a note in the health says it until one
    /// is kept: each activation reads more of the log meanwhile. Returns that it has no bytes.
    fn skip_snapshot(&self, error: &str) -> usize {
        let door = &self.dispatcher;
        door.context.counts.snapshots_skipped.one();
        if !door.skips_snapshots.replace(true) {
            let (actor, key) = (&door.actor, &self.key);
            tracing::error!(
                target: TARGET, %actor, %key, error,
                "snapshot skipped: the state cannot be saved; change its type, or declare `snapshot(never)`",
            );
            let reason = format!("{} are skipped: the state of `{key}` {error}", door.snapshots_name());
            door.context.settings.issues.note(&door.snapshots_name(), reason);
        }
        0
    }

    /// Reports a long activation that a snapshot would have made short.
    pub(super) fn report_long_activation(&self) {
        let (door, turns) = (&self.dispatcher, self.state.turns);
        if turns > LONG
            && door.handlers.facts.snapshots == Snapshots::IfCoded
            && door.handlers.snapshots.is_none()
            && !door.skips_snapshots.replace(true)
        {
            let (actor, key) = (&door.actor, &self.key);
            tracing::warn!(
                target: TARGET, %actor, %key, turns,
                "an activation has read a long stream: derive `Serialize` and `Deserialize` for the state, so that snapshots are kept",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(every: u64, adapts: bool) -> SnapshotRule {
        SnapshotRule { every, adapts, schema: 1 }
    }

    #[test]
    fn large_states_are_kept_less_often_unless_a_number_is_given() {
        assert_eq!(rule(200, true).next(1_000, 200 * BYTES_PER_TURN), 1_200);
        assert_eq!(rule(200, true).next(1_000, 5_000 * BYTES_PER_TURN), 6_000);
        assert_eq!(rule(2, false).next(1_000, 5_000 * BYTES_PER_TURN), 1_002);
    }
}
