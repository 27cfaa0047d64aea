//! The life of one thread's runtime, which [`node::thread`](crate::node::thread) defines: opens its shards, installs the
//! endpoints, starts the background tasks, and runs the jobs of other threads until it ends.
//!
//! Called when the node's [threads start](crate::node::lifecycle::thread_start).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use crate::actor::{ThreadContext, ThreadSettings};
use crate::node::definition::NodeDefinition;
use crate::node::error::StartError;
use crate::node::inbound::receive_windows::MAX_WINDOWS;
use crate::node::inbound::subscriptions::{groups, views};
use crate::node::relay::{local, publisher};
use crate::node::tasks::supervisor::{Restart, supervise};
use crate::node::tasks::{background, timers};
use crate::node::thread::known_positions::KnownPositions;
use crate::node::thread::{Commands, Endpoints, ThreadRuntime, Threads};
use crate::node::thread_handles::ThreadJob;
use crate::node::transport::remote_client::RemoteClient;
use crate::router::LocalRoutes;
use whizbang_core::message::{IdSource, ShardId};
use whizbang_core::store::{CommitListener, ShardHandle, StoreError};
use whizbang_core::user_code::{caught, user_code};

/// The name of the failed task if a job of another thread panics.
const JOB_TASK: &str = "job of another thread";

impl ThreadRuntime {
    /// Opens the shards of this thread, unless the store leases them one by one, and installs the endpoints. No task
    /// runs yet.
    pub(in crate::node) async fn open(
        definition: Arc<NodeDefinition>,
        index: usize,
        threads: Threads,
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
            failure_log: Arc::clone(&definition.failure_log),
            shapes: Arc::clone(&definition.shapes),
            suspect_permits: Arc::clone(&definition.suspect_permits),
            propagated: Arc::clone(&definition.propagated),
            layers: Arc::clone(&definition.layers),
            digest_key: definition.store.digest_key(),
        };
        let context = ThreadContext::new(ids, settings, definition.code(index));
        let remote = Arc::new(RemoteClient::new(&definition, threads.clone()));
        let _ = context.remote.set((definition.id, remote));
        let opened = open_all(&definition, index, &context).await?;
        let (mut endpoints, mut commands, mut routes) =
            (Endpoints::default(), Commands::default(), LocalRoutes::default());
        for hosted in &definition.actors {
            let endpoint = hosted.hosted.install(
                &context,
                hosted.domain.clone(),
                hosted.actor.clone(),
                // The number of shards of the domain.
                definition.owns(&hosted.domain).unwrap_or(1),
                &hosted.events,
                &mut routes,
            );
            for (command, version) in &hosted.handles {
                commands.insert((hosted.domain.clone(), command.clone()), (Rc::clone(&endpoint), *version));
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
        let of_groups = groups.iter().map(|group| &group.subscriptions);
        let all = of_groups.chain(views.iter().map(|view| view.subscriptions()));
        for (source, subscription) in all.flatten() {
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
            max_receive_windows: Cell::new(MAX_WINDOWS),
            subscriptions,
            groups,
            views,
            is_relaying: Cell::new(false),
            publisher: Rc::default(),
            known_positions: KnownPositions::default(),
            send_windows: RefCell::default(),
            confirmations: RefCell::default(),
            unknown_destinations: RefCell::default(),
            unread: RefCell::default(),
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
    pub(in crate::node) async fn run(self: Rc<Self>, jobs: mpsc::UnboundedReceiver<ThreadJob<Self>>) {
        if let Err(panicked) = caught(self.work(jobs)).await {
            self.context.user_code.failed("thread", panicked.text());
            let reason = format!("thread {} failed: {panicked}", self.index);
            self.definition.broken.lock().get_or_insert(reason);
        }
        self.end();
    }

    async fn work(self: &Rc<Self>, mut jobs: mpsc::UnboundedReceiver<ThreadJob<Self>>) {
        loop {
            tokio::select! {
                biased;
                () = self.ended.notified() => return,
                job = jobs.recv() => match job {
                    // A panicking job drops its reply channel, so its caller learns that it was stopped.
                    Some(job) => match user_code(|| job(self)) {
                        Ok(()) => self.context.user_code.task_recovered(JOB_TASK),
                        Err(panicked) => self.context.user_code.failed(JOB_TASK, panicked.text()),
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
        running.push(supervise(self, "complete commits", Restart::Never, background::complete_commits));
        running.push(supervise(self, "relay", Restart::After(ThreadRuntime::restart_relay), local::run));
        if self.definition.bridge.is_some() {
            running.push(supervise(self, "publish", Restart::After(ThreadRuntime::restart_relay), publisher::run));
        }
        running.push(supervise(self, "fire timers", Restart::After(|_| {}), timers::fire));
        running.push(supervise(self, "passivate", Restart::After(|_| {}), background::passivate_idle));
        drop(running);
        for shard in self.shards() {
            self.remind_senders(&shard);
        }
        // Before anything new: messages recorded in the log for a key are older.
        self.shards().iter().for_each(|shard| self.deliver_deferred(&shard.id));
        self.catch_up();
        self.shards().iter().for_each(|shard| self.start_singletons(shard));
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
}

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
