//! Thread runtime: one thread's shards with everything wired to them.
//!
//! Created by the builder, one per thread; runs until the node ends. Its methods are in the files of their concern:
//! what arrives in [`inbound`](crate::node::inbound), what leaves in [`relay`](crate::node::relay), opening and closing
//! of shards in [`shards`](crate::node::shards). All state here is `Rc` and `Cell`: other threads reach it only through
//! jobs.

pub(in crate::node) mod stored_watermarks;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::node::definition::NodeDefinition;
use crate::node::error::StartError;
use crate::node::inbound::receive_windows::ReceiveWindows;
use crate::node::inbound::subscriptions::{SubscriptionGroup, groups, views};
use crate::node::relay::publisher::{self, Publisher};
use crate::node::tasks::supervisor::{Restart, supervise};
use crate::node::tasks::{background, timers};
use crate::node::thread_handles::{ThreadHandles, ThreadJob};
use crate::node::transport::remote_client::RemoteClient;

use crate::actor::{ThreadContext, ThreadSettings};
use crate::inbox::Subscription;
use crate::projection::ViewEndpoint;
use crate::relay::SendWindows;
use crate::router::{Action, ActorEndpoint, Completion, DedupKey, Delivery, LocalRoutes, Outcome};
use whizbang_core::message::{Envelope, IdSource, Name, ShardId};
use whizbang_core::spawn::Task;
use whizbang_core::store::{CommitListener, ShardHandle, StoreError};
use whizbang_core::telemetry::TARGET;
use whizbang_core::user_code::{caught, user_code};

pub(in crate::node) type Endpoints = HashMap<(Name, Name), Rc<dyn ActorEndpoint>, FixedState>;

/// One thread of a node.
pub(in crate::node) struct ThreadRuntime {
    pub(in crate::node) definition: Arc<NodeDefinition>,
    pub(in crate::node) index: usize,
    pub(in crate::node) threads: ThreadHandles,
    pub(in crate::node) context: Rc<ThreadContext>,
    /// Endpoints by domain and actor type.
    pub(in crate::node) endpoints: Endpoints,
    /// Endpoints by domain and command.
    commands: Endpoints,
    /// Endpoints of typed commands.
    pub(in crate::node) routes: Rc<LocalRoutes>,
    pub(in crate::node) receive_windows: RefCell<ReceiveWindows>,
    /// All subscriptions, by source shard.
    pub(in crate::node) subscriptions: BTreeMap<ShardId, Vec<Rc<Subscription>>>,
    pub(in crate::node) groups: Vec<SubscriptionGroup>,
    pub(in crate::node) views: Vec<Rc<dyn ViewEndpoint>>,
    /// The relay task is working.
    pub(in crate::node) is_relaying: Cell<bool>,
    pub(in crate::node) publisher: Rc<Publisher>,
    /// Send windows of the open shards.
    pub(in crate::node) send_windows: RefCell<BTreeMap<ShardId, Rc<SendWindows>>>,
    /// Watermarks still to be confirmed to shards of other services.
    pub(in crate::node) told: RefCell<BTreeMap<(ShardId, ShardId), u64>>,
    /// Destinations that sent a note although nothing was sent to them, while they are queried.
    pub(in crate::node) unknown_destinations: RefCell<BTreeSet<(ShardId, ShardId)>>,
    pub(in crate::node) tasks: RefCell<Vec<Task>>,
    ended: Notify,
    pub(in crate::node) has_ended: Cell<bool>,
    me: RefCell<std::rc::Weak<ThreadRuntime>>,
}

