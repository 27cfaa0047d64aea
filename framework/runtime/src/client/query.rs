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
use crate::router::{Remote, SendError};
use whizbang_core::message::{Coded, Envelope, Kind, Query};
use whizbang_core::store::StoreError;

/// A query for a view, or for the aggregate or saga of a key. Await it for the answer.
///
/// Nothing happens before the first poll. A query has no effect, so dropping it is harmless. It is retried as
/// [`Client`] describes. [`Projection`](crate::Projection) and [`Answer`](crate::Answer) have examples.
///
/// ```
/// # use whizbang::doc_fixtures::*;
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
    Unsent { client: Client, query: Q, deadline: Duration, mode: RetryMode },
    Sent(BoxFuture<'static, Result<Q::Reply, SendError>>),
    Done,
}

// No field is structurally pinned: the box is pinned by itself.
impl<Q: Query> Unpin for SendQuery<Q> {}

impl<Q: Query> SendQuery<Q> {
    pub(super) fn new(client: Client, query: Q) -> Self {
        Self(QueryState::Unsent { client, query, deadline: DEADLINE, mode: RetryMode::UntilDeadline })
    }

    /// Sets how long to wait for the answer, all attempts together. Default 30 s.
    pub fn deadline(mut self, limit: Duration) -> Self {
        if let QueryState::Unsent { deadline, .. } = &mut self.0 {
            *deadline = limit;
        }
        self
    }

    /// As [`SendCommand::no_retry`](super::SendCommand::no_retry).
    pub fn no_retry(mut self) -> Self {
        if let QueryState::Unsent { mode, .. } = &mut self.0 {
            *mode = RetryMode::Never;
        }
        self
    }
}

impl<Q: Query> Future for SendQuery<Q> {
    type Output = Result<Q::Reply, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let QueryState::Unsent { .. } = &self.0
            && let QueryState::Unsent { client, query, deadline, mode } =
                std::mem::replace(&mut self.0, QueryState::Done)
        {
            self.0 = QueryState::Sent(match of_query(&client, &query, deadline) {
                Ok(envelope) => read_answer(client, envelope, Attempts::new(mode, Effect::None, deadline)),
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
            // A query commits nothing, so the error concerns its answer, and another attempt meets it again.
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
