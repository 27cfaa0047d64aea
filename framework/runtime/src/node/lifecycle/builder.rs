//! Node builder, called by users: collects the description of a node, checks it, and starts it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::aggregate::Aggregate;
use crate::client::Client;
use crate::layer::Layers;
use crate::node::catalog;
use crate::node::catalog::described::{handled, manifest, subscribes};
use crate::node::catalog::hosted::{Hosted, HostedType, Unrouted};
use crate::node::catalog::newer_types::NewerTypes;
use crate::node::config::default_label;
use crate::node::config::{ConfigError, NodeConfig};
use crate::node::definition::known_owners::KnownOwners;
use crate::node::definition::{ActorDefinition, NodeDefinition, ViewDefinition};
use crate::node::error::StartError;
use crate::node::inbound::bridge_handler::BridgeHandler;
use crate::node::lifecycle::attach::attach;
use crate::node::lifecycle::node::Node;
use crate::node::lifecycle::own_actors::OwnActors;
use crate::node::lifecycle::ownership;
use crate::node::lifecycle::shard_host::ThreadHost;
use crate::node::lifecycle::thread_start::{start_threads, ticks};
use crate::node::ownership::Membership;
use crate::node::singleton::{DeclaredSingleton, HostedSingleton};
use crate::node::thread::ThreadRuntime;
use crate::node::transport::remote_client::RemoteClient;
use crate::projection::{Projection, ProjectionType, ViewType};
use crate::router::{OpenShards, PeerShapes};
use crate::saga::Saga;
use whizbang_core::bridge::{Bridge, NodeCard};
use whizbang_core::clock::Clock;
use whizbang_core::message::{Domain, Event, IdSource, Message, Name, ReplacedStore, set_header};
use whizbang_core::retry::{Retries, Retry};
use whizbang_core::store::{Member, MemberId, Store};
use whizbang_core::telemetry::error_chain;
use whizbang_core::user_code::UserCode;

/// Describes a node; [`start`](Self::start) validates the whole description at once.
///
/// ```
/// # use whizbang::doc_fixtures::*;
/// # whizbang::derive::block_on(async {
/// use whizbang::prelude::*;
/// use whizbang::{NodeConfig, StartError};
///
/// let bank = |config| Node::builder("bank", MemoryStore::new()).aggregate::<Account>().config(config);
/// // Each setting is validated by `start`, with its name and its range in the error.
/// let refused = bank(NodeConfig { in_flight: 0, ..NodeConfig::default() }).start().await;
/// assert!(matches!(refused, Err(StartError::Config(_))));
/// let node = bank(NodeConfig { threads: 2, ..NodeConfig::default() }).start().await?;
/// node.stop().await
/// # }).unwrap();
/// ```
#[must_use = "a node starts only when `start` is called and awaited"]
pub struct NodeBuilder {
    service: String,
    store: Arc<dyn Store>,
    bridge: Option<Arc<dyn Bridge>>,
    config: NodeConfig,
    retries: Retries,
    pub(super) types: Vec<Arc<dyn HostedType>>,
    publishers: BTreeMap<&'static str, Hosted>,
    /// The schedulers of the domains.
    schedulers: OwnActors,
    views: Vec<Arc<dyn ViewType>>,
    pub(super) singletons: Vec<DeclaredSingleton>,
    retired: BTreeSet<String>,
    propagated: BTreeSet<String>,
    pub(super) layers: Layers,
    clock: Clock,
    seed: Option<u64>,
    label: Option<String>,
    /// The test opens and closes leased shards by itself.
    #[cfg(test)]
    pub(in crate::node) moves_by_hand: bool,
}

impl Node {
    /// Returns a builder for a node of `service` that keeps its domains in `store`.
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
}

impl NodeBuilder {
    pub(in crate::node) fn new(service: &str, store: Arc<dyn Store>) -> Self {
        Self {
            service: service.to_owned(),
            store,
            bridge: None,
            config: NodeConfig::default(),
            retries: Retries::default(),
            types: Vec::new(),
            publishers: BTreeMap::new(),
            schedulers: OwnActors::default(),
            views: Vec::new(),
            singletons: Vec::new(),
            retired: BTreeSet::new(),
            propagated: BTreeSet::new(),
            layers: Layers::default(),
            clock: Clock::system(),
            seed: None,
            label: None,
            #[cfg(test)]
            moves_by_hand: false,
        }
    }

    /// Hosts an aggregate. The node's service owns the aggregate's domain.
    pub fn aggregate<A: Aggregate>(mut self) -> Self {
        self.types.push(Arc::new(Hosted::new::<A>()));
        self.scheduled::<A::Domain>()
    }

    /// Hosts a saga. The node's service owns the saga's domain.
    pub fn saga<S: Saga>(mut self) -> Self {
        self.types.push(Arc::new(Hosted::new::<S>()));
        self.scheduled::<S::Domain>()
    }

    /// Hosts a projection: its view follows the events it subscribes to, of any domain, and answers queries.
    ///
    /// The view is kept in memory, saved in the store from time to time, and rebuilt from the events if its schema has
    /// changed.
    pub fn projection<P: Projection>(mut self) -> Self {
        self.views.push(Arc::new(ProjectionType::<P>::new()));
        self
    }

    /// Hosts the scheduler of a domain.
    pub(super) fn scheduled<D: Domain>(mut self) -> Self {
        self.schedulers.add::<D>();
        self
    }

