//! The streams and consumers that a node needs, and their settings.
//!
//! Called at attach and after each reconnection. docs/wire.md lists the same settings for operators.
//!
//! A setting that is not listed is left as the server has it. Settings that an operator may change are compared and logged;
//! all others must be equal, or the node does not start.

use serde_json::json;

use super::config::NatsBuilder;
use super::jetstream::DesiredConfig;
use super::report::STREAM_ISSUE;
use super::shard_consumer::ShardConsumer;
use whizbang_core::bridge::NodeCard;
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::Epoch;

/// The maximum number of unacknowledged messages of one consumer, more than a node handles at once.
const MAX_ACK_PENDING: u32 = 10_000;

/// The size in bytes of a service's stream of refused messages: 32 messages of the maximum size, thousands of ordinary ones.
const REFUSED_BYTES: u64 = 16 * 1024 * 1024;

/// The size in bytes of the stream of claims, which have a few hundred bytes each.
const CLAIMS_BYTES: u64 = 1024 * 1024;

/// The size in bytes of the largest claim. A larger message would leave no space for the claims of other services.
const MAX_CLAIM_BYTES: u64 = 4096;

/// The stream settings that an operator may change: they limit size and retention and do not change the meaning.
const STREAM_ADJUSTABLE: &[&str] = &["max_bytes", "max_age", "num_replicas"];
/// The consumer settings that an operator may change.
const CONSUMER_ADJUSTABLE: &[&str] = &["ack_wait", "max_ack_pending"];

/// The stream settings that would keep, drop or change messages in an unexpected way.
const STREAM_UNSET: &[&str] = &[
    "max_msg_size",
    "sealed",
    "mirror",
    "sources",
    "subject_transform",
    "republish",
    // With these, a header of any message removes or changes others, or stores one in the name of another sender.
    "allow_rollup_hdrs",
    "allow_msg_schedules",
    "allow_msg_counter",
    "allow_msg_ttl",
];

/// The same for the stream of claims, which limits the size of a message.
const CLAIMS_UNSET: &[&str] = match STREAM_UNSET {
    [_size, others @ ..] => others,
    [] => &[],
};
/// The consumer settings that would skip messages, slow them down, or remove the consumer.
const CONSUMER_UNSET: &[&str] = &[
    "filter_subject",
    "filter_subjects",
    "headers_only",
    "inactive_threshold",
    "backoff",
    "rate_limit_bps",
    "deliver_subject",
    "max_batch",
    "max_expires",
    "max_bytes",
    "priority_groups",
    "pause_until",
];

/// The same for the consumer of a shard, which has a filter.
const SHARD_CONSUMER_UNSET: &[&str] = match CONSUMER_UNSET {
    [_filter, others @ ..] => others,
    [] => &[],
};

/// The messages in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamContent {
    /// Commands and replies for a domain this service owns.
    Direct,
    /// Events of a domain this service subscribes to.
    Events,
}

/// The way in which the messages of a stream reach a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DeliveryMode {
    /// Through a consumer that the nodes of a service share.
    Service,
    /// Through the consumer of one shard, for its owner.
    Shard(ShardConsumer),
    /// Through a plain subscription, in addition to the stream: each node receives all messages. Losses are filled from the logs.
    Live,
}

/// A stream that this node reads.
pub(super) struct StreamSource {
    /// The way in which its messages reach this node.
    pub(super) delivery: DeliveryMode,
    /// The kind of its messages. Others are refused.
    pub(super) content: StreamContent,
    /// The domain in its subjects: the destination of commands, or the source of events.
    pub(super) domain: Name,
    /// The number of shards of the domain. A message for a shard above it is refused.
    pub(super) shards: u16,
    /// The name of the stream at the server.
    pub(super) stream: String,
    /// The stream, if this service creates it. The streams of other services' events are created by their owners.
    pub(super) owned: Option<DesiredConfig>,
    /// The consumer by which this node reads. Not created for a live subscription.
    pub(super) consumer: DesiredConfig,
}

