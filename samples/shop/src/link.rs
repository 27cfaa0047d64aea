//! How the services meet: inside this process, or over a NATS server.

use std::io;

use whizbang::bridge::loopback::LoopbackHub;
use whizbang::bridge::nats::NatsBridge;
use whizbang::bridge::subject::Namespace;
use whizbang::clock::Clock;
use whizbang::message::IdSource;
use whizbang::prelude::*;

use crate::service::{Home, Service, ShopError};

/// How the services meet.
pub enum Link {
    /// Inside this process.
    Here(LoopbackHub),
    /// Over a NATS server, each with a connection of its own.
    Nats {
        /// Where the server is.
        url: String,
        /// What keeps this shop apart from others on the same server.
        namespace: Namespace,
    },
}

impl Link {
    /// Over the server at `url`, or inside this process if there is none.
    ///
    /// # Errors
    /// None: a namespace that is made up is one.
    pub fn new(url: Option<&str>) -> io::Result<Self> {
        Ok(match url {
            None => Self::Here(LoopbackHub::new()),
            Some(url) => Self::Nats { url: url.to_owned(), namespace: namespace()? },
        })
    }

    /// Starts a service.
    ///
    /// # Errors
    /// What connecting, opening files or starting a node can meet.
    pub async fn start(&self, service: Service, home: &Home) -> Result<Node, ShopError> {
        match self {
            Self::Here(hub) => service.start(home, hub.bridge()).await,
            Self::Nats { url, namespace } => service.start(home, connect(url, namespace).await?).await,
        }
    }

    /// A client that belongs to no service.
    ///
    /// # Errors
    /// What connecting can meet.
    pub async fn client(&self) -> Result<Client, ShopError> {
        Ok(match self {
            Self::Here(hub) => Client::connect("counter", hub.bridge()).await?,
            Self::Nats { url, namespace } => Client::connect("counter", connect(url, namespace).await?).await?,
        })
    }
}

async fn connect(url: &str, namespace: &Namespace) -> Result<NatsBridge, ShopError> {
    let bridge = NatsBridge::builder(url).namespace(namespace.clone()).connect().await;
    bridge.map_err(|error| ShopError::Node(error.into()))
}

/// The namespace of a shop with new stores: what another shop has left on the server is not ours.
fn namespace() -> io::Result<Namespace> {
    Namespace::new(&format!("shop{:016x}", IdSource::random(Clock::system()).next_u64())).map_err(io::Error::other)
}