impl ThreadRuntime {
    /// Opens the shards of this thread, unless the store leases them one by one, and installs the endpoints. No task
    /// runs yet.
    pub(in crate::node) async fn open(
        definition: Arc<NodeDefinition>,
        index: usize,
        threads: ThreadHandles,
        ids: IdSource,
    ) -> Result<Rc<Self>, StartError> {
        let settings = ThreadSettings {
            in_flight: definition.config.in_flight,
            in_flight_per_key: definition.config.in_flight_per_key,
            retry: definition.retries.clone(),
            jobs: definition.config.jobs,
            job_limit: definition.config.job_limit,
            live_actors: definition.config.live_actors,
            remember: definition.config.remember,
            issues: Arc::clone(&definition.issues),
            shapes: Arc::clone(&definition.shapes),
            suspect_permits: Arc::clone(&definition.suspect_permits),
            propagated: Arc::clone(&definition.propagated),
            digest_key: definition.store.digest_key(),
        };
        let context = ThreadContext::new(ids, settings, definition.code(index));
        let remote = Arc::new(RemoteClient::new(&definition, threads.clone()));
        let _ = context.remote.set((definition.id, remote));
        let opened = open_all(&definition, index, &context).await?;
        let (mut endpoints, mut commands, mut routes) =
            (Endpoints::default(), Endpoints::default(), LocalRoutes::default());
        for hosted in &definition.actors {
            let endpoint = hosted.hosted.install(
                &context,
                hosted.domain.clone(),
                hosted.actor.clone(),
                definition.owns(&hosted.domain).unwrap_or(1),
                &hosted.events,
                &mut routes,
            );
            for command in &hosted.handles {
                commands.insert((hosted.domain.clone(), command.clone()), Rc::clone(&endpoint));
            }
            endpoints.insert((hosted.domain.clone(), hosted.actor.clone()), endpoint);
        }
        let groups = groups(&definition, &context);
        let views = views(&definition, index, &context).await?;
        routes.share(&definition.open_shards);
        let routes = Rc::new(routes);
        // With several threads a key may be on another one, so a sender must route by key.
        if definition.thread_count() == 1 {
            Rc::clone(&routes).publish(definition.id);
        }
        let mut subscriptions: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let theirs =
            groups.iter().map(|group| &group.subscriptions).chain(views.iter().map(|view| view.subscriptions()));
        for (source, subscription) in theirs.flatten() {
            subscriptions.entry(source.clone()).or_default().push(Rc::clone(subscription));
        }
        let runtime = Rc::new(Self {
            definition,
            index,
            threads,
            context,
            endpoints,
            commands,
            routes,
            receive_windows: RefCell::default(),
            subscriptions,
            groups,
            views,
            is_relaying: Cell::new(false),
            publisher: Rc::default(),
            send_windows: RefCell::default(),
            told: RefCell::default(),
            unknown_destinations: RefCell::default(),
            tasks: RefCell::default(),
            ended: Notify::new(),
            has_ended: Cell::new(false),
            me: RefCell::default(),
        });
        *runtime.me.borrow_mut() = Rc::downgrade(&runtime);
        for (id, handle) in opened {
            runtime.install(id, handle);
        }
        runtime.load_deferred().await?;
        runtime.set_takers();
        Ok(runtime)
    }

    /// Runs the jobs sent to this thread until it ends.
    pub(in crate::node) async fn run(self: Rc<Self>, jobs: mpsc::UnboundedReceiver<ThreadJob>) {
        if let Err(panicked) = caught(self.work(jobs)).await {
            self.context.user_code.failed("thread", panicked.text());
            let reason = format!("thread {} failed: {panicked}", self.index);
            self.definition.broken.lock().get_or_insert(reason);
        }
        self.end();
    }

    async fn work(self: &Rc<Self>, mut jobs: mpsc::UnboundedReceiver<ThreadJob>) {
        loop {
            tokio::select! {
                biased;
                () = self.ended.notified() => return,
                job = jobs.recv() => match job {
                    // A panicking job drops its reply channel, so its caller learns that it was stopped.
                    Some(job) => match user_code(|| job(self)) {
                        Ok(()) => self.context.user_code.task_recovered("link"),
                        Err(panicked) => self.context.user_code.failed("link", panicked.text()),
                    },
                    None => return,
                },
            }
        }
    }

