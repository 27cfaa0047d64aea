//! Errors of the server and of the connection, and what follows from them.
//!
//! Called by everything that sends a statement. One place decides whether a statement may be sent again.
//!
//! The texts reach logs, health pages and errors, so they contain neither statements nor values. A failure is permanent
//! unless it is known to pass: an endless retry hides an error, while a rejected turn is visible.

use std::error::Error;

use tokio_postgres::error::SqlState;
use whizbang_core::store::StoreError;

/// The cause of a failed statement or connection, as one text without the server's statement or any payload.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    /// The text for people, with the servers that it is about.
    text: String,
    /// The code of the server's answer; none if there was no answer.
    code: Option<SqlState>,
    /// The connection failed, so that the outcome of a statement is unknown.
    closed: bool,
}

/// The fate of a statement that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The connection is lost, or the server went away: the statement was executed or not.
    Unknown,
    /// The statement was rolled back. The cause may pass: send it again later.
    Later,
    /// The statement was rolled back because the server has no space left.
    Full,
    /// A statement that was prepared is unknown: a connection pooler has changed the session.
    Unprepared,
    /// The statement was rolled back, and would be again.
    Never,
}

impl Failure {
    /// Returns a permanent failure: repeating it would not help.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: None, closed: false }
    }

    /// The failure of an operation of the operating system: the connection.
    pub(crate) fn connection(doing: &str, error: &dyn Error) -> Self {
        Self { text: format!("{doing}: {error}"), code: None, closed: true }
    }

    /// The same, of a connection: it may be opened again later.
    pub(crate) fn with_connection(mut self) -> Self {
        self.closed = true;
        self
    }

    /// The same, with the server it is about.
    pub(crate) fn at(mut self, endpoint: &dyn std::fmt::Display) -> Self {
        self.text = format!("{endpoint}: {}", self.text);
        self
    }

    /// Returns the fate of the statement. A code that is not listed is permanent, so that no statement is repeated for ever.
    pub(crate) fn fate(&self) -> Fate {
        let Some(code) = &self.code else { return if self.closed { Fate::Unknown } else { Fate::Never } };
        if [SqlState::DISK_FULL].contains(code) {
            return Fate::Full;
        }
        if [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT].contains(code) {
            return Fate::Unprepared;
        }
        match code.code().get(..2) {
            // Connection exceptions; operator intervention, such as a shutdown; a row is there already, which an earlier
            // attempt has written.
            Some("08" | "57") => Fate::Unknown,
            Some("23") if *code == SqlState::UNIQUE_VIOLATION => Fate::Unknown,
            // A read-only server has been demoted: its successor may have the rows.
            Some("25") => Fate::Unknown,
            // Rolled back by a conflict; out of memory or of connections; a lock was not available.
            Some("40" | "53" | "55") => Fate::Later,
            _ => Fate::Never,
        }
    }

    /// Returns whether a statement has violated a constraint.
    pub(crate) fn is_constraint(&self) -> bool {
        self.code.as_ref().is_some_and(|code| code.code().starts_with("23"))
    }

    /// The text for a statement of a user. The messages about values that cannot be converted contain them.
    pub(crate) fn without_values(&self) -> String {
        match &self.code {
            Some(code) if code.code().starts_with("22") => {
                format!("ERROR {}: a value was rejected; the log of the server has the message", code.code())
            }
            _ => self.text.clone(),
        }
    }

    /// Returns the error of the store.
    pub(crate) fn store(&self, doing: &str) -> StoreError {
        match self.fate() {
            Fate::Full => StoreError::Full { at: "PostgreSQL".to_owned() },
            _ => StoreError::io(doing.to_owned(), self.clone()),
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            let mut text = format!("{} {}: {}", db.severity(), db.code().code(), db.message());
            // The detail of a constraint violation contains the values of a row.
            if let (Some(hint), false) = (db.hint(), *db.code() == SqlState::UNIQUE_VIOLATION) {
                text += &format!(" ({hint})");
            }
            return Self { text, code: Some(db.code().clone()), closed: false };
        }
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let more = error.to_string();
            if !text.contains(&more) {
                text += &format!(": {more}");
            }
            cause = error.source();
        }
        // Anything but an answer of the server means that the connection is broken or closed.
        Self { text, code: None, closed: true }
    }
}
