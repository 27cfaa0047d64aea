//! Reads a store that another process may have open, without disturbing it.
//!
//! Called by programs that inspect a store: reports, diagrams, checks. Reads the newest checkpoint and the log after
//! it, like an opening. It holds no lock, does not clean the end of the log and never writes: its folder rejects
//! writes. The result is always everything that was durable up to some moment, whatever the other process does
//! concurrently.
//!
//! Two reads may contradict each other if a process writes between them. So the end of the log is determined once, and
//! everything after it is ignored.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, DiskFile, Folder};
use super::log_source::{LogSource, ReadJob};
use super::reader::EmbeddedReader;
use super::recover::{LogReplay, log_too_short};
use super::scan::{self, LogEnd};
use super::segment::BatchLocation;
use super::segment::Segments;
use super::shard::Shard;
use super::snapshots::SnapshotLocation;
use super::{EmbeddedStore, checkpoint, failure, layout, views};
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{ShardReader, StoreError, View};
use whizbang_log::index::IdHash;
use whizbang_log::index::StreamHasher;
use whizbang_log::record::Location;
use whizbang_log::traverse::Located;

/// The number of attempts to read a checkpoint that another process replaces concurrently.
const CHECKPOINT_TRIES: usize = 5;

/// The content of a store at one moment. Opened with [`EmbeddedStore::read_only`].
///
/// It does not follow the store: read it again to see newer data. It contains all commits of all shards up to one
/// location in the log, in whole turns. So it also contains the causes within this store of every commit in it.
pub struct ReadOnlyStore {
    /// The folder, which rejects writes.
    folder: Arc<dyn Disk>,
    /// The index of each shard as of the opening. It never changes.
    shards: HashMap<ShardId, Arc<Shard>>,
    /// The segments as of the opening.
    log: Arc<ReadOnlyLog>,
    /// A process has the store open, so the end of the log may still move.
    in_use: bool,
}

impl EmbeddedStore {
    /// Reads the current content of the store in `folder`, even while a process has it open. Does not prevent other
    /// processes from opening it and writes nothing. Blocks while it reads the log after the newest checkpoint. Keeps
    /// the index of all streams in memory, as the store itself does, but no snapshots.
    ///
    /// Not included are commits that were not durable yet. If the store is in use, this also applies to the last
    /// durable commits unless something was written after them. Streams are read from their first turn, without
    /// snapshots. Views are the last saved ones, which may be seconds old.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if there is no store, [`StoreError::Newer`] if a newer version wrote it,
    /// [`StoreError::Moved`] and [`StoreError::Unfinished`] if it is a part of a move, [`StoreError::Corrupt`] if it is damaged,
    /// [`StoreError::Io`]. A process that uses the store never makes it appear damaged.
    pub fn read_only(folder: impl AsRef<Path>) -> Result<ReadOnlyStore, StoreError> {
        ReadOnlyStore::open(folder.as_ref())
    }
}

impl ReadOnlyStore {
    /// Reads checkpoint and log as described for [`EmbeddedStore::read_only`].
    ///
    /// # Errors
    /// Those described there.
    fn open(path: &Path) -> Result<Self, StoreError> {
        let folder: Arc<dyn Disk> = Arc::new(ReadOnlyFolder(Folder::at(path)));
        let hasher = StreamHasher::new(layout::read(&folder)?.usable(&folder)?.seed);
        let saved = newest(&folder, &hasher)?;
        let is_in_use = || Folder::at(path).is_in_use().map_err(failure("looking at the store's lock"));
        let was_in_use = is_in_use()?;
        let from = saved.last.unwrap_or(BatchLocation::FIRST);
        let (segments, end) = read_to_end(&folder, from)?;
        // Probe again after reading the log: a process that opens the store from now on does not change what was read.
        let in_use = is_in_use()?;
        let known = saved.shards.iter().map(|shard| shard.index.committed()).max().unwrap_or(0);
        let last = end.last.map(|last| segments.location(last)).transpose()?;
        // The last batch may not have reached the disk yet. It is durable if a mark or a checkpoint says so, or if no
        // process is writing: then the next opening keeps it.
        let held_back = last.filter(|last| !end.marked && in_use && end.last != saved.last && known <= *last);
        let through = held_back.map_or_else(|| segments.location(end.place), Ok)?;

        let mut log = LogReplay::new(&segments, &hasher, saved.shards, Location::MAX);
        scan::follow(&segments, from, |location, record| match location < through {
            true => log.replay(location, record),
            // Written after the end was determined.
            false => Ok(()),
        })?;
        let shards = log.shards.into_iter().zip(0..).map(|(log, tag)| {
            let shard = Arc::new(Shard::recovered(log, tag));
            (shard.id.clone(), shard)
        });
        let shards = shards.collect();
        Ok(Self { folder, shards, log: Arc::new(ReadOnlyLog { segments }), in_use: was_in_use || in_use })
    }

