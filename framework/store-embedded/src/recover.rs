//! Recovery: rebuilds the shards and their indexes from the log and finds its end.
//!
//! Called when a store is opened; the [read-only store](super::read_only) uses its replay of records. It starts at the
//! newest checkpoint and never skips damage.
//!
//! The order is: newest checkpoint, the batches after it, the ids, and last the clean-up of the end. Until the clean-up
//! nothing on the disk has changed, so a failed opening can be repeated, also by an older program. The time is that of
//! reading the log since the checkpoint, at most 64 MiB by default.

use std::collections::HashMap;
use std::sync::Arc;

use super::disk::Disk;
use super::frame::{BATCH_BYTES, BatchHead};
use super::ids::IdRuns;
use super::recovered::RecoveredShard;
use super::scan::{self, LogEnd, SegmentWindow};
use super::segment::BatchLocation;
use super::segment::{self, FIRST_OFFSET, NextSegment, Segment, Segments};
use super::{EmbeddedConfig, checkpoint, failure};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{Epoch, StoreError};
use whizbang_core::telemetry::error_chain;
use whizbang_log::index::{Index, StreamHasher};
use whizbang_log::record::{Location, Malformed, Names, Record};

/// The number of records after which their ids are written to a run while a whole log is read.
const RECORDS_PER_RUN: u64 = 512 * 1024;

/// The content of an opened log, and the place where it continues.
pub(super) struct Recovered {
    /// The shards in the order of their numbers in the log.
    pub(super) shards: Vec<RecoveredShard>,
    /// The number of shards of each domain.
    pub(super) domains: HashMap<Name, u16>,
    /// The segment in which the log continues.
    pub(super) segment: Arc<Segment>,
    /// The offset at which it continues.
    pub(super) offset: u64,
    /// The number of the last batch.
    pub(super) batch: u64,
    /// The place of the last batch; `None` in an empty log.
    pub(super) last: Option<BatchLocation>,
    /// The segment after it, if a crash has left one.
    pub(super) spare: NextSegment,
    /// The bytes of log after the newest checkpoint.
    pub(super) since_checkpoint: u64,
    /// The end of the snapshot files that the checkpoint knew: file and offset.
    pub(super) snapshots_from: (u64, u64),
    /// The number of the newest checkpoint.
    pub(super) checkpoint: u64,
}

/// Reads the log, cleans its end, and makes its content durable again.
pub(super) fn recover(
    disk: &Arc<dyn Disk>,
    segments: &Segments,
    hasher: &StreamHasher,
    config: &EmbeddedConfig,
    ids: &IdRuns,
    salt: impl FnOnce() -> u64,
) -> Result<Recovered, StoreError> {
    let saved = checkpoint::newest(disk, hasher)?;
    let from = saved.last.unwrap_or(BatchLocation::FIRST);
    if segments.all().is_empty() {
        if saved.last.is_some() {
            return Err(log_too_short(disk, from));
        }
        segments.preallocate(0, config, salt()).map_err(|error| match error {
            error if super::disk::is_full(&error) => StoreError::Full { at: disk.path("").display().to_string() },
            error => StoreError::io("creating the log", error),
        })?;
    }
    let Replayed { mut log, end, from, snapshots_from } =
        replay(disk, segments, hasher, saved.shards, saved.last, saved.snapshots, ids)?;
    let all = segments.all();
    let current = all.iter().position(|segment| segment.number == end.place.segment);
    let Some(segment) = current.and_then(|nth| all.get(nth)) else {
        return Err(StoreError::Closed);
    };
    let through = segment.start + end.place.offset;
    for shard in &mut log.shards {
        if shard.index.committed() > through {
            return Err(log_too_short(disk, end.place));
        }
        shard.index.commit(through);
    }
    clean_end(segments, &end)?;
    let spare = match current.and_then(|nth| all.get(nth + 1)) {
        Some(spare) => NextSegment::Ready(Arc::clone(spare)),
        None => NextSegment::Pending,
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
        snapshots_from,
        checkpoint: saved.number,
    })
}

