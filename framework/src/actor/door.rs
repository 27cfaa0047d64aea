//! The door of one actor type on one thread: finds the live actor of a key, or starts it.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use actix::{Actor, Addr, Context, Handler};
use futures_util::future::LocalBoxFuture;
use tokio::sync::oneshot;

use super::backlog::{Backlog, Backlogs, Deliver};
use super::effects::Effects;
use super::host::{Flight, Host, ShardCell};
use super::keyed::KeyActor;
use super::keys::Keys;
use super::mailbox::{AnyLive, Delivered, Failed, Here, LiveActor, Mailbox, TypedTurn};
use super::plan::{Plan, Stateful};
use super::straight::{Straight, Taken, delivery};
use crate::message::{CodecError, Command, Domain, Envelope, Key, Name, Rejection, shard_of};
use crate::router::{ActorDoor, Ask, AskMeta, Asked, Delivery, Outcome, SendError, TypedReply};
use crate::store::StoreError;
use crate::telemetry::TARGET;
use crate::user_code::{Label, Panicked};

/// The door of one actor type on one thread.
pub(crate) struct TypeDoor<A: Stateful> {
    pub(crate) host: Rc<Host>,
    pub(crate) plan: Rc<Plan<A>>,
    pub(crate) domain: Name,
    pub(crate) actor: Name,
    /// By number; `None` for those that live on another thread.
    pub(crate) shards: Vec<Option<Rc<ShardCell>>>,
    keys: RefCell<Keys<Entry<A>>>,
    effects: RefCell<Option<Box<Effects<A>>>>,
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
struct Entry<A: Stateful> {
    addr: Addr<Mailbox<A>>,
    live: Weak<LiveActor<A>>,
}

/// How many actors are looked at to find an idle one that was not used for long.
const PROBES: usize = 16;

/// What is found for a key.
enum Looked<'a, A: Stateful> {
    Live(&'a Entry<A>, Rc<LiveActor<A>>),
    /// Nothing, or an entry whose actor is dead.
    Absent {
        key: Rc<str>,
        died: bool,
    },
    /// No key has so many bytes.
    Invalid(usize),
}

impl<A: Stateful> Entry<A> {
    /// The actor, if it can still take messages.
    fn live(&self) -> Option<Rc<LiveActor<A>>> {
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
    fn send<M: 'static>(&self, live: &LiveActor<A>, message: M)
    where
        Mailbox<A>: Actor<Context = Context<Mailbox<A>>> + Handler<Here<M>>,
    {
        live.mails.set(live.mails.get() + 1);
        #[expect(clippy::disallowed_methods, reason = "the permit bounds what is queued; see `admit`")]
        self.addr.do_send(Here::new(message));
    }
}

/// The right to have one turn in flight. It is given back when the turn is settled, whatever happens to it.
pub(crate) struct Permit {
    /// Taken away from what is not under way but waits for an operator.
    pub(super) flight: Option<Flight>,
    live: Rc<AnyLive>,
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

impl<A: Stateful> TypeDoor<A> {
    pub(crate) fn new(
        host: Rc<Host>,
        plan: Rc<Plan<A>>,
        domain: Name,
        actor: Name,
        shards: Vec<Option<Rc<ShardCell>>>,
    ) -> Rc<Self> {
        let keys = RefCell::new(Keys::new(host.ids.next_u64()));
        let commits_at_once = shards.iter().flatten().all(|shard| shard.writer.borrow().commits_at_once());
        let label = host.code.label(A::NAME, "");
        Rc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let deliver: Deliver = Rc::new(move |delivery| match me.upgrade() {
                Some(door) => door.deliver(delivery),
                None => (delivery.settle)(Outcome::Stopped),
            });
            let backlogs = Backlogs::new(&host, &shards, &actor, &deliver);
            let effects = RefCell::default();
            let skips_snapshots = Cell::new(false);
            Self { host, plan, domain, actor, shards, keys, effects, backlogs, label, commits_at_once, skips_snapshots }
        })
    }

    /// The name under which the health notes snapshots that are skipped.
    pub(super) fn snapshots_name(&self) -> String {
        format!("snapshots of `{}.{}`", self.domain, self.actor)
    }

    /// Buffers for one turn; taken while it runs, so that their memory is used again.
    pub(crate) fn take_effects(&self) -> Box<Effects<A>> {
        self.effects
            .borrow_mut()
            .take()
            .unwrap_or_else(|| Box::new(Effects::new(Rc::clone(&self.plan), self.host.steady.clone())))
    }

    pub(crate) fn put_effects(&self, effects: Box<Effects<A>>) {
        *self.effects.borrow_mut() = Some(effects);
    }

    /// Whether there is room for one more.
    fn has_room(&self) -> bool {
        self.host.in_flight.get() < self.host.settings.in_flight
    }

