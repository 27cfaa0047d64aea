//! A store on disk at its limits: a full disk, a removed lock, a large snapshot at a kill, a damaged head or record.
#![cfg(all(feature = "testing", feature = "embedded"))]

mod counting_disk;

use std::sync::Arc;
use std::time::Duration;

use counting_disk::{CountingDisk, Disk, counting_disk};
use whizbang::message::{Name, ShardId};
use whizbang::store::embedded::{EmbeddedConfig, EmbeddedStore};
use whizbang::store::{Snapshot, Store, StoreError};
use whizbang::testing::store::{Owner, TurnBuilder, run};

fn bank() -> ShardId {
    ShardId::new(Name::new("bank").unwrap(), 0)
}

fn draft(turn: u64, bytes: usize) -> TurnBuilder {
    TurnBuilder::new("Account", "ada", turn).at(turn, turn - 1).event("Happened", vec![7; bytes])
}

fn on(disk: &Arc<CountingDisk>, config: &EmbeddedConfig) -> Arc<dyn Store> {
    Arc::new(EmbeddedStore::open_on(Arc::clone(disk) as Arc<Disk>, config, None).unwrap())
}

/// Appends turns of 100 kB until one is refused. Returns the number of turns and the error.
async fn fill(owner: &mut Owner, mut turns: u64) -> (u64, StoreError) {
    loop {
        match owner.append(&draft(turns + 1, 100_000)) {
            Ok(appended) => owner.settled(appended).await,
            Err(error) => return (turns, error),
        }
        turns += 1;
    }
}

#[test]
fn log_grows_into_the_free_space() {
    run(async {
        let size = 20 << 20;
        let disk = counting_disk(size);
        let store = on(&disk, &EmbeddedConfig::default());
        let mut owner = Owner::take(&store, &bank()).await;
        let (turns, error) = fill(&mut owner, 0).await;
        assert!(matches!(error, StoreError::Full { .. }), "{error}");
        // The rest is held back for the checkpoints, or too small for a segment that the largest turn fits into.
        let share = turns * 100_000 * 100 / size;
        assert!(share >= 75, "only {share} % of {size} bytes contain turns");
        assert!(matches!(store.issues()[..], [StoreError::Full { .. }]), "{:?}", store.issues());
        // With more space the store resumes without a restart, and reports it.
        disk.resize(2 * size);
        let limit = tokio::time::Instant::now() + Duration::from_secs(60);
        while !store.issues().is_empty() {
            assert!(tokio::time::Instant::now() < limit, "it stays full: {:?}", store.issues());
            tokio::task::yield_now().await;
        }
        let (more, _) = fill(&mut owner, turns).await;
        assert!(more > turns, "{more} turns");
        store.close().await.unwrap();
        drop((store, owner));
        disk.resize(u64::MAX);
        let store = on(&disk, &EmbeddedConfig::default());
        assert_eq!(Owner::take(&store, &bank()).await.load("Account", "ada").await.turns.len() as u64, more);
    });
}

#[test]
fn large_snapshots_survive_a_kill() {
    run(async {
        let disk = counting_disk(u64::MAX);
        let config = EmbeddedConfig::default();
        let store = EmbeddedStore::open_on(Arc::clone(&disk) as Arc<Disk>, &config, Some(1)).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let mut owner = Owner::take(&store, &bank()).await;
        let name = Name::new("Account").unwrap();
        let keys = ["small", "large", "behind"];
        for key in keys {
            let appended = owner.append_alone(&TurnBuilder::new("Account", key, 1).event("Happened", "1")).unwrap();
            owner.settled(appended).await;
            let bytes = vec![9; if key == "large" { 9 << 20 } else { 10 }];
            let snapshot = Snapshot { turn: 1, version: 1, schema: 1, bytes: bytes.into() };
            owner.writer.save_snapshot(&name, key, snapshot);
        }
        // Views are saved after the snapshots, so the snapshots are written by then.
        let view = Name::new("View").unwrap();
        let epoch = store.claim_view(&view).await.unwrap();
        let content = whizbang::store::View { schema: 1, checkpoint: Vec::new(), bytes: "".into() };
        store.save_view(&view, epoch, content).await.unwrap();
        // Killed: nothing is closed, and another process reads the files.
        std::mem::forget((store, owner));
        whizbang::store::embedded::Disk::unlock(&*disk);
        let store = on(&disk, &config);
        let owner = Owner::take(&store, &bank()).await;
        for key in keys {
            assert!(owner.load("Account", key).await.snapshot.is_some(), "the snapshot of `{key}`");
        }
    });
}

