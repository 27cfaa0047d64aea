//! The leased shards whose messages this node receives: how it starts and stops to receive them.
//!
//! The bridge prepares the subscriptions and the consumer of a shard in [`Bridge::own`](whizbang_core::bridge::Bridge::own), and
//! the consumer loop adopts them here: first the subscriptions, so that callers do not wait while the servers create the
//! consumer, which a quorum may delay for seconds. A shard is received until it is disowned, or until its check finds the consumer of a
//! later owner. In both cases the messages that the node has not begun to handle are dropped: they are not acknowledged, and
//! the server redelivers them once the next owner deletes this node's consumer. This node does not delete it, because the
//! acknowledgements of messages that it still handles count until then.
//!
//! A call that is overtaken by a later one does nothing: each change carries the epoch of its owner, and a lower epoch never
//! replaces a higher one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Message, Request};
use tokio::sync::oneshot;

use super::NatsBridge;
use super::channel::{Channel, ChannelSubscriber};
use super::consumer::ConsumerLoop;
use super::consumer_setup::SourceState;
use super::in_flight::{InFlightMessages, ReceivedMessage};
use super::ownership::OwnershipChange;
use super::pull_consumer::PullConsumer;
use super::session::Session;
use super::streams::{self, DeliveryMode};
use super::subscriptions::{shard_subscriptions, subscribe};
use whizbang_core::bridge::BridgeError;
use whizbang_core::clock::monotonic;
use whizbang_core::message::{Envelope, ShardId};
use whizbang_core::store::Epoch;
use whizbang_core::telemetry::error_chain;

/// The time limit of the server's confirmation that it has handled the acknowledgements of a disowned shard.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(1);

impl NatsBridge {
    /// Starts to receive the messages for a shard.
    pub(super) async fn receive_shard(
        &self,
        session: Arc<Session>,
        shard: &ShardId,
        epoch: Epoch,
    ) -> Result<(), BridgeError> {
        let ownership = &session.ownership;
        let malformed = || BridgeError::Malformed { reason: format!("shard {shard} is not a shard of this service") };
        let source = streams::shard_source(&self.config, &ownership.card, shard, epoch).ok_or_else(malformed)?;
        let DeliveryMode::Shard(consumer) = source.delivery.clone() else { return Err(malformed()) };
        let index = ownership.next_index.fetch_add(1, Ordering::Relaxed);
        let inbox = format!("{}.{index}", ownership.inbox);
        // Subscribed first: the server reads these before the pulls and before the requests that follow the creation.
        let mut subscribers = Vec::new();
        let subscriptions = shard_subscriptions(&self.config.namespace, shard);
        for (channel, subject) in [(Channel::Stream(index), inbox.clone())].into_iter().chain(subscriptions) {
            let subscriber = subscribe(&session.client, subject, None).await?;
            subscribers.push(ChannelSubscriber::new(channel, subscriber).of_shard(index));
        }
        let served = shard.clone();
        ownership.change(|done| OwnershipChange::Serve { shard: served, epoch, index, subscribers, done }).await?;
        let issue = source.issue();
        let incarnation = match session.jetstream.take_shard(&source, &consumer).await? {
            SourceState::Open(incarnation) => Some(incarnation),
            SourceState::Absent => None,
            SourceState::Superseded(later) => {
                ownership.change(|done| OwnershipChange::Supersede { index, done }).await?;
                let reason = format!(
                    "shard {shard} is received by a later owner (consumer `{later}`); if the store was restored from an older copy, \
                     delete that consumer (`nats consumer rm {} {later}`)",
                    source.stream
                );
                session.report.issues.open(&issue, || format!("failed to receive for a shard: {reason}; retrying"));
                return Err(session.jetstream.refused(reason));
            }
        };
        session.report.issues.close(&issue);
        let consumer = Box::new(PullConsumer::new(source, inbox.into(), incarnation, session.report.lag.add(0)));
        ownership.change(|done| OwnershipChange::Consume { index, consumer, done }).await
    }
}

impl Session {
    /// Stops receiving the messages for a shard.
    pub(super) async fn release_shard(&self, shard: &ShardId) {
        let (done, made) = oneshot::channel();
        if self.ownership.changes.send(OwnershipChange::Disown { shard: shard.clone(), done }).is_err() {
            return;
        }
        // After a failure the loop has ended, and nothing is received.
        let Ok(Some(acknowledgement)) = made.await else { return };
        // The server handles the acknowledgements of a consumer in their order, and forgets waiting ones when the next owner
        // deletes the consumer. The response to one more means that all before it count.
        let request = Request::new().payload("+WPI".into()).timeout(Some(CONFIRMATION_TIMEOUT));
        if let Err(error) = self.client.send_request(acknowledgement, request).await {
            tracing::debug!(%shard, error = %error_chain(&error), "acknowledgements not confirmed; the next owner may receive the messages again");
        }
    }
}

