//! The files of the log: numbered, of a fixed size, and filled with zeros in advance.
//!
//! Called by all readers and writers of the log. A segment is never resized or removed.
//!
//! A location is a position in all segments together, as if they were one file. A record keeps its location for ever, so
//! links between records and the places in indexes never change.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::disk::{Disk, DiskFile, is_full};
use super::frame::sum;
use super::{EmbeddedConfig, failure};
use whizbang_core::store::StoreError;
use whizbang_log::record::Location;

/// Records begin after the block with the segment's header.
pub(super) const FIRST_OFFSET: u64 = 512;

/// The number of open files of full segments.
const OPEN_FILES: usize = 32;

/// The number of zeros flushed at once. Flushing all of them together would delay the flushes of the log behind them.
const FLUSH_CHUNK_BYTES: u64 = 2 * 1024 * 1024;

/// The size of a segment's header.
const HEAD_BYTES: usize = 52;
/// The first bytes of a segment, with the version of the format.
const MAGIC: [u8; 8] = *b"whizlog\x01";
/// The beginning of the names of segments; the number follows.
const PREFIX: &str = "log-";
/// The name of a segment until all its zeros are flushed.
const UNFINISHED: &str = "log.new";

/// The place in the log where a batch begins, and the number it must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchLocation {
    /// The number of the segment.
    pub(super) segment: u64,
    /// The offset in its file.
    pub(super) offset: u64,
    /// The number of the batch. Batches are numbered through all segments.
    pub(super) batch: u64,
}

impl BatchLocation {
    /// The place of the first batch of a log.
    pub(super) const FIRST: Self = Self { segment: 1, offset: FIRST_OFFSET, batch: 1 };
}

/// One file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Numbered from 1.
    pub(super) number: u64,
    /// The location of its first byte.
    pub(super) start: Location,
    /// Its size in bytes.
    pub(super) size: u64,
    /// The salt of its checksums.
    pub(super) salt: u64,
}

impl Segment {
    /// Returns the location after its last byte.
    pub(super) fn end(&self) -> Location {
        self.start + self.size
    }

    /// Returns the name of its file.
    pub(super) fn name(&self) -> String {
        name(self.number)
    }

    /// Returns the segment's header, as at the beginning of its file.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        for number in [self.number, self.start, self.size, self.salt] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        let sum = sum(0, 0, 0, &head);
        head.extend_from_slice(&[0; 8]);
        head.extend_from_slice(&sum.to_le_bytes());
        head
    }

    /// Parses a header; `None` if it is damaged.
    fn read(head: &[u8]) -> Option<Self> {
        let (content, rest) = head.split_at_checked(40)?;
        let (magic, content_rest) = content.split_first_chunk::<8>()?;
        let (padding, found) = rest.split_at_checked(8)?;
        if *magic != MAGIC || padding != [0; 8] || found != sum(0, 0, 0, content).to_le_bytes() {
            return None;
        }
        let (numbers, _) = content_rest.as_chunks::<8>();
        let [number, start, size, salt] = <[[u8; 8]; 4]>::try_from(numbers).ok()?.map(u64::from_le_bytes);
        start.checked_add(size).filter(|_| size > FIRST_OFFSET)?;
        Some(Self { number, start, size, salt })
    }
}

/// The segment after the current one. It is created before it is needed, so that appends are rejected when there is no
/// space for it, and accepted records can always be written.
#[derive(Clone, Debug)]
pub(super) enum NextSegment {
    /// It exists.
    Ready(Arc<Segment>),
    /// It is being created.
    Pending,
    /// It could not be created.
    Failed(StoreError),
}

/// Returns the file name of a segment.
pub(super) fn name(number: u64) -> String {
    format!("{PREFIX}{number:010}")
}

/// All segments, and the open files of recently used ones.
pub(super) struct Segments {
    /// The folder.
    disk: Arc<dyn Disk>,
    /// In the order of their numbers. One location range follows the other.
    all: RwLock<Vec<Arc<Segment>>>,
    /// At most [`OPEN_FILES`], the one opened first at the front.
    open: Mutex<VecDeque<(u64, Arc<dyn DiskFile>)>>,
}

impl Segments {
    /// Finds the existing segments and removes an unfinished one.
    pub(super) fn find(disk: &Arc<dyn Disk>) -> Result<Self, StoreError> {
        let names = disk.names().map_err(failure("listing the store's folder"))?;
        if names.iter().any(|name| name == UNFINISHED) {
            disk.remove(UNFINISHED).map_err(failure("removing an unfinished segment"))?;
        }
        // A process that renamed a file may have crashed before the new name was durable. Data written to the file from
        // now on depends on its name.
        disk.sync().map_err(failure("flushing the store's folder"))?;
        Self::read(disk)
    }

