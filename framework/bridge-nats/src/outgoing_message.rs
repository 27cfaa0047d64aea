//! A message that waits to be written, in the queues of the [publisher](super::publisher).
//!
//! A command or reply is encoded by the thread that sends it, so that the threads of a node share this work. An event is encoded by
//! the publisher, because events that wait together are written as one message.

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

use whizbang_core::message::Envelope;

/// A message in the queue.
pub(super) enum OutgoingMessage {
    /// A command, reply, request, response or notification, encoded by its sender's thread.
    Ready(EncodedMessage),
    /// An event. It is encoded when it is written, alone or packed with the events behind it in the queue.
    Event(Box<Envelope>, u64),
}

impl OutgoingMessage {
    /// Returns the payload size in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Ready(written) => written.payload.len(),
            Self::Event(event, _) => event.payload.len(),
        }
    }
}

/// An encoded message.
pub(super) struct EncodedMessage {
    /// The complete subject, with the namespace.
    pub(super) subject: Subject,
    /// The headers, which contain everything of the envelope except its payload.
    pub(super) headers: HeaderMap,
    /// The payload, encoded by the codec of the domain.
    pub(super) payload: Bytes,
    /// The number in the subject of its reply. `None` if no reply is expected.
    pub(super) number: Option<u64>,
}
