//! An in-memory model of JetStream: streams, duplicate windows, and consumers with their unacknowledged messages. It has no clock,
//! no randomness and no tasks.
//!
//! Called by the simulated cluster, whose nodes communicate through it, and by the suite that
//! compares it with real servers. The caller passes the time. The model loses nothing unless it is told to.
//!
//! A stream holds messages in order, each with a sequence that is never used again in the same incarnation. A consumer is a
//! cursor into a stream with a set of delivered, unacknowledged messages. Redeliveries come before new messages.
//!
//! Time appears as the argument `now` only. A message is redelivered at the first call of [`next`](Model::next) after its ack
//! wait. So a simulation that advances its clock sees every redelivery at an exact time.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use super::{
    Acknowledgement, BrokerStream, ConsumerSettings, Discard, PublishAck, PublishError, Retention, StreamSettings,
};

/// All streams of a server. `T` is the payload of a message.
#[derive(Debug)]
pub struct Model<T> {
    /// The streams by name.
    streams: BTreeMap<String, Stream<T>>,
    /// The number of streams ever created, which distinguishes a recreated one.
    created: u64,
}

/// A stream. Invariant: every sequence in `messages` is at most `last`.
#[derive(Debug)]
struct Stream<T> {
    /// The retention and the limits of the stream.
    settings: StreamSettings,
    /// The number of the stream among all streams that were ever created.
    incarnation: u64,
    /// The stored messages by sequence.
    messages: BTreeMap<u64, T>,
    /// The last sequence. It continues after deletions.
    last: u64,
    /// The ids in the window: the sequence of their message, and the time until which they are known.
    ids: BTreeMap<String, (u64, Instant)>,
    /// The consumers by name.
    consumers: BTreeMap<String, Consumer<T>>,
}

/// Selects the messages of a consumer.
pub type Filter<T> = Box<dyn Fn(&T) -> bool + Send>;

/// The cursor of a consumer in its stream. Invariant: every sequence in `pending` is less than `next`, and a sequence is in
/// `redeliveries` at most once.
struct Consumer<T> {
    /// The ack wait and the limit of unacknowledged messages.
    settings: ConsumerSettings,
    /// The messages that the consumer delivers; `None` means all of the stream.
    filter: Option<Filter<T>>,
    /// The sequence of the next message that was never delivered.
    next: u64,
    /// The delivered messages that are not acknowledged.
    pending: BTreeMap<u64, PendingDelivery>,
    /// The messages to redeliver, in this order.
    redeliveries: VecDeque<u64>,
}

/// A delivered message without an acknowledgement.
#[derive(Debug)]
struct PendingDelivery {
    /// The number of deliveries so far.
    deliveries: u32,
    /// The time of the redelivery.
    due: Instant,
    /// The redelivery was requested; otherwise it is caused by a missing acknowledgement.
    is_requested: bool,
}

/// A message as a consumer delivers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery<T> {
    /// The sequence in the stream.
    pub sequence: u64,
    /// The number of deliveries, including this one.
    pub deliveries: u32,
    /// A newer message was delivered before.
    pub is_overtaken: bool,
    /// It is redelivered because no acknowledgement arrived in time.
    pub is_late: bool,
    /// The payload.
    pub payload: T,
}

/// The result of asking a consumer for a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// A message.
    Message(Delivery<T>),
    /// No message, or none before the time of the next redelivery.
    Empty(Option<Instant>),
    /// There is a message, but the limit of unacknowledged messages is reached; the next redelivery is due at this time.
    AtLimit(Option<Instant>),
    /// The stream or the consumer does not exist.
    Missing,
}

impl<T> Default for Model<T> {
    fn default() -> Self {
        Self { streams: BTreeMap::new(), created: 0 }
    }
}

impl<T: Clone> Model<T> {
    /// Creates a stream if it does not exist. Returns its state. The settings of an existing stream stay as they are.
    pub fn create_stream(&mut self, name: &str, settings: StreamSettings) -> BrokerStream {
        if !self.streams.contains_key(name) {
            self.created += 1;
            let stream = Stream {
                settings,
                incarnation: self.created,
                messages: BTreeMap::new(),
                last: 0,
                ids: BTreeMap::new(),
                consumers: BTreeMap::new(),
            };
            self.streams.insert(name.to_owned(), stream);
        }
        self.state(name).unwrap_or_default()
    }

