//! A query: a request for one answer of a view, or of the actor of a key.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::encode::of_query;
use super::retry::{Attempts, Effect, RetryMode, SendOnce, send_until_answered};
use super::{Client, DEADLINE};
use crate::router::{CommandMeta, Remote, SendError};
use whizbang_core::message::{Coded, Envelope, Kind, Query};
use whizbang_core::store::StoreError;

/// A query for a view, or for the aggregate or saga of a key. Await it for the answer.
///
/// Nothing happens before the first poll. A query has no effect, so dropping it is harmless. It is retried as
/// [`Client`] describes. [`Projection`](crate::Projection) and [`Answer`](crate::Answer) have examples.
///
/// ```
/// # use bank_fixture::*;
/// # use std::time::Duration;
/// use whizbang::prelude::*;
///
/// #[derive(Query, Serialize, Deserialize)]
/// #[query(domain = Bank, reply = u64)]
/// struct TotalCents;
///
/// #[derive(Projection, Default, Serialize, Deserialize)]
/// #[projection(projects(Deposited), answers(TotalCents))]
/// struct Totals { cents: u64 }
/// #
/// # impl Project<Deposited> for Totals {
/// #     fn project(&mut self, deposited: &Deposited, _: &EventContext) {
/// #         self.cents += deposited.cents;
/// #     }
/// # }
/// # impl Answer<TotalCents> for Totals {
/// #     fn answer(&self, _: TotalCents) -> u64 {
/// #         self.cents
/// #     }
/// # }
///
/// # whizbang::derive::block_on(async {
/// let node = Node::builder("bank", MemoryStore::new()).projection::<Totals>().aggregate::<Account>().start().await?;
/// let cents = node.client().query(TotalCents).deadline(Duration::from_secs(5)).no_retry().await?;
/// assert_eq!(cents, 0);
/// node.stop().await
/// # }).unwrap();
/// ```
#[must_use = "futures do nothing unless you `.await` them"]
pub struct SendQuery<Q: Query>(QueryState<Q>);

enum QueryState<Q: Query> {
    Unsent(Unsent<Q>),
    Sent(BoxFuture<'static, Result<Q::Reply, SendError>>),
    Done,
}

/// A query before it is sent.
struct Unsent<Q> {
    client: Client,
    query: Q,
    /// Headers and trace.
    meta: Option<Box<CommandMeta>>,
    /// An invalid header: nothing is sent.
    refused: Option<Box<SendError>>,
    deadline: Duration,
    mode: RetryMode,
}

// No field is structurally pinned: the box is pinned by itself.
impl<Q: Query> Unpin for SendQuery<Q> {}

impl<Q: Query> SendQuery<Q> {
    pub(super) fn new(client: Client, query: Q) -> Self {
        let mode = RetryMode::UntilDeadline;
        Self(QueryState::Unsent(Unsent { client, query, meta: None, refused: None, deadline: DEADLINE, mode }))
    }

    /// Changes the query, unless it has been polled.
    fn changed(mut self, change: impl FnOnce(&mut Unsent<Q>)) -> Self {
        if let QueryState::Unsent(unsent) = &mut self.0 {
            change(unsent);
        }
        self
    }

    /// Sets how long to wait for the answer, all attempts together. Default 30 s.
    pub fn deadline(self, limit: Duration) -> Self {
        self.changed(|unsent| unsent.deadline = limit)
    }

    /// Same as [`SendCommand::no_retry`](super::SendCommand::no_retry).
    pub fn no_retry(self) -> Self {
        self.changed(|unsent| unsent.mode = RetryMode::Never)
    }

