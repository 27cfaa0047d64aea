//! A simulated payment provider: an external company with its own ledger. It remembers idempotency keys, declines some charges,
//! answers some late, and loses some answers after charging.
//!
//! Several processes may share the ledger: a file lock orders their entries.
//!
//! It is not part of the shop. Its behavior is a function of the order id, so that runs are repeatable.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The frequency of each behavior, in orders per thousand.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Declined charges.
    pub declines: u32,
    /// Answers after the delay [`late`](Self::late).
    pub answers_late: u32,
    /// The delay of late answers.
    pub late: Duration,
    /// Charges whose first answer is lost.
    pub loses_answers: u32,
    /// Charges that are answered only [`silence`](Self::silence) after the first request, whatever the number of retries.
    pub falls_silent: u32,
    /// The duration without an answer.
    pub silence: Duration,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            declines: 30,
            answers_late: 20,
            late: Duration::from_millis(40),
            loses_answers: 4,
            falls_silent: 2,
            silence: Duration::from_secs(3),
        }
    }
}

/// The behavior for one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Behavior {
    /// Charges and answers.
    Good,
    /// Declines.
    Declines,
    /// Charges and answers late.
    AnswersLate,
    /// Charges, and loses the first answer.
    LosesAnswer,
    /// Charges and answers only after a long time.
    FallsSilent,
}

impl Habits {
    /// Returns the behavior for an order, a function of the order id.
    pub fn behavior(&self, order: &str) -> Behavior {
        let mut number = crc32fast::hash(order.as_bytes()) % 1000;
        let behaviors = [
            (self.declines, Behavior::Declines),
            (self.answers_late, Behavior::AnswersLate),
            (self.falls_silent, Behavior::FallsSilent),
            (self.loses_answers, Behavior::LosesAnswer),
        ];
        for (share, behavior) in behaviors {
            if number < share {
                return behavior;
            }
            number -= share;
        }
        Behavior::Good
    }
}

/// The reason for which the provider refuses a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProviderError {
    /// It does not want to, and never will.
    #[error("declined: {0}")]
    Declined(&'static str),
    /// The ledger cannot be written now.
    #[error("failed to write the ledger of the provider")]
    Ledger(#[from] io::Error),
}

/// Returns the entries of a ledger. Skips a partial line, which a killed process leaves and never answered.
fn entries(ledger: &File) -> impl Iterator<Item = io::Result<Entry>> {
    let lines = BufReader::new(ledger).split(b'\n');
    lines.filter_map(|line| line.map(|line| serde_json::from_slice(&line).ok()).transpose())
}

/// Returns the charges in a ledger less the refunds, in cents. A missing ledger counts as zero.
///
/// # Errors
/// An I/O error if the file cannot be read.
pub fn balance_cents(ledger: &Path) -> io::Result<i64> {
    match File::open(ledger) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        ledger => entries(&ledger?).map(|entry| Ok(entry?.cents)).sum(),
    }
}

/// A payment provider. Clones and other processes share one ledger.
#[derive(Clone)]
pub struct Provider {
    habits: Habits,
    books: Arc<Mutex<Books>>,
}

struct Books {
    ledger: File,
    /// The idempotency keys in the ledger, up to `read_to`.
    known: HashSet<String>,
    /// The end of the last line that was read or written.
    read_to: u64,
    silent_until: HashMap<String, tokio::time::Instant>,
}

/// One line of the ledger. Refunds are negative.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    key: String,
    order: String,
    cents: i64,
}

impl Provider {
    /// Opens a provider whose ledger is the file `path`, and creates the file if it is missing.
    ///
    /// # Errors
    /// An I/O error if the file cannot be read or created.
    pub fn open(path: &Path, habits: Habits) -> io::Result<Self> {
        let ledger = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let books = Books { ledger, known: HashSet::new(), read_to: 0, silent_until: HashMap::new() };
        Ok(Self { habits, books: Arc::new(Mutex::new(books)) })
    }

    /// Charges an order, once per key, and returns a receipt.
    pub(super) async fn charge(&self, key: &str, order: &str, cents: u64) -> Result<String, ProviderError> {
        let behavior = self.habits.behavior(order);
        match behavior {
            Behavior::Declines => return Err(ProviderError::Declined("the card is not covered")),
            Behavior::AnswersLate => tokio::time::sleep(self.habits.late).await,
            Behavior::FallsSilent => self.silence(order).await,
            Behavior::LosesAnswer | Behavior::Good => {}
        }
        let first = self.enter(key, order, i64::try_from(cents).unwrap_or(i64::MAX))?;
        if behavior == Behavior::LosesAnswer && first {
            std::future::pending::<()>().await;
        }
        Ok(format!("charged-{key}"))
    }

    /// Returns money, once per key, with a receipt.
    pub(super) async fn give_back(&self, key: &str, order: &str, cents: u64) -> Result<String, ProviderError> {
        self.enter(key, order, -i64::try_from(cents).unwrap_or(i64::MAX))?;
        Ok(format!("returned-{key}"))
    }

    /// Waits until the silence about an order ends, which starts with its first request.
    async fn silence(&self, order: &str) {
        let until = {
            let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
            let until = tokio::time::Instant::now() + self.habits.silence;
            *books.silent_until.entry(order.to_owned()).or_insert(until)
        };
        tokio::time::sleep_until(until).await;
    }

    /// Writes an entry to the ledger unless its key is known. Returns true if the key was new.
    fn enter(&self, key: &str, order: &str, cents: i64) -> Result<bool, ProviderError> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        if books.known.contains(key) {
            return Ok(false);
        }
        // The lock ends with the process that holds it, so a killed process blocks no other.
        books.ledger.lock()?;
        let entered = books.enter(Entry { key: key.to_owned(), order: order.to_owned(), cents });
        books.ledger.unlock()?;
        Ok(entered?)
    }
}

impl Books {
    /// Reads the entries of other processes, then writes an entry unless its key is known. The ledger is locked.
    fn enter(&mut self, entry: Entry) -> io::Result<bool> {
        self.ledger.seek(SeekFrom::Start(self.read_to))?;
        let mut news = Vec::new();
        self.ledger.read_to_end(&mut news)?;
        if news.last().is_some_and(|last| *last != b'\n') {
            // A killed process has left a partial line, which the next entry must not continue.
            self.ledger.write_all(b"\n")?;
            news.push(b'\n');
        }
        self.read_to += news.len() as u64;
        let known = news.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        self.known.extend(known.map(|entry: Entry| entry.key));
        if self.known.contains(&entry.key) {
            return Ok(false);
        }
        let mut line = serde_json::to_string(&entry)?;
        line.push('\n');
        self.ledger.write_all(line.as_bytes())?;
        self.read_to += line.len() as u64;
        self.known.insert(entry.key);
        Ok(true)
    }
}
