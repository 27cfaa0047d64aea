//! The cause of each turn: the event, command or reply that it handles, and the turn that produced that message.

use std::collections::HashMap;

use whizbang::message::{Kind, MessageId};

use super::search::Found;

/// The turn that produced each message, and a description of the message.
pub(super) struct Causes {
    messages: HashMap<MessageId, (usize, String)>,
    /// The index of the causing turn, for each turn.
    parents: Vec<Option<usize>>,
}

impl Causes {
    pub(super) fn of(found: &[Found]) -> Self {
        let mut messages = HashMap::new();
        for (at, Found { actor, shard, turn, .. }) in found.iter().enumerate() {
            for event in &turn.events {
                let id = MessageId::of_event(shard, event.position, event.cause);
                messages.insert(id, (at, format!("{} of {actor}", event.name)));
            }
            for sent in &turn.sent {
                let description = match sent.kind {
                    Kind::Reply => format!("the reply to {}", sent.name),
                    _ => format!("{} of {actor}", sent.name),
                };
                messages.insert(sent.id, (at, description));
            }
        }
        let parents = found.iter().map(|found| messages.get(&found.turn.id).map(|(at, _)| *at)).collect();
        Self { messages, parents }
    }

    /// Describes a message in words; `None` if no turn of the order produced it.
    pub(super) fn describe(&self, message: MessageId) -> Option<&str> {
        self.messages.get(&message).map(|(_, description)| description.as_str())
    }

    /// The length of the chain of causes before a turn.
    pub(super) fn depth(&self, turn: usize) -> usize {
        let cause = |turn: &usize| self.parents.get(*turn).copied().flatten();
        // A chain has at most as many links as there are turns. The bound ends the walk if a corrupt log contains a cycle.
        std::iter::successors(cause(&turn), cause).take(self.parents.len()).count()
    }
}
