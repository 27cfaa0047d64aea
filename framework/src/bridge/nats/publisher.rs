//! What goes out: messages wait in a queue, are written in their order, and are done when the answer is there.
//!
//! Filled by the bridge's methods on any thread; written by one loop, which the bridge's actor owns.
//! A [window](super::awaited) of messages waits for the stream's acknowledgement; the rest waits here, and its senders with it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use super::acknowledgement;
pub(super) use super::awaited::{Answered, Awaits, Unanswered};
use super::awaited::{Awaited, Open};
use super::connection::LinkState;
use super::headers;
use crate::bridge::BridgeError;
use crate::bridge::queue::Queue;
use crate::bridge::subject::{Namespace, Place};
use crate::bridge::wire::Packet;
use crate::message::{Codec, Envelope, Origin};

/// How many messages may wait to be written. A sender that does not await what it sends meets this bound.
const WAITING: usize = 64 * 1024;
/// How many bytes of payload they may have together.
const WAITING_BYTES: usize = 32 << 20;
/// How many events, and how many bytes of them, travel in one message. Only what waits anyway is packed: nothing waits for a
/// pack to fill.
const PACK: usize = 128;
const PACK_BYTES: usize = 32 * 1024;

/// What waits to be written.
enum OutgoingMessage {
    Ready(Written),
    /// An event: it travels alone, or in a pack with those behind it, as it stands in the queue when it is written.
    Event(Box<Envelope>, u64),
}

impl OutgoingMessage {
    /// The bytes that it has in the queue.
    fn bytes(&self) -> usize {
        match self {
            Self::Ready(written) => written.payload.len(),
            Self::Event(event, _) => event.payload.len(),
        }
    }
}

/// A message as it is written.
struct Written {
    subject: Subject,
    headers: HeaderMap,
    payload: Bytes,
    number: Option<u64>,
}

pub(super) struct PublisherLoop {
    /// Messages for streams.
    letters: Queue<OutgoingMessage>,
    /// Questions and tidings: they do not wait for acknowledgements.
    urgent: Queue<OutgoingMessage>,
    /// The bytes of what waits in both.
    queued: AtomicUsize,
    open: Mutex<Open>,
    numbers: AtomicU64,
    closing: AtomicBool,
    /// A stream of this node's own events does not take them: it is no more.
    pub(super) missing: Notify,
    link: watch::Receiver<LinkState>,
    broker: Arc<str>,
    namespace: Namespace,
    /// Answers come to this subject and a number.
    inbox: String,
}

impl PublisherLoop {
    pub(super) fn new(inbox: String, namespace: Namespace, link: watch::Receiver<LinkState>, broker: Arc<str>) -> Self {
        Self {
            letters: Queue::new(WAITING),
            urgent: Queue::new(WAITING),
            queued: AtomicUsize::new(0),
            open: Mutex::default(),
            numbers: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            missing: Notify::new(),
            link,
            broker,
            namespace,
            inbox,
        }
    }

    /// Puts a message at the end of the queue, in this call, and gives back what its answer can be awaited with.
    pub(super) fn post(
        self: &Arc<Self>,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        awaits: Awaits,
    ) -> Result<Answering, BridgeError> {
        let answering = self.answering(awaits)?;
        let number = Some(answering.number);
        let letter = OutgoingMessage::Ready(Written { subject: Subject::from(subject), headers, payload, number });
        let queue = if awaits == Awaits::Acknowledgement { &self.letters } else { &self.urgent };
        self.push(queue, letter, answering)
    }

    /// The same for an event, which may travel with others.
    pub(super) fn post_event(self: &Arc<Self>, event: Envelope) -> Result<Answering, BridgeError> {
        let answering = self.answering(Awaits::Acknowledgement)?;
        self.push(&self.letters, OutgoingMessage::Event(Box::new(event), answering.number), answering)
    }

    fn answering(self: &Arc<Self>, awaits: Awaits) -> Result<Answering, BridgeError> {
        self.check()?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (done, answer) = oneshot::channel();
        let awaited = Awaited { subject: None, awaits, written: None, others: Vec::new(), done };
        self.open.lock().awaited.insert(number, awaited);
        Ok(Answering { outgoing: Arc::clone(self), number, answer })
    }

    fn push(
        &self,
        queue: &Queue<OutgoingMessage>,
        letter: OutgoingMessage,
        answering: Answering,
    ) -> Result<Answering, BridgeError> {
        self.enqueue(queue, letter).map(|()| answering)
    }

