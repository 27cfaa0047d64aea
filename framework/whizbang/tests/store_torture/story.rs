//! A story that a store is told, drawn from a seed: what was appended, what was reported, and what must be there afterwards.

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

use crate::machine::Machine;
use crate::picture::{now, picture, shard, shards, snapshot_text};

const ACTOR: &str = "Account";

/// Something that was appended.
#[derive(Clone)]
enum Entry {
    Turn(ShardId, Box<TurnBuilder>),
    Advance(ShardId, Watermark),
    Sent(ShardId, ShardId, u64),
}

/// The newest turn of a stream: its number, and the stream's version after it.
type Heads = BTreeMap<(ShardId, String), (u64, u64)>;

/// What a store has been told and has said, over all its lives.
pub(crate) struct Story {
    pub(crate) machine: Machine,
    dice: IdSource,
    pub(crate) config: EmbeddedConfig,
    entries: Vec<Entry>,
    heads: Heads,
    /// So many entries are known to be durable.
    reported: usize,
    epochs: BTreeMap<ShardId, Epoch>,
    /// The number of the view that was saved last for sure, and of the last one that was tried.
    view: (u64, u64),
    ids: u64,
    /// How often the store was looked at and everything was right.
    pub(crate) looked: usize,
}

/// One life of the store.
pub(crate) struct Life {
    pub(crate) store: Arc<EmbeddedStore>,
    writers: BTreeMap<ShardId, Box<dyn ShardWriter>>,
    pub(crate) ears: Arc<RecordingListener>,
    /// How many entries there were when it began.
    before: usize,
}

/// Files of 4 KiB and checkpoints all the time, so that a short story meets all that can happen.
pub(crate) fn small() -> EmbeddedConfig {
    EmbeddedConfig::default().segment_bytes(4096).checkpoint_bytes(6000)
}

