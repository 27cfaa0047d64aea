//! Which streams and consumers a node needs, and how they are set.
//!
//! Called at attach and after each reconnection. docs/wire.md has the same as a table for people.

use serde_json::json;

use super::config::NatsBuilder;
use super::jetstream::DesiredConfig;
use crate::bridge::NodeCard;
use crate::message::Name;

/// How many messages of one consumer may be with nodes, not acknowledged. More than any node takes at once.
const MAX_ACK_PENDING: u32 = 10_000;

/// The size of a service's stream of refused messages: 32 messages of the largest size, thousands of ordinary ones.
const REFUSED_BYTES: u64 = 16 * 1024 * 1024;

/// The size of the stream of claims: each has a few hundred bytes.
const CLAIMS_BYTES: u64 = 1024 * 1024;

/// Settings of a stream that an operator may change: they decide how much and how long it keeps, never what it means.
const STREAM_ADJUSTABLE: &[&str] = &["max_bytes", "max_age", "num_replicas"];
/// The same for a consumer.
const CONSUMER_ADJUSTABLE: &[&str] = &["ack_wait", "max_ack_pending"];

/// Settings with which a stream would keep, drop or change messages otherwise than agreed.
const STREAM_UNSET: &[&str] = &["sealed", "mirror", "sources", "max_msg_size", "subject_transform", "republish"];
/// Settings with which a consumer would leave messages out, slow down, or vanish.
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

/// What comes in on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamContent {
    /// Commands and replies for a domain this service owns.
    Direct,
    /// Events of a domain this service takes.
    Events,
}

/// One stream this node takes from.
pub(super) struct StreamSource {
    pub(super) content: StreamContent,
    pub(super) domain: Name,
    pub(super) shards: u16,
    pub(super) stream: String,
    /// The stream, if this service makes it; the events of others are theirs to make.
    pub(super) owned: Option<DesiredConfig>,
    pub(super) consumer: DesiredConfig,
}

/// All streams a node takes from, and those it only writes to.
pub(super) fn sources(config: &NatsBuilder, card: &NodeCard) -> Vec<StreamSource> {
    let own = card.owns.iter().map(|(domain, shards)| StreamSource {
        content: StreamContent::Direct,
        domain: domain.clone(),
        shards: *shards,
        stream: config.namespace.direct_stream(domain),
        owned: Some(direct_stream(config, domain)),
        consumer: consumer(config, &config.namespace.direct_stream(domain), &card.service),
    });
    let others = card.subscribes.iter().map(|(domain, shards, _)| StreamSource {
        content: StreamContent::Events,
        domain: domain.clone(),
        shards: *shards,
        stream: config.namespace.event_stream(domain),
        owned: None,
        consumer: consumer(config, &config.namespace.event_stream(domain), &card.service),
    });
    own.chain(others).collect()
}

/// The streams a node writes to and nobody else makes.
pub(super) fn write_only(config: &NatsBuilder, card: &NodeCard) -> Vec<DesiredConfig> {
    let events = card.owns.iter().map(|(domain, _)| event_stream(config, domain));
    events.chain(receives_messages(card).then(|| refused_stream(config, &card.service))).collect()
}

/// Whether messages come to a service that it may have to put aside. A mere client gets none.
pub(super) fn receives_messages(card: &NodeCard) -> bool {
    !card.owns.is_empty() || !card.subscribes.is_empty()
}

fn direct_stream(config: &NatsBuilder, domain: &Name) -> DesiredConfig {
    let subjects = config.namespace.direct_filter(domain);
    // Removed once acknowledged; a full stream refuses, and the sender's outbox waits.
    stream(config, config.namespace.direct_stream(domain), &subjects, "workqueue", "new", 0)
}

fn event_stream(config: &NatsBuilder, domain: &Name) -> DesiredConfig {
    let subjects = config.namespace.event_filter(domain);
    let age = u64::try_from(config.event_age.as_nanos()).unwrap_or(u64::MAX);
    stream(config, config.namespace.event_stream(domain), &subjects, "limits", "old", age)
}

/// The stream of refused messages. It holds what senders believe to be accepted, so it drops nothing: while it is full, the
/// messages stay where they are and the node's health reports it.
fn refused_stream(config: &NatsBuilder, service: &Name) -> DesiredConfig {
    let name = config.namespace.refused_stream(service);
    let mut wanted = stream(config, name, &config.namespace.refused_subject(service), "limits", "new", 0);
    if let Some(settings) = wanted.settings.as_object_mut() {
        settings.insert("max_bytes".to_owned(), json!(REFUSED_BYTES));
    }
    // One that an older version made discards its oldest messages: an operator should change it, and the node can start.
    wanted.adjustable = &["max_bytes", "max_age", "num_replicas", "discard"];
    wanted
}

/// The stream of the claims of all services: the last claim on each domain. It drops none of them: a full one refuses new domains.
pub(super) fn claims_stream(config: &NatsBuilder) -> DesiredConfig {
    let mut wanted =
        stream(config, config.namespace.claims_stream(), &config.namespace.claims_filter(), "limits", "new", 0);
    if let Some(settings) = wanted.settings.as_object_mut() {
        settings.insert("max_bytes".to_owned(), json!(CLAIMS_BYTES));
        settings.insert("max_msgs_per_subject".to_owned(), json!(1));
    }
    wanted
}

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

fn consumer(config: &NatsBuilder, stream: &str, service: &Name) -> DesiredConfig {
    let settings = json!({
        "durable_name": service.as_str(),
        "deliver_policy": "all",
        "replay_policy": "instant",
        "ack_policy": "explicit",
        "ack_wait": u64::try_from(config.ack_wait.as_nanos()).unwrap_or(u64::MAX),
        // For ever: attempts are counted, durably, by the node, and it decides what is a dead letter.
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