    fn enqueue(&self, queue: &Queue<OutgoingMessage>, letter: OutgoingMessage) -> Result<(), BridgeError> {
        let bytes = letter.bytes();
        let queued = self.queued.fetch_add(bytes, Ordering::Relaxed);
        // A single message finds room, whatever its size.
        let fits = queued == 0 || queued + bytes <= WAITING_BYTES;
        if fits && queue.push_if_room(letter).is_ok() {
            return Ok(());
        }
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
        Err(if queue.is_closed() { BridgeError::Closed } else { BridgeError::Busy { waiting: queue.len() } })
    }

    /// Takes the first letter of a queue if it is wanted.
    fn dequeue(
        &self,
        queue: &Queue<OutgoingMessage>,
        wanted: impl FnOnce(&OutgoingMessage) -> bool,
    ) -> Option<OutgoingMessage> {
        let letter = queue.pop_if(wanted)?;
        self.queued.fetch_sub(letter.bytes(), Ordering::Relaxed);
        Some(letter)
    }

    /// Writes a message nobody answers; it may get lost.
    pub(super) fn drop_in(&self, subject: String, headers: HeaderMap, payload: Bytes) -> Result<(), BridgeError> {
        self.check()?;
        let letter =
            OutgoingMessage::Ready(Written { subject: Subject::from(subject), headers, payload, number: None });
        self.enqueue(&self.urgent, letter)
    }

    /// The servers' addresses without credentials.
    pub(super) fn broker(&self) -> &str {
        &self.broker
    }

