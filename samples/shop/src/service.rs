//! Puts each service on a node. Only this module and [`link`](crate::link) know nodes, stores and bridges.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use whizbang::bridge::{Bridge, NodeCard};
use whizbang::prelude::*;
use whizbang::store::StoreError;
use whizbang::store::embedded::EmbeddedStore;
use whizbang::store::postgres::PostgresBuilder;
use whizbang::{NodeBuilder, NodeConfig, PostgresStore, Retry};

use crate::analytics::{Books, Revenue};
use crate::inventory::Stock;
use crate::logs::Logs;
use crate::notifications::Mailer;
use crate::orders::{Fulfilment, Order, Progress};
use crate::payments::{Cashier, Habits, Payment, Provider};
use crate::shipping::Shipment;

/// Most actors belong to one order and are idle once it has ended, so they are passivated early to free memory.
const PASSIVATE_AFTER: Duration = Duration::from_secs(2);
/// The shards of a killed process are taken over after this time.
const LEASE: Duration = Duration::from_secs(2);
/// The provider may be unavailable for a minute before a payment becomes a dead letter.
const PROVIDER_RETRY: Retry =
    Retry { attempts: 40, first: Duration::from_millis(100), longest: Duration::from_secs(2) };

/// The time limit for opening a store in use: a process that was just killed may hold its lock for a moment.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval between two attempts.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The folder of the e-mails.
const MAILS: &str = "mails";
/// The payment provider's ledger.
const LEDGER: &str = "provider.ledger";

/// The services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// [`orders`](crate::orders).
    Orders,
    /// [`inventory`](crate::inventory).
    Inventory,
    /// [`payments`](crate::payments).
    Payments,
    /// [`shipping`](crate::shipping).
    Shipping,
    /// [`notifications`](crate::notifications).
    Notifications,
    /// [`analytics`](crate::analytics).
    Analytics,
}

impl Service {
    /// All services.
    pub const ALL: [Self; 6] =
        [Self::Orders, Self::Inventory, Self::Payments, Self::Shipping, Self::Notifications, Self::Analytics];

    /// Returns the name for the command line, messages and the folder of the store.
    pub fn name(self) -> &'static str {
        match self {
            Self::Orders => "orders",
            Self::Inventory => "inventory",
            Self::Payments => "payments",
            Self::Shipping => "shipping",
            Self::Notifications => "notifications",
            Self::Analytics => "analytics",
        }
    }

    /// Starts the service on a node with its store.
    ///
    /// # Errors
    /// [`ShopError`] if a file cannot be opened or the node does not start.
    pub async fn start(self, data: &DataFolder, bridge: impl Bridge) -> Result<Node, ShopError> {
        let node = match data.postgres(self) {
            Some(store) => Node::builder(self.name(), store.connect().await?),
            None => Node::builder(self.name(), data.store(self).await?),
        };
        Ok(self.add_actors(node, data)?.bridge(bridge).start().await?)
    }

    /// Returns the card of the node: its domains, subscriptions and queries. A node in memory has the same card.
    ///
    /// # Errors
    /// [`ShopError`] if a file cannot be opened or the node does not start.
    pub async fn card(self, data: &DataFolder) -> Result<NodeCard, ShopError> {
        let node = self.add_actors(Node::builder(self.name(), MemoryStore::new()), data)?.start().await?;
        let card = node.card().clone();
        node.stop().await?;
        Ok(card)
    }

    /// Adds the actors of the service to a node.
    fn add_actors(self, node: NodeBuilder, data: &DataFolder) -> Result<NodeBuilder, ShopError> {
        let node = node.config(NodeConfig { passivate_after: PASSIVATE_AFTER, lease: LEASE, ..NodeConfig::default() });
        Ok(match self {
            Self::Orders => node.aggregate::<Order>().saga::<Fulfilment>().projection::<Progress>(),
            Self::Inventory => node.aggregate::<Stock>(),
            Self::Payments => node
                .aggregate::<Payment>()
                .worker(Cashier::new(Provider::open(&data.ledger(), Habits::default())?))
                .retry(PROVIDER_RETRY),
            Self::Shipping => node.aggregate::<Shipment>(),
            Self::Notifications => node.worker(Mailer::new(&data.mails())?),
            Self::Analytics => node.projection::<Revenue>().projection::<Books>(),
        })
    }
}

/// The folder with all files of a shop.
pub struct DataFolder {
    folder: PathBuf,
    /// The address of the database with the stores, if they are not in the folder.
    database: Option<String>,
}

