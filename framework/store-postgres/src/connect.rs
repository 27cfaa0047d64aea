//! Opens connections: addresses, login, TLS, and what is checked of a server before it is used.
//!
//! Called by the [writers](crate::writer) (blocking) and by the [readers](crate::pool) (asynchronous). Credentials are read
//! again for each connection. Never retries.

use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::blocking::{BlockingStream, Driver, Socket};
use crate::failure::Failure;

/// Opening a connection to one address takes at most this long, unless the URL has `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection on which nothing arrives is probed after this time, and then about every fifth of it.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A connection whose data is not acknowledged for this long is lost. Without it a half-open connection blocks for minutes.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// Reads what is [checked](Settings) of a server.
const SETTINGS: &str = "SELECT current_setting('transaction_read_only'), current_setting('fsync'), \
    current_setting('full_page_writes'), current_setting('synchronous_commit'), \
    current_setting('synchronous_standby_names'), current_setting('server_version_num')::int, \
    current_setting('server_encoding'), pg_is_in_recovery()";

/// The oldest supported server.
const OLDEST: i32 = 130_000;

/// The stream of an asynchronous connection.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A TCP or Unix socket of the runtime, behind one type.
type Io = Box<dyn Duplex>;
/// The TLS stream of the client library around [`Io`].
type IoTls = <MakeRustlsConnect as MakeTlsConnect<Io>>::Stream;

/// A client and the connection that its runtime drives.
pub(crate) type Connected = (Client, Connection<Io, IoTls>);

/// The durability that is demanded of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// A server whose settings lose committed turns in a crash is rejected: `fsync`, `full_page_writes` or
    /// `synchronous_commit` is off. The default.
    #[default]
    Required,
    /// Every server is accepted. For tests, and for data that may be lost.
    Any,
}

/// The settings of a server that are checked.
#[derive(Debug)]
pub(crate) struct Settings {
    /// New transactions are read-only: `default_transaction_read_only`, or a standby.
    read_only: bool,
    /// The server waits for its disk. Without it a crash of the operating system loses commits.
    fsync: bool,
    /// The server can repair pages that a crash has left half written.
    full_page_writes: bool,
    /// The setting with this name: `off` acknowledges a commit before it is on the disk.
    synchronous_commit: String,
    /// The synchronous standbys; empty without any.
    standbys: String,
    /// The version as a number: 150004 is 15.4.
    version: i32,
    /// The encoding of the database. Only UTF-8 can hold every key.
    encoding: String,
    /// The server follows another one and cannot be written to.
    standby: bool,
}

impl Settings {
    /// Reads the columns of [`SETTINGS`], in their order.
    fn read(row: &Row) -> Self {
        let is_on = |column: usize| row.get::<_, &str>(column) == "on";
        Self {
            read_only: is_on(0),
            fsync: is_on(1),
            full_page_writes: is_on(2),
            synchronous_commit: row.get(3),
            standbys: row.get(4),
            version: row.get(5),
            encoding: row.get(6),
            standby: row.get(7),
        }
    }

    /// Returns the first reason not to use the server. A standby is worth another attempt, because it may be promoted; the other
    /// reasons are permanent.
    fn check(&self, durability: Durability) -> Result<(), Failure> {
        let rejected = |text: String| Err(Failure::new(text));
        if self.version < OLDEST {
            return rejected(format!("PostgreSQL {} is too old; 13 or newer is needed", self.version / 10_000));
        }
        if self.encoding != "UTF8" {
            return rejected(format!("the database's encoding is {}; create it with UTF8", self.encoding));
        }
        if self.standby || self.read_only {
            let is = if self.standby { "a standby" } else { "read-only" };
            // Another server may be promoted, so it is worth trying again.
            return Err(Failure::connection("the server cannot be written to", &Failure::new(format!("it is {is}"))));
        }
        let synchronous = self.synchronous_commit != "off";
        if durability == Durability::Any || (self.fsync && self.full_page_writes && synchronous) {
            return Ok(());
        }
        let off = match (self.fsync, self.full_page_writes) {
            (false, _) => "fsync",
            (_, false) => "full_page_writes",
            _ => "synchronous_commit",
        };
        rejected(format!(
            "{off} is off, so committed turns may be lost; turn it on, or accept it with `Durability::Any`"
        ))
    }

