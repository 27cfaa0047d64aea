//! Delivery of received messages to the node, with what belongs together in one call.
//!
//! Used by the consumer loop. The events of a message are acknowledged together, so the node gets as many of them at once as it has
//! capacity for, and completes them at once: the work for a call is not repeated for each event.

use std::ops::Bound;

use async_nats::Message;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use tokio::time::Instant;

use super::consumer::{ConsumerLoop, MAX_IN_FLIGHT};
use super::decode;
use super::in_flight::{Completed, InFlightMessages};
use super::pull_consumer::{DecodedMessage, MAX_HANDLING};
use super::streams::StreamContent;
use whizbang_core::bridge::AckOutcome;
use whizbang_core::message::Envelope;

impl ConsumerLoop {
    /// Delivers as many messages as the node has capacity for, in turn from each consumer. Returns true if some are left.
    pub(super) fn deliver_ready(&mut self, in_flight: &mut InFlightMessages, now: Instant) -> bool {
        if in_flight.ready.is_empty() {
            return false;
        }
        let mut capacity = self.inbound.capacity().min(MAX_IN_FLIGHT.saturating_sub(in_flight.handling));
        let mut full = 0;
        while capacity > 0 && full < in_flight.ready.len() {
            let mut after = in_flight.ready.range((Bound::Excluded(in_flight.last_served), Bound::Unbounded));
            let Some(index) = after.next().or_else(|| in_flight.ready.first()).copied() else { break };
            in_flight.last_served = index;
            let Some(consumer) = self.consumers.get_mut(&index) else {
                in_flight.ready.remove(&index);
                continue;
            };
            if consumer.handling >= MAX_HANDLING {
                full += 1;
                continue;
            }
            if let Some(decoded) = consumer.take_decoded(capacity.min(MAX_HANDLING - consumer.handling)) {
                full = 0;
                let count = decoded.envelopes.len();
                capacity -= count;
                in_flight.handling += count;
                consumer.handling += count;
                if consumer.is_full() || in_flight.handling >= MAX_IN_FLIGHT {
                    in_flight.release_soon(now);
                }
                if let Some(received) = in_flight.messages.get_mut(&decoded.number) {
                    received.handled_since.get_or_insert(now);
                }
                let content = consumer.source.content;
                in_flight.tasks.push(self.handle(content, decoded));
                continue;
            }
            let Some((number, message)) = consumer.pop_received() else {
                in_flight.ready.remove(&index);
                in_flight.touched.insert(index);
                continue;
            };
            full = 0;
            if consumer.ends_lag() {
                self.inbound.reconnected();
            }
            match decode::envelopes(&self.namespace, &consumer.source, &message) {
                Ok(envelopes) => {
                    if let Some(received) = in_flight.messages.get_mut(&number) {
                        received.remaining = envelopes.len();
                        received.is_in_log = envelopes.iter().all(is_in_log);
                    }
                    let message = (envelopes.len() == 1).then_some(message);
                    consumer.decoded = Some(DecodedMessage { number, envelopes, message });
                }
                Err(error) => {
                    capacity -= 1;
                    self.copy_to_refused(in_flight, number, &message, &error);
                }
            }
        }
        let has_window = |index| self.consumers.get(index).is_some_and(|consumer| consumer.handling < MAX_HANDLING);
        in_flight.ready.iter().any(has_window)
    }

    /// Passes the envelopes of a message, or a part of them, to the node.
    fn handle(&self, content: StreamContent, decoded: DecodedMessage) -> BoxFuture<'static, Completed> {
        let DecodedMessage { number, mut envelopes, message } = decoded;
        let count = envelopes.len();
        let outcome = match content {
            StreamContent::Events => self.inbound.events(envelopes),
            // A command or a reply is alone in its message.
            StreamContent::Direct => envelopes
                .pop()
                .map_or_else(|| ready(AckOutcome::Ack).boxed(), |envelope| self.inbound.deliver(envelope)),
        };
        let completed = move |outcome| completed(number, count, message, outcome);
        outcome.map(completed).boxed()
    }
}

/// Returns true if an actor has sent the envelope, whose store keeps it until this node has committed it.
fn is_in_log(envelope: &Envelope) -> bool {
    envelope.origin.as_ref().is_some_and(|origin| origin.store.is_some())
}

/// Returns the result of a call of the node. Only a message with a single envelope is copied to the refused stream.
fn completed(number: u64, count: usize, message: Option<Message>, outcome: AckOutcome) -> Completed {
    match (outcome, message) {
        (AckOutcome::Reject(reason), Some(message)) => Completed::Unhandled(number, Box::new(message), reason),
        (outcome, _) => Completed::Handled { number, count, outcome },
    }
}
