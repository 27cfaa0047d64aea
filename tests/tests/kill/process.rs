//! A node's process, and what it has said.

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

/// After this long a process that says nothing is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that runs, and the lines it says.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    reader: Option<JoinHandle<()>>,
}

/// All that processes have said.
#[derive(Default)]
pub(crate) struct Told {
    ledger: Ledger,
    open: BTreeSet<MessageId>,
    acknowledged: usize,
    begun: BTreeSet<String>,
    words: BTreeSet<String>,
}

impl Process {
    pub(crate) fn start(folder: &Path, life: u64) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bank-node"))
            .arg(folder)
            .arg(life.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        // Reads all the time: a process that cannot write would wait for its reader.
        let reader = std::thread::spawn(move || {
            for line in output.split(b'\n').map(Result::unwrap) {
                let _ = send.send(String::from_utf8(line).unwrap());
            }
        });
        Self { child, lines, reader: Some(reader) }
    }

    /// Reads up to a line.
    #[track_caller]
    pub(crate) fn read_until(&mut self, told: &mut Told, wanted: &str) {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("the process says something");
            told.hear(&line);
            if line == wanted {
                return;
            }
        }
    }

    /// Reads what is said within `span`.
    pub(crate) fn read_for(&mut self, told: &mut Told, span: Duration) {
        let end = Instant::now() + span;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            told.hear(&line);
        }
    }

    /// Reads what is left once the process has been ended.
    pub(crate) fn read_rest(&mut self, told: &mut Told) {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            told.hear(&line);
        }
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Tells it to end with SIGTERM.
    pub(crate) fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// The code with which it has ended.
    pub(crate) fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A test that has failed leaves nothing running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Told {
    fn hear(&mut self, line: &str) {
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
            ["begun", transfer] => drop(self.begun.insert(transfer.to_owned())),
            [word @ ("ready" | "stopped")] => drop(self.words.insert(word.to_owned())),
            // Only a process that is killed in the midst of a line says less than a line.
            _ => panic!("`{line}` is no line of a node"),
        }
    }

    /// How many commands have no answer since this was asked before.
    pub(crate) fn open(&mut self) -> usize {
        std::mem::take(&mut self.open).len()
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    pub(crate) fn has_said(&self, word: &str) -> bool {
        self.words.contains(word)
    }

    pub(crate) fn forget(&mut self, word: &str) {
        self.words.remove(word);
    }

    /// The transfers of which a client knows that they have begun.
    pub(crate) fn begun(&self) -> BTreeSet<String> {
        self.begun.clone()
    }

    pub(crate) fn into_ledger(self) -> Ledger {
        self.ledger
    }
}