    /// Accepts events of type `E` that callers publish with [`Client::publish`] and jobs with
    /// [`Job::publish`](crate::Job::publish), without an aggregate. The node's service owns the event's domain.
    ///
    /// Every caller that may send commands to the domain may publish the event. An aggregate of the domain may record
    /// it as well.
    pub fn publishes<E: Event>(mut self) -> Self {
        let publisher = self.publishers.entry(E::Domain::NAME).or_insert_with(Hosted::publisher::<E::Domain>);
        publisher.publish::<E>();
        self.scheduled::<E::Domain>()
    }

    /// Connects the node to other services. Default: no bridge.
    ///
    /// Without a bridge the node reaches only the domains that it hosts itself.
    pub fn bridge(mut self, bridge: impl Bridge) -> Self {
        self.bridge = Some(Arc::new(bridge));
        self
    }

    /// Returns whether the node hosts an aggregate or a saga.
    #[doc(hidden)]
    pub fn has_keys(&self) -> bool {
        !self.publishers.is_empty() || self.types.iter().any(|hosted| hosted.card().role != "worker")
    }

    /// Returns the domains that the node would own.
    #[doc(hidden)]
    pub fn owned(&self) -> Vec<String> {
        let published = self.publishers.keys().map(|domain| (*domain).to_owned());
        self.types.iter().map(|hosted| hosted.domain().0.to_owned()).chain(published).collect()
    }

    /// Sets the whole configuration. Default: [`NodeConfig::default`].
    ///
    /// Call it first: [`threads`](Self::threads), [`retry`](Self::retry) and [`replaces_store`](Self::replaces_store)
    /// change single settings of it.
    pub fn config(mut self, config: NodeConfig) -> Self {
        self.config = config;
        self
    }

    /// Sets the number of actor threads, see [`NodeConfig::threads`]. Default 1; 0 runs on the thread that starts the
    /// node.
    pub fn threads(mut self, threads: usize) -> Self {
        self.config.threads = threads;
        self
    }

    /// Sets how failed deliveries are retried.
    ///
    /// Default: the one of [`NodeConfig::retry`].
    pub fn retry(mut self, retry: Retry) -> Self {
        self.config.retry = retry;
        self
    }

    /// Overrides [`retry`](Self::retry) for one message type (a command, an event) and every handler on this node.
    /// Replies to a command count as the command.
    pub fn retry_of<M: Message>(mut self, retry: Retry) -> Self {
        self.retries.set::<M>(retry);
        self
    }

    /// Declares headers that are passed on from each handled message to everything that it causes: the events, commands
    /// and replies of its turn or job, and so on. For a tenant, a user, baggage. Default: none. A W3C `traceparent` is
    /// always passed on. A timer passes nothing on: keep in the state what its turn needs.
    ///
    /// ```
    /// use whizbang::doc_fixtures::{Account, Deposit};
    /// use whizbang::prelude::*;
    ///
    /// # whizbang::derive::block_on(async {
    /// let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().propagate_headers(["tenant", "user"]);
    /// let node = node.start().await?;
    /// let deposit = Deposit { account: "ada".into(), cents: 500 };
    /// node.client().send(deposit).header("tenant", "acme").await?;
    /// node.stop().await
    /// # }).unwrap();
    /// ```
    ///
    /// A name that is invalid or reserved is refused with [`StartError::Header`].
    pub fn propagate_headers<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        let names = names.into_iter().map(Into::into);
        self.propagated.extend(names.filter(|name| name != "traceparent"));
        self
    }

    /// Declares a name that the program has removed on purpose: of a domain, projection, actor type, event, command or
    /// timer. Data stored under it is kept and not read. Default: none; any other unknown name in the store is
    /// [`StartError::UnknownName`]. A domain declares its own removed names with `#[domain(retired("…"))]`.
    pub fn retired(mut self, name: &str) -> Self {
        self.retired.insert(name.to_owned());
        self
    }

    /// Takes over the broker claims of another store, see [`NodeConfig::replaces_store`]. Default: none.
    pub fn replaces_store(mut self, store: ReplacedStore) -> Self {
        self.config.replaces_store = store;
        self
    }

    /// Names this node for operators, in [`Node::cluster`](crate::node::Node::cluster), in logs and in the store, if
    /// several nodes share it. At most 256 bytes. Default: the host, if the environment variable `HOSTNAME` names it,
    /// and the process id.
    pub fn label(mut self, label: &str) -> Self {
        self.label = Some(label.to_owned());
        self
    }

    /// Sets the wall clock. Default: the operating system's clock.
    ///
    /// A clock that is set by hand makes tests of deadlines and schedules fast, see [`Clock::manual`].
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Derives all ids and random numbers from a seed, for simulations. Default: the system's randomness.
    ///
    /// Never use it in production: two nodes with one seed create the same ids.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Validates the description, opens the shards, attaches the bridge, and accepts messages from then on. Works on
    /// every tokio runtime: the node has its own threads, unless [`threads`](Self::threads) is 0.
    ///
    /// # Errors
    /// [`StartError`] with the cause. No message was handled.
    pub async fn start(mut self) -> Result<Node, StartError> {
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
        #[cfg(test)]
        let has_membership = is_shared && !self.moves_by_hand;
        #[cfg(not(test))]
        let has_membership = is_shared;
        let membership = has_membership.then(|| {
            let id = MemberId::from_u128(u128::from(ids.next_u64()) << 64 | u128::from(ids.next_u64()));
            // The label of a simulated node is the same in every run.
            let label = self.label.unwrap_or_else(|| self.seed.map_or_else(default_label, |_| "simulated".to_owned()));
            Arc::new(Membership::new(Member::new(id, card.service.clone(), label), self.config.lease))
        });
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

impl std::fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeBuilder").finish_non_exhaustive()
    }
}
