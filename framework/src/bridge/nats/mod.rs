//! The bridge to a NATS server with JetStream: commands and events through streams, questions by request and reply.
//!
//! Called by the relay and the client; calls the node's door. The only place that knows NATS. docs/wire.md describes
//! subjects, streams and headers for operators and for clients in other languages.
//! The server is a courier: what it loses, the numbers inside the messages show, and the services' logs make good.

mod acknowledgement;
mod actor;
mod claims;
mod config;
mod connection;
mod consumer;
mod consumer_setup;
mod credentials;
pub(crate) mod decode;
mod durability;
mod headers;
mod in_flight;
mod jetstream;
mod json_request;
mod pending_replies;
mod permissions;
mod publisher;
mod pull_consumer;
mod recovery;
mod refused;
mod servers;
mod streams;
mod subscriptions;
mod watchdog;

pub use config::{NatsBuilder, StreamSetup};
pub use permissions::NatsPermissions;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use actix::{Actor, Addr};
use async_nats::Client;
use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::SelectAll;
use parking_lot::RwLock;
use tokio::sync::{Notify, oneshot, watch};

use self::acknowledgement::{PublishFailure, has_no_responder};
use self::actor::{Detach, Loops, NatsActor};
use self::claims::Claims;
use self::connection::{Connection, LinkState, client_name, round_trip};
use self::consumer::{Channel, ChannelSubscriber, ConsumerLoop};
use self::jetstream::JetStream;
use self::publisher::{PublisherLoop, Reply, ReplyFuture, ReplyKind};
use self::pull_consumer::PullConsumer;
use self::subscriptions::{subscribe, subscriptions};
use super::subject::{Address, Namespace};
use super::wire::Packet;
use super::{Bridge, BridgeError, BridgeHealth, Inbound, NodeCard, Notification, Request, Response};
use crate::clock::instant;
use crate::message::{Envelope, Name, ShardId, StoreId};
use crate::telemetry::Issues;

/// How often a server that is waited for is tried.
const CONNECT_RETRY_PAUSE: Duration = Duration::from_millis(50);
/// A connection that is down for longer is reported by [`Bridge::health`]; a server that restarts is back sooner.
const DOWN_THRESHOLD: Duration = Duration::from_secs(5);
/// How long a stream may take to acknowledge a message before it counts as not sent.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// A node's connection to a NATS server.
///
/// ```no_run
/// # async fn example() -> Result<(), whizbang::bridge::BridgeError> {
/// let bridge = whizbang::bridge::nats::NatsBridge::connect("nats://127.0.0.1:4222").await?;
/// # let _ = bridge;
/// # Ok(())
/// # }
/// ```
pub struct NatsBridge {
    config: NatsBuilder,
    durability: String,
    attached: RwLock<AttachState>,
}

enum AttachState {
    New,
    Attaching,
    Attached(Session),
    /// It ends what it has begun.
    Detaching(Session),
    Closed,
}

/// What sending needs.
#[derive(Clone)]
struct Session {
    client: Client,
    publisher: Arc<PublisherLoop>,
    actor: Addr<NatsActor>,
    abandoned: Arc<Notify>,
    /// Set before this node closes the connection itself.
    ending: Arc<AtomicBool>,
    link: watch::Receiver<LinkState>,
    report: Arc<Report>,
    jetstream: JetStream,
    claims: Option<Arc<Claims>>,
}

/// What the loops report about themselves.
#[derive(Debug, Default)]
struct Report {
    issues: Issues,
    refused: AtomicU64,
    recreated_consumers: AtomicU64,
}

impl NatsBridge {
    /// Describes a bridge to the server at `url`, or to the servers of a cluster, with commas between.
    pub fn builder(url: &str) -> NatsBuilder {
        NatsBuilder::new(url)
    }

