//! Node: the running service, with its client, health and shutdown.
//!
//! Called by users. Started by the [builder](crate::node::NodeBuilder).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::client::Client;
use crate::node::definition::NodeDefinition;
use crate::node::error::{Error, NodeEnd};
use crate::node::health::{Health, Metrics};
use crate::node::lifecycle::ownership::OwnershipGuard;
use crate::node::ownership::cluster::Cluster;
use crate::node::thread::Threads;
use crate::router::Manifest;
use whizbang_core::bridge::NodeCard;
use whizbang_core::spawn::LocalThread;
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

/// Longest wait for turns in progress while the node stops.
const DRAIN: Duration = Duration::from_secs(10);
/// Shortest time granted to detach from the broker, even if draining used up its limit.
const DETACH: Duration = Duration::from_secs(1);

/// One running process of a service.
///
/// The node runs until it is stopped or dropped. Dropping it ends it at once, like a crash; [`stop`](Self::stop)
/// shuts it down in order. Neither loses an acknowledged message.
///
/// ```
/// # use bank_fixture::*;
/// # whizbang::derive::block_on(async {
/// use whizbang::prelude::*;
///
/// let store = MemoryStore::new();
/// let node = Node::builder("bank", store.clone()).aggregate::<Account>().start().await?;
/// node.client().send(Deposit { account: "ada".into(), cents: 500 }).await?;
/// assert!(node.health().ready);
/// node.stop().await?;
///
/// // The state is in the store.
/// let node = Node::builder("bank", store).aggregate::<Account>().start().await?;
/// assert_eq!(node.client().send(Deposit { account: "ada".into(), cents: 20 }).await?, 520);
/// node.stop().await
/// # }).unwrap();
/// ```
pub struct Node {
    pub(in crate::node) definition: Arc<NodeDefinition>,
    pub(in crate::node) client: Client,
    pub(in crate::node) threads: Threads,
    /// Asks `run` to stop.
    pub(in crate::node) stop_requested: Arc<Notify>,
    /// Closed when the node ends, which handles observe.
    pub(in crate::node) alive: watch::Sender<()>,
    /// Owned here because the bridge's tasks run on it.
    pub(in crate::node) _bridge_thread: Option<LocalThread>,
    pub(in crate::node) _ownership: Option<OwnershipGuard>,
}

impl Node {
    /// Returns a client that reaches this node's domains directly and all others through the bridge.
    ///
    /// It can be cloned and used on any thread, also after the end of the node, when every call fails.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Returns the node's description: domains, actor types, messages, subscriptions. It implements `Display`.
    pub fn manifest(&self) -> &Manifest {
        &self.definition.manifest
    }

    /// Returns the node as its bridge sees it: its service, its domains and what it receives from others. Broker
    /// permissions are generated from it; to get it before they exist, start the node without a bridge.
    pub fn card(&self) -> &NodeCard {
        &self.definition.card
    }

    /// Waits until the node is idle: no turn or job is in flight, every sent message is committed by its receiver,
    /// and every event that existed at the call has been handled by its local subscribers and views. The tables of a
    /// projection with [statements](crate::projection::Project::statements) contain these events, if this node is the one
    /// that writes them. Messages that arrive later may start new work.
    ///
    /// Intended for tests and for callers that read their own writes. It does not return while a required peer is
    /// unreachable, while a failed message is retried, while tables cannot be written, or while messages are blocked behind the
    /// dead letters of their key; use a timeout where that can happen. It does not wait for timers in the future, nor for messages to a
    /// domain that this node neither hosts nor reaches through a bridge; [`health`](Self::health) names such a
    /// domain.
    ///
    /// Cancel safe: dropping the future has no effect on the node.
    pub async fn wait_idle(&self) {
        self.idle().await;
    }

    /// Like [`wait_idle`](Self::wait_idle), without borrowing the node: it may be dropped during the wait.
    pub fn idle(&self) -> impl Future<Output = ()> + use<> {
        let threads = self.threads.clone();
        async move {
            let mut before = None;
            loop {
                // Two equal readings in a row: while one thread was inspected, another may have sent it work.
                let now = Some(threads.wait_idle().await);
                if now == before {
                    return;
                }
                before = now;
            }
        }
    }

    /// Reports whether the node works and accepts messages. A node that finds at a commit that another node of its
    /// service has taken over ends itself and is no longer live: drop it.
    pub fn health(&self) -> Health {
        self.definition.health_with(&self.threads)
    }

    /// Returns the reason for which the node has ended itself, or `None` while it works. [`run`](Self::run) returns
    /// in that case.
    pub fn ended(&self) -> Option<NodeEnd> {
        self.definition.ended.borrow().clone()
    }

    /// Returns the nodes that share the store of this service, and the owners of its shards, as this node has last seen
    /// them; `None` if only one node may use the store.
    pub fn cluster(&self) -> Option<Cluster> {
        self.definition.membership.as_ref().map(|membership| membership.cluster())
    }

