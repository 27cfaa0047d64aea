//! A command or a query that is sent: how it is described, and the wait for its reply.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::coop::poll_proceed;

use super::{Client, DEADLINE};
use crate::message::{
    Codec, Coded, Command, Domain, Envelope, Fingerprint, Key, Kind, Message, MessageId, Name, Query, ShardId, settle,
    settle_command, shard_of,
};
use crate::router::{AskMeta, Asked, LocalRoutes, SendError, TypedReply};
use crate::telemetry::passes;

/// A command for the owner of its domain. Await it for the reply.
///
/// Nothing happens before it is first polled. Then the command is given to its actor: handled at once if the actor lives on this
/// thread and nothing is before it, else queued. Dropping the future afterwards does not take the command back: it may be handled
/// without its reply being seen.
///
/// ```
/// # use whizbang::doc_fixtures::*;
/// # whizbang::derive::block_on(async {
/// # let node = bank().await;
/// # let client = node.client();
/// use std::time::Duration;
///
/// let deposit = client.send(Deposit { account: "ada".into(), cents: 500 });
/// assert_eq!(deposit.idempotency_key("till-4711").deadline(Duration::from_secs(5)).await?, 500);
/// # Ok::<_, whizbang::Error>(()) }).unwrap();
/// ```
#[must_use = "a command is sent when it is awaited"]
pub struct SendCommand<C: Command>(State<C>);

/// What is sent, before it is sent.
struct Unsent<C> {
    client: Client,
    command: C,
    meta: Option<Box<AskMeta>>,
    deadline: Option<Duration>,
    /// The idempotency key is empty.
    empty_key: bool,
}

enum State<C: Command> {
    Unsent(Unsent<C>),
    Ready(TypedReply<C>),
    Here(oneshot::Receiver<TypedReply<C>>),
    Boxed(BoxFuture<'static, TypedReply<C>>),
    Done,
}

// Nothing in it is pinned in place: the box is pinned by itself.
impl<C: Command> Unpin for SendCommand<C> {}

impl<C: Command> SendCommand<C> {
    pub(super) fn new(client: Client, command: C) -> Self {
        Self(State::Unsent(Unsent { client, command, meta: None, deadline: None, empty_key: false }))
    }

    /// Changes what is sent. A future that was polled is not changed any more.
    fn changed(mut self, change: impl FnOnce(&mut Unsent<C>)) -> Self {
        if let State::Unsent(unsent) = &mut self.0 {
            change(unsent);
        }
        self
    }

    /// How long to wait for the reply. Default: 30 s if another node has to answer; no limit if the actor lives in this
    /// process, where every command comes to its end.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.changed(|unsent| unsent.deadline = Some(deadline))
    }

