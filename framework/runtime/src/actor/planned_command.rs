//! The fingerprints of the types of commands that are encoded now and sent later.
//!
//! Used by the [compensation](super::compensation). The format of a command is frozen, so the fingerprints are stored beside it.

use serde::{Deserialize, Serialize};

use crate::router::PlannedCommand;
use whizbang_core::message::{Fingerprint, MessageId};

/// Returns the fingerprints of commands; an empty list if none has one.
pub(super) fn shapes_of(commands: &[PlannedCommand]) -> Vec<Option<u64>> {
    if commands.iter().all(|command| command.shape.is_none()) {
        return Vec::new();
    }
    commands.iter().map(|command| command.shape.map(Fingerprint::as_u64)).collect()
}

/// The fingerprints of the planned commands, which a snapshot stores behind everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedShapes {
    pub(super) steps: Vec<(MessageId, u64)>,
    pub(super) finally: Vec<Option<u64>>,
}

impl SavedShapes {
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.finally.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_shapes_are_empty_without_any() {
        let step = (MessageId::from_u128(1), 7);
        let is_empty = |steps, finally| SavedShapes { steps, finally }.is_empty();
        assert!(is_empty(vec![], vec![]));
        assert!(!is_empty(vec![step], vec![]) && !is_empty(vec![], vec![None]) && !is_empty(vec![step], vec![Some(1)]));
    }
}
