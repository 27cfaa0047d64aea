//! Watches of the node's own domains: streams of events that clients of the node read.
//!
//! Filled by the client transport. Called by the relay after commits, and when the node ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use whizbang_core::bridge::{Watch, Watcher};
use whizbang_core::message::{Name, ShardId};

type Watchers = BTreeMap<Name, Vec<Arc<dyn Watcher>>>;

/// The watches of the node's own domains.
#[derive(Default)]
pub(in crate::node) struct LocalWatches {
    /// False in most nodes, whose commits then announce no events.
    is_used: Arc<AtomicBool>,
    /// Replaced as a whole, so that a commit holds no lock while it reports.
    domains: RwLock<Arc<Watchers>>,
    /// The node has ended.
    ended: AtomicBool,
}

impl LocalWatches {
    /// Begins a watch of a domain.
    pub(in crate::node) fn add(self: &Arc<Self>, domain: &Name, watcher: &Arc<dyn Watcher>) -> Watch {
        self.change(|domains| domains.entry(domain.clone()).or_default().push(Arc::clone(watcher)));
        let (me, domain, watcher) = (Arc::clone(self), domain.clone(), Arc::clone(watcher));
        Watch::new(move || {
            me.change(|domains| {
                if let Some(watchers) = domains.get_mut(&domain) {
                    watchers.retain(|known| !Arc::ptr_eq(known, &watcher));
                }
            });
        })
    }

    fn change(&self, change: impl FnOnce(&mut Watchers)) {
        let mut domains = self.domains.write();
        let mut changed = (**domains).clone();
        change(&mut changed);
        changed.retain(|_, watchers| !watchers.is_empty());
        self.is_used.store(!changed.is_empty(), Ordering::SeqCst);
        *domains = Arc::new(changed);
    }

    /// Returns the flag that is true while there are watches. A turn that was appended before may be committed without a report:
    /// readers look for it a second after they have begun.
    pub(in crate::node) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_used)
    }

    /// Reports the growth of a log. Costs the number of watches of its domain.
    pub(in crate::node) fn report(&self, shard: &ShardId, position: u64) {
        if !self.is_used.load(Ordering::SeqCst) {
            return;
        }
        let domains = Arc::clone(&self.domains.read());
        for watcher in domains.get(&shard.domain).into_iter().flatten() {
            watcher.grown(shard, position);
        }
    }

    /// Notifies all watchers that the node has ended.
    pub(in crate::node) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        let domains = Arc::clone(&self.domains.read());
        domains.values().flatten().for_each(|watcher| watcher.interrupted());
    }

    /// Returns whether the node has ended.
    pub(in crate::node) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}
