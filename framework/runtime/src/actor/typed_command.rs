//! A command of the same thread, independent of its type, and the outcome of its [inline turn](super::inline).
//!
//! Implemented by the [command dispatchers](super::command_dispatcher), which are compiled for each command of the user's
//! program. Used by the [dispatcher](super::dispatcher), the [mailbox](super::mailbox) and inline turns.

use std::cell::Cell;

use super::requested::{AnyEffects, RequestedEffects};
use super::turn_error::TurnError;
use super::user_state::UserState;
use crate::router::{Action, CommandMeta, DedupKey, Delivery, Outcome, SendError};
use whizbang_core::message::{CodecError, Envelope, Key, MessageFacts, MessageId, Rejection};
use whizbang_core::store::{StoreError, Ticket};

/// A command inside one thread, with its sender: the operations that depend on the command's type. The path that calls
/// them is compiled once.
pub(super) trait TypedCommand {
    /// Returns the constants of the command's type.
    fn facts(&self) -> MessageFacts;

    /// Returns the key. User code.
    fn key(&self) -> Key<'_>;

    /// Appends the command's bytes to `into` and replaces the command with the value decoded from them. User code.
    ///
    /// # Errors
    /// The command cannot be encoded or decoded.
    fn round_trip(&mut self, into: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Runs the handler. User code.
    ///
    /// # Errors
    /// State or effects belong to another actor type.
    fn handle(&mut self, state: &dyn UserState, effects: &mut dyn AnyEffects) -> Result<(), CodecError>;

    /// Returns whether the handler has rejected the command.
    fn is_rejected(&self) -> bool;

    /// Rejects the command, regardless of the handler's result.
    fn reject(&mut self, rejection: Rejection);

    /// Encodes the handler's result into the turn. User code.
    fn store_reply(&mut self, requested: &mut RequestedEffects);

    /// Drops the command and the handler's result: only the sender is needed from now on. User code.
    fn clear(&mut self);

    /// Completes the command with the handler's result or with the error.
    fn complete(self: Box<Self>, result: Result<(), SendError>);

    /// Returns a command that was not accepted to its sender, which may send it again.
    fn give_back(self: Box<Self>, error: SendError, meta: Option<Box<CommandMeta>>);

    /// Completes the command with the outcome of its envelope.
    fn complete_with(self: Box<Self>, id: MessageId, outcome: Outcome);
}

/// Marks that an inline turn runs. No other turn runs outside the mailboxes until it is dropped.
pub(super) struct InlineGuard<'a>(&'a Cell<bool>);

impl<'a> InlineGuard<'a> {
    pub(super) fn enter(inline_running: &'a Cell<bool>) -> Self {
        inline_running.set(true);
        Self(inline_running)
    }
}

impl Drop for InlineGuard<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// The outcome of an inline turn.
pub(super) enum InlineOutcome {
    /// The sender can be answered.
    Done(Result<(), SendError>),
    /// The sender can be answered after the commit.
    Pending(UncommittedTurn),
    /// The turn failed and the actor may have to recover.
    Failed(Box<(Envelope, TurnError)>),
}

/// A turn that is appended and not yet committed.
pub(super) struct UncommittedTurn {
    /// The ticket whose commit the sender waits for.
    pub(super) ticket: Ticket,
    /// The id under which the sender may ask again.
    pub(super) id: MessageId,
}

impl UncommittedTurn {
    /// Returns the sender's result after the commit.
    pub(super) fn result(&self, committed: Result<(), StoreError>) -> Result<(), SendError> {
        committed.map_err(|source| SendError::Unknown { id: self.id, source })
    }
}

/// Converts a typed command to a delivery, for the paths that need its bytes.
pub(super) fn delivery_of(envelope: Envelope, command: Box<dyn TypedCommand>) -> Delivery {
    let waiting = WaitingSender { id: envelope.id, command: Some(command) };
    Delivery {
        action: Action::Handle,
        envelope,
        dedup_key: DedupKey::MessageId,
        completion: Box::new(move |outcome| waiting.complete(outcome)),
    }
}

/// The sender of a command that has become a delivery. A panic that drops the delivery may have followed the append.
struct WaitingSender {
    id: MessageId,
    command: Option<Box<dyn TypedCommand>>,
}

impl WaitingSender {
    /// Passes the outcome to the sender.
    fn complete(mut self, outcome: Outcome) {
        if let Some(command) = self.command.take() {
            command.complete_with(self.id, outcome);
        }
    }
}

impl Drop for WaitingSender {
    fn drop(&mut self) {
        if let Some(command) = self.command.take()
            && whizbang_core::spawn::is_unwinding()
        {
            let panicked = StoreError::io("running an actor", std::io::Error::other("a turn panicked"));
            command.complete_with(self.id, Outcome::Unknown(panicked));
        }
    }
}