    /// Gives the command an id of the caller's choosing: sent again to the same key with the same id it is handled once, and
    /// answered with the first reply. The same id and key with another message is [`SendError::Conflict`]: name, schema
    /// version, codec and payload count. An id counts for one key of one domain; with another key it is another command.
    ///
    /// Ids are remembered for `remember`, by default 7 days. An id that holds its time (UUID version 7) is refused as
    /// [`SendError::Expired`] when it is older, handled or not, and as [`SendError::IdInFuture`] when it is more than 5 minutes
    /// ahead of the owner's clock. An id without a time is handled anew after that span.
    pub fn id(self, id: MessageId) -> Self {
        self.changed(|unsent| unsent.meta().id = Some(id))
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
    pub fn idempotency_key(self, key: &str) -> Self {
        self.changed(|unsent| {
            unsent.empty_key = key.is_empty();
            let id = MessageId::from_idempotency_key(C::Domain::NAME, unsent.command.key().as_str(), key);
            unsent.meta().id = Some(id);
        })
    }

    /// Makes the command part of something larger.
    pub fn correlation(self, correlation: MessageId) -> Self {
        self.changed(|unsent| unsent.meta().correlation = Some(correlation))
    }

    /// Continues a W3C trace context.
    pub fn traceparent(self, traceparent: &str) -> Self {
        self.changed(|unsent| unsent.meta().traceparent = Some(traceparent.into()))
    }
}

impl<C> Unsent<C> {
    fn meta(&mut self) -> &mut AskMeta {
        self.meta.get_or_insert_default()
    }
}

impl<C: Command> Unsent<C> {
    /// Sends the command.
    fn send(self) -> State<C> {
        let Self { client, command, mut meta, deadline, empty_key } = self;
        if empty_key {
            return State::Ready(Err(SendError::EmptyIdempotencyKey));
        }
        // A caller that gets no reply is told the id to ask again with.
        let limit = deadline
            .map(|deadline| (deadline, *meta.get_or_insert_default().id.get_or_insert_with(|| client.new_id())));
        if let Some(routes) = LocalRoutes::here(client.inner.node)
            && let Some(door) = routes.door::<C>()
        {
            return match door.ask(command, meta, None) {
                Asked::Told(reply) => State::Ready(reply),
                Asked::Waits(receiver) => State::here(receiver, limit),
                Asked::Elsewhere => State::Ready(Err(SendError::Stopped)),
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
                return State::Ready(Err(SendError::Busy { domain: C::Domain::NAME.to_owned() }));
            }
            return State::here(receiver, limit);
        }
        let deadline = deadline.unwrap_or(DEADLINE);
        let meta = *meta.unwrap_or_default();
        let envelope = match of_command(&client, &command, meta, deadline) {
            Ok(envelope) => envelope,
            Err(error) => return State::Ready(Err(error)),
        };
        let codec = envelope.codec;
        let answer = remote.ask(envelope, deadline);
        State::Boxed(Box::pin(async move { decode::<C>(codec, &answer.await?) }))
    }
}

fn decode<C: Command>(codec: Codec, reply: &[u8]) -> TypedReply<C> {
    match C::Reply::read_reply(codec, reply) {
        Ok(reply) => reply.map_err(SendError::Rejected),
        Err(error) => Err(SendError::Reply(error)),
    }
}

impl<C: Command> State<C> {
    /// The wait for an actor of this process, where every command comes to its end.
    fn here(receiver: oneshot::Receiver<TypedReply<C>>, limit: Option<(Duration, MessageId)>) -> Self {
        let Some((deadline, id)) = limit else { return Self::Here(receiver) };
        Self::Boxed(Box::pin(async move {
            match tokio::time::timeout(deadline, receiver).await {
                Ok(reply) => reply.unwrap_or(Err(SendError::Stopped)),
                Err(_) => Err(SendError::NoReply { domain: C::Domain::NAME.to_owned(), deadline, id }),
            }
        }))
    }
}

impl<C: Command> Future for SendCommand<C> {
    type Output = TypedReply<C>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            return match &mut self.0 {
                State::Here(receiver) => {
                    Pin::new(receiver).poll(cx).map(|reply| reply.unwrap_or(Err(SendError::Stopped)))
                }
                State::Boxed(future) => future.as_mut().poll(cx),
                State::Unsent(_) => {
                    if let State::Unsent(unsent) = std::mem::replace(&mut self.0, State::Done) {
                        self.0 = unsent.send();
                    }
                    continue;
                }
                State::Ready(_) => {
                    // A caller that asks again and again and never has to wait lets other tasks run in between.
                    ready!(poll_proceed(cx)).made_progress();
                    match std::mem::replace(&mut self.0, State::Done) {
                        State::Ready(reply) => Poll::Ready(reply),
                        _ => Poll::Ready(Err(SendError::Stopped)),
                    }
                }
                State::Done => Poll::Ready(Err(SendError::Stopped)),
            };
        }
    }
}

impl<C: Command> std::fmt::Debug for SendCommand<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendCommand").field("command", &C::NAME).finish_non_exhaustive()
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
    let envelope = envelope::<C>(client, payload, Kind::Command, Some(key), meta, deadline)?;
    Ok(Envelope { shape: Fingerprint::of_command::<C>(), ..envelope })
}

