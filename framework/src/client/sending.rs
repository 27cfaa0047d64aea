//! A command or a query on its way, and the wait for its reply.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::coop::poll_proceed;

use super::{Client, DEADLINE};
use crate::message::{
    Codec, Coded, Command, Domain, Envelope, Key, Kind, Message, MessageId, Name, Query, ShardId, settle,
    settle_command, shard_of,
};
use crate::router::{AskMeta, Asked, LocalRoutes, SendError, TypedReply};
use crate::telemetry::passes;

/// A command on its way to the owner of its domain. Await it for the reply.
#[must_use = "a command is sent when it is awaited"]
pub struct Sending<C> {
    client: Client,
    command: C,
    meta: Option<Box<AskMeta>>,
    deadline: Option<Duration>,
    /// The idempotency key is empty.
    empty_key: bool,
}

impl<C: Command> Sending<C> {
    pub(super) fn new(client: Client, command: C) -> Self {
        Self { client, command, meta: None, deadline: None, empty_key: false }
    }

    /// How long to wait for the reply. Default: 30 s if another node has to answer; no limit if the actor lives in this
    /// process, where every command comes to its end.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Gives the command an id of the caller's choosing: sent again to the same key with the same id it is handled once, and
    /// answered with the first reply. The same id and key with another message is [`SendError::Conflict`]: name, schema
    /// version, codec and payload count. An id counts for one key of one domain; with another key it is another command.
    ///
    /// Ids are remembered for `remember`, by default 7 days. An id that holds its time (UUID version 7) is refused as
    /// [`SendError::Expired`] when it is older, handled or not, and as [`SendError::IdInFuture`] when it is more than 5 minutes
    /// ahead of the owner's clock. An id without a time is handled anew after that span.
    pub fn id(mut self, id: MessageId) -> Self {
        self.meta().id = Some(id);
        self
    }

    /// Gives the command an idempotency key of the caller's choosing. It counts for one target: sent again to the same
    /// [key](Command::key) of the same domain it is handled once, and answered with the first reply; with another message it
    /// is [`SendError::Conflict`]. With another target it is another command and is handled, so a caller that corrects the
    /// target of a command must not count on the idempotency key.
    ///
    /// Remembered for `remember`, by default 7 days; then a command with it is handled anew. An empty one is refused with
    /// [`SendError::EmptyIdempotencyKey`].
    ///
    /// **All callers of a domain share its keys.** The first command that comes with a key and a target has it: a caller that
    /// guesses `order-1043` can use it before you, and you get [`SendError::Conflict`]. Where callers do not trust each other,
    /// begin each key with a random text of at least 16 characters that you keep to yourself, the same in every process that
    /// may send the command again.
    pub fn idempotency_key(mut self, key: &str) -> Self {
        self.empty_key = key.is_empty();
        let id = MessageId::from_idempotency_key(C::Domain::NAME, self.command.key().as_str(), key);
        self.id(id)
    }

    /// Makes the command part of something larger.
    pub fn correlation(mut self, correlation: MessageId) -> Self {
        self.meta().correlation = Some(correlation);
        self
    }

    /// Continues a W3C trace context.
    pub fn traceparent(mut self, traceparent: &str) -> Self {
        self.meta().traceparent = Some(traceparent.into());
        self
    }

    fn meta(&mut self) -> &mut AskMeta {
        self.meta.get_or_insert_default()
    }
}

impl<C: Command> IntoFuture for Sending<C> {
    type Output = TypedReply<C>;
    type IntoFuture = Replying<C>;

