//! PgBouncer in transaction mode, in front of a server: each transaction may get another session.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{NAME, PATIENCE, PostgresServer, as_server_user, hand_over};
use crate::{ReservedPort, eventually};

/// A running PgBouncer, killed when it is dropped.
pub struct Pooler {
    // The configuration, which goes with the process.
    _folder: TempDir,
    port: ReservedPort,
    process: Child,
}

impl Pooler {
    /// Starts a PgBouncer with few sessions to a server, so that clients share them.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    pub fn start(server: &PostgresServer) -> Self {
        let folder = tempfile::Builder::new().prefix("whizbang-pooler-").tempdir_in("/tmp").expect("a folder in /tmp");
        let (file, port) = (folder.path().join("pgbouncer.ini"), ReservedPort::new());
        let text = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} user={NAME}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 3\n",
            server.port(),
            port.number()
        );
        fs::write(&file, text).expect("writes the configuration");
        hand_over(folder.path());
        hand_over(&file);
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .args(as_server_user())
            .args(["--", "/usr/sbin/pgbouncer", "-q"])
            .arg(&file);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.unwrap_or_else(|error| panic!("setpriv: {error}; run tests/install"));
        eventually("PgBouncer to listen", PATIENCE, || TcpStream::connect(("127.0.0.1", port.number())).ok());
        Self { _folder: folder, port, process }
    }

    /// The URL of the database `postgres` through the pooler.
    pub fn url(&self) -> String {
        format!("postgres://{NAME}@127.0.0.1:{}/{NAME}", self.port.number())
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
