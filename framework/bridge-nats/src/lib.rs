//! The bridge to a NATS server with JetStream: commands and events through streams, requests by request/reply.
//!
//! Called by the relay and the client; delivers to the node's [`Inbound`]. No other module knows NATS. docs/wire.md describes the
//! subjects, streams and headers for operators and for clients in other languages.
//! The server is only a transport: the sequence numbers in the messages reveal its losses, and the services' logs repair them.

// docs.rs marks the items that need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod acknowledgement;
mod actor;
mod attach;
mod channel;
mod claims;
mod config;
mod connection;
mod consumer;
mod consumer_setup;
mod credentials;
pub mod decode;
mod delivery;
mod denied_inboxes;
mod durability;
mod event_packs;
mod excerpt;
mod headers;
mod holder;
mod in_flight;
mod inboxes;
mod jetstream;
mod json_request;
mod lag;
mod log_limits;
mod owned_shards;
mod ownership;
mod pending_replies;
mod permissions;
mod publisher;
mod pull_consumer;
mod recovery;
mod refused;
mod refused_backlog;
mod report;
mod requests;
mod restart;
mod servers;
mod session;
mod shard_consumer;
mod shard_setup;
mod stored_message;
mod streams;
mod subscriptions;
mod sum;
mod waiting;
mod watch_loop;
mod watchdog;
mod watches;

pub use config::{NatsBuilder, StreamSetup};
pub use permissions::NatsPermissions;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, join_all, ready};
use parking_lot::RwLock;

use self::acknowledgement::has_no_responder;
use self::actor::Detach;
use self::connection::Connection;
use self::consumer_setup::SourceState;
use self::jetstream::JetStream;
use self::publisher::{Reply, ReplyKind};
use self::report::STREAM_ISSUE;
use self::session::Session;
use self::streams::DeliveryMode;
use whizbang_core::bridge::{
    Bridge, BridgeError, BridgeHealth, Inbound, LastPublished, NodeCard, Notification, Request, Response, Watch,
    Watcher,
};
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, Name, ShardId, StoreId};
use whizbang_core::store::Epoch;
use whizbang_wire::Packet;
use whizbang_wire::subject::{Address, Namespace};

/// The pause between attempts to reach a server at start.
const CONNECT_RETRY_PAUSE: Duration = Duration::from_millis(50);
/// A connection that is down for longer is reported by [`Bridge::health`]. A restarting server is back sooner.
const DOWN_THRESHOLD: Duration = Duration::from_secs(5);

/// The connection of a node to a NATS server.
///
/// ```no_run
/// # async fn example() -> Result<(), whizbang::bridge::BridgeError> {
/// let bridge = whizbang::bridge::nats::NatsBridge::connect("nats://127.0.0.1:4222").await?;
/// # let _ = bridge;
/// # Ok(())
/// # }
/// ```
pub struct NatsBridge {
    /// The settings, used again for the connection of the attached bridge.
    config: NatsBuilder,
    /// The guarantee of the server, as a line for the log.
    durability: String,
    /// The phase of the bridge. Locked for short times, never across an await.
    attached: RwLock<AttachState>,
}

/// The life of a bridge. A failed attach returns to `New`; everything else goes forward.
enum AttachState {
    /// Not attached.
    New,
    /// An attach is under way; a second one is refused.
    Attaching,
    /// The node sends and receives.
    Attached(Arc<Session>),
    /// Detached: finishing the messages in flight.
    Detaching(Arc<Session>),
    /// Detached, or abandoned.
    Closed,
}

impl NatsBridge {
    /// Returns a builder of a bridge to the server at `url`, or to the servers of a cluster, separated by commas.
    pub fn builder(url: &str) -> NatsBuilder {
        NatsBuilder::new(url)
    }

