//! Manifest: the composition of a node as a printable value: domains, owners, messages, versions, subscriptions.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use foldhash::fast::FixedState;
use serde::Serialize;

use whizbang_core::message::{Codec, Coded, Command, Domain, Message, Name, NameError, Query, ReplyShape, Shape};

/// Composition of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Service of the node.
    pub service: String,
    /// Domains that it owns.
    pub domains: Vec<DomainCard>,
    /// Projections that it hosts.
    pub projections: Vec<ActorCard>,
}

/// One domain that a node owns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DomainCard {
    /// Name of the domain.
    pub name: String,
    /// Number of shards.
    pub shards: u16,
    /// Hosted actor types.
    pub actors: Vec<ActorCard>,
    /// Retired names.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub retired: &'static [&'static str],
}

/// One actor type, projection or worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ActorCard {
    /// Name.
    pub name: String,
    /// `aggregate`, `saga`, `projection` or `worker`.
    pub role: &'static str,
    /// Commands that it handles.
    pub handles: Vec<MessageCard>,
    /// Events that it records.
    pub records: Vec<MessageCard>,
    /// Events that it subscribes to.
    pub takes: Vec<MessageCard>,
    /// Commands whose replies it handles.
    pub replies: Vec<MessageCard>,
    /// Its timers.
    pub timers: Vec<MessageCard>,
    /// Queries that it answers.
    pub answers: Vec<MessageCard>,
    /// Former names.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub formerly: &'static [&'static str],
    /// It needs a store that [runs statements](whizbang_core::store::Store::runs_statements).
    #[serde(skip)]
    pub needs_statements: bool,
    /// Its state as kept in snapshots or as a view.
    #[serde(skip)]
    pub state: Option<StateCard>,
}

/// Stored state of an actor type or a projection.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct StateCard {
    /// Schema of the state.
    pub schema: u32,
    /// Returns the shape of the state, if the state is stored.
    pub shape: fn() -> Option<Arc<Shape>>,
}

/// Shapes follow from the Rust type.
impl PartialEq for StateCard {
    fn eq(&self, other: &Self) -> bool {
        self.schema == other.schema
    }
}
impl Eq for StateCard {}

/// One message type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MessageCard {
    /// Domain of the message.
    pub domain: String,
    /// Name in the domain.
    pub name: String,
    /// Schema version.
    pub version: u32,
    /// Number of shards of its domain.
    pub shards: u16,
    /// Codec of its domain.
    #[serde(skip)]
    pub codec: Codec,
    /// Rust type.
    #[serde(skip)]
    pub type_name: &'static str,
    /// Former names.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub formerly: &'static [&'static str],
    /// Shapes of its schema versions.
    #[serde(skip)]
    pub shapes: Shapes,
    /// Shape of the reply, for a command or a query.
    #[serde(skip)]
    pub reply: Option<ReplyShape>,
    /// Renders its payloads for the failure reports of simulations.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[serde(skip)]
    pub texts: PayloadTexts,
}

/// Shapes of a message type's schema versions.
#[derive(Clone, Copy, Debug)]
pub struct Shapes(fn(u32, Codec) -> Option<Arc<Shape>>);

impl Shapes {
    /// Returns the shape of a schema version's bytes, if it is known.
    pub fn of(&self, version: u32, codec: Codec) -> Option<Arc<Shape>> {
        (self.0)(version, codec)
    }
}

/// Shapes follow from the Rust type, which is compared by its name.
impl PartialEq for Shapes {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Shapes {}

/// Renders the payloads of a message type, and of the replies to it, as JSON.
#[cfg(feature = "testing")]
#[derive(Clone, Copy, Debug)]
pub struct PayloadTexts {
    message: MessageText,
    reply: Option<ReplyText>,
}

#[cfg(feature = "testing")]
type MessageText = fn(u32, Codec, &[u8]) -> Option<String>;
#[cfg(feature = "testing")]
type ReplyText = fn(Codec, &[u8]) -> Option<String>;

#[cfg(feature = "testing")]
impl PayloadTexts {
    fn of<M: Message>() -> Self {
        let message: MessageText = |version, codec, payload| {
            let (mut text, value) = (Vec::new(), M::decode(version, codec, payload).ok()?);
            value.encode(Codec::Json, &mut text).ok()?;
            String::from_utf8(text).ok()
        };
        Self { message, reply: None }
    }

