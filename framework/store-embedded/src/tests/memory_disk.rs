//! A disk in memory that records its calls and fails on demand.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile};

/// The bytes of a file. It keeps them under a new name and after its removal.
type Content = Arc<Mutex<Vec<u8>>>;

/// A folder in memory. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<String, Content>,
    locked: bool,
    /// The calls as text, each with the name of its thread.
    calls: Vec<(String, String)>,
    /// The beginnings of calls that fail.
    failing: Vec<(String, io::ErrorKind)>,
    /// The space of the disk in bytes.
    size: Option<usize>,
}

impl MemoryDisk {
    /// Returns the disk as the store uses it.
    pub(crate) fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// Returns the calls since the last time, such as `write log.new 0+52` or `sync log.new`; `sync` is of the folder.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().calls).into_iter().map(|(call, _)| call).collect()
    }

    /// Returns the calls since the last time that begin with `start`.
    pub(crate) fn take_calls_of(&self, start: &str) -> Vec<String> {
        self.take_calls().into_iter().filter(|call| call.starts_with(start)).collect()
    }

    /// Returns the threads that have made calls with this beginning.
    pub(crate) fn threads_of(&self, start: &str) -> Vec<String> {
        let state = self.0.lock();
        state.calls.iter().filter(|(call, _)| call.starts_with(start)).map(|(_, thread)| thread.clone()).collect()
    }

    /// Makes every call fail that begins with `start`.
    pub(crate) fn fail(&self, start: &str, kind: io::ErrorKind) {
        self.0.lock().failing.push((start.to_owned(), kind));
    }

    /// Ends all failures.
    pub(crate) fn repair(&self) {
        self.0.lock().failing.clear();
    }

    /// Sets the space of the disk in bytes.
    pub(crate) fn set_size(&self, size: Option<usize>) {
        self.0.lock().size = size;
    }

    /// Returns the names of all files.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.lock().files.keys().cloned().collect()
    }

    /// Returns the bytes of a file.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.lock().files[name].lock().clone()
    }

    /// Creates or replaces a file.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        self.0.lock().files.insert(name.to_owned(), Arc::new(Mutex::new(bytes.to_vec())));
    }

    /// Returns a copy of the disk, as after the end of the process.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::default();
        for name in self.names() {
            copy.put(&name, &self.bytes(&name));
        }
        copy
    }

    fn call(&self, call: String) -> io::Result<()> {
        let mut state = self.0.lock();
        let failing = state.failing.iter().find(|(start, _)| call.starts_with(start)).map(|(_, kind)| *kind);
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        state.calls.push((call, thread));
        failing.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn file(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let content = self.0.lock().files.get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(MemoryFile { disk: self.clone(), name: name.to_owned(), content }))
    }
}

impl Disk for MemoryDisk {
    fn lock(&self) -> io::Result<bool> {
        Ok(!std::mem::replace(&mut self.0.lock().locked, true))
    }

    fn unlock(&self) {
        self.0.lock().locked = false;
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.call("names".to_owned())?;
        Ok(Self::names(self))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.call(format!("create {name}"))?;
        self.put(name, &[]);
        self.file(name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.call(format!("open {name}"))?;
        self.file(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.call(format!("rename {from} {to}"))?;
        let mut state = self.0.lock();
        let content = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.files.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.call(format!("remove {name}"))?;
        self.0.lock().files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.call("sync".to_owned())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("memory").join(name)
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    name: String,
    content: Content,
}

impl DiskFile for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        self.disk.call(format!("length {}", self.name))?;
        Ok(self.content.lock().len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.call(format!("read {} {offset}+{}", self.name, bytes.len()))?;
        let content = self.content.lock();
        let rest = content.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(bytes.len());
        bytes[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.call(format!("write {} {offset}+{}", self.name, bytes.len()))?;
        let end = offset as usize + bytes.len();
        let state = self.disk.0.lock();
        let used: usize = state.files.values().map(|content| content.lock().len()).sum();
        let mut content = self.content.lock();
        let grown = end.saturating_sub(content.len());
        if grown > 0 && state.size.is_some_and(|size| used + grown > size) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.call(format!("sync {}", self.name))
    }
}
