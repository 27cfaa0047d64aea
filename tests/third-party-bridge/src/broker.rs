//! A small broker inside the process: topics, and groups of subscribers that share the messages of a topic.
//!
//! It stands for the client library of a real broker and knows nothing of the framework. Used by the bridge.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

/// The number of messages that wait for a subscriber; a publisher of more is refused.
const QUEUE: usize = 8192;

/// The headers and the payload of a message.
pub(crate) type Content = (Vec<(String, String)>, Bytes);

/// A message of the broker.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) payload: Bytes,
    /// Receives the response, if the publisher waits for one.
    pub(crate) respond: Option<oneshot::Sender<Content>>,
}

/// The result of publishing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// Each group of subscribers has the message.
    Accepted,
    /// The topic has no subscriber.
    Unheard,
    /// The queue of a subscriber is full.
    Full,
}

/// A broker. Clones refer to the same one.
#[derive(Clone, Debug, Default)]
pub struct Broker(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    subscriptions: Mutex<Vec<Subscription>>,
    refused: Mutex<usize>,
    random: RandomState,
}

/// A subscriber to the topics that match a filter. Each message goes to one member of a group.
#[derive(Clone, Debug)]
struct Subscription {
    member: u64,
    group: String,
    /// A topic, or the start of one before `>`.
    filter: String,
    queue: mpsc::Sender<Message>,
}

impl Subscription {
    fn matches(&self, topic: &str) -> bool {
        match self.filter.strip_suffix('>') {
            Some(start) => topic.starts_with(start),
            None => self.filter == topic,
        }
    }
}

/// The subscriptions of one connection; dropping them ends them.
#[derive(Debug)]
pub(crate) struct Connection {
    broker: Broker,
    member: u64,
}

impl Broker {
    /// Opens a connection. Its messages arrive in `queue` of [`subscribe`](Connection::subscribe).
    pub(crate) fn connect(&self, member: u64) -> Connection {
        Connection { broker: self.clone(), member }
    }

    /// Creates a queue for subscriptions.
    pub(crate) fn queue() -> (mpsc::Sender<Message>, mpsc::Receiver<Message>) {
        mpsc::channel(QUEUE)
    }

    /// Gives a message to one member of each group whose filter matches. Its place in the queues is that of this call.
    pub(crate) fn publish(&self, message: Message) -> Published {
        let mut groups: Vec<(String, Vec<Subscription>)> = Vec::new();
        for found in self.0.subscriptions.lock().iter().filter(|subscription| subscription.matches(&message.topic)) {
            match groups.iter_mut().find(|(group, _)| *group == found.group) {
                Some((_, members)) => members.push(found.clone()),
                None => groups.push((found.group.clone(), vec![found.clone()])),
            }
        }
        let Message { topic, headers, payload, mut respond } = message;
        let (hash, mut result) = (self.0.random.hash_one(&topic), Published::Unheard);
        for (_, members) in groups {
            // The messages of a topic go to one member, so that they keep their order.
            let Some(index) = usize::try_from(hash).unwrap_or(usize::MAX).checked_rem(members.len()) else { continue };
            let Some(member) = members.get(index) else { continue };
            let copy = Message {
                topic: topic.clone(),
                headers: headers.clone(),
                payload: payload.clone(),
                respond: respond.take(),
            };
            match member.queue.try_send(copy) {
                Ok(()) if result == Published::Unheard => result = Published::Accepted,
                Ok(()) => {}
                Err(TrySendError::Full(_)) => result = Published::Full,
                // The subscriber has just left.
                Err(TrySendError::Closed(_)) => {}
            }
        }
        result
    }

    /// Counts a message that a subscriber refused. A real broker keeps it for an operator.
    pub(crate) fn refuse(&self) {
        *self.0.refused.lock() += 1;
    }

    /// Returns the number of refused messages.
    pub fn refused(&self) -> usize {
        *self.0.refused.lock()
    }

    /// Publishes any content, as every client of the broker can. Without a subscriber, or with a full queue, it is lost.
    pub fn inject(&self, topic: String, headers: Vec<(String, String)>, payload: Bytes) {
        let _lost = self.publish(Message { topic, headers, payload, respond: None });
    }
}

impl Connection {
    /// Adds a subscription.
    pub(crate) fn subscribe(&self, group: &str, filter: String, queue: &mpsc::Sender<Message>) {
        self.broker.0.subscriptions.lock().push(Subscription {
            member: self.member,
            group: group.to_owned(),
            filter,
            queue: queue.clone(),
        });
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.broker.0.subscriptions.lock().retain(|subscription| subscription.member != self.member);
    }
}
