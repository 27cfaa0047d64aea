//! The connection to the server: how it is made, whether it is up, and what went wrong with it.
//!
//! Called by the bridge. The client reconnects by itself; what must be said or done again afterwards hears of it here.
//! A password never stands in an error or a log: addresses are shown without what is before the `@`.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerError};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{broadcast, watch};

use super::config::{Login, NatsBuilder};
use crate::bridge::BridgeError;
use crate::bridge::subject::Namespace;
use crate::bridge::wire::percent;
use crate::message::Name;

/// How long a connection, TLS and login included, may take.
const CONNECT: Duration = Duration::from_secs(5);
/// The server is asked for a sign of life this often; without two answers the connection counts as broken.
const PING: Duration = Duration::from_secs(10);
/// A lost connection is tried again at once, then after 20 ms, doubled each time up to this.
const RECONNECT_AT_MOST: Duration = Duration::from_secs(2);
/// How many denials of the server wait to be looked at; who misses one runs into a deadline instead.
const DENIALS: usize = 64;

/// Whether the connection is up, and how often it has been made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) up: bool,
    pub(super) epoch: u64,
}

/// A connection and what is known of it.
pub(super) struct Connection {
    pub(super) client: Client,
    /// Changes when the connection is lost or back.
    pub(super) link: watch::Receiver<Link>,
    /// Subjects that the server does not let this user publish or subscribe to, as it refuses them.
    pub(super) denials: broadcast::Sender<String>,
    /// The server's address without credentials.
    pub(super) broker: Arc<str>,
}

impl Connection {
    /// Connects. `who` names the connection for the server's operator and is the last part of its inboxes.
    pub(super) async fn open(config: &NatsBuilder, who: &str) -> Result<Self, BridgeError> {
        let broker: Arc<str> = redacted(&config.url).into();
        let (link_writer, link) = watch::channel(Link::default());
        let denials = broadcast::Sender::new(DENIALS);
        let denial_writer = denials.clone();
        let shown = Arc::clone(&broker);
        let options = options(config, &login(config), &broker)?
            .name(who)
            .custom_inbox_prefix(format!("_INBOX_{who}"))
            .connection_timeout(CONNECT)
            .ping_interval(PING)
            // An address that a server announces may be anybody's: only those of the configuration get the password.
            .ignore_discovered_servers()
            .reconnect_delay_callback(|attempts| {
                let doubled = u32::try_from(attempts).unwrap_or(u32::MAX).saturating_sub(2).min(16);
                if attempts < 2 {
                    Duration::ZERO
                } else {
                    Duration::from_millis(20).saturating_mul(1 << doubled).min(RECONNECT_AT_MOST)
                }
            })
            .event_callback(move |event| {
                note(&event, &shown, &link_writer, &denial_writer);
                async {}
            });
        let servers: Vec<&str> = broker.split(',').collect();
        let client = options.connect(servers).await.map_err(|error| refused(&broker, &error))?;
        Ok(Self { client, link, denials, broker })
    }

    /// Waits until the first connection is noted; it is made when `open` returns, the note may come a moment later.
    pub(super) async fn settle(&mut self) {
        // The writer lives as long as the client.
        let _ = self.link.wait_for(|link| link.up).await;
    }

    pub(super) fn unreachable(&self, reason: impl Into<String>) -> BridgeError {
        BridgeError::Unreachable { broker: self.broker.to_string(), reason: reason.into() }
    }
}

/// Waits until the server has taken everything written before; a second at most.
pub(super) async fn round_trip(client: &Client) {
    let there_and_back = async {
        let inbox = client.new_inbox();
        let mut subscriber = client.subscribe(inbox.clone()).await.ok()?;
        client.publish(inbox, Bytes::new()).await.ok()?;
        subscriber.next().await
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), there_and_back).await;
}

/// What a service's connection is called, and its inboxes end with.
pub(super) fn who(namespace: &Namespace, service: &Name) -> String {
    format!("{namespace}_{service}")
}

fn options(config: &NatsBuilder, login: &Login, broker: &str) -> Result<ConnectOptions, BridgeError> {
    let unusable = |reason: String| BridgeError::Refused { broker: broker.to_owned(), reason };
    let mut options = match login {
        Login::None => ConnectOptions::new(),
        Login::UserPassword(user, password) => ConnectOptions::with_user_and_password(user.clone(), password.clone()),
        Login::Token(token) => ConnectOptions::with_token(token.clone()),
        Login::NKey(seed) => ConnectOptions::with_nkey(seed.clone()),
        Login::Credentials(text) => ConnectOptions::with_credentials(text)
            .map_err(|error| unusable(format!("the credentials cannot be read: {error}")))?,
    };
    for certificate in &config.root_certificates {
        options = options.add_root_certificates(certificate.clone());
    }
    if let Some((certificate, key)) = &config.certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if config.tls_required {
        options = options.require_tls(true);
    }
    Ok(options)
}

