//! The files of an embedded store: opening recovers their contents, or names the corrupt file.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use whizbang::message::{Name, ShardId};
use whizbang::store::embedded::{Disk, DiskFile, EmbeddedConfig, EmbeddedStore};
use whizbang::store::{Snapshot, Store, StoreError};
use whizbang::testing::decoders;
use whizbang::testing::store::{Owner, RecordingListener, TurnBuilder, run};
use whizbang_tests::Fuzz;

/// Small enough that a few turns fill several files.
const SEGMENT_BYTES: usize = 4096;

const TURNS: u64 = 40;

type Bytes = Arc<Mutex<Vec<u8>>>;

/// Files in memory, because thousands of stores are opened and none needs a flush.
#[derive(Clone, Default)]
struct Files(Arc<Mutex<BTreeMap<String, Bytes>>>);

struct InMemory(Bytes);

impl Files {
    fn of(contents: &BTreeMap<String, Vec<u8>>) -> Self {
        let files = contents.iter().map(|(name, bytes)| (name.clone(), Arc::new(Mutex::new(bytes.clone()))));
        Self(Arc::new(Mutex::new(files.collect())))
    }

    fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.0.lock().unwrap();
        files.iter().map(|(name, bytes)| (name.clone(), bytes.lock().unwrap().clone())).collect()
    }

    fn get(&self, name: &str) -> io::Result<Bytes> {
        self.0.lock().unwrap().get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for Files {
    fn lock(&self) -> io::Result<bool> {
        Ok(true)
    }
    fn unlock(&self) {}
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let bytes = Bytes::default();
        self.0.lock().unwrap().insert(name.to_owned(), Arc::clone(&bytes));
        Ok(Arc::new(InMemory(bytes)))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(InMemory(self.get(name)?)))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let bytes = self.get(from)?;
        let mut files = self.0.lock().unwrap();
        files.remove(from);
        files.insert(to.to_owned(), bytes);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.get(name)?;
        self.0.lock().unwrap().remove(name);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/memory").join(name)
    }
}

impl DiskFile for InMemory {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let file = self.0.lock().unwrap();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(file.len());
        let length = bytes.len().min(file.len() - from);
        bytes[..length].copy_from_slice(&file[from..from + length]);
        Ok(length)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut file = self.0.lock().unwrap();
        let (from, end) = (offset as usize, offset as usize + bytes.len());
        let length = file.len().max(end);
        file.resize(length, 0);
        file[from..end].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn bank() -> ShardId {
    ShardId::new(Name::new("bank").unwrap(), 0)
}

fn config() -> EmbeddedConfig {
    EmbeddedConfig::default().segment_bytes(SEGMENT_BYTES as u64).checkpoint_bytes(u64::MAX)
}

fn open(files: &Files) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open_on(Arc::new(files.clone()), &config(), Some(1))
}

/// Returns the payload of event `number`.
fn text(number: u64) -> String {
    format!("{number} ").repeat(1 + number as usize * 7 % 40)
}

/// The files of a store to write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contents {
    LogOnly,
    WithCaches,
}

/// Returns the files of a store that was closed cleanly.
fn written(contents: Contents) -> BTreeMap<String, Vec<u8>> {
    let files = Files::default();
    run(async {
        let store = Arc::new(open(&files).unwrap());
        let shared: Arc<dyn Store> = Arc::clone(&store) as _;
        let mut owner = Owner::take_with(&shared, &bank(), Arc::new(RecordingListener::default())).await;
        for number in 0..TURNS {
            let (key, before) = (["ada", "bob"][number as usize % 2], number / 2);
            let draft = TurnBuilder::new("Account", key, number).at(before + 1, before).event("Happened", text(number));
            let draft =
                if number % 5 == 0 { draft.send(&ShardId::new(Name::new("post").unwrap(), 1), number) } else { draft };
            owner.append(&draft).unwrap();
            if number % 3 == 0 {
                store.step();
            }
            if number == TURNS / 2 && contents == Contents::WithCaches {
                let snapshot = Snapshot { turn: before, version: before, schema: 1, bytes: "saved".into() };
                owner.writer.save_snapshot(&Name::new("Account").unwrap(), "ada", snapshot);
                store.step();
            }
        }
        store.step();
        if contents == Contents::WithCaches {
            store.checkpoint();
        }
        store.close().await.unwrap();
    });
    files.contents()
}

