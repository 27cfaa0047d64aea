//! The start of an attached bridge: connection, streams, consumers, subscriptions, claims and loops, in this order.
//!
//! Called by [`Bridge::attach`](whizbang_core::bridge::Bridge::attach). The order matters: the claims are checked before anything
//! changes at the server, so that the domain of another store stays untouched, and they are written last, when the node can
//! receive.
//!
//! Subscriptions are made before consumers are asked for messages, and two round trips confirm them. So no response and no
//! denial of the start is missed.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::Actor;
use bytes::Bytes;
use futures_util::stream::SelectAll;
use tokio::sync::{Notify, oneshot};

use super::NatsBridge;
use super::actor::{Loops, NatsActor};
use super::channel::{Channel, ChannelSubscriber};
use super::claims::{ClaimWatch, Claims};
use super::connection::{Connection, client_name, round_trip};
use super::consumer::ConsumerLoop;
use super::consumer_setup::SourceState;
use super::durability;
use super::inboxes::Inboxes;
use super::jetstream::JetStream;
use super::ownership::ownership;
use super::publisher::PublisherLoop;
use super::pull_consumer::PullConsumer;
use super::report::Report;
use super::session::Session;
use super::streams::{self, DeliveryMode};
use super::subscriptions::{subscribe, subscriptions};
use whizbang_core::bridge::{BridgeError, Inbound, NodeCard};

