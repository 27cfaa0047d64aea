//! Deferred jobs: waiting for a slot, for the end of a back-off, or long-running.
//!
//! A message whose job is unfinished blocks its receive window, and with it messages for other actors. So a waiting
//! job is recorded in the worker's own stream, which settles its message; in memory it takes an id. After a restart
//! it is started again from the stream. Events are not deferred for a slot: they wait in their owner's log, because a
//! worker has its own subscriptions, which delay no other.
//!
//! Called by the path of a [job](super::job). The number of jobs in the [queue](super::deferred_queue) is bounded; more
//! messages wait with their sender.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::Worker;
use super::admission_queue::AdmissionPermit;
use super::commit::{End, JobEntry};
use super::dispatcher::WorkerDispatcher;
use super::failure::Failure;
use super::job_log::{JobLog, JobNumber};
use super::ledger::Ledger;
use super::plan::FinishedJob;
use super::priority::Priority;
use crate::actor::OwnedShard;
use crate::router::{DedupKey, Outcome};
use whizbang_core::clock::instant;
use whizbang_core::message::{Codec, Envelope, MessageId};
use whizbang_core::store::{DeadLetter, DeadLetterReason, Note, SourceKind, StoreError};
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;
use whizbang_core::user_code::caught;

/// Time after which the message of a running job is recorded. Shorter jobs are not worth a second record.
pub(super) const DEFER_AFTER: Duration = Duration::from_millis(100);
/// Time after which a job is started again whose message could not be read.
const REREAD_AFTER: Duration = Duration::from_secs(1);

impl<W: Worker> WorkerDispatcher<W> {
    /// Returns whether a message can be deferred here.
    pub(super) fn can_defer(&self, arrival: &DedupKey) -> bool {
        matches!(arrival, DedupKey::Sequence { .. }) && !self.pending.is_full()
    }

    /// Returns whether a message must be deferred until a slot is free and the limits of the worker allow a job.
    pub(super) fn must_wait(&self, arrival: &DedupKey) -> bool {
        let direct = matches!(arrival, DedupKey::Sequence { source, .. } if source.kind == SourceKind::Direct);
        // Behind an event that holds the line of its key, commands of actors would wait unrecorded.
        let direct = direct || self.lines.is_some();
        let is_full = || self.slots.available_permits() == 0 || self.limits.would_wait();
        direct && is_full() && self.can_defer(arrival)
    }

    /// Records an unfinished job, after that many failed attempts. Returns whether its message is settled by that.
    pub(super) async fn defer(
        &self,
        log: &JobLog,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        arrival: &DedupKey,
        failed: u32,
    ) -> bool {
        let dead_letter = DeadLetter {
            actor: self.actor.clone(),
            key: envelope.key.clone(),
            reason: DeadLetterReason::Deferred,
            error: "deferred until its worker is free".to_owned(),
            attempts: failed,
            time: self.context.ids.clock().now(),
            envelope: envelope.clone(),
        };
        let attempt = (failed > 0).then_some(Note::Attempt { message: envelope.id, attempt: failed });
        let notes: Vec<_> = attempt.into_iter().chain([Note::DeadLetter(Box::new(dead_letter))]).collect();
        let entry =
            JobEntry { envelope, end: End::Marked(arrival), reply: &[], rejected: false, notes: &notes, sent: &[] };
        matches!(self.commit(log, ledger, &entry, no_reply()).await, Outcome::Done(..))
    }

    /// Schedules a deferred job to start after `wait`, when a slot is free.
    pub(super) fn begin_later(
        self: &Rc<Self>,
        shard: &Rc<OwnedShard>,
        id: MessageId,
        priority: Priority,
        wait: Duration,
    ) {
        self.pending.push(shard, id, priority, instant() + wait);
        self.begin_queued();
    }

    /// Starts the tasks that begin queued jobs, unless they run.
    pub(super) fn begin_queued(self: &Rc<Self>) {
        self.priorities().iter().for_each(|priority| self.begin_queued_of(*priority));
    }

    fn begin_queued_of(self: &Rc<Self>, priority: Priority) {
        self.pending.task(priority).borrow_mut().get_or_insert_with(|| {
            let (me, pending, slots) = (Rc::downgrade(self), Rc::clone(&self.pending), Arc::clone(&self.slots));
            let has_priorities = self.has_priorities();
            let begin = move || {
                let (me, pending, slots) = (me.clone(), Rc::clone(&pending), Arc::clone(&slots));
                async move {
                    loop {
                        pending.is_due(priority).await;
                        let permit = if has_priorities { pending.admissions.enter(priority).await } else { None };
                        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                        let Some(me) = me.upgrade() else { return };
                        if me.context.draining.get() || me.context.stopped.get() {
                            // They are started after the restart.
                            return;
                        }
                        // A shard that is handed over keeps its jobs in its log.
                        if let Some((shard, id)) = pending.pop_due(priority).filter(|(shard, _)| shard.is_open()) {
                            // The task of the job admits the next one. By then this task waits in the admission queue again: the
                            // choice must see the next job of this priority.
                            me.start(shard, id, priority, slot, permit);
                        }
                    }
                }
            };
            let name = match priority {
                Priority::Normal => format!("deferred jobs of {}", self.actor),
                _ => format!("deferred {priority:?} jobs of {}", self.actor).to_lowercase(),
            };
            whizbang_core::spawn::local(whizbang_core::spawn::restart_until_done(
                Arc::clone(&self.context.user_code),
                name,
                begin,
            ))
        });
    }

