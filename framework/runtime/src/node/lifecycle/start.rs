//! The start of a node: validates the description, starts the threads, attaches the bridge, and takes the shards.
//!
//! Called by users through [`NodeBuilder::start`]. Each step undoes the ones before it if it fails, so that the caller may reopen
//! the store or start again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::client::Client;
use crate::node::catalog;
use crate::node::catalog::described::{handled, manifest, subscribes};
use crate::node::catalog::hosted::{Hosted, HostedType, Unrouted};
use crate::node::catalog::newer_types::NewerTypes;
use crate::node::config::ConfigError;
use crate::node::config::default_label;
use crate::node::definition::known_owners::KnownOwners;
use crate::node::definition::log_limits::LogLimits;
use crate::node::definition::{ActorDefinition, NodeDefinition, ViewDefinition};
use crate::node::error::StartError;
use crate::node::inbound::bridge_handler::BridgeHandler;
use crate::node::lifecycle::attach::attach;
use crate::node::lifecycle::builder::NodeBuilder;
use crate::node::lifecycle::node::Node;
use crate::node::lifecycle::ownership;
use crate::node::lifecycle::shard_host::ThreadHost;
use crate::node::lifecycle::thread_start::{start_threads, ticks};
use crate::node::ownership::Membership;
use crate::node::singleton::HostedSingleton;
use crate::node::thread::ThreadRuntime;
use crate::node::transport::remote_client::RemoteClient;
use crate::router::{OpenShards, PeerShapes};
use whizbang_core::bridge::NodeCard;
use whizbang_core::message::{IdSource, Name, set_header};
use whizbang_core::store::{Member, MemberId};
use whizbang_core::telemetry::error_chain;
use whizbang_core::user_code::UserCode;

impl NodeBuilder {
    /// Validates the description, opens the shards, attaches the bridge, and accepts messages from then on. Works on
    /// every tokio runtime: the node has its own threads, unless [`threads`](Self::threads) is 0.
    ///
    /// # Errors
    /// [`StartError`] with the cause. No message was handled.
    pub async fn start(self) -> Result<Node, StartError> {
        self.start_with(|member, lease| Some(Membership::new(member, lease))).await
    }

