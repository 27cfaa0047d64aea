//! Puts each service on a node: the only place that knows nodes, stores and bridges.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use whizbang::Retry;
use whizbang::bridge::Bridge;
use whizbang::prelude::*;

use crate::analytics::{Books, Revenue};
use crate::inventory::Stock;
use crate::notifications::Mailer;
use crate::orders::{Fulfilment, Order, Progress};
use crate::payments::{Cashier, Habits, Payment, Provider};
use crate::shipping::Shipment;

/// The provider may be away for a minute before a payment becomes a dead letter.
const PATIENT: Retry = Retry { attempts: 40, first: Duration::from_millis(100), longest: Duration::from_secs(2) };

/// Where the e-mails lie.
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
    /// What opening its files or starting a node can meet.
    pub async fn start(self, home: &Home, bridge: impl Bridge) -> Result<Node, ShopError> {
        let node = Node::builder(self.name(), home.store(self)?).bridge(bridge);
        let node = match self {
            Self::Orders => node.host::<Order>().host::<Fulfilment>().projection::<Progress>(),
            Self::Inventory => node.host::<Stock>(),
            Self::Payments => node.host::<Payment>().worker(Cashier::new(home.provider()?)).retry(PATIENT),
            Self::Shipping => node.host::<Shipment>(),
            Self::Notifications => node.worker(Mailer::new(&home.mails())?),
            Self::Analytics => node.projection::<Revenue>().projection::<Books>(),
        };
        Ok(node.start().await?)
    }
}

/// Where the shop keeps everything.
pub struct Home {
    folder: PathBuf,
    stores: BTreeMap<Service, MemoryStore>,
}

impl Home {
    /// A home in a folder, which is created if it is not there. The stores are kept in memory, so what lies there from before
    /// belongs to orders that nobody knows any more, and is removed.
    ///
    /// # Errors
    /// What creating a folder can meet.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        // The ledger is the sign that the rest is a shop's, too.
        if folder.join(LEDGER).exists() {
            std::fs::remove_dir_all(folder.join(MAILS))?;
            std::fs::remove_file(folder.join(LEDGER))?;
        }
        let stores = Service::ALL.into_iter().map(|service| (service, MemoryStore::new())).collect();
        Ok(Self { folder: folder.to_owned(), stores })
    }

    /// The store of a service.
    ///
    /// # Errors
    /// What opening a store can meet.
    pub fn store(&self, service: Service) -> Result<MemoryStore, ShopError> {
        Ok(self.stores.get(&service).cloned().unwrap_or_default())
    }

    /// The folder of the e-mails.
    pub fn mails(&self) -> PathBuf {
        self.folder.join(MAILS)
    }

    /// The payment provider, with its ledger.
    ///
    /// # Errors
    /// What opening a file can meet.
    pub fn provider(&self) -> io::Result<Provider> {
        Provider::open(&self.folder.join(LEDGER), Habits::default())
    }
}

/// What can go wrong around the services.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShopError {
    /// A node did not start, did not stop in order, or a message was not taken.
    #[error(transparent)]
    Node(#[from] whizbang::Error),
    /// A file cannot be opened, read or written.
    #[error(transparent)]
    File(#[from] io::Error),
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
