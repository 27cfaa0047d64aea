//! What the derives say about an actor type: who it is and what it takes.

use std::any::TypeId;
use std::marker::PhantomData;

use super::handler_table::{AddRoute, ApplyStored, Decide, HandlerTable, KeyOf};
use super::snapshots::Snapshots;
use crate::clock::Timestamp;
use crate::message::{Command, Domain, Envelope, Message, MessageFacts, MessageId, Name, StateCoding};
use crate::router::MessageCard;

/// What an actor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Guards one consistency boundary.
    Aggregate,
    /// Reacts to events by sending commands.
    Saga,
}

/// What `#[derive(Aggregate)]` and `#[derive(Saga)]` fill in.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither an aggregate nor a saga",
    note = "derive it: `#[derive(Aggregate, Default)] #[aggregate(domain = …, handles(…), applies(…))]`"
)]
pub trait Stateful: Sized + Unpin + 'static {
    /// The domain whose shard logs hold its events.
    type Domain: Domain;
    /// Its name in the store, unique in its domain.
    const NAME: &'static str;
    /// What it is.
    const ROLE: Role;
    /// The names it had before.
    const FORMERLY: &'static [&'static str] = &[];
    /// When snapshots of its state are kept.
    const SNAPSHOTS: Snapshots = Snapshots::IfCoded;

    /// The state before the first event: its `Default`.
    fn initial() -> Self;

    /// Lists what it takes.
    fn wire(plan: &mut Plan<Self>);

    /// How its state becomes bytes and back, if it can.
    fn coding() -> Option<StateCoding<Self>> {
        None
    }

    /// Its state as text, if it implements `Debug`. Compared in simulations.
    fn described(&self) -> Option<String> {
        None
    }
}

/// What is known about an event besides its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventContext {
    /// The domain it belongs to.
    pub domain: Name,
    /// The key of the aggregate or saga that recorded it.
    pub key: String,
    /// Its version in that stream, from 1.
    pub version: u64,
    /// The shard of the domain.
    pub shard: u16,
    /// Its place in the shard's log.
    pub position: u64,
    /// When it was recorded.
    pub time: Timestamp,
    /// The correlation id.
    pub correlation: MessageId,
}

impl EventContext {
    /// What an event's envelope says about it.
    pub(crate) fn of(event: &Envelope) -> Self {
        let origin = event.origin.as_ref();
        Self {
            domain: event.domain.clone(),
            key: origin.map_or_else(String::new, |origin| origin.key.clone()),
            version: origin.map_or(0, |origin| origin.version),
            shard: origin.map_or(0, |origin| origin.shard.shard),
            position: origin.map_or(0, |origin| origin.sequence),
            time: event.time,
            correlation: event.correlation,
        }
    }
}

/// The names that a stored or sent message of the type may have.
pub(crate) fn names<M: Message>() -> impl Iterator<Item = &'static str> {
    MessageFacts::of::<M>().names()
}

/// The list that [`Stateful::wire`] fills.
#[doc(hidden)]
pub struct Plan<A: Stateful> {
    pub(super) wiring: HandlerTable,
    actor: PhantomData<fn() -> A>,
}

impl<A: Stateful> Plan<A> {
    pub(super) fn new(wiring: HandlerTable) -> Self {
        Self { wiring, actor: PhantomData }
    }

    pub(crate) fn add_command<M: Command>(&mut self, decide: Decide, route: AddRoute) {
        self.wiring.add_command(MessageFacts::of::<M>(), MessageCard::of_command::<M>(), decide, route);
    }

    pub(crate) fn add_apply<M: Message>(&mut self, apply: ApplyStored) {
        self.wiring.add_apply(MessageFacts::of::<M>(), MessageCard::of::<M>(), apply);
    }

    pub(crate) fn add_react<M: Message>(&mut self, key_of: KeyOf, decide: Decide) {
        self.wiring.add_react(MessageFacts::of::<M>(), MessageCard::of::<M>(), key_of, decide);
    }

    pub(crate) fn add_reply<M: Command>(&mut self, decide: Decide) {
        let (facts, card) = (MessageFacts::of::<M>(), MessageCard::of_command::<M>());
        self.wiring.add_reply(facts, card, TypeId::of::<M>(), decide);
    }

    pub(crate) fn add_timer<M: Message>(&mut self, decide: Decide) {
        self.wiring.add_timer(MessageFacts::of::<M>(), MessageCard::of::<M>(), decide);
    }
}
