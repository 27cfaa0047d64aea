//! The clients of a simulated cluster: what a story sends and asks.

use std::future::IntoFuture;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use super::World;
use super::clients::Written;
use crate::client::{DEADLINE, SendError};
use crate::clock::instant;
use crate::message::{Command, Domain, MessageId, Query};

/// How long a patient client waits for a reply before it asks again with the same id.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// After what time it asks again first, if it was told that nobody is there; then later and later.
pub(super) const SOON: Duration = Duration::from_millis(50);

/// How long it waits before it asks again if its id is from the future: that lasts.
const FUTURE: Duration = Duration::from_secs(5);

/// A command that a client of a simulated cluster sends. Await it for the reply: one attempt, unless it is [`patient`](Self::patient).
#[must_use = "a command is sent when it is awaited"]
pub struct Call<'a, C> {
    world: &'a World,
    command: C,
    id: Option<MessageId>,
    key: Option<String>,
    deadline: Option<Duration>,
    patient: bool,
}

impl<C: Command> Call<'_, C> {
    /// As [`SendCommand::id`](crate::client::SendCommand::id).
    pub fn id(mut self, id: MessageId) -> Self {
        self.id = Some(id);
        self
    }

    /// As [`SendCommand::idempotency_key`](crate::client::SendCommand::idempotency_key).
    pub fn idempotency_key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// How long to wait for the reply. Default: 30 s; 2 s for each attempt of a patient one.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Asks again with the same id until the outcome is known.
    pub fn patient(mut self) -> Self {
        self.patient = true;
        self
    }

    /// The id that it is sent with.
    fn written(&self) -> Result<Written, SendError> {
        let id = match (&self.key, self.id) {
            (Some(key), _) => MessageId::from_idempotency_key(C::Domain::NAME, self.command.key().as_str(), key),
            (None, Some(id)) => id,
            (None, None) => self.world.new_id(),
        };
        Written::of(id, &self.command)
    }
}

impl<'a, C: Command> IntoFuture for Call<'a, C> {
    type Output = Result<C::Reply, SendError>;
    type IntoFuture = LocalBoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let mut written = self.written()?;
            let Self { world, id, key, deadline, patient, .. } = self;
            let default = if patient { PATIENCE } else { DEADLINE };
            let deadline = deadline.unwrap_or(default);
            let mut next = world.misbehave(&written, deadline);
            let mut wait = SOON;
            loop {
                let tended = world.0.clients.is_tended();
                let told = world.once::<C>(&written, key.as_deref(), std::mem::replace(&mut next, deadline)).await;
                match told {
                    // An operator is at work: it is answered under its id once its letter is redriven.
                    Err(SendError::DeadLetter { .. }) if patient && (tended || world.0.clients.is_tended()) => {
                        tokio::time::sleep(PATIENCE).await;
                    }
                    Err(error) if patient && error.is_transient() => {
                        let future = matches!(error, SendError::IdInFuture);
                        tokio::time::sleep(if future { FUTURE } else { wait }).await;
                        // An id that was never taken and is of another time: the clock of its maker was wrong.
                        if future && id.is_none() && key.is_none() {
                            written = world.renewed(written);
                        }
                        wait = (wait * 2).min(PATIENCE);
                    }
                    told => return told,
                }
            }
        })
    }
}

/// A command that a client of a simulated cluster hands over without a reply. Await it to know that it is accepted.
#[must_use = "a command is handed over when it is awaited"]
pub struct Post<'a, C>(Call<'a, C>);

impl<C: Command> Post<'_, C> {
    /// As [`PostCommand::id`](crate::client::PostCommand::id).
    pub fn id(self, id: MessageId) -> Self {
        Self(self.0.id(id))
    }

    /// As [`PostCommand::idempotency_key`](crate::client::PostCommand::idempotency_key).
    pub fn idempotency_key(self, key: &str) -> Self {
        Self(self.0.idempotency_key(key))
    }

    /// Hands it over again with the same id until it is accepted.
    pub fn patient(self) -> Self {
        Self(self.0.patient())
    }
}

impl<'a, C: Command> IntoFuture for Post<'a, C> {
    type Output = Result<(), SendError>;
    type IntoFuture = LocalBoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Call { world, key, patient, .. } = &self.0;
            let written = self.0.written()?;
            let repeats = world.repeats_post();
            let (begun, mut wait) = (instant(), SOON);
            world.asked(&written);
            loop {
                let client = world.client().ok_or(SendError::Stopped)?;
                let post = client.post(written.read::<C>()?);
                let post = match key {
                    Some(key) => post.idempotency_key(key),
                    None => post.id(written.id),
                };
                // It may be under way from now on, whatever is said of it.
                world.0.clients.begins(written.id);
                let told = post.await;
                world.0.clients.ends(written.id, true);
                world.0.clients.posted(&written, begun, told.is_ok());
                match told {
                    Ok(()) if repeats => {
                        let _ = client.post(written.read::<C>()?).id(written.id).await;
                        return Ok(());
                    }
                    Err(error) if *patient && error.is_transient() => {
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(PATIENCE);
                    }
                    told => return told,
                }
            }
        })
    }
}

impl World {
    /// Sends a command and waits for its reply, as a patient client does: asks again with the same id until the outcome is
    /// known.
    ///
    /// # Errors
    /// [`SendError`] if asking again does not help: a rejection, a dead letter, a message that cannot be read.
    pub async fn send<C: Command>(&self, command: C) -> Result<C::Reply, SendError> {
        self.call(command).patient().await
    }

    /// Sends a command as a client does: with an id, an idempotency key and a deadline of its own, if it has them. Await it for
    /// the reply to one attempt.
    ///
    /// ```
    /// # use whizbang::doc_fixtures::*;
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
    /// As [`Client::send`](crate::Client::send).
    pub fn call<C: Command>(&self, command: C) -> Call<'_, C> {
        Call { world: self, command, id: None, key: None, deadline: None, patient: false }
    }

    /// Hands a command over without waiting for a reply. Await it to know that it is accepted: then it must be handled once, be a
    /// dead letter, or be put aside with a reason, unless a fault makes the broker lose it.
    ///
    /// # Errors
    /// As [`Client::post`](crate::Client::post).
    pub fn post<C: Command>(&self, command: C) -> Post<'_, C> {
        Post(self.call(command))
    }

    /// A new message id, as a client of the cluster makes it.
    pub fn new_id(&self) -> MessageId {
        self.0.ids.borrow().message_id()
    }

    /// Asks a view, again until it answers.
    ///
    /// # Errors
    /// [`SendError`] if asking again does not help.
    pub async fn query<Q: Query + Clone>(&self, query: Q) -> Result<Q::Reply, SendError> {
        loop {
            let client = self.client().ok_or(SendError::Stopped)?;
            match client.query(query.clone()).await {
                Err(error) if error.is_transient() => tokio::time::sleep(SOON).await,
                answered => return answered,
            }
        }
    }
}