    fn start(
        self: &Rc<Self>,
        shard: Rc<OwnedShard>,
        id: MessageId,
        priority: Priority,
        slot: OwnedSemaphorePermit,
        permit: Option<AdmissionPermit>,
    ) {
        let me = Rc::clone(self);
        let flight = self.context.track_job(&shard);
        self.spawn(&Rc::clone(&shard), flight, None, move |number| async move {
            let running = caught(me.run_deferred(number, &shard, id, priority, slot, permit)).await;
            if let Err(panicked) = &running {
                let log = me.shard_log(&shard);
                me.close(&log, id, number);
                me.context.user_code.failed(&me.task(), &format!("{}; restarting its job", panicked.text()));
                me.begin_later(&shard, id, priority, REREAD_AFTER);
            }
            if let Ok(Ok(())) = running {
                me.report_recovered();
            }
            if let Ok(Err(_)) = running {
                me.begin_later(&shard, id, priority, REREAD_AFTER);
            }
            me.settle(number, &no_reply());
        });
    }

    /// Schedules the jobs of a shard that were deferred before the last start.
    pub(super) async fn begin_deferred(self: Rc<Self>, shard: Rc<OwnedShard>) {
        let (log, generation) = (self.shard_log(&shard), shard.generation.get());
        loop {
            match self.ledger(&log).await {
                Ok(ledger) => {
                    let waiting: Vec<_> = ledger.borrow().waiting.iter().collect();
                    if let Some(lines) = &self.lines {
                        self.restore_lines(lines, &shard, generation, waiting).await;
                        return;
                    }
                    for id in waiting {
                        if log.running.borrow().contains_key(&id) {
                            continue;
                        }
                        let priority = self.recorded_priority(&log, id).await;
                        if shard.is_lost() || shard.generation.get() != generation || !shard.is_open() {
                            return;
                        }
                        self.begin_later(&shard, id, priority, Duration::ZERO);
                    }
                    return;
                }
                Err(error) => {
                    tracing::warn!(
                        target: TARGET, worker = %self.actor, error = %error_chain(&error),
                        "failed to read a worker's stream",
                    );
                    Rc::clone(&self.context).sleep_unless_closing(Rc::clone(&shard), REREAD_AFTER).await;
                    if self.context.is_closing(&shard) {
                        let lines = self.lines.iter().filter(|_| !shard.is_lost());
                        lines.for_each(|lines| lines.set_restored(shard.id.shard));
                        return;
                    }
                }
            }
        }
    }

    /// Returns the priority of a recorded job, which is read for that if the worker has priorities. One that cannot be read is
    /// a normal one: it is read again when it begins.
    async fn recorded_priority(&self, log: &JobLog, id: MessageId) -> Priority {
        if !self.has_priorities() {
            return Priority::Normal;
        }
        match self.deferred_job(log, id).await {
            Ok(Some(dead_letter)) => self.priority(&Envelope { key: dead_letter.key, ..dead_letter.envelope }),
            Ok(None) | Err(_) => Priority::Normal,
        }
    }

