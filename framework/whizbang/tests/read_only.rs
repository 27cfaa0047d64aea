//! A store that another process writes can be read: everything up to some moment, whole turns only, and nothing else.
#![cfg(feature = "embedded")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use whizbang::Message;
use whizbang::message::{Name, ShardId, shard_of};
use whizbang::prelude::*;
use whizbang::store::embedded::{EmbeddedConfig, ReadOnlyStore};
use whizbang::store::{StoreError, StoredEvent};

#[derive(Domain)]
#[domain(name = "tallies", shards = 2)]
struct Tallies;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Tallies)]
struct Score {
    #[key]
    tally: String,
    round: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Tallies)]
struct Scored {
    round: u64,
    part: u8,
    padding: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Tallies, handles(Score), records(Scored))]
struct Tally;

impl Handle<Score> for Tally {
    fn handle(&self, score: Score, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for part in 0..3 {
            effects.record(Scored { round: score.round, part, padding: "x".repeat(200) });
        }
        Ok(())
    }
}

/// Returns one key in each shard, in the order in which they are scored.
fn keys() -> [String; 2] {
    [0, 1].map(|shard| {
        let mut names = (0..).map(|n| format!("tally-{n}"));
        names.find(|name| shard_of(name, Tallies::SHARDS) == shard).expect("one of them")
    })
}

/// Small sizes, so that the log rotates its segments and checkpoints while it is read.
fn config() -> EmbeddedConfig {
    EmbeddedConfig::default().segment_bytes(128 << 10).checkpoint_bytes(50_000)
}

const WRITER: &str = "WHIZBANG_TEST_WRITER";
const LIFE: &str = "WHIZBANG_TEST_LIFE";
/// The rounds of a run are numbered from a multiple of this.
const ROUNDS: u64 = 1_000_000;

/// The other process: scores round after round, in one shard and then in the other, until it is killed.
#[whizbang::test]
async fn as_another_process() {
    let Some(folder) = std::env::var_os(WRITER) else { return };
    let store = EmbeddedStore::open_with(folder, &config()).unwrap();
    let node = Node::builder("tallies", store).threads(0).aggregate::<Tally>().start().await.unwrap();
    let life: u64 = std::env::var(LIFE).unwrap().parse().unwrap();
    // Bounded, because each read reads everything and would never finish on a busy machine.
    for round in (life * ROUNDS..).take(500) {
        for tally in keys() {
            node.client().send(Score { tally, round }).await.unwrap();
        }
    }
    std::future::pending().await
}

/// The writing process, which is killed on drop.
struct Writer(Child);

