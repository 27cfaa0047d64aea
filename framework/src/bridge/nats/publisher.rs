//! What goes out: messages wait in a queue, are written in their order, and are done when the answer is there.
//!
//! Filled by the bridge's methods on any thread; written by one loop, which the bridge's actor owns.
//! A [window](super::pending_replies) of messages waits for the stream's acknowledgement; the rest waits here, and its senders with it.

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
use super::connection::LinkState;
use super::headers;
use super::pending_replies::{PendingReplies, PendingReply};
pub(super) use super::pending_replies::{Reply, ReplyError, ReplyKind};
use crate::bridge::BridgeError;
use crate::bridge::queue::Queue;
use crate::bridge::subject::{Address, Namespace};
use crate::bridge::wire::Packet;
use crate::message::{Codec, Envelope, Origin};

/// How many messages may wait to be written. A sender that does not await what it sends meets this bound.
const MAX_QUEUED: usize = 64 * 1024;
/// How many bytes of payload they may have together.
const MAX_QUEUED_BYTES: usize = 32 << 20;
/// How many events, and how many bytes of them, travel in one message. Only what waits anyway is packed: nothing waits for a
/// pack to fill.
const MAX_PACK_EVENTS: usize = 128;
const MAX_PACK_BYTES: usize = 32 * 1024;

/// What waits to be written.
enum OutgoingMessage {
    Ready(EncodedMessage),
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
struct EncodedMessage {
    subject: Subject,
    headers: HeaderMap,
    payload: Bytes,
    number: Option<u64>,
}

pub(super) struct PublisherLoop {
    /// Messages for streams.
    messages: Queue<OutgoingMessage>,
    /// Questions and tidings: they do not wait for acknowledgements.
    urgent: Queue<OutgoingMessage>,
    /// The bytes of what waits in both.
    queued_bytes: AtomicUsize,
    pending: Mutex<PendingReplies>,
    next_number: AtomicU64,
    closing: AtomicBool,
    /// A stream of this node's own events does not take them: it is no more.
    pub(super) stream_missing: Notify,
    link: watch::Receiver<LinkState>,
    broker: Arc<str>,
    namespace: Namespace,
    /// Answers come to this subject and a number.
    inbox: String,
}

impl PublisherLoop {
    pub(super) fn new(inbox: String, namespace: Namespace, link: watch::Receiver<LinkState>, broker: Arc<str>) -> Self {
        Self {
            messages: Queue::new(MAX_QUEUED),
            urgent: Queue::new(MAX_QUEUED),
            queued_bytes: AtomicUsize::new(0),
            pending: Mutex::default(),
            next_number: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            stream_missing: Notify::new(),
            link,
            broker,
            namespace,
            inbox,
        }
    }

    /// Puts a message at the end of the queue, in this call, and gives back what its answer can be awaited with.
    pub(super) fn publish(
        self: &Arc<Self>,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        awaits: ReplyKind,
    ) -> Result<ReplyFuture, BridgeError> {
        let answering = self.register(awaits)?;
        let number = Some(answering.number);
        let letter =
            OutgoingMessage::Ready(EncodedMessage { subject: Subject::from(subject), headers, payload, number });
        let queue = if awaits == ReplyKind::Acknowledgement { &self.messages } else { &self.urgent };
        self.enqueue_awaited(queue, letter, answering)
    }

    /// The same for an event, which may travel with others.
    pub(super) fn publish_event(self: &Arc<Self>, event: Envelope) -> Result<ReplyFuture, BridgeError> {
        let answering = self.register(ReplyKind::Acknowledgement)?;
        self.enqueue_awaited(&self.messages, OutgoingMessage::Event(Box::new(event), answering.number), answering)
    }

    fn register(self: &Arc<Self>, awaits: ReplyKind) -> Result<ReplyFuture, BridgeError> {
        self.check_open()?;
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let (done, answer) = oneshot::channel();
        let awaited =
            PendingReply { subject: None, kind: awaits, written_bytes: None, packed_with: Vec::new(), reply: done };
        self.pending.lock().entries.insert(number, awaited);
        Ok(ReplyFuture { publisher: Arc::clone(self), number, reply: answer })
    }

    fn enqueue_awaited(
        &self,
        queue: &Queue<OutgoingMessage>,
        letter: OutgoingMessage,
        answering: ReplyFuture,
    ) -> Result<ReplyFuture, BridgeError> {
        self.enqueue(queue, letter).map(|()| answering)
    }

