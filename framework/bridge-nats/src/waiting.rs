//! Messages that the node handles: they count in the window of their consumer, and their acknowledgement deadlines are extended.
//!
//! Used by the consumer loop. A message may wait in the node for long: for the messages before it, whose sender is away, for a
//! slot of a worker, or for a slow subscriber. If such messages fill a window, they are released: they no longer count. So they keep
//! nothing else out. The node still has them, and completes them as soon as it can.
//!
//! The server redelivers a released message that only it has. One of an actor is in the log of its sender, so it is acknowledged:
//! a consumer delivers nothing while the server waits for too many acknowledgements. If the node loses it, the sender notices that
//! nothing is committed, and the node fetches it from there.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::consumer::{ConsumerLoop, MAX_IN_FLIGHT};
use super::in_flight::{InFlightMessages, OutboundMessage, ReceivedMessage, nak_with_delay};

/// The time for which a message may wait in the node while its window is full. It is halved with each successive release, down to
/// [`MIN_PATIENCE`]: many windows of waiting messages may have arrived before the next unrelated one.
const PATIENCE: Duration = Duration::from_secs(1);
/// The least time for which a message may wait in the node before it gives up its place.
const MIN_PATIENCE: Duration = Duration::from_millis(125);
/// The time without a release after which the next one waits for [`PATIENCE`] again.
const CALM: Duration = Duration::from_secs(5);
/// The delay before the first redelivery of a released message.
const REDELIVERY_DELAY: Duration = Duration::from_secs(1);

impl InFlightMessages {
    /// Returns the time for which a message may wait in the node now.
    fn patience(&self) -> Duration {
        (PATIENCE / 2u32.pow(self.releases.min(10))).max(MIN_PATIENCE)
    }

    /// Records that a window is full.
    pub(super) fn release_soon(&mut self, now: Instant) {
        if self.released_at.is_none_or(|last| last + CALM <= now) {
            self.releases = 0;
        }
        self.release_at.get_or_insert(now + self.patience());
    }
}

impl ConsumerLoop {
    /// Counts a message that is copied to the refused stream as being handled.
    pub(super) fn begin_copy(&mut self, in_flight: &mut InFlightMessages, number: u64) {
        let Some(received) = in_flight.messages.get_mut(&number) else { return };
        // It is copied, not handled by the node: it is not released.
        (received.handled_since, received.is_released) = (None, false);
        in_flight.handling += 1;
        if let Some(consumer) = self.consumers.get_mut(&received.consumer) {
            consumer.handling += 1;
        }
    }

    /// Counts envelopes of a message as no longer being handled by the node.
    pub(super) fn end_handling(&mut self, in_flight: &mut InFlightMessages, number: u64, count: usize) {
        // One that was released, or whose consumer was dropped before it was received as a whole, does not count.
        let Some(received) = in_flight.messages.get(&number).filter(|received| !received.is_released) else { return };
        in_flight.handling -= count;
        if let Some(consumer) = self.consumers.get_mut(&received.consumer) {
            consumer.handling = consumer.handling.saturating_sub(count);
            in_flight.touched.insert(received.consumer);
        }
    }

    /// Releases the messages that wait in the node and fill a window. Costs the number of messages in flight, at most once in
    /// [`MIN_PATIENCE`], and only after a window was full.
    pub(super) fn release_waiting(&mut self, in_flight: &mut InFlightMessages, now: Instant) {
        if in_flight.release_at.is_none_or(|due| due > now) {
            return;
        }
        let patience = in_flight.patience();
        in_flight.release_at = None;
        let mut released = 0usize;
        for (number, received) in &mut in_flight.messages {
            let Some(consumer) = self.consumers.get_mut(&received.consumer) else { continue };
            let is_long = received.handled_since.is_some_and(|since| since + patience <= now);
            // The node has to receive the rest of a message first.
            let is_partial = consumer.decoded.as_ref().is_some_and(|decoded| decoded.number == *number);
            // Half of a window stays: that is enough room for what arrives.
            let fills = consumer.is_half_full() || in_flight.handling > MAX_IN_FLIGHT / 2;
            if received.is_released || is_partial || !is_long || !fills {
                continue;
            }
            received.is_released = true;
            received.bytes = None;
            in_flight.handling -= received.remaining;
            consumer.handling = consumer.handling.saturating_sub(received.remaining);
            in_flight.touched.insert(received.consumer);
            if let Some(ack_subject) = received.ack_subject.clone() {
                let payload = match received.is_in_log {
                    true => Bytes::from_static(b"+ACK"),
                    false => nak_with_delay(&ack_subject, REDELIVERY_DELAY),
                };
                in_flight.outgoing.push_back(OutboundMessage::acknowledgement(ack_subject, payload));
            }
            released += 1;
        }
        if released == 0 {
            in_flight.releases = 0;
        } else {
            in_flight.releases = in_flight.releases.saturating_add(1);
            in_flight.released_at = Some(now);
            tracing::debug!(messages = released, "released messages that wait in the node");
        }
    }

    /// Reports the messages in flight as in progress, before the server redelivers them.
    pub(super) fn extend_ack_deadlines(&self, in_flight: &mut InFlightMessages, now: Instant) {
        if in_flight.extend_at.is_none_or(|due| due > now) {
            return;
        }
        let third = self.ack_wait / 3;
        let is_due = |received: &&mut ReceivedMessage| !received.is_released && received.extended_at + third <= now;
        for received in in_flight.messages.values_mut().filter(is_due) {
            received.extended_at = now;
            let Some(ack_subject) = received.ack_subject.clone() else { continue };
            in_flight.outgoing.push_back(OutboundMessage::acknowledgement(ack_subject, "+WPI"));
        }
        in_flight.extend_at = (!in_flight.messages.is_empty()).then_some(now + third);
    }
}