#[test]
fn removed_locks_permit_no_second_owner() {
    let folder = tempfile::tempdir().unwrap();
    let first = EmbeddedStore::open(folder.path()).unwrap();
    for removed in [&["lock"][..], &["lock-seen"], &["lock", "lock-seen"]] {
        for name in removed {
            std::fs::remove_file(folder.path().join(name)).unwrap();
        }
        let second = EmbeddedStore::open(folder.path());
        let Err(StoreError::InUse { at }) = &second else { panic!("{removed:?}: {second:?}") };
        assert!(at.contains(folder.path().to_str().unwrap()), "{at}");
    }
    drop(first);
    EmbeddedStore::open(folder.path()).unwrap();
}

#[test]
fn lock_errors_name_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    drop(EmbeddedStore::open(folder.path()).unwrap());
    std::fs::remove_file(folder.path().join("lock")).unwrap();
    std::fs::create_dir(folder.path().join("lock")).unwrap();
    let error = EmbeddedStore::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
}

/// Returns a closed store of one segment with 30 batches of one turn each, without caches: its bytes and the offsets of
/// the batches.
async fn log(folder: &std::path::Path) -> (Vec<u8>, Vec<usize>) {
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(folder).unwrap());
    let mut owner = Owner::take(&store, &bank()).await;
    for turn in 1..=30 {
        owner.commit(&draft(turn, 100)).await;
    }
    store.close().await.unwrap();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("index-") || name.starts_with("ids") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let log = std::fs::read(folder.join("log-0000000001")).unwrap();
    let heads = log.windows(4).enumerate().filter(|(_, bytes)| bytes == b"WzB\x01").map(|(at, _)| at).collect();
    (log, heads)
}

#[test]
fn damaged_head_of_whole_records_is_recovered() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (whole, heads) = log(folder.path()).await;
        // The last one is the mark; without it nothing proves the length of the last batch.
        assert!(heads.len() > 30, "{} heads", heads.len());
        for head in &heads[..heads.len() - 1] {
            for byte in [0, 5, 9, 17] {
                let mut damaged = whole.clone();
                damaged[head + byte] ^= 4;
                std::fs::write(folder.path().join("log-0000000001"), &damaged).unwrap();
                let store = EmbeddedStore::read_only(folder.path()).unwrap();
                let turns = store.read(&bank()).unwrap().history(&Name::new("Account").unwrap(), "ada").await.unwrap();
                assert_eq!(turns.len(), 30, "the head at {head}, byte {byte}");
            }
        }
        let mut damaged = whole.clone();
        damaged[heads[10] + 9] ^= 4;
        std::fs::write(folder.path().join("log-0000000001"), &damaged).unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(folder.path()).unwrap());
        let mut owner = Owner::take(&store, &bank()).await;
        owner.commit(&draft(31, 100)).await;
        assert_eq!(owner.load("Account", "ada").await.turns.len(), 31);
    });
}

#[test]
fn damage_found_while_reading_is_an_issue() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(folder.path()).unwrap());
        let mut owner = Owner::take(&store, &bank()).await;
        for turn in 1..=30 {
            owner.commit(&draft(turn, 100)).await;
        }
        assert!(store.issues().is_empty());
        let path = folder.path().join("log-0000000001");
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(100).position(|bytes| bytes == [7; 100]).unwrap();
        bytes[at + 50] ^= 1;
        // Written in place, so that the open file of the store sees it.
        use std::os::unix::fs::FileExt;
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(&bytes[at..at + 100], at as u64)
            .unwrap();
        let name = Name::new("Account").unwrap();
        for _ in 0..3 {
            let error = owner.reader.load(&name, "ada").await.unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        }
        let troubles = store.issues();
        assert!(matches!(&troubles[..], [StoreError::Corrupt { .. }]), "{troubles:?}");
    });
}
