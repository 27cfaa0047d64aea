//! Files that find a turn by the id of its message. They are sorted, written once, merged, and removed when they have
//! expired.
//!
//! Called by the [flusher](super::flusher), which writes the ids that the indexes hold in memory, and by readers. A
//! file, called a run, holds the ids of all shards for a part of the log, sorted by hash, so that a lookup reads one
//! block of each run. The list of runs is a file of its own that is replaced as a whole; a run that is not in the list
//! was not finished.
//!
//! ```text
//! run    head 64 | blocks | first hash of each block 8 | checksum of these 4
//! head   magic 8 | through 8 | newest 8 | count 8 | zeros 28 | checksum 4
//! block  up to 170 entries of 24: hash 16, location 8 | zeros | checksum 4
//! ```
//!
//! A cache: all ids are in the log. If a run is missing or damaged, the ids are read from the log again at the next
//! opening.

use std::io;
use std::sync::Arc;

use parking_lot::RwLock;

use super::disk::{Disk, DiskFile, read_all, replace};
use whizbang_core::clock::Timestamp;
use whizbang_core::telemetry::error_chain;
use whizbang_log::index::IdHash;
use whizbang_log::record::decode::Decoder;
use whizbang_log::record::{Location, Malformed, encode};

/// The name of the list of runs.
const LIST: &str = "ids";
/// The beginning of the names of runs; the number follows.
const PREFIX: &str = "ids-";
/// The name of a run until it is complete.
const UNFINISHED: &str = "ids.new-run";
/// The first bytes of a run, with its version.
const MAGIC: [u8; 8] = *b"whizids\x01";

/// The size of the header of a run.
const HEAD_BYTES: usize = 64;
/// The size of a block. A lookup reads one block of each run.
const BLOCK_BYTES: usize = 4096;
/// The size of an entry: a hash of 16 bytes and a location of 8.
const ENTRY_BYTES: usize = 24;
/// The entries of a full block, before its checksum.
const ENTRIES_PER_BLOCK: usize = (BLOCK_BYTES - 4) / ENTRY_BYTES;

/// The number of adjacent runs of similar size that are merged into one, so that a lookup reads few runs.
const MERGE_WIDTH: usize = 4;

/// Runs are not merged beyond this many ids. A run is dropped as a whole when its newest id has expired, so large runs
/// would keep old ids too long.
const LARGEST_MERGE: u64 = 16 * 1024 * 1024;

/// The number of blocks read and written at once while runs are merged.
const BLOCKS_AT_ONCE: usize = 64;

/// An id and the location of its turn.
pub(super) type Entry = (IdHash, Location);

/// A file with sorted ids. It never changes.
struct Run {
    /// The number in its name.
    number: u64,
    /// The number of ids in it.
    count: u64,
    /// The time of its newest turn. The file is removed when that has expired.
    newest: Timestamp,
    /// The first half of the first hash in each block.
    fences: Vec<u64>,
    /// The open file. A run that was merged stays readable until its last reader is done.
    file: Arc<dyn DiskFile>,
}

/// The current files, and what they cover.
#[derive(Default)]
struct State {
    /// Oldest first.
    runs: Vec<Arc<Run>>,
    /// The highest number ever assigned.
    last: u64,
    /// The runs hold the ids of all records from `from` to before `through`, except expired ones.
    from: Location,
    /// The end of the range of the log that the runs cover.
    through: Location,
}

/// All runs of a store.
pub(super) struct IdRuns {
    /// The folder of the store.
    disk: Arc<dyn Disk>,
    /// Replaced when files are written or merged. Readers continue with the files that they have.
    state: RwLock<State>,
}

/// Returns the name of a file.
fn name(number: u64) -> String {
    format!("{PREFIX}{number:010}")
}

/// Returns the number in the name of a file.
fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

impl IdRuns {
    /// Opens the listed runs. If one cannot be used, or without a list, there are no runs.
    pub(super) fn open(disk: &Arc<dyn Disk>) -> Self {
        let state = match read_list(disk) {
            Ok(state) => state,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => {
                tracing::warn!(
                    target: whizbang_core::telemetry::TARGET, error = %error_chain(&error),
                    "index of ids discarded: it will be rebuilt from the log",
                );
                State::default()
            }
        };
        let runs = Self { disk: Arc::clone(disk), state: RwLock::new(state) };
        if runs.state.read().runs.is_empty() {
            runs.state.write().last = runs.numbers().into_iter().max().unwrap_or(0);
        }
        runs
    }

    /// Removes all runs. Later runs will hold the ids of the records from `from` on.
    pub(super) fn reset(&self, from: Location) {
        let mut state = self.state.write();
        state.runs.clear();
        (state.from, state.through) = (from, from);
    }

