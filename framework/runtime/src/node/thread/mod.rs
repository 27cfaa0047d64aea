//! Thread runtime: one thread's shards with everything wired to them.
//!
//! Created by the builder, one per thread; runs until the node ends. Its methods are in the files of their concern:
//! what arrives in [`inbound`](crate::node::inbound), what leaves in [`relay`](crate::node::relay), opening and closing
//! of shards in [`shards`](crate::node::shards). All state here is `Rc` and `Cell`: other threads reach it only through
//! jobs.

pub(in crate::node) mod known_positions;
pub(in crate::node) mod publisher;
pub(in crate::node) mod stored_watermarks;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::sync::{Notify, oneshot};

use crate::node::catalog::newer_types::Judged;
use crate::node::definition::NodeDefinition;
use crate::node::thread::known_positions::KnownPositions;
use crate::node::thread::publisher::Publisher;
use crate::node::thread_handles::{NodeThread, ThreadHandles};

use crate::actor::{OwnedShard, StuckKey, ThreadContext};
use crate::inbox::{ReceiveWindow, Subscription};
use crate::projection::ViewEndpoint;
use crate::relay::SendWindows;
use crate::router::{Action, ActorEndpoint, Completion, DedupKey, Delivery, LocalRoutes, Outcome};
use whizbang_core::message::{Envelope, Kind, Name, ShardId};
use whizbang_core::spawn::Task;
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::TARGET;

pub(in crate::node) type Endpoints = HashMap<(Name, Name), Rc<dyn ActorEndpoint>, FixedState>;
pub(in crate::node) type Commands = HashMap<(Name, Name), (Rc<dyn ActorEndpoint>, u32), FixedState>;

/// Receive windows by sending and receiving shard.
pub(in crate::node) type ReceiveWindows = HashMap<(ShardId, ShardId), Rc<ReceiveWindow>, FixedState>;

/// Handles to the threads of a node.
pub(in crate::node) type Threads = ThreadHandles<ThreadRuntime>;

/// Actor types that share their subscriptions.
pub(in crate::node) struct SubscriptionGroup {
    /// Indexes into the definition's actor types.
    pub(in crate::node) types: Vec<usize>,
    pub(in crate::node) subscriptions: BTreeMap<ShardId, Rc<Subscription>>,
}

impl SubscriptionGroup {
    pub(in crate::node) fn each(&self) -> impl Iterator<Item = (&ShardId, &Rc<Subscription>, &Vec<usize>)> {
        self.subscriptions.iter().map(|(source, subscription)| (source, subscription, &self.types))
    }
}

/// One thread of a node.
pub(in crate::node) struct ThreadRuntime {
    pub(in crate::node) definition: Arc<NodeDefinition>,
    pub(in crate::node) index: usize,
    pub(in crate::node) threads: Threads,
    pub(in crate::node) context: Rc<ThreadContext>,
    /// Endpoints by domain and actor type.
    pub(in crate::node) endpoints: Endpoints,
    /// Endpoints by domain and command, with the newest schema version that is decoded.
    pub(in crate::node) commands: Commands,
    /// Endpoints of typed commands.
    pub(in crate::node) routes: Rc<LocalRoutes>,
    pub(in crate::node) receive_windows: RefCell<ReceiveWindows>,
    /// Most receive windows; a field, so that a test can reach the bound.
    pub(in crate::node) max_receive_windows: Cell<usize>,
    /// All subscriptions, by source shard.
    pub(in crate::node) subscriptions: BTreeMap<ShardId, Vec<Rc<Subscription>>>,
    pub(in crate::node) groups: Vec<SubscriptionGroup>,
    pub(in crate::node) views: Vec<Rc<dyn ViewEndpoint>>,
    /// The relay task is working.
    pub(in crate::node) is_relaying: Cell<bool>,
    pub(in crate::node) publisher: Rc<Publisher>,
    pub(in crate::node) known_positions: KnownPositions,
    /// Send windows of the open shards.
    pub(in crate::node) send_windows: RefCell<BTreeMap<ShardId, Rc<SendWindows>>>,
    /// Watermarks still to be confirmed to shards of other services.
    pub(in crate::node) confirmations: RefCell<BTreeMap<(ShardId, ShardId), u64>>,
    /// Destinations that sent a note although nothing was sent to them, while they are queried.
    pub(in crate::node) unknown_destinations: RefCell<BTreeSet<(ShardId, ShardId)>>,
    /// Parts of open shards that the relay could not read, by the name of the part.
    pub(in crate::node) unread: RefCell<BTreeMap<(ShardId, &'static str), StuckKey>>,
    pub(in crate::node) tasks: RefCell<Vec<Task>>,
    pub(in crate::node) ended: Notify,
    pub(in crate::node) has_ended: Cell<bool>,
    pub(in crate::node) me: RefCell<std::rc::Weak<ThreadRuntime>>,
}

impl ThreadRuntime {
    /// Returns an open shard of this thread.
    pub(in crate::node) fn shard(&self, id: &ShardId) -> Option<Rc<OwnedShard>> {
        self.context.shards.borrow().get(id).cloned()
    }