impl Writer {
    fn start(folder: &Path, life: u64) -> Self {
        let mut program = Program::new(std::env::current_exe().unwrap());
        program.args(["--exact", "as_another_process", "--nocapture"]).env(WRITER, folder).env(LIFE, life.to_string());
        Self(program.stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the number of rounds in each of the two tallies, after checking everything that was read.
async fn rounds(store: &ReadOnlyStore) -> [usize; 2] {
    let mut rounds = [BTreeSet::new(), BTreeSet::new()];
    for (shard, key) in (0..).zip(keys()) {
        let Some(log) = store.read(&ShardId::new(Name::new("tallies").unwrap(), shard)) else { continue };
        let events = log.events(0, usize::MAX >> 1).await.unwrap();
        assert_eq!(events.len() as u64, log.position(), "everything up to the position can be read");
        assert!(events.iter().zip(1..).all(|(event, position)| event.position == position), "no gap");
        let mut found = BTreeMap::<u64, Vec<u8>>::new();
        for event in events.iter().filter(|event| event.key == key) {
            let scored = read(event);
            found.entry(scored.round).or_default().push(scored.part);
        }
        assert!(found.values().all(|parts| *parts == [0, 1, 2]), "whole turns, in their order: {found:?}");
        assert_eq!(log.history(&Name::new("tally").unwrap(), &key).await.unwrap().len(), found.len());
        rounds[usize::from(shard)] = found.into_keys().collect();
    }
    let [first, second] = &rounds;
    // Earlier turns of the other shard are there: only the last round of a run may be in the first shard alone.
    assert!(second.is_subset(first), "{:?}", second.difference(first));
    let alone: BTreeSet<_> = first.difference(second).collect();
    assert!(alone.iter().all(|round| !first.contains(&(**round + 1))), "{alone:?}");
    rounds.map(|rounds| rounds.len())
}

fn read(event: &StoredEvent) -> Scored {
    Scored::decode(event.version, event.codec, &event.payload).unwrap()
}

fn files(folder: &Path, prefix: &str) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

#[whizbang::test]
async fn reads_during_writes_are_growing_prefixes() {
    let folder = tempfile::tempdir().unwrap();
    let mut last = [0, 0];
    let mut checkpoints = BTreeSet::new();
    let (mut readings, mut grown, mut lives) = (0, 0, 0);
    let begun = Instant::now();
    // Killed in between: the next process cleans the end of the log while it is read.
    while lives < 3 || grown < 50 || files(folder.path(), "log-").len() < 5 || checkpoints.len() < 5 {
        assert!(begun.elapsed() < Duration::from_secs(300), "{readings} readings, {grown} of them longer");
        let mut writer = Writer::start(folder.path(), lives);
        let until = last[0] + 200;
        while last[0] < until {
            assert!(writer.0.try_wait().unwrap().is_none(), "the writer has ended");
            let store = match EmbeddedStore::read_only(folder.path()) {
                // The writer has only just started.
                Err(StoreError::Missing { .. }) if last == [0, 0] => continue,
                store => store.unwrap(),
            };
            let now = rounds(&store).await;
            assert!(now[0] >= last[0] && now[1] >= last[1], "{last:?} and then {now:?}");
            readings += 1;
            grown += u64::from(now != last);
            last = now;
            checkpoints.extend(files(folder.path(), "index-"));
        }
        drop(writer);
        lives += 1;
        // No process is left: the read returns the same as the next opening.
        let store = EmbeddedStore::read_only(folder.path()).unwrap();
        assert!(!store.was_in_use());
        last = rounds(&store).await;
        let names = files(folder.path(), "");
        let before: Vec<_> = names.iter().map(|name| std::fs::read(folder.path().join(name)).unwrap()).collect();
        rounds(&EmbeddedStore::read_only(folder.path()).unwrap()).await;
        let after: Vec<_> = names.iter().map(|name| std::fs::read(folder.path().join(name)).unwrap()).collect();
        assert!(files(folder.path(), "") == names && before == after, "reading has written something");
        let opened = EmbeddedStore::open_with(folder.path(), &config()).unwrap();
        let beside = EmbeddedStore::read_only(folder.path()).unwrap();
        assert!(beside.was_in_use());
        assert_eq!(rounds(&beside).await, last, "the read equals the next opening");
        drop(opened);
    }
    println!("{readings} readings, {grown} of them longer, {} checkpoints seen", checkpoints.len());
}

#[whizbang::test]
async fn views_are_read_as_they_were_saved() {
    #[derive(Query, Serialize, Deserialize)]
    #[query(domain = Tallies, reply = u64)]
    struct HowMany {}

    #[derive(Projection, Default, Serialize, Deserialize)]
    #[projection(projects(Scored), answers(HowMany))]
    struct Total {
        parts: u64,
    }

    impl Project<Scored> for Total {
        fn project(&mut self, _: &Scored, _: &EventContext) {
            self.parts += 1;
        }
    }

    impl Answer<HowMany> for Total {
        fn answer(&self, _: HowMany) -> u64 {
            self.parts
        }
    }

    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    let node =
        Node::builder("tallies", store).threads(0).aggregate::<Tally>().projection::<Total>().start().await.unwrap();
    node.client().send(Score { tally: "a".to_owned(), round: 1 }).await.unwrap();
    node.wait_idle().await;
    node.stop().await.unwrap();
    let store = EmbeddedStore::read_only(folder.path()).unwrap();
    let view = store.view(&Name::new(<Total as Projection>::NAME).unwrap()).unwrap().expect("it was saved");
    let total = whizbang::projection::saved::<Total>(&view).expect("it is of this schema");
    assert_eq!(total.answer(HowMany {}), 3);
    assert!(store.view(&Name::new("unknown").unwrap()).unwrap().is_none());
    let other = whizbang::store::View { schema: view.schema + 1, ..view };
    assert!(whizbang::projection::saved::<Total>(&other).is_none());
}

#[whizbang::test]
async fn unreadable_store_is_named_and_nothing_is_created() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere");
    for place in [folder.path(), nowhere.as_path()] {
        let error = EmbeddedStore::read_only(place).unwrap_err();
        assert!(
            matches!(error, StoreError::Missing { .. }) && error.to_string().contains("no store found in"),
            "{error}"
        );
    }
    assert!(!nowhere.exists() && files(folder.path(), "").is_empty());

    let store = EmbeddedStore::open(folder.path()).unwrap();
    let node = Node::builder("tallies", store).threads(0).aggregate::<Tally>().start().await.unwrap();
    for round in 0..20 {
        node.client().send(Score { tally: "a".to_owned(), round }).await.unwrap();
    }
    node.stop().await.unwrap();
    let log = folder.path().join("log-0000000001");
    let whole = std::fs::read(&log).unwrap();
    // In the middle of data that was durable once.
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let mut damaged = whole.clone();
    damaged[end / 2] ^= 0x40;
    std::fs::write(&log, &damaged).unwrap();
    let error = EmbeddedStore::read_only(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert_eq!(std::fs::read(&log).unwrap(), damaged, "the file is unchanged");
    std::fs::write(&log, whole).unwrap();

    let format = folder.path().join("whizbang");
    let text = std::fs::read_to_string(&format).unwrap();
    std::fs::write(&format, text.replace("format 1", "format 3")).unwrap();
    let error = EmbeddedStore::read_only(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 3, .. }), "{error}");
}

#[whizbang::test]
async fn readers_do_not_prevent_opening() {
    let folder = tempfile::tempdir().unwrap();
    drop(EmbeddedStore::open(folder.path()).unwrap());
    // As left by a version with one lock only.
    std::fs::remove_file(folder.path().join("lock-seen")).unwrap();
    let opened = EmbeddedStore::open(folder.path()).unwrap();
    assert!(EmbeddedStore::read_only(folder.path()).unwrap().was_in_use());
    drop(opened);
    let (stop, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
    let look = || {
        while !stop.load(Ordering::Relaxed) {
            EmbeddedStore::read_only(folder.path()).unwrap();
            looks.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(look);
        scope.spawn(look);
        for _ in 0..100 {
            let opened = EmbeddedStore::open(folder.path());
            let refused = EmbeddedStore::open(folder.path());
            stop.fetch_or(opened.is_err(), Ordering::Relaxed);
            opened.unwrap();
            assert!(matches!(refused, Err(StoreError::InUse { .. })), "{refused:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(looks.load(Ordering::Relaxed) > 0, "no read took place");
}