    fn check(&self) -> Result<(), BridgeError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(BridgeError::Closed);
        }
        if self.link.borrow().up { Ok(()) } else { Err(self.lost()) }
    }

    fn lost(&self) -> BridgeError {
        BridgeError::Unreachable { broker: self.broker.to_string(), reason: "the connection is lost".to_owned() }
    }

    /// Fails what waits for an answer on a subject that the server does not permit.
    pub(super) fn deny(&self, subject: &str) {
        let denied: Vec<u64> = {
            let is_denied = |awaited: &Awaited| awaited.subject.as_ref().is_some_and(|known| known.as_str() == subject);
            let hit = |(number, awaited): (&u64, &Awaited)| is_denied(awaited).then_some(*number);
            self.open.lock().awaited.iter().filter_map(hit).collect()
        };
        for number in denied {
            let reason = format!("this user may not publish to `{subject}`");
            let refused = BridgeError::Refused { broker: self.broker.to_string(), reason };
            self.resolve(number, Err(Unanswered::NotSent(refused)));
        }
    }

    /// Refuses new messages; the loop ends once those that wait are done.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.letters.nudge();
    }

    /// Forgets everything at once; whoever waits is told that it may or may not have arrived.
    pub(super) fn abandon(&self) {
        self.closing.store(true, Ordering::Release);
        self.letters.close();
        self.urgent.close();
        let open = std::mem::take(&mut *self.open.lock());
        drop(open);
    }

    fn is_done(&self) -> bool {
        self.closing.load(Ordering::Acquire)
            && self.letters.len() == 0
            && self.urgent.len() == 0
            && self.open.lock().is_acknowledged()
    }

    /// Writes until [`close`](Self::close) and everything is done, or the client is gone.
    pub(super) async fn run(self: Arc<Self>, client: Client, mut inbox: Subscriber) {
        let mut link = self.link.clone();
        while !self.is_done() {
            tokio::select! {
                biased;
                changed = link.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                answer = inbox.next() => {
                    let Some(answer) = answer else { break };
                    self.take(answer);
                    while let Some(Some(answer)) = inbox.next().now_or_never() {
                        self.take(answer);
                    }
                }
                () = self.urgent.filled() => {}
                () = self.letters.filled() => {}
            }
            if link.borrow_and_update().up {
                self.write(&client, &mut link).await;
            } else {
                self.give_up();
            }
        }
        self.letters.close();
        self.urgent.close();
    }

    async fn write(&self, client: &Client, link: &mut watch::Receiver<LinkState>) {
        loop {
            let letter = match self.dequeue(&self.urgent, |_| true) {
                Some(letter) => letter,
                None if self.open.lock().has_room() => match self.dequeue(&self.letters, |_| true) {
                    Some(letter) => letter,
                    None => return,
                },
                None => return,
            };
            let written = match letter {
                OutgoingMessage::Ready(written) => written,
                OutgoingMessage::Event(event, number) => match self.pack(*event, number, client.max_payload()) {
                    Some(written) => written,
                    None => continue,
                },
            };
            let number = written.number;
            if let Some(number) = number
                && !self.open.lock().write(number, &written.subject, written.payload.len())
            {
                // It was given up before it was written.
                continue;
            }
            let written = tokio::select! {
                biased;
                written = publish(client, &self.inbox, written) => written,
                // The client takes nothing while it reconnects once its own queue is full.
                _ = link.wait_for(|link| !link.up) => Err(self.lost()),
            };
            if let (Some(number), Err(error)) = (number, written) {
                self.resolve(number, Err(Unanswered::NotSent(error)));
            }
            // Answers are not looked at in here, so the link must not change unseen.
            if link.has_changed().unwrap_or(true) {
                return;
            }
        }
    }

    /// An event as it is written, with those behind it that are of the same shard. None if it cannot be; then it is told so.
    fn pack(&self, event: Envelope, number: u64, max_payload: usize) -> Option<Written> {
        if !self.open.lock().awaited.contains_key(&number) {
            // Nobody waits any more: it was given up before it was written.
            return None;
        }
        let mut events = vec![event];
        let mut others = Vec::new();
        let mut bytes = events.iter().map(Packet::bytes_in_pack).sum::<usize>();
        let most = PACK_BYTES.min(max_payload / 2);
        while let Some(first) = events.first().filter(|_| events.len() < PACK) {
            let fits = |letter: &OutgoingMessage| match letter {
                OutgoingMessage::Event(next, _) => {
                    is_of_the_pack(first, next) && bytes + Packet::bytes_in_pack(next) <= most
                }
                OutgoingMessage::Ready(_) => false,
            };
            let Some(OutgoingMessage::Event(next, number)) = self.dequeue(&self.letters, fits) else { break };
            bytes += Packet::bytes_in_pack(&next);
            events.push(*next);
            others.push(number);
        }
        if let Some(awaited) = self.open.lock().awaited.get_mut(&number) {
            awaited.others = others;
        }
        self.written(&events, number, max_payload)
            .map_err(|error| self.resolve(number, Err(Unanswered::NotSent(error))))
            .ok()
    }

    fn written(&self, events: &[Envelope], number: u64, max_payload: usize) -> Result<Written, BridgeError> {
        let (place, packet) = match events {
            [event] => (Place::of_event(event), Packet::from_envelope(event)?),
            events => {
                let shard = events.first().and_then(|event| event.origin.as_ref()).map(|origin| origin.shard.clone());
                (shard.map(Place::Events), Packet::from_events(events))
            }
        };
        let place = place.ok_or_else(|| BridgeError::Malformed { reason: "an event without a log".to_owned() })?;
        if packet.size() > max_payload {
            return Err(BridgeError::Oversize { bytes: packet.size(), limit: max_payload });
        }
        let subject = Subject::from(self.namespace.subject(&place));
        Ok(Written { subject, headers: headers::to_nats(&packet)?, payload: packet.payload, number: Some(number) })
    }

    /// Tells whoever waits for an answer, and for that to what is in the same pack.
    fn resolve(&self, number: u64, answered: Result<Answered, Unanswered>) {
        let (first, others) = {
            let mut open = self.open.lock();
            let Some(first) = open.remove(number) else { return };
            let others: Vec<Awaited> = first.others.iter().filter_map(|other| open.remove(*other)).collect();
            (first, others)
        };
        // Whoever has stopped waiting does not mind.
        for other in others {
            let _ = other.done.send(answered.clone());
        }
        let _ = first.done.send(answered);
    }

    /// The connection is lost: what waits to be written, and what waits for an acknowledgement, is sent again by its sender.
    fn give_up(&self) {
        while let Some(letter) = self.dequeue(&self.urgent, |_| true).or_else(|| self.dequeue(&self.letters, |_| true))
        {
            let number = match letter {
                OutgoingMessage::Ready(written) => written.number,
                OutgoingMessage::Event(_, number) => Some(number),
            };
            if let Some(number) = number {
                self.resolve(number, Err(Unanswered::NotSent(self.lost())));
            }
        }
        let acknowledgements: Vec<u64> = {
            let open = self.open.lock();
            let waits =
                |(number, awaited): (&u64, &Awaited)| (awaited.awaits == Awaits::Acknowledgement).then_some(*number);
            open.awaited.iter().filter_map(waits).collect()
        };
        for number in acknowledgements {
            self.resolve(number, Err(Unanswered::Lost));
        }
    }

    fn take(&self, answer: Message) {
        let Some(number) = answer.subject.rsplit('.').next().and_then(|token| token.parse().ok()) else { return };
        let awaits = self.open.lock().awaited.get(&number).map(|awaited| awaited.awaits);
        let answered = match awaits {
            None => return,
            Some(Awaits::Answer) => Answered::Message(answer),
            // Read once, though a pack's answer is for many.
            Some(Awaits::Acknowledgement) => Answered::Stream(acknowledgement::read(&answer)),
        };
        self.resolve(number, Ok(answered));
    }
}

