//! The door of one actor type on one thread: finds the live actor of a key, or starts it.
//!
//! Called by the router, by the [typed doors](super::command_dispatcher) of commands and by the backlogs. Calls the mailboxes of the actors,
//! and the actor itself where nothing is before a command. It does not know the type of its actors.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use actix::{Actor, Addr};
use futures_util::future::LocalBoxFuture;

use super::backlog::{Backlog, Backlogs, Deliver};
use super::handler_table::HandlerTable;
use super::inline::{Appended, InlineGuard, InlineOutcome, TypedCommand, delivery};
use super::mailbox::{Delivered, Failed, Here, LiveActor, Mail, Mailbox, TypedMail};
use super::registry::ActorRegistry;
use super::requested::AnyEffects;
use super::thread::{InFlightGuard, OwnedShard, ThreadContext};
use super::turn::Failure;
use crate::message::{CodecError, Envelope, Key, Name, shard_of};
use crate::router::{ActorEndpoint, CommandMeta, Delivery, Outcome, SendError};
use crate::store::StoreError;
use crate::telemetry::TARGET;
use crate::user_code::{Label, Panicked};

/// The door of one actor type on one thread.
pub(crate) struct Dispatcher {
    pub(crate) context: Rc<ThreadContext>,
    pub(crate) handlers: Rc<HandlerTable>,
    pub(crate) domain: Name,
    pub(crate) actor: Name,
    /// By number; `None` for those that live on another thread.
    pub(crate) shards: Vec<Option<Rc<OwnedShard>>>,
    keys: RefCell<ActorRegistry<Entry>>,
    effects: RefCell<Option<Box<dyn AnyEffects>>>,
    /// The messages that wait for their keys.
    pub(super) backlogs: Backlogs,
    /// Under which its user code runs where no message is known.
    pub(super) label: Label,
    /// Whether what these actors append is committed at once.
    commits_at_once: bool,
    /// Whether the last snapshot was skipped because the state cannot be saved.
    pub(super) skips_snapshots: Cell<bool>,
}

/// A live actor. Dropping the last address ends it, and with its mailbox it goes.
struct Entry {
    addr: Addr<Mailbox>,
    live: Weak<LiveActor>,
}

/// How many actors are looked at to find an idle one that was not used for long.
const PROBES: usize = 16;

/// What is found for a key.
enum Looked<'a> {
    Live(&'a Entry, Rc<LiveActor>),
    /// Nothing, or an entry whose actor is dead.
    Absent {
        key: Rc<str>,
        died: bool,
    },
    /// No key has so many bytes.
    Invalid(usize),
}

impl Entry {
    /// The actor, if it can still take messages.
    fn live(&self) -> Option<Rc<LiveActor>> {
        self.live.upgrade().filter(|_| self.addr.connected())
    }

    /// When the actor was last used, counted in uses of all; `None` if it is busy.
    fn idle_since(&self) -> Option<u64> {
        self.live.upgrade().map_or(Some(0), |live| (live.queued.get() == 0).then(|| live.used.get()))
    }

    fn is_resting(&self, touched_before: u64) -> bool {
        self.live.upgrade().is_none_or(|live| live.queued.get() == 0 && live.touched.get() <= touched_before)
    }

    /// Queues a message: it waits behind those that are in the mailbox.
    fn send(&self, live: &LiveActor, message: Mail) {
        live.mails.set(live.mails.get() + 1);
        #[expect(clippy::disallowed_methods, reason = "the permit bounds what is queued; see `admit`")]
        self.addr.do_send(Here::new(message));
    }
}

/// The right to have one turn in flight. It is given back when the turn is settled, whatever happens to it.
pub(crate) struct Permit {
    /// Taken away from what is not under way but waits for an operator.
    pub(super) flight: Option<InFlightGuard>,
    live: Rc<LiveActor>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.live.queued.set(self.live.queued.get() - 1);
    }
}

