//! Delayed messages: commands that hold a message until it is due.
//!
//! Built by clients, by the effects of actors and by the outboxes of jobs; handled by the
//! [scheduler](crate::aggregate::scheduler) of a domain, one actor for each message, whose key is the id of the message.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::planned_command::PlannedCommand;
use whizbang_core::clock::{Timestamp, rfc3339};
use whizbang_core::message::{
    Codec, CodecError, EXPIRY, Envelope, Fingerprint, Key, Kind, MessageId, Name, Rejection, SHAPE, ShardId,
    set_expiry, set_header, shard_of,
};

/// The name of the actor type in the store; reserved.
pub(crate) const SCHEDULER: &str = "whizbang-scheduler";
/// The name of the actor type of cron schedules in the store; reserved.
pub(crate) const SCHEDULES: &str = "whizbang-schedules";
/// The command that holds a message until it is due.
pub(crate) const SCHEDULE: &str = "whizbang-schedule";
/// The command that drops a message that is not due yet.
pub(crate) const CANCEL: &str = "whizbang-cancel";

/// A message that is sent later. Frozen: it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelayedMessage {
    /// In milliseconds since 1970, by the clock of the sender.
    due: u64,
    message: PlannedCommand,
    traceparent: Option<String>,
    headers: Vec<(String, String)>,
}

impl DelayedMessage {
    /// Returns the command that makes the scheduler of `domain` send `envelope` later. The id of the command is derived
    /// from that of the message. `codec` is that of the command and of its reply.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub(crate) fn schedule(
        (domain, shards): (&Name, u16),
        envelope: &Envelope,
        due: Timestamp,
        codec: Codec,
    ) -> Result<(ShardId, Envelope), CodecError> {
        let no_shard = || CodecError::Encode { reason: format!("`{}` has no destination", envelope.name) };
        let message = PlannedCommand {
            domain: envelope.domain.to_string(),
            shard: envelope.to.as_ref().ok_or_else(no_shard)?.shard,
            key: envelope.key.clone(),
            name: envelope.name.to_string(),
            version: envelope.version,
            codec: envelope.codec.id(),
            payload: envelope.payload.to_vec(),
            shape: None,
        };
        // As in a record: the fingerprint is a header there, which versions without it preserve.
        let shape = envelope.shape.map(|shape| (SHAPE.to_owned(), shape.to_string()));
        let delayed = Self {
            due: due.as_millis(),
            message,
            traceparent: envelope.traceparent.clone(),
            headers: envelope.headers_when_due(due).into_iter().chain(shape).collect(),
        };
        let mut payload = Vec::new();
        codec.encode(&delayed, &mut payload)?;
        let (to, command) = command((domain, shards), SCHEDULE, envelope.id, Bytes::from(payload), envelope);
        Ok((to, Envelope { codec, ..command }))
    }

    /// Reads the message from a [`SCHEDULE`] command or its timer.
    ///
    /// # Errors
    /// It cannot be decoded.
    pub(crate) fn read(codec: Codec, payload: &[u8]) -> Result<Self, CodecError> {
        codec.decode(payload)
    }

    /// Returns the message of a command for the scheduler and the time at which it is due; `None` for any other command.
    #[doc(hidden)]
    pub fn of(command: &Envelope) -> Option<(Envelope, Timestamp)> {
        if command.name.as_str() != SCHEDULE {
            return None;
        }
        let delayed = Self::read(command.codec, &command.payload).ok()?;
        let (due, id) = (delayed.due(), MessageId::parse(&command.key)?);
        let (planned, traceparent, headers) = delayed.into_parts();
        let (domain, name) = (Name::new(&planned.domain).ok()?, Name::new(&planned.name).ok()?);
        let envelope = Envelope {
            version: planned.version,
            shape: planned.shape,
            to: Some(ShardId::new(domain.clone(), planned.shard)),
            codec: planned.codec(),
            correlation: command.correlation,
            traceparent,
            headers,
            payload: Bytes::from(planned.payload),
            key: planned.key,
            ..Envelope::new(id, Kind::Command, domain, name, command.time)
        };
        Some((envelope, due))
    }

    /// Returns when it is due.
    pub(crate) fn due(&self) -> Timestamp {
        Timestamp::from_millis(self.due)
    }

    /// Checks a message that a sender outside of `domain` wants to send later. The scheduler sends in the name of its
    /// domain, so it accepts only messages to the domain itself, and computes their shard.
    ///
    /// # Errors
    /// The reason for which it is refused.
    pub(crate) fn check(&mut self, domain: &str, shards: u16) -> Result<(), Rejection> {
        let refused = |text: &'static str| Err(Rejection::new("whizbang.delayed-message", text));
        let message = &mut self.message;
        if message.domain != domain {
            return refused("a delayed message goes to the domain that holds it");
        }
        if Name::new(&message.name).is_err() || Codec::from_id(message.codec).is_none() {
            return refused("the delayed message has an invalid name or codec");
        }
        if !Key::from(message.key.as_str()).is_valid() {
            return refused("the delayed message has an invalid key");
        }
        let mut headers = Vec::new();
        let set = |(name, value): &(String, String)| match name.as_str() {
            SHAPE => true,
            EXPIRY => rfc3339::read(value).is_some_and(|expiry| set_expiry(&mut headers, expiry).is_ok()),
            _ => set_header(&mut headers, name, value).is_ok(),
        };
        if !self.headers.iter().all(set) {
            return refused("the delayed message has an invalid header");
        }
        message.shard = shard_of(&message.key, shards);
        Ok(())
    }

    /// Writes it as the payload of its timer.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub(crate) fn write(&self, into: &mut Vec<u8>) -> Result<(), CodecError> {
        Codec::Bincode.encode(self, into)
    }

    /// Returns the command, its trace context and its headers.
    pub(crate) fn into_parts(self) -> (PlannedCommand, Option<String>, Vec<(String, String)>) {
        let Self { mut message, traceparent, mut headers, .. } = self;
        message.shape = Fingerprint::remove_from(&mut headers);
        (message, traceparent, headers)
    }
}

/// Returns the command that drops a delayed message; correlation and origin are those of `like`.
pub(crate) fn cancellation(home: (&Name, u16), id: MessageId, like: &Envelope) -> (ShardId, Envelope) {
    command(home, CANCEL, id, Bytes::new(), like)
}

fn command(
    (domain, shards): (&Name, u16),
    name: &'static str,
    id: MessageId,
    payload: Bytes,
    like: &Envelope,
) -> (ShardId, Envelope) {
    let key = id.to_string();
    let to = ShardId::new(domain.clone(), shard_of(&key, shards));
    // Both names are valid; the fallback names no handler.
    let named = |name: &'static str| Name::from_static(name).unwrap_or_else(|_| domain.clone());
    let envelope = Envelope {
        to: Some(to.clone()),
        key,
        actor: Some(named(SCHEDULER)),
        origin: like.origin.clone(),
        correlation: like.correlation,
        causation: like.causation,
        traceparent: like.traceparent.clone(),
        codec: Codec::Bincode,
        payload,
        ..Envelope::new(id.derive(name, 0), Kind::Command, domain.clone(), named(name), like.time)
    };
    (to, envelope)
}
