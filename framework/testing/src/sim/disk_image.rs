//! A simulated disk that keeps flushed data and an arbitrary subset of the other sectors.
//!
//! Used by the store on disk as its folder. Each generation belongs to one incarnation of a node; once it has ended, its handles
//! can neither read nor write. After a power failure, unflushed writes survive sector by sector, and of the unflushed changes of
//! names a prefix survives. If only the node is killed, the next generation finds all writes, and the unflushed ones may be lost
//! in a later power failure.
//!
//! The smallest unit that survives or not is a sector. A write that was flushed survives always. The store on disk must
//! therefore find torn records by their checksums, and must flush the folder after it has created or renamed a file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use whizbang_core::message::IdSource;
use whizbang_store_embedded::{Disk, DiskFile};

/// One of this many generations ends without a power failure.
const KILL_ONE_IN: u64 = 3;

/// The unit that is written completely or not at all.
const SECTOR: usize = 512;

/// The disk of one simulated service. Clones refer to the same disk.
#[derive(Clone)]
pub(super) struct DiskImage(Arc<Mutex<State>>);

/// The state of the disk. Invariant: `flushed` contains what a power failure certainly leaves, and `files` what the running
/// store sees.
struct State {
    /// Incremented by a power failure or a kill.
    generation: u64,
    /// The store of this generation has locked the folder.
    locked: bool,
    /// The files by name, as the running store sees them.
    files: BTreeMap<String, Arc<Mutex<Content>>>,
    /// The names that survive a power failure.
    flushed: BTreeMap<String, Arc<Mutex<Content>>>,
    /// Changes of names since the last flush.
    unflushed_names: Vec<NameChange>,
    /// The number of changes until this generation ends.
    changes_left: Option<u64>,
    /// The source of the decisions about what survives.
    rng: IdSource,
}

/// A change of names in the folder. It is durable once the folder is flushed.
enum NameChange {
    /// A new file, with its content.
    Create(String, Arc<Mutex<Content>>),
    /// A rename, from and to. It replaces a file of the new name.
    Rename(String, String),
    /// A removal.
    Remove(String),
}

/// The content of one file. Invariant: `flushed` is what a power failure leaves if it leaves nothing else.
#[derive(Default)]
struct Content {
    /// The bytes as the running store sees them.
    bytes: Vec<u8>,
    /// The bytes at the last flush.
    flushed: Vec<u8>,
    /// Sectors written since the last flush.
    dirty: BTreeSet<usize>,
}

impl Content {
    /// Simulates a power failure: each unflushed sector is kept or lost.
    fn fail(&mut self, rng: &IdSource) {
        // The length grows with the first kept sector behind the old end.
        let mut survived = std::mem::take(&mut self.flushed);
        for sector in std::mem::take(&mut self.dirty) {
            let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(self.bytes.len()));
            if rng.below(2) == 1
                && let Some(new) = self.bytes.get(from..to)
            {
                survived.resize(survived.len().max(to), 0);
                if let Some(old) = survived.get_mut(from..to) {
                    old.copy_from_slice(new);
                }
            }
        }
        self.bytes.clone_from(&survived);
        self.flushed = survived;
    }
}

impl NameChange {
    /// Makes the change in a list of files.
    fn apply_to(self, names: &mut BTreeMap<String, Arc<Mutex<Content>>>) {
        match self {
            Self::Create(name, content) => drop(names.insert(name, content)),
            Self::Rename(from, to) => {
                if let Some(content) = names.remove(&from) {
                    names.insert(to, content);
                }
            }
            Self::Remove(name) => drop(names.remove(&name)),
        }
    }
}

impl State {
    /// Counts a change. Returns an error if this generation has ended.
    fn record_change(&mut self, generation: u64) -> io::Result<()> {
        if let Some(changes_left) = &mut self.changes_left {
            match changes_left.checked_sub(1) {
                Some(left) => *changes_left = left,
                None => self.end_generation(),
            }
        }
        if self.generation == generation { Ok(()) } else { Err(io::Error::other("simulated power failure")) }
    }