    /// Returns a reader of the shard's log, or `None` if the shard was never opened.
    pub fn read(&self, shard: &ShardId) -> Option<Arc<dyn ShardReader>> {
        let shard = Arc::clone(self.shards.get(shard)?);
        Some(Arc::new(EmbeddedReader::new(Arc::clone(&self.log) as Arc<dyn LogSource>, shard)))
    }

    /// Returns the last saved view of a projection. It is read now, not at the time of opening.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn view(&self, projection: &Name) -> Result<Option<View>, StoreError> {
        views::load(&self.folder, projection)
    }

    /// Returns whether a process had the store open while it was read.
    ///
    /// If not, everything that the process had written durably is included; if so, the last commits may be missing.
    pub fn was_in_use(&self) -> bool {
        self.in_use
    }
}

impl std::fmt::Debug for ReadOnlyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadOnlyStore").field("at", &self.folder.path("")).finish_non_exhaustive()
    }
}

/// Returns the newest checkpoint. If one is removed while it is read, there is a newer one.
fn newest(folder: &Arc<dyn Disk>, hasher: &StreamHasher) -> Result<checkpoint::Checkpoint, StoreError> {
    let mut saved = checkpoint::newest(folder, hasher)?;
    for _ in 1..CHECKPOINT_TRIES {
        if saved.last.is_some() || saved.number == 0 {
            break;
        }
        saved = checkpoint::newest(folder, hasher)?;
    }
    Ok(saved)
}

/// Returns the segments and the end of the log that begins at `from`.
///
/// If something follows that end, either it was written since or the batch at the end is damaged. A batch is durable
/// before anything is written after it, so in the first case the batch is readable by now.
fn read_to_end(folder: &Arc<dyn Disk>, from: BatchLocation) -> Result<(Segments, LogEnd), StoreError> {
    let mut segments = Segments::read(folder)?;
    let mut end = scan::follow(&segments, from, |_, _| Ok(()))?;
    if end.place == from && from != BatchLocation::FIRST {
        return Err(log_too_short(folder, from));
    }
    while let Some(later_write) = scan::find_later_write(&segments, end.place)? {
        segments = Segments::read(folder)?;
        let further = scan::follow(&segments, end.place, |_, _| Ok(()))?;
        if further.place == end.place {
            return Err(scan::damaged(&segments, end.place, &later_write)?);
        }
        end = further;
    }
    Ok((segments, end))
}

/// The segments of a log that is not written to: all of its known records are committed.
struct ReadOnlyLog {
    /// The segments, of which later ones may have been added since.
    segments: Segments,
}

impl LogSource for ReadOnlyLog {
    fn segments(&self) -> &Segments {
        &self.segments
    }

    fn committed(&self) -> Location {
        Location::MAX
    }

    fn spawn_read(&self, job: ReadJob) -> Option<ReadJob> {
        Some(job)
    }

    fn record_damage(&self, _: &StoreError) {}

    fn older_turns(&self, _: IdHash) -> Option<Vec<Location>> {
        // The files may be replaced concurrently; the log contains all ids.
        None
    }

    fn snapshot(&self, _: SnapshotLocation, _: &str, _: &str) -> Option<Located> {
        // The file may be replaced concurrently; the log contains all turns.
        None
    }
}

/// A folder that rejects writes.
struct ReadOnlyFolder(Folder);

/// Returns the error for a change. The reader never makes one.
fn refused<T>() -> io::Result<T> {
    Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
}

impl Disk for ReadOnlyFolder {
    fn lock(&self) -> io::Result<bool> {
        refused()
    }

    fn unlock(&self) {}

    fn names(&self) -> io::Result<Vec<String>> {
        self.0.names()
    }

    fn create(&self, _: &str) -> io::Result<Arc<dyn DiskFile>> {
        refused()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.0.open_to_read(name)
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn sync(&self) -> io::Result<()> {
        refused()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }
}

#[cfg(test)]
mod tests;
