//! Requests of the clients of a simulated cluster: the commands, posts and queries of a scenario.

use std::future::IntoFuture;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use super::World;
use super::clients::EncodedCommand;
use whizbang_core::clock::instant;
use whizbang_core::message::{Command, Domain, MessageId, Query};
use whizbang_runtime::client::{Client, DEADLINE, SendError};

/// Time that a retrying client waits for a reply before it repeats the command with the same id.
pub(super) const ATTEMPT_DEADLINE: Duration = Duration::from_secs(2);
/// Delay before the first retry. It doubles with each retry.
pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(50);

/// Delay before a retry with an id from the future, a condition that lasts.
pub(super) const FUTURE_ID_BACKOFF: Duration = Duration::from_secs(5);

/// A command of a client. Await it for the reply. One attempt, unless [`retrying`](Self::retrying) or
/// [`client_retries`](Self::client_retries) is set.
///
/// ```
/// # use bank_fixture::*;
/// use whizbang::testing::Sim;
///
/// let run = Sim::new(7).service("bank", |node| node.aggregate::<Account>()).run(async |world| {
///     let deposit = || world.call(Deposit { account: "ada".into(), cents: 500 }).idempotency_key("receipt 12");
///     assert_eq!(deposit().retrying().await.unwrap(), 500);
///     // The same key is the same command: it is not handled twice.
///     assert_eq!(deposit().await.unwrap(), 500);
/// });
/// assert!(run.is_ok());
/// ```
#[must_use = "futures do nothing unless you `.await` them"]
pub struct SimCall<'a, C> {
    /// The cluster to which the command is sent.
    world: &'a World,
    /// The command.
    command: C,
    /// The id; drawn when the call begins without one.
    id: Option<MessageId>,
    /// The idempotency key, from which the id is computed.
    key: Option<String>,
    /// The time limit of one attempt.
    deadline: Option<Duration>,
    /// Attempts are repeated until one succeeds or fails for good.
    retrying: bool,
    /// The party that retries inside an attempt.
    mode: AttemptMode,
}

/// Sends of the client in one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttemptMode {
    /// One: the checks know the effect of each.
    Once,
    /// The attempts that the client makes by itself.
    ClientRetries,
}

impl<C> std::fmt::Debug for SimCall<'_, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimCall").field("id", &self.id).field("key", &self.key).finish_non_exhaustive()
    }
}

impl<C: Command> SimCall<'_, C> {
    /// Sets the id, as [`SendCommand::id`](whizbang_runtime::client::SendCommand::id) does.
    ///
    /// Calls with the same id and the same command are one command.
    pub fn id(mut self, id: MessageId) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets an idempotency key, as [`SendCommand::idempotency_key`](whizbang_runtime::client::SendCommand::idempotency_key) does.
    ///
    /// It replaces the id: calls to one target with one key are one command.
    pub fn idempotency_key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// Sets the time to wait for the reply. Default: 30 s, or 2 s per attempt with [`retrying`](Self::retrying).
    ///
    /// When it passes, the outcome is unknown: the command may be handled later. A [`retrying`](Self::retrying) call then repeats
    /// it.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Retries with the same id until the outcome is known.
    ///
    /// Transient errors, such as a node that is down, are not returned then. A dead letter is returned, unless a fault has
    /// scheduled an operator that will redrive it.
    pub fn retrying(mut self) -> Self {
        self.retrying = true;
        self
    }

    /// Leaves the retries to the client, as services do, instead of making one attempt. Its final error must be true for all of
    /// them.
    ///
    /// A retry of the client has the same id, so a command is still handled once. Use it to test how a service handles the errors that remain.
    pub fn client_retries(mut self) -> Self {
        self.mode = AttemptMode::ClientRetries;
        self
    }

    /// Encodes the command with its id.
    fn encoded(&self) -> Result<EncodedCommand, SendError> {
        let id = match (&self.key, self.id) {
            (Some(key), _) => MessageId::from_idempotency_key(C::Domain::NAME, self.command.key().as_str(), key),
            (None, Some(id)) => id,
            (None, None) => self.world.new_id(),
        };
        EncodedCommand::of(id, &self.command)
    }
}

