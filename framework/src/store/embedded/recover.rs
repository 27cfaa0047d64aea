//! Builds everything again from the log: the shards and their indexes, and the place where the log goes on.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::index::{Index, Stream, StreamHasher};
use super::super::record::{Location, Malformed, Names, Record};
use super::disk::Disk;
use super::frame::{BATCH_BYTES, BatchHead};
use super::journal::Spare;
use super::scan::{self, End, Place, Window};
use super::segment::{self, FIRST_OFFSET, Segment, Segments};
use super::snapshots::Stored;
use super::{EmbeddedConfig, checkpoint, failure};
use crate::message::{Name, ShardId};
use crate::store::{Epoch, StoreError};

/// A shard as the log describes it. Its place in the list is its number in the log.
pub(super) struct ShardLog {
    pub(super) id: ShardId,
    /// How many shards its domain has.
    pub(super) shards: u16,
    pub(super) epoch: Epoch,
    pub(super) index: Index,
    pub(super) snapshots: HashMap<Stream, Stored>,
}

/// What an opened log holds, and where it goes on.
pub(super) struct Recovered {
    pub(super) shards: Vec<ShardLog>,
    pub(super) domains: HashMap<Name, u16>,
    pub(super) segment: Arc<Segment>,
    pub(super) offset: u64,
    /// The number of the last batch.
    pub(super) batch: u64,
    pub(super) last: Option<Place>,
    pub(super) spare: Spare,
    /// How many bytes of log there are behind the newest checkpoint.
    pub(super) since_checkpoint: u64,
    /// Up to where the snapshots' files were known to the checkpoint: file and offset.
    pub(super) snapshots_from: (u64, u64),
    /// The number of the newest checkpoint.
    pub(super) checkpoint: u64,
}

/// Reads the log, makes its end clean, and makes everything in it durable once more.
pub(super) fn recover(
    disk: &Arc<dyn Disk>,
    segments: &Segments,
    hasher: &StreamHasher,
    config: &EmbeddedConfig,
    salt: impl FnOnce() -> u64,
) -> Result<Recovered, StoreError> {
    let saved = checkpoint::newest(disk, hasher)?;
    let from = saved.last.unwrap_or(Place::FIRST);
    let mut log = Log::new(segments, hasher, saved.shards);
    if segments.all().is_empty() {
        if saved.last.is_some() {
            return Err(shorter(disk, from));
        }
        segments.prepare(0, config, salt()).map_err(|error| match error {
            error if super::disk::is_full(&error) => StoreError::Full { at: disk.path("").display().to_string() },
            error => StoreError::io("creating the log", error),
        })?;
    }
    let end = scan::scan(segments, from, |location, record| log.take(location, record))?;
    if end.place == from && saved.last.is_some() {
        // The checkpoint was written after its batch was durable.
        return Err(shorter(disk, from));
    }
    let all = segments.all();
    let current = all.iter().position(|segment| segment.number == end.place.segment);
    let Some(segment) = current.and_then(|nth| all.get(nth)) else {
        return Err(StoreError::Closed);
    };
    let through = segment.start + end.place.offset;
    for shard in &mut log.shards {
        if shard.index.committed() > through {
            return Err(shorter(disk, end.place));
        }
        shard.index.commit(through);
    }
    clean(segments, &end)?;
    let spare = match current.and_then(|nth| all.get(nth + 1)) {
        Some(spare) => Spare::Ready(Arc::clone(spare)),
        None => Spare::Coming,
    };
    let begun = all.iter().find(|segment| segment.number == from.segment).map_or(0, |segment| segment.start);
    Ok(Recovered {
        shards: log.shards,
        domains: log.domains,
        segment: Arc::clone(segment),
        offset: end.place.offset,
        batch: end.place.batch - 1,
        last: end.last,
        spare,
        since_checkpoint: through - (begun + from.offset),
        snapshots_from: saved.snapshots,
        checkpoint: saved.number,
    })
}

/// The error for a log that ends before something that a checkpoint knows: it was written after that was durable.
pub(super) fn shorter(disk: &Arc<dyn Disk>, place: Place) -> StoreError {
    StoreError::Corrupt {
        file: disk.path(&segment::name(place.segment)),
        offset: place.offset,
        reason: format!("the log ends here, before batch {}, though a checkpoint knows what follows", place.batch),
    }
}

