//! The link of one simulated node, as the broker sees it: what the node receives, its cuts, and what it has in flight.
//!
//! Created by the [bridge](super::bridge) of the node when it attaches; kept by the [broker](super::broker) until the node detaches or
//! is killed. It does not know the broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::broker_names::commands;
use super::fault_counts::{FaultCounts, FaultEvent};
use super::fault_profile::LinkDirection;
use super::store::SimStore;
use whizbang_core::bridge::{Inbound, NodeCard, Request, Response};
use whizbang_core::message::{MessageId, ShardId, shard_of};
use whizbang_core::store::Epoch;

/// Time before a missing stream is created again.
pub(super) const RECREATE_DELAY: Duration = Duration::from_secs(1);

/// The state of a node's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkState {
    /// The node receives.
    Attached,
    /// The node accepts no more messages.
    Detaching,
    /// The node has been killed: nothing of it arrives any longer.
    Gone,
}

/// The link of a node, as the broker sees it.
pub(super) struct SimLink {
    /// The index of the service in the cluster.
    pub(super) service: usize,
    /// The number of the link, greater than those of all links before.
    pub(super) number: u64,
    /// The card of the node: its domains, subscriptions and queries.
    pub(super) card: NodeCard,
    /// The node.
    pub(super) inbound: Arc<dyn Inbound>,
    /// The state of the link, which the tasks of the node watch.
    pub(super) state: watch::Sender<LinkState>,
    /// The seat of the node in its service.
    pub(super) seat: usize,
    /// The node's handle of its store.
    pub(super) store: Option<SimStore>,
    /// True if messages to the node are lost.
    pub(super) inbound_cut: AtomicBool,
    /// True if messages from the node are lost.
    pub(super) outbound_cut: AtomicBool,
    /// Messages pulled from the broker that have not reached the node.
    pub(super) reserved: AtomicUsize,
    /// Published messages that are not acknowledged.
    pub(super) publications: AtomicUsize,
    /// Messages that the node handles.
    pub(super) in_flight: AtomicUsize,
    /// Settlements in transit to the broker.
    pub(super) pending_settlements: AtomicUsize,
    /// Notified when one of these counters decreases.
    pub(super) decremented: Notify,
    /// The leased shards that the node receives, with their epochs.
    pub(super) owned: Mutex<BTreeMap<ShardId, Epoch>>,
}

impl SimLink {
    /// Returns true while the node receives.
    pub(super) fn is_attached(&self) -> bool {
        *self.state.borrow() == LinkState::Attached
    }

    /// Returns true if the node has been killed.
    pub(super) fn is_gone(&self) -> bool {
        *self.state.borrow() == LinkState::Gone
    }

    /// Returns true if nothing arrives at the node at the moment.
    pub(super) fn is_inbound_cut(&self) -> bool {
        self.inbound_cut.load(Ordering::Relaxed)
    }

    /// Returns true if nothing leaves the node at the moment.
    pub(super) fn is_outbound_cut(&self) -> bool {
        self.outbound_cut.load(Ordering::Relaxed)
    }

    /// Cuts the link, or reconnects the node. The broker has to be notified of a reconnection: see `Broker::cut_link`.
    pub(super) fn cut(&self, direction: Option<LinkDirection>) {
        self.inbound_cut.store(direction.is_some_and(|cut| cut != LinkDirection::Outbound), Ordering::Relaxed);
        self.outbound_cut.store(direction.is_some_and(|cut| cut != LinkDirection::Inbound), Ordering::Relaxed);
        if direction.is_none() {
            self.inbound.reconnected();
        }
    }

    /// Checks that the node may answer a request. `asked` is the id and the shard of a command, or of the query of a key.
    pub(super) fn check_answer(&self, request: &str, asked: Option<&(MessageId, ShardId)>, response: &Response) {
        let is_answer = !matches!(response, Response::Refused(_) | Response::Shape(_));
        if let Some(store) = self.store.as_ref().filter(|_| is_answer && self.card.has_leased_shards && !self.is_gone())
        {
            store.check_answer(request, asked);
        }
    }

