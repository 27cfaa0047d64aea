//! The way of one job: let in once, worked on, committed, told.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::commit::{End, Entry, JobLog};
use super::deferred::{KEEP_AFTER, nothing};
use super::dispatcher::{Number, WorkerDispatcher};
use super::ledger::Ledger;
use super::plan::{Done, Undone};
use super::{Job, Worker, stream_of};
use crate::actor::{MIN_WAIT, OwnedShard, duplicate_outcome};
use crate::inbox::Admission;
use crate::message::{Codec, Digest, Domain, Envelope, Kind, MessageId};
use crate::router::{DedupKey, Outcome};
use crate::spawn::{FIRST, LONGEST};
use crate::store::{DeadLetter, DeadLetterReason, Note, StoreError, StreamState};
use crate::telemetry::TARGET;
use crate::user_code::caught;

impl<W: Worker> WorkerDispatcher<W> {
    /// Takes a message from its delivery to its outcome.
    ///
    /// User code is caught where it is called. If anything else panics, the store for one, a caller is told, and what comes from an
    /// actor or a log is taken again after a while: it comes from nowhere else.
    pub(super) async fn take(
        self: &Rc<Self>,
        number: Number,
        shard: Rc<OwnedShard>,
        envelope: Envelope,
        arrival: DedupKey,
    ) {
        let mut wait = FIRST;
        while let Err(panicked) = caught(self.take_once(number, &shard, &envelope, &arrival)).await {
            let book = self.book(&shard, &envelope);
            self.close(&book, envelope.id, number);
            let again = matches!(arrival, DedupKey::Sequence { .. });
            let then = if again { "; its message is taken again" } else { "" };
            self.host.user_code.failed(&self.task(), &format!("{}{then}", panicked.text()));
            if again {
                Rc::clone(&self.host).sleep_unless_draining(wait).await;
                wait = (wait * 2).min(LONGEST);
            }
            if !again || self.host.draining.get() || self.host.stopped.get() {
                let unknown = self.has_begun(number);
                let outcome = if unknown { Outcome::Unknown(StoreError::Closed) } else { Outcome::Stopped };
                return self.settle(number, &outcome);
            }
            let waits = |ledger: &RefCell<Ledger>| ledger.borrow().waiting.contains(&envelope.id);
            if book.ledger.get().is_some_and(waits) {
                // It was written down before.
                self.begin_later(&shard, envelope.id, wait);
                return self.settle(number, &nothing());
            }
        }
        self.goes_on();
    }

    async fn take_once(
        self: &Rc<Self>,
        number: Number,
        shard: &Rc<OwnedShard>,
        envelope: &Envelope,
        arrival: &DedupKey,
    ) {
        let book = self.book(shard, envelope);
        let outcome = loop {
            match self.ledger(&book).await {
                Ok(ledger) => match self.admit(number, &book, ledger, envelope, arrival).await {
                    Admitted::Yes => break self.perform(number, &book, ledger, envelope, arrival).await,
                    Admitted::Joined => return,
                    Admitted::No(outcome) => break self.after(book.last.get(), outcome).await,
                },
                Err(error) if matches!(arrival, DedupKey::MessageId) => break Outcome::Refused(error),
                Err(error) => {
                    tracing::warn!(target: TARGET, worker = %self.actor, %error, "a worker's stream cannot be read yet");
                    Rc::clone(&self.host)
                        .sleep_unless_draining(self.host.settings.retry.all.wait(3, &self.host.ids).max(MIN_WAIT))
                        .await;
                    if self.host.draining.get() || self.host.stopped.get() {
                        break Outcome::Stopped;
                    }
                }
            }
        };
        self.close(&book, envelope.id, number);
        self.settle(number, &outcome);
    }

    /// The stream in which the message is written down.
    pub(super) fn book(&self, shard: &Rc<OwnedShard>, envelope: &Envelope) -> Rc<JobLog> {
        let single = envelope.kind == Kind::Command && envelope.origin.is_none() && envelope.id.time().is_none();
        if single { self.book_of(shard, format!("key-{}", envelope.id), true) } else { self.shard_book(shard) }
    }

    /// The stream of a shard.
    pub(super) fn shard_book(&self, shard: &Rc<OwnedShard>) -> Rc<JobLog> {
        self.book_of(shard, stream_of(shard.id.shard), false)
    }

    fn book_of(&self, shard: &Rc<OwnedShard>, key: String, single: bool) -> Rc<JobLog> {
        let mut books = self.books.borrow_mut();
        let book = books.entry(key.clone()).or_insert_with(|| {
            Rc::new(JobLog {
                shard: Rc::clone(shard),
                key,
                single,
                ledger: OnceCell::new(),
                running: RefCell::default(),
                last: Cell::new(None),
            })
        });
        Rc::clone(book)
    }

