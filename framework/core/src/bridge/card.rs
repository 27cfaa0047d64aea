//! The description of a node for its bridge.
//!
//! Created by the node at start, and by tests of bridges. It does not change while the node is attached.

use crate::message::{Name, ReplacedStore, Run, StoreId};

/// The properties of a node that a bridge needs: its domains, subscriptions, queries and store.
///
/// ```
/// use whizbang::bridge::NodeCard;
/// use whizbang::message::Name;
///
/// # fn main() -> Result<(), whizbang::message::NameError> {
/// let (bank, shop) = (Name::new("bank")?, Name::new("shop")?);
/// let card = NodeCard::new(bank.clone())
///     .owning(bank.clone(), 16)
///     .subscribing(shop, 16, [Name::new("Ordered")?])
///     .answering(bank, Name::new("Balance")?);
/// assert_eq!(card.owns.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeCard {
    /// The service of the node. Nodes of one service share the work.
    pub service: Name,
    /// The domains that the service owns, with their number of shards.
    pub owns: Vec<(Name, u16)>,
    /// The domains the node subscribes to, with their number of shards and the names of the events. With leased shards this
    /// includes the node's own domains that it follows.
    pub subscribes: Vec<(Name, u16, Vec<Name>)>,
    /// The domains whose events the node reads while it runs, by `Client::subscribe`. Only the permissions of a broker depend on
    /// them.
    pub follows: Vec<Name>,
    /// The queries the node answers, as domain and name.
    pub answers: Vec<(Name, Name)>,
    /// The store of the owned domains. `None` if it has no identity: no domain is claimed and a second node is not refused.
    pub store: Option<StoreCard>,
    /// The nodes of the service share the shards of the owned domains by leases in their common store. The node receives
    /// commands, replies and requests only for the shards it [owns](super::Bridge::own), and receives the events of its own
    /// domains like those of other services, because another node may own their shard. A claim admits every node with the same
    /// store.
    pub has_leased_shards: bool,
}

impl NodeCard {
    /// Creates the card of a node of a service, without domains, subscriptions, queries and store.
    pub const fn new(service: Name) -> Self {
        Self {
            service,
            owns: Vec::new(),
            subscribes: Vec::new(),
            follows: Vec::new(),
            answers: Vec::new(),
            store: None,
            has_leased_shards: false,
        }
    }

    /// Adds an owned domain and the number of its shards.
    #[must_use]
    pub fn owning(mut self, domain: Name, shards: u16) -> Self {
        self.owns.push((domain, shards));
        self
    }

    /// Adds a subscription to events of a domain with that number of shards.
    #[must_use]
    pub fn subscribing(mut self, domain: Name, shards: u16, events: impl IntoIterator<Item = Name>) -> Self {
        self.subscribes.push((domain, shards, events.into_iter().collect()));
        self
    }

    /// Adds a domain whose events the node reads while it runs, by `Client::subscribe`. For the permissions of a process that hosts
    /// nothing, or of a node whose code subscribes.
    #[must_use]
    pub fn following(mut self, domain: Name) -> Self {
        self.follows.push(domain);
        self
    }

    /// Adds a query that the node answers.
    #[must_use]
    pub fn answering(mut self, domain: Name, query: Name) -> Self {
        self.answers.push((domain, query));
        self
    }

    /// Sets the store of the owned domains. `None` claims no domain.
    #[must_use]
    pub fn store(mut self, store: impl Into<Option<StoreCard>>) -> Self {
        self.store = store.into();
        self
    }

    /// Shares the shards of the owned domains with the other nodes of the service, by leases in their common store.
    #[must_use]
    pub const fn sharing_shards(mut self) -> Self {
        self.has_leased_shards = true;
        self
    }
}

/// The properties of a node's store that a bridge needs to claim the node's domains.
///
/// ```
/// use whizbang::bridge::StoreCard;
/// use whizbang::message::{Run, StoreId};
///
/// let second = StoreCard::new(StoreId::from_u128(7), Run { epoch: 2, nonce: 20 }).continuing([Run { epoch: 1, nonce: 10 }]);
/// assert_eq!(second.earlier.len(), 1);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreCard {
    /// The identity of the store.
    pub store: StoreId,
    /// The current start of the node.
    pub run: Run,
    /// The starts on this store whose claims this start continues.
    pub earlier: Vec<Run>,
    /// The store whose claims this start replaces, for disaster recovery.
    pub replaces: ReplacedStore,
}

impl StoreCard {
    /// Creates the card of a start on a store that continues no earlier start and replaces no other store.
    pub const fn new(store: StoreId, run: Run) -> Self {
        Self { store, run, earlier: Vec::new(), replaces: ReplacedStore::None }
    }

    /// Adds starts on this store whose claims this start continues.
    #[must_use]
    pub fn continuing(mut self, earlier: impl IntoIterator<Item = Run>) -> Self {
        self.earlier.extend(earlier);
        self
    }

    /// Sets the store whose claims this start replaces.
    #[must_use]
    pub const fn replacing(mut self, replaced: ReplacedStore) -> Self {
        self.replaces = replaced;
        self
    }
}
