//! The core NATS subjects that a node subscribes to, besides its streams.
//!
//! Called at attach.

use std::sync::Arc;

use async_nats::{Client, Subscriber};

use super::channel::Channel;
use whizbang_core::bridge::{BridgeError, NodeCard};
use whizbang_core::message::ShardId;
use whizbang_wire::subject::{Address, Namespace};

/// Returns the channel and the subject of each subscription, and true if only one of several nodes receives each message.
pub(super) fn subscriptions(namespace: &Namespace, card: &NodeCard) -> Vec<(Channel, String, bool)> {
    let mut subscriptions = Vec::new();
    for (domain, _) in card.owns.iter().filter(|_| card.has_leased_shards) {
        // Every node receives it, and the owner of the key's shard responds. The other requests follow with each shard.
        let any = Address::CommandRequest { domain: domain.clone(), shard: None };
        subscriptions.push((Channel::Requests, namespace.subject(&any), false));
    }
    for (domain, _) in card.owns.iter().filter(|_| !card.has_leased_shards) {
        subscriptions.push((Channel::Requests, namespace.request_filter(domain), true));
        subscriptions.push((Channel::Notifications, namespace.committed_filter(domain), false));
    }
    for (domain, _, _) in &card.subscribes {
        subscriptions.push((Channel::Notifications, namespace.head_filter(domain), false));
    }
    for (domain, query) in &card.answers {
        subscriptions.push((Channel::Requests, namespace.query_subject(domain, query), true));
    }
    subscriptions
}

/// Returns the channel and the subject of each subscription for a leased shard. They are not shared: a paused earlier owner must
/// not receive requests in place of the present one.
pub(super) fn shard_subscriptions(namespace: &Namespace, shard: &ShardId) -> Vec<(Channel, String)> {
    let requests = namespace.shard_request_filters(shard).map(|subject| (Channel::Requests, subject));
    let committed = (Channel::Notifications, namespace.shard_committed_filter(shard));
    requests.into_iter().chain([committed]).collect()
}

/// Subscribes to a subject, in a queue group if there is one.
///
/// # Errors
/// [`BridgeError::Unreachable`] if the client has ended. A denied subject is not an error here: the denial arrives later.
pub(super) async fn subscribe(
    client: &Client,
    subject: String,
    group: Option<String>,
) -> Result<Subscriber, BridgeError> {
    let doing = format!("subscribe to `{subject}`");
    let subscribed = match group {
        Some(group) => client.queue_subscribe(subject, group).await,
        None => client.subscribe(subject).await,
    };
    subscribed.map_err(|error| BridgeError::Broker { doing, source: Arc::new(error) })
}