enum Refused {
    Busy,
    Stopped,
    /// The key has so many bytes.
    Key(usize),
    /// Choosing the key panicked.
    Panicked(Panicked),
    NotHere,
}

/// A message that has no permit yet.
#[expect(
    clippy::large_enum_variant,
    reason = "it is moved into the mailbox or given back, and a box would cost an allocation"
)]
enum Letter {
    Envelope(Delivery),
    Typed(Box<dyn TypedCommand>, Option<Box<CommandMeta>>, Label),
}

impl Letter {
    fn key(&self) -> Key<'_> {
        match self {
            Self::Envelope(delivery) => Key::from(delivery.envelope.key.as_str()),
            Self::Typed(command, ..) => command.key(),
        }
    }

    fn with(self, permit: Permit) -> Mail {
        match self {
            Self::Envelope(delivery) => Mail::Envelope(Delivered { delivery, permit }),
            Self::Typed(command, meta, label) => Mail::Typed(TypedMail { command, meta, label, permit }),
        }
    }
}

impl Dispatcher {
    pub(crate) fn new(
        host: Rc<ThreadContext>,
        plan: Rc<HandlerTable>,
        domain: Name,
        actor: Name,
        shards: Vec<Option<Rc<OwnedShard>>>,
    ) -> Rc<Self> {
        let keys = RefCell::new(ActorRegistry::new(host.ids.next_u64()));
        let commits_at_once = shards.iter().flatten().all(|shard| shard.writer.borrow().commits_at_once());
        let label = host.user_code.label(plan.facts.name, "");
        Rc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let deliver: Deliver = Rc::new(move |delivery| match me.upgrade() {
                Some(door) => door.deliver(delivery),
                None => (delivery.completion)(Outcome::Stopped),
            });
            let backlogs = Backlogs::new(&host, &shards, &actor, &deliver);
            let effects = RefCell::default();
            let skips_snapshots = Cell::new(false);
            Self {
                context: host,
                handlers: plan,
                domain,
                actor,
                shards,
                keys,
                effects,
                backlogs,
                label,
                commits_at_once,
                skips_snapshots,
            }
        })
    }

    /// The name under which the health notes snapshots that are skipped.
    pub(super) fn snapshots_name(&self) -> String {
        format!("snapshots of `{}.{}`", self.domain, self.actor)
    }

    /// Buffers for one turn; taken while it runs, so that their memory is used again.
    pub(crate) fn take_effects(&self) -> Box<dyn AnyEffects> {
        let kept = self.effects.borrow_mut().take();
        kept.unwrap_or_else(|| (self.handlers.facts.effects)(Rc::clone(&self.handlers), self.context.monotonic.clone()))
    }

    pub(crate) fn put_effects(&self, effects: Box<dyn AnyEffects>) {
        *self.effects.borrow_mut() = Some(effects);
    }

    /// Whether there is room for one more.
    fn has_room(&self) -> bool {
        self.context.in_flight.get() < self.context.settings.in_flight
    }

    /// Sends `what`, with a permit for one turn, to the actor of its key, which is started if need be.
    ///
    /// It is not done with a clone of the address, because a clone allocates.
    ///
    /// # Errors
    /// Why it is refused, and `what` again.
    #[expect(clippy::result_large_err, reason = "the error is the message itself, which is given back")]
    fn admit(self: &Rc<Self>, what: Letter, inside: bool) -> Result<(), (Refused, Letter)> {
        let host = &self.context;
        if host.stopped.get() || (host.draining.get() && !inside) {
            return Err((Refused::Stopped, what));
        }
        // What the node itself brings (events, its own timers) was bounded where it was pulled in.
        if !inside && !self.has_room() {
            host.counts.busy.one();
            return Err((Refused::Busy, what));
        }
        let keys = self.keys.borrow();
        let looked = host.user_code.call(self.label, || {
            let key = what.key();
            let entry = keys.get(key.as_str());
            match entry.and_then(|entry| Some((entry, entry.live()?))) {
                Some((entry, live)) => Looked::Live(entry, live),
                None if key.is_valid() => Looked::Absent { key: Rc::from(key.as_str()), died: entry.is_some() },
                None => Looked::Invalid(key.as_str().len()),
            }
        });
        let (key, died) = match looked {
            Err(panicked) => return Err((Refused::Panicked(panicked), what)),
            Ok(Looked::Invalid(bytes)) => return Err((Refused::Key(bytes), what)),
            Ok(Looked::Live(entry, live)) => {
                if !inside && live.queued.get() >= host.settings.in_flight_per_key {
                    host.counts.busy.one();
                    return Err((Refused::Busy, what));
                }
                // Sending queues the message and wakes a task: nothing comes back here while the map is borrowed.
                entry.send(&live, what.with(self.permit(&live)));
                return Ok(());
            }
            Ok(Looked::Absent { key, died }) => (key, died),
        };
        drop(keys);
        let shards = u16::try_from(self.shards.len()).unwrap_or(u16::MAX);
        let shard = usize::from(shard_of(&key, shards));
        let Some(Some(shard)) = self.shards.get(shard) else { return Err((Refused::NotHere, what)) };
        if died {
            // Two entries of one key would be two actors that decide on one stream.
            tracing::error!(target: TARGET, actor = %self.actor, %key, "live actor ended unexpectedly; activated again");
            drop(self.keys.borrow_mut().remove(&key));
        }
        self.make_room();
        let live = (self.handlers.facts.live)(Rc::clone(self), Rc::clone(shard), Rc::clone(&key));
        let entry = Entry { addr: Mailbox(Rc::clone(&live)).start(), live: Rc::downgrade(&live) };
        entry.send(&live, what.with(self.permit(&live)));
        host.counts.activations.one();
        self.keys.borrow_mut().add(key, entry);
        Ok(())
    }

    /// Passivates idle actors so that one more can be live below `live_actors`.
    ///
    /// Busy actors stay, so there may be more of them than that; `in_flight` bounds those. For each that goes, the next
    /// [`PROBES`] in a round of all are looked at and the one goes that was not used for longest: a sampled LRU, whose cost does
    /// not grow with the number of actors. If all of these are busy none goes, which is made up for later, two at a time.
    fn make_room(&self) {
        let limit = self.context.settings.live_actors;
        let mut gone = Vec::new();
        {
            let mut keys = self.keys.borrow_mut();
            while keys.len() >= limit && gone.len() < 2 {
                let mut oldest: Option<(u64, usize)> = None;
                for _ in 0..PROBES {
                    let (at, entry) = keys.turn_hand();
                    let idle = entry.and_then(Entry::idle_since).map(|used| (used, at));
                    oldest = idle.into_iter().chain(oldest).min();
                }
                let Some((_, at)) = oldest else { break };
                gone.extend(keys.take_out(at));
            }
        }
        self.context.counts.passivations.many(gone.len() as u64);
        // Outside the borrow: dropping the last address ends the actor.
        drop(gone);
    }

    fn permit(&self, live: &Rc<LiveActor>) -> Permit {
        live.queued.set(live.queued.get() + 1);
        live.touched.set(self.context.sweeps.get());
        live.used.set(self.context.uses.replace(self.context.uses.get() + 1));
        Permit { flight: Some(self.context.track_in_flight()), live: Rc::clone(live) }
    }

    /// The actor of a key, if it is live and nothing is in its mailbox.
    fn unoccupied(&self, key: &str) -> Option<Rc<LiveActor>> {
        let live = self.keys.borrow().get(key)?.live.upgrade()?;
        (live.mails.get() == 0 && live.queued.get() < self.context.settings.in_flight_per_key).then_some(live)
    }

    /// Asks an actor of this thread: takes the command's turn here and now if nothing is before it. Otherwise it says how the
    /// command [goes on](Self::go_on).
    pub(super) fn ask(
        self: &Rc<Self>,
        command: &mut dyn TypedCommand,
        meta: Option<Box<CommandMeta>>,
        label: Label,
    ) -> Result<Result<(), SendError>, Later> {
        let AtOnce { taken, permit, live } = match self.at_once(command, meta, label) {
            Ok(taken) => taken,
            Err(meta) => return Err(Later(Next::Queue(meta))),
        };
        match taken {
            InlineOutcome::Told(told) => {
                drop(permit);
                Ok(told)
            }
            InlineOutcome::Appended(appended) => Err(Later(Next::Commit(appended, permit))),
            InlineOutcome::Failed(failed) => Err(Later(Next::Mend(failed, permit, live))),
        }
    }

    /// Goes on with a command whose sender has to wait.
    pub(super) fn go_on(self: &Rc<Self>, mut command: Box<dyn TypedCommand>, label: Label, later: Later) {
        match later.0 {
            Next::Queue(meta) => {
                if let Err((refused, letter)) = self.admit(Letter::Typed(command, meta, label), false)
                    && let Letter::Typed(command, ..) = letter
                {
                    let domain = || command.facts().domain.to_owned();
                    let refused = match refused {
                        Refused::Busy => SendError::Busy { domain: domain() },
                        Refused::Stopped | Refused::NotHere => SendError::Stopped,
                        Refused::Key(bytes) => SendError::Key { bytes },
                        Refused::Panicked(panicked) => {
                            SendError::Encode(CodecError::Encode { reason: format!("choosing the key {panicked}") })
                        }
                    };
                    command.tell(Err(refused));
                }
            }
            Next::Commit(appended, permit) => self.context.after_ticket(appended.ticket, move |committed| {
                drop(permit);
                command.tell(appended.told(committed));
            }),
            Next::Mend(failed, permit, live) => {
                let (envelope, failure) = *failed;
                command.forget();
                self.mend(&live, Failed { delivery: delivery(envelope, command), permit, failure });
            }
        }
    }

    /// Takes a command's turn here and now if nothing is before it, or gives back what came with it.
    ///
    /// While nothing is in flight on this thread a turn that has to wait for its commit is not taken at once: from the mailbox
    /// it comes behind all that is ready to run, and so it is known whether it is [alone](ThreadContext::is_alone).
    fn at_once(
        self: &Rc<Self>,
        command: &mut dyn TypedCommand,
        meta: Option<Box<CommandMeta>>,
        label: Label,
    ) -> Result<AtOnce, Option<Box<CommandMeta>>> {
        let host = &self.context;
        let is_open = !host.stopped.get() && !host.draining.get() && self.has_room();
        // A handler that sends is a strange one. What it sends waits until its turn is over.
        if !is_open || host.inline_allowed.get() || !(self.commits_at_once || host.in_flight.get() > 0) {
            return Err(meta);
        }
        let live = host.user_code.call(label, || self.unoccupied(command.key().as_str())).ok().flatten();
        let Some(live) = live else { return Err(meta) };
        let Ok(mut actor) = live.actor.try_borrow_mut() else { return Err(meta) };
        if !actor.may_run_inline(meta.as_deref()) {
            return Err(meta);
        }
        let permit = self.permit(&live);
        // Reset however the turn ends: a panic here would close the direct way of the thread for good.
        let open = InlineGuard::close(&host.inline_allowed);
        let taken = actor.run_inline(command, meta, label);
        drop((open, actor));
        Ok(AtOnce { taken, permit, live })
    }

    /// Has something done about a turn that was taken at once and has failed. Nothing else of the key is taken before that.
    fn mend(&self, live: &LiveActor, failed: Failed) {
        let key = Rc::clone(&live.actor.borrow().key);
        match self.keys.borrow().get(&key) {
            Some(entry) => entry.send(live, Mail::Failed(failed)),
            None => (failed.delivery.completion)(Outcome::Stopped),
        }
    }
}