    fn enqueue(&self, queue: &Queue<OutgoingMessage>, letter: OutgoingMessage) -> Result<(), BridgeError> {
        let bytes = letter.bytes();
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        // A single message finds room, whatever its size.
        let fits = queued == 0 || queued + bytes <= MAX_QUEUED_BYTES;
        if fits && queue.try_push(letter).is_ok() {
            return Ok(());
        }
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Err(if queue.is_closed() { BridgeError::Closed } else { BridgeError::Busy { waiting: queue.len() } })
    }

    /// Takes the first letter of a queue if it is wanted.
    fn dequeue(
        &self,
        queue: &Queue<OutgoingMessage>,
        wanted: impl FnOnce(&OutgoingMessage) -> bool,
    ) -> Option<OutgoingMessage> {
        let letter = queue.pop_if(wanted)?;
        self.queued_bytes.fetch_sub(letter.bytes(), Ordering::Relaxed);
        Some(letter)
    }

    /// Writes a message nobody answers; it may get lost.
    pub(super) fn publish_unawaited(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), BridgeError> {
        self.check_open()?;
        let letter =
            OutgoingMessage::Ready(EncodedMessage { subject: Subject::from(subject), headers, payload, number: None });
        self.enqueue(&self.urgent, letter)
    }

    /// The servers' addresses without credentials.
    pub(super) fn broker(&self) -> &str {
        &self.broker
    }

