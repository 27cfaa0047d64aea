//! One thread's share of a node: its shards with all that belongs to them, wired.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::sync::{Notify, mpsc, oneshot};

use super::spec::{Job, Links, Spec};
use super::taking::{Group, groups, views};
use super::{StartError, tasks};
use crate::actor::{Host, HostSettings, ShardCell};
use crate::bridge::{Answer, Asked};
use crate::inbox::{Feed, Gate};
use crate::message::{Envelope, IdSource, Name, ShardId, shard_of};
use crate::projection::ViewDoor;
use crate::relay::Lanes;
use crate::retry::Retry;
use crate::router::{ActorDoor, Arrival, Delivery, LocalRoutes, Outcome, Settle, Settled, Work};
use crate::spawn::Task;
use crate::store::{CommitListener, Lane, StoreError, Watermark};
use crate::telemetry::TARGET;

pub(super) type Doors = HashMap<(Name, Name), Rc<dyn ActorDoor>, FixedState>;
type Gates = HashMap<(ShardId, ShardId), Rc<Gate>, FixedState>;

/// One thread's share of a node.
pub(super) struct Share {
    pub(super) spec: Arc<Spec>,
    pub(super) index: usize,
    pub(super) links: Links,
    pub(super) host: Rc<Host>,
    pub(super) shards: BTreeMap<ShardId, Rc<ShardCell>>,
    /// By domain and actor type.
    pub(super) doors: Doors,
    /// By domain and command.
    commands: Doors,
    /// The doors of typed commands.
    pub(super) routes: Rc<LocalRoutes>,
    gates: RefCell<Gates>,
    /// Everyone's feeds, by source shard.
    pub(super) feeds: BTreeMap<ShardId, Vec<Rc<Feed>>>,
    pub(super) groups: Vec<Group>,
    pub(super) views: Vec<Rc<dyn ViewDoor>>,
    /// The last position of each shard when it was opened: what comes behind it is told to others as it comes.
    pub(super) history: BTreeMap<ShardId, u64>,
    /// The relay is at work.
    pub(super) relaying: Cell<bool>,
    pub(super) lanes: BTreeMap<ShardId, Rc<Lanes>>,
    /// What other services' shards are to be told: how far this node's have committed what they sent.
    pub(super) told: RefCell<BTreeMap<(ShardId, ShardId), u64>>,
    pub(super) tasks: RefCell<Vec<Task>>,
    ended: Notify,
    pub(super) has_ended: Cell<bool>,
    me: RefCell<std::rc::Weak<Share>>,
}

