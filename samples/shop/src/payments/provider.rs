//! A payment provider such as shops deal with: another company, with a ledger that the shop cannot read. It remembers
//! idempotency keys, declines some, answers some late, and some not at all although it has taken the money.
//!
//! It is not part of the shop. Its behavior follows from the order's name, so that runs can be repeated.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The provider's behavior: for each kind a number of orders in a thousand.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// It declines.
    pub declines: u32,
    /// It answers after [`late`](Self::late).
    pub answers_late: u32,
    /// The delay.
    pub late: Duration,
    /// It charges, and its first answer gets lost.
    pub loses_answers: u32,
    /// It is silent for [`silence`](Self::silence), whatever it is asked, and charges then.
    pub falls_silent: u32,
    /// For how long.
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

/// The provider's behavior towards one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mood {
    /// It charges and says so.
    Good,
    /// It declines.
    Declines,
    /// It charges and says so late.
    AnswersLate,
    /// It charges, and its first answer gets lost.
    LosesAnswer,
    /// It says nothing for long, and charges then.
    FallsSilent,
}

impl Habits {
    /// Returns the provider's behavior towards an order. It follows from the order's name.
    pub fn mood(&self, order: &str) -> Mood {
        let mut dice = crc32fast::hash(order.as_bytes()) % 1000;
        let moods = [
            (self.declines, Mood::Declines),
            (self.answers_late, Mood::AnswersLate),
            (self.falls_silent, Mood::FallsSilent),
            (self.loses_answers, Mood::LosesAnswer),
        ];
        for (share, mood) in moods {
            if dice < share {
                return mood;
            }
            dice -= share;
        }
        Mood::Good
    }
}

/// Why the provider does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProviderError {
    /// It does not want to, and never will.
    #[error("declined: {0}")]
    Declined(&'static str),
    /// It cannot right now.
    #[error("the provider's ledger cannot be written")]
    Ledger(#[from] io::Error),
}

/// The lines of a ledger. A line that was half written when a process was killed was never answered, and is left out.
fn entries(ledger: &File) -> impl Iterator<Item = io::Result<Entry>> {
    let lines = BufReader::new(ledger).split(b'\n');
    lines.filter_map(|line| line.map(|line| serde_json::from_slice(&line).ok()).transpose())
}

/// The charges in a provider's ledger less the refunds, in cents. A missing ledger counts as zero.
///
/// # Errors
/// An I/O error if the file cannot be read.
pub fn balance_cents(ledger: &Path) -> io::Result<i64> {
    match File::open(ledger) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        ledger => entries(&ledger?).map(|entry| Ok(entry?.cents)).sum(),
    }
}

/// A payment provider. Clones are the same company, with the same books.
#[derive(Clone)]
pub struct Provider {
    habits: Habits,
    books: Arc<Mutex<Books>>,
}

struct Books {
    ledger: File,
    /// The keys that were asked with.
    known: HashSet<String>,
    silent_until: HashMap<String, tokio::time::Instant>,
}

/// One line of the ledger. Money that goes back is negative.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    key: String,
    order: String,
    cents: i64,
}

impl Provider {
    /// A provider with a ledger in a file.
    ///
    /// # Errors
    /// An I/O error if the file cannot be read or created.
    pub fn open(path: &Path, habits: Habits) -> io::Result<Self> {
        let mut ledger = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let known = entries(&ledger).map(|entry| Ok(entry?.key)).collect::<io::Result<_>>()?;
        // The next line must not continue a half written one.
        let mut last = [b'\n'];
        if ledger.metadata()?.len() > 0 {
            ledger.seek(SeekFrom::End(-1))?;
            ledger.read_exact(&mut last)?;
        }
        if last != [b'\n'] {
            ledger.write_all(b"\n")?;
        }
        let books = Books { ledger, known, silent_until: HashMap::new() };
        Ok(Self { habits, books: Arc::new(Mutex::new(books)) })
    }

    /// Charges an order, once for each key, and answers with a receipt.
    pub(super) async fn charge(&self, key: &str, order: &str, cents: u64) -> Result<String, ProviderError> {
        let mood = self.habits.mood(order);
        match mood {
            Mood::Declines => return Err(ProviderError::Declined("the card is not covered")),
            Mood::AnswersLate => tokio::time::sleep(self.habits.late).await,
            Mood::FallsSilent => self.silence(order).await,
            Mood::LosesAnswer | Mood::Good => {}
        }
        let first = self.enter(key, order, i64::try_from(cents).unwrap_or(i64::MAX))?;
        if mood == Mood::LosesAnswer && first {
            std::future::pending::<()>().await;
        }
        Ok(format!("charged-{key}"))
    }

    /// Gives money back, once for each key, and answers with a receipt.
    pub(super) async fn give_back(&self, key: &str, order: &str, cents: u64) -> Result<String, ProviderError> {
        self.enter(key, order, -i64::try_from(cents).unwrap_or(i64::MAX))?;
        Ok(format!("returned-{key}"))
    }

    /// Keeps silent about an order from the first time it is asked.
    async fn silence(&self, order: &str) {
        let until = {
            let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
            let until = tokio::time::Instant::now() + self.habits.silence;
            *books.silent_until.entry(order.to_owned()).or_insert(until)
        };
        tokio::time::sleep_until(until).await;
    }

    /// Writes a line into the ledger unless its key is known. Whether it was new.
    fn enter(&self, key: &str, order: &str, cents: i64) -> Result<bool, ProviderError> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        if books.known.contains(key) {
            return Ok(false);
        }
        let entry = Entry { key: key.to_owned(), order: order.to_owned(), cents };
        let mut line = serde_json::to_string(&entry).map_err(io::Error::from)?;
        line.push('\n');
        books.ledger.write_all(line.as_bytes())?;
        books.known.insert(entry.key);
        Ok(true)
    }
}
