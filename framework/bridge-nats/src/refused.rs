//! Refused messages: copied to the service's refused stream, then terminated in their own stream.
//!
//! Called by the consumer loop. The refused stream is the dead letter channel of the bridge: an operator reads it, fixes the cause
//! and publishes the message again. A message stays in its own stream until the copy is acknowledged; while the refused stream is full,
//! within the bounds of the [backlog](super::refused_backlog).

use std::sync::atomic::Ordering;

use async_nats::Message;
use futures_util::FutureExt;
use tokio::time::Instant;

use super::acknowledgement::{PublishFailure, is_full};
use super::consumer::ConsumerLoop;
use super::decode;
use super::excerpt::excerpt;
use super::in_flight::{Completed, InFlightMessages, OutboundMessage};
use super::publisher::{Reply, ReplyKind};
use super::pull_consumer::DELETION_GRACE;
use super::refused_backlog::{FORGOTTEN_AFTER, RefusedMessage};
use super::session::ACK_TIMEOUT;
use whizbang_core::bridge::BridgeError;
use whizbang_core::clock::monotonic;
use whizbang_core::telemetry::error_chain;
use whizbang_wire::subject::Address;

impl ConsumerLoop {
    /// Copies a message that cannot be handled here to the refused stream. The message is terminated in its own stream only after
    /// the copy is acknowledged, because its sender considers it accepted.
    ///
    /// Until then it counts as being handled, so that a flood of such messages does not fill the memory.
    pub(super) fn copy_to_refused(
        &mut self,
        in_flight: &mut InFlightMessages,
        number: u64,
        message: &Message,
        error: &BridgeError,
    ) {
        if self.report.log_limits.refused_messages.admits(monotonic()) {
            tracing::warn!(
                service = %self.service, subject = excerpt(&message.subject), error = %error_chain(&error),
                "refused a message",
            );
        }
        if in_flight.messages.get(&number).is_some_and(|received| received.ack_subject.is_none()) {
            // Every node of the service receives a live event, and the stream of events keeps it: it is not copied.
            in_flight.messages.remove(&number);
            self.report.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.begin_copy(in_flight, number);
        let refused = self.refused_message(in_flight, number, message);
        let (headers, payload) = decode::refused_copy(message, error);
        let subject = self.namespace.refused_subject(&self.service);
        let posted = self.publisher.publish(subject, headers, payload, ReplyKind::Acknowledgement);
        let stream = self.namespace.refused_stream(&self.service);
        let copied = async move {
            let copied = match posted {
                Ok(reply) => match reply.within(ACK_TIMEOUT).await {
                    Ok(Some(Reply::Acknowledgement(Ok(())))) => Ok(()),
                    Ok(Some(Reply::Acknowledgement(Err(PublishFailure::Rejected(source))))) => {
                        Err(BridgeError::Broker { doing: format!("write to stream `{stream}`"), source })
                    }
                    Ok(_) => Err(BridgeError::NoResponse { domain: stream, deadline: ACK_TIMEOUT }),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            Completed::CopiedToRefused(number, refused, copied)
        };
        in_flight.tasks.push(copied.boxed());
    }

    /// Returns a refused message as the backlog counts it.
    fn refused_message(&self, in_flight: &InFlightMessages, number: u64, message: &Message) -> RefusedMessage {
        let received = in_flight.messages.get(&number);
        let consumer = received.map_or(usize::MAX, |received| received.consumer);
        let in_stream = message.reply.as_deref().map_or(0, |reply| decode::delivery_numbers(reply).sequence);
        let sender = match self.namespace.parse(&message.subject) {
            Some(Address::Direct { from, .. }) => from.map(|from| from.domain),
            Some(Address::Event { shard, .. } | Address::Events(shard)) => Some(shard.domain),
            _ => None,
        };
        RefusedMessage { place: (consumer, in_stream), sender, bytes: message.length }
    }

    /// Ends the message whose copy is stored. Without a stored copy it is delivered again later, so no refused message is
    /// lost. If the stream is full, each sender has a share of the messages that wait, and further ones are discarded.
    pub(super) fn copy_completed(
        &mut self,
        in_flight: &mut InFlightMessages,
        number: u64,
        refused: RefusedMessage,
        copied: Result<(), BridgeError>,
    ) {
        self.end_handling(in_flight, number, 1);
        let stream = self.namespace.refused_stream(&self.service);
        match copied {
            Ok(()) => {
                self.report.refused.fetch_add(1, Ordering::Relaxed);
                in_flight.refused.remove(refused.place);
                if in_flight.refused.is_empty() {
                    self.report.notes.close(&stream);
                }
                self.terminate(in_flight, number);
            }
            Err(error) => {
                // Small copies may fit where large ones do not, so the note may be new each time.
                if self.report.log_limits.failed_copies.admits(monotonic()) {
                    tracing::error!(
                        stream, error = %error_chain(&error),
                        "failed to copy a refused message; retrying",
                    );
                }
                in_flight.forget_refused_at.get_or_insert(monotonic() + FORGOTTEN_AFTER);
                let is_full = matches!(&error, BridgeError::Broker { source, .. } if is_full(&**source));
                if is_full && !in_flight.refused.admits(refused, monotonic()) {
                    self.report.discarded.fetch_add(1, Ordering::Relaxed);
                    self.terminate(in_flight, number);
                } else if let Some(received) = in_flight.messages.get_mut(&number) {
                    received.remaining = 1;
                    in_flight.complete(number, 1, true);
                }
                let discarded = self.report.discarded.load(Ordering::Relaxed);
                self.report.notes.open(&stream, || {
                    format!(
                        "failed to copy refused messages to stream `{stream}`, {} stay in their own stream and {discarded} were discarded: \
                         {}; if it is full, read and purge it; retrying",
                        in_flight.refused.len(),
                        error_chain(&error),
                    )
                });
                // The stream may be missing; the check creates it.
                in_flight.check_write_only_at.get_or_insert(monotonic() + DELETION_GRACE);
            }
        }
    }

    /// Forgets waiting messages that an operator has removed from their stream.
    pub(super) fn forget_refused(&self, in_flight: &mut InFlightMessages, now: Instant) {
        if in_flight.forget_refused_at.is_none_or(|due| due > now) {
            return;
        }
        in_flight.refused.forget_vanished(now);
        in_flight.forget_refused_at = (!in_flight.refused.is_empty()).then_some(now + FORGOTTEN_AFTER);
        if in_flight.refused.is_empty() {
            self.report.notes.close(&self.namespace.refused_stream(&self.service));
        }
    }

    /// Ends a message in its own stream, without a redelivery.
    fn terminate(&self, in_flight: &mut InFlightMessages, number: u64) {
        if let Some(ack_subject) = in_flight.messages.remove(&number).and_then(|received| received.ack_subject) {
            in_flight.outgoing.push_back(OutboundMessage::acknowledgement(ack_subject, "+TERM"));
        }
    }
}
