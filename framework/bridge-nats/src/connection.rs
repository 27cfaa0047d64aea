//! The connection to the server: how it is established, its state, and its errors.
//!
//! Called by the bridge. The client reconnects on its own; the loops watch [`LinkState`] to redo what a reconnection requires.
//! Errors and logs never contain a password: they show addresses as [`Servers`] formats them.
//!
//! A denial of the server is an event of the connection and names no request. So it is passed to all that may wait for the
//! subject.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerError};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::config::{Login, NatsBuilder};
use super::credentials::log_in;
use super::denied_inboxes::{Denial, DeniedInboxes, OwnInboxes};
use super::excerpt::excerpt;
use super::inboxes::response_inbox;
use super::log_limits::LogLimits;
use super::servers::Servers;
use whizbang_core::bridge::BridgeError;
use whizbang_core::clock::monotonic;
use whizbang_core::message::Name;
use whizbang_wire::subject::Namespace;

/// The time limit for a connection, including TLS and login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval of pings to the server. Without two responses the connection counts as broken.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// The maximum pause between two attempts to reconnect. The first attempt follows immediately, the second after 20 ms, and each
/// further pause doubles. A random half of each pause keeps the clients of a restarted server from reconnecting together.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// The number of messages of any size that the client keeps for one subscription while the thread of the bridge is blocked. It drops
/// further ones: a dropped event or notification is found as a gap, and a dropped request or response ends with its deadline.
const MAX_UNREAD: usize = 16_384;
/// The time for which dropped messages are noted in health.
const DROPS_NOTED_FOR: Duration = Duration::from_secs(60);
/// The number of buffered denials. A missed denial turns into a timeout of the denied request.
const DENIAL_CAPACITY: usize = 64;

/// The state of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkState {
    /// The client is connected and logged in.
    pub(super) up: bool,
    /// The number of times the connection has been made.
    pub(super) epoch: u64,
    /// The time of the last change.
    pub(super) since: Instant,
}

impl Default for LinkState {
    fn default() -> Self {
        Self { up: false, epoch: 0, since: monotonic() }
    }
}

/// The messages that the client has dropped because this node read them too slowly. Its report of a message may be lost in a flood
/// of them, so there may be more.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drops {
    /// The number of messages since the start.
    pub(super) count: u64,
    /// The time of the last one.
    pub(super) last: Option<Instant>,
}

impl Drops {
    /// Returns the note for operators, if messages were dropped in the last minute.
    pub(super) fn note(&self, now: Instant) -> Option<String> {
        let ago = now.saturating_duration_since(self.last?);
        let text = || {
            format!(
                "{} messages from the server were dropped, the last one {} s ago: this node reads too slowly, or a client floods it; \
                 senders send again, and events are read from the logs",
                self.count,
                ago.as_secs()
            )
        };
        (ago < DROPS_NOTED_FOR).then(text)
    }
}

/// A connection and its state.
pub(super) struct Connection {
    /// Dropped before the client.
    pub(super) ending: Ending,
    /// The handle of the client library, which reconnects by itself.
    pub(super) client: Client,
    /// Changes when the connection is lost or restored.
    pub(super) link: watch::Receiver<LinkState>,
    /// The subjects that the server denies this user, as they are reported.
    pub(super) denials: broadcast::Sender<String>,
    /// The inboxes of other parties that the server does not permit this node to respond to.
    pub(super) denied_inboxes: Arc<DeniedInboxes>,
    /// The limits of log lines that any client can cause.
    pub(super) log_limits: Arc<LogLimits>,
    /// Changes when messages are dropped.
    pub(super) drops: watch::Receiver<Drops>,
    /// The address of the server without credentials.
    pub(super) broker: Arc<str>,
}

/// A mark of a connection that this node closes itself, so that its end is not logged as a loss. Dropping it is enough: its
/// holder no longer needs the connection.
#[derive(Debug, Default)]
pub(super) struct Ending(Arc<AtomicBool>);

impl Ending {
    /// Records that this node closes the connection from now on.
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.begin();
    }
}

