//! A node: what it hosts, how it is configured, in which order it starts and stops.
//!
//! Called by users. Builds all other rooms and wires them; afterwards messages do not pass through here.

mod attach;
mod background;
mod builder;
mod catalog;
mod config;
mod confirmations;
mod connect;
mod dead_letters;
mod definition;
mod error;
mod found;
mod gaps;
mod handle;
mod hosted;
mod inbound;
mod known_owners;
mod peers;
mod publisher;
mod receive_windows;
mod remote_answer;
mod remote_client;
mod republish;
mod skips;
mod subscriptions;
mod supervisor;
mod thread;
mod thread_handles;
mod timers;

pub use builder::NodeBuilder;
pub use config::{ConfigError, NodeConfig};
pub use error::{Error, NodeEnd, ShapeChange, StartError};
pub use handle::NodeHandle;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, watch};

use crate::bridge::NodeCard;
use crate::client::Client;
use crate::router::Manifest;
use crate::spawn::LocalThread;
use crate::store::Store;
use crate::telemetry::TARGET;
use definition::NodeDefinition;
use thread_handles::ThreadHandles;

/// How long a node that stops waits for its turns to finish.
const DRAIN: Duration = Duration::from_secs(10);
/// How long it takes leave of the broker at least.
const DETACH: Duration = Duration::from_secs(1);

/// One running process of a service.
///
/// It works as long as it is kept: dropping it ends it at once, as a crash would; [`stop`](Self::stop) ends it in order.
/// Either way nothing that was acknowledged is lost.
pub struct Node {
    spec: Arc<NodeDefinition>,
    client: Client,
    links: ThreadHandles,
    /// Asks `run` to stop.
    stop_requested: Arc<Notify>,
    /// Handles see the node's end by it.
    alive: watch::Sender<()>,
    /// Kept for what the bridge runs there.
    _bridge_thread: Option<LocalThread>,
}

impl Node {
    /// Begins to describe a node of `service`, which keeps what it owns in `store`.
    ///
    /// ```
    /// # use whizbang::doc_fixtures::*;
    /// # whizbang::derive::block_on(async {
    /// use whizbang::prelude::*;
    /// let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await?;
    /// node.stop().await
    /// # }).unwrap();
    /// ```
    pub fn builder(service: &str, store: impl Store) -> NodeBuilder {
        NodeBuilder::new(service, Arc::new(store))
    }

    /// A client that reaches this node's domains directly and others through its bridge.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// What the node is made of. It can be printed.
    pub fn manifest(&self) -> &Manifest {
        &self.spec.manifest
    }

    /// The node as a bridge sees it: its service, its domains, and what it receives from others. Permissions at a broker are made
    /// from it; start the node without a bridge to get it before those exist.
    pub fn card(&self) -> &NodeCard {
        &self.spec.card
    }

    /// Waits until nothing is under way on this node: no turn and no job, everything sent is committed by its receiver, every
    /// event that exists when this is called is taken by who takes it here and is in its view. What others send meanwhile may
    /// begin anew.
    ///
    /// For tests, and for callers that read what was just written. It does not end while another node that is waited for is
    /// away, while a failed message is tried again, and while messages have no room behind the dead letters of their key: give it
    /// a time-out if that may be. Timers that are not due are not waited for. Neither are messages to a domain that this node does
    /// not host and has no bridge to; [`health`](Self::health) names it.
    pub async fn wait_idle(&self) {
        self.idle().await;
    }

    /// The same, without holding the node: it may be dropped meanwhile.
    pub(crate) fn idle(&self) -> impl Future<Output = ()> + use<> {
        let links = self.links.clone();
        async move {
            let mut before = None;
            loop {
                // Twice, with nothing done in between: while one thread was looked at, another may have given it something.
                let now = Some(links.at_rest().await);
                if now == before {
                    return;
                }
                before = now;
            }
        }
    }

    /// Whether the node works and can take messages. One that finds at a commit that another node of its service has taken over
    /// ends itself and is not live any more: drop it.
    pub fn health(&self) -> Health {
        self.spec.health_with(&self.links)
    }

    /// Why the node has ended itself, `None` while it works. [`run`](Self::run) returns then.
    pub fn ended(&self) -> Option<NodeEnd> {
        self.spec.ended.borrow().clone()
    }

    /// What the node has counted since it started.
    pub fn metrics(&self) -> Metrics {
        self.spec.metrics()
    }

    /// Passivates every idle actor: the next message of its key rebuilds it.
    #[cfg(feature = "testing")]
    pub(crate) fn passivate_idle(&self) {
        self.links.run_all(|share| share.endpoints.values().for_each(|door| door.passivate_idle(0, 0)));
    }

    /// Turns and jobs in flight now.
    #[cfg(feature = "testing")]
    pub(crate) fn in_flight(&self) -> u64 {
        self.spec.in_flight() + self.spec.jobs()
    }

    /// How long the ids of callers are remembered, if the node owns the domain.
    #[cfg(feature = "testing")]
    pub(crate) fn remembers(&self, domain: &crate::message::Name) -> Option<std::time::Duration> {
        self.spec.owns(domain).map(|_| self.spec.config.remember)
    }

    /// A background task that has failed, if one has.
    #[cfg(feature = "testing")]
    pub(crate) fn failed_task(&self) -> Option<String> {
        let failed = self.spec.user_code.iter().find(|code| code.counts.failed_tasks.get() > 0)?;
        Some(failed.failures().pop().unwrap_or_else(|| "a background task has failed".to_owned()))
    }

