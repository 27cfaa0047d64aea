//! Layers: user code around handlers, jobs and requests, for concerns that many of them share.
//!
//! Registered with the node builder or a client. Called by the [actor](crate::actor) inside the turn of a message, by the
//! [worker](crate::worker) inside a job, and by the [client](crate::client). Layers see the message, its headers and the outcome;
//! they change none of them.

mod authorize;
mod call;
mod layers;
#[cfg(feature = "rate-limits")]
mod rate_limit;
#[cfg(feature = "validation")]
mod validate;

pub use authorize::Authorize;
pub use call::{Call, CallOutcome};
#[doc(hidden)]
pub use layers::Layers;
#[cfg(feature = "rate-limits")]
pub use rate_limit::RateLimit;
#[cfg(feature = "validation")]
pub use validate::Validate;

use std::time::Duration;

use futures_util::future::{BoxFuture, ready};

use whizbang_core::message::Rejection;

/// A layer around handlers, jobs and requests, elsewhere known as middleware, filter, interceptor or behavior.
///
/// [`NodeBuilder::layer`](crate::NodeBuilder::layer) places it around each handler of a command or an event on the node, and around
/// each job; [`NodeBuilder::layer_of`](crate::NodeBuilder::layer_of) around those of one message type;
/// [`Client::layer`](crate::Client::layer) around the requests of a client. One value serves all threads of the node.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::sync::Arc;
///
/// # use bank_fixture as bank;
/// use bank::{Account, Deposit};
/// use whizbang::layer::{Call, CallOutcome, Layer, Refusal};
/// use whizbang::prelude::*;
///
/// /// Counts what is rejected, and rejects everything for one tenant.
/// #[derive(Default)]
/// struct Tenants {
///     rejected: Arc<AtomicU64>,
/// }
///
/// impl Layer for Tenants {
///     fn before(&self, call: &Call<'_>) -> Result<(), Refusal> {
///         match call.header("tenant") {
///             Some("closed") => Err(Rejection::new("tenants.closed", "the tenant has left").into()),
///             _ => Ok(()),
///         }
///     }
///
///     fn after(&self, _call: &Call<'_>, outcome: CallOutcome<'_>) {
///         if let CallOutcome::Rejected(_) = outcome {
///             self.rejected.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
///
/// # whizbang::derive::block_on(async {
/// let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().layer(Tenants::default());
/// let node = node.start().await?;
/// let deposit = Deposit { account: "ada".into(), cents: 500 };
/// let refused = node.client().send(deposit).header("tenant", "closed").await.unwrap_err();
/// assert_eq!(refused.rejection().unwrap().code(), "tenants.closed");
/// node.stop().await
/// # }).unwrap();
/// ```
///
/// **Order.** The layers of the node run first, in the order of their registration, then those of the message type. `after` runs in
/// the opposite order.
///
/// **When a layer runs.** Once for each attempt to handle a message. A repeated command whose reply is stored is answered from the
/// log without any layer, so a layer that decides otherwise by now does not change the reply. A message that is redriven, or tried again
/// after a panic, passes the layers again. Layers of a node see no queries, no timers, and no replies except those that are jobs.
/// Layers of a client see each request once, whatever its number of attempts.
///
/// **Rules.** `before` and `after` run on the thread of the actor or job and must not block. A panic in either counts as a panic
/// of the turn or job; in a client it is [`SendError::Failed`](crate::SendError::Failed). A decision must not depend on state that a repetition lacks, unless it is meant to change: what a turn has stored is
/// never decided again.
pub trait Layer: Send + Sync + 'static {
    /// Runs before the handler. Default: lets the message pass.
    ///
    /// # Errors
    /// A [`Refusal`]; the handler and the inner layers do not run.
    fn before(&self, call: &Call<'_>) -> Result<(), Refusal> {
        let _ = call;
        Ok(())
    }

    /// Like [`before`](Self::before), around a job and a request of a client, which can wait: for an answer of another system, for a
    /// permit. Default: calls `before`.
    ///
    /// It counts for the time limit of the job and for the deadline of the request. Dropping the request drops the future.
    ///
    /// # Errors
    /// As `before`.
    fn before_async<'a>(&'a self, call: &'a Call<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(ready(self.before(call)))
    }

    /// Runs after the handler, before the commit. Default: nothing.
    ///
    /// A refusal of an inner layer is an outcome as well. A layer that sees a [failure](CallOutcome::Failed) may have run before the
    /// handler or not: the panic of an outer layer is one.
    fn after(&self, call: &Call<'_>, outcome: CallOutcome<'_>) {
        let _ = (call, outcome);
    }
}

/// The reason why a layer does not let a message pass.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// A final refusal. A command gets it as its reply, which is stored like that of a handler: the same command id gets the same
    /// rejection. An event becomes a dead letter, because later events of its key must not overtake it. A request of a client is
    /// [`SendError::Rejected`](crate::SendError::Rejected), and nothing was sent.
    Reject(Rejection),
    /// A temporary refusal; nothing is stored. The caller of a command gets [`SendError::Busy`](crate::SendError::Busy): in another
    /// process its client sends the command again until its deadline, in this process the error is returned at once. A message of
    /// an actor, of a job or of a log waits for `after`, with everything of its key that follows it, and passes the layers again.
    /// So do a job, in its place among the running jobs, and a request of a client until its deadline. A job that waits beyond its
    /// time limit has used up an attempt.
    ///
    /// Each refusal counts in [`Metrics::busy`](crate::Metrics::busy). A message or job that waits for more than 10 seconds shows in
    /// [`Node::health`](crate::Node::health) and [`Metrics::stuck_keys`](crate::Metrics::stuck_keys) until a layer lets it pass.
    Busy {
        /// The time after which another attempt may pass.
        after: Duration,
    },
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Reject(rejection)
    }
}
