//! The queues of leased shards: the messages for a shard follow it from owner to owner.
//!
//! Used by the hub. A message stays in the queue of its shard until the owner has acknowledged it, so a later owner receives at
//! once what an earlier one left. A message carries the epoch of its delivery: the acknowledgement of an owner counts until
//! the next owner has taken the shard, and not after that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::member::{Member, MessageKind, QUEUE_CAPACITY, QueuedMessage, ShardTicket};
use crate::Packet;
use crate::queue::PushOutcome;
use whizbang_core::bridge::BridgeError;
use whizbang_core::message::ShardId;
use whizbang_core::store::Epoch;

/// The name of the hub in errors.
pub(super) const BROKER_NAME: &str = "the loopback hub";

#[derive(Default)]
pub(super) struct ShardQueues(Mutex<BTreeMap<ShardId, ShardQueue>>);

#[derive(Default)]
struct ShardQueue {
    /// The epoch of the last owner.
    epoch: Epoch,
    /// The member that receives the messages. `None` between two owners.
    owner: Option<Arc<Member>>,
    /// The messages that are not acknowledged, by number.
    messages: BTreeMap<u64, Packet>,
    /// The number of the last message.
    last: u64,
}

impl ShardQueue {
    fn push_all(&self, shard: &ShardId) {
        let Some(owner) = &self.owner else { return };
        for (number, packet) in &self.messages {
            // Beyond the bound of the member's queue too: the messages are in memory already, and no sender waits for them.
            drop(owner.messages.push(self.message(shard, *number, packet.clone(), Duration::ZERO)));
        }
    }

    fn message(&self, shard: &ShardId, number: u64, packet: Packet, delay: Duration) -> QueuedMessage {
        let ticket = ShardTicket { shard: shard.clone(), number, epoch: self.epoch };
        QueuedMessage { kind: MessageKind::Direct, packet, delay, deliveries: 0, ticket: Some(ticket) }
    }
}

/// Lets the senders that wait for space at an earlier owner continue: it may be paused, and the shard keeps their messages.
fn release_senders(earlier: &Member, shard: &ShardId) {
    earlier.messages.release(|message| message.ticket.as_ref().is_some_and(|ticket| ticket.shard == *shard));
}

impl ShardQueues {
    /// Makes a member the owner of a shard and delivers the messages that earlier owners have not acknowledged.
    pub(super) fn own(&self, shard: &ShardId, epoch: Epoch, member: &Arc<Member>) -> Result<(), BridgeError> {
        let mut queues = self.0.lock();
        let queue = queues.entry(shard.clone()).or_default();
        let is_owner = queue.owner.as_ref().is_some_and(|owner| owner.id == member.id);
        if queue.epoch > epoch || queue.epoch == epoch && queue.owner.is_some() && !is_owner {
            let reason = format!("shard {shard} is received by a later owner, with epoch {}", queue.epoch);
            return Err(BridgeError::Refused { broker: BROKER_NAME.to_owned(), reason });
        }
        if queue.epoch == epoch && is_owner {
            return Ok(());
        }
        queue.epoch = epoch;
        if let Some(earlier) = queue.owner.replace(Arc::clone(member)) {
            release_senders(&earlier, shard);
        }
        queue.push_all(shard);
        Ok(())
    }

    /// Ends the delivery of a shard to a member. No-op if another member owns it.
    pub(super) fn disown(&self, shard: &ShardId, member: &Member) {
        let mut queues = self.0.lock();
        if let Some(owner) = queues.get_mut(shard).and_then(|queue| queue.owner.take_if(|owner| owner.id == member.id))
        {
            release_senders(&owner, shard);
        }
    }

    /// Ends the delivery of all shards to a member.
    pub(super) fn disown_all(&self, member: &Member) {
        for queue in self.0.lock().values_mut() {
            queue.owner.take_if(|owner| owner.id == member.id);
        }
    }

    /// Returns the owner of a shard.
    pub(super) fn owner(&self, shard: &ShardId) -> Option<Arc<Member>> {
        self.0.lock().get(shard)?.owner.clone()
    }

    /// Appends a message. Without an owner it waits for the next one. `None` if too many messages wait.
    pub(super) fn push(&self, shard: &ShardId, packet: Packet, delay: Duration) -> Option<PushOutcome> {
        let mut queues = self.0.lock();
        let queue = queues.entry(shard.clone()).or_default();
        if queue.owner.is_none() && queue.messages.len() >= QUEUE_CAPACITY {
            return None;
        }
        queue.last += 1;
        queue.messages.insert(queue.last, packet.clone());
        let message = queue.message(shard, queue.last, packet, delay);
        Some(match queue.owner.as_ref().map(|owner| owner.messages.push(message)) {
            // An owner that is gone: the next one receives the message.
            None | Some(PushOutcome::Closed) => PushOutcome::Accepted,
            Some(pushed) => pushed,
        })
    }

    /// Delivers the unacknowledged messages of a member's shards again.
    pub(super) fn redeliver(&self, member: &Member) {
        for (shard, queue) in &*self.0.lock() {
            if queue.owner.as_ref().is_some_and(|owner| owner.id == member.id) {
                queue.push_all(shard);
            }
        }
    }

    /// Returns true if the member may still handle a message: it owns the shard in the same epoch.
    pub(super) fn is_current(&self, ticket: &ShardTicket, member: &Member) -> bool {
        self.0.lock().get(&ticket.shard).is_some_and(|queue| {
            queue.epoch == ticket.epoch
                && queue.owner.as_ref().is_some_and(|owner| owner.id == member.id)
                && queue.messages.contains_key(&ticket.number)
        })
    }

    /// Removes an acknowledged message, unless a later owner has taken the shard since.
    pub(super) fn settle(&self, ticket: &ShardTicket) {
        if let Some(queue) = self.0.lock().get_mut(&ticket.shard).filter(|queue| queue.epoch == ticket.epoch) {
            queue.messages.remove(&ticket.number);
        }
    }
}
