//! The actix actor in front of a [`KeyActor`]: whatever cannot be taken at once waits here, in order.
//!
//! Called by the [door](super::door), which sends, and by actix, which brings one message after the other. Calls the actor.
//! A typed command that finds nothing before it passes the mailbox by, on the [straight way](super::straight).

use std::any::Any;
use std::cell::{Cell, RefCell, RefMut};
use std::rc::Rc;

use actix::{Actor, Context, Handler, Message};
use send_wrapper::SendWrapper;
use tokio::sync::oneshot;

use super::door::{Permit, Run};
use super::keyed::KeyActor;
use super::plan::Stateful;
use super::turn::Failure;
use crate::message::Command;
use crate::router::{AskMeta, Delivery, TypedReply};
use crate::user_code::Label;

/// One live actor with what its door and its permits look at: one allocation, so that a turn touches few places.
pub(crate) struct Live<T: ?Sized> {
    /// How many messages are in its mailbox.
    pub(super) mails: Cell<u32>,
    /// How many turns are in flight for it, those in the mailbox included.
    pub(super) queued: Cell<u32>,
    /// The sweep in which it was last asked for anything.
    pub(super) touched: Cell<u64>,
    /// When it was last asked for anything, counted in uses of all actors.
    pub(super) used: Cell<u64>,
    pub(super) actor: T,
}

/// What a permit knows of an actor: whatever it is of.
pub(super) type AnyLive = Live<dyn Any>;

/// The actor as its door and its mailbox share it. Borrowed for as long as a message is taken, so whoever finds it borrowed
/// was called by its turn.
pub(crate) type LiveActor<A> = Live<RefCell<KeyActor<A>>>;

impl<A: Stateful> LiveActor<A> {
    pub(super) fn new(actor: KeyActor<A>) -> Rc<Self> {
        let (mails, queued) = (Cell::default(), Cell::default());
        Rc::new(Self { mails, queued, touched: Cell::default(), used: Cell::default(), actor: RefCell::new(actor) })
    }
}

/// The actix actor in front of a [`KeyActor`]. It holds the actor's only lasting reference.
pub(crate) struct Mailbox<A: Stateful>(pub(super) Rc<LiveActor<A>>);

/// What actix gives a mailbox.
pub(crate) type Ctx<A> = Context<Mailbox<A>>;

impl<A: Stateful> Mailbox<A> {
    pub(super) fn actor(&self) -> RefMut<'_, KeyActor<A>> {
        self.0.actor.borrow_mut()
    }

    /// The message is out of the mailbox.
    fn opened<T>(&self, message: Here<T>) -> T {
        self.0.mails.set(self.0.mails.get() - 1);
        message.0.take()
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

/// A message on its way as an envelope.
pub(crate) struct Delivered {
    pub(crate) delivery: Delivery,
    pub(crate) permit: Permit,
}

/// A command on its way inside one thread.
pub(crate) struct TypedTurn<A: Stateful, C: Command> {
    pub(crate) command: C,
    pub(crate) meta: Option<Box<AskMeta>>,
    pub(crate) run: Run<A, C>,
    pub(crate) label: Label,
    pub(crate) reply: oneshot::Sender<TypedReply<C>>,
    pub(crate) permit: Permit,
}

/// A message whose turn was taken outside the mailbox, and has failed.
pub(crate) struct Failed {
    pub(crate) delivery: Delivery,
    pub(crate) permit: Permit,
    pub(crate) failure: Failure,
}

impl<A: Stateful> Actor for Mailbox<A> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.actor().load(ctx, |_, _| {});
    }
}

impl<A: Stateful> Handler<Here<Delivered>> for Mailbox<A> {
    type Result = ();

    fn handle(&mut self, delivered: Here<Delivered>, ctx: &mut Self::Context) {
        let delivered = self.opened(delivered);
        self.actor().take(delivered, ctx);
    }
}

impl<A: Stateful, C: Command> Handler<Here<TypedTurn<A, C>>> for Mailbox<A> {
    type Result = ();

    fn handle(&mut self, turn: Here<TypedTurn<A, C>>, ctx: &mut Self::Context) {
        let turn = self.opened(turn);
        self.actor().take_typed(turn, ctx);
    }
}

impl<A: Stateful> Handler<Here<Failed>> for Mailbox<A> {
    type Result = ();

    fn handle(&mut self, failed: Here<Failed>, ctx: &mut Self::Context) {
        let Failed { delivery, permit, failure } = self.opened(failed);
        self.actor().failed(delivery, permit, failure, ctx);
    }
}
