//! Files derived from the log may be corrupt or missing without loss, and the file that describes the contents of the
//! folder.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt as _;
use whizbang::store::embedded::EmbeddedStore;
use whizbang::store::{Store, StoreError};
use whizbang::testing::store::{Owner, TurnBuilder};

use crate::brief_or_long;
use crate::contents::{now, shard};
use crate::damage::{Log, Outcome};
use crate::machine::{Fault, Kind, Machine};
use crate::restarts::{End, assert_intact_and_usable};
use crate::workload::small;

/// Returns every corruption of a file that is tested here.
fn corruptions(bytes: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
    let mut ways = vec![("gone".to_owned(), None), ("emptied".to_owned(), Some(Vec::new()))];
    ways.push(("doubled".to_owned(), Some(bytes.repeat(2))));
    ways.push(("zeroed".to_owned(), Some(vec![0; bytes.len()])));
    for at in (0..bytes.len()).step_by(brief_or_long(7, 1)) {
        ways.push((format!("cut to {at} bytes"), Some(bytes[..at].to_vec())));
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1 << (at % 8);
        ways.push((format!("flipped at {at}"), Some(flipped)));
    }
    ways
}

fn with(files: &BTreeMap<String, Vec<u8>>, name: &str, bytes: Option<Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    let mut files = files.clone();
    files.remove(name);
    files.extend(bytes.map(|bytes| (name.to_owned(), bytes)));
    files
}

fn corrupt_every_file(prefix: &str) {
    let log = Log::closed(1);
    let mut tried = 0;
    for (name, bytes) in log.files.iter().filter(|(name, _)| name.starts_with(prefix)) {
        for (way, bytes) in corruptions(bytes) {
            let files = with(&log.files, name, bytes);
            assert_eq!(log.outcome(&files, &format!("{name} {way}")), Outcome::Whole);
            tried += 1;
        }
    }
    assert!(tried > 50, "only {tried} of {:?}", log.files.keys());
}

#[test]
fn log_is_complete_without_checkpoints() {
    corrupt_every_file("index-");
}

#[test]
fn log_is_complete_without_snapshots() {
    corrupt_every_file("snapshots-");
}

#[test]
fn corrupt_view_is_ignored() {
    let log = Log::closed(1);
    let (name, bytes) = log.files.iter().find(|(name, _)| name.starts_with("view-")).unwrap();
    let view = |bytes: Option<Vec<u8>>| {
        let machine = Machine::with_files(&with(&log.files, name, bytes));
        let store = EmbeddedStore::open_on(machine.disk(), &small(), Some(1)).unwrap();
        let projection = whizbang::message::Name::new(name.strip_prefix("view-").unwrap()).unwrap();
        store.view(&projection).now_or_never().unwrap().unwrap()
    };
    assert!(view(Some(bytes.clone())).is_some());
    for (way, bytes) in corruptions(bytes) {
        assert_eq!(view(bytes), None, "{name} {way}");
    }
}

#[test]
fn unreadable_cache_does_not_prevent_opening() {
    let log = Log::closed(1);
    let mut workload = log.workload.on(&log.files);
    drop(workload.open().unwrap());
    let calls = workload.machine.calls();
    let is_cache = |(_, (kind, name)): &(usize, &(Kind, String))| {
        matches!(kind, Kind::Read | Kind::Open | Kind::Length)
            && (name.starts_with("index-") || name.starts_with("snapshots-"))
    };
    let reads: Vec<usize> = calls.iter().enumerate().filter(is_cache).map(|(call, _)| call).collect();
    assert!(reads.len() >= 4, "{calls:?}");
    for call in reads {
        let mut workload = log.workload.on(&log.files);
        workload.machine.plan(call, Fault::Broken);
        drop(workload.open_and_check().unwrap());
        assert!(workload.machine.has_faulted());
        End::Kill.apply(&workload.machine);
        assert_intact_and_usable(&mut workload, 10);
    }
}

#[test]
fn store_description_is_checked_first() {
    let log = Log::closed(1);
    let open = |bytes: Option<Vec<u8>>| {
        let machine = Machine::with_files(&with(&log.files, "whizbang", bytes));
        let before = machine.files();
        (EmbeddedStore::open_on(machine.disk(), &small(), Some(1)), before, machine)
    };
    for (way, bytes) in corruptions(&log.files["whizbang"].clone()) {
        let (opened, before, machine) = open(bytes.clone());
        match opened {
            // Only the seed differs then, and the data mixed with it is a cache.
            Ok(store) => {
                drop(store);
                assert_eq!(log.outcome(&with(&log.files, "whizbang", bytes), &way), Outcome::Whole);
            }
            Err(StoreError::Corrupt { file, .. }) => assert!(file.ends_with("whizbang"), "{way}: {}", file.display()),
            Err(StoreError::Newer { .. }) => assert_eq!(machine.files(), before, "{way}"),
            Err(error) => panic!("{way}: {error}"),
        }
    }
    let text = String::from_utf8(log.files["whizbang"].clone()).unwrap();
    let newer = text.replace("format 1", "format 3");
    assert_ne!(newer, text);
    let (opened, before, machine) = open(Some(newer.into_bytes()));
    let error = opened.unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 3, known: 2, .. }), "{error}");
    assert_eq!(machine.files(), before, "nothing was touched");
}