    /// Returns the open shards of this thread, ordered by id.
    pub(in crate::node) fn shards(&self) -> Vec<Rc<OwnedShard>> {
        self.context.shards.borrow().values().cloned().collect()
    }

    /// Returns whether a shard is still open under this opening.
    pub(in crate::node) fn is_current(&self, shard: &Rc<OwnedShard>) -> bool {
        self.context.shards.borrow().get(&shard.id).is_some_and(|current| Rc::ptr_eq(current, shard))
    }

    /// Returns the send windows of an open shard.
    pub(in crate::node) fn windows_of(&self, id: &ShardId) -> Option<Rc<SendWindows>> {
        self.send_windows.borrow().get(id).cloned()
    }

    /// Returns the send windows of all open shards.
    pub(in crate::node) fn all_windows(&self) -> Vec<(ShardId, Rc<SendWindows>)> {
        self.send_windows.borrow().iter().map(|(id, windows)| (id.clone(), Rc::clone(windows))).collect()
    }

    /// Checks everything that may be missing or waiting.
    pub(in crate::node) fn catch_up(&self) {
        for subscription in self.subscriptions.values().flatten() {
            subscription.start_filling();
        }
        for shard in self.shards() {
            self.context.mark_dirty(&shard);
        }
        self.context.timers.notify_one();
    }

    /// Returns whether messages for a shard are handled on this node.
    pub(in crate::node) fn is_local(&self, shard: &ShardId) -> bool {
        self.definition.is_local(shard)
    }

    /// Returns whether a shard can be reached: it is open on this node, or there is a bridge.
    pub(in crate::node) fn is_reachable(&self, shard: &ShardId) -> bool {
        self.definition.bridge.is_some() || self.is_local(shard)
    }

    /// Reports messages of a shard's outbox that cannot be forwarded. They stay there until the node starts with a
    /// route to them.
    pub(in crate::node) fn report_unreachable(&self, from: &ShardId, heads: &[(ShardId, u64, u64)]) {
        for (to, ..) in heads.iter().filter(|(to, done, head)| done < head && !self.is_reachable(to)) {
            let domain = &to.domain;
            let why = format!(
                "messages to `{domain}` stay in the outbox: this node does not host that domain and has no bridge. \
                 Host it, or start the node with a bridge to the service that does"
            );
            if self.definition.issues.raise(&format!("no route to {domain}"), why) {
                tracing::error!(target: TARGET, %from, %domain, "no route to domain: messages stay in the outbox");
            }
        }
    }

    /// Counts a failed read of a part of a shard, or resolves the earlier ones.
    pub(in crate::node) fn count_read<T>(&self, shard: &ShardId, part: &'static str, read: &Result<T, StoreError>) {
        let mut unread = self.unread.borrow_mut();
        match read {
            Ok(_) if unread.is_empty() => {}
            Ok(_) => drop(unread.remove(&(shard.clone(), part))),
            Err(error) => unread.entry((shard.clone(), part)).or_default().unreadable(
                &self.context,
                error,
                || format!("{shard}/{part} read"),
                || format!("the {part} of {shard}"),
            ),
        }
    }

