//! The typed door of one command: what of a command's way inside a thread depends on its type.
//!
//! Called by clients through the router, and by the [straight way](super::inline) for what depends on the type. Calls the
//! [door](super::dispatcher) of the actor type. Everything here is compiled once for each command of the user's program, so it is as
//! little as can be: the way itself knows no types.

use std::rc::Rc;

use tokio::sync::oneshot;

use super::dispatcher::Dispatcher;
use super::effects::Effects;
use super::handler_table::{UserState, typed};
use super::inline::TypedCommand;
use super::plan::Stateful;
use super::requested::{AnyEffects, RequestedEffects};
use crate::message::{
    CodecError, Coded as _, Command, Domain, Key, MessageFacts, MessageId, Rejection, settle_command,
};
use crate::router::{CommandEndpoint, CommandMeta, LocalRoutes, Outcome, SendError, Submission, TypedReply};
use crate::user_code::Label;

/// A command's handler.
pub(crate) type Run<A, C> = fn(&A, C, &mut Effects<A>) -> Result<<C as Command>::Reply, Rejection>;

/// The typed door of one command.
pub(crate) struct CommandDispatcher<A: Stateful, C: Command> {
    door: Rc<Dispatcher>,
    run: Run<A, C>,
    /// Under which the command's user code runs.
    label: Label,
}

impl<A: Stateful, C: Command> CommandDispatcher<A, C> {
    /// Hangs the door of a command in.
    pub(crate) fn hang_in(door: &Rc<Dispatcher>, run: Run<A, C>, routes: &mut LocalRoutes) {
        let label = door.context.user_code.label(A::NAME, C::NAME);
        routes.add::<C>(Rc::new(Self { door: Rc::clone(door), run, label }));
    }
}

impl<A: Stateful, C: Command> CommandEndpoint<C> for CommandDispatcher<A, C> {
    fn submit(
        &self,
        command: C,
        meta: Option<Box<CommandMeta>>,
        reply: Option<oneshot::Sender<TypedReply<C>>>,
    ) -> Submission<C> {
        let mut asking = Asking { command: Some(command), run: self.run, reply: None, sender: reply };
        match self.door.ask(&mut asking, meta, self.label) {
            Ok(told) => {
                let told = asking.told(told);
                match asking.sender {
                    Some(sender) => {
                        let _ = sender.send(told);
                        Submission::Forwarded
                    }
                    None => Submission::Done(told),
                }
            }
            Err(later) => {
                // Only who has to wait needs a channel.
                let asked = match &asking.sender {
                    Some(_) => Submission::Forwarded,
                    None => {
                        let (sender, receiver) = oneshot::channel();
                        asking.sender = Some(sender);
                        Submission::Pending(receiver)
                    }
                };
                self.door.go_on(Box::new(asking), self.label, later);
                asked
            }
        }
    }
}

/// A command whose sender waits for the reply.
pub(crate) struct Asking<A: Stateful, C: Command> {
    /// Until the handler has it.
    command: Option<C>,
    run: Run<A, C>,
    /// What the handler has said.
    reply: Option<Result<C::Reply, Rejection>>,
    sender: Option<oneshot::Sender<TypedReply<C>>>,
}

impl<A: Stateful, C: Command> Asking<A, C> {
    /// A command that came as bytes: who sent it is told elsewhere.
    pub(crate) fn read(command: C, run: Run<A, C>) -> Self {
        Self { command: Some(command), run, reply: None, sender: None }
    }

    /// Lets the handler decide on a command that came as bytes.
    pub(crate) fn decide(mut self, state: &dyn UserState, effects: &mut dyn AnyEffects) -> Result<(), CodecError> {
        self.handle(state, effects)?;
        self.reply(effects.requested());
        Ok(())
    }

    /// What the sender is told: the reply, if nothing has gone wrong.
    fn told(&mut self, told: Result<(), SendError>) -> TypedReply<C> {
        told?;
        match self.reply.take() {
            Some(reply) => reply.map_err(SendError::Rejected),
            None => Err(SendError::Stopped),
        }
    }
}

impl<A: Stateful, C: Command> TypedCommand for Asking<A, C> {
    fn facts(&self) -> MessageFacts {
        MessageFacts::of::<C>()
    }

    fn key(&self) -> Key<'_> {
        self.command.as_ref().map_or_else(|| Key::from(""), C::key)
    }

    fn settle(&mut self, into: &mut Vec<u8>) -> Result<(), CodecError> {
        if let Some(command) = &self.command
            && let Some(read) = settle_command(command, C::Domain::CODEC, into)?
        {
            self.command = Some(read);
        }
        Ok(())
    }

    fn handle(&mut self, state: &dyn UserState, effects: &mut dyn AnyEffects) -> Result<(), CodecError> {
        let (state, effects) = typed::<A>(state, effects)?;
        self.reply = self.command.take().map(|command| (self.run)(state, command, effects));
        Ok(())
    }

    fn is_rejected(&self) -> bool {
        matches!(self.reply, Some(Err(_)))
    }

    fn reject(&mut self, rejection: Rejection) {
        self.reply = Some(Err(rejection));
    }

    fn reply(&mut self, requested: &mut RequestedEffects) {
        self.reply = self.reply.take().and_then(|reply| requested.replied(C::Domain::CODEC, reply));
    }

    fn forget(&mut self) {
        (self.command, self.reply) = (None, None);
    }

    fn tell(mut self: Box<Self>, told: Result<(), SendError>) {
        let told = self.told(told);
        if let Some(sender) = self.sender {
            let _ = sender.send(told);
        }
    }

    fn tell_outcome(self: Box<Self>, id: MessageId, outcome: Outcome) {
        let told = match SendError::of(outcome, C::Domain::NAME, C::NAME, id) {
            Ok((bytes, codec)) => match C::Reply::read_reply(codec, &bytes) {
                Ok(reply) => reply.map_err(SendError::Rejected),
                Err(error) => Err(SendError::Reply(error)),
            },
            Err(error) => Err(error),
        };
        if let Some(sender) = self.sender {
            let _ = sender.send(told);
        }
    }
}
