//! The empty cluster that every server of a test starts with, and the folders of clusters.
//!
//! `initdb` takes longer than everything else that starts a server, so it runs once for a folder of test programs. Its result
//! is kept beside them, so that `cargo clean` removes it with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{NAME, command, copy_folder, free_shared_memory, hand_over, programs};

/// The place for clusters on a disk.
pub(super) const DISK: &str = "/tmp";

/// The place for clusters in memory.
const MEMORY: &str = "/dev/shm";

/// Memory is used if it has so much space, in MiB: a container often has only 64.
const SPACE: u64 = 2048;

/// The beginning of the name of a cluster's folder. The id of the process follows.
const PREFIX: &str = "whizbang-pg-";

/// Returns the place for clusters: in memory if possible.
pub(super) fn place() -> &'static str {
    let output = Command::new("df").args(["-BM", "--output=avail", MEMORY]).output().expect("runs df");
    let free = String::from_utf8_lossy(&output.stdout);
    let free = free.lines().nth(1).and_then(|free| free.trim().trim_end_matches('M').parse::<u64>().ok());
    if free.is_some_and(|free| free >= SPACE) { MEMORY } else { DISK }
}

/// Creates a folder for a cluster. Removes the folders that killed processes have left.
pub(super) fn folder(place: &str) -> TempDir {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()) else { continue };
        if owner.parse::<u32>().is_ok_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            free_shared_memory(&entry.path());
            // Another process may remove it as well.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    // Directly below the place: the path of a Unix socket has at most 107 bytes.
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(place).expect("a folder for a cluster");
    hand_over(folder.path());
    folder
}

/// Returns the folder of the empty cluster. The first caller creates it; callers in other processes wait for that.
///
/// # Panics
/// If PostgreSQL is not installed.
pub(super) fn cluster() -> PathBuf {
    let program = std::env::current_exe().expect("the path of the test program");
    let beside = program.parent().expect("the folder of the test program");
    // `/usr/lib/postgresql/15/bin`
    let programs = programs();
    let version = programs.parent().and_then(Path::file_name).expect("a version");
    let cluster = beside.join(format!("postgres-cluster-{}", version.display()));
    if cluster.exists() {
        return cluster;
    }
    let lock = fs::File::create(cluster.with_extension("lock")).expect("creates a lock");
    lock.lock().expect("locks the cluster");
    if !cluster.exists() {
        create(&cluster);
    }
    cluster
}

/// Creates the cluster under another name first: one that is interrupted is not used.
fn create(cluster: &Path) {
    let folder = folder(DISK);
    let data = folder.path().join("data");
    let output = command("initdb", false)
        .args(["-U", NAME, "-E", "UTF8", "--locale", "C", "-A", "trust", "--no-sync", "--wal-segsize", "16", "-D"])
        .arg(&data)
        .output()
        .unwrap_or_else(|error| panic!("setpriv: {error}; run tests/install"));
    assert!(output.status.success(), "initdb:\n{}", String::from_utf8_lossy(&output.stderr));
    let unfinished = cluster.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).expect("removes an unfinished cluster");
    }
    copy_folder(&data, &unfinished);
    fs::rename(&unfinished, cluster).expect("renames the cluster");
}
