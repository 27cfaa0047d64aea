//! The handlers of an actor type, independent of the type: the table that [`Plan`](super::plan::Plan) fills.
//!
//! Read by the [dispatcher](super::dispatcher) and the [turn](super::turn). Its entries are plain functions that know
//! the types behind [`UserState`] and [`AnyEffects`]; everything else of an actor is compiled once for all types.

use std::any::TypeId;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;

use super::identity::{ActorFacts, ActorIdentity, Role};
use super::requested::AnyEffects;
use super::snapshot_policy::{SnapshotPolicy, Snapshots};
use super::timer_name::parts as timer_parts;
use super::unanswered::Unanswered;
use super::user_state::UserState;
use crate::router::{ActorCard, MessageCard, PeerShapes, StateCard};
use whizbang_core::clock::MonotonicTime;
use whizbang_core::message::{Codec, CodecError, Envelope, Event, MessageFacts, Shape};

/// Answers a query from the state of an actor.
pub(crate) type AnswerFromState = fn(&dyn UserState, &Envelope) -> Result<Bytes, Unanswered>;

/// The constants and constructors of the state of an actor type.
#[derive(Clone, Copy)]
pub(super) struct StateFacts {
    pub(super) snapshots: Snapshots,
    /// True if the state has a coding.
    pub(super) is_coded: bool,
    /// Same as [`Stateful::initial`](super::plan::Stateful::initial).
    pub(super) initial: fn() -> Box<dyn UserState>,
    /// Decodes a state; `None` if the bytes are unusable.
    pub(super) restore: fn(&[u8]) -> Option<Box<dyn UserState>>,
    /// Returns the shape of the state's bytes, if it has a coding. User code.
    pub(super) shape: fn() -> Option<Arc<Shape>>,
}

/// Creates the buffers of a turn.
pub(super) type NewEffects = fn(Rc<ActorIdentity>, MonotonicTime) -> Box<dyn AnyEffects>;
/// Runs an actor's decision on a message: fills the effects, including the reply. Fails if the message cannot be
/// decoded.
pub(crate) type Decide = fn(&dyn UserState, &Envelope, &mut dyn AnyEffects) -> Result<(), CodecError>;
/// Changes a state by a stored event.
pub(crate) type ApplyStored = fn(&mut dyn UserState, u32, Codec, &[u8]) -> Result<(), CodecError>;
/// Returns the key of the actor that handles an event.
pub(crate) type KeyOf = fn(&Envelope) -> Result<Option<String>, CodecError>;
type ByName<T> = HashMap<&'static str, T, FixedState>;
type ByDomainAndName<T> = HashMap<(&'static str, &'static str), T, FixedState>;

/// The handlers of an actor type.
pub struct HandlerTable {
    pub(crate) facts: ActorFacts,
    /// The part that the effects of a turn read.
    pub(super) identity: Rc<ActorIdentity>,
    /// The constants and constructors of the state.
    pub(super) state: StateFacts,
    pub(super) new_effects: NewEffects,
    pub(crate) commands: ByName<Decide>,
    pub(crate) applies: ByName<ApplyStored>,
    pub(crate) reacts: ByDomainAndName<(KeyOf, Decide)>,
    pub(crate) replies: ByDomainAndName<Decide>,
    /// Handles the replies to commands without a handler, for the framework's own actors.
    pub(crate) other_replies: Option<Decide>,
    pub(crate) answers: ByName<AnswerFromState>,
    timers: ByDomainAndName<Decide>,
    /// The domain of a timer that older versions stored without it, by the name of the document.
    unqualified: ByName<&'static str>,
    pub(crate) card: ActorCard,
    /// The names that stored events of the domain may have; unknown without a node.
    pub(crate) events: Option<Arc<HashSet<String>>>,
    /// The snapshot policy, if snapshots are kept.
    pub(super) snapshots: Option<SnapshotPolicy>,
}

impl std::fmt::Debug for HandlerTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandlerTable").field("card", &self.card).finish_non_exhaustive()
    }
}

impl HandlerTable {
    pub(super) fn new(
        facts: ActorFacts,
        state: StateFacts,
        new_effects: NewEffects,
        formerly: &'static [&'static str],
    ) -> Self {
        Self {
            facts,
            identity: Rc::new(ActorIdentity::new(facts)),
            state,
            new_effects,
            commands: HashMap::default(),
            applies: HashMap::default(),
            reacts: HashMap::default(),
            replies: HashMap::default(),
            other_replies: None,
            answers: HashMap::default(),
            timers: HashMap::default(),
            unqualified: HashMap::default(),
            card: ActorCard {
                name: facts.name.to_owned(),
                role: match facts.role {
                    Role::Aggregate => "aggregate",
                    Role::Saga => "saga",
                },
                formerly,
                // A schema derived from the shape changes with it: there is nothing to compare.
                state: match state.snapshots {
                    Snapshots::Given { schema, .. } => Some(StateCard { schema, shape: state.shape }),
                    Snapshots::IfCoded | Snapshots::Never => None,
                },
                ..ActorCard::default()
            },
            events: None,
            snapshots: SnapshotPolicy::of(state.snapshots, state.is_coded, state.shape),
        }
    }

    /// Adds what the node knows: the events of the domain, and the settings for everything that the actor sends.
    pub(crate) fn connect(
        &mut self,
        events: &Arc<HashSet<String>>,
        shapes: &Arc<PeerShapes>,
        propagated: &Arc<[String]>,
    ) {
        self.events = Some(Arc::clone(events));
        let identity = Rc::make_mut(&mut self.identity);
        (identity.shapes, identity.propagated) = (Arc::clone(shapes), Arc::clone(propagated));
    }

    pub(crate) fn add_command(&mut self, of: MessageFacts, card: MessageCard, decide: Decide) {
        self.card.handles.push(card);
        self.commands.extend(of.names().map(|name| (name, decide)));
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
        Rc::make_mut(&mut self.identity).await_reply(command);
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
        self.add_command(facts, MessageCard::of::<E>(), decide);
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
}