    /// Returns whether everything committed has been forwarded.
    pub(in crate::node) fn is_relayed(&self) -> bool {
        let left = self.definition.bridge.is_none() || self.publisher.is_idle();
        !self.is_relaying.get() && self.context.is_clean() && left
    }

    /// Returns the endpoint for a message; `None` if the message waits for a node with a newer program.
    pub(in crate::node) fn endpoint_of(&self, envelope: &Envelope) -> Option<Rc<dyn ActorEndpoint>> {
        let domain = envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain);
        if let Some(actor) = &envelope.actor {
            let found = self.endpoints.get(&(domain.clone(), actor.clone()));
            return found.cloned().or_else(|| self.unrouted(domain));
        }
        match self.commands.get(&(domain.clone(), envelope.name.clone())) {
            Some((endpoint, version)) if envelope.version <= *version => Some(Rc::clone(endpoint)),
            _ if self.waits_for_newer(envelope) => None,
            Some((endpoint, _)) => Some(Rc::clone(endpoint)),
            None => self.unrouted(domain),
        }
    }

    /// Returns whether a command that this program cannot decode waits for a node with a newer program. Its shard is then
    /// given to such a node.
    fn waits_for_newer(&self, envelope: &Envelope) -> bool {
        let (Some(membership), Some(to)) = (&self.definition.membership, &envelope.to) else { return false };
        if envelope.kind != Kind::Command {
            return false;
        }
        let judged = self.definition.newer.judge(envelope);
        match judged {
            Judged::Unknown => return false,
            Judged::Waits => membership.yield_shard(to),
            Judged::Unread => self.look_up(envelope.clone()),
        }
        tracing::debug!(target: TARGET, id = %envelope.id, name = %envelope.name, ?judged, "command waits for a newer program");
        true
    }

    /// Looks a command up in the store's catalog, beside the work of the thread. It is delivered again later.
    fn look_up(&self, envelope: Envelope) {
        let definition = Arc::clone(&self.definition);
        whizbang_core::spawn::detached(&self.context.user_code, "look a command up", async move {
            let found = definition.newer.look_up(&*definition.store, &envelope, &definition.issues).await;
            if let Err(error) = found {
                let error = whizbang_core::telemetry::error_chain(&error);
                tracing::warn!(target: TARGET, %error, "failed to read the catalog: the command waits");
            }
        });
    }

    /// Delivers a command from outside, or the query of a key, to its actor.
    pub(in crate::node) fn deliver_external(&self, envelope: Envelope, settle: Completion) {
        let envelope = self.with_own_deadline(envelope);
        let Some(endpoint) = self.endpoint_of(&envelope) else { return settle(Outcome::Moved) };
        let queries = &self.definition.keyed_queries;
        if queries.is_empty() || !queries.contains(&(envelope.domain.clone(), envelope.name.clone())) {
            return endpoint.deliver(Delivery::new(Action::Handle, envelope, DedupKey::MessageId, settle));
        }
        let asked = Arc::clone(&self.definition);
        // Checked after the answer: the process may have been stopped since the state was read, and no commit proves that
        // this node is still the owner.
        let settle: Completion = Box::new(move |outcome| settle(if asked.serves() { outcome } else { Outcome::Moved }));
        endpoint.deliver(Delivery::new(Action::Answer, envelope, DedupKey::MessageId, settle));
    }

    /// Delivers a command from outside whose caller does not wait.
    pub(in crate::node) fn deliver_post(&self, envelope: Envelope, settle: Completion) {
        let envelope = self.with_own_deadline(envelope);
        match self.endpoint_of(&envelope) {
            Some(endpoint) => {
                endpoint.deliver_post(Delivery::new(Action::Handle, envelope, DedupKey::MessageId, settle));
            }
            None => settle(Outcome::Moved),
        }
    }

    /// Returns the envelope with its deadline by the clock of this node.
    fn with_own_deadline(&self, mut envelope: Envelope) -> Envelope {
        if let Some(deadline) = envelope.deadline {
            // The sender wrote the deadline by its own clock. The remaining time is still known: both timestamps are
            // of that clock.
            let now = self.context.ids.clock().now();
            if now <= deadline.after(MAX_CLOCK_SKEW) {
                envelope.deadline = Some(now.after(deadline.since(envelope.time)));
            }
        }
        envelope
    }