    /// Returns the counters of the node since it started.
    pub fn metrics(&self) -> Metrics {
        self.definition.metrics()
    }

    /// Passivates every idle actor: the next message of its key rebuilds it.
    #[doc(hidden)]
    pub fn passivate_idle(&self) {
        self.threads.run_all(|runtime| runtime.endpoints.values().for_each(|endpoint| endpoint.passivate_idle(0, 0)));
    }

    /// Returns the number of turns and jobs in flight.
    #[doc(hidden)]
    pub fn in_flight(&self) -> u64 {
        self.definition.in_flight() + self.definition.jobs()
    }

    /// Returns how long the ids of callers are remembered, if the node owns the domain.
    #[doc(hidden)]
    pub fn remembers(&self, domain: &whizbang_core::message::Name) -> Option<std::time::Duration> {
        self.definition.owns(domain).map(|_| self.definition.config.remember)
    }

    /// Returns the text of a background task that has failed, if any.
    #[doc(hidden)]
    pub fn failed_task(&self) -> Option<String> {
        let failed = self.definition.user_code.iter().find(|code| code.counts.failed_tasks.get() > 0)?;
        Some(failed.failed_tasks().pop().unwrap_or_else(|| "a background task has failed".to_owned()))
    }

    /// Returns the actors that an event is delivered to: domain, actor type and key.
    #[doc(hidden)]
    pub fn subscribers_of(
        &self,
        shard: &whizbang_core::message::ShardId,
        event: &whizbang_core::store::StoredEvent,
    ) -> Vec<(whizbang_core::message::Name, whizbang_core::message::Name, String)> {
        let event = crate::relay::envelope_of(shard, event.clone());
        let takes = |hosted: &&crate::node::definition::ActorDefinition| {
            hosted.takes.iter().any(|(domain, name)| *domain == event.domain && *name == event.name)
        };
        let subscribers = self.definition.actors.iter().filter(takes);
        subscribers
            .filter_map(|hosted| Some((hosted.domain.clone(), hosted.actor.clone(), hosted.hosted.key_of(&event)?)))
            .collect()
    }

    /// Shuts the node down: accepts nothing new, finishes the turns in progress, forwards committed messages, saves
    /// views and closes the store.
    ///
    /// Takes at most 10 s, and one more second to detach from the broker. Work unfinished by then is treated as after
    /// a crash: no acknowledged message is lost.
    ///
    /// # Errors
    /// [`Error::Store`] if closing the store failed.
    pub async fn stop(self) -> Result<(), Error> {
        let begun = whizbang_core::clock::instant();
        if let Some(membership) = &self.definition.membership
            && tokio::time::timeout(DRAIN, membership.leave()).await.is_err()
        {
            tracing::warn!(target: TARGET, "shards not handed over in time: their lease runs out");
        }
        self.definition.draining.store(true, Ordering::Relaxed);
        self.definition.watches.end();
        self.threads.drain(DRAIN.saturating_sub(begun.elapsed()).max(DETACH)).await;
        if let Some(bridge) = &self.definition.bridge {
            // The drain limit is shared: time spent draining is not granted a second time.
            let limit = DRAIN.saturating_sub(begun.elapsed()).max(DETACH);
            match tokio::time::timeout(limit, bridge.detach()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(
                    target: TARGET, error = %error_chain(&error),
                    "failed to detach the bridge",
                ),
                Err(_) => {
                    tracing::warn!(target: TARGET, "bridge not detached in time: abandoned");
                    bridge.abandon();
                }
            }
        }
        self.threads.end().await;
        self.definition.store.close().await?;
        Ok(())
    }

    /// Runs until the process receives SIGTERM or SIGINT, or a [handle](Self::handle) requests a stop, then
    /// [stops](Self::stop) the node.
    ///
    /// # Errors
    /// Same as [`stop`](Self::stop). [`Error::Signal`] if signal handlers cannot be installed. [`Error::Ended`] if the
    /// node has ended itself.
    pub async fn run(self) -> Result<(), Error> {
        let mut ended = self.definition.ended.subscribe();
        let ended = async { ended.wait_for(Option::is_some).await.ok().and_then(|why| why.clone()) };
        tokio::select! {
            biased;
            told = self.stop_signal() => told?,
            why = ended => {
                self.stop().await?;
                return why.map_or(Ok(()), |why| Err(Error::Ended(why)));
            }
        }
        self.stop().await
    }

    async fn stop_signal(&self) -> Result<(), Error> {
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
        // After `stop`, nothing is left to end.
        if let Some(bridge) = &self.definition.bridge {
            bridge.abandon();
        }
        self.threads.run_all(|runtime| runtime.end());
        self.definition.watches.end();
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("service", &self.definition.manifest.service).finish_non_exhaustive()
    }
}