impl Connection {
    /// Connects. `name` identifies the connection to the operator of the server and is the last part of its inbox prefix.
    pub(super) async fn open(config: &NatsBuilder, name: &str) -> Result<Self, BridgeError> {
        let servers = Servers::parse(&config.url)
            .map_err(|reason| BridgeError::Refused { broker: "the configured address".to_owned(), reason })?;
        let broker: Arc<str> = servers.to_string().into();
        let ending = Ending::default();
        let (link_writer, link) = watch::channel(LinkState::default());
        let denials = broadcast::Sender::new(DENIAL_CAPACITY);
        let denied_inboxes = Arc::<DeniedInboxes>::default();
        let (drop_writer, drops) = watch::channel(Drops::default());
        let log_limits = Arc::<LogLimits>::default();
        let inbox = format!("_INBOX_{name}");
        let events = EventLog {
            broker: Arc::clone(&broker),
            is_ending: Arc::clone(&ending.0),
            link: link_writer,
            denials: denials.clone(),
            denied_inboxes: Arc::clone(&denied_inboxes),
            log_limits: Arc::clone(&log_limits),
            drops: drop_writer,
            inboxes: own_inboxes(&config.namespace, name),
        };
        let login = match &config.login {
            Login::None => servers.login.clone(),
            given => given.clone(),
        };
        let options = connect_options(config, &login, &broker)?
            .require_tls(requires_tls(config, &servers))
            .name(name)
            .custom_inbox_prefix(inbox)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(MAX_UNREAD)
            // An announced address may belong to another party: only the configured servers receive the password.
            .ignore_discovered_servers()
            .reconnect_delay_callback(|attempts| reconnect_delay(attempts, jitter(attempts)))
            .event_callback(move |event| {
                events.record(&event);
                async {}
            });
        let client = options.connect(servers.addresses).await.map_err(|error| connect_error(&broker, &error))?;
        Ok(Self { client, link, denials, denied_inboxes, log_limits, drops, broker, ending })
    }

    /// Waits until the first connection is recorded, which may happen shortly after `open` returns.
    pub(super) async fn wait_until_up(&mut self) {
        // The writer exists as long as the client, so the wait cannot fail.
        let _ = self.link.wait_for(|link| link.up).await;
    }

    /// Returns a transient error that names the server.
    pub(super) fn unreachable(&self, reason: impl Into<String>) -> BridgeError {
        BridgeError::Unreachable { broker: self.broker.to_string(), reason: reason.into() }
    }
}

/// Waits until the server has processed everything written before, for at most a second.
pub(super) async fn round_trip(client: &Client) {
    let there_and_back = async {
        let inbox = client.new_inbox();
        let mut subscriber = client.subscribe(inbox.clone()).await.ok()?;
        client.publish(inbox, Bytes::new()).await.ok()?;
        subscriber.next().await
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), there_and_back).await;
}

/// Returns the name of a service's connection, which its inboxes contain.
pub(super) fn client_name(namespace: &Namespace, service: &Name) -> String {
    format!("{namespace}_{service}")
}

/// Returns the inboxes of a connection with this [name](client_name).
fn own_inboxes(namespace: &Namespace, name: &str) -> OwnInboxes {
    let service = name.strip_prefix(&format!("{namespace}_")).unwrap_or(name);
    OwnInboxes {
        private: format!("_INBOX_{name}"),
        shared: format!("_INBOX_{namespace}"),
        responses: response_inbox(namespace, service),
    }
}

/// Returns the options of the client for a login, with the certificates.
///
/// # Errors
/// [`BridgeError::Refused`] if the login cannot be used: invalid credentials, or a file that cannot be read.
fn connect_options(config: &NatsBuilder, login: &Login, broker: &str) -> Result<ConnectOptions, BridgeError> {
    let unusable = |reason: String| BridgeError::Refused { broker: broker.to_owned(), reason };
    let mut options = match login {
        Login::None => ConnectOptions::new(),
        Login::UserPassword(user, password) => ConnectOptions::with_user_and_password(user.clone(), password.clone()),
        Login::Token(token) => ConnectOptions::with_token(token.clone()),
        Login::NKey(seed) => ConnectOptions::with_nkey(seed.clone()),
        Login::Credentials(text) => {
            ConnectOptions::with_credentials(text).map_err(|error| unusable(format!("invalid credentials: {error}")))?
        }
        Login::File(login) => {
            // A missing or invalid file is a configuration error at start. Later it only fails one attempt to connect.
            log_in(login, b"").map_err(|error| unusable(error.to_string()))?;
            let login = login.clone();
            ConnectOptions::with_auth_callback(move |nonce| std::future::ready(log_in(&login, &nonce)))
        }
    };
    for certificate in &config.root_certificates {
        options = options.add_root_certificates(certificate.clone());
    }
    if let Some((certificate, key)) = &config.certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(options)
}