impl ConsumerLoop {
    /// Applies a change. A change may arrive after a later one of the same shard, so each checks the current owner first.
    pub(super) async fn change_ownership(&mut self, in_flight: &mut InFlightMessages, change: OwnershipChange) {
        match change {
            OwnershipChange::Serve { shard, epoch, index, subscribers, done } => {
                let known = self.shards.owned.get(&shard).copied();
                // Otherwise the call was overtaken by a later one. Dropping the subscriptions ends them. A call of the same epoch
                // follows one that has failed.
                if known.is_none_or(|(before, _)| before <= epoch) {
                    if let Some((_, before)) = known {
                        self.stop_receiving(in_flight, before).await;
                    }
                    self.shards.owned.insert(shard, (epoch, index));
                    self.subscribers.extend(subscribers);
                }
                // The caller may have stopped waiting.
                let _ = done.send(());
            }
            OwnershipChange::Consume { index, consumer, done } => {
                // Otherwise the shard was disowned.
                if self.shards.owned.values().any(|(_, current)| *current == index) {
                    self.consumers.insert(index, *consumer);
                    in_flight.touched.insert(index);
                }
                let _ = done.send(());
            }
            OwnershipChange::Supersede { index, done } => {
                self.drop_superseded(in_flight, index).await;
                let _ = done.send(());
            }
            OwnershipChange::Disown { shard, done } => {
                let mut acknowledgement = None;
                if let Some((_, index)) = self.shards.owned.remove(&shard) {
                    acknowledgement = self.consumers.get(&index).and_then(|consumer| consumer.ack_subject.clone());
                    self.stop_receiving(in_flight, index).await;
                }
                in_flight.disowned.push((done, acknowledgement));
            }
        }
    }

    /// Reports that the acknowledgements of disowned shards are written.
    pub(super) fn report_disowned(&self, in_flight: &mut InFlightMessages) {
        for (done, acknowledgement) in in_flight.disowned.drain(..) {
            // The caller may have stopped waiting.
            let _ = done.send(acknowledgement);
        }
    }

    /// Stops receiving a shard that a later owner has taken. The node notices the loss of the shard by its store.
    pub(super) async fn drop_superseded(&mut self, in_flight: &mut InFlightMessages, index: usize) {
        let shard =
            self.shards.owned.iter().find(|(_, (_, consumer))| *consumer == index).map(|(shard, _)| shard.clone());
        if let Some(shard) = shard {
            tracing::info!(%shard, "a later owner receives the shard");
            self.shards.owned.remove(&shard);
        }
        self.stop_receiving(in_flight, index).await;
    }

    /// Ends the subscriptions of a shard, which also ends its pulls, and drops what the node has not begun to handle.
    async fn stop_receiving(&mut self, in_flight: &mut InFlightMessages, index: usize) {
        for subscriber in self.subscribers.iter_mut().filter(|subscriber| subscriber.shard_consumer == Some(index)) {
            // After a failure the subscription ends with the connection.
            let _ = subscriber.subscriber.unsubscribe().await;
        }
        let Some(consumer) = self.consumers.remove(&index) else { return };
        self.report.issues.close(&consumer.source.issue());
        for (number, _) in &consumer.received {
            in_flight.messages.remove(number);
        }
        // Those of a message that the node handles in part.
        if let Some(decoded) = &consumer.decoded
            && let Some(received) = in_flight.messages.remove(&decoded.number)
        {
            in_flight.handling -= received.remaining.saturating_sub(decoded.envelopes.len());
        }
        in_flight.ready.remove(&index);
        in_flight.touched.remove(&index);
    }

    /// Accepts an event of a live subscription, unless it is of this node's own shards or too many wait.
    pub(super) fn receive_live_event(&mut self, in_flight: &mut InFlightMessages, index: usize, message: Message) {
        let Some(consumer) = self.consumers.get_mut(&index) else { return };
        // The shards of this node have their subscribers here: they receive its events without the broker.
        if self.namespace.event_shard(&message.subject).is_some_and(|shard| self.shards.owned.contains_key(&shard)) {
            return;
        }
        in_flight.next_number += 1;
        let number = in_flight.next_number;
        if consumer.receive_live(number, message) {
            in_flight.messages.insert(number, ReceivedMessage::new(index, None, None, monotonic()));
            in_flight.ready.insert(index);
        }
    }

    /// Returns true if the caller of a command does not know its shard, and another node owns it.
    pub(super) fn is_for_another_node(&self, message: &Message, command: &Envelope) -> bool {
        self.shards.has_leases
            && message.subject.ends_with(".cmd.any")
            && command.to.as_ref().is_none_or(|shard| !self.shards.owned.contains_key(shard))
    }
}
