//! Publishing of an event without an aggregate: configured before the first poll and awaited until it is committed.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, ready};

use super::request::envelope;
use super::{Client, DEADLINE};
use crate::router::{CommandMeta, SendError};
use whizbang_core::message::{
    Coded, Domain, Envelope, Event, Fingerprint, Key, Kind, MessageFacts, MessageId, encode_verified, set_header,
};

/// An event for the log of its domain. Await it to know that it is committed.
///
/// Nothing happens before the first poll. Dropping it afterwards does not cancel the publication. See
/// [`Client::publish`] for an example.
#[must_use = "futures do nothing unless you `.await` them"]
pub struct PublishEvent<E: Event>(State<E>);

enum State<E: Event> {
    Unsent(Unsent<E>),
    Sent(BoxFuture<'static, Result<(), SendError>>),
    Done,
}

struct Unsent<E> {
    client: Client,
    key: String,
    event: E,
    meta: CommandMeta,
    deadline: Duration,
    /// An invalid option: nothing is sent.
    refused: Option<Box<SendError>>,
}

// No field is structurally pinned: the box is pinned by itself.
impl<E: Event> Unpin for PublishEvent<E> {}

impl<E: Event> PublishEvent<E> {
    pub(super) fn new(client: Client, key: String, event: E) -> Self {
        let meta = CommandMeta::default();
        Self(State::Unsent(Unsent { client, key, event, meta, deadline: DEADLINE, refused: None }))
    }

    /// Changes the event, unless it has been polled.
    fn changed(mut self, change: impl FnOnce(&mut Unsent<E>)) -> Self {
        if let State::Unsent(unsent) = &mut self.0 {
            change(unsent);
        }
        self
    }

    /// Sets how long to wait for the commit. Default 30 s.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.changed(|unsent| unsent.deadline = deadline)
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
            unsent.meta.id = Some(MessageId::from_idempotency_key(E::Domain::NAME, &unsent.key, key));
        })
    }

    /// Sets a header, which the event keeps. An invalid header is refused with [`SendError::Header`].
    pub fn header(self, name: &str, value: &str) -> Self {
        self.changed(|unsent| {
            if let Err(error) = set_header(&mut unsent.meta.headers, name, value) {
                unsent.refused.get_or_insert_with(|| Box::new(SendError::Header(error)));
            }
        })
    }

    /// Sets the correlation id, which makes the event part of a larger unit of work.
    pub fn correlation(self, correlation: MessageId) -> Self {
        self.changed(|unsent| unsent.meta.correlation = Some(correlation))
    }
}

impl<E: Event> Unsent<E> {
    fn publish(self) -> BoxFuture<'static, Result<(), SendError>> {
        let (remote, deadline) = (self.client.inner.remote.clone(), self.deadline);
        match self.into_envelope() {
            Ok(envelope) => {
                let codec = envelope.codec;
                let answer = remote.send(envelope, deadline);
                Box::pin(async move {
                    match <() as Coded>::read_reply(codec, &answer.await?) {
                        Ok(reply) => reply.map_err(SendError::Rejected),
                        Err(error) => Err(SendError::Reply(error)),
                    }
                })
            }
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    fn into_envelope(self) -> Result<Envelope, SendError> {
        let Self { client, key, event, meta, deadline, refused } = self;
        if let Some(refused) = refused {
            return Err(*refused);
        }
        let (facts, mut payload) = (MessageFacts::of::<E>(), Vec::new());
        drop(encode_verified(&event, facts.codec, &mut payload).map_err(SendError::Encode)?);
        let key = Some(Key::from(key.as_str()));
        let shape = Fingerprint::of_event::<E>;
        envelope(&client, facts, shape, payload, Kind::Command, key, Some(Box::new(meta)), deadline)
    }
}

impl<E: Event> Future for PublishEvent<E> {
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

impl<E: Event> std::fmt::Debug for PublishEvent<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublishEvent").field("event", &E::NAME).finish_non_exhaustive()
    }
}