    /// Returns the location from which the runs hold the ids; 0 if they hold all.
    pub(super) fn from(&self) -> Location {
        self.state.read().from
    }

    /// Returns the numbers of the current files.
    fn numbers(&self) -> Vec<u64> {
        self.disk.names().unwrap_or_default().iter().filter_map(|name| number_of(name)).collect()
    }

    /// Returns the location before which the runs hold the ids.
    pub(super) fn through(&self) -> Location {
        self.state.read().through
    }

    /// Returns the number of runs.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.state.read().runs.len()
    }

    /// Returns the locations of the turns with an id, newest first. Reads one block of each run.
    ///
    /// # Errors
    /// If a run is damaged or cannot be read.
    pub(super) fn find(&self, id: IdHash) -> io::Result<Vec<Location>> {
        let runs = self.state.read().runs.clone();
        let mut found = Vec::new();
        for run in runs.iter().rev() {
            found.extend(run.find(id)?);
        }
        Ok(found)
    }

    /// Writes a run with the ids of all records before `through` that are in no run yet, durably. `newest` is the time of the
    /// newest turn among them. Merges runs of similar size afterwards. Each id is therefore copied a number of times that
    /// grows with the logarithm of their number.
    ///
    /// # Errors
    /// Those of the disk. The ids are in no run then, and the caller keeps them in memory.
    pub(super) fn write(&self, mut entries: Vec<Entry>, through: Location, newest: Timestamp) -> io::Result<()> {
        entries.sort_unstable();
        // If several turns have the same id, keep the last one.
        entries.reverse();
        entries.dedup_by_key(|(id, _)| *id);
        entries.reverse();
        let mut runs = self.state.read().runs.clone();
        if !entries.is_empty() {
            let mut entries = entries.into_iter();
            runs.push(self.write_run(through, newest, &mut || Ok(entries.next()))?);
        }
        self.replace_list(runs, through)?;
        while self.merge()? {}
        Ok(())
    }

    /// Drops the runs whose turns are all older than `before`. A run is dropped as a whole, so an id may live longer than it
    /// has to.
    pub(super) fn forget(&self, before: Timestamp) -> io::Result<()> {
        let (runs, through) = {
            let state = self.state.read();
            (state.runs.clone(), state.through)
        };
        let kept: Vec<_> = runs.iter().filter(|run| run.newest >= before).cloned().collect();
        if kept.len() == runs.len() { Ok(()) } else { self.replace_list(kept, through) }
    }

    /// Merges adjacent runs of similar size if there are enough of them. Returns whether it did. Bounded by
    /// [`LARGEST_MERGE`], so that one call does not block the flusher for long.
    fn merge(&self) -> io::Result<bool> {
        let (runs, through) = {
            let state = self.state.read();
            (state.runs.clone(), state.through)
        };
        let Some(first) = runs.len().checked_sub(MERGE_WIDTH) else { return Ok(false) };
        let last = runs.get(first..).unwrap_or_default();
        let (sizes, total) = (last.iter().map(|run| run.count), last.iter().map(|run| run.count).sum::<u64>());
        let (least, most) = (sizes.clone().min().unwrap_or(0), sizes.max().unwrap_or(0));
        if total > LARGEST_MERGE || most > least.saturating_mul(MERGE_WIDTH as u64) {
            return Ok(false);
        }
        let newest = last.iter().map(|run| run.newest).max().unwrap_or_default();
        let mut walks: Vec<RunCursor> = last.iter().map(RunCursor::new).collect();
        let merged = self.write_run(through, newest, &mut || next_merged(&mut walks))?;
        let mut runs: Vec<_> = runs.get(..first).unwrap_or_default().to_vec();
        runs.push(merged);
        self.replace_list(runs, through)?;
        Ok(true)
    }

    /// Writes a file with the ids that `next` returns in order. A partial file is removed after an error.
    fn write_run(
        &self,
        through: Location,
        newest: Timestamp,
        next: &mut dyn FnMut() -> io::Result<Option<Entry>>,
    ) -> io::Result<Arc<Run>> {
        let made = self.write_run_file(through, newest, next);
        if made.is_err() {
            // Remove the partial file, because its space may be just what is missing.
            let _ = self.disk.remove(UNFINISHED);
        }
        made
    }

    /// Writes the blocks, the first hash of each block, and last the header, then renames the file.
    ///
    /// # Errors
    /// Those of the disk and of `next`. The unfinished file may be left; the caller removes it.
    fn write_run_file(
        &self,
        through: Location,
        newest: Timestamp,
        next: &mut dyn FnMut() -> io::Result<Option<Entry>>,
    ) -> io::Result<Arc<Run>> {
        let file = self.disk.create(UNFINISHED)?;
        let (mut piece, mut offset, mut count, mut fences) = (Vec::new(), HEAD_BYTES as u64, 0u64, Vec::new());
        loop {
            let mut block = Vec::with_capacity(BLOCK_BYTES);
            while block.len() < ENTRIES_PER_BLOCK * ENTRY_BYTES {
                let Some((IdHash(first, second), location)) = next()? else { break };
                if block.is_empty() {
                    fences.push(first);
                }
                for number in [first, second, location] {
                    block.extend_from_slice(&number.to_le_bytes());
                }
                count += 1;
            }
            let is_last = block.len() < ENTRIES_PER_BLOCK * ENTRY_BYTES;
            if !block.is_empty() {
                block.resize(BLOCK_BYTES - 4, 0);
                block.extend_from_slice(&crc32fast::hash(&block).to_le_bytes());
                piece.extend_from_slice(&block);
            }
            if is_last || piece.len() >= BLOCKS_AT_ONCE * BLOCK_BYTES {
                file.write_at(&piece, offset)?;
                offset += piece.len() as u64;
                piece.clear();
            }
            if is_last {
                break;
            }
        }
        let mut last: Vec<u8> = fences.iter().flat_map(|fence| fence.to_le_bytes()).collect();
        last.extend_from_slice(&crc32fast::hash(&last).to_le_bytes());
        file.write_at(&last, offset)?;
        let mut head = MAGIC.to_vec();
        for number in [through, newest.as_millis(), count] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        head.resize(HEAD_BYTES - 4, 0);
        head.extend_from_slice(&crc32fast::hash(&head).to_le_bytes());
        file.write_at(&head, 0)?;
        file.sync()?;
        let number = {
            let mut state = self.state.write();
            state.last += 1;
            state.last
        };
        self.disk.rename(UNFINISHED, &name(number))?;
        let file = self.disk.open(&name(number))?;
        Ok(Arc::new(Run { number, count, newest, fences, file }))
    }

    /// Replaces the list of runs, durably, and removes the files of all others. A crash before the rename leaves the old
    /// list, and the new files are removed at the next opening.
    fn replace_list(&self, runs: Vec<Arc<Run>>, through: Location) -> io::Result<()> {
        let mut list = MAGIC.to_vec();
        encode::number(&mut list, self.from());
        encode::number(&mut list, through);
        encode::number(&mut list, runs.len() as u64);
        for run in &runs {
            encode::number(&mut list, run.number);
        }
        list.extend_from_slice(&crc32fast::hash(&list).to_le_bytes());
        // This flushes the folder, so the names of the listed files are durable as well.
        replace(&*self.disk, LIST, &list)?;
        let listed: Vec<u64> = runs.iter().map(|run| run.number).collect();
        {
            let mut state = self.state.write();
            state.runs = runs;
            state.through = through;
        }
        for number in self.numbers().into_iter().filter(|number| !listed.contains(number)) {
            self.disk.remove(&name(number))?;
        }
        Ok(())
    }
}

