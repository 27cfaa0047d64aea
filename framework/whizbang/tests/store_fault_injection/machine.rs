//! A machine with one disk of the worst permitted behavior: it keeps all flushed data and any part of the rest.
//!
//! Sectors of 512 bytes are written whole or not at all; of those written since the last flush, any version may survive
//! a power cut. Names that were not flushed may survive or not. A failed flush has lost the data it was to write, and a
//! later flush does not report that. A killed process leaves everything unchanged.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use whizbang::clock::{Clock, Timestamp};
use whizbang::message::IdSource;
use whizbang::store::embedded::{Disk, DiskFile};

use crate::content::{Content, SECTOR};

/// A call of the store to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Names,
    Create,
    Open,
    Rename,
    Remove,
    SyncFolder,
    Length,
    Read,
    Write,
    SyncFile,
}

/// The fault of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process ends in the middle of it; written data stays.
    Halt,
    /// The call fails once, as with a broken disk. Half of a write is done.
    Broken,
    /// The call fails once, as with a full disk. Half of a write is done.
    Full,
}

/// A machine that runs one process after another.
#[derive(Clone)]
pub(crate) struct Machine(Arc<Mutex<State>>);

struct State {
    random: IdSource,
    files: BTreeMap<u64, Content>,
    /// The names that programs see, and those that certainly survive a power cut.
    names: BTreeMap<String, u64>,
    kept_names: BTreeMap<String, u64>,
    /// Changes of names since they were flushed.
    pending: Vec<Step>,
    next_file: u64,
    /// The running process; earlier ones are dead.
    run: u64,
    locked: bool,
    halted: bool,
    calls: Vec<(Kind, String)>,
    plan: Option<(usize, Fault)>,
    /// From this call on every call of the kind fails.
    broken_from: Option<(usize, Kind)>,
    /// The next call of the kind on a file whose name begins like this panics.
    panic: Option<(Kind, &'static str)>,
    size: Option<usize>,
}

enum Step {
    Link(String, u64),
    Unlink(String),
    Rename(String, String, u64),
}

impl Machine {
    pub(crate) fn new(seed: u64) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000)).0;
        Self(Arc::new(Mutex::new(State {
            random: IdSource::seeded(clock, seed),
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            kept_names: BTreeMap::new(),
            pending: Vec::new(),
            next_file: 1,
            run: 1,
            locked: false,
            halted: false,
            calls: Vec::new(),
            plan: None,
            broken_from: None,
            panic: None,
            size: None,
        })))
    }

    /// Returns a machine whose disk holds these files durably.
    pub(crate) fn with_files(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let machine = Self::new(0);
        for (name, bytes) in files {
            let disk = machine.disk();
            let file = disk.create(name).unwrap();
            file.write_at(bytes, 0).unwrap();
            file.sync().unwrap();
            disk.sync().unwrap();
        }
        machine.kill();
        machine
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the disk for the running process.
    pub(crate) fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(SimDisk { machine: self.clone(), run: self.state().run })
    }

    /// Returns all calls since this process began.
    pub(crate) fn calls(&self) -> Vec<(Kind, String)> {
        self.state().calls.clone()
    }

    /// Injects a fault at the call with this number in the run of the process, from 0.
    pub(crate) fn plan(&self, call: usize, fault: Fault) {
        self.state().plan = Some((call, fault));
    }

    /// Makes every call of a kind fail from now on.
    pub(crate) fn breaks(&self, kind: Kind) {
        let mut state = self.state();
        state.broken_from = Some((state.calls.len(), kind));
    }

    /// Makes the next call of a kind panic, on a file whose name begins with `prefix`.
    pub(crate) fn panics(&self, kind: Kind, prefix: &'static str) {
        self.state().panic = Some((kind, prefix));
    }

    /// Returns whether the planned panic has occurred.
    pub(crate) fn has_panicked(&self) -> bool {
        self.state().panic.is_none()
    }

    /// Sets the size of the disk in bytes.
    pub(crate) fn set_size(&self, bytes: Option<usize>) {
        self.state().size = bytes.map(|bytes| bytes / SECTOR);
    }

    /// Returns whether the planned fault has occurred.
    pub(crate) fn has_faulted(&self) -> bool {
        self.state().plan.is_none()
    }

    /// Ends the process; the machine continues.
    pub(crate) fn kill(&self) {
        self.state().next_life();
    }

    /// Ends the process. The disk keeps its durable data, and any part of the rest.
    pub(crate) fn cut_power(&self) {
        let state = &mut *self.state();
        state.next_life();
        let in_order = state.random.below(2) == 0;
        let kept = state.random.below(state.pending.len() as u64 + 1) as usize;
        for (nth, step) in std::mem::take(&mut state.pending).into_iter().enumerate() {
            if if in_order { nth < kept } else { state.random.below(2) == 0 } {
                step.apply(&mut state.kept_names);
            }
        }
        state.names = state.kept_names.clone();
        let kept: Vec<u64> = state.names.values().copied().collect();
        state.files.retain(|number, _| kept.contains(number));
        // Sometimes everything, sometimes nothing, mostly any part.
        let fate = state.random.below(6);
        for file in state.files.values_mut() {
            file.cut(fate, &state.random);
        }
    }

    /// Returns all files as a program sees them.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        state.names.iter().map(|(name, number)| (name.clone(), state.files[number].read())).collect()
    }
}

impl State {
    fn next_life(&mut self) {
        self.run += 1;
        self.locked = false;
        self.halted = false;
        self.calls.clear();
        self.plan = None;
        self.broken_from = None;
        self.panic = None;
    }

