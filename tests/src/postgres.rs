//! A PostgreSQL server of a test's own, on a free port, in a temporary folder.
//!
//! Called by the tests of the PostgreSQL store and by the benchmark. A server ends with the thread that started it. It runs
//! with fsync on, as in production. A missing server fails the test. The cluster that Debian starts is never used. Its cluster is a
//! copy of one that is created once, and is kept in memory: a server per test keeps kills and settings apart, and starts in a
//! quarter of a second. A SIGKILL loses nothing there either, because the system's memory survives it.

mod pooler;
mod session;
mod small_disk;
mod template;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

pub use pooler::Pooler;
pub use session::Session;
pub use small_disk::SmallDisk;

use crate::nats::Certificates;
use crate::{ReservedPort, eventually};

/// The time that a server may take to start or to stop. Crash recovery is included.
const PATIENCE: Duration = Duration::from_secs(60);

/// The superuser and the database of the test's server.
const NAME: &str = "postgres";

/// A running PostgreSQL server, killed when it is dropped.
pub struct PostgresServer {
    folder: TempDir,
    port: ReservedPort,
    process: Option<Child>,
    settings: Vec<(String, String)>,
}

/// The folder with PostgreSQL's programs: the newest that Debian has installed.
///
/// # Panics
/// If there is none.
pub fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((version, entry.path().join("bin")))
    });
    let newest = newest.filter(|(_, programs)| programs.join("initdb").is_file()).max();
    newest.unwrap_or_else(|| panic!("no PostgreSQL in /usr/lib/postgresql: run tests/install")).1
}

/// A command of PostgreSQL. The server refuses to run as root, so root runs it as the user `postgres` of the package.
fn command(program: &str, with_parent: bool) -> Command {
    let mut command = Command::new("setpriv");
    if with_parent {
        command.args(["--pdeathsig", "KILL"]);
    }
    command.args(as_server_user());
    // It would complain of a folder that its user must not read.
    command.current_dir("/tmp").arg("--").arg(programs().join(program)).stdin(Stdio::null());
    command
}

