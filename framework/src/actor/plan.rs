//! What the derives say about an actor type: who it is and what it takes.

use std::any::TypeId;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::Effects;
use super::door::TypeDoor;
use super::snapshots::{SnapshotRule, Snapshots};
use super::timer_parts;
use crate::clock::Timestamp;
use crate::message::{Codec, CodecError, Command, Domain, Envelope, Message, MessageId, Name, StateCoding};
use crate::router::{ActorCard, LocalRoutes, MessageCard, PeerShapes, StateCard};

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
pub struct About {
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

impl About {
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

/// Lets an actor decide on a message: fills the effects, reply included. The error says what cannot be read.
pub(crate) type Decide<A> = Box<Deciding<A>>;
type Deciding<A> = dyn Fn(&A, &Envelope, &mut Effects<A>) -> Result<(), CodecError>;
type ApplyStored<A> = fn(&mut A, u32, Codec, &[u8]) -> Result<(), CodecError>;
type KeyOf = fn(&Envelope) -> Result<Option<String>, CodecError>;
type AddRoute<A> = Box<dyn Fn(&Rc<TypeDoor<A>>, &mut LocalRoutes)>;
type ByName<T> = HashMap<&'static str, T, FixedState>;
type ByDomainAndName<T> = HashMap<(&'static str, &'static str), T, FixedState>;

/// The names that a stored or sent message of the type may have.
pub(crate) fn names<M: Message>() -> impl Iterator<Item = &'static str> {
    std::iter::once(M::NAME).chain(M::FORMERLY.iter().copied())
}

/// The list that [`Stateful::wire`] fills.
#[doc(hidden)]
pub struct Plan<A: Stateful> {
    pub(crate) commands: ByName<Rc<Deciding<A>>>,
    pub(crate) applies: ByName<ApplyStored<A>>,
    pub(crate) reacts: ByDomainAndName<(KeyOf, Rc<Deciding<A>>)>,
    pub(crate) replies: ByDomainAndName<Rc<Deciding<A>>>,
    pub(crate) replied: Vec<TypeId>,
    timers: ByDomainAndName<Rc<Deciding<A>>>,
    /// The domain of a timer that older versions have stored without it, by the name of the document.
    unqualified: ByName<&'static str>,
    pub(crate) routes: Vec<AddRoute<A>>,
    pub(crate) card: ActorCard,
    pub(crate) reply_shards: Vec<(&'static str, u16)>,
    /// The names that stored events of the domain may have; without a node nothing is known about them.
    pub(crate) events: Option<Arc<HashSet<String>>>,
    /// When snapshots are kept, if they are.
    pub(crate) snapshots: Option<SnapshotRule<A>>,
    /// Says which commands leave the node, and so bear the fingerprint of their type.
    pub(crate) shapes: Arc<PeerShapes>,
}

impl<A: Stateful> Plan<A> {
    /// The filled list of an actor type.
    pub(crate) fn of() -> Self {
        let mut plan = Self {
            commands: HashMap::default(),
            applies: HashMap::default(),
            reacts: HashMap::default(),
            replies: HashMap::default(),
            replied: Vec::new(),
            timers: HashMap::default(),
            unqualified: HashMap::default(),
            routes: Vec::new(),
            card: ActorCard {
                name: A::NAME.to_owned(),
                role: match A::ROLE {
                    Role::Aggregate => "aggregate",
                    Role::Saga => "saga",
                },
                formerly: A::FORMERLY,
                // A schema that follows from the shape changes with it: there is nothing to compare.
                state: match A::SNAPSHOTS {
                    Snapshots::Given { schema, .. } => {
                        Some(StateCard { schema, shape: || A::coding().and_then(|coding| coding.shape()) })
                    }
                    Snapshots::IfCoded | Snapshots::Never => None,
                },
                ..ActorCard::default()
            },
            reply_shards: Vec::new(),
            events: None,
            snapshots: SnapshotRule::of(),
            shapes: Arc::default(),
        };
        A::wire(&mut plan);
        plan
    }

    pub(crate) fn add_command<M: Command>(&mut self, decide: Decide<A>, route: AddRoute<A>) {
        self.card.handles.push(MessageCard::of_command::<M>());
        let decide: Rc<Deciding<A>> = decide.into();
        self.commands.extend(names::<M>().map(|name| (name, Rc::clone(&decide))));
        self.routes.push(route);
    }

    pub(crate) fn add_apply<M: Message>(&mut self, apply: ApplyStored<A>) {
        self.card.records.push(MessageCard::of::<M>());
        self.applies.extend(names::<M>().map(|name| (name, apply)));
    }

    pub(crate) fn add_react<M: Message>(&mut self, key_of: KeyOf, decide: Decide<A>) {
        self.card.takes.push(MessageCard::of::<M>());
        let decide: Rc<Deciding<A>> = decide.into();
        self.reacts.extend(names::<M>().map(|name| ((M::Domain::NAME, name), (key_of, Rc::clone(&decide)))));
    }

    pub(crate) fn add_reply<M: Command>(&mut self, decide: Decide<A>) {
        self.card.replies.push(MessageCard::of_command::<M>());
        self.replied.push(TypeId::of::<M>());
        let decide: Rc<Deciding<A>> = decide.into();
        self.replies.extend(names::<M>().map(|name| ((M::Domain::NAME, name), Rc::clone(&decide))));
        self.reply_shards.push((M::Domain::NAME, M::Domain::SHARDS));
    }

    pub(crate) fn add_timer<M: Message>(&mut self, decide: Decide<A>) {
        self.card.timers.push(MessageCard::of::<M>());
        let decide: Rc<Deciding<A>> = decide.into();
        self.timers.extend(names::<M>().map(|name| ((M::Domain::NAME, name), Rc::clone(&decide))));
        if M::Domain::NAME != A::Domain::NAME {
            self.unqualified.extend(names::<M>().map(|name| (name, M::Domain::NAME)));
        }
    }

    /// What takes the timer with a document of this domain and name.
    pub(crate) fn timer<'a>(&'a self, domain: &'a str, name: &'a str) -> Option<&'a Rc<Deciding<A>>> {
        let decide = self.timers.get(&(domain, name));
        let older = || self.unqualified.get(name).and_then(|domain| self.timers.get(&(*domain, name)));
        decide.or_else(|| if domain == A::Domain::NAME { older() } else { None })
    }

    /// The name under which older versions have stored the timer that now stands under `stored`, if that is another one.
    pub(crate) fn older_timer_name<'a>(&self, stored: &'a str) -> Option<&'a str> {
        let (domain, name) = timer_parts(stored);
        let meant = self.unqualified.get(name)?;
        let is_own = self.timers.contains_key(&(A::Domain::NAME, name));
        (!is_own && Some(*meant) == domain).then_some(name)
    }

    /// Returns whether a stored event that the actor does not apply is one that its domain knows.
    pub(crate) fn knows_event(&self, name: &str) -> bool {
        self.events.as_ref().is_none_or(|events| events.contains(name))
    }

    pub(crate) fn wants_reply(&self, command: TypeId) -> bool {
        self.replied.contains(&command)
    }
}
