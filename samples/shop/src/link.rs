//! Connects the services: within this process, or over a NATS server.

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
use crate::service::{DataFolder, Service, ShopError};

/// The time limit for reaching the server, which may still be starting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The name of the client that places orders.
pub const COUNTER: &str = "counter";

/// The connection between the services.
pub enum Link {
    /// Within this process.
    InProcess(LoopbackHub),
    /// Over a NATS server, each service with its own connection.
    Nats {
        /// The address of the server.
        url: String,
        /// The namespace that separates this shop from others on the same server.
        namespace: Namespace,
        /// The data folder, which contains the logins if the server requires them.
        shop: PathBuf,
    },
}

impl Link {
    /// Links over the server at `url`, or within this process if `url` is `None`. Each data folder has its own namespace.
    ///
    /// # Errors
    /// An I/O error if the namespace file cannot be read or written.
    pub fn new(url: Option<&str>, folder: &Path) -> io::Result<Self> {
        Ok(match url {
            None => Self::InProcess(LoopbackHub::new()),
            Some(url) => Self::Nats { url: url.to_owned(), namespace: namespace(folder)?, shop: folder.to_owned() },
        })
    }

    /// Starts a service.
    ///
    /// # Errors
    /// [`ShopError`] if the connection, a file or a node fails.
    pub async fn start(&self, service: Service, data: &DataFolder) -> Result<Node, ShopError> {
        match self {
            Self::InProcess(hub) => service.start(data, hub.bridge()).await,
            Self::Nats { .. } => service.start(data, self.connect(service.name()).await?).await,
        }
    }

    /// Connects a client that belongs to no service.
    ///
    /// # Errors
    /// [`ShopError`] if the connection fails.
    pub async fn client(&self) -> Result<Client, ShopError> {
        Ok(match self {
            Self::InProcess(hub) => Client::connect(COUNTER, hub.bridge()).await?,
            Self::Nats { .. } => Client::connect(COUNTER, self.connect(COUNTER).await?).await?,
        })
    }

    /// Creates the streams and consumers of all services, with the setup login.
    ///
    /// # Errors
    /// [`ShopError`] if the connection fails or a node does not start.
    pub async fn set_up(&self, data: &DataFolder) -> Result<(), ShopError> {
        let Some(builder) = self.builder(SETUP) else { return Ok(()) };
        builder.set_up(&cards(data).await?).await.map_err(|error| ShopError::Node(error.into()))
    }

    /// A connection with the login of an identity; without a login if the shop has none.
    fn builder(&self, identity: &str) -> Option<NatsBuilder> {
        let Self::Nats { url, namespace, shop } = self else { return None };
        let builder = NatsBridge::builder(url).namespace(namespace.clone()).wait_for_server(CONNECT_TIMEOUT);
        Some(match Logins::find(shop) {
            Some(logins) => logins.login(identity, builder),
            None => builder,
        })
    }

    async fn connect(&self, identity: &str) -> Result<NatsBridge, ShopError> {
        let builder = self.builder(identity).ok_or_else(|| io::Error::other("no server to connect to"))?;
        builder.connect().await.map_err(|error| ShopError::Node(error.into()))
    }
}

/// Returns the namespace of the shop in a folder. It is random and created once, which separates shops on the same server.
///
/// # Errors
/// An I/O error if the file cannot be read or written.
pub fn namespace(folder: &Path) -> io::Result<Namespace> {
    let file = folder.join("namespace");
    if !file.exists() {
        let mine = format!("shop{:016x}", IdSource::random(Clock::system()).next_u64());
        let draft = folder.join(&mine);
        std::fs::create_dir_all(folder)?;
        std::fs::write(&draft, &mine)?;
        // Several services may start at once. A hard link is atomic: the first complete draft becomes the file of all.
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
    fn concurrent_starts_agree_on_the_namespace() {
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
