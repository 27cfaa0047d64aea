//! The snapshot files: a cache beside the log.
//!
//! Called by the [flusher](super::flusher), which writes a snapshot once its turn is committed, and by readers. No
//! caller waits for it and it is never flushed for a commit. An unreadable snapshot counts as missing. A file that
//! consists mostly of replaced snapshots is compacted and removed.
//!
//! The checkpoint has the places of the snapshots that it knew. Later ones are found by reading the end of the files at the
//! opening.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};
use super::frame::{FRAME_BYTES, close_frame, frame_length, open_frame, seal_frames};
use whizbang_core::store::Snapshot;
use whizbang_core::telemetry::error_chain;
use whizbang_log::record::decode::Decoder;
use whizbang_log::record::{Malformed, encode};
use whizbang_log::traverse::Located;

/// The beginning of the names of snapshot files; the number follows.
const PREFIX: &str = "snapshots-";

/// The location of a snapshot in the files and the last turn it includes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SnapshotLocation {
    /// The number of the file.
    pub(super) file: u64,
    /// Its place in the file.
    pub(super) offset: u64,
    /// The bytes of its frame.
    pub(super) length: u64,
    /// The turn whose state it is.
    pub(super) turn: u64,
}

/// A snapshot with the stream it belongs to.
#[derive(Clone, Debug)]
pub(super) struct NamedSnapshot {
    /// The shard's number in the log.
    pub(super) tag: u32,
    /// The actor type of the stream.
    pub(super) actor: String,
    /// The key of the stream.
    pub(super) key: String,
    /// The snapshot and the location of its turn.
    pub(super) located: Located,
}

/// Snapshots of all shards, in a few files that are only added to. Space is regained by copying what is still used.
pub(super) struct Snapshots {
    /// The folder of the store.
    disk: Arc<dyn Disk>,
    /// Salts the checksums, so that a file of another store is not accepted.
    seed: u64,
    /// The open files, and the end of the one that is written to.
    state: Mutex<SnapshotFiles>,
}

/// The files of snapshots, few at any time.
struct SnapshotFiles {
    /// The open files by number.
    files: HashMap<u64, Arc<dyn DiskFile>>,
    /// The file that is written to and the offset of the next write.
    current: u64,
    /// The offset of the next write in the current file.
    offset: u64,
}

/// Returns the name of a file.
fn name(number: u64) -> String {
    format!("{PREFIX}{number:010}")
}

impl Snapshots {
    /// Opens the files and passes every snapshot after `from`, file and offset, to `found`.
    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        seed: u64,
        from: (u64, u64),
        mut found: impl FnMut(NamedSnapshot, SnapshotLocation),
    ) -> io::Result<Self> {
        let mut numbers: Vec<u64> =
            disk.names()?.iter().filter_map(|name| name.strip_prefix(PREFIX)?.parse().ok()).collect();
        numbers.sort_unstable();
        let mut state = SnapshotFiles { files: HashMap::new(), current: 0, offset: 0 };
        for number in numbers {
            state.current = number;
            let mut read = || {
                let file = disk.open(&name(number))?;
                let start = if number == from.0 { from.1 } else { 0 };
                state.offset = start.min(file.length()?);
                if number >= from.0 {
                    scan(&*file, seed ^ number, &mut state.offset, |named, offset, length| {
                        let stored =
                            SnapshotLocation { file: number, offset, length, turn: named.located.snapshot.turn };
                        found(named, stored);
                    })?;
                }
                io::Result::Ok(file)
            };
            match read() {
                Ok(file) => drop(state.files.insert(number, file)),
                Err(error) => {
                    let file = disk.path(&name(number));
                    let file = file.display();
                    tracing::warn!(
                        target: whizbang_core::telemetry::TARGET, %file, error = %error_chain(&error),
                        "failed to read snapshots: they are ignored",
                    );
                }
            }
        }
        Ok(Self { disk: Arc::clone(disk), seed, state: Mutex::new(state) })
    }

    /// Appends a snapshot. Not flushed: a snapshot that a crash loses is missing, and the turns are read instead.
    ///
    /// # Errors
    /// Those of the disk. The place is written again by the next snapshot.
    pub(super) fn write(&self, named: &NamedSnapshot) -> io::Result<SnapshotLocation> {
        let mut frame = vec![0; FRAME_BYTES];
        encode_named(&mut frame, named);
        close_frame(&mut frame, 0);
        let mut state = self.state.lock();
        if !state.files.contains_key(&state.current) {
            state.begin(&*self.disk)?;
        }
        let (file, offset) = (state.current, state.offset);
        let Some(open) = state.files.get(&file).cloned() else { return Err(io::ErrorKind::NotFound.into()) };
        drop(state);
        seal_frames(&mut frame, self.seed ^ file, offset);
        open.write_at(&frame, offset)?;
        // Only the flusher writes, so the offset has not changed since it was read.
        self.state.lock().offset += frame.len() as u64;
        Ok(SnapshotLocation { file, offset, length: frame.len() as u64, turn: named.located.snapshot.turn })
    }

    /// Reads a snapshot of a stream. Returns `None` if it cannot be used for any reason.
    pub(super) fn read(&self, stored: SnapshotLocation, actor: &str, key: &str) -> Option<Located> {
        let named = self.read_named(stored)?;
        let fits = named.actor == actor && named.key == key && named.located.snapshot.turn == stored.turn;
        fits.then_some(named.located)
    }

    /// Reads a snapshot with the names of its stream. `None` if it is damaged: the state is rebuilt from events.
    fn read_named(&self, stored: SnapshotLocation) -> Option<NamedSnapshot> {
        let file = self.state.lock().files.get(&stored.file).cloned()?;
        let mut frame = vec![0; usize::try_from(stored.length).ok()?];
        let read = file.read_at(&mut frame, stored.offset).ok()?;
        frame.truncate(read);
        let frame = Bytes::from(frame);
        let record = open_frame(&frame, self.seed ^ stored.file, stored.offset)?;
        decode_named(record, &frame).ok()
    }

    /// Starts a new file. Returns the number of the old one.
    pub(super) fn rotate(&self) -> io::Result<u64> {
        let mut state = self.state.lock();
        let old = state.current;
        state.begin(&*self.disk)?;
        Ok(old)
    }

    /// Copies a snapshot from an old file to the current one.
    pub(super) fn copy(&self, stored: SnapshotLocation) -> Option<SnapshotLocation> {
        self.write(&self.read_named(stored)?).ok()
    }

    /// Removes all files before the current one.
    pub(super) fn remove_old(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let current = state.current;
        let old: Vec<u64> = state.files.keys().copied().filter(|number| *number < current).collect();
        for number in old {
            self.disk.remove(&name(number))?;
            state.files.remove(&number);
        }
        Ok(())
    }

    /// Returns the current file and the offset of the next write.
    pub(super) fn end(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.current, state.offset)
    }

    /// Makes the content of the current file durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        let state = self.state.lock();
        let file = state.files.get(&state.current).cloned();
        drop(state);
        file.map_or(Ok(()), |file| file.sync())
    }
}

