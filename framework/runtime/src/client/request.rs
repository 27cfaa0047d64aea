//! Request builders: a command, a posted command or a query, configured before the first poll and awaited for its
//! result.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::coop::poll_proceed;

use super::{Client, DEADLINE};
use crate::router::{CommandMeta, LocalRoutes, SendError, Submission, TypedReply};
use whizbang_core::message::{
    Codec, Coded, Command, Domain, Envelope, Fingerprint, Key, Kind, MessageFacts, MessageId, Name, Query, ShardId,
    encode_command_verified, encode_verified, shard_of,
};
use whizbang_core::telemetry::passes;

/// A command for the owner of its domain. Await it for the reply.
///
/// Nothing happens before the first poll. The first poll submits the command: it is handled inline if its actor lives
/// on this thread and nothing is queued before it, otherwise it is queued. Dropping the future afterwards does not
/// cancel the command: it may be handled without its reply being seen.
///
/// ```
/// # use whizbang::doc_fixtures::*;
/// # whizbang::derive::block_on(async {
/// # let node = bank().await;
/// # let client = node.client();
/// use std::time::Duration;
///
/// let deposit = client.send(Deposit { account: "ada".into(), cents: 500 });
/// assert_eq!(deposit.idempotency_key("deposit-4711").deadline(Duration::from_secs(5)).await?, 500);
/// # Ok::<_, whizbang::Error>(()) }).unwrap();
/// ```
#[must_use = "futures do nothing unless you `.await` them"]
pub struct SendCommand<C: Command>(SendState<C>);

/// A command before it is sent.
struct Unsent<C> {
    client: Client,
    command: C,
    meta: Option<Box<CommandMeta>>,
    deadline: Option<Duration>,
    /// An invalid option: nothing is sent.
    refused: Option<Box<SendError>>,
}

enum SendState<C: Command> {
    Unsent(Unsent<C>),
    Sent(PendingReply<C::Reply>),
    Done,
}

/// The wait for a reply. Generic over the reply, not the command, so that it is compiled once for all commands with
/// that reply.
enum PendingReply<R> {
    Ready(Option<Result<R, SendError>>),
    Here(oneshot::Receiver<Result<R, SendError>>),
    Boxed(BoxFuture<'static, Result<R, SendError>>),
}

// No field is structurally pinned: the box is pinned by itself.
impl<C: Command> Unpin for SendCommand<C> {}

impl<C: Command> SendCommand<C> {
    pub(super) fn new(client: Client, command: C) -> Self {
        Self(SendState::Unsent(Unsent { client, command, meta: None, deadline: None, refused: None }))
    }

    /// Changes the command, unless it has been polled.
    fn changed(mut self, change: impl FnOnce(&mut Unsent<C>)) -> Self {
        if let SendState::Unsent(unsent) = &mut self.0 {
            change(unsent);
        }
        self
    }

    /// Sets how long to wait for the reply. Default: 30 s if another node must answer; no limit if the actor lives in
    /// this process, where every command is completed.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.changed(|unsent| unsent.deadline = Some(deadline))
    }

    /// Sets the id of the command. Sent again to the same key with the same id, it is handled once and answered with
    /// the first reply. The same id and key with another message is [`SendError::Conflict`]; name, schema version,
    /// codec and payload are compared. An id counts for one key of one domain; with another key it is another
    /// command.
    ///
    /// Ids are remembered for `remember`, by default 7 days. An id that contains its time (UUID version 7) is refused
    /// as [`SendError::Expired`] when it is older, handled or not, and as [`SendError::IdInFuture`] when it is more
    /// than 5 minutes ahead of the owner's clock. An id without a time is handled anew after that period.
    pub fn id(self, id: MessageId) -> Self {
        self.changed(|unsent| unsent.meta().id = Some(id))
    }

    /// Sets an idempotency key, which counts for one target. Sent again to the same [key](Command::key) of the same
    /// domain, the command is handled once and answered with the first reply; with another message it is
    /// [`SendError::Conflict`]. With another target it is another command and is handled, so a caller that corrects
    /// the target of a command must not rely on the idempotency key.
    ///
    /// Remembered for `remember`, by default 7 days; afterwards a command with it is handled anew. An empty key is
    /// refused with [`SendError::EmptyIdempotencyKey`].
    ///
    /// **All callers of a domain share its keys.** The first command with a key and a target owns it: a caller that
    /// guesses `order-1043` can use it before you, and you get [`SendError::Conflict`]. Where callers do not trust
    /// each other, start each key with a secret random text of at least 16 characters, the same in every process that
    /// may repeat the command.
    pub fn idempotency_key(self, key: &str) -> Self {
        self.changed(|unsent| {
            if key.is_empty() {
                unsent.refused.get_or_insert_with(|| Box::new(SendError::EmptyIdempotencyKey));
            }
            let id = MessageId::from_idempotency_key(C::Domain::NAME, unsent.command.key().as_str(), key);
            unsent.meta().id = Some(id);
        })
    }

