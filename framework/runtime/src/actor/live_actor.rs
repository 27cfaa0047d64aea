//! The structs of a live actor: its dispatcher, its mailbox, and the messages between them.
//!
//! They own or refer to each other, so they are declared together. Their behavior is in the files that need them: the
//! [dispatcher](super::dispatcher), the [mailbox](super::mailbox), the [instance](super::instance), the [turn](super::turn),
//! and [inline turns](super::inline).

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use actix::{Addr, Context};

use super::back_off::BackOffQueue;
use super::backlog::{Backlogs, Deliver};
use super::handler_table::HandlerTable;
use super::owned_shard::OwnedShard;
use super::registry::ActorRegistry;
use super::requested::AnyEffects;
use super::state::KeyState;
use super::stuck_key::StuckKey;
use super::thread::{InFlightGuard, ThreadContext};
use super::turn_error::TurnError;
use super::typed_command::TypedCommand;
use super::user_state::UserSlot;
use crate::router::{CommandMeta, Delivery};
use whizbang_core::message::{MessageId, Name};
use whizbang_core::store::{StoreError, StreamHint, Ticket};
use whizbang_core::user_code::Label;

/// Creates a live actor without a state.
pub(super) type NewLive = fn(Rc<Dispatcher>, Rc<OwnedShard>, Rc<str>) -> Rc<LiveActor>;

/// The dispatcher of one actor type on one thread.
pub struct Dispatcher {
    pub(crate) context: Rc<ThreadContext>,
    /// The handlers of the actor type.
    pub(crate) handlers: Rc<HandlerTable>,
    pub(crate) domain: Name,
    pub(crate) actor: Name,
    /// Creates a live actor of the type.
    pub(super) new_live: NewLive,
    /// The live actors by key. Not borrowed while user code runs.
    pub(super) registry: RefCell<ActorRegistry<RegistryEntry>>,
    /// The buffers of the last turn, for the next one.
    pub(super) spare_effects: RefCell<Option<Box<dyn AnyEffects>>>,
    /// The shards that are open on this thread, with their deferred messages.
    pub(super) backlogs: Backlogs,
    /// Delivers a deferred message.
    pub(super) deliver: Deliver,
    /// The label of user code that runs for no particular message.
    pub(super) label: Label,
    /// True if appends of this actor type are durable when they return.
    pub(super) commits_at_once: Cell<bool>,
    /// The first key whose snapshot could not be restored, until one of it is.
    pub(super) unrestored: RefCell<Option<Rc<str>>>,
    /// True if the last snapshot was skipped because the state cannot be saved.
    pub(super) skips_snapshots: Cell<bool>,
}

/// A live actor. Dropping the last address stops the mailbox and with it the actor.
pub(super) struct RegistryEntry {
    /// The only permanent address of the mailbox.
    pub(super) addr: Addr<Mailbox>,
    pub(super) live: Weak<LiveActor>,
}

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

/// The actix context of a mailbox.
pub(crate) type Ctx = Context<Mailbox>;

impl Mailbox {
    /// Borrows the actor for one message.
    pub(super) fn actor(&self) -> RefMut<'_, ActorInstance> {
        self.0.actor.borrow_mut()
    }
}

/// The live actor of one key. While it loads, waits for a commit or looks up an id it [holds](Self::hold) its mailbox, so the
/// order of its messages never changes.
pub(crate) struct ActorInstance<U: ?Sized = dyn UserSlot> {
    /// The dispatcher of its type on this thread.
    pub(crate) dispatcher: Rc<Dispatcher>,
    /// The shard of its key, in the opening in which the actor was activated.
    pub(crate) shard: Rc<OwnedShard>,
    pub(crate) key: Rc<str>,
    /// The state of the framework: counters, deduplication, timers, compensation, parked messages.
    pub(crate) state: KeyState,
    /// The generation of the shard at the activation. In a later one the actor handles nothing.
    pub(crate) generation: u64,
    /// The hint of the shard's writer for this stream.
    pub(super) stream: StreamHint,
    /// The last append that is not known to be durable.
    pub(crate) last_append: Cell<Option<Ticket>>,
    /// The ids without a time of turns that may not be durable, oldest first. The store finds an id only once its turn is.
    #[allow(clippy::box_collection, reason = "few actors have one, and every live actor pays for the field")]
    pub(super) uncommitted_ids: Option<Box<VecDeque<(Ticket, MessageId)>>>,
    /// The error of the last load. The next message loads again.
    pub(crate) load_error: Option<Box<StoreError>>,
    /// The failures of the store since its last success.
    pub(super) stuck: StuckKey,
    /// The message whose attempt was recorded before it began.
    pub(super) recorded_attempt: Option<RecordedAttempt>,
    /// The number of pending [holds](Self::hold).
    pub(super) holds: u32,
    /// The messages that arrived during a back-off and are not written to the backlog.
    pub(super) back_off: Option<Box<BackOffQueue<Delivered>>>,
    /// The user's state. Stored in place and not behind a pointer, because each turn reads it.
    pub(super) user: U,
}

/// A message whose attempt was recorded before it began.
pub(super) struct RecordedAttempt {
    pub(super) id: MessageId,
    /// A layer was busy, so the attempt has ended without its handler. Its record holds for the next one.
    pub(super) is_refused: bool,
}

impl<U> ActorInstance<U> {
    pub(crate) fn new(dispatcher: Rc<Dispatcher>, shard: Rc<OwnedShard>, key: Rc<str>, user: U) -> Self {
        let generation = shard.generation.get();
        Self {
            dispatcher,
            shard,
            key,
            state: KeyState::default(),
            generation,
            stream: StreamHint::default(),
            last_append: Cell::new(None),
            uncommitted_ids: None,
            load_error: None,
            stuck: StuckKey::default(),
            recorded_attempt: None,
            holds: 0,
            back_off: None,
            user,
        }
    }
}

/// The right to have one turn in flight. It is returned when the turn is completed, or dropped with it.
pub(crate) struct Permit {
    pub(super) in_flight: InFlightGuard,
    pub(super) live: Rc<LiveActor>,
    pub(super) bytes: usize,
}

impl Permit {
    /// Ends the time in flight of a message that the store refuses to record.
    pub(super) fn wait_unrecorded(&mut self) {
        self.in_flight.wait_unrecorded();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.live.queued.set(self.live.queued.get() - 1);
        self.live.queued_bytes.set(self.live.queued_bytes.get() - self.bytes);
    }
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