/// A command that was taken at once.
struct AtOnce {
    taken: InlineOutcome,
    permit: Permit,
    live: Rc<LiveActor>,
}

/// The continuation of a command whose sender has to wait.
pub(super) struct Later(Next);

enum Next {
    /// Into the mailbox of its actor.
    Queue(Option<Box<CommandMeta>>),
    /// Its sender is told after the commit.
    Commit(Appended, Permit),
    /// Its turn has failed.
    Mend(Box<(Envelope, Failure)>, Permit, Rc<LiveActor>),
}

impl ActorEndpoint for Rc<Dispatcher> {
    fn deliver(&self, delivery: Delivery) {
        let inside = !matches!(delivery.dedup_key, crate::router::DedupKey::MessageId);
        let admitted = self.admit(Letter::Envelope(delivery), inside);
        if let Err((refused, Letter::Envelope(delivery))) = admitted {
            let outcome = match refused {
                Refused::Busy => Outcome::Busy,
                Refused::Stopped | Refused::NotHere => Outcome::Stopped,
                Refused::Key(_) => Outcome::Undecodable("a key has 1 to 256 bytes".to_owned()),
                Refused::Panicked(panicked) => Outcome::Undecodable(format!("choosing the key {panicked}")),
            };
            (delivery.completion)(outcome);
        }
    }