    /// Sets the correlation id, which makes the command part of a larger unit of work.
    pub fn correlation(self, correlation: MessageId) -> Self {
        self.changed(|unsent| unsent.meta().correlation = Some(correlation))
    }

    /// Sets a header, which every handler of the command can read: a tenant, a user. It is not part of the message: a command
    /// that is repeated with other headers is a duplicate. An invalid header is refused with [`SendError::Header`].
    pub fn header(self, name: &str, value: &str) -> Self {
        self.changed(|unsent| unsent.meta.get_or_insert_default().set_header(name, value, &mut unsent.refused))
    }

    /// Continues a W3C trace context.
    pub fn traceparent(self, traceparent: &str) -> Self {
        self.changed(|unsent| unsent.meta().traceparent = Some(traceparent.into()))
    }
}

impl<C> Unsent<C> {
    fn meta(&mut self) -> &mut CommandMeta {
        self.meta.get_or_insert_default()
    }
}

impl<C: Command> Unsent<C> {
    /// Sends the command.
    fn send(self) -> PendingReply<C::Reply> {
        let Self { client, command, mut meta, deadline, refused } = self;
        if let Some(refused) = refused {
            return PendingReply::Ready(Some(Err(*refused)));
        }
        let limit = limit(&client, deadline, &mut meta);
        if let Some(routes) = LocalRoutes::here(client.inner.node)
            && let Some(endpoint) = routes.endpoint::<C>()
            && routes.is_open(C::Domain::NAME, C::Domain::SHARDS, || command.key())
        {
            return match endpoint.submit(command, meta, None) {
                Submission::Done(reply) => PendingReply::Ready(Some(reply)),
                Submission::Pending(receiver) => PendingReply::here(receiver, limit, C::Domain::NAME),
                Submission::Forwarded => PendingReply::Ready(Some(Err(SendError::Stopped))),
            };
        }
        let remote = &client.inner.remote;
        if let Some(thread) = remote.thread_of(C::Domain::NAME, C::NAME, command.key().as_str()) {
            let (reply, receiver) = oneshot::channel();
            let ask = move |routes: &LocalRoutes| {
                // Without an endpoint the node has ended, and `reply` is dropped.
                if let Some(endpoint) = routes.endpoint::<C>() {
                    endpoint.submit(command, meta, Some(reply));
                }
            };
            if !remote.run_on(thread, Box::new(ask)) {
                return PendingReply::Ready(Some(Err(busy(C::Domain::NAME))));
            }
            return PendingReply::here(receiver, limit, C::Domain::NAME);
        }
        let deadline = deadline.unwrap_or(DEADLINE);
        match of_command(&client, &command, meta, deadline) {
            Ok(envelope) => PendingReply::elsewhere(envelope.codec, remote.send(envelope, deadline)),
            Err(error) => PendingReply::Ready(Some(Err(error))),
        }
    }
}

/// Returns the time limit and the command's id. A caller whose deadline passes gets the id back, so that it can retry.
fn limit(
    client: &Client,
    deadline: Option<Duration>,
    meta: &mut Option<Box<CommandMeta>>,
) -> Option<(Duration, MessageId)> {
    let deadline = deadline?;
    Some((deadline, *meta.get_or_insert_default().id.get_or_insert_with(|| client.new_id())))
}

fn busy(domain: &str) -> SendError {
    SendError::Busy { domain: domain.to_owned() }
}

