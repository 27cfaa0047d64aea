//! A payment provider such as shops deal with: a company of its own, with a ledger that nobody here can see into. It remembers
//! idempotency keys, declines some, answers some late, and some not at all although it has taken the money.
//!
//! It is no part of the shop and knows nothing of it. What it does follows from the order's name, so that runs can be repeated.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
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
    /// It charges and its first answer gets lost.
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

/// A payment provider.
pub struct Provider {
    habits: Habits,
    books: Mutex<Books>,
}

struct Books {
    ledger: Option<File>,
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
    /// A provider that remembers nothing when the process ends.
    pub fn in_memory(habits: Habits) -> Self {
        let books = Books { ledger: None, known: HashSet::new(), balance_cents: 0, silent_until: HashMap::new() };
        Self { habits, books: Mutex::new(books) }
    }

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
        let books = Books { ledger: Some(ledger), known, balance_cents, silent_until: HashMap::new() };
        Ok(Self { habits, books: Mutex::new(books) })
    }

    /// What it has charged, less what it has given back, in cents.
    pub fn balance_cents(&self) -> i64 {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).balance_cents
    }

    /// Charges an order, once for each key, and answers with a receipt.
    pub(super) async fn charge(&self, key: &str, order: &str, cents: u64) -> Result<String, ProviderError> {
        let Habits { declines, answers_late, loses_answers, falls_silent, .. } = self.habits;
        let mut mood = crc32fast::hash(order.as_bytes()) % 1000;
        let mut is = |share: u32| {
            let hit = mood < share;
            mood = mood.wrapping_sub(share);
            hit
        };
        if is(declines) {
            return Err(ProviderError::Declined("the card is not covered"));
        }
        if is(answers_late) {
            tokio::time::sleep(self.habits.late).await;
        }
        if is(falls_silent) {
            self.silence(order).await;
        }
        let lost = is(loses_answers);
        let first = self.enter(key, order, i64::try_from(cents).unwrap_or(i64::MAX))?;
        if lost && first {
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
        if let Some(ledger) = &mut books.ledger {
            let mut line = serde_json::to_string(&entry).map_err(std::io::Error::from)?;
            line.push('\n');
            ledger.write_all(line.as_bytes())?;
        }
        books.known.insert(entry.key);
        books.balance_cents += cents;
        Ok(true)
    }
}