    /// Starts the background tasks.
    pub(in crate::node) fn start_tasks(self: &Rc<Self>) {
        let mut running = self.tasks.borrow_mut();
        // A panic here loses the completions in progress: their callers would wait forever.
        running.push(supervise(self, "release", Restart::Never, background::complete_commits));
        running.push(supervise(self, "relay", Restart::After(ThreadRuntime::restart_relay), background::relay));
        if self.definition.bridge.is_some() {
            running.push(supervise(self, "carry", Restart::After(ThreadRuntime::restart_relay), publisher::run));
        }
        running.push(supervise(self, "timers", Restart::After(|_| {}), timers::fire));
        running.push(supervise(self, "sweep", Restart::After(|_| {}), background::passivate_idle));
        drop(running);
        for shard in self.shards() {
            self.remind_senders(&shard);
        }
        // Before anything new: messages recorded in the log for a key are older.
        self.shards().iter().for_each(|shard| self.deliver_deferred(&shard.id));
        self.catch_up();
    }

    /// Restarts the relay, which may have lost what it was forwarding. Everything is forwarded again; receivers drop
    /// duplicates.
    fn restart_relay(self: &Rc<Self>) {
        self.is_relaying.set(false);
        self.publisher.failed();
        for windows in self.send_windows.borrow().values() {
            windows.restart_all();
        }
        self.catch_up();
    }

    /// Checks everything that may be missing or waiting.
    pub(in crate::node) fn catch_up(&self) {
        for subscription in self.subscriptions.values().flatten() {
            subscription.start_filling();
        }
        for shard in self.shards() {
            shard.mark_dirty(&self.context);
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

    /// Returns whether everything committed has been forwarded.
    pub(in crate::node) fn is_relayed(&self) -> bool {
        let left = self.definition.bridge.is_none() || self.publisher.is_idle();
        !self.is_relaying.get() && self.context.is_clean() && left
    }

    pub(in crate::node) fn endpoint_of(&self, envelope: &Envelope) -> Option<Rc<dyn ActorEndpoint>> {
        let domain = envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain);
        let found = match &envelope.actor {
            Some(actor) => self.endpoints.get(&(domain.clone(), actor.clone())),
            None => self.commands.get(&(domain.clone(), envelope.name.clone())),
        };
        found.cloned().or_else(|| self.unrouted(domain))
    }

    /// Delivers a command from outside to its actor.
    pub(in crate::node) fn deliver_external(&self, mut envelope: Envelope, settle: Completion) {
        if let Some(deadline) = envelope.deadline {
            // The sender wrote the deadline by its own clock. The remaining time is still known: both timestamps are
            // of that clock.
            let now = self.context.ids.clock().now();
            if now <= deadline.after(MAX_CLOCK_SKEW) {
                envelope.deadline = Some(now.after(deadline.since(envelope.time)));
            }
        }
        match self.endpoint_of(&envelope) {
            Some(endpoint) => {
                endpoint.deliver(Delivery::new(Action::Handle, envelope, DedupKey::MessageId, settle));
            }
            None => settle(Outcome::Stopped),
        }
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
        for windows in self.send_windows.borrow().values() {
            windows.reset();
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
            me.context.idle.wait_until(|| me.context.is_idle()).await;
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

/// Opens the shards of a thread in a store that one node owns alone. Leased shards are opened one by one later.
async fn open_all(
    definition: &NodeDefinition,
    index: usize,
    context: &ThreadContext,
) -> Result<Vec<(ShardId, ShardHandle)>, StoreError> {
    let mut opened = Vec::new();
    for (domain, count) in definition.domains.iter().filter(|_| !definition.open_shards.is_shared()) {
        for shard in (0..*count).filter(|shard| definition.thread_of(*shard) == index) {
            let id = ShardId::new(domain.clone(), shard);
            let listener: Arc<dyn CommitListener> = Arc::clone(&context.commits) as _;
            let handle = definition.store.open(&id, *count, listener).await?;
            opened.push((id, handle));
        }
    }
    Ok(opened)
}
