//! Commands that are encoded now and sent later.
//!
//! Used by the compensation of sagas, and by the scheduler of [delayed messages](super::delayed). The format of a command is
//! frozen, so the fingerprint of its type is stored beside it.

use serde::{Deserialize, Serialize};

use whizbang_core::message::{Codec, Fingerprint};

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