    fn into_future(self) -> Replying<C> {
        let Self { client, command, mut meta, deadline, empty_key } = self;
        if empty_key {
            return Replying(State::Ready(Some(Err(SendError::EmptyIdempotencyKey))));
        }
        // Whoever waits in vain is told the id to ask again with.
        let limit = deadline
            .map(|deadline| (deadline, *meta.get_or_insert_default().id.get_or_insert_with(|| client.new_id())));
        if let Some(routes) = LocalRoutes::here(client.inner.node)
            && let Some(door) = routes.door::<C>()
        {
            return match door.ask(command, meta, None) {
                Asked::Told(reply) => Replying(State::Ready(Some(reply))),
                Asked::Waits(receiver) => Replying::here(receiver, limit),
                Asked::Elsewhere => Replying(State::Ready(Some(Err(SendError::Stopped)))),
            };
        }
        let remote = &client.inner.remote;
        if let Some(home) = remote.home(C::Domain::NAME, C::NAME, command.key().as_str()) {
            let (reply, receiver) = oneshot::channel();
            let ask = move |routes: &LocalRoutes| {
                // Without a door the node has ended, and `reply` is dropped.
                if let Some(door) = routes.door::<C>() {
                    door.ask(command, meta, Some(reply));
                }
            };
            if !remote.at_home(home, Box::new(ask)) {
                return Replying(State::Ready(Some(Err(SendError::Busy { domain: C::Domain::NAME.to_owned() }))));
            }
            return Replying::here(receiver, limit);
        }
        let deadline = deadline.unwrap_or(DEADLINE);
        let meta = *meta.unwrap_or_default();
        let envelope = match of_command(&client, &command, meta, deadline) {
            Ok(envelope) => envelope,
            Err(error) => return Replying(State::Ready(Some(Err(error)))),
        };
        let codec = envelope.codec;
        let answer = remote.ask(envelope, deadline);
        Replying(State::Boxed(Box::pin(async move { decode::<C>(codec, &answer.await?) })))
    }
}

fn decode<C: Command>(codec: Codec, reply: &[u8]) -> TypedReply<C> {
    match C::Reply::read_reply(codec, reply) {
        Ok(reply) => reply.map_err(SendError::Rejected),
        Err(error) => Err(SendError::Reply(error)),
    }
}

/// The wait for the reply to a command.
#[must_use = "a reply comes to who awaits it"]
pub struct Replying<C: Command>(State<TypedReply<C>>);

enum State<T> {
    Ready(Option<T>),
    Here(oneshot::Receiver<T>),
    Boxed(BoxFuture<'static, T>),
}

// Nothing in it is pinned in place: the box is pinned by itself.
impl<C: Command> Unpin for Replying<C> {}

impl<C: Command> Replying<C> {
    /// The wait for an actor of this process, where every command comes to its end.
    fn here(receiver: oneshot::Receiver<TypedReply<C>>, limit: Option<(Duration, MessageId)>) -> Self {
        let Some((deadline, id)) = limit else { return Self(State::Here(receiver)) };
        Self(State::Boxed(Box::pin(async move {
            match tokio::time::timeout(deadline, receiver).await {
                Ok(reply) => reply.unwrap_or(Err(SendError::Stopped)),
                Err(_) => Err(SendError::NoReply { domain: C::Domain::NAME.to_owned(), deadline, id }),
            }
        })))
    }
}

impl<C: Command> Future for Replying<C> {
    type Output = TypedReply<C>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Here(receiver) => Pin::new(receiver).poll(cx).map(|reply| reply.unwrap_or(Err(SendError::Stopped))),
            State::Boxed(future) => future.as_mut().poll(cx),
            State::Ready(reply) => {
                // Whoever asks over and over and never has to wait lets others run in between all the same.
                ready!(poll_proceed(cx)).made_progress();
                Poll::Ready(reply.take().unwrap_or(Err(SendError::Stopped)))
            }
        }
    }
}

fn of_command<C: Command>(
    client: &Client,
    command: &C,
    meta: AskMeta,
    deadline: Duration,
) -> Result<Envelope, SendError> {
    let key = command.key();
    if !key.is_valid() {
        return Err(SendError::Key { bytes: key.as_str().len() });
    }
    let mut payload = Vec::new();
    settle_command(command, <C::Domain as Domain>::CODEC, &mut payload).map_err(SendError::Encode)?;
    envelope::<C>(client, payload, Kind::Command, Some(key), meta, deadline)
}