impl StreamSource {
    /// Returns the key of issues about the source: the shards of a domain have one stream.
    pub(super) fn issue(&self) -> String {
        let name = match &self.delivery {
            DeliveryMode::Shard(shard) => shard.prefix(),
            DeliveryMode::Service | DeliveryMode::Live => &self.stream,
        };
        format!("{STREAM_ISSUE}{name}")
    }
}

/// Returns the streams that a node reads from its start. The consumers of leased shards follow when the node owns them.
pub(super) fn sources(config: &NatsBuilder, card: &NodeCard) -> Vec<StreamSource> {
    let exclusive = card.owns.iter().filter(|_| !card.has_leased_shards);
    let own = exclusive.map(|(domain, shards)| StreamSource {
        delivery: DeliveryMode::Service,
        content: StreamContent::Direct,
        domain: domain.clone(),
        shards: *shards,
        stream: config.namespace.direct_stream(domain),
        owned: Some(direct_stream(config, domain)),
        consumer: consumer(config, &config.namespace.direct_stream(domain), &card.service),
    });
    let others = card.subscribes.iter().map(|(domain, shards, _)| StreamSource {
        // Each shard of the service has watermarks of its own, so each node needs all events.
        delivery: if card.has_leased_shards { DeliveryMode::Live } else { DeliveryMode::Service },
        content: StreamContent::Events,
        domain: domain.clone(),
        shards: *shards,
        stream: config.namespace.event_stream(domain),
        owned: None,
        consumer: consumer(config, &config.namespace.event_stream(domain), &card.service),
    });
    own.chain(others).collect()
}

/// Returns the source of a leased shard for its owner. `None` if the service does not own the domain.
pub(super) fn shard_source(
    config: &NatsBuilder,
    card: &NodeCard,
    shard: &ShardId,
    epoch: Epoch,
) -> Option<StreamSource> {
    let (domain, shards) =
        card.owns.iter().find(|(domain, shards)| *domain == shard.domain && shard.shard < *shards)?;
    let name = ShardConsumer::new(&card.service, shard, epoch);
    let stream = config.namespace.direct_stream(domain);
    let mut consumer = consumer(config, &stream, &card.service);
    consumer.label = format!("consumer `{}` of stream `{stream}`", name.name());
    consumer.path = format!("{stream}.{}", name.name());
    consumer.must_be_unset = SHARD_CONSUMER_UNSET;
    if let Some(settings) = consumer.settings.as_object_mut() {
        settings.insert("durable_name".to_owned(), json!(name.name()));
        settings.insert("filter_subject".to_owned(), json!(config.namespace.shard_filter(shard)));
    }
    Some(StreamSource {
        delivery: DeliveryMode::Shard(name),
        content: StreamContent::Direct,
        domain: domain.clone(),
        shards: *shards,
        stream,
        owned: Some(direct_stream(config, domain)),
        consumer,
    })
}

/// Returns the streams that a node creates and does not read, or reads only as the owner of a shard.
pub(super) fn write_only(config: &NatsBuilder, card: &NodeCard) -> Vec<DesiredConfig> {
    let events = card.owns.iter().map(|(domain, _)| event_stream(config, domain));
    let leased = card.owns.iter().filter(|_| card.has_leased_shards).map(|(domain, _)| direct_stream(config, domain));
    events.chain(leased).chain(receives_messages(card).then(|| refused_stream(config, &card.service))).collect()
}

/// Returns true if a service receives messages from streams, which it may have to refuse. A client-only service receives none.
pub(super) fn receives_messages(card: &NodeCard) -> bool {
    !card.owns.is_empty() || !card.subscribes.is_empty()
}

/// Returns the stream of commands and replies for a domain.
fn direct_stream(config: &NatsBuilder, domain: &Name) -> DesiredConfig {
    let subjects = config.namespace.direct_filter(domain);
    // Messages are removed once acknowledged. A full stream rejects new ones, and the sender's outbox waits.
    stream(config, config.namespace.direct_stream(domain), &subjects, "workqueue", "new", 0)
}