impl<'a, C: Command> IntoFuture for SimCall<'a, C> {
    type Output = Result<C::Reply, SendError>;
    type IntoFuture = LocalBoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let mut encoded = self.encoded()?;
            let Self { world, id, key, deadline, retrying, mode, .. } = self;
            let default = if retrying { ATTEMPT_DEADLINE } else { DEADLINE };
            let deadline = deadline.unwrap_or(default);
            let mut next = world.inject_client_faults(&encoded, deadline);
            let mut wait = FIRST_BACKOFF;
            loop {
                let has_operator = world.0.clients.has_operator();
                let deadline = std::mem::replace(&mut next, deadline);
                let result = world.attempt::<C>(&encoded, key.as_deref(), deadline, mode).await;
                match result {
                    // An operator will redrive the dead letter; the reply is then stored under its id.
                    Err(SendError::DeadLetter { .. })
                        if retrying && (has_operator || world.0.clients.has_operator()) =>
                    {
                        tokio::time::sleep(ATTEMPT_DEADLINE).await;
                    }
                    Err(error) if retrying && error.is_transient() => {
                        let future = matches!(error, SendError::IdInFuture);
                        tokio::time::sleep(if future { FUTURE_ID_BACKOFF } else { wait }).await;
                        // The id was never accepted and is out of time: the clock that created it was wrong. Use a new one.
                        if future && id.is_none() && key.is_none() {
                            encoded = world.with_new_id(encoded);
                        }
                        wait = (wait * 2).min(ATTEMPT_DEADLINE);
                    }
                    result => return result,
                }
            }
        })
    }
}

/// A command sent without a reply. Await it until it is accepted.
///
/// ```
/// # use bank_fixture::*;
/// use whizbang::testing::Sim;
///
/// let run = Sim::new(7).service("bank", |node| node.aggregate::<Account>()).run(async |world| {
///     let post = || world.post(Deposit { account: "ada".into(), cents: 500 }).idempotency_key("receipt 12");
///     post().retrying().await.unwrap();
///     // The same key is the same command: it is not handled twice.
///     post().await.unwrap();
///     world.wait_idle().await;
///     assert_eq!(world.state::<Account>("ada").cents, 500);
/// });
/// assert!(run.is_ok());
/// ```
#[must_use = "futures do nothing unless you `.await` them"]
pub struct SimPost<'a, C> {
    call: SimCall<'a, C>,
    /// Waits for the broker only, not for the commit of the owner.
    to_broker: bool,
}

impl<C> std::fmt::Debug for SimPost<'_, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimPost").field("call", &self.call).field("to_broker", &self.to_broker).finish_non_exhaustive()
    }
}

impl<C: Command> SimPost<'_, C> {
    /// Sets the id, as [`PostCommand::id`](whizbang_runtime::client::PostCommand::id) does.
    ///
    /// Use it to post a command again after an error: the two are handled once.
    pub fn id(self, id: MessageId) -> Self {
        Self { call: self.call.id(id), ..self }
    }

    /// Sets an idempotency key, as [`PostCommand::idempotency_key`](whizbang_runtime::client::PostCommand::idempotency_key) does.
    pub fn idempotency_key(self, key: &str) -> Self {
        Self { call: self.call.idempotency_key(key), ..self }
    }

    /// Retries with the same id until the command is accepted.
    ///
    /// Acceptance is not handling: a command that was accepted may be rejected or become a dead letter later.
    pub fn retrying(self) -> Self {
        Self { call: self.call.retrying(), ..self }
    }

    /// Same as [`SimCall::client_retries`].
    pub fn client_retries(self) -> Self {
        Self { call: self.call.client_retries(), ..self }
    }
}