    /// Delivers a message of the node itself to the actor with its key, by actor type.
    pub(in crate::node) fn deliver_internal(&self, actor: &Name, work: Action, envelope: Envelope, settle: Completion) {
        // A timer's document may belong to another domain than its actor.
        let domain = envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain).clone();
        match self.endpoints.get(&(domain, actor.clone())) {
            Some(endpoint) => endpoint.deliver(Delivery::new(work, envelope, DedupKey::Internal, settle)),
            None => settle(Outcome::Unhandled),
        }
    }

    pub(in crate::node) fn discard_uncommitted(&self) {
        // Views keep their subscriptions: their events are committed, whatever has failed.
        for subscription in self.groups.iter().flat_map(|group| group.subscriptions.values()) {
            subscription.close();
        }
        let windows = std::mem::take(&mut *self.receive_windows.borrow_mut());
        windows.values().for_each(|window| window.close());
        for (from, windows) in self.send_windows.borrow().iter() {
            self.reset_windows(from, windows);
        }
        for endpoint in self.endpoints.values() {
            endpoint.reset();
        }
    }

    /// Stops accepting messages. `done` is notified once nothing is in flight and everything committed is forwarded.
    pub(in crate::node) fn drain(self: &Rc<Self>, done: oneshot::Sender<()>) {
        self.context.draining.set(true);
        self.context.drain_started.notify_waiters();
        for subscription in self.subscriptions.values().flatten() {
            subscription.pause();
        }
        let windows: Vec<_> = self.receive_windows.borrow().values().cloned().collect();
        windows.iter().for_each(|window| window.release_held());
        let me = Rc::clone(self);
        whizbang_core::spawn::detached(&self.context.user_code, "drain", async move {
            let hosts_nothing = || me.shards().iter().all(|shard| shard.singletons.get() == 0);
            me.context.idle.wait_until(|| me.context.is_idle() && hosts_nothing()).await;
            // Messages that these turns have sent must leave before the node detaches the bridge.
            me.context.idle.wait_until(|| me.is_relayed()).await;
            me.confirm_notes().await;
            me.store_watermarks(1);
            for view in &me.views {
                view.drain().await;
            }
            let _ = done.send(());
        });
    }

    /// Ends at once: tasks, endpoints, actors.
    pub(in crate::node) fn end(&self) {
        if self.has_ended.replace(true) {
            return;
        }
        self.context.stopped.set(true);
        // Actors waiting in a back-off hold the store.
        self.context.drain_started.notify_waiters();
        LocalRoutes::withdraw(self.definition.id);
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
        // Before anything is dropped: a caller waiting for a commit must not be told that nothing was done.
        self.context.fail_pending_commits(&StoreError::Closed);
        self.discard_uncommitted();
        for view in &self.views {
            view.end();
        }
        self.context.idle.notify();
        self.ended.notify_one();
    }
}

impl NodeThread for ThreadRuntime {
    fn advance_head(&self, source: &ShardId, position: u64) {
        for subscription in self.subscriptions.get(source).into_iter().flatten() {
            subscription.advance_head(position);
        }
    }

    fn note_committed(self: &Rc<Self>, from: &ShardId, to: &ShardId, through: u64) {
        self.note_committed(from, to, through);
    }

    fn rest(self: &Rc<Self>, done: oneshot::Sender<u64>) {
        self.wait_idle(done);
    }

    fn drain(self: &Rc<Self>, done: oneshot::Sender<()>) {
        self.drain(done);
    }

    fn end(&self) {
        self.end();
    }
}

/// Covers a thread that is dropped without ending itself, for instance with its runtime: its routes must not stay
/// behind.
impl Drop for ThreadRuntime {
    fn drop(&mut self) {
        LocalRoutes::withdraw(self.definition.id);
    }
}

/// Largest clock difference between two nodes: a deadline further in the past counts as missed. 5 minutes, as in
/// Kerberos (RFC 4120).
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);
