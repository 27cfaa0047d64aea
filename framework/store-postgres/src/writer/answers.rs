//! Groups on their way to the server, and its answers.
//!
//! Called by the [writer](super) with the lock of its line. The thread of an actor only takes an answer that needs no further
//! request; everything else is left to the writer's thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::line::{Commit, commit};
use super::{COMMITTING, Line, Next, SLOW_COMMIT, Writer};
use crate::failure::{Failure, Fate};
use crate::queue::{Group, Part};

impl Writer {
    /// Sends a group. The request is queued at the client and leaves with the next drive of the connection.
    pub(super) fn start(&self, line: &mut Line, group: Arc<Group>) {
        let Some(driver) = &line.driver else {
            line.doubt = Some(group);
            return;
        };
        let (client, sql, sent) = (Arc::clone(&driver.client), Arc::clone(&self.sql), Arc::clone(&group));
        let statement = line.statements.as_ref().map(|[short, long]| if group.has_progress() { long } else { short });
        let statement = statement.cloned();
        let commit: Commit = Box::pin(async move { Ok(commit(&client, &sql, statement.as_ref(), &sent).await?) });
        line.current = Some((group, commit, Instant::now()));
    }

    /// Waits for the answer about the current group, unless `give_up` returns `true`, and handles it.
    pub(super) fn finish(&self, line: &mut Line, mut give_up: impl FnMut() -> bool) -> Next {
        let Some((group, mut commit, begun)) = line.current.take() else { return Next::More };
        let answer = match &mut line.driver {
            Some(driver) => driver.drive(commit.as_mut(), || {
                self.report_silence(begun);
                give_up()
            }),
            None => Some(Err(Failure::connection("the connection", &Failure::new("it is lost")))),
        };
        let Some(answer) = answer else {
            line.current = Some((group, commit, begun));
            return Next::Rest;
        };
        match self.take_answer(line, group, begun, answer) {
            Ok((group, owned)) => {
                self.complete(line, &group, &owned);
                Next::More
            }
            Err(next) => next,
        }
    }

    /// Waits for the answer about the current group on the thread of an actor, and handles it if that needs no request.
    pub(super) fn finish_soon(&self, line: &mut Line) {
        let Some((group, mut commit, begun)) = line.current.take() else { return };
        let answer = line.driver.as_mut().and_then(|driver| driver.drive_for(commit.as_mut(), SLOW_COMMIT));
        let Some(answer) = answer else {
            self.slow.store(true, Ordering::Relaxed);
            line.current = Some((group, commit, begun));
            return;
        };
        if let Ok((group, owned)) = self.take_answer(line, group, begun, answer) {
            if group.parts.iter().all(|part| owned.contains(&part.shard.row)) {
                self.complete(line, &group, &owned);
            } else {
                line.rejected = Some((group, owned));
            }
        }
    }

    /// Returns the group and the shards that it was committed for, or handles the failure.
    fn take_answer(
        &self,
        line: &mut Line,
        group: Arc<Group>,
        begun: Instant,
        answer: Result<Vec<i32>, Failure>,
    ) -> Result<(Arc<Group>, Vec<i32>), Next> {
        let failure = match answer {
            Ok(owned) => {
                self.slow.store(begun.elapsed() > SLOW_COMMIT, Ordering::Relaxed);
                return Ok((group, owned));
            }
            Err(failure) => failure,
        };
        match failure.fate() {
            Fate::Unknown => {
                line.doubt = Some(group);
                self.lost(line, &failure);
            }
            Fate::Unprepared => {
                tracing::warn!(
                    target: crate::TARGET,
                    error = %failure,
                    "statements are no longer prepared: a connection pooler changes the session"
                );
                line.doubt = Some(group);
                (line.prepares, line.statements) = (false, None);
                return Err(Next::More);
            }
            Fate::Later | Fate::Full => {
                line.doubt = Some(group);
                self.troubled(line, &failure, COMMITTING);
            }
            Fate::Never => {
                self.fail(&failure.store(COMMITTING));
                return Err(Next::More);
            }
        }
        Err(Next::Again)
    }

    /// Finds out whether a group is committed, and sends it again if not. The rows of the shards are locked first, so the
    /// lost session has ended one way or the other. A group is therefore never committed twice.
    pub(super) fn resolve(&self, line: &mut Line, group: Arc<Group>) -> Next {
        let Some(driver) = &mut line.driver else {
            line.doubt = Some(group);
            return Next::More;
        };
        let state = match self.state(driver, group.parts.iter().map(|part| &part.shard), &group.parts) {
            Some(Ok(state)) => state,
            Some(Err(failure)) => {
                line.doubt = Some(group);
                self.lost(line, &failure);
                return Next::Again;
            }
            None => {
                line.doubt = Some(group);
                return Next::Rest;
            }
        };
        if let Some(part) = group.parts.iter().find(|part| state.is_older(&part.shard)) {
            self.older(line, &part.shard);
            return Next::More;
        }
        if group.parts.iter().any(|part| state.has(part)) {
            // All of a group is committed, but for the shards that had another owner already.
            let owns = |part: &Part| match part.last_turn {
                Some(_) => state.has(part),
                None => state.epoch(&part.shard) == Some(part.shard.epoch),
            };
            let owned: Vec<i32> = group.parts.iter().filter(|part| owns(part)).map(|part| part.shard.row).collect();
            self.complete(line, &group, &owned);
            return Next::More;
        }
        self.start(line, group);
        self.finish(line, || self.is_stopped())
    }
}
