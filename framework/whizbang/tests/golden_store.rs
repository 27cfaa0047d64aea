//! A store that an older version wrote is opened, read and appended to.
//!
//! `golden/store-4feaf7b` was written by that commit: a node with two purses, and a shard of a bank written turn by
//! turn.
#![cfg(all(feature = "testing", feature = "embedded"))]

use std::path::Path;
use std::sync::Arc;

use whizbang::SendError;
use whizbang::clock::{Clock, Timestamp};
use whizbang::message::{MessageId, Name, ShardId};
use whizbang::prelude::*;
use whizbang::store::embedded::{EmbeddedConfig, EmbeddedStore};
use whizbang::store::{Note, Source, SourceKind, Store, Watermark};
use whizbang::testing::store::{Owner, TurnBuilder, run};

#[derive(Domain)]
#[domain(name = "purses", shards = 2)]
struct Purses;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Purses, reply = u64)]
struct Put {
    #[key]
    purse: String,
    cents: u64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Purses)]
struct Filled {
    cents: u64,
}

#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(domain = Purses, handles(Put), applies(Filled), snapshot(every = 3))]
struct Purse {
    cents: u64,
}

impl Handle<Put> for Purse {
    fn handle(&self, put: Put, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Filled { cents: put.cents });
        Ok(self.cents + put.cents)
    }
}

impl Apply<Filled> for Purse {
    fn apply(&mut self, filled: &Filled) {
        self.cents += filled.cents;
    }
}

fn golden() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/store-4feaf7b");
    for entry in std::fs::read_dir(golden).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn open(folder: &tempfile::TempDir) -> EmbeddedStore {
    let config = EmbeddedConfig::default().segment_bytes(16 << 10).checkpoint_bytes(4 << 10);
    EmbeddedStore::open_with(folder.path(), &config).unwrap()
}

/// Returns an id without a time, like that of an idempotency key.
fn id(number: u64) -> MessageId {
    MessageId::from_u128(0x5000_0000_0000_0000_0000 + u128::from(number))
}

fn put(purse: &str, cents: u64) -> Put {
    Put { purse: purse.to_owned(), cents }
}

#[whizbang::test]
async fn ids_and_states_of_an_older_version_are_read() {
    // With all caches, without the checkpoint, and without the snapshots.
    for removed in ["", "index-", "snapshots-"] {
        let folder = golden();
        for entry in std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if !removed.is_empty() && name.starts_with(removed) {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        // Opened twice: the first opening builds the index that the older version did not have.
        for opening in 0..2u64 {
            // Shortly after it was written: the ids it remembers have not expired.
            let (clock, _) = Clock::manual(Timestamp::from_millis(1_795_913_400_000));
            let node = Node::builder("golden", open(&folder))
                .threads(0)
                .aggregate::<Purse>()
                .clock(clock)
                .start()
                .await
                .unwrap();
            let client = node.client();
            for number in 1..=40u64 {
                for purse in ["ada", "bob"] {
                    let first = client.send(put(purse, number)).id(id(number)).await.unwrap();
                    assert_eq!(first, (1..=number).sum::<u64>(), "{purse} {number} {removed}: the first reply");
                    let other = client.send(put(purse, number + 1)).id(id(number)).await;
                    assert!(matches!(other, Err(SendError::Conflict)), "{purse} {number}: {other:?}");
                }
            }
            assert_eq!(client.send(put("ada", 1)).await.unwrap(), 820 + 15_000 + 1 + opening);
            assert_eq!(client.send(put("bob", 1)).await.unwrap(), 820 + 1 + opening);
            node.stop().await.unwrap();
        }
    }
}

#[test]
fn records_of_an_older_version_are_read_as_they_were_written() {
    run(async {
        let folder = golden();
        let store: Arc<dyn Store> = Arc::new(open(&folder));
        let name = |text: &str| Name::new(text).unwrap();
        let bank = |number| ShardId::new(name("bank"), number);
        let owner = Owner::take(&store, &bank(1)).await;
        let direct = Source { shard: bank(2), kind: SourceKind::Direct };
        let events = Source { shard: bank(3), kind: SourceKind::Events { subscriber: name("saga") } };

        let turns = owner.reader.history(&name("actor"), "k").await.unwrap();
        assert_eq!(turns.iter().map(|turn| turn.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let [first, second, third, fourth, fifth] = &turns[..] else { panic!("{} turns", turns.len()) };
        assert_eq!((first.digest, &first.reply[..], first.events.len()), (Some(7), &b"yes"[..], 2));
        assert_eq!((&second.from, second.sent.len()), (&Some((direct.clone(), 5)), 2));
        assert_eq!(third.timers, [("late".to_owned(), true), ("gone".to_owned(), true)]);
        assert!(matches!(&fourth.notes[..], [Note::DeadLetter(letter)] if letter.attempts == 5));
        assert_eq!((fifth.version, fifth.events.len()), (3, 1));
        let stored = owner.load("actor", "k").await;
        assert_eq!(stored.snapshot.map(|snapshot| (snapshot.turn, snapshot.bytes)), Some((3, "three".into())));
        let payloads: Vec<_> = owner.events(0, 100).await.into_iter().map(|event| event.payload).collect();
        assert_eq!(payloads, ["1", "2", "3", "4", "5"]);
        let first_id = TurnBuilder::new("actor", "k", 1);
        assert_eq!(first_id.key(), "k");
        let found = owner.reader.find_turn(&name("actor"), "k", first.id).await.unwrap();
        assert_eq!(found.as_ref(), Some(first), "the id is indexed");
        assert_eq!(
            owner.reader.find_turn(&name("actor"), "k", second.id).await.unwrap(),
            None,
            "it came from an actor"
        );

        assert_eq!(owner.reader.outbox_heads(), [(bank(0), 1, 1), (bank(2), 0, 1)]);
        let mut marks = owner.reader.watermarks();
        marks.sort_by(|one, two| one.source.cmp(&two.source));
        assert_eq!(marks, [Watermark { source: direct, through: 6 }], "of the events nothing was taken: {events:?}");
        assert_eq!(owner.reader.dead_letters(None, 10).await.unwrap().len(), 1);
        let view = store.view(&name("Seen")).await.unwrap().unwrap();
        assert_eq!((view.schema, &view.bytes[..], view.checkpoint), (3, &b"the view"[..], vec![(bank(1), 4)]));
    });
}
