//! Commands that a turn sends: their ids, envelopes and delays.
//!
//! Called by [`Effects`](super::effects::Effects) and by the compensation of sagas. A command is only added to the
//! [requested effects](super::requested) here; it leaves after the commit of the turn. Its id is derived from the handled message,
//! the stream and the number of the command in the turn, so a repeated turn sends it under the same id.

use std::any::TypeId;

use bytes::Bytes;

use super::compensation::CompensationChange;
use super::identity::Role;
use super::requested::{Outgoing, RequestedEffects};
use crate::router::{DelayedMessage, PlannedCommand, cancellation};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{
    Codec, CodecError, Envelope, Fingerprint, Key, Kind, MessageFacts, MessageId, Name, ReplyMode, ShardId, shard_of,
};

impl RequestedEffects {
    /// Delays the command that was sent last.
    pub(super) fn delay_last(&mut self, command: MessageId, due: Timestamp) {
        // A command that cannot be encoded is not the last one; its error fails the turn.
        let last = self.outgoing.len().checked_sub(1);
        let is_it = self.outgoing.last().is_some_and(|sent| sent.envelope.id == command);
        if let Some(at) = last.filter(|_| is_it) {
            self.delays.retain(|(delayed, _)| *delayed != at);
            self.delays.push((at, due));
        }
    }

    /// Replaces each delayed command by the one to send it later. Costs the number of delayed commands.
    ///
    /// # Errors
    /// It cannot be encoded, or it is a step that can be undone: no reply to a delayed command arrives, so a saga could not
    /// know whether the step was done.
    pub(super) fn hold_delayed(&mut self) -> Result<(), CodecError> {
        for (at, due) in std::mem::take(&mut self.delays) {
            let Some(sent) = self.outgoing.get_mut(at) else { continue };
            let id = sent.envelope.id;
            let is_step = |change: &CompensationChange| matches!(change, CompensationChange::Step { command, .. } if *command == id);
            if self.compensation.iter().any(is_step) {
                let reason = format!("`{}` is sent later and cannot be compensated", sent.envelope.name);
                return Err(CodecError::Encode { reason });
            }
            let facts = &self.identity.facts;
            let home = Name::from_static(facts.domain)
                .map_err(|_| CodecError::Encode { reason: format!("invalid name `{}`", facts.domain) })?;
            let (to, envelope) = DelayedMessage::schedule((&home, facts.shards), &sent.envelope, due, Codec::Bincode)?;
            *sent = Outgoing { to, envelope };
        }
        Ok(())
    }

    /// Drops a delayed command.
    pub(super) fn cancel(&mut self, id: MessageId) {
        let Ok(home) = Name::from_static(self.identity.facts.domain) else { return };
        let like = Envelope {
            correlation: self.turn.correlation,
            causation: Some(self.turn.id),
            traceparent: self.turn.traceparent.as_deref().map(str::to_owned),
            ..Envelope::new(id, Kind::Command, home.clone(), home.clone(), self.turn.time)
        };
        let derived = self.derived_id();
        let (to, envelope) = cancellation((&home, self.identity.facts.shards), id, &like);
        self.outgoing.push(Outgoing { to, envelope: Envelope { id: derived, ..envelope } });
    }

    /// Sends a command of the given Rust type. Returns the command's id.
    pub(super) fn send(&mut self, command: TypeId, plan_command: Option<PlannedCommand>) -> MessageId {
        let wants = if self.identity.wants_reply(command) {
            ReplyMode::Reply
        } else if self.identity.facts.role == Role::Saga {
            ReplyMode::Rejection
        } else {
            ReplyMode::Nothing
        };
        let id = self.derived_id();
        if let Some(planned) = plan_command {
            self.push_outgoing(id, planned, wants);
        }
        id
    }

    fn derived_id(&self) -> MessageId {
        let index = u32::try_from(self.outgoing.len()).unwrap_or(u32::MAX);
        self.turn.id.derive(&self.stream_name(), index)
    }

    /// Encodes a command; `None` if that is impossible, which fails the turn. `shape` computes the fingerprint of its type,
    /// which is needed only if it leaves the node.
    pub(super) fn planned(
        &mut self,
        command: MessageFacts,
        shape: fn() -> Option<Fingerprint>,
        key: Key<'_>,
        write: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), CodecError>,
    ) -> Option<PlannedCommand> {
        let mut payload = Vec::new();
        let written = if key.is_valid() {
            write(&mut payload)
        } else {
            Err(CodecError::Encode {
                reason: format!("invalid key of `{}`: {} bytes, expected 1 to 256", command.name, key.as_str().len()),
            })
        };
        if let Err(error) = written {
            self.error.get_or_insert(error);
            return None;
        }
        Some(PlannedCommand {
            domain: command.domain.to_owned(),
            shard: shard_of(key.as_str(), command.shards),
            key: key.into_string(),
            name: command.name.to_owned(),
            version: command.version,
            codec: command.codec.id(),
            payload,
            shape: if self.identity.shapes.leaves(command.domain) { shape() } else { None },
        })
    }

    fn push_outgoing(&mut self, id: MessageId, planned: PlannedCommand, wants: ReplyMode) {
        let (Ok(domain), Ok(name)) = (Name::new(&planned.domain), Name::new(&planned.name)) else {
            self.error.get_or_insert(CodecError::Encode {
                reason: format!("invalid name `{}.{}`", planned.domain, planned.name),
            });
            return;
        };
        let to = ShardId::new(domain.clone(), planned.shard);
        let envelope = Envelope {
            version: planned.version,
            shape: planned.shape,
            to: Some(to.clone()),
            codec: planned.codec(),
            key: planned.key,
            correlation: self.turn.correlation,
            causation: Some(self.turn.id),
            wants,
            traceparent: self.turn.traceparent.as_deref().map(str::to_owned),
            headers: self.headers.clone(),
            payload: Bytes::from(planned.payload),
            ..Envelope::new(id, Kind::Command, domain, name, self.turn.time)
        };
        self.outgoing.push(Outgoing { to, envelope });
    }

    /// Sends a planned compensating command and awaits its reply.
    pub(crate) fn send_compensation(&mut self, planned: PlannedCommand) {
        let id = self.derived_id();
        self.push_outgoing(id, planned, ReplyMode::Reply);
        self.compensation.push(CompensationChange::Sent { command: id });
    }

    pub(crate) fn send_planned(&mut self, planned: PlannedCommand) {
        let id = self.derived_id();
        self.push_outgoing(id, planned, ReplyMode::Nothing);
    }

    /// Sends a message whose time has come, under the id, trace context and headers that it was given.
    pub(crate) fn send_delayed(
        &mut self,
        id: MessageId,
        planned: PlannedCommand,
        traceparent: Option<String>,
        headers: Vec<(String, String)>,
    ) {
        self.push_outgoing(id, planned, ReplyMode::Nothing);
        if let Some(sent) = self.outgoing.last_mut() {
            sent.envelope.traceparent = traceparent;
            sent.envelope.headers = headers;
        }
    }

    /// Sends a planned command under an id.
    #[cfg(feature = "schedules")]
    pub(crate) fn send_under(
        &mut self,
        id: MessageId,
        planned: PlannedCommand,
        wants: ReplyMode,
        headers: Vec<(String, String)>,
    ) {
        self.push_outgoing(id, planned, wants);
        if let Some(sent) = self.outgoing.last_mut() {
            sent.envelope.headers = headers;
        }
    }
}
