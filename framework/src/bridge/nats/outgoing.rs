//! What goes out: messages wait in a queue, are written in their order, and are done when the answer is there.
//!
//! Filled by the bridge's methods on any thread; written by one loop, which the bridge's actor owns.
//! At most [`WINDOW`] messages wait for the stream's acknowledgement; the rest waits here, and its senders with it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use super::connection::Link;
use crate::bridge::BridgeError;
use crate::bridge::queue::{Pushed, Queue};

/// How many messages may wait for their acknowledgement by a stream.
const WINDOW: usize = 1024;
/// How many messages may wait to be written. A sender that does not await what it sends meets this bound.
const WAITING: usize = 64 * 1024;

/// What is awaited after a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaits {
    /// The stream's acknowledgement: counts in the window, and fails when the connection is lost.
    Acknowledgement,
    /// Somebody's answer, which may still come after the connection was lost.
    Answer,
}

struct Letter {
    subject: Subject,
    headers: Option<HeaderMap>,
    payload: Bytes,
    number: Option<u64>,
}

struct Awaited {
    subject: Subject,
    awaits: Awaits,
    written: bool,
    done: oneshot::Sender<Result<Message, Unanswered>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// It was not sent.
    NotSent(BridgeError),
    /// It was sent, and the connection was lost before an answer came: it may have arrived.
    Lost,
}

#[derive(Default)]
struct Open {
    awaited: HashMap<u64, Awaited, foldhash::fast::FixedState>,
    unacknowledged: usize,
}

impl Open {
    fn remove(&mut self, number: u64) -> Option<Awaited> {
        let awaited = self.awaited.remove(&number)?;
        if awaited.written && awaited.awaits == Awaits::Acknowledgement {
            self.unacknowledged -= 1;
        }
        Some(awaited)
    }
}

pub(super) struct Outgoing {
    /// Messages for streams.
    letters: Queue<Letter>,
    /// Questions and tidings: they do not wait for acknowledgements.
    urgent: Queue<Letter>,
    open: Mutex<Open>,
    numbers: AtomicU64,
    closing: AtomicBool,
    /// A stream of this node's own events does not take them: it is no more.
    pub(super) missing: Notify,
    link: watch::Receiver<Link>,
    broker: Arc<str>,
    /// Answers come to this subject and a number.
    inbox: String,
}

impl Outgoing {
    pub(super) fn new(inbox: String, link: watch::Receiver<Link>, broker: Arc<str>) -> Self {
        Self {
            letters: Queue::new(WAITING),
            urgent: Queue::new(WAITING),
            open: Mutex::default(),
            numbers: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            missing: Notify::new(),
            link,
            broker,
            inbox,
        }
    }

    /// Puts a message at the end of the queue, in this call, and gives back what its answer can be awaited with.
    pub(super) fn post(
        self: &Arc<Self>,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
        awaits: Awaits,
    ) -> Result<Answering, BridgeError> {
        self.check()?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (done, answer) = oneshot::channel();
        let subject = Subject::from(subject);
        let awaited = Awaited { subject: subject.clone(), awaits, written: false, done };
        self.open.lock().awaited.insert(number, awaited);
        let answering = Answering { outgoing: Arc::clone(self), number, answer };
        let letter = Letter { subject, headers, payload, number: Some(number) };
        let queue = if awaits == Awaits::Acknowledgement { &self.letters } else { &self.urgent };
        match queue.push(letter) {
            Pushed::Taken => Ok(answering),
            // Behind the bound: it goes out all the same, but whoever goes on like this is told.
            Pushed::Waits(_) => Err(BridgeError::Busy { waiting: WAITING }),
            Pushed::Closed => Err(BridgeError::Closed),
        }
    }

