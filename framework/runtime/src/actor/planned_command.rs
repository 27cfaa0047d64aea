//! Commands that are encoded now and sent later, and the fingerprints of their types.
//!
//! Used by the [compensation](super::compensation), and by the scheduler of delayed messages. The format of a command is
//! frozen, so the fingerprints are stored beside it.

use serde::{Deserialize, Serialize};

use whizbang_core::message::{Codec, Fingerprint, MessageId};

/// A command encoded now and sent later.
#[cfg_attr(not(feature = "testing"), allow(unreachable_pub, reason = "the simulated cluster reads it"))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedCommand {
    #[doc(hidden)]
    pub domain: String,
    #[doc(hidden)]
    pub shard: u16,
    #[doc(hidden)]
    pub key: String,
    #[doc(hidden)]
    pub name: String,
    #[doc(hidden)]
    pub version: u32,
    #[doc(hidden)]
    pub codec: u8,
    #[doc(hidden)]
    pub payload: Vec<u8>,
    /// The fingerprint of its type when it was encoded, if it is sent to another service. Stored apart: logs of older
    /// versions lack it.
    #[doc(hidden)]
    #[serde(skip)]
    pub shape: Option<Fingerprint>,
}

impl PlannedCommand {
    pub(crate) fn codec(&self) -> Codec {
        // Written by this module from a codec, so the number is known; bincode is the fallback for a log from another
        // program.
        Codec::from_id(self.codec).unwrap_or(Codec::Bincode)
    }
}

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