    /// A line for the log at start.
    pub(crate) fn durability(&self) -> &'static str {
        if !self.fsync || !self.full_page_writes || self.synchronous_commit == "off" {
            return "in PostgreSQL: NOT durable, the server's settings allow it to lose commits in a crash";
        }
        if self.standbys.is_empty() || self.synchronous_commit == "local" {
            "in PostgreSQL: a commit survives the crash of the server (fsync, synchronous_commit); a failover to an \
             asynchronous standby can lose the last commits"
        } else {
            "in PostgreSQL: a commit survives the loss of the server, a synchronous standby has it"
        }
    }
}

/// The source of the password.
#[derive(Clone, Default)]
pub(crate) enum Password {
    /// The URL, or the environment variable `PGPASSWORD`.
    #[default]
    Given,
    /// A file, read for each connection. Line breaks at its end are not part of the password.
    File(PathBuf),
}

/// One address of a server.
#[derive(Clone, Debug)]
enum Endpoint {
    /// A host with an optional address, which then is not looked up.
    Tcp { host: String, address: Option<IpAddr>, port: u16 },
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Endpoint {
    /// Returns whether data to it never leaves the machine.
    fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, address, .. } => {
                let given = address.or_else(|| host.parse().ok());
                given.map_or(host == "localhost", |address| address.is_loopback())
            }
        }
    }

    /// Blocks while a name is looked up.
    fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        match self {
            Self::Unix(_) => Ok(Vec::new()),
            Self::Tcp { address: Some(address), port, .. } => Ok(vec![SocketAddr::new(*address, *port)]),
            Self::Tcp { host, port, .. } => Ok((host.as_str(), *port).to_socket_addrs()?.collect()),
        }
    }
}

/// Opens connections to the servers of one URL.
pub(crate) struct Connector {
    /// The settings of the URL. Login, TLS and password are completed for each connection.
    config: Config,
    /// The servers in the order of the URL, at least one.
    endpoints: Vec<Endpoint>,
    /// The settings for TLS, with the certificates of the authorities.
    tls: MakeRustlsConnect,
    /// The source of the password.
    password: Password,
    /// The guarantee that the server must give for a commit.
    durability: Durability,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("at", &self.at()).finish_non_exhaustive()
    }
}

/// Returns a permanent failure that names the server.
fn doing(error: impl std::fmt::Display, endpoint: &Endpoint) -> Failure {
    Failure::new(format!("{endpoint}: {error}"))
}

impl Connector {
    pub(crate) fn new(
        mut config: Config,
        authority: Option<&Path>,
        password: Password,
        durability: Durability,
    ) -> Result<Self, Failure> {
        if config.get_application_name().is_none() {
            config.application_name("whizbang");
        }
        let endpoints = endpoints(&config);
        if endpoints.is_empty() {
            return Err(Failure::new("the URL names no host"));
        }
        let needs_tls = endpoints.iter().any(|endpoint| mode(&config, endpoint) != SslMode::Disable);
        let tls = MakeRustlsConnect::new(crate::tls::config(needs_tls, authority)?);
        Ok(Self { config, endpoints, tls, password, durability })
    }

    /// The servers and the database, without credentials.
    pub(crate) fn at(&self) -> String {
        let hosts: Vec<String> = self.endpoints.iter().map(Endpoint::to_string).collect();
        format!("PostgreSQL {}/{}", hosts.join(","), self.config.get_dbname().unwrap_or_default())
    }

    /// Returns the settings for one server, with the current password.
    fn config(&self, endpoint: &Endpoint) -> Result<Config, Failure> {
        let mut config = self.config.clone();
        config.ssl_mode(mode(&self.config, endpoint));
        match &self.password {
            Password::File(path) => {
                let read = std::fs::read_to_string(path);
                let password = read.map_err(|error| Failure::connection(&path.display().to_string(), &error))?;
                config.password(password.trim_end_matches(['\r', '\n']));
            }
            Password::Given if config.get_password().is_none() => {
                if let Some(password) = std::env::var_os("PGPASSWORD") {
                    config.password(password.as_encoded_bytes());
                }
            }
            Password::Given => {}
        }
        Ok(config)
    }

