//! Committing jobs: what is recorded about a finished job, and the wait until it is durable.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;

use super::Worker;
use super::dispatcher::WorkerDispatcher;
use super::failure::Failure;
use super::job_log::JobLog;
use super::ledger::Ledger;
use super::plan::FinishedJob;
use crate::actor::{Outgoing, OwnedShard, propagate};
use crate::router::{DedupKey, Outcome};
use whizbang_core::message::{Domain, Envelope, Kind};
use whizbang_core::store::{Appended, Mark, Note, OutboxWrite, StoreError, StreamHint, Ticket, Turn};
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

/// Number of turns of a stream after which a snapshot of its ledger is saved.
const SNAPSHOT_EVERY: u64 = 1024;
/// Most reads of a ledger for one append that was out of turn.
const REREADS: u32 = 3;

/// Effect of a turn on its message.
#[derive(Clone, Copy)]
pub(super) enum End<'a> {
    /// The message is done or dead-lettered.
    Marked(&'a DedupKey),
    /// A dead letter is done after all, or discarded.
    Resolved,
    /// The message is not finished.
    Not,
}

/// Record about a message.
pub(super) struct JobEntry<'a> {
    pub(super) envelope: &'a Envelope,
    pub(super) end: End<'a>,
    pub(super) reply: &'a [u8],
    pub(super) rejected: bool,
    pub(super) notes: &'a [Note],
    /// Messages that the job sends.
    pub(super) sent: &'a [Outgoing],
}

