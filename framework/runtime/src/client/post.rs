//! A posted command: its sender waits until the owner has committed it, or until the broker has stored it, but not for a reply.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, TryFutureExt as _};

use super::delay::{Due, schedule};
use super::encode::of_command;
use super::request::{SendCommand, SendState, Unsent};
use super::retry::{Attempts, SendOnce, send_until_answered};
use super::{Client, DEADLINE};
use crate::router::SendError;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Command, Domain, Envelope, MessageId};

/// A command without a reply: [`Client::post`] or [`Client::post_to_broker`]. Await it to know that it is accepted.
///
/// Nothing happens before the first poll. Dropping it afterwards does not cancel the command. It is retried as
/// [`Client`] describes.
///
/// ```
/// # use bank_fixture::*;
/// # whizbang::derive::block_on(async {
/// # let node = bank().await;
/// # let client = node.client();
/// client.post(Deposit { account: "ada".into(), cents: 500 }).idempotency_key("deposit-4712").await?;
/// # Ok::<_, whizbang::Error>(()) }).unwrap();
/// ```
#[must_use = "futures do nothing unless you `.await` them"]
pub struct PostCommand<C: Command>(PostState<C>);

enum PostState<C: Command> {
    Unsent(SendCommand<C>, Acceptance),
    Sent(BoxFuture<'static, Result<(), SendError>>),
}

/// The event for which a post waits.
#[derive(Clone, Copy, Debug)]
enum Acceptance {
    /// The owner has committed its decision about the command.
    Commit,
    /// The broker has stored the command. Without a broker between client and owner, the same as `Commit`.
    Broker,
    /// The owner has stored the command, which is sent later.
    Scheduled(Due),
}

// No field is structurally pinned: the box is pinned by itself.
impl<C: Command> Unpin for PostCommand<C> {}

impl<C: Command> PostCommand<C> {
    pub(super) fn new(client: Client, command: C) -> Self {
        Self(PostState::Unsent(SendCommand::new(client, command), Acceptance::Commit))
    }

    pub(super) fn to_broker(client: Client, command: C) -> Self {
        Self(PostState::Unsent(SendCommand::new(client, command), Acceptance::Broker))
    }

    fn changed(self, change: impl FnOnce(SendCommand<C>) -> SendCommand<C>) -> Self {
        match self.0 {
            PostState::Unsent(unsent, acceptance) => Self(PostState::Unsent(change(unsent), acceptance)),
            sent @ PostState::Sent(_) => Self(sent),
        }
    }

    /// Sends the command later, once `after` has passed since the first poll, even if its owner is stopped in between.
    ///
    /// The future is done when the command is stored in the log of its domain, where it waits. The delay is stored as the
    /// time of the wall clock at which it ends; while the owner runs it is measured by its monotonic clock. The command is
    /// sent once, at most about a second late.
    ///
    /// ```
    /// # use bank_fixture::*;
    /// # whizbang::derive::block_on(async {
    /// # let node = bank().await;
    /// # let client = node.client();
    /// use std::time::Duration;
    ///
    /// let deposit = |cents| Deposit { account: "ada".into(), cents };
    /// let id = client.new_id();
    /// client.post(deposit(500)).id(id).after(Duration::from_secs(3600)).await?;
    /// // The same id with another time moves it, with the new content.
    /// client.post(deposit(400)).id(id).after(Duration::from_secs(1800)).await?;
    /// assert!(client.cancel::<Bank>(id).await?);
    /// # Ok::<_, whizbang::Error>(()) }).unwrap();
    /// ```
    ///
    /// **Moving.** A post with the [id](Self::id) or [idempotency key](Self::idempotency_key) of a message that waits
    /// replaces its time and content. A repeated post with the same time changes nothing, even after the command was sent.
    /// With another time it is then [`SendError::Rejected`] with [`Rejection::SAGA_ENDED`](crate::Rejection::SAGA_ENDED):
    /// the message was sent or cancelled. [`Client::cancel`] drops a message that waits.
    ///
    /// An owner of a version that cannot delay messages of clients answers [`SendError::Unhandled`].
    pub fn after(self, after: Duration) -> Self {
        self.due(Due::After(after))
    }

    /// Sends the command at a time of the wall clock, or at once if it has passed, as [`after`](Self::after).
    pub fn at(self, due: Timestamp) -> Self {
        self.due(Due::At(due))
    }

