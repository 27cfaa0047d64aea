//! Path of one job: admitted once, run, committed, settled.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OnceCell, SemaphorePermit};

use super::commit::{End, JobEntry};
use super::deferred::{DEFER_AFTER, no_reply};
use super::dispatcher::WorkerDispatcher;
use super::exclusive::Queued;
use super::failure::Failure;
use super::job_log::{JobLog, JobNumber};
use super::ledger::Ledger;
use super::line::InLine;
use super::{Worker, stream_of};
use crate::actor::{MIN_WAIT, OwnedShard, duplicate_outcome};
use crate::inbox::Admission;
use crate::router::{DedupKey, Outcome};
use whizbang_core::message::{Codec, Digest, Envelope, Kind, MessageId};
use whizbang_core::spawn::{FIRST_RESTART, LONGEST_RESTART};
use whizbang_core::store::{DeadLetter, Note, StoreError, StreamState};
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;
use whizbang_core::user_code::caught;

impl<W: Worker> WorkerDispatcher<W> {
    /// Processes a message from its delivery to its outcome.
    ///
    /// Panics of user code are caught where it is called. If other code panics, for instance the store, a caller gets
    /// an error, and a message of an actor or a log is processed again after a wait: it is delivered only once.
    pub(super) async fn take(
        self: &Rc<Self>,
        number: JobNumber,
        shard: Rc<OwnedShard>,
        envelope: Envelope,
        arrival: DedupKey,
        queued: Option<Queued>,
    ) {
        let (mut wait, queued) = (FIRST_RESTART, queued.as_ref());
        while let Err(panicked) = caught(self.process_once(number, &shard, &envelope, &arrival, queued)).await {
            let log = self.log(&shard, &envelope);
            self.close(&log, envelope.id, number);
            let again = matches!(arrival, DedupKey::Sequence { .. });
            let then = if again { "; processing its message again" } else { "" };
            self.context.user_code.failed(&self.task(), &format!("{}{then}", panicked.text()));
            if again {
                Rc::clone(&self.context).sleep_unless_closing(Rc::clone(&shard), wait).await;
                wait = (wait * 2).min(LONGEST_RESTART);
            }
            if !again || self.context.is_closing(&shard) {
                return self.settle(number, &shard.unfinished_outcome(self.has_begun(number)));
            }
            let waits = |ledger: &RefCell<Ledger>| ledger.borrow().waiting.contains(&envelope.id);
            if log.ledger.get().is_some_and(waits) {
                // It was deferred before the panic.
                self.begin_later(&shard, envelope.id, self.priority(&envelope), wait);
                return self.settle(number, &no_reply());
            }
        }
        self.report_recovered();
    }

    async fn process_once(
        self: &Rc<Self>,
        number: JobNumber,
        shard: &Rc<OwnedShard>,
        envelope: &Envelope,
        arrival: &DedupKey,
        queued: Option<&Queued>,
    ) {
        let log = self.log(shard, envelope);
        let outcome = loop {
            match self.ledger(&log).await {
                Ok(ledger) => match self.admit(number, &log, ledger, envelope, arrival).await {
                    JobAdmission::Yes => break self.perform(number, &log, ledger, envelope, arrival, queued).await,
                    JobAdmission::Joined => return,
                    JobAdmission::No(outcome) => {
                        queued.inspect(|queued| queued.leave());
                        break self.after(shard, log.last.get(), outcome).await;
                    }
                },
                Err(error) if matches!(arrival, DedupKey::MessageId) => break Outcome::Refused(error),
                Err(error) => {
                    tracing::warn!(
                        target: TARGET, worker = %self.actor, error = %error_chain(&error),
                        "failed to read a worker's stream: retrying",
                    );
                    let wait = self.context.settings.retry.all.wait(3, &self.context.ids).max(MIN_WAIT);
                    Rc::clone(&self.context).sleep_unless_closing(Rc::clone(shard), wait).await;
                    if self.context.is_closing(shard) {
                        break shard.stopped_outcome();
                    }
                }
            }
        };
        self.close(&log, envelope.id, number);
        self.settle(number, &outcome);
    }

    /// Returns the log in which the message is recorded.
    pub(super) fn log(&self, shard: &Rc<OwnedShard>, envelope: &Envelope) -> Rc<JobLog> {
        let single = envelope.kind == Kind::Command && envelope.origin.is_none() && envelope.id.time().is_none();
        if single { self.log_of(shard, format!("key-{}", envelope.id), true) } else { self.shard_log(shard) }
    }

    /// Returns the log of a shard.
    pub(super) fn shard_log(&self, shard: &Rc<OwnedShard>) -> Rc<JobLog> {
        self.log_of(shard, stream_of(shard.id.shard), false)
    }

