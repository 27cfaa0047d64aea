//! The cost of activating an actor from the store: from all its events, and from a recent snapshot.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Instant;

use whizbang::derive::block_on;
use whizbang::message::{Name, ShardId};
use whizbang::prelude::*;
use whizbang::store::Store;
use whizbang::store::embedded::EmbeddedStore;

use crate::report::{REPETITIONS, median, report};

const EVENTS: usize = 1000;
const KEYS: usize = 40;

/// The turn of the latest snapshot of a key with snapshots.
const SNAPSHOT: usize = 990;

#[derive(Domain)]
struct Diary;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Diary, reply = u64)]
struct Note {
    #[key]
    diary: String,
    text: [u8; 24],
}

/// A command that records nothing, so that the reply waits for little more than the activation.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Diary, reply = u64)]
struct Count {
    #[key]
    diary: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Diary)]
struct Noted {
    text: [u8; 24],
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Diary, handles(Note, Count), applies(Noted))]
struct Plain {
    notes: u64,
}

impl Handle<Note> for Plain {
    fn handle(&self, note: Note, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Noted { text: note.text });
        Ok(self.notes + 1)
    }
}

impl Handle<Count> for Plain {
    fn handle(&self, _: Count, _: &mut Effects<Self>) -> Result<u64, Rejection> {
        Ok(self.notes)
    }
}

impl Apply<Noted> for Plain {
    fn apply(&mut self, _: &Noted) {
        self.notes += 1;
    }
}

#[derive(Domain)]
struct Album;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Album, reply = u64)]
struct Paste {
    #[key]
    album: String,
    text: [u8; 24],
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Album, reply = u64)]
struct Leaf {
    #[key]
    album: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Album)]
struct Pasted {
    text: [u8; 24],
}

#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(domain = Album, handles(Paste, Leaf), applies(Pasted), snapshot(every = 110))]
struct Kept {
    leaves: u64,
}

impl Handle<Paste> for Kept {
    fn handle(&self, paste: Paste, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Pasted { text: paste.text });
        Ok(self.leaves + 1)
    }
}

impl Handle<Leaf> for Kept {
    fn handle(&self, _: Leaf, _: &mut Effects<Self>) -> Result<u64, Rejection> {
        Ok(self.leaves)
    }
}

impl Apply<Pasted> for Kept {
    fn apply(&mut self, _: &Pasted) {
        self.leaves += 1;
    }
}

async fn open(folder: &Path) -> Node {
    let store = EmbeddedStore::open(folder.join("store")).expect("it opens");
    Node::builder("diary", store).aggregate::<Plain>().aggregate::<Kept>().threads(0).start().await.expect("it starts")
}

/// Writes keys with 1,000 events each, round robin, so that the events of one key are spread over the log.
async fn fill<C: Command>(folder: &Path, command: fn(usize) -> C) {
    let node = open(folder).await;
    let tasks = (0..KEYS).map(|key| {
        let client = node.client();
        tokio::task::spawn_local(async move {
            for _ in 0..EVENTS {
                client.send(command(key)).await.expect("it is handled");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("it ends");
    }
    node.stop().await.expect("it stops");
}

/// Sends a command to all keys at once, so that they share flushes. Returns microseconds per key.
async fn asked<C: Command<Reply = u64>>(node: &Node, command: fn(usize) -> C) -> f64 {
    let begun = Instant::now();
    let tasks = (0..KEYS).map(|key| {
        let client = node.client();
        tokio::task::spawn_local(async move { client.send(command(key)).await.expect("it is handled") })
    });
    for task in tasks.collect::<Vec<_>>() {
        assert_eq!(task.await.expect("it ends") as usize, EVENTS);
    }
    begun.elapsed().as_secs_f64() * 1e6 / KEYS as f64
}

/// Reads as many records of the same length from the first log file as one key has, one by one.
fn raw(folder: &Path, bytes: usize, records: usize) -> f64 {
    let file = std::fs::File::open(folder.join("store/log-0000000001")).expect("a log");
    let length = file.metadata().expect("it has a length").len();
    let mut record = vec![0; bytes];
    let begun = Instant::now();
    let mut sum = 0u64;
    for nth in 0..records as u64 {
        let offset = nth * (bytes * KEYS) as u64 % (length - bytes as u64);
        file.read_exact_at(&mut record, offset).expect("it is read");
        sum = sum.wrapping_add(record.iter().map(|byte| u64::from(*byte)).sum::<u64>());
    }
    std::hint::black_box(sum);
    begun.elapsed().as_secs_f64() * 1e6
}

/// The number of keys with a snapshot.
async fn snapshots(folder: &Path, domain: &str, shards: u16) -> usize {
    let store = EmbeddedStore::open(folder.join("store")).expect("it opens");
    let mut found = 0;
    for number in 0..shards {
        let shard = ShardId::new(Name::new(domain).expect("a name"), number);
        let Some(reader) = store.read(&shard).await.expect("it is read") else { continue };
        for (actor, key) in reader.streams().await.expect("they are read") {
            let state = reader.load(&actor, &key).await.expect("it is loaded");
            found += usize::from(state.snapshot.is_some_and(|snapshot| snapshot.turn as usize == SNAPSHOT));
        }
    }
    found
}

/// Measures in alternation: activations of all keys, and the raw reads of a key whose latest snapshot is of turn `snapshot`.
async fn measure<C: Command, Q: Command<Reply = u64>>(
    write: fn(usize) -> C,
    ask: fn(usize) -> Q,
    snapshot: usize,
) -> Vec<(f64, f64)> {
    let folder = tempfile::tempdir().expect("a folder");
    fill(folder.path(), write).await;
    let keys = snapshots(folder.path(), Q::Domain::NAME, Q::Domain::SHARDS).await;
    assert_eq!(keys, if snapshot > 0 { KEYS } else { 0 });
    let bytes = super::bytes_each(&folder.path().join("store"), KEYS * EVENTS);
    let mut pairs = Vec::new();
    for repetition in 0..=REPETITIONS {
        let node = open(folder.path()).await;
        let first = asked(&node, ask).await;
        // The keys are live now, so this measures only the turn and its flush.
        let second = asked(&node, ask).await;
        node.stop().await.expect("it stops");
        // Each repetition adds two turns without events, and the snapshot is a record, too.
        let records = EVENTS + 2 * repetition - snapshot + usize::from(snapshot > 0);
        let raw: Vec<f64> = (0..KEYS).map(|_| raw(folder.path(), bytes, records)).collect();
        pairs.push((first - second, median(raw.into_iter())));
    }
    // The first pair is a warm-up.
    pairs.split_off(1)
}

pub(crate) fn from_events() {
    let write = |key| Note { diary: format!("diary-{key}"), text: [7; 24] };
    let pairs = block_on(measure(write, |key| Count { diary: format!("diary-{key}") }, 0));
    report("activation_1000_events", "us", "1,000 reads of as many bytes, spread over the log", &pairs);
}

pub(crate) fn from_snapshot() {
    let write = |key| Paste { album: format!("album-{key}"), text: [7; 24] };
    let pairs = block_on(measure(write, |key| Leaf { album: format!("album-{key}") }, SNAPSHOT));
    report("activation_with_snapshot", "us", "as many reads as there are records to read", &pairs);
}
