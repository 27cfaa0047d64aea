//! A schedule as operators see it: its expression, its command and its next occurrence, which are the content of its timer.

use serde::{Deserialize, Serialize};

use super::command::SetSchedule;
use super::cron::Cron;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, CodecError};

/// A schedule of a domain, as [`Node::schedules`](crate::Node::schedules) lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ActiveSchedule {
    /// The domain.
    pub domain: String,
    /// The name under which it was set.
    pub name: String,
    /// The expression with its time zone and policies.
    pub cron: Cron,
    /// The type of the command that it sends.
    pub command: String,
    /// The key of that command.
    pub key: String,
    /// The next occurrence.
    pub next: Timestamp,
}

/// The content of the timer. Frozen: it is stored.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredSchedule {
    cron: Cron,
    command: String,
    key: String,
    next: u64,
}

impl ActiveSchedule {
    /// Returns the content of the timer for an occurrence.
    pub(crate) fn stored(set: &SetSchedule, next: Timestamp) -> StoredSchedule {
        let (command, key) = (set.message.name.clone(), set.message.key.clone());
        StoredSchedule { cron: set.cron.clone(), command, key, next: next.as_millis() }
    }

    /// Reads the content of a timer.
    ///
    /// # Errors
    /// It cannot be decoded.
    pub(crate) fn read(domain: &str, name: String, payload: &[u8]) -> Result<Self, CodecError> {
        let StoredSchedule { cron, command, key, next } = Codec::Bincode.decode(payload)?;
        Ok(Self { domain: domain.to_owned(), name, cron, command, key, next: Timestamp::from_millis(next) })
    }
}
