//! A store on a disk in memory that works only when it is stepped.

use std::sync::Arc;

use futures_util::FutureExt as _;

use super::memory_disk::MemoryDisk;
use crate::{EmbeddedConfig, EmbeddedStore};
use whizbang_conformance::store::{Owner, TurnBuilder};
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{Appended, Store};

/// Returns the output of a future that is ready at once.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a stepped store is ready at once")
}

/// Returns a configuration with segments of 4 KiB and no checkpoints by themselves.
pub(crate) fn small() -> EmbeddedConfig {
    EmbeddedConfig::default().segment_bytes(4096).checkpoint_bytes(1 << 40)
}

/// Opens the store.
pub(crate) fn open(memory: &MemoryDisk) -> Arc<EmbeddedStore> {
    open_with(memory, &small())
}

/// Opens the store with this configuration.
pub(crate) fn open_with(memory: &MemoryDisk, config: &EmbeddedConfig) -> Arc<EmbeddedStore> {
    Arc::new(EmbeddedStore::open_on(memory.disk(), config, Some(1)).unwrap())
}

/// Returns the disk as it is after the end of the process, and leaves the store open.
pub(crate) fn kill(memory: &MemoryDisk) -> MemoryDisk {
    memory.copy()
}

/// Returns a shard of the bank.
pub(crate) fn bank(number: u16) -> ShardId {
    ShardId::new(Name::new("bank").unwrap(), number)
}

/// Takes a shard of the bank.
pub(crate) fn own(store: &Arc<EmbeddedStore>, number: u16) -> Owner {
    now(Owner::take(&(Arc::clone(store) as Arc<dyn Store>), &bank(number)))
}

/// Returns a turn of one stream with an event of this length. Its message comes from outside and has the number of the turn.
pub(crate) fn turn(key: &str, number: u64, length: usize) -> TurnBuilder {
    TurnBuilder::new("Account", key, number)
        .at(number, number - 1)
        .event("Happened", vec![b'x'; length])
        .outside(number)
}

/// Appends a turn without writing it.
pub(crate) fn append(owner: &mut Owner, key: &str, number: u64, length: usize) -> Appended {
    owner.append(&turn(key, number, length)).unwrap()
}

/// Appends turns of a stream without writing them.
pub(crate) fn append_all(owner: &mut Owner, key: &str, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        append(owner, key, number, 1);
    }
}

/// Appends turns of a stream, each in a batch of its own.
pub(crate) fn commit(store: &EmbeddedStore, owner: &mut Owner, key: &str, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        append(owner, key, number, 100);
        store.step();
    }
}

/// Returns the number of turns of a stream.
pub(crate) fn turns(owner: &Owner, key: &str) -> usize {
    now(owner.reader.history(&Name::new("Account").unwrap(), key)).unwrap().len()
}
