//! Messages that no program here can handle: copied to the service's refused stream, then ended in their own.
//!
//! Called by the intake. The refused stream is the dead letter channel of the bridge: an operator reads it, repairs what is wrong
//! and publishes the message again. Nothing leaves its own stream before the copy is acknowledged.

use std::sync::atomic::Ordering;

use async_nats::Message;
use futures_util::FutureExt;

use super::ACKNOWLEDGE;
use super::acknowledgement::Untaken;
use super::consumer::ConsumerLoop;
use super::decode::{self, shown};
use super::in_flight::{Done, InFlightMessages, PendingMessage};
use super::publisher::{Answered, Awaits};
use super::pull_consumer::DELETION;
use crate::bridge::BridgeError;
use crate::clock::monotonic;

impl ConsumerLoop {
    /// Copies a message that cannot be handled here to the refused stream. It is ended in its own stream only after the copy
    /// is acknowledged: the sender believes it to be accepted.
    ///
    /// Until then it counts as being with the node: a flood of such messages must not fill the memory.
    pub(super) fn put_aside(
        &mut self,
        hands: &mut InFlightMessages,
        number: u64,
        message: &Message,
        error: &BridgeError,
    ) {
        self.enter(hands, number);
        tracing::warn!(service = %self.service, subject = shown(&message.subject), %error, "refused a message");
        let (headers, payload) = decode::remains(message, error);
        let subject = self.namespace.refused_subject(&self.service);
        let posted = self.outgoing.post(subject, headers, payload, Awaits::Acknowledgement);
        let stream = self.namespace.refused_stream(&self.service);
        let copied = async move {
            let copied = match posted {
                Ok(answering) => match answering.within(ACKNOWLEDGE).await {
                    Ok(Some(Answered::Stream(Ok(())))) => Ok(()),
                    Ok(Some(Answered::Stream(Err(Untaken::Says(source))))) => {
                        Err(BridgeError::Broker { doing: format!("writing to stream `{stream}`"), source })
                    }
                    Ok(_) => Err(BridgeError::NoAnswer { domain: stream, deadline: ACKNOWLEDGE }),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            Done::PutAside(number, copied)
        };
        hands.doing.push(copied.boxed());
    }

    pub(super) fn copied(&mut self, hands: &mut InFlightMessages, number: u64, copied: Result<(), BridgeError>) {
        self.leave(hands, number);
        let stream = self.namespace.refused_stream(&self.service);
        match copied {
            Ok(()) => {
                self.report.refused.fetch_add(1, Ordering::Relaxed);
                self.report.issues.close(&stream);
                if let Some(in_hand) = hands.in_hand.remove(&number) {
                    hands.letters.push_back(PendingMessage::word(in_hand.reply, "+TERM"));
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
                hands.look.get_or_insert(monotonic() + DELETION);
                if let Some(in_hand) = hands.in_hand.get_mut(&number) {
                    in_hand.open = 1;
                }
                hands.settled(number, true);
            }
        }
    }
}
