//! JetStream in memory: streams, their windows of ids, and consumers with what they have in hand. No clock, no chance, no tasks.
//!
//! Called by the [simulated cluster](crate::testing::sim), whose nodes talk through it, and by the [suite](super::cases) that holds
//! it to what real servers do. Whoever calls it says what time it is. It never loses anything unless it is told to.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use super::{ConsumerSettings, Full, Retention, Stored, StreamSettings, StreamState, Untaken, Word};

/// All streams of a server. `T` is what a message carries.
#[derive(Debug)]
pub struct Model<T> {
    streams: BTreeMap<String, Stream<T>>,
    made: u64,
}

#[derive(Debug)]
struct Stream<T> {
    settings: StreamSettings,
    /// Which of all streams that were ever made it is.
    incarnation: u64,
    messages: BTreeMap<u64, T>,
    last: u64,
    /// The ids of the window: the number of their message, and until when they are known.
    ids: BTreeMap<String, (u64, Instant)>,
    consumers: BTreeMap<String, Consumer>,
}

#[derive(Debug)]
struct Consumer {
    settings: ConsumerSettings,
    /// The number of the next message that it has never delivered.
    next: u64,
    /// What was delivered and is not settled.
    in_hand: BTreeMap<u64, InHand>,
    /// What comes again, in this order.
    again: VecDeque<u64>,
}

#[derive(Debug)]
struct InHand {
    deliveries: u32,
    /// When it comes again.
    due: Instant,
    /// Somebody has asked for it again; otherwise it comes because nobody has settled it.
    wanted: bool,
}

/// One message as a consumer delivers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery<T> {
    /// Its number in the stream.
    pub sequence: u64,
    /// How often it was delivered, this time included.
    pub deliveries: u32,
    /// Whether something newer was delivered before.
    pub is_overtaken: bool,
    /// Whether it comes again because nobody had said anything about it in time.
    pub is_late: bool,
    /// What it carries.
    pub what: T,
}

/// What a consumer says when it is asked for a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// Here it is.
    Message(Delivery<T>),
    /// There is none, or none before a moment at which one comes again.
    Nothing(Option<Instant>),
    /// There is one, and as much is in hand as may be; something comes again then.
    HandsFull(Option<Instant>),
    /// There is no such stream or consumer.
    Missing,
}

impl<T> Default for Model<T> {
    fn default() -> Self {
        Self { streams: BTreeMap::new(), made: 0 }
    }
}

impl<T: Clone> Model<T> {
    /// Makes a stream, unless there is one of this name.
    pub fn make_stream(&mut self, name: &str, settings: StreamSettings) -> StreamState {
        if !self.streams.contains_key(name) {
            self.made += 1;
            let stream = Stream {
                settings,
                incarnation: self.made,
                messages: BTreeMap::new(),
                last: 0,
                ids: BTreeMap::new(),
                consumers: BTreeMap::new(),
            };
            self.streams.insert(name.to_owned(), stream);
        }
        self.state(name).unwrap_or_default()
    }

    /// Deletes a stream with its consumers; how many messages are lost.
    pub fn delete_stream(&mut self, name: &str) -> Option<usize> {
        self.streams.remove(name).map(|stream| stream.messages.len())
    }

    /// Empties a stream; its numbers go on, and its consumers have nothing in hand. How many messages are lost.
    pub fn empty_stream(&mut self, name: &str) -> Option<usize> {
        let stream = self.streams.get_mut(name)?;
        for consumer in stream.consumers.values_mut() {
            consumer.in_hand.clear();
            consumer.again.clear();
            consumer.next = stream.last + 1;
        }
        // Its ids stay: what is sent again within the window is taken for a duplicate, though it is not there any more.
        Some(std::mem::take(&mut stream.messages).len())
    }

    /// What is known of a stream.
    pub fn state(&self, name: &str) -> Option<StreamState> {
        let stream = self.streams.get(name)?;
        let next = if stream.last == 0 { 0 } else { stream.last + 1 };
        let first = stream.messages.keys().next().copied().unwrap_or(next);
        Some(StreamState {
            incarnation: stream.incarnation.to_string(),
            first,
            last: stream.last,
            messages: stream.messages.len() as u64,
        })
    }

