//! Faults of the simulated broker and of its links.
//!
//! Called by the [fault scheduler](super::fault_scheduler). Hits are counted where messages are affected.

use std::time::Duration;

use super::broker::{ACK_WAIT, Broker, DEDUP_WINDOW, MAX_IN_FLIGHT};
use super::fault_counts::FaultEvent;
use super::fault_profile::LinkDirection;
use super::link::SimLink;
use whizbang_conformance::broker::ConsumerSettings;
use whizbang_core::clock::instant;

impl Broker {
    /// Cuts the link of one node, or reconnects the node. Nodes are notified, as a client library would do.
    pub(super) fn cut_link(&self, link: &SimLink, direction: Option<LinkDirection>) {
        link.cut(direction);
        if direction.is_none() {
            self.notify_all();
        }
    }

    /// Isolates or reconnects one node.
    pub(super) fn isolate_link(&self, link: &SimLink, isolated: bool) {
        self.cut_link(link, isolated.then_some(LinkDirection::Both));
    }

    /// Cuts one direction between two services. Packets of that direction are lost and not kept.
    pub(super) fn partition(&self, from: usize, to: usize) {
        self.state().partitions.insert((from, to));
    }

    /// Ends a partition. Nodes are notified, as a client library would do.
    pub(super) fn heal(&self, from: usize, to: usize) {
        if self.state().partitions.remove(&(from, to)) {
            self.reconnected(from);
            self.reconnected(to);
        }
    }

    /// Blocks messages to or from a service, or both.
    pub(super) fn isolate(&self, service: usize, inbound_blocked: bool, outbound_blocked: bool) {
        let mut state = self.state();
        if inbound_blocked {
            state.inbound_blocked.insert(service);
        }
        if outbound_blocked {
            state.outbound_blocked.insert(service);
        }
    }

    /// Unblocks a service.
    pub(super) fn connect(&self, service: usize) {
        let mut state = self.state();
        let was_isolated = state.inbound_blocked.remove(&service) | state.outbound_blocked.remove(&service);
        drop(state);
        if was_isolated {
            self.reconnected(service);
            self.notify_all();
        }
    }

    /// Tells the nodes of a service that their connection is back, as the client library of a real broker does.
    fn reconnected(&self, service: usize) {
        for link in self.links_of(service) {
            link.inbound.reconnected();
        }
    }

    /// Pauses the broker.
    pub(super) fn pause(&self, duration: Duration) {
        self.state().paused_until = Some(instant() + duration);
    }

    /// Removes the leader for a while: nothing is stored reliably or delivered, and the last settlements are forgotten.
    pub(super) fn drop_leader(&self, duration: Duration) {
        let now = instant();
        let mut state = self.state();
        state.no_leader_until = Some(now + duration);
        for (stream, consumer) in state.model.consumers() {
            if state.model.lose_last_acknowledgement(&stream, &consumer, now) {
                self.fault_counts.one(FaultEvent::SettlementForgotten);
            }
        }
    }

    /// Loses all stored messages and all messages in transit. Nodes are not notified: sequence numbers must reveal the loss.
    pub(super) fn purge(&self) {
        let mut state = self.state();
        state.purge_epoch += 1;
        state.purged_at = Some(instant());
        self.fault_counts.add(FaultEvent::MessagePurged, state.in_transit as u64);
        state.in_transit = 0;
        for name in state.model.stream_names() {
            let lost = state.model.purge_stream(&name).unwrap_or(0);
            self.fault_counts.add(FaultEvent::MessagePurged, lost as u64);
        }
    }

    /// Deletes all streams with their consumers.
    pub(super) fn lose_streams(&self) {
        {
            let mut state = self.state();
            state.purged_at = Some(instant());
            for name in state.model.stream_names() {
                state.model.delete_stream(&name);
                self.fault_counts.one(FaultEvent::StreamLost);
            }
        }
        self.notify_all();
    }

    /// Lets messages carry ids for a while, and drops duplicates.
    pub(super) fn drop_duplicates(&self, window: Duration, duration: Duration) {
        let mut state = self.state();
        state.dedup_until = Some(instant() + duration);
        state.window = window;
        state.model.reconfigure(|stream, _| stream.duplicate_window = window);
    }

    /// Fails to store some messages after their id was recorded.
    pub(super) fn fail_to_store(&self, duration: Duration) {
        self.drop_duplicates(DEDUP_WINDOW, duration + DEDUP_WINDOW);
        self.state().store_fails_until = Some(instant() + duration);
    }

    /// Sets the time after which unacknowledged messages are redelivered, for all consumers. `None` restores the default.
    pub(super) fn set_ack_wait(&self, wait: Option<Duration>) {
        let mut state = self.state();
        // With an ack wait of zero, a message would be redelivered forever at one instant.
        state.consumers.ack_wait = wait.map_or(ACK_WAIT, |wait| wait.max(Duration::from_millis(1)));
        state.apply_consumer_settings();
        drop(state);
        self.notify_all();
    }

    /// Limits the unacknowledged messages of each consumer. `None` restores the default.
    pub(super) fn set_max_in_flight(&self, limit: Option<usize>) {
        let mut state = self.state();
        state.consumers.max_ack_pending = limit.unwrap_or(MAX_IN_FLIGHT);
        state.apply_consumer_settings();
        drop(state);
        self.notify_all();
    }

    /// Delays the handlers of a service by `per_message`.
    pub(super) fn slow_handlers(&self, service: usize, per_message: Duration, duration: Duration) {
        self.state().slow.insert(service, (instant() + duration, per_message));
    }

    /// Returns the time that a message waits for the handlers of a service and the time that they take.
    pub(super) fn handler_delay(&self, service: usize) -> Duration {
        /// Maximum backlog of a node; more would exhaust its capacity.
        const MAX_BACKLOG: Duration = Duration::from_secs(3);
        let now = instant();
        let mut state = self.state();
        let Some((_, per_message)) = state.slow.get(&service).copied().filter(|(until, _)| *until > now) else {
            return Duration::ZERO;
        };
        let begins = state.busy.get(&service).copied().filter(|busy| *busy > now).unwrap_or(now);
        let ends = (begins + per_message).min(now + MAX_BACKLOG);
        state.busy.insert(service, ends);
        self.fault_counts.one(FaultEvent::HandlerSlow);
        ends - now
    }

    /// Clears all faults.
    pub(super) fn clear_faults(&self) {
        let mut state = self.state();
        (state.paused_until, state.no_leader_until, state.dedup_until, state.store_fails_until) =
            (None, None, None, None);
        state.consumers = ConsumerSettings { ack_wait: ACK_WAIT, max_ack_pending: MAX_IN_FLIGHT };
        state.slow.clear();
        state.apply_consumer_settings();
        drop(state);
        self.notify_all();
    }
}
