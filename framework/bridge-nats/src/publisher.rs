//! The publisher loop: messages wait in a queue, are written in order, and complete when their reply arrives.
//!
//! Filled by the methods of the bridge on any thread; written by one task, which the bridge's actor owns.
//! A limited number of messages waits for [acknowledgements](super::pending_replies); the rest waits in the queue, which slows the
//! senders down.
//!
//! A reply must find its message, so a message is registered in `pending` before it is queued and removed by whichever comes
//! first: the reply, a denial, a lost connection, or the drop of its [`ReplyFuture`]. The lock on `pending` is never held across an
//! await or while a queue is locked. The loop checks the registration again before writing, because the sender may have given up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::SelectAll};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use super::acknowledgement;
use super::channel::own_payload;
use super::connection::LinkState;
use super::inboxes::Inboxes;
use super::pending_replies::{PendingReplies, PendingReply};
pub(super) use super::pending_replies::{Reply, ReplyError, ReplyKind};
use whizbang_core::bridge::BridgeError;
use whizbang_wire::queue::Queue;

/// The maximum number of messages that wait to be written, for senders that do not await what they send.
const MAX_QUEUED: usize = 64 * 1024;
/// The maximum total payload of these messages in bytes.
const MAX_QUEUED_BYTES: usize = 32 << 20;

/// A message in the queue, encoded by the thread that sends it, so that the threads of a node share this work.
struct EncodedMessage {
    /// The complete subject, with the namespace.
    subject: Subject,
    /// The headers, which contain everything of the envelope except its payload.
    headers: HeaderMap,
    /// The payload, encoded by the codec of the domain.
    payload: Bytes,
    /// The number in the subject of its reply. `None` if no reply is expected.
    number: Option<u64>,
}

/// The queues of messages to write, and the messages that wait for a reply. Shared by all threads of the node.
pub(super) struct PublisherLoop {
    /// Messages for streams.
    messages: Queue<EncodedMessage>,
    /// Requests and notifications: they do not wait for acknowledgements.
    urgent: Queue<EncodedMessage>,
    /// The payload size of both queues in bytes.
    queued_bytes: AtomicUsize,
    /// The messages that wait for a reply, by their numbers.
    pending: Mutex<PendingReplies>,
    /// The number of the next message with a reply. Never used twice in a connection.
    next_number: AtomicU64,
    /// No further messages are accepted. Never reset.
    closing: AtomicBool,
    /// Fires when a stream of this node's own events does not exist: it was deleted.
    pub(super) stream_missing: Notify,
    /// The connection: while it is down, messages are refused, and the senders retry.
    link: watch::Receiver<LinkState>,
    /// The addresses of the servers, for errors.
    broker: Arc<str>,
    /// The subjects to which replies are sent.
    inboxes: Inboxes,
}

