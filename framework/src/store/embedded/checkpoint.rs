//! Saved indexes, so that opening a store reads the end of the log and not all of it.
//!
//! A checkpoint is a cache. One that is damaged is passed over, and the log is read from an older one or from its beginning.
//! But it is written only after what it contains was durable, so a log that ends before it has lost something.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::super::index::{Index, Stream, StreamHasher};
use super::super::record::decode::Decoder;
use super::super::record::{Malformed, Names, encode};
use super::disk::{Disk, read_all};
use super::failure;
use super::recover::RecoveredShard;
use super::scan::BatchLocation;
use super::snapshots::SnapshotLocation;
use crate::message::ShardId;
use crate::store::{Epoch, StoreError};

const PREFIX: &str = "index-";
const UNFINISHED: &str = "index.new";
const MAGIC: [u8; 8] = *b"whizidx\x01";

/// What a checkpoint contains.
#[derive(Default)]
pub(super) struct Checkpoint {
    /// The highest number of a checkpoint, whether it could be used or not; 0 if there is none.
    pub(super) number: u64,
    /// Where the last batch that was durable begins.
    pub(super) last: Option<BatchLocation>,
    /// Up to where the snapshots' files are known: file and offset.
    pub(super) snapshots: (u64, u64),
    pub(super) shards: Vec<RecoveredShard>,
}

fn name(number: u64) -> String {
    format!("{PREFIX}{number:010}")
}

fn numbers(disk: &dyn Disk) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> =
        disk.names()?.iter().filter_map(|name| name.strip_prefix(PREFIX)?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The newest checkpoint that can be read.
pub(super) fn newest(disk: &Arc<dyn Disk>, hasher: &StreamHasher) -> Result<Checkpoint, StoreError> {
    let numbers = numbers(&**disk).map_err(failure("listing the store's folder"))?;
    // The next one gets a higher number than one that cannot be used, and takes it away.
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
                tracing::warn!(target: crate::telemetry::TARGET, %file, reason, "a checkpoint cannot be used");
            }
        }
    }
    Ok(Checkpoint { number: newest, ..Checkpoint::default() })
}

fn read(bytes: &[u8], hasher: &StreamHasher) -> Result<Checkpoint, Malformed> {
    let (content, sum) = bytes.split_last_chunk::<4>().ok_or(Malformed("it ends too early"))?;
    if crc32fast::hash(content) != u32::from_le_bytes(*sum) {
        return Err(Malformed("its checksum is wrong"));
    }
    let take = &mut Decoder(content);
    if take.array()? != MAGIC {
        return Err(Malformed("it is no checkpoint of this format"));
    }
    if decode_stream(take)? != probe(hasher) {
        return Err(Malformed("its streams were hashed differently"));
    }
    let place = BatchLocation { segment: take.number()?, offset: take.number()?, batch: take.number()? };
    let last = (place.batch > 0).then_some(place);
    let snapshots = (take.number()?, take.number()?);
    let mut names = Names::default();
    let count = take.count()?;
    let mut shards = Vec::with_capacity(count);
    for _ in 0..count {
        let id = ShardId::new(names.get(take.text()?)?, take.shard()?);
        let (count, epoch) = (take.shard()?, take.number()?);
        let index = Index::restore(take, hasher.clone(), &mut names)?;
        let mut snapshots = HashMap::new();
        for _ in 0..take.count()? {
            let stream = decode_stream(take)?;
            let (file, offset, length, turn) = (take.number()?, take.number()?, take.number()?, take.number()?);
            snapshots.insert(stream, SnapshotLocation { file, offset, length, turn });
        }
        shards.push(RecoveredShard { id, shards: count, epoch, index, snapshots });
    }
    if take.is_empty() {
        Ok(Checkpoint { number: 0, last, snapshots, shards })
    } else {
        Err(Malformed("bytes are left over"))
    }
}

/// Where one stream is in every run of every version, unless hashing has changed.
fn probe(hasher: &StreamHasher) -> Stream {
    hasher.stream("probe", "the quick brown fox jumps over the lazy dog")
}

fn encode_stream(into: &mut Vec<u8>, stream: Stream) {
    let (first, second) = stream.halves();
    into.extend_from_slice(&first.to_le_bytes());
    into.extend_from_slice(&second.to_le_bytes());
}

fn decode_stream(take: &mut Decoder<'_>) -> Result<Stream, Malformed> {
    Ok(Stream::from_halves(u64::from_le_bytes(take.array()?), u64::from_le_bytes(take.array()?)))
}

/// Appends the beginning of a checkpoint: what it knows of the log and of the snapshots' files, and how many shards follow.
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

/// Appends the beginning of a shard; its index follows in slices.
pub(super) fn encode_shard(into: &mut Vec<u8>, id: &ShardId, shards: u16, epoch: Epoch, index: &mut Index) {
    encode::text(into, &id.domain);
    encode::number(into, u64::from(id.shard));
    encode::number(into, u64::from(shards));
    encode::number(into, epoch);
    index.begin_saving(into);
}

/// Appends the places of a shard's snapshots.
pub(super) fn encode_snapshots(into: &mut Vec<u8>, snapshots: &HashMap<Stream, SnapshotLocation>) {
    encode::number(into, snapshots.len() as u64);
    for (stream, stored) in snapshots {
        encode_stream(into, *stream);
        for number in [stored.file, stored.offset, stored.length, stored.turn] {
            encode::number(into, number);
        }
    }
}

/// Takes away what was begun and could not be finished: it takes room that may be all that is missing.
pub(super) fn remove_unfinished(disk: &Arc<dyn Disk>) {
    // That it cannot be removed, or was never there, changes nothing about why it is.
    let _ = disk.remove(UNFINISHED);
}

/// A checkpoint that is being written, piece by piece.
pub(super) struct CheckpointWriter {
    disk: Arc<dyn Disk>,
    file: Arc<dyn super::disk::DiskFile>,
    sum: crc32fast::Hasher,
    offset: u64,
}

impl CheckpointWriter {
    pub(super) fn begin(disk: &Arc<dyn Disk>) -> io::Result<Self> {
        let file = disk.create(UNFINISHED)?;
        Ok(Self { disk: Arc::clone(disk), file, sum: crc32fast::Hasher::new(), offset: 0 })
    }

    pub(super) fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.sum.update(piece);
        self.file.write_at(piece, self.offset)?;
        self.offset += piece.len() as u64;
        Ok(())
    }

    /// Makes it the newest checkpoint, takes the older ones away, and says how large it is.
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