    /// The names of all streams.
    pub fn names(&self) -> Vec<String> {
        self.streams.keys().cloned().collect()
    }

    /// Makes a consumer of a stream, unless there is one of this name; it begins with the oldest message. False without the stream.
    pub fn make_consumer(&mut self, stream: &str, name: &str, settings: ConsumerSettings) -> bool {
        let Some(stream) = self.streams.get_mut(stream) else { return false };
        let new = || Consumer { settings, next: 1, in_hand: BTreeMap::new(), again: VecDeque::new() };
        stream.consumers.entry(name.to_owned()).or_insert_with(new);
        true
    }

    /// Whether a stream has a consumer of this name.
    pub fn has_consumer(&self, stream: &str, name: &str) -> bool {
        self.streams.get(stream).is_some_and(|stream| stream.consumers.contains_key(name))
    }

    /// Deletes a consumer, if it is there.
    pub fn delete_consumer(&mut self, stream: &str, name: &str) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.consumers.remove(name);
        }
    }

    /// Stores a message at the end of a stream, unless its id is in the window.
    ///
    /// # Errors
    /// [`Untaken`], without an effect.
    pub fn publish(&mut self, stream: &str, id: Option<&str>, what: T, now: Instant) -> Result<Stored, Untaken> {
        let stream = self.streams.get_mut(stream).ok_or(Untaken::Missing)?;
        stream.ids.retain(|_, (_, until)| *until > now);
        if let Some((sequence, _)) = id.and_then(|id| stream.ids.get(id)) {
            return Ok(Stored { sequence: *sequence, duplicate: true });
        }
        let most = stream.settings.max_messages;
        if most > 0 && stream.messages.len() as u64 >= most {
            match stream.settings.full {
                Full::Refuses => return Err(Untaken::Full),
                Full::ForgetsItsOldest => drop(stream.messages.pop_first()),
            }
        }
        stream.last += 1;
        stream.messages.insert(stream.last, what);
        if let Some(id) = id {
            stream.ids.insert(id.to_owned(), (stream.last, now + stream.settings.window));
        }
        Ok(Stored { sequence: stream.last, duplicate: false })
    }

    /// Whether the id of a message is in the window of a stream, and the message is not in the stream.
    pub fn is_falsely_known(&self, stream: &str, id: &str, now: Instant) -> bool {
        self.streams.get(stream).is_some_and(|stream| {
            let known = stream.ids.get(id).filter(|(_, until)| *until > now);
            known.is_some_and(|(sequence, _)| !stream.messages.contains_key(sequence))
        })
    }

    /// Remembers an id without a message, as a server does that fails in the middle of storing it.
    pub fn remember(&mut self, stream: &str, id: &str, now: Instant) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.ids.insert(id.to_owned(), (stream.last, now + stream.settings.window));
        }
    }

    /// The next message for a consumer.
    pub fn next(&mut self, stream: &str, consumer: &str, now: Instant) -> Next<T> {
        let Some(stream) = self.streams.get_mut(stream) else { return Next::Missing };
        let Some(consumer) = stream.consumers.get_mut(consumer) else { return Next::Missing };
        consumer.expire(now);
        while let Some(sequence) = consumer.again.pop_front() {
            let Some(in_hand) = consumer.in_hand.get_mut(&sequence) else { continue };
            let Some(what) = stream.messages.get(&sequence) else {
                consumer.in_hand.remove(&sequence);
                continue;
            };
            in_hand.deliveries += 1;
            in_hand.due = now + consumer.settings.ack_wait;
            let wanted = std::mem::take(&mut in_hand.wanted);
            return Next::Message(Delivery {
                sequence,
                deliveries: in_hand.deliveries,
                is_overtaken: sequence + 1 < consumer.next,
                is_late: !wanted,
                what: what.clone(),
            });
        }
        let due = consumer.in_hand.values().map(|in_hand| in_hand.due).min();
        let Some((sequence, what)) = stream.messages.range(consumer.next..).next() else { return Next::Nothing(due) };
        if consumer.in_hand.len() >= consumer.settings.max_in_hand {
            return Next::HandsFull(due);
        }
        consumer.next = sequence + 1;
        let in_hand = InHand { deliveries: 1, due: now + consumer.settings.ack_wait, wanted: false };
        consumer.in_hand.insert(*sequence, in_hand);
        Next::Message(Delivery {
            sequence: *sequence,
            deliveries: 1,
            is_overtaken: false,
            is_late: false,
            what: what.clone(),
        })
    }

    /// Takes what is said about a message that was delivered. What is not in hand is none of the consumer's any more.
    ///
    /// The number alone counts: said of a message of a stream that was lost, it hits the one with that number in the new stream.
    pub fn settle(&mut self, stream: &str, consumer: &str, sequence: u64, word: Word, now: Instant) {
        let Some(stream) = self.streams.get_mut(stream) else { return };
        let Some(consumer) = stream.consumers.get_mut(consumer) else { return };
        let Some(in_hand) = consumer.in_hand.get_mut(&sequence) else { return };
        match word {
            Word::Done | Word::Never => {
                consumer.in_hand.remove(&sequence);
                consumer.again.retain(|other| *other != sequence);
                if stream.settings.retention == Retention::WorkQueue {
                    stream.messages.remove(&sequence);
                }
            }
            Word::Later(wait) if wait.is_zero() => {
                in_hand.wanted = true;
                if !consumer.again.contains(&sequence) {
                    consumer.again.push_back(sequence);
                }
            }
            Word::Later(wait) => (in_hand.due, in_hand.wanted) = (now + wait, true),
            Word::InProgress => in_hand.due = now + consumer.settings.ack_wait,
        }
    }

    /// Forgets what a consumer was told last, as a server does that has not told its followers: the message that was settled last
    /// and is still in the stream comes again. False if there is none.
    pub fn forget_the_last_word(&mut self, stream: &str, consumer: &str, now: Instant) -> bool {
        let Some(stream) = self.streams.get_mut(stream) else { return false };
        let Some(consumer) = stream.consumers.get_mut(consumer) else { return false };
        let settled = |sequence: &u64| !consumer.in_hand.contains_key(sequence);
        let Some(last) = stream.messages.range(..consumer.next).map(|(at, _)| *at).rev().find(settled) else {
            return false;
        };
        consumer.in_hand.insert(last, InHand { deliveries: 1, due: now, wanted: true });
        true
    }

    /// Changes how all streams and consumers are set.
    pub fn tune(&mut self, mut change: impl FnMut(&mut StreamSettings, &mut [&mut ConsumerSettings])) {
        for stream in self.streams.values_mut() {
            let mut consumers: Vec<_> = stream.consumers.values_mut().map(|consumer| &mut consumer.settings).collect();
            change(&mut stream.settings, &mut consumers);
        }
    }

    /// Brings forward when what is in hand comes again, after the ack wait has become shorter.
    pub fn hurry(&mut self, now: Instant) {
        for consumer in self.streams.values_mut().flat_map(|stream| stream.consumers.values_mut()) {
            let latest = now + consumer.settings.ack_wait;
            consumer.in_hand.values_mut().for_each(|in_hand| in_hand.due = in_hand.due.min(latest));
        }
    }

    /// All consumers, each with its stream.
    pub fn consumers(&self) -> Vec<(String, String)> {
        let consumers = |(name, stream): (&String, &Stream<T>)| {
            stream.consumers.keys().map(|consumer| (name.clone(), consumer.clone())).collect::<Vec<_>>()
        };
        self.streams.iter().flat_map(consumers).collect()
    }

    /// A consumer that has something in hand or has not delivered everything, with its stream; of those that are taken from.
    pub fn unfinished(&self, is_taken: impl Fn(&str, &str) -> bool) -> Option<(String, String)> {
        self.streams.iter().find_map(|(name, stream)| {
            let busy = |consumer: &Consumer| {
                !consumer.in_hand.is_empty() || stream.messages.range(consumer.next..).next().is_some()
            };
            let consumer = stream.consumers.iter().find(|(of, consumer)| busy(consumer) && is_taken(name, of))?;
            Some((name.clone(), consumer.0.clone()))
        })
    }
}

impl Consumer {
    /// What was not settled in time comes again, in the order of the stream.
    fn expire(&mut self, now: Instant) {
        let due =
            self.in_hand.iter().filter(|(sequence, in_hand)| in_hand.due <= now && !self.again.contains(sequence));
        let due: Vec<u64> = due.map(|(sequence, _)| *sequence).collect();
        self.again.extend(due);
    }
}
