//! The doors through which messages reach actors.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, LocalBoxFuture};
use tokio::sync::oneshot;

use super::{Delivery, LocalRoutes, SendError};
use crate::message::{Command, Envelope, MessageId};
use crate::store::StoreError;

/// The door of one actor type on one thread.
pub trait ActorEndpoint {
    /// Hands a message to the actor with the envelope's key, starting it if need be.
    fn deliver(&self, delivery: Delivery);

    /// The key of the actor that takes this event; `None` if none does, an error if the event cannot be read.
    ///
    /// # Errors
    /// The text says what cannot be read.
    fn key_of(&self, event: &Envelope) -> Result<Option<String>, String>;

    /// How many actors of the type are live.
    fn live_count(&self) -> usize;

    /// Puts actors to rest that were idle since `idle_sweeps` sweeps, and the longest idle ones above `cap`.
    fn passivate_idle(&self, idle_sweeps: u64, cap: usize);

    /// Lets every actor forget its state and fails what is queued: commits have failed.
    fn reset(&self);

    /// Reads from the log what waits there. Called before anything is delivered, after the start and after a [reset](Self::reset).
    ///
    /// # Errors
    /// What reading the store can meet.
    fn load_deferred(&self) -> LocalBoxFuture<'static, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Begins to deliver what waits in the log.
    fn deliver_deferred(&self) {}

    /// Returns whether nothing waits that will be delivered without a person.
    fn is_idle(&self) -> bool {
        true
    }
}

/// What travels with a typed command inside one node, if anything does.
#[derive(Clone, Debug, Default)]
pub struct CommandMeta {
    /// The command's id; `None` lets the actor's thread make one.
    pub id: Option<MessageId>,
    /// The correlation id, if it is part of something larger.
    pub correlation: Option<MessageId>,
    /// The trace context.
    pub traceparent: Option<Box<str>>,
}

/// What a typed command comes back with.
pub type TypedReply<C> = Result<<C as Command>::Reply, SendError>;

/// The typed door of a command on the thread of its actors: no bytes on the way in, none on the way out.
pub trait CommandEndpoint<C: Command> {
    /// Takes the command's turn here and now if nothing is before it, else queues it with its actor. The reply comes after the
    /// commit; at once if the command is refused: [`SendError::Busy`], [`SendError::Stopped`] or [`SendError::Key`].
    ///
    /// Who waits elsewhere gives `reply` for it.
    fn submit(
        &self,
        command: C,
        meta: Option<Box<CommandMeta>>,
        reply: Option<oneshot::Sender<TypedReply<C>>>,
    ) -> Submission<C>;
}

/// Where the reply to a command is to be had.
pub enum Submission<C: Command> {
    /// Here.
    Done(TypedReply<C>),
    /// Here, once the turn is committed.
    Pending(oneshot::Receiver<TypedReply<C>>),
    /// Where who asked has said.
    Forwarded,
}

/// Something to be done where the actors live.
pub type RoutedJob = Box<dyn FnOnce(&LocalRoutes) + Send>;

/// How what cannot be done on this thread leaves it: other threads of the node and other services.
pub trait Remote: Send + Sync {
    /// The thread of this node on which the actor with this key takes the command; `None` if no actor of this node does.
    fn thread_of(&self, domain: &str, command: &str, key: &str) -> Option<usize> {
        let _ = (domain, command, key);
        None
    }

    /// Does `job` on that thread, or drops it if the node has ended; `false` if as many wait for that thread as may.
    fn run_on(&self, home: usize, job: RoutedJob) -> bool {
        let _ = (home, job);
        false
    }

    /// Sends a command and waits for its reply: `Result<Reply, Rejection>`, encoded in the envelope's codec.
    fn send(&self, envelope: Envelope, deadline: Duration) -> BoxFuture<'static, Result<Bytes, SendError>>;

    /// Hands a command over to be handled some time.
    fn post(&self, envelope: Envelope) -> BoxFuture<'static, Result<(), SendError>>;

    /// Asks a query; the answer is encoded in the envelope's codec.
    fn query(&self, envelope: Envelope, deadline: Duration) -> BoxFuture<'static, Result<Bytes, SendError>>;

    /// Takes nothing more, if there is no node behind it whose business that is.
    fn disconnect(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
