//! Open shards: which shards of a node's own domains are open on this node, and which are elsewhere.
//!
//! Written by the node's threads when they open or close a shard. Read by clients and by everything that routes:
//! a message to an open shard stays on this node, all others travel over the bridge.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use whizbang_core::message::{Name, ShardId, shard_of};

/// The open shards of the domains that a node's service owns.
#[derive(Debug, Default)]
pub struct OpenShards {
    domains: BTreeMap<Name, Box<[AtomicBool]>>,
    /// Several nodes share the shards. Otherwise every shard of the domains is open here.
    is_shared: bool,
    changed: Notify,
}

impl OpenShards {
    /// Creates the table of a node's domains, by their number of shards.
    pub(crate) fn new(domains: &BTreeMap<Name, u16>, is_shared: bool) -> Self {
        let closed = |shards: &u16| (0..*shards).map(|_| AtomicBool::new(false)).collect();
        let domains = domains.iter().map(|(domain, shards)| (domain.clone(), closed(shards))).collect();
        Self { domains, is_shared, changed: Notify::new() }
    }

    /// Returns whether the service's nodes share the shards.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Returns whether messages for a shard are handled on this node.
    pub(crate) fn is_open(&self, shard: &ShardId) -> bool {
        self.has(&shard.domain, shard.shard)
    }

    /// Like [`is_open`](Self::is_open), for the shard of a key.
    pub(crate) fn is_open_for(&self, domain: &str, shards: u16, key: &str) -> bool {
        !self.is_shared || self.has(domain, shard_of(key, shards))
    }

    fn has(&self, domain: &str, shard: u16) -> bool {
        let Some(open) = self.domains.get(domain) else { return false };
        !self.is_shared || open.get(usize::from(shard)).is_some_and(|open| open.load(Ordering::Acquire))
    }

    /// Records that a shard was opened or closed. Returns whether that is news.
    pub(crate) fn set(&self, shard: &ShardId, is_open: bool) -> bool {
        let open = self.domains.get(&shard.domain).and_then(|open| open.get(usize::from(shard.shard)));
        let is_news = open.is_some_and(|open| open.swap(is_open, Ordering::AcqRel) != is_open);
        if is_news {
            self.changed.notify_waiters();
        }
        is_news
    }

    /// Waits until a shard was opened or closed, at most for `wait`.
    pub(crate) async fn wait_for_change(&self, wait: Duration) {
        let _ = tokio::time::timeout(wait, self.changed.notified()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_shards_are_closed_until_opened() {
        let name = Name::from_static("bank").unwrap();
        let domains = BTreeMap::from([(name.clone(), 2)]);
        let [zero, one, two] = [0, 1, 2].map(|number| ShardId::new(name.clone(), number));
        let shared = OpenShards::new(&domains, true);
        assert!(!shared.is_open(&zero) && shared.set(&zero, true) && !shared.set(&zero, true));
        assert!(shared.is_open(&zero) && !shared.is_open(&one) && !shared.is_open(&two) && !shared.set(&two, true));
        assert!(shared.set(&zero, false) && !shared.is_open(&zero));
        let exclusive = OpenShards::new(&domains, false);
        assert!(exclusive.is_open(&zero) && exclusive.is_open_for("bank", 2, "ada"));
        assert!(!exclusive.is_open(&ShardId::new(Name::from_static("shop").unwrap(), 0)));
    }
}