/// Whether an event may travel in one message with the first of a pack. In JSON it may be meant for other languages, which
/// read one event a message.
fn is_of_the_pack(first: &Envelope, next: &Envelope) -> bool {
    let is_compact = first.codec == Codec::Bincode && next.codec == Codec::Bincode;
    let of_one_shard = |one: &Origin, other: &Origin| one.shard == other.shard;
    is_compact && first.origin.as_ref().zip(next.origin.as_ref()).is_some_and(|(one, other)| of_one_shard(one, other))
}

async fn publish(client: &Client, inbox: &str, written: Written) -> Result<(), BridgeError> {
    let Written { subject, headers, payload, number } = written;
    let published = match number {
        Some(number) => {
            let reply = Subject::from(format!("{inbox}.{number}"));
            client.publish_with_reply_and_headers(subject, reply, headers, payload).await
        }
        None => client.publish_with_headers(subject, headers, payload).await,
    };
    published.map_err(|error| BridgeError::Broker { doing: "publishing".to_owned(), source: Arc::new(error) })
}

/// Waits for the answer to one message. Dropped, it is no longer waited for.
pub(super) struct Answering {
    outgoing: Arc<PublisherLoop>,
    number: u64,
    answer: oneshot::Receiver<Result<Answered, Unanswered>>,
}

impl Answering {
    /// The answer, or none if it does not come in time: what was sent may have arrived. What has no responder is an answer
    /// with that status.
    ///
    /// # Errors
    /// Why it was not sent.
    pub(super) async fn within(self, deadline: Duration) -> Result<Option<Answered>, BridgeError> {
        match tokio::time::timeout(deadline, self).await {
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(Unanswered::NotSent(error))) => Err(error),
            Ok(Err(Unanswered::Lost)) | Err(_) => Ok(None),
        }
    }
}

impl Future for Answering {
    type Output = Result<Answered, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The other end is dropped only with the loop.
        self.answer.poll_unpin(context).map(|answer| answer.unwrap_or(Err(Unanswered::Lost)))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let given_up = self.outgoing.open.lock().awaited.contains_key(&self.number);
        if given_up {
            // What is in the same pack waits for this one's answer, which nobody will look at.
            self.outgoing.resolve(self.number, Err(Unanswered::Lost));
            // There may be room in the window now.
            self.outgoing.letters.nudge();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_refused_and_not_kept() {
        let (_link, link) = watch::channel(LinkState { up: true, epoch: 1, ..LinkState::default() });
        let outgoing = PublisherLoop::new("inbox".to_owned(), Namespace::default(), link, "broker".into());
        let outgoing = Arc::new(outgoing);
        let post = || outgoing.post("a".to_owned(), HeaderMap::new(), Bytes::new(), Awaits::Acknowledgement);
        let waiting: Vec<_> = (0..WAITING).map(|_| post().map_err(|error| error.to_string()).unwrap()).collect();
        for _ in 0..10 {
            assert!(matches!(post().map(drop), Err(BridgeError::Busy { .. })));
        }
        assert_eq!(outgoing.letters.len(), WAITING);
        assert_eq!(outgoing.open.lock().awaited.len(), waiting.len());
        outgoing.abandon();
        assert!(matches!(post().map(drop), Err(BridgeError::Closed)));
    }

    #[test]
    fn waiting_messages_are_bounded_in_bytes() {
        let (_link, link) = watch::channel(LinkState { up: true, epoch: 1, ..LinkState::default() });
        let outgoing = Arc::new(PublisherLoop::new("inbox".to_owned(), Namespace::default(), link, "broker".into()));
        let large = Bytes::from(vec![0; WAITING_BYTES / 4]);
        let post = || outgoing.post("a".to_owned(), HeaderMap::new(), large.clone(), Awaits::Acknowledgement);
        let waiting: Vec<_> = (0..4).map(|_| post().map_err(|error| error.to_string()).unwrap()).collect();
        assert!(matches!(post().map(drop), Err(BridgeError::Busy { waiting: 4 })));
        assert!(outgoing.drop_in("a".to_owned(), HeaderMap::new(), Bytes::new()).is_ok(), "what is small finds room");
        assert!(outgoing.dequeue(&outgoing.letters, |_| true).is_some());
        assert!(post().is_ok());
        drop(waiting);
    }
}
