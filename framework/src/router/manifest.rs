//! What a node is made of, as a value that can be printed: domains, owners, messages, versions, subscriptions.

use std::fmt;

use serde::Serialize;

use crate::message::{Codec, Domain, Message};

/// What a node is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// The service the node is of.
    pub service: String,
    /// The domains it owns.
    pub domains: Vec<DomainCard>,
    /// The projections it hosts.
    pub projections: Vec<ActorCard>,
}

/// One domain a node owns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DomainCard {
    /// The domain's name.
    pub name: String,
    /// How many shards it has.
    pub shards: u16,
    /// The actor types hosted.
    pub actors: Vec<ActorCard>,
}

/// One actor type, projection or worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ActorCard {
    /// Its name.
    pub name: String,
    /// `aggregate`, `saga`, `projection` or `worker`.
    pub role: &'static str,
    /// The commands it handles.
    pub handles: Vec<MessageCard>,
    /// The events it records.
    pub records: Vec<MessageCard>,
    /// The events it takes.
    pub takes: Vec<MessageCard>,
    /// The commands whose replies it takes.
    pub replies: Vec<MessageCard>,
    /// Its timers.
    pub timers: Vec<MessageCard>,
    /// The queries it answers.
    pub answers: Vec<MessageCard>,
}

/// One message type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MessageCard {
    /// The domain it belongs to.
    pub domain: String,
    /// Its name there.
    pub name: String,
    /// Its schema version.
    pub version: u32,
    /// How many shards its domain has.
    pub shards: u16,
    /// How its domain's messages become bytes.
    #[serde(skip)]
    pub codec: Codec,
    /// The Rust type.
    #[serde(skip)]
    pub type_name: &'static str,
}

impl MessageCard {
    /// The card of a message type.
    pub fn of<M: Message>() -> Self {
        Self {
            domain: M::Domain::NAME.to_owned(),
            name: M::NAME.to_owned(),
            version: M::VERSION,
            shards: M::Domain::SHARDS,
            codec: <M::Domain as Domain>::CODEC,
            type_name: std::any::type_name::<M>(),
        }
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
