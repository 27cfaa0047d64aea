//! A command for the owner of its domain: configured before the first poll, and awaited for its reply.
//!
//! Called by users. A command to an actor of this process stays a typed value, and is returned by the actor's
//! dispatcher if it is refused. Every other command is [encoded](super::encode) once and sent as bytes.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::coop::poll_proceed;
use tokio::time::Sleep;

use super::encode::{encoded_len, of_command};
use super::retry::{Attempts, Effect, RequestId, RetryMode, send_until_answered, sleep};
use super::{Client, DEADLINE};
use crate::router::{
    CommandFailure, CommandMeta, LocalRoutes, ReturnedCommand, SendError, SentReply, Submission, TypedReply,
};
use whizbang_core::message::{Coded, Command, Domain, Envelope, MessageId};

/// A command for the owner of its domain. Await it for the reply.
///
/// Nothing happens before the first poll. The first poll submits the command: it is handled inline if its actor runs
/// on this thread and nothing is queued before it, otherwise it is queued. Dropping the future afterwards does not
/// cancel the command: it may be handled without its reply being seen. It is retried as [`Client`] describes.
///
/// ```
/// # use bank_fixture::*;
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
pub struct SendCommand<C: Command>(pub(super) SendState<C>);

/// A command before it is sent.
pub(super) struct Unsent<C> {
    pub(super) command: C,
    pub(super) meta: Option<Box<CommandMeta>>,
    /// An invalid option: nothing is sent.
    pub(super) refused: Option<Box<SendError>>,
    pub(super) sender: Sender,
}

/// The part of a request that remains until its reply.
pub(super) struct Sender {
    pub(super) client: Client,
    deadline: Option<Duration>,
    mode: RetryMode,
    /// Set by the first refusal.
    attempts: Option<Box<Attempts>>,
}

pub(super) enum SendState<C: Command> {
    Unsent(Unsent<C>),
    Sent(PendingReply<C::Reply>, Sender),
    /// Refused by an actor of this process, to be sent again.
    Waiting(Pin<Box<Sleep>>, Unsent<C>),
    Done,
}

/// The wait for a reply. Generic over the reply, not the command, so that it is compiled once for all commands with
/// that reply.
pub(super) enum PendingReply<R> {
    Ready(Option<Result<R, CommandFailure>>),
    Here(oneshot::Receiver<Result<R, CommandFailure>>),
    Boxed(BoxFuture<'static, Result<R, CommandFailure>>),
}

// No field is structurally pinned: the box is pinned by itself.
impl<C: Command> Unpin for SendCommand<C> {}

impl<C: Command> SendCommand<C> {
    pub(super) fn new(client: Client, command: C) -> Self {
        let sender = Sender { client, deadline: None, mode: RetryMode::UntilDeadline, attempts: None };
        Self(SendState::Unsent(Unsent { command, meta: None, refused: None, sender }))
    }

    /// Changes the command, unless it has been polled.
    fn changed(mut self, change: impl FnOnce(&mut Unsent<C>)) -> Self {
        if let SendState::Unsent(unsent) = &mut self.0 {
            change(unsent);
        }
        self
    }

    /// Sets how long to wait for the reply, all attempts together. Default: 30 s if another node must answer. If the
    /// actor is in this process, where every accepted command is completed, there is no limit after the actor has
    /// received it; until then the command is sent again for 30 s.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.changed(|unsent| unsent.sender.deadline = Some(deadline))
    }

    /// Limits the time until the command is handled, from the first attempt. A receiver that reaches it later does not
    /// handle it: the reply is [`SendError::Rejected`] with [`Rejection::EXPIRED`](crate::Rejection::EXPIRED). Default: no limit.
    ///
    /// Unlike the [deadline](Self::deadline), it travels with the command and counts wherever the command waits: in a stream of the
    /// broker, behind other commands, for a worker. A job that has begun is completed. The clock of the
    /// receiver decides: a difference between the clocks of two machines shifts the expiry by as much. It is the header
    /// `ce-expirytime` of the command. With 64 other headers it is refused with [`SendError::Header`].
    ///
    /// ```
    /// # use bank_fixture::*;
    /// # whizbang::derive::block_on(async {
    /// # let node = bank().await;
    /// # let client = node.client();
    /// use std::time::Duration;
    ///
    /// let deposit = Deposit { account: "ada".into(), cents: 500 };
    /// assert_eq!(client.send(deposit).expires_in(Duration::from_secs(60)).await?, 500);
    /// # Ok::<_, whizbang::Error>(()) }).unwrap();
    /// ```
    pub fn expires_in(self, life: Duration) -> Self {
        self.changed(|unsent| unsent.meta().expires_in = Some(life))
    }

    /// Sends the command once. A transient error is then returned at once, and the wait for a reply takes the whole
    /// deadline.
    ///
    /// ```
    /// # use bank_fixture::*;
    /// # whizbang::derive::block_on(async {
    /// # let node = bank().await;
    /// # let client = node.client();
    /// let deposit = Deposit { account: "ada".into(), cents: 500 };
    /// match client.send(deposit).no_retry().await {
    ///     Err(error) if error.is_transient() => { /* shed the load, or ask another service */ }
    ///     reply => assert_eq!(reply?, 500),
    /// }
    /// # Ok::<_, whizbang::Error>(()) }).unwrap();
    /// ```
    pub fn no_retry(self) -> Self {
        self.changed(|unsent| unsent.sender.mode = RetryMode::Never)
    }

