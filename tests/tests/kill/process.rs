//! The process of a node, and its output.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use whizbang::message::MessageId;
use whizbang_tests::checker::Ledger;

/// The time limit for the next line of a process.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A running process and the lines that it prints.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    reader: Option<JoinHandle<()>>,
}

/// The output of all processes so far: the knowledge of the clients.
#[derive(Default)]
pub(crate) struct Output {
    ledger: Ledger,
    open: BTreeSet<MessageId>,
    acknowledged: usize,
    started: BTreeSet<String>,
    words: BTreeSet<String>,
}

impl Process {
    pub(crate) fn start(folder: &Path, life: u64) -> Self {
        Self::start_with_broker(folder, life, None)
    }

    /// Starts a node that publishes its events to a NATS server.
    pub(crate) fn start_with_broker(folder: &Path, life: u64, server: Option<&str>) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bank-node"))
            .arg(folder)
            .arg(life.to_string())
            .args(server)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        // A thread drains the pipe, so that the process never blocks on a write.
        let reader = std::thread::spawn(move || {
            for line in stdout.split(b'\n').map(Result::unwrap) {
                let _ = send.send(String::from_utf8(line).unwrap());
            }
        });
        Self { child, lines, reader: Some(reader) }
    }

    /// Reads lines up to `wanted`.
    #[track_caller]
    pub(crate) fn read_until(&mut self, output: &mut Output, wanted: &str) {
        loop {
            let line = self.lines.recv_timeout(TIMEOUT).expect("the process prints a line");
            output.add(&line);
            if line == wanted {
                return;
            }
        }
    }

    /// Reads this many lines.
    #[track_caller]
    pub(crate) fn read_lines(&mut self, output: &mut Output, lines: u64) {
        for _ in 0..lines {
            output.add(&self.lines.recv_timeout(TIMEOUT).expect("the process prints a line"));
        }
    }

    /// Reads until the clients got this many replies.
    #[track_caller]
    pub(crate) fn read_replies(&mut self, output: &mut Output, replies: u64) {
        let end = Instant::now() + TIMEOUT;
        let wanted = output.acknowledged + usize::try_from(replies).unwrap();
        while output.acknowledged < wanted {
            let left = end.saturating_duration_since(Instant::now());
            output.add(&self.lines.recv_timeout(left).expect("the clients get replies"));
        }
    }

    /// Reads the lines of the next `span`.
    pub(crate) fn read_for(&mut self, output: &mut Output, span: Duration) {
        let end = Instant::now() + span;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            output.add(&line);
        }
    }

    /// Reads the rest of the output after the process has ended.
    pub(crate) fn read_rest(&mut self, output: &mut Output) {
        while let Ok(line) = self.lines.recv_timeout(TIMEOUT) {
            output.add(&line);
        }
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
    }

    /// Kills the process with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Terminates the process with SIGTERM.
    pub(crate) fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end of the process. Returns its exit code.
    pub(crate) fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A failed test leaves no process behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    fn add(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let id = |text: &str| MessageId::parse(text).unwrap_or_else(|| panic!("no id in `{line}`"));
        match words[..] {
            ["sends", text] => {
                self.ledger.sends(id(text));
                self.open.insert(id(text));
            }
            ["refused", text] => {
                self.ledger.refused(id(text));
                self.open.remove(&id(text));
            }
            ["replied", text, hex] => {
                let pairs = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
                let bytes: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
                self.ledger.replied(id(text), Bytes::from(bytes));
                self.open.remove(&id(text));
                self.acknowledged += 1;
            }
            ["begun", transfer] => {
                self.started.insert(transfer.to_owned());
            }
            [word @ ("ready" | "stopped")] => {
                self.words.insert(word.to_owned());
            }
            // The last line may be partial only if the kill interrupted its write, which is one system call.
            _ => panic!("unexpected line `{line}`"),
        }
    }

    /// Returns the number of commands without an answer since the last call.
    pub(crate) fn take_unanswered(&mut self) -> usize {
        std::mem::take(&mut self.open).len()
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    pub(crate) fn contains(&self, word: &str) -> bool {
        self.words.contains(word)
    }

    pub(crate) fn forget(&mut self, word: &str) {
        self.words.remove(word);
    }

    /// Returns the transfers whose start was acknowledged to a client.
    pub(crate) fn started_transfers(&self) -> BTreeSet<String> {
        self.started.clone()
    }

    pub(crate) fn into_ledger(self) -> Ledger {
        self.ledger
    }
}