impl Story {
    pub(crate) fn new(seed: u64) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000)).0;
        Self {
            machine: Machine::new(seed),
            dice: IdSource::seeded(clock, seed ^ 0x57),
            config: small(),
            entries: Vec::new(),
            heads: Heads::new(),
            reported: 0,
            epochs: BTreeMap::new(),
            view: (0, 0),
            ids: 0,
            looked: 0,
        }
    }

    /// Opens the store.
    pub(crate) fn open(&mut self) -> Result<Life, StoreError> {
        let seed = self.dice.next_u64();
        let store = EmbeddedStore::open_on(self.machine.disk(), &self.config, Some(seed))?;
        let ears = Arc::new(RecordingListener::default());
        let life = Life { store: Arc::new(store), writers: BTreeMap::new(), ears, before: self.entries.len() };
        Ok(life)
    }

    /// Tells the store so many things.
    pub(crate) fn go_on(&mut self, life: &mut Life, steps: usize) -> Result<(), StoreError> {
        for shard in shards() {
            self.take(life, &shard)?;
        }
        for _ in 0..steps {
            self.step(life)?;
        }
        self.commit(life)
    }

    /// Has everything written and reported.
    pub(crate) fn commit(&mut self, life: &Life) -> Result<(), StoreError> {
        life.store.step();
        self.hear(life);
        life.ears.error().map_or(Ok(()), Err)
    }

    /// Notes what was reported.
    pub(crate) fn hear(&mut self, life: &Life) {
        self.reported = self.reported.max(life.before + life.ears.through() as usize);
        assert!(self.reported <= self.entries.len(), "something was reported that was never appended");
    }

    fn take(&mut self, life: &mut Life, shard: &ShardId) -> Result<(), StoreError> {
        let listener = Arc::clone(&life.ears) as Arc<_>;
        let ShardHandle { writer, .. } = now(life.store.open(shard, SHARDS, listener))?;
        let before = self.epochs.insert(shard.clone(), writer.epoch()).unwrap_or(0);
        assert!(writer.epoch() > before, "an epoch was given twice");
        life.writers.insert(shard.clone(), writer);
        Ok(())
    }

    fn step(&mut self, life: &mut Life) -> Result<(), StoreError> {
        let shard = shards()[self.dice.below(3) as usize].clone();
        match self.dice.below(100) {
            0..60 => self.turn(life, shard),
            60..64 => {
                let (source, through) = (source(&self.dice), self.dice.below(50));
                let watermark = Watermark { source, through };
                let appended = life.writers.get_mut(&shard).unwrap().advance(&watermark)?;
                self.appended(life, Entry::Advance(shard, watermark), appended)
            }
            64..68 => {
                let (to, through) = (self.other(), self.dice.below(9));
                let appended = life.writers.get_mut(&shard).unwrap().sent(&to, through)?;
                self.appended(life, Entry::Sent(shard, to, through), appended)
            }
            68..74 => {
                let streams = self.heads.iter().filter(|((home, _), _)| *home == shard);
                if let Some(((_, key), (turn, version))) = streams.max_by_key(|(_, head)| *head) {
                    let bytes = Bytes::from(snapshot_text(key, *turn));
                    let snapshot = Snapshot { turn: *turn, version: *version, schema: 1, bytes };
                    let actor = Name::new(ACTOR).unwrap();
                    life.writers.get_mut(&shard).unwrap().save_snapshot(&actor, key, snapshot);
                }
                Ok(())
            }
            74..76 => self.save_view(life),
            76..79 => {
                life.store.checkpoint();
                Ok(())
            }
            79..81 => self.take(life, &shard),
            _ => self.commit(life),
        }
    }

    fn turn(&mut self, life: &mut Life, shard: ShardId) -> Result<(), StoreError> {
        self.ids += 1;
        let key = format!("key-{}", self.dice.below(5));
        let head = self.heads.get(&(shard.clone(), key.clone())).copied().unwrap_or_default();
        let mut draft = TurnBuilder::new(ACTOR, &key, self.ids).at(head.0 + 1, head.1);
        for _ in 0..self.dice.below(4) {
            let length = if self.dice.below(8) == 0 { 1500 } else { 100 };
            let payload: Vec<u8> = (0..self.dice.below(length)).map(|_| self.dice.next_u64() as u8).collect();
            draft = draft.event("Happened", payload);
        }
        for _ in 0..self.dice.below(6).saturating_sub(3) {
            draft = draft.send(&self.other(), self.ids);
        }
        draft = match self.dice.below(8) {
            0 => draft.set("pay", self.dice.below(1000)),
            1 => draft.clear("pay"),
            2 => draft.rang("pay"),
            3 => draft.outside(self.ids).reply("\"done\""),
            4 => draft.from(&source(&self.dice), self.ids, self.dice.below(50)),
            5 => draft.dead(self.ids),
            _ => draft,
        };
        let writer = life.writers.get_mut(&shard).unwrap();
        let alone = self.ids.is_multiple_of(3);
        let appended = draft.write(|turn| if alone { writer.append_alone(turn) } else { writer.append(turn) });
        match appended {
            Ok(appended) => {
                self.appended(life, Entry::Turn(shard, Box::new(draft)), appended)?;
                if appended.committed {
                    self.hear(life);
                    assert_eq!(self.reported, self.entries.len(), "it says that it is durable, and is not");
                }
                // A turn alone is written at once, and so fails at once.
                life.ears.error().map_or(Ok(()), Err)
            }
            // A turn must fit into the smallest file, and here they are very small.
            Err(StoreError::Oversize { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn appended(&mut self, life: &Life, entry: Entry, appended: Appended) -> Result<(), StoreError> {
        raise(&mut self.heads, &entry);
        self.entries.push(entry);
        assert_eq!(life.before as u64 + appended.ticket, self.entries.len() as u64, "tickets rise by one");
        Ok(())
    }

    fn save_view(&mut self, life: &Life) -> Result<(), StoreError> {
        self.view.1 += 1;
        // It is always the same owner, and a store that is opened again has none.
        let epoch = now(life.store.claim_view(&projection()))?;
        now(life.store.save_view(&projection(), epoch, view(self.view.1)))?;
        self.view.0 = self.view.1;
        Ok(())
    }

    fn other(&self) -> ShardId {
        shard("post", self.dice.below(2) as u16)
    }

    /// Opens the store and looks at all of it: what was reported is there, and what was not is there whole or not at all.
    pub(crate) fn look(&mut self) -> Result<Life, StoreError> {
        let mut life = self.open()?;
        let seen = picture(&*life.store)?;
        let kept = self.find(&seen);
        self.entries.truncate(kept);
        self.reported = kept;
        self.heads.clear();
        self.entries.iter().for_each(|entry| raise(&mut self.heads, entry));
        let saved = now(life.store.view(&projection()))?;
        let number = saved.as_ref().map_or(0, |saved| saved.checkpoint[0].1);
        assert!((self.view.0..=self.view.1).contains(&number), "view {number}, saved was {:?}", self.view);
        assert!(saved.is_none_or(|saved| saved == view(number)), "half a view");
        self.view.0 = number;
        life.before = kept;
        self.looked += 1;
        Ok(life)
    }

    /// The same story on a disk that holds other files.
    pub(crate) fn on(&self, files: &BTreeMap<String, Vec<u8>>) -> Self {
        Self {
            machine: Machine::with_files(files),
            dice: self.dice.fork(),
            config: self.config.clone(),
            entries: self.entries.clone(),
            heads: self.heads.clone(),
            epochs: self.epochs.clone(),
            ..*self
        }
    }

    /// What a store looks like that holds the entries up to each number from `least` on.
    pub(crate) fn pictures(&self, least: usize) -> Vec<String> {
        let memory = MemoryStore::new();
        replay(&memory, &self.entries[..least]);
        let mut pictures = vec![picture(&memory).unwrap()];
        for entry in &self.entries[least..] {
            replay(&memory, std::slice::from_ref(entry));
            pictures.push(picture(&memory).unwrap());
        }
        pictures
    }

    /// How many entries a store holds that looks like this.
    fn find(&self, seen: &str) -> usize {
        let memory = MemoryStore::new();
        replay(&memory, &self.entries[..self.reported]);
        let mut expected = picture(&memory).unwrap();
        let least = expected.clone();
        for kept in self.reported..=self.entries.len() {
            if expected == *seen {
                return kept;
            }
            if let Some(entry) = self.entries.get(kept) {
                replay(&memory, std::slice::from_ref(entry));
                expected = picture(&memory).unwrap();
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

    /// So many of the entries were reported.
    pub(crate) fn reported(&self) -> usize {
        self.reported
    }

    /// Forgets that the last entries were reported: the disk has lost what said so.
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

fn source(dice: &IdSource) -> Source {
    let lane = match dice.below(2) {
        0 => SourceKind::Direct,
        _ => SourceKind::Events { subscriber: Name::new("Saga").unwrap() },
    };
    Source { shard: shard("post", dice.below(2) as u16), kind: lane }
}

fn projection() -> Name {
    Name::new("Balances").unwrap()
}

fn view(number: u64) -> View {
    let bytes = Bytes::from(format!("view {number} ").repeat(number as usize * 37 % 200));
    View { schema: 1, checkpoint: vec![(shard("bank", 0), number)], bytes }
}
