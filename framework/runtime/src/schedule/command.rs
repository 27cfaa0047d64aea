//! The commands of a client for the actor of a schedule.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::cron::Cron;
use crate::router::{PlannedCommand, SCHEDULES};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Envelope, Key, Kind, MessageId, Name, Rejection, ShardId, shard_of};

/// The command that sets a schedule.
pub(crate) const SET_SCHEDULE: &str = "whizbang-set-schedule";
/// The command that removes a schedule.
pub(crate) const REMOVE_SCHEDULE: &str = "whizbang-remove-schedule";

/// The header of a command of a schedule with the time of its occurrence, such as `2026-03-29T01:00:00Z`.
pub(crate) const OCCURRENCE: &str = "schedule-occurrence";

/// A schedule and the command that it sends. Frozen: it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SetSchedule {
    pub(crate) cron: Cron,
    pub(crate) message: PlannedCommand,
}

impl SetSchedule {
    /// Returns a schedule that sends the command of an envelope.
    pub(crate) fn new(cron: Cron, envelope: &Envelope) -> Self {
        let message = PlannedCommand {
            domain: envelope.domain.to_string(),
            shard: envelope.to.as_ref().map_or(0, |to| to.shard),
            key: envelope.key.clone(),
            name: envelope.name.to_string(),
            version: envelope.version,
            codec: envelope.codec.id(),
            payload: envelope.payload.to_vec(),
            shape: None,
        };
        Self { cron, message }
    }

    /// Checks a schedule that was received, and computes the shard of its command.
    ///
    /// # Errors
    /// The reason for which it is refused.
    pub(crate) fn check(&mut self, domain: &str, shards: u16) -> Result<(), Rejection> {
        let message = &mut self.message;
        let refused = |text: String| Err(Rejection::new("whizbang.schedule", text));
        if message.domain != domain || Name::new(&message.name).is_err() {
            return refused("a schedule sends a command to the domain that holds it".to_owned());
        }
        if !Key::from(message.key.as_str()).is_valid() {
            return refused("the command of the schedule has an invalid key".to_owned());
        }
        message.shard = shard_of(&message.key, shards);
        self.cron.check().or_else(|error| refused(error.to_string()))
    }
}

/// Returns a command for the actor of a schedule.
pub(crate) fn to(name: &str, command: &'static str, shards: u16, payload: Vec<u8>, like: &Envelope) -> Envelope {
    let domain = like.domain.clone();
    // Both names are valid; the fallback names no handler.
    let named = |name: &'static str| Name::from_static(name).unwrap_or_else(|_| domain.clone());
    Envelope {
        to: Some(ShardId::new(domain.clone(), shard_of(name, shards))),
        key: name.to_owned(),
        actor: Some(named(SCHEDULES)),
        correlation: like.correlation,
        deadline: like.deadline,
        codec: like.codec,
        payload: Bytes::from(payload),
        ..Envelope::new(like.id.derive(command, 0), Kind::Command, domain.clone(), named(command), like.time)
    }
}

/// Returns the id of the command of an occurrence: the same whenever it is sent.
pub(crate) fn occurrence_id(domain: &str, name: &str, occurrence: u64) -> MessageId {
    MessageId::from_idempotency_key(domain, name, &format!("{SCHEDULES}/{occurrence}"))
}

/// Formats a time.
pub(crate) fn rfc3339(millis: u64) -> String {
    let instant = i64::try_from(millis).ok().and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    instant.map_or_else(|| Timestamp::from_millis(millis).as_millis().to_string(), |instant| instant.to_string())
}
