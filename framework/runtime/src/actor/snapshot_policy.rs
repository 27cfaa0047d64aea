//! The snapshot policy of an actor type: how often its state is saved, and under which schema.
//!
//! Created once for each type, with its [handler table](super::handler_table). Asked by the [snapshots](super::snapshots) of each
//! actor after a turn.
//!
//! A snapshot saves the work of reading turns and costs the work of writing a state. Both are bounded: an activation reads at most
//! the turns between two snapshots, and a large state is written less often. A stored snapshot of another schema is ignored; the
//! actor is then loaded from its first turn, which is slow and never wrong.

use std::sync::Arc;

use whizbang_core::message::Shape;
use whizbang_core::user_code::user_code;

/// The default number of turns between two snapshots. An activation reads at most that many turns, which takes about as
/// long as one flush of a disk, and the state is written once for that many. Akka recommends 100 to 1,000.
const DEFAULT_EVERY: u32 = 200;

/// The bytes that snapshots may write per turn, unless the type gives a number of turns. So a state of 256 KB is saved
/// after 1,000 turns, not after 200.
const BYTES_PER_TURN: usize = 256;

/// Set in the schema of a snapshot whose type gives none; the other bits are derived from the shape of the state.
const SHAPE_SCHEMA_BIT: u32 = 1 << 31;

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
    /// The least number of turns between two snapshots.
    every: u64,
    /// True if a large state is saved less often.
    scales_with_size: bool,
    /// The number that a snapshot must have to be loaded.
    pub(super) schema: u32,
}

impl SnapshotPolicy {
    /// Returns the policy of the type; `None` if it keeps no snapshots.
    ///
    /// `shape` traces the shape of the state: it runs the user's `Deserialize` with made-up values. A panic in it means that the
    /// type keeps no snapshots.
    pub(super) fn of(setting: Snapshots, is_coded: bool, shape: fn() -> Option<Arc<Shape>>) -> Option<Self> {
        if !is_coded {
            return None;
        }
        match setting {
            Snapshots::Never => None,
            Snapshots::Given { every, schema } => Some(Self { every: every.into(), scales_with_size: false, schema }),
            Snapshots::IfCoded => {
                // A snapshot of another shape is ignored, because the user has no number to raise. Without a traced
                // shape nothing would detect its change.
                let shape = user_code(shape).ok().flatten()?;
                let schema = fnv1a(&shape.to_text()) | SHAPE_SCHEMA_BIT;
                Some(Self { every: DEFAULT_EVERY.into(), scales_with_size: true, schema })
            }
        }
    }

    /// Returns the number of the turn after which the next snapshot is due. The last one was taken after `turn` and has `bytes`
    /// bytes.
    pub(super) fn next(&self, turn: u64, bytes: usize) -> u64 {
        let least_for_size = if self.scales_with_size { (bytes / BYTES_PER_TURN) as u64 } else { 0 };
        turn.saturating_add(self.every.max(least_for_size))
    }
}

/// Returns a hash of a text that is the same in every build: FNV-1a.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use whizbang_core::message::Codec;

    fn policy(every: u64, adapts: bool) -> SnapshotPolicy {
        SnapshotPolicy { every, scales_with_size: adapts, schema: 1 }
    }

    #[test]
    fn large_states_are_saved_less_often_unless_every_is_given() {
        assert_eq!(policy(200, true).next(1_000, 200 * BYTES_PER_TURN), 1_200);
        assert_eq!(policy(200, true).next(1_000, 5_000 * BYTES_PER_TURN), 6_000);
        assert_eq!(policy(2, false).next(1_000, 5_000 * BYTES_PER_TURN), 1_002);
    }

    #[test]
    fn schema_of_a_shape_is_the_same_in_every_build() {
        // The published vectors of FNV-1a.
        assert_eq!(["", "a", "foobar"].map(fnv1a), [0x811C_9DC5, 0xE40C_292C, 0xBF9C_F968]);
        let shapes: [fn() -> Option<Arc<Shape>>; 4] = [
            || Some(Shape::of::<u64>(Codec::Bincode)),
            || Some(Shape::of::<String>(Codec::Bincode)),
            || Some(Shape::of::<Vec<u8>>(Codec::Bincode)),
            || Some(Shape::of::<bool>(Codec::Bincode)),
        ];
        let mut schemas = shapes.map(|shape| SnapshotPolicy::of(Snapshots::IfCoded, true, shape).unwrap().schema);
        assert!(schemas.iter().all(|schema| schema & SHAPE_SCHEMA_BIT != 0), "{schemas:x?}");
        schemas.sort_unstable();
        assert!(schemas.is_sorted_by(|a, b| a < b), "{schemas:x?}");
    }

    #[test]
    fn policy_depends_on_setting_and_coding() {
        let of = |setting, is_coded| SnapshotPolicy::of(setting, is_coded, || None);
        let given = Snapshots::Given { every: 7, schema: 3 };
        assert!(of(given, false).is_none() && of(Snapshots::Never, true).is_none());
        assert!(of(Snapshots::IfCoded, true).is_none(), "a change of the state would not be detected");
        let policy = of(given, true).unwrap();
        assert_eq!((policy.schema, policy.next(10, 1 << 30)), (3, 17));
    }
}