    /// Sets the id of the command. Sent again to the same key with the same id, it is handled once and answered with
    /// the first reply. The same id and key with another message is [`SendError::Conflict`]; name, schema version,
    /// codec and payload are compared. An id counts for one key of the actor type that handles the command; with
    /// another key, or for another type of the domain, it is another command.
    ///
    /// Ids are remembered for `remember`, by default 7 days. An id that contains its time (UUID version 7) is refused
    /// as [`SendError::Expired`] when it is older, handled or not, and as [`SendError::IdInFuture`] when it is more
    /// than 5 minutes ahead of the owner's clock. An id without a time is handled again after that period.
    pub fn id(self, id: MessageId) -> Self {
        self.changed(|unsent| unsent.meta().id = Some(id))
    }

    /// Sets an idempotency key, which counts for one target: a [key](Command::key) of the actor type that handles the
    /// command. Sent again there, the command is handled once and answered with the first reply; another message is
    /// [`SendError::Conflict`]. With another target it is another command and is handled, so a caller that corrects
    /// the target of a command must not rely on the idempotency key.
    ///
    /// Remembered for `remember`, by default 7 days; afterwards a command with it is handled again. An empty key is
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
    ///
    /// It has the form `00-<trace>-<span>-<flags>` of the header of that name. Everything that the command causes
    /// continues it, in every service.
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
    fn send(self) -> (PendingReply<C::Reply>, Sender) {
        let Self { command, mut meta, refused, sender } = self;
        if let Some(refused) = refused {
            return (PendingReply::failed(*refused), sender);
        }
        if let Some(Err(error)) = meta.as_mut().map(|meta| meta.begin_life(sender.client.now())) {
            return (PendingReply::failed(error), sender);
        }
        let limit = sender.limit(&mut meta);
        // Layers see encoded messages, so their clients send bytes everywhere.
        let is_layered = sender.client.layers.is_some();
        if !is_layered
            && let Some(routes) = LocalRoutes::here(sender.client.inner.node)
            && let Some(endpoint) = routes.endpoint::<C>()
            && routes.is_open(C::Domain::NAME, C::Domain::SHARDS, || command.key())
        {
            let reply = match endpoint.submit(command, meta, None) {
                Submission::Done(reply) => PendingReply::Ready(Some(reply.map_err(CommandFailure::Error))),
                Submission::Pending(receiver) => PendingReply::here(receiver, limit, C::Domain::NAME),
                Submission::Forwarded => PendingReply::failed(SendError::Stopped),
            };
            return (reply, sender);
        }
        let remote = &sender.client.inner.remote;
        if !is_layered && let Some(thread) = remote.thread_of(C::Domain::NAME, C::NAME, command.key().as_str()) {
            let bytes = if remote.is_crowded(thread) { encoded_len(&command) } else { 0 };
            let (reply, receiver) = oneshot::channel();
            let submit = move |routes: Option<&LocalRoutes>| match routes {
                // Without an endpoint the node has ended, and `reply` is dropped.
                Some(routes) => {
                    if let Some(endpoint) = routes.endpoint::<C>() {
                        endpoint.submit(command, meta, Some(reply));
                    }
                }
                None => {
                    let busy = SendError::Busy { domain: C::Domain::NAME.to_owned() };
                    let _ = reply.send(Err(CommandFailure::returned(busy, command, meta)));
                }
            };
            remote.run_on(thread, bytes, Box::new(submit));
            return (PendingReply::here(receiver, limit, C::Domain::NAME), sender);
        }
        let deadline = sender.remaining().unwrap_or(DEADLINE);
        let reply = match of_command(&sender.client, &command, meta, deadline) {
            Ok(envelope) => {
                let client = sender.client.clone();
                PendingReply::elsewhere(client, envelope, sender.attempts())
            }
            Err(error) => PendingReply::failed(error),
        };
        (reply, sender)
    }

    /// Prepares a command that was returned to be sent again.
    ///
    /// # Errors
    /// The error for the caller, if it is not.
    fn again(returned: ReturnedCommand, mut sender: Sender) -> Result<SendState<C>, SendError> {
        let ReturnedCommand { error, command, meta } = returned;
        let timer = sender.after(error, C::Domain::NAME, meta.as_ref().and_then(|meta| meta.id))?;
        let Ok(command) = command.downcast::<C>() else { return Err(SendError::Stopped) };
        Ok(SendState::Waiting(timer, Self { command: *command, meta, refused: None, sender }))
    }
}

/// The time limit of one attempt inside this process.
struct Limit {
    /// The time that is left.
    left: Duration,
    /// The whole deadline.
    deadline: Duration,
    /// A caller whose deadline passes gets the id back, so that it can send the command again.
    id: MessageId,
}

