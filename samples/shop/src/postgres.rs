//! A PostgreSQL server of the shop's own. Its data stays, so that a later run continues.
//!
//! The server listens on a Unix socket and not on a port: a free port may be taken by another program before the server binds it.

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::processes::{Process, find, program_folders};

/// The user of the package, under which the server runs if this program runs as root; and the superuser of the database.
const NAME: &str = "postgres";
/// The number in the name of the socket.
const PORT: &str = "5432";
/// The time limit for the start. Recovery after a kill is included.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A running server.
pub(crate) struct Postgres {
    pub(crate) process: Process,
    pub(crate) url: String,
}

impl Postgres {
    /// Starts a server with its files in the data folder. As root, whose folders the server's user cannot read, they are in the
    /// folder for temporary files, under the shop's namespace. The socket is there in both cases: the path of a socket has at
    /// most 107 bytes on Linux, and a data folder may have a longer one.
    pub(crate) async fn start(data: &Path, namespace: &str) -> io::Result<Self> {
        let programs = programs()?;
        let is_root = fs::metadata("/proc/self")?.uid() == 0;
        let sockets = std::env::temp_dir().join(format!("{namespace}-postgres"));
        let folder = match is_root {
            true => sockets.clone(),
            false => std::path::absolute(data)?.join("postgres"),
        };
        for folder in [&sockets, &folder] {
            fs::create_dir_all(folder)?;
        }
        if is_root {
            let (user, group) = server_user()?;
            chown(&folder, Some(user), Some(group))?;
        }
        let cluster = folder.join("data");
        if !cluster.join("PG_VERSION").is_file() {
            create(&programs, &cluster, is_root)?;
        }
        let url = url(&sockets);
        let (cluster, sockets) = (cluster.display().to_string(), sockets.display().to_string());
        let server = programs.join("postgres").display().to_string();
        // A change of the user cancels an earlier request for a signal at the parent's death, so it is repeated.
        let mut words = vec!["--pdeathsig", "KILL"];
        words.extend(AS_SERVER_USER.iter().filter(|_| is_root));
        words.extend(["--", &*server, "-D", &cluster, "-p", PORT, "-k", &sockets, "-h", ""]);
        words.extend(["-c", "max_connections=300", "-c", "unix_socket_permissions=0700"]);
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let setpriv = find("setpriv", &program_folders()).ok_or_else(|| io::Error::other("setpriv not found"))?;
        let mut process = Process::start("PostgreSQL", &setpriv, &words)?;
        let begun = Instant::now();
        while !is_ready(&programs, &sockets)? {
            if begun.elapsed() > TIMEOUT {
                process.kill();
                return Err(io::Error::other(format!(
                    "PostgreSQL does not start; its files are in {}",
                    folder.display()
                )));
            }
            if !process.is_running() {
                // The server of a killed shop uses the files until its last process has ended.
                process = Process::start("PostgreSQL", &setpriv, &words)?;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(Self { process, url })
    }
}

/// Returns the address of the server whose socket is in this folder. The folder is the host, with special characters escaped.
fn url(sockets: &Path) -> String {
    let mut host = String::new();
    for byte in sockets.as_os_str().as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => host.push(char::from(*byte)),
            _ => drop(write!(host, "%{byte:02X}")),
        }
    }
    format!("postgres://{NAME}@{host}:{PORT}/{NAME}")
}

/// The arguments of setpriv that change from root to the user of the package.
const AS_SERVER_USER: [&str; 5] = ["--reuid", NAME, "--regid", NAME, "--clear-groups"];

/// Returns the folder of the programs of the newest installed PostgreSQL.
fn programs() -> io::Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((version, entry.path().join("bin")))
    });
    let newest = versions.filter(|(_, programs)| programs.join("initdb").is_file()).max().map(|(_, programs)| programs);
    let in_path = || find("initdb", &program_folders()).and_then(|file| Some(file.parent()?.to_owned()));
    newest.or_else(in_path).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "PostgreSQL not found; pass the address of a server with --postgres, or install it (Debian: apt-get install postgresql)",
        )
    })
}

/// Returns user and group of the package.
fn server_user() -> io::Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    let user = users.lines().find_map(|line| line.strip_prefix("postgres:x:"));
    let numbers: Option<Vec<u32>> = user.map(|user| user.split(':').filter_map(|number| number.parse().ok()).collect());
    match numbers.as_deref() {
        Some([user, group, ..]) => Ok((*user, *group)),
        _ => Err(io::Error::other("there is no user `postgres`, and PostgreSQL does not run as root")),
    }
}

/// Creates a database cluster.
fn create(programs: &Path, cluster: &Path, is_root: bool) -> io::Result<()> {
    let mut command = Command::new("setpriv");
    command.args(AS_SERVER_USER.iter().filter(|_| is_root));
    let command = command
        .arg("--")
        .arg(programs.join("initdb"))
        .args(["-U", NAME, "-E", "UTF8", "--locale", "C", "-A", "trust", "-D"]);
    // The server's user may not read the current folder.
    let output = command.arg(cluster).current_dir("/").stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

fn is_ready(programs: &Path, sockets: &str) -> io::Result<bool> {
    let mut command = Command::new(programs.join("pg_isready"));
    Ok(command.args(["-q", "-h", sockets, "-p", PORT]).stdin(Stdio::null()).status()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_escapes_the_folder_of_the_socket() {
        let folder = Path::new("/tmp/a shop@home/shop0f-postgres");
        assert_eq!(url(folder), "postgres://postgres@%2Ftmp%2Fa%20shop%40home%2Fshop0f-postgres:5432/postgres");
    }
}