/// Opens a store, reads all of it, and checks that it equals the written log up to some turn. Returns true if a snapshot was used.
fn read(files: &Files) -> Result<bool, StoreError> {
    run(async {
        let store: Arc<dyn Store> = Arc::new(open(files)?);
        let mut with_snapshot = false;
        if let Some(reader) = store.read(&bank()).await? {
            let events = reader.events(0, usize::MAX).await?;
            for (number, event) in (0..).zip(&events) {
                assert_eq!((event.position, &event.payload[..]), (number + 1, text(number).as_bytes()));
            }
            let mut turns = 0;
            for (actor, key) in reader.streams().await? {
                turns += reader.history(&actor, &key).await?.len();
                if let Some(snapshot) = reader.load(&actor, &key).await?.snapshot {
                    assert_eq!(&snapshot.bytes[..], b"saved");
                    with_snapshot = true;
                }
            }
            assert_eq!(turns, events.len());
            for (to, _, last) in reader.outbox_heads() {
                assert_eq!(reader.outbox(&to, 0, usize::MAX).await?.len() as u64, last);
            }
        }
        // The recovered store accepts further turns.
        let mut owner = Owner::take_with(&store, &bank(), Arc::new(RecordingListener::default())).await;
        owner.append(&TurnBuilder::new("Account", "eve", 1).event("Happened", "more"))?;
        Ok(with_snapshot)
    })
}

/// Returns true if a store can be read. Otherwise the error must name the corrupt file.
fn is_read(files: &Files) -> bool {
    match read(files) {
        Ok(_) => true,
        Err(StoreError::Corrupt { file, .. }) => {
            assert!(file.starts_with("/memory"), "{}", file.display());
            false
        }
        Err(StoreError::Newer { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Fuzzes the concatenated files of one kind.
fn fuzz_files(
    name: &'static str,
    whole: BTreeMap<String, Vec<u8>>,
    is_fuzzed: fn(&str) -> bool,
    accepts: fn(&Files) -> bool,
) {
    let of_kind = whole.iter().filter(|(name, _)| is_fuzzed(name));
    let fuzzed: BTreeMap<String, Vec<u8>> = of_kind.map(|(name, bytes)| (name.clone(), bytes.clone())).collect();
    let mut sample: Vec<u8> = fuzzed.values().flatten().copied().collect();
    assert!(!sample.is_empty() && accepts(&Files::of(&whole)));
    // A log is padded with zeros, and missing bytes of an input are replaced by zeros.
    sample.truncate(sample.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    Fuzz::new(name, [sample]).rounds(3_000, 100_000).run(move |input| {
        let mut files = whole.clone();
        let mut rest = input;
        for (name, bytes) in &fuzzed {
            let (first, behind) = rest.split_at(rest.len().min(bytes.len()));
            let mut first = first.to_vec();
            if name.starts_with("log-") {
                first.resize(bytes.len(), 0);
            }
            files.insert(name.clone(), first);
            rest = behind;
        }
        accepts(&Files::of(&files))
    });
}

#[test]
fn corrupt_log_is_recovered_to_a_turn_or_rejected_by_file() {
    fuzz_files("log", written(Contents::LogOnly), |name| name.starts_with("log-"), is_read);
}

#[test]
fn corrupt_snapshots_and_checkpoints_change_no_result() {
    let is_used = |files: &Files| read(files).unwrap_or_else(|error| panic!("{error}"));
    fuzz_files(
        "log-caches",
        written(Contents::WithCaches),
        |name| name.starts_with("snapshots-") || name.starts_with("index-"),
        is_used,
    );
}

#[test]
fn corrupt_format_file_is_rejected_or_read() {
    fuzz_files("log-format", written(Contents::LogOnly), |name| name == "whizbang", is_read);
}

#[test]
fn corrupt_record_is_rejected_or_read() {
    let log: Vec<u8> = written(Contents::LogOnly)
        .into_iter()
        .filter(|(name, _)| name.starts_with("log-"))
        .flat_map(|(_, bytes)| bytes)
        .collect();
    // Records begin with their format and kind, and are accepted at their exact length only.
    let begins = (0..log.len()).filter(|at| log[*at..].starts_with(&[1, 1]));
    let records = begins.filter_map(|at| {
        let ends = at + 2..log.len().min(at + 2_000);
        ends.map(|end| &log[at..end]).find(|record| decoders::log_record(record)).map(<[u8]>::to_vec)
    });
    let samples: Vec<_> = records.take(8).collect();
    assert!(samples.len() > 2, "{} records", samples.len());
    Fuzz::new("record", samples).run(decoders::log_record);
}