impl Share {
    /// Opens the shards of this thread and hangs the doors in. Nothing runs yet.
    pub(super) async fn open(
        spec: Arc<Spec>,
        index: usize,
        links: Links,
        ids: IdSource,
    ) -> Result<Rc<Self>, StartError> {
        let settings = HostSettings {
            in_flight: spec.config.in_flight,
            in_flight_per_key: spec.config.in_flight_per_key,
            retry: spec.retries.clone(),
            jobs: spec.config.jobs,
            job_limit: spec.config.job_limit,
            remember: spec.config.remember,
        };
        let counts = spec.counts.get(index).cloned().unwrap_or_default();
        let host = Host::new(ids, settings, Arc::clone(&counts));
        let mut shards = BTreeMap::new();
        for (domain, count) in &spec.domains {
            for shard in (0..*count).filter(|shard| spec.home(*shard) == index) {
                let id = ShardId::new(domain.clone(), shard);
                let listener: Arc<dyn CommitListener> = Arc::clone(&host.commits) as _;
                let handle = spec.store.open(&id, *count, listener).await?;
                spec.readers.lock().insert(id.clone(), Arc::clone(&handle.reader));
                let relays = spec.bridge.is_some() || spec.sources.contains_key(domain);
                shards.insert(id.clone(), ShardCell::new(id, handle, relays));
            }
        }
        let (mut doors, mut commands, mut routes) = (Doors::default(), Doors::default(), LocalRoutes::default());
        for hosted in &spec.types {
            let count = spec.owns(&hosted.domain).unwrap_or(1);
            let mine =
                (0..count).map(|shard| shards.get(&ShardId::new(hosted.domain.clone(), shard)).cloned()).collect();
            let door = hosted.hosted.install(&host, hosted.domain.clone(), hosted.actor.clone(), mine, &mut routes);
            for command in &hosted.handles {
                commands.insert((hosted.domain.clone(), command.clone()), Rc::clone(&door));
            }
            doors.insert((hosted.domain.clone(), hosted.actor.clone()), door);
        }
        let groups = groups(&spec, &host);
        let views = views(&spec, index, &host).await?;
        let routes = Rc::new(routes);
        // With several threads a key may live on another one, and whoever sends must look where.
        if spec.shares() == 1 {
            Rc::clone(&routes).publish(spec.id);
        }
        let mut feeds: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let theirs = groups.iter().map(|group| &group.feeds).chain(views.iter().map(|view| view.feeds()));
        for (source, feed) in theirs.flatten() {
            feeds.entry(source.clone()).or_default().push(Rc::clone(feed));
        }
        let history = shards.iter().map(|(id, cell)| (id.clone(), cell.reader().position())).collect();
        let lanes = shards.keys().map(|id| (id.clone(), Lanes::new(Arc::clone(&counts)))).collect();
        let share = Rc::new(Self {
            spec,
            index,
            links,
            host,
            shards,
            doors,
            commands,
            routes,
            gates: RefCell::default(),
            feeds,
            groups,
            views,
            history,
            relaying: Cell::new(false),
            lanes,
            told: RefCell::default(),
            tasks: RefCell::default(),
            ended: Notify::new(),
            has_ended: Cell::new(false),
            me: RefCell::default(),
        });
        *share.me.borrow_mut() = Rc::downgrade(&share);
        share.set_takers();
        Ok(share)
    }

    /// Does what is sent to this thread until the share ends.
    pub(super) async fn run(self: Rc<Self>, mut jobs: mpsc::UnboundedReceiver<Job>) {
        loop {
            tokio::select! {
                biased;
                () = self.ended.notified() => break,
                job = jobs.recv() => match job {
                    Some(job) => job(&self),
                    None => break,
                },
            }
        }
        self.end();
    }

    /// Starts what works in the background.
    pub(super) fn go(self: &Rc<Self>) {
        let mut running = self.tasks.borrow_mut();
        running.push(crate::spawn::local(tasks::release(Rc::downgrade(self))));
        running.push(crate::spawn::local(tasks::relay(Rc::downgrade(self))));
        running.push(crate::spawn::local(tasks::timers(Rc::downgrade(self))));
        running.push(crate::spawn::local(tasks::sweep(Rc::downgrade(self))));
        drop(running);
        // Those who have sent to this node before are told that it is back.
        for (to, shard) in &self.shards {
            for mark in shard.reader().watermarks() {
                if mark.source.lane == Lane::Direct && self.spec.owns(&mark.source.shard.domain).is_none() {
                    self.told.borrow_mut().insert((mark.source.shard, to.clone()), mark.through);
                }
            }
        }
        self.catch_up();
    }

    /// Looks after everything that may be missing or waiting.
    pub(super) fn catch_up(&self) {
        for feed in self.feeds.values().flatten() {
            feed.fill();
        }
        for shard in self.shards.values() {
            shard.soil(&self.host);
        }
        self.host.timers.notify_one();
    }

