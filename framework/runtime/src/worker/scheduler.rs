//! Scheduler: holds the messages that jobs send later.
//!
//! Hosted by the node for each domain with a worker. A scheduler is an actor like an aggregate, one for each delayed message;
//! its key is the id of that message. So a delayed message has everything that commands and timers have: it is written with
//! the commit of its job, set once, kept across restarts, and sent once.

use std::marker::PhantomData;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::actor::{AnyEffects, Outgoing, Plan, PlannedCommand, Role, Snapshots, Stateful, TimerSlot, typed};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{
    Codec, CodecError, Domain, Envelope, Fingerprint, Kind, MessageId, Name, SHAPE, ShardId, shard_of,
};

/// The name of the actor type in the store; reserved.
pub(crate) const SCHEDULER: &str = "whizbang-scheduler";
/// The command that holds a message until it is due.
pub(crate) const SCHEDULE: &str = "whizbang-schedule";
/// The command that drops a message that is not due yet.
pub(crate) const CANCEL: &str = "whizbang-cancel";
/// The timer of a message.
const DUE: &str = "whizbang-due";

/// The scheduler of a domain.
pub(crate) struct Scheduler<D>(PhantomData<fn() -> D>);

/// A message that is sent later. Frozen: it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DelayedMessage {
    /// In milliseconds since 1970, by the clock of the job.
    due: u64,
    message: PlannedCommand,
    traceparent: Option<String>,
    headers: Vec<(String, String)>,
}

impl<D: Domain> Stateful for Scheduler<D> {
    type Domain = D;
    const NAME: &'static str = SCHEDULER;
    const ROLE: Role = Role::Aggregate;
    const SNAPSHOTS: Snapshots = Snapshots::Never;

    fn initial() -> Self {
        Self(PhantomData)
    }

    fn wire(plan: &mut Plan<Self>) {
        plan.own().add_own_command(SCHEDULE, |state, envelope, effects| {
            let (_, effects) = typed::<Self>(state, effects)?;
            let requested = &mut effects.requested;
            let delayed: DelayedMessage = Codec::Bincode.decode(&envelope.payload)?;
            // The job and this turn may be on different machines' clocks only if the shard has moved; from here on the
            // monotonic clock counts.
            let remaining = Timestamp::from_millis(delayed.due).since(requested.turn.time);
            let due = requested.monotonic.now().after(remaining);
            let start = requested.payloads.len();
            requested.payloads.extend_from_slice(&envelope.payload);
            let payload = start..requested.payloads.len();
            requested.timers.push(TimerSlot::Set { name: DUE.into(), due, version: 1, codec: Codec::Bincode, payload });
            drop(requested.set_reply::<()>(D::CODEC, Ok(())));
            Ok(())
        });
        plan.own().add_own_command(CANCEL, |_, _, effects| {
            let requested = effects.requested();
            // Ends the stream, which clears the timer. If the cancellation has overtaken its message, that finds an ended
            // stream and does nothing.
            requested.ended = true;
            drop(requested.set_reply::<()>(D::CODEC, Ok(())));
            Ok(())
        });
        plan.own().add_own_timer(DUE, |_, envelope, effects| {
            let delayed: DelayedMessage = Codec::Bincode.decode(&envelope.payload)?;
            let id = MessageId::parse(&envelope.key)
                .ok_or_else(|| CodecError::Decode { reason: "a delayed message has no id".to_owned() })?;
            send(delayed, id, effects)
        });
    }
}

/// Sends a message that is due, under the id that its job has given it.
fn send(delayed: DelayedMessage, id: MessageId, effects: &mut dyn AnyEffects) -> Result<(), CodecError> {
    let DelayedMessage { mut message, traceparent, mut headers, .. } = delayed;
    message.shape = Fingerprint::remove_from(&mut headers);
    effects.requested().send_delayed(id, message, traceparent, headers);
    let requested = effects.requested();
    requested.ended = true;
    Ok(())
}

/// Returns the command that makes the scheduler of `domain` send a message later.
///
/// # Errors
/// It cannot be encoded.
pub(super) fn delayed(domain: &(Name, u16), sent: Outgoing, due: Timestamp) -> Result<Outgoing, CodecError> {
    let envelope = sent.envelope;
    let (id, message) = (
        envelope.id,
        PlannedCommand {
            domain: envelope.domain.to_string(),
            shard: sent.to.shard,
            key: envelope.key.clone(),
            name: envelope.name.to_string(),
            version: envelope.version,
            codec: envelope.codec.id(),
            payload: envelope.payload.to_vec(),
            shape: None,
        },
    );
    // As in a record: the fingerprint is a header there, which versions without it preserve.
    let shape = envelope.shape.map(|shape| (SHAPE.to_owned(), shape.to_string()));
    let delayed = DelayedMessage {
        due: due.as_millis(),
        message,
        traceparent: envelope.traceparent.clone(),
        headers: envelope.headers.iter().cloned().chain(shape).collect(),
    };
    let mut payload = Vec::new();
    Codec::Bincode.encode(&delayed, &mut payload)?;
    Ok(command(domain, SCHEDULE, id, Bytes::from(payload), &envelope))
}

/// Returns the command that drops a delayed message; ids and origin are those of `like`.
pub(super) fn cancellation(domain: &(Name, u16), id: MessageId, like: &Envelope) -> Outgoing {
    command(domain, CANCEL, id, Bytes::new(), like)
}

fn command(
    (domain, shards): &(Name, u16),
    name: &'static str,
    id: MessageId,
    payload: Bytes,
    like: &Envelope,
) -> Outgoing {
    let key = id.to_string();
    let to = ShardId::new(domain.clone(), shard_of(&key, *shards));
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
        ..Envelope::new(like.id.derive(name, 0), Kind::Command, domain.clone(), named(name), like.time)
    };
    Outgoing { to, envelope }
}
