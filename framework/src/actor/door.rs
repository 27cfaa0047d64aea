//! The door of one actor type on one thread: finds the live actor of a key, or starts it.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use actix::{Actor, Addr, Context, Handler};
use tokio::sync::oneshot;

use super::effects::Effects;
use super::host::{Flight, Host, ShardCell};
use super::keyed::KeyActor;
use super::keys::Keys;
use super::mailbox::{AnyLive, Delivered, Failed, Here, LiveActor, Mailbox, TypedTurn};
use super::plan::{Plan, Stateful};
use super::straight::{Taken, delivery};
use super::turn::panic_text;
use crate::message::{CodecError, Command, Domain, Envelope, Key, Name, Rejection, shard_of};
use crate::router::{ActorDoor, Ask, AskMeta, Asked, Delivery, Outcome, SendError, TypedReply};

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
    /// Whether what these actors append is committed at once.
    commits_at_once: bool,
}

/// A live actor. Dropping the last address ends it, and with its mailbox it goes.
struct Entry<A: Stateful> {
    addr: Addr<Mailbox<A>>,
    live: Weak<LiveActor<A>>,
}

impl<A: Stateful> Entry<A> {
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
    _flight: Flight,
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
    Key,
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
        Rc::new(Self { host, plan, domain, actor, shards, keys, effects: RefCell::default(), commits_at_once })
    }

    /// Buffers for one turn; taken while it runs, so that their memory is used again.
    pub(crate) fn take_effects(&self) -> Box<Effects<A>> {
        self.effects.borrow_mut().take().unwrap_or_else(|| Box::new(Effects::new(Rc::clone(&self.plan))))
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
        if let Some(entry) = self.keys.borrow().get(key(&what).as_str())
            && let Some(live) = entry.live.upgrade()
        {
            if !inside && live.queued.get() >= host.settings.in_flight_per_key {
                host.counts.busy.one();
                return Err((Refused::Busy, what));
            }
            // Sending queues the message and wakes a task: nothing comes back here while the map is borrowed.
            entry.send(&live, message(what, self.permit(&live)));
            return Ok(());
        }
        let named = key(&what);
        if !named.is_valid() {
            drop(named);
            return Err((Refused::Key, what));
        }
        let shards = u16::try_from(self.shards.len()).unwrap_or(u16::MAX);
        let shard = usize::from(shard_of(named.as_str(), shards));
        let name: Rc<str> = Rc::from(named.as_str());
        drop(named);
        let Some(Some(shard)) = self.shards.get(shard) else { return Err((Refused::NotHere, what)) };
        let live = LiveActor::new(KeyActor::new(Rc::clone(self), Rc::clone(shard), Rc::clone(&name)));
        let entry = Entry { addr: Mailbox(Rc::clone(&live)).start(), live: Rc::downgrade(&live) };
        entry.send(&live, message(what, self.permit(&live)));
        host.counts.activations.one();
        self.keys.borrow_mut().add(name, entry);
        Ok(())
    }

    fn permit(&self, live: &Rc<LiveActor<A>>) -> Permit {
        live.queued.set(live.queued.get() + 1);
        live.touched.set(self.host.sweeps.get());
        let live: Rc<LiveActor<A>> = Rc::clone(live);
        Permit { _flight: self.host.flight(), live }
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
    ) -> Result<AtOnce<A, C>, Unasked<C>> {
        let host = &self.host;
        let is_open = !host.stopped.get() && !host.draining.get() && self.has_room();
        // A handler that sends is a strange one. What it sends waits until its turn is over.
        if !is_open || host.straight.get() || !(self.commits_at_once || host.in_flight.get() > 0) {
            return Err((command, meta));
        }
        let Some(live) = self.unoccupied(command.key().as_str()) else { return Err((command, meta)) };
        let Ok(mut actor) = live.actor.try_borrow_mut() else { return Err((command, meta)) };
        if !actor.is_straight(meta.as_deref()) {
            return Err((command, meta));
        }
        let permit = self.permit(&live);
        host.straight.set(true);
        let taken = actor.straight(command, meta, run);
        host.straight.set(false);
        drop(actor);
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
                Refused::Key => Outcome::Undecodable("a key has 1 to 256 bytes".to_owned()),
            };
            (delivery.settle)(outcome);
        }
    }

    fn key_of(&self, event: &Envelope) -> Result<Option<String>, String> {
        match self.plan.reacts.get(&(event.domain.as_str(), event.name.as_str())) {
            // It runs the user's code: a panic must cost this one event's way and nothing else.
            Some((key_of, _)) => std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| key_of(event)))
                .unwrap_or_else(|panic| {
                    self.host.counts.panics.one();
                    Err(CodecError::Decode { reason: format!("cannot be read: {}", panic_text(&panic)) })
                })
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
    }
}

/// The typed door of one command.
pub(crate) struct TypedDoor<A: Stateful, C: Command> {
    pub(crate) door: Rc<TypeDoor<A>>,
    pub(crate) run: Run<A, C>,
}

/// A command's handler.
pub(crate) type Run<A, C> = fn(&A, C, &mut Effects<A>) -> Result<<C as Command>::Reply, Rejection>;

impl<A: Stateful, C: Command> TypedDoor<A, C> {
    fn queue(&self, (command, meta): Unasked<C>, reply: oneshot::Sender<TypedReply<C>>) {
        let run = self.run;
        fn key<C: Command, R>((command, _): &(C, R)) -> Key<'_> {
            command.key()
        }
        let turn = |(command, reply), permit| TypedTurn { command, meta, run, reply, permit };
        if let Err((refused, (command, reply))) = self.door.admit((command, reply), key, false, turn) {
            let _ = reply.send(Err(match refused {
                Refused::Busy => SendError::Busy { domain: C::Domain::NAME.to_owned() },
                Refused::Stopped | Refused::NotHere => SendError::Stopped,
                Refused::Key => SendError::Key { bytes: command.key().as_str().len() },
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
        let AtOnce { taken, permit, live } = match self.door.at_once(command, meta, self.run) {
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