fn of_query<Q: Query>(client: &Client, query: &Q, deadline: Duration) -> Result<Envelope, SendError> {
    let mut payload = Vec::new();
    settle(query, <Q::Domain as Domain>::CODEC, &mut payload).map_err(SendError::Encode)?;
    let envelope = envelope::<Q>(client, payload, Kind::Query, None, AskMeta::default(), deadline)?;
    Ok(Envelope { shape: Fingerprint::of_query::<Q>(), ..envelope })
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
///
/// Nothing happens before it is first polled. Dropping it afterwards does not take the command back.
#[must_use = "a command is handed over when it is awaited"]
pub struct PostCommand<C: Command>(Post<C>);

enum Post<C: Command> {
    Unsent(SendCommand<C>),
    Sent(BoxFuture<'static, Result<(), SendError>>),
}

// Nothing in it is pinned in place: the box is pinned by itself.
impl<C: Command> Unpin for PostCommand<C> {}

impl<C: Command> PostCommand<C> {
    pub(super) fn new(client: Client, command: C) -> Self {
        Self(Post::Unsent(SendCommand::new(client, command)))
    }

    fn changed(self, change: impl FnOnce(SendCommand<C>) -> SendCommand<C>) -> Self {
        match self.0 {
            Post::Unsent(unsent) => Self(Post::Unsent(change(unsent))),
            sent @ Post::Sent(_) => Self(sent),
        }
    }

    /// As [`SendCommand::id`].
    pub fn id(self, id: MessageId) -> Self {
        self.changed(|unsent| unsent.id(id))
    }

    /// As [`SendCommand::idempotency_key`].
    pub fn idempotency_key(self, key: &str) -> Self {
        self.changed(|unsent| unsent.idempotency_key(key))
    }

    /// As [`SendCommand::correlation`].
    pub fn correlation(self, correlation: MessageId) -> Self {
        self.changed(|unsent| unsent.correlation(correlation))
    }
}

impl<C: Command> Unsent<C> {
    /// Hands the command over.
    fn post(self) -> BoxFuture<'static, Result<(), SendError>> {
        let Self { client, command, meta, empty_key, .. } = self;
        if empty_key {
            return Box::pin(std::future::ready(Err(SendError::EmptyIdempotencyKey)));
        }
        match of_command(&client, &command, *meta.unwrap_or_default(), DEADLINE) {
            Ok(mut envelope) => {
                // It may be handled at any time: no caller waits.
                envelope.deadline = None;
                client.inner.remote.post(envelope)
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

impl<C: Command> Future for PostCommand<C> {
    type Output = Result<(), SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Post::Unsent(SendCommand(unsent)) = &mut self.0 {
            let unsent = std::mem::replace(unsent, State::Done);
            self.0 = Post::Sent(match unsent {
                State::Unsent(unsent) => unsent.post(),
                _ => Box::pin(std::future::ready(Err(SendError::Stopped))),
            });
        }
        match &mut self.0 {
            Post::Sent(future) => future.as_mut().poll(cx),
            Post::Unsent(_) => Poll::Ready(Err(SendError::Stopped)),
        }
    }
}

impl<C: Command> std::fmt::Debug for PostCommand<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostCommand").field("command", &C::NAME).finish_non_exhaustive()
    }
}

/// A query for a view. Await it for the answer.
///
/// Nothing happens before it is first polled. A query has no effect, so dropping it is harmless.
#[must_use = "a query is asked when it is awaited"]
pub struct SendQuery<Q: Query>(Asking<Q>);

enum Asking<Q: Query> {
    Unsent { client: Client, query: Q, deadline: Duration },
    Sent(BoxFuture<'static, Result<Q::Reply, SendError>>),
    Done,
}

// Nothing in it is pinned in place: the box is pinned by itself.
impl<Q: Query> Unpin for SendQuery<Q> {}

impl<Q: Query> SendQuery<Q> {
    pub(super) fn new(client: Client, query: Q) -> Self {
        Self(Asking::Unsent { client, query, deadline: DEADLINE })
    }

    /// How long to wait for the answer. Default 30 s.
    pub fn deadline(mut self, limit: Duration) -> Self {
        if let Asking::Unsent { deadline, .. } = &mut self.0 {
            *deadline = limit;
        }
        self
    }
}

impl<Q: Query> Future for SendQuery<Q> {
    type Output = Result<Q::Reply, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Asking::Unsent { .. } = &self.0
            && let Asking::Unsent { client, query, deadline } = std::mem::replace(&mut self.0, Asking::Done)
        {
            self.0 = Asking::Sent(match of_query(&client, &query, deadline) {
                Ok(envelope) => {
                    let codec = envelope.codec;
                    let answer = client.inner.remote.query(envelope, deadline);
                    Box::pin(async move { Q::Reply::read(codec, &answer.await?).map_err(SendError::Reply) })
                }
                Err(error) => Box::pin(std::future::ready(Err(error))),
            });
        }
        match &mut self.0 {
            Asking::Sent(future) => future.as_mut().poll(cx),
            Asking::Unsent { .. } | Asking::Done => Poll::Ready(Err(SendError::Stopped)),
        }
    }
}

impl<Q: Query> std::fmt::Debug for SendQuery<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendQuery").field("query", &Q::NAME).finish_non_exhaustive()
    }
}