/// A log that was read.
struct Replayed<'a> {
    /// The replayed records.
    log: LogReplay<'a>,
    /// The end that the scan has found.
    end: LogEnd,
    /// The place where reading began.
    from: BatchLocation,
    /// The place from which the snapshot files must be read.
    snapshots_from: (u64, u64),
}

/// Reads the log after a checkpoint, or the whole log if the ids before the checkpoint are not indexed.
fn replay<'a>(
    disk: &Arc<dyn Disk>,
    segments: &'a Segments,
    hasher: &'a StreamHasher,
    shards: Vec<RecoveredShard>,
    last: Option<BatchLocation>,
    snapshots: (u64, u64),
    ids: &IdRuns,
) -> Result<Replayed<'a>, StoreError> {
    let from = last.unwrap_or(BatchLocation::FIRST);
    // If the checkpoint's segment is missing, the log is shorter than it was.
    let begin =
        segments.location(from).map_err(|error| if last.is_some() { log_too_short(disk, from) } else { error })?;
    let ended =
        |end: &LogEnd| if end.place == from && last.is_some() { Err(log_too_short(disk, from)) } else { Ok(()) };
    if ids.from() == 0 && (last.is_none() || ids.through() >= begin) {
        let mut log = LogReplay::new(segments, hasher, shards, ids.through());
        let end = scan::scan(segments, from, |location, record| log.replay(location, record))?;
        ended(&end)?;
        // Runs with ids beyond the end of this log belong to a newer log: this one was restored from a backup.
        if ids.through() <= segments.location(end.place)? {
            return Ok(Replayed { log, end, from, snapshots_from: snapshots });
        }
    } else {
        let mut log = LogReplay::new(segments, hasher, shards, Location::MAX);
        let end = scan::scan(segments, from, |location, record| log.replay(location, record))?;
        ended(&end)?;
        tracing::info!(target: whizbang_core::telemetry::TARGET, "ids are not indexed: reading the whole log once");
        ids.reset(0);
        match replay_all(segments, hasher, ids) {
            Ok(replayed) => return Ok(replayed),
            Err(error) => {
                // The part before the checkpoint was not needed until now, so its damage must not prevent the opening.
                tracing::error!(
                    target: whizbang_core::telemetry::TARGET, error = %error_chain(&error),
                    "failed to index the ids in the log: lookups of old ids will read whole streams",
                );
                let through = segments.location(end.place)?;
                ids.reset(through);
                for shard in &mut log.shards {
                    shard.index.skip_ids_before(through);
                }
                return Ok(Replayed { log, end, from, snapshots_from: snapshots });
            }
        }
    }
    ids.reset(0);
    replay_all(segments, hasher, ids)
}

/// Reads the whole log. The ids are written to runs along the way, which bounds the memory for them.
fn replay_all<'a>(segments: &'a Segments, hasher: &'a StreamHasher, ids: &IdRuns) -> Result<Replayed<'a>, StoreError> {
    let mut log = LogReplay::new(segments, hasher, Vec::new(), 0);
    let mut records = 0;
    let end = scan::scan(segments, BatchLocation::FIRST, |location, record| {
        records += 1;
        if records % RECORDS_PER_RUN == 0 {
            log.write_ids(ids, location).map_err(failure("indexing the ids in the log"))?;
        }
        log.replay(location, record)
    })?;
    Ok(Replayed { log, end, from: BatchLocation::FIRST, snapshots_from: (0, 0) })
}

/// Returns the error for a log that ends before something a checkpoint includes, although that was durable before the
/// checkpoint was written.
pub(super) fn log_too_short(disk: &Arc<dyn Disk>, place: BatchLocation) -> StoreError {
    StoreError::Corrupt {
        file: disk.path(&segment::name(place.segment)),
        offset: place.offset,
        reason: format!("the log ends here, before batch {}, but a checkpoint includes later batches", place.batch),
    }
}

