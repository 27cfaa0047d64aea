//! The handlers of an actor type, independent of the type: the table that [`Plan`](super::plan::Plan) fills.
//!
//! Read by the [dispatcher](super::dispatcher) and the [turn](super::turn). Its entries are plain functions that know
//! the types behind [`UserState`] and [`AnyEffects`]; everything else of an actor is compiled once for all types.

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;

use super::dispatcher::Dispatcher;
use super::effects::Effects;
use super::instance::ActorInstance;
use super::mailbox::LiveActor;
use super::owned_shard::OwnedShard;
use super::plan::{Plan, Role, Stateful};
use super::requested::AnyEffects;
use super::snapshot_policy::{SnapshotPolicy, Snapshots};
use super::timer_name::parts as timer_parts;
use super::turn::TurnError;
use super::unanswered::Unanswered;
use crate::router::{ActorCard, LocalRoutes, MessageCard, PeerShapes, StateCard};
use whizbang_core::clock::MonotonicTime;
use whizbang_core::message::{Codec, CodecError, Domain, Envelope, Event, MessageFacts, Shape};
use whizbang_core::store::StoreError;

/// The state of an actor of unknown type.
pub trait UserState: Any {
    /// Encodes the state, if it has a coding.
    fn save(&self) -> Option<Result<Vec<u8>, CodecError>>;

    /// As [`Stateful::described`].
    #[cfg(feature = "testing")]
    fn described(&self) -> Option<String>;
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

/// The storage of the user's state in an actor. Empty until the state is rebuilt: its `Default` is user code and may
/// panic.
pub(crate) trait UserSlot {
    fn user(&self) -> Option<&dyn UserState>;
    fn user_mut(&mut self) -> Option<&mut dyn UserState>;
    /// Stores a state and drops the previous one, which is user code.
    fn put(&mut self, user: Option<Box<dyn UserState>>);
}

impl dyn UserSlot + '_ {
    /// Returns the user's state.
    ///
    /// # Errors
    /// [`StoreError::Closed`] until the state is rebuilt; no turn runs before.
    pub(crate) fn get(&self) -> Result<&dyn UserState, TurnError> {
        self.user().ok_or(TurnError::Store(StoreError::Closed))
    }
}

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

/// Answers a query from the state of an actor.
pub(crate) type AnswerFromState = fn(&dyn UserState, &Envelope) -> Result<Bytes, Unanswered>;

/// The constants and constructors of an actor type.
#[derive(Clone, Copy)]
pub(crate) struct ActorFacts {
    pub(crate) domain: &'static str,
    /// The number of shards of the domain.
    pub(crate) shards: u16,
    /// The codec of the domain.
    pub(crate) codec: Codec,
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    pub(super) snapshots: Snapshots,
    /// True if the state has a coding.
    pub(super) is_coded: bool,
    /// Creates a live actor without a state.
    pub(super) new_live: fn(Rc<Dispatcher>, Rc<OwnedShard>, Rc<str>) -> Rc<LiveActor>,
    /// As [`Stateful::initial`].
    pub(crate) initial: fn() -> Box<dyn UserState>,
    /// Decodes a state; `None` if the bytes are unusable.
    pub(crate) restore: fn(&[u8]) -> Option<Box<dyn UserState>>,
    /// Returns the shape of the state's bytes, if it has a coding. User code.
    pub(super) shape: fn() -> Option<Arc<Shape>>,
    /// Creates the buffers of a turn.
    pub(crate) effects: fn(Rc<HandlerTable>, MonotonicTime) -> Box<dyn AnyEffects>,
}

