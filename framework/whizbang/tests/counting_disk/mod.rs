//! A disk in memory that counts the bytes read and has a limited size.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub use whizbang::store::embedded::DiskFile;
pub type Disk = dyn whizbang::store::embedded::Disk;

#[derive(Default)]
pub struct CountingDisk {
    files: Mutex<BTreeMap<String, Arc<File>>>,
    locked: AtomicBool,
    space: Arc<Space>,
}

#[derive(Default)]
struct Space {
    size: AtomicU64,
    used: AtomicU64,
    read: AtomicU64,
}

struct File {
    bytes: Mutex<Vec<u8>>,
    space: Arc<Space>,
}

/// Creates a disk of `size` bytes.
pub fn counting_disk(size: u64) -> Arc<CountingDisk> {
    let disk = CountingDisk::default();
    disk.space.size.store(size, Ordering::Relaxed);
    Arc::new(disk)
}

impl CountingDisk {
    /// Returns the number of bytes read so far.
    pub fn read(&self) -> u64 {
        self.space.read.load(Ordering::Relaxed)
    }

    /// Returns the size of all files in bytes.
    pub fn used(&self) -> u64 {
        self.space.used.load(Ordering::Relaxed)
    }

    /// Changes the size of the disk.
    pub fn resize(&self, size: u64) {
        self.space.size.store(size, Ordering::Relaxed);
    }

    fn missing<T>() -> io::Result<T> {
        Err(io::Error::from(io::ErrorKind::NotFound))
    }
}

impl whizbang::store::embedded::Disk for CountingDisk {
    fn lock(&self) -> io::Result<bool> {
        Ok(!self.locked.swap(true, Ordering::AcqRel))
    }

    fn unlock(&self) {
        self.locked.store(false, Ordering::Release);
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().unwrap().keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = Arc::new(File { bytes: Mutex::default(), space: Arc::clone(&self.space) });
        self.files.lock().unwrap().insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        match self.files.lock().unwrap().get(name) {
            Some(file) => Ok(Arc::clone(file) as _),
            None => Self::missing(),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files.lock().unwrap();
        match files.remove(from) {
            Some(file) => drop(files.insert(to.to_owned(), file)),
            None => return Self::missing(),
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match self.files.lock().unwrap().remove(name) {
            Some(_) => Ok(()),
            None => Self::missing(),
        }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("disk").join(name)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let bytes = self.bytes.lock().unwrap().len() as u64;
        self.space.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes.lock().unwrap();
        let from = bytes.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let length = from.len().min(into.len());
        into[..length].copy_from_slice(&from[..length]);
        self.space.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }

    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        let end = (offset + from.len()).max(bytes.len());
        let more = (end - bytes.len()) as u64;
        if self.space.used.load(Ordering::Relaxed) + more > self.space.size.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.space.used.fetch_add(more, Ordering::Relaxed);
        bytes.resize(end, 0);
        bytes[offset..offset + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
