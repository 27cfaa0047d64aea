//! The configuration of a bridge to NATS: servers, login, namespace and stream sizes.
//!
//! Read when the bridge connects, when it attaches, and after each reconnection. Nothing here is changed while a node runs,
//! except login files and certificates, which are read for each connection.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::NatsBridge;
use super::credentials::LoginFile;
use whizbang_core::bridge::{BridgeError, NodeCard};
use whizbang_wire::subject::Namespace;

/// A builder of a [`NatsBridge`].
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
///
/// One login is used for all servers: the last call of a login method counts, and it takes precedence over a login in the
/// address. The address has the form `[scheme://][user:password@|token@]host[:port]`, where the scheme
/// is `nats` or `tls`. Characters such as `@` and `/` in a password are percent-encoded.
///
/// # Wrong values
///
/// [`connect`](Self::connect) reports an invalid address, a refused login, a server without JetStream, and a server older than
/// 2.9. The start of the node reports everything that concerns streams: missing permissions, too little disk, more replicas than
/// servers.
///
/// # Values of existing streams
///
/// The number of replicas, the size and the age of a stream, and the acknowledgement time of a consumer belong to the operator
/// once they exist at the server. A lower limit than configured, or another value, is logged as a warning and used.
/// Other differences are [`BridgeError::Mismatch`].
///
/// A cluster with a password file, for example, which an operator may replace while the node runs:
/// ```no_run
/// # async fn example() -> Result<(), whizbang::bridge::BridgeError> {
/// use std::time::Duration;
/// use whizbang::bridge::nats::NatsBridge;
///
/// let bridge = NatsBridge::builder("tls://nats-1.example.com,tls://nats-2.example.com,tls://nats-3.example.com")
///     .password_file("orders", "/run/secrets/nats-password")
///     .root_certificate("/etc/ssl/nats-ca.pem")
///     .replicas(3)
///     .wait_for_server(Duration::from_secs(30))
///     .connect()
///     .await?;
/// # let _ = bridge;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct NatsBuilder {
    /// One or several servers, separated by commas. May contain a login, so it is never printed.
    pub(super) url: String,
    /// The prefix of all subjects and streams.
    pub(super) namespace: Namespace,
    /// The login, apart from one in the URL.
    pub(super) login: Login,
    /// Files with certificates of authorities, in addition to those of the system.
    pub(super) root_certificates: Vec<PathBuf>,
    /// The certificate of this client and its key.
    pub(super) certificate: Option<(PathBuf, PathBuf)>,
    /// The connection fails without TLS.
    pub(super) tls_required: bool,
    /// The number of servers that have each stream.
    pub(super) replicas: u8,
    /// The size of each stream in bytes.
    pub(super) stream_bytes: u64,
    /// The age at which events are removed from their stream.
    pub(super) event_age: Duration,
    /// The time after which the server delivers an unacknowledged message again.
    pub(super) ack_wait: Duration,
    /// The time for which `connect` tries to reach a server.
    pub(super) wait_for_server: Duration,
    /// The party that creates streams and consumers.
    pub(super) stream_setup: StreamSetup,
}

/// The party that creates the streams and consumers of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamSetup {
    /// The node creates missing ones. It needs permission to create streams, and a user with that permission can read and forge
    /// the messages of every service in its account, because the name of a stream does not restrict its subjects.
    #[default]
    Create,
    /// The node creates nothing and fails to start if something is missing. [`NatsBuilder::set_up`] creates everything in
    /// advance, under an identity of its own. Use this with [`NatsPermissions::runtime`](super::NatsPermissions::runtime).
    Existing,
}

/// The login of the bridge.
#[derive(Clone)]
pub(super) enum Login {
    /// No login.
    None,
    /// A user and a password.
    UserPassword(String, String),
    /// A token.
    Token(String),
    /// The seed of an nkey, which signs a number of the server.
    NKey(String),
    /// The content of a credentials file.
    Credentials(String),
    /// A file that is read for each connection, so that it can be replaced without a restart.
    File(LoginFile),
}

