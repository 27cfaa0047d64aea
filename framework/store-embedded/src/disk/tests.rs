//! Tests of disks in memory and on files.

use std::cell::Cell;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Barrier;

use super::*;
use crate::tests::memory_disk::MemoryDisk;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn folder_and_files_are_for_this_user_only() {
    let above = tempfile::tempdir().unwrap();
    let path = above.path().join("a/b/c");
    let folder = Folder::new(&path).unwrap();
    folder.create("file").unwrap();
    assert!(folder.lock().unwrap());
    for made in ["a", "a/b", "a/b/c"] {
        assert_eq!(mode(&above.path().join(made)), 0o700, "{made}");
    }
    for made in ["file", LOCK, PROBE_LOCK] {
        assert_eq!(mode(&path.join(made)), 0o600, "{made}");
    }
    Folder::new(&path).unwrap();
}

#[test]
fn folder_is_not_created_where_a_file_is() {
    let above = tempfile::tempdir().unwrap();
    let path = above.path().join("file");
    fs::write(&path, "kept").unwrap();
    assert_eq!(Folder::new(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&path).unwrap(), b"kept");
    assert!(Folder::new(&path.join("below")).is_err());
    let at = Folder::at(&above.path().join("missing"));
    assert!(at.names().is_err() && !above.path().join("missing").exists(), "it only refers to the folder");
}

#[test]
fn folder_is_created_by_many_processes_at_once() {
    let above = tempfile::tempdir().unwrap();
    for round in 0..30 {
        let (path, barrier) = (above.path().join(round.to_string()).join("store"), Barrier::new(6));
        std::thread::scope(|scope| {
            let create = || {
                barrier.wait();
                Folder::new(&path).unwrap();
            };
            (0..6).for_each(|_| drop(scope.spawn(create)));
        });
    }
}

#[test]
fn files_are_read_at_any_offset() {
    let path = tempfile::tempdir().unwrap();
    let folder = Folder::at(path.path());
    let file = folder.create("file").unwrap();
    file.write_at(b"345", 3).unwrap();
    file.write_at(b"012", 0).unwrap();
    file.write_at(b"67", 6).unwrap();
    file.sync().unwrap();
    for file in [folder.open("file").unwrap(), folder.open_to_read("file").unwrap()] {
        assert_eq!(file.length().unwrap(), 8);
        for (offset, length, expected) in
            [(0, 8, "01234567"), (1, 20, "1234567"), (2, 3, "234"), (5, 3, "567"), (8, 1, ""), (9, 5, ""), (0, 0, "")]
        {
            let mut bytes = vec![b'-'; length];
            let read = file.read_at(&mut bytes, offset).unwrap();
            assert_eq!(std::str::from_utf8(&bytes[..read]).unwrap(), expected, "from {offset}");
            assert!(bytes[read..].iter().all(|byte| *byte == b'-'), "from {offset}");
        }
    }
    assert!(folder.open_to_read("file").unwrap().write_at(b"x", 0).is_err());
    assert_eq!(folder.create("file").unwrap().length().unwrap(), 0, "it is emptied");
}

#[test]
fn failed_calls_are_reported() {
    let above = tempfile::tempdir().unwrap();
    let missing = Folder::at(&above.path().join("missing"));
    assert!(missing.sync().is_err() && missing.lock().is_err());
    assert!(missing.create("file").is_err() && missing.open("file").is_err() && missing.open_to_read("file").is_err());
    assert!(missing.rename("file", "other").is_err() && missing.remove("file").is_err());
    let folder = Folder::at(above.path());
    assert!(folder.open_to_read(".").unwrap().read_at(&mut [0; 4], 0).is_err(), "a folder has no bytes");
}

#[cfg(target_os = "linux")]
#[test]
fn file_that_cannot_be_flushed_is_reported() {
    assert!(Folder::at(Path::new("/dev")).open("null").unwrap().sync().is_err());
}

#[test]
fn names_follow_creations_renames_and_removals() {
    let path = tempfile::tempdir().unwrap();
    let folder = Folder::at(path.path());
    let names = || {
        let mut names = folder.names().unwrap();
        names.sort();
        names
    };
    assert!(names().is_empty());
    folder.create("one").unwrap().write_at(b"1", 0).unwrap();
    folder.create("two").unwrap();
    assert_eq!(names(), ["one", "two"]);
    folder.rename("one", "two").unwrap();
    folder.create("three").unwrap();
    assert_eq!(names(), ["three", "two"]);
    assert_eq!(read_all(&folder, "two").unwrap(), b"1");
    folder.remove("two").unwrap();
    folder.sync().unwrap();
    assert_eq!(names(), ["three"]);
    assert_eq!((folder.path(""), folder.path("x")), (path.path().to_owned(), path.path().join("x")));
}

