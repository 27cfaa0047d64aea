//! Saves of views with statements of users, in one transaction.
//!
//! Called by the [store](crate::store). The transactions have a connection of their own, so that a slow statement delays neither
//! commits of turns nor reads. They come one after the other. A transaction that was given up closes its connection, and so is
//! rolled back by the server.

use std::error::Error;

use bytes::{BufMut as _, BytesMut};
use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio_postgres::Client;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use whizbang_core::message::Name;
use whizbang_core::store::{Epoch, MAX_STATEMENT_BYTES, SqlValue, Statement, StoreError, View};

use crate::columns::time_micros;
use crate::failure::{Failure, Fate};
use crate::pool::Pool;
use crate::sql::Sql;
use crate::views::{self, SAVING, ViewRow};

/// A statement waits at most 10 s for a lock that another session holds. Deferrable constraints are checked with each
/// statement, so that the failing one is known. The server ends a transaction whose owner sends nothing for 10 s: a process that
/// was stopped, or a machine that is gone, would keep the lock on the view and on rows of users, and the next owner would wait.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = '10s'; \
    SET CONSTRAINTS ALL IMMEDIATE";

/// The words with which a statement would end or change the transaction, change the session, or wait for data of the client.
const REFUSED: [&str; 12] =
    ["ABORT", "BEGIN", "COMMIT", "COPY", "END", "PREPARE", "RELEASE", "RESET", "ROLLBACK", "SAVEPOINT", "SET", "START"];

/// The most values of a statement: the protocol counts them in 16 bits.
const MAX_VALUES: usize = u16::MAX as usize;

/// The number of statements that are sent before the first answer is awaited.
const IN_FLIGHT: usize = 64;

/// The connection of the transactions.
#[derive(Debug, Default)]
pub(crate) struct Session(Mutex<Option<std::sync::Arc<Client>>>);

impl Session {
    /// Replaces a view and runs statements, if the view has this epoch. Saves of all projections come one after the other on
    /// this connection.
    ///
    /// # Errors
    /// [`StoreError::Statement`] names the statement that failed: the projection decides whether it is retried or skipped.
    /// [`StoreError::ViewTaken`] if a later owner has the view. In both cases neither view nor tables have changed.
    ///
    /// Cancel safe: dropping the future closes the connection, and the server rolls back.
    pub(crate) async fn save(
        &self,
        pool: &Pool,
        sql: &Sql,
        (projection, epoch): (&Name, Epoch),
        view: &View,
        statements: &[Statement],
    ) -> Result<(), StoreError> {
        for (number, statement) in statements.iter().enumerate() {
            check(statement).map_err(|reason| StoreError::Statement { number, reason, is_transient: false })?;
        }
        let mut slot = self.0.lock().await;
        // Taken out: if this future is dropped, or fails, the connection is closed and with it the transaction.
        let client = match slot.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => pool.separate().await.map_err(|failure| failure.store(SAVING))?,
        };
        let saved = transaction(&client, sql, (projection, epoch), view, statements).await;
        let is_over = match &saved {
            Ok(()) => true,
            Err(_) => client.batch_execute("ROLLBACK").await.is_ok(),
        };
        if is_over {
            *slot = Some(client);
        }
        drop(slot);
        match saved {
            Ok(()) => Ok(()),
            Err(Stopped::Store(error)) => Err(error),
            Err(Stopped::Taken) => Err(views::taken(pool, sql, projection, epoch).await?),
        }
    }
}

/// The reason for which a transaction was not committed.
enum Stopped {
    /// The error of a statement, of the connection, or of a value that cannot be encoded.
    Store(StoreError),
    /// The view has a later epoch.
    Taken,
}

/// Runs the transaction: saves the view first, then the statements in their order. All of them count, or none.
///
/// # Errors
/// The first error. The caller rolls back, or closes the connection if that fails too.
async fn transaction(
    client: &Client,
    sql: &Sql,
    (projection, epoch): (&Name, Epoch),
    view: &View,
    statements: &[Statement],
) -> Result<(), Stopped> {
    let failed = |error: tokio_postgres::Error| Stopped::Store(Failure::from(error).store(SAVING));
    client.batch_execute(BEGIN).await.map_err(failed)?;
    let row = ViewRow::new(projection, epoch, view).map_err(Stopped::Store)?;
    // From here to the commit the row of the view is locked: a new owner waits.
    if client.query_typed(&sql.save_view, &row.parameters()).await.map_err(failed)?.is_empty() {
        return Err(Stopped::Taken);
    }
    let mut number = 0;
    for some in statements.chunks(IN_FLIGHT) {
        let mut running = Vec::new();
        for statement in some {
            running.push(run(client, statement));
        }
        for ran in join_all(running).await {
            // After the first failure the server rejects all others.
            ran.map_err(|error| Stopped::Store(statement_error(number, Failure::from(error))))?;
            number += 1;
        }
    }
    client.batch_execute("COMMIT").await.map_err(failed)
}

/// Sends one statement with its values and waits for its end. Rows that it returns are dropped.
async fn run(client: &Client, statement: &Statement) -> Result<(), tokio_postgres::Error> {
    let values: Vec<Value<'_>> = statement.values().iter().map(Value).collect();
    let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        values.iter().map(|value| (value as &(dyn ToSql + Sync), value.sql_type())).collect();
    // Rows are not kept, and their types are not looked up: that would fail behind the failure of a later statement.
    client.execute_typed(statement.sql(), &parameters).await.map(drop)
}

