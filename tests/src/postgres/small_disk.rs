//! A small file system in memory, which can really be full.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::is_root;

/// A mounted tmpfs, unmounted when it is dropped. Declare it before the server that uses it.
pub struct SmallDisk {
    folder: TempDir,
}

/// Runs a program as root.
fn as_root(program: &str, arguments: &[&str]) {
    let mut command = if is_root() { Command::new(program) } else { Command::new("sudo") };
    if !is_root() {
        command.args(["-n", program]);
    }
    let output = command.args(arguments).output().expect("runs a program");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} needs root, or sudo without a password: {problem}");
}

impl SmallDisk {
    /// Mounts a file system of so many MiB.
    ///
    /// # Panics
    /// Without the right to mount.
    pub fn mount(mebibytes: usize) -> Self {
        let folder = tempfile::Builder::new().prefix("whizbang-disk-").tempdir_in("/tmp").expect("a folder in /tmp");
        let path = folder.path().to_str().expect("a path in UTF-8");
        as_root("mount", &["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=1777"), "tmpfs", path]);
        Self { folder }
    }

    /// The folder of the file system.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    fn ballast(&self) -> PathBuf {
        self.folder.path().join("ballast")
    }

    /// Takes all space that is left.
    ///
    /// # Panics
    /// If writing fails for another reason than missing space.
    pub fn fill(&self) {
        let mut file = fs::File::create(self.ballast()).expect("creates a file");
        let block = vec![1; 4096];
        let error = loop {
            if let Err(error) = file.write_all(&block) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }

    /// Gives the space back that [`fill`](Self::fill) took.
    ///
    /// # Panics
    /// If it was not filled.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).expect("removes a file");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        as_root("umount", &["-l", self.folder.path().to_str().unwrap_or_default()]);
    }
}