    fn check_open(&self) -> Result<(), BridgeError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(BridgeError::Closed);
        }
        if self.link.borrow().up { Ok(()) } else { Err(self.connection_lost()) }
    }

    fn connection_lost(&self) -> BridgeError {
        BridgeError::Unreachable { broker: self.broker.to_string(), reason: "the connection is lost".to_owned() }
    }

    /// Fails what waits for an answer on a subject that the server does not permit.
    pub(super) fn fail_denied(&self, subject: &str) {
        let denied: Vec<u64> = {
            let is_denied =
                |awaited: &PendingReply| awaited.subject.as_ref().is_some_and(|known| known.as_str() == subject);
            let hit = |(number, awaited): (&u64, &PendingReply)| is_denied(awaited).then_some(*number);
            self.pending.lock().entries.iter().filter_map(hit).collect()
        };
        for number in denied {
            let reason = format!("this user may not publish to `{subject}`");
            let refused = BridgeError::Refused { broker: self.broker.to_string(), reason };
            self.resolve(number, Err(ReplyError::NotSent(refused)));
        }
    }

    /// Refuses new messages; the loop ends once those that wait are done.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.messages.wake();
    }

    /// Forgets everything at once; whoever waits is told that it may or may not have arrived.
    pub(super) fn abandon(&self) {
        self.closing.store(true, Ordering::Release);
        self.messages.close();
        self.urgent.close();
        let open = std::mem::take(&mut *self.pending.lock());
        drop(open);
    }

    fn is_done(&self) -> bool {
        self.closing.load(Ordering::Acquire)
            && self.messages.len() == 0
            && self.urgent.len() == 0
            && self.pending.lock().all_acknowledged()
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
                    self.receive_reply(answer);
                    while let Some(Some(answer)) = inbox.next().now_or_never() {
                        self.receive_reply(answer);
                    }
                }
                () = self.urgent.filled() => {}
                () = self.messages.filled() => {}
            }
            if link.borrow_and_update().up {
                self.write(&client, &mut link).await;
            } else {
                self.fail_unacknowledged();
            }
        }
        self.messages.close();
        self.urgent.close();
    }

    async fn write(&self, client: &Client, link: &mut watch::Receiver<LinkState>) {
        loop {
            let letter = match self.dequeue(&self.urgent, |_| true) {
                Some(letter) => letter,
                None if self.pending.lock().has_capacity() => match self.dequeue(&self.messages, |_| true) {
                    Some(letter) => letter,
                    None => return,
                },
                None => return,
            };
            let written = match letter {
                OutgoingMessage::Ready(written) => written,
                OutgoingMessage::Event(event, number) => match self.encode_pack(*event, number, client.max_payload()) {
                    Some(written) => written,
                    None => continue,
                },
            };
            let number = written.number;
            if let Some(number) = number
                && !self.pending.lock().mark_written(number, &written.subject, written.payload.len())
            {
                // It was given up before it was written.
                continue;
            }
            let written = tokio::select! {
                biased;
                written = write_message(client, &self.inbox, written) => written,
                // The client takes nothing while it reconnects once its own queue is full.
                _ = link.wait_for(|link| !link.up) => Err(self.connection_lost()),
            };
            if let (Some(number), Err(error)) = (number, written) {
                self.resolve(number, Err(ReplyError::NotSent(error)));
            }
            // Answers are not looked at in here, so the link must not change unseen.
            if link.has_changed().unwrap_or(true) {
                return;
            }
        }
    }

    /// An event as it is written, with those behind it that are of the same shard. None if it cannot be; then it is told so.
    fn encode_pack(&self, event: Envelope, number: u64, max_payload: usize) -> Option<EncodedMessage> {
        if !self.pending.lock().entries.contains_key(&number) {
            // Nobody waits any more: it was given up before it was written.
            return None;
        }
        let mut events = vec![event];
        let mut others = Vec::new();
        let mut bytes = events.iter().map(Packet::packed_size).sum::<usize>();
        let most = MAX_PACK_BYTES.min(max_payload / 2);
        while let Some(first) = events.first().filter(|_| events.len() < MAX_PACK_EVENTS) {
            let fits = |letter: &OutgoingMessage| match letter {
                OutgoingMessage::Event(next, _) => {
                    can_share_pack(first, next) && bytes + Packet::packed_size(next) <= most
                }
                OutgoingMessage::Ready(_) => false,
            };
            let Some(OutgoingMessage::Event(next, number)) = self.dequeue(&self.messages, fits) else { break };
            bytes += Packet::packed_size(&next);
            events.push(*next);
            others.push(number);
        }
        if let Some(awaited) = self.pending.lock().entries.get_mut(&number) {
            awaited.packed_with = others;
        }
        self.encode(&events, number, max_payload)
            .map_err(|error| self.resolve(number, Err(ReplyError::NotSent(error))))
            .ok()
    }

    fn encode(&self, events: &[Envelope], number: u64, max_payload: usize) -> Result<EncodedMessage, BridgeError> {
        let (place, packet) = match events {
            [event] => (Address::for_event(event), Packet::from_envelope(event)?),
            events => {
                let shard = events.first().and_then(|event| event.origin.as_ref()).map(|origin| origin.shard.clone());
                (shard.map(Address::Events), Packet::from_events(events))
            }
        };
        let place = place.ok_or_else(|| BridgeError::Malformed { reason: "an event without a log".to_owned() })?;
        if packet.size() > max_payload {
            return Err(BridgeError::Oversize { bytes: packet.size(), limit: max_payload });
        }
        let subject = Subject::from(self.namespace.subject(&place));
        Ok(EncodedMessage {
            subject,
            headers: headers::to_nats(&packet)?,
            payload: packet.payload,
            number: Some(number),
        })
    }

    /// Tells whoever waits for an answer, and for that to what is in the same pack.
    fn resolve(&self, number: u64, answered: Result<Reply, ReplyError>) {
        let (first, others) = {
            let mut open = self.pending.lock();
            let Some(first) = open.remove(number) else { return };
            let others: Vec<PendingReply> = first.packed_with.iter().filter_map(|other| open.remove(*other)).collect();
            (first, others)
        };
        // Whoever has stopped waiting does not mind.
        for other in others {
            let _ = other.reply.send(answered.clone());
        }
        let _ = first.reply.send(answered);
    }

    /// The connection is lost: what waits to be written, and what waits for an acknowledgement, is sent again by its sender.
    fn fail_unacknowledged(&self) {
        while let Some(letter) = self.dequeue(&self.urgent, |_| true).or_else(|| self.dequeue(&self.messages, |_| true))
        {
            let number = match letter {
                OutgoingMessage::Ready(written) => written.number,
                OutgoingMessage::Event(_, number) => Some(number),
            };
            if let Some(number) = number {
                self.resolve(number, Err(ReplyError::NotSent(self.connection_lost())));
            }
        }
        let acknowledgements: Vec<u64> = {
            let open = self.pending.lock();
            let waits = |(number, awaited): (&u64, &PendingReply)| {
                (awaited.kind == ReplyKind::Acknowledgement).then_some(*number)
            };
            open.entries.iter().filter_map(waits).collect()
        };
        for number in acknowledgements {
            self.resolve(number, Err(ReplyError::ConnectionLost));
        }
    }

    fn receive_reply(&self, answer: Message) {
        let Some(number) = answer.subject.rsplit('.').next().and_then(|token| token.parse().ok()) else { return };
        let awaits = self.pending.lock().entries.get(&number).map(|awaited| awaited.kind);
        let answered = match awaits {
            None => return,
            Some(ReplyKind::Response) => Reply::Response(answer),
            // Read once, though a pack's answer is for many.
            Some(ReplyKind::Acknowledgement) => Reply::Acknowledgement(acknowledgement::parse(&answer)),
        };
        self.resolve(number, Ok(answered));
    }
}

