//! Refused messages: copied to the service's refused stream, then terminated in their own stream.
//!
//! Called by the consumer loop. The refused stream is the dead letter channel of the bridge: an operator reads it, fixes the cause
//! and publishes the message again. A message stays in its own stream until the copy is acknowledged.

use std::sync::atomic::Ordering;

use async_nats::Message;
use futures_util::FutureExt;

use super::acknowledgement::PublishFailure;
use super::consumer::ConsumerLoop;
use super::decode::{self, excerpt};
use super::in_flight::{Completed, InFlightMessages, OutboundMessage};
use super::publisher::{Reply, ReplyKind};
use super::pull_consumer::DELETION_GRACE;
use super::session::ACK_TIMEOUT;
use whizbang_core::bridge::BridgeError;
use whizbang_core::clock::monotonic;
use whizbang_core::telemetry::error_chain;

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
        tracing::warn!(
            service = %self.service, subject = excerpt(&message.subject), error = %error_chain(&error),
            "refused a message",
        );
        if in_flight.messages.get(&number).is_some_and(|received| received.ack_subject.is_none()) {
            // Every node of the service receives a live event, and the stream of events keeps it: it is not copied.
            in_flight.messages.remove(&number);
            self.report.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.begin_copy(in_flight, number);
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
            Completed::CopiedToRefused(number, copied)
        };
        in_flight.tasks.push(copied.boxed());
    }

    /// Ends the message whose copy is stored. Without a stored copy it is delivered again later, so no refused message is
    /// lost.
    pub(super) fn copy_completed(
        &mut self,
        in_flight: &mut InFlightMessages,
        number: u64,
        copied: Result<(), BridgeError>,
    ) {
        self.end_handling(in_flight, number);
        let stream = self.namespace.refused_stream(&self.service);
        match copied {
            Ok(()) => {
                self.report.refused.fetch_add(1, Ordering::Relaxed);
                self.report.issues.close(&stream);
                if let Some(ack_subject) = in_flight.messages.remove(&number).and_then(|received| received.ack_subject)
                {
                    in_flight.outgoing.push_back(OutboundMessage::acknowledgement(ack_subject, "+TERM"));
                }
            }
            Err(error) => {
                let text = format!(
                    "failed to copy refused messages to stream `{stream}`, they stay in their own stream: {}; if it is full, read \
                     and purge it; retrying",
                    error_chain(&error),
                );
                if self.report.issues.open(&stream, || text) {
                    tracing::error!(
                        stream, error = %error_chain(&error),
                        "failed to copy a refused message; retrying",
                    );
                }
                // The stream may be missing; the check creates it.
                in_flight.check_write_only_at.get_or_insert(monotonic() + DELETION_GRACE);
                if let Some(received) = in_flight.messages.get_mut(&number) {
                    received.remaining = 1;
                }
                in_flight.complete(number, true);
            }
        }
    }
}
