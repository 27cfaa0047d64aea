//! The processes of the nodes, and the servers between them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tempfile::TempDir;
use whizbang::PostgresStore;
use whizbang_tests::nats::{NatsCluster, Release};
use whizbang_tests::postgres::PostgresServer;
use whizbang_tests::{StallingProxy, eventually};

/// The time limit for the start and the stop of a process.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The lease of the nodes: the shortest allowed one, so that takeovers are frequent.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

pub(crate) const SERVICES: [&str; 2] = ["bank", "transfers"];

/// The nodes of each service.
pub(crate) const NODES: usize = 3;

/// One process of a service.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Waits for a line of output.
    pub(crate) fn wait_for(&self, wanted: &str) {
        let line = self.lines.recv_timeout(TIMEOUT);
        assert_eq!(line.as_deref(), Ok(wanted), "the output of a node");
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status =
            Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status().expect("runs kill");
        assert!(status.success(), "kill -s {signal}");
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("kills its child");
        self.child.wait().expect("the end of a child");
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end after SIGTERM.
    pub(crate) fn ends_in_order(&mut self) {
        self.wait_for("stopped");
        assert!(self.child.wait().expect("the end of a child").success(), "a node ended with an error");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A failed test leaves no process behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The way of one node to the servers. It is the same for all processes of the node.
pub(crate) struct Network {
    pub(crate) postgres: StallingProxy,
    pub(crate) nats: Vec<StallingProxy>,
}

impl Network {
    fn start(postgres: &PostgresServer, nats: &NatsCluster) -> Self {
        let nats = nats.ports().into_iter().map(StallingProxy::start).collect();
        Self { postgres: StallingProxy::start(postgres.port()), nats }
    }

    fn postgres_url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.postgres.port())
    }

    fn nats_url(&self) -> String {
        let urls: Vec<_> = self.nats.iter().map(|proxy| format!("nats://127.0.0.1:{}", proxy.port())).collect();
        urls.join(",")
    }
}

/// All servers and processes of a test.
pub(crate) struct Cluster {
    pub(crate) postgres: PostgresServer,
    pub(crate) nats: NatsCluster,
    /// By service and number.
    pub(crate) networks: [[Network; NODES]; 2],
    /// By service and number.
    pub(crate) nodes: [[Option<Process>; NODES]; 2],
    logs: TempDir,
    started: usize,
}

impl Cluster {
    /// Starts the servers, and every node of both services.
    pub(crate) fn start(release: Release) -> Self {
        let (postgres, nats) = (PostgresServer::start(), NatsCluster::start(release));
        let logs = tempfile::tempdir().expect("a folder");
        let networks = std::array::from_fn(|_| std::array::from_fn(|_| Network::start(&postgres, &nats)));
        let mut cluster = Self { postgres, nats, networks, nodes: Default::default(), logs, started: 0 };
        for service in 0..SERVICES.len() {
            for number in 0..NODES {
                cluster.start_node(service, number);
                cluster.wait_until_ready(service, number);
            }
        }
        cluster
    }

    /// Starts a node; the caller waits until it is ready.
    pub(crate) fn start_node(&mut self, service: usize, number: usize) {
        self.started += 1;
        let network = &self.networks[service][number];
        let log = fs::File::create(self.log_of(self.started)).expect("a log file");
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_cluster-node")])
            .args([SERVICES[service], &network.postgres_url(), &network.nats_url(), &LEASE.as_millis().to_string()])
            .env("SINGLETON", self.singleton_file(service))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("starts a node");
        let stdout = BufReader::new(child.stdout.take().expect("its output"));
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        self.nodes[service][number] = Some(Process { child, lines });
    }

    pub(crate) fn wait_until_ready(&self, service: usize, number: usize) {
        self.node(service, number).wait_for("ready");
    }

    pub(crate) fn node(&self, service: usize, number: usize) -> &Process {
        self.nodes[service][number].as_ref().expect("a running node")
    }

    /// Kills a node with SIGKILL.
    pub(crate) fn kill(&mut self, service: usize, number: usize) {
        self.nodes[service][number].take().expect("a running node").kill();
    }

    /// Stops every node in order.
    pub(crate) fn stop(&mut self) {
        for node in self.nodes.iter().flatten().flatten() {
            node.signal("TERM");
        }
        for node in self.nodes.iter_mut().flatten() {
            node.take().expect("a running node").ends_in_order();
        }
    }

    /// Returns the number of shards that each live member of a service owns, ordered by member.
    pub(crate) fn shards_by_owner(&self, service: usize) -> Vec<usize> {
        let sql = include_str!("owners.sql").replace("SCHEMA", SERVICES[service]);
        self.postgres.sql(&sql).lines().map(|line| line.parse().expect("a number")).collect()
    }

    /// Waits until all shards of a service are spread evenly over `members` nodes.
    pub(crate) fn wait_until_even(&self, service: usize, members: usize) {
        let mut seen = Vec::new();
        eventually(&format!("{members} owners of {}", SERVICES[service]), TIMEOUT, || {
            seen = self.shards_by_owner(service);
            let spread = seen.iter().max().zip(seen.iter().min()).map(|(most, least)| most - least);
            (seen.len() == members && seen.iter().sum::<usize>() == 16 && spread <= Some(1)).then_some(())
        });
    }

    /// Opens the store of a service after its nodes have stopped.
    pub(crate) async fn store(&self, service: usize) -> PostgresStore {
        PostgresStore::builder(&self.postgres.url())
            .schema(SERVICES[service])
            .exclusive()
            .connect()
            .await
            .expect("connects")
    }

    /// Returns the file that the singleton of a service writes.
    pub(crate) fn singleton_file(&self, service: usize) -> PathBuf {
        self.logs.path().join(format!("singleton-of-{}", SERVICES[service]))
    }

    fn log_of(&self, number: usize) -> PathBuf {
        self.logs.path().join(format!("node-{number}.log"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for number in 1..=self.started {
                let log = fs::read_to_string(self.log_of(number)).unwrap_or_default();
                let lines: Vec<_> =
                    log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
                eprintln!("node {number}: {} warnings and errors", lines.len());
                lines.iter().rev().take(20).rev().for_each(|line| eprintln!("  {line}"));
            }
        }
    }
}
