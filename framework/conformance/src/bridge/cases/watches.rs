//! Watches of domains: reports for readers that are not on the card of their node.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::sample::{event, shard};
use crate::bridge::node::{ARRIVAL_TIMEOUT, TestNode, named, service};
use crate::bridge::{Fixture, SHARDS};
use whizbang_core::bridge::{Notification, Watch, Watcher};
use whizbang_core::message::ShardId;

/// The reports that a watcher has received.
#[derive(Debug, Default)]
struct Reports {
    /// The reported shards and positions, in the order of their arrival.
    grown: Mutex<Vec<(ShardId, u64)>>,
    /// The number of reports that something may be missing.
    interruptions: Mutex<usize>,
    /// Notified of each report.
    changed: Notify,
}

impl Watcher for Reports {
    fn grown(&self, shard: &ShardId, position: u64) {
        self.grown.lock().push((shard.clone(), position));
        self.changed.notify_one();
    }

    fn interrupted(&self) {
        *self.interruptions.lock() += 1;
        self.changed.notify_one();
    }
}

impl Reports {
    /// Returns true if the log of a shard was reported to reach a position.
    fn reaches(&self, of: &ShardId, position: u64) -> bool {
        self.grown.lock().iter().any(|(shard, reported)| shard == of && *reported >= position)
    }

    /// Repeats `action`, whose messages may be lost, until `holds`.
    async fn until<F: Future>(&self, what: &str, mut action: impl FnMut() -> F, holds: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !holds(self) {
                action().await;
                let _ = tokio::time::timeout(Duration::from_millis(50), self.changed.notified()).await;
            }
        };
        if tokio::time::timeout(ARRIVAL_TIMEOUT, waiting).await.is_err() {
            panic!("{what}: not within {ARRIVAL_TIMEOUT:?}; received {self:?}");
        }
    }
}

/// Begins a watch through a node's bridge.
async fn watch(node: &TestNode, domain: &'static str) -> (Arc<Reports>, Watch) {
    let reports = Arc::<Reports>::default();
    let watcher = Arc::clone(&reports) as Arc<dyn Watcher>;
    let watch = node.bridge.watch(&named(domain), watcher).await.unwrap();
    (reports, watch.expect("the bridge reports"))
}

/// Events and heads of a watched domain are reported to each watch, those of other domains to none. A card does not matter.
///
/// A stream of events is opened while a node runs, so its domain cannot be on the card. Its own node may record the events.
pub async fn watch_reports_events_and_heads(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let mail = TestNode::start(fixture, service("mail").owning(named("mail"), SHARDS)).await;
    let reader = TestNode::start(fixture, service("reader")).await;
    let (first, of_first) = watch(&reader, "bank").await;
    let (second, of_second) = watch(&reader, "bank").await;
    let (own, of_own) = watch(&bank, "bank").await;
    for number in 0..SHARDS {
        for position in 1..=20 {
            bank.bridge.publish(event(&shard("bank", number), position)).await.unwrap();
            mail.bridge.publish(event(&shard("mail", number), position + 100)).await.unwrap();
        }
    }
    for reports in [&first, &second, &own] {
        let again = || bank.bridge.publish(event(&shard("bank", 0), 20));
        let all = |reports: &Reports| (0..SHARDS).all(|number| reports.reaches(&shard("bank", number), 20));
        reports.until("the events of all shards", again, all).await;
        let head = || bank.bridge.notify(Notification::Head { shard: shard("bank", 1), position: 70 });
        reports.until("the head", head, |reports| reports.reaches(&shard("bank", 1), 70)).await;
        let foreign = |reports: &Reports| reports.grown.lock().iter().any(|(shard, _)| *shard.domain == *"mail");
        assert!(!foreign(reports), "{reports:?}");
    }
    reader.inspect(|received| assert!(received.events.is_empty() && received.notifications.is_empty()));
    drop((of_first, of_second, of_own));
    for node in [bank, mail, reader] {
        node.stop().await;
    }
}

/// A watch that was dropped reports nothing and releases its watcher. Another watch of the domain continues.
///
/// Streams begin and end as often as HTTP requests do: what one leaves behind would add up.
pub async fn dropped_watch_releases_its_watcher(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let reader = TestNode::start(fixture, service("reader")).await;
    let (dropped, of_dropped) = watch(&reader, "bank").await;
    let (kept, of_kept) = watch(&reader, "bank").await;
    drop(of_dropped);
    let mut position = 0;
    let publish = || {
        position += 1;
        bank.bridge.publish(event(&shard("bank", 2), position))
    };
    kept.until("an event", publish, |reports| !reports.grown.lock().is_empty()).await;
    assert!(dropped.grown.lock().is_empty(), "{dropped:?}");
    assert_eq!(Arc::strong_count(&dropped), 1, "the bridge keeps it");
    drop(of_kept);
    // A domain can be watched again after its last watch.
    let (again, of_again) = watch(&reader, "bank").await;
    let publish = || {
        position += 1;
        bank.bridge.publish(event(&shard("bank", 3), position))
    };
    again.until("an event", publish, |reports| !reports.grown.lock().is_empty()).await;
    // The reports end with the bridge.
    reader.stop().await;
    again.until("the end", async || (), |reports| *reports.interruptions.lock() > 0).await;
    drop(of_again);
    bank.stop().await;
}

/// A reconnection is reported, and later events are.
///
/// Reports of the time without a connection are lost, so the readers must look for events themselves once.
pub async fn watch_survives_a_reconnection(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let reader = TestNode::start(fixture, service("reader")).await;
    let (reports, of_reports) = watch(&reader, "bank").await;
    fixture.interrupt().await;
    reports.until("the interruption", async || (), |reports| *reports.interruptions.lock() > 0).await;
    let mut position = 0;
    let publish = || {
        position += 1;
        bank.bridge.publish(event(&shard("bank", 1), position))
    };
    reports.until("an event", publish, |reports| !reports.grown.lock().is_empty()).await;
    drop(of_reports);
    reader.stop().await;
    bank.stop().await;
}
