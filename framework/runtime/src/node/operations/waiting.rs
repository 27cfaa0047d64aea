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

/// A delayed message or a schedule with a content that this version cannot read: it is damaged, or a newer version has
/// written it. A delayed message becomes a dead letter when it is due. A schedule is sent from its events, which hold the
/// same content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to read `{key}`, which waits in `{domain}`: {reason}")]
#[non_exhaustive]
pub struct UnreadableTimer {
    /// The domain in whose log it waits.
    pub domain: Name,
    /// The id of the delayed message, or the name of the schedule.
    pub key: String,
    /// The time at which it is due.
    pub due: Timestamp,
    /// The error of its content.
    pub reason: String,
}

impl Node {
    /// Returns the delayed messages that wait in the shards of this node, at most `limit` of each shard: those that are due
    /// next. An entry that cannot be read is an error in the list. Costs their number.
    ///
    /// # Errors
    /// None now; reserved for stores whose index is not in memory.
    pub fn delayed_messages(&self, limit: usize) -> Result<Vec<Result<WaitingMessage, UnreadableTimer>>, Error> {
        Ok(delayed(&self.definition, limit))
    }

    /// Returns the schedules in the shards of this node. An entry that cannot be read is an error in the list, behind the
    /// others. Costs their number.
    ///
    /// # Errors
    /// None now; reserved for stores whose index is not in memory.
    #[cfg(feature = "schedules")]
    pub fn schedules(&self) -> Result<Vec<Result<ActiveSchedule, UnreadableTimer>>, Error> {
        Ok(schedules(&self.definition))
    }
}

impl NodeHandle {
    /// Same as [`Node::delayed_messages`].
    ///
    /// # Errors
    /// [`SendError::Stopped`] in [`Error::Send`] if the node has ended.
    pub fn delayed_messages(&self, limit: usize) -> Result<Vec<Result<WaitingMessage, UnreadableTimer>>, Error> {
        Ok(delayed(&*self.definition().ok_or(SendError::Stopped)?, limit))
    }

    /// Same as [`Node::schedules`].
    ///
    /// # Errors
    /// [`SendError::Stopped`] in [`Error::Send`] if the node has ended.
    #[cfg(feature = "schedules")]
    pub fn schedules(&self) -> Result<Vec<Result<ActiveSchedule, UnreadableTimer>>, Error> {
        Ok(schedules(&*self.definition().ok_or(SendError::Stopped)?))
    }
}

fn delayed(definition: &NodeDefinition, limit: usize) -> Vec<Result<WaitingMessage, UnreadableTimer>> {
    let mut found = Vec::new();
    each_timer(definition, SCHEDULER, limit, |domain, timer| {
        found.push(waiting_message(domain, &timer).map_err(|reason| unreadable(domain, timer, reason)));
    });
    found
}

fn waiting_message(domain: &Name, timer: &Timer) -> Result<WaitingMessage, String> {
    let id = MessageId::parse(&timer.key).ok_or("the key is not a message id")?;
    let message = DelayedMessage::read(timer.codec, &timer.payload).map_err(|error| error.to_string())?;
    let (planned, ..) = message.into_parts();
    let (to, name, key) = (planned.domain, planned.name, planned.key);
    Ok(WaitingMessage { domain: domain.clone(), id, to, name, key, due: timer.due })
}

fn unreadable(domain: &Name, timer: Timer, reason: String) -> UnreadableTimer {
    UnreadableTimer { domain: domain.clone(), key: timer.key, due: timer.due, reason }
}

#[cfg(feature = "schedules")]
fn schedules(definition: &NodeDefinition) -> Vec<Result<ActiveSchedule, UnreadableTimer>> {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    each_timer(definition, SCHEDULES, usize::MAX, |domain, timer| {
        match ActiveSchedule::read(domain.as_str(), timer.key.clone(), &timer.payload) {
            Ok(schedule) => found.push(schedule),
            Err(error) => failed.push(unreadable(domain, timer, error.to_string())),
        }
    });
    found.sort_by(|a, b| (&a.domain, &a.name).cmp(&(&b.domain, &b.name)));
    found.into_iter().map(Ok).chain(failed.into_iter().map(Err)).collect()
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