impl ActorFacts {
    fn of<A: Stateful>() -> Self {
        Self {
            domain: A::Domain::NAME,
            shards: A::Domain::SHARDS,
            codec: A::Domain::CODEC,
            name: A::NAME,
            role: A::ROLE,
            snapshots: A::SNAPSHOTS,
            is_coded: A::coding().is_some(),
            new_live: |dispatcher, shard, key| {
                LiveActor::new(ActorInstance::new(dispatcher, shard, key, StateSlot::<A>(None)))
            },
            initial: || Box::new(A::initial()),
            restore: |bytes| Some(Box::new(A::coding()?.restore(bytes).ok()?)),
            shape: || A::coding()?.shape(),
            effects: Effects::<A>::empty,
        }
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

/// As [`typed`], for a state alone.
///
/// # Errors
/// It belongs to another actor type.
pub(super) fn typed_state_ref<A: Stateful>(state: &dyn UserState) -> Result<&A, CodecError> {
    (state as &dyn Any).downcast_ref().ok_or_else(wrong_actor_type)
}

/// As [`typed`], for a state that changes.
///
/// # Errors
/// It belongs to another actor type.
pub fn typed_state<A: Stateful>(state: &mut dyn UserState) -> Result<&mut A, CodecError> {
    (state as &mut dyn Any).downcast_mut().ok_or_else(wrong_actor_type)
}

fn wrong_actor_type() -> CodecError {
    CodecError::Decode { reason: "belongs to another actor type".to_owned() }
}

/// Runs an actor's decision on a message: fills the effects, including the reply. Fails if the message cannot be
/// decoded.
pub(crate) type Decide = fn(&dyn UserState, &Envelope, &mut dyn AnyEffects) -> Result<(), CodecError>;
/// Changes a state by a stored event.
pub(crate) type ApplyStored = fn(&mut dyn UserState, u32, Codec, &[u8]) -> Result<(), CodecError>;
/// Returns the key of the actor that handles an event.
pub(crate) type KeyOf = fn(&Envelope) -> Result<Option<String>, CodecError>;
/// Registers the endpoint of one command.
pub(crate) type AddRoute = fn(&Rc<Dispatcher>, &mut LocalRoutes);
type ByName<T> = HashMap<&'static str, T, FixedState>;
type ByDomainAndName<T> = HashMap<(&'static str, &'static str), T, FixedState>;

/// The handlers of an actor type.
pub struct HandlerTable {
    pub(crate) facts: ActorFacts,
    pub(crate) commands: ByName<Decide>,
    pub(crate) applies: ByName<ApplyStored>,
    pub(crate) reacts: ByDomainAndName<(KeyOf, Decide)>,
    pub(crate) replies: ByDomainAndName<Decide>,
    /// Handles the replies to commands without a handler, for the framework's own actors.
    pub(crate) other_replies: Option<Decide>,
    awaited_replies: Vec<TypeId>,
    pub(crate) answers: ByName<AnswerFromState>,
    timers: ByDomainAndName<Decide>,
    /// The domain of a timer that older versions stored without it, by the name of the document.
    unqualified: ByName<&'static str>,
    pub(crate) routes: Vec<AddRoute>,
    pub(crate) card: ActorCard,
    /// The names that stored events of the domain may have; unknown without a node.
    pub(crate) events: Option<Arc<HashSet<String>>>,
    /// The snapshot policy, if snapshots are kept.
    pub(super) snapshots: Option<SnapshotPolicy>,
    /// The commands that leave the node, and so need the fingerprint of their type.
    pub(crate) shapes: Arc<PeerShapes>,
    /// The names of the headers that are passed on from a handled message to everything that it causes.
    pub(crate) propagated: Arc<[String]>,
}

impl std::fmt::Debug for HandlerTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandlerTable").field("card", &self.card).finish_non_exhaustive()
    }
}

impl HandlerTable {
    /// Builds the table of an actor type.
    pub fn of<A: Stateful>() -> Self {
        let mut plan = Plan::new(Self::new(ActorFacts::of::<A>(), A::FORMERLY));
        A::wire(&mut plan);
        plan.table
    }