    /// Starts the node with the membership that `membership` makes, if several nodes share the store. Without one the caller
    /// opens and closes the shards.
    pub(in crate::node) async fn start_with(
        mut self,
        membership: impl FnOnce(Member, Duration) -> Option<Membership>,
    ) -> Result<Node, StartError> {
        static NODES: AtomicU64 = AtomicU64::new(1);
        self.config.check()?;
        self.check_options()?;
        if self.label.as_ref().is_some_and(|label| label.len() > 256) {
            return Err(ConfigError::Range { key: "label", range: "at most 256 bytes" }.into());
        }
        if self.seed.is_some() {
            self.config.threads = 0;
        }
        if self.config.threads == 0 && !whizbang_core::spawn::has_local_set() {
            return Err(StartError::NoLocalSet);
        }
        let service = Name::new(&self.service)?;
        for name in &self.propagated {
            set_header(&mut Vec::new(), name, "")?;
        }
        let mut types = self.types;
        types.extend(self.publishers.into_values().map(|publisher| Arc::new(publisher) as Arc<dyn HostedType>));
        let manifest = Arc::new(manifest(&self.service, &types, &self.views)?);
        let known = catalog::check(&*self.store, &manifest, &self.retired).await?;
        let mut domains = BTreeMap::new();
        for domain in &manifest.domains {
            domains.insert(Name::new(&domain.name)?, domain.shards);
        }
        let mut described = Vec::new();
        let mut sources = BTreeMap::new();
        for hosted in types.drain(..) {
            let card = hosted.card();
            let mut takes = Vec::new();
            for taken in &card.takes {
                let domain = Name::new(&taken.domain)?;
                sources.insert(domain.clone(), taken.shards);
                for name in taken.names() {
                    takes.push((domain.clone(), Name::new(name)?));
                }
            }
            let domain = Name::from_static(hosted.domain().0)?;
            described.push(ActorDefinition {
                actor: known.stored(&domain, &Name::new(&card.name)?),
                events: known.events(&domain),
                domain,
                is_isolated: hosted.is_isolated(),
                handles: handled(card.handles.iter().chain(&card.answers))?,
                takes,
                hosted,
            });
        }
        for domain in domains.keys() {
            described.push(ActorDefinition {
                domain: domain.clone(),
                actor: Name::from_static(Unrouted::NAME)?,
                hosted: Arc::new(Hosted::new::<Unrouted>()),
                handles: Vec::new(),
                takes: Vec::new(),
                events: known.events(domain),
                is_isolated: false,
            });
        }
        described.extend(self.schedulers.definitions(&known)?);
        let (mut views, mut answers) = (Vec::new(), HashMap::default());
        for hosted in self.views {
            let card = hosted.card();
            for answered in &card.answers {
                for name in answered.names() {
                    answers.insert((Name::new(&answered.domain)?, Name::new(name)?), views.len());
                }
            }
            let mut takes = Vec::new();
            for taken in &card.takes {
                let domain = Name::new(&taken.domain)?;
                sources.insert(domain.clone(), taken.shards);
                for name in taken.names() {
                    takes.push((domain.clone(), Name::new(name)?));
                }
            }
            views.push(ViewDefinition { name: known.stored(&service, &Name::new(&card.name)?), hosted, takes });
        }
        let taken = described.iter().flat_map(|hosted: &ActorDefinition| &hosted.takes);
        let taken: Vec<_> = taken.chain(views.iter().flat_map(|viewed| &viewed.takes)).cloned().collect();
        // The events of the own domains arrive over the bridge as well: another node may own their shard.
        let (is_shared, none) = (self.store.leases().is_some(), BTreeMap::new());
        let mut card = NodeCard::new(service);
        card.owns = domains.iter().map(|(name, shards)| (name.clone(), *shards)).collect();
        card.subscribes = subscribes(&taken, &sources, if is_shared { &none } else { &domains });
        card.has_leased_shards = is_shared;
        card.answers = answers.keys().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let ids = match self.seed {
            Some(seed) => IdSource::seeded(self.clock.clone(), seed),
            None => IdSource::random(self.clock.clone()),
        };
        let membership = is_shared.then(|| {
            let id = MemberId::from_u128(u128::from(ids.next_u64()) << 64 | u128::from(ids.next_u64()));
            // The label of a simulated node is the same in every run.
            let label = self.label.unwrap_or_else(|| self.seed.map_or_else(default_label, |_| "simulated".to_owned()));
            membership(Member::new(id, card.service.clone(), label), self.config.lease).map(Arc::new)
        });
        let membership = membership.flatten();
        let ticks = ticks(self.seed)?;
        let shapes = self.bridge.is_some().then(|| PeerShapes::of(&manifest));
        let definition = Arc::new(NodeDefinition {
            id: NODES.fetch_add(1, Ordering::Relaxed),
            shapes: Arc::new(shapes.unwrap_or_default()),
            shape_requests: tokio::sync::Mutex::default(),
            newer: NewerTypes::new(Arc::clone(&manifest), self.retired, self.config.newer_commands),
            keyed_queries: manifest.keyed_queries()?,
            manifest,
            card: card.clone(),
            user_code: (0..self.config.threads.max(1)).map(|_| UserCode::new(&ticks)).collect(),
            ticks,
            has_threads: self.seed.is_none(),
            retries: self.retries.with_all(self.config.retry),
            propagated: self.propagated.into_iter().collect(),
            layers: Arc::new(self.layers),
            config: self.config,
            store: self.store,
            bridge: self.bridge,
            actors: described,
            views,
            answers,
            issues: Arc::default(),
            open_shards: Arc::new(OpenShards::new(&domains, is_shared)),
            singletons: HostedSingleton::all(self.singletons, &domains)?,
            member: membership.as_ref().map_or_else(OnceLock::new, |membership| membership.member.id.into()),
            domains,
            sources,
            readers: DashMap::default(),
            draining: AtomicBool::new(false),
            suspect_permits: Arc::new(tokio::sync::Semaphore::new(1)),
            broken: Mutex::default(),
            ended: watch::Sender::default(),
            identity: OnceLock::new(),
            known_owners: KnownOwners::default(),
            log_limits: Arc::new(LogLimits::default()),
            failure_log: Arc::default(),
            watches: Arc::default(),
            membership,
        });
        let forks = (0..definition.thread_count()).map(|_| ids.fork()).collect();
        let (threads, unstarted) = match start_threads(&definition, forks).await {
            Ok(started) => started,
            Err(error) => return Err(close_store(&definition, error).await),
        };
        let mut bridge_thread = None;
        if let Some(bridge) = &definition.bridge {
            let handler = Arc::new(BridgeHandler::new(Arc::clone(&definition), threads.clone()));
            bridge_thread = match attach(&definition, bridge, card, handler, ids.next_u64()).await {
                Ok(thread) => thread,
                Err(error) => {
                    threads.end().await;
                    return Err(close_store(&definition, error).await);
                }
            };
            tracing::info!(target: whizbang_core::telemetry::TARGET, durability = bridge.durability(), "bridge attached");
        }
        threads.run_all(ThreadRuntime::start_tasks);
        let host = Arc::new(ThreadHost::new(&definition, threads.clone()));
        let ownership = match ownership::start(&definition, host).await {
            Ok(ownership) => ownership,
            Err(error) => {
                threads.end().await;
                if let Some(bridge) = &definition.bridge {
                    bridge.abandon();
                }
                return Err(close_store(&definition, error).await);
            }
        };
        unstarted.disarm();
        tracing::info!(
            target: whizbang_core::telemetry::TARGET, service = definition.manifest.service, store = definition.store.durability(),
            "node started",
        );
        let remote = Arc::new(RemoteClient::new(&definition, threads.clone()));
        let client = Client::new(definition.id, remote, ids.fork());
        let (alive, _) = watch::channel(());
        Ok(Node {
            definition,
            client,
            threads,
            stop_requested: Arc::default(),
            alive,
            _bridge_thread: bridge_thread,
            _ownership: ownership,
        })
    }
}

/// Closes the store of a node that failed to start: its ended threads may hold it, and the caller may want to reopen
/// it.
async fn close_store(definition: &NodeDefinition, error: StartError) -> StartError {
    if let Err(error) = definition.store.close().await {
        tracing::warn!(
            target: whizbang_core::telemetry::TARGET, error = %error_chain(&error),
            "failed to close the store",
        );
    }
    error
}
