//! Files as the store needs them: the seam between the log and the operating system.
//!
//! Called by everything in this room, calls the operating system. Tests put a disk of their own here, which tears writes,
//! loses what was not flushed, and fails on demand.

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

/// One folder with the files of a store.
pub trait Disk: Send + Sync + 'static {
    /// Keeps everybody else out until the disk is dropped or [unlocked](Self::unlock). `false` if somebody is in.
    fn lock(&self) -> io::Result<bool>;

    /// Lets others in.
    fn unlock(&self);

    /// The names of all files.
    fn names(&self) -> io::Result<Vec<String>>;

    /// A new, empty file; an old one of the name is emptied. It may be gone after a crash until [`sync`](Self::sync).
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// A file that exists.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, in one step; a file that had it is gone.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Takes a file away.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes creating, renaming and removing durable.
    fn sync(&self) -> io::Result<()>;

    /// What people call a file; the folder for the empty name.
    fn path(&self, name: &str) -> PathBuf;
}

/// A file, read and written anywhere by any thread.
pub trait DiskFile: Send + Sync {
    /// How many bytes it has.
    fn length(&self) -> io::Result<u64>;

    /// Reads up to all of `bytes`; fewer only at the end of the file.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
}

/// A folder of the operating system.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Locked as long as they are open.
    locks: Mutex<Option<[File; 3]>>,
}

/// Locked by whoever works with the folder, and touched by nobody else.
const LOCK: &str = "lock";
/// Locked by him as well, for others to see: who looks whether somebody is in holds it for a moment, together with others who
/// look. That makes nobody else's opening fail: he waits until they have looked.
const PROBE_LOCK: &str = "lock-seen";

impl Folder {
    /// The folder at `path`, created for nobody but this user if it is not there.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        Self::make(path)?;
        Ok(Self::at(path))
    }

    /// The folder at `path` as it is, there or not.
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), locks: Mutex::new(None) }
    }

    /// Whether anybody keeps others out now. Nobody else who asks is in the way.
    pub(super) fn is_in_use(&self) -> io::Result<bool> {
        let file = match self.open_lock(PROBE_LOCK)? {
            Some(file) => file,
            // Whoever is in has a version that knows of one lock only, or the file was removed.
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

    fn open_lock(&self, name: &str) -> io::Result<Option<File>> {
        match File::open(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some),
        }
    }

    /// A file that exists, and cannot be written to.
    pub(super) fn open_to_read(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OsFile(File::open(self.path(name))?)))
    }

    /// Makes the folder and those above it that are missing, each durably.
    fn make(path: &Path) -> io::Result<()> {
        // A path of one part lies in the working folder.
        let above = path.parent().map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above });
        if path.is_dir() {
            // Whoever made it may have died before it was durable. It may lie where only others may look.
            let _ = above.map(|above| File::open(above)?.sync_all());
            return Ok(());
        }
        let Some(above) = above else { return Ok(()) };
        Self::make(above)?;
        match DirBuilder::new().mode(0o700).create(path) {
            // Somebody else was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made?,
        }
        File::open(above)?.sync_all()
    }

    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    }
}

impl Disk for Folder {
    fn lock(&self) -> io::Result<bool> {
        let open = |name| Self::options().create(true).truncate(false).open(self.path(name));
        // The second one first: who looks finds it, and lets the other one alone.
        let (seen, own) = (open(PROBE_LOCK)?, open(LOCK)?);
        match own.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(false),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        // The folder as well: whoever removes the files of the locks lets nobody in.
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
            // What is no text was not written by a store.
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

/// The number of times that a lock is tried, 5 ms apart: a reader holds it for a moment only, so after two seconds an owner has it.
const PROBE_TRIES: u32 = 400;
const PROBE_INTERVAL: Duration = Duration::from_millis(5);

/// Tries to take a lock that others may hold for a moment. Returns whether it was taken.
#[allow(clippy::disallowed_methods, reason = "file locks wake no one, and a store is opened on a thread that may wait")]
fn lock_with_retries(take: impl Fn() -> Result<(), fs::TryLockError>) -> io::Result<bool> {
    let mut looks = 0;
    loop {
        match take() {
            Ok(()) => return Ok(true),
            Err(fs::TryLockError::WouldBlock) if looks < PROBE_TRIES => {
                looks += 1;
                std::thread::sleep(PROBE_INTERVAL);
            }
            Err(fs::TryLockError::WouldBlock) => return Ok(false),
            Err(fs::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Locks the folder itself; whether nobody has it. File systems that lock files only are relied on for these.
fn lock_folder(folder: &File) -> io::Result<bool> {
    match folder.try_lock() {
        Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
    }
}

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

/// Whether an error says that there is no room left, for this user or at all.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Writes a small file whole or not at all, durably.
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
        // Half a file helps nobody and takes room; that it cannot be removed changes nothing about the error.
        let _ = disk.remove(&new);
    }
    written
}

/// All bytes of a file.
pub(super) fn read_all(disk: &dyn Disk, name: &str) -> io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let length = usize::try_from(file.length()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut bytes = vec![0; length];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}