    /// Counts a call. Returns its planned fault.
    fn call(&mut self, run: u64, kind: Kind, name: &str) -> io::Result<Option<Fault>> {
        if self.run != run || self.halted {
            return Err(io::Error::other("the process has ended"));
        }
        let number = self.calls.len();
        self.calls.push((kind, name.to_owned()));
        if self.panic.is_some_and(|(of, prefix)| kind == of && name.starts_with(prefix)) {
            self.panic = None;
            panic!("planned: {kind:?} of {name}");
        }
        if self.broken_from.is_some_and(|(from, broken)| number >= from && kind == broken) {
            return Ok(Some(Fault::Broken));
        }
        match self.plan {
            Some((call, fault)) if call == number => {
                self.plan = None;
                self.halted = fault == Fault::Halt;
                Ok(Some(fault))
            }
            _ => Ok(None),
        }
    }

    /// Counts a call that is done completely or not at all.
    fn whole_call(&mut self, run: u64, kind: Kind, name: &str) -> io::Result<()> {
        self.call(run, kind, name)?.map_or(Ok(()), |fault| Err(error(fault)))
    }

    fn number(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn step(&mut self, step: Step) {
        step.apply(&mut self.names);
        self.pending.push(step);
    }

    /// Returns the number of sectors used if the size of the disk is limited.
    fn used(&self) -> usize {
        self.size.map_or(0, |_| self.taken())
    }

    fn taken(&self) -> usize {
        self.names.values().map(|number| self.files[number].sectors.len()).sum()
    }
}

fn error(fault: Fault) -> io::Error {
    match fault {
        Fault::Halt => io::Error::other("the process has ended"),
        Fault::Broken => io::Error::other("the disk is broken"),
        Fault::Full => io::ErrorKind::StorageFull.into(),
    }
}

impl Step {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Link(name, number) => drop(names.insert(name.clone(), *number)),
            Self::Unlink(name) => drop(names.remove(name)),
            Self::Rename(from, to, number) => {
                if names.get(from) == Some(number) {
                    names.remove(from);
                }
                names.insert(to.clone(), *number);
            }
        }
    }
}

struct SimDisk {
    machine: Machine,
    run: u64,
}

impl Disk for SimDisk {
    fn lock(&self) -> io::Result<bool> {
        let mut state = self.machine.state();
        Ok(state.run == self.run && !std::mem::replace(&mut state.locked, true))
    }

    fn unlock(&self) {
        let mut state = self.machine.state();
        if state.run == self.run {
            state.locked = false;
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut state = self.machine.state();
        state.whole_call(self.run, Kind::Names, "")?;
        Ok(state.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.machine.state();
        state.whole_call(self.run, Kind::Create, name)?;
        let number = state.next_file;
        state.next_file += 1;
        state.files.insert(number, Content::default());
        state.step(Step::Link(name.to_owned(), number));
        Ok(Arc::new(SimFile { machine: self.machine.clone(), run: self.run, number, name: name.to_owned() }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.machine.state();
        state.whole_call(self.run, Kind::Open, name)?;
        let number = state.number(name)?;
        Ok(Arc::new(SimFile { machine: self.machine.clone(), run: self.run, number, name: name.to_owned() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.machine.state();
        state.whole_call(self.run, Kind::Rename, to)?;
        let number = state.number(from)?;
        state.step(Step::Rename(from.to_owned(), to.to_owned(), number));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.machine.state();
        state.whole_call(self.run, Kind::Remove, name)?;
        state.number(name)?;
        state.step(Step::Unlink(name.to_owned()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.machine.state();
        state.whole_call(self.run, Kind::SyncFolder, "")?;
        state.pending.clear();
        state.kept_names = state.names.clone();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("disk").join(name)
    }
}

struct SimFile {
    machine: Machine,
    run: u64,
    number: u64,
    name: String,
}

impl SimFile {
    fn call(&self, kind: Kind) -> io::Result<(MutexGuard<'_, State>, Option<Fault>)> {
        let mut state = self.machine.state();
        let fault = state.call(self.run, kind, &self.name)?;
        Ok((state, fault))
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        let (state, fault) = self.call(Kind::Length)?;
        fault.map_or(Ok(state.files[&self.number].length), |fault| Err(error(fault)))
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let (state, fault) = self.call(Kind::Read)?;
        if let Some(fault) = fault {
            return Err(error(fault));
        }
        let content = &state.files[&self.number];
        let length = (content.length.saturating_sub(offset) as usize).min(bytes.len());
        let bytes = &mut bytes[..length];
        bytes.fill(0);
        let sectors = offset / SECTOR as u64..(offset + length as u64).div_ceil(SECTOR as u64);
        for (number, sector) in content.sectors.range(sectors) {
            let start = (number * SECTOR as u64).max(offset);
            let end = ((number + 1) * SECTOR as u64).min(offset + length as u64);
            let inside = (start % SECTOR as u64) as usize;
            let part = &sector.now[inside..inside + (end - start) as usize];
            bytes[(start - offset) as usize..(end - offset) as usize].copy_from_slice(part);
        }
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut state, fault) = self.call(Kind::Write)?;
        let used = state.used();
        let content = state.files.get_mut(&self.number).unwrap();
        let done = match fault {
            None | Some(Fault::Halt) => bytes,
            Some(_) => &bytes[..bytes.len() / 2],
        };
        content.write(done, offset);
        if let Some(fault) = fault {
            return Err(error(fault));
        }
        // Data with an allocated sector can always be written.
        let grown = state.used();
        match state.size {
            Some(size) if grown > used && grown > size => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let (mut state, fault) = self.call(Kind::SyncFile)?;
        let content = state.files.get_mut(&self.number).unwrap();
        match fault {
            None => content.flush(),
            Some(Fault::Halt) => {}
            Some(_) => content.fail_to_flush(),
        }
        fault.map_or(Ok(()), |fault| Err(error(fault)))
    }
}
