//! Subscribers against logs: each event of a subscription is applied once, in order, and is in the log.

use std::collections::BTreeMap;
use std::fmt;

use whizbang::message::ShardId;
use whizbang::store::StoredEvent;

use super::sequence::compare;
use super::{Found, ShardLog, Stage, ViolationKind};

/// An event as a subscriber has applied it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The shard it came from.
    pub shard: ShardId,
    /// Its position in the shard's log.
    pub position: u64,
    /// The key of its stream.
    pub key: String,
    /// Its version in that stream.
    pub version: u64,
}

impl Applied {
    /// Returns the record of a correctly applied event of the log of `shard`.
    pub fn new(shard: &ShardId, event: &StoredEvent) -> Self {
        Self { shard: shard.clone(), position: event.position, key: event.key.clone(), version: event.stream_version }
    }
}

/// Returns true if a subscriber handles an event, by domain and name.
type Takes = dyn Fn(&str, &str) -> bool + Send;

/// A subscriber, its subscription and the events it has applied.
pub(super) struct Subscriber {
    name: String,
    takes: Box<Takes>,
    pub(super) applied: Vec<Applied>,
}

impl Subscriber {
    pub(super) fn new(
        name: String,
        takes: impl Fn(&str, &str) -> bool + Send + 'static,
        applied: impl IntoIterator<Item = Applied>,
    ) -> Self {
        Self { name, takes: Box::new(takes), applied: applied.into_iter().collect() }
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber").field("name", &self.name).field("applied", &self.applied.len()).finish()
    }
}

pub(super) fn check(subscriber: &Subscriber, logs: &[ShardLog], stage: Stage, found: &mut Found) {
    let mut seen = BTreeMap::<&ShardId, Vec<&Applied>>::new();
    for applied in &subscriber.applied {
        seen.entry(&applied.shard).or_default().push(applied);
    }
    for log in logs {
        let name = format!("{} on {}", subscriber.name, log.shard);
        let takes = |event: &&StoredEvent| (subscriber.takes)(&log.shard.domain, &event.name);
        let expected: Vec<u64> = log.events.iter().filter(takes).map(|event| event.position).collect();
        let applied = seen.remove(&log.shard).unwrap_or_default();
        let positions: Vec<u64> = applied.iter().map(|applied| applied.position).collect();
        compare(&name, &expected, &positions, stage == Stage::Idle, found);
        let by_position: BTreeMap<u64, &StoredEvent> = log.events.iter().map(|event| (event.position, event)).collect();
        for applied in applied {
            let Some(event) = by_position.get(&applied.position) else { continue };
            if Applied::new(&log.shard, event) != *applied {
                found.add(
                    ViolationKind::Phantom,
                    format!("{name}: {} differs from the event in the log", applied.position),
                );
            }
        }
    }
    for shard in seen.keys() {
        found.add(
            ViolationKind::Phantom,
            format!("{} has applied events of {shard}, which has no log", subscriber.name),
        );
    }
}