impl NatsBuilder {
    /// Returns the default settings for a URL, which is parsed when the bridge connects.
    pub(super) fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            namespace: Namespace::default(),
            login: Login::None,
            root_certificates: Vec::new(),
            certificate: None,
            tls_required: false,
            replicas: 1,
            // The server reserves it, so it must fit a small disk for a dozen services.
            stream_bytes: 128 * 1024 * 1024,
            event_age: Duration::from_secs(24 * 60 * 60),
            // A turn takes milliseconds, but a key may be parked behind a retry. Redelivery is cheap: the inbox drops duplicates.
            ack_wait: Duration::from_secs(30),
            wait_for_server: Duration::ZERO,
            stream_setup: StreamSetup::default(),
        }
    }

    /// Sets the namespace, which keeps this installation apart from others on the same server. Default `whizbang`.
    ///
    /// All services that exchange messages have the same one. A second namespace at the same server has streams, claims and
    /// consumers of its own, for example for a test environment.
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// Logs in with a user name and a password.
    ///
    /// The password is sent to each server of the address. Without TLS it crosses the network in clear text: see
    /// [`require_tls`](Self::require_tls).
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

    /// Logs in with the text of a `.creds` file: the JWT and the seed of a user.
    ///
    /// An invalid text is [`BridgeError::Refused`] when the bridge connects. To rotate credentials without a restart, use
    /// [`credentials_file`](Self::credentials_file).
    pub fn credentials(mut self, text: impl Into<String>) -> Self {
        self.login = Login::Credentials(text.into());
        self
    }

    /// Logs in with a `.creds` file, which is read again for each connection. To rotate the credentials, replace the file, then
    /// let the server close the connections of the old user.
    ///
    /// A missing or invalid file is an error when the bridge connects. Later it fails one attempt to reconnect, which is
    /// repeated, and the log names the file without its contents.
    pub fn credentials_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.login = Login::File(LoginFile::Credentials(file.into()));
        self
    }

    /// Logs in with a user name and a password from a file, which is read again for each connection as for
    /// [`credentials_file`](Self::credentials_file). A line break at the end of the file is not part of the password.
    pub fn password_file(mut self, name: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        self.login = Login::File(LoginFile::Password(name.into(), file.into()));
        self
    }

    /// Trusts the certificate authority in a PEM file. After the first call the authorities of the system are not trusted.
    ///
    /// Any call requires TLS for all servers.
    pub fn root_certificate(mut self, file: impl Into<PathBuf>) -> Self {
        self.root_certificates.push(file.into());
        self
    }

    /// Presents a client certificate to the server: PEM files of the certificate and of its key.
    ///
    /// It requires TLS for all servers. The files are read for each connection, so a renewed certificate is used from the next
    /// reconnection on.
    pub fn certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.certificate = Some((certificate.into(), key.into()));
        self
    }

    /// Refuses a server without TLS. An address with `tls://` does the same.
    ///
    /// One sign of TLS counts for all addresses: a server of the list without TLS never receives the login.
    pub fn require_tls(mut self) -> Self {
        self.tls_required = true;
        self
    }

    /// Sets the number of servers of a cluster that keep each stream: 1, 3 or 5. Default 1.
    ///
    /// With 3, the streams survive the loss of one server; with 5, of two. A number larger than the cluster is refused by the
    /// server when the node starts. Lost messages are sent again from the logs of the services, so one replica costs availability
    /// and not data.
    pub fn replicas(mut self, replicas: u8) -> Self {
        self.replicas = replicas;
        self
    }

    /// Sets the maximum size of each stream in bytes. Default 128 MiB, which the server reserves. A full stream of commands makes
    /// senders wait. A full stream of events drops the oldest ones, which subscribers then fetch from the owner's log.
    ///
    /// A node has two streams for each domain that it owns, one for commands and one for events. The fixed streams are small: 16
    /// MiB for refused messages of a service, and 1 MiB for the claims of a namespace.
    pub fn stream_bytes(mut self, bytes: u64) -> Self {
        self.stream_bytes = bytes;
        self
    }

    /// Sets the retention of events for absent subscribers, which fetch older ones from the owner's log. Default 24 hours.
    ///
    /// A subscriber of this framework misses nothing if the span is short: it reads the log. Clients in other languages that only
    /// read the stream see nothing older.
    pub fn event_age(mut self, age: Duration) -> Self {
        self.event_age = age;
        self
    }

    /// Sets the time after which the server redelivers an unacknowledged message. Default 30 s, minimum 1 s. The bridge extends it
    /// for messages that take longer.
    ///
    /// A long time delays messages that a killed node had in flight: they are redelivered after it. A short one costs messages on
    /// the wire, because the bridge extends the time at each third of it.
    pub fn ack_wait(mut self, span: Duration) -> Self {
        self.ack_wait = span.max(Duration::from_secs(1));
        self
    }

    /// Sets how long [`connect`](Self::connect) waits for an unreachable server, which may be starting too. Default zero, so that a
    /// wrong address fails immediately. A refusal by the server (a login, a name) always fails immediately.
    ///
    /// It applies to the first connection only. A running node reconnects as long as it runs, at intervals of at most 2 s.
    pub fn wait_for_server(mut self, span: Duration) -> Self {
        self.wait_for_server = span;
        self
    }

    /// Sets the party that creates streams and consumers. Default [`StreamSetup::Create`].
    ///
    /// Choose [`StreamSetup::Existing`] where services must not be able to read each other's messages.
    pub fn stream_setup(mut self, setup: StreamSetup) -> Self {
        self.stream_setup = setup;
        self
    }

    /// Creates the streams and consumers of these services and compares existing ones. Run it once per deployment, with the cards
    /// of all services of the namespace (`Node::card`) and the permissions of
    /// [`NatsPermissions::setup`](super::NatsPermissions::setup). Nodes with [`StreamSetup::Existing`] then need no permission to
    /// create anything. Running it again changes nothing.
    ///
    /// # Errors
    /// [`BridgeError::Unreachable`] or [`BridgeError::Refused`], and [`BridgeError::Mismatch`] if a stream exists with settings that
    /// change its meaning. Streams and consumers created before the error are kept.
    pub async fn set_up(self, cards: &[NodeCard]) -> Result<(), BridgeError> {
        NatsBridge::set_up(&self, cards).await
    }

    /// Connects once, so that a wrong address or password fails now. The connection of the node is made when the node starts.
    ///
    /// # Errors
    /// [`BridgeError::Unreachable`] or [`BridgeError::Refused`].
    ///
    /// The server must have JetStream, at least version 2.9, and a `max_payload` of 544 KiB or more (the default is 1 MiB). The
    /// first connection is closed when the check is done.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection. Nothing was created at the server.
    pub async fn connect(self) -> Result<NatsBridge, BridgeError> {
        NatsBridge::open(self).await
    }
}

impl fmt::Debug for NatsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the address nor the login: both may contain a password.
        f.debug_struct("NatsBuilder").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for super::NatsBridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsBridge").finish_non_exhaustive()
    }
}
