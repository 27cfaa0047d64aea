//! The watched domains of a connection and their watchers.
//!
//! Kept by the session; filled and read by the [loops](super::watch_loop) of watches.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use tokio::sync::oneshot;

use whizbang_core::bridge::{Watch, Watcher};
use whizbang_core::message::Name;

/// The watched domains of a connection.
///
/// An entry holds no watch alive: the watchers do. Entries of ended watches are removed when the next watch of another domain
/// begins, so there are at most as many as there were watched domains at once.
#[derive(Default)]
pub(super) struct Watches {
    /// Locked while a subscription begins, so that streams of one domain share it.
    pub(super) domains: tokio::sync::Mutex<BTreeMap<Name, Weak<DomainWatch>>>,
}

/// The watch of one domain, which ends with the last watcher.
///
/// All streams of a connection share it: a hundred readers of a domain cost the server and the network one subscription.
pub(super) struct DomainWatch {
    /// The watchers, which the loop reads as well.
    watchers: Arc<Watchers>,
    /// Ends the loop when it is dropped.
    end: oneshot::Sender<()>,
}

/// The watchers of a domain. Replaced as a whole, so that reports hold no lock.
#[derive(Default)]
pub(super) struct Watchers(RwLock<Arc<Vec<Arc<dyn Watcher>>>>);

impl Watchers {
    /// Changes the list. Costs the number of watchers; it happens when a stream begins or ends, not for each report.
    fn change(&self, change: impl FnOnce(&mut Vec<Arc<dyn Watcher>>)) {
        let mut watchers = self.0.write();
        let mut changed = (**watchers).clone();
        change(&mut changed);
        *watchers = Arc::new(changed);
    }

    /// Reports to each watcher. Costs their number: one reference count for the list, and one call for each.
    pub(super) fn each(&self, report: impl Fn(&dyn Watcher)) {
        let watchers = Arc::clone(&self.0.read());
        watchers.iter().for_each(|watcher| report(&**watcher));
    }
}

impl DomainWatch {
    /// Creates a watch without watchers. The receiver resolves when the last watcher has left.
    pub(super) fn new() -> (Arc<Self>, EndOfReports, oneshot::Receiver<()>) {
        let (end, ended) = oneshot::channel();
        let watch = Arc::new(Self { watchers: Arc::default(), end });
        let watchers = EndOfReports(Arc::clone(&watch.watchers));
        (watch, watchers, ended)
    }

    /// Returns whether its loop runs. It has ended if it failed, or with the bridge; a new watch of the domain then has a new one.
    pub(super) fn is_running(&self) -> bool {
        !self.end.is_closed()
    }

    /// Adds a watcher, until the returned watch is dropped. The returned watch keeps this one alive.
    pub(super) fn add(self: Arc<Self>, watcher: Arc<dyn Watcher>) -> Watch {
        self.watchers.change(|watchers| watchers.push(Arc::clone(&watcher)));
        Watch::new(move || self.watchers.change(|watchers| watchers.retain(|known| !Arc::ptr_eq(known, &watcher))))
    }
}

/// Notifies the watchers that no further reports follow when the loop ends, also because the bridge does.
///
/// A value and not the last statement of the loop, because the loop is dropped when the bridge is abandoned.
pub(super) struct EndOfReports(pub(super) Arc<Watchers>);

impl Drop for EndOfReports {
    fn drop(&mut self) {
        self.0.each(|watcher| watcher.ended());
    }
}
