//! Connects the services: inside this process, or over a NATS server.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use whizbang::bridge::loopback::LoopbackHub;
use whizbang::bridge::nats::{NatsBridge, NatsBuilder};
use whizbang::bridge::subject::Namespace;
use whizbang::clock::Clock;
use whizbang::message::IdSource;
use whizbang::prelude::*;

use crate::permissions::{Logins, SETUP, cards};
use crate::service::{Home, Service, ShopError};

/// The time limit for a server that cannot be reached: it may be starting.
const PATIENCE: Duration = Duration::from_secs(5);

/// The name of the client that places orders.
pub const COUNTER: &str = "counter";

/// The connection between the services.
pub enum Link {
    /// Inside this process.
    Here(LoopbackHub),
    /// Over a NATS server, each with a connection of its own.
    Nats {
        /// The address of the server.
        url: String,
        /// The namespace that separates this shop from others on the same server.
        namespace: Namespace,
        /// The folder of the shop, in which the logins are if the server asks for some.
        shop: PathBuf,
    },
}

impl Link {
    /// Over the server at `url`, or inside this process if there is none. The shop in `folder` has a namespace of its own.
    ///
    /// # Errors
    /// An I/O error if the file cannot be read or written.
    pub fn new(url: Option<&str>, folder: &Path) -> io::Result<Self> {
        Ok(match url {
            None => Self::Here(LoopbackHub::new()),
            Some(url) => Self::Nats { url: url.to_owned(), namespace: namespace(folder)?, shop: folder.to_owned() },
        })
    }

    /// Starts a service.
    ///
    /// # Errors
    /// [`ShopError`] if the connection, a file or a node fails.
    pub async fn start(&self, service: Service, home: &Home) -> Result<Node, ShopError> {
        match self {
            Self::Here(hub) => service.start(home, hub.bridge()).await,
            Self::Nats { .. } => service.start(home, self.connect(service.name()).await?).await,
        }
    }

    /// A client that belongs to no service.
    ///
    /// # Errors
    /// [`ShopError`] if the connection fails.
    pub async fn client(&self) -> Result<Client, ShopError> {
        Ok(match self {
            Self::Here(hub) => Client::connect(COUNTER, hub.bridge()).await?,
            Self::Nats { .. } => Client::connect(COUNTER, self.connect(COUNTER).await?).await?,
        })
    }

    /// Creates the streams and consumers of all services, as the identity that may.
    ///
    /// # Errors
    /// What connecting and starting nodes without a bridge can meet.
    pub async fn set_up(&self, home: &Home) -> Result<(), ShopError> {
        let Some(builder) = self.builder(SETUP) else { return Ok(()) };
        builder.set_up(&cards(home).await?).await.map_err(|error| ShopError::Node(error.into()))
    }

    /// A connection as one of the identities; as nobody, if the shop has no logins.
    fn builder(&self, identity: &str) -> Option<NatsBuilder> {
        let Self::Nats { url, namespace, shop } = self else { return None };
        let builder = NatsBridge::builder(url).namespace(namespace.clone()).wait_for_server(PATIENCE);
        Some(match Logins::find(shop) {
            Some(logins) => logins.login(identity, builder),
            None => builder,
        })
    }

    async fn connect(&self, identity: &str) -> Result<NatsBridge, ShopError> {
        let builder = self.builder(identity).ok_or_else(|| io::Error::other("there is no server to connect to"))?;
        builder.connect().await.map_err(|error| ShopError::Node(error.into()))
    }
}

/// The namespace of the shop in a folder: made up once, for what another shop has left on the server is not ours.
///
/// # Errors
/// What reading and writing a file can meet.
pub fn namespace(folder: &Path) -> io::Result<Namespace> {
    let file = folder.join("namespace");
    if !file.exists() {
        let mine = format!("shop{:016x}", IdSource::random(Clock::system()).next_u64());
        let draft = folder.join(&mine);
        std::fs::create_dir_all(folder)?;
        std::fs::write(&draft, &mine)?;
        // Several services may start at once, each with a draft: the first one appears, whole, and counts for all.
        let linked = std::fs::hard_link(&draft, &file);
        std::fs::remove_file(&draft)?;
        linked.or_else(|error| if file.exists() { Ok(()) } else { Err(error) })?;
    }
    Namespace::new(std::fs::read_to_string(&file)?.trim()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_start_at_once_agree_on_the_namespace() {
        let folder = std::env::temp_dir().join(format!("shop-namespace-{}", std::process::id()));
        for _ in 0..20 {
            let starts: Vec<_> = (0..7)
                .map(|_| {
                    let folder = folder.clone();
                    std::thread::spawn(move || namespace(&folder).unwrap())
                })
                .collect();
            let found: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
            assert!(found.windows(2).all(|two| two[0] == two[1]), "{found:?}");
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
}
