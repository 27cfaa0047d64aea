//! The identity of an actor type: the part of its description that its requested effects read.
//!
//! Built with the [handler table](super::handler_table), which calls functions on effects. Shared with the
//! [effects](super::requested), so that they do not name the table.

use std::any::TypeId;
use std::sync::Arc;

use crate::router::PeerShapes;
use whizbang_core::message::Codec;

/// The role of an actor type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Guards one consistency boundary.
    Aggregate,
    /// Reacts to events by sending commands.
    Saga,
}

/// The constants of an actor type.
#[derive(Clone, Copy)]
pub(crate) struct ActorFacts {
    pub(crate) domain: &'static str,
    /// The number of shards of the domain.
    pub(crate) shards: u16,
    /// The codec of the domain.
    pub(crate) codec: Codec,
    pub(crate) name: &'static str,
    pub(crate) role: Role,
}

/// The constants of an actor type, and the settings of its node for everything that it sends.
#[derive(Clone)]
pub(crate) struct ActorIdentity {
    pub(crate) facts: ActorFacts,
    /// The commands whose replies the actor handles.
    awaited_replies: Vec<TypeId>,
    /// The commands that leave the node, and so need the fingerprint of their type.
    pub(crate) shapes: Arc<PeerShapes>,
    /// The names of the headers that are passed on from a handled message to everything that it causes.
    pub(crate) propagated: Arc<[String]>,
}

impl ActorIdentity {
    pub(super) fn new(facts: ActorFacts) -> Self {
        Self { facts, awaited_replies: Vec::new(), shapes: Arc::default(), propagated: Arc::default() }
    }

    /// Adds a command whose reply the actor handles.
    pub(super) fn await_reply(&mut self, command: TypeId) {
        self.awaited_replies.push(command);
    }

    pub(crate) fn wants_reply(&self, command: TypeId) -> bool {
        self.awaited_replies.contains(&command)
    }
}
