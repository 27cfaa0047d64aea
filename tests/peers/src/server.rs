//! A PostgreSQL server in a temporary folder.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

pub(crate) struct Server {
    folder: TempDir,
}

impl Server {
    /// Starts a server that listens on a socket in its folder. Returns the reason if it cannot be started.
    pub(crate) fn start() -> Result<Self, String> {
        for program in ["initdb", "pg_ctl", "postgres"] {
            let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            if !found.is_ok_and(|status| status.success()) {
                return Err(format!("`{program}` not found in the PATH"));
            }
        }
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        if let Some((user, group)) = postgres_user() {
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

    /// Returns the connection URL.
    pub(crate) fn url(&self) -> String {
        let host = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgresql://bench@{host}/postgres")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = run("pg_ctl", &["-D", &self.data(), "-m", "fast", "-w", "stop"], self.folder.path());
        if let Err(error) = stopped {
            eprintln!("  failed to stop PostgreSQL: {error}");
        }
    }
}

/// Returns the user and group for the server if this process is root, because PostgreSQL refuses to run as root.
fn postgres_user() -> Option<(u32, u32)> {
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
    if let Some((user, group)) = postgres_user() {
        command.uid(user).gid(group);
    }
    let status = command.status().map_err(|error| format!("{program}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{program} ended with {status}")) }
}