#[test]
fn snapshot_of_a_lost_turn_is_not_used_for_its_successor() {
    let machine = Machine::new(1);
    let open = || {
        let store = Arc::new(EmbeddedStore::open_on(machine.disk(), &small(), Some(1)).unwrap());
        let owner = now(Owner::take(&(Arc::clone(&store) as Arc<dyn Store>), &shard("bank", 0)));
        (store, owner)
    };
    let draft = |number: u64, said: &str| {
        let id = number + 10 * said.len() as u64;
        TurnBuilder::new("Account", "a", id).at(number, number - 1).event("Happened", said)
    };
    let (store, mut owner) = open();
    owner.append(&draft(1, "kept")).unwrap();
    owner.snapshot("Account", "a", 1, b"one");
    store.step();
    // Now the first snapshot may be written, and a newer one has replaced it.
    for number in 2..4 {
        owner.append(&draft(number, "lost")).unwrap();
    }
    owner.snapshot("Account", "a", 2, b"lost");
    machine.plan(machine.calls().len(), Fault::Broken);
    store.step();
    assert!(machine.has_faulted() && owner.listener.error().is_some());
    let is_written = |(name, bytes): (&String, &Vec<u8>)| {
        name.starts_with("snapshots-") && bytes.windows(4).any(|part| part == b"lost")
    };
    assert!(!machine.files().iter().any(is_written), "its turn is not committed");
    machine.kill();
    drop((store, owner));

    let (store, mut owner) = open();
    assert_eq!(owner.reader.position(), 1, "the unreported turn is there");
    for number in 2..4 {
        owner.append(&draft(number, "instead")).unwrap();
    }
    store.step();
    let loaded = now(owner.load("Account", "a"));
    // The newer one waited for its turn and did not prevent the earlier one from being written.
    assert_eq!(loaded.snapshot.map(|snapshot| snapshot.turn), Some(1), "not the snapshot of a lost turn");
    assert_eq!(loaded.turns.len(), 2);
    // The snapshot of a committed turn is kept.
    owner.snapshot("Account", "a", 3, b"three");
    store.step();
    drop((store, owner));
    machine.kill();
    let snapshot = now(open().1.load("Account", "a")).snapshot.unwrap();
    assert_eq!((snapshot.turn, &snapshot.bytes[..]), (3, &b"three"[..]));
}

#[test]
fn snapshot_newer_than_its_log_is_not_used() {
    let machine = Machine::new(1);
    let open = |machine: &Machine| {
        let store = Arc::new(EmbeddedStore::open_on(machine.disk(), &small(), Some(1)).unwrap());
        let owner = now(Owner::take(&(Arc::clone(&store) as Arc<dyn Store>), &shard("bank", 0)));
        (store, owner)
    };
    let append = |owner: &mut Owner, numbers: std::ops::RangeInclusive<u64>, said: &str| {
        for number in numbers {
            owner
                .append(&TurnBuilder::new("Account", "a", number).at(number, number - 1).event("Happened", said))
                .unwrap();
        }
    };
    let (store, mut owner) = open(&machine);
    append(&mut owner, 1..=3, "early");
    drop((store, owner));
    machine.kill();
    let early = machine.files();
    let (store, mut owner) = open(&machine);
    append(&mut owner, 4..=5, "late");
    owner.snapshot("Account", "a", 4, b"late");
    drop((store, owner));
    machine.kill();
    let mut files = machine.files();
    assert!(files.iter().any(|(name, bytes)| name.starts_with("snapshots-") && !bytes.is_empty()));
    // The log of an old backup next to the snapshots of a newer one.
    files.retain(|name, _| name.starts_with("snapshots-"));
    files.extend(early.into_iter().filter(|(name, _)| !name.starts_with("snapshots-")));

    let (store, mut owner) = open(&Machine::with_files(&files));
    append(&mut owner, 4..=6, "instead");
    store.step();
    let loaded = now(owner.load("Account", "a"));
    assert_eq!((loaded.snapshot, loaded.turns.len()), (None, 6));
}