/// Rejects a statement before anything is sent. An error of the client library would look like a lost connection, after which the
/// save is repeated for ever.
fn check(statement: &Statement) -> Result<(), String> {
    let (bytes, limit) = (statement.size(), MAX_STATEMENT_BYTES);
    if bytes > limit {
        return Err(format!("{bytes} bytes are too large, at most {limit} are allowed"));
    }
    let values = statement.values().len();
    if values > MAX_VALUES {
        return Err(format!("{values} values are too many, at most {MAX_VALUES} are allowed"));
    }
    if statement.sql().contains('\0') {
        return Err("the text contains U+0000".to_owned());
    }
    let word = first_word(statement.sql());
    match REFUSED.into_iter().find(|refused| refused.eq_ignore_ascii_case(word)) {
        Some("COPY") => Err("COPY is not allowed: use INSERT".to_owned()),
        Some(refused) => Err(format!("{refused} is not allowed: the store begins and ends the transaction")),
        None => Ok(()),
    }
}

/// The first word of a statement behind comments and empty statements, as the server finds it.
fn first_word(sql: &str) -> &str {
    let mut rest = trimmed(sql);
    loop {
        let behind = match rest.get(..2) {
            Some("--") => rest.split_once(['\n', '\r']).map_or("", |(_, behind)| behind),
            Some("/*") => behind_comment(rest),
            _ => break,
        };
        rest = trimmed(behind);
    }
    let end = rest.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(rest.len());
    rest.get(..end).unwrap_or_default()
}

/// A text without the white space and the empty statements at its begin.
fn trimmed(sql: &str) -> &str {
    sql.trim_start_matches(|letter: char| letter.is_whitespace() || letter == ';')
}

/// The text behind a comment in stars, which may contain others.
fn behind_comment(sql: &str) -> &str {
    let (mut depth, mut rest) = (0_u32, sql);
    while let Some(at) = rest.find(['/', '*']) {
        let (mark, behind) = (rest.get(at..at + 2), rest.get(at + 2..));
        rest = match (mark, behind) {
            (Some("/*"), Some(behind)) => {
                depth += 1;
                behind
            }
            (Some("*/"), Some(behind)) => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return behind;
                }
                behind
            }
            _ => rest.get(at + 1..).unwrap_or_default(),
        };
    }
    ""
}

/// Returns the error of the statement with this number, counted from 0. A lost connection is an error of the store instead,
/// because the save is then repeated as a whole.
fn statement_error(number: usize, failure: Failure) -> StoreError {
    match failure.fate() {
        // The connection is lost, or the server ends: not the fault of the statement.
        Fate::Unknown | Fate::Full if !failure.is_constraint() => failure.store(SAVING),
        fate => StoreError::Statement {
            number,
            reason: failure.without_values(),
            is_transient: matches!(fate, Fate::Later),
        },
    }
}

/// A value in the binary form of its type.
#[derive(Debug)]
struct Value<'a>(&'a SqlValue);

impl Value<'_> {
    /// Returns the type that the value is sent as. A mismatch with the column is an error of the statement.
    fn sql_type(&self) -> Type {
        match self.0 {
            SqlValue::Bool(_) => Type::BOOL,
            SqlValue::Integer(_) => Type::INT8,
            SqlValue::Float(_) => Type::FLOAT8,
            SqlValue::Text(_) => Type::TEXT,
            SqlValue::Bytes(_) => Type::BYTEA,
            SqlValue::Uuid(_) => Type::UUID,
            SqlValue::Time(_) => Type::TIMESTAMPTZ,
            SqlValue::Json(_) => Type::JSONB,
            // The server infers the type of NULL.
            _ => Type::UNKNOWN,
        }
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self.0 {
            SqlValue::Null => return Ok(IsNull::Yes),
            SqlValue::Bool(value) => out.put_u8(u8::from(*value)),
            SqlValue::Integer(value) => out.put_i64(*value),
            SqlValue::Float(value) => out.put_f64(*value),
            SqlValue::Text(text) => out.put_slice(text.as_bytes()),
            SqlValue::Bytes(bytes) => out.put_slice(bytes),
            SqlValue::Uuid(value) => out.put_u128(*value),
            SqlValue::Time(time) => out.put_i64(time_micros(*time)),
            SqlValue::Json(text) => {
                // The version of the binary form.
                out.put_u8(1);
                out.put_slice(text.as_bytes());
            }
            _ => return Err("this version does not know the type of the value".into()),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_control_is_refused_behind_comments() {
        let refused = [
            "commit",
            " ROLLBACK TO a",
            "-- a\n COMMIT",
            "/* a /* b */ c */ Begin",
            "/* a */ /**/ END;",
            "prepare transaction 'a'",
            "set constraints all deferred",
            "; COMMIT",
            "/* a */ ;; -- b\n; ROLLBACK",
            "-- the server ends a comment here\rCOMMIT",
            "reset lock_timeout",
            "COPY a FROM STDIN",
        ];
        for sql in refused {
            assert!(check(&Statement::new(sql)).is_err(), "{sql}");
        }
        for sql in ["INSERT INTO commit VALUES (1)", "DELETE FROM a -- COMMIT", "/* COMMIT */ UPDATE a SET b = 1", ""] {
            assert!(check(&Statement::new(sql)).is_ok(), "{sql}");
        }
    }

    #[test]
    fn statement_that_cannot_be_sent_is_refused() {
        let text = "a".repeat(MAX_STATEMENT_BYTES);
        let bind = |statement: Statement, _| statement.bind("a");
        let many = |count| (0..count).fold(Statement::new("SELECT 1"), bind);
        for refused in [Statement::new("SELECT $1").bind(text), Statement::new("SELECT '\0'"), many(MAX_VALUES + 1)] {
            assert!(check(&refused).is_err());
        }
        assert!(check(&many(MAX_VALUES)).is_ok());
    }
}
