//! The actix actor in front of a [`ActorInstance`]: whatever cannot be taken at once waits here, in order.
//!
//! Called by the [door](super::dispatcher), which sends, and by actix, which brings one message after the other. Calls the actor.
//! A typed command that finds nothing before it passes the mailbox by, on the [straight way](super::inline).

use std::cell::{Cell, RefCell, RefMut};
use std::rc::Rc;

use actix::{Actor, Context, Handler, Message};
use send_wrapper::SendWrapper;

use super::dispatcher::Permit;
use super::handler_table::UserSlot;
use super::inline::TypedCommand;
use super::instance::ActorInstance;
use super::turn::Failure;
use crate::router::{CommandMeta, Delivery};
use crate::user_code::Label;

/// One live actor with what its door and its permits look at: one allocation, so that a turn touches few places.
///
/// The actor is borrowed for as long as a message is taken, so a caller that finds it borrowed was called by its turn.
pub(crate) struct LiveActor<U: ?Sized = dyn UserSlot> {
    /// How many messages are in its mailbox.
    pub(super) mails: Cell<u32>,
    /// How many turns are in flight for it, those in the mailbox included.
    pub(super) queued: Cell<u32>,
    /// The sweep in which it was last asked for anything.
    pub(super) touched: Cell<u64>,
    /// When it was last asked for anything, counted in uses of all actors.
    pub(super) used: Cell<u64>,
    pub(super) actor: RefCell<ActorInstance<U>>,
}

impl<U> LiveActor<U> {
    pub(super) fn new(actor: ActorInstance<U>) -> Rc<Self> {
        let (mails, queued) = (Cell::default(), Cell::default());
        Rc::new(Self { mails, queued, touched: Cell::default(), used: Cell::default(), actor: RefCell::new(actor) })
    }
}

/// The actix actor in front of a [`ActorInstance`]. It holds the actor's only lasting reference.
pub(crate) struct Mailbox(pub(super) Rc<LiveActor>);

/// actix drops an actor whose context has panicked without a word.
impl Drop for Mailbox {
    fn drop(&mut self) {
        if crate::spawn::is_unwinding()
            && let Ok(actor) = self.0.actor.try_borrow()
        {
            actor
                .dispatcher
                .context
                .user_code
                .failed("live actor", &format!("{} `{}` panicked", actor.dispatcher.actor, actor.key));
        }
    }
}

/// What actix gives a mailbox.
pub(crate) type Ctx = Context<Mailbox>;

impl Mailbox {
    pub(super) fn actor(&self) -> RefMut<'_, ActorInstance> {
        self.0.actor.borrow_mut()
    }
}

/// A message that never leaves its thread. actix wants every message to be `Send`, because an address is; the wrapper checks
/// at run time what the doors make sure of, and holds the only unsafe code that needs.
pub(crate) struct Here<T>(pub(crate) SendWrapper<T>);

impl<T> Here<T> {
    pub(crate) fn new(message: T) -> Self {
        Self(SendWrapper::new(message))
    }
}

impl<T> Message for Here<T> {
    type Result = ();
}

/// What a mailbox takes.
pub(super) enum Mail {
    /// A message on its way as an envelope.
    Envelope(Delivered),
    /// A command on its way inside one thread.
    Typed(TypedMail),
    /// A message whose turn was taken outside the mailbox, and has failed.
    Failed(Failed),
}

/// A message on its way as an envelope.
pub(crate) struct Delivered {
    pub(crate) delivery: Delivery,
    pub(crate) permit: Permit,
}

/// A command on its way inside one thread.
pub(super) struct TypedMail {
    pub(super) command: Box<dyn TypedCommand>,
    pub(super) meta: Option<Box<CommandMeta>>,
    pub(super) label: Label,
    pub(super) permit: Permit,
}

/// A message whose turn was taken outside the mailbox, and has failed.
pub(super) struct Failed {
    pub(super) delivery: Delivery,
    pub(super) permit: Permit,
    pub(super) failure: Failure,
}

impl Actor for Mailbox {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.actor().load(ctx, |_, _| {});
    }
}

impl Handler<Here<Mail>> for Mailbox {
    type Result = ();

    fn handle(&mut self, mail: Here<Mail>, ctx: &mut Self::Context) {
        // The message is out of the mailbox.
        self.0.mails.set(self.0.mails.get() - 1);
        let mut actor = self.actor();
        match mail.0.take() {
            Mail::Envelope(delivered) => actor.take(delivered, ctx),
            Mail::Typed(mail) => actor.take_typed(mail, ctx),
            Mail::Failed(Failed { delivery, permit, failure }) => actor.failed(delivery, permit, failure, ctx),
        }
    }
}