    /// Ends the generation of a node that was killed. In most cases the power fails as well, so that unflushed data is lost.
    fn end_generation(&mut self) {
        self.generation += 1;
        self.locked = false;
        self.changes_left = None;
        if self.rng.below(KILL_ONE_IN) > 0 {
            self.power_off();
        }
    }

    /// Loses unflushed data: a random prefix of the changes of names survives, and a random subset of the sectors of each
    /// file.
    fn power_off(&mut self) {
        let unflushed_names = std::mem::take(&mut self.unflushed_names);
        let survivors = usize::try_from(self.rng.below(unflushed_names.len() as u64 + 1)).unwrap_or(0);
        for change in unflushed_names.into_iter().take(survivors) {
            change.apply_to(&mut self.flushed);
        }
        self.files = self.flushed.clone();
        for content in self.files.values() {
            content.lock().fail(&self.rng);
        }
    }
}

impl DiskImage {
    /// Creates an empty disk.
    pub(super) fn new(rng: IdSource) -> Self {
        let (files, flushed) = (BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(State {
            generation: 0,
            locked: false,
            files,
            flushed,
            unflushed_names: Vec::new(),
            changes_left: None,
            rng,
        })))
    }

    /// Mounts the disk for the current generation.
    pub(super) fn mount(&self) -> MountedDisk {
        MountedDisk { image: self.clone(), generation: self.0.lock().generation }
    }

    /// Ends this generation after `changes` more changes.
    pub(super) fn fail_after(&self, changes: u64) {
        self.0.lock().changes_left = Some(changes);
    }

    /// Ends this generation, if it is the current one.
    pub(super) fn end(&self, generation: u64) {
        let mut state = self.0.lock();
        if state.generation == generation {
            state.end_generation();
        }
    }

    /// Returns the number of the running generation.
    pub(super) fn generation(&self) -> u64 {
        self.0.lock().generation
    }
}

/// The disk as mounted by one incarnation.
pub(super) struct MountedDisk {
    /// The disk.
    image: DiskImage,
    /// The generation to which the handle belongs.
    generation: u64,
}

impl MountedDisk {
    /// Returns a handle of this generation for a file.
    fn file(&self, content: &Arc<Mutex<Content>>) -> Arc<dyn DiskFile> {
        Arc::new(Handle { image: self.image.clone(), generation: self.generation, content: Arc::clone(content) })
    }

    /// Makes a change of names and records it as unflushed. `repeat` returns the same change again.
    ///
    /// # Errors
    /// An error of input and output if the generation has ended.
    fn change_names(&self, change: impl FnOnce() -> NameChange, repeat: impl FnOnce() -> NameChange) -> io::Result<()> {
        let state = &mut *self.image.0.lock();
        state.record_change(self.generation)?;
        change().apply_to(&mut state.files);
        state.unflushed_names.push(repeat());
        Ok(())
    }
}

impl Disk for MountedDisk {
    fn lock(&self) -> io::Result<bool> {
        let mut state = self.image.0.lock();
        state.record_change(self.generation)?;
        Ok(!std::mem::replace(&mut state.locked, true))
    }