#[test]
fn locked_folder_has_one_owner() {
    let path = tempfile::tempdir().unwrap();
    let (first, second) = (Folder::at(path.path()), Folder::at(path.path()));
    assert!(!second.is_in_use().unwrap(), "there is no lock file yet");
    assert!(first.lock().unwrap());
    assert!(second.is_in_use().unwrap() && second.is_in_use().unwrap());
    assert!(!second.lock().unwrap());
    first.unlock();
    assert!(!first.is_in_use().unwrap());
    assert!(second.lock().unwrap());
    assert!(!first.lock().unwrap() && first.is_in_use().unwrap());
    drop(second);
    assert!(first.lock().unwrap());
}

#[test]
fn lock_of_file_or_folder_prevents_an_opening() {
    let path = tempfile::tempdir().unwrap();
    let folder = Folder::at(path.path());
    for name in [LOCK, "."] {
        fs::write(path.path().join(LOCK), "").unwrap();
        let held = File::open(path.path().join(name)).unwrap();
        held.try_lock().unwrap();
        assert!(!folder.lock().unwrap(), "{name}");
        drop(held);
        assert!(folder.lock().unwrap(), "{name}");
        folder.unlock();
    }
}

#[test]
fn owner_of_an_older_version_is_seen_by_its_lock() {
    let path = tempfile::tempdir().unwrap();
    let folder = Folder::at(path.path());
    fs::write(path.path().join(LOCK), "").unwrap();
    assert!(!folder.is_in_use().unwrap());
    let held = File::open(path.path().join(LOCK)).unwrap();
    held.try_lock().unwrap();
    assert!(folder.is_in_use().unwrap());
}

#[test]
fn unreadable_lock_is_an_error() {
    let path = tempfile::tempdir().unwrap();
    fs::write(path.path().join("file"), "").unwrap();
    assert!(Folder::at(&path.path().join("file")).is_in_use().is_err());
    assert!(!Folder::at(&path.path().join("missing")).is_in_use().unwrap());
}

/// Takes a lock whose attempts end as `attempt` says. Returns the result and the number of attempts.
fn take(attempt: impl Fn(u32) -> Result<(), fs::TryLockError>) -> (io::Result<bool>, u32) {
    let attempts = Cell::new(0);
    let taken = lock_with_retries(|| {
        attempts.set(attempts.get() + 1);
        attempt(attempts.get())
    });
    (taken, attempts.get())
}

#[test]
fn lock_held_by_a_probe_is_taken_after_it() {
    let (taken, attempts) = take(|attempt| if attempt < 4 { Err(fs::TryLockError::WouldBlock) } else { Ok(()) });
    assert_eq!((taken.unwrap(), attempts), (true, 4));
    // A lock that stays held is given up: the first attempt and its repetitions.
    let (taken, attempts) = take(|_| Err(fs::TryLockError::WouldBlock));
    assert_eq!((taken.unwrap(), attempts), (false, PROBE_TRIES + 1));
}

#[test]
fn interrupted_lock_is_tried_again() {
    let error = |kind: io::ErrorKind| Err(fs::TryLockError::Error(kind.into()));
    let (taken, attempts) = take(|attempt| if attempt == 1 { error(io::ErrorKind::Interrupted) } else { Ok(()) });
    assert_eq!((taken.unwrap(), attempts), (true, 2));
    let (taken, attempts) = take(|_| error(io::ErrorKind::Unsupported));
    assert_eq!((taken.unwrap_err().kind(), attempts), (io::ErrorKind::Unsupported, 1));
}

#[test]
fn missing_space_is_distinguished_from_other_errors() {
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge] {
        assert!(is_full(&kind.into()), "{kind}");
    }
    assert!(!is_full(&io::ErrorKind::PermissionDenied.into()) && !is_full(&io::Error::other("broken")));
}

#[test]
fn replaced_file_is_durable_before_it_gets_its_name() {
    let memory = MemoryDisk::default();
    replace(&memory, "name", b"first").unwrap();
    assert_eq!(
        memory.take_calls(),
        ["create name.new", "write name.new 0+5", "sync name.new", "rename name.new name", "sync"]
    );
    assert_eq!(read_all(&memory, "name").unwrap(), b"first");
    for call in ["create", "write", "sync name.new", "rename"] {
        memory.fail(call, io::ErrorKind::StorageFull);
        assert!(is_full(&replace(&memory, "name", b"second").unwrap_err()), "{call}");
        assert_eq!((memory.names(), memory.bytes("name")), (vec!["name".to_owned()], b"first".to_vec()), "{call}");
        memory.repair();
    }
}
