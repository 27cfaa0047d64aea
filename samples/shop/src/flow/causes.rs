//! The cause of each turn: the event or command that another turn has brought about.

use std::collections::HashMap;

use whizbang::message::{Kind, MessageId};

use super::search::Found;

/// For each message the turn it came of, and what it is called.
pub(super) struct Causes {
    messages: HashMap<MessageId, (usize, String)>,
    /// For each turn the one that caused it.
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
                let what = match sent.kind {
                    Kind::Reply => format!("the reply to {}", sent.name),
                    _ => format!("{} of {actor}", sent.name),
                };
                messages.insert(sent.id, (at, what));
            }
        }
        let parents = found.iter().map(|found| messages.get(&found.turn.id).map(|(at, _)| *at)).collect();
        Self { messages, parents }
    }

    /// The name of a message, for people.
    pub(super) fn what(&self, message: MessageId) -> Option<&str> {
        self.messages.get(&message).map(|(_, what)| what.as_str())
    }

    /// The number of causes before a turn.
    pub(super) fn depth(&self, turn: usize) -> usize {
        let cause = |turn: &usize| self.parents.get(*turn).copied().flatten();
        // No way is longer than there are turns, so that a spoilt log does not keep this going for ever.
        std::iter::successors(cause(&turn), cause).take(self.parents.len()).count()
    }
}