/// The arguments of setpriv that change from root to the user of the package.
fn as_server_user() -> &'static [&'static str] {
    if is_root() { &["--reuid", NAME, "--regid", NAME, "--clear-groups"] } else { &[] }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Gives a folder or a file to the user that the server runs as.
fn hand_over(path: &Path) {
    if is_root() {
        let users = fs::read_to_string("/etc/passwd").expect("the list of users");
        let user = users.lines().find_map(|line| line.strip_prefix("postgres:x:")).expect("the user `postgres`");
        let mut numbers = user.split(':').map(|number| number.parse().ok());
        chown(path, numbers.next().flatten(), numbers.next().flatten()).expect("changes the owner");
    }
}

impl PostgresServer {
    /// Creates a database cluster in memory and starts its server with the default settings.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Like [`start`](Self::start), on a disk: each commit takes as long as there.
    pub fn start_on_disk() -> Self {
        Self::start_in(template::DISK, &[])
    }

    /// Like [`start_with`](Self::start_with), with the cluster in a folder below `place`.
    pub fn start_in(place: &str, settings: &[(&str, &str)]) -> Self {
        let mut server = Self::create_in(place, settings);
        server.run();
        server
    }

    /// Creates a database cluster and starts its server with these settings, as in postgresql.conf.
    ///
    /// # Panics
    /// If PostgreSQL is not installed or does not start; the log is in the message.
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let mut server = Self::create(settings);
        server.run();
        server
    }

    /// Like [`start`](Self::start), with TLS for the clients that want it.
    pub fn start_tls(certificates: &Certificates) -> Self {
        let mut server = Self::create(&[("ssl", "on")]);
        for (setting, from) in
            [("ssl_cert_file", certificates.server_certificate()), ("ssl_key_file", certificates.server_key())]
        {
            let to = server.folder.path().join(setting);
            fs::copy(from, &to).expect("copies a certificate");
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("sets the mode of a file");
            hand_over(&to);
            server.set(setting, &to.display().to_string());
        }
        server.run();
        server
    }

    fn create(settings: &[(&str, &str)]) -> Self {
        Self::create_in(template::place(), settings)
    }

    fn create_in(place: &str, settings: &[(&str, &str)]) -> Self {
        let folder = template::folder(place);
        let data = folder.path().join("data");
        copy_folder(&template::cluster(), &data);
        // A copied folder of test programs may have lost owners and modes.
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).expect("sets the mode of a folder");
        if is_root() {
            let status = Command::new("chown").args(["-R", &format!("{NAME}:{NAME}")]).arg(&data).status();
            assert!(status.expect("runs chown").success(), "chown -R {}", data.display());
        }
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { folder, port: ReservedPort::new(), process: None, settings }
    }

    /// Starts a standby that follows a server: it can be read, and becomes a server of its own with `pg_promote()`.
    ///
    /// # Panics
    /// If the copy fails.
    pub fn standby(primary: &Self) -> Self {
        let folder = template::folder(template::place());
        let output = command("pg_basebackup", false)
            .args(["-h", "127.0.0.1", "-p", &primary.port.number().to_string(), "-U", NAME, "-R", "-X", "stream"])
            .args(["-c", "fast", "--no-sync", "-D"])
            .arg(folder.path().join("data"))
            .output()
            .expect("runs pg_basebackup");
        assert!(output.status.success(), "pg_basebackup:\n{}", String::from_utf8_lossy(&output.stderr));
        let mut standby = Self { folder, port: ReservedPort::new(), process: None, settings: Vec::new() };
        standby.run();
        standby
    }

    /// Starts the server again, at the same port, after [`stop`](Self::stop) or [`kill`](Self::kill). Nothing happens if it
    /// runs.
    pub fn run(&mut self) {
        if self.process.is_some() {
            return;
        }
        let mut process = None;
        eventually("PostgreSQL to start", PATIENCE, || {
            let started = process.get_or_insert_with(|| self.spawn());
            if started.try_wait().expect("the state of a child").is_some() {
                // After a SIGKILL the cluster counts as in use until the last backend has noticed it.
                process = None;
                return None;
            }
            self.is_ready().then_some(())
        });
        self.process = process;
    }

    fn spawn(&self) -> Child {
        let mut log = fs::OpenOptions::new();
        let log = log.create(true).append(true).open(self.folder.path().join("log")).expect("a log file");
        let mut command = command("postgres", true);
        command.arg("-D").arg(self.folder.path().join("data")).args(["-p", &self.port.number().to_string()]);
        command.arg("-k").arg(self.folder.path()).args(["-h", "127.0.0.1"]);
        // Files of the cluster, which go with it. POSIX segments would outlive a server that is killed.
        command.args(["-c", "dynamic_shared_memory_type=mmap"]);
        for (name, value) in &self.settings {
            command.args(["-c", &format!("{name}={value}")]);
        }
        command.stdout(Stdio::null()).stderr(log).spawn().expect("starts PostgreSQL")
    }

    /// Returns whether the server accepts connections.
    pub fn is_ready(&self) -> bool {
        if TcpStream::connect(("127.0.0.1", self.port.number())).is_err() {
            return false;
        }
        let status = Command::new(programs().join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &self.port.number().to_string()])
            .status()
            .expect("runs pg_isready");
        status.success()
    }

    /// The URL of the database `postgres`, for the superuser, without a password.
    pub fn url(&self) -> String {
        format!("postgres://{NAME}@127.0.0.1:{}/{NAME}", self.port.number())
    }

    /// The server's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The folder of the server's Unix socket and of its log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The server's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Replaces the rules for logins (pg_hba.conf), at once.
    ///
    /// # Panics
    /// If the server does not run.
    pub fn set_logins(&self, rules: &str) {
        fs::write(self.folder.path().join("data/pg_hba.conf"), rules).expect("writes the rules");
        self.sql("SELECT pg_reload_conf()");
    }

    /// Changes a setting for the next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Kills the server with SIGKILL, as a crash would. Nothing happens if it does not run.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kills its child");
            process.wait().expect("the end of a child");
        }
    }

    /// Stops the server in an orderly way; sessions are disconnected ("fast" shutdown).
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            signal(process.id(), "INT");
            process.wait().expect("the end of a child");
        }
    }

    /// Copies the cluster, which [`restore`](Self::restore) brings back. The server must be stopped.
    ///
    /// # Panics
    /// If the server runs.
    pub fn back_up(&self) -> TempDir {
        assert!(self.process.is_none(), "a cluster is copied only while its server is stopped");
        let copy = template::folder(template::place());
        copy_folder(&self.folder.path().join("data"), &copy.path().join("data"));
        copy
    }

    /// Replaces the cluster by an older copy. The server must be stopped.
    ///
    /// # Panics
    /// If the server runs.
    pub fn restore(&self, copy: &TempDir) {
        assert!(self.process.is_none(), "a cluster is replaced only while its server is stopped");
        free_shared_memory(self.folder.path());
        let data = self.folder.path().join("data");
        fs::remove_dir_all(&data).expect("removes the cluster");
        copy_folder(&copy.path().join("data"), &data);
    }

    /// Stops every process of the server with SIGSTOP: connections stay open and nothing answers.
    pub fn pause(&self) {
        self.signal_all("STOP");
    }

    /// Continues every process of the server after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.signal_all("CONT");
    }

    /// Signals the server and its children. A child may end before it is signaled, as one that serves a closed connection does.
    fn signal_all(&self, name: &str) {
        let processes = self.processes();
        processes.iter().take(1).for_each(|server| signal(*server, name));
        for child in processes.iter().skip(1) {
            let signaled = try_signal(*child, name);
            assert!(signaled || !Path::new(&format!("/proc/{child}")).exists(), "kill -s {name} {child}");
        }
    }

    /// The server's processes, its own first.
    fn processes(&self) -> Vec<u32> {
        let own = self.process.as_ref().expect("a running server").id();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        std::iter::once(own).chain(children.split_whitespace().filter_map(|child| child.parse().ok())).collect()
    }

    /// Runs SQL with psql and returns its rows, one a line, columns separated by `|`.
    ///
    /// # Panics
    /// If the SQL fails.
    pub fn sql(&self, sql: &str) -> String {
        let output = Command::new(programs().join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, &self.url()])
            .output()
            .expect("runs psql");
        assert!(output.status.success(), "{sql}:\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Ends every other session of the server and returns their number.
    pub fn terminate_sessions(&self) -> usize {
        let ended = self.sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        );
        ended.parse().expect("a number")
    }
}