    fn door_of(&self, envelope: &Envelope) -> Option<Rc<dyn ActorDoor>> {
        let domain = envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain);
        let found = match &envelope.actor {
            Some(actor) => self.doors.get(&(domain.clone(), actor.clone())),
            None => self.commands.get(&(domain.clone(), envelope.name.clone())),
        };
        let unrouted = || self.doors.iter().find(|((of, actor), _)| of == domain && actor.as_str() == "unrouted");
        found.or_else(|| unrouted().map(|(_, door)| door)).cloned()
    }

    /// Gives a command from outside to its actor.
    pub(super) fn outside(&self, mut envelope: Envelope, settle: Settle) {
        if let Some(deadline) = envelope.deadline {
            // The sender wrote it by its own clock. How long it waits is known all the same: both times are of that clock.
            let now = self.host.ids.clock().now();
            if now <= deadline.after(CLOCKS_DIFFER) {
                envelope.deadline = Some(now.after(deadline.since(envelope.time)));
            }
        }
        match self.door_of(&envelope) {
            Some(door) => {
                door.deliver(Delivery::new(Work::Handle, envelope, Arrival::Outside, settle));
            }
            None => settle(Outcome::Stopped),
        }
    }

    /// Gives a message to the actor with its key, by actor type.
    pub(super) fn inside(&self, actor: &Name, work: Work, envelope: Envelope, settle: Settle) {
        match self.doors.get(&(envelope.domain.clone(), actor.clone())) {
            Some(door) => door.deliver(Delivery::new(work, envelope, Arrival::Inside, settle)),
            None => settle(Outcome::Unhandled),
        }
    }

    /// Takes a message that was sent to one of this thread's shards.
    pub(super) fn direct(self: &Rc<Self>, envelope: Envelope, settle: Box<dyn FnOnce(Settled)>) {
        let Some(to) = envelope.to.clone().filter(|to| self.shards.contains_key(to)) else {
            return settle(Settled::Later);
        };
        if self.has_ended.get() || self.host.draining.get() {
            return settle(Settled::Later);
        }
        match &envelope.origin {
            Some(origin) => {
                let gate = self.gate(&origin.shard.clone(), &to);
                gate.admit(envelope, settle);
            }
            None => self.outside(
                envelope,
                Box::new(move |outcome| {
                    settle(match outcome {
                        Outcome::Busy | Outcome::Stopped | Outcome::Refused(_) | Outcome::Unknown(_) => Settled::Later,
                        // Handed over without a reply, it was accepted: it must not vanish unseen.
                        Outcome::Unhandled => Settled::Refused("nobody here handles such a message".to_owned()),
                        Outcome::Undecodable(reason) => Settled::Refused(format!("the message {reason}")),
                        Outcome::Conflict => Settled::Refused("its id was used before with another payload".to_owned()),
                        Outcome::Expired => Settled::Refused("its id is older than ids are remembered".to_owned()),
                        Outcome::Late => Settled::Refused("its deadline had passed".to_owned()),
                        Outcome::Unanswered(reason) => Settled::Refused(reason),
                        Outcome::Done(..) | Outcome::DeadLetter(_) => Settled::Done,
                    });
                }),
            ),
        }
    }

    fn gate(self: &Rc<Self>, from: &ShardId, to: &ShardId) -> Rc<Gate> {
        let place = (from.clone(), to.clone());
        if let Some(gate) = self.gates.borrow().get(&place) {
            return Rc::clone(gate);
        }
        let floor = self.watermark(from, to);
        let me = Rc::downgrade(self);
        let doors = {
            let me = me.clone();
            Rc::new(move |envelope: &Envelope| {
                let found = me.upgrade().and_then(|share| share.door_of(envelope));
                found.unwrap_or_else(|| Rc::new(NoDoor))
            })
        };
        let missing = {
            let me = me.clone();
            Rc::new(move |gate: &Gate, after: u64| {
                if let Some(share) = me.upgrade() {
                    share.fetch_missing(gate.from.clone(), gate.to.clone(), after);
                }
            })
        };
        let committed = Rc::new(move |from: &ShardId, to: &ShardId, through: u64| {
            if let Some(share) = me.upgrade() {
                share.tell_committed(from, to, through);
            }
        });
        let gate = Gate::new(from.clone(), to.clone(), floor, doors, missing, committed, Arc::clone(&self.host.counts));
        self.gates.borrow_mut().insert(place, Rc::clone(&gate));
        gate
    }

    fn watermark(&self, from: &ShardId, to: &ShardId) -> u64 {
        let Some(shard) = self.shards.get(to) else { return 0 };
        let marks = shard.reader().watermarks();
        let found = marks.into_iter().find(|mark| mark.source.lane == Lane::Direct && mark.source.shard == *from);
        found.map_or(0, |mark| mark.through)
    }

    /// How far this thread's shard has committed what `from` sent it.
    pub(super) fn committed(&self, from: &ShardId, to: &ShardId) -> u64 {
        let gate = self.gates.borrow().get(&(from.clone(), to.clone())).cloned();
        gate.map_or_else(|| self.watermark(from, to), |gate| gate.through())
    }

    /// Asks the sending shard's owner for what is missing.
    fn fetch_missing(self: &Rc<Self>, from: ShardId, to: ShardId, after: u64) {
        let me = Rc::downgrade(self);
        let spec = Arc::clone(&self.spec);
        crate::spawn::detached(async move {
            // Asked again while something waits behind the gap: a question and its answer may get lost as well.
            let retry = Retry { longest: tasks::ASK, ..Retry::default() };
            for failures in 1.. {
                let answer = missing(&spec, &from, &to, after).await;
                let Some(share) = me.upgrade() else { return };
                let gate = share.gate(&from, &to);
                gate.filling.set(false);
                match answer {
                    Ok(envelopes) => {
                        for envelope in envelopes {
                            share.direct(envelope, Box::new(|_| {}));
                        }
                        return;
                    }
                    // The sender sends again what was not committed, so this need not go on for ever.
                    Err(again) if !again => return,
                    Err(_) if !gate.lacks(after) || share.has_ended.get() || gate.filling.replace(true) => return,
                    // An owner that is away is said at once: without a wait this would ask for ever and never let go.
                    Err(_) => {
                        let wait = retry.wait(failures, &share.host.ids);
                        drop((share, gate));
                        tokio::time::sleep(wait).await;
                    }
                }
            }
        });
    }

    /// Tells the sending shard's owner how far this node has committed what it sent.
    fn tell_committed(self: &Rc<Self>, from: &ShardId, to: &ShardId, through: u64) {
        if self.spec.owns(&from.domain).is_some() {
            let home = self.spec.home(from.shard);
            if home == self.index {
                self.heard_committed(from, to, through);
            } else {
                let (from, to) = (from.clone(), to.clone());
                self.links.run(home, Box::new(move |share| share.heard_committed(&from, &to, through)));
            }
        } else {
            // Told by the relay, which makes one of many.
            self.told.borrow_mut().insert((from.clone(), to.clone()), through);
            self.host.relay.notify_one();
        }
    }

    /// A destination has committed what one of this thread's shards sent it.
    pub(super) fn heard_committed(&self, from: &ShardId, to: &ShardId, through: u64) {
        let Some((lanes, shard)) = self.lanes.get(from).zip(self.shards.get(from)) else { return };
        let head = || {
            let heads = shard.reader().outbox_heads();
            heads.into_iter().find(|(known, ..)| known == to).map_or(0, |(_, _, head)| head)
        };
        if !lanes.committed(to, through, head) {
            // Nothing new, so why was it told? The destination has started again, or was sent a duplicate: what it lacks is
            // handed on without waiting for patience to end.
            lanes.hurry_to(to);
        }
        shard.soil(&self.host);
    }

    /// Opens the shards again after a commit has failed: everything uncommitted is forgotten, here and in memory.
    pub(super) async fn recover(self: &Rc<Self>) -> Result<(), StoreError> {
        self.forget();
        for (id, cell) in &self.shards {
            let listener: Arc<dyn CommitListener> = Arc::clone(&self.host.commits) as _;
            let count = self.spec.owns(&id.domain).unwrap_or(1);
            let handle = self.spec.store.open(id, count, listener).await?;
            self.spec.readers.lock().insert(id.clone(), Arc::clone(&handle.reader));
            *cell.writer.borrow_mut() = handle.writer;
            *cell.reader.borrow_mut() = handle.reader;
        }
        self.host.commits.recovered();
        self.set_takers();
        self.catch_up();
        Ok(())
    }

    fn forget(&self) {
        // The views keep theirs: what they have taken is committed, whatever has failed.
        for feed in self.groups.iter().flat_map(|group| group.feeds.values()) {
            feed.close();
        }
        let gates = std::mem::take(&mut *self.gates.borrow_mut());
        drop(gates);
        for lanes in self.lanes.values() {
            lanes.reset();
        }
        for door in self.doors.values() {
            door.reset();
        }
    }

    /// Tells the store how far this thread has come with what came in and what went out.
    pub(super) fn store_floors(&self, at_least: u64) {
        for (_, feed, _) in self.groups.iter().flat_map(Group::each) {
            for (shard, source, through) in feed.unstored() {
                if let Some(cell) = self.shards.get(&shard) {
                    drop(cell.writer.borrow_mut().advance(&Watermark { source, through }));
                }
            }
        }
        for gate in self.gates.borrow().values() {
            let (cell, floor) = (self.shards.get(&gate.to), gate.unstored());
            if let Some((cell, floor)) = cell.zip(floor) {
                drop(cell.writer.borrow_mut().advance(&floor));
            }
        }
        for (id, lanes) in &self.lanes {
            for (to, through) in lanes.unstored(at_least) {
                if let Some(cell) = self.shards.get(id) {
                    drop(cell.writer.borrow_mut().sent(&to, through));
                }
            }
        }
    }

    /// Takes nothing new in; `done` is told when nothing is in flight any more and what was committed is handed on.
    pub(super) fn drain(self: &Rc<Self>, done: oneshot::Sender<()>) {
        self.host.draining.set(true);
        self.host.drains.notify_waiters();
        for feed in self.feeds.values().flatten() {
            feed.pause();
        }
        let gates: Vec<_> = self.gates.borrow().values().cloned().collect();
        gates.iter().for_each(|gate| gate.let_go());
        let me = Rc::clone(self);
        crate::spawn::detached(async move {
            me.host.quiet.until(|| me.host.in_flight.get() == 0).await;
            // What these turns have left behind leaves before the node takes leave of the bridge.
            me.host.quiet.until(|| !me.relaying.get() && me.host.is_clean()).await;
            me.store_floors(1);
            for view in &me.views {
                view.drain().await;
            }
            let _ = done.send(());
        });
    }

    /// Ends at once: tasks, doors, actors.
    pub(super) fn end(&self) {
        if self.has_ended.replace(true) {
            return;
        }
        self.host.stopped.set(true);
        LocalRoutes::withdraw(self.spec.id);
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
        // Before anything is dropped: who waits for a commit must not be told that nothing was done.
        self.host.give_up(&StoreError::Closed);
        self.forget();
        for view in &self.views {
            view.end();
        }
        self.host.quiet.look();
        self.ended.notify_one();
    }
}

