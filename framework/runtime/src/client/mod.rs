//! Client: sends commands and queries, from inside a node and from a process that hosts nothing.
//!
//! Called by users. Calls the router: an owner in the same node is reached without encoding, all others through
//! [`Remote`]. After a transient error, sends the message again with the same id until the deadline.

mod delay;
mod encode;
mod layered;
mod post;
mod publish;
mod query;
mod request;
mod retry;
#[cfg(feature = "schedules")]
mod schedule;
#[cfg(test)]
mod tests;

pub use crate::router::SendError;
pub use post::PostCommand;
pub use publish::PublishEvent;
pub use query::SendQuery;
pub use request::SendCommand;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::layer::{Layer, Layers};
use crate::router::{NodeId, Remote};
use whizbang_core::clock::Clock;
use whizbang_core::message::{Command, Event, Fingerprint, IdSource, MessageFacts, MessageId, Query, encode_verified};

/// Default time to wait for a reply of another node, and to retry.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Sends commands and queries. Cheap to clone, and usable on any thread.
///
/// After a [transient error](SendError::is_transient) a request is sent again with the same id, with growing waits,
/// until its deadline (by default 30 s): the owner is busy, restarts, is replaced or cannot be reached, or a reply is
/// lost. An owner handles a command with one id once, so that this is safe. [`no_retry`](SendCommand::no_retry) turns
/// it off for one request. A command that its actor has received inside this process is not sent again: nothing is
/// lost there.
///
/// ```
/// # use bank_fixture::*;
/// # whizbang::derive::block_on(async {
/// # let node = bank().await;
/// let client = node.client();
/// let balance = client.send(Deposit { account: "ada".into(), cents: 500 }).await?;
/// assert_eq!(balance, 500);
/// # Ok::<_, whizbang::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// The layers around its requests.
    layers: Option<Arc<Layers>>,
}

struct Inner {
    node: NodeId,
    remote: Arc<dyn Remote>,
    ids: Mutex<IdSource>,
    clock: Clock,
}

impl Client {
    pub(crate) fn new(node: NodeId, remote: Arc<dyn Remote>, ids: IdSource) -> Self {
        let clock = ids.clock().clone();
        Self { inner: Arc::new(Inner { node, remote, ids: Mutex::new(ids), clock }), layers: None }
    }

    /// Sends a command to the owner of its domain. Await the returned future for the reply.
    ///
    /// Nothing is sent before the first poll. The future can be spawned, joined and selected. Dropping it after the
    /// first poll does not cancel the command; it ends the retries.
    ///
    /// # Errors
    /// [`SendError`] tells whether the command may have been handled. [`SendError::Rejected`] is a rejection by the
    /// domain. A transient error means that no attempt succeeded before the deadline.
    pub fn send<C: Command>(&self, command: C) -> SendCommand<C> {
        SendCommand::new(self.clone(), command)
    }

    /// Sends a command to the owner of its domain without a reply. Await the returned future to know that the owner has
    /// committed its decision: the command is handled, or rejected, and is as durable as the owner's store.
    ///
    /// A command of a worker is committed at the end of its job. Use [`post_to_broker`](Self::post_to_broker) for jobs that may take
    /// longer than the [deadline](PostCommand::deadline), 30 s by default.
    ///
    /// # Errors
    /// Like [`send`](Self::send), except that a rejection is not reported.
    pub fn post<C: Command>(&self, command: C) -> PostCommand<C> {
        PostCommand::new(self.clone(), command)
    }

    /// Hands a command over to the broker, which stores it until its owner handles it, also while no owner runs. Await the
    /// returned future to know that the broker has stored it.
    ///
    /// This is weaker than [`post`](Self::post): the command is only as durable as the broker's stream until the owner has
    /// committed it, and errors of the owner are not reported. A client without a broker between it and the owner, for
    /// instance that of the owner's own node, waits for the commit as `post` does, without a deadline. A post that is sent
    /// [later](PostCommand::after) is stored by the owner in any case.
    ///
    /// ```
    /// # use bank_fixture::*;
    /// # whizbang::derive::block_on(async {
    /// # let node = bank().await;
    /// # let client = node.client();
    /// client.post_to_broker(Deposit { account: "ada".into(), cents: 500 }).idempotency_key("deposit-4712").await?;
    /// # Ok::<_, whizbang::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`SendError`] if the broker cannot store it: it is not connected, or the stream of the domain is full.
    pub fn post_to_broker<C: Command>(&self, command: C) -> PostCommand<C> {
        PostCommand::to_broker(self.clone(), command)
    }

