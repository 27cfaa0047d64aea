//! A PostgreSQL of its own, in a folder that goes with it.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

pub(crate) struct Server {
    folder: TempDir,
}

impl Server {
    /// Starts one that is asked through a socket in its folder; why not, if it cannot be started.
    pub(crate) fn start() -> Result<Self, String> {
        for program in ["initdb", "pg_ctl", "postgres"] {
            let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            if !found.is_ok_and(|status| status.success()) {
                return Err(format!("there is no `{program}` in the PATH"));
            }
        }
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        if let Some((user, group)) = servant() {
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group)).map_err(|error| error.to_string())?;
        }
        let server = Self { folder };
        let (data, home) = (server.data(), server.folder.path().display().to_string());
        run("initdb", &["-D", &data, "-A", "trust", "-U", "bench", "--no-sync"], server.folder.path())?;
        let options = format!("-k {home} -c listen_addresses=''");
        let log = format!("{home}/server.log");
        run("pg_ctl", &["-D", &data, "-o", &options, "-l", &log, "-w", "start"], server.folder.path())?;
        Ok(server)
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    /// How it is asked.
    pub(crate) fn url(&self) -> String {
        let host = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgresql://bench@{host}/postgres")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = run("pg_ctl", &["-D", &self.data(), "-m", "fast", "-w", "stop"], self.folder.path());
        if let Err(error) = stopped {
            eprintln!("  PostgreSQL does not stop: {error}");
        }
    }
}

/// Who runs it if this is root, for whom it does not run: user and group.
fn servant() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| -> Option<u32> {
        let output = Command::new("id").args(arguments).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    if id(&["-u"])? != 0 {
        return None;
    }
    Some((id(&["-u", "postgres"])?, id(&["-g", "postgres"])?))
}

fn run(program: &str, arguments: &[&str], folder: &Path) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    if let Some((user, group)) = servant() {
        command.uid(user).gid(group);
    }
    let status = command.status().map_err(|error| format!("{program}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{program} has ended with {status}")) }
}
