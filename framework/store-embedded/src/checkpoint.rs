//! Checkpoints: saved indexes that let an opening read only the end of the log.
//!
//! Called by the flusher (write) and by recovery (read). A checkpoint is a cache: a damaged one is skipped, and the log
//! is read from an older one or from its beginning. A checkpoint is written only after its contents are durable in the
//! log. Therefore a log that ends before its checkpoint has lost data.
//!
//! Writing takes the lock of one shard at a time and releases it between slices. So an append waits for one slice at most,
//! whatever the size of the index.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::disk::{Disk, read_all};
use super::failure;
use super::recovered::RecoveredShard;
use super::segment::BatchLocation;
use super::snapshots::SnapshotLocation;
use whizbang_core::message::ShardId;
use whizbang_core::store::{Epoch, StoreError};
use whizbang_log::index::{Index, Stream, StreamHasher};
use whizbang_log::record::decode::Decoder;
use whizbang_log::record::{Malformed, Names, encode};

/// The beginning of the names of checkpoints; the number follows.
const PREFIX: &str = "index-";
/// The name of a checkpoint until it is complete.
const UNFINISHED: &str = "index.new";
/// The first bytes of a checkpoint, with its version.
const MAGIC: [u8; 8] = *b"whizidx\x01";

/// The content of a checkpoint.
#[derive(Default)]
pub(super) struct Checkpoint {
    /// The highest number of a checkpoint, usable or not; 0 if there is none.
    pub(super) number: u64,
    /// The location of the last durable batch.
    pub(super) last: Option<BatchLocation>,
    /// The known end of the snapshot files: file and offset.
    pub(super) snapshots: (u64, u64),
    /// The shards in the order of their numbers in the log.
    pub(super) shards: Vec<RecoveredShard>,
}

/// Returns the name of a checkpoint.
fn name(number: u64) -> String {
    format!("{PREFIX}{number:010}")
}