    fn log_of(&self, shard: &Rc<OwnedShard>, key: String, single: bool) -> Rc<JobLog> {
        if let Some(log) = self.logs.borrow().get(&key) {
            return Rc::clone(log);
        }
        // The log of one job is dropped with it, before it has failed often: it counts with the others of its shard.
        let (refused, unread) = if single {
            let shared = self.shard_log(shard);
            (Rc::clone(&shared.refused), Rc::clone(&shared.unread))
        } else {
            (Rc::default(), Rc::default())
        };
        let log = Rc::new(JobLog {
            shard: Rc::clone(shard),
            key: key.clone(),
            single,
            ledger: OnceCell::new(),
            running: RefCell::default(),
            last: Cell::new(None),
            refused,
            unread,
            unread_jobs: RefCell::default(),
        });
        self.logs.borrow_mut().insert(key, Rc::clone(&log));
        log
    }

    pub(super) async fn ledger<'a>(&self, log: &'a JobLog) -> Result<&'a RefCell<Ledger>, StoreError> {
        let ledger = log.ledger.get_or_try_init(|| async { self.read_ledger(log).await.map(RefCell::new) }).await;
        match &ledger {
            Ok(_) => log.unread.borrow_mut().served(),
            Err(error) => {
                let (worker, shard) = (&self.actor, &log.shard.id);
                let subject = || format!("the records of jobs of `{worker}` in {shard}");
                let name = || format!("{shard}/{worker}/{} read", log.key);
                log.unread.borrow_mut().unreadable(&self.context, error, name, subject);
            }
        }
        ledger
    }

    pub(super) async fn read_ledger(&self, log: &JobLog) -> Result<Ledger, StoreError> {
        let reader = log.shard.reader();
        let mut stored = reader.load(&self.actor, &log.key).await?;
        if stored.snapshot.as_ref().is_some_and(|snapshot| !Ledger::accepts(snapshot)) {
            // A snapshot is a cache: the log is complete without it.
            let turns = reader.history(&self.actor, &log.key).await?;
            stored = StreamState { snapshot: None, turns };
        }
        Ok(Ledger::rebuild(&stored, reader.watermarks()))
    }

    /// Admits a new message, which is in progress from now on.
    async fn admit(
        &self,
        number: JobNumber,
        log: &JobLog,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        arrival: &DedupKey,
    ) -> JobAdmission {
        let (id, digest) = (envelope.id, self.context.digest(envelope));
        if let Some(outcome) = self.context.refuse_expired_id(id).filter(|_| matches!(arrival, DedupKey::MessageId)) {
            return JobAdmission::No(outcome);
        }
        let mut looked_up = false;
        loop {
            // Before the running jobs: a deferred job that runs is recorded, and nothing else marks its message here.
            if let DedupKey::Sequence { source, sequence, tracker: floor } = arrival
                && ledger.borrow().has(source, *sequence)
            {
                floor.mark_known(*sequence);
                self.context.counts.duplicates.one();
                return JobAdmission::No(Outcome::Done(Bytes::new(), Codec::Bincode));
            }
            if let Some((first, known)) = log.running.borrow().get(&id).copied() {
                self.context.counts.duplicates.one();
                if known != digest.value() {
                    return JobAdmission::No(Outcome::Conflict);
                }
                self.join(number, first);
                return JobAdmission::Joined;
            }
            match arrival {
                DedupKey::MessageId => {
                    let admission = ledger.borrow().seen.admit_id(id, &digest, self.context.dedup_horizon());
                    match admission {
                        Admission::LookUp if !looked_up => {
                            looked_up = true;
                            match self.look_up(log, id, &digest).await {
                                Some(outcome) => return JobAdmission::No(outcome),
                                // Another delivery may have begun during the lookup.
                                None => continue,
                            }
                        }
                        Admission::New | Admission::LookUp => {
                            if let Some(outcome) = self.context.refuse_new(envelope) {
                                return JobAdmission::No(outcome);
                            }
                        }
                        Admission::Duplicate(reply, codec) => {
                            self.context.counts.duplicates.one();
                            return JobAdmission::No(duplicate_outcome(reply, codec));
                        }
                        Admission::Conflict => return JobAdmission::No(Outcome::Conflict),
                    }
                }
                // A sequence is checked above.
                DedupKey::Sequence { .. } | DedupKey::Internal => {}
            }
            log.running.borrow_mut().insert(id, (number, digest.value()));
            return JobAdmission::Yes;
        }
    }

    /// Looks up an id in the store that memory does not know.
    async fn look_up(&self, log: &JobLog, id: MessageId, digest: &Digest<'_>) -> Option<Outcome> {
        // The last append is visible once it is committed.
        let outcome = self.after(&log.shard, log.last.get(), Outcome::Done(Bytes::new(), Codec::Bincode)).await;
        if !matches!(outcome, Outcome::Done(..)) {
            return Some(outcome);
        }
        let turn = match log.shard.reader().find_turn(&self.actor, &log.key, id).await {
            Ok(turn) => turn.filter(|turn| id.time().is_some() || turn.time >= self.context.dedup_horizon())?,
            Err(error) => return Some(Outcome::Refused(error)),
        };
        if !turn.digest.is_some_and(|known| digest.matches(known)) {
            return Some(Outcome::Conflict);
        }
        self.context.counts.duplicates.one();
        Some(duplicate_outcome(turn.reply, turn.reply_codec))
    }

    /// Runs the job, retrying if necessary, and commits that it is done.
    async fn perform(
        self: &Rc<Self>,
        number: JobNumber,
        log: &Rc<JobLog>,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        arrival: &DedupKey,
        queued: Option<&Queued>,
    ) -> Outcome {
        let (retry, priority) = (self.retries.of(envelope), self.priority(envelope));
        let mut failed = ledger.borrow().failing.get(&envelope.id).copied().unwrap_or(0);
        // A fresh job needs no record before it begins. One that may have crashed the process has each attempt
        // recorded first, and a recorded, unfinished one runs alone, so that no job is blamed for the crash of
        // another.
        let mut caution = self.context.envelope_may_have_begun(envelope, arrival);
        let place = self.enter_line(&log.shard, envelope, arrival, queued).await;
        loop {
            if let Some(place) = &place {
                match self.wait_in_line(place, log, ledger, envelope, arrival, failed).await {
                    InLine::Holds => {}
                    InLine::Recorded => return no_reply(),
                    InLine::Closing => return log.shard.unfinished_outcome(failed > 0),
                }
            }
            if self.has_expired(envelope, failed) {
                return self.expire(log, ledger, envelope, arrival).await;
            }
            if self.must_wait(arrival) && self.defer(log, ledger, envelope, arrival, failed).await {
                if let Some(place) = &place {
                    place.recorded(envelope.id, priority);
                }
                self.begin_later(&log.shard, envelope.id, priority, Duration::ZERO);
                return no_reply();
            }
            if caution && failed >= retry.crashes() {
                return self.dead_letter(log, ledger, envelope, arrival, &Failure::ended(failed), failed).await;
            }
            let runs_alone = caution && failed > 0;
            let (done, kept) = {
                let pass = self.enter(&log.shard, priority).await;
                let Ok(_slot) = self.slots.acquire().await else { return Outcome::Stopped };
                let admitted = self.admit_job(&log.shard).await;
                drop(pass);
                // After the slot, as for a deferred job: in another order each could wait for the other. After the limits: a
                // paused worker must not hold up the suspects of others.
                let _alone = self.alone(runs_alone).await;
                if self.context.is_closing(&log.shard) {
                    // It stays in its source and is run after the restart. The caller must not be told that nothing
                    // was done if an attempt was made.
                    return log.shard.unfinished_outcome(failed > 0);
                }
                // It may have waited long for its slot.
                let first = failed == 0 && matches!(arrival, DedupKey::MessageId);
                if let Some(outcome) = self.context.refuse_new(envelope).filter(|_| first) {
                    return outcome;
                }
                if self.has_expired(envelope, failed) {
                    return self.expire(log, ledger, envelope, arrival).await;
                }
                let is_recorded = caution || self.records_first(envelope, failed);
                if is_recorded {
                    let noted = self.note_attempt(log, ledger, envelope, failed + 1).await;
                    if !matches!(noted, Outcome::Done(..)) {
                        return noted;
                    }
                    caution = false;
                }
                self.begin(number);
                let mut job = pin!(self.run_once(&log.shard, envelope, failed + 1, admitted.unwrap_or_default()));
                match tokio::time::timeout(DEFER_AFTER, &mut job).await {
                    Ok(done) => (done, false),
                    Err(_) if self.can_defer(arrival) => {
                        // It runs long: its message is recorded, so that it blocks nothing.
                        let keep = async {
                            // The attempt stays recorded with its message.
                            let begun = failed + u32::from(is_recorded);
                            let kept = self.defer(log, ledger, envelope, arrival, begun).await;
                            if kept {
                                if let Some(place) = &place {
                                    place.recorded(envelope.id, priority);
                                }
                                self.settle_early(number, &no_reply());
                            }
                            kept
                        };
                        tokio::join!(job, keep)
                    }
                    Err(_) => (job.await, false),
                }
            };
            if kept {
                match done {
                    Ok(done) => self.done_deferred(log, ledger, envelope, &done, failed + 1).await,
                    Err(failure) => self.failed_deferred(log, ledger, envelope, &failure, failed + 1).await,
                }
                return no_reply();
            }
            let failure = match done {
                Ok(done) => match self.finish(log, ledger, envelope, End::Marked(arrival), &done).await {
                    Ok(outcome) => return outcome,
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            // The caller is waiting and gets the error; nothing was done.
            match &failure {
                Failure::Undecodable(text) if matches!(arrival, DedupKey::MessageId) => {
                    return Outcome::Undecodable(text.clone());
                }
                Failure::Unhandled if matches!(arrival, DedupKey::MessageId) => return Outcome::Unhandled,
                _ => {}
            }
            failed += 1;
            let again = failure.is_transient() && failed < retry.attempts.max(1);
            if self.context.settings.failure_log.admits_delivery(matches!(arrival, DedupKey::MessageId)) {
                tracing::warn!(
                    target: TARGET, worker = %self.actor, message = %envelope.name, id = %envelope.id, attempt = failed,
                    error = failure.text(), again, "job failed",
                );
            }
            if !again {
                return self.dead_letter(log, ledger, envelope, arrival, &failure, failed).await;
            }
            self.context.counts.retries.one();
            let wait = self.wait(envelope, &failure, failed);
            if self.can_defer(arrival) && self.defer(log, ledger, envelope, arrival, failed).await {
                if let Some(place) = &place {
                    place.recorded(envelope.id, priority);
                }
                self.begin_later(&log.shard, envelope.id, priority, wait);
                return no_reply();
            }
            // Recorded before the next attempt: a failing job must reach its last attempt even across restarts.
            let noted = self.note_attempt(log, ledger, envelope, failed).await;
            if !matches!(noted, Outcome::Done(..)) {
                return noted;
            }
            Rc::clone(&self.context).sleep_unless_closing(Rc::clone(&log.shard), wait).await;
        }
    }

    /// Waits until no other suspect of a crash runs, if it has to.
    async fn alone(&self, runs_alone: bool) -> Option<SemaphorePermit<'_>> {
        if runs_alone { self.context.suspect_permits.acquire().await.ok() } else { None }
    }

    /// Records that this many deliveries of a message have begun, and waits until that is durable.
    pub(super) async fn note_attempt(
        &self,
        log: &JobLog,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        attempt: u32,
    ) -> Outcome {
        let notes = [Note::Attempt { message: envelope.id, attempt }];
        let entry = JobEntry { envelope, end: End::Not, reply: &[], rejected: false, notes: &notes, sent: &[] };
        let noted = self.commit(log, ledger, &entry, Outcome::Done(Bytes::new(), Codec::Bincode)).await;
        if matches!(noted, Outcome::Done(..)) {
            ledger.borrow_mut().failing.insert(envelope.id, attempt);
        }
        noted
    }

    /// Dead-letters a message after its last delivery. Other jobs continue, because jobs have no order.
    pub(super) async fn dead_letter(
        &self,
        log: &JobLog,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        arrival: &DedupKey,
        failure: &Failure,
        attempts: u32,
    ) -> Outcome {
        let notes = [self.dead_letter_note(envelope, failure, attempts)];
        let entry =
            JobEntry { envelope, end: End::Marked(arrival), reply: &[], rejected: false, notes: &notes, sent: &[] };
        self.commit(log, ledger, &entry, Outcome::DeadLetter(failure.text().to_owned())).await
    }

    /// Returns the note that a message is a dead letter.
    pub(super) fn dead_letter_note(&self, envelope: &Envelope, failure: &Failure, attempts: u32) -> Note {
        self.context.counts.dead_letters.one();
        if self.context.settings.failure_log.admits_dead_letter() {
            tracing::error!(
                target: TARGET, worker = %self.actor, message = %envelope.name, id = %envelope.id, attempts,
                error = failure.text(), "message dead-lettered: redrive or discard it",
            );
        }
        Note::DeadLetter(Box::new(DeadLetter {
            actor: self.actor.clone(),
            key: envelope.key.clone(),
            reason: failure.reason(),
            error: failure.text().to_owned(),
            attempts,
            time: self.context.ids.clock().now(),
            envelope: envelope.clone(),
        }))
    }

    /// Records that the message is no longer in progress.
    pub(super) fn close(&self, log: &Rc<JobLog>, id: MessageId, number: JobNumber) {
        let mut running = log.running.borrow_mut();
        if running.get(&id).is_some_and(|(first, _)| *first == number) {
            running.remove(&id);
        }
        if log.single && running.is_empty() {
            let mut logs = self.logs.borrow_mut();
            if logs.get(&log.key).is_some_and(|known| Rc::ptr_eq(known, log)) {
                logs.remove(&log.key);
            }
        }
    }
}

/// Result of admitting a message.
enum JobAdmission {
    Yes,
    /// Its job is in progress already; it gets the outcome of that.
    Joined,
    No(Outcome),
}