impl DataFolder {
    /// Opens a data folder, and creates it if it is missing.
    ///
    /// # Errors
    /// An I/O error if the folder cannot be created.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder).map_err(at(folder))?;
        Ok(Self { folder: folder.to_owned(), database: None })
    }

    /// Keeps the stores in PostgreSQL, in one schema for each service.
    #[must_use]
    pub fn in_database(mut self, url: Option<&str>) -> Self {
        self.database = url.map(str::to_owned);
        self
    }

    /// Opens an existing data folder.
    ///
    /// # Errors
    /// [`ShopError::NoData`] if no shop has run in it.
    pub fn find(folder: &Path) -> Result<Self, ShopError> {
        // Every shop over a server writes its namespace; one in a single process has stores.
        match folder.join(Service::Orders.name()).is_dir() || folder.join("namespace").is_file() {
            true => Ok(Self { folder: folder.to_owned(), database: None }),
            false => Err(ShopError::NoData { folder: folder.to_owned() }),
        }
    }

    /// Opens the store of a service. One process at a time owns it; a killed one may hold its lock for a moment.
    ///
    /// # Errors
    /// [`ShopError::Busy`] if another process owns it; [`ShopError::Node`] if it cannot be opened.
    pub async fn store(&self, service: Service) -> Result<EmbeddedStore, ShopError> {
        let begun = Instant::now();
        loop {
            match EmbeddedStore::open(self.folder.join(service.name())) {
                Ok(store) => return Ok(store),
                Err(StoreError::InUse { .. }) if begun.elapsed() < LOCK_TIMEOUT => {
                    tokio::time::sleep(POLL_INTERVAL).await
                }
                Err(StoreError::InUse { .. }) => return Err(ShopError::Busy { service: service.name() }),
                Err(error) => return Err(ShopError::Node(error.into())),
            }
        }
    }

    fn postgres(&self, service: Service) -> Option<PostgresBuilder> {
        let schema = format!("shop_{}", service.name());
        // A server admits 100 connections by default, and three processes of each service are 18.
        let builder = |url| PostgresStore::builder(url).schema(&schema).writers(1).readers(1);
        self.database.as_deref().map(builder)
    }

    /// Opens the logs of a service for reading, even if a process uses them. Returns `None` if the service has never run.
    ///
    /// # Errors
    /// [`ShopError::Node`] if the store cannot be read.
    pub async fn logs(&self, service: Service) -> Result<Option<Logs>, ShopError> {
        if let Some(store) = self.postgres(service) {
            return Ok(Some(Logs::Postgres(store.connect().await?)));
        }
        match EmbeddedStore::read_only(self.folder.join(service.name())) {
            Ok(store) => Ok(Some(Logs::Folder(store))),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(ShopError::Node(error.into())),
        }
    }

    /// Returns the folder of the e-mails.
    pub fn mails(&self) -> PathBuf {
        self.folder.join(MAILS)
    }

    /// Returns the ledger file of the payment provider.
    pub fn ledger(&self) -> PathBuf {
        self.folder.join(LEDGER)
    }
}

/// Adds the name of a file to its I/O error.
pub fn at(file: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

/// An error of the shop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShopError {
    /// A node did not start or stop, or a request failed.
    #[error(transparent)]
    Node(#[from] whizbang::Error),
    /// A file cannot be opened, read or written.
    #[error(transparent)]
    File(#[from] io::Error),
    /// No shop has run in the folder.
    #[error("no shop data in {}", folder.display())]
    NoData {
        /// The folder.
        folder: PathBuf,
    },
    /// Another process owns the store of a service. Stop it first.
    #[error("the store of {service} is in use by another process; stop it first")]
    Busy {
        /// The service.
        service: &'static str,
    },
    /// A log contains data that its own service cannot read.
    #[error("failed to read the log of {service}: {reason}")]
    Log {
        /// The service.
        service: &'static str,
        /// The reason.
        reason: String,
    },
}

impl From<StoreError> for ShopError {
    fn from(error: StoreError) -> Self {
        Self::Node(error.into())
    }
}

impl From<whizbang::StartError> for ShopError {
    fn from(error: whizbang::StartError) -> Self {
        Self::Node(error.into())
    }
}

impl From<whizbang::SendError> for ShopError {
    fn from(error: whizbang::SendError) -> Self {
        Self::Node(error.into())
    }
}
