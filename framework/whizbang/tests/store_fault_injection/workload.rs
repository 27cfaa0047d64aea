//! A random workload of a store, derived from a seed: the appended entries, the reported ones, and the contents that
//! must be there afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use whizbang::clock::{Clock, Timestamp};
use whizbang::message::{IdSource, Name, ShardId};
use whizbang::store::embedded::{EmbeddedConfig, EmbeddedStore};
use whizbang::store::memory::MemoryStore;
use whizbang::store::{Appended, Epoch, ShardHandle, ShardWriter, Snapshot, Source, SourceKind, Store, StoreError};
use whizbang::store::{View, Watermark};
use whizbang::testing::store::{RecordingListener, SHARDS, TurnBuilder};

use crate::contents::{contents, now, shard, shards, snapshot_text};
use crate::machine::Machine;

const ACTOR: &str = "Account";

/// An appended entry.
#[derive(Clone)]
enum Entry {
    Turn(ShardId, Box<TurnBuilder>),
    Advance(ShardId, Watermark),
    Sent(ShardId, ShardId, u64),
}

/// The newest turn of a stream: its number, and the stream's version after it.
type Heads = BTreeMap<(ShardId, String), (u64, u64)>;

/// The entries and reports of a store, over all its runs.
pub(crate) struct Workload {
    pub(crate) machine: Machine,
    random: IdSource,
    pub(crate) config: EmbeddedConfig,
    entries: Vec<Entry>,
    heads: Heads,
    /// The number of entries known to be durable.
    reported: usize,
    epochs: BTreeMap<ShardId, Epoch>,
    /// The number of the last view that was saved for sure, and of the last one that was tried.
    view: (u64, u64),
    ids: u64,
    /// The number of successful checks of the store.
    pub(crate) checks: usize,
}

/// One run of the store.
pub(crate) struct Run {
    pub(crate) store: Arc<EmbeddedStore>,
    writers: BTreeMap<ShardId, Box<dyn ShardWriter>>,
    pub(crate) listener: Arc<RecordingListener>,
    /// The number of entries when it began.
    before: usize,
}

/// Returns segments of 4 KiB and frequent checkpoints, so that a short workload covers every case.
pub(crate) fn small() -> EmbeddedConfig {
    EmbeddedConfig::default().segment_bytes(4096).checkpoint_bytes(6000)
}