    /// Ends the link as a kill does. Calls of the node that are in flight get no answer.
    pub(super) fn end(&self) {
        self.state.send_replace(LinkState::Gone);
    }

    /// Counts the operations that a crash of the node would interrupt now.
    pub(super) fn count_interrupted(&self, fault_counts: &FaultCounts) {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let pending_settlements = count(&self.pending_settlements);
        for (hit, event) in [
            (count(&self.publications) > 0, FaultEvent::CrashDuringPublication),
            (count(&self.in_flight) > pending_settlements, FaultEvent::CrashDuringDelivery),
            (pending_settlements > 0, FaultEvent::CrashDuringAcknowledgement),
        ] {
            if hit {
                fault_counts.one(event);
            }
        }
    }

    /// Returns whether a delivery is unsettled.
    pub(super) fn holds_deliveries(&self) -> bool {
        self.is_attached() && self.in_flight.load(Ordering::Relaxed) > 0
    }

    /// Decrements a counter of things in flight and wakes the tasks that wait for zero.
    pub(super) fn decrement(&self, counter: &AtomicUsize) {
        counter.fetch_sub(1, Ordering::Relaxed);
        self.decremented.notify_waiters();
    }

    /// Waits until a counter is zero.
    pub(super) async fn wait_zero(&self, counter: &AtomicUsize) {
        loop {
            // Registers before the check, so that a decrement in between is not missed.
            let decremented = self.decremented.notified();
            tokio::pin!(decremented);
            decremented.as_mut().enable();
            if counter.load(Ordering::Relaxed) == 0 {
                return;
            }
            decremented.await;
        }
    }

    /// Returns the epoch in which the node owns a leased shard.
    pub(super) fn epoch_of(&self, shard: &ShardId) -> Option<Epoch> {
        self.owned.lock().get(shard).copied()
    }

    /// Removes a shard from those that the node receives.
    pub(super) fn disown(&self, shard: &ShardId) {
        self.owned.lock().remove(shard);
    }

    /// Returns whether the node receives the messages for a shard.
    pub(super) fn receives_shard(&self, shard: &ShardId) -> bool {
        if self.card.has_leased_shards {
            return self.epoch_of(shard).is_some();
        }
        self.card.owns.iter().any(|(domain, _)| *domain == shard.domain)
    }

    /// Returns whether the node receives a request to the owner of a shard.
    pub(super) fn responds_to(&self, request: &Request) -> bool {
        let Some((_, shards)) = self.card.owns.iter().find(|(domain, _)| domain == request.domain()) else {
            return false;
        };
        match request {
            Request::Command(command) => {
                let shard = || ShardId::new(command.domain.clone(), shard_of(&command.key, *shards));
                self.receives_shard(&command.to.clone().unwrap_or_else(shard))
            }
            Request::Events { shard, .. } => self.receives_shard(shard),
            Request::Outbox { from, .. } | Request::Shape { from, .. } => self.receives_shard(from),
            Request::Watermark { to, .. } | Request::Sent { to, .. } => self.receives_shard(to),
            Request::Query(_) => false,
        }
    }

    /// Returns whether a consumer, named without its epoch, is that of a shard of this node's service.
    pub(super) fn is_consumer_of_its_shard(&self, stream: &str, consumer: &str) -> bool {
        let mut owned =
            self.card.owns.iter().filter(|(domain, _)| self.card.has_leased_shards && commands(domain) == stream);
        owned.any(|(domain, _)| consumer.starts_with(&format!("{}-{domain}-", self.card.service)))
    }

    /// Adds the shard to a command of a caller that does not know the number of shards.
    pub(super) fn with_shard(&self, mut request: Request) -> Request {
        if let Request::Command(envelope) = &mut request
            && let Some((domain, shards)) = self.card.owns.iter().find(|(domain, _)| *domain == envelope.domain)
        {
            envelope.to.get_or_insert_with(|| ShardId::new(domain.clone(), shard_of(&envelope.key, *shards)));
        }
        request
    }
}

/// Waits for a latency. Yields even if it is zero.
pub(super) async fn pause(latency: Duration) {
    if latency.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(latency).await;
    }
}