    async fn run_deferred(
        self: &Rc<Self>,
        number: JobNumber,
        shard: &Rc<OwnedShard>,
        id: MessageId,
        priority: Priority,
        slot: OwnedSemaphorePermit,
        permit: Option<AdmissionPermit>,
    ) -> Result<(), StoreError> {
        // Without other limits the next one need not wait until the job is read.
        let permit = permit.filter(|_| self.limits.delays_jobs());
        let log = self.shard_log(shard);
        let ledger = self.ledger(&log).await?;
        let Some(dead_letter) = self.deferred_job(&log, id).await? else { return Ok(()) };
        if !ledger.borrow().waiting.contains(&id) || log.running.borrow().contains_key(&id) {
            return Ok(());
        }
        let envelope = Envelope { key: dead_letter.key, ..dead_letter.envelope };
        if self.lines.as_ref().is_some_and(|lines| !lines.claim(&envelope.key, shard, id, priority)) {
            return Ok(());
        }
        log.running.borrow_mut().insert(id, (number, self.context.digest(&envelope).value()));
        let mut failed = ledger.borrow().failing.get(&id).copied().unwrap_or(0);
        // As with a job that is not deferred: an attempt that may crash the process is recorded before it begins.
        let is_suspect = self.context.predates_start(&envelope);
        if is_suspect && failed >= self.retries.of(&envelope).crashes() {
            self.failed_deferred(&log, ledger, &envelope, &Failure::ended(failed), failed).await;
            self.close(&log, id, number);
            return Ok(());
        }
        if self.has_expired(&envelope, failed) {
            self.expire_deferred(&log, ledger, &envelope).await;
            self.close(&log, id, number);
            return Ok(());
        }
        // Before the record: a job that waits uses up no attempt. Before the permit of suspects: a paused worker must not
        // hold up those of others.
        let Some(admitted) = self.admit_job(shard).await else {
            self.close(&log, id, number);
            return Ok(());
        };
        drop(permit);
        // It may have waited long for the limits of the worker.
        if self.has_expired(&envelope, failed) {
            self.expire_deferred(&log, ledger, &envelope).await;
            self.close(&log, id, number);
            return Ok(());
        }
        let mut alone = None;
        if is_suspect || self.records_first(&envelope, failed) {
            if is_suspect && failed > 0 {
                alone = self.context.suspect_permits.acquire().await.ok();
            }
            let noted = self.note_attempt(&log, ledger, &envelope, failed + 1).await;
            if !matches!(noted, Outcome::Done(..)) {
                self.close(&log, id, number);
                return Ok(());
            }
        }
        self.begin(number);
        let done = self.run_once(shard, &envelope, failed + 1, admitted).await;
        drop(alone);
        drop(slot);
        match done {
            Ok(done) => self.done_deferred(&log, ledger, &envelope, &done, failed + 1).await,
            Err(failure) => {
                failed += 1;
                self.failed_deferred(&log, ledger, &envelope, &failure, failed).await;
            }
        }
        self.close(&log, id, number);
        Ok(())
    }

    /// Commits that a deferred job is done, after that many attempts.
    pub(super) async fn done_deferred(
        self: &Rc<Self>,
        log: &JobLog,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        done: &FinishedJob,
        attempts: u32,
    ) {
        match self.finish(log, ledger, envelope, End::Resolved, done).await {
            Ok(Outcome::Done(..)) => self.leave_line(envelope),
            // It is still recorded as waiting.
            Ok(_) => self.begin_later(&log.shard, envelope.id, self.priority(envelope), REREAD_AFTER),
            Err(failure) => self.failed_deferred(log, ledger, envelope, &failure, attempts).await,
        }
    }

    /// Records the failure of a deferred job: it is retried or becomes a dead letter.
    pub(super) async fn failed_deferred(
        self: &Rc<Self>,
        log: &JobLog,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        failure: &Failure,
        failed: u32,
    ) {
        let again = failure.is_transient() && failed < self.retries.of(envelope).attempts.max(1);
        let note = if again {
            if self.context.settings.failure_log.admits_delivery(false) {
                tracing::warn!(
                    target: TARGET, worker = %self.actor, message = %envelope.name, id = %envelope.id, attempt = failed,
                    error = failure.text(), again, "job failed",
                );
            }
            self.context.counts.retries.one();
            Note::Attempt { message: envelope.id, attempt: failed }
        } else {
            self.dead_letter_note(envelope, failure, failed)
        };
        let notes = [note];
        let end = if again { End::Not } else { End::Resolved };
        let entry = JobEntry { envelope, end, reply: &[], rejected: false, notes: &notes, sent: &[] };
        let noted = self.commit(log, ledger, &entry, no_reply()).await;
        match noted {
            Outcome::Done(..) if again => {
                let wait = self.wait(envelope, failure, failed);
                self.begin_later(&log.shard, envelope.id, self.priority(envelope), wait);
            }
            Outcome::Done(..) => self.leave_line(envelope),
            // It is still recorded as waiting.
            _ => self.begin_later(&log.shard, envelope.id, self.priority(envelope), REREAD_AFTER),
        }
    }

    /// Returns the message of a deferred job; `None` if it is no longer deferred. Counts failed reads.
    pub(super) async fn deferred_job(&self, log: &JobLog, id: MessageId) -> Result<Option<DeadLetter>, StoreError> {
        let (worker, shard) = (&self.actor, &log.shard.id);
        let before = id.as_u128().checked_sub(1).map(MessageId::from_u128);
        let dead_letters = match log.shard.reader().dead_letters(before, 1).await {
            Ok(dead_letters) => dead_letters,
            Err(error) => {
                tracing::warn!(
                    target: TARGET, %worker, %id, error = %error_chain(&error), "failed to read a deferred job: retrying",
                );
                log.unread_jobs.borrow_mut().entry(id).or_default().unreadable(
                    &self.context,
                    &error,
                    || format!("{shard}/{worker}/{id} read"),
                    || format!("a waiting job of `{worker}` in {shard}"),
                );
                return Err(error);
            }
        };
        log.unread_jobs.borrow_mut().remove(&id);
        Ok(dead_letters.into_iter().find(|dead_letter| {
            dead_letter.envelope.id == id
                && dead_letter.actor == self.actor
                && dead_letter.reason == DeadLetterReason::Deferred
        }))
    }
}

/// Returns the outcome for a message without a reply.
pub(super) fn no_reply() -> Outcome {
    Outcome::Done(Bytes::new(), Codec::Bincode)
}