    /// Writes a message nobody answers; it may get lost.
    pub(super) fn drop_in(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<(), BridgeError> {
        self.check()?;
        let letter = Letter { subject: Subject::from(subject), headers, payload, number: None };
        self.urgent.push_if_room(letter).map_err(|_| BridgeError::Busy { waiting: WAITING })
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
        let denied: Vec<Awaited> = {
            let mut open = self.open.lock();
            let hit = |(number, awaited): (&u64, &Awaited)| (awaited.subject.as_str() == subject).then_some(*number);
            let numbers: Vec<u64> = open.awaited.iter().filter_map(hit).collect();
            numbers.into_iter().filter_map(|number| open.remove(number)).collect()
        };
        for awaited in denied {
            let reason = format!("this user may not publish to `{subject}`");
            // Whoever has stopped waiting does not mind.
            let refused = BridgeError::Refused { broker: self.broker.to_string(), reason };
            let _ = awaited.done.send(Err(Unanswered::NotSent(refused)));
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
            && self.open.lock().unacknowledged == 0
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

    async fn write(&self, client: &Client, link: &mut watch::Receiver<Link>) {
        loop {
            let letter = match self.urgent.pop() {
                Some(letter) => letter,
                None if self.open.lock().unacknowledged < WINDOW => match self.letters.pop() {
                    Some(letter) => letter,
                    None => return,
                },
                None => return,
            };
            if let Some(number) = letter.number {
                let mut open = self.open.lock();
                // Nobody waits any more: it was given up before it was written.
                let Some(awaited) = open.awaited.get_mut(&number) else { continue };
                awaited.written = true;
                if awaited.awaits == Awaits::Acknowledgement {
                    open.unacknowledged += 1;
                }
            }
            let number = letter.number;
            let written = tokio::select! {
                biased;
                written = publish(client, &self.inbox, letter) => written,
                // The client takes nothing while it reconnects once its own queue is full.
                _ = link.wait_for(|link| !link.up) => Err(self.lost()),
            };
            if let Err(error) = written {
                self.fail(number, Unanswered::NotSent(error));
            }
            // Answers are not looked at in here, so the link must not change unseen.
            if link.has_changed().unwrap_or(true) {
                return;
            }
        }
    }

    fn fail(&self, number: Option<u64>, why: Unanswered) {
        let awaited = number.and_then(|number| self.open.lock().remove(number));
        if let Some(awaited) = awaited {
            let _ = awaited.done.send(Err(why));
        }
    }

    /// The connection is lost: what waits to be written, and what waits for an acknowledgement, is sent again by its sender.
    fn give_up(&self) {
        while let Some(letter) = self.urgent.pop().or_else(|| self.letters.pop()) {
            self.fail(letter.number, Unanswered::NotSent(self.lost()));
        }
        let acknowledgements: Vec<u64> = {
            let open = self.open.lock();
            let waits =
                |(number, awaited): (&u64, &Awaited)| (awaited.awaits == Awaits::Acknowledgement).then_some(*number);
            open.awaited.iter().filter_map(waits).collect()
        };
        for number in acknowledgements {
            self.fail(Some(number), Unanswered::Lost);
        }
    }

    fn take(&self, answer: Message) {
        let number = answer.subject.rsplit('.').next().and_then(|token| token.parse().ok());
        let Some(awaited) = number.and_then(|number: u64| self.open.lock().remove(number)) else { return };
        let _ = awaited.done.send(Ok(answer));
    }
}

async fn publish(client: &Client, inbox: &str, letter: Letter) -> Result<(), BridgeError> {
    let headers = letter.headers.unwrap_or_default();
    let published = match letter.number {
        Some(number) => {
            let reply = Subject::from(format!("{inbox}.{number}"));
            client.publish_with_reply_and_headers(letter.subject, reply, headers, letter.payload).await
        }
        None => client.publish_with_headers(letter.subject, headers, letter.payload).await,
    };
    published.map_err(|error| BridgeError::Broker { doing: "publishing".to_owned(), source: Arc::new(error) })
}

/// Waits for the answer to one message. Dropped, it is no longer waited for.
pub(super) struct Answering {
    outgoing: Arc<Outgoing>,
    number: u64,
    answer: oneshot::Receiver<Result<Message, Unanswered>>,
}

impl Answering {
    /// The answer, or none if it does not come in time: what was sent may have arrived. What has no responder is an answer
    /// with that status.
    ///
    /// # Errors
    /// Why it was not sent.
    pub(super) async fn within(self, deadline: Duration) -> Result<Option<Message>, BridgeError> {
        match tokio::time::timeout(deadline, self).await {
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(Unanswered::NotSent(error))) => Err(error),
            Ok(Err(Unanswered::Lost)) | Err(_) => Ok(None),
        }
    }
}

impl Future for Answering {
    type Output = Result<Message, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The other end is dropped only with the loop.
        self.answer.poll_unpin(context).map(|answer| answer.unwrap_or(Err(Unanswered::Lost)))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let given_up = self.outgoing.open.lock().remove(self.number).is_some();
        if given_up {
            // There may be room in the window now.
            self.outgoing.letters.nudge();
        }
    }
}

/// Whether nobody listens to the subject.
pub(super) fn has_no_responder(message: &Message) -> bool {
    message.status == Some(StatusCode::NO_RESPONDERS)
}