    fn unlock(&self) {
        let mut state = self.image.0.lock();
        if state.generation == self.generation {
            state.locked = false;
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.image.0.lock().files.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let content = Arc::new(Mutex::new(Content::default()));
        let make = || NameChange::Create(name.to_owned(), Arc::clone(&content));
        self.change_names(make, make)?;
        Ok(self.file(&content))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.image.0.lock();
        let content = state.files.get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        drop(state);
        Ok(self.file(&content))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if !self.image.0.lock().files.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let rename = || NameChange::Rename(from.to_owned(), to.to_owned());
        self.change_names(rename, rename)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if !self.image.0.lock().files.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let remove = || NameChange::Remove(name.to_owned());
        self.change_names(remove, remove)
    }

    fn sync(&self) -> io::Result<()> {
        let state = &mut *self.image.0.lock();
        state.record_change(self.generation)?;
        for change in std::mem::take(&mut state.unflushed_names) {
            change.apply_to(&mut state.flushed);
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/simulated").join(name)
    }
}

/// An open file of one generation.
struct Handle {
    /// The disk, which knows the running generation.
    image: DiskImage,
    /// The generation of the handle. In a later one every call fails.
    generation: u64,
    /// The content that it reads and writes.
    content: Arc<Mutex<Content>>,
}

impl DiskFile for Handle {
    fn length(&self) -> io::Result<u64> {
        Ok(self.content.lock().bytes.len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.content.lock();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.bytes.len());
        let available = content.bytes.get(from..).unwrap_or_default();
        let read = available.len().min(bytes.len());
        for (into, byte) in bytes.iter_mut().zip(available) {
            *into = *byte;
        }
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let generation = self.generation;
        let mut at = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut rest = bytes;
        self.image.0.lock().record_change(generation)?;
        while !rest.is_empty() {
            let (part, more) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
            let mut content = self.content.lock();
            let end = at + part.len();
            if content.bytes.len() < end {
                content.bytes.resize(end, 0);
            }
            if let Some(into) = content.bytes.get_mut(at..end) {
                into.copy_from_slice(part);
            }
            content.dirty.insert(at / SECTOR);
            (at, rest) = (end, more);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.image.0.lock().record_change(self.generation)?;
        let content = &mut *self.content.lock();
        content.flushed.clone_from(&content.bytes);
        content.dirty.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whizbang_core::clock::{Clock, Timestamp};

    fn image(seed: u64) -> DiskImage {
        DiskImage::new(IdSource::seeded(Clock::manual(Timestamp::from_millis(0)).0, seed))
    }

    #[test]
    fn flushed_data_survives_with_any_other_sectors() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let image = image(seed);
            let disk = image.mount();
            let file = disk.create("log").unwrap();
            file.write_at(&[1; 3 * SECTOR], 0).unwrap();
            file.sync().unwrap();
            disk.sync().unwrap();
            file.write_at(&[2; 3 * SECTOR], 0).unwrap();
            image.end(image.generation());
            assert!(file.write_at(&[3], 0).is_err(), "an ended generation cannot write");
            let mut bytes = [0; 3 * SECTOR];
            assert_eq!(image.mount().open("log").unwrap().read_at(&mut bytes, 0).unwrap(), bytes.len());
            assert!(bytes.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            seen.insert([bytes[0], bytes[SECTOR], bytes[2 * SECTOR]]);
        }
        assert_eq!(seen.len(), 8, "{seen:?}");
    }

    #[test]
    fn writes_of_killed_node_survive_until_power_failure() {
        let (mut all, mut lost_later) = (0, 0);
        for seed in 0..200 {
            let image = image(seed);
            let disk = image.mount();
            disk.create("log").unwrap().write_at(&[2; 8 * SECTOR], 0).unwrap();
            let whole = |image: &DiskImage| {
                let mut bytes = [0; 8 * SECTOR];
                let file = image.mount().open("log").ok();
                file.is_some_and(|file| file.read_at(&mut bytes, 0).unwrap() == bytes.len() && bytes == [2; 8 * SECTOR])
            };
            image.end(image.generation());
            if whole(&image) {
                all += 1;
                (0..10).for_each(|_| image.end(image.generation()));
                lost_later += u32::from(!whole(&image));
            }
        }
        // With power failures only, all eight sectors survive once in 512 times.
        assert!(all > 40 && lost_later > 40, "{all} {lost_later}");
    }

    #[test]
    fn unflushed_names_survive_as_a_prefix() {
        let mut seen = BTreeSet::new();
        for seed in 0..100 {
            let image = image(seed);
            let disk = image.mount();
            disk.create("a.new").unwrap();
            disk.rename("a.new", "a").unwrap();
            image.end(image.generation());
            seen.insert(image.mount().names().unwrap().join(" "));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["", "a", "a.new"]);
    }

    #[test]
    fn generation_ends_after_given_changes() {
        let image = image(1);
        let disk = image.mount();
        image.fail_after(2);
        let file = disk.create("log").unwrap();
        file.write_at(b"1", 0).unwrap();
        assert!(file.sync().is_err());
        assert!(disk.create("other").is_err());
    }
}
