//! The actix actor in front of an [`ActorInstance`]: messages that cannot be handled immediately wait here, in order.
//!
//! Called by the [dispatcher](super::dispatcher), which sends, and by actix, which delivers one message after the
//! other. Calls the actor. A typed command that finds nothing queued before it bypasses the mailbox as an [inline
//! turn](super::inline).

use std::cell::{Cell, RefCell, RefMut};
use std::rc::Rc;

use actix::{Actor, Context, Handler, Message};
use send_wrapper::SendWrapper;

use super::dispatcher::Permit;
use super::handler_table::UserSlot;
use super::inline::TypedCommand;
use super::instance::ActorInstance;
use super::owned_shard::OwnedShard;
use super::thread::ACTOR_TASK;
use super::turn::TurnError;
use crate::router::{CommandMeta, Delivery};
use whizbang_core::user_code::Label;

/// One live actor with the counters that its dispatcher and its permits read: one allocation, so that a turn touches
/// few cache lines.
///
/// The actor is borrowed while it handles a message. A caller that finds it borrowed was called by its turn.
pub(crate) struct LiveActor<U: ?Sized = dyn UserSlot> {
    /// The number of messages in its mailbox.
    pub(super) mailbox_len: Cell<u32>,
    /// The number of turns in flight for it, including those in the mailbox.
    pub(super) queued: Cell<u32>,
    /// The payload bytes of the messages in flight for it.
    pub(super) queued_bytes: Cell<usize>,
    /// The sweep in which it was last used.
    pub(super) last_sweep: Cell<u64>,
    /// Its last use, on the clock of [`ThreadContext::uses`](super::ThreadContext::uses).
    pub(super) last_use: Cell<u64>,
    /// The shard of its key.
    pub(super) shard: Rc<OwnedShard>,
    /// Borrowed while it handles a message.
    pub(super) actor: RefCell<ActorInstance<U>>,
}

impl<U> LiveActor<U> {
    pub(super) fn new(actor: ActorInstance<U>) -> Rc<Self> {
        let (mails, queued) = (Cell::default(), Cell::default());
        Rc::new(Self {
            mailbox_len: mails,
            queued,
            queued_bytes: Cell::default(),
            last_sweep: Cell::default(),
            last_use: Cell::default(),
            shard: Rc::clone(&actor.shard),
            actor: RefCell::new(actor),
        })
    }
}

/// The actix actor in front of an [`ActorInstance`]. It holds the actor's only permanent reference.
pub(crate) struct Mailbox(pub(super) Rc<LiveActor>);

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

/// The actix context of a mailbox.
pub(crate) type Ctx = Context<Mailbox>;

impl Mailbox {
    /// Borrows the actor for one message.
    pub(super) fn actor(&self) -> RefMut<'_, ActorInstance> {
        self.0.actor.borrow_mut()
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

/// A message in a mailbox.
pub(super) enum MailboxMessage {
    /// A message in an envelope.
    Envelope(Delivered),
    /// A typed command of the same thread.
    Typed(TypedDelivery),
    /// The failure of an inline turn.
    Failed(FailedTurn),
}

/// A delivery with its permit.
pub(crate) struct Delivered {
    pub(crate) delivery: Delivery,
    pub(crate) permit: Permit,
}

/// A typed command of the same thread, with its permit.
pub(super) struct TypedDelivery {
    /// The value decoded from `payload`.
    pub(super) command: Box<dyn TypedCommand>,
    /// The encoded command, for its digest and for a dead letter.
    pub(super) payload: Vec<u8>,
    pub(super) meta: Option<Box<CommandMeta>>,
    pub(super) label: Label,
    pub(super) permit: Permit,
}

/// The failure of an inline turn, with the message as an envelope.
pub(super) struct FailedTurn {
    pub(super) delivery: Delivery,
    pub(super) permit: Permit,
    pub(super) failure: TurnError,
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