impl<R: Coded + Send + 'static> PendingReply<R> {
    /// Waits for an actor of this process, where every command is completed.
    fn here(
        receiver: oneshot::Receiver<Result<R, SendError>>,
        limit: Option<(Duration, MessageId)>,
        domain: &'static str,
    ) -> Self {
        let Some((deadline, id)) = limit else { return Self::Here(receiver) };
        Self::Boxed(Box::pin(async move {
            match tokio::time::timeout(deadline, receiver).await {
                Ok(reply) => reply.unwrap_or(Err(SendError::Stopped)),
                Err(_) => Err(SendError::NoReply { domain: domain.to_owned(), deadline, id }),
            }
        }))
    }

    /// Waits for another node, whose reply arrives encoded.
    fn elsewhere(codec: Codec, answer: BoxFuture<'static, Result<Bytes, SendError>>) -> Self {
        Self::Boxed(Box::pin(async move {
            match R::read_reply(codec, &answer.await?) {
                Ok(reply) => reply.map_err(SendError::Rejected),
                Err(error) => Err(SendError::Reply(error)),
            }
        }))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<R, SendError>> {
        match self {
            Self::Here(receiver) => Pin::new(receiver).poll(cx).map(|reply| reply.unwrap_or(Err(SendError::Stopped))),
            Self::Boxed(future) => future.as_mut().poll(cx),
            Self::Ready(reply) => {
                // Consume coop budget even when ready, so that a tight loop of sends still yields.
                ready!(poll_proceed(cx)).made_progress();
                Poll::Ready(reply.take().unwrap_or(Err(SendError::Stopped)))
            }
        }
    }
}

impl<C: Command> Future for SendCommand<C> {
    type Output = TypedReply<C>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let SendState::Unsent(_) = &self.0
            && let SendState::Unsent(unsent) = std::mem::replace(&mut self.0, SendState::Done)
        {
            self.0 = SendState::Sent(unsent.send());
        }
        match &mut self.0 {
            SendState::Sent(wait) => wait.poll(cx),
            SendState::Unsent(_) | SendState::Done => Poll::Ready(Err(SendError::Stopped)),
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
    meta: Option<Box<CommandMeta>>,
    deadline: Duration,
) -> Result<Envelope, SendError> {
    let (facts, key) = (MessageFacts::of::<C>(), command.key());
    let mut payload = Vec::new();
    // The key is checked first: a command without an owner is not even encoded.
    if key.is_valid()
        && let Err(error) = encode_command_verified(command, facts.codec, &mut payload)
    {
        return Err(SendError::Encode(error));
    }
    envelope(client, facts, Fingerprint::of_command::<C>, payload, Kind::Command, Some(key), meta, deadline)
}

fn of_query<Q: Query>(client: &Client, query: &Q, deadline: Duration) -> Result<Envelope, SendError> {
    let facts = MessageFacts::of::<Q>();
    let mut payload = Vec::new();
    match encode_verified(query, facts.codec, &mut payload) {
        Ok(_) => envelope(client, facts, Fingerprint::of_query::<Q>, payload, Kind::Query, None, None, deadline),
        Err(error) => Err(SendError::Encode(error)),
    }
}

#[expect(clippy::too_many_arguments, reason = "facts of the message and options of the caller")]
pub(super) fn envelope(
    client: &Client,
    message: MessageFacts,
    shape: fn() -> Option<Fingerprint>,
    payload: Vec<u8>,
    kind: Kind,
    key: Option<Key<'_>>,
    meta: Option<Box<CommandMeta>>,
    deadline: Duration,
) -> Result<Envelope, SendError> {
    if let Some(key) = key.as_ref().filter(|key| !key.is_valid()) {
        return Err(SendError::Key { bytes: key.as_str().len() });
    }
    let meta = *meta.unwrap_or_default();
    let no_name = |name: &str| {
        SendError::Encode(whizbang_core::message::CodecError::Encode { reason: format!("invalid name `{name}`") })
    };
    let domain = Name::from_static(message.domain).map_err(|_| no_name(message.domain))?;
    let name = Name::from_static(message.name).map_err(|_| no_name(message.name))?;
    let now = client.inner.clock.now();
    let id = meta.id.unwrap_or_else(|| client.new_id());
    passes!("client", message.name, id, meta.correlation.unwrap_or(id));
    Ok(Envelope {
        version: message.version,
        shape: shape(),
        to: key.as_ref().map(|key| ShardId::new(domain.clone(), shard_of(key.as_str(), message.shards))),
        key: key.map(Key::into_string).unwrap_or_default(),
        correlation: meta.correlation.unwrap_or(id),
        deadline: Some(now.after(deadline)),
        traceparent: meta.traceparent.map(String::from),
        headers: meta.headers,
        codec: message.codec,
        payload: Bytes::from(payload),
        ..Envelope::new(id, kind, domain, name, now)
    })
}

/// A command that is handed over. Await it to know that it is accepted.
///
/// Nothing happens before the first poll. Dropping it afterwards does not cancel the command.
///
/// ```
/// # use whizbang::doc_fixtures::*;
/// # whizbang::derive::block_on(async {
/// # let node = bank().await;
/// # let client = node.client();
/// client.post(Deposit { account: "ada".into(), cents: 500 }).idempotency_key("deposit-4712").await?;
/// # Ok::<_, whizbang::Error>(()) }).unwrap();
/// ```
#[must_use = "futures do nothing unless you `.await` them"]
pub struct PostCommand<C: Command>(PostState<C>);

enum PostState<C: Command> {
    Unsent(SendCommand<C>),
    Sent(BoxFuture<'static, Result<(), SendError>>),
}

// No field is structurally pinned: the box is pinned by itself.
impl<C: Command> Unpin for PostCommand<C> {}

impl<C: Command> PostCommand<C> {
    pub(super) fn new(client: Client, command: C) -> Self {
        Self(PostState::Unsent(SendCommand::new(client, command)))
    }