    fn of_command<C: Command>() -> Self {
        let reply: ReplyText = |codec, payload| {
            let (mut text, reply) = (Vec::new(), C::Reply::read_reply(codec, payload).ok()?);
            reply.ok()?.write(Codec::Json, &mut text).ok()?;
            String::from_utf8(text).ok()
        };
        Self { reply: Some(reply), ..Self::of::<C>() }
    }

    /// Returns the payload of a message as JSON; `None` if it cannot be decoded or has no JSON form.
    pub fn message(&self, version: u32, codec: Codec, payload: &[u8]) -> Option<String> {
        (self.message)(version, codec, payload)
    }

    /// Returns the payload of a reply that is not a rejection as JSON.
    pub fn reply(&self, codec: Codec, payload: &[u8]) -> Option<String> {
        self.reply.and_then(|reply| reply(codec, payload))
    }

    /// Returns whether replies can be rendered.
    pub fn has_replies(&self) -> bool {
        self.reply.is_some()
    }
}

/// Texts follow from the Rust type, which is compared by its name.
#[cfg(feature = "testing")]
impl PartialEq for PayloadTexts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
#[cfg(feature = "testing")]
impl Eq for PayloadTexts {}

impl MessageCard {
    /// Returns the card of a command type.
    pub fn of_command<C: Command>() -> Self {
        let card = Self { reply: Some(ReplyShape(C::Reply::shape)), ..Self::of::<C>() };
        #[cfg(feature = "testing")]
        let card = Self { texts: PayloadTexts::of_command::<C>(), ..card };
        card
    }

    /// Returns the card of a query type.
    pub fn of_query<Q: Query>() -> Self {
        Self { reply: Some(ReplyShape(Q::Reply::shape)), ..Self::of::<Q>() }
    }

    /// Returns the card of a message type.
    pub fn of<M: Message>() -> Self {
        Self {
            domain: M::Domain::NAME.to_owned(),
            name: M::NAME.to_owned(),
            version: M::VERSION,
            shards: M::Domain::SHARDS,
            codec: <M::Domain as Domain>::CODEC,
            type_name: std::any::type_name::<M>(),
            formerly: M::FORMERLY,
            shapes: Shapes(M::shape),
            reply: None,
            #[cfg(feature = "testing")]
            texts: PayloadTexts::of::<M>(),
        }
    }

    /// Returns all names under which its bytes may be stored or sent: the current one and the former ones.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&*self.name).chain(self.formerly.iter().copied())
    }
}

impl Manifest {
    /// Returns the queries that actors answer from the state of a key, by domain and name.
    ///
    /// # Errors
    /// A name is invalid.
    pub(crate) fn keyed_queries(&self) -> Result<HashSet<(Name, Name), FixedState>, NameError> {
        let actors = self.domains.iter().flat_map(|domain| &domain.actors);
        let cards = actors.flat_map(|actor| &actor.answers);
        let names = cards.flat_map(|card| card.names().map(|name| (&*card.domain, name)));
        names.map(|(domain, name)| Ok((Name::new(domain)?, Name::new(name)?))).collect()
    }
}

impl ActorCard {
    /// Returns all names under which it may be stored: the current one and the former ones.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&*self.name).chain(self.formerly.iter().copied())
    }

    /// Returns whether the two could refer to the same stored data.
    pub fn shares_a_name(&self, other: &Self) -> bool {
        self.names().any(|name| other.names().any(|other| other == name))
    }
}

impl fmt::Display for ActorCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "    {} {}", self.role, self.name)?;
        let lists = [
            ("handles", &self.handles),
            ("records", &self.records),
            ("takes", &self.takes),
            ("hears replies to", &self.replies),
            ("wakes by", &self.timers),
            ("answers", &self.answers),
        ];
        for (verb, cards) in lists {
            if !cards.is_empty() {
                let names: Vec<_> =
                    cards.iter().map(|card| format!("{}.{} v{}", card.domain, card.name, card.version)).collect();
                writeln!(f, "      {verb}: {}", names.join(", "))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "service {}", self.service)?;
        for domain in &self.domains {
            writeln!(f, "  domain {} ({} shards)", domain.name, domain.shards)?;
            for actor in &domain.actors {
                actor.fmt(f)?;
            }
        }
        for projection in &self.projections {
            projection.fmt(f)?;
        }
        Ok(())
    }
}