impl SnapshotFiles {
    /// Begins a new file.
    fn begin(&mut self, disk: &dyn Disk) -> io::Result<()> {
        let number = self.current + 1;
        let file = disk.create(&name(number))?;
        self.files.insert(number, file);
        (self.current, self.offset) = (number, 0);
        Ok(())
    }
}

/// Passes all valid frames of a file from `offset` on to `found`, and leaves `offset` at the first invalid one.
fn scan(
    file: &dyn DiskFile,
    salt: u64,
    offset: &mut u64,
    mut found: impl FnMut(NamedSnapshot, u64, u64),
) -> io::Result<()> {
    const PIECE: usize = 1024 * 1024;
    let mut piece: Vec<u8> = Vec::new();
    let (mut start, end) = (*offset, file.length()?);
    loop {
        let at = usize::try_from(*offset - start).unwrap_or(usize::MAX);
        let rest = piece.get(at..).unwrap_or_default();
        let need = frame_length(rest).map_or(FRAME_BYTES, |length| length.saturating_add(FRAME_BYTES));
        if rest.len() < need {
            // A frame beyond the end of the file is invalid, so a false length allocates no memory.
            if need as u64 > end.saturating_sub(*offset) {
                return Ok(());
            }
            piece.resize(need.max(PIECE), 0);
            let read = file.read_at(&mut piece, *offset)?;
            piece.truncate(read);
            start = *offset;
            // The file was cut off since its length was read.
            if piece.len() < need {
                return Ok(());
            }
            continue;
        }
        let Some(record) = open_frame(rest, salt, *offset) else { return Ok(()) };
        let length = (FRAME_BYTES + record.len()) as u64;
        let Ok(named) = decode_named(record, &Bytes::new()) else { return Ok(()) };
        found(named, *offset, length);
        *offset += length;
    }
}

/// Writes a snapshot with the names of its stream.
fn encode_named(into: &mut Vec<u8>, named: &NamedSnapshot) {
    let Located { location, snapshot } = &named.located;
    encode::number(into, u64::from(named.tag));
    encode::text(into, &named.actor);
    encode::text(into, &named.key);
    for number in [*location, snapshot.turn, snapshot.version, u64::from(snapshot.schema)] {
        encode::number(into, number);
    }
    encode::bytes(into, &snapshot.bytes);
}

/// Decodes a snapshot. Its bytes are shared with `frame` if they lie in it.
fn decode_named(record: &[u8], frame: &Bytes) -> Result<NamedSnapshot, Malformed> {
    let decoder = &mut Decoder(record);
    let tag = decoder.small()?;
    let (actor, key) = (decoder.text()?.to_owned(), decoder.text()?.to_owned());
    let (location, turn, version, schema) = (decoder.number()?, decoder.number()?, decoder.number()?, decoder.small()?);
    let bytes = decoder.bytes()?;
    let inside = frame.as_ptr_range().contains(&bytes.as_ptr());
    let bytes = if inside { frame.slice_ref(bytes) } else { Bytes::copy_from_slice(bytes) };
    Ok(NamedSnapshot {
        tag,
        actor,
        key,
        located: Located { location, snapshot: Snapshot { turn, version, schema, bytes } },
    })
}

#[cfg(test)]
mod tests;