/// What `from` has sent to `to` above a sequence: from this node's own log, or its owner's over the bridge. The error says
/// whether to ask again.
async fn missing(spec: &Spec, from: &ShardId, to: &ShardId, after: u64) -> Result<Vec<Envelope>, bool> {
    const LIMIT: u16 = 256;
    if let Some(reader) = spec.reader(from) {
        let entries = reader.outbox(to, after, usize::from(LIMIT)).await.map_err(|_| true)?;
        return Ok(entries.into_iter().map(|entry| entry.envelope).collect());
    }
    let Some(bridge) = &spec.bridge else { return Err(false) };
    let asked = Asked::Outbox { from: from.clone(), to: to.clone(), after, limit: LIMIT.into() };
    match bridge.ask(asked.clone(), tasks::ASK).await {
        Ok(Answer::Envelopes(envelopes, _)) => {
            let shards = spec.owns(&to.domain).unwrap_or(0);
            let is_meant = |one: &Envelope| asked.admits(one) && shard_of(&one.key, shards) == to.shard;
            if envelopes.iter().all(is_meant) {
                return Ok(envelopes);
            }
            tracing::error!(target: TARGET, %from, %to, "its owner was asked for what it has sent, and answers for somebody else");
            Err(false)
        }
        Ok(_) => Err(true),
        Err(error) => Err(error.is_transient()),
    }
}

/// How far the clocks of two nodes may differ before a deadline is taken for passed that is not: 5 minutes, as Kerberos has it
/// (RFC 4120).
const CLOCKS_DIFFER: Duration = Duration::from_secs(300);

/// The door when there is none.
struct NoDoor;

impl ActorDoor for NoDoor {
    fn deliver(&self, delivery: Delivery) {
        (delivery.settle)(Outcome::Stopped);
    }
    fn key_of(&self, _event: &Envelope) -> Result<Option<String>, String> {
        Ok(None)
    }
    fn live(&self) -> usize {
        0
    }
    fn sweep(&self, _idle_sweeps: u64, _cap: usize) {}
    fn reset(&self) {}
}