    /// Returns the name that the server's certificate must have.
    fn name<'a>(&self, endpoint: &'a Endpoint) -> &'a str {
        match endpoint {
            Endpoint::Tcp { host, .. } => host,
            Endpoint::Unix(_) => "localhost",
        }
    }

    /// Returns the time limit for a connection to one address. Login and TLS may take as long again.
    fn timeout(&self) -> Duration {
        self.config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT)
    }

    /// Opens a connection that is driven by its user, to the first server that can be written to. Blocks. None if `give_up`
    /// returns `true`. The wait for one server is bounded by its timeout, so the call returns after at most three timeouts
    /// for each server.
    ///
    /// # Errors
    /// The failure of the last server of the URL.
    pub(crate) fn connect_blocking(&self, give_up: impl Fn() -> bool) -> Option<Result<Driver, Failure>> {
        let mut last = None;
        for endpoint in &self.endpoints {
            match self.log_in_blocking(endpoint, &give_up)? {
                Ok(driver) => return Some(Ok(driver)),
                Err(failure) => last = Some(failure),
            }
        }
        last.map(Err)
    }

    /// Connects, logs in and checks the server, on the calling thread. None if `give_up` returns `true`.
    fn log_in_blocking(&self, endpoint: &Endpoint, give_up: impl Fn() -> bool) -> Option<Result<Driver, Failure>> {
        let opened = self.open_blocking(endpoint).and_then(|socket| Ok((socket, self.config(endpoint)?)));
        let (socket, config) = match opened {
            Ok(opened) => opened,
            Err(failure) => return Some(Err(failure)),
        };
        // Making a connector for a name never fails.
        let tls = <MakeRustlsConnect as MakeTlsConnect<BlockingStream>>::make_tls_connect(
            &mut self.tls.clone(),
            self.name(endpoint),
        )
        .ok()?;
        let begun = tokio::time::Instant::now();
        let mut late = false;
        let connected = Driver::connect(socket, &config, tls, || {
            late = begun.elapsed() > self.timeout() * 2;
            late || give_up()
        });
        let mut driver = match connected {
            Some(Ok(driver)) => driver,
            Some(Err(error)) => return Some(Err(Failure::from(error).at(endpoint))),
            None if late => return Some(Err(doing("the login was not answered", endpoint).with_connection())),
            None => return None,
        };
        let client = Arc::clone(&driver.client);
        let mut settings = Box::pin(async move { settings(&client, self.durability).await });
        let checked = driver.drive(settings.as_mut(), give_up)?;
        Some(checked.map(|_| driver).map_err(|failure| failure.at(endpoint)))
    }

    /// Opens a socket to the first address of a server that accepts it.
    fn open_blocking(&self, endpoint: &Endpoint) -> Result<Socket, Failure> {
        let failed = |error: std::io::Error| doing(error, endpoint).with_connection();
        let socket = match endpoint {
            Endpoint::Unix(path) => Socket::Unix(UnixStream::connect(path).map_err(failed)?),
            Endpoint::Tcp { .. } => {
                let mut last = None;
                let mut found = None;
                for address in endpoint.addresses().map_err(failed)? {
                    match TcpStream::connect_timeout(&address, self.timeout()) {
                        Ok(socket) => {
                            found = Some(socket);
                            break;
                        }
                        Err(error) => last = Some(error),
                    }
                }
                let missing = || last.unwrap_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound));
                let socket = found.ok_or_else(missing).map_err(failed)?;
                tune(SockRef::from(&socket)).map_err(failed)?;
                Socket::Tcp(socket)
            }
        };
        socket.set_nonblocking().map_err(failed)?;
        Ok(socket)
    }

    /// The number of servers in the URL.
    pub(crate) fn servers(&self) -> usize {
        self.endpoints.len()
    }

    /// Opens a connection for a runtime to one of the servers. It has to be [checked](Self::check) before it is used.
    ///
    /// # Errors
    /// The server does not answer within twice the timeout, refuses the login, or its certificate cannot be verified.
    pub(crate) async fn connect(&self, server: usize) -> Result<Connected, Failure> {
        let endpoint = self.endpoints.get(server).ok_or_else(|| Failure::new("the URL names no host"))?;
        match tokio::time::timeout(self.timeout() * 2, self.log_in(endpoint)).await {
            Ok(connected) => connected,
            Err(_) => Err(doing("the login was not answered", endpoint).with_connection()),
        }
    }

    /// Opens a socket to a server and logs in. The connection makes progress only while the caller polls it.
    ///
    /// # Errors
    /// An unreachable server is a failure of the connection, so another attempt may succeed. A refused login is permanent.
    async fn log_in(&self, endpoint: &Endpoint) -> Result<Connected, Failure> {
        let failed = |error: std::io::Error| doing(error, endpoint).with_connection();
        let io: Io = match endpoint {
            Endpoint::Unix(path) => Box::new(tokio::net::UnixStream::connect(path).await.map_err(failed)?),
            Endpoint::Tcp { host, address, port } => {
                let socket = match address {
                    Some(address) => tokio::net::TcpStream::connect((*address, *port)).await,
                    None => tokio::net::TcpStream::connect((host.as_str(), *port)).await,
                };
                let socket = socket.map_err(failed)?;
                tune(SockRef::from(&socket)).map_err(failed)?;
                Box::new(socket)
            }
        };
        let config = self.config(endpoint)?;
        let make = &mut self.tls.clone();
        let tls = <MakeRustlsConnect as MakeTlsConnect<Io>>::make_tls_connect(make, self.name(endpoint))
            .map_err(|error| doing(error, endpoint))?;
        let connected = config.connect_raw(io, tls).await;
        connected.map_err(|error| Failure::from(error).at(endpoint))
    }

    /// Checks the server behind a connection.
    ///
    /// # Errors
    /// The server is too old, read-only, or would lose commits. The text tells the operator what to change.
    pub(crate) async fn check(&self, client: &Client) -> Result<Settings, Failure> {
        settings(client, self.durability).await
    }
}

