//! How commands and queries get in: from inside a node, and from a process that hosts nothing.
//!
//! Called by users. Calls the router: the owner in this very node is reached without a byte being written, everyone else
//! through [`Remote`]. It never sends anything twice by itself.

mod request;

pub use crate::router::SendError;
pub use request::{PostCommand, SendCommand, SendQuery};

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::message::{Command, IdSource, MessageId, Query};
use crate::router::{NodeId, Remote};

/// How long a sender waits for another node's reply, unless it says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Sends commands and asks queries. Cheap to clone, and good on any thread.
///
/// ```
/// # use whizbang::doc_fixtures::*;
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
        Self { inner: Arc::new(Inner { node, remote, ids: Mutex::new(ids), clock }) }
    }

    /// Sends a command to the owner of its domain. Await it for the reply.
    ///
    /// The future does nothing before it is first polled; it can be spawned, joined and selected like any other, and dropping it
    /// after that does not take the command back.
    ///
    /// # Errors
    /// [`SendError`] says whether the command may have been handled. [`SendError::Rejected`] is the domain's "no".
    pub fn send<C: Command>(&self, command: C) -> SendCommand<C> {
        SendCommand::new(self.clone(), command)
    }

    /// Hands a command over to be handled some time, without a reply. Await it to know that it is accepted: then it is
    /// durable as far as its owner's store, or the courier on the way there, is.
    ///
    /// # Errors
    /// As [`send`](Self::send); a rejection is not heard of.
    pub fn post<C: Command>(&self, command: C) -> PostCommand<C> {
        PostCommand::new(self.clone(), command)
    }

    /// Asks a view. Await it for the answer.
    ///
    /// # Errors
    /// As [`send`](Self::send); a query has no effect, so asking again is always safe.
    pub fn query<Q: Query>(&self, query: Q) -> SendQuery<Q> {
        SendQuery::new(self.clone(), query)
    }

    /// The way that leaves this client's thread.
    #[cfg(feature = "testing")]
    pub(crate) fn remote(&self) -> &dyn Remote {
        &*self.inner.remote
    }

    /// The present moment of this client's clock.
    pub(crate) fn now(&self) -> crate::clock::Timestamp {
        self.inner.clock.now()
    }

    /// Ends the connection of a client that was made with [`connect`](Self::connect); what it has posted is handed over first.
    /// Clones of it reach nobody any more. A node's client has no connection of its own: for it this does nothing.
    pub async fn disconnect(self) {
        self.inner.remote.disconnect().await;
    }

    /// A new message id, for [`SendCommand::id`].
    pub fn new_id(&self) -> MessageId {
        self.inner.ids.lock().message_id()
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("node", &self.inner.node).finish_non_exhaustive()
    }
}
