//! The actix actor in front of a [live actor](super::live_actor::ActorInstance): messages that cannot be handled immediately
//! wait here, in order.
//!
//! Called by the [dispatcher](super::dispatcher), which sends, and by actix, which delivers one message after the
//! other. Calls the actor. A typed command that finds nothing queued before it bypasses the mailbox as an [inline
//! turn](super::inline).

use actix::{Actor, Context, Handler, Message};
use send_wrapper::SendWrapper;

use super::live_actor::{FailedTurn, Mailbox, MailboxMessage};
use super::thread::ACTOR_TASK;

/// actix drops an actor whose context has panicked without logging it, with all messages that wait for it. Their senders
/// would wait forever, so the shards are reopened: then everything that is not in the log is sent again.
impl Drop for Mailbox {
    fn drop(&mut self) {
        if whizbang_core::spawn::is_unwinding()
            && let Ok(actor) = self.0.actor.try_borrow()
        {
            let panicked = format!("{} `{}` panicked", actor.dispatcher.actor, actor.key);
            actor.dispatcher.context.report_panic(ACTOR_TASK, &panicked);
        }
    }
}

/// A message that never leaves its thread. actix requires every message to be `Send`, because an address is. The
/// wrapper checks at run time that the dispatchers stay on their thread, and contains the only unsafe code for it.
pub(crate) struct LocalMessage<T>(pub(crate) SendWrapper<T>);

impl<T> LocalMessage<T> {
    pub(crate) fn new(message: T) -> Self {
        Self(SendWrapper::new(message))
    }
}

impl<T> Message for LocalMessage<T> {
    type Result = ();
}

impl Actor for Mailbox {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.actor().load(ctx, |_, _| {});
    }
}

impl Handler<LocalMessage<MailboxMessage>> for Mailbox {
    type Result = ();

    fn handle(&mut self, mail: LocalMessage<MailboxMessage>, ctx: &mut Self::Context) {
        // The message has left the mailbox.
        self.0.mailbox_len.set(self.0.mailbox_len.get() - 1);
        let mut actor = self.actor();
        match mail.0.take() {
            MailboxMessage::Envelope(delivered) => actor.handle(delivered, ctx),
            MailboxMessage::Typed(mail) => actor.handle_typed(mail, ctx),
            MailboxMessage::Failed(FailedTurn { delivery, permit, failure }) => {
                actor.handle_failure(delivery, permit, failure, ctx)
            }
        }
    }
}