/// Opens the files that the list names.
fn read_list(disk: &Arc<dyn Disk>) -> io::Result<State> {
    let bytes = read_all(&**disk, LIST)?;
    let (from, through, numbers) = parse_list(&bytes).map_err(|Malformed(reason)| io::Error::other(reason))?;
    let mut state = State { from, through, ..State::default() };
    for number in numbers {
        state.runs.push(Arc::new(Run::open(disk, number)?));
        state.last = state.last.max(number);
    }
    Ok(state)
}

/// Parses the list of files with the range of the log that they cover.
fn parse_list(bytes: &[u8]) -> Result<(Location, Location, Vec<u64>), Malformed> {
    let (content, sum) = bytes.split_last_chunk::<4>().ok_or(Malformed("unexpected end of the file"))?;
    if crc32fast::hash(content) != u32::from_le_bytes(*sum) {
        return Err(Malformed("its checksum is wrong"));
    }
    let decoder = &mut Decoder(content);
    if decoder.array()? != MAGIC {
        return Err(Malformed("unknown format"));
    }
    let (from, through) = (decoder.number()?, decoder.number()?);
    let count = decoder.count()?;
    let numbers = (0..count).map(|_| decoder.number()).collect::<Result<_, _>>()?;
    Ok((from, through, numbers))
}

/// Returns the error for a damaged file. The lookup then reads the stream in the log, which has all ids.
fn damaged(number: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", name(number)))
}

/// Reads a number from a block.
fn number_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Returns the bytes before the checksum at their end if the checksum is correct.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (content, sum) = bytes.split_last_chunk::<4>()?;
    (crc32fast::hash(content) == u32::from_le_bytes(*sum)).then_some(content)
}

