//! Reads a store that another process may be working with, without getting in its way.
//!
//! Called by programs that look: reports, pictures, checks. Reads the newest checkpoint, then the log behind it, as an opening
//! does, but keeps no lock, cleans no end and writes nothing: the folder it is given cannot write.
//! Whatever the other process does meanwhile, what is read is everything that was durable up to some moment, and nothing else.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::index::StreamHasher;
use super::super::index::ids::IdHash;
use super::super::record::Location;
use super::super::traverse::Located;
use super::disk::{Disk, DiskFile, Folder};
use super::recover::{LogReplay, log_too_short};
use super::scan::{self, BatchLocation, LogEnd};
use super::segment::Segments;
use super::shard::{EmbeddedReader, LogSource, ReadJob, Shard};
use super::snapshots::SnapshotLocation;
use super::{EmbeddedStore, checkpoint, failure, layout, views};
use crate::message::{Name, ShardId};
use crate::store::{ShardReader, StoreError, View};

/// How often a checkpoint is looked for that another process replaces at the same time.
const CHECKPOINT_TRIES: usize = 5;

/// What stood in a store at one moment. Opened with [`EmbeddedStore::read_only`].
///
/// It does not follow the store: read it again to see more. It has all commits of all shards up to one place in the log, whole
/// turns only: what a commit in it was caused by within this store is in it, too.
pub struct ReadOnlyStore {
    folder: Arc<dyn Disk>,
    shards: HashMap<ShardId, Arc<Shard>>,
    log: Arc<ReadOnlyLog>,
    in_use: bool,
}

impl EmbeddedStore {
    /// Reads the store in `folder` as it is now, also while a process works with it. Keeps nobody from opening it, and writes
    /// nothing. Blocks while it reads the log behind the newest checkpoint; keeps the index of all streams in
    /// memory, as the store itself does, and no snapshots.
    ///
    /// What is missing: commits that were not durable yet when it was read; of a store in use that includes the last ones that
    /// were, if nothing has been written behind them. Streams are read from their first turn, without their snapshots. Views
    /// are those that were saved, which may be seconds behind.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if no store is there, [`StoreError::Newer`] if a newer version wrote it,
    /// [`StoreError::Corrupt`] if it is damaged, [`StoreError::Io`]. A process that works with it never makes it seem damaged.
    pub fn read_only(folder: impl AsRef<Path>) -> Result<ReadOnlyStore, StoreError> {
        ReadOnlyStore::open(folder.as_ref())
    }
}

impl ReadOnlyStore {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let folder: Arc<dyn Disk> = Arc::new(ReadOnlyFolder(Folder::at(path)));
        let hasher = StreamHasher::new(layout::read(&folder)?);
        let saved = newest(&folder, &hasher)?;
        let is_in_use = || Folder::at(path).is_in_use().map_err(failure("looking at the store's lock"));
        let was_in_use = is_in_use()?;
        let from = saved.last.unwrap_or(BatchLocation::FIRST);
        let (segments, end) = read_to_end(&folder, from)?;
        // Asked for again behind the log: whoever comes from now on leaves alone what was read.
        let in_use = is_in_use()?;
        let known = saved.shards.iter().map(|shard| shard.index.committed()).max().unwrap_or(0);
        let last = end.last.map(|last| segments.location(last)).transpose()?;
        // The last batch may be on its way to the disk. It has arrived if a mark says so, if a checkpoint knows of it, or if
        // nobody is there who would have to write it: then it is what the next opening keeps.
        let held_back = last.filter(|last| !end.marked && in_use && end.last != saved.last && known <= *last);
        let through = held_back.map_or_else(|| segments.location(end.place), Ok)?;

        let mut log = LogReplay::new(&segments, &hasher, saved.shards, Location::MAX);
        scan::follow(&segments, from, |location, record| match location < through {
            true => log.replay(location, record),
            // Written since.
            false => Ok(()),
        })?;
        let shards = log.shards.into_iter().zip(0..).map(|(log, tag)| {
            let shard = Arc::new(Shard::recovered(log, tag));
            (shard.id.clone(), shard)
        });
        let shards = shards.collect();
        Ok(Self { folder, shards, log: Arc::new(ReadOnlyLog { segments }), in_use: was_in_use || in_use })
    }

    /// The shard's log as it was; `None` if the shard was never opened.
    pub fn read(&self, shard: &ShardId) -> Option<Arc<dyn ShardReader>> {
        let shard = Arc::clone(self.shards.get(shard)?);
        Some(Arc::new(EmbeddedReader::new(Arc::clone(&self.log) as Arc<dyn LogSource>, shard)))
    }

    /// The view that was last saved for a projection, as it is now.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn view(&self, projection: &Name) -> Result<Option<View>, StoreError> {
        views::load(&self.folder, projection)
    }

    /// Whether a process worked with the store while it was read.
    pub fn was_in_use(&self) -> bool {
        self.in_use
    }
}

impl std::fmt::Debug for ReadOnlyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadOnlyStore").field("at", &self.folder.path("")).finish_non_exhaustive()
    }
}

/// The newest checkpoint. One that is taken away while it is opened has a newer one in its place.
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

/// The segments, and where the log ends that begins at `from`.
///
/// If something stands behind that end, it was either written since or the batch at the end is damaged. A batch is durable
/// before anything is written behind it, so in the first case it can be read by now.
fn read_to_end(folder: &Arc<dyn Disk>, from: BatchLocation) -> Result<(Segments, LogEnd), StoreError> {
    let mut segments = Segments::read(folder)?;
    let mut end = scan::follow(&segments, from, |_, _| Ok(()))?;
    if end.place == from && from != BatchLocation::FIRST {
        return Err(log_too_short(folder, from));
    }
    while let Some(sign) = scan::find_later_write(&segments, end.place)? {
        segments = Segments::read(folder)?;
        let further = scan::follow(&segments, end.place, |_, _| Ok(()))?;
        if further.place == end.place {
            return Err(scan::damaged(&segments, end.place, &sign)?);
        }
        end = further;
    }
    Ok((segments, end))
}

/// The segments of a log that is not written to: everything known of it is committed.
struct ReadOnlyLog {
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
        // The files may be replaced meanwhile; the log has everything.
        None
    }

    fn snapshot(&self, _: SnapshotLocation, _: &str, _: &str) -> Option<Located> {
        // Its file may be replaced meanwhile; the log has everything.
        None
    }
}

/// A folder in which nothing can be written.
struct ReadOnlyFolder(Folder);

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