impl Workload {
    pub(crate) fn new(seed: u64) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000)).0;
        Self {
            machine: Machine::new(seed),
            random: IdSource::seeded(clock, seed ^ 0x57),
            config: small(),
            entries: Vec::new(),
            heads: Heads::new(),
            reported: 0,
            epochs: BTreeMap::new(),
            view: (0, 0),
            ids: 0,
            checks: 0,
        }
    }

    /// Opens the store.
    pub(crate) fn open(&mut self) -> Result<Run, StoreError> {
        let seed = self.random.next_u64();
        let store = EmbeddedStore::open_on(self.machine.disk(), &self.config, Some(seed))?;
        let listener = Arc::new(RecordingListener::default());
        let run = Run { store: Arc::new(store), writers: BTreeMap::new(), listener, before: self.entries.len() };
        Ok(run)
    }

    /// Executes a number of random steps.
    pub(crate) fn run_steps(&mut self, run: &mut Run, steps: usize) -> Result<(), StoreError> {
        for shard in shards() {
            self.take(run, &shard)?;
        }
        for _ in 0..steps {
            self.step(run)?;
        }
        self.commit(run)
    }

    /// Writes everything and waits for the reports.
    pub(crate) fn commit(&mut self, run: &Run) -> Result<(), StoreError> {
        run.store.step();
        self.record_commits(run);
        run.listener.error().map_or(Ok(()), Err)
    }

    /// Records the reported entries.
    pub(crate) fn record_commits(&mut self, run: &Run) {
        self.reported = self.reported.max(run.before + run.listener.through() as usize);
        assert!(self.reported <= self.entries.len(), "something was reported that was never appended");
    }

    fn take(&mut self, run: &mut Run, shard: &ShardId) -> Result<(), StoreError> {
        let listener = Arc::clone(&run.listener) as Arc<_>;
        let ShardHandle { writer, .. } = now(run.store.open(shard, SHARDS, listener))?;
        let before = self.epochs.insert(shard.clone(), writer.epoch()).unwrap_or(0);
        assert!(writer.epoch() > before, "an epoch was given twice");
        run.writers.insert(shard.clone(), writer);
        Ok(())
    }

    fn step(&mut self, run: &mut Run) -> Result<(), StoreError> {
        let shard = shards()[self.random.below(3) as usize].clone();
        match self.random.below(100) {
            0..60 => self.turn(run, shard),
            60..64 => {
                let (source, through) = (source(&self.random), self.random.below(50));
                let watermark = Watermark { source, through };
                let appended = run.writers.get_mut(&shard).unwrap().advance(&watermark)?;
                self.appended(run, Entry::Advance(shard, watermark), appended)
            }
            64..68 => {
                let (to, through) = (self.other(), self.random.below(9));
                let appended = run.writers.get_mut(&shard).unwrap().sent(&to, through)?;
                self.appended(run, Entry::Sent(shard, to, through), appended)
            }
            68..74 => {
                let streams = self.heads.iter().filter(|((home, _), _)| *home == shard);
                if let Some(((_, key), (turn, version))) = streams.max_by_key(|(_, head)| *head) {
                    let bytes = Bytes::from(snapshot_text(key, *turn));
                    let snapshot = Snapshot { turn: *turn, version: *version, schema: 1, bytes };
                    let actor = Name::new(ACTOR).unwrap();
                    run.writers.get_mut(&shard).unwrap().save_snapshot(&actor, key, snapshot);
                }
                Ok(())
            }
            74..76 => self.save_view(run),
            76..79 => {
                run.store.checkpoint();
                Ok(())
            }
            79..81 => self.take(run, &shard),
            _ => self.commit(run),
        }
    }

    fn turn(&mut self, run: &mut Run, shard: ShardId) -> Result<(), StoreError> {
        self.ids += 1;
        let key = format!("key-{}", self.random.below(5));
        let head = self.heads.get(&(shard.clone(), key.clone())).copied().unwrap_or_default();
        let mut draft = TurnBuilder::new(ACTOR, &key, self.ids).at(head.0 + 1, head.1);
        for _ in 0..self.random.below(4) {
            let length = if self.random.below(8) == 0 { 1500 } else { 100 };
            let payload: Vec<u8> = (0..self.random.below(length)).map(|_| self.random.next_u64() as u8).collect();
            draft = draft.event("Happened", payload);
        }
        for _ in 0..self.random.below(6).saturating_sub(3) {
            draft = draft.send(&self.other(), self.ids);
        }
        draft = match self.random.below(8) {
            0 => draft.set("pay", self.random.below(1000)),
            1 => draft.clear("pay"),
            2 => draft.rang("pay"),
            3 => draft.outside(self.ids).reply("\"done\""),
            4 => draft.from(&source(&self.random), self.ids, self.random.below(50)),
            5 => draft.dead(self.ids),
            _ => draft,
        };
        let writer = run.writers.get_mut(&shard).unwrap();
        let alone = self.ids.is_multiple_of(3);
        let appended = draft.write(|turn| if alone { writer.append_alone(turn) } else { writer.append(turn) });
        match appended {
            Ok(appended) => {
                self.appended(run, Entry::Turn(shard, Box::new(draft)), appended)?;
                if appended.committed {
                    self.record_commits(run);
                    assert_eq!(self.reported, self.entries.len(), "reported as durable, but is not");
                }
                // A turn alone is written at once, and so fails at once.
                run.listener.error().map_or(Ok(()), Err)
            }
            // A turn must fit into the smallest segment, and the segments are very small here.
            Err(StoreError::Oversize { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn appended(&mut self, run: &Run, entry: Entry, appended: Appended) -> Result<(), StoreError> {
        raise(&mut self.heads, &entry);
        self.entries.push(entry);
        assert_eq!(run.before as u64 + appended.ticket, self.entries.len() as u64, "tickets rise by one");
        Ok(())
    }

    fn save_view(&mut self, run: &Run) -> Result<(), StoreError> {
        self.view.1 += 1;
        // It is always the same owner, and a store that is opened again has none.
        let epoch = now(run.store.claim_view(&projection()))?;
        now(run.store.save_view(&projection(), epoch, view(self.view.1)))?;
        self.view.0 = self.view.1;
        Ok(())
    }

    fn other(&self) -> ShardId {
        shard("post", self.random.below(2) as u16)
    }

    /// Opens the store and checks all of it: reported entries are there, and unreported ones are there whole or not at
    /// all.
    pub(crate) fn open_and_check(&mut self) -> Result<Run, StoreError> {
        let mut run = self.open()?;
        let seen = contents(&*run.store)?;
        let kept = self.find(&seen);
        self.entries.truncate(kept);
        self.reported = kept;
        self.heads.clear();
        self.entries.iter().for_each(|entry| raise(&mut self.heads, entry));
        let saved = now(run.store.view(&projection()))?;
        let number = saved.as_ref().map_or(0, |saved| saved.checkpoint[0].1);
        assert!((self.view.0..=self.view.1).contains(&number), "view {number}, saved was {:?}", self.view);
        assert!(saved.is_none_or(|saved| saved == view(number)), "half a view");
        self.view.0 = number;
        run.before = kept;
        self.checks += 1;
        Ok(run)
    }

    /// Returns the same workload on a disk with other files.
    pub(crate) fn on(&self, files: &BTreeMap<String, Vec<u8>>) -> Self {
        Self {
            machine: Machine::with_files(files),
            random: self.random.fork(),
            config: self.config.clone(),
            entries: self.entries.clone(),
            heads: self.heads.clone(),
            epochs: self.epochs.clone(),
            ..*self
        }
    }

    /// Returns the contents of a store with the entries up to each number from `least` on.
    pub(crate) fn contents_from(&self, least: usize) -> Vec<String> {
        let memory = MemoryStore::new();
        replay(&memory, &self.entries[..least]);
        let mut found = vec![contents(&memory).unwrap()];
        for entry in &self.entries[least..] {
            replay(&memory, std::slice::from_ref(entry));
            found.push(contents(&memory).unwrap());
        }
        found
    }

    /// Returns the number of entries of a store with these contents.
    fn find(&self, seen: &str) -> usize {
        let memory = MemoryStore::new();
        replay(&memory, &self.entries[..self.reported]);
        let mut expected = contents(&memory).unwrap();
        let least = expected.clone();
        for kept in self.reported..=self.entries.len() {
            if expected == *seen {
                return kept;
            }
            if let Some(entry) = self.entries.get(kept) {
                replay(&memory, std::slice::from_ref(entry));
                expected = contents(&memory).unwrap();
            }
        }
        let differs = least.lines().zip(seen.lines()).position(|(expected, seen)| expected != seen);
        let from = differs.unwrap_or(0).saturating_sub(5);
        let part = |text: &str| {
            let lines = text.lines().skip(from).take(20).map(|line| line.chars().take(150).collect::<String>());
            lines.collect::<Vec<_>>().join("\n")
        };
        panic!(
            "{} were reported of {}; from line {from} on there should be at least\n{}\nand there is\n{}",
            self.reported,
            self.entries.len(),
            part(&least),
            part(seen)
        );
    }

    /// Returns the number of reported entries.
    pub(crate) fn reported(&self) -> usize {
        self.reported
    }

    /// Forgets that the last entries were reported: the disk has lost the mark.
    pub(crate) fn report_only(&mut self, count: usize) {
        self.reported = self.reported.min(count);
    }
}

fn raise(heads: &mut Heads, entry: &Entry) {
    if let Entry::Turn(shard, draft) = entry {
        let head = heads.entry((shard.clone(), draft.key().to_owned())).or_default();
        *head = (head.0 + 1, head.1 + draft.events_count() as u64);
    }
}

fn replay(store: &MemoryStore, entries: &[Entry]) {
    for entry in entries {
        let (Entry::Turn(shard, _) | Entry::Advance(shard, _) | Entry::Sent(shard, ..)) = entry;
        let mut writer = now(store.open(shard, SHARDS, Arc::new(RecordingListener::default()))).unwrap().writer;
        match entry {
            Entry::Turn(_, draft) => draft.write(|turn| writer.append(turn)),
            Entry::Advance(_, watermark) => writer.advance(watermark),
            Entry::Sent(_, to, through) => writer.sent(to, *through),
        }
        .unwrap();
    }
}

fn source(random: &IdSource) -> Source {
    let kind = match random.below(2) {
        0 => SourceKind::Direct,
        _ => SourceKind::Events { subscriber: Name::new("Saga").unwrap() },
    };
    Source { shard: shard("post", random.below(2) as u16), kind }
}

fn projection() -> Name {
    Name::new("Balances").unwrap()
}

fn view(number: u64) -> View {
    let bytes = Bytes::from(format!("view {number} ").repeat(number as usize * 37 % 200));
    View { schema: 1, checkpoint: vec![(shard("bank", 0), number)], bytes }
}
