//! The dispatcher of one actor type on one thread: finds the live actor of a key or activates it.
//!
//! Called by the router, by the [command dispatchers](super::command_dispatcher) and by the backlogs. Calls the mailboxes of
//! the actors, and an actor directly if its mailbox is empty. It does not know the type of its actors.
//!
//! Why there are no locks: a key belongs to one shard, and a shard to one thread. The risk is re-entrance: user code may send
//! from inside a turn. So the registry is not borrowed while a turn runs, and a nested command is queued.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use actix::Actor;

use super::actor_type::ActorType;
use super::backlog::{Backlog, Backlogs, Deliver};
use super::live_actor::{
    Delivered, Dispatcher, FailedTurn, LiveActor, Mailbox, MailboxMessage, Permit, RegistryEntry, TypedDelivery,
};
use super::mailbox::LocalMessage;
use super::owned_shard::OwnedShard;
use super::registry::ActorRegistry;
use super::requested::AnyEffects;
use super::thread::ThreadContext;
use super::turn_error::TurnError;
use super::typed_command::{InlineGuard, InlineOutcome, TypedCommand, UncommittedTurn, delivery_of};
use crate::inbox::{MAX_QUEUED_BYTES_PER_KEY, QueuedKind, is_within};
use crate::router::{ActorEndpoint as _, CommandMeta, Delivery, Outcome, SendError};
use whizbang_core::message::{CodecError, Envelope, Key, Name, Shard, shard_of};
use whizbang_core::telemetry::TARGET;
use whizbang_core::user_code::{Label, Panicked};

/// The number of actors sampled to find the one that was idle for longest.
const PROBES: usize = 16;

/// The result of a lookup by key.
enum Lookup<'a> {
    /// An actor that receives messages.
    Live(&'a RegistryEntry, Rc<LiveActor>),
    /// No entry, or the entry of an actor that has ended.
    Absent { key: Rc<str>, died: bool },
    /// An invalid key of this many bytes.
    Invalid(usize),
}

impl RegistryEntry {
    /// Returns the actor, if it can still receive messages.
    fn live(&self) -> Option<Rc<LiveActor>> {
        self.live.upgrade().filter(|_| self.addr.connected())
    }

    /// Returns the last use of an idle actor on the clock of [`ThreadContext::uses`]; `None` if it is busy.
    fn last_use_if_idle(&self) -> Option<u64> {
        self.live.upgrade().map_or(Some(0), |live| (live.queued.get() == 0).then(|| live.last_use.get()))
    }

    pub(super) fn is_idle_since(&self, sweep: u64) -> bool {
        self.live.upgrade().is_none_or(|live| live.queued.get() == 0 && live.last_sweep.get() <= sweep)
    }

    /// Queues a message behind those in the mailbox.
    fn send(&self, live: &LiveActor, message: MailboxMessage) {
        live.mailbox_len.set(live.mailbox_len.get() + 1);
        #[expect(clippy::disallowed_methods, reason = "the permit bounds what is queued; see `admit`")]
        self.addr.do_send(LocalMessage::new(message));
    }
}

pub(super) enum AdmitError {
    /// A limit is reached: of the thread, of the key, or in bytes.
    Busy,
    /// The node stops, or reopens the shard after a failed commit.
    Stopped,
    /// An invalid key of this many bytes.
    InvalidKey(usize),
    /// The user code that returns the key panicked.
    Panicked(Panicked),
    /// The shard is not open here, or is handed over.
    Moved,
}

impl AdmitError {
    /// Returns the error for a shard that is not open.
    fn closed(shard: &OwnedShard) -> Self {
        if shard.is_leaving() { Self::Moved } else { Self::Stopped }
    }
}

/// A message that has no permit yet.
#[expect(
    clippy::large_enum_variant,
    reason = "it is moved into the mailbox or given back, and a box would cost an allocation"
)]
pub(super) enum Unadmitted {
    /// A message as the wire and the log have it.
    Envelope(Delivery),
    /// A command of a caller on this thread.
    Typed(EncodedCommand),
}

