//! Commands that have expired before their job began.
//!
//! Called by the path of a [job](super::job) and of a [deferred job](super::deferred) before the first attempt. A job that has
//! begun is not stopped by the expiry, because it may have had its external effect: so the first attempt of a command with an
//! expiry is recorded before it begins, at the cost of a commit. The rejection then says that no attempt was made.

use std::cell::RefCell;
use std::rc::Rc;

use super::Worker;
use super::commit::End;
use super::dispatcher::WorkerDispatcher;
use super::failure::Failure;
use super::job_log::JobLog;
use super::ledger::Ledger;
use super::plan::FinishedJob;
use crate::router::{DedupKey, Outcome};
use whizbang_core::message::{Coded as _, Domain as _, Envelope, Kind, Rejection, expiry};
use whizbang_core::telemetry::TARGET;

/// Text of a dead letter.
const EXPIRED: &str = "expired before its job began";

impl<W: Worker> WorkerDispatcher<W> {
    /// Returns whether the attempt after that many has to be recorded before it begins, because its message may expire.
    pub(super) fn records_first(&self, envelope: &Envelope, failed: u32) -> bool {
        failed == 0 && envelope.kind == Kind::Command && expiry(&envelope.headers).is_some()
    }

    /// Returns whether a message has expired, and no attempt was made for it.
    pub(super) fn has_expired(&self, envelope: &Envelope, failed: u32) -> bool {
        let is_over = |at| self.context.ids.clock().now() > at;
        failed == 0 && envelope.kind == Kind::Command && expiry(&envelope.headers).is_some_and(is_over)
    }

    /// Ends an expired message: rejected, or a dead letter if the worker keeps them.
    pub(super) async fn expire(
        &self,
        log: &JobLog,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        arrival: &DedupKey,
    ) -> Outcome {
        let failure = match self.expired(envelope) {
            Ok(done) => match self.finish(log, ledger, envelope, End::Marked(arrival), &done).await {
                Ok(outcome) => return outcome,
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        self.dead_letter(log, ledger, envelope, arrival, &failure, 0).await
    }

    /// Like [`expire`](Self::expire), for a deferred job.
    pub(super) async fn expire_deferred(self: &Rc<Self>, log: &JobLog, ledger: &RefCell<Ledger>, envelope: &Envelope) {
        match self.expired(envelope) {
            Ok(done) => self.done_deferred(log, ledger, envelope, &done, 0).await,
            Err(failure) => self.failed_deferred(log, ledger, envelope, &failure, 0).await,
        }
    }

    /// Returns the rejection of an expired message, or the failure of its job if it becomes a dead letter.
    fn expired(&self, envelope: &Envelope) -> Result<FinishedJob, Failure> {
        self.context.counts.expired.one();
        tracing::debug!(
            target: TARGET, worker = %self.actor, message = %envelope.name, id = %envelope.id, "command expired before its job began",
        );
        if self.limits.options.keeps_expired {
            return Err(Failure::Fail(EXPIRED.to_owned()));
        }
        let mut reply = Vec::new();
        match <()>::write_reply(&Err(Rejection::expired()), W::Domain::CODEC, &mut reply) {
            Ok(()) => Ok(FinishedJob { reply, rejected: true, sent: Vec::new() }),
            Err(error) => Err(Failure::Fail(format!("failed to encode reply: {error}"))),
        }
    }
}