    /// Sets a header: a tenant, a user. The [layers](Client::layer) of this client read it, and
    /// [`Answer::answer_for`](crate::Answer::answer_for). An invalid header is refused with [`SendError::Header`].
    ///
    /// ```
    /// # use bank_fixture::*;
    /// # use whizbang::prelude::*;
    /// use whizbang::layer::Authorize;
    ///
    /// # #[derive(Query, Serialize, Deserialize)]
    /// # #[query(domain = Bank, reply = u64)]
    /// # struct TotalCents;
    /// # #[derive(Projection, Default, Serialize, Deserialize)]
    /// # #[projection(projects(Deposited), answers(TotalCents))]
    /// # struct Totals { cents: u64 }
    /// # impl Project<Deposited> for Totals {
    /// #     fn project(&mut self, deposited: &Deposited, _: &EventContext) {
    /// #         self.cents += deposited.cents;
    /// #     }
    /// # }
    /// # impl Answer<TotalCents> for Totals {
    /// #     fn answer(&self, _: TotalCents) -> u64 {
    /// #         self.cents
    /// #     }
    /// # }
    /// # whizbang::derive::block_on(async {
    /// # let node = Node::builder("bank", MemoryStore::new()).projection::<Totals>().aggregate::<Account>().start().await?;
    /// let client = node.client().layer(Authorize::by_header("role", |role, _call| role == "auditor"));
    /// assert!(client.query(TotalCents).await.unwrap_err().rejection().is_some());
    /// assert_eq!(client.query(TotalCents).header("role", "auditor").await?, 0);
    /// # node.stop().await
    /// # }).unwrap();
    /// ```
    pub fn header(self, name: &str, value: &str) -> Self {
        self.changed(|unsent| unsent.meta.get_or_insert_default().set_header(name, value, &mut unsent.refused))
    }

    /// Continues a W3C trace context, as [`SendCommand::traceparent`](super::SendCommand::traceparent).
    pub fn traceparent(self, traceparent: &str) -> Self {
        self.changed(|unsent| unsent.meta.get_or_insert_default().traceparent = Some(traceparent.into()))
    }
}

impl<Q: Query> Unsent<Q> {
    fn send(self) -> BoxFuture<'static, Result<Q::Reply, SendError>> {
        let Self { client, query, meta, refused, deadline, mode } = self;
        let encoded = match refused {
            Some(refused) => Err(*refused),
            None => of_query(&client, &query, meta, deadline),
        };
        match encoded {
            Ok(envelope) => read_answer(client, envelope, Attempts::new(mode, Effect::None, deadline)),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

impl<Q: Query> Future for SendQuery<Q> {
    type Output = Result<Q::Reply, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let QueryState::Unsent(_) = &self.0
            && let QueryState::Unsent(unsent) = std::mem::replace(&mut self.0, QueryState::Done)
        {
            self.0 = QueryState::Sent(unsent.send());
        }
        match &mut self.0 {
            QueryState::Sent(future) => future.as_mut().poll(cx),
            QueryState::Unsent(_) | QueryState::Done => Poll::Ready(Err(SendError::Stopped)),
        }
    }
}

fn read_answer<R: Coded + Send + 'static>(
    client: Client,
    envelope: Envelope,
    attempts: Attempts,
) -> BoxFuture<'static, Result<R, SendError>> {
    Box::pin(async move {
        let codec = envelope.codec;
        let ask: SendOnce<Bytes> = match envelope.kind {
            Kind::Query => |remote, envelope, wait| remote.query(envelope, wait),
            _ => ask_owner,
        };
        let answer = send_until_answered(client, envelope, attempts, ask).await?;
        R::read(codec, &answer).map_err(SendError::Reply)
    })
}

/// Sends the query of a key once, to its owner.
fn ask_owner(remote: &dyn Remote, envelope: Envelope, wait: Duration) -> BoxFuture<'static, Result<Bytes, SendError>> {
    let (domain, name) = (envelope.domain.to_string(), envelope.name.to_string());
    let sent = remote.send(envelope, wait);
    Box::pin(async move {
        sent.await.map_err(|error| match error {
            // A query commits nothing, so the error concerns its answer, and another attempt has the same result.
            SendError::Unknown { source: StoreError::Io { source, .. }, .. } => {
                SendError::Unanswered { domain, name, reason: source.to_string() }
            }
            error => error,
        })
    })
}

impl<Q: Query> std::fmt::Debug for SendQuery<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendQuery").field("query", &Q::NAME).finish_non_exhaustive()
    }
}