impl PublisherLoop {
    /// Creates a publisher with empty queues. Nothing is written before its loop runs.
    pub(super) fn new(inboxes: Inboxes, link: watch::Receiver<LinkState>, broker: Arc<str>) -> Self {
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
            inboxes,
        }
    }

    /// Queues a message, within this call, and returns the future of its reply.
    pub(super) fn publish(
        self: &Arc<Self>,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        kind: ReplyKind,
    ) -> Result<ReplyFuture, BridgeError> {
        let reply = self.register(kind)?;
        let number = Some(reply.number);
        let message = EncodedMessage { subject: Subject::from(subject), headers, payload, number };
        let queue = if kind == ReplyKind::Acknowledgement { &self.messages } else { &self.urgent };
        self.enqueue(queue, message).map(|()| reply)
    }

    /// Reserves a number for a message before it is queued, so that its reply cannot arrive before it is registered.
    fn register(self: &Arc<Self>, kind: ReplyKind) -> Result<ReplyFuture, BridgeError> {
        self.check_open()?;
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        let entry = PendingReply { subject: None, kind, written_bytes: None, reply: sender };
        self.pending.lock().entries.insert(number, entry);
        Ok(ReplyFuture { publisher: Arc::clone(self), number, reply })
    }

    /// Adds a message to a queue.
    ///
    /// # Errors
    /// [`BridgeError::Busy`] if the queue is full in count or bytes, [`BridgeError::Closed`] after the end. The message is
    /// dropped.
    fn enqueue(&self, queue: &Queue<EncodedMessage>, message: EncodedMessage) -> Result<(), BridgeError> {
        let bytes = message.payload.len();
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        // An empty queue accepts a message of any size.
        let fits = queued == 0 || queued + bytes <= MAX_QUEUED_BYTES;
        if fits && queue.try_push(message).is_ok() {
            return Ok(());
        }
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Err(if queue.is_closed() { BridgeError::Closed } else { BridgeError::Busy { waiting: queue.len() } })
    }

    /// Removes the first message of a queue.
    fn dequeue(&self, queue: &Queue<EncodedMessage>) -> Option<EncodedMessage> {
        let message = queue.pop()?;
        self.queued_bytes.fetch_sub(message.payload.len(), Ordering::Relaxed);
        Some(message)
    }

    /// Queues a message without a reply. It may be lost.
    pub(super) fn publish_unawaited(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), BridgeError> {
        self.check_open()?;
        let message = EncodedMessage { subject: Subject::from(subject), headers, payload, number: None };
        self.enqueue(&self.urgent, message)
    }

    /// Returns the addresses of the servers without credentials.
    pub(super) fn broker(&self) -> &str {
        &self.broker
    }

    /// Returns an error if a message queued now could not be sent.
    fn check_open(&self) -> Result<(), BridgeError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(BridgeError::Closed);
        }
        if self.link.borrow().up { Ok(()) } else { Err(self.connection_lost()) }
    }

    /// Returns the error of a message that is refused while the connection is down. It was not sent.
    fn connection_lost(&self) -> BridgeError {
        BridgeError::Unreachable { broker: self.broker.to_string(), reason: "the connection is lost".to_owned() }
    }

    /// Fails the messages on a subject that the server denies.
    pub(super) fn fail_denied(&self, subject: &str) {
        let denied: Vec<u64> = {
            let is_denied =
                |entry: &PendingReply| entry.subject.as_ref().is_some_and(|known| known.as_str() == subject);
            let denied = |(number, entry): (&u64, &PendingReply)| is_denied(entry).then_some(*number);
            self.pending.lock().entries.iter().filter_map(denied).collect()
        };
        for number in denied {
            let reason = format!("this user is not permitted to publish to `{subject}`");
            let refused = BridgeError::Refused { broker: self.broker.to_string(), reason };
            self.resolve(number, Err(ReplyError::NotSent(refused)));
        }
    }

    /// Rejects new messages. The loop ends once the queued ones are completed.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.messages.wake();
    }

    /// Drops all messages immediately. Their senders learn that the message may or may not have been sent.
    pub(super) fn abandon(&self) {
        self.closing.store(true, Ordering::Release);
        self.messages.close();
        self.urgent.close();
        let pending = std::mem::take(&mut *self.pending.lock());
        drop(pending);
    }

    /// Returns whether the loop may end: no message is accepted, queued or unacknowledged. Responses of other nodes are not
    /// waited for.
    fn is_done(&self) -> bool {
        self.closing.load(Ordering::Acquire)
            && self.messages.is_empty()
            && self.urgent.is_empty()
            && self.pending.lock().all_acknowledged()
    }

    /// Fails everything that waits, after the loop has panicked: what it was doing is unknown. Senders retry, and receivers drop
    /// duplicates.
    pub(super) fn restart(&self) {
        self.fail_unacknowledged();
        let pending = std::mem::take(&mut *self.pending.lock());
        for entry in pending.entries.into_values() {
            // A sender may have dropped its future.
            let _ = entry.reply.send(Err(ReplyError::ConnectionLost));
        }
    }

    /// Writes messages until [`close`](Self::close) was called and every message is completed, or the client is gone.
    pub(super) async fn run(&self, client: &Client, inbox: &mut SelectAll<Subscriber>) {
        let mut link = self.link.clone();
        while !self.is_done() {
            tokio::select! {
                biased;
                changed = link.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                reply = inbox.next() => {
                    let Some(reply) = reply else { break };
                    self.receive_reply(reply);
                    while let Some(Some(reply)) = inbox.next().now_or_never() {
                        self.receive_reply(reply);
                    }
                }
                () = self.urgent.filled() => {}
                () = self.messages.filled() => {}
            }
            if link.borrow_and_update().up {
                self.write(client, &mut link).await;
            } else {
                self.fail_unacknowledged();
            }
        }
        self.messages.close();
        self.urgent.close();
    }

    /// Writes queued messages until the window of unacknowledged ones is full, the queues are empty, or the link changes. Urgent
    /// ones come first: they are small, and the window does not apply to them.
    async fn write(&self, client: &Client, link: &mut watch::Receiver<LinkState>) {
        loop {
            let encoded = match self.dequeue(&self.urgent) {
                Some(message) => message,
                None if self.pending.lock().has_capacity() => match self.dequeue(&self.messages) {
                    Some(message) => message,
                    None => return,
                },
                None => return,
            };
            let number = encoded.number;
            let mut reply = None;
            if let Some(number) = number {
                let bytes = encoded.payload.len();
                // Its sender may have given up before it was written.
                let Some(kind) = self.pending.lock().mark_written(number, &encoded.subject, bytes) else { continue };
                reply = Some(self.inboxes.reply_subject(number, kind));
            }
            let written = tokio::select! {
                biased;
                written = write_message(client, reply, encoded) => written,
                // While the client reconnects and its queue is full, the write blocks; the lost connection ends it.
                _ = link.wait_for(|link| !link.up) => Err(self.connection_lost()),
            };
            if let (Some(number), Err(error)) = (number, written) {
                self.resolve(number, Err(ReplyError::NotSent(error)));
            }
            // Replies are not received in this loop, so it must return when the link changes.
            if link.has_changed().unwrap_or(true) {
                return;
            }
        }
    }

    /// Completes a message with a reply or an error.
    fn resolve(&self, number: u64, reply: Result<Reply, ReplyError>) {
        let Some(entry) = self.pending.lock().remove(number) else { return };
        // A sender may have dropped its future.
        let _ = entry.reply.send(reply);
    }

    /// Fails the messages that wait to be written or acknowledged, after the connection was lost: their senders retry.
    fn fail_unacknowledged(&self) {
        while let Some(message) = self.dequeue(&self.urgent).or_else(|| self.dequeue(&self.messages)) {
            if let Some(number) = message.number {
                self.resolve(number, Err(ReplyError::NotSent(self.connection_lost())));
            }
        }
        let acknowledgements: Vec<u64> = {
            let pending = self.pending.lock();
            let unacknowledged =
                |(number, entry): (&u64, &PendingReply)| (entry.kind == ReplyKind::Acknowledgement).then_some(*number);
            pending.entries.iter().filter_map(unacknowledged).collect()
        };
        for number in acknowledgements {
            self.resolve(number, Err(ReplyError::ConnectionLost));
        }
    }

    /// Matches a reply with its message by the number in the subject. Drops it if it arrives too late or with another token.
    fn receive_reply(&self, message: Message) {
        let Some((number, kind)) = self.inboxes.message_of(&message.subject) else { return };
        if self.pending.lock().entries.get(&number).is_none_or(|entry| entry.kind != kind) {
            return;
        }
        let reply = match kind {
            ReplyKind::Response => Reply::Response(own_payload(message)),
            ReplyKind::Acknowledgement => Reply::Acknowledgement(acknowledgement::parse(&message)),
        };
        self.resolve(number, Ok(reply));
    }
}