    /// Deletes a stream with its consumers and returns the number of lost messages.
    pub fn delete_stream(&mut self, name: &str) -> Option<usize> {
        self.streams.remove(name).map(|stream| stream.messages.len())
    }

    /// Removes all messages of a stream and returns their number. The sequence continues; nothing is unacknowledged any
    /// longer. `None` without the stream.
    pub fn purge_stream(&mut self, name: &str) -> Option<usize> {
        let stream = self.streams.get_mut(name)?;
        for consumer in stream.consumers.values_mut() {
            consumer.pending.clear();
            consumer.redeliveries.clear();
            consumer.next = stream.last + 1;
        }
        // The ids stay known: a message that is sent again within the window counts as a duplicate although it is gone.
        Some(std::mem::take(&mut stream.messages).len())
    }

    /// Returns the state of a stream. `None` if it does not exist.
    pub fn state(&self, name: &str) -> Option<BrokerStream> {
        let stream = self.streams.get(name)?;
        let next = if stream.last == 0 { 0 } else { stream.last + 1 };
        let first = stream.messages.keys().next().copied().unwrap_or(next);
        Some(BrokerStream {
            incarnation: stream.incarnation.to_string(),
            first,
            last: stream.last,
            messages: stream.messages.len() as u64,
        })
    }

    /// Returns the names of all streams.
    pub fn stream_names(&self) -> Vec<String> {
        self.streams.keys().cloned().collect()
    }

    /// Creates a consumer of a stream if it does not exist; it starts at the oldest message. Returns `false` without the stream.
    pub fn create_consumer(&mut self, stream: &str, name: &str, settings: ConsumerSettings) -> bool {
        self.create(stream, name, settings, None)
    }

    /// Creates a consumer of the messages that a filter selects, as [`create_consumer`](Self::create_consumer).
    pub fn create_filtered_consumer(
        &mut self,
        stream: &str,
        name: &str,
        settings: ConsumerSettings,
        filter: Filter<T>,
    ) -> bool {
        self.create(stream, name, settings, Some(filter))
    }

    /// Creates a consumer, with or without a filter. One that exists keeps its settings, its filter and its position.
    fn create(&mut self, stream: &str, name: &str, settings: ConsumerSettings, filter: Option<Filter<T>>) -> bool {
        let Some(stream) = self.streams.get_mut(stream) else { return false };
        let new = || Consumer { settings, filter, next: 1, pending: BTreeMap::new(), redeliveries: VecDeque::new() };
        stream.consumers.entry(name.to_owned()).or_insert_with(new);
        true
    }

    /// Returns the names of the consumers of a stream.
    ///
    /// Empty without the stream.
    pub fn consumer_names(&self, stream: &str) -> Vec<String> {
        self.streams.get(stream).into_iter().flat_map(|stream| stream.consumers.keys().cloned()).collect()
    }

    /// Returns true if a stream has a consumer of this name.
    pub fn has_consumer(&self, stream: &str, name: &str) -> bool {
        self.streams.get(stream).is_some_and(|stream| stream.consumers.contains_key(name))
    }