    fn changed(self, change: impl FnOnce(SendCommand<C>) -> SendCommand<C>) -> Self {
        match self.0 {
            PostState::Unsent(unsent) => Self(PostState::Unsent(change(unsent))),
            sent @ PostState::Sent(_) => Self(sent),
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

    /// As [`SendCommand::header`].
    pub fn header(self, name: &str, value: &str) -> Self {
        self.changed(|unsent| unsent.header(name, value))
    }

    /// As [`SendCommand::correlation`].
    pub fn correlation(self, correlation: MessageId) -> Self {
        self.changed(|unsent| unsent.correlation(correlation))
    }
}

impl<C: Command> Unsent<C> {
    /// Hands the command over.
    fn post(self) -> BoxFuture<'static, Result<(), SendError>> {
        let Self { client, command, meta, refused, .. } = self;
        if let Some(refused) = refused {
            return Box::pin(std::future::ready(Err(*refused)));
        }
        match of_command(&client, &command, meta, DEADLINE) {
            Ok(mut envelope) => {
                // No deadline: it may be handled at any time.
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
        if let PostState::Unsent(SendCommand(unsent)) = &mut self.0 {
            let unsent = std::mem::replace(unsent, SendState::Done);
            self.0 = PostState::Sent(match unsent {
                SendState::Unsent(unsent) => unsent.post(),
                _ => Box::pin(std::future::ready(Err(SendError::Stopped))),
            });
        }
        match &mut self.0 {
            PostState::Sent(future) => future.as_mut().poll(cx),
            PostState::Unsent(_) => Poll::Ready(Err(SendError::Stopped)),
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
/// Nothing happens before the first poll. A query has no effect, so dropping it is harmless. [`Projection`](crate::Projection) and
/// [`Answer`](crate::Answer) have examples.
#[must_use = "futures do nothing unless you `.await` them"]
pub struct SendQuery<Q: Query>(QueryState<Q>);

enum QueryState<Q: Query> {
    Unsent { client: Client, query: Q, deadline: Duration },
    Sent(BoxFuture<'static, Result<Q::Reply, SendError>>),
    Done,
}

// No field is structurally pinned: the box is pinned by itself.
impl<Q: Query> Unpin for SendQuery<Q> {}

impl<Q: Query> SendQuery<Q> {
    pub(super) fn new(client: Client, query: Q) -> Self {
        Self(QueryState::Unsent { client, query, deadline: DEADLINE })
    }

    /// Sets how long to wait for the answer. Default 30 s.
    pub fn deadline(mut self, limit: Duration) -> Self {
        if let QueryState::Unsent { deadline, .. } = &mut self.0 {
            *deadline = limit;
        }
        self
    }
}

impl<Q: Query> Future for SendQuery<Q> {
    type Output = Result<Q::Reply, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let QueryState::Unsent { .. } = &self.0
            && let QueryState::Unsent { client, query, deadline } = std::mem::replace(&mut self.0, QueryState::Done)
        {
            self.0 = QueryState::Sent(match of_query(&client, &query, deadline) {
                Ok(envelope) => {
                    let codec = envelope.codec;
                    let answer = client.inner.remote.query(envelope, deadline);
                    read_answer(codec, answer)
                }
                Err(error) => Box::pin(std::future::ready(Err(error))),
            });
        }
        match &mut self.0 {
            QueryState::Sent(future) => future.as_mut().poll(cx),
            QueryState::Unsent { .. } | QueryState::Done => Poll::Ready(Err(SendError::Stopped)),
        }
    }
}

fn read_answer<R: Coded + Send + 'static>(
    codec: Codec,
    answer: BoxFuture<'static, Result<Bytes, SendError>>,
) -> BoxFuture<'static, Result<R, SendError>> {
    Box::pin(async move { R::read(codec, &answer.await?).map_err(SendError::Reply) })
}

impl<Q: Query> std::fmt::Debug for SendQuery<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendQuery").field("query", &Q::NAME).finish_non_exhaustive()
    }
}