    fn new(facts: ActorFacts, formerly: &'static [&'static str]) -> Self {
        Self {
            facts,
            commands: HashMap::default(),
            applies: HashMap::default(),
            reacts: HashMap::default(),
            replies: HashMap::default(),
            other_replies: None,
            awaited_replies: Vec::new(),
            answers: HashMap::default(),
            timers: HashMap::default(),
            unqualified: HashMap::default(),
            routes: Vec::new(),
            card: ActorCard {
                name: facts.name.to_owned(),
                role: match facts.role {
                    Role::Aggregate => "aggregate",
                    Role::Saga => "saga",
                },
                formerly,
                // A schema derived from the shape changes with it: there is nothing to compare.
                state: match facts.snapshots {
                    Snapshots::Given { schema, .. } => Some(StateCard { schema, shape: facts.shape }),
                    Snapshots::IfCoded | Snapshots::Never => None,
                },
                ..ActorCard::default()
            },
            events: None,
            snapshots: SnapshotPolicy::of(facts.snapshots, facts.is_coded, facts.shape),
            shapes: Arc::default(),
            propagated: Arc::default(),
        }
    }

    pub(crate) fn add_command(&mut self, of: MessageFacts, card: MessageCard, decide: Decide, route: AddRoute) {
        self.card.handles.push(card);
        self.commands.extend(of.names().map(|name| (name, decide)));
        self.routes.push(route);
    }

    pub(crate) fn add_apply(&mut self, of: MessageFacts, card: MessageCard, apply: ApplyStored) {
        self.card.records.push(card);
        self.applies.extend(of.names().map(|name| (name, apply)));
    }

    pub(crate) fn add_react(&mut self, of: MessageFacts, card: MessageCard, key_of: KeyOf, decide: Decide) {
        self.card.takes.push(card);
        self.reacts.extend(of.names().map(|name| ((of.domain, name), (key_of, decide))));
    }

    pub(crate) fn add_reply(&mut self, of: MessageFacts, card: MessageCard, command: TypeId, decide: Decide) {
        self.card.replies.push(card);
        self.awaited_replies.push(command);
        self.replies.extend(of.names().map(|name| ((of.domain, name), decide)));
    }

    pub(crate) fn add_answer(&mut self, of: MessageFacts, card: MessageCard, answer: AnswerFromState) {
        self.card.answers.push(card);
        self.answers.extend(of.names().map(|name| (name, answer)));
    }

    pub(crate) fn add_timer(&mut self, of: MessageFacts, card: MessageCard, decide: Decide) {
        self.card.timers.push(card);
        self.timers.extend(of.names().map(|name| ((of.domain, name), decide)));
        if of.domain != self.facts.domain {
            self.unqualified.extend(of.names().map(|name| (name, of.domain)));
        }
    }

    /// Adds an event that is recorded as it is received. Callers encode it; there is no typed endpoint.
    pub(crate) fn add_published<E: Event>(&mut self, decide: Decide) {
        let facts = MessageFacts::of::<E>();
        self.add_command(facts, MessageCard::of::<E>(), decide, |_, _| {});
        self.add_apply(facts, MessageCard::of::<E>(), |_, _, _, _| Ok(()));
    }

    pub(crate) fn add_own_command(&mut self, name: &'static str, decide: Decide) {
        self.commands.insert(name, decide);
    }

    #[cfg(feature = "schedules")]
    pub(crate) fn add_own_apply(&mut self, name: &'static str, apply: ApplyStored) {
        self.applies.insert(name, apply);
    }

    /// Handles the replies to all commands that the actor sends and that no other handler is listed for.
    #[cfg(feature = "schedules")]
    pub(crate) fn add_own_reply(&mut self, decide: Decide) {
        self.other_replies = Some(decide);
    }

    pub(crate) fn add_own_timer(&mut self, name: &'static str, decide: Decide) {
        self.timers.insert((self.facts.domain, name), decide);
    }

    /// Returns the handler of a timer with a document of this domain and name.
    pub(crate) fn timer(&self, domain: &str, name: &str) -> Option<Decide> {
        let decide = self.timers.get(&(domain, name));
        let older = || self.unqualified.get(name).and_then(|domain| self.timers.get(&(*domain, name)));
        decide.or_else(|| if domain == self.facts.domain { older() } else { None }).copied()
    }

    /// Returns the name under which older versions stored the timer that is now `stored`, if it differs.
    pub(crate) fn legacy_timer_name<'a>(&self, stored: &'a str) -> Option<&'a str> {
        let (domain, name) = timer_parts(stored);
        let meant = self.unqualified.get(name)?;
        let is_own = self.timers.contains_key(&(self.facts.domain, name));
        (!is_own && Some(*meant) == domain).then_some(name)
    }

    /// Returns whether the domain knows a stored event that the actor does not apply.
    pub(crate) fn knows_event(&self, name: &str) -> bool {
        self.events.as_ref().is_none_or(|events| events.contains(name))
    }

    pub(crate) fn wants_reply(&self, command: TypeId) -> bool {
        self.awaited_replies.contains(&command)
    }
}