    pub(super) async fn ledger<'a>(&self, book: &'a JobLog) -> Result<&'a RefCell<Ledger>, StoreError> {
        let load = || async {
            let reader = book.shard.reader();
            let mut stored = reader.load(&self.actor, &book.key).await?;
            if stored.snapshot.as_ref().is_some_and(|snapshot| !Ledger::accepts(snapshot)) {
                // A snapshot is a cache: without it the log says everything.
                let turns = reader.history(&self.actor, &book.key).await?;
                stored = StreamState { snapshot: None, turns };
            }
            Ok(RefCell::new(Ledger::rebuild(&stored, reader.watermarks())))
        };
        book.ledger.get_or_try_init(load).await
    }

    /// Whether the message is new. If it is, it is under way from now on.
    async fn admit(
        &self,
        number: Number,
        book: &JobLog,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        arrival: &DedupKey,
    ) -> Admitted {
        let (id, digest) = (envelope.id, self.host.digest(envelope));
        if let Some(outcome) = self.host.refuse_expired_id(id).filter(|_| matches!(arrival, DedupKey::MessageId)) {
            return Admitted::No(outcome);
        }
        let mut looked_up = false;
        loop {
            if let Some((first, known)) = book.running.borrow().get(&id).copied() {
                self.host.counts.duplicates.one();
                if known != digest.value() {
                    return Admitted::No(Outcome::Conflict);
                }
                self.join(number, first);
                return Admitted::Joined;
            }
            match arrival {
                DedupKey::Sequence { source, sequence, tracker: floor } => {
                    if ledger.borrow().has(source, *sequence) {
                        floor.mark_known(*sequence);
                        self.host.counts.duplicates.one();
                        return Admitted::No(Outcome::Done(Bytes::new(), Codec::Bincode));
                    }
                }
                DedupKey::MessageId => {
                    let admission = ledger.borrow().seen.admit_id(id, &digest, self.host.dedup_horizon());
                    match admission {
                        Admission::LookUp if !looked_up => {
                            looked_up = true;
                            match self.look_up(book, id, &digest).await {
                                Some(outcome) => return Admitted::No(outcome),
                                // Another delivery may have begun meanwhile.
                                None => continue,
                            }
                        }
                        Admission::New | Admission::LookUp => {
                            if let Some(outcome) = self.host.refuse_new(envelope) {
                                return Admitted::No(outcome);
                            }
                        }
                        Admission::Duplicate(reply, codec) => {
                            self.host.counts.duplicates.one();
                            return Admitted::No(duplicate_outcome(reply, codec));
                        }
                        Admission::Conflict => return Admitted::No(Outcome::Conflict),
                    }
                }
                DedupKey::Internal => {}
            }
            book.running.borrow_mut().insert(id, (number, digest.value()));
            return Admitted::Yes;
        }
    }

    /// Asks the store for an id that memory does not know.
    async fn look_up(&self, book: &JobLog, id: MessageId, digest: &Digest<'_>) -> Option<Outcome> {
        // What was appended last is found once it is committed.
        let outcome = self.after(book.last.get(), Outcome::Done(Bytes::new(), Codec::Bincode)).await;
        if !matches!(outcome, Outcome::Done(..)) {
            return Some(outcome);
        }
        let turn = match book.shard.reader().find_turn(&self.actor, &book.key, id).await {
            Ok(turn) => turn.filter(|turn| id.time().is_some() || turn.time >= self.host.dedup_horizon())?,
            Err(error) => return Some(Outcome::Refused(error)),
        };
        if !turn.digest.is_some_and(|known| digest.matches(known)) {
            return Some(Outcome::Conflict);
        }
        self.host.counts.duplicates.one();
        Some(duplicate_outcome(turn.reply, turn.reply_codec))
    }

    /// Does the job, again if need be, and commits that it is done.
    async fn perform(
        self: &Rc<Self>,
        number: Number,
        book: &Rc<JobLog>,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        arrival: &DedupKey,
    ) -> Outcome {
        let retry = self.host.settings.retry.of(envelope);
        let mut failed = ledger.borrow().failing.get(&envelope.id).copied().unwrap_or(0);
        // A fresh job needs no record before it begins. One that may have ended the process has each attempt recorded first, and
        // one that was recorded and did not finish is done alone, so that none is blamed for the crash of another.
        let mut caution = self.host.envelope_may_have_begun(envelope, arrival);
        loop {
            if self.must_wait(arrival) && self.defer(book, ledger, envelope, arrival, failed).await {
                self.begin_later(&book.shard, envelope.id, Duration::ZERO);
                return nothing();
            }
            if caution && failed >= retry.crashes() {
                return self.put_aside(book, ledger, envelope, arrival, &Failure::ended(failed), failed).await;
            }
            let alone = if caution && failed > 0 { self.host.suspect_permits.acquire().await.ok() } else { None };
            let (done, kept) = {
                let Ok(_slot) = self.slots.acquire().await else { return Outcome::Stopped };
                if self.host.draining.get() || self.host.stopped.get() {
                    // It stays where it is, and is done once the node has started again. Whoever waits is not told that
                    // nothing was done if something was.
                    return if failed == 0 { Outcome::Stopped } else { Outcome::Unknown(StoreError::Closed) };
                }
                // It may have waited long for its slot.
                let first = failed == 0 && matches!(arrival, DedupKey::MessageId);
                if let Some(outcome) = self.host.refuse_new(envelope).filter(|_| first) {
                    return outcome;
                }
                if caution {
                    let noted = self.note_attempt(book, ledger, envelope, failed + 1).await;
                    if !matches!(noted, Outcome::Done(..)) {
                        return noted;
                    }
                    caution = false;
                }
                self.begin(number);
                let mut job = pin!(self.once(envelope, failed + 1));
                match tokio::time::timeout(KEEP_AFTER, &mut job).await {
                    Ok(done) => (done, false),
                    Err(_) if self.can_defer(arrival) => {
                        // It takes long: its message is written down, and so holds nothing up.
                        let keep = async {
                            let kept = self.defer(book, ledger, envelope, arrival, failed).await;
                            if kept {
                                self.settle_early(number, &nothing());
                            }
                            kept
                        };
                        tokio::join!(job, keep)
                    }
                    Err(_) => (job.await, false),
                }
            };
            drop(alone);
            if kept {
                match done {
                    Ok(Done { reply, rejected }) => {
                        return self.done_deferred(book, ledger, envelope, &reply, rejected).await;
                    }
                    Err(failure) => self.failed_deferred(book, ledger, envelope, &failure, failed + 1).await,
                }
                return nothing();
            }
            let failure = match done {
                Ok(Done { reply, rejected }) => {
                    if rejected {
                        self.host.counts.rejections.one();
                    }
                    let entry = Entry { envelope, end: End::Marked(arrival), reply: &reply, rejected, notes: &[] };
                    let done = Outcome::Done(Bytes::copy_from_slice(&reply), W::Domain::CODEC);
                    return self.commit(book, ledger, &entry, done).await;
                }
                Err(failure) => failure,
            };
            // A sender from outside is there to be told; nothing was done.
            match &failure {
                Failure::Undecodable(text) if matches!(arrival, DedupKey::MessageId) => {
                    return Outcome::Undecodable(text.clone());
                }
                Failure::Unhandled if matches!(arrival, DedupKey::MessageId) => return Outcome::Unhandled,
                _ => {}
            }
            failed += 1;
            let again = failure.is_transient() && failed < retry.attempts.max(1);
            tracing::warn!(
                target: TARGET, worker = %self.actor, message = %envelope.name, id = %envelope.id, attempt = failed,
                error = failure.text(), again, "a job has failed",
            );
            if !again {
                return self.put_aside(book, ledger, envelope, arrival, &failure, failed).await;
            }
            self.host.counts.retries.one();
            let wait = retry.wait(failed, &self.host.ids).max(MIN_WAIT);
            if self.can_defer(arrival) && self.defer(book, ledger, envelope, arrival, failed).await {
                self.begin_later(&book.shard, envelope.id, wait);
                return nothing();
            }
            // Counted in the log before the next try: what fails must come to its end though the node is started again.
            let noted = self.note_attempt(book, ledger, envelope, failed).await;
            if !matches!(noted, Outcome::Done(..)) {
                return noted;
            }
            Rc::clone(&self.host).sleep_unless_draining(wait).await;
        }
    }

    /// Records that so many deliveries of a message have begun, and waits until that is durable.
    pub(super) async fn note_attempt(
        &self,
        book: &JobLog,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        attempt: u32,
    ) -> Outcome {
        let notes = [Note::Attempt { message: envelope.id, attempt }];
        let entry = Entry { envelope, end: End::Not, reply: &[], rejected: false, notes: &notes };
        let noted = self.commit(book, ledger, &entry, Outcome::Done(Bytes::new(), Codec::Bincode)).await;
        if matches!(noted, Outcome::Done(..)) {
            ledger.borrow_mut().failing.insert(envelope.id, attempt);
        }
        noted
    }

    /// Calls user code once.
    pub(super) async fn once(&self, envelope: &Envelope, delivery: u32) -> Result<Done, Failure> {
        let list = if envelope.kind == Kind::Event { &self.plan.on } else { &self.plan.performs };
        let run = list.get(&(&*envelope.domain, &*envelope.name)).ok_or(Failure::Unhandled)?;
        if let Some(error) = self.host.settings.shapes.refusal(envelope) {
            return Err(Failure::Undecodable(error.to_string()));
        }
        tracing::debug!(
            target: TARGET, room = "worker", worker = %self.actor, message = %envelope.name, id = %envelope.id,
            correlation = %envelope.correlation, delivery, "a job begins",
        );
        let job = Job {
            idempotency_key: envelope.id,
            delivery,
            key: envelope.key.clone(),
            correlation: envelope.correlation,
        };
        let (worker, message) = (std::sync::Arc::clone(&self.worker), envelope.clone());
        #[cfg(feature = "testing")]
        let (attempt, watched) = {
            let attempt = super::Attempt::begin(W::Domain::NAME, W::NAME, envelope, delivery);
            (attempt.clone(), attempt)
        };
        let running = async move {
            #[cfg(feature = "testing")]
            crate::actor::Failpoints::hit(W::Domain::NAME, &message);
            let done = run(worker, message, job).await;
            #[cfg(feature = "testing")]
            let done = watched.returned(done).await;
            done
        };
        let limit = self.host.settings.job_limit;
        let code = &self.host.user_code;
        let label = code.label(W::NAME, &envelope.name);
        let ended = match tokio::time::timeout(limit, code.run(label, running)).await {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(Undone::Undecodable(error)))) => Err(Failure::Undecodable(error.to_string())),
            Ok(Ok(Err(Undone::Retry(text)))) => Err(Failure::Retry(text)),
            Ok(Ok(Err(Undone::Fail(text)))) => Err(Failure::Fail(text)),
            Ok(Err(panicked)) => Err(Failure::Retry(format!("the job {panicked}"))),
            Err(_) => Err(Failure::Retry(format!("the job took longer than {limit:?}"))),
        };
        #[cfg(feature = "testing")]
        attempt.ended(&ended);
        ended
    }

    /// Puts a message aside after its last delivery. Others go on: jobs are in no order.
    async fn put_aside(
        &self,
        book: &JobLog,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        arrival: &DedupKey,
        failure: &Failure,
        attempts: u32,
    ) -> Outcome {
        let notes = [self.letter(envelope, failure, attempts)];
        let entry = Entry { envelope, end: End::Marked(arrival), reply: &[], rejected: false, notes: &notes };
        self.commit(book, ledger, &entry, Outcome::DeadLetter(failure.text().to_owned())).await
    }

    /// The note that a message is a dead letter.
    pub(super) fn letter(&self, envelope: &Envelope, failure: &Failure, attempts: u32) -> Note {
        self.host.counts.dead_letters.one();
        tracing::error!(
            target: TARGET, worker = %self.actor, message = %envelope.name, id = %envelope.id, attempts,
            error = failure.text(), "a message is a dead letter now",
        );
        Note::DeadLetter(Box::new(DeadLetter {
            actor: self.actor.clone(),
            key: envelope.key.clone(),
            reason: failure.reason(),
            error: failure.text().to_owned(),
            attempts,
            time: self.host.ids.clock().now(),
            envelope: envelope.clone(),
        }))
    }

    /// The message is not under way any more.
    pub(super) fn close(&self, book: &Rc<JobLog>, id: MessageId, number: Number) {
        let mut running = book.running.borrow_mut();
        if running.get(&id).is_some_and(|(first, _)| *first == number) {
            running.remove(&id);
        }
        if book.single && running.is_empty() {
            let mut books = self.books.borrow_mut();
            if books.get(&book.key).is_some_and(|known| Rc::ptr_eq(known, book)) {
                books.remove(&book.key);
            }
        }
    }
}

/// Whether a message is let in.
enum Admitted {
    Yes,
    /// Its job is under way already; it waits for that.
    Joined,
    No(Outcome),
}

/// Why a job is not done.
pub(super) enum Failure {
    Undecodable(String),
    Unhandled,
    Retry(String),
    Fail(String),
}

impl Failure {
    /// The process ended during each of so many deliveries.
    pub(super) fn ended(deliveries: u32) -> Self {
        Self::Fail(format!("the process ended during each of its last {deliveries} deliveries"))
    }

    /// Returns whether another delivery may end better.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Retry(_))
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Undecodable(text) | Self::Retry(text) | Self::Fail(text) => text,
            Self::Unhandled => "nobody here handles such a message",
        }
    }

    fn reason(&self) -> DeadLetterReason {
        match self {
            Self::Undecodable(_) => DeadLetterReason::Undecodable,
            Self::Unhandled => DeadLetterReason::Unhandled,
            Self::Retry(_) | Self::Fail(_) => DeadLetterReason::Attempts,
        }
    }
}
