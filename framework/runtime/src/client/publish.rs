//! Publishing of an event without an aggregate: configured before the first poll and awaited until it is committed.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, ready};

use super::delay::{Due, schedule};
use super::encode::envelope;
use super::retry::{Attempts, Effect, RetryMode, send_until_answered};
use super::{Client, DEADLINE};
use crate::router::{CommandMeta, Remote, SendError};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{CodecError, Coded, Envelope, Fingerprint, Key, Kind, MessageFacts, MessageId};

/// An event for the log of its domain. Await it to know that it is committed.
///
/// Nothing happens before the first poll. Dropping it afterwards does not cancel the publication. It is retried as
/// [`Client`] describes. See [`Client::publish`] for an example.
///
/// ```
/// use std::time::Duration;
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Plant;
///
/// #[derive(Event, Serialize, Deserialize)]
/// #[event(domain = Plant)]
/// struct Measured { celsius: i32 }
///
/// # whizbang::derive::block_on(async {
/// let node = Node::builder("plant", MemoryStore::new()).publishes::<Measured>().start().await?;
/// let measured = node.client().publish("boiler", Measured { celsius: 81 });
/// measured.idempotency_key("line 4711").header("sensor", "b7").deadline(Duration::from_secs(5)).await?;
/// node.stop().await
/// # }).unwrap();
/// ```
#[must_use = "futures do nothing unless you `.await` them"]
pub struct PublishEvent(State);

enum State {
    Unsent(Box<Unsent>),
    Sent(BoxFuture<'static, Result<(), SendError>>),
    Done,
}

/// An event of any type, encoded: this code is compiled once for all of them.
struct Unsent {
    client: Client,
    key: String,
    event: MessageFacts,
    payload: Vec<u8>,
    shape: fn() -> Option<Fingerprint>,
    meta: CommandMeta,
    deadline: Duration,
    mode: RetryMode,
    due: Option<Due>,
    /// An invalid option, or an event that cannot be encoded: nothing is sent.
    refused: Option<Box<SendError>>,
}

impl PublishEvent {
    pub(super) fn new(
        client: Client,
        key: String,
        event: MessageFacts,
        shape: fn() -> Option<Fingerprint>,
        encoded: Result<Vec<u8>, CodecError>,
    ) -> Self {
        let (payload, refused) = match encoded {
            Ok(payload) => (payload, None),
            Err(error) => (Vec::new(), Some(Box::new(SendError::Encode(error)))),
        };
        let (meta, deadline, mode) = (CommandMeta::default(), DEADLINE, RetryMode::UntilDeadline);
        Self(State::Unsent(Box::new(Unsent {
            client,
            key,
            event,
            payload,
            shape,
            meta,
            deadline,
            mode,
            due: None,
            refused,
        })))
    }

    /// Changes the publication, unless it has been polled.
    fn changed(mut self, change: impl FnOnce(&mut Unsent)) -> Self {
        if let State::Unsent(unsent) = &mut self.0 {
            change(unsent);
        }
        self
    }

    /// Sets how long to wait for the commit, all attempts together. Default 30 s.
    ///
    /// When it passes, the event may have been recorded or not. Publish it again with the same [id](Self::id) to be
    /// sure: it is recorded once.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.changed(|unsent| unsent.deadline = deadline)
    }

    /// Publishes the event later, once `after` has passed since the first poll, as
    /// [`PostCommand::after`](super::PostCommand::after).
    pub fn after(self, after: Duration) -> Self {
        self.changed(|unsent| unsent.due = Some(Due::After(after)))
    }

    /// Publishes the event at a time of the wall clock, as [`PostCommand::at`](super::PostCommand::at).
    pub fn at(self, due: Timestamp) -> Self {
        self.changed(|unsent| unsent.due = Some(Due::At(due)))
    }

    /// Limits the time until the event is recorded, as [`SendCommand::expires_in`](super::SendCommand::expires_in). The time of
    /// an event that is published [later](Self::after) begins when it is due. A recorded event does not expire: it is a fact.
    pub fn expires_in(self, life: Duration) -> Self {
        self.changed(|unsent| unsent.meta.expires_in = Some(life))
    }