    /// Returns a bridge to the server at `url`, without a login and in the namespace `whizbang`.
    ///
    /// # Errors
    /// As for [`NatsBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, BridgeError> {
        Self::builder(url).connect().await
    }

    /// Connects once to check the server, and closes that connection. The one of the session is opened by `attach`.
    ///
    /// # Errors
    /// [`BridgeError::Unreachable`] after [`NatsBuilder::wait_for_server`], [`BridgeError::Refused`] for a server without
    /// JetStream or with too small messages.
    async fn open(config: NatsBuilder) -> Result<Self, BridgeError> {
        let started = instant();
        let connection = loop {
            match Connection::open(&config, "whizbang").await {
                Ok(connection) => break connection,
                Err(BridgeError::Unreachable { .. }) if started.elapsed() < config.wait_for_server => {
                    tokio::time::sleep(CONNECT_RETRY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        };
        let info = connection.client.server_info();
        if let Some(reason) = durability::refusal(&info) {
            return Err(BridgeError::Refused { broker: connection.broker.to_string(), reason });
        }
        let durability = durability::describe(&config, &info);
        Ok(Self { config, durability, attached: RwLock::new(AttachState::New) })
    }

    /// Creates the streams and consumers of services and compares existing ones.
    async fn set_up(config: &NatsBuilder, cards: &[NodeCard]) -> Result<(), BridgeError> {
        let connection = Connection::open(config, &format!("{}_setup", config.namespace)).await?;
        let jetstream = JetStream::new(&connection, StreamSetup::Create);
        jetstream.ensure_stream(&streams::claims_stream(config)).await?;
        // Create all streams first: a service may subscribe to events of a service later in the list.
        for card in cards {
            let own = streams::sources(config, card).into_iter().filter_map(|source| source.owned);
            for wanted in streams::write_only(config, card).into_iter().chain(own) {
                jetstream.ensure_stream(&wanted).await?;
            }
        }
        let has_consumer = |source: &streams::StreamSource| source.delivery != DeliveryMode::Live;
        for source in cards.iter().flat_map(|card| streams::sources(config, card)).filter(has_consumer) {
            if jetstream.ensure_source(&source).await? == SourceState::Absent {
                let reason = format!("stream `{}` does not exist: add the card of its owner", source.stream);
                return Err(BridgeError::Refused { broker: connection.broker.to_string(), reason });
            }
        }
        Ok(())
    }

    /// Returns the prefix of all subjects and streams.
    fn namespace(&self) -> &Namespace {
        &self.config.namespace
    }

    /// Returns the session.
    ///
    /// # Errors
    /// [`BridgeError::Closed`] before the attach and after the detach.
    fn session(&self) -> Result<Arc<Session>, BridgeError> {
        match &*self.attached.read() {
            AttachState::Attached(session) => Ok(Arc::clone(session)),
            _ => Err(BridgeError::Closed),
        }
    }
}

/// Returns the error for a message without an address.
fn unaddressable(reason: &str) -> BridgeError {
    BridgeError::Malformed { reason: format!("message without an address: {reason}") }
}

impl Bridge for NatsBridge {
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        async move {
            {
                let mut attached = self.attached.write();
                if !matches!(*attached, AttachState::New) {
                    return Err(BridgeError::Closed);
                }
                *attached = AttachState::Attaching;
            }
            let started = self.start(card, inbound).await;
            let mut attached = self.attached.write();
            match started {
                Ok(session) => {
                    *attached = AttachState::Attached(Arc::new(session));
                    Ok(())
                }
                Err(error) => {
                    *attached = AttachState::New;
                    Err(error)
                }
            }
        }
        .boxed()
    }

    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        let published = self.session().and_then(|session| {
            let address = Address::for_message(&envelope).ok_or_else(|| unaddressable("no destination shard"))?;
            let packet = Packet::from_envelope(&envelope)?;
            let reply = session.publish(packet, self.namespace().subject(&address), ReplyKind::Acknowledgement)?;
            Ok((reply, envelope.to.map_or(envelope.domain, |to| to.domain)))
        });
        match published {
            Ok((reply, domain)) => session::wait_for_acknowledgement(reply, domain).boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.publish_all(vec![event])
    }

    fn publish_all(&self, events: Vec<Envelope>) -> BoxFuture<'_, Result<(), BridgeError>> {
        let Some(domain) = events.first().map(|event| event.domain.clone()) else { return ready(Ok(())).boxed() };
        let published = self.session().and_then(|session| {
            let messages = event_packs::encode(&events, session.client.max_payload())?;
            let publish = |(address, packet): (Address, Packet)| {
                session.publish(packet, self.namespace().subject(&address), ReplyKind::Acknowledgement)
            };
            let replies = messages.into_iter().map(publish).collect::<Result<Vec<_>, _>>()?;
            Ok((session, replies))
        });
        match published {
            Ok((session, replies)) => async move {
                let acknowledged =
                    replies.into_iter().map(|reply| session::wait_for_acknowledgement(reply, domain.clone()));
                let acknowledged = join_all(acknowledged).await.into_iter().collect();
                if matches!(acknowledged, Err(BridgeError::NoOwner { .. })) {
                    // The owner is this node: it created the stream at start, so the stream has been deleted since.
                    session.publisher.stream_missing.notify_one();
                }
                acknowledged
            }
            .boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn own<'a>(&'a self, shard: &'a ShardId, epoch: Epoch) -> BoxFuture<'a, Result<(), BridgeError>> {
        async move { self.receive_shard(self.session()?, shard, epoch).await }.boxed()
    }

    fn disown<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, ()> {
        async move {
            if let Ok(session) = self.session() {
                session.release_shard(shard).await;
            }
        }
        .boxed()
    }

    fn last_published<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<LastPublished>, BridgeError>> {
        async move {
            let session = self.session()?;
            let jetstream = &session.jetstream;
            let (stream, subject) = (self.namespace().event_stream(&shard.domain), Address::Events(shard.clone()));
            let pack_subject = self.namespace().subject(&subject);
            let mut last: Option<LastPublished> = None;
            // Events are published alone, under their name, or packed into one message.
            for subject in [format!("{pack_subject}.*"), pack_subject] {
                if let Some(stored) = jetstream.last_message(&stream, &subject).await? {
                    let found = decode::last_event(shard, &stored.headers, stored.payload);
                    last = last.into_iter().chain(found).max_by_key(|last| last.position);
                }
            }
            Ok(last)
        }
        .boxed()
    }

    fn keeps_events(&self) -> bool {
        true
    }

    fn owner<'a>(&'a self, domain: &'a Name) -> BoxFuture<'a, Result<Option<StoreId>, BridgeError>> {
        async move { claims::owner(&self.session()?.jetstream, self.namespace(), domain).await }.boxed()
    }

    fn request(&self, request: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        async move {
            let packet = self.session().and_then(|session| Ok((session, Packet::from_request(&request)?)));
            let subject = self.namespace().subject(&Address::for_request(&request));
            let reply = packet.and_then(|(session, packet)| session.publish(packet, subject, ReplyKind::Response))?;
            let domain = request.domain().to_string();
            match reply.within(deadline).await? {
                None => Err(BridgeError::NoResponse { domain, deadline }),
                Some(Reply::Acknowledgement(_)) => Err(BridgeError::NoResponse { domain, deadline }),
                Some(Reply::Response(message)) if has_no_responder(&message) => Err(BridgeError::NoOwner { domain }),
                Some(Reply::Response(message)) => {
                    let headers: Vec<_> = headers::from_nats(message.headers.as_ref()).collect();
                    let response = Packet::read_response(&headers, message.payload.clone());
                    response.map_err(|error| error.in_response(request.domain()))
                }
            }
        }
        .boxed()
    }

    fn watch<'a>(
        &'a self,
        domain: &'a Name,
        watcher: Arc<dyn Watcher>,
    ) -> BoxFuture<'a, Result<Option<Watch>, BridgeError>> {
        self.begin_watch(domain, watcher).map(|watch| watch.map(Some)).boxed()
    }

    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        let published = self.session().and_then(|session| {
            let packet = Packet::from_notification(&notification);
            let subject = self.namespace().subject(&Address::for_notification(&notification));
            session.publisher.publish_unawaited(subject, headers::to_nats(&packet)?, packet.payload)
        });
        ready(published).boxed()
    }

    fn durability(&self) -> String {
        self.durability.clone()
    }

    fn health(&self) -> BridgeHealth {
        let session = match &*self.attached.read() {
            AttachState::Attached(session) | AttachState::Detaching(session) => Arc::clone(session),
            AttachState::New | AttachState::Attaching | AttachState::Closed => return BridgeHealth::default(),
        };
        let report = &session.report;
        let mut issues = report.issues.texts();
        let link = *session.link.borrow();
        let down = instant().saturating_duration_since(link.since);
        if !link.up && down >= DOWN_THRESHOLD {
            issues.push(format!(
                "no connection to {} for {} s, no messages to or from other services: check the server and the network; retrying",
                session.publisher.broker(),
                down.as_secs()
            ));
        }
        let mut health = BridgeHealth::new(issues);
        let (now, drops) = (instant(), *session.drops.borrow());
        health.notes = report.notes.texts();
        health.notes.extend(drops.note(now).into_iter().chain(report.denied_inboxes.notes(now)));
        health.notes.extend(report.recreation_note(now));
        health.lag = report.lag.get();
        health.notes.extend(lag::note(health.lag));
        health.dropped_messages = drops.count;
        health.refused = report.refused.load(Ordering::Relaxed);
        health.discarded = report.discarded.load(Ordering::Relaxed);
        health.refused_requests = report.refused_requests.load(Ordering::Relaxed);
        health.denied_responses = report.denied_inboxes.dropped();
        health.disconnected = if link.up { Duration::ZERO } else { down };
        health.blocked_streams = report.issues.count(STREAM_ISSUE) as u64;
        health.recreated_consumers = report.recreated_consumers.load(Ordering::Relaxed);
        health
    }

    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        async move {
            let session = self.session()?;
            *self.attached.write() = AttachState::Detaching(Arc::clone(&session));
            session.ending.begin();
            // The actor may have stopped already; then nothing is left to finish.
            let _ = session.actor.send(Detach).await;
            if let Some(claims) = &session.claims
                && session.link.borrow().up
            {
                claims.release().await;
            }
            *self.attached.write() = AttachState::Closed;
            Ok(())
        }
        .boxed()
    }

    fn abandon(&self) {
        let mut attached = self.attached.write();
        if let AttachState::Attached(session) | AttachState::Detaching(session) = &*attached {
            session.ending.begin();
            session.publisher.abandon();
            session.abandoned.notify_one();
            *attached = AttachState::Closed;
        }
    }
}
