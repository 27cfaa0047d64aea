//! Endpoints: the traits through which messages reach actors, on this thread and on others.

use std::any::Any;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::sync::oneshot;

use super::{Delivery, SendError};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Command, Envelope, MessageId, Shard, set_expiry, set_header};
use whizbang_core::store::StoreError;

/// Endpoint of one actor type on one thread.
pub trait ActorEndpoint {
    /// Delivers a message to the actor with the envelope's key, activating it if necessary.
    fn deliver(&self, delivery: Delivery);

    /// Like [`deliver`](Self::deliver), for a message that waits in a stream of the broker and has no waiting caller. An endpoint
    /// whose messages may wait for long refuses it as busy, and the broker keeps it.
    fn deliver_post(&self, delivery: Delivery) {
        self.deliver(delivery);
    }

    /// Returns the key of the actor that handles this event; `None` if none does.
    ///
    /// # Errors
    /// The event cannot be decoded; the text is the reason.
    fn key_of(&self, event: &Envelope) -> Result<Option<String>, String>;

    /// Returns the number of live actors of the type.
    fn live_count(&self) -> usize;

    /// Passivates actors that were idle for `idle_sweeps` sweeps, and the longest idle ones above `cap`.
    fn passivate_idle(&self, idle_sweeps: u64, cap: usize);

    /// Discards the state of every actor and fails what is queued, after a failed commit.
    fn reset(&self);

    /// Admits messages to the keys of a shard that was opened on this thread.
    fn open_shard(&self, shard: Shard) {
        let _ = shard;
    }

    /// Discards everything of a shard: its live actors, jobs and deferred messages. Queued messages are refused.
    fn close_shard(&self, shard: Shard) {
        let _ = shard;
    }

    /// Loads the deferred messages of a shard from its log. Called before anything is delivered, after the shard was
    /// opened and after a [reset](Self::reset).
    ///
    /// # Errors
    /// Errors of reading the store.
    fn load_deferred(&self, shard: Shard) -> LocalBoxFuture<'static, Result<(), StoreError>> {
        let _ = shard;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Starts delivering the deferred messages of a shard.
    fn deliver_deferred(&self, shard: Shard) {
        let _ = shard;
    }

    /// Returns whether no deferred message is left that is delivered without an operator.
    fn is_idle(&self) -> bool {
        true
    }
}

/// Optional metadata of a typed command inside one node.
#[derive(Clone, Debug, Default)]
pub struct CommandMeta {
    /// Id of the command; `None` lets the actor's thread create one.
    pub id: Option<MessageId>,
    /// Correlation id, if the command is part of a larger unit of work.
    pub correlation: Option<MessageId>,
    /// W3C trace context.
    pub traceparent: Option<Box<str>>,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// Time from the first attempt to the expiry, until it is among the headers.
    pub expires_in: Option<Duration>,
}

impl CommandMeta {
    /// Begins the time until the expiry.
    ///
    /// # Errors
    /// The message has too many headers. Nothing was sent.
    pub(crate) fn begin_life(&mut self, now: Timestamp) -> Result<(), SendError> {
        match self.expires_in.take() {
            Some(life) => set_expiry(&mut self.headers, now.after(life)).map_err(SendError::Header),
            None => Ok(()),
        }
    }

    /// Sets a header; an invalid one refuses the whole message.
    pub(crate) fn set_header(&mut self, name: &str, value: &str, refused: &mut Option<Box<SendError>>) {
        if let Err(error) = set_header(&mut self.headers, name, value) {
            refused.get_or_insert_with(|| Box::new(SendError::Header(error)));
        }
    }
}

/// Result of a typed command.
pub type TypedReply<C> = Result<<C as Command>::Reply, SendError>;

/// Result of a typed command for a sender that may send it again.
pub type SentReply<C> = Result<<C as Command>::Reply, CommandFailure>;

/// Reason why a typed command has no reply.
#[derive(Debug)]
pub enum CommandFailure {
    /// It was handed to its actor, or cannot be: nothing is left to send again.
    Error(SendError),
    /// It was not accepted: the sender gets it back. Boxed, so that replies stay small.
    Returned(Box<ReturnedCommand>),
}

/// A command that was not accepted.
#[derive(Debug)]
pub struct ReturnedCommand {
    /// The reason: [`SendError::Busy`] or [`SendError::Stopped`].
    pub error: SendError,
    /// The command. Its type is erased, so that the wait for a reply is compiled once per reply type.
    pub command: Box<dyn Any + Send>,
    /// Its metadata.
    pub meta: Option<Box<CommandMeta>>,
}

impl CommandFailure {
    /// Returns a command to its sender.
    pub fn returned<C: Command>(error: SendError, command: C, meta: Option<Box<CommandMeta>>) -> Self {
        Self::Returned(Box::new(ReturnedCommand { error, command: Box::new(command), meta }))
    }
}

/// Typed endpoint of a command on the thread of its actors: nothing is encoded or decoded.
pub trait CommandEndpoint<C: Command> {
    /// Runs the command's turn inline if nothing is queued before it, otherwise queues it. The reply follows after
    /// the commit; it is immediate if the command is refused: [`SendError::Busy`] and [`SendError::Stopped`] return
    /// the command, [`SendError::Key`] does not.
    ///
    /// A caller on another thread passes `reply` to receive the result there.
    fn submit(
        &self,
        command: C,
        meta: Option<Box<CommandMeta>>,
        reply: Option<oneshot::Sender<SentReply<C>>>,
    ) -> Submission<C>;
}

/// Tells how the reply to a command will be delivered.
pub enum Submission<C: Command> {
    /// The reply is ready.
    Done(TypedReply<C>),
    /// The reply is sent on this channel once the turn is committed.
    Pending(oneshot::Receiver<SentReply<C>>),
    /// The reply goes to the channel that the caller passed.
    Forwarded,
}

impl<C: Command> std::fmt::Debug for Submission<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done(_) => "Done",
            Self::Pending(_) => "Pending",
            Self::Forwarded => "Forwarded",
        })
    }
}