    /// Deletes a consumer if it exists.
    pub fn delete_consumer(&mut self, stream: &str, name: &str) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.consumers.remove(name);
        }
    }

    /// Stores a message at the end of a stream, unless its id is in the window.
    ///
    /// # Errors
    /// [`PublishError`], without an effect.
    ///
    /// Forgets the ids whose window has ended first. A full stream rejects the message or drops its oldest one, by its
    /// settings.
    pub fn publish(
        &mut self,
        stream: &str,
        id: Option<&str>,
        payload: T,
        now: Instant,
    ) -> Result<PublishAck, PublishError> {
        let stream = self.streams.get_mut(stream).ok_or(PublishError::NoStream)?;
        stream.ids.retain(|_, (_, until)| *until > now);
        if let Some((sequence, _)) = id.and_then(|id| stream.ids.get(id)) {
            return Ok(PublishAck { sequence: *sequence, duplicate: true });
        }
        let most = stream.settings.max_messages;
        if most > 0 && stream.messages.len() as u64 >= most {
            match stream.settings.discard {
                Discard::New => return Err(PublishError::Full),
                Discard::Old => drop(stream.messages.pop_first()),
            }
        }
        stream.last += 1;
        stream.messages.insert(stream.last, payload);
        if let Some(id) = id {
            stream.ids.insert(id.to_owned(), (stream.last, now + stream.settings.duplicate_window));
        }
        Ok(PublishAck { sequence: stream.last, duplicate: false })
    }

    /// Returns true if an id is in the window of a stream although its message is not in the stream.
    pub fn has_orphaned_id(&self, stream: &str, id: &str, now: Instant) -> bool {
        self.streams.get(stream).is_some_and(|stream| {
            let known = stream.ids.get(id).filter(|(_, until)| *until > now);
            known.is_some_and(|(sequence, _)| !stream.messages.contains_key(sequence))
        })
    }

    /// Adds an id without a message, as a server does that fails while it stores the message.
    ///
    /// The sender is then told that its message is a duplicate although no consumer receives it: the fault that senders must
    /// survive.
    pub fn insert_id(&mut self, stream: &str, id: &str, now: Instant) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.ids.insert(id.to_owned(), (stream.last, now + stream.settings.duplicate_window));
        }
    }

    /// Returns the next message of a consumer.
    ///
    /// Redeliveries come first, then the next message that was never delivered. The returned message is unacknowledged from
    /// `now` on, and its ack wait begins.
    pub fn next(&mut self, stream: &str, consumer: &str, now: Instant) -> Next<T> {
        let Some(stream) = self.streams.get_mut(stream) else { return Next::Missing };
        let Some(consumer) = stream.consumers.get_mut(consumer) else { return Next::Missing };
        consumer.expire(now);
        while let Some(sequence) = consumer.redeliveries.pop_front() {
            let Some(pending) = consumer.pending.get_mut(&sequence) else { continue };
            let Some(payload) = stream.messages.get(&sequence) else {
                consumer.pending.remove(&sequence);
                continue;
            };
            pending.deliveries += 1;
            pending.due = now + consumer.settings.ack_wait;
            let is_requested = std::mem::take(&mut pending.is_requested);
            return Next::Message(Delivery {
                sequence,
                deliveries: pending.deliveries,
                is_overtaken: sequence + 1 < consumer.next,
                is_late: !is_requested,
                payload: payload.clone(),
            });
        }
        let due = consumer.pending.values().map(|pending| pending.due).min();
        let Some((sequence, payload)) =
            stream.messages.range(consumer.next..).find(|(_, payload)| consumer.takes(payload))
        else {
            // The messages of other consumers are not considered again.
            consumer.next = stream.last + 1;
            return Next::Empty(due);
        };
        if consumer.pending.len() >= consumer.settings.max_ack_pending {
            return Next::AtLimit(due);
        }
        consumer.next = sequence + 1;
        let pending = PendingDelivery { deliveries: 1, due: now + consumer.settings.ack_wait, is_requested: false };
        consumer.pending.insert(*sequence, pending);
        Next::Message(Delivery {
            sequence: *sequence,
            deliveries: 1,
            is_overtaken: false,
            is_late: false,
            payload: payload.clone(),
        })
    }

    /// Handles the acknowledgement of a delivered message. It has no effect if the message is not pending.
    ///
    /// Only the sequence counts: the acknowledgement of a message of a lost stream hits the message with that sequence in the new stream.
    pub fn acknowledge(
        &mut self,
        stream: &str,
        consumer: &str,
        sequence: u64,
        acknowledgement: Acknowledgement,
        now: Instant,
    ) {
        let Some(stream) = self.streams.get_mut(stream) else { return };
        let Some(consumer) = stream.consumers.get_mut(consumer) else { return };
        let Some(pending) = consumer.pending.get_mut(&sequence) else { return };
        match acknowledgement {
            Acknowledgement::Ack | Acknowledgement::Term => {
                consumer.pending.remove(&sequence);
                consumer.redeliveries.retain(|other| *other != sequence);
                if stream.settings.retention == Retention::WorkQueue {
                    stream.messages.remove(&sequence);
                }
            }
            Acknowledgement::Nak(wait) if wait.is_zero() => {
                pending.is_requested = true;
                if !consumer.redeliveries.contains(&sequence) {
                    consumer.redeliveries.push_back(sequence);
                }
            }
            Acknowledgement::Nak(wait) => (pending.due, pending.is_requested) = (now + wait, true),
            Acknowledgement::InProgress => pending.due = now + consumer.settings.ack_wait,
        }
    }

    /// Loses the last acknowledgement of a consumer, as a server does that has not replicated it: the message that was acknowledged last
    /// and is still in the stream is redelivered. Returns `false` if there is none.
    pub fn lose_last_acknowledgement(&mut self, stream: &str, consumer: &str, now: Instant) -> bool {
        let Some(stream) = self.streams.get_mut(stream) else { return false };
        let Some(consumer) = stream.consumers.get_mut(consumer) else { return false };
        let settled =
            |(sequence, payload): &(&u64, &T)| !consumer.pending.contains_key(sequence) && consumer.takes(payload);
        let Some((last, _)) = stream.messages.range(..consumer.next).rev().find(settled) else { return false };
        let last = *last;
        consumer.pending.insert(last, PendingDelivery { deliveries: 1, due: now, is_requested: true });
        true
    }

    /// Changes the settings of all streams and consumers.
    ///
    /// The new settings hold from the next call on. Messages in flight keep the time at which they are due.
    pub fn reconfigure(&mut self, mut change: impl FnMut(&mut StreamSettings, &mut [&mut ConsumerSettings])) {
        for stream in self.streams.values_mut() {
            let mut consumers: Vec<_> = stream.consumers.values_mut().map(|consumer| &mut consumer.settings).collect();
            change(&mut stream.settings, &mut consumers);
        }
    }

    /// Brings redeliveries forward after the ack wait was shortened.
    pub fn shorten_ack_deadlines(&mut self, now: Instant) {
        for consumer in self.streams.values_mut().flat_map(|stream| stream.consumers.values_mut()) {
            let latest = now + consumer.settings.ack_wait;
            consumer.pending.values_mut().for_each(|pending| pending.due = pending.due.min(latest));
        }
    }

    /// Returns all consumers, each with its stream.
    pub fn consumers(&self) -> Vec<(String, String)> {
        let consumers = |(name, stream): (&String, &Stream<T>)| {
            stream.consumers.keys().map(|consumer| (name.clone(), consumer.clone())).collect::<Vec<_>>()
        };
        self.streams.iter().flat_map(consumers).collect()
    }

    /// Returns a consumer with undelivered or unacknowledged messages, with its stream, among those that are pulled from.
    ///
    /// `is_taken` gets the names of the stream and the consumer, and returns false for those that no node pulls from. The
    /// simulation uses it to decide whether a cluster is idle.
    pub fn unfinished_consumer(&self, is_taken: impl Fn(&str, &str) -> bool) -> Option<(String, String)> {
        self.streams.iter().find_map(|(name, stream)| {
            let busy = |consumer: &Consumer<T>| {
                let mut undelivered = stream.messages.range(consumer.next..);
                !consumer.pending.is_empty() || undelivered.any(|(_, payload)| consumer.takes(payload))
            };
            let consumer = stream.consumers.iter().find(|(of, consumer)| busy(consumer) && is_taken(name, of))?;
            Some((name.clone(), consumer.0.clone()))
        })
    }
}

impl<T> std::fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("next", &self.next).field("pending", &self.pending).finish_non_exhaustive()
    }
}

impl<T> Consumer<T> {
    /// Returns whether the consumer receives a message.
    fn takes(&self, payload: &T) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter(payload))
    }

    /// Schedules redeliveries for expired messages, in stream order.
    fn expire(&mut self, now: Instant) {
        let due = self
            .pending
            .iter()
            .filter(|(sequence, pending)| pending.due <= now && !self.redeliveries.contains(sequence));
        let due: Vec<u64> = due.map(|(sequence, _)| *sequence).collect();
        self.redeliveries.extend(due);
    }
}
