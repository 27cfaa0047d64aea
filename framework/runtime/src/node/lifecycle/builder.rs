//! Node builder, called by users: collects the description of a node, checks it, and starts it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::aggregate::Aggregate;
use crate::layer::Layers;
use crate::node::catalog::hosted::{Hosted, HostedType};
use crate::node::config::NodeConfig;
use crate::node::lifecycle::node::Node;
use crate::node::lifecycle::own_actors::OwnActors;
use crate::node::singleton::DeclaredSingleton;
use crate::projection::{Projection, ProjectionType, ViewType};
use crate::saga::Saga;
use whizbang_core::bridge::Bridge;
use whizbang_core::clock::Clock;
use whizbang_core::message::{Domain, Event, Message, ReplacedStore};
use whizbang_core::retry::{Retries, Retry};
use whizbang_core::store::Store;

/// Describes a node; [`start`](Self::start) validates the whole description at once.
///
/// ```
/// # use bank_fixture::*;
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
    pub(super) service: String,
    pub(super) store: Arc<dyn Store>,
    pub(super) bridge: Option<Arc<dyn Bridge>>,
    pub(super) config: NodeConfig,
    pub(super) retries: Retries,
    pub(super) types: Vec<Arc<dyn HostedType>>,
    pub(super) publishers: BTreeMap<&'static str, Hosted>,
    /// The schedulers of the domains.
    pub(super) schedulers: OwnActors,
    pub(super) views: Vec<Arc<dyn ViewType>>,
    pub(super) singletons: Vec<DeclaredSingleton>,
    pub(super) retired: BTreeSet<String>,
    pub(super) propagated: BTreeSet<String>,
    pub(super) layers: Layers,
    pub(super) clock: Clock,
    pub(super) seed: Option<u64>,
    pub(super) label: Option<String>,
}

impl Node {
    /// Returns a builder for a node of `service` that keeps its domains in `store`.
    ///
    /// ```
    /// # use bank_fixture::*;
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

    /// Accepts events of type `E` that callers publish with [`Client::publish`](crate::client::Client::publish) and jobs with
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
    /// # use bank_fixture as bank;
    /// use bank::{Account, Deposit};
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
    /// A name that is invalid or reserved is refused with [`StartError::Header`](crate::node::StartError::Header).
    pub fn propagate_headers<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        let names = names.into_iter().map(Into::into);
        self.propagated.extend(names.filter(|name| name != "traceparent"));
        self
    }

    /// Declares a name that the program has removed on purpose: of a domain, projection, actor type, event, command or
    /// timer. Data stored under it is kept and not read. Default: none; any other unknown name in the store is
    /// [`StartError::UnknownName`](crate::node::StartError::UnknownName). A domain declares its own removed names with `#[domain(retired("…"))]`.
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
}

impl std::fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeBuilder").finish_non_exhaustive()
    }
}
