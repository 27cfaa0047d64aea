//! The door of one actor type on one thread: finds the live actor of a key, or starts it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use actix::{Actor, Addr, Context, Handler};
use foldhash::fast::FixedState;
use tokio::sync::oneshot;

use super::effects::Effects;
use super::host::{Flight, Host, ShardCell};
use super::keyed::{Delivered, Here, KeyActor, TypedTurn};
use super::plan::{Plan, Stateful};
use super::turn::panic_text;
use crate::message::{CodecError, Command, Domain, Envelope, Key, Name, Rejection, shard_of};
use crate::router::{ActorDoor, Ask, AskMeta, Delivery, Outcome, SendError, TypedReply};

/// The door of one actor type on one thread.
pub(crate) struct TypeDoor<A: Stateful> {
    pub(crate) host: Rc<Host>,
    pub(crate) plan: Rc<Plan<A>>,
    pub(crate) domain: Name,
    pub(crate) actor: Name,
    /// By number; `None` for those that live on another thread.
    pub(crate) shards: Vec<Option<Rc<ShardCell>>>,
    keys: RefCell<HashMap<Rc<str>, Entry<A>, FixedState>>,
    effects: RefCell<Option<Box<Effects<A>>>>,
}

struct Entry<A: Stateful> {
    addr: Addr<KeyActor<A>>,
    load: Rc<Load>,
}

/// How busy an actor is, shared between its door and what is in flight for it.
#[derive(Default)]
pub(crate) struct Load {
    queued: Cell<u32>,
    touched: Cell<u64>,
}

/// The right to have one turn in flight. It is given back when the turn is settled, whatever happens to it.
pub(crate) struct Permit {
    _flight: Flight,
    load: Rc<Load>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.load.queued.set(self.load.queued.get() - 1);
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
        // Keys come from outside: the seed makes it hard to choose many that collide.
        let keys = RefCell::new(HashMap::with_hasher(FixedState::with_seed(host.ids.next_u64())));
        Rc::new(Self { host, plan, domain, actor, shards, keys, effects: RefCell::default() })
    }

    /// Buffers for one turn; taken while it runs, so that their memory is used again.
    pub(crate) fn take_effects(&self) -> Box<Effects<A>> {
        self.effects.borrow_mut().take().unwrap_or_else(|| Box::new(Effects::new(Rc::clone(&self.plan))))
    }

    pub(crate) fn put_effects(&self, effects: Box<Effects<A>>) {
        *self.effects.borrow_mut() = Some(effects);
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
        KeyActor<A>: Actor<Context = Context<KeyActor<A>>> + Handler<Here<M>>,
        M: 'static,
    {
        let host = &self.host;
        if host.stopped.get() || (host.draining.get() && !inside) {
            return Err((Refused::Stopped, what));
        }
        // What the node itself brings (events, its own timers) was bounded where it was pulled in.
        if !inside && host.in_flight.get() >= host.settings.in_flight {
            host.counts.busy.one();
            return Err((Refused::Busy, what));
        }
        if let Some(entry) = self.keys.borrow().get(key(&what).as_str()) {
            if !inside && entry.load.queued.get() >= host.settings.in_flight_per_key {
                host.counts.busy.one();
                return Err((Refused::Busy, what));
            }
            // Sending queues the message and wakes a task: nothing comes back here while the map is borrowed.
            send(&entry.addr, message(what, self.permit(&entry.load)));
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
        let load = Rc::new(Load::default());
        let addr = KeyActor::new(Rc::clone(self), Rc::clone(shard), Rc::clone(&name)).start();
        send(&addr, message(what, self.permit(&load)));
        host.counts.activations.one();
        self.keys.borrow_mut().insert(name, Entry { addr, load });
        Ok(())
    }

    fn permit(&self, load: &Rc<Load>) -> Permit {
        load.queued.set(load.queued.get() + 1);
        load.touched.set(self.host.sweeps.get());
        Permit { _flight: self.host.flight(), load: Rc::clone(load) }
    }
}

fn send<A: Stateful, M: 'static>(addr: &Addr<KeyActor<A>>, message: M)
where
    KeyActor<A>: Actor<Context = Context<KeyActor<A>>> + Handler<Here<M>>,
{
    #[expect(clippy::disallowed_methods, reason = "the permit bounds what is queued; see `admit`")]
    addr.do_send(Here::new(message));
}

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
            let resting = |entry: &Entry<A>, touched_before: u64| {
                entry.load.queued.get() == 0 && entry.load.touched.get() <= touched_before
            };
            let oldest = now.checked_sub(idle_sweeps);
            if let Some(oldest) = oldest {
                gone.extend(keys.extract_if(|_, entry| resting(entry, oldest)).map(|(_, entry)| entry));
            }
            if keys.len() > cap {
                // Find the touch time below which enough are resting; a count per sweep, not a sort of all keys.
                let mut excess = keys.len() - cap;
                let mut by_touch = std::collections::BTreeMap::<u64, usize>::new();
                for entry in keys.values().filter(|entry| entry.load.queued.get() == 0) {
                    *by_touch.entry(entry.load.touched.get()).or_default() += 1;
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
                    gone.extend(
                        keys.extract_if(|_, entry| {
                            let goes = excess > 0 && resting(entry, limit);
                            excess -= usize::from(goes);
                            goes
                        })
                        .map(|(_, entry)| entry),
                    );
                }
            }
        }
        self.host.counts.passivations.many(gone.len() as u64);
        // Dropping the last address ends the actor. None has anything queued, and nobody else holds an address.
        drop(gone);
    }

    fn reset(&self) {
        let gone: Vec<_> = self.keys.borrow_mut().drain().collect();
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

impl<A: Stateful, C: Command> Ask<C> for TypedDoor<A, C> {
    fn ask(&self, command: C, meta: Option<Box<AskMeta>>, reply: oneshot::Sender<TypedReply<C>>) {
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
