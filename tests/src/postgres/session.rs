//! A session that stays open between statements, and so can hold locks.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::{PostgresServer, programs};

/// A session with psql. Dropping it ends the session, which rolls back.
pub struct Session {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    /// Connects as the superuser.
    ///
    /// # Panics
    /// If psql does not start.
    pub fn start(server: &PostgresServer) -> Self {
        let mut process = Command::new(programs().join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", &server.url()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts psql");
        let (input, output) = (process.stdin.take().expect("an input"), process.stdout.take().expect("an output"));
        Self { process, input, output: BufReader::new(output) }
    }

    /// Runs SQL and waits until it is done.
    ///
    /// # Panics
    /// If the session has ended, for example by an error.
    pub fn sql(&mut self, sql: &str) {
        writeln!(self.input, "{sql};\n\\echo done").expect("writes to psql");
        let mut line = String::new();
        while line != "done\n" {
            line.clear();
            assert!(self.output.read_line(&mut line).expect("reads from psql") > 0, "psql has ended: {sql}");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