    /// Who takes an event here: domain, actor type and key.
    #[cfg(feature = "testing")]
    pub(crate) fn takers(
        &self,
        shard: &crate::message::ShardId,
        event: &crate::store::StoredEvent,
    ) -> Vec<(crate::message::Name, crate::message::Name, String)> {
        let event = crate::relay::envelope_of(shard, event.clone());
        let takes = |hosted: &&definition::ActorDefinition| {
            hosted.takes.iter().any(|(domain, name)| *domain == event.domain && *name == event.name)
        };
        let takers = self.spec.actors.iter().filter(takes);
        takers
            .filter_map(|hosted| Some((hosted.domain.clone(), hosted.actor.clone(), hosted.hosted.key_of(&event)?)))
            .collect()
    }

    /// Takes nothing new in, finishes the turns it has begun, hands over what is committed, saves views and closes the store.
    /// Takes 10 s at most, and one more to take leave of the broker; what is not finished by then is as after a crash: nothing that was acknowledged is lost.
    ///
    /// # Errors
    /// [`Error::Store`] if the store could not be closed in order.
    pub async fn stop(self) -> Result<(), Error> {
        let begun = crate::clock::instant();
        self.links.drain(&self.spec, DRAIN).await;
        if let Some(bridge) = &self.spec.bridge {
            // What was not finished in time is not waited for a second time.
            let limit = DRAIN.saturating_sub(begun.elapsed()).max(DETACH);
            match tokio::time::timeout(limit, bridge.detach()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(target: TARGET, %error, "the bridge could not be detached in order"),
                Err(_) => {
                    tracing::warn!(target: TARGET, "the bridge was not detached in time");
                    bridge.abandon();
                }
            }
        }
        self.links.end().await;
        self.spec.store.close().await?;
        Ok(())
    }

    /// Works until the process is told to end (SIGTERM or SIGINT) or a [handle](Self::handle) asks for it, then
    /// [stops](Self::stop).
    ///
    /// # Errors
    /// As [`stop`](Self::stop); [`Error::Signal`] if the operating system gives no signals; [`Error::Ended`] if the node has ended
    /// itself.
    pub async fn run(self) -> Result<(), Error> {
        let mut ended = self.spec.ended.subscribe();
        let ended = async { ended.wait_for(Option::is_some).await.ok().and_then(|why| why.clone()) };
        tokio::select! {
            biased;
            told = self.told_to_end() => told?,
            why = ended => {
                self.stop().await?;
                return why.map_or(Ok(()), |why| Err(Error::Ended(why)));
            }
        }
        self.stop().await
    }

    async fn told_to_end(&self) -> Result<(), Error> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let mut term = signal(SignalKind::terminate()).map_err(Error::Signal)?;
            let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
            tokio::select! {
                biased;
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                () = self.stop_requested.notified() => {}
            }
        }
        #[cfg(not(unix))]
        tokio::select! {
            signal = tokio::signal::ctrl_c() => signal.map_err(Error::Signal)?,
            () = self.stop_requested.notified() => {}
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // After `stop` this finds nothing left to end.
        if let Some(bridge) = &self.spec.bridge {
            bridge.abandon();
        }
        self.links.run_all(|share| share.end());
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("service", &self.spec.manifest.service).finish_non_exhaustive()
    }
}

/// Whether a node works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The process should be kept: its threads run and its store can be opened.
    pub live: bool,
    /// It takes messages.
    pub ready: bool,
    /// Why it is not live or not ready; behind that, what an operator should know though it is ready: keys that cannot be loaded
    /// are named here, and how many dead letters wait, with one example. Bounded; each goes once it is resolved.
    pub reasons: Vec<String>,
}

/// What a node has counted since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// Turns appended.
    pub turns: u64,
    /// Events recorded.
    pub events: u64,
    /// Rejections given.
    pub rejections: u64,
    /// Duplicates dropped.
    pub duplicates: u64,
    /// Deliveries that failed and were tried again.
    pub retries: u64,
    /// Messages that became dead letters.
    pub dead_letters: u64,
    /// Commands from outside that failed for their caller alone: the handler panicked in every attempt, or asked for what cannot
    /// be written.
    pub failed: u64,
    /// Steps of sagas that stay done, because the dead letter of the command that undoes them was discarded.
    pub given_up: u64,
    /// Panics in user code.
    pub panics: u64,
    /// Background tasks of the node that ended unexpectedly; those that can be are started again.
    pub failed_tasks: u64,
    /// Snapshots that were not kept because the state could not be encoded. The key's next activation reads more of its log.
    pub snapshots_skipped: u64,
    /// The longest single call of user code so far, in steps of 50 ms; shorter calls count as zero.
    pub longest_call: Duration,
    /// Messages refused because there was no room.
    pub busy: u64,
    /// Actors started.
    pub activations: u64,
    /// Actors put to rest.
    pub passivations: u64,
    /// Keys that cannot be loaded now.
    pub unloadable_keys: u64,
    /// Messages that wait now, written down in the shard that received them: for a key in back-off, for one that cannot be
    /// loaded, or for a worker.
    pub deferred: u64,
    /// Gaps noticed in what came in.
    pub gaps: u64,
    /// Events dropped because the log of their domain's owner does not contain them: forged, or of another store.
    pub events_dropped: u64,
    /// Commands and replies of actors dropped because the log of their sender does not contain them: forged, or of another store.
    pub commands_dropped: u64,
    /// Events and outbox entries handed on.
    pub sent: u64,
    /// Messages from other services that were refused because their type, or that of their reply, is another one there.
    pub shape_refusals: u64,
    /// Messages that the bridge moved to the service's refused stream: unreadable, or without a handler here. They wait there for
    /// an operator.
    pub refused: u64,
    /// Consumers at the broker that stalled and were recreated.
    pub recreated_consumers: u64,
}
