//! What each service may do on a NATS server, made from the cards of its node: files for the server, and a login for each service.
//!
//! Called by `shop permissions`, which writes the files, and by `shop setup`, which creates the streams as the only identity that
//! may. Where the files are, every service logs in with its own and creates nothing. Nothing here talks to a server but `set_up`.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use whizbang::bridge::NodeCard;
use whizbang::bridge::nats::{NatsBuilder, NatsPermissions, StreamSetup};
use whizbang::bridge::subject::Namespace;
use whizbang::message::Name;

use crate::link::COUNTER;
use crate::service::{Home, Service, ShopError, at};

/// The identity that creates streams and consumers.
pub const SETUP: &str = "setup";

/// The file that the server's configuration includes.
pub const FILE: &str = "nats-permissions.conf";

/// The files of a shop's logins and permissions.
pub struct Logins {
    folder: PathBuf,
}

impl Logins {
    /// The logins of the shop in a folder; `None` if it has none, and its server asks for none.
    pub fn find(shop: &Path) -> Option<Self> {
        let logins = Self { folder: shop.join("nats-logins") };
        logins.folder.is_dir().then_some(logins)
    }

    /// Writes the permissions of all services, and a random password for each identity that has none yet. Returns the file that the
    /// server's configuration includes.
    ///
    /// # Errors
    /// What starting a node without a bridge, or writing a file, can meet.
    pub async fn write(shop: &Path, namespace: &Namespace, home: &Home) -> Result<PathBuf, ShopError> {
        let logins = Self { folder: shop.join("nats-logins") };
        std::fs::create_dir_all(&logins.folder).map_err(at(&logins.folder))?;
        let cards = cards(home).await?;
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

    /// A connection as one of the identities. It creates nothing: [`SETUP`] has done that.
    pub fn login(&self, identity: &str, builder: NatsBuilder) -> NatsBuilder {
        builder.password_file(identity, self.file(identity)).stream_setup(StreamSetup::Existing)
    }

    fn file(&self, identity: &str) -> PathBuf {
        self.folder.join(identity)
    }

    /// The password of an identity, made up at the first time.
    fn password(&self, identity: &str) -> io::Result<String> {
        let file = self.file(identity);
        if !file.exists() {
            let mut random = [0; 16];
            std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
            let password = random.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
            // Only this user may read it.
            let mut options = std::fs::OpenOptions::new();
            let mut made = options.write(true).create_new(true).mode(0o600).open(&file).map_err(at(&file))?;
            made.write_all(password.as_bytes()).map_err(at(&file))?;
        }
        std::fs::read_to_string(&file).map_err(at(&file))
    }
}

/// The cards of all services and of the counter at which orders are placed.
///
/// # Errors
/// What starting a node without a bridge can meet.
pub async fn cards(home: &Home) -> Result<Vec<NodeCard>, ShopError> {
    let mut cards = Vec::new();
    for service in Service::ALL {
        cards.push(service.card(home).await?);
    }
    let counter = Name::new(COUNTER).map_err(io::Error::other)?;
    cards.push(NodeCard {
        service: counter,
        owns: Vec::new(),
        subscribes: Vec::new(),
        answers: Vec::new(),
        store: None,
    });
    Ok(cards)
}
