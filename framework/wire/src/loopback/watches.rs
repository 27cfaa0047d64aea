//! The watches of domains at a hub.
//!
//! Called by the bridge: with each published event and announced head, and when a node begins a watch, reconnects or leaves.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use whizbang_core::bridge::Watcher;
use whizbang_core::message::{Name, ShardId};

/// A node at the hub, as its watches see it.
pub(super) trait Attached: Send + Sync {
    /// Returns the number of the node.
    fn number(&self) -> u64;
    /// Returns true if messages reach the node.
    fn is_reached(&self) -> bool;
}

/// The watches of all nodes, by domain.
#[derive(Default)]
pub(super) struct Watches {
    /// Replaced as a whole, so that a publisher holds no lock while it reports.
    domains: RwLock<Arc<BTreeMap<Name, Vec<Entry>>>>,
}

#[derive(Clone)]
struct Entry {
    node: Arc<dyn Attached>,
    watcher: Arc<dyn Watcher>,
}

impl Entry {
    fn is(&self, watcher: &Arc<dyn Watcher>) -> bool {
        Arc::ptr_eq(&self.watcher, watcher)
    }
}

impl Watches {
    fn change(&self, change: impl FnOnce(&mut BTreeMap<Name, Vec<Entry>>)) {
        let mut domains = self.domains.write();
        let mut changed = (**domains).clone();
        change(&mut changed);
        changed.retain(|_, entries| !entries.is_empty());
        let before = std::mem::replace(&mut *domains, Arc::new(changed));
        drop(domains);
        // Dropped without the lock: a watcher is code of another crate.
        drop(before);
    }

    /// Begins a watch of a node.
    pub(super) fn add(&self, domain: &Name, node: Arc<dyn Attached>, watcher: &Arc<dyn Watcher>) {
        let entry = Entry { node, watcher: Arc::clone(watcher) };
        self.change(|domains| domains.entry(domain.clone()).or_default().push(entry));
    }

    /// Ends a watch.
    pub(super) fn end(&self, domain: &Name, watcher: &Arc<dyn Watcher>) {
        self.change(|domains| {
            if let Some(entries) = domains.get_mut(domain) {
                entries.retain(|entry| !entry.is(watcher));
            }
        });
    }

    /// Ends the watches of a node that has left, and reports it to them.
    pub(super) fn end_all(&self, leaver: u64) {
        let gone = self.of(leaver);
        if gone.is_empty() {
            return;
        }
        self.change(|domains| {
            domains.values_mut().for_each(|entries| entries.retain(|entry| entry.node.number() != leaver));
        });
        gone.iter().for_each(|entry| entry.watcher.interrupted());
    }

    fn of(&self, node: u64) -> Vec<Entry> {
        let domains = Arc::clone(&self.domains.read());
        domains.values().flatten().filter(|entry| entry.node.number() == node).cloned().collect()
    }

    /// Notifies the watchers of a node that reports may have been lost.
    pub(super) fn interrupt(&self, node: u64) {
        self.of(node).iter().for_each(|entry| entry.watcher.interrupted());
    }

    /// Reports the growth of a log. Costs the number of watches of the domain. `is_lost` decides about each report.
    pub(super) fn report(&self, shard: &ShardId, position: u64, mut is_lost: impl FnMut() -> bool) {
        let domains = Arc::clone(&self.domains.read());
        for entry in domains.get(&shard.domain).into_iter().flatten() {
            if entry.node.is_reached() && !is_lost() {
                entry.watcher.grown(shard, position);
            }
        }
    }
}