    fn key_of(&self, event: &Envelope) -> Result<Option<String>, String> {
        if let Some(error) = self.context.settings.shapes.refusal(event) {
            return Err(error.to_string());
        }
        match self.handlers.reacts.get(&(event.domain.as_str(), event.name.as_str())) {
            Some((key_of, _)) => self
                .context
                .user_code
                .call(self.label, || key_of(event))
                .unwrap_or_else(|panicked| Err(CodecError::Decode { reason: format!("cannot be read: {panicked}") }))
                .map_err(|error| error.to_string()),
            None => Ok(None),
        }
    }

    fn live_count(&self) -> usize {
        self.keys.borrow().len()
    }

    fn passivate_idle(&self, idle_sweeps: u64, cap: usize) {
        let now = self.context.sweeps.get();
        let mut gone = Vec::new();
        {
            let mut keys = self.keys.borrow_mut();
            let oldest = now.checked_sub(idle_sweeps);
            if let Some(oldest) = oldest {
                gone.extend(keys.extract(|entry| entry.is_resting(oldest)));
            }
            if keys.len() > cap {
                // Find the touch time below which enough are resting; a count per sweep, not a sort of all keys.
                let mut excess = keys.len() - cap;
                let mut by_touch = std::collections::BTreeMap::<u64, usize>::new();
                let live = keys.values().filter_map(|entry| entry.live.upgrade());
                for resting in live.filter(|live| live.queued.get() == 0) {
                    *by_touch.entry(resting.touched.get()).or_default() += 1;
                }
                let mut limit = None;
                let mut sum = 0;
                for (touched, count) in by_touch {
                    if sum >= excess {
                        break;
                    }
                    sum += count;
                    limit = Some(touched);
                }
                if let Some(limit) = limit {
                    gone.extend(keys.extract(|entry| {
                        let goes = excess > 0 && entry.is_resting(limit);
                        excess -= usize::from(goes);
                        goes
                    }));
                }
            }
        }
        self.context.counts.passivations.many(gone.len() as u64);
        // Dropping the last address ends the actor. None has anything queued, and nobody else holds an address.
        drop(gone);
    }

    fn reset(&self) {
        let gone = self.keys.borrow_mut().extract(|_| true);
        drop(gone);
        self.backlogs.each().for_each(|backlog| backlog.reset());
    }

    fn load_deferred(&self) -> LocalBoxFuture<'static, Result<(), StoreError>> {
        self.backlogs.recall()
    }

    fn deliver_deferred(&self) {
        self.backlogs.each().for_each(Backlog::resume);
    }

    fn is_idle(&self) -> bool {
        self.backlogs.each().all(|backlog| backlog.is_idle())
    }
}