fn note(event: &Event, broker: &str, link: &watch::Sender<Link>, denials: &broadcast::Sender<String>) {
    match event {
        Event::Connected => {
            link.send_modify(|link| *link = Link { up: true, epoch: link.epoch + 1 });
            tracing::debug!(broker, "connected");
        }
        Event::Disconnected | Event::Closed => {
            link.send_modify(|link| link.up = false);
            tracing::warn!(broker, "the connection is lost; what waits goes out when it is back");
        }
        Event::ServerError(ServerError::Other(text)) => match denied_subject(text) {
            Some(subject) => {
                tracing::error!(broker, subject, "the server does not permit it: {}", shown(text));
                // Nobody may be waiting for anything.
                let _ = denials.send(subject.to_owned());
            }
            None => tracing::warn!(broker, "the server says: {}", shown(text)),
        },
        Event::SlowConsumer(_) => {
            tracing::warn!(broker, "more came in than is taken; it is asked for again");
        }
        Event::LameDuckMode => tracing::info!(broker, "the server is about to stop"),
        other => tracing::warn!(broker, "{other}"),
    }
}

/// The subject in `Permissions Violation for Publish to "x"`.
fn denied_subject(text: &str) -> Option<&str> {
    let rest = text.trim_matches('\'');
    let violation = rest.get(..22).is_some_and(|start| start.eq_ignore_ascii_case("permissions violation "));
    rest.split('"').nth(1).filter(|_| violation)
}

/// What a server says, without what could disturb a log.
fn shown(text: &str) -> String {
    text.chars().take(300).flat_map(char::escape_debug).collect()
}

/// As whom to log in: as the builder says, otherwise as the address says (`user:password@` or `token@`).
///
/// The client library does not look at the address for it.
fn login(config: &NatsBuilder) -> Login {
    let in_address = || {
        let (before, _) = config.url.split(',').find_map(|url| url.rsplit_once('@'))?;
        let user = before.rsplit_once("://").map_or(before, |(_, user)| user);
        let text = |part: &str| percent::decode(part.trim()).map(std::borrow::Cow::into_owned);
        match user.split_once(':') {
            Some((user, password)) => Some(Login::UserPassword(text(user)?, text(password)?)),
            None => Some(Login::Token(text(user)?)),
        }
    };
    match &config.login {
        Login::None => in_address().unwrap_or(Login::None),
        given => given.clone(),
    }
}

/// Addresses without user and password.
fn redacted(urls: &str) -> String {
    let one = |url: &str| match url.rsplit_once('@') {
        Some((before, host)) => match before.split_once("://") {
            Some((scheme, _)) => format!("{scheme}://{host}"),
            None => host.to_owned(),
        },
        None => url.to_owned(),
    };
    urls.split(',').map(|url| one(url.trim())).collect::<Vec<_>>().join(",")
}

fn refused(broker: &str, error: &async_nats::ConnectError) -> BridgeError {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error).and_then(std::error::Error::source);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    let broker = broker.to_owned();
    // An unknown authority comes as an input error that only its text tells from a cable that was pulled.
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
    fn addresses_are_shown_without_their_passwords() {
        assert_eq!(redacted("nats://127.0.0.1:4222"), "nats://127.0.0.1:4222");
        assert_eq!(redacted("nats://me:p@ss@host:1, me:x@other"), "nats://host:1,other");
        assert_eq!(redacted("tls://token@host"), "tls://host");
    }

    #[test]
    fn the_login_in_an_address_is_used_where_none_is_given() {
        let found = |url: &str| match login(&NatsBuilder::new(url)) {
            Login::None => String::new(),
            Login::UserPassword(user, password) => format!("{user}/{password}"),
            Login::Token(token) => token,
            Login::NKey(_) | Login::Credentials(_) => "another".to_owned(),
        };
        assert_eq!(found("nats://127.0.0.1:4222"), "");
        assert_eq!(found("nats://host, nats://ada:love%40lace@other:1"), "ada/love@lace");
        assert_eq!(found("tls://s3cret@host"), "s3cret");
        let given = NatsBuilder::new("nats://ada:x@host").token("other");
        assert!(matches!(login(&given), Login::Token(token) if token == "other"));
    }

    #[test]
    fn the_subject_of_a_denial_is_found() {
        let text = "Permissions Violation for Publish to \"whizbang.evt.bank.0.Deposited\"";
        assert_eq!(denied_subject(text), Some("whizbang.evt.bank.0.Deposited"));
        assert_eq!(denied_subject("permissions violation for subscription to \"a.>\" using queue \"x\""), Some("a.>"));
        assert_eq!(denied_subject("Stale Connection \"x\""), None);
    }
}
