//! Everything that readers see of a store, as text that can be compared.

use std::fmt::Write as _;
use std::sync::Arc;

use futures_util::FutureExt as _;
use whizbang::clock::Timestamp;
use whizbang::message::{Name, ShardId};
use whizbang::store::{CommitListener, ShardReader, Store, StoreError, Ticket};
use whizbang::testing::store::SHARDS;

/// A commit listener of a store that is only read.
struct IgnoringListener;

impl CommitListener for IgnoringListener {
    fn committed(&self, _: Ticket) {}
    fn failed(&self, _: StoreError) {}
}

/// Returns the output of a future that is ready at once.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a stepped store is ready at once")
}

pub(crate) fn shard(domain: &str, number: u16) -> ShardId {
    ShardId::new(Name::new(domain).unwrap(), number)
}

/// The shards of every workload.
pub(crate) fn shards() -> [ShardId; 3] {
    [shard("bank", 0), shard("bank", 1), shard("shop", 2)]
}

/// Returns the contents of all shards of the store. Earlier owners of the shards are fenced.
pub(crate) fn contents(store: &dyn Store) -> Result<String, StoreError> {
    let mut text = String::new();
    for shard in shards() {
        let reader = now(store.open(&shard, SHARDS, Arc::new(IgnoringListener)))?.reader;
        writeln!(text, "{shard}: {}", of_shard(&*reader)?).unwrap();
    }
    Ok(text)
}

fn of_shard(reader: &dyn ShardReader) -> Result<String, StoreError> {
    let mut text = String::new();
    let position = reader.position();
    writeln!(text, "position {position}").unwrap();
    let events = now(reader.events(0, 100_000))?;
    assert!(events.iter().map(|event| event.position).eq(1..=position), "positions are not contiguous: {events:?}");
    lines(&mut text, &events);
    let mut streams = now(reader.streams())?;
    streams.sort();
    for (actor, key) in streams {
        let turns = now(reader.history(&actor, &key))?;
        let loaded = now(reader.load(&actor, &key))?;
        let from = match &loaded.snapshot {
            Some(snapshot) => {
                let said = String::from_utf8_lossy(&snapshot.bytes).into_owned();
                assert_eq!(said, snapshot_text(&key, snapshot.turn), "a snapshot of another turn");
                snapshot.turn as usize
            }
            None => 0,
        };
        assert_eq!(loaded.turns, turns[from..], "a stream loaded from its snapshot differs");
        writeln!(text, "{actor}/{key}").unwrap();
        lines(&mut text, &turns);
    }
    // In any order: a lost turn may have been the first to send to one of them, and a checkpoint knew it.
    let mut heads = reader.outbox_heads();
    heads.sort();
    for (to, through, last) in heads {
        writeln!(text, "to {to}: {through} of {last}").unwrap();
        lines(&mut text, &now(reader.outbox(&to, through, 100_000))?);
    }
    let mut watermarks: Vec<_> = reader.watermarks().into_iter().map(|mark| format!("{mark:?}")).collect();
    watermarks.sort();
    lines(&mut text, &watermarks);
    lines(&mut text, &reader.timers_due(Timestamp::from_millis(u64::MAX), 100_000));
    lines(&mut text, &now(reader.dead_letters(None, 100_000))?);
    Ok(text)
}

fn lines(text: &mut String, all: &[impl std::fmt::Debug]) {
    for one in all {
        writeln!(text, "  {one:?}").unwrap();
    }
}

/// Returns the snapshot that a workload saves for a stream at a turn.
pub(crate) fn snapshot_text(key: &str, turn: u64) -> String {
    format!("{key} up to {turn}: {}", "x".repeat(turn as usize * 40 % 700))
}
