//! What it takes to bring an actor back to life from the store, and what a live one takes.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Instant;

use whizbang::derive::block_on;
use whizbang::prelude::*;
use whizbang::store::embedded::EmbeddedStore;

use crate::report::{REPETITIONS, median, report};

const EVENTS: usize = 1000;
const KEYS: usize = 40;

#[derive(Domain)]
struct Diary;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Diary, reply = u64)]
struct Note {
    #[key]
    diary: String,
    text: [u8; 24],
}

/// Records nothing, so that the reply waits for little more than the activation.
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

async fn open(folder: &Path) -> Node {
    let store = EmbeddedStore::open(folder.join("store")).expect("it opens");
    Node::builder("diary", store).host::<Plain>().start().await.expect("it starts")
}

/// Keys with 1,000 events each, written round robin, so that the events of one lie apart.
async fn fill(folder: &Path) {
    let node = open(folder).await;
    let tasks = (0..KEYS).map(|key| {
        let client = node.client();
        tokio::task::spawn_local(async move {
            for _ in 0..EVENTS {
                let note = Note { diary: format!("diary-{key}"), text: [7; 24] };
                client.send(note).await.expect("it is handled");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("it ends");
    }
    node.stop().await.expect("it stops");
}

async fn asked(client: &Client, key: usize) -> f64 {
    let begun = Instant::now();
    let notes = client.send(Count { diary: format!("diary-{key}") }).await.expect("it is handled");
    assert_eq!(notes as usize, EVENTS);
    begun.elapsed().as_secs_f64() * 1e6
}

/// Reads as many records of as many bytes from the log's first file as one key has, each by itself, with its checksum.
fn raw(folder: &Path, bytes: usize) -> f64 {
    let file = std::fs::File::open(folder.join("store/log-0000000001")).expect("a log");
    let length = file.metadata().expect("it has a length").len();
    let mut record = vec![0; bytes];
    let begun = Instant::now();
    let mut sum = 0u64;
    for nth in 0..EVENTS as u64 {
        let offset = nth * (bytes * KEYS) as u64 % (length - bytes as u64);
        file.read_exact_at(&mut record, offset).expect("it is read");
        sum = sum.wrapping_add(record.iter().map(|byte| u64::from(*byte)).sum::<u64>());
    }
    std::hint::black_box(sum);
    begun.elapsed().as_secs_f64() * 1e6
}

pub(crate) fn activation() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut pairs = Vec::new();
    block_on(async {
        fill(folder.path()).await;
        for _ in 0..REPETITIONS {
            let node = open(folder.path()).await;
            let client = node.client();
            let mut each = Vec::new();
            for key in 0..KEYS {
                let first = asked(&client, key).await;
                // The second finds it live: what is left is the turn and its flush.
                each.push(first - asked(&client, key).await);
            }
            node.stop().await.expect("it stops");
            let bytes = super::bytes_each(folder.path(), KEYS * EVENTS);
            let raw: Vec<f64> = (0..KEYS).map(|_| raw(folder.path(), bytes)).collect();
            pairs.push((median(each.into_iter()), median(raw.into_iter())));
        }
    });
    report("activation_1000_events", "us", "1,000 reads of as many bytes, spread over the log", &pairs);
}