    /// A bridge to the server at `url`, without password and in the namespace `whizbang`.
    ///
    /// # Errors
    /// As [`NatsBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, BridgeError> {
        Self::builder(url).connect().await
    }

    async fn open(config: NatsBuilder) -> Result<Self, BridgeError> {
        let begun = instant();
        let connection = loop {
            match Connection::open(&config, "whizbang").await {
                Ok(connection) => break connection,
                Err(BridgeError::Unreachable { .. }) if begun.elapsed() < config.wait_for_server => {
                    tokio::time::sleep(CONNECT_RETRY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        };
        let info = connection.client.server_info();
        if durability::parse_version(&info.version) < (2, 9, 0) || !info.jetstream {
            let reason = if info.jetstream {
                format!("nats-server {} is older than 2.9", info.version)
            } else {
                "the server runs without JetStream: start it with `-js`".to_owned()
            };
            return Err(BridgeError::Refused { broker: connection.broker.to_string(), reason });
        }
        if let Some(reason) = durability::payload_limit_issue(&info) {
            return Err(BridgeError::Refused { broker: connection.broker.to_string(), reason });
        }
        let durability = durability::describe(&config, &info);
        // This connection was only a check.
        connection.ending.store(true, Ordering::Relaxed);
        Ok(Self { config, durability, attached: RwLock::new(AttachState::New) })
    }

    /// Creates the streams and consumers of services, and compares those that exist.
    async fn set_up(config: &NatsBuilder, cards: &[NodeCard]) -> Result<(), BridgeError> {
        let connection = Connection::open(config, &format!("{}_setup", config.namespace)).await?;
        let jetstream = JetStream::new(&connection, StreamSetup::Create);
        jetstream.ensure_stream(&streams::claims_stream(config)).await?;
        // All streams first: a service may take the events of one that comes later in the list.
        for card in cards {
            let own = streams::sources(config, card).into_iter().filter_map(|source| source.owned);
            for wanted in streams::write_only(config, card).into_iter().chain(own) {
                jetstream.ensure_stream(&wanted).await?;
            }
        }
        for source in cards.iter().flat_map(|card| streams::sources(config, card)) {
            if jetstream.ensure_source(&source).await?.is_none() {
                let reason = format!("stream `{}` does not exist: the card of its owner is missing", source.stream);
                return Err(BridgeError::Refused { broker: connection.broker.to_string(), reason });
            }
        }
        connection.ending.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn namespace(&self) -> &Namespace {
        &self.config.namespace
    }

    fn session(&self) -> Result<Session, BridgeError> {
        match &*self.attached.read() {
            AttachState::Attached(line) => Ok(line.clone()),
            _ => Err(BridgeError::Closed),
        }
    }

    async fn start(&self, card: NodeCard, door: Arc<dyn Inbound>) -> Result<Session, BridgeError> {
        let config = &self.config;
        let mut connection = Connection::open(config, &client_name(&config.namespace, &card.service)).await?;
        connection.wait_until_up().await;
        let client = connection.client.clone();
        let mut denials = connection.denials.subscribe();
        for warning in durability::warnings(&client.server_info()) {
            tracing::warn!(broker = &*connection.broker, "{warning}");
        }
        let jetstream = JetStream::new(&connection, config.stream_setup);
        let claims_stream = streams::claims_stream(config);
        let claims = Claims::new(jetstream.clone(), config.namespace.clone(), claims_stream, &card).map(Arc::new);
        // Before anything else: the domain of another store must be left as it is.
        if let Some(claims) = &claims {
            claims.check().await?;
        }
        let written = streams::write_only(config, &card);
        for wanted in &written {
            jetstream.ensure_stream(wanted).await?;
        }
        let inbox = client.new_inbox();
        let answers = subscribe(&client, format!("{inbox}.r.*"), None).await?;
        let mut gates = SelectAll::new();
        let mut lanes = Vec::new();
        for (at, source) in streams::sources(config, &card).into_iter().enumerate() {
            let incarnation = jetstream.ensure_source(&source).await?;
            let pulled = format!("{inbox}.p.{at}");
            gates.push(ChannelSubscriber::new(Channel::Stream(at), subscribe(&client, pulled.clone(), None).await?));
            lanes.push(PullConsumer::new(source, pulled.into(), incarnation));
        }
        for (gate, subject, shared) in subscriptions(&config.namespace, &card) {
            // Of all nodes that could answer a question one gets it.
            let group = shared.then(|| "whizbang".to_owned());
            gates.push(ChannelSubscriber::new(gate, subscribe(&client, subject, group).await?));
        }
        let mut watched = Vec::new();
        for subject in claims.iter().flat_map(|claims| claims.subjects()) {
            watched.push(subscribe(&client, subject, None).await?);
        }
        // What is subscribed counts once the server has read it, and what it denies it has said by then.
        round_trip(&client).await;
        round_trip(&client).await;
        if let Ok(subject) = denials.try_recv() {
            let reason = format!("this user may not use `{subject}`");
            return Err(BridgeError::Refused { broker: connection.broker.to_string(), reason });
        }
        if !connection.link.borrow().up {
            return Err(connection.unreachable("the connection was lost while starting"));
        }
        if let Some(claims) = &claims {
            claims.claim_all().await?;
        }
        let outgoing = Arc::new(PublisherLoop::new(
            format!("{inbox}.r"),
            config.namespace.clone(),
            connection.link.clone(),
            Arc::clone(&connection.broker),
        ));
        let (closing, closed) = oneshot::channel();
        let report = Arc::<Report>::default();
        let link = connection.link.clone();
        let renewing: BoxFuture<'static, ()> = match &claims {
            Some(claims) => {
                Arc::clone(claims).run(watched, connection.link.clone(), Arc::clone(&door), Arc::clone(&report)).boxed()
            }
            None => ready(()).boxed(),
        };
        let intake = ConsumerLoop {
            report: Arc::clone(&report),
            client: client.clone(),
            jetstream: jetstream.clone(),
            namespace: config.namespace.clone(),
            service: card.service,
            owns: card.owns,
            inbound: door,
            publisher: Arc::clone(&outgoing),
            link: connection.link,
            ack_wait: config.ack_wait,
            consumers: lanes,
            write_only: Arc::new(written),
            subscribers: gates,
            closing: closed,
        };
        let loops =
            Loops { replies: answers, consumer: intake, denials, claim_renewal: renewing, report: Arc::clone(&report) };
        let abandoned = Arc::<Notify>::default();
        let actor =
            NatsActor::new(client.clone(), Arc::clone(&outgoing), loops, closing, Arc::clone(&abandoned)).start();
        let ending = connection.ending;
        Ok(Session { client, publisher: outgoing, actor, abandoned, ending, link, report, jetstream, claims })
    }
}

impl Session {
    fn publish(&self, packet: Packet, subject: String, awaits: ReplyKind) -> Result<ReplyFuture, BridgeError> {
        self.check_size(&packet)?;
        self.publisher.publish(subject, headers::to_nats(&packet)?, packet.payload, awaits)
    }

    fn check_size(&self, packet: &Packet) -> Result<(), BridgeError> {
        let (bytes, limit) = (packet.size(), self.client.max_payload());
        if bytes > limit { Err(BridgeError::Oversize { bytes, limit }) } else { Ok(()) }
    }

    async fn wait_for_acknowledgement(self, answering: ReplyFuture, domain: String) -> Result<(), BridgeError> {
        match answering.within(ACK_TIMEOUT).await? {
            Some(Reply::Acknowledgement(Ok(())) | Reply::Response(_)) => Ok(()),
            // No stream takes the subject: its owner, who would have made it, was never here.
            Some(Reply::Acknowledgement(Err(PublishFailure::NoStream))) => Err(BridgeError::NoOwner { domain }),
            Some(Reply::Acknowledgement(Err(PublishFailure::Rejected(source)))) => {
                Err(BridgeError::Broker { doing: "publishing to a stream".to_owned(), source })
            }
            // It may be in the stream; who sends it again does so with the same id.
            None => Err(BridgeError::NoResponse { domain, deadline: ACK_TIMEOUT }),
        }
    }
}

/// A message that is nowhere addressed.
fn unaddressable(what: &str) -> BridgeError {
    BridgeError::Malformed { reason: format!("{what}: it cannot be addressed") }
}

impl Bridge for NatsBridge {
    fn attach<'a>(&'a self, card: NodeCard, door: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        async move {
            {
                let mut attached = self.attached.write();
                if !matches!(*attached, AttachState::New) {
                    return Err(BridgeError::Closed);
                }
                *attached = AttachState::Attaching;
            }
            let started = self.start(card, door).await;
            let mut attached = self.attached.write();
            match started {
                Ok(line) => {
                    *attached = AttachState::Attached(line);
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
        let posted = self.session().and_then(|line| {
            let place = Address::for_message(&envelope).ok_or_else(|| unaddressable("no shard to send it to"))?;
            let packet = Packet::from_envelope(&envelope)?;
            let answering = line.publish(packet, self.namespace().subject(&place), ReplyKind::Acknowledgement)?;
            let domain = envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain).to_string();
            Ok((line, answering, domain))
        });
        match posted {
            Ok((line, answering, domain)) => line.wait_for_acknowledgement(answering, domain).boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        let posted = self.session().and_then(|line| {
            Packet::check(&event)?;
            let domain = event.domain.to_string();
            let answering = line.publisher.publish_event(event)?;
            Ok((line, answering, domain))
        });
        match posted {
            Ok((line, answering, domain)) => async move {
                let outgoing = Arc::clone(&line.publisher);
                let published = line.wait_for_acknowledgement(answering, domain).await;
                if matches!(published, Err(BridgeError::NoOwner { .. })) {
                    // The owner is this node: it made the stream when it started, and somebody has deleted it since.
                    outgoing.stream_missing.notify_one();
                }
                published
            }
            .boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn last_published<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<u64>, BridgeError>> {
        async move {
            let jetstream = self.session()?.jetstream;
            let (stream, subject) = (self.namespace().event_stream(&shard.domain), Address::Events(shard.clone()));
            let together = self.namespace().subject(&subject);
            let mut last = None;
            // Events travel alone, under their name, or several in one message.
            for subject in [format!("{together}.*"), together] {
                if let Some(stored) = jetstream.last_message(&stream, &subject).await? {
                    last = last.max(decode::last_position(shard, &stored.headers, stored.payload));
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

    fn request(&self, to: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        async move {
            let packet = self.session().and_then(|line| Ok((line, Packet::from_request(&to)?)));
            let subject = self.namespace().subject(&Address::for_request(&to));
            let answering = packet.and_then(|(line, packet)| line.publish(packet, subject, ReplyKind::Response))?;
            let domain = to.domain().to_string();
            match answering.within(deadline).await? {
                None => Err(BridgeError::NoResponse { domain, deadline }),
                Some(Reply::Acknowledgement(_)) => Err(BridgeError::NoResponse { domain, deadline }),
                Some(Reply::Response(answer)) if has_no_responder(&answer) => Err(BridgeError::NoOwner { domain }),
                Some(Reply::Response(answer)) => {
                    let headers: Vec<_> = headers::from_nats(answer.headers.as_ref()).collect();
                    let read = Packet::read_response(&headers, answer.payload.clone());
                    read.map_err(|error| error.in_response(to.domain()))
                }
            }
        }
        .boxed()
    }

    fn notify(&self, tidings: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        let told = self.session().and_then(|line| {
            let packet = Packet::from_notification(&tidings);
            let subject = self.namespace().subject(&Address::for_notification(&tidings));
            line.publisher.publish_unawaited(subject, headers::to_nats(&packet)?, packet.payload)
        });
        ready(told).boxed()
    }

    fn durability(&self) -> String {
        self.durability.clone()
    }

    fn health(&self) -> BridgeHealth {
        let line = match &*self.attached.read() {
            AttachState::Attached(line) | AttachState::Detaching(line) => line.clone(),
            AttachState::New | AttachState::Attaching | AttachState::Closed => return BridgeHealth::default(),
        };
        let mut issues = line.report.issues.texts();
        let link = *line.link.borrow();
        let down = instant().saturating_duration_since(link.since);
        if !link.up && down >= DOWN_THRESHOLD {
            issues.push(format!(
                "no connection to {} for {} s: nothing reaches or leaves other services; it is tried again without end, check \
                 the server and the network",
                line.publisher.broker(),
                down.as_secs()
            ));
        }
        BridgeHealth {
            issues,
            refused: line.report.refused.load(Ordering::Relaxed),
            recreated_consumers: line.report.recreated_consumers.load(Ordering::Relaxed),
        }
    }

    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        async move {
            let line = self.session()?;
            *self.attached.write() = AttachState::Detaching(line.clone());
            line.ending.store(true, Ordering::Relaxed);
            // An actor that is gone has nothing left to end.
            let _ = line.actor.send(Detach).await;
            if let Some(claims) = &line.claims
                && line.link.borrow().up
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
        if let AttachState::Attached(line) | AttachState::Detaching(line) = &*attached {
            line.ending.store(true, Ordering::Relaxed);
            line.publisher.abandon();
            line.abandoned.notify_one();
            *attached = AttachState::Closed;
        }
    }
}
