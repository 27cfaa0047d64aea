//! Scheduler: holds the messages that are sent later.
//!
//! Hosted by the node for each of its domains. A scheduler is an actor like an aggregate, one for each delayed message;
//! its key is the id of that message. So a delayed message has everything that commands and timers have: it is written with
//! the commit of its sender, set once, kept across restarts, and sent once.

use std::marker::PhantomData;

use crate::actor::{AnyEffects, Plan, Role, Snapshots, Stateful, TimerSlot, typed};
use crate::router::{CANCEL, DelayedMessage, SCHEDULE, SCHEDULER};
use whizbang_core::message::{Codec, CodecError, Domain, Envelope, MessageId, Rejection};

/// The timer of a message.
const DUE: &str = "whizbang-due";

/// The scheduler of a domain.
pub(crate) struct Scheduler<D>(PhantomData<fn() -> D>);

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
            let mut delayed = DelayedMessage::read(envelope.codec, &envelope.payload)?;
            let checked = if MessageId::parse(&envelope.key).is_none() {
                Err(Rejection::new("whizbang.delayed-message", "the key of a delayed message is its id"))
            } else if is_from::<D>(envelope) {
                Ok(())
            } else {
                delayed.check(D::NAME, D::SHARDS)
            };
            if let Err(rejection) = checked {
                drop(requested.set_reply::<()>(D::CODEC, Err(rejection)));
                return Ok(());
            }
            // The sender and this turn may be on different machines' clocks; from here on the monotonic clock counts.
            let due = requested.after_wall_time(delayed.due());
            let start = requested.payloads.len();
            delayed.write(&mut requested.payloads)?;
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
            let delayed = DelayedMessage::read(envelope.codec, &envelope.payload)?;
            let id = MessageId::parse(&envelope.key)
                .ok_or_else(|| CodecError::Decode { reason: "a delayed message has no id".to_owned() })?;
            send(delayed, id, effects);
            Ok(())
        });
    }
}

/// Returns whether a command comes from an actor or a job of the domain itself, which may send to any domain.
fn is_from<D: Domain>(envelope: &Envelope) -> bool {
    envelope.origin.as_ref().is_some_and(|origin| origin.shard.domain.as_str() == D::NAME)
}

/// Sends a message that is due, under the id that its sender has given it.
fn send(delayed: DelayedMessage, id: MessageId, effects: &mut dyn AnyEffects) {
    let (message, traceparent, headers) = delayed.into_parts();
    let requested = effects.requested();
    requested.send_delayed(id, message, traceparent, headers);
    requested.ended = true;
}