/// A typed command with the bytes from which its value was decoded.
pub(super) struct EncodedCommand {
    command: Box<dyn TypedCommand>,
    payload: Vec<u8>,
    meta: Option<Box<CommandMeta>>,
    label: Label,
}

impl Unadmitted {
    fn key(&self) -> Key<'_> {
        match self {
            Self::Envelope(delivery) => Key::from(delivery.envelope.key.as_str()),
            Self::Typed(encoded) => encoded.command.key(),
        }
    }

    /// Returns the bytes that it occupies while it waits.
    fn bytes(&self) -> usize {
        match self {
            Self::Envelope(delivery) => delivery.envelope.payload.len(),
            Self::Typed(encoded) => encoded.payload.len(),
        }
    }

    /// Adds the permit.
    fn with(self, permit: Permit) -> MailboxMessage {
        match self {
            Self::Envelope(delivery) => MailboxMessage::Envelope(Delivered { delivery, permit }),
            Self::Typed(EncodedCommand { command, payload, meta, label }) => {
                MailboxMessage::Typed(TypedDelivery { command, payload, meta, label, permit })
            }
        }
    }
}

impl Dispatcher {
    #[doc(hidden)]
    pub fn new(
        context: Rc<ThreadContext>,
        actor_type: ActorType,
        domain: Name,
        actor: Name,
        shards: Shard,
    ) -> Rc<Self> {
        let keys = RefCell::new(ActorRegistry::new(context.ids.next_u64()));
        let ActorType { table, new_live, .. } = actor_type;
        let label = context.user_code.label(table.facts.name, "");
        Rc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let deliver: Deliver = Rc::new(move |delivery| match me.upgrade() {
                Some(dispatcher) => dispatcher.deliver(delivery),
                None => (delivery.completion)(Outcome::Stopped),
            });
            let effects = RefCell::default();
            let skips_snapshots = Cell::new(false);
            Self {
                context,
                handlers: Rc::new(table),
                domain,
                actor,
                new_live,
                registry: keys,
                spare_effects: effects,
                backlogs: Backlogs::new(shards),
                deliver,
                label,
                commits_at_once: Cell::new(false),
                unrestored: RefCell::default(),
                skips_snapshots,
            }
        })
    }

    /// Admits messages to the keys of an opened shard.
    #[doc(hidden)]
    pub fn open(&self, shard: &Rc<OwnedShard>) {
        self.commits_at_once.set(shard.writer.borrow().commits_at_once());
        self.backlogs.open(Backlog::new(&self.context, shard, &self.actor, &self.deliver));
    }

    /// Returns the name of the health note for skipped snapshots.
    pub(super) fn snapshots_name(&self) -> String {
        format!("snapshots of `{}.{}`", self.domain, self.actor)
    }

    /// Returns the name of the health note for snapshots that cannot be restored.
    pub(super) fn restore_name(&self) -> String {
        format!("restored {}", self.snapshots_name())
    }

    /// Takes the buffers for one turn. They are put back after it, so their memory is reused.
    pub(crate) fn take_effects(&self) -> Box<dyn AnyEffects> {
        let kept = self.spare_effects.borrow_mut().take();
        kept.unwrap_or_else(|| {
            (self.handlers.new_effects)(Rc::clone(&self.handlers.identity), self.context.monotonic.clone())
        })
    }

    /// Keeps the buffers of a turn for the next one.
    pub(crate) fn put_effects(&self, effects: Box<dyn AnyEffects>) {
        *self.spare_effects.borrow_mut() = Some(effects);
    }

    /// Returns whether the thread may have one more turn in flight.
    fn has_capacity(&self) -> bool {
        self.context.in_flight.get() < self.context.settings.in_flight
    }

    /// Returns whether a key may have one more message of a caller in flight.
    fn key_has_capacity(&self, live: &LiveActor, bytes: usize) -> bool {
        live.queued.get() < self.context.settings.in_flight_per_key
            && is_within(live.queued_bytes.get(), bytes, MAX_QUEUED_BYTES_PER_KEY)
    }

    /// Queues `message` with a permit for the actor of its key, and activates the actor if necessary.
    ///
    /// It does not clone the address, because a clone allocates.
    ///
    /// # Errors
    /// The reason for the refusal, and `message` unchanged.
    #[expect(clippy::result_large_err, reason = "the error is the message itself, which is given back")]
    pub(super) fn admit(self: &Rc<Self>, message: Unadmitted, inside: bool) -> Result<(), (AdmitError, Unadmitted)> {
        let context = &self.context;
        if context.stopped.get() || (context.draining.get() && !inside) {
            return Err((AdmitError::Stopped, message));
        }
        let bytes = message.bytes();
        // Messages of the node itself (events, timers) were bounded where they were read.
        if !(inside || self.has_capacity() && context.queued.fits(QueuedKind::Callers, bytes)) {
            context.counts.busy.one();
            return Err((AdmitError::Busy, message));
        }
        let held = (if inside { QueuedKind::Messages } else { QueuedKind::Callers }, bytes);
        let keys = self.registry.borrow();
        let lookup = context.user_code.call(self.label, || {
            let key = message.key();
            let entry = keys.get(key.as_str());
            match entry.and_then(|entry| Some((entry, entry.live()?))) {
                Some((entry, live)) => Lookup::Live(entry, live),
                None if key.is_valid() => Lookup::Absent { key: Rc::from(key.as_str()), died: entry.is_some() },
                None => Lookup::Invalid(key.as_str().len()),
            }
        });
        let (key, died) = match lookup {
            Err(panicked) => return Err((AdmitError::Panicked(panicked), message)),
            Ok(Lookup::Invalid(bytes)) => return Err((AdmitError::InvalidKey(bytes), message)),
            Ok(Lookup::Live(_, live)) if !live.shard.is_open() => {
                return Err((AdmitError::closed(&live.shard), message));
            }
            Ok(Lookup::Live(entry, live)) => {
                if !inside && !self.key_has_capacity(&live, bytes) {
                    context.counts.busy.one();
                    return Err((AdmitError::Busy, message));
                }
                // `send` queues the message and wakes a task. Nothing re-enters while the registry is borrowed.
                entry.send(&live, message.with(self.new_permit(&live, Some(held))));
                return Ok(());
            }
            Ok(Lookup::Absent { key, died }) => (key, died),
        };
        drop(keys);
        let Some(backlog) = self.backlogs.get(shard_of(&key, self.backlogs.shards())) else {
            return Err((AdmitError::Moved, message));
        };
        if !backlog.shard.is_open() {
            return Err((AdmitError::closed(&backlog.shard), message));
        }
        if died {
            // Two entries for one key would be two actors that decide on one stream.
            tracing::error!(target: TARGET, actor = %self.actor, %key, "live actor ended unexpectedly; activated again");
            drop(self.registry.borrow_mut().remove(&key));
        }
        self.passivate_over_limit();
        let live = (self.new_live)(Rc::clone(self), Rc::clone(&backlog.shard), Rc::clone(&key));
        live.actor.borrow_mut().stuck = backlog.take_failures(&key);
        let entry = RegistryEntry { addr: Mailbox(Rc::clone(&live)).start(), live: Rc::downgrade(&live) };
        entry.send(&live, message.with(self.new_permit(&live, Some(held))));
        context.counts.activations.one();
        self.registry.borrow_mut().add(key, entry);
        Ok(())
    }

    /// Passivates idle actors until there is capacity for one more below `live_actors`.
    ///
    /// Busy actors stay, so more than that may be live; `in_flight` bounds those. This is a sampled LRU: it looks at the next
    /// [`PROBES`] entries and passivates the one that was idle for longest. Its cost does not grow with the number of actors.
    /// If all of them are busy it passivates none, and catches up later, two at a time.
    fn passivate_over_limit(&self) {
        let limit = self.context.settings.live_actors;
        let mut gone = Vec::new();
        {
            let mut keys = self.registry.borrow_mut();
            while keys.len() >= limit && gone.len() < 2 {
                let mut oldest: Option<(u64, usize)> = None;
                for _ in 0..PROBES {
                    let (at, entry) = keys.advance_cursor();
                    let idle = entry.and_then(RegistryEntry::last_use_if_idle).map(|used| (used, at));
                    oldest = idle.into_iter().chain(oldest).min();
                }
                let Some((_, at)) = oldest else { break };
                gone.extend(keys.remove_at(at));
            }
        }
        // Outside the borrow: dropping the last address ends the actor.
        self.passivate(gone);
    }

    /// Ends actors that have nothing queued, and of which no other address exists. Keeps their failures.
    pub(super) fn passivate(&self, gone: Vec<RegistryEntry>) {
        self.context.counts.passivations.many(gone.len() as u64);
        for live in gone.iter().filter_map(|entry| entry.live.upgrade()) {
            if let Ok(mut actor) = live.actor.try_borrow_mut()
                && actor.stuck.is_failing()
                && let Some(backlog) = actor.backlog()
            {
                let failures = std::mem::take(&mut actor.stuck);
                backlog.keep_failures(&actor.key, failures);
            }
        }
    }

    /// Creates the permit of a message. One that runs at once holds no bytes.
    fn new_permit(&self, live: &Rc<LiveActor>, held: Option<(QueuedKind, usize)>) -> Permit {
        live.queued.set(live.queued.get() + 1);
        live.last_sweep.set(self.context.sweeps.get());
        live.last_use.set(self.context.uses.replace(self.context.uses.get() + 1));
        let in_flight = self.context.track_in_flight(&live.shard);
        let Some((kind, bytes)) = held else {
            return Permit { in_flight, live: Rc::clone(live), bytes: 0 };
        };
        live.queued_bytes.set(live.queued_bytes.get() + bytes);
        Permit { in_flight: in_flight.holding(kind, bytes), live: Rc::clone(live), bytes }
    }

    /// Returns the actor of a key, if it is live and its mailbox is empty.
    fn find_unoccupied(&self, key: &str) -> Option<Rc<LiveActor>> {
        let live = self.registry.borrow().get(key)?.live.upgrade()?;
        (live.mailbox_len.get() == 0 && live.queued.get() < self.context.settings.in_flight_per_key).then_some(live)
    }

    /// Submits a command to an actor of this thread. Runs its turn inline if nothing is queued before it; otherwise returns
    /// the [continuation](Self::proceed).
    pub(super) fn submit(
        self: &Rc<Self>,
        command: &mut dyn TypedCommand,
        meta: Option<Box<CommandMeta>>,
        label: Label,
    ) -> Result<Result<(), SendError>, Continuation> {
        let InlineRun { outcome, permit, live } = match self.try_inline(command, meta, label) {
            Ok(outcome) => outcome,
            Err(meta) => return Err(Continuation(NextStep::Queue(meta))),
        };
        match outcome {
            InlineOutcome::Done(result) => {
                drop(permit);
                Ok(result)
            }
            InlineOutcome::Pending(appended) => Err(Continuation(NextStep::Commit(appended, permit))),
            InlineOutcome::Failed(failed) => Err(Continuation(NextStep::Recover(failed, permit, live))),
        }
    }

    /// Continues a command whose sender has to wait.
    pub(super) fn proceed(self: &Rc<Self>, mut command: Box<dyn TypedCommand>, label: Label, next: Continuation) {
        match next.0 {
            NextStep::Queue(meta) => self.queue(command, meta, label),
            NextStep::Commit(appended, permit) => {
                let shard = Rc::clone(&permit.live.shard);
                self.context.after_ticket(&shard, appended.ticket, move |committed| {
                    drop(permit);
                    command.complete(appended.result(committed));
                });
            }
            NextStep::Recover(failed, permit, live) => {
                let (envelope, failure) = *failed;
                self.context.clear_command(label, &mut *command);
                self.recover(&live, FailedTurn { delivery: delivery_of(envelope, command), permit, failure });
            }
        }
    }

    /// Queues a command in the mailbox of its actor, or refuses it. It is encoded first: the bytes show how much memory it
    /// occupies, and its turn needs them.
    fn queue(self: &Rc<Self>, mut command: Box<dyn TypedCommand>, meta: Option<Box<CommandMeta>>, label: Label) {
        // A refusal for lack of capacity costs no encoding.
        let payload = if self.has_capacity() { self.encode_command(&mut *command, Vec::new()) } else { Ok(Vec::new()) };
        let payload = match payload {
            Ok(payload) => payload,
            Err((error, _)) => return command.complete(Err(SendError::Encode(error))),
        };
        let unadmitted = Unadmitted::Typed(EncodedCommand { command, payload, meta, label });
        let Err((refused, Unadmitted::Typed(EncodedCommand { command, meta, .. }))) = self.admit(unadmitted, false)
        else {
            return;
        };
        let domain = command.facts().domain.to_owned();
        match refused {
            AdmitError::Busy => command.give_back(SendError::Busy { domain }, meta),
            AdmitError::Stopped => command.give_back(SendError::Stopped, meta),
            AdmitError::Moved => command.give_back(SendError::Moved { domain }, meta),
            AdmitError::InvalidKey(bytes) => command.complete(Err(SendError::Key { bytes })),
            AdmitError::Panicked(panicked) => {
                let reason = format!("computing the key {panicked}");
                command.complete(Err(SendError::Encode(CodecError::Encode { reason })));
            }
        }
    }

    /// Runs a command's turn inline if nothing is queued before it, or returns its metadata.
    ///
    /// If nothing is in flight on this thread, a turn that has to wait for its commit is queued: everything that is ready runs
    /// first, and then it is known whether the turn is [alone](ThreadContext::is_alone).
    fn try_inline(
        self: &Rc<Self>,
        command: &mut dyn TypedCommand,
        meta: Option<Box<CommandMeta>>,
        label: Label,
    ) -> Result<InlineRun, Option<Box<CommandMeta>>> {
        let context = &self.context;
        let is_open = !context.stopped.get() && !context.draining.get() && self.has_capacity();
        // A handler that sends a command re-enters here. Its command is queued until the turn is over.
        if !is_open || context.inline_running.get() || !(self.commits_at_once.get() || context.in_flight.get() > 0) {
            return Err(meta);
        }
        let live = context.user_code.call(label, || self.find_unoccupied(command.key().as_str())).ok().flatten();
        let Some(live) = live else { return Err(meta) };
        let Ok(mut actor) = live.actor.try_borrow_mut() else { return Err(meta) };
        if !actor.may_run_inline(meta.as_deref()) {
            return Err(meta);
        }
        let permit = self.new_permit(&live, None);
        // Reset on unwinding as well: a panic must not disable inline turns on this thread forever.
        let open = InlineGuard::enter(&context.inline_running);
        let outcome = actor.run_inline(command, meta, label);
        drop((open, actor));
        Ok(InlineRun { outcome, permit, live })
    }

    /// Recovers from a failed inline turn. The failure is queued before any other message of the key.
    fn recover(&self, live: &LiveActor, failed: FailedTurn) {
        let key = Rc::clone(&live.actor.borrow().key);
        match self.registry.borrow().get(&key) {
            Some(entry) => entry.send(live, MailboxMessage::Failed(failed)),
            None => (failed.delivery.completion)(Outcome::Stopped),
        }
    }
}

/// The result of an inline turn.
struct InlineRun {
    outcome: InlineOutcome,
    permit: Permit,
    live: Rc<LiveActor>,
}

/// The continuation of a command whose sender has to wait.
pub(super) struct Continuation(NextStep);

enum NextStep {
    /// Queue it in the mailbox of its actor.
    Queue(Option<Box<CommandMeta>>),
    /// Reply after the commit.
    Commit(UncommittedTurn, Permit),
    /// Recover from the failed turn.
    Recover(Box<(Envelope, TurnError)>, Permit, Rc<LiveActor>),
}

#[cfg(test)]
mod tests;