/// Returns true if a server without TLS is refused.
///
/// One sign that TLS is intended is enough for all servers. Otherwise a password would be sent in clear text to an address that
/// was written without `tls://`, or to a server that only pretends not to support TLS.
fn requires_tls(config: &NatsBuilder, servers: &Servers) -> bool {
    config.tls_required || servers.tls || !config.root_certificates.is_empty() || config.certificate.is_some()
}

/// Returns a random number. Processes that lost their server together must not draw the same one, so it is not seeded. Only the
/// reconnect delay depends on it.
#[allow(clippy::disallowed_methods, reason = "a seed would give all processes the same pauses")]
fn jitter(attempts: usize) -> u64 {
    RandomState::new().hash_one(attempts)
}

/// Returns the pause before a reconnection attempt: between half of the doubled pause and all of it.
fn reconnect_delay(attempts: usize, random: u64) -> Duration {
    if attempts < 2 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempts).unwrap_or(u32::MAX).saturating_sub(2).min(16);
    let pause = Duration::from_millis(20).saturating_mul(1 << doublings).min(MAX_RECONNECT_DELAY);
    let half = pause / 2;
    half + Duration::from_nanos(random % u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1))
}

/// The recipient of the client's events.
struct EventLog {
    /// The servers without a login, for logs and errors.
    broker: Arc<str>,
    /// The connection ends on purpose.
    is_ending: Arc<AtomicBool>,
    /// The state of the connection for the loops.
    link: watch::Sender<LinkState>,
    /// The subjects that the server denies. A lagging receiver misses some, and their requests time out instead.
    denials: broadcast::Sender<String>,
    /// The inboxes of callers that the server denies.
    denied_inboxes: Arc<DeniedInboxes>,
    /// The limits of log lines that any client can cause.
    log_limits: Arc<LogLimits>,
    /// The messages that were dropped.
    drops: watch::Sender<Drops>,
    /// The inboxes of this connection and of the services.
    inboxes: OwnInboxes,
}

impl EventLog {
    /// Records an event in the state of the link or as a denial, and logs it.
    fn record(&self, event: &Event) {
        let broker = &*self.broker;
        match event {
            Event::Connected => {
                self.denied_inboxes.forget();
                let now = monotonic();
                self.link.send_modify(|link| *link = LinkState { up: true, epoch: link.epoch + 1, since: now });
                tracing::debug!(broker, "connected");
            }
            Event::Disconnected | Event::Closed => {
                self.link.send_modify(|link| *link = LinkState { up: false, since: monotonic(), ..*link });
                if self.is_ending.load(Ordering::Relaxed) {
                    tracing::debug!(broker, "connection closed");
                } else {
                    tracing::warn!(broker, "connection lost; queued messages will be sent after the reconnection");
                }
            }
            Event::ServerError(ServerError::Other(text)) => match denied_subject(text) {
                Some(subject) => self.record_denial(subject, text),
                None if self.log_limits.server_errors.admits(monotonic()) => {
                    tracing::warn!(broker, "server error: {}", excerpt(text));
                }
                None => {}
            },
            // The client reports each dropped message.
            Event::SlowConsumer(_) => {
                let now = monotonic();
                self.drops.send_modify(|drops| *drops = Drops { count: drops.count + 1, last: Some(now) });
                if self.log_limits.dropped.admits(now) {
                    tracing::warn!(
                        broker,
                        "slow consumer: messages dropped; senders send again, events come from the logs"
                    );
                }
            }
            Event::LameDuckMode => tracing::info!(broker, "server is shutting down"),
            other => tracing::warn!(broker, "{other}"),
        }
    }

