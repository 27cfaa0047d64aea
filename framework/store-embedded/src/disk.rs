//! File access of the store: the seam between the log and the operating system.
//!
//! Called by all of this module; calls the operating system. Tests replace it by a disk that tears writes, loses
//! unflushed data and fails on demand.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

#[cfg(unix)]
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};

#[cfg(not(unix))]
compile_error!("the embedded store needs a unix system; build without the feature `embedded`");

/// The folder with the files of a store.
pub trait Disk: Send + Sync + 'static {
    /// Locks the folder until the disk is dropped or [unlocked](Self::unlock). Returns `false` if it is already locked.
    fn lock(&self) -> io::Result<bool>;

    /// Releases the lock.
    fn unlock(&self);

    /// Returns the names of all files. In any order. Only the names of files that this store made are used.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Creates an empty file, or empties an existing one. The file may be lost in a crash until [`sync`](Self::sync).
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file atomically, replacing an existing file with the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes creations, renames and removals durable.
    ///
    /// It returns after the directory is on the disk, not only in the cache of the system.
    fn sync(&self) -> io::Result<()>;

    /// Returns the path of a file for messages; the path of the folder for the empty name.
    fn path(&self, name: &str) -> PathBuf;
}

/// A file that is read and written at any offset by any thread.
pub trait DiskFile: Send + Sync {
    /// Returns the length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Reads into `bytes`. Returns the number of bytes read, which is less than requested only at the end of the file. A file
    /// of the log is as long as its header says, so a short read is damage there.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes`. A crash during the call may leave any part of the bytes. The frames of the log have checksums
    /// for that.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes earlier writes durable.
    fn sync(&self) -> io::Result<()>;
}

/// A folder of the operating system.
///
/// Three locks are held at once: the main lock, the probe lock and the folder itself. An owner of an older version has only the
/// first.
#[derive(Debug)]
pub(super) struct Folder {
    /// The folder as it was given.
    path: PathBuf,
    /// Locked as long as they are open.
    locks: Mutex<Option<[File; 3]>>,
}

/// The main lock, held by the process that has opened the store. Readers use it only if there is no probe lock.
const LOCK: &str = "lock";
/// A second lock that readers probe. A probe holds it briefly and shared; an opener waits for the probe to end instead
/// of failing.
const PROBE_LOCK: &str = "lock-seen";

impl Folder {
    /// Creates the folder at `path` if it does not exist, accessible for this user only.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        Self::make(path)?;
        Ok(Self::at(path))
    }

    /// Refers to the folder at `path` without creating it.
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), locks: Mutex::new(None) }
    }

    /// Returns whether a process has the store open. Concurrent probes do not disturb each other.
    pub(super) fn is_in_use(&self) -> io::Result<bool> {
        let file = match self.open_lock(PROBE_LOCK)? {
            Some(file) => file,
            // The owner runs an older version, which has only the main lock, or the file was removed.
            None => match self.open_lock(LOCK)? {
                Some(file) => file,
                None => return Ok(false),
            },
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Opens a lock file; `None` if it does not exist.
    fn open_lock(&self, name: &str) -> io::Result<Option<File>> {
        match File::open(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some),
        }
    }

    /// Opens an existing file read-only.
    pub(super) fn open_to_read(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OsFile(File::open(self.path(name))?)))
    }

    /// Creates the folder and its missing parents, each durably.
    fn make(path: &Path) -> io::Result<()> {
        // A path with one component is in the working directory.
        let above = path.parent().map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above });
        if path.is_dir() {
            // A process that created it may have crashed before it was durable. Best effort: the parent may not be
            // readable.
            let _ = above.map(|above| File::open(above)?.sync_all());
            return Ok(());
        }
        let Some(above) = above else { return Ok(()) };
        Self::make(above)?;
        match DirBuilder::new().mode(0o700).create(path) {
            // Another process created it first.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made?,
        }
        File::open(above)?.sync_all()
    }

    /// Files are readable and writable for this user only.
    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    }
}

impl Disk for Folder {
    fn lock(&self) -> io::Result<bool> {
        let open = |name| Self::options().create(true).truncate(false).open(self.path(name));
        // Take the probe lock first so that a reader that sees it never touches the main lock.
        let (seen, own) = (open(PROBE_LOCK)?, open(LOCK)?);
        match own.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(false),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        // Lock the folder as well, so that removing the lock files does not let a second process in.
        let folder = File::open(&self.path)?;
        if !lock_with_retries(|| seen.try_lock())? || !lock_folder(&folder)? {
            return Ok(false);
        }
        *self.locks.lock() = Some([own, seen, folder]);
        Ok(true)
    }

    fn unlock(&self) {
        *self.locks.lock() = None;
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // Not UTF-8: not written by a store.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OsFile(Self::options().create(true).truncate(true).open(self.path(name))?)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OsFile(Self::options().open(self.path(name))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.path.clone() } else { self.path.join(name) }
    }
}

/// The number of attempts to take a lock, 5 ms apart. A probe holds the lock only briefly, so two seconds suffice for
/// an opener.
const PROBE_TRIES: u32 = 400;
/// The pause between two attempts.
const PROBE_INTERVAL: Duration = Duration::from_millis(5);

/// Takes a lock that a probe of a reader may hold for a moment. Returns false if it is still held after all attempts: then
/// another process has the store open.
#[allow(
    clippy::disallowed_methods,
    reason = "file locks cannot notify, and a store is opened on a thread that may block"
)]
fn lock_with_retries(take: impl Fn() -> Result<(), fs::TryLockError>) -> io::Result<bool> {
    let mut tries = 0;
    loop {
        match take() {
            Ok(()) => return Ok(true),
            Err(fs::TryLockError::WouldBlock) if tries < PROBE_TRIES => {
                tries += 1;
                std::thread::sleep(PROBE_INTERVAL);
            }
            Err(fs::TryLockError::WouldBlock) => return Ok(false),
            Err(fs::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Locks the folder itself. Returns `false` if it is already locked. On file systems that can only lock files, the file
/// locks suffice.
fn lock_folder(folder: &File) -> io::Result<bool> {
    match folder.try_lock() {
        Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
    }
}

/// An open file. Reads and writes name their offset, so threads share it.
struct OsFile(File);

impl DiskFile for OsFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Returns whether an error means that no space is left, for this user or at all.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Replaces a small file atomically and durably.
pub(super) fn replace(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = format!("{name}.new");
    let written = (|| {
        let file = disk.create(&new)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        disk.rename(&new, name)?;
        disk.sync()
    })();
    if written.is_err() {
        // Best-effort removal of the partial file; the original error is reported either way.
        let _ = disk.remove(&new);
    }
    written
}

/// Reads all bytes of a file.
pub(super) fn read_all(disk: &dyn Disk, name: &str) -> io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let length = usize::try_from(file.length()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut bytes = vec![0; length];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

#[cfg(test)]
mod tests;