impl Sender {
    /// Returns the time until the deadline, if one is set or was begun by a refusal.
    fn remaining(&self) -> Option<Duration> {
        self.attempts.as_ref().map(|attempts| attempts.remaining()).or(self.deadline)
    }

    /// Returns the time limit, if the caller has set one, and gives the command an id for it.
    fn limit(&self, meta: &mut Option<Box<CommandMeta>>) -> Option<Limit> {
        let deadline = self.deadline?;
        let id = *meta.get_or_insert_default().id.get_or_insert_with(|| self.client.new_id());
        Some(Limit { left: self.remaining().unwrap_or(deadline), deadline, id })
    }

    /// Returns the attempts so far.
    pub(super) fn attempts(&self) -> Attempts {
        match &self.attempts {
            Some(attempts) => (**attempts).clone(),
            None => Attempts::new(self.mode, Effect::Possible, self.deadline.unwrap_or(DEADLINE)),
        }
    }

    /// Decides about a refusal by an actor of this process: returns the timer of the wait before the next attempt.
    ///
    /// # Errors
    /// The error for the caller, if no further attempt is made.
    fn after(&mut self, error: SendError, domain: &str, id: Option<MessageId>) -> Result<Pin<Box<Sleep>>, SendError> {
        let (mode, deadline) = (self.mode, self.deadline.unwrap_or(DEADLINE));
        let begin = || Box::new(Attempts::new(mode, Effect::Possible, deadline));
        let attempts = self.attempts.get_or_insert_with(begin);
        attempts.after(error, &self.client, &RequestId { domain, id }).map(sleep)
    }
}

impl<R: Coded + Send + 'static> PendingReply<R> {
    fn failed(error: SendError) -> Self {
        Self::Ready(Some(Err(CommandFailure::Error(error))))
    }

    /// Waits for an actor of this process, where every command is completed.
    fn here(
        receiver: oneshot::Receiver<Result<R, CommandFailure>>,
        limit: Option<Limit>,
        domain: &'static str,
    ) -> Self {
        let Some(Limit { left, deadline, id }) = limit else { return Self::Here(receiver) };
        Self::Boxed(Box::pin(async move {
            match tokio::time::timeout(left, receiver).await {
                Ok(reply) => reply.unwrap_or(Err(CommandFailure::Error(SendError::Stopped))),
                Err(_) => Err(CommandFailure::Error(SendError::no_reply(domain, deadline, id))),
            }
        }))
    }

    /// Waits for another node, whose reply arrives encoded.
    fn elsewhere(client: Client, envelope: Envelope, attempts: Attempts) -> Self {
        Self::Boxed(Box::pin(async move {
            let codec = envelope.codec;
            let answer =
                send_until_answered(client, envelope, attempts, |remote, envelope, wait| remote.send(envelope, wait));
            let read = answer.await.and_then(|reply| match R::read_reply(codec, &reply) {
                Ok(reply) => reply.map_err(SendError::Rejected),
                Err(error) => Err(SendError::Reply(error)),
            });
            read.map_err(CommandFailure::Error)
        }))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<R, CommandFailure>> {
        let stopped = || Err(CommandFailure::Error(SendError::Stopped));
        match self {
            Self::Here(receiver) => Pin::new(receiver).poll(cx).map(|reply| reply.unwrap_or_else(|_| stopped())),
            Self::Boxed(future) => future.as_mut().poll(cx),
            Self::Ready(reply) => {
                // Consume coop budget even when ready, so that a tight loop of sends still yields.
                ready!(poll_proceed(cx)).made_progress();
                Poll::Ready(reply.take().unwrap_or_else(stopped))
            }
        }
    }
}

impl<C: Command> Future for SendCommand<C> {
    type Output = TypedReply<C>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let reply: SentReply<C> = match &mut self.0 {
                SendState::Sent(reply, _) => ready!(reply.poll(cx)),
                SendState::Waiting(timer, _) => {
                    ready!(timer.as_mut().poll(cx));
                    if let SendState::Waiting(_, unsent) = self.take() {
                        self.0 = SendState::Unsent(unsent);
                    }
                    continue;
                }
                SendState::Unsent(_) => {
                    if let SendState::Unsent(unsent) = self.take() {
                        let (reply, sender) = unsent.send();
                        self.0 = SendState::Sent(reply, sender);
                    }
                    continue;
                }
                SendState::Done => return Poll::Ready(Err(SendError::Stopped)),
            };
            let returned = match reply {
                Ok(reply) => return Poll::Ready(Ok(reply)),
                Err(CommandFailure::Error(error)) => return Poll::Ready(Err(error)),
                Err(CommandFailure::Returned(returned)) => *returned,
            };
            let SendState::Sent(_, sender) = self.take() else { return Poll::Ready(Err(returned.error)) };
            match Unsent::again(returned, sender) {
                Ok(waiting) => self.0 = waiting,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl<C: Command> SendCommand<C> {
    pub(super) fn take(&mut self) -> SendState<C> {
        std::mem::replace(&mut self.0, SendState::Done)
    }
}

impl<C: Command> std::fmt::Debug for SendCommand<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendCommand").field("command", &C::NAME).finish_non_exhaustive()
    }
}