/// Returns the stream of the events of a domain. It drops the oldest ones when it is full or they are too old.
fn event_stream(config: &NatsBuilder, domain: &Name) -> DesiredConfig {
    let subjects = config.namespace.event_filter(domain);
    let age = u64::try_from(config.event_age.as_nanos()).unwrap_or(u64::MAX);
    stream(config, config.namespace.event_stream(domain), &subjects, "limits", "old", age)
}

/// Returns the stream of refused messages. Their senders consider them accepted, so it drops none: while it is full, the messages
/// stay in their own streams and the node's health reports it.
fn refused_stream(config: &NatsBuilder, service: &Name) -> DesiredConfig {
    let name = config.namespace.refused_stream(service);
    let mut wanted = stream(config, name, &config.namespace.refused_subject(service), "limits", "new", 0);
    if let Some(settings) = wanted.settings.as_object_mut() {
        settings.insert("max_bytes".to_owned(), json!(REFUSED_BYTES));
    }
    // A stream that an older version created discards its oldest messages: the operator should change it, but the node can start.
    wanted.adjustable = &["max_bytes", "max_age", "num_replicas", "discard"];
    wanted
}

/// Returns the stream of the claims of all services, with the last claim on each domain. It drops none: a full one rejects new
/// domains.
pub(super) fn claims_stream(config: &NatsBuilder) -> DesiredConfig {
    let mut wanted =
        stream(config, config.namespace.claims_stream(), &config.namespace.claims_filter(), "limits", "new", 0);
    if let Some(settings) = wanted.settings.as_object_mut() {
        settings.insert("max_bytes".to_owned(), json!(CLAIMS_BYTES));
        settings.insert("max_msgs_per_subject".to_owned(), json!(1));
        settings.insert("max_msg_size".to_owned(), json!(MAX_CLAIM_BYTES));
    }
    // A stream that an older version created has no limit for a message: the operator should set it, but the node can start.
    wanted.adjustable = &["max_bytes", "max_age", "num_replicas", "max_msg_size"];
    wanted.must_be_unset = CLAIMS_UNSET;
    wanted
}

/// Returns the settings that all streams have. `max_age` is in nanoseconds, 0 for no limit.
fn stream(
    config: &NatsBuilder,
    name: String,
    subjects: &str,
    retention: &str,
    discard: &str,
    max_age: u64,
) -> DesiredConfig {
    let settings = json!({
        "name": name,
        "subjects": [subjects],
        "retention": retention,
        "discard": discard,
        "storage": "file",
        "max_bytes": config.stream_bytes,
        "max_age": max_age,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_consumers": -1,
        "num_replicas": config.replicas,
        "no_ack": false,
    });
    DesiredConfig {
        label: format!("stream `{name}`"),
        path: name,
        settings,
        must_be_unset: STREAM_UNSET,
        adjustable: STREAM_ADJUSTABLE,
    }
}

/// Returns the settings of a durable pull consumer, named after its service.
fn consumer(config: &NatsBuilder, stream: &str, service: &Name) -> DesiredConfig {
    let settings = json!({
        "durable_name": service.as_str(),
        "deliver_policy": "all",
        "replay_policy": "instant",
        "ack_policy": "explicit",
        "ack_wait": u64::try_from(config.ack_wait.as_nanos()).unwrap_or(u64::MAX),
        // Unlimited: the node counts attempts durably and decides when a message becomes a dead letter.
        "max_deliver": -1,
        "max_ack_pending": MAX_ACK_PENDING,
    });
    DesiredConfig {
        label: format!("consumer `{service}` of stream `{stream}`"),
        path: format!("{stream}.{service}"),
        settings,
        must_be_unset: CONSUMER_UNSET,
        adjustable: CONSUMER_ADJUSTABLE,
    }
}