    /// Publishes an event under a key, without an aggregate: for log lines, measurements, changes captured from a database.
    /// Await the returned future to know that it is committed.
    ///
    /// The event is stored in the log of the owner of its domain, in the order in which the owner receives the events of the
    /// key, and reaches all subscribers like any other event. The owner declares it with
    /// [`NodeBuilder::publishes`](crate::NodeBuilder::publishes).
    ///
    /// ```
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
    /// node.client().publish("boiler", Measured { celsius: 81 }).await?;
    /// // Recorded once however often it is published under its idempotency key.
    /// node.client().publish("boiler", Measured { celsius: 82 }).idempotency_key("line 4711").await?;
    /// node.stop().await
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Same as [`send`](Self::send). [`SendError::Unhandled`]: the owner does not declare the event.
    pub fn publish<E: Event>(&self, key: impl Into<String>, event: E) -> PublishEvent {
        let (facts, mut payload) = (MessageFacts::of::<E>(), Vec::new());
        let encoded = encode_verified(&event, facts.codec, &mut payload).map(|_| payload);
        PublishEvent::new(self.clone(), key.into(), facts, Fingerprint::of_event::<E>, encoded)
    }

    /// Queries a view, or the aggregate or saga of a key. Await the returned future for the answer.
    ///
    /// A query with a `#[key]` is answered by the owner of the key from its committed state: after all commands that were
    /// answered before, without a turn, and without an entry in the log. A view may be behind its events.
    ///
    /// # Errors
    /// Like [`send`](Self::send); a query has no effect, so it can always be repeated. [`SendError::Unanswered`] also if the key
    /// waits behind a dead letter, and [`SendError::Refused`] or [`SendError::NoOwner`] if its state cannot be loaded.
    pub fn query<Q: Query>(&self, query: Q) -> SendQuery<Q> {
        SendQuery::new(self.clone(), query)
    }

    /// Returns a client with a [layer](Layer) around its requests ([`send`](Self::send), [`post`](Self::post),
    /// [`publish`](Self::publish) and [`query`](Self::query)), inside the layers that this client has. This client is unchanged.
    ///
    /// Layers see encoded messages, so a command to an actor of this process is encoded and decoded, and never runs inline.
    ///
    /// ```
    /// # use bank_fixture::*;
    /// # whizbang::derive::block_on(async {
    /// # let node = bank().await;
    /// use whizbang::layer::{Call, Layer, Refusal};
    /// use whizbang::prelude::*;
    ///
    /// /// Lets no request pass without a tenant.
    /// struct Tenant;
    ///
    /// impl Layer for Tenant {
    ///     fn before(&self, call: &Call<'_>) -> Result<(), Refusal> {
    ///         match call.header("tenant") {
    ///             Some(_) => Ok(()),
    ///             None => Err(Rejection::new("tenants.missing", "the request names no tenant").into()),
    ///         }
    ///     }
    /// }
    ///
    /// let client = node.client().layer(Tenant);
    /// let deposit = |cents| Deposit { account: "ada".into(), cents };
    /// assert!(client.send(deposit(500)).await.unwrap_err().rejection().is_some());
    /// assert_eq!(client.send(deposit(20)).header("tenant", "acme").await?, 20);
    /// # Ok::<_, whizbang::Error>(()) }).unwrap();
    /// ```
    #[must_use]
    pub fn layer(&self, layer: impl Layer) -> Self {
        let mut layers = self.layers.as_deref().cloned().unwrap_or_default();
        layers.add(Arc::new(layer));
        Self { inner: Arc::clone(&self.inner), layers: Some(Arc::new(layers)) }
    }

    /// Returns the transport for messages that leave this client's thread.
    #[doc(hidden)]
    pub fn remote(&self) -> &dyn Remote {
        &*self.inner.remote
    }

    /// Returns the current time of this client's clock.
    pub(crate) fn now(&self) -> whizbang_core::clock::Timestamp {
        self.inner.clock.now()
    }

    /// Closes the connection of a client created with [`connect`](Self::connect), after sending what it has posted.
    /// Its clones reach no node afterwards. No-op for a client of a node, which has no connection of its own.
    pub async fn disconnect(self) {
        self.inner.remote.disconnect().await;
    }

    /// Returns a new message id, for [`SendCommand::id`].
    ///
    /// It contains the time of the client's clock (UUID version 7). Store it before sending if the command must be
    /// repeatable after a crash of the caller.
    pub fn new_id(&self) -> MessageId {
        self.inner.ids.lock().message_id()
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("node", &self.inner.node).finish_non_exhaustive()
    }
}