impl<'a, C: Command> IntoFuture for SimPost<'a, C> {
    type Output = Result<(), SendError>;
    type IntoFuture = LocalBoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let SimCall { world, key, retrying, mode, .. } = &self.call;
            let encoded = self.call.encoded()?;
            let post_once = |client: &Client, command: C| {
                if self.to_broker { client.post_to_broker(command) } else { client.post(command) }
            };
            let duplicates = world.duplicates_post();
            let (started, mut wait) = (instant(), FIRST_BACKOFF);
            world.record_sent(&encoded);
            loop {
                let client = world.client_of(encoded.id).ok_or(SendError::Stopped)?;
                let post = post_once(&client, encoded.decode::<C>()?);
                let post = match key {
                    Some(key) => post.idempotency_key(key),
                    None => post.id(encoded.id),
                };
                let post = if *mode == AttemptMode::Once { post.no_retry() } else { post };
                // The command may be in flight from here on, whatever the outcome of this call.
                world.0.clients.attempt_started(encoded.id);
                let result = post.await;
                world.0.clients.attempt_ended(encoded.id, true);
                world.0.clients.record_post(&encoded, started, result.is_ok(), self.to_broker);
                match result {
                    Ok(()) if duplicates => {
                        let _ = post_once(&client, encoded.decode::<C>()?).id(encoded.id).no_retry().await;
                        return Ok(());
                    }
                    Err(error) if *retrying && error.is_transient() => {
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(ATTEMPT_DEADLINE);
                    }
                    result => return result,
                }
            }
        })
    }
}

impl World {
    /// Sends a command and waits for its reply. Retries with the same id until the outcome is known.
    ///
    /// # Errors
    /// [`SendError`] if a retry does not help: a rejection, a dead letter, a message that cannot be decoded.
    pub async fn send<C: Command>(&self, command: C) -> Result<C::Reply, SendError> {
        self.call(command).retrying().await
    }

    /// Sends a command with an optional id, idempotency key and deadline. Await it for the reply to one attempt.
    ///
    /// ```
    /// # use bank_fixture::*;
    /// use whizbang::testing::Sim;
    ///
    /// let run = Sim::new(7).service("bank", |node| node.aggregate::<Account>()).run(async |world| {
    ///     let deposit = || world.call(Deposit { account: "ada".into(), cents: 500 }).idempotency_key("order-1");
    ///     assert_eq!(deposit().await.unwrap(), 500);
    ///     assert_eq!(deposit().await.unwrap(), 500);
    /// });
    /// assert!(run.is_ok());
    /// ```
    ///
    /// # Errors
    /// The errors of [`Client::send`](whizbang_runtime::Client::send).
    pub fn call<C: Command>(&self, command: C) -> SimCall<'_, C> {
        SimCall { world: self, command, id: None, key: None, deadline: None, retrying: false, mode: AttemptMode::Once }
    }

    /// Sends a command without a reply. Await it until its owner has committed it. An accepted command must be handled once, become
    /// a dead letter, or be rejected with a reason.
    ///
    /// # Errors
    /// The errors of [`Client::post`](whizbang_runtime::Client::post).
    pub fn post<C: Command>(&self, command: C) -> SimPost<'_, C> {
        SimPost { call: self.call(command), to_broker: false }
    }

    /// Sends a command to the broker without a reply. Await it until the broker has stored it. An accepted command must be handled as
    /// with [`post`](Self::post), unless a fault makes the broker lose it.
    ///
    /// # Errors
    /// The errors of [`Client::post_to_broker`](whizbang_runtime::Client::post_to_broker).
    pub fn post_to_broker<C: Command>(&self, command: C) -> SimPost<'_, C> {
        SimPost { call: self.call(command), to_broker: true }
    }

    /// Returns a new message id, created with the clock of the clients or of [one of them](super::Fault::SkewOneClient).
    ///
    /// It is never one that another call has received, and follows from the seed.
    pub fn new_id(&self) -> MessageId {
        self.other_callers_id().unwrap_or_else(|| self.0.ids.borrow().message_id())
    }

    /// Runs a query. Retries until the view replies.
    ///
    /// # Errors
    /// [`SendError`] if a retry does not help.
    pub async fn query<Q: Query + Clone>(&self, query: Q) -> Result<Q::Reply, SendError> {
        loop {
            let client = self.client().ok_or(SendError::Stopped)?;
            match client.query(query.clone()).no_retry().await {
                Err(error) if error.is_transient() => tokio::time::sleep(FIRST_BACKOFF).await,
                result => return result,
            }
        }
    }
}
