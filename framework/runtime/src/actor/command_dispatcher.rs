//! The typed part of a command's path inside one thread.
//!
//! Called by clients through the router, and by [inline turns](super::inline). Calls the
//! [dispatcher](super::dispatcher) of the actor type. Everything here is compiled once for each command of the user's
//! program, so it is kept small: the path itself is compiled once.

use std::rc::Rc;

use tokio::sync::oneshot;

use super::actor_type::typed;
use super::effects::Effects;
use super::live_actor::Dispatcher;
use super::plan::Stateful;
use super::requested::{AnyEffects, RequestedEffects};
use super::typed_command::TypedCommand;
use super::user_state::UserState;
use crate::router::{
    CommandEndpoint, CommandFailure, CommandMeta, LocalRoutes, Outcome, SendError, SentReply, Submission, TypedReply,
};
use whizbang_core::message::{
    CodecError, Coded as _, Command, Domain, Key, MessageFacts, MessageId, Rejection, encode_command_verified,
};
use whizbang_core::user_code::Label;

/// The handler of a command.
pub(crate) type HandlerFn<A, C> = fn(&A, C, &mut Effects<A>) -> Result<<C as Command>::Reply, Rejection>;

/// The endpoint of one command type.
pub(crate) struct CommandDispatcher<A: Stateful, C: Command> {
    dispatcher: Rc<Dispatcher>,
    handler: HandlerFn<A, C>,
    /// The label under which the command's user code runs.
    label: Label,
}

impl<A: Stateful, C: Command> CommandDispatcher<A, C> {
    /// Registers the endpoint of a command.
    pub(crate) fn register(dispatcher: &Rc<Dispatcher>, handler: HandlerFn<A, C>, routes: &mut LocalRoutes) {
        let label = dispatcher.context.user_code.label(A::NAME, C::NAME);
        routes.add::<C>(Rc::new(Self { dispatcher: Rc::clone(dispatcher), handler, label }));
    }
}

impl<A: Stateful, C: Command> CommandEndpoint<C> for CommandDispatcher<A, C> {
    fn submit(
        &self,
        command: C,
        meta: Option<Box<CommandMeta>>,
        reply: Option<oneshot::Sender<SentReply<C>>>,
    ) -> Submission<C> {
        let mut call = CommandCall { command: Some(command), handler: self.handler, reply: None, sender: reply };
        match self.dispatcher.submit(&mut call, meta, self.label) {
            Ok(result) => {
                let result = call.result(result);
                match call.sender {
                    Some(sender) => {
                        let _ = sender.send(result.map_err(CommandFailure::Error));
                        Submission::Forwarded
                    }
                    None => Submission::Done(result),
                }
            }
            Err(later) => {
                // Only a sender that has to wait needs a channel.
                let submission = match &call.sender {
                    Some(_) => Submission::Forwarded,
                    None => {
                        let (sender, receiver) = oneshot::channel();
                        call.sender = Some(sender);
                        Submission::Pending(receiver)
                    }
                };
                self.dispatcher.proceed(Box::new(call), self.label, later);
                submission
            }
        }
    }
}

/// A command and the sender that waits for its reply.
pub(crate) struct CommandCall<A: Stateful, C: Command> {
    /// `None` once the handler has received it.
    command: Option<C>,
    handler: HandlerFn<A, C>,
    /// The handler's result.
    reply: Option<Result<C::Reply, Rejection>>,
    sender: Option<oneshot::Sender<SentReply<C>>>,
}

impl<A: Stateful, C: Command> CommandCall<A, C> {
    /// A command that arrived as bytes. Its sender is notified elsewhere.
    pub(crate) fn decoded(command: C, handler: HandlerFn<A, C>) -> Self {
        Self { command: Some(command), handler, reply: None, sender: None }
    }

    /// Runs the handler of a command that arrived as bytes.
    pub(crate) fn decide(mut self, state: &dyn UserState, effects: &mut dyn AnyEffects) -> Result<(), CodecError> {
        self.handle(state, effects)?;
        self.store_reply(effects.requested());
        Ok(())
    }

    /// Returns the sender's result: the reply, unless the turn failed.
    fn result(&mut self, result: Result<(), SendError>) -> TypedReply<C> {
        result?;
        match self.reply.take() {
            Some(reply) => reply.map_err(SendError::Rejected),
            None => Err(SendError::Stopped),
        }
    }
}

impl<A: Stateful, C: Command> TypedCommand for CommandCall<A, C> {
    fn facts(&self) -> MessageFacts {
        MessageFacts::of::<C>()
    }

    fn key(&self) -> Key<'_> {
        self.command.as_ref().map_or_else(|| Key::from(""), C::key)
    }

    fn round_trip(&mut self, into: &mut Vec<u8>) -> Result<(), CodecError> {
        if let Some(command) = &self.command
            && let Some(read) = encode_command_verified(command, C::Domain::CODEC, into)?
        {
            self.command = Some(read);
        }
        Ok(())
    }

    fn handle(&mut self, state: &dyn UserState, effects: &mut dyn AnyEffects) -> Result<(), CodecError> {
        let (state, effects) = typed::<A>(state, effects)?;
        self.reply = self.command.take().map(|command| (self.handler)(state, command, effects));
        Ok(())
    }

    fn is_rejected(&self) -> bool {
        matches!(self.reply, Some(Err(_)))
    }

    fn reject(&mut self, rejection: Rejection) {
        self.reply = Some(Err(rejection));
    }

    fn store_reply(&mut self, requested: &mut RequestedEffects) {
        self.reply = self.reply.take().and_then(|reply| requested.set_reply(C::Domain::CODEC, reply));
    }

    fn clear(&mut self) {
        // Both are taken before either is dropped, so that a panic leaves none to be dropped later.
        drop((self.command.take(), self.reply.take()));
    }

    fn complete(mut self: Box<Self>, result: Result<(), SendError>) {
        let result = self.result(result);
        if let Some(sender) = self.sender {
            let _ = sender.send(result.map_err(CommandFailure::Error));
        }
    }

    fn give_back(mut self: Box<Self>, error: SendError, meta: Option<Box<CommandMeta>>) {
        let failure = match self.command.take() {
            Some(command) => CommandFailure::returned(error, command, meta),
            None => CommandFailure::Error(error),
        };
        if let Some(sender) = self.sender {
            let _ = sender.send(Err(failure));
        }
    }

    fn complete_with(self: Box<Self>, id: MessageId, outcome: Outcome) {
        let result = match SendError::of(outcome, C::Domain::NAME, C::NAME, id) {
            Ok((bytes, codec)) => match C::Reply::read_reply(codec, &bytes) {
                Ok(reply) => reply.map_err(SendError::Rejected),
                Err(error) => Err(SendError::Reply(error)),
            },
            Err(error) => Err(error),
        };
        if let Some(sender) = self.sender {
            let _ = sender.send(result.map_err(CommandFailure::Error));
        }
    }
}