/// Returns the numbers of the existing checkpoints.
fn numbers(disk: &dyn Disk) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> =
        disk.names()?.iter().filter_map(|name| name.strip_prefix(PREFIX)?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Returns the newest readable checkpoint. The cost grows with the size of the checkpoint, not with the log.
///
/// # Errors
/// The folder cannot be listed. An unreadable checkpoint is not an error.
pub(super) fn newest(disk: &Arc<dyn Disk>, hasher: &StreamHasher) -> Result<Checkpoint, StoreError> {
    let numbers = numbers(&**disk).map_err(failure("listing the store's folder"))?;
    // The next checkpoint gets a higher number than an unusable one and removes it.
    let newest = numbers.last().copied().unwrap_or(0);
    for number in numbers.into_iter().rev() {
        let saved = match read_all(&**disk, &name(number)) {
            Ok(bytes) => read(&bytes, hasher).map_err(|Malformed(reason)| reason.to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match saved {
            Ok(saved) => return Ok(Checkpoint { number: newest, ..saved }),
            Err(reason) => {
                let file = disk.path(&name(number));
                let file = file.display();
                tracing::warn!(target: whizbang_core::telemetry::TARGET, %file, reason, "checkpoint skipped: it cannot be read");
            }
        }
    }
    Ok(Checkpoint { number: newest, ..Checkpoint::default() })
}

/// Parses a checkpoint. A damaged one is skipped, and more of the log is read. The whole file is checked before anything is
/// used.
fn read(bytes: &[u8], hasher: &StreamHasher) -> Result<Checkpoint, Malformed> {
    let (content, sum) = bytes.split_last_chunk::<4>().ok_or(Malformed("unexpected end of the file"))?;
    if crc32fast::hash(content) != u32::from_le_bytes(*sum) {
        return Err(Malformed("its checksum is wrong"));
    }
    let decoder = &mut Decoder(content);
    if decoder.array()? != MAGIC {
        return Err(Malformed("its header is not that of a checkpoint"));
    }
    if decode_stream(decoder)? != probe(hasher) {
        return Err(Malformed("its streams were hashed with another seed or function"));
    }
    let place = BatchLocation { segment: decoder.number()?, offset: decoder.number()?, batch: decoder.number()? };
    let last = (place.batch > 0).then_some(place);
    let snapshots = (decoder.number()?, decoder.number()?);
    let mut names = Names::default();
    let count = decoder.count()?;
    let mut shards = Vec::with_capacity(count);
    for _ in 0..count {
        let id = ShardId::new(names.get(decoder.text()?)?, decoder.shard()?);
        let (count, epoch) = (decoder.shard()?, decoder.number()?);
        let index = Index::restore(decoder, hasher.clone(), &mut names)?;
        let mut snapshots = HashMap::new();
        for _ in 0..decoder.count()? {
            let stream = decode_stream(decoder)?;
            let (file, offset, length, turn) =
                (decoder.number()?, decoder.number()?, decoder.number()?, decoder.number()?);
            snapshots.insert(stream, SnapshotLocation { file, offset, length, turn });
        }
        shards.push(RecoveredShard { id, shards: count, epoch, index, snapshots });
    }
    if decoder.is_empty() {
        Ok(Checkpoint { number: 0, last, snapshots, shards })
    } else {
        Err(Malformed("trailing bytes"))
    }
}

/// Returns the hash of a fixed stream. It is the same in every run and version, unless the hash function has changed.
fn probe(hasher: &StreamHasher) -> Stream {
    hasher.stream("probe", "the quick brown fox jumps over the lazy dog")
}

/// Writes both halves of a stream.
fn encode_stream(into: &mut Vec<u8>, stream: Stream) {
    let (first, second) = stream.halves();
    into.extend_from_slice(&first.to_le_bytes());
    into.extend_from_slice(&second.to_le_bytes());
}

/// Reads both halves of a stream.
fn decode_stream(decoder: &mut Decoder<'_>) -> Result<Stream, Malformed> {
    Ok(Stream::from_halves(u64::from_le_bytes(decoder.array()?), u64::from_le_bytes(decoder.array()?)))
}

/// Appends the header of a checkpoint: the known ends of the log and of the snapshot files, and the number of shards
/// that follow.
pub(super) fn encode_head(
    into: &mut Vec<u8>,
    hasher: &StreamHasher,
    last: Option<BatchLocation>,
    snapshots: (u64, u64),
    shards: usize,
) {
    into.extend_from_slice(&MAGIC);
    encode_stream(into, probe(hasher));
    let last = last.unwrap_or(BatchLocation { segment: 0, offset: 0, batch: 0 });
    for number in [last.segment, last.offset, last.batch, snapshots.0, snapshots.1, shards as u64] {
        encode::number(into, number);
    }
}

/// Appends the header of a shard. Its index follows in slices.
pub(super) fn encode_shard(into: &mut Vec<u8>, id: &ShardId, shards: u16, epoch: Epoch, index: &mut Index) {
    encode::text(into, &id.domain);
    encode::number(into, u64::from(id.shard));
    encode::number(into, u64::from(shards));
    encode::number(into, epoch);
    index.begin_saving(into);
}

/// Appends the locations of a shard's snapshots.
pub(super) fn encode_snapshots(into: &mut Vec<u8>, snapshots: &HashMap<Stream, SnapshotLocation>) {
    encode::number(into, snapshots.len() as u64);
    for (stream, stored) in snapshots {
        encode_stream(into, *stream);
        for number in [stored.file, stored.offset, stored.length, stored.turn] {
            encode::number(into, number);
        }
    }
}

/// Removes an unfinished checkpoint, because its space may be just what is missing.
pub(super) fn remove_unfinished(disk: &Arc<dyn Disk>) {
    // Best effort: the file may not exist, and the original error is reported either way.
    let _ = disk.remove(UNFINISHED);
}

/// A checkpoint that is written piece by piece.
pub(super) struct CheckpointWriter {
    /// The folder in which the file gets its final name.
    disk: Arc<dyn Disk>,
    /// The unfinished file.
    file: Arc<dyn super::disk::DiskFile>,
    /// The checksum of everything written so far.
    sum: crc32fast::Hasher,
    /// The length of the file so far, in bytes.
    offset: u64,
}

impl CheckpointWriter {
    /// Creates the file of a new checkpoint. An unfinished file of an earlier attempt is overwritten.
    pub(super) fn begin(disk: &Arc<dyn Disk>) -> io::Result<Self> {
        let file = disk.create(UNFINISHED)?;
        Ok(Self { disk: Arc::clone(disk), file, sum: crc32fast::Hasher::new(), offset: 0 })
    }

    /// Adds a piece, and to the checksum of the whole.
    ///
    /// # Errors
    /// The disk is full or fails. The caller [removes](remove_unfinished) the file.
    pub(super) fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.sum.update(piece);
        self.file.write_at(piece, self.offset)?;
        self.offset += piece.len() as u64;
        Ok(())
    }

    /// Makes this the newest checkpoint and removes older ones. Returns its size in bytes. The file is durable before it gets
    /// its name, so a crash leaves either the old checkpoint or the new one.
    pub(super) fn finish(self, number: u64) -> io::Result<u64> {
        self.file.write_at(&self.sum.finalize().to_le_bytes(), self.offset)?;
        self.file.sync()?;
        self.disk.rename(UNFINISHED, &name(number))?;
        self.disk.sync()?;
        for old in numbers(&*self.disk)?.into_iter().filter(|old| *old < number) {
            self.disk.remove(&name(old))?;
        }
        Ok(self.offset)
    }
}

#[cfg(test)]
mod tests;