impl NatsBridge {
    /// Opens a connection and starts the loops of the bridge on it. Returns after the server has accepted the streams, consumers,
    /// subscriptions and claims of the node.
    ///
    /// # Errors
    /// [`BridgeError::Mismatch`] and [`BridgeError::Refused`] for a server that is configured otherwise or denies a subject,
    /// [`BridgeError::Unreachable`] for a lost connection. The node has received nothing, and the caller may call it again.
    pub(super) async fn start(&self, card: NodeCard, inbound: Arc<dyn Inbound>) -> Result<Session, BridgeError> {
        let config = &self.config;
        let mut connection = Connection::open(config, &client_name(&config.namespace, &card.service)).await?;
        connection.wait_until_up().await;
        let client = connection.client.clone();
        let mut denials = connection.denials.subscribe();
        let info = client.server_info();
        // It may be another server than that of the check, or have another configuration.
        if let Some(reason) = durability::refusal(&info) {
            return Err(BridgeError::Refused { broker: connection.broker.to_string(), reason });
        }
        for warning in durability::warnings(&info) {
            tracing::warn!(broker = &*connection.broker, "{warning}");
        }
        let jetstream = JetStream::new(&connection, config.stream_setup);
        let claims_stream = streams::claims_stream(config);
        let claims =
            Claims::new(jetstream.clone(), config.namespace.clone(), claims_stream, &card, &connection.log_limits)
                .map(Arc::new);
        // Check the claims before changing anything: a domain of another store must stay untouched.
        if let Some(claims) = &claims {
            claims.check(&client).await?;
        }
        let written = streams::write_only(config, &card);
        for wanted in &written {
            jetstream.ensure_stream(wanted).await?;
        }
        let inbox = client.new_inbox();
        let inboxes = Inboxes::new(&inbox, &config.namespace, &card.service);
        let mut replies = SelectAll::new();
        for subject in inboxes.subscriptions() {
            replies.push(subscribe(&client, subject, None).await?);
        }
        if card.has_leased_shards {
            // A version of the service without leases has left it behind, and a work queue has one consumer per message.
            for (domain, _) in &card.owns {
                let stream = config.namespace.direct_stream(domain);
                jetstream.delete_consumer_at(&format!("{stream}.{}", card.service)).await?;
            }
        }
        let report = Arc::new(Report {
            denied_inboxes: Arc::clone(&connection.denied_inboxes),
            log_limits: Arc::clone(&connection.log_limits),
            ..Report::default()
        });
        let mut subscribers = SelectAll::new();
        let mut consumers = BTreeMap::new();
        for (index, source) in streams::sources(config, &card).into_iter().enumerate() {
            if source.delivery == DeliveryMode::Live {
                let events = subscribe(&client, config.namespace.event_filter(&source.domain), None).await?;
                subscribers.push(ChannelSubscriber::new(Channel::Live(index), events));
                consumers.insert(index, PullConsumer::live(source));
                continue;
            }
            let incarnation = match jetstream.ensure_source(&source).await? {
                SourceState::Open(incarnation) => Some(incarnation),
                SourceState::Absent | SourceState::Superseded(_) => None,
            };
            let pulled = format!("{inbox}.p.{index}");
            subscribers
                .push(ChannelSubscriber::new(Channel::Stream(index), subscribe(&client, pulled.clone(), None).await?));
            let may_recreate = jetstream.may_recreate(&source);
            let mut consumer = PullConsumer::new(source, pulled.into(), incarnation, report.lag.add(0));
            // The check of the source has repaired it, or this node may not repair it and inspects it to report it.
            consumer.is_suspect = !may_recreate;
            consumers.insert(index, consumer);
        }
        let (ownership, shards) = ownership(&card, format!("{inbox}.p"), consumers.len());
        for (channel, subject, shared) in subscriptions(&config.namespace, &card) {
            // A queue group: one of the nodes that can answer a request receives it.
            let group = shared.then(|| "whizbang".to_owned());
            subscribers.push(ChannelSubscriber::new(channel, subscribe(&client, subject, group).await?));
        }
        if !card.owns.is_empty() || !card.answers.is_empty() {
            // A denied response is otherwise found out by its requester only. Nothing subscribes to this subject.
            let written = client.publish(inboxes.start_check(), Bytes::new()).await;
            written.map_err(|error| connection.unreachable(error.to_string()))?;
        }
        let mut watched = Vec::new();
        for subject in claims.iter().flat_map(|claims| claims.subjects()) {
            watched.push(subscribe(&client, subject, None).await?);
        }
        // A subscription counts once the server has read it. Two round trips also bring back its denials.
        round_trip(&client).await;
        round_trip(&client).await;
        if let Ok(subject) = denials.try_recv() {
            let reason = format!("this user is not permitted to use `{subject}`");
            return Err(BridgeError::Refused { broker: connection.broker.to_string(), reason });
        }
        if !connection.link.borrow().up {
            return Err(connection.unreachable("the connection was lost while starting"));
        }
        if let Some(claims) = &claims {
            for domain in claims.claim_all().await? {
                // The epochs of the replaced store mean nothing in this one.
                let stream = config.namespace.direct_stream(&domain);
                jetstream.delete_shard_consumers(&stream, &card.service, &domain).await?;
            }
        }
        let publisher = Arc::new(PublisherLoop::new(inboxes, connection.link.clone(), Arc::clone(&connection.broker)));
        let (closing, closed) = oneshot::channel();
        let link = connection.link.clone();
        let watch = ClaimWatch::new(watched, connection.link.clone(), Arc::clone(&inbound), Arc::clone(&report));
        let renewed = claims.clone().map(|claims| (claims, watch));
        let consumer = ConsumerLoop {
            report: Arc::clone(&report),
            client: client.clone(),
            jetstream: jetstream.clone(),
            namespace: config.namespace.clone(),
            service: card.service,
            owns: card.owns,
            inbound,
            publisher: Arc::clone(&publisher),
            link: connection.link,
            drops: connection.drops.clone(),
            ack_wait: config.ack_wait,
            consumers,
            shards,
            write_only: Arc::new(written),
            subscribers,
            closing: closed,
            is_closing: false,
        };
        let loops = Loops { replies, consumer, denials, claims: renewed };
        let (abandoned, published) = (Arc::<Notify>::default(), Arc::clone(&publisher));
        let reported = Arc::clone(&report);
        let actor = NatsActor::new(client.clone(), published, loops, closing, Arc::clone(&abandoned), reported).start();
        let ending = Arc::new(connection.ending);
        let ownership = Arc::new(ownership);
        Ok(Session {
            client,
            publisher,
            actor,
            abandoned,
            ending,
            link,
            denials: connection.denials,
            drops: connection.drops,
            report,
            jetstream,
            claims,
            ownership,
            watches: Arc::default(),
        })
    }
}
