//! Puts each service on a node: the only place that knows nodes, stores and bridges.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use whizbang::bridge::{Bridge, NodeCard};
use whizbang::prelude::*;
use whizbang::store::StoreError;
use whizbang::store::embedded::{EmbeddedStore, ReadOnlyStore};
use whizbang::{NodeBuilder, NodeConfig, Retry};

use crate::analytics::{Books, Revenue};
use crate::inventory::Stock;
use crate::notifications::Mailer;
use crate::orders::{Fulfilment, Order, Progress};
use crate::payments::{Cashier, Habits, Payment, Provider};
use crate::shipping::Shipment;

/// Most actors are of one order, and have nothing more to do once it has ended: they go to rest soon, and make room.
const REST: Duration = Duration::from_secs(2);
/// The provider may be away for a minute before a payment becomes a dead letter.
const PATIENT: Retry = Retry { attempts: 40, first: Duration::from_millis(100), longest: Duration::from_secs(2) };

/// The time limit for a store that is in use: a process that was just killed may hold it for a moment.
const LETTING_GO: Duration = Duration::from_secs(2);
/// The interval between two attempts.
const LOOK: Duration = Duration::from_millis(10);

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
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Orders, Self::Inventory, Self::Payments, Self::Shipping, Self::Notifications, Self::Analytics];

    /// Its name on the command line, in messages and as a folder.
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

    /// Starts it.
    ///
    /// # Errors
    /// [`ShopError`] if a file cannot be opened or the node does not start.
    pub async fn start(self, home: &Home, bridge: impl Bridge) -> Result<Node, ShopError> {
        let node = self.hosted(Node::builder(self.name(), home.store(self).await?), home)?;
        Ok(node.bridge(bridge).start().await?)
    }

    /// Its card: what it owns, takes and answers. A node in memory has the same one.
    ///
    /// # Errors
    /// What starting a node can meet.
    pub async fn card(self, home: &Home) -> Result<NodeCard, ShopError> {
        let node = self.hosted(Node::builder(self.name(), MemoryStore::new()), home)?.start().await?;
        let card = node.card().clone();
        node.stop().await?;
        Ok(card)
    }

    /// Puts its actors on a node.
    fn hosted(self, node: NodeBuilder, home: &Home) -> Result<NodeBuilder, ShopError> {
        let node = node.config(NodeConfig { passivate_after: REST, ..NodeConfig::default() });
        Ok(match self {
            Self::Orders => node.aggregate::<Order>().saga::<Fulfilment>().projection::<Progress>(),
            Self::Inventory => node.aggregate::<Stock>(),
            Self::Payments => node
                .aggregate::<Payment>()
                .worker(Cashier::new(Provider::open(&home.ledger(), Habits::default())?))
                .retry(PATIENT),
            Self::Shipping => node.aggregate::<Shipment>(),
            Self::Notifications => node.worker(Mailer::new(&home.mails())?),
            Self::Analytics => node.projection::<Revenue>().projection::<Books>(),
        })
    }
}

/// The folder with all files of a shop.
pub struct Home {
    folder: PathBuf,
}

impl Home {
    /// A home in a folder, which is created if it is not there.
    ///
    /// # Errors
    /// An I/O error if the folder cannot be created.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder).map_err(at(folder))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The home that is in a folder already.
    ///
    /// # Errors
    /// [`ShopError::Nobody`] if there is none.
    pub fn find(folder: &Path) -> Result<Self, ShopError> {
        match folder.join(Service::Orders.name()).is_dir() {
            true => Ok(Self { folder: folder.to_owned() }),
            false => Err(ShopError::Nobody { folder: folder.to_owned() }),
        }
    }

    /// Opens the store of a service. One process at a time has it; a killed one may take a moment to let go of it.
    ///
    /// # Errors
    /// [`ShopError::Busy`] if another process uses it; [`ShopError::Node`] if it cannot be opened.
    pub async fn store(&self, service: Service) -> Result<EmbeddedStore, ShopError> {
        let begun = Instant::now();
        loop {
            match EmbeddedStore::open(self.folder.join(service.name())) {
                Ok(store) => return Ok(store),
                Err(StoreError::InUse { .. }) if begun.elapsed() < LETTING_GO => tokio::time::sleep(LOOK).await,
                Err(StoreError::InUse { .. }) => return Err(ShopError::Busy { service: service.name() }),
                Err(error) => return Err(ShopError::Node(error.into())),
            }
        }
    }

    /// Opens the store of a service for reading, even if a process uses it; `None` if the service has never run.
    ///
    /// # Errors
    /// [`ShopError::Node`] if the store cannot be read.
    pub fn look(&self, service: Service) -> Result<Option<ReadOnlyStore>, ShopError> {
        match EmbeddedStore::read_only(self.folder.join(service.name())) {
            Ok(store) => Ok(Some(store)),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(ShopError::Node(error.into())),
        }
    }

    /// The folder of the e-mails.
    pub fn mails(&self) -> PathBuf {
        self.folder.join(MAILS)
    }

    /// The file in which the payment provider keeps its ledger.
    pub fn ledger(&self) -> PathBuf {
        self.folder.join(LEDGER)
    }
}

/// Names the file in an error about it.
pub fn at(file: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

/// An error of the shop around its services.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShopError {
    /// A node did not start, did not stop in order, or a message was not taken.
    #[error(transparent)]
    Node(#[from] whizbang::Error),
    /// A file cannot be opened, read or written.
    #[error(transparent)]
    File(#[from] io::Error),
    /// No shop was ever in a folder.
    #[error("there is no shop in {}", folder.display())]
    Nobody {
        /// The folder.
        folder: PathBuf,
    },
    /// Another process works with the store of a service. It must be stopped first.
    #[error("another process works with the store of {service}: stop it first")]
    Busy {
        /// The service.
        service: &'static str,
    },
    /// A log holds what its own service cannot read.
    #[error("the log of {service} cannot be read: {reason}")]
    Log {
        /// The service.
        service: &'static str,
        /// Why.
        reason: String,
    },
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
