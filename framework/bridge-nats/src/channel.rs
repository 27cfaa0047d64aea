//! The subscriptions of a node in one stream of messages, each tagged with its kind.
//!
//! Used by the consumer loop.

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::StreamExt;

/// The kind of subscription by which a message arrived.
#[derive(Clone, Copy, Debug)]
pub(super) enum Channel {
    /// Messages that the consumer with this index has pulled, and the ends of its pulls.
    Stream(usize),
    /// Events without acknowledgement, for the live receiver with this index.
    Live(usize),
    /// Requests of other nodes and of clients. Each has an inbox for its response.
    Requests,
    /// Notes without a response: committed sequences and heads of logs. They may be lost.
    Notifications,
}

/// A subscription that tags its messages with its channel.
pub(super) struct ChannelSubscriber {
    /// Copied to each message, because a message does not name its subscription.
    channel: Channel,
    /// The consumer of the shard that the subscription belongs to.
    pub(super) shard_consumer: Option<usize>,
    /// The subscription of the client library.
    pub(super) subscriber: Subscriber,
}

impl ChannelSubscriber {
    /// Marks the messages of a subscription with their channel.
    pub(super) fn new(channel: Channel, subscriber: Subscriber) -> Self {
        Self { channel, shard_consumer: None, subscriber }
    }

    /// Returns the subscription as one of a leased shard.
    pub(super) fn of_shard(self, consumer: usize) -> Self {
        Self { shard_consumer: Some(consumer), ..self }
    }
}

impl Stream for ChannelSubscriber {
    type Item = (Channel, Message);

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let channel = self.channel;
        self.subscriber.poll_next_unpin(context).map(|message| message.map(|message| (channel, own_payload(message))))
    }
}

/// Copies the payload out of the read buffer of the client library.
///
/// The library returns slices of its buffer, which grows to the size of the largest message in it. A small message that waits in the
/// node would keep a megabyte, and all limits in bytes count payloads.
pub(super) fn own_payload(message: Message) -> Message {
    Message { payload: Bytes::copy_from_slice(&message.payload), ..message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_message_does_not_keep_the_read_buffer() {
        let buffer = Bytes::from(vec![7; 1 << 20]);
        let message = Message {
            subject: "wb.dir.bank.0".into(),
            reply: None,
            payload: buffer.slice(..20),
            headers: None,
            status: None,
            description: None,
            length: 33,
        };
        assert!(!buffer.is_unique());
        let owned = own_payload(message);
        assert!(buffer.is_unique());
        assert_eq!(owned.payload, [7; 20][..]);
    }
}