/// Hands a message to the client, which sends it in the background.
async fn write_message(client: &Client, reply: Option<Subject>, message: EncodedMessage) -> Result<(), BridgeError> {
    let EncodedMessage { subject, headers, payload, .. } = message;
    let published = match reply {
        Some(reply) => client.publish_with_reply_and_headers(subject, reply, headers, payload).await,
        None => client.publish_with_headers(subject, headers, payload).await,
    };
    published.map_err(|error| BridgeError::Broker { doing: "publish".to_owned(), source: Arc::new(error) })
}

/// The future of the reply to one message. Dropping it unregisters the message.
pub(super) struct ReplyFuture {
    /// The publisher, in which the message is registered.
    publisher: Arc<PublisherLoop>,
    /// The number of the message, which its reply contains.
    number: u64,
    /// Receives the reply, or the error with which the message has failed.
    reply: oneshot::Receiver<Result<Reply, ReplyError>>,
}

impl ReplyFuture {
    /// Returns the reply, or `None` if it does not arrive in time: the message may have been delivered. A message without
    /// responders has a reply with that status.
    ///
    /// # Errors
    /// [`BridgeError`] if the message was not sent.
    pub(super) async fn within(self, deadline: Duration) -> Result<Option<Reply>, BridgeError> {
        match tokio::time::timeout(deadline, self).await {
            Ok(Ok(reply)) => Ok(Some(reply)),
            Ok(Err(ReplyError::NotSent(error))) => Err(error),
            Ok(Err(ReplyError::ConnectionLost)) | Err(_) => Ok(None),
        }
    }
}

impl Future for ReplyFuture {
    type Output = Result<Reply, ReplyError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The sender is dropped only with the loop.
        self.reply.poll_unpin(context).map(|reply| reply.unwrap_or(Err(ReplyError::ConnectionLost)))
    }
}

impl Drop for ReplyFuture {
    fn drop(&mut self) {
        let is_pending = self.publisher.pending.lock().entries.contains_key(&self.number);
        if is_pending {
            self.publisher.resolve(self.number, Err(ReplyError::ConnectionLost));
            // The window may have space now.
            self.publisher.messages.wake();
        }
    }
}

#[cfg(test)]
mod tests;