impl<W: Worker> WorkerDispatcher<W> {
    /// Appends a turn, and waits until it is durable. A transient append failure is retried: the external effect is
    /// done, and only the record is missing.
    pub(super) async fn commit(
        &self,
        log: &JobLog,
        ledger: &RefCell<Ledger>,
        entry: &JobEntry<'_>,
        outcome: Outcome,
    ) -> Outcome {
        let outside = matches!(entry.end, End::Marked(DedupKey::MessageId));
        let (mut failures, mut rereads) = (0, 0);
        let appended = loop {
            let error = match self.append(log, ledger, entry) {
                Ok(appended) => break appended,
                Err(StoreError::OutOfTurn { expected, .. }) if rereads < REREADS => {
                    match self.read_ledger_again(log, ledger, expected).await {
                        Ok(()) => {
                            rereads += 1;
                            if let End::Marked(DedupKey::Sequence { source, sequence, tracker }) = entry.end
                                && ledger.borrow().has(source, *sequence)
                            {
                                tracker.mark_known(*sequence);
                                return outcome;
                            }
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            if outside || !error.is_transient() {
                return Outcome::Unknown(error);
            }
            failures += 1;
            tracing::warn!(
                target: TARGET, worker = %self.actor, error = %error_chain(&error),
                "failed to commit a finished job: retrying",
            );
            tokio::time::sleep(self.context.settings.retry.all.wait(failures, &self.context.ids)).await;
        };
        self.after(&log.shard, (!appended.committed).then_some(appended.ticket), outcome).await
    }

    /// Replaces a ledger that lacks turns of its log, so that the store has refused an append.
    ///
    /// # Errors
    /// The log cannot be read. The ledger is unchanged.
    async fn read_ledger_again(&self, log: &JobLog, ledger: &RefCell<Ledger>, expected: u64) -> Result<(), StoreError> {
        // Its own appends are visible once they are durable.
        let done = Outcome::Done(Bytes::new(), W::Domain::CODEC);
        if let Outcome::Unknown(error) = self.after(&log.shard, log.last.get(), done).await {
            return Err(error);
        }
        let read = self.read_ledger(log).await?;
        let mut ledger = ledger.borrow_mut();
        // Another job may have read it in between, and appended to it.
        if read.turns + 1 >= expected || read.turns > ledger.turns {
            tracing::warn!(
                target: TARGET, worker = %self.actor, shard = %log.shard.id, known = ledger.turns, read = read.turns,
                "job records outdated: reading them again",
            );
            *ledger = read;
        }
        Ok(())
    }

    /// Commits that a job is done, with its reply and what it sends.
    ///
    /// # Errors
    /// The turn is larger than the store allows, whenever the job is run again.
    pub(super) async fn finish(
        &self,
        log: &JobLog,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        end: End<'_>,
        done: &FinishedJob,
    ) -> Result<Outcome, Failure> {
        let FinishedJob { reply, rejected, sent } = done;
        let resolved = [Note::Resolved { message: envelope.id }];
        let notes: &[_] = if matches!(end, End::Resolved) { &resolved } else { &[] };
        let entry = JobEntry { envelope, end, reply, rejected: *rejected, notes, sent };
        let outcome = Outcome::Done(Bytes::copy_from_slice(reply), W::Domain::CODEC);
        match self.commit(log, ledger, &entry, outcome).await {
            Outcome::Unknown(error @ StoreError::Oversize { .. }) => Err(Failure::Fail(error.to_string())),
            outcome => {
                if *rejected {
                    self.context.counts.rejections.one();
                }
                Ok(outcome)
            }
        }
    }

    /// Returns the outcome once everything up to `ticket` is durable.
    pub(super) async fn after(&self, shard: &Rc<OwnedShard>, ticket: Option<Ticket>, outcome: Outcome) -> Outcome {
        let Some(ticket) = ticket else { return outcome };
        let (tell, told) = tokio::sync::oneshot::channel();
        self.context.after_ticket(shard, ticket, move |committed| {
            let _ = tell.send(committed);
        });
        match told.await {
            Ok(Ok(())) => outcome,
            Ok(Err(error)) => Outcome::Unknown(error),
            Err(_) => Outcome::Unknown(StoreError::Closed),
        }
    }

    fn append(&self, log: &JobLog, ledger: &RefCell<Ledger>, entry: &JobEntry<'_>) -> Result<Appended, StoreError> {
        let envelope = entry.envelope;
        let time = self.context.ids.clock().now();
        let answers = envelope.kind == Kind::Command && !entry.reply.is_empty();
        let reply = if answers {
            envelope.reply(&self.domain, entry.rejected, time, W::Domain::CODEC, entry.reply)
        } else {
            None
        };
        let reply = reply.map(|(to, mut reply)| {
            propagate(&envelope.headers, &self.context.settings.propagated, &mut reply.headers);
            (to, reply)
        });
        let reply = reply.iter().map(|(to, envelope)| OutboxWrite { to, envelope });
        let sent = entry.sent.iter().map(|Outgoing { to, envelope }| OutboxWrite { to, envelope });
        let outbox: Vec<_> = reply.chain(sent).collect();
        let digest = self.context.digest(envelope).value();
        let mark = match entry.end {
            End::Marked(DedupKey::MessageId) => Mark::Outside { digest },
            End::Marked(DedupKey::Sequence { source, sequence, tracker: floor }) => {
                Mark::From { source, sequence: *sequence, floor: floor.watermark_after(*sequence) }
            }
            // Marked again, so that a sender that repeats the command gets the reply.
            End::Resolved if !entry.reply.is_empty() && is_from_outside(envelope) => Mark::Outside { digest },
            End::Marked(DedupKey::Internal) | End::Resolved | End::Not => Mark::None,
        };
        let mut ledger = ledger.borrow_mut();
        let turn = Turn {
            actor: &self.actor,
            key: &log.key,
            stream: StreamHint::default(),
            number: ledger.turns + 1,
            version: 0,
            time,
            id: envelope.id,
            correlation: envelope.correlation,
            traceparent: envelope.traceparent.as_deref(),
            headers: &[],
            mark,
            reply: entry.reply,
            reply_codec: W::Domain::CODEC,
            events: &[],
            outbox: &outbox,
            timers: &[],
            notes: entry.notes,
        };
        let appended = log.shard.writer.borrow_mut().append(&turn);
        let appended = appended.inspect_err(|error| {
            self.context.report_append_error(error);
            let (worker, shard) = (&self.actor, &log.shard.id);
            let subject = || format!("the records of jobs of `{worker}` in {shard}");
            log.refused.borrow_mut().refused(&self.context, error, || format!("{shard}/{worker}/{}", log.key), subject);
        })?;
        log.refused.borrow_mut().served();
        ledger.turns += 1;
        match &turn.mark {
            Mark::Outside { digest } => ledger.seen.id(envelope.id, time, *digest, entry.reply, W::Domain::CODEC),
            Mark::From { source, sequence, floor } => ledger.place(source, *sequence, *floor),
            Mark::None | Mark::Timer { .. } => {}
        }
        if let End::Marked(DedupKey::Sequence { sequence, tracker: floor, .. }) = entry.end {
            // Only after the append: a watermark above a message that is not in the log would lose it.
            floor.mark_appended(*sequence);
        }
        if !matches!(entry.end, End::Not) {
            ledger.failing.remove(&envelope.id);
        }
        entry.notes.iter().for_each(|note| ledger.note(note));
        log.last.set((!appended.committed).then_some(appended.ticket));
        self.context.counts.turns.one();
        if !outbox.is_empty() {
            let (shard, context) = (Rc::clone(&log.shard), Rc::clone(&self.context));
            self.context.after_commit(&log.shard, appended, move |_| context.mark_dirty(&shard));
        }
        if ledger.turns.is_multiple_of(SNAPSHOT_EVERY) {
            match ledger.save() {
                Ok(snapshot) => log.shard.writer.borrow_mut().save_snapshot(&self.actor, &log.key, snapshot),
                Err(error) => {
                    tracing::warn!(
                        target: TARGET, worker = %self.actor, error = %error_chain(&error),
                        "failed to encode a snapshot",
                    );
                }
            }
        }
        Ok(appended)
    }
}

fn is_from_outside(envelope: &Envelope) -> bool {
    envelope.kind == Kind::Command && envelope.origin.is_none()
}