    /// Sends `what`, with a permit for one turn, to the actor of its key, which is started if need be.
    ///
    /// It is not done with a clone of the address, because a clone allocates.
    ///
    /// # Errors
    /// Why it is refused, and `what` again.
    fn admit<T, M>(
        self: &Rc<Self>,
        what: T,
        key: impl Fn(&T) -> Key<'_>,
        inside: bool,
        message: impl FnOnce(T, Permit) -> M,
    ) -> Result<(), (Refused, T)>
    where
        Mailbox<A>: Actor<Context = Context<Mailbox<A>>> + Handler<Here<M>>,
        M: 'static,
    {
        let host = &self.host;
        if host.stopped.get() || (host.draining.get() && !inside) {
            return Err((Refused::Stopped, what));
        }
        // What the node itself brings (events, its own timers) was bounded where it was pulled in.
        if !inside && !self.has_room() {
            host.counts.busy.one();
            return Err((Refused::Busy, what));
        }
        let keys = self.keys.borrow();
        let looked = host.code.call(self.label, || {
            let key = key(&what);
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
                entry.send(&live, message(what, self.permit(&live)));
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
        let live = LiveActor::new(KeyActor::new(Rc::clone(self), Rc::clone(shard), Rc::clone(&key)));
        let entry = Entry { addr: Mailbox(Rc::clone(&live)).start(), live: Rc::downgrade(&live) };
        entry.send(&live, message(what, self.permit(&live)));
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
        let limit = self.host.settings.live_actors;
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
        self.host.counts.passivations.many(gone.len() as u64);
        // Outside the borrow: dropping the last address ends the actor.
        drop(gone);
    }

    fn permit(&self, live: &Rc<LiveActor<A>>) -> Permit {
        live.queued.set(live.queued.get() + 1);
        live.touched.set(self.host.sweeps.get());
        live.used.set(self.host.uses.replace(self.host.uses.get() + 1));
        let live: Rc<LiveActor<A>> = Rc::clone(live);
        Permit { flight: Some(self.host.flight()), live }
    }

    /// The actor of a key, if it is live and nothing is in its mailbox.
    fn unoccupied(&self, key: &str) -> Option<Rc<LiveActor<A>>> {
        let live = self.keys.borrow().get(key)?.live.upgrade()?;
        (live.mails.get() == 0 && live.queued.get() < self.host.settings.in_flight_per_key).then_some(live)
    }

    /// Takes a command's turn here and now if nothing is before it, or gives the command back.
    ///
    /// While nothing is in flight on this thread a turn that has to wait for its commit is not taken at once: from the mailbox
    /// it comes behind all that is ready to run, and so it is known whether it is [alone](Host::is_alone).
    fn at_once<C: Command>(
        self: &Rc<Self>,
        command: C,
        meta: Option<Box<AskMeta>>,
        run: Run<A, C>,
        label: Label,
    ) -> Result<AtOnce<A, C>, Unasked<C>> {
        let host = &self.host;
        let is_open = !host.stopped.get() && !host.draining.get() && self.has_room();
        // A handler that sends is a strange one. What it sends waits until its turn is over.
        if !is_open || host.straight.get() || !(self.commits_at_once || host.in_flight.get() > 0) {
            return Err((command, meta));
        }
        let live = host.code.call(label, || self.unoccupied(command.key().as_str())).ok().flatten();
        let Some(live) = live else { return Err((command, meta)) };
        let Ok(mut actor) = live.actor.try_borrow_mut() else { return Err((command, meta)) };
        if !actor.is_straight(meta.as_deref()) {
            return Err((command, meta));
        }
        let permit = self.permit(&live);
        // Reset however the turn ends: a panic here would close the direct way of the thread for good.
        let open = Straight::close(&host.straight);
        let taken = actor.straight(command, meta, run, label);
        drop((open, actor));
        Ok(AtOnce { taken, permit, live })
    }

    /// Has something done about a turn that was taken at once and has failed. Nothing else of the key is taken before that.
    fn mend(&self, live: &LiveActor<A>, failed: Failed) {
        let key = Rc::clone(&live.actor.borrow().key);
        match self.keys.borrow().get(&key) {
            Some(entry) => entry.send(live, failed),
            None => (failed.delivery.settle)(Outcome::Stopped),
        }
    }
}

/// A command that was taken at once.
struct AtOnce<A: Stateful, C: Command> {
    taken: Taken<C>,
    permit: Permit,
    live: Rc<LiveActor<A>>,
}

/// A command that was not.
type Unasked<C> = (C, Option<Box<AskMeta>>);

impl<A: Stateful> ActorDoor for Rc<TypeDoor<A>> {
    fn deliver(&self, delivery: Delivery) {
        let inside = !matches!(delivery.arrival, crate::router::Arrival::Outside);
        fn key(delivery: &Delivery) -> Key<'_> {
            Key::from(delivery.envelope.key.as_str())
        }
        let admitted = self.admit(delivery, key, inside, |delivery, permit| Delivered { delivery, permit });
        if let Err((refused, delivery)) = admitted {
            let outcome = match refused {
                Refused::Busy => Outcome::Busy,
                Refused::Stopped | Refused::NotHere => Outcome::Stopped,
                Refused::Key(_) => Outcome::Undecodable("a key has 1 to 256 bytes".to_owned()),
                Refused::Panicked(panicked) => Outcome::Undecodable(format!("choosing the key {panicked}")),
            };
            (delivery.settle)(outcome);
        }
    }

    fn key_of(&self, event: &Envelope) -> Result<Option<String>, String> {
        if let Some(error) = self.host.settings.shapes.refusal(event) {
            return Err(error.to_string());
        }
        match self.plan.reacts.get(&(event.domain.as_str(), event.name.as_str())) {
            Some((key_of, _)) => self
                .host
                .code
                .call(self.label, || key_of(event))
                .unwrap_or_else(|panicked| Err(CodecError::Decode { reason: format!("cannot be read: {panicked}") }))
                .map_err(|error| error.to_string()),
            None => Ok(None),
        }
    }

    fn live(&self) -> usize {
        self.keys.borrow().len()
    }

    fn sweep(&self, idle_sweeps: u64, cap: usize) {
        let now = self.host.sweeps.get();
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
        self.host.counts.passivations.many(gone.len() as u64);
        // Dropping the last address ends the actor. None has anything queued, and nobody else holds an address.
        drop(gone);
    }

    fn reset(&self) {
        let gone = self.keys.borrow_mut().extract(|_| true);
        drop(gone);
        self.backlogs.each().for_each(|backlog| backlog.reset());
    }

    fn recall(&self) -> LocalBoxFuture<'static, Result<(), StoreError>> {
        self.backlogs.recall()
    }