/// The shards as rebuilt from the records of the log.
pub(super) struct LogReplay<'a> {
    segments: &'a Segments,
    hasher: &'a StreamHasher,
    /// The names that occurred, each allocated once.
    names: Names,
    /// The shards so far, in the order of their numbers.
    pub(super) shards: Vec<RecoveredShard>,
    /// The number of shards of each domain so far.
    domains: HashMap<Name, u16>,
    /// The location from which ids are kept in memory. Those before it are in runs.
    ids_from: Location,
}

impl<'a> LogReplay<'a> {
    /// Continues from the shards of a checkpoint. The ids of records before `ids_from` are stored elsewhere.
    pub(super) fn new(
        segments: &'a Segments,
        hasher: &'a StreamHasher,
        mut shards: Vec<RecoveredShard>,
        ids_from: Location,
    ) -> Self {
        for shard in &mut shards {
            shard.index.skip_ids_before(ids_from);
        }
        let domains = shards.iter().map(|shard| (shard.id.domain.clone(), shard.shards)).collect();
        Self { segments, hasher, names: Names::default(), shards, domains, ids_from }
    }

    /// Moves the ids read so far to a run. All records before `through` have been read.
    fn write_ids(&mut self, ids: &IdRuns, through: Location) -> std::io::Result<()> {
        let (mut entries, mut newest) = (Vec::new(), Timestamp::default());
        for shard in &mut self.shards {
            let generations = shard.index.ids.freeze();
            for generation in &generations {
                newest = newest.max(generation.newest());
                entries.extend(generation.iter());
            }
            shard.index.ids.replace_frozen(&generations, []);
        }
        ids.write(entries, through, newest)
    }

    /// Applies the record at `location`, unless the checkpoint includes it.
    pub(super) fn replay(&mut self, location: Location, bytes: &[u8]) -> Result<(), StoreError> {
        self.apply(location, bytes).map_err(|Malformed(reason)| self.segments.damaged(location, reason))
    }

    /// Applies one record to the index of its shard.
    fn apply(&mut self, location: Location, bytes: &[u8]) -> Result<(), Malformed> {
        let (tag, epoch, record) = Record::read(bytes, location)?;
        let tag = usize::try_from(tag).map_err(|_| Malformed("unknown shard"))?;
        if let Record::Opened { domain, shard, shards } = record {
            let id = ShardId::new(self.names.get(domain)?, shard);
            return self.apply_opened(tag, epoch, &id, shards);
        }
        let shard = self.shards.get_mut(tag).ok_or(Malformed("unknown shard"))?;
        if location < shard.index.committed() {
            return Ok(());
        }
        if epoch > shard.epoch {
            return Err(Malformed("its epoch was never opened"));
        }
        shard.index.apply(&record, location, &mut self.names)
    }

    /// Applies the record of an opening: a new epoch, or a new shard.
    fn apply_opened(&mut self, tag: usize, epoch: Epoch, id: &ShardId, shards: u16) -> Result<(), Malformed> {
        if *self.domains.entry(id.domain.clone()).or_insert(shards) != shards || id.shard >= shards {
            return Err(Malformed("conflicting number of shards for its domain"));
        }
        let next = self.shards.len();
        match self.shards.get_mut(tag) {
            Some(shard) if shard.id == *id => shard.epoch = shard.epoch.max(epoch),
            None if tag == next => {
                let mut index = Index::new(self.hasher.clone());
                index.skip_ids_before(self.ids_from);
                self.shards.push(RecoveredShard { id: id.clone(), shards, epoch, index, snapshots: HashMap::new() });
            }
            _ => return Err(Malformed("its shard's number belongs to another shard")),
        }
        Ok(())
    }
}

/// Makes the content durable and clears everything after it.
///
/// The content may be only in the memory of the operating system, and even marked as written if an earlier flush has
/// failed. The rest of an unfinished batch must not be mistaken for records once the log has grown to it again.
fn clean_end(segments: &Segments, end: &LogEnd) -> Result<(), StoreError> {
    let doing = || failure("cleaning the end of the log");
    for segment in segments.all().iter().filter(|segment| segment.number >= end.place.segment) {
        let file = segments.file(segment).map_err(doing())?;
        let mut window = SegmentWindow::open(segments, segment)?;
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

#[cfg(test)]
mod tests;