/// Reads and checks the settings of a server.
async fn settings(client: &Client, durability: Durability) -> Result<Settings, Failure> {
    let rows = client.query_typed(SETTINGS, &[]).await?;
    let row = rows.first().ok_or_else(|| Failure::new("the server has no settings"))?;
    let settings = Settings::read(row);
    settings.check(durability)?;
    Ok(settings)
}

/// Sets what reveals a lost connection soon, and sends each request at once.
fn tune(socket: SockRef<'_>) -> std::io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 5).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

/// TLS with a verified certificate wherever data leaves the machine; `sslmode=disable` and `sslmode=require` override it.
fn mode(config: &Config, endpoint: &Endpoint) -> SslMode {
    match (config.get_ssl_mode(), endpoint) {
        (_, Endpoint::Unix(_)) => SslMode::Disable,
        (SslMode::Prefer, endpoint) if endpoint.is_local() => SslMode::Disable,
        (SslMode::Prefer, _) => SslMode::Require,
        (mode, _) => mode,
    }
}

/// Returns the servers of the URL. A host may have its address in `hostaddr`, which then is not looked up.
fn endpoints(config: &Config) -> Vec<Endpoint> {
    let ports = config.get_ports();
    // One port may stand for all hosts.
    let port = |number: usize| ports.get(number).or(ports.first()).copied().unwrap_or(5432);
    let hosts = config.get_hosts().iter().enumerate();
    let named = hosts.map(|(number, host)| match host {
        Host::Tcp(host) => Endpoint::Tcp {
            host: host.clone(),
            address: config.get_hostaddrs().get(number).copied(),
            port: port(number),
        },
        #[cfg(unix)]
        Host::Unix(folder) => Endpoint::Unix(folder.join(format!(".s.PGSQL.{}", port(number)))),
    });
    let named: Vec<Endpoint> = named.collect();
    if !named.is_empty() {
        return named;
    }
    let addresses = config.get_hostaddrs().iter().enumerate();
    addresses
        .map(|(number, address)| Endpoint::Tcp {
            host: address.to_string(),
            address: Some(*address),
            port: port(number),
        })
        .collect()
}