    fn resume(&self) {
        self.backlogs.each().for_each(Backlog::resume);
    }

    fn is_idle(&self) -> bool {
        self.backlogs.each().all(|backlog| backlog.is_idle())
    }
}

/// The typed door of one command.
pub(crate) struct TypedDoor<A: Stateful, C: Command> {
    pub(crate) door: Rc<TypeDoor<A>>,
    pub(crate) run: Run<A, C>,
    /// Under which the command's user code runs.
    pub(crate) label: Label,
}

/// A command's handler.
pub(crate) type Run<A, C> = fn(&A, C, &mut Effects<A>) -> Result<<C as Command>::Reply, Rejection>;

impl<A: Stateful, C: Command> TypedDoor<A, C> {
    fn queue(&self, (command, meta): Unasked<C>, reply: oneshot::Sender<TypedReply<C>>) {
        let (run, label) = (self.run, self.label);
        fn key<C: Command, R>((command, _): &(C, R)) -> Key<'_> {
            command.key()
        }
        let turn = |(command, reply), permit| TypedTurn { command, meta, run, label, reply, permit };
        if let Err((refused, (_, reply))) = self.door.admit((command, reply), key, false, turn) {
            let _ = reply.send(Err(match refused {
                Refused::Busy => SendError::Busy { domain: C::Domain::NAME.to_owned() },
                Refused::Stopped | Refused::NotHere => SendError::Stopped,
                Refused::Key(bytes) => SendError::Key { bytes },
                Refused::Panicked(panicked) => {
                    SendError::Encode(CodecError::Encode { reason: format!("choosing the key {panicked}") })
                }
            }));
        }
    }
}

impl<A: Stateful, C: Command> Ask<C> for TypedDoor<A, C> {
    fn ask(&self, command: C, meta: Option<Box<AskMeta>>, reply: Option<oneshot::Sender<TypedReply<C>>>) -> Asked<C> {
        // Only who has to wait needs a channel.
        let channel = |reply: Option<oneshot::Sender<TypedReply<C>>>| match reply {
            Some(reply) => (reply, Asked::Elsewhere),
            None => {
                let (reply, receiver) = oneshot::channel();
                (reply, Asked::Waits(receiver))
            }
        };
        let AtOnce { taken, permit, live } = match self.door.at_once(command, meta, self.run, self.label) {
            Ok(taken) => taken,
            Err(unasked) => {
                let (reply, asked) = channel(reply);
                self.queue(unasked, reply);
                return asked;
            }
        };
        match taken {
            Taken::Told(told) => {
                drop(permit);
                match reply {
                    Some(reply) => {
                        let _ = reply.send(told);
                        Asked::Elsewhere
                    }
                    None => Asked::Told(told),
                }
            }
            Taken::Appended(appended) => {
                let (reply, asked) = channel(reply);
                self.door.host.after_ticket(appended.ticket, move |committed| {
                    drop(permit);
                    let _ = reply.send(appended.told(committed));
                });
                asked
            }
            Taken::Failed(failed) => {
                let (reply, asked) = channel(reply);
                let (envelope, failure) = *failed;
                let delivery = delivery::<C>(envelope, reply);
                self.door.mend(&live, Failed { delivery, permit, failure });
                asked
            }
        }
    }
}