/// Whether an event may travel in one message with the first of a pack. In JSON it may be meant for other languages, which
/// read one event a message.
fn can_share_pack(first: &Envelope, next: &Envelope) -> bool {
    let is_compact = first.codec == Codec::Bincode && next.codec == Codec::Bincode;
    let of_one_shard = |one: &Origin, other: &Origin| one.shard == other.shard;
    is_compact && first.origin.as_ref().zip(next.origin.as_ref()).is_some_and(|(one, other)| of_one_shard(one, other))
}

async fn write_message(client: &Client, inbox: &str, written: EncodedMessage) -> Result<(), BridgeError> {
    let EncodedMessage { subject, headers, payload, number } = written;
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
pub(super) struct ReplyFuture {
    publisher: Arc<PublisherLoop>,
    number: u64,
    reply: oneshot::Receiver<Result<Reply, ReplyError>>,
}

impl ReplyFuture {
    /// The answer, or none if it does not come in time: what was sent may have arrived. What has no responder is an answer
    /// with that status.
    ///
    /// # Errors
    /// Why it was not sent.
    pub(super) async fn within(self, deadline: Duration) -> Result<Option<Reply>, BridgeError> {
        match tokio::time::timeout(deadline, self).await {
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(ReplyError::NotSent(error))) => Err(error),
            Ok(Err(ReplyError::ConnectionLost)) | Err(_) => Ok(None),
        }
    }
}

impl Future for ReplyFuture {
    type Output = Result<Reply, ReplyError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The other end is dropped only with the loop.
        self.reply.poll_unpin(context).map(|answer| answer.unwrap_or(Err(ReplyError::ConnectionLost)))
    }
}

impl Drop for ReplyFuture {
    fn drop(&mut self) {
        let given_up = self.publisher.pending.lock().entries.contains_key(&self.number);
        if given_up {
            // What is in the same pack waits for this one's answer, which nobody will look at.
            self.publisher.resolve(self.number, Err(ReplyError::ConnectionLost));
            // There may be room in the window now.
            self.publisher.messages.wake();
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
        let post = || outgoing.publish("a".to_owned(), HeaderMap::new(), Bytes::new(), ReplyKind::Acknowledgement);
        let waiting: Vec<_> = (0..MAX_QUEUED).map(|_| post().map_err(|error| error.to_string()).unwrap()).collect();
        for _ in 0..10 {
            assert!(matches!(post().map(drop), Err(BridgeError::Busy { .. })));
        }
        assert_eq!(outgoing.messages.len(), MAX_QUEUED);
        assert_eq!(outgoing.pending.lock().entries.len(), waiting.len());
        outgoing.abandon();
        assert!(matches!(post().map(drop), Err(BridgeError::Closed)));
    }

    #[test]
    fn waiting_messages_are_bounded_in_bytes() {
        let (_link, link) = watch::channel(LinkState { up: true, epoch: 1, ..LinkState::default() });
        let outgoing = Arc::new(PublisherLoop::new("inbox".to_owned(), Namespace::default(), link, "broker".into()));
        let large = Bytes::from(vec![0; MAX_QUEUED_BYTES / 4]);
        let post = || outgoing.publish("a".to_owned(), HeaderMap::new(), large.clone(), ReplyKind::Acknowledgement);
        let waiting: Vec<_> = (0..4).map(|_| post().map_err(|error| error.to_string()).unwrap()).collect();
        assert!(matches!(post().map(drop), Err(BridgeError::Busy { waiting: 4 })));
        assert!(
            outgoing.publish_unawaited("a".to_owned(), HeaderMap::new(), Bytes::new()).is_ok(),
            "what is small finds room"
        );
        assert!(outgoing.dequeue(&outgoing.messages, |_| true).is_some());
        assert!(post().is_ok());
        drop(waiting);
    }
}
