//! The description of one actor type as the runtime uses it: its handler table, and the constructors that need its Rust type.
//!
//! Built by the node for each thread. The only file that connects [`Stateful`] with the parts of an actor that are compiled
//! once for all types.

use std::any::Any;

use super::effects::Effects;
use super::handler_table::{HandlerTable, StateFacts};
use super::identity::ActorFacts;
use super::live_actor::{ActorInstance, LiveActor, NewLive};
use super::plan::{AddRoute, Plan, Stateful};
use super::requested::AnyEffects;
use super::user_state::{UserSlot, UserState};
use whizbang_core::message::{CodecError, Domain};

/// An actor type: its handlers, its endpoints, and the constructor of its live actors.
pub struct ActorType {
    /// The handlers.
    pub table: HandlerTable,
    /// The functions that register the endpoints of its commands.
    pub(crate) routes: Vec<AddRoute>,
    /// Creates a live actor without a state.
    pub(super) new_live: NewLive,
}

impl std::fmt::Debug for ActorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ActorType").field("table", &self.table).finish_non_exhaustive()
    }
}

impl ActorType {
    /// Describes an actor type: runs the code that its derive generated.
    pub fn of<A: Stateful>() -> Self {
        let facts = ActorFacts {
            domain: A::Domain::NAME,
            shards: A::Domain::SHARDS,
            codec: A::Domain::CODEC,
            name: A::NAME,
            role: A::ROLE,
        };
        let state = StateFacts {
            snapshots: A::SNAPSHOTS,
            is_coded: A::coding().is_some(),
            initial: || Box::new(A::initial()),
            restore: |bytes| Some(Box::new(A::coding()?.restore(bytes).ok()?)),
            shape: || A::coding()?.shape(),
        };
        let mut plan = Plan::new(HandlerTable::new(facts, state, Effects::<A>::empty, A::FORMERLY));
        A::wire(&mut plan);
        let Plan { table, routes, .. } = plan;
        let new_live: NewLive =
            |dispatcher, shard, key| LiveActor::new(ActorInstance::new(dispatcher, shard, key, StateSlot::<A>(None)));
        Self { table, routes, new_live }
    }
}

impl<A: Stateful> UserState for A {
    fn save(&self) -> Option<Result<Vec<u8>, CodecError>> {
        A::coding().map(|coding| coding.save(self))
    }

    #[cfg(feature = "testing")]
    fn described(&self) -> Option<String> {
        Stateful::described(self)
    }
}

/// The place of a state of a known type.
struct StateSlot<A>(Option<A>);

impl<A: Stateful> UserSlot for StateSlot<A> {
    fn user(&self) -> Option<&dyn UserState> {
        self.0.as_ref().map(|user| user as &dyn UserState)
    }

    fn user_mut(&mut self) -> Option<&mut dyn UserState> {
        self.0.as_mut().map(|user| user as &mut dyn UserState)
    }

    fn put(&mut self, user: Option<Box<dyn UserState>>) {
        let user = user.and_then(|user| (user as Box<dyn Any>).downcast().ok());
        self.0 = user.map(|user| *user);
    }
}

/// Downcasts the state and the effects of an actor.
///
/// # Errors
/// They belong to another actor type. An entry is only called with values made for its own type.
pub fn typed<'a, A: Stateful>(
    state: &'a dyn UserState,
    effects: &'a mut dyn AnyEffects,
) -> Result<(&'a A, &'a mut Effects<A>), CodecError> {
    match ((state as &dyn Any).downcast_ref(), (effects as &mut dyn Any).downcast_mut()) {
        (Some(state), Some(effects)) => Ok((state, effects)),
        _ => Err(wrong_actor_type()),
    }
}

/// Like [`typed`], for a state alone.
///
/// # Errors
/// It belongs to another actor type.
pub(super) fn typed_state_ref<A: Stateful>(state: &dyn UserState) -> Result<&A, CodecError> {
    (state as &dyn Any).downcast_ref().ok_or_else(wrong_actor_type)
}

/// Like [`typed`], for a state that changes.
///
/// # Errors
/// It belongs to another actor type.
pub fn typed_state<A: Stateful>(state: &mut dyn UserState) -> Result<&mut A, CodecError> {
    (state as &mut dyn Any).downcast_mut().ok_or_else(wrong_actor_type)
}

fn wrong_actor_type() -> CodecError {
    CodecError::Decode { reason: "belongs to another actor type".to_owned() }
}