    /// Same as [`SendCommand::no_retry`](super::SendCommand::no_retry).
    pub fn no_retry(self) -> Self {
        self.changed(|unsent| unsent.mode = RetryMode::Never)
    }

    /// Sets the id of the publication, as [`SendCommand::id`](super::SendCommand::id).
    pub fn id(self, id: MessageId) -> Self {
        self.changed(|unsent| unsent.meta.id = Some(id))
    }

    /// Sets an idempotency key, which counts for one key of one domain: the event is recorded once however often it is
    /// published with it. As [`SendCommand::idempotency_key`](super::SendCommand::idempotency_key).
    pub fn idempotency_key(self, key: &str) -> Self {
        self.changed(|unsent| {
            if key.is_empty() {
                unsent.refused.get_or_insert_with(|| Box::new(SendError::EmptyIdempotencyKey));
            }
            unsent.meta.id = Some(MessageId::from_idempotency_key(unsent.event.domain, &unsent.key, key));
        })
    }

    /// Sets a header, which the event keeps. An invalid header is refused with [`SendError::Header`].
    pub fn header(self, name: &str, value: &str) -> Self {
        self.changed(|unsent| unsent.meta.set_header(name, value, &mut unsent.refused))
    }

    /// Sets the correlation id, which makes the event part of a larger unit of work.
    pub fn correlation(self, correlation: MessageId) -> Self {
        self.changed(|unsent| unsent.meta.correlation = Some(correlation))
    }

    /// Continues a W3C trace context, as [`SendCommand::traceparent`](super::SendCommand::traceparent).
    pub fn traceparent(self, traceparent: &str) -> Self {
        self.changed(|unsent| unsent.meta.traceparent = Some(traceparent.into()))
    }
}

impl Unsent {
    fn publish(self) -> BoxFuture<'static, Result<(), SendError>> {
        let client = self.client.clone();
        let attempts = Attempts::new(self.mode, Effect::Possible, self.deadline);
        let (due, shards) = (self.due, self.event.shards);
        match (self.into_envelope(), due) {
            (Ok(envelope), Some(due)) => schedule(client, &envelope, shards, due, attempts),
            (Ok(envelope), None) => {
                let codec = envelope.codec;
                let send = |remote: &dyn Remote, envelope, wait| remote.send(envelope, wait);
                let answer = send_until_answered(client, envelope, attempts, send);
                Box::pin(async move {
                    match <() as Coded>::read_reply(codec, &answer.await?) {
                        Ok(reply) => reply.map_err(SendError::Rejected),
                        Err(error) => Err(SendError::Reply(error)),
                    }
                })
            }
            (Err(error), _) => Box::pin(ready(Err(error))),
        }
    }

    fn into_envelope(self) -> Result<Envelope, SendError> {
        let Self { client, key, event, payload, shape, meta, deadline, refused, .. } = self;
        if let Some(refused) = refused {
            return Err(*refused);
        }
        let key = Some(Key::from(key.as_str()));
        envelope(&client, event, shape, payload, Kind::Command, key, Some(Box::new(meta)), deadline)
    }
}

impl Future for PublishEvent {
    type Output = Result<(), SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Unsent(_) = &self.0
            && let State::Unsent(unsent) = std::mem::replace(&mut self.0, State::Done)
        {
            self.0 = State::Sent(unsent.publish());
        }
        match &mut self.0 {
            State::Sent(future) => future.as_mut().poll(cx),
            State::Unsent(_) | State::Done => Poll::Ready(Err(SendError::Stopped)),
        }
    }
}

impl std::fmt::Debug for PublishEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let event = match &self.0 {
            State::Unsent(unsent) => unsent.event.name,
            State::Sent(_) | State::Done => "sent",
        };
        f.debug_struct("PublishEvent").field("event", &event).finish_non_exhaustive()
    }
}
