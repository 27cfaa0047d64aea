//! What the handles of an opened store have in common.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::super::index::{Index, StreamHasher};
use super::super::record::{Location, write_opened};
use super::disk::Disk;
use super::flusher::Flusher;
use super::frame::{BATCH_BYTES, FRAME_BYTES};
use super::ids::IdRuns;
use super::preallocator::Preallocator;
use super::segment::{FIRST_OFFSET, Segments};
use super::shard::{ReadJob, Shard, State};
use super::snapshots::Snapshots;
use super::write_buffer::{Hand, Refused, WriteBuffer};
use super::writer::Writer;
use super::{EmbeddedConfig, Hands};
use crate::message::{Name, ShardId};
use crate::store::{Epoch, StoreError};

pub(super) struct Inner {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) config: EmbeddedConfig,
    pub(super) hasher: StreamHasher,
    pub(super) segments: Arc<Segments>,
    pub(super) journal: Arc<WriteBuffer>,
    pub(super) preparer: Preallocator,
    pub(super) snapshots: Snapshots,
    pub(super) ids: IdRuns,
    pub(super) digest_key: u128,
    /// To the reading thread, while there is one.
    pub(super) reads: Mutex<Option<mpsc::Sender<ReadJob>>>,
    /// One permit for each long stream that may be read at once.
    pub(super) long_reads: Arc<Semaphore>,
    /// Damage that was met while reading, once for each place.
    pub(super) damages: Mutex<Vec<StoreError>>,
    pub(super) keeper: Arc<Flusher>,
    pub(super) registry: Mutex<Registry>,
    pub(super) writer: Mutex<Writer>,
    pub(super) hands: Hands,
}

/// All shards that the log knows.
#[derive(Default)]
pub(super) struct Registry {
    /// A shard's place here is its number in the log.
    pub(super) list: Vec<Arc<Shard>>,
    pub(super) by_id: HashMap<ShardId, Arc<Shard>>,
    pub(super) domains: HashMap<Name, u16>,
}

/// Enough for the record that a shard was opened.
const OPENED_BYTES: usize = 160;

/// So many damaged places are remembered; a person has enough with these.
const DAMAGES: usize = 16;

impl Inner {
    /// Remembers damage that was met while reading.
    pub(super) fn damaged(&self, error: &StoreError) {
        let StoreError::Corrupt { file, offset, .. } = error else { return };
        let mut damages = self.damages.lock();
        let is_here = |known: &StoreError| matches!(known, StoreError::Corrupt { file: f, offset: o, .. } if f == file && o == offset);
        if damages.len() < DAMAGES && !damages.iter().any(is_here) {
            tracing::error!(target: crate::telemetry::TARGET, %error, "a part of the log is damaged");
            damages.push(error.clone());
        }
    }

    /// Takes a shard for a new owner: the shard, the new epoch, and where the log says so.
    pub(super) fn take(&self, id: &ShardId, shards: u16) -> Result<(Arc<Shard>, Epoch, Location), StoreError> {
        let mut registry = self.registry.lock();
        let found = registry.domains.get(&id.domain).copied().unwrap_or(shards);
        if found != shards || id.shard >= shards {
            return Err(StoreError::Shards { domain: id.domain.to_string(), found, wanted: shards });
        }
        if let Some(shard) = registry.by_id.get(id).cloned() {
            loop {
                let mut state = shard.state.lock();
                let epoch = state.epoch + 1;
                match self.opened(id, shards, shard.tag, epoch) {
                    Ok(location) => {
                        state.epoch = epoch;
                        drop(state);
                        return Ok((shard, epoch, location));
                    }
                    Err(refused) => {
                        drop(state);
                        self.get_room(refused)?;
                    }
                }
            }
        }
        let tag = u32::try_from(registry.list.len()).unwrap_or(u32::MAX);
        let location = loop {
            match self.opened(id, shards, tag, 1) {
                Ok(location) => break location,
                Err(refused) => self.get_room(refused)?,
            }
        };
        let shard = Shard::new(id.clone(), shards, tag, location, 1, Index::new(self.hasher.clone()));
        let shard = Arc::new(shard);
        registry.list.push(Arc::clone(&shard));
        registry.by_id.insert(id.clone(), Arc::clone(&shard));
        registry.domains.insert(id.domain.clone(), shards);
        Ok((shard, 1, location))
    }