    /// Finds the existing segments without changing anything. Each header is checked, so a missing or exchanged file is found
    /// at once.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] names the file.
    pub(super) fn read(disk: &Arc<dyn Disk>) -> Result<Self, StoreError> {
        let names = disk.names().map_err(failure("listing the store's folder"))?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.strip_prefix(PREFIX)?.parse().ok()).collect();
        numbers.sort_unstable();
        let segments = Self {
            disk: Arc::clone(disk),
            all: RwLock::default(),
            open: Mutex::new(VecDeque::with_capacity(OPEN_FILES)),
        };
        let mut start = 0;
        for (number, expected) in numbers.iter().zip(1..) {
            if *number != expected {
                return Err(damaged(disk, expected, 0, "the file is missing, but later segments exist"));
            }
            let segment = segments.read_segment(*number)?;
            if segment.number != *number || segment.start != start {
                return Err(damaged(disk, *number, 0, "its header has another segment number than its name"));
            }
            start = segment.end();
            segments.all.write().push(Arc::new(segment));
        }
        Ok(segments)
    }

    /// Reads and checks the header of a segment.
    fn read_segment(&self, number: u64) -> Result<Segment, StoreError> {
        let file = self.disk.open(&name(number)).map_err(failure("opening a segment"))?;
        let mut head = [0; HEAD_BYTES];
        let read = file.read_at(&mut head, 0).map_err(failure("reading a segment's header"))?;
        let segment = head.get(..read).and_then(Segment::read);
        let segment = segment.ok_or_else(|| damaged(&self.disk, number, 0, "the segment's header is damaged"))?;
        let length = file.length().map_err(failure("reading a segment's length"))?;
        if length < segment.size {
            return Err(damaged(&self.disk, number, length, "the file is shorter than its header says"));
        }
        Ok(segment)
    }

    /// Returns the segment after number `after`, and creates it if needed. A segment appears completely or not at all. Blocks
    /// while the zeros are written and flushed. The caller is the thread for that, never an actor.
    ///
    /// # Errors
    /// Those of the disk. A full disk is tried again with half the size, down to the size that every turn fits into.
    pub(super) fn preallocate(&self, after: u64, config: &EmbeddedConfig, salt: u64) -> io::Result<Arc<Segment>> {
        // A crash may have left several segments after the end of the log. A skipped one is never used again.
        let made = self.all.read().iter().find(|segment| segment.number > after).cloned();
        if let Some(made) = made {
            return Ok(made);
        }
        let (number, start) = self.all.read().last().map_or((1, 0), |last| (last.number + 1, last.end()));
        let mut size = config.size_of_segment(number);
        loop {
            let segment = Arc::new(Segment { number, start, size, salt });
            let Err(error) = self.make(&segment) else {
                self.all.write().push(Arc::clone(&segment));
                return Ok(segment);
            };
            // Remove the partial file, because its space may be just what is missing.
            let _ = self.disk.remove(UNFINISHED);
            // If a large file does not fit, a smaller one may, down to the size of the largest turn.
            size /= 2;
            if !is_full(&error) || size < config.size_of_segment(1) {
                return Err(error);
            }
        }
    }

    /// Creates a segment under another name, and renames it when it is durable.
    fn make(&self, segment: &Segment) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let file = self.disk.create(UNFINISHED)?;
        let mut offset = 0;
        // Write the zeros instead of only allocating: otherwise the first write to each block also changes the file's
        // metadata, and a flush costs twice as much.
        while offset < segment.size {
            let length = usize::try_from(segment.size - offset).unwrap_or(usize::MAX).min(ZEROS.len());
            file.write_at(ZEROS.get(..length).unwrap_or_default(), offset)?;
            offset += length as u64;
            if offset.is_multiple_of(FLUSH_CHUNK_BYTES) {
                file.sync()?;
            }
        }
        file.write_at(&segment.head(), 0)?;
        file.sync()?;
        self.disk.rename(UNFINISHED, &segment.name())?;
        self.disk.sync()
    }

    /// Returns all segments, oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Segment>> {
        self.all.read().clone()
    }

    /// Returns the segment that contains `location`.
    pub(super) fn at(&self, location: Location) -> Option<Arc<Segment>> {
        let all = self.all.read();
        let nth = all.partition_point(|segment| segment.start <= location).checked_sub(1)?;
        all.get(nth).filter(|segment| location < segment.end()).cloned()
    }

    /// Returns the location of a place.
    pub(super) fn location(&self, place: BatchLocation) -> Result<Location, StoreError> {
        let all = self.all.read();
        let segment = all.iter().find(|segment| segment.number == place.segment);
        // An empty log begins at the start of its future first segment.
        let start = segment.map(|segment| segment.start).or((place == BatchLocation::FIRST).then_some(0));
        start.map(|start| start + place.offset).ok_or(StoreError::Closed)
    }

    /// Returns the open file of a segment. Opened under the lock: a look-up costs at most [`OPEN_FILES`] comparisons.
    pub(super) fn file(&self, segment: &Segment) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.open.lock();
        if let Some((_, file)) = open.iter().find(|(number, _)| *number == segment.number) {
            return Ok(Arc::clone(file));
        }
        let file = self.disk.open(&segment.name())?;
        if open.len() >= OPEN_FILES {
            open.pop_front();
        }
        open.push_back((segment.number, Arc::clone(&file)));
        Ok(file)
    }

    /// Returns the path of a segment for messages.
    pub(super) fn path(&self, segment: &Segment) -> String {
        self.disk.path(&segment.name()).display().to_string()
    }

    /// Returns the error for invalid bytes at `location`.
    pub(super) fn damaged(&self, location: Location, reason: &str) -> StoreError {
        match self.at(location) {
            Some(segment) => damaged(&self.disk, segment.number, location - segment.start, reason),
            None => StoreError::Corrupt { file: self.disk.path(""), offset: location, reason: reason.to_owned() },
        }
    }
}

/// Returns the error for a damaged segment, with file and offset.
fn damaged(disk: &Arc<dyn Disk>, number: u64, offset: u64, reason: &str) -> StoreError {
    StoreError::Corrupt { file: disk.path(&name(number)), offset, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
