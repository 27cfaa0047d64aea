//! Messages that no program here can handle: copied to the service's refused stream, then ended in their own.
//!
//! Called by the intake. The refused stream is the dead letter channel of the bridge: an operator reads it, repairs what is wrong
//! and publishes the message again. Nothing leaves its own stream before the copy is acknowledged.

use std::sync::atomic::Ordering;

use async_nats::Message;
use futures_util::FutureExt;

use super::ACK_TIMEOUT;
use super::acknowledgement::PublishFailure;
use super::consumer::ConsumerLoop;
use super::decode::{self, excerpt};
use super::in_flight::{Completed, InFlightMessages, OutboundMessage};
use super::publisher::{Reply, ReplyKind};
use super::pull_consumer::DELETION_GRACE;
use crate::bridge::BridgeError;
use crate::clock::monotonic;

impl ConsumerLoop {
    /// Copies a message that cannot be handled here to the refused stream. It is ended in its own stream only after the copy
    /// is acknowledged: the sender believes it to be accepted.
    ///
    /// Until then it counts as being with the node: a flood of such messages must not fill the memory.
    pub(super) fn copy_to_refused(
        &mut self,
        hands: &mut InFlightMessages,
        number: u64,
        message: &Message,
        error: &BridgeError,
    ) {
        self.begin_handling(hands, number);
        tracing::warn!(service = %self.service, subject = excerpt(&message.subject), %error, "refused a message");
        let (headers, payload) = decode::refused_copy(message, error);
        let subject = self.namespace.refused_subject(&self.service);
        let posted = self.publisher.publish(subject, headers, payload, ReplyKind::Acknowledgement);
        let stream = self.namespace.refused_stream(&self.service);
        let copied = async move {
            let copied = match posted {
                Ok(answering) => match answering.within(ACK_TIMEOUT).await {
                    Ok(Some(Reply::Acknowledgement(Ok(())))) => Ok(()),
                    Ok(Some(Reply::Acknowledgement(Err(PublishFailure::Rejected(source))))) => {
                        Err(BridgeError::Broker { doing: format!("writing to stream `{stream}`"), source })
                    }
                    Ok(_) => Err(BridgeError::NoResponse { domain: stream, deadline: ACK_TIMEOUT }),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            Completed::CopiedToRefused(number, copied)
        };
        hands.tasks.push(copied.boxed());
    }

    pub(super) fn copy_completed(
        &mut self,
        hands: &mut InFlightMessages,
        number: u64,
        copied: Result<(), BridgeError>,
    ) {
        self.end_handling(hands, number);
        let stream = self.namespace.refused_stream(&self.service);
        match copied {
            Ok(()) => {
                self.report.refused.fetch_add(1, Ordering::Relaxed);
                self.report.issues.close(&stream);
                if let Some(in_hand) = hands.messages.remove(&number) {
                    hands.outgoing.push_back(OutboundMessage::acknowledgement(in_hand.ack_subject, "+TERM"));
                }
            }
            Err(error) => {
                let text = format!(
                    "refused messages cannot be copied to stream `{stream}` and stay in their own: {error}; if it is full, \
                     read it and purge it"
                );
                if self.report.issues.open(&stream, || text) {
                    tracing::error!(stream, %error, "failed to copy a refused message; it is tried again");
                }
                // The stream may be missing: it is made again.
                hands.check_write_only_at.get_or_insert(monotonic() + DELETION_GRACE);
                if let Some(in_hand) = hands.messages.get_mut(&number) {
                    in_hand.remaining = 1;
                }
                hands.complete(number, true);
            }
        }
    }
}