    fn due(self, due: Due) -> Self {
        match self.0 {
            PostState::Unsent(unsent, _) => Self(PostState::Unsent(unsent, Acceptance::Scheduled(due))),
            sent @ PostState::Sent(_) => Self(sent),
        }
    }

    /// Same as [`SendCommand::id`].
    pub fn id(self, id: MessageId) -> Self {
        self.changed(|unsent| unsent.id(id))
    }

    /// Same as [`SendCommand::idempotency_key`].
    pub fn idempotency_key(self, key: &str) -> Self {
        self.changed(|unsent| unsent.idempotency_key(key))
    }

    /// Same as [`SendCommand::header`].
    pub fn header(self, name: &str, value: &str) -> Self {
        self.changed(|unsent| unsent.header(name, value))
    }

    /// Same as [`SendCommand::correlation`].
    pub fn correlation(self, correlation: MessageId) -> Self {
        self.changed(|unsent| unsent.correlation(correlation))
    }

    /// Same as [`SendCommand::traceparent`]. A command that is [sent later](Self::after) continues the trace, too.
    pub fn traceparent(self, traceparent: &str) -> Self {
        self.changed(|unsent| unsent.traceparent(traceparent))
    }

    /// Sets how long the future waits and the command is sent again after transient errors. Default 30 s. The command itself
    /// has no deadline: after [`SendError::NoReply`] it may still be handled.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.changed(|unsent| unsent.deadline(deadline))
    }

    /// Same as [`SendCommand::expires_in`]. The time of a command that is [sent later](Self::after) begins when it is due. Nothing
    /// is reported to the sender: [`Metrics::expired`](crate::Metrics::expired) counts the command at its owner.
    ///
    /// An owner of a version without expiries handles the command at any time. A command that is sent later is refused there
    /// with [`SendError::Rejected`].
    pub fn expires_in(self, life: Duration) -> Self {
        self.changed(|unsent| unsent.expires_in(life))
    }

    /// Same as [`SendCommand::no_retry`].
    pub fn no_retry(self) -> Self {
        self.changed(SendCommand::no_retry)
    }
}

impl<C: Command> Unsent<C> {
    /// Sends the command, and returns when it is accepted.
    fn post(self, acceptance: Acceptance) -> BoxFuture<'static, Result<(), SendError>> {
        let Self { command, meta, refused, sender } = self;
        if let Some(refused) = refused {
            return Box::pin(std::future::ready(Err(*refused)));
        }
        match of_command(&sender.client, &command, meta, DEADLINE) {
            Ok(envelope) => {
                let attempts = sender.attempts();
                post(sender.client, envelope, C::Domain::SHARDS, attempts, acceptance)
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

/// Sends an encoded command of any type.
fn post(
    client: Client,
    mut envelope: Envelope,
    shards: u16,
    attempts: Attempts,
    acceptance: Acceptance,
) -> BoxFuture<'static, Result<(), SendError>> {
    let send: SendOnce<()> = match acceptance {
        Acceptance::Scheduled(due) => return schedule(client, &envelope, shards, due, attempts),
        // The reply says that the decision is committed, also if it is a rejection.
        Acceptance::Commit => |remote, envelope, wait| remote.send(envelope, wait).map_ok(drop).boxed(),
        Acceptance::Broker => |remote, envelope, _| remote.post_to_broker(envelope),
    };
    // No deadline: it may be handled at any time.
    envelope.deadline = None;
    Box::pin(send_until_answered(client, envelope, attempts, send))
}

impl<C: Command> Future for PostCommand<C> {
    type Output = Result<(), SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let PostState::Unsent(unsent, acceptance) = &mut self.0 {
            let acceptance = *acceptance;
            self.0 = PostState::Sent(match unsent.take() {
                SendState::Unsent(unsent) => unsent.post(acceptance),
                _ => Box::pin(std::future::ready(Err(SendError::Stopped))),
            });
        }
        match &mut self.0 {
            PostState::Sent(future) => future.as_mut().poll(cx),
            PostState::Unsent(..) => Poll::Ready(Err(SendError::Stopped)),
        }
    }
}

impl<C: Command> std::fmt::Debug for PostCommand<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostCommand").field("command", &C::NAME).finish_non_exhaustive()
    }
}