/// Copies a folder with the owners and modes of its files.
fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to).status().expect("runs cp");
    assert!(status.success(), "cp -a: {status}");
}

/// Removes the segment of shared memory by which a server claims its cluster. A server that is killed leaves it, and a machine
/// has 4,096 of them at most. One that still has users is removed with the last of them.
fn free_shared_memory(folder: &Path) {
    if let Some(id) = shared_memory(folder) {
        // The server may remove it itself at this moment.
        let _ = Command::new("ipcrm").args(["-m", &id]).stderr(Stdio::null()).status().expect("runs ipcrm");
    }
}

/// Returns the id of the segment of a server that did not end in an orderly way.
fn shared_memory(folder: &Path) -> Option<String> {
    // The first line has the process, the seventh the key and the id of its segment.
    let file = fs::read_to_string(folder.join("data/postmaster.pid")).ok()?;
    let process = file.lines().next()?;
    let mut segment = file.lines().nth(6)?.split_whitespace();
    let (key, id) = (segment.next()?, segment.next()?);
    // The columns: key, id, mode, size, creator. After a reboot, the id may be that of another program.
    let segments = fs::read_to_string("/proc/sysvipc/shm").expect("the list of shared memory");
    let is_own = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        columns.len() > 4 && columns[0] == key && columns[1] == id && columns[4] == process
    };
    segments.lines().any(is_own).then(|| id.to_owned())
}

fn signal(process: u32, signal: &str) {
    assert!(try_signal(process, signal), "kill -s {signal} {process}");
}

/// Signals a process. Returns false if that failed, for instance because it has ended.
fn try_signal(process: u32, signal: &str) -> bool {
    Command::new("kill").args(["-s", signal, &process.to_string()]).status().expect("runs kill").success()
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
        free_shared_memory(self.folder.path());
        if std::thread::panicking() {
            let log = self.log();
            let complaints =
                log.lines().filter(|line| line.contains("ERROR") || line.contains("FATAL") || line.contains("PANIC"));
            eprintln!("complaints of PostgreSQL:");
            complaints.rev().take(10).for_each(|line| eprintln!("  {line}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn killed_servers_leave_no_shared_memory() {
        let mut server = PostgresServer::start();
        server.kill();
        let id = shared_memory(server.folder()).expect("a killed server leaves its segment");
        server.run();
        assert_ne!(shared_memory(server.folder()), Some(id), "the next one replaces it");
        let id = shared_memory(server.folder()).expect("the segment of a running server");
        drop(server);
        eventually("the segment to be removed", PATIENCE, || {
            let segments = fs::read_to_string("/proc/sysvipc/shm").expect("the list of shared memory");
            let ids = segments.lines().filter_map(|line| line.split_whitespace().nth(1));
            (!ids.into_iter().any(|other| other == id)).then_some(())
        });
    }
}
