//! The NATS permissions and logins of each service, generated from the cards of the nodes.
//!
//! `shop permissions` calls [`Logins::write`]. `shop setup` creates the streams with the only login that may create them. If the
//! login files exist, every service uses its own login and creates nothing. This module does not connect to a server.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use whizbang::bridge::NodeCard;
use whizbang::bridge::nats::{NatsBuilder, NatsPermissions, StreamSetup};
use whizbang::bridge::subject::Namespace;
use whizbang::message::Name;

use crate::link::COUNTER;
use crate::service::{DataFolder, Service, ShopError, at};

/// The identity that creates streams and consumers.
pub const SETUP: &str = "setup";

/// The file that the server's configuration includes.
pub const FILE: &str = "nats-permissions.conf";

/// The files of a shop's logins and permissions.
pub struct Logins {
    folder: PathBuf,
}

impl Logins {
    /// Returns the logins of the shop in a folder; `None` if there are none, for a server without logins.
    pub fn find(shop: &Path) -> Option<Self> {
        let logins = Self { folder: shop.join("nats-logins") };
        logins.folder.is_dir().then_some(logins)
    }

    /// Writes the permissions of all services, and a random password for each identity without one. Returns the file that the
    /// server configuration includes.
    ///
    /// # Errors
    /// [`ShopError`] if a node does not start or a file cannot be written.
    pub async fn write(shop: &Path, namespace: &Namespace, data: &DataFolder) -> Result<PathBuf, ShopError> {
        let logins = Self { folder: shop.join("nats-logins") };
        std::fs::create_dir_all(&logins.folder).map_err(at(&logins.folder))?;
        let cards = cards(data).await?;
        let services = cards.iter().map(|card| NatsPermissions::runtime(card, namespace));
        let (mut blocks, mut users) = (String::new(), String::new());
        for permissions in services.chain([NatsPermissions::setup(&cards, namespace)]) {
            let name = &permissions.identity;
            // Writing to a string does not fail.
            let _ = writeln!(blocks, "{permissions}");
            let password = logins.password(name)?;
            let _ = writeln!(users, "  {{ user: {name}, password: \"{password}\", permissions: $WHIZBANG_{name} }}");
        }
        let file = shop.join(FILE);
        std::fs::write(&file, format!("{blocks}users: [\n{users}]\n")).map_err(at(&file))?;
        Ok(file)
    }

    /// Adds the login of an identity to a builder. The connection creates no streams: [`SETUP`] creates them.
    pub fn login(&self, identity: &str, builder: NatsBuilder) -> NatsBuilder {
        builder.password_file(identity, self.file(identity)).stream_setup(StreamSetup::Existing)
    }

    fn file(&self, identity: &str) -> PathBuf {
        self.folder.join(identity)
    }

    /// Returns the password of an identity, and creates a random one at the first call.
    fn password(&self, identity: &str) -> io::Result<String> {
        let file = self.file(identity);
        if !file.exists() {
            let mut random = [0; 16];
            std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
            let password = random.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
            // Readable by the owner of the file only.
            let mut options = std::fs::OpenOptions::new();
            let mut created = options.write(true).create_new(true).mode(0o600).open(&file).map_err(at(&file))?;
            created.write_all(password.as_bytes()).map_err(at(&file))?;
        }
        std::fs::read_to_string(&file).map_err(at(&file))
    }
}

/// Returns the cards of all services and of the client that places orders.
///
/// # Errors
/// [`ShopError`] if a node does not start.
pub async fn cards(data: &DataFolder) -> Result<Vec<NodeCard>, ShopError> {
    let mut cards = Vec::new();
    for service in Service::ALL {
        cards.push(service.card(data).await?);
    }
    cards.push(NodeCard::new(Name::new(COUNTER).map_err(io::Error::other)?));
    Ok(cards)
}
