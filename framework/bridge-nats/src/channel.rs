//! The subscriptions of a node in one stream of messages, each tagged with its kind.
//!
//! Used by the consumer loop.

use async_nats::{Message, Subscriber};
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
        self.subscriber.poll_next_unpin(context).map(|message| message.map(|message| (channel, message)))
    }
}
