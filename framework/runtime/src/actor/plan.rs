//! The descriptions of actor types that the derives generate: constants, and the lists of handled messages.
//!
//! Called by derived code at start. Fills the [handler table](super::handler_table).

use std::any::TypeId;
use std::borrow::Cow;
use std::marker::PhantomData;
use std::rc::Rc;

use super::handler_table::{AnswerFromState, ApplyStored, Decide, HandlerTable, KeyOf};
use super::identity::Role;
use super::live_actor::Dispatcher;
use super::snapshot_policy::Snapshots;
use super::timer_name::stored as stored_timer;
use crate::router::{LocalRoutes, MessageCard};
use whizbang_core::message::{Command, Domain, Message, MessageFacts, Query, StateCoding};

/// The description of an actor type. `#[derive(Aggregate)]` and `#[derive(Saga)]` implement it.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither an aggregate nor a saga",
    note = "derive it: `#[derive(Aggregate, Default)] #[aggregate(domain = …, handles(…), applies(…))]`"
)]
pub trait Stateful: Sized + Unpin + 'static {
    /// The domain whose shard logs hold its events.
    type Domain: Domain;
    /// The name in the store, unique in its domain.
    const NAME: &'static str;
    /// The role.
    const ROLE: Role;
    /// The former names.
    const FORMERLY: &'static [&'static str] = &[];
    /// The snapshot policy.
    const SNAPSHOTS: Snapshots = Snapshots::IfCoded;

    /// Returns the state before the first event: its `Default`.
    fn initial() -> Self;

    /// Lists the handled messages.
    fn wire(plan: &mut Plan<Self>);

    /// Returns the coding of the state, if it has one.
    fn coding() -> Option<StateCoding<Self>> {
        None
    }

    /// Returns the state as text, if it implements `Debug`. Simulations compare it.
    fn described(&self) -> Option<String> {
        None
    }
}

/// Returns the names that a stored or sent message of the type may have.
pub(crate) fn names<M: Message>() -> impl Iterator<Item = &'static str> {
    MessageFacts::of::<M>().names()
}

/// Registers the endpoint of one command.
pub(crate) type AddRoute = fn(&Rc<Dispatcher>, &mut LocalRoutes);

/// The list that [`Stateful::wire`] fills.
#[doc(hidden)]
pub struct Plan<A: Stateful> {
    pub(super) table: HandlerTable,
    pub(super) routes: Vec<AddRoute>,
    actor: PhantomData<fn() -> A>,
}

impl<A: Stateful> std::fmt::Debug for Plan<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").field("table", &self.table).finish_non_exhaustive()
    }
}

impl<A: Stateful> Plan<A> {
    /// Begins with an empty table.
    pub(super) fn new(wiring: HandlerTable) -> Self {
        Self { table: wiring, routes: Vec::new(), actor: PhantomData }
    }

    /// Adds a handled command, with its route for callers of this thread.
    pub(crate) fn add_command<M: Command>(&mut self, decide: Decide, route: AddRoute) {
        self.table.add_command(MessageFacts::of::<M>(), MessageCard::of_command::<M>(), decide);
        self.routes.push(route);
    }

    /// Returns the table itself, for the framework's own commands and timers, which have no Rust types.
    pub(crate) fn own(&mut self) -> &mut HandlerTable {
        &mut self.table
    }

    /// Adds an event that changes the state.
    pub(crate) fn add_apply<M: Message>(&mut self, apply: ApplyStored) {
        self.table.add_apply(MessageFacts::of::<M>(), MessageCard::of::<M>(), apply);
    }

    /// Adds an event of any domain, with the function that selects the key.
    pub(crate) fn add_react<M: Message>(&mut self, key_of: KeyOf, decide: Decide) {
        self.table.add_react(MessageFacts::of::<M>(), MessageCard::of::<M>(), key_of, decide);
    }

    /// Adds a command whose reply the actor handles.
    pub(crate) fn add_reply<M: Command>(&mut self, decide: Decide) {
        let (facts, card) = (MessageFacts::of::<M>(), MessageCard::of_command::<M>());
        self.table.add_reply(facts, card, TypeId::of::<M>(), decide);
    }

    /// Adds a query that the state answers.
    pub(super) fn add_answer<Q: Query>(&mut self, answer: AnswerFromState) {
        self.table.add_answer(MessageFacts::of::<Q>(), MessageCard::of_query::<Q>(), answer);
    }

    /// Adds a timer.
    pub(crate) fn add_timer<M: Message>(&mut self, decide: Decide) {
        self.table.add_timer(MessageFacts::of::<M>(), MessageCard::of::<M>(), decide);
    }
}

/// Returns the stored name of the timer `T` of the actor `A`.
pub fn timer_name<A: Stateful, T: Message>() -> Cow<'static, str> {
    stored_timer(A::Domain::NAME, T::Domain::NAME, T::NAME)
}
