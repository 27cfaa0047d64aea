//! One connection and the group that is on it.
//!
//! Called by the [writer](super).

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{StreamExt as _, pin_mut};
use tokio::time::Instant;
use tokio_postgres::{Client, Statement};

use crate::blocking::Driver;
use crate::failure::Failure;
use crate::queue::Group;
use crate::sql::Sql;

/// A statement on its way: the rows of the shards that the group was committed for.
pub(super) type Commit = Pin<Box<dyn Future<Output = Result<Vec<i32>, Failure>> + Send>>;

/// The connection, and the group that is being written.
pub(super) struct Line {
    /// The connection; none before the first one and after a loss.
    pub(super) driver: Option<Driver>,
    /// The statements without and with progress, if the session keeps them.
    pub(super) statements: Option<[Statement; 2]>,
    /// False once a connection pooler has changed the session: it does not keep prepared statements.
    pub(super) prepares: bool,
    /// The group whose answer is awaited, and the time at which it was sent.
    pub(super) current: Option<(Arc<Group>, Commit, Instant)>,
    /// A group with its answer: shards were rejected. The thread of an actor leaves what follows to the writer's thread.
    pub(super) rejected: Option<(Arc<Group>, Vec<i32>)>,
    /// A group of which it is not known whether it is committed.
    pub(super) doubt: Option<Arc<Group>>,
    /// Failures in a row, for the pause before the next attempt.
    pub(super) failures: u32,
}

impl Line {
    /// Returns a line without a connection. `prepares` is false if a pooler was found at the start.
    pub(super) fn new(prepares: bool) -> Self {
        Self { driver: None, statements: None, prepares, current: None, rejected: None, doubt: None, failures: 0 }
    }

    /// Returns whether the next group can be sent right away.
    pub(super) fn is_ready(&self) -> bool {
        let waits = self.current.is_some() || self.rejected.is_some() || self.doubt.is_some();
        !waits && self.driver.as_ref().is_some_and(|driver| !driver.is_ended())
    }
}

/// Commits a group and returns the rows of the shards that it was committed for.
pub(super) async fn commit(
    client: &Client,
    sql: &Sql,
    statement: Option<&Statement>,
    group: &Group,
) -> Result<Vec<i32>, tokio_postgres::Error> {
    let rows = match statement {
        Some(statement) => client.query_raw(statement, group.columns()).await?,
        None => {
            let text = if group.has_progress() { &sql.commit_progress } else { &sql.commit };
            client.query_typed_raw(text, group.typed()).await?
        }
    };
    pin_mut!(rows);
    let mut owned = Vec::with_capacity(group.parts.len());
    while let Some(row) = rows.next().await {
        owned.push(row?.try_get(0)?);
    }
    Ok(owned)
}