fn of_query<Q: Query>(client: &Client, query: &Q, deadline: Duration) -> Result<Envelope, SendError> {
    let mut payload = Vec::new();
    settle(query, <Q::Domain as Domain>::CODEC, &mut payload).map_err(SendError::Encode)?;
    envelope::<Q>(client, payload, Kind::Query, None, AskMeta::default(), deadline)
}

fn envelope<M: Message>(
    client: &Client,
    payload: Vec<u8>,
    kind: Kind,
    key: Option<Key<'_>>,
    meta: AskMeta,
    deadline: Duration,
) -> Result<Envelope, SendError> {
    let no_name =
        |name: &str| SendError::Encode(crate::message::CodecError::Encode { reason: format!("`{name}` is no name") });
    let domain = Name::from_static(M::Domain::NAME).map_err(|_| no_name(M::Domain::NAME))?;
    let name = Name::from_static(M::NAME).map_err(|_| no_name(M::NAME))?;
    let now = client.inner.clock.now();
    let id = meta.id.unwrap_or_else(|| client.new_id());
    passes!("client", M::NAME, id, meta.correlation.unwrap_or(id));
    Ok(Envelope {
        version: M::VERSION,
        to: key.as_ref().map(|key| ShardId::new(domain.clone(), shard_of(key.as_str(), M::Domain::SHARDS))),
        key: key.map(Key::into_string).unwrap_or_default(),
        correlation: meta.correlation.unwrap_or(id),
        deadline: Some(now.after(deadline)),
        traceparent: meta.traceparent.map(String::from),
        codec: <M::Domain as Domain>::CODEC,
        payload: Bytes::from(payload),
        ..Envelope::new(id, kind, domain, name, now)
    })
}

/// A command that is handed over. Await it to know that it is accepted.
#[must_use = "a command is handed over when it is awaited"]
pub struct Posting<C>(Sending<C>);

impl<C: Command> Posting<C> {
    pub(super) fn new(client: Client, command: C) -> Self {
        Self(Sending::new(client, command))
    }

    /// As [`Sending::id`].
    pub fn id(self, id: MessageId) -> Self {
        Self(self.0.id(id))
    }

    /// As [`Sending::idempotency_key`].
    pub fn idempotency_key(self, key: &str) -> Self {
        Self(self.0.idempotency_key(key))
    }

    /// As [`Sending::correlation`].
    pub fn correlation(self, correlation: MessageId) -> Self {
        Self(self.0.correlation(correlation))
    }
}

impl<C: Command> IntoFuture for Posting<C> {
    type Output = Result<(), SendError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Sending { client, command, meta, empty_key, .. } = self.0;
        if empty_key {
            return Box::pin(std::future::ready(Err(SendError::EmptyIdempotencyKey)));
        }
        match of_command(&client, &command, *meta.unwrap_or_default(), DEADLINE) {
            Ok(mut envelope) => {
                // It may be handled at any time: nobody waits.
                envelope.deadline = None;
                client.inner.remote.post(envelope)
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

/// A query on its way to a view. Await it for the answer.
#[must_use = "a query is asked when it is awaited"]
pub struct Querying<Q> {
    client: Client,
    query: Q,
    deadline: Duration,
}

impl<Q: Query> Querying<Q> {
    pub(super) fn new(client: Client, query: Q) -> Self {
        Self { client, query, deadline: DEADLINE }
    }

    /// How long to wait for the answer. Default 30 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

impl<Q: Query> IntoFuture for Querying<Q> {
    type Output = Result<Q::Reply, SendError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        match of_query(&self.client, &self.query, self.deadline) {
            Ok(envelope) => {
                let codec = envelope.codec;
                let answer = self.client.inner.remote.query(envelope, self.deadline);
                Box::pin(async move { Q::Reply::read(codec, &answer.await?).map_err(SendError::Reply) })
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}
