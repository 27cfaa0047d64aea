//! Reports about the logs of a domain that a stream has not handled yet: one number for each shard.
//!
//! Filled by the node or the bridge, on any thread; emptied by the stream, which it wakes.

use std::collections::BTreeMap;
use std::task::Context;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use whizbang_core::bridge::Watcher;
use whizbang_core::message::{Shard, ShardId};

/// The reports that a stream has not handled yet.
#[derive(Debug)]
pub(super) struct Heads {
    shards: u16,
    waiting: Mutex<Reports>,
    waker: AtomicWaker,
}

/// Some reports. Those of one shard are merged, so their number is that of the shards.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// The reported positions.
    pub(super) grown: BTreeMap<Shard, u64>,
    /// A reported shard that the domain does not have here.
    pub(super) unknown: Option<Shard>,
    /// Reports may have been lost.
    pub(super) is_interrupted: bool,
    /// No further reports follow.
    pub(super) has_ended: bool,
}

impl Heads {
    pub(super) fn new(shards: u16) -> Self {
        Self { shards, waiting: Mutex::default(), waker: AtomicWaker::new() }
    }

    /// Takes the reports. Later ones wake the task of `context`.
    pub(super) fn take(&self, context: &Context<'_>) -> Reports {
        self.waker.register(context.waker());
        std::mem::take(&mut *self.waiting.lock())
    }
}

impl Watcher for Heads {
    fn grown(&self, shard: &ShardId, position: u64) {
        let mut waiting = self.waiting.lock();
        if shard.shard < self.shards {
            let known = waiting.grown.entry(shard.shard).or_default();
            *known = position.max(*known);
        } else {
            waiting.unknown = Some(shard.shard);
        }
        drop(waiting);
        self.waker.wake();
    }

    fn interrupted(&self) {
        self.waiting.lock().is_interrupted = true;
        self.waker.wake();
    }

    fn ended(&self) {
        let mut waiting = self.waiting.lock();
        (waiting.is_interrupted, waiting.has_ended) = (true, true);
        drop(waiting);
        self.waker.wake();
    }
}