    /// Logs a denial once for each inbox of another party: its requests name it again and again. No message of this node waits for
    /// a reply from there.
    fn record_denial(&self, subject: &str, text: &str) {
        let broker = &*self.broker;
        match self.denied_inboxes.record(subject, &self.inboxes, monotonic()) {
            Denial::OwnSubject => {
                if self.log_limits.server_errors.admits(monotonic()) {
                    tracing::error!(broker, subject, "permission denied by the server: {}", excerpt(text));
                }
                // There may be no request that waits for it.
                let _ = self.denials.send(subject.to_owned());
            }
            Denial::NewInbox => tracing::warn!(
                broker,
                inbox = excerpt(subject),
                "response denied by the server; requests with such an inbox are dropped: the requester must use its own inbox",
            ),
            Denial::Service => tracing::warn!(
                broker,
                inbox = excerpt(subject),
                "response to a service denied by the server: the permissions of this node are incomplete",
            ),
            Denial::KnownInbox => tracing::debug!(broker, inbox = excerpt(subject), "response denied by the server"),
        }
    }
}

/// Returns the subject in `Permissions Violation for Publish to "x"`.
fn denied_subject(text: &str) -> Option<&str> {
    let rest = text.trim_matches('\'');
    let violation = rest.get(..22).is_some_and(|start| start.eq_ignore_ascii_case("permissions violation "));
    rest.split('"').nth(1).filter(|_| violation)
}

/// Converts an error of the client. A wrong login or certificate is permanent; anything else may pass, so the caller may retry.
fn connect_error(broker: &str, error: &async_nats::ConnectError) -> BridgeError {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error).and_then(std::error::Error::source);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    let broker = broker.to_owned();
    // An unknown authority is reported as an I/O error; only the text distinguishes it from a network failure.
    let is_certificate = reason.contains("certificate") || reason.contains("TLS");
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Tls => {
            BridgeError::Refused { broker, reason }
        }
        _ if is_certificate => BridgeError::Refused { broker, reason },
        _ => BridgeError::Unreachable { broker, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_sign_of_tls_requires_tls_for_all_servers() {
        let requires = |builder: NatsBuilder| requires_tls(&builder, &Servers::parse(&builder.url).unwrap());
        assert!(!requires(NatsBuilder::new("nats://host")));
        assert!(requires(NatsBuilder::new("nats://host").require_tls()));
        assert!(requires(NatsBuilder::new("nats://host").root_certificate("ca.pem")));
        assert!(requires(NatsBuilder::new("nats://host").certificate("c.pem", "k.pem")));
        assert!(requires(NatsBuilder::new("tls://host,nats://other")));
        assert!(requires(NatsBuilder::new("nats://other, wss://host")));
    }

    #[test]
    fn reconnect_delay_doubles_with_jitter_up_to_a_limit() {
        assert_eq!(reconnect_delay(1, 7), Duration::ZERO);
        for (attempts, most) in [(2, 20), (3, 40), (5, 160), (30, 2_000), (usize::MAX, 2_000)] {
            let most = Duration::from_millis(most);
            let delays: Vec<_> =
                [0, 1 << 20, 1 << 40, u64::MAX].iter().map(|random| reconnect_delay(attempts, *random)).collect();
            assert!(delays.iter().all(|delay| *delay >= most / 2 && *delay <= most), "{attempts}: {delays:?}");
            assert!(delays.iter().any(|delay| *delay != delays[0]), "{attempts}: no jitter");
        }
    }

    #[test]
    fn denied_subject_is_extracted() {
        let text = "Permissions Violation for Publish to \"whizbang.evt.bank.0.Deposited\"";
        assert_eq!(denied_subject(text), Some("whizbang.evt.bank.0.Deposited"));
        assert_eq!(denied_subject("permissions violation for subscription to \"a.>\" using queue \"x\""), Some("a.>"));
        assert_eq!(denied_subject("Stale Connection \"x\""), None);
    }
}
