//! Real nats-servers: each test starts its own, on a free port, in a temporary folder.
//!
//! Called by the black-box tests and the benchmark. A server is killed when the thread that started it ends, however it ends.
//! A missing server program fails the test, so a passing test has used a real server.

mod certificates;
mod cluster;
mod config;
mod fixture;
mod identity;
mod jetstream;
mod untrusted_client;
mod violations;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

pub use certificates::Certificates;
pub use cluster::{NatsCluster, is_replicated, stream_leader};
pub use config::NatsConfig;
pub use fixture::{ARRIVAL_TIMEOUT, NatsFixture};
pub use identity::{Operator, user_key};
pub use jetstream::JetStreamBroker;
pub use untrusted_client::UntrustedClient;
pub use violations::Violations;

use crate::{ReservedPort, eventually};

/// The time limit for the start of a server, which takes 14 ms on an idle machine.
const START: Duration = Duration::from_secs(20);

/// The release of nats-server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The distribution's release: 2.9.10 in Debian 12, the oldest supported one.
    Distribution,
    /// A recent release, pinned by hash in tests/servers.txt.
    Pinned,
}

impl Release {
    /// Returns the path of the program.
    ///
    /// # Panics
    /// If it is not installed.
    pub fn program(self) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let places = match self {
            Self::Distribution => vec![PathBuf::from("/usr/sbin/nats-server"), PathBuf::from("/usr/bin/nats-server")],
            Self::Pinned => vec![root.join(".tools/python/bin/nats-server")],
        };
        places.iter().find(|place| place.is_file()).cloned().unwrap_or_else(|| {
            panic!("no nats-server ({self:?}) in {places:?}: run tests/install, which fetches what the tests need")
        })
    }
}

/// A running nats-server, killed when it is dropped.
pub struct NatsServer {
    release: Release,
    config: NatsConfig,
    folder: TempDir,
    port: ReservedPort,
    process: Option<Child>,
}

impl NatsServer {
    /// Starts a server with JetStream and default settings.
    pub fn start(release: Release) -> Self {
        Self::start_with(release, NatsConfig::default())
    }

    /// Starts a server with a configuration.
    ///
    /// # Panics
    /// If it is not installed or does not start; its log is in the message.
    pub fn start_with(release: Release, config: NatsConfig) -> Self {
        // Directly below /tmp, so that the paths of sockets and stores stay short.
        let folder = tempfile::Builder::new().prefix("whizbang-nats-").tempdir_in("/tmp").expect("a folder in /tmp");
        let mut server = Self { release, config, folder, port: ReservedPort::new(), process: None };
        server.run();
        server
    }

    fn run(&mut self) {
        let folder = self.folder.path();
        let file = folder.join("nats.conf");
        fs::write(&file, self.config.text(self.port.number(), folder)).expect("a configuration file");
        let mut log = fs::OpenOptions::new();
        let log = log.create(true).append(true).open(self.log_file()).expect("a log file");
        // The kernel kills the server when this thread ends, so that a killed test leaves no server behind.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(self.release.program())
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("setpriv: {error}; run tests/install"));
        let ports = folder.join(format!("nats-server_{}.ports", child.id()));
        eventually("nats-server to listen", START, || {
            if let Some(status) = child.try_wait().expect("the state of a child") {
                panic!("nats-server ended with {status}:\n{}", self.log());
            }
            read_port(&ports)
        });
        self.process = Some(child);
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("nats.log")
    }

    /// Returns the server's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Returns the release.
    pub fn release(&self) -> Release {
        self.release
    }

    /// Returns the address: `nats://127.0.0.1:PORT`, or `tls://localhost:PORT`.
    pub fn url(&self) -> String {
        if self.config.certificates.is_some() {
            format!("tls://localhost:{}", self.port.number())
        } else {
            format!("nats://127.0.0.1:{}", self.port.number())
        }
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Returns the process id.
    ///
    /// # Panics
    /// If the server is not running.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("a running server").id()
    }

    /// Returns the number of open sockets: the server's own, and one per client.
    ///
    /// # Panics
    /// If the server is not running.
    pub fn sockets(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("a running server");
        let targets = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    /// Kills the server with SIGKILL. No-op if it is not running.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kills its child");
            process.wait().expect("the end of a child");
        }
    }

    /// Stops the server with SIGTERM, so that it saves its state.
    pub fn stop(&mut self) {
        self.signal("TERM");
        if let Some(mut process) = self.process.take() {
            process.wait().expect("the end of a child");
        }
    }

    /// Starts the server again after [`kill`](Self::kill), at the same port, with the content of its store.
    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// Starts the server again with an empty store: all streams, consumers and messages are lost.
    pub fn restart_empty(&mut self) {
        self.kill();
        let store = self.folder.path().join("store");
        if store.exists() {
            fs::remove_dir_all(store).expect("removes the store");
        }
        self.run();
    }

    /// Starts the server again with another configuration, at the same port.
    pub fn restart_with(&mut self, config: NatsConfig) {
        self.kill();
        self.config = config;
        self.run();
    }

    /// Copies the store; [`restore`](Self::restore) restores it. The server must be stopped.
    pub fn back_up(&self) -> TempDir {
        assert!(self.process.is_none(), "a store is copied only while the server is stopped");
        let copy = tempfile::tempdir_in("/tmp").expect("a folder in /tmp");
        copy_folder(&self.folder.path().join("store"), copy.path());
        copy
    }

    /// Replaces the store with an older copy. The server must be stopped.
    pub fn restore(&self, copy: &TempDir) {
        assert!(self.process.is_none(), "a store is replaced only while the server is stopped");
        let store = self.folder.path().join("store");
        fs::remove_dir_all(&store).expect("removes the store");
        copy_folder(copy.path(), &store);
    }

    /// Replaces the messages of a stream with those of an older copy; its consumers are unchanged. The server must be stopped.
    pub fn restore_messages(&self, copy: &TempDir, stream: &str) {
        assert!(self.process.is_none(), "a store is replaced only while the server is stopped");
        let part = Path::new("jetstream").join("$G").join("streams").join(stream).join("msgs");
        let (older, current) = (copy.path().join(&part), self.folder.path().join("store").join(&part));
        fs::remove_dir_all(&current).expect("removes the messages");
        copy_folder(&older, &current);
    }

    /// Pauses the server with SIGSTOP: connections stay open and it does not respond.
    pub fn pause(&self) {
        self.signal("STOP");
        // `kill` returns once the signal is sent; the threads stop shortly afterwards.
        let threads = PathBuf::from(format!("/proc/{}/task", self.pid()));
        eventually("nats-server to pause", START, || {
            let mut states =
                fs::read_dir(&threads).ok()?.flatten().map(|thread| fs::read_to_string(thread.path().join("stat")));
            states.all(|stat| stat.is_ok_and(|stat| stat.contains(") T "))).then_some(())
        });
    }

    /// Resumes a paused server.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &self.pid().to_string()]).status().expect("runs kill");
        assert!(status.success(), "kill -s {signal}: {status}");
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            // Information lines are the same at each start.
            let said = log.lines().filter(|line| !line.contains("[INF]"));
            eprintln!("warnings of nats-server ({:?}):", self.release);
            said.take(10).for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// Returns the port from the file that the server writes once it listens.
fn read_port(file: &Path) -> Option<u16> {
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let url = ports.get("nats")?.get(0)?.as_str()?;
    url.rsplit(':').next()?.parse().ok()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("reads a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies a file");
        }
    }
}