impl Run {
    /// Opens a file and checks its header.
    fn open(disk: &Arc<dyn Disk>, number: u64) -> io::Result<Self> {
        let file = disk.open(&name(number))?;
        let mut head = [0; HEAD_BYTES];
        file.read_at(&mut head, 0)?;
        let parsed = checked(&head).filter(|head| head.starts_with(&MAGIC));
        let parsed = parsed.and_then(|head| Some((number_at(head, 16)?, number_at(head, 24)?)));
        let (newest, count) = parsed.ok_or_else(|| damaged(number))?;
        let blocks = count.div_ceil(ENTRIES_PER_BLOCK as u64);
        let offset = HEAD_BYTES as u64 + blocks * BLOCK_BYTES as u64;
        let length = blocks * 8 + 4;
        if file.length()? != offset + length {
            return Err(damaged(number));
        }
        let mut fences = vec![0; usize::try_from(length).map_err(|_| damaged(number))?];
        file.read_at(&mut fences, offset)?;
        let fences = checked(&fences).ok_or_else(|| damaged(number))?;
        let (fences, _) = fences.as_chunks::<8>();
        let fences = fences.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        Ok(Self { number, count, newest: Timestamp::from_millis(newest), fences, file })
    }

    /// Finds an id by a search of blocks: one or two reads.
    fn find(&self, id: IdHash) -> io::Result<Option<Location>> {
        // Hashes with the same first half may be on both sides of a fence.
        let end = self.fences.partition_point(|fence| *fence <= id.0);
        let mut block = end;
        while let Some(before) = block.checked_sub(1) {
            let entries = self.read(before, 1)?;
            if let Ok(at) = entries.binary_search_by_key(&id, |(id, _)| *id) {
                return Ok(entries.get(at).map(|(_, location)| *location));
            }
            if self.fences.get(before).is_none_or(|fence| *fence < id.0) {
                break;
            }
            block = before;
        }
        Ok(None)
    }

    /// Returns the entries of up to `count` blocks from block number `block`.
    fn read(&self, block: usize, count: usize) -> io::Result<Vec<Entry>> {
        let count = count.min(self.fences.len().saturating_sub(block));
        let mut bytes = vec![0; count * BLOCK_BYTES];
        self.file.read_at(&mut bytes, HEAD_BYTES as u64 + (block * BLOCK_BYTES) as u64)?;
        let mut entries = Vec::with_capacity(count * ENTRIES_PER_BLOCK);
        let before = block as u64 * ENTRIES_PER_BLOCK as u64;
        for bytes in bytes.chunks(BLOCK_BYTES) {
            let content = checked(bytes).ok_or_else(|| damaged(self.number))?;
            for entry in content.chunks_exact(ENTRY_BYTES) {
                if before + entries.len() as u64 >= self.count {
                    break;
                }
                let entry = number_at(entry, 0).zip(number_at(entry, 8)).zip(number_at(entry, 16));
                let ((first, second), location) = entry.ok_or_else(|| damaged(self.number))?;
                entries.push((IdHash(first, second), location));
            }
        }
        Ok(entries)
    }
}

/// Iterates over the entries of a run while it is merged with others.
struct RunCursor {
    /// The run that is read.
    run: Arc<Run>,
    /// The next block to read.
    block: usize,
    /// The rest of the blocks in memory.
    entries: std::vec::IntoIter<Entry>,
    /// The next entry, if it was looked at already.
    next: Option<Entry>,
}

impl RunCursor {
    /// Returns a cursor before the first entry. Nothing is read yet.
    fn new(run: &Arc<Run>) -> Self {
        Self { run: Arc::clone(run), block: 0, entries: Vec::new().into_iter(), next: None }
    }

    /// Returns the next entry without taking it; `None` at the end of the run.
    fn peek(&mut self) -> io::Result<Option<Entry>> {
        if self.next.is_none() {
            self.next = self.entries.next();
        }
        if self.next.is_none() && self.block < self.run.fences.len() {
            self.entries = self.run.read(self.block, BLOCKS_AT_ONCE)?.into_iter();
            self.block += BLOCKS_AT_ONCE;
            self.next = self.entries.next();
        }
        Ok(self.next)
    }
}

/// Returns the smallest next entry of all runs. If several turns have the same id, it is the last of them.
fn next_merged(walks: &mut [RunCursor]) -> io::Result<Option<Entry>> {
    let mut least: Option<Entry> = None;
    for walk in walks.iter_mut() {
        if let Some((id, location)) = walk.peek()? {
            least = Some(match least {
                Some((known, at)) if known < id => (known, at),
                Some((known, at)) if known == id => (known, at.max(location)),
                _ => (id, location),
            });
        }
    }
    if let Some((id, _)) = least {
        for walk in walks.iter_mut() {
            if walk.next.is_some_and(|(next, _)| next == id) {
                walk.next = None;
            }
        }
    }
    Ok(least)
}

#[cfg(test)]
mod tests;
