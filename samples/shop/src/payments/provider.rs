//! A payment provider such as shops deal with: a company of its own, with a ledger that nobody here can see into. It remembers
//! idempotency keys, declines some, answers some late, and some not at all although it has taken the money.
//!
//! It is no part of the shop and knows nothing of it. What it does follows from the order's name, so that runs can be repeated.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How the provider behaves, each as so many orders of a thousand.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// It declines.
    pub declines: u32,
    /// It answers after [`late`](Self::late).
    pub answers_late: u32,
    /// How late.
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

/// How the provider takes an order.
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
    /// How the provider takes an order. It follows from the order's name.
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
    Ledger(#[from] std::io::Error),
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
    balance_cents: i64,
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
    /// What reading or creating the file can meet.
    pub fn open(path: &Path, habits: Habits) -> std::io::Result<Self> {
        let mut ledger = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let mut bytes = Vec::new();
        ledger.read_to_end(&mut bytes)?;
        // The last line may be half written: then nobody was told of it.
        let entries = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Entry>(line).ok());
        let (mut known, mut balance_cents) = (HashSet::new(), 0);
        for entry in entries {
            balance_cents += entry.cents;
            known.insert(entry.key);
        }
        if bytes.last().is_some_and(|byte| *byte != b'\n') {
            ledger.write_all(b"\n")?;
        }
        let books = Books { ledger, known, balance_cents, silent_until: HashMap::new() };
        Ok(Self { habits, books: Arc::new(Mutex::new(books)) })
    }

    /// What it has charged, less what it has given back, in cents.
    pub fn balance_cents(&self) -> i64 {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).balance_cents
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
        let mut line = serde_json::to_string(&entry).map_err(std::io::Error::from)?;
        line.push('\n');
        books.ledger.write_all(line.as_bytes())?;
        books.known.insert(entry.key);
        books.balance_cents += cents;
        Ok(true)
    }
}