/// The shards as the log's records make them.
pub(super) struct Log<'a> {
    segments: &'a Segments,
    hasher: &'a StreamHasher,
    names: Names,
    pub(super) shards: Vec<ShardLog>,
    domains: HashMap<Name, u16>,
}

impl<'a> Log<'a> {
    /// Goes on from the shards of a checkpoint.
    pub(super) fn new(segments: &'a Segments, hasher: &'a StreamHasher, shards: Vec<ShardLog>) -> Self {
        let domains = shards.iter().map(|shard| (shard.id.domain.clone(), shard.shards)).collect();
        Self { segments, hasher, names: Names::default(), shards, domains }
    }

    /// Takes in the record at `location`, unless the checkpoint knew it.
    pub(super) fn take(&mut self, location: Location, bytes: &[u8]) -> Result<(), StoreError> {
        self.apply(location, bytes).map_err(|Malformed(reason)| self.segments.damaged(location, reason))
    }

    fn apply(&mut self, location: Location, bytes: &[u8]) -> Result<(), Malformed> {
        let (tag, epoch, record) = Record::read(bytes, location)?;
        let tag = usize::try_from(tag).map_err(|_| Malformed("its shard is unknown"))?;
        if let Record::Opened { domain, shard, shards } = record {
            let id = ShardId::new(self.names.get(domain)?, shard);
            return self.opened(tag, epoch, &id, shards);
        }
        let shard = self.shards.get_mut(tag).ok_or(Malformed("its shard is unknown"))?;
        if location < shard.index.committed() {
            return Ok(());
        }
        if epoch > shard.epoch {
            return Err(Malformed("its epoch never began"));
        }
        shard.index.apply(&record, location, &mut self.names)
    }

    fn opened(&mut self, tag: usize, epoch: Epoch, id: &ShardId, shards: u16) -> Result<(), Malformed> {
        if *self.domains.entry(id.domain.clone()).or_insert(shards) != shards || id.shard >= shards {
            return Err(Malformed("it does not agree with how many shards the domain has"));
        }
        let next = self.shards.len();
        match self.shards.get_mut(tag) {
            Some(shard) if shard.id == *id => shard.epoch = shard.epoch.max(epoch),
            None if tag == next => {
                let index = Index::new(self.hasher.clone());
                self.shards.push(ShardLog { id: id.clone(), shards, epoch, index, snapshots: HashMap::new() });
            }
            _ => return Err(Malformed("its shard's number belongs to another shard")),
        }
        Ok(())
    }
}

/// Makes durable what was read, and takes away what stands behind it.
///
/// What was read may be in the operating system's memory only, even marked as written if a flush has failed before. And what
/// is left of an unfinished batch must not be taken for records once the log has grown up to it again.
fn clean(segments: &Segments, end: &End) -> Result<(), StoreError> {
    let doing = || failure("cleaning the end of the log");
    for segment in segments.all().iter().filter(|segment| segment.number >= end.place.segment) {
        let file = segments.file(segment).map_err(doing())?;
        let mut window = Window::open(segments, segment)?;
        let is_last = segment.number == end.place.segment;
        let mut touched = false;
        if let (true, false, Some(last)) = (is_last, end.marked, end.last)
            && last.segment == segment.number
        {
            let length = usize::try_from(end.place.offset - last.offset).unwrap_or(usize::MAX);
            let batch = window.get(last.offset, length)?.to_vec();
            file.write_at(&batch, last.offset).map_err(doing())?;
            touched = true;
        }
        let kept = match (is_last, end.marked) {
            (true, true) => end.place.offset + BATCH_BYTES as u64,
            (true, false) => end.place.offset,
            (false, _) => FIRST_OFFSET,
        };
        let mut offset = kept;
        while let Some(dirty) = window.next_nonzero(offset)? {
            let length = (segment.size - dirty).min(4096);
            let zeros = vec![0; usize::try_from(length).unwrap_or(0)];
            file.write_at(&zeros, dirty).map_err(doing())?;
            offset = dirty + length;
            touched = true;
        }
        if touched {
            file.sync().map_err(doing())?;
        }
        if is_last && !end.marked && end.last.is_some() {
            let mut mark = [0; BATCH_BYTES];
            let head = BatchHead { number: end.place.batch - 1, length: 0 };
            head.write(&mut mark, segment.salt, segment.start + end.place.offset);
            file.write_at(&mark, end.place.offset).map_err(doing())?;
            file.sync().map_err(doing())?;
        }
    }
    Ok(())
}