    fn opened(&self, id: &ShardId, shards: u16, tag: u32, epoch: Epoch) -> Result<Location, Refused> {
        let (_, location) = self.journal.append(OPENED_BYTES, None, Hand::Thread, |location, into| {
            write_opened(into, id, shards, tag, epoch);
            Ok(location)
        })?;
        Ok(location)
    }

    /// After an append was refused: returns if it is worth trying again.
    pub(super) fn get_room(&self, refused: Refused) -> Result<(), StoreError> {
        match refused {
            Refused::Wait if self.hands == Hands::Caller => {
                self.preparer.prepare();
                Ok(())
            }
            Refused::Wait => {
                self.journal.wait_for_room();
                Ok(())
            }
            Refused::Store(error @ (StoreError::Full { .. } | StoreError::Io { .. }))
                if self.hands == Hands::Caller =>
            {
                if self.preparer.prepare() {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            Refused::Store(error) => Err(error),
            // Whoever appends turns has looked for it before.
            Refused::OutOfTurn(_) => Err(StoreError::Closed),
        }
    }

    /// Hands the snapshots that are ripe to the keeper.
    pub(super) fn keep(&self, shard: &Arc<Shard>, state: &mut State) {
        for stream in state.ripe() {
            if !self.keeper.snapshot(shard, stream) {
                state.fresh.remove(&stream);
            }
        }
    }

    /// Hands all snapshots that are ripe to the keeper, whoever's they are.
    pub(super) fn keep_all(&self) {
        for shard in self.shards() {
            let mut state = shard.state.lock();
            state.index.commit(self.journal.committed());
            self.keep(&shard, &mut state);
        }
    }

    /// All shards, in the order of their numbers in the log.
    pub(super) fn shards(&self) -> Vec<Arc<Shard>> {
        self.registry.lock().list.clone()
    }

    /// The most bytes a turn may have so that it fits into every segment.
    pub(super) fn largest_turn(&self) -> usize {
        let smallest = usize::try_from(self.config.size_of_segment(1)).unwrap_or(usize::MAX);
        smallest.saturating_sub(usize::try_from(FIRST_OFFSET).unwrap_or(0) + 2 * BATCH_BYTES + FRAME_BYTES)
    }

    /// Writes what is appended, until the journal is closed.
    pub(super) fn write(&self) {
        while self.journal.wait_for_part() {
            self.writer.lock().step();
        }
        self.writer.lock().finish();
    }

    /// Who writes a turn that nothing else is in flight with.
    pub(super) fn hand(&self) -> Hand {
        if self.journal.is_slow() && self.hands == Hands::Threads { Hand::Thread } else { Hand::Mine }
    }

    /// Writes what has gathered up to the record at `location` on the calling thread, or wakes the writing thread if somebody
    /// is at it already; whether the record is durable.
    pub(super) fn write_here(&self, location: Location) -> bool {
        match self.writer.try_lock() {
            Some(mut writer) => while self.journal.committed() <= location && writer.step() {},
            // Whoever has the lock may have taken his part before the record was in it.
            None => self.journal.wake(),
        }
        self.journal.committed() > location
    }

    /// Does by hand what is to be done, as the threads would.
    pub(super) fn step(&self) {
        if self.hands == Hands::Caller {
            let mut writer = self.writer.lock();
            while writer.step() {}
            drop(writer);
            self.keeper.step(self);
        }
    }
}
