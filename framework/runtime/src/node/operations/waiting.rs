//! Messages that wait for their time, for operators: delayed messages, and the schedules of the node's domains.
//!
//! Called by users on the node and its handle. Reads the timers in the index of each shard, and no log.

use crate::node::definition::NodeDefinition;
use crate::node::error::Error;
use crate::node::lifecycle::handle::NodeHandle;
use crate::node::lifecycle::node::Node;
#[cfg(feature = "schedules")]
use crate::router::SCHEDULES;
use crate::router::{DelayedMessage, SCHEDULER, SendError};
#[cfg(feature = "schedules")]
use crate::schedule::ActiveSchedule;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{MessageId, Name, ShardId};
use whizbang_core::store::{Timer, TimerCursor};

/// Number of timers read at a time.
const PAGE: usize = 256;

/// A delayed message, as [`Node::delayed_messages`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaitingMessage {
    /// The domain in whose log it waits, for [`Client::cancel`](crate::Client::cancel).
    pub domain: Name,
    /// The id under which it will be sent.
    pub id: MessageId,
    /// The domain to which it will be sent.
    pub to: String,
    /// The type of the message.
    pub name: String,
    /// The key of the message.
    pub key: String,
    /// The time at which it is due.
    pub due: Timestamp,
}

impl Node {
    /// Returns the delayed messages that wait in the shards of this node, at most `limit` of each shard: those that are due
    /// next. Costs their number.
    ///
    /// # Errors
    /// None now; reserved for stores whose index is not in memory.
    pub fn delayed_messages(&self, limit: usize) -> Result<Vec<WaitingMessage>, Error> {
        Ok(delayed(&self.definition, limit))
    }

    /// Returns the schedules in the shards of this node. Costs their number.
    ///
    /// # Errors
    /// None now; reserved for stores whose index is not in memory.
    #[cfg(feature = "schedules")]
    pub fn schedules(&self) -> Result<Vec<ActiveSchedule>, Error> {
        Ok(schedules(&self.definition))
    }
}

impl NodeHandle {
    /// As [`Node::delayed_messages`].
    ///
    /// # Errors
    /// [`SendError::Stopped`] in [`Error::Send`] if the node has ended.
    pub fn delayed_messages(&self, limit: usize) -> Result<Vec<WaitingMessage>, Error> {
        Ok(delayed(&*self.definition().ok_or(SendError::Stopped)?, limit))
    }

    /// As [`Node::schedules`].
    ///
    /// # Errors
    /// [`SendError::Stopped`] in [`Error::Send`] if the node has ended.
    #[cfg(feature = "schedules")]
    pub fn schedules(&self) -> Result<Vec<ActiveSchedule>, Error> {
        Ok(schedules(&*self.definition().ok_or(SendError::Stopped)?))
    }
}

fn delayed(definition: &NodeDefinition, limit: usize) -> Vec<WaitingMessage> {
    let mut found = Vec::new();
    each_timer(definition, SCHEDULER, limit, |domain, timer| {
        let message = DelayedMessage::read(timer.codec, &timer.payload).ok().zip(MessageId::parse(&timer.key));
        found.extend(message.map(|(message, id)| {
            let due = timer.due;
            let (planned, ..) = message.into_parts();
            WaitingMessage { domain: domain.clone(), id, to: planned.domain, name: planned.name, key: planned.key, due }
        }));
    });
    found
}

#[cfg(feature = "schedules")]
fn schedules(definition: &NodeDefinition) -> Vec<ActiveSchedule> {
    let mut found = Vec::new();
    each_timer(definition, SCHEDULES, usize::MAX, |domain, timer| {
        found.extend(ActiveSchedule::read(domain.as_str(), timer.key, &timer.payload).ok());
    });
    found.sort_by(|a, b| (&a.domain, &a.name).cmp(&(&b.domain, &b.name)));
    found
}

/// Calls `found` for the next timers of an actor type in each shard.
fn each_timer(definition: &NodeDefinition, actor: &'static str, limit: usize, mut found: impl FnMut(&Name, Timer)) {
    let Ok(actor) = Name::from_static(actor) else { return };
    for (domain, shards) in &definition.domains {
        for shard in 0..*shards {
            let Some(reader) = definition.reader(&ShardId::new(domain.clone(), shard)) else { continue };
            let (mut after, mut left) = (TimerCursor::default(), limit);
            while left > 0 {
                let page = reader.timers_of(&actor, after, Timestamp::from_millis(u64::MAX), PAGE.min(left));
                let Some((last, _)) = page.due.last() else { break };
                after = *last;
                left -= page.due.len().min(left);
                page.due.into_iter().for_each(|(_, timer)| found(domain, timer));
            }
        }
    }
}
