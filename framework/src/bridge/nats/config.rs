//! What a bridge to NATS is told: where, as whom, under which namespace, and how large its streams may be.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::NatsBridge;
use super::credentials::LoginFile;
use crate::bridge::subject::Namespace;
use crate::bridge::{BridgeError, NodeCard};

/// Describes a [`NatsBridge`] before it connects.
///
/// ```no_run
/// # async fn example() -> Result<(), whizbang::bridge::BridgeError> {
/// use whizbang::bridge::nats::NatsBridge;
///
/// let bridge = NatsBridge::builder("tls://nats.example.com")
///     .credentials(std::fs::read_to_string("orders.creds").unwrap_or_default())
///     .replicas(3)
///     .connect()
///     .await?;
/// # let _ = bridge;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct NatsBuilder {
    pub(super) url: String,
    pub(super) namespace: Namespace,
    pub(super) login: Login,
    pub(super) root_certificates: Vec<PathBuf>,
    pub(super) certificate: Option<(PathBuf, PathBuf)>,
    pub(super) tls_required: bool,
    pub(super) replicas: u8,
    pub(super) stream_bytes: u64,
    pub(super) event_age: Duration,
    pub(super) ack_wait: Duration,
    pub(super) wait_for_server: Duration,
    pub(super) stream_setup: StreamSetup,
}

/// Whether a node creates the streams and consumers that it needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamSetup {
    /// The node creates those that are missing. It needs permission to create streams, and a user with that permission can read
    /// and forge the messages of every service in its account: the name of a stream says nothing about its subjects.
    #[default]
    Create,
    /// The node creates nothing and fails to start while something is missing. [`NatsBuilder::set_up`] creates everything
    /// beforehand, under an identity of its own. Use this with [`NatsPermissions::runtime`](super::NatsPermissions::runtime).
    Existing,
}

/// As whom the bridge connects.
#[derive(Clone)]
pub(super) enum Login {
    None,
    UserPassword(String, String),
    Token(String),
    NKey(String),
    Credentials(String),
    File(LoginFile),
}

impl NatsBuilder {
    pub(super) fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            namespace: Namespace::default(),
            login: Login::None,
            root_certificates: Vec::new(),
            certificate: None,
            tls_required: false,
            replicas: 1,
            // The server reserves it, so it must be little enough for a small disk and a dozen services.
            stream_bytes: 128 * 1024 * 1024,
            event_age: Duration::from_secs(24 * 60 * 60),
            // A turn takes milliseconds, but a key may be parked behind a retry: redelivery is cheap, the inbox drops it.
            ack_wait: Duration::from_secs(30),
            wait_for_server: Duration::ZERO,
            stream_setup: StreamSetup::default(),
        }
    }

    /// Keeps this installation apart from others on the same server. Default `whizbang`.
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// Logs in with a user's name and password.
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.login = Login::UserPassword(name.into(), password.into());
        self
    }

    /// Logs in with a token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.login = Login::Token(token.into());
        self
    }

    /// Logs in with the seed of an NKey (`SU…`). The seed signs a nonce of the server and is never sent.
    pub fn nkey(mut self, seed: impl Into<String>) -> Self {
        self.login = Login::NKey(seed.into());
        self
    }

    /// Logs in with the text of a `.creds` file: a user's JWT and seed.
    pub fn credentials(mut self, text: impl Into<String>) -> Self {
        self.login = Login::Credentials(text.into());
        self
    }

    /// Logs in with a `.creds` file, which is read again for each connection: replace it, and the next reconnection uses the new
    /// one. To rotate, replace the file, then let the server close the connections of the old user.
    pub fn credentials_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.login = Login::File(LoginFile::Credentials(file.into()));
        self
    }

    /// Logs in with a user's name and a password from a file, which is read again for each connection as with
    /// [`credentials_file`](Self::credentials_file). A line end behind the password does not belong to it.
    pub fn password_file(mut self, name: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        self.login = Login::File(LoginFile::Password(name.into(), file.into()));
        self
    }

    /// Trusts the authority whose certificate is in a PEM file; from the first call on none of the system's is trusted.
    pub fn root_certificate(mut self, file: impl Into<PathBuf>) -> Self {
        self.root_certificates.push(file.into());
        self
    }

    /// Shows a certificate to the server; PEM files of the certificate and its key.
    pub fn certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.certificate = Some((certificate.into(), key.into()));
        self
    }

    /// Refuses a server that does not speak TLS. A `tls://` address does so as well.
    pub fn require_tls(mut self) -> Self {
        self.tls_required = true;
        self
    }

    /// On how many servers of a cluster each stream is kept: 1, 3 or 5. Default 1.
    pub fn replicas(mut self, replicas: u8) -> Self {
        self.replicas = replicas;
        self
    }

    /// How large each stream may grow, in bytes. Default 128 MiB, which the server reserves. A full stream of commands makes senders wait, a full stream
    /// of events forgets its oldest, which subscribers then get from the owner's log.
    pub fn stream_bytes(mut self, bytes: u64) -> Self {
        self.stream_bytes = bytes;
        self
    }

    /// How long the server keeps events for subscribers that are away; older ones they get from the owner's log. Default a day.
    pub fn event_age(mut self, age: Duration) -> Self {
        self.event_age = age;
        self
    }

    /// How long the server waits for an acknowledgement before it delivers a message again. Default 30 s, at least 1 s.
    /// Messages that are being handled longer are kept from it.
    pub fn ack_wait(mut self, span: Duration) -> Self {
        self.ack_wait = span.max(Duration::from_secs(1));
        self
    }

    /// How long a server that cannot be reached is waited for when the bridge is connected: it may be starting, too. Default: not
    /// at all, so that a wrong address is known at once. What a server refuses (a login, a name) is never waited for.
    pub fn wait_for_server(mut self, span: Duration) -> Self {
        self.wait_for_server = span;
        self
    }

    /// Sets whether the node creates streams and consumers. Default [`StreamSetup::Create`].
    pub fn stream_setup(mut self, setup: StreamSetup) -> Self {
        self.stream_setup = setup;
        self
    }

    /// Creates the streams and consumers of these services, and compares those that exist. Run it once per deployment, with the
    /// cards of all services of the namespace ([`Node::card`](crate::Node::card)) and the permissions of
    /// [`NatsPermissions::setup`](super::NatsPermissions::setup); nodes with [`StreamSetup::Existing`] then need no permission to
    /// create anything. Running it again changes nothing.
    ///
    /// # Errors
    /// [`BridgeError::Unreachable`] or [`BridgeError::Refused`], and [`BridgeError::Mismatch`] if a stream exists with another
    /// meaning. What was created before the error stays.
    pub async fn set_up(self, cards: &[NodeCard]) -> Result<(), BridgeError> {
        NatsBridge::set_up(&self, cards).await
    }

    /// Connects once, so that a wrong address or password is known now; the connection that works is made when the node starts.
    ///
    /// # Errors
    /// [`BridgeError::Unreachable`] or [`BridgeError::Refused`].
    pub async fn connect(self) -> Result<NatsBridge, BridgeError> {
        NatsBridge::open(self).await
    }
}

impl fmt::Debug for NatsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the address nor the login: both may hold a password.
        f.debug_struct("NatsBuilder").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}
