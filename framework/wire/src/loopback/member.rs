//! One node at the hub: its card, its queues, and the messages in them.
//!
//! The [loop](super::delivery_loop) of the node empties the queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::watches::Attached;
use crate::Packet;
use crate::queue::{PushOutcome, Queue};
use whizbang_core::bridge::{Inbound, NodeCard, Request};
use whizbang_core::message::{Name, ShardId, shard_of};
use whizbang_core::store::Epoch;

/// The number of messages that may wait for a node before its senders are slowed down.
pub(super) const QUEUE_CAPACITY: usize = 4096;

/// A message in the queue of a shard, as it was delivered to an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShardTicket {
    /// The shard whose owner received the message.
    pub(super) shard: ShardId,
    pub(super) number: u64,
    pub(super) epoch: Epoch,
}

/// A one-way message in the queue of a node.
#[derive(Clone)]
pub(super) struct QueuedMessage {
    /// The method of the node that receives it.
    pub(super) kind: MessageKind,
    /// The encoded message.
    pub(super) packet: Packet,
    /// The delay that a test has set; zero otherwise.
    pub(super) delay: Duration,
    /// The number of deliveries so far, for the delay of the next one.
    pub(super) deliveries: u32,
    /// The place of a message for a leased shard in the queue of the shard.
    pub(super) ticket: Option<ShardTicket>,
}

/// The kinds of one-way messages, which differ in what happens to one that the node does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageKind {
    /// A command or reply: delivered again until the node accepts it.
    Direct,
    /// An event: the node may reject it, and reads the log instead.
    Event,
    /// A note that may be lost.
    Notification,
}

/// A request in the queue of a node.
pub(super) struct QueuedRequest {
    pub(super) packet: Packet,
    pub(super) delay: Duration,
    /// Completes the request. Dropped without a response, it fails the request.
    pub(super) response: oneshot::Sender<Packet>,
}

/// An attached node. Its loop handles messages and requests until it is detached or dropped.
pub(super) struct Member {
    /// The number of the node in its hub, in the order of the attachments.
    pub(super) id: u64,
    /// The description by which messages are routed.
    pub(super) card: NodeCard,
    /// Messages and events, in the order of their senders' calls.
    pub(super) messages: Queue<QueuedMessage>,
    /// Requests, which do not wait for messages.
    pub(super) requests: Queue<QueuedRequest>,
    /// An event was not queued because the node lags behind: it must check for gaps.
    pub(super) lagging: AtomicBool,
    /// The node is disconnected from the hub.
    pub(super) disconnected: AtomicBool,
    /// The node finishes what it has begun and receives nothing else.
    pub(super) detaching: AtomicBool,
    /// Notified when the loop has ended.
    pub(super) stopped: Notify,
    /// The receiver in the node.
    pub(super) inbound: Arc<dyn Inbound>,
}

impl Member {
    /// Returns a node whose loop has not started.
    pub(super) fn new(number: u64, card: NodeCard, inbound: Arc<dyn Inbound>) -> Self {
        Self {
            id: number,
            card,
            messages: Queue::new(QUEUE_CAPACITY),
            requests: Queue::new(QUEUE_CAPACITY),
            lagging: AtomicBool::new(false),
            disconnected: AtomicBool::new(false),
            detaching: AtomicBool::new(false),
            stopped: Notify::new(),
            inbound,
        }
    }

    /// Returns true while messages to and from the node are lost.
    pub(super) fn is_disconnected(&self) -> bool {
        self.disconnected.load(Ordering::Relaxed)
    }

    /// Adds the shard of the key to a command whose caller does not know the number of shards.
    pub(super) fn resolve_shard(&self, mut request: Request) -> Request {
        if let Request::Command(envelope) = &mut request
            && envelope.to.is_none()
        {
            envelope.to = self.shard_of_key(&envelope.domain, &envelope.key);
        }
        request
    }

    /// Returns the shard of a key, if the node owns the domain.
    pub(super) fn shard_of_key(&self, domain: &Name, key: &str) -> Option<ShardId> {
        let (domain, shards) = self.card.owns.iter().find(|(owned, _)| owned == domain)?;
        Some(ShardId::new(domain.clone(), shard_of(key, *shards)))
    }

    /// Queues an event. A node that lags does not slow the others down: it fetches the missed events from the log.
    pub(super) fn push_event(&self, message: QueuedMessage) -> PushOutcome {
        if self.lagging.load(Ordering::Relaxed) { PushOutcome::Accepted } else { self.messages.push(message) }
    }
}

impl Attached for Member {
    fn number(&self) -> u64 {
        self.id
    }

    fn is_reached(&self) -> bool {
        !self.is_disconnected()
    }
}
